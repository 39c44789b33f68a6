//! Commands on this host.
//!
//! Every command leads a process group of its own, so that ending it ends its children too (a child that makes a
//! session of its own escapes; nothing that Lifeboat runs does). It inherits a short list of variables and no file
//! descriptor that this process opened: those are all close-on-exec.
//!
//! Another account: `setpriv --init-groups` sets the account's supplementary groups as well; the standard library can
//! set uid and gid, but drops the groups, so it serves only accounts that have none (or where there is no `setpriv`).

use super::account::{self, Account};
use super::watch::{GRACE, TICK, Tail, Watch, lock};
use super::{Command, Exit, Place, PlaceError, Running};
use crate::base::threads::{self, NoThread};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a command inherits from Lifeboat's own environment, besides `LC_*`.
const INHERITED: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
];
/// What belongs to the account, not to the machine.
const PERSONAL: &[&str] = &["HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// This host as a place to run commands in.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostPlace;

impl HostPlace {
    pub fn new() -> Self {
        Self
    }
}

impl Place for HostPlace {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        let watch = Arc::new(Watch::new(&command, self.describe()));
        watch.check()?;
        let mut process = prepare(&command, &watch)?;
        let mut child = process.spawn().map_err(|e| start_error(&watch, command.dir.as_deref(), e))?;
        let stdin = child.stdin.take().map(|pipe| HostStdin::new(pipe, watch.clone()));
        let stdout = child.stdout.take().map(|pipe| HostStdout::new(pipe, watch.clone()));
        let stderr = child.stderr.take().map(|pipe| StderrDrain::start(pipe, watch.clone()));
        let mut running =
            HostRunning { child, watch: watch.clone(), stdin: None, stdout: None, stderr: None, done: false };
        // From here on, leaving early drops `running`, which ends the command.
        running.stdin = stdin.transpose().map_err(|e| watch.io("open pipe to", e))?;
        running.stdout = stdout.transpose().map_err(|e| watch.io("open pipe from", e))?;
        running.stderr = stderr.transpose()?;
        Ok(Box::new(running))
    }
}

fn prepare(command: &Command, watch: &Watch) -> Result<std::process::Command, PlaceError> {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err(watch.io("start", io::Error::new(io::ErrorKind::InvalidInput, "no program named")));
    };
    let account = match &command.user {
        Some(user) if account::is_root() => {
            let found = Account::find(user).ok_or_else(|| PlaceError::Io {
                what: format!("find account {user:?}"),
                place: watch.place.clone(),
                source: io::Error::new(io::ErrorKind::NotFound, "no such account"),
            })?;
            Some(found).filter(|a| a.uid != 0)
        }
        _ => None,
    };
    let mut environment = environment(account.as_ref());
    if let Some((_, path)) = command.env.iter().find(|(name, _)| name == "PATH") {
        environment.retain(|(name, _)| name != "PATH");
        environment.push(("PATH".into(), path.expose().into()));
    }
    if let Some(names) = command.inherits {
        environment.retain(|(name, _)| name.to_str().is_some_and(|name| names.contains(&name)));
    }
    let setpriv = account.as_ref().filter(|a| !a.groups.is_empty()).and_then(|a| {
        let path = environment.iter().find(|(name, _)| name == "PATH")?;
        Some((find_program("setpriv", &path.1)?, a.name.clone()?, a.gid))
    });
    let mut process = match setpriv {
        Some((setpriv, name, gid)) => {
            let mut process = std::process::Command::new(setpriv);
            process.arg(format!("--reuid={name}")).arg(format!("--regid={gid}")).arg("--init-groups").arg("--");
            process.arg(program);
            process
        }
        None => {
            let path = environment.iter().find(|(name, _)| name == "PATH").filter(|_| account.is_none());
            let mut process = match path.map_or(OnPath::Unclear, |(_, path)| on_path(program, path)) {
                OnPath::File(file) => {
                    let mut process = std::process::Command::new(file);
                    process.arg0(program);
                    process
                }
                OnPath::Nowhere => {
                    return Err(start_error(watch, command.dir.as_deref(), io::ErrorKind::NotFound.into()));
                }
                OnPath::Unclear => std::process::Command::new(program),
            };
            if let Some(account) = &account {
                process.uid(account.uid).gid(account.gid);
            }
            process
        }
    };
    process.args(arguments).env_clear().envs(environment);
    process.envs(command.env.iter().map(|(name, value)| (name, value.expose())));
    if let Some(dir) = &command.dir {
        process.current_dir(dir);
    }
    process.process_group(0);
    process.stdin(if command.stdin { Stdio::piped() } else { Stdio::null() });
    process.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(process)
}

