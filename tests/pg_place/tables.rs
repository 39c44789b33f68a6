//! Single tables of a live database.

use crate::bench::{Stage, capture, databases, of_server, told};
use crate::postgres::PostgresServer;

const SHOP: &str = r#"
CREATE SCHEMA "Odd schema";
CREATE ROLE lb_owner; CREATE ROLE lb_reader;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE groups (id serial PRIMARY KEY, name text); INSERT INTO groups (name) VALUES ('a'), ('b');
CREATE TABLE notes (id serial PRIMARY KEY, grp int REFERENCES groups, mood mood DEFAULT 'ok', t text UNIQUE);
INSERT INTO notes (grp, t) SELECT i % 2 + 1, 'n' || i FROM generate_series(1, 500) AS i;
CREATE INDEX notes_grp ON notes (grp);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION touch();
ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON notes USING (true);
ALTER TABLE notes OWNER TO lb_owner; GRANT SELECT ON notes TO lb_reader;
CREATE TABLE "Odd schema"."T ""x"" $(id)" (i int); INSERT INTO "Odd schema"."T ""x"" $(id)" VALUES (1), (2);
CREATE TABLE other (i int); INSERT INTO other VALUES (1);
"#;

fn shop() -> PostgresServer {
    let server = PostgresServer::start_with(&[], &["-c", "wal_level=logical"]);
    server.create("shop");
    server.sql("shop", SHOP);
    server
}

/// The table with all that belongs to it, but for its identity.
const NOTES: &str = "SELECT (SELECT count(*) FROM notes), c.relacl, pg_get_userbyid(c.relowner), c.relrowsecurity, \
    (SELECT string_agg(pg_get_indexdef(indexrelid), ';' ORDER BY pg_get_indexdef(indexrelid)) FROM pg_index WHERE indrelid = c.oid), \
    (SELECT string_agg(pg_get_constraintdef(oid), ';' ORDER BY pg_get_constraintdef(oid)) FROM pg_constraint WHERE conrelid = c.oid), \
    (SELECT string_agg(pg_get_triggerdef(oid), ';') FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal), \
    (SELECT string_agg(polname, ';') FROM pg_policy WHERE polrelid = c.oid), pg_get_serial_sequence('notes', 'id'), \
    (SELECT last_value FROM notes_id_seq) FROM pg_class AS c WHERE oid = 'public.notes'::regclass";

#[test]
fn one_table_there_and_back_with_all_that_belongs_to_it() {
    let server = shop();
    let taken = capture(of_server(&server, &["shop"]));
    let then = server.sql("shop", NOTES);
    server.sql("shop", "DELETE FROM notes WHERE id > 3; DROP TRIGGER touch ON notes; INSERT INTO other VALUES (2)");
    let (now, before) = (server.sql("shop", NOTES), databases(&server));
    let stage = Stage::new(of_server(&server, &["shop"]), &taken).tables(&["public.notes", "Odd schema.T \"x\" $(id)"]);
    server.sql("shop", "DROP TABLE \"Odd schema\".\"T \"\"x\"\" $(id)\"");
    let intent = stage.plan();
    assert!(
        intent.lines[0].contains("which is not there today") && intent.lines[1].contains("table public.notes"),
        "{intent:?}"
    );
    stage.step("back", &intent);
    stage.step("discard_new", &intent);
    stage.prepare(&intent);
    stage.prepare(&intent);
    assert_eq!((server.sql("shop", NOTES), databases(&server)), (now.clone(), before.clone()));
    for round in 0..2 {
        stage.step("switch", &intent);
        stage.step("switch", &intent);
        stage.step("confirm", &intent);
        assert_eq!(server.sql("shop", NOTES), then);
        assert_eq!(server.sql("shop", "SELECT count(*) FROM \"Odd schema\".\"T \"\"x\"\" $(id)\""), "2");
        if round == 0 {
            stage.step("back", &intent);
            stage.step("back", &intent);
            assert_eq!(server.sql("shop", NOTES), now);
            assert!(stage.try_step("confirm", &intent).is_err());
        }
    }
    server.sql("shop", "INSERT INTO notes (grp, t) VALUES (1, 'later')");
    assert_eq!(server.sql("shop", "SELECT max(id) FROM notes"), "501");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM other"), "2", "other tables are not touched");
    stage.step("discard_new", &intent);
    stage.step("discard_old", &intent);
    stage.step("discard_old", &intent);
    let schemas = "SELECT string_agg(nspname, ' ' ORDER BY nspname) FROM pg_namespace WHERE nspname !~ '^pg_'";
    assert_eq!(server.sql("shop", schemas), "Odd schema information_schema public");
    assert_eq!(databases(&server), before);
}

#[test]
fn what_refers_to_a_table_stands_against_it() {
    let server = shop();
    let taken = capture(of_server(&server, &["shop"]));
    server.sql(
        "shop",
        "CREATE TABLE parts (i int) PARTITION BY RANGE (i); CREATE PUBLICATION news FOR TABLE notes; \
         CREATE VIEW seen AS SELECT * FROM notes; CREATE TABLE history (was notes); \
         CREATE TABLE child () INHERITS (other); CREATE TABLE borrowed (id int DEFAULT nextval('notes_id_seq')); \
         CREATE FUNCTION of_notes(n notes) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    );
    let plan = |tables: &[&str]| Stage::new(of_server(&server, &["shop"]), &taken).tables(tables).refusal();
    let why = plan(&["public.notes"]);
    for part in [
        "publication news publishes public.notes",
        "view public.seen reads public.notes",
        "a column of public.history has the row type of public.notes",
        "a default of public.borrowed uses sequence notes_id_seq",
        "function of_notes depends on public.notes",
        "--database-as",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(
        plan(&["public.groups"])
            .contains("table public.notes refers to public.groups by its foreign key notes_grp_fkey")
    );
    assert!(plan(&["public.other"]).contains("inherit"));
    assert!(plan(&["public.gone"]).contains("no database of the snapshot has public.gone"));
    // Together they may go.
    server.sql("shop", "DROP PUBLICATION news; DROP VIEW seen; DROP TABLE history, borrowed; DROP FUNCTION of_notes(notes); DELETE FROM notes");
    let stage = Stage::new(of_server(&server, &["shop"]), &taken).tables(&["public.notes", "public.groups"]);
    let intent = stage.plan();
    stage.prepare(&intent);
    // Somebody makes a view of it meanwhile.
    server.sql("shop", "CREATE VIEW late AS SELECT * FROM notes");
    let error = told(&stage.try_step("switch", &intent).unwrap_err());
    assert!(error.contains("view public.late reads public.notes"), "{error}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM late"), "0");
    server.sql("shop", "DROP VIEW late");
    stage.step("switch", &intent);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM notes JOIN groups ON groups.id = notes.grp"), "500");
    stage.step("back", &intent);
    stage.step("discard_new", &intent);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM notes"), "0");
}
