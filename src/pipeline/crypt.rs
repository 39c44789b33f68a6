//! age: who can open (recipients), who opens (identities), whole objects sealed and opened.
//!
//! age says nothing of who wrote a file: signatures do (`sign.rs`), and they are checked before anything here runs.
//! Stanzas other than X25519 and ssh-ed25519 (and age's own grease) are refused in repository objects.

use crate::base::direct::Aligned;
use crate::base::ids::{ObjectId, RecipientSetId};
use crate::base::secret::Secret;
use crate::pipeline::payload::{self, NONCE, PayloadKey, Sealer};
use crate::pipeline::{PipelineError, limits};
use age::armor::{ArmoredWriter, Format};
use age::secrecy::ExposeSecret;
use age_core::format::{FileKey, Stanza};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{Read, Write};

/// The SHA-256 of stored bytes: an object's id.
pub fn object_id(bytes: &[u8]) -> ObjectId {
    ObjectId(Sha256::digest(bytes).into())
}

/// One recipient: an age X25519 or an ssh-ed25519 public key.
#[derive(Clone)]
enum Recipient {
    X25519(age::x25519::Recipient),
    Ssh(age::ssh::Recipient),
}

impl Recipient {
    fn as_age(&self) -> &dyn age::Recipient {
        match self {
            Recipient::X25519(key) => key,
            Recipient::Ssh(key) => key,
        }
    }
}

/// A recipient or an identity of age, and the file key that it wraps or unwraps: age makes and reads the header, and the
/// payload is this crate's.
struct Overheard<'a, T: ?Sized> {
    by: &'a T,
    key: &'a RefCell<Option<FileKey>>,
}

impl<T: ?Sized> Overheard<'_, T> {
    fn keep(&self, file_key: &FileKey) {
        let copy = FileKey::init_with_mut(|key| key.copy_from_slice(file_key.expose_secret()));
        *self.key.borrow_mut() = Some(copy);
    }
}

impl age::Recipient for Overheard<'_, dyn age::Recipient + '_> {
    fn wrap_file_key(&self, file_key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        self.keep(file_key);
        self.by.wrap_file_key(file_key)
    }
}

impl age::Identity for Overheard<'_, dyn age::Identity + '_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        self.by.unwrap_stanza(stanza).inspect(|unwrapped| unwrapped.iter().for_each(|key| self.keep(key)))
    }

    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Result<FileKey, age::DecryptError>> {
        self.by.unwrap_stanzas(stanzas).inspect(|unwrapped| unwrapped.iter().for_each(|key| self.keep(key)))
    }
}

/// Who can open what is sealed. Never empty.
#[derive(Clone)]
pub struct Recipients {
    texts: Vec<String>,
    keys: Vec<Recipient>,
}

impl Recipients {
    /// Reads `age1…` and `ssh-ed25519 …` recipients. None at all is refused: nothing is ever stored in the clear.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, PipelineError> {
        let mut recipients = Recipients { texts: Vec::new(), keys: Vec::new() };
        for text in texts {
            let text = text.as_ref().trim();
            let key = parse_recipient(text)?;
            // A comment behind an ssh key names no one else.
            let canonical = text.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            if !recipients.texts.contains(&canonical) {
                recipients.texts.push(canonical);
                recipients.keys.push(key);
            }
        }
        if recipients.keys.is_empty() {
            return Err(PipelineError::Recipient { text: String::new(), problem: "there must be at least one" });
        }
        Ok(recipients)
    }

    /// The recipients with one more, who can open index objects only.
    pub fn with(&self, other: &age::x25519::Recipient) -> Self {
        let mut more = self.clone();
        more.texts.push(other.to_string());
        more.keys.push(Recipient::X25519(other.clone()));
        more
    }

    /// The texts as given, without comments.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// SHA-256 of the sorted texts, each ended by a newline.
    pub fn set_id(&self) -> RecipientSetId {
        let mut sorted = self.texts.clone();
        sorted.sort();
        let mut hash = Sha256::new();
        for text in sorted {
            hash.update(text.as_bytes());
            hash.update(b"\n");
        }
        RecipientSetId(hash.finalize().into())
    }

    /// Begins an age file in memory that is at hand: header and nonce are written when it returns.
    pub(super) fn begin(&self, mut memory: Aligned) -> Result<Sealer, PipelineError> {
        let seal = |source: Box<dyn std::error::Error + Send + Sync>| PipelineError::Seal { action: "encrypt", source };
        memory.clear();
        let overheard = RefCell::new(None);
        let keys: Vec<Overheard<'_, dyn age::Recipient + '_>> =
            self.keys.iter().map(|key| Overheard { by: key.as_age(), key: &overheard }).collect();
        let encryptor = age::Encryptor::with_recipients(keys.iter().map(|key| key as &dyn age::Recipient));
        let encryptor = encryptor.map_err(|e| seal(e.into()))?;
        drop(encryptor.wrap_output(&mut memory).map_err(|e| seal(e.into()))?);
        drop(keys);
        match (overheard.into_inner(), memory.last_chunk::<NONCE>()) {
            (Some(file_key), Some(nonce)) => {
                let key = PayloadKey::derive(&file_key, nonce).map_err(|e| seal(e.into()))?;
                Ok(Sealer::new(key, memory))
            }
            _ => Err(seal("age wrote no header".into())),
        }
    }
}

