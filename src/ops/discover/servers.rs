//! Databases and other stores: where each is, and how it lets one in. What is written down was tried.

use super::find::{Discovery, Find, Thing, Uncovered, Where, text, texts};
use super::scene::{Scene, is_secret_name, store_of};
use super::stores::{self, Store};
use super::urls::Url;
use crate::base::secret::Secret;
use crate::ops::OpsError;
use crate::place::inspect::Container;
use crate::policy::model::{Databases, Fingerprint, PostgresSpec, RedisSpec, SecretRef, Target};
use crate::repository::chain::full_text;
use crate::sources::Source;
use crate::sources::postgres::{OnServer, PostgresSource};
use crate::sources::redis::RedisSource;
use std::collections::BTreeSet;
use std::time::Duration;

/// The longest that one server is waited for.
const LIMIT: Duration = Duration::from_secs(30);

impl Where {
    pub(super) fn target(&self) -> Target {
        match self {
            Where::Service { service, .. } => Target::Service(service.clone()),
            Where::Container(name) => Target::Container(name.clone()),
            Where::Url(url) => Target::Url(url.clone()),
            Where::Host => Target::Host,
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Where::Service { service, .. } => format!("service {service:?}"),
            Where::Container(name) => format!("container {name:?}"),
            Where::Url(url) => url.clone(),
            Where::Host => "this host".into(),
        }
    }

    fn wish(&self, kind: &str) -> String {
        match self {
            Where::Service { service: name, .. } | Where::Container(name) => name.clone(),
            Where::Url(_) | Where::Host => kind.to_owned(),
        }
    }
}

/// Finds every store of the project, and those beside it that it is told of.
pub(super) fn find(scene: &Scene<'_>, found: &mut Discovery) -> Result<(), OpsError> {
    let urls = scene.urls();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for service in &scene.services {
        let Some(store) = service.store else { continue };
        scene.run.cancel.check()?;
        let Some(container) = service.container.as_ref().filter(|c| c.is_running()) else {
            found.uncovered.push(Uncovered::data(
                format!("{} (service {})", kind_word(store), service.name),
                "it does not run, so nothing could be found out about it",
                format!(
                    "start it and name it in the policy: kind = \"{}\", service = \"{}\"",
                    kind_word(store),
                    service.name
                ),
            ));
            continue;
        };
        seen.insert(container.name.clone());
        let at = Where::Service { service: service.name.clone(), container: container.name.clone() };
        one(scene, found, store, at, container, &urls, None)?;
    }
    beside(scene, found, &urls, &mut seen)
}

/// The kind of source, where there is one.
fn kind_word(store: Store) -> &'static str {
    match store {
        Store::Postgres => "postgres",
        Store::Redis => "redis",
        Store::RabbitMq | Store::MySql | Store::Other(_) => "command",
    }
}

/// Servers that URLs lead to and that are not of the project: in other containers, on this host, or elsewhere.
fn beside(
    scene: &Scene<'_>,
    found: &mut Discovery,
    urls: &[(Url, String)],
    seen: &mut BTreeSet<String>,
) -> Result<(), OpsError> {
    for (url, from) in urls {
        scene.run.cancel.check()?;
        let by_name = |c: &&Container| scene.shares_network(c) && (c.name == url.host || c.aliases.contains(&url.host));
        let own = |host: &str| {
            let is = |c: &Container| c.name == host || c.aliases.iter().any(|a| a == host);
            scene.services.iter().any(|s| s.name == host || s.container.as_ref().is_some_and(is))
        };
        let container = match url.is_local() {
            true => url.port.or(usual_port(&url.scheme)).and_then(|port| scene.publisher(port)),
            false if own(&url.host) => continue,
            false => scene.around.iter().find(by_name),
        };
        match container {
            Some(container) => {
                let of_project =
                    scene.services.iter().any(|s| s.container.as_ref().is_some_and(|c| c.id == container.id));
                let Some(store) = store_of(container).filter(|_| !of_project) else { continue };
                let key = format!("{}/{}", container.name, url.database.as_deref().unwrap_or_default());
                if seen.insert(key) {
                    let at = Where::Container(container.name.clone());
                    one(scene, found, store, at, container, urls, url.database.as_deref())?;
                }
            }
            None if url.is_local() => on_this_host(scene, found, url, from, seen)?,
            None => super::outside::external(found, url, from),
        }
    }
    Ok(())
}

fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "postgres" => Some(5432),
        "redis" => Some(6379),
        "mysql" | "mariadb" => Some(3306),
        "mongodb" => Some(27017),
        "amqp" => Some(5672),
        _ => None,
    }
}

