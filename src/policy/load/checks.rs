//! `[[health]]`, `[drill]` and `[notify]`: how it is known that all is well, and who hears of it.

use super::sources::Sources;
use super::{each, each_once, named_source, section};
use crate::base::units::parse_size;
use crate::policy::document::{Bad, Table, quote, unknown};
use crate::policy::model::{
    Drill, DrillCheck, DrillPostgres, HealthCheck, HealthKind, MinFree, Notify, NotifyChannel, NotifyOn, NotifyTarget,
};
use crate::policy::values;
use std::path::Path;
use std::time::Duration;
use toml::de::DeValue;

const HEALTH_KINDS: [&str; 7] = ["http", "tcp", "container", "command", "certificate", "disk", "redis"];

const CHANNELS: [&str; 6] = ["webhook", "ntfy", "slack", "discord", "healthchecks", "email"];

const OCCASIONS: [(&str, NotifyOn); 5] = [
    ("failure", NotifyOn::Failure),
    ("success", NotifyOn::Success),
    ("drill", NotifyOn::Drill),
    ("rollback", NotifyOn::Rollback),
    ("weekly", NotifyOn::Weekly),
];

pub(super) fn health(document: &Table<'_>, root: &Path, sources: &Sources) -> Vec<HealthCheck> {
    document.tables("health", false).into_iter().filter_map(|table| health_check(table, root, sources)).collect()
}

fn health_check(mut table: Table<'_>, root: &Path, sources: &Sources) -> Option<HealthCheck> {
    let attempts = table.number("attempts", 10, 1..=1000u32);
    let interval = table.parsed("interval", Duration::from_secs(5), values::duration);
    let timeout = table.parsed("timeout", Duration::from_secs(10), values::duration);
    let given: Vec<&'static str> = HEALTH_KINDS.into_iter().filter(|kind| table.holds(kind)).collect();
    for kind in given.iter().skip(1) {
        let message = format!("{kind:?} contradicts {:?}: a check has one subject", given[0]);
        table.contradiction(kind, message, "write another [[health]]");
    }
    let kind = match given.first() {
        Some(kind) => health_kind(kind, &table, root, sources),
        None => None,
    };
    if let [only] = given[..] {
        table.name = format!("a health check by {only:?}");
        table.finish();
    } else if given.is_empty() {
        // What is misspelt here may be the subject itself.
        HEALTH_KINDS.iter().for_each(|kind| _ = table.get(kind));
        let hint = "the subjects are http, tcp, container, command, certificate, disk and redis";
        table.report.hinted(table.at, "a health check without a subject", hint);
        table.finish();
    }
    Some(HealthCheck { kind: kind?, attempts, interval, timeout })
}

fn health_kind(kind: &'static str, table: &Table<'_>, root: &Path, sources: &Sources) -> Option<HealthKind> {
    match kind {
        "http" => {
            let url = table.optional("http", values::http_url);
            let (status, json) = (table.number("status", 200, 100..=599u16), json(table));
            Some(HealthKind::Http { url: url?, status, json })
        }
        "tcp" => table.optional("tcp", values::address).map(HealthKind::Tcp),
        "container" => table.optional("container", values::docker_name).map(HealthKind::Container),
        "command" => table.argv("command").map(HealthKind::Command),
        "certificate" => {
            let address = table.optional("certificate", values::address);
            let min_days = table.number("min_days", 14, 0..=3650u32);
            Some(HealthKind::Certificate { address: address?, min_days })
        }
        "disk" => {
            let path = table.optional("disk", |text| values::path(root, text));
            let min_free = table.parsed("min_free", MinFree::default(), values::min_free);
            Some(HealthKind::Disk { path: path?, min_free })
        }
        _ => {
            let max_memory_percent = table.parsed("max_memory", 80.0, values::percent);
            let source = named_source(table, "redis", "redis", sources)?;
            Some(HealthKind::Redis { source: source.name.clone(), max_memory_percent })
        }
    }
}

/// What the answer must say: dotted paths, or tables within tables.
fn json(table: &Table<'_>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if let Some(json) = table.table("json") {
        flatten(&json, "", &mut found);
    }
    found
}

fn flatten(table: &Table<'_>, prefix: &str, found: &mut Vec<(String, String)>) {
    for (key, value) in table.entries() {
        let path = format!("{prefix}{}", key.text);
        if found.iter().any(|(other, _)| *other == path) {
            table.report.error(key.at, format!("{} is listed twice", quote(&path)));
            continue;
        }
        match value.get_ref() {
            DeValue::String(text) => found.push((path, text.to_string())),
            DeValue::Boolean(flag) => found.push((path, flag.to_string())),
            DeValue::Integer(number) if number.radix() == 10 => found.push((path, number.as_str().to_owned())),
            DeValue::Float(number) => found.push((path, number.as_str().to_owned())),
            DeValue::Table(entries) => {
                let inner = Table::new(table.report, path.clone(), value.span().start, entries);
                flatten(&inner, &format!("{path}."), found);
            }
            _ => {
                let message = format!("{} must be a string, a number, a boolean or a table of them", quote(&path));
                table.report.error(value.span().start, message);
            }
        }
    }
}

pub(super) fn drill(document: &Table<'_>, sources: &Sources) -> Drill {
    let mut drill = Drill::default();
    let Some(table) = section(document, "drill") else { return drill };
    drill.postgres = table.parsed("postgres", drill.postgres, drill_postgres);
    drill.memory = table.parsed("memory", drill.memory, |text| match parse_size(text)? {
        bytes if bytes < 64 << 20 => Err(Bad::new(format!("{} is too little: 64MiB at least", quote(text)))),
        bytes => Ok(bytes),
    });
    drill.max_age = table.parsed("max_age", drill.max_age, values::duration);
    for check in table.tables("check", false) {
        let source = named_source(&check, "source", "postgres", sources);
        let sql = check.needed("sql", Some("a query whose one answer is true"));
        let database = check.string("database");
        if let (Some(source), Some(sql)) = (source, sql) {
            drill.checks.push(DrillCheck { source: source.name.clone(), sql: sql.text.to_owned(), database });
        }
        check.finish();
    }
    table.finish();
    drill
}

