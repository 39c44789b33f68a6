//! Names that are made for what lies beside the live thing. PostgreSQL cuts names at 63 bytes without an error, so a
//! long one is cut here, and told apart by its hash.

use crate::base::time;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

const MOST: usize = 63;

/// `<name><suffix>`, in at most 63 bytes.
fn with_suffix(name: &str, suffix: &str) -> String {
    let room = MOST.saturating_sub(suffix.len());
    if name.len() <= room {
        return format!("{name}{suffix}");
    }
    let hash = hex::encode(&Sha256::digest(name.as_bytes())[..3]);
    let mut end = room.saturating_sub(hash.len() + 1);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}~{hash}{suffix}", &name[..end])
}

/// A name that `taken` does not hold; `id` tells it apart where it does.
fn free(name: &str, suffix: &str, id: &str, taken: &[String]) -> String {
    let usual = with_suffix(name, suffix);
    match taken.contains(&usual) {
        false => usual,
        true => with_suffix(name, &format!("{suffix}_{}", short(id))),
    }
}

/// Where a database is restored.
pub(super) fn new(name: &str, id: &str, taken: &[String]) -> String {
    free(name, "__lifeboat_new", id, taken)
}

/// Where the replaced one stays.
pub(super) fn old(name: &str, id: &str, now: DateTime<Utc>, taken: &[String]) -> String {
    free(name, &format!("__lifeboat_old_{}", time::compact(now)), id, taken)
}

/// A schema beside the tables' own; `kind` is `new` or `old`.
pub(super) fn schema(kind: &str, id: &str) -> String {
    with_suffix("", &format!("lifeboat_{kind}_{}", plain(id)))
}

fn plain(id: &str) -> String {
    id.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).take(40).collect()
}

/// The last of a transaction's id, which is random.
fn short(id: &str) -> String {
    let plain = plain(id);
    plain[plain.len().saturating_sub(8)..].to_owned()
}

/// Whether a database is one that a restore in place has made or replaced: of a live server's databases it is none.
pub fn is_of_a_restore(name: &str) -> bool {
    name.contains("__lifeboat_new") || name.contains("__lifeboat_old_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay_apart() {
        let now = "2026-11-19T02:00:00Z".parse().unwrap();
        let id = "20261119T020000Z-1a2b3c4d";
        assert_eq!(new("shop", id, &[]), "shop__lifeboat_new");
        assert!(is_of_a_restore(&new("shop", id, &[])) && is_of_a_restore(&old("shop", id, now, &[])));
        assert!(!is_of_a_restore("shop") && !is_of_a_restore("lifeboat_old"));
        assert_eq!(old("shop", id, now, &[]), "shop__lifeboat_old_20261119T020000Z");
        assert_eq!(new("shop", id, &["shop__lifeboat_new".into()]), "shop__lifeboat_new_1a2b3c4d");
        let (a, b) = ("ž".repeat(31), format!("{}a", "ž".repeat(31)));
        let names = [old(&a, id, now, &[]), old(&b, id, now, &[]), new(&a, id, &[]), new(&b, id, &[])];
        for (i, name) in names.iter().enumerate() {
            assert!(name.len() <= 63 && !names[..i].contains(name), "{names:?}");
        }
        assert_eq!(schema("new", id), "lifeboat_new_20261119t020000z1a2b3c4d");
    }
}
