//! What an extraction did, and every way in which the result differs from the archive.

use crate::sources::files::entry::{Kind, display};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// More differences of one sort than this are counted, not listed: a million owners hide no entry that is missing.
const LISTED: usize = 1_000;

/// How much a difference costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The entry is there, but not all of its metadata.
    Metadata,
    /// The entry is not there: this system does not hold such a thing, or something else stands in its place.
    Missing,
    /// The entry is not there because an honest archive does not have it.
    Refused,
}

/// What of an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aspect {
    /// The entry as a whole.
    Entry,
    /// It is a copy, or is not there.
    HardLink,
    /// A device or FIFO.
    SpecialFile,
    Owner,
    Mode,
    /// Setuid and setgid.
    SpecialBits,
    Acl,
    Capabilities,
    Attribute,
    Time,
}

impl Aspect {
    /// Of an entry that is not there.
    pub(super) fn of(kind: &Kind) -> Self {
        match kind {
            Kind::File | Kind::Dir | Kind::Symlink(_) => Aspect::Entry,
            Kind::Hardlink(_) => Aspect::HardLink,
            Kind::Fifo | Kind::CharDevice(..) | Kind::BlockDevice(..) => Aspect::SpecialFile,
        }
    }

    /// Of an extended attribute.
    pub(in crate::sources) fn of_attribute(name: &[u8]) -> Self {
        match name {
            b"system.posix_acl_access" | b"system.posix_acl_default" => Aspect::Acl,
            b"security.capability" => Aspect::Capabilities,
            _ => Aspect::Attribute,
        }
    }
}

/// One way in which the result differs from the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub path: String,
    /// A lower-case fragment.
    pub what: String,
    pub aspect: Aspect,
    pub severity: Severity,
}

/// How many differences of one sort there are, the unlisted ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub aspect: Aspect,
    pub severity: Severity,
    pub count: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, many) = match self.aspect {
            Aspect::Entry => ("entry", "entries"),
            Aspect::HardLink => ("hard link", "hard links"),
            Aspect::SpecialFile => ("special file", "special files"),
            Aspect::Owner => ("owner", "owners"),
            Aspect::Mode => ("mode", "modes"),
            Aspect::SpecialBits => ("setuid or setgid", "setuid or setgid"),
            Aspect::Acl => ("ACL", "ACLs"),
            Aspect::Capabilities => ("set of capabilities", "sets of capabilities"),
            Aspect::Attribute => ("attribute", "attributes"),
            Aspect::Time => ("time", "times"),
        };
        let how = match self.severity {
            Severity::Metadata => "",
            Severity::Missing => " missing",
            Severity::Refused => " refused",
        };
        write!(f, "{} {}{how}", self.count, if self.count == 1 { one } else { many })
    }
}

/// What an extraction did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub entries: u64,
    /// Bytes of content, holes included.
    pub bytes: u64,
    pub differences: Vec<Difference>,
    /// Differences that are not listed because there were too many of their sort.
    pub unlisted: u64,
    /// All of them, by sort.
    pub summary: Vec<Tally>,
    /// The worst of all differences, the unlisted ones included.
    pub worst: Option<Severity>,
}

impl Report {
    /// Puts reports about single entries where they belong: each behind so many differences of this one.
    pub(super) fn merge(self, others: impl Iterator<Item = (usize, Report)>) -> Report {
        let mut own = self.differences.into_iter().enumerate().peekable();
        let mut whole = Report { differences: Vec::new(), ..self };
        let mut listed = BTreeMap::new();
        for (before, other) in others {
            whole.add_counts(&other);
            while let Some((_, difference)) = own.next_if(|(at, _)| *at < before) {
                whole.list(difference, &mut listed);
            }
            other.differences.into_iter().for_each(|difference| whole.list(difference, &mut listed));
        }
        own.for_each(|(_, difference)| whole.list(difference, &mut listed));
        whole
    }

    /// Both of them, as one.
    pub(in crate::sources) fn and(self, other: Report) -> Report {
        self.merge(std::iter::once((usize::MAX, other)))
    }

