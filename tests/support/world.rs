//! A repository world for tests: keys, storage, a writer, readers, and the hands to damage what is stored.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::base::ids::{HostName, Sequence, SnapshotId};
use lifeboat::base::stream::StreamKind;
use lifeboat::ops::access::{Access, AccessRequest};
use lifeboat::ops::verify::{Level, VerifyReport, verify};
use lifeboat::ops::{OpsError, Run};
use lifeboat::pipeline::crypt::{Identities, Recipients};
use lifeboat::pipeline::sign::{Namespace, SigningKey};
use lifeboat::repository::chain::{Chain, Snapshot};
use lifeboat::repository::format::{
    Encoding, Outcome, Role, SignerAction, SourceEntry, SourceOutcome, StreamEntry, Trigger,
};
use lifeboat::repository::keys::{HostKey, IdentityFile};
use lifeboat::repository::reader::{ReaderOptions, SnapshotReader};
use lifeboat::repository::state::State;
use lifeboat::repository::trust::Pin;
use lifeboat::repository::writer::{Committed, SnapshotDraft, SnapshotWriter, StreamParts, WriterOptions};
use lifeboat::repository::{Repository, RepositoryError, layout};
use lifeboat::storage::{MemoryStorage, Storage, StorageKey};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct World {
    pub dir: Arc<Home>,
    pub storage: Arc<dyn Storage>,
    pub identity: Arc<IdentityFile>,
    pub host_key: Arc<HostKey>,
    pub state: Arc<State>,
}

/// Where the keys and the state of a world lie.
pub enum Home {
    Own(tempfile::TempDir),
    Lent(PathBuf),
}

impl Home {
    pub fn path(&self) -> &Path {
        match self {
            Home::Own(dir) => dir.path(),
            Home::Lent(path) => path,
        }
    }
}

/// The streams of one source.
pub type Source<'a> = (&'a str, &'a [(&'a str, &'a [u8])]);

pub fn host() -> HostName {
    "web-1".parse().unwrap()
}

pub const DEEP: Level = Level::Deep;
pub const OBJECTS: Level = Level::Objects;
pub const READ_DATA: Level = Level::ReadData { percent: 100 };

