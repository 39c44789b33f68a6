//! The sources that know what their files mean: env, certificates, nginx, volume; and all of them through Docker.

#[path = "support/capture.rs"]
mod capture;
#[path = "support/docker.rs"]
mod engine;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/tree.rs"]
mod tree;

use capture::{app, listing, names, paths, policy, restore, try_capture};
use chrono::{TimeDelta, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::stream::FileType;
use lifeboat::policy::model::{CertificatesSpec, EnvSpec, FilesSpec, NginxSpec, SourceSpec, Via, VolumeSpec};
use lifeboat::sources::files::{CertificatesSource, EnvSource, FilesSource, NginxSource, VolumeSource};
use lifeboat::sources::{Capture, Source};
use serde_json::{Value, json};
use sink::{Bench, MemorySink};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tree::{assert_same, inside, records, run, scratch, set_mode, text};

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

mod env {
    use super::*;

    fn spec(root: &Path) -> EnvSpec {
        EnvSpec {
            paths: paths(&[&root.join(".env"), &root.join(".env.*")]),
            exclude: vec!["*.example".into()],
            required: Vec::new(),
            patterns: Vec::new(),
            same: Vec::new(),
            data_keys: Vec::new(),
        }
    }

    fn source(root: &Path, spec: &EnvSpec) -> EnvSource {
        EnvSource::new(&policy(SourceSpec::Env(spec.clone())), spec, &app(root))
    }

    #[test]
    fn facts_know_keys_and_never_values() {
        let (_guard, dir) = scratch();
        let root = dir.join("app");
        write(
            &root.join(".env"),
            "DB_PASSWORD=canary-one\nEMPTY=\nDB_PASSWORD='canary-two'\nKEY=$(openssl rand -hex 16)\n",
        );
        write(&root.join(".env.production"), "export URL=\"https://${DB_PASSWORD}@x\" # canary-three\n");
        write(&root.join(".env.example"), "DB_PASSWORD=changeme\n");
        set_mode(&root.join(".env"), 0o644);
        set_mode(&root.join(".env.production"), 0o600);
        let spec = spec(&root);
        let (sink, captured) = try_capture(&source(&root, &spec)).unwrap();
        assert_eq!(names(&sink, &root), [".env", ".env.production"]);
        let said = format!("{}{:?}", captured.facts, captured.warnings);
        assert!(!said.contains("canary") && !said.contains("openssl") && !said.contains("https"), "{said}");
        let files = captured.facts["files"].as_array().unwrap();
        let keys: Vec<&str> =
            files[0]["keys"].as_array().unwrap().iter().map(|k| k["name"].as_str().unwrap()).collect();
        assert_eq!(keys, ["EMPTY", "DB_PASSWORD", "KEY"]);
        assert_eq!((&files[0]["mode"], &files[1]["mode"]), (&json!(0o644), &json!(0o600)));
        assert_eq!(files[0]["keys"][0]["empty"], true);
        assert_eq!(files[0]["keys"][1]["overridden_lines"], json!([1]));
        assert_eq!(files[0]["keys"][2]["literal_command"], true);
        assert_eq!(
            captured.warnings,
            [
                ".env: KEY is the text $(…) itself: nothing ever runs it",
                ".env: DB_PASSWORD is set more than once: the last one counts",
                ".env holds secrets and every user can read it: chmod 600",
            ]
        );
        // Equal values have equal hashes, interpolated ones too; others do not.
        write(&root.join(".env.same"), "A=canary-two\nB=https://canary-two@x\nC=canary-one\n");
        let (_, captured) = try_capture(&source(&root, &spec)).unwrap();
        let hash = |file: usize, key: &str| {
            let keys = captured.facts["files"][file]["keys"].as_array().unwrap();
            keys.iter().find(|k| k["name"] == key).unwrap()["hash"].clone()
        };
        assert_eq!(hash(0, "DB_PASSWORD"), hash(2, "A"));
        assert_eq!(hash(1, "URL"), hash(2, "B"));
        assert_ne!(hash(0, "DB_PASSWORD"), hash(2, "C"));
    }

    #[test]
    fn the_rules_of_the_policy_are_held_against_the_files() {
        let (_guard, dir) = scratch();
        let root = dir.join("app");
        write(&root.join(".env"), "REDIS_PASSWORD=canary-r\nSHORT=0123\nSET=\n");
        write(&root.join("backend/.env.production"), "REDIS_PASSWORD=canary-other\nLONG=0123abcd\n");
        write(&dir.join("other/.env"), "SHARED=canary-r\n");
        let mut spec = spec(&root);
        spec.paths.push(text(&root.join("backend/.env.production")).into());
        spec.required = ["REDIS_PASSWORD", "SET", "MISSING"].map(String::from).to_vec();
        let form = |key: &str| (key.to_owned(), "^[0-9a-f]{8}$".to_owned());
        spec.patterns = vec![form("SHORT"), form("LONG"), form("NOWHERE")];
        let at = |file: &Path, key: &str| (file.to_path_buf(), key.to_owned());
        spec.same = vec![
            vec![at(&root.join(".env"), "REDIS_PASSWORD"), at(&root.join("backend/.env.production"), "REDIS_PASSWORD")],
            vec![at(&root.join(".env"), "REDIS_PASSWORD"), at(&dir.join("other/.env"), "SHARED")],
            vec![at(&root.join(".env"), "REDIS_PASSWORD"), at(&dir.join("nowhere/.env"), "SHARED")],
        ];
        let (sink, captured) = try_capture(&source(&root, &spec)).unwrap();
        assert_eq!(
            names(&sink, &root),
            [".env", "backend", "backend/.env.production"],
            "the other application's is not ours"
        );
        let ok: Vec<_> = captured.facts["checks"].as_array().unwrap().iter().map(|c| c["ok"] == true).collect();
        assert_eq!(ok, [true, false, false, false, true, false, false, true, false]);
        let said = captured.warnings.join("\n");
        for expected in [
            "SET is required and is empty",
            "MISSING is required and stands in no env file",
            ".env:SHORT does not have the form ^[0-9a-f]{8}$",
            "NOWHERE has a pattern and stands in no env file",
            ".env:REDIS_PASSWORD and backend/.env.production:REDIS_PASSWORD must be the same and are not",
            "nowhere/.env cannot be read: No such file",
        ] {
            assert!(said.contains(expected), "{expected}\n{said}");
        }
        assert!(!format!("{said}{}", captured.facts).contains("canary"));
    }

    #[test]
    fn a_default_source_without_files_is_no_failure_and_a_broken_file_is_told() {
        let (_guard, dir) = scratch();
        let spec = spec(&dir);
        let mut by_default = policy(SourceSpec::Env(spec.clone()));
        by_default.implicit = true;
        let (sink, captured) = try_capture(&EnvSource::new(&by_default, &spec, &app(&dir))).unwrap();
        assert!(sink.names().is_empty() && captured.warnings[0].starts_with("no env file in "));
        let error = try_capture(&source(&dir, &spec)).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("no env file matches "), "{error}");
        write(&dir.join(".env.local"), "A=1\nB=\"canary\n");
        set_mode(&dir.join(".env.local"), 0o600);
        let (sink, captured) = try_capture(&source(&dir, &spec)).unwrap();
        assert_eq!(names(&sink, &dir), [".env.local"]);
        assert_eq!(captured.warnings, [".env.local: line 2: the quoted value of B has no closing quote"]);
    }
}

