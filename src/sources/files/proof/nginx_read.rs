//! What a configuration of nginx refers to, read as nginx would read it: from the main file through every `include`.

use super::super::nginx::host;
use super::super::nginx_conf::directives;
use super::super::plan::{expand, has_wildcards};
use super::super::view::{Kind, View, normal};
use super::inside::Restored;
use crate::sources::SourceError;
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

const MAX_FILE: u64 = 1 << 20;
/// More files are no configuration written by people.
const MAX_FILES: usize = 10_000;

/// What was met.
#[derive(Debug, Default)]
pub struct Referred {
    /// Files of configuration, in the order in which they were read.
    pub files: Vec<PathBuf>,
    /// What `include` names, as absolute paths and patterns.
    pub includes: BTreeSet<PathBuf>,
    /// Other files that must be there: certificates, keys, lists.
    pub needed: BTreeSet<PathBuf>,
    /// Folders that nginx writes into, also when it only tests.
    pub written: BTreeSet<PathBuf>,
    /// Host names that it resolves when it starts.
    pub hosts: BTreeSet<String>,
    pub users: BTreeSet<String>,
    pub server_names: BTreeSet<String>,
}

impl Referred {
    /// Reads from `main` on; what is missing is passed over, nginx itself will tell.
    pub fn read(view: &dyn View, main: &Path) -> Result<Referred, SourceError> {
        let mut referred = Referred::default();
        let prefix = main.parent().unwrap_or(Path::new("/")).to_path_buf();
        let mut ahead = VecDeque::from([main.to_path_buf()]);
        let mut seen = BTreeSet::new();
        while let Some(file) = ahead.pop_front() {
            if !seen.insert(file.clone()) {
                continue;
            }
            if seen.len() > MAX_FILES {
                return Err(SourceError::problem(format!("more than {MAX_FILES} files of nginx configuration")));
            }
            let Ok(content) = view.read(&file, MAX_FILE) else { continue };
            let includes = referred.take(&String::from_utf8_lossy(&content), &prefix);
            referred.files.push(file);
            for pattern in includes {
                let literal = matches!(view.kind(&pattern), Ok(Some(_)));
                match pattern.to_str() {
                    Some(text) if !literal && has_wildcards(text) => {
                        let found = expand(view, text)?;
                        let file = |p: &PathBuf| !matches!(view.kind(p), Ok(Some(Kind::Dir)));
                        ahead.extend(found.into_iter().filter(file));
                    }
                    _ => ahead.push_back(pattern.clone()),
                }
                referred.includes.insert(pattern);
            }
        }
        Ok(referred)
    }

    /// Takes in every file of a tree as if it were configuration: more is found than nginx reads, and nothing less.
    pub fn read_all(&mut self, tree: &Restored, prefix: &Path) -> Result<(), SourceError> {
        let items = tree.walk().map_err(|source| SourceError::File { action: "read", path: prefix.into(), source })?;
        for item in items.into_iter().filter(|i| i.kind == Kind::File && i.size <= MAX_FILE).take(MAX_FILES) {
            let Ok(content) = tree.read(&item.path, MAX_FILE) else { continue };
            let includes = self.take(&String::from_utf8_lossy(&content), prefix);
            self.includes.extend(includes);
            self.files.push(item.path);
        }
        Ok(())
    }

    /// Takes in one file; the patterns that it includes.
    fn take(&mut self, text: &str, prefix: &Path) -> Vec<PathBuf> {
        let mut includes = Vec::new();
        for directive in directives(text) {
            let Some(first) = directive.arguments.first() else { continue };
            let at = || normal(&prefix.join(first));
            let plain = !first.contains('$') && !first.contains(':');
            match directive.name.as_str() {
                "include" => includes.push(at()),
                "server_name" => {
                    let named = |n: &&String| !n.is_empty() && *n != "_";
                    self.server_names.extend(directive.arguments.iter().filter(named).cloned());
                }
                "user" => self.users.extend(directive.arguments.iter().cloned()),
                "ssl_certificate"
                | "ssl_certificate_key"
                | "ssl_trusted_certificate"
                | "ssl_client_certificate"
                | "ssl_dhparam"
                | "ssl_password_file"
                | "ssl_session_ticket_key"
                | "ssl_crl"
                | "proxy_ssl_certificate"
                | "proxy_ssl_certificate_key"
                | "proxy_ssl_trusted_certificate"
                | "auth_basic_user_file"
                | "geoip2"
                | "geoip_country"
                | "geoip_city"
                    if plain =>
                {
                    self.needed.insert(at());
                }
                "error_log" | "access_log" if plain && first != "off" && first != "stderr" => {
                    self.written.extend(at().parent().map(Path::to_path_buf));
                }
                "error_log" | "access_log" => {
                    let server = first.strip_prefix("syslog:").into_iter().flat_map(|s| s.split(','));
                    self.hosts.extend(server.filter_map(|s| s.strip_prefix("server=")).filter_map(name_of));
                }
                "pid" | "lock_file" if plain => self.written.extend(at().parent().map(Path::to_path_buf)),
                name if (name.ends_with("_temp_path") || name.ends_with("_cache_path")) && plain => {
                    self.written.extend(at().parent().map(Path::to_path_buf));
                }
                "proxy_pass"
                | "fastcgi_pass"
                | "uwsgi_pass"
                | "scgi_pass"
                | "grpc_pass"
                | "memcached_pass"
                | "mirror"
                | "ssl_stapling_responder"
                    if !first.contains('$') =>
                {
                    self.hosts.extend(host(first).as_deref().and_then(name_of));
                }
                "server" if directive.within.last().is_some_and(|b| b == "upstream") => {
                    self.hosts.extend(host(first).as_deref().and_then(name_of));
                }
                "listen" => self.hosts.extend(name_of(first)),
                _ => {}
            }
        }
        includes
    }
}

/// The name in `name:port`, when it is one that must be resolved.
pub fn name_of(address: &str) -> Option<String> {
    if address.starts_with('[') || address.starts_with("unix:") {
        return None;
    }
    let name = address.split(':').next()?;
    let known = name.is_empty()
        || name == "*"
        || name == "localhost"
        || name.parse::<std::net::IpAddr>().is_ok()
        || name.bytes().all(|b| b.is_ascii_digit());
    let sound = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    (!known && sound).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_addresses() {
        for (given, expected) in [
            ("api:3000", Some("api")),
            ("backend_1", Some("backend_1")),
            ("127.0.0.1:80", None),
            ("[::1]:80", None),
            ("8080", None),
            ("*:80", None),
            ("unix:/run/x", None),
            ("a;b:1", None),
        ] {
            assert_eq!(name_of(given).as_deref(), expected, "{given}");
        }
    }
}
