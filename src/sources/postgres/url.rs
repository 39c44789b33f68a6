//! `postgres://user@host:port/database?sslmode=…`: where a server is, without a password.

use crate::sources::SourceError;
use percent_encoding::percent_decode_str;

/// What a URL says; what it leaves out is libpq's own default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerUrl {
    /// A host name, an address, or the folder of a socket.
    pub host: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub database: Option<String>,
    /// libpq's environment variables for the TLS parameters.
    pub tls: Vec<(&'static str, String)>,
}

/// Parameters that are taken over, and the variables that carry them.
const TLS: &[(&str, &str)] = &[
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslcrl", "PGSSLCRL"),
    ("gssencmode", "PGGSSENCMODE"),
    ("channel_binding", "PGCHANNELBINDING"),
];

pub(super) fn parse(url: &str) -> Result<ServerUrl, SourceError> {
    let bad = |why: &str| {
        SourceError::hint(
            format!("the URL of the database server {why}"),
            "write postgres://user@host:port/database?sslmode=require; a socket's folder goes into ?host=/run/postgresql",
        )
    };
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or_else(|| bad("does not begin with postgres://"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, authority),
    };
    if user.is_some_and(|u| u.contains(':')) {
        return Err(SourceError::hint(
            "the URL of the database server holds a password",
            "leave it out of the URL and point password_from to where it stands",
        ));
    }
    let text = |part: &str| -> Result<Option<String>, SourceError> {
        let value = percent_decode_str(part).decode_utf8().map_err(|_| bad("is not UTF-8"))?.into_owned();
        if value.contains('\0') {
            return Err(bad("holds a zero byte"));
        }
        Ok(Some(value).filter(|v| !v.is_empty()))
    };
    let (host, port) = split_port(address).ok_or_else(|| bad("has a broken address"))?;
    let number = |port: &str| port.parse::<u16>().map_err(|_| bad("has a port that is not a number"));
    let mut server = ServerUrl {
        host: text(host)?,
        port: port.map(number).transpose()?,
        user: user.map(text).transpose()?.flatten(),
        database: text(path)?,
        tls: Vec::new(),
    };
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = text(value)?;
        match key {
            "host" => server.host = value,
            "port" => server.port = value.as_deref().map(number).transpose()?,
            "user" => server.user = value,
            "dbname" => server.database = value,
            "password" | "passfile" => return Err(bad("names a password: use password_from")),
            _ => match TLS.iter().find(|(name, _)| *name == key) {
                Some((_, variable)) => server.tls.extend(value.map(|v| (*variable, v))),
                None => return Err(bad(&format!("has a parameter that is not supported: {key}"))),
            },
        }
    }
    if server.host.as_deref().is_some_and(|h| h.contains(',')) {
        return Err(bad("names several hosts"));
    }
    Ok(server)
}

/// `host:port`, `[::1]:port`, `host`.
pub(super) fn split_port(address: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        return match port {
            "" => Some((host, None)),
            _ => Some((host, Some(port.strip_prefix(':')?))),
        };
    }
    match address.split_once(':') {
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port).filter(|p| !p.is_empty()))),
        None => Some((address, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_as_libpq_reads_them() {
        let u = parse("postgres://shop%40x@db.example:5433/my%20shop?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem")
            .unwrap();
        assert_eq!(u.host.as_deref(), Some("db.example"));
        assert_eq!((u.port, u.user.as_deref(), u.database.as_deref()), (Some(5433), Some("shop@x"), Some("my shop")));
        assert_eq!(u.tls, [("PGSSLMODE", "verify-full".into()), ("PGSSLROOTCERT", "/etc/ca.pem".into())]);
        let u = parse("postgresql:///shop?host=/run/postgresql").unwrap();
        assert_eq!((u.host.as_deref(), u.database.as_deref()), (Some("/run/postgresql"), Some("shop")));
        let u = parse("postgres://%2Frun%2Fpg/shop").unwrap();
        assert_eq!(u.host.as_deref(), Some("/run/pg"));
        let u = parse("postgres://[::1]:5432").unwrap();
        assert_eq!((u.host.as_deref(), u.port, u.database), (Some("::1"), Some(5432), None));
    }

    #[test]
    fn urls_that_are_refused() {
        for url in [
            "mysql://x",
            "postgres://u:secret@h/d",
            "postgres://h/d?password=secret",
            "postgres://h:port/d",
            "postgres://h/d?options=-c%20x",
            "postgres://a,b/d",
            "postgres://::1/d",
        ] {
            let error = format!("{:?}", parse(url).unwrap_err());
            assert!(!error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn sweep_addresses() {
        let fuzz = crate::base::fuzz::Fuzz::of("pg-url").seed("postgresql://u:p%40@h.example:5432/db?host=/run&x=1");
        let fuzz = fuzz.seed("postgres://[::1]:5432,b/x");
        fuzz.words(&["%", "%zz", "%00", "@", ":", "/", "?", "&", "[", "]", ","]).run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = parse(&text).map_err(|e| e.to_string());
            split_port(&text);
        });
    }
}
