//! `snapshot`: capture every source of a policy into one snapshot.
//!
//! Invariants: a failing source never stops the others; a stream of a failed source is not in the manifest; what is
//! oddly small makes the snapshot `suspect`; the header is written last, and then read back.
//!
//! - [`around`]: the policy's hooks
//! - [`sink`]: what sources write to

mod around;
mod sink;

use crate::base::cancel::Cancel;
use crate::base::events::Event;
use crate::base::ids::{HostName, PolicyName, SnapshotId, SourceName, Tag, random_bytes};
use crate::base::threads::{self, NoThread};
use crate::base::time::compact;
use crate::ops::access::{Access, AccessRequest, Installation, host_name};
use crate::ops::copy::{self, CopyOutcome, CopyRequest};
use crate::ops::foresight::Purpose;
use crate::ops::reserve;
use crate::ops::transaction;
use crate::ops::{OpsError, Run, probe};
use crate::pipeline::crypt::{Recipients, object_id};
use crate::pipeline::limits;
use crate::policy::Policy;
use crate::repository::chain::{Snapshot, full_text};
use crate::repository::format::{Header, Outcome, SourceEntry, SourceOutcome, StreamEntry, StreamNote, Trigger};
use crate::repository::keys::HostKey;
use crate::repository::reader::{load_manifest, load_refs};
use crate::repository::state::{self, PolicyLock, State};
use crate::repository::writer::{Committed, SnapshotDraft, SnapshotWriter, WriterOptions};
use crate::repository::{RepositoryError, layout, parallel};
use crate::sources::{Capture, Captured, MemoKey, Source, SourceError};
use around::Around;
use serde::Serialize;
use sink::{MemoOfSource, RepositorySink};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many sources are captured at once. Two keep both cores busy while a server is waited for.
const AT_ONCE: usize = 2;
/// How many lengths of a stream are remembered.
const LENGTHS: usize = 5;
/// Streams below this are never called oddly small.
const SHRINK_FLOOR: u64 = 64 << 10;
/// A run that takes longer than this stops: what it has written might be pruned under it.
const LONGEST_RUN: Duration = Duration::from_secs(6 * 86_400);

/// What a snapshot shall be.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    pub tags: Vec<Tag>,
    pub trigger: Trigger,
    /// Only these sources; empty for all.
    pub only: Vec<SourceName>,
    /// Read everything, also files that look unchanged.
    pub force: bool,
    /// What is far smaller than usual is meant to be so.
    pub accept_size: bool,
}

impl SnapshotOptions {
    /// A plain snapshot of everything.
    pub fn of(trigger: Trigger) -> Self {
        Self { tags: Vec::new(), trigger, only: Vec::new(), force: false, accept_size: false }
    }
}

/// What a snapshot will do: pure data, printed by `--dry-run` and executed as it is.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotPlan {
    pub policy: PolicyName,
    pub host: HostName,
    pub repository: String,
    pub recipients: usize,
    pub tags: Vec<Tag>,
    pub sources: Vec<PlannedSource>,
    /// What is not ours to back up.
    pub external: Vec<String>,
    /// The policy's commands that are run around it.
    pub hooks: usize,
    /// Every source of the policy: what leaves one out that counts is no complete snapshot.
    pub whole: bool,
    #[serde(skip)]
    pub trigger: Trigger,
    #[serde(skip)]
    pub force: bool,
    #[serde(skip)]
    pub accept_size: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct PlannedSource {
    pub name: SourceName,
    pub kind: &'static str,
    pub what: String,
    pub optional: bool,
}

/// What became of one source.
#[derive(Debug, Clone, Serialize)]
pub struct SourceReport {
    pub name: SourceName,
    pub kind: String,
    pub outcome: SourceOutcome,
    pub error: Option<String>,
    pub hint: Option<String>,
    pub warnings: Vec<String>,
    pub streams: usize,
    pub bytes: u64,
    pub seconds: f64,
}

