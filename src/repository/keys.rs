//! Identity file, root key, host key file.
//!
//! The identity opens everything and the root key is derived from it; neither need be on the protected host. The host
//! key file holds two independent secrets (mode 0600): *dedup* (chunk ids, chunker table, host recipient) and
//! *signing*. A stolen host key reads no backup; a lost one loses none.

use crate::base::atomic::{self, IfExists};
use crate::base::ids::{RepositoryId, random_bytes};
use crate::base::secret::Secret;
use crate::base::time::rfc3339;
use crate::pipeline::chunk::{ChunkIdKey, GearTable};
use crate::pipeline::crypt::{Identities, Identity};
use crate::pipeline::sign::SigningKey;
use crate::repository::RepositoryError;
use age::secrecy::ExposeSecret;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const HOST_RECIPIENT_CONTEXT: &str = "lifeboat 2026-11 format 1 host recipient";

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RepositoryError {
    let path = path.to_owned();
    move |source| RepositoryError::File { action, path, source }
}

fn key_error(problem: impl Into<String>, hint: impl Into<String>) -> RepositoryError {
    RepositoryError::Key { problem: problem.into(), hint: Some(hint.into()) }
}

/// Refuses a secret file that others can read.
fn check_private(path: &Path) -> Result<(), RepositoryError> {
    let mode = fs::metadata(path).map_err(file_error("look at", path))?.mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(key_error(
        format!("{} is readable by others (mode {:04o})", path.display(), mode & 0o7777),
        format!("make it private: chmod 600 {}", path.display()),
    ))
}

/// The root key of an identity: derived from an age key, or the ssh key itself.
pub fn root_key(identity: &Identity) -> Result<SigningKey, RepositoryError> {
    Ok(match identity {
        Identity::X25519(_) => SigningKey::derive_root(identity.root_secret().expose()),
        Identity::Ssh { seed, .. } => SigningKey::from_seed(seed.expose()),
    })
}

/// The identities of a file, and the repository that the file speaks of.
pub struct IdentityFile {
    pub identities: Identities,
    /// From the comment `# repository: SHA256:…`.
    pub repository: Option<RepositoryId>,
}

impl IdentityFile {
    /// Makes a new age identity and writes it to `path` (0600), refusing to replace.
    pub fn create(path: &Path, now: DateTime<Utc>) -> Result<Self, RepositoryError> {
        let identity = Identity::X25519(age::x25519::Identity::generate());
        let repository = root_key(&identity)?.public().fingerprint()?;
        let text = Secret::new(format!(
            "# Lifeboat identity: whoever has this file can read every backup sealed to it.\n\
             # Keep a copy away from this host; without it no backup can be restored.\n\
             # created: {}\n# recipient: {}\n# repository: {repository}\n{}\n",
            rfc3339(now),
            identity.recipient(),
            match &identity {
                Identity::X25519(key) => key.to_string().expose_secret().to_owned(),
                Identity::Ssh { .. } => String::new(),
            },
        ));
        write_secret(path, text.expose(), "identity file")?;
        Ok(Self { identities: Identities::new(vec![identity]), repository: Some(repository) })
    }

    /// Reads an identity file; others must not be able to.
    pub fn load(path: &Path) -> Result<Self, RepositoryError> {
        check_private(path)?;
        let text = Secret::new(fs::read_to_string(path).map_err(file_error("read", path))?);
        let identities = Identities::parse(text.expose()).map_err(|e| {
            key_error(format!("{}: {e}", path.display()), "name an age identity file or an ssh-ed25519 private key")
        })?;
        let comment = text.expose().lines().find_map(|l| l.trim().strip_prefix("# repository:"));
        let repository = comment.and_then(|id| id.trim().parse().ok());
        Ok(Self { identities, repository })
    }

    /// Every repository that these identities could be the root of.
    pub fn possible_repositories(&self) -> Vec<RepositoryId> {
        let derived = self.identities.iter().filter_map(|i| root_key(i).ok()?.public().fingerprint().ok());
        self.repository.iter().cloned().chain(derived).collect()
    }

    /// The root key whose repository is `id`, if one of the identities has it.
    pub fn root_key_of(&self, id: &RepositoryId) -> Option<SigningKey> {
        self.identities.iter().find_map(|identity| {
            let key = root_key(identity).ok()?;
            (key.public().fingerprint().ok()? == *id).then_some(key)
        })
    }

    /// The first identity, whose root key a new repository gets.
    pub fn first(&self) -> Option<&Identity> {
        self.identities.iter().next()
    }
}

fn write_secret(path: &Path, text: &str, what: &str) -> Result<(), RepositoryError> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        atomic::create_private_dir(dir).map_err(file_error("create folder", dir))?;
    }
    atomic::write(path, text.as_bytes(), 0o600, IfExists::Fail).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => key_error(
            format!("there is a {what} at {} already", path.display()),
            "it is left as it is: backups may depend on it; move it away first, or use it",
        ),
        _ => RepositoryError::File { action: "write", path: path.to_owned(), source },
    })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostKeyText {
    format: u64,
    dedup: String,
    signing: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repository: Option<RepositoryId>,
}

impl Drop for HostKeyText {
    fn drop(&mut self) {
        use zeroize::Zeroize;
        self.dedup.zeroize();
        self.signing.zeroize();
    }
}

