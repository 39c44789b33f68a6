//! A disk under a power loss: what a run did to a tree, call by call, and what of it would be left at any moment.
//!
//! What is not synced may be lost: the content of a file until the file is synced, a name until its folder is. A rename
//! is there or not, never by halves. `syncfs` makes everything durable.
//!
//! That no call was missed is proven in the end: the disk as the log makes it is the disk as it is.

use crate::calls::{Call, Event};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

type Number = usize;
type Names = BTreeMap<OsString, Number>;
/// What is left of content that is this now, and of which that is safe.
type Left<'a> = &'a dyn Fn(&Rc<Vec<u8>>, Option<&Rc<Vec<u8>>>) -> Rc<Vec<u8>>;

/// What a run is traced for.
pub const CALLS: &str = "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,splice,\
                         ftruncate,truncate,fallocate,lseek,fsync,fdatasync,syncfs,sync_file_range,sync,rename,renameat,\
                         renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,mknodat,fcntl,ioctl";

const SYNCS: &[&str] = &["fsync", "fdatasync", "syncfs"];

#[derive(Debug, Clone)]
enum Body {
    File {
        now: Rc<Vec<u8>>,
        /// What is on the disk; nothing was ever made durable of a new one.
        safe: Option<Rc<Vec<u8>>>,
    },
    Folder {
        now: Names,
        safe: Names,
    },
    Link(PathBuf),
}

#[derive(Debug, Clone)]
struct Node {
    body: Body,
    meta: Option<(u32, SystemTime)>,
}

/// A change of names that is not durable yet.
#[derive(Debug, Clone)]
struct Change {
    number: u64,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Add { folder: Number, name: OsString, node: Number },
    Remove { folder: Number, name: OsString },
    Rename { from: (Number, OsString), to: (Number, OsString), node: Number },
}

impl What {
    fn is_of(&self, number: Number) -> bool {
        match self {
            What::Add { folder, .. } | What::Remove { folder, .. } => *folder == number,
            What::Rename { from, to, .. } => from.0 == number || to.0 == number,
        }
    }
}

/// What a sync that has begun will have made durable.
#[derive(Debug, Clone)]
enum Held {
    File(Number, Rc<Vec<u8>>),
    Folder(Number, u64),
    All(u64, Vec<(Number, Rc<Vec<u8>>)>),
}

#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    pending: Vec<Change>,
    changes: u64,
    opened: HashMap<i64, (Number, u64, bool)>,
    held: HashMap<u32, Held>,
}

/// Which names that are not durable are there after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    All,
    None,
    /// The first so many: how a journal keeps them.
    First(usize),
    /// All but this one.
    AllBut(usize),
    Only(usize),
}

/// What is there of content that is not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// As it was; a new file is empty.
    Lost,
    /// The length, and zeros where it was written.
    Zeros,
    /// Half of what was appended.
    Cut,
    /// Every other block.
    Torn,
    /// Names alone are at stake.
    Whole,
}

/// A tree as it would be found: file content, link targets; folders have neither.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found(BTreeMap<PathBuf, Seen>);

/// One path; several with one number are names of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    piece: Piece,
    meta: Option<(u32, SystemTime)>,
    number: Number,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    File(Rc<Vec<u8>>),
    Folder,
    Link(PathBuf),
}

/// What begins with it is left alone: the trace itself, and what no run changes.
fn is_apart(root: &Path, path: &Path) -> bool {
    let first = path.strip_prefix(root).ok().and_then(|p| p.components().next());
    first.is_some_and(|c| ["config", "saved", "trace", "kept"].iter().any(|apart| c.as_os_str() == *apart))
}

impl Disk {
    /// The tree as it is, all of it durable.
    pub fn of(root: &Path) -> Self {
        let mut disk = Disk {
            root: root.to_owned(),
            nodes: Vec::new(),
            pending: Vec::new(),
            changes: 0,
            opened: HashMap::new(),
            held: HashMap::new(),
        };
        let mut known = HashMap::new();
        disk.take_in(root, &mut known);
        disk
    }

