//! Looking: at the repository, the copies, the free room, the application's health, and what no source captures; all
//! beside each other, and none for longer than it is given. What does not answer is told as what it was when it did.
//!
//! Nothing is changed, and no key is needed: headers and outcomes of drills are signed and public.

use super::sight::{CopySight, RepositorySight, Room, SeenGap, Sight, SnapshotSight, keep, recall};
use crate::base::events::Events;
use crate::base::ids::{HostName, RepositoryId};
use crate::base::threads;
use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::browse::list::problems;
use crate::ops::copy::{self, within};
use crate::ops::discover;
use crate::ops::doctor::{Gap, GapKind, NO_SOURCE, gaps};
use crate::ops::drill::DrillLine;
use crate::ops::storage::local_storage;
use crate::ops::{OpsError, Run, health, kit, setup, transaction};
use crate::policy::Policy;
use crate::policy::model::RepositoryUrl;
use crate::repository::chain::{Snapshot, full_text};
use crate::repository::state::State;
use crate::sources::project::Places;
use crate::storage::Storage;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// For the headers and drills of a repository.
const PATIENCE: Duration = Duration::from_secs(15);
/// For a list of everything that is stored: it only says how much that is.
const SIZE_PATIENCE: Duration = Duration::from_secs(10);
/// For what the application is made of.
const DISCOVERY_PATIENCE: Duration = Duration::from_secs(20);

/// Looks at everything of a policy, and keeps what was seen for others.
pub fn look(installation: &Installation, policy: &Policy, host: &HostName, run: &Run) -> Result<Sight, OpsError> {
    let name = &policy.app.name;
    let before = recall(&installation.state_dir, name);
    let mut sight = Sight::blank(name.clone(), host.clone(), run.now);
    // Another thing's steps are not this command's.
    let run = &Run { events: Events::none(), ..run.clone() };
    let (repository, coverage, health) = std::thread::scope(|scope| {
        let repository = threads::beside(scope, || repository(installation, policy, host, run));
        let coverage = threads::beside(scope, || coverage(policy, run));
        let health = health::check_at_once(policy, &Arc::new(Places::new(&policy.app, &run.cancel)), run);
        (repository.join(), coverage.join(), health)
    });
    run.cancel.check()?;
    let broke = || OpsError::failed("the look itself broke", "its log says why");
    let known = before.map(|sight| sight.repository);
    (sight.repository, sight.copies) = match repository.unwrap_or_else(|| Err(broke())) {
        Ok((mut seen, id)) => {
            let known = known.filter(|known| known.url == seen.url);
            seen.stored_bytes = seen.stored_bytes.or(known.and_then(|known| known.stored_bytes));
            (seen, copies(installation, policy, host, Some(&id)))
        }
        Err(e) => {
            let url = policy.repository.url.to_string();
            let known = known.filter(|known| known.url == url).unwrap_or_default();
            let elsewhere = is_elsewhere(&policy.repository.url);
            let seen = RepositorySight { problem: Some(full_text(&e)), hint: e.hint(), url, elsewhere, ..known };
            (seen, copies(installation, policy, host, None))
        }
    };
    match coverage.unwrap_or_else(|| Err(broke())) {
        Ok(gaps) => sight.gaps = Some(gaps),
        Err(e) => sight.blind = Some(full_text(&e)),
    }
    sight.health = health;
    sight.room = room(policy);
    sight.unproved = setup::unproved(&installation.state_dir, &policy.repository.recipients)?;
    let standing = kit::standing(installation, policy)?;
    sight.kit = (standing.state != kit::State::Confirmed).then(|| standing.sentence());
    let pending = transaction::pending(&installation.state_dir)?.into_iter().find(|p| p.policy == *name);
    sight.pending = pending.map(|p| p.id);
    if let Err(e) = keep(&installation.state_dir, &sight) {
        tracing::debug!("what was seen is not kept: {}", full_text(&e));
    }
    Ok(sight)
}

/// What the repository holds of this host's policy.
fn repository(
    installation: &Installation,
    policy: &Policy,
    host: &HostName,
    run: &Run,
) -> Result<(RepositorySight, RepositoryId), OpsError> {
    let url = policy.repository.url.to_string();
    let silent = |within: Duration| {
        OpsError::failed(
            format!("{url} does not answer within {} s", within.as_secs()),
            "is its server there, and the network?",
        )
    };
    let ask = {
        let (installation, host, run) = (installation.clone(), host.clone(), run.clone());
        let request =
            AccessRequest { remembered: true, read_only: true, host: Some(host.clone()), ..AccessRequest::of(policy) };
        move || -> Result<(RepositorySight, RepositoryId, Arc<dyn Storage>), OpsError> {
            let access = Access::open(&installation, &request)?;
            let seen = seen(&access, &host, &run)?;
            Ok((seen, access.repository.id().clone(), access.repository.storage().clone()))
        }
    };
    let (mut seen, id, storage) = within(PATIENCE, run, ask)?.ok_or_else(|| silent(PATIENCE))??;
    let sum = move || storage.list("").map(|all| all.iter().map(|object| object.length).sum());
    seen.stored_bytes = within(SIZE_PATIENCE, run, sum)?.and_then(Result::ok);
    seen.elsewhere = is_elsewhere(&policy.repository.url);
    seen.url = url;
    Ok((seen, id))
}

