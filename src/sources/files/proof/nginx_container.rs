//! `nginx -t` in a throw-away container of the live one's image, without network and without rights.
//!
//! What is mounted into the live container is mounted into this one at the same paths: from the restored files where
//! the snapshot has them, and only where it has none, and the configuration needs it, from the live host, read-only.

use super::super::docker::{DockerView, Trees};
use super::super::view::{Host, Kind, View};
use super::nginx::{Outcome, ROUNDS, Scene, Tested, hosts_file, unresolved};
use super::nginx_host::Captured;
use super::nginx_read::Referred;
use super::stage::Stage;
use crate::place::account::is_root;
use crate::place::helper::{HelperMount, HelperSpec, TreeSource};
use crate::place::inspect::{Container, Mount};
use crate::place::{Command, ContainerPlace, Docker, PlaceError};
use crate::sources::SourceError;
use crate::sources::cell::{Cell, NOBODY};
use crate::sources::run::run;
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a mounted file lies in its stage.
const FILE: &str = "/file";
/// What nginx writes to in the images there are.
const WRITTEN: &[&str] = &["/run", "/tmp", "/var/cache/nginx", "/var/log/nginx", "/var/lib/nginx"];
const DEFAULT_MAIN: &str = "/etc/nginx/nginx.conf";
const FILE_BYTES: u64 = 64 << 20;
/// Entries of a live folder that are taken over beside restored ones.
const MAX_REST: usize = 20_000;
const OUTPUT_BYTES: usize = 1 << 20;
/// On top of the time that the test itself may take.
const SPARE: Duration = Duration::from_secs(60);

/// A mount of the live container that restored files stand in for.
struct Staged {
    stage: Stage,
    /// Path in the container.
    destination: PathBuf,
    is_file: bool,
}

impl Staged {
    /// What is bound to the destination.
    fn source(&self) -> PathBuf {
        if self.is_file { self.stage.root().join(&FILE[1..]) } else { self.stage.root().to_path_buf() }
    }
}

pub(super) fn test(scene: &Scene<'_>, container: &str) -> Result<Outcome, SourceError> {
    let trial = scene.trial;
    let found = trial.places.docker().and_then(|docker| Ok((docker.inspect(container)?, docker)));
    let (live, docker) = match found {
        Ok(found) => found,
        Err(PlaceError::Cancelled(cancelled)) => return Err(cancelled.into()),
        Err(e) => return Ok(Err(format!("nginx runs in container {container:?}: {e}"))),
    };
    if !docker.is_local() {
        return Ok(Err(format!("the engine at {} is not this machine's", docker.endpoint())));
    }
    let captured = Captured::of(scene);
    let mut notes = Vec::new();
    let (mut staged, mut others) = (Vec::new(), Vec::new());
    for (n, mount) in live.mounts.iter().enumerate() {
        match stage(scene, &captured, mount, n, &mut notes)? {
            Ok(Some(one)) => staged.push(one),
            Ok(None) => others.push(mount),
            Err(why) => return Ok(Err(why)),
        }
    }
    if staged.is_empty() {
        return Ok(Err(format!("nothing of what was restored is mounted into container {container:?}")));
    }
    let (program, main) = program(&live);
    let mut referred = Referred::default();
    for one in &staged {
        referred.read_all(&one.stage.view(), main.parent().unwrap_or(Path::new("/")))?;
    }
    let needed = |mount: &&&Mount| needs(&referred, &main, &mount.destination);
    let beside: Vec<&Mount> = others.iter().filter(needed).copied().collect();
    notes.extend(beside.iter().map(|m| format!("{} is the live one's", m.destination.display())));
    let mut mounts: Vec<HelperMount> =
        staged.iter().map(|one| bound(TreeSource::Path(one.source()), &one.destination)).collect();
    mounts.extend(beside.iter().map(|mount| {
        let source = match &mount.name {
            Some(name) if mount.kind == "volume" => TreeSource::Volume(name.clone()),
            _ => TreeSource::Path(mount.source.clone()),
        };
        bound(source, &mount.destination)
    }));
    let by = format!("nginx of {}", live.image);
    Attempt { scene, docker: &docker, image: live.image_id.clone(), by, program, main, mounts, referred, notes }.run()
}

