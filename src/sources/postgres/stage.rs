//! Dumps as files that `pg_restore` can seek in, which is what more than one job needs.
//!
//! Each is walked to its last block while it is written: a dump that ends early or is no dump is found out before any
//! row is loaded. Files are the tools' own, 0600, and removed when their handle is dropped.

use super::archive;
use super::connection::Connection;
use crate::base::cancel::Cancel;
use crate::place::docker::Docker;
use crate::place::inspect::Container;
use crate::place::{Command, Place, PlaceError};
use crate::sources::SourceError;
use crate::sources::run::{Deadline, run};
use crate::sources::streams::Streams;
use crate::sources::tap::{Tap, TapError};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where dumps are laid for the tools of one server.
pub(super) enum Stage {
    /// A folder of this host that the tools' account may enter; files are given to it.
    Host { dir: PathBuf, owner: Option<(u32, u32)> },
    /// A folder in a container, written by a command there, or straight through its root where this process may.
    Container { place: Arc<dyn Place>, docker: Docker, container: Box<Container>, dir: String, user: Option<String> },
}

/// A dump as a file. It goes when this is dropped.
pub(super) struct Staged<'s> {
    stage: &'s Stage,
    pub path: String,
}

/// Why a dump was not laid out.
#[derive(Debug)]
pub(super) enum StageError {
    /// The stored dump is not whole, as a lower-case fragment.
    Damaged(String),
    Other(SourceError),
}

impl<E: Into<SourceError>> From<E> for StageError {
    fn from(error: E) -> Self {
        StageError::Other(error.into())
    }
}

const CREATE: &str = "umask 077; set -C; : >\"$1\"";
const FILL: &str = "exec cat >\"$1\"";

/// How long a step of cleaning up may take.
const SETTLE: Duration = Duration::from_secs(20);

impl Stage {
    /// Lays a dump out.
    pub fn dump(
        &self,
        streams: &dyn Streams,
        name: &str,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Staged<'_>, StageError> {
        let info = streams.info(name)?;
        let damaged = |why: &str| StageError::Damaged(format!("{name}: {why}"));
        let input = streams.open(name).map_err(|e| damaged(&chain(&e)))?;
        let staged = Staged { stage: self, path: self.new_path() };
        let mut file = self.create(&staged.path, deadline, cancel)?;
        let mut tap = Tap::new(Watched { input, cancel }, &mut file, ());
        let walked = archive::walk(&mut tap).and_then(|_| {
            let bytes = tap.position();
            tap.finish().map(|_| bytes)
        });
        match walked {
            Ok(bytes) if bytes == info.length => {}
            Ok(bytes) => return Err(damaged(&format!("{bytes} bytes came, and the snapshot has {}", info.length))),
            Err(TapError::Short) => return Err(damaged("the dump ends early")),
            Err(TapError::Format(why)) => return Err(damaged(&why)),
            Err(TapError::Read(e)) => {
                cancel.check()?;
                return Err(damaged(&chain(&e)));
            }
            Err(TapError::Sink(e)) => {
                let tail = file.finish();
                let place = self.describe();
                return Err(tail.err().unwrap_or_else(|| PlaceError::from_io("write a dump", place, e).into()).into());
            }
        }
        file.finish()?;
        Ok(staged)
    }

    fn describe(&self) -> String {
        match self {
            Stage::Host { .. } => "this host".into(),
            Stage::Container { place, .. } => place.describe(),
        }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> String {
        match self {
            Stage::Host { dir, .. } => dir.join(name).to_string_lossy().into_owned(),
            Stage::Container { dir, .. } => format!("{dir}/{name}"),
        }
    }

    fn new_path(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        self.path(&format!("lifeboat-{}-{}.dump", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst)))
    }

    fn create(&self, path: &str, deadline: Deadline, cancel: &Cancel) -> Result<Filling, SourceError> {
        match self {
            Stage::Host { owner, .. } => {
                let failed = |source| SourceError::File { action: "write", path: PathBuf::from(path), source };
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
                if let Some((uid, gid)) = owner {
                    std::os::unix::fs::fchown(&file, Some(*uid), Some(*gid)).map_err(failed)?;
                }
                Ok(Filling::File(file))
            }
            Stage::Container { place, docker, container, user, .. } => {
                let script = |text: &str| {
                    Command::new(["/bin/sh", "-c", text, "lifeboat-stage", path])
                        .user(user.clone())
                        .timeout(deadline.left())
                        .cancel(cancel)
                };
                place.output(script(CREATE), 4096)?;
                if let Some(file) = docker.open_inside(container, Path::new(path)) {
                    return Ok(Filling::File(file));
                }
                let mut running = place.start(script(FILL).stdin())?;
                let stdin = running.stdin().ok_or_else(|| SourceError::problem("cat was started without its pipe"))?;
                Ok(Filling::Command { stdin: Some(stdin), running: Some(running), place: place.describe() })
            }
        }
    }

