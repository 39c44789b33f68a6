//! Short-lived containers of Lifeboat's own, and trees read and written through them.
//!
//! A tree is read through a container that is created and never started: the engine mounts what the container would
//! see and streams it as a tar, so the image needs no tool at all and nothing runs. (The tar holds modes, owners,
//! times, links and file capabilities; other extended attributes and ACLs do not come through the engine.)
//!
//! Helpers have no network, carry `lifeboat.role`, `lifeboat.deadline` and `lifeboat.owner`, and are removed when their
//! handle is dropped; [`Docker::sweep`] removes what a killed run left behind. Nothing without our label is touched.

use super::docker::{Docker, engine_error, is_status};
use super::owner;
use super::stream::ChannelReader;
use super::tar_end::TarEnd;
use super::watch::{TICK, Watch};
use super::{Command, PlaceError};
use crate::base::ids::random_bytes;
use bollard::models;
use bollard::query_parameters as query;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

const ROLE: &str = "lifeboat.role";
const DEADLINE: &str = "lifeboat.deadline";
const OWNER: &str = "lifeboat.owner";
/// Where a tree is mounted in the container that it is read through.
const TREE: &str = "/lifeboat/tree";
/// After this a helper that reads or writes a tree is an orphan, whatever its owner says.
const TREE_LIFETIME: Duration = Duration::from_secs(2 * 86_400);
/// More than any server of ours starts.
const MAX_PROCESSES: i64 = 512;

/// What a helper sees of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeSource {
    /// A volume, by its engine's name. It must exist: a typo must not make a new one.
    Volume(String),
    /// A path on the engine's host.
    Path(PathBuf),
    /// A volume of the helper's own: empty, and gone with it.
    Scratch,
}

impl std::fmt::Display for TreeSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TreeSource::Volume(name) => write!(f, "volume {name}"),
            TreeSource::Path(path) => write!(f, "{}", path.display()),
            TreeSource::Scratch => f.write_str("a volume of its own"),
        }
    }
}

#[derive(Debug, Clone)]
pub struct HelperMount {
    pub source: TreeSource,
    /// Path in the container.
    pub target: String,
    pub read_only: bool,
}

/// A helper to be made.
#[derive(Debug, Clone)]
pub struct HelperSpec {
    /// What it is for: `tree`, `drill`, …
    pub role: String,
    /// Must be on this machine: nothing is pulled.
    pub image: String,
    /// Empty: the image's own entry point and command.
    pub command: Vec<String>,
    pub env: Vec<(String, crate::base::secret::Secret<String>)>,
    pub user: Option<String>,
    pub mounts: Vec<HelperMount>,
    /// Folders in memory, with the options of `mount -t tmpfs`.
    pub tmpfs: Vec<(String, String)>,
    pub memory_bytes: Option<u64>,
    /// After this it is swept, whatever its owner says.
    pub lifetime: Duration,
}

/// A container that is removed, with what it wrote, when this is dropped.
#[derive(Debug)]
pub struct Helper {
    docker: Docker,
    id: String,
}

impl Helper {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts its command; commands inside are run by a place of its [`Helper::id`].
    pub fn start(&self) -> Result<(), PlaceError> {
        let start = self.docker.client().start_container(&self.id, None);
        self.docker.call("start a helper container", start)
    }

    /// The end of what its command wrote to standard output and standard error.
    pub fn log(&self) -> Result<String, PlaceError> {
        let options = query::LogsOptionsBuilder::new().stdout(true).stderr(true).tail("200").build();
        let mut stream = self.docker.client().logs(&self.id, Some(options));
        let mut log = Vec::new();
        self.docker.call("read the log of a helper container", async {
            while let Some(line) = stream.next().await {
                log.extend_from_slice(&line?.into_bytes());
            }
            Ok(())
        })?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// Lays a tar out below a folder of the container, started or not. Numeric owners are kept.
    pub fn put(&self, folder: &str, tar: impl Read, command: &Command) -> Result<(), PlaceError> {
        self.docker.upload(&self.id, folder, &format!("{folder} of a helper container"), tar, command)
    }

    /// A file or folder of the container, whether it runs or has ended, as a tar whose names begin with its last part.
    pub fn get(&self, path: &str) -> Box<dyn Read + Send> {
        let options = query::DownloadFromContainerOptionsBuilder::new().path(path).build();
        let stream = self.docker.client().download_from_container(&self.id, Some(options));
        let what = format!("{path} of a helper container");
        Box::new(TarEnd::new(self.docker.reader(&format!("read {what}"), stream), what))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // What stays behind is swept by the next run.
        let _ = self.docker.remove_helper(&self.id);
    }
}

impl Docker {
    /// Makes a helper, without starting it.
    pub fn helper(&self, spec: &HelperSpec) -> Result<Helper, PlaceError> {
        for mount in &spec.mounts {
            if let TreeSource::Volume(name) = &mount.source
                && self.volume(name)?.is_none()
            {
                return Err(not_found("find", &mount.source, self.endpoint(), "no such volume"));
            }
            if let TreeSource::Path(path) = &mount.source
                && path.to_str().is_none()
            {
                // The engine takes text only, and another path must not be read in its place.
                let source = io::Error::new(io::ErrorKind::InvalidFilename, "a path that is not UTF-8");
                return Err(PlaceError::Io {
                    what: format!("mount {}", mount.source),
                    place: self.endpoint().into(),
                    source,
                });
            }
        }
        let random: [u8; 6] = random_bytes().map_err(|source| PlaceError::Io {
            what: "name a helper container".into(),
            place: self.endpoint().into(),
            source,
        })?;
        let name = format!("lifeboat-{}-{}", spec.role, hex::encode(random));
        let options = query::CreateContainerOptionsBuilder::new().name(&name).build();
        let create = self.client().create_container(Some(options), body(spec));
        match self.call(format!("create helper container {name}"), create) {
            Ok(made) => Ok(Helper { docker: self.clone(), id: made.id }),
            Err(e) if is_status(&e, 400) => {
                let missing = spec.mounts.iter().find(|m| matches!(m.source, TreeSource::Path(_)));
                match missing.filter(|_| says_no_source(&e)) {
                    Some(mount) => Err(not_found("read", &mount.source, self.endpoint(), "no such file or folder")),
                    None => Err(e),
                }
            }
            Err(e) => {
                // Cancelled between the request and its answer, it may have been made all the same.
                let _ = self.remove_helper(&name);
                Err(e)
            }
        }
    }

