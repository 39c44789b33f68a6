//! `tag`, `untag`, `hold`, `release`: signed records about a snapshot. No identity is needed, so a sealed host marks its
//! snapshots as any other does.
//!
//! A record counts for its time, and of one host and policy no two have the same: a later one is dated behind every one
//! that is there, whatever this host's clock says. Marks are made one after the other, under a lock of this host; no
//! other host may sign for its snapshots.

use crate::base::ids::{HostName, PolicyName, SnapshotId, Tag};
use crate::ops::access::{Access, Installation};
use crate::ops::{OpsError, Run};
use crate::pipeline::crypt::object_id;
use crate::pipeline::limits;
use crate::pipeline::sign::Namespace;
use crate::repository::chain::{Line, Snapshot};
use crate::repository::format::{FORMAT, Note, Record};
use crate::repository::keys::HostKey;
use crate::repository::state::{RecordsLock, State};
use crate::repository::trust::to_json;
use crate::repository::{RepositoryError, layout};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Another mark takes a moment; one that waits longer than this has met something else.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to say of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    Tag(Tag),
    Untag(Tag),
    /// No prune removes it, until …
    Hold,
    /// … it is released.
    Release,
}

/// A mark that has been made, and what the snapshot carries now.
#[derive(Debug, Clone, Serialize)]
pub struct MarkReport {
    pub snapshot: SnapshotId,
    pub host: HostName,
    pub policy: PolicyName,
    /// The tag that was given or taken; null for `hold` and `release`.
    pub tag: Option<Tag>,
    pub tags: BTreeSet<Tag>,
    pub held: bool,
    /// The record that says so.
    pub record: String,
}

/// Held while a mark is made. Take it before the repository is opened, or two marks at once would not know of each other.
pub fn lock(installation: &Installation, run: &Run) -> Result<RecordsLock, OpsError> {
    let state = State::open(&installation.state_dir)?;
    let begun = Instant::now();
    loop {
        if let Some(lock) = state.lock_records()? {
            return Ok(lock);
        }
        run.cancel.check()?;
        if begun.elapsed() > PATIENCE {
            return Err(OpsError::failed(
                "another tag, untag, hold or release is at work, and does not end",
                "look for a lifeboat process that hangs",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Marks the snapshot that `name` names.
pub fn mark(
    installation: &Installation,
    access: &Access,
    _lock: &RecordsLock,
    name: &str,
    mark: &Mark,
    run: &Run,
) -> Result<MarkReport, OpsError> {
    let snapshot = access.resolve(name, run.now)?;
    let host_key = HostKey::load(&installation.host_key())?;
    may_sign(access, &host_key, snapshot)?;
    let (note, tags, held) = change(snapshot, mark)?;
    let header = &snapshot.header;
    let line = (header.host.clone(), header.policy.clone());
    let record = Record {
        kind: "record".to_owned(),
        format: FORMAT,
        requires: Vec::new(),
        repository: access.repository.id().clone(),
        time: next_time(access.chain.newest_record(&line.0, &line.1), &line, run.now)?,
        host: header.host.clone(),
        policy: header.policy.clone(),
        note,
    };
    let bytes = host_key.signing.sign(Namespace::Record, &to_json(&record)?).map_err(RepositoryError::from)?;
    let key = layout::dated_key(layout::RECORDS, record.time, object_id(&bytes)).map_err(RepositoryError::from)?;
    access.repository.storage().put_new(&key, &bytes).map_err(RepositoryError::from)?;
    // What this host wrote it must be able to read as everybody else will.
    let stored = access.repository.get(&key, limits::REFS)?;
    access.repository.verify_record(&key, &stored)?;
    Ok(MarkReport {
        snapshot: header.id.clone(),
        host: header.host.clone(),
        policy: header.policy.clone(),
        tag: match mark {
            Mark::Tag(tag) | Mark::Untag(tag) => Some(tag.clone()),
            Mark::Hold | Mark::Release => None,
        },
        tags,
        held,
        record: key.to_string(),
    })
}

/// A host speaks for its own snapshots only.
fn may_sign(access: &Access, host_key: &HostKey, snapshot: &Snapshot) -> Result<(), OpsError> {
    let header = &snapshot.header;
    if access.repository.signs_for(&host_key.signing.public(), &header.host) {
        return Ok(());
    }
    Err(OpsError::usage(
        format!(
            "snapshot {} is of host {}, and this host's key does not sign for it: nobody would believe the record",
            header.id, header.host
        ),
        format!("run it on {}, with that host's key", header.host),
    ))
}

/// The note, and the tags and hold that the snapshot has then. A mark that changes nothing is an error: it would be a
/// record of a mistake.
fn change(snapshot: &Snapshot, mark: &Mark) -> Result<(Note, BTreeSet<Tag>, bool), OpsError> {
    let id = &snapshot.header.id;
    let (mut tags, held) = (snapshot.tags.clone(), snapshot.held);
    match mark {
        Mark::Tag(tag) => {
            if !tags.insert(tag.clone()) {
                return Err(OpsError::usage(format!("snapshot {id} has the tag {tag} already"), "nothing was changed"));
            }
            Ok((Note::Tag { snapshot: id.clone(), tag: tag.clone() }, tags, held))
        }
        Mark::Untag(tag) => {
            if !tags.remove(tag) {
                let names: Vec<&str> = tags.iter().map(Tag::as_str).collect();
                let hint = match names.as_slice() {
                    [] => "it has no tag at all".to_owned(),
                    names => format!("its tags are {}", names.join(", ")),
                };
                return Err(OpsError::usage(format!("snapshot {id} has no tag {tag}"), hint));
            }
            Ok((Note::Untag { snapshot: id.clone(), tag: tag.clone() }, tags, held))
        }
        Mark::Hold if held => Err(OpsError::usage(format!("snapshot {id} is held already"), "nothing was changed")),
        Mark::Hold => Ok((Note::Hold { snapshot: id.clone() }, tags, true)),
        Mark::Release if held => Ok((Note::Release { snapshot: id.clone() }, tags, false)),
        Mark::Release => Err(OpsError::usage(format!("snapshot {id} is not held"), "nothing was changed")),
    }
}

/// `now`, or a second behind the newest record of that host and policy.
pub(super) fn next_time(
    newest: Option<DateTime<Utc>>,
    (host, policy): &Line,
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>, OpsError> {
    let now = now.trunc_subsecs(0);
    let Some(newest) = newest.filter(|newest| *newest >= now) else { return Ok(now) };
    // Keys have years of four digits.
    let last = DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(now);
    newest.checked_add_signed(TimeDelta::seconds(1)).filter(|next| *next <= last).ok_or_else(|| {
        OpsError::failed(
            format!("a record of {host}/{policy} is dated {newest}: none can be dated behind it"),
            "a key that signs for this host has signed it: revoke that key (`lifeboat keys revoke`; --all-good where only a \
             clock was wrong), then give the host another one (`lifeboat keys rotate`)",
        )
    })
}
