//! From a TOML file to a [`Policy`]: validation, and every default.
//!
//! The document is read by hand, table by table, so that one run reports every error of a file (see
//! `docs/decisions/010-policy-errors.md`); only errors of TOML's syntax hide what lies behind them.

mod checks;
mod repository;
mod sources;

pub use repository::S3_FIELDS;

use crate::base::ids::PolicyName;
use crate::base::units::{human_duration, parse_duration};
use crate::policy::document::{Bad, Report, Table, Text, quote, unknown};
use crate::policy::error::{Lines, LoadError, PolicyError, PolicyErrors, Position};
use crate::policy::model::{App, Hooks, Policy, Retention, Rollback, Schedule, SourcePolicy, SourceSpec, Target, When};
use crate::policy::{nearest, schedule, values};
use sources::Sources;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// No policy is anywhere near this; a path that names something else shall not fill the memory.
const MAX_POLICY_BYTES: u64 = 1 << 20;

const HOUR: u64 = 3600;

/// Reads a policy.
pub fn load(path: &Path) -> Result<Policy, LoadError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_POLICY_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_POLICY_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any policy (1 MiB)"));
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let position = Lines::of(error.as_bytes()).position(error.utf8_error().valid_up_to());
        let errors = vec![PolicyError { position, message: "not UTF-8 text".into(), hint: None }];
        PolicyErrors { file: path.to_owned(), errors }
    })?;
    Ok(parse(path, &text)?)
}

/// Reads a policy's text; `file` is what messages call it.
pub fn parse(file: &Path, text: &str) -> Result<Policy, PolicyErrors> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let report = Report::new(text);
    let lines = Lines::of(text.as_bytes());
    let mut complained = BTreeSet::new();
    for error in syntax {
        let at = error.span().map_or(0, |span| span.start);
        // One slip can draw several complaints; the first of a line is the one to read.
        if complained.insert(lines.position(at).line) {
            report.error(at, format!("not valid TOML: {}", error.message()));
        }
    }
    if !complained.is_empty() {
        report.finish(file)?;
    }
    let report = Report::new(text);
    for (key, value) in document.get_ref() {
        report.private_key(key.span().start, key.get_ref());
        report.private_keys(value.span().start, value.get_ref());
    }
    let policy = policy(file, text, &Table::new(&report, "", 0, document.get_ref()));
    match (report.finish(file), policy) {
        (Err(errors), _) => Err(errors),
        (Ok(()), Some(policy)) => Ok(policy),
        // A part can only be missing after it was reported.
        (Ok(()), None) => Err(PolicyErrors {
            file: file.to_owned(),
            errors: vec![PolicyError {
                position: Position { line: 1, column: 1 },
                message: "the policy is not complete".into(),
                hint: None,
            }],
        }),
    }
}

/// The document. Every part is read, whatever is wrong with the others.
fn policy(file: &Path, text: &str, document: &Table<'_>) -> Option<Policy> {
    let app = app(document, file);
    // Without a root, paths are still checked for form.
    let root = app.as_ref().map_or(Path::new("/"), |app| &app.root);
    let repository = repository::repository(document, root);
    let schedule = schedule_section(document);
    let retention = retention(document);
    let sources = sources::sources(document, root, app.as_ref());
    let external = external(document);
    let hooks = hooks(document);
    let health = checks::health(document, root, &sources);
    let rollback = rollback(document, &sources);
    let drill = checks::drill(document, &sources);
    let notify = checks::notify(document, root);
    document.finish();
    Some(Policy {
        file: file.to_owned(),
        text: text.to_owned(),
        app: app?,
        repository: repository?,
        schedule,
        retention,
        sources: sources.captured,
        external,
        hooks,
        health,
        rollback,
        drill,
        notify,
    })
}

/// A failed run is tried again so often.
const RETRIES: u32 = 3;

/// A section that may be left out.
fn section<'a>(document: &Table<'a>, name: &'static str) -> Option<Table<'a>> {
    document.table(name)
}

