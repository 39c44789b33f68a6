//! The recovery bundle: what a bare machine needs beside the data. It goes with every snapshot.
//!
//! One stream, `recovery.json`, in an order that does not change, so that it costs nothing while nothing changes: the
//! policy, the accounts that own the application, crontabs, packages, Docker's versions, the networks and volumes that
//! must be there before the project starts, firewall rules, units and labels. It may hold secrets (a crontab's, a
//! volume's options), so nothing of its content is repeated in facts, warnings or logs; the repository encrypts it.
//!
//! What cannot be read is noted in it, and fails nothing.
//!
//! Most of its time goes to the tools that it asks, so it is gathered while the repository is opened
//! ([`Source::prepare`]), in two threads: what Docker says, and everything else.

mod proof;
mod read;

pub use proof::RecoveryProof;
pub use read::{Bundle, read};

use super::project::{Places, Project};
use super::{Capture, Captured, Source, SourceError};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::base::stream::StreamKind;
use crate::base::threads;
use crate::place::account::Account;
use crate::place::inspect::{Network, Volume};
use crate::place::{Command, Docker, HostPlace, Place, PlaceError};
use crate::policy::Policy;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The stream.
pub const STREAM: &str = "recovery.json";
const FORMAT: u32 = 1;
const FILE_BYTES: u64 = 1 << 20;
const OUTPUT_BYTES: usize = 8 << 20;
const MAX_FILES: usize = 500;
const TOOL_LIMIT: Duration = Duration::from_secs(30);
const PROJECT_LABEL: &str = "com.docker.compose.project";

/// Crontabs: files, and folders of files.
const CRONTABS: &[&str] = &["/etc/crontab", "/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron"];
const UNIT_DIRS: &[&str] = &["/etc/systemd/system"];
/// Where Docker looks for the plugins of its command, but for the user's own folder. Asked itself, the plugin tells its
/// version in a third of the time that the command takes to find and ask it.
const PLUGIN_DIRS: &[&str] = &[
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
];

pub struct RecoverySource {
    name: SourceName,
    policy: Arc<Policy>,
    begun: Mutex<Option<JoinHandle<Gathered>>>,
}

impl RecoverySource {
    /// `name` must be free among the policy's own sources.
    pub fn new(name: SourceName, policy: &Policy) -> Self {
        Self { name, policy: Arc::new(policy.clone()), begun: Mutex::default() }
    }
}

