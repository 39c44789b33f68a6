//! Every kind of source through containers, there and back.

use crate::docker::docker;
use crate::stack::{KEYS, ORDERS, Stack, git, host, password, pins, source};
use crate::tree::{Record, records};
use crate::world::CANARY;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The policy of the whole shop.
pub const SOURCES: &str = r#"
[[source]]
kind = "postgres"
name = "db"
service = "db"

[[source]]
kind = "redis"
name = "queue"
service = "cache"
password_from = ".env:REDIS_PASSWORD"

[[source]]
kind = "env"
paths = [".env", "backend/.env.production"]
required = ["DB_PASSWORD"]
pattern = { ENCRYPTION_KEY = "^[0-9a-f]{64}$" }
same = [[".env:REDIS_PASSWORD", "backend/.env.production:REDIS_PASSWORD"]]

[[source]]
kind = "nginx"
paths = ["nginx"]

[[source]]
kind = "volume"
name = "uploads"
volumes = ["storage"]

[[source]]
kind = "command"
name = "report"
service = "db"
run = ["sh", "-c", 'PGPASSWORD=$POSTGRES_PASSWORD psql -XAt -U "$POSTGRES_USER" -d shop -c "select count(*) from orders"']

[[source]]
kind = "compose"
pin = "tag"
"#;

#[test]
fn every_source_comes_back() {
    let stack = Stack::up();
    stack.add_to_policy(SOURCES);
    let web = docker(["inspect", "-f", "{{.Name}}", &stack.container("web")]);
    let nginx = format!("paths = [\"nginx\"]\ncontainer = {:?}", web.trim_start_matches('/'));
    stack.change_policy("paths = [\"nginx\"]", &nginx);
    let report = stack.snapshot(0);
    assert_eq!(report["header"]["outcome"], "complete", "{report:#}");
    let kinds = ["postgres", "redis", "env", "nginx", "volume", "command", "compose", "git", "recovery"];
    let captured: Vec<&str> =
        report["sources"].as_array().unwrap().iter().map(|s| s["kind"].as_str().unwrap()).collect();
    assert_eq!(captured, kinds);
    for one in report["sources"].as_array().unwrap() {
        assert_eq!((&one["outcome"], &one["warnings"]), (&json!("complete"), &json!([])), "{one:#}");
    }
    let id = report["header"]["id"].as_str().unwrap();
    let shown = stack.show(id);
    facts_are_right(&stack, &shown);
    images_are_pinned(&stack, &shown);
    nothing_is_stored_in_the_clear(&stack);

    let drilled = stack.drill(id);
    assert!(drilled["restored"].to_string().contains("tables"), "{drilled:#}");

    let into = stack.restore(id, "back", 0);
    the_database_loads(&stack, &into, &shown, true);
    the_queue_loads(&stack, &into);
    documents_are_equal(&stack, &into);
    files_are_equal(&stack, &into);
    the_checkout_comes_back(&stack, &into);
    assert_eq!(fs::read_to_string(into.join("report/report.out")).unwrap(), format!("{ORDERS}\n"));
    let recovery: Value = serde_json::from_slice(&fs::read(into.join("recovery/recovery.json")).unwrap()).unwrap();
    assert!(recovery.to_string().contains(&stack.policy), "{recovery:#}");
}

