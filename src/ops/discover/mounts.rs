//! What is mounted into the services: named volumes, and files and folders of this host that git does not keep.
//!
//! A store's own data is left out: the store gives it whole, its files do not.

use super::find::{Discovery, Find, Thing, Uncovered, text, texts};
use super::scene::{Scene, Service};
use super::stores;
use crate::ops::OpsError;
use crate::place::inspect::Mount;
use crate::sources::git::By;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Folders of the system, which come with it.
const SYSTEM: &[&str] = &[
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/boot",
    "/etc/ssl/certs",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/machine-id",
    "/var/lib/docker",
    "/etc/nginx",
    "/etc/letsencrypt",
];
/// What is said of a folder that is neither a checkout nor a compose project.
pub const OWN_FILES: &str = "the application's own files";
/// Entries of a folder that are looked at to find out whether this account may read it.
const LOOKS: usize = 5_000;

pub(super) fn find(scene: &Scene<'_>, found: &mut Discovery) -> Result<(), OpsError> {
    let mut volumes: BTreeMap<String, String> = BTreeMap::new();
    let mut binds: Vec<(PathBuf, bool, String)> = Vec::new();
    for service in &scene.services {
        scene.run.cancel.check()?;
        let Some(container) = &service.container else { continue };
        for mount in &container.mounts {
            if is_stores_own(service, mount) {
                continue;
            }
            match (mount.kind.as_str(), &mount.name) {
                ("volume", Some(name)) => volume(scene, found, &mut volumes, service, name, &mount.destination),
                ("bind", _) => {
                    let source = mount.source.clone();
                    match binds.iter_mut().find(|(known, ..)| *known == source) {
                        Some((_, writable, _)) => *writable |= mount.writable,
                        None => binds.push((source, mount.writable, service.name.clone())),
                    }
                }
                _ => {}
            }
        }
    }
    add_volumes(found, volumes);
    binds.sort();
    for (source, writable, service) in binds {
        bind(scene, found, &source, writable, &service);
    }
    Ok(())
}

fn is_stores_own(service: &Service, mount: &Mount) -> bool {
    let Some(store) = service.store else { return false };
    let pgdata = service.container.as_ref().and_then(|c| c.env("PGDATA")).map(|v| v.expose().as_str());
    mount.writable && stores::is_data(store, &service.command, pgdata, &mount.destination)
}

/// Whether a volume or path is, anywhere in the project, a store's own data.
fn belongs_to_a_store(scene: &Scene<'_>, is: impl Fn(&Mount) -> bool) -> bool {
    let own = |s: &Service| s.container.as_ref().is_some_and(|c| c.mounts.iter().any(|m| is(m) && is_stores_own(s, m)));
    scene.services.iter().any(own)
}

fn volume(
    scene: &Scene<'_>,
    found: &mut Discovery,
    volumes: &mut BTreeMap<String, String>,
    service: &Service,
    name: &str,
    destination: &Path,
) {
    if belongs_to_a_store(scene, |m| m.name.as_deref() == Some(name)) {
        return;
    }
    let known = scene.docker.as_ref().and_then(|docker| docker.volume(name).ok().flatten());
    let Some(volume) = known else { return };
    if volume.is_anonymous() {
        let is_empty = fs::read_dir(&volume.mountpoint).is_ok_and(|mut d| d.next().is_none());
        if !is_empty {
            found.uncovered.push(Uncovered::data(
                format!("an unnamed volume at {} of service {}", destination.display(), service.name),
                "Compose gives a new container another one, so no policy can name it",
                "give it a name in the compose file",
            ));
        }
        return;
    }
    let of_project = volume.labels.get("com.docker.compose.project") == scene.project.as_ref().map(|p| &p.name);
    let short = volume.labels.get("com.docker.compose.volume").filter(|_| of_project);
    volumes.insert(short.cloned().unwrap_or_else(|| name.to_owned()), name.to_owned());
}