    fn take_in(&mut self, path: &Path, known: &mut HashMap<u64, Number>) -> Number {
        let meta = fs::symlink_metadata(path).unwrap();
        if let Some(number) = known.get(&meta.ino()) {
            return *number;
        }
        let number = self.nodes.len();
        known.insert(meta.ino(), number);
        let stamp = Some((meta.mode() & 0o7777, meta.modified().unwrap()));
        self.nodes.push(Node { body: Body::Link(PathBuf::new()), meta: stamp });
        let body = if meta.is_dir() {
            let mut names = Names::new();
            for entry in fs::read_dir(path).unwrap().map(|e| e.unwrap()) {
                if !is_apart(&self.root, &entry.path()) {
                    names.insert(entry.file_name(), self.take_in(&entry.path(), known));
                }
            }
            Body::Folder { now: names.clone(), safe: names }
        } else if meta.is_symlink() {
            Body::Link(fs::read_link(path).unwrap())
        } else {
            let bytes = Rc::new(fs::read(path).unwrap());
            Body::File { now: bytes.clone(), safe: Some(bytes) }
        };
        self.nodes[number].body = body;
        number
    }

    fn names(&self, number: Number) -> Option<&Names> {
        match &self.nodes[number].body {
            Body::Folder { now, .. } => Some(now),
            _ => None,
        }
    }

    fn names_mut(&mut self, number: Number) -> Option<&mut Names> {
        match &mut self.nodes[number].body {
            Body::Folder { now, .. } => Some(now),
            _ => None,
        }
    }

    fn find(&self, path: &Path) -> Option<Number> {
        let mut at = 0;
        for part in path.strip_prefix(&self.root).ok()?.components() {
            at = *self.names(at)?.get(part.as_os_str())?;
        }
        Some(at)
    }

    /// The folder of a path below the root, and the name in it.
    fn place(&self, path: &Path) -> Option<(Number, OsString)> {
        if is_apart(&self.root, path) {
            return None;
        }
        Some((self.find(path.parent()?)?, path.file_name()?.to_owned()))
    }

    fn change(&mut self, what: What) {
        self.changes += 1;
        match &what {
            What::Add { folder, name, node } => {
                self.names_mut(*folder).unwrap().insert(name.clone(), *node);
            }
            What::Remove { folder, name } => {
                self.names_mut(*folder).unwrap().remove(name);
            }
            What::Rename { from, to, node } => {
                self.names_mut(from.0).unwrap().remove(&from.1);
                self.names_mut(to.0).unwrap().insert(to.1.clone(), *node);
            }
        }
        self.pending.push(Change { number: self.changes, what });
    }

    fn make(&mut self, path: &Path, body: Body) -> Option<Number> {
        let (folder, name) = self.place(path)?;
        let node = self.add_node(body);
        self.change(What::Add { folder, name, node });
        Some(node)
    }

    fn add_node(&mut self, body: Body) -> Number {
        self.nodes.push(Node { body, meta: None });
        self.nodes.len() - 1
    }

    /// What a descriptor leads to.
    fn node(&self, call: &Call, at: usize) -> Option<Number> {
        let target = call.fd(at)?;
        let named = || (!target.nameless).then(|| self.find(&target.path))?;
        let ours = target.path.starts_with(&self.root) && !is_apart(&self.root, &target.path);
        ours.then(|| named().or_else(|| self.opened.get(&target.fd).map(|o| o.0)))?
    }

    fn bytes_mut(&mut self, number: Number) -> Option<&mut Vec<u8>> {
        match &mut self.nodes[number].body {
            Body::File { now, .. } => Some(Rc::make_mut(now)),
            _ => None,
        }
    }

    fn write(&mut self, number: Number, at: u64, bytes: &[u8]) {
        let Some(content) = self.bytes_mut(number) else { return };
        let (at, end) = (at as usize, at as usize + bytes.len());
        if content.len() < end {
            content.resize(end, 0);
        }
        content[at..end].copy_from_slice(bytes);
    }

