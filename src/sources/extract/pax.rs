//! `pax` extension records: `<length> <key>=<value>\n`, later ones win (POSIX, pax, "pax Extended Header").

use crate::sources::files::acl;
use crate::sources::files::entry::{Time, Xattrs, display};
use std::collections::BTreeMap;

const MAX_RECORDS: usize = 4096;

/// The records of one header.
#[derive(Debug, Default)]
pub struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

/// Reads a header's content.
pub fn parse(body: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::default();
    let mut rest = body;
    while !rest.is_empty() {
        let blank = rest.iter().take(20).position(|b| *b == b' ').ok_or("a pax record without a length")?;
        let length =
            decimal(&rest[..blank]).and_then(|n| usize::try_from(n).ok()).ok_or("a pax record without a length")?;
        if length <= blank + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err("a pax record of another length than it says");
        }
        let record = &rest[blank + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or("a pax record without a value")?;
        if equals == 0 {
            return Err("a pax record without a key");
        }
        records.0.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        if records.0.len() > MAX_RECORDS {
            return Err("too many pax records");
        }
        rest = &rest[length..];
    }
    Ok(records)
}

impl Records {
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        // An empty value takes a record back.
        self.0.get(key).map(Vec::as_slice).filter(|v| !v.is_empty())
    }

    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.0.keys().map(Vec::as_slice)
    }

    pub fn number(&self, key: &[u8]) -> Result<Option<u64>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(text) => {
                decimal(text).map(Some).ok_or_else(|| format!("its pax record {} is not a number", display(key)))
            }
        }
    }

    pub fn time(&self, key: &[u8]) -> Result<Option<Time>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(text) => time(text).map(Some).ok_or_else(|| format!("its pax record {} is not a time", display(key))),
        }
    }

    /// Extended attributes and ACLs, and what of them is not restored.
    pub fn attributes(&self) -> (Xattrs, Vec<String>) {
        let mut found = Vec::new();
        let mut lost = Vec::new();
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                found.push((decode_key(name), value.clone()));
            } else if let Some(which) = key.strip_prefix(b"SCHILY.acl.") {
                let attribute = match which {
                    b"access" => Some(&b"system.posix_acl_access"[..]),
                    b"default" => Some(&b"system.posix_acl_default"[..]),
                    _ => None,
                };
                let acl = std::str::from_utf8(value).ok().and_then(acl::from_text);
                match (attribute, acl) {
                    (Some(attribute), Some(acl)) => found.push((attribute.to_vec(), acl)),
                    _ if value.is_empty() => {}
                    _ => lost.push(format!("ACL in {} not understood", display(key))),
                }
            } else if key.starts_with(b"LIBARCHIVE.xattr.") && !self.0.keys().any(|k| k.starts_with(b"SCHILY.xattr.")) {
                lost.push(format!("attribute in {} not understood", display(key)));
            } else if key == b"SCHILY.fflags" && !value.is_empty() {
                // Set, they would keep the next restore from replacing the file.
                lost.push(format!("flags {} not restored: chattr sets them", display(value)));
            }
        }
        found.sort();
        (found, lost)
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional sign and fraction; digits beyond nanoseconds are cut towards the past.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let whole = i64::try_from(decimal(&text[..dot])?).ok()?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanos = 0u32;
    for i in 0..9 {
        nanos = nanos * 10 + fraction.get(i).map_or(0, |d| u32::from(d - b'0'));
    }
    Some(match (negative, nanos) {
        (false, _) => Time { seconds: whole, nanos },
        (true, 0) => Time { seconds: -whole, nanos: 0 },
        (true, _) => Time { seconds: -whole - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// `%3D` and `%25` stand for what would be mistaken for the record's own.
fn decode_key(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match rest.get(..3) {
            Some(b"%3D") => (b'=', &rest[3..]),
            Some(b"%25") => (b'%', &rest[3..]),
            _ => (*first, after),
        };
        out.push(byte);
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_records() {
        assert_eq!(time(b"-0.5"), Some(Time { seconds: -1, nanos: 500_000_000 }));
        assert_eq!(time(b"-10"), Some(Time { seconds: -10, nanos: 0 }));
        assert_eq!(time(b"9000000000.0000000019"), Some(Time { seconds: 9_000_000_000, nanos: 1 }));
        assert_eq!((time(b"1.x"), time(b""), time(b"99999999999999999999"), time(b"--1")), (None, None, None, None));
        assert_eq!(parse(b"5 a=\n").unwrap().0.len(), 1);
        for bad in [&b"6 a=\n"[..], b"4 a=\n", b"5 a=", b" a=\n", b"5 =a\n", b"99999999999999999999 a=\n", b"-5 a=\n"] {
            assert!(parse(bad).is_err(), "{}", display(bad));
        }
        assert_eq!(decode_key(b"user.a%3Db%25%3"), b"user.a=b%%3");
    }
}
