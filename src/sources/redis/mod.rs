//! Redis (and Valkey): the whole data set as one RDB, by `redis-cli --rdb -` in the server's place or, where there is
//! no `redis-cli`, as a replica gets it.
//!
//! The copy is one instant: the moment of the server's fork. It is stored as the stream `dump.rdb`, walked to its end
//! ([`rdb`]), and its keys are counted on the way, so the facts are exact whatever is written meanwhile. An AOF is not
//! captured: the RDB holds what it holds. Facts: [`facts::Facts`].

mod address;
mod client;
pub mod facts;
mod info;
mod link;
pub mod memory;
mod placing;
mod proof;
mod rdb;
mod tarball;

pub use proof::RedisProof;

use super::locate::{Locate, Located, describe};
use super::run::{Deadline, Linked, settle};
use super::tap::TapError;
use super::{Capture, Captured, Source, SourceError, secret};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::base::stream::StreamKind;
use crate::place::PlaceError;
use crate::policy::model::{RedisSpec, Target};
use address::Address;
use client::{Answer, Server, Stream};
use facts::Facts;
use info::Info;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const STREAM: &str = "dump.rdb";

/// Limits that a test sets lower.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest that the server may stand without a byte: while it forks and writes its file it sends none.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { stall: Duration::from_secs(300) }
    }
}

/// A Redis server of a policy.
pub struct RedisSource {
    name: SourceName,
    spec: RedisSpec,
    timeout: Duration,
    locate: Locate,
    limits: Limits,
}

impl RedisSource {
    pub fn new(name: SourceName, spec: RedisSpec, timeout: Duration, locate: Locate) -> Self {
        Self { name, spec, timeout, locate, limits: Limits::default() }
    }

    /// With limits of its own.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    fn server(&self, deadline: Deadline, cancel: &Cancel) -> Result<Server, SourceError> {
        self.server_at(&(self.locate)(&self.spec.target)?, deadline, cancel)
    }

    fn server_at(&self, located: &Located, deadline: Deadline, cancel: &Cancel) -> Result<Server, SourceError> {
        let mut address = match &self.spec.target {
            Target::Url(url) => address::parse(url)?,
            _ => Address::default(),
        };
        address.tls |= self.spec.tls;
        let in_container = matches!(self.spec.target, Target::Service(_) | Target::Container(_));
        let (password, password_origin) = self.password(located)?;
        let name = match &self.spec.target {
            Target::Url(_) | Target::Host => format!("Redis at {}", address.describe()),
            _ => located.place.describe(),
        };
        let mut server = Server {
            place: located.place.clone(),
            user: self.spec.user.clone().or_else(|| address.user.clone()),
            address,
            password,
            password_origin,
            name,
            stall: self.limits.stall,
            deadline,
            cancel: cancel.clone(),
            by_link: false,
            open: AtomicBool::new(false),
        };
        server.choose_tool(in_container)?;
        Ok(server)
    }

    fn password(
        &self,
        located: &Located,
    ) -> Result<(Option<crate::base::secret::Secret<String>>, Option<String>), SourceError> {
        if let Some(reference) = &self.spec.password_from {
            let origin = format!("password_from points to {}", secret::describe(reference));
            return Ok((Some(secret::resolve(reference)?), Some(origin)));
        }
        Ok(match located.variable(&["REDISCLI_AUTH", "REDIS_PASSWORD"]) {
            Some(password) => (Some(password.clone()), Some("it is the container's REDIS_PASSWORD".into())),
            None => (None, None),
        })
    }

    /// What the server says of itself, and whether a copy can be had of it.
    fn preflight(&self, server: &Server, warnings: &mut Vec<String>) -> Result<Option<Info>, SourceError> {
        let info = match server.ask(&["INFO"])? {
            Answer::Text(text) => Info::parse(&text),
            Answer::Refused(why) => {
                warnings.push(format!("the server does not tell about itself ({why}): facts come from the file alone"));
                return Ok(None);
            }
        };
        if info.is_empty() {
            return Err(SourceError::problem(format!("{} does not answer INFO as Redis does", server.name)));
        }
        let is = |key: &str, value: &str| info.get(key) == Some(value);
        if is("loading", "1") || is("async_loading", "1") {
            return Err(server.loading());
        }
        if is("redis_mode", "sentinel") {
            return Err(SourceError::hint(
                format!("{} is a sentinel, which holds no data", server.name),
                "name the Redis server that it watches",
            ));
        }
        if is("role", "slave") {
            if !is("master_link_status", "up") {
                return Err(SourceError::hint(
                    format!(
                        "{} is a replica that has lost its master: its data is old, and it gives no copy",
                        server.name
                    ),
                    "capture the master, or repair the link (INFO replication)",
                ));
            }
            warnings.push("the server is a replica: its data may lag behind the master's".into());
        }
        if is("cluster_enabled", "1") {
            warnings.push(
                "the server is a node of a cluster: only the keys of its own slots are captured; each master needs a source"
                    .into(),
            );
        }
        Ok(Some(info))
    }

    fn capture_all(&self, cx: &Capture<'_>, cancel: &Cancel) -> Result<Captured, SourceError> {
        let deadline = Deadline::after(self.timeout);
        let server = self.server(deadline, cancel)?;
        let mut warnings = Vec::new();
        let before = self.preflight(&server, &mut warnings)?;
        let mut facts = Facts { stream: STREAM.into(), server: "redis".into(), ..Facts::default() };
        if let Some(info) = &before {
            info.fill(&mut facts);
        }
        configuration(&server, &mut facts, &mut warnings)?;

        cx.events.step(format!("{}: copy of {}", self.name, server.name));
        let expected = facts.used_memory;
        let mut stream = cx.sink.stream(STREAM.parse()?, StreamKind::Rdb, expected).map_err(SourceError::Sink)?;
        let report = copy(&server, &mut stream)?;
        let after = match before {
            Some(_) => match server.ask(&["INFO"])? {
                Answer::Text(text) => Some(Info::parse(&text)),
                Answer::Refused(_) => None,
            },
            None => None,
        };
        stream.finish().map_err(SourceError::Sink)?;

        facts.before = before.as_ref().map(Info::keyspace);
        facts.after = after.as_ref().map(Info::keyspace);
        describe_file(&report, &mut facts, &mut warnings);
        let facts =
            serde_json::to_value(&facts).map_err(|e| SourceError::problem(format!("facts cannot be written: {e}")))?;
        for warning in &warnings {
            cx.events.warn(&self.name, warning.clone());
        }
        Ok(Captured { facts, warnings })
    }
}

