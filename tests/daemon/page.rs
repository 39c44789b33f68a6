//! What the service answers over HTTP: pages, numbers, health; who is refused; how it looks in a real browser.

use crate::metrics;
use crate::serve::{Daemon, application, one, wait};
use crate::world::{CANARY, World};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// In small letters.
    head: String,
    /// The content security policy, as it is.
    policy: String,
    body: String,
}

/// A daemon that listens, and where.
struct Site {
    daemon: Daemon,
    at: String,
}

impl Site {
    fn of(world: &World) -> Self {
        let daemon = Daemon::start(world, &["--listen", "127.0.0.1:0"]);
        daemon.says("listening on http://");
        let log = daemon.log();
        let at = log.split("listening on http://").nth(1).unwrap().lines().next().unwrap().to_owned();
        Self { daemon, at }
    }

    /// Sends exactly these bytes.
    fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // Whoever sends too much may be cut off while sending.
        let _ = stream.write_all(request);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let line = head
            .lines()
            .find_map(|l| l.split_once(": ").filter(|(k, _)| k.eq_ignore_ascii_case("content-security-policy")));
        let policy = line.map_or_else(String::new, |(_, policy)| policy.to_owned());
        Answer { status, head: head.to_lowercase(), policy, body: body.to_owned() }
    }

    fn ask(&self, method: &str, path: &str, host: &str) -> Answer {
        self.raw(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
    }

    #[track_caller]
    fn get(&self, path: &str) -> Answer {
        let answer = self.ask("GET", path, &self.at);
        assert_eq!(answer.status, 200, "{path}: {}", answer.head);
        answer
    }

    /// Waits until what was asked for has been looked at.
    fn seen(&self, path: &str, text: &str) -> String {
        wait(
            || self.ask("GET", path, &self.at).body.contains(text),
            || format!("{text:?} is not in {}\n{}", self.get(path).body, self.daemon.log()),
        );
        self.get(path).body
    }
}

#[test]
fn who_asks_is_answered_and_nobody_else() {
    let world = one("");
    world.run(&["snapshot", "--drill"]).exits(0);
    let site = Site::of(&world);
    let page = site.get("/");
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-",
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
        "cross-origin-opener-policy: same-origin",
        "cross-origin-resource-policy: same-origin",
        "connection: close",
    ] {
        assert!(page.head.contains(header), "{header} is not in {}", page.head);
    }
    assert!(
        !page.body.contains("<script") && !page.body.contains(" style=") && !page.body.contains("http://"),
        "{}",
        page.body
    );
    // Reading only.
    let head = site.ask("HEAD", "/", &site.at);
    assert!(head.status == 200 && head.body.is_empty() && head.head.contains("content-length: "), "{head:?}");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = site.ask(method, "/", &site.at);
        assert!(answer.status == 405 && answer.head.contains("allow: get, head"), "{method}: {answer:?}");
    }
    // A name of somebody else that was made to point here.
    for host in ["evil.example.org", "127.0.0.1.evil.example.org", "10.0.0.1:80", ""] {
        assert_eq!(site.ask("GET", "/", host).status, 421, "{host}");
    }
    assert_eq!(site.raw(b"GET / HTTP/1.0\r\n\r\n").status, 421);
    assert_eq!(site.ask("GET", "/", "localhost:1").status, 200);
    // What is not there, and what lies beside it.
    fs::write(world.path("state/drills/secret.html"), "x").unwrap();
    std::os::unix::fs::symlink(world.path("state/history.db"), world.path("state/drills/link.html")).unwrap();
    assert_eq!(site.ask("GET", "/drills/secret.html", &site.at).body, "x");
    for path in [
        "/nothing",
        "/policies/",
        "/policies/blog",
        "/drills/",
        "/drills/../history.db",
        "/drills/%2e%2e/history.db",
        "/drills/link.html",
        "/drills/a/b.html",
        "//etc/passwd",
        "/history.db",
    ] {
        let answer = site.ask("GET", path, &site.at);
        assert!(answer.status == 404 && answer.head.contains("text/html"), "{path}: {answer:?}");
    }
    // A drill's own report.
    let page = site.seen("/", "/drills/");
    let report = page.split("href=\"/drills/").nth(1).unwrap().split('"').next().unwrap();
    let report = site.get(&format!("/drills/{report}"));
    assert!(report.body.contains("<h1>Drill of shop") && report.head.contains("default-src 'none'"), "{}", report.body);
    assert!(!page.contains(CANARY) && !report.body.contains(CANARY));
}

