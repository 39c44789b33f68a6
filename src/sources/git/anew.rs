//! A repository made anew from a bundle, where its folder is gone: for a bare machine.
//!
//! Branches, tags and remotes are as captured; the tree is at the captured commit, on the captured branch where there was
//! one. Edits and submodules are the rollback's. Nothing is fetched.
//!
//! Write order (must): objects, names, remotes and head in a folder of another name → that on disk → its name `.git` → the
//! files. What was cut short before has no `.git`, and is made again; behind it the rollback puts right what is missing.

use super::explain;
use super::tool::Git;
use crate::base::cancel::Cancel;
use crate::place::PlaceError;
use crate::sources::SourceError;
use crate::sources::placing::Stored;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

/// The repository while it is made.
const UNFINISHED: &str = ".git.lifeboat-unfinished";
const LIMIT: Duration = Duration::from_secs(3600);
/// Refs of a bundle's head.
const MAX_HEAD: u64 = 64 << 20;

/// Whether `root` holds nothing but what a run that was cut short has left of a repository.
pub fn is_unfinished(root: &Path) -> bool {
    let names: Vec<_> = std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    matches!(names.as_slice(), [one] if one == UNFINISHED)
}

/// Makes the repository of `root`, which must be an empty folder that belongs to the tree's owner.
pub fn make(root: &Path, stored: &Stored<'_>, cancel: &Cancel) -> Result<(), SourceError> {
    let facts = stored.facts;
    let bundle = facts["bundle"]["stream"].as_str().ok_or_else(|| {
        SourceError::hint(
            "the snapshot has no history of the code",
            "clone the repository to its place by hand, then run this again",
        )
    })?;
    let (unfinished, made) = (root.join(UNFINISHED), root.join(".git"));
    let deadline = Instant::now() + LIMIT;
    let git = Git::known(root, &unfinished, cancel, deadline)?;
    let name = unfinished.to_string_lossy().into_owned();
    git.run(&["rm", "-rf", "--", &name])?;
    let format = facts["object_format"].as_str().unwrap_or("sha1");
    let init = format!("--object-format={format}");
    // Without the option for what every git knows.
    let mut arguments = vec!["init", "-q"];
    if format != "sha1" {
        arguments.push(&init);
    }
    git.text(&arguments).map_err(explain)?;
    // Git writes that down as the folder does not lie where a repository usually does.
    git.maybe(&["config", "--unset", "core.worktree"]).or_else(not_set)?;
    let read = |source| SourceError::File { action: "read", path: bundle.into(), source };
    let mut stream = BufReader::new(stored.streams.open(bundle).map_err(read)?);
    let refs = head(&mut stream).map_err(read)?;
    git.feed(&["index-pack", "--stdin", "--fix-thin"], &mut stream)?;
    let shallow: String = facts["shallow"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c.as_str())
        .map(|c| format!("{c}\n"))
        .collect();
    if !shallow.is_empty() {
        let file = unfinished.join("shallow");
        std::fs::write(&file, shallow).map_err(|source| SourceError::File { action: "write", path: file, source })?;
    }
    let mut commands = String::new();
    for (id, name) in refs.iter().filter(|(_, name)| name.starts_with("refs/")) {
        let _ = writeln!(commands, "create {name} {id}");
    }
    git.feed(&["update-ref", "--stdin"], &mut commands.as_bytes())?;
    for remote in facts["remotes"].as_array().into_iter().flatten() {
        if let (Some(name), Some(url)) = (remote["name"].as_str(), remote["url"].as_str()) {
            git.text(&["config", &format!("remote.{name}.url"), url]).map_err(explain)?;
            let fetch = format!("+refs/heads/*:refs/remotes/{name}/*");
            git.text(&["config", &format!("remote.{name}.fetch"), &fetch]).map_err(explain)?;
        }
    }
    let commit = facts["head"]["commit"].as_str();
    let branch = facts["branch"].as_str().map(|b| format!("refs/heads/{}", b.trim_start_matches("refs/heads/")));
    match (&branch, commit) {
        (Some(branch), Some(commit)) if refs.iter().any(|(id, name)| id == commit && name == branch) => {
            git.text(&["symbolic-ref", "HEAD", branch]).map_err(explain)?;
        }
        (_, Some(commit)) => {
            git.text(&["update-ref", "--no-deref", "HEAD", commit]).map_err(explain)?;
        }
        (_, None) => {}
    }
    let folder = |action| move |source| SourceError::File { action, path: made_at(root), source };
    let open = std::fs::File::open(&unfinished).map_err(folder("open"))?;
    rustix::fs::syncfs(&open).map_err(|e| folder("make durable")(e.into()))?;
    git.run(&["mv", "-T", "--", &name, &made.to_string_lossy()])?;
    if commit.is_none() {
        return Ok(());
    }
    let git = Git::known(root, &made, cancel, deadline)?;
    git.text(&["read-tree", "--reset", "-u", "HEAD"]).map_err(explain)?;
    Ok(())
}

