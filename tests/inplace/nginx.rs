//! nginx on this host: its configuration and certificates come back, and a broken one never takes over.

use crate::files::{left_over, same, state};
use crate::port::free_port;
use crate::world::World;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

/// A server of its own configuration; ended when dropped.
struct Nginx {
    world: World,
    port: u16,
    tls: u16,
}

impl Nginx {
    fn start() -> Self {
        let nginx = Self { world: World::ready(), port: free_port(), tls: free_port() };
        fs::create_dir_all(nginx.dir().join("conf.d")).unwrap();
        fs::create_dir_all(nginx.world.path("tls/archive")).unwrap();
        fs::create_dir_all(nginx.world.path("tls/live")).unwrap();
        for name in ["privkey", "fullchain"] {
            let (link, file) = (format!("tls/live/{name}.pem"), format!("../archive/{name}1.pem"));
            std::os::unix::fs::symlink(file, nginx.world.path(&link)).unwrap();
        }
        nginx.certificate(60);
        let root = nginx.world.dir.path().display();
        let main = format!(
            "pid {root}/run.pid;\nerror_log {root}/error.log;\nevents {{}}\nhttp {{\n  access_log off;\n  include {root}/nginx/conf.d/*.conf;\n}}\n"
        );
        fs::write(nginx.dir().join("nginx.conf"), main).unwrap();
        nginx.site("good");
        nginx.nginx(&[]);
        nginx.world.add_to_policy(&format!(
            "[[source]]\nkind = \"nginx\"\npaths = [{:?}]\n[[source]]\nkind = \"certificates\"\npaths = [{:?}]\n\
             [[health]]\nhttp = \"http://127.0.0.1:{}/\"\nattempts = 3\ninterval = \"1s\"\n",
            nginx.dir(),
            nginx.world.path("tls"),
            nginx.port,
        ));
        nginx
    }

    fn dir(&self) -> PathBuf {
        self.world.path("nginx")
    }