    fn remove(&self, path: &str) -> Result<(), SourceError> {
        match self {
            Stage::Host { .. } => match std::fs::remove_file(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(SourceError::File { action: "remove", path: path.into(), source })
                }
                _ => Ok(()),
            },
            Stage::Container { place, user, .. } => {
                let command = Command::new(["rm", "-f", "--", path]).user(user.clone()).timeout(SETTLE);
                run(&**place, command, 4096)?;
                Ok(())
            }
        }
    }
}

/// A stream that ends when it is told to.
struct Watched<'a, R> {
    input: R,
    cancel: &'a Cancel,
}

impl<R: io::Read> io::Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check_io()?;
        self.input.read(buffer)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

enum Filling {
    File(File),
    Command { stdin: Option<Box<dyn Write + Send>>, running: Option<Box<dyn crate::place::Running>>, place: String },
}

impl Write for Filling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Filling::File(file) => file.write(bytes),
            Filling::Command { stdin: Some(stdin), .. } => stdin.write(bytes),
            Filling::Command { stdin: None, .. } => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Filling {
    fn finish(self) -> Result<(), SourceError> {
        match self {
            Filling::File(_) => Ok(()),
            Filling::Command { mut stdin, mut running, place } => {
                drop(stdin.take());
                let Some(exit) = running.take().map(|r| r.wait()).transpose()? else { return Ok(()) };
                match exit.code {
                    0 => Ok(()),
                    code => Err(PlaceError::Failed { tool: "cat".into(), place, code, stderr: exit.stderr }.into()),
                }
            }
        }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.stage.remove(&self.path) {
            tracing::warn!(path = self.path, %error, "a dump stays behind");
        }
    }
}

/// Where a folder would lie that `account` may enter: below `own`, a folder of this process alone, when every folder above
/// lets the account pass; else below `/var/tmp`.
pub(super) fn folder_for(own: &Path, account: Option<(u32, u32)>, name: &str) -> PathBuf {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let passes = |above: &Path| {
        let Some((uid, gid)) = account else { return true };
        std::fs::metadata(above).is_ok_and(|m| {
            let bit = match (m.uid() == uid, m.gid() == gid) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            m.mode() & bit != 0
        })
    };
    // A socket's path holds 107 bytes at most.
    let fits = own.is_absolute() && own.as_os_str().len() <= 60;
    let open = fits && own.ancestors().skip(1).all(passes);
    // It may be passed through, and not looked into.
    let opened = open && (passes(own) || std::fs::set_permissions(own, PermissionsExt::from_mode(0o711)).is_ok());
    if opened { own.join(name) } else { Path::new("/var/tmp").join(name) }
}

/// Makes a folder, 0700 and the account's own; whoever asks removes it.
pub(super) fn make_folder(dir: &Path, account: Option<(u32, u32)>) -> Result<(), SourceError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |source| SourceError::File { action: "make folder", path: dir.to_owned(), source };
    std::fs::DirBuilder::new().mode(0o700).create(dir).map_err(failed)?;
    match account {
        Some((uid, gid)) => std::os::unix::fs::chown(dir, Some(uid), Some(gid)).map_err(failed),
        None => Ok(()),
    }
}

/// A script for `psql` on its standard input; what it said when it failed. Statements are never told, because they may
/// hold the hashes of passwords.
pub(super) fn psql_script(
    connection: &Connection,
    database: &str,
    script: &[u8],
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<Result<(), String>, SourceError> {
    let argv = super::connection::psql(
        database,
        &["--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never", "--output=/dev/null", "--file=-"],
    );
    let command = connection.command(argv, deadline, cancel).env("PGCLIENTENCODING", "UTF8".to_owned()).stdin();
    let mut running = connection.start(command)?;
    let mut stdin = running.stdin().ok_or_else(|| SourceError::problem("psql was started without its pipe"))?;
    // A psql that ended early says why; its pipe has nothing to add.
    let written = stdin.write_all(script);
    drop(stdin);
    let exit = running.wait()?;
    if exit.code == 0 {
        written.map_err(|e| PlaceError::from_io("write to psql", connection.place().describe(), e))?;
        return Ok(Ok(()));
    }
    Ok(Err(crate::sources::run::one_line(&exit.stderr)))
}