fn add_volumes(found: &mut Discovery, volumes: BTreeMap<String, String>) {
    let names: Vec<String> = volumes.keys().cloned().collect();
    let (wish, what) = match names.as_slice() {
        [] => return,
        [one] => (one.clone(), format!("volume {one}")),
        some => ("volumes".to_owned(), format!("volumes {}", some.join(", "))),
    };
    let because =
        vec!["Named as the compose file does. The stores' own volumes are not here: dumps hold their data.".to_owned()];
    let fields = vec![("volumes", texts(&names))];
    let thing = Thing::Volumes(volumes.into_iter().collect());
    found.add(&wish, Find { name: String::new(), thing, what, because, fields });
}

fn bind(scene: &Scene<'_>, found: &mut Discovery, source: &Path, writable: bool, service: &str) {
    // What lies in the application's own folder is never the system's.
    let outside = !source.starts_with(&scene.root);
    let system = outside && SYSTEM.iter().any(|s| source.starts_with(s)) || source == Path::new("/");
    let known_env = scene.env_files.iter().any(|f| f.path == source);
    let store = belongs_to_a_store(scene, |m| m.kind == "bind" && (source.starts_with(&m.source)));
    if system || known_env || store || scene.root.starts_with(source) {
        return;
    }
    let inside = source.starts_with(&scene.root);
    let kept = if inside { scene.kept_by(source) } else { By::Nobody };
    // Without git the folder is captured as a whole.
    if kept == By::Git || (inside && scene.kept.is_none()) {
        return;
    }
    let shown = scene.short(source);
    let is_log =
        source.starts_with("/var/log") || matches!(source.file_name().and_then(|n| n.to_str()), Some("log" | "logs"));
    if is_log {
        let hint = "name it in a source of kind \"files\" if it is worth keeping";
        found.uncovered.push(Uncovered::note(shown, format!("logs of service {service}"), hint));
        return;
    }
    let build = inside && !writable;
    let mut because = vec![format!("Mounted into service {service}, and not in git.")];
    let mut fields = Vec::new();
    if build {
        because.push(
            "Built here and only read there: a rollback returns it exactly as it was, beside the code that made it."
                .into(),
        );
        fields.push(("on_rollback", text("exact")));
    }
    path(scene, found, source, because, fields);
}

/// A path as a source of its own, unless another source holds it already.
pub(super) fn path(
    scene: &Scene<'_>,
    found: &mut Discovery,
    source: &Path,
    because: Vec<String>,
    mut fields: Vec<(&'static str, toml::Value)>,
) {
    let holds = |f: &Find| match &f.thing {
        Thing::Path(known) => source.starts_with(known),
        Thing::Nginx { paths, .. } | Thing::Certificates(paths) | Thing::Env(paths) => {
            paths.iter().any(|p| source.starts_with(p))
        }
        _ => false,
    };
    if found.finds.iter().any(holds) {
        return;
    }
    let shown = scene.short(source);
    let access = readable(source);
    match (access, scene.docker.is_some()) {
        (Readable::Nothing, _) => return,
        (Readable::No, false) => {
            found.uncovered.push(Uncovered::data(shown, "this account may not read it", "run as root"));
            return;
        }
        (Readable::No, true) => fields.push(("via", text("docker"))),
        (Readable::Yes, _) => {}
    }
    let wish = source.strip_prefix(&scene.root).unwrap_or(source).display().to_string();
    fields.insert(0, ("paths", texts([&shown])));
    let what = format!("files in {shown}");
    let thing = Thing::Path(source.to_owned());
    found.add(&wish, Find { name: String::new(), thing, what, because, fields });
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Readable {
    Yes,
    No,
    /// There is nothing that could be captured.
    Nothing,
}

/// Whether this account may read a path and what is below it, as far as a bounded look tells.
pub(super) fn readable(path: &Path) -> Readable {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return Readable::No,
        Err(_) => return Readable::Nothing,
    };
    if meta.is_file() {
        return match fs::File::open(path) {
            Ok(_) => Readable::Yes,
            Err(_) => Readable::No,
        };
    }
    if !meta.is_dir() {
        return Readable::Nothing;
    }
    let mut ahead = vec![path.to_owned()];
    let mut left = LOOKS;
    while let Some(dir) = ahead.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { return Readable::No };
        for entry in entries.flatten() {
            left = left.saturating_sub(1);
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && left > 0 {
                ahead.push(entry.path());
            } else if kind.is_file() && rustix::fs::access(entry.path(), rustix::fs::Access::READ_OK).is_err() {
                return Readable::No;
            }
        }
    }
    Readable::Yes
}