/// A section that must be there.
fn needed_section<'a>(document: &Table<'a>, name: &'static str) -> Option<Table<'a>> {
    if !document.has(name) {
        document.report.error(0, format!("missing section [{name}]"));
    }
    document.table(name)
}

/// Values of an array, each in a form of its own; bad ones are reported and left out.
fn each<T, E: Into<Bad>>(table: &Table<'_>, texts: &[Text<'_>], mut parse: impl FnMut(&str) -> Result<T, E>) -> Vec<T> {
    texts.iter().filter_map(|t| table.report.ok(t.at, parse(t.text))).collect()
}

/// The same, where each may stand once.
fn each_once<E: Into<Bad>>(
    table: &Table<'_>,
    texts: &[Text<'_>],
    parse: impl FnMut(&str) -> Result<String, E>,
) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    let mut parse = parse;
    for text in texts {
        match table.report.ok(text.at, parse(text.text)) {
            Some(value) if values.contains(&value) => {
                table.report.error(text.at, format!("{} is listed twice", quote(text.text)));
            }
            Some(value) => values.push(value),
            None => {}
        }
    }
    values
}

fn app(document: &Table<'_>, file: &Path) -> Option<App> {
    let table = needed_section(document, "app")?;
    let name = table.needed("name", None);
    let name = name.and_then(|t| Some((t, table.report.ok(t.at, t.text.parse::<PolicyName>())?)));
    if let Some((text, name)) = &name {
        let installed = file.parent().and_then(Path::file_name).is_some_and(|folder| folder == "policies");
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        if installed && stem != name.as_str() {
            let hint = format!("call the file {name}.toml: two files with one name would mix their snapshots");
            table.report.hinted(text.at, format!("the policy {:?} stands in a file of another name", text.text), hint);
        }
    }
    let root = table.needed("root", None).and_then(|t| table.report.ok(t.at, root(t.text)));
    let base = root.clone().unwrap_or_else(|| PathBuf::from("/"));
    let paths = |field| {
        let texts = table.texts(field, true).unwrap_or_default();
        each(&table, &texts, |text| values::path(&base, text))
    };
    let (compose_files, env_files) = (paths("compose_files"), paths("env_files"));
    let profiles = each_once(&table, &table.texts("profiles", true).unwrap_or_default(), values::docker_name);
    let project = table.optional("project", project);
    let project_dir = table.optional("project_dir", |text| values::path(&base, text));
    let named = table.has("name");
    table.finish();
    let (true, Some((_, name)), Some(root)) = (named, name, root) else { return None };
    Some(App { name, root, compose_files, env_files, profiles, project, project_dir })
}

fn root(text: &str) -> Result<PathBuf, Bad> {
    if !text.starts_with('/') {
        let quoted = quote(text);
        return Err(Bad::hint(format!("{quoted} is not an absolute path"), "write the whole path of the application"));
    }
    if text.contains(['*', '?', '[', ']', '{', '}']) {
        return Err(Bad::new("the root holds one of * ? [ ] { }, which paths below it would read as a glob"));
    }
    values::path(Path::new("/"), text)
}

/// A Compose project's name.
fn project(text: &str) -> Result<String, Bad> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    if text.chars().all(fits) && !text.starts_with(['_', '-']) {
        Ok(text.to_owned())
    } else {
        let form = "lower-case letters, digits, '_' and '-', starting with a letter or digit";
        Err(Bad::new(format!("{} is not a Compose project's name: {form}", quote(text))))
    }
}

