//! Commands inside containers, by the engine's exec.
//!
//! What an exec does not do by itself, and this module does:
//! - It does not say its process id, and dropping it does not end its command. So the command is started by the
//!   container's own shell, which first writes its id to standard output and then becomes the command; it is ended by
//!   a second exec. In an image without a shell the id comes from the engine, and the signal from this host.
//! - Its input ends by `shutdown()` only, and a command that ends before it has read its input leaves the writer
//!   blocked: the end of output aborts the writer.
//! - A program that is missing is told on standard output, with status 126 or 127: that text is never output.
//! - An exit status that cannot be read is a failure.
//!
//! The environment goes through the exec's own field, never through arguments. The shell's name (`$0`) and a variable
//! carry the mark of this process, by which a later run finds what a killed one left running ([`super::orphans`]).

use super::docker::{Docker, engine_error};
use super::inside::InnerSocket;
use super::inspect::{Container, ContainerSummary};
use super::orphans::{MARK, RUN_VARIABLE, SHELL, WRAPPER, end_exec, sweep};
use super::stream::{ChannelReader, ChannelWriter, Item};
use super::watch::{TICK, Tail, Watch, lock};
use super::{Command, Exit, Place, PlaceError, Running, owner};
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const ANNOUNCEMENT: &str = "lifeboat-pid:";
/// Where the engine tells that the program could not be run.
const REFUSAL: &[u8] = b"OCI runtime exec failed";
/// What is kept of such a text, and the most that is held back to find out.
const REFUSAL_BYTES: usize = 4 << 10;

/// Which container: looked up anew for every command, because containers are recreated.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    Name(String),
    Service { project: String, service: String },
}

/// A container as a place to run commands in.
#[derive(Debug, Clone)]
pub struct ContainerPlace {
    docker: Docker,
    which: Which,
}

impl ContainerPlace {
    /// A container by name or id.
    pub fn named(docker: &Docker, name: impl Into<String>) -> Self {
        Self { docker: docker.clone(), which: Which::Name(name.into()) }
    }

    /// The first running container of a compose service.
    pub fn service(docker: &Docker, project: impl Into<String>, service: impl Into<String>) -> Self {
        let which = Which::Service { project: project.into(), service: service.into() };
        Self { docker: docker.clone(), which }
    }

    /// The container as it is now; an error unless it runs.
    pub fn resolve(&self) -> Result<Container, PlaceError> {
        let (container, running) = match &self.which {
            Which::Name(name) => (self.docker.inspect(name)?, Vec::new()),
            Which::Service { project, service } => {
                let all = self.docker.project(project)?;
                let mine: Vec<_> =
                    all.iter().filter(|c| c.compose().is_some_and(|labels| labels.service == *service)).collect();
                let best = mine.iter().find(|c| c.state == "running").or(mine.first());
                let best = best.ok_or_else(|| PlaceError::NoContainer { name: self.describe() })?;
                (self.docker.inspect(&best.id)?, running_services(&all))
            }
        };
        if container.is_running() {
            Ok(container)
        } else {
            Err(PlaceError::NotRunning { name: container.name, state: container.state, running })
        }
    }
}

/// Services with a container that runs, each once, in order.
fn running_services(containers: &[ContainerSummary]) -> Vec<String> {
    let running = containers.iter().filter(|c| c.state == "running");
    let services: BTreeSet<String> = running.filter_map(|c| c.compose().map(|labels| labels.service)).collect();
    services.into_iter().collect()
}

impl Place for ContainerPlace {
    fn describe(&self) -> String {
        match &self.which {
            Which::Name(name) => format!("container {name}"),
            Which::Service { project, service } => format!("service {service} of project {project}"),
        }
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        let watch = Watch::new(&command, self.describe());
        if watch.tool.is_empty() || watch.tool.starts_with('-') {
            return Err(watch.io("start", io::Error::new(io::ErrorKind::InvalidInput, "no program named")));
        }
        watch.check()?;
        let container = self.resolve()?;
        if lock(self.docker.swept()).insert(container.id.clone()) {
            sweep(&self.docker, &container);
        }
        let shell_less = lock(self.docker.shell_less()).contains(&container.image_id);
        if !shell_less {
            let mut running = ExecRunning::begin(&self.docker, &container, &command, &self.describe(), true)?;
            match running.await_announcement()? {
                Started::Yes => return Ok(Box::new(running)),
                Started::NoFolder(text) => {
                    return Err(running.watch.io("enter the folder for", io::Error::other(text)));
                }
                Started::NoShell => {}
            }
            lock(self.docker.shell_less()).insert(container.image_id.clone());
        }
        Ok(Box::new(ExecRunning::begin(&self.docker, &container, &command, &self.describe(), false)?))
    }

