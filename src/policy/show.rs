//! A policy as TOML with every default filled in. What it prints loads again to an equal policy.
//!
//! Sources that stand by default are printed as comments: naming them would make them explicit, and an explicit source
//! that finds nothing is a failure.

use crate::base::units::{format_duration, format_size};
use crate::policy::model::{
    App, CopyTo, Credentials, Databases, Drill, DrillPostgres, Fingerprint, HealthCheck, HealthKind, Hooks, Notify,
    NotifyChannel, NotifyOn, NotifyTarget, OnRollback, Pin, Policy, Reach, Repository, RepositoryUrl, Retention,
    Rollback, Schedule, SecretRef, SourcePolicy, SourceSpec, Target, Via, When,
};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The policy as TOML.
pub fn show(policy: &Policy) -> String {
    let mut out = Writer(String::new());
    app(&mut out, &policy.app);
    repository(&mut out, &policy.repository);
    schedule(&mut out, &policy.schedule);
    retention(&mut out, &policy.retention);
    sources(&mut out, &policy.sources);
    for name in &policy.external {
        out.section("[[external]]");
        out.text("name", name);
    }
    hooks(&mut out, &policy.hooks);
    for check in &policy.health {
        health(&mut out, check);
    }
    rollback(&mut out, &policy.rollback);
    drill(&mut out, &policy.drill);
    for one in &policy.notify {
        notify(&mut out, one);
    }
    out.0
}

/// Writes TOML line by line.
struct Writer(String);

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn array<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn path_texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path_text(path)).collect()
}

impl Writer {
    fn section(&mut self, header: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(header);
        self.0.push('\n');
    }

    /// A value that is TOML already.
    fn raw(&mut self, field: &str, value: impl std::fmt::Display) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.0, "{field} = {value}");
    }

    fn text(&mut self, field: &str, value: &str) {
        self.raw(field, quoted(value));
    }

    fn maybe(&mut self, field: &str, value: Option<&String>) {
        if let Some(value) = value {
            self.text(field, value);
        }
    }

    /// An array, left out when it is empty.
    fn list<S: AsRef<str>>(&mut self, field: &str, values: &[S]) {
        if !values.is_empty() {
            self.raw(field, array(values));
        }
    }

    fn duration(&mut self, field: &str, value: Duration) {
        self.text(field, &format_duration(value));
    }
}

fn app(out: &mut Writer, app: &App) {
    out.section("[app]");
    out.text("name", app.name.as_str());
    out.text("root", &path_text(&app.root));
    out.list("compose_files", &path_texts(&app.compose_files));
    out.list("env_files", &path_texts(&app.env_files));
    out.list("profiles", &app.profiles);
    out.maybe("project", app.project.as_ref());
    out.maybe("project_dir", app.project_dir.as_deref().map(path_text).as_ref());
}

fn repository_url(url: &RepositoryUrl) -> String {
    match url {
        RepositoryUrl::Local(path) => path_text(path),
        RepositoryUrl::S3 { bucket, prefix } if prefix.is_empty() => format!("s3://{bucket}"),
        RepositoryUrl::S3 { bucket, prefix } => format!("s3://{bucket}/{prefix}"),
    }
}

fn repository(out: &mut Writer, repository: &Repository) {
    let is_s3 = |url: &RepositoryUrl| matches!(url, RepositoryUrl::S3 { .. });
    let reach = &repository.reach;
    out.section("[repository]");
    out.text("url", &repository_url(&repository.url));
    out.maybe("endpoint", reach.endpoint.as_ref());
    out.maybe("region", reach.region.as_ref());
    if is_s3(&repository.url) || repository.copies.iter().any(|copy| copy.reach.is_none() && is_s3(&copy.url)) {
        out.text("credentials", &credentials(&reach.credentials));
        out.raw("path_style", reach.path_style);
        out.maybe("object_lock", reach.object_lock.map(format_duration).as_ref());
    }
    out.maybe("limit_upload", reach.limit_upload.map(|rate| format!("{}/s", format_size(rate))).as_ref());
    out.raw("recipients", array(&repository.recipients));
    out.maybe("identity", repository.identity.as_deref().map(path_text).as_ref());
    out.raw("compression", repository.compression);
    out.text("min_free", &repository.min_free.to_string());
    if !repository.copies.is_empty() {
        let copies: Vec<String> = repository.copies.iter().map(copy).collect();
        out.raw("copies", format!("[{}]", copies.join(", ")));
    }
}

