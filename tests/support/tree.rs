//! Trees for tests: one that has everything a file system can hold, and a comparison that misses nothing of it.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use rustix::fs::{AtFlags, CWD, Mode, SeekFrom, Timespec, Timestamps, UTIME_OMIT};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that a restore must bring back of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub kind: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub size: u64,
    pub content: String,
    pub target: Option<PathBuf>,
    /// The first path, in order, of the same file.
    pub same_as: Option<PathBuf>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: bool,
}

/// All paths below a folder, and the folder itself under the empty path.
pub fn records(root: &Path) -> BTreeMap<PathBuf, Record> {
    let mut found = BTreeMap::new();
    let mut first = BTreeMap::new();
    visit(root, root, &mut found, &mut first);
    found
}

fn visit(root: &Path, path: &Path, found: &mut BTreeMap<PathBuf, Record>, first: &mut BTreeMap<(u64, u64), PathBuf>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let relative = path.strip_prefix(root).unwrap().to_path_buf();
    let kind = meta.file_type();
    let is_file = kind.is_file();
    let same_as = (is_file && meta.nlink() > 1)
        .then(|| first.entry((meta.dev(), meta.ino())).or_insert_with(|| relative.clone()).clone());
    let record = Record {
        kind: format!("{kind:?}"),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        size: if is_file { meta.len() } else { 0 },
        content: if is_file { content(path) } else { String::new() },
        target: kind.is_symlink().then(|| fs::read_link(path).unwrap()),
        same_as,
        xattrs: xattrs(path),
        sparse: is_file && meta.len() >= 65_536 && meta.blocks() * 512 < meta.len(),
    };
    found.insert(relative, record);
    if kind.is_dir() {
        let mut names: Vec<OsString> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            visit(root, &path.join(name), found, first);
        }
    }
}

/// A hash of the content that takes no time for holes: of all blocks that are not zero, with their places.
fn content(path: &Path) -> String {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut hash = blake3::Hasher::new();
    let mut at = 0;
    while at < size {
        let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) else { break };
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        let mut block = data / 4096;
        while block * 4096 < hole {
            let mut bytes = vec![0; 4096.min(size - block * 4096) as usize];
            file.read_exact_at(&mut bytes, block * 4096).unwrap();
            if bytes.iter().any(|b| *b != 0) {
                hash.update(&block.to_le_bytes()).update(&bytes);
            }
            block += 1;
        }
        at = hole;
    }
    hash.finalize().to_hex().to_string()
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found = BTreeMap::new();
    for name in names[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 65_536];
        let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        found.insert(name.to_vec(), value[..n].to_vec());
    }
    found
}

/// What differs, path by path.
pub fn differences(expected: &BTreeMap<PathBuf, Record>, found: &BTreeMap<PathBuf, Record>) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, record) in expected {
        match found.get(path) {
            None => problems.push(format!("{path:?} is missing")),
            Some(other) if other != record => problems.push(format!("{path:?}\n  was {record:?}\n  is  {other:?}")),
            _ => {}
        }
    }
    for path in found.keys().filter(|p| !expected.contains_key(*p)) {
        problems.push(format!("{path:?} is new"));
    }
    problems
}

/// Says what differs; panics when anything does.
pub fn assert_same(expected: &BTreeMap<PathBuf, Record>, found: &BTreeMap<PathBuf, Record>) {
    let problems = differences(expected, found);
    assert!(problems.is_empty(), "{} differences:\n{}", problems.len(), problems.join("\n"));
}

