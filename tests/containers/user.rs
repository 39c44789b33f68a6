//! course-supporter: an ordinary user in group docker, no port of the database, files that only root may read.

use crate::docker::docker;
use crate::everything::{equal, the_database_loads, through_docker};
use crate::stack::{Caller, Shape, Stack, host, source};
use crate::tree::records;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

#[test]
fn a_user_in_group_docker_needs_no_root_and_no_port() {
    let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
    let caller = Caller { uid: 65534, gid: 65534, groups: vec![group] };
    let shape = Shape { compose: "docker-compose.prod.yaml", env: ".env.prod" };
    let stack = Stack::bare("courses", caller, shape);
    stack.fill();
    fs::copy(env!("CARGO_BIN_EXE_lifeboat"), stack.path("lifeboat")).unwrap();
    let etc = stack.path("etc");
    certificates(&etc);
    site(&stack.path("shared-nginx"));
    deploy_key(&stack);
    stack.init();
    write_policy(&stack, &etc);
    stack.run(&["policy", "check"]).exits(0);
    let listing = host(
        "setpriv",
        &[
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            "ls \"$1\" 2>&1 || true",
            "sh",
            etc.join("letsencrypt/live").to_str().unwrap(),
        ],
    );
    assert!(listing.contains("Permission denied"), "the user cannot look there: {listing}");

    let report = stack.snapshot(0);
    assert_eq!(report["header"]["outcome"], "complete", "{report:#}");
    let id = report["header"]["id"].as_str().unwrap();
    let shown = stack.show(id);
    let db = source(&shown, "db");
    assert_eq!((&db["facts"]["user"], &db["facts"]["superuser"]), (&json!("shop"), &json!(false)), "{db:#}");
    assert!(db["warnings"].to_string().contains("without their passwords"), "{db:#}");
    assert_eq!(source(&shown, "uploads")["facts"]["volumes"][0]["via"], "docker");
    let ports = docker(["inspect", "-f", "{{json .HostConfig.PortBindings}}", &stack.container("db")]);
    assert_eq!(ports, "{}", "the database publishes no port");

    // Proved by the same user, in containers of the same images.
    let drilled = stack.drill(id);
    assert!(drilled["record"].is_string(), "{:#}", drilled["notes"]);
    assert!(drilled["restored"].to_string().contains("tables"), "{drilled:#}");

    // The user restores what was root's into a folder of the user's own.
    let mine = stack.path("home/mine");
    stack.run(&["restore", id, "--into", mine.to_str().unwrap()]).exits(0);
    stack.run(&["verify", "--deep"]).exits(0);
    let key = etc.join("letsencrypt/archive/courses.example.org/privkey1.pem");
    let back = mine.join("certificates").join(key.strip_prefix("/").unwrap());
    assert_eq!(fs::read(&back).unwrap(), fs::read(&key).unwrap());
    assert_eq!(fs::metadata(&back).unwrap().uid(), 65534);

    // Root lays it out, so that owners come back too; the user's own identity opens it.
    let into = stack.restore(id, "back", 0);
    the_database_loads(&stack, &into, &shown, false);
    equal(through_docker(records(&stack.volume("storage"))), through_docker(records(&into.join("uploads/storage"))));
    let below = |source: &str, path: &Path| into.join(source).join(path.strip_prefix("/").unwrap());
    let letsencrypt = etc.join("letsencrypt");
    equal(through_docker(records(&letsencrypt)), through_docker(records(&below("certificates", &letsencrypt))));
    let site = stack.path("shared-nginx/conf.d/courses.conf");
    assert_eq!(fs::read(below("nginx", &site)).unwrap(), fs::read(&site).unwrap());
    let key = stack.path("home/.ssh/deploy-key");
    assert_eq!(fs::read(below("deploy", &key)).unwrap(), fs::read(&key).unwrap());
    let env = stack.app().join(".env.prod");
    assert_eq!(fs::read(below("env", &env)).unwrap(), fs::read(&env).unwrap());
    // What the user owns, nobody else may read.
    for private in ["home/.config/lifeboat/identity.txt", "home/.config/lifeboat/host.key"] {
        let meta = fs::metadata(stack.path(private)).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (65534, 0o600), "{private}");
    }
}

