//! nginx and certificates: the sites that lead to this application, on the host and in containers, and the certificates
//! that they name.
//!
//! A site is the application's when it passes requests to a port that one of its services publishes, or to a service by
//! name, or when it serves files of its folder; only when none does, when it bears a name that the env files name.

use super::find::{Discovery, Find, Thing, Uncovered, Weight, text, texts};
use super::mounts::{Readable, readable};
use super::scene::{Scene, clean, host_ports, read_bytes, there};
use super::tree::Tree;
use crate::ops::OpsError;
use crate::place::inspect::Container;
use crate::sources::files::nginx_conf::{Directive, directives};
use crate::sources::git::By;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One file of a configuration.
struct Site {
    /// Where it lies on this host, by the name that it is included by.
    path: PathBuf,
    directives: Vec<Directive>,
}

impl Site {
    fn has_server(&self) -> bool {
        self.directives.iter().any(|d| d.name == "server_name" || d.name == "listen")
    }

    fn words<'s>(&'s self, names: &'s [&str]) -> impl Iterator<Item = &'s str> {
        let named = self.directives.iter().filter(|d| names.contains(&d.name.as_str()));
        named.flat_map(|d| d.arguments.iter().map(String::as_str))
    }

    /// `host:port` or `host` of what it passes requests to, with the servers of the upstreams that it names.
    fn targets(&self, upstreams: &BTreeMap<String, Vec<String>>) -> Vec<String> {
        let passes = ["proxy_pass", "grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass"];
        let mut all: Vec<String> = self.words(&passes).filter_map(address).collect();
        // `set $upstream http://app:8000; proxy_pass $upstream;` is how a container's name is looked up late.
        let set = self.directives.iter().filter(|d| d.name == "set").filter_map(|d| d.arguments.get(1));
        all.extend(set.filter_map(|value| address(value)));
        let servers: Vec<String> = all.iter().filter_map(|name| upstreams.get(name)).flatten().cloned().collect();
        all.extend(servers);
        all
    }
}

/// `host:port` of `http://host:port/path`, when it is written out.
fn address(value: &str) -> Option<String> {
    let rest = value.split_once("://").map_or(value, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    (!host.is_empty() && !host.contains('$') && !rest.starts_with("unix:")).then(|| host.to_owned())
}

fn upstreams(sites: &[Site]) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for site in sites {
        let mut name = String::new();
        for directive in &site.directives {
            match directive.name.as_str() {
                "upstream" => name = directive.arguments.first().cloned().unwrap_or_default(),
                "server" if directive.within.last().is_some_and(|b| b == "upstream") => {
                    found.entry(name.clone()).or_default().extend(directive.arguments.first().cloned());
                }
                _ => {}
            }
        }
    }
    found
}

pub(super) fn find(scene: &Scene<'_>, found: &mut Discovery) -> Result<(), OpsError> {
    scene.run.events.step("looking at nginx");
    let mut certificates: BTreeSet<PathBuf> = BTreeSet::new();
    let mains = host_mains();
    for main in &mains {
        scene.run.cancel.check()?;
        on_host(scene, found, main, &mut certificates);
    }
    let own = scene.services.iter().filter_map(|s| s.container.as_ref()).map(|c| (c, true));
    let around = scene.around.iter().filter(|c| scene.shares_network(c)).map(|c| (c, false));
    for (container, mine) in own.chain(around).filter(|(c, _)| c.is_running() && runs_nginx(c)) {
        scene.run.cancel.check()?;
        in_container(scene, found, container, mine, &mut certificates);
    }
    add_certificates(scene, found, &certificates);
    Ok(())
}

/// The main files of nginx on this host: the usual one, and those of masters that run.
fn host_mains() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/etc/nginx/nginx.conf")];
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.path();
        let line = fs::read(pid.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let Some(command) = line.strip_prefix("nginx: master process ") else { continue };
        // A process of a container belongs to another look.
        let groups = fs::read_to_string(pid.join("cgroup")).unwrap_or_default();
        let of_container = groups.split(|c: char| !c.is_ascii_hexdigit()).any(|word| word.len() == 64);
        let words: Vec<&str> = command.split_whitespace().collect();
        let file = words.iter().position(|w| *w == "-c").and_then(|at| words.get(at + 1));
        if let Some(file) = file.filter(|f| f.starts_with('/') && !of_container) {
            found.push(PathBuf::from(file));
        }
    }
    found.retain(|f| f.is_file());
    found.sort();
    found.dedup();
    found
}

