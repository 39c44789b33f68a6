//! Loading what was captured into a server: databases made as they were, dumps by `pg_restore`, and what dumps leave
//! out.
//!
//! Order (must): the database from `template0`; extensions that need another version than the server's default; the
//! parts as the facts name them, any error fatal; last what lies on the database itself, because a setting or a limit
//! could hinder the load.

use super::connection::{Connection, dbname_option, identifier, literal};
use super::facts::{Database, Properties};
use super::session::{Session, SessionError};
use super::stage::{Stage, StageError, psql_script};
use crate::base::cancel::Cancel;
use crate::base::threads;
use crate::sources::SourceError;
use crate::sources::run::{Deadline, one_line, run};
use crate::sources::streams::Streams;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Why something was not loaded.
#[derive(Debug)]
pub(super) enum LoadError {
    /// What was captured does not load; in one line.
    Refused(String),
    Other(SourceError),
}

impl<E: Into<SourceError>> From<E> for LoadError {
    fn from(error: E) -> Self {
        LoadError::Other(error.into())
    }
}

/// How one server is loaded.
pub(super) struct Loader<'a> {
    pub connection: &'a Connection,
    pub stage: &'a Stage,
    pub streams: &'a dyn Streams,
    /// The server's `server_version_num`.
    pub version: u32,
    pub jobs: usize,
    /// Further options of `pg_restore`.
    pub options: &'a [&'a str],
    /// Roles and tablespaces are there under their own names.
    pub with_owners: bool,
    pub deadline: Deadline,
    pub cancel: &'a Cancel,
}

impl Loader<'_> {
    /// Makes a database of this name and loads a captured one into it, but for what lies on the database itself.
    pub fn database(&self, name: &str, via: &str, captured: &Database) -> Result<(), LoadError> {
        let create = create_database(name, &captured.properties, self.version, self.with_owners);
        self.script(via, &create)?;
        self.extensions(name, captured)?;
        self.parts(name, captured)
    }

    /// Statements through `psql`.
    pub fn script(&self, database: &str, sql: &str) -> Result<(), LoadError> {
        match psql_script(self.connection, database, sql.as_bytes(), self.deadline, self.cancel)? {
            Ok(()) => Ok(()),
            Err(said) => Err(LoadError::Refused(said)),
        }
    }

    /// A dump says `CREATE EXTENSION IF NOT EXISTS` and no version. Where the live one had another than this server's
    /// default, and this server has it too, it is made first.
    fn extensions(&self, name: &str, captured: &Database) -> Result<(), LoadError> {
        let wanted = captured.extensions.iter().filter(|e| matches!(e.schema.as_str(), "public" | "pg_catalog"));
        let mut sql = String::new();
        let defaults = available(self, name)?;
        for extension in wanted {
            let Some(found) = defaults.iter().find(|a| a.name == extension.name) else { continue };
            let differs = found.installed.as_ref().or(found.default_version.as_ref()) != Some(&extension.version);
            if differs && found.versions.contains(&extension.version) && found.installed.is_none() {
                sql += &format!(
                    "CREATE EXTENSION {} WITH SCHEMA {} VERSION {} CASCADE;\n",
                    identifier(&extension.name),
                    identifier(&extension.schema),
                    literal(&extension.version)
                );
            }
        }
        if sql.is_empty() { Ok(()) } else { self.script(name, &sql) }
    }

    fn parts(&self, name: &str, captured: &Database) -> Result<(), LoadError> {
        let mut at = 0;
        while at < captured.parts.len() {
            self.cancel.check()?;
            // Data parts hold each row once, and no part waits for another.
            let data = captured.parts[at..].iter().take_while(|p| p.section == "data").count();
            let group = &captured.parts[at..at + data.max(1)];
            at += group.len();
            let jobs = (self.jobs / group.len()).max(1);
            let results: Vec<Result<(), LoadError>> = std::thread::scope(|scope| {
                let threads: Vec<_> = group
                    .chunks(group.len().div_ceil(self.jobs.max(1)))
                    .map(|mine| {
                        threads::beside(scope, move || {
                            mine.iter().try_for_each(|part| self.part(name, &part.stream, jobs, &[]))
                        })
                    })
                    .collect();
                let broke = || Err(LoadError::Other(SourceError::problem("a thread that loads a dump broke")));
                threads.into_iter().map(|t| t.join().unwrap_or_else(broke)).collect()
            });
            results.into_iter().collect::<Result<(), LoadError>>()?;
        }
        Ok(())
    }

    /// One dump by `pg_restore`, with further options.
    pub fn part(&self, name: &str, stream: &str, jobs: usize, options: &[String]) -> Result<(), LoadError> {
        let staged = match self.stage.dump(self.streams, stream, self.deadline, self.cancel) {
            Ok(staged) => staged,
            Err(StageError::Damaged(why)) => return Err(LoadError::Refused(why)),
            Err(StageError::Other(error)) => return Err(LoadError::Other(error)),
        };
        let mut argv: Vec<String> = ["pg_restore", "--exit-on-error", "--no-password"].map(String::from).into();
        argv.push(format!("--jobs={jobs}"));
        argv.extend(self.options.iter().map(|o| (*o).to_owned()));
        argv.extend(options.iter().cloned());
        argv.extend([dbname_option(name), "--".into(), staged.path.clone()]);
        let command = self.connection.command(argv, self.deadline, self.cancel);
        let (_, exit) = run(self.connection.place(), command, 1 << 20)?;
        match exit.code {
            0 => Ok(()),
            code => {
                Err(LoadError::Refused(format!("{} (pg_restore ended with status {code})", without_data(&exit.stderr))))
            }
        }
    }
}

