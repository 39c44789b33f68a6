//! age's payload: pieces of 64 KiB, each sealed for itself under the payload key (STREAM with ChaCha20-Poly1305,
//! <https://age-encryption.org/v1>, "Payload").
//!
//! Headers, recipients and identities are the age crate's; of its own way through the payload each piece was copied
//! three times and sealed at a fifth of what the cipher of `ring` does (docs/decisions/123). Whatever is sealed here
//! opens with the age crate, and the other way round: the tests of this module say so.
//!
//! Invariants: a payload key is derived from a file key and a nonce that were made for one file, and each piece's number
//! is used once; the last piece is marked, so that nothing can be cut off.

use super::PipelineError;
use super::crypt::SealedObject;
use crate::base::direct::Aligned;
use crate::base::ids::ObjectId;
use age_core::format::FileKey;
use age_core::secrecy::ExposeSecret;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use sha2::{Digest, Sha256};

/// Plain bytes of every piece but the last.
pub(super) const PIECE: usize = 64 << 10;
pub(super) const SEALED_PIECE: usize = PIECE + TAG;
const TAG: usize = 16;
pub(super) const NONCE: usize = 16;

/// What one file's pieces are sealed with.
pub(super) struct PayloadKey(LessSafeKey);

impl PayloadKey {
    /// From what the header wraps, and the nonce behind it.
    pub fn derive(file_key: &FileKey, nonce: &[u8; NONCE]) -> Result<Self, &'static str> {
        let secret = Salt::new(HKDF_SHA256, nonce).extract(file_key.expose_secret());
        let key = secret
            .expand(&[b"payload"], &CHACHA20_POLY1305)
            .map(UnboundKey::from)
            .map_err(|_| "no payload key can be derived")?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Eleven bytes of the piece's number, and one that marks the last.
    fn nonce(number: u64, is_last: bool) -> Nonce {
        let mut bytes = [0; 12];
        bytes[3..11].copy_from_slice(&number.to_be_bytes());
        bytes[11] = is_last.into();
        Nonce::assume_unique_for_key(bytes)
    }

    /// Opens one piece where it lies.
    fn open<'p>(&self, number: u64, is_last: bool, sealed: &'p mut [u8]) -> Result<&'p [u8], PipelineError> {
        let opened = self.0.open_in_place(Self::nonce(number, is_last), Aad::empty(), sealed);
        opened.map(|plain| &*plain).map_err(|_| PipelineError::DamagedBy {
            problem: "age payload does not open",
            source: "it is not what was sealed".into(),
        })
    }

    /// Opens pieces from number `first` on, of which the last one is the payload's last, or not, and hands each one's
    /// plain bytes to `take`. A piece that does not open ends it.
    pub fn open_pieces(
        &self,
        sealed: &[u8],
        first: u64,
        to_end: bool,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), PipelineError> {
        let mut scratch = [0; SEALED_PIECE];
        let mut pieces = sealed.chunks(SEALED_PIECE).zip(first..).peekable();
        if to_end && pieces.peek().is_none() {
            return Err(PipelineError::damaged("age payload is missing"));
        }
        while let Some((piece, number)) = pieces.next() {
            let is_last = to_end && pieces.peek().is_none();
            let scratch = &mut scratch[..piece.len()];
            scratch.copy_from_slice(piece);
            let plain = self.open(number, is_last, scratch)?;
            // Of no bytes at all there is one piece; else two files could hold the same content.
            if plain.is_empty() && number > 0 {
                return Err(PipelineError::damaged("age payload ends with an empty piece"));
            }
            take(plain);
        }
        Ok(())
    }
}

/// Writes a payload behind a header. [`Sealer::finish`] must be called, else the file is cut off.
pub(super) struct Sealer {
    key: PayloadKey,
    bytes: Aligned,
    /// Where the piece begins that is being filled.
    start: usize,
    number: u64,
    /// Of what lies before it: a piece is hashed while the core still has it at hand.
    hash: Sha256,
}

impl Sealer {
    /// Behind what `bytes` holds, which is header and nonce.
    pub fn new(key: PayloadKey, bytes: Aligned) -> Self {
        Self { key, start: bytes.len(), number: 0, hash: Sha256::new_with_prefix(&*bytes), bytes }
    }

    /// What has been written, the last piece still in the clear: of use for its header only.
    pub fn header(&self) -> &[u8] {
        &self.bytes[..self.start.min(self.bytes.len())]
    }

    pub fn write(&mut self, mut plain: &[u8]) -> Result<(), PipelineError> {
        while !plain.is_empty() {
            // A full piece may be the last one until something comes behind it.
            if self.bytes.len() - self.start == PIECE {
                self.seal(false)?;
            }
            let n = plain.len().min(PIECE - (self.bytes.len() - self.start));
            self.bytes.extend_from_slice(&plain[..n]);
            plain = &plain[n..];
        }
        Ok(())
    }

