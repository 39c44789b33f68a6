//! What a page says of a host and one of its policies. Pure data but for the host's key, which says who signs.

use crate::ops::OpsError;
use crate::ops::access::{Installation, host_name};
use crate::pipeline::crypt::object_id;
use crate::place::account::Account;
use crate::policy::Policy;
use crate::policy::model::{Credentials, Reach, RepositoryUrl};
use crate::repository::RepositoryError;
use crate::repository::keys::HostKey;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One place where the snapshots lie, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub url: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Where this host has the keys of a bucket: `file:PATH`, `profile:NAME`, `env` or `default`; null for a folder.
    pub credentials: Option<String>,
}

impl Place {
    fn of(url: &RepositoryUrl, reach: &Reach) -> Self {
        let (endpoint, region, credentials) = match url {
            RepositoryUrl::Local(_) => (None, None, None),
            RepositoryUrl::S3 { .. } => {
                let from = match &reach.credentials {
                    Credentials::Default => "default".to_owned(),
                    Credentials::Env => "env".to_owned(),
                    Credentials::Profile(name) => format!("profile:{name}"),
                    Credentials::File(path) => format!("file:{}", path.display()),
                };
                (reach.endpoint.clone(), reach.region.clone(), Some(from))
            }
        };
        Self { url: url.to_string(), endpoint, region, credentials }
    }

    pub fn is_bucket(&self) -> bool {
        self.credentials.is_some()
    }
}

/// What a stranger relies on. When something of it changes, a page that was printed before is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub policy: String,
    pub host: String,
    pub root: PathBuf,
    /// As whom Lifeboat runs here.
    pub account: String,
    pub repository_id: String,
    /// The repository, then its copies.
    pub places: Vec<Place>,
    /// For whom snapshots are sealed: one of their identities opens all.
    pub recipients: Vec<String>,
    /// The public key that signs this host's snapshots.
    pub signing_key: String,
    /// What is not ours to bring back.
    pub external: Vec<String>,
}

impl Facts {
    pub fn of(installation: &Installation, policy: &Policy) -> Result<Self, OpsError> {
        let host_key = HostKey::load(&installation.host_key())?;
        let id = host_key.repository.as_ref().ok_or_else(|| {
            OpsError::failed(
                format!("{} does not say to which repository it belongs", installation.host_key().display()),
                "make a new host key: move this one away and run `lifeboat keys new` with the identity at hand",
            )
        })?;
        let uid = rustix::process::geteuid().as_raw();
        let account = Account::by_uid(uid).and_then(|a| a.name).unwrap_or_else(|| format!("uid {uid}"));
        let repository = &policy.repository;
        let copies = repository.copies.iter().map(|c| Place::of(&c.url, c.reach.as_ref().unwrap_or(&repository.reach)));
        Ok(Self {
            policy: policy.app.name.to_string(),
            host: host_name()?.to_string(),
            root: policy.app.root.clone(),
            account,
            repository_id: id.to_string(),
            places: std::iter::once(Place::of(&repository.url, &repository.reach)).chain(copies).collect(),
            recipients: repository.recipients.clone(),
            signing_key: host_key.signing.public().to_text().map_err(RepositoryError::from)?,
            external: policy.external.clone(),
        })
    }

    /// Eight letters and digits that stand for all of this: `K7QM-2X9D`.
    pub fn code(&self) -> Result<String, OpsError> {
        // No letter that is taken for another one.
        const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let json =
            serde_json::to_vec(self).map_err(|e| OpsError::failed(format!("recovery kit: {e}"), "report this"))?;
        let hash = object_id(&json).0;
        let digit = |n: usize| char::from(DIGITS[usize::from(hash[n] & 31)]);
        Ok((0..8).flat_map(|n| (n == 4).then_some('-').into_iter().chain(Some(digit(n)))).collect())
    }

    /// What is another one than it was, in a page's own words.
    pub fn changed_since(&self, then: &Facts) -> Vec<String> {
        let names = [
            ("the application's name", self.policy != then.policy),
            ("the host's name", self.host != then.host),
            ("the application's folder", self.root != then.root),
            ("the account that runs Lifeboat", self.account != then.account),
            ("the repository's id", self.repository_id != then.repository_id),
            ("where the snapshots lie", self.places != then.places),
            ("who can open the snapshots", self.recipients != then.recipients),
            ("this host's signing key", self.signing_key != then.signing_key),
            ("what is not ours to bring back", self.external != then.external),
        ];
        names.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name.to_owned()).collect()
    }
}

/// Whether somebody wrote a page's code, in whatever way.
pub fn same_code(written: &str, code: &str) -> bool {
    let plain = |text: &str| -> String {
        let letters = text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase());
        letters
            .map(|c| match c {
                'O' => '0',
                'I' | 'L' => '1',
                c => c,
            })
            .collect()
    };
    plain(written) == plain(code)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn facts() -> Facts {
        Facts {
            policy: "shop".into(),
            host: "web-1".into(),
            root: "/opt/shop".into(),
            account: "root".into(),
            repository_id: "SHA256:Q0CfKTGdJ/B0zVHWwSvr/uOH8YrEepQbZNJnR3ok1Z8".into(),
            places: vec![Place {
                url: "/var/backups/lifeboat".into(),
                endpoint: None,
                region: None,
                credentials: None,
            }],
            recipients: vec!["age1lkfpx2r6ntsehgd4n4aqxy30r84ax5mu72l3kpdkw5222y2ncadsg3h735".into()],
            signing_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBx1lI+MFA8yfaV7nKzwVJ7fgGYPxE8YJ4pGDMPLKE6r".into(),
            external: vec!["Supabase".into()],
        }
    }

    #[test]
    fn the_code_stands_for_every_fact() {
        let one = facts();
        let code = one.code().unwrap();
        assert!(code.len() == 9 && code.as_bytes()[4] == b'-', "{code}");
        assert!(same_code(&code.to_lowercase().replace('-', " "), &code) && !same_code("", &code));
        let changes: [&dyn Fn(&mut Facts); 9] = [
            &|f| f.policy += "x",
            &|f| f.host += "x",
            &|f| f.root.push("x"),
            &|f| f.account += "x",
            &|f| f.repository_id += "x",
            &|f| f.places[0].region = Some("eu-1".into()),
            &|f| f.recipients.clear(),
            &|f| f.signing_key += "x",
            &|f| f.external.clear(),
        ];
        for change in changes {
            let mut other = facts();
            change(&mut other);
            assert_ne!(other.code().unwrap(), code);
            assert_eq!(other.changed_since(&one).len(), 1);
        }
        assert!(one.changed_since(&one).is_empty());
    }
}
