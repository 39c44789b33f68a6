//! What would be done, and every reason why it cannot be. Changes nothing.

use super::{Admin, Mode, Move, State, TableMove, facts, ground, losses, names, room, tables};
use crate::base::units::human_size;
use crate::place::{HostPlace, Place};
use crate::sources::SourceError;
use crate::sources::device;
use crate::sources::placing::{Intent, Part, Room, Scene, Stored};
use crate::sources::postgres::facts::{Database, Facts, Role};
use crate::sources::postgres::load::{available_in, debian_package};
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::postgres::{PostgresSource, cluster};
use serde::Deserialize;
use std::path::Path;

/// What the plan finds.
#[derive(Default)]
struct Found {
    lines: Vec<String>,
    warnings: Vec<String>,
    /// Reasons why it cannot be done, all of them.
    against: Vec<String>,
    hint: Option<String>,
}

impl Found {
    fn refuse(&mut self, why: impl Into<String>) {
        self.against.push(why.into());
    }
}

pub(super) fn plan(
    source: &PostgresSource,
    scene: &Scene<'_>,
    stored: &Stored<'_>,
    part: &Part,
) -> Result<Intent, SourceError> {
    let facts = facts(stored)?;
    let mode = mode(part)?;
    let databases = chosen(&facts, part, mode)?;
    let live: Vec<&str> = databases.iter().map(|d| d.name.as_str()).collect();
    let admin = Admin::new(source, scene, &live)?;
    let mut session = admin.session()?;
    let asked = |e: SessionError| admin.explain(e, "plan a restore");
    let mut found = Found::default();
    let server = cluster::server(&mut session).map_err(asked)?;
    let there = databases_there(&mut session).map_err(asked)?;
    fits(&facts, &server, &session, &admin, &mut found);
    if part.same_major {
        same_major(&facts, &session, &mut found);
    }
    hindered(&mut session, &databases, mode, &mut found).map_err(asked)?;
    let roles = roles(&mut session, &facts, &mut found).map_err(asked)?;
    extensions(&mut session, &databases, server.superuser, session_major(&facts), &mut found).map_err(asked)?;
    if !server.superuser {
        powers(&mut session, &databases, &roles, &there, &mut found).map_err(asked)?;
        let reserved = |r: &&Role| roles.contains(&r.name) && (r.superuser || r.replication || r.bypass_rls);
        for role in facts.roles.iter().filter(reserved) {
            found.refuse(format!("only a superuser may create the missing role {:?} as it was", role.name));
        }
    }
    let tablespaces = cluster::tablespaces(&mut session).map_err(asked)?;
    let has_tablespace = |name: &str| name == "pg_default" || tablespaces.iter().any(|t| t.name == name);
    let mut options = Vec::new();
    for missing in facts.tablespaces.iter().filter(|t| !has_tablespace(&t.name)) {
        found
            .warnings
            .push(format!("the server has no tablespace {:?}: what lay in it goes where the rest goes", missing.name));
        options = vec!["--no-tablespaces".to_owned()];
    }
    let taken: Vec<String> = there.iter().map(|d| d.name.clone()).collect();
    let move_of = |d: &&Database| Move {
        live: d.name.clone(),
        new: match &part.database_as {
            Some(name) if mode == Mode::Beside => name.clone(),
            _ => names::new(&d.name, scene.id, &taken),
        },
        old: names::old(&d.name, scene.id, scene.now, &taken),
        oid: there.iter().find(|t| t.name == d.name).map(|t| t.oid),
        tablespace: options.is_empty() && has_tablespace(&d.properties.tablespace),
    };
    let moves: Vec<Move> = databases.iter().map(move_of).collect();
    let mut state = State {
        mode,
        databases: moves,
        roles,
        options,
        stage: String::new(),
        tables: Vec::new(),
        schema_new: names::schema("new", scene.id),
        schema_old: names::schema("old", scene.id),
    };
    match mode {
        Mode::Tables => state.tables = plan_tables(&admin, &databases, part, &state, &mut found)?,
        _ => told(&state, &taken, &mut found),
    }
    let data_directory = room::data_directory(&mut session);
    session.close().map_err(asked)?;
    refuse(&admin, &mut found)?;
    let wanted = losses::Wanted { mode, databases: &databases, moves: &state.databases, part };
    let leaving = losses::look(&admin, &facts, &wanted);
    found.lines.extend(leaving.lines);
    found.warnings.extend(leaving.warnings);
    scene.cancel.check()?;
    let (stage, rooms) = rooms(source, scene, stored, &admin, &databases, data_directory.as_deref());
    state.stage = stage;
    Ok(Intent {
        source: scene.name.clone(),
        kind: "postgres".into(),
        lines: found.lines,
        warnings: found.warnings,
        room: rooms,
        losses: leaving.losses,
        restarts: Vec::new(),
        state: serde_json::to_value(&state)
            .map_err(|e| SourceError::problem(format!("the plan cannot be written: {e}")))?,
    })
}

