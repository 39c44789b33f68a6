//! What may fail while the command succeeds: few things, each with its reason. Everything else is a false success.

use crate::calls::{Call, Event};
use crate::site::{Done, Site};
use std::path::Path;

/// Why it does not matter that this call failed; `None`: it matters.
pub fn excuse(site: &Site, done: &Done, call: &Call) -> Option<&'static str> {
    let root = site.world.dir.path();
    let paths = call.paths();
    let told = call.fd(0);
    let is = |name: &str| call.name == name;
    let ends = |end: &str| paths.iter().any(|p| p.to_string_lossy().ends_with(end));
    if is("close") && ends("-shm") {
        return Some("SQLite's shared memory: it holds nothing that outlives its users");
    }
    let below = |folder: &str| paths.iter().all(|p| p.starts_with(root.join(folder)));
    if below("state/cache") {
        return Some("a cache: what it does not have is read from the repository");
    }
    if is("close") && told.as_ref().is_none_or(|t| t.path.starts_with("/")) {
        return is_settled(done, call).then_some("close: a sync has told, or will tell, what a close could");
    }
    if let Some(target) = told.as_ref().filter(|t| !t.path.starts_with("/")) {
        // Standard output is where the answer goes: whoever does not get it is told by the exit code.
        return (target.fd != 1)
            .then_some("no file: a wake-up between threads, or standard error, to which nothing can be said");
    }
    if !paths.iter().any(|p| p.starts_with(root)) {
        return Some("what the machine says of itself: processors, time zone, accounts; a guess takes its place");
    }
    if below("tmp") && !is("write") {
        return Some("a temporary file without a name, or one that its next user takes away");
    }
    let of_a_database = ["-wal", "-shm", ".db"].iter().any(|end| ends(end));
    if of_a_database && (ends("-shm") || is("unlink") || is("ftruncate")) {
        return Some("SQLite tidies up its log: what stays is taken up by the next run");
    }
    let moves = ends(".db") && (is("pwrite64") || is("fsync") || is("fdatasync"));
    if moves || (ends("-wal") && (is("pread64") || is("fsync") || is("fdatasync"))) {
        return Some(
            "SQLite moves its log into the database: what cannot be moved stays in the log, see the losses of power",
        );
    }
    let reads = is("read") || is("pread64") || is("getdents64");
    // Of a look at something, and not of a change.
    let looks = reads || is("openat") || is("statx");
    if looks && !reads && below("state") && ends(".db-wal") {
        return Some("how a log is left behind: at worst it stays, and the next run takes it up");
    }
    if is("statx") && ends(".hooks") {
        return Some("the note of a hook: in doubt after_snapshot is run");
    }
    if ends("history.db") || ends("history.db-wal") {
        return (done.said.contains("not remembered") || is_mute(done))
            .then_some("the run is done, and a warning says that the history does not know");
    }
    if below("state/repository/refs") && done.said.contains("removed") && paths.iter().all(|p| !p.exists()) {
        return Some(
            "refs of a snapshot that is removed: with a record first, see nothing_of_a_removed_snapshot_goes_before_it_is_on_record",
        );
    }
    if reads && below("state/repository/refs") && done.said.contains("are left out") {
        return Some("what earlier snapshots have stored: what is not known is stored again, and a warning says so");
    }
    if reads && ["snapshots", "records"].iter().any(|folder| below(&format!("state/repository/{folder}"))) {
        return Some(
            "headers and records: where one seems to be gone all are read once more, and the second look counts",
        );
    }
    let tells_so = |p: &&std::path::PathBuf| done.said.contains(&format!("read {}: ", p.display()));
    if reads && (ends(".laid") || ends(".dressed")) && paths.iter().any(|p| tells_so(&p)) {
        return Some("how a tree differs from what was stored: a warning says that it cannot be told");
    }
    // What came back is held against what was stored, whole, wherever a restore says that it is done.
    // The last block of a large file goes past the page cache with zeros behind it, or alone where there is no room for these.
    let gives = ["fchown", "fchownat", "fchmod", "utimensat", "pwrite64"].iter().any(|name| is(name));
    if done.said.contains(" restored into ") && (looks || (gives && below("into"))) {
        return Some("what a restore looks at, or gives again: all came back as it was");
    }
    if is("fchown") && of_a_database {
        return Some("SQLite's log gets the database's owner, whose it is already");
    }
    if below("tmp") && paths.iter().all(|p| p.to_string_lossy().contains("/cache/")) {
        return Some("a cache: what it does not have is read from the repository");
    }
    if looks && below("config/policies") {
        return Some(
            "the policy, as the history reads it before the command does: at worst a run is not in the history, and missed",
        );
    }
    if is("statx") && below("into") && paths.iter().all(|p| *p == site.into()) {
        return Some("whether a folder is there: making it says so as well");
    }
    // What is being restored, by the name that it is told by.
    let told_of = |p: &Path| {
        let inside = p.strip_prefix(root.join("into/.uploads.partial")).ok();
        inside.is_some_and(|inside| done.said.contains(&format!("{}: ", inside.display())))
    };
    if !reads && done.said.contains("differs: ") && paths.iter().any(|p| told_of(p)) {
        return Some("a mode, an owner, a time or an attribute of what is restored: the report names it");
    }
    let is_folder = |p: &Path| p.is_dir();
    let of_reserve = paths.iter().any(|p| p.to_string_lossy().contains("state/.reserve."));
    if of_reserve || (is("statx") && ends("/reserve")) {
        return Some("room that is kept for a full disk: what is not seen, or was not kept, is kept anew");
    }
    if paths.iter().any(|p| p.to_string_lossy().contains(".prune-clock.json"))
        && done.said.contains("clock's reading is ")
    {
        return Some("what the clock showed at the last prune: a warning says that it is not remembered");
    }
    if looks && paths.iter().any(|p| p.to_string_lossy().contains("state/probe-")) {
        return Some("what a server of objects was found to be: nothing is assumed of one, and a folder is none");
    }
    if (is("fsync") || is("openat")) && below("state") && paths.iter().all(|p| is_folder(p)) {
        if is("fsync") && follows(done, call, "state/reserve") {
            return Some("room that is kept for a full disk: it is there, and after a loss of power it is kept anew");
        }
        return follows(done, call, ".db").then_some(
            "SQLite's own sync of its folder: at worst a transaction of the log is forgotten, see the losses of power",
        );
    }
    if is("getdents64") && below("state") && !below("state/repository") {
        return Some("names that a killed run has left are looked for: the next write looks again");
    }
    let is_temporary = |p: &Path| p.extension().is_some_and(|e| e == "tmp") || p.to_string_lossy().contains(".partial");
    if (is("unlink") || is("unlinkat")) && paths.iter().any(|p| is_temporary(p)) {
        return Some("a temporary name: the next write of its kind takes it away");
    }
    None
}