fn one(
    scene: &Scene<'_>,
    found: &mut Discovery,
    store: Store,
    at: Where,
    container: &Container,
    urls: &[(Url, String)],
    database: Option<&str>,
) -> Result<(), OpsError> {
    match store {
        Store::Postgres => postgres(scene, found, at, Some(container), urls, database),
        Store::Redis => redis(scene, found, at, Some(container), urls),
        Store::RabbitMq => {
            rabbitmq(found, at);
            Ok(())
        }
        Store::MySql => {
            mysql(found, at, container);
            Ok(())
        }
        Store::Other(name) => {
            found.uncovered.push(Uncovered::data(
                format!("{name} in {}", at.describe()),
                "its files are of no use while it writes them, and there is no source for it",
                "if it has an export that writes to standard output, a source of kind \"command\" stores that",
            ));
            Ok(())
        }
    }
}

/// A way in, as fields of a policy.
#[derive(Debug, Clone, Default)]
struct Login {
    user: Option<String>,
    password_from: Option<SecretRef>,
}

impl Login {
    fn fields(&self, scene: &Scene<'_>) -> Vec<(&'static str, toml::Value)> {
        let user = self.user.as_ref().map(|user| ("user", text(user)));
        let password = self.password_from.as_ref().map(|from| ("password_from", text(reference(scene, from))));
        user.into_iter().chain(password).collect()
    }
}

fn reference(scene: &Scene<'_>, from: &SecretRef) -> String {
    match from {
        SecretRef::EnvFile { file, key } => format!("{}:{key}", scene.short(file)),
        SecretRef::Env(name) => format!("env:{name}"),
        SecretRef::File(path) => format!("file:{}", path.display()),
    }
}

/// URLs that mean this server.
fn leading_to<'u>(urls: &'u [(Url, String)], scheme: &str, at: &Where, container: Option<&Container>) -> Vec<&'u Url> {
    let means = |url: &&Url| match (at, container) {
        (Where::Url(_) | Where::Host, _) => url.is_local(),
        (Where::Service { service, .. }, Some(c)) => {
            url.host == *service || url.host == c.name || c.aliases.contains(&url.host) || url.is_local()
        }
        (_, Some(c)) => url.host == c.name || c.aliases.contains(&url.host) || url.is_local(),
        (_, None) => false,
    };
    urls.iter().map(|(url, _)| url).filter(|u| u.scheme == scheme).filter(means).collect()
}

fn postgres(
    scene: &Scene<'_>,
    found: &mut Discovery,
    at: Where,
    container: Option<&Container>,
    urls: &[(Url, String)],
    database: Option<&str>,
) -> Result<(), OpsError> {
    scene.run.events.step(format!("looking at PostgreSQL in {}", at.describe()));
    let mut logins = vec![Login::default()];
    for url in leading_to(urls, "postgres", &at, container) {
        let password_from = url.password.as_ref().and_then(|p| scene.reference(p));
        logins.push(Login { user: url.user.clone(), password_from });
    }
    let mut refused = None;
    for login in &logins {
        let source = PostgresSource::new(source_name()?, spec(&at, login), LIMIT, scene.locate());
        match source.databases(&scene.run.cancel) {
            Ok(server) => {
                add_postgres(scene, found, at, login, &server, container, database);
                return Ok(());
            }
            Err(e) => {
                scene.run.cancel.check()?;
                refused.get_or_insert(full_text(&e));
            }
        }
    }
    found.uncovered.push(Uncovered::data(
        format!("postgres ({})", at.describe()),
        refused.unwrap_or_default(),
        "name it in the policy with user and password_from, and try `lifeboat policy check --live`",
    ));
    Ok(())
}

fn spec(at: &Where, login: &Login) -> PostgresSpec {
    PostgresSpec {
        target: at.target(),
        user: login.user.clone(),
        databases: Databases::Own,
        password_from: login.password_from.clone(),
        fingerprint: Fingerprint::Rows,
        jobs: 1,
    }
}

fn source_name() -> Result<crate::base::ids::SourceName, OpsError> {
    "look".parse().map_err(|e| OpsError::failed(format!("{e}"), "report this"))
}

