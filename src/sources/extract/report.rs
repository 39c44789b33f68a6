//! What an extraction did, and every way in which the result differs from the archive.

use crate::sources::files::entry::display;

/// More differences than this are counted, not listed.
const LISTED: usize = 10_000;

/// How much a difference costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The entry is there, but not all of its metadata.
    Metadata,
    /// The entry is not there: this system does not hold such a thing, or something else stands in its place.
    Missing,
    /// The entry is not there because an honest archive does not have it.
    Refused,
}

/// One way in which the result differs from the archive.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    pub path: String,
    /// A lower-case fragment.
    pub what: String,
    pub severity: Severity,
}

/// What an extraction did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    pub entries: u64,
    /// Bytes of content, holes included.
    pub bytes: u64,
    pub differences: Vec<Difference>,
    /// Differences that are not listed because there were too many.
    pub unlisted: u64,
    /// The worst of all differences, the unlisted ones included.
    pub worst: Option<Severity>,
}

impl Report {
    /// Puts reports about single entries where they belong: each behind so many differences of this one.
    pub(super) fn merge(self, others: impl Iterator<Item = (usize, Report)>) -> Report {
        let Report { entries, bytes, differences, unlisted, worst } = self;
        let mut whole = Report { entries, bytes, differences: Vec::new(), unlisted, worst };
        let mut own = differences.into_iter().enumerate().peekable();
        for (before, other) in others {
            whole.entries += other.entries;
            whole.bytes += other.bytes;
            whole.unlisted += other.unlisted;
            whole.worst = whole.worst.max(other.worst);
            while let Some((_, difference)) = own.next_if(|(at, _)| *at < before) {
                whole.take(difference);
            }
            other.differences.into_iter().for_each(|difference| whole.take(difference));
        }
        own.for_each(|(_, difference)| whole.take(difference));
        whole
    }

    fn take(&mut self, difference: Difference) {
        if self.differences.len() < LISTED { self.differences.push(difference) } else { self.unlisted += 1 }
    }

    pub(super) fn add(&mut self, severity: Severity, path: &[u8], what: impl Into<String>) {
        self.worst = self.worst.max(Some(severity));
        if self.differences.len() < LISTED {
            self.differences.push(Difference { path: display(path), what: what.into(), severity });
        } else {
            self.unlisted += 1;
        }
    }
}
