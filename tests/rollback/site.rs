//! The application: version 1 tagged and captured, version 2 live.

use crate::docker::{IMAGE, TestProject, docker, engine, host, try_docker, unique};
use crate::world::{Ran, World};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `/version` is the image's, `/code/version` the checkout's, `$MODE` the env file's, `/data/state` the volume's.
const COMPOSE: &str = r#"
services:
  cache:
    image: HOST
    user: redis
    command: ["redis-server", "--dir", "/var/lib/redis", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
    volumes: ["cache:/var/lib/redis"]
    ports: [PORT-OF-CACHE]
    healthcheck: {test: ["CMD", "redis-cli", "ping"], interval: 1s, retries: 60}
    restart: "RESTART"
  api:
    image: APP
    build: {context: ., args: {BASE: HOST}}
    env_file: [.env]
    depends_on: {cache: {condition: service_healthy}}
    command: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"]
    stop_grace_period: 2s
    ports: [PORT-OF-API]
    restart: "RESTART"
    volumes: ["data:/data", "./code:/code:ro"]
    healthcheck:
      test: ["CMD-SHELL", "test -n \"$$MODE\" && test \"$$MODE\" = \"$$(cat /version)\" && test \"$$MODE\" = \"$$(cat /code/version)\" && test \"$$MODE\" = \"$$(cat /data/state)\""]
      interval: 1s
      retries: 3
EXTRADATABASE
volumes: {data: {}, cache: {}, pgdata: {}}
"#;

/// As the official image: the server of its own version, on the cluster that is there, else on a new one.
const DATABASE: &str = r#"
  db:
    image: SERVER
    environment: {POSTGRES_USER: keeper, POSTGRES_PASSWORD: "pg-secret-of-a-test", POSTGRES_DB: shop, PGDATA: /var/lib/postgresql/data}
    command:
      - bash
      - -ec
      - |
        B=$$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
        as() { setpriv --reuid=70 --regid=70 --clear-groups "$$@"; }
        mkdir -p /var/run/postgresql && chown 70:70 /var/run/postgresql
        if [ ! -s "$$PGDATA/PG_VERSION" ]; then
          as bash -c 'printf %s "$$POSTGRES_PASSWORD" >/tmp/pw'
          as $$B/initdb -N -A scram-sha-256 -U "$$POSTGRES_USER" --pwfile=/tmp/pw -E UTF8 --locale=C.UTF-8 -D "$$PGDATA" >/dev/null
          as bash -c "echo 'CREATE DATABASE shop' | $$B/postgres --single -D $$PGDATA postgres" >/dev/null
        fi
        exec setpriv --reuid=70 --regid=70 --clear-groups $$B/postgres -D "$$PGDATA" -c listen_addresses='' \
          -c unix_socket_directories=/var/run/postgresql,/tmp -c dynamic_shared_memory_type=posix -c fsync=off
    stop_grace_period: 5s
    volumes: ["pgdata:/var/lib/postgresql"]
    healthcheck: {test: ["CMD", "pg_isready", "-q", "-h", "/var/run/postgresql"], interval: 1s, timeout: 5s, retries: 30}
    restart: "RESTART"
"#;

const EXTRA: &str =
    "  extra:\n    image: HOST\n    command: [\"sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 0.2; done\"]\n";

const POLICY: &str = r#"
[[source]]
kind = "volume"
name = "data"
volumes = ["data"]
on_rollback = "exact"
[[source]]
kind = "redis"
name = "cache"
service = "cache"
[[health]]
container = "api"
attempts = 20
interval = "1s"
"#;

pub struct Site {
    /// Goes before the folder that it was made from.
    pub project: TestProject,
    pub world: World,
    pub uid: u32,
    image: String,
    policy: String,
    /// What its containers do when the engine comes back.
    pub restart: &'static str,
    /// Of the api and of the cache.
    ports: [Option<u16>; 2],
    /// The images of its database server: of version 1, and of version 2.
    servers: Option<[&'static str; 2]>,
}

impl Drop for Site {
    fn drop(&mut self) {
        let listed = try_docker(["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let pins = format!("lifeboat/{}-", self.policy);
        // The project goes first; it is dropped after this, so its containers are removed here.
        let down = ["compose", "-p", &self.project.name, "down", "-v", "--timeout", "1", "--remove-orphans"];
        try_docker(down);
        for name in listed.lines().filter(|l| l.starts_with(&pins) || l.starts_with(&format!("{}:", self.image))) {
            try_docker(["rmi", "-f", name]);
        }
    }
}

impl Site {
    /// Version 1 captured as `v1`, version 2 live and captured as `v2`.
    pub fn new(uid: u32) -> Self {
        Self::first(uid).second()
    }

    /// The same with a port of this host for each service.
    pub fn with_ports(api: u16, cache: u16) -> Self {
        engine();
        Self::made(0, "no", [Some(api), Some(cache)]).second()
    }

    /// The same on another engine, which `use_engine` names.
    pub fn on_private_engine(restart: &'static str) -> Self {
        Self::made(0, restart, [None, None]).second()
    }

    /// Version 1 alone, with a database server of another major version in each version.
    pub fn with_database(servers: [&'static str; 2]) -> Self {
        engine();
        Self::of_servers(0, "no", [None, None], Some(servers))
    }

    fn second(self) -> Self {
        self.run(&["snapshot", "--tag", "v1"]).exits(0);
        self.upgrade();
        self.run(&["snapshot", "--tag", "v2"]).exits(0);
        self
    }

    /// Version 1 alone.
    pub fn first(uid: u32) -> Self {
        engine();
        Self::made(uid, "no", [None, None])
    }

    fn made(uid: u32, restart: &'static str, ports: [Option<u16>; 2]) -> Self {
        Self::of_servers(uid, restart, ports, None)
    }

    fn of_servers(
        uid: u32,
        restart: &'static str,
        ports: [Option<u16>; 2],
        servers: Option<[&'static str; 2]>,
    ) -> Self {
        let world = World::new();
        let name = unique("rollback");
        let app = world.app();
        let _ = fs::remove_dir_all(&app);
        fs::create_dir_all(app.join("code")).unwrap();
        let image = format!("{name}-app");
        fs::write(app.join("Dockerfile"), "ARG BASE\nFROM $BASE\nCOPY code/version /version\n").unwrap();
        fs::write(app.join(".gitignore"), ".env\n").unwrap();
        let project = TestProject { dir: app.clone(), name: name.clone(), arguments: Vec::new() };
        let site = Self { world, project, uid, image, policy: name, restart, ports, servers };
        site.write_version(1, "");
        site.own();
        site.git(&["init", "-q", "-b", "main"]);
        site.commit("one");
        site.fill("1");
        site.compose_up();
        fs::copy(env!("CARGO_BIN_EXE_lifeboat"), site.world.path("lifeboat")).unwrap();
        site.run(&["init", app.to_str().unwrap(), "--name", &site.policy]).exits(0);
        let text = fs::read_to_string(site.policy_file()).unwrap();
        let head: Vec<&str> = text.split("\n[[source]]").take(1).collect();
        fs::write(site.policy_file(), format!("{}\n{POLICY}", head[0])).unwrap();
        site
    }

    pub fn policy_file(&self) -> PathBuf {
        self.world.path(&format!("config/policies/{}.toml", self.policy))
    }

    pub fn add_to_policy(&self, text: &str) {
        let policy = fs::read_to_string(self.policy_file()).unwrap();
        fs::write(self.policy_file(), format!("{policy}\n{text}\n")).unwrap();
    }

    /// Everything belongs to the caller.
    fn own(&self) {
        if self.uid != 0 {
            fs::set_permissions(self.world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let own = format!("{0}:{0}", self.uid);
            assert!(Command::new("chown").args(["-R", &own]).arg(self.world.dir.path()).status().unwrap().success());
        }
    }

    /// Code, env and compose file of a version, not committed.
    pub fn write_version(&self, version: u32, extra: &str) {
        let app = self.world.app();
        let database = self.servers.map(|servers| DATABASE.replace("SERVER", servers[version as usize - 1]));
        let compose = COMPOSE.replace("DATABASE", &database.unwrap_or_default());
        let compose = compose.replace("EXTRA", extra).replace("RESTART", self.restart);
        let port = |port: Option<u16>| port.map(|p| format!("\"127.0.0.1:{p}:6379\"")).unwrap_or_default();
        let [api, cache] = self.ports.map(port);
        let compose = compose
            .replace("PORT-OF-API", &api)
            .replace("PORT-OF-CACHE", &cache)
            .replace("HOST", IMAGE)
            .replace("APP", &self.image);
        fs::write(app.join("compose.yaml"), compose).unwrap();
        fs::write(app.join("code/version"), format!("{version}\n")).unwrap();
        fs::write(app.join(".env"), format!("MODE={version}\nCOMPOSE_PROJECT_NAME={}\n", self.project.name)).unwrap();
    }

    pub fn commit(&self, message: &str) {
        self.git(&["add", "-A"]);
        self.git(&["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", message]);
    }

    #[track_caller]
    pub fn git(&self, arguments: &[&str]) -> String {
        let mut command = self.as_caller("git");
        let output = command.args(arguments).current_dir(self.world.app()).output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn as_caller(&self, program: &str) -> Command {
        let mut command = if self.uid == 0 {
            Command::new(program)
        } else {
            let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
            let mut command = Command::new("setpriv");
            command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.uid));
            command.arg(format!("--groups={group}")).arg(program);
            command
        };
        command.env_clear().env("HOME", self.world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
        command.envs(host().map(|host| ("DOCKER_HOST", host)));
        command.stdin(Stdio::null());
        command
    }

    pub fn compose_up(&self) {
        self.own();
        self.project.compose(&["build", "-q"]);
        self.project.compose(&["up", "-d", "--wait"]);
        self.own();
    }

    /// The volume's content.
    pub fn fill(&self, state: &str) {
        let volume = format!("{}_data", self.project.name);
        let labels =
            [format!("com.docker.compose.project={}", self.project.name), "com.docker.compose.volume=data".to_owned()];
        docker(["volume", "create", "--label", &labels[0], "--label", &labels[1], &volume]);
        let script = format!("echo {state} > /data/state; echo more > /data/of-{state}");
        docker(["run", "--rm", "-v", &format!("{volume}:/data"), IMAGE, "sh", "-c", &script]);
    }

    /// To version 2: code, image, env, data, and one service more.
    pub fn upgrade(&self) {
        self.write_version(2, &EXTRA.replace("HOST", IMAGE));
        self.own();
        self.commit("two");
        self.fill("2");
        self.compose_up();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.as_caller(self.world.path("lifeboat").to_str().unwrap());
        command.arg("--config-dir").arg(self.world.path("config")).arg("--state-dir").arg(self.world.path("state"));
        command.args(arguments).current_dir(self.world.dir.path());
        command
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    pub fn inspect(&self, service: &str, format: &str) -> String {
        let container = format!("{}-{service}-1", self.project.name);
        String::from_utf8_lossy(&try_docker(["inspect", "-f", format, &container]).stdout).trim().to_owned()
    }

    pub fn running(&self) -> Vec<String> {
        let label = format!("label=com.docker.compose.project={}", self.project.name);
        let listed = docker(["ps", "--filter", &label, "--format", "{{.Label \"com.docker.compose.service\"}}"]);
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    pub fn in_api(&self, script: &str) -> String {
        let container = format!("{}-api-1", self.project.name);
        String::from_utf8_lossy(&try_docker(["exec", &container, "sh", "-c", script]).stdout).trim().to_owned()
    }

    pub fn healthy(&self) -> bool {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if self.inspect("api", "{{.State.Health.Status}}") == "healthy" {
                return true;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        false
    }

    /// Which version is live, of everything; and it is well.
    #[track_caller]
    pub fn is(&self, version: u32) {
        let app = self.world.app();
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        assert_eq!(text(&app.join("code/version")), version.to_string(), "the code");
        assert!(text(&app.join(".env")).contains(&format!("MODE={version}")), "the env");
        assert_eq!(text(&app.join("compose.yaml")).contains("extra:"), version == 2, "the compose file");
        assert!(self.healthy(), "the api is not well: {}", self.inspect("api", "{{json .State.Health}}"));
        assert_eq!(self.in_api("cat /version"), version.to_string(), "the image");
        assert_eq!(self.in_api("cat /data/state"), version.to_string(), "the data");
        let mut running = vec!["api", "cache"];
        running.extend(self.servers.map(|_| "db"));
        running.extend((version == 2).then_some("extra"));
        assert_eq!(self.running(), running);
    }

    /// Nothing beside the live state but what is kept on purpose.
    #[track_caller]
    pub fn nothing_left(&self) {
        let volume: PathBuf =
            docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &format!("{}_data", self.project.name)]).into();
        for dir in [self.world.app(), volume] {
            let names: Vec<String> =
                fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            assert!(names.iter().all(|n| !n.starts_with(".lifeboat")), "{names:?}");
        }
        for entry in fs::read_dir(self.world.path("state/rollback")).into_iter().flatten() {
            let path = entry.unwrap().path();
            assert!(path.is_file(), "{}", path.display());
        }
    }
}
