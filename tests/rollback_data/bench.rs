//! One source of a policy, captured and put back step by step, as the operation does it.

use crate::taken::{Taken, silence};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::ids::SnapshotId;
use lifeboat::policy::Policy;
use lifeboat::policy::model::SourcePolicy;
use lifeboat::sources::placing::{Intent, Part, Placing, Scene, Stored};
use lifeboat::sources::placings::placing;
use lifeboat::sources::project::Places;
use lifeboat::sources::{SourceError, build};
use std::path::{Path, PathBuf};

pub const ID: &str = "20261119T020000Z-1a2b3c4d";

pub struct Bench {
    pub policy: Policy,
    pub places: Places,
    pub cancel: Cancel,
    pub root: tempfile::TempDir,
}

impl Bench {
    /// A policy with these sources; `ROOT` in them is the application's folder.
    pub fn new(sources: &str) -> Self {
        let root = tempfile::Builder::new().prefix("lb-rollback-").tempdir().unwrap();
        for dir in ["app", "state", "state/tx"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        let app = root.path().join("app");
        let text = format!(
            "[app]\nname = \"shop\"\nroot = {app:?}\n[repository]\nurl = \"/nowhere/repo\"\n\
             recipients = [\"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\"]\n{}",
            sources.replace("ROOT", app.to_str().unwrap())
        );
        let policy = lifeboat::policy::parse(&root.path().join("shop.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
        let cancel = Cancel::new();
        Self { places: Places::new(&policy.app, &cancel), policy, cancel, root }
    }

    pub fn app(&self) -> PathBuf {
        self.root.path().join("app")
    }

    /// The transaction's own folder.
    pub fn folder(&self) -> PathBuf {
        self.root.path().join("state/tx")
    }

    pub fn source(&self, name: &str) -> &SourcePolicy {
        self.policy.sources.iter().find(|s| s.name.as_str() == name).unwrap_or_else(|| panic!("no source {name}"))
    }

    pub fn capture(&self, name: &str) -> Taken {
        let sources = build(&self.policy, &self.root.path().join("state"), &self.cancel);
        Taken::of(&**sources.iter().find(|s| s.name().as_str() == name).unwrap())
    }

    fn with<T>(&self, taken: &Taken, act: impl FnOnce(&dyn Placing, &Scene<'_>, &Stored<'_>) -> T) -> T {
        let source = self.source(taken.name.as_str());
        let placing = placing(&self.policy, source, &self.root.path().join("state"), &self.cancel).unwrap();
        let (snapshot, events): (SnapshotId, _) = (ID.parse().unwrap(), silence());
        let folder = self.folder();
        let scene = Scene {
            id: ID,
            name: &taken.name,
            policy: &self.policy,
            places: &self.places,
            folder: &folder,
            events: &events,
            cancel: &self.cancel,
            now: "2026-11-19T02:00:00Z".parse().unwrap(),
        };
        act(&*placing, &scene, &Stored { snapshot: &snapshot, streams: taken, facts: &taken.facts })
    }

    pub fn try_plan(&self, taken: &Taken, part: &Part) -> Result<Intent, SourceError> {
        self.with(taken, |placing, scene, stored| placing.plan(scene, stored, part))
    }

    /// As the journal holds it.
    #[track_caller]
    pub fn plan(&self, taken: &Taken, part: &Part) -> Intent {
        let intent = self.try_plan(taken, part).unwrap_or_else(|e| panic!("{}", told(&e)));
        serde_json::from_str(&serde_json::to_string(&intent).unwrap()).unwrap()
    }

    #[track_caller]
    pub fn step(&self, step: &str, taken: &Taken, intent: &Intent) {
        let done = self.with(taken, |placing, scene, stored| match step {
            "prepare" => placing.prepare(scene, stored, intent),
            "settle" => placing.settle(scene, stored, intent),
            "switch" => placing.switch(scene, intent),
            "confirm" => placing.confirm(scene, intent),
            "back" => placing.back(scene, intent),
            "discard_new" => placing.discard_new(scene, intent),
            "discard_old" => placing.discard_old(scene, intent),
            other => panic!("no step {other}"),
        });
        done.unwrap_or_else(|e| panic!("{step}: {}", told(&e)));
    }

    #[track_caller]
    pub fn steps(&self, steps: &str, taken: &Taken, intent: &Intent) {
        steps.split(' ').for_each(|step| self.step(step, taken, intent));
    }
}

/// An error with its chain and hint.
pub fn told(error: &SourceError) -> String {
    let texts = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source()).map(ToString::to_string);
    let text = texts.collect::<Vec<_>>().join(": ");
    format!("{text} ({})", error.way_out().unwrap_or_default())
}

pub fn everything() -> Part {
    Part::default()
}

pub fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
