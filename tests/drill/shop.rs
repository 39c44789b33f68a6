//! A small shop on real servers whose captures can be damaged one by one, each put into a repository that is otherwise
//! whole and correctly signed.

use crate::lab::{Lab, Sources, full};
use crate::postgres::PostgresServer;
use crate::redis::RedisServer;
use crate::taken::Taken;
use lifeboat::ops::drill::{self, DrillReport, DrillRequest};
use lifeboat::repository::keys::HostKey;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SCHEMA: &str = r#"
CREATE EXTENSION hstore;
CREATE TABLE users (id serial PRIMARY KEY, email text NOT NULL UNIQUE, note text, more hstore);
CREATE TABLE orders (id bigint PRIMARY KEY, user_id int NOT NULL REFERENCES users, total numeric(10,2) NOT NULL);
INSERT INTO users (email, note) SELECT 'user' || n || '@shop.example', 'note ' || n FROM generate_series(1, 300) n;
INSERT INTO orders SELECT n, 1 + n % 300, n / 7.0 FROM generate_series(1, 2000) n;
CREATE INDEX orders_by_user ON orders (user_id);
CREATE VIEW spenders AS SELECT user_id, sum(total) AS spent FROM orders GROUP BY 1;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TABLE alembic_version (version_num varchar(32) NOT NULL);
INSERT INTO alembic_version VALUES ('3f2a');
GRANT SELECT ON users TO shop_reader;
ALTER TABLE orders OWNER TO shop_owner;
"#;

pub struct Shop {
    pub lab: Lab,
    pub postgres: PostgresServer,
    pub redis: RedisServer,
    sources: Sources,
    fact_key: [u8; 32],
    /// The unharmed captures.
    pub first: Vec<Taken>,
}

pub fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

pub fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub fn certificates(dir: &Path, domain: &str, days: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/certificates.sh");
    run(script.to_str().unwrap(), &[dir.to_str().unwrap(), domain, days]);
}

impl Shop {
    pub fn open() -> Self {
        let mut lab = Lab::new();
        // Servers run as accounts of their own, and everybody passes through.
        fs::set_permissions(&lab.root, fs::Permissions::from_mode(0o711)).unwrap();
        let postgres = PostgresServer::start();
        let redis = RedisServer::start();
        postgres.sql(
            "postgres",
            "CREATE ROLE shop_owner; CREATE ROLE shop_reader LOGIN PASSWORD 'x'; CREATE DATABASE shop",
        );
        postgres.sql("shop", SCHEMA);
        postgres.sql("shop", "SELECT lo_from_bytea(4242, decode(repeat('c0ffee', 2000), 'hex'))");
        redis.pipe("set cart:1 37\nset cart:2 74\nexpire cart:2 86400\nhset settings currency EUR language hr\nrpush mails a b c\n");
        build(&lab.path("app"));
        let sections = sections(&lab.path("app"), &postgres, &redis);
        let sources = lab.sources(&sections);
        lab.add_to_policy(&sections.concat());
        let fact_key = *HostKey::load(&lab.installation.host_key()).unwrap().fact_key().expose();
        let first = sources.iter().map(|s| Taken::with_key(s.as_ref(), &fact_key)).collect();
        Self { lab, postgres, redis, sources, fact_key, first }
    }

    pub fn app(&self) -> PathBuf {
        self.lab.path("app")
    }

    /// The unharmed capture of a source.
    pub fn taken(&self, name: &str) -> Taken {
        self.first.iter().find(|t| t.name.as_str() == name).unwrap().clone()
    }

    /// A source captured as it is now.
    pub fn take(&self, name: &str) -> Taken {
        Taken::with_key(self.sources.iter().find(|s| s.name().as_str() == name).unwrap().as_ref(), &self.fact_key)
    }

    /// The unharmed facts of a source, over the streams that it gives when the application is harmed; the harm is undone.
    pub fn harmed(&self, name: &str, harm: impl FnOnce(&Path)) -> Taken {
        Taken { facts: self.taken(name).facts, ..self.broken(name, harm) }
    }

    /// Facts and streams of an application that is broken itself, as a backup would faithfully keep them.
    pub fn broken(&self, name: &str, harm: impl FnOnce(&Path)) -> Taken {
        let (app, aside) = (self.app(), self.lab.path("aside"));
        run("cp", &["-a", app.to_str().unwrap(), aside.to_str().unwrap()]);
        harm(&app);
        let taken = self.take(name);
        fs::remove_dir_all(&app).unwrap();
        fs::rename(&aside, &app).unwrap();
        taken
    }

    /// The unharmed facts over the dump of a database that is another by now; the database is brought back.
    pub fn changed(&self, sql: &str) -> Taken {
        let first = self.taken("db");
        self.postgres.sql("shop", sql);
        let then = self.take("db");
        self.postgres.sql("postgres", "DROP DATABASE shop");
        let dumps: Vec<Vec<u8>> =
            first.streams.iter().filter(|(n, ..)| n.starts_with("shop")).map(|(_, _, b)| b.clone()).collect();
        self.postgres.restore("shop", &dumps);
        Taken { streams: then.streams, ..first }
    }

