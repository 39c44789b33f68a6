//! A reader that is slow, behind a pipe that its owner has made non-blocking: every byte comes, and nothing is an error.

use crate::world::{Ran, World};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{fcntl_setpipe_size, pipe};
use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

/// The smallest pipe there is.
const ROOM: usize = 4096;

/// A pipe of one page whose writer never blocks, and what a slow reader gets out of it.
fn slow() -> (Stdio, JoinHandle<Vec<u8>>) {
    let (reading, writing) = pipe().unwrap();
    fcntl_setfl(&writing, OFlags::NONBLOCK).unwrap();
    fcntl_setpipe_size(&writing, ROOM).unwrap();
    let reader = std::thread::spawn(move || {
        let (mut reading, mut read) = (File::from(reading), Vec::new());
        // Long enough for the writer to find the pipe full.
        sleep(Duration::from_millis(500));
        for pieces in 0.. {
            if pieces < 20 {
                sleep(Duration::from_millis(10));
            }
            let before = read.len();
            Read::by_ref(&mut reading).take(ROOM as u64).read_to_end(&mut read).unwrap();
            if read.len() == before {
                break;
            }
        }
        read
    });
    (writing.into(), reader)
}

/// Runs to its end with standard output behind such a pipe.
fn slowly(mut command: Command) -> (Vec<u8>, Ran) {
    let (out, reader) = slow();
    let child = command.stdout(out).stderr(Stdio::piped()).spawn().unwrap();
    // It holds the writer's end.
    drop(command);
    let ran = child.wait_with_output().unwrap().into();
    (reader.join().unwrap(), ran)
}

#[test]
fn a_pipe_that_is_full_is_waited_for() {
    let world = World::ready();
    let large: Vec<u8> = (0..700_001u32).flat_map(u32::to_le_bytes).collect();
    fs::write(world.app().join("uploads/large"), &large).unwrap();
    for n in 0..60 {
        fs::write(world.app().join(format!("uploads/a file with a name of some length {n}")), "x").unwrap();
    }
    let tags: Vec<String> = (0..40).map(|n| format!("tag-{n:03}-{}", "of-some-length-".repeat(4))).collect();
    let mut snapshot = vec!["snapshot"];
    snapshot.extend(tags.iter().flat_map(|tag| ["--tag", tag.trim_end_matches('-')]));
    world.run(&snapshot).exits(0);

    let path = format!("uploads:{}", world.app().canonicalize().unwrap().join("uploads/large").display());
    let (read, ran) = slowly(world.command(&["cat", "latest", &path]));
    assert_eq!(ran.exits(0).err, "");
    assert!(read == large, "{} of {} bytes", read.len(), large.len());

    for args in [
        &["list", "--json"][..],
        &["ls", "latest", "-r"],
        &["ls", "latest", "-r", "--json"],
        &["man"],
        &["--help"],
        &["nonsense", "--json"],
    ] {
        let quick = world.command(args).output().unwrap();
        let (read, ran) = slowly(world.command(args));
        assert_eq!(Some(ran.code), quick.status.code(), "{args:?}: {ran:?}");
        assert_eq!(String::from_utf8(read).unwrap(), String::from_utf8(quick.stdout).unwrap(), "{args:?}");
    }
}

/// Standard error too: a log comes whole, and its last line.
#[test]
fn a_log_is_waited_for() {
    let world = World::with_snapshot();
    let (err, reader) = slow();
    let mut command = world.command(&["verify", "--deep", "-vv"]);
    command.env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(err);
    let child = command.spawn().unwrap();
    drop(command);
    let ran: Ran = child.wait_with_output().unwrap().into();
    let log = String::from_utf8(reader.join().unwrap()).unwrap();
    assert_eq!(ran.code, 0, "{log}");
    let (err, reader) = slow();
    let mut command = world.command(&["show", &"no-such-one-".repeat(1000)]);
    let child = command.stdout(Stdio::piped()).stderr(err).spawn().unwrap();
    drop(command);
    let ran: Ran = child.wait_with_output().unwrap().into();
    let said = String::from_utf8(reader.join().unwrap()).unwrap();
    assert_eq!(ran.code, 2, "{said}");
    assert!(said.starts_with("error:") && said.ends_with('\n') && said.len() > 2 * ROOM, "{}: {said}", said.len());
}
