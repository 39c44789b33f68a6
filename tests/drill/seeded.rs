//! Seeded corruptions: each in a repository that is otherwise whole and correctly signed. Every one must turn the drill
//! red and be named; the unharmed twin is green.

use crate::shop::{Shop, certificates, replace, write};
use crate::taken::Taken;
use crate::{failed, green};
use lifeboat::ops::drill::{DrillOutcome, DrillReport};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What was planted, in which source, and the words that one failed check must say.
struct Case {
    what: &'static str,
    harm: Box<dyn Fn(&Shop) -> Taken>,
    named: &'static [&'static str],
}

fn case(what: &'static str, named: &'static [&'static str], harm: impl Fn(&Shop) -> Taken + 'static) -> Case {
    Case { what, harm: Box::new(harm), named }
}

fn sql(what: &'static str, named: &'static [&'static str], change: &'static str) -> Case {
    case(what, named, move |shop| shop.changed(change))
}

/// The stream of a source with its bytes changed.
fn bytes(
    what: &'static str,
    named: &'static [&'static str],
    (source, stream): (&'static str, &'static str),
    change: impl Fn(&mut Vec<u8>) + 'static,
) -> Case {
    case(what, named, move |shop| {
        let mut taken = shop.taken(source);
        change(taken.bytes(stream));
        taken
    })
}

/// Redis as it is after some commands, under the facts of before; then as it was.
fn redis(what: &'static str, named: &'static [&'static str], change: &'static str, back: &'static str) -> Case {
    case(what, named, move |shop| {
        shop.redis.pipe(change);
        let then = shop.take("cache");
        shop.redis.pipe(back);
        Taken { streams: then.streams, ..shop.taken("cache") }
    })
}

fn at(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).position(|w| w == needle).unwrap()
}

fn sql_text(taken: &mut Taken, from: &str, to: &str) {
    let text = String::from_utf8(taken.bytes("globals.sql").clone()).unwrap();
    assert!(text.contains(from), "{text}");
    *taken.bytes("globals.sql") = text.replace(from, to).into_bytes();
}

fn archive(app: &Path, name: &str) -> std::path::PathBuf {
    app.join("etc/letsencrypt/archive/shop.example").join(name)
}

fn postgres_cases() -> Vec<Case> {
    vec![
        sql("one row changed", &["db: content", "public.users"], "UPDATE users SET note = 'other' WHERE id = 7"),
        sql("one row missing", &["db: rows", "public.orders", "1,999"], "DELETE FROM orders WHERE id = 7"),
        sql("a sequence behind", &["db: sequences", "users_id_seq"], "SELECT setval('users_id_seq', 3)"),
        sql("a wrong owner", &["db: tables", "public.orders", "shop_owner"], "ALTER TABLE orders OWNER TO postgres"),
        sql(
            "an extension missing",
            &["db: extensions", "hstore"],
            "ALTER TABLE users DROP COLUMN more; DROP EXTENSION hstore",
        ),
        sql("a large object lost", &["db: large objects"], "SELECT lo_unlink(4242)"),
        sql("a trigger gone", &["db: definitions", "triggers"], "DROP TRIGGER touch ON users"),
        sql("a view gone", &["db: tables", "public.spenders"], "DROP VIEW spenders"),
        sql("a grant lost", &["db: grants", "public.users"], "REVOKE SELECT ON users FROM shop_reader"),
        sql(
            "another migration",
            &["db: migrations", "alembic_version"],
            "UPDATE alembic_version SET version_num = 'x'",
        ),
        sql("the policy's own check is false", &["db: sql", "2000"], "DELETE FROM orders WHERE id > 1990"),
        sql("an index gone", &["db: definitions", "indexes"], "DROP INDEX orders_by_user"),
        case("a role missing", &["db: restore", "shop_owner"], |shop| {
            let mut taken = shop.taken("db");
            sql_text(&mut taken, "CREATE ROLE shop_owner;", "");
            taken
        }),
        bytes("half a dump", &["db: restore", "dump"], ("db", "shop.dump"), |b| b.truncate(b.len() / 2)),
        bytes("an empty dump", &["db: restore", "dump"], ("db", "shop.dump"), |b| b.clear()),
        bytes("a flipped bit that no tool notices", &["db: content", "public.users"], ("db", "shop.dump"), |b| {
            let at = at(b, b"note 200");
            b[at + 4] ^= 1;
        }),
        case("a dump cut before CREATE INDEX", &["db: definitions", "indexes"], |shop| {
            let options = ["-Fc", "-Z0", "--section=pre-data", "--section=data"];
            let out = shop.postgres.connected("pg_dump", "shop").args(options).output().unwrap();
            assert!(out.status.success());
            let mut taken = shop.taken("db");
            *taken.bytes("shop.dump") = out.stdout;
            taken
        }),
        case("an index that lies", &["db: amcheck", "public.liar"], |shop| {
            shop.postgres.create("liar");
            shop.postgres.sql("liar", LIAR);
            // Captured faithfully: the live index lies as well, and its rows are all there.
            let mut policy = shop.lab.policy.clone();
            for source in policy.sources.iter_mut().filter(|s| s.name.as_str() == "db") {
                if let lifeboat::policy::model::SourceSpec::Postgres(spec) = &mut source.spec {
                    spec.databases = lifeboat::policy::model::Databases::Named(vec!["liar".into()]);
                }
            }
            let sources = lifeboat::sources::build(
                &policy,
                &shop.lab.installation.state_dir,
                &lifeboat::base::cancel::Cancel::new(),
            );
            let taken = Taken::of(sources.iter().find(|s| s.name().as_str() == "db").unwrap().as_ref());
            shop.postgres.sql("postgres", "DROP DATABASE liar");
            taken
        }),
    ]
}

/// An order that turns round when the last thing of a restore is there: what was built before it lies from then on.
const LIAR: &str = r#"
CREATE FUNCTION fickle(a int, b int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
  RETURN CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = 'late')
    THEN -pg_catalog.btint4cmp(a, b) ELSE pg_catalog.btint4cmp(a, b) END; END $$;
CREATE OPERATOR CLASS fickle_ops FOR TYPE int4 USING btree AS
  OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 fickle(int, int);
CREATE TABLE t AS SELECT i FROM generate_series(1, 500) AS i;
CREATE INDEX liar ON t (i fickle_ops);
CREATE TABLE orders AS SELECT generate_series(1, 2000);
CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE EVENT TRIGGER late ON ddl_command_end WHEN TAG IN ('CREATE COLLATION') EXECUTE FUNCTION nothing();
"#;

fn redis_cases() -> Vec<Case> {
    vec![
        redis("a key missing", &["cache: keys"], "del cart:1\n", "set cart:1 37\n"),
        redis("a key with a lost time to live", &["cache: times to live"], "persist cart:2\n", "expire cart:2 86400\n"),
        redis(
            "a hash field changed",
            &["cache: values"],
            "hset settings currency USD\n",
            "hset settings currency EUR\n",
        ),
        bytes("half an RDB", &["cache: file"], ("cache", "dump.rdb"), |b| b.truncate(b.len() / 2)),
        bytes("a flipped bit under a zeroed checksum", &["cache: "], ("cache", "dump.rdb"), |b| {
            let value = at(b, b"currency");
            b[value + 1] ^= 1;
            let end = b.len();
            b[end - 8..].fill(0);
        }),
    ]
}

fn file_cases() -> Vec<Case> {
    vec![
        case("a 63-character key", &["env: ", "ENCRYPTION_KEY", "63"], |shop| {
            shop.broken("env", |app| replace(&app.join(".env"), "ENCRYPTION_KEY=0", "ENCRYPTION_KEY="))
        }),
        case(
            "a secret that differs in its second file",
            &["env: ", "REDIS_PASSWORD", "backend/.env.production"],
            |shop| shop.broken("env", |app| replace(&app.join("backend/.env.production"), "canary-r", "canary-s")),
        ),
        case("mode 0644 on a secret", &["env: ", ".env", "0644"], |shop| {
            shop.broken("env", |app| {
                fs::set_permissions(app.join(".env"), fs::Permissions::from_mode(0o644)).unwrap();
            })
        }),
        case("a required key missing", &["env: ", "DB_PASSWORD"], |shop| {
            shop.broken("env", |app| replace(&app.join(".env"), "DB_PASSWORD=canary-db\n", ""))
        }),
        case("a literal command", &["env: literal command", "DB_PASSWORD"], |shop| {
            shop.broken("env", |app| replace(&app.join(".env"), "canary-db", "'$(openssl rand -hex 16)'"))
        }),
        case("another value than was captured", &["env: ", "DB_PASSWORD"], |shop| {
            shop.harmed("env", |app| replace(&app.join(".env"), "canary-db", "canary-dx"))
        }),
        case("a key that belongs to another certificate", &["certificates: ", "privkey"], |shop| {
            shop.harmed("certificates", |app| {
                fs::copy(archive(app, "privkey1.pem"), archive(app, "privkey2.pem")).unwrap();
            })
        }),
        case("an expired chain", &["certificates: ", "expired"], |shop| {
            shop.broken("certificates", |app| {
                fs::remove_dir_all(app.join("etc/letsencrypt")).unwrap();
                certificates(&app.join("etc/letsencrypt"), "shop.example", "0");
            })
        }),
        case("a chain out of order", &["certificates: ", "fullchain"], |shop| {
            shop.harmed("certificates", |app| {
                let (leaf, chain) =
                    (fs::read(archive(app, "cert2.pem")).unwrap(), fs::read(archive(app, "chain2.pem")).unwrap());
                fs::write(archive(app, "fullchain2.pem"), [chain, leaf].concat()).unwrap();
            })
        }),
        case("a dangling link in live", &["certificates: ", "fullchain"], |shop| {
            shop.harmed("certificates", |app| fs::remove_file(archive(app, "fullchain2.pem")).unwrap())
        }),
        case("a missing include", &["nginx: ", "mime.types"], |shop| {
            shop.harmed("nginx", |app| fs::remove_file(app.join("etc/nginx/mime.types")).unwrap())
        }),
        case("two default servers", &["nginx: ", "default server"], |shop| {
            shop.harmed("nginx", |app| {
                fs::copy(app.join("etc/nginx/conf.d/shop.conf"), app.join("etc/nginx/conf.d/too.conf")).unwrap();
            })
        }),
        case("two servers of one name", &["nginx: ", "conflicting server name"], |shop| {
            shop.harmed("nginx", |app| {
                let too = app.join("etc/nginx/conf.d/too.conf");
                fs::copy(app.join("etc/nginx/conf.d/shop.conf"), &too).unwrap();
                replace(&too, " default_server", "");
            })
        }),
        case("a file missing", &["uploads: ", "two.bin"], |shop| {
            shop_of(shop, "uploads", |app| {
                fs::remove_file(app.join("uploads/two.bin")).unwrap();
            })
        }),
        bytes("a tree cut short", &["uploads: "], ("uploads", "files.tar"), |b| b.truncate(b.len() - 4096)),
        bytes("its own check fails", &["motd: check"], ("motd", "motd.txt"), |b| *b = b"bye\n".to_vec()),
        bytes("a commit that is gone", &["git: "], ("git", "repository.bundle"), |b| b.truncate(b.len() / 2)),
        bytes("edits that do not apply", &["git: "], ("git", "edits.patch"), |b| {
            let text = String::from_utf8(b.clone()).unwrap();
            *b = text.replace("shop 1.0.0", "shop 9.9.9").into_bytes();
        }),
        case("a compose file that does not parse", &["compose: "], |shop| {
            shop.harmed("compose", |app| write(&app.join("compose.yaml"), "services:\n  api: [\n"))
        }),
    ]
}

/// The listing of before over the tar of now: what a stream that lost a file looks like.
fn shop_of(shop: &Shop, name: &str, harm: impl FnOnce(&Path)) -> Taken {
    let mut taken = shop.harmed(name, harm);
    *taken.bytes("files.listing") = shop.taken(name).bytes("files.listing").clone();
    taken
}

/// Plants each, and says which were not seen.
fn sow(cases: Vec<Case>) {
    let shop = Shop::open();
    let mut unseen = Vec::new();
    let planted = cases.len();
    for case in cases {
        let harmed = (case.harm)(&shop);
        let source = harmed.name.to_string();
        let report = shop.drill(Some(harmed), &[&source]);
        let said = failed(&report);
        let named = said.iter().any(|line| case.named.iter().all(|word| line.contains(word)));
        if report.outcome != DrillOutcome::Failed || !named {
            unseen.push(format!("{}: wanted {:?}, said {said:#?}", case.what, case.named));
        }
        no_secret(&report);
    }
    assert!(unseen.is_empty(), "{} of {planted} were not seen and named:\n{}", unseen.len(), unseen.join("\n"));
    // What was harmed between is whole again: the twin is green.
    green(&shop.drill(None, &[]));
}

fn no_secret(report: &DrillReport) {
    let said = serde_json::to_string(report).unwrap();
    assert!(!said.contains("canary"), "a secret is told: {said}");
}

#[test]
fn every_corruption_of_postgres_is_named() {
    sow(postgres_cases());
}

#[test]
fn every_corruption_of_redis_is_named() {
    sow(redis_cases());
}

#[test]
fn every_corruption_of_files_is_named() {
    sow(file_cases());
}

#[test]
fn the_unharmed_twin_is_green_and_tells_no_secret() {
    let shop = Shop::open();
    assert!(postgres_cases().len() + redis_cases().len() + file_cases().len() >= 30);
    let report = shop.drill(None, &[]);
    green(&report);
    no_secret(&report);
    let page = fs::read_to_string(report.page.as_ref().unwrap()).unwrap();
    assert!(!page.contains("canary"), "{page}");
    for part in ["tables", "rows", "keys", "nginx ok"] {
        assert!(report.summary().contains(part), "{}", report.summary());
    }
}
