//! Facts of the whole server: versions, roles, what no dump holds, and the list of its databases.

use super::connection::{APPLICATION_PREFIX, literal};
use super::facts::{Membership, PreparedTransaction, ReplicationSlot, Role, Tablespace};
use super::session::{Session, SessionError};
use serde::Deserialize;

/// What the server says of itself and of this user.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Server {
    pub superuser: bool,
    pub standby: bool,
    pub data_checksums: bool,
    /// Absent: this user may not see it.
    pub shared_preload_libraries: Option<String>,
    /// The user may read password hashes.
    pub reads_passwords: bool,
    /// Settings that make the server pass over damaged pages.
    pub ignores_damage: bool,
}

pub(super) fn server(session: &mut Session) -> Result<Server, SessionError> {
    session.one(
        "SELECT r.rolsuper AS superuser, pg_is_in_recovery() AS standby, \
           current_setting('data_checksums') = 'on' AS data_checksums, \
           (SELECT setting FROM pg_settings WHERE name = 'shared_preload_libraries') AS shared_preload_libraries, \
           has_table_privilege('pg_catalog.pg_authid', 'SELECT') AS reads_passwords, \
           'on' IN (current_setting('zero_damaged_pages', true), current_setting('ignore_checksum_failure', true)) \
             IS TRUE AS ignores_damage \
         FROM pg_roles AS r WHERE r.rolname = current_user",
    )
}

/// A database of the server.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Listed {
    pub name: String,
    pub template: bool,
    pub allows_connections: bool,
}

pub(super) fn databases(session: &mut Session) -> Result<Vec<Listed>, SessionError> {
    session.rows(
        "SELECT datname AS name, datistemplate AS template, datallowconn AS allows_connections \
         FROM pg_database ORDER BY datname COLLATE \"C\"",
    )
}

pub(super) fn roles(session: &mut Session) -> Result<Vec<Role>, SessionError> {
    session.rows(
        "SELECT rolname AS name, rolsuper AS superuser, rolinherit AS inherit, rolcreaterole AS create_role, \
           rolcreatedb AS create_database, rolcanlogin AS login, rolreplication AS replication, \
           rolbypassrls AS bypass_rls, rolconnlimit AS connection_limit, rolvaliduntil::text AS valid_until, \
           rolconfig AS settings \
         FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY rolname COLLATE \"C\"",
    )
}

pub(super) fn memberships(session: &mut Session) -> Result<Vec<Membership>, SessionError> {
    session.rows(
        "SELECT pg_get_userbyid(roleid) AS role, pg_get_userbyid(member) AS member, bool_or(admin_option) AS admin \
         FROM pg_auth_members GROUP BY roleid, member \
         ORDER BY pg_get_userbyid(roleid) COLLATE \"C\", pg_get_userbyid(member) COLLATE \"C\"",
    )
}

pub(super) fn tablespaces(session: &mut Session) -> Result<Vec<Tablespace>, SessionError> {
    session.rows(
        "SELECT spcname AS name, pg_get_userbyid(spcowner) AS owner, pg_tablespace_location(oid) AS location \
         FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY spcname COLLATE \"C\"",
    )
}

pub(super) fn prepared_transactions(session: &mut Session) -> Result<Vec<PreparedTransaction>, SessionError> {
    session.rows(
        "SELECT database, gid AS name, owner, prepared::text AS prepared FROM pg_prepared_xacts ORDER BY prepared, gid",
    )
}

pub(super) fn replication_slots(session: &mut Session) -> Result<Vec<ReplicationSlot>, SessionError> {
    session.rows(
        "SELECT slot_name AS name, slot_type AS kind, database FROM pg_replication_slots ORDER BY slot_name COLLATE \"C\"",
    )
}

/// Sessions of other runs of this program that are open in the server, by their application name.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct OtherRun {
    pub name: String,
    pub sessions: u64,
    pub since: String,
}

pub(super) fn other_runs(session: &mut Session, own: &str) -> Result<Vec<OtherRun>, SessionError> {
    session.rows(&format!(
        "SELECT application_name AS name, count(*) AS sessions, min(backend_start)::text AS since \
         FROM pg_stat_activity WHERE starts_with(application_name, {}) AND application_name <> {} \
           AND backend_type = 'client backend' \
         GROUP BY application_name ORDER BY min(backend_start)",
        literal(APPLICATION_PREFIX),
        literal(own),
    ))
}
