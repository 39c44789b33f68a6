//! Whether the env files that a rollback leaves behind still open the database: a password that was changed since the
//! snapshot stands in today's env and in the server, and not in the snapshot's env.
//!
//! Login URLs of this very server are looked for among the values, and logins under several keys ([`login_keys`]); each
//! role's password is tried where the server asks for one: by TCP, at the container's own address (images trust their loopback address). A password goes through
//! the environment, and only a refusal of the password is an error; whatever else keeps from trying is a note.

use super::connection::{Connection, literal, psql};
use super::login_keys::{self, Parts};
use super::url::split_port;
use crate::base::cancel::Cancel;
use crate::base::secret::Secret;
use crate::place::inspect::Container;
use crate::policy::dotenv;
use crate::policy::model::{App, PostgresSpec, SecretRef, SourcePolicy, SourceSpec, Target};
use crate::sources::SourceError;
use crate::sources::env_merge::parsed;
use crate::sources::files::env::EnvFile;
use crate::sources::locate::Located;
use crate::sources::project::Places;
use crate::sources::run::{Deadline, one_line, run, settle};
use percent_encoding::percent_decode_str;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Logins that are tried.
const MOST: usize = 8;
/// For each of them.
const LIMIT: Duration = Duration::from_secs(15);

/// A login that stands in the env files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Where it stands.
    pub file: PathBuf,
    pub key: String,
    pub role: String,
    /// Why it was not tried; absent: the server accepts it.
    pub note: Option<String>,
}

/// Tries the logins to a source's server that stand in `files`. An error names role and key of one that the server
/// refuses.
pub fn check_logins(
    source: &SourcePolicy,
    app: &App,
    places: &Places,
    files: &[EnvFile],
    cancel: &Cancel,
) -> Result<Vec<Login>, SourceError> {
    let SourceSpec::Postgres(spec) = &source.spec else { return Ok(Vec::new()) };
    // A server that cannot be found is told by its own plan.
    let Ok(found) = places.find(&spec.target) else { return Ok(Vec::new()) };
    let env = found.container.iter().flat_map(|c| c.env.iter().cloned()).collect();
    let located = Located { place: found.place, env };
    let connection = Connection::new(spec, &located, &format!("login/{}", source.name), cancel)?;
    let server = Reach::of(spec, found.container.as_ref(), &connection);
    let mut door =
        Door { connection: &connection, server: &server, app, cancel, logins: Vec::new(), tried: Vec::new() };
    for candidate in candidates(files, app, spec, &connection.user) {
        let is_ours = candidate.host.as_deref().is_none_or(|host| server.is(host, candidate.port));
        if is_ours {
            door.must_open(candidate)?;
        }
    }
    let mut roles: Option<Vec<String>> = None;
    for parts in login_keys::find(files, app) {
        let is_ours = parts.host.as_deref().is_none_or(|host| server.is(host, parts.port));
        if !is_ours || (!parts.is_named() && parts.today.is_none()) {
            continue;
        }
        let known = match &parts.role {
            Some(role) => std::slice::from_ref(role),
            None => roles.get_or_insert_with(|| door.roles()).as_slice(),
        };
        for role in known {
            if door.opens_today(&parts, role)? {
                door.must_open(Candidate::of(&parts, role))?;
            }
        }
    }
    Ok(door.logins)
}

/// The server's door, and what has been tried at it.
struct Door<'a> {
    connection: &'a Connection,
    server: &'a Reach,
    app: &'a App,
    cancel: &'a Cancel,
    logins: Vec<Login>,
    tried: Vec<(String, Secret<String>)>,
}

impl Door<'_> {
    /// An error when the server refuses the password.
    fn must_open(&mut self, candidate: Candidate) -> Result<(), SourceError> {
        self.cancel.check()?;
        let known = |(role, password): &(String, Secret<String>)| {
            *role == candidate.role && password.expose() == candidate.password.expose()
        };
        if self.tried.iter().any(known) || self.logins.len() >= MOST {
            return Ok(());
        }
        let note = match self.knock(&candidate)? {
            Answer::Opened => None,
            Answer::Unclear(note) => Some(note),
            Answer::Refused => return Err(refused(self.connection, &candidate, self.app)),
        };
        self.tried.push((candidate.role.clone(), candidate.password));
        self.logins.push(Login { file: candidate.file, key: candidate.key, role: candidate.role, note });
        Ok(())
    }

    /// Whether these parts are this role's: they say so, or the value of today opens the door.
    fn opens_today(&self, parts: &Parts, role: &str) -> Result<bool, SourceError> {
        if parts.is_named() {
            return Ok(true);
        }
        let Some(today) = &parts.today else { return Ok(false) };
        self.cancel.check()?;
        let candidate = Candidate { password: today.clone(), ..Candidate::of(parts, role) };
        Ok(matches!(self.knock(&candidate)?, Answer::Opened))
    }

    fn knock(&self, candidate: &Candidate) -> Result<Answer, SourceError> {
        match &self.server.address {
            Some((host, port)) => {
                attempt(self.connection, candidate, host, *port, self.cancel).map_err(|e| settle(e, self.cancel))
            }
            None => Ok(Answer::Unclear(format!("{} is not reached by TCP from where it runs", self.connection.server))),
        }
    }

    /// Roles that may log in: the one that Lifeboat uses first, then as many as are worth a try.
    fn roles(&self) -> Vec<String> {
        let sql = format!(
            "SELECT rolname FROM pg_catalog.pg_roles WHERE rolcanlogin ORDER BY rolname <> {}, rolname LIMIT {MOST}",
            literal(&self.connection.user)
        );
        let argv = psql(&self.connection.own_database, &["--command", &sql]);
        let command = self.connection.command(argv, Deadline::after(LIMIT), self.cancel);
        match run(self.connection.place(), command, 64 << 10) {
            Ok((out, exit)) if exit.code == 0 => String::from_utf8_lossy(&out).lines().map(str::to_owned).collect(),
            _ => vec![self.connection.user.clone()],
        }
    }
}