fn schedule_section(document: &Table<'_>) -> Schedule {
    let table = section(document, "schedule");
    let when = |field, default: &str| {
        let read = |text: &str| match text {
            "off" => Ok(When::Off),
            _ => schedule::check(text).map(|()| When::Cron(text.trim().to_owned())).map_err(|error| {
                let hint = "minute hour day month weekday, such as \"0 2 * * *\"; or @daily and friends; or \"off\"";
                let near = nearest::nearest(text, schedule::NICKNAMES.iter().copied().chain(["off"]));
                let hint = near.map_or(hint.to_owned(), |near| format!("did you mean {near:?}?"));
                Bad::hint(error.to_string(), hint)
            }),
        };
        let default = When::Cron(default.to_owned());
        let Some(table) = &table else { return default };
        if let Some(DeValue::Boolean(false)) = table.get(field).map(toml::Spanned::get_ref) {
            let message = format!("{field:?} must be a string, found a boolean");
            table.report.hinted(table.value_at(field), message, format!("write {field} = \"off\""));
            return default;
        }
        table.parsed(field, default, read)
    };
    let limit =
        |field, default| table.as_ref().map_or(default, |t: &Table<'_>| t.parsed(field, default, values::duration));
    let schedule = Schedule {
        timezone: table.as_ref().and_then(|t| t.optional("timezone", values::timezone)),
        snapshot: when("snapshot", "0 2 * * *"),
        verify: when("verify", "15 * * * *"),
        drill: when("drill", "0 3 * * 0"),
        prune: when("prune", "30 4 * * *"),
        catch_up: table.as_ref().is_none_or(|t| t.flag("catch_up", true)),
        jitter: table
            .as_ref()
            .map_or(Duration::from_secs(300), |t| t.parsed("jitter", Duration::from_secs(300), parse_duration)),
        retries: table.as_ref().map_or(RETRIES, |t| t.number("retries", RETRIES, 0..=20u32)),
        retry: limit("retry", Duration::from_secs(300)),
        time_limit: limit("time_limit", Duration::from_secs(12 * 3600)),
    };
    if let Some(table) = table {
        if table.has("jitter") {
            check_jitter(&table, &schedule);
        }
        table.finish();
    }
    schedule
}

/// A delay beyond the next slot: what is due would be overtaken before it begins.
fn check_jitter(table: &Table<'_>, schedule: &Schedule) {
    let all = [
        ("snapshot", &schedule.snapshot),
        ("verify", &schedule.verify),
        ("drill", &schedule.drill),
        ("prune", &schedule.prune),
    ];
    for (name, when) in all {
        let gap = schedule::shortest_gap(when).and_then(|gap| gap.to_std().ok());
        if let Some(gap) = gap.filter(|gap| schedule.jitter > *gap) {
            let (jitter, gap) = (human_duration(schedule.jitter), human_duration(gap));
            let message = format!("the jitter of {jitter} is longer than the {gap} between two runs of {name:?}");
            let hint = "write a shorter one, or a schedule with longer pauses";
            return table.report.hinted(table.value_at("jitter"), message, hint.to_owned());
        }
    }
}

fn retention(document: &Table<'_>) -> Retention {
    let mut keep = Retention {
        keep_last: 3,
        keep_hourly: 0,
        keep_daily: 7,
        keep_weekly: 4,
        keep_monthly: 6,
        keep_yearly: 0,
        keep_within: None,
        keep_tagged: true,
        max_age: None,
    };
    let Some(table) = section(document, "retention") else { return keep };
    let count = |field, default| table.number(field, default, 0..=100_000u32);
    keep.keep_last = count("keep_last", keep.keep_last);
    keep.keep_hourly = count("keep_hourly", keep.keep_hourly);
    keep.keep_daily = count("keep_daily", keep.keep_daily);
    keep.keep_weekly = count("keep_weekly", keep.keep_weekly);
    keep.keep_monthly = count("keep_monthly", keep.keep_monthly);
    keep.keep_yearly = count("keep_yearly", keep.keep_yearly);
    keep.keep_within = table.optional("keep_within", values::duration);
    keep.keep_tagged = table.flag("keep_tagged", true);
    keep.max_age = table.optional("max_age", values::duration);
    let counts = [keep.keep_last, keep.keep_hourly, keep.keep_daily, keep.keep_weekly, keep.keep_monthly];
    if counts.iter().all(|n| *n == 0) && keep.keep_yearly == 0 && !table.has("keep_within") {
        table.report.hinted(table.at, "[retention] keeps nothing", "leave a keep_ field above 0");
    }
    if let (Some(within), Some(age)) = (keep.keep_within, keep.max_age)
        && within > age
    {
        table.contradiction("keep_within", "keep_within is longer than max_age", "max_age wins over everything else");
    }
    table.finish();
    keep
}

fn external(document: &Table<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for table in document.tables("external", false) {
        names.extend(table.needed("name", None).map(|t| t.text.to_owned()));
        table.finish();
    }
    names
}

fn hooks(document: &Table<'_>) -> Hooks {
    let mut hooks = Hooks { timeout: Duration::from_secs(600), ..Hooks::default() };
    let Some(table) = section(document, "hooks") else { return hooks };
    hooks.before_snapshot = table.one_or_more("before_snapshot");
    hooks.after_snapshot = table.one_or_more("after_snapshot");
    hooks.before_rollback = table.one_or_more("before_rollback");
    hooks.after_rollback = table.one_or_more("after_rollback");
    hooks.on_failure = table.one_or_more("on_failure");
    hooks.timeout = table.parsed("timeout", hooks.timeout, values::duration);
    table.finish();
    hooks
}

fn rollback(document: &Table<'_>, sources: &Sources) -> Rollback {
    let mut rollback =
        Rollback { stop: Vec::new(), up: None, downgrade: None, keep_old: Duration::from_secs(72 * HOUR) };
    let Some(table) = section(document, "rollback") else { return rollback };
    let stop = table.texts("stop", false).unwrap_or_default();
    rollback.stop = each_once(&table, &stop, values::docker_name);
    for service in &stop {
        if let Some(source) = sources.captured.iter().find(|s| needs_running(s, service.text)) {
            let message = format!(
                "{:?} cannot be stopped: source {:?} is restored while it runs",
                service.text,
                source.name.as_str()
            );
            table.report.hinted(service.at, message, "name the services that use it");
        }
    }
    rollback.up = table.string("up");
    rollback.downgrade = table.optional("downgrade", |text| {
        if text.contains("{revision}") {
            return Ok(text.to_owned());
        }
        let hint = "write it where the revision goes: \"docker compose exec -T api alembic downgrade {revision}\"";
        Err(Bad::hint("downgrade has no {revision}, so it would not know where to", hint))
    });
    rollback.keep_old = table.parsed("keep_old", rollback.keep_old, values::duration);
    table.finish();
    rollback
}

/// Whether the source's data store is this compose service.
fn needs_running(source: &SourcePolicy, service: &str) -> bool {
    let target = match &source.spec {
        SourceSpec::Postgres(spec) => &spec.target,
        SourceSpec::Redis(spec) => &spec.target,
        _ => return false,
    };
    matches!(target, Target::Service(name) if name == service)
}

/// The source that a field names, when it is of the right kind.
fn named_source<'s>(
    table: &Table<'_>,
    field: &'static str,
    kind: &str,
    sources: &'s Sources,
) -> Option<&'s SourcePolicy> {
    let text = table.needed(field, None)?;
    let name = text.text;
    let bad = match sources.captured.iter().find(|s| s.name.as_str() == name) {
        Some(source) if source.spec.kind() == kind => return Some(source),
        Some(source) => Bad::new(format!("source {name:?} is of kind {:?}, not {kind:?}", source.spec.kind())),
        None if sources.broken.iter().any(|broken| broken == name) => return None,
        None if sources.disabled.iter().any(|disabled| disabled == name) => {
            Bad::new(format!("source {name:?} is disabled"))
        }
        None => {
            let fitting = sources.captured.iter().filter(|s| s.spec.kind() == kind);
            let names: Vec<&str> = fitting.map(|s| s.name.as_str()).collect();
            match names.is_empty() {
                true => Bad::new(format!("unknown {kind} source {}: the policy has none", quote(name))),
                false => unknown(&format!("{kind} source"), name, &names),
            }
        }
    };
    table.report.add(text.at, bad);
    None
}