    fn seal(&mut self, is_last: bool) -> Result<(), PipelineError> {
        let nonce = PayloadKey::nonce(self.number, is_last);
        let piece = &mut self.bytes[self.start..];
        let tag = self.key.0.seal_in_place_separate_tag(nonce, Aad::empty(), piece);
        let tag =
            tag.map_err(|_| PipelineError::Seal { action: "encrypt", source: "too much for one piece".into() })?;
        self.bytes.extend_from_slice(tag.as_ref());
        self.hash.update(&self.bytes[self.start..]);
        self.start = self.bytes.len();
        self.number += 1;
        Ok(())
    }

    /// The whole file.
    pub fn finish(mut self) -> Result<SealedObject, PipelineError> {
        self.seal(true)?;
        Ok(SealedObject { id: ObjectId(self.hash.finalize().into()), bytes: self.bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::super::crypt::{Identities, Identity, Recipients, object_id};
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (age::x25519::Identity, Identities, Recipients) {
        let identity = age::x25519::Identity::generate();
        let recipients = Recipients::parse(&[identity.to_public().to_string()]).unwrap();
        (identity.clone(), Identities::new(vec![Identity::X25519(identity)]), recipients)
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 + i / 253) as u8).collect()
    }

    /// Lengths at which something could be off by one.
    const LENGTHS: [usize; 9] =
        [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1, 5 * PIECE + 77];

    #[test]
    fn what_is_sealed_here_opens_with_age() {
        let (identity, _, recipients) = pair();
        for length in LENGTHS {
            for step in [7919, PIECE, 1 << 20] {
                let plain = pattern(length);
                let mut sealer = recipients.begin(Aligned::default()).unwrap();
                plain.chunks(step).for_each(|part| sealer.write(part).unwrap());
                let object = sealer.finish().unwrap();
                assert_eq!(object.id(), object_id(object.bytes()), "{length} bytes in steps of {step}");
                let file = object.bytes;
                let decryptor = age::Decryptor::new(&file[..]).unwrap();
                let mut opened = Vec::new();
                let mut reader = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).unwrap();
                reader.read_to_end(&mut opened).unwrap();
                assert!(opened == plain, "{length} bytes in steps of {step}");
            }
        }
    }

    #[test]
    fn what_age_has_sealed_opens_here() {
        let (identity, identities, _) = pair();
        for length in LENGTHS {
            let plain = pattern(length);
            let recipient = identity.to_public();
            let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient));
            let mut writer = encryptor.unwrap().wrap_output(Vec::new()).unwrap();
            writer.write_all(&plain).unwrap();
            let file = writer.finish().unwrap();
            let (key, payload) = identities.unwrap(&file).unwrap();
            let mut opened = Vec::new();
            key.open_pieces(payload, 0, true, |piece| opened.extend_from_slice(piece)).unwrap();
            assert!(opened == plain, "{length}");
        }
    }

    #[test]
    fn pieces_cut_off_swapped_repeated_or_added_do_not_open() {
        let (_, identities, recipients) = pair();
        let mut sealer = recipients.begin(Aligned::default()).unwrap();
        sealer.write(&pattern(3 * PIECE)).unwrap();
        let file = sealer.finish().unwrap().bytes;
        let (key, payload) = identities.unwrap(&file).unwrap();
        let opens = |payload: &[u8]| key.open_pieces(payload, 0, true, |_| {}).is_ok();
        assert!(opens(payload));
        let [a, b, c] = [0, 1, 2].map(|n| &payload[n * SEALED_PIECE..(n + 1) * SEALED_PIECE]);
        assert!(opens(&[a, b, c].concat()), "the pieces as they are");
        for wrong in [vec![a, b], vec![b, a, c], vec![a, a, c], vec![a, b, c, c], vec![c], vec![]] {
            assert!(!opens(&wrong.concat()));
        }
        assert!(!opens(&[payload, &[0; TAG]].concat()) && !opens(&payload[..payload.len() - 1]));
        // A part of it opens as a part, at its place, and as nothing else.
        assert!(key.open_pieces(b, 1, false, |_| {}).is_ok() && key.open_pieces(c, 2, true, |_| {}).is_ok());
        assert!(key.open_pieces(b, 1, true, |_| {}).is_err() && key.open_pieces(c, 2, false, |_| {}).is_err());
        assert!(key.open_pieces(b, 2, false, |_| {}).is_err());
    }

    #[test]
    fn an_empty_last_piece_behind_others_is_refused() {
        let (_, identities, recipients) = pair();
        let mut sealer = recipients.begin(Aligned::default()).unwrap();
        sealer.write(&pattern(PIECE)).unwrap();
        sealer.seal(false).unwrap();
        let file = sealer.finish().unwrap().bytes;
        let (key, payload) = identities.unwrap(&file).unwrap();
        assert!(key.open_pieces(payload, 0, true, |_| {}).is_err());
    }
}