/// What the server says to a login.
enum Answer {
    Opened,
    Refused,
    /// Nothing came of it.
    Unclear(String),
}

/// What might be a login.
struct Candidate {
    file: PathBuf,
    key: String,
    role: String,
    password: Secret<String>,
    database: Option<String>,
    /// Absent: the policy itself says that it is this server's.
    host: Option<String>,
    port: Option<u16>,
}

impl Candidate {
    fn of(parts: &Parts, role: &str) -> Self {
        Self {
            file: parts.file.clone(),
            key: parts.key.clone(),
            role: role.to_owned(),
            password: parts.password.clone(),
            database: parts.database.clone(),
            host: parts.host.clone(),
            port: parts.port,
        }
    }
}

fn candidates(files: &[EnvFile], app: &App, spec: &PostgresSpec, user: &str) -> Vec<Candidate> {
    let mut all = Vec::new();
    for (file, entries) in parsed(files, app) {
        let Ok(entries) = entries else { continue };
        for entry in &entries {
            all.extend(of_url(&file.path, &entry.key, entry.value.expose()));
        }
        if let Some(SecretRef::EnvFile { file: named, key }) = &spec.password_from
            && same_file(named, &file.path)
            && let Some(password) = dotenv::get(&entries, key).filter(|v| !v.expose().is_empty())
        {
            let (path, password) = (file.path.clone(), password.clone());
            let (role, key) = (user.to_owned(), key.clone());
            all.push(Candidate { file: path, key, role, password, database: None, host: None, port: None });
        }
    }
    all
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| Some(a) == b.canonicalize().ok())
}

