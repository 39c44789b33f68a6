//! What records say that a key has signed, so that it is said again by somebody who is still believed.
//!
//! Records can say anything of anything, so no more of them is taken over than is needed or sure: what hashes lead down to; what
//! was in the storage before the theft; moved chunks where the header's own archives are gone. Where two records disagree on
//! what a removed header named, or on where moved chunks are, the one that was in the storage first is right: names and times
//! inside are the signer's word. Where nobody knows which are a thief's, none of the key's takes a hold or a tag away.

use crate::base::ids::{ObjectId, Sequence, SnapshotId, Tag};
use crate::ops::OpsError;
use crate::pipeline::limits;
use crate::pipeline::sign::{self, Namespace, PublicKey};
use crate::repository::chain::{Chain, Line, Snapshot};
use crate::repository::format::{HeaderRef, Moved, Note, Record};
use crate::repository::reader::load_refs;
use crate::repository::{Repository, RepositoryError, garbage, layout, parallel};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Headers in one record.
const HEADERS: usize = 1000;

/// A record that is believed until the key is revoked.
pub(super) struct Said {
    record: Record,
    /// The key has signed it.
    own: bool,
    /// And it came after the theft, so nothing that it says is believed which anything else can tell.
    late: bool,
}

/// Every record, by the storage's clock the oldest first; what the key has signed and was not there `before` is late.
pub(super) fn said(
    repository: &Repository,
    key: &PublicKey,
    before: Option<DateTime<Utc>>,
) -> Result<Vec<Said>, OpsError> {
    let mut listed = repository.storage().list(layout::RECORDS)?;
    listed.sort_by_key(|object| object.modified);
    let read = parallel::at_once(&listed, |object| {
        let bytes = repository.get(&object.key, limits::REFS)?;
        let own = sign::open(&bytes, Namespace::Record, std::slice::from_ref(key)).is_ok();
        let late = own && before.is_some_and(|before| object.modified >= before);
        Ok::<Said, RepositoryError>(Said { record: repository.verify_record(&object.key, &bytes)?, own, late })
    });
    let mut said = Vec::new();
    for read in read {
        match read {
            Ok(one) => said.push(one),
            // It counts for nothing as it is.
            Err(e) if e.is_integrity() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(said)
}

/// For each host and policy the time of the newest record that somebody else has signed.
pub(super) fn newest_of_others(said: &[Said]) -> HashMap<Line, DateTime<Utc>> {
    let mut newest: HashMap<Line, DateTime<Utc>> = HashMap::new();
    for Said { record, .. } in said.iter().filter(|one| !one.own) {
        let line = (record.host.clone(), record.policy.clone());
        newest.entry(line).and_modify(|time| *time = record.time.max(*time)).or_insert(record.time);
    }
    newest
}

/// The length of everything that refs may name; nothing where the key has moved nothing.
pub(super) fn stored(repository: &Repository, said: &[Said]) -> Result<HashMap<ObjectId, u64>, OpsError> {
    if !said.iter().any(|one| one.own && matches!(one.record.note, Note::Repack { .. })) {
        return Ok(HashMap::new());
    }
    Ok(garbage::stored(repository)?.into_iter().map(|object| (object.id, object.length)).collect())
}

/// One host's and policy's snapshots and records, as they are before the key is revoked.
pub(super) struct Again<'a> {
    there: &'a [Snapshot],
    /// The headers that the key has signed.
    signed: &'a HashSet<ObjectId>,
    last: Option<&'a Snapshot>,
    /// The oldest in the storage first.
    said: Vec<&'a Said>,
    /// In the order in which they count.
    by_time: Vec<&'a Said>,
    /// The late ones, in none of the two above.
    late: Vec<&'a Said>,
    /// What each header names as the one before it; of one that is gone, a record says it.
    links: HashMap<ObjectId, Option<ObjectId>>,
    /// What the last good one leads down to, and how far.
    good: HashSet<ObjectId>,
    lowest: Sequence,
}

impl<'a> Again<'a> {
    pub fn new(
        chain: &'a Chain,
        line: &Line,
        signed: &'a HashSet<ObjectId>,
        said: &'a [Said],
        last: Option<&'a Snapshot>,
    ) -> Self {
        let there = chain.line(&line.0, &line.1);
        let of_line = |one: &&Said| one.record.host == line.0 && one.record.policy == line.1;
        let (late, said): (Vec<&Said>, Vec<&Said>) = said.iter().filter(of_line).partition(|one| one.late);
        let mut by_time = said.clone();
        by_time.sort_by_key(|one| one.record.time);
        let mut again = Self {
            there,
            signed,
            last,
            said,
            by_time,
            late,
            links: there.iter().map(|s| (s.header_id, s.header.previous)).collect(),
            good: HashSet::new(),
            lowest: Sequence(0),
        };
        let removed: Vec<&HeaderRef> = again.removed().map(|(one, _)| one).collect();
        for one in removed {
            again.links.entry(one.header).or_insert(one.previous);
        }
        if let Some(last) = last {
            (again.good, again.lowest) = (HashSet::from([last.header_id]), last.header.sequence);
            let mut at = last.header_id;
            while let Some(Some(previous)) = again.links.get(&at).copied()
                && again.good.insert(previous)
            {
                at = previous;
                again.lowest = Sequence(again.lowest.0.saturating_sub(1));
            }
        }
        again
    }

    /// What records say was removed, and whether the key says so.
    fn removed(&self) -> impl Iterator<Item = (&'a HeaderRef, bool)> {
        self.said.iter().copied().flat_map(|one| {
            let removed: &'a [HeaderRef] = match &one.record.note {
                Note::Prune { removed } => removed,
                _ => &[],
            };
            removed.iter().map(move |header| (header, one.own))
        })
    }

    /// Whether a header of the key counts once it is revoked, as every reader will tell it: the last good one leads down to it,
    /// or what would tell is gone.
    pub fn stays(&self, snapshot: &Snapshot) -> bool {
        self.last.is_some_and(|last| snapshot.header.sequence <= last.header.sequence)
            && (self.good.contains(&snapshot.header_id) || snapshot.header.sequence < self.lowest)
    }

    /// The snapshots that count then, whoever has signed them.
    fn believed(&self) -> impl Iterator<Item = &'a Snapshot> {
        self.there.iter().filter(move |s| !self.signed.contains(&s.header_id) || self.stays(s))
    }

    /// All that must be said again. `honest`: nothing that the key has said, as far as it was read, is a thief's.
    pub fn notes(
        &self,
        repository: &Repository,
        stored: &HashMap<ObjectId, u64>,
        honest: bool,
    ) -> Result<Vec<Note>, OpsError> {
        let removed: Vec<HeaderRef> = self.removed_again(honest).into_values().collect();
        let chunks = removed.chunks(HEADERS);
        let mut notes: Vec<Note> = chunks.map(|removed| Note::Prune { removed: removed.to_vec() }).collect();
        let moved = self.moved_again(repository, stored, honest)?;
        if !moved.is_empty() {
            notes.push(Note::Repack { moved });
        }
        for snapshot in self.believed() {
            self.marks_again(snapshot, honest, &mut notes);
        }
        Ok(notes)
    }

    /// What was removed, so that no gap is left.
    fn removed_again(&self, honest: bool) -> BTreeMap<(Sequence, ObjectId), HeaderRef> {
        let there: HashSet<ObjectId> = self.there.iter().map(|s| s.header_id).collect();
        let mut by_hash: HashMap<ObjectId, &HeaderRef> = HashMap::new();
        for (one, _) in self.removed().filter(|(one, _)| !there.contains(&one.header)) {
            by_hash.entry(one.header).or_insert(one);
        }
        // First what the last good one, and headers of other keys, lead down to, which nobody can forge.
        let mut list = BTreeMap::new();
        let mut seen = HashSet::new();
        let others = self.there.iter().filter(|s| !self.signed.contains(&s.header_id));
        for from in self.last.into_iter().chain(others) {
            let mut at = from.header.previous;
            while let Some(header) = at.filter(|header| seen.insert(*header)) {
                if let Some(one) = by_hash.get(&header) {
                    list.insert((one.sequence, header), (*one).clone());
                }
                at = self.links.get(&header).copied().flatten();
            }
        }
        // Then what only a record tells: all of it, or what explains a gap below the last good one.
        let mut explained: BTreeSet<Sequence> = list.keys().map(|(sequence, _)| *sequence).collect();
        explained.extend(self.believed().map(|s| s.header.sequence));
        for (one, _) in self.removed().filter(|(_, own)| *own) {
            let is_below = self.last.is_some_and(|last| one.sequence < last.header.sequence);
            if honest || (is_below && explained.insert(one.sequence)) {
                let previous = self.links.get(&one.header).copied().flatten();
                let entry = list.entry((one.sequence, one.header));
                entry.or_insert_with(|| HeaderRef { previous, ..one.clone() });
            }
        }
        list
    }

    /// Moved chunks, where the header's own refs lead to them no more.
    fn moved_again(
        &self,
        repository: &Repository,
        stored: &HashMap<ObjectId, u64>,
        honest: bool,
    ) -> Result<Vec<Moved>, OpsError> {
        // What counts first: the latest, by its own word; of the key's, where a thief's may be among them, the one that was
        // there first. What is late only where nothing else leads to the chunks: an honest repack can have been late.
        let latest = |own: bool| self.by_time.iter().rev().filter(move |one| honest || one.own == own);
        let mut order: Vec<&Said> = latest(false).copied().collect();
        if !honest {
            order.extend(self.said.iter().filter(|one| one.own));
        }
        order.extend(&self.late);
        let mut moves: HashMap<ObjectId, Vec<(ObjectId, bool)>> = HashMap::new();
        for one in order {
            if let Note::Repack { moved } = &one.record.note {
                for to in moved {
                    moves.entry(to.header).or_default().push((to.refs, one.own));
                }
            }
        }
        let mut again = Vec::new();
        for snapshot in self.believed() {
            let header = &snapshot.header;
            let Some(refs) = moves.get(&snapshot.header_id) else { continue };
            if !refs.iter().any(|(_, own)| *own) || is_whole(repository, stored, header.refs)? {
                continue;
            }
            let mut counts = refs.first().map(|(refs, _)| *refs);
            for (refs, _) in refs {
                if is_whole(repository, stored, *refs)? {
                    counts = Some(*refs);
                    break;
                }
            }
            again.extend(counts.map(|refs| Moved { sequence: header.sequence, header: snapshot.header_id, refs }));
        }
        Ok(again)
    }

    /// Tags and the hold of a snapshot, as far as nobody else's records say them.
    fn marks_again(&self, snapshot: &Snapshot, honest: bool, notes: &mut Vec<Note>) {
        let id = &snapshot.header.id;
        let given = Marks { tags: snapshot.header.tags.iter().cloned().collect(), held: false };
        let (mut wanted, mut others) = (given.clone(), given);
        for one in &self.by_time {
            // To keep too much is to err on the safe side.
            let takes_away = matches!(one.record.note, Note::Untag { .. } | Note::Release { .. });
            if marked(&one.record.note) != Some(id) || (one.own && takes_away && !honest) {
                continue;
            }
            wanted.take(&one.record.note);
            if !one.own {
                others.take(&one.record.note);
            }
        }
        let snapshot = || id.clone();
        notes.extend(
            wanted.tags.difference(&others.tags).map(|tag| Note::Tag { snapshot: snapshot(), tag: tag.clone() }),
        );
        notes.extend(
            others.tags.difference(&wanted.tags).map(|tag| Note::Untag { snapshot: snapshot(), tag: tag.clone() }),
        );
        match (wanted.held, others.held) {
            (true, false) => notes.push(Note::Hold { snapshot: snapshot() }),
            (false, true) => notes.push(Note::Release { snapshot: snapshot() }),
            _ => {}
        }
    }
}

