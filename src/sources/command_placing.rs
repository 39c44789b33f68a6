//! The output of a command, given back to the command that restores it.

use super::command::redact;
use super::locate::Locate;
use super::placing::{Intent, Part, Placing, Room, Scene, Stored};
use super::run::one_line;
use super::{SourceError, is_there};
use crate::base::atomic::{self, IfExists};
use crate::base::cancel::Cancel;
use crate::base::threads;
use crate::place::{Command, PlaceError};
use crate::policy::model::{CommandSpec, Target};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A source of kind `command`, put back.
///
/// What was in its place is gone when it has run: what undoes it is its own output of a moment before, which `prepare`
/// takes and keeps in the transaction's folder (0600) until the end. That is as good as the two commands are: what the
/// first does not write, or the second does not remove, does not come back.
pub struct CommandPlacing {
    spec: CommandSpec,
    timeout: Duration,
    locate: Locate,
    dir: PathBuf,
}

impl CommandPlacing {
    pub fn new(spec: CommandSpec, timeout: Duration, locate: Locate, dir: impl Into<PathBuf>) -> Self {
        Self { spec, timeout, locate, dir: dir.into() }
    }

    fn file(scene: &Scene<'_>, which: &str) -> PathBuf {
        scene.folder.join(format!("{}.{which}", scene.name))
    }

    fn command(&self, argv: &[String], cancel: &Cancel) -> Command {
        let mut command = Command::new(argv.iter().cloned()).timeout(self.timeout).cancel(cancel);
        if self.spec.target == Target::Host {
            command.dir = Some(self.dir.clone());
        }
        command
    }

    /// Runs a command to its end; what it says is an error's text, never its output.
    fn pass(
        &self,
        argv: &[String],
        input: Option<&Path>,
        output: Option<&Path>,
        cancel: &Cancel,
    ) -> Result<(), SourceError> {
        let program = argv.first().cloned().unwrap_or_default();
        let located = (self.locate)(&self.spec.target)?;
        let place = located.place.describe();
        let mut command = self.command(argv, cancel);
        command.stdin = input.is_some();
        let mut running = located.place.start(command)?;
        let file = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SourceError::File { action, path, source }
        };
        let (stdin, stdout) = (running.stdin(), running.stdout());
        let (fed, kept) = std::thread::scope(|scope| {
            let feeding = threads::begin_scoped(scope, move || -> Result<(), SourceError> {
                let (Some(path), Some(mut stdin)) = (input, stdin) else { return Ok(()) };
                let mut stream = File::open(path).map_err(file("open", path))?;
                // A command that has seen enough may close its input; its status tells whether that was well.
                let _ = io::copy(&mut stream, &mut stdin);
                Ok(())
            })?;
            let kept = (|| -> Result<u64, SourceError> {
                let Some(mut stdout) = stdout else { return Ok(0) };
                let Some(path) = output else {
                    let read = io::copy(&mut stdout, &mut io::sink());
                    return read
                        .map_err(|e| PlaceError::from_io(format!("read output of {program}"), &*place, e).into());
                };
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                let mut out = options.open(path).map_err(file("create", path))?;
                let mut buffer = vec![0; 64 << 10];
                let mut bytes = 0;
                loop {
                    let read = stdout.read(&mut buffer);
                    match read.map_err(|e| PlaceError::from_io(format!("read output of {program}"), &*place, e))? {
                        0 => break,
                        n => out.write_all(&buffer[..n]).map_err(file("write", path))?,
                    }
                    bytes += 1;
                }
                out.sync_all().map_err(file("make durable", path))?;
                Ok(bytes)
            })();
            let fed = feeding.join().unwrap_or_else(|_| Err(SourceError::problem("the input could not be passed on")));
            Ok::<_, SourceError>((fed, kept))
        })?;
        let exit = running.wait()?;
        fed?;
        let kept = kept?;
        if exit.code != 0 {
            let said = redact(&one_line(&exit.stderr), &located);
            return Err(SourceError::problem(format!("{program} in {place} ended with status {}: {said}", exit.code)));
        }
        if output.is_some() && kept == 0 {
            return Err(SourceError::problem(format!(
                "{program} in {place} wrote nothing: today's state cannot be kept"
            )));
        }
        Ok(())
    }

    fn restore(&self) -> Result<&[String], SourceError> {
        self.spec.restore.as_deref().ok_or_else(|| {
            SourceError::hint(
                "the source has no command that restores it",
                "restore = [\"program\", …] in its [[source]]: it gets the captured output on standard input",
            )
        })
    }
}

