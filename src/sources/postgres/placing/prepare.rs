//! What is made beside the live thing: missing roles, and the captured database under its new name, loaded and counted.

use super::{Admin, Mode, Move, State, facts, ground, swap, tables};
use crate::sources::SourceError;
use crate::sources::placing::{Scene, Stored};
use crate::sources::postgres::connection::identifier;
use crate::sources::postgres::facts::{Database, Facts};
use crate::sources::postgres::load::{LoadError, Loader, properties_sql};
use crate::sources::postgres::script::{self, About};
use crate::sources::postgres::session::SessionError;
use crate::sources::postgres::stage::psql_script;
use crate::sources::postgres::{PostgresSource, catalog, cluster};
use std::io::Read;

/// The most that a script of roles may be.
const SCRIPT_BYTES: u64 = 64 << 20;
/// How many commands load at the same time, beside a live server.
const JOBS: usize = 2;

pub(super) fn prepare(
    source: &PostgresSource,
    scene: &Scene<'_>,
    stored: &Stored<'_>,
    state: &State,
) -> Result<(), SourceError> {
    let facts = facts(stored)?;
    let admin = Admin::new(source, scene, &state.touched())?;
    make_roles(&admin, stored, &facts, state)?;
    let ground = ground::open(source, scene, &admin, state)?;
    let done = databases(source, scene, stored, state, &facts, &admin, &ground);
    // What stays behind is removed with the new databases.
    let cleared = ground::clear(source, scene, state);
    done.and(cleared)
}

fn databases(
    source: &PostgresSource,
    scene: &Scene<'_>,
    stored: &Stored<'_>,
    state: &State,
    facts: &Facts,
    admin: &Admin<'_>,
    ground: &ground::Ground,
) -> Result<(), SourceError> {
    let session = admin.session()?;
    let version = session.version;
    session.close().map_err(|e| admin.explain(e, "ask the server"))?;
    let options: Vec<&str> = state.options.iter().map(String::as_str).collect();
    for to in &state.databases {
        let captured = facts.databases.iter().find(|d| d.name == to.live);
        let Some(captured) = captured else {
            return Err(SourceError::problem(format!("the snapshot has no database {:?}", to.live)));
        };
        scene.events.step(format!("{}: restore database {:?} as {:?}", source.name, to.live, to.new));
        swap::drop_database(admin, &to.new)?;
        if state.mode == Mode::Replace {
            // An earlier attempt may have come to its end; whatever else has the name is not what was planned.
            if swap::is_replaced(admin, to)? && count(admin, captured, &to.live).is_ok() {
                continue;
            }
            swap::drop_database(admin, &to.live)?;
        }
        let loader = Loader {
            connection: &admin.connection,
            stage: &ground.stage,
            streams: stored.streams,
            version,
            jobs: JOBS,
            options: &options,
            with_owners: true,
            deadline: admin.deadline,
            cancel: admin.cancel,
        };
        load(&loader, admin, captured, to)?;
        count(admin, captured, &to.new)?;
        if state.mode == Mode::Tables {
            tables::prepare(admin, ground, state, to)?;
            swap::drop_database(admin, &to.new)?;
        }
        if state.mode == Mode::Replace {
            // Nothing else has the name any more, and what was made is never dropped again.
            swap::take_place(admin, to)?;
        }
    }
    Ok(())
}

fn load(loader: &Loader<'_>, admin: &Admin<'_>, captured: &Database, to: &Move) -> Result<(), SourceError> {
    let mut captured = captured.clone();
    if !to.tablespace {
        captured.properties.tablespace = "pg_default".into();
    }
    let loaded = loader
        .database(&to.new, &admin.via, &captured)
        .and_then(|()| loader.script(&admin.via, &properties_sql(&to.new, &captured.properties)));
    match loaded {
        Ok(()) => Ok(()),
        Err(LoadError::Other(error)) => Err(error),
        Err(LoadError::Refused(why)) => Err(SourceError::problem(format!(
            "restore database {:?} as {:?} on {}: {why}",
            to.live, to.new, admin.connection.server
        ))),
    }
}