/// The tags of a snapshot, and whether it is held.
#[derive(Clone)]
struct Marks {
    tags: BTreeSet<Tag>,
    held: bool,
}

impl Marks {
    fn take(&mut self, note: &Note) {
        match note {
            Note::Tag { tag, .. } => drop(self.tags.insert(tag.clone())),
            Note::Untag { tag, .. } => drop(self.tags.remove(tag)),
            Note::Hold { .. } => self.held = true,
            Note::Release { .. } => self.held = false,
            Note::Prune { .. } | Note::Repack { .. } => {}
        }
    }
}

/// The snapshot that a mark is about.
fn marked(note: &Note) -> Option<&SnapshotId> {
    match note {
        Note::Tag { snapshot, .. }
        | Note::Untag { snapshot, .. }
        | Note::Hold { snapshot }
        | Note::Release { snapshot } => Some(snapshot),
        Note::Prune { .. } | Note::Repack { .. } => None,
    }
}

/// Whether all that refs name is there.
fn is_whole(repository: &Repository, stored: &HashMap<ObjectId, u64>, refs: ObjectId) -> Result<bool, OpsError> {
    match load_refs(repository, refs) {
        Ok(refs) => Ok(refs.archives.iter().chain(&refs.index).all(|(id, length)| stored.get(id) == Some(length))),
        Err(e) if e.is_integrity() => Ok(false),
        Err(e) => Err(e.into()),
    }
}
