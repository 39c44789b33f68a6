//! Newtypes for every id, so that a chunk id is never taken for an object id.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// An id or name that does not have the form it must have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {expected}")]
pub struct InvalidId {
    /// Which kind of id was expected.
    pub what: &'static str,
    /// What was given.
    pub value: String,
    /// The form that is expected.
    pub expected: &'static str,
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The id in 64 lower-case hex digits.
            pub fn to_hex(self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.to_hex())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                let bad = || InvalidId { what: $what, value: s.chars().take(80).collect(), expected: "64 lower-case hex digits" };
                if s.len() != 64 || s.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(bad());
                }
                let mut id = [0u8; 32];
                hex::decode_to_slice(s, &mut id).map_err(|_| bad())?;
                Ok(Self(id))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.serialize_str(&self.to_hex()) } else { s.serialize_bytes(&self.0) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct V;
                impl serde::de::Visitor<'_> for V {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a ", $what, " (32 bytes, or 64 hex digits)"))
                    }
                    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<$name, E> {
                        v.parse().map_err(E::custom)
                    }
                    fn visit_bytes<E: serde::de::Error>(self, v: &[u8]) -> Result<$name, E> {
                        Ok($name(v.try_into().map_err(|_| E::invalid_length(v.len(), &self))?))
                    }
                }
                if d.is_human_readable() { d.deserialize_str(V) } else { d.deserialize_bytes(V) }
            }
        }
    };
}

hash_id!(
    /// The keyed BLAKE3 hash of a chunk's plain bytes.
    ChunkId, "chunk id"
);
hash_id!(
    /// The SHA-256 of a stored object's bytes: anyone can check it with `sha256sum`.
    ObjectId, "object id"
);
hash_id!(
    /// The SHA-256 of the sorted recipient strings, each ended by a newline.
    RecipientSetId, "recipient set id"
);
hash_id!(
    /// Public fingerprint of a dedup key: a hash under a context of its own, so it tells nothing of the key.
    DedupKeyId, "dedup key id"
);

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(s) {
                    Ok(Self(s.to_owned()))
                } else {
                    Err(InvalidId { what: $what, value: s.chars().take(80).collect(), expected: $expected })
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// `[a-z0-9-]{1,64}`.
fn is_slug(s: &str) -> bool {
    (1..=64).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_host(s: &str) -> bool {
    (1..=64).contains(&s.len())
        && !s.starts_with(['.', '-'])
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// The characters of a git tag that are safe in a file name, a URL and a shell word.
fn is_tag(s: &str) -> bool {
    (1..=128).contains(&s.len())
        && !s.starts_with(['-', '.'])
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'/' | b'+'))
}

/// A source's or stream's name: one safe file name.
fn is_file_name(s: &str) -> bool {
    (1..=200).contains(&s.len())
        && !s.starts_with(['.', '-'])
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'%'))
}

fn is_snapshot_id(s: &str) -> bool {
    let b = s.as_bytes();
    b.len() == 25
        && b[..8].iter().all(u8::is_ascii_digit)
        && b[8] == b'T'
        && b[9..15].iter().all(u8::is_ascii_digit)
        && b[15] == b'Z'
        && b[16] == b'-'
        && b[17..].iter().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(c))
}

name_id!(
    /// The name of an application, which is the name of its policy.
    PolicyName, "application name", "1 to 64 of a-z, 0-9 and -", is_slug
);
name_id!(
    /// The host that takes the snapshots of a policy.
    HostName, "host name", "1 to 64 letters, digits, '-', '_' and '.', starting with a letter or digit", is_host
);
name_id!(
    /// A snapshot's tag.
    Tag, "tag", "1 to 128 letters, digits, '-', '_', '.', '/' and '+', starting with a letter or digit", is_tag
);
name_id!(
    /// The name of a source within a policy.
    SourceName, "source name", "1 to 200 letters, digits, - _ . and %, not starting with . or -", is_file_name
);
name_id!(
    /// The name of a stream within a source; also the file name that `restore --into` gives it.
    StreamName, "stream name", "1 to 200 letters, digits, '-', '_', '.' and '%', starting with a letter, digit or '%'", is_file_name
);
name_id!(
    /// `<UTC time>-<8 hex>`, such as `20261119T020000Z-1a2b3c4d`.
    SnapshotId, "snapshot id", "a UTC time and 8 hex digits, such as 20261119T020000Z-1a2b3c4d", is_snapshot_id
);

impl StreamName {
    /// A stream name from any text (a database's name, say): what is not safe in a file name is percent-encoded.
    pub fn encode(text: &str, suffix: &str) -> Result<StreamName, InvalidId> {
        let mut name = String::new();
        for (i, b) in text.bytes().enumerate() {
            let safe = b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && matches!(b, b'-' | b'.'));
            if safe {
                name.push(b as char);
            } else {
                name.push_str(&format!("%{b:02X}"));
            }
        }
        name.push_str(suffix);
        name.parse()
    }
}

/// The fingerprint of the root public key as `ssh-keygen -lf` prints it: `SHA256:<43 base64 characters>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// The fingerprint as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for RepositoryId {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        let ok = s
            .strip_prefix("SHA256:")
            .is_some_and(|b| b.len() == 43 && b.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/')));
        if ok {
            Ok(Self(s.to_owned()))
        } else {
            Err(InvalidId {
                what: "repository id",
                value: s.chars().take(80).collect(),
                expected: "SHA256: and 43 base64 characters",
            })
        }
    }
}

impl<'de> Deserialize<'de> for RepositoryId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The number of a snapshot within its host and policy, from 1. Order is by sequence, never by clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The last one that a key of ten digits holds.
    pub const MAX: Sequence = Sequence(9_999_999_999);
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// `n` random bytes from the operating system.
pub fn random_bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_names_encode_odd_database_names() {
        let name = |s| StreamName::encode(s, ".dump").map(|n| n.to_string());
        assert_eq!(name("shop").unwrap(), "shop.dump");
        assert_eq!(name("$(id)").unwrap(), "%24%28id%29.dump");
        assert_eq!(name("-x").unwrap(), "%2Dx.dump");
        assert_eq!(name("a b\"c").unwrap(), "a%20b%22c.dump");
        assert_eq!(name("žluť").unwrap(), "%C5%BElu%C5%A5.dump");
        assert_eq!(name("../x").unwrap(), "%2E.%2Fx.dump");
    }

    #[test]
    fn ids_refuse_what_is_not_their_form() {
        assert!("20261119T020000Z-1a2b3c4d".parse::<SnapshotId>().is_ok());
        assert!("20261119T020000Z-1A2b3c4d".parse::<SnapshotId>().is_err());
        assert!("Shop".parse::<PolicyName>().is_err());
        assert!("../x".parse::<HostName>().is_err());
        assert!("v1.0/../../x".parse::<Tag>().is_ok(), "tags never become paths");
        assert!("AB".repeat(32).parse::<ObjectId>().is_err());
    }
}
