//! What a rollback would do: what comes back, what stays and why, and how the services come up. Nothing is changed.

use super::absent::absent;
use super::env::{self, Ask, DataFate, Decided};
use super::losses;
use super::major;
use super::schema::{self, Fit};
use super::target::{Target, target};
use crate::base::ids::SourceName;
use crate::ops::access::{Access, Installation};
use crate::ops::browse::part::open_snapshot;
use crate::ops::browse::select::{require_captured, source_named};
use crate::ops::hooks;
use crate::ops::streams::SnapshotStreams;
use crate::ops::transaction::nginx::Nginx;
use crate::ops::transaction::plan::{PassedOver, check_room, intent, new_id};
use crate::ops::transaction::services::{self, Services, stores};
use crate::ops::transaction::up::{Stack, Up};
use crate::ops::transaction::{Aim, Aside, Late, Stage, TransactionPlan, What, refuse_pending};
use crate::ops::{OpsError, Run};
use crate::place::PlaceError;
use crate::policy::Policy;
use crate::policy::model::{OnRollback, SourcePolicy, SourceSpec};
use crate::repository::format::{SourceEntry, SourceOutcome};
use crate::repository::reader::SnapshotReader;
use crate::sources::SourceError;
use crate::sources::files::{returning_certificates, to_restore};
use crate::sources::placing::{Intent, Part, Stored};
use crate::sources::project::Project;
use std::str::FromStr;

/// A part of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Narrow {
    /// Commit, compose files, images.
    Code,
    Env,
    /// Databases, queues, files, volumes.
    Data,
    Source(SourceName),
}

impl FromStr for Narrow {
    type Err = <SourceName as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "code" => Narrow::Code,
            "env" => Narrow::Env,
            "data" => Narrow::Data,
            name => Narrow::Source(name.parse()?),
        })
    }
}

/// Which of a rotated secret's two values stands afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvSide {
    Live,
    Snapshot,
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct RollbackRequest {
    pub to: String,
    /// Only these; empty for all.
    pub only: Vec<Narrow>,
    /// Code, images and env return, and the data stays.
    pub keep_data: bool,
    /// The schema of today is known to fit the code of then.
    pub accept_schema: bool,
    pub env: Option<EnvSide>,
    /// Sources whose state of today may be lost: it cannot be captured first.
    pub accept_unsaved: Vec<SourceName>,
    /// What stays by default returns as well: the host is a new one.
    pub everything: bool,
    /// A database whose server was of another major version gets a cluster of its own, filled from the dump.
    pub new_data_dir: bool,
    /// Sources that stay, and why.
    pub keep: Vec<(SourceName, String)>,
}

/// What becomes of a source.
enum Fate {
    Returns(Part),
    Stays(String),
}

/// Makes the plan, and refuses what cannot be done.
pub fn plan(
    installation: &Installation,
    policy: &Policy,
    access: &Access,
    request: &RollbackRequest,
    ask: Ask<'_>,
    run: &Run,
) -> Result<TransactionPlan, OpsError> {
    refuse_pending(&installation.state_dir, &policy.app.name)?;
    let target = target(access, policy, &request.to, run)?;
    let reader = open_snapshot(access, target.snapshot.as_str(), "rolling back", run)?;
    let id = new_id(run)?;
    let stage = Stage::new(installation, policy, &id, run);
    let project = find_project(policy, &stage)?;
    let planner = Planner { policy, request, ask, reader: &reader, stage: &stage, run, project };
    planner.plan(id, target)
}

/// The project as it is now; absent where there is none, or no engine and no word of one.
fn find_project(policy: &Policy, stage: &Stage<'_>) -> Result<Option<Project>, OpsError> {
    match stage.places.project() {
        Ok(project) => Ok(project),
        Err(PlaceError::NoDocker { .. } | PlaceError::Context { .. }) if !needs_engine(policy) => Ok(None),
        Err(e) => Err(OpsError::Source { name: "services".into(), source: SourceError::Place(e) }),
    }
}