fn credentials(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Default => "default".to_owned(),
        Credentials::Env => "env".to_owned(),
        Credentials::Profile(name) => format!("profile:{name}"),
        Credentials::File(path) => format!("file:{}", path.display()),
    }
}

/// A string, or an inline table for a copy that is reached in a way of its own.
pub(super) fn copy(copy: &CopyTo) -> String {
    let url = quoted(&repository_url(&copy.url));
    let Some(reach) = &copy.reach else { return url };
    let fields: Vec<String> = std::iter::once(format!("url = {url}")).chain(reach_fields(reach)).collect();
    format!("{{ {} }}", fields.join(", "))
}

/// How an object store is reached, a field each.
pub(super) fn reach_fields(reach: &Reach) -> impl Iterator<Item = String> {
    let text = |field: &str, value: Option<String>| value.map(|value| format!("{field} = {}", quoted(&value)));
    let fields = [
        text("endpoint", reach.endpoint.clone()),
        text("region", reach.region.clone()),
        text("credentials", Some(credentials(&reach.credentials))),
        Some(format!("path_style = {}", reach.path_style)),
        text("object_lock", reach.object_lock.map(format_duration)),
        text("limit_upload", reach.limit_upload.map(|rate| format!("{}/s", format_size(rate)))),
    ];
    fields.into_iter().flatten()
}

fn schedule(out: &mut Writer, schedule: &Schedule) {
    let when = |out: &mut Writer, field: &str, when: &When| match when {
        When::Cron(expression) => out.text(field, expression),
        When::Off => out.text(field, "off"),
    };
    out.section("[schedule]");
    match schedule.timezone {
        Some(zone) => out.text("timezone", zone.name()),
        None => out.0.push_str("# timezone: the system's\n"),
    }
    when(out, "snapshot", &schedule.snapshot);
    when(out, "verify", &schedule.verify);
    when(out, "drill", &schedule.drill);
    when(out, "prune", &schedule.prune);
    out.raw("catch_up", schedule.catch_up);
    out.duration("jitter", schedule.jitter);
    out.raw("retries", schedule.retries);
    out.duration("retry", schedule.retry);
    out.duration("time_limit", schedule.time_limit);
}

fn retention(out: &mut Writer, keep: &Retention) {
    out.section("[retention]");
    out.raw("keep_last", keep.keep_last);
    out.raw("keep_hourly", keep.keep_hourly);
    out.raw("keep_daily", keep.keep_daily);
    out.raw("keep_weekly", keep.keep_weekly);
    out.raw("keep_monthly", keep.keep_monthly);
    out.raw("keep_yearly", keep.keep_yearly);
    out.maybe("keep_within", keep.keep_within.map(format_duration).as_ref());
    out.raw("keep_tagged", keep.keep_tagged);
    out.maybe("max_age", keep.max_age.map(format_duration).as_ref());
}

fn sources(out: &mut Writer, sources: &[SourcePolicy]) {
    for source in sources {
        let mut one = Writer(String::new());
        one.section("[[source]]");
        self::source(&mut one, source);
        if source.implicit {
            let note = format!("# Stands by default; enabled = false switches kind {:?} off.", source.spec.kind());
            let lines: Vec<String> = one.0.lines().map(|line| format!("# {line}")).collect();
            out.section(&format!("{note}\n{}", lines.join("\n")));
        } else {
            out.section(one.0.trim_end());
        }
    }
    for kind in ["env", "git", "compose"] {
        if !sources.iter().any(|source| source.spec.kind() == kind) {
            out.section("[[source]]");
            out.text("kind", kind);
            out.raw("enabled", false);
        }
    }
}

fn source(out: &mut Writer, source: &SourcePolicy) {
    out.text("kind", source.spec.kind());
    out.text("name", source.name.as_str());
    spec(out, &source.spec);
    let on_rollback = match source.on_rollback {
        OnRollback::Restore => "restore",
        OnRollback::Keep => "keep",
        OnRollback::Flush => "flush",
        OnRollback::Add => "add",
        OnRollback::Exact => "exact",
    };
    out.text("on_rollback", on_rollback);
    out.raw("optional", source.optional);
    out.duration("timeout", source.timeout);
}