/// What a tool said, without the lines that hold rows.
fn without_data(stderr: &str) -> String {
    let holds_rows = |line: &&str| {
        let line = line.trim_start();
        ["DETAIL:", "CONTEXT:"].iter().any(|w| line.starts_with(w))
    };
    let kept: Vec<&str> = stderr.lines().filter(|l| !holds_rows(l)).collect();
    one_line(&kept.join("\n"))
}

/// An extension that a server could make.
#[derive(Debug, Deserialize)]
pub(super) struct Available {
    pub name: String,
    pub default_version: Option<String>,
    pub installed: Option<String>,
    pub versions: Vec<String>,
}

/// What can be made in a database of the server.
pub(super) fn available(loader: &Loader<'_>, database: &str) -> Result<Vec<Available>, SourceError> {
    let asked = |e: SessionError| e.into_source(loader.connection, "list the extensions");
    let mut session = Session::open(loader.connection, database, loader.deadline, loader.cancel).map_err(asked)?;
    let found = available_in(&mut session).map_err(asked)?;
    session.close().map_err(asked)?;
    Ok(found)
}

pub(super) fn available_in(session: &mut Session) -> Result<Vec<Available>, SessionError> {
    session.rows(
        "SELECT a.name, a.default_version, a.installed_version AS installed, \
           (SELECT coalesce(array_agg(v.version), '{}') FROM pg_available_extension_versions AS v WHERE v.name = a.name) \
             AS versions FROM pg_available_extensions AS a",
    )
}

/// `CREATE DATABASE`, as the captured one was.
pub(super) fn create_database(name: &str, p: &Properties, version: u32, with_owner: bool) -> String {
    let mut sql = format!(
        "CREATE DATABASE {} WITH TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        identifier(name),
        literal(&p.encoding),
        literal(&p.collate),
        literal(&p.ctype)
    );
    if version >= 150_000 {
        sql += &format!(" LOCALE_PROVIDER {}", identifier(&p.locale_provider));
        match (p.locale_provider.as_str(), &p.locale) {
            ("icu", Some(locale)) => sql += &format!(" ICU_LOCALE {}", literal(locale)),
            ("builtin", Some(locale)) => sql += &format!(" BUILTIN_LOCALE {}", literal(locale)),
            _ => {}
        }
        if let Some(rules) = p.icu_rules.as_ref().filter(|_| version >= 160_000) {
            sql += &format!(" ICU_RULES {}", literal(rules));
        }
    }
    if with_owner {
        sql += &format!(" OWNER {}", identifier(&p.owner));
        if p.tablespace != "pg_default" {
            sql += &format!(" TABLESPACE {}", identifier(&p.tablespace));
        }
    }
    sql + ";\n"
}