fn add_postgres(
    scene: &Scene<'_>,
    found: &mut Discovery,
    at: Where,
    login: &Login,
    server: &OnServer,
    container: Option<&Container>,
    database: Option<&str>,
) {
    let others = server.all.iter().filter(|d| **d != server.own && *d != "postgres");
    let own_is_there = server.all.contains(&server.own);
    let mut because = vec!["User, password and database are read from the container's own environment.".to_owned()];
    if container.is_none() || login.user.is_some() || login.password_from.is_some() {
        because = vec!["The password is read from where password_from points, whenever it is needed.".to_owned()];
    }
    let wanted: Vec<String> = match database {
        // Of a server that others use too, only what is named.
        Some(database) => vec![database.to_owned()],
        None => own_is_there.then(|| server.own.clone()).into_iter().chain(others.cloned()).collect(),
    };
    let mut fields = login.fields(scene);
    if wanted.is_empty() {
        // A server that has nothing of its own yet: all that comes.
        fields.push(("databases", texts(["*"])));
    } else if wanted != [server.own.clone()] {
        because.push("The server has these databases of its own; [\"*\"] takes all that ever come.".to_owned());
        fields.push(("databases", texts(&wanted)));
    }
    let named = match wanted.as_slice() {
        [] => "all databases".to_owned(),
        [one] => format!("database {one}"),
        some => format!("databases {}", some.join(", ")),
    };
    let what = format!("PostgreSQL in {}: {named}", at.describe());
    let wish = at.wish("postgres");
    let thing = Thing::Postgres { at, own: server.own.clone(), databases: wanted };
    found.add(&wish, Find { name: String::new(), thing, what, because, fields });
}

fn redis(
    scene: &Scene<'_>,
    found: &mut Discovery,
    at: Where,
    container: Option<&Container>,
    urls: &[(Url, String)],
) -> Result<(), OpsError> {
    scene.run.events.step(format!("looking at Redis in {}", at.describe()));
    let mut logins = vec![Login::default()];
    let mut add = |from: Option<SecretRef>| {
        if let Some(from) = from {
            logins.push(Login { user: None, password_from: Some(from) });
        }
    };
    if let Some(container) = container
        && let Some(word) = stores::option(&container.command, "--requirepass")
    {
        // A variable that the shell of the container knows, or the password as Compose has put it in.
        let name = word.trim_start_matches('$').trim_matches(['{', '}']);
        let value = if word.starts_with('$') { container.env(name).cloned() } else { Some(Secret::new(word)) };
        add(value.and_then(|value| scene.reference(&value)));
    }
    for url in leading_to(urls, "redis", &at, container) {
        add(url.password.as_ref().and_then(|p| scene.reference(p)));
    }
    for file in &scene.env_files {
        let likely = |key: &str| {
            is_secret_name(key) && ["REDIS", "VALKEY", "CACHE"].iter().any(|w| key.to_uppercase().contains(w))
        };
        for entry in file.entries.iter().filter(|e| likely(&e.key) && !e.value.expose().is_empty()) {
            add(Some(SecretRef::EnvFile { file: file.path.clone(), key: entry.key.clone() }));
        }
    }
    let mut refused = None;
    for login in &logins {
        let spec =
            RedisSpec { target: at.target(), user: None, password_from: login.password_from.clone(), tls: false };
        match RedisSource::new(source_name()?, spec, LIMIT, scene.locate()).probe(&scene.run.cancel) {
            Ok(()) => {
                let what = format!("Redis in {}", at.describe());
                let because = match &login.password_from {
                    Some(_) => {
                        vec!["The password is read from where password_from points, whenever it is needed.".to_owned()]
                    }
                    None => Vec::new(),
                };
                let (wish, fields) = (at.wish("redis"), login.fields(scene));
                found.add(&wish, Find { name: String::new(), thing: Thing::Redis { at }, what, because, fields });
                return Ok(());
            }
            Err(e) => {
                scene.run.cancel.check()?;
                refused.get_or_insert(full_text(&e));
            }
        }
    }
    found.uncovered.push(Uncovered::data(
        format!("redis ({})", at.describe()),
        refused.unwrap_or_default(),
        "write its password into an env file, and point password_from to it",
    ));
    Ok(())
}

/// Its definitions have a well-known export; messages have none.
fn rabbitmq(found: &mut Discovery, at: Where) {
    found.uncovered.push(Uncovered::data(
        format!("messages that wait in the queues of RabbitMQ in {}", at.describe()),
        "its definitions are captured: users, queues, bindings; no export holds messages",
        "let nothing that must not be lost wait there for long",
    ));
    let fields = vec![
        ("run", texts(["rabbitmqctl", "export_definitions", "-"])),
        ("restore", texts(["rabbitmqctl", "import_definitions"])),
        ("output", text("definitions.json")),
    ];
    let what = format!("RabbitMQ in {}: its definitions", at.describe());
    let because = vec!["Users, queues and bindings. Messages that wait in queues are not in it.".to_owned()];
    let wish = at.wish("rabbitmq");
    let thing = Thing::Command { at, engine: "RabbitMQ" };
    found.add(&wish, Find { name: String::new(), thing, what, because, fields });
}