#[test]
fn numbers_and_health_for_machines() {
    let world = one("");
    world.run(&["snapshot", "--drill"]).exits(0);
    let site = Site::of(&world);
    let health: Value = {
        site.seen("/metrics", "lifeboat_snapshots{policy=\"shop\"} 1");
        let answer = site.get("/health");
        assert!(answer.head.contains("content-type: application/json"), "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    };
    assert_eq!(health, json!({ "status": "amber", "policies": { "shop": "amber" } }));
    let answer = site.get("/metrics");
    assert!(
        answer.head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{answer:?}"
    );
    let samples = metrics::parse(&answer.body);
    let shop = |name: &str| metrics::value(&samples, name, &[("policy", "shop")]);
    assert_eq!((shop("lifeboat_status"), shop("lifeboat_snapshots"), shop("lifeboat_drill_passed")), (1.0, 1.0, 1.0));
    assert_eq!(metrics::value(&samples, "lifeboat_check", &[("policy", "shop"), ("check", "service")]), 0.0);
    // Somebody takes a snapshot by hand: the next who asks is told soon.
    world.run(&["snapshot"]).exits(0);
    wait(
        || {
            metrics::value(&metrics::parse(&site.get("/metrics").body), "lifeboat_snapshots", &[("policy", "shop")])
                == 2.0
        },
        || site.get("/metrics").body,
    );
    // What is wrong is a status that needs no reading.
    fs::write(world.path("config/policies/broken.toml"), "[app]\nname = \"broken\"\n").unwrap();
    wait(|| site.ask("GET", "/health", &site.at).status == 503, || site.daemon.log());
    let page = site.get("/").body;
    assert!(page.contains("href=\"/policies/shop\"") && page.contains("href=\"/policies/broken\""), "{page}");
    assert!(site.get("/policies/broken").body.contains("the policy cannot be read"));
}

#[test]
fn names_of_others_are_text() {
    let odd = "<script>alert('x')</script>&\\\"\u{202e}";
    let world = one(&format!("[[external]]\nname = \"{odd}\"\n"));
    world.run(&["snapshot"]).exits(0);
    let site = Site::of(&world);
    let page = site.seen("/", "not ours to back up");
    assert!(!page.contains("<script") && !page.contains('\u{202e}'), "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;\\u202e"), "{page}");
}

#[test]
fn only_this_machine_may_ask() {
    let world = one("");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        world.run(&["serve", "--listen", address]).exits(2).says(&["can be reached from other machines", "hint: "]);
    }
    world.run(&["serve", "--listen", "7800"]).exits(2);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let _held = std::net::TcpListener::bind(&taken);
    world.run(&["serve", "--listen", &taken]).exits(1).says(&["listen on", "in use"]);
}

#[test]
fn whoever_is_slow_or_says_too_much_holds_nobody_up() {
    let world = one("");
    let site = Site::of(&world);
    assert_eq!(
        site.raw(format!("GET / HTTP/1.1\r\nHost: {}\r\nX: {}\r\n\r\n", site.at, "x".repeat(40_000)).as_bytes()).status,
        431
    );
    assert_eq!(site.raw(b"nonsense\r\n\r\n").status, 400);
    // As many as are taken at once, and then some; each says half a word.
    let slow: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(&site.at).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
            stream
        })
        .collect();
    let begun = Instant::now();
    let answer = site.ask("GET", "/health", &site.at);
    let took = begun.elapsed();
    assert!(answer.body.contains("shop") && took < Duration::from_secs(15), "{took:?}");
    drop(slow);
    assert!(site.daemon.log().matches("WARN").count() == 0, "{}", site.daemon.log());
}

#[test]
fn it_sleeps_as_deep_when_it_listens() {
    let world = one("");
    world.run(&["snapshot"]).exits(0);
    let site = Site::of(&world);
    site.seen("/", "of data lost");
    for _ in 0..50 {
        site.get("/");
        site.get("/metrics");
    }
    // The last look has ended.
    wait(|| !site.get("/").body.contains("being looked at"), || site.daemon.log());
    std::thread::sleep(Duration::from_secs(1));
    let before = site.daemon.switches();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(site.daemon.switches(), before, "nobody asked");
    site.daemon.is_small();
}

