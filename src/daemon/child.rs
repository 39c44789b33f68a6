//! One run as a process: this program with the arguments of a person, in a process group of its own.
//!
//! A run that takes longer than its limit, or is to stop, is asked to (SIGTERM, which a run obeys within five seconds)
//! and killed with its whole group after [`GRACE`], and what hooks take that bring back what others began.

use super::agenda::Job;
use super::ledger::Stopped;
use crate::base::time::rfc3339;
use crate::ops::access::Installation;
use crate::ops::runs::What;
use crate::policy::Policy;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// From being asked to stop until being killed.
pub const GRACE: Duration = Duration::from_secs(20);

/// What was killed and is still there is killed again after this.
const KILL_PAUSE: Duration = Duration::from_secs(5);

/// What a process is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    Run(Job),
    /// Send the notifications that are due.
    Deliver,
    /// Look at a policy, for whoever asks how things are.
    Look(String),
}

/// A process at work.
pub struct Running {
    pub task: Task,
    child: Child,
    deadline: Instant,
    /// When it was asked to stop.
    asked: Option<Instant>,
    timed_out: bool,
    gave_way: bool,
    /// When it was killed last.
    killed: Option<Instant>,
    grace: Duration,
}

/// How it ended, in the words of a shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    pub code: u8,
    /// Not by itself.
    pub signal: Option<i32>,
}

impl From<ExitStatus> for Exited {
    fn from(status: ExitStatus) -> Self {
        let signal = status.signal();
        let code = status.code().or(signal.map(|s| s.saturating_add(128))).unwrap_or(1);
        Self { code: u8::try_from(code).unwrap_or(u8::MAX), signal }
    }
}

/// What belongs to every run's arguments.
pub struct Program {
    pub path: PathBuf,
    pub installation: Installation,
}

impl Program {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--config-dir").arg(&self.installation.config_dir);
        command.arg("--state-dir").arg(&self.installation.state_dir).arg("--quiet");
        // What a run has to show stands in the run history; what is wrong it says in the daemon's own log.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command
    }

    /// Starts a run of a policy.
    pub fn run(&self, job: &Job, policy: &Policy) -> io::Result<Running> {
        let mut command = self.command();
        command.arg("--policy").arg(&policy.file);
        command.arg("--scheduled").arg("--slot").arg(rfc3339(job.slot)).arg("--attempt").arg(job.attempt.to_string());
        command.arg(match job.what {
            What::Drill => "drill",
            What::Prune => "prune",
            What::Verify => "verify",
            What::Copy => "copy",
            // Nothing else has a schedule.
            _ => "snapshot",
        });
        let mut running = start(command, Task::Run(job.clone()), policy.schedule.time_limit)?;
        if job.what == What::Snapshot {
            let hooks = u32::try_from(policy.hooks.after_snapshot.len()).unwrap_or(u32::MAX);
            running.grace = GRACE + policy.hooks.timeout.saturating_mul(hooks).min(Duration::from_secs(86_400));
        }
        Ok(running)
    }

    /// Starts a sender.
    pub fn deliver(&self, limit: Duration) -> io::Result<Running> {
        let mut command = self.command();
        command.args(["notify", "deliver"]);
        start(command, Task::Deliver, limit)
    }
}

impl Program {
    /// Starts a look at a policy.
    pub fn look(&self, name: &str, policy_file: &Path, limit: Duration) -> io::Result<Running> {
        let mut command = self.command();
        command.arg("--policy").arg(policy_file).arg("status");
        // It judges as well, and that is told elsewhere.
        start(command, Task::Look(name.to_owned()), limit)
    }
}

fn start(mut command: Command, task: Task, limit: Duration) -> io::Result<Running> {
    let child = command.spawn()?;
    Ok(Running {
        task,
        child,
        deadline: Instant::now() + limit,
        asked: None,
        timed_out: false,
        gave_way: false,
        killed: None,
        grace: GRACE,
    })
}

