//! What keeps a prune from deleting: snapshots that may exist and cannot be read.
//!
//! A header that is damaged or gone may need any of the objects that look unreferenced, so as long as there is one,
//! nothing is condemned or deleted: a bit that flipped in a header, or somebody who hid one, shall not cost its data
//! too. A person who knows that they are lost for good says so (`--accept-lost`), and a record keeps that.

use crate::base::ids::{ObjectId, Sequence};
use crate::ops::OpsError;
use crate::ops::access::Access;
use crate::repository::chain::{Chain, ChainProblem, Line};
use crate::repository::format::HeaderRef;
use crate::repository::layout;
use crate::storage::StorageKey;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// More missing sequences than this are no loss but an attack: a signer skipped them.
const SEQUENCES: u64 = 10_000;

/// Problems behind which data may stand. Those of snapshots that can be read (a fork, a wrong order) are none.
pub(super) fn doubts(chain: &Chain) -> Vec<&ChainProblem> {
    let readable: HashSet<&StorageKey> = chain.all().map(|s| &s.key).collect();
    chain.problems.iter().filter(|p| !readable.contains(&p.key)).collect()
}

/// Refuses to go on while there is a doubt or an alarm.
pub(super) fn refuse(access: &Access) -> Result<(), OpsError> {
    if let Some(alarm) = access.alarms.first() {
        return Err(OpsError::Doubt {
            problem: alarm.clone(),
            hint: "nothing is removed while snapshots may be hidden: find out what became of them; `lifeboat verify` \
                   says more"
                .to_owned(),
        });
    }
    refuse_chain(&access.chain)
}

pub(super) fn refuse_chain(chain: &Chain) -> Result<(), OpsError> {
    let doubts = doubts(chain);
    let Some(first) = doubts.first() else { return Ok(()) };
    let more = if doubts.len() > 1 { format!(" (and {} more)", doubts.len() - 1) } else { String::new() };
    Err(OpsError::Doubt {
        problem: format!("{}: {}{more}", first.key, first.problem),
        hint: "nothing is removed while a snapshot cannot be read: put the object back from a copy of the repository; or, \
               if it is lost for good, run `lifeboat prune --accept-lost`"
            .to_owned(),
    })
}

/// What `--accept-lost` gives up: sequences of lines, and objects that are not what they claim to be.
#[derive(Debug, Default)]
pub(super) struct Lost {
    pub snapshots: BTreeMap<Line, Vec<HeaderRef>>,
    pub objects: Vec<StorageKey>,
}

impl Lost {
    /// Everything that is in doubt, what this host remembers and the repository no longer shows included.
    pub fn of(access: &Access) -> Result<Self, OpsError> {
        let chain = &access.chain;
        let mut gone: BTreeMap<Line, BTreeSet<Sequence>> = BTreeMap::new();
        let mut hashes: BTreeMap<(Line, Sequence), ObjectId> = BTreeMap::new();
        for line in chain.lines() {
            let headers = chain.line(&line.0, &line.1);
            let mut there: BTreeSet<Sequence> = headers.iter().map(|s| s.header.sequence).collect();
            there.extend(chain.pruned(&line).iter().map(|r| r.sequence));
            let newest = there.last().map_or(0, |s| s.0);
            let missing = newest - there.len() as u64;
            if missing > SEQUENCES {
                return Err(OpsError::failed(
                    format!("{missing} snapshots of {}/{} are missing: no host takes so many", line.0, line.1),
                    "somebody with this host's key has skipped numbers: revoke the key",
                ));
            }
            for header in headers.iter().map(|s| &s.header) {
                hashes.extend(header.previous.map(|hash| ((line.clone(), Sequence(header.sequence.0 - 1)), hash)));
            }
            let missing = (1..newest).map(Sequence).filter(|s| !there.contains(s)).collect();
            gone.insert(line, missing);
        }
        let objects = doubted_objects(chain);
        for place in objects.iter().filter_map(layout::parse_header) {
            gone.entry((place.host, place.policy)).or_default().insert(place.sequence);
        }
        if let Some(state) = &access.state {
            for head in state.heads(access.repository.id())? {
                let line = (head.host, head.policy);
                if chain.head(&line.0, &line.1).is_none_or(|(there, _)| there < head.sequence) {
                    gone.entry(line.clone()).or_default().insert(head.sequence);
                }
                hashes.insert((line, head.sequence), head.header);
            }
        }
        let entry = |line: &Line, sequence: Sequence| HeaderRef {
            sequence,
            header: hashes.get(&(line.clone(), sequence)).copied().unwrap_or(ObjectId([0; 32])),
            previous: None,
        };
        let with_hashes = |(line, gone): (Line, BTreeSet<Sequence>)| {
            let list: Vec<HeaderRef> = gone.into_iter().map(|sequence| entry(&line, sequence)).collect();
            (!list.is_empty()).then_some((line, list))
        };
        Ok(Lost { snapshots: gone.into_iter().filter_map(with_hashes).collect(), objects })
    }

    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.objects.is_empty()
    }
}

/// Objects below the folders of headers and records that are there and not to be believed.
fn doubted_objects(chain: &Chain) -> Vec<StorageKey> {
    let named = |p: &&ChainProblem| {
        p.key.as_str().ends_with(".json")
            && (p.key.as_str().starts_with(layout::SNAPSHOTS) || p.key.as_str().starts_with(layout::RECORDS))
    };
    doubts(chain).into_iter().filter(named).map(|p| p.key.clone()).collect()
}
