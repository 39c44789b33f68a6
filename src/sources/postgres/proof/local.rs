//! A throw-away server of this host's own binaries.
//!
//! As root it runs as `nobody`, who owns nothing here, in namespaces of its own: no network, no other process in
//! sight, and `/run` and the homes empty, because a socket in there would let it in; what it shares among its processes goes
//! with them. Without root it runs as this user.
//!
//! Its folder is named in a mark file in the scratch folder before anything is started, and its process as soon as there
//! is one: [`sweep_local`] ends and removes what a killed run left.

use super::server::{Ask, Found, Kind, Server, settings, take_over};
use crate::base::atomic::{self, IfExists};
use crate::place::account::{Account, is_root};
use crate::place::{Command, HostPlace, Place, Running, mark_of, owner_is_gone, owner_mark, pid_of};
use crate::sources::SourceError;
use crate::sources::postgres::connection::{Connection, Own};
use crate::sources::postgres::stage::{Stage, folder_for, make_folder};
use crate::sources::run::{one_line, run};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The mark file in a scratch folder.
const MARK_FILE: &str = "postgres-drill.json";
/// How the folder of a server begins.
const FOLDER: &str = "lifeboat-drill-";
/// What is hidden from the server, where its own files do not lie in there.
const HIDDEN: &[&str] = &["/run", "/home", "/root", "/srv", "/var/lib/docker", "/var/lib/postgresql"];
/// Hides the folders before `--`, then becomes the rest.
const ENTER: &str = "while [ \"$1\" != -- ]; do [ -d \"$1\" ] && mount -n -t tmpfs -o size=1m,mode=755 tmpfs \"$1\"; shift; done; \
                     shift; exec \"$@\"";

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// Who started it.
    owner: String,
    folder: PathBuf,
    /// Its first process; absent until it has been started.
    server: Option<String>,
}

/// A server that is ended, with its folder, when this is dropped.
pub(in crate::sources::postgres) struct Local {
    running: Mutex<Option<Box<dyn Running>>>,
    folder: PathBuf,
    mark_file: PathBuf,
}

impl Drop for Local {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(pid) = running.as_ref().and_then(|r| r.id()) {
            end_group(pid, Signal::QUIT);
        }
        // Dropping it waits for its end, and kills what has not gone.
        drop(running);
        remove(&self.folder, &self.mark_file);
    }
}

fn remove(folder: &Path, mark_file: &Path) {
    for _ in 0..20 {
        match std::fs::remove_dir_all(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(folder = %folder.display(), error = %e, "remove the folder of a drill");
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => {
                let _ = std::fs::remove_file(mark_file);
                return;
            }
        }
    }
    tracing::warn!(folder = %folder.display(), "the folder of a drill stays behind; the next drill removes it");
}

fn end_group(pid: u32, signal: Signal) {
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

/// Ends the servers of drills that did not end by themselves, and removes their folders. `dir` is a scratch folder of
/// such a drill, or a folder in which scratch folders lie, up to three levels deep. Returns what was removed.
pub fn sweep_local(dir: &Path) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for mark_file in mark_files(dir, 3) {
        let Ok(bytes) = std::fs::read(&mark_file) else { continue };
        let Ok(mark) = serde_json::from_slice::<Mark>(&bytes) else { continue };
        let own_name = mark.folder.file_name().is_some_and(|n| n.to_string_lossy().starts_with(FOLDER));
        if !own_name || !owner_is_gone(&mark.owner) {
            continue;
        }
        let started = mark.server.as_deref().and_then(pid_of);
        let leaders: Vec<u32> = started.into_iter().chain(serving(&mark.folder)).collect();
        let lives = |pid: &&u32| mark_of(**pid).is_some() && !is_zombie(**pid);
        // Killed at once, one that is in no namespace would leave a piece of shared memory behind.
        for signal in [Signal::QUIT, Signal::KILL] {
            leaders.iter().filter(lives).for_each(|pid| end_group(*pid, signal));
            let begin = Instant::now();
            while leaders.iter().any(|pid| lives(&pid)) && begin.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        remove(&mark.folder, &mark_file);
        removed.push(mark.folder);
    }
    removed
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

fn mark_files(dir: &Path, depth: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let own = dir.join(MARK_FILE);
    if own.is_file() {
        found.push(own);
    }
    if depth > 0 {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.extend(mark_files(&entry.path(), depth - 1));
            }
        }
    }
    found
}

