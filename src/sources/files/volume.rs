//! The source `volume`: named volumes, read where they lie when this process may, else through the engine.
//!
//! Each volume stands in the tar under its own name, its root folder first. Owners are numbers only: they are accounts
//! of containers, not of this host.

use super::docker::{Reframe, Trees};
use super::notes::Notes;
use super::owners::Owners;
use super::plan::Plan;
use super::stream::TreeStream;
use super::tree::Tree;
use super::walk::Links;
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::policy::model::{App, SourcePolicy, VolumeSpec};
use crate::sources::{Capture, Captured, Source, SourceError};
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Named volumes.
pub struct VolumeSource {
    name: SourceName,
    spec: VolumeSpec,
    app: App,
    limit: Duration,
    never: HashSet<PathBuf>,
}

/// A volume and how it is read.
struct Read {
    /// As the policy names it.
    label: String,
    name: String,
    /// Where it lies, when this process may read it there.
    direct: Option<PathBuf>,
}

impl VolumeSource {
    /// `never`: paths on disk that are left out, such as a database's own folder.
    pub fn new(policy: &SourcePolicy, spec: &VolumeSpec, app: &App, never: impl IntoIterator<Item = PathBuf>) -> Self {
        VolumeSource {
            name: policy.name.clone(),
            spec: spec.clone(),
            app: app.clone(),
            limit: policy.timeout,
            never: never.into_iter().collect(),
        }
    }

    fn find(&self, trees: &Trees) -> Result<Vec<Read>, SourceError> {
        let mut found = Vec::new();
        for label in &self.spec.volumes {
            let volume = trees.volume(label)?;
            let direct = volume.mount_point.and_then(|p| p.canonicalize().ok()).filter(|p| is_readable(p));
            found.push(Read { label: label.clone(), name: volume.name, direct });
        }
        found.sort_by(|a, b| a.label.cmp(&b.label));
        Ok(found)
    }
}

/// Whether this process may list a folder.
fn is_readable(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok()
}

impl Source for VolumeSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "volume"
    }

    fn describe(&self) -> String {
        format!("volumes {}", self.spec.volumes.join(", "))
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        self.find(&Trees::new(&self.app, cancel)).map(|_| ())
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let trees = Trees::new(&self.app, cx.cancel);
        let volumes = self.find(&trees)?;
        let mut notes = Notes::default();
        let mut stream = TreeStream::begin(cx, &self.name, self.limit, true)?;
        let (owners, mut links) = (Owners::none(), Links::default());
        let mut facts = Vec::new();
        for volume in &volumes {
            let before = stream.totals();
            match &volume.direct {
                Some(root) => {
                    let plan = Plan::tree(root, &volume.label, &self.spec.exclude)?;
                    let tree = Tree {
                        source: &self.name,
                        limit: self.limit,
                        owners: &owners,
                        one_file_system: false,
                        never: &self.never,
                    };
                    tree.walk(cx, &plan, &mut links, &mut stream, &mut notes, &mut |_, _| {})?;
                }
                None => {
                    let root = Path::new("/").join(&volume.label);
                    let (prefix, exclude) = (volume.label.as_bytes(), self.spec.exclude.as_slice());
                    let reframe = Reframe { prefix, root: &root, exclude, pattern: None };
                    let tar = trees.read_volume(&volume.name)?;
                    reframe.run(tar, &mut stream, &mut notes, &mut |_, _| {})?;
                }
            }
            let after = stream.totals();
            facts.push(json!({
                "volume": volume.label,
                "name": volume.name,
                "via": if volume.direct.is_some() { "direct" } else { "docker" },
                "entries": after.entries - before.entries,
                "bytes": after.bytes - before.bytes,
            }));
        }
        stream.finish()?;
        Ok(Captured { facts: json!({ "volumes": facts }), warnings: notes.into_warnings() })
    }
}
