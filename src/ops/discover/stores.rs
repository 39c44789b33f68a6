//! Which service is a data store, told by what it runs, and not by what it is called.

use std::path::{Path, PathBuf};

/// A kind of data store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Postgres,
    Redis,
    RabbitMq,
    MySql,
    /// A database whose files are of no use while it writes them, and that has no export which needs nothing more than
    /// the container.
    Other(&'static str),
}

impl Store {
    /// Folders in which such a server keeps its data, beside those that its settings name.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Store::Postgres => &["/var/lib/postgresql", "/bitnami/postgresql", "/home/postgres/pgdata"],
            Store::Redis => &["/data", "/var/lib/redis", "/var/lib/valkey", "/bitnami/redis", "/bitnami/valkey"],
            Store::RabbitMq => &["/var/lib/rabbitmq", "/bitnami/rabbitmq"],
            Store::MySql => &["/var/lib/mysql", "/bitnami/mysql", "/bitnami/mariadb"],
            Store::Other(_) => &[
                "/data",
                "/var/lib",
                "/bitnami",
                "/usr/share/elasticsearch/data",
                "/usr/share/opensearch/data",
                "/opt/couchdb/data",
                "/qdrant/storage",
                "/meili_data",
            ],
        }
    }
}

/// What is known of a service.
#[derive(Debug, Clone, Default)]
pub struct Traits<'a> {
    pub image: &'a str,
    /// Entry point and arguments, or the command of a compose file.
    pub command: &'a [String],
    /// Names and values of variables; values are looked at for `PGDATA` only.
    pub pgdata: Option<&'a str>,
    /// Where something is mounted.
    pub mounts: Vec<&'a Path>,
}

/// Images by the last part of their name.
const IMAGES: &[(&str, Store)] = &[
    ("postgres", Store::Postgres),
    ("postgresql", Store::Postgres),
    ("postgis", Store::Postgres),
    ("pgvector", Store::Postgres),
    ("timescaledb", Store::Postgres),
    ("timescaledb-ha", Store::Postgres),
    ("spilo", Store::Postgres),
    ("redis", Store::Redis),
    ("redis-stack", Store::Redis),
    ("redis-stack-server", Store::Redis),
    ("valkey", Store::Redis),
    ("keydb", Store::Redis),
    ("rabbitmq", Store::RabbitMq),
    ("mysql", Store::MySql),
    ("mysql-server", Store::MySql),
    ("mariadb", Store::MySql),
    ("percona", Store::MySql),
    ("percona-server", Store::MySql),
    ("mongo", Store::Other("MongoDB")),
    ("mongodb", Store::Other("MongoDB")),
    ("elasticsearch", Store::Other("Elasticsearch")),
    ("opensearch", Store::Other("OpenSearch")),
    ("clickhouse-server", Store::Other("ClickHouse")),
    ("clickhouse", Store::Other("ClickHouse")),
    ("influxdb", Store::Other("InfluxDB")),
    ("cassandra", Store::Other("Cassandra")),
    ("couchdb", Store::Other("CouchDB")),
    ("neo4j", Store::Other("Neo4j")),
    ("qdrant", Store::Other("Qdrant")),
    ("meilisearch", Store::Other("Meilisearch")),
    ("etcd", Store::Other("etcd")),
    ("kafka", Store::Other("Kafka")),
];

/// Programs that are such a server.
const PROGRAMS: &[(&str, Store)] = &[
    ("postgres", Store::Postgres),
    ("postmaster", Store::Postgres),
    ("redis-server", Store::Redis),
    ("valkey-server", Store::Redis),
    ("keydb-server", Store::Redis),
    ("rabbitmq-server", Store::RabbitMq),
    ("mysqld", Store::MySql),
    ("mysqld_safe", Store::MySql),
    ("mariadbd", Store::MySql),
    ("mongod", Store::Other("MongoDB")),
    ("clickhouse-server", Store::Other("ClickHouse")),
    ("influxd", Store::Other("InfluxDB")),
    ("etcd", Store::Other("etcd")),
];

