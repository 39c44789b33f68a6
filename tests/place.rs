//! Commands in places: on this host and in real containers.

use lifeboat::base::cancel::Cancel;
use lifeboat::place::{Command, HostPlace, Place, PlaceError};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

#[path = "support/sink.rs"]
mod sink;

fn sh(script: &str) -> Command {
    Command::new(["/bin/sh", "-c", script])
}

/// Whether a process with this word in its arguments lives on this host (zombies do not count).
fn lives(word: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let own = entry.file_name().to_string_lossy() == std::process::id().to_string();
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        !own && String::from_utf8_lossy(&line).replace('\0', " ").contains(word)
    })
}

fn gone_within(word: &str, limit: Duration) -> bool {
    let begin = Instant::now();
    while lives(word) {
        if begin.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

mod host {
    use super::*;

    fn run(command: Command) -> Result<Vec<u8>, PlaceError> {
        HostPlace::new().output(command, 1 << 20)
    }

    #[test]
    fn output_status_and_error_text() {
        assert_eq!(run(sh("printf '%s' \"$1\"").env("X", "y".to_owned())).unwrap(), b"");
        assert_eq!(run(Command::new(["printf", "%s|", "a b", "$(id)", ""])).unwrap(), b"a b|$(id)||");
        let error = run(sh("echo out; echo why >&2; exit 3")).unwrap_err();
        assert!(matches!(&error, PlaceError::Failed { code: 3, stderr, .. } if stderr == "why"), "{error:?}");
        let error = run(sh("kill -9 $$")).unwrap_err();
        assert!(matches!(error, PlaceError::Failed { code: 137, .. }), "{error:?}");
    }

    #[test]
    fn missing_tools_are_told_from_missing_folders() {
        for tool in ["no-such-tool-here", "/no/such/tool", "/etc/passwd"] {
            let error = run(Command::new([tool])).unwrap_err();
            assert!(matches!(&error, PlaceError::ToolMissing { tool: t, .. } if t == tool), "{error:?}");
        }
        let error = run(Command::new(["env", "no-such-tool-here"])).unwrap_err();
        assert!(matches!(error, PlaceError::ToolMissing { .. }), "{error:?}");
        let error = run(Command::new(["true"]).dir("/no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("enter folder /no/such/folder"), "{error}");
        assert!(
            matches!(run(sh("exit 127")), Err(PlaceError::Failed { code: 127, .. })),
            "a script's own status stays"
        );
    }

    #[test]
    fn only_the_last_of_standard_error_is_kept() {
        let place = HostPlace::new();
        let running = place.start(sh("yes 0123456789 | head -c 3000000 >&2; echo last words >&2; exit 1")).unwrap();
        let exit = running.wait().unwrap();
        assert_eq!(exit.code, 1);
        assert!(exit.stderr.ends_with("last words\n") && exit.stderr.len() <= 16 << 10, "{}", exit.stderr.len());
    }

    #[test]
    fn standard_input_ends_and_a_command_may_ignore_it() {
        let place = HostPlace::new();
        let mut running = place.start(Command::new(["cat"]).stdin()).unwrap();
        let mut stdin = running.stdin().unwrap();
        let mut stdout = running.stdout().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 3 << 20]));
        let mut all = Vec::new();
        stdout.read_to_end(&mut all).unwrap();
        writer.join().unwrap().unwrap();
        assert_eq!((all.len(), running.wait().unwrap().code), (3 << 20, 0));

        let mut running = place.start(Command::new(["true"]).stdin()).unwrap();
        let mut stdin = running.stdin().unwrap();
        let error = stdin.write_all(&vec![b'x'; 3 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        assert_eq!(running.wait().unwrap().code, 0);
        // Without `stdin()` there is nothing to read.
        assert_eq!(run(Command::new(["cat"])).unwrap(), b"");
    }

    #[test]
    fn limits_end_the_whole_group() {
        let begin = Instant::now();
        let word = "31.4151";
        let script = sh(&format!("sleep {word} & sleep {word}"));
        let error = run(script.clone().timeout(Duration::from_millis(300))).unwrap_err();
        assert!(matches!(error, PlaceError::TimedOut { .. }), "{error:?}");
        assert!(gone_within(word, Duration::from_millis(500)), "children stay after a time-out");
        let error = run(script.clone().stall(Duration::from_millis(300))).unwrap_err();
        assert!(matches!(error, PlaceError::Stalled { .. }), "{error:?}");
        assert!(gone_within(word, Duration::from_millis(500)), "children stay after a stall");
        let cancel = Cancel::new();
        let raise = cancel.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            raise.raise(2);
        });
        let error = run(script.cancel(&cancel)).unwrap_err();
        assert!(matches!(error, PlaceError::Cancelled(_)), "{error:?}");
        assert!(gone_within(word, Duration::from_millis(500)), "children stay after cancellation");
        thread.join().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }

    #[test]
    fn a_command_that_ignores_sigterm_is_killed() {
        let word = "32.4152";
        let begin = Instant::now();
        let place = HostPlace::new();
        let mut running = place.start(sh(&format!("trap '' TERM; echo up; sleep {word}; sleep {word}"))).unwrap();
        let mut stdout = running.stdout().unwrap();
        let mut up = [0; 3];
        stdout.read_exact(&mut up).unwrap();
        assert!(lives(word));
        drop(running);
        assert!(gone_within(word, Duration::from_millis(500)), "it lives on");
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        let mut rest = Vec::new();
        let error = stdout.read_to_end(&mut rest).unwrap_err();
        assert!(!error.to_string().is_empty(), "a reader must not take the kill for the end of output");
    }

    #[test]
    fn a_slow_reader_is_no_stall_and_a_slow_writer_is() {
        let place = HostPlace::new();
        let command = sh("head -c 300000 /dev/zero").stall(Duration::from_millis(300));
        let mut running = place.start(command).unwrap();
        let mut stdout = running.stdout().unwrap();
        std::thread::sleep(Duration::from_millis(600));
        let mut all = Vec::new();
        stdout.read_to_end(&mut all).unwrap();
        assert_eq!((all.len(), running.wait().unwrap().code), (300_000, 0));
        let noise = sh("for i in 1 2 3 4 5 6 7 8; do sleep 0.1; echo $i >&2; done").stall(Duration::from_millis(400));
        run(noise).expect("standard error is a sign of life");
    }

    #[test]
    fn output_that_nobody_takes_is_thrown_away_and_too_much_is_an_error() {
        let running = HostPlace::new().start(sh("head -c 3000000 /dev/zero")).unwrap();
        assert_eq!(running.wait().unwrap().code, 0);
        let error = HostPlace::new().output(sh("head -c 3000000 /dev/zero; sleep 33.4"), 1000).unwrap_err();
        assert!(matches!(error, PlaceError::Io { .. }), "{error:?}");
        assert!(gone_within("33.4", Duration::from_secs(1)));
    }

    #[test]
    fn environment_is_small_and_no_descriptor_of_ours_passes_on() {
        let environment = String::from_utf8(run(Command::new(["env"]).env("PGPASSWORD", "s3cret".to_owned())).unwrap());
        let environment = environment.unwrap();
        assert!(environment.contains("PGPASSWORD=s3cret"));
        assert!(!environment.contains("CARGO"), "{environment}");
        let _open = std::fs::File::open("/etc/passwd").unwrap();
        let links = String::from_utf8(run(Command::new(["ls", "-l", "/proc/self/fd"])).unwrap()).unwrap();
        assert!(!links.contains("/etc/passwd"), "{links}");
        // What this test's own parent left open without close-on-exec is not ours to close.
        let given = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten().filter_map(|entry| {
            let info = std::fs::read_to_string(entry.path()).ok()?;
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:"))?.trim().to_owned();
            let close_on_exec = i64::from_str_radix(&flags, 8).unwrap() & 0o2_000_000 != 0;
            (!close_on_exec).then(|| entry.file_name().to_string_lossy().into_owned())
        });
        let mut expected: Vec<String> = given.collect();
        // `ls` itself opens the folder, at the lowest number that is free.
        let lowest = (0..).map(|n: u32| n.to_string()).find(|n| !expected.contains(n)).unwrap();
        expected.push(lowest);
        expected.sort();
        let names = String::from_utf8(run(Command::new(["ls", "/proc/self/fd"])).unwrap()).unwrap();
        let mut names: Vec<&str> = names.split_whitespace().collect();
        names.sort_unstable();
        assert_eq!(names, expected);
    }

    #[test]
    fn another_account_brings_its_groups_and_home() {
        assert!(lifeboat::place::account::is_root(), "this test needs root");
        let nobody = Command::new(["sh", "-c", "id -u; echo $HOME $USER"]).user(Some("nobody".into())).dir("/");
        let text = String::from_utf8(run(nobody).unwrap()).unwrap();
        assert!(text.starts_with("65534\n") && text.contains(" nobody"), "{text}");
        let bare = Command::new(["id"]).user(Some("4242:4343".into())).dir("/");
        let text = String::from_utf8(run(bare).unwrap()).unwrap();
        assert_eq!(text.trim(), "uid=4242 gid=4343 groups=4343");
        // Debian's postgres is a member of ssl-cert.
        let grouped = lifeboat::place::account::Account::find("postgres").expect("Debian's postgres package");
        let text = run(Command::new(["id", "-Gn"]).user(Some("postgres".into())).dir("/")).unwrap();
        let text = String::from_utf8(text).unwrap();
        for group in &grouped.groups {
            assert!(text.split_whitespace().any(|g| g == group), "{group} not in {text}");
        }
        let missing = Command::new(["no-such-tool-here"]).user(Some("postgres".into())).dir("/");
        assert!(matches!(run(missing), Err(PlaceError::ToolMissing { .. })));
        let error = run(Command::new(["true"]).user(Some("no-such-account".into()))).unwrap_err();
        assert!(error.to_string().contains("no-such-account"), "{error}");
    }
}
