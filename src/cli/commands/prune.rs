//! `prune`.

use crate::base::units::human_size;
use crate::cli::args::PruneArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, printable};
use crate::cli::session::{Session, argument};
use crate::ops::access::{Access, AccessRequest, host_name};
use crate::ops::code;
use crate::ops::prune::{self, Amount, Fate, PruneOptions, PrunePlan, PruneReport};
use crate::ops::reserve;
use crate::policy::Policy;
use crate::policy::model::MinFree;
use serde::Serialize;

#[derive(Serialize)]
struct Document<'a> {
    plan: &'a PrunePlan,
    /// Absent with `--dry-run`.
    report: Option<&'a PruneReport>,
}

pub fn run(session: &Session, args: &PruneArgs) -> Result<Exit, Failure> {
    let done = prune(session, args);
    session.progress.finish();
    done.map_err(|f| f.attempted("prune"))
}

fn prune(session: &Session, args: &PruneArgs) -> Result<Exit, Failure> {
    let mut policy = session.policy()?;
    if args.now {
        // What makes room may use the room that writers leave.
        policy.repository.min_free = MinFree::Bytes(0);
        if !args.dry_run {
            reserve::give(&session.installation.state_dir);
        }
    }
    let host = match &args.host {
        Some(name) => argument("--host", name)?,
        None => host_name()?,
    };
    let options = PruneOptions { immediately: args.now, accept_lost: args.accept_lost, ..PruneOptions::of(host) };
    let request = AccessRequest { identity: args.identity.clone(), ..AccessRequest::of(&policy) };
    let mut access = Access::open(&session.installation, &request)?;
    let alone = if args.now && !args.dry_run { Some(prune::lock(&access)?) } else { None };
    if alone.is_some() {
        // What a writer has finished until the lock was there counts.
        access = Access::open(&session.installation, &request)?;
    }
    let installation = &session.installation;
    let mut plan = prune::plan(&access, &policy, &options, &session.run)?;
    if args.repack {
        plan.repack = Some(prune::plan_repack(installation, &access, &policy, &options, &plan, &session.run)?);
    }
    if args.dry_run {
        return show(session, &policy, &plan, None);
    }
    if args.accept_lost && !plan.lost.is_empty() {
        let numbers: Vec<String> = plan.lost.iter().map(ToString::to_string).collect();
        let question = format!("give up the snapshots {}, which are damaged or missing", numbers.join(", "));
        session.confirm(&question, args.yes)?;
    }
    let mut report = prune::run(installation, &access, &request, &plan, &options, &session.run)?;
    reserve::keep(&installation.state_dir);
    if plan.host == host_name()? {
        for note in code::release(&policy, &plan.removes(), &session.run) {
            session.out.alarm(&note);
        }
    }
    if let Some(repack) = &plan.repack {
        let access = Access::open(installation, &request)?;
        let done = prune::run_repack(installation, &access, &request, &policy, &options, repack, &session.run)?;
        if done.replaced > 0 {
            report.add(collect(session, &policy, &request, &options)?);
        }
        report.repack = Some(done);
    }
    drop(alone);
    show(session, &policy, &plan, Some(&report))
}

/// What a repack has left over is garbage like any other.
fn collect(
    session: &Session,
    policy: &Policy,
    request: &AccessRequest,
    options: &PruneOptions,
) -> Result<PruneReport, Failure> {
    let options = PruneOptions { accept_lost: false, ..options.clone() };
    let access = Access::open(&session.installation, request)?;
    let plan = prune::plan(&access, policy, &options, &session.run)?;
    Ok(prune::run(&session.installation, &access, request, &plan, &options, &session.run)?)
}

fn show(session: &Session, policy: &Policy, plan: &PrunePlan, report: Option<&PruneReport>) -> Result<Exit, Failure> {
    session.progress.finish();
    let refused = report.is_some_and(|r| r.refused.objects > 0);
    let damaged = match report.and_then(|r| r.repack.as_ref()) {
        Some(done) => &done.problems[..],
        None => plan.repack.as_ref().map_or(&[][..], |repack| &repack.problems),
    };
    let exit = match (damaged, refused) {
        ([_, ..], _) => Exit::Integrity,
        (_, true) => Exit::Partial,
        _ => Exit::Done,
    };
    for problem in damaged {
        session.out.alarm(&format!("left alone: {problem}"));
    }
    if session.out.json {
        session.out.document(exit, &Document { plan, report })?;
        return Ok(exit);
    }
    match report {
        None => session.out.text(&(table(session, plan) + &outlook(session, policy, plan) + &waste(session, plan)))?,
        Some(report) => session.out.note(&outcome(session, plan, report))?,
    }
    Ok(exit)
}

fn table(session: &Session, plan: &PrunePlan) -> String {
    let out = &session.out;
    if plan.snapshots.is_empty() {
        return format!("no snapshot of {}/{}\n", plan.host, plan.policy);
    }
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("TIME", Align::Left),
        ("OUTCOME", Align::Left),
        ("TAGS", Align::Left),
        ("", Align::Left),
        ("REASON", Align::Left),
    ]);
    for snapshot in &plan.snapshots {
        let (outcome, paint) = super::snapshot::header_cell(snapshot.outcome);
        let tags: Vec<&str> = snapshot.tags.iter().map(|t| t.as_str()).collect();
        let (what, colour) = if snapshot.keep { ("keep", Paint::Green) } else { ("remove", Paint::Red) };
        table.row(vec![
            (snapshot.id.to_string(), Paint::Bold),
            (out.time(snapshot.time), Paint::Plain),
            (outcome.to_owned(), paint),
            (tags.join(" "), Paint::Plain),
            (what.to_owned(), colour),
            (snapshot.reason.clone(), Paint::Plain),
        ]);
    }
    out.table(&table)
}

