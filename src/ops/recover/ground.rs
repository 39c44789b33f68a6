//! What must be there before anything returns: the folder and its owner, accounts, networks and volumes that the project
//! does not make itself.

use crate::ops::{OpsError, Run};
use crate::place::account::{self, Account};
use crate::place::{Command, Docker, HostPlace, Place, PlaceError};
use crate::policy::Policy;
use crate::repository::format::Manifest;
use crate::sources::SourceError;
use crate::sources::git::is_unfinished;
use crate::sources::project::Places;
use crate::sources::recovery::Bundle;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// What would be made, and what stands in the way.
pub fn look(bundle: &Bundle, manifest: &Manifest, run: &Run) -> Result<(Vec<String>, Vec<String>), OpsError> {
    let (mut makes, mut lacks) = (Vec::new(), Vec::new());
    for account in missing(bundle) {
        let name = account.name.as_deref().unwrap_or_default();
        match account::is_root() {
            true => makes.push(format!("account {name} (uid {})", account.uid)),
            false => lacks.push(format!("account {name} (uid {}): only root can make it", account.uid)),
        }
    }
    for account in &bundle.accounts {
        let Some(name) = &account.name else { continue };
        if let Some(there) = Account::find(name).filter(|there| there.uid != account.uid) {
            lacks.push(format!(
                "account {name} has uid {} here and had {}: files would belong to somebody else",
                there.uid, account.uid
            ));
        }
    }
    let is_repository = has_code(manifest) && bundle.root.join(".git").exists();
    if !bundle.root.exists() {
        makes.push(format!("folder {}", bundle.root.display()));
    } else if !is_repository && !is_unfinished(&bundle.root) && !is_empty(&bundle.root)? {
        lacks.push(format!("{} is not empty and no repository: move it away", bundle.root.display()));
    }
    if !bundle.networks.is_empty() || !bundle.volumes.is_empty() {
        // Without an engine that is said by what looks for tools.
        if let Ok(docker) = Docker::connect(&run.cancel) {
            for network in &bundle.networks {
                if docker.network(&network.name).map_err(of_docker)?.is_none() {
                    makes.push(format!("network {}", network.name));
                }
            }
            for volume in &bundle.volumes {
                if docker.volume(&volume.name).map_err(of_docker)?.is_none() {
                    makes.push(format!("volume {}", volume.name));
                }
            }
        }
    }
    Ok((makes, lacks))
}

/// What of the application is on this machine. A repository that somebody cloned to its place is not yet one.
pub fn lives(bundle: &Bundle, policy: &Policy, has_policy: bool, run: &Run) -> Result<Vec<String>, OpsError> {
    let mut found = Vec::new();
    if has_policy && bundle.root.exists() && !is_empty(&bundle.root)? {
        found.push(format!("its policy and {} are there", bundle.root.display()));
    }
    // Without an engine nothing of a project is there.
    let Ok(docker) = Docker::connect(&run.cancel) else { return Ok(found) };
    if let Some(project) = Places::new(&policy.app, &run.cancel).project().map_err(of_docker)? {
        found.push(format!("containers of project {} are there", project.name));
        let label = format!("com.docker.compose.project={}", project.name);
        let volumes: Vec<String> = docker.volumes(&[label]).map_err(of_docker)?.into_iter().map(|v| v.name).collect();
        if !volumes.is_empty() {
            found.push(format!("volumes of project {} are there: {}", project.name, volumes.join(", ")));
        }
    }
    Ok(found)
}

/// Makes it. What is there stays as it is.
pub fn make(bundle: &Bundle, run: &Run) -> Result<(), OpsError> {
    if account::is_root() {
        for account in missing(bundle) {
            make_account(account, run)?;
        }
    }
    if !bundle.root.exists() {
        std::fs::create_dir_all(&bundle.root).map_err(|e| OpsError::file("create folder", &bundle.root, e))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&bundle.root, mode).map_err(|e| OpsError::file("change", &bundle.root, e))?;
        if let Some(owner) = bundle.accounts.first().filter(|_| account::is_root()) {
            std::os::unix::fs::chown(&bundle.root, Some(owner.uid), Some(owner.gid))
                .map_err(|e| OpsError::file("change the owner of", &bundle.root, e))?;
        }
    }
    if bundle.networks.is_empty() && bundle.volumes.is_empty() {
        return Ok(());
    }
    let docker = Docker::connect(&run.cancel).map_err(of_docker)?;
    for network in &bundle.networks {
        if docker.network(&network.name).map_err(of_docker)?.is_none() {
            run.events.step(format!("making network {}", network.name));
            docker.make_network(network).map_err(of_docker)?;
        }
    }
    for volume in &bundle.volumes {
        if docker.volume(&volume.name).map_err(of_docker)?.is_none() {
            run.events.step(format!("making volume {}", volume.name));
            docker.make_volume(volume).map_err(of_docker)?;
        }
    }
    Ok(())
}

/// Named accounts of the old machine that this one does not know.
fn missing(bundle: &Bundle) -> impl Iterator<Item = &Account> {
    bundle.accounts.iter().filter(|a| a.name.as_deref().is_some_and(|name| Account::find(name).is_none()))
}

/// With its numbers: what is restored has the numbers of then.
fn make_account(account: &Account, run: &Run) -> Result<(), OpsError> {
    let Some(name) = &account.name else { return Ok(()) };
    run.events.step(format!("making account {name}"));
    let (uid, gid) = (account.uid.to_string(), account.gid.to_string());
    let tool = |argv: Vec<&str>| {
        let command = Command::new(argv).timeout(LIMIT).cancel(&run.cancel);
        HostPlace::new().output(command, 64 << 10).map(drop)
    };
    // A group of that number may be there under another name; then it is that one.
    match tool(vec!["groupadd", "--gid", &gid, "--", name]) {
        Ok(()) | Err(PlaceError::Failed { code: 4 | 9, .. }) => {}
        Err(e) => return Err(of_account(name, e)),
    }
    let mut argv = vec!["useradd", "--uid", &uid, "--gid", &gid, "--create-home"];
    let home = account.home.as_ref().map(|h| h.to_string_lossy().into_owned());
    let shell = account.shell.as_ref().filter(|s| s.exists()).map(|s| s.to_string_lossy().into_owned());
    if let Some(home) = &home {
        argv.extend(["--home-dir", home]);
    }
    if let Some(shell) = &shell {
        argv.extend(["--shell", shell]);
    }
    argv.extend(["--", name]);
    tool(argv).map_err(|e| of_account(name, e))?;
    for group in &account.groups {
        // One that this machine does not have is for whom it was.
        if let Err(e) = tool(vec!["usermod", "--append", "--groups", group, name]) {
            run.events.step(format!("account {name} is not in group {group} here: {e}"));
        }
    }
    Ok(())
}

fn has_code(manifest: &Manifest) -> bool {
    manifest.sources.iter().any(|s| s.kind == "git" && s.facts["present"] == true)
}

fn is_empty(dir: &Path) -> Result<bool, OpsError> {
    let mut listed = std::fs::read_dir(dir).map_err(|e| OpsError::file("list", dir, e))?;
    Ok(listed.next().is_none())
}

fn of_docker(e: PlaceError) -> OpsError {
    OpsError::Source { name: "recovery".into(), source: SourceError::Place(e) }
}

fn of_account(name: &str, e: PlaceError) -> OpsError {
    OpsError::failed(format!("account {name} cannot be made: {e}"), "make it by hand, with its uid and gid")
}