/// The two secrets of a host.
pub struct HostKey {
    dedup: Secret<[u8; 32]>,
    pub signing: SigningKey,
    /// The repository that this host belongs to: what a sealed host pins.
    pub repository: Option<RepositoryId>,
}

impl HostKey {
    /// Makes new secrets and writes them to `path` (0600), refusing to replace.
    pub fn create(path: &Path, repository: Option<RepositoryId>) -> Result<Self, RepositoryError> {
        let random = || random_bytes::<32>().map(Secret::new).map_err(file_error("make a key for", path));
        let (dedup, signing) = (random()?, random()?);
        let text = HostKeyText {
            format: 1,
            dedup: hex::encode(dedup.expose()),
            signing: hex::encode(signing.expose()),
            repository: repository.clone(),
        };
        let body = toml::to_string(&text).map_err(|e| key_error(format!("host key: {e}"), "report this"))?;
        let body = Secret::new(format!(
            "# Lifeboat host key: signs this host's snapshots and finds their duplicates. It reads no backup.\n{body}"
        ));
        write_secret(path, body.expose(), "host key")?;
        Ok(Self { dedup, signing: SigningKey::from_seed(signing.expose()), repository })
    }

    /// Reads a host key file; others must not be able to.
    pub fn load(path: &Path) -> Result<Self, RepositoryError> {
        if !path.exists() {
            return Err(key_error(
                format!("there is no host key at {}", path.display()),
                "make one with `lifeboat keys new` (in the place of one that was lost: `lifeboat keys rotate`), or name the folder that holds it with --config-dir",
            ));
        }
        check_private(path)?;
        let text = Secret::new(fs::read_to_string(path).map_err(file_error("read", path))?);
        // The parser's own message would quote the line, and with it a secret.
        let bad = || {
            key_error(
                format!("{} is not a host key file", path.display()),
                "restore it from a copy, or move it away and make another one with `lifeboat keys rotate`",
            )
        };
        let parsed: HostKeyText = toml::from_str(text.expose()).map_err(|_| bad())?;
        if parsed.format != 1 {
            return Err(RepositoryError::NewerFormat { what: path.display().to_string(), found: parsed.format });
        }
        let secret = |text: &str| {
            let mut bytes = [0u8; 32];
            hex::decode_to_slice(text, &mut bytes).map(|()| Secret::new(bytes)).map_err(|_| bad())
        };
        let signing = secret(&parsed.signing)?;
        Ok(Self {
            dedup: secret(&parsed.dedup)?,
            signing: SigningKey::from_seed(signing.expose()),
            repository: parsed.repository.clone(),
        })
    }

    pub fn chunk_id_key(&self) -> ChunkIdKey {
        ChunkIdKey::derive(self.dedup.expose())
    }

    pub fn gear_table(&self) -> GearTable {
        GearTable::derive(self.dedup.expose())
    }

    /// A key for hashes of secret values in facts.
    pub fn fact_key(&self) -> Secret<[u8; 32]> {
        Secret::new(blake3::derive_key("lifeboat 2026-11 format 1 fact key", self.dedup.expose()))
    }

    /// The identity that opens index objects only.
    pub fn host_identity(&self) -> Result<age::x25519::Identity, RepositoryError> {
        let bytes = Secret::new(blake3::derive_key(HOST_RECIPIENT_CONTEXT, self.dedup.expose()));
        let bad = || key_error("the host recipient cannot be derived", "report this");
        let prefix = bech32::Hrp::parse("age-secret-key-").map_err(|_| bad())?;
        let text = bech32::encode::<bech32::Bech32>(prefix, bytes.expose()).map_err(|_| bad())?;
        let text = Secret::new(text.to_uppercase());
        text.expose().parse().map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_private_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (identity, host) = (dir.path().join("k/identity.txt"), dir.path().join("k/host.key"));
        let made = IdentityFile::create(&identity, "2026-11-21T00:00:00Z".parse().unwrap()).unwrap();
        let made_host = HostKey::create(&host, made.repository.clone()).unwrap();
        for path in [&identity, &host] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(dir.path().join("k")).unwrap().mode() & 0o777, 0o700);
        assert!(IdentityFile::create(&identity, Utc::now()).is_err());
        assert!(HostKey::create(&host, None).is_err());

        let loaded = IdentityFile::load(&identity).unwrap();
        assert_eq!(loaded.repository, made.repository);
        assert_eq!(loaded.possible_repositories()[1], loaded.possible_repositories()[0], "comment and root key agree");
        let loaded_host = HostKey::load(&host).unwrap();
        assert_eq!(loaded_host.signing.public(), made_host.signing.public());
        assert_eq!(
            loaded_host.host_identity().unwrap().to_public().to_string(),
            made_host.host_identity().unwrap().to_public().to_string()
        );
    }

    #[test]
    fn readable_or_broken_key_files_are_refused_without_quoting_them() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        HostKey::create(&path, None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = HostKey::load(&path).err().unwrap();
        assert!(error.hint().unwrap().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let text = fs::read_to_string(&path).unwrap().replace("signing", "sining");
        fs::write(&path, &text).unwrap();
        let error = HostKey::load(&path).err().unwrap().to_string();
        assert!(error.contains("not a host key file") && !error.contains("sining"), "{error}");
    }
}