/// What would happen to the objects.
fn outlook(session: &Session, policy: &Policy, plan: &PrunePlan) -> String {
    let removed = plan.snapshots.iter().filter(|s| !s.keep).count();
    let mut text = format!("\n{removed} of {} snapshots would be removed\n", plan.snapshots.len());
    let mut line = |amount: Amount, what: &str| {
        if amount.objects > 0 {
            text += &format!("{} {what}\n", count(amount));
        }
    };
    line(plan.delete, "would be deleted now");
    line(plan.condemn, "would be condemned, and deleted by a prune at least 36 h later");
    line(plan.waiting, "condemned, not long enough yet");
    line(plan.young, "unreferenced and younger than 7 days: a run may still be writing them");
    for sequence in &plan.lost {
        text += &format!("snapshot {sequence} would be recorded as lost\n");
    }
    if policy.retention.max_age.is_some() {
        text += "what max_age removes is deleted with its objects, at the latest 36 h and one prune later\n";
    }
    text += &due(session, plan);
    text
}

/// What of the archives is needed, and what would be rewritten.
fn waste(session: &Session, plan: &PrunePlan) -> String {
    let Some(repack) = &plan.repack else { return String::new() };
    let mut table = Table::new(&[
        ("ARCHIVES", Align::Right),
        ("STORED", Align::Right),
        ("LIVE", Align::Right),
        ("WASTE", Align::Right),
        ("", Align::Left),
        ("", Align::Left),
    ]);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), human_size);
    for group in &repack.groups {
        let (what, colour) = if group.rewrite { ("rewrite", Paint::Yellow) } else { ("keep", Paint::Green) };
        table.row(vec![
            (group.archives.to_string(), Paint::Plain),
            (human_size(group.bytes), Paint::Plain),
            (size(group.live_bytes), Paint::Plain),
            (size(group.waste_bytes), Paint::Plain),
            (what.to_owned(), colour),
            (fate_text(group.fate).to_owned(), Paint::Plain),
        ]);
    }
    let (archives, bytes, live) = repack.rewrites();
    let sum = if archives == 0 {
        "no archive would be rewritten\n".to_owned()
    } else {
        format!(
            "{} ({}) would be rewritten to about {}\n",
            plural(archives, "archive"),
            human_size(bytes),
            human_size(live)
        )
    };
    format!("\n{}\n{sum}", session.out.table(&table))
}

fn fate_text(fate: Fate) -> &'static str {
    match fate {
        Fate::PartlyDead => "less than 60 % of each is needed",
        Fate::Small => "small ones, to be joined",
        Fate::Alive => "most of each is needed",
        Fate::Young => "younger than 7 days",
        Fate::OtherRecipients => "sealed to other recipients than the policy's",
        Fate::OtherHost => "another host needs them",
        Fate::OtherKey => "snapshots under another dedup key need them",
        Fate::Closed => "the identity does not open a snapshot that needs them",
        Fate::Damaged => "damaged",
    }
}

fn outcome(session: &Session, plan: &PrunePlan, report: &PruneReport) -> String {
    let mut text = match report.removed {
        0 => "no snapshot removed".to_owned(),
        1 => "1 snapshot removed".to_owned(),
        n => format!("{n} snapshots removed"),
    };
    text += &format!(", {} kept\n", plan.snapshots.iter().filter(|s| s.keep).count());
    if report.lost > 0 {
        let word = if report.lost == 1 { "snapshot" } else { "snapshots" };
        text += &format!("{} {word} recorded as lost; run prune again for the rest\n", report.lost);
    }
    if let Some(repack) = &report.repack {
        text += &match repack.replaced {
            0 => "no archive rewritten\n".to_owned(),
            n => format!(
                "{} ({}) rewritten to {} ({}), for {}\n",
                plural(n, "archive"),
                human_size(repack.replaced_bytes),
                repack.written,
                human_size(repack.written_bytes),
                plural(repack.snapshots, "snapshot")
            ),
        };
    }
    if report.condemned.objects > 0 {
        text += &format!("{} condemned; a prune at least 36 h later deletes them\n", count(report.condemned));
    }
    if report.deleted.objects > 0 {
        text += &format!("{} deleted\n", count(report.deleted));
    }
    if report.locked.objects > 0 {
        text += &format!("{} cannot be deleted yet: the storage has them locked\n", count(report.locked));
    }
    if report.refused.objects > 0 {
        let why = report.refusal.as_deref().map(printable).unwrap_or_default();
        text += &format!("{} could not be deleted: {why}\n", count(report.refused));
    }
    text + &due(session, plan)
}

fn due(session: &Session, plan: &PrunePlan) -> String {
    match plan.next_due {
        Some(due) => format!("the next of what waits may be deleted {}\n", session.out.time(due)),
        None => String::new(),
    }
}

fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn count(amount: Amount) -> String {
    let word = if amount.objects == 1 { "object" } else { "objects" };
    format!("{} {word} ({})", amount.objects, human_size(amount.bytes))
}
