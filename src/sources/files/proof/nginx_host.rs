//! `nginx -t` by this host's own program, in a root that is put together from what was restored.
//!
//! Of the live host the program sees its own files (`/usr` and the like) and nothing of `/etc/nginx`, unless the
//! snapshot holds only a part of it: then the rest is the live one's, read from the main file on, and the check says so.

use super::super::view::{Host, Kind, View, normal};
use super::inside::Restored;
use super::nginx::{Outcome, ROUNDS, Scene, Tested, hosts_file, unresolved};
use super::nginx_container;
use super::nginx_read::Referred;
use super::stage::Stage;
use crate::place::{Command, HostPlace, PlaceError};
use crate::policy::model::SourceSpec;
use crate::sources::SourceError;
use crate::sources::cell::Cell;
use crate::sources::run::run;
use globset::{GlobBuilder, GlobMatcher};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where programs are that an ordinary user's PATH does not name.
const SYSTEM_PATHS: &[&str] = &[
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/local/nginx/sbin",
    "/usr/local/openresty/nginx/sbin",
    "/opt/nginx/sbin",
    "/sbin",
];
/// What packages bring beside `/usr`, and configurations count on.
const PACKAGED: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/mime.types",
    "/etc/localtime",
];
const SYSTEM_DIRS: &[&str] = &["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];
/// Logs that a container's configuration sends to its output.
const OUTPUTS: &[&str] = &["/dev/stdout", "/dev/stderr"];
const FILE_BYTES: u64 = 64 << 20;
const OUTPUT_BYTES: usize = 1 << 20;
const ASK_LIMIT: Duration = Duration::from_secs(20);
/// Files below `/usr` that were captured; more is no configuration.
const MAX_OVER: usize = 500;

/// How the program was built.
struct Program {
    path: PathBuf,
    version: String,
    main: PathBuf,
    written: Vec<PathBuf>,
}

pub(super) fn test(scene: &Scene<'_>) -> Result<Outcome, SourceError> {
    let trial = scene.trial;
    let program = match find(scene)? {
        Ok(program) => program,
        Err(why) => return nginx_container::by_any_image(scene, why),
    };
    let file = |source| SourceError::File { action: "put together", path: trial.scratch.to_path_buf(), source };
    let stage = Stage::new(trial.scratch.join("root")).map_err(file)?;
    stage.lay(scene.restored).map_err(file)?;
    let main = scene.known.and_then(|known| known.main.clone()).unwrap_or_else(|| program.main.clone());
    let mut notes = Vec::new();
    if !stage.has(&main) {
        notes.push(format!("{} and what else was not captured is the live one's", main.display()));
        if let Err(why) = live_rest(scene, &stage, &main)? {
            return Ok(Err(why));
        }
    }
    let referred = Referred::read(&stage.view(), &main)?;
    notes.extend(of_other_sources(scene, &stage, &referred));
    let over = furnish(trial.scratch, &stage, &program, &referred).map_err(file)?;
    let mut hosts = referred.hosts.clone();
    stage.replace(Path::new("/etc/hosts"), hosts_file(&hosts).as_bytes(), 0o644).map_err(file)?;
    Cell::give(stage.root()).map_err(file)?;
    let memory = trial.drill.memory;
    let cell = match Cell::open(stage.root(), memory, trial.timeout, trial.cancel)? {
        Ok(cell) => cell,
        Err(why) => return nginx_container::by_any_image(scene, why),
    };
    let binds = binds(&stage, &program, over);
    let argv = [program.path.to_string_lossy(), "-t".into(), "-c".into(), main.to_string_lossy()];
    let mut tested = Tested { main: main.clone(), by: program.version.clone(), notes, ..Tested::default() };
    tested.server_names = referred.server_names;
    for _ in 0..ROUNDS {
        let (_, exit) = run(&HostPlace::new(), cell.rooted(&binds, &argv), OUTPUT_BYTES)?;
        (tested.code, tested.stderr) = (exit.code, exit.stderr);
        match unresolved(&tested.stderr).filter(|name| hosts.insert(name.clone())) {
            Some(_) => {
                stage.replace(Path::new("/etc/hosts"), hosts_file(&hosts).as_bytes(), 0o644).map_err(file)?;
                Cell::give(stage.root()).map_err(file)?;
            }
            None => break,
        }
    }
    Ok(Ok(tested))
}

/// The host's nginx and what it was built with.
fn find(scene: &Scene<'_>) -> Result<Result<Program, String>, SourceError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(SYSTEM_PATHS.iter().map(PathBuf::from));
    let names = ["nginx", "openresty"];
    let Some(path) = dirs.flat_map(|dir| names.map(|n| dir.join(n))).find(|p| p.is_file()) else {
        return Ok(Err("this host has no nginx, and the policy names no container in which one runs".into()));
    };
    let path = path.canonicalize().unwrap_or(path);
    let ask = Command::new([path.to_string_lossy().into_owned(), "-V".into()]).timeout(ASK_LIMIT);
    let told = match run(&HostPlace::new(), ask.cancel(scene.trial.cancel), OUTPUT_BYTES) {
        Ok((_, exit)) => exit.stderr,
        Err(PlaceError::Cancelled(cancelled)) => return Err(cancelled.into()),
        Err(e) => return Ok(Err(e.to_string())),
    };
    let version = told.lines().find_map(|l| l.split_once("version: ")).map(|(_, v)| v.to_owned());
    let option = |name: &str| {
        let words = told.split_whitespace();
        words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(PathBuf::from).next()
    };
    let prefix = option("--prefix").unwrap_or_else(|| "/usr/local/nginx".into());
    let main = prefix.join(option("--conf-path").unwrap_or_else(|| "conf/nginx.conf".into()));
    let built = ["--http-log-path", "--error-log-path", "--lock-path", "--pid-path"].map(&option);
    let temp = ["client-body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|n| option(&format!("--http-{n}-temp-path")));
    let written = built.into_iter().chain(temp).flatten().map(|p| prefix.join(p));
    let mut written: Vec<PathBuf> = written.filter_map(|p| p.parent().map(Path::to_path_buf)).collect();
    if prefix != Path::new("/etc/nginx") {
        written.push(prefix.join("logs"));
    }
    Ok(Ok(Program { version: version.unwrap_or_else(|| "nginx".into()), path, main, written }))
}

/// The live host's files of configuration, without those paths that the snapshot holds: there, what is missing is
/// missing.
struct Rest<'a> {
    staged: Restored,
    captured: &'a Captured,
}

impl View for Rest<'_> {
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        match self.staged.kind(path)? {
            None if !self.captured.holds(path) => Host.kind(path),
            kind => Ok(kind),
        }
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = self.staged.read_dir(path).unwrap_or_default();
        if !self.captured.holds(path) {
            let live = Host.read_dir(path).unwrap_or_default();
            names.extend(live.into_iter().filter(|n| !self.captured.holds(&path.join(n))));
            names.sort();
            names.dedup();
        }
        Ok(names)
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        match self.staged.read(path, limit) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.captured.holds(path) => {
                match self.captured.behind(path) {
                    Some(captured) => self.staged.read(&captured, limit),
                    None => Host.read(path, limit),
                }
            }
            read => read,
        }
    }
}