    fn append(&mut self, call: &Call, bytes: &[u8]) {
        let (Some(number), Some(target)) = (self.node(call, 0), call.fd(0)) else { return };
        let length = self.bytes_mut(number).map_or(0, |b| b.len() as u64);
        let (_, position, appends) = self.opened.get(&target.fd).copied().unwrap_or((number, length, true));
        let at = if appends { length } else { position };
        self.write(number, at, bytes);
        self.opened.insert(target.fd, (number, at + bytes.len() as u64, appends));
    }

    /// Applies a line of the log. Returns whether it begins a sync.
    pub fn apply(&mut self, event: &Event) -> bool {
        match event {
            Event::Begun(call) => {
                let begins = SYNCS.contains(&call.name.as_str());
                if begins && let Some(held) = self.hold(call) {
                    self.held.insert(call.thread, held);
                }
                begins
            }
            Event::Done(call) if SYNCS.contains(&call.name.as_str()) => {
                let waited = self.held.remove(&call.thread);
                let begins = waited.is_none();
                let held = waited.or_else(|| self.hold(call));
                if call.result.is_some()
                    && let Some(held) = held
                {
                    self.release(held);
                }
                begins
            }
            Event::Done(call) => {
                if let Some(result) = call.result {
                    self.done(call, result);
                }
                false
            }
        }
    }

    fn hold(&self, call: &Call) -> Option<Held> {
        let number = self.node(call, 0)?;
        if call.name == "syncfs" {
            let files = self.nodes.iter().enumerate().filter_map(|(number, node)| match &node.body {
                Body::File { now, .. } => Some((number, now.clone())),
                _ => None,
            });
            return Some(Held::All(self.changes, files.collect()));
        }
        Some(match &self.nodes[number].body {
            Body::File { now, .. } => Held::File(number, now.clone()),
            _ => Held::Folder(number, self.changes),
        })
    }

    fn release(&mut self, held: Held) {
        let keep = |disk: &mut Self, number: Number, bytes: Rc<Vec<u8>>| {
            if let Body::File { safe, .. } = &mut disk.nodes[number].body {
                *safe = Some(bytes);
            }
        };
        match held {
            Held::File(number, bytes) => keep(self, number, bytes),
            Held::Folder(number, until) => self.settle(|c| c.number <= until && c.what.is_of(number)),
            Held::All(until, files) => {
                files.into_iter().for_each(|(number, bytes)| keep(self, number, bytes));
                self.settle(|c| c.number <= until);
            }
        }
    }

    /// Makes changes of names durable.
    fn settle(&mut self, which: impl Fn(&Change) -> bool) {
        let (durable, pending) = std::mem::take(&mut self.pending).into_iter().partition::<Vec<_>, _>(|c| which(c));
        self.pending = pending;
        for change in durable {
            put(&mut self.nodes, &change.what);
        }
    }

