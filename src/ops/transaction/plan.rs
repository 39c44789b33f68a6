//! What a transaction would do: made without changing anything, printed by `--dry-run`, kept in the journal. Here the
//! plan itself and that of a restore in place; that of a rollback is `ops::rollback`'s.

use super::aside::Aside;
use super::journal::{folder, refuse_pending};
use super::nginx::Nginx;
use super::overlay::ChosenKey;
use super::services::{Services, recorded};
use super::stage::Stage;
use super::up::Up;
use crate::base::ids::{PolicyName, SnapshotId, SourceName, random_bytes};
use crate::base::time::compact;
use crate::base::units::human_size;
use crate::ops::access::{Access, Installation};
use crate::ops::browse::part::open_snapshot;
use crate::ops::browse::select::{require_captured, source_named};
use crate::ops::hooks;
use crate::ops::streams::SnapshotStreams;
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::policy::model::SourcePolicy;
use crate::repository::format::{SourceEntry, SourceOutcome};
use crate::repository::reader::SnapshotReader;
use crate::sources::placing::{Intent, Part, Stored};
use crate::sources::placings::is_code;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct InPlaceRequest {
    pub snapshot: String,
    /// Only these sources; empty for all.
    pub only: Vec<SourceName>,
    pub part: Part,
    /// Sources whose state of today may be lost: it cannot be captured first.
    pub accept_unsaved: Vec<SourceName>,
}

/// What kind of change it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    #[default]
    Restore,
    Rollback,
}

impl What {
    /// The command.
    pub fn word(self) -> &'static str {
        match self {
            What::Restore => "restore",
            What::Rollback => "rollback",
        }
    }

    /// As hooks are told.
    pub fn hook(self) -> &'static str {
        match self {
            What::Restore => "restore-in-place",
            What::Rollback => "rollback",
        }
    }
}

/// A source whose store is down: what is done to it can be planned when the store is up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Late {
    pub source: SourceName,
    pub kind: String,
    pub part: Part,
    pub why: String,
}

/// Where a rollback leads.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Aim {
    /// What was asked for.
    pub to: String,
    /// Why that is this snapshot.
    pub why: String,
    /// The commit that it was taken at.
    pub commit: Option<String>,
    /// What leaves, in one sentence.
    pub leaves: String,
    /// What is not the application's own to return.
    pub external: Vec<String>,
}

/// A source that is passed over, and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PassedOver {
    pub source: SourceName,
    pub kind: String,
    pub why: String,
}

/// What would be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransactionPlan {
    /// The transaction's own.
    pub id: String,
    #[serde(default)]
    pub what: What,
    pub policy: PolicyName,
    pub snapshot: SnapshotId,
    /// When the snapshot was taken.
    pub time: DateTime<Utc>,
    /// Of a rollback.
    #[serde(default)]
    pub aim: Option<Aim>,
    pub intents: Vec<Intent>,
    /// Sources whose stores are down: they are brought up first.
    #[serde(default)]
    pub late: Vec<Late>,
    /// Data folders of servers of another major version, which go aside; their sources are among the late ones.
    #[serde(default)]
    pub aside: Vec<Aside>,
    pub passed_over: Vec<PassedOver>,
    /// How services come up, where that is more than starting those that were stopped.
    #[serde(default)]
    pub up: Option<Up>,
    /// Keys of env files whose two values differ, and which one stands afterwards.
    #[serde(default)]
    pub env: Vec<ChosenKey>,
    /// Takes the schema back while today's code still runs.
    #[serde(default)]
    pub downgrade: Option<String>,
    /// The source whose schema that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downgrades: Option<SourceName>,
    pub services: Services,
    /// Where nginx is tested and reloaded.
    pub nginx: Option<Nginx>,
    pub expected_downtime_seconds: f64,
    pub keep_old_seconds: u64,
    /// There is no room beside, and what is there may go first.
    pub replace: bool,
    pub accept_unsaved: Vec<SourceName>,
    pub warnings: Vec<String>,
}

impl TransactionPlan {
    /// The sources that it changes.
    pub fn sources(&self) -> Vec<SourceName> {
        self.intents.iter().map(|i| i.source.clone()).chain(self.late.iter().map(|l| l.source.clone())).collect()
    }

    /// The sources that have a state of today: what is brought up first has none, unless it goes aside for that.
    pub fn live_sources(&self) -> Vec<SourceName> {
        self.intents.iter().map(|i| i.source.clone()).chain(self.aside.iter().map(|a| a.source.clone())).collect()
    }

