//! `[[source]]`: what is captured. `env`, `git` and `compose` of the root stand by default.

use super::{HOUR, each, each_once};
use crate::base::ids::{SourceName, StreamName};
use crate::policy::document::{Bad, Table, Text, list, quote, unknown};
use crate::policy::model::{
    App, CertificatesSpec, CommandSpec, ComposeSpec, Databases, EnvSpec, FilesSpec, Fingerprint, GitSpec, NginxSpec,
    OnRollback, Pin, PostgresSpec, RECOVERY, RedisSpec, SourcePolicy, SourceSpec, Target, Via, VolumeSpec,
};
use crate::policy::values;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeValue;

const KINDS: [&str; 10] =
    ["postgres", "redis", "env", "certificates", "nginx", "files", "volume", "command", "git", "compose"];

/// Kinds that stand by default, and of which the root has only one each (`env` may be split up by name).
const IMPLICIT: [&str; 3] = ["env", "git", "compose"];

/// Examples among env files hold no secrets and belong to git.
const ENV_EXAMPLES: [&str; 4] = ["*.example", "*.sample", "*.template", "*.dist"];

/// The longest that a capture may take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(6 * HOUR);

/// The sources of a policy, and the names that the file gives to others.
pub(super) struct Sources {
    pub captured: Vec<SourcePolicy>,
    /// Named, but switched off.
    pub disabled: Vec<String>,
    /// Named, but reported as wrong: what refers to them is not wrong once more.
    pub broken: Vec<String>,
}

/// A source as the file has it, before names are settled.
struct Given<'a> {
    /// Where the source begins.
    at: usize,
    name: Option<Text<'a>>,
    /// Empty when it is not a kind.
    kind: &'static str,
    enabled: bool,
    policy: Option<SourcePolicy>,
}

impl Given<'_> {
    fn own_name(&self) -> &str {
        self.name.map_or(self.kind, |name| name.text)
    }
}

pub(super) fn sources(document: &Table<'_>, root: &Path, app: Option<&App>) -> Sources {
    let env_files = app.map_or(&[][..], |app| &app.env_files[..]);
    let tables = document.tables("source", false);
    let given: Vec<Given<'_>> = tables.into_iter().map(|table| source(table, root, env_files)).collect();
    check_names(document, &given);
    let absent = |kind: &&str| !given.iter().any(|g| g.kind == *kind);
    let implicit: Vec<SourcePolicy> =
        IMPLICIT.into_iter().filter(absent).filter_map(|kind| implicit(kind, root, env_files)).collect();
    let mut sources = Sources { captured: Vec::new(), disabled: Vec::new(), broken: Vec::new() };
    for one in given {
        if !one.enabled {
            sources.disabled.push(one.own_name().to_owned());
            continue;
        }
        let Some(policy) = one.policy else {
            sources.broken.push(one.own_name().to_owned());
            continue;
        };
        if let Some(other) = implicit.iter().find(|i| i.name == policy.name) {
            let kind = other.spec.kind();
            let message = format!("source name {:?} is the one of the {kind} source that stands by default", kind);
            let hint = format!("choose another name, or name the {kind} source yourself");
            document.report.hinted(one.name.map_or(one.at, |name| name.at), message, hint);
        }
        sources.captured.push(policy);
    }
    sources.captured.extend(implicit);
    sources
}

/// Every name once; several sources of a kind need names of their own.
fn check_names(document: &Table<'_>, given: &[Given<'_>]) {
    for (i, one) in given.iter().enumerate() {
        let others = || given.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, other)| other);
        if matches!(one.kind, "git" | "compose") {
            if given[..i].iter().any(|other| other.kind == one.kind) {
                let message = format!("a second source of kind {:?}: the root has only one", one.kind);
                document.report.error(one.at, message);
            }
            continue;
        }
        if one.own_name().is_empty() {
            continue;
        }
        if one.own_name() == RECOVERY {
            let message =
                format!("source name {} is the one of what every snapshot holds for a recovery", quote(RECOVERY));
            document.report.hinted(one.name.map_or(one.at, |name| name.at), message, "choose another name");
        }
        match one.name {
            None if others().any(|other| other.name.is_none() && other.kind == one.kind) => {
                let message = format!("several sources of kind {:?} need names", one.kind);
                document.report.hinted(one.at, message, "add name = \"…\" to each; it is what commands call it");
            }
            _ if given[..i].iter().any(|other| other.own_name() == one.own_name()) => {
                let at = one.name.map_or(one.at, |name| name.at);
                document.report.error(at, format!("source name {} is taken", quote(one.own_name())));
            }
            _ => {}
        }
    }
}

