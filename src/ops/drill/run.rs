//! The run: everything restored into something throw-away, and compared.

use super::leftovers::{self, Ground};
use super::plan::{DrillPlan, wanted};
use super::report::{DrillReport, ProofReport, count, outcome, verdict};
use super::{page, record, rollback};
use crate::base::atomic::{self, IfExists};
use crate::base::events::Event;
use crate::base::ids::SourceName;
use crate::base::secret::Secret;
use crate::base::time::compact;
use crate::ops::access::{Access, AccessRequest, Installation, host_name};
use crate::ops::browse::part::open_resolved;
use crate::ops::streams::SnapshotStreams;
use crate::ops::{ErrorKind, OpsError, Run};
use crate::policy::Policy;
use crate::policy::model::{App, Drill};
use crate::repository::chain::{Snapshot, full_text};
use crate::repository::format::{DrillOutcome, SourceEntry, SourceOutcome};
use crate::repository::keys::HostKey;
use crate::repository::reader::SnapshotReader;
use crate::repository::state::State;
use crate::sources::project::Places;
use crate::sources::proof::{Check, LaidTree, Proof, Step, Trial, Verdict};
use crate::sources::streams::Streams;
use crate::sources::{self, SourceError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Kinds whose trees are small, and needed by the proofs of others.
const LAID: &[&str] = &["env", "certificates", "nginx", "compose"];
/// What one proof may take where the policy says nothing.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// Proves what the plan says.
pub fn run(
    installation: &Installation,
    access: &Access,
    policy: Option<&Policy>,
    request: &AccessRequest,
    plan: &DrillPlan,
    run: &Run,
) -> Result<DrillReport, OpsError> {
    let began = Instant::now();
    let _lock = lock(installation, access, plan)?;
    if let Some(policy) = policy {
        for name in sources::sweep(policy, run.now, &run.cancel) {
            run.events.step(format!("removed helper container {name}, which a killed run left behind"));
        }
    }
    let base = leftovers::base();
    for swept in leftovers::sweep(&base) {
        run.events.step(format!("removed {}, which a killed drill left behind", swept.display()));
    }
    let snapshot = access.resolve(plan.snapshot.as_str(), run.now)?;
    let ground = Ground::make(&base)?;
    let reader = open_resolved(access, snapshot, "a drill", run)?;
    let host_key = HostKey::load(&installation.host_key()).ok();
    let app = policy.map_or_else(|| stranger(plan), |p| p.app.clone());
    let drill = Drilling {
        reader: &reader,
        policy,
        settings: policy.map(|p| p.drill.clone()).unwrap_or_default(),
        places: Places::new(&app, &run.cancel),
        fact_key: host_key.map(|key| key.fact_key()),
        ground: &ground,
        run,
        began,
    };
    let mut report = drill.prove(plan, snapshot)?;
    drop(drill);
    if let Some(to) = &plan.rollback {
        let planned = rollback::planned(installation, policy, access, to, began, run)?;
        report.add(planned);
    }
    if plan.keep {
        report.kept = Some(ground.keep());
    } else {
        drop(ground);
    }
    finish(installation, access, request, (snapshot, &reader), plan, &mut report, run);
    Ok(report)
}

/// One drill of a policy at a time; snapshots may go on beside it.
fn lock(
    installation: &Installation,
    access: &Access,
    plan: &DrillPlan,
) -> Result<Option<crate::repository::state::PolicyLock>, OpsError> {
    if access.state.is_none() {
        return Ok(None);
    }
    let state = State::open(&installation.state_dir)?;
    let lock = state.lock_drill(&plan.policy)?;
    lock.map(Some).ok_or_else(|| OpsError::Busy { policy: plan.policy.to_string() })
}

/// An application of which only its name is known.
fn stranger(plan: &DrillPlan) -> App {
    App {
        name: plan.policy.clone(),
        root: "/".into(),
        compose_files: Vec::new(),
        env_files: Vec::new(),
        profiles: Vec::new(),
        // No engine has a project of that name: nothing of this machine is taken for the application.
        project: Some(String::new()),
        project_dir: None,
    }
}

/// Stores and writes down what was found. The drill stands, whatever becomes of its report.
fn finish(
    installation: &Installation,
    access: &Access,
    request: &AccessRequest,
    (snapshot, reader): (&Snapshot, &Arc<SnapshotReader>),
    plan: &DrillPlan,
    report: &mut DrillReport,
    run: &Run,
) {
    if !plan.only.is_empty() {
        report.notes.push("a part of the snapshot was proved: that is no drill of it, and none is recorded".to_owned());
    } else if access.state.is_none() {
        report.notes.push(
            "the outcome is not recorded: this is not an installed host, and it has no key to sign with".to_owned(),
        );
    } else {
        match record::store(installation, access, request, snapshot, &reader.manifest, report, run) {
            Ok(stored) => report.record = Some(stored.key.to_string()),
            Err(e) => {
                let hint = e.hint().map(|h| format!(" ({h})")).unwrap_or_default();
                report.notes.push(format!("the outcome is not recorded: {}{hint}", full_text(&e)));
            }
        }
    }
    match write_page(installation, access, plan, report) {
        Ok(path) => report.page = path,
        Err(e) => report.notes.push(format!("the page is not written: {}", full_text(&e))),
    }
}

fn write_page(
    installation: &Installation,
    access: &Access,
    plan: &DrillPlan,
    report: &DrillReport,
) -> Result<Option<PathBuf>, OpsError> {
    let path = match &plan.page {
        Some(path) => std::path::absolute(path).map_err(|e| OpsError::file("find", path, e))?,
        None if access.state.is_none() => return Ok(None),
        None => {
            let dir = installation.state_dir.join("drills");
            atomic::create_private_dir(&dir).map_err(|e| OpsError::file("create folder", &dir, e))?;
            dir.join(format!("{}-{}.html", report.snapshot, compact(report.started)))
        }
    };
    let page = page(report);
    atomic::write(&path, page.as_bytes(), 0o600, IfExists::Replace).map_err(|e| OpsError::file("write", &path, e))?;
    Ok(Some(path))
}

/// What all proofs of a drill share.
struct Drilling<'a> {
    reader: &'a SnapshotReader,
    policy: Option<&'a Policy>,
    settings: Drill,
    places: Places,
    fact_key: Option<Secret<[u8; 32]>>,
    ground: &'a Ground,
    run: &'a Run,
    began: Instant,
}

