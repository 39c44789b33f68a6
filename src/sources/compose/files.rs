//! The files of a compose project: which they are, and each as a stream.

use crate::base::ids::StreamName;
use crate::base::stream::StreamKind;
use crate::policy::model::App;
use crate::sources::git;
use crate::sources::project::{Project, compose_settings, default_compose_files};
use crate::sources::{Capture, SourceError};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No compose or env file is larger; what is, is no such file.
const FILE_BYTES: u64 = 16 << 20;
const GIT_LIMIT: Duration = Duration::from_secs(60);

/// What a file is to the project. Only `compose` and `env` are named to Compose; the others follow from those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Role {
    Compose,
    /// What variables in compose files are taken from.
    Env,
    /// A compose file that another one includes.
    Included,
    /// A compose file that a service of another one extends.
    Extended,
    /// The `env_file` of a service.
    ServiceEnv,
    /// The file of a secret or config.
    Secret,
}

/// A file to be captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub path: PathBuf,
    pub role: Role,
    /// The containers or the policy name it, so it should be there; else it was looked for.
    pub named: bool,
}

/// What is known of a stored file. Paths are relative to the root, or absolute beyond it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredFile {
    pub path: String,
    pub role: Role,
    pub stream: String,
    pub bytes: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    #[serde(default)]
    pub mtime: Option<(i64, u32)>,
    /// Git tracks it: then it comes back with its commit. Absent where nobody could tell.
    #[serde(default)]
    pub tracked: Option<bool>,
}

/// The compose and env files of a project, each once: what the policy names, then what the containers were made from,
/// and only without either what Compose would find by itself.
pub(super) fn find(app: &App, dir: &Path, project: Option<&Project>) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut add = |path: &Path, role, named| {
        let path = if path.is_absolute() { path.to_owned() } else { dir.join(path) };
        if !found.iter().any(|f| f.path == path) && (named || path.is_file()) {
            found.push(Found { path, role, named });
        }
    };
    let settings = compose_settings(dir, &app.env_files);
    let labels = project.map(|p| (p.config_files.as_slice(), p.environment_files.as_slice())).unwrap_or_default();
    for file in app.compose_files.iter().chain(labels.0) {
        add(file, Role::Compose, true);
    }
    if app.compose_files.is_empty() && labels.0.is_empty() {
        let own = if settings.files.is_empty() { default_compose_files(dir) } else { settings.files };
        for file in &own {
            add(file, Role::Compose, true);
        }
    }
    for file in app.env_files.iter().chain(labels.1) {
        add(file, Role::Env, true);
    }
    if app.env_files.is_empty() && labels.1.is_empty() {
        add(Path::new(".env"), Role::Env, false);
    }
    found
}

/// Stores each file that is there. One that is named and is not there any more is a warning: the stack runs without it.
pub(super) fn store(
    cx: &Capture<'_>,
    root: &Path,
    found: &[Found],
    warnings: &mut Vec<String>,
) -> Result<Vec<StoredFile>, SourceError> {
    let mut stored = Vec::new();
    for (n, file) in found.iter().enumerate() {
        cx.cancel.check()?;
        let error = |source| SourceError::File { action: "read", path: file.path.clone(), source };
        let (bytes, meta) = match read(&file.path) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if file.named {
                    warnings.push(format!("{} belongs to the project and is not there", file.path.display()));
                }
                continue;
            }
            // Nobody named it but a compose file, and it may be another account's secret.
            Err(e) if !matches!(file.role, Role::Compose | Role::Env) => {
                warnings.push(format!("{} belongs to the project and was not captured: {e}", file.path.display()));
                continue;
            }
            Err(e) => return Err(error(e)),
        };
        let path = file.path.strip_prefix(root).unwrap_or(&file.path).to_string_lossy().into_owned();
        // A path that is too long for a name, or another that encodes alike, is numbered; facts tell whose it is.
        let encoded = StreamName::encode(&path, "")
            .ok()
            .filter(|name| !stored.iter().any(|s: &StoredFile| s.stream == name.as_str()));
        let name = match encoded {
            Some(name) => name,
            None => format!("file-{n}").parse()?,
        };
        let mut sink =
            cx.sink.stream(name.clone(), StreamKind::Raw, Some(bytes.len() as u64)).map_err(SourceError::Sink)?;
        sink.write_all(&bytes).map_err(SourceError::Sink)?;
        sink.finish().map_err(SourceError::Sink)?;
        stored.push(StoredFile {
            path,
            role: file.role,
            stream: name.to_string(),
            bytes: bytes.len() as u64,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: Some((meta.mtime(), meta.mtime_nsec() as u32)),
            tracked: tracked(cx, root, &file.path)?,
        });
    }
    Ok(stored)
}

/// The text of a compose file; nothing where there is none.
pub(super) fn text(path: &Path) -> Option<String> {
    String::from_utf8(read(path).ok()?.0).ok()
}

/// Whether git tracks a file.
fn tracked(cx: &Capture<'_>, root: &Path, path: &Path) -> Result<Option<bool>, SourceError> {
    if !root.ancestors().any(|dir| dir.join(".git").exists()) {
        return Ok(Some(false));
    }
    match git::tracks(root, path, cx.cancel, GIT_LIMIT) {
        Ok(tracked) => Ok(Some(tracked)),
        Err(SourceError::Cancelled(cancelled)) => Err(cancelled.into()),
        // The source of kind git tells what is wrong with it.
        Err(_) => Ok(None),
    }
}

fn read(path: &Path) -> io::Result<(Vec<u8>, std::fs::Metadata)> {
    // A FIFO would hold the capture up for ever.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    let file = std::fs::File::open(path)?;
    let meta = file.metadata()?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than any compose or env file"));
    }
    Ok((bytes, meta))
}
