//! Secret-looking keys whose values are not those of the snapshot.
//!
//! A key counts by its name, or by its value: a URL with a password in it, or a long text without order. Names that
//! speak of versions are no secrets whatever their values look like: every release has another commit.

use super::parsed;
use crate::policy::dotenv::{self, assignments};
use crate::policy::model::App;
use crate::sources::files::env::{EnvFile, looks_secret};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A random text of this length and of so many bits a character is a key, not a word.
const LONG: usize = 20;
const BITS: f64 = 3.3;

/// Which value a key gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Live,
    Snapshot,
}

/// What was chosen, by file and key. What is not in it is as captured.
pub type Choices = BTreeMap<(PathBuf, String), Side>;

/// How a key differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Both have it, with different values: it was rotated.
    Differs,
    /// Only today's file has it: the code that comes back does not know it.
    OnlyLive,
    /// Only the captured file has it: it was taken away since.
    OnlySnapshot,
}

/// A secret-looking key that differs. Never its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    pub file: PathBuf,
    pub key: String,
    /// It belongs to the data and follows them, whatever is chosen for the others, where they all go one way.
    pub data_key: bool,
    pub change: Change,
}

impl Rotated {
    /// Whether somebody has to choose: a rotated secret that does not follow the data by itself.
    pub fn asks(&self) -> bool {
        self.change == Change::Differs && !self.data_key
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    pub rotated: Vec<Rotated>,
    /// Files that Compose would refuse on one of the sides, and why: they were not compared.
    pub unread: Vec<(PathBuf, String)>,
}

/// Compares the files of both sides, key by key.
pub fn compare(captured: &[EnvFile], live: &[EnvFile], app: &App, data_keys: &[String]) -> Comparison {
    let mut found = Comparison::default();
    let today = parsed(live, app);
    for (file, then) in parsed(captured, app) {
        let Some((other, now)) = today.iter().find(|(f, _)| f.path == file.path) else { continue };
        let (then, now) = match (then, now) {
            (Ok(then), Ok(now)) => (then, now),
            (Err(why), _) => {
                found.unread.push((file.path.clone(), format!("in the snapshot: {why}")));
                continue;
            }
            (_, Err(why)) => {
                found.unread.push((file.path.clone(), format!("today: {why}")));
                continue;
            }
        };
        found.rotated.extend(differences(&file.path, &Text::of(file, &then), &Text::of(other, now), data_keys));
    }
    found
}

/// A file's values, and the assignments as they are written.
struct Text<'a> {
    entries: &'a [dotenv::Entry],
    written: BTreeMap<String, String>,
}

impl<'a> Text<'a> {
    fn of(file: &EnvFile, entries: &'a [dotenv::Entry]) -> Self {
        let text = String::from_utf8_lossy(&file.content);
        let mut written = BTreeMap::new();
        for assignment in assignments(&text).unwrap_or_default() {
            let value = text[assignment.start..assignment.end].split_once(['=', ':']);
            written.insert(assignment.key, value.map(|(_, v)| v.trim().to_owned()).unwrap_or_default());
        }
        Self { entries, written }
    }
}

fn differences(path: &Path, then: &Text<'_>, now: &Text<'_>, data_keys: &[String]) -> Vec<Rotated> {
    let keys: BTreeSet<&str> = then.entries.iter().chain(now.entries).map(|e| e.key.as_str()).collect();
    let mut rotated = Vec::new();
    for key in keys {
        let (old, new) = (dotenv::get(then.entries, key), dotenv::get(now.entries, key));
        let data_key = data_keys.iter().any(|k| k == key);
        let values = [old, new].into_iter().flatten();
        if !data_key && !values.map(|v| v.expose()).any(|v| is_secret(key, v)) {
            continue;
        }
        let change = match (old, new) {
            // Written the same, it only follows the key that it refers to.
            (Some(old), Some(new)) if old.expose() != new.expose() && then.written.get(key) != now.written.get(key) => {
                Change::Differs
            }
            (Some(_), None) => Change::OnlySnapshot,
            (None, Some(_)) => Change::OnlyLive,
            _ => continue,
        };
        rotated.push(Rotated { file: path.to_owned(), key: key.to_owned(), data_key, change });
    }
    rotated
}

/// The same choice for all: `secrets` for what was rotated, `data` for what follows the data (the snapshot's where the
/// data return, the live one where they stay). Keys of one side only are as captured, except such of the data.
pub fn choose(rotated: &[Rotated], secrets: Side, data: Side) -> Choices {
    let chosen = rotated.iter().filter(|r| r.data_key || r.change == Change::Differs);
    chosen.map(|r| ((r.file.clone(), r.key.clone()), if r.data_key { data } else { secrets })).collect()
}

/// Whether a key with this value looks like a secret.
pub fn is_secret(key: &str, value: &str) -> bool {
    if value.is_empty() {
        return false;
    }
    looks_secret(key) || has_userinfo(value) || (!is_of_a_version(key) && is_random(value))
}

/// `scheme://user:password@…`
fn has_userinfo(value: &str) -> bool {
    let Some((scheme, rest)) = value.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let named = scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    named
        && authority.rsplit_once('@').is_some_and(|(user, _)| user.split_once(':').is_some_and(|(_, p)| !p.is_empty()))
}

fn is_of_a_version(key: &str) -> bool {
    let key = key.to_ascii_uppercase();
    let words = ["COMMIT", "VERSION", "REVISION", "DIGEST", "RELEASE", "IMAGE", "BUILD", "CHECKSUM"];
    words.iter().any(|w| key.contains(w)) || key.split('_').any(|w| matches!(w, "SHA" | "REV" | "TAG" | "HASH" | "GIT"))
}

