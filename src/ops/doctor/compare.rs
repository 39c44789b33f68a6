//! `doctor --compare DIR`: what another backup, a cron job of `pg_dump`, has left: its newest dump is restored into a
//! throw-away server and held against the live database as it is today.
//!
//! The live server is read as a snapshot reads it, into nothing; nothing is stored, and nothing live is changed.

use super::{Examined, Finding, Verdict};
use crate::base::ids::{DedupKeyId, RecipientSetId, SnapshotId};
use crate::base::stream::StreamKind;
use crate::base::time::compact;
use crate::base::units::{human_duration, human_size};
use crate::ops::drill::{CheckVerdict, DrillGround};
use crate::ops::{OpsError, Run};
use crate::place::{Command, HostPlace, Place};
use crate::policy::Policy;
use crate::policy::model::{SourcePolicy, SourceSpec};
use crate::repository::chain::full_text;
use crate::sources::extract::Report;
use crate::sources::locate::{Locate, Located};
use crate::sources::postgres::{DumpForm, PostgresSource, compare_foreign};
use crate::sources::project::Places;
use crate::sources::proof::{Check, Proof, Trial};
use crate::sources::streams::{StreamInfo, Streams};
use crate::sources::{Capture, Memo, MemoKey, Piece, Sink, Source, SourceError, StreamSink};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How dumps are called.
const ENDS: &[&str] = &[".sql", ".sql.gz", ".dump", ".dump.gz", ".pgdump", ".backup", ".custom", ".pgc", ".psql"];
/// A nightly job that has not run for longer has stopped.
const STALE: Duration = Duration::from_secs(26 * 3600);
/// Differences that are named.
const NAMED: usize = 10;
const STREAM: &str = "dump";

struct Dump {
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
}

/// Tries the newest dump of a folder.
pub fn compare(policy: &Policy, dir: &Path, run: &Run) -> Result<Examined, OpsError> {
    let mut found = Vec::new();
    tried(policy, dir, run, &mut found)?;
    Ok(Examined { policy: policy.app.name.to_string(), findings: found })
}

fn add(found: &mut Vec<Finding>, verdict: Verdict, detail: impl Into<String>, hint: Option<&str>) {
    found.push(Finding::new("compare", verdict, detail.into(), hint.map(str::to_owned)));
}

fn tried(policy: &Policy, dir: &Path, run: &Run, found: &mut Vec<Finding>) -> Result<(), OpsError> {
    let dumps = dumps(dir)?;
    let Some(newest) = dumps.last() else {
        let text = format!("there is no dump in {} ({} are looked for)", dir.display(), ENDS.join(", "));
        add(found, Verdict::Problem, text, Some("does the job still run, and does it write there?"));
        return Ok(());
    };
    let name = newest.path.display();
    add(found, Verdict::Ok, format!("{name} is the newest of {} ({})", dumps.len(), human_size(newest.bytes)), None);
    let empty: Vec<String> = dumps.iter().filter(|d| d.bytes == 0).map(|d| file_name(&d.path)).collect();
    if !empty.is_empty() {
        let shown = empty.iter().rev().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let text = format!("{} of {} dumps are empty files: {shown}", empty.len(), dumps.len());
        let hint = "a shell's `>` leaves an empty file behind when pg_dump fails, and cron tells nobody";
        add(found, Verdict::Problem, text, Some(hint));
    }
    let age = SystemTime::from(run.now).duration_since(newest.modified).unwrap_or_default();
    if age > STALE {
        let text = format!("the newest dump is {} old", human_duration(age));
        add(found, Verdict::Problem, text, Some("does the job still run?"));
    }
    if newest.bytes == 0 {
        return Ok(());
    }
    let source = match source_of(policy, &newest.path) {
        Some(source) => source,
        None => {
            return Err(OpsError::usage(
                format!("policy {:?} has no source of kind \"postgres\" to compare with", policy.app.name.as_str()),
                "add one, or name another policy with -p",
            ));
        }
    };
    let ground = DrillGround::make()?;
    let plain = match unpacked(newest, ground.path(), run)? {
        Ok(path) => path,
        Err(why) => {
            add(
                found,
                Verdict::Problem,
                format!("{name} cannot be unpacked: {why}"),
                Some("the file is damaged, or ends early"),
            );
            return Ok(());
        }
    };
    let form = if starts_with(&plain, b"PGDMP") { DumpForm::Custom } else { DumpForm::Plain };
    let places = Arc::new(Places::new(&policy.app, &run.cancel));
    let facts = live_facts(source, &places, run)?;
    let Some(database) = database_of(&facts, &newest.path) else {
        add(found, Verdict::Problem, "the live server has no database to compare with", None);
        return Ok(());
    };
    roles(found, &facts);
    let proof = proved(policy, source, &places, ground.path(), &plain, form, &facts, &database, run)?;
    told(found, &proof, &file_name(&newest.path), age);
    Ok(())
}

