//! The documents do not lie: what they link to is there, and every command that they show is one that the binary
//! takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let markdown = |dir: PathBuf| {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|e| e == "md")).collect::<Vec<_>>()
    };
    [root().to_owned(), root().join("docs"), root().join("docs/decisions")].into_iter().flat_map(markdown).collect()
}

/// The targets of Markdown links that are files.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|t| !t.contains("://") && !t.starts_with('#')).map(|t| t.split('#').next().unwrap_or(t))
}

/// The arguments of each `lifeboat …` line in blocks of `sh`, without comments and what stands behind a pipe.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut in_shell = false;
    // A command that goes on in the next line is one.
    let text = text.replace("\\\n", " ");
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            in_shell = language == "sh";
        } else if in_shell {
            let line = line.trim_start_matches("$ ");
            let line = line.split(" #").next().unwrap_or(line).split(" | ").next().unwrap_or(line);
            let line = line.split(" > ").next().unwrap_or(line);
            if let Some(arguments) = line.strip_prefix("lifeboat ") {
                found.push(arguments.split_whitespace().map(|w| w.trim_matches(['\'', '"']).to_owned()).collect());
            }
        }
    }
    found
}

#[test]
fn links_lead_to_files() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).filter(|link| !document.with_file_name("").join(link).exists()) {
            broken.push(format!("{}: {link}", document.strip_prefix(root()).unwrap().display()));
        }
    }
    assert!(broken.is_empty(), "links to nothing: {broken:#?}");
}

/// A link to a heading leads to one, in the way in which headings are named.
#[test]
fn links_to_headings_lead_to_headings() {
    let anchor = |heading: &str| -> String {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    };
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let Some((file, heading)) = target.split_once('#').filter(|(file, _)| !file.contains("://")) else {
                continue;
            };
            let file = if file.is_empty() { document.clone() } else { document.with_file_name("").join(file) };
            let text = fs::read_to_string(&file).unwrap_or_default();
            let headings = text.lines().filter(|l| l.starts_with('#'));
            if !headings.map(|l| anchor(l.trim_start_matches('#').trim())).any(|a| a == heading) {
                broken.push(format!("{}: {target}", document.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to no heading: {broken:#?}");
}

/// The book's table of contents has every document.
#[test]
fn the_index_names_every_document() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    for document in documents().iter().filter(|d| d.parent().unwrap().ends_with("docs")) {
        let name = document.file_name().unwrap().to_str().unwrap();
        assert!(name == "README.md" || index.contains(&format!("({name})")), "docs/README.md does not name {name}");
    }
}

#[test]
fn commands_are_ones_that_the_binary_takes() {
    let mut tried = 0;
    for document in documents() {
        for arguments in commands(&fs::read_to_string(&document).unwrap()) {
            // Everything before --help is parsed as ever; nothing runs. What stands behind -- is another program's.
            let own = arguments.iter().take_while(|word| *word != "--");
            let output = Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(own).arg("--help").output().unwrap();
            assert!(output.status.success(), "{}: lifeboat {arguments:?}: {output:?}", document.display());
            tried += 1;
        }
    }
    assert!(tried > 10, "only {tried} commands found in the documents");
    let unknown = Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(["list", "--bogus", "--help"]).output().unwrap();
    assert!(!unknown.status.success(), "an unknown option would not be noticed");
}

#[test]
fn every_script_is_executable_and_named_in_a_document() {
    use std::os::unix::fs::PermissionsExt;
    let all: String = documents().iter().map(|d| fs::read_to_string(d).unwrap()).collect();
    for name in ["test.sh", "demo.sh", "audit.sh", "break-glass.sh", "install.sh", "package.sh"] {
        let script = root().join("scripts").join(name);
        assert!(fs::metadata(&script).unwrap().permissions().mode() & 0o111 == 0o111, "{name} is not executable");
        assert!(all.contains(&format!("scripts/{name}")), "no document names scripts/{name}");
    }
}