fn drill_postgres(text: &str) -> Result<DrillPostgres, Bad> {
    match text {
        "auto" => Ok(DrillPostgres::Auto),
        "image" => Ok(DrillPostgres::Image),
        "local" => Ok(DrillPostgres::Local),
        _ if text.contains("://") => {
            values::url_of(&["postgres", "postgresql"], text).map(|_| DrillPostgres::Server(text.to_owned()))
        }
        _ => Err(unknown("place for a drill's Postgres", text, &["auto", "image", "local", "postgres://…"])),
    }
}

/// `[notify]`, or several `[[notify]]`.
pub(super) fn notify(document: &Table<'_>, root: &Path) -> Vec<Notify> {
    let mut found = Vec::new();
    for table in document.tables("notify", true) {
        let shared = occasions(&table);
        let mut any = false;
        for channel in CHANNELS {
            any |= table.has(channel);
            found.extend(notify_one(&table, channel, root, shared.as_deref()));
        }
        if !any {
            let hint = "the channels are webhook, ntfy, slack, discord, healthchecks and email";
            table.report.hinted(table.at, format!("{} names no channel", table.name), hint);
        }
        table.finish();
    }
    found
}

fn occasions(table: &Table<'_>) -> Option<Vec<NotifyOn>> {
    let texts = table.texts("on", false)?;
    let words = OCCASIONS.map(|(word, _)| word);
    let known = each_once(table, &texts, |text| match words.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(unknown("occasion", text, &words)),
    });
    Some(known.iter().filter_map(|word| OCCASIONS.iter().find(|(w, _)| w == word)).map(|(_, on)| *on).collect())
}

/// A channel is its URL, or a table with `url` and an `on` of its own.
fn notify_one(table: &Table<'_>, channel: &'static str, root: &Path, shared: Option<&[NotifyOn]>) -> Option<Notify> {
    let value = table.get(channel)?;
    // A watchdog that hears of failures alone would wait for its pings in vain.
    let default: &[NotifyOn] = match channel {
        "healthchecks" => &[NotifyOn::Failure, NotifyOn::Success],
        _ => &[NotifyOn::Failure],
    };
    let otherwise = || shared.unwrap_or(default).to_vec();
    if let DeValue::String(_) = value.get_ref() {
        if channel == "email" {
            let hint = "write email = { to = [\"ops@example.org\"], from = \"…\", smtp = \"smtp://host:587\" }";
            table.report.hinted(value.span().start, "\"email\" must be a table, found a string", hint);
            return None;
        }
        let target = table.optional(channel, |text| notify_target(channel, root, text))?;
        return Some(Notify { channel: web_channel(channel, target), on: otherwise() });
    }
    let inner = table.table(channel)?;
    let on = occasions(&inner).unwrap_or_else(otherwise);
    let made = match channel {
        "email" => email(&inner, root),
        _ => {
            let url = inner.needed("url", None);
            let target = url.and_then(|t| inner.report.ok(t.at, notify_target(channel, root, t.text)));
            target.map(|target| web_channel(channel, target))
        }
    };
    inner.finish();
    made.map(|channel| Notify { channel, on })
}

fn web_channel(channel: &str, target: NotifyTarget) -> NotifyChannel {
    match channel {
        "webhook" => NotifyChannel::Webhook(target),
        "ntfy" => NotifyChannel::Ntfy(target),
        "slack" => NotifyChannel::Slack(target),
        "discord" => NotifyChannel::Discord(target),
        _ => NotifyChannel::Healthchecks(target),
    }
}

fn notify_target(channel: &str, root: &Path, text: &str) -> Result<NotifyTarget, Bad> {
    let is_url = text.contains("://");
    if is_url && matches!(channel, "slack" | "discord") {
        let hint = format!("write {channel} = \".env:KEY\", \"env:NAME\" or \"file:PATH\"");
        return Err(Bad::hint(format!("the URL of a {channel} webhook is a secret in itself"), hint));
    }
    if is_url {
        return values::http_url(text).map(NotifyTarget::Plain);
    }
    values::secret_ref(root, text).map(NotifyTarget::Secret)
}

fn email(table: &Table<'_>, root: &Path) -> Option<NotifyChannel> {
    let address = |text: &str| {
        let fits = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
        let plain = !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | ','));
        if fits && plain {
            Ok(text.to_owned())
        } else {
            Err(Bad::new(format!("{} is not an email address", quote(text))))
        }
    };
    if !table.has("to") {
        table.missing("to", None);
    }
    let to = each(table, &table.texts("to", false).unwrap_or_default(), address);
    let from = table.needed("from", None).and_then(|t| table.report.ok(t.at, address(t.text)));
    let smtp = table.needed("smtp", Some("\"smtp://host:587\", \"smtps://host:465\", or a reference to one"));
    let smtp = smtp.and_then(|t| {
        let target = match t.text.contains("://") {
            true => values::url_of(&["smtp", "smtps"], t.text).map(|_| NotifyTarget::Plain(t.text.to_owned())),
            false => values::secret_ref(root, t.text).map(NotifyTarget::Secret),
        };
        table.report.ok(t.at, target)
    });
    Some(NotifyChannel::Email { to, from: from?, smtp: smtp? })
}