    /// Puts everything into the repository, one source harmed, and drills what concerns it.
    pub fn drill(&self, harmed: Option<Taken>, only: &[&str]) -> DrillReport {
        let name = harmed.as_ref().map(|t| t.name.clone());
        let others = self.first.iter().filter(|t| Some(&t.name) != name.as_ref()).cloned();
        let mut all: Vec<Taken> = others.chain(harmed).collect();
        // In the order of the policy: a manifest has it so.
        all.sort_by_key(|t| self.first.iter().position(|f| f.name == t.name));
        let sources: Sources = all.into_iter().map(|t| Box::new(t) as _).collect();
        let id = self.lab.snapshot(&sources, &[]);
        let request = DrillRequest {
            snapshot: Some(id),
            only: only.iter().map(|n| n.parse().unwrap()).collect(),
            ..DrillRequest::default()
        };
        let (access, run) = (self.lab.access(), self.lab.run());
        let policy = Some(&self.lab.policy);
        let plan = drill::plan(&access, policy, &request, &run).unwrap_or_else(|e| panic!("{}", full(&e)));
        drill::run(&self.lab.installation, &access, policy, &self.lab.request(), &plan, &run)
            .unwrap_or_else(|e| panic!("{}", full(&e)))
    }
}

/// The application's folder.
fn build(app: &Path) {
    let hex = |n: usize| "0123456789abcdef".chars().cycle().take(n).collect::<String>();
    write(&app.join(".env"), &format!("DB_PASSWORD=canary-db\nREDIS_PASSWORD=canary-r\nENCRYPTION_KEY={}\n", hex(64)));
    write(&app.join("backend/.env.production"), "REDIS_PASSWORD=canary-r\nMODE=production\n");
    for file in [".env", "backend/.env.production"] {
        fs::set_permissions(app.join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    certificates(&app.join("etc/letsencrypt"), "shop.example", "60");
    let nginx = app.join("etc/nginx");
    write(&nginx.join("mime.types"), "types { text/html html; }\n");
    write(
        &nginx.join("nginx.conf"),
        &format!("events {{}}\nhttp {{\n  include mime.types;\n  include {}/conf.d/*.conf;\n}}\n", nginx.display()),
    );
    let live = app.join("etc/letsencrypt/live/shop.example");
    write(
        &nginx.join("conf.d/shop.conf"),
        &format!(
            "server {{\n  listen 443 ssl default_server;\n  server_name shop.example;\n  ssl_certificate {0}/fullchain.pem;\n  ssl_certificate_key {0}/privkey.pem;\n  location / {{ proxy_pass http://api:8000; }}\n}}\n",
            live.display()
        ),
    );
    write(&app.join("uploads/one.txt"), "one\n");
    fs::write(app.join("uploads/two.bin"), vec![7u8; 200_000]).unwrap();
    write(&app.join("compose.yaml"), "services:\n  api:\n    image: shop/api:1.0.0\n    env_file: .env\n");
    write(&app.join("api.py"), "print('shop 1.0.0')\n");
    write(&app.join(".gitignore"), ".env\n.env.production\nuploads/\netc/\n");
    let git = |arguments: &[&str]| {
        let at = ["-C", app.to_str().unwrap(), "-c", "user.name=T", "-c", "user.email=t@example.org"];
        run("git", &[&at[..], arguments].concat())
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "open the shop"]);
    write(&app.join("api.py"), "print('shop 1.0.0')\n# an edit that nobody has committed\n");
}

fn sections(app: &Path, postgres: &PostgresServer, redis: &RedisServer) -> Vec<String> {
    let app = app.display();
    let mut sections = vec![
        format!(
            "[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {:?}\nfingerprint = \"content\"\n",
            postgres.socket_url("postgres", "shop")
        ),
        format!("[[source]]\nkind = \"redis\"\nname = \"cache\"\nurl = {:?}\n", redis.url()),
        "[[source]]\nkind = \"env\"\nname = \"env\"\npaths = [\".env\", \"backend/.env.production\"]\nrequired = [\"DB_PASSWORD\"]\npattern = { ENCRYPTION_KEY = \"^[0-9a-f]{64}$\" }\nsame = [[\".env:REDIS_PASSWORD\", \"backend/.env.production:REDIS_PASSWORD\"]]\n".to_owned(),
        format!("[[source]]\nkind = \"certificates\"\nname = \"certificates\"\npaths = [\"{app}/etc/letsencrypt\"]\n"),
        format!("[[source]]\nkind = \"nginx\"\nname = \"nginx\"\npaths = [\"{app}/etc/nginx\"]\n"),
        format!("[[source]]\nkind = \"files\"\nname = \"uploads\"\npaths = [\"{app}/uploads\"]\n"),
        "[[source]]\nkind = \"command\"\nname = \"motd\"\nrun = [\"echo\", \"hello\"]\ncheck = [\"grep\", \"-q\", \"hello\"]\noutput = \"motd.txt\"\n".to_owned(),
        "[[source]]\nkind = \"git\"\nname = \"git\"\n".to_owned(),
        "[[source]]\nkind = \"compose\"\nname = \"compose\"\npin = \"none\"\n".to_owned(),
    ];
    sections.push("[drill]\npostgres = \"local\"\n[[drill.check]]\nsource = \"db\"\nsql = \"select count(*) = 2000 from orders\"\n".into());
    sections
}
