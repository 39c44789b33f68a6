//! The live server, looked at for a plan: where its files lie, who runs it, and every reason why it cannot be exchanged.

use super::Step;
use super::hands::Hands;
use super::state::{Runs, State, is_plain_name};
use crate::place::account;
use crate::place::inspect::Container;
use crate::place::{Command, HostPlace, Place};
use crate::policy::model::Target;
use crate::sources::SourceError;
use crate::sources::device;
use crate::sources::locate::Located;
use crate::sources::placing::Room;
use crate::sources::redis::client::{Answer, Server};
use crate::sources::redis::facts::{Facts, Keys};
use crate::sources::redis::info::Info;
use crate::sources::run::run;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What must be the same after the server was started again.
const KEPT: &[&str] = &[
    "dir",
    "dbfilename",
    "appendonly",
    "appendfilename",
    "appenddirname",
    "save",
    "maxmemory",
    "maxmemory-policy",
    "databases",
    "port",
    "unixsocket",
];
const FILE_MODE: &str = "640";
const FOLDER_MODE: &str = "750";

/// The live server.
pub(super) struct Found {
    pub state: State,
    pub warnings: Vec<String>,
    /// Room beside its files.
    pub free: Option<u64>,
    /// The file system that they lie on.
    pub device: Option<u64>,
    /// Keys that it holds now, by database.
    pub keys: Vec<Keys>,
    /// About what writing them out takes.
    pub data_bytes: u64,
    pub describe: String,
}

