//! A rollback as a dry run: whether the live application could go back to a snapshot, and what that would cost. It looks
//! at the live application and changes nothing.

use super::report::{ProofReport, verdict};
use crate::ops::access::{Access, Installation};
use crate::ops::rollback::{self, RollbackRequest, Side};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::repository::chain::full_text;
use crate::sources::proof::{Check, Proof};
use std::time::Instant;

/// The name of this part of a report.
pub const ROLLBACK: &str = "rollback";

/// Plans it. `began`: when the drill did.
pub fn planned(
    installation: &Installation,
    policy: Option<&Policy>,
    access: &Access,
    to: &str,
    began: Instant,
    run: &Run,
) -> Result<ProofReport, OpsError> {
    let begin_seconds = began.elapsed().as_secs_f64();
    run.events.step(format!("planning a rollback to {to}"));
    let request = RollbackRequest { to: to.to_owned(), ..RollbackRequest::default() };
    // Secrets that were changed are for a person to decide; the plan is made as if that had been done.
    let ask = |_: &rollback::Rotated| Some(Side::Snapshot);
    let expected = "a plan of a rollback";
    let mut proof = Proof::default();
    match policy.map(|policy| rollback::plan(installation, policy, access, &request, &ask, run)) {
        None => proof.add(Check::skipped("plan", to, "no policy is at hand, so there is no live application")),
        Some(Ok(plan)) => {
            let sources: Vec<String> = plan.sources().iter().map(ToString::to_string).collect();
            proof.add(Check::passed("plan", to, expected, format!("{} would come back", sources.join(", "))));
            proof.restored.extend(plan.aim.map(|aim| aim.leaves));
            for warning in plan.warnings.iter().chain(plan.intents.iter().flat_map(|i| &i.warnings)) {
                run.events.step(format!("rollback to {to}: {warning}"));
            }
        }
        Some(Err(OpsError::Cancelled(e))) => return Err(e.into()),
        Some(Err(e)) => {
            let hint = e.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            proof.add(Check::failed("plan", to, expected, "none can be made", format!("{}{hint}", full_text(&e))));
        }
    }
    Ok(ProofReport {
        name: ROLLBACK.parse().unwrap_or_else(|e| unreachable!("{e}")),
        kind: ROLLBACK.to_owned(),
        verdict: verdict(&proof.checks),
        begin_seconds,
        seconds: began.elapsed().as_secs_f64() - begin_seconds,
        proof,
    })
}