/// What lies on the database itself: comment, limit, privileges, settings; as statements for `psql`.
pub(super) fn properties_sql(name: &str, p: &Properties) -> String {
    let database = identifier(name);
    let mut sql = String::new();
    if let Some(comment) = &p.comment {
        sql += &format!("COMMENT ON DATABASE {database} IS {};\n", literal(comment));
    }
    if let Some(acl) = &p.acl {
        sql += &format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC, {};\n", identifier(&p.owner));
        let mut items: Vec<AclItem> = acl.iter().filter_map(|item| acl_item(item)).collect();
        // Who was given the right to grant comes before who was granted by him.
        items.sort_by_key(|item| item.grantor != p.owner);
        for item in &items {
            sql += &grant(&database, &p.owner, item);
        }
    }
    for setting in &p.settings {
        for value in &setting.values {
            let Some((key, value)) = value.split_once('=') else { continue };
            let of = match &setting.role {
                Some(role) => format!("ALTER ROLE {} IN DATABASE {database}", identifier(role)),
                None => format!("ALTER DATABASE {database}"),
            };
            sql += &format!("{of} SET {} TO {};\n", identifier(key), setting_value(key, value));
        }
    }
    if p.connection_limit != -1 {
        sql += &format!("ALTER DATABASE {database} CONNECTION LIMIT {};\n", p.connection_limit);
    }
    sql
}

fn grant(database: &str, owner: &str, item: &AclItem) -> String {
    let names: [(char, &str); 3] = [('C', "CREATE"), ('T', "TEMPORARY"), ('c', "CONNECT")];
    let to = if item.grantee.is_empty() { "PUBLIC".into() } else { identifier(&item.grantee) };
    let mut sql = String::new();
    for (grantable, suffix) in [(false, ""), (true, " WITH GRANT OPTION")] {
        let has = |letter: &char| item.rights.iter().any(|(l, g)| l == letter && *g == grantable);
        let rights: Vec<&str> = names.iter().filter(|(letter, _)| has(letter)).map(|(_, name)| *name).collect();
        if !rights.is_empty() {
            sql += &format!("GRANT {} ON DATABASE {database} TO {to}{suffix};\n", rights.join(", "));
        }
    }
    match item.grantor == owner {
        true => sql,
        false => {
            format!("SET SESSION AUTHORIZATION {};\n{sql}RESET SESSION AUTHORIZATION;\n", identifier(&item.grantor))
        }
    }
}

/// `grantee=rights/grantor`; an empty grantee is everybody.
#[derive(Debug, PartialEq, Eq)]
struct AclItem {
    grantee: String,
    /// Letter, and whether it may be granted further.
    rights: Vec<(char, bool)>,
    grantor: String,
}

fn acl_item(text: &str) -> Option<AclItem> {
    let (grantee, rest) = acl_name(text)?;
    let (rights, rest) = rest.strip_prefix('=')?.split_once('/')?;
    let (grantor, _) = acl_name(rest)?;
    let mut found: Vec<(char, bool)> = Vec::new();
    for letter in rights.chars() {
        match (letter, found.last_mut()) {
            ('*', Some(last)) => last.1 = true,
            ('*', None) => return None,
            (letter, _) => found.push((letter, false)),
        }
    }
    Some(AclItem { grantee, rights: found, grantor })
}

