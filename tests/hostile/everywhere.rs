//! Canaries in what reaches other machines: the key of an object store, the password of a mail server, addresses that
//! are secrets themselves. None in what is printed at any level, in an argument or the environment of another program,
//! in the name or the content of a stored object, in the state folder, in a number or a page of the service.

use crate::cli::{CANARY, Ran, World};
use crate::daily::half_a_day_away;
use crate::hear::Ear;
use crate::s3::{BUCKET, Kind, S3Server, SECRET};
use crate::secrets::{holding, watched};
use crate::sink::Sink;
use base64::Engine;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MAIL: &str = "m41l-c4n4ry-5d20";
const TOKENS: &[&str] = &["h00k-c4n4ry-11", "sl4ck-c4n4ry-22", "d1sc0rd-c4n4ry-33", "p1ng-c4n4ry-44"];
const DOMAIN: &str = "localhost";

struct Site {
    world: World,
    server: S3Server,
    certificates: PathBuf,
    ear: Ear,
    sink: Sink,
    canaries: Vec<String>,
}

fn canaries(world: &World) -> Vec<String> {
    let identity = fs::read_to_string(world.identity()).unwrap();
    let key = identity.lines().find(|l| l.starts_with("AGE-SECRET-KEY-1")).unwrap().to_owned();
    // As it goes over the wire, too.
    let login = base64::engine::general_purpose::STANDARD.encode(format!("\0ops@example.org\0{MAIL}"));
    let named = [SECRET, MAIL, CANARY].iter().chain(TOKENS).map(|c| (*c).to_owned());
    named.chain([key, login]).collect()
}

impl Site {
    fn new() -> Self {
        let world = World::new();
        fs::create_dir(world.path("tmp")).unwrap();
        let certificates = world.path("certificates");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/certificates.sh");
        assert!(Command::new("bash").arg(script).arg(&certificates).arg(DOMAIN).status().unwrap().success());
        let (ear, sink) = (Ear::new(), Sink::new(Some((&certificates, DOMAIN))));
        let server = S3Server::start(Kind::S3sFs);
        fs::copy(server.credentials(), world.path("s3.env")).unwrap();
        let app = world.app();
        let (url, endpoint) = (format!("s3://{BUCKET}/shop"), server.endpoint());
        let init = ["init", app.to_str().unwrap(), "--name", "shop", "--repository", &url, "--endpoint", &endpoint];
        world.run(&[&init[..], &["--region", "us-east-1", "--credentials", "file:s3.env"]].concat()).exits(0);
        let secrets = [
            format!("HOOK={}", ear.url(&format!("/{}", TOKENS[0]))),
            format!("SLACK={}", ear.url(&format!("/{}", TOKENS[1]))),
            format!("DISCORD={}", ear.url(&format!("/{}", TOKENS[2]))),
            format!("PING={}", ear.url(&format!("/{}", TOKENS[3]))),
            format!("SMTP=smtp://ops%40example.org:{MAIL}@localhost:{}", sink.port),
        ];
        fs::write(app.join("notify.env"), secrets.join("\n") + "\n").unwrap();
        world.add_to_policy(&format!(
            "[[source]]\nkind = \"files\"\nname = \"uploads\"\npaths = [\"uploads\"]\n\
             [schedule]\nsnapshot = \"{}\"\nverify = \"off\"\ndrill = \"off\"\nprune = \"off\"\njitter = \"0s\"\n\
             [notify]\non = [\"failure\", \"success\"]\nwebhook = \"notify.env:HOOK\"\nslack = \"notify.env:SLACK\"\n\
             discord = \"notify.env:DISCORD\"\nhealthchecks = \"notify.env:PING\"\n\
             email = {{ to = [\"a@example.org\"], from = \"lifeboat@example.org\", smtp = \"notify.env:SMTP\" }}\n",
            half_a_day_away()
        ));
        let canaries = canaries(&world);
        Self { world, server, certificates, ear, sink, canaries }
    }

    fn root(&self) -> String {
        self.certificates.join("root.pem").display().to_string()
    }

    fn see(&self, args: &[&str]) -> Ran {
        watched(&self.world, &self.canaries, args, &[("RUST_LOG", "trace"), ("SSL_CERT_FILE", &self.root())])
    }

    /// Nothing that stays holds one of them, by name or by content.
    fn nothing_stays(&self) {
        for dir in [self.server.files(), self.world.path("state"), self.world.path("tmp")] {
            assert_eq!(holding(&dir, &self.canaries), Vec::<String>::new(), "in {}", dir.display());
            let names = Command::new("find").arg(&dir).output().unwrap();
            let names = String::from_utf8_lossy(&names.stdout).into_owned();
            assert!(!self.canaries.iter().any(|c| names.contains(c)), "{names}");
        }
        assert_eq!(fs::read_dir(self.world.path("tmp")).unwrap().count(), 0);
    }
}

