//! The source `nginx`: its configuration, also where `include` reaches out of the named paths.
//!
//! Facts: server names, the certificate and other files that the configuration refers to (another source captures
//! those), and the hosts that it passes requests to, which a drill must make resolvable.

use super::docker::split_pattern;
use super::nginx_conf::directives;
use super::notes::Notes;
use super::plan::{Plan, expand, has_wildcards, unreadable};
use super::tree::KnownTree;
use super::view::{Kind, View, normal};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::policy::model::{App, NginxSpec, SourcePolicy, Via};
use crate::sources::{Capture, Captured, Source, SourceError};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MAX_FILE: u64 = 1 << 20;
/// More files are no configuration written by people.
const MAX_FILES: usize = 10_000;

/// What is known of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NginxFacts {
    /// The folder that relative paths begin at.
    pub prefix: PathBuf,
    /// The main file; where the policy names only sites, it is not captured, and its other sites are not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<PathBuf>,
    pub server_names: BTreeSet<String>,
    /// Certificates, keys and other files of TLS.
    pub ssl_files: BTreeSet<PathBuf>,
    /// Other files that it needs: passwords, MIME types elsewhere.
    pub other_files: BTreeSet<PathBuf>,
    /// `host:port` of what requests are passed to.
    pub upstreams: BTreeSet<String>,
    /// Files outside the named paths that `include` reaches; they are captured too.
    pub included_outside: BTreeSet<PathBuf>,
    /// `include` directives that match nothing here: in a container's own file system, or broken.
    pub unresolved: BTreeSet<String>,
}

/// A configuration of nginx.
pub struct NginxSource {
    name: SourceName,
    spec: NginxSpec,
    app: App,
    limit: Duration,
}

impl NginxSource {
    pub fn new(policy: &SourcePolicy, spec: &NginxSpec, app: &App) -> Self {
        NginxSource { name: policy.name.clone(), spec: spec.clone(), app: app.clone(), limit: policy.timeout }
    }

    fn tree(&self) -> KnownTree<'_> {
        KnownTree { source: &self.name, limit: self.limit, app: &self.app, via: self.spec.via }
    }

    fn prepare(
        &self,
        view: &dyn View,
        plan: &mut Plan,
        notes: &mut Notes,
        facts: &RefCell<NginxFacts>,
    ) -> Result<(), SourceError> {
        plan.add_all(view, &self.spec.paths, notes)?;
        let facts = &mut *facts.borrow_mut();
        *facts = NginxFacts::default();
        let main = find_main(view, &plan.named)?;
        facts.prefix = main.as_ref().and_then(|m| m.parent()).unwrap_or(Path::new("/etc/nginx")).into();
        // A main file that nobody named leads to what others have put beside ours.
        let named = main.as_deref().filter(|main| plan.named.iter().any(|n| main.starts_with(n)));
        let mut ahead: VecDeque<PathBuf> = first_files(view, &plan.named, named)?.into();
        facts.main = main;
        let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
        while let Some(file) = ahead.pop_front() {
            if !seen.insert(file.clone()) {
                continue;
            }
            if seen.len() > MAX_FILES {
                return Err(SourceError::problem(format!("more than {MAX_FILES} files of nginx configuration")));
            }
            let content = match view.read(&file, MAX_FILE) {
                Ok(content) => content,
                // Gone, or no regular file: no configuration.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
                Err(e) if e.kind() == ErrorKind::InvalidInput => continue,
                Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                    notes.say(format!("{} leads in a circle", file.display()));
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::FileTooLarge => {
                    notes.say(format!("{}: {e}, so what it includes is not looked for", file.display()));
                    continue;
                }
                Err(e) => return Err(unreadable(&file, e)),
            };
            for include in read(&String::from_utf8_lossy(&content), facts) {
                self.include(view, plan, notes, &include, facts, &mut ahead)?;
            }
        }
        let prefix = facts.prefix.clone();
        for files in [&mut facts.ssl_files, &mut facts.other_files] {
            *files = files.iter().map(|f| normal(&prefix.join(f))).collect();
        }
        Ok(())
    }

    /// Follows one `include`.
    fn include(
        &self,
        view: &dyn View,
        plan: &mut Plan,
        notes: &mut Notes,
        include: &str,
        facts: &mut NginxFacts,
        ahead: &mut VecDeque<PathBuf>,
    ) -> Result<(), SourceError> {
        let pattern = normal(&facts.prefix.join(include));
        let Some(text) = pattern.to_str() else { return Ok(()) };
        let within = |plan: &Plan, path: &Path| plan.named.iter().any(|n| path.starts_with(n));
        let base = split_pattern(text).0;
        if !within(plan, &base) {
            view.look(&base)?;
        }
        let literal = view.kind(&pattern).map_err(|e| unreadable(&pattern, e))?.is_some();
        let found = match (literal, has_wildcards(text)) {
            (true, _) => vec![pattern.clone()],
            (false, true) => expand(view, text)?,
            (false, false) => Vec::new(),
        };
        if found.is_empty() {
            if !has_wildcards(text) {
                if self.spec.container.is_none() {
                    notes.say(format!("include {}: there is no such file", pattern.display()));
                }
                facts.unresolved.insert(include.to_owned());
            }
            return Ok(());
        }
        for path in found {
            let kind = view.kind(&path).map_err(|e| unreadable(&path, e))?;
            if matches!(kind, Some(Kind::Dir) | None) {
                continue;
            }
            if !within(plan, &path) || matches!(kind, Some(Kind::Symlink(_))) {
                let before = plan.named.len();
                plan.add(view, &path, notes)?;
                let (known, new) = plan.named.split_at(before);
                let outside = |p: &&PathBuf| !known.iter().any(|k| p.starts_with(k));
                facts.included_outside.extend(new.iter().filter(outside).cloned());
            }
            ahead.push_back(path);
        }
        Ok(())
    }
}

