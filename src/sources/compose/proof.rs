//! A compose project, proved: Compose accepts the restored files with the restored env files, in a folder that stands
//! for the root of the machine, and the images that were pinned are there.
//!
//! Compose runs in a cell ([`crate::sources::cell`]) without network and is told of no engine: it only reads. Files that
//! come with the code (an `env_file` in the checkout) are not this source's and are taken from the live machine, where
//! another source holds them; what no source holds is missing after a restore, and so it is here.

use crate::place::account::is_root;
use crate::place::{Command, Docker, HostPlace, PlaceError};
use crate::policy::model::{Pin, SourceSpec};
use crate::sources::SourceError;
use crate::sources::cell::Cell;
use crate::sources::files::proof::{Item, Restored};
use crate::sources::proof::{Check, Proof, Prove, Trial};
use crate::sources::run::{one_line, run};
use crate::sources::streams::Streams;
use serde_json::Value;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

const OUTPUT_BYTES: usize = 16 << 20;
/// Files that come with the code; more is no project.
const MAX_BROUGHT: usize = 100;
const FILE_BYTES: u64 = 16 << 20;
/// All that the snapshot's streams bring, however often its facts name one.
const MOST_BYTES: u64 = 64 << 20;
/// An engine that nobody answers for.
const NO_ENGINE: &str = "unix:///nonexistent/docker.sock";

/// Proves a source of kind `compose`.
pub struct ComposeProof;

impl Prove for ComposeProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let mut proof = Proof::default();
        if trial.facts["present"] == false || is_env_alone(trial.facts) {
            proof.add(Check::skipped("compose config", "", "there was no compose project when the snapshot was taken"));
            return Ok(proof);
        }
        let services = trial.facts["services"].as_array().map(Vec::as_slice).unwrap_or_default();
        let check = proof.step(trial, "compose config", false, || config(trial))?;
        let named = match trial.facts["project"].as_str() {
            Some(name) => format!("compose project {name:?}"),
            None => "compose files".into(),
        };
        proof.restored.push(match services.len() {
            0 => named,
            n => format!("{named} ({n} services)"),
        });
        proof.add(check);
        let images = proof.step(trial, "images", false, || images(trial, services))?;
        images.into_iter().for_each(|check| proof.add(check));
        Ok(proof)
    }
}

/// Whether what was captured is an env file that Compose would read, in a folder that has nothing for Compose.
fn is_env_alone(facts: &Value) -> bool {
    let mut files = facts["files"].as_array().into_iter().flatten();
    facts["project"].is_null() && files.all(|f| f["role"] == "env")
}

/// A file of the project.
struct Stored<'f> {
    path: PathBuf,
    role: &'f str,
    stream: &'f str,
}

fn stored<'f>(trial: &'f Trial<'_>, root: &Path) -> Vec<Stored<'f>> {
    let files = trial.facts["files"].as_array().into_iter().flatten();
    let one = |f: &'f Value| {
        Some(Stored { path: root.join(f["path"].as_str()?), role: f["role"].as_str()?, stream: f["stream"].as_str()? })
    };
    files.filter_map(one).collect()
}

/// Puts the project together and asks Compose.
fn config(trial: &Trial<'_>) -> Result<Check, SourceError> {
    let name = "compose config";
    let subject = trial.facts["project"].as_str().unwrap_or_default();
    let working = PathBuf::from(trial.facts["working_dir"].as_str().unwrap_or("/"));
    let root = trial.policy.map_or_else(|| working.clone(), |p| p.app.root.clone());
    let files = stored(trial, &root);
    if !files.iter().any(|f| f.role == "compose") {
        return Ok(Check::failed(name, subject, "compose files", "none", "the snapshot holds no compose file"));
    }
    let work = trial.scratch.join("compose");
    let failed = |source| SourceError::File { action: "put together", path: work.clone(), source };
    DirBuilder::new().mode(0o755).create(&work).map_err(failed)?;
    let mut left = MOST_BYTES;
    for file in &files {
        let content = match read(trial.streams, file.stream, &mut left)? {
            Ok(content) => content,
            Err(e) => {
                return Ok(Check::failed(name, subject, "whole files", file.path.display().to_string(), e.to_string()));
            }
        };
        put(&work, &file.path, &content).map_err(failed)?;
    }
    let trees = Restored::of(trial.trees, None, &["env"]);
    for item in trees.walk().map_err(failed)? {
        let content = trees.read_file(&item.path, FILE_BYTES);
        if let (Item { path, .. }, Ok(content)) = (&item, content) {
            put(&work, path, &content).map_err(failed)?;
        }
    }
    make(&work, &working).map_err(failed)?;
    Cell::give(&work).map_err(failed)?;
    let cell = match Cell::open_loose(&work, trial.drill.memory, trial.timeout, trial.cancel)? {
        Ok(cell) => cell,
        Err(why) => return Ok(Check::skipped(name, subject, why)),
    };
    let program = match program(&cell)? {
        Some(program) => program,
        None => return Ok(Check::skipped(name, subject, "this host has neither docker compose nor docker-compose")),
    };
    let project = Project { trial, cell, work, working, files: &files, program };
    project.ask(subject)
}

