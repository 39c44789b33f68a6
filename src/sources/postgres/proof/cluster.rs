//! What belongs to the whole server: roles, memberships, tablespaces, and the list of databases.

use super::server::{Ask, Server};
use super::things::{Things, Traits, count, list, yes};
use crate::sources::SourceError;
use crate::sources::postgres::cluster;
use crate::sources::postgres::connection::{identifier, literal};
use crate::sources::postgres::facts::{Membership, Role, Tablespace};
use crate::sources::postgres::script::{self, About};
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::postgres::stage::psql_script;
use crate::sources::proof::{Check, Proof};
use std::io::Read;

/// The most that a script of roles may be.
const SCRIPT_BYTES: u64 = 64 << 20;
const ROLES: &str = "roles";

/// Makes the roles and tablespaces of the snapshot. What does not load is a failed check.
pub(super) fn load(ask: &Ask<'_>, server: &Server, proof: &mut Proof) -> Result<(), SourceError> {
    if !server.has_roles() {
        return Ok(());
    }
    let bytes = match read(ask) {
        Ok(bytes) => bytes,
        Err(error) => {
            ask.trial.cancel.check()?;
            proof.add(failed(ask, error));
            return Ok(());
        }
    };
    let script = match assemble(ask, server, &bytes)? {
        Ok(script) => script,
        Err(why) => {
            proof.add(failed(ask, format!("{}: {why}", ask.facts.globals.stream)));
            return Ok(());
        }
    };
    if let Err(said) = psql_script(&server.connection, "template1", &script, ask.deadline, ask.trial.cancel)? {
        proof.add(failed(ask, said));
    }
    Ok(())
}

fn failed(ask: &Ask<'_>, why: String) -> Check {
    Check::failed("restore", ROLES, count(ask.facts.roles.len(), "role", "roles"), "not all of them", why)
}

fn read(ask: &Ask<'_>) -> Result<Vec<u8>, String> {
    let stream = &ask.facts.globals.stream;
    let info = ask.trial.streams.info(stream).map_err(|e| e.to_string())?;
    if info.length > SCRIPT_BYTES {
        return Err(format!("{stream} has {} bytes", info.length));
    }
    let mut bytes = Vec::new();
    let input = ask.trial.streams.open(stream).map_err(|e| format!("{stream}: {e}"))?;
    input.take(SCRIPT_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("{stream}: {e}"))?;
    match bytes.len() as u64 == info.length {
        true => Ok(bytes),
        false => Err(format!("{stream}: {} bytes came, and the snapshot has {}", bytes.len(), info.length)),
    }
}

/// The script as it can run here: the role that the server was made with is there already, tablespaces lie in folders of
/// the drill's own, and what concerns one database is applied with it.
fn assemble(ask: &Ask<'_>, server: &Server, bytes: &[u8]) -> Result<Result<Vec<u8>, String>, SourceError> {
    let statements = match script::statements(bytes) {
        Ok(statements) => statements,
        Err(why) => return Ok(Err(why)),
    };
    let mut out = Vec::new();
    for statement in statements {
        match script::about(&statement) {
            About::CreateRole(name) if name == ask.bootstrap() => continue,
            About::RoleInDatabase => continue,
            About::CreateTablespace(name) => {
                let Some(number) = ask.facts.tablespaces.iter().position(|t| t.name == name) else { continue };
                let owner = &ask.facts.tablespaces[number].owner;
                if let Some(folder) = server.tablespace_folder(ask, number)? {
                    let made = format!(
                        "CREATE TABLESPACE {} OWNER {} LOCATION {}",
                        identifier(&name),
                        identifier(owner),
                        literal(&folder)
                    );
                    out.extend_from_slice(made.as_bytes());
                }
            }
            _ => out.extend_from_slice(&statement),
        }
        out.extend_from_slice(b";\n");
    }
    Ok(Ok(out))
}

fn role(r: &Role) -> Traits {
    vec![
        ("superuser", yes(r.superuser)),
        ("inherit", yes(r.inherit)),
        ("create role", yes(r.create_role)),
        ("create database", yes(r.create_database)),
        ("login", yes(r.login)),
        ("replication", yes(r.replication)),
        ("bypass rls", yes(r.bypass_rls)),
        ("connection limit", r.connection_limit.to_string()),
        ("valid until", r.valid_until.clone().unwrap_or_default()),
        ("settings", list(r.settings.as_deref().unwrap_or_default())),
    ]
}

fn roles(all: &[Role], own: Option<&str>) -> Things {
    all.iter().filter(|r| Some(r.name.as_str()) != own).map(|r| (r.name.clone(), role(r))).collect()
}

fn memberships(all: &[Membership]) -> Things {
    all.iter().map(|m| (format!("{} in {}", m.member, m.role), vec![("admin", yes(m.admin))])).collect()
}

fn tablespaces(all: &[Tablespace]) -> Things {
    all.iter().map(|t| (t.name.clone(), vec![("owner", t.owner.clone())])).collect()
}

/// Holds what the server has against the facts.
pub(super) fn compare(ask: &Ask<'_>, server: &Server, proof: &mut Proof) -> Result<(), SourceError> {
    let facts = ask.facts;
    if !server.has_roles() {
        let why = "the scratch server has roles of its own";
        for name in [ROLES, "memberships"] {
            proof.add(Check::skipped(name, "", why));
        }
        return Ok(());
    }
    let asked = |e: SessionError| e.into_source(&server.connection, "ask the server of the drill");
    let mut session = Session::open(&server.connection, "template1", ask.deadline, ask.trial.cancel).map_err(asked)?;
    let found_roles = cluster::roles(&mut session).map_err(asked)?;
    let found_memberships = cluster::memberships(&mut session).map_err(asked)?;
    let found_tablespaces = cluster::tablespaces(&mut session).map_err(asked)?;
    let found_databases = cluster::databases(&mut session).map_err(asked)?;
    session.close().map_err(asked)?;
    let mut check = |name: &str, one: &str, many: &str, expected: Things, found: Things| {
        let differences = expected.differences(&found);
        proof.add(Check::of(name, "", count(expected.len(), one, many), count(found.len(), one, many), differences));
    };
    check(ROLES, "role", "roles", roles(&facts.roles, None), roles(&found_roles, Some(&server.own_role)));
    let (expected, found) = (memberships(&facts.memberships), memberships(&found_memberships));
    check("memberships", "membership", "memberships", expected, found);
    if !facts.tablespaces.is_empty() {
        let (expected, found) = (tablespaces(&facts.tablespaces), tablespaces(&found_tablespaces));
        check("tablespaces", "tablespace", "tablespaces", expected, found);
    }
    let expected = facts.databases.iter().map(|d| (d.name.clone(), Vec::new())).collect();
    let found = found_databases.into_iter().filter(|d| !d.name.starts_with("template")).map(|d| (d.name, Vec::new()));
    check("databases", "database", "databases", expected, found.collect());
    Ok(())
}
