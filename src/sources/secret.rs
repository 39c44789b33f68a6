//! A reference to a secret, followed: the policy says where a password stands, and it is read when it is needed.
//!
//! Invariant: an error names the file and the key, never a value or a part of one.

use super::SourceError;
use crate::base::secret::Secret;
use crate::policy::dotenv;
use crate::policy::model::SecretRef;
use std::path::Path;

/// A password file larger than this is some other file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The reference as a policy writes it: `/srv/app/.env:DB_PASSWORD`, `env:NAME`, `file:/run/secrets/db`.
pub fn describe(reference: &SecretRef) -> String {
    match reference {
        SecretRef::EnvFile { file, key } => format!("{}:{key}", file.display()),
        SecretRef::Env(name) => format!("env:{name}"),
        SecretRef::File(path) => format!("file:{}", path.display()),
    }
}

/// Reads the secret that `password_from` points to.
pub fn resolve(reference: &SecretRef) -> Result<Secret<String>, SourceError> {
    resolve_as("password_from", reference)
}

/// Reads the secret that this field of a policy points to.
pub fn resolve_as(field: &str, reference: &SecretRef) -> Result<Secret<String>, SourceError> {
    let value = match reference {
        SecretRef::EnvFile { file, key } => from_env_file(field, file, key)?,
        SecretRef::Env(name) => Secret::new(std::env::var(name).map_err(|e| match e {
            std::env::VarError::NotPresent => SourceError::hint(
                format!("{field} points to env:{name}, which is not set"),
                format!("set {name} in the environment that Lifeboat runs in (systemd: EnvironmentFile=)"),
            ),
            std::env::VarError::NotUnicode(_) => {
                SourceError::problem(format!("{field} points to env:{name}, which is not UTF-8"))
            }
        })?),
        SecretRef::File(path) => {
            let bytes = read(field, path)?;
            let text = std::str::from_utf8(bytes.expose()).map_err(|_| {
                SourceError::problem(format!("{field} points to file:{}, which is not UTF-8", path.display()))
            })?;
            Secret::new(text.strip_suffix('\n').map_or(text, |t| t.strip_suffix('\r').unwrap_or(t)).to_owned())
        }
    };
    if value.expose().is_empty() {
        return Err(SourceError::problem(format!("{field} points to {}, which is empty", describe(reference))));
    }
    if value.expose().contains('\0') {
        return Err(SourceError::problem(format!(
            "{field} points to {}, which holds a zero byte",
            describe(reference)
        )));
    }
    Ok(value)
}

fn read(field: &str, path: &Path) -> Result<Secret<Vec<u8>>, SourceError> {
    let file = |source| SourceError::File { action: "read the password from", path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(file)?.len();
    if length > MAX_FILE_BYTES {
        return Err(SourceError::problem(format!("{field} points to {}: {length} bytes", path.display())));
    }
    std::fs::read(path).map(Secret::new).map_err(file)
}

fn from_env_file(field: &str, file: &Path, key: &str) -> Result<Secret<String>, SourceError> {
    let bytes = read(field, file)?;
    let entries = dotenv::parse_bytes(bytes.expose(), &|name| std::env::var(name).ok()).map_err(|e| {
        SourceError::problem(format!("{field} points to {}:{key}, which cannot be read: {e}", file.display()))
    })?;
    dotenv::get(&entries, key).cloned().ok_or_else(|| {
        let near: Vec<&str> = entries.iter().map(|e| e.key.as_str()).filter(|k| k.contains("PASS")).collect();
        let problem = format!("{field} points to {}:{key}, and that file has no {key}", file.display());
        match near.as_slice() {
            [] => SourceError::problem(problem),
            some => SourceError::hint(problem, format!("it has {}", some.join(", "))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn each_kind_of_reference() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(&dir, ".env", "A=1\nDB_PASSWORD='s3 cret' # note\n");
        let secret = resolve(&SecretRef::EnvFile { file, key: "DB_PASSWORD".into() }).unwrap();
        assert_eq!(secret.expose(), "s3 cret");
        let path = write(&dir, "pw", "from file \n");
        assert_eq!(resolve(&SecretRef::File(path)).unwrap().expose(), "from file ");
        assert!(!resolve(&SecretRef::Env("PATH".into())).unwrap().expose().is_empty());
    }

    #[test]
    fn errors_name_the_place_and_never_a_value() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(&dir, ".env", "PG_PASSWORD=topsecret\nEMPTY=\n");
        let missing = resolve(&SecretRef::EnvFile { file: file.clone(), key: "DB_PASSWORD".into() }).unwrap_err();
        let text = format!("{missing:?}");
        assert!(text.contains("DB_PASSWORD") && text.contains("it has PG_PASSWORD"), "{text}");
        assert!(!text.contains("topsecret"), "{text}");
        let empty = resolve(&SecretRef::EnvFile { file, key: "EMPTY".into() }).unwrap_err();
        assert!(empty.to_string().ends_with(".env:EMPTY, which is empty"), "{empty}");
        let gone = resolve(&SecretRef::File(dir.path().join("no"))).unwrap_err();
        assert!(gone.to_string().contains("read the password from"), "{gone}");
        let unset = resolve(&SecretRef::Env("LIFEBOAT_NO_SUCH_VARIABLE".into())).unwrap_err();
        assert!(unset.to_string().contains("LIFEBOAT_NO_SUCH_VARIABLE"), "{unset}");
        let broken = write(&dir, "broken.env", "A='topsecret\n");
        let error = resolve(&SecretRef::EnvFile { file: broken, key: "A".into() }).unwrap_err();
        assert!(!format!("{error:?}").contains("topsecret"), "{error:?}");
    }
}
