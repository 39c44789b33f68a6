//! Every form of [[health]] against real servers.

use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::ops::Run;
use lifeboat::ops::health::{self, Health, Patience};
use lifeboat::policy::parse;
use lifeboat::sources::project::Places;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use crate::docker::{TestContainer, engine};

/// The checks of a policy with these sections, once or as patiently as they say.
fn checked(sections: &str, patience: Patience) -> Vec<Health> {
    let head = "[app]\nname = \"shop\"\nroot = \"/tmp\"\n[repository]\nurl = \"/tmp/repository\"\n\
        recipients = [\"age1v05v4uc66jwy3ysq0e6maqghrjc0qfffudzuc4al4j3jfcknyf0sajxagz\"]\n";
    let policy = parse(Path::new("shop.toml"), &format!("{head}{sections}")).unwrap_or_else(|e| panic!("{e:?}"));
    let run = Run { events: Events::none(), cancel: Cancel::new(), now: chrono::Utc::now() };
    let places = Arc::new(Places::new(&policy.app, &run.cancel));
    health::check(&policy, &places, patience, &run)
}

fn problem(sections: &str) -> Option<String> {
    let all = checked(sections, Patience::Once);
    assert_eq!(all.len(), 1);
    all[0].problem.clone()
}

/// Answers each request with the next of these, and the last one from then on.
fn server(answers: &'static [(&'static str, &'static str)]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut request = [0; 2048];
            let _ = stream.read(&mut request);
            let (status, body) = answers[n.min(answers.len() - 1)];
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    port
}

#[test]
fn http_by_status_and_json() {
    let port = server(&[("200 OK", r#"{"status": "ok", "checks": {"db": "ok"}}"#)]);
    let check = |more: &str| problem(&format!("[[health]]\nhttp = \"http://127.0.0.1:{port}/health\"\n{more}"));
    assert_eq!(check(""), None);
    assert_eq!(check("json = { status = \"ok\", \"checks.db\" = \"ok\" }\n"), None);
    assert!(check("json = { status = \"down\" }\n").unwrap().contains("\"ok\", not \"down\""));
    assert!(check("status = 204\n").unwrap().contains("answers 200, not 204"));
    let moved = server(&[("302 Found\r\nLocation: http://127.0.0.1:1/", "")]);
    let check = |more: &str| problem(&format!("[[health]]\nhttp = \"http://127.0.0.1:{moved}/\"\n{more}"));
    assert_eq!(check("status = 302\n"), None, "a redirect is an answer");
    assert!(problem("[[health]]\nhttp = \"http://127.0.0.1:1/\"\n").is_some());
}

#[test]
fn attempts_and_intervals() {
    let port = server(&[("503 No", ""), ("503 No", ""), ("200 OK", "")]);
    let text = format!("[[health]]\nhttp = \"http://127.0.0.1:{port}/\"\nattempts = 5\ninterval = \"1s\"\n");
    let all = checked(&text, Patience::Full);
    assert!(all[0].ok && all[0].attempts == 3 && all[0].seconds >= 2.0, "{all:?}");
    let never = server(&[("503 No", "")]);
    let text = format!("[[health]]\nhttp = \"http://127.0.0.1:{never}/\"\nattempts = 2\ninterval = \"1s\"\n");
    let all = checked(&text, Patience::Full);
    assert!(!all[0].ok && all[0].attempts == 2, "{all:?}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().port();
    let begun = std::time::Instant::now();
    assert!(problem(&format!("[[health]]\nhttp = \"http://127.0.0.1:{silent}/\"\ntimeout = \"1s\"\n")).is_some());
    assert!(begun.elapsed().as_secs() < 5);
}

#[test]
fn tcp_command_and_disk() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(problem(&format!("[[health]]\ntcp = \"127.0.0.1:{port}\"\n")), None);
    drop(listener);
    assert!(problem(&format!("[[health]]\ntcp = \"127.0.0.1:{port}\"\n")).is_some());
    assert_eq!(problem("[[health]]\ncommand = [\"true\"]\n"), None);
    assert!(
        problem("[[health]]\ncommand = [\"sh\", \"-c\", \"echo dead >&2; exit 7\"]\n").unwrap().contains("7: dead")
    );
    assert!(problem("[[health]]\ncommand = [\"sleep\", \"60\"]\ntimeout = \"1s\"\n").unwrap().contains("longer than"));
    assert_eq!(problem("[[health]]\ndisk = \"/dev/shm\"\nmin_free = \"1KiB\"\n"), None);
    assert!(problem("[[health]]\ndisk = \"/dev/shm\"\nmin_free = \"900TiB\"\n").unwrap().contains("must be"));
}

#[test]
fn containers_that_run_are_sick_or_restart() {
    engine();
    let well = TestContainer::idle(&[]);
    assert_eq!(problem(&format!("[[health]]\ncontainer = \"{}\"\n", well.name)), None);
    let health = ["--health-cmd", "test -e /well", "--health-interval", "1s", "--health-retries", "1"];
    let sick = TestContainer::idle(&health);
    let text = format!("[[health]]\ncontainer = \"{}\"\nattempts = 20\ninterval = \"1s\"\n", sick.name);
    assert!(problem(&text).unwrap().contains("its health is"));
    crate::docker::docker(["exec", &sick.id, "touch", "/well"]);
    assert!(checked(&text, Patience::Full)[0].ok);
    let dead = TestContainer::run(&[], crate::docker::IMAGE, &["sh", "-c", "exit 5"]);
    let text = format!("[[health]]\ncontainer = \"{}\"\n", dead.name);
    crate::docker::docker(["wait", &dead.id]);
    assert!(problem(&text).unwrap().contains("exited with status 5"));
    let again = TestContainer::run(&["--restart", "always"], crate::docker::IMAGE, &["sh", "-c", "sleep 0.3"]);
    let text = format!("[[health]]\ncontainer = \"{}\"\n", again.name);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(problem(&text).is_some(), "it restarts all the time");
    assert!(
        problem("[[health]]\ncontainer = \"no-such-container-here\"\n").unwrap().contains("no container or service")
    );
}

#[test]
fn redis_that_is_nearly_full() {
    let server = crate::redis::RedisServer::start_with(&["--maxmemory", "16mb"]);
    let text = format!(
        "[[source]]\nkind = \"redis\"\nname = \"cache\"\nurl = \"redis://127.0.0.1:{}/0\"\n[[health]]\nredis = \"cache\"\n",
        server.port
    );
    assert_eq!(problem(&format!("{text}max_memory = \"80%\"\n")), None);
    server.cli(&["SET", "big", &"x".repeat(100_000)]);
    assert!(problem(&format!("{text}max_memory = \"1%\"\n")).unwrap().contains("more than 1 %"));
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(problem(&format!("{text}max_memory = \"1%\"\n")), None, "a server without a limit is never full");
    server.kill();
    assert!(problem(&text).is_some());
}