/// All that the bundle says of the host.
struct Gathered {
    accounts: Vec<Account>,
    crontabs: Vec<Value>,
    units: Vec<Value>,
    firewall: Option<(&'static str, String)>,
    docker: Value,
    notes: Vec<String>,
}

impl Gathered {
    fn now(policy: &Policy, cancel: &Cancel) -> Self {
        let app = &policy.app;
        std::thread::scope(|scope| {
            let docker = threads::beside(scope, || {
                let mut gather = Gather { cancel, notes: Vec::new() };
                (gather.docker(&Places::new(app, cancel), app.compose_files.is_empty()), gather.notes)
            });
            let mut gather = Gather { cancel, notes: Vec::new() };
            let accounts = gather.accounts(&app.root);
            let crontabs = gather.crontabs();
            let units = gather.units(&app.root);
            let firewall = gather.firewall();
            let lost = || (Value::Object(Map::new()), vec!["docker: it was not asked to the end".to_owned()]);
            let (docker, more) = docker.join().unwrap_or_else(lost);
            let mut notes = gather.notes;
            notes.extend(more);
            Self { accounts, crontabs, units, firewall, docker, notes }
        })
    }
}

impl Source for RecoverySource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "recovery"
    }

    fn describe(&self) -> String {
        "policy, crontabs, packages, accounts, networks, firewall: what a bare machine needs".into()
    }

    fn probe(&self, _cancel: &Cancel) -> Result<(), SourceError> {
        Ok(())
    }

    fn prepare(&self, cancel: &Cancel) {
        let (policy, cancel) = (self.policy.clone(), cancel.clone());
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a thread the capture gathers it.
        *begun = threads::begin(move || Gathered::now(&policy, &cancel)).ok();
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gathered = begun.and_then(|thread| thread.join().ok());
        let gathered = gathered.unwrap_or_else(|| Gathered::now(&self.policy, cx.cancel));
        cx.cancel.check()?;
        let app = &self.policy.app;
        let Gathered { accounts, crontabs, units, firewall, mut docker, mut notes } = gathered;
        let mut gather = Gather { cancel: cx.cancel, notes: Vec::new() };
        let packages = gather.packages(cx);
        if let Some(compose) = docker.get_mut("compose") {
            *compose = gather.compose(cx).map(|text| text.trim().to_owned()).into();
        }
        notes.append(&mut gather.notes);
        let facts = json!({
            "stream": STREAM,
            "accounts": accounts.iter().map(Account::spec).collect::<Vec<_>>(),
            "crontabs": crontabs.len(),
            "units": units.len(),
            "packages": packages.as_ref().map(|(_, list)| list.len()),
            "firewall": firewall.as_ref().map(|(tool, _)| *tool),
            "docker": docker["engine"],
            "external_networks": docker["external_networks"].as_array().map(Vec::len),
            "external_volumes": docker["external_volumes"].as_array().map(Vec::len),
            "notes": notes,
        });
        let bundle = json!({
            "format": FORMAT,
            "application": app.name.as_str(),
            "root": app.root.to_string_lossy(),
            "policy": { "file": self.policy.file.to_string_lossy(), "text": self.policy.text },
            "not_restored": self.policy.external,
            "host": host(),
            "accounts": accounts,
            "crontabs": crontabs,
            "units": units,
            "packages": packages.map(|(manager, list)| json!({ "manager": manager, "installed": list })),
            "firewall": firewall.map(|(tool, rules)| json!({ "tool": tool, "rules": rules })),
            "docker": docker,
            "notes": notes,
        });
        let mut text = serde_json::to_vec_pretty(&bundle).map_err(|e| SourceError::Sink(io::Error::other(e)))?;
        text.push(b'\n');
        let expected = Some(text.len() as u64);
        let mut sink = cx.sink.stream(STREAM.parse()?, StreamKind::Raw, expected).map_err(SourceError::Sink)?;
        sink.write_all(&text).map_err(SourceError::Sink)?;
        sink.finish().map_err(SourceError::Sink)?;
        Ok(Captured { facts, warnings: Vec::new() })
    }
}

/// Which machine it was.
fn host() -> Value {
    let uname = rustix::system::uname();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = release.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.map(|v| v.trim_matches('"').to_owned())
    };
    let timezone = std::fs::read_link("/etc/localtime").ok();
    let timezone = timezone.and_then(|t| t.to_string_lossy().split_once("zoneinfo/").map(|(_, z)| z.to_owned()));
    json!({
        "name": uname.nodename().to_string_lossy(),
        "system": value("PRETTY_NAME"),
        "id": value("ID"),
        "version": value("VERSION_ID"),
        "kernel": uname.release().to_string_lossy(),
        "machine": uname.machine().to_string_lossy(),
        "timezone": timezone,
    })
}

/// Collects; what cannot be had becomes a note.
struct Gather<'a> {
    cancel: &'a Cancel,
    notes: Vec<String>,
}

