//! Where dumps are laid out for the tools that load them: a folder of the transaction's own, on this host or in the
//! server's container. It is made anew by every attempt and removed by whoever comes last.

use super::{Admin, State};
use crate::place::account::Account;
use crate::place::{Command, Place};
use crate::policy::model::Target;
use crate::sources::SourceError;
use crate::sources::placing::Scene;
use crate::sources::postgres::PostgresSource;
use crate::sources::postgres::stage::{Stage, folder_for, make_folder};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SETTLE: Duration = Duration::from_secs(60);

fn is_in_container(source: &PostgresSource) -> bool {
    matches!(source.spec.target, Target::Service(_) | Target::Container(_))
}

/// The account that the tools run as, on this host.
fn account(admin: &Admin<'_>) -> Option<(u32, u32)> {
    admin.connection.account().and_then(Account::find).map(|a| (a.uid, a.gid))
}

fn folder_name(source: &PostgresSource, scene: &Scene<'_>) -> String {
    format!("lifeboat-{}-{}", scene.id, source.name)
}

/// The folder's path; in a container, below the first of some that has room for the dumps.
pub(super) fn choose(
    source: &PostgresSource,
    scene: &Scene<'_>,
    admin: &Admin<'_>,
    bytes: u64,
    data_directory: Option<&str>,
) -> (String, Option<u64>) {
    let name = folder_name(source, scene);
    if !is_in_container(source) {
        let dir = folder_for(scene.folder, account(admin), &name);
        let free = dir.parent().and_then(super::room::free_here);
        return (dir.to_string_lossy().into_owned(), free);
    }
    let beside_data = data_directory.and_then(|d| Path::new(d).parent()).map(|p| p.to_string_lossy().into_owned());
    let bases = ["/tmp".to_owned(), "/var/tmp".to_owned()].into_iter().chain(beside_data);
    let free = |base: &String| super::room::free_in(admin, base);
    let all: Vec<(String, Option<u64>)> = bases.map(|base| (free(&base), base)).map(|(f, b)| (b, f)).collect();
    let fits = all.iter().find(|(_, free)| free.is_some_and(|free| free > bytes + (64 << 20)));
    let (base, free) = fits.or(all.first()).cloned().unwrap_or_else(|| ("/tmp".into(), None));
    (format!("{base}/{name}"), free)
}

/// Dumps can be laid out in it as long as this lives.
pub(super) struct Ground {
    pub stage: Stage,
}

/// Makes the folder, empty.
pub(super) fn open(
    source: &PostgresSource,
    scene: &Scene<'_>,
    admin: &Admin<'_>,
    state: &State,
) -> Result<Ground, SourceError> {
    clear(source, scene, state)?;
    if !is_in_container(source) {
        let (dir, owner) = (PathBuf::from(&state.stage), account(admin));
        make_folder(&dir, owner)?;
        return Ok(Ground { stage: Stage::Host { dir, owner } });
    }
    let found = scene.places.find(&source.spec.target)?;
    let Some(container) = found.container else {
        return Err(SourceError::problem("the server's container is not there"));
    };
    let make = Command::new(["mkdir", "-m", "700", "--", state.stage.as_str()]).timeout(SETTLE).cancel(scene.cancel);
    found.place.output(make, 4096)?;
    let stage = Stage::Container {
        place: found.place,
        docker: scene.places.docker()?,
        container: Box::new(container),
        dir: state.stage.clone(),
        user: None,
    };
    Ok(Ground { stage })
}

/// Removes the folder with what a killed run left in it.
pub(super) fn clear(source: &PostgresSource, scene: &Scene<'_>, state: &State) -> Result<(), SourceError> {
    let own = Path::new(&state.stage).file_name().is_some_and(|n| n.to_string_lossy() == folder_name(source, scene));
    if !own {
        return Err(SourceError::problem(format!("{} is no folder of this transaction", state.stage)));
    }
    if is_in_container(source) {
        let found = scene.places.find(&source.spec.target)?;
        let remove = Command::new(["rm", "-rf", "--", state.stage.as_str()]).timeout(SETTLE).cancel(scene.cancel);
        Place::output(&*found.place, remove, 4096)?;
        return Ok(());
    }
    match std::fs::remove_dir_all(&state.stage) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SourceError::File { action: "remove", path: state.stage.clone().into(), source })
        }
        _ => Ok(()),
    }
}
