//! A throw-away server of this host's own programs.
//!
//! When this process is root the server runs as `nobody`, never as the account of the live server, which could then be
//! reached by signals and through /proc. It gets a network namespace of its own where one can be had, and it dies with
//! this process whatever ends that (`setpriv --pdeathsig`), so a killed drill leaves no server.

use super::file_error;
use super::server::{DUMP, Order, Program, SOCKET, Served};
use crate::base::threads;
use crate::place::account::{self, Account};
use crate::place::{Command, HostPlace, Place, PlaceError, Running};
use crate::sources::SourceError;
use crate::sources::redis::facts::Facts;
use crate::sources::run::run;
use rustix::fs::OFlags;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// What is kept of a server's log.
const LOG_BYTES: usize = 64 << 10;
const NOBODY: u32 = 65_534;

/// A server of this host, and its client.
pub(super) fn find(place: &HostPlace, order: &Order, _: &Facts) -> Result<Option<Program>, SourceError> {
    for (server, cli) in order.names() {
        let version = match ask_version(place, server, order) {
            Ok(version) => version,
            Err(PlaceError::ToolMissing { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        for cli in [cli, "redis-cli", "valkey-cli"] {
            match ask_version(place, cli, order) {
                Ok(_) => return Ok(Some(Program::Host { server, cli, version })),
                Err(PlaceError::ToolMissing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(None)
}

/// `7.0.15` of `Redis server v=7.0.15 sha=…`.
fn ask_version(place: &HostPlace, program: &str, order: &Order) -> Result<String, PlaceError> {
    let command = Command::new([program, "--version"]).timeout(order.deadline.left()).cancel(&order.cancel).dir("/");
    let out = place.output(command, 4096)?;
    let text = String::from_utf8_lossy(&out).into_owned();
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="));
    Ok(version.or_else(|| text.split_whitespace().nth(1)).unwrap_or_default().to_owned())
}

/// A server that runs; ended when dropped.
pub(super) struct HostServer {
    running: Option<Box<dyn Running>>,
    drain: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<u8>>>,
    dir: PathBuf,
    cli: &'static str,
    place: HostPlace,
}

pub(super) fn start(
    server: &str,
    cli: &'static str,
    order: &Order,
    dir: &Path,
    sanitize: bool,
) -> Result<HostServer, SourceError> {
    let place = HostPlace::new();
    let mut argv = alone(&place, order)?;
    argv.extend(["setpriv", "--no-new-privs", "--pdeathsig", "KILL"].map(str::to_owned));
    if account::is_root() {
        let (uid, gid) = Account::find("nobody").map_or((NOBODY, NOBODY), |a| (a.uid, a.gid));
        for path in [dir.to_owned(), dir.join(DUMP)] {
            chown(&path, Some(uid), Some(gid)).map_err(|e| file_error("give to the throw-away server", &path, e))?;
        }
        argv.extend([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
    }
    argv.extend(["--".into(), "prlimit".into(), format!("--data={}", order.memory), "--core=0".into()]);
    argv.push(server.to_owned());
    argv.extend(order.arguments(".", sanitize));
    let command = Command::new(argv).dir(dir).timeout(order.deadline.left()).cancel(&order.cancel);
    let mut running = place.start(command)?;
    let (ended, log) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let drain = running.stdout().map(|mut stdout| {
        let (ended, log) = (ended.clone(), log.clone());
        threads::begin(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                let mut kept = log.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..n]);
                let excess = kept.len().saturating_sub(LOG_BYTES);
                kept.drain(..excess);
            }
            ended.store(true, Ordering::SeqCst);
        })
    });
    // Leaving early drops `running`, which ends the server.
    let drain = drain.transpose()?;
    Ok(HostServer { running: Some(running), drain, ended, log, dir: dir.to_owned(), cli, place })
}

/// The words that give a command a network of its own, in which there is nothing; none where that cannot be had.
fn alone(place: &HostPlace, order: &Order) -> Result<Vec<String>, SourceError> {
    let ways: [&[&str]; 2] = [&["unshare", "--net", "--"], &["unshare", "--map-current-user", "--net", "--"]];
    let way = ways[usize::from(!account::is_root())];
    let test = Command::new(way.iter().chain(&["true"]).copied()).timeout(order.deadline.left()).cancel(&order.cancel);
    match run(place, test.dir("/"), 4096) {
        Ok((_, exit)) if exit.code == 0 => Ok(way.iter().map(|w| (*w).to_owned()).collect()),
        Err(PlaceError::Cancelled(c)) => Err(c.into()),
        _ => Ok(Vec::new()),
    }
}

impl Served for HostServer {
    fn place(&self) -> &dyn Place {
        &self.place
    }

    fn client(&self, words: &[&str]) -> Command {
        Command::new([self.cli, "-s", SOCKET].into_iter().chain(words.iter().copied())).dir(&self.dir)
    }

    fn ended(&self) -> Result<Option<String>, SourceError> {
        if !self.ended.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(String::from_utf8_lossy(&log).into_owned()))
    }

    fn dump(&self) -> Result<Box<dyn Read + '_>, SourceError> {
        let path = self.dir.join(DUMP);
        // The server may have been taken over by what it loaded: its folder is not trusted.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let file = file.map_err(|e| file_error("open", &path, e))?;
        let meta = file.metadata().map_err(|e| file_error("look at", &path, e))?;
        match meta.is_file() {
            true => Ok(Box::new(file)),
            false => Err(SourceError::problem(format!("{} is no file any more", path.display()))),
        }
    }
}

impl Drop for HostServer {
    fn drop(&mut self) {
        drop(self.running.take());
        if let Some(drain) = self.drain.take() {
            let _ = drain.join();
        }
    }
}
