//! The container image: the service in a container, as `docs/install.md` runs it, protects an application in others.

use crate::docker::{IMAGE, TestContainer, TestImage, TestProject, docker, engine, try_docker, unique};
use crate::{DEBIAN, make, package, said, script};
use std::fs;
use std::time::{Duration, Instant};

const COMPOSE: &str = r#"
services:
  cache:
    image: HOST
    user: redis
    command: ["redis-server", "--dir", "/var/lib/redis", "--save", "", "--appendonly", "no"]
    volumes: ["cache:/var/lib/redis"]
    healthcheck: {test: ["CMD", "redis-cli", "ping"], interval: 1s, retries: 60}
  web:
    image: HOST
    command: ["sh", "-c", "echo uploaded > /uploads/file; trap 'exit 0' TERM; while :; do sleep 0.2; done"]
    volumes: ["uploads:/uploads"]
volumes: {cache: {}, uploads: {}}
"#;

/// The options of `docker run` in the document, with this machine's places.
fn options(swaps: &[(&str, &str)]) -> Vec<String> {
    let text = include_str!("../../docs/install.md").replace("\\\n", " ");
    let line = text.lines().find(|l| l.starts_with("docker run --detach")).expect("docs/install.md runs the image");
    let mut words: Vec<String> = line.split_whitespace().skip(3).map(str::to_owned).collect();
    assert_eq!(words.pop().as_deref(), Some("lifeboat"));
    // The name is the test's, and so is when it ends.
    let at = |word: &str, words: &[String]| words.iter().position(|w| w == word).unwrap();
    for option in ["--name", "--restart"] {
        let n = at(option, &words);
        words.drain(n..n + 2);
    }
    for word in &mut words {
        for (from, to) in swaps {
            *word = word.replace(from, to);
        }
    }
    words
}

#[test]
fn the_image_serves_what_is_mounted() {
    engine();
    let _ = fs::remove_file(package());
    let image = TestImage(unique("lifeboat-test/image"));
    let mut build = script("package.sh");
    build.args(["--debug", "--image", &image.0]).env("LIFEBOAT_BASE", DEBIAN);
    make(&mut build);

    let world = tempfile::Builder::new().prefix("lifeboat-image-").tempdir_in("/dev/shm").unwrap();
    let app = world.path().join("shop");
    fs::create_dir(&app).unwrap();
    fs::write(app.join("compose.yaml"), COMPOSE.replace("HOST", IMAGE)).unwrap();
    fs::write(app.join(".env"), "MODE=production\n").unwrap();
    let project = TestProject::up(&app, &unique("image"), &[]);

    let place = |name: &str| world.path().join(name).to_str().unwrap().to_owned();
    let (etc, var, backups, shop) = (place("etc"), place("var"), place("backups"), place("shop"));
    let swaps = [
        ("\"$(hostname)\"", "web-1"),
        ("/etc/lifeboat:", &format!("{etc}:")),
        ("/var/lib/lifeboat:", &format!("{var}:")),
        ("/var/backups/lifeboat:/var/backups/lifeboat", &format!("{backups}:{backups}")),
        ("/opt/shop:/opt/shop", &format!("{shop}:{shop}")),
    ];
    let options = options(&swaps);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let service = TestContainer::run(&options, &image.0, &[]);
    let run = |args: &[&str]| {
        let output = try_docker([&["exec", &service.id, "lifeboat"], args].concat());
        (output.status.code(), said(&output))
    };
    let (code, text) = run(&["init", &shop, "--name", &project.name, "--repository", &backups]);
    assert!(
        code == Some(0) && text.contains("Redis in service \"cache\"") && text.contains("volume uploads"),
        "{text}"
    );
    let (code, text) = run(&["snapshot", "--drill"]);
    assert!(code == Some(0) && text.contains("passed"), "{text}");
    assert!(run(&["list"]).1.contains("complete"));
    let shown = run(&["show", "latest"]).1;
    assert!(shown.contains("web-1"), "the host's own name: {shown}");

    // The service has heard of the policy, and ends when it is asked to.
    let end = Instant::now() + Duration::from_secs(10);
    while !said(&try_docker(["logs", &service.id])).contains(&format!("policy {} is loaded", project.name)) {
        assert!(Instant::now() < end, "{}", said(&try_docker(["logs", &service.id])));
        std::thread::sleep(Duration::from_millis(200));
    }
    docker(["stop", "--time", "20", &service.id]);
    assert_eq!(docker(["inspect", "-f", "{{.State.ExitCode}}", &service.id]), "0");
    let pins = format!("reference=lifeboat/{}-*", project.name);
    for pin in docker(["images", "--filter", &pins, "--format", "{{.Repository}}:{{.Tag}}"]).lines() {
        try_docker(["rmi", pin]);
    }
}