/// Processes that were started on the data folder below this one: a run may have been killed before it could write down
/// which process it had started. The folder's name is random, so nothing else has it as an argument.
fn serving(folder: &Path) -> Vec<u32> {
    let data = folder.join("data");
    let data = data.as_os_str().as_encoded_bytes();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let serves = |pid: &u32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|b| *b == 0).any(|argument| argument == data)
    };
    ids.filter(serves).collect()
}

/// A folder of server programs of this major version.
fn binaries(major: u32) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = [
        format!("/usr/lib/postgresql/{major}/bin"),
        format!("/usr/pgsql-{major}/bin"),
        format!("/opt/homebrew/opt/postgresql@{major}/bin"),
    ];
    let all =
        known.into_iter().map(PathBuf::from).chain(std::env::split_paths(&path)).chain(["/usr/local/pgsql/bin".into()]);
    let fits = |dir: &PathBuf| dir.join("initdb").is_file() && major_of(&dir.join("postgres")) == Some(major);
    all.filter(|dir| dir.is_absolute()).find(fits)
}

fn major_of(postgres: &Path) -> Option<u32> {
    if !postgres.is_file() {
        return None;
    }
    let command =
        Command::new([postgres.to_string_lossy().into_owned(), "--version".into()]).timeout(Duration::from_secs(20));
    let out = HostPlace::new().output(command, 4096).ok()?;
    super::major_in(&String::from_utf8_lossy(&out))
}

