//! The exchange of databases by renaming, and its way back.
//!
//! Nobody may connect meanwhile, and sessions are ended: a rename waits for none. Connections are allowed again
//! whatever happens; a run that was killed in between is followed by another switch or by the way back, and both of
//! them allow connections before they end.

use super::{Admin, Mode, Move, State};
use crate::sources::SourceError;
use crate::sources::placing::Scene;
use crate::sources::postgres::PostgresSource;
use crate::sources::postgres::connection::{identifier, literal};
use crate::sources::postgres::session::{Session, SessionError};
use serde::Deserialize;
use std::time::{Duration, Instant};

/// How long sessions have to end.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Deserialize)]
struct There {
    name: String,
    oid: u64,
    allows_connections: bool,
}

/// What of these names is there.
fn look(session: &mut Session, names: &[&str]) -> Result<Vec<There>, SessionError> {
    let names: Vec<String> = names.iter().map(|n| literal(n)).collect();
    session.rows(&format!(
        "SELECT datname AS name, oid::bigint AS oid, datallowconn AS allows_connections FROM pg_database \
         WHERE datname IN ({}) ORDER BY oid",
        names.join(", ")
    ))
}

fn named<'t>(there: &'t [There], name: &str) -> Option<&'t There> {
    there.iter().find(|t| t.name == name)
}

type Renames = Vec<(String, String)>;

/// What has to be renamed to exchange; nothing where that has been done.
fn forward(state: &State, there: &[There]) -> Result<Renames, SourceError> {
    let mut renames = Vec::new();
    for m in &state.databases {
        let (live, new, old) = (named(there, &m.live), named(there, &m.new), named(there, &m.old));
        match (new, live) {
            (None, Some(_)) if old.is_some() || m.oid.is_none() || state.mode == Mode::Replace => {}
            (None, _) => {
                return Err(SourceError::problem(format!("the prepared database {:?} is not there", m.new)));
            }
            (Some(_), Some(live)) => {
                if m.oid != Some(live.oid) || state.mode == Mode::Replace || old.is_some() {
                    return Err(SourceError::problem(format!(
                        "database {:?} is not the one that was there when this was planned",
                        m.live
                    )));
                }
                renames.push((m.live.clone(), m.old.clone()));
                renames.push((m.new.clone(), m.live.clone()));
            }
            (Some(_), None) => renames.push((m.new.clone(), m.live.clone())),
        }
    }
    Ok(renames)
}

/// What has to be renamed to undo the exchange, as far as it came.
fn backward(state: &State, there: &[There]) -> Result<Renames, SourceError> {
    let mut renames = Vec::new();
    for m in &state.databases {
        let (live, new, old) = (named(there, &m.live), named(there, &m.new), named(there, &m.old));
        let untouched = m.oid.is_some() && live.map(|l| l.oid) == m.oid;
        if untouched {
            continue;
        }
        if state.mode == Mode::Replace && m.oid.is_some() {
            // It was dropped to make room: there is nothing to exchange.
            continue;
        }
        match (old, m.oid) {
            (Some(old), Some(oid)) if old.oid == oid => {
                if live.is_some() {
                    renames.push((m.live.clone(), m.new.clone()));
                }
                renames.push((m.old.clone(), m.live.clone()));
            }
            (_, Some(_)) => {
                return Err(SourceError::problem(format!("the replaced database {:?} is not there any more", m.old)));
            }
            // There was none before.
            (_, None) if live.is_some() && new.is_none() => renames.push((m.live.clone(), m.new.clone())),
            (_, None) => {}
        }
    }
    Ok(renames)
}