/// As certbot leaves them: links in `live/` to numbered files in `archive/`, root's alone.
fn certificates(etc: &Path) {
    let (live, archive) =
        (etc.join("letsencrypt/live/courses.example.org"), etc.join("letsencrypt/archive/courses.example.org"));
    fs::create_dir_all(&live).unwrap();
    fs::create_dir_all(&archive).unwrap();
    let (key, cert) = (archive.join("privkey1.pem"), archive.join("fullchain1.pem"));
    host(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "60",
            "-subj",
            "/CN=courses.example.org",
            "-addext",
            "subjectAltName=DNS:courses.example.org",
            "-keyout",
            key.to_str().unwrap(),
            "-out",
            cert.to_str().unwrap(),
        ],
    );
    for name in ["privkey", "fullchain"] {
        symlink(format!("../../archive/courses.example.org/{name}1.pem"), live.join(format!("{name}.pem"))).unwrap();
    }
    for private in ["letsencrypt/live", "letsencrypt/archive"] {
        fs::set_permissions(etc.join(private), fs::Permissions::from_mode(0o700)).unwrap();
    }
    host("chown", &["-R", "0:0", etc.to_str().unwrap()]);
}

/// The configuration of an nginx that others use too.
fn site(dir: &Path) {
    fs::create_dir_all(dir.join("conf.d")).unwrap();
    fs::write(dir.join("conf.d/courses.conf"), "server {\n    server_name courses.example.org;\n}\n").unwrap();
    fs::write(dir.join("conf.d/another.conf"), "server {\n    server_name another.example.org;\n}\n").unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    host("chown", &["-R", "0:0", dir.to_str().unwrap()]);
}

fn deploy_key(stack: &Stack) {
    let ssh = stack.path("home/.ssh");
    fs::create_dir_all(&ssh).unwrap();
    fs::write(ssh.join("deploy-key"), "not a key\n").unwrap();
    fs::create_dir_all(stack.path("webroot/.well-known")).unwrap();
    host("chown", &["-R", "65534:65534", stack.path("home").to_str().unwrap()]);
}

/// The shipped policy, with this machine's places.
fn write_policy(stack: &Stack, etc: &Path) {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/course-supporter.toml");
    let mut text = fs::read_to_string(shipped).unwrap();
    let path = |p: PathBuf| p.to_str().unwrap().to_owned();
    for (from, to) in [
        ("name = \"course-supporter\"", format!("name = \"{}\"", stack.policy)),
        ("/opt/course-supporter", path(stack.app())),
        ("age1v05v4uc66jwy3ysq0e6maqghrjc0qfffudzuc4al4j3jfcknyf0sajxagz", stack.recipient()),
        ("s3://course-supporter-backups/lifeboat", path(stack.path("repository"))),
        (
            "container = \"postgres-cs\"",
            format!(
                "container = \"{}-db-1\"\nuser = \"shop\"\npassword_from = \".env.prod:APP_PASSWORD\"",
                stack.project.name
            ),
        ),
        ("required = [\"DATABASE_URL\"]", "required = [\"DB_PASSWORD\"]".into()),
        ("/etc/letsencrypt", path(etc.join("letsencrypt"))),
        ("/srv/nginx/conf.d/course-supporter.conf", path(stack.path("shared-nginx/conf.d/courses.conf"))),
        ("container = \"nginx\"", format!("container = \"{}-web-1\"", stack.project.name)),
        ("/home/deploy-course-supporter/.ssh/course-supporter-deploy-key", path(stack.path("home/.ssh/deploy-key"))),
        ("/var/www/certbot", path(stack.path("webroot"))),
        // However full the disk of this machine is.
        ("[repository]\n", "[repository]\nmin_free = \"0B\"\n".into()),
        // The images of the tests have no pgvector.
        ("extname = 'vector'", "extname = 'plpgsql'".into()),
    ] {
        assert!(text.contains(from), "{from:?} is not in the shipped policy");
        text = text.replace(from, &to);
    }
    // A folder needs no bucket's settings.
    let of_bucket = ["endpoint = ", "region = ", "credentials = ", "path_style = "];
    let mut kept: Vec<&str> = text.lines().filter(|l| !of_bucket.iter().any(|o| l.starts_with(o))).collect();
    kept.push("[[source]]\nkind = \"volume\"\nname = \"uploads\"\nvolumes = [\"storage\"]\n");
    fs::write(stack.policy_file(), kept.join("\n")).unwrap();
}
