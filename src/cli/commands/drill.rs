//! `drill`.

use crate::base::units::{human_duration, human_size};
use crate::cli::args::DrillArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, local, printable};
use crate::cli::session::{Session, argument};
use crate::ops::access::{Access, AccessRequest};
use crate::ops::drill::{
    self, Check, DrillLine, DrillOutcome, DrillPlan, DrillReport, DrillRequest, ProofReport, Verdict,
};
use std::time::Duration;

/// Differences of a check that are written out; all that were kept stand in the JSON document.
const SHOWN: usize = 5;

pub fn run(session: &Session, args: &DrillArgs) -> Result<Exit, Failure> {
    let done = drill(session, args);
    session.progress.finish();
    done.map_err(|f| match &args.id {
        Some(id) => f.attempted(format!("drill {id}")),
        None => f.attempted("drill"),
    })
}

fn drill(session: &Session, args: &DrillArgs) -> Result<Exit, Failure> {
    let mut request = DrillRequest {
        snapshot: args.id.clone(),
        keep: args.keep,
        page: args.page.clone(),
        rollback: args.rollback.clone(),
        ..DrillRequest::default()
    };
    for name in &args.only {
        request.only.push(argument("--only", name)?);
    }
    let asked = session.access_request(&args.reading)?;
    let access = session.open(&args.reading)?;
    let plan = drill::plan(&access, asked.policy.as_ref(), &request, &session.run)?;
    if args.dry_run {
        return show_plan(session, &plan);
    }
    let report = prove(session, &access, &asked, &plan)?;
    let exit = exit_of(&report);
    if session.out.json {
        session.out.document(exit, &report)?;
    } else if exit == Exit::Done {
        session.out.note(&text(session, &report))?;
    } else {
        session.out.text(&text(session, &report))?;
    }
    complain(session, &report);
    Ok(exit)
}

/// Runs a drill; also for `snapshot --drill`.
pub fn prove(
    session: &Session,
    access: &Access,
    asked: &AccessRequest,
    plan: &DrillPlan,
) -> Result<DrillReport, Failure> {
    let report = drill::run(&session.installation, access, asked.policy.as_ref(), asked, plan, &session.run)?;
    session.note(|noted| {
        noted.snapshot = Some(report.snapshot.to_string());
        noted.drill = Some(report.outcome == DrillOutcome::Passed);
        noted.problem =
            report.all_checks().find(|(_, check)| check.verdict == Verdict::Failed).map(|(source, check)| {
                format!("source \"{}\": {}: {}", source.name, check.name, check.why.as_deref().unwrap_or(&check.found))
            });
    });
    session.progress.finish();
    Ok(report)
}

/// Passed: 0; damage of what is stored: 4; anything else that failed: 1.
pub fn exit_of(report: &DrillReport) -> Exit {
    match (&report.failure, report.outcome) {
        (Some(_), _) => Exit::Integrity,
        (None, DrillOutcome::Passed) => Exit::Done,
        (None, DrillOutcome::Failed) => Exit::Failed,
    }
}

/// The first damage is named as every error is.
pub fn complain(session: &Session, report: &DrillReport) {
    if let Some(failure) = &report.failure {
        let failure = Failure::new(Exit::Integrity, failure.clone());
        session.out.complaint(&failure.attempted(format!("drill {}", report.snapshot)));
    }
}

fn show_plan(session: &Session, plan: &DrillPlan) -> Result<Exit, Failure> {
    if session.out.json {
        session.out.document(Exit::Done, &serde_json::json!({ "plan": plan }))?;
        return Ok(Exit::Done);
    }
    let mut text = format!(
        "drill of snapshot {} of {} on {} ({}), within {} of memory\n",
        plan.snapshot,
        plan.policy,
        plan.host,
        local(plan.taken),
        human_size(plan.memory_bytes)
    );
    if !plan.sources.is_empty() {
        let mut table = Table::new(&[("SOURCE", Align::Left), ("KIND", Align::Left), ("HOW", Align::Left)]);
        for source in &plan.sources {
            table.plain([source.name.as_str(), &source.kind, &source.how]);
        }
        text += &format!("\n{}", session.out.table(&table));
    }
    session.out.text(&text)?;
    Ok(Exit::Done)
}

pub fn outcome_cell(outcome: DrillOutcome) -> (&'static str, Paint) {
    match outcome {
        DrillOutcome::Passed => ("passed", Paint::Green),
        DrillOutcome::Failed => ("failed", Paint::Red),
    }
}

