//! Who may sign what: the root key, its pin, and the chain of signers. Creating and opening a repository.
//!
//! Nothing unsigned is believed: `repository.json` is signed by the root key, whose fingerprint a reader pins; the
//! numbered signers are signed by the root key, each naming the hash of the one before; everything else is signed by
//! one of them.

use crate::base::ids::{HostName, ObjectId, PolicyName, RepositoryId, Sequence};
use crate::pipeline::crypt::object_id;
use crate::pipeline::limits;
use crate::pipeline::sign::{self, Namespace, PublicKey, SigningKey};
use crate::repository::format::{
    self, DrillObject, FORMAT, Header, HeaderRef, LastGood, Record, RepositoryObject, Role, SignerAction, SignerObject,
};
use crate::repository::trash::TrashObject;
use crate::repository::{RepositoryError, layout, parallel};
use crate::storage::s3::probe::SCRATCH;
use crate::storage::{ObjectInfo, Put, Storage, StorageError, StorageKey};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which repository a reader expects.
#[derive(Debug, Clone)]
pub enum Pin {
    /// This one.
    Exactly(RepositoryId),
    /// One of those whose root key the identity at hand could be; any other needs a pin of its own.
    Derived(Vec<RepositoryId>),
    /// Whatever is there: said by the user.
    TrustOnFirstUse,
}

/// A key that the root key vouches for.
#[derive(Debug, Clone)]
struct Signer {
    key: PublicKey,
    role: Role,
    hosts: Vec<HostName>,
    /// Set once revoked: what is still believed.
    last_good: Option<Vec<LastGood>>,
}

impl Signer {
    /// Whether it may have signed the header at this place.
    fn is_believed(&self, place: &layout::HeaderKey, bytes: &[u8]) -> bool {
        let still = |good: &LastGood| {
            good.host == place.host
                && good.policy == place.policy
                && (place.sequence < good.sequence
                    || (place.sequence == good.sequence && object_id(bytes) == good.header))
        };
        self.role == Role::Snapshot
            && self.hosts.contains(&place.host)
            && self.last_good.as_ref().is_none_or(|good| good.iter().any(still))
    }
}

impl Signer {
    /// The headers of a host and policy that its revocation calls good.
    fn last_good_of(&self, host: &HostName, policy: &PolicyName) -> impl Iterator<Item = HeaderRef> {
        let ours = self.last_good.iter().flatten().filter(move |good| good.host == *host && good.policy == *policy);
        ours.map(|good| HeaderRef { sequence: good.sequence, header: good.header, previous: None })
    }
}

/// A repository whose root has been checked against a pin, and whose signers have been verified.
pub struct Repository {
    storage: Arc<dyn Storage>,
    id: RepositoryId,
    root: PublicKey,
    created: DateTime<Utc>,
    signers: Vec<Signer>,
    /// The hashes of the signer objects, in order.
    signer_hashes: Vec<ObjectId>,
}

impl Repository {
    /// Creates a repository: `repository.json`, signed by the root key. There must be none yet.
    pub fn create(storage: Arc<dyn Storage>, root: &SigningKey, now: DateTime<Utc>) -> Result<Self, RepositoryError> {
        let location = storage.describe();
        let foreign = storage.list("")?;
        if foreign.iter().any(|object| object.key == layout::repository()) {
            return Err(RepositoryError::RepositoryExists { location });
        }
        // What a probe of the server could not remove is no part of anything.
        let scratch = |object: &&ObjectInfo| object.key.as_str().starts_with(SCRATCH);
        if let Some(object) = foreign.iter().find(|object| !scratch(object)) {
            return Err(RepositoryError::Key {
                problem: format!("{location} is not empty: it holds {}", object.key),
                hint: Some("name an empty folder, or one that does not exist yet".to_owned()),
            });
        }
        let public = root.public();
        let id = public.fingerprint()?;
        let object = RepositoryObject {
            kind: "repository".to_owned(),
            format: FORMAT,
            requires: Vec::new(),
            repository: id.clone(),
            root_public_key: public.to_text()?,
            created: now,
        };
        let bytes = root.sign(Namespace::Repository, &to_json(&object)?)?;
        if storage.put_new(&layout::repository(), &bytes)? != Put::Created {
            return Err(RepositoryError::RepositoryExists { location });
        }
        Ok(Self { storage, id, root: public, created: now, signers: Vec::new(), signer_hashes: Vec::new() })
    }

