//! One capture of one or more plans into the two streams: what the sources below have in common.

use super::docker::{DockerView, Trees, capture_through_docker};
use super::notes::Notes;
use super::owners::Owners;
use super::plan::Plan;
use super::stream::{Observer, Totals, TreeStream};
use super::view::{Host, View};
use super::walk::{Found, Links, Walk};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::base::threads;
use crate::policy::model::{App, Via};
use crate::sources::{Capture, SourceError};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Entries that the walk hands over together, and how many such handfuls it may be ahead: a megabyte or two.
const TOGETHER: usize = 64;
const AHEAD: usize = 64;

/// Nobody takes what the walk finds: whoever did failed, and its error is the one that counts.
fn stopped() -> SourceError {
    SourceError::problem("the walk was stopped")
}

/// How plans are walked.
pub struct Tree<'a> {
    pub source: &'a SourceName,
    /// The longest that a capture may take.
    pub limit: Duration,
    pub owners: &'a Owners,
    pub one_file_system: bool,
    /// Paths on disk that are left out with all that is below.
    pub never: &'a HashSet<PathBuf>,
}

impl Tree<'_> {
    /// Walks a plan into streams that are open.
    pub fn walk(
        &self,
        cx: &Capture<'_>,
        plan: &Plan,
        links: &mut Links,
        stream: &mut TreeStream<'_>,
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<(), SourceError> {
        // The walk notes what it sees, and so does the stream that it feeds.
        let mut walk_notes = Notes::default();
        let walk = Walk {
            plan,
            owners: self.owners,
            links,
            notes: &mut walk_notes,
            cancel: cx.cancel,
            one_file_system: self.one_file_system,
            never: self.never,
        };
        // The walk goes ahead while what it found is looked up or read; without a thread it goes step by step with it.
        let (sender, receiver) = sync_channel::<Vec<Found>>(AHEAD);
        let (walked, pushed) = std::thread::scope(|scope| {
            let (hand, handed) = sync_channel::<Walk<'_>>(1);
            let walking = threads::begin_scoped(scope, move || {
                let Ok(walk) = handed.recv() else { return Ok(()) };
                let mut some = Vec::with_capacity(TOGETHER);
                walk.run(&mut |found| {
                    some.push(found);
                    if some.len() < TOGETHER {
                        return Ok(());
                    }
                    let full = std::mem::replace(&mut some, Vec::with_capacity(TOGETHER));
                    sender.send(full).map_err(|_| stopped())
                })?;
                sender.send(some).map_err(|_| stopped())
            });
            let mut push = |found| stream.push(plan, found, notes, observer);
            let Ok(walking) = walking else { return (walk.run(&mut push), Ok(())) };
            // It waits for it.
            let _ = hand.send(walk);
            // The receiver is dropped with the first failure, which ends the walk.
            let pushed = receiver.into_iter().flatten().try_for_each(push);
            (walking.join().unwrap_or_else(|_| Err(SourceError::problem("the thread of the walk broke"))), pushed)
        });
        notes.absorb(walk_notes);
        pushed?;
        walked?;
        stream.flush(plan, notes, observer)
    }

    /// Captures one plan from begin to end.
    pub fn capture(
        &self,
        cx: &Capture<'_>,
        plan: &Plan,
        remember: bool,
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<Totals, SourceError> {
        let mut stream = TreeStream::begin(cx, self.source, self.limit, remember)?;
        self.walk(cx, plan, &mut Links::default(), &mut stream, notes, observer)?;
        stream.finish()
    }
}

/// Paths that are left out, also where they really lie.
pub fn never(paths: impl IntoIterator<Item = PathBuf>) -> HashSet<PathBuf> {
    paths.into_iter().flat_map(|p| [p.canonicalize().ok(), Some(p)]).flatten().collect()
}

/// Names the paths of a plan, after a look at them.
pub type Prepare<'p> = &'p dyn Fn(&dyn View, &mut Plan, &mut Notes) -> Result<(), SourceError>;

/// A small tree whose files mean something to its source: nothing is remembered, so that what is said of a file is
/// said of the bytes that were captured.
pub struct KnownTree<'a> {
    pub source: &'a SourceName,
    /// The longest that a capture may take.
    pub limit: Duration,
    pub app: &'a App,
    pub via: Via,
}

impl KnownTree<'_> {
    /// Captures what `prepare` names. `observer` sees every file below a MiB.
    pub fn capture(
        &self,
        cx: &Capture<'_>,
        prepare: Prepare<'_>,
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<(Totals, Vec<PathBuf>), SourceError> {
        let mut plan = Plan::host(&[]);
        match self.via {
            Via::Direct => {
                prepare(&Host, &mut plan, notes)?;
                let owners = Owners::host();
                let never = HashSet::new();
                let tree = Tree {
                    source: self.source,
                    limit: self.limit,
                    owners: &owners,
                    one_file_system: false,
                    never: &never,
                };
                let totals = tree.capture(cx, &plan, false, notes, observer)?;
                Ok((totals, plan.named))
            }
            Via::Docker => {
                let trees = Trees::new(self.app, cx.cancel);
                prepare(&DockerView::new(&trees, cx.cancel), &mut plan, notes)?;
                let paths: Vec<String> = plan.taken().iter().filter_map(|p| p.to_str().map(str::to_owned)).collect();
                capture_through_docker(cx, self.source, self.limit, &trees, &paths, &[], notes, observer)
            }
        }
    }

    /// Whether what `prepare` names can be found now.
    pub fn probe(&self, cancel: &Cancel, prepare: Prepare<'_>) -> Result<(), SourceError> {
        cancel.check()?;
        let (mut plan, mut notes) = (Plan::host(&[]), Notes::default());
        match self.via {
            Via::Direct => prepare(&Host, &mut plan, &mut notes),
            Via::Docker => {
                let trees = Trees::new(self.app, cancel);
                prepare(&DockerView::new(&trees, cancel), &mut plan, &mut notes)
            }
        }
    }
}
