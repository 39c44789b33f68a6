//! The output of commands, captured.

#[path = "support/docker.rs"]
mod docker;
#[path = "support/sink.rs"]
mod sink;

use lifeboat::place::ContainerPlace;
use lifeboat::policy::model::{CommandSpec, Target};
use lifeboat::sources::command::CommandSource;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::{Captured, Source, SourceError};
use sink::{Bench, MemorySink};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn source(run: &[&str]) -> CommandSource {
    source_with(run, None, Duration::from_secs(30))
}

fn source_with(run: &[&str], output: Option<&str>, timeout: Duration) -> CommandSource {
    let spec = CommandSpec {
        run: run.iter().map(|s| (*s).to_owned()).collect(),
        target: Target::Host,
        restore: None,
        check: None,
        output: output.map(str::to_owned),
    };
    let locate: Locate = Arc::new(|_| Ok(Located::host()));
    CommandSource::new("defs".parse().unwrap(), spec, timeout, locate)
}

fn capture(source: &CommandSource) -> (MemorySink, Result<Captured, SourceError>) {
    let sink = MemorySink::new();
    let bench = Bench::new();
    let result = source.capture(&bench.capture(&sink));
    (sink, result)
}

fn failure(source: &CommandSource) -> String {
    let (sink, result) = capture(source);
    assert!(sink.names().is_empty(), "no artefact: {:?}", sink.names());
    result.expect_err("the capture fails").to_string()
}

#[test]
fn the_output_is_the_stream_byte_for_byte() {
    let (sink, result) = capture(&source(&["printf", "a\\000b\\n%s", "$(id)"]));
    let captured = result.unwrap();
    assert_eq!(sink.bytes("defs.out"), b"a\0b\n$(id)");
    assert_eq!(captured.facts["bytes"], 9);
    assert_eq!(captured.facts["stream"], "defs.out");
    assert!(captured.warnings.is_empty());
    let (sink, result) = capture(&source_with(&["echo", "{}"], Some("rabbitmq.json"), Duration::from_secs(30)));
    result.unwrap();
    assert_eq!(sink.names(), ["rabbitmq.json"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("here"), "found").unwrap();
    let (sink, result) = capture(&source(&["cat", "here"]).in_dir(dir.path()));
    result.unwrap();
    assert_eq!(sink.bytes("defs.out"), b"found");
}

#[test]
fn a_status_that_is_not_0_fails_whatever_was_written() {
    let error = failure(&source(&["sh", "-c", "echo half; echo 'disk on fire' >&2; exit 3"]));
    assert_eq!(error, "sh in this host ended with status 3: disk on fire");
    let error = failure(&source(&["sh", "-c", "echo half; kill -9 $$"]));
    assert_eq!(error, "sh in this host ended with status 137");
}

#[test]
fn empty_output_fails() {
    let error = failure(&source(&["sh", "-c", "echo 'nothing to say' >&2"]));
    assert!(error.contains("ended with status 0 and wrote nothing; it said: nothing to say"), "{error}");
}

#[test]
fn what_it_says_beside_is_a_warning() {
    let (_, result) = capture(&source(&["sh", "-c", "echo x; echo deprecated >&2"]));
    assert_eq!(result.unwrap().warnings, ["sh said: deprecated"]);
}

#[test]
fn names_and_programs_that_cannot_be() {
    assert!(failure(&source(&["no-such-program-here"])).contains("no \"no-such-program-here\""));
    assert!(failure(&source(&[])).contains("the command is empty"));
    let error = failure(&source_with(&["echo"], Some("../x"), Duration::from_secs(5)));
    assert!(error.contains("stream name"), "{error}");
}

#[test]
fn limits_and_cancellation_end_it() {
    let begin = Instant::now();
    let error = failure(&source_with(&["sh", "-c", "echo x; sleep 60"], None, Duration::from_secs(1)));
    assert!(error.contains("took longer than"), "{error}");
    let error = failure(&source(&["sh", "-c", "echo x; sleep 60"]).stall(Duration::from_secs(1)));
    assert!(error.contains("gave no output for"), "{error}");
    let (sink, bench) = (MemorySink::new(), Bench::new());
    let slow = source(&["sh", "-c", "echo x; sleep 60"]);
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| slow.capture(&bench.capture(&sink)));
        std::thread::sleep(Duration::from_millis(300));
        bench.cancel.raise(15);
        thread.join().unwrap()
    });
    assert!(matches!(result, Err(SourceError::Cancelled(_))), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_full_repository_is_not_the_command_s_fault() {
    let mut sink = MemorySink::new();
    sink.fail_after_bytes = Some(1000);
    let bench = Bench::new();
    let result = source(&["sh", "-c", "yes | head -c 1000000"]).capture(&bench.capture(&sink));
    assert!(matches!(result, Err(SourceError::Sink(_))), "{result:?}");
}

#[test]
fn in_a_container_with_its_secrets_kept() {
    let engine = docker::engine();
    let container = docker::TestContainer::idle(&["-e", "APP_TOKEN=canary-in-container", "--network", "none"]);
    let locate: Locate = Arc::new(move |target| {
        let Target::Container(name) = target else { panic!("{target:?}") };
        let place = ContainerPlace::named(&engine, name.clone());
        let env = place.resolve()?.env.into_iter().collect();
        Ok(Located { place: Arc::new(place), env })
    });
    let with = |run: &[&str]| {
        let spec = CommandSpec {
            run: run.iter().map(|s| (*s).to_owned()).collect(),
            target: Target::Container(container.name.clone()),
            restore: None,
            check: None,
            output: None,
        };
        CommandSource::new("defs".parse().unwrap(), spec, Duration::from_secs(30), locate.clone())
    };
    let (sink, result) = capture(&with(&["sh", "-c", "head -c 3000000 /dev/zero; echo \"$HOME\""]));
    result.unwrap();
    assert_eq!(sink.bytes("defs.out").len(), 3_000_006);
    let error = failure(&with(&["sh", "-c", "echo \"login with $APP_TOKEN refused\" >&2; exit 4"]));
    let place = format!("container {}", container.name);
    assert_eq!(error, format!("sh in {place} ended with status 4: login with *** refused"));
    assert!(failure(&with(&["no-such-program"])).contains(&format!("no \"no-such-program\" in {place}")));
}
