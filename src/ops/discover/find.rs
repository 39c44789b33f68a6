//! What discovery comes to: pure data, from which `init` writes a policy and with which `doctor` compares one.

use crate::sources::git::Kept;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

/// One thing that can be captured.
#[derive(Debug, Clone, PartialEq)]
pub struct Find {
    /// The source's name in a policy; unique among all finds.
    pub name: String,
    pub thing: Thing,
    /// One line for people: `PostgreSQL in service "db": database shop`.
    pub what: String,
    /// Why the fields are as they are, for comments.
    pub because: Vec<String>,
    /// Fields beyond those that follow from the thing, in order, as TOML.
    pub fields: Vec<(&'static str, toml::Value)>,
}

/// Which server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    Service {
        service: String,
        /// Its container now.
        container: String,
    },
    Container(String),
    Url(String),
    /// The host's own socket.
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thing {
    Postgres {
        at: Where,
        /// The one that a source without a list takes.
        own: String,
        databases: Vec<String>,
    },
    Redis {
        at: Where,
    },
    /// An export by a program in the server's place.
    Command {
        at: Where,
        engine: &'static str,
    },
    /// Names as the compose file has them, and the engine's.
    Volumes(Vec<(String, String)>),
    Path(PathBuf),
    Env(Vec<PathBuf>),
    Nginx {
        paths: Vec<PathBuf>,
        container: Option<String>,
    },
    Certificates(Vec<PathBuf>),
}

impl Thing {
    /// The source's kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Thing::Postgres { .. } => "postgres",
            Thing::Redis { .. } => "redis",
            Thing::Command { .. } => "command",
            Thing::Volumes(_) => "volume",
            Thing::Path(_) => "files",
            Thing::Env(_) => "env",
            Thing::Nginx { .. } => "nginx",
            Thing::Certificates(_) => "certificates",
        }
    }
}

/// How much is lost when nobody looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Files that may be rebuilt, or that nobody serves.
    Note,
    /// Data of the application.
    Data,
}

/// Something of the application that no source captures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uncovered {
    pub what: String,
    pub why: String,
    /// The way out.
    pub hint: Option<String>,
    pub weight: Weight,
    /// What could not be looked at: a source may capture it all the same.
    #[serde(skip)]
    pub unseen: Option<PathBuf>,
}

impl Uncovered {
    pub fn data(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), hint: Some(hint.into()), weight: Weight::Data, unseen: None }
    }

    pub fn note(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { weight: Weight::Note, ..Self::data(what, why, hint) }
    }

    /// A path that could not be looked at. `what` is as a policy would write it.
    pub(super) fn unseen(what: String, path: &Path, error: &io::Error) -> Self {
        let hint = "see to it, or run as an account that may look there, and try again";
        let why = format!("it cannot be looked at: {error}");
        Self { unseen: Some(path.to_owned()), ..Self::data(what, why, hint) }
    }
}

/// Somebody else's service that holds data of the application.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct External {
    /// `Supabase: db.abc.supabase.co`
    pub name: String,
    /// `.env:DATABASE_URL`
    pub seen_in: String,
}

/// A health check that passes now.
#[derive(Debug, Clone, PartialEq)]
pub struct Well {
    pub because: String,
    pub fields: Vec<(&'static str, toml::Value)>,
}

/// All that was found out about an application.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// The compose project that runs.
    pub project: Option<String>,
    /// Fields of [app] beyond name and root.
    pub app: Vec<(&'static str, toml::Value)>,
    pub compose_files: Vec<PathBuf>,
    pub git: bool,
    /// What git keeps of the folder, where that is a checkout.
    pub kept: Option<Kept>,
    /// What is mounted into services and kept by git alone, with its edits.
    pub by_git: Vec<PathBuf>,
    /// What a find leaves out on purpose: env files and the stores' own folders have sources of their own.
    pub leaves: Vec<PathBuf>,
    pub finds: Vec<Find>,
    pub external: Vec<External>,
    pub health: Vec<Well>,
    pub uncovered: Vec<Uncovered>,
}

impl Discovery {
    /// Adds a find under a name that is still free.
    pub(super) fn add(&mut self, wish: &str, mut find: Find) {
        let plain = source_name(wish, find.thing.kind());
        let taken = |name: &str| self.finds.iter().any(|f| f.name == name) || is_reserved(name, find.thing.kind());
        let mut name = plain.clone();
        let mut number = 2;
        while taken(&name) {
            name = match number {
                2 => format!("{plain}-{}", find.thing.kind()),
                n => format!("{plain}-{}", n - 1),
            };
            number += 1;
        }
        find.name = name;
        self.finds.push(find);
    }
}

/// Names that stand for sources which stand by default, or for the recovery bundle.
fn is_reserved(name: &str, kind: &str) -> bool {
    ["env", "git", "compose", "recovery"].contains(&name) && name != kind
}

/// A source's name from any text.
fn source_name(wish: &str, kind: &str) -> String {
    let mut name = String::new();
    for c in wish.to_lowercase().chars() {
        let c = if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        if c != '-' || !(name.is_empty() || name.ends_with('-')) {
            name.push(c);
        }
    }
    name.truncate(60);
    let name = name.trim_matches('-');
    if name.is_empty() { kind.to_owned() } else { name.to_owned() }
}

/// A list of texts as TOML.
pub(super) fn texts<S: AsRef<str>>(list: impl IntoIterator<Item = S>) -> toml::Value {
    toml::Value::Array(list.into_iter().map(|t| toml::Value::String(t.as_ref().to_owned())).collect())
}

/// A text as TOML.
pub(super) fn text(value: impl Into<String>) -> toml::Value {
    toml::Value::String(value.into())
}
