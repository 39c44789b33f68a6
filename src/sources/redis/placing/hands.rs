//! Moving files beside the live ones, as the server's own user: on this host, or in a helper container that mounts what
//! the server's container mounts, at the same place.
//!
//! What is known of the progress lies in the transaction's folder, not in memory:
//! - `ready`: all of `new` is there
//! - `moved`: all that was live is in `old`; what is live now was placed by us, or made by a server since
//! - `cleared`: on the way back, nothing that was placed is live any more
//!
//! Order (must): forward `old`, then `moved`, then the new names; back: away with what is live, `cleared`, then the old
//! names, then `moved` and `cleared` go. So a script that is run again after a kill at any point ends the same.

use super::Step;
use super::state::{Runs, State};
use crate::place::helper::{Helper, HelperMount, HelperSpec};
use crate::place::{Command, ContainerPlace, HostPlace, Place, PlaceError};
use crate::sources::SourceError;
use crate::sources::run::{Deadline, one_line, run};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Beyond the step's own limit.
const GRACE: Duration = Duration::from_secs(600);

/// Every script gets the data folder as `$1` and the transaction's folder as `$2`, then the live names.
const HEAD: &str = "set -eu\numask 077\nd=$1 s=$2\nshift 2\n\
    there() { [ -e \"$1\" ] || [ -L \"$1\" ]; }\n\
    stray() { mkdir -p \"$s/stray\"; k=0; while there \"$s/stray/$k.$1\"; do k=$((k+1)); done; mv \"$d/$1\" \"$s/stray/$k.$1\"; }\n\
    settle() { sync \"$@\" 2>/dev/null || sync; }\n";

const BEGIN: &str = "rm -rf \"$s/new\" \"$s/ready\"\nmkdir -p \"$s/new\"\n";

/// Nothing is placed where the store becomes empty: what is live goes to `old`, and that is all.
const NOTHING: &str = "rm -rf \"$s/new\" \"$s/ready\"\nmkdir -p \"$s/new\"\n: >\"$s/ready\"\nsettle \"$s\"\n";

/// `$1`: a path in `new`; its bytes come on standard input.
const PUT: &str = "cat >\"$s/new/$1\"\nsettle \"$s/new/$1\"\nwc -c <\"$s/new/$1\"\n";

/// `$1`: the file; `$2`: its mode; `$3`: a folder and `$4` its mode, `$5` a name: the same file there. Or `$6`: a second
/// copy, which is appended to and so cannot be the same file.
const FINISH: &str = "chmod \"$2\" \"$s/new/$1\"\n\
    if [ -n \"$3\" ]; then\n\
      ln \"$s/new/$1\" \"$s/new/$3/$5\" 2>/dev/null || cp -p \"$s/new/$1\" \"$s/new/$3/$5\"\n\
      for f in \"$s/new/$3\"/*; do chmod \"$2\" \"$f\"; done\n\
      chmod \"$4\" \"$s/new/$3\"\n\
    fi\n\
    [ -z \"$6\" ] || cp -p \"$s/new/$1\" \"$s/new/$6\"\n\
    for f in \"$s/new\"/* \"$s/new\"/*/* \"$s/new\"; do if there \"$f\"; then settle \"$f\"; fi; done\n\
    : >\"$s/ready\"\nsettle \"$s\"\n";

const SWITCH: &str = "rm -f \"$s/cleared\"\nmkdir -p \"$s/old\"\n\
    if [ ! -e \"$s/moved\" ]; then\n\
      [ -e \"$s/ready\" ] || { echo 'nothing is prepared' >&2; exit 9; }\n\
      for n; do if there \"$d/$n\" && ! there \"$s/old/$n\"; then mv \"$d/$n\" \"$s/old/$n\"; fi; done\n\
      settle \"$s/old\" \"$d\"\n: >\"$s/moved\"\nsettle \"$s\"\n\
    fi\n\
    for n; do if there \"$s/new/$n\"; then\n\
      if there \"$d/$n\"; then stray \"$n\"; fi\nmv \"$s/new/$n\" \"$d/$n\"\n\
    fi; done\nsettle \"$d\" \"$s/new\"\n";

