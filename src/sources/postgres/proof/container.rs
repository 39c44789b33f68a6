//! A throw-away server in a container of the live one's image: the same programs, extensions and locales.
//!
//! Nothing of the live container is used: no network, no volume, no variable, no entry point. Where the programs lie and
//! who may run them differs from image to image, so both are looked for.

use super::local::initdb;
use super::server::{Ask, Found, Kind, Server, settings, take_over};
use crate::place::docker::Docker;
use crate::place::helper::{Helper, HelperMount, HelperSpec, TreeSource};
use crate::place::inspect::Container;
use crate::place::{Command, ContainerPlace, Place, PlaceError, Running};
use crate::policy::model::Target;
use crate::sources::SourceError;
use crate::sources::postgres::connection::{Connection, Own};
use crate::sources::postgres::stage::Stage;
use crate::sources::run::{one_line, run};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where the server's volume is mounted, and the folder in it that everybody there may write.
const MOUNT: &str = "/lifeboat";
const FOLDER: &str = "/lifeboat/drill";
/// Longer than the proof may take, for the clean-up of a run that was killed.
const MARGIN: Duration = Duration::from_secs(600);
/// Does nothing, until the container is removed.
const IDLE: &str = "while :; do sleep 3600; done";
/// Every folder of server programs, with what they say of themselves.
const LOOK: &str = "for d in \"$(pg_config --bindir 2>/dev/null)\" /usr/lib/postgresql/*/bin /usr/libexec/postgresql* \
    /usr/pgsql-*/bin /opt/*/postgresql/bin /usr/local/pgsql/bin /usr/local/bin $(echo \"$PATH\" | sed 's/:/ /g'); do \
    if [ -x \"$d/postgres\" ] && [ -x \"$d/initdb\" ]; then echo \"$d|$(\"$d/postgres\" --version)\"; fi; done";

/// A server in a container; both are gone when this is dropped.
pub(super) struct InContainer {
    // The container goes first: then the command in it has ended.
    _helper: Helper,
    _running: Mutex<Box<dyn Running>>,
}