    /// Adds everything of another but what it lists.
    fn add_counts(&mut self, other: &Report) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.unlisted += other.unlisted;
        self.worst = self.worst.max(other.worst);
        for tally in &other.summary {
            self.count(tally.severity, tally.aspect, tally.count);
        }
    }

    fn list(&mut self, difference: Difference, listed: &mut BTreeMap<(Severity, Aspect), usize>) {
        let of_its_sort = listed.entry((difference.severity, difference.aspect)).or_insert(0);
        *of_its_sort += 1;
        if *of_its_sort <= LISTED { self.differences.push(difference) } else { self.unlisted += 1 }
    }

    /// Counts so many more of a sort; how many there are.
    fn count(&mut self, severity: Severity, aspect: Aspect, more: u64) -> u64 {
        let sort = |t: &Tally| (t.severity, t.aspect);
        let at = match self.summary.binary_search_by_key(&(severity, aspect), sort) {
            Ok(at) => at,
            Err(at) => {
                self.summary.insert(at, Tally { aspect, severity, count: 0 });
                at
            }
        };
        self.summary[at].count += more;
        self.summary[at].count
    }

    pub(in crate::sources) fn add(&mut self, severity: Severity, aspect: Aspect, path: &[u8], what: impl Into<String>) {
        self.worst = self.worst.max(Some(severity));
        if self.count(severity, aspect, 1) <= LISTED as u64 {
            self.differences.push(Difference { path: display(path), what: what.into(), aspect, severity });
        } else {
            self.unlisted += 1;
        }
    }
}

/// Reports about single entries, as they come in: a million of them take the room of those that will be listed.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// Of those that list nothing (any more).
    counts: Report,
    listing: Vec<(Turn, Report)>,
}

/// When something was handed over: how many differences had been reported, and the number of its turn.
pub(super) type Turn = (usize, u64);

impl Outcomes {
    pub fn add(&mut self, turn: Turn, report: Report) {
        if report.differences.is_empty() {
            return self.counts.add_counts(&report);
        }
        self.listing.push((turn, report));
        if self.listing.len() >= 8 * LISTED {
            self.compact();
        }
    }

    /// Leaves out what is not among the first of its sort: what comes in later pushes it further back.
    fn compact(&mut self) {
        let mut listed: BTreeMap<_, usize> = BTreeMap::new();
        let mut all = std::mem::take(&mut self.listing);
        all.sort_by_key(|(turn, _)| *turn);
        for (turn, mut report) in all {
            let before = report.differences.len();
            report.differences.retain(|difference| {
                let of_its_sort = listed.entry((difference.severity, difference.aspect)).or_default();
                *of_its_sort += 1;
                *of_its_sort <= LISTED
            });
            report.unlisted += (before - report.differences.len()) as u64;
            if report.differences.is_empty() {
                self.counts.add_counts(&report);
            } else {
                self.listing.push((turn, report));
            }
        }
    }

    /// All of them in their order, each behind so many differences of `own`.
    pub fn merge(mut self, mut own: Report) -> Report {
        own.add_counts(&self.counts);
        self.listing.sort_by_key(|(turn, _)| *turn);
        own.merge(self.listing.into_iter().map(|((before, _), report)| (before, report)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In whatever order they come in, the same is listed as if all of them had been kept.
    #[test]
    fn outcomes_take_little_room_and_lose_nothing() {
        let one = |n: u64| {
            let mut report = Report { entries: 1, bytes: 10, ..Report::default() };
            if !n.is_multiple_of(3) {
                report.add(Severity::Metadata, Aspect::Owner, format!("{n:06}").as_bytes(), "owner");
            }
            if n % 1000 == 1 {
                report.add(Severity::Metadata, Aspect::Mode, format!("{n:06}").as_bytes(), "mode");
            }
            report
        };
        let mut outcomes = Outcomes::default();
        let mut peak = 0;
        // 7919 is no divisor of it: every turn once, far from their order.
        for n in (0..40_000).map(|n| n * 7919 % 40_000) {
            outcomes.add((0, n), one(n));
            peak = peak.max(outcomes.listing.len());
        }
        assert!(peak <= 8 * LISTED, "{peak}");
        let whole = outcomes.merge(Report::default());
        let naive = Report::default().merge((0..40_000).map(|n| (0, one(n))));
        assert_eq!(whole, naive);
        assert_eq!((whole.entries, whole.differences.len()), (40_000, LISTED + 40));
    }

    #[test]
    fn many_differences_of_one_sort_hide_no_other() {
        let mut report = Report::default();
        for n in 0..5_000 {
            report.add(Severity::Metadata, Aspect::Owner, n.to_string().as_bytes(), "owner 1:1 not restored");
        }
        report.add(Severity::Refused, Aspect::Entry, b"..", "a path with ..");
        report.add(Severity::Metadata, Aspect::Acl, b"a", "attribute");
        let said: Vec<String> = report.summary.iter().map(Tally::to_string).collect();
        assert_eq!(said, ["5000 owners", "1 ACL", "1 entry refused"]);
        assert_eq!((report.differences.len(), report.unlisted), (LISTED + 2, 4_000));
        assert_eq!(report.worst, Some(Severity::Refused));
    }
}