/// Folders that tools make anew.
const REBUILT: &[&str] = &[
    "node_modules",
    "target",
    "vendor",
    "venv",
    ".venv",
    "__pycache__",
    ".next",
    ".nuxt",
    ".cache",
    ".pytest_cache",
    ".mypy_cache",
    ".git",
    ".idea",
    ".vscode",
    ".DS_Store",
    ".terraform",
    "coverage",
    ".ruff_cache",
];

/// What lies in the folder and is kept by nobody: the rest, once every other look is done.
pub(super) fn rest(scene: &Scene<'_>, found: &mut Discovery) {
    const SAID: usize = 10;
    let Some(kept) = &scene.kept else { return without_git(scene, found) };
    let held = |path: &Path| {
        let by_find = |f: &Find| match &f.thing {
            Thing::Path(known) => path.starts_with(known) || known.starts_with(path),
            Thing::Nginx { paths, .. } | Thing::Certificates(paths) | Thing::Env(paths) => {
                paths.iter().any(|p| path.starts_with(p) || p.starts_with(path))
            }
            _ => false,
        };
        let by_store = belongs_to_a_store(scene, |m| {
            m.kind == "bind" && (path.starts_with(&m.source) || m.source.starts_with(path))
        });
        found.finds.iter().any(by_find) || by_store || found.uncovered.iter().any(|u| u.what == scene.short(path))
    };
    let rebuilt = |path: &Path| path.components().any(|c| REBUILT.iter().any(|r| c.as_os_str() == *r));
    let env = |path: &Path| scene.env_files.iter().any(|f| f.path == path);
    let mine = kept.others().iter().filter(|p| p.starts_with(&scene.root) && !rebuilt(p) && !env(p) && !held(p));
    let all: Vec<String> = mine.map(|p| scene.short(p)).collect();
    if !all.is_empty() {
        let more = if all.len() > SAID { format!(" and {} more", all.len() - SAID) } else { String::new() };
        let what = format!("{}{more}", all[..all.len().min(SAID)].join(", "));
        let hint = "name what must come back in a source of kind \"files\"";
        found.uncovered.push(Uncovered::note(what, "not in git, and no service has it mounted", hint));
    }
}

/// Without git nobody else keeps the code: the whole folder is captured, but for what other sources hold.
fn without_git(scene: &Scene<'_>, found: &mut Discovery) {
    let root = scene.root.clone();
    if scene.project.is_none() && scene.compose.is_empty() {
        found.uncovered.push(Uncovered::data(
            OWN_FILES,
            format!("{} is neither a git checkout nor a compose project", root.display()),
            "name what must come back in a source of kind \"files\"",
        ));
        return;
    }
    let mut exclude: Vec<String> = ["node_modules/", "__pycache__/", ".venv/", "target/"].map(str::to_owned).into();
    let mut leave = |path: &Path| {
        if let Some(below) = path.strip_prefix(&root).ok().and_then(Path::to_str).filter(|b| !b.is_empty()) {
            exclude.push(format!("/{}", escaped(below)));
        }
    };
    scene.env_files.iter().for_each(|f| leave(&f.path));
    for service in &scene.services {
        let mounts = service.container.iter().flat_map(|c| &c.mounts);
        mounts.filter(|m| m.kind == "bind" && is_stores_own(service, m)).for_each(|m| leave(&m.source));
    }
    let because = vec![
        "There is no git checkout, so nobody else keeps the code: the whole folder is captured.".to_owned(),
        "Left out is what tools make anew, the stores' own folders, and the env files, which have a source.".to_owned(),
    ];
    let fields = vec![("exclude", texts(&exclude)), ("on_rollback", text("exact"))];
    path(scene, found, &root, because, fields);
}

/// A path as gitignore takes it literally.
fn escaped(path: &str) -> String {
    path.chars().flat_map(|c| if "*?[]!#\\ ".contains(c) { vec!['\\', c] } else { vec![c] }).collect()
}
