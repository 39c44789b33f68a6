//! `copy`.

use crate::base::units::{human_duration, human_size};
use crate::cli::args::CopyArgs;
use crate::cli::commands::verify;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Table};
use crate::cli::session::Session;
use crate::ops::access::{Access, parse_url};
use crate::ops::copy::{self, CopyOutcome, CopyPlan, CopyProblem, CopyReport, CopyRequest, Side, Target};
use crate::ops::{ErrorKind, OpsError};
use crate::policy::Policy;
use crate::policy::model::RepositoryUrl;
use serde_json::json;
use std::time::Duration;

pub fn run(session: &Session, args: &CopyArgs) -> Result<Exit, Failure> {
    let done = with_targets(session, args);
    session.progress.finish();
    done.map_err(|f| f.attempted("copy"))
}

fn with_targets(session: &Session, args: &CopyArgs) -> Result<Exit, Failure> {
    let asked = session.access_request(&args.reading)?;
    let to = args.to.as_deref().map(parse_url).transpose()?;
    let listed = asked.policy.as_ref().is_some_and(|p| !p.repository.copies.is_empty());
    if to.is_none() && !listed {
        let hint = "say where to with --to URL, or list copies in the policy's [repository]";
        return Err(Failure::usage("no copy is named", hint));
    }
    let access = session.open_anew(&args.reading)?;
    let mut request = CopyRequest { read_back: args.read_back, begin_anew: to.is_some(), ..CopyRequest::default() };
    for name in &args.ids {
        request.only.push(access.resolve(name, session.run.now)?.header.id.clone());
    }
    let from = asked.repository.clone().or_else(|| Some(asked.policy.as_ref()?.repository.url.clone()));
    let targets = targets(asked.policy.as_ref(), from.as_ref(), to.as_ref());
    if args.dry_run {
        let mut plans = Vec::new();
        for (name, target) in targets {
            let plan = target.and_then(|target| copy::plan(&access, &target, &request, &session.run));
            plans.push(plan.map_err(|e| failure_of(&name, e))?);
        }
        return show_plans(session, &access, &plans);
    }
    let outcomes = match (&to, &asked.policy) {
        (None, Some(policy)) => copy::every(&access, policy, &[], &request, &session.run),
        _ => {
            let made = |(name, target): Named| {
                let done = target.and_then(|target| copy::copy(&access, &target, &request, &session.run));
                done.map(|report| CopyOutcome::of(name.clone(), Ok(report))).map_err(|e| failure_of(&name, e))
            };
            targets.into_iter().map(made).collect::<Result<_, _>>()?
        }
    };
    session.progress.finish();
    show(session, &access, &outcomes)
}

fn failure_of(to: &str, source: OpsError) -> Failure {
    OpsError::Copy { to: to.to_owned(), source: Box::new(source) }.into()
}

type Named = (String, Result<Target, OpsError>);

/// The copy that is named, reached as the policy says where it lists it; or all that the policy lists.
fn targets(policy: Option<&Policy>, from: Option<&RepositoryUrl>, to: Option<&RepositoryUrl>) -> Vec<Named> {
    let open = |url: &RepositoryUrl| (url.to_string(), copy::open(policy, from, url));
    match to {
        Some(url) => vec![open(url)],
        None => policy.map_or(&[][..], |p| &p.repository.copies).iter().map(|copy| open(&copy.url)).collect(),
    }
}

