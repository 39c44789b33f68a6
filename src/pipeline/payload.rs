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

    /// Opens a piece, and adds its plain bytes to `plain`: copied there once, and opened where they lie. One that does not
    /// open adds nothing.
    pub fn open(&self, piece: &Piece<'_>, plain: &mut Vec<u8>) -> Result<(), PipelineError> {
        let start = plain.len();
        plain.extend_from_slice(piece.sealed);
        let nonce = Self::nonce(piece.number, piece.is_last);
        let length = self.0.open_in_place(nonce, Aad::empty(), &mut plain[start..]).map(|opened| opened.len());
        plain.truncate(start + length.as_ref().copied().unwrap_or(0));
        match length {
            // Of no bytes at all there is one piece; else two files could hold the same content.
            Ok(0) if piece.number > 0 => Err(PipelineError::damaged("age payload ends with an empty piece")),
            Ok(_) => Ok(()),
            Err(_) => Err(PipelineError::DamagedBy {
                problem: "age payload does not open",
                source: "it is not what was sealed".into(),
            }),
        }
    }
}

/// A piece as it is stored.
pub(super) struct Piece<'p> {
    number: u64,
    is_last: bool,
    sealed: &'p [u8],
}

/// The pieces of `sealed`, from number `first` on, of which the last one is the payload's last, or not.
pub(super) fn pieces(
    sealed: &[u8],
    first: u64,
    to_end: bool,
) -> Result<impl Iterator<Item = Piece<'_>>, PipelineError> {
    if to_end && sealed.is_empty() {
        return Err(PipelineError::damaged("age payload is missing"));
    }
    let count = sealed.len().div_ceil(SEALED_PIECE);
    let pieces = sealed.chunks(SEALED_PIECE).enumerate();
    Ok(pieces.map(move |(at, sealed)| Piece { number: first + at as u64, is_last: to_end && at + 1 == count, sealed }))
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

    fn open_all(
        key: &PayloadKey,
        sealed: &[u8],
        first: u64,
        to_end: bool,
        plain: &mut Vec<u8>,
    ) -> Result<(), PipelineError> {
        pieces(sealed, first, to_end)?.try_for_each(|piece| key.open(&piece, plain))
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
            open_all(&key, payload, 0, true, &mut opened).unwrap();
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
        let opens = |payload: &[u8]| open_all(&key, payload, 0, true, &mut Vec::new()).is_ok();
        assert!(opens(payload));
        let [a, b, c] = [0, 1, 2].map(|n| &payload[n * SEALED_PIECE..(n + 1) * SEALED_PIECE]);
        assert!(opens(&[a, b, c].concat()), "the pieces as they are");
        for wrong in [vec![a, b], vec![b, a, c], vec![a, a, c], vec![a, b, c, c], vec![c], vec![]] {
            assert!(!opens(&wrong.concat()));
        }
        assert!(!opens(&[payload, &[0; TAG]].concat()) && !opens(&payload[..payload.len() - 1]));
        // A part of it opens as a part, at its place, and as nothing else.
        assert!(
            open_all(&key, b, 1, false, &mut Vec::new()).is_ok() && open_all(&key, c, 2, true, &mut Vec::new()).is_ok()
        );
        assert!(
            open_all(&key, b, 1, true, &mut Vec::new()).is_err()
                && open_all(&key, c, 2, false, &mut Vec::new()).is_err()
        );
        assert!(open_all(&key, b, 2, false, &mut Vec::new()).is_err());
    }

    #[test]
    fn an_empty_last_piece_behind_others_is_refused() {
        let (_, identities, recipients) = pair();
        let mut sealer = recipients.begin(Aligned::default()).unwrap();
        sealer.write(&pattern(PIECE)).unwrap();
        sealer.seal(false).unwrap();
        let file = sealer.finish().unwrap().bytes;
        let (key, payload) = identities.unwrap(&file).unwrap();
        assert!(open_all(&key, payload, 0, true, &mut Vec::new()).is_err());
    }
}