/// The same by whatever image of nginx is on this machine, for a host that cannot ask a program of its own; `why` it
/// cannot.
pub(super) fn by_any_image(scene: &Scene<'_>, why: String) -> Result<Outcome, SourceError> {
    let found = scene.trial.places.docker().and_then(|docker| Ok((any_image(&docker)?, docker)));
    let (image, docker) = match found {
        Ok((Some(image), docker)) if docker.is_local() => (image, docker),
        Ok(_) => return Ok(Err(format!("{why}; and no image of nginx is on this machine"))),
        Err(PlaceError::Cancelled(cancelled)) => return Err(cancelled.into()),
        Err(_) => return Ok(Err(why)),
    };
    let root = scene.trial.scratch.join("image");
    let file = |source| SourceError::File { action: "put together", path: root.clone(), source };
    let stage = Stage::new(root.clone()).map_err(file)?;
    stage.lay(scene.restored).map_err(file)?;
    let Some(main) = scene.known.and_then(|k| k.main.clone()).filter(|main| stage.has(main)) else {
        return Ok(Err(format!("{why}; and the snapshot holds no main file of nginx")));
    };
    Cell::give(&root).map_err(file)?;
    let referred = Referred::read(&stage.view(), &main)?;
    let mut tops: Vec<PathBuf> = main.parent().map(Path::to_path_buf).into_iter().collect();
    for item in scene.restored.walk().map_err(file)?.into_iter().filter(|i| i.kind != Kind::Dir) {
        if !tops.iter().any(|top| item.path.starts_with(top)) {
            // A folder of its own, else the file alone: /etc is the image's.
            let top: PathBuf = item.path.components().take(3).collect();
            tops.push(top);
        }
    }
    let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let mounts = tops.iter().map(|top| bound(TreeSource::Path(below(top)), top)).collect();
    let (by, notes) = (format!("nginx of image {}", image.1), vec![why]);
    let attempt =
        Attempt { scene, docker: &docker, image: image.0, by, program: "nginx".into(), main, mounts, referred, notes };
    attempt.run()
}

/// Id and name of an image of nginx: one that a container was made of, else the well-known ones.
fn any_image(docker: &Docker) -> Result<Option<(String, String)>, PlaceError> {
    let is_nginx = |name: &str| {
        let last = name.rsplit('/').next().unwrap_or(name);
        last.starts_with("nginx") || last.starts_with("openresty")
    };
    if let Some(container) = docker.containers(&[])?.into_iter().find(|c| is_nginx(&c.image)) {
        return Ok(Some((container.image_id, container.image)));
    }
    for name in ["nginx:stable", "nginx:latest", "nginx:alpine", "nginx:stable-alpine"] {
        if let Some(image) = docker.image(name)? {
            return Ok(Some((image.id, name.to_owned())));
        }
    }
    Ok(None)
}

fn bound(source: TreeSource, target: &Path) -> HelperMount {
    HelperMount { source, target: target.to_string_lossy().into_owned(), read_only: true }
}

/// One throw-away container, and what is asked in it.
struct Attempt<'a> {
    scene: &'a Scene<'a>,
    docker: &'a Docker,
    image: String,
    by: String,
    program: String,
    main: PathBuf,
    mounts: Vec<HelperMount>,
    referred: Referred,
    notes: Vec<String>,
}

