//! nginx that runs in a container, proved in a throw-away one of the same image.

use crate::docker::{IMAGE, TestContainer, docker, engine, unique};
use crate::world::{World, as_a_user, assert_green, assert_red, lets_encrypt, text, write};
use lifeboat::sources::proof::{Proof, Verdict};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A shared nginx: its configuration and certificates are the host's, mounted into the container.
struct Shared {
    dir: tempfile::TempDir,
    /// Where the container has its configuration: a path that no other test has.
    etc: String,
    container: TestContainer,
}

impl Shared {
    fn up() -> Self {
        engine();
        let dir = tempfile::Builder::new().prefix("lifeboat-nginx-").tempdir().unwrap();
        let host = dir.path().canonicalize().unwrap();
        let etc = format!("/etc/{}", unique("site"));
        lets_encrypt(&host.join("letsencrypt"), "shop.example", "60");
        write(
            &host.join("site/nginx.conf"),
            &format!("user www-data;\nevents {{}}\nhttp {{\n  include {etc}/conf.d/*.conf;\n}}\n"),
        );
        write(&host.join("site/conf.d/shop.conf"), &site("shop.example"));
        write(
            &host.join("site/conf.d/other.conf"),
            "server { listen 8081; server_name other.example; location / { proxy_pass http://other:80; } }\n",
        );
        write(&host.join("webroot/index.html"), "hello\n");
        let mounts = [("site", etc.as_str()), ("letsencrypt", "/etc/letsencrypt"), ("webroot", "/var/www/html")];
        let mounts: Vec<String> =
            mounts.iter().map(|(from, to)| format!("{}:{to}:ro", text(&host.join(from)))).collect();
        let mut options = vec!["--network", "none"];
        options.extend(mounts.iter().flat_map(|m| ["-v", m]));
        // The name is the container's; what it serves does not matter here.
        let idle =
            ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done", "nginx", "-c", &format!("{etc}/nginx.conf")];
        let container = TestContainer::run(&options, IMAGE, &idle);
        Self { dir, etc, container }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn world(&self, of_nginx: &str) -> World {
        let sources = format!(
            "[[source]]\nkind = \"nginx\"\npaths = [\"{}\"]\ncontainer = \"{}\"\n[[source]]\nkind = \"certificates\"\npaths = [\"{}\"]\n",
            text(&self.path(of_nginx)),
            self.container.name,
            text(&self.path("letsencrypt")),
        );
        World::new(&sources, |_| {})
    }
}

fn site(domain: &str) -> String {
    let live = "/etc/letsencrypt/live/shop.example";
    format!(
        "server {{\n  listen 443 ssl default_server;\n  listen 203.0.113.9:80;\n  server_name {domain};\n  ssl_certificate {live}/fullchain.pem;\n  \
         ssl_certificate_key {live}/privkey.pem;\n  location / {{ proxy_pass http://api:3000; }}\n}}\n"
    )
}

fn said(proof: &Proof) -> &str {
    &proof.checks[0].found
}

#[test]
fn the_unharmed_twin_is_green_and_nothing_stays_behind() {
    let shared = Shared::up();
    let proof = shared.world("site").proof("nginx");
    assert_green(&proof, &[]);
    assert_eq!(proof.restored, ["nginx ok"]);
    assert_eq!(proof.checks[0].subject, format!("{}/nginx.conf", shared.etc));
    assert!(
        said(&proof).contains(&format!("accepted by nginx of {IMAGE}")) && !said(&proof).contains("live"),
        "{proof:#?}"
    );
    let id =
        docker(["ps", "-aq", "--filter", "label=lifeboat.role=drill", "--filter", &format!("volume={}", shared.etc)]);
    assert_eq!(id, "", "helpers are removed");
}

#[test]
fn what_is_wrong_is_named_by_its_path_in_the_container() {
    let shared = Shared::up();
    let world = shared.world("site");
    let conf = shared.path("site/conf.d");
    write(&conf.join("second.conf"), &site("second.example"));
    assert_red(
        &world.proof("nginx"),
        "nginx -t",
        &["a duplicate default server for 0.0.0.0:443 in", "/conf.d/shop.conf:2"],
    );
    write(&conf.join("second.conf"), &site("shop.example").replace(" default_server", ""));
    assert_red(&world.proof("nginx"), "server names", &["conflicting server name", "shop.example"]);
    write(&conf.join("second.conf"), &format!("include {}/snippets/gone.conf;\n", shared.etc));
    assert_red(&world.proof("nginx"), "nginx -t", &["/snippets/gone.conf", "/conf.d/second.conf:1"]);
    fs::remove_file(conf.join("second.conf")).unwrap();
    fs::remove_dir_all(shared.path("letsencrypt/live")).unwrap();
    assert_red(
        &world.proof("nginx"),
        "nginx -t",
        &["cannot load certificate", "/etc/letsencrypt/live/shop.example/fullchain.pem"],
    );
}

#[test]
fn of_a_shared_configuration_the_rest_is_the_live_one_s() {
    let shared = Shared::up();
    let world = shared.world("site/conf.d/shop.conf");
    let taken = world.take();
    let proof = world.prove(&taken, "nginx");
    assert_green(&proof, &[]);
    assert!(said(&proof).contains("/site was not captured is the live one's"), "{proof:#?}");
    // The captured file is the stored one, not the live one.
    write(&shared.path("site/conf.d/shop.conf"), "nonsense;\n");
    assert_green(&world.prove(&taken, "nginx"), &[]);
    write(&shared.path("site/conf.d/shop.conf"), &site("shop.example"));
    // A live neighbour that conflicts is a conflict after a restore as well.
    write(&shared.path("site/conf.d/other.conf"), &site("other.example"));
    assert_red(&world.prove(&taken, "nginx"), "nginx -t", &["a duplicate default server"]);
}

#[test]
fn without_the_container_it_is_skipped_and_says_so() {
    let shared = Shared::up();
    let world = shared.world("site");
    let taken = world.take();
    let Shared { dir, container, .. } = shared;
    let name = container.name.clone();
    drop(container);
    let proof = world.prove(&taken, "nginx");
    assert_eq!(proof.checks[0].verdict, Verdict::Skipped, "{proof:#?}");
    assert!(proof.checks[0].why.as_deref().unwrap().contains(&name), "{proof:#?}");
    assert_eq!(proof.restored, ["nginx (not tested)"]);
    assert!(Path::new(dir.path()).exists());
}

#[test]
fn an_ordinary_user_in_group_docker_needs_no_rights() {
    let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
    as_a_user("nginx_container::", &[group]);
}
