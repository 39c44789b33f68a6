//! What is printed: help, manual, completions, colours, quiet, JSON for every command, closed pipes, no secrets.

use crate::world::{CANARY, Ran, World, bare, tree};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

/// Every command, and how it is called in a world that has a snapshot.
pub const CALLS: &[(&str, &[&str])] = &[
    ("init", &["init", "blog"]),
    ("policy check", &["policy", "check", "-p", "shop", "--live"]),
    ("policy show", &["policy", "show", "-p", "shop"]),
    ("keys show", &["keys", "show"]),
    ("snapshot", &["snapshot", "-p", "shop", "--tag", "second"]),
    ("list", &["list", "-p", "shop"]),
    ("show", &["show", "latest", "-p", "shop"]),
    ("ls", &["ls", "latest", "uploads", "-r", "-p", "shop"]),
    ("find", &["find", "one.txt", "-p", "shop"]),
    ("diff", &["diff", "first", "latest", "-p", "shop"]),
    ("restore", &["restore", "latest", "--into", "out", "-p", "shop"]),
    ("drill", &["drill", "-p", "shop"]),
    ("status", &["status", "-p", "shop"]),
    ("history", &["history", "-p", "shop"]),
    ("tag", &["tag", "first", "v1.0", "-p", "shop"]),
    ("untag", &["untag", "first", "v1.0", "-p", "shop"]),
    ("hold", &["hold", "first", "-p", "shop"]),
    ("release", &["release", "first", "-p", "shop"]),
    ("verify", &["verify", "--deep", "-p", "shop"]),
    ("copy", &["copy", "--to", "twice", "-p", "shop"]),
    ("repair index", &["repair", "index", "-p", "shop"]),
    ("recovery-kit", &["recovery-kit", "-p", "shop"]),
    ("doctor", &["doctor", "-p", "shop"]),
];

/// A world with a snapshot, a second folder to set up, and something to compare.
pub fn stage() -> World {
    let world = World::with_snapshot();
    fs::create_dir(world.path("blog")).unwrap();
    fs::write(world.app().join("uploads/second.txt"), "second\n").unwrap();
    fs::write(world.app().join("uploads/one.txt"), "changed\n").unwrap();
    world
}

#[test]
fn json_parses_for_every_command_and_names_it() {
    let world = stage();
    let mut seen = BTreeMap::new();
    for (name, args) in CALLS {
        let json = world.json(args);
        assert_eq!(json["command"], *name);
        assert_eq!(json["exit_code"], 0, "{json:#}");
        assert!(json["warnings"].is_array() && json["lifeboat"].is_string(), "{json:#}");
        seen.insert(*name, json);
    }
    let new = World::new().json(&["keys", "new"]);
    assert_eq!(new["command"], "keys new");
    assert_eq!(new["identity_new"], true);
    // Failures are documents as well, also in the middle of a list.
    for args in [
        &["show", "nope", "-p", "shop"][..],
        &["ls", "nope", "-p", "shop"],
        &["ls", "latest", "nope", "-p", "shop"],
        &["diff", "nope", "latest", "-p", "shop"],
        &["cat", "latest", "uploads", "-p", "shop"],
        &["man"],
        &["completions", "bash"],
        &["serve"],
        &["notify", "test", "-p", "shop"],
        &["keys", "new"],
        &["--color", "sometimes", "list"],
    ] {
        let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let ran = world.run(&all).exits(2);
        let json = ran.json();
        assert_eq!(json["error"]["kind"], "usage", "{json:#}");
        assert!(json["error"]["message"].as_str().unwrap().len() > 5 && ran.err.contains("error:"), "{ran:#?}");
    }
}

#[test]
fn help_is_there_for_every_command_and_is_tidy() {
    let world = World::new();
    let mut pages: Vec<Vec<&str>> = vec![vec![]];
    for name in [
        "init",
        "policy",
        "keys",
        "snapshot",
        "list",
        "show",
        "ls",
        "cat",
        "find",
        "diff",
        "restore",
        "rollback",
        "guard",
        "recover",
        "recovery-kit",
        "drill",
        "status",
        "history",
        "serve",
        "notify",
        "tag",
        "untag",
        "hold",
        "release",
        "verify",
        "copy",
        "repair",
        "completions",
        "man",
    ] {
        pages.push(vec![name]);
    }
    pages.extend([
        vec!["policy", "check"],
        vec!["policy", "show"],
        vec!["keys", "new"],
        vec!["keys", "show"],
        vec!["keys", "add-recipient"],
        vec!["keys", "rotate"],
        vec!["repair", "index"],
        vec!["notify", "test"],
    ]);
    for page in pages {
        for flag in ["-h", "--help"] {
            let args: Vec<&str> = page.iter().copied().chain([flag]).collect();
            let ran = world.run(&args).exits(0).shows(&["Usage: lifeboat"]);
            assert!(ran.err.is_empty());
            for line in ran.out.lines() {
                assert!(line.trim_end() == line && line.chars().count() <= 100, "{args:?}: {line:?}");
                assert!(!line.contains('\u{1b}') && !line.contains('`') || line.contains('`'), "{line:?}");
            }
        }
    }
    assert_eq!(world.run(&["--version"]).exits(0).out, concat!("lifeboat ", env!("CARGO_PKG_VERSION"), "\n"));
    // Environment variables are named in help, and what they hold is not.
    let ran: Ran =
        bare(world.dir.path()).args(["ls", "--help"]).env("LIFEBOAT_IDENTITY", CANARY).output().unwrap().into();
    ran.exits(0).shows(&["LIFEBOAT_IDENTITY"]).without(CANARY);
}