impl Step<'_> {
    /// The server as it runs now, and its container.
    pub fn server(&self) -> Result<(Server, Option<Container>), SourceError> {
        let found = self.scene.places.find(&self.source.spec.target)?;
        let env = found.container.iter().flat_map(|c| c.env.iter().cloned()).collect();
        let located = Located { place: found.place, env };
        Ok((self.source.server_at(&located, self.deadline, &self.linked.cancel)?, found.container))
    }

    pub fn look(&self, facts: &Facts) -> Result<Found, SourceError> {
        let (server, container) = self.server()?;
        let info = ask_info(&server)?;
        let mut warnings = Vec::new();
        refuse(&server, &info, facts, &mut warnings)?;
        let settings = self.settings(&server)?;
        let setting = |name: &str| {
            settings
                .get(name)
                .cloned()
                .ok_or_else(|| SourceError::problem(format!("{} does not tell its setting {name}", server.name)))
        };
        let (dir, pid) = (setting("dir")?, process_id(&server, &info)?);
        let (uid, gid) = self.owner(&*server.place, pid, &server.name)?;
        let device = match &container {
            Some(container) => {
                let docker = self.scene.places.docker()?;
                device::of_container(&docker, container, &*server.place, Path::new(&dir), &self.linked.cancel)
            }
            None => Room::device_of(Path::new(&dir)),
        };
        let runs = match &container {
            Some(container) => in_container(container, &dir)?,
            None => self.on_host(&server, &info, pid, uid, &dir, &settings, &mut warnings)?,
        };
        let mut state = State {
            folder: format!(".lifeboat-{}.{}", self.scene.id, self.scene.name),
            dbfilename: setting("dbfilename")?,
            appendfilename: setting("appendfilename")?,
            appenddirname: settings.get("appenddirname").cloned(),
            appendonly: setting("appendonly")? == "yes",
            dir,
            uid,
            gid,
            file_mode: FILE_MODE.into(),
            folder_mode: FOLDER_MODE.into(),
            stream: String::new(),
            length: 0,
            flush: false,
            keys: (facts.counted != "range").then(|| facts.databases.clone()),
            settings,
            runs,
        };
        if let Some(name) = state.names().into_iter().find(|name| !is_plain_name(name)) {
            return Err(SourceError::problem(format!(
                "{} keeps its data under a name that is not plain: {name:?}",
                server.name
            )));
        }
        let hands = Hands::open(self, &state)?;
        let (free, (file, folder)) = (hands.free_bytes(&state)?, hands.modes(&state)?);
        drop(hands);
        state.file_mode = file.unwrap_or(state.file_mode);
        state.folder_mode = folder.unwrap_or(state.folder_mode);
        Ok(Found {
            warnings,
            free,
            device,
            keys: info.keyspace(),
            data_bytes: info.get("used_memory").and_then(|v| v.parse().ok()).unwrap_or(0),
            describe: match &container {
                Some(container) => format!("Redis in container {:?}", container.name),
                None => server.name.clone(),
            },
            state,
        })
    }

    /// Settings as the live server has them; not as the snapshot remembers them.
    pub fn settings(&self, server: &Server) -> Result<BTreeMap<String, String>, SourceError> {
        let mut settings = BTreeMap::new();
        for name in KEPT {
            match server.ask(&["CONFIG", "GET", name])? {
                Answer::Text(text) => {
                    // One that this version does not know is not told.
                    let mut lines = text.lines();
                    if lines.next() == Some(name) {
                        settings.insert((*name).to_owned(), lines.collect::<Vec<_>>().join("\n"));
                    }
                }
                Answer::Refused(why) => {
                    return Err(SourceError::hint(
                        format!("{} does not tell where its files lie: {why}", server.name),
                        "let the user of this source ask CONFIG GET (ACL: +config|get), or put the file in place by hand",
                    ));
                }
            }
        }
        Ok(settings)
    }

    /// Uid and gid of the server's process, as its own place counts them.
    fn owner(&self, place: &dyn Place, pid: u32, name: &str) -> Result<(u32, u32), SourceError> {
        let script = "while IFS= read -r line; do echo \"$line\"; done <\"/proc/$1/status\"";
        let argv = ["/bin/sh", "-c", script, "lifeboat", &pid.to_string()].map(str::to_owned);
        let command = Command::new(argv).timeout(self.deadline.left()).cancel(&self.linked.cancel).dir("/");
        let (out, _) = run(place, command, 64 << 10)?;
        let text = String::from_utf8_lossy(&out).into_owned();
        let effective =
            |key: &str| text.lines().find_map(|l| l.strip_prefix(key))?.split_whitespace().nth(1)?.parse().ok();
        match (effective("Uid:"), effective("Gid:")) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(SourceError::problem(format!("whose the process {pid} of {name} is cannot be found out"))),
        }
    }

    /// Who stops and starts a server of this host.
    #[expect(clippy::too_many_arguments, reason = "all of it was asked for once, by the one caller")]
    fn on_host(
        &self,
        server: &Server,
        info: &Info,
        pid: u32,
        uid: u32,
        dir: &str,
        settings: &BTreeMap<String, String>,
        warnings: &mut Vec<String>,
    ) -> Result<Runs, SourceError> {
        let elsewhere = |why: String| {
            SourceError::hint(
                format!("{} cannot be exchanged from here: {why}", server.name),
                "name its container (service or container), or run this on the machine where the server runs",
            )
        };
        let process = PathBuf::from(format!("/proc/{pid}"));
        let comm = std::fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned();
        if !comm.contains("redis-server") && !comm.contains("valkey-server") {
            return Err(elsewhere(format!("process {pid} of this host is no Redis server")));
        }
        if !account::is_root() && rustix::process::geteuid().as_raw() != uid {
            return Err(SourceError::hint(
                format!("{} runs as another user (uid {uid}), whose files this user cannot exchange", server.name),
                "run this as root, or as that user",
            ));
        }
        // It has made its data folder its own: so the process is that server and not another one.
        let cwd = std::fs::read_link(process.join("cwd")).ok();
        if cwd.is_none() || cwd != std::fs::canonicalize(dir).ok() {
            return Err(elsewhere(format!("process {pid} of this host does not work in {dir}")));
        }
        if let Some(unit) = unit(&process) {
            return self.by_systemd(server, pid, unit);
        }
        let config = info.get("config_file").unwrap_or_default().to_owned();
        let by_hand = "give it a configuration file (CONFIG REWRITE needs one too), or put the file in place by hand";
        if config.is_empty() {
            return Err(SourceError::hint(
                format!("{} was started without a configuration file: how to start it again is not known", server.name),
                by_hand,
            ));
        }
        let text = std::fs::read_to_string(&config).map_err(|source| SourceError::File {
            action: "read",
            path: PathBuf::from(&config),
            source,
        })?;
        if let Some((name, file, live)) = differs(&text, settings) {
            return Err(SourceError::hint(
                format!(
                    "{} runs with {name} {live:?}, and {config} says {file:?}: started again it would differ",
                    server.name
                ),
                "write the setting into the file (CONFIG REWRITE), or start the server from the file as it is",
            ));
        }
        let program = program(info, &process, &comm)
            .ok_or_else(|| SourceError::hint(format!("the program of {} is not where it was", server.name), by_hand))?;
        warnings.push(format!("{} is not run by systemd: it is started again in the background", server.name));
        Ok(Runs::Config { program, config, cwd: PathBuf::from(dir) })
    }

    fn by_systemd(&self, server: &Server, pid: u32, unit: String) -> Result<Runs, SourceError> {
        let command = Command::new(["systemctl", "show", "--property=MainPID", "--value", "--", &unit]);
        let command = command.timeout(self.deadline.left()).cancel(&self.linked.cancel).dir("/");
        let out = HostPlace::new().output(command, 4096)?;
        if String::from_utf8_lossy(&out).trim() != pid.to_string() {
            return Err(SourceError::hint(
                format!("{} was started by something within {unit}, which is not its own unit", server.name),
                "stop it there and put the file in place by hand, or give it a unit of its own",
            ));
        }
        match account::is_root() {
            true => Ok(Runs::Unit { unit }),
            false => Err(SourceError::hint(
                format!("{} is run by systemd as {unit}, which only root may stop", server.name),
                "run this as root",
            )),
        }
    }
}

