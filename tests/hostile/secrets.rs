//! Canaries in every credential: none in an argument, in the environment of a program that is not meant to have it, in
//! what is printed or logged, or in a file that stays.

use crate::cli::{CANARY, Ran, World};
use crate::postgres::PostgresServer;
use crate::redis::RedisServer;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Another one, for what is wrong.
const WRONG: &str = "wr0ng-c4n4ry-91be77";

/// What must never be seen: the application's, the repository's.
fn canaries(world: &World) -> Vec<String> {
    let identity = fs::read_to_string(world.identity()).unwrap();
    let identity = identity.lines().find(|l| l.starts_with("AGE-SECRET-KEY-1")).unwrap().to_owned();
    let host_key = fs::read_to_string(world.path("config/host.key")).unwrap();
    let secrets = host_key.lines().filter(|l| l.starts_with("dedup") || l.starts_with("signing"));
    let secrets: Vec<String> = secrets.map(|l| l.split('"').nth(1).unwrap().to_owned()).collect();
    assert_eq!(secrets.len(), 2, "{host_key}");
    [vec![CANARY.to_owned(), WRONG.to_owned(), identity], secrets].concat()
}

/// Programs that get a secret by their environment, on purpose.
const MAY_KNOW: &[&str] = &["psql", "pg_dump", "pg_dumpall", "pg_restore", "redis-cli"];

/// Runs the command and looks at everything that it starts, prints and writes down meanwhile. Whoever starts it lets
/// everybody read what he makes (umask 000). What it leaves behind in the background goes on alone.
pub fn watched(world: &World, canaries: &[String], args: &[&str], environment: &[(&str, &str)]) -> Ran {
    let (log, code) = (world.path("trace"), world.path("code"));
    let printed = ["printed", "complained"].map(|name| world.path(name));
    let _ = fs::remove_file(&code);
    let plain = world.command(args);
    let mut command = Command::new("sh");
    command.args(["-c", "umask 000; exec \"$@\"", "sh", "strace"]);
    // `-I 1`: it can be told to leave.
    command.args(["-I", "1", "-f", "-qq", "-v", "-s", "100000", "-e", "trace=execve", "-o"]).arg(&log);
    let ends = "code=$1; shift; \"$@\"; echo $? > \"$code.new\"; mv \"$code.new\" \"$code\"";
    command.args(["sh", "-c", ends, "sh"]).arg(&code);
    command.arg(plain.get_program()).args(plain.get_args()).env_clear().env("HOME", world.dir.path());
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("TMPDIR", world.path("tmp"));
    command.envs(environment.iter().copied()).current_dir(world.dir.path()).stdin(Stdio::null());
    command.stdout(fs::File::create(&printed[0]).unwrap()).stderr(fs::File::create(&printed[1]).unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| written(world, canaries, &done));
        let mut child = command.spawn().unwrap();
        while !code.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // A server that was started again runs on, and is left to itself.
        if child.try_wait().unwrap().is_none() {
            let id = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        }
        child.wait().unwrap();
        done.store(true, Ordering::SeqCst);
        let (open, secret) = watcher.join().unwrap();
        assert!(open.is_empty(), "{args:?}: others may read {open:?}");
        assert!(secret.is_empty(), "{args:?}: secrets are written to {secret:?}");
    });
    let [out, err] = printed.map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
    let told = format!("{out}{err}");
    let calls = fs::read_to_string(&log).unwrap();
    assert!(calls.contains("execve("), "nothing was seen");
    for canary in canaries {
        assert!(!told.contains(canary), "{args:?} tells {canary}: {told}");
        for call in calls.lines().filter(|c| c.contains(canary.as_str())) {
            let (arguments, environment) = call.split_once("], [").unwrap_or((call, ""));
            assert!(!arguments.contains(canary), "{args:?}: an argument: {call}");
            let program = arguments.split('"').nth(1).unwrap_or_default().rsplit('/').next().unwrap_or_default();
            let meant = environment.contains("PGPASSWORD=") || environment.contains("REDISCLI_AUTH=");
            // pg_dumpall asks the pg_dump beside it for its version through a shell of its own.
            let by_pg_dumpall = program == "sh" && arguments.contains("pg_dump\\\" -V");
            // This program itself is given the key of its object store by whoever starts it, which is the shell above.
            let is_starter = ["sh", "mv"].contains(&program) && arguments.contains(code.to_str().unwrap());
            let itself = (program == "lifeboat" || is_starter) && environment.contains("AWS_SECRET_ACCESS_KEY=");
            let known = itself || (MAY_KNOW.contains(&program) || by_pg_dumpall) && meant;
            assert!(known, "{args:?}: in the environment of {program}: {call}");
        }
    }
    let code = fs::read_to_string(code).ok().and_then(|text| text.trim().parse().ok());
    Ran { code: code.unwrap_or(-1), out, err }
}

