//! The loop: look at what has ended, what has changed and what is due; sleep.

use super::agenda::{Agenda, Job, Verdict};
use super::board::Board;
use super::child::{Exited, Program, Running, Task};
use super::http;
use super::ledger::{self, Stopped};
use super::policies::Policies;
use super::systemd::Manager;
use super::wakeup::Wakeup;
use crate::base::ids::{HostName, PolicyName};
use crate::base::time::rfc3339;
use crate::ops::OpsError;
use crate::ops::access::{Installation, host_name};
use crate::ops::runs::{Book, What};
use crate::place::owner_mark;
use crate::repository::chain::full_text;
use chrono::{DateTime, Utc};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After a change of a file: an editor makes several.
const SETTLE: Duration = Duration::from_millis(500);
/// A sender that takes longer hangs.
const DELIVER_LIMIT: Duration = Duration::from_secs(300);
/// A look has limits of its own.
const LOOK_LIMIT: Duration = Duration::from_secs(180);
/// A policy is looked at no more often, whoever asks.
const LOOK_PAUSE: Duration = Duration::from_secs(10);
/// What is run lets the application go first.
const NICENESS: i32 = 10;
/// Where the run history cannot be used, it is tried again after this.
const TROUBLE_PAUSE: Duration = Duration::from_secs(60);

/// What the service works with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub installation: Installation,
    /// This program.
    pub program: PathBuf,
    /// How many policies may run at once.
    pub at_once: usize,
    /// Where requests are answered, of this machine alone.
    pub listen: Option<SocketAddr>,
}

/// Serves until it is asked to stop (SIGTERM, SIGINT).
pub fn serve(settings: &Settings) -> Result<(), OpsError> {
    let _alone = lock(&settings.installation)?;
    if let Err(e) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!("the niceness stays as it is: {e}");
    }
    let mut daemon = Daemon::new(settings)?;
    let listener = settings.listen.map(http::bind).transpose()?;
    daemon.reload();
    daemon.pick_up()?;
    if let Some(listener) = listener {
        let at = listener.local_addr().map_or_else(|_| String::new(), |at| at.to_string());
        http::answer(listener, daemon.board.clone())?;
        tracing::info!("listening on http://{at}");
    }
    daemon.manager.ready();
    tracing::info!("serving {}", daemon.status());
    while !daemon.wakeup.stop_asked() {
        daemon.turn();
    }
    daemon.stop();
    Ok(())
}

/// One daemon for a state folder.
fn lock(installation: &Installation) -> Result<File, OpsError> {
    let path = installation.state_dir.join("serve.lock");
    crate::base::atomic::create_private_dir(&installation.state_dir)
        .map_err(|e| OpsError::file("create folder", &installation.state_dir, e))?;
    let failed = |e| OpsError::file("open", &path, e);
    let mut file =
        fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpsError::Serving { dir: installation.state_dir.clone() }),
        Err(e) => return Err(OpsError::file("lock", &path, e.into())),
    }
    file.set_len(0).and_then(|()| file.write_all(owner_mark().as_bytes())).map_err(failed)?;
    Ok(file)
}

struct Daemon {
    program: Program,
    host: HostName,
    book: Book,
    policies: Policies,
    agenda: Agenda,
    running: Vec<Running>,
    wakeup: Wakeup,
    manager: Manager,
    board: Arc<Board>,
    /// Somebody may ask.
    listens: bool,
    /// When each policy was looked at.
    looks: HashMap<String, Instant>,
    /// When a change of files is looked at.
    look_at_files: Option<Instant>,
    /// A sender that failed is not started again before this.
    no_post_before: Option<Instant>,
    /// The last turn met trouble.
    trouble: bool,
}

impl Daemon {
    fn new(settings: &Settings) -> Result<Self, OpsError> {
        let trouble = |e| OpsError::file("set up the sleep of", "the service", e);
        let wakeup = Wakeup::new().map_err(trouble)?;
        let board = Arc::new(Board::new(settings.installation.clone(), wakeup.waker().map_err(trouble)?));
        Ok(Self {
            program: Program { path: settings.program.clone(), installation: settings.installation.clone() },
            host: host_name()?,
            book: Book::open(&settings.installation.state_dir)?,
            policies: Policies::default(),
            agenda: Agenda::new(settings.at_once),
            running: Vec::new(),
            wakeup,
            manager: Manager::find(),
            board,
            listens: settings.listen.is_some(),
            looks: HashMap::new(),
            look_at_files: None,
            no_post_before: None,
            trouble: false,
        })
    }

