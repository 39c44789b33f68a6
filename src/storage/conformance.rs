//! The one suite that every storage passes. It panics on the first promise that is not kept; tests call it.

use super::{LockMode, Locked, Put, Storage, StorageError, StorageKey};

/// Runs the suite on a storage that holds nothing yet.
///
/// # Panics
/// When the storage breaks its contract.
pub fn run(storage: &dyn Storage) {
    let key = |s: &str| s.parse::<StorageKey>().expect("a valid key");
    assert!(storage.list("").expect("list of nothing").is_empty(), "a new storage is empty");
    assert!(storage.head(&key("a/b")).expect("head").is_none());
    assert!(matches!(storage.get(&key("a/b"), 10), Err(StorageError::NotFound { .. })));

    let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    assert_eq!(storage.put_new(&key("a/b"), &bytes).expect("put"), Put::Created);
    assert_eq!(storage.put_new(&key("a/b"), &bytes).expect("put again"), Put::AlreadyThere);
    for other in [&b"other"[..], &bytes[..bytes.len() - 1], &[&bytes[..bytes.len() - 1], b"!"].concat()] {
        assert!(matches!(storage.put_new(&key("a/b"), other), Err(StorageError::Exists { .. })), "never replaces");
    }
    assert_eq!(storage.get(&key("a/b"), bytes.len() as u64).expect("get"), bytes);
    assert!(matches!(storage.get(&key("a/b"), 10), Err(StorageError::TooLarge { .. })), "limit before reading");

    assert_eq!(storage.get_range(&key("a/b"), 5, 7).expect("range"), &bytes[5..12]);
    assert_eq!(storage.get_range(&key("a/b"), 0, 0).expect("empty range"), b"");
    let end = bytes.len() as u64;
    assert_eq!(storage.get_range(&key("a/b"), end - 3, 3).expect("range at the end"), &bytes[bytes.len() - 3..]);
    assert!(matches!(storage.get_range(&key("a/b"), end - 3, 4), Err(StorageError::Short { .. })));
    assert!(matches!(storage.get_range(&key("a/b"), u64::MAX, 4), Err(StorageError::Short { .. })));
    assert!(matches!(storage.get_range(&key("none"), 0, 1), Err(StorageError::NotFound { .. })));

    storage.put_new(&key("a/c-1"), b"").expect("an empty object");
    storage.put_new(&key("ab/c"), b"x").expect("put");
    let names = |prefix: &str| -> Vec<String> {
        storage.list(prefix).expect("list").iter().map(|o| o.key.to_string()).collect()
    };
    assert_eq!(names("a/"), ["a/b", "a/c-1"], "only below the folder");
    assert_eq!(names(""), ["a/b", "a/c-1", "ab/c"], "in order");
    assert!(names("none/").is_empty());
    let listed = &storage.list("a/").expect("list")[0];
    assert_eq!(listed.length, end);
    assert_eq!(storage.head(&key("a/b")).expect("head").as_ref(), Some(listed));

    let clock = storage.clock().expect("the storage's clock");
    let age = (clock - listed.modified).num_seconds();
    assert!((-2..600).contains(&age), "what was just written is {age} s old by the storage's clock");
    if let Locked::Held(writer) = storage.lock(LockMode::Shared).expect("lock") {
        assert!(matches!(storage.lock(LockMode::Shared), Ok(Locked::Held(_))), "writers do not exclude each other");
        assert!(matches!(storage.lock(LockMode::Exclusive), Ok(Locked::Busy)));
        drop(writer);
        assert!(matches!(storage.lock(LockMode::Exclusive), Ok(Locked::Held(_))), "the lock goes with its holder");
    }

    storage.delete(&key("a/b")).expect("delete");
    storage.delete(&key("a/b")).expect("delete what is gone");
    assert!(storage.head(&key("a/b")).expect("head").is_none());
    assert_eq!(storage.put_new(&key("a/b"), b"new").expect("a deleted key is free"), Put::Created);

    for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "a b", "a\\b", "ä", &"a".repeat(401)] {
        assert!(bad.parse::<StorageKey>().is_err(), "{bad:?} is no key");
    }
}
