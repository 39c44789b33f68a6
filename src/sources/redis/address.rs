//! Where a Redis server is: `redis://user@host:port`, `rediss://…` (TLS), `unix:///path/of/socket`; never a password.

use crate::sources::SourceError;
use percent_encoding::percent_decode_str;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Address {
    /// Absent: redis-cli's own default, 127.0.0.1.
    pub host: Option<String>,
    pub port: Option<u16>,
    pub socket: Option<String>,
    pub user: Option<String>,
    pub tls: bool,
    /// Options of redis-cli for TLS, with their files.
    pub tls_files: Vec<(&'static str, String)>,
}

/// Parameters of the URL and the options that carry them.
const TLS_FILES: &[(&str, &str)] =
    &[("cacert", "--cacert"), ("cacertdir", "--cacertdir"), ("cert", "--cert"), ("key", "--key"), ("sni", "--sni")];

impl Address {
    pub fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("127.0.0.1")
    }

    pub fn port(&self) -> u16 {
        self.port.unwrap_or(6379)
    }

    /// For messages.
    pub fn describe(&self) -> String {
        match &self.socket {
            Some(path) => path.clone(),
            None => format!("{}:{}", self.host(), self.port()),
        }
    }
}

pub(super) fn parse(url: &str) -> Result<Address, SourceError> {
    let bad = |why: &str| {
        SourceError::hint(
            format!("the URL of the Redis server {why}"),
            "write redis://user@host:port, rediss:// for TLS (?cacert=/path/ca.pem), or unix:///path/of/socket",
        )
    };
    let text = |part: &str| -> Result<Option<String>, SourceError> {
        let value = percent_decode_str(part).decode_utf8().map_err(|_| bad("is not UTF-8"))?.into_owned();
        if value.contains('\0') {
            return Err(bad("holds a zero byte"));
        }
        Ok(Some(value).filter(|v| !v.is_empty()))
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("has no scheme"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut address = Address { tls: scheme == "rediss", ..Address::default() };
    match scheme {
        "unix" => {
            address.socket = text(rest)?.filter(|p| p.starts_with('/'));
            return if address.socket.is_some() { Ok(address) } else { Err(bad("names no socket")) };
        }
        "redis" | "rediss" => {}
        _ => return Err(bad("has a scheme that is not redis, rediss or unix")),
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, server) = match authority.rsplit_once('@') {
        Some((user, server)) => (Some(user), server),
        None => (None, authority),
    };
    if user.is_some_and(|u| u.contains(':')) {
        return Err(SourceError::hint(
            "the URL of the Redis server holds a password",
            "leave it out of the URL and point password_from to where it stands",
        ));
    }
    address.user = user.map(text).transpose()?.flatten();
    let (host, port) = match server.strip_prefix('[').and_then(|s| s.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match server.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        },
    };
    address.host = text(host)?;
    address.port = match port {
        None | Some("") => None,
        Some(port) => Some(port.parse().map_err(|_| bad("has a port that is not a number"))?),
    };
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match TLS_FILES.iter().find(|(name, _)| *name == key) {
            Some((_, option)) => address.tls_files.extend(text(value)?.map(|v| (*option, v))),
            None => return Err(bad(&format!("has a parameter that is not supported: {key}"))),
        }
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let a = parse("redis://backup@cache.example:6380/0").unwrap();
        assert_eq!((a.host(), a.port(), a.user.as_deref(), a.tls), ("cache.example", 6380, Some("backup"), false));
        let a = parse("rediss://[::1]?cacert=%2Fetc%2Fca.pem").unwrap();
        assert_eq!((a.host(), a.port(), a.tls), ("::1", 6379, true));
        assert_eq!(a.tls_files, [("--cacert", "/etc/ca.pem".to_owned())]);
        assert_eq!(parse("unix:///run/redis.sock").unwrap().describe(), "/run/redis.sock");
        assert_eq!(parse("redis://").unwrap().describe(), "127.0.0.1:6379");
        for url in
            ["redis://:secret@h", "redis://u:secret@h", "http://h", "h:6379", "redis://h:x", "unix://", "redis://h?x=1"]
        {
            let error = format!("{:?}", parse(url).unwrap_err());
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn sweep_addresses() {
        let fuzz = crate::base::fuzz::Fuzz::of("redis-url")
            .seed("rediss://u:p%40@h.example:6379/3")
            .seed("unix:///run/r.sock");
        fuzz.words(&["%", "%zz", "%00", "@", ":", "/", "?", "[", "]", "redis://"]).run(|bytes| {
            if let Ok(address) = parse(&String::from_utf8_lossy(bytes)) {
                let _ = (address.describe(), address.host(), address.port());
            }
        });
    }
}
