//! Whoever hears of a run hears of it, by every channel, without a secret; and no backup waits or fails for it.

use crate::hear::{Ear, silence};
use crate::serve::{application, begin_history, missed, wait};
use crate::sink::Sink;
use crate::world::{Ran, World};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A part of an address that nobody may read anywhere.
const TOKEN: &str = "t0ken-5be1";
const DOMAIN: &str = "localhost";

fn certificates(world: &World) -> PathBuf {
    let dir = world.path("certificates");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/certificates.sh");
    assert!(Command::new("bash").arg(script).arg(&dir).arg(DOMAIN).status().unwrap().success());
    dir
}

/// Runs with the authority of these certificates believed.
fn run(world: &World, certificates: &Path, args: &[&str]) -> Ran {
    world.command(args).env("SSL_CERT_FILE", certificates.join("root.pem")).output().unwrap().into()
}

#[track_caller]
fn nothing_leaks(world: &World, ran: &Ran) {
    for text in [&ran.out, &ran.err] {
        assert!(!text.contains(TOKEN) && !text.contains("passw0rd"), "{ran:#?}");
    }
    // The text of a policy is kept as it is.
    let kept = world.path("state/policies");
    for (path, bytes) in world.files("state").into_iter().filter(|(path, _)| !path.starts_with(&kept)) {
        assert!(!bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()), "{}", path.display());
    }
}

#[test]
fn every_channel_hears_a_test_and_a_failure() {
    let world = World::new();
    let dir = certificates(&world);
    let (ear, tls) = (Ear::new(), Ear::tls(&dir, DOMAIN));
    let sink = Sink::new(Some((&dir, DOMAIN)));
    let root = world.path("shop");
    fs::create_dir_all(&root).unwrap();
    let secrets = format!(
        "SLACK={}\nDISCORD=https://localhost:{}/discord/{TOKEN}\nPING={}\nSMTP=smtp://ops%40example.org:passw0rd%2F@localhost:{}\n",
        ear.url(&format!("/slack/{TOKEN}")),
        tls.port,
        ear.url(&format!("/ping/{TOKEN}")),
        sink.port
    );
    fs::write(root.join("notify.env"), secrets).unwrap();
    let notify = format!(
        "[notify]\non = [\"failure\", \"success\"]\nwebhook = \"{}\"\nntfy = \"{}\"\nslack = \"notify.env:SLACK\"\ndiscord = \"notify.env:DISCORD\"\n\
         healthchecks = \"notify.env:PING\"\nemail = {{ to = [\"a@example.org\", \"b@example.org\"], from = \"lifeboat@example.org\", smtp = \"notify.env:SMTP\" }}\n",
        ear.url("/hook"),
        ear.url("/topic")
    );
    application(&world, "shop", &notify);
    begin_history(&world);
    let ran = run(&world, &dir, &["notify", "test"]).exits(0);
    ran_tells(&ran, &["webhook", "ntfy", "slack", "discord", "healthchecks", "email"]);
    nothing_leaks(&world, &ran);
    let lines: Vec<String> = ear.heard().iter().map(|h| h.line.clone()).collect();
    assert_eq!(
        lines,
        ["POST /hook", "POST /topic", &format!("POST /slack/{TOKEN}"), &format!("POST /ping/{TOKEN}/log")],
        "a test changes nothing at a watchdog"
    );
    let mails = sink.mails();
    assert_eq!(mails.len(), 1);
    assert!(mails[0].tls && mails[0].login == "\0ops@example.org\0passw0rd/", "{mails:#?}");
    assert_eq!((mails[0].from.as_str(), mails[0].to.len()), ("<lifeboat@example.org>", 2));
    assert!(mails[0].data.contains("Subject: shop on ") && mails[0].data.contains("Auto-Submitted: auto-generated"));
    let json =
        world.command(&["notify", "test", "--json"]).env("SSL_CERT_FILE", dir.join("root.pem")).output().unwrap();
    let json = Ran::from(json).exits(0).json();
    assert_eq!(json["channels"].as_array().unwrap().len(), 6);

    // A snapshot by hand: a watchdog hears that it went well, as everybody else; that it began is seen by who began it.
    let (before, discord) = (ear.heard().len(), tls.heard().len());
    let ran = run(&world, &dir, &["snapshot"]).exits(0);
    nothing_leaks(&world, &ran);
    let heard = ear.heard()[before..].to_vec();
    let lines: Vec<&str> = heard.iter().map(|h| h.line.as_str()).collect();
    assert!(!lines.iter().any(|line| line.ends_with("/start")), "{lines:?}");
    assert!(lines.contains(&format!("POST /ping/{TOKEN}").as_str()), "{lines:?}");
    let hook = heard.iter().find(|h| h.line == "POST /hook").unwrap().json();
    assert_eq!((&hook["event"], &hook["well"], &hook["what"]), (&"success".into(), &true.into(), &"snapshot".into()));
    assert!(hook["snapshot"].is_string());

    // And a failure: each in its own form.
    fs::write(world.path("shop/uploads/<script>&"), "x").unwrap();
    let policy = world.path("config/policies/shop.toml");
    let text = fs::read_to_string(&policy).unwrap();
    let gone = "[[source]]\nkind = \"files\"\nname = \"gone\"\npaths = [\"<gone> & lost\"]\n";
    fs::write(&policy, format!("{text}\n{gone}")).unwrap();
    let before = ear.heard().len();
    let ran = run(&world, &dir, &["snapshot"]).exits(3);
    nothing_leaks(&world, &ran);
    let heard = ear.heard()[before..].to_vec();
    let of =
        |line: &str| heard.iter().find(|h| h.line.starts_with(line)).unwrap_or_else(|| panic!("{line}: {heard:#?}"));
    assert_eq!(of("POST /hook").json()["event"], "failure");
    assert_eq!(of("POST /topic").header("Priority"), "high");
    assert!(of("POST /topic").header("Title").contains("snapshot is partial"));
    assert!(of("POST /topic").body.contains("<gone> & lost"));
    let slack = of("POST /slack").json();
    assert!(slack["text"].as_str().unwrap().contains("&lt;gone&gt; &amp; lost"), "{slack}");
    of(&format!("POST /ping/{TOKEN}/fail"));
    let told = tls.heard()[discord..].to_vec();
    assert!(told.last().unwrap().json()["content"].as_str().unwrap().contains("snapshot is partial"), "{told:#?}");
    assert_eq!(told.last().unwrap().json()["allowed_mentions"]["parse"].as_array().unwrap().len(), 0);
    assert!(sink.mails().last().unwrap().data.contains("snapshot is partial"));
    // No secret of the application or of an address in any of them.
    let all = format!(
        "{:?}{:?}{:?}",
        ear.heard().iter().map(|h| &h.body).collect::<Vec<_>>(),
        told,
        sink.mails().iter().map(|m| &m.data).collect::<Vec<_>>()
    );
    assert!(!all.contains("passw0rd"));
    assert!(ear.heard().iter().all(|h| !h.body.contains(TOKEN)));
}