/// The small environment that every command gets, as `account` when one is given.
fn environment(account: Option<&Account>) -> Vec<(OsString, OsString)> {
    let mut list: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| {
            let Some(name) = name.to_str() else { return false };
            let inherited = INHERITED.contains(&name) || name.starts_with("LC_");
            inherited && !(account.is_some() && PERSONAL.contains(&name))
        })
        .collect();
    if !list.iter().any(|(name, _)| name == "PATH") {
        list.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    if let Some(account) = account {
        // Without a home of its own a program would look into somebody else's.
        list.push(("HOME".into(), account.home.clone().unwrap_or_else(|| "/".into()).into()));
        let name = account.name.clone().unwrap_or_else(|| account.uid.to_string());
        list.push(("USER".into(), name.clone().into()));
        list.push(("LOGNAME".into(), name.into()));
    }
    list
}

fn find_program(name: &str, path: &OsString) -> Option<PathBuf> {
    std::env::split_paths(path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Where a program lies.
enum OnPath {
    File(PathBuf),
    Nowhere,
    Unclear,
}

/// Looks for a program. Started by its file it needs no copy of this process, whose memory would then have to be copied
/// wherever it is written to; a name that the child looks up does.
fn on_path(program: &str, path: &OsString) -> OnPath {
    if program.is_empty() || program.contains('/') || std::env::split_paths(path).any(|dir| !dir.is_absolute()) {
        return OnPath::Unclear;
    }
    let Some(file) = find_program(program, path) else { return OnPath::Nowhere };
    // A script that does not say what runs it is left to the child, which tries the shell.
    let mut first = [0; 4];
    let n = std::fs::File::open(&file).and_then(|mut file| file.read(&mut first)).unwrap_or(0);
    let is_plain = first[..n] == *b"\x7fELF" || first[..n].starts_with(b"#!");
    let is_plain = is_plain && rustix::fs::access(&file, rustix::fs::Access::EXEC_OK).is_ok();
    if is_plain { OnPath::File(file) } else { OnPath::Unclear }
}

/// ENOENT says "no such program" and "no such folder" alike; a look at the folder tells which.
fn start_error(watch: &Watch, dir: Option<&Path>, error: io::Error) -> PlaceError {
    let missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
    match dir {
        Some(dir) if !dir.is_dir() => PlaceError::Io {
            what: format!("enter folder {} for {}", dir.display(), watch.tool),
            place: watch.place.clone(),
            source: error,
        },
        _ if missing => watch.tool_missing(),
        _ => watch.io("start", error),
    }
}

struct HostRunning {
    child: Child,
    watch: Arc<Watch>,
    stdin: Option<HostStdin>,
    stdout: Option<HostStdout>,
    stderr: Option<StderrDrain>,
    /// Its status has been read: the process id is no longer ours.
    done: bool,
}

impl HostRunning {
    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Whether the leader of the group has ended; it stays a zombie, so that the group's id stays ours.
    fn has_ended(&self) -> io::Result<bool> {
        let Some(pid) = self.pid() else { return Ok(true) };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(pid), options) {
            Ok(status) => Ok(status.is_some()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Sleeps until the leader has ended or `stop` says so; returns whether it has ended.
    fn until_ended(&self, mut stop: impl FnMut() -> bool) -> io::Result<bool> {
        let mut nap = Duration::from_millis(1);
        loop {
            if self.has_ended()? {
                return Ok(true);
            }
            if stop() {
                return Ok(false);
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(TICK / 2);
        }
    }

    /// Ends the whole group: SIGTERM, time to go, SIGKILL; then reaps the leader.
    fn end(&mut self) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.watch.end();
        self.stdin = None;
        if let Some(group) = self.pid() {
            let _ = rustix::process::kill_process_group(group, Signal::TERM);
            let deadline = Instant::now() + GRACE;
            let _ = self.until_ended(|| Instant::now() >= deadline);
            // Also when the leader went by itself: the group may hold children that did not.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        if let Some(stderr) = self.stderr.take() {
            stderr.finish(Duration::ZERO);
        }
    }

    fn wait_inner(&mut self) -> Result<Exit, PlaceError> {
        self.stdin = None;
        if let Some(mut stdout) = self.stdout.take() {
            // Nobody wants the output, but closing the pipe would end the command with SIGPIPE.
            io::copy(&mut stdout, &mut io::sink()).map_err(|e| self.watch.read_error(e))?;
        }
        self.watch.touch();
        let watch = self.watch.clone();
        let mut broken = None;
        self.until_ended(|| {
            broken = watch.check().err();
            broken.is_some()
        })
        .map_err(|e| watch.io("wait for", e))?;
        if let Some(error) = broken {
            return Err(error);
        }
        let status = self.child.wait().map_err(|e| watch.io("wait for", e))?;
        self.done = true;
        let stderr = self.stderr.take().map(|drain| drain.finish(Duration::from_secs(1))).unwrap_or_default();
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => return Err(watch.io("wait for", io::Error::other("its exit status cannot be read"))),
        };
        if watch.says_tool_missing(code) {
            return Err(watch.tool_missing());
        }
        Ok(Exit { code, stderr })
    }
}

impl Running for HostRunning {
    fn stdin(&mut self) -> Option<Box<dyn Write + Send>> {
        self.stdin.take().map(|pipe| Box::new(pipe) as _)
    }

    fn stdout(&mut self) -> Option<Box<dyn Read + Send>> {
        self.stdout.take().map(|pipe| Box::new(pipe) as _)
    }

    fn wait(mut self: Box<Self>) -> Result<Exit, PlaceError> {
        self.wait_inner()
    }

    fn id(&self) -> Option<u32> {
        Some(self.child.id())
    }
}

impl Drop for HostRunning {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until `pipe` is ready, for one tick at most.
fn ready(pipe: &impl AsFd, flags: PollFlags) -> io::Result<bool> {
    let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
    match rustix::event::poll(&mut [PollFd::new(pipe, flags)], Some(&tick)) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Our end of a pipe only: the child's end is another open file and stays blocking.
fn nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(pipe)?;
    Ok(rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?)
}

fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

struct HostStdout {
    pipe: ChildStdout,
    watch: Arc<Watch>,
}

/// Bytes that wait between a command and whoever reads its output: what the kernel allows everybody.
const PIPE: usize = 1 << 20;

impl HostStdout {
    fn new(pipe: ChildStdout, watch: Arc<Watch>) -> io::Result<Self> {
        nonblocking(&pipe)?;
        // A dump is written and read in turns: the more fits, the fewer there are. Where this is not allowed, it is slower.
        let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE);
        Ok(Self { pipe, watch })
    }
}

impl Read for HostStdout {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.watch.touch();
        loop {
            self.watch.check_io()?;
            if !ready(&self.pipe, PollFlags::IN)? {
                continue;
            }
            match self.pipe.read(buffer) {
                Err(e) if is_again(&e) => {}
                other => {
                    // A command that was ended has an end of output too, and it is not the real one.
                    self.watch.touch();
                    self.watch.check_io()?;
                    return other;
                }
            }
        }
    }
}

struct HostStdin {
    pipe: ChildStdin,
    watch: Arc<Watch>,
}

impl HostStdin {
    fn new(pipe: ChildStdin, watch: Arc<Watch>) -> io::Result<Self> {
        nonblocking(&pipe)?;
        Ok(Self { pipe, watch })
    }
}

impl Write for HostStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.watch.check_io()?;
            if !ready(&self.pipe, PollFlags::OUT)? {
                continue;
            }
            match self.pipe.write(bytes) {
                Err(e) if is_again(&e) => {}
                Ok(n) => {
                    self.watch.touch();
                    return Ok(n);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads standard error to its end on a thread, keeping its tail, so that the command never waits for a reader.
struct StderrDrain {
    tail: Arc<Mutex<Tail>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl StderrDrain {
    fn start(mut pipe: ChildStderr, watch: Arc<Watch>) -> Result<Self, NoThread> {
        let tail = Arc::new(Mutex::new(Tail::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (tail.clone(), stop.clone());
        let thread = threads::begin(move || {
            let mut buffer = [0u8; 4096];
            while !stopped.load(Ordering::SeqCst) {
                match ready(&pipe, PollFlags::IN) {
                    Ok(true) => match pipe.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(n) => {
                            watch.touch();
                            lock(&kept).push(&buffer[..n]);
                        }
                        Err(e) if is_again(&e) => {}
                        Err(_) => break,
                    },
                    Ok(false) => {}
                    Err(_) => break,
                }
            }
        })?;
        Ok(Self { tail, stop, thread })
    }

    /// What was kept. A grandchild may hold the pipe open for ever, so the end is awaited for `patience` only.
    fn finish(self, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.stop.store(true, Ordering::SeqCst);
        // It looks at the flag every tick; a panic there has lost nothing but the tail.
        let _ = self.thread.join();
        lock(&self.tail).text()
    }
}
