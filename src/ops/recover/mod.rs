//! `recover`: the server is gone. One application returns onto a machine that has only the program, the identity and the
//! repository; what could not be brought is listed.
//!
//! Order: the bundle is read → what this machine lacks is named, all of it at once → accounts, networks and volumes that
//! must be there first → the code's repository made anew → the policy written → this host vouched for → one transaction,
//! as a rollback with everything returns, but without a safety snapshot: there is nothing to save.
//!
//! A machine on which the application lives is refused: there a rollback saves today's state first. One on which an
//! earlier recovery was cut short is none; a note in the state folder, made before anything else, tells.
//!
//! Invariants: nothing that is there is overwritten before the plan was confirmed; a run that was cut short is done again,
//! or settled by `rollback --resume` once the transaction had begun.

mod ground;
mod lacks;

use crate::base::atomic::{self, IfExists};
use crate::base::ids::{PolicyName, SnapshotId};
use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::browse::part::open_snapshot;
use crate::ops::browse::select::source_named;
use crate::ops::rollback::{self, RollbackRequest, Side};
use crate::ops::streams::SnapshotStreams;
use crate::ops::transaction::{self, TransactionReport, journal};
use crate::ops::{OpsError, Run, setup};
use crate::policy::model::RepositoryUrl;
use crate::policy::{self, Policy};
use crate::repository::format::Outcome;
use crate::repository::reader::SnapshotReader;
use crate::sources::placing::Stored;
use crate::sources::recovery::{Bundle, read};
use crate::sources::{RECOVERY, SourceError, git};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct RecoverRequest {
    /// Absent: the newest complete snapshot.
    pub snapshot: Option<String>,
    /// Absent: whatever the repository has, as long as it is one.
    pub application: Option<PolicyName>,
    pub repository: RepositoryUrl,
    pub identity: PathBuf,
    /// Go on although something is lacking that the old machine had.
    pub despite: bool,
}