/// `postgres://user:password@host:port/database`, with whatever driver behind a `+`.
fn of_url(file: &Path, key: &str, value: &str) -> Option<Candidate> {
    let (scheme, rest) = value.trim().split_once("://")?;
    let kind = scheme.split('+').next()?;
    if !kind.eq_ignore_ascii_case("postgres") && !kind.eq_ignore_ascii_case("postgresql") {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (user, address) = rest[..end].rsplit_once('@')?;
    let (role, password) = user.split_once(':')?;
    let text = |part: &str| percent_decode_str(part).decode_utf8().ok().map(|t| t.into_owned());
    let usable = |t: &String| !t.is_empty() && !t.contains('\0');
    let (host, port) = split_port(address)?;
    let database = rest[end..].strip_prefix('/').and_then(|p| text(p.split(['?', '#']).next().unwrap_or_default()));
    Some(Candidate {
        file: file.to_owned(),
        key: key.to_owned(),
        role: text(role).filter(usable)?,
        password: text(password).filter(usable)?.into(),
        database: database.filter(usable),
        host: Some(text(host).filter(usable)?),
        port: port.map(str::parse).transpose().ok()?,
    })
}

/// How a server is called, and where it asks for passwords.
struct Reach {
    names: Vec<String>,
    /// Ports of this host that lead to it; all of them where the server runs on this host.
    ports: Option<Vec<u16>>,
    own_port: u16,
    address: Option<(String, u16)>,
}

impl Reach {
    fn of(spec: &PostgresSpec, container: Option<&Container>, connection: &Connection) -> Self {
        match container {
            Some(container) => Self::of_container(spec, container),
            None => {
                let (host, port) = connection.address();
                let own_port = port.and_then(|p| p.parse().ok()).unwrap_or(5432);
                let host = host.filter(|h| !h.starts_with('/'));
                let names = host.iter().map(|h| (*h).to_owned()).collect();
                let host = host.unwrap_or("localhost");
                Self { names, ports: Some(vec![own_port]), own_port, address: Some((host.to_owned(), own_port)) }
            }
        }
    }

    fn of_container(spec: &PostgresSpec, container: &Container) -> Self {
        let mut names = vec![container.name.clone(), container.hostname.clone()];
        names.extend(container.compose().map(|l| l.service));
        if let Target::Service(name) | Target::Container(name) = &spec.target {
            names.push(name.clone());
        }
        names.retain(|n| !n.is_empty());
        let number = |variable: &str| container.env(variable).and_then(|v| v.expose().parse().ok());
        let own_port = number("PGPORT").unwrap_or(5432u16);
        let own = format!("{own_port}/tcp");
        let published = container.ports.iter().filter(|(port, _)| *port == own);
        let ports = published.filter_map(|(_, to)| to.rsplit(':').next()?.parse().ok()).collect();
        // With the host's network, or none, its own name is no address of its own.
        let shared = matches!(container.network_mode.as_str(), "host" | "none");
        let address = (!shared && !container.hostname.is_empty()).then(|| (container.hostname.clone(), own_port));
        Self { names, ports: Some(ports), own_port, address }
    }

    /// Whether a URL's host and port are this server.
    fn is(&self, host: &str, port: Option<u16>) -> bool {
        let port = port.unwrap_or(5432);
        if self.names.iter().any(|n| n.eq_ignore_ascii_case(host)) {
            return port == self.own_port;
        }
        let local = matches!(host, "localhost" | "127.0.0.1" | "::1" | "host.docker.internal");
        local && self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

/// Tries one.
fn attempt(
    connection: &Connection,
    login: &Candidate,
    host: &str,
    port: u16,
    cancel: &Cancel,
) -> Result<Answer, SourceError> {
    let database = login.database.as_deref().unwrap_or(&connection.own_database);
    let argv = psql(database, &["--command", "SELECT 1"]);
    let mut command = connection.command(argv, Deadline::after(LIMIT), cancel);
    command.env.retain(|(name, _)| !matches!(name.as_str(), "PGUSER" | "PGPASSWORD" | "PGHOST" | "PGPORT"));
    let command = command
        .env("PGUSER", login.role.clone())
        .env("PGPASSWORD", login.password.clone())
        .env("PGPASSFILE", "/dev/null".to_owned())
        .env("PGHOST", host.to_owned())
        .env("PGPORT", port.to_string())
        .env("PGCONNECT_TIMEOUT", "5".to_owned());
    let (_, exit) = match run(connection.place(), command, 4096) {
        Ok(done) => done,
        Err(error) => {
            cancel.check()?;
            return Ok(Answer::Unclear(error.to_string()));
        }
    };
    if exit.code == 0 {
        return Ok(Answer::Opened);
    }
    let said = one_line(&exit.stderr);
    if said.contains("password authentication failed") {
        return Ok(Answer::Refused);
    }
    // The server looks for the database behind the password.
    let opened = said.contains("does not exist") && said.contains("database");
    Ok(if opened { Answer::Opened } else { Answer::Unclear(said) })
}

fn refused(connection: &Connection, login: &Candidate, app: &App) -> SourceError {
    let file = login.file.strip_prefix(&app.root).unwrap_or(&login.file);
    SourceError::hint(
        format!(
            "{} does not accept the password that {} in {} has for role {:?}",
            connection.server,
            login.key,
            file.display(),
            login.role
        ),
        "the role's password was changed since the snapshot: keep today's value of that key (--env live), or change the password back",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parts = (String, String, Option<String>, String, Option<u16>);

    fn parts(value: &str) -> Option<Parts> {
        let c = of_url(Path::new("/f"), "K", value)?;
        Some((c.role, c.password.expose().clone(), c.database, c.host?, c.port))
    }

    #[test]
    fn login_urls_of_all_drivers() {
        let own = |s: &str| s.to_owned();
        assert_eq!(
            parts("postgresql+asyncpg://shop%40x:p%3Aw@db:5433/shop?ssl=require"),
            Some((own("shop@x"), own("p:w"), Some(own("shop")), own("db"), Some(5433)))
        );
        assert_eq!(parts("postgres://u:p@[::1]"), Some((own("u"), own("p"), None, own("::1"), None)));
        for other in
            ["mysql://u:p@db/x", "postgres://db/x", "postgres://u@db/x", "postgres://u:@db/x", "postgres://u:p@db:x/y"]
        {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn only_this_server_counts() {
        let reach = Reach {
            names: vec!["db".into(), "shop_db".into()],
            ports: Some(vec![5433]),
            own_port: 5432,
            address: None,
        };
        assert!(reach.is("db", None) && reach.is("shop_db", Some(5432)) && reach.is("localhost", Some(5433)));
        assert!(!reach.is("db", Some(6432)) && !reach.is("localhost", None) && !reach.is("other", None));
    }
}