fn implicit(kind: &'static str, root: &Path, env_files: &[PathBuf]) -> Option<SourcePolicy> {
    let spec = match kind {
        "env" => SourceSpec::Env(EnvSpec {
            paths: default_env_paths(root, env_files),
            exclude: ENV_EXAMPLES.map(str::to_owned).to_vec(),
            required: Vec::new(),
            patterns: Vec::new(),
            same: Vec::new(),
            data_keys: Vec::new(),
        }),
        "git" => SourceSpec::Git(GitSpec { bundle: true }),
        _ => SourceSpec::Compose(ComposeSpec { pin: Pin::Tag }),
    };
    Some(SourcePolicy {
        name: kind.parse().ok()?,
        on_rollback: OnRollback::Restore,
        implicit: true,
        optional: false,
        timeout: DEFAULT_TIMEOUT,
        spec,
    })
}

/// The root's env files, and those that Compose is given.
fn default_env_paths(root: &Path, env_files: &[PathBuf]) -> Vec<String> {
    let mut paths: Vec<String> = [".env", ".env.*"].iter().filter_map(|p| values::path_text(root, p).ok()).collect();
    for file in env_files {
        let file = file.to_string_lossy().into_owned();
        if !paths.contains(&file) {
            paths.push(file);
        }
    }
    paths
}

fn source<'a>(mut table: Table<'a>, root: &Path, env_files: &[PathBuf]) -> Given<'a> {
    let at = table.at;
    let kind_text = table.needed("kind", Some(&format!("the kinds are {}", list(&KINDS))));
    let name = table.text("name");
    let Some(kind) = kind_text.and_then(|text| KINDS.into_iter().find(|kind| *kind == text.text)) else {
        if let Some(text) = kind_text {
            table.report.add(text.at, unknown("kind", text.text, &KINDS));
        }
        return Given { at, name, kind: "", enabled: true, policy: None };
    };
    table.name = format!("a source of kind {kind:?}");
    let enabled = table.flag("enabled", true);
    let optional = table.flag("optional", false);
    let timeout = table.parsed("timeout", DEFAULT_TIMEOUT, values::duration);
    let spec = spec(kind, &table, root, env_files);
    let on_rollback = on_rollback(&table, &spec, root);
    let parsed: Option<SourceName> = match name {
        Some(text) => table.report.ok(text.at, text.text.parse()),
        None => kind.parse().ok(),
    };
    table.finish();
    let policy = parsed.map(|name| SourcePolicy { name, on_rollback, implicit: false, optional, timeout, spec });
    Given { at, name, kind, enabled, policy }
}

fn spec(kind: &str, table: &Table<'_>, root: &Path, env_files: &[PathBuf]) -> SourceSpec {
    match kind {
        "postgres" => SourceSpec::Postgres(postgres(table, root)),
        "redis" => SourceSpec::Redis(redis(table, root)),
        "env" => SourceSpec::Env(env(table, root, env_files)),
        "certificates" => SourceSpec::Certificates(CertificatesSpec {
            paths: paths(table, root, Some("/etc/letsencrypt")),
            min_days: table.number("min_days", 14, 0..=3650u32),
            via: via(table),
        }),
        "nginx" => SourceSpec::Nginx(NginxSpec {
            paths: paths(table, root, Some("/etc/nginx")),
            container: table.optional("container", values::docker_name),
            via: via(table),
        }),
        "files" => SourceSpec::Files(FilesSpec {
            paths: paths(table, root, None),
            exclude: excludes(table),
            one_file_system: table.flag("one_file_system", false),
            via: via(table),
        }),
        "volume" => SourceSpec::Volume(volume(table)),
        "command" => SourceSpec::Command(command(table)),
        "git" => SourceSpec::Git(GitSpec { bundle: table.flag("bundle", true) }),
        _ => SourceSpec::Compose(ComposeSpec {
            pin: table.choice("pin", Pin::Tag, &[("tag", Pin::Tag), ("save", Pin::Save), ("none", Pin::None)]),
        }),
    }
}

/// What rollback does with it: recovery.md's table.
fn on_rollback(table: &Table<'_>, spec: &SourceSpec, root: &Path) -> OnRollback {
    use OnRollback::{Add, Exact, Flush, Keep, Restore};
    const RESTORE: (&str, OnRollback) = ("restore", Restore);
    const KEEP: (&str, OnRollback) = ("keep", Keep);
    let (default, choices): (OnRollback, &[(&str, OnRollback)]) = match spec {
        SourceSpec::Postgres(_) | SourceSpec::Env(_) | SourceSpec::Git(_) | SourceSpec::Compose(_) => {
            (Restore, &[RESTORE, KEEP])
        }
        SourceSpec::Redis(_) => (Keep, &[KEEP, RESTORE, ("flush", Flush)]),
        SourceSpec::Command(_) | SourceSpec::Certificates(_) => (Keep, &[KEEP, RESTORE]),
        SourceSpec::Files(_) | SourceSpec::Volume(_) => (Add, &[("add", Add), ("exact", Exact), KEEP]),
        SourceSpec::Nginx(nginx) => {
            let inside = nginx.paths.iter().all(|path| Path::new(path).starts_with(root));
            (if inside { Restore } else { Keep }, &[KEEP, RESTORE])
        }
    };
    let chosen = table.choice("on_rollback", default, choices);
    if let SourceSpec::Command(CommandSpec { restore: None, .. }) = spec
        && chosen == Restore
        && !table.has("restore")
    {
        let message = "on_rollback = \"restore\" needs a restore command";
        table.contradiction("on_rollback", message, "add restore = [\"…\"], which reads the output on standard input");
    }
    chosen
}

