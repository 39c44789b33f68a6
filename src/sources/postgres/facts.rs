//! What a capture of PostgreSQL says of the server: the shape of `facts` in the manifest.
//!
//! A reader ignores what it does not know. Names are as the server has them; sizes are bytes; an absent value is
//! `null` or left out. All of one database was read in one snapshot, the one that its dump was made from, except where
//! it says otherwise.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `facts` of a postgres source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// `server_version`, such as `15.20 (Debian 15.20-0+deb12u1)`.
    pub server_version: String,
    /// `server_version_num`, such as 150020: major × 10000 + minor.
    pub server_version_num: u32,
    /// The version of the `pg_dump` that wrote the dumps; rows of large tables may have been read without it.
    pub pg_dump_version: String,
    /// The user that captured, and whether it is a superuser.
    pub user: String,
    pub superuser: bool,
    /// The server was a standby.
    pub standby: bool,
    pub data_checksums: bool,
    /// Libraries that the server loads at its start; a drill's server needs them too. Absent: not told to this user.
    pub shared_preload_libraries: Option<String>,
    pub globals: Globals,
    pub roles: Vec<Role>,
    pub memberships: Vec<Membership>,
    pub tablespaces: Vec<Tablespace>,
    /// Transactions that were prepared and not settled: no dump holds them.
    pub prepared_transactions: Vec<PreparedTransaction>,
    /// Replication slots: no dump holds them.
    pub replication_slots: Vec<ReplicationSlot>,
    pub databases: Vec<Database>,
}

