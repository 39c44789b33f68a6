//! `init`: keys, repository, signer, proof, policy, in this order.

use super::draft::{BucketOptions, Draft};
use super::keys::{Keys, KeysReport, root_id};
use super::proof::{Proof, prove};
use super::shared::{Shared, shared};
use crate::base::atomic::{self, IfExists};
use crate::base::ids::{HostName, PolicyName, RepositoryId};
use crate::ops::access::{Installation, host_name};
use crate::ops::discover::{self, Discovery, External, Uncovered};
use crate::ops::runner::{self, Runner};
use crate::ops::storage::{StorageOptions, is_tight, local_storage, open_storage};
use crate::ops::{OpsError, Run, probe};
use crate::pipeline::crypt::Recipients;
use crate::policy::model::{MinFree, RepositoryUrl};
use crate::policy::{self, Policy};
use crate::repository::format::{Role, SignerAction};
use crate::repository::state::State;
use crate::repository::trust::Pin;
use crate::repository::{Repository, RepositoryError};
use serde::Serialize;
use std::io;
use std::path::{Component, Path, PathBuf};

/// What `init` was asked for.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    pub dir: PathBuf,
    pub name: Option<PolicyName>,
    /// Absent: `<state-dir>/repository`.
    pub repository: Option<RepositoryUrl>,
    /// How an s3:// repository is reached.
    pub bucket: BucketOptions,
    /// Absent: the installation's own.
    pub identity: Option<PathBuf>,
    /// Beside the identity's own.
    pub recipients: Vec<String>,
}

/// What `init` did.
#[derive(Debug, Serialize)]
pub struct InitReport {
    pub policy: PolicyName,
    /// The name was made from the folder's name.
    pub name_from_folder: bool,
    pub policy_file: PathBuf,
    pub root: PathBuf,
    pub host: HostName,
    pub repository: String,
    pub repository_new: bool,
    /// This host's key was not known to the repository before.
    pub signer_new: bool,
    pub repository_id: RepositoryId,
    pub keys: KeysReport,
    pub recipients: Vec<Proof>,
    /// What the policy captures beyond `git` and `compose`.
    pub covered: Vec<Covered>,
    /// What was seen and nothing captures.
    pub not_covered: Vec<Uncovered>,
    /// Data of the application that somebody else keeps.
    pub external: Vec<External>,
    /// What other installed policies capture too.
    pub shared: Vec<Shared>,
    /// What git keeps of what is mounted into services: the source `git` captures it, with its edits.
    pub in_git: Vec<PathBuf>,
    /// What the policy says of the repository's disk, where that is nearly full already.
    pub tight: Option<Tight>,
    /// How to have the schedule run, where nothing on this host does.
    pub to_run: Option<String>,
    /// How many policies are installed now.
    pub policies: usize,
}

/// A disk that is tight by the default reserve: soon nobody could write, or nobody can by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tight {
    /// Bytes that were free.
    pub free: u64,
    /// Bytes that no writer takes instead.
    pub min_free: u64,
}

/// One source that was written.
#[derive(Debug, Serialize)]
pub struct Covered {
    pub source: String,
    pub kind: &'static str,
    /// For people: `PostgreSQL in service "db": database shop`.
    pub what: String,
}