fn mode(part: &Part) -> Result<Mode, SourceError> {
    if part.flush {
        return Err(SourceError::problem("a database server's databases are not emptied, only put back"));
    }
    match (&part.database_as, part.tables.is_empty(), part.replace) {
        (None, true, false) => Ok(Mode::Swap),
        (None, true, true) => Ok(Mode::Replace),
        (Some(name), true, false) if !name.is_empty() && name.len() <= 63 => Ok(Mode::Beside),
        (Some(name), true, false) => Err(SourceError::problem(format!("{name:?} is no name of a database"))),
        (None, false, false) => Ok(Mode::Tables),
        _ => Err(SourceError::problem(
            "single tables, another database and a replacement are three different things: ask for one",
        )),
    }
}

/// The captured databases that are meant.
fn chosen<'f>(facts: &'f Facts, part: &Part, mode: Mode) -> Result<Vec<&'f Database>, SourceError> {
    if facts.databases.is_empty() {
        return Err(SourceError::problem("the snapshot has no database of this source"));
    }
    match mode {
        Mode::Swap | Mode::Replace => Ok(facts.databases.iter().collect()),
        Mode::Beside => match facts.databases.as_slice() {
            [one] => Ok(vec![one]),
            several => {
                let names: Vec<&str> = several.iter().map(|d| d.name.as_str()).collect();
                Err(SourceError::hint(
                    format!("the snapshot has several databases of this source: {}", names.join(", ")),
                    "restore them with --into, and load the one that is wanted",
                ))
            }
        },
        Mode::Tables => {
            let has = |d: &&Database| part.tables.iter().all(|t| d.tables.iter().any(|x| tables::name_of(x) == *t));
            let with: Vec<&Database> = facts.databases.iter().filter(has).collect();
            match with.as_slice() {
                [one] => Ok(vec![one]),
                [] => Err(SourceError::hint(
                    format!("no database of the snapshot has {}", part.tables.join(" and ")),
                    "write a table as schema.name, as `lifeboat show` lists it",
                )),
                several => {
                    let names: Vec<&str> = several.iter().map(|d| d.name.as_str()).collect();
                    let problem = format!("{} is in several databases: {}", part.tables.join(", "), names.join(", "));
                    Err(SourceError::problem(problem))
                }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
struct There {
    name: String,
    oid: u64,
    mine: bool,
}

fn databases_there(session: &mut Session) -> Result<Vec<There>, SessionError> {
    session.rows("SELECT datname AS name, oid::bigint AS oid, pg_has_role(datdba, 'USAGE') AS mine FROM pg_database")
}

fn session_major(facts: &Facts) -> u32 {
    facts.server_version_num / 10_000
}

/// Whether this server can take the dumps at all.
fn fits(facts: &Facts, server: &cluster::Server, session: &Session, admin: &Admin<'_>, found: &mut Found) {
    let (own, captured) = (session.version / 10_000, session_major(facts));
    if own < captured {
        let text = &session.version_text;
        found.refuse(format!("the server is PostgreSQL {text}, older than the dump's {captured}"));
        found.hint = Some(format!("upgrade the server to PostgreSQL {captured}; a dump is not read by an older one"));
    } else if own > captured {
        found.warnings.push(format!("the dump is of PostgreSQL {captured}, and the server is {own} by now"));
    }
    if server.standby {
        found.refuse("the server is a standby: nothing can be written there");
        found.hint = Some("name the primary in the policy".into());
    }
    let tool = admin.connection.tool_version("pg_restore", admin.deadline, admin.cancel);
    let dumped = facts.pg_dump_version.split('.').next().and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
    match tool {
        Ok((_, major)) if major >= dumped => {}
        Ok((version, _)) => found.refuse(format!(
            "pg_restore {version} in {} is older than the pg_dump {} that made the dump",
            admin.connection.place().describe(),
            facts.pg_dump_version
        )),
        Err(error) => found.refuse(error.to_string()),
    }
}

/// A server is never started on a data folder of a newer major version.
fn same_major(facts: &Facts, session: &Session, found: &mut Found) {
    let (own, captured) = (session.version / 10_000, session_major(facts));
    if own != captured {
        found.refuse(format!(
            "the server is PostgreSQL {own}, and the snapshot is of {captured}: the server that comes back with it would not start on the data folder of today"
        ));
        found.hint = Some(
            "--new-data-dir gives it a cluster of its own, filled from the dump, and keeps the data folder of today; where it is not the compose project's, --keep-data leaves it as it is"
                .into(),
        );
    }
}

/// What keeps a database where it is.
fn hindered(session: &mut Session, databases: &[&Database], mode: Mode, found: &mut Found) -> Result<(), SessionError> {
    if matches!(mode, Mode::Beside | Mode::Tables) {
        return Ok(());
    }
    let ours = |name: Option<&str>| name.is_some_and(|n| databases.iter().any(|d| d.name == n));
    for t in cluster::prepared_transactions(session)?.iter().filter(|t| ours(Some(&t.database))) {
        found.refuse(format!(
            "database {:?} has the prepared transaction {:?}: commit or roll it back first",
            t.database, t.name
        ));
    }
    for slot in cluster::replication_slots(session)?.iter().filter(|s| ours(s.database.as_deref())) {
        let database = slot.database.as_deref().unwrap_or_default();
        found.refuse(format!(
            "database {database:?} has the logical replication slot {:?}, which would stay with the replaced one: drop it first",
            slot.name
        ));
    }
    #[derive(Deserialize)]
    struct Subscription {
        name: String,
        database: String,
    }
    let subscriptions: Vec<Subscription> = session.rows(
        "SELECT s.subname AS name, d.datname AS database FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid",
    )?;
    for s in subscriptions.iter().filter(|s| ours(Some(&s.database))) {
        found.refuse(format!(
            "database {:?} has the subscription {:?}, which would stay with the replaced one: drop it first",
            s.database, s.name
        ));
    }
    Ok(())
}

/// Roles that are missing; what differs of the others is told, and stays.
fn roles(session: &mut Session, facts: &Facts, found: &mut Found) -> Result<Vec<String>, SessionError> {
    let live = cluster::roles(session)?;
    let mut missing = Vec::new();
    for captured in &facts.roles {
        match live.iter().find(|r| r.name == captured.name) {
            None => missing.push(captured.name.clone()),
            Some(live) => {
                let differ = differences(captured, live);
                if !differ.is_empty() {
                    let name = &captured.name;
                    found
                        .warnings
                        .push(format!("role {name:?} stays as it is; the snapshot has it with {}", differ.join(", ")));
                }
            }
        }
    }
    let memberships = cluster::memberships(session)?;
    for m in &facts.memberships {
        let has = memberships.iter().any(|l| l.role == m.role && l.member == m.member);
        if !has && !missing.contains(&m.role) && !missing.contains(&m.member) {
            found.warnings.push(format!(
                "role {:?} is no member of {:?} today, as in the snapshot; that stays",
                m.member, m.role
            ));
        }
    }
    if !missing.is_empty() {
        found.lines.push(format!("roles that the server does not have are made: {}", missing.join(", ")));
        if !facts.globals.passwords {
            found.warnings.push("these roles come without a password: the snapshot was not allowed to read any".into());
        }
    }
    Ok(missing)
}

fn differences(captured: &Role, live: &Role) -> Vec<String> {
    let mut differ = Vec::new();
    for (name, then, now) in [
        ("superuser", captured.superuser, live.superuser),
        ("createrole", captured.create_role, live.create_role),
        ("createdb", captured.create_database, live.create_database),
        ("login", captured.login, live.login),
        ("replication", captured.replication, live.replication),
        ("bypassrls", captured.bypass_rls, live.bypass_rls),
        ("inherit", captured.inherit, live.inherit),
    ] {
        if then != now {
            differ.push(if then { name.to_owned() } else { format!("no {name}") });
        }
    }
    if captured.connection_limit != live.connection_limit {
        differ.push(format!("connection limit {}", captured.connection_limit));
    }
    if captured.settings != live.settings {
        differ.push("other settings".into());
    }
    differ
}

fn extensions(
    session: &mut Session,
    databases: &[&Database],
    superuser: bool,
    major: u32,
    found: &mut Found,
) -> Result<(), SessionError> {
    let available = available_in(session)?;
    #[derive(Deserialize)]
    struct Trusted {
        name: String,
    }
    let trusted: Vec<Trusted> = session.rows(
        "SELECT DISTINCT v.name FROM pg_available_extension_versions AS v, LATERAL to_jsonb(v) AS j \
         WHERE NOT v.superuser OR j ->> 'trusted' = 'true'",
    )?;
    for database in databases {
        for extension in &database.extensions {
            let name = &extension.name;
            if !available.iter().any(|a| a.name == *name) {
                let package = debian_package(name, major).map(|p| format!(" (Debian: {p})")).unwrap_or_default();
                found.refuse(format!("the server has no extension {name:?}{package}"));
            } else if !superuser && name != "plpgsql" && !trusted.iter().any(|t| t.name == *name) {
                found.refuse(format!("only a superuser may make extension {name:?}"));
            }
        }
    }
    Ok(())
}

/// What this user may not do, where it is no superuser.
fn powers(
    session: &mut Session,
    databases: &[&Database],
    missing_roles: &[String],
    there: &[There],
    found: &mut Found,
) -> Result<(), SessionError> {
    #[derive(Deserialize)]
    struct Own {
        name: String,
        create_database: bool,
        create_role: bool,
        signals: bool,
    }
    let own: Own = session.one(
        "SELECT rolname AS name, rolcreatedb AS create_database, rolcreaterole AS create_role, \
           pg_has_role('pg_signal_backend', 'USAGE') AS signals FROM pg_roles WHERE rolname = current_user",
    )?;
    let name = &own.name;
    if !own.create_database {
        found.refuse(format!("user {name:?} may not create databases"));
    }
    if !own.create_role && !missing_roles.is_empty() {
        found.refuse(format!("user {name:?} may not create the missing roles {}", missing_roles.join(", ")));
    }
    if !own.signals {
        found.warnings.push(format!(
            "user {name:?} may end sessions of its own roles only: others in the database would stop the exchange"
        ));
    }
    for database in databases {
        if there.iter().any(|t| t.name == database.name && !t.mine) {
            found.refuse(format!("user {name:?} does not own database {:?}", database.name));
        }
    }
    #[derive(Deserialize)]
    struct Member {
        name: String,
    }
    let members: Vec<Member> = session.rows("SELECT rolname AS name FROM pg_roles WHERE pg_has_role(oid, 'MEMBER')")?;
    let mut owners: Vec<&String> = Vec::new();
    for database in databases {
        let of_tables = database.tables.iter().filter(|t| t.extension.is_none()).map(|t| &t.owner);
        for owner in std::iter::once(&database.properties.owner).chain(of_tables) {
            if !owners.contains(&owner) && !members.iter().any(|m| m.name == *owner) {
                owners.push(owner);
            }
        }
    }
    for owner in owners {
        found.refuse(format!("user {name:?} is no member of role {owner:?}, which owns what is restored"));
    }
    if !found.against.is_empty() && found.hint.is_none() {
        found.hint = Some(
            "name a superuser in the policy (user = …), or give this one CREATEDB and membership of the owners".into(),
        );
    }
    Ok(())
}

fn told(state: &State, taken: &[String], found: &mut Found) {
    for m in &state.databases {
        let (live, new, old) = (&m.live, &m.new, &m.old);
        match state.mode {
            Mode::Beside if taken.contains(new) => {
                found.refuse(format!("there is a database {new:?} already"));
                found.hint = Some("choose another name".into());
            }
            Mode::Beside => {
                found.lines.push(format!("database {live:?} is restored as {new:?}; the live one is not touched"))
            }
            Mode::Replace if m.oid.is_some() => {
                found.lines.push(format!("database {live:?} is dropped, then restored"));
                found.warnings.push(format!(
                    "database {live:?} is dropped before its replacement is there: until then, and if that fails, only the safety snapshot has it"
                ));
            }
            _ if m.oid.is_some() => {
                found.lines.push(format!("database {live:?} is replaced; the one of today stays as {old:?}"));
            }
            _ => found.lines.push(format!("database {live:?}, which is not there today, is made")),
        }
    }
}

fn plan_tables(
    admin: &Admin<'_>,
    databases: &[&Database],
    part: &Part,
    state: &State,
    found: &mut Found,
) -> Result<Vec<TableMove>, SourceError> {
    let (Some(database), Some(to)) = (databases.first(), state.databases.first()) else { return Ok(Vec::new()) };
    if to.oid.is_none() {
        found.refuse(format!("there is no database {:?} that tables could be put into", to.live));
        return Ok(Vec::new());
    }
    let mut wanted = Vec::new();
    for table in database.tables.iter().filter(|t| part.tables.contains(&tables::name_of(t))) {
        if table.kind != "table" || table.partition || table.extension.is_some() {
            let name = tables::name_of(table);
            let what = match (&table.extension, table.partition) {
                (Some(extension), _) => format!("belongs to extension {extension}"),
                (None, true) => "is a partition".into(),
                (None, false) => format!("is a {}", table.kind),
            };
            found.refuse(format!("{name} {what}, and cannot be exchanged alone"));
            continue;
        }
        wanted.push((table.schema.clone(), table.name.clone()));
    }
    let moves = tables::look(admin, &to.live, &wanted, &mut |why| found.refuse(why))?;
    for m in &moves {
        let name = format!("{}.{}", m.schema, m.name);
        found.lines.push(match m.oid {
            Some(_) => format!(
                "table {name} of database {:?} is replaced; the one of today stays in schema {:?}",
                to.live, state.schema_old
            ),
            None => format!("table {name} of database {:?}, which is not there today, is made", to.live),
        });
    }
    if !found.against.is_empty() && found.hint.is_none() {
        found.hint = Some("restore the database beside with --database-as, and take from it what is wanted".into());
    }
    Ok(moves)
}

fn refuse(admin: &Admin<'_>, found: &mut Found) -> Result<(), SourceError> {
    if found.against.is_empty() {
        return Ok(());
    }
    found.against.dedup();
    Err(SourceError::Problem {
        problem: format!("cannot restore into {}: {}", admin.connection.server, found.against.join("; ")),
        hint: found.hint.take(),
    })
}

/// The folder for dumps, and the room that is needed and there.
fn rooms(
    source: &PostgresSource,
    scene: &Scene<'_>,
    stored: &Stored<'_>,
    admin: &Admin<'_>,
    databases: &[&Database],
    data_directory: Option<&str>,
) -> (String, Vec<Room>) {
    let listed = stored.streams.list();
    let length = |d: &&Database| -> u64 {
        let of_part = |p: &crate::sources::postgres::facts::Part| {
            listed.iter().find(|s| s.name == p.stream).map_or(0, |s| s.length)
        };
        d.parts.iter().map(of_part).sum()
    };
    // One after the other is laid out, and removed when it has been loaded.
    let dumps = databases.iter().map(length).max().unwrap_or(0);
    let (stage, free) = ground::choose(source, scene, admin, dumps, data_directory);
    let place = admin.connection.place().describe();
    let bytes: u64 = databases.iter().map(|d| room::needed(d)).sum();
    let data_free = data_directory.filter(|_| admin.connection.is_local()).and_then(|dir| room::free_in(admin, dir));
    let data = data_directory.unwrap_or("the server's data folder");
    tracing::debug!(needed = human_size(bytes), dumps = human_size(dumps), "room for a restore");
    // Of a server of this host both are paths of this machine.
    let on_this_host = place == HostPlace::new().describe() && admin.connection.is_local();
    let docker = scene.places.docker();
    let container = scene.places.find(&source.spec.target).ok().and_then(|found| found.container);
    let device_of = |dir: &str| match (&docker, &container) {
        (Ok(docker), Some(container)) => {
            device::of_container(docker, container, admin.connection.place(), Path::new(dir), scene.cancel)
        }
        _ => Room::device_of(Path::new(dir)).filter(|_| on_this_host),
    };
    // The folder for dumps is made later, in one that is there.
    let base = Path::new(&stage).parent().and_then(Path::to_str).unwrap_or(&stage);
    let rooms = vec![
        Room {
            place: format!("{data} of {}", admin.connection.server),
            bytes_needed: bytes,
            device: data_directory.and_then(device_of),
            bytes_free: data_free,
        },
        Room { place: format!("{stage} in {place}"), bytes_needed: dumps, device: device_of(base), bytes_free: free },
    ];
    (stage, rooms)
}
