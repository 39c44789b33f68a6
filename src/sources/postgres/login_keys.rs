//! Logins whose parts stand under keys of their own: `DB_USER` and `DB_PASSWORD`, `POSTGRES_…`, `PG…`.
//!
//! Such a key says less than a URL does: another server may be meant, or the role may stand elsewhere. Only a host that
//! is the server's beside a role is as good as a URL; for all others today's value is the witness: where the server
//! accepts that for a role, the value that will be there has to open the same door.

use crate::base::secret::Secret;
use crate::policy::dotenv::Entry;
use crate::policy::model::App;
use crate::sources::env_merge::{live, parsed};
use crate::sources::files::env::EnvFile;
use std::path::PathBuf;

const PASSWORDS: &[&str] = &["PASSWORD", "PASSWD", "PASS", "PWD"];
const ROLES: &[&str] = &["USER", "USERNAME", "ROLE", "LOGIN"];
const HOSTS: &[&str] = &["HOST", "HOSTNAME", "SERVER"];
const DATABASES: &[&str] = &["NAME", "DATABASE", "DB", "DBNAME"];
/// Words of a key that speaks of a database, and those of one that speaks of another kind of it.
const OURS: &[&str] = &["DB", "DATABASE", "PG", "POSTGRES", "POSTGRESQL", "PSQL"];
const OTHERS: &[&str] = &["MYSQL", "MARIADB", "REDIS", "MONGO", "MONGODB", "RABBITMQ", "MSSQL"];

/// A password and what stands beside it.
pub(super) struct Parts {
    pub file: PathBuf,
    pub key: String,
    pub password: Secret<String>,
    /// The value that the key has now, where that is another one.
    pub today: Option<Secret<String>>,
    pub role: Option<String>,
    pub database: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
}

impl Parts {
    /// Whether it says itself whose password it is.
    pub fn is_named(&self) -> bool {
        self.host.is_some() && self.role.is_some()
    }
}

/// All of them in the files that will be there.
pub(super) fn find(files: &[EnvFile], app: &App) -> Vec<Parts> {
    // A file that cannot be read now is no witness.
    let now = live(files).unwrap_or_default();
    let now: Vec<(&EnvFile, Vec<Entry>)> =
        parsed(&now, app).into_iter().filter_map(|(file, entries)| Some((file, entries.ok()?))).collect();
    let then: Vec<(&EnvFile, Vec<Entry>)> =
        parsed(files, app).into_iter().filter_map(|(file, entries)| Some((file, entries.ok()?))).collect();
    let mut found = Vec::new();
    for (file, entries) in &then {
        // Parts may be shared out among files; those of the same file come first.
        let own = entries.iter();
        let others = then.iter().filter(|(other, _)| other.path != file.path).flat_map(|(_, entries)| entries);
        let all: Vec<&Entry> = own.chain(others).collect();
        for entry in entries {
            let Some(prefix) = prefix(&entry.key).filter(|_| usable(entry.value.expose())) else { continue };
            let beside = |words: &[&str]| beside(&all, &prefix, words);
            let today = now.iter().find(|(other, _)| other.path == file.path);
            let today = today.and_then(|(_, entries)| entries.iter().rev().find(|e| e.key == entry.key));
            let today = today.map(|e| e.value.clone()).filter(|v| v.expose() != entry.value.expose());
            let host = beside(HOSTS);
            let (host, port) = match host.as_deref().and_then(|h| h.rsplit_once(':')) {
                Some((name, port)) if !name.contains(':') => (Some(name.to_owned()), Some(port.to_owned())),
                _ => (host, beside(&["PORT"])),
            };
            found.push(Parts {
                file: file.path.clone(),
                key: entry.key.clone(),
                password: entry.value.clone(),
                today: today.filter(|v| usable(v.expose())),
                role: beside(ROLES),
                database: beside(DATABASES),
                host,
                port: port.and_then(|port| port.parse().ok()),
            });
        }
    }
    found
}

fn usable(value: &str) -> bool {
    !value.is_empty() && !value.contains('\0')
}

/// What stands before `PASSWORD` in a key that speaks of a database: `DB_`, `PG`.
fn prefix(key: &str) -> Option<String> {
    let key = key.to_ascii_uppercase();
    let prefix = PASSWORDS.iter().find_map(|word| key.strip_suffix(word))?;
    let words: Vec<&str> = prefix.split('_').collect();
    let has = |list: &[&str]| words.iter().any(|w| list.contains(w));
    (has(OURS) && !has(OTHERS)).then(|| prefix.to_owned())
}

/// The value under the same prefix with one of these words; the last assignment in a file counts.
fn beside(all: &[&Entry], prefix: &str, words: &[&str]) -> Option<String> {
    let named = |word: &&str| {
        let key = format!("{prefix}{word}");
        all.iter().find(|e| e.key.eq_ignore_ascii_case(&key)).map(|e| e.value.expose().clone())
    };
    words.iter().find_map(named).filter(|v| usable(v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn keys_that_speak_of_a_database() {
        for (key, expected) in [
            ("DB_PASSWORD", Some("DB_")),
            ("PGPASSWORD", Some("PG")),
            ("postgres_password", Some("POSTGRES_")),
            ("SHOP_DATABASE_PASS", Some("SHOP_DATABASE_")),
            ("SMTP_PASSWORD", None),
            ("MYSQL_DB_PASSWORD", None),
            ("DB_PASSWORD_FILE", None),
            ("PASSWORD", None),
        ] {
            assert_eq!(prefix(key).as_deref(), expected, "{key}");
        }
    }

    #[test]
    fn what_stands_beside_is_found_in_the_same_file_first() {
        let text = "[app]\nname = \"test\"\nroot = \"/nowhere\"\n[repository]\nurl = \"/nowhere/repo\"\n\
            recipients = [\"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\"]\n";
        let policy = crate::policy::parse(Path::new("/nowhere/test.toml"), text).unwrap();
        let file = |path: &str, text: &str| EnvFile { path: path.into(), mode: 0o600, content: text.into() };
        let files = [
            file("/nowhere/a.env", "DB_USER=other\nDB_HOST=db:5433\nDB_NAME=shop\n"),
            file("/nowhere/b.env", "DB_USER=shop\nDB_PASSWORD=p\nSMTP_PASSWORD=x\nDB_EMPTY_PASSWORD=\n"),
        ];
        let found = find(&files, &policy.app);
        assert_eq!(found.len(), 1);
        let parts = &found[0];
        assert_eq!((parts.key.as_str(), parts.file.as_path()), ("DB_PASSWORD", Path::new("/nowhere/b.env")));
        assert_eq!((parts.role.as_deref(), parts.host.as_deref(), parts.port), (Some("shop"), Some("db"), Some(5433)));
        assert_eq!((parts.database.as_deref(), parts.is_named()), (Some("shop"), true));
        assert!(parts.today.is_none(), "there is no such file now");
    }
}
