//! The run history from the side of a command: a run is entered before it begins and after it ends, and whoever wants
//! to hear of it is told after that.
//!
//! Invariants: nothing here changes how a command ends, and what cannot be entered or told is said aloud. A run of a part
//! that goes well does not make good what failed as a whole, and no watchdog hears of it.

use crate::base::ids::HostName;
use crate::cli::args::Command;
use crate::cli::exit::{Exit, Failure};
use crate::cli::session::Session;
use crate::ops::access::host_name;
use crate::ops::notify::{begin_ping, deliver, queue};
use crate::ops::runs::{Begin, Book, End, RunRecord, What};
use crate::ops::{OpsError, transaction};
use crate::policy::{Policy, recall, remember};
use chrono::Utc;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a person waits for notifications after the result is there; what is not sent by then is sent later.
const DELIVER_LIMIT: Duration = Duration::from_secs(15);

/// The same where somebody has stopped the run, and waits for its end.
const STOPPED_LIMIT: Duration = Duration::from_secs(3);

/// A run that is entered.
pub struct Books {
    book: Book,
    id: i64,
    what: What,
    /// It did all that its kind does.
    whole: bool,
    policy: Policy,
    host: HostName,
    ping: Option<JoinHandle<()>>,
}

/// What the command does that is remembered, and whether as a whole; nothing of what only looks, or is asked by a stranger.
fn what(command: &Command) -> Option<(What, bool)> {
    let own = |reading: &crate::cli::args::Reading| reading.repository.is_none();
    match command {
        Command::Snapshot(args) if !args.dry_run => Some((What::Snapshot, args.only.is_empty())),
        Command::Drill(args) if !args.dry_run && own(&args.reading) => {
            Some((What::Drill, args.only.is_empty() && args.id.is_none()))
        }
        Command::Verify(args) if own(&args.reading) => Some((What::Verify, args.ids.is_empty())),
        Command::Prune(args) if !args.dry_run => Some((What::Prune, args.host.is_none())),
        Command::Copy(args) if !args.dry_run && own(&args.reading) => {
            Some((What::Copy, args.ids.is_empty() && args.to.is_none()))
        }
        // Bare, it may only list: what did nothing is forgotten again.
        Command::Rollback(args) if !args.dry_run => Some((What::Rollback, true)),
        Command::Guard(_) => Some((What::Guard, true)),
        Command::Restore(args) if args.into.is_none() && !args.dry_run => Some((What::Restore, true)),
        _ => None,
    }
}

impl Books {
    /// Enters the run, where it is one that is remembered and its policy is known.
    pub fn begin(session: &Session, command: &Command) -> Option<Self> {
        if session.global.slot.is_some() {
            // What the service started ends with it, however that ends.
            if let Err(e) = set_parent_process_death_signal(Some(Signal::TERM)) {
                tracing::debug!("this run would outlive the service: {e}");
            }
        }
        let (what, whole) = what(command)?;
        // Without a policy the command fails by itself, and says why.
        let policy = Self::policy(session)?;
        match Self::enter(session, what, whole, policy) {
            Ok(books) => Some(books),
            Err(e) => {
                session.out.alarm(&format!("this run is not remembered: {}", Failure::from(e).message()));
                None
            }
        }
    }

    /// The policy; for a timer's run, one that has broken since is told to whom it named before.
    fn policy(session: &Session) -> Option<Policy> {
        let state_dir = &session.installation.state_dir;
        match session.policy() {
            Ok(policy) => {
                if session.global.scheduled
                    && let Err(e) = remember(state_dir, &policy)
                {
                    tracing::warn!("the text of the policy is not kept for the day it breaks: {e}");
                }
                Some(policy)
            }
            Err(_) if session.global.scheduled => recall(state_dir, &session.policy_file().ok()?),
            Err(_) => None,
        }
    }

