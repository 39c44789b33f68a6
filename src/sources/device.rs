//! On which file system of this machine a folder of a container lies: what is free there, other places may share.
//!
//! The engine's own word first: what it mounts is looked at here. Whoever may not look there (an ordinary user in group
//! docker) asks in the container: a mounted folder has the same number on both sides. What is not mounted lies where the
//! engine keeps its containers, though it looks like a file system of its own from within.

use super::run::run;
use crate::base::cancel::Cancel;
use crate::place::inspect::Container;
use crate::place::{Command, Docker, Place};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// The device; nothing where the engine is another machine's, and where it cannot be found out.
pub(super) fn of_container(
    docker: &Docker,
    container: &Container,
    place: &dyn Place,
    path: &Path,
    cancel: &Cancel,
) -> Option<u64> {
    if !docker.is_local() {
        return None;
    }
    let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
    let around = container.mounts.iter().filter(|m| path.starts_with(&m.destination));
    let mount = around.max_by_key(|m| m.destination.as_os_str().len());
    let on_host = mount.filter(|m| matches!(m.kind.as_str(), "volume" | "bind"));
    if let Some(device) = on_host.and_then(|m| device(&m.source)) {
        return Some(device);
    }
    let stat = |words: &[&str]| {
        let argv = ["stat"].iter().chain(words).map(|w| (*w).to_owned()).chain([path.to_str()?.to_owned()]);
        let command = Command::new(argv).timeout(PATIENCE).cancel(cancel).dir("/");
        let (out, exit) = run(place, command, 4096).ok()?;
        (exit.code == 0).then(|| String::from_utf8_lossy(&out).trim().to_owned())
    };
    match mount.is_none() && stat(&["-f", "-c", "%T"]).is_some_and(|kind| kind == "overlayfs") {
        true => docker.root_dir().ok().flatten().and_then(|root| device(&root)),
        false => stat(&["-c", "%d"])?.parse().ok(),
    }
}