    fn done(&mut self, call: &Call, result: i64) {
        match call.name.as_str() {
            "open" | "openat" | "openat2" | "creat" => self.opened(call),
            "fcntl" => {
                if call.arguments.get(1).is_some_and(|a| a.starts_with("F_DUPFD"))
                    && let Some(number) = self.node(call, 0)
                {
                    let from = call.fd(0).and_then(|t| self.opened.get(&t.fd).copied()).unwrap_or((number, 0, false));
                    self.opened.insert(result, from);
                }
            }
            "lseek" => {
                if let Some(open) = call.fd(0).and_then(|t| self.opened.get_mut(&t.fd)) {
                    open.1 = result as u64;
                }
            }
            "write" => {
                let bytes = self.node(call, 0).and_then(|_| call.bytes(1));
                bytes.into_iter().for_each(|b| self.append(call, &b[..result as usize]));
            }
            "writev" => {
                let bytes = self.node(call, 0).and_then(|_| call.gathered(1));
                bytes.into_iter().for_each(|b| self.append(call, &b[..result as usize]));
            }
            "pwrite64" => {
                if let Some(number) = self.node(call, 0) {
                    let bytes = call.bytes(1).unwrap();
                    self.write(number, call.number(3).unwrap(), &bytes[..result as usize]);
                }
            }
            "ftruncate" => {
                if let Some(number) = self.node(call, 0) {
                    let length = call.number(1).unwrap() as usize;
                    self.bytes_mut(number).into_iter().for_each(|b| b.resize(length, 0));
                }
            }
            "fallocate" => {
                if let (Some(number), "0") = (self.node(call, 0), call.arguments[1].as_str()) {
                    let end = (call.number(2).unwrap() + call.number(3).unwrap()) as usize;
                    self.bytes_mut(number).into_iter().filter(|b| b.len() < end).for_each(|b| b.resize(end, 0));
                }
            }
            "sync" => {
                let files = self.nodes.clone();
                for (number, node) in files.iter().enumerate() {
                    if let Body::File { now, .. } = &node.body {
                        self.release(Held::File(number, now.clone()));
                    }
                }
                self.settle(|_| true);
            }
            _ => self.named(call),
        }
    }

    fn opened(&mut self, call: &Call) {
        let Some(target) = call.opened.clone() else { return };
        if !target.path.starts_with(&self.root) || is_apart(&self.root, &target.path) {
            return;
        }
        let has = |flag: &str| call.arguments.iter().any(|a| a.contains(flag));
        let empty = || Body::File { now: Rc::default(), safe: None };
        let number = if has("O_TMPFILE") {
            Some(self.add_node(empty()))
        } else {
            match self.find(&target.path) {
                Some(number) => Some(number),
                None if has("O_CREAT") => self.make(&target.path, empty()),
                None => None,
            }
        };
        let Some(number) = number else { return };
        if has("O_TRUNC") {
            self.bytes_mut(number).into_iter().for_each(Vec::clear);
        }
        self.opened.insert(target.fd, (number, 0, has("O_APPEND")));
    }

