//! Hostile bytes for the objects of a repository once they are open: what somebody with every key could have written.

use super::format::{DrillObject, Header, Manifest, Record, RepositoryObject, SignerObject, check_envelope};
use super::keys::{HostKey, IdentityFile};
use super::refs::Refs;
use super::trash::TrashObject;
use super::{index, layout};
use crate::base::fuzz::Fuzz;
use crate::storage::StorageKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::fs::OpenOptionsExt;

#[test]
fn sweep_refs() {
    Fuzz::of("refs").words(&["archive ", "index ", "\n", " ", "0", "+1", "18446744073709551616"]).run(|bytes| {
        // One spelling only.
        if let Ok(refs) = Refs::parse(bytes) {
            assert!(refs.to_bytes() == bytes);
        }
    });
}

/// What parses can be written, and read again as the same.
fn again<T: DeserializeOwned + Serialize>(json: &[u8]) {
    if let Ok(object) = serde_json::from_slice::<T>(json) {
        let text = serde_json::to_string(&object).unwrap();
        let back: T = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }
}

#[test]
fn sweep_headers_records_and_signers() {
    let words =
        ["{", "}", "[", "]", "\"", ":", ",", "null", "-1", "1e400", "\\u0000", "\"requires\":[\"x\"]", "\"format\":2"];
    let key: StorageKey = layout::repository();
    Fuzz::of("signed").words(&words).run(|bytes| {
        let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        let _ = check_envelope(line, &key).map_err(|e| e.to_string());
        again::<Header>(line);
        again::<Record>(line);
        again::<SignerObject>(line);
        again::<RepositoryObject>(line);
        again::<DrillObject>(line);
        again::<TrashObject>(line);
    });
}

#[test]
fn sweep_manifests() {
    let words =
        ["{", "}", "[", "]", "\"", ":", ",", "null", "-1", "\"depth\":255", "[[", "\"root\":", "18446744073709551616"];
    Fuzz::of("manifest").words(&words).run(again::<Manifest>);
}

#[test]
fn sweep_index_objects() {
    // Claims of enormous lists and texts, and one list in another without end.
    let words: [&[u8]; 7] =
        [b"requires", b"chunks", b"\x9b\x7f\xff\xff\xff", b"\x5b\x7f\xff\xff\xff", b"\x7b\x7f", b"\x81", b"\x9f"];
    let key: StorageKey = layout::repository();
    Fuzz::of("index").words(&words).run(|bytes| {
        let _ = index::decode(bytes, &key).map_err(|e| e.to_string());
    });
}

#[test]
fn sweep_storage_keys() {
    let seeds = ["snapshots/web-1/shop/0000000001.20261121T024039Z-aa941656.json", "signers/1.json", "archives/ce/"];
    let fuzz = seeds.iter().fold(Fuzz::of("storage-keys"), |fuzz, seed| fuzz.seed(*seed));
    fuzz.words(&["/", "..", "//", "\0", "é", ".json", "0"]).run(|bytes| {
        let Ok(key) = String::from_utf8_lossy(bytes).parse::<StorageKey>() else { return };
        assert!(key.as_str().split('/').all(|part| !matches!(part, "" | "." | "..")), "{key}");
        layout::object_id(&key);
        layout::parse_signer(&key);
        if let Some(found) = layout::parse_header(&key) {
            assert!(found.sequence.0 > 0, "{key}");
        }
    });
}

#[test]
fn sweep_key_files() {
    let dir = tempfile::tempdir().unwrap();
    let (identity, host) = (dir.path().join("identity.txt"), dir.path().join("host.key"));
    let made = IdentityFile::create(&identity, chrono::Utc::now()).unwrap();
    HostKey::create(&host, made.repository.clone()).unwrap();
    let case = dir.path().join("case");
    let secret = std::fs::read_to_string(&identity).unwrap();
    let secret = secret.lines().find(|l| l.starts_with("AGE-")).unwrap();
    let fuzz = Fuzz::of("key-files").seed(std::fs::read(&identity).unwrap()).seed(std::fs::read(&host).unwrap());
    fuzz.words(&["AGE-SECRET-KEY-1", "#", "\n", "=", "\"", "[", "ssh-ed25519"]).run(|bytes| {
        let _ = std::fs::remove_file(&case);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&case).unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        // No message repeats the secret.
        for said in [IdentityFile::load(&case).err(), HostKey::load(&case).err()].into_iter().flatten() {
            let said = super::chain::full_text(&said);
            assert!(!said.contains(&secret[..30]), "{said}");
        }
    });
}
