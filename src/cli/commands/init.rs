//! `init`.

use crate::base::units::human_size;
use crate::cli::args::InitArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, printable};
use crate::cli::session::{Session, argument};
use crate::ops::OpsError;
use crate::ops::access::parse_url;
use crate::ops::discover::{Uncovered, Weight};
use crate::ops::setup::{self, BucketOptions, InitOptions, InitReport, Proof, Tight};
use crate::policy::model::MinFree;
use std::path::PathBuf;

pub fn run(session: &Session, args: &InitArgs) -> Result<Exit, Failure> {
    let attempted = format!("set up {}", args.dir.display());
    let options = InitOptions {
        dir: args.dir.clone(),
        name: args.name.as_deref().map(|name| argument("--name", name)).transpose()?,
        repository: args.repository.as_deref().map(parse_url).transpose()?,
        bucket: BucketOptions {
            endpoint: args.endpoint.clone(),
            region: args.region.clone(),
            credentials: args.credentials.as_deref().map(from_here).transpose()?,
        },
        identity: args.identity.clone(),
        recipients: args.recipients.clone(),
    };
    let report = setup::init(&session.installation, &options, &session.run).map_err(Failure::from);
    let report = report.map_err(|f| f.attempted(attempted))?;
    if session.out.json {
        session.out.document(Exit::Done, &report)?;
    } else {
        session.out.note(&text(session, &report))?;
    }
    Ok(Exit::Done)
}

/// A file that is named on the command line lies relative to here, not to the application.
fn from_here(credentials: &str) -> Result<String, Failure> {
    let Some(path) = credentials.strip_prefix("file:") else { return Ok(credentials.to_owned()) };
    let path = std::path::absolute(path).map_err(|e| Failure::from(OpsError::file("find", path, e)))?;
    Ok(format!("file:{}", path.display()))
}

fn text(session: &Session, report: &InitReport) -> String {
    let out = &session.out;
    let new = |is: bool, text: String| if is { format!("{text} (new)") } else { format!("{text} (was there)") };
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    let from = if report.name_from_folder { " (from the folder's name; --name chooses another)" } else { "" };
    table.plain(["application".into(), format!("{}{from}", report.policy)]);
    table.plain(["folder".into(), report.root.display().to_string()]);
    table.plain(["policy".into(), new(true, report.policy_file.display().to_string())]);
    table.plain(["repository".into(), new(report.repository_new, report.repository.clone())]);
    table.plain(["repository id", report.repository_id.as_str()]);
    let host = if report.signer_new { "its key may sign snapshots now" } else { "its key could sign snapshots before" };
    table.plain(["host".into(), format!("{} ({host})", report.host)]);
    table.plain(["host key".into(), new(report.keys.host_key_new, report.keys.host_key.display().to_string())]);
    match &report.keys.identity {
        Some(path) => table.plain(["identity".into(), new(report.keys.identity_new, path.display().to_string())]),
        None => table.plain(["identity", "elsewhere: this host is sealed"]),
    }
    for proof in &report.recipients {
        table.row(vec![("recipient".into(), Paint::Plain), proof_cell(proof)]);
    }
    let mut text = out.table(&table);
    text.push('\n');
    text += &recovery_note(report);
    if report.recipients.iter().any(|p| !p.proved) {
        text += &format!(
            "\n{} a recipient is not proved: no identity has opened what was encrypted to it. Until then nobody knows\nthat its holder can read the snapshots: lifeboat policy check --live --identity FILE{}\n",
            out.paint(Paint::Yellow, "Note:"),
            session.same_options(Some(report.policy.as_str())),
        );
    }
    if let Some(Tight { free, min_free }) = report.tight {
        text += &format!(
            "\n{} only {} are free where the repository lies. The policy keeps {} of it free (min_free), less than the\n\
             {} of the disk that is the rule.\n",
            out.paint(Paint::Yellow, "Note:"),
            human_size(free),
            human_size(min_free),
            MinFree::default(),
        );
    }
    text += &coverage(session, report);
    let policy = (report.policies > 1).then(|| report.policy.as_str());
    let next = format!("lifeboat{} snapshot --drill", session.same_options(policy));
    text += &format!("\nNext: {}\n", out.paint(Paint::Bold, &next));
    text += &then(session, report);
    text
}