/// Every table is there with as many rows as the snapshot says, before anything live is touched.
fn count(admin: &Admin<'_>, captured: &Database, new: &str) -> Result<(), SourceError> {
    let what = format!("count the rows of database {new:?}");
    let within = |e: SessionError| admin.explain(e, &what);
    let mut session = admin.enter(new)?;
    let found = catalog::tables(&mut session).map_err(within)?;
    for table in &captured.tables {
        admin.cancel.check()?;
        let name = tables::name_of(table);
        let Some(there) = found.iter().find(|t| t.key() == table.key()) else {
            return Err(SourceError::problem(format!("the restored database {new:?} has no {} {name}", table.kind)));
        };
        let Some(rows) = table.rows else { continue };
        let mut there = there.clone();
        catalog::count(&mut session, &mut there, None).map_err(within)?;
        if there.rows != Some(rows) {
            let counted = there.rows.unwrap_or(0);
            let problem =
                format!("the restored table {name} of {new:?} has {counted} rows, and the snapshot has {rows}");
            return Err(SourceError::problem(problem));
        }
    }
    session.close().map_err(within)
}

/// Makes the roles that were missing when it was planned and still are: all of them or none, so that none is ever half
/// made. Whatever was there is left alone.
fn make_roles(admin: &Admin<'_>, stored: &Stored<'_>, facts: &Facts, state: &State) -> Result<(), SourceError> {
    if state.roles.is_empty() {
        return Ok(());
    }
    let mut session = admin.session()?;
    let asked = |e: SessionError| admin.explain(e, "list the roles");
    let there = cluster::roles(&mut session).map_err(asked)?;
    let superuser = cluster::server(&mut session).map_err(asked)?.superuser;
    session.close().map_err(asked)?;
    let missing: Vec<&String> = state.roles.iter().filter(|name| !there.iter().any(|r| r.name == **name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let stream = &facts.globals.stream;
    let unreadable = |why: String| SourceError::problem(format!("the roles of the snapshot ({stream}): {why}"));
    let mut bytes = Vec::new();
    let input = stored.streams.open(stream).map_err(|e| unreadable(e.to_string()))?;
    input.take(SCRIPT_BYTES).read_to_end(&mut bytes).map_err(|e| unreadable(e.to_string()))?;
    let statements = script::statements(&bytes).map_err(unreadable)?;
    // Grants need the role that grants, which another server may not have.
    let is_missing = |name: &String| missing.contains(&name);
    let mut sql = b"SET search_path = pg_catalog;\n".to_vec();
    if superuser {
        sql.extend_from_slice(
            b"SET log_min_error_statement = panic;\nSET log_statement = none;\nSET log_min_duration_statement = -1;\n",
        );
    }
    sql.extend_from_slice(b"BEGIN;\n");
    for statement in statements {
        let ours = match script::about(&statement) {
            About::CreateRole(name) | About::Role(name) => is_missing(&name),
            About::Membership { role, member } => is_missing(&role) || is_missing(&member),
            About::Session => true,
            _ => false,
        };
        if ours {
            // Only a superuser may name these, even to say no.
            let reserved: &[&str] = if superuser { &[] } else { &["NOSUPERUSER", "NOREPLICATION", "NOBYPASSRLS"] };
            sql.extend_from_slice(&script::without(&statement, reserved));
            sql.extend_from_slice(b";\n");
        }
    }
    sql.extend_from_slice(b"COMMIT;\n");
    let names: Vec<String> = missing.iter().map(|name| identifier(name)).collect();
    match psql_script(&admin.connection, &admin.via, &sql, admin.deadline, admin.cancel)? {
        Ok(()) => Ok(()),
        Err(said) => {
            Err(SourceError::problem(format!("make roles {} on {}: {said}", names.join(", "), admin.connection.server)))
        }
    }
}