    fn remove_helper(&self, id: &str) -> Result<(), PlaceError> {
        let options = query::RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let remove = self.client().remove_container(id, Some(options));
        match self.settle(format!("remove helper container {id}"), remove) {
            // Gone, or somebody else is removing it.
            Err(e) if !is_status(&e, 404) && !is_status(&e, 409) => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes helpers that are past their deadline or whose run is dead; returns their names.
    pub fn sweep(&self, now: DateTime<Utc>) -> Result<Vec<String>, PlaceError> {
        let mut removed = Vec::new();
        for container in self.containers(&[ROLE.to_owned()])? {
            let label = |name: &str| container.labels.get(name).map(String::as_str).unwrap_or_default();
            let late = label(DEADLINE).parse::<i64>().is_ok_and(|deadline| deadline < now.timestamp());
            if late || owner::is_gone(label(OWNER)) {
                match self.remove_helper(&container.id) {
                    Ok(()) => removed.push(container.name),
                    // It is nobody's any more, and the next sweep tries again.
                    Err(error) => tracing::warn!(container = container.name, %error, "a helper of a dead run stays"),
                }
            }
        }
        Ok(removed)
    }

    /// A tree as a tar: names begin with `tree/`, and a single file is the one entry `tree`. Reading ends with an error
    /// when the stream breaks off.
    pub fn read_tree(&self, source: &TreeSource) -> Result<Box<dyn Read + Send>, PlaceError> {
        let helper = self.tree_helper(source, true)?;
        let options = query::DownloadFromContainerOptionsBuilder::new().path(TREE).build();
        let stream = self.client().download_from_container(helper.id(), Some(options));
        let reader = self.reader(&format!("read {source}"), stream);
        Ok(Box::new(TreeReader { reader: TarEnd::new(reader, source.to_string()), _helper: helper }))
    }

    /// Lays a tar out in a volume or folder that exists, over what is there; entries are relative to it. Numeric
    /// owners are kept.
    pub fn write_tree(&self, source: &TreeSource, tar: impl Read, command: &Command) -> Result<(), PlaceError> {
        let helper = self.tree_helper(source, false)?;
        self.upload(helper.id(), TREE, &source.to_string(), tar, command)
    }

    /// One request that lays a tar out in a container.
    fn upload(
        &self,
        container: &str,
        folder: &str,
        what: &str,
        tar: impl Read,
        command: &Command,
    ) -> Result<(), PlaceError> {
        let options = query::UploadToContainerOptionsBuilder::new().path(folder).build();
        let watch = Watch::new(command, self.endpoint().to_owned());
        let (pieces, receiver) = mpsc::channel::<io::Result<Bytes>>(super::stream::WRITE_PIECES);
        let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        });
        let (client, id) = (self.patient_client(), container.to_owned());
        let upload = self
            .handle()
            .spawn(async move { client.upload_to_container(&id, Some(options), bollard::body_try_stream(body)).await });
        let fed = self.feed(tar, pieces, &watch);
        if fed.is_err() {
            upload.abort();
        }
        let answer = self.run(async {
            loop {
                if let Err(broken) = watch.check() {
                    upload.abort_handle().abort();
                    return Err(broken);
                }
                if upload.is_finished() {
                    return Ok(());
                }
                tokio::time::sleep(TICK / 10).await;
            }
        });
        fed?;
        answer?;
        match self.run(upload) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(engine_error(format!("write {what}"), e)),
            Err(e) => Err(PlaceError::Docker { what: format!("write {what}"), source: e.into() }),
        }
    }

