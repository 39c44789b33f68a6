//! Env files in a rollback: the captured ones come back, and a secret that was rotated since does not go unseen.
//!
//! Order of use: [`captured`] and [`live`] read both sides; [`compare`] names the secret-looking keys that differ; somebody
//! chooses for each ([`Choices`]); [`resulting`] makes the files that will be there; [`check`] holds them against the
//! policy's rules, [`super::postgres::check_logins`] against the live server; [`lay`] puts what is not as captured where
//! the placing of the env source finds it.
//!
//! Invariant: nothing that is said here holds a value or a part of one.

mod merge;
mod rotated;

pub use merge::merge;
pub use rotated::{Change, Choices, Comparison, Rotated, Side, choose, compare, is_secret};

use super::SourceError;
use super::extract::{Archive, write_content};
use super::files::TAR;
use super::files::entry::Kind;
use super::files::env::{EnvCheck, EnvFile, Rules, examine};
use super::streams::Streams;
use super::trees::lay_over;
use crate::base::ids::SourceName;
use crate::policy::dotenv;
use crate::policy::model::{App, SourcePolicy, SourceSpec};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// No env file is larger.
const MAX_FILE: u64 = 1 << 20;
/// All of them together, and how many: no application has more.
const MAX_ALL: usize = 64 << 20;
const MAX_FILES: usize = 10_000;