/// The stream of roles, memberships and tablespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Globals {
    pub stream: String,
    /// `false`: the user may not read password hashes; roles come back without passwords.
    pub passwords: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Role {
    pub name: String,
    pub superuser: bool,
    pub inherit: bool,
    pub create_role: bool,
    pub create_database: bool,
    pub login: bool,
    pub replication: bool,
    pub bypass_rls: bool,
    pub connection_limit: i64,
    pub valid_until: Option<String>,
    /// `ALTER ROLE … SET`.
    pub settings: Option<Vec<String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Membership {
    pub role: String,
    pub member: String,
    pub admin: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tablespace {
    pub name: String,
    pub owner: String,
    pub location: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PreparedTransaction {
    pub database: String,
    pub name: String,
    pub owner: String,
    pub prepared: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplicationSlot {
    pub name: String,
    /// `physical` or `logical`.
    pub kind: String,
    pub database: Option<String>,
}

/// One database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Database {
    pub name: String,
    /// What has to be loaded, in this order.
    pub parts: Vec<Part>,
    /// The transaction time of the snapshot, by the server's clock.
    pub at: String,
    /// Whether dumps were read to their last block while they were stored, and row counts held against the server's.
    pub proved: bool,
    #[serde(flatten)]
    pub properties: Properties,
    pub schemas: Vec<Schema>,
    pub extensions: Vec<Extension>,
    pub tables: Vec<Table>,
    pub sequences: Vec<Sequence>,
    pub large_objects: LargeObjects,
    pub counts: Counts,
    /// The form of its objects as one text, 32 hex digits: equal ones mean that no migration came between, as long as
    /// the server's major version is the same; see `shape.rs`. Absent in what older versions captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<String>,
    /// What was granted or taken away beyond the defaults. Absent in what older versions captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<Vec<Grant>>,
    /// Where the application's migrations stand.
    pub migrations: Vec<Migrations>,
    pub publications: Vec<String>,
    pub subscriptions: Vec<String>,
    /// Indexes that a failed `CREATE INDEX CONCURRENTLY` left behind, as `schema.name`.
    pub invalid_indexes: Vec<String>,
}

/// One stream of a database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    pub stream: String,
    /// `all`, `pre-data`, `data`, `post-data`.
    pub section: String,
    /// Of a `data` part that holds single tables: which. Absent: everything that no other part holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Vec<QualifiedName>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QualifiedName {
    pub schema: String,
    pub name: String,
}

/// What `pg_restore` without `--create` does not bring back; it is applied to a new database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Properties {
    pub owner: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// `libc`, `icu`, `builtin`.
    pub locale_provider: String,
    /// The ICU or builtin locale.
    pub locale: Option<String>,
    pub icu_rules: Option<String>,
    /// The version of the collation that the database was made with …
    pub collation_version: Option<String>,
    /// … and the one that the server's libraries have.
    pub collation_version_actual: Option<String>,
    pub tablespace: String,
    /// −1: no limit.
    pub connection_limit: i64,
    pub template: bool,
    /// `datacl`; absent: the default.
    pub acl: Option<Vec<String>>,
    pub comment: Option<String>,
    /// `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET`.
    pub settings: Vec<Setting>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setting {
    /// Absent: for every role.
    pub role: Option<String>,
    /// `name=value`.
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Schema {
    pub name: String,
    pub owner: String,
    pub extension: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Extension {
    pub name: String,
    pub version: String,
    pub schema: String,
}

/// A table, partitioned table, view, materialized view or foreign table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub owner: String,
    /// `table`, `partitioned table`, `view`, `materialized view`, `foreign table`.
    pub kind: String,
    /// `permanent`, `unlogged`.
    pub persistence: String,
    /// It is a partition of another table.
    pub partition: bool,
    /// It belongs to this extension, whose own script makes it.
    pub extension: Option<String>,
    /// Of an extension's configuration table: which rows the dump holds, as SQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// How many columns it has. Absent in what older versions captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u64>,
    /// Rows of the table itself, without those of its partitions and children. Absent for what has none in the dump.
    pub rows: Option<u64>,
    /// The content, whatever the order of rows and columns; see `content.rs`. Absent unless `fingerprint = "content"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Size of the table in bytes at that time, without indexes.
    pub bytes: u64,
}

impl Table {
    /// Whether the dump holds its rows.
    pub fn has_data(&self) -> bool {
        self.kind == "table" && (self.extension.is_none() || self.condition.is_some())
    }

    pub(crate) fn key(&self) -> (String, String) {
        (self.schema.clone(), self.name.clone())
    }
}

/// A sequence. Its value does not belong to the snapshot: it is read before and after `pg_dump` read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    pub schema: String,
    pub name: String,
    pub owner: String,
    pub last_value: i64,
    pub is_called: bool,
    /// The value after, when it had moved meanwhile: then the dump's value lies between the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_value_after: Option<i64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LargeObjects {
    pub count: u64,
    /// As for tables; read by superusers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// How many there are of what has no entry of its own, outside the system's schemas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub indexes: u64,
    pub constraints: u64,
    pub functions: u64,
    pub triggers: u64,
    pub types: u64,
    pub policies: u64,
    pub event_triggers: u64,
}

/// The privileges on one object, where they are not the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// `table public.users`, `schema shop`, `function public.f(integer)`, `defaults of shop for r`.
    pub object: String,
    /// By holder, sorted: `reader=SELECT`, `shop=INSERT,SELECT*` (`*`: may grant it further).
    pub holders: Vec<String>,
}

/// The table in which a migration tool keeps what it has applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrations {
    /// `alembic`, `prisma`, `django`, …
    pub tool: String,
    pub schema: String,
    pub table: String,
    pub applied: u64,
    /// The newest, at most 20: what a rollback compares.
    pub head: Vec<String>,
}

impl Facts {
    /// As the manifest holds it.
    pub fn to_value(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_facts_of_postgres() {
        let words = ["{", "}", "[", "]", "\"", ":", ",", "null", "-1", "1e400", "18446744073709551616"];
        crate::base::fuzz::Fuzz::of("postgres-facts").words(&words).run(|bytes| {
            let Ok(facts) = serde_json::from_slice::<Facts>(bytes) else { return };
            let text = serde_json::to_string(&facts).unwrap();
            assert_eq!(serde_json::to_string(&serde_json::from_str::<Facts>(&text).unwrap()).unwrap(), text);
        });
    }
}