impl Ran {
    #[track_caller]
    fn without(self, text: &str) -> Self {
        assert!(!self.out.contains(text) && !self.err.contains(text), "{text:?} is in {self:#?}");
        self
    }
}

#[test]
fn the_manual_and_the_completions_are_what_their_readers_expect() {
    let world = World::new();
    let page = world.run(&["man"]).exits(0).shows(&[".TH lifeboat 1", "EXIT STATUS", "ENVIRONMENT", "LIFEBOAT_POLICY"]);
    // No line of text begins with what man would take for a request.
    for line in page.out.lines().filter(|l| l.starts_with(['.', '\''])) {
        let request = line[1..].split(' ').next().unwrap();
        assert!(["ie", "el", "TH", "SH", "TP", "br", "RE", "RS", "PP", "IP"].contains(&request), "{line:?}");
    }
    world.run(&["man", "snapshot"]).exits(0).shows(&["lifeboat\\-snapshot", "\\-\\-tag"]);
    world.run(&["man", "snapsho"]).exits(2).one_error_with_a_hint().says(&["snapshot"]);
    world.run(&["man", "policy", "check"]).exits(0).shows(&["lifeboat\\-policy\\-check", "\\-\\-live"]);
    world.run(&["man", "policy", "show", "more"]).exits(2).one_error_with_a_hint();
    // Every page that one refers to is there, under the name that man looks for, and man has nothing to say about it.
    world.run(&["man", "--into", "pages"]).exits(0);
    let pages: Vec<String> =
        fs::read_dir(world.path("pages")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(pages.len() > 35 && pages.contains(&"lifeboat-repair-index.1".to_owned()), "{pages:?}");
    for name in &pages {
        let text = fs::read_to_string(world.path("pages").join(name)).unwrap().replace("\\-", "-");
        for word in text.split_whitespace().filter(|w| w.starts_with("lifeboat-") && w.ends_with("(1)")) {
            assert!(pages.contains(&word.replace("(1)", ".1")), "{name} refers to {word}");
        }
    }
    let mut read = Command::new("man");
    read.args(["--warnings=all", "-P", "cat", "-l"]).args(pages.iter().map(|p| world.path("pages").join(p)));
    let read = read.env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8").output().unwrap();
    assert!(read.status.success() && read.stderr.is_empty(), "{}", String::from_utf8_lossy(&read.stderr));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = world.run(&["completions", shell]).exits(0).shows(&["lifeboat", "snapshot"]);
        if shell == "bash" {
            fs::write(world.path("completions"), &script.out).unwrap();
            let checked = Command::new("bash").arg("-n").arg(world.path("completions")).output().unwrap();
            assert!(checked.status.success(), "{checked:?}");
        }
    }
    world.run(&["completions", "csh"]).exits(2);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let world = stage();
    for args in [
        &["list"][..],
        &["ls", "latest", "-r"],
        &["cat", "latest", "uploads"],
        &["diff", "first", "latest"],
        &["list", "--json"],
        &["ls", "latest", "--json"],
        &["--help"],
        &["man"],
        &["completions", "bash"],
    ] {
        let mut child = world.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let status = child.wait().unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "{args:?}: {status} {err}");
        assert!(err.is_empty(), "{args:?}: {err}");
    }
    // A disk that is full behind standard output is an error.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran: Ran = world.command(&["list"]).stdout(full).output().unwrap().into();
    ran.exits(1).says(&["standard output", "No space left"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran: Ran = world.command(&["cat", "latest", "uploads"]).stdout(full).output().unwrap().into();
    ran.exits(1).says(&["standard output", "No space left"]);
}

#[test]
fn colour_only_where_it_is_wanted() {
    let world = World::with_snapshot();
    let coloured = |command: &mut Command| {
        let ran: Ran = command.output().unwrap().into();
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out.contains("\u{1b}[")
    };
    assert!(!coloured(&mut world.command(&["list"])), "not into a pipe");
    assert!(coloured(&mut world.command(&["list", "--color", "always"])));
    assert!(coloured(&mut world.command(&["--color=always", "--help"])));
    assert!(!coloured(&mut world.command(&["list", "--color", "never"])));
    // On a terminal it is the default, and NO_COLOR is heard.
    let binary = env!("CARGO_BIN_EXE_lifeboat");
    let dirs = format!("--config-dir {} --state-dir {}", world.path("config").display(), world.path("state").display());
    let on_terminal = |environment: &[(&str, &str)], command: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", &format!("{binary} {dirs} {command}"), "/dev/null"]);
        script.env_remove("NO_COLOR").env("TERM", "xterm").envs(environment.iter().copied()).stdin(Stdio::null());
        coloured(&mut script)
    };
    assert!(on_terminal(&[], "list"));
    let ran: Ran = world.command(&["snapshot", "--color", "always"]).output().unwrap().into();
    assert!(ran.out.contains("\u{1b}[33mwarning:") && !ran.out.contains("\\u{1b}"), "{}", ran.out);
    assert!(!on_terminal(&[("NO_COLOR", "1")], "list"));
    assert!(!on_terminal(&[("TERM", "dumb")], "list"));
}