impl Gather<'_> {
    fn note(&mut self, what: impl std::fmt::Display, error: &dyn std::error::Error) {
        let chain = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>();
        self.notes.push(format!("{what}: {}", chain.join(": ")));
    }

    /// The owners of the application's folder, of what lies directly in it, and who Lifeboat runs as.
    fn accounts(&mut self, root: &Path) -> Vec<Account> {
        let mut paths = vec![root.to_owned()];
        paths.extend(self.listing(root).into_iter().take(MAX_FILES));
        let mut found: BTreeMap<u32, Account> = BTreeMap::new();
        for path in paths {
            match Account::owner_of(&path) {
                Ok(account) => drop(found.entry(account.uid).or_insert(account)),
                Err(e) => self.note(path.display(), &e),
            }
        }
        let own = rustix::process::geteuid().as_raw();
        if let Some(account) = Account::by_uid(own) {
            found.entry(own).or_insert(account);
        }
        found.into_values().collect()
    }

    /// Sorted paths in a folder; none where there is no such folder.
    fn listing(&mut self, dir: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = match std::fs::read_dir(dir) {
            Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Vec::new(),
            Err(e) => {
                self.note(dir.display(), &e);
                Vec::new()
            }
        };
        paths.sort();
        paths
    }

    /// A text file; absent where there is none, noted where it cannot be read.
    fn text(&mut self, path: &Path) -> Option<Value> {
        let read = || -> io::Result<Option<String>> {
            let file = match std::fs::metadata(path) {
                Ok(meta) if meta.is_file() => std::fs::File::open(path)?,
                Ok(_) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            };
            let mut bytes = Vec::new();
            file.take(FILE_BYTES).read_to_end(&mut bytes)?;
            Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
        };
        match read() {
            Ok(text) => text.map(|text| json!({ "path": path.to_string_lossy(), "text": text })),
            Err(e) => {
                self.note(path.display(), &e);
                None
            }
        }
    }

    fn crontabs(&mut self) -> Vec<Value> {
        let mut files = BTreeSet::new();
        for path in CRONTABS.iter().map(Path::new) {
            files.insert(path.to_owned());
            files.extend(self.listing(path));
        }
        let mut found: Vec<Value> = files.iter().take(MAX_FILES).filter_map(|file| self.text(file)).collect();
        // The spool is root's alone; anybody may ask for the own one.
        if rustix::process::geteuid().as_raw() != 0
            && let Some(text) = self.tool(&["crontab", "-l"], &[1])
        {
            let name = format!("crontab -l as uid {}", rustix::process::geteuid().as_raw());
            found.push(json!({ "path": name, "text": text }));
        }
        found
    }

    /// Units of the machine's own that name the application's folder.
    fn units(&mut self, root: &Path) -> Vec<Value> {
        let root = root.to_string_lossy();
        let files: Vec<PathBuf> = UNIT_DIRS.iter().flat_map(|dir| self.listing(Path::new(dir))).collect();
        let units = files.iter().filter(|f| f.extension().is_some_and(|e| e == "service" || e == "timer"));
        units
            .take(MAX_FILES)
            .filter_map(|file| self.text(file))
            .filter(|unit| unit["text"].as_str().is_some_and(|text| text.contains(&*root)))
            .collect()
    }

    /// Output of a tool of this host; absent when there is no such tool. `quiet` are statuses that mean "nothing".
    fn tool(&mut self, argv: &[&str], quiet: &[i32]) -> Option<String> {
        let command = Command::new(argv.iter().copied()).timeout(TOOL_LIMIT).cancel(self.cancel);
        match HostPlace::new().output(command.env("LC_ALL", "C".to_owned()), OUTPUT_BYTES) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(PlaceError::ToolMissing { .. } | PlaceError::Cancelled(_)) => None,
            Err(PlaceError::Failed { code, .. }) if quiet.contains(&code) => None,
            Err(e) => {
                self.note(argv.join(" "), &e);
                None
            }
        }
    }

    /// The same for a tool whose answer changes with a file only: it is asked again once that is another one.
    fn tool_of(&mut self, cx: &Capture<'_>, argv: &[&str], file: &Path) -> Option<String> {
        let print = print_of(file, cx.now.timestamp());
        let key = format!("recovery/{}", argv.join(" "));
        if let Some(print) = &print
            && let Some(known) = cx.memo.get(&key).filter(|_| !cx.force)
            && let Some(text) = known.strip_prefix(print.as_slice())
        {
            return String::from_utf8(text.to_vec()).ok();
        }
        let text = self.tool(argv, &[])?;
        if let Some(print) = print {
            cx.memo.put(&key, &[print.as_slice(), text.as_bytes()].concat());
        }
        Some(text)
    }

    /// The version of Compose.
    fn compose(&mut self, cx: &Capture<'_>) -> Option<String> {
        plugin()
            .and_then(|plugin| self.tool_of(cx, &[&plugin, "version", "--short"], Path::new(&plugin)))
            .or_else(|| self.tool(&["docker", "compose", "version", "--short"], &[]))
            .or_else(|| self.tool(&["docker-compose", "version", "--short"], &[]))
    }

    /// The package manager, and each installed package with its version.
    fn packages(&mut self, cx: &Capture<'_>) -> Option<(&'static str, BTreeMap<String, String>)> {
        let pairs = |text: &str| -> BTreeMap<String, String> {
            let lines = text.lines().filter_map(|line| line.split_once('\t'));
            lines.map(|(name, version)| (name.to_owned(), version.to_owned())).collect()
        };
        let format = "${db:Status-Status}\t${binary:Package}\t${Version}\n";
        let query = ["dpkg-query", "--show", "--showformat", format];
        if let Some(text) = self.tool_of(cx, &query, Path::new("/var/lib/dpkg/status")) {
            let installed: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("installed\t")).collect();
            return Some(("dpkg", pairs(&installed.join("\n"))));
        }
        if let Some(text) = self.tool(&["rpm", "-qa", "--queryformat", "%{NAME}.%{ARCH}\t%{VERSION}-%{RELEASE}\n"], &[])
        {
            return Some(("rpm", pairs(&text)));
        }
        // `name-1.2.3-r0`: the version begins at the last dash but one.
        let text = self.tool(&["apk", "info", "-v"], &[])?;
        let split = |line: &str| -> Option<(String, String)> {
            let at = line.rmatch_indices('-').nth(1)?.0;
            Some((line[..at].to_owned(), line[at + 1..].to_owned()))
        };
        Some(("apk", text.lines().filter_map(split).collect()))
    }

    /// The firewall's rules without counters and times, which change by themselves.
    fn firewall(&mut self) -> Option<(&'static str, String)> {
        if let Some(rules) = self.tool(&["nft", "--stateless", "list", "ruleset"], &[]).filter(|r| !r.trim().is_empty())
        {
            return Some(("nft", rules));
        }
        let rules = self.tool(&["iptables-save"], &[])?;
        let rules = without_counters(&rules);
        let more = self.tool(&["ip6tables-save"], &[]).map(|text| without_counters(&text)).unwrap_or_default();
        Some(("iptables", format!("{rules}# IPv6\n{more}")))
    }

    fn docker(&mut self, places: &Places, ask_compose: bool) -> Value {
        let mut found = Map::new();
        let docker = match places.docker() {
            Ok(docker) => docker,
            Err(e) => {
                self.note("docker", &e);
                return Value::Object(found);
            }
        };
        match docker.version() {
            Ok(version) => {
                found.insert("engine".into(), version.version.into());
                found.insert("api".into(), version.api_version.into());
                found.insert("components".into(), json!(version.components));
            }
            Err(e) => self.note("docker version", &e),
        }
        // Told by the capture, which remembers it.
        found.insert("compose".into(), Value::Null);
        if let Some(config) = self.text(Path::new("/etc/docker/daemon.json")) {
            found.insert("daemon".into(), config);
        }
        match places.project() {
            Ok(Some(project)) => {
                if let Err(e) = project_facts(&docker, &project, &mut found) {
                    self.note(format!("compose project {}", project.name), &e);
                }
            }
            Ok(None) if ask_compose => self.notes.push("no container of a compose project is there".into()),
            Ok(None) => {}
            Err(e) => self.note("compose project", &e),
        }
        Value::Object(found)
    }
}

