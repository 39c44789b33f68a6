//! Env files that keep some of today's values: laid over what was captured, before it is prepared. The plan holds keys and
//! sides, never a value.

use super::stage::Stage;
use crate::base::ids::SourceName;
use crate::ops::OpsError;
use crate::sources::env_merge::{self, Choices, Side};
use crate::sources::placing::Stored;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which value of a key stands afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenKey {
    pub source: SourceName,
    pub file: PathBuf,
    pub key: String,
    pub side: Side,
}

/// Lays the files of one source that are not as they were captured.
pub fn lay(stage: &Stage<'_>, stored: &Stored<'_>, source: &SourceName, chosen: &[ChosenKey]) -> Result<(), OpsError> {
    let own = chosen.iter().filter(|c| c.source == *source);
    let choices: Choices = own.map(|c| ((c.file.clone(), c.key.clone()), c.side)).collect();
    if choices.values().all(|side| *side == Side::Snapshot) {
        return Ok(());
    }
    let laid = || {
        let captured = env_merge::captured(stored.streams)?;
        let live = env_merge::live(&captured)?;
        let resulting = env_merge::resulting(&captured, &live, &choices)?;
        env_merge::lay(&stage.folder, source, &captured, &resulting)
    };
    laid().map(drop).map_err(|e| stage.failed(source, e))
}
