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
use crate::place::{Command, ContainerPlace, PlaceError};
use crate::sources::SourceError;
use crate::sources::cell::{Cell, NOBODY};
use crate::sources::run::run;
use std::collections::BTreeSet;
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
    let mut tested = Tested { main: main.clone(), by: format!("nginx of {}", live.image), notes, ..Tested::default() };
    tested.server_names = referred.server_names.clone();
    let mut hosts = referred.hosts.clone();
    let hosts_path = trial.scratch.join("hosts");
    let file = |source| SourceError::File { action: "write", path: hosts_path.clone(), source };
    std::fs::write(&hosts_path, hosts_file(&hosts)).map_err(file)?;
    let spec = helper(scene, &live, &staged, &beside, &referred, &hosts_path, &main)?;
    let helper = docker.helper(&spec)?;
    helper.start()?;
    let place = ContainerPlace::named(&docker, helper.id());
    for _ in 0..ROUNDS {
        let argv = [program.clone(), "-t".into(), "-c".into(), main.to_string_lossy().into_owned()];
        let command = Command::new(argv).timeout(trial.timeout).cancel(trial.cancel);
        let exit = match run(&place, command, OUTPUT_BYTES) {
            Ok((_, exit)) => exit,
            Err(e @ PlaceError::ToolMissing { .. }) => return Ok(Err(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        (tested.code, tested.stderr) = (exit.code, exit.stderr);
        match unresolved(&tested.stderr).filter(|name| hosts.insert(name.clone())) {
            // The same file, for that is what is bound.
            Some(_) => std::fs::write(&hosts_path, hosts_file(&hosts)).map_err(file)?,
            None => break,
        }
    }
    Ok(Ok(tested))
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
    let Some(item) = scene.restored.item(&mount.source).map_err(file)? else { return Ok(Ok(None)) };
    let is_file = item.kind == Kind::File;
    let inside = |path: &Path| -> Option<PathBuf> {
        let rest = path.strip_prefix(&mount.source).ok()?;
        match (is_file, rest.as_os_str().is_empty()) {
            (true, true) => Some(FILE.into()),
            (true, false) => None,
            (false, _) => Some(Path::new("/").join(rest)),
        }
    };
    let content = |path: &PathBuf| is_file || path != &mount.source;
    let paths = scene.restored.walk().map_err(file)?.into_iter().filter(|i| i.kind != Kind::Dir).map(|i| i.path);
    if !paths.filter(content).any(|path| path.starts_with(&mount.source)) {
        return Ok(Ok(None));
    }
    let stage = Stage::new(root.clone()).map_err(file)?;
    stage.lay_at(scene.restored, inside).map_err(file)?;
    if !is_file && !captured.holds(&mount.source) {
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

fn helper(
    scene: &Scene<'_>,
    live: &Container,
    staged: &[Staged],
    beside: &[&Mount],
    referred: &Referred,
    hosts: &Path,
    main: &Path,
) -> Result<HelperSpec, SourceError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut mounts: Vec<HelperMount> = staged
        .iter()
        .map(|one| HelperMount {
            source: TreeSource::Path(one.source()),
            target: text(&one.destination),
            read_only: true,
        })
        .collect();
    mounts.extend(beside.iter().map(|mount| HelperMount {
        source: match &mount.name {
            Some(name) if mount.kind == "volume" => TreeSource::Volume(name.clone()),
            _ => TreeSource::Path(mount.source.clone()),
        },
        target: text(&mount.destination),
        read_only: true,
    }));
    mounts.push(HelperMount {
        source: TreeSource::Path(hosts.to_path_buf()),
        target: "/etc/hosts".into(),
        read_only: true,
    });
    // Not over what is mounted, nor over what would hide it.
    let free = |dir: &Path| {
        let clear = |path: &Path| !path.starts_with(dir) && !dir.starts_with(path);
        mounts.iter().all(|m| clear(Path::new(&m.target))) && !main.starts_with(dir)
    };
    let written: BTreeSet<PathBuf> =
        WRITTEN.iter().map(PathBuf::from).chain(referred.written.iter().cloned()).filter(|dir| free(dir)).collect();
    let (uid, gid) = match is_root() {
        true => (NOBODY, NOBODY),
        false => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    let lifetime = scene.trial.timeout.saturating_add(SPARE);
    Ok(HelperSpec {
        role: "drill".into(),
        image: live.image_id.clone(),
        command: vec!["sleep".into(), lifetime.as_secs().to_string()],
        env: Vec::new(),
        user: Some(format!("{uid}:{gid}")),
        // The engine gives it the mode of what it covers, so its owner is what lets nginx write.
        tmpfs: written.iter().map(|dir| (text(dir), format!("mode=1777,uid={uid},gid={gid}"))).collect(),
        mounts,
        memory_bytes: Some(scene.trial.drill.memory),
        lifetime,
    })
}