impl Running {
    /// Whether it has ended.
    pub fn ended(&mut self) -> io::Result<Option<Exited>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            // Whatever it started and did not end goes with it.
            self.signal(Signal::KILL);
        }
        Ok(status.map(Exited::from))
    }

    /// Asks it to stop.
    pub fn stop(&mut self) {
        if self.asked.is_none() {
            self.asked = Some(Instant::now());
            self.signal(Signal::TERM);
        }
    }

    /// Asks it to stop, for a snapshot that is due.
    pub fn give_way(&mut self) {
        if self.asked.is_none() {
            self.gave_way = true;
            self.stop();
        }
    }

    /// Stops what has had its time, kills what does not stop.
    pub fn watch(&mut self, now: Instant) {
        if self.asked.is_none() && now >= self.deadline {
            self.timed_out = true;
            self.stop();
        }
        if self.asked.is_some_and(|asked| now >= asked + self.grace) {
            self.killed = Some(now);
            self.signal(Signal::KILL);
        }
    }

    /// When to look at it again.
    pub fn look_again(&self) -> Instant {
        match (self.asked, self.killed) {
            (None, _) => self.deadline,
            (Some(asked), None) => asked + self.grace,
            // Whatever does not die of that waits for a disk.
            (Some(_), Some(killed)) => killed + KILL_PAUSE,
        }
    }

    fn signal(&self, signal: Signal) {
        // A group that is gone needs no signal.
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    /// Whether the service ended it, or it ended.
    pub fn stopped(&self) -> Stopped {
        match (self.timed_out, self.gave_way, self.asked) {
            (true, ..) => Stopped::TimedOut,
            (false, true, _) => Stopped::GaveWay,
            (false, false, Some(_)) => Stopped::Asked,
            (false, false, None) => Stopped::No,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// Whatever becomes of a test, it leaves no process.
    struct Ended(Running);

    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.signal(Signal::KILL);
            let _ = self.0.child.wait();
        }
    }

    /// A program that does not stop when it is asked to, for a policy with these hooks.
    fn deaf(dir: &Path, what: What, hooks: &str) -> Ended {
        let path = dir.join("deaf");
        let begun = dir.join("begun");
        let _ = fs::remove_file(&begun);
        let text = format!("#!/bin/sh\ntrap '' TERM\ntouch {}\nwhile :; do sleep 0.1; done\n", begun.display());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let text = format!(
            "[app]\nname = \"shop\"\nroot = \"/srv\"\n[repository]\nurl = \"/r\"\nrecipients = \
             [\"age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz\"]\n[hooks]\n{hooks}\n"
        );
        let policy = crate::policy::parse(Path::new("/etc/shop.toml"), &text).unwrap();
        let installation = Installation { config_dir: dir.to_owned(), state_dir: dir.to_owned() };
        let slot = "2026-11-21T02:00:00Z".parse().unwrap();
        let job = Job { policy: "shop".parse().unwrap(), what, slot, attempt: 1 };
        let running = Ended(Program { path, installation }.run(&job, &policy).unwrap());
        while !begun.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        running
    }

    #[test]
    fn hooks_that_bring_something_back_are_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let two = "after_snapshot = ['a', 'b']\ntimeout = \"30s\"";
        for (what, hooks, seconds) in [
            (What::Snapshot, "", 20),
            (What::Snapshot, two, 80),
            (What::Snapshot, "before_snapshot = 'a'", 20),
            // Nothing but a snapshot runs them.
            (What::Verify, two, 20),
            // Nobody waits for ever.
            (What::Snapshot, "after_snapshot = 'a'\ntimeout = \"400d\"", 86_420),
        ] {
            let mut deaf = deaf(dir.path(), what, hooks);
            let running = &mut deaf.0;
            running.stop();
            let asked = running.asked.unwrap();
            let end = asked + Duration::from_secs(seconds);
            assert_eq!(running.look_again(), end, "{what:?} {hooks}");
            running.watch(end - Duration::from_millis(1));
            std::thread::sleep(Duration::from_millis(50));
            assert!(running.ended().unwrap().is_none() && running.killed.is_none(), "{what:?} {hooks}");
            running.watch(end);
            let ended = running.child.wait().unwrap();
            assert_eq!(Exited::from(ended), Exited { code: 137, signal: Some(9) }, "{what:?} {hooks}");
        }
    }
}
