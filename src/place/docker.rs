//! The Docker engine, through its API (`DOCKER_HOST`, else a context, else the local socket); the `docker` program is not needed.
//!
//! The engine's client is asynchronous and the places are not: a small runtime of its own drives it, and every call
//! waits here, observing cancellation. Cleaning up ([`Docker::settle`]) does not observe it, but has a limit of time.
//!
//! The client writes requests, which hold the environment of commands, to the `log` facade at level debug. Nothing
//! subscribes to that facade here, and nothing may (`tracing-log` stays off).

use super::PlaceError;
use super::context;
use super::inspect::{Container, ContainerSummary, Image, Network, Volume};
use super::stream::{ChannelReader, pump_stream};
use super::tar_end::TarEnd;
use super::watch::Watch;
use crate::base::cancel::Cancel;
use crate::base::threads;
use bollard::errors::Error as EngineError;
use bollard::query_parameters as query;
use futures_util::{Stream, StreamExt};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};

/// The longest wait for the first answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The longest wait for one step of cleaning up.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// The longest that a stream from the engine may stand still.
const STREAM_STALL: Duration = Duration::from_secs(120);
/// An upload is one request: it ends when all has been read on the other side.
const UPLOAD_LIMIT: Duration = Duration::from_secs(7 * 86_400);

/// A connection to the engine. Cloning shares it.
#[derive(Clone)]
pub struct Docker(Arc<Inner>);

struct Inner {
    client: bollard::Docker,
    handle: Handle,
    /// Taken when dropped: a runtime must not be dropped by waiting for it.
    runtime: Option<Runtime>,
    endpoint: String,
    cancel: Cancel,
    /// Images that were seen to hold no shell.
    shell_less: Mutex<HashSet<String>>,
    /// Containers whose orphaned execs have been looked for.
    swept: Mutex<HashSet<String>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl std::fmt::Debug for Docker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Docker({})", self.0.endpoint)
    }
}

/// Versions of the engine and its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineVersion {
    pub version: String,
    pub api_version: String,
    /// Component and version: `containerd`, `runc`, …
    pub components: BTreeMap<String, String>,
}

impl Docker {
    /// Connects and agrees on an API version. Calls of this connection stop when `cancel` is raised.
    pub fn connect(cancel: &Cancel) -> Result<Docker, PlaceError> {
        let endpoint = context::endpoint()?;
        let none = |source: Box<dyn std::error::Error + Send + Sync>| PlaceError::NoDocker {
            endpoint: endpoint.clone(),
            source,
        };
        // Where there is no thread it would panic.
        threads::are_there()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("docker")
            .enable_all()
            .build()
            .map_err(|e| none(e.into()))?;
        let client = {
            let _in_runtime = runtime.enter();
            bollard::Docker::connect_with_host(&endpoint).map_err(|e| none(e.into()))?
        };
        let inner = Inner {
            client,
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
            endpoint: endpoint.clone(),
            cancel: cancel.clone(),
            shell_less: Mutex::default(),
            swept: Mutex::default(),
        };
        // The version that was agreed on is shared by all clones of the client.
        let client = inner.client.clone();
        let docker = Docker(Arc::new(inner));
        let agreed = docker.run(async {
            tokio::select! {
                () = docker.0.cancel.raised() => Err(PlaceError::Cancelled(crate::base::cancel::Cancelled)),
                agreed = tokio::time::timeout(CONNECT_LIMIT, client.negotiate_version()) => Ok(agreed),
            }
        })?;
        match agreed {
            Ok(Ok(_)) => Ok(docker),
            Ok(Err(e)) => Err(none(e.into())),
            Err(late) => Err(none(late.into())),
        }
    }

    pub fn endpoint(&self) -> &str {
        &self.0.endpoint
    }

    /// Whether the engine is this machine's: its paths and process ids are ours.
    pub fn is_local(&self) -> bool {
        self.0.endpoint.starts_with("unix://")
    }

    pub(super) fn client(&self) -> &bollard::Docker {
        &self.0.client
    }

    pub(super) fn shell_less(&self) -> &Mutex<HashSet<String>> {
        &self.0.shell_less
    }

    pub(super) fn swept(&self) -> &Mutex<HashSet<String>> {
        &self.0.swept
    }

    pub(super) fn handle(&self) -> Handle {
        self.0.handle.clone()
    }