fn facts_are_right(stack: &Stack, shown: &Value) {
    let facts = &source(shown, "db")["facts"];
    assert_eq!((&facts["user"], &facts["superuser"]), (&json!("keeper"), &json!(true)), "{facts:#}");
    assert_eq!(facts["globals"], json!({ "stream": "globals.sql", "passwords": true }));
    let database = &facts["databases"][0];
    assert_eq!((&database["name"], &database["owner"]), (&json!("shop"), &json!("shop")));
    assert_eq!((&database["proved"], facts["databases"].as_array().unwrap().len()), (&json!(true), 1));
    let role = facts["roles"].as_array().unwrap().iter().find(|r| r["name"] == "shop").unwrap();
    assert_eq!((&role["superuser"], &role["login"]), (&json!(false), &json!(true)));
    let member = json!({ "role": "reader", "member": "shop", "admin": false });
    assert!(facts["memberships"].as_array().unwrap().contains(&member), "{facts:#}");
    let rows = |name: &str| {
        let table = database["tables"].as_array().unwrap().iter().find(|t| t["name"] == name);
        let table = table.unwrap_or_else(|| panic!("no table {name} in {database:#}"));
        (table["rows"].as_u64(), table["owner"].as_str().unwrap().to_owned())
    };
    assert_eq!(rows("orders"), (Some(ORDERS as u64), "shop".into()));
    assert_eq!(rows("odd \"name\""), (Some(3), "shop".into()));
    assert_eq!(rows("big"), (None, "shop".into()), "a view has no rows of its own");
    assert_eq!(database["sequences"][0]["last_value"], ORDERS);
    assert_eq!(database["large_objects"]["count"], 1);
    assert!(database["extensions"].as_array().unwrap().iter().any(|e| e["name"] == "pg_trgm"), "{database:#}");

    let facts = &source(shown, "queue")["facts"];
    let keys = json!([
        { "database": 0, "keys": KEYS[0] + 1, "expires": 1 },
        { "database": 3, "keys": KEYS[1], "expires": 0 },
    ]);
    assert_eq!((&facts["databases"], &facts["counted"]), (&keys, &json!("file")), "{facts:#}");
    assert_eq!((&facts["appendonly"], &facts["rdb_checksum"]), (&json!(true), &json!(true)));
    assert_eq!(facts["dir"], "/var/lib/redis");

    let facts = &source(shown, "env")["facts"];
    let checks = facts["checks"].as_array().unwrap();
    assert!(checks.len() == 3 && checks.iter().all(|c| c["ok"] == true), "{facts:#}");
    assert_eq!(facts["files"].as_array().unwrap().len(), 2);

    let facts = &source(shown, "nginx")["facts"];
    assert_eq!(facts["server_names"], json!(["shop.example.org"]), "{facts:#}");
    let facts = &source(shown, "uploads")["facts"]["volumes"][0];
    let name = format!("{}_storage", stack.project.name);
    assert_eq!((&facts["volume"], &facts["name"]), (&json!("storage"), &json!(name)), "{facts:#}");

    let facts = &source(shown, "git")["facts"];
    assert_eq!(facts["head"]["commit"], git(&stack.app(), &["rev-parse", "HEAD"]), "{facts:#}");
    assert_eq!((&facts["tags"], &facts["edited"]["names"]), (&json!(["v1.0.0"]), &json!(["compose.yaml"])));
    assert_eq!(shown["git_commit"], facts["head"]["commit"]);

    let facts = &source(shown, "compose")["facts"];
    assert_eq!((&facts["project"], &facts["running"]), (&json!(stack.project.name), &json!(true)), "{facts:#}");
    let services: Vec<&str> =
        facts["services"].as_array().unwrap().iter().map(|s| s["service"].as_str().unwrap()).collect();
    assert_eq!(services, ["api", "cache", "db", "web"]);
    let everything = shown.to_string();
    assert!(!everything.contains(CANARY), "facts hold no passwords");
}

/// Each service's image has a name of the snapshot, so that a new build does not leave it nameless.
fn images_are_pinned(stack: &Stack, shown: &Value) {
    let services = source(shown, "compose")["facts"]["services"].as_array().unwrap();
    let mut told: Vec<String> = Vec::new();
    for service in services {
        let pin = service["pin"].as_str().unwrap();
        let image = docker(["image", "inspect", "-f", "{{.Id}}", pin]);
        let container = stack.container(service["service"].as_str().unwrap());
        assert_eq!(image, docker(["inspect", "-f", "{{.Image}}", &container]));
        assert_eq!(service["image_id"], image);
        told.push(pin.to_owned());
    }
    let mut pinned = pins(&stack.policy);
    pinned.sort();
    told.sort();
    assert_eq!(pinned, told);
}

fn nothing_is_stored_in_the_clear(stack: &Stack) {
    let known = ["shop.example.org", CANARY, "value-42"];
    for (path, bytes) in crate::world::tree(&stack.path("repository")) {
        for text in known {
            let found = bytes.windows(text.len()).any(|w| w == text.as_bytes());
            assert!(!found, "{text} stands in {}", path.display());
        }
    }
}

/// The dump goes into an empty database of the same server and gives the same tables.
pub fn the_database_loads(stack: &Stack, into: &Path, shown: &Value, globals: bool) {
    let database = &source(shown, "db")["facts"]["databases"][0];
    let stream = database["parts"][0]["stream"].as_str().unwrap();
    let dump = fs::read(into.join("db").join(stream)).unwrap();
    stack.sql("postgres", "create database scratch template template0 owner shop;");
    let argv = ["pg_restore", "--exit-on-error", "-U", "keeper", "-d", "scratch"];
    stack.exec("db", &[("PGPASSWORD", &password("db"))], &argv, &dump);
    for table in database["tables"].as_array().unwrap().iter().filter(|t| t["rows"].is_u64()) {
        let name = table["name"].as_str().unwrap().replace('"', "\"\"");
        let count = stack.sql("scratch", &format!("select count(*) from \"{name}\";"));
        assert_eq!(count, table["rows"].to_string(), "rows of {name}");
    }
    let content = "select md5(string_agg(t::text, '|' order by t::text)) from orders t;
        select * from \"odd \"\"name\"\"\" order by 1;
        select md5(lo_get(oid)) from pg_largeobject_metadata;
        select tableowner, tablename from pg_tables where schemaname = 'public' order by 2;
        select indexdef from pg_indexes where schemaname = 'public' order by 1;
        select extname from pg_extension order by 1;
        select count(*) from big;
        insert into orders (customer) values ('new') returning id;";
    assert_eq!(stack.sql("scratch", content), stack.sql("shop", content));
    stack.sql("postgres", "drop database scratch;");
    let roles = fs::read_to_string(into.join("db/globals.sql")).unwrap();
    assert!(roles.contains("CREATE ROLE shop;"), "{roles}");
    assert_eq!(roles.contains("SCRAM-SHA-256"), globals, "password hashes in {roles}");
}