fn needs_engine(policy: &Policy) -> bool {
    !policy.rollback.stop.is_empty()
        || !stores(policy).is_empty()
        || policy.sources.iter().any(|s| matches!(s.spec, SourceSpec::Compose(_)) && !s.implicit)
}

struct Planner<'a> {
    policy: &'a Policy,
    request: &'a RollbackRequest,
    ask: Ask<'a>,
    reader: &'a SnapshotReader,
    stage: &'a Stage<'a>,
    run: &'a Run,
    project: Option<Project>,
}

impl Planner<'_> {
    fn plan(&self, id: String, target: Target) -> Result<TransactionPlan, OpsError> {
        let manifest = &self.reader.manifest;
        for name in self.request.only.iter().filter_map(named) {
            require_captured(manifest, source_named(manifest, name)?)?;
        }
        let recorded = manifest
            .sources
            .iter()
            .find(|s| s.kind == "compose")
            .and_then(|s| Stack::recorded(&s.facts, &self.policy.app));
        let project_name = match (&self.project, &self.policy.app.project, &recorded) {
            (Some(project), ..) => Some(project.name.as_str()),
            (None, Some(name), _) => Some(name.as_str()),
            (None, None, recorded) => recorded.as_ref().map(|r| r.project.name.as_str()),
        };
        let (mut intents, mut late, mut passed_over) = (Vec::new(), Vec::new(), Vec::new());
        let (mut env, mut env_files) = (Vec::new(), Vec::new());
        let (mut aside, mut leaving, mut uncounted) = (Vec::new(), Vec::new(), Vec::new());
        let mut sources: Vec<&SourceEntry> = manifest.sources.iter().collect();
        sources.sort_by_key(|s| rank(&s.kind));
        for source in sources {
            self.run.cancel.check()?;
            let pass = |why| PassedOver { source: source.name.clone(), kind: source.kind.clone(), why };
            let of_policy = self.of_policy(source);
            match (self.fate(source, of_policy)?, of_policy) {
                (Fate::Stays(why), _) => passed_over.push(pass(why)),
                (Fate::Returns(_), None) => {}
                (Fate::Returns(mut part), Some(of_policy)) => {
                    // A data folder is never started by an older server, so the plan must not lead there.
                    part.same_major = source.kind == "postgres" && !self.request.everything;
                    let mut nowhere = absent(of_policy, self.project.as_ref(), project_name, &self.stage.places)?;
                    if nowhere.is_none()
                        && self.request.new_data_dir
                        && let Some(moved) =
                            major::look(self.stage, self.reader, source, of_policy, (&part, &id), self.run)?
                    {
                        nowhere = Some(moved.why);
                        aside.push(moved.aside);
                        match moved.leaving {
                            Some(intent) => leaving.push(intent),
                            None => uncounted.push(source.name.to_string()),
                        }
                    }
                    match nowhere {
                        Some(why) => {
                            let (source, kind) = (source.name.clone(), source.kind.clone());
                            late.push(Late { source, kind, part, why });
                        }
                        None => {
                            let mut intent = intent(self.stage, self.reader, source, of_policy, &part, self.run)?;
                            if source.kind == "env" {
                                let decided = self.env(source, of_policy)?;
                                intent.lines.extend(decided.lines);
                                env.extend(decided.chosen);
                                env_files.extend(decided.files);
                            }
                            intents.push(intent);
                        }
                    }
                }
            }
        }
        if intents.is_empty() && late.is_empty() {
            let why: Vec<String> = passed_over.iter().map(|p| format!("{}: {}", p.source, p.why)).collect();
            return Err(OpsError::usage(
                format!("nothing of snapshot {} would come back: {}", manifest.snapshot, why.join("; ")),
                "name a source with --only, or take a snapshot that has what you want",
            ));
        }
        // What goes aside takes its losses and its room with it.
        leaving.extend(intents.iter().cloned());
        check_room(&leaving)?;
        let mut services = match &self.project {
            Some(_) => Services::find(self.policy, &services::recorded(manifest), &self.stage.places)?,
            None => Services { note: Some("no container of the project is there".into()), ..Services::default() },
        };
        let up = self.up(&intents, &late, recorded)?;
        services.stop_too(&up.as_ref().map(Up::left_down).unwrap_or_default(), self.policy);
        let mut warnings = target.warnings;
        self.new_data_dirs(&intents, &aside, up.as_ref(), &mut warnings)?;
        warnings.extend(
            uncounted
                .iter()
                .map(|name| format!("what leaves of {name} is not counted: this server does not read its dump")),
        );
        warnings.extend(env::logins(&env_files, self.stage)?);
        self.kept_env(&mut warnings)?;
        let (downgrade, downgrades) = self.schema(&intents, &passed_over, &mut warnings)?;
        warnings.extend(self.reader.index_problems.iter().map(|p| crate::repository::chain::full_text(p)));
        warnings.extend(hooks::warning(self.policy));
        warnings.extend(up.iter().flat_map(Up::left_down).map(|service| {
            format!("service {service} runs today and did not when the snapshot was taken: it stays stopped")
        }));
        // Its own files mostly stay; the services that it hands requests to, and what it reads of the code, do not.
        let nginx = Nginx::find(self.policy, manifest.sources.iter().map(|s| (&s.name, &s.facts)));
        let nginx = nginx.map(|n| match intents.iter().any(Nginx::reads) {
            true => n,
            false => n.tried(&self.stage.places),
        });
        let aim = Aim {
            to: target.asked,
            why: target.why,
            commit: target.commit,
            leaves: losses::sentence(&leaving, manifest.time, self.run.now),
            external: self.policy.external.iter().map(ToString::to_string).collect(),
        };
        Ok(TransactionPlan {
            id,
            what: What::Rollback,
            aim: Some(aim),
            policy: self.policy.app.name.clone(),
            snapshot: manifest.snapshot.clone(),
            time: manifest.time,
            expected_downtime_seconds: services.expected_seconds(),
            downgrade,
            downgrades,
            env,
            keep_old_seconds: self.policy.rollback.keep_old.as_secs(),
            replace: false,
            accept_unsaved: self.request.accept_unsaved.clone(),
            intents,
            late,
            aside,
            passed_over,
            up,
            services,
            nginx,
            warnings,
        })
    }

    /// A folder goes aside for nothing but the server of then, and that one has to come.
    fn new_data_dirs(
        &self,
        intents: &[Intent],
        aside: &[Aside],
        up: Option<&Up>,
        warnings: &mut Vec<String>,
    ) -> Result<(), OpsError> {
        if !self.request.new_data_dir {
            return Ok(());
        }
        if aside.is_empty() {
            warnings
                .push("--new-data-dir is not needed: no server that runs is of another major version than then".into());
        }
        for folder in aside {
            let comes =
                intents.iter().any(|i| i.kind == "compose") && up.is_some_and(|up| up.wanted.runs(&folder.service));
            if !comes {
                return Err(OpsError::usage(
                    format!(
                        "--new-data-dir needs the server of then, and service {:?} of it does not come back",
                        folder.service
                    ),
                    "roll the code back with the data: --only code beside --only data, or neither",
                ));
            }
            warnings.push(format!(
                "source {} is filled from its dump while the application stands: that takes as long as a restore",
                folder.source
            ));
        }
        Ok(())
    }

    fn of_policy(&self, source: &SourceEntry) -> Option<&SourcePolicy> {
        self.policy.sources.iter().find(|s| s.name == source.name && s.spec.kind() == source.kind)
    }

    /// Recovery.md's table, and what was asked for.
    fn fate(&self, source: &SourceEntry, of_policy: Option<&SourcePolicy>) -> Result<Fate, OpsError> {
        let stays = |why: &str| Ok(Fate::Stays(why.to_owned()));
        if source.kind == "recovery" {
            return stays("it is for a bare machine");
        }
        let Some(of_policy) = of_policy else { return stays("the policy has no such source any more") };
        if let Some((_, why)) = self.request.keep.iter().find(|(name, _)| *name == source.name) {
            return stays(why);
        }
        let by_name = self.request.only.iter().filter_map(named).any(|name| *name == source.name);
        if !self.request.only.is_empty() && !self.request.only.iter().any(|narrow| within(narrow, source)) {
            return stays("it was not asked for");
        }
        if self.request.keep_data && !matches!(source.kind.as_str(), "git" | "compose" | "env") {
            return stays("data stays as it is (--keep-data)");
        }
        let part = match of_policy.on_rollback {
            OnRollback::Keep if by_name || self.request.everything => Part::default(),
            OnRollback::Keep if source.kind == "certificates" && source.outcome != SourceOutcome::Failed => {
                return self.certificates(source, of_policy);
            }
            OnRollback::Keep => return stays("it stays as it is (on_rollback = \"keep\")"),
            OnRollback::Flush if !self.request.everything => Part { flush: true, ..Part::default() },
            OnRollback::Exact => Part { exact: true, ..Part::default() },
            OnRollback::Restore | OnRollback::Add | OnRollback::Flush => Part::default(),
        };
        if source.outcome == SourceOutcome::Failed {
            let why = source.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
            return Err(OpsError::failed(
                format!(
                    "source {:?} should come back, and its capture failed in snapshot {}{why}",
                    source.name.as_str(),
                    self.reader.manifest.snapshot
                ),
                "take a complete snapshot, or leave the source out: --only names what shall come back",
            ));
        }
        if source.facts["present"].as_bool() == Some(false) {
            return stays("there was none when the snapshot was taken");
        }
        if source.streams.is_empty() && !matches!(source.kind.as_str(), "git" | "compose") {
            return stays("the snapshot holds nothing of it");
        }
        Ok(Fate::Returns(part))
    }

    /// Live certificates stay, unless they are missing, have expired, or their key is not their own.
    fn certificates(&self, source: &SourceEntry, of_policy: &SourcePolicy) -> Result<Fate, OpsError> {
        let streams = SnapshotStreams::new(self.reader, source, &self.run.cancel);
        let stored = Stored { snapshot: &self.reader.manifest.snapshot, streams: &streams, facts: &source.facts };
        let verdicts = returning_certificates(of_policy, &self.policy.app, &stored, &self.run.cancel, self.run.now)
            .map_err(|e| streams.take_damage().unwrap_or_else(|| self.stage.failed(&source.name, e)))?;
        let paths = to_restore(&verdicts);
        if paths.is_empty() {
            return Ok(Fate::Stays("what is live stays: it is there, valid, and its keys are its own".to_owned()));
        }
        Ok(Fate::Returns(Part { paths, ..Part::default() }))
    }

    fn env(&self, source: &SourceEntry, of_policy: &SourcePolicy) -> Result<Decided, OpsError> {
        env::decide((source, of_policy), self.reader, self.stage, (self.request.env, &self.data()?), self.ask)
    }

    /// What becomes of the data that the snapshot has. Whatever holds data may hold what a key encrypted: nothing says
    /// which of them does. What is emptied needs no key.
    fn data(&self) -> Result<DataFate, OpsError> {
        let mut data = DataFate::default();
        for source in &self.reader.manifest.sources {
            let holds = within(&Narrow::Data, source) && !source.streams.is_empty();
            if !holds || source.facts["present"].as_bool() == Some(false) {
                continue;
            }
            let of_policy = self.of_policy(source);
            match self.fate(source, of_policy)? {
                Fate::Returns(part) if part.flush => {}
                Fate::Returns(part) => {
                    let adds = of_policy.is_some_and(|p| p.on_rollback == OnRollback::Add) && !part.exact;
                    data.adds.extend(adds.then(|| source.name.clone()));
                    data.returns.push(source.name.clone());
                }
                Fate::Stays(_) => data.stays.push(source.name.clone()),
            }
        }
        Ok(data)
    }

    /// Data return and their keys do not: what env files stay have to fit them.
    fn kept_env(&self, warnings: &mut Vec<String>) -> Result<(), OpsError> {
        let data = self.data()?;
        if data.returns.is_empty() {
            return Ok(());
        }
        for source in self.reader.manifest.sources.iter().filter(|s| s.kind == "env") {
            let Some(of_policy) = self.of_policy(source).filter(|_| source.outcome != SourceOutcome::Failed) else {
                continue;
            };
            if !matches!(self.fate(source, Some(of_policy))?, Fate::Stays(_)) {
                continue;
            }
            let keys = env::data_keys((source, of_policy), self.reader, self.stage)?;
            if keys.is_empty() {
                continue;
            }
            let text = format!(
                "{} differs since the snapshot and stays, and data that were written under the old value return: {}",
                keys.join(", "),
                env::names(&data.returns)
            );
            if self.request.env.is_none() {
                return Err(OpsError::usage(
                    text,
                    format!(
                        "let the env return with the data (--only data --only {}), or say --env live if they can be \
                         read with today's value; nothing was changed",
                        source.name
                    ),
                ));
            }
            warnings.push(text);
        }
        Ok(())
    }

    /// Databases that stay under code that returns.
    fn schema(
        &self,
        intents: &[Intent],
        passed_over: &[PassedOver],
        warnings: &mut Vec<String>,
    ) -> Result<(Option<String>, Option<SourceName>), OpsError> {
        if !intents.iter().any(|i| matches!(i.kind.as_str(), "git" | "compose")) {
            return Ok((None, None));
        }
        let compose = intents.iter().any(|i| i.kind == "compose");
        let (mut command, mut of) = (None, None);
        for passed in passed_over.iter().filter(|p| p.kind == "postgres") {
            let source = source_named(&self.reader.manifest, &passed.source)?;
            let Some(of_policy) = self.of_policy(source).filter(|_| source.outcome != SourceOutcome::Failed) else {
                continue;
            };
            if compose {
                major::refuse_older(self.stage, source, of_policy)?;
            }
            let change = schema::change(source, of_policy, self.stage)?;
            match schema::fit(self.policy, source, &change, self.request.accept_schema)? {
                Fit::Fits => {}
                Fit::Accepted(lines) => {
                    warnings.extend(lines.into_iter().map(|line| format!("{}: {line} (accepted)", source.name)));
                }
                Fit::Downgraded(_) if command.is_some() => {
                    return Err(OpsError::usage(
                        "the schemas of several databases differ, and [rollback] downgrade is of one",
                        "take them back by hand and say --accept-schema, or roll the data back with the code",
                    ));
                }
                Fit::Downgraded(text) => (command, of) = (Some(text), Some(source.name.clone())),
            }
        }
        Ok((command, of))
    }

    /// How the services come up: as recorded where code or env returns or something is down, else as they were.
    fn up(&self, intents: &[Intent], late: &[Late], recorded: Option<Stack>) -> Result<Option<Up>, OpsError> {
        let kinds = |kind: &str| intents.iter().any(|i| i.kind == kind);
        let code = kinds("git") || kinds("compose");
        if !code && !kinds("env") && late.is_empty() {
            return Ok(None);
        }
        let ran = self.reader.manifest.sources.iter().any(|s| s.kind == "compose" && s.facts["running"] != false);
        if self.project.is_none() && late.is_empty() && !ran && !needs_engine(self.policy) {
            // Nothing ran, nothing runs: there need not even be an engine.
            return Ok(None);
        }
        let live = self.project.as_ref().map(|p| Stack::live(p, &self.policy.app));
        let wanted = match (code || !late.is_empty(), recorded, &live) {
            (true, Some(recorded), _) => intents.iter().find_map(Stack::planned).unwrap_or(recorded),
            (_, _, Some(live)) => live.clone(),
            (_, Some(recorded), None) => recorded,
            (_, None, None) => {
                return match late.first() {
                    None => Ok(None),
                    Some(late) => Err(OpsError::failed(
                        format!("source {:?} has nowhere to go: {}", late.source.as_str(), late.why),
                        "start it; the snapshot does not say how",
                    )),
                };
            }
        };
        let docker = self.stage.places.docker().map_err(of_services)?;
        let label = format!("com.docker.compose.project={}", wanted.project.name);
        let there: Vec<String> = docker.volumes(&[label]).map_err(of_services)?.into_iter().map(|v| v.name).collect();
        let facts = self.reader.manifest.sources.iter().find(|s| s.kind == "compose").map(|s| &s.facts);
        let own = |field: &str| -> Vec<String> {
            let listed = facts.and_then(|f| f[field].as_array()).into_iter().flatten();
            let own = listed.filter(|v| v["external"].as_bool() == Some(false));
            own.filter_map(|v| v["name"].as_str().map(str::to_owned)).collect()
        };
        let new_volumes = own("volumes").into_iter().filter(|v| !there.contains(v)).collect();
        let mut new_networks = Vec::new();
        for network in own("networks") {
            if docker.network(&network).map_err(of_services)?.is_none() {
                new_networks.push(network);
            }
        }
        let known = stores(self.policy);
        let services = wanted.set.services.iter().map(|(name, _)| name.clone());
        Ok(Some(Up {
            stores: services.filter(|s| holds_data(s, &known, self.project.as_ref(), facts)).collect(),
            command: self.policy.rollback.up.clone(),
            wanted,
            live,
            new_volumes,
            new_networks,
        }))
    }
}