const BACK: &str = "mkdir -p \"$s/old\" \"$s/new\"\n\
    if [ ! -e \"$s/cleared\" ]; then\n\
      for n; do\n\
        if there \"$d/$n\" && { [ -e \"$s/moved\" ] || there \"$s/old/$n\"; }; then\n\
          if [ -e \"$s/moved\" ] && ! there \"$s/new/$n\"; then mv \"$d/$n\" \"$s/new/$n\"\n\
          else stray \"$n\"; fi\n\
        fi\n\
      done\n\
      settle \"$s/new\" \"$d\"\n: >\"$s/cleared\"\nsettle \"$s\"\n\
    fi\n\
    for n; do if there \"$s/old/$n\"; then mv \"$s/old/$n\" \"$d/$n\"; fi; done\n\
    settle \"$d\" \"$s/old\"\nrm -f \"$s/moved\"\nsettle \"$s\"\n\
    rm -f \"$s/cleared\"\nsettle \"$s\"\n";

const LOOK: &str = "[ ! -e \"$s/moved\" ] || echo moved\nfor n; do if there \"$s/old/$n\"; then echo old; fi; done\n\
    [ ! -e \"$s/cleared\" ] || echo cleared\n";

/// Never what was live: where `old` is not empty, it stays.
const DISCARD_NEW: &str = "[ -d \"$s\" ] || exit 0\n[ ! -e \"$s/moved\" ] || { echo 'it is in use' >&2; exit 9; }\n\
    for n; do if there \"$s/old/$n\"; then echo 'what was live lies there' >&2; exit 9; fi; done\nrm -rf \"$s\"\nsettle \"$d\"\n";

const DISCARD_OLD: &str = "rm -rf \"$s\"\nsettle \"$d\"\n";

pub(super) struct Hands {
    place: Arc<dyn Place>,
    user: Option<String>,
    deadline: Deadline,
    cancel: crate::base::cancel::Cancel,
    /// Goes after the place.
    _helper: Option<Helper>,
}

impl Hands {
    pub fn open(step: &Step<'_>, state: &State) -> Result<Self, SourceError> {
        let (deadline, cancel) = (step.deadline, step.linked.cancel.clone());
        let user = format!("{}:{}", state.uid, state.gid);
        let Runs::Container { image, volume, path, destination, .. } = &state.runs else {
            let place = Arc::new(HostPlace::new());
            return Ok(Self { place, user: Some(user), deadline, cancel, _helper: None });
        };
        let docker = step.scene.places.docker()?;
        docker.sweep(step.scene.now)?;
        let helper = docker.helper(&HelperSpec {
            role: "place".into(),
            image: image.clone(),
            command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"].map(str::to_owned).to_vec(),
            env: Vec::new(),
            user: Some(user),
            mounts: vec![HelperMount {
                source: State::tree(volume, path),
                target: destination.clone(),
                read_only: false,
            }],
            tmpfs: Vec::new(),
            memory_bytes: None,
            lifetime: deadline.left().saturating_add(GRACE).min(Duration::from_secs(2 * 86_400)),
        })?;
        helper.start()?;
        let place = Arc::new(ContainerPlace::named(&docker, helper.id()));
        Ok(Self { place, user: None, deadline, cancel, _helper: Some(helper) })
    }

    fn command(&self, state: &State, script: &str, more: &[&str]) -> Command {
        let script = format!("{HEAD}{script}");
        let staging = state.staging();
        let argv = ["/bin/sh", "-c", &script, "lifeboat", &state.dir, &staging];
        Command::new(argv.iter().chain(more).copied())
            .user(self.user.clone())
            .dir("/")
            .timeout(self.deadline.left())
            .cancel(&self.cancel)
    }

    fn run(&self, state: &State, script: &str, more: &[&str]) -> Result<String, SourceError> {
        let (out, exit) = run(&*self.place, self.command(state, script, more), MAX_ANSWER_BYTES)?;
        match exit.code {
            0 => Ok(String::from_utf8_lossy(&out).into_owned()),
            _ => Err(self.failed(state, &exit.stderr)),
        }
    }

    fn failed(&self, state: &State, said: &str) -> SourceError {
        let said = one_line(said);
        SourceError::problem(format!("files of {} could not be moved in {}: {said}", state.dir, self.place.describe()))
    }

    /// Writes a file below `new`.
    fn put(&self, state: &State, name: &str, length: u64, mut from: impl Read) -> Result<(), SourceError> {
        let mut running = self.place.start(self.command(state, PUT, &[name]).stdin())?;
        let mut stdin = running.stdin();
        let copied = match &mut stdin {
            Some(stdin) => copy(&mut from, stdin, &self.cancel),
            None => Ok(0),
        };
        drop(stdin);
        let io = |e| PlaceError::from_io(format!("write {name}"), self.place.describe(), e);
        let copied = copied.map_err(|e| match e {
            Side::Read(e) => PlaceError::from_io("read the stored file", "the repository", e),
            Side::Write(e) => io(e),
        });
        let mut out = Vec::new();
        if copied.is_ok()
            && let Some(stdout) = running.stdout()
        {
            stdout.take(4096).read_to_end(&mut out).map_err(io)?;
        }
        // An error of reading is dropped with the command; one of writing is explained by the command's own words.
        if let Err(error) = copied {
            return Err(error.into());
        }
        let exit = running.wait()?;
        let written: Option<u64> = String::from_utf8_lossy(&out).trim().parse().ok();
        match exit.code {
            0 if written == Some(length) => Ok(()),
            0 => Err(self.failed(state, &format!("{name} has {written:?} bytes and should have {length}"))),
            _ => Err(self.failed(state, &exit.stderr)),
        }
    }