    /// Sends all that `tar` gives. An upload that ended early closes the channel; its own answer tells why.
    pub(super) fn feed(
        &self,
        mut tar: impl Read,
        pieces: mpsc::Sender<io::Result<Bytes>>,
        watch: &Watch,
    ) -> Result<(), PlaceError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let piece = match tar.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => Ok(Bytes::copy_from_slice(&buffer[..n])),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let piece = piece.map_err(|e| PlaceError::from_io("read what is to be written", self.endpoint(), e))?;
            watch.touch();
            let permit = loop {
                watch.check()?;
                match self.run(async { tokio::time::timeout(TICK, pieces.reserve()).await }) {
                    Ok(permit) => break permit,
                    Err(_late) => {}
                }
            };
            match permit {
                Ok(permit) => permit.send(Ok(piece)),
                Err(_closed) => return Ok(()),
            }
        }
    }

    /// A container that sees `source` at [`TREE`]; never started.
    fn tree_helper(&self, source: &TreeSource, read_only: bool) -> Result<Helper, PlaceError> {
        let of = |image| HelperSpec {
            role: "tree".into(),
            image,
            command: vec!["never-started".into()],
            env: Vec::new(),
            user: None,
            mounts: vec![HelperMount { source: source.clone(), target: TREE.into(), read_only }],
            tmpfs: Vec::new(),
            memory_bytes: None,
            lifetime: TREE_LIFETIME,
        };
        let image = || {
            self.any_image()?.ok_or_else(|| PlaceError::Docker {
                what: format!("read {source}"),
                source: "there is no image on this machine to make a container of".into(),
            })
        };
        match self.helper(&of(image()?)) {
            // Somebody has just removed that image.
            Err(error) if is_status(&error, 404) => self.helper(&of(image()?)),
            made => made,
        }
    }
}

fn body(spec: &HelperSpec) -> models::ContainerCreateBody {
    let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + spec.lifetime;
    let labels = HashMap::from([
        (ROLE.to_owned(), spec.role.clone()),
        (DEADLINE.to_owned(), deadline.as_secs().to_string()),
        (OWNER.to_owned(), owner::mark().to_owned()),
    ]);
    let (entrypoint, cmd) = match spec.command.split_first() {
        Some((program, arguments)) => (Some(vec![program.clone()]), Some(arguments.to_vec())),
        None => (None, None),
    };
    // Without a user it is the image's, which may be root, who needs his capabilities to lay out files for others.
    let is_unprivileged = spec.user.as_deref().is_some_and(|u| !matches!(u.split(':').next(), Some("" | "0" | "root")));
    models::ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint,
        cmd,
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect()),
        user: spec.user.clone(),
        labels: Some(labels),
        network_disabled: Some(true),
        host_config: Some(models::HostConfig {
            network_mode: Some("none".into()),
            mounts: Some(spec.mounts.iter().map(mount).collect()),
            tmpfs: Some(spec.tmpfs.iter().cloned().collect()),
            memory: spec.memory_bytes.and_then(|m| i64::try_from(m).ok()),
            security_opt: Some(vec!["no-new-privileges".into()]),
            pids_limit: Some(MAX_PROCESSES),
            cap_drop: is_unprivileged.then(|| vec!["ALL".into()]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn mount(mount: &HelperMount) -> models::Mount {
    let (typ, source, volume_options) = match &mount.source {
        // Without `no_copy` an empty volume would be filled from the image.
        TreeSource::Volume(name) => (
            models::MountType::VOLUME,
            name.clone(),
            Some(models::MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
        ),
        TreeSource::Path(path) => (models::MountType::BIND, path.to_string_lossy().into_owned(), None),
        // Without a name the engine makes one, and removes it with the container.
        TreeSource::Scratch => (
            models::MountType::VOLUME,
            String::new(),
            Some(models::MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
        ),
    };
    models::Mount {
        typ: Some(typ),
        source: Some(source).filter(|s| !s.is_empty()),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        volume_options,
        ..Default::default()
    }
}

fn not_found(what: &str, source: &TreeSource, endpoint: &str, why: &str) -> PlaceError {
    PlaceError::Io {
        what: format!("{what} {source}"),
        place: endpoint.to_owned(),
        source: io::Error::new(io::ErrorKind::NotFound, why),
    }
}

/// The engine has no code of its own for a bind mount whose source is missing.
fn says_no_source(error: &PlaceError) -> bool {
    let PlaceError::Docker { source, .. } = error else { return false };
    source.to_string().contains("bind source path does not exist")
}

/// The helper goes after the stream that needs it.
struct TreeReader {
    reader: TarEnd<ChannelReader>,
    _helper: Helper,
}

impl Read for TreeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}