/// The store that a service is; absent for everything else.
pub fn store(traits: &Traits<'_>) -> Option<Store> {
    let by_program = programs(traits.command).find_map(|p| known(PROGRAMS, p));
    by_program.or_else(|| known(IMAGES, image_name(traits.image))).or_else(|| by_folder(traits))
}

fn known(list: &[(&str, Store)], name: &str) -> Option<Store> {
    list.iter().find(|(known, _)| *known == name).map(|(_, store)| *store)
}

/// `pgvector` of `registry:5000/ankane/pgvector:pg15@sha256:…`.
pub fn image_name(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split([':', '@']).next().unwrap_or_default()
}

/// The programs that a command runs: its first word, and what entry points and shells pass on. An option's value is none.
fn programs(command: &[String]) -> impl Iterator<Item = &str> {
    let starts = |word: &str| {
        let name = word.rsplit('/').next().unwrap_or_default();
        [
            "docker-entrypoint.sh",
            "entrypoint.sh",
            "run.sh",
            "tini",
            "dumb-init",
            "gosu",
            "su-exec",
            "exec",
            "env",
            "--",
            "s6-svscan",
        ]
        .contains(&name)
    };
    let shell = command.first().is_some_and(|w| matches!(w.rsplit('/').next(), Some("sh" | "bash" | "ash" | "dash")));
    let mut words: Vec<&str> = Vec::new();
    if shell {
        // A script: each word that begins a command.
        let script = command.last().map_or("", String::as_str);
        for line in script.split(['\n', ';', '&', '|']) {
            let mut line = line.split_whitespace().skip_while(|w| starts(w) || w.contains('='));
            words.extend(line.next());
        }
    } else {
        let mut rest = command.iter().flat_map(|w| w.split_whitespace());
        for word in rest.by_ref() {
            words.push(word);
            if !starts(word) {
                break;
            }
        }
    }
    words.into_iter().map(|w| w.trim_matches(['"', '\'']).rsplit('/').next().unwrap_or_default())
}

/// An own image with an own start script is known by where its data lies.
fn by_folder(traits: &Traits<'_>) -> Option<Store> {
    let mounted =
        |folder: &str| traits.mounts.iter().any(|m| Path::new(folder).starts_with(m) || m.starts_with(folder));
    let not_root = |m: &&Path| m.components().count() > 2;
    let has = traits.mounts.iter().any(not_root);
    if has && traits.pgdata.is_some_and(|dir| dir.starts_with('/') && mounted(dir)) {
        return Some(Store::Postgres);
    }
    let known = [
        ("/var/lib/postgresql", Store::Postgres),
        ("/bitnami/postgresql", Store::Postgres),
        ("/var/lib/redis", Store::Redis),
        ("/bitnami/redis", Store::Redis),
        ("/var/lib/rabbitmq", Store::RabbitMq),
        ("/var/lib/mysql", Store::MySql),
        ("/data/db", Store::Other("MongoDB")),
        ("/var/lib/clickhouse", Store::Other("ClickHouse")),
        ("/var/lib/influxdb", Store::Other("InfluxDB")),
    ];
    let below = |folder: &str| traits.mounts.iter().any(|m| m.starts_with(folder));
    known.into_iter().find(|(folder, _)| below(folder)).map(|(_, store)| store)
}

/// Whether what is mounted there is the store's own data, which only the store itself can give whole.
pub fn is_data(store: Store, command: &[String], pgdata: Option<&str>, destination: &Path) -> bool {
    let own = option(command, "--dir").into_iter().chain(pgdata.map(str::to_owned)).map(PathBuf::from);
    let folders = store.folders().iter().map(PathBuf::from).chain(own).filter(|f| f.is_absolute());
    let wide = destination.components().count() < 2;
    !wide && folders.into_iter().any(|f| destination.starts_with(&f) || f.starts_with(destination))
}

