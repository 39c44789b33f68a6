//! The run history from the side of a command: a run is entered before it begins and after it ends, and whoever wants
//! to hear of it is told after that.
//!
//! Invariant: nothing here changes how a command ends. What cannot be entered or told is said in the log.

use crate::base::ids::HostName;
use crate::cli::args::Command;
use crate::cli::exit::{Exit, Failure};
use crate::cli::session::Session;
use crate::ops::access::host_name;
use crate::ops::notify::{begin_ping, deliver, queue};
use crate::ops::runs::{Begin, Book, End, RunRecord, What};
use crate::ops::{OpsError, transaction};
use crate::policy::Policy;
use chrono::Utc;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a person waits for notifications after the result is there; what is not sent by then is sent later.
const DELIVER_LIMIT: Duration = Duration::from_secs(15);

/// A run that is entered.
pub struct Books {
    book: Book,
    id: i64,
    what: What,
    policy: Policy,
    host: HostName,
    ping: Option<JoinHandle<()>>,
}

/// What the command does that is remembered; nothing of what only looks, or is asked by a stranger.
fn what(command: &Command) -> Option<What> {
    let own = |reading: &crate::cli::args::Reading| reading.repository.is_none();
    match command {
        Command::Snapshot(args) if !args.dry_run => Some(What::Snapshot),
        Command::Drill(args) if !args.dry_run && own(&args.reading) => Some(What::Drill),
        Command::Verify(args) if own(&args.reading) => Some(What::Verify),
        Command::Prune(args) if !args.dry_run => Some(What::Prune),
        Command::Copy(args) if !args.dry_run && own(&args.reading) => Some(What::Copy),
        // Bare, it may only list: what did nothing is forgotten again.
        Command::Rollback(args) if !args.dry_run => Some(What::Rollback),
        Command::Guard(_) => Some(What::Guard),
        Command::Restore(args) if args.into.is_none() && !args.dry_run => Some(What::Restore),
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
        let what = what(command)?;
        // Without a policy the command fails by itself, and says why.
        let policy = session.policy().ok()?;
        match Self::enter(session, what, policy) {
            Ok(books) => Some(books),
            Err(e) => {
                tracing::warn!("this run is not remembered: {}", Failure::from(e).message());
                None
            }
        }
    }

    fn enter(session: &Session, what: What, policy: Policy) -> Result<Self, OpsError> {
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
        let ping = if what == What::Snapshot { begin_ping(&policy) } else { None };
        Ok(Self { book, id, what, policy, host, ping })
    }

    /// Enters how it ended, and tells whoever wants to hear.
    pub fn end(mut self, session: &Session, exit: Exit, failure: Option<&Failure>) {
        if let Err(e) = self.close(session, exit, failure) {
            tracing::warn!("how this run ended is not remembered: {}", Failure::from(e).message());
        }
    }

    fn close(&mut self, session: &Session, exit: Exit, failure: Option<&Failure>) -> Result<(), OpsError> {
        let noted = session.noted();
        if self.what == What::Rollback && noted.snapshot.is_none() && matches!(exit, Exit::Done | Exit::Usage) {
            return self.book.forget(self.id);
        }
        let error = failure.map(Failure::message).or_else(|| {
            let alarmed = session.out.alarmed();
            (exit != Exit::Done && !alarmed.is_empty()).then(|| alarmed.join("; "))
        });
        let pending = exit == Exit::Busy
            && transaction::refuse_pending(&session.installation.state_dir, &self.policy.app.name).is_err();
        let end = End {
            outcome: if pending { "pending" } else { exit.word() }.to_owned(),
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

    fn tell(&mut self, session: &Session, run: &RunRecord) -> Result<(), OpsError> {
        let now = Utc::now();
        let change = self.book.judge(run, now)?;
        queue(&self.book, &self.policy, run, change, &self.host, now)?;
        if self.book.next_post()?.is_none_or(|next| next > Utc::now()) {
            return Ok(());
        }
        let stop = || session.run.cancel.signal().is_some();
        let delivered = deliver(&self.book, Utc::now, DELIVER_LIMIT, stop)?;
        for problem in delivered.problems {
            session.out.alarm(&format!("{problem}; it is tried again later"));
        }
        Ok(())
    }
}