    /// Opens a repository and checks it against the pin.
    pub fn open(storage: Arc<dyn Storage>, pin: &Pin) -> Result<Self, RepositoryError> {
        match Self::open_as_it_is(storage.clone(), pin) {
            // Somebody may have written another repository over it, or deleted it: what is locked is behind that.
            Err(e)
                if e.is_integrity()
                    || matches!(
                        e,
                        RepositoryError::ForeignRepository { .. }
                            | RepositoryError::NoRepository { .. }
                            | RepositoryError::Unpinned { .. }
                    ) =>
            {
                match storage.object_locks() {
                    Some(locks) if locks.look_behind(&layout::repository())? => Self::open_as_it_is(storage, pin),
                    _ => Err(e),
                }
            }
            other => other,
        }
    }

    fn open_as_it_is(storage: Arc<dyn Storage>, pin: &Pin) -> Result<Self, RepositoryError> {
        let location = storage.describe();
        let key = layout::repository();
        // The first signer is in every repository: asked for before the list says so.
        let signers =
            || parallel::both(|| storage.get(&layout::signer(1), limits::SIGNED), || storage.list(layout::SIGNERS));
        let (signers, bytes) = parallel::both(signers, || storage.get(&key, limits::SIGNED));
        let bytes = match bytes {
            Err(StorageError::NotFound { .. }) => {
                // Signed objects without their repository.json are damage, an empty folder is none.
                return Err(
                    if storage.list(layout::SNAPSHOTS)?.is_empty() && storage.list(layout::SIGNERS)?.is_empty() {
                        RepositoryError::NoRepository { location }
                    } else {
                        RepositoryError::Missing { key }
                    },
                );
            }
            other => other.map_err(|e| as_damage(e, &key))?,
        };
        let damaged = |source| RepositoryError::DamagedBy { key: key.clone(), source };
        let line = sign::peek_line(&bytes).map_err(damaged)?;
        let claimed: RepositoryObject = parse(line, &key).map_err(|e| newer_or(line, &key, e))?;
        let root = PublicKey::parse(&claimed.root_public_key).map_err(damaged)?;
        let found = root.fingerprint()?;
        check_pin(pin, &found, &location)?;
        // Only now is the key one that may be believed; the signature says whether the rest is its word.
        let (line, _) = sign::open(&bytes, Namespace::Repository, std::slice::from_ref(&root)).map_err(damaged)?;
        format::check_envelope(line.as_bytes(), &key)?;
        if claimed.repository != found || claimed.kind != "repository" {
            return Err(RepositoryError::Damaged { key, problem: "it contradicts its own root key".to_owned() });
        }
        let mut repository =
            Self { storage, id: found, root, created: claimed.created, signers: Vec::new(), signer_hashes: Vec::new() };
        let (first, listed) = signers.ok_or(RepositoryError::Worker)?;
        repository.load_signers(&listed?, first.and_then(Result::ok))?;
        Ok(repository)
    }

    /// `first` is the first one's bytes, where they are at hand; what is not, or does not verify, is read.
    fn load_signers(&mut self, listed: &[ObjectInfo], first: Option<Vec<u8>>) -> Result<(), RepositoryError> {
        let mut numbers: Vec<u32> = listed.iter().filter_map(|object| layout::parse_signer(&object.key)).collect();
        numbers.sort_unstable();
        for (at, number) in numbers.iter().enumerate() {
            let expected = at as u32 + 1;
            if *number != expected {
                return Err(RepositoryError::Missing { key: layout::signer(expected) });
            }
        }
        if let Some(bytes) = first
            && numbers.first() == Some(&1)
            && self.take_signer(1, &bytes).is_ok()
        {
            numbers.remove(0);
        }
        let fetched = parallel::at_once(&numbers, |number| self.get(&layout::signer(*number), limits::SIGNED));
        for (number, bytes) in numbers.into_iter().zip(fetched) {
            self.take_signer(number, &bytes?)?;
        }
        Ok(())
    }