    /// Calls that make, move and remove names.
    fn named(&mut self, call: &Call) {
        let path = |at: usize, fd: Option<usize>| call.path(at, fd);
        match call.name.as_str() {
            "mkdir" | "mkdirat" => {
                let at = if call.name == "mkdir" { path(0, None) } else { path(1, Some(0)) };
                self.make(&at.unwrap(), Body::Folder { now: Names::new(), safe: Names::new() });
            }
            "symlink" | "symlinkat" => {
                let at = if call.name == "symlink" { path(1, None) } else { path(2, Some(1)) };
                let target = String::from_utf8(call.bytes(0).unwrap()).unwrap();
                self.make(&at.unwrap(), Body::Link(target.into()));
            }
            "unlink" | "rmdir" | "unlinkat" => {
                let at = if call.name == "unlinkat" { path(1, Some(0)) } else { path(0, None) };
                if let Some((folder, name)) = self.place(&at.unwrap()) {
                    self.change(What::Remove { folder, name });
                }
            }
            "link" | "linkat" => {
                let (from, to) = match call.name.as_str() {
                    "link" => (path(0, None), path(1, None)),
                    _ => (path(1, Some(0)), path(3, Some(2))),
                };
                let from = from.unwrap();
                let own = from.to_str().and_then(|f| f.strip_prefix("/proc/self/fd/")?.parse().ok());
                let node = match own {
                    Some(fd) => self.opened.get::<i64>(&fd).map(|o| o.0),
                    None => self.find(&from),
                };
                if let (Some(node), Some((folder, name))) = (node, self.place(&to.unwrap())) {
                    self.change(What::Add { folder, name, node });
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let (from, to) = match call.name.as_str() {
                    "rename" => (path(0, None), path(1, None)),
                    _ => (path(1, Some(0)), path(3, Some(2))),
                };
                let (from, to) = (from.unwrap(), to.unwrap());
                assert!(!call.arguments.iter().any(|a| a.contains("EXCHANGE")), "an exchange of two names");
                if let (Some(node), Some(from), Some(to)) = (self.find(&from), self.place(&from), self.place(&to)) {
                    self.change(What::Rename { from, to, node });
                }
            }
            "lseek" | "fcntl" | "ioctl" => {}
            // What the model does not know it must not pass over.
            other => {
                assert!(!call.paths().iter().any(|p| p.starts_with(&self.root) && !is_apart(&self.root, p)), "{other}")
            }
        }
    }

    /// How many changes of names are not durable.
    pub fn unsettled(&self) -> usize {
        self.pending.len()
    }

    /// Whether content is not durable.
    pub fn has_unsafe_content(&self) -> bool {
        self.nodes.iter().any(|node| match &node.body {
            Body::File { now, safe } => safe.as_ref() != Some(now),
            _ => false,
        })
    }

    /// What would be found after a loss of power.
    pub fn after(&self, kept: Kept, content: Content) -> Found {
        let mut nodes = self.nodes.clone();
        for (at, change) in self.pending.iter().enumerate() {
            let is_kept = match kept {
                Kept::All => true,
                Kept::None => false,
                Kept::First(n) => at < n,
                Kept::AllBut(n) => at != n,
                Kept::Only(n) => at == n,
            };
            if is_kept {
                put(&mut nodes, &change.what);
            }
        }
        let mut found = Found::default();
        gather(
            &nodes,
            0,
            Path::new(""),
            &mut found,
            &|node| match node {
                Body::Folder { safe, .. } => Some(safe.clone()),
                _ => None,
            },
            &|now, safe| left(now, safe, content),
        );
        found
    }

    /// What is there now.
    fn now(&self) -> Found {
        let mut found = Found::default();
        gather(
            &self.nodes,
            0,
            Path::new(""),
            &mut found,
            &|node| match node {
                Body::Folder { now, .. } => Some(now.clone()),
                _ => None,
            },
            &|now, _| now.clone(),
        );
        found
    }

    /// Holds the disk of the log against the one that is there, and learns modes and times from it.
    pub fn is_as_it_is(&mut self) -> HashMap<Number, (u32, SystemTime)> {
        let real = Disk::of(&self.root);
        let (mine, there) = (self.now(), real.now());
        let names = |found: &Found| found.0.keys().cloned().collect::<HashSet<_>>();
        let odd: Vec<_> = names(&mine).symmetric_difference(&names(&there)).cloned().collect();
        assert!(odd.is_empty(), "the log misses a change of names: {odd:?}");
        for (path, Seen { piece, .. }) in &mine.0 {
            // Shared memory of SQLite: mapped, and of no use to the next process.
            let mapped = path.to_string_lossy().ends_with("-shm");
            assert!(mapped || *piece == there.0[path].piece, "the log misses a change of {}", path.display());
        }
        let mut stamps = HashMap::new();
        for path in mine.0.keys() {
            let (ours, theirs) = (self.find(&self.root.join(path)).unwrap(), real.find(&self.root.join(path)).unwrap());
            stamps.extend(real.nodes[theirs].meta.map(|meta| (ours, meta)));
        }
        stamps
    }

    pub fn learn(&mut self, stamps: &HashMap<Number, (u32, SystemTime)>) {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.meta = stamps.get(&number).copied().or(node.meta);
        }
    }
}

fn put(nodes: &mut [Node], what: &What) {
    let change = |nodes: &mut [Node], number: Number, how: &mut dyn FnMut(&mut Names)| {
        if let Body::Folder { safe, .. } = &mut nodes[number].body {
            how(safe);
        }
    };
    match what {
        What::Add { folder, name, node } => change(nodes, *folder, &mut |n| _ = n.insert(name.clone(), *node)),
        What::Remove { folder, name } => change(nodes, *folder, &mut |n| _ = n.remove(name)),
        What::Rename { from, to, node } => {
            change(nodes, from.0, &mut |n| {
                if n.get(&from.1) == Some(node) {
                    n.remove(&from.1);
                }
            });
            change(nodes, to.0, &mut |n| _ = n.insert(to.1.clone(), *node));
        }
    }
}

