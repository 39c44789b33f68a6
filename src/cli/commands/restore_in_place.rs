//! `restore --in-place`, and what settles it: `--resume`, `--undo`.

use super::transaction::{Asked, Settling, home, plan_document, plan_text, resume, tell, undo};
use crate::cli::args::RestoreArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::session::{Session, argument};
use crate::ops::access::AccessRequest;
use crate::ops::transaction::{self, InPlaceRequest};
use crate::policy::Policy;

pub fn run(session: &Session, args: &RestoreArgs) -> Result<Exit, Failure> {
    let policy = session.policy().map_err(|f| f.attempted("restore in place"))?;
    let name = policy.app.name.clone();
    let settling = Settling {
        identity: args.reading.identity.clone(),
        dry_run: args.dry_run,
        yes: args.yes,
        accept_unsaved: args.accept_unsaved.clone(),
    };
    let (done, what) = match (&args.id, args.resume, args.undo) {
        (_, true, _) => (resume(session, &policy), format!("resume the transaction of {name}")),
        (id, _, true) => (undo(session, &settling, &policy, id.as_deref()), format!("undo the last change of {name}")),
        (Some(id), ..) => (in_place(session, args, &policy, id), format!("restore {id} over {name}")),
        // The arguments' own rules leave nothing else.
        (None, ..) => {
            (Err(Failure::usage("no snapshot is named", "name one; `lifeboat list` shows all")), "restore".into())
        }
    };
    session.progress.finish();
    done.map_err(|f| f.attempted(what))
}

fn in_place(session: &Session, args: &RestoreArgs, policy: &Policy, id: &str) -> Result<Exit, Failure> {
    let mut request = InPlaceRequest { snapshot: id.to_owned(), ..InPlaceRequest::default() };
    for name in &args.only {
        request.only.push(argument("--only", name)?);
    }
    for name in &args.accept_unsaved {
        request.accept_unsaved.push(argument("--accept-unsaved", name)?);
    }
    for path in &args.paths {
        let path = std::path::Path::new("/").join(path);
        request.part.paths.push(path);
    }
    request.part.tables.clone_from(&args.table);
    request.part.database_as.clone_from(&args.database_as);
    request.part.replace = args.replace;
    request.part.exact = args.exact;
    request.part.privileged = args.privileged;
    let of_database = !args.table.is_empty() || args.database_as.is_some();
    if of_database && request.only.len() != 1 {
        return Err(Failure::usage(
            "--table and --database-as are of one source",
            "name the source of kind postgres with --only",
        ));
    }
    let reading = AccessRequest { policy: Some(policy.clone()), ..session.access_request(&args.reading)? };
    let access = session.open_as(&reading)?;
    let plan = transaction::plan(&session.installation, policy, &access, &request, &session.run)?;
    if args.dry_run {
        if session.out.json {
            session.out.document(Exit::Done, &plan_document(&plan))?;
        } else {
            session.out.text(&plan_text(session, &plan))?;
        }
        return Ok(Exit::Done);
    }
    if !args.yes && !session.out.json {
        session.progress.finish();
        session.out.text(&plan_text(session, &plan))?;
    }
    let what = format!("put snapshot {} over the live {}", plan.snapshot, policy.app.name);
    session.confirm_by_name(&what, policy.app.name.as_str(), args.yes)?;
    let home = home(args.reading.identity.clone(), policy);
    let report = transaction::run(&session.installation, policy, &access, &home, &plan, &session.run_now())?;
    tell(session, report, Asked::Change)
}
