//! The headers of a repository: verified, in order, with gaps and forks found.
//!
//! Order is by sequence, never by clock. Each sequence must be there as a header or in a prune record; a gap is
//! damage. Two headers of one sequence are a fork: both restorable, neither is `latest`.

use crate::base::ids::{HostName, ObjectId, PolicyName, Sequence, SnapshotId, Tag};
use crate::pipeline::limits;
use crate::repository::format::{Header, HeaderRef, Moved, Note, Outcome, Record};
use crate::repository::headers::{self, HeaderCache};
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::StorageKey;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// One snapshot: its verified header.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub key: StorageKey,
    /// SHA-256 of the header object.
    pub header_id: ObjectId,
    pub header: Header,
    /// The header's tags, and what records added or removed since.
    pub tags: BTreeSet<Tag>,
    pub held: bool,
    /// The refs that count: the header's, until a repack record names others. They say where chunks may lie and what to
    /// keep for them; what a chunk is, only its id says.
    pub refs: ObjectId,
    /// Another header carries the same sequence.
    pub forked: bool,
}

impl Snapshot {
    /// What a verified header says, before any record.
    pub fn of(key: StorageKey, header: Header, header_id: ObjectId) -> Self {
        let (tags, refs) = (header.tags.iter().cloned().collect(), header.refs);
        Self { key, header_id, header, tags, held: false, refs, forked: false }
    }
}

/// Something wrong with a header, or between headers.
#[derive(Debug)]
pub struct ChainProblem {
    pub key: StorageKey,
    pub problem: String,
    /// The snapshot that it costs, where that is known.
    pub snapshot: Option<SnapshotId>,
}

/// A host and one of its policies: sequences count within it.
pub type Line = (HostName, PolicyName);

/// Every snapshot of a repository, and what is wrong.
#[derive(Debug, Default)]
pub struct Chain {
    /// By host and policy, oldest first.
    snapshots: BTreeMap<Line, Vec<Snapshot>>,
    pruned: HashMap<Line, Vec<HeaderRef>>,
    newest_records: HashMap<Line, DateTime<Utc>>,
    pub problems: Vec<ChainProblem>,
}

impl Chain {
    /// Reads and verifies every header and record from the storage.
    pub fn load(repository: &Repository) -> Result<Self, RepositoryError> {
        Self::load_with(repository, None)
    }

    /// The same; what was verified before need not be read again. Damage of what is remembered stays unseen, so whoever
    /// asks for damage, or deletes, calls [`Chain::load`].
    pub fn load_with(repository: &Repository, cache: Option<&HeaderCache>) -> Result<Self, RepositoryError> {
        let mut chain = Chain::default();
        let mut revoked: HashMap<ObjectId, Vec<HeaderRef>> = HashMap::new();
        let verify = |key: &StorageKey, bytes: &[u8]| repository.verify_header(key, bytes);
        headers::read_all(repository, layout::SNAPSHOTS, limits::SIGNED, cache, verify, |key, read| {
            match read {
                Ok(verified) => {
                    if !verified.last_good.is_empty() {
                        revoked.insert(verified.id, verified.last_good);
                    }
                    chain.add(key, verified.value, verified.id);
                }
                Err(e @ RepositoryError::SignersMissing { .. }) => return Err(e),
                // Listed, and gone since: a prune's work, or else a gap.
                Err(RepositoryError::Missing { .. }) => {}
                Err(e) if e.is_integrity() => {
                    let snapshot = layout::parse_header(&key).map(|place| place.id);
                    chain.problems.push(ChainProblem { key, problem: full_text(&e), snapshot });
                }
                Err(e) => return Err(e),
            }
            Ok(())
        })?;
        chain.load_records(repository, cache)?;
        chain.check_revoked(&revoked);
        chain.check_order();
        Ok(chain)
    }

    fn add(&mut self, key: StorageKey, header: Header, header_id: ObjectId) {
        let line = (header.host.clone(), header.policy.clone());
        self.snapshots.entry(line).or_default().push(Snapshot::of(key, header, header_id));
    }