    /// Drives `work` to its end, from a plain thread or from within another runtime.
    pub(super) fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        run_on(&self.handle(), work)
    }

    /// One call, ended by cancellation.
    pub(super) fn call<T: Send>(
        &self,
        what: impl Into<String>,
        work: impl Future<Output = Result<T, EngineError>> + Send,
    ) -> Result<T, PlaceError> {
        let result = self.run(async {
            tokio::select! {
                biased;
                () = self.0.cancel.raised() => Err(PlaceError::Cancelled(crate::base::cancel::Cancelled)),
                result = work => Ok(result),
            }
        })?;
        result.map_err(|e| engine_error(what, e))
    }

    /// One step of cleaning up: cancellation does not end it, a limit of time does.
    pub(super) fn settle<T: Send>(
        &self,
        what: impl Into<String>,
        work: impl Future<Output = Result<T, EngineError>> + Send,
    ) -> Result<T, PlaceError> {
        match self.run(async { tokio::time::timeout(SETTLE_LIMIT, work).await }) {
            Ok(result) => result.map_err(|e| engine_error(what, e)),
            Err(late) => Err(PlaceError::Docker { what: what.into(), source: late.into() }),
        }
    }

    /// A stream of the engine as bytes to read.
    pub(super) fn reader(
        &self,
        what: &str,
        stream: impl Stream<Item = Result<bytes::Bytes, EngineError>> + Send + 'static,
    ) -> ChannelReader {
        let watch = Arc::new(Watch::for_stream(what, &self.0.endpoint, &self.0.cancel, STREAM_STALL));
        let text = what.to_owned();
        let stream = stream.map(move |item| item.map_err(|e| engine_error(text.clone(), e)));
        pump_stream(&self.handle(), watch, stream)
    }

    /// A client for one long request.
    pub(super) fn patient_client(&self) -> bollard::Docker {
        self.0.client.clone().with_timeout(UPLOAD_LIMIT)
    }

    pub fn version(&self) -> Result<EngineVersion, PlaceError> {
        let version = self.call("ask for its version", self.0.client.version())?;
        Ok(EngineVersion {
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            components: version.components.unwrap_or_default().into_iter().map(|c| (c.name, c.version)).collect(),
        })
    }

    /// Where the engine keeps images, containers and volumes on its host.
    pub fn root_dir(&self) -> Result<Option<std::path::PathBuf>, PlaceError> {
        let info = self.call("ask where it keeps its data", self.0.client.info())?;
        Ok(info.docker_root_dir.filter(|dir| dir.starts_with('/')).map(Into::into))
    }

    /// Containers, stopped ones too, that carry all of these labels (`name` or `name=value`), by name.
    pub fn containers(&self, labels: &[String]) -> Result<Vec<ContainerSummary>, PlaceError> {
        let mut options = query::ListContainersOptionsBuilder::new().all(true);
        if !labels.is_empty() {
            options = options.filters(&HashMap::from([("label".to_owned(), labels.to_vec())]));
        }
        let list = self.call("list containers", self.0.client.list_containers(Some(options.build())))?;
        let mut list: Vec<ContainerSummary> = list.into_iter().map(ContainerSummary::from).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// Containers of a compose project that belong to its running set, stopped ones too, by service and number.
    pub fn project(&self, project: &str) -> Result<Vec<ContainerSummary>, PlaceError> {
        let mut list = self.containers(&[format!("com.docker.compose.project={project}")])?;
        list.retain(|c| c.compose().is_some_and(|labels| !labels.oneoff));
        list.sort_by_key(|c| c.compose().map(|labels| (labels.service, labels.number)));
        Ok(list)
    }

    /// A container by name or id.
    pub fn inspect(&self, name: &str) -> Result<Container, PlaceError> {
        let missing = || PlaceError::NoContainer { name: name.to_owned() };
        if !is_object_name(name) {
            return Err(missing());
        }
        match self.call(format!("inspect container {name}"), self.0.client.inspect_container(name, None)) {
            Ok(found) => Ok(found.into()),
            Err(e) if is_status(&e, 404) => Err(missing()),
            Err(e) => Err(e),
        }
    }

    /// A volume by its engine's name; absent when there is none.
    pub fn volume(&self, name: &str) -> Result<Option<Volume>, PlaceError> {
        if !is_object_name(name) {
            return Ok(None);
        }
        let found = self.call(format!("inspect volume {name}"), self.0.client.inspect_volume(name));
        absent_if_404(found.map(Volume::from))
    }

    /// Volumes that carry all of these labels, by name.
    pub fn volumes(&self, labels: &[String]) -> Result<Vec<Volume>, PlaceError> {
        let mut options = query::ListVolumesOptionsBuilder::new();
        if !labels.is_empty() {
            options = options.filters(&HashMap::from([("label".to_owned(), labels.to_vec())]));
        }
        let list = self.call("list volumes", self.0.client.list_volumes(Some(options.build())))?;
        let mut list: Vec<Volume> = list.volumes.unwrap_or_default().into_iter().map(Volume::from).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// A network by name; absent when there is none.
    pub fn network(&self, name: &str) -> Result<Option<Network>, PlaceError> {
        if !is_object_name(name) {
            return Ok(None);
        }
        let found = self.call(format!("inspect network {name}"), self.0.client.inspect_network(name, None));
        absent_if_404(found.map(Network::from))
    }

    /// An image by name or id; absent when it is not on this machine.
    pub fn image(&self, reference: &str) -> Result<Option<Image>, PlaceError> {
        if !is_image_reference(reference) {
            return Ok(None);
        }
        let found = self.call(format!("inspect image {reference}"), self.0.client.inspect_image(reference));
        absent_if_404(found.map(Image::from))
    }

    /// The id of some image that is here: what a container needs that is created and never started.
    pub fn any_image(&self) -> Result<Option<String>, PlaceError> {
        let images = self.call("list images", self.0.client.list_images(None::<query::ListImagesOptions>))?;
        Ok(images.into_iter().min_by_key(|i| (i.repo_tags.is_empty(), i.size)).map(|i| i.id))
    }

    /// The names of all images, `repository:tag`.
    pub fn image_names(&self) -> Result<Vec<String>, PlaceError> {
        let images = self.call("list images", self.0.client.list_images(None::<query::ListImagesOptions>))?;
        Ok(images.into_iter().flat_map(|i| i.repo_tags).collect())
    }

    /// Gives an image a further name, `repository:tag`.
    pub fn tag_image(&self, image: &str, repository: &str, tag: &str) -> Result<(), PlaceError> {
        let options = query::TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        self.call(format!("tag image {image} as {repository}:{tag}"), self.0.client.tag_image(image, Some(options)))
    }

    /// Removes a name of an image; the image itself goes with its last name, unless a container uses it.
    pub fn untag_image(&self, name: &str) -> Result<(), PlaceError> {
        let options = None::<query::RemoveImageOptions>;
        self.call(format!("untag image {name}"), self.0.client.remove_image(name, options, None)).map(drop)
    }

    /// An image as `docker save` writes it: a tar that `docker load` reads.
    pub fn export_image(&self, image: &str) -> Box<dyn Read + Send> {
        let reader = self.reader(&format!("export image {image}"), self.0.client.export_image(image));
        Box::new(TarEnd::new(reader, format!("image {image}")))
    }
}

/// Wakes a thread that waits for a future.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives `work` on a runtime, from a plain thread or from within another runtime.
pub(super) fn run_on<T: Send>(handle: &Handle, work: impl Future<Output = T> + Send) -> T {
    if Handle::try_current().is_err() {
        return handle.block_on(work);
    }
    // That other one would not let its thread block; it is waited for here, whose turn is over when this returns.
    let _in_runtime = handle.enter();
    let mut work = std::pin::pin!(tokio::task::unconstrained(work));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

pub(super) fn engine_error(what: impl Into<String>, error: EngineError) -> PlaceError {
    PlaceError::Docker { what: what.into(), source: error.into() }
}

/// Whether the engine answered with this HTTP status.
pub(super) fn is_status(error: &PlaceError, status: u16) -> bool {
    let PlaceError::Docker { source, .. } = error else { return false };
    matches!(source.downcast_ref(), Some(EngineError::DockerResponseServerError { status_code, .. }) if *status_code == status)
}

fn absent_if_404<T>(found: Result<T, PlaceError>) -> Result<Option<T>, PlaceError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(e) if is_status(&e, 404) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Names go into URLs as they are, so nothing else may pass.
pub(super) fn is_object_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 255
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

pub(super) fn is_image_reference(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 512
        && !name.contains("..")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/' | b':' | b'@'))
}