/// A file of the project, of at most so many bytes as are left for all of them.
fn read(streams: &dyn Streams, name: &str, left: &mut u64) -> Result<io::Result<Vec<u8>>, SourceError> {
    streams.info(name)?;
    let read = streams.open(name).and_then(|stream| whole(stream, FILE_BYTES.min(*left)));
    *left -= read.as_ref().map_or(0, |content| content.len() as u64);
    Ok(read)
}

/// All of a stream, which has at most `most` bytes.
fn whole(stream: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    stream.take(most.saturating_add(1)).read_to_end(&mut content)?;
    match content.len() as u64 > most {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than any file of a project")),
        false => Ok(content),
    }
}

/// `docker compose`, else `docker-compose`, with its version.
fn program(cell: &Cell) -> Result<Option<(Vec<&'static str>, String)>, SourceError> {
    for argv in [vec!["docker", "compose"], vec!["docker-compose"]] {
        let ask = environment(cell.command(argv.iter().copied().chain(["version", "--short"])));
        match run(&HostPlace::new(), ask, OUTPUT_BYTES) {
            Ok((out, exit)) if exit.code == 0 => {
                let version = String::from_utf8_lossy(&out).trim().trim_start_matches('v').to_owned();
                return Ok(Some((argv, version)));
            }
            Ok(_) | Err(PlaceError::ToolMissing { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}

/// Nobody's settings, no engine, and nothing fetched for an `include`.
fn environment(mut command: Command) -> Command {
    for (name, value) in [
        ("DOCKER_HOST", NO_ENGINE),
        ("COMPOSE_EXPERIMENTAL_GIT_REMOTE", "false"),
        ("COMPOSE_EXPERIMENTAL_OCI_REMOTE", "false"),
        ("COMPOSE_ANSI", "never"),
    ] {
        command = command.env(name, value.to_owned());
    }
    // The account's own folder holds plugins; nobody has none.
    if is_root() { command.env("HOME", "/nonexistent".to_owned()) } else { command }
}

struct Project<'a> {
    trial: &'a Trial<'a>,
    cell: Cell,
    work: PathBuf,
    /// The project's folder on the machine.
    working: PathBuf,
    files: &'a [Stored<'a>],
    program: (Vec<&'static str>, String),
}

impl Project<'_> {
    fn ask(&self, subject: &str) -> Result<Check, SourceError> {
        let (program, version) = &self.program;
        let expected = "accepted";
        let mut brought: Vec<String> = Vec::new();
        loop {
            let (_, exit) = run(&HostPlace::new(), self.command(program), OUTPUT_BYTES)?;
            let said = self.plain(&one_line(&exit.stderr));
            if exit.code == 0 {
                let live = match brought.as_slice() {
                    [] => String::new(),
                    some => format!("; the live one's, for it comes with the code: {}", some.join(", ")),
                };
                let found = format!("accepted by Compose {version}{live}");
                return Ok(Check::passed("compose config", subject, expected, found));
            }
            let missing = self.missing(&exit.stderr).filter(|path| !brought.contains(&path.display().to_string()));
            let why = match missing.filter(|_| brought.len() < MAX_BROUGHT) {
                None => said,
                Some(path) => match self.bring(&path)? {
                    Ok(()) => {
                        brought.push(path.display().to_string());
                        continue;
                    }
                    Err(why) => why,
                },
            };
            return Ok(Check::failed(
                "compose config",
                subject,
                expected,
                format!("refused by Compose {version}"),
                why,
            ));
        }
    }

    fn command(&self, program: &[&'static str]) -> Command {
        let inside = |path: &Path| {
            let below = path.strip_prefix("/").unwrap_or(path);
            self.cell.seen().join(below).to_string_lossy().into_owned()
        };
        let mut argv: Vec<String> = program.iter().map(|a| (*a).to_owned()).collect();
        argv.extend(["--project-directory".into(), inside(&self.working)]);
        if let Some(name) = self.trial.facts["project"].as_str() {
            argv.extend(["--project-name".into(), name.to_owned()]);
        }
        let env_files = self.files.iter().filter(|f| f.role == "env").count();
        for file in self.files {
            let option = match file.role {
                // What Compose finds by itself is not named; with others it is one of those that were named.
                "env" if env_files == 1 && file.path == self.working.join(".env") => continue,
                "env" => "--env-file",
                "compose" => "-f",
                // The others are led to by these.
                _ => continue,
            };
            argv.extend([option.into(), inside(&file.path)]);
        }
        for profile in self.trial.facts["profiles"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            argv.extend(["--profile".into(), profile.to_owned()]);
        }
        argv.extend(["config".into(), "--quiet".into()]);
        environment(self.cell.command(argv))
    }

    /// Compose's words with the paths of the machine.
    fn plain(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.cell.seen().display()), "/")
    }

    /// The file of the machine that Compose missed, when that is what stopped it.
    fn missing(&self, stderr: &str) -> Option<PathBuf> {
        let seen = format!("{}/", self.cell.seen().display());
        let line = stderr.lines().find(|l| l.contains("no such file or directory") || l.contains("not found"))?;
        let from = line.find(&seen)? + seen.len() - 1;
        let rest = &line[from..];
        let end = rest.find([':', '"', '\'', '\n']).or_else(|| rest.find(" not found")).unwrap_or(rest.len());
        let path = rest[..end].split(" not found").next().unwrap_or_default();
        let path = PathBuf::from(path.trim_end_matches('.'));
        (!self.work.join(path.strip_prefix("/").ok()?).exists()).then_some(path)
    }

    /// Takes a file over from the live machine, when another source holds it.
    fn bring(&self, path: &Path) -> Result<Result<(), String>, SourceError> {
        let lost = || format!("{} is needed by the project and is in no source", path.display());
        if !self.is_held(path)? {
            return Ok(Err(lost()));
        }
        let read = std::fs::metadata(path).and_then(|meta| match meta.is_file() && meta.len() <= FILE_BYTES {
            true => std::fs::read(path),
            false => Err(io::ErrorKind::InvalidInput.into()),
        });
        let content = match read {
            Ok(content) => content,
            Err(e) => return Ok(Err(format!("{} comes with the code and cannot be read: {e}", path.display()))),
        };
        let failed = |source| SourceError::File { action: "put together", path: self.work.clone(), source };
        put(&self.work, path, &content).map_err(failed)?;
        Cell::give(&self.work).map_err(failed)?;
        Ok(Ok(()))
    }

    /// Whether git tracks a file, or a source of files takes its folder.
    fn is_held(&self, path: &Path) -> Result<bool, SourceError> {
        let Some(policy) = self.trial.policy else { return Ok(false) };
        let within = |source: &SourceSpec| match source {
            SourceSpec::Files(spec) => spec.paths.iter().any(|p| path.starts_with(p)),
            _ => false,
        };
        if policy.sources.iter().any(|s| within(&s.spec)) {
            return Ok(true);
        }
        if !policy.sources.iter().any(|s| matches!(s.spec, SourceSpec::Git(_))) {
            return Ok(false);
        }
        crate::sources::git::tracks(&policy.app.root, path, self.trial.cancel, self.trial.timeout)
    }
}

/// The folder that stands for a path, made with those above it. Nothing here is a link: only files are put.
fn make(work: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut at = work.to_path_buf();
    for component in path.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::ParentDir if at != work => {
                at.pop();
            }
            _ => continue,
        }
        match DirBuilder::new().mode(0o755).create(&at) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(at)
}

