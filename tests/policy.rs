//! Policies: every kind of error with its place and words, the shipped examples, and `show` as an equal policy.

use lifeboat::policy::{self, LoadError, Policy, PolicyErrors};
use std::fs;
use std::path::{Path, PathBuf};

const APP: &str = "[app]\nname = \"x\"\nroot = \"/srv/x\"\n";
const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

/// The policy of a case: what it does not say itself is valid.
fn complete(text: &str) -> String {
    let mut text = format!("{}\n", text.trim_end());
    if !text.contains("[app]") {
        text.push_str(APP);
    }
    if !text.contains("[repository]") {
        text.push_str(&format!("[repository]\nurl = \"/var/backups\"\nrecipients = [\"{RECIPIENT}\"]\n"));
    }
    text
}

fn parse(text: &str) -> Result<Policy, PolicyErrors> {
    policy::parse(Path::new("x.toml"), &complete(text))
}

fn errors(text: &str) -> String {
    match parse(text) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string().replace("x.toml:", ""),
    }
}

fn good(text: &str) -> Policy {
    parse(text).unwrap_or_else(|e| panic!("{e}\nin\n{}", complete(text)))
}

fn examples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_error_has_its_place_and_its_words() {
    let cases = include_str!("policy/errors.txt");
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in cases.split("\n=== ").skip(1) {
        let (name, rest) = case.split_once('\n').unwrap();
        let (text, expected) = rest.split_once("\n---\n").unwrap_or_else(|| panic!("{name}: no ---"));
        count += 1;
        let found = errors(text);
        assert!(!found.contains("geheim") && !found.contains("GFPYYSJZ"), "{name}: a secret came out\n{found}");
        if found != expected.trim_end() {
            wrong.push(format!("=== {name}\n{text}\n---\n{found}\n"));
        }
    }
    assert!(count > 35, "only {count} cases were found");
    assert!(wrong.is_empty(), "{} cases differ; they now say\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn an_empty_file_lacks_its_sections() {
    let found = policy::parse(Path::new("x.toml"), "# nothing\n").unwrap_err().to_string();
    assert_eq!(found, "x.toml:1:1: missing section [app]\nx.toml:1:1: missing section [repository]");
}

#[test]
fn all_errors_of_a_file_come_in_one_run() {
    let text = "[app]\nnam = \"x\"\nroot = \"srv\"\n[repository]\nurl = \"x\"\nrecipient = []\n[schedule]\nsnapshot = \"x\"\n\
                [[source]]\nkind = \"redi\"\n[[health]]\ntcp = \"x\"\n[retention]\nkeep_last = true\n[drill]\nmemory = 5\n";
    let errors = policy::parse(Path::new("x.toml"), text).unwrap_err().errors;
    let lines: Vec<usize> = errors.iter().map(|e| e.position.line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16], "{errors:#?}");
}

#[test]
fn the_smallest_useful_policy_has_every_default() {
    let policy = good("[[source]]\nkind = \"postgres\"\nservice = \"postgres\"");
    let shown = policy::show(&policy);
    for line in [
        "compression = 3",
        "min_free = \"10%\"",
        "# timezone: the system's",
        "snapshot = \"0 2 * * *\"",
        "verify = \"15 * * * *\"",
        "drill = \"0 3 * * 0\"",
        "prune = \"30 4 * * *\"",
        "catch_up = true",
        "jitter = \"5m\"",
        "keep_last = 3",
        "keep_daily = 7",
        "keep_weekly = 4",
        "keep_monthly = 6",
        "keep_tagged = true",
        "fingerprint = \"rows\"",
        "# kind = \"env\"",
        "# paths = [\"/srv/x/.env\", \"/srv/x/.env.*\"]",
        "# exclude = [\"*.example\", \"*.sample\", \"*.template\", \"*.dist\"]",
        "# kind = \"git\"",
        "# bundle = true",
        "# kind = \"compose\"",
        "# pin = \"tag\"",
        "keep_old = \"3d\"",
        "memory = \"512MiB\"",
        "max_age = \"8d\"",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is missing in\n{shown}");
    }
    let implicit: Vec<(&str, bool)> = policy.sources.iter().map(|s| (s.name.as_str(), s.implicit)).collect();
    assert_eq!(implicit, [("postgres", false), ("env", true), ("git", true), ("compose", true)]);
}

