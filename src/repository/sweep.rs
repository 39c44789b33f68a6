//! Hostile bytes for the objects of a repository once they are open: what somebody with every key could have written.

use super::format::{DrillObject, Header, IdsTree, Manifest, Record, RepositoryObject, SignerObject, check_envelope};
use super::keys::{HostKey, IdentityFile};
use super::refs::Refs;
use super::trash::TrashObject;
use super::{index, layout, scan, tree};
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

/// What a repair reads of an archive: nobody's index says where chunks lie.
#[test]
fn sweep_tars_of_chunks() {
    let mut builder = tar::Builder::new(Vec::new());
    for (n, length) in [3, 600, 0].into_iter().enumerate() {
        let mut header = tar::Header::new_ustar();
        header.set_size(length);
        let name = format!("{n:064x}");
        builder.append_data(&mut header, name, &vec![7; length as usize][..]).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    assert_eq!(scan::tar_entries(&tar).unwrap().len(), 3);
    let words =
        ["ustar\0", "00000000003\0", "77777777777\0", "././@LongLink", "\u{80}\u{ff}\u{ff}", "\n30 path=", "\0\0\0\0"];
    Fuzz::of("chunk-tar").seed(tar).words(&words).run(|bytes| {
        let look = |bytes: &[u8]| {
            for place in scan::tar_entries(bytes).into_iter().flatten() {
                assert!(bytes.get(place.offset as usize..).is_some_and(|rest| rest.len() >= place.length as usize));
            }
        };
        look(bytes);
        // Behind the checksum of the first header, which would catch most changes.
        if bytes.len() >= 512 {
            let mut bytes = bytes.to_vec();
            bytes[148..156].fill(b' ');
            let sum: u64 = bytes[..512].iter().map(|byte| u64::from(*byte)).sum();
            bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            look(&bytes);
        }
    });
}

#[test]
fn sweep_lists_of_ids() {
    let entry = |n: u8, length: u64| [&[n; 32][..], &length.to_le_bytes()].concat();
    let list = [entry(1, 16_384), entry(2, 1), entry(3, 8 << 20)].concat();
    let json = format!("{{\"depth\":1,\"root\":[[\"{}\",16385],[\"{}\",8388608]]}}", "ab".repeat(32), "cd".repeat(32));
    let words: [&[u8]; 6] = [&[0; 8], &[0xff; 8], &[0; 40], b"\"depth\":255", b"18446744073709551615", b"[["];
    Fuzz::of("ids").seed(list).seed(json).words(&words).run(|bytes| {
        let Ok(entries) = tree::parse_entries(bytes) else {
            assert!(bytes.len() % 40 != 0);
            return again_tree(bytes);
        };
        assert_eq!(entries.len() * 40, bytes.len());
        let sum = entries.iter().fold(0u64, |sum, (_, length)| sum.wrapping_add(*length));
        // Nothing is empty, and nothing wraps around.
        if tree::parse_list(bytes, sum).is_ok() {
            assert!(entries.iter().all(|(_, length)| *length > 0 && *length <= sum));
        }
        assert!(tree::parse_list(bytes, sum.wrapping_add(1)).is_err());
    });
}

fn again_tree(json: &[u8]) {
    again::<IdsTree>(json);
    let Ok(ids) = serde_json::from_slice::<IdsTree>(json) else { return };
    let sum = ids.root.iter().fold(0u64, |sum, (_, length)| sum.wrapping_add(*length));
    if tree::check(&ids, sum).is_ok() {
        assert!(ids.depth <= 4 && ids.root.len() <= 1024 && ids.root.iter().all(|(_, length)| *length > 0));
    }
}