#[test]
fn quiet_is_quiet_and_verbose_says_more() {
    let world = stage();
    for args in [
        &["snapshot", "-q"][..],
        &["verify", "-q"],
        &["restore", "latest", "--into", "out", "-q"],
        &["policy", "check", "-q"],
    ] {
        let ran = world.run(args).exits(0);
        assert!(ran.out.is_empty() && ran.err.is_empty(), "{ran:#?}");
    }
    // What was asked for is shown all the same, and errors too.
    world.run(&["list", "-q"]).exits(0).shows(&["first"]);
    world.run(&["show", "nope", "-q"]).exits(2).says(&["error:"]);
    let plain = world.run(&["snapshot"]).exits(0).says(&["uploads: "]);
    let verbose = world.run(&["snapshot", "-v"]).exits(0).says(&["uploads: begins"]);
    assert!(verbose.err.len() > plain.err.len());
    world.run(&["list", "-q", "-v"]).exits(2);
}

/// Secrets of the application and of Lifeboat stand nowhere but where they belong: not in output, logs, state or
/// repository, also at the loudest level and when things fail.
#[test]
fn no_secret_is_ever_printed_or_stored_in_the_clear() {
    let world = stage();
    fs::write(world.app().join("compose.yaml"), "services:\n  api:\n    image: shop/api\n    env_file: .env\n")
        .unwrap();
    world.add_to_policy("[[source]]\nkind = \"env\"\npaths = [\".env\"]\nrequired = [\"NOT_THERE\"]\npattern = { DB_PASSWORD = \"^[0-9]+$\" }\n");
    let mut printed = String::new();
    for args in [
        &["snapshot", "-vv"][..],
        &["snapshot", "--json"],
        &["show", "latest"],
        &["show", "latest", "--json"],
        &["ls", "latest", "-r"],
        &["find", "env"],
        &["diff", "first", "latest"],
        &["diff", "first", "latest", "--json"],
        &["verify", "--deep", "-vv"],
        &["policy", "check", "--live"],
        &["policy", "show"],
        &["keys", "show"],
        &["keys", "show", "--json"],
    ] {
        let ran: Ran = world.command(args).env("RUST_LOG", "trace").output().unwrap().into();
        printed += &format!("{args:?}\n{}\n{}\n", ran.out, ran.err);
    }
    let key = fs::read_to_string(world.path("config/host.key")).unwrap();
    let hex: Vec<&str> = key.split('"').filter(|part| part.len() == 64).collect();
    assert_eq!(hex.len(), 2);
    let identity = fs::read_to_string(world.identity()).unwrap();
    let identity = identity.lines().find(|l| l.starts_with("AGE-SECRET-KEY-1")).unwrap();
    for secret in [CANARY, identity, hex[0], hex[1]] {
        let at = printed.find(secret).map(|at| &printed[at.saturating_sub(300)..at]);
        assert!(at.is_none(), "printed after {at:?}");
    }
    for (path, bytes) in tree(&world.path("state")) {
        for secret in [CANARY, identity, hex[0], hex[1]] {
            assert!(
                !bytes.windows(secret.len()).any(|w| w == secret.as_bytes()),
                "a secret stands in {}",
                path.display()
            );
        }
    }
}
