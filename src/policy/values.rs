//! The forms that single values of a policy have: rates, limits, URLs, recipients, references to secrets.
//!
//! Invariant: a message about a value that may hold a secret (a URL, a reference, credentials) never shows the value.

use crate::base::units::{parse_duration, parse_size};
use crate::policy::document::{Bad, quote};
use crate::policy::model::{Credentials, MinFree, RepositoryUrl, SecretRef};
use crate::policy::nearest::nearest;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A duration above zero.
pub(super) fn duration(text: &str) -> Result<Duration, Bad> {
    match parse_duration(text)? {
        Duration::ZERO => Err(Bad::new(format!("{} is no time at all", quote(text)))),
        duration => Ok(duration),
    }
}

/// `20MiB/s`, in bytes per second.
pub(super) fn rate(text: &str) -> Result<u64, Bad> {
    let bad = || Bad::new(format!("{} is not a rate: write a size per second, such as 20MiB/s", quote(text)));
    match parse_size(text.strip_suffix("/s").ok_or_else(bad)?) {
        Ok(0) | Err(_) => Err(bad()),
        Ok(bytes) => Ok(bytes),
    }
}

/// `80%`.
pub(super) fn percent(text: &str) -> Result<f64, Bad> {
    let number = text.strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok());
    number
        .filter(|n| *n > 0.0 && *n <= 100.0)
        .ok_or_else(|| Bad::new(format!("{} is not a percentage: write one above 0%, up to 100%", quote(text))))
}

/// `10%` or `2GiB`.
pub(super) fn min_free(text: &str) -> Result<MinFree, Bad> {
    if text.ends_with('%') {
        return percent(text).map(MinFree::Percent);
    }
    match parse_size(text) {
        Ok(bytes) => Ok(MinFree::Bytes(bytes)),
        Err(_) => Err(Bad::new(format!("{} is neither a percentage nor a size: write 10% or 2GiB", quote(text)))),
    }
}

pub(super) fn timezone(text: &str) -> Result<chrono_tz::Tz, Bad> {
    text.parse().map_err(|_| {
        let message = format!("unknown time zone {}", quote(text));
        let city = |name: &str| name.rsplit('/').next().unwrap_or_default().to_lowercase();
        let wanted = city(text);
        let names = || chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
        match names().find(|name| city(name) == wanted).or_else(|| nearest(text, names())) {
            Some(near) => Bad::new(format!("{message}, did you mean {near:?}?")),
            None => {
                Bad::hint(message, "write an area and a city, such as Europe/Zagreb, or leave it out for the system's")
            }
        }
    })
}

/// A name of an env variable, as Compose allows it.
pub(super) fn variable(text: &str) -> Result<String, Bad> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']');
    if !text.is_empty() && text.chars().all(fits) && !text.starts_with(|c: char| c.is_ascii_digit()) {
        Ok(text.to_owned())
    } else {
        Err(Bad::new(format!("{} is not a variable's name", quote(text))))
    }
}

/// A name of a service, container or volume, as Docker allows it.
pub(super) fn docker_name(text: &str) -> Result<String, Bad> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        let form = "letters, digits, '_', '.' and '-', starting with a letter or digit";
        Err(Bad::new(format!("{} is not a name that Docker knows: {form}", quote(text))))
    }
}

/// A path: relative ones are the root's, and `.` components vanish.
pub(super) fn path(root: &Path, text: &str) -> Result<PathBuf, Bad> {
    if text == "~" || text.starts_with("~/") {
        let hint = "write the whole path: a policy means the same to every user";
        return Err(Bad::hint(format!("{} begins with ~, which nothing expands here", quote(text)), hint));
    }
    Ok(root.join(text).components().collect())
}

/// The same for a path or glob, as text.
pub(super) fn path_text(root: &Path, text: &str) -> Result<String, Bad> {
    Ok(path(root, text)?.to_string_lossy().into_owned())
}

pub(super) fn glob(root: &Path, text: &str) -> Result<String, Bad> {
    let absolute = path_text(root, text)?;
    match globset::Glob::new(&absolute) {
        Ok(_) => Ok(absolute),
        Err(error) => Err(Bad::new(format!("{} is not a glob: {}", quote(text), error.kind()))),
    }
}

