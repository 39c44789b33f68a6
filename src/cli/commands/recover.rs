//! `recover`: one application onto a bare machine.

use super::transaction::{Asked, exit_of, report_text};
use crate::cli::args::RecoverArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::printable;
use crate::cli::session::{Session, argument};
use crate::ops::access::{Access, AccessRequest, parse_url};
use crate::ops::recover::{self, RecoverPlan, RecoverRequest};
use serde::Serialize;

pub fn run(session: &Session, args: &RecoverArgs) -> Result<Exit, Failure> {
    let done = recovered(session, args);
    session.progress.finish();
    done.map_err(|f| f.attempted("recover"))
}

#[derive(Serialize)]
struct PlanDocument<'a> {
    plan: &'a RecoverPlan,
}

fn recovered(session: &Session, args: &RecoverArgs) -> Result<Exit, Failure> {
    let missing = |what: &str| {
        Failure::usage(format!("{what} is not named"), "lifeboat recover --repository URL --identity FILE")
    };
    let repository = args.reading.repository.as_deref().ok_or_else(|| missing("the repository"))?;
    let request = RecoverRequest {
        snapshot: args.id.clone(),
        repository: parse_url(repository)?,
        identity: args.reading.identity.clone().ok_or_else(|| missing("the identity"))?,
        application: args.application.as_deref().map(|name| argument("--application", name)).transpose()?,
        despite: args.despite,
    };
    let reading = AccessRequest { policy: None, ..session.access_request(&args.reading)? };
    let access = session.open_as(&recover::access_request(&request, reading))?;
    let recovery = recover::plan(&session.installation, &access, &request, &session.run)?;
    if args.dry_run && session.out.json {
        session.out.document(Exit::Done, &PlanDocument { plan: &recovery.plan })?;
        return Ok(Exit::Done);
    }
    if !session.out.json {
        session.progress.finish();
        session.out.text(&plan_text(session, &recovery.plan))?;
    }
    if args.dry_run {
        return Ok(Exit::Done);
    }
    let application = recovery.plan.application.clone();
    session.confirm_by_name(&format!("bring {application} back onto this machine"), &application, args.yes)?;
    finish(session, &access, &request, recovery)
}

fn finish(
    session: &Session,
    access: &Access,
    request: &RecoverRequest,
    recovery: recover::Recovery,
) -> Result<Exit, Failure> {
    let mut report = recover::run(&session.installation, access, request, recovery, &session.run)?;
    session.progress.finish();
    let exit = exit_of(session, &report.transaction, Asked::Change);
    let failure = report.transaction.failure.take();
    if session.out.json {
        session.out.document(exit, &report)?;
    } else {
        let mut text = report_text(session, &report.transaction, Asked::Change);
        for line in &report.plan.not_brought {
            text += &format!("not brought: {}\n", printable(line));
        }
        text += &format!("what the old machine had beside it stands in {}\n", report.bundle.display());
        session.out.text(&text)?;
    }
    for health in report.transaction.health.iter().filter(|h| !h.ok) {
        session.out.alarm(&format!("{} fails: {}", health.name, health.problem.as_deref().unwrap_or_default()));
    }
    if let Some(failure) = failure {
        session.out.complaint(&Failure::from(failure).attempted(format!("recover {}", report.plan.application)));
    }
    Ok(exit)
}

fn plan_text(session: &Session, plan: &RecoverPlan) -> String {
    let mut text = format!(
        "{} returns to {} from snapshot {} ({})\n\n",
        printable(&plan.application),
        plan.root.display(),
        plan.snapshot,
        session.out.time(plan.time)
    );
    let mut lines = |what: &str, list: &[String]| {
        for line in list {
            text += &format!("{what}{}\n", printable(line));
        }
    };
    lines("makes: ", &plan.makes);
    lines("writes: ", &[format!("policy {}", plan.policy_file.display())]);
    lines("lacks: ", &plan.lacks);
    lines("is not brought: ", &plan.not_brought);
    text
}