impl World {
    /// New keys and an empty repository, whose first signer is this host.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = IdentityFile::create(&dir.path().join("identity.txt"), chrono::Utc::now()).unwrap();
        let host_key = HostKey::create(&dir.path().join("host.key"), identity.repository.clone()).unwrap();
        let state = Arc::new(State::open(&dir.path().join("state")).unwrap());
        let (identity, host_key) = (Arc::new(identity), Arc::new(host_key));
        let world = Self { dir: Arc::new(Home::Own(dir)), storage: storage.clone(), identity, host_key, state };
        Repository::create(storage, &world.root(), chrono::Utc::now()).unwrap();
        world.vouch(&world.host_key.signing, Role::Snapshot);
        world
    }

    pub fn memory() -> Self {
        Self::new(Arc::new(MemoryStorage::new()))
    }

    /// The same keys and state over a copy of everything that is stored.
    pub fn copy(&self) -> Self {
        let storage = MemoryStorage::new();
        for object in self.storage.list("").unwrap() {
            storage.put_new(&object.key, &self.storage.get(&object.key, u64::MAX).unwrap()).unwrap();
        }
        self.over(Arc::new(storage))
    }

    /// The same keys and state over another storage.
    pub fn over(&self, storage: Arc<dyn Storage>) -> Self {
        let (dir, identity, host_key) = (self.dir.clone(), self.identity.clone(), self.host_key.clone());
        Self { dir, storage, identity, host_key, state: self.state.clone() }
    }

    /// The same for a thread that dies at work: it never drops what it holds, and the folder shall go all the same.
    pub fn lent(&self) -> Self {
        Self { dir: Arc::new(Home::Lent(self.dir.path().to_owned())), ..self.over(self.storage.clone()) }
    }

    /// The same repository as a host sees it that remembers nothing.
    pub fn forgetful(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(State::open(&dir.path().join("state")).unwrap());
        Self { state, dir: Arc::new(Home::Own(dir)), ..self.over(self.storage.clone()) }
    }

    // --- trust -------------------------------------------------------------------------------------------------------

    pub fn root(&self) -> SigningKey {
        self.identity.root_key_of(self.identity.repository.as_ref().unwrap()).unwrap()
    }

    pub fn pin(&self) -> Pin {
        Pin::Derived(self.identity.possible_repositories())
    }

    pub fn try_open(&self) -> Result<Arc<Repository>, RepositoryError> {
        Repository::open(self.storage.clone(), &self.pin()).map(Arc::new)
    }

    pub fn open(&self) -> Arc<Repository> {
        self.try_open().unwrap()
    }

    pub fn vouch(&self, key: &SigningKey, role: Role) {
        self.add_signer(key, SignerAction::Add { role, hosts: vec![host()] });
    }

    pub fn add_signer(&self, key: &SigningKey, action: SignerAction) {
        let mut repository = Repository::open(self.storage.clone(), &self.pin()).unwrap();
        repository.add_signer(&self.root(), &key.public(), action, chrono::Utc::now()).unwrap();
    }

    /// Signs a JSON object and stores it under the name that its time and content give it.
    pub fn put_dated(
        &self,
        prefix: &str,
        namespace: Namespace,
        key: &SigningKey,
        json: &serde_json::Value,
    ) -> StorageKey {
        let bytes = key.sign(namespace, &json.to_string()).unwrap();
        let time = serde_json::from_value(json["time"].clone()).unwrap();
        let name = layout::dated(prefix, time, lifeboat::pipeline::crypt::object_id(&bytes)).parse().unwrap();
        self.storage.put_new(&name, &bytes).unwrap();
        name
    }

    /// The fields that every record begins with.
    pub fn record(&self, note: serde_json::Value) -> serde_json::Value {
        let mut record = serde_json::json!({
            "kind": "record", "format": 1, "requires": [], "repository": self.open().id(),
            "time": "2026-11-21T10:00:00Z", "host": host(), "policy": "shop",
        });
        record.as_object_mut().unwrap().extend(note.as_object().unwrap().clone());
        record
    }

    // --- writing -----------------------------------------------------------------------------------------------------

    pub fn recipients(&self) -> Recipients {
        Recipients::parse(&[self.identity.first().unwrap().recipient()]).unwrap()
    }

    pub fn writer(&self, repository: &Arc<Repository>) -> Result<SnapshotWriter, RepositoryError> {
        self.writer_of(repository, "shop", self.recipients(), &Cancel::new())
    }

    pub fn writer_of(
        &self,
        repository: &Arc<Repository>,
        policy: &str,
        recipients: Recipients,
        cancel: &Cancel,
    ) -> Result<SnapshotWriter, RepositoryError> {
        let chain = Chain::load(repository)?;
        let options = WriterOptions {
            host: host(),
            policy: policy.parse().unwrap(),
            recipients,
            compression: 3,
            cancel: cancel.clone(),
        };
        SnapshotWriter::begin(repository.clone(), &chain, &self.host_key, self.state.clone(), options)
    }

    /// A snapshot of one source.
    pub fn snapshot(&self, streams: &[(&str, &[u8])]) -> Committed {
        self.take("shop", &[("files", streams)]).unwrap()
    }

    /// A snapshot of these sources under a policy. What fails is the writer's own failure, where it has one.
    pub fn take(&self, policy: &str, sources: &[Source<'_>]) -> Result<Committed, RepositoryError> {
        let repository = self.try_open()?;
        let writer = self.writer_of(&repository, policy, self.recipients(), &Cancel::new())?;
        self.write(writer, sources)
    }

    pub fn write(&self, writer: SnapshotWriter, sources: &[Source<'_>]) -> Result<Committed, RepositoryError> {
        let entries = sources.iter().map(|(name, streams)| entry(&writer, name, streams)).collect::<Result<_, _>>();
        if let Some(failure) = writer.take_failure() {
            return Err(failure);
        }
        let entries = entries.expect("a stream fails only when the writer has failed");
        let draft = draft(writer.sequence(), entries);
        writer.commit(draft, &self.host_key)
    }

    // --- reading -----------------------------------------------------------------------------------------------------

    pub fn chain(&self) -> Chain {
        Chain::load(&self.open()).unwrap()
    }

    pub fn identities(&self) -> Arc<Identities> {
        // Loaded anew: identities cannot be cloned.
        let text = self.identity.first().unwrap().root_secret();
        Arc::new(Identities::parse(std::str::from_utf8(text.expose()).unwrap()).unwrap())
    }

    pub fn try_reader(&self, snapshot: &Snapshot) -> Result<SnapshotReader, RepositoryError> {
        let options = ReaderOptions {
            identities: self.identities(),
            index_cache: None,
            tmp: self.dir.path().to_owned(),
            cancel: Cancel::new(),
        };
        SnapshotReader::open(self.try_open()?, snapshot, options)
    }

    pub fn reader(&self, snapshot: &Snapshot) -> SnapshotReader {
        self.try_reader(snapshot).unwrap()
    }

    /// The streams of a snapshot's first source.
    pub fn read(&self, snapshot: &Snapshot) -> Vec<(String, Vec<u8>)> {
        let reader = self.reader(snapshot);
        let source = &reader.manifest.sources[0];
        let read = |stream: &StreamEntry| (stream.name.to_string(), read_stream(&reader, source, stream).unwrap());
        source.streams.iter().map(read).collect()
    }

    /// All streams of one source, one after the other.
    pub fn read_source(&self, snapshot: &Snapshot, name: &str) -> Result<Vec<u8>, RepositoryError> {
        let reader = self.try_reader(snapshot)?;
        let source = reader.manifest.sources.iter().find(|s| s.name.as_str() == name).unwrap();
        let mut bytes = Vec::new();
        for stream in &source.streams {
            bytes.extend(read_stream(&reader, source, stream)?);
        }
        Ok(bytes)
    }

    pub fn access(&self, with_identity: bool) -> Result<Access, OpsError> {
        let identities = with_identity.then(|| self.identities());
        Access::of(self.try_open()?, identities, Some(self.state.clone()), &AccessRequest::default())
    }

    /// Verifies everything; the identity is at hand for a deep look only.
    pub fn verify(&self, level: Level) -> Result<VerifyReport, OpsError> {
        verify(&self.access(level == Level::Deep)?, level, &[], &run())
    }

    /// Verifies without a key and without a memory.
    pub fn verify_as_stranger(&self, level: Level) -> Result<VerifyReport, OpsError> {
        verify(&Access::of(self.try_open()?, None, None, &AccessRequest::default())?, level, &[], &run())
    }

    /// Verifies with the identity at hand, so that findings name sources.
    pub fn verify_with_identity(&self, level: Level) -> Result<VerifyReport, OpsError> {
        verify(&self.access(true)?, level, &[], &run())
    }

    // --- an attacker's hands -----------------------------------------------------------------------------------------

    pub fn keys(&self, prefix: &str) -> Vec<StorageKey> {
        self.storage.list(prefix).unwrap().into_iter().map(|object| object.key).collect()
    }

    pub fn get(&self, key: &StorageKey) -> Vec<u8> {
        self.storage.get(key, u64::MAX).unwrap()
    }

    /// Puts bytes where others were, or were not.
    pub fn set(&self, key: &StorageKey, bytes: &[u8]) {
        self.storage.delete(key).unwrap();
        self.storage.put_new(key, bytes).unwrap();
    }

    pub fn delete(&self, key: &StorageKey) {
        self.storage.delete(key).unwrap();
    }
}

pub fn run() -> Run {
    Run { events: Events::none(), cancel: Cancel::new(), now: chrono::Utc::now() }
}

fn entry(writer: &SnapshotWriter, name: &str, streams: &[(&str, &[u8])]) -> io::Result<SourceEntry> {
    let streams = streams.iter().map(|(stream, bytes)| {
        let mut out = writer.stream(name, stream, StreamKind::Raw, None);
        for part in bytes.chunks(10_007) {
            out.write_all(part)?;
        }
        Ok(stream_entry(stream, out.finish()?))
    });
    Ok(source_entry(name, streams.collect::<io::Result<_>>()?))
}

pub fn stream_entry(name: &str, parts: StreamParts) -> StreamEntry {
    StreamEntry {
        name: name.parse().unwrap(),
        kind: StreamKind::Raw,
        encoding: Encoding::Plain,
        length: parts.length,
        sha256: parts.sha256,
        chunk_average: parts.average.bytes(),
        ids: parts.ids,
    }
}

pub fn source_entry(name: &str, streams: Vec<StreamEntry>) -> SourceEntry {
    SourceEntry {
        name: name.parse().unwrap(),
        kind: "files".into(),
        outcome: SourceOutcome::Complete,
        error: None,
        warnings: vec![],
        streams,
        facts: serde_json::json!({}),
    }
}

pub fn draft(sequence: Sequence, sources: Vec<SourceEntry>) -> SnapshotDraft {
    SnapshotDraft {
        id: id(sequence),
        time: chrono::Utc::now(),
        tags: vec![],
        trigger: Trigger::Manual,
        git_commit: None,
        outcome: Outcome::Complete,
        sources,
        stream_notes: vec![],
    }
}

fn read_stream(
    reader: &SnapshotReader,
    source: &SourceEntry,
    stream: &StreamEntry,
) -> Result<Vec<u8>, RepositoryError> {
    let mut open = reader.stream(source, stream, 0)?;
    let mut bytes = Vec::new();
    match open.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(e) => Err(open.take_failure().unwrap_or_else(|| panic!("{e} without a failure behind it"))),
    }
}

pub fn id(sequence: Sequence) -> SnapshotId {
    format!("20261121T{:06}Z-0000000{}", sequence.0 % 1_000_000, sequence.0 % 10).parse().unwrap()
}

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}
