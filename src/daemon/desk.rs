//! What a request is answered from: the policies, what was last seen of them, and the run history; judged for this
//! moment. No repository is opened and nothing of the application is asked: where what was seen is old, the loop is asked
//! for a look, and the next request shows it.

use super::board::Board;
use crate::ops::OpsError;
use crate::ops::runs::{Book, RunRecord};
use crate::ops::status::{self, PolicyStatus, Ran, Sight, judge, unreadable, unseen};
use crate::policy::Policy;
use chrono::{DateTime, TimeDelta, Utc};

/// Who asks is shown nothing older, but for the first time.
const STALE: TimeDelta = TimeDelta::minutes(5);
/// Runs on a policy's page.
const RUNS: usize = 200;

/// One policy, judged.
pub struct Seen {
    pub status: PolicyStatus,
    pub ran: Ran,
    pub sight: Option<Sight>,
    /// A look was asked for.
    pub looking: bool,
}

/// One request's view.
pub struct Desk<'a> {
    board: &'a Board,
    book: Option<Book>,
    pub now: DateTime<Utc>,
}

impl<'a> Desk<'a> {
    pub fn open(board: &'a Board, now: DateTime<Utc>) -> Result<Self, OpsError> {
        Ok(Self { board, book: Book::look(&board.installation.state_dir)?, now })
    }

    /// Every policy, by name.
    pub fn all(&self) -> Result<Vec<Seen>, OpsError> {
        let shown = self.board.shown();
        let mut all = Vec::new();
        for (name, policy) in &shown.good {
            let mut seen = self.seen(name, policy)?;
            if let Some(problem) = shown.broken.get(name) {
                let broken = unreadable(name.clone(), format!("{problem}; what it said before still runs"));
                seen.status.level = broken.level;
                seen.status.checks.splice(0..0, broken.checks);
            }
            all.push(seen);
        }
        for (name, problem) in shown.broken.iter().filter(|(name, _)| !shown.good.contains_key(*name)) {
            let status = unreadable(name.clone(), problem.clone());
            all.push(Seen { status, ran: Ran::default(), sight: None, looking: false });
        }
        all.sort_by(|a, b| a.status.policy.cmp(&b.status.policy));
        Ok(all)
    }

    fn seen(&self, name: &str, policy: &Policy) -> Result<Seen, OpsError> {
        let sight = status::recall(&self.board.installation.state_dir, &policy.app.name);
        let ran = Ran::of(self.book.as_ref(), &policy.app.name, self.now)?;
        let ended = match &self.book {
            Some(book) => book.last_end(&policy.app.name)?,
            None => None,
        };
        let looked = sight.as_ref().map(|sight| sight.looked);
        // Both are whole seconds: what ended within the look's own second may not have been seen.
        let fresh = |looked: DateTime<Utc>| looked + STALE > self.now && ended.is_none_or(|ended| ended < looked);
        let looking = !looked.is_some_and(fresh);
        if looking {
            self.board.want(name);
        }
        let status = match &sight {
            Some(sight) => judge(policy, sight, &ran, true, None, self.now),
            None => unseen(policy, &ran, self.now),
        };
        Ok(Seen { status, ran, sight, looking })
    }

    /// The newest runs of a policy, and how many there are.
    pub fn runs(&self, status: &PolicyStatus) -> Result<(Vec<RunRecord>, usize), OpsError> {
        match (&self.book, status.policy.parse()) {
            (Some(book), Ok(policy)) => Ok((book.runs(Some(&policy), None, Some(RUNS))?, book.count(Some(&policy))?)),
            _ => Ok((Vec::new(), 0)),
        }
    }
}
