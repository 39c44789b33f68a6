//! The same program in a helper container: for trees that only the engine reaches.
//!
//! The container is made of some image that is here, and uses nothing of it: this program and the libraries that it has
//! loaded are mounted into it, read-only. It sees the volumes, or the host's root, and nothing of any network. Each order
//! is one command in it: a line of JSON on standard input, behind it what the order reads (a listing, then a tar), and a
//! line of JSON as its answer.

use super::super::SourceError;
use super::super::project::Places;
use super::job::Job;
use super::placing::Through;
use super::survey::Survey;
use super::{again, back, discard_new, discard_old, first, look, survey, switch};
use crate::base::cancel::Cancel;
use crate::place::helper::{Helper, HelperMount, HelperSpec, TreeSource};
use crate::place::{Command, ContainerPlace, Docker, Place, PlaceError};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The word by which the program knows that it is the one in the container.
pub const WORD: &str = "internal-tree-helper";
/// The word by which it only waits.
const WAIT: &str = "wait";
const HOST: &str = "/lifeboat/host";
const FOLDER: &str = "/lifeboat/folder";
const PROGRAM: &str = "/lifeboat/bin/lifeboat";
const LIBRARIES: &str = "/lifeboat/lib";
/// Past this it is an orphan, whatever its owner says.
const LIFETIME: Duration = Duration::from_secs(2 * 86_400);
const MAX_ORDER: u64 = 64 << 20;
const MAX_ANSWER: usize = 16 << 20;

/// What shall be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    Survey,
    First,
    Again,
    Look,
    Switch,
    Back,
    DiscardNew,
    DiscardOld,
}

#[derive(Serialize, Deserialize)]
struct Request {
    order: Order,
    job: Job,
    /// Length of the listing that follows; what is behind it is the tar.
    listing_bytes: u64,
    on_host: bool,
}

/// What it came to.
#[derive(Default, Serialize, Deserialize)]
pub struct Answer {
    #[serde(default)]
    pub survey: Option<Survey>,
    #[serde(default)]
    pub redo: bool,
    #[serde(default)]
    pub notes: Vec<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

/// The helper of one source: made when first needed, gone with this.
pub struct Helpers {
    places: Places,
    running: Mutex<Option<(Through, bool, Helper)>>,
}

impl Helpers {
    pub fn new(places: Places) -> Self {
        Self { places, running: Mutex::default() }
    }

    /// Carries an order out; `input` is what it reads, and how much of it is the listing.
    pub fn run(
        &self,
        through: &Through,
        order: Order,
        job: &Job,
        input: Option<(&mut dyn Read, u64)>,
        cancel: &Cancel,
    ) -> Result<Answer, SourceError> {
        let docker = self.places.docker()?;
        let id = self.helper(&docker, through, &job.folder)?;
        let on_host = through.volumes.is_empty();
        let mut job = job.clone();
        if !on_host {
            job.folder = FOLDER.into();
        }
        let (mut nothing, listing_bytes) = (io::empty(), input.as_ref().map_or(0, |i| i.1));
        let stream = input.map_or(&mut nothing as &mut dyn Read, |i| i.0);
        let request = Request { order, job, listing_bytes, on_host };
        let answer = self.exchange(&docker, &id, &request, stream, cancel)?;
        match answer.error {
            Some(problem) => Err(SourceError::Problem { problem, hint: answer.hint }),
            None => Ok(answer),
        }
    }

    fn exchange(
        &self,
        docker: &Docker,
        id: &str,
        request: &Request,
        stream: &mut dyn Read,
        cancel: &Cancel,
    ) -> Result<Answer, SourceError> {
        let place = ContainerPlace::named(docker, id);
        let what = "write to the helper in";
        let mut running = place.start(Command::new(program()?.1).stdin().cancel(cancel))?;
        let mut stdin = running.stdin().ok_or_else(|| SourceError::problem("the helper has no input"))?;
        let stdout = running.stdout().ok_or_else(|| SourceError::problem("the helper has no output"))?;
        let mut line = serde_json::to_vec(request).map_err(|e| SourceError::problem(e.to_string()))?;
        line.push(b'\n');
        // A helper that failed reads no further, and its answer says why.
        let mut sent = stdin.write_all(&line);
        let mut buffer = vec![0; 64 << 10];
        while sent.is_ok() {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => sent = stdin.write_all(&buffer[..n]),
                Err(e) => return Err(SourceError::File { action: "read", path: "the snapshot".into(), source: e }),
            }
        }
        drop(stdin);
        let mut text = Vec::new();
        let read = stdout.take(MAX_ANSWER as u64).read_to_end(&mut text);
        let exit = running.wait()?;
        if let Ok(answer) = serde_json::from_slice::<Answer>(&text) {
            return Ok(answer);
        }
        sent.and(read.map(drop)).map_err(|e| PlaceError::from_io(what, place.describe(), e))?;
        let said = super::super::run::one_line(&exit.stderr);
        Err(SourceError::problem(format!("the helper container ended with status {}: {said}", exit.code)))
    }