/// The paths that the policy names: captured whole.
pub(super) struct Captured {
    named: Vec<PathBuf>,
    globs: Vec<GlobMatcher>,
}

impl Captured {
    pub(super) fn of(scene: &Scene<'_>) -> Captured {
        let mut captured = Captured { named: Vec::new(), globs: Vec::new() };
        let sources = scene.trial.policy.map(|p| p.sources.as_slice()).unwrap_or_default();
        let paths = sources.iter().chain(scene.trial.source).filter_map(|source| match &source.spec {
            SourceSpec::Nginx(spec) => Some(&spec.paths),
            SourceSpec::Certificates(spec) => Some(&spec.paths),
            _ => None,
        });
        for path in paths.flatten() {
            match super::super::plan::has_wildcards(path) {
                false => captured.named.push(path.into()),
                true => captured
                    .globs
                    .extend(GlobBuilder::new(path).literal_separator(true).build().map(|g| g.compile_matcher())),
            }
        }
        captured.named.extend(scene.known.into_iter().flat_map(|k| k.included_outside.iter().cloned()));
        captured
    }

    pub(super) fn holds(&self, path: &Path) -> bool {
        self.named.iter().any(|named| path.starts_with(named))
            || self.globs.iter().any(|glob| path.ancestors().any(|above| glob.is_match(above)))
    }

    /// What was captured, where a live link leads to it: a site that is available was named, and it is enabled.
    fn behind(&self, path: &Path) -> Option<PathBuf> {
        let Ok(Some(Kind::Symlink(target))) = Host.kind(path) else { return None };
        let target = normal(&path.parent().unwrap_or(Path::new("/")).join(target));
        self.holds(&target).then_some(target)
    }
}

/// Takes over what the live configuration consists of beside the captured part.
fn live_rest(scene: &Scene<'_>, stage: &Stage, main: &Path) -> Result<Result<(), String>, SourceError> {
    let captured = Captured::of(scene);
    let staged = stage.view();
    let rest = Rest { staged, captured: &captured };
    if rest.kind(main).ok().flatten().is_none() {
        let why = format!("the snapshot holds no main file of nginx, and this host has no {}", main.display());
        return Ok(Err(why));
    }
    let referred = Referred::read(&rest, main)?;
    let needed = referred.files.iter().chain(&referred.needed);
    let needed: BTreeSet<&PathBuf> = needed.filter(|path| !stage.has(path) && !captured.holds(path)).collect();
    for path in needed {
        let brought = match captured.behind(path) {
            Some(target) => stage.link(path, &target),
            None => stage.bring(path, FILE_BYTES).map(drop),
        };
        if let Err(e) = brought {
            let why = format!("{} is part of the live configuration and cannot be read: {e}", path.display());
            return Ok(Err(why));
        }
    }
    Ok(Ok(()))
}