/// The copy, checked to its end.
fn copy(server: &Server, sink: &mut dyn std::io::Write) -> Result<rdb::Report, SourceError> {
    let mut stream = server.dump()?;
    let walked = rdb::store(stream.reader(), sink);
    match walked {
        Ok(report) => {
            let by_link = matches!(stream, Stream::Link(_));
            let exit = stream.finish()?;
            match exit.code {
                0 => Ok(report),
                code => Err(server.no_copy(&format!("{} (redis-cli ended with status {code})", exit.stderr))),
            }
            .inspect(|r| tracing::debug!(bytes = r.length, mark = r.mark, by_link, "copy"))
        }
        Err(TapError::Sink(error)) => Err(SourceError::Sink(error)),
        Err(TapError::Read(error)) => match PlaceError::from_io("read the copy", server.place.describe(), error) {
            PlaceError::Io { source, .. } => Err(server.no_copy(&format!("it ends early: {source}"))),
            other => Err(other.into()),
        },
        Err(TapError::Short) => {
            // The end of output is the end of redis-cli, and it knows the cause.
            let exit = stream.finish()?;
            let said = format!("{} (the copy ends early; redis-cli ended with status {})", exit.stderr, exit.code);
            Err(server.no_copy(&said))
        }
        Err(TapError::Format(why)) => {
            Err(SourceError::problem(format!("the copy of {} is not sound: {why}", server.name)))
        }
    }
}

/// Settings that a restore needs, where the server tells them.
fn configuration(server: &Server, facts: &mut Facts, warnings: &mut Vec<String>) -> Result<(), SourceError> {
    let mut refused = None;
    let mut setting = |name: &str| -> Result<Option<String>, SourceError> {
        if refused.is_some() {
            return Ok(None);
        }
        match server.ask(&["CONFIG", "GET", name])? {
            Answer::Text(text) => {
                let value = text.split_once('\n').filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
                Ok(value)
            }
            Answer::Refused(why) => {
                refused = Some(why);
                Ok(None)
            }
        }
    };
    facts.appendonly = setting("appendonly")?.map(|v| v == "yes");
    facts.appenddirname = setting("appenddirname")?;
    facts.appendfilename = setting("appendfilename")?;
    facts.dir = setting("dir")?;
    facts.dbfilename = setting("dbfilename")?;
    facts.aclfile = setting("aclfile")?.filter(|v| !v.is_empty());
    if let Some(why) = refused {
        warnings.push(format!(
            "the server does not tell its settings ({why}): a restore will have to be told where its files lie"
        ));
    }
    if let Answer::Text(text) = server.ask(&["ACL", "USERS"])? {
        facts.acl_users = Some(text.lines().filter(|l| *l != "default" && !l.is_empty()).count() as u64);
    }
    if facts.acl_users.is_some_and(|n| n > 0) {
        warnings.push(
            "the server has ACL users: they stand in its configuration or ACL file, which a files source captures, not in the RDB"
                .into(),
        );
    }
    Ok(())
}

/// What the file itself says.
fn describe_file(report: &rdb::Report, facts: &mut Facts, warnings: &mut Vec<String>) {
    facts.server = report.format.to_lowercase();
    facts.rdb_version = report.version;
    facts.rdb_checksum = report.checksum;
    facts.functions = report.functions.as_ref().map(|f| f.count);
    facts.functions_digest = report.functions.as_ref().map(|f| f.sum.to_string());
    facts.content = report.content();
    let version = report.aux.get("valkey-ver").inspect(|_| facts.server = "valkey".into());
    let version = version.or_else(|| report.aux.get("redis-ver"));
    if facts.version.is_none() {
        facts.version = version.cloned();
    }
    if !report.checksum {
        warnings
            .push("the server writes no checksum (rdbchecksum no): only the file's structure could be checked".into());
    }
    match (report.keys(), &facts.before, &facts.after) {
        (Some(keys), ..) => {
            facts.counted = "file".into();
            facts.databases = keys;
        }
        (None, Some(before), Some(after)) if before == after => {
            facts.counted = "server".into();
            facts.databases = after.clone();
        }
        _ => {
            facts.counted = "range".into();
            facts.databases = facts.after.clone().unwrap_or_default();
            warnings.push(format!(
                "the file holds types that RDB {} brought and that are not known here: its keys were not counted",
                report.version
            ));
        }
    }
}

impl Source for RedisSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "redis"
    }

    fn describe(&self) -> String {
        format!("all keys of {} (RDB)", describe(&self.spec.target))
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        let deadline = Deadline::after(self.timeout.min(Duration::from_secs(60)));
        let result = self.server(deadline, cancel).and_then(|server| self.preflight(&server, &mut Vec::new()));
        result.map(|_| ()).map_err(|e| settle(e, cancel))
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let linked = Linked::to(cx.cancel)?;
        self.capture_all(cx, &linked.cancel).map_err(|e| settle(e, cx.cancel))
    }
}
