//! Hostile bytes for what is read of a storage before, while and after it is opened.

use super::archive::{self, ArchiveReader};
use super::crypt::{self, Identities, Recipients};
use super::segment::FrameDecoder;
use super::sign::{self, Namespace, PublicKey, SigningKey};
use crate::base::fuzz::Fuzz;

#[test]
fn sweep_signed_objects() {
    let key = SigningKey::from_seed(&[7; 32]);
    let line = r#"{"kind":"snapshot","format":1}"#;
    let keys = [key.public()];
    let words = ["-----BEGIN SSH SIGNATURE-----\n", "-----END SSH SIGNATURE-----\n", "\n", "{", "\"", "AAAA"];
    let fuzz = Fuzz::of("signed").seed(key.sign(Namespace::Snapshot, line).unwrap()).words(&words);
    fuzz.run(|bytes| {
        let _ = sign::peek_line(bytes).map_err(|e| e.to_string());
        // Nothing but the signed line itself ever passes.
        if let Ok((found, _)) = sign::open(bytes, Namespace::Snapshot, &keys) {
            assert_eq!(found, line);
        }
        assert!(sign::open(bytes, Namespace::Record, &keys).is_err());
    });
}

#[test]
fn sweep_public_keys_and_recipients() {
    let public = SigningKey::from_seed(&[7; 32]).public().to_text().unwrap();
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    Fuzz::of("keys").seed(public).seed(recipient).words(&["ssh-ed25519 ", "AAAA", "age1", " ", "\n", "="]).run(
        |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(key) = PublicKey::parse(&text) {
                assert_eq!(PublicKey::parse(&key.to_text().unwrap()).unwrap(), key);
            }
            let _ = Recipients::parse(&[&text]).map_err(|e| e.to_string());
            let _ = Identities::parse(&text).map_err(|e| e.to_string());
        },
    );
}

/// A sealed object, and who opens it.
fn sealed() -> (Vec<u8>, Vec<u8>, Identities) {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    let identities = Identities::parse(identity.to_string().expose_secret()).unwrap();
    let recipients = Recipients::parse(&[identity.to_public().to_string()]).unwrap();
    let plain: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let bytes = crypt::seal(&plain, 3, &recipients).unwrap().bytes().to_vec();
    (plain, bytes, identities)
}

#[test]
fn sweep_sealed_objects() {
    let (plain, bytes, identities) = sealed();
    let words = ["\n-> ", "\n--- ", "X25519 ", "scrypt ", "AAAA", "\n", "age-encryption.org/v1"];
    Fuzz::of("sealed").seed(bytes).words(&words).run(|bytes| {
        // Authenticated: all of it comes back, or nothing.
        if let Ok(opened) = crypt::open(bytes, 1 << 20, &identities) {
            assert!(opened == plain);
        }
        assert!(crypt::open(bytes, 1_000, &identities).is_err());
        let mut visited = Vec::new();
        let _ = archive::walk(bytes, &identities, |_, _, frame| {
            visited.extend_from_slice(frame);
            Ok(())
        });
        assert!(visited.is_empty() || plain.starts_with(&visited));
        if let Some(length) = archive::header_length(bytes) {
            assert!(length <= bytes.len());
            for claimed in [0, 1, bytes.len() as u64, u64::MAX] {
                let _ = ArchiveReader::open(&bytes[..length], claimed, &identities).map_err(|e| e.to_string());
            }
        }
        let _ = ArchiveReader::open(bytes, 1 << 20, &identities).map_err(|e| e.to_string());
    });
}

#[test]
fn sweep_frames() {
    let plain: Vec<u8> = (0..20_000u32).flat_map(|n| (n / 5).to_le_bytes()).collect();
    let frame = zstd::bulk::compress(&plain, 3).unwrap();
    let words: [&[u8]; 3] = [b"\x28\xb5\x2f\xfd", &[0; 4], b"\xff"];
    let magic = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let fuzz = Fuzz::of("frames").seed(frame).seed(magic).seed(zstd::bulk::compress(&[0; 1 << 20], 19).unwrap());
    fuzz.words(&words).run(|bytes| {
        let mut decoder = FrameDecoder::new().unwrap();
        if let Ok(plain) = decoder.decode(bytes, 2 << 20) {
            assert!(plain.len() <= 2 << 20);
        }
        assert!(decoder.decode(bytes, 8).map_or(0, |p| p.len()) <= 8);
    });
}