/// Takes over files that a source of plain files holds, whose trees are not laid out; what was taken, in words.
fn of_other_sources(scene: &Scene<'_>, stage: &Stage, referred: &Referred) -> Vec<String> {
    let sources = scene.trial.policy.map(|p| p.sources.as_slice()).unwrap_or_default();
    let held = |path: &Path| {
        sources.iter().find(|source| match &source.spec {
            SourceSpec::Files(spec) => spec.paths.iter().any(|p| path.starts_with(p)),
            _ => false,
        })
    };
    let mut notes = Vec::new();
    for path in referred.needed.iter().chain(&referred.includes).filter(|path| !stage.has(path)) {
        if let Some(source) = held(path)
            && stage.bring(path, FILE_BYTES).unwrap_or(false)
        {
            notes.push(format!("{} is the live one, for source {} holds it", path.display(), source.name));
        }
    }
    notes
}

/// Puts beside the restored files what any nginx needs; restored files below `/usr`, which the host's own will cover,
/// move to where they can be bound over them.
fn furnish(scratch: &Path, stage: &Stage, program: &Program, referred: &Referred) -> io::Result<Vec<(String, String)>> {
    let mut over = Vec::new();
    if stage.root().join("usr").symlink_metadata().is_ok() {
        let aside = scratch.join("over");
        std::fs::create_dir(&aside)?;
        std::fs::rename(stage.root().join("usr"), aside.join("usr"))?;
        Cell::give(&aside)?;
        let files = Restored::new([aside]).walk()?.into_iter().filter(|i| i.kind == Kind::File);
        let there = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_file());
        let pairs = files.filter(|i| there(&i.path)).take(MAX_OVER);
        over.extend(pairs.map(|i| (i.real.to_string_lossy().into_owned(), i.path.to_string_lossy().into_owned())));
    }
    for dir in referred.written.iter().chain(&program.written) {
        // Below what is bound it is there or cannot be made.
        if !dir.starts_with("/usr") {
            stage.dir(dir)?;
        }
    }
    for dir in ["/tmp", "/run", "/var/run", "/var/log/nginx", "/var/cache/nginx", "/var/lib/nginx"] {
        // A restored link in its place is the configuration's business.
        let _ = stage.dir(Path::new(dir));
    }
    for file in PACKAGED.iter().map(Path::new) {
        // What this host lacks, the configuration may not need.
        let _ = stage.bring(file, FILE_BYTES);
    }
    for device in DEVICES.iter().chain(OUTPUTS) {
        stage.replace(Path::new(device), b"", 0o600)?;
    }
    let uid = Cell::uid_inside();
    let users: BTreeSet<&str> =
        referred.users.iter().map(String::as_str).chain(["root", "nobody", "www-data", "nginx"]).collect();
    let passwd: String = users.iter().map(|u| format!("{u}:x:{uid}:{uid}::/:/bin/false\n")).collect();
    let group: String = users.iter().chain(&["nogroup"]).map(|u| format!("{u}:x:{uid}:\n")).collect();
    stage.replace(Path::new("/etc/passwd"), passwd.as_bytes(), 0o644)?;
    stage.replace(Path::new("/etc/group"), group.as_bytes(), 0o644)?;
    stage.replace(Path::new("/etc/nsswitch.conf"), b"passwd: files\ngroup: files\nhosts: files\n", 0o644)?;
    Ok(over)
}

/// What of the host is bound into the stage.
fn binds(stage: &Stage, program: &Program, over: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut binds = Vec::new();
    let mut add = |from: &str, to: &str| binds.push((from.to_owned(), to.to_owned()));
    for dir in SYSTEM_DIRS {
        let path = Path::new(dir);
        match (std::fs::read_link(path), path.is_dir()) {
            (Ok(target), _) => {
                let _ = stage.link(path, &target);
            }
            (Err(_), true) if stage.dir(path).is_ok() => add(dir, dir),
            _ => {}
        }
    }
    // A program of its own folder, such as /opt/nginx.
    let own = program.path.ancestors().filter(|a| a.components().count() == 3).last().and_then(Path::to_str);
    if let Some(own) = own.filter(|own| !SYSTEM_DIRS.iter().any(|dir| Path::new(own).starts_with(dir)))
        && stage.dir(Path::new(own)).is_ok()
    {
        add(own, own);
    }
    DEVICES.iter().for_each(|device| add(device, device));
    OUTPUTS.iter().for_each(|output| add("/dev/null", output));
    binds.extend(over);
    binds
}