/// `31 checks, back in 41 s`.
pub fn line(drill: &DrillLine) -> String {
    let checks = drill.checks;
    let ran = match (checks.passed, checks.failed) {
        (1, 0) => "1 check".to_owned(),
        (n, 0) => format!("{n} checks"),
        (passed, failed) => format!("{failed} of {} checks failed", passed + failed),
    };
    let skipped = if checks.skipped == 0 { String::new() } else { format!(", {} skipped", checks.skipped) };
    format!("{ran}{skipped}, back in {}", human_duration(Duration::from_secs_f64(drill.recovery_seconds.max(0.0))))
}

pub fn text(session: &Session, report: &DrillReport) -> String {
    let out = &session.out;
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("KIND", Align::Left),
        ("OUTCOME", Align::Left),
        ("CHECKS", Align::Right),
        ("TIME", Align::Right),
        ("WHAT CAME BACK", Align::Left),
    ]);
    let mut below = String::new();
    for source in &report.sources {
        let (word, paint) = verdict_cell(source.verdict);
        table.row(vec![
            (source.name.to_string(), Paint::Plain),
            (source.kind.clone(), Paint::Plain),
            (word.to_owned(), paint),
            (checks_cell(source), Paint::Plain),
            (human_duration(Duration::from_secs_f64(source.seconds.max(0.0))), Paint::Plain),
            (printable(&source.proof.restored.join(", ")), Paint::Plain),
        ]);
        for check in source.proof.checks.iter().filter(|c| c.verdict != Verdict::Passed) {
            below += &remark(session, source, check);
        }
    }
    for note in &report.notes {
        below += &format!("{} {}\n", out.paint(Paint::Dim, "note:"), printable(note));
    }
    let (word, paint) = outcome_cell(report.outcome);
    let age = human_duration(Duration::from_secs(u64::try_from(report.data_age_seconds).unwrap_or(0)));
    let gap = if below.is_empty() { "" } else { "\n" };
    let mut text = format!(
        "{}{gap}{below}\ndrill of {} {}: {}\nthe data was {age} old; the whole drill took {}\n",
        out.table(&table),
        report.snapshot,
        out.paint(paint, word),
        printable(&report.summary()),
        human_duration(Duration::from_secs_f64(report.seconds.max(0.0))),
    );
    if let Some(page) = &report.page {
        text += &format!("report: {}\n", printable(&page.display().to_string()));
    }
    if let Some(kept) = &report.kept {
        text += &format!("kept: {} (remove it when you have looked)\n", printable(&kept.display().to_string()));
    }
    text
}

fn checks_cell(source: &ProofReport) -> String {
    let of = |verdict| source.proof.checks.iter().filter(|c| c.verdict == verdict).count();
    let (passed, failed) = (of(Verdict::Passed), of(Verdict::Failed));
    match (failed, of(Verdict::Skipped)) {
        (0, 0) => passed.to_string(),
        (0, skipped) => format!("{passed}, {skipped} skipped"),
        (failed, 0) => format!("{passed}, {failed} failed"),
        (failed, skipped) => format!("{passed}, {failed} failed, {skipped} skipped"),
    }
}

fn verdict_cell(verdict: Verdict) -> (&'static str, Paint) {
    match verdict {
        Verdict::Passed => ("passed", Paint::Green),
        Verdict::Failed => ("failed", Paint::Red),
        Verdict::Skipped => ("skipped", Paint::Yellow),
    }
}

/// What failed or did not run, and why.
fn remark(session: &Session, source: &ProofReport, check: &Check) -> String {
    let (word, paint) = verdict_cell(check.verdict);
    let label = session.out.paint(paint, &format!("{word}:"));
    let of = if check.subject.is_empty() { String::new() } else { format!(" of {}", printable(&check.subject)) };
    let why = check.why.as_deref().unwrap_or("no reason was given");
    let mut text = format!("{label} source {:?}: {}{of}: {}\n", source.name, printable(&check.name), printable(why));
    // The first one stands in the line above.
    for d in check.differences.iter().skip(1).take(SHOWN) {
        let (subject, expected, found) = (printable(&d.subject), printable(&d.expected), printable(&d.found));
        text += &format!("  {subject}: expected {expected}, found {found}\n");
    }
    let more = check.more_differences + check.differences.len().saturating_sub(SHOWN + 1) as u64;
    if more > 0 {
        text += &format!("  and {more} more\n");
    }
    text
}