    fn enter(session: &Session, what: What, whole: bool, policy: Policy) -> Result<Self, OpsError> {
        let mut book = Book::open(&session.installation.state_dir)?;
        let host = host_name()?;
        let id = book.begin(&Begin {
            policy: policy.app.name.clone(),
            what,
            scheduled: session.global.scheduled,
            slot: session.global.slot,
            attempt: session.global.attempt,
            now: Utc::now(),
        })?;
        // Somebody at a terminal sees whether it ends.
        let pings = what == What::Snapshot && whole && session.global.scheduled;
        let ping = if pings { begin_ping(&policy) } else { None };
        let mut books = Self { book, id, what, whole, policy, host, ping };
        // What was killed could tell nobody. The service looks after its own.
        for run in books.book.untold(&books.policy.app.name, false)? {
            books.queue(&run)?;
        }
        Ok(books)
    }

    /// Enters how it ended, and tells whoever wants to hear.
    pub fn end(mut self, session: &Session, exit: Exit, failure: Option<&Failure>) {
        if let Err(e) = self.close(session, exit, failure) {
            session.out.alarm(&format!("how this run ended is not remembered: {}", Failure::from(e).message()));
        }
    }

    fn close(&mut self, session: &Session, exit: Exit, failure: Option<&Failure>) -> Result<(), OpsError> {
        let noted = session.noted();
        if self.what == What::Rollback && noted.snapshot.is_none() && matches!(exit, Exit::Done | Exit::Usage) {
            return self.book.forget(self.id);
        }
        let error = failure.map(Failure::message).or(noted.problem).or_else(|| {
            let alarmed = session.out.alarmed();
            ((exit != Exit::Done || noted.suspect) && !alarmed.is_empty()).then(|| alarmed.join("; "))
        });
        let pending = exit == Exit::Busy
            && transaction::refuse_pending(&session.installation.state_dir, &self.policy.app.name).is_err();
        let outcome = match exit {
            _ if pending => "pending",
            Exit::Done if noted.suspect => "suspect",
            // A timer's run that somebody stopped took no snapshot all the same. The service knows whether it was itself.
            Exit::Signal(_) if session.global.scheduled && session.global.slot.is_none() => "interrupted",
            exit => exit.word(),
        };
        let end = End {
            outcome: outcome.to_owned(),
            exit: Some(exit.code()),
            snapshot: noted.snapshot,
            bytes_total: noted.bytes_total,
            bytes_new: noted.bytes_new,
            drill: noted.drill,
            error,
        };
        self.book.end(self.id, &end, Utc::now())?;
        if let Some(ping) = self.ping.take() {
            // It has a limit of its own; a panic there is no matter of this run.
            let _ = ping.join();
        }
        // The service knows whether the run is tried again, and tells how it came out in the end.
        if session.global.slot.is_some() {
            return Ok(());
        }
        match self.book.run(self.id)? {
            // What was asked for in the wrong way is said to whoever asked, and to nobody else.
            Some(run) if exit != Exit::Usage || session.global.scheduled => self.tell(session, &run),
            _ => Ok(()),
        }
    }

    /// Puts in what a run gives occasion for.
    fn queue(&mut self, run: &RunRecord) -> Result<(), OpsError> {
        let now = Utc::now();
        let change = self.book.judge(run, now)?;
        queue(&self.book, &self.policy, run, change, &self.host, now).map(drop)
    }

    fn tell(&mut self, session: &Session, run: &RunRecord) -> Result<(), OpsError> {
        if self.whole || run.outcome() != Some(Exit::Done.word()) {
            self.queue(run)?;
        }
        if self.book.next_post()?.is_none_or(|next| next > Utc::now()) {
            return Ok(());
        }
        // Whoever stopped the run waits for its end: long enough to tell that.
        let stopped = session.run.cancel.signal();
        let limit = if stopped.is_some() { STOPPED_LIMIT } else { DELIVER_LIMIT };
        let stop = || session.run.cancel.signal() != stopped;
        let delivered = deliver(&self.book, &session.installation.state_dir, Utc::now, limit, stop)?;
        for problem in delivered.problems {
            session.out.alarm(&format!("{problem}; it is tried again later"));
        }
        Ok(())
    }
}