    fn take_signer(&mut self, number: u32, bytes: &[u8]) -> Result<(), RepositoryError> {
        let key = layout::signer(number);
        let damaged = |problem: &str| RepositoryError::Damaged { key: key.clone(), problem: problem.to_owned() };
        let (line, _) = sign::open(bytes, Namespace::Signer, std::slice::from_ref(&self.root))
            .map_err(|source| RepositoryError::DamagedBy { key: key.clone(), source })?;
        format::check_envelope(line.as_bytes(), &key)?;
        let object: SignerObject = parse(line, &key)?;
        if object.kind != "signer" || object.number != number || object.repository != self.id {
            return Err(damaged("it is the signer of another place"));
        }
        if object.previous != self.signer_hashes.last().copied() {
            return Err(damaged("it does not follow the signer before it"));
        }
        let public = PublicKey::parse(&object.public_key)
            .map_err(|source| RepositoryError::DamagedBy { key: key.clone(), source })?;
        match object.action {
            SignerAction::Add { role, hosts } => {
                self.signers.push(Signer { key: public, role, hosts, last_good: None })
            }
            SignerAction::Revoke { last_good } => {
                for signer in self.signers.iter_mut().filter(|signer| signer.key == public) {
                    signer.last_good = Some(last_good.clone());
                }
            }
        }
        self.signer_hashes.push(object_id(bytes));
        Ok(())
    }

    /// Vouches for a key, or revokes one, as the next signer.
    pub fn add_signer(
        &mut self,
        root: &SigningKey,
        key: &PublicKey,
        action: SignerAction,
        now: DateTime<Utc>,
    ) -> Result<(), RepositoryError> {
        let number = self.signer_count() + 1;
        let object = SignerObject {
            kind: "signer".to_owned(),
            format: FORMAT,
            requires: Vec::new(),
            repository: self.id.clone(),
            number,
            previous: self.signer_hashes.last().copied(),
            time: now,
            public_key: key.to_text()?,
            action,
        };
        let bytes = root.sign(Namespace::Signer, &to_json(&object)?)?;
        self.storage.put_new(&layout::signer(number), &bytes)?;
        let bytes = self.get(&layout::signer(number), limits::SIGNED)?;
        self.take_signer(number, &bytes)
    }

    /// Whether `key` may sign snapshots of `host` now.
    pub fn signs_for(&self, key: &PublicKey, host: &HostName) -> bool {
        self.has_role(key, Role::Snapshot, host)
    }

    pub(super) fn has_role(&self, key: &PublicKey, role: Role, host: &HostName) -> bool {
        let has = |s: &Signer| s.role == role && s.key == *key && s.hosts.contains(host) && s.last_good.is_none();
        self.signers.iter().any(has)
    }

    /// Verifies a header: signature, role, host, revocation, its key in the storage, and that no signers are hidden.
    ///
    /// Where its signer has been revoked, the headers that the revocations call good come with it. One below them is as
    /// good only if they lead down to it: that takes the whole chain to tell.
    pub fn verify_header(&self, key: &StorageKey, bytes: &[u8]) -> Result<(Header, Vec<HeaderRef>), RepositoryError> {
        let damaged = |problem: &str| RepositoryError::Damaged { key: key.clone(), problem: problem.to_owned() };
        let place = layout::parse_header(key).ok_or_else(|| damaged("its name is not that of a snapshot"))?;
        let (line, who) = self.open_signed(key, bytes, Namespace::Snapshot)?;
        // Before anything that its signer says: a revoked key shall not even be able to ask for a newer version.
        let believed: Vec<&&Signer> = who.iter().filter(|signer| signer.is_believed(&place, bytes)).collect();
        if believed.is_empty() {
            return Err(damaged("its signer may not sign snapshots of this host"));
        }
        let in_good_standing = believed.iter().any(|signer| signer.last_good.is_none());
        let last_good = if in_good_standing {
            Vec::new()
        } else {
            believed.iter().flat_map(|signer| signer.last_good_of(&place.host, &place.policy)).collect()
        };
        let envelope = format::check_envelope(line.as_bytes(), key)?;
        if envelope.kind != "snapshot" {
            return Err(damaged("it is not the header of a snapshot"));
        }
        let header: Header = parse(line, key)?;
        if header.repository != self.id {
            return Err(damaged("it belongs to another repository"));
        }
        if header.host != place.host
            || header.policy != place.policy
            || header.sequence != place.sequence
            || header.id != place.id
        {
            return Err(damaged("it has been moved: its name and its content disagree"));
        }
        if header.signers > self.signer_count() {
            // What is hidden may be a revocation: then forged headers would be believed. So nothing is.
            return Err(RepositoryError::SignersMissing { key: layout::signer(self.signer_count() + 1) });
        }
        Ok((header, last_good))
    }

