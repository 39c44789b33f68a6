//! What the tests share: a rich database, its capture, and a drill of it.

use crate::postgres::PostgresServer;
use crate::taken::{Taken, silence};
use lifeboat::base::cancel::Cancel;
use lifeboat::policy::model::{
    App, Databases, Drill, DrillCheck, DrillPostgres, Fingerprint, OnRollback, PostgresSpec, SourcePolicy, SourceSpec,
    Target,
};
use lifeboat::sources::SourceError;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::{Limits, PostgresProof, PostgresSource};
use lifeboat::sources::project::Places;
use lifeboat::sources::proof::{Check, Proof, Prove, Trial, Verdict};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One of everything that a dump may lose.
pub const SHOP: &str = r#"
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE SCHEMA "Odd schema";
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE users (id serial PRIMARY KEY, email citext UNIQUE NOT NULL, mood mood DEFAULT 'ok', note text, doc jsonb);
INSERT INTO users (email, note, doc)
  SELECT 'user' || i || '@example.org', 'note ' || md5(i::text), jsonb_build_object('i', i) FROM generate_series(1, 1000) AS i;
CREATE INDEX users_note ON users (note);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, user_id int REFERENCES users, day date NOT NULL, PRIMARY KEY (id, day))
  PARTITION BY RANGE (day);
CREATE TABLE orders_2026 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO orders (user_id, day) SELECT i % 1000 + 1, '2026-01-01'::date + i % 60 FROM generate_series(1, 3000) AS i;
CREATE TABLE "Odd schema"."T ""x"" $(id)" ("Col umn" int, "SELECT" text);
INSERT INTO "Odd schema"."T ""x"" $(id)" VALUES (1, 'one'), (NULL, NULL);
CREATE TABLE parent (a int); CREATE TABLE child (c int) INHERITS (parent); ALTER TABLE parent ADD COLUMN z text DEFAULT 'z';
INSERT INTO child VALUES (1, 2), (3, 4);
CREATE UNLOGGED TABLE cache (k text);
CREATE MATERIALIZED VIEW totals AS SELECT user_id, count(*) FROM orders GROUP BY user_id;
CREATE VIEW recent AS SELECT * FROM orders WHERE day > '2026-02-01';
CREATE SEQUENCE counter START 7; SELECT nextval('counter');
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY); INSERT INTO alembic_version VALUES ('3f2a');
SELECT lo_from_bytea(4711, 'large object one'::bytea), lo_from_bytea(4712, decode(repeat('00ff', 5000), 'hex'));
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE FUNCTION lonely(i int) RETURNS int LANGUAGE sql AS 'SELECT i';
CREATE TRIGGER touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch();
ALTER TABLE users ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON users USING (true);
ALTER TABLE users OWNER TO lb_owner; ALTER TABLE "Odd schema"."T ""x"" $(id)" OWNER TO "lb odd ""role""";
GRANT SELECT ON users TO lb_reader; GRANT UPDATE (note) ON users TO lb_reader; GRANT USAGE ON SCHEMA "Odd schema" TO lb_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE lb_owner IN SCHEMA public GRANT SELECT ON TABLES TO lb_reader;
REVOKE EXECUTE ON FUNCTION lonely(int) FROM PUBLIC;
CREATE PUBLICATION news FOR TABLE users;
"#;

/// A server with the roles and the database `shop`, and a template of it.
pub fn shop() -> PostgresServer {
    let server = PostgresServer::start_with(&[], &["-c", "wal_level=logical"]);
    server.sql(
        "postgres",
        "CREATE ROLE lb_owner LOGIN PASSWORD 'x'; CREATE ROLE lb_reader; CREATE ROLE \"lb odd \"\"role\"\"\" CONNECTION LIMIT 3; \
         GRANT lb_reader TO lb_owner WITH ADMIN OPTION; ALTER ROLE lb_owner SET work_mem = '6MB'; \
         COMMENT ON ROLE lb_owner IS 'owns; $$ it''s'",
    );
    server.create("pristine");
    server.sql("pristine", SHOP);
    fresh(&server);
    server
}

/// `shop` as it was at first.
pub fn fresh(server: &PostgresServer) {
    server.sql("postgres", "DROP DATABASE IF EXISTS shop");
    server.sql("postgres", "CREATE DATABASE shop TEMPLATE pristine OWNER lb_owner");
    server.sql(
        "postgres",
        "ALTER DATABASE shop SET work_mem = '5MB'; ALTER DATABASE shop SET search_path = \"$user\", public; \
         ALTER ROLE lb_reader IN DATABASE shop SET statement_timeout = '7s'; ALTER DATABASE shop CONNECTION LIMIT 42; \
         COMMENT ON DATABASE shop IS 'it''s the shop'; REVOKE CONNECT ON DATABASE shop FROM PUBLIC; \
         GRANT CONNECT ON DATABASE shop TO lb_reader WITH GRANT OPTION",
    );
}