    fn socket(&self, path: &Path) -> Option<InnerSocket> {
        self.docker.socket_inside(&self.resolve().ok()?, path)
    }
}

/// What became of the shell that announces the process id.
enum Started {
    Yes,
    NoShell,
    /// The command's folder is not there, as the engine tells it.
    NoFolder(String),
}

/// What the pump has found out, for whoever waits.
#[derive(Default)]
struct Shared {
    tail: Mutex<Tail>,
    /// The engine's text instead of the command's output.
    refusal: Mutex<Option<String>>,
    failure: Mutex<Option<String>>,
}

struct ExecRunning {
    docker: Docker,
    exec: String,
    container: String,
    user: Option<String>,
    /// Process id within the container, once announced.
    pid: Option<u32>,
    /// It was started through the container's shell.
    announces: bool,
    watch: Arc<Watch>,
    shared: Arc<Shared>,
    announced: oneshot::Receiver<u32>,
    stdin: Option<ChannelWriter>,
    stdout: Option<ChannelReader>,
    pump: JoinHandle<()>,
    done: bool,
}

impl ExecRunning {
    fn begin(
        docker: &Docker,
        container: &Container,
        command: &Command,
        place: &str,
        announce: bool,
    ) -> Result<Self, PlaceError> {
        let mut argv = Vec::new();
        if announce {
            argv.extend([SHELL.into(), "-c".into(), WRAPPER.into(), format!("{MARK}{}", owner::mark())]);
        }
        argv.extend(command.argv.iter().cloned());
        let mut env: Vec<String> =
            command.env.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect();
        env.push(format!("{RUN_VARIABLE}={}", owner::mark()));
        let options = CreateExecOptions {
            cmd: Some(argv),
            env: Some(env),
            user: command.user.clone(),
            working_dir: command.dir.as_ref().map(|dir| dir.to_string_lossy().into_owned()),
            attach_stdin: Some(command.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        let tool = command.argv.first().cloned().unwrap_or_default();
        let create = docker.client().create_exec(&container.id, options);
        let exec = docker.call(format!("prepare {tool} in {place}"), create)?.id;
        let watch = Arc::new(Watch::new(command, place.to_owned()));
        let started = docker
            .client()
            .start_exec(&exec, Some(StartExecOptions { output_capacity: Some(64 << 10), ..Default::default() }));
        let (output, input) = match docker.call(format!("start {tool} in {place}"), started)? {
            StartExecResults::Attached { output, input } => (output, input),
            StartExecResults::Detached => {
                return Err(watch.io("start", io::Error::other("the engine detached from it")));
            }
        };
        let shared = Arc::new(Shared::default());
        let (sender, stdout) = ChannelReader::new(docker.handle(), watch.clone());
        let (announcer, announced) = oneshot::channel();
        let (stdin, writer) = if command.stdin {
            let (stdin, pieces) = ChannelWriter::new(docker.handle(), watch.clone());
            (Some(stdin), docker.handle().spawn(write_input(input, pieces)))
        } else {
            // Nothing is attached to it, but dropping it would not end anything either.
            (None, docker.handle().spawn(async move { drop(input) }))
        };
        let pump = Pump {
            docker: docker.clone(),
            exec: exec.clone(),
            sender,
            announcer: announce.then_some(announcer),
            head: Vec::new(),
            head_is_open: true,
            shared: shared.clone(),
            watch: watch.clone(),
        };
        let pump = docker.handle().spawn(async move {
            pump.run(output).await;
            writer.abort();
        });
        Ok(Self {
            docker: docker.clone(),
            exec,
            container: container.id.clone(),
            user: command.user.clone(),
            pid: None,
            announces: announce,
            watch,
            shared,
            announced,
            stdin,
            stdout: Some(stdout),
            pump,
            done: false,
        })
    }

    /// Waits until the shell has told its process id, or has not.
    fn await_announcement(&mut self) -> Result<Started, PlaceError> {
        loop {
            self.watch.check()?;
            let announced = &mut self.announced;
            let handle = self.docker.handle();
            match super::docker::run_on(&handle, async { tokio::time::timeout(TICK, announced).await }) {
                Ok(Ok(pid)) => {
                    self.pid = Some(pid);
                    return Ok(Started::Yes);
                }
                Ok(Err(_closed)) => break,
                Err(_late) => {}
            }
        }
        // The stream ended without it: the shell could not be run, or the engine broke off.
        let code = self.exit_code()?;
        self.done = true;
        let refusal = lock(&self.shared.refusal).clone().unwrap_or_default();
        match code {
            126 | 127 if refusal.contains("chdir to cwd") => Ok(Started::NoFolder(first_line(&refusal))),
            126 | 127 => Ok(Started::NoShell),
            _ => Err(self.watch.io("start", io::Error::other(format!("its shell ended with status {code}")))),
        }
    }

    /// The exit status, once the command has ended; observes the limits.
    fn exit_code(&mut self) -> Result<i32, PlaceError> {
        let mut nap = Duration::from_millis(2);
        let mut unreadable_since = None;
        loop {
            self.watch.check()?;
            let state = self
                .docker
                .call(format!("inspect exec of {}", self.watch.tool), self.docker.client().inspect_exec(&self.exec))?;
            match (state.running, state.exit_code) {
                (Some(false), Some(code)) => {
                    return i32::try_from(code).map_err(|_| {
                        self.watch.io("wait for", io::Error::other(format!("its exit status {code} makes no sense")))
                    });
                }
                (Some(true), _) => unreadable_since = None,
                // Ended, but the status is not there yet: it comes within moments or never.
                _ => {
                    let since = *unreadable_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > Duration::from_secs(5) {
                        return Err(self.watch.io("wait for", io::Error::other("its exit status cannot be read")));
                    }
                }
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(TICK);
        }
    }

    fn wait_inner(&mut self) -> Result<Exit, PlaceError> {
        self.stdin = None;
        if let Some(mut stdout) = self.stdout.take() {
            io::copy(&mut stdout, &mut io::sink()).map_err(|e| self.watch.read_error(e))?;
        }
        self.watch.touch();
        let code = self.exit_code()?;
        self.done = true;
        // What the command wrote last may still be on its way.
        let deadline = Instant::now() + Duration::from_secs(1);
        while !self.pump.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.pump.abort();
        if let Some(failure) = lock(&self.shared.failure).take() {
            return Err(self.watch.io("read output of", io::Error::other(failure)));
        }
        if lock(&self.shared.refusal).is_some() || self.watch.says_tool_missing(code) {
            return Err(self.watch.tool_missing());
        }
        Ok(Exit { code, stderr: lock(&self.shared.tail).text() })
    }

    /// Ends the command, not only the connection to it.
    fn end(&mut self) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.watch.end();
        self.stdin = None;
        self.pump.abort();
        if let Ok(pid) = self.announced.try_recv() {
            self.pid = Some(pid);
        }
        end_exec(&self.docker, &self.container, &self.exec, self.user.as_deref(), self.pid, self.announces);
    }
}

impl Running for ExecRunning {
    fn stdin(&mut self) -> Option<Box<dyn Write + Send>> {
        self.stdin.take().map(|pipe| Box::new(pipe) as _)
    }

    fn stdout(&mut self) -> Option<Box<dyn Read + Send>> {
        self.stdout.take().map(|pipe| Box::new(pipe) as _)
    }

    fn wait(mut self: Box<Self>) -> Result<Exit, PlaceError> {
        self.wait_inner()
    }
}

impl Drop for ExecRunning {
    fn drop(&mut self) {
        self.end();
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Writes what comes through the channel; its end is the end of the command's input.
async fn write_input(
    mut input: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
    mut pieces: mpsc::Receiver<Bytes>,
) {
    while let Some(piece) = pieces.recv().await {
        // A command that went away wants no more; its status tells why.
        if input.write_all(&piece).await.is_err() {
            return;
        }
    }
    let _ = input.shutdown().await;
}

/// Takes the engine's frames apart.
struct Pump {
    docker: Docker,
    exec: String,
    sender: mpsc::Sender<Item>,
    /// Present until the process id has been announced; absent from the start without a shell.
    announcer: Option<oneshot::Sender<u32>>,
    /// The first bytes of output, while it is not known what they are.
    head: Vec<u8>,
    head_is_open: bool,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
}

impl Pump {
    async fn run(
        mut self,
        mut output: impl futures_util::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Unpin,
    ) {
        while let Some(frame) = output.next().await {
            match frame {
                Ok(LogOutput::StdOut { message }) => {
                    self.watch.touch();
                    self.take(message).await;
                }
                Ok(LogOutput::StdErr { message }) => {
                    self.watch.touch();
                    lock(&self.shared.tail).push(&message);
                }
                Ok(LogOutput::StdIn { .. }) => {}
                Ok(LogOutput::Console { .. }) => return self.fail("the engine sent a terminal's output".into()).await,
                Err(e) => {
                    let text = engine_error("read output", e);
                    let chain = std::iter::successors(Some(&text as &dyn std::error::Error), |e| e.source());
                    return self.fail(chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")).await;
                }
            }
        }
        self.finish().await;
    }

    /// One piece of standard output.
    async fn take(&mut self, message: Bytes) {
        if !self.head_is_open {
            return self.forward(message).await;
        }
        self.head.extend_from_slice(&message);
        if self.announcer.is_some() {
            let Some(end) = self.head.iter().position(|b| *b == b'\n') else {
                return self.head.truncate(REFUSAL_BYTES);
            };
            let line = String::from_utf8_lossy(&self.head[..end]).into_owned();
            if let Some(pid) = line.strip_prefix(ANNOUNCEMENT).and_then(|pid| pid.trim().parse().ok()) {
                let rest = Bytes::copy_from_slice(&self.head[end + 1..]);
                self.head = Vec::new();
                self.head_is_open = false;
                if let Some(announcer) = self.announcer.take() {
                    let _ = announcer.send(pid);
                }
                return self.forward(rest).await;
            }
            return self.head.truncate(REFUSAL_BYTES);
        }
        // Without a shell the output may be the engine's own text; only the status will tell.
        let seen = self.head.len().min(REFUSAL.len());
        if self.head[..seen] != REFUSAL[..seen] || self.head.len() > REFUSAL_BYTES {
            self.head_is_open = false;
            let head = Bytes::from(std::mem::take(&mut self.head));
            self.forward(head).await;
        }
    }

    async fn forward(&self, bytes: Bytes) {
        // A reader that went away wants no more, but the command goes on as into `/dev/null`.
        if !bytes.is_empty() {
            let _ = self.sender.send(Ok(bytes)).await;
        }
    }

    /// The engine has said all.
    async fn finish(mut self) {
        if self.head_is_open && !self.head.is_empty() {
            let head = std::mem::take(&mut self.head);
            let refused = self.announcer.is_some() || {
                let code = self.docker.client().inspect_exec(&self.exec).await.ok().and_then(|state| state.exit_code);
                head.starts_with(REFUSAL) && !matches!(code, Some(code) if !matches!(code, 126 | 127))
            };
            if refused {
                *lock(&self.shared.refusal) = Some(String::from_utf8_lossy(&head).trim().to_owned());
                let _ = self.sender.send(Err(self.watch.tool_missing())).await;
                return;
            }
            self.forward(Bytes::from(head)).await;
        }
        let _ = self.sender.send(Ok(Bytes::new())).await;
    }

    async fn fail(&mut self, why: String) {
        *lock(&self.shared.failure) = Some(why.clone());
        let _ = self.sender.send(Err(self.watch.io("read output of", io::Error::other(why)))).await;
    }
}