    fn load_records(&mut self, repository: &Repository, cache: Option<&HeaderCache>) -> Result<(), RepositoryError> {
        let mut records: Vec<Record> = Vec::new();
        let verify = |key: &StorageKey, bytes: &[u8]| repository.verify_record(key, bytes).map(|r| (r, Vec::new()));
        headers::read_all(repository, layout::RECORDS, limits::REFS, cache, verify, |key, read| {
            match read {
                Ok(verified) => records.push(verified.value),
                Err(e) if e.is_integrity() => {
                    self.problems.push(ChainProblem { key, problem: full_text(&e), snapshot: None });
                }
                Err(e) => return Err(e),
            }
            Ok(())
        })?;
        // In the order in which they were written: whoever writes a record dates it behind those that are there. (A sort
        // that keeps the order of keys where two have one time all the same.)
        records.sort_by_key(|record| record.time);
        for record in records {
            let line: Line = (record.host, record.policy);
            self.newest_records.insert(line.clone(), record.time);
            match record.note {
                Note::Prune { removed } => self.pruned.entry(line).or_default().extend(removed),
                Note::Repack { moved } => self.repacked(&line, &moved),
                Note::Tag { snapshot, tag } => self.change(&line, &snapshot, |s| {
                    s.tags.insert(tag.clone());
                }),
                Note::Untag { snapshot, tag } => self.change(&line, &snapshot, |s| {
                    s.tags.remove(&tag);
                }),
                Note::Hold { snapshot } => self.change(&line, &snapshot, |s| s.held = true),
                Note::Release { snapshot } => self.change(&line, &snapshot, |s| s.held = false),
            }
        }
        Ok(())
    }

    fn change(&mut self, line: &Line, id: &SnapshotId, change: impl Fn(&mut Snapshot)) {
        let snapshots = self.snapshots.get_mut(line);
        // One id may stand in two headers where somebody forged the second: a hold is for both.
        for snapshot in snapshots.into_iter().flatten().filter(|s| s.header.id == *id) {
            change(snapshot);
        }
    }

    fn repacked(&mut self, line: &Line, moved: &[Moved]) {
        let refs: HashMap<ObjectId, ObjectId> = moved.iter().map(|moved| (moved.header, moved.refs)).collect();
        for snapshot in self.snapshots.get_mut(line).into_iter().flatten() {
            if let Some(refs) = refs.get(&snapshot.header_id) {
                snapshot.refs = *refs;
            }
        }
    }

    /// Of what a revoked key signed, only that is good which the headers that its revocation names lead down to, hash by
    /// hash: whoever has the key can sign another header for any sequence below them. `revoked` has the named ones for
    /// each such header.
    fn check_revoked(&mut self, revoked: &HashMap<ObjectId, Vec<HeaderRef>>) {
        if revoked.is_empty() {
            return;
        }
        for (line, snapshots) in &mut self.snapshots {
            let removed = self.pruned.get(line).map_or(&[][..], Vec::as_slice);
            let mut links: HashMap<ObjectId, Option<ObjectId>> =
                removed.iter().map(|removed| (removed.header, removed.previous)).collect();
            links.extend(snapshots.iter().map(|s| (s.header_id, s.header.previous)));
            let mut histories: HashMap<ObjectId, History> = HashMap::new();
            for good in snapshots.iter().filter_map(|s| revoked.get(&s.header_id)).flatten() {
                histories.entry(good.header).or_insert_with(|| History::of(good, &links));
            }
            snapshots.retain(|snapshot| {
                let Some(named) = revoked.get(&snapshot.header_id) else { return true };
                let histories = || named.iter().filter_map(|good| histories.get(&good.header));
                if histories().any(|history| history.headers.contains(&snapshot.header_id)) {
                    return true;
                }
                // Where something between is gone, it may be true all the same: it stays, and is told.
                let is_open = histories().any(|history| snapshot.header.sequence < history.lowest);
                let problem = if is_open {
                    "its signer has been revoked, and what would link it to the last good one is gone: it may be forged"
                } else {
                    "its signer has been revoked, and the last good one does not lead down to it: it is forged"
                };
                self.problems.push(ChainProblem {
                    key: snapshot.key.clone(),
                    problem: problem.to_owned(),
                    snapshot: Some(snapshot.header.id.clone()),
                });
                is_open
            });
        }
    }

