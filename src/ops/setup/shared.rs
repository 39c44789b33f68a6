//! What two installed policies both capture: a restore of one then touches what the other calls its own.

use crate::ops::access::Installation;
use crate::policy::model::{SourceSpec, Target};
use crate::policy::{self, Policy};
use serde::Serialize;
use std::path::Path;

/// One thing that another policy captures as well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Shared {
    pub what: String,
    /// The other policy.
    pub policy: String,
}

/// What `policy` shares with the others that are installed. One that does not load speaks for itself when it is used.
pub fn shared(installation: &Installation, policy: &Policy) -> Vec<Shared> {
    let mut found = Vec::new();
    let mine = things(policy);
    for name in policy::find::installed(&installation.config_dir).unwrap_or_default() {
        let path = installation.policies().join(format!("{name}.toml"));
        let Ok(other) = policy::load(&path) else { continue };
        if other.app.name == policy.app.name {
            continue;
        }
        for theirs in things(&other) {
            let both = mine.iter().filter_map(|m| m.overlap(&theirs));
            found.extend(both.map(|what| Shared { what, policy: name.clone() }));
        }
    }
    found.sort();
    found.dedup();
    found
}

#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Path(String),
    Server(String),
}

impl Claim {
    /// The narrower of two that overlap.
    fn overlap(&self, other: &Claim) -> Option<String> {
        match (self, other) {
            (Claim::Server(a), Claim::Server(b)) => (a == b).then(|| a.clone()),
            (Claim::Path(a), Claim::Path(b)) if Path::new(a).starts_with(b) => Some(a.clone()),
            (Claim::Path(a), Claim::Path(b)) if Path::new(b).starts_with(a) => Some(b.clone()),
            _ => None,
        }
    }
}

fn things(policy: &Policy) -> Vec<Claim> {
    let server = |target: &Target| match target {
        Target::Container(name) => Some(Claim::Server(format!("container {name}"))),
        Target::Url(url) => Some(Claim::Server(url.clone())),
        // A service is its own project's, and only two sockets of this host are one.
        Target::Service(_) | Target::Host => None,
    };
    let mut claims = Vec::new();
    for source in policy.sources.iter().filter(|s| !s.implicit) {
        let paths: &[String] = match &source.spec {
            SourceSpec::Postgres(spec) => {
                claims.extend(server(&spec.target));
                &[]
            }
            SourceSpec::Redis(spec) => {
                claims.extend(server(&spec.target));
                &[]
            }
            SourceSpec::Env(spec) => &spec.paths,
            SourceSpec::Certificates(spec) => &spec.paths,
            SourceSpec::Nginx(spec) => &spec.paths,
            SourceSpec::Files(spec) => &spec.paths,
            SourceSpec::Volume(_) | SourceSpec::Command(_) | SourceSpec::Git(_) | SourceSpec::Compose(_) => &[],
        };
        claims.extend(paths.iter().map(|p| Claim::Path(p.clone())));
    }
    claims
}