/// Whether the same fault has hit standard error: then no warning is to be seen.
fn is_mute(done: &Done) -> bool {
    done.injected().any(|call| call.name == "write" && call.fd(0).is_some_and(|to| to.fd == 2))
}

fn calls(done: &Done) -> Vec<&Call> {
    done.events.iter().filter_map(|e| if let Event::Done(call) = e { Some(call) } else { None }).collect()
}

/// Whether all that was written by a descriptor was synced, by the file or by its file system.
fn is_settled(done: &Done, close: &Call) -> bool {
    let Some(closed) = close.fd(0) else { return false };
    let calls = calls(done);
    let of = |call: &Call| call.fd(0).is_some_and(|t| t.path == closed.path);
    let Some(last) = calls.iter().rposition(|c| matches!(c.name.as_str(), "write" | "pwrite64") && of(c)) else {
        return true;
    };
    calls[last..].iter().any(|c| c.result == Some(0) && (c.name == "syncfs" || (c.name.starts_with('f') && of(c))))
}

/// Whether the call before, of the same thread, was one of a file of such a name.
fn follows(done: &Done, call: &Call, name: &str) -> bool {
    let calls = calls(done);
    let Some(at) = calls.iter().position(|c| c.injected && c.thread == call.thread && c.name == call.name) else {
        return false;
    };
    let before = calls[..at].iter().rev().find(|c| c.thread == call.thread);
    before.is_some_and(|c| c.paths().iter().any(|p| p.to_string_lossy().contains(name)))
}