/// Letters and digits mixed, in no order to speak of, and neither a path nor a name of a host.
fn is_random(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_' | '-');
    let long = value.len() >= LONG && value.chars().all(plain) && !value.starts_with('/');
    let mixed = value.bytes().any(|b| b.is_ascii_digit()) && value.bytes().any(|b| b.is_ascii_alphabetic());
    long && mixed && bits_a_character(value) >= BITS
}

/// Shannon's entropy of the characters.
fn bits_a_character(value: &str) -> f64 {
    let mut counts = [0u32; 256];
    value.bytes().for_each(|b| counts[usize::from(b)] += 1);
    let length = value.len() as f64;
    counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) / length).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        App {
            name: "shop".parse().unwrap(),
            root: "/srv/app".into(),
            compose_files: vec![],
            env_files: vec![],
            profiles: vec![],
            project: None,
            project_dir: None,
        }
    }

    fn file(path: &str, text: &str) -> EnvFile {
        EnvFile { path: path.into(), mode: 0o600, content: text.into() }
    }

    fn found(then: &str, now: &str) -> Vec<(String, Change, bool)> {
        let path = "/srv/app/.env";
        let comparison = compare(&[file(path, then)], &[file(path, now)], &app(), &["ENCRYPTION_KEY".into()]);
        assert_eq!(comparison.unread, []);
        comparison.rotated.into_iter().map(|r| (r.key, r.change, r.data_key)).collect()
    }

    #[test]
    fn secrets_are_known_by_name_and_by_value() {
        for (key, value) in [
            ("JWT_SECRET", "x"),
            ("GITHUB_TOKEN", "x"),
            ("db_password", "x"),
            ("SMTP_PASS", "x"),
            ("API_KEY", "x"),
            ("SENTRY_DSN", "https://x"),
            ("AWS_CREDENTIALS", "x"),
            ("BROKER", "amqp://shop:pw@queue:5672/"),
            ("PEPPER", "q7Zk2mP9sVx4Lw8RtYb3"),
            ("SEED", "9f86d081884c7d659a2feaa0c55ad015"),
        ] {
            assert!(is_secret(key, value), "{key}");
        }
        for (key, value) in [
            ("MODE", "production"),
            ("API_URL", "https://api.example.org/v1"),
            ("GIT_SHA", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"),
            ("IMAGE_TAG", "20261119-9f86d081884c7d659a2f"),
            ("UPLOADS", "/srv/app/uploads/2026/11/19/some"),
            ("HOST", "app01.internal.example.org"),
            ("DESCRIPTION", "a shop for 1000 things and more"),
            ("JWT_SECRET", ""),
            ("KEYBOARD", "de"),
        ] {
            assert!(!is_secret(key, value), "{key}");
        }
    }

    #[test]
    fn keys_that_differ_are_named() {
        let then = "MODE=a\nJWT_SECRET=one\nSAME_TOKEN=t\nENCRYPTION_KEY=old\nGONE_SECRET=x\nQUOTED_PASS='p'\n";
        let now = "MODE=b\nJWT_SECRET=two\nSAME_TOKEN=t\nENCRYPTION_KEY=new\nNEW_SECRET=x\nQUOTED_PASS=\"p\" # note\n";
        let expected = [
            ("ENCRYPTION_KEY", Change::Differs, true),
            ("GONE_SECRET", Change::OnlySnapshot, false),
            ("JWT_SECRET", Change::Differs, false),
            ("NEW_SECRET", Change::OnlyLive, false),
        ];
        assert_eq!(found(then, now), expected.map(|(k, c, d)| (k.to_owned(), c, d)));
    }

    #[test]
    fn what_only_follows_another_key_is_not_named_itself() {
        let with = |p: &str| format!("DB_PASSWORD={p}\nDATABASE_URL=postgres://shop:${{DB_PASSWORD}}@db/shop\n");
        assert_eq!(found(&with("a"), &with("b")), [("DB_PASSWORD".to_owned(), Change::Differs, false)]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_and_its_values_are_not() {
        let (good, bad) = (file("/srv/app/.env", "A_SECRET=geheim\n"), file("/srv/app/.env", "A_SECRET='geheim\n"));
        let comparison = compare(&[file("/srv/app/.env", "A_SECRET=x\n")], &[bad], &app(), &[]);
        assert!(comparison.rotated.is_empty() && comparison.unread[0].1.starts_with("today: line 1"), "{comparison:?}");
        assert!(!format!("{comparison:?}").contains("geheim"));
        assert_eq!(compare(&[good], &[], &app(), &[]), Comparison::default());
    }

    #[test]
    fn data_keys_follow_the_data() {
        let of = |key: &str, data_key, change| Rotated { file: "/f".into(), key: key.into(), data_key, change };
        let all = [
            of("A", false, Change::Differs),
            of("B", false, Change::OnlyLive),
            of("C", true, Change::Differs),
            of("D", true, Change::OnlyLive),
        ];
        let chosen = choose(&all, Side::Live, Side::Snapshot);
        let chosen: Vec<_> = chosen.into_iter().map(|((_, key), side)| (key, side)).collect();
        let expected = [("A", Side::Live), ("C", Side::Snapshot), ("D", Side::Snapshot)];
        assert_eq!(chosen, expected.map(|(k, s)| (k.to_owned(), s)));
        assert_eq!(all.iter().filter(|r| r.asks()).count(), 1);
    }
}
