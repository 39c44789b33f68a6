//! `snapshot`.

use crate::base::ids::{SourceName, Tag};
use crate::base::units::{human_duration, human_size};
use crate::cli::args::SnapshotArgs;
use crate::cli::commands::{copy, drill};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, printable};
use crate::cli::session::{Session, argument};
use crate::ops::access::{Access, AccessRequest};
use crate::ops::drill::{self as drilling, DrillReport, DrillRequest};
use crate::ops::setup;
use crate::ops::snapshot::{self, SnapshotOptions, SnapshotPlan, SnapshotReport};
use crate::ops::{Outcome, SourceOutcome};
use crate::ops::{check, code};
use crate::policy::Policy;
use serde::Serialize;
use std::time::Duration;

pub fn run(session: &Session, args: &SnapshotArgs) -> Result<Exit, Failure> {
    let policy = session.policy().map_err(|f| f.attempted("snapshot"))?;
    let done = with_policy(session, args, &policy);
    session.progress.finish();
    done.map_err(|f| f.attempted(format!("snapshot {}", policy.app.name)))
}

fn with_policy(session: &Session, args: &SnapshotArgs, policy: &Policy) -> Result<Exit, Failure> {
    let options = SnapshotOptions {
        tags: args.tags.iter().map(|t| argument::<Tag>("--tag", t)).collect::<Result<_, _>>()?,
        trigger: session.trigger(),
        only: args.only.iter().map(|s| argument::<SourceName>("--only", s)).collect::<Result<_, _>>()?,
        force: args.force,
        accept_size: args.accept_size,
    };
    let sources = check::sources(&session.installation, policy, &session.run.cancel);
    let plan = snapshot::plan(policy, &sources, &options)?;
    unproved(session, policy)?;
    if args.git_tag {
        code::check_tags(policy, &plan.tags, &session.run)?;
    }
    if args.dry_run {
        return show_plan(session, &plan);
    }
    if args.git_tag {
        // Before the capture, so that it sees them.
        code::tag(policy, &plan.tags, &session.run)?;
    }
    let report = snapshot::run(&session.installation, policy, &plan, &sources, &session.run)?;
    session.note(|noted| {
        noted.snapshot = Some(report.header.id.to_string());
        noted.bytes_total = Some(report.header.bytes_total);
        noted.bytes_new = Some(report.header.bytes_new);
        noted.suspect = report.header.outcome == Outcome::Suspect;
    });
    session.progress.finish();
    let mut exit = exit_of(session, &report);
    if !session.out.json {
        session.out.note(&text(session, &report))?;
    }
    alarms(session, &report);
    let drilled = if args.drill { Some(drilled(session, policy, &report)?) } else { None };
    if let Some(drilled) = &drilled {
        // A snapshot that is there and proved wrong is worse than one that lacks something.
        let proved = drill::exit_of(drilled);
        exit = if proved == Exit::Done || exit == Exit::Integrity { exit } else { proved };
    }
    if session.out.json {
        session.out.document(exit, &SnapshotDocument { report: &report, drill: drilled.as_ref() })?;
    }
    Ok(exit)
}

/// Proves the snapshot that has just been taken.
fn drilled(session: &Session, policy: &Policy, report: &SnapshotReport) -> Result<DrillReport, Failure> {
    let asked = AccessRequest { remembered: true, ..AccessRequest::of(policy) };
    let prove = || -> Result<DrillReport, Failure> {
        let access = Access::open(&session.installation, &asked)?;
        let request = DrillRequest { snapshot: Some(report.header.id.to_string()), ..DrillRequest::default() };
        let plan = drilling::plan(&access, Some(policy), &request, &session.run)?;
        drill::prove(session, &access, &asked, &plan)
    };
    // The snapshot stands: what could not be done is its proof.
    let drilled = prove().map_err(|f| f.attempted(format!("drill snapshot {}, which was taken", report.header.id)))?;
    if !session.out.json {
        let text = format!("\n{}", drill::text(session, &drilled));
        if drill::exit_of(&drilled) == Exit::Done { session.out.note(&text)? } else { session.out.text(&text)? }
    }
    drill::complain(session, &drilled);
    Ok(drilled)
}

#[derive(Serialize)]
struct SnapshotDocument<'a> {
    #[serde(flatten)]
    report: &'a SnapshotReport,
    /// Absent without `--drill`.
    #[serde(skip_serializing_if = "Option::is_none")]
    drill: Option<&'a DrillReport>,
}

/// Says who may be unable to read it.
fn unproved(session: &Session, policy: &Policy) -> Result<(), Failure> {
    for recipient in setup::unproved(&session.installation.state_dir, &policy.repository.recipients)? {
        session.out.alarm(&format!(
            "recipient {recipient} is not proved: no identity has opened what was encrypted to it; \
             `lifeboat policy check --live --identity FILE` tries"
        ));
    }
    Ok(())
}

#[derive(Serialize)]
struct PlanDocument<'a> {
    plan: &'a SnapshotPlan,
}

/// The snapshot is complete and stays so when a copy of it fails: that is partial, as when a source failed.
fn exit_of(session: &Session, report: &SnapshotReport) -> Exit {
    let copies = copy::exit_beside(session, &report.copies);
    match (&report.alarm, report.failed || report.hook_failed.is_some()) {
        (Some(_), _) => Exit::Integrity,
        (None, _) if copies == Exit::Integrity => copies,
        (None, true) if copies == Exit::Done => Exit::Partial,
        (None, _) => copies,
    }
}