    fn helper(&self, docker: &Docker, through: &Through, folder: &Path) -> Result<String, SourceError> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anything is laid out there is no folder to mount.
        let with_folder = folder.is_dir();
        if let Some((known, had_folder, helper)) = slot.as_ref()
            && known == through
            && (*had_folder || !with_folder)
        {
            return Ok(helper.id().to_owned());
        }
        *slot = None;
        if !docker.is_local() {
            return Err(SourceError::hint(
                format!("the engine at {} is another machine's", docker.endpoint()),
                "a tree is put back on the machine where it lies: run lifeboat there",
            ));
        }
        let image =
            docker.any_image()?.ok_or_else(|| SourceError::problem("there is no image to make a container of"))?;
        let (mut mounts, mut command) = program()?;
        command.push(WAIT.into());
        let mount =
            |source: TreeSource, target: &str, read_only| HelperMount { source, target: target.into(), read_only };
        if through.volumes.is_empty() {
            mounts.push(mount(TreeSource::Path("/".into()), HOST, false));
        } else if with_folder {
            mounts.push(mount(TreeSource::Path(folder.into()), FOLDER, false));
        }
        for (name, dir) in &through.volumes {
            mounts.push(mount(TreeSource::Volume(name.clone()), &dir.to_string_lossy(), false));
        }
        let helper = docker.helper(&HelperSpec {
            role: "place".into(),
            image,
            command,
            env: Vec::new(),
            user: Some("0:0".into()),
            mounts,
            tmpfs: Vec::new(),
            memory_bytes: None,
            lifetime: LIFETIME,
        })?;
        helper.start()?;
        let id = helper.id().to_owned();
        *slot = Some((through.clone(), with_folder, helper));
        Ok(id)
    }
}

/// This program's mounts, and the command that runs it there.
fn program() -> Result<(Vec<HelperMount>, Vec<String>), SourceError> {
    let failed = |path: &str| {
        let path = PathBuf::from(path);
        move |source: io::Error| SourceError::File { action: "read", path, source }
    };
    let own = std::env::current_exe().map_err(failed("/proc/self/exe"))?;
    let mount = |source: &Path, target: String| HelperMount {
        source: TreeSource::Path(source.into()),
        target,
        read_only: true,
    };
    let mut mounts = vec![mount(&own, PROGRAM.into())];
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(failed("/proc/self/maps"))?;
    let mut loader = None;
    for line in maps.lines() {
        let Some(at) = line.find('/') else { continue };
        let path = Path::new(&line[at..]);
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let target = format!("{LIBRARIES}/{name}");
        if path == own || !name.contains(".so") || mounts.iter().any(|m| m.target == target) {
            continue;
        }
        if name.starts_with("ld-") || name.starts_with("ld.") {
            loader = Some(target.clone());
        }
        mounts.push(mount(path, target));
    }
    let mut command = match loader {
        Some(loader) => vec![loader, "--library-path".into(), LIBRARIES.into()],
        None => Vec::new(),
    };
    command.extend([PROGRAM.into(), WORD.into()]);
    Ok((mounts, command))
}

/// The program in the container: `wait` waits, anything else carries out the order on standard input.
pub fn serve(arguments: &[String], input: impl Read, mut output: impl Write) -> io::Result<()> {
    if arguments.first().is_some_and(|word| word == WAIT) {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    let mut input = BufReader::with_capacity(256 << 10, input);
    let answer = carry_out(&mut input).unwrap_or_else(|e| Answer {
        hint: e.way_out(),
        error: Some(chain(&e)),
        ..Answer::default()
    });
    serde_json::to_writer(&mut output, &answer)?;
    output.flush()
}

fn chain(error: &dyn std::error::Error) -> String {
    let texts = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}

fn carry_out(input: &mut impl BufRead) -> Result<Answer, SourceError> {
    let failed = |source: io::Error| SourceError::File { action: "read", path: "the order".into(), source };
    let mut line = Vec::new();
    input.by_ref().take(MAX_ORDER).read_until(b'\n', &mut line).map_err(failed)?;
    let Request { order, job, listing_bytes, on_host } = serde_json::from_slice(&line).map_err(|e| failed(e.into()))?;
    if on_host {
        rustix::process::chroot(HOST).map_err(|e| super::fault("enter", HOST, e))?;
        rustix::process::chdir("/").map_err(|e| super::fault("enter", "/", e))?;
    }
    let cancel = Cancel::new();
    let mut answer = Answer::default();
    match order {
        Order::Survey => answer.survey = Some(survey(&job, input, &cancel)?),
        Order::First | Order::Again => {
            // The listing goes first in the pipe, and is needed before the tar: it waits in a file without a name.
            let mut kept = tempfile_in(&job.folder)?;
            io::copy(&mut input.by_ref().take(listing_bytes), &mut kept).map_err(failed)?;
            io::Seek::rewind(&mut kept).map_err(failed)?;
            let listing = (listing_bytes > 0).then_some(&mut kept as &mut dyn Read);
            answer.redo = match order {
                Order::First => first(&job, listing, input, &cancel)?,
                _ => again(&job, listing, input, &cancel)?,
            };
        }
        Order::Look => answer.redo = look(&job, &cancel)?,
        Order::Switch => switch(&job)?,
        Order::Back => answer.notes = back(&job)?,
        Order::DiscardNew => discard_new(&job)?,
        Order::DiscardOld => discard_old(&job)?,
    }
    Ok(answer)
}

fn tempfile_in(dir: &Path) -> Result<std::fs::File, SourceError> {
    tempfile::tempfile_in(dir).map_err(|source| SourceError::File {
        action: "make a file in",
        path: dir.into(),
        source,
    })
}
