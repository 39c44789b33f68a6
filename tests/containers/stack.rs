//! A small shop as a compose project in a folder, an installation of Lifeboat beside it, and the binary run in it.
//!
//! Postgres and Redis publish no port and ask everybody for a password; the database belongs to a role that is not the
//! server's superuser; documents lie in a named volume; the folder is a git checkout with an edited compose file.

use crate::docker::{IMAGE, TestProject, docker, engine, try_docker, unique};
use crate::world::{CANARY, Ran};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Each password holds the canary that [`Ran`] looks for in every message.
pub fn password(of: &str) -> String {
    format!("{CANARY}-{of}")
}

/// Rows of the table `orders`.
pub const ORDERS: usize = 5000;
/// Keys in Redis' databases 0 and 3.
pub const KEYS: [usize; 2] = [800, 7];

const COMPOSE: &str = r#"
services:
  db:
    image: IMAGE
    environment:
      POSTGRES_USER: keeper
      POSTGRES_PASSWORD: ${DB_PASSWORD}
      POSTGRES_DB: shop
      PGDATA: /var/lib/postgresql/data
    command:
      - bash
      - -ec
      - |
        B=/usr/lib/postgresql/15/bin
        mkdir -p /var/run/postgresql && chown 70:70 /var/run/postgresql /var/lib/postgresql
        as() { setpriv --reuid=70 --regid=70 --clear-groups "$$@"; }
        if [ ! -s "$$PGDATA/PG_VERSION" ]; then
          as bash -c 'printf %s "$$POSTGRES_PASSWORD" >/tmp/pw'
          as $$B/initdb -N -A scram-sha-256 -U "$$POSTGRES_USER" --pwfile=/tmp/pw -E UTF8 --locale=C.UTF-8 -D "$$PGDATA" >/dev/null
          rm /tmp/pw
        fi
        exec setpriv --reuid=70 --regid=70 --clear-groups $$B/postgres -D "$$PGDATA" -c listen_addresses='' \
          -c unix_socket_directories=/var/run/postgresql -c dynamic_shared_memory_type=posix -c fsync=off
    volumes: ["pgdata:/var/lib/postgresql"]
    healthcheck: {test: ["CMD", "pg_isready", "-q", "-h", "/var/run/postgresql"], interval: 1s, timeout: 5s, retries: 60}
  cache:
    image: IMAGE
    user: redis
    command: ["redis-server", "--dir", "/var/lib/redis", "--appendonly", "yes", "--requirepass", "${REDIS_PASSWORD}"]
    volumes: ["redisdata:/var/lib/redis"]
    healthcheck: {test: ["CMD", "redis-cli", "ping"], interval: 1s, timeout: 5s, retries: 60}
  web:
    image: IMAGE
    command: ["nginx", "-g", "daemon off; error_log stderr;", "-c", "/etc/site/nginx.conf"]
    volumes: ["./nginx:/etc/site:ro"]
  api:
    image: IMAGE
    command: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"]
    env_file: [.env]
    volumes: ["storage:/srv/storage"]
volumes: {pgdata: {}, redisdata: {}, storage: {}}
"#;

const NGINX: &str = "events {}\nhttp {\n    include /etc/site/conf.d/*.conf;\n}\n";
const SITE: &str =
    "server {\n    listen 8080;\n    server_name shop.example.org;\n    location / { return 200 \"ok\\n\"; }\n}\n";

/// Who runs the binary.
#[derive(Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; none clears them.
    pub groups: Vec<u32>,
}

impl Caller {
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new() }
    }
}

/// How the application's own files are called.
pub struct Shape {
    pub compose: &'static str,
    pub env: &'static str,
}

pub struct Stack {
    pub project: TestProject,
    /// The policy's name, unique on this machine: its image pins are removed by it.
    pub policy: String,
    pub caller: Caller,
    _pins: Pins,
    pub dir: tempfile::TempDir,
}

/// The pins of a policy's images, removed when dropped.
pub struct Pins(pub String);

impl Drop for Pins {
    fn drop(&mut self) {
        let listed = try_docker(["images", "--format", "{{.Repository}}:{{.Tag}}", &format!("lifeboat/{}-*", self.0)]);
        for pin in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            try_docker(["rmi", pin]);
        }
    }
}