fn show_plan(session: &Session, plan: &SnapshotPlan) -> Result<Exit, Failure> {
    if session.out.json {
        session.out.document(Exit::Done, &PlanDocument { plan })?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&[("SOURCE", Align::Left), ("KIND", Align::Left), ("WHAT", Align::Left)]);
    for source in &plan.sources {
        let what = if source.optional { format!("{} (optional)", source.what) } else { source.what.clone() };
        table.plain([source.name.as_str(), source.kind, &what]);
    }
    let recipients = match plan.recipients {
        1 => "1 recipient".to_owned(),
        n => format!("{n} recipients"),
    };
    let mut text = format!("snapshot of {} on {} to {}, for {recipients}\n\n", plan.policy, plan.host, plan.repository);
    text += &session.out.table(&table);
    if plan.hooks > 0 {
        text += &format!("\n{} hooks of the policy are run around it\n", plan.hooks);
    }
    if !plan.external.is_empty() {
        text += &format!("\nnot ours to back up: {}\n", plan.external.join(", "));
    }
    session.out.text(&text)?;
    Ok(Exit::Done)
}

fn text(session: &Session, report: &SnapshotReport) -> String {
    let out = &session.out;
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("KIND", Align::Left),
        ("OUTCOME", Align::Left),
        ("STREAMS", Align::Right),
        ("BYTES", Align::Right),
        ("TIME", Align::Right),
        ("WARNINGS", Align::Right),
    ]);
    let mut below = String::new();
    for source in &report.sources {
        let (outcome, paint) = outcome_cell(source.outcome);
        let warnings = if source.warnings.is_empty() { String::new() } else { source.warnings.len().to_string() };
        table.row(vec![
            (source.name.to_string(), Paint::Plain),
            (source.kind.clone(), Paint::Plain),
            (outcome.into(), paint),
            (source.streams.to_string(), Paint::Plain),
            (human_size(source.bytes), Paint::Plain),
            (human_duration(Duration::from_secs_f64(source.seconds.max(0.0))), Paint::Plain),
            (warnings, Paint::Yellow),
        ]);
        if let Some(error) = &source.error {
            let label = out.paint(Paint::Red, "failed:");
            below += &format!("{label} source {:?}: {}\n", source.name, printable(error));
            below += &source.hint.iter().map(|hint| format!("  hint: {}\n", printable(hint))).collect::<String>();
        }
        for warning in &source.warnings {
            let label = out.paint(Paint::Yellow, "warning:");
            below += &format!("{label} source {:?}: {}\n", source.name, printable(warning));
        }
    }
    let header = &report.header;
    let (outcome, paint) = header_cell(header.outcome);
    let tags: String = header.tags.iter().map(|t| format!("  {t}")).collect();
    let last = format!(
        "snapshot {}  {}{tags}\n{} in all, {} new, {}\n",
        out.paint(Paint::Bold, header.id.as_str()),
        out.paint(paint, outcome),
        human_size(header.bytes_total),
        human_size(header.bytes_new),
        human_duration(Duration::from_secs_f64(report.seconds.max(0.0))),
    );
    let gap = if below.is_empty() { "" } else { "\n" };
    let copies: String = report.copies.iter().filter_map(|c| c.report.as_ref()).map(copy::summary).collect();
    format!("{}{gap}{}\n{last}{copies}", out.table(&table), below)
}

/// What must be seen even by somebody who asked for silence.
fn alarms(session: &Session, report: &SnapshotReport) {
    let out = &session.out;
    match report.header.outcome {
        Outcome::Suspect => out.alarm(&format!(
            "SUSPECT: snapshot {} is much smaller than usual: {}",
            report.header.id,
            warned(report, SourceOutcome::Suspect)
        )),
        Outcome::Partial if !report.failed => out.alarm(&format!(
            "snapshot {} holds a part of the policy's sources, as asked: it does not count as a complete one",
            report.header.id,
        )),
        Outcome::Partial => out.alarm(&format!(
            "PARTIAL: snapshot {} lacks {}",
            report.header.id,
            warned(report, SourceOutcome::Failed)
        )),
        Outcome::Complete => {}
    }
    if let Some(failed) = &report.hook_failed {
        out.alarm(&format!("the snapshot stands, and the application may not be as it was: {failed}"));
    }
    report.notices.iter().for_each(|notice| out.alarm(notice));
    copy::alarms(session, &report.copies);
    if let Some(alarm) = &report.alarm {
        out.alarm(&format!("ALARM: {alarm}"));
    }
}

fn warned(report: &SnapshotReport, which: SourceOutcome) -> String {
    let of = report.sources.iter().filter(|s| s.outcome == which);
    let text = of.map(|s| {
        let why = s.error.clone().or_else(|| s.warnings.last().cloned()).unwrap_or_default();
        format!("source {:?} ({why})", s.name)
    });
    text.collect::<Vec<_>>().join(", ")
}

pub fn outcome_cell(outcome: SourceOutcome) -> (&'static str, Paint) {
    match outcome {
        SourceOutcome::Complete => ("complete", Paint::Green),
        SourceOutcome::Suspect => ("suspect", Paint::Yellow),
        SourceOutcome::Failed => ("failed", Paint::Red),
    }
}

pub fn header_cell(outcome: Outcome) -> (&'static str, Paint) {
    match outcome {
        Outcome::Complete => ("complete", Paint::Green),
        Outcome::Suspect => ("suspect", Paint::Yellow),
        Outcome::Partial => ("partial", Paint::Red),
    }
}
