//! nginx, proved by the real program.

use crate::docker::{IMAGE, TestContainer, TestImage, docker, engine, unique};
use crate::world::{World, as_a_user, assert_green, assert_only, assert_red, lets_encrypt, run, text, write};
use lifeboat::sources::proof::{Proof, Verdict};
use std::fs;
use std::path::Path;

const SOURCES: &str = r#"
[[source]]
kind = "nginx"
paths = ["ROOT/etc/nginx"]
[[source]]
kind = "certificates"
paths = ["ROOT/etc/letsencrypt"]
"#;
const DOMAIN: &str = "shop.example";

/// A configuration as Debian's, with a site that passes requests to names which only the stack resolves.
fn fill(root: &Path) {
    let etc = root.join("etc");
    fs::create_dir_all(&etc).unwrap();
    lets_encrypt(&etc.join("letsencrypt"), DOMAIN, "60");
    let nginx = etc.join("nginx");
    let main = format!(
        "user www-data;\nworker_processes 1;\npid /run/shop-nginx.pid;\nerror_log /var/log/shop/error.log;\nevents {{}}\nhttp {{\n\
         include mime.types;\naccess_log /var/log/shop/access.log;\nproxy_cache_path /var/cache/shop keys_zone=shop:1m;\n\
         include {}/conf.d/*.conf;\n include {}/sites-enabled/*;\n}}\n",
        text(&nginx),
        text(&nginx)
    );
    write(&nginx.join("nginx.conf"), &main);
    write(&nginx.join("mime.types"), "types { text/html html; }\n");
    write(&nginx.join("snippets/tls.conf"), "ssl_protocols TLSv1.2 TLSv1.3;\n");
    write(&nginx.join("conf.d/upstream.conf"), "upstream api { server api-container:3000; server 192.0.2.7:80; }\n");
    write(&nginx.join("sites-available/shop"), &site(root, DOMAIN, "443 ssl default_server"));
    fs::create_dir(nginx.join("sites-enabled")).unwrap();
    std::os::unix::fs::symlink("../sites-available/shop", nginx.join("sites-enabled/shop")).unwrap();
}

fn site(root: &Path, domain: &str, listen: &str) -> String {
    let live = root.join("etc/letsencrypt/live").join(DOMAIN);
    format!(
        "server {{\n  listen {listen};\n  listen [::]:443 ssl;\n  listen 203.0.113.9:80;\n  server_name {domain};\n  ssl_certificate {}/fullchain.pem;\n  \
         ssl_certificate_key {}/privkey.pem;\n  include snippets/tls.conf;\n  location / {{ proxy_pass http://api; }}\n  \
         location /ws {{ proxy_pass http://websocket_1:8080/; }}\n}}\n",
        text(&live),
        text(&live)
    )
}

fn seed(harm: impl FnOnce(&Path)) -> Proof {
    let world = World::new(SOURCES, fill);
    let before = world.take();
    harm(&world.root());
    let mut taken = world.take();
    for (now, then) in taken.iter_mut().zip(before) {
        now.facts = then.facts;
    }
    world.prove(&taken, "nginx")
}

fn nginx(root: &Path, name: &str) -> std::path::PathBuf {
    root.join("etc/nginx").join(name)
}

#[test]
fn the_unharmed_twin_is_green() {
    let proof = seed(|_| {});
    assert_green(&proof, &[]);
    assert_eq!(proof.restored, ["nginx ok"]);
    let check = &proof.checks[0];
    assert!(
        check.subject.ends_with("/etc/nginx/nginx.conf") && check.found.contains("accepted by nginx/"),
        "{check:?}"
    );
    assert!(
        !Path::new("/var/log/shop").exists() && !Path::new("/run/shop-nginx.pid").exists(),
        "nothing live is touched"
    );
}

#[test]
fn a_missing_include_is_named() {
    let proof = seed(|root| fs::remove_file(nginx(root, "snippets/tls.conf")).unwrap());
    assert_only(&proof, &["nginx -t"]);
    let check = assert_red(&proof, "nginx -t", &["snippets/tls.conf", "failed (2: No such file or directory)"]);
    assert!(check.differences[0].subject.ends_with("/sites-enabled/shop:8"), "{check:?}");
    assert_eq!(proof.restored, ["nginx refused"]);
}

#[test]
fn two_default_servers_are_named() {
    let proof = seed(|root| {
        let second = site(root, "two.example", "443 ssl default_server");
        write(&nginx(root, "conf.d/two.conf"), &second);
    });
    assert_red(&proof, "nginx -t", &["a duplicate default server for 0.0.0.0:443"]);
}

#[test]
fn two_servers_of_one_name_are_named() {
    let proof = seed(|root| write(&nginx(root, "conf.d/two.conf"), &site(root, DOMAIN, "443 ssl")));
    assert_only(&proof, &["server names"]);
    assert_red(&proof, "server names", &["shop.example", "conflicting server name"]);
}

