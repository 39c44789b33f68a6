//! Refs: all that one snapshot needs, in plain text, for prune and break-glass; no key needed.
//!
//! Sorted lines `archive <id> <length>` and `index <id> <length>`.

use crate::base::ids::ObjectId;
use std::collections::BTreeMap;

/// The archives and index objects of one snapshot, with their stored lengths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refs {
    pub archives: BTreeMap<ObjectId, u64>,
    pub index: BTreeMap<ObjectId, u64>,
}

impl Refs {
    /// The object's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let lines = |kind: &'static str, map: &BTreeMap<ObjectId, u64>| {
            map.iter().map(|(id, length)| format!("{kind} {id} {length}\n")).collect::<String>()
        };
        (lines("archive", &self.archives) + &lines("index", &self.index)).into_bytes()
    }

    /// Reads it back; the one spelling only. `Err` says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "refs are not UTF-8".to_owned())?;
        let mut refs = Refs::default();
        for (number, line) in text.lines().enumerate() {
            let bad = || format!("line {} of the refs has an odd form", number + 1);
            let mut words = line.split(' ');
            let (kind, id, length) = (words.next(), words.next(), words.next());
            let id: ObjectId = id.and_then(|id| id.parse().ok()).ok_or_else(bad)?;
            let length: u64 = length.and_then(|n| n.parse().ok()).ok_or_else(bad)?;
            match kind {
                Some("archive") => refs.archives.insert(id, length),
                Some("index") => refs.index.insert(id, length),
                _ => return Err(bad()),
            };
        }
        if refs.to_bytes() == bytes { Ok(refs) } else { Err("refs are not in their one spelling".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_no_other_spelling() {
        let mut refs = Refs::default();
        refs.archives.insert(ObjectId([2; 32]), 20);
        refs.archives.insert(ObjectId([1; 32]), 10);
        refs.index.insert(ObjectId([3; 32]), 30);
        let bytes = refs.to_bytes();
        assert_eq!(Refs::parse(&bytes).unwrap(), refs);
        let text = String::from_utf8(bytes).unwrap();
        for bad in [
            text.replace(" 10", " 010"),
            text.replace('\n', "\r\n"),
            text.trim_end().to_owned(),
            text.clone() + "\n",
            text.replace("index", "indeks"),
        ] {
            assert!(Refs::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