    /// Verifies a record; prune and repack records need a signer with the role `prune`.
    pub fn verify_record(&self, key: &StorageKey, bytes: &[u8]) -> Result<Record, RepositoryError> {
        let damaged = |problem: &str| RepositoryError::Damaged { key: key.clone(), problem: problem.to_owned() };
        let (line, who) = self.open_signed(key, bytes, Namespace::Record)?;
        format::check_envelope(line.as_bytes(), key)?;
        let record: Record = parse(line, key)?;
        if record.kind != "record" || record.repository != self.id {
            return Err(damaged("it belongs to another repository"));
        }
        if layout::dated(layout::RECORDS, record.time, object_id(bytes)) != key.as_str() {
            return Err(damaged("it has been moved: its name and its content disagree"));
        }
        let believed = who.iter().any(|s| {
            let may = match record.note {
                format::Note::Prune { .. } | format::Note::Repack { .. } => s.role == Role::Prune,
                _ => s.role != Role::Drill,
            };
            may && s.last_good.is_none() && s.hosts.contains(&record.host)
        });
        if believed { Ok(record) } else { Err(damaged("its signer may not sign this record")) }
    }

    fn open_signed<'a>(
        &self,
        key: &StorageKey,
        bytes: &'a [u8],
        namespace: Namespace,
    ) -> Result<(&'a str, Vec<&Signer>), RepositoryError> {
        let keys: Vec<PublicKey> = self.signers.iter().map(|s| s.key.clone()).collect();
        let (line, who) = sign::open(bytes, namespace, &keys)
            .map_err(|source| RepositoryError::DamagedBy { key: key.clone(), source })?;
        Ok((line, self.signers.iter().filter(|s| s.key == keys[who]).collect()))
    }

    /// Whether any key has been revoked.
    pub fn has_revoked(&self) -> bool {
        self.signers.iter().any(|signer| signer.last_good.is_some())
    }

    /// Whether a key has signed this that is revoked in all its roles: no record, drill or trash of it counts any more.
    pub fn is_of_revoked(&self, bytes: &[u8], namespace: Namespace) -> bool {
        let keys: Vec<PublicKey> = self.signers.iter().map(|s| s.key.clone()).collect();
        sign::open(bytes, namespace, &keys).is_ok_and(|(_, who)| {
            self.signers.iter().filter(|s| s.key == keys[who]).all(|signer| signer.last_good.is_some())
        })
    }

    /// Verifies a trash object, which needs a signer with the role `prune`.
    pub fn verify_trash(&self, key: &StorageKey, bytes: &[u8]) -> Result<TrashObject, RepositoryError> {
        let damaged = |problem: &str| RepositoryError::Damaged { key: key.clone(), problem: problem.to_owned() };
        let (line, who) = self.open_signed(key, bytes, Namespace::Trash)?;
        if !who.iter().any(|s| s.role == Role::Prune && s.last_good.is_none()) {
            return Err(damaged("its signer may not condemn objects"));
        }
        format::check_envelope(line.as_bytes(), key)?;
        let trash: TrashObject = parse(line, key)?;
        if trash.kind != "trash" || trash.repository != self.id {
            return Err(damaged("it belongs to another repository"));
        }
        if layout::dated(layout::TRASH, trash.time, object_id(bytes)) != key.as_str() {
            return Err(damaged("it has been moved: its name and its content disagree"));
        }
        Ok(trash)
    }

    /// Verifies the outcome of a drill, which needs a signer with the role `drill` for the snapshot's host.
    pub fn verify_drill(&self, key: &StorageKey, bytes: &[u8]) -> Result<DrillObject, RepositoryError> {
        let damaged = |problem: &str| RepositoryError::Damaged { key: key.clone(), problem: problem.to_owned() };
        let (line, who) = self.open_signed(key, bytes, Namespace::Drill)?;
        format::check_envelope(line.as_bytes(), key)?;
        let drill: DrillObject = parse(line, key)?;
        if drill.kind != "drill" || drill.repository != self.id {
            return Err(damaged("it belongs to another repository"));
        }
        if layout::drill(&drill.snapshot, drill.time).is_ok_and(|own| own != *key) {
            return Err(damaged("it has been moved: its name and its content disagree"));
        }
        let believed =
            who.iter().any(|s| s.role == Role::Drill && s.last_good.is_none() && s.hosts.contains(&drill.host));
        if believed { Ok(drill) } else { Err(damaged("its signer may not sign drills of this host")) }
    }

    /// Whether `key` may say how drills of this host's snapshots ended.
    pub fn drills_for(&self, key: &PublicKey, host: &HostName) -> bool {
        self.has_role(key, Role::Drill, host)
    }

    /// An object's bytes; a missing one is [`RepositoryError::Missing`], and one that is too long is damage. Where objects
    /// are locked, one that was deleted or overwritten is found behind that.
    pub fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, RepositoryError> {
        let read = self.storage.get(key, limit).map_err(|e| as_damage(e, key));
        let hidden = match &read {
            Ok(bytes) => {
                layout::object_id(key).is_some_and(|id| self.storage.object_locks().is_some() && object_id(bytes) != id)
            }
            Err(e) => e.is_integrity(),
        };
        if hidden && self.look_behind(key)? {
            return self.storage.get(key, limit).map_err(|e| as_damage(e, key));
        }
        read
    }

    /// Whether there is an older version of an object that does not read as it must; it is read from now on.
    pub(super) fn look_behind(&self, key: &StorageKey) -> Result<bool, RepositoryError> {
        match self.storage.object_locks() {
            Some(locks) => Ok(locks.look_behind(key)?),
            None => Ok(false),
        }
    }

    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    pub fn id(&self) -> &RepositoryId {
        &self.id
    }

    pub fn created(&self) -> DateTime<Utc> {
        self.created
    }

    /// The highest signer number.
    pub fn signer_count(&self) -> u32 {
        self.signer_hashes.len() as u32
    }

    /// The highest signer number and the hash of that object: what a reader remembers.
    pub fn last_signer(&self) -> Option<(u32, ObjectId)> {
        Some((self.signer_count(), *self.signer_hashes.last()?))
    }

    /// Refuses a repository whose signers are fewer, or others, than those that were seen before.
    pub fn check_signers(&self, number: u32, hash: ObjectId) -> Result<(), RepositoryError> {
        let key = layout::signer(number);
        match self.signer_hashes.get((number as usize).wrapping_sub(1)) {
            Some(there) if *there == hash => Ok(()),
            Some(_) => {
                let problem = "it is not the signer that was seen here before".to_owned();
                Err(RepositoryError::Damaged { key, problem })
            }
            None => Err(RepositoryError::SignersMissing { key: layout::signer(self.signer_count() + 1) }),
        }
    }

    /// The keys that may sign snapshots, with their hosts, for people.
    pub fn snapshot_signers(&self) -> impl Iterator<Item = (&PublicKey, &[HostName], bool)> {
        self.signers.iter().filter(|s| s.role == Role::Snapshot).map(|s| (&s.key, &s.hosts[..], s.last_good.is_some()))
    }
}