#[test]
fn no_secret_of_a_server_elsewhere_is_seen() {
    let site = Site::new();
    site.see(&["snapshot", "-vv"]).exits(0);
    assert!(site.ear.heard().iter().any(|h| h.line.contains(TOKENS[0])), "the hook was used");
    assert!(site.sink.mails().iter().any(|m| m.login.ends_with(MAIL)), "the password was used");
    for args in [
        &["notify", "test", "--json"][..],
        &["verify", "--deep"],
        &["status", "--json"],
        &["doctor", "--json"],
        &["history", "--json"],
        &["policy", "show"],
        &["show", "latest", "--json"],
        &["restore", "latest", "--into", "out", "--json"],
        &["prune", "--dry-run", "--json"],
    ] {
        site.see(args);
    }
    // What fails tells no more: nobody listens to what is told, the key is wrong, the server is gone.
    site.ear.answers(500);
    fs::write(site.world.app().join("uploads/more"), "more").unwrap();
    site.see(&["snapshot"]).exits(0);
    assert_ne!(site.see(&["notify", "test"]).code, 0);
    let credentials = fs::read_to_string(site.world.path("s3.env")).unwrap();
    let wrong = credentials.replace("AWS_ACCESS_KEY_ID=", "AWS_ACCESS_KEY_ID=X");
    fs::write(site.world.path("s3.env"), wrong).unwrap();
    assert_ne!(site.see(&["snapshot", "--json"]).code, 0);
    fs::write(site.world.path("s3.env"), credentials.replace("AWS_SECRET_ACCESS_KEY=", "AWS_SECRET_KEY=")).unwrap();
    assert_ne!(site.see(&["list"]).code, 0);
    fs::write(site.world.path("s3.env"), &credentials).unwrap();
    site.nothing_stays();

    // The key from the environment is for this program alone.
    site.world.change_policy(&format!("credentials = \"file:{}\"\n", site.world.path("s3.env").display()), "");
    let mut environment: Vec<(&str, &str)> = credentials.lines().filter_map(|l| l.split_once('=')).collect();
    let root = site.root();
    environment.extend([("RUST_LOG", "trace"), ("SSL_CERT_FILE", root.as_str())]);
    site.ear.answers(200);
    watched(&site.world, &site.canaries, &["snapshot"], &environment).exits(0);
    watched(&site.world, &site.canaries, &["doctor"], &environment);
    site.nothing_stays();
}

#[test]
fn no_secret_is_on_a_page_of_the_service() {
    let site = Site::new();
    site.see(&["snapshot"]).exits(0);
    site.see(&["drill"]).exits(0);
    // As if it had last been here two days ago: it runs a snapshot by itself.
    let db = rusqlite::Connection::open(site.world.path("state/history.db")).unwrap();
    let slot = (chrono::Utc::now() - chrono::TimeDelta::hours(48)).timestamp();
    db.execute("insert or replace into settled values ('shop', 'snapshot', ?1)", [slot]).unwrap();
    drop(db);
    let (trace, log) = (site.world.path("trace"), site.world.path("log"));
    let plain = site.world.command(&["serve", "--listen", "127.0.0.1:0"]);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-v", "-s", "100000", "-e", "trace=execve", "-o"]).arg(&trace);
    command.arg(plain.get_program()).args(plain.get_args()).env_clear().env("HOME", site.world.dir.path());
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("TMPDIR", site.world.path("tmp"));
    command.env("RUST_LOG", "trace").env("SSL_CERT_FILE", site.root()).current_dir(site.world.dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {}", read(&log));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("it listens", &|| read(&log).contains("listening on http://"));
    let at = read(&log).split("listening on http://").nth(1).unwrap().lines().next().unwrap().to_owned();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let taken = || holding(&site.server.files().join("shop/snapshots"), &["\"sequence\":2".to_owned()]).len();
    wait("a snapshot of its own", &|| taken() == 1);
    wait("it is seen", &|| get("/metrics").contains("lifeboat_"));
    let drill = fs::read_dir(site.world.path("state/drills")).unwrap().next().expect("a report").unwrap().file_name();
    let paths = ["/", "/policies/shop", "/metrics", &format!("/drills/{}", drill.to_str().unwrap())].map(str::to_owned);
    let mut answers = paths.map(|path| (get(&path), path)).map(|(answer, path)| {
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.len() > 1000, "{path}: {answer}");
        answer
    });
    // Red or not: it answers.
    let health = get("/health");
    assert!(health.contains("\"policies\":{\"shop\":"), "{health}");
    // What is not there says no more than that.
    let nothing = ["/shop", "/healthz", "/status.json", "/drills/", "/state.db"].map(|path| {
        let answer = get(path);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        answer
    });
    answers[0] += &(health + &nothing.concat());
    let answers = answers.concat();
    let daemon = read(&trace).split(' ').next().unwrap().to_owned();
    assert!(Command::new("kill").args(["-TERM", &daemon]).status().unwrap().success());
    child.wait().unwrap();
    let started = read(&trace);
    assert!(started.lines().filter(|l| l.contains("\"snapshot\"")).count() >= 1, "its run was seen: {started}");
    for (what, text) in [("a page", &answers), ("the log", &read(&log)), ("another program", &started)] {
        for canary in &site.canaries {
            assert!(!text.contains(canary), "{canary} is in {what}: {text}");
        }
    }
    site.nothing_stays();
}