/// Every path that can be reached.
fn gather(
    nodes: &[Node],
    number: Number,
    path: &Path,
    found: &mut Found,
    names: &dyn Fn(&Body) -> Option<Names>,
    content: Left<'_>,
) {
    let node = &nodes[number];
    let piece = match &node.body {
        Body::File { now, safe } => Piece::File(content(now, safe.as_ref())),
        Body::Link(target) => Piece::Link(target.clone()),
        Body::Folder { .. } => Piece::Folder,
    };
    if path != Path::new("") {
        found.0.insert(path.to_owned(), Seen { piece, meta: node.meta, number });
    }
    for (name, number) in names(&node.body).into_iter().flatten() {
        gather(nodes, number, &path.join(name), found, names, content);
    }
}

/// What is left of content.
fn left(now: &Rc<Vec<u8>>, safe: Option<&Rc<Vec<u8>>>, content: Content) -> Rc<Vec<u8>> {
    const BLOCK: usize = 4096;
    if safe == Some(now) || content == Content::Whole {
        return now.clone();
    }
    let old: &[u8] = safe.map_or(&[], |s| s.as_slice());
    let mut bytes = match content {
        Content::Lost => old.to_vec(),
        Content::Cut => {
            let same = old.len().min(now.len());
            [&old[..same], &now[same..same + (now.len() - same) / 2]].concat()
        }
        _ => now.to_vec(),
    };
    for (at, block) in bytes.chunks_mut(BLOCK).enumerate() {
        let from = at * BLOCK;
        let was = old.get(from..).map(|rest| &rest[..rest.len().min(block.len())]).unwrap_or_default();
        let is_lost = content == Content::Zeros || (content == Content::Torn && at % 2 == 0);
        if is_lost && *block != *was {
            block.fill(0);
            block[..was.len()].copy_from_slice(was);
        }
    }
    Rc::new(bytes)
}

impl Found {
    /// Lays it out in the place of what is there.
    pub fn lay_out(&self, root: &Path) {
        for entry in fs::read_dir(root).unwrap().map(|e| e.unwrap().path()) {
            if !is_apart(root, &entry) {
                fs::remove_dir_all(&entry).or_else(|_| fs::remove_file(&entry)).unwrap();
            }
        }
        let mut first: HashMap<Number, PathBuf> = HashMap::new();
        for (path, Seen { piece, meta, number }) in &self.0 {
            let path = root.join(path);
            let mode = |usual| fs::Permissions::from_mode(meta.map_or(usual, |m| m.0));
            match piece {
                Piece::Folder => {
                    fs::create_dir(&path).unwrap();
                    fs::set_permissions(&path, mode(0o700)).unwrap();
                }
                Piece::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
                Piece::File(_) if first.contains_key(number) => fs::hard_link(&first[number], &path).unwrap(),
                Piece::File(bytes) => {
                    first.insert(*number, path.clone());
                    fs::write(&path, bytes.as_slice()).unwrap();
                    fs::set_permissions(&path, mode(0o600)).unwrap();
                    if let Some((_, time)) = meta {
                        fs::File::options().write(true).open(&path).unwrap().set_modified(*time).unwrap();
                    }
                }
            }
        }
    }

    /// What tells it from others.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (path, Seen { piece, number, .. }) in &self.0 {
            hasher.update(path.to_string_lossy().as_bytes()).update(b"\0").update(&number.to_le_bytes());
            match piece {
                Piece::File(bytes) => hasher.update(b"f").update(blake3::hash(bytes).as_bytes()),
                Piece::Folder => hasher.update(b"d"),
                Piece::Link(target) => hasher.update(target.to_string_lossy().as_bytes()),
            };
        }
        hasher.finalize()
    }
}