mod certificates {
    use super::*;

    fn spec(of: &[&Path], via: Via) -> CertificatesSpec {
        CertificatesSpec { paths: paths(of), min_days: 14, via }
    }

    fn source(spec: &CertificatesSpec) -> CertificatesSource {
        CertificatesSource::new(&policy(SourceSpec::Certificates(spec.clone())), spec, &app(Path::new("/nowhere")))
    }

    fn openssl(argv: &[&str]) {
        run(&[&["openssl"], argv].concat());
    }

    /// A key and a certificate for it, signed by an authority made for it.
    fn issue(dir: &Path, name: &str, key: &[&str], days: &str) {
        let at = |file: &str| dir.join(file).to_str().unwrap().to_owned();
        let (ca_key, ca, private, request, cert) =
            (at("ca.key"), at("ca.pem"), at(&format!("{name}.key")), at("r.csr"), at(&format!("{name}.crt")));
        if !dir.join("ca.pem").exists() {
            openssl(&[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=Test Authority",
                "-keyout",
                &ca_key,
                "-out",
                &ca,
            ]);
        }
        openssl(&[&["genpkey", "-out", &private], key].concat());
        openssl(&[
            "req",
            "-new",
            "-key",
            &private,
            "-subj",
            "/CN=example.org",
            "-addext",
            "subjectAltName=DNS:example.org,DNS:www.example.org,IP:192.0.2.1",
            "-out",
            &request,
        ]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            days,
            "-copy_extensions",
            "copy",
            "-out",
            &cert,
        ]);
        fs::remove_file(&request).unwrap();
        set_mode(&dir.join(format!("{name}.key")), 0o600);
    }

    /// certbot's layout, with two generations.
    fn certbot(dir: &Path, work: &Path) {
        for (generation, key) in
            [("1", &["-algorithm", "RSA"][..]), ("2", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])]
        {
            issue(work, generation, key, "60");
            let archive = dir.join("archive/example.org");
            let put = |name: &str, content: String| write(&archive.join(format!("{name}{generation}.pem")), &content);
            let read = |name: &str| fs::read_to_string(work.join(name)).unwrap();
            let (cert, ca) = (read(&format!("{generation}.crt")), read("ca.pem"));
            put("cert", cert.clone());
            put("chain", ca.clone());
            put("fullchain", format!("{cert}{ca}"));
            put("privkey", read(&format!("{generation}.key")));
            set_mode(&archive.join(format!("privkey{generation}.pem")), 0o600);
        }
        fs::create_dir_all(dir.join("live/example.org")).unwrap();
        for name in ["cert", "chain", "fullchain", "privkey"] {
            symlink(format!("../../archive/example.org/{name}2.pem"), dir.join(format!("live/example.org/{name}.pem")))
                .unwrap();
        }
        write(&dir.join("renewal/example.org.conf"), "version = 2.1\n");
    }

    #[test]
    fn a_lineage_is_known_by_its_live_names() {
        let (_guard, dir) = scratch();
        let (work, etc) = (dir.join("work"), dir.join("letsencrypt"));
        fs::create_dir(&work).unwrap();
        certbot(&etc, &work);
        let (sink, captured) = try_capture(&source(&spec(&[&etc], Via::Direct))).unwrap();
        let to = dir.join("to");
        restore(&sink, &to);
        assert_same(&records(&etc), &records(&to.join(inside(&etc))));
        assert_eq!(captured.warnings, Vec::<String>::new());
        let found = captured.facts["certificates"].as_array().unwrap();
        assert_eq!(found.len(), 1, "not the history: {found:#?}");
        let live = etc.join("live/example.org");
        assert_eq!(found[0]["files"], json!([live.join("cert.pem"), live.join("fullchain.pem")]));
        assert_eq!(found[0]["names"], json!(["example.org", "www.example.org", "192.0.2.1"]));
        assert_eq!(
            (&found[0]["subject"], &found[0]["issuer"]),
            (&json!("CN=example.org"), &json!("CN=Test Authority"))
        );
        assert_eq!((&found[0]["key"], &found[0]["key_matches"]), (&json!(live.join("privkey.pem")), &json!(true)));
        assert_eq!(found[0]["chain_in_order"], true);
        let fingerprint =
            run(&["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", text(&live.join("cert.pem"))]);
        let digits = fingerprint.split('=').nth(1).unwrap().trim().replace(':', "").to_lowercase();
        assert_eq!(found[0]["sha256"], digits);
        assert!(!captured.facts.to_string().contains("PRIVATE"));
    }

    #[test]
    fn live_links_bring_what_they_point_to_outside() {
        let (_guard, dir) = scratch();
        let (work, etc) = (dir.join("work"), dir.join("letsencrypt"));
        fs::create_dir(&work).unwrap();
        certbot(&etc, &work);
        let live = etc.join("live/example.org");
        let (sink, captured) = try_capture(&source(&spec(&[&live], Via::Direct))).unwrap();
        assert_eq!(
            names(&sink, &etc),
            [
                "archive",
                "archive/example.org",
                "archive/example.org/cert2.pem",
                "archive/example.org/chain2.pem",
                "archive/example.org/fullchain2.pem",
                "archive/example.org/privkey2.pem",
                "live",
                "live/example.org",
                "live/example.org/cert.pem",
                "live/example.org/chain.pem",
                "live/example.org/fullchain.pem",
                "live/example.org/privkey.pem",
            ]
        );
        assert_eq!(captured.facts["certificates"][0]["key_matches"], true);
        let to = dir.join("to");
        restore(&sink, &to);
        fs::read(to.join(inside(&live)).join("privkey.pem")).unwrap();
    }

    #[test]
    fn keys_of_every_common_kind_are_compared() {
        let (_guard, dir) = scratch();
        let kinds: [(&str, &[&str]); 5] = [
            ("rsa", &["-algorithm", "RSA"]),
            ("p256", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
            ("p384", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
            ("p521", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"]),
            ("ed25519", &["-algorithm", "ED25519"]),
        ];
        for (kind, key) in kinds {
            let one = dir.join("pairs").join(kind);
            fs::create_dir_all(&one).unwrap();
            issue(&one, "server", key, "90");
            fs::remove_file(one.join("ca.key")).unwrap();
        }
        let traditional = dir.join("pairs/traditional");
        fs::create_dir_all(&traditional).unwrap();
        issue(&traditional, "server", kinds[0].1, "90");
        let key = traditional.join("server.key");
        openssl(&["rsa", "-traditional", "-in", text(&key), "-out", text(&key)]);
        assert!(fs::read_to_string(&key).unwrap().contains("BEGIN RSA PRIVATE KEY"));
        let sec1 = dir.join("pairs/p256/server.key");
        openssl(&["ec", "-in", text(&sec1), "-out", text(&sec1)]);
        assert!(fs::read_to_string(&sec1).unwrap().contains("BEGIN EC PRIVATE KEY"));
        let locked = dir.join("pairs/locked");
        fs::create_dir_all(&locked).unwrap();
        issue(&locked, "server", kinds[0].1, "90");
        let key = locked.join("server.key");
        openssl(&["rsa", "-aes128", "-passout", "pass:canary", "-in", text(&key), "-out", text(&key)]);
        // Somebody else's key beside the certificate.
        let swapped = dir.join("pairs/swapped");
        fs::create_dir_all(&swapped).unwrap();
        issue(&swapped, "server", kinds[1].1, "90");
        openssl(&[&["genpkey", "-out", text(&swapped.join("server.key"))], kinds[1].1].concat());
        let (_, captured) = try_capture(&source(&spec(&[&dir.join("pairs")], Via::Direct))).unwrap();
        for fact in captured.facts["certificates"].as_array().unwrap() {
            let file = PathBuf::from(fact["files"][0].as_str().unwrap());
            let kind = file.parent().unwrap().file_name().unwrap().to_str().unwrap();
            let expected = match kind {
                "swapped" => json!(false),
                "locked" => Value::Null,
                _ => json!(true),
            };
            assert_eq!(fact["key_matches"], expected, "{kind}");
            assert!(fact["key"].as_str().unwrap().ends_with(&format!("{kind}/server.key")), "{fact}");
        }
        assert_eq!(captured.facts["certificates"].as_array().unwrap().len(), 8);
        let mismatch = captured.warnings.iter().filter(|w| w.contains("does not belong to")).count();
        assert_eq!(mismatch, 1, "{:?}", captured.warnings);
    }

    #[test]
    fn expiry_chains_and_open_keys_are_told() {
        let (_guard, dir) = scratch();
        let of = |name: &str| dir.join("tls").join(name);
        for (name, days) in [("soon", "5"), ("fine", "90")] {
            fs::create_dir_all(of(name)).unwrap();
            issue(&of(name), "server", &["-algorithm", "RSA"], days);
            fs::remove_file(of(name).join("ca.key")).unwrap();
        }
        let read = |path: &str| fs::read_to_string(of(path)).unwrap();
        write(&of("soon/full.pem"), &format!("{}{}", read("soon/server.crt"), read("fine/ca.pem")));
        set_mode(&of("fine/server.key"), 0o644);
        let source = source(&spec(&[&dir.join("tls")], Via::Direct));
        let (_, captured) = try_capture(&source).unwrap();
        let said = captured.warnings.join("\n");
        assert!(said.contains("/soon/full.pem expires in 4 days, on "), "{said}");
        assert!(said.contains("the chain behind ") && said.contains("is not in order"), "{said}");
        assert!(said.contains("/fine/server.key is a private key and every user can read it"), "{said}");
        assert_eq!(captured.warnings.len(), 3, "{said}");
        let bench = Bench::new();
        let sink = MemorySink::new();
        let later = Capture { now: Utc::now() + TimeDelta::days(30), ..bench.capture(&sink) };
        assert!(source.capture(&later).unwrap().warnings.join("\n").contains("has expired on "));
        let earlier = Capture { now: Utc::now() - TimeDelta::days(3), ..bench.capture(&sink) };
        let sink = MemorySink::new();
        let earlier = Capture { sink: &sink, ..earlier };
        assert!(source.capture(&earlier).unwrap().warnings.join("\n").contains("is not valid before "));
    }

    #[test]
    fn root_owned_folders_are_read_through_docker() {
        engine::engine();
        let (_guard, dir) = scratch();
        let (work, etc) = (dir.join("work"), dir.join("letsencrypt"));
        fs::create_dir(&work).unwrap();
        certbot(&etc, &work);
        let (direct, direct_facts) = try_capture(&source(&spec(&[&etc], Via::Direct))).unwrap();
        let (through, facts) = try_capture(&source(&spec(&[&etc], Via::Docker))).unwrap();
        assert_eq!(names(&direct, &dir), names(&through, &dir));
        assert_eq!(direct_facts.facts, facts.facts);
        let to = dir.join("to");
        restore(&through, &to);
        let mut expected = records(&etc);
        let mut found = records(&to.join(inside(&etc)));
        // The engine's archive has whole seconds for some entries.
        for record in expected.values_mut().chain(found.values_mut()) {
            record.mtime.1 = 0;
        }
        assert_same(&expected, &found);
        // A live folder alone: what its links point to is read as well.
        let live = etc.join("live/example.org");
        let (through, facts) = try_capture(&source(&spec(&[&live], Via::Docker))).unwrap();
        assert_eq!(facts.facts["certificates"][0]["key_matches"], true);
        assert!(names(&through, &etc).contains(&"archive/example.org/privkey2.pem".to_owned()));
        assert!(!names(&through, &etc).contains(&"archive/example.org/privkey1.pem".to_owned()));
    }
}

mod nginx {
    use super::*;

    fn source(of: &[&Path]) -> NginxSource {
        let spec = NginxSpec { paths: paths(of), container: None, via: Via::Direct };
        NginxSource::new(&policy(SourceSpec::Nginx(spec.clone())), &spec, &app(Path::new("/nowhere")))
    }

    #[test]
    fn includes_are_followed_out_of_the_named_paths() {
        let (_guard, dir) = scratch();
        let (etc, srv) = (dir.join("nginx"), dir.join("srv"));
        write(
            &etc.join("nginx.conf"),
            &format!(
                "http {{ include mime.types; include conf.d/*.conf; include sites-enabled/*; include {}/extra-*.conf; }}",
                srv.display()
            ),
        );
        write(&etc.join("mime.types"), "types { text/html html; }");
        write(
            &etc.join("conf.d/one.conf"),
            "server { server_name one.example; ssl_certificate /etc/x/live/cert.pem; ssl_certificate_key certs/key.pem; include missing.conf; }",
        );
        write(
            &srv.join("site"),
            &format!(
                "server {{ server_name two.example _; proxy_pass http://api:8000/x; include {}/deeper.inc; }}",
                srv.display()
            ),
        );
        write(&srv.join("extra-1.conf"), "upstream u { server app:9000 weight=2; server unix:/run/x; }");
        write(&srv.join("deeper.inc"), "auth_basic_user_file htpasswd; ssl_certificate $dynamic; include extra-loop;");
        write(&etc.join("extra-loop"), "include extra-loop; include nginx.conf;");
        write(&srv.join("unrelated"), "x");
        fs::create_dir(etc.join("sites-enabled")).unwrap();
        symlink(srv.join("site"), etc.join("sites-enabled/site")).unwrap();
        let (sink, captured) = try_capture(&source(&[&etc])).unwrap();
        assert_eq!(names(&sink, &srv), ["deeper.inc", "extra-1.conf", "site"]);
        assert_eq!(
            listing(&sink).iter().find(|e| e.path.ends_with("enabled/site")).unwrap().file_type,
            FileType::Symlink
        );
        let facts = &captured.facts;
        assert_eq!(facts["prefix"], json!(etc));
        assert_eq!(facts["main"], json!(etc.join("nginx.conf")));
        assert_eq!(facts["server_names"], json!(["one.example", "two.example"]));
        assert_eq!(facts["ssl_files"], json!(["/etc/x/live/cert.pem", etc.join("certs/key.pem")]));
        assert_eq!(facts["other_files"], json!([etc.join("htpasswd")]));
        assert_eq!(facts["upstreams"], json!(["api:8000", "app:9000"]));
        assert_eq!(
            facts["included_outside"],
            json!([srv.join("deeper.inc"), srv.join("extra-1.conf"), srv.join("site")])
        );
        assert_eq!(facts["unresolved"], json!(["missing.conf"]));
        assert_eq!(
            captured.warnings,
            [format!("include {}: there is no such file", etc.join("missing.conf").display())]
        );
        let to = dir.join("to");
        restore(&sink, &to);
        assert_same(&records(&etc), &records(&to.join(inside(&etc))));
    }

    #[test]
    fn a_single_site_is_read_from_the_prefix_above_it() {
        let (_guard, dir) = scratch();
        let etc = dir.join("nginx");
        write(&etc.join("nginx.conf"), "http { include sites-enabled/*; }");
        write(&etc.join("snippets/tls.conf"), "ssl_certificate /c.pem;");
        write(&etc.join("sites-available/app.conf"), "server { server_name app.example; include snippets/tls.conf; }");
        write(&etc.join("sites-available/other.conf"), "server { server_name other.example; }");
        let (sink, captured) = try_capture(&source(&[&etc.join("sites-available/app.conf")])).unwrap();
        assert_eq!(
            names(&sink, &etc),
            ["sites-available", "sites-available/app.conf", "snippets", "snippets/tls.conf"]
        );
        assert_eq!(captured.facts["ssl_files"], json!(["/c.pem"]));
        assert_eq!(captured.facts["server_names"], json!(["app.example"]));
    }

    #[test]
    fn the_real_configuration_of_this_machine_passes_nginx_after_a_restore() {
        let (_guard, dir) = scratch();
        let (sink, captured) = try_capture(&source(&[Path::new("/etc/nginx")])).unwrap();
        assert!(captured.facts["unresolved"].as_array().unwrap().is_empty(), "{}", captured.facts);
        restore(&sink, &dir.join("to"));
        assert_same(&records(Path::new("/etc/nginx")), &records(&dir.join("to/etc/nginx")));
        // At its own place, as only a mount namespace of its own lets us.
        let script = "mount --bind \"$0\" /etc/nginx && exec nginx -t";
        let out = std::process::Command::new("unshare")
            .args(["-m", "sh", "-c", script, text(&dir.join("to/etc/nginx"))])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

mod volume {
    use super::*;

    fn source(volumes: &[&str], exclude: &[&str]) -> VolumeSource {
        let owned = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect();
        let spec = VolumeSpec { volumes: owned(volumes), exclude: owned(exclude) };
        VolumeSource::new(&policy(SourceSpec::Volume(spec.clone())), &spec, &app(Path::new("/nowhere")), [])
    }

    #[test]
    fn volumes_are_read_where_they_lie_and_come_back_whole() {
        let docker = engine::engine();
        let (one, two) = (engine::TestVolume::new(), engine::TestVolume::new());
        let at = |v: &engine::TestVolume| docker.volume(&v.0).unwrap().unwrap().mountpoint;
        tree::nasty(&at(&one));
        set_mode(&at(&one), 0o750);
        std::os::unix::fs::chown(at(&one), Some(999), Some(999)).unwrap();
        write(&at(&two).join("data/file"), "two");
        write(&at(&two).join("data/cache/x"), "left out");
        let (sink, captured) = try_capture(&source(&[&one.0, &two.0], &["cache/"])).unwrap();
        assert_eq!(captured.warnings, Vec::<String>::new());
        let (_guard, dir) = scratch();
        restore(&sink, &dir);
        assert_same(&records(&at(&one)), &records(&dir.join(&one.0)));
        let names: Vec<_> = records(&dir.join(&two.0)).into_keys().collect();
        assert_eq!(names, ["", "data", "data/file"].map(PathBuf::from));
        assert!(listing(&sink).iter().all(|e| e.user.is_none()), "owners of containers are numbers");
        let facts = captured.facts["volumes"].as_array().unwrap();
        assert_eq!(facts.iter().map(|f| f["via"].as_str().unwrap()).collect::<Vec<_>>(), ["direct", "direct"]);
        let error = try_capture(&source(&["no-such-volume"], &[])).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "docker has no volume \"no-such-volume\"");
        assert!(source(&["no-such-volume"], &[]).probe(&Cancel::new()).is_err());
    }
}

mod through_docker {
    use super::*;

    fn source(spec: &FilesSpec) -> FilesSource {
        FilesSource::new(&policy(SourceSpec::Files(spec.clone())), spec, &app(Path::new("/nowhere")), [])
    }

    #[test]
    fn paths_come_as_they_would_directly() {
        engine::engine();
        let (_guard, dir) = scratch();
        let from = dir.join("from");
        tree::nasty(&from);
        // The engine's archive has no attributes, no holes, and no times before 1970 or after 2242.
        for name in ["sparse-9g", "times/1960", "times/1969", "times/2255", "links/far"] {
            fs::remove_file(from.join(name)).unwrap();
        }
        let via = |via| FilesSpec {
            paths: paths(&[&from]),
            exclude: vec!["/blocks/511".into()],
            one_file_system: false,
            via,
        };
        let (direct, _) = try_capture(&source(&via(Via::Direct))).unwrap();
        let (through, captured) = try_capture(&source(&via(Via::Docker))).unwrap();
        assert_eq!(captured.warnings, Vec::<String>::new());
        assert_eq!(names(&direct, &dir), names(&through, &dir), "in the same order too");
        let to = dir.join("to");
        restore(&through, &to);
        let mut expected = records(&from);
        let mut found = records(&to.join(inside(&from)));
        expected.remove(Path::new("blocks/511"));
        for record in expected.values_mut().chain(found.values_mut()) {
            record.mtime.1 = 0;
            record.sparse = false;
            record.xattrs.retain(|name, _| name == b"security.capability");
        }
        assert_same(&expected, &found);
        let missing = FilesSpec { paths: paths(&[&dir.join("missing")]), ..via(Via::Docker) };
        let error = try_capture(&source(&missing)).map(|_| ()).unwrap_err();
        assert!(error.to_string().ends_with("/missing does not exist"), "{error}");
    }

    #[test]
    fn globs_take_what_matches_and_the_folders_on_the_way() {
        engine::engine();
        let (_guard, dir) = scratch();
        for name in ["apps/one/.env", "apps/two/.env", "apps/two/code", "apps/three/x/.env"] {
            write(&dir.join(name), name);
        }
        let spec = FilesSpec {
            paths: paths(&[&dir.join("apps/*/.env")]),
            exclude: vec!["three".into()],
            one_file_system: false,
            via: Via::Docker,
        };
        let (sink, _) = try_capture(&source(&spec)).unwrap();
        assert_eq!(names(&sink, &dir), ["apps", "apps/one", "apps/one/.env", "apps/two", "apps/two/.env"]);
    }
}