/// While a run goes on: files of it that somebody else may read, and temporary ones with a secret in them.
fn written(world: &World, canaries: &[String], done: &AtomicBool) -> (Vec<String>, Vec<String>) {
    let (mut found, mut secret) = (Vec::new(), Vec::new());
    let tmp = world.path("tmp");
    while !done.load(Ordering::SeqCst) {
        let mut ahead = vec![world.path("tmp"), world.path("state")];
        while let Some(dir) = ahead.pop() {
            // What was there a moment ago may be gone.
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                let is_private = meta.is_dir() && meta.permissions().mode() & 0o077 == 0;
                if is_private && !entry.path().starts_with(&tmp) {
                    continue;
                }
                if meta.is_dir() {
                    ahead.push(entry.path());
                } else if meta.is_file() && meta.permissions().mode() & 0o077 != 0 {
                    found.push(entry.path().display().to_string());
                }
                // A drill lays out the application's own env files there, in a folder that is its alone.
                let is_captured = entry.file_name() == ".env" && entry.path().to_string_lossy().contains("/.trees/");
                if meta.is_file() && entry.path().starts_with(&tmp) && !is_captured && holds(&entry.path(), canaries) {
                    secret.push(entry.path().display().to_string());
                }
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    for all in [&mut found, &mut secret] {
        all.sort();
        all.dedup();
    }
    (found, secret)
}

fn holds(path: &Path, canaries: &[String]) -> bool {
    // It may be gone by now.
    let bytes = fs::read(path).unwrap_or_default();
    canaries.iter().any(|c| bytes.windows(c.len()).any(|w| w == c.as_bytes()))
}

/// Files below a folder that hold one of these.
pub fn holding(dir: &Path, canaries: &[String]) -> Vec<String> {
    let mut command = Command::new("grep");
    command.args(["-rlaF"]);
    for canary in canaries {
        command.args(["-e", canary]);
    }
    let out = command.arg(dir).output().unwrap();
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn no_secret_is_seen_anywhere() {
    let postgres = PostgresServer::start();
    postgres.sql("postgres", "create database shop");
    postgres.sql("shop", "create table t as select generate_series(1, 100) n");
    let redis = RedisServer::start_with(&["--requirepass", CANARY]);
    redis.cli(&["SET", "a", "1"]);
    let world = World::ready();
    fs::create_dir(world.path("tmp")).unwrap();
    let env = |password: &str| {
        let text =
            format!("DB_PASSWORD={password}\nREDIS_PASSWORD={password}\nHOOK=http://127.0.0.1:1/{CANARY}\nMODE=x\n");
        fs::write(world.app().join(".env"), text).unwrap();
    };
    env(CANARY);
    world.add_to_policy(&format!(
        "[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {:?}\npassword_from = \".env:DB_PASSWORD\"\n\
         [[source]]\nkind = \"redis\"\nname = \"cache\"\nurl = {:?}\npassword_from = \".env:REDIS_PASSWORD\"\n\
         [notify]\nwebhook = \".env:HOOK\"\n",
        postgres.tcp_url("postgres", "shop", postgres.port),
        redis.url()
    ));
    let canaries = canaries(&world);
    let see = |args: &[&str]| watched(&world, &canaries, args, &[("RUST_LOG", "trace")]);
    see(&["snapshot", "--tag", "first", "-vv"]).exits(0);
    for args in [
        &["snapshot", "--json"][..],
        &["list", "--json"],
        &["show", "latest", "--json"],
        &["verify", "--deep"],
        &["doctor", "--json"],
        &["history", "--json"],
        &["policy", "show"],
        &["keys", "show"],
        &["diff", "latest~1", "latest"],
        &["drill"],
        &["drill", "--json", "--only", "env"],
        &["restore", "latest", "--into", "out", "--json"],
        &["restore", "first", "--in-place", "--only", "env", "--only", "uploads", "--yes"],
        &["rollback", "--to", "first", "--dry-run"],
        &["notify", "test"],
        &["status", "--json"],
    ] {
        see(args);
    }
    // What fails tells no more than what works.
    env(WRONG);
    let failed = see(&["snapshot", "--json"]);
    assert_ne!(failed.code, 0, "the server refuses the password: {}", failed.out);
    fs::write(world.app().join(".env"), format!("DB_PASSWORD=\"{CANARY}\nREDIS_PASSWORD={WRONG}\n")).unwrap();
    for args in [&["snapshot"][..], &["doctor"], &["policy", "check"]] {
        see(args);
    }
    env(CANARY);
    // A key file that is damaged is not quoted.
    let key = fs::read_to_string(world.identity()).unwrap();
    fs::write(world.identity(), key.replace("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-2")).unwrap();
    assert_ne!(see(&["restore", "latest", "--into", "again"]).code, 0);
    fs::write(world.identity(), key).unwrap();
    fs::write(world.path("config/host.key"), "dedup = \"x").unwrap();
    assert_ne!(see(&["snapshot"]).code, 0);

    // What stays: nothing temporary; in the state folder a replaced env file of the transaction at most, and private.
    assert_eq!(holding(&world.path("tmp"), &canaries), Vec::<String>::new());
    for file in holding(&world.path("state"), &canaries) {
        assert!(file.contains("/rollback/"), "{file} holds a secret");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0, "{file}");
    }
    assert_eq!(fs::read_dir(world.path("tmp")).unwrap().count(), 0, "temporary files stay");
}

/// A Redis of this host with a configuration file, in the background: a restore in place stops it and starts it again.
struct Background {
    dir: tempfile::TempDir,
    port: u16,
}

impl Background {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("lifeboat-redis-").tempdir().unwrap();
        let port = crate::port::free_port();
        let text = format!(
            "bind 127.0.0.1\nport {port}\ndir {0}\nlogfile {0}/log\nrequirepass {CANARY}\ndaemonize yes\n",
            dir.path().display()
        );
        fs::write(dir.path().join("redis.conf"), text).unwrap();
        let this = Self { dir, port };
        let started = Command::new("redis-server").arg(this.dir.path().join("redis.conf")).current_dir("/").status();
        assert!(started.unwrap().success());
        let begun = std::time::Instant::now();
        while !this.cli(&["PING"]).contains("PONG") {
            assert!(begun.elapsed().as_secs() < 30, "Redis does not start");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        this
    }

    fn cli(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(words).env("REDISCLI_AUTH", CANARY);
        String::from_utf8_lossy(&command.output().unwrap().stdout).trim().to_owned()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.cli(&["SHUTDOWN", "NOSAVE"]);
    }
}

#[test]
fn no_secret_is_seen_when_data_comes_back() {
    let postgres = PostgresServer::start();
    postgres.sql("postgres", "create database shop");
    postgres.sql("shop", "create table t as select generate_series(1, 100) n");
    postgres.sql("postgres", &format!("alter user postgres password '{CANARY}'"));
    let hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    fs::write(postgres.sql("postgres", "show hba_file").trim(), hba).unwrap();
    postgres.sql("postgres", "select pg_reload_conf()");
    let redis = Background::start();
    redis.cli(&["SET", "a", "good"]);
    let world = World::ready();
    fs::create_dir(world.path("tmp")).unwrap();
    let env = |password: &str| {
        let text = format!("DB_PASSWORD={password}\nREDIS_PASSWORD={password}\nMODE=x\n");
        fs::write(world.app().join(".env"), text).unwrap();
    };
    env(CANARY);
    world.add_to_policy(&format!(
        "[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {:?}\npassword_from = \".env:DB_PASSWORD\"\n\
         [[source]]\nkind = \"redis\"\nname = \"cache\"\nurl = \"redis://127.0.0.1:{}\"\n\
         password_from = \".env:REDIS_PASSWORD\"\non_rollback = \"restore\"\n",
        postgres.tcp_url("postgres", "shop", postgres.port),
        redis.port
    ));
    let mut known = canaries(&world);
    let see = |known: &[String], args: &[&str]| watched(&world, known, args, &[("RUST_LOG", "trace")]);
    see(&known, &["snapshot", "--tag", "first"]).exits(0);
    let spoil = || {
        postgres.sql("shop", "insert into t values (101)");
        redis.cli(&["SET", "a", "spoilt"]);
        fs::write(world.app().join("uploads/one.txt"), "spoilt\n").unwrap();
    };
    let rows = || postgres.sql("shop", "select count(*) from t");
    spoil();
    // What fails first tells no more: the server refuses the password.
    env(WRONG);
    for source in ["db", "cache"] {
        let ran = see(&known, &["restore", "first", "--in-place", "--only", source, "--yes", "-vv"]);
        assert_ne!(ran.code, 0, "{source}: {ran:?}");
    }
    env(CANARY);
    for source in ["db", "cache"] {
        see(&known, &["restore", "first", "--in-place", "--only", source, "--yes", "-vv"]).exits(0);
    }
    assert_eq!((rows().trim(), redis.cli(&["GET", "a"]).as_str()), ("100", "good"));
    for _ in 0..2 {
        see(&known, &["restore", "--undo", "--yes", "--json"]).exits(0);
    }
    assert_eq!((rows().trim(), redis.cli(&["GET", "a"]).as_str()), ("101", "spoilt"));
    see(&known, &["rollback", "--to", "first", "--yes", "--json"]).exits(0);
    assert_eq!((rows().trim(), redis.cli(&["GET", "a"]).as_str()), ("100", "good"));
    see(&known, &["rollback", "--undo", "--yes"]).exits(0);

    see(&known, &["copy", "--to", "twice", "--read-back", "--json"]).exits(0);
    fs::write(world.path("passphrase"), format!("{WRONG}\n")).unwrap();
    let passphrase = world.path("passphrase").display().to_string();
    for args in [
        &["recovery-kit"][..],
        &["recovery-kit", "--json"],
        &["recovery-kit", "--page", "plain.html"],
        &["recovery-kit", "--with-identity", "--passphrase", &passphrase, "--page", "sealed.html"],
        &["keys", "show", "--json"],
        &["keys", "rotate", "-vv"],
    ] {
        see(&known, args).exits(0);
    }
    // The key of before stays a secret, and the new one is one.
    known.extend(canaries(&world));
    for args in [&["keys", "show"][..], &["snapshot"], &["history", "--json"], &["doctor"]] {
        see(&known, args);
    }
    assert_eq!(holding(&world.path("tmp"), &known), Vec::<String>::new());
    for dir in ["twice", "plain.html", "sealed.html", "state/history.db"] {
        assert_eq!(holding(&world.path(dir), &known), Vec::<String>::new(), "{dir}");
    }
    for file in holding(&world.path("state"), &known) {
        assert!(file.contains("/rollback/"), "{file} holds a secret");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0, "{file}");
    }
    assert_eq!(fs::read_dir(world.path("tmp")).unwrap().count(), 0, "temporary files stay");
}