/// The main file: in a named folder, a named file itself, or in a folder above a named path.
fn find_main(view: &dyn View, named: &[PathBuf]) -> Result<Option<PathBuf>, SourceError> {
    let inside = named.iter().flat_map(|n| [n.clone(), n.join("nginx.conf")]);
    let above = named.iter().flat_map(|n| n.ancestors().skip(1).map(|a| a.join("nginx.conf")));
    for path in inside.filter(|p| p.ends_with("nginx.conf")).chain(above) {
        if let Some(Kind::File | Kind::Symlink(_)) = view.kind(&path).map_err(|e| unreadable(&path, e))? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Where the reading begins: the main file where it is named, every named file, and in named folders what nginx's customs take for
/// configuration, whether the main file includes it or not.
fn first_files(view: &dyn View, named: &[PathBuf], main: Option<&Path>) -> Result<Vec<PathBuf>, SourceError> {
    let mut files: Vec<PathBuf> = main.iter().map(|m| m.to_path_buf()).collect();
    let mut ahead: Vec<PathBuf> = named.to_vec();
    while let Some(path) = ahead.pop() {
        match view.kind(&path).map_err(|e| unreadable(&path, e))? {
            Some(Kind::Dir) => {
                let names = view.read_dir(&path).map_err(|e| unreadable(&path, e))?;
                ahead.extend(names.into_iter().map(|n| path.join(n)));
            }
            Some(Kind::File | Kind::Symlink(_)) if named.contains(&path) || is_configuration(&path) => files.push(path),
            _ => {}
        }
        if ahead.len() + files.len() > MAX_FILES {
            return Err(SourceError::hint(
                format!(
                    "more than {MAX_FILES} files below {}",
                    named.iter().map(|n| n.display().to_string()).collect::<Vec<_>>().join(", ")
                ),
                "name the folders that hold nginx's configuration only",
            ));
        }
    }
    files.sort();
    Ok(files)
}

fn is_configuration(path: &Path) -> bool {
    let custom = |dir: &Path| matches!(dir.file_name().and_then(|n| n.to_str()), Some("sites-enabled" | "conf.d"));
    path.extension().is_some_and(|e| e == "conf") || path.parent().is_some_and(custom)
}

/// Takes the facts of one file; returns what it includes.
fn read(text: &str, facts: &mut NginxFacts) -> Vec<String> {
    let mut includes = Vec::new();
    for directive in directives(text) {
        let Some(first) = directive.arguments.first() else { continue };
        let is_plain = !first.contains('$') && !first.starts_with("data:") && !first.starts_with("engine:");
        match directive.name.as_str() {
            "include" => includes.push(first.clone()),
            "server_name" => {
                facts.server_names.extend(directive.arguments.iter().filter(|n| !n.is_empty() && *n != "_").cloned());
            }
            "ssl_certificate"
            | "ssl_certificate_key"
            | "ssl_trusted_certificate"
            | "ssl_client_certificate"
            | "ssl_dhparam"
            | "ssl_password_file"
            | "ssl_session_ticket_key"
            | "ssl_crl"
                if is_plain =>
            {
                facts.ssl_files.insert(first.into());
            }
            "auth_basic_user_file" | "geoip2" | "geoip_country" | "geoip_city" if is_plain => {
                facts.other_files.insert(first.into());
            }
            "proxy_pass" | "fastcgi_pass" | "uwsgi_pass" | "scgi_pass" | "grpc_pass" | "memcached_pass" if is_plain => {
                facts.upstreams.extend(host(first));
            }
            "server" if is_plain && directive.within.last().is_some_and(|b| b == "upstream") => {
                facts.upstreams.extend(host(first));
            }
            _ => {}
        }
    }
    includes
}

/// `host:port` of an address; nothing for sockets.
pub(super) fn host(address: &str) -> Option<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    if rest.starts_with("unix:") {
        return None;
    }
    rest.split('/').next().filter(|h| !h.is_empty()).map(str::to_owned)
}

impl Source for NginxSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "nginx"
    }

    fn describe(&self) -> String {
        let through = if self.spec.via == Via::Docker { " (through docker)" } else { "" };
        format!("nginx configuration in {}{through}", self.spec.paths.join(", "))
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        let facts = RefCell::default();
        self.tree().probe(cancel, &|view, plan, notes| self.prepare(view, plan, notes, &facts))
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let mut notes = Notes::default();
        let facts = RefCell::default();
        let prepare = |view: &dyn View, plan: &mut Plan, notes: &mut Notes| self.prepare(view, plan, notes, &facts);
        self.tree().capture(cx, &prepare, &mut notes, &mut |_, _| {})?;
        Ok(Captured { facts: json!(facts.into_inner()), warnings: notes.into_warnings() })
    }
}
