//! Which engine is meant, as the `docker` program finds it: `DOCKER_HOST`, else the context that `DOCKER_CONTEXT` or the
//! user's configuration names (an engine that runs without root is called by one), else the local socket.
//!
//! A context that leads where this program cannot go is refused by its name: another engine must not be asked in its
//! place.

use super::PlaceError;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const DEFAULT_ENDPOINT: &str = "unix:///var/run/docker.sock";
/// No file of the configuration is larger.
const MAX_BYTES: u64 = 1 << 20;

/// What decides it, taken from this process's environment.
#[derive(Debug, Clone, Default)]
struct Asked {
    host: Option<String>,
    context: Option<String>,
    /// The folder of the user's configuration.
    folder: Option<PathBuf>,
}

impl Asked {
    fn here() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let folder = variable("DOCKER_CONFIG").map(PathBuf::from);
        Self {
            host: variable("DOCKER_HOST"),
            context: variable("DOCKER_CONTEXT"),
            folder: folder.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".docker"))),
        }
    }

    fn endpoint(&self) -> Result<String, PlaceError> {
        if let Some(host) = &self.host {
            return Ok(host.clone());
        }
        // A configuration that cannot be read names no context: the program itself warns of it and goes on.
        let folder = self.folder.as_deref();
        let current = || read(&folder?.join("config.json")).ok()?["currentContext"].as_str().map(str::to_owned);
        let name = self.context.clone().or_else(current).filter(|name| !name.is_empty() && name != "default");
        match name {
            None => Ok(DEFAULT_ENDPOINT.to_owned()),
            Some(name) => of_context(folder, &name).map_err(|why| PlaceError::Context { name, why }),
        }
    }
}

/// Where the engine is asked.
pub(super) fn endpoint() -> Result<String, PlaceError> {
    Asked::here().endpoint()
}

/// The endpoint of a context, or why it is none for this program.
fn of_context(folder: Option<&Path>, name: &str) -> Result<String, String> {
    let Some(folder) = folder else { return Err("there is no folder in which it could be defined".into()) };
    // Its folders are named so, whatever its own name has in it.
    let digest = hex::encode(Sha256::digest(name.as_bytes()));
    let file = folder.join("contexts/meta").join(&digest).join("meta.json");
    let meta = read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let engine = &meta["Endpoints"]["docker"];
    let host = engine["Host"].as_str().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| format!("{} names no engine", file.display()))?;
    let (scheme, _) = host.split_once("://").unwrap_or(("", host));
    let has_keys =
        folder.join("contexts/tls").join(&digest).exists() || engine["SkipTLSVerify"].as_bool() == Some(true);
    match scheme {
        "unix" => Ok(host.to_owned()),
        "tcp" if !has_keys => Ok(host.to_owned()),
        "tcp" | "https" => Err(format!("it leads to {host} through TLS, and that is not spoken here")),
        "ssh" => Err(format!("it leads to {host}, and engines are not asked through SSH")),
        _ => Err(format!("it leads to {host}, and that is no socket of this machine")),
    }
}

fn read(file: &Path) -> Result<Value, std::io::Error> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// As `docker context create` writes it.
    fn make(folder: &Path, name: &str, host: &str) {
        let meta = folder.join("contexts/meta").join(hex::encode(Sha256::digest(name.as_bytes())));
        fs::create_dir_all(&meta).unwrap();
        let text =
            format!(r#"{{"Name": {name:?}, "Endpoints": {{"docker": {{"Host": {host:?}, "SkipTLSVerify": false}}}}}}"#);
        fs::write(meta.join("meta.json"), text).unwrap();
    }

    #[test]
    fn a_context_leads_to_its_engine() {
        let dir = tempfile::tempdir().unwrap();
        let asked = Asked { folder: Some(dir.path().to_owned()), ..Asked::default() };
        let named = |name: &str| Asked { context: Some(name.to_owned()), ..asked.clone() };
        assert_eq!(asked.endpoint().unwrap(), DEFAULT_ENDPOINT);
        assert_eq!(Asked::default().endpoint().unwrap(), DEFAULT_ENDPOINT);
        fs::write(dir.path().join("config.json"), r#"{"currentContext": "rootless"}"#).unwrap();
        let why = asked.endpoint().unwrap_err().to_string();
        assert!(why.contains("\"rootless\"") && why.contains("meta.json"), "it is not there: {why}");
        make(dir.path(), "rootless", "unix:///run/user/1000/docker.sock");
        make(dir.path(), "-x $(id) ü", "unix:///run/odd.sock");
        assert_eq!(asked.endpoint().unwrap(), "unix:///run/user/1000/docker.sock");
        assert_eq!(named("-x $(id) ü").endpoint().unwrap(), "unix:///run/odd.sock", "named beats configured");
        assert_eq!(named("default").endpoint().unwrap(), DEFAULT_ENDPOINT);
        let host = Asked { host: Some("unix:///run/other.sock".into()), ..named("rootless") };
        assert_eq!(host.endpoint().unwrap(), "unix:///run/other.sock", "DOCKER_HOST beats both");
        fs::write(dir.path().join("config.json"), "not json").unwrap();
        assert_eq!(asked.endpoint().unwrap(), DEFAULT_ENDPOINT);
    }

    #[test]
    fn one_that_leads_elsewhere_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let asked = |name: &str| {
            Asked { context: Some(name.to_owned()), folder: Some(dir.path().to_owned()), ..Asked::default() }.endpoint()
        };
        for (name, host, why) in [
            ("far", "ssh://root@far.example.org", "SSH"),
            ("tls", "tcp://far.example.org:2376", "TLS"),
            ("web", "https://far.example.org", "TLS"),
            ("pipe", "npipe:////./pipe/docker_engine", "no socket"),
            ("bare", "/var/run/docker.sock", "no socket"),
            ("none", "", "names no engine"),
        ] {
            make(dir.path(), name, host);
            let keys = dir.path().join("contexts/tls").join(hex::encode(Sha256::digest(name.as_bytes())));
            fs::create_dir_all(keys.join("docker")).unwrap();
            let error = asked(name).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("{name:?}")) && text.contains(why), "{text}");
            assert!(error.hint().is_some_and(|hint| hint.contains("DOCKER_HOST")));
        }
        make(dir.path(), "plain", "tcp://127.0.0.1:2375");
        assert_eq!(asked("plain").unwrap(), "tcp://127.0.0.1:2375", "as DOCKER_HOST may say too");
    }
}