fn target(out: &mut Writer, target: &Target) {
    match target {
        Target::Service(name) => out.text("service", name),
        Target::Container(name) => out.text("container", name),
        Target::Url(url) => out.text("url", url),
        Target::Host => {}
    }
}

fn secret_ref(reference: &SecretRef) -> String {
    match reference {
        SecretRef::EnvFile { file, key } => format!("{}:{key}", file.display()),
        SecretRef::Env(name) => format!("env:{name}"),
        SecretRef::File(path) => format!("file:{}", path.display()),
    }
}

fn via(out: &mut Writer, via: Via) {
    out.text(
        "via",
        match via {
            Via::Direct => "direct",
            Via::Docker => "docker",
        },
    );
}

fn spec(out: &mut Writer, spec: &SourceSpec) {
    match spec {
        SourceSpec::Postgres(postgres) => {
            match &postgres.target {
                Target::Host => out.0.push_str("# the host's own server, by its local socket\n"),
                named => target(out, named),
            }
            out.maybe("user", postgres.user.as_ref());
            match &postgres.databases {
                Databases::Own => out.0.push_str("# databases: the application's own\n"),
                Databases::All => out.raw("databases", "[\"*\"]"),
                Databases::Named(names) => out.list("databases", names),
            }
            out.maybe("password_from", postgres.password_from.as_ref().map(secret_ref).as_ref());
            let fingerprint = match postgres.fingerprint {
                Fingerprint::None => "none",
                Fingerprint::Rows => "rows",
                Fingerprint::Content => "content",
            };
            out.text("fingerprint", fingerprint);
            out.raw("jobs", postgres.jobs);
        }
        SourceSpec::Redis(redis) => {
            target(out, &redis.target);
            out.maybe("user", redis.user.as_ref());
            out.maybe("password_from", redis.password_from.as_ref().map(secret_ref).as_ref());
            out.raw("tls", redis.tls);
        }
        SourceSpec::Env(env) => {
            out.raw("paths", array(&env.paths));
            out.raw("exclude", array(&env.exclude));
            out.list("required", &env.required);
            let pair = |(key, pattern): &(String, String)| format!("{} = {}", quoted(key), quoted(pattern));
            inline_table(out, "pattern", env.patterns.iter().map(pair).collect());
            let reference = |(file, key): &(PathBuf, String)| format!("{}:{key}", file.display());
            let group = |group: &Vec<(PathBuf, String)>| array(&group.iter().map(reference).collect::<Vec<_>>());
            if !env.same.is_empty() {
                out.raw("same", format!("[{}]", env.same.iter().map(group).collect::<Vec<_>>().join(", ")));
            }
            out.list("data_keys", &env.data_keys);
        }
        SourceSpec::Certificates(certificates) => {
            out.raw("paths", array(&certificates.paths));
            out.raw("min_days", certificates.min_days);
            via(out, certificates.via);
        }
        SourceSpec::Nginx(nginx) => {
            out.raw("paths", array(&nginx.paths));
            out.maybe("container", nginx.container.as_ref());
            via(out, nginx.via);
        }
        SourceSpec::Files(files) => {
            out.raw("paths", array(&files.paths));
            out.list("exclude", &files.exclude);
            out.raw("one_file_system", files.one_file_system);
            via(out, files.via);
        }
        SourceSpec::Volume(volume) => {
            out.raw("volumes", array(&volume.volumes));
            out.list("exclude", &volume.exclude);
        }
        SourceSpec::Command(command) => {
            out.raw("run", array(&command.run));
            target(out, &command.target);
            out.list("restore", command.restore.as_deref().unwrap_or_default());
            out.list("check", command.check.as_deref().unwrap_or_default());
            out.maybe("output", command.output.as_ref());
        }
        SourceSpec::Git(git) => out.raw("bundle", git.bundle),
        SourceSpec::Compose(compose) => out.text(
            "pin",
            match compose.pin {
                Pin::Tag => "tag",
                Pin::Save => "save",
                Pin::None => "none",
            },
        ),
    }
}