pub(super) fn ask_info(server: &Server) -> Result<Info, SourceError> {
    match server.ask(&["INFO"])? {
        Answer::Text(text) => Ok(Info::parse(&text)),
        Answer::Refused(why) => Err(SourceError::hint(
            format!("{} does not tell about itself: {why}", server.name),
            "let the user of this source ask INFO (ACL: +info)",
        )),
    }
}

pub(super) fn process_id(server: &Server, info: &Info) -> Result<u32, SourceError> {
    let pid = info.get("process_id").and_then(|v| v.parse().ok());
    pid.ok_or_else(|| SourceError::problem(format!("{} does not tell its process", server.name)))
}

/// What cannot be put back, and what a person should know of it.
fn refuse(server: &Server, info: &Info, facts: &Facts, warnings: &mut Vec<String>) -> Result<(), SourceError> {
    let name = &server.name;
    let is = |key: &str, value: &str| info.get(key) == Some(value);
    if is("loading", "1") || is("async_loading", "1") {
        return Err(server.loading());
    }
    if is("redis_mode", "sentinel") {
        return Err(SourceError::hint(format!("{name} is a sentinel, which holds no data"), "name the server itself"));
    }
    if is("role", "slave") {
        return Err(SourceError::hint(
            format!("{name} is a replica: it would take its master's data again"),
            "put the data back into the master",
        ));
    }
    if is("cluster_enabled", "1") {
        return Err(SourceError::hint(
            format!("{name} is a node of a cluster: its keys belong to its slots, which may have moved"),
            "load the file with the cluster's own tools (redis-cli --cluster import)",
        ));
    }
    let version = info.get("valkey_version").or(info.get("redis_version")).unwrap_or_default();
    let is_valkey = info.get("valkey_version").is_some();
    if let Some(most) = newest_rdb(version, is_valkey).filter(|most| *most < facts.rdb_version) {
        return Err(SourceError::hint(
            format!(
                "{name} is version {version} and reads RDB {most} at most; the stored file is RDB {}",
                facts.rdb_version
            ),
            "upgrade the server first",
        ));
    }
    let missing: Vec<&str> = facts.modules.iter().flatten().map(|(name, _)| name.as_str()).collect();
    let missing: Vec<&str> = missing.into_iter().filter(|m| !info.modules().contains_key(*m)).collect();
    if !missing.is_empty() {
        return Err(SourceError::problem(format!(
            "{name} lacks modules that the stored one had: {}",
            missing.join(", ")
        )));
    }
    let replicas = info.get("connected_slaves").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    if replicas > 0 {
        warnings.push(format!("{name} has {replicas} replicas, which will take over the data that is put back"));
    }
    let most: u64 = info.get("maxmemory").and_then(|v| v.parse().ok()).unwrap_or(0);
    if most > 0 && facts.used_memory.is_some_and(|used| used > most) {
        warnings.push(format!(
            "{name} may use {}, and the stored data used {}: keys may be evicted, or writes refused",
            crate::base::units::human_size(most),
            crate::base::units::human_size(facts.used_memory.unwrap_or(0)),
        ));
    }
    Ok(())
}

/// The newest RDB that a version is known to read.
fn newest_rdb(version: &str, is_valkey: bool) -> Option<u32> {
    let mut parts = version.split('.').map(|p| p.parse::<u32>().unwrap_or(0));
    let (major, minor) = (parts.next()?, parts.next().unwrap_or(0));
    match (is_valkey, major, minor) {
        (true, 7..=8, _) => Some(11),
        (true, ..) => None,
        (false, 5..=6, _) => Some(9),
        (false, 7, 0..=1) => Some(10),
        (false, 7, 2..=3) => Some(11),
        (false, 7, _) => Some(12),
        _ => None,
    }
}

/// Where a container's data folder really lies.
fn in_container(container: &Container, dir: &str) -> Result<Runs, SourceError> {
    let name = &container.name;
    if container.auto_remove {
        return Err(SourceError::hint(
            format!("container {name:?} is removed when it stops (--rm)"),
            "start it without that option",
        ));
    }
    let holds = |m: &&crate::place::inspect::Mount| Path::new(dir).starts_with(&m.destination);
    let mount = container.mounts.iter().filter(holds).max_by_key(|m| m.destination.as_os_str().len());
    let no_mount = || {
        SourceError::hint(
            format!("{dir} of container {name:?} lies in the container itself and goes with it"),
            "give it a volume, as its image's documentation shows",
        )
    };
    let mount = mount.ok_or_else(no_mount)?;
    if !mount.writable {
        return Err(SourceError::problem(format!("{dir} of container {name:?} is mounted read-only")));
    }
    let volume = match mount.kind.as_str() {
        "volume" => Some(mount.name.clone().ok_or_else(no_mount)?),
        "bind" => None,
        _ => return Err(no_mount()),
    };
    Ok(Runs::Container {
        name: name.clone(),
        image: container.image_id.clone(),
        volume,
        path: mount.source.clone(),
        destination: mount.destination.to_string_lossy().into_owned(),
    })
}