fn made_at(root: &Path) -> std::path::PathBuf {
    root.join(UNFINISHED)
}

/// Status 5: there was no such setting.
fn not_set(e: SourceError) -> Result<Option<String>, SourceError> {
    match e {
        SourceError::Place(PlaceError::Failed { code: 5, .. }) => Ok(None),
        e => Err(e),
    }
}

/// The refs that a bundle's head names; the stream stands behind it.
pub(super) fn head(stream: &mut impl BufRead) -> std::io::Result<Vec<(String, String)>> {
    let mut refs = Vec::new();
    let mut limited = stream.take(MAX_HEAD);
    let mut line = Vec::new();
    loop {
        line.clear();
        let invalid = |what: String| Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        limited.read_until(b'\n', &mut line)?;
        if limited.limit() == 0 {
            return invalid(format!("it is no bundle: its head is longer than {} MiB", MAX_HEAD >> 20));
        }
        if line.last() != Some(&b'\n') {
            return invalid("it is no bundle: its head does not end".to_owned());
        }
        if line == b"\n" {
            return Ok(refs);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if let Some((id, name)) = text.split_once(' ')
            && id.len() >= 40
            && id.bytes().all(|b| b.is_ascii_hexdigit())
            && name.bytes().all(|b| !b.is_ascii_control())
        {
            refs.push((id.to_owned(), name.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fuzz::Fuzz;

    #[test]
    fn a_head_that_does_not_end_is_no_bundle_and_is_not_read_for_ever() {
        let said = |bytes: &mut dyn Read| head(&mut BufReader::new(bytes)).unwrap_err().to_string();
        // As long as the stream is, whatever that is.
        let mut endless = std::io::repeat(b'a').take(MAX_HEAD + (8 << 20));
        assert!(said(&mut endless).contains("longer than 64 MiB"));
        assert!(endless.limit() >= 7 << 20, "{} bytes were left", endless.limit());
        assert!(said(&mut &b"# v2 git bundle\nnot a ref\n"[..]).contains("does not end"));
        assert!(said(&mut &b""[..]).contains("does not end"));
    }

    #[test]
    fn sweep_heads_of_bundles() {
        let id = "1b".repeat(20);
        let seed = format!("# v2 git bundle\n-{id} before\n{id} HEAD\n{id} refs/heads/main\n\nPACK");
        Fuzz::of("bundle").seed(seed).words(&["\n", " ", "refs/", "..", "\0", "é", &id]).run(|bytes| {
            let mut stream = bytes;
            let Ok(refs) = head(&mut stream) else { return };
            // Each becomes a line of what git is told.
            assert!(refs.iter().all(|(id, name)| !id.contains(['\n', '\0']) && !name.contains(['\n', '\0'])));
            // What is behind the empty line is untouched.
            assert!(bytes.ends_with(stream) && bytes[..bytes.len() - stream.len()].ends_with(b"\n"));
        });
    }
}
