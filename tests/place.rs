//! Commands in places: on this host and in real containers.

use lifeboat::base::cancel::Cancel;
use lifeboat::place::{Command, HostPlace, Place, PlaceError};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

#[path = "support/docker.rs"]
mod engine;
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

/// What is ended goes at once, and a busy machine takes its time; none of what is started here would end by itself for half a
/// minute.
const GONE: Duration = Duration::from_secs(5);

fn is_gone(word: &str) -> bool {
    let begin = Instant::now();
    while lives(word) {
        if begin.elapsed() > GONE {
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
        assert!(is_gone(word), "children stay after a time-out");
        let error = run(script.clone().stall(Duration::from_millis(300))).unwrap_err();
        assert!(matches!(error, PlaceError::Stalled { .. }), "{error:?}");
        assert!(is_gone(word), "children stay after a stall");
        let cancel = Cancel::new();
        let raise = cancel.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            raise.raise(2);
        });
        let error = run(script.cancel(&cancel)).unwrap_err();
        assert!(matches!(error, PlaceError::Cancelled(_)), "{error:?}");
        assert!(is_gone(word), "children stay after cancellation");
        thread.join().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
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
        assert!(is_gone(word), "it lives on");
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
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
        let noise = sh("for i in 1 2 3 4 5 6 7 8; do sleep 0.5; echo $i >&2; done").stall(Duration::from_secs(3));
        run(noise).expect("standard error is a sign of life");
    }

    #[test]
    fn output_that_nobody_takes_is_thrown_away_and_too_much_is_an_error() {
        let running = HostPlace::new().start(sh("head -c 3000000 /dev/zero")).unwrap();
        assert_eq!(running.wait().unwrap().code, 0);
        let error = HostPlace::new().output(sh("head -c 3000000 /dev/zero; sleep 33.4"), 1000).unwrap_err();
        assert!(matches!(error, PlaceError::Io { .. }), "{error:?}");
        assert!(is_gone("33.4"));
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

mod container {
    use super::*;
    use crate::engine::{TestContainer, TestVolume, docker, engine, unique};
    use lifeboat::place::helper::{HelperMount, HelperSpec, TreeSource};
    use lifeboat::place::{ContainerPlace, Docker};

    fn setup(options: &[&str]) -> (Docker, TestContainer, ContainerPlace) {
        let docker = engine();
        let container = TestContainer::idle(options);
        let place = ContainerPlace::named(&docker, container.name.clone());
        (docker, container, place)
    }

    fn run(place: &ContainerPlace, command: Command) -> Result<Vec<u8>, PlaceError> {
        place.output(command, 1 << 20)
    }

    #[test]
    fn output_status_environment_user_and_folder() {
        let (_docker, _container, place) = setup(&["-e", "GIVEN=container"]);
        assert_eq!(run(&place, Command::new(["printf", "%s|", "a b", "$(id)", "", "-x"])).unwrap(), b"a b|$(id)||-x|");
        let command = sh("id -u; pwd; echo $GIVEN $PGPASSWORD; id -u >&2").user(Some("postgres".into())).dir("/var");
        let output = run(&place, command.env("PGPASSWORD", "s3 cret".to_owned())).unwrap();
        assert_eq!(String::from_utf8(output).unwrap(), "70\n/var\ncontainer s3 cret\n");
        let error = run(&place, sh("echo out; echo why >&2; exit 3")).unwrap_err();
        assert!(matches!(&error, PlaceError::Failed { code: 3, stderr, .. } if stderr == "why"), "{error:?}");
        assert!(matches!(run(&place, sh("kill -9 $$")).unwrap_err(), PlaceError::Failed { code: 137, .. }));
        let binary = run(&place, sh("printf 'no newline at the end \\000\\001\\377'")).unwrap();
        assert_eq!(binary, b"no newline at the end \0\x01\xff");
        assert_eq!(run(&place, Command::new(["cat"])).unwrap(), b"", "no input is an empty one");
    }

    #[test]
    fn missing_things_are_told_apart() {
        let (docker, container, place) = setup(&[]);
        for tool in ["no-such-tool", "/etc/passwd"] {
            let error = run(&place, Command::new([tool])).unwrap_err();
            assert!(matches!(&error, PlaceError::ToolMissing { tool: t, .. } if t == tool), "{error:?}");
        }
        let error = run(&place, Command::new(["true"]).dir("/no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("enter the folder"), "{error}");
        assert!(run(&place, Command::new(["true"]).user(Some("nobody-here".into()))).is_err());
        assert!(matches!(run(&place, sh("exit 127")), Err(PlaceError::Failed { code: 127, .. })));

        let missing = ContainerPlace::named(&docker, "lifeboat-test-no-such-container");
        assert!(matches!(run(&missing, sh("true")), Err(PlaceError::NoContainer { .. })));
        let odd = ContainerPlace::named(&docker, "x/../y?z");
        assert!(matches!(run(&odd, sh("true")), Err(PlaceError::NoContainer { .. })));
        crate::engine::docker(["pause", &container.id]);
        let error = run(&place, sh("true")).unwrap_err();
        assert!(matches!(&error, PlaceError::NotRunning { state, .. } if state == "paused"), "{error:?}");
        crate::engine::docker(["unpause", &container.id]);
        crate::engine::docker(["kill", &container.id]);
        let error = run(&place, sh("true")).unwrap_err();
        assert!(matches!(&error, PlaceError::NotRunning { state, .. } if state == "exited"), "{error:?}");
    }

    /// An image with one static program and no shell.
    fn shell_less() -> (crate::engine::TestImage, TestContainer) {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("tool.rs");
        let program = r#"
            use std::io::{Read, Write};
            fn main() {
                match std::env::args().nth(1).as_deref() {
                    Some("idle") => loop { std::thread::sleep(std::time::Duration::from_secs(3600)); },
                    Some("cat") => { std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap(); }
                    Some("oci") => { print!("OCI runtime exec failed: as if"); }
                    Some("big") => { let b = [7u8; 4096]; for _ in 0..256 { std::io::stdout().write_all(&b).unwrap(); } }
                    _ => { let mut s = String::new(); let _ = std::io::stdin().read_to_string(&mut s); std::process::exit(4) }
                }
            }"#;
        std::fs::write(&source, program).unwrap();
        let built = std::process::Command::new("rustc")
            .args(["-C", "target-feature=+crt-static", "--target", "x86_64-unknown-linux-gnu", "-o"])
            .arg(dir.path().join("tool"))
            .arg(&source)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let tar = std::process::Command::new("tar")
            .arg("-C")
            .arg(dir.path())
            .args(["-cf"])
            .arg(dir.path().join("i.tar"))
            .arg("tool")
            .status();
        assert!(tar.unwrap().success());
        let name = format!("{}:1", unique("lifeboat-test/bare"));
        docker(["import", dir.path().join("i.tar").to_str().unwrap(), &name]);
        let container = TestContainer::run(&[], &name, &["/tool", "idle"]);
        (crate::engine::TestImage(name), container)
    }

    #[test]
    fn an_image_without_a_shell_works_too() {
        let docker = engine();
        let (_image, container) = shell_less();
        let place = ContainerPlace::named(&docker, container.name.clone());
        for round in 0..2 {
            assert_eq!(
                run(&place, Command::new(["/tool", "oci"])).unwrap(),
                b"OCI runtime exec failed: as if",
                "{round}"
            );
            assert_eq!(run(&place, Command::new(["/tool", "big"])).unwrap().len(), 1 << 20);
            assert!(matches!(run(&place, Command::new(["/tool", "fail"])), Err(PlaceError::Failed { code: 4, .. })));
            let error = run(&place, Command::new(["no-such-tool"])).unwrap_err();
            assert!(matches!(error, PlaceError::ToolMissing { .. }), "{error:?}");
        }
        let mut running = place.start(Command::new(["/no-such-tool"])).unwrap();
        let mut text = Vec::new();
        let read = running.stdout().unwrap().read_to_end(&mut text);
        assert!(
            read.is_err() && text.is_empty(),
            "the engine's text is no output: {:?}",
            String::from_utf8_lossy(&text)
        );
        assert!(matches!(running.wait(), Err(PlaceError::ToolMissing { .. })));

        let begin = Instant::now();
        let error = run(&place, Command::new(["/tool", "idle", "unique-word-71"]).timeout(Duration::from_millis(300)));
        assert!(matches!(error, Err(PlaceError::TimedOut { .. })), "{error:?}");
        assert!(is_gone("unique-word-71"), "it lives on");
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }

    #[test]
    fn standard_input_ends_and_a_command_may_ignore_it() {
        let (_docker, _container, place) = setup(&[]);
        let mut running = place.start(Command::new(["cat"]).stdin()).unwrap();
        let (mut stdin, mut stdout) = (running.stdin().unwrap(), running.stdout().unwrap());
        let sent: Vec<u8> = (0..3u32 << 20).map(|i| (i % 251) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&copy));
        let mut all = Vec::new();
        stdout.read_to_end(&mut all).unwrap();
        writer.join().unwrap().unwrap();
        assert!(all == sent && running.wait().unwrap().code == 0);

        // It ends before it reads: the writer must not stand for ever.
        let begin = Instant::now();
        let mut running = place.start(Command::new(["true"]).stdin()).unwrap();
        let mut stdin = running.stdin().unwrap();
        let error = stdin.write_all(&vec![b'x'; 64 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        assert_eq!(running.wait().unwrap().code, 0);
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        // Input that nobody writes ends at the wait.
        let running = place.start(Command::new(["cat"]).stdin()).unwrap();
        assert_eq!(running.wait().unwrap().code, 0);
    }

    #[test]
    fn limits_end_the_command_and_its_children() {
        for options in [&[][..], &["--cap-drop", "ALL", "--user", "70"], &["--pid", "host"]] {
            let (_docker, _container, place) = setup(options);
            let word = format!("41.{}", std::process::id() + options.len() as u32);
            let script = sh(&format!("sleep {word} & sleep {word}"));
            let begin = Instant::now();
            let error = run(&place, script.clone().timeout(Duration::from_millis(400))).unwrap_err();
            assert!(matches!(error, PlaceError::TimedOut { .. }), "{error:?}");
            assert!(is_gone(&word), "children stay after a time-out {options:?}");
            let error = run(&place, script.clone().stall(Duration::from_millis(400))).unwrap_err();
            assert!(matches!(error, PlaceError::Stalled { .. }), "{error:?}");
            assert!(is_gone(&word), "children stay after a stall {options:?}");
            let cancel = Cancel::new();
            let raise = cancel.clone();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(400));
                raise.raise(2);
            });
            let error = run(&place, script.cancel(&cancel)).unwrap_err();
            assert!(matches!(error, PlaceError::Cancelled(_)), "{error:?}");
            thread.join().unwrap();
            assert!(is_gone(&word), "children stay after cancellation {options:?}");
            assert!(begin.elapsed() < Duration::from_secs(20), "{options:?} {:?}", begin.elapsed());
        }
    }

    #[test]
    fn dropping_ends_even_a_command_that_ignores_sigterm() {
        let (_docker, _container, place) = setup(&[]);
        let word = format!("42.{}", std::process::id());
        let mut running = place.start(sh(&format!("trap '' TERM; echo up; sleep {word}; sleep {word}"))).unwrap();
        let mut stdout = running.stdout().unwrap();
        stdout.read_exact(&mut [0; 3]).unwrap();
        assert!(lives(&word));
        let begin = Instant::now();
        drop(running);
        assert!(is_gone(&word), "it lives on");
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        assert!(stdout.read_to_end(&mut Vec::new()).is_err(), "a kill is no end of output");
        // Dropped at once, before it can have said its id.
        let word = format!("43.{}", std::process::id());
        drop(place.start(Command::new(["sleep".to_owned(), word.clone()])).unwrap());
        assert!(is_gone(&word), "it lives on");
    }

    #[test]
    fn a_slow_reader_costs_no_memory() {
        let (_docker, _container, place) = setup(&[]);
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
            line.trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
        };
        let mut running = place.start(Command::new(["head", "-c", "400M", "/dev/zero"])).unwrap();
        let mut stdout = running.stdout().unwrap();
        let mut buffer = vec![0; 1 << 16];
        stdout.read_exact(&mut buffer).unwrap();
        let before = resident();
        std::thread::sleep(Duration::from_millis(1500));
        let waited = resident().saturating_sub(before);
        assert!(waited < 24 << 20, "{waited} bytes were taken from the engine while nobody read");
        let rest = std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
        assert_eq!(rest + buffer.len() as u64, 400 << 20);
        assert_eq!(running.wait().unwrap().code, 0);
    }

    #[test]
    fn secrets_do_not_stand_in_arguments() {
        let (_docker, container, place) = setup(&[]);
        let secret = format!("canary-{}", std::process::id());
        let command = Command::new(["sleep", "44.44"]).env("REDISCLI_AUTH", secret.clone());
        let running = place.start(command).unwrap();
        assert!(!lives(&secret), "the secret stands in somebody's arguments");
        let inspected = docker(["inspect", &container.id]);
        assert!(!inspected.contains(&secret));
        drop(running);
    }

    #[test]
    fn a_container_that_dies_is_no_success() {
        let (_docker, container, place) = setup(&[]);
        let mut running = place.start(sh("echo up; sleep 45")).unwrap();
        let mut stdout = running.stdout().unwrap();
        stdout.read_exact(&mut [0; 3]).unwrap();
        docker(["kill", &container.id]);
        let _ = stdout.read_to_end(&mut Vec::new());
        match running.wait() {
            Ok(exit) => assert_ne!(exit.code, 0),
            Err(e) => assert!(!matches!(e, PlaceError::ToolMissing { .. }), "{e:?}"),
        }
        docker(["start", &container.id]);
        assert_eq!(run(&place, sh("echo again")).unwrap(), b"again\n", "it is looked up anew");
        docker(["rm", "-f", &container.id]);
        assert!(matches!(run(&place, sh("true")), Err(PlaceError::NoContainer { .. })));
    }

    #[test]
    fn a_later_run_ends_what_a_killed_one_left_running() {
        let (docker, container, _place) = setup(&[]);
        // As a killed Lifeboat leaves it: the wrapper and the mark of a process that lives no more, nobody attached.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap();
        let mark = |pid: u32, start: &str| format!("lifeboat:{}/{}/{pid}/{start}", boot.trim(), namespace.display());
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let own_start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
        let start = |mark: &str, word: &str| {
            let script = "echo lifeboat-pid:$$; exec \"$@\"";
            crate::engine::docker(["exec", "-d", &container.id, "/bin/sh", "-c", script, mark, "sleep", word]);
        };
        let (orphan, alive, foreign) = ("51.515", "52.525", "53.535");
        start(&mark(std::process::id(), "1"), orphan);
        start(&mark(std::process::id(), &own_start), alive);
        start("somebody-else", foreign);
        for word in [orphan, alive, foreign] {
            let begin = Instant::now();
            while !lives(word) && begin.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(lives(word), "{word}");
        }
        run(&ContainerPlace::named(&docker, container.name.clone()), sh("true")).unwrap();
        assert!(is_gone(orphan), "the orphan lives on");
        assert!(lives(alive) && lives(foreign), "only the orphan may be ended");
    }

    #[test]
    fn what_a_killed_process_started_is_ended_by_the_next() {
        let (_docker, container, place) = setup(&[]);
        let word = format!("54.{}", std::process::id());
        let mut killed = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "container::starts_and_waits"])
            .env("LIFEBOAT_TEST_CONTAINER", &container.name)
            .env("LIFEBOAT_TEST_WORD", &word)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while !lives(&word) && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(lives(&word), "it was never started");
        run(&place, sh("true")).unwrap();
        assert!(lives(&word), "what a living process runs is not ended");
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(lives(&word), "the engine ends nothing by itself");
        // Another run: this process has looked into the container already.
        let docker = engine();
        run(&ContainerPlace::named(&docker, container.name.clone()), sh("true")).unwrap();
        assert!(is_gone(&word), "the orphan lives on");
    }

    #[test]
    #[ignore = "run by the test above, and killed"]
    fn starts_and_waits() {
        let variable = |name: &str| std::env::var(name).unwrap();
        let place = ContainerPlace::named(&engine(), variable("LIFEBOAT_TEST_CONTAINER"));
        let running = place.start(Command::new(["sleep".to_owned(), variable("LIFEBOAT_TEST_WORD")])).unwrap();
        running.wait().unwrap();
    }

    /// Runs an ignored test of this file as nobody, with these groups.
    fn as_nobody(test: &str, groups: &str, variables: &[(&str, &str)]) {
        // The folder of the test binary may be root's alone.
        let dir = tempfile::tempdir().unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let copy = dir.path().join("test");
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let output = std::process::Command::new("setpriv")
            .args(["--reuid=nobody", "--regid=nogroup", groups, "--"])
            .arg(&copy)
            .args(["--ignored", "--exact", test, "--nocapture"])
            .envs(variables.iter().copied())
            .current_dir("/")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    fn an_ordinary_user_needs_group_docker_and_nothing_more() {
        let (_docker, container, _place) = setup(&[]);
        let name = [("LIFEBOAT_TEST_CONTAINER", container.name.as_str())];
        as_nobody("container::as_a_stranger", "--clear-groups", &name);
        as_nobody("container::as_a_member", "--groups=docker", &name);
    }

    #[test]
    #[ignore = "run by the test above, without group docker"]
    fn as_a_stranger() {
        let error = Docker::connect(&Cancel::new()).unwrap_err();
        assert!(matches!(error, PlaceError::NoDocker { .. }), "{error:?}");
        let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        let text = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ").to_lowercase();
        assert!(text.contains("permission denied"), "{text}");
        assert!(error.hint().unwrap().contains("group docker"));
    }

    #[test]
    #[ignore = "run by the test above, in group docker"]
    fn as_a_member() {
        let docker = Docker::connect(&Cancel::new()).unwrap();
        let place = ContainerPlace::named(&docker, std::env::var("LIFEBOAT_TEST_CONTAINER").unwrap());
        let word = format!("55.{}", std::process::id());
        let error = run(&place, sh(&format!("id -u; sleep {word}")).timeout(Duration::from_millis(500))).unwrap_err();
        assert!(matches!(error, PlaceError::TimedOut { .. }), "{error:?}");
        assert!(is_gone(&word), "it lives on");
        // Files that are root's alone, through the engine.
        let mut shadow = String::new();
        let tree = docker.read_tree(&TreeSource::Path("/etc/shadow".into())).unwrap();
        let mut archive = tar::Archive::new(tree);
        archive.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut shadow).unwrap();
        assert!(std::fs::read("/etc/shadow").is_err() && shadow.contains("root:"));
    }

    #[test]
    fn trees_are_read_and_written_without_running_anything() {
        let docker = engine();
        let volume = TestVolume::new();
        {
            let filler = TestContainer::idle(&["-v", &format!("{}:/data", volume.0)]);
            let place = ContainerPlace::named(&docker, filler.name.clone());
            let script = "mkdir /data/sub && echo one >/data/sub/a && chown 70:71 /data/sub/a && chmod 640 /data/sub/a && ln -s a /data/sub/l";
            run(&place, sh(script)).unwrap();
        }
        let listing = |source: &TreeSource| {
            let mut archive = tar::Archive::new(docker.read_tree(source).unwrap());
            let mut names: Vec<String> = Vec::new();
            for entry in archive.entries().unwrap() {
                let entry = entry.unwrap();
                let header = entry.header();
                names.push(format!(
                    "{} {:o} {}",
                    entry.path().unwrap().display(),
                    header.mode().unwrap() & 0o777,
                    header.uid().unwrap()
                ));
            }
            names.sort();
            names
        };
        let source = TreeSource::Volume(volume.0.clone());
        let names = listing(&source);
        assert_eq!(names, ["tree/ 755 0", "tree/sub/ 755 0", "tree/sub/a 640 70", "tree/sub/l 777 0"]);

        let second = TestVolume::new();
        let target = TreeSource::Volume(second.0.clone());
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_uid(70);
        header.set_gid(71);
        header.set_mode(0o600);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, "deep/file", &b"hello"[..]).unwrap();
        docker.write_tree(&target, &builder.into_inner().unwrap()[..], &Command::new(["restore"])).unwrap();
        assert_eq!(listing(&target), ["tree/ 755 0", "tree/deep/ 755 0", "tree/deep/file 600 70"]);

        let missing = TreeSource::Volume(unique("lifeboat-test-none"));
        let Err(error) = docker.read_tree(&missing) else { panic!("a volume that is not there was read") };
        assert!(error.to_string().contains("volume lifeboat-test-none"), "{error}");
        assert!(
            docker.volume(&missing.to_string()["volume ".len()..]).unwrap().is_none(),
            "looking must not create it"
        );
        let Err(error) = docker.read_tree(&TreeSource::Path("/no/such/path".into())) else { panic!("read nothing") };
        assert!(error.to_string().contains("/no/such/path"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(listing(&TreeSource::Path(file.path().to_owned())), ["tree 600 0"]);
        assert!(
            !helpers(&docker).iter().any(|c| c.labels["lifeboat.owner"].contains(&own_pid())),
            "helpers stay behind"
        );
    }

    #[test]
    fn a_tree_that_the_engine_cannot_read_whole_is_an_error() {
        let docker = engine();
        let dir = tempfile::tempdir().unwrap();
        let big = std::fs::File::create(dir.path().join("a-big")).unwrap();
        big.set_len(256 << 20).unwrap();
        std::fs::write(dir.path().join("z-later"), "later").unwrap();
        let mut reader = docker.read_tree(&TreeSource::Path(dir.path().to_owned())).unwrap();
        reader.read_exact(&mut vec![0; 1 << 20]).unwrap();
        // The file shrinks while it is read: the engine logs that, leaves out what follows and ends as if all were well.
        big.set_len(1 << 20).unwrap();
        let error = std::io::copy(&mut reader, &mut std::io::sink()).unwrap_err();
        assert!(error.to_string().contains("did not give all of"), "{error}");
    }

    fn own_pid() -> String {
        format!("/{}/", std::process::id())
    }

    fn helpers(docker: &Docker) -> Vec<lifeboat::place::inspect::ContainerSummary> {
        docker.containers(&["lifeboat.role=tree".to_owned()]).unwrap()
    }

    #[test]
    fn the_sweep_removes_orphans_and_nothing_else() {
        let docker = engine();
        let label = |owner: &str, deadline: &str| {
            let (owner, deadline) = (format!("lifeboat.owner={owner}"), format!("lifeboat.deadline={deadline}"));
            let name = unique("lifeboat-test");
            let arguments = [
                "create",
                "--name",
                &name,
                "--label",
                "lifeboat.role=sweep-test",
                "--label",
                &owner,
                "--label",
                &deadline,
            ];
            crate::engine::docker(arguments.into_iter().chain([crate::engine::IMAGE, "true"]));
            name
        };
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap();
        let dead = format!("{}/{}/{}/1", boot.trim(), namespace.display(), std::process::id());
        let orphan = label(&dead, "99999999999");
        let late = label("elsewhere/1/1", "1000");
        let elsewhere = label("elsewhere/1/1", "99999999999");
        let stranger = TestContainer::idle(&[]);
        let spec = HelperSpec {
            role: "sweep-test".into(),
            image: crate::engine::IMAGE.into(),
            command: vec!["sleep".into(), "60".into()],
            env: vec![],
            user: None,
            mounts: Vec::<HelperMount>::new(),
            tmpfs: vec![("/scratch".into(), "size=1m".into())],
            memory_bytes: Some(64 << 20),
            lifetime: Duration::from_secs(600),
        };
        let helper = docker.helper(&spec).unwrap();
        helper.start().unwrap();
        let inside = ContainerPlace::named(&docker, helper.id());
        let devices =
            String::from_utf8(run(&inside, sh("cat /proc/net/dev | wc -l; df /scratch | wc -l")).unwrap()).unwrap();
        assert_eq!(devices, "3\n2\n", "a helper has a loopback device and no other");

        let removed = docker.sweep(chrono::Utc::now()).unwrap();
        assert!(removed.contains(&orphan) && removed.contains(&late), "{removed:?}");
        assert!(!removed.contains(&elsewhere) && !removed.contains(&stranger.name), "{removed:?}");
        let left = docker.containers(&["lifeboat.role=sweep-test".to_owned()]).unwrap();
        assert!(left.iter().any(|c| c.id == helper.id()) && left.iter().any(|c| c.name == elsewhere));
        let id = helper.id().to_owned();
        drop(helper);
        assert!(matches!(docker.inspect(&id), Err(PlaceError::NoContainer { .. })));
        crate::engine::docker(["rm", "-f", &elsewhere]);
    }

    #[test]
    fn inspect_tells_what_a_container_is() {
        let volume = TestVolume::new();
        let mount = format!("{}:/data:ro", volume.0);
        let (docker, container, _place) =
            setup(&["-e", "A=b=c", "-v", &mount, "-p", "127.0.0.1:0:80", "--label", "x=y"]);
        let found = docker.inspect(&container.name).unwrap();
        assert_eq!((found.id.as_str(), found.image.as_str()), (container.id.as_str(), crate::engine::IMAGE));
        assert_eq!(found.env("A").unwrap().expose(), "b=c");
        assert!(!format!("{found:?}").contains("b=c"), "values of variables do not print");
        assert!(found.is_running() && found.pid.is_some() && found.labels["x"] == "y");
        assert_eq!(found.mounts[0].name.as_deref(), Some(volume.0.as_str()));
        assert!(!found.mounts[0].writable);
        assert_eq!(found.ports[0].0, "80/tcp");
        let image = docker.image(&found.image_id).unwrap().unwrap();
        assert!(image.is_own_build() && image.tags.contains(&crate::engine::IMAGE.to_owned()));
        assert!(docker.image("no-such/image:1").unwrap().is_none());
        assert!(docker.network("bridge").unwrap().is_some() && docker.network("no-such-network").unwrap().is_none());
        assert!(!docker.version().unwrap().version.is_empty());
    }
}
