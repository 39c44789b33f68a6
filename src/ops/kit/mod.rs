//! `recovery-kit`: one page with what a stranger needs to bring an application back on a bad night, and the proof that
//! it was printed and put away.
//!
//! - [`facts`]: what the page says of this host; its digest is the page's code
//! - [`sheet`]: the page's words and commands, without a form
//! - [`text`], [`page`]: the sheet for a terminal, and for a printer, on as many sheets of paper as it takes ([`leaves`])
//! - [`carried`]: the identity on the page, where somebody asked for it
//! - [`record`]: which page was confirmed, and whether it still says the truth
//!
//! Invariants: no secret is on a page, unless it was asked for by name; every command of a page is one that this program
//! takes; a page is confirmed only by its own code and by an identity that opens the newest snapshot.

mod carried;
mod facts;
mod leaves;
mod page;
mod record;
mod sheet;
mod text;

pub use carried::{Carried, carried};
pub use facts::{Facts, Place};
pub use page::page;
pub use record::{Standing, State, confirm, standing};
pub use sheet::{Notes, Sheet, Step};
pub use text::text;

use crate::base::ids::{ObjectId, Sequence, SnapshotId};
use crate::base::time::rfc3339;
use crate::ops::access::{Access, Installation, host_name};
use crate::ops::{OpsError, Run};
use crate::pipeline::crypt::object_id;
use crate::policy::Policy;
use crate::repository::chain::Snapshot;
use crate::repository::format::Outcome;
use serde::Serialize;

/// The newest complete snapshot when the page was made.
#[derive(Debug, Clone, Serialize)]
pub struct Newest {
    pub id: SnapshotId,
    pub sequence: Sequence,
    /// Hash of its header: `--expect SEQUENCE:HASH` proves that a repository was not put back to an earlier state.
    pub header: ObjectId,
    pub time: String,
}

/// The program that made the page.
#[derive(Debug, Clone, Serialize)]
pub struct Program {
    pub version: &'static str,
    /// For which machine it was built.
    pub target: String,
    pub sha256: ObjectId,
}

/// Everything that a page says.
#[derive(Debug, Serialize)]
pub struct Kit {
    #[serde(flatten)]
    pub facts: Facts,
    /// Null while there is none.
    pub newest: Option<Newest>,
    pub program: Program,
    /// Stands at the foot of the page; another one as soon as something of the facts is another.
    pub code: String,
    /// Several hosts or applications are in the repository.
    #[serde(skip)]
    pub shared: bool,
}

/// What the page of a policy says, now.
pub fn kit(installation: &Installation, policy: &Policy, access: &Access) -> Result<Kit, OpsError> {
    let facts = Facts::of(installation, policy)?;
    let newest = newest_complete(access)?.map(|s| Newest {
        id: s.header.id.clone(),
        sequence: s.header.sequence,
        header: s.header_id,
        time: rfc3339(s.header.time),
    });
    let code = facts.code()?;
    Ok(Kit { facts, newest, program: program()?, code, shared: access.chain.lines().len() > 1 })
}

/// The newest complete snapshot of this host.
pub(super) fn newest_complete(access: &Access) -> Result<Option<&Snapshot>, OpsError> {
    let host = host_name()?;
    let counts = |s: &&Snapshot| s.header.host == host && s.header.outcome == Outcome::Complete && !s.forked;
    Ok(access.snapshots().into_iter().rev().find(counts))
}

fn program() -> Result<Program, OpsError> {
    let path = std::env::current_exe().map_err(|e| OpsError::file("find", "this program", e))?;
    let bytes = std::fs::read(&path).map_err(|e| OpsError::file("read", &path, e))?;
    let target = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    Ok(Program { version: env!("CARGO_PKG_VERSION"), target, sha256: object_id(&bytes) })
}

/// Opens the newest complete snapshot with the identity at hand; which one it was.
pub(super) fn open_newest(access: &Access, run: &Run) -> Result<SnapshotId, OpsError> {
    let newest = newest_complete(access)?.ok_or_else(|| {
        OpsError::usage(
            "there is no complete snapshot yet, so nothing shows that the identity opens one",
            "take one with `lifeboat snapshot`, and confirm then",
        )
    })?;
    Ok(access.reader(newest, "confirming a recovery kit", run)?.manifest.snapshot.clone())
}