impl Drilling<'_> {
    fn prove(&self, plan: &DrillPlan, snapshot: &Snapshot) -> Result<DrillReport, OpsError> {
        let manifest = &self.reader.manifest;
        let opened = self.began.elapsed();
        let mut failure = None;
        let mut sources = vec![self.repository()];
        let (trees, broken) = self.trees(&mut failure)?;
        let laid = self.began.elapsed();
        for source in manifest.sources.iter().filter(|s| wanted(&plan.only, &s.name)) {
            self.run.cancel.check()?;
            let unlaid = broken.iter().find(|(name, _)| *name == source.name).map(|(_, why)| why.clone());
            sources.push(self.source(source, plan.keep, &trees, unlaid, &mut failure)?);
        }
        let checks = count(sources.iter().flat_map(|s| &s.proof.checks));
        let restoring: f64 =
            sources.iter().flat_map(|s| &s.proof.steps).filter(|s| s.restores).map(|s| s.seconds).sum();
        // Opening the repository alone proves nothing of the application.
        let ran = count(sources[1..].iter().flat_map(|s| &s.proof.checks)).passed > 0;
        Ok(DrillReport {
            snapshot: manifest.snapshot.clone(),
            host: manifest.host.clone(),
            policy: manifest.policy.clone(),
            drilled_on: host_name()?,
            taken: snapshot.header.time,
            started: self.run.now,
            outcome: if ran { outcome(checks) } else { DrillOutcome::Failed },
            checks,
            seconds: self.began.elapsed().as_secs_f64(),
            recovery_seconds: restoring + opened.as_secs_f64() + (laid - opened).as_secs_f64(),
            data_age_seconds: (self.run.now - snapshot.header.time).num_seconds(),
            restored: sources.iter().flat_map(|s| s.proof.restored.clone()).collect(),
            notes: self.notes(ran),
            sources,
            record: None,
            page: None,
            kept: None,
            failure: failure.map(Arc::new),
        })
    }

    fn notes(&self, ran: bool) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        if self.policy.is_none() {
            notes.push("no policy is at hand: its rules and SQL checks were not applied".to_owned());
        }
        if !ran {
            notes.push("no check of the application could run: that proves nothing, and counts as failed".to_owned());
        }
        for problem in &self.reader.index_problems {
            notes.push(format!("{}; other index objects stood in for it", full_text(problem)));
        }
        notes
    }

    /// The identity opens every archive that the snapshot needs.
    fn repository(&self) -> ProofReport {
        let mut proof = Proof::default();
        let begin = self.began.elapsed().as_secs_f64();
        for opener in self.reader.openers() {
            let all =
                if opener.archives == 1 { "1 archive".to_owned() } else { format!("{} archives", opener.archives) };
            let found = format!("{} open", opener.opened);
            let subject = opener.recipient.clone();
            proof.add(match (opener.at_hand, opener.opened == opener.archives) {
                (false, _) => Check::skipped("recipient", subject, "its identity is not at hand"),
                (true, true) => Check::passed("recipient", subject, all, found),
                (true, false) => {
                    Check::failed("recipient", subject, all, found, "this identity does not open all archives")
                }
            });
        }
        let seconds = self.began.elapsed().as_secs_f64();
        proof.steps.push(Step { name: "open".to_owned(), begin_seconds: 0.0, seconds: begin, restores: false });
        let name = REPOSITORY.parse().unwrap_or_else(|e| unreachable!("{e}"));
        let verdict = verdict(&proof.checks);
        ProofReport { name, kind: REPOSITORY.to_owned(), verdict, begin_seconds: 0.0, seconds, proof }
    }

    /// Lays the small trees out. A tree that cannot be is a failed check of its source, not the end of the drill.
    #[expect(clippy::type_complexity, reason = "two lists for the one caller, right above")]
    fn trees(&self, failure: &mut Option<OpsError>) -> Result<(Vec<LaidTree>, Vec<(SourceName, String)>), OpsError> {
        let (mut trees, mut broken) = (Vec::new(), Vec::new());
        let below = self.ground.folder(".trees")?;
        // Also of sources that were not asked for: those that were may need them.
        for source in &self.reader.manifest.sources {
            if !LAID.contains(&source.kind.as_str()) || source.outcome == SourceOutcome::Failed {
                continue;
            }
            let root = below.join(source.name.as_str());
            atomic::create_private_dir(&root).map_err(|e| OpsError::file("create folder", &root, e))?;
            let streams = SnapshotStreams::new(self.reader, source, &self.run.cancel);
            match streams.lay_out(&root) {
                Ok(_report) => trees.push(LaidTree { source: source.name.clone(), kind: source.kind.clone(), root }),
                Err(e) => {
                    self.run.cancel.check()?;
                    keep_first(failure, streams.take_damage());
                    broken.push((source.name.clone(), full_text(&e)));
                }
            }
        }
        Ok((trees, broken))
    }

    fn source(
        &self,
        source: &SourceEntry,
        keep: bool,
        trees: &[LaidTree],
        unlaid: Option<String>,
        failure: &mut Option<OpsError>,
    ) -> Result<ProofReport, OpsError> {
        let events = &self.run.events;
        let expected_bytes = Some(source.streams.iter().map(|s| s.length).sum());
        events.send(Event::SourceBegin { source: source.name.clone(), expected_bytes });
        let begin = self.began.elapsed().as_secs_f64();
        let streams = SnapshotStreams::new(self.reader, source, &self.run.cancel);
        let proved = match unlaid {
            Some(why) => Ok(ProofReport::broken(source.name.clone(), source.kind.clone(), why).proof),
            None if source.outcome == SourceOutcome::Failed => Ok(not_captured(source)),
            None => self.trial(source, &streams, trees, keep),
        };
        self.run.cancel.check()?;
        keep_first(failure, streams.take_damage());
        let proof = match proved {
            Ok(proof) => proof,
            Err(Trouble::Source(e)) => {
                let why = e.way_out().map_or_else(|| full_text(&e), |hint| format!("{} ({hint})", full_text(&e)));
                ProofReport::broken(source.name.clone(), source.kind.clone(), why).proof
            }
            Err(Trouble::Run(e)) => return Err(e),
        };
        let verdict = verdict(&proof.checks);
        let error = proof.checks.iter().find(|c| c.verdict == Verdict::Failed).and_then(|c| c.why.clone());
        events.send(Event::SourceEnd { source: source.name.clone(), error });
        let seconds = self.began.elapsed().as_secs_f64() - begin;
        Ok(ProofReport {
            name: source.name.clone(),
            kind: source.kind.clone(),
            verdict,
            begin_seconds: begin,
            seconds,
            proof,
        })
    }

    fn trial(
        &self,
        source: &SourceEntry,
        streams: &SnapshotStreams<'_>,
        trees: &[LaidTree],
        keep: bool,
    ) -> Result<Proof, Trouble> {
        let Some(prover) = sources::prover(&source.kind) else {
            let why = format!("this version does not know how to prove a source of kind {:?}", source.kind);
            return Ok(Proof { checks: vec![Check::skipped("proof", "", why)], ..Proof::default() });
        };
        let scratch = self.ground.folder(source.name.as_str()).map_err(Trouble::Run)?;
        let of_policy = self.policy.and_then(|p| p.sources.iter().find(|s| s.name == source.name));
        let of_policy = of_policy.filter(|s| s.spec.kind() == source.kind);
        let trial = Trial {
            name: &source.name,
            streams,
            facts: &source.facts,
            source: of_policy,
            policy: self.policy,
            drill: &self.settings,
            places: &self.places,
            trees,
            scratch: &scratch,
            fact_key: self.fact_key.as_ref().map(Secret::expose),
            taken: self.reader.snapshot.header.time,
            now: self.run.now,
            began: self.began,
            timeout: of_policy.map_or(LONGEST, |s| s.timeout.max(Duration::from_secs(60))),
            events: &self.run.events,
            cancel: &self.run.cancel,
        };
        let proved = prover.prove(&trial).map_err(Trouble::Source);
        if let Some(e) = (!keep).then(|| clear(&scratch)).and_then(Result::err) {
            tracing::warn!("{} is left behind until the drill ends: {e}", scratch.display());
        }
        proved
    }
}

/// Why a source was not proved.
enum Trouble {
    Source(SourceError),
    /// Nothing more can be done.
    Run(OpsError),
}

/// Large things go at once, not at the end of the drill.
fn clear(scratch: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(scratch)? {
        crate::ops::restore::remove_tree(&entry?.path())?;
    }
    Ok(())
}

fn keep_first(failure: &mut Option<OpsError>, found: Option<OpsError>) {
    if let Some(found) = found.filter(|e| e.kind() == ErrorKind::Integrity) {
        failure.get_or_insert(found);
    }
}

/// The snapshot does not have the source, and says why.
fn not_captured(source: &SourceEntry) -> Proof {
    let why = source.error.clone().unwrap_or_else(|| "its capture failed".to_owned());
    let check = Check::failed("captured", "", "the source is in the snapshot", "it is not", why);
    Proof { checks: vec![check], ..Proof::default() }
}

/// The name under which what concerns the repository itself is reported.
const REPOSITORY: &str = "repository";