impl Attempt<'_> {
    fn run(mut self) -> Result<Outcome, SourceError> {
        let trial = self.scene.trial;
        let mut hosts = std::mem::take(&mut self.referred.hosts);
        let path = trial.scratch.join("hosts");
        let write = |hosts: &BTreeSet<String>| {
            // The same file each time, for that is what is bound; and whoever nginx is may read it.
            let written = std::fs::write(&path, hosts_file(hosts));
            let opened = written.and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o644)));
            opened.map_err(|source| SourceError::File { action: "write", path: path.clone(), source })
        };
        write(&hosts)?;
        self.mounts.push(bound(TreeSource::Path(path.clone()), Path::new("/etc/hosts")));
        let helper = self.docker.helper(&self.helper())?;
        helper.start()?;
        let place = ContainerPlace::named(self.docker, helper.id());
        let Attempt { main, by, notes, referred, program, .. } = self;
        let argv = [program, "-t".into(), "-c".into(), main.to_string_lossy().into_owned()];
        let mut tested = Tested { main, by, notes, server_names: referred.server_names, ..Tested::default() };
        for _ in 0..ROUNDS {
            let command = Command::new(argv.clone()).timeout(trial.timeout).cancel(trial.cancel);
            let exit = match run(&place, command, OUTPUT_BYTES) {
                Ok((_, exit)) => exit,
                Err(e @ PlaceError::ToolMissing { .. }) => return Ok(Err(e.to_string())),
                Err(e) => return Err(e.into()),
            };
            (tested.code, tested.stderr) = (exit.code, exit.stderr);
            match unresolved(&tested.stderr).filter(|name| hosts.insert(name.clone())) {
                Some(_) => write(&hosts)?,
                None => break,
            }
        }
        Ok(Ok(tested))
    }

    fn helper(&self) -> HelperSpec {
        // Not over what is mounted, nor over what would hide it.
        let free = |dir: &Path| {
            let clear = |path: &Path| !path.starts_with(dir) && !dir.starts_with(path);
            self.mounts.iter().all(|m| clear(Path::new(&m.target))) && !self.main.starts_with(dir)
        };
        let written = WRITTEN.iter().map(PathBuf::from).chain(self.referred.written.iter().cloned());
        let written: BTreeSet<PathBuf> = written.filter(|dir| free(dir)).collect();
        let (uid, gid) = match is_root() {
            true => (NOBODY, NOBODY),
            false => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        };
        // The engine gives it the mode of what it covers, so its owner is what lets nginx write.
        let tmpfs = |dir: &PathBuf| (dir.to_string_lossy().into_owned(), format!("mode=1777,uid={uid},gid={gid}"));
        let lifetime = self.scene.trial.timeout.saturating_add(SPARE);
        HelperSpec {
            role: "drill".into(),
            image: self.image.clone(),
            command: vec!["sleep".into(), lifetime.as_secs().to_string()],
            env: Vec::new(),
            user: Some(format!("{uid}:{gid}")),
            tmpfs: written.iter().map(tmpfs).collect(),
            mounts: self.mounts.clone(),
            memory_bytes: Some(self.scene.trial.drill.memory),
            lifetime,
        }
    }
}