    /// The data folder of a source that goes aside.
    pub fn aside_of(&self, source: &SourceName) -> Option<&Aside> {
        self.aside.iter().find(|a| a.source == *source)
    }
}

/// Makes the plan, and refuses what cannot be done.
pub fn plan(
    installation: &Installation,
    policy: &Policy,
    access: &Access,
    request: &InPlaceRequest,
    run: &Run,
) -> Result<TransactionPlan, OpsError> {
    refuse_pending(&installation.state_dir, &policy.app.name)?;
    let reader = open_snapshot(access, &request.snapshot, "restoring", run)?;
    let manifest = &reader.manifest;
    if manifest.policy != policy.app.name {
        return Err(OpsError::usage(
            format!("snapshot {} is of policy {}, not of {}", manifest.snapshot, manifest.policy, policy.app.name),
            "restore it with --into, or name its own policy with -p",
        ));
    }
    let id = new_id(run)?;
    let stage = Stage::new(installation, policy, &id, run);
    let mut planner = Planner { policy, request, reader: &reader, stage: &stage, run, passed_over: Vec::new() };
    let wanted = planner.wanted()?;
    let mut intents = Vec::new();
    for source in wanted {
        run.cancel.check()?;
        intents.extend(planner.intent(source)?);
    }
    if intents.is_empty() {
        return Err(OpsError::usage(
            format!("nothing of snapshot {} is restored in place", manifest.snapshot),
            "name a source with --only, or a path that it has with --path",
        ));
    }
    if !request.part.replace {
        check_room(&intents)?;
    }
    let mut warnings = reader.index_problems.iter().map(|p| crate::repository::chain::full_text(p)).collect::<Vec<_>>();
    warnings.extend(hooks::warning(policy));
    let beside = request.part.database_as.is_some();
    let serves_only = intents.iter().all(|i| matches!(i.kind.as_str(), "nginx" | "certificates"));
    let services = match (beside, serves_only) {
        (true, _) => {
            Services { note: Some("nothing live is changed: nothing is stopped".into()), ..Services::default() }
        }
        (_, true) => Services { note: Some("nginx is reloaded, and nothing is stopped".into()), ..Services::default() },
        _ => Services::find(policy, &recorded(manifest), &stage.places)?,
    };
    let nginx = Nginx::find(policy, manifest.sources.iter().map(|s| (&s.name, &s.facts)));
    let nginx = nginx.filter(|_| intents.iter().any(Nginx::reads));
    Ok(TransactionPlan {
        what: What::Restore,
        aim: None,
        late: Vec::new(),
        aside: Vec::new(),
        up: None,
        downgrade: None,
        downgrades: None,
        env: Vec::new(),
        policy: policy.app.name.clone(),
        snapshot: manifest.snapshot.clone(),
        time: manifest.time,
        expected_downtime_seconds: services.expected_seconds(),
        passed_over: planner.passed_over,
        keep_old_seconds: policy.rollback.keep_old.as_secs(),
        replace: request.part.replace,
        accept_unsaved: request.accept_unsaved.clone(),
        id,
        intents,
        services,
        nginx,
        warnings,
    })
}

/// A transaction's id: a time, and what makes it unlike any other.
pub fn new_id(run: &Run) -> Result<String, OpsError> {
    let random: [u8; 4] = random_bytes().map_err(|e| OpsError::file("make an id with", "/dev/urandom", e))?;
    Ok(format!("{}-{}", compact(run.now), hex::encode(random)))
}

struct Planner<'a> {
    policy: &'a Policy,
    request: &'a InPlaceRequest,
    reader: &'a SnapshotReader,
    stage: &'a Stage<'a>,
    run: &'a Run,
    passed_over: Vec<PassedOver>,
}

