//! What is mounted into the services: named volumes, and files and folders of this host that git does not keep.
//!
//! A store's own data is left out: the store gives it whole, its files do not.

use super::find::{Discovery, Find, Thing, Uncovered, text, texts};
use super::scene::{Scene, Service, there};
use super::stores;
use crate::ops::OpsError;
use crate::place::inspect::Mount;
use crate::repository::chain::full_text;
use crate::sources::git::By;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// What is the kernel's, or holds nothing of an application's wherever it is mounted.
const NEVER: &[&str] = &[
    "/proc",
    "/sys",
    "/dev",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/machine-id",
];
/// Folders that come with the system: read there they are nobody's data. `/etc/nginx` and `/etc/letsencrypt` have sources
/// of their own.
const SYSTEM: &[&str] = &[
    "/run",
    "/var/run",
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/boot",
    "/etc/ssl/certs",
    "/var/lib/docker",
    "/etc/nginx",
    "/etc/letsencrypt",
];
/// Where an application keeps what is its own although it lies below those, if it may write there.
const OWN: &[&str] = &["/usr/local", "/var/lib/docker/volumes", "/etc/nginx", "/etc/letsencrypt"];
/// Files by which a folder is in git although git does not keep what comes into it.
const PLACEHOLDERS: &[&str] = &[".gitkeep", ".keep", ".gitignore", ".placeholder", ".empty"];
/// What is said of a folder that is neither a checkout nor a compose project.
pub const OWN_FILES: &str = "the application's own files";
/// Entries of a folder that are looked at to find out whether this account may read it.
const LOOKS: usize = 5_000;

pub(super) fn find(scene: &Scene<'_>, found: &mut Discovery) -> Result<(), OpsError> {
    let mut volumes: BTreeMap<String, String> = BTreeMap::new();
    let mut binds: Vec<Bind> = Vec::new();
    for service in &scene.services {
        scene.run.cancel.check()?;
        for mount in service.mounts.iter().filter(|mount| !is_stores_own(service, mount)) {
            match (mount.kind.as_str(), &mount.name) {
                ("volume", Some(name)) => volume(scene, found, &mut volumes, service, name, &mount.destination),
                ("bind", _) => match binds.iter_mut().find(|known| known.source == mount.source) {
                    Some(known) => known.writable |= mount.writable,
                    None => binds.push(Bind {
                        source: mount.source.clone(),
                        writable: mount.writable,
                        service: service.name.clone(),
                    }),
                },
                _ => {}
            }
        }
    }
    add_volumes(found, volumes);
    binds.sort();
    binds.iter().for_each(|one| bind(scene, found, one));
    let own = |s: &Service, m: &Mount| m.kind == "bind" && is_stores_own(s, m);
    let stores = scene.services.iter().flat_map(|s| s.mounts.iter().filter(move |m| own(s, m)));
    let stores: Vec<PathBuf> = stores.map(|m| m.source.clone()).collect();
    found.leaves = scene.env_files.iter().map(|f| f.path.clone()).chain(stores).collect();
    Ok(())
}

/// What is mounted from this host.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bind {
    source: PathBuf,
    writable: bool,
    /// The first one that it is mounted into.
    service: String,
}

fn is_stores_own(service: &Service, mount: &Mount) -> bool {
    let Some(store) = service.store else { return false };
    mount.writable && stores::is_data(store, &service.command, service.pgdata.as_deref(), &mount.destination)
}