/// What tells whether a file is still the same one; nothing of one that was written just now, and may be again.
fn print_of(file: &Path, now: i64) -> Option<[u8; 32]> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(file).ok()?;
    let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
    let numbers = [meta.dev(), meta.ino(), meta.size()];
    let mut hasher = blake3::Hasher::new();
    for number in times {
        hasher.update(&number.to_le_bytes());
    }
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    (meta.ctime() < now - 2).then(|| *hasher.finalize().as_bytes())
}

/// Compose's plugin, where Docker's command would find it.
fn plugin() -> Option<String> {
    let own = std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker/cli-plugins"));
    let dirs = own.into_iter().chain(PLUGIN_DIRS.iter().map(PathBuf::from));
    let mut plugins = dirs.map(|dir| dir.join("docker-compose"));
    let found = plugins.find(|path| std::fs::metadata(path).is_ok_and(|meta| meta.is_file()))?;
    found.into_os_string().into_string().ok()
}

/// What the project's labels say, and what it needs that it does not make itself.
fn project_facts(docker: &Docker, project: &Project, found: &mut Map<String, Value>) -> Result<(), PlaceError> {
    let mut labels = Map::new();
    let mut networks = BTreeSet::new();
    let mut volumes = BTreeSet::new();
    for summary in &project.containers {
        let compose: BTreeMap<&String, &String> =
            summary.labels.iter().filter(|(name, _)| name.starts_with("com.docker.compose.")).collect();
        labels.insert(summary.name.clone(), json!({ "image": summary.image, "labels": compose }));
        match docker.inspect(&summary.id) {
            Ok(container) => {
                networks.extend(container.networks);
                volumes.extend(container.mounts.into_iter().filter(|m| m.kind == "volume").filter_map(|m| m.name));
            }
            Err(PlaceError::NoContainer { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    let own = |labels: &BTreeMap<String, String>| labels.get(PROJECT_LABEL) == Some(&project.name);
    // Those that every engine has by itself.
    let built_in = |name: &str| matches!(name, "bridge" | "host" | "none");
    let mut external_networks = Vec::new();
    for name in networks.iter().filter(|name| !built_in(name)) {
        external_networks.extend(docker.network(name)?.filter(|n| !own(&n.labels)).map(|n| network_facts(&n)));
    }
    let mut external_volumes = Vec::new();
    for name in &volumes {
        external_volumes
            .extend(docker.volume(name)?.filter(|v| !own(&v.labels) && !v.is_anonymous()).map(|v| volume_facts(&v)));
    }
    found.insert("project".into(), project.name.clone().into());
    found.insert("containers".into(), Value::Object(labels));
    found.insert("external_networks".into(), external_networks.into());
    found.insert("external_volumes".into(), external_volumes.into());
    Ok(())
}

fn network_facts(network: &Network) -> Value {
    json!({
        "name": network.name,
        "driver": network.driver,
        "internal": network.internal,
        "subnets": network.subnets,
        "options": network.options,
        "labels": network.labels,
    })
}

fn volume_facts(volume: &Volume) -> Value {
    json!({ "name": volume.name, "driver": volume.driver, "options": volume.options, "labels": volume.labels })
}

/// `iptables-save` writes its time as a comment, and `:CHAIN POLICY [packets:bytes]`.
fn without_counters(rules: &str) -> String {
    let mut plain = String::new();
    for line in rules.lines().filter(|line| !line.starts_with('#')) {
        let line = match line.split_once(" [") {
            Some((chain, _)) if line.starts_with(':') => chain,
            _ => line,
        };
        plain.push_str(line);
        plain.push('\n');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_lose_what_changes_by_itself() {
        let rules = "# Generated by iptables-save v1.8.9 on Sat Nov 21 01:00:00 2026\n*filter\n:INPUT ACCEPT [12:3456]\n-A INPUT -m comment --comment \"a [b:c]\" -j ACCEPT\nCOMMIT\n# Completed\n";
        assert_eq!(
            without_counters(rules),
            "*filter\n:INPUT ACCEPT\n-A INPUT -m comment --comment \"a [b:c]\" -j ACCEPT\nCOMMIT\n"
        );
    }
}