/// Whether a service is one of these stores, which a policy names by service or by container: one that is there, or was
/// there when the snapshot was taken.
fn holds_data(service: &str, stores: &[String], project: Option<&Project>, facts: Option<&serde_json::Value>) -> bool {
    let live = project.iter().flat_map(|p| &p.containers);
    let mut live = live.filter(|c| c.compose().is_some_and(|labels| labels.service == service)).map(|c| &c.name);
    let recorded = facts.and_then(|f| f["services"].as_array()).into_iter().flatten();
    let recorded = recorded.filter(|s| s["service"].as_str() == Some(service));
    let mut recorded = recorded.flat_map(|s| s["containers"].as_array().into_iter().flatten());
    let named = |name: &str| stores.iter().any(|s| s == name);
    named(service)
        || live.any(|name| named(name))
        || recorded.any(|container| container["name"].as_str().is_some_and(named))
}

fn of_services(e: PlaceError) -> OpsError {
    OpsError::Source { name: "services".into(), source: SourceError::Place(e) }
}

fn named(narrow: &Narrow) -> Option<&SourceName> {
    match narrow {
        Narrow::Source(name) => Some(name),
        _ => None,
    }
}

fn within(narrow: &Narrow, source: &SourceEntry) -> bool {
    match (narrow, source.kind.as_str()) {
        (Narrow::Code, "git" | "compose") => true,
        (Narrow::Env, "env") => true,
        (Narrow::Data, "postgres" | "redis" | "command" | "files" | "volume") => true,
        (Narrow::Source(name), _) => *name == source.name,
        _ => false,
    }
}

/// Code first: what it brings may be the ground for the rest.
fn rank(kind: &str) -> usize {
    ["git", "compose", "env", "certificates", "nginx", "files", "volume", "command", "redis", "postgres"]
        .iter()
        .position(|k| *k == kind)
        .unwrap_or(usize::MAX)
}