#[test]
fn sources_that_stand_by_default_can_be_named_or_switched_off() {
    let text = "[[source]]\nkind = \"git\"\nenabled = false\n[[source]]\nkind = \"env\"\nname = \"secrets\"\npaths = [\"a.env\"]\n\
                [[source]]\nkind = \"compose\"\nenabled = false\npin = \"save\"\n";
    let policy = good(text);
    let names: Vec<(&str, bool)> = policy.sources.iter().map(|s| (s.name.as_str(), s.implicit)).collect();
    assert_eq!(names, [("secrets", false)]);
    let shown = policy::show(&policy);
    assert_eq!(policy::parse(Path::new("x.toml"), &shown).unwrap(), policy, "{shown}");
}

#[test]
fn rollback_defaults_follow_the_kind() {
    use policy::model::OnRollback::{Add, Keep, Restore};
    let text = "[[source]]\nkind = \"postgres\"\n[[source]]\nkind = \"redis\"\nservice = \"r\"\n[[source]]\nkind = \"certificates\"\n\
                [[source]]\nkind = \"nginx\"\n[[source]]\nkind = \"nginx\"\nname = \"own\"\npaths = [\"nginx.conf\"]\n[[source]]\n\
                kind = \"files\"\npaths = [\"a\"]\n[[source]]\nkind = \"volume\"\nvolumes = [\"v\"]\n[[source]]\nkind = \"command\"\nrun = [\"x\"]";
    let policy = good(text);
    let defaults: Vec<_> = policy.sources.iter().map(|s| (s.name.as_str(), s.on_rollback)).collect();
    let expected = [
        ("postgres", Restore),
        ("redis", Keep),
        ("certificates", Keep),
        ("nginx", Keep),
        ("own", Restore),
        ("files", Add),
        ("volume", Add),
        ("command", Keep),
        ("env", Restore),
        ("git", Restore),
        ("compose", Restore),
    ];
    assert_eq!(defaults, expected);
}

/// A policy that says everything, and what it must mean.
#[test]
fn every_field_arrives() {
    let policy = policy::load(&data("every-field.toml")).unwrap_or_else(|e| panic!("{e}"));
    let expected = include_str!("policy/every-field.expected");
    let shown = policy::show(&policy);
    assert_eq!(shown, expected, "show says\n{shown}");
    assert_eq!(policy::parse(Path::new("x.toml"), &shown).unwrap(), policy);
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy").join(name)
}

#[test]
fn the_examples_load_and_show_as_equal_policies() {
    let names: Vec<String> = examples().iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let expected = [
        "connector-prod.toml",
        "connector-test.toml",
        "course-supporter.toml",
        "masstock.toml",
        "meta-chat.toml",
        "mindflow.toml",
    ];
    assert_eq!(names, expected);
    for file in examples() {
        let policy = policy::load(&file).unwrap_or_else(|e| panic!("{e}"));
        let shown = policy::show(&policy);
        let again = policy::parse(&file, &shown).unwrap_or_else(|e| panic!("{e}\nin\n{shown}"));
        assert_eq!(again, policy, "{}", file.display());
        assert_eq!(policy::show(&again), shown);
    }
}

#[test]
fn odd_texts_survive_show() {
    let odd = r#"a \"quoted\" \\ back\tslash\nnew 'line' \u0007 ž # no comment"#;
    let text = format!(
        "[[external]]\nname = \"{odd}\"\n[hooks]\nbefore_snapshot = \"{odd}\"\n[[source]]\nkind = \"postgres\"\n\
         databases = [\"{odd}\", \"$(id)\", \"-x\"]\n[[drill.check]]\nsource = \"postgres\"\nsql = \"{odd}\"\n\
         [[source]]\nkind = \"env\"\npattern = {{ A = '^\\d \"x\"$' }}\n[[source]]\nkind = \"files\"\npaths = [\"{odd}\"]\n\
         [app]\nname = \"x\"\nroot = \"/srv/žluť #1\"\n"
    );
    let policy = good(&text);
    let shown = policy::show(&policy);
    let again = policy::parse(Path::new("x.toml"), &shown).unwrap_or_else(|e| panic!("{e}\nin\n{shown}"));
    assert_eq!(again, policy, "{shown}");
}