#[track_caller]
fn ran_tells(ran: &Ran, channels: &[&str]) {
    for channel in channels {
        let line = ran.out.lines().find(|l| l.starts_with(channel)).unwrap_or_else(|| panic!("{channel}: {ran:#?}"));
        assert!(line.contains("told") && !line.contains("not told"), "{line}");
    }
}

#[test]
fn a_stranger_with_a_certificate_of_his_own_hears_nothing() {
    let world = World::new();
    let dir = certificates(&world);
    let (tls, sink) = (Ear::tls(&dir, DOMAIN), Sink::new(Some((&dir, DOMAIN))));
    let notify = format!(
        "[notify]\nwebhook = \"https://localhost:{}/{TOKEN}\"\nemail = {{ to = [\"a@example.org\"], from = \"b@example.org\", smtp = \"env:MAIL\" }}\n",
        tls.port
    );
    application(&world, "shop", &notify);
    // Only what this machine believes anyway; and a server that is asked for a password in the clear gets none.
    let mail = format!("smtp://user:passw0rd@localhost:{}", sink.port);
    let ran: Ran = world.command(&["notify", "test"]).env("MAIL", &mail).output().unwrap().into();
    let ran = ran.exits(1).shows(&["not told", "UnknownIssuer"]);
    nothing_leaks(&world, &ran);
    let plain = Sink::new(None);
    let mail = format!("smtp://user:passw0rd@localhost:{}", plain.port);
    let ran: Ran = world.command(&["notify", "test"]).env("MAIL", &mail).output().unwrap().into();
    nothing_leaks(&world, &ran.exits(1));
    assert!(tls.heard().is_empty() && sink.mails().is_empty() && plain.mails().is_empty());
    // A wrong password is said, and not shown.
    let mail = format!("smtp://user:wrong-passw0rd@localhost:{}", sink.port);
    let out = world.command(&["notify", "test"]).env("MAIL", &mail).env("SSL_CERT_FILE", dir.join("root.pem")).output();
    let ran = Ran::from(out.unwrap()).exits(1).shows(&["535"]);
    nothing_leaks(&world, &ran);
    assert_eq!(tls.heard().len(), 1);
}

#[test]
fn without_a_channel_there_is_nothing_to_test() {
    let world = World::new();
    application(&world, "shop", "");
    world.run(&["notify", "test"]).exits(2).one_error_with_a_hint().says(&["nobody hears of policy shop"]);
}

