//! What the steps need to know: made by the plan, kept in the journal.

use crate::place::helper::TreeSource;
use crate::sources::SourceError;
use crate::sources::placing::Intent;
use crate::sources::redis::facts::Keys;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the server was when the plan was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// Its data folder, as the server sees it.
    pub dir: String,
    /// The name of the transaction's folder in there.
    pub folder: String,
    pub dbfilename: String,
    /// The AOF itself before Redis 7; since then what the names of its parts begin with.
    pub appendfilename: String,
    /// Since Redis 7: the folder of the AOF's parts.
    pub appenddirname: Option<String>,
    pub appendonly: bool,
    /// The server's process.
    pub uid: u32,
    pub gid: u32,
    pub file_mode: String,
    pub folder_mode: String,
    /// The captured file; none where the store becomes empty.
    pub stream: String,
    pub length: u64,
    /// Nothing is placed: the store becomes empty.
    #[serde(default)]
    pub flush: bool,
    /// Keys of the stored file; empty where the capture could not count them.
    pub keys: Option<Vec<Keys>>,
    /// Settings that must be the same afterwards.
    pub settings: BTreeMap<String, String>,
    pub runs: Runs,
}

/// What runs the server, and how it is stopped and started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub(super) enum Runs {
    /// By the engine. The data folder lies below `destination`, which is a volume's or a folder of the engine's host.
    Container { name: String, image: String, volume: Option<String>, path: PathBuf, destination: String },
    /// By systemd.
    Unit { unit: String },
    /// By its program and configuration file, in the background.
    Config { program: String, config: String, cwd: PathBuf },
}

impl Runs {
    pub fn describe(&self) -> String {
        match self {
            Runs::Container { name, .. } => format!("container {name:?} is stopped and started by the engine"),
            Runs::Unit { unit } => format!("{unit} is stopped and started by systemd"),
            Runs::Config { program, config, .. } => format!("{program} is started again with {config}"),
        }
    }
}

impl State {
    pub fn read(intent: &Intent) -> Result<Self, SourceError> {
        serde_json::from_value(intent.state.clone()).map_err(|e| {
            SourceError::problem(format!("the journal's words about {} cannot be read: {e}", intent.source))
        })
    }

    pub fn write(&self) -> Result<serde_json::Value, SourceError> {
        serde_json::to_value(self).map_err(|e| SourceError::problem(format!("the plan cannot be written: {e}")))
    }

    /// The transaction's folder.
    pub fn staging(&self) -> String {
        format!("{}/{}", self.dir.trim_end_matches('/'), self.folder)
    }

    /// Names in the data folder that hold data, or would be taken for it.
    pub fn names(&self) -> Vec<&str> {
        let mut names = vec![self.dbfilename.as_str(), self.appendfilename.as_str()];
        names.extend(self.appenddirname.as_deref());
        names.dedup();
        names
    }

    /// The base of a fresh multi-part AOF.
    pub fn base(&self) -> String {
        format!("{}.1.base.rdb", self.appendfilename)
    }

    pub fn manifest(&self) -> String {
        format!("{}.manifest", self.appendfilename)
    }

    /// The manifest's one line. A listed increment that is missing would keep the server from starting.
    pub fn manifest_text(&self) -> String {
        format!("file {} seq 1 type b\n", self.base())
    }

    /// What a helper container mounts.
    pub fn tree(volume: &Option<String>, path: &std::path::Path) -> TreeSource {
        match volume {
            Some(name) => TreeSource::Volume(name.clone()),
            None => TreeSource::Path(path.to_owned()),
        }
    }
}

/// Whether a name may stand in a manifest and in a folder as it is.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !matches!(name, "." | "..")
        && name.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | '"' | '\'' | '\\'))
}