/// Half a file is an error or a policy, never a panic, and never an error without words.
#[test]
fn cut_files_are_refused_in_words() {
    let mut files = examples();
    files.push(data("every-field.toml"));
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for cut in (0..text.len()).step_by(13).filter(|cut| text.is_char_boundary(*cut)) {
            if let Err(errors) = policy::parse(&file, &text[..cut]) {
                assert!(errors.errors.iter().all(|e| !e.message.is_empty()), "{}: cut at {cut}", file.display());
            }
        }
    }
}

#[test]
fn files_that_are_no_policy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    assert!(matches!(policy::load(&path), Err(LoadError::Read { .. })));
    fs::write(&path, b"[app]\nname = \"\xff\"\n").unwrap();
    assert_eq!(policy::load(&path).unwrap_err().to_string(), format!("{}:2:9: not UTF-8 text", path.display()));
    fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    assert!(matches!(policy::load(&path), Err(LoadError::Read { .. })), "read whole");
    fs::write(&path, "a = ".to_owned() + &"[".repeat(100_000)).unwrap();
    assert!(matches!(policy::load(&path), Err(LoadError::Invalid(_))));
}

#[test]
fn policies_are_found_by_name_by_file_or_alone() {
    let config = tempfile::tempdir().unwrap();
    let find = |what: Option<&str>| {
        policy::find(config.path(), what).map(|p| p.strip_prefix(config.path()).unwrap_or(&p).to_owned())
    };
    let message = |what: Option<&str>| {
        let error = find(what).unwrap_err();
        format!("{error} ({})", error.hint().unwrap_or_default())
            .replace(&config.path().display().to_string(), "CONFIG")
    };
    let none =
        "no policy is installed in CONFIG/policies (write one with `lifeboat init`, or name a file with --policy FILE)";
    assert_eq!(message(None), none);
    assert_eq!(message(Some("shop")), none);

    let dir = config.path().join("policies");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("shop.toml"), complete("[app]\nname = \"shop\"\nroot = \"/srv/shop\"")).unwrap();
    for other in ["notes.txt", ".hidden.toml"] {
        fs::write(dir.join(other), "").unwrap();
    }
    assert_eq!(find(None).unwrap(), Path::new("policies/shop.toml"));

    fs::write(dir.join("blog.toml"), complete("[app]\nname = \"shop\"\nroot = \"/srv/blog\"")).unwrap();
    assert_eq!(find(Some("shop")).unwrap(), Path::new("policies/shop.toml"));
    assert_eq!(message(None), "several policies are installed: blog and shop (choose one with --policy NAME)");
    assert_eq!(
        message(Some("shpo")),
        "no policy is called \"shpo\": installed are blog and shop (did you mean \"shop\"?)"
    );
    // One that leads nowhere today is installed all the same: whoever loads it says what is wrong.
    std::os::unix::fs::symlink("/not/mounted/wiki.toml", dir.join("wiki.toml")).unwrap();
    assert_eq!(policy::find::installed(config.path()).unwrap(), ["blog", "shop", "wiki"]);
    fs::remove_file(dir.join("wiki.toml")).unwrap();
    let file = dir.join("shop.toml");
    assert_eq!(policy::find(config.path(), file.to_str()).unwrap(), file);
    assert_eq!(message(Some("./nowhere.toml")), "there is no policy file ./nowhere.toml ()");
    assert!(policy::load(&file).is_ok());

    // Two policies of one name on a host would number their snapshots against each other.
    let error = policy::load(&dir.join("blog.toml")).unwrap_err().to_string();
    assert!(error.contains("2:8: the policy \"shop\" stands in a file of another name"), "{error}");
}