/// The container of the captured server, whether it runs or not.
fn live(ask: &Ask<'_>, docker: &Docker, target: &Target) -> Result<Result<Container, String>, SourceError> {
    let id = match target {
        Target::Container(name) => name.clone(),
        Target::Service(service) => {
            let Some(project) = ask.trial.places.project()? else {
                return Ok(Err("the application's compose project is not there".into()));
            };
            let mine = project.containers.iter().find(|c| c.compose().is_some_and(|l| l.service == *service));
            match mine {
                Some(container) => container.id.clone(),
                None => return Ok(Err(format!("service {service:?} has no container"))),
            }
        }
        Target::Url(_) | Target::Host => return Ok(Err("the live server runs in no container".into())),
    };
    match docker.inspect(&id) {
        Ok(container) => Ok(Ok(container)),
        Err(PlaceError::NoContainer { name }) => Ok(Err(format!("container {name:?} is not there"))),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn start(ask: &Ask<'_>, target: &Target) -> Result<Found, SourceError> {
    let docker = match ask.trial.places.docker() {
        Ok(docker) => docker,
        Err(error @ (PlaceError::NoDocker { .. } | PlaceError::Context { .. })) => {
            return Ok(Found::None(error.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    let container = match live(ask, &docker, target)? {
        Ok(container) => container,
        Err(why) => return Ok(Found::None(why)),
    };
    if docker.image(&container.image_id)?.is_none() {
        return Ok(Found::None(format!(
            "image {} of container {} is not here any more",
            container.image, container.name
        )));
    }
    let mut said = String::new();
    for user in users(&container) {
        match try_user(ask, &docker, &container, &user)? {
            Tried::Server(server) => return Ok(Found::Server(server)),
            Tried::NoPrograms(why) => return Ok(Found::None(why)),
            Tried::NotThisUser(why) => said = why,
        }
    }
    Ok(Found::None(format!("image {} starts no server without root: {said}", container.image)))
}

/// Who may run the server, likeliest first; never root.
fn users(container: &Container) -> Vec<String> {
    let own = container.user.clone();
    let is_root = matches!(own.split(':').next(), Some("" | "0" | "root"));
    let mut users = if is_root { Vec::new() } else { vec![own] };
    for usual in ["postgres", "nobody"] {
        if !users.iter().any(|u| u == usual) {
            users.push(usual.into());
        }
    }
    users
}

enum Tried {
    Server(Box<Server>),
    NoPrograms(String),
    NotThisUser(String),
}

fn try_user(ask: &Ask<'_>, docker: &Docker, live: &Container, user: &str) -> Result<Tried, SourceError> {
    let major = ask.major();
    let memory = ask.trial.drill.memory.max(128 << 20);
    let helper = docker.helper(&HelperSpec {
        role: "drill".into(),
        image: live.image_id.clone(),
        command: ["/bin/sh", "-c", IDLE].map(str::to_owned).into(),
        env: Vec::new(),
        user: Some(user.to_owned()),
        mounts: vec![HelperMount { source: TreeSource::Scratch, target: MOUNT.into(), read_only: false }],
        tmpfs: vec![("/dev/shm".into(), format!("size={},mode=1777", memory / 2))],
        memory_bytes: Some(memory),
        lifetime: ask.trial.timeout + MARGIN,
    })?;
    let limits = Command::new(["docker"]).timeout(ask.deadline.left()).cancel(ask.trial.cancel);
    helper.put(MOUNT, open_folder()?.as_slice(), &limits)?;
    if let Err(error) = helper.start() {
        ask.trial.cancel.check()?;
        return Ok(Tried::NotThisUser(cause(&error)));
    }
    let place: Arc<dyn Place> = Arc::new(ContainerPlace::named(docker, helper.id()));
    let command = |argv: Vec<String>| {
        Command::new(argv).user(Some(user.to_owned())).dir("/").timeout(ask.deadline.left()).cancel(ask.trial.cancel)
    };
    let script = |text: &str| command(["/bin/sh", "-c", text].map(str::to_owned).into());
    let listed = String::from_utf8_lossy(&place.output(script(LOOK), 1 << 16)?).into_owned();
    let programs: Vec<(&str, u32)> =
        listed.lines().filter_map(|l| l.split_once('|')).filter_map(|(d, v)| Some((d, super::major_in(v)?))).collect();
    let Some((bin, _)) = programs.iter().find(|(_, m)| *m == major) else {
        let there: Vec<String> = programs.iter().map(|(_, m)| m.to_string()).collect();
        let has =
            if there.is_empty() { "no server programs".into() } else { format!("PostgreSQL {}", there.join(", ")) };
        let why = format!("image {} has {has}, and the snapshot is of PostgreSQL {major}", live.image);
        return Ok(Tried::NoPrograms(why));
    };
    let data = format!("{FOLDER}/data");
    let argv = initdb(&format!("{bin}/initdb"), ask.bootstrap(), &data);
    let (_, exit) = run(&*place, command(argv).env("LC_ALL", "C".to_owned()), 1 << 16)?;
    if exit.code != 0 {
        return Ok(Tried::NotThisUser(format!("initdb as {user}: {}", one_line(&exit.stderr))));
    }
    for folder in ["s", "dumps", "ts"] {
        place.output(
            command(["mkdir", "-m", "700", "--", &format!("{FOLDER}/{folder}")].map(str::to_owned).into()),
            4096,
        )?;
    }
    let socket = format!("{FOLDER}/s");
    let mut argv = vec![format!("{bin}/postgres"), "-D".into(), data];
    argv.extend(settings(ask, major, &socket));
    let running = place.start(command(argv).env("LC_ALL", "C".to_owned()))?;
    let own_role = format!("lifeboat_drill_{}", ask.random()?);
    let path = format!("{bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let connection = Connection::to_own(Own {
        place: place.clone(),
        account: Some(user.to_owned()),
        user: ask.bootstrap(),
        socket: &socket,
        path: Some(&path),
        application_name: "lifeboat:drill",
        server: "the server of the drill".into(),
        through_exec: true,
    });
    let (connection, version, text) = take_over(ask, connection, &own_role, &mut || None)?;
    let stage = Stage::Container {
        place,
        container: Box::new(docker.inspect(helper.id())?),
        docker: docker.clone(),
        dir: format!("{FOLDER}/dumps"),
        user: Some(user.to_owned()),
    };
    Ok(Tried::Server(Box::new(Server {
        connection,
        stage,
        version,
        what: format!("PostgreSQL {text} in a container of {}", live.image),
        own_role,
        tablespaces: Some(format!("{FOLDER}/ts")),
        kind: Kind::Container { _server: InContainer { _helper: helper, _running: Mutex::new(running) } },
    })))
}

/// A tar with the one folder that everybody may write in.
fn open_folder() -> Result<Vec<u8>, SourceError> {
    let failed = |source| SourceError::File { action: "make folder", path: FOLDER.into(), source };
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_size(0);
    let mut builder = tar::Builder::new(Vec::new());
    let name = FOLDER.trim_start_matches(MOUNT).trim_start_matches('/');
    builder.append_data(&mut header, name, std::io::empty()).map_err(failed)?;
    builder.into_inner().map_err(failed)
}

fn cause(error: &PlaceError) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
