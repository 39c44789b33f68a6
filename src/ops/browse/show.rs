//! `show`: one snapshot: its header, and with the identity what its manifest says.

use crate::base::ids::{RepositoryId, SourceName, StreamName};
use crate::base::stream::StreamKind;
use crate::base::units::total;
use crate::ops::access::Access;
use crate::ops::browse::facts;
use crate::ops::browse::list::SnapshotLine;
use crate::ops::drill::{DrillLine, drills_of};
use crate::ops::{OpsError, Run};
use crate::repository::format::{SourceEntry, SourceOutcome};
use crate::repository::reader::{load_manifest, load_refs};
use serde::Serialize;

/// One snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotDetail {
    #[serde(flatten)]
    pub line: SnapshotLine,
    pub repository: RepositoryId,
    /// SHA-256 of the header object: what a pin `SEQ:HASH` names.
    pub header: String,
    pub manifest: String,
    pub refs: String,
    /// Archives that it needs, and their stored bytes; many are shared with other snapshots.
    pub archives: usize,
    pub stored_bytes: u64,
    pub lineage: String,
    /// The drills that it went through, oldest first.
    pub drills: Vec<DrillLine>,
    /// The version that wrote it.
    pub tool: String,
    /// Absent without the identity.
    pub sources: Option<Vec<SourceDetail>>,
    /// What a person should know about this answer.
    pub note: Option<String>,
}

/// One source in a snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct SourceDetail {
    pub name: SourceName,
    pub kind: String,
    pub outcome: SourceOutcome,
    pub error: Option<String>,
    pub warnings: Vec<String>,
    /// Of all streams, listings left out.
    pub bytes: u64,
    pub streams: Vec<StreamDetail>,
    /// The facts in a few short lines for people, such as `databases: shop, crm`.
    pub summary: Vec<String>,
    /// What the source knew of itself at that instant.
    pub facts: serde_json::Value,
}

#[derive(Debug, Clone, Serialize)]
pub struct StreamDetail {
    pub name: StreamName,
    pub kind: StreamKind,
    pub bytes: u64,
    pub sha256: Option<String>,
}

impl From<&SourceEntry> for SourceDetail {
    fn from(source: &SourceEntry) -> Self {
        let shown = source.streams.iter().map(|s| StreamDetail {
            name: s.name.clone(),
            kind: s.kind,
            bytes: s.length,
            sha256: s.sha256.clone(),
        });
        let plain = source.streams.iter().filter(|s| s.kind != StreamKind::Listing);
        Self {
            name: source.name.clone(),
            kind: source.kind.clone(),
            outcome: source.outcome,
            error: source.error.clone(),
            warnings: source.warnings.clone(),
            bytes: total(plain.map(|s| s.length)),
            streams: shown.collect(),
            summary: facts::summary(&source.facts),
            facts: source.facts.clone(),
        }
    }
}

/// Shows the snapshot that `name` names.
pub fn show(access: &Access, name: &str, run: &Run) -> Result<SnapshotDetail, OpsError> {
    let snapshot = access.resolve(name, run.now)?;
    let header = &snapshot.header;
    let in_snapshot = |source| {
        let (snapshot, place) = (header.id.clone(), String::new());
        OpsError::InSnapshot { snapshot, place, source: Box::new(source) }
    };
    let refs = load_refs(&access.repository, snapshot.refs).map_err(in_snapshot)?;
    let sources = match &access.identities {
        Some(identities) => {
            let manifest = load_manifest(&access.repository, snapshot, identities).map_err(in_snapshot)?;
            Some(manifest.sources.iter().map(SourceDetail::from).collect())
        }
        None => None,
    };
    let note = sources.is_none().then(|| {
        "no identity is at hand: this is what the public header says; sources and facts need --identity FILE".to_owned()
    });
    Ok(SnapshotDetail {
        line: SnapshotLine::in_chain(access, snapshot),
        repository: header.repository.clone(),
        header: snapshot.header_id.to_hex(),
        manifest: header.manifest.to_hex(),
        refs: snapshot.refs.to_hex(),
        archives: refs.archives.len(),
        stored_bytes: total(refs.archives.values().copied()),
        lineage: header.lineage.clone(),
        drills: drills_of(access, snapshot)?,
        tool: header.tool.clone(),
        sources,
        note,
    })
}