/// The password goes through the environment of the program, in the container.
const MYSQL_DUMP: &str = "MYSQL_PWD=\"${MARIADB_ROOT_PASSWORD:-$MYSQL_ROOT_PASSWORD}\"; export MYSQL_PWD; \
    exec \"$(command -v mariadb-dump || command -v mysqldump)\" --user=root --all-databases --single-transaction \
    --routines --events --triggers";
const MYSQL_LOAD: &str = "MYSQL_PWD=\"${MARIADB_ROOT_PASSWORD:-$MYSQL_ROOT_PASSWORD}\"; export MYSQL_PWD; \
    exec \"$(command -v mariadb || command -v mysql)\" --user=root";

fn mysql(found: &mut Discovery, at: Where, container: &Container) {
    let has = |name: &str| container.env(name).is_some_and(|v| !v.expose().is_empty());
    if !has("MYSQL_ROOT_PASSWORD") && !has("MARIADB_ROOT_PASSWORD") {
        found.uncovered.push(Uncovered::data(
            format!("MySQL or MariaDB in {}", at.describe()),
            "its container has no root password in its environment, so nobody here can ask it",
            "name a source of kind \"command\" that runs mysqldump with a password of its own",
        ));
        return;
    }
    let fields = vec![
        ("run", texts(["sh", "-c", MYSQL_DUMP])),
        ("restore", texts(["sh", "-c", MYSQL_LOAD])),
        ("output", text("all-databases.sql")),
    ];
    let what = format!("MySQL or MariaDB in {}: all databases (mysqldump)", at.describe());
    let because = vec!["The password is the container's own variable; it never leaves the container.".to_owned()];
    let wish = at.wish("mysql");
    let thing = Thing::Command { at, engine: "MySQL" };
    found.add(&wish, Find { name: String::new(), thing, what, because, fields });
}

/// A server on this host, outside containers.
fn on_this_host(
    scene: &Scene<'_>,
    found: &mut Discovery,
    url: &Url,
    from: &str,
    seen: &mut BTreeSet<String>,
) -> Result<(), OpsError> {
    let port = url.port.or(usual_port(&url.scheme)).unwrap_or(0);
    // A port that nobody of this machine listens on in this network is a container's own business.
    if !url.is_database() || !seen.insert(format!("host/{port}/{}", url.database.as_deref().unwrap_or_default())) {
        return Ok(());
    }
    let listens = std::net::TcpStream::connect_timeout(
        &std::net::SocketAddr::from(([127, 0, 0, 1], port)),
        Duration::from_secs(2),
    );
    let told = vec![(url.clone(), from.to_owned())];
    match url.scheme.as_str() {
        _ if listens.is_err() => {
            found.uncovered.push(Uncovered::data(
                format!("the database that {from} names on this host, port {port}"),
                "nothing listens there now",
                "start it and run init again, or name it in the policy",
            ));
            Ok(())
        }
        "postgres" => {
            let user = url.user.as_deref().unwrap_or("postgres");
            let path = url.database.as_deref().unwrap_or(user);
            let at = Where::Url(format!("postgres://{}@127.0.0.1:{port}/{}", encoded(user), encoded(path)));
            postgres_on_host(scene, found, at, url)
        }
        "redis" => redis(scene, found, Where::Url(format!("redis://127.0.0.1:{port}")), None, &told),
        _ => {
            found.uncovered.push(Uncovered::data(
                format!("the {} server that {from} names on this host, port {port}", url.scheme),
                "there is no source for it",
                "a source of kind \"command\" stores what its own export writes to standard output",
            ));
            Ok(())
        }
    }
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// By its URL with a password that stands somewhere, else through the local socket as its superuser.
fn postgres_on_host(scene: &Scene<'_>, found: &mut Discovery, at: Where, url: &Url) -> Result<(), OpsError> {
    let password_from = url.password.as_ref().and_then(|p| scene.reference(p));
    let mut refused = None;
    let by_url = (at, Login { user: None, password_from });
    for (at, login) in [by_url, (Where::Host, Login::default())] {
        let mut spec = spec(&at, &login);
        if let (Where::Host, Some(database)) = (&at, &url.database) {
            spec.databases = Databases::Named(vec![database.clone()]);
        }
        match PostgresSource::new(source_name()?, spec, LIMIT, scene.locate()).databases(&scene.run.cancel) {
            Ok(server) => {
                add_postgres(scene, found, at, &login, &server, None, url.database.as_deref());
                return Ok(());
            }
            Err(e) => {
                scene.run.cancel.check()?;
                refused.get_or_insert(full_text(&e));
            }
        }
    }
    found.uncovered.push(Uncovered::data(
        format!("postgres on this host: database {:?}", url.database.as_deref().unwrap_or_default()),
        refused.unwrap_or_default(),
        "its password stands only within a URL: give it a key of its own in an env file, for password_from",
    ));
    Ok(())
}
