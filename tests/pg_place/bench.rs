//! What the tests share: a server, a capture of it, and the steps of one transaction.

use crate::postgres::PostgresServer;
use crate::taken::{Taken, silence};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::ids::SnapshotId;
use lifeboat::policy::Policy;
use lifeboat::policy::model::{Databases, Fingerprint, PostgresSpec, Target};
use lifeboat::sources::SourceError;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::placing::{Intent, Part, Placing, Scene, Stored};
use lifeboat::sources::postgres::PostgresSource;
use lifeboat::sources::project::Places;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub fn host() -> Locate {
    Arc::new(|_| Ok(Located::host()))
}

pub fn spec(target: Target, databases: &[&str]) -> PostgresSpec {
    PostgresSpec {
        target,
        user: None,
        databases: Databases::Named(databases.iter().map(|d| (*d).to_owned()).collect()),
        password_from: None,
        fingerprint: Fingerprint::Rows,
        jobs: 1,
    }
}

pub fn of_server(server: &PostgresServer, databases: &[&str]) -> PostgresSpec {
    spec(Target::Url(server.socket_url("postgres", "postgres")), databases)
}

pub fn policy() -> Policy {
    let text = "[app]\nname = \"test\"\nroot = \"/nowhere\"\n[repository]\nurl = \"/nowhere/repo\"\n\
        recipients = [\"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\"]\n\
        [[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = \"postgres://postgres@/postgres\"\n";
    lifeboat::policy::parse(Path::new("/nowhere/test.toml"), text).unwrap_or_else(|e| panic!("{e}"))
}

/// One transaction's steps, as the operation calls them.
pub struct Stage {
    pub source: PostgresSource,
    pub taken: Taken,
    pub part: Part,
    policy: Policy,
    places: Places,
    folder: tempfile::TempDir,
    cancel: Cancel,
    id: String,
}

impl Stage {
    pub fn new(spec: PostgresSpec, taken: &Taken) -> Self {
        Self::with(spec, taken, host())
    }

    pub fn with(spec: PostgresSpec, taken: &Taken, locate: Locate) -> Self {
        let (policy, cancel) = (policy(), Cancel::new());
        let random: [u8; 4] = lifeboat::base::ids::random_bytes().unwrap();
        Self {
            source: PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(300), locate),
            taken: taken.clone(),
            part: Part::default(),
            places: Places::new(&policy.app, &cancel),
            policy,
            folder: tempfile::Builder::new().prefix("lb-place-").tempdir().unwrap(),
            cancel,
            id: format!("20261119T020000Z-{}", hex::encode(random)),
        }
    }

    pub fn tables(mut self, tables: &[&str]) -> Self {
        self.part.tables = tables.iter().map(|t| (*t).to_owned()).collect();
        self
    }

    fn scene<T>(&self, act: impl FnOnce(&Scene<'_>, &Stored<'_>) -> T) -> T {
        let snapshot: SnapshotId = "20261119T020000Z-1a2b3c4d".parse().unwrap();
        let events = silence();
        let scene = Scene {
            id: &self.id,
            name: &self.taken.name,
            policy: &self.policy,
            places: &self.places,
            folder: self.folder.path(),
            events: &events,
            cancel: &self.cancel,
            now: "2026-11-19T02:00:00Z".parse().unwrap(),
        };
        act(&scene, &Stored { snapshot: &snapshot, streams: &self.taken, facts: &self.taken.facts })
    }

    pub fn try_plan(&self) -> Result<Intent, SourceError> {
        self.scene(|scene, stored| self.source.plan(scene, stored, &self.part))
    }

    #[track_caller]
    pub fn plan(&self) -> Intent {
        let intent = self.try_plan().unwrap_or_else(|e| panic!("{}", told(&e)));
        // The journal holds it as text.
        serde_json::from_str(&serde_json::to_string(&intent).unwrap()).unwrap()
    }

    /// Why it is refused.
    #[track_caller]
    pub fn refusal(&self) -> String {
        told(&self.try_plan().expect_err("it is refused"))
    }

    pub fn try_prepare(&self, intent: &Intent) -> Result<(), SourceError> {
        self.scene(|scene, stored| self.source.prepare(scene, stored, intent))
    }

    #[track_caller]
    pub fn prepare(&self, intent: &Intent) {
        self.try_prepare(intent).unwrap_or_else(|e| panic!("{}", told(&e)));
        let left: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// One of the short steps.
    pub fn try_step(&self, step: &str, intent: &Intent) -> Result<(), SourceError> {
        self.scene(|scene, _| match step {
            "switch" => self.source.switch(scene, intent),
            "confirm" => self.source.confirm(scene, intent),
            "back" => self.source.back(scene, intent),
            "discard_new" => self.source.discard_new(scene, intent),
            "discard_old" => self.source.discard_old(scene, intent),
            other => panic!("no step {other}"),
        })
    }

    #[track_caller]
    pub fn step(&self, step: &str, intent: &Intent) {
        self.try_step(step, intent).unwrap_or_else(|e| panic!("{step}: {}", told(&e)));
    }

    pub fn rename(&mut self, id: &str) {
        self.id = id.to_owned();
    }

    pub fn id(&self) -> String {
        self.id.clone()
    }
}

/// An error with its chain and hint.
pub fn told(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    format!("{text} ({})", error.way_out().unwrap_or_default())
}

pub fn capture(spec: PostgresSpec) -> Taken {
    Taken::of(&PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), host()))
}

/// Databases with who may enter them, but for the templates.
pub fn databases(server: &PostgresServer) -> String {
    server.sql("postgres", "SELECT datname || CASE WHEN datallowconn THEN '' ELSE ' closed' END FROM pg_database WHERE datname !~ '^template' ORDER BY 1")
}

/// Where the new and the old database of an intent are called.
pub fn name(intent: &Intent, of: &str) -> String {
    intent.state["databases"][0][of].as_str().unwrap().to_owned()
}