/// A webhook that fails, hangs or is gone delays nothing for long, fails nothing, and hears it later.
#[test]
fn what_cannot_be_told_now_is_told_later() {
    let ear = Ear::new();
    ear.answers(500);
    let world = World::new();
    let hook = format!("[notify]\non = [\"success\"]\nwebhook = \"{}\"\n", ear.url(&format!("/{TOKEN}")));
    application(&world, "shop", &hook);
    begin_history(&world);
    let ran = world.run(&["snapshot"]).exits(0).says(&["webhook of policy shop was not told: it answers 500"]);
    nothing_leaks(&world, &ran);
    assert_eq!(ear.heard().len(), 1);
    // Not before its time, by the next run; and then by the service.
    ear.answers(200);
    world.run(&["verify"]).exits(0);
    assert_eq!(ear.heard().len(), 1);
    let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    db.execute("update outbox set next = 0", []).unwrap();
    let daemon = crate::serve::Daemon::start(&world, &[]);
    let heard = ear.wait(2);
    assert_eq!(heard[0].body, heard[1].body, "the message is what it was");
    let waiting = || db.query_row("select count(*) from outbox", [], |row| row.get::<_, i64>(0)).unwrap();
    wait(|| waiting() == 0, || daemon.log());
    assert_eq!(daemon.stop().0, Some(0));
    // One that takes the connection and says nothing.
    let (listener, port) = silence();
    let policy = world.path("config/policies/shop.toml");
    let text = fs::read_to_string(&policy).unwrap();
    fs::write(&policy, text.replace(&ear.port.to_string(), &port.to_string())).unwrap();
    let begun = Instant::now();
    let ran = world.run(&["snapshot"]).exits(0).says(&["does not answer in time"]);
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    nothing_leaks(&world, &ran);
    drop(listener);
    // Where a policy leads elsewhere by now, nobody gets what was not meant for him.
    fs::write(&policy, &text).unwrap();
    db.execute("update outbox set next = 0", []).unwrap();
    world.run(&["notify", "deliver"]).exits(0);
    assert_eq!((ear.heard().len(), waiting()), (2, 0));
    // One that cannot be reached today is not one that nobody has any more.
    ear.answers(500);
    world.run(&["snapshot"]).exits(0);
    fs::rename(&policy, world.path("aside")).unwrap();
    std::os::unix::fs::symlink(world.path("not mounted/shop.toml"), &policy).unwrap();
    db.execute("update outbox set next = 0", []).unwrap();
    world.run(&["notify", "deliver"]);
    assert_eq!(waiting(), 1);
    fs::rename(world.path("aside"), &policy).unwrap();
    ear.answers(200);
    db.execute("update outbox set next = 0", []).unwrap();
    world.run(&["notify", "deliver"]).exits(0);
    assert_eq!(waiting(), 0);
}

#[test]
fn drills_restores_and_weeks_are_told_to_those_who_want_them() {
    let ear = Ear::new();
    let world = World::new();
    let channels = format!(
        "[notify]\nwebhook = {{ url = \"{}\", on = [\"drill\", \"rollback\", \"weekly\"] }}\n",
        ear.url("/hook")
    );
    application(&world, "shop", &channels);
    begin_history(&world);
    world.run(&["snapshot"]).exits(0);
    assert!(ear.heard().is_empty());
    world.run(&["drill"]).exits(0);
    world.run(&["restore", "latest", "--in-place", "--yes", "--only", "uploads"]).exits(0);
    let events: Vec<_> = ear.wait(2).iter().map(|h| (h.json()["event"].clone(), h.json()["title"].clone())).collect();
    assert_eq!(events[0].0, "drill");
    assert!(events[0].1.as_str().unwrap().contains("drill passed"));
    assert_eq!(events[1].0, "rollback");
    assert!(events[1].1.as_str().unwrap().contains("restored in place"));
    // A Monday was missed: the week is told once.
    let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    let before = (chrono::Utc::now() - chrono::TimeDelta::days(8)).timestamp();
    db.execute("insert or replace into settled values ('shop', 'weekly', ?1)", [before]).unwrap();
    let daemon = crate::serve::Daemon::start(&world, &[]);
    let heard = ear.wait(3);
    assert_eq!(heard[2].json()["event"], "weekly");
    assert!(heard[2].json()["text"].as_str().unwrap().starts_with("1 snapshot and 1 drill"), "{:#}", heard[2].json());
    assert!(heard[2].json()["title"].as_str().unwrap().ends_with("all is well"));
    assert_eq!(daemon.stop().0, Some(0));
    let daemon = crate::serve::Daemon::start(&world, &[]);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(ear.heard().len(), 3);
    drop(daemon);
}

/// A scheduled run that will be tried again is no failure yet, for a watchdog either.
#[test]
fn a_watchdog_hears_the_beginning_of_each_attempt_and_one_failure() {
    let ear = Ear::new();
    let world = World::new();
    let gone = "[[source]]\nkind = \"files\"\nname = \"gone\"\npaths = [\"gone\"]\n";
    application(&world, "shop", &format!("[notify]\nhealthchecks = \"{}\"\n{gone}", ear.url("/ping")));
    begin_history(&world);
    missed(&world, "shop");
    let daemon = crate::serve::Daemon::start(&world, &[]);
    let lines: Vec<String> = ear.wait(4).into_iter().map(|h| h.line).collect();
    assert_eq!(lines, ["POST /ping/start", "POST /ping/start", "POST /ping/start", "POST /ping/fail"]);
    assert_eq!(daemon.stop().0, Some(0));
}
