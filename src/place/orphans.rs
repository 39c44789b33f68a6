//! Ending what runs inside containers: a command whose handle was dropped, and what a killed run left behind.
//!
//! The engine keeps an exec in its list as long as it runs, except when the connection broke while output was on its
//! way: then it forgets the exec, and the command goes on until it writes again. Such commands are found among the
//! container's processes, by the mark in their environment. Only what an exec itself started is ended, never a child
//! that has detached from it: that may be a service which was meant to stay.

use super::docker::{Docker, is_status};
use super::inspect::Container;
use super::owner;
use super::watch::{GRACE, TICK};
use bollard::exec::{CreateExecOptions, StartExecOptions};
use std::collections::HashSet;
use std::time::{Duration, Instant};

pub(super) const SHELL: &str = "/bin/sh";
pub(super) const WRAPPER: &str = "echo lifeboat-pid:$$; exec \"$@\"";
/// Precedes the mark of the process that started an exec, in the shell's name.
pub(super) const MARK: &str = "lifeboat:";
/// Holds the same mark in the environment of what an exec runs.
pub(super) const RUN_VARIABLE: &str = "LIFEBOAT_RUN";

/// What the engine knows of an exec's process.
enum ExecState {
    Ended,
    /// With its id on the engine's host, once there is one.
    Alive(Option<u32>),
}

fn exec_state(docker: &Docker, exec: &str) -> ExecState {
    match docker.settle("inspect exec", docker.client().inspect_exec(exec)) {
        // Between its start and its first breath it does not run and has not ended either.
        Ok(state) if state.running == Some(true) || state.exit_code.is_none() => {
            ExecState::Alive(state.pid.and_then(|p| u32::try_from(p).ok()).filter(|p| *p > 0))
        }
        // Forgotten by the engine, or the engine is gone: there is nothing left to ask.
        Ok(_) | Err(_) => ExecState::Ended,
    }
}

/// Waits until the exec has ended, or `limit` has passed.
fn ended_within(docker: &Docker, exec: &str, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if matches!(exec_state(docker, exec), ExecState::Ended) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(TICK / 5);
    }
}

/// Ends what an exec runs: SIGTERM, time to go, SIGKILL. Where there is a shell, first as the user that it runs as, who
/// may always signal it (root may not, in a container without capabilities), then as root; and last from this host.
pub(super) fn end_exec(
    docker: &Docker,
    container: &str,
    exec: &str,
    user: Option<&str>,
    pid: Option<u32>,
    has_shell: bool,
) {
    let mut on_host = None;
    let deadline = Instant::now() + Duration::from_secs(1);
    while on_host.is_none() && Instant::now() < deadline {
        match exec_state(docker, exec) {
            ExecState::Ended => return,
            ExecState::Alive(Some(pid)) => on_host = Some(pid),
            ExecState::Alive(None) => std::thread::sleep(TICK / 10),
        }
    }
    let Some(on_host) = on_host else { return };
    if let Some(inside) = pid.or_else(|| pid_inside(docker, on_host)).filter(|_| has_shell) {
        let steps: [(&str, Option<&str>, Duration); 3] = [
            ("TERM", user, GRACE),
            ("KILL", user, Duration::from_millis(500)),
            ("KILL", Some("0"), Duration::from_millis(500)),
        ];
        for (signal, as_user, limit) in steps {
            if signal_inside(docker, container, as_user, signal, inside) && ended_within(docker, exec, limit) {
                return;
            }
        }
    }
    // Only root may do this, and only on the engine's own machine; anybody else leaves it to its broken pipes.
    if docker.is_local()
        && let Some(pid) = i32::try_from(on_host).ok().and_then(rustix::process::Pid::from_raw)
        && rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok()
        && !ended_within(docker, exec, GRACE)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        ended_within(docker, exec, Duration::from_millis(500));
    }
}