    fn reload(&mut self) {
        let now = Utc::now();
        self.wakeup.watch(&self.program.installation);
        self.policies.reload(&self.program.installation);
        self.board.show(self.policies.shown());
        let rules = self.policies.rules(&self.host);
        // What is seen for the first time is remembered: a slot that is missed from now on is caught up.
        for (policy, what, _) in &rules {
            let known = self.book.settled(policy, *what);
            self.report(known.and_then(|at| at.map_or_else(|| self.book.settle(policy, *what, now), |_| Ok(()))));
        }
        let book = &self.book;
        self.agenda.set(rules, |policy, what| book.settled(policy, what).ok().flatten(), now);
    }

    /// Runs that an earlier daemon left unfinished are run again.
    fn pick_up(&mut self) -> Result<(), OpsError> {
        let mut again = Vec::new();
        for cut in self.book.unfinished()? {
            tracing::warn!("the {} of {} for {} was cut short", cut.what.as_str(), cut.policy, rfc3339(cut.slot));
            let attempts = if cut.made_way { cut.attempt.saturating_sub(1) } else { cut.attempt };
            if self.agenda.resume(&cut.policy, cut.what, cut.slot, attempts, Utc::now()) {
                again.push((cut.policy, cut.what));
            } else if cut.made_way && attempts > 0 {
                let policy = self.policies.get(&cut.policy);
                ledger::tell_newest(&mut self.book, policy, (&cut.policy, cut.what), &self.host, Utc::now())?;
            }
        }
        // How the others came out is known now.
        for policy in self.policies.names() {
            for run in self.book.untold(&policy, true)? {
                if !again.contains(&(run.policy.clone(), run.what)) {
                    ledger::tell(&mut self.book, self.policies.get(&policy), &run, &self.host, Utc::now())?;
                }
            }
        }
        Ok(())
    }

    /// One look at everything, and a sleep.
    fn turn(&mut self) {
        self.trouble = false;
        self.reap();
        if self.look_at_files.is_some_and(|at| Instant::now() >= at) {
            self.look_at_files = None;
            self.reload();
        }
        self.start_due();
        self.look();
        let post = self.post();
        self.running.iter_mut().for_each(|running| running.watch(Instant::now()));
        self.manager.alive();
        let status = self.status();
        self.manager.status(status);
        self.sleep(post);
    }

    fn sleep(&mut self, post: Option<DateTime<Utc>>) {
        let now = Instant::now();
        let looks = self.running.iter().map(Running::look_again).chain(self.look_at_files);
        let within = looks
            .map(|at| at.saturating_duration_since(now).max(Duration::from_millis(10)))
            .chain(self.manager.watchdog)
            .chain(self.trouble.then_some(TROUBLE_PAUSE))
            .min();
        let until = [self.agenda.wake(Utc::now()), post].into_iter().flatten().min();
        match self.wakeup.sleep(until, within) {
            Ok(woken) => {
                if woken.changed {
                    self.look_at_files.get_or_insert(Instant::now() + SETTLE);
                }
                if woken.reload {
                    tracing::info!("reloading the policies");
                    self.manager.reloading();
                    self.reload();
                    self.manager.ready();
                }
            }
            Err(e) => {
                tracing::error!("cannot sleep until something is due: {e}");
                std::thread::sleep(TROUBLE_PAUSE);
            }
        }
    }