    fn nginx(&self, more: &[&str]) {
        let done = Command::new("nginx").arg("-c").arg(self.dir().join("nginx.conf")).args(more).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    /// A site that answers with this text.
    fn site(&self, text: &str) {
        let live = self.world.path("tls/live");
        let site = format!(
            "server {{\n  listen 127.0.0.1:{};\n  listen 127.0.0.1:{} ssl;\n  ssl_certificate {2}/fullchain.pem;\n  \
             ssl_certificate_key {2}/privkey.pem;\n  location / {{ return 200 \"{text}\\n\"; }}\n}}\n",
            self.port,
            self.tls,
            live.display(),
        );
        fs::write(self.dir().join("conf.d/site.conf"), site).unwrap();
    }

    /// A certificate for `localhost`, by an authority of this test's own.
    fn certificate(&self, days: u32) {
        let archive = self.world.path("tls/archive");
        let openssl = |arguments: &[&str], files: &[(&str, PathBuf)]| {
            let mut command = Command::new("openssl");
            command.args(arguments);
            files.iter().for_each(|(option, file)| _ = command.arg(option).arg(file));
            let done = command.output().unwrap();
            assert!(done.status.success(), "{done:?}");
        };
        let key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let (authority, its_key) = (self.world.path("authority.pem"), self.world.path("authority.key"));
        if !authority.exists() {
            let own = [&key[..], &["-x509", "-days", "365", "-subj", "/CN=Test"]].concat();
            openssl(&own, &[("-keyout", its_key.clone()), ("-out", authority.clone())]);
        }
        let request = self.world.path("request");
        let asked = [&key[..], &["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]].concat();
        openssl(&asked, &[("-keyout", archive.join("privkey1.pem")), ("-out", request.clone())]);
        let days = days.to_string();
        openssl(
            &["x509", "-req", "-copy_extensions", "copy", "-days", &days],
            &[("-in", request), ("-CA", authority), ("-CAkey", its_key), ("-out", archive.join("fullchain1.pem"))],
        );
    }

    fn answer(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.lines().last().unwrap().to_owned()
    }

    /// A reload takes a moment.
    #[track_caller]
    fn answers(&self, wanted: &str) {
        for _ in 0..200 {
            if self.answer() == wanted {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("it answers {}", self.answer());
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.world.path("run.pid")).unwrap_or_default();
        let _ = Command::new("kill").arg(pid.trim()).status();
    }
}

#[test]
fn configuration_and_certificates_come_back_and_are_loaded() {
    let nginx = Nginx::start();
    nginx.answers("good");
    nginx.world.run(&["snapshot", "--tag", "good"]).exits(0);
    let (good, good_tls) = (state(&nginx.dir()), state(&nginx.world.path("tls")));
    nginx.site("newer");
    nginx.certificate(3);
    fs::remove_file(nginx.world.path("tls/live/privkey.pem")).unwrap();
    fs::copy(nginx.world.path("tls/archive/privkey1.pem"), nginx.world.path("tls/live/privkey.pem")).unwrap();
    nginx.nginx(&["-s", "reload"]);
    nginx.answers("newer");
    let ran = nginx.world.run(&["restore", "good", "--in-place", "--only", "nginx", "--only", "certificates", "--yes"]);
    ran.exits(0).shows(&["test and reload nginx"]);
    nginx.answers("good");
    same(&good, &state(&nginx.dir()));
    same(&good_tls, &state(&nginx.world.path("tls")));
    assert!(nginx.world.path("tls/live/privkey.pem").is_symlink());
    nginx.world.run(&["restore", "--undo", "--yes"]).exits(0);
    nginx.answers("newer");
}

/// Its own configuration stays where it is, and names a file of the application's: what that says now is loaded, if it
/// passes nginx's test.
#[test]
fn a_rollback_tests_and_reloads_what_reads_the_applications_files() {
    let nginx = Nginx::start();
    let routes = nginx.world.app().join("uploads/routes.conf");
    let main = nginx.dir().join("nginx.conf");
    let text = fs::read_to_string(&main).unwrap();
    let include = format!("  include {};\n}}\n", routes.display());
    fs::write(&main, text.strip_suffix("}\n").unwrap().to_owned() + &include).unwrap();
    let route = |to: &str| {
        let text =
            format!("server {{ listen 127.0.0.1:{}; server_name routes.test; return 200 \"{to}\"; }}\n", nginx.port);
        fs::write(&routes, text).unwrap();
        nginx.nginx(&["-t", "-q"]);
    };
    let routed = || {
        let mut stream = TcpStream::connect(("127.0.0.1", nginx.port)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\nHost: routes.test\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.lines().last().unwrap().to_owned()
    };
    let becomes = |wanted: &str| {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while routed() != wanted {
            assert!(std::time::Instant::now() < end, "it answers {}", routed());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    route("then");
    nginx.nginx(&["-s", "reload"]);
    nginx.world.run(&["snapshot", "--tag", "then"]).exits(0);
    route("now");
    nginx.nginx(&["-s", "reload"]);
    becomes("now");
    let own = state(&nginx.dir());
    nginx.world.run(&["rollback", "--to", "then", "--yes"]).exits(0).shows(&["test and reload nginx"]);
    becomes("then");
    same(&own, &state(&nginx.dir()));
    nginx.world.run(&["rollback", "--undo", "--yes"]).exits(0);
    becomes("now");
    // A file of then that nginx does not take: the old one comes back, and nothing else was ever loaded.
    fs::write(&routes, "no-such-thing on;\n").unwrap();
    nginx.world.run(&["snapshot", "--tag", "broken"]).exits(0);
    route("now");
    let failed = nginx.world.run(&["rollback", "--to", "broken", "--yes"]).exits(1);
    failed.says(&["nginx", "no-such-thing", "as it was before"]);
    becomes("now");
}

#[test]
fn a_configuration_that_does_not_test_is_undone() {
    let nginx = Nginx::start();
    fs::write(nginx.dir().join("conf.d/broken.conf"), "server { listen no-such-thing at all; }\n").unwrap();
    nginx.world.run(&["snapshot", "--tag", "broken"]).exits(0);
    fs::remove_file(nginx.dir().join("conf.d/broken.conf")).unwrap();
    nginx.site("mended");
    nginx.nginx(&["-s", "reload"]);
    nginx.answers("mended");
    let before = state(&nginx.dir());
    nginx.world.run(&["restore", "broken", "--in-place", "--yes"]).exits(1).says(&[
        "nginx",
        "no-such-thing",
        "as it was before",
    ]);
    same(&before, &state(&nginx.dir()));
    assert_eq!(left_over(&nginx.world), Vec::<PathBuf>::new());
    nginx.answers("mended");
}

/// The certificate that a server shows, and HTTPS, by this machine's authorities.
#[test]
fn https_and_certificates_are_checked() {
    let nginx = Nginx::start();
    nginx.world.run(&["snapshot", "--tag", "good"]).exits(0);
    let authority = nginx.world.path("authority.pem");
    let checks = |days: u32| {
        format!(
            "[[health]]\nhttp = \"https://localhost:{0}/\"\nattempts = 1\n[[health]]\ncertificate = \"localhost:{0}\"\nmin_days = {days}\nattempts = 1\n",
            nginx.tls
        )
    };
    nginx.world.add_to_policy(&checks(30));
    let restore = |trusted: bool| {
        let mut command = nginx.world.command(&["restore", "good", "--in-place", "--only", "nginx", "--yes", "--json"]);
        if trusted {
            command.env("SSL_CERT_FILE", &authority);
        } else {
            command.env("SSL_CERT_FILE", "/dev/null");
        }
        crate::world::Ran::from(command.output().unwrap())
    };
    let report = restore(true).exits(0).json();
    assert!(report["health"].as_array().unwrap().iter().all(|h| h["ok"] == true), "{:#}", report["health"]);
    let report = restore(false).exits(0).json();
    let bad: Vec<_> = report["health"].as_array().unwrap().iter().filter(|h| h["ok"] == false).collect();
    assert_eq!(bad.len(), 2, "nobody vouches for it: {report:#}");
    nginx.world.add_to_policy(&checks(90));
    let report = restore(true).exits(0).json();
    let bad: Vec<_> = report["health"].as_array().unwrap().iter().filter(|h| h["ok"] == false).collect();
    assert!(bad.len() == 1 && bad[0]["problem"].to_string().contains("90 days must be left"), "{report:#}");
}