/// What makes of one snapshot a backup: that it is taken every day, and that somebody hears when it is not.
fn then(session: &Session, report: &InitReport) -> String {
    let mut text = String::new();
    if let Some(command) = &report.to_run {
        text += &format!("Then: {}\n", session.out.paint(Paint::Bold, command));
        text += "      Nothing on this host runs the schedule: until then, snapshots are taken by hand alone.\n";
    }
    let file = report.policy_file.display();
    text += &format!("And:  say in [notify] of {file} who hears of a failure; nobody does.\n");
    text
}

/// What will be captured, and, louder, what will not.
fn coverage(session: &Session, report: &InitReport) -> String {
    let out = &session.out;
    let mut text = String::new();
    text += &format!("\n{}\n", out.paint(Paint::Bold, "Covered"));
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    for covered in &report.covered {
        table.plain([format!("  {}", covered.source), printable(&covered.what)]);
    }
    table.plain(["  git, compose", "of the folder, where there is any"]);
    if !report.in_git.is_empty() {
        let short = |path: &PathBuf| path.strip_prefix(&report.root).unwrap_or(path).display().to_string();
        let names: Vec<String> = report.in_git.iter().map(short).collect();
        table.plain(["  git".to_owned(), printable(&format!("{}, as committed and edited", names.join(", ")))]);
    }
    text += &out.table(&table);
    let data = |u: &&Uncovered| u.weight == Weight::Data;
    let (lost, rest): (Vec<_>, Vec<_>) = report.not_covered.iter().partition(data);
    for (title, paint, list) in [("Not covered", Paint::Red, lost), ("Left out", Paint::Yellow, rest)] {
        if !list.is_empty() {
            text += &format!("\n{}\n", out.paint(paint, title));
        }
        for one in list {
            text += &format!("  {}: {}\n", printable(&one.what), printable(&one.why));
            text += &one.hint.iter().map(|hint| format!("    hint: {}\n", printable(hint))).collect::<String>();
        }
    }
    if !report.external.is_empty() {
        text += &format!("\n{}\n", out.paint(Paint::Yellow, "Elsewhere, and not ours to back up"));
        for one in &report.external {
            text += &format!("  {} (named in {})\n", printable(&one.name), printable(&one.seen_in));
        }
    }
    if !report.shared.is_empty() {
        text += &format!("\n{}\n", out.paint(Paint::Bold, "Shared with other policies"));
        for one in &report.shared {
            text += &format!("  {} (policy {})\n", printable(&one.what), printable(&one.policy));
        }
    }
    text
}

pub fn proof_cell(proof: &Proof) -> (String, Paint) {
    match proof.proved {
        true => (format!("{} (proved: the identity opens it)", proof.recipient), Paint::Plain),
        false => (format!("{} (not proved)", proof.recipient), Paint::Yellow),
    }
}

fn recovery_note(report: &InitReport) -> String {
    let mut text = String::new();
    match &report.keys.identity {
        Some(path) => {
            text += &format!(
                "Keep the identity: copy {} away from this host, with the repository id.\n\
                 Without it no snapshot can be restored; whoever has it can read every snapshot. Moving it away\n\
                 altogether seals this host: it then takes, lists and verifies snapshots and cannot read them.\n",
                path.display()
            );
        }
        None => {
            text +=
                "Restoring needs the identity, which lies elsewhere: make sure that it does, with the repository id.\n";
        }
    }
    if !report.repository.contains("://") {
        text += "The repository is a folder on this machine: copy it to another one, or it is lost with this one.\n";
    }
    text
}