/// Whether a volume or path is, anywhere in the project, a store's own data.
fn belongs_to_a_store(scene: &Scene<'_>, is: impl Fn(&Mount) -> bool) -> bool {
    scene.services.iter().any(|s| s.mounts.iter().any(|m| is(m) && is_stores_own(s, m)))
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
    let known = match scene.docker.as_ref().map(|docker| docker.volume(name)) {
        Some(Err(e)) => {
            found.uncovered.push(Uncovered::data(format!("volume {name}"), full_text(&e), "is Docker well?"));
            return;
        }
        Some(Ok(known)) => known,
        None => None,
    };
    let Some(volume) = known else {
        if scene.docker.is_some() && service.container.is_none() {
            let short = scene.volumes.iter().find(|(_, engine)| *engine == name).map_or(name, |(short, _)| short);
            found.uncovered.push(Uncovered::note(
                format!("volume {short} of service {}", service.name),
                "the service has never run, so there is no such volume yet",
                "once it has run, `lifeboat doctor` says whether a source takes it",
            ));
        }
        return;
    };
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

/// What a mounted path is, by where it lies.
#[derive(Debug, PartialEq, Eq)]
enum Lies {
    /// Data of the application, unless git keeps it.
    Ours,
    /// Nothing that is anybody's data.
    Elsewhere,
    /// The system's, and the service may write there all the same; why it is not taken.
    Doubtful(&'static str),
}

fn lies(source: &Path, writable: bool, root: &Path) -> Lies {
    let below = |list: &[&str]| list.iter().any(|folder| source.starts_with(folder));
    // What lies in the application's own folder is never the system's.
    if source.starts_with(root) && source != root {
        return Lies::Ours;
    }
    let own = writable && OWN.iter().any(|folder| source.starts_with(folder) && source != Path::new(folder));
    let whole = writable && ["/etc/nginx", "/etc/letsencrypt"].iter().any(|folder| source == Path::new(folder));
    match () {
        () if source == root || below(NEVER) => Lies::Elsewhere,
        () if own || whole => Lies::Ours,
        () if !writable && (below(SYSTEM) || root.starts_with(source) || source == Path::new("/etc")) => {
            Lies::Elsewhere
        }
        () if below(&["/run", "/var/run"]) => {
            Lies::Doubtful("it lies in memory, and is gone when the machine starts again")
        }
        () if below(SYSTEM) || source == Path::new("/etc") => Lies::Doubtful("it is the system's"),
        () if root.starts_with(source) => Lies::Doubtful("the application's own folder is only a part of it"),
        () => Lies::Ours,
    }
}

/// Whether git holds a folder only to have it there.
fn is_placeholder(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    PLACEHOLDERS.contains(&name) || name.to_uppercase().starts_with("README")
}

fn bind(scene: &Scene<'_>, found: &mut Discovery, bind: &Bind) {
    let Bind { source, writable, service } = bind;
    let known_env = scene.env_files.iter().any(|f| f.path == *source);
    let store = belongs_to_a_store(scene, |m| m.kind == "bind" && source.starts_with(&m.source));
    if known_env || store {
        return;
    }
    match lies(source, *writable, &scene.root) {
        Lies::Ours => {}
        Lies::Elsewhere => return,
        // A socket holds nothing, and what is not there neither.
        Lies::Doubtful(_) if !source.is_dir() => return,
        Lies::Doubtful(why) => {
            found.uncovered.push(Uncovered::note(
                source.display().to_string(),
                format!("service {service} may write there, and {why}"),
                "name what is the application's in a source of kind \"files\"",
            ));
            return;
        }
    }
    // The sites and certificates of this application have been found: the rest of such a folder is others'.
    let known = |f: &Find| match &f.thing {
        Thing::Nginx { paths, .. } | Thing::Certificates(paths) => {
            paths.iter().any(|p| p.starts_with(source) || source.starts_with(p))
        }
        _ => false,
    };
    if found.finds.iter().any(known) {
        return;
    }
    let inside = source.starts_with(&scene.root);
    // Without git the folder is captured as a whole.
    if inside && scene.kept.is_none() {
        return;
    }
    let kept = if inside { scene.kept_by(source) } else { By::Nobody };
    let mut because = vec![format!("Mounted into service {service}, and not in git.")];
    if kept == By::Git {
        let mut tracked = scene.kept.iter().flat_map(|kept| kept.tracked(source));
        if !(*writable && source.is_dir() && tracked.all(is_placeholder)) {
            found.by_git.push(source.clone());
            return;
        }
        because = vec![format!("Mounted into service {service}. Git keeps the folder, and not what comes into it.")];
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
    match (readable(source), scene.docker.is_some()) {
        (Ok(Readable::Nothing), _) => return,
        (Ok(Readable::No), false) => {
            let unseen = Some(source.to_owned());
            let one = Uncovered::data(shown, "this account may not read it", "run as root");
            found.uncovered.push(Uncovered { unseen, ..one });
            return;
        }
        (Ok(Readable::No), true) => fields.push(("via", text("docker"))),
        (Ok(Readable::Yes), _) => {}
        (Err(e), _) => {
            found.uncovered.push(Uncovered::unseen(shown, source, &e));
            return;
        }
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
pub(super) fn readable(path: &Path) -> io::Result<Readable> {
    let meta = match there(fs::metadata(path)) {
        Ok(Some(meta)) => meta,
        Ok(None) => return Ok(Readable::Nothing),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return Ok(Readable::No),
        Err(e) => return Err(e),
    };
    if meta.is_file() {
        return Ok(match fs::File::open(path) {
            Ok(_) => Readable::Yes,
            Err(_) => Readable::No,
        });
    }
    if !meta.is_dir() {
        return Ok(Readable::Nothing);
    }
    let mut ahead = vec![path.to_owned()];
    let mut left = LOOKS;
    while let Some(dir) = ahead.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(Readable::No) };
        for entry in entries.flatten() {
            left = left.saturating_sub(1);
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && left > 0 {
                ahead.push(entry.path());
            } else if kind.is_file() && rustix::fs::access(entry.path(), rustix::fs::Access::READ_OK).is_err() {
                return Ok(Readable::No);
            }
        }
    }
    Ok(Readable::Yes)
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
        let mounts = service.mounts.iter();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_may_write_below_the_systems_folders_is_not_passed_over() {
        let lies = |source: &str, writable| lies(Path::new(source), writable, Path::new("/opt/shop"));
        for ours in ["/etc/app", "/var/lib/app", "/srv/data", "/opt/shop/run", "/usr/local/share/app", "/etc/nginx"] {
            assert_eq!(lies(ours, true), Lies::Ours, "{ours}");
        }
        assert_eq!(lies("/etc/app", false), Lies::Ours);
        for doubtful in
            ["/", "/etc", "/opt", "/usr", "/usr/lib/x", "/run/app", "/var/run/app", "/etc/ssl/certs", "/boot"]
        {
            assert!(matches!(lies(doubtful, true), Lies::Doubtful(_)), "{doubtful}");
            assert_eq!(lies(doubtful, false), Lies::Elsewhere, "{doubtful}");
        }
        for never in ["/proc", "/sys/fs/cgroup", "/dev/shm", "/etc/localtime", "/opt/shop"] {
            assert_eq!((lies(never, true), lies(never, false)), (Lies::Elsewhere, Lies::Elsewhere), "{never}");
        }
    }
}