/// Sets up the application of a folder.
pub fn init(installation: &Installation, options: &InitOptions, run: &Run) -> Result<InitReport, OpsError> {
    let root = find_root(&options.dir)?;
    let (name, name_from_folder) = match &options.name {
        Some(name) => (name.clone(), false),
        None => (name_of(&root)?, true),
    };
    let host = host_name()?;
    let policy_file = installation.policies().join(format!("{name}.toml"));
    refuse_second(installation, &policy_file, &root, &name)?;
    let default_url = || {
        let path = std::path::absolute(installation.state_dir.join("repository"));
        path.map(RepositoryUrl::Local).map_err(|e| OpsError::file("find", &installation.state_dir, e))
    };
    let url = options.repository.clone().map_or_else(default_url, Ok)?;
    Recipients::parse(&with_any(&options.recipients)).map_err(RepositoryError::from)?;
    // Whatever the draft would not allow is said before a key is made for it.
    let tight = tight(&url);
    let scene = |found| Scene {
        name: &name,
        root: &root,
        url: &url,
        bucket: &options.bucket,
        tight,
        found,
        file: &policy_file,
    };
    let nothing = Discovery::default();
    scene(&nothing).draft(&with_any(&options.recipients), &installation.identity())?;
    let found = discover::discover(&discover::app_of(name.clone(), root.clone()), run)?;
    let scene = scene(&found);
    scene.draft(&with_any(&options.recipients), &installation.identity())?;

    let keys = Keys::load_or_make(installation, options.identity.as_deref(), run)?;
    run.cancel.check()?;
    let recipients = recipients_of(&keys, &options.recipients)?;
    let (text, policy) = scene.draft(&recipients, &installation.identity())?;

    // Before anything is stored there: a server that is not safe to store in is refused.
    probe::probe(&installation.state_dir, &policy.repository, run)?;
    let opened = open_or_create(installation, &policy, &keys, &host, run)?;
    let state = State::open(&installation.state_dir)?;
    state.set_pin(&opened.repository.storage().describe(), opened.repository.id())?;
    let identities = keys.identity.as_ref().map(|(_, file)| &file.identities);
    let proofs = prove(&installation.state_dir, &recipients, identities)?;
    run.cancel.check()?;

    // The commit point: from here on the application is set up.
    write_policy(&policy_file, &text)?;
    // What cannot be told is `doctor`'s to say: all is set up.
    let runner = runner::find(installation, &policy, run.now, &run.cancel).ok();
    let to_run = matches!(runner, Some(Runner::Nobody | Runner::Stopped(_))).then(|| runner::way_out(installation));
    let covered =
        found.finds.iter().map(|f| Covered { source: f.name.clone(), kind: f.thing.kind(), what: f.what.clone() });
    let covered = covered.collect();
    Ok(InitReport {
        shared: shared(installation, &policy),
        policy: name,
        name_from_folder,
        policy_file,
        host,
        repository: policy.repository.url.to_string(),
        repository_new: opened.created,
        signer_new: opened.vouched,
        repository_id: opened.repository.id().clone(),
        keys: keys.report(installation)?,
        recipients: proofs,
        covered,
        not_covered: found.uncovered,
        external: found.external,
        in_git: found.by_git,
        tight,
        to_run,
        policies: policy::find::installed(&installation.config_dir).map_or(1, |names| names.len()),
        root,
    })
}

/// The folder, absolute. Symlinks in it stay: `/srv/shop/current` shall go on meaning the current release.
fn find_root(dir: &Path) -> Result<PathBuf, OpsError> {
    let meta = std::fs::metadata(dir).map_err(|e| OpsError::file("look at", dir, e))?;
    if !meta.is_dir() {
        return Err(OpsError::usage(
            format!("{} is not a folder", dir.display()),
            "name the folder that holds the application's checkout or compose file",
        ));
    }
    let absolute = if dir.components().any(|c| c == Component::ParentDir) {
        std::fs::canonicalize(dir)
    } else {
        std::path::absolute(dir)
    };
    absolute.map_err(|e| OpsError::file("find", dir, e))
}

/// A valid name from the folder's name.
fn name_of(root: &Path) -> Result<PolicyName, OpsError> {
    let folder = root.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut name = String::new();
    for c in folder.chars() {
        let c = if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
        if c != '-' || !(name.is_empty() || name.ends_with('-')) {
            name.push(c);
        }
    }
    name.truncate(64);
    name.trim_end_matches('-').parse().map_err(|_| {
        OpsError::usage(
            format!("no application name can be made from the folder {}", root.display()),
            "give it one with --name, of a-z, 0-9 and -",
        )
    })
}