/// What would be done.
#[derive(Debug, Clone, Serialize)]
pub struct RecoverPlan {
    pub application: String,
    pub snapshot: SnapshotId,
    pub time: DateTime<Utc>,
    pub root: PathBuf,
    /// Where the policy goes.
    pub policy_file: PathBuf,
    /// What is made before anything returns, one line each.
    pub makes: Vec<String>,
    /// What must be there and is not: without it nothing returns.
    pub lacks: Vec<String>,
    /// What will not be brought, and what to do about it.
    pub not_brought: Vec<String>,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct RecoverReport {
    pub plan: RecoverPlan,
    /// The transaction that brought it back.
    pub transaction: TransactionReport,
    /// What the old machine had beside the application, to look things up in.
    pub bundle: PathBuf,
}

/// A recovery that has been thought through.
pub struct Recovery {
    pub plan: RecoverPlan,
    bundle: Bundle,
    policy: Policy,
    policy_text: String,
    reader: Arc<SnapshotReader>,
    /// What of the application is on this machine already.
    here: Vec<String>,
}

/// Reads the bundle, and looks at this machine.
pub fn plan(
    installation: &Installation,
    access: &Access,
    request: &RecoverRequest,
    run: &Run,
) -> Result<Recovery, OpsError> {
    let name = match &request.snapshot {
        Some(name) => name.clone(),
        None => newest(access, request.application.as_ref())?,
    };
    let reader = open_snapshot(access, &name, "recovering", run)?;
    let manifest = &reader.manifest;
    let source =
        source_named(manifest, &RECOVERY.parse().map_err(|e| OpsError::failed(format!("{e}"), "report this"))?)
            .map_err(|_| {
                OpsError::failed(
                    format!("snapshot {} has no recovery bundle", manifest.snapshot),
                    "restore it with `lifeboat restore --into`, and set the application up by hand",
                )
            })?;
    let streams = SnapshotStreams::new(&reader, source, &run.cancel);
    let bundle = read(&streams).map_err(|e| streams.take_damage().unwrap_or_else(|| of_recovery(e)))?;
    let policy_file = installation.policies().join(format!("{}.toml", manifest.policy));
    let policy_text = moved(&bundle.policy, &policy_file, &request.repository)?;
    let policy = parse(&policy_file, &policy_text)?;
    refuse_other(&policy_file, &policy_text)?;
    let (makes, mut lacks) = ground::look(&bundle, manifest, run)?;
    lacks.extend(lacks::tools(&policy, manifest, &run.cancel));
    let here = match was_cut_short(installation, &policy)? {
        true => Vec::new(),
        false => ground::lives(&bundle, &policy, policy_file.exists(), run)?,
    };
    lacks.extend(here.iter().cloned());
    let plan = RecoverPlan {
        application: bundle.application.clone(),
        snapshot: manifest.snapshot.clone(),
        time: manifest.time,
        root: bundle.root.clone(),
        policy_file,
        makes,
        lacks,
        not_brought: lacks::not_brought(&bundle, &policy),
    };
    Ok(Recovery { plan, bundle, policy, policy_text, reader, here })
}

/// Brings the application back.
pub fn run(
    installation: &Installation,
    access: &Access,
    request: &RecoverRequest,
    recovery: Recovery,
    run: &Run,
) -> Result<RecoverReport, OpsError> {
    let Recovery { plan, bundle, policy, policy_text, reader, here } = recovery;
    if let Some(first) = here.first() {
        return Err(OpsError::usage(
            format!("{} is on this machine already: {first}", plan.application),
            "use `lifeboat rollback`, which saves today's state first; or take what is here away",
        ));
    }
    if !plan.lacks.is_empty() && !request.despite {
        return Err(OpsError::failed(
            format!("this machine lacks what {} needs: {}", plan.application, plan.lacks.join("; ")),
            "install that first (`--despite` goes on without)",
        ));
    }
    let note = note_of(installation, &policy);
    let begun = |text: &str| {
        atomic::write(&note, text.as_bytes(), 0o600, IfExists::Replace).map_err(|e| OpsError::file("write", &note, e))
    };
    let kept = installation.state_dir.join("recovered");
    atomic::create_private_dir(&kept).map_err(|e| OpsError::file("create folder", &kept, e))?;
    begun("")?;
    ground::make(&bundle, run)?;
    let git_source = reader.manifest.sources.iter().find(|s| s.kind == "git" && s.facts["present"] == true);
    if let Some(source) = git_source.filter(|_| !bundle.root.join(".git").exists()) {
        run.events.step(format!("making the repository in {}", bundle.root.display()));
        let streams = SnapshotStreams::new(&reader, source, &run.cancel);
        let stored = Stored { snapshot: &reader.manifest.snapshot, streams: &streams, facts: &source.facts };
        let made = git::make_anew(&bundle.root, &stored, &run.cancel);
        made.map_err(|e| {
            let failed = OpsError::Source { name: source.name.to_string(), source: e };
            streams.take_damage().unwrap_or(failed)
        })?;
    }
    if !plan.policy_file.exists() {
        let dir = installation.policies();
        atomic::create_private_dir(&dir).map_err(|e| OpsError::file("create folder", &dir, e))?;
        atomic::write(&plan.policy_file, policy_text.as_bytes(), 0o600, IfExists::Fail)
            .map_err(|e| OpsError::file("write", &plan.policy_file, e))?;
    }
    setup::enrol(installation, &policy, &request.identity, run)?;
    let kept = kept.join(format!("{}.json", reader.manifest.policy));
    atomic::write(&kept, &bundle.text, 0o600, IfExists::Replace).map_err(|e| OpsError::file("write", &kept, e))?;
    let asked = RollbackRequest { to: plan.snapshot.to_string(), everything: true, ..RollbackRequest::default() };
    // There is nothing of today that a secret could be compared with.
    let transaction = rollback::plan(installation, &policy, access, &asked, &|_| Some(Side::Snapshot), run)?;
    begun(&transaction.id)?;
    let transaction = transaction::run_unsaved(installation, &policy, access, &transaction, run)?;
    if transaction.outcome == transaction::Outcome::Done {
        std::fs::remove_file(&note).map_err(|e| OpsError::file("remove", &note, e))?;
    }
    Ok(RecoverReport { plan, transaction, bundle: kept })
}

/// The transaction of a recovery that has begun; empty before there is one.
fn note_of(installation: &Installation, policy: &Policy) -> PathBuf {
    installation.state_dir.join("recovered").join(format!("{}.begun", policy.app.name))
}

/// Whether an earlier recovery did not come to its end. One that `rollback --resume` brought there did.
fn was_cut_short(installation: &Installation, policy: &Policy) -> Result<bool, OpsError> {
    let note = note_of(installation, policy);
    let id = match std::fs::read_to_string(&note) {
        Ok(id) => id,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(OpsError::file("read", &note, e)),
    };
    let records = journal::records_of(&installation.state_dir, &policy.app.name)?;
    Ok(!records.iter().any(|r| r.plan.id == id && r.end().is_some_and(|(end, _)| end == journal::End::Done)))
}

/// The request with which a bare machine opens the repository.
pub fn access_request(request: &RecoverRequest, reading: AccessRequest) -> AccessRequest {
    AccessRequest { repository: Some(request.repository.clone()), identity: Some(request.identity.clone()), ..reading }
}

fn of_recovery(source: SourceError) -> OpsError {
    OpsError::Source { name: RECOVERY.to_owned(), source }
}

fn newest(access: &Access, application: Option<&PolicyName>) -> Result<String, OpsError> {
    // One that two hosts continued is taken by no policy: it would be refused later on.
    let mut all: Vec<_> = access.snapshots().into_iter().filter(|s| !s.forked).collect();
    all.retain(|s| application.is_none_or(|name| s.header.policy == *name));
    let mut policies: Vec<String> = all.iter().map(|s| s.header.policy.to_string()).collect();
    policies.sort();
    policies.dedup();
    if policies.len() > 1 {
        return Err(OpsError::usage(
            format!("the repository has several applications: {}", policies.join(", ")),
            "say which one with --application NAME",
        ));
    }
    let complete =
        all.iter().rev().find(|s| s.header.outcome == Outcome::Complete && rollback::target::is_candidate(s));
    complete.map(|s| s.header.id.to_string()).ok_or_else(|| {
        OpsError::failed("no snapshot is complete", "name one to recover from all the same; `lifeboat list` shows all")
    })
}

fn parse(file: &Path, text: &str) -> Result<Policy, OpsError> {
    policy::parse(file, text).map_err(|errors| {
        let first = errors.errors.into_iter().next().map(|e| e.message).unwrap_or_default();
        OpsError::failed(
            format!("the policy of the snapshot is none that this version reads: {first}"),
            "use the version that took the snapshot, or restore with --into",
        )
    })
}

/// The policy with the repository where it is now.
fn moved(text: &str, file: &Path, url: &RepositoryUrl) -> Result<String, OpsError> {
    let repository = parse(file, text)?.repository;
    if repository.url == *url {
        return Ok(text.to_owned());
    }
    let by_hand = || {
        OpsError::failed(
            "the repository of the policy cannot be changed to the one that was named",
            format!("write the policy to {} by hand (`lifeboat cat ID recovery` has it)", file.display()),
        )
    };
    if let Some(copy) = repository.copies.iter().find(|copy| copy.url == *url) {
        let others: Vec<_> = repository.copies.iter().filter(|other| other.url != *url).cloned().collect();
        let out = policy::edit::with_repository_at(text, copy, &others).ok_or_else(by_hand)?;
        let moved = parse(file, &out)?.repository;
        return if moved.url == *url && moved.copies == others { Ok(out) } else { Err(by_hand()) };
    }
    let mut section = String::new();
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let plain = line.trim();
        if plain.starts_with('[') {
            section = plain.trim_matches(|c| "[] ".contains(c)).to_owned();
        }
        let sets = |field: &str| {
            let rest = plain.strip_prefix(field).map(str::trim_start);
            section == "repository" && rest.is_some_and(|rest| rest.starts_with('='))
        };
        // A folder has no region: what was the bucket's stays as a comment.
        if matches!(url, RepositoryUrl::Local(_)) && policy::S3_FIELDS.iter().any(|field| sets(field)) {
            out.push_str(&format!("# {line}"));
            continue;
        }
        if sets("url") {
            // A basic string of TOML is one of JSON for what a location can hold.
            let quoted = serde_json::to_string(&url.to_string()).unwrap_or_default();
            out.push_str(&format!("url = {quoted}\n"));
        } else {
            out.push_str(line);
        }
    }
    if parse(file, &out)?.repository.url == *url { Ok(out) } else { Err(by_hand()) }
}