fn show_plans(session: &Session, access: &Access, plans: &[CopyPlan]) -> Result<Exit, Failure> {
    let sound = |p: &CopyPlan| p.problems.is_empty() && p.alarms.is_empty();
    let exit = if access.alarms.is_empty() && plans.iter().all(sound) { Exit::Done } else { Exit::Integrity };
    for plan in plans {
        tell(session, &plan.to, &plan.problems, &plan.alarms);
    }
    if session.out.json {
        session.out.document(exit, &json!({ "plan": { "copies": plans } }))?;
    } else {
        session.out.text(&plans.iter().map(|plan| plan_text(session, plan)).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(exit)
}

fn plan_text(session: &Session, plan: &CopyPlan) -> String {
    let what = if plan.new { " (new)" } else { "" };
    let mut text = format!("copy {} to {}{what}\n\n", plan.from, plan.to);
    if !plan.snapshots.is_empty() {
        let mut table = Table::new(&[
            ("ID", Align::Left),
            ("TIME", Align::Left),
            ("HOST/POLICY", Align::Left),
            ("OBJECTS", Align::Right),
            ("BYTES", Align::Right),
        ]);
        for snapshot in &plan.snapshots {
            table.plain([
                snapshot.id.to_string(),
                session.out.time(snapshot.time),
                format!("{}/{}", snapshot.host, snapshot.policy),
                snapshot.objects.to_string(),
                human_size(snapshot.bytes),
            ]);
        }
        text += &session.out.table(&table);
        text.push('\n');
    }
    let kept = match plan.snapshots_kept {
        0 => String::new(),
        n => format!(", {n} more are kept there alone"),
    };
    text += &format!(
        "{} snapshots to copy ({} objects, {}); {} are there{kept}\n",
        plan.snapshots.len(),
        plan.objects,
        human_size(plan.bytes),
        plan.snapshots_there
    );
    text
}

fn show(session: &Session, access: &Access, outcomes: &[CopyOutcome]) -> Result<Exit, Failure> {
    let exit = match exit_beside(session, outcomes) {
        // Not one copy could be made: that is no partial success.
        Exit::Partial if outcomes.iter().all(|o| o.error.is_some()) => Exit::Failed,
        Exit::Done if !access.alarms.is_empty() => Exit::Integrity,
        exit => exit,
    };
    alarms(session, outcomes);
    if session.out.json {
        session.out.document(exit, &json!({ "copies": outcomes }))?;
        return Ok(exit);
    }
    for report in outcomes.iter().filter_map(|o| o.report.as_ref()) {
        session.out.note(&summary(report))?;
        if let Some(verified) = &report.verified {
            let text = verify::text(session, verified);
            if verified.failure().is_some() { session.out.text(&text)? } else { session.out.note(&text)? }
        }
    }
    Ok(exit)
}

/// One line for a copy that was made.
pub fn summary(report: &CopyReport) -> String {
    let took = human_duration(Duration::from_secs_f64(report.seconds.max(0.0)));
    match report.objects {
        0 => format!("copy {}: nothing to copy, {} snapshots are there\n", report.to, report.snapshots_there),
        n => format!(
            "copy {}: {} snapshots copied ({n} objects, {}) in {took}\n",
            report.to,
            report.snapshots.len(),
            human_size(report.bytes)
        ),
    }
}

/// How a command ends that has done its own work, after its copies.
pub fn exit_beside(session: &Session, outcomes: &[CopyOutcome]) -> Exit {
    if let Some(signal) = session.run.cancel.signal() {
        return Exit::Signal(signal);
    }
    if outcomes.iter().any(|o| o.kind == Some(ErrorKind::Integrity)) {
        Exit::Integrity
    } else if outcomes.iter().any(|o| o.kind.is_some()) {
        Exit::Partial
    } else {
        Exit::Done
    }
}

/// Everything about copies that must be seen even by somebody who asked for silence.
pub fn alarms(session: &Session, outcomes: &[CopyOutcome]) {
    for outcome in outcomes {
        if let Some(error) = &outcome.error {
            let hint = outcome.hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
            session.out.alarm(&format!("COPY FAILED: {}: {error}{hint}; the next run catches up", outcome.to));
        }
        if let Some(report) = &outcome.report {
            tell(session, &report.to, &report.problems, &report.alarms);
        }
    }
}

fn tell(session: &Session, to: &str, problems: &[CopyProblem], alarms: &[String]) {
    for alarm in alarms {
        session.out.alarm(&format!("ALARM: {alarm}"));
    }
    for problem in problems {
        let end = match problem.side {
            Side::Repository => "the repository".to_owned(),
            Side::Copy => format!("the copy {to}"),
        };
        let costs = match problem.snapshots.len() {
            0 => String::new(),
            1..=8 => {
                let ids: Vec<&str> = problem.snapshots.iter().map(|id| id.as_str()).collect();
                format!("; the copy does not hold whole: {}", ids.join(", "))
            }
            n => format!("; the copy does not hold {n} snapshots whole"),
        };
        session.out.alarm(&format!("{} is damaged in {end}: {}{costs}", problem.object, problem.problem));
    }
}