/// The env files of a snapshot.
pub fn captured(streams: &dyn Streams) -> Result<Vec<EnvFile>, SourceError> {
    if streams.list().is_empty() {
        return Ok(Vec::new());
    }
    let failed = |source: io::Error| SourceError::File { action: "read", path: TAR.into(), source };
    let mut archive = Archive::new(streams.open(TAR).map_err(failed)?);
    let broken = |e: super::extract::ExtractError| super::trees::extract_error(e);
    let mut files: Vec<EnvFile> = Vec::new();
    let (mut places, mut held) = (HashMap::new(), 0);
    while let Some(member) = archive.next_member().map_err(|e| broken(e.into()))? {
        if member.entry.kind != Kind::File || member.entry.size > MAX_FILE {
            continue;
        }
        let mut content = Vec::new();
        write_content(&mut archive, &member, &mut content).map_err(broken)?;
        let path = Path::new("/").join(OsStr::from_bytes(&member.entry.path));
        held += member.entry.path.len() + content.len();
        if held > MAX_ALL || files.len() == MAX_FILES {
            let problem = "the snapshot's env files are more, or larger, than any application's";
            return Err(SourceError::hint(problem, "restore them with `lifeboat restore --into`, and choose by hand"));
        }
        let file = EnvFile { path: path.clone(), mode: member.entry.mode, content };
        // One that changed while it was read stands twice, and the last one counts.
        match places.entry(path) {
            Entry::Occupied(place) => files[*place.get()] = file,
            Entry::Vacant(place) => {
                place.insert(files.len());
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// The same files as they are now; those that are not there are left out.
pub fn live(captured: &[EnvFile]) -> Result<Vec<EnvFile>, SourceError> {
    let mut files = Vec::new();
    for path in captured.iter().map(|f| &f.path) {
        match read(path) {
            Ok((mode, content)) => files.push(EnvFile { path: path.clone(), mode, content }),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(source) => return Err(SourceError::File { action: "read", path: path.clone(), source }),
        }
    }
    Ok(files)
}

fn read(path: &Path) -> io::Result<(u32, Vec<u8>)> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = std::fs::File::options().read(true).custom_flags(nonblock).open(path)?;
    let meta = file.metadata()?;
    let mut content = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if !meta.is_file() || content.len() as u64 > MAX_FILE {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is no env file, or larger than one"));
    }
    Ok((meta.mode() & 0o7777, content))
}

/// The files that will be there: the captured ones, with the live assignments of the keys that were chosen so.
pub fn resulting(captured: &[EnvFile], live: &[EnvFile], choices: &Choices) -> Result<Vec<EnvFile>, SourceError> {
    let mut files = Vec::new();
    for file in captured {
        let chosen: BTreeMap<String, Side> = choices
            .iter()
            .filter(|((path, _), side)| *path == file.path && **side == Side::Live)
            .map(|((_, key), side)| (key.clone(), *side))
            .collect();
        let mut content = file.content.clone();
        if !chosen.is_empty() {
            let refuse = |why: String| {
                SourceError::hint(
                    format!("{} cannot keep the live value of {}: {why}", file.path.display(), names(&chosen)),
                    "choose the snapshot's values with --env snapshot, or put the file in place by hand",
                )
            };
            let today = live.iter().find(|f| f.path == file.path);
            let today = today.ok_or_else(|| refuse("there is no such file today".into()))?;
            let text = |bytes| std::str::from_utf8(bytes).map_err(|_| refuse("it is not UTF-8".into()));
            content = merge(text(&file.content)?, text(&today.content)?, &chosen).map_err(refuse)?.into_bytes();
        }
        files.push(EnvFile { path: file.path.clone(), mode: file.mode, content });
    }
    Ok(files)
}

fn names(chosen: &BTreeMap<String, Side>) -> String {
    chosen.keys().cloned().collect::<Vec<_>>().join(", ")
}

/// Puts what is not as it was captured where the placing of the source finds it. `folder`: the transaction's own.
/// Returns the paths.
pub fn lay(
    folder: &Path,
    source: &SourceName,
    captured: &[EnvFile],
    resulting: &[EnvFile],
) -> Result<Vec<PathBuf>, SourceError> {
    let mut laid = Vec::new();
    for file in resulting {
        if captured.iter().any(|c| c.path == file.path && c.content != file.content) {
            lay_over(folder, source, &file.path, &file.content)?;
            laid.push(file.path.clone());
        }
    }
    Ok(laid)
}

/// Holds the files that will be there against the rules of the policy (`required`, `pattern`, `same`), and whether
/// Compose can read them.
pub fn check(resulting: &[EnvFile], source: &SourcePolicy, app: &App) -> Vec<EnvCheck> {
    let SourceSpec::Env(spec) = &source.spec else { return Vec::new() };
    let project_files = project_files(app);
    let rules = Rules { spec, root: &app.root, project_files: &project_files };
    let (facts, _) = examine(resulting, &rules, &[0; 32], &|path| read(path).map(|(_, content)| content));
    let say = |path: &Path| path.strip_prefix(&app.root).unwrap_or(path).display().to_string();
    let unread = facts.files.iter().filter_map(|f| {
        let problem = format!("{}: {}", say(&f.path), f.error.as_ref()?);
        Some(EnvCheck { rule: "parse".into(), keys: vec![say(&f.path)], ok: false, problem: Some(problem) })
    });
    unread.chain(facts.checks.iter().cloned()).collect()
}

/// The files that Compose reads for the project.
fn project_files(app: &App) -> Vec<PathBuf> {
    if app.env_files.is_empty() { vec![app.root.join(".env")] } else { app.env_files.clone() }
}

/// Reads files as Compose does: the project's own stand in for variables of the others. What cannot be read says why.
pub(super) fn parsed<'f>(
    files: &'f [EnvFile],
    app: &App,
) -> Vec<(&'f EnvFile, Result<Vec<dotenv::Entry>, dotenv::DotenvError>)> {
    let project = project_files(app);
    let is_project = |file: &&EnvFile| project.contains(&file.path);
    let mut known: HashMap<String, String> = HashMap::new();
    let mut all = Vec::new();
    for file in files.iter().filter(is_project).chain(files.iter().filter(|f| !is_project(f))) {
        let entries = dotenv::parse_bytes(&file.content, &|key| known.get(key).cloned());
        if let (true, Ok(entries)) = (is_project(&file), &entries) {
            known.extend(entries.iter().map(|e| (e.key.clone(), e.value.expose().clone())));
        }
        all.push((file, entries));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::held::Held;

    /// A tar of files.
    fn tar<'a>(files: impl Iterator<Item = (String, &'a [u8])>) -> Held {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, name, content).unwrap();
        }
        Held::of(TAR, builder.into_inner().unwrap())
    }

    #[test]
    fn the_last_of_two_that_are_called_alike_counts() {
        let (old, new, other) = (&b"A=1\n"[..], &b"A=2\n"[..], &b"B=1\n"[..]);
        let three = [("srv/.env", old), ("srv/other.env", other), ("srv/.env", new)];
        let files = captured(&tar(three.into_iter().map(|(name, content)| (name.to_owned(), content)))).unwrap();
        let read: Vec<_> = files.iter().map(|f| (f.path.to_str().unwrap(), &f.content[..])).collect();
        assert_eq!(read, [("/srv/.env", new), ("/srv/other.env", other)]);
    }

    #[test]
    fn more_or_larger_files_than_any_application_has_are_refused() {
        let large = vec![b'#'; MAX_FILE as usize];
        let many = |count: usize, content| tar((0..count).map(move |n| (format!("srv/{n}.env"), content)));
        let said = |held: &Held| captured(held).err().map_or_else(String::new, |e| e.to_string());
        assert!(said(&many(MAX_ALL / large.len() + 1, &large)).contains("more, or larger"));
        assert!(said(&many(MAX_FILES + 1, b"A=1\n")).contains("more, or larger"));
        assert_eq!(captured(&many(MAX_FILES, b"")).unwrap().len(), MAX_FILES);
        // What is larger than any is left out, and counts for nothing.
        let larger = vec![b'#'; MAX_FILE as usize + 1];
        assert!(captured(&many(MAX_ALL / larger.len() + 2, &larger)).unwrap().is_empty());
        assert_eq!(captured(&many(2, &large)).unwrap().len(), 2);
    }
}