/// `<file>:<KEY>`, the file relative to the root.
pub(super) fn file_key(root: &Path, text: &str) -> Result<(PathBuf, String), Bad> {
    let form = || Bad::new("not a reference to a key of a file: write it as \".env:KEY\"");
    let (file, key) = text.rsplit_once(':').ok_or_else(form)?;
    if file.is_empty() {
        return Err(form());
    }
    Ok((path(root, file)?, variable(key).map_err(|_| form())?))
}

const SECRET_FORMS: &str = "write \".env:KEY\" for a key of an env file, \"env:NAME\" for a variable of Lifeboat's own \
                            environment, or \"file:PATH\" for a file that holds nothing else";

/// `file:KEY`, `env:NAME` or `file:PATH`.
pub(super) fn secret_ref(root: &Path, text: &str) -> Result<SecretRef, Bad> {
    let bad = || Bad::hint("not a reference to a secret (a secret itself never stands in a policy)", SECRET_FORMS);
    if let Some(name) = text.strip_prefix("env:") {
        return variable(name).map(SecretRef::Env).map_err(|_| bad());
    }
    if let Some(file) = text.strip_prefix("file:") {
        if file.is_empty() {
            return Err(bad());
        }
        if file_key(root, file).is_ok() {
            let hint = "leave \"file:\" out: a key of an env file is \".env:KEY\"";
            return Err(Bad::hint("\"file:PATH\" takes a whole file, and a key follows here", hint));
        }
        return path(root, file).map(SecretRef::File);
    }
    // A token with a colon in it is no file: what stands before the colon must look like a path.
    let (file, key) = file_key(root, text).map_err(|_| bad())?;
    if text.contains("://") || text.contains(char::is_whitespace) {
        return Err(bad());
    }
    Ok(SecretRef::EnvFile { file, key })
}

pub(super) fn credentials(root: &Path, text: &str) -> Result<Credentials, Bad> {
    let forms = "write \"default\", \"env\", \"profile:NAME\" or \"file:PATH\"";
    match text {
        "default" => return Ok(Credentials::Default),
        "env" => return Ok(Credentials::Env),
        _ => {}
    }
    match text.split_once(':') {
        Some(("profile", name)) if !name.trim().is_empty() => Ok(Credentials::Profile(name.to_owned())),
        Some(("file", file)) if !file.trim().is_empty() => path(root, file).map(Credentials::File),
        _ => Err(Bad::hint("not a form of credentials (keys themselves never stand in a policy)", forms)),
    }
}

/// A regular expression.
pub(super) fn pattern(text: &str) -> Result<String, Bad> {
    match regex::Regex::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(regex::Error::CompiledTooBig(_)) => Err(Bad::new("the regular expression is too big")),
        Err(error) => {
            // The last line says what is wrong; those before it draw the expression.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Err(Bad::new(format!("not a regular expression: {reason}")))
        }
    }
}

/// `host:port`.
pub(super) fn address(text: &str) -> Result<String, Bad> {
    let bad = || Bad::new(format!("{} is not an address: write host:port", quote(text)));
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
    };
    if host_fits && port.parse::<u16>().is_ok_and(|p| p > 0) { Ok(text.to_owned()) } else { Err(bad()) }
}

/// An age X25519 recipient or an Ed25519 SSH key, without its comment.
pub(super) fn recipient(text: &str) -> Result<String, Bad> {
    const FORMS: &str = "a recipient is an age1… or an ssh-ed25519 public key";
    let text = text.trim();
    if text.starts_with("age1") {
        // A plugin's recipient has its name between "age1" and the last 1.
        return match text.rsplit_once('1').map(|(name, _)| name) {
            Some("age") => match text.parse::<age::x25519::Recipient>() {
                Ok(_) => Ok(text.to_owned()),
                Err(_) => Err(Bad::hint(format!("{} is not a valid age recipient", quote(text)), "copy it whole")),
            },
            _ => Err(Bad::hint(format!("{} is a recipient of a plugin, and plugins are not run", quote(text)), FORMS)),
        };
    }
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        ["ssh-ed25519", key, ..] => {
            let plain = format!("ssh-ed25519 {key}");
            match plain.parse::<age::ssh::Recipient>() {
                Ok(age::ssh::Recipient::SshEd25519(..)) => Ok(plain),
                _ => Err(Bad::hint(format!("{} is not a valid SSH public key", quote(text)), "copy it whole")),
            }
        }
        [kind, ..] if kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-") => {
            let hint = "make one that can: ssh-keygen -t ed25519, or an age identity";
            Err(Bad::hint(format!("SSH keys of type {} cannot be recipients", quote(kind)), hint))
        }
        _ => Err(Bad::hint(format!("{} is not a recipient", quote(text)), FORMS)),
    }
}