impl<'a> Planner<'a> {
    fn wanted(&self) -> Result<Vec<&'a SourceEntry>, OpsError> {
        let manifest = &self.reader.manifest;
        let mut wanted: Vec<&SourceEntry> = Vec::new();
        for name in &self.request.only {
            let source = source_named(manifest, name)?;
            require_captured(manifest, source)?;
            if wanted.iter().all(|s| s.name != source.name) {
                wanted.push(source);
            }
        }
        if wanted.is_empty() {
            wanted = manifest.sources.iter().collect();
        }
        Ok(wanted)
    }

    /// What putting a source back would do; nothing when it is passed over.
    fn intent(&mut self, source: &SourceEntry) -> Result<Option<Intent>, OpsError> {
        let named = self.request.only.contains(&source.name);
        let of_policy = self.policy.sources.iter().find(|s| s.name == source.name && s.spec.kind() == source.kind);
        let why = match of_policy {
            _ if source.kind == "recovery" => Some("it is for a bare machine".to_owned()),
            None => Some("the policy has no such source any more".to_owned()),
            Some(s) if is_code(&s.spec) => Some("code is returned by a rollback, not by a restore".to_owned()),
            Some(_) if source.outcome == SourceOutcome::Failed => {
                Some(source.error.clone().unwrap_or_else(|| "it failed when the snapshot was taken".to_owned()))
            }
            Some(s) if !self.fits(&s.spec, named) => Some("it has nothing of what was asked for".to_owned()),
            Some(_) if source.streams.is_empty() => Some("the snapshot holds nothing of it".to_owned()),
            Some(_) => None,
        };
        let (Some(of_policy), None) = (of_policy, &why) else {
            let why = why.unwrap_or_default();
            if named {
                return Err(OpsError::usage(
                    format!("source {:?} is not restored in place: {why}", source.name.as_str()),
                    "restore it with --into",
                ));
            }
            self.passed_over.push(PassedOver { source: source.name.clone(), kind: source.kind.clone(), why });
            return Ok(None);
        };
        match intent(self.stage, self.reader, source, of_policy, &self.request.part, self.run) {
            Ok(intent) => Ok(Some(intent)),
            Err(OpsError::Source { source: e, .. })
                if !self.request.part.paths.is_empty() && !named && is_tree(of_policy.spec.kind()) =>
            {
                let why = crate::repository::chain::full_text(&e);
                self.passed_over.push(PassedOver { source: source.name.clone(), kind: source.kind.clone(), why });
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the part that is asked for can be one of this kind.
    fn fits(&self, spec: &crate::policy::model::SourceSpec, named: bool) -> bool {
        let part = &self.request.part;
        let of_database = !part.tables.is_empty() || part.database_as.is_some();
        match spec.kind() {
            "postgres" => part.paths.is_empty() || named,
            kind if is_tree(kind) => !of_database || named,
            _ => (!of_database && part.paths.is_empty()) || named,
        }
    }
}

fn is_tree(kind: &str) -> bool {
    matches!(kind, "files" | "env" | "certificates" | "nginx" | "volume")
}

/// What putting one source back would do.
pub fn intent(
    stage: &Stage<'_>,
    reader: &SnapshotReader,
    source: &SourceEntry,
    of_policy: &SourcePolicy,
    part: &Part,
    run: &Run,
) -> Result<Intent, OpsError> {
    let failed = |e| stage.failed(&source.name, e);
    let placing = stage.placing(of_policy).map_err(failed)?;
    let streams = SnapshotStreams::new(reader, source, &run.cancel);
    let stored = Stored { snapshot: &reader.manifest.snapshot, streams: &streams, facts: &source.facts };
    placing.plan(&stage.scene(&source.name), &stored, part).map_err(failed)
}

/// What is taken from one file system.
#[derive(Default)]
struct Shared<'a> {
    needed: u64,
    free: Option<u64>,
    places: Vec<&'a str>,
}

/// Refuses what there is no room for.
pub fn check_room(intents: &[Intent]) -> Result<(), OpsError> {
    // Places of one file system share what is free there.
    let mut shared: BTreeMap<(Option<u64>, &str), Shared<'_>> = BTreeMap::new();
    for room in intents.iter().flat_map(|i| &i.room) {
        let key = (room.device, if room.device.is_some() { "" } else { room.place.as_str() });
        let all = shared.entry(key).or_default();
        all.needed = all.needed.saturating_add(room.bytes_needed);
        all.free = [all.free, room.bytes_free].into_iter().flatten().min();
        if room.bytes_needed > 0 && !all.places.contains(&room.place.as_str()) {
            all.places.push(&room.place);
        }
    }
    for Shared { needed, free, places } in shared.into_values() {
        if let Some(free) = free.filter(|free| *free < needed) {
            let place = places.join(" and ");
            return Err(OpsError::failed(
                format!(
                    "restoring beside the live state takes {} at {place}, and {} are free there",
                    human_size(needed),
                    human_size(free)
                ),
                "free space there, restore less with --only or --path, or let what is there go first with --replace",
            ));
        }
    }
    Ok(())
}

/// The transaction's own folder.
pub fn own_folder(installation: &Installation, id: &str) -> std::path::PathBuf {
    folder(&installation.state_dir).join(id)
}