/// Ends the sessions in databases that nobody may enter any more, and waits until they have gone.
fn quiet(admin: &Admin<'_>, session: &mut Session, names: &[&str]) -> Result<(), SourceError> {
    #[derive(Deserialize)]
    struct Left {
        left: u64,
    }
    let list: Vec<String> = names.iter().map(|n| literal(n)).collect();
    let sql = format!(
        "SELECT count(*) AS left FROM (SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a \
         WHERE a.datname IN ({}) AND a.pid <> pg_backend_pid() OFFSET 0) AS ended",
        list.join(", ")
    );
    let begin = Instant::now();
    loop {
        admin.cancel.check()?;
        let left: Left = session.one(&sql).map_err(|e| admin.explain(e, "end the sessions of the database"))?;
        if left.left == 0 {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            return Err(SourceError::problem(format!("{} sessions of {} do not end", left.left, names.join(", "))));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn allow(names: &[&str], yes: bool) -> String {
    names.iter().map(|n| format!("ALTER DATABASE {} ALLOW_CONNECTIONS {yes};\n", identifier(n))).collect()
}

/// Does these renames in one transaction while nobody is in; connections are allowed before and after, to all that the
/// state names.
fn rename(
    admin: &Admin<'_>,
    state: &State,
    choose: fn(&State, &[There]) -> Result<Renames, SourceError>,
) -> Result<(), SourceError> {
    let begin = Instant::now();
    let done = attempt(admin, state, choose);
    let opened = open_all(admin, state);
    tracing::debug!(milliseconds = begin.elapsed().as_millis() as u64, "databases exchanged");
    done.and(opened)
}

fn attempt(
    admin: &Admin<'_>,
    state: &State,
    choose: fn(&State, &[There]) -> Result<Renames, SourceError>,
) -> Result<(), SourceError> {
    let asked = |e: SessionError| admin.explain(e, "exchange the databases");
    let mut session = admin.session()?;
    let there = look(&mut session, &state.touched()).map_err(asked)?;
    let renames = choose(state, &there)?;
    if !renames.is_empty() {
        // A name may come up twice: once it goes, and once another comes to it.
        let mut busy: Vec<&str> = Vec::new();
        for (from, _) in &renames {
            if named(&there, from).is_some() && !busy.contains(&from.as_str()) {
                busy.push(from);
            }
        }
        session.execute(&allow(&busy, false)).map_err(asked)?;
        quiet(admin, &mut session, &busy)?;
        let moves: String = renames
            .iter()
            .map(|(from, to)| format!("ALTER DATABASE {} RENAME TO {};\n", identifier(from), identifier(to)))
            .collect();
        // The same commit lets people in again.
        let arrived: Vec<&str> = renames.iter().map(|(_, to)| to.as_str()).collect();
        let opened = allow(&arrived, true);
        session.execute(&format!("BEGIN;\n{moves}{opened}COMMIT;")).map_err(asked)?;
    }
    session.close().map_err(asked)
}

/// Allows connections to whatever is there of a state's databases, also where a run that was killed had forbidden them.
fn open_all(admin: &Admin<'_>, state: &State) -> Result<(), SourceError> {
    let asked = |e: SessionError| admin.explain(e, "allow connections again");
    let mut session = admin.session()?;
    let there = look(&mut session, &state.touched()).map_err(asked)?;
    let closed: Vec<&str> = there.iter().filter(|t| !t.allows_connections).map(|t| t.name.as_str()).collect();
    if !closed.is_empty() {
        session.execute(&allow(&closed, true)).map_err(asked)?;
    }
    session.close().map_err(asked)
}

pub(super) fn switch(source: &PostgresSource, scene: &Scene<'_>, state: &State) -> Result<(), SourceError> {
    let admin = Admin::new(source, scene, &state.touched())?;
    rename(&admin, state, forward)
}

pub(super) fn back(source: &PostgresSource, scene: &Scene<'_>, state: &State) -> Result<(), SourceError> {
    let admin = Admin::new(source, scene, &state.touched())?;
    rename(&admin, state, backward)?;
    if state.mode == Mode::Replace {
        let asked = |e: SessionError| admin.explain(e, "look at the databases");
        let mut session = admin.session()?;
        let there = look(&mut session, &state.touched()).map_err(asked)?;
        session.close().map_err(asked)?;
        for m in state.databases.iter().filter(|m| m.oid.is_some() && named(&there, &m.live).map(|l| l.oid) != m.oid) {
            let text =
                format!("database {:?} was dropped to make room: only the safety snapshot has it as it was", m.live);
            scene.events.warn(scene.name, text);
        }
    }
    Ok(())
}

/// Gives a restored database, whose live one was dropped to make room for it, the live one's name.
pub(super) fn take_place(admin: &Admin<'_>, to: &Move) -> Result<(), SourceError> {
    let sql = format!("ALTER DATABASE {} RENAME TO {};", identifier(&to.new), identifier(&to.live));
    admin.run(&admin.via, &sql, &format!("rename database {:?}", to.new))
}

/// Whether the live database is another than when it was planned.
pub(super) fn is_replaced(admin: &Admin<'_>, to: &Move) -> Result<bool, SourceError> {
    let asked = |e: SessionError| admin.explain(e, "look at the databases");
    let mut session = admin.session()?;
    let there = look(&mut session, &[&to.live]).map_err(asked)?;
    session.close().map_err(asked)?;
    Ok(named(&there, &to.live).is_some_and(|live| Some(live.oid) != to.oid))
}

/// The live databases are the new ones, and let people in.
pub(super) fn confirm(source: &PostgresSource, scene: &Scene<'_>, state: &State) -> Result<(), SourceError> {
    let admin = Admin::new(source, scene, &state.touched())?;
    let asked = |e: SessionError| admin.explain(e, "look at the databases");
    let mut session = admin.session()?;
    let there = look(&mut session, &state.touched()).map_err(asked)?;
    session.close().map_err(asked)?;
    for m in &state.databases {
        let Some(live) = named(&there, &m.live) else {
            return Err(SourceError::problem(format!("database {:?} is not there", m.live)));
        };
        if !live.allows_connections {
            return Err(SourceError::problem(format!("database {:?} allows no connections", m.live)));
        }
        if m.oid == Some(live.oid) {
            return Err(SourceError::problem(format!("database {:?} is the one of before", m.live)));
        }
        if named(&there, &m.new).is_some() {
            return Err(SourceError::problem(format!("the prepared database {:?} is still beside", m.new)));
        }
        admin.run(&m.live, "SELECT 1;", &format!("enter database {:?}", m.live))?;
    }
    Ok(())
}

/// Drops a database, if it is there.
pub(super) fn drop_database(admin: &Admin<'_>, name: &str) -> Result<(), SourceError> {
    let asked = |e: SessionError| admin.explain(e, &format!("drop database {name:?}"));
    let mut session = admin.session()?;
    if !look(&mut session, &[name]).map_err(asked)?.is_empty() {
        session.execute(&allow(&[name], false)).map_err(asked)?;
        let dropped = quiet(admin, &mut session, &[name])
            .and_then(|()| session.execute(&format!("DROP DATABASE {};", identifier(name))).map_err(asked));
        if dropped.is_err() {
            // It stays, so it must be as open as it was.
            drop(session);
            let opened = admin.run(&admin.via, &allow(&[name], true), "allow connections again");
            return dropped.and(opened);
        }
    }
    session.close().map_err(asked)
}

/// Drops what a transaction made or kept; never what is live.
pub(super) fn drop_databases(
    source: &PostgresSource,
    scene: &Scene<'_>,
    state: &State,
    which: fn(&Move) -> &str,
) -> Result<(), SourceError> {
    let admin = Admin::new(source, scene, &state.touched())?;
    for m in &state.databases {
        drop_database(&admin, which(m))?;
    }
    // A switch that was killed may have left the live ones closed.
    match state.mode {
        Mode::Beside | Mode::Tables => Ok(()),
        Mode::Swap | Mode::Replace => open_all(&admin, state),
    }
}