fn inline_table(out: &mut Writer, field: &str, pairs: Vec<String>) {
    if !pairs.is_empty() {
        out.raw(field, format!("{{ {} }}", pairs.join(", ")));
    }
}

fn hooks(out: &mut Writer, hooks: &Hooks) {
    out.section("[hooks]");
    out.list("before_snapshot", &hooks.before_snapshot);
    out.list("after_snapshot", &hooks.after_snapshot);
    out.list("before_rollback", &hooks.before_rollback);
    out.list("after_rollback", &hooks.after_rollback);
    out.list("on_failure", &hooks.on_failure);
    out.duration("timeout", hooks.timeout);
}

fn health(out: &mut Writer, check: &HealthCheck) {
    out.section("[[health]]");
    match &check.kind {
        HealthKind::Http { url, status, json } => {
            out.text("http", url);
            out.raw("status", status);
            let pair = |(path, value): &(String, String)| format!("{} = {}", quoted(path), quoted(value));
            inline_table(out, "json", json.iter().map(pair).collect());
        }
        HealthKind::Tcp(address) => out.text("tcp", address),
        HealthKind::Container(name) => out.text("container", name),
        HealthKind::Command(argv) => out.raw("command", array(argv)),
        HealthKind::Certificate { address, min_days } => {
            out.text("certificate", address);
            out.raw("min_days", min_days);
        }
        HealthKind::Disk { path, min_free: least } => {
            out.text("disk", &path_text(path));
            out.text("min_free", &least.to_string());
        }
        HealthKind::Redis { source, max_memory_percent } => {
            out.text("redis", source.as_str());
            out.text("max_memory", &format!("{max_memory_percent}%"));
        }
    }
    out.raw("attempts", check.attempts);
    out.duration("interval", check.interval);
    out.duration("timeout", check.timeout);
}

fn rollback(out: &mut Writer, rollback: &Rollback) {
    out.section("[rollback]");
    match &rollback.stop[..] {
        [] => out.0.push_str("# stop: every service but the data stores\n"),
        services => out.list("stop", services),
    }
    match &rollback.up {
        None => out.0.push_str("# up: docker compose up, as the snapshot recorded it\n"),
        Some(command) => out.text("up", command),
    }
    out.maybe("downgrade", rollback.downgrade.as_ref());
    out.duration("keep_old", rollback.keep_old);
}

fn drill(out: &mut Writer, drill: &Drill) {
    out.section("[drill]");
    let postgres = match &drill.postgres {
        DrillPostgres::Auto => "auto",
        DrillPostgres::Image => "image",
        DrillPostgres::Local => "local",
        DrillPostgres::Server(url) => url,
    };
    out.text("postgres", postgres);
    out.text("memory", &format_size(drill.memory));
    out.duration("max_age", drill.max_age);
    for check in &drill.checks {
        out.section("[[drill.check]]");
        out.text("source", check.source.as_str());
        out.text("sql", &check.sql);
        out.maybe("database", check.database.as_ref());
    }
}

fn notify(out: &mut Writer, notify: &Notify) {
    let occasion = |on: &NotifyOn| match on {
        NotifyOn::Failure => "failure",
        NotifyOn::Success => "success",
        NotifyOn::Drill => "drill",
        NotifyOn::Rollback => "rollback",
        NotifyOn::Weekly => "weekly",
    };
    let target = |target: &NotifyTarget| match target {
        NotifyTarget::Plain(url) => quoted(url),
        NotifyTarget::Secret(reference) => quoted(&secret_ref(reference)),
    };
    out.section("[[notify]]");
    match &notify.channel {
        NotifyChannel::Webhook(url) => out.raw("webhook", target(url)),
        NotifyChannel::Ntfy(url) => out.raw("ntfy", target(url)),
        NotifyChannel::Slack(url) => out.raw("slack", target(url)),
        NotifyChannel::Discord(url) => out.raw("discord", target(url)),
        NotifyChannel::Healthchecks(url) => out.raw("healthchecks", target(url)),
        NotifyChannel::Email { to, from, smtp } => {
            out.raw("email", format!("{{ to = {}, from = {}, smtp = {} }}", array(to), quoted(from), target(smtp)))
        }
    }
    out.raw("on", array(&notify.on.iter().map(occasion).collect::<Vec<_>>()));
}
