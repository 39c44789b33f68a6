//! The recovery bundle, read again on another machine.

use super::{FORMAT, STREAM};
use crate::place::account::Account;
use crate::place::inspect::{Network, Volume};
use crate::sources::SourceError;
use crate::sources::streams::Streams;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

/// No bundle of lists of packages and crontabs is larger.
const MAX_BYTES: u64 = 64 << 20;

/// What a bare machine needs to know.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub application: String,
    pub root: PathBuf,
    /// The policy file's text, and where it lay.
    pub policy: String,
    pub policy_file: PathBuf,
    /// `Debian GNU/Linux 12 (bookworm)`, where it is known.
    pub system: Option<String>,
    pub host: Option<String>,
    pub accounts: Vec<Account>,
    /// Paths and texts.
    pub crontabs: Vec<(String, String)>,
    pub units: Vec<(String, String)>,
    pub packages: BTreeMap<String, String>,
    pub firewall: Option<(String, String)>,
    pub networks: Vec<Network>,
    pub volumes: Vec<Volume>,
    pub docker: Option<String>,
    pub compose: Option<String>,
    /// All of it, as it was stored.
    pub text: Vec<u8>,
}

/// Reads the bundle of a source `recovery`. What it says of secrets is not repeated in errors.
pub fn read(streams: &dyn Streams) -> Result<Bundle, SourceError> {
    let failed = |source| SourceError::File { action: "read", path: STREAM.into(), source };
    let broken = |what: &str| SourceError::problem(format!("the recovery bundle cannot be used: {what}"));
    let mut text = Vec::new();
    streams.open(STREAM).map_err(failed)?.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(broken("it is too large"));
    }
    let all: Value = serde_json::from_slice(&text)
        .map_err(|e| broken(&format!("no JSON at line {}, column {}", e.line(), e.column())))?;
    if all["format"].as_u64() != Some(u64::from(FORMAT)) {
        return Err(broken("its format is not one that this version reads"));
    }
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let files = |part: &str| -> Vec<(String, String)> {
        let listed = all[part].as_array().into_iter().flatten();
        listed.filter_map(|f| Some((word(&f["path"])?, word(&f["text"])?))).collect()
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let docker = &all["docker"];
    Ok(Bundle {
        application: word(&all["application"]).ok_or_else(|| broken("it names no application"))?,
        root: word(&all["root"]).map(PathBuf::from).ok_or_else(|| broken("it names no folder"))?,
        policy: word(&all["policy"]["text"]).ok_or_else(|| broken("it has no policy"))?,
        policy_file: word(&all["policy"]["file"]).map(PathBuf::from).unwrap_or_default(),
        system: word(&all["host"]["system"]),
        host: word(&all["host"]["name"]),
        accounts: list(&all["accounts"]).iter().filter_map(|a| Account::deserialize(a).ok()).collect(),
        crontabs: files("crontabs"),
        units: files("units"),
        packages: BTreeMap::deserialize(&all["packages"]["installed"]).unwrap_or_default(),
        firewall: word(&all["firewall"]["tool"]).zip(word(&all["firewall"]["rules"])),
        networks: list(&docker["external_networks"]).iter().filter_map(|n| Network::deserialize(n).ok()).collect(),
        volumes: list(&docker["external_volumes"]).iter().filter_map(|v| Volume::deserialize(v).ok()).collect(),
        docker: word(&docker["engine"]),
        compose: word(&docker["compose"]),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fuzz::Fuzz;
    use crate::sources::held::Held;

    #[test]
    fn sweep_recovery_bundles() {
        let seed = serde_json::json!({
            "format": FORMAT, "application": "shop", "root": "/srv/shop",
            "policy": {"file": "/etc/lifeboat/policies/shop.toml", "text": "[app]\nname = \"shop\"\n"},
            "host": {"name": "web-1", "system": "Debian GNU/Linux 12 (bookworm)"},
            "accounts": [{"name": "shop", "uid": 1000, "gid": 1000, "home": "/srv/shop", "shell": "/bin/sh", "groups": ["www-data"]}],
            "crontabs": [{"path": "/etc/cron.d/shop", "text": "0 3 * * * root true\n"}],
            "units": [{"path": "/etc/systemd/system/shop.service", "text": "[Service]\n"}],
            "packages": {"installed": {"nginx": "1.22.1-9"}},
            "firewall": {"tool": "nft", "rules": "table inet filter {}\n"},
            "docker": {"engine": "26.1.5", "compose": "2.26.1", "external_networks": [{"name": "edge", "driver": "bridge",
                "internal": false, "labels": {}, "options": {}, "subnets": ["172.20.0.0/16"]}],
                "external_volumes": [{"name": "data", "driver": "local", "labels": {}, "options": {}}]},
        });
        let bundle = read(&Held::of(STREAM, seed.to_string())).unwrap();
        assert_eq!((bundle.accounts.len(), bundle.networks.len(), bundle.volumes.len()), (1, 1, 1));
        let words = ["{", "}", "[", "]", "\"", ":", ",", "null", "-1", "1e400", "\\u0000", "\\ud800", "4294967296"];
        Fuzz::of("recovery").seed(seed.to_string()).words(&words).run(|bytes| {
            match read(&Held::of(STREAM, bytes)) {
                Ok(bundle) => assert!(bundle.text == bytes),
                // What it says of secrets is not repeated.
                Err(e) => assert!(e.to_string().len() < 200, "{e}"),
            }
        });
    }
}