impl Placing for CommandPlacing {
    fn plan(&self, scene: &Scene<'_>, stored: &Stored<'_>, part: &Part) -> Result<Intent, SourceError> {
        let program = self.restore()?.first().cloned().unwrap_or_default();
        if !part.paths.is_empty() || !part.tables.is_empty() || part.database_as.is_some() {
            return Err(SourceError::problem("the output of a command is put back as a whole"));
        }
        let place = (self.locate)(&self.spec.target)?.place.describe();
        let streams = stored.streams.list();
        let [stream] = streams.as_slice() else {
            return Err(SourceError::problem("the snapshot does not have the one stream of this source"));
        };
        let room = rustix::fs::statvfs(scene.folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")));
        Ok(Intent {
            source: scene.name.clone(),
            kind: "command".into(),
            lines: vec![format!("{program} in {place} gets the captured output ({} bytes)", stream.length)],
            warnings: vec![format!(
                "undoing it means giving {program} the output of {} of a moment before: what that does not hold does not come back",
                self.spec.run.first().map_or("", String::as_str)
            )],
            room: vec![Room {
                place: scene.folder.display().to_string(),
                device: Room::device_of(scene.folder),
                bytes_needed: 2 * stream.length,
                bytes_free: room.ok().and_then(|r| Room::free_of(&r)),
            }],
            losses: Vec::new(),
            restarts: Vec::new(),
            state: serde_json::json!({ "stream": stream.name }),
        })
    }

    fn prepare(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        let name = intent.state["stream"].as_str().unwrap_or_default();
        stored.streams.info(name)?;
        let path = Self::file(scene, "new");
        let failed = |action| {
            let path = path.clone();
            move |source| SourceError::File { action, path, source }
        };
        let mut stream = stored.streams.open(name).map_err(failed("read what goes to"))?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut out = options.open(&path).map_err(failed("create"))?;
        io::copy(&mut stream, &mut out).and_then(|_| out.sync_all()).map_err(failed("write"))?;
        Ok(())
    }

    /// The services have stopped: what undoes it is taken now.
    fn settle(&self, scene: &Scene<'_>, _: &Stored<'_>, _: &Intent) -> Result<(), SourceError> {
        let (old, partial) = (Self::file(scene, "old"), Self::file(scene, "old.partial"));
        self.pass(&self.spec.run, None, Some(&partial), scene.cancel)?;
        std::fs::rename(&partial, &old).map_err(|source| SourceError::File { action: "keep", path: old, source })
    }

    fn switch(&self, scene: &Scene<'_>, _: &Intent) -> Result<(), SourceError> {
        let begun = Self::file(scene, "begun");
        atomic::write(&begun, b"", 0o600, IfExists::Replace).map_err(|source| SourceError::File {
            action: "write",
            path: begun,
            source,
        })?;
        self.pass(self.restore()?, Some(&Self::file(scene, "new")), None, scene.cancel)
    }

    fn confirm(&self, scene: &Scene<'_>, _: &Intent) -> Result<(), SourceError> {
        let Some(check) = &self.spec.check else { return Ok(()) };
        self.pass(check, Some(&Self::file(scene, "new")), None, scene.cancel)
    }

    fn back(&self, scene: &Scene<'_>, _: &Intent) -> Result<(), SourceError> {
        let (begun, old) = (Self::file(scene, "begun"), Self::file(scene, "old"));
        if !is_there(&begun)? {
            return Ok(());
        }
        self.pass(self.restore()?, Some(&old), None, scene.cancel)?;
        std::fs::remove_file(&begun).map_err(|source| SourceError::File { action: "remove", path: begun, source })
    }

    fn discard_new(&self, scene: &Scene<'_>, _: &Intent) -> Result<(), SourceError> {
        for which in ["new", "old", "old.partial"] {
            let path = Self::file(scene, which);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(SourceError::File { action: "remove", path, source: e });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn discard_old(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.discard_new(scene, intent)?;
        match std::fs::remove_file(Self::file(scene, "begun")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(SourceError::File { action: "remove", path: Self::file(scene, "begun"), source: e })
            }
            _ => Ok(()),
        }
    }
}