impl Stack {
    /// The project up and filled, and Lifeboat set up for it by `init`.
    pub fn up() -> Self {
        let stack = Self::bare("shop", Caller::root(), Shape { compose: "compose.yaml", env: ".env" });
        stack.fill();
        stack.init();
        stack
    }

    /// The project up, its stores empty, nothing set up.
    pub fn bare(name: &str, caller: Caller, shape: Shape) -> Self {
        engine();
        let dir = tempfile::Builder::new().prefix("lifeboat-stack-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let app = dir.path().join("app");
        write_app(&app, &shape);
        own(dir.path(), &caller);
        let name = unique(&format!("lb-{name}"));
        let project = TestProject::up(&app, &name, &["-f", shape.compose, "--env-file", shape.env]);
        Self { project, policy: name.clone(), caller, _pins: Pins(name), dir }
    }

    pub fn app(&self) -> PathBuf {
        self.dir.path().join("app")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the caller's keys and policies lie.
    pub fn config(&self) -> PathBuf {
        self.path(if self.caller.uid == 0 { "config" } else { "home/.config/lifeboat" })
    }

    pub fn policy_file(&self) -> PathBuf {
        self.config().join(format!("policies/{}.toml", self.policy))
    }

    /// The recipient in the policy that `init` wrote.
    pub fn recipient(&self) -> String {
        let policy = fs::read_to_string(self.policy_file()).unwrap();
        policy.split('"').find(|part| part.starts_with("age1")).unwrap().to_owned()
    }

    /// `lifeboat init` of the folder.
    pub fn init(&self) {
        let repository = self.path("repository");
        let app = self.app();
        let args =
            ["init", app.to_str().unwrap(), "--name", &self.policy, "--repository", repository.to_str().unwrap()];
        self.run(&args).exits(0);
        // These tests name their sources themselves; what `init` finds has tests of its own.
        let policy = fs::read_to_string(self.policy_file()).unwrap();
        let head = policy.split("\n[[").next().unwrap();
        fs::write(self.policy_file(), head).unwrap();
    }

    /// The policy that `init` wrote, and these sources.
    pub fn add_to_policy(&self, text: &str) {
        let policy = fs::read_to_string(self.policy_file()).unwrap();
        fs::write(self.policy_file(), format!("{policy}\n{text}\n")).unwrap();
    }

    pub fn change_policy(&self, from: &str, to: &str) {
        let policy = fs::read_to_string(self.policy_file()).unwrap();
        assert!(policy.contains(from), "{from:?} is not in\n{policy}");
        fs::write(self.policy_file(), policy.replace(from, to)).unwrap();
    }

    /// The binary, as the caller; root with folders of its own, anybody else with a home of his own.
    pub fn command(&self, args: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_lifeboat");
        let mut command = match self.caller.uid {
            0 => {
                let mut command = Command::new(binary);
                command.arg("--config-dir").arg(self.path("config")).arg("--state-dir").arg(self.path("state"));
                command
            }
            uid => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={uid}")).arg(format!("--regid={}", self.caller.gid));
                match self.caller.groups.as_slice() {
                    [] => command.arg("--clear-groups"),
                    groups => {
                        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
                        command.arg(format!("--groups={}", groups.join(",")))
                    }
                };
                command.arg(self.path("lifeboat"));
                command
            }
        };
        command.args(args);
        self.own(command)
    }

    /// With an environment that says nothing but where its home is.
    fn own(&self, mut command: Command) -> Command {
        command.env_clear().env("HOME", self.path("home"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.run(&all).json()
    }

    /// `snapshot`, which must end with this code; what it says of itself.
    #[track_caller]
    pub fn snapshot(&self, code: i32) -> Value {
        self.run(&["snapshot", "--json"]).exits(code).json()
    }

    /// What `show` says of a snapshot.
    #[track_caller]
    /// Drills a snapshot in the services' own images: all that ran must have passed.
    pub fn drill(&self, id: &str) -> Value {
        let report = self.json(&["drill", id]);
        let checks = report["sources"].as_array().unwrap().iter().flat_map(|s| {
            let name = s["name"].clone();
            s["checks"].as_array().unwrap().iter().map(move |c| (name.clone(), c.clone()))
        });
        let failed: Vec<_> = checks.filter(|(_, c)| c["verdict"] == "failed").collect();
        assert!(report["outcome"] == "passed" && failed.is_empty(), "{failed:#?}\n{:#}", report["notes"]);
        report
    }

    pub fn show(&self, id: &str) -> Value {
        self.json(&["show", id])
    }

    /// A whole snapshot in a folder, laid out by root, who can give every file its owner. What an ordinary user's run
    /// stored is opened as after a total loss: with nothing but the repository and the identity.
    #[track_caller]
    pub fn restore(&self, id: &str, into: &str, code: i32) -> PathBuf {
        let into = self.path(into);
        let args = ["restore", id, "--into", into.to_str().unwrap()];
        if self.caller.uid == 0 {
            self.run(&args).exits(code);
            self.run(&["verify", "--deep"]).exits(0);
            return into;
        }
        let (repository, identity) = (self.path("repository"), self.config().join("identity.txt"));
        let mut command = self.own(Command::new(env!("CARGO_BIN_EXE_lifeboat")));
        command.arg("--config-dir").arg(self.path("nowhere")).arg("--state-dir").arg(self.path("nothing")).args(args);
        command.arg("--repository").arg(repository).arg("--identity").arg(identity).arg("--trust-on-first-use");
        Ran::from(command.output().unwrap()).exits(code);
        into
    }

    /// The container of a service.
    pub fn container(&self, service: &str) -> String {
        self.project.compose(&["ps", "-q", service]).trim().to_owned()
    }

    /// Runs a program in a service with these variables and these bytes on standard input; its output.
    #[track_caller]
    pub fn exec(&self, service: &str, env: &[(&str, &str)], argv: &[&str], input: &[u8]) -> String {
        use std::io::Write;
        let mut command = Command::new("docker");
        command.args(["exec", "-i"]);
        // The program's own environment, and only the names as arguments.
        for (name, value) in env {
            command.args(["-e", name]).env(name, value);
        }
        command.arg(self.container(service)).args(argv);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input));
            child.wait_with_output().unwrap()
        });
        assert!(output.status.success(), "{argv:?} in {service}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// SQL in a database, as the server's superuser.
    #[track_caller]
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "keeper", "-d", database];
        self.exec("db", &[("PGPASSWORD", &password("db"))], &argv, sql.as_bytes())
    }

    /// Commands for Redis, one a line.
    #[track_caller]
    pub fn redis(&self, commands: &str) -> String {
        self.exec("cache", &[("REDISCLI_AUTH", &password("redis"))], &["redis-cli"], commands.as_bytes())
    }

    /// Where a volume of the project lies on this host.
    pub fn volume(&self, name: &str) -> PathBuf {
        let volume = format!("{}_{name}", self.project.name);
        docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &volume]).into()
    }

    /// Whether a process of this machine runs in the container with this id.
    pub fn runs_in(container: &str, pid: u32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(container))
    }

    /// Data in every store.
    pub fn fill(&self) {
        let script = format!(
            "create role shop login password '{}';\ncreate role reader;\ngrant reader to shop;\n\
             create database shop owner shop;\n",
            password("app")
        );
        self.sql("postgres", &script);
        self.sql(
            "shop",
            &format!(
                "create extension pg_trgm;\nset role shop;\n\
                 create table orders (id serial primary key, customer text not null, note text);\n\
                 insert into orders (customer, note) select 'c' || n, md5(n::text) from generate_series(1, {ORDERS}) n;\n\
                 create table \"odd \"\"name\"\"\" (\"größe\" text unique);\n\
                 insert into \"odd \"\"name\"\"\" values ('a'), (E'b\\nc'), ('d''e');\n\
                 create index on orders (customer);\n\
                 create view big as select * from orders where id > 10;\n\
                 select lo_from_bytea(0, '\\x0001ff');\n"
            ),
        );
        let mut redis = String::new();
        for n in 0..KEYS[0] {
            redis += &format!("SET key:{n} value-{n}\n");
        }
        redis += "EXPIRE key:1 86400\nHSET basket a 1 b 2\nSELECT 3\n";
        for n in 0..KEYS[1] {
            redis += &format!("RPUSH queue:{n} job\n");
        }
        self.redis(&redis);
        self.exec("api", &[], &["bash", "-e"], DOCUMENTS.as_bytes());
    }
}