    /// Looks for runs that have ended.
    fn reap(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            match self.running[at].ended() {
                Ok(Some(exited)) => {
                    let running = self.running.swap_remove(at);
                    match &running.task {
                        Task::Run(job) => {
                            // Who stops the service may stop what it runs in the same moment.
                            let stopped = match running.stopped() {
                                Stopped::No if self.wakeup.stop_asked() => Stopped::Asked,
                                stopped => stopped,
                            };
                            let settled = self.ended(job, exited, stopped);
                            self.report(settled);
                            if self.listens {
                                self.board.want(job.policy.as_str());
                            }
                        }
                        Task::Deliver if exited.code != 0 => {
                            tracing::warn!("the sender of notifications ended with exit code {}", exited.code);
                            self.no_post_before = Some(Instant::now() + TROUBLE_PAUSE);
                        }
                        // What is wrong is shown; that nothing could be seen is not.
                        Task::Look(name) if exited.code > 1 || running.stopped() == Stopped::TimedOut => {
                            tracing::warn!("{name} could not be looked at: exit code {}", exited.code);
                        }
                        Task::Deliver | Task::Look(_) => {}
                    }
                }
                Ok(None) => at += 1,
                Err(e) => {
                    tracing::error!("process {} cannot be waited for: {e}", self.running[at].pid());
                    at += 1;
                }
            }
        }
    }

    fn ended(&mut self, job: &Job, exited: Exited, stopped: Stopped) -> Result<(), OpsError> {
        let now = Utc::now();
        let outcome = ledger::settle(&mut self.book, job, exited, stopped, now);
        // The agenda must hear of it, whatever becomes of the books.
        let how = outcome.as_ref().map_or(super::agenda::Ended::Failed, |outcome| outcome.ended);
        let verdict = self.agenda.ended(&job.policy, how, now);
        let run = outcome?.run;
        let (policy, what, word) = (&job.policy, job.what.as_str(), run.outcome().unwrap_or_default());
        let why = run.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
        match verdict {
            Verdict::Final if word == "done" => tracing::info!("{what} of {policy}: done"),
            Verdict::Final => tracing::warn!("{what} of {policy}: {word}{why}"),
            Verdict::Again(at) => tracing::warn!("{what} of {policy}: {word}, again at {}{why}", rfc3339(at)),
        }
        if verdict != Verdict::Final || self.wakeup.stop_asked() {
            return Ok(());
        }
        let known = self.policies.get(policy);
        match how {
            // A first attempt that made way has come to no end; behind another one, that one's is how it came out.
            super::agenda::Ended::GaveWay if job.attempt == 1 => Ok(()),
            super::agenda::Ended::GaveWay => {
                ledger::tell_newest(&mut self.book, known, (policy, job.what), &self.host, now)
            }
            _ => ledger::tell(&mut self.book, known, &run, &self.host, now),
        }
    }

    fn start_due(&mut self) {
        let now = Utc::now();
        let due = self.agenda.due(now);
        for (policy, what, slot) in due.passed_over {
            tracing::warn!("the {} of {policy} for {} was missed", what.as_str(), rfc3339(slot));
            let settled = self.book.settle(&policy, what, slot);
            self.report(settled);
        }
        for (name, what) in due.given_up {
            let policy = self.policies.get(&name);
            let told = ledger::tell_newest(&mut self.book, policy, (&name, what), &self.host, now);
            self.report(told);
        }
        for job in due.start {
            self.start(&job, now);
        }
        for policy in due.give_way {
            self.give_way(&policy);
        }
    }

    /// A snapshot of the policy is due: what looks at backups makes way for it.
    fn give_way(&mut self, policy: &PolicyName) {
        let of_policy = |running: &&mut Running| matches!(&running.task, Task::Run(job) if job.policy == *policy);
        for running in self.running.iter_mut().filter(of_policy).filter(|running| running.stopped() == Stopped::No) {
            if let Task::Run(job) = &running.task {
                tracing::info!("{} of {policy} makes way for a snapshot that is due", job.what.as_str());
            }
            running.give_way();
        }
    }

    fn start(&mut self, job: &Job, now: DateTime<Utc>) {
        let policy = self.policies.get(&job.policy);
        if job.what == What::Weekly {
            let told = ledger::tell_weekly(&mut self.book, policy, job, &self.host, now);
            self.agenda.ended(&job.policy, super::agenda::Ended::Done, now);
            return self.report(told);
        }
        let Some(policy) = policy else {
            self.agenda.ended(&job.policy, super::agenda::Ended::Hopeless, now);
            return;
        };
        match self.program.run(job, policy) {
            Ok(running) => {
                let attempt = if job.attempt > 1 { format!(", attempt {}", job.attempt) } else { String::new() };
                tracing::info!("{} of {} begins{attempt} (process {})", job.what.as_str(), job.policy, running.pid());
                self.running.push(running);
            }
            Err(e) => {
                tracing::error!("{} of {} cannot be started: {e}", job.what.as_str(), job.policy);
                let settled = self.ended(job, Exited { code: 1, signal: None }, Stopped::No);
                self.report(settled);
            }
        }
    }

    /// Sends what is due, and says when the next is.
    fn post(&mut self) -> Option<DateTime<Utc>> {
        if self.running.iter().any(|r| r.task == Task::Deliver) {
            return None;
        }
        if self.no_post_before.is_some_and(|at| Instant::now() < at) {
            self.trouble = true;
            return None;
        }
        self.no_post_before = None;
        let next = match self.book.next_post() {
            Ok(next) => next?,
            Err(e) => {
                self.report(Err(e));
                return None;
            }
        };
        if next > Utc::now() {
            return Some(next);
        }
        match self.program.deliver(DELIVER_LIMIT) {
            Ok(running) => self.running.push(running),
            Err(e) => {
                tracing::error!("notifications cannot be sent: {e}");
                self.trouble = true;
            }
        }
        None
    }

    /// Looks at what somebody asks for, unless that was done just now.
    fn look(&mut self) {
        let now = Instant::now();
        for name in self.board.wanted() {
            let is_at_it = self.running.iter().any(|r| matches!(&r.task, Task::Look(at) if *at == name));
            let just_now = self.looks.get(&name).is_some_and(|at| now.duration_since(*at) < LOOK_PAUSE);
            let Ok(policy) = name.parse::<PolicyName>() else { continue };
            let Some(policy) = self.policies.get(&policy).filter(|_| !is_at_it && !just_now) else { continue };
            match self.program.look(&name, &policy.file, LOOK_LIMIT) {
                Ok(running) => {
                    self.running.push(running);
                    self.looks.insert(name, now);
                }
                Err(e) => tracing::error!("{name} cannot be looked at: {e}"),
            }
        }
    }

    fn report(&mut self, done: Result<(), OpsError>) {
        if let Err(e) = done {
            tracing::error!("{}", full_text(&e));
            self.trouble = true;
        }
    }

    /// `2 policies, 1 broken; snapshot of shop; next: verify of blog at …`
    fn status(&self) -> String {
        let (good, broken) = (self.policies.len(), self.policies.broken());
        let mut text = format!("{good} polic{}", if good == 1 { "y" } else { "ies" });
        if broken > 0 {
            text += &format!(", {broken} cannot be read");
        }
        let jobs: Vec<String> = self
            .running
            .iter()
            .filter_map(|running| match &running.task {
                Task::Run(job) => Some(format!("{} of {}", job.what.as_str(), job.policy)),
                Task::Deliver | Task::Look(_) => None,
            })
            .collect();
        if !jobs.is_empty() {
            text += &format!("; running: {}", jobs.join(", "));
        }
        if let Some((policy, what, at)) = self.agenda.next() {
            let (policy, what): (&PolicyName, &str) = (policy, what.as_str());
            text += &format!("; next: {what} of {policy} at {}", rfc3339(at));
        }
        text
    }

    /// Everything that runs is asked to stop, and waited for.
    fn stop(&mut self) {
        self.manager.stopping();
        tracing::info!("stopping");
        self.running.iter_mut().for_each(Running::stop);
        while !self.running.is_empty() {
            self.running.iter_mut().for_each(|running| running.watch(Instant::now()));
            self.reap();
            if self.running.is_empty() {
                break;
            }
            let now = Instant::now();
            let look = self.running.iter().map(|r| r.look_again().saturating_duration_since(now)).min();
            // What was killed is gone a moment later; the signal of its end wakes this up as well.
            let look = look.map(|look| look.max(Duration::from_millis(100)));
            if let Err(e) = self.wakeup.sleep(None, look) {
                tracing::error!("cannot wait for what runs: {e}");
                break;
            }
        }
        tracing::info!("stopped");
    }
}