    /// Sorts each line and looks for gaps, forks and headers that do not name the one before them.
    fn check_order(&mut self) {
        let damaged: BTreeSet<(Line, Sequence)> = self
            .problems
            .iter()
            .filter_map(|p| layout::parse_header(&p.key))
            .map(|place| ((place.host, place.policy), place.sequence))
            .collect();
        for (line, snapshots) in &mut self.snapshots {
            snapshots.sort_by(|a, b| (a.header.sequence, &a.header.id).cmp(&(b.header.sequence, &b.header.id)));
            let mut hashes: BTreeMap<Sequence, BTreeSet<ObjectId>> = BTreeMap::new();
            for removed in self.pruned.get(line).into_iter().flatten() {
                hashes.entry(removed.sequence).or_default().insert(removed.header);
            }
            for snapshot in snapshots.iter() {
                hashes.entry(snapshot.header.sequence).or_default().insert(snapshot.header_id);
            }
            let mut counts: HashMap<Sequence, usize> = HashMap::new();
            snapshots.iter().for_each(|s| *counts.entry(s.header.sequence).or_default() += 1);
            for snapshot in snapshots.iter_mut() {
                let header = &snapshot.header;
                let mut report = |problem: String| {
                    self.problems.push(ChainProblem {
                        key: snapshot.key.clone(),
                        problem,
                        snapshot: Some(header.id.clone()),
                    });
                };
                if counts[&header.sequence] > 1 {
                    snapshot.forked = true;
                    report(format!("two snapshots carry sequence {}: the history has been forked", header.sequence));
                }
                let before = Sequence(header.sequence.0.wrapping_sub(1));
                match (&header.previous, hashes.get(&before)) {
                    (Some(previous), Some(known)) if !known.contains(previous) => {
                        report(format!("it follows another snapshot {before} than the one that is there"));
                    }
                    (None, Some(_)) => report(format!("it does not name the snapshot {before} before it")),
                    _ => {}
                }
            }
            let newest = snapshots.last().map_or(Sequence(0), |s| s.header.sequence);
            let damaged = damaged.iter().filter(|(of, _)| of == line).map(|(_, sequence)| *sequence);
            let there: BTreeSet<Sequence> = hashes.keys().copied().chain(damaged).collect();
            self.problems.extend(gaps(line, &there, newest));
        }
    }

    /// Whether a prune record removed this header: then what it needs may be gone, and that is no damage.
    pub fn was_pruned(&self, snapshot: &Snapshot) -> bool {
        let line = (snapshot.header.host.clone(), snapshot.header.policy.clone());
        self.pruned.get(&line).into_iter().flatten().any(|removed| removed.header == snapshot.header_id)
    }

    /// Whether a prune record removed the header of this hash.
    pub fn is_removed(&self, header: &ObjectId) -> bool {
        self.pruned.values().flatten().any(|removed| removed.header == *header)
    }

    /// What prune records say was removed of a line.
    pub fn pruned(&self, line: &Line) -> &[HeaderRef] {
        self.pruned.get(line).map_or(&[], Vec::as_slice)
    }

    /// The time of the newest record of a host and policy: one that is written now must be later.
    pub fn newest_record(&self, host: &HostName, policy: &PolicyName) -> Option<DateTime<Utc>> {
        self.newest_records.get(&(host.clone(), policy.clone())).copied()
    }

