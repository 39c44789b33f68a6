//! What a copy holds and the repository does not: a repository that has gone back is known by its copies.

use crate::base::ids::{HostName, ObjectId, PolicyName, Sequence};
use crate::ops::OpsError;
use crate::ops::copy::plan::{CopyProblem, Side};
use crate::pipeline::crypt::object_id;
use crate::pipeline::limits;
use crate::repository::chain::{Chain, Line, full_text};
use crate::repository::trust::ChainHead;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::{Storage, StorageError, StorageKey};
use std::collections::{BTreeMap, HashSet};

/// So many headers of a line are read; a copy full of forged ones shall not hold a run up for ever.
const LOOKED_AT: usize = 200;

/// The newest snapshot of a host and policy that a copy holds and the repository does not.
pub type CopyHead = ChainHead;

/// What was found at one copy.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub alarms: Vec<String>,
    pub heads: Vec<CopyHead>,
    pub problems: Vec<CopyProblem>,
}

/// Looks at the headers of a copy that the repository has not, and that no prune record explains. They are believed as
/// the repository's own are: by its signers.
pub(super) fn compare<'a>(
    repository: &Repository,
    chain: &Chain,
    copy: &dyn Storage,
    headers: impl Iterator<Item = &'a StorageKey>,
) -> Result<Ahead, OpsError> {
    let mut lines: BTreeMap<Line, Vec<(Sequence, &StorageKey)>> = BTreeMap::new();
    for key in headers {
        let Some(place) = layout::parse_header(key) else { continue };
        let line = (place.host, place.policy);
        let here = chain.line(&line.0, &line.1);
        let at = here.partition_point(|s| s.header.sequence < place.sequence);
        let mut same = here[at..].iter().take_while(|s| s.header.sequence == place.sequence);
        if !same.any(|s| s.key == *key) {
            lines.entry(line).or_default().push((place.sequence, key));
        }
    }
    let mut ahead = Ahead::default();
    for (line, mut keys) in lines {
        let pruned: HashSet<Sequence> = chain.pruned(&line).iter().map(|removed| removed.sequence).collect();
        keys.retain(|(sequence, _)| !pruned.contains(sequence));
        keys.sort_unstable_by(|a, b| b.cmp(a));
        compare_line(repository, chain, copy, &line, &keys, &mut ahead)?;
    }
    Ok(ahead)
}

/// `keys` are newest first.
fn compare_line(
    repository: &Repository,
    chain: &Chain,
    copy: &dyn Storage,
    line: &Line,
    keys: &[(Sequence, &StorageKey)],
    ahead: &mut Ahead,
) -> Result<(), OpsError> {
    let (host, policy) = line;
    let newest = chain.head(host, policy);
    let there = newest.map_or(Sequence(0), |(sequence, _)| sequence);
    let location = copy.describe();
    let (mut is_behind, mut lacking) = (false, Vec::new());
    for (sequence, key) in keys.iter().take(LOOKED_AT) {
        if is_behind && *sequence > there {
            continue;
        }
        let header_id = match read(repository, copy, key)? {
            Read::Header(id) => id,
            Read::Gone => continue,
            Read::Bad(problem) => {
                ahead.problems.push(CopyProblem::new(Side::Copy, key.as_str(), problem));
                continue;
            }
            Read::SignersMissing(text) => {
                ahead.alarms.push(format!("{host}/{policy}: snapshot {sequence} at the copy {location}: {text}"));
                is_behind = true;
                continue;
            }
        };
        // What is damaged here is told as damage, and is no sign that anything went back.
        let is_damaged = chain.is_damaged(host, policy, *sequence);
        if *sequence > there {
            is_behind = true;
            ahead.heads.push(ChainHead {
                host: host.clone(),
                policy: policy.clone(),
                sequence: *sequence,
                header: header_id,
            });
            if !is_damaged {
                ahead.alarms.push(format!(
                    "{host}/{policy}: the repository has been rolled back: the copy {location} holds snapshot \
                     {sequence}, the newest one in the repository is {there}"
                ));
            }
        } else if chain.line(host, policy).iter().any(|s| s.header.sequence == *sequence) {
            ahead.alarms.push(format!(
                "{host}/{policy}: snapshot {sequence} at the copy {location} is not the one that the repository \
                 holds: the history has been replaced"
            ));
        } else if !is_damaged {
            lacking.push(sequence.0);
        }
    }
    if let (Some(first), Some(last)) = (lacking.iter().min(), lacking.iter().max()) {
        let which = if first == last { format!("snapshot {first}") } else { format!("snapshots {first} to {last}") };
        ahead.alarms.push(format!("{host}/{policy}: the repository lacks {which}, and the copy {location} does not"));
    }
    Ok(())
}

enum Read {
    Header(ObjectId),
    Gone,
    Bad(String),
    SignersMissing(String),
}

fn read(repository: &Repository, copy: &dyn Storage, key: &StorageKey) -> Result<Read, OpsError> {
    let bytes = match copy.get(key, limits::SIGNED) {
        Ok(bytes) => bytes,
        Err(StorageError::NotFound { .. }) => return Ok(Read::Gone),
        Err(e @ StorageError::TooLarge { .. }) => return Ok(Read::Bad(e.to_string())),
        Err(e) => return Err(e.into()),
    };
    match repository.verify_header(key, &bytes) {
        Ok((_, last_good)) if last_good.is_empty() => Ok(Read::Header(object_id(&bytes))),
        // Whoever has a revoked key can put one there: believed is what the chain leads down to, which this is not.
        Ok(_) => Ok(Read::Bad("its signer has been revoked, and the repository does not know it".to_owned())),
        Err(e @ RepositoryError::SignersMissing { .. }) => Ok(Read::SignersMissing(full_text(&e))),
        // Whatever is odd about an object of the copy is the copy's affair.
        Err(e) => Ok(Read::Bad(full_text(&e))),
    }
}

/// What the newest header of one line at a copy says, against the newest one here: for a snapshot about to be taken,
/// one list and mostly no read.
pub(super) fn newest(
    repository: &Repository,
    copy: &dyn Storage,
    (host, policy): (&HostName, &PolicyName),
    here: Option<(Sequence, Option<ObjectId>)>,
) -> Result<Option<CopyHead>, OpsError> {
    let listed = copy.list(&layout::line(host, policy))?;
    let there = here.map_or(Sequence(0), |(sequence, _)| sequence);
    let mut newer: Vec<(Sequence, StorageKey)> = Vec::new();
    for object in listed {
        let Some(place) = layout::parse_header(&object.key) else { continue };
        if place.sequence >= there {
            newer.push((place.sequence, object.key));
        }
    }
    newer.sort_unstable_by(|a, b| b.cmp(a));
    for (sequence, key) in newer.into_iter().take(LOOKED_AT) {
        match read(repository, copy, &key)? {
            Read::Header(header) => {
                return Ok(Some(ChainHead { host: host.clone(), policy: policy.clone(), sequence, header }));
            }
            Read::SignersMissing(text) => {
                let problem = format!("snapshot {sequence} at the copy {}: {text}", copy.describe());
                let hint = "the repository has lost signers; copy them back with `lifeboat copy`".to_owned();
                return Err(OpsError::Doubt { problem, hint });
            }
            Read::Gone | Read::Bad(_) => {}
        }
    }
    Ok(None)
}