/// One folder, one policy: a second one would store everything twice under two histories.
fn refuse_second(installation: &Installation, file: &Path, root: &Path, name: &PolicyName) -> Result<(), OpsError> {
    if file.exists() {
        return Err(OpsError::usage(
            format!("the policy {name:?} exists already: {}", file.display()),
            format!(
                "go on with `lifeboat snapshot -p {name}`; edit that file to change it, or move it away to begin anew; another application needs another --name"
            ),
        ));
    }
    let same = |a: &Path| a == root || matches!((a.canonicalize(), root.canonicalize()), (Ok(a), Ok(b)) if a == b);
    for other in policy::find::installed(&installation.config_dir).unwrap_or_default() {
        let path = installation.policies().join(format!("{other}.toml"));
        // A policy that does not load speaks for itself when it is used.
        if let Ok(policy) = policy::load(&path)
            && same(&policy.app.root)
        {
            return Err(OpsError::usage(
                format!("{} is set up already, as {other:?}: {}", root.display(), path.display()),
                format!(
                    "go on with `lifeboat snapshot -p {other}`; edit that file to change it, or move it away to begin anew"
                ),
            ));
        }
    }
    Ok(())
}

/// The recipients given, or one that stands for those to come: for a look at the draft before keys are made.
fn with_any(recipients: &[String]) -> Vec<String> {
    const ANY: &str = "age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz";
    if recipients.is_empty() { vec![ANY.to_owned()] } else { recipients.to_vec() }
}

/// For whom snapshots are encrypted; never nobody.
fn recipients_of(keys: &Keys, named: &[String]) -> Result<Vec<String>, OpsError> {
    let own = keys.identity.as_ref().and_then(|(_, file)| Some(file.first()?.recipient()));
    let all: Vec<String> = own.into_iter().chain(named.iter().cloned()).collect();
    if all.is_empty() {
        return Err(OpsError::usage(
            "there is no recipient: this host is sealed, and nothing says who shall be able to read its snapshots",
            "name one with --recipient age1… (`lifeboat keys show` prints it where the identity is), or the identity with --identity FILE",
        ));
    }
    Ok(Recipients::parse(&all).map_err(RepositoryError::from)?.texts().to_vec())
}

/// What to keep free on a disk that is tight by the default: a quarter of what is left, so that it is not tight at once
/// again. Setting up would be refused otherwise, before there is a policy in which to lower anything.
fn tight(url: &RepositoryUrl) -> Option<Tight> {
    const MIB: u64 = 1 << 20;
    let RepositoryUrl::Local(path) = url else { return None };
    let there = path.ancestors().find(|p| p.is_dir())?;
    let (free, reserve) = local_storage(there, MinFree::default()).room().ok()?;
    let min_free = free / 4 / MIB * MIB;
    // Where next to nothing is free, no reserve helps: what is missing is room.
    (is_tight(free, reserve) && min_free > 0).then_some(Tight { free, min_free })
}

struct Scene<'a> {
    name: &'a PolicyName,
    root: &'a Path,
    url: &'a RepositoryUrl,
    bucket: &'a BucketOptions,
    tight: Option<Tight>,
    found: &'a Discovery,
    file: &'a Path,
}

impl Scene<'_> {
    /// The policy's text, checked as every policy is.
    fn draft(&self, recipients: &[String], identity: &Path) -> Result<(String, Policy), OpsError> {
        let not_text = |path: &Path| {
            OpsError::usage(format!("the path {} is not UTF-8", path.display()), "a policy is text: rename it")
        };
        let root = self.root.to_str().ok_or_else(|| not_text(self.root))?;
        if let RepositoryUrl::Local(path) = self.url
            && path.to_str().is_none()
        {
            return Err(not_text(path));
        }
        let repository = self.url.to_string();
        let draft = Draft {
            name: self.name,
            root,
            repository: &repository,
            bucket: self.bucket,
            tight: self.tight,
            recipients,
            identity,
            found: self.found,
        };
        let text = draft.text();
        let policy = policy::parse(self.file, &text).map_err(|errors| {
            let first = errors.errors.into_iter().next();
            let (problem, hint) = first.map_or((String::new(), None), |e| (e.message, e.hint));
            let hint = hint.or_else(|| Some("choose another folder, name or repository".to_owned()));
            OpsError::Usage { problem: format!("no policy can be written for this: {problem}"), hint }
        })?;
        Ok((text, policy))
    }
}