impl std::fmt::Debug for Recipients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.texts).finish()
    }
}

fn parse_recipient(text: &str) -> Result<Recipient, PipelineError> {
    let bad = |problem| PipelineError::Recipient { text: text.chars().take(80).collect(), problem };
    if text.starts_with("ssh-") {
        if !text.starts_with("ssh-ed25519 ") {
            return Err(bad("of the ssh keys only ssh-ed25519 is supported"));
        }
        return text.parse().map(Recipient::Ssh).map_err(|_| bad("the ssh-ed25519 key does not parse"));
    }
    if text.starts_with("AGE-SECRET-KEY-") {
        // Never repeat a private key in a message.
        return Err(PipelineError::Recipient {
            text: "AGE-SECRET-KEY-…".into(),
            problem: "this is a private key; the recipient is its public key, age1…",
        });
    }
    text.parse().map(Recipient::X25519).map_err(|_| bad("write an age1… key or an ssh-ed25519 public key"))
}

/// A private key that opens what was sealed to its recipient.
pub enum Identity {
    X25519(age::x25519::Identity),
    Ssh { identity: Box<age::ssh::Identity>, public: String, seed: Secret<[u8; 32]> },
}

impl Identity {
    /// The recipient that it answers to.
    pub fn recipient(&self) -> String {
        match self {
            Identity::X25519(identity) => identity.to_public().to_string(),
            Identity::Ssh { public, .. } => public.clone(),
        }
    }

    /// The secret that the root key is derived from; an ssh-ed25519 identity's own seed.
    pub fn root_secret(&self) -> Secret<Vec<u8>> {
        match self {
            Identity::X25519(identity) => Secret::new(identity.to_string().expose_secret().as_bytes().to_vec()),
            Identity::Ssh { seed, .. } => Secret::new(seed.expose().to_vec()),
        }
    }

    /// Whether it unwraps the key of an age file, of which only the header (and nonce) is at hand.
    pub fn opens(&self, header: &[u8]) -> bool {
        check_stanzas(header).is_ok()
            && age::Decryptor::new(header).is_ok_and(|d| d.decrypt(std::iter::once(self.as_age())).is_ok())
    }

    fn as_age(&self) -> &dyn age::Identity {
        match self {
            Identity::X25519(identity) => identity,
            Identity::Ssh { identity, .. } => identity.as_ref(),
        }
    }
}

/// The identities at hand, in the order in which they are tried.
#[derive(Default)]
pub struct Identities(Vec<Identity>);

impl Identities {
    pub fn new(identities: Vec<Identity>) -> Self {
        Self(identities)
    }