/// Files that are called as dumps are, oldest first.
fn dumps(dir: &Path) -> Result<Vec<Dump>, OpsError> {
    let failed = |e| OpsError::file("look into", dir, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_dump = ENDS.iter().any(|end| file_name(&path).to_lowercase().ends_with(end));
        let Ok(meta) = fs::metadata(&path) else { continue };
        if is_dump && meta.is_file() {
            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Dump { bytes: meta.len(), modified, path });
        }
    }
    found.sort_by(|a, b| (a.modified, &a.path).cmp(&(b.modified, &b.path)));
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The source that a dump is most likely of: the one whose name stands in the file's name, else the first.
fn source_of<'p>(policy: &'p Policy, dump: &Path) -> Option<&'p SourcePolicy> {
    let all: Vec<&SourcePolicy> = policy.sources.iter().filter(|s| matches!(s.spec, SourceSpec::Postgres(_))).collect();
    let named = all.iter().find(|s| file_name(dump).contains(s.name.as_str()));
    named.or(all.first()).copied()
}

/// The live database whose name stands in the file's name, else the first.
fn database_of(facts: &Value, dump: &Path) -> Option<String> {
    let all: Vec<&str> = facts["databases"].as_array()?.iter().filter_map(|d| d["name"].as_str()).collect();
    let named = all.iter().filter(|name| file_name(dump).contains(**name)).max_by_key(|name| name.len());
    named.or(all.first()).map(|name| (*name).to_owned())
}

fn starts_with(path: &Path, magic: &[u8]) -> bool {
    let mut head = vec![0; magic.len()];
    File::open(path).and_then(|mut f| f.read_exact(&mut head)).is_ok() && head == magic
}

/// The dump itself, or what gzip makes of it; else what gzip said.
fn unpacked(dump: &Dump, ground: &Path, run: &Run) -> Result<Result<PathBuf, String>, OpsError> {
    use std::os::unix::fs::OpenOptionsExt;
    if !starts_with(&dump.path, &[0x1f, 0x8b]) {
        return Ok(Ok(dump.path.clone()));
    }
    run.events.step(format!("unpacking {}", dump.path.display()));
    let path = ground.join("unpacked");
    let failed = |e| OpsError::file("write", &path, e);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let whole = |source: SourceError| OpsError::Source { name: "gzip".into(), source };
    let input = dump.path.to_string_lossy().into_owned();
    let command = Command::new(["gzip", "-dc", "--", input.as_str()]).cancel(&run.cancel);
    let mut running = HostPlace::new().start(command).map_err(|e| whole(e.into()))?;
    let copied = running.stdout().map_or(Ok(0), |mut out| io::copy(&mut out, &mut file));
    let exit = running.wait().map_err(|e| whole(e.into()))?;
    run.cancel.check()?;
    copied.map_err(failed)?;
    if exit.code != 0 {
        return Ok(Err(exit.stderr.trim().replace('\n', "; ")));
    }
    Ok(Ok(path))
}

/// A dump of one database holds no roles: on a new server they must be made first, by hand.
fn roles(found: &mut Vec<Finding>, facts: &Value) {
    let all = facts["roles"].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str());
    let own: Vec<&str> = all.filter(|name| !name.starts_with("pg_") && *name != "postgres").collect();
    if !own.is_empty() {
        let text = format!("the dump holds no roles; the live server has {}", own.join(", "));
        let hint = "on a new server they, their passwords and memberships must be made by hand before it loads; a snapshot has them";
        add(found, Verdict::Warning, text, Some(hint));
    }
}

fn told(found: &mut Vec<Finding>, proof: &Proof, dump: &str, age: Duration) {
    let failed: Vec<&Check> = proof.checks.iter().filter(|c| c.verdict == CheckVerdict::Failed).collect();
    for check in proof.checks.iter().filter(|c| c.verdict == CheckVerdict::Skipped && c.name == "restore") {
        let why = check.why.clone().unwrap_or_default();
        add(found, Verdict::Warning, format!("{dump} was not tried: {why}"), Some("a drill needs the same server"));
    }
    for check in &failed {
        if check.name == "restore" {
            let why = check.why.clone().unwrap_or_default();
            add(
                found,
                Verdict::Problem,
                format!("{dump} does not restore: {why}"),
                Some("it is no backup of this database"),
            );
            continue;
        }
        let named = check.differences.iter().take(NAMED);
        let mut parts: Vec<String> =
            named.map(|d| format!("{}: live {}, in the dump {}", d.subject, d.expected, d.found)).collect();
        let more = (check.differences.len().saturating_sub(NAMED)) as u64 + check.more_differences;
        if more > 0 {
            parts.push(format!("{more} more"));
        }
        if parts.is_empty() {
            parts.push(check.why.clone().unwrap_or_default());
        }
        // What was written since the dump was made is not in it, which is as it must be.
        let moved = ["rows", "sequences", "content"].contains(&check.name.as_str());
        let verdict = if moved { Verdict::Warning } else { Verdict::Problem };
        let hint = match moved {
            true => format!("the dump is {} old: is this what was written since?", human_duration(age)),
            false => "a restore from it would lack this".to_owned(),
        };
        add(found, verdict, format!("{}: {}", check.name, parts.join("; ")), Some(&hint));
    }
    let restored = proof.checks.iter().any(|c| c.name == "restore" && c.verdict == CheckVerdict::Passed);
    if restored {
        let passed = proof.checks.iter().filter(|c| c.verdict == CheckVerdict::Passed).count();
        add(found, Verdict::Ok, format!("{dump} restores; {passed} checks agree with the live database"), None);
    }
}

