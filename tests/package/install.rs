//! `scripts/install.sh`: into another root, again over itself, away again; as root and as anybody.

use crate::{binary, checkout, said, script, tree};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn install(root: &Path, args: &[&str]) -> Output {
    script("install.sh").args(args).env("DESTDIR", root).output().unwrap()
}

#[track_caller]
fn ok(done: &Output) -> String {
    assert!(done.status.success(), "{}", said(done));
    said(done)
}

#[test]
fn what_comes_goes_again_and_twice_is_once() {
    let root = tempfile::tempdir().unwrap();
    let from = ["--binary", binary().to_str().unwrap()];
    let text = ok(&install(root.path(), &from));
    assert!(text.contains("installed: lifeboat ") && text.contains("Next: lifeboat init"), "{text}");
    let first = tree(root.path());
    for (path, mode) in [
        ("usr/local/bin/lifeboat", 0o755),
        ("usr/local/share/man/man1/lifeboat.1", 0o644),
        ("usr/local/share/man/man1/lifeboat-recovery-kit.1", 0o644),
        ("usr/local/share/bash-completion/completions/lifeboat", 0o644),
        ("usr/local/share/zsh/site-functions/_lifeboat", 0o644),
        ("usr/local/share/fish/vendor_completions.d/lifeboat.fish", 0o644),
        ("usr/local/share/lifeboat/break-glass.sh", 0o755),
        ("usr/local/lib/systemd/system/lifeboat.service", 0o644),
        ("usr/local/lib/systemd/system/lifeboat-snapshot@.timer", 0o644),
        ("usr/local/lib/systemd/user/lifeboat.service", 0o644),
    ] {
        assert!(first.contains(&(path.to_owned(), mode)), "{path} ({mode:o}) is not in {first:#?}");
    }
    let unit = root.path().join("usr/local/lib/systemd/system/lifeboat.service");
    assert!(fs::read_to_string(unit).unwrap().contains("ExecStart=/usr/local/bin/lifeboat serve $LIFEBOAT_SERVE\n"));
    let mode = |dir: &str| fs::metadata(root.path().join(dir)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("etc/lifeboat"), mode("etc/lifeboat/policies"), mode("var/lib/lifeboat")), (0o700, 0o700, 0o700));

    // What is a person's stays; what an older version had and this one has not goes.
    fs::write(root.path().join("etc/lifeboat/identity.txt"), "key\n").unwrap();
    fs::write(root.path().join("usr/local/share/man/man1/lifeboat-old.1"), "old\n").unwrap();
    ok(&install(root.path(), &from));
    let mut again = tree(root.path());
    again.retain(|(path, _)| !path.starts_with("etc/"));
    assert_eq!(again, first);
    ok(&install(root.path(), &["--uninstall"]));
    assert_eq!(tree(root.path()), [("etc/lifeboat/identity.txt".to_owned(), 0o644)]);
    let none = install(root.path(), &["--uninstall"]);
    assert!(!none.status.success() && said(&none).contains("there is no Lifeboat in"), "{}", said(&none));
}

#[test]
fn anybody_installs_at_home() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The checkout and the program where that account can read them.
    let src = home.path().join("src");
    for dir in ["scripts", "systemd"] {
        let to = src.join(dir);
        fs::create_dir_all(&to).unwrap();
        assert!(Command::new("cp").arg("-r").arg(checkout().join(dir)).arg(&src).status().unwrap().success());
    }
    fs::copy(binary(), home.path().join("lifeboat")).unwrap();
    assert!(Command::new("chown").args(["-R", "65534:65534"]).arg(home.path()).status().unwrap().success());
    let run = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(src.join("scripts/install.sh"))
            .args(args);
        command.env_clear().env("HOME", home.path()).env("PATH", "/usr/bin:/bin").current_dir(home.path());
        command.output().unwrap()
    };
    let text = ok(&run(&["--binary", home.path().join("lifeboat").to_str().unwrap()]));
    assert!(text.contains(".local/bin is not in your PATH"), "{text}");
    let unit = fs::read_to_string(home.path().join(".local/share/systemd/user/lifeboat.service")).unwrap();
    assert!(
        unit.contains(&format!("ExecStart={}/.local/bin/lifeboat serve $LIFEBOAT_SERVE\n", home.path().display())),
        "{unit}"
    );
    assert!(!home.path().join(".local/lib/systemd").exists());
    let program = home.path().join(".local/bin/lifeboat");
    assert!(Command::new(&program).arg("--version").status().unwrap().success());
    ok(&run(&["--uninstall"]));
    assert!(!program.exists());
}

#[test]
fn what_is_missing_is_said_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    let one_line = |done: Output, part: &str| {
        let text = said(&done);
        assert!(!done.status.success() && text.contains(part) && text.trim_end().lines().count() == 1, "{text}");
    };
    one_line(install(root.path(), &["--binary", "/nowhere/lifeboat"]), "there is no program /nowhere/lifeboat");
    one_line(install(root.path(), &["--binary", "/bin/false"]), "does not run on this machine");
    one_line(install(root.path(), &["--prefix", "here", "--uninstall"]), "whole path");
    one_line(install(Path::new(""), &["--deb", "/nowhere.deb"]), "cannot read the package");
    assert!(tree(root.path()).is_empty());
    let usage = install(root.path(), &["--bogus"]);
    assert!(usage.status.code() == Some(2) && said(&usage).contains("--uninstall"), "{}", said(&usage));
}
