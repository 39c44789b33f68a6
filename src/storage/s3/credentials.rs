//! Where credentials come from. They are asked for by the client when it signs, never stored, never shown.

use crate::base::secret::Secret;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::credentials::EnvironmentVariableCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Provided;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::config::Region;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a credentials file is believed before it is read again: a rotated key is taken up without a restart.
const REREAD_AFTER: Duration = Duration::from_secs(15 * 60);
const LARGEST_FILE: u64 = 64 << 10;

/// Where credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// AWS's own order: environment, profile, web identity, container, instance.
    Default,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    Env,
    /// A profile of `~/.aws/credentials` and `~/.aws/config`.
    Profile(String),
    /// A file of `KEY=VALUE` lines with those three names, readable by its owner (and group) only.
    File(PathBuf),
}

/// Why a credentials file cannot be used. Its content is never part of the message.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    #[error("read the credentials file {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the credentials file {} can be read by everybody (mode {mode:o})", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("the credentials file {} has no {key}", path.display())]
    Lacks { path: PathBuf, key: &'static str },
    #[error("line {line} of the credentials file {} is not KEY=VALUE", path.display())]
    Syntax { path: PathBuf, line: usize },
}

impl FileProblem {
    pub fn hint(&self) -> String {
        match self {
            FileProblem::Unreadable { .. } => "name a file that exists and that this account may read".to_owned(),
            FileProblem::Open { path, .. } => format!("run: chmod 600 {}", path.display()),
            FileProblem::Lacks { .. } | FileProblem::Syntax { .. } => {
                "write two lines: AWS_ACCESS_KEY_ID=… and AWS_SECRET_ACCESS_KEY=…".to_owned()
            }
        }
    }
}

/// The provider that the client asks.
pub async fn provider(source: &CredentialSource, config: &ProviderConfig) -> SharedCredentialsProvider {
    match source {
        CredentialSource::Default => {
            let chain = DefaultCredentialsChain::builder().configure(config.clone());
            SharedCredentialsProvider::new(chain.build().await)
        }
        CredentialSource::Env => SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()),
        CredentialSource::Profile(name) => SharedCredentialsProvider::new(
            ProfileFileCredentialsProvider::builder().configure(config).profile_name(name).build(),
        ),
        CredentialSource::File(path) => SharedCredentialsProvider::new(FileProvider { path: path.clone() }),
    }
}

/// The region that a profile names.
pub async fn profile_region(source: &CredentialSource, config: &ProviderConfig) -> Option<Region> {
    use aws_config::meta::region::ProvideRegion;
    use aws_config::profile::region::ProfileFileRegionProvider;
    let mut builder = ProfileFileRegionProvider::builder().configure(config);
    match source {
        CredentialSource::Profile(name) => builder = builder.profile_name(name),
        CredentialSource::Default => {}
        CredentialSource::Env | CredentialSource::File(_) => return None,
    }
    builder.build().region().await
}

#[derive(Debug)]
struct FileProvider {
    path: PathBuf,
}

impl ProvideCredentials for FileProvider {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        Provided::ready(load(&self.path).map_err(CredentialsError::invalid_configuration))
    }
}

/// Reads a credentials file.
pub fn load(path: &Path) -> Result<Credentials, FileProblem> {
    let text = read(path)?;
    let mut key_id = None;
    let mut secret = None;
    let mut token = None;
    for (at, line) in text.expose().lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((key, value)) = line.split_once('=') else {
            return Err(FileProblem::Syntax { path: path.to_owned(), line: at + 1 });
        };
        let value = Some(unquote(value.trim()).to_owned()).filter(|v| !v.is_empty());
        match key.trim().to_ascii_uppercase().as_str() {
            "AWS_ACCESS_KEY_ID" => key_id = value,
            "AWS_SECRET_ACCESS_KEY" => secret = value,
            "AWS_SESSION_TOKEN" => token = value,
            _ => {}
        }
    }
    let lacks = |key| FileProblem::Lacks { path: path.to_owned(), key };
    let key_id = key_id.ok_or_else(|| lacks("AWS_ACCESS_KEY_ID"))?;
    let secret = secret.ok_or_else(|| lacks("AWS_SECRET_ACCESS_KEY"))?;
    Ok(Credentials::new(key_id, secret, token, Some(SystemTime::now() + REREAD_AFTER), "file"))
}

fn read(path: &Path) -> Result<Secret<String>, FileProblem> {
    let unreadable = |source| FileProblem::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(FileProblem::Open { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(LARGEST_FILE).read_to_string(&mut text).map_err(unreadable)?;
    Ok(Secret::new(text))
}

fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_credentials_file_is_read_only_when_it_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3.env");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("# of the bucket\nexport AWS_ACCESS_KEY_ID='id'\nAWS_SECRET_ACCESS_KEY = \"s=cret\"\nOTHER=1\n", 0o600);
        let found = load(&path).unwrap();
        assert_eq!((found.access_key_id(), found.secret_access_key()), ("id", "s=cret"));
        write("AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY=very-secret\n", 0o644);
        let error = load(&path).unwrap_err();
        assert!(
            matches!(error, FileProblem::Open { mode: 0o644, .. }) && error.hint().contains("chmod 600"),
            "{error}"
        );
        write("AWS_ACCESS_KEY_ID=id\n", 0o640);
        assert!(matches!(load(&path).unwrap_err(), FileProblem::Lacks { key: "AWS_SECRET_ACCESS_KEY", .. }));
        write("very-secret\n", 0o600);
        let error = load(&path).unwrap_err();
        assert!(matches!(error, FileProblem::Syntax { line: 1, .. }) && !format!("{error:?}").contains("very-secret"));
    }
}
