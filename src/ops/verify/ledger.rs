//! What was found: one finding per damaged object, with what it costs.

use crate::base::ids::{SnapshotId, SourceName};
use crate::repository::RepositoryError;
use crate::repository::chain::full_text;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Something stored that is damaged, missing or forged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The object's key; for what is wrong between objects, the beginning of one.
    pub object: String,
    pub problem: String,
    /// The snapshots that need it.
    pub snapshots: Vec<SnapshotId>,
    /// The sources of those snapshots that cannot be restored without it, where the identity was there to tell.
    pub sources: Vec<SourceName>,
}

/// Something odd that harms nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    pub object: String,
    pub text: String,
}

#[derive(Default)]
struct Entry {
    problems: Vec<String>,
    snapshots: BTreeSet<SnapshotId>,
    sources: BTreeSet<SourceName>,
}

/// So many are named; more than that are counted. A signer gone bad could name millions of objects that are not there.
const NAMED: usize = 10_000;

/// Findings being gathered.
#[derive(Default)]
pub(super) struct Ledger {
    findings: BTreeMap<String, Entry>,
    notes: Vec<Note>,
    unnamed: usize,
}

impl Ledger {
    /// A problem of an object. What is found again by a closer look is said once.
    pub fn find(&mut self, object: &str, problem: &str) {
        if self.findings.len() >= NAMED && !self.findings.contains_key(object) {
            self.unnamed += 1;
            return;
        }
        let entry = self.findings.entry(object.to_owned()).or_default();
        if !entry.problems.iter().any(|known| known == problem) {
            entry.problems.push(problem.to_owned());
        }
    }

    /// A snapshot, and a source of it, that a damaged object costs. Objects without a finding cost nothing.
    pub fn cost(&mut self, object: &str, snapshot: &SnapshotId, source: Option<&SourceName>) {
        if let Some(entry) = self.findings.get_mut(object) {
            entry.snapshots.insert(snapshot.clone());
            entry.sources.extend(source.cloned());
        }
    }

    pub fn note(&mut self, object: &str, text: &str) {
        if self.notes.len() >= NAMED {
            return;
        }
        self.notes.push(Note { object: object.to_owned(), text: text.to_owned() });
    }

    pub fn has(&self, object: &str) -> bool {
        self.findings.contains_key(object)
    }

    /// The keys of everything found so far.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        self.findings.keys().map(String::as_str)
    }

    /// The findings, how many more there are, and the notes.
    pub fn finish(self) -> (Vec<Finding>, usize, Vec<Note>) {
        let finding = |(object, entry): (String, Entry)| Finding {
            object,
            problem: entry.problems.join("; "),
            snapshots: entry.snapshots.into_iter().collect(),
            sources: entry.sources.into_iter().collect(),
        };
        (self.findings.into_iter().map(finding).collect(), self.unnamed, self.notes)
    }
}

/// An error's text without the name of the object, which the finding has anyway.
pub(super) fn problem_text(error: &RepositoryError) -> String {
    match error {
        RepositoryError::Damaged { problem, .. } => problem.clone(),
        RepositoryError::DamagedBy { source, .. } => full_text(source),
        RepositoryError::Missing { .. } => "it is missing".to_owned(),
        other => full_text(other),
    }
}