/// `service`, `container` or `url`: one of them.
fn target(table: &Table<'_>, url: Option<String>) -> Option<Target> {
    let service = table.optional("service", values::docker_name).map(Target::Service);
    let container = table.optional("container", values::docker_name).map(Target::Container);
    let given: Vec<&str> = ["service", "container", "url"].into_iter().filter(|field| table.has(field)).collect();
    for field in given.iter().skip(1) {
        let message = format!("{field:?} contradicts {:?}", given[0]);
        table.contradiction(field, message, "a server is in one place: service, container or url");
    }
    service.or(container).or(url.map(Target::Url))
}

/// A user in the URL and one beside it cannot both be meant.
fn user(table: &Table<'_>, in_url: bool) -> Option<String> {
    let user = table.string("user");
    if user.is_some() && in_url {
        table.contradiction("user", "\"user\" contradicts the url, which names one too", "name the user once");
    }
    user
}

fn server_url(table: &Table<'_>, schemes: &[&str]) -> (Option<String>, bool, bool) {
    let Some(text) = table.text("url") else { return (None, false, false) };
    match table.report.ok(text.at, values::url_of(schemes, text.text)) {
        Some(url) => (Some(text.text.to_owned()), url.user.is_some(), url.scheme == "rediss"),
        None => (None, false, false),
    }
}

fn postgres(table: &Table<'_>, root: &Path) -> PostgresSpec {
    let (url, url_has_user, _) = server_url(table, &["postgres", "postgresql"]);
    PostgresSpec {
        // Nothing named is the host's own server, by its local socket.
        target: target(table, url).unwrap_or(Target::Host),
        user: user(table, url_has_user),
        databases: databases(table),
        password_from: table.optional("password_from", |text| values::secret_ref(root, text)),
        fingerprint: table.choice(
            "fingerprint",
            Fingerprint::Rows,
            &[("none", Fingerprint::None), ("rows", Fingerprint::Rows), ("content", Fingerprint::Content)],
        ),
        jobs: table.number("jobs", 2, 1..=64u32),
    }
}

fn databases(table: &Table<'_>) -> Databases {
    let Some(texts) = table.texts("databases", false) else { return Databases::Own };
    match texts.iter().find(|t| t.text == "*") {
        Some(_) if texts.len() == 1 => Databases::All,
        Some(star) => {
            table.report.hinted(star.at, "\"*\" contradicts the other databases", "\"*\" alone is all of them");
            Databases::All
        }
        None => Databases::Named(each_once(table, &texts, |text| Ok::<_, Bad>(text.to_owned()))),
    }
}

fn redis(table: &Table<'_>, root: &Path) -> RedisSpec {
    let (url, url_has_user, url_is_tls) = server_url(table, &["redis", "rediss"]);
    let named = ["service", "container", "url"].into_iter().any(|field| table.has(field));
    if !named {
        let hint = "service = \"…\", container = \"…\" or url = \"redis://host:port\"";
        table.report.hinted(table.at, "the redis source does not say where the server is", hint);
    }
    let tls = table.flag("tls", url_is_tls);
    if url_is_tls && !tls {
        table.contradiction("tls", "tls = false contradicts the rediss:// url", "write redis://, or leave tls out");
    }
    RedisSpec {
        target: target(table, url).unwrap_or(Target::Host),
        user: user(table, url_has_user),
        password_from: table.optional("password_from", |text| values::secret_ref(root, text)),
        tls,
    }
}

fn env(table: &Table<'_>, root: &Path, env_files: &[PathBuf]) -> EnvSpec {
    let given = table.texts("paths", false);
    let paths = match &given {
        Some(texts) => each(table, texts, |text| values::glob(root, text)),
        None => default_env_paths(root, env_files),
    };
    let names = |field| each_once(table, &table.texts(field, true).unwrap_or_default(), values::variable);
    let exclude = match table.has("exclude") {
        true => excludes(table),
        false => ENV_EXAMPLES.map(str::to_owned).to_vec(),
    };
    EnvSpec {
        required: names("required"),
        data_keys: names("data_keys"),
        patterns: patterns(table),
        same: same(table, root, &paths),
        paths,
        exclude,
    }
}

