//! What a source looks at before it captures anything, and cannot read: the source says so, and nothing is left out.

use crate::site::{SNAPSHOT, Site};
use std::fs;
use std::path::Path;

/// A snapshot during which the n-th of these calls on a file fails with EIO.
fn snapshot_without(site: &Site, file: &Path, calls: &str, n: &str) -> (i32, String) {
    without(site, file, (calls, n), &["snapshot", "--only", "uploads", "--only", "nginx"])
}

fn without(site: &Site, file: &Path, (calls, n): (&str, &str), arguments: &[&str]) -> (i32, String) {
    let log = site.world.path("trace");
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=EIO:when={n}"));
    let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-P", file.to_str().unwrap()];
    let wrapper = [&wrapper[..], &["-e", &trace, "-e", &inject]].concat();
    let done = site.wrapped(&wrapper, arguments);
    assert!(fs::read_to_string(&log).unwrap().contains("(INJECTED)"), "nothing was injected: {}", done.said);
    (done.code, done.said)
}

#[test]
fn an_include_that_cannot_be_read_is_no_include_that_is_not_there() {
    let site = Site::new();
    let app = site.world.app().canonicalize().unwrap();
    fs::create_dir_all(app.join("nginx/sites")).unwrap();
    fs::create_dir_all(app.join("elsewhere")).unwrap();
    fs::write(app.join("nginx/nginx.conf"), "http { include sites/*; }\n").unwrap();
    let shop = app.join("nginx/sites/shop");
    fs::write(&shop, format!("server {{ include {}/*.inc; }}\n", app.join("elsewhere").display())).unwrap();
    fs::write(app.join("elsewhere/headers.inc"), "add_header X-Shop 1;\n").unwrap();
    site.world.add_to_policy("[[source]]\nkind = \"nginx\"\npaths = [\"nginx\"]\n");

    // The first read of a thread is the look for includes; later the file itself is read.
    let (code, said) = snapshot_without(&site, &shop, "read,pread64", "1");
    assert_eq!(code, 3, "{said}");
    assert!(said.contains(&format!("read {}", shop.display())) && said.contains("Input/output error"), "{said}");
    let shown = site.world.json(&["show", "latest"]).to_string();
    assert!(shown.contains("failed") && shown.contains("\"uploads\""), "{shown}");

    // What is too large to be a configuration, or none at all, is no failure.
    let large = "# nothing\n".repeat(200_000);
    fs::write(app.join("nginx/sites/large"), large).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(app.join("nginx/sites/socket")).unwrap();
    let ran = site.world.run(&["snapshot", "--only", "nginx"]).exits(0);
    assert!((ran.out + &ran.err).contains("sites/large: larger than 1048576 bytes, so what it includes"));
    let listed = site.world.run(&["ls", "latest", "nginx", "-r"]).exits(0).out;
    assert!(listed.contains("elsewhere/headers.inc") && listed.contains("sites/large"), "{listed}");
}

#[test]
fn flags_that_cannot_be_read_are_not_taken_for_none() {
    let site = Site::new();
    let app = site.world.app().canonicalize().unwrap();
    fs::create_dir_all(app.join("nginx")).unwrap();
    fs::write(app.join("nginx/nginx.conf"), "http { }\n").unwrap();
    site.world.add_to_policy("[[source]]\nkind = \"nginx\"\npaths = [\"nginx\"]\n");
    let file = app.join("uploads/large");
    let (code, said) = snapshot_without(&site, &file, "statx", "1+");
    assert_eq!(code, 3, "{said}");
    assert!(said.contains(&file.display().to_string()) && said.contains("Input/output error"), "{said}");
}

/// Whether `after_snapshot` has to be run is not guessed: an application stays stopped where it is not.
#[test]
fn a_note_of_a_hook_that_cannot_be_looked_for_is_not_taken_for_none() {
    let site = Site::new();
    site.world.add_to_policy("[hooks]\nbefore_snapshot = \"touch ../before\"\nafter_snapshot = \"touch ../after\"\n");
    let (note, after) = (site.world.path("state/shop.hooks"), site.world.path("after"));
    for n in ["1", "2"] {
        site.put_back();
        let _ = fs::remove_file(&after);
        let (code, said) = without(&site, &note, ("statx", n), SNAPSHOT);
        let is_named = code == 1 && said.contains("shop.hooks: Input/output error");
        assert!(is_named || after.exists(), "look {n}: {code}: {said}");
        assert!(!note.exists(), "look {n}: {said}");
        site.world.run(SNAPSHOT).exits(0);
        assert!(after.exists());
    }
}

/// A file that cannot be looked at is there all the same.
#[test]
fn a_hard_link_whose_file_cannot_be_looked_at_is_not_told_as_one_without_a_file() {
    let site = &Site::new();
    let arguments = ["restore", "first", "--only", "uploads", "--into", "into"];
    let mut refused = 0;
    for calls in ["openat2", "newfstatat"] {
        for n in 1..=site.calls(calls, &arguments) {
            site.put_back();
            let done = site.inject(calls, &format!("error=EIO:when={n}"), &arguments);
            assert!(!done.said.contains("something that was not restored"), "{calls} {n}: {}", done.said);
            let names = done.said.contains("uploads/a/one more: Input/output error");
            refused += usize::from(done.code != 0 && names);
        }
    }
    assert!(refused > 0, "the file of the hard link was never in the way");
}