/// Puts together what stands in for a mount: absent where the snapshot has nothing of it.
fn stage(
    scene: &Scene<'_>,
    captured: &Captured,
    mount: &Mount,
    n: usize,
    notes: &mut Vec<String>,
) -> Result<Result<Option<Staged>, String>, SourceError> {
    let root = scene.trial.scratch.join(format!("mount-{n}"));
    let file = |source| SourceError::File { action: "put together", path: root.clone(), source };
    // Where the live path leads through a link, the restored files lie behind the restored link.
    let Ok(base) = scene.restored.target(&mount.source).map(|item| item.path) else { return Ok(Ok(None)) };
    let is_file = scene.restored.item(&base).map_err(file)?.is_some_and(|item| item.kind == Kind::File);
    let inside = |path: &Path| -> Option<PathBuf> {
        let rest = path.strip_prefix(&base).ok()?;
        match (is_file, rest.as_os_str().is_empty()) {
            (true, true) => Some(FILE.into()),
            (true, false) => None,
            (false, _) => Some(Path::new("/").join(rest)),
        }
    };
    let content = |path: &PathBuf| is_file || path != &base;
    let paths = scene.restored.walk().map_err(file)?.into_iter().filter(|i| i.kind != Kind::Dir).map(|i| i.path);
    if !paths.filter(content).any(|path| path.starts_with(&base)) {
        return Ok(Ok(None));
    }
    let stage = Stage::new(root.clone()).map_err(file)?;
    stage.lay_at(scene.restored, inside).map_err(file)?;
    if !is_file && !captured.holds(&mount.source) && !captured.holds(&base) {
        if let Err(why) = live_rest(scene, captured, mount, &stage)? {
            return Ok(Err(why));
        }
        notes.push(format!("what of {} was not captured is the live one's", mount.source.display()));
    }
    Cell::give(&root).map_err(file)?;
    Ok(Ok(Some(Staged { stage, destination: mount.destination.clone(), is_file })))
}

/// Takes over what the live folder has beside what was captured of it.
fn live_rest(
    scene: &Scene<'_>,
    captured: &Captured,
    mount: &Mount,
    stage: &Stage,
) -> Result<Result<(), String>, SourceError> {
    let trees = scene.trial.policy.filter(|_| !is_root()).map(|p| Trees::new(&p.app, scene.trial.cancel));
    let through = trees.as_ref().map(|trees| DockerView::new(trees, scene.trial.cancel));
    let view: &dyn View = match &through {
        Some(through) => through,
        None => &Host,
    };
    if let Err(e) = view.look(&mount.source) {
        return Ok(Err(format!("the live {} cannot be read: {e}", mount.source.display())));
    }
    let bad = |path: &Path, e: std::io::Error| Ok(Err(format!("the live {} cannot be read: {e}", path.display())));
    let mut ahead = vec![mount.source.clone()];
    let mut seen = 0;
    while let Some(path) = ahead.pop() {
        seen += 1;
        if seen > MAX_REST {
            return Ok(Err(format!("the live {} is too large to be put together", mount.source.display())));
        }
        if captured.holds(&path) {
            continue;
        }
        let Ok(rest) = path.strip_prefix(&mount.source) else { continue };
        let at = Path::new("/").join(rest);
        let done = match view.kind(&path) {
            Ok(Some(Kind::Dir)) => match view.read_dir(&path) {
                Ok(names) => {
                    ahead.extend(names.into_iter().map(|n| path.join(n)));
                    stage.dir(&at).map(drop)
                }
                Err(e) => Err(e),
            },
            Ok(Some(Kind::Symlink(target))) => stage.link(&at, &target),
            Ok(Some(Kind::File)) => view.read(&path, FILE_BYTES).and_then(|content| stage.put(&at, &content, 0o600)),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            return bad(&path, e);
        }
    }
    Ok(Ok(()))
}

/// The program and its main file, by the live container's own command.
fn program(live: &Container) -> (String, PathBuf) {
    let is_nginx = |word: &String| matches!(word.rsplit('/').next(), Some("nginx" | "openresty"));
    let own = live.command.iter().position(is_nginx).map_or(&[][..], |at| &live.command[at..]);
    let program = own.first().cloned().unwrap_or_else(|| "nginx".into());
    let given = own.windows(2).find(|w| w[0] == "-c").map(|w| PathBuf::from(&w[1]));
    (program, given.filter(|p| p.is_absolute()).unwrap_or_else(|| DEFAULT_MAIN.into()))
}

/// Whether the configuration reaches into what is mounted at `destination`.
fn needs(referred: &Referred, main: &Path, destination: &Path) -> bool {
    let around = main.parent().is_some_and(|dir| destination.starts_with(dir)) || main.starts_with(destination);
    around || referred.needed.iter().chain(&referred.includes).any(|path| path.starts_with(destination))
}
