//! URLs in env files: which servers an application talks to. Only scheme, host, port, user and database are looked at,
//! and only hosts are ever said; a password serves to find the key that it stands under, and goes no further.

use crate::base::secret::Secret;

/// A URL, taken apart.
#[derive(Debug, Clone)]
pub struct Url {
    /// `postgres` of `postgresql+asyncpg://`.
    pub scheme: String,
    pub host: String,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub password: Option<Secret<String>>,
    pub database: Option<String>,
}

/// Providers of services that hold data, by the end of their hosts' names.
const PROVIDERS: &[(&str, &str)] = &[
    ("supabase.co", "Supabase"),
    ("supabase.com", "Supabase"),
    ("rds.amazonaws.com", "Amazon RDS"),
    ("cache.amazonaws.com", "Amazon ElastiCache"),
    ("amazonaws.com", "Amazon S3"),
    ("backblazeb2.com", "Backblaze B2"),
    ("r2.cloudflarestorage.com", "Cloudflare R2"),
    ("digitaloceanspaces.com", "DigitalOcean Spaces"),
    ("db.ondigitalocean.com", "DigitalOcean databases"),
    ("wasabisys.com", "Wasabi"),
    ("your-objectstorage.com", "Hetzner object storage"),
    ("storage.googleapis.com", "Google Cloud Storage"),
    ("blob.core.windows.net", "Azure Blob Storage"),
    ("database.azure.com", "Azure databases"),
    ("neon.tech", "Neon"),
    ("mongodb.net", "MongoDB Atlas"),
    ("upstash.io", "Upstash"),
    ("redislabs.com", "Redis Cloud"),
    ("redis-cloud.com", "Redis Cloud"),
    ("aivencloud.com", "Aiven"),
    ("planetscale.com", "PlanetScale"),
    ("psdb.cloud", "PlanetScale"),
    ("cockroachlabs.cloud", "CockroachDB"),
    ("elastic-cloud.com", "Elastic Cloud"),
    ("qdrant.io", "Qdrant Cloud"),
    ("pinecone.io", "Pinecone"),
    ("turso.io", "Turso"),
    ("cloudamqp.com", "CloudAMQP"),
];

const DATABASES: &[&str] =
    &["postgres", "mysql", "mariadb", "mongodb", "redis", "amqp", "clickhouse", "libsql", "cockroachdb", "mssql"];

impl Url {
    /// Whether the scheme is a database's: then its host holds data, whoever runs it.
    pub fn is_database(&self) -> bool {
        DATABASES.contains(&self.scheme.as_str())
    }

    /// It means this machine, as a process on it sees it, or as a container does.
    pub fn is_local(&self) -> bool {
        matches!(self.host.as_str(), "localhost" | "::1" | "host.docker.internal") || self.host.starts_with("127.")
    }
}

/// The provider whose name a host ends in.
pub fn provider(host: &str) -> Option<&'static str> {
    let is_of = |end: &str| host == end || host.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'));
    PROVIDERS.iter().find(|(end, _)| is_of(end)).map(|(_, name)| *name)
}

/// A value that is a URL, or a host of a known provider.
pub fn parse(value: &str) -> Option<Url> {
    let value = value.trim();
    let Some((scheme, rest)) = value.split_once("://") else {
        let host = host_of(value)?.to_lowercase();
        provider(&host)?;
        return Some(Url { scheme: String::new(), host, port: None, user: None, password: None, database: None });
    };
    let scheme = scheme.split('+').next().unwrap_or_default().to_lowercase();
    let scheme = match scheme.as_str() {
        "postgresql" | "pgsql" => "postgres",
        "rediss" | "valkey" | "valkeys" => "redis",
        "amqps" => "amqp",
        "mysql2" => "mysql",
        other => other,
    };
    if !scheme.chars().all(|c| c.is_ascii_alphanumeric()) || scheme.is_empty() {
        return None;
    }
    let (before, _) = rest.split_once(['?', '#']).unwrap_or((rest, ""));
    // A password may hold `/` and `@`: what is behind the last `@` is the server.
    let (login, server) = match before.rsplit_once('@') {
        Some((login, server)) => (Some(login), server),
        None => (None, before),
    };
    let (address, path) = server.split_once('/').unwrap_or((server, ""));
    // Several servers are one service.
    let first = address.split(',').next().unwrap_or_default();
    let (host, port) = match first.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => first.split_once(':').map_or((first, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(port.parse().ok()?),
    };
    let host = if host.contains(':') { host.to_owned() } else { host_of(host)?.to_lowercase() };
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().map(|t| t.into_owned()).ok();
    let (user, password) = match login {
        None => (None, None),
        Some(login) => match login.split_once(':') {
            Some((user, password)) => (decoded(user), decoded(password).map(Secret::new)),
            None => (decoded(login), None),
        },
    };
    let full = |text: &String| !text.is_empty();
    let database = decoded(path.split('/').next().unwrap_or_default()).filter(full);
    Some(Url {
        scheme: scheme.to_owned(),
        host,
        port,
        user: user.filter(full),
        password: password.filter(|p| !p.expose().is_empty()),
        database,
    })
}

fn host_of(text: &str) -> Option<&str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (!text.is_empty() && text.len() <= 253 && text.chars().all(fits)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_and_passwords_are_never_part_of_a_host() {
        let url = parse("postgresql+asyncpg://shop:p%40ss@db:5432/shop?sslmode=require").unwrap();
        assert_eq!((url.scheme.as_str(), url.host.as_str(), url.port), ("postgres", "db", Some(5432)));
        assert_eq!((url.user.as_deref(), url.database.as_deref()), (Some("shop"), Some("shop")));
        assert_eq!(url.password.unwrap().expose(), "p@ss");
        let odd = parse("postgres://u:pa/ss@wo@rd@db.abc.supabase.co:6543/postgres").unwrap();
        assert_eq!(odd.host, "db.abc.supabase.co");
        assert_eq!(provider(&odd.host), Some("Supabase"));
        assert_eq!(provider(&parse("s3.eu-central-003.backblazeb2.com").unwrap().host), Some("Backblaze B2"));
        assert_eq!(provider("notsupabase.co"), None);
        assert!(parse("redis://:secret@127.0.0.1:6379/0").unwrap().is_local());
        assert!(parse("redis://[::1]:6379").unwrap().is_local());
        for none in ["", "secret", "a://", "://x", "postgres://u:secret", "http://a b/c", "x@y", "mysql://h:port/x"] {
            assert!(parse(none).is_none(), "{none}");
        }
        let text = format!("{:?}", parse("redis://:secret@cache/0").unwrap());
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn sweep_values() {
        let fuzz = crate::base::fuzz::Fuzz::of("url").seed("postgresql+asyncpg://u:p@h.example:5432/db?x=1");
        fuzz.words(&["://", "@", ":", "/", "?", "[", "]", "%", "é"]).run(|bytes| {
            drop(parse(&String::from_utf8_lossy(bytes)));
        });
    }
}