/// A second server in the container begins with the restored file.
fn the_queue_loads(stack: &Stack, into: &Path) {
    let rdb = fs::read(into.join("queue/dump.rdb")).unwrap();
    stack.exec("cache", &[], &["bash", "-ec", "mkdir /tmp/back && cat >/tmp/back/dump.rdb"], &rdb);
    stack.exec("cache", &[], &["redis-check-rdb", "/tmp/back/dump.rdb"], b"");
    let script = "
        redis-server --dir /tmp/back --port 0 --unixsocket /tmp/back/s --daemonize yes --save '' >/dev/null
        for n in $(seq 100); do redis-cli -s /tmp/back/s ping 2>/dev/null | grep -q PONG && break; sleep 0.1; done
        redis-cli -s /tmp/back/s dbsize
        redis-cli -s /tmp/back/s -n 3 dbsize
        redis-cli -s /tmp/back/s get key:42
        redis-cli -s /tmp/back/s hget basket b
        redis-cli -s /tmp/back/s ttl key:1 | grep -c '^8[56]...$'
        redis-cli -s /tmp/back/s shutdown nosave || true
        rm -r /tmp/back";
    let said = stack.exec("cache", &[], &["bash", "-ec", script], b"");
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [&(KEYS[0] + 1).to_string(), &KEYS[1].to_string(), "value-42", "2", "1"]
    );
}

/// The volume as it lies on the host, and as it came back: every attribute of every path.
pub fn documents_are_equal(stack: &Stack, into: &Path) {
    equal(records(&stack.volume("storage")), records(&into.join("uploads/storage")));
}

/// What the engine's archives tell of a path: whole seconds, and no holes.
pub fn through_docker(tree: BTreeMap<PathBuf, Record>) -> BTreeMap<PathBuf, Record> {
    let plain = |record: Record| Record { mtime: (record.mtime.0, 0), sparse: false, ..record };
    tree.into_iter().map(|(path, record)| (path, plain(record))).collect()
}

#[track_caller]
pub fn equal(live: BTreeMap<PathBuf, Record>, back: BTreeMap<PathBuf, Record>) {
    assert!(live.len() >= 4, "{live:#?}");
    for (path, record) in &live {
        assert_eq!(Some(record), back.get(path), "{}", path.display());
    }
    assert_eq!(live.len(), back.len());
}

/// Files of the application: the same bytes and modes.
fn files_are_equal(stack: &Stack, into: &Path) {
    let app = stack.app();
    let below = |source: &str| into.join(source).join(app.strip_prefix("/").unwrap());
    assert_eq!(records(&app.join("nginx")), records(&below("nginx").join("nginx")));
    let (live, back) = (records(&app), records(&below("env")));
    for file in [".env", "backend/.env.production"] {
        assert_eq!(live[Path::new(file)], back[Path::new(file)], "{file}");
    }
    for file in ["compose.yaml", "%2Eenv"] {
        let live = fs::read(app.join(file.replace("%2E", "."))).unwrap();
        assert_eq!(fs::read(into.join("compose").join(file)).unwrap(), live, "{file}");
    }
}

/// A clone of the bundle, with the edits on top, is the tree as it was.
fn the_checkout_comes_back(stack: &Stack, into: &Path) {
    let tree = stack.path("clone");
    host("git", &["clone", "-q", into.join("git/repository.bundle").to_str().unwrap(), tree.to_str().unwrap()]);
    git(&tree, &["checkout", "-q", &git(&stack.app(), &["rev-parse", "HEAD"])]);
    git(&tree, &["apply", "--index", into.join("git/edits.patch").to_str().unwrap()]);
    for file in ["compose.yaml", "nginx/nginx.conf", "nginx/conf.d/shop.conf", ".gitignore"] {
        assert_eq!(fs::read(tree.join(file)).unwrap(), fs::read(stack.app().join(file)).unwrap(), "{file}");
    }
    assert!(fs::read_to_string(tree.join("compose.yaml")).unwrap().contains("hostname: shop-web"));
}
