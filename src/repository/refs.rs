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
        let mut before = (Kind::Archive, None);
        for (number, line) in text.split_inclusive('\n').enumerate() {
            let (kind, id, length) =
                parse_line(line).ok_or_else(|| format!("line {} of the refs has an odd form", number + 1))?;
            // Every line behind the one before it: sorted, and nothing twice.
            if (kind, Some(id)) <= before {
                return Err(format!("line {} of the refs is not in order", number + 1));
            }
            before = (kind, Some(id));
            match kind {
                Kind::Archive => refs.archives.insert(id, length),
                Kind::Index => refs.index.insert(id, length),
            };
        }
        Ok(refs)
    }
}

/// In the order in which they stand in the object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Archive,
    Index,
}

/// One line with its newline, in its one spelling.
fn parse_line(line: &str) -> Option<(Kind, ObjectId, u64)> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let kind = match words.next()? {
        "archive" => Kind::Archive,
        "index" => Kind::Index,
        _ => return None,
    };
    let id = words.next()?.parse().ok()?;
    let digits = words.next()?;
    let length: u64 = digits.parse().ok()?;
    (words.next().is_none() && length.to_string() == digits).then_some((kind, id, length))
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
            text.replace(" 10", " +10"),
            text.replace(" 10", " 10 "),
            text.lines().rev().map(|line| format!("{line}\n")).collect(),
            text.split_inclusive('\n').next().unwrap().repeat(2),
        ] {
            assert!(Refs::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