/// The value behind an option of a command, also within a shell's script.
pub fn option(command: &[String], name: &str) -> Option<String> {
    let mut words =
        command.iter().flat_map(|w| if w.contains(name) { w.split_whitespace().collect() } else { vec![w.as_str()] });
    words.find(|w| w.trim_matches(['"', '\'']) == name)?;
    words.next().map(|w| w.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(image: &str, command: &[&str], pgdata: Option<&str>, mounts: &[&str]) -> Option<Store> {
        let command: Vec<String> = command.iter().map(|w| (*w).to_owned()).collect();
        store(&Traits { image, command: &command, pgdata, mounts: mounts.iter().map(Path::new).collect() })
    }

    #[test]
    fn stores_are_known_by_what_they_run() {
        use Store::{MySql, Other, Postgres, RabbitMq, Redis};
        for (image, store) in [
            ("postgres:15-alpine", Some(Postgres)),
            ("ankane/pgvector:pg15", Some(Postgres)),
            ("docker.io/bitnami/postgresql@sha256:00", Some(Postgres)),
            ("registry:5000/valkey/valkey:8", Some(Redis)),
            ("rabbitmq:3-management", Some(RabbitMq)),
            ("mariadb", Some(MySql)),
            ("mongo:7", Some(Other("MongoDB"))),
            ("bitnami/postgres-exporter", None),
            ("edoburu/pgbouncer", None),
            ("postgrest/postgrest", None),
            ("shop/redis-commander:1", None),
        ] {
            assert_eq!(of(image, &[], None, &[]), store, "{image}");
        }
        let own = "registry.example/ours:1";
        assert_eq!(of(own, &["docker-entrypoint.sh", "postgres", "-c", "x=y"], None, &[]), Some(Postgres));
        assert_eq!(of(own, &["/usr/bin/redis-server", "--appendonly", "yes"], None, &["/data"]), Some(Redis));
        assert_eq!(of(own, &["sh", "-c", "A=b exec redis-server --requirepass \"$P\""], None, &[]), Some(Redis));
        assert_eq!(of(own, &["redis-server --dir /x --requirepass y"], None, &[]), Some(Redis));
        let data = Some("/var/lib/postgresql/data");
        assert_eq!(of(own, &["/postgres.sh"], data, &["/postgres.sh", "/var/lib/postgresql"]), Some(Postgres));
        assert_eq!(of(own, &["/postgres.sh"], data, &["/postgres.sh"]), None, "no folder of its own");
        assert_eq!(of(own, &["python3", "worker.py", "redis-server"], None, &["/srv"]), None);
        assert_eq!(of(own, &["sh", "-c", "pg_isready -h postgres; python3 app.py"], None, &[]), None);
    }

    #[test]
    fn a_stores_data_is_told_from_what_is_mounted_beside() {
        let command: Vec<String> = ["redis-server", "--dir", "/x/y"].map(str::to_owned).into();
        assert!(is_data(Store::Redis, &command, None, Path::new("/x/y")));
        assert!(is_data(Store::Postgres, &[], Some("/srv/pg/data"), Path::new("/srv/pg")));
        for beside in ["/postgres.sh", "/docker-entrypoint-initdb.d", "/etc/postgresql"] {
            assert!(!is_data(Store::Postgres, &[], Some("/var/lib/postgresql/data"), Path::new(beside)), "{beside}");
        }
        let script = ["sh", "-c", "exec redis-server --requirepass \"a b\" --save ''"].map(str::to_owned);
        assert_eq!(option(&["redis-server", "--requirepass", "x"].map(str::to_owned), "--requirepass").unwrap(), "x");
        assert_eq!(option(&script, "--requirepass").unwrap(), "a", "a blank in a script's quotes is not understood");
    }
}