/// The process id within its container, as this host's kernel tells it.
fn pid_inside(docker: &Docker, on_host: u32) -> Option<u32> {
    if !docker.is_local() {
        return None;
    }
    let status = std::fs::read_to_string(format!("/proc/{on_host}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().next_back()?.parse().ok()
}

/// Sends a signal by a second exec: to the process group that the engine made for the command, else to it alone.
fn signal_inside(docker: &Docker, container: &str, user: Option<&str>, signal: &str, pid: u32) -> bool {
    let script = "kill -s \"$1\" -- \"-$2\" 2>/dev/null || kill -s \"$1\" \"$2\"";
    let argv = [SHELL, "-c", script, "lifeboat-kill", signal, &pid.to_string()].map(str::to_owned);
    let options = CreateExecOptions { cmd: Some(argv.to_vec()), user: user.map(str::to_owned), ..Default::default() };
    let Ok(made) = docker.settle("prepare kill", docker.client().create_exec(container, options)) else { return false };
    let detached = Some(StartExecOptions { detach: true, ..Default::default() });
    docker.settle("start kill", docker.client().start_exec(&made.id, detached)).is_ok()
}

/// Ends what a killed run left running in a container. What cannot be judged stays.
pub(super) fn sweep(docker: &Docker, container: &Container) {
    for exec in &container.exec_ids {
        let state = match docker.settle("inspect exec", docker.client().inspect_exec(exec)) {
            Ok(state) => state,
            Err(e) if is_status(&e, 404) => continue,
            Err(_) => return,
        };
        let process = state.process_config.unwrap_or_default();
        let arguments = process.arguments.unwrap_or_default();
        let orphan = state.running == Some(true)
            && arguments.get(1).is_some_and(|script| script == WRAPPER)
            && arguments.get(2).and_then(|mark| mark.strip_prefix(MARK)).is_some_and(owner::is_gone);
        if orphan {
            tracing::info!(container = container.name, "ending a command that an earlier run left running");
            end_exec(docker, &container.id, exec, process.user.as_deref().filter(|u| !u.is_empty()), None, true);
        }
    }
    for process in forgotten(docker, container) {
        tracing::info!(container = container.name, "ending a command that an earlier run left and the engine forgot");
        process.end(docker, container);
    }
}

/// A process that the engine knows nothing of any more.
struct Forgotten {
    on_host: u32,
    inside: u32,
    start: Option<String>,
}

/// What execs of dead runs started and still runs, as the engine's `ps` tells it with each one's environment.
fn forgotten(docker: &Docker, container: &Container) -> Vec<Forgotten> {
    let options = bollard::query_parameters::TopOptionsBuilder::new().ps_args("eww -o pid,ppid,args").build();
    let listed = docker.settle("list processes", docker.client().top_processes(&container.id, Some(options)));
    let rows = listed.ok().and_then(|answer| answer.processes).unwrap_or_default();
    let orphans = orphans(&rows).into_iter();
    orphans
        .filter_map(|on_host| {
            // Without a namespace of its own a detached child looks like what an exec started.
            let inside = pid_inside(docker, on_host).filter(|inside| *inside != on_host)?;
            Some(Forgotten { on_host, inside, start: owner::start_time(on_host) })
        })
        .collect()
}

/// Those of a container's processes that bear a dead run's mark and whose parent is not in the container: an exec's
/// own processes. A row is process id, parent's id, and arguments with the environment behind them.
fn orphans(rows: &[Vec<String>]) -> Vec<u32> {
    let all: HashSet<&str> = rows.iter().filter_map(|row| row.first()).map(String::as_str).collect();
    let marks = |row: &[String]| {
        let text = row.get(2..).unwrap_or_default().join(" ");
        let mark = text.split(' ').filter_map(|word| word.strip_prefix(RUN_VARIABLE)?.strip_prefix('=')).next_back();
        mark.is_some_and(owner::is_gone)
    };
    let is_execs_own = |row: &&Vec<String>| row.get(1).is_some_and(|parent| !all.contains(parent.as_str()));
    rows.iter().filter(is_execs_own).filter(|row| marks(row)).filter_map(|row| row.first()?.parse().ok()).collect()
}

impl Forgotten {
    fn is_gone(&self) -> bool {
        self.start.is_none() || owner::start_time(self.on_host) != self.start
    }

    fn gone_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.is_gone() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(TICK / 5);
        }
        true
    }

    fn end(&self, docker: &Docker, container: &Container) {
        let own = container.user.as_str();
        let short = Duration::from_millis(500);
        for (signal, user, limit) in [("TERM", own, GRACE), ("KILL", own, short), ("KILL", "0", short)] {
            let user = Some(user).filter(|u| !u.is_empty());
            if self.is_gone()
                || (signal_inside(docker, &container.id, user, signal, self.inside) && self.gone_within(limit))
            {
                return;
            }
        }
        if let Some(pid) = i32::try_from(self.on_host).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            self.gone_within(short);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_exec_of_a_dead_run_started_is_an_orphan() {
        let (rest, _) = owner::mark().rsplit_once('/').unwrap();
        let (dead, living) = (format!("{RUN_VARIABLE}={rest}/1"), format!("{RUN_VARIABLE}={}", owner::mark()));
        let row = |pid: &str, parent: &str, text: &str| vec![pid.to_owned(), parent.to_owned(), text.to_owned()];
        let rows = [
            row("10", "5", "postgres PATH=/bin"),
            row("20", "5", &format!("pg_dump --file={} {dead} HOME=/", living)),
            row("21", "5", &format!("pg_dump {living} HOME=/")),
            row("22", "20", &format!("a child {dead}")),
            row("23", "10", &format!("a service that detached {dead}")),
            row("24", "5", "psql LIFEBOAT_RUN=elsewhere/1/1"),
        ];
        assert_eq!(orphans(&rows), [20]);
        assert_eq!(orphans(&[Vec::new(), vec!["x".into()]]), Vec::<u32>::new());
    }
}