    /// Makes all new files, from the beginning each time.
    pub fn prepare(&self, state: &State, stream: impl Read) -> Result<(), SourceError> {
        self.run(state, BEGIN, &[])?;
        self.put(state, &state.dbfilename, state.length, stream)?;
        let (mut folder, mut second) = ("", "");
        let base = state.base();
        match (&state.appenddirname, state.appendonly) {
            (Some(name), true) => {
                folder = name;
                self.run(state, "mkdir \"$s/new/$1\"\n", &[folder])?;
                let text = state.manifest_text();
                let path = format!("{folder}/{}", state.manifest());
                self.put(state, &path, text.len() as u64, text.as_bytes())?;
            }
            (None, true) => second = &state.appendfilename,
            (_, false) => {}
        }
        let words = [&state.dbfilename, &state.file_mode, folder, &state.folder_mode, &base, second];
        self.run(state, FINISH, &words).map(drop)
    }

    /// Makes sure that nothing will be placed.
    pub fn prepare_nothing(&self, state: &State) -> Result<(), SourceError> {
        self.run(state, NOTHING, &[]).map(drop)
    }

    pub fn switch(&self, state: &State) -> Result<(), SourceError> {
        self.run(state, SWITCH, &state.names()).map(drop)
    }

    pub fn back(&self, state: &State) -> Result<(), SourceError> {
        self.run(state, BACK, &state.names()).map(drop)
    }

    /// Whether all that was live has been moved away.
    pub fn is_switched(&self, state: &State) -> Result<bool, SourceError> {
        Ok(self.run(state, LOOK, &state.names())?.lines().any(|l| l == "moved"))
    }

    /// Whether anything that was live has been moved.
    pub fn has_begun(&self, state: &State) -> Result<bool, SourceError> {
        Ok(!self.run(state, LOOK, &state.names())?.trim().is_empty())
    }

    pub fn discard_new(&self, state: &State) -> Result<(), SourceError> {
        self.run(state, DISCARD_NEW, &state.names()).map(drop)
    }

    pub fn discard_old(&self, state: &State) -> Result<(), SourceError> {
        self.run(state, DISCARD_OLD, &[]).map(drop)
    }

    /// Room on the file system of the data folder.
    pub fn free_bytes(&self, state: &State) -> Result<Option<u64>, SourceError> {
        let out = self.run(state, "df -Pk \"$d\" 2>/dev/null || true\n[ -w \"$d\" ] || { echo 'the folder cannot be written' >&2; exit 9; }\n", &[])?;
        let kib = out.lines().nth(1).and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
        Ok(kib.map(|kib| kib << 10))
    }

    /// The modes of what is there: of the RDB or the AOF, and of the AOF's folder.
    pub fn modes(&self, state: &State) -> Result<(Option<String>, Option<String>), SourceError> {
        let script = "for n; do if [ -f \"$d/$n\" ]; then echo \"f $(stat -c %a \"$d/$n\")\"; fi\n\
            if [ -d \"$d/$n\" ]; then echo \"d $(stat -c %a \"$d/$n\")\"; fi; done\n";
        let out = self.run(state, script, &state.names())?;
        let of = |kind: &str| {
            let found = out.lines().find_map(|l| l.strip_prefix(kind)).map(str::trim);
            found.filter(|m| m.len() <= 4 && m.bytes().all(|b| b.is_ascii_digit())).map(str::to_owned)
        };
        Ok((of("f "), of("d ")))
    }
}

enum Side {
    Read(io::Error),
    Write(io::Error),
}

fn copy(from: &mut impl Read, to: &mut impl io::Write, cancel: &crate::base::cancel::Cancel) -> Result<u64, Side> {
    let mut buffer = vec![0u8; 256 << 10];
    let mut copied = 0;
    loop {
        cancel.check_io().map_err(Side::Read)?;
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                to.write_all(&buffer[..n]).map_err(Side::Write)?;
                copied += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Side::Read(e)),
        }
    }
    to.flush().map_err(Side::Write)?;
    Ok(copied)
}