/// What a policy needs to know of a URL.
pub(super) struct Url<'a> {
    pub scheme: &'a str,
    pub user: Option<&'a str>,
    pub host: &'a str,
    pub port: Option<u16>,
    /// Without the leading slash.
    pub path: &'a str,
}

/// Takes a URL apart. A password in it is refused, wherever it stands.
pub(super) fn url(text: &str) -> Result<Url<'_>, Bad> {
    let bad = || Bad::new("not a valid URL");
    let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    let (userinfo, host_port) = match authority.rsplit_once('@') {
        Some((userinfo, host_port)) => (Some(userinfo), host_port),
        None => (None, authority),
    };
    let (host, port) = match host_port.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => match port.parse::<u16>() {
            Ok(port) => (host, Some(port)),
            // A password with a slash in it cuts the URL in two: "user:pass/word@host".
            Err(_) if after.contains('@') => return Err(password_in_url()),
            Err(_) => return Err(bad()),
        },
        _ => (host_port, None),
    };
    let query = after.split_once('?').map_or("", |(_, query)| query.split('#').next().unwrap_or_default());
    if userinfo.is_some_and(|u| u.contains(':')) || query.split('&').any(secret_parameter) {
        return Err(password_in_url());
    }
    if !scheme_fits || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(bad());
    }
    let path = after.split(['?', '#']).next().unwrap_or_default();
    let path = path.strip_prefix('/').unwrap_or(path);
    Ok(Url { scheme, user: userinfo.filter(|u| !u.is_empty()), host, port, path })
}

fn password_in_url() -> Bad {
    Bad::hint("a password stands in the URL", "take it out and refer to it: secrets never stand in a policy")
}

fn secret_parameter(parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default().to_ascii_lowercase();
    name == "auth"
        || ["password", "passwd", "pwd", "token", "secret", "api_key", "apikey"].iter().any(|s| name.contains(s))
}

/// A URL of one of the schemes, with a host.
pub(super) fn url_of<'a>(schemes: &[&str], text: &'a str) -> Result<Url<'a>, Bad> {
    let parsed = url(text)?;
    if !schemes.contains(&parsed.scheme) {
        let forms: Vec<String> = schemes.iter().map(|s| format!("{s}://")).collect();
        return Err(Bad::new(format!("the URL must begin with {}", forms.join(" or "))));
    }
    Ok(parsed)
}

pub(super) fn http_url(text: &str) -> Result<String, Bad> {
    match url_of(&["http", "https"], text)?.host {
        "" => Err(Bad::new("the URL names no host")),
        _ => Ok(text.to_owned()),
    }
}

/// `/path`, or `s3://bucket/prefix`.
pub(super) fn repository_url(text: &str) -> Result<RepositoryUrl, Bad> {
    const FORMS: &str = "a repository is an absolute path or s3://bucket/prefix";
    if text.starts_with('/') {
        return Ok(RepositoryUrl::Local(Path::new(text).components().collect()));
    }
    if !text.contains("://") {
        return Err(Bad::hint("not a repository: neither an absolute path nor a URL", FORMS));
    }
    let parsed = url(text)?;
    if parsed.scheme != "s3" {
        return Err(Bad::hint(format!("repositories of type {} are unknown", quote(parsed.scheme)), FORMS));
    }
    if parsed.user.is_some() {
        return Err(Bad::hint("an s3:// URL takes no user", "say where the keys are: credentials = \"file:PATH\""));
    }
    if parsed.port.is_some() || text.contains(['?', '#']) {
        let hint = "endpoint and region are fields of their own";
        return Err(Bad::hint("an s3:// URL takes neither port nor parameters", hint));
    }
    let bucket = parsed.host;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(fits) {
        return Err(Bad::hint(format!("{} is not a bucket's name", quote(bucket)), FORMS));
    }
    let parts: Vec<&str> = parsed.path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| matches!(*part, "." | "..")) {
        return Err(Bad::new("the prefix of an s3:// URL holds \".\" or \"..\""));
    }
    Ok(RepositoryUrl::S3 { bucket: bucket.to_owned(), prefix: parts.join("/") })
}
