//! Signed objects: one JSON line ending in a newline, then an armored SSH signature. Nothing follows its END line.
//!
//! The signed bytes are the line with its newline, so
//! `sed '/^-----BEGIN SSH SIGNATURE-----$/,$d' OBJECT | ssh-keygen -Y verify …` checks it. The signature comes first:
//! [`open`] hands out the line only when it has been verified.
//!
//! Format: OpenSSH PROTOCOL.sshsig.

use crate::base::ids::RepositoryId;
use crate::base::secret::Secret;
use crate::pipeline::PipelineError;
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{HashAlg, LineEnding, PrivateKey, SshSig};

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "-----END SSH SIGNATURE-----";
const ROOT_CONTEXT: &str = "lifeboat 2026-11 format 1 root key";

/// What kind of object a signature is for. A signature for one kind is none for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Namespace {
    Repository,
    Signer,
    Snapshot,
    Record,
    Drill,
    Trash,
}

impl Namespace {
    /// The namespace as the signature holds it.
    pub fn as_str(self) -> &'static str {
        match self {
            Namespace::Repository => "lifeboat-repository",
            Namespace::Signer => "lifeboat-signer",
            Namespace::Snapshot => "lifeboat-snapshot",
            Namespace::Record => "lifeboat-record",
            Namespace::Drill => "lifeboat-drill",
            Namespace::Trash => "lifeboat-trash",
        }
    }
}

/// An Ed25519 key that signs: the root key, or a host's.
pub struct SigningKey(PrivateKey);

impl SigningKey {
    /// A key from its seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(PrivateKey::from(Ed25519Keypair::from_seed(seed)))
    }

    /// The root key that belongs to an age identity's secret text.
    pub fn derive_root(identity_secret: &[u8]) -> Self {
        let seed = Secret::new(blake3::derive_key(ROOT_CONTEXT, identity_secret));
        Self::from_seed(seed.expose())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key().clone())
    }

    /// The seed, for the host key file.
    pub fn seed(&self) -> Option<Secret<[u8; 32]>> {
        match self.0.key_data() {
            KeypairData::Ed25519(pair) => Some(Secret::new(pair.private.to_bytes())),
            _ => None,
        }
    }

    /// The object for a JSON text without newlines.
    pub fn sign(&self, namespace: Namespace, json: &str) -> Result<Vec<u8>, PipelineError> {
        if json.contains('\n') {
            return Err(PipelineError::damaged("a signed line cannot hold a newline"));
        }
        let line = format!("{json}\n");
        let seal = |e: ssh_key::Error| PipelineError::Seal { action: "sign", source: e.into() };
        let signature = self.0.sign(namespace.as_str(), HashAlg::Sha512, line.as_bytes()).map_err(seal)?;
        let armored = signature.to_pem(LineEnding::LF).map_err(seal)?;
        Ok(format!("{line}{}\n", armored.trim_end()).into_bytes())
    }
}

/// A public Ed25519 key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicKey(ssh_key::PublicKey);

impl PublicKey {
    /// Reads `ssh-ed25519 AAAA…`.
    pub fn parse(text: &str) -> Result<Self, PipelineError> {
        let key = ssh_key::PublicKey::from_openssh(text)
            .map_err(|e| PipelineError::DamagedBy { problem: "public key does not parse", source: e.into() })?;
        if key.algorithm() != ssh_key::Algorithm::Ed25519 {
            return Err(PipelineError::damaged("public key is not ssh-ed25519"));
        }
        Ok(Self(ssh_key::PublicKey::new(key.key_data().clone(), "")))
    }

    /// `ssh-ed25519 AAAA…`, without a comment.
    pub fn to_text(&self) -> Result<String, PipelineError> {
        self.0
            .to_openssh()
            .map_err(|e| PipelineError::DamagedBy { problem: "public key does not encode", source: e.into() })
    }

    /// `SHA256:…`, as `ssh-keygen -lf` prints it: for the root key, the repository id.
    pub fn fingerprint(&self) -> Result<RepositoryId, PipelineError> {
        let text = self.0.fingerprint(HashAlg::Sha256).to_string();
        text.parse().map_err(|_| PipelineError::damaged("fingerprint has an odd form"))
    }
}

/// A signed object taken apart, nothing of it believed yet.
struct Parts<'a> {
    line: &'a str,
    signature: SshSig,
}