pub fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn run(argv: &[&str]) -> String {
    let out = Command::new(argv[0]).args(&argv[1..]).output().unwrap_or_else(|e| panic!("{argv:?}: {e}"));
    assert!(out.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everything that a file system can hold and a careless tool loses. Needs root.
pub fn nasty(root: &Path) {
    let file = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    file("plain.txt", b"plain\n");
    file("empty", b"");
    file("blocks/511", &[1; 511]);
    file("blocks/512", &[2; 512]);
    file("blocks/513", &[3; 513]);
    file("large.bin", &(0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>());
    file(&format!("long/{}/end", vec!["d".repeat(60); 5].join("/")), b"long path\n");
    file(&"n".repeat(255), b"long name\n");
    file(&format!("hundred/{}", "h".repeat(100 - 8)), b"name of exactly a hundred\n");
    file("new\nline\tand space", b"odd\n");
    file("žluť/naïve ☃", b"utf-8\n");
    file("-dash", b"-\n");
    file("back\\slash", b"\\\n");
    let binary = root.join(OsString::from_vec(b"not-utf8-\xff\xfe".to_vec()));
    fs::create_dir(&binary).unwrap();
    fs::write(binary.join(OsString::from_vec(b"\xe9t\xe9".to_vec())), b"latin\n").unwrap();
    std::os::unix::fs::symlink(OsString::from_vec(b"target-\xff".to_vec()), root.join("link-not-utf8")).unwrap();

    file("sorted/a/1", b"1");
    file("sorted/a.txt", b"2");
    file("sorted/a-b", b"3");

    let original = file("links/original", b"many names\n");
    fs::hard_link(&original, root.join("links/zweiter")).unwrap();
    fs::create_dir(root.join("links/deeper")).unwrap();
    fs::hard_link(&original, root.join("links/deeper/third")).unwrap();
    std::os::unix::fs::symlink("original", root.join("links/soft")).unwrap();
    std::os::unix::fs::symlink("loop-b", root.join("links/loop-a")).unwrap();
    std::os::unix::fs::symlink("loop-a", root.join("links/loop-b")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("links/absolute")).unwrap();
    std::os::unix::fs::symlink("../../../../outside", root.join("links/upwards")).unwrap();
    std::os::unix::fs::symlink("x".repeat(400), root.join("links/far")).unwrap();
    std::os::unix::fs::symlink(".", root.join("links/self")).unwrap();

    fs::create_dir(root.join("empty-dir")).unwrap();
    let sparse = File::create(root.join("sparse-9g")).unwrap();
    sparse.set_len(9 << 30).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(&[7; 70_000], 5 << 30).unwrap();
    let holes = File::create(root.join("sparse-only-hole")).unwrap();
    holes.set_len(1 << 20).unwrap();
    let small = File::create(root.join("sparse-small")).unwrap();
    small.set_len(300_000).unwrap();
    small.write_all_at(b"end", 299_997).unwrap();
    drop((sparse, holes, small));

    let with = file("xattrs", b"attributes\n");
    run(&["setfattr", "-n", "user.plain", "-v", "value", text(&with)]);
    run(&["setfattr", "-n", "user.binary", "-v", "0x00ff0a3d00", text(&with)]);
    run(&["setfattr", "-n", "user.odd=na%me", "-v", "1", text(&with)]);
    run(&["setfattr", "-n", "user.empty", text(&with)]);
    run(&["setfattr", "-n", "user.long", "-v", &"v".repeat(2000), text(&with)]);
    run(&["setfattr", "-n", "trusted.note", "-v", "t", text(&with)]);
    run(&["setfattr", "-h", "-n", "trusted.link", "-v", "l", text(&root.join("links/soft"))]);
    run(&["setfattr", "-n", "user.dir", "-v", "d", text(&root.join("empty-dir"))]);
    let acl = file("acl/file", b"acl\n");
    run(&["setfacl", "-m", "u:12345:rw,u:23456:r,g:34567:rx,m::rwx", text(&acl)]);
    run(&["setfacl", "-d", "-m", "u:12345:rwx,g:34567:r", text(&root.join("acl"))]);
    let caps = file("caps", b"#!/bin/sh\n");
    set_mode(&caps, 0o755);
    run(&["setcap", "cap_net_bind_service=+ep", text(&caps)]);

    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("none", 0), ("all", 0o777), ("sticky", 0o1644)] {
        let path = file(&format!("modes/{name}"), b"m\n");
        std::os::unix::fs::chown(&path, Some(1000), Some(27)).unwrap();
        set_mode(&path, mode);
    }
    set_mode(&root.join("modes"), 0o2770);
    let big = file("owned-by-big-ids", b"o\n");
    std::os::unix::fs::chown(&big, Some(3_000_000_000), Some(2_500_000)).unwrap();
    std::os::unix::fs::lchown(root.join("links/absolute"), Some(1234), Some(4321)).unwrap();

    set_mtime(&file("times/1960", b"t"), -300_000_000, 250_000_000);
    set_mtime(&file("times/1969", b"t"), -1, 0);
    set_mtime(&file("times/2255", b"t"), 8_999_999_999, 999_999_999);
    set_mtime(&file("times/ns", b"t"), 1_700_000_000, 123_456_789);
    set_mtime(&file("times/zero", b"t"), 0, 0);
    set_mtime(&root.join("links/soft"), 1_600_000_000, 5);
    let locked = file("read-only-dir/inside", b"r");
    set_mtime(&locked, 1_500_000_000, 0);
    set_mode(&root.join("read-only-dir"), 0o555);
    for dir in ["times", "empty-dir", "links/deeper", "read-only-dir", "links", "long"] {
        set_mtime(&root.join(dir), 1_400_000_000, 77);
    }
}

/// What is skipped with a note: a socket, a FIFO and a device.
pub fn special(root: &Path) {
    fs::create_dir_all(root).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, root.join("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(
        CWD,
        root.join("device"),
        rustix::fs::FileType::CharacterDevice,
        mode,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
}

/// A folder of this test's own, and where it lies below the root.
pub fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    (dir, real)
}

/// An absolute path as it stands in a tar.
pub fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap()
}