fn refuse_other(file: &Path, text: &str) -> Result<(), OpsError> {
    match std::fs::read_to_string(file) {
        Ok(there) if there != text => Err(OpsError::usage(
            format!("{} is there and says something else", file.display()),
            "this machine is not a bare one: use `lifeboat rollback`, or move that file away",
        )),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(OpsError::file("read", file, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_finds_its_repository_where_it_is_now() {
        let text = include_str!("../../../policies/mindflow.toml");
        let url: RepositoryUrl = crate::ops::access::parse_url("/mnt/rescue/a \"b\"").unwrap();
        let out = moved(text, Path::new("/etc/lifeboat/policies/mindflow.toml"), &url).unwrap();
        assert_eq!(parse(Path::new("/x.toml"), &out).unwrap().repository.url, url);
        assert_eq!(out.lines().count(), text.lines().count());
    }

    #[test]
    fn a_copy_that_takes_the_repositorys_place_is_no_copy_any_more() {
        let file = Path::new("/etc/lifeboat/policies/mindflow.toml");
        let text = include_str!("../../../policies/mindflow.toml");
        let text = text.replacen(
            "[repository]\n",
            "[repository]\ncopies = [\n  \"/mnt/nas\",  # ]\n  { url = \"s3://backups/p\", endpoint = \"https://s3.example.org\", credentials = \"env\" },\n]\n",
            1,
        );
        for (to, left) in [("/mnt/nas", "s3://backups/p"), ("s3://backups/p", "/mnt/nas")] {
            let url = crate::ops::access::parse_url(to).unwrap();
            let before = parse(file, &text).unwrap().repository;
            let listed = before.copies.iter().find(|c| c.url == url).unwrap();
            let after = parse(file, &moved(&text, file, &url).unwrap()).unwrap().repository;
            assert_eq!((after.url.to_string(), after.copies.len()), (to.to_owned(), 1));
            assert_eq!(after.copies[0].url.to_string(), left);
            if let Some(reach) = &listed.reach {
                assert_eq!(after.reach, *reach, "it is reached as the copy was");
            }
        }
    }
}