fn split(bytes: &[u8]) -> Result<Parts<'_>, PipelineError> {
    let damaged = |problem: &str| PipelineError::damaged(problem);
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("signed object is not UTF-8"))?;
    let end_of_line = text.find('\n').ok_or_else(|| damaged("signed object has no line"))? + 1;
    let (line, armored) = text.split_at(end_of_line);
    let inner = armored
        .strip_prefix(BEGIN)
        .and_then(|rest| rest.strip_suffix('\n'))
        .and_then(|rest| rest.strip_suffix(END))
        .ok_or_else(|| damaged("signed object is not one line and one signature"))?;
    if !inner.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'\n')) {
        return Err(damaged("signature is not base64"));
    }
    let signature = SshSig::from_pem(armored.trim_end())
        .map_err(|e| PipelineError::DamagedBy { problem: "signature does not parse", source: e.into() })?;
    if signature.version() != SshSig::VERSION {
        return Err(damaged("signature is of another version"));
    }
    // One signature has one spelling: another armor of the same bytes would be another object with the same meaning.
    let canonical = signature.to_pem(LineEnding::LF).map_err(|_| damaged("signature does not encode"))?;
    if canonical.trim_end() != armored.trim_end() {
        return Err(damaged("signature has an odd armor"));
    }
    Ok(Parts { line, signature })
}

/// Verifies a signed object by one of `keys`; returns its line (without newline) and which key it was.
pub fn open<'a>(bytes: &'a [u8], namespace: Namespace, keys: &[PublicKey]) -> Result<(&'a str, usize), PipelineError> {
    let parts = split(bytes)?;
    let who = keys
        .iter()
        .position(|key| key.0.key_data() == parts.signature.public_key())
        .ok_or_else(|| PipelineError::damaged("signed by a key that this repository does not vouch for"))?;
    keys[who].0.verify(namespace.as_str(), parts.line.as_bytes(), &parts.signature).map_err(|e| {
        PipelineError::DamagedBy { problem: "signature does not belong to these bytes", source: e.into() }
    })?;
    Ok((parts.line.trim_end_matches('\n'), who))
}

/// The line of an object whose signer is named inside the line itself: `repository.json`, whose root key the caller
/// compares with its pin before believing anything.
pub fn peek_line(bytes: &[u8]) -> Result<&str, PipelineError> {
    Ok(split(bytes)?.line.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    #[test]
    fn opens_only_by_the_right_key_and_namespace() {
        let object = key(1).sign(Namespace::Snapshot, r#"{"a":1}"#).unwrap();
        let (line, who) = open(&object, Namespace::Snapshot, &[key(2).public(), key(1).public()]).unwrap();
        assert_eq!((line, who), (r#"{"a":1}"#, 1));
        assert!(open(&object, Namespace::Record, &[key(1).public()]).is_err());
        assert!(open(&object, Namespace::Snapshot, &[key(2).public()]).is_err());
        assert!(key(1).sign(Namespace::Snapshot, "a\nb").is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_addition_is_noticed() {
        let object = key(1).sign(Namespace::Snapshot, r#"{"sequence":12}"#).unwrap();
        let keys = [key(1).public()];
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut flipped = object.clone();
                flipped[at] ^= 1 << bit;
                assert!(open(&flipped, Namespace::Snapshot, &keys).is_err(), "byte {at} bit {bit}");
            }
            assert!(open(&object[..at], Namespace::Snapshot, &keys).is_err(), "cut at {at}");
        }
        for tail in ["\n", " ", "x", "{\"sequence\":13}\n"] {
            assert!(
                open(&[&object[..], tail.as_bytes()].concat(), Namespace::Snapshot, &keys).is_err(),
                "{tail:?} behind"
            );
        }
    }

    #[test]
    fn ssh_keygen_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let object = key(1).sign(Namespace::Snapshot, r#"{"a":"ž"}"#).unwrap();
        let text = String::from_utf8(object).unwrap();
        let at = text.find(BEGIN).unwrap();
        std::fs::write(path("sig"), &text[at..]).unwrap();
        std::fs::write(path("allowed"), format!("host {}\n", key(1).public().to_text().unwrap())).unwrap();
        std::fs::write(path("line"), &text[..at]).unwrap();
        let status = std::process::Command::new("ssh-keygen")
            .args(["-Y", "verify", "-n", "lifeboat-snapshot", "-I", "host", "-f"])
            .arg(path("allowed"))
            .arg("-s")
            .arg(path("sig"))
            .stdin(std::fs::File::open(path("line")).unwrap())
            .status()
            .expect("ssh-keygen is installed");
        assert!(status.success());
    }
}
