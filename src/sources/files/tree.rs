//! One capture of one or more plans into the two streams: what the sources below have in common.

use super::notes::Notes;
use super::owners::Owners;
use super::plan::Plan;
use super::stream::{Observer, Totals, TreeStream};
use super::walk::{Links, Walk};
use crate::base::ids::SourceName;
use crate::sources::{Capture, SourceError};
use std::collections::HashSet;
use std::path::PathBuf;

/// How plans are walked.
pub struct Tree<'a> {
    pub source: &'a SourceName,
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
        let walked = walk.run(&mut |found| stream.push(plan, found, notes, observer));
        notes.absorb(walk_notes);
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
        let mut stream = TreeStream::begin(cx, self.source, remember)?;
        self.walk(cx, plan, &mut Links::default(), &mut stream, notes, observer)?;
        stream.finish()
    }
}
