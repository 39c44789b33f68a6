//! What obviously lies in an application's folder: names only, nothing is read but compose files.

use std::fs;
use std::io::Read;
use std::path::Path;

/// Compose files are read up to this length.
const MOST: u64 = 1 << 20;

/// What was seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub git: bool,
    pub env_files: Vec<String>,
    /// Those that Compose finds by itself come first.
    pub compose_files: Vec<String>,
    /// Services of the compose files that look like a data store: kind, service, image.
    pub stores: Vec<(&'static str, String, String)>,
    /// nginx is configured on this host.
    pub nginx: bool,
    /// certbot keeps certificates on this host.
    pub certificates: bool,
}

/// The names by which Compose finds its file without being told.
const COMPOSE_FINDS: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// Looks at a folder; what cannot be read is not seen.
pub fn look(dir: &Path) -> Seen {
    let mut seen = Seen {
        git: dir.join(".git").exists(),
        nginx: Path::new("/etc/nginx/nginx.conf").exists(),
        certificates: Path::new("/etc/letsencrypt/live").exists(),
        ..Seen::default()
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| plain(n)).collect();
    names.sort();
    for name in names {
        let is_file = || dir.join(&name).is_file();
        if (name == ".env" || name.starts_with(".env.")) && !is_example(&name) && is_file() {
            seen.env_files.push(name);
        } else if is_compose(&name) && is_file() {
            let text = read_start(&dir.join(&name));
            for store in stores(&text) {
                if !seen.stores.iter().any(|(kind, service, _)| *kind == store.0 && *service == store.1) {
                    seen.stores.push(store);
                }
            }
            seen.compose_files.push(name);
        }
    }
    seen.compose_files.sort_by_key(|name| (!COMPOSE_FINDS.contains(&name.as_str()), name.clone()));
    seen
}

impl Seen {
    /// Whether Compose would find a file without being told.
    pub fn compose_finds_its_file(&self) -> bool {
        self.compose_files.iter().any(|name| COMPOSE_FINDS.contains(&name.as_str()))
    }
}

/// Names that can stand in a comment as they are.
fn plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 100 && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_example(name: &str) -> bool {
    ["example", "sample", "template", "dist"].iter().any(|end| name.ends_with(end))
}

fn is_compose(name: &str) -> bool {
    let yaml = name.ends_with(".yml") || name.ends_with(".yaml");
    yaml && (name.starts_with("docker-compose") || name.starts_with("compose"))
}

fn read_start(path: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // What was read until an error is as good as any.
        let _ = file.take(MOST).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Services whose image is a data store's, by indentation alone: good enough for a comment.
fn stores(text: &str) -> Vec<(&'static str, String, String)> {
    let mut found = Vec::new();
    let mut in_services = false;
    let mut indent = 0;
    let mut service = String::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let depth = line.len() - trimmed.len();
        if depth == 0 {
            in_services = trimmed.trim_end() == "services:";
            indent = 0;
        } else if in_services {
            if indent == 0 {
                indent = depth;
            }
            let key = trimmed.split(':').next().unwrap_or_default().trim_matches(['"', '\'']);
            if depth == indent && plain(key) {
                service = key.to_owned();
            } else if let Some(image) = trimmed.strip_prefix("image:") {
                let image = image.trim().trim_matches(['"', '\'']).to_owned();
                if let Some(kind) = kind_of(&image).filter(|_| !service.is_empty()) {
                    found.push((kind, service.clone(), image));
                }
            }
        }
    }
    found
}

fn kind_of(image: &str) -> Option<&'static str> {
    let safe = image.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@".contains(c));
    let name = image.rsplit('/').next()?.split([':', '@']).next()?;
    match name {
        _ if !safe => None,
        "postgres" | "postgresql" | "postgis" | "pgvector" | "timescaledb" | "timescaledb-ha" => Some("postgres"),
        "redis" | "redis-stack" | "redis-stack-server" | "valkey" | "keydb" => Some("redis"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_lies_there_and_reads_no_env_file() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".env", ".env.prod", ".env.example", "docker-compose.production.yml", "notes\n.env"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let compose = "version: '3'\nservices:\n  # the data\n  db:\n    environment:\n      IMAGE: redis\n    image: \"ankane/pgvector:pg15\"\n  api:\n    image: shop/postgres-client:1\n  cache:\n    image: redis:7-alpine\nvolumes:\n  postgres:\n";
        fs::write(dir.path().join("compose.yaml"), compose).unwrap();
        let seen = look(dir.path());
        assert_eq!(seen.env_files, [".env", ".env.prod"]);
        assert_eq!(seen.compose_files, ["compose.yaml", "docker-compose.production.yml"]);
        assert!(!seen.git && seen.compose_finds_its_file());
        let stores: Vec<_> =
            seen.stores.iter().map(|(kind, service, image)| (*kind, &service[..], &image[..])).collect();
        assert_eq!(stores, [("postgres", "db", "ankane/pgvector:pg15"), ("redis", "cache", "redis:7-alpine")]);
    }
}
