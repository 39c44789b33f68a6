//! The Debian package: what is in it, and a machine before, with and after it.

use crate::docker::{TestContainer, docker, engine, try_docker};
use crate::{DEBIAN, checkout, package, said, tree};
use std::fs;
use std::path::Path;
use std::process::Command;

fn inside(machine: &TestContainer, script: &str) -> (bool, String) {
    let output = try_docker(["exec", &machine.id, "sh", "-c", script]);
    (output.status.success(), said(&output))
}

#[track_caller]
fn ok(machine: &TestContainer, script: &str) -> String {
    let (ok, text) = inside(machine, script);
    assert!(ok, "{script}: {text}");
    text
}

/// What is packed is what stands in the checkout.
fn content(deb: &Path) {
    let dir = tempfile::tempdir().unwrap();
    assert!(Command::new("dpkg-deb").arg("-x").arg(deb).arg(dir.path()).status().unwrap().success());
    let files = tree(dir.path());
    let has = |path: &str, mode: u32| {
        assert!(files.contains(&(path.to_owned(), mode)), "{path} ({mode:o}) is not in {files:#?}");
    };
    has("usr/bin/lifeboat", 0o755);
    has("usr/share/man/man1/lifeboat.1.gz", 0o644);
    has("usr/share/man/man1/lifeboat-policy-check.1.gz", 0o644);
    has("usr/share/bash-completion/completions/lifeboat", 0o644);
    has("usr/share/zsh/vendor-completions/_lifeboat", 0o644);
    has("usr/share/fish/vendor_completions.d/lifeboat.fish", 0o644);
    has("usr/share/doc/lifeboat/copyright", 0o644);
    for (unit, of) in [
        ("system/lifeboat.service", "lifeboat.service"),
        ("system/lifeboat-snapshot@.service", "lifeboat-snapshot@.service"),
        ("system/lifeboat-snapshot@.timer", "lifeboat-snapshot@.timer"),
        ("user/lifeboat.service", "user/lifeboat.service"),
    ] {
        let packed = fs::read(dir.path().join("usr/lib/systemd").join(unit)).unwrap();
        assert_eq!(packed, fs::read(checkout().join("systemd").join(of)).unwrap(), "{unit}");
    }
    has("usr/share/lifeboat/break-glass.sh", 0o755);
    assert!(!files.iter().any(|(path, _)| path.starts_with("etc/") || path.starts_with("var/")), "{files:#?}");
    // The units name a program that is there.
    for unit in ["lifeboat.service", "lifeboat-snapshot@.timer"] {
        let path = dir.path().join("usr/lib/systemd/system").join(unit);
        let done = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--root"])
            .arg(dir.path())
            .arg(path.strip_prefix(dir.path()).map(|p| Path::new("/").join(p)).unwrap())
            .output()
            .unwrap();
        assert!(!said(&done).contains("lifeboat is not executable"), "{}", said(&done));
    }
    let control = Command::new("dpkg-deb").arg("-f").arg(deb).output().unwrap();
    let control = said(&control);
    assert!(control.contains("Package: lifeboat") && control.contains("libc6 (>="), "{control}");
}

/// What Debian's own checker says of it: nothing that has no reason in packaging/lintian-overrides.
fn lintian(deb: &Path) {
    let done =
        Command::new("lintian").args(["--tag-display-limit", "0", "--fail-on", "error,warning"]).arg(deb).output();
    let done = done.expect("lintian, which scripts/test.sh installs");
    assert!(done.status.success(), "{}", said(&done));
    let changelog = fs::read_to_string(checkout().join("packaging/changelog.Debian")).unwrap();
    let version = concat!("lifeboat (", env!("CARGO_PKG_VERSION"), "-1) ");
    assert!(changelog.starts_with(version), "{changelog}");
}

#[test]
fn the_package_comes_and_goes_and_leaves_what_is_yours() {
    engine();
    let deb = package();
    content(&deb);
    lintian(&deb);
    // On a disk that is nearly full nothing would be stored: the repository is in memory.
    let machine = TestContainer::run(&["--hostname", "web-1", "--tmpfs", "/var/backups"], DEBIAN, &["sleep", "600"]);
    docker(["cp", deb.to_str().unwrap(), &format!("{}:/root/lifeboat_0.deb", machine.id)]);
    fs::remove_file(&deb).unwrap();
    // As the recovery kit says it.
    ok(&machine, "cd /root && apt-get install -y ./lifeboat_*.deb");
    assert!(ok(&machine, "lifeboat --version").contains(env!("CARGO_PKG_VERSION")));
    ok(&machine, "dpkg --verify lifeboat");
    assert_eq!(
        ok(&machine, "stat -c '%a %U' /etc/lifeboat /etc/lifeboat/policies /var/lib/lifeboat").trim(),
        "700 root\n700 root\n700 root"
    );
    // Nothing is enabled, nothing runs.
    assert_eq!(
        ok(
            &machine,
            "find /etc/systemd -name '*lifeboat*'; ls /proc | grep -x '[0-9]*' | while read p; do grep -s lifeboat /proc/$p/comm || true; done"
        ),
        ""
    );

    ok(&machine, "mkdir -p /opt/shop/uploads && echo A=b > /opt/shop/.env && chmod 600 /opt/shop/.env");
    let init = ok(&machine, "lifeboat init /opt/shop --repository /var/backups/lifeboat");
    assert!(init.contains("Next: lifeboat snapshot --drill"), "{init}");
    ok(&machine, "lifeboat snapshot --drill");

    // Again over itself, as an upgrade: nothing of it is another's.
    ok(&machine, "dpkg --install /root/lifeboat_0.deb && lifeboat snapshot -q");
    let purged = ok(&machine, "dpkg --purge lifeboat 2>&1");
    assert!(purged.contains("/etc/lifeboat is not empty and stays"), "{purged}");
    assert!(!inside(&machine, "command -v lifeboat").0);
    ok(
        &machine,
        "test -s /etc/lifeboat/identity.txt && test -s /etc/lifeboat/policies/shop.toml && test -e /var/lib/lifeboat/state.db && test -s /var/backups/lifeboat/repository.json",
    );
    ok(&machine, "dpkg --install /root/lifeboat_0.deb && lifeboat list && lifeboat snapshot -q");
    // One that was never used leaves nothing.
    ok(
        &machine,
        "rm -rf /etc/lifeboat/* /var/lib/lifeboat/* && mkdir /etc/lifeboat/policies && dpkg --purge lifeboat && test ! -e /etc/lifeboat && test ! -e /var/lib/lifeboat",
    );
}
