//! What `strace -f -y -xx` has written down, call by call. With `-xx` every text and every path is in hex, so that no
//! name can be taken for a part of the line.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A system call that came back.
#[derive(Debug, Clone)]
pub struct Call {
    pub thread: u32,
    pub name: String,
    pub arguments: Vec<String>,
    /// `None` where it failed, or where the log does not say.
    pub result: Option<i64>,
    /// What a new descriptor leads to.
    pub opened: Option<Target>,
    pub injected: bool,
}

/// What a descriptor leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub fd: i64,
    pub path: PathBuf,
    /// It has no name, or none any more.
    pub nameless: bool,
}

/// A line of the log, as far as it matters.
#[derive(Debug, Clone)]
pub enum Event {
    /// A call began while others went on; [`Event::Done`] follows.
    Begun(Call),
    Done(Call),
}

/// Reads a log.
pub fn read(log: &str) -> Vec<Event> {
    let mut waiting: HashMap<u32, String> = HashMap::new();
    let mut events = Vec::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Ok(thread) = thread.parse() else { continue };
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            events.extend(call(thread, &format!("{begun})")).map(Event::Begun));
            waiting.insert(thread, begun.to_owned());
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((_, end)) = resumed.split_once(" resumed>") else { continue };
            let Some(begun) = waiting.remove(&thread) else { continue };
            events.extend(call(thread, &(begun + end)).map(Event::Done));
        } else {
            events.extend(call(thread, rest).map(Event::Done));
        }
    }
    events
}

fn call(thread: u32, line: &str) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return None;
    }
    let (arguments, end) = split(rest);
    let told = end.trim_start().strip_prefix("= ").unwrap_or_default();
    let digits: String = told.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
    Some(Call {
        thread,
        name: name.to_owned(),
        arguments,
        result: digits.parse().ok().filter(|n: &i64| *n >= 0),
        opened: target(told),
        injected: told.contains("(INJECTED)"),
    })
}

/// The arguments, and what stands behind their bracket.
fn split(text: &str) -> (Vec<String>, &str) {
    let (mut depth, mut quoted, mut begin) = (0, false, 0);
    let mut arguments = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => {
                arguments.push(text[begin..at].trim().to_owned());
                return (arguments, &text[at + 1..]);
            }
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(text[begin..at].trim().to_owned());
                begin = at + 1;
            }
            _ => {}
        }
    }
    (arguments, "")
}

/// `7<\x2f…>` or `7<\x2f…>(deleted)`.
fn target(text: &str) -> Option<Target> {
    let (fd, rest) = text.split_once('<')?;
    let (path, behind) = rest.split_once('>')?;
    let fd = if fd == "AT_FDCWD" { -100 } else { fd.trim().parse().ok()? };
    let path = String::from_utf8_lossy(&bytes(path)).into_owned();
    let plain = path.trim_end_matches(" (deleted)").to_owned();
    let nameless = behind.starts_with("(deleted)") || plain.len() < path.len();
    Some(Target { fd, path: plain.into(), nameless })
}

fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        match after {
            [b'x', high, low, behind @ ..] if *first == b'\\' => {
                let digit = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
                out.push(digit(*high) * 16 + digit(*low));
                rest = behind;
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

impl Call {
    /// The descriptor that an argument is.
    pub fn fd(&self, at: usize) -> Option<Target> {
        target(self.arguments.get(at)?)
    }

    pub fn number(&self, at: usize) -> Option<u64> {
        self.arguments.get(at)?.parse().ok()
    }

    /// The bytes of a text; never cut, or the log is no good.
    pub fn bytes(&self, at: usize) -> Option<Vec<u8>> {
        let text = self.arguments.get(at)?;
        assert!(!text.ends_with("..."), "{} was cut in the log", self.name);
        Some(bytes(text.strip_prefix('"')?.strip_suffix('"')?))
    }

    /// The bytes of a text as far as the log has them.
    pub fn text(&self, at: usize) -> Vec<u8> {
        let text = self.arguments.get(at).map_or("", String::as_str);
        bytes(text.trim_end_matches('.').trim_matches('"'))
    }

    /// All texts within an argument, one after the other: what `writev` was given.
    pub fn gathered(&self, at: usize) -> Option<Vec<u8>> {
        Some(self.arguments.get(at)?.split('"').skip(1).step_by(2).flat_map(bytes).collect())
    }

    /// A path, relative to the descriptor that stands before it.
    pub fn path(&self, at: usize, relative_to: Option<usize>) -> Option<PathBuf> {
        let path = PathBuf::from(String::from_utf8_lossy(&self.bytes(at)?).into_owned());
        let base = relative_to.and_then(|fd| self.fd(fd)).map(|t| t.path).unwrap_or_default();
        let mut out = PathBuf::new();
        for part in base.join(path).components() {
            match part {
                std::path::Component::CurDir => {}
                std::path::Component::ParentDir => drop(out.pop()),
                other => out.push(other),
            }
        }
        Some(out)
    }

    /// Every path that the call names, by descriptor or by name.
    pub fn paths(&self) -> Vec<PathBuf> {
        let named = (0..self.arguments.len()).filter_map(|at| {
            let before = at.checked_sub(1).filter(|fd| self.fd(*fd).is_some());
            if self.arguments[at].starts_with("\"\\x") { self.path(at, before) } else { None }
        });
        let is_data = matches!(self.name.as_str(), "write" | "pwrite64" | "read" | "pread64");
        // A folder that a name is relative to says no more than the path does.
        let leads = |at: usize| {
            let is_one = ["at", "at2", "statx"].iter().any(|end| self.name.ends_with(end));
            is_one && self.arguments.get(at + 1).is_some_and(|a| a.starts_with("\"\\x"))
        };
        let led = (0..self.arguments.len()).filter(|at| !leads(*at)).filter_map(|at| self.fd(at)).map(|t| t.path);
        if is_data { led.collect() } else { led.chain(named).filter(|p| p != Path::new("")).collect() }
    }
}

#[test]
fn lines_are_read_as_they_are_meant() {
    let log = r#"7 openat(AT_FDCWD<\x2f\x74>, "\x61\x2c\x22", O_WRONLY|O_CREAT, 0600) = 3<\x2f\x74\x2f\x61\x2c\x22>
7 fsync(3<\x2f\x74\x2f\x23\x31>(deleted) <unfinished ...>
8 write(4<\x2f\x74\x2f\x62>, "\x00\x29", 2) = -1 ENOSPC (No space left on device) (INJECTED)
7 <... fsync resumed>) = 0
8 linkat(AT_FDCWD<\x2f\x74>, "\x2f\x70", 5<\x2f\x74\x2f\x64>, "\x2e\x2e\x2f\x6e", AT_SYMLINK_FOLLOW) = 0
8 +++ exited with 0 +++"#;
    let events = read(log);
    assert_eq!(events.len(), 5);
    let Event::Done(open) = &events[0] else { panic!() };
    assert_eq!(open.path(1, Some(0)).unwrap(), Path::new("/t/a,\""));
    assert_eq!(open.opened.as_ref().unwrap().path, Path::new("/t/a,\""));
    let (Event::Begun(sync), Event::Done(synced)) = (&events[1], &events[3]) else { panic!() };
    assert!(sync.fd(0).unwrap().nameless && synced.result == Some(0) && synced.fd(0).unwrap().fd == 3);
    let Event::Done(write) = &events[2] else { panic!() };
    assert!(write.injected && write.result.is_none() && write.bytes(1).unwrap() == [0, 0x29]);
    let Event::Done(link) = &events[4] else { panic!() };
    assert_eq!(link.path(3, Some(2)).unwrap(), Path::new("/t/n"));
    assert_eq!(link.paths(), [Path::new("/p"), Path::new("/t/n")]);
}