pub(super) struct Opened {
    pub repository: Repository,
    pub created: bool,
    pub vouched: bool,
}

/// Opens the repository, or creates it; and lets the root key vouch for this host's key.
pub(super) fn open_or_create(
    installation: &Installation,
    policy: &Policy,
    keys: &Keys,
    host: &HostName,
    run: &Run,
) -> Result<Opened, OpsError> {
    let url = &policy.repository.url;
    let options = StorageOptions::of(&policy.repository).knowing(&installation.state_dir, url);
    let storage = open_storage(url, &options)?;
    let expected = match (&keys.host_key.repository, &keys.identity) {
        (Some(id), _) => id.clone(),
        (None, Some((path, file))) => root_id(file, path)?,
        (None, None) => return Err(OpsError::NoIdentity { what: "setting up a host" }),
    };
    let root = keys.identity.as_ref().and_then(|(_, file)| file.root_key_of(&expected));
    let (mut repository, created) = match Repository::open(storage.clone(), &Pin::Exactly(expected.clone())) {
        Ok(repository) => (repository, false),
        Err(RepositoryError::NoRepository { .. }) => {
            let root = root.as_ref().ok_or(OpsError::NoIdentity { what: "creating a repository" })?;
            refuse_another(installation, url, &expected)?;
            run.events.step(format!("creating the repository {}", policy.repository.url));
            (Repository::create(storage, root, run.now)?, true)
        }
        Err(e) => return Err(e.into()),
    };
    let key = keys.host_key.signing.public();
    if repository.snapshot_signers().any(|(known, _, revoked)| revoked && *known == key) {
        return Err(OpsError::usage(
            "this host's key has been revoked: somebody may have taken it",
            "move host.key away, so that a new one is made; nothing that is stored is lost by that",
        ));
    }
    let vouched = !repository.signs_for(&key, host);
    if vouched {
        let root = root.as_ref().ok_or(OpsError::NoIdentity { what: "vouching for this host's key" })?;
        let action = SignerAction::Add { role: Role::Snapshot, hosts: vec![host.clone()] };
        repository.add_signer(root, &key, action, run.now)?;
    }
    Ok(Opened { repository, created, vouched })
}

/// A repository is known by its root key. Two with the same one could not be told from one that was tampered with: what
/// is remembered of the one would be missing in the other.
fn refuse_another(installation: &Installation, url: &RepositoryUrl, id: &RepositoryId) -> Result<(), OpsError> {
    let state = State::open(&installation.state_dir)?;
    if state.signer(id)?.is_none() {
        return Ok(());
    }
    let places = state.places_of(id)?;
    let first = places.first().cloned().unwrap_or_else(|| "another place".to_owned());
    Err(OpsError::usage(
        format!("{url} holds no repository, and this host's keys belong to the one at {first}"),
        format!(
            "several applications share a repository, deduplicated and apart: --repository {first}. For one of its own, give it \
             keys of its own with --config-dir and --state-dir; if {first} is gone for good, move {} away first",
            installation.state_dir.display()
        ),
    ))
}

fn write_policy(file: &Path, text: &str) -> Result<(), OpsError> {
    let dir = file.parent().unwrap_or(Path::new("."));
    atomic::create_private_dir(dir).map_err(|e| OpsError::file("create folder", dir, e))?;
    atomic::write(file, text.as_bytes(), 0o600, IfExists::Fail).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => OpsError::usage(
            format!("the policy {} was written by somebody else just now", file.display()),
            "look at it; it is left as it is",
        ),
        _ => OpsError::file("write", file, e),
    })
}