pub fn host() -> Locate {
    Arc::new(|_| Ok(Located::host()))
}

pub fn spec(target: Target) -> PostgresSpec {
    PostgresSpec {
        target,
        user: None,
        databases: Databases::Own,
        password_from: None,
        fingerprint: Fingerprint::Content,
        jobs: 2,
    }
}

pub fn capture(server: &PostgresServer, databases: &[&str]) -> Taken {
    let mut spec = spec(Target::Url(server.socket_url("postgres", "postgres")));
    spec.databases = Databases::Named(databases.iter().map(|d| (*d).to_owned()).collect());
    capture_as(spec, Limits::default())
}

pub fn capture_as(spec: PostgresSpec, limits: Limits) -> Taken {
    Taken::of(&PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), host()).with_limits(limits))
}

/// How a drill is made.
pub struct Setup {
    pub drill: Drill,
    pub source: Option<SourcePolicy>,
    pub app: App,
    pub cancel: Cancel,
    pub timeout: Duration,
}

impl Setup {
    pub fn local() -> Self {
        Self::with(DrillPostgres::Local)
    }

    pub fn with(postgres: DrillPostgres) -> Self {
        Self {
            drill: Drill { postgres, memory: 512 << 20, max_age: Duration::from_secs(60), checks: Vec::new() },
            source: None,
            app: App {
                name: "test".parse().unwrap(),
                root: "/nowhere".into(),
                compose_files: Vec::new(),
                env_files: Vec::new(),
                profiles: Vec::new(),
                project: None,
                project_dir: None,
            },
            cancel: Cancel::new(),
            timeout: Duration::from_secs(300),
        }
    }

    pub fn source(mut self, spec: PostgresSpec) -> Self {
        self.source = Some(SourcePolicy {
            name: "db".parse().unwrap(),
            on_rollback: OnRollback::Restore,
            implicit: false,
            optional: false,
            timeout: Duration::from_secs(600),
            spec: SourceSpec::Postgres(spec),
        });
        self
    }

    pub fn check(mut self, sql: &str, database: Option<&str>) -> Self {
        let (source, database) = ("db".parse().unwrap(), database.map(str::to_owned));
        self.drill.checks.push(DrillCheck { source, sql: sql.into(), database });
        self
    }

    pub fn try_prove(&self, taken: &Taken) -> Result<Proof, SourceError> {
        let scratch = tempfile::Builder::new().prefix("lb-").tempdir().unwrap();
        let result = self.prove_in(taken, scratch.path());
        let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "nothing stays in the scratch folder: {left:?}");
        result
    }

    pub fn prove_in(&self, taken: &Taken, scratch: &Path) -> Result<Proof, SourceError> {
        let (places, events) = (Places::new(&self.app, &self.cancel), silence());
        let now = chrono::Utc::now();
        PostgresProof.prove(&Trial {
            name: &taken.name,
            streams: taken,
            facts: &taken.facts,
            source: self.source.as_ref(),
            policy: None,
            drill: &self.drill,
            places: &places,
            trees: &[],
            scratch,
            fact_key: None,
            taken: now,
            now,
            began: Instant::now(),
            timeout: self.timeout,
            events: &events,
            cancel: &self.cancel,
        })
    }

    pub fn prove(&self, taken: &Taken) -> Proof {
        self.try_prove(taken).unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)))
    }
}

/// Those that did not pass, in short.
pub fn not_passed(proof: &Proof) -> Vec<String> {
    let told =
        |c: &Check| format!("{} {:?} {}: {}", c.name, c.verdict, c.subject, c.why.as_deref().unwrap_or_default());
    proof.checks.iter().filter(|c| c.verdict != Verdict::Passed).map(told).collect()
}

#[track_caller]
pub fn green(proof: &Proof) {
    assert_eq!(not_passed(proof), Vec::<String>::new());
    assert!(!proof.checks.is_empty());
}

/// The check of this name that failed.
#[track_caller]
pub fn failed<'p>(proof: &'p Proof, name: &str) -> &'p Check {
    let found = proof.checks.iter().find(|c| c.name == name && c.verdict == Verdict::Failed);
    found.unwrap_or_else(|| panic!("check {name:?} did not fail: {:#?}", not_passed(proof)))
}

/// A failed check names this subject, with what was expected and found.
#[track_caller]
pub fn names(proof: &Proof, check: &str, subject: &str, expected: &str, found: &str) {
    let check = failed(proof, check);
    let named = check
        .differences
        .iter()
        .any(|d| d.subject == subject && d.expected.contains(expected) && d.found.contains(found));
    assert!(named, "{subject}: {expected} / {found} in {check:#?}");
}