/// A snapshot that exists.
#[derive(Debug, Serialize)]
pub struct SnapshotReport {
    pub header: Header,
    pub sources: Vec<SourceReport>,
    /// A source that counts failed: the snapshot is partial, and not because only a part was asked for.
    pub failed: bool,
    /// The policy's `after_snapshot` failed: the snapshot stands, and the application may not be as it was before.
    pub hook_failed: Option<String>,
    /// The repository has been rolled back behind this host's back.
    pub alarm: Option<String>,
    /// What a person should know of the host or the repository.
    pub notices: Vec<String>,
    /// What became of the policy's copies.
    pub copies: Vec<CopyOutcome>,
    pub seconds: f64,
}

/// Makes the plan. `sources` are all of the policy's.
pub fn plan(policy: &Policy, sources: &[Box<dyn Source>], options: &SnapshotOptions) -> Result<SnapshotPlan, OpsError> {
    if let Some(unknown) = options.only.iter().find(|name| sources.iter().all(|s| s.name() != *name)) {
        let names: Vec<&str> = sources.iter().map(|s| s.name().as_str()).collect();
        return Err(OpsError::usage(
            format!("policy {:?} has no source {unknown:?}", policy.app.name.as_str()),
            format!("its sources are {}", names.join(", ")),
        ));
    }
    let wanted = |s: &&dyn Source| options.only.is_empty() || options.only.contains(s.name());
    let optional = |name: &SourceName| policy.sources.iter().any(|s| s.name == *name && s.optional);
    let planned = sources.iter().map(AsRef::as_ref).filter(wanted).map(|s| PlannedSource {
        name: s.name().clone(),
        kind: s.kind(),
        what: s.describe(),
        optional: optional(s.name()),
    });
    let left_out = sources.iter().map(AsRef::as_ref).any(|s: &dyn Source| !wanted(&s) && !optional(s.name()));
    let plan = SnapshotPlan {
        whole: !left_out,
        policy: policy.app.name.clone(),
        host: host_name()?,
        repository: policy.repository.url.to_string(),
        recipients: policy.repository.recipients.len(),
        tags: options.tags.clone(),
        sources: planned.collect(),
        external: policy.external.iter().map(ToString::to_string).collect(),
        hooks: policy.hooks.before_snapshot.len() + policy.hooks.after_snapshot.len(),
        trigger: options.trigger,
        force: options.force,
        accept_size: options.accept_size,
    };
    Ok(plan)
}