    /// Reads an identity file: `AGE-SECRET-KEY-1…` lines with `#` comments, or an unencrypted OpenSSH Ed25519 key.
    pub fn parse(text: &str) -> Result<Self, PipelineError> {
        let bad = |problem: &str| PipelineError::Identity { problem: problem.into() };
        if text.contains("-----BEGIN OPENSSH PRIVATE KEY-----") {
            return Ok(Self(vec![parse_ssh_identity(text)?]));
        }
        let mut identities = Vec::new();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let identity = line.parse::<age::x25519::Identity>().map_err(|_| PipelineError::Identity {
                problem: format!("line {} is not an AGE-SECRET-KEY-1… key", number + 1),
            })?;
            identities.push(Identity::X25519(identity));
        }
        if identities.is_empty() { Err(bad("the file holds no key")) } else { Ok(Self(identities)) }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Unwraps an age file's key, of which header and nonce must be at hand, and gives what is behind them. The header's
    /// stanzas are looked at first.
    pub(super) fn unwrap<'f>(&self, file: &'f [u8]) -> Result<(PayloadKey, &'f [u8]), PipelineError> {
        check_stanzas(file)?;
        let overheard = RefCell::new(None);
        let keys: Vec<Overheard<'_, dyn age::Identity + '_>> =
            self.0.iter().map(|identity| Overheard { by: identity.as_age(), key: &overheard }).collect();
        let mut payload = file;
        let decryptor = age::Decryptor::new_buffered(&mut payload).map_err(decrypt_error)?;
        // Only where age is content with the whole header does the key count.
        drop(decryptor.decrypt(keys.iter().map(|key| key as &dyn age::Identity)).map_err(decrypt_error)?);
        drop(keys);
        let header = &file[..file.len() - payload.len()];
        match (overheard.into_inner(), header.last_chunk::<NONCE>()) {
            (Some(file_key), Some(nonce)) => {
                let key = PayloadKey::derive(&file_key, nonce)
                    .map_err(|e| PipelineError::DamagedBy { problem: "age header does not open", source: e.into() })?;
                Ok((key, payload))
            }
            _ => Err(PipelineError::damaged("age header has no nonce")),
        }
    }
}

fn decrypt_error(error: age::DecryptError) -> PipelineError {
    match error {
        age::DecryptError::NoMatchingKeys => PipelineError::NoMatchingIdentity,
        age::DecryptError::Io(e) => PipelineError::DamagedBy { problem: "age header does not read", source: e.into() },
        other => PipelineError::DamagedBy { problem: "age header does not open", source: other.into() },
    }
}

fn parse_ssh_identity(text: &str) -> Result<Identity, PipelineError> {
    let bad = |problem: &str| PipelineError::Identity { problem: problem.into() };
    let key = ssh_key::PrivateKey::from_openssh(text).map_err(|_| bad("the OpenSSH private key does not parse"))?;
    if key.is_encrypted() {
        return Err(bad("the OpenSSH private key is under a passphrase; an unencrypted one is needed"));
    }
    let pair = key.key_data().ed25519().ok_or_else(|| bad("of the OpenSSH keys only ssh-ed25519 is supported"))?;
    let seed = Secret::new(pair.private.to_bytes());
    let public = key.public_key().to_openssh().map_err(|_| bad("the OpenSSH private key has no public part"))?;
    let public = public.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let identity = age::ssh::Identity::from_buffer(text.as_bytes(), None)
        .map_err(|_| bad("the OpenSSH private key is not one that age reads"))?;
    Ok(Identity::Ssh { identity: Box::new(identity), public, seed })
}

/// The longest age header (and nonce) that a repository object may have.
pub(crate) const MAX_HEADER: usize = 64 << 10;

/// Refuses stanzas that could do more than X25519 or ssh-ed25519: passphrases, plugins.
fn check_stanzas(bytes: &[u8]) -> Result<(), PipelineError> {
    let head = &bytes[..bytes.len().min(MAX_HEADER)];
    let mut lines = head.split(|b| *b == b'\n');
    if lines.next() != Some(b"age-encryption.org/v1") {
        return Err(PipelineError::damaged("not an age file"));
    }
    for line in lines {
        if line.starts_with(b"---") {
            return Ok(());
        }
        if let Some(stanza) = line.strip_prefix(b"-> ") {
            let tag = stanza.split(|b| *b == b' ').next().unwrap_or_default();
            if tag != b"X25519" && tag != b"ssh-ed25519" && !tag.ends_with(b"-grease") {
                let tag = String::from_utf8_lossy(&tag[..tag.len().min(40)]).into_owned();
                return Err(PipelineError::damaged(format!("age stanza {tag:?} is not allowed in a repository")));
            }
        }
    }
    Err(PipelineError::damaged("age header does not end"))
}

/// An object that only the recipients can read. Nothing but `payload` makes one.
#[derive(Debug)]
pub struct SealedObject {
    pub(crate) id: ObjectId,
    pub(crate) bytes: Aligned,
}