/// A header's place in the order: what a chain remembers of the newest one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainHead {
    pub host: HostName,
    pub policy: PolicyName,
    pub sequence: Sequence,
    pub header: ObjectId,
}

fn check_pin(pin: &Pin, found: &RepositoryId, location: &str) -> Result<(), RepositoryError> {
    match pin {
        Pin::Exactly(expected) if expected != found => Err(RepositoryError::ForeignRepository {
            location: location.to_owned(),
            found: found.to_string(),
            expected: expected.to_string(),
        }),
        Pin::Derived(ids) if !ids.contains(found) => {
            Err(RepositoryError::Unpinned { location: location.to_owned(), found: found.to_string() })
        }
        _ => Ok(()),
    }
}

/// What is gone, too long or unreadable is damage of that object; everything else is the storage's own failure.
pub(super) fn as_damage(error: StorageError, key: &StorageKey) -> RepositoryError {
    match error {
        StorageError::NotFound { key } => RepositoryError::Missing { key },
        StorageError::TooLarge { length, limit, .. } => RepositoryError::Damaged {
            key: key.clone(),
            problem: format!("it has {length} bytes where at most {limit} are possible"),
        },
        // A bad sector: the object is as lost as one whose bytes have changed, and all others are not.
        StorageError::Io { source, .. } if source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            RepositoryError::Damaged { key: key.clone(), problem: format!("the disk cannot read it: {source}") }
        }
        other => RepositoryError::Storage(other),
    }
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, RepositoryError> {
    serde_json::to_string(value).map_err(|e| RepositoryError::Key { problem: format!("encode JSON: {e}"), hint: None })
}

/// What did not parse may be of a newer format: then that is the better thing to say. Nothing is believed of it.
fn newer_or(line: &str, key: &StorageKey, error: RepositoryError) -> RepositoryError {
    format::check_envelope(line.as_bytes(), key).err().filter(|e| !e.is_integrity()).unwrap_or(error)
}

fn parse<'a, T: Deserialize<'a>>(line: &'a str, key: &StorageKey) -> Result<T, RepositoryError> {
    serde_json::from_str(line)
        .map_err(|e| RepositoryError::Damaged { key: key.clone(), problem: format!("it does not parse: {e}") })
}