    /// Every snapshot, by host and policy, oldest first.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Snapshot> {
        self.snapshots.values().flatten()
    }

    /// The snapshots of one host and policy, oldest first.
    pub fn line(&self, host: &HostName, policy: &PolicyName) -> &[Snapshot] {
        self.snapshots.get(&(host.clone(), policy.clone())).map_or(&[], Vec::as_slice)
    }

    /// Every host and policy that has a snapshot, or had one.
    pub fn lines(&self) -> BTreeSet<Line> {
        self.snapshots.keys().chain(self.pruned.keys()).cloned().collect()
    }

    /// Whether a header of this hash and sequence is there, or was pruned.
    pub fn knows(&self, sequence: Sequence, header: &ObjectId) -> bool {
        let pruned = self.pruned.values().flatten().any(|r| r.sequence == sequence && r.header == *header);
        pruned || self.all().any(|s| s.header.sequence == sequence && s.header_id == *header)
    }

    /// Whether a header of this sequence is there and damaged: its own problem says so, and it is no sign of a
    /// repository that went back.
    pub fn is_damaged(&self, host: &HostName, policy: &PolicyName, sequence: Sequence) -> bool {
        let is_it =
            |place: layout::HeaderKey| place.host == *host && place.policy == *policy && place.sequence == sequence;
        self.problems.iter().any(|p| layout::parse_header(&p.key).is_some_and(is_it))
    }

    /// The highest sequence of a line that is there or was pruned, and the header hash where it is one alone.
    pub fn head(&self, host: &HostName, policy: &PolicyName) -> Option<(Sequence, Option<ObjectId>)> {
        let line = (host.clone(), policy.clone());
        let there = self.snapshots.get(&line).into_iter().flatten().map(|s| (s.header.sequence, s.header_id));
        let pruned = self.pruned.get(&line).into_iter().flatten().map(|r| (r.sequence, r.header));
        let all: BTreeSet<_> = there.chain(pruned).collect();
        let highest = all.last()?.0;
        let mut hashes = all.iter().filter(|(s, _)| *s == highest);
        let first = hashes.next().map(|(_, hash)| *hash);
        Some((highest, if hashes.next().is_some() { None } else { first }))
    }
}

/// What a header leads down to.
struct History {
    headers: HashSet<ObjectId>,
    /// The lowest sequence that it reaches.
    lowest: Sequence,
}

impl History {
    fn of(good: &HeaderRef, links: &HashMap<ObjectId, Option<ObjectId>>) -> Self {
        let mut history = Self { headers: HashSet::from([good.header]), lowest: good.sequence };
        let mut at = good.header;
        while let Some(Some(previous)) = links.get(&at)
            && history.headers.insert(*previous)
        {
            at = *previous;
            history.lowest = Sequence(history.lowest.0.saturating_sub(1));
        }
        history
    }
}

/// What is missing below the newest snapshot of a line, each run of it once: a signer who skips a billion sequences
/// shall not make a billion problems.
fn gaps((host, policy): &Line, there: &BTreeSet<Sequence>, newest: Sequence) -> Vec<ChainProblem> {
    let mut problems = Vec::new();
    let mut expected = 1;
    for at in there.iter().map(|s| s.0).take_while(|at| *at <= newest.0) {
        if at > expected {
            let what = match at - 1 {
                last if last == expected => format!("snapshot {expected} of {host}/{policy} is gone"),
                last => format!("snapshots {expected} to {last} of {host}/{policy} are gone"),
            };
            let problem = format!("{what}, and no prune record explains it");
            // The name of what is gone is not known; the folder and the sequence are.
            let key = layout::header_prefix(host, policy, Sequence(expected));
            problems.push(ChainProblem { key, problem, snapshot: None });
        }
        expected = at.saturating_add(1);
    }
    problems
}