pub(super) fn start(ask: &Ask<'_>) -> Result<Found, SourceError> {
    let major = ask.major();
    let Some(bin) = binaries(major) else {
        return Ok(Found::None(format!(
            "this host has no server programs of PostgreSQL {major} (Debian: apt install postgresql-{major})"
        )));
    };
    let account = match is_root() {
        false => None,
        true => match ["nobody", "postgres"].iter().find_map(|name| Account::find(name)).filter(|a| a.uid != 0) {
            Some(account) => Some(account),
            None => return Ok(Found::None("this host has no account nobody to run a server as".into())),
        },
    };
    let ids = account.as_ref().map(|a| (a.uid, a.gid));
    let name = format!("{FOLDER}{}", ask.random()?);
    let scratch = ask.trial.scratch;
    let mark_file = scratch.join(MARK_FILE);
    let folder = folder_for(scratch, ids, &name);
    let mut mark = Mark { owner: owner_mark().to_owned(), folder: folder.clone(), server: None };
    let mut local = Local { running: Mutex::new(None), folder: folder.clone(), mark_file };
    // Before there is anything to remove.
    write_mark(&local.mark_file, &mark)?;
    make_folder(&folder, ids)?;
    let spec = account.as_ref().map(Account::spec);
    let place: Arc<dyn Place> = Arc::new(HostPlace::new());
    for dir in ["s", "dumps", "ts"] {
        make_folder(&folder.join(dir), ids)?;
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let data = text(&folder.join("data"));
    let command = Command::new(initdb(&text(&bin.join("initdb")), ask.bootstrap(), &data))
        .user(spec.clone())
        .dir("/")
        .env("LC_ALL", "C".to_owned())
        .timeout(ask.deadline.left())
        .cancel(ask.trial.cancel);
    let (_, exit) = run(&*place, command, 1 << 16)?;
    if exit.code != 0 {
        return Err(SourceError::problem(format!("initdb for the drill: {}", one_line(&exit.stderr))));
    }
    let socket = text(&folder.join("s"));
    let mut argv = confined(ask, account.as_ref(), &folder);
    argv.extend([text(&bin.join("postgres")), "-D".into(), data]);
    argv.extend(settings(ask, major, &socket));
    let command =
        Command::new(argv).dir("/").env("LC_ALL", "C".to_owned()).timeout(ask.deadline.left()).cancel(ask.trial.cancel);
    let running = place.start(command)?;
    mark.server = running.id().and_then(mark_of);
    let pid = running.id();
    local.running = Mutex::new(Some(running));
    write_mark(&local.mark_file, &mark)?;
    let own_role = format!("lifeboat_drill_{}", ask.random()?);
    let others = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:{others}", bin.display());
    let connection = Connection::to_own(Own {
        place,
        account: spec,
        user: ask.bootstrap(),
        socket: &socket,
        path: Some(&path),
        application_name: "lifeboat:drill",
        server: "the server of the drill".into(),
        through_exec: false,
    });
    let mut ended = || {
        let gone = pid.is_none_or(is_zombie);
        let running = if gone { local.running.get_mut().unwrap_or_else(PoisonError::into_inner).take() } else { None };
        running.map(|r| r.wait().map_or_else(|e| e.to_string(), |exit| one_line(&exit.stderr)))
    };
    let (connection, version, version_text) = take_over(ask, connection, &own_role, &mut ended)?;
    Ok(Found::Server(Box::new(Server {
        connection,
        stage: Stage::Host { dir: folder.join("dumps"), owner: ids },
        version,
        what: format!("PostgreSQL {version_text} of this host"),
        own_role,
        tablespaces: Some(text(&folder.join("ts"))),
        kind: Kind::Local { _server: local },
    })))
}

/// A cluster whose encoding and locale any other can be made in, and whose socket asks nobody: it lies in a folder of
/// the account's own.
pub(super) fn initdb(program: &str, bootstrap: &str, data: &str) -> Vec<String> {
    let mut argv: Vec<String> =
        [program, "--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"].map(str::to_owned).into();
    argv.extend([format!("--username={bootstrap}"), format!("--pgdata={data}")]);
    argv
}

fn write_mark(file: &Path, mark: &Mark) -> Result<(), SourceError> {
    let failed = |source| SourceError::File { action: "write", path: file.to_owned(), source };
    let bytes = serde_json::to_vec(mark).map_err(|e| failed(e.into()))?;
    atomic::write(file, &bytes, 0o600, IfExists::Replace).map_err(failed)
}

/// What a server's command is put into: namespaces, account and limits, as far as this process may.
fn confined(ask: &Ask<'_>, account: Option<&Account>, folder: &Path) -> Vec<String> {
    let mut argv: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| argv.extend(words.iter().map(|w| (*w).to_owned()));
    let here = |tool: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(tool).is_file())
    };
    if let Some(account) = account {
        let namespaces =
            ["unshare", "--net", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--"];
        let mut probe: Vec<&str> = namespaces.to_vec();
        probe.push("true");
        let probe = Command::new(probe).timeout(Duration::from_secs(20));
        match HostPlace::new().output(probe, 4096) {
            Ok(_) => {
                add(&namespaces);
                add(&["sh", "-c", ENTER, "lifeboat-drill"]);
                add(&HIDDEN.iter().copied().filter(|dir| !folder.starts_with(dir)).collect::<Vec<_>>());
                add(&["--"]);
            }
            Err(error) => tracing::warn!(%error, "the server of the drill shares this host's network and processes"),
        }
        let (uid, gid) = (account.uid.to_string(), account.gid.to_string());
        add(&["setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups", "--no-new-privs", "--inh-caps=-all"]);
        add(&["--bounding-set=-all", "--"]);
    }
    if here("prlimit") {
        // Of each process: its share of the buffers, its own work, and the libraries.
        let limit = (ask.trial.drill.memory.max(256 << 20) + (512 << 20)).to_string();
        add(&["prlimit", &format!("--as={limit}"), "--core=0", "--"]);
    }
    argv
}