impl SealedObject {
    pub fn id(&self) -> ObjectId {
        self.id
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// `age( zstd( plain ) )`: index objects, manifests, drill details.
pub fn seal(plain: &[u8], level: i32, recipients: &Recipients) -> Result<SealedObject, PipelineError> {
    let seal = |source: std::io::Error| PipelineError::Seal { action: "seal", source: source.into() };
    let compressed = zstd::stream::encode_all(plain, level).map_err(seal)?;
    let mut sealer = recipients.begin(Aligned::with_capacity(compressed.len() + 1024))?;
    sealer.write(&compressed)?;
    sealer.finish()
}

/// An age file in text form that a passphrase opens (`age -d`): for paper, never for a repository.
pub fn seal_with_passphrase(plain: &[u8], passphrase: &Secret<String>) -> Result<String, PipelineError> {
    let seal =
        |source: std::io::Error| PipelineError::Seal { action: "seal under a passphrase", source: source.into() };
    let encryptor = age::Encryptor::with_user_passphrase(passphrase.expose().clone().into());
    let armored = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor).map_err(seal)?;
    let mut writer = encryptor.wrap_output(armored).map_err(seal)?;
    writer.write_all(plain).map_err(seal)?;
    let bytes = writer.finish().and_then(ArmoredWriter::finish).map_err(seal)?;
    String::from_utf8(bytes).map_err(|e| seal(std::io::Error::other(e)))
}

/// Opens what [`seal`] made, of at most `limit` plain bytes.
pub fn open(bytes: &[u8], limit: usize, identities: &Identities) -> Result<Vec<u8>, PipelineError> {
    let (key, payload) = identities.unwrap(bytes)?;
    let mut compressed = Vec::with_capacity(payload.len());
    for piece in payload::pieces(payload, 0, true)? {
        key.open(&piece, &mut compressed)?;
    }
    let damaged = |source: std::io::Error| PipelineError::unpack("sealed object does not open", source.into());
    let mut decoder = zstd::stream::Decoder::with_buffer(&compressed[..]).map_err(damaged)?;
    decoder.window_log_max(limits::WINDOW_LOG).map_err(damaged)?;
    let mut plain = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut plain).map_err(damaged)?;
    if plain.len() > limit {
        return Err(PipelineError::damaged(format!("sealed object has more than {limit} bytes")));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Identities, Recipients) {
        let identity = age::x25519::Identity::generate();
        let recipients = Recipients::parse(&[identity.to_public().to_string()]).unwrap();
        (Identities(vec![Identity::X25519(identity)]), recipients)
    }

    #[test]
    fn seals_and_opens_and_two_seals_differ() {
        let (identities, recipients) = pair();
        let (a, b) = (seal(b"hello", 3, &recipients).unwrap(), seal(b"hello", 3, &recipients).unwrap());
        assert_ne!(a.bytes(), b.bytes(), "two encryptions share no key stream");
        assert_eq!(open(&a.bytes, 5, &identities).unwrap(), b"hello");
        assert!(open(&a.bytes, 4, &identities).is_err(), "limit");
        assert!(matches!(open(&a.bytes, 5, &pair().0), Err(PipelineError::NoMatchingIdentity)));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let (identities, recipients) = pair();
        let sealed = seal(b"some content", 3, &recipients).unwrap();
        for at in 0..sealed.bytes.len() {
            let mut flipped = sealed.bytes().to_vec();
            flipped[at] ^= 1 << (at % 8);
            assert!(open(&flipped, 100, &identities).is_err(), "flipped bit in byte {at}");
            assert!(open(&sealed.bytes[..at], 100, &identities).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn recipients_are_checked_and_their_order_does_not_matter() {
        let (a, b) = (pair().1, pair().1);
        let (a, b) = (a.texts[0].clone(), b.texts[0].clone());
        let ab = Recipients::parse(&[&a, &b]).unwrap();
        assert_eq!(ab.set_id(), Recipients::parse(&[&b, &a, &b]).unwrap().set_id());
        assert_ne!(ab.set_id(), Recipients::parse(&[&a]).unwrap().set_id());
        assert!(Recipients::parse::<&str>(&[]).is_err());
        for bad in ["age1xyz", "ssh-rsa AAAA", "nonsense", ""] {
            assert!(Recipients::parse(&[bad]).is_err(), "{bad}");
        }
        let secret = age::x25519::Identity::generate().to_string();
        let error = Recipients::parse(&[secret.expose_secret()]).unwrap_err().to_string();
        assert!(!error.contains(&secret.expose_secret()[20..]), "{error}");
    }

    #[test]
    fn passphrase_files_are_refused() {
        let encryptor = age::Encryptor::with_user_passphrase("x".to_owned().into());
        let mut bytes = Vec::new();
        let writer = encryptor.wrap_output(&mut bytes).unwrap();
        writer.finish().unwrap();
        let error = open(&bytes, 10, &pair().0).unwrap_err().to_string();
        assert!(error.contains("scrypt"), "{error}");
    }
}