fn seen(access: &Access, host: &HostName, run: &Run) -> Result<RepositorySight, OpsError> {
    let snapshots = access.snapshots();
    let headers: HashSet<_> = snapshots.iter().map(|s| s.header_id).collect();
    let drills = access.repository.drills()?;
    let ours = drills.all.iter().filter(|d| d.drill.host == *host && headers.contains(&d.drill.header));
    let mut damage: Vec<String> = problems(access)
        .into_iter()
        .map(|p| p.object.map_or_else(|| p.problem.clone(), |object| format!("{object}: {}", p.problem)))
        .collect();
    damage.extend(drills.problems.iter().map(|e| full_text(e)));
    Ok(RepositorySight {
        reached: Some(run.now),
        damage,
        snapshots: snapshots.into_iter().map(of_snapshot).collect(),
        drills: ours.map(DrillLine::from).collect(),
        ..RepositorySight::default()
    })
}

fn of_snapshot(snapshot: &Snapshot) -> SnapshotSight {
    let header = &snapshot.header;
    SnapshotSight {
        id: header.id.clone(),
        time: header.time,
        sequence: header.sequence,
        outcome: header.outcome,
        trigger: header.trigger,
        tags: snapshot.tags.iter().cloned().collect(),
        bytes_total: header.bytes_total,
        bytes_new: header.bytes_new,
        forked: snapshot.forked,
    }
}

/// What each copy was left with, as this host remembers it: no copy is asked.
fn copies(installation: &Installation, policy: &Policy, host: &HostName, id: Option<&RepositoryId>) -> Vec<CopySight> {
    let state = match policy.repository.copies.is_empty() {
        true => None,
        false => State::open(&installation.state_dir).ok(),
    };
    let known = state.as_ref().and_then(|state| state.pin(&policy.repository.url.to_string()).ok().flatten());
    let id = id.cloned().or(known);
    let one = |copy: &crate::policy::model::CopyTo| {
        let location = copy::open(Some(policy), Some(&policy.repository.url), &copy.url);
        let heads = location.ok().and_then(|target| {
            let (state, id) = (state.as_ref()?, id.as_ref()?);
            state.copy_heads(&target.storage.describe(), id).ok()
        });
        let mine = heads.into_iter().flatten().filter(|h| h.host == *host && h.policy == policy.app.name);
        CopySight {
            url: copy.url.to_string(),
            elsewhere: is_elsewhere(&copy.url),
            sequence: mine.map(|h| h.sequence).max(),
        }
    };
    policy.repository.copies.iter().map(one).collect()
}

/// File systems of other machines, as `statfs(2)` names them: NFS, SMB, CIFS, AFS, Ceph, 9P, Lustre, GlusterFS and
/// SSHFS (FUSE), OCFS2, GFS2.
const NETWORKED: &[u64] = &[
    0x6969,
    0xfe53_4d42,
    0xff53_4d42,
    0x5346_414f,
    0x00c3_6400,
    0x0102_1997,
    0x0bd0_0bd0,
    0x6573_5546,
    0x7461_636f,
    0x0116_1970,
];

/// Whether what lies there outlives this machine. Another disk of the same machine does not.
fn is_elsewhere(url: &RepositoryUrl) -> bool {
    let RepositoryUrl::Local(path) = url else { return true };
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    // Its type is signed on some machines.
    rustix::fs::statfs(there).is_ok_and(|fs| NETWORKED.contains(&(fs.f_type as u64 & 0xffff_ffff)))
}

fn room(policy: &Policy) -> Option<Room> {
    let RepositoryUrl::Local(path) = &policy.repository.url else { return None };
    let (free, reserve) = local_storage(path, policy.repository.min_free).room().ok()?;
    Some(Room { free, reserve })
}

fn coverage(policy: &Policy, run: &Run) -> Result<Vec<SeenGap>, OpsError> {
    let asked = {
        let (app, run) = (policy.app.clone(), run.clone());
        within(DISCOVERY_PATIENCE, &run.clone(), move || discover::discover(&app, &run))?
    };
    let late = || {
        let text = format!("the application cannot be looked through within {} s", DISCOVERY_PATIENCE.as_secs());
        OpsError::failed(text, "does the Docker engine answer?")
    };
    let found = asked.ok_or_else(late)??;
    // Who may read an env file is `doctor`'s matter.
    let lost = gaps(policy, &found).into_iter().filter(|gap| gap.kind != GapKind::Permissions);
    Ok(lost.map(name_gap).collect())
}

fn name_gap(gap: Gap) -> SeenGap {
    let end = match gap.kind {
        GapKind::External => " (",
        _ => ": ",
    };
    let text = gap.what.strip_prefix(NO_SOURCE).unwrap_or(&gap.what);
    let name = text.split(end).next().unwrap_or(text).to_owned();
    SeenGap { name, what: gap.what, hint: gap.hint }
}