/// An error and its causes in one line.
pub fn full_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What this host saw before against what is there now: an alarm when the repository has gone back.
pub fn rolled_back(
    remembered: Option<(Sequence, ObjectId)>,
    found: Option<(Sequence, Option<ObjectId>)>,
) -> Option<String> {
    let (seen, hash) = remembered?;
    match found {
        Some((there, _)) if there > seen => None,
        Some((there, Some(now))) if there == seen && now == hash => None,
        Some((there, None)) if there == seen => None,
        Some((there, _)) if there == seen => {
            Some(format!("snapshot {seen} in the repository is not the one that this host wrote"))
        }
        Some((there, _)) => Some(format!(
            "the repository has been rolled back: this host has seen snapshot {seen}, the newest one there is {there}"
        )),
        None => Some(format!("the repository has been rolled back: this host has seen snapshot {seen}, none is there")),
    }
}

/// How a person names a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// `latest` is 0, `latest~1` is 1.
    Latest(usize),
    Text(String),
}

impl Named {
    /// Tells `latest~N` from everything else.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("latest") {
            Some("") => Named::Latest(0),
            Some(rest) => match rest.strip_prefix('~').and_then(|n| n.parse().ok()) {
                Some(n) => Named::Latest(n),
                None => Named::Text(text.to_owned()),
            },
            None => Named::Text(text.to_owned()),
        }
    }
}

/// Why a name does not lead to one snapshot.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("there is no snapshot yet")]
    Empty,
    #[error("no snapshot {name:?}")]
    NotFound { name: String, nearest: Vec<String> },
    #[error("{name:?} could be {}", candidates.join(", "))]
    Ambiguous { name: String, candidates: Vec<String> },
    #[error("snapshot {sequence} has been forked: {} carry it", candidates.join(" and "))]
    Forked { sequence: Sequence, candidates: Vec<String> },
}

/// Finds the snapshot that a person means: id, unique prefix or 8-digit end of it, tag, `latest`, `latest~1`, or a
/// time (the newest one at or before it). `snapshots` are oldest first; forked ones are never `latest`.
pub fn resolve<'a>(
    snapshots: &[&'a Snapshot],
    name: &str,
    time: Option<DateTime<Utc>>,
) -> Result<&'a Snapshot, NameError> {
    if snapshots.is_empty() {
        return Err(NameError::Empty);
    }
    let ids = |list: &[&Snapshot]| list.iter().map(|s| s.header.id.to_string()).collect::<Vec<_>>();
    let not_found = || {
        let tags = snapshots.iter().rev().flat_map(|s| s.tags.iter().map(Tag::to_string));
        let nearest = tags.chain(snapshots.iter().rev().map(|s| s.header.id.to_string())).take(5).collect();
        NameError::NotFound { name: name.to_owned(), nearest }
    };
    if let Named::Latest(back) = Named::parse(name) {
        let newest = snapshots.iter().rev().map(|s| s.header.sequence).next();
        if back == 0
            && let Some(sequence) = newest
        {
            let same: Vec<_> =
                snapshots.iter().copied().filter(|s| s.header.sequence == sequence && s.forked).collect();
            if !same.is_empty() {
                return Err(NameError::Forked { sequence, candidates: ids(&same) });
            }
        }
        return snapshots.iter().rev().filter(|s| !s.forked).nth(back).copied().ok_or_else(not_found);
    }
    let tagged: Vec<_> = snapshots.iter().copied().filter(|s| s.tags.iter().any(|t| t.as_str() == name)).collect();
    if let Some(newest) = tagged.iter().rev().find(|s| s.header.outcome != Outcome::Partial).or(tagged.last()) {
        return Ok(newest);
    }
    let by_id: Vec<_> = snapshots
        .iter()
        .copied()
        .filter(|s| {
            let id = s.header.id.as_str();
            id.starts_with(name) || (name.len() == 8 && id.ends_with(name))
        })
        .collect();
    match by_id.as_slice() {
        [one] => return Ok(one),
        [] => {}
        many if time.is_none() => return Err(NameError::Ambiguous { name: name.to_owned(), candidates: ids(many) }),
        _ => {}
    }
    let time = time.ok_or_else(not_found)?;
    snapshots.iter().rev().find(|s| s.header.time <= time).copied().ok_or_else(not_found)
}