/// The systemd unit that a process belongs to.
fn unit(process: &Path) -> Option<String> {
    let text = std::fs::read_to_string(process.join("cgroup")).ok()?;
    let paths = text.lines().filter(|l| l.starts_with("0::") || l.contains(":name=systemd:"));
    let mut units = paths.filter_map(|l| l.rsplit('/').next()).filter(|last| last.ends_with(".service"));
    units.next().filter(|u| !u.starts_with("user@")).map(str::to_owned)
}

/// The program of a process. It may be a link whose target does something else by its own name.
fn program(info: &Info, process: &Path, comm: &str) -> Option<String> {
    let exe = std::fs::read_link(process.join("exe")).ok()?;
    let exe = PathBuf::from(exe.to_string_lossy().trim_end_matches(" (deleted)"));
    let beside = exe.parent()?.join(comm);
    let told = info.get("executable").map(PathBuf::from);
    let is_it = |p: &PathBuf| p.is_absolute() && std::fs::canonicalize(p).is_ok_and(|real| real == exe);
    told.into_iter().chain([beside]).find(is_it)?.to_str().map(str::to_owned)
}

/// A setting that the running server has otherwise than its file: name, the file's value, the live one.
fn differs(text: &str, live: &BTreeMap<String, String>) -> Option<(&'static str, String, String)> {
    let mut file: BTreeMap<String, String> = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim().trim_matches(|c| c == '"' || c == '\'').to_owned();
        // What stands in another file is not followed.
        if name.eq_ignore_ascii_case("include") {
            return None;
        }
        file.insert(name.to_ascii_lowercase(), value);
    }
    const DEFAULTS: [(&str, &str); 6] = [
        ("port", "6379"),
        ("unixsocket", ""),
        ("dbfilename", "dump.rdb"),
        ("appendonly", "no"),
        ("appendfilename", "appendonly.aof"),
        ("appenddirname", "appendonlydir"),
    ];
    for (name, default) in DEFAULTS {
        let (Some(live), file) = (live.get(name), file.get(name).map_or(default, String::as_str)) else { continue };
        if live != file {
            return Some((name, file.to_owned(), live.clone()));
        }
    }
    let dir = file.get("dir").map_or(".", String::as_str);
    let is_relative = !dir.starts_with('/') && !matches!(dir, "." | "./");
    let live_dir = live.get("dir").cloned().unwrap_or_default();
    (is_relative || (dir.starts_with('/') && std::fs::canonicalize(dir).ok() != std::fs::canonicalize(&live_dir).ok()))
        .then(|| ("dir", dir.to_owned(), live_dir))
}

/// A target in the form in which two policies are compared.
pub(super) fn is_local(target: &Target) -> bool {
    matches!(target, Target::Url(_) | Target::Host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_server_that_differs_from_its_file_is_seen() {
        let settings = live(&[("port", "7001"), ("appendonly", "yes"), ("dbfilename", "dump.rdb"), ("dir", "/tmp")]);
        let text = "# comment\nport 7000\nPort 7001\nappendonly \"yes\"\ndir /tmp\n";
        assert_eq!(differs(text, &settings), None, "the last one counts");
        assert_eq!(differs("port 7001\ndir /tmp\n", &settings).unwrap().0, "appendonly");
        assert_eq!(differs("appendonly yes\ndir /tmp\n", &settings).unwrap().1, "6379");
        assert_eq!(differs("port 7001\nappendonly yes\ndir data\n", &settings).unwrap().0, "dir");
        assert_eq!(differs("port 7001\nappendonly yes\ndir /usr\n", &settings).unwrap().0, "dir");
        assert_eq!(differs("port 7001\nappendonly yes\n", &settings), None);
        assert_eq!(differs("include /etc/other\n", &settings), None);
    }

    #[test]
    fn versions_and_what_they_read() {
        let known = [("6.2.14", false), ("7.0.15", false), ("7.2.4", false), ("7.4.1", false), ("8.0.1", true)];
        assert_eq!(known.map(|(v, is_valkey)| newest_rdb(v, is_valkey)), [9, 10, 11, 12, 11].map(Some));
        assert_eq!((newest_rdb("8.0.2", false), newest_rdb("9.0.0", true), newest_rdb("", false)), (None, None, None));
    }
}