/// A name at the beginning of an item, quoted where it needs to be, and what follows it.
fn acl_name(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(['=', '/']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut at = 0;
    loop {
        let end = at + quoted[at..].find('"')?;
        if quoted[end + 1..].starts_with('"') {
            at = end + 2;
            continue;
        }
        return Some((quoted[..end].replace("\"\"", "\""), &quoted[end + 1..]));
    }
}

/// Settings that are lists of names: the catalog holds them quoted already.
const LISTS: &[&str] = &[
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

fn setting_value(key: &str, value: &str) -> String {
    if !LISTS.contains(&key.to_lowercase().as_str()) {
        return literal(value);
    }
    let mut names = Vec::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let (name, after) = match acl_name(rest).filter(|_| rest.starts_with('"')) {
            Some(found) => found,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        names.push(literal(&name));
        rest = after.trim_start().strip_prefix(',').unwrap_or_default().trim_start();
    }
    if names.is_empty() { "''".into() } else { names.join(", ") }
}

/// The Debian package of an extension, where it is known.
pub(super) fn debian_package(extension: &str, major: u32) -> Option<String> {
    const OWN: &[(&str, &str)] = &[
        ("vector", "pgvector"),
        ("postgis", "postgis-3"),
        ("postgis_raster", "postgis-3"),
        ("postgis_sfcgal", "postgis-3"),
        ("postgis_topology", "postgis-3"),
        ("postgis_tiger_geocoder", "postgis-3"),
        ("address_standardizer", "postgis-3"),
        ("pgrouting", "pgrouting"),
        ("pg_cron", "cron"),
        ("pg_partman", "partman"),
        ("pg_repack", "repack"),
        ("pgaudit", "pgaudit"),
        ("timescaledb", "timescaledb"),
        ("hypopg", "hypopg"),
        ("orafce", "orafce"),
        ("rum", "rum"),
        ("hll", "hll"),
        ("ip4r", "ip4r"),
        ("age", "age"),
        ("pgtap", "pgtap"),
        ("pg_hint_plan", "pg-hint-plan"),
        ("tds_fdw", "tds-fdw"),
        ("mysql_fdw", "mysql-fdw"),
        ("ogr_fdw", "ogr-fdw"),
        ("prefix", "prefix"),
        ("semver", "semver"),
        ("pg_similarity", "similarity"),
        ("debversion", "debversion"),
    ];
    const CONTRIB: &[&str] = &[
        "adminpack",
        "amcheck",
        "autoinc",
        "bloom",
        "btree_gin",
        "btree_gist",
        "citext",
        "cube",
        "dblink",
        "dict_int",
        "dict_xsyn",
        "earthdistance",
        "file_fdw",
        "fuzzystrmatch",
        "hstore",
        "insert_username",
        "intagg",
        "intarray",
        "isn",
        "lo",
        "ltree",
        "moddatetime",
        "old_snapshot",
        "pageinspect",
        "pg_buffercache",
        "pg_freespacemap",
        "pg_prewarm",
        "pg_stat_statements",
        "pg_surgery",
        "pg_trgm",
        "pg_visibility",
        "pg_walinspect",
        "pgcrypto",
        "pgrowlocks",
        "pgstattuple",
        "postgres_fdw",
        "refint",
        "seg",
        "sslinfo",
        "tablefunc",
        "tcn",
        "tsm_system_rows",
        "tsm_system_time",
        "unaccent",
        "uuid-ossp",
        "xml2",
    ];
    if CONTRIB.contains(&extension) {
        return Some(format!("postgresql-{major}"));
    }
    for (prefix, language) in [("plpython3", "plpython3"), ("plperl", "plperl"), ("pltcl", "pltcl")] {
        if extension.starts_with(prefix) {
            return Some(format!("postgresql-{language}-{major}"));
        }
    }
    OWN.iter().find(|(name, _)| *name == extension).map(|(_, package)| format!("postgresql-{major}-{package}"))
}

/// Extensions of a captured database that a server does not have, with the package where it is known.
pub(super) fn missing_extensions(
    captured: &Database,
    available: &[Available],
    major: u32,
) -> BTreeMap<String, Option<String>> {
    let missing = captured.extensions.iter().filter(|e| !available.iter().any(|a| a.name == e.name));
    missing.map(|e| (e.name.clone(), debian_package(&e.name, major))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lists_are_read_as_the_catalog_writes_them() {
        let item = |text| acl_item(text).unwrap();
        assert_eq!(
            item("reader=c/shop"),
            AclItem { grantee: "reader".into(), rights: vec![('c', false)], grantor: "shop".into() }
        );
        assert_eq!(
            item("\"a \"\"b\"=C*T/\"o=/x\""),
            AclItem { grantee: "a \"b".into(), rights: vec![('C', true), ('T', false)], grantor: "o=/x".into() }
        );
        assert_eq!(item("=Tc/shop").grantee, "");
        assert!(acl_item("\"x=c/y").is_none());
    }

    #[test]
    fn lists_of_names_are_not_quoted_twice() {
        assert_eq!(setting_value("search_path", "\"$user\", public, \"a \"\"b\""), "'$user', 'public', 'a \"b'");
        assert_eq!(setting_value("search_path", ""), "''");
        assert_eq!(setting_value("work_mem", "5MB"), "'5MB'");
    }
}