/// Puts a file; one that is there already stays.
fn put(work: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let Some(name) = path.file_name() else { return Ok(()) };
    let at = make(work, path.parent().unwrap_or(Path::new("/")))?.join(name);
    let opened: io::Result<File> = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at);
    match opened {
        Ok(mut file) => file.write_all(content),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether each service's image is there, under its pin or by its id, or was saved in the snapshot.
fn images(trial: &Trial<'_>, services: &[Value]) -> Result<Vec<Check>, SourceError> {
    if services.is_empty() {
        return Ok(vec![Check::skipped("image", "", "no service ran when the snapshot was taken")]);
    }
    let pins = services.iter().any(|s| !s["pin"].is_null());
    let pin = match trial.source.map(|s| &s.spec) {
        Some(SourceSpec::Compose(spec)) => spec.pin,
        _ if pins => Pin::Tag,
        _ => Pin::None,
    };
    if pin == Pin::None && !pins {
        return Ok(vec![Check::skipped(
            "image",
            "",
            "the policy pins no images (pin = \"none\"): a rollback builds them",
        )]);
    }
    let docker = match trial.places.docker() {
        Ok(docker) => docker,
        Err(PlaceError::Cancelled(cancelled)) => return Err(cancelled.into()),
        Err(e) => return Ok(vec![Check::skipped("image", "", e.to_string())]),
    };
    services.iter().map(|service| image(trial, &docker, service)).collect()
}

fn image(trial: &Trial<'_>, docker: &Docker, service: &Value) -> Result<Check, SourceError> {
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    let (name, id) = (text("service"), text("image_id"));
    let expected = format!("{} ({})", text("image"), short(id));
    if let Some(stream) = service["saved"].as_str() {
        return Ok(match trial.streams.info(stream) {
            Ok(info) => {
                let found = format!("saved in the snapshot ({})", crate::base::units::human_size(info.length));
                Check::passed("image", name, expected, found)
            }
            Err(e) => Check::failed("image", name, expected, "nothing", e.to_string()),
        });
    }
    let pin = service["pin"].as_str();
    if let Some(pin) = pin
        && let Some(image) = docker.image(pin)?
    {
        return Ok(match image.id == id {
            true => Check::passed("image", name, expected, format!("pinned as {pin}")),
            false => {
                let why = format!("{pin} is {}, another image", short(&image.id));
                Check::failed("image", name, expected, short(&image.id).to_owned(), why)
            }
        });
    }
    if docker.image(id)?.is_some() {
        let why = if pin.is_some() { "its pin is gone" } else { "it was not pinned" };
        return Ok(Check::passed("image", name, expected, format!("there by its id; {why}")));
    }
    let digest = service["digests"].as_array().and_then(|d| d.first()).and_then(Value::as_str);
    let why = match digest {
        Some(digest) => format!("the image is gone; docker pull {digest} brings it back while its registry has it"),
        None => "the image is gone and was built here: rebuild, not identical".to_owned(),
    };
    Ok(Check::failed("image", name, expected, "nothing", why))
}

fn short(id: &str) -> &str {
    id.strip_prefix("sha256:").and_then(|hex| hex.get(..12)).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::held::Held;

    /// However often the facts name one stream, and whatever they say of it.
    #[test]
    fn all_files_together_are_as_large_as_a_project_may_be() {
        let held = Held::of("one", vec![b'x'; FILE_BYTES as usize - 1]);
        let mut left = MOST_BYTES;
        for _ in 0..MOST_BYTES / FILE_BYTES {
            assert_eq!(read(&held, "one", &mut left).unwrap().unwrap().len() as u64, FILE_BYTES - 1);
        }
        assert_eq!(left, MOST_BYTES / FILE_BYTES);
        let before = held.read();
        assert!(read(&held, "one", &mut left).unwrap().is_err(), "there is no room for another one");
        assert!(held.read() - before <= left + 1, "{} bytes were read", held.read() - before);
        let mut left = MOST_BYTES;
        let large = Held::of("one", vec![b'x'; FILE_BYTES as usize + 1]);
        assert!(read(&large, "one", &mut left).unwrap().is_err() && left == MOST_BYTES);
        assert!(read(&held, "another", &mut left).is_err());
    }

    #[test]
    fn a_file_is_read_as_far_as_one_may_be_long() {
        let mut endless = io::repeat(b'x').take(1 << 20);
        let said = whole(&mut endless, 1000).unwrap_err().to_string();
        assert!(said.contains("larger than any file of a project") && endless.limit() > (1 << 20) - 2000, "{said}");
        assert_eq!(whole(&[7u8; 1000][..], 1000).unwrap().len(), 1000);
        assert!(whole(&b""[..], u64::MAX).unwrap().is_empty());
    }
}