/// Uploaded documents: names, owners, modes, times, links, holes.
const DOCUMENTS: &str = r#"
cd /srv/storage
mkdir -p invoices/2026 empty
head -c 300000 /dev/urandom >invoices/2026/scan.bin
printf 'Grüße\n' >"invoices/naïve name.txt"
: >invoices/nothing
ln -s 2026/scan.bin invoices/latest
ln invoices/2026/scan.bin invoices/same
dd if=/dev/null of=hole bs=1 seek=2M 2>/dev/null
printf end >>hole
chown -R 1000:1001 invoices
chmod 0640 invoices/nothing
chmod 0710 empty
touch -d '2001-02-03 04:05:06.789' invoices/nothing
"#;

fn write_app(app: &Path, shape: &Shape) {
    fs::create_dir_all(app.join("nginx/conf.d")).unwrap();
    fs::create_dir_all(app.join("backend")).unwrap();
    fs::write(app.join(shape.compose), COMPOSE.replace("IMAGE", IMAGE).replace("[.env]", &format!("[{}]", shape.env)))
        .unwrap();
    fs::write(app.join("nginx/nginx.conf"), NGINX).unwrap();
    fs::write(app.join("nginx/conf.d/shop.conf"), SITE).unwrap();
    fs::write(app.join(".gitignore"), ".env*\nbackend/.env.production\n").unwrap();
    git(app, &["init", "-q", "-b", "main"]);
    git(app, &["add", "."]);
    git(app, &["commit", "-q", "-m", "the shop"]);
    git(app, &["tag", "v1.0.0"]);
    // Done by hand on the server, as people do.
    let compose = fs::read_to_string(app.join(shape.compose)).unwrap();
    fs::write(app.join(shape.compose), compose.replace("  web:\n", "  web:\n    hostname: shop-web\n")).unwrap();
    let env = format!(
        "# secrets\nDB_PASSWORD={}\nREDIS_PASSWORD='{}'\nAPP_PASSWORD=\"{}\"\nENCRYPTION_KEY={}\n",
        password("db"),
        password("redis"),
        password("app"),
        "0f".repeat(32)
    );
    fs::write(app.join(shape.env), env).unwrap();
    fs::write(app.join("backend/.env.production"), format!("REDIS_PASSWORD={}\n", password("redis"))).unwrap();
    for file in [shape.env, "backend/.env.production"] {
        fs::set_permissions(app.join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Gives a folder to the caller.
fn own(dir: &Path, caller: &Caller) {
    let owner = format!("{}:{}", caller.uid, caller.gid);
    assert!(Command::new("chown").args(["-R", &owner]).arg(dir).status().unwrap().success());
}

#[track_caller]
pub fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "safe.directory=*", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A process of this machine.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    /// Never empty.
    pub arguments: Vec<String>,
}

/// Every process of this machine that has arguments.
pub fn processes() -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let arguments: Vec<String> = line.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        if arguments.iter().any(|a| !a.is_empty()) {
            found.push(Process { pid, arguments });
        }
    }
    found
}

/// A source of a snapshot, by name.
#[track_caller]
pub fn source<'v>(shown: &'v Value, name: &str) -> &'v Value {
    let sources = shown["sources"].as_array().unwrap_or_else(|| panic!("no sources in {shown:#}"));
    sources.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no source {name} in {shown:#}"))
}

/// What a program of this host prints; it must succeed.
#[track_caller]
pub fn host(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Every image that pins this policy.
pub fn pins(policy: &str) -> Vec<String> {
    let listed = docker(["images", "--format", "{{.Repository}}:{{.Tag}}", &format!("lifeboat/{policy}-*")]);
    listed.split_whitespace().map(str::to_owned).collect()
}