fn patterns(table: &Table<'_>) -> Vec<(String, String)> {
    let Some(patterns) = table.table("pattern") else { return Vec::new() };
    let mut found = Vec::new();
    for (key, value) in patterns.entries() {
        let name = table.report.ok(key.at, values::variable(key.text));
        let at = value.span().start;
        let DeValue::String(pattern) = value.get_ref() else {
            table.report.error(at, format!("the pattern of {} must be a string", quote(key.text)));
            continue;
        };
        found.extend(name.zip(table.report.ok(at, values::pattern(pattern))));
    }
    found
}

/// Groups of `file:KEY` whose values must agree. Other applications' files may take part, but one file at least must
/// be this source's own.
fn same(table: &Table<'_>, root: &Path, paths: &[String]) -> Vec<Vec<(PathBuf, String)>> {
    let Some(value) = table.get("same") else { return Vec::new() };
    let wrong = |at| {
        let hint = "write same = [[\".env:KEY\", \"other/.env:KEY\"]]";
        table.report.hinted(at, "\"same\" must be an array of groups, each an array of strings", hint);
    };
    let DeValue::Array(groups) = value.get_ref() else {
        wrong(value.span().start);
        return Vec::new();
    };
    let mut found = Vec::new();
    for group in groups {
        let at = group.span().start;
        let DeValue::Array(items) = group.get_ref() else {
            wrong(at);
            continue;
        };
        let mut references: Vec<(PathBuf, String)> = Vec::new();
        for item in items {
            let at = item.span().start;
            let DeValue::String(text) = item.get_ref() else {
                wrong(at);
                continue;
            };
            match table.report.ok(at, values::file_key(root, text)) {
                Some(reference) if references.contains(&reference) => {
                    table.report.error(at, format!("{} is listed twice", quote(text)));
                }
                Some(reference) => references.push(reference),
                None => {}
            }
        }
        if items.len() < 2 {
            table.report.error(at, "a group of \"same\" needs two references at least");
        } else if references.len() == items.len() && !references.iter().any(|(file, _)| matches(paths, file)) {
            table.report.hinted(at, "no file of this group is among the source's paths", "add one to \"paths\"");
        }
        found.push(references);
    }
    found
}

fn matches(paths: &[String], file: &Path) -> bool {
    let is_match = |path: &String| globset::Glob::new(path).is_ok_and(|glob| glob.compile_matcher().is_match(file));
    paths.iter().any(|path| Path::new(path) == file || is_match(path))
}

fn paths(table: &Table<'_>, root: &Path, default: Option<&str>) -> Vec<String> {
    match (table.texts("paths", false), default) {
        (Some(texts), _) => each_once(table, &texts, |text| values::path_text(root, text)),
        (None, Some(default)) => vec![default.to_owned()],
        (None, None) => {
            if !table.has("paths") {
                table.missing("paths", None);
            }
            Vec::new()
        }
    }
}

fn excludes(table: &Table<'_>) -> Vec<String> {
    let texts = table.texts("exclude", true).unwrap_or_default();
    each(table, &texts, |text| {
        let mut builder = ignore::gitignore::GitignoreBuilder::new("/");
        match builder.add_line(None, text) {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => Err(Bad::new(format!("{} is not a gitignore pattern", quote(text)))),
        }
    })
}

fn via(table: &Table<'_>) -> Via {
    table.choice("via", Via::Direct, &[("direct", Via::Direct), ("docker", Via::Docker)])
}

fn volume(table: &Table<'_>) -> VolumeSpec {
    if !table.has("volumes") {
        table.missing("volumes", None);
    }
    let texts = table.texts("volumes", false).unwrap_or_default();
    VolumeSpec { volumes: each_once(table, &texts, values::docker_name), exclude: excludes(table) }
}

fn command(table: &Table<'_>) -> CommandSpec {
    if !table.has("run") {
        table.missing("run", Some("the program and its arguments, as an array"));
    }
    CommandSpec {
        run: table.argv("run").unwrap_or_default(),
        target: target_without_url(table),
        restore: table.argv("restore"),
        check: table.argv("check"),
        output: table.optional("output", |text| text.parse::<StreamName>().map(|name| name.to_string())),
    }
}

/// Where a command runs: nothing named is the host.
fn target_without_url(table: &Table<'_>) -> Target {
    let service = table.optional("service", values::docker_name).map(Target::Service);
    let container = table.optional("container", values::docker_name).map(Target::Container);
    if table.has("service") && table.has("container") {
        let message = "\"container\" contradicts \"service\"";
        table.contradiction("container", message, "a command runs in one place");
    }
    service.or(container).unwrap_or(Target::Host)
}