/// A configuration of this host, with all that it includes; and what of it cannot be read.
fn read_host(main: &Path) -> (Vec<Site>, BTreeMap<PathBuf, io::Error>) {
    let prefix = main.parent().unwrap_or(Path::new("/"));
    let mut sites: Vec<Site> = Vec::new();
    let mut unseen = BTreeMap::new();
    let mut ahead = vec![main.to_owned()];
    while let Some(path) = ahead.pop() {
        if sites.iter().any(|s| s.path == path) || sites.len() > 2_000 {
            continue;
        }
        let bytes = match read_bytes(&path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(e) => {
                unseen.insert(path, e);
                continue;
            }
        };
        let directives = directives(&String::from_utf8_lossy(&bytes));
        for include in directives.iter().filter(|d| d.name == "include").filter_map(|d| d.arguments.first()) {
            let pattern = prefix.join(include);
            match expand(&pattern) {
                Ok(files) => ahead.extend(files),
                Err(e) => drop(unseen.insert(pattern, e)),
            }
        }
        sites.push(Site { path, directives });
    }
    sites.sort_by(|a, b| a.path.cmp(&b.path));
    (sites, unseen)
}

/// Files that a pattern of nginx means: wildcards stand in the last part only, as they do everywhere in practice.
fn expand(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let name = pattern.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if !name.contains(['*', '?', '[']) {
        return Ok(vec![pattern.to_owned()]);
    }
    let Ok(glob) = globset::Glob::new(name) else { return Ok(Vec::new()) };
    let matcher = glob.compile_matcher();
    let dir = pattern.parent().unwrap_or(Path::new("/"));
    let mut files = Vec::new();
    for entry in there(fs::read_dir(dir))?.into_iter().flatten() {
        let entry = entry?;
        if matcher.is_match(entry.file_name()) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn on_host(scene: &Scene<'_>, found: &mut Discovery, main: &Path, certificates: &mut BTreeSet<PathBuf>) {
    let (sites, unseen) = read_host(main);
    // It may be another application's.
    found.uncovered.extend(
        unseen
            .iter()
            .map(|(path, e)| Uncovered { weight: Weight::Note, ..Uncovered::unseen(scene.short(path), path, e) }),
    );
    let known = upstreams(&sites);
    let ports: BTreeSet<u16> =
        scene.services.iter().filter_map(|s| s.container.as_ref()).flat_map(host_ports).map(|(_, p)| p).collect();
    let here = |target: &String| {
        let (host, port) = target.rsplit_once(':').map_or((target.as_str(), 80), |(h, p)| (h, p.parse().unwrap_or(0)));
        let local = host == "localhost" || host.starts_with("127.") || matches!(host, "0.0.0.0" | "[::1]" | "::1");
        local && ports.contains(&port)
    };
    let serves = |site: &Site| site.words(&["root", "alias"]).any(|p| Path::new(p).starts_with(&scene.root));
    let leads = |site: &&Site| site.targets(&known).iter().any(here) || serves(site);
    let mut mine: Vec<&Site> = sites.iter().filter(leads).collect();
    if mine.is_empty() {
        let names = domains(scene);
        mine = sites.iter().filter(|s| s.words(&["server_name"]).any(|n| names.contains(n))).collect();
    }
    if mine.is_empty() {
        return;
    }
    for site in &mine {
        certificates.extend(ssl_files(site).map(|f| clean(&main.parent().unwrap_or(Path::new("/")).join(f))));
    }
    let default = |site: &Site| site.path.file_name().is_some_and(|n| n == "default" || n == "default.conf");
    let others = sites.iter().any(|s| s.has_server() && !default(s) && !mine.iter().any(|m| m.path == s.path));
    let dir = main.parent().unwrap_or(Path::new("/")).to_owned();
    let whole = !others && main.ends_with("nginx/nginx.conf");
    let (paths, because) = match whole {
        true => (vec![dir], "No other application has a site there, so the whole folder is this one's."),
        false => (
            mine.iter().map(|s| s.path.clone()).collect(),
            "Only the sites that lead to this application; links are followed.",
        ),
    };
    // What lies in the application's folder may be git's.
    let paths: Vec<PathBuf> =
        paths.into_iter().filter(|p| !p.starts_with(&scene.root) || scene.kept_by(p) != By::Git).collect();
    add(scene, found, paths, None, because);
    for site in mine {
        for served in site.words(&["root", "alias"]).map(PathBuf::from).filter(|p| p.starts_with(&scene.root)) {
            if scene.kept_by(&served) != By::Git && served != scene.root {
                let because = vec![
                    format!("nginx serves it ({}), and it is not in git.", site.path.display()),
                    "Built here: a rollback returns it exactly as it was, beside the code that made it.".to_owned(),
                ];
                super::mounts::path(scene, found, &served, because, vec![("on_rollback", text("exact"))]);
            }
        }
    }
}

/// Hosts of web addresses in the env files, for sites that cannot be told otherwise.
fn domains(scene: &Scene<'_>) -> BTreeSet<String> {
    let own = scene.urls().into_iter().map(|(url, _)| url).filter(|u| matches!(u.scheme.as_str(), "http" | "https"));
    own.map(|u| u.host).filter(|h| h.contains('.') && super::urls::provider(h).is_none()).collect()
}

fn ssl_files(site: &Site) -> impl Iterator<Item = PathBuf> {
    const NAMES: [&str; 4] = ["ssl_certificate", "ssl_certificate_key", "ssl_trusted_certificate", "ssl_dhparam"];
    site.words(&NAMES).filter(|w| !w.contains('$') && !w.starts_with("data:")).map(PathBuf::from)
}

fn add(scene: &Scene<'_>, found: &mut Discovery, paths: Vec<PathBuf>, container: Option<&Container>, because: &str) {
    if paths.is_empty() {
        return;
    }
    let shown: Vec<String> = paths.iter().map(|p| scene.short(p)).collect();
    let mut fields = vec![("paths", texts(&shown))];
    let mut because = vec![because.to_owned()];
    if let Some(container) = container {
        fields.push(("container", text(&container.name)));
        because.push("nginx runs in a container: it is tested and reloaded there.".to_owned());
    }
    if paths.iter().any(|p| may_not_read(p)) {
        fields.push(("via", text("docker")));
        because.push("This account may not read it: a short-lived, read-only helper container does.".to_owned());
    }
    let what = format!("nginx: {}", shown.join(", "));
    let thing = Thing::Nginx { paths, container: container.map(|c| c.name.clone()) };
    found.add("nginx", Find { name: String::new(), thing, what, because, fields });
}

fn runs_nginx(container: &Container) -> bool {
    let named = matches!(super::stores::image_name(&container.image), "nginx" | "nginx-unprivileged" | "openresty");
    let program = container.command.iter().take(2).any(|w| w.rsplit('/').next() == Some("nginx"));
    named || program || container.command.iter().any(|w| w.split_whitespace().any(|p| p == "nginx"))
}

/// A container's nginx, read through what is mounted into it from this host.
fn in_container(
    scene: &Scene<'_>,
    found: &mut Discovery,
    container: &Container,
    mine: bool,
    certificates: &mut BTreeSet<PathBuf>,
) {
    let main = super::stores::option(&container.command, "-c").unwrap_or_else(|| "/etc/nginx/nginx.conf".to_owned());
    let dir = PathBuf::from(&main).parent().unwrap_or(Path::new("/etc/nginx")).to_owned();
    let binds = container.mounts.iter().filter(|m| m.kind == "bind");
    let of_nginx = binds.filter(|m| m.destination.starts_with(&dir) || dir.starts_with(&m.destination));
    let mut sites: Vec<Site> = Vec::new();
    for mount in of_nginx.filter(|m| m.destination != Path::new("/")) {
        let tree = match Tree::read(scene.docker.as_ref(), &mount.source) {
            Ok(Some(tree)) => tree,
            Ok(None) => continue,
            Err(e) => {
                found.uncovered.push(Uncovered::unseen(scene.short(&mount.source), &mount.source, &e));
                continue;
            }
        };
        for (path, content) in tree.files() {
            let is_conf = path.extension().is_some_and(|e| e == "conf")
                || path
                    .parent()
                    .is_some_and(|d| d.ends_with("sites-enabled") || d.ends_with("conf.d") || d.ends_with("templates"));
            if is_conf || *path == mount.source {
                sites.push(Site { path: path.clone(), directives: directives(&String::from_utf8_lossy(content)) });
            }
        }
    }
    let known = upstreams(&sites);
    let names: BTreeSet<&str> = scene
        .services
        .iter()
        .flat_map(|s| {
            let container =
                s.container.iter().flat_map(|c| c.aliases.iter().map(String::as_str).chain([c.name.as_str()]));
            container.chain([s.name.as_str()])
        })
        .collect();
    let leads = |site: &&Site| {
        let host = |t: &String| t.rsplit_once(':').map_or(t.clone(), |(h, _)| h.to_owned());
        mine || site.targets(&known).iter().any(|t| names.contains(host(t).as_str()))
    };
    let ours: Vec<&Site> = sites.iter().filter(leads).collect();
    let on_host = |inside: &Path| {
        let mounted = container.mounts.iter().filter(|m| m.kind == "bind" && inside.starts_with(&m.destination));
        let best = mounted.max_by_key(|m| m.destination.components().count())?;
        Some(best.source.join(inside.strip_prefix(&best.destination).ok()?))
    };
    for site in &ours {
        let inside = ssl_files(site).map(|f| clean(&dir.join(f)));
        certificates.extend(inside.filter_map(|f| on_host(&f)).map(|f| clean(&f)));
    }
    let paths: Vec<PathBuf> = ours.iter().map(|s| s.path.clone()).filter(|p| scene.kept_by(p) != By::Git).collect();
    let paths = match mine {
        // The project's own nginx, and not in git: as it is mounted.
        true => {
            let sources = container
                .mounts
                .iter()
                .filter(|m| m.kind == "bind" && m.destination.starts_with(&dir))
                .map(|m| m.source.clone());
            sources.filter(|s| paths.iter().any(|p| p.starts_with(s))).collect()
        }
        false => paths,
    };
    add(scene, found, paths, Some(container), "Only what leads to this application; others use that nginx too.");
}

fn add_certificates(scene: &Scene<'_>, found: &mut Discovery, files: &BTreeSet<PathBuf>) {
    let mut paths: BTreeSet<PathBuf> = BTreeSet::new();
    for file in files {
        let lineage = file.parent().filter(|dir| dir.parent().is_some_and(|live| live.ends_with("live")));
        match lineage.and_then(|dir| Some((dir, dir.file_name()?.to_str()?, dir.parent()?.parent()?))) {
            Some((dir, name, base)) => {
                paths.insert(dir.to_owned());
                paths.insert(base.join(format!("renewal/{name}.conf")));
            }
            None if scene.kept_by(file) == By::Git => {}
            None => {
                paths.insert(file.clone());
            }
        }
    }
    paths.retain(|path| match super::tree::exists(scene.docker.as_ref(), path) {
        Ok(is_there) => is_there,
        Err(e) => {
            found.uncovered.push(Uncovered::unseen(scene.short(path), path, &e));
            false
        }
    });
    if paths.is_empty() {
        return;
    }
    let name = |path: &PathBuf| {
        let of_lineage = path.parent().is_some_and(|dir| dir.ends_with("renewal")) && !files.contains(path);
        let name = if of_lineage { path.file_stem() } else { path.file_name() };
        Some(name?.to_str()?.to_owned())
    };
    let names: BTreeSet<String> = paths.iter().filter_map(name).collect();
    let paths: Vec<PathBuf> = paths.into_iter().collect();
    let shown: Vec<String> = paths.iter().map(|p| scene.short(p)).collect();
    let mut fields = vec![("paths", texts(&shown))];
    let mut because =
        vec!["Those that nginx' sites of this application name; links in live/ are followed into archive/.".to_owned()];
    if paths.iter().any(|p| may_not_read(p) || reaches_unreadable(p)) {
        fields.push(("via", text("docker")));
        because.push("This account may not read them: a short-lived, read-only helper container does.".to_owned());
    }
    let what = format!("certificates: {}", names.into_iter().collect::<Vec<_>>().join(", "));
    found.add("certificates", Find { name: String::new(), thing: Thing::Certificates(paths), what, because, fields });
}

fn may_not_read(path: &Path) -> bool {
    readable(path).is_ok_and(|access| access == Readable::No)
}

/// A folder of links whose targets this account may not read.
fn reaches_unreadable(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_symlink())).any(|e| fs::File::open(e.path()).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nginx_includes_and_nobody_can_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let main =
            "http { include sites/*; include gone.conf; include ring.conf; include ring.conf/*; include none/*; }";
        fs::write(at("nginx.conf"), main).unwrap();
        fs::create_dir(at("sites")).unwrap();
        fs::write(at("sites/shop"), "server { listen 80; }").unwrap();
        std::os::unix::fs::symlink("ring.conf", at("ring.conf")).unwrap();
        let (sites, unseen) = read_host(&at("nginx.conf"));
        assert_eq!(sites.iter().map(|s| s.path.clone()).collect::<Vec<_>>(), [at("nginx.conf"), at("sites/shop")]);
        assert_eq!(unseen.keys().cloned().collect::<Vec<_>>(), [at("ring.conf"), at("ring.conf/*")]);
        assert!(unseen.values().all(|e| e.to_string().contains("symbolic links")), "{unseen:?}");
    }
}