#[test]
fn a_certificate_that_nginx_names_is_missing_or_another_key_s() {
    let proof = seed(|root| fs::remove_dir_all(root.join("etc/letsencrypt/live")).unwrap());
    assert_red(&proof, "nginx -t", &["cannot load certificate", "live/shop.example/fullchain.pem", "No such file"]);
    let proof = seed(|root| {
        let archive = root.join("etc/letsencrypt/archive").join(DOMAIN);
        fs::copy(archive.join("privkey1.pem"), archive.join("privkey2.pem")).unwrap();
    });
    assert_red(&proof, "nginx -t", &["privkey.pem", "key values mismatch"]);
    // The live machine has it, the snapshot has not: that is no certificate.
    let world = World::new(SOURCES, fill);
    let taken: Vec<_> = world.take().into_iter().filter(|t| t.kind == "nginx").collect();
    assert_red(&world.prove(&taken, "nginx"), "nginx -t", &["cannot load certificate", "No such file"]);
}

#[test]
fn an_unknown_directive_and_a_lost_site_are_named() {
    let proof = seed(|root| write(&nginx(root, "conf.d/typo.conf"), "server {\n  lisen 80;\n}\n"));
    let check = assert_red(&proof, "nginx -t", &["unknown directive", "lisen"]);
    assert!(check.differences[0].subject.ends_with("conf.d/typo.conf:2"), "{check:?}");
    let proof = seed(|root| fs::remove_file(nginx(root, "sites-enabled/shop")).unwrap());
    assert_only(&proof, &["names"]);
    assert_red(&proof, "names", &["shop.example"]);
}

#[test]
fn without_a_main_file_the_rest_is_the_live_one_s() {
    let sources = SOURCES.replace("ROOT/etc/nginx\"", "ROOT/etc/nginx/sites-available/shop\"");
    let fill_site = |root: &Path| {
        fill(root);
        fs::remove_file(nginx(root, "nginx.conf")).unwrap();
        // Its own include is not captured and the live machine's main file has nothing of it either.
        let path = nginx(root, "sites-available/shop");
        let content = fs::read_to_string(&path).unwrap().replace("  include snippets/tls.conf;\n", "");
        write(&path, &content.replace("http://api;", "http://127.0.0.1:3000;"));
    };
    let world = World::new(&sources, fill_site);
    let proof = world.proof("nginx");
    let check = &proof.checks[0];
    assert_eq!(check.verdict, Verdict::Passed, "{proof:#?}");
    assert!(
        check.found.contains("/etc/nginx/nginx.conf and what else was not captured is the live one's"),
        "{check:?}"
    );
}

/// One site of a host on which others have theirs: the main file is read for what it says, and not captured.
#[test]
fn of_one_site_the_others_are_not_captured_and_are_the_live_ones() {
    let sources = SOURCES.replace("ROOT/etc/nginx\"", "ROOT/etc/nginx/sites-available/shop\"");
    let world = World::new(&sources, |root| {
        fill(root);
        let other = "server { listen 8081; server_name other.example; }\n";
        write(&nginx(root, "conf.d/other.conf"), other);
    });
    let taken = world.take();
    let facts = &taken.iter().find(|t| t.kind == "nginx").unwrap().facts;
    assert_eq!(facts["server_names"], serde_json::json!([DOMAIN]), "{facts:#}");
    let main = nginx(&world.root(), "nginx.conf");
    assert_eq!(facts["main"], text(&main), "{facts:#}");
    // Only what the site itself includes.
    let outside = [nginx(&world.root(), "snippets/tls.conf")];
    assert_eq!(facts["included_outside"], serde_json::json!(outside), "{facts:#}");
    // What is tested is the captured site, through the live link to it, and not the live site.
    write(&nginx(&world.root(), "sites-available/shop"), "nonsense;\n");
    let proof = world.prove(&taken, "nginx");
    assert_green(&proof, &[]);
    let found = &proof.checks[0].found;
    assert!(found.contains(&format!("{} and what else was not captured is the live one's", text(&main))), "{found}");
}

/// Run by the test below, where this host's program is hidden.
#[test]
fn by_an_image() {
    if Path::new("/usr/sbin/nginx").is_file() {
        return;
    }
    let proof = seed(|_| {});
    assert_green(&proof, &[]);
    let found = &proof.checks[0].found;
    assert!(found.contains("accepted by nginx of image ") && found.contains("this host has no nginx"), "{found}");
    let proof = seed(|root| fs::remove_file(nginx(root, "snippets/tls.conf")).unwrap());
    assert_red(&proof, "nginx -t", &["snippets/tls.conf", "sites-enabled/shop:8"]);
}

#[test]
fn a_host_without_nginx_asks_an_image_that_has_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    engine();
    let image = TestImage(format!("lifeboat-test/{}:1", unique("nginx")));
    docker(["tag", IMAGE, &image.0]);
    let idle = TestContainer::run(
        &["--network", "none"],
        &image.0,
        &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"],
    );
    let hide = "mount --bind /dev/null /usr/sbin/nginx && exec \"$0\" nginx::by_an_image --exact";
    let exe = std::env::current_exe().unwrap();
    let out = run("unshare", &["--mount", "sh", "-c", hide, text(&exe)]);
    assert!(out.contains("1 passed"), "{out}");
    drop(idle);
}

#[test]
fn an_ordinary_user_needs_no_rights() {
    as_a_user("nginx::", &[]);
}