/// A repository with a long life, as it would be seen: hundreds of snapshots, a year of drills, 10,000 runs.
fn long_life(world: &World) {
    world.run(&["snapshot", "--drill"]).exits(0);
    world.run(&["status"]);
    let file = world.path("state/status/shop.json");
    let mut sight: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let now = chrono::Utc::now();
    let time = |hours: i64| (now - chrono::TimeDelta::hours(hours)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let (snapshot, drill) = (sight["repository"]["snapshots"][0].clone(), sight["repository"]["drills"][0].clone());
    // Every hour for four days, every day for a year, and one that is not complete.
    let hours: Vec<i64> = (4..365).rev().map(|d| d * 24 + 3).chain((0..96).rev().map(|h| h + 1)).collect();
    let snapshots: Vec<Value> = hours
        .iter()
        .enumerate()
        .map(|(n, hours)| {
            let mut one = snapshot.clone();
            one["time"] = time(*hours).into();
            one["id"] = format!("{}-{n:08x}", time(*hours).replace(['-', ':'], "")).into();
            one["sequence"] = (n as u64 + 1).into();
            one["bytes_total"] = (900_000_000 + n as u64 * 1_300_000).into();
            one["bytes_new"] = (1_000_000 + (n as u64 * 7_919) % 37 * 1_100_000).into();
            one["tags"] = if n % 60 == 7 { json!([format!("v1.{n}.0")]) } else { json!([]) };
            one["outcome"] = if n == 370 { "partial" } else { "complete" }.into();
            one
        })
        .collect();
    let drills: Vec<Value> = (0..52)
        .rev()
        .map(|week| {
            let mut one = drill.clone();
            one["time"] = time(week * 168 + 30).into();
            one["snapshot"] = snapshots[0]["id"].clone();
            one["recovery_seconds"] = (231.0 + week as f64).into();
            one["outcome"] = if week == 17 { "failed" } else { "passed" }.into();
            one
        })
        .collect();
    sight["looked"] = time(0).into();
    sight["repository"]["snapshots"] = snapshots.into();
    sight["repository"]["drills"] = drills.into();
    sight["repository"]["elsewhere"] = true.into();
    sight["repository"]["url"] = "s3://backups/shop".into();
    sight["repository"]["stored_bytes"] = 14_200_000_000u64.into();
    fs::write(&file, sight.to_string()).unwrap();
    let mut db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    let change = db.transaction().unwrap();
    change.execute_batch("delete from runs; delete from alarms").unwrap();
    for n in 1..=10_000i64 {
        let (what, outcome) =
            if n % 24 == 3 { ("snapshot", "done") } else { ("verify", if n == 40 { "failed" } else { "done" }) };
        let sql = "insert into runs (policy, what, trigger, slot, attempt, begun, ended, outcome, exit, error)
             values ('shop', ?1, 'schedule', ?2, 1, ?2, ?2 + 9, ?3, 0, ?4)";
        let error = (outcome == "failed").then_some("verify shop: s3://backups/shop: connection reset by peer");
        change.execute(sql, rusqlite::params![what, now.timestamp() - n * 3600, outcome, error]).unwrap();
    }
    change.commit().unwrap();
}

#[test]
fn a_long_history_is_shown_at_once() {
    let world = one("[[external]]\nname = \"Supabase\"\n");
    long_life(&world);
    let site = Site::of(&world);
    let best = |path: &str| {
        let ask = |_| {
            let begun = Instant::now();
            site.ask("GET", path, &site.at);
            begun.elapsed()
        };
        (0..6).map(ask).min().unwrap()
    };
    let (page, numbers) = (best("/"), best("/metrics"));
    println!("the page takes {page:?}, the numbers {numbers:?}");
    // A build for tests takes several times as long as one that is shipped, and other tests run beside it.
    let limit = Duration::from_millis(if cfg!(debug_assertions) { 10_000 } else { 100 });
    assert!(page < limit && numbers < limit, "{page:?} {numbers:?}");
    let page = site.get("/").body;
    assert!(
        page.contains("457 in s3://backups/shop") && page.contains("the newest 200 of 10000 on this host"),
        "{page}"
    );
    assert!(page.len() < 500_000, "{}", page.len());
}

/// A real browser, without anything that it would do by itself.
fn browser(profile: &Path, args: &[&str]) -> String {
    let fixed = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ];
    let done = Command::new("/usr/bin/chromium")
        .env_clear()
        .env("HOME", profile)
        .env("PATH", "/usr/bin:/bin")
        .args(fixed)
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("chromium is missing: scripts/test.sh installs it");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The page as a file that says how wide it came out, in a frame of the width of a screen.
fn measured(dir: &Path, page: &Answer, width: u32) -> PathBuf {
    let tell = "<script>addEventListener('load',()=>{const d=document.documentElement;const wide=[...document.querySelectorAll('body *')].filter(e=>!e.closest('.wide')&&!e.closest('svg')&&!e.closest('.skip')&&e.getBoundingClientRect().right>innerWidth+0.5).map(e=>e.tagName+'.'+e.className);parent.document.title=[innerWidth,d.scrollWidth,getComputedStyle(document.body).backgroundColor,wide.join(' ')].join('|')})</script>";
    // Under its own policy, but for this one script.
    let policy = format!(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"{}; script-src 'unsafe-inline'\">",
        page.policy
    );
    let inner = page.body.replace("<head>", &format!("<head>{policy}"));
    let inner = inner.replace("</body>", &format!("{tell}</body>")).replace('&', "&amp;").replace('"', "&quot;");
    let frame = format!(
        "<!doctype html><title>none</title><iframe width=\"{width}\" height=\"800\" style=\"border:0\" srcdoc=\"{inner}\"></iframe>"
    );
    let file = dir.join(format!("frame-{width}.html"));
    fs::write(&file, frame).unwrap();
    file
}

#[test]
fn a_browser_shows_it_on_a_desk_a_phone_and_in_the_dark() {
    let world = one("[[external]]\nname = \"Supabase\"\n\n[[health]]\ntcp = \"127.0.0.1:1\"\n");
    long_life(&world);
    let site = Site::of(&world);
    let profile = world.path("browser");
    fs::create_dir(&profile).unwrap();
    let url = format!("http://{}/", site.at);
    let dom = browser(&profile, &["--dump-dom", &url]);
    for text in [
        "<h1>If this server died now: ",
        "Time line",
        "Snapshots",
        "Drills",
        "Not covered",
        "Supabase",
        "act now",
        "<main id=\"main\">",
        "scope=\"col\"",
        "role=\"img\"",
    ] {
        assert!(dom.contains(text), "{text:?} is not in {dom}");
    }
    // The picture has a mark for every snapshot and drill, twice.
    assert_eq!(dom.matches("<rect class=\"snap\"").count() + dom.matches("<rect class=\"odd\"").count(), 2 * 457);
    assert_eq!((dom.matches("<circle class=\"pass\"").count(), dom.matches("<path class=\"fail\"").count()), (102, 2));
    let page = site.get("/");
    assert!(page.policy.contains("style-src 'sha256-"), "{page:?}");
    // The policy lets its style in: another would be dropped, and the letters would be black on white.
    for width in [320u32, 390, 768, 1280] {
        let file = measured(world.dir.path(), &page, width);
        let dom = browser(
            &profile,
            &[
                "--dump-dom",
                "--allow-file-access-from-files",
                "--virtual-time-budget=3000",
                &format!("file://{}", file.display()),
            ],
        );
        let title = dom.split("<title>").nth(1).unwrap().split("</title>").next().unwrap().to_owned();
        let said: Vec<&str> = title.split('|').collect();
        assert_eq!((said[0], said[1]), (&*width.to_string(), &*width.to_string()), "at {width} pixels: {title}");
        assert!(said[2] == "rgb(251, 250, 248)" && said[3].is_empty(), "{title}");
    }
    let keep = std::env::var_os("LIFEBOAT_SCREENSHOTS").map_or_else(|| world.path("shots"), PathBuf::from);
    fs::create_dir_all(&keep).unwrap();
    for (name, size, more) in [
        ("desk", "1280,2200", None),
        ("phone", "500,2600", None),
        ("dark", "1280,2200", Some("--blink-settings=preferredColorScheme=0")),
    ] {
        let file = keep.join(format!("{name}.png"));
        let mut args = vec![format!("--screenshot={}", file.display()), format!("--window-size={size}")];
        args.extend(more.map(str::to_owned));
        args.push(url.clone());
        browser(&profile, &args.iter().map(String::as_str).collect::<Vec<_>>());
        let image = fs::read(&file).unwrap();
        let wide = u32::from_be_bytes(image[16..20].try_into().unwrap());
        assert!(image.starts_with(b"\x89PNG") && image.len() > 20_000 && size.starts_with(&wide.to_string()), "{name}");
    }
}

#[test]
fn several_policies_have_one_page_and_one_each() {
    let world = one("");
    application(&world, "blog", "");
    for name in ["shop", "blog"] {
        world.run(&["snapshot", "-p", name]).exits(0);
    }
    let site = Site::of(&world);
    let page = site.seen("/policies/blog", "class=\"broad\"");
    assert!(page.contains("<a class=\"who\" href=\"/\">") && page.contains("blog on "), "{page}");
    site.seen("/policies/shop", "class=\"broad\"");
    let page = site.get("/").body;
    assert!(page.contains("If this server died now: everything of blog, shop lost"), "{page}");
    assert_eq!(page.matches("<li><h2>").count(), 2);
}
