//! The units of systemd: they are right, and as closed as what they run allows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

/// A copy of the units in which the program is one that is there, with instances of the templates.
fn staged() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("lifeboat.service", "lifeboat.service"),
        ("lifeboat-snapshot@.service", "lifeboat-snapshot@shop.service"),
        ("lifeboat-snapshot@.timer", "lifeboat-snapshot@shop.timer"),
        ("user/lifeboat.service", "user.service"),
    ] {
        let text = fs::read_to_string(units().join(from)).unwrap();
        assert!(from.ends_with(".timer") || text.contains("ExecStart=/usr/bin/lifeboat "), "{from}");
        let text = text.replace("=/usr/bin/lifeboat ", &format!("={} ", env!("CARGO_BIN_EXE_lifeboat")));
        fs::write(dir.path().join(to), text).unwrap();
    }
    dir
}

fn analyze(dir: &Path, args: &[&str]) -> (bool, String) {
    let done = Command::new("systemd-analyze")
        .current_dir(dir)
        .env("XDG_RUNTIME_DIR", dir)
        .args(args)
        .output()
        .expect("systemd-analyze is missing");
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    (done.status.success(), text)
}

#[test]
fn systemd_finds_nothing_wrong() {
    let dir = staged();
    let all = ["./lifeboat.service", "./lifeboat-snapshot@shop.service", "./lifeboat-snapshot@shop.timer"];
    let (ok, text) = analyze(dir.path(), &[&["verify", "--man=no"][..], &all].concat());
    assert!(ok && text.is_empty(), "{text}");
    let (ok, text) = analyze(dir.path(), &["verify", "--man=no", "--user", "./user.service"]);
    assert!(ok && text.is_empty(), "{text}");
    // It would find something.
    let unit = fs::read_to_string(dir.path().join("lifeboat.service")).unwrap();
    fs::write(dir.path().join("bad.service"), unit.replace("ProtectSystem=full", "ProtectSystm=full")).unwrap();
    let (_, text) = analyze(dir.path(), &["verify", "--man=no", "./bad.service"]);
    assert!(text.contains("ProtectSystm"), "{text}");
}

#[test]
fn the_units_are_closed_where_they_can_be() {
    let dir = staged();
    for unit in ["./lifeboat.service", "./lifeboat-snapshot@shop.service"] {
        let (ok, text) = analyze(dir.path(), &["security", "--offline=true", "--threshold=53", unit]);
        assert!(ok, "{text}");
    }
    // Without what closes it, a service of root is at 9.6.
    fs::write(dir.path().join("open.service"), "[Service]\nExecStart=/bin/true\n").unwrap();
    assert!(!analyze(dir.path(), &["security", "--offline=true", "--threshold=53", "./open.service"]).0);
}

/// Both units that take snapshots are closed the same way.
#[test]
fn service_and_timer_allow_the_same() {
    let closed = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(units().join(name)).unwrap();
        let from = text.find("NoNewPrivileges=").unwrap();
        text[from..]
            .lines()
            .take_while(|l| !l.starts_with('['))
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(closed("lifeboat.service"), closed("lifeboat-snapshot@.service"));
    assert!(closed("lifeboat.service").len() > 15);
}

/// What the units call is there.
#[test]
fn the_arguments_of_the_units_are_understood() {
    for unit in ["lifeboat.service", "lifeboat-snapshot@.service", "user/lifeboat.service"] {
        let text = fs::read_to_string(units().join(unit)).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("ExecStart=/usr/bin/lifeboat ")).unwrap();
        let args = line.replace("%i", "shop").replace("$LIFEBOAT_SERVE", "--listen 127.0.0.1:7800");
        let done = Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(args.split(' ')).arg("--help").output().unwrap();
        assert!(done.status.success(), "{unit}: {done:?}");
    }
}