#[expect(clippy::too_many_arguments, reason = "what a trial is made of")]
fn proved(
    policy: &Policy,
    source: &SourcePolicy,
    places: &Places,
    ground: &Path,
    dump: &Path,
    form: DumpForm,
    facts: &Value,
    database: &str,
    run: &Run,
) -> Result<Proof, OpsError> {
    let scratch = ground.join("proof");
    let failed = |e| OpsError::file("create folder", &scratch, e);
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(&scratch).map_err(failed)?;
    let length = fs::metadata(dump).map_err(|e| OpsError::file("look at", dump, e))?.len();
    let streams = OneFile { path: dump.to_owned(), length };
    let trial = Trial {
        name: &source.name,
        streams: &streams,
        facts,
        source: Some(source),
        policy: Some(policy),
        drill: &policy.drill,
        places,
        trees: &[],
        scratch: &scratch,
        fact_key: None,
        taken: run.now,
        now: run.now,
        began: Instant::now(),
        timeout: source.timeout,
        events: &run.events,
        cancel: &run.cancel,
    };
    let in_source = |e| OpsError::Source { name: source.name.to_string(), source: e };
    compare_foreign(&trial, STREAM, form, database).map_err(|e| match e {
        SourceError::Cancelled(e) => e.into(),
        e => in_source(e),
    })
}

/// What the live server knows of itself now: a capture whose bytes go nowhere.
fn live_facts(source: &SourcePolicy, places: &Arc<Places>, run: &Run) -> Result<Value, OpsError> {
    let SourceSpec::Postgres(spec) = &source.spec else {
        return Err(OpsError::failed("the source is not of kind postgres", "name another policy"));
    };
    run.events.step(format!("reading {} as it is today", source.name));
    let found = places.clone();
    let locate: Locate = Arc::new(move |target| {
        let found = found.find(target)?;
        let env = found.container.map(|c| c.env.into_iter().collect()).unwrap_or_default();
        Ok(Located { place: found.place, env })
    });
    let failed = |e| OpsError::failed(format!("name the look: {e}"), "set the clock");
    let snapshot: SnapshotId = format!("{}-00000000", compact(run.now)).parse().map_err(failed)?;
    let capture = Capture {
        sink: &Nowhere,
        memo: &Nowhere,
        events: &run.events,
        cancel: &run.cancel,
        now: run.now,
        snapshot: &snapshot,
        force: true,
        memo_key: MemoKey { dedup: DedupKeyId([0; 32]), recipients: RecipientSetId([0; 32]) },
        fact_key: &[0; 32],
    };
    let live = PostgresSource::new(source.name.clone(), spec.clone(), source.timeout, locate);
    match live.capture(&capture) {
        Ok(captured) => Ok(captured.facts),
        Err(SourceError::Cancelled(e)) => Err(e.into()),
        Err(e) => {
            tracing::debug!("{}", full_text(&e));
            Err(OpsError::Source { name: source.name.to_string(), source: e })
        }
    }
}

/// Takes every byte and keeps none.
struct Nowhere;

impl Sink for Nowhere {
    fn stream(
        &self,
        _: crate::base::ids::StreamName,
        _: StreamKind,
        _: Option<u64>,
    ) -> io::Result<Box<dyn StreamSink + '_>> {
        Ok(Box::new(Void(0)))
    }
}

impl Memo for Nowhere {
    fn get(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn put(&self, _: &str, _: &[u8]) {}
}

struct Void(u64);

impl Write for Void {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamSink for Void {
    fn end_piece(&mut self) -> io::Result<Piece> {
        Ok(Piece::default())
    }

    fn reuse_piece(&mut self, _: &Piece) -> io::Result<bool> {
        Ok(false)
    }

    fn position(&self) -> u64 {
        self.0
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}

/// A file of this host as the only stream of a source.
struct OneFile {
    path: PathBuf,
    length: u64,
}

impl Streams for OneFile {
    fn list(&self) -> Vec<StreamInfo> {
        vec![StreamInfo { name: STREAM.into(), kind: StreamKind::PgDump, length: self.length }]
    }

    fn open(&self, _: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(File::open(&self.path)?))
    }

    fn lay_out(&self, _: &Path) -> Result<Report, SourceError> {
        Ok(Report::default())
    }
}