/// Takes the snapshot, and copies it to where the policy says.
pub fn run(
    installation: &Installation,
    policy: &Policy,
    plan: &SnapshotPlan,
    sources: &[Box<dyn Source>],
    run: &Run,
) -> Result<SnapshotReport, OpsError> {
    let begun = Instant::now();
    let state = Arc::new(State::open(&installation.state_dir)?);
    let lock = state.lock_policy(&plan.policy)?.ok_or_else(|| OpsError::Busy { policy: plan.policy.to_string() })?;
    transaction::refuse_pending(&installation.state_dir, &plan.policy)?;
    transaction::discard_expired(installation, policy, run)?;
    let (mut report, mut access, lookout) = under_lock(installation, policy, plan, sources, &state, &lock, run)?;
    drop(lock);
    // The snapshot stands, whatever becomes of its copies.
    if !policy.repository.copies.is_empty() {
        let chain = access.reload()?;
        access = access.with_chain(chain);
    }
    report.copies = copy::every(&access, policy, &lookout.silent, &CopyRequest::default(), run);
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// The same for a caller that holds the policy's lock, and without copies.
pub fn run_locked(
    installation: &Installation,
    policy: &Policy,
    plan: &SnapshotPlan,
    sources: &[Box<dyn Source>],
    (state, lock): (&Arc<State>, &PolicyLock),
    run: &Run,
) -> Result<SnapshotReport, OpsError> {
    let begun = Instant::now();
    let (mut report, ..) = under_lock(installation, policy, plan, sources, state, lock, run)?;
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

fn under_lock(
    installation: &Installation,
    policy: &Policy,
    plan: &SnapshotPlan,
    sources: &[Box<dyn Source>],
    state: &Arc<State>,
    _lock: &PolicyLock,
    run: &Run,
) -> Result<(SnapshotReport, Access, copy::Lookout), OpsError> {
    let mut around = Around::new(state.dir(), policy, plan, run);
    let captured = around.before().and_then(|()| captured(installation, policy, plan, sources, state, run));
    let done = around.after(captured.map(|(report, access, lookout)| (report, (access, lookout))));
    done.map(|(report, (access, lookout))| (report, access, lookout))
}

fn captured(
    installation: &Installation,
    policy: &Policy,
    plan: &SnapshotPlan,
    sources: &[Box<dyn Source>],
    state: &Arc<State>,
    run: &Run,
) -> Result<(SnapshotReport, Access, copy::Lookout), OpsError> {
    for name in crate::sources::sweep(policy, run.now, &run.cancel) {
        run.events.step(format!("removed helper container {name}, which a killed run left behind"));
    }
    let wanted: Vec<&dyn Source> =
        plan.sources.iter().filter_map(|p| sources.iter().find(|s| *s.name() == p.name)).map(AsRef::as_ref).collect();
    let host_key = HostKey::load(&installation.host_key())?;
    // What is not safe to store in is told before anything is stored.
    probe::refresh(&installation.state_dir, &policy.repository, run)?;
    let request =
        AccessRequest { remembered: true, purpose: Purpose::Write(plan.host.clone()), ..AccessRequest::of(policy) };
    let prepare = || wanted.iter().for_each(|source| source.prepare(&run.cancel));
    let mut access = Access::open_while(installation, &request, prepare)?;
    if access.identities.is_none() {
        tracing::debug!("no identity at hand: this host is sealed");
    }
    // What a copy remembers counts as if this host did: the writer alarms, and takes the number behind it.
    let mut lookout = copy::look_out(&access, policy, &plan.host, run)?;
    if let Some(head) = &lookout.head {
        state.set_head(access.repository.id(), head)?;
    }
    let (committed, mut reports, alarm, memo, keep) = match take(&access, policy, plan, &wanted, &host_key, state, run)
    {
        // Something pruned what this run counted on; what is known now is read anew, once.
        Err(OpsError::Repository(RepositoryError::ReferencedGone { id })) => {
            run.events.step(format!("object {id} vanished meanwhile: taking the snapshot again"));
            access = Access::open(installation, &request)?;
            take(&access, policy, plan, &wanted, &host_key, state, run)?
        }
        other => other?,
    };
    // Nobody waits for the disk and the network one after the other.
    let (kept, proved) = parallel::both(|| memo.commit(), || prove(&access, &committed));
    proved?;
    kept.ok_or(RepositoryError::Worker)??;
    reserve::keep(&installation.state_dir);
    for (name, facts) in &keep {
        let source = wanted.iter().find(|s| s.name() == name);
        if let Some(Err(e)) = source.map(|s| s.keep(&committed.header.id, facts, &run.cancel))
            && let Some(report) = reports.iter_mut().find(|r| r.name == *name)
        {
            report
                .warnings
                .push(format!("what was captured is not kept from the source's own cleaning: {}", full_text(&e)));
        }
    }
    let notices = new_lineage(&access, &committed.header).into_iter().chain(std::mem::take(&mut lookout.notices));
    let optional = |r: &SourceReport| plan.sources.iter().any(|p| p.name == r.name && p.optional);
    let report = SnapshotReport {
        failed: reports.iter().any(|r| r.outcome == SourceOutcome::Failed && !optional(r)),
        header: committed.header,
        sources: reports,
        hook_failed: None,
        alarm: lookout.alarm.take().or(alarm),
        notices: notices.collect(),
        copies: Vec::new(),
        seconds: 0.0,
    };
    Ok((report, access, lookout))
}

/// The snapshot before this one was made with another state folder: the host was rebuilt or cloned.
fn new_lineage(access: &Access, header: &Header) -> Option<String> {
    let before = access.chain.line(&header.host, &header.policy).last()?;
    (before.header.lineage != header.lineage).then(|| {
        format!(
            "snapshot {} was taken with another state folder: this host was rebuilt, or there are two of it",
            before.header.id
        )
    })
}

/// Reads back from the storage what makes this a snapshot: the header, whose signature must verify, its refs and, where
/// an identity is at hand, its manifest.
fn prove(access: &Access, committed: &Committed) -> Result<(), OpsError> {
    let (repository, header) = (&access.repository, &committed.header);
    let key = layout::header(&header.host, &header.policy, header.sequence, &header.id);
    let snapshot = Snapshot::of(key.clone(), header.clone(), committed.header_id);
    let header_back = || -> Result<bool, RepositoryError> {
        let (object, bytes) =
            parallel::both(|| repository.storage().head(&key), || repository.get(&key, limits::SIGNED));
        let bytes = bytes?;
        repository.verify_header(&key, &bytes)?;
        let same = object_id(&bytes) == committed.header_id;
        if let (true, Some(cache), Some(Ok(Some(object)))) = (same, &access.headers, object) {
            cache.remember(repository, &object, bytes);
        }
        Ok(same)
    };
    let manifest = || match &access.identities {
        Some(identities) => load_manifest(repository, &snapshot, identities).map(drop),
        None => Ok(()),
    };
    let rest = || parallel::both(|| load_refs(repository, header.refs), manifest);
    let (header_back, (refs, manifest)) = parallel::both(header_back, rest);
    if !header_back.ok_or(RepositoryError::Worker)?.unwrap_or(false) {
        return Err(OpsError::failed(
            format!("snapshot {} was written and cannot be read back", header.id),
            "run `lifeboat verify`; the storage may be losing data",
        ));
    }
    refs.ok_or(RepositoryError::Worker)??;
    Ok(manifest?)
}

/// With the facts of sources that keep what was captured where it lives.
type Taken = (Committed, Vec<SourceReport>, Option<String>, state::Memo, Vec<(SourceName, serde_json::Value)>);

fn take(
    access: &Access,
    policy: &Policy,
    plan: &SnapshotPlan,
    sources: &[&dyn Source],
    host_key: &HostKey,
    state: &Arc<State>,
    run: &Run,
) -> Result<Taken, OpsError> {
    let recipients = Recipients::parse(&policy.repository.recipients).map_err(RepositoryError::from)?;
    let memo_key = MemoKey { dedup: host_key.chunk_id_key().dedup_id(), recipients: recipients.set_id() };
    let options = WriterOptions {
        host: plan.host.clone(),
        policy: plan.policy.clone(),
        recipients,
        compression: policy.repository.compression,
        cancel: run.cancel.clone(),
    };
    let writer = SnapshotWriter::begin(access.repository.clone(), &access.chain, host_key, state.clone(), options)?;
    let alarm = writer.alarm().map(str::to_owned);
    let memo = state.memo(&plan.policy)?;
    let random: [u8; 4] = random_bytes().map_err(|e| OpsError::file("make an id in", state.dir(), e))?;
    let id = format!("{}-{}", compact(run.now), hex::encode(random));
    let id: SnapshotId = id.parse().map_err(|e| OpsError::failed(format!("{e}"), "check the clock"))?;
    let fact_key = host_key.fact_key();
    let scene = Scene { writer: &writer, memo: &memo, memo_key, fact_key: fact_key.expose(), id: &id, plan, run };

    let deadline = Deadline::start(&run.cancel)?;
    let captured = capture_all(&scene, sources);
    drop(deadline);
    if let Some(failure) = writer.take_failure() {
        return Err(failure.into());
    }
    run.cancel.check()?;

    let mut reports = Vec::new();
    let mut entries = Vec::new();
    let mut notes = Vec::new();
    for (planned, done) in plan.sources.iter().zip(captured) {
        let (report, entry) = settle(&writer, plan, planned, done, &mut notes);
        reports.push(report);
        entries.push(entry);
    }
    if entries.iter().all(|e| e.outcome == SourceOutcome::Failed) {
        return Err(nothing_captured(&reports));
    }
    let outcome = judge(plan, &reports);
    let git_commit = entries
        .iter()
        .find(|e| e.kind == "git")
        .and_then(|e| e.facts.pointer("/head/commit")?.as_str().map(str::to_owned));
    let of_git = entries.iter().filter(|e| e.kind == "git" && e.outcome != SourceOutcome::Failed);
    let keep = of_git.map(|e| (e.name.clone(), e.facts.clone())).collect();
    let draft = SnapshotDraft {
        id: id.clone(),
        time: run.now,
        tags: plan.tags.clone(),
        trigger: plan.trigger,
        git_commit,
        outcome,
        sources: entries,
        stream_notes: notes,
    };
    let committed = writer.commit(draft, host_key)?;
    Ok((committed, reports, alarm, memo, keep))
}

/// Not one source gave anything: that is a failed run, not a snapshot.
fn nothing_captured(reports: &[SourceReport]) -> OpsError {
    let first = reports.iter().find_map(|r| Some((r, r.error.as_ref()?)));
    match first {
        Some((report, error)) => OpsError::Failed {
            problem: format!("no source could be captured; source {:?}: {error}", report.name.as_str()),
            hint: report.hint.clone(),
        },
        None => OpsError::usage("the policy has no source", "add a [[source]] to it"),
    }
}

/// `complete`, unless a source that counts failed or was left out, or something is oddly small.
fn judge(plan: &SnapshotPlan, reports: &[SourceReport]) -> Outcome {
    let counts = |r: &&SourceReport| plan.sources.iter().any(|p| p.name == r.name && !p.optional);
    if !plan.whole || reports.iter().filter(counts).any(|r| r.outcome == SourceOutcome::Failed) {
        Outcome::Partial
    } else if reports.iter().any(|r| r.outcome == SourceOutcome::Suspect) {
        Outcome::Suspect
    } else {
        Outcome::Complete
    }
}

/// What all captures of a run share.
struct Scene<'a> {
    writer: &'a SnapshotWriter,
    memo: &'a state::Memo,
    memo_key: MemoKey,
    fact_key: &'a [u8; 32],
    id: &'a SnapshotId,
    plan: &'a SnapshotPlan,
    run: &'a Run,
}

struct Done {
    result: Result<Captured, SourceError>,
    streams: Vec<StreamEntry>,
    seconds: f64,
}

/// Captures the sources, a few at a time; the answers come in the order of the sources.
fn capture_all(scene: &Scene<'_>, sources: &[&dyn Source]) -> Vec<Done> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Done>>> = Mutex::new(sources.iter().map(|_| None).collect());
    threads::share_out(AT_ONCE.min(sources.len()), || {
        loop {
            let at = next.fetch_add(1, Ordering::SeqCst);
            let Some(source) = sources.get(at) else { return };
            let one = capture_one(scene, *source);
            done.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(one);
        }
    });
    let cancelled =
        || Done { result: Err(SourceError::problem("it was not reached")), streams: Vec::new(), seconds: 0.0 };
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter().map(|d| d.unwrap_or_else(cancelled)).collect()
}

fn capture_one(scene: &Scene<'_>, source: &dyn Source) -> Done {
    let begun = Instant::now();
    let events = &scene.run.events;
    let name = source.name();
    let expected_bytes = scene.writer.expected_bytes(name.as_str());
    events.send(Event::SourceBegin { source: name.clone(), expected_bytes });
    let sink = RepositorySink { scene, source: name, streams: Mutex::default() };
    let capture = Capture {
        sink: &sink,
        memo: &MemoOfSource(scene.memo),
        events,
        cancel: &scene.run.cancel,
        now: scene.run.now,
        snapshot: scene.id,
        force: scene.plan.force,
        memo_key: scene.memo_key,
        fact_key: scene.fact_key,
    };
    let result = match scene.run.cancel.check() {
        Ok(()) => source.capture(&capture),
        Err(e) => Err(e.into()),
    };
    events.send(Event::SourceEnd { source: name.clone(), error: result.as_ref().err().map(|e| full_text(e)) });
    let mut streams = sink.streams.into_inner().unwrap_or_else(PoisonError::into_inner);
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    Done { result, streams, seconds: begun.elapsed().as_secs_f64() }
}

/// Turns what a capture gave into the manifest's entry and the report.
fn settle(
    writer: &SnapshotWriter,
    plan: &SnapshotPlan,
    planned: &PlannedSource,
    done: Done,
    notes: &mut Vec<StreamNote>,
) -> (SourceReport, SourceEntry) {
    let mut entry = SourceEntry {
        name: planned.name.clone(),
        kind: planned.kind.to_owned(),
        outcome: SourceOutcome::Complete,
        error: None,
        warnings: Vec::new(),
        streams: Vec::new(),
        facts: serde_json::Value::Null,
    };
    let mut hint = None;
    match done.result {
        Ok(captured) => {
            entry.facts = captured.facts;
            entry.warnings = captured.warnings;
            for stream in &done.streams {
                let (note, shrunk) = remember(writer, (&plan.policy, &planned.name), stream, plan.accept_size);
                notes.push(note);
                if let Some(text) = shrunk {
                    entry.outcome = SourceOutcome::Suspect;
                    entry.warnings.push(text);
                }
            }
            entry.streams = done.streams;
        }
        Err(error) => {
            entry.outcome = SourceOutcome::Failed;
            hint = error.way_out();
            entry.error = Some(full_text(&error));
        }
    }
    let report = SourceReport {
        name: entry.name.clone(),
        kind: entry.kind.clone(),
        outcome: entry.outcome,
        error: entry.error.clone(),
        hint,
        warnings: entry.warnings.clone(),
        streams: entry.streams.len(),
        bytes: entry.streams.iter().map(|s| s.length).sum(),
        seconds: done.seconds,
    };
    (report, entry)
}

/// What is remembered of a stream, and a warning when it is under half the median of its last lengths.
fn remember(
    writer: &SnapshotWriter,
    (policy, source): (&PolicyName, &SourceName),
    stream: &StreamEntry,
    accept_size: bool,
) -> (StreamNote, Option<String>) {
    let known = writer.note(source.as_str(), stream.name.as_str());
    let mut lengths = known.map(|n| n.lengths).unwrap_or_default();
    let mut sorted = lengths.clone();
    sorted.sort_unstable();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
    let is_small = median >= SHRINK_FLOOR && stream.length < median / 2;
    if is_small && accept_size {
        lengths.clear();
    }
    let shrunk = (is_small && !accept_size).then(|| {
        format!(
            "stream {} has {}, under half of the {} that it usually has; if that is meant, say so once with \
             `lifeboat snapshot --accept-size`",
            stream.name,
            crate::base::units::human_size(stream.length),
            crate::base::units::human_size(median)
        )
    });
    // What is suspect does not become the measure.
    if shrunk.is_none() {
        lengths.push(stream.length);
        let excess = lengths.len().saturating_sub(LENGTHS);
        lengths.drain(..excess);
    }
    let (source, name) = (source.clone(), stream.name.clone());
    (StreamNote { policy: policy.clone(), source, stream: name, average: stream.chunk_average, lengths }, shrunk)
}

/// Raises the run's cancellation when it has taken too long; ends quietly when dropped before.
struct Deadline(Option<std::sync::mpsc::Sender<()>>);

impl Deadline {
    fn start(cancel: &Cancel) -> Result<Self, NoThread> {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let cancel = cancel.clone();
        threads::begin(move || {
            if stopped.recv_timeout(LONGEST_RUN) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                cancel.raise(rustix::process::Signal::TERM.as_raw());
            }
        })?;
        Ok(Self(Some(stop)))
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.0 = None;
    }
}
