//! Capturing trees: what the tar holds, what GNU tar makes of it, and what is left out.

#[path = "support/capture.rs"]
mod capture;
#[path = "support/hostile.rs"]
mod hostile;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/tree.rs"]
mod tree;

use capture::{
    EVERYTHING, Mounted, capture, capture_at, extract, lines_below, listing, names, source, spec, try_capture,
};
use chrono::Utc;
use hostile::Hostile;
use lifeboat::base::ids::StreamName;
use lifeboat::base::stream::{FileType, StreamKind};
use lifeboat::policy::model::FilesSpec;
use lifeboat::sources::extract::Archive;
use lifeboat::sources::{Capture, Piece, Sink, Source, SourceError, StreamSink};
use sink::{Bench, MemorySink};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tree::{assert_same, inside, records, run, scratch, text};

#[test]
fn everything_comes_back_by_our_own_extraction() {
    let (_guard, dir) = scratch();
    let from = dir.join("from");
    tree::nasty(&from);
    let (sink, captured) = capture(spec(&[&from]));
    assert_eq!(captured.warnings, Vec::<String>::new());
    assert_eq!(sink.stream_of("files.tar").kind, StreamKind::Tar);
    assert_eq!(sink.stream_of("files.listing").kind, StreamKind::Listing);
    let to = dir.join("to");
    fs::create_dir(&to).unwrap();
    let report = extract(&sink.bytes("files.tar"), &to, EVERYTHING);
    assert_eq!(report.differences, []);
    assert_same(&records(&from), &records(&to.join(inside(&from))));
}

#[test]
fn everything_comes_back_by_gnu_tar() {
    let (_guard, dir) = scratch();
    let from = dir.join("from");
    tree::nasty(&from);
    let (sink, _) = capture(spec(&[&from]));
    let tar = dir.join("files.tar");
    fs::write(&tar, sink.bytes("files.tar")).unwrap();
    let to = dir.join("to");
    fs::create_dir(&to).unwrap();
    run(&["tar", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf", text(&tar), "-C", text(&to)]);
    assert_same(&records(&from), &records(&to.join(inside(&from))));
    let listed = run(&["tar", "--quoting-style=literal", "-tf", text(&tar)]);
    assert!(listed.contains("sparse-9g\n") && !listed.contains("GNUSparse"), "{listed}");
}

#[test]
fn the_listing_says_where_every_entry_lies() {
    let (_guard, dir) = scratch();
    let from = dir.join("from");
    tree::nasty(&from);
    let (sink, captured) = capture(spec(&[&from]));
    let tar = sink.bytes("files.tar");
    let listing = listing(&sink);
    let mut at = 0;
    for entry in &listing {
        assert_eq!(entry.offset, at, "entries lie one behind the other: {entry:?}");
        at += entry.length;
    }
    assert_eq!(at + 1024, tar.len() as u64);
    assert_eq!(captured.facts["entries"], listing.len());
    for entry in &listing {
        let part = &tar[entry.offset as usize..(entry.offset + entry.length) as usize];
        let mut archive = Archive::part(part);
        let member = archive.next_member().unwrap().unwrap();
        assert_eq!(member.entry.listing(entry.offset, entry.length).unwrap(), *entry);
        assert!(archive.next_member().unwrap().is_none());
    }
    let find = |name: &str| listing.iter().find(|e| e.path.ends_with(name)).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(find("/links/zweiter").file_type, FileType::Hardlink);
    assert_eq!(find("/links/original").file_type, FileType::Hardlink);
    assert!(find("/links/original").target.as_deref().unwrap().ends_with("/links/deeper/third"));
    assert_eq!(find("/sparse-9g").size, 9 << 30);
    assert_eq!(
        find("not-utf8-%FF%FE").path_hex,
        Some(hex::encode([inside(&from).to_str().unwrap().as_bytes(), b"/not-utf8-\xff\xfe"].concat()))
    );
    assert_eq!(find("/times/1960").mtime, -300_000_000);
    let order: Vec<_> = listing
        .iter()
        .filter(|e| e.path.contains("/sorted/"))
        .map(|e| e.path.rsplit_once("sorted/").unwrap().1)
        .collect();
    assert_eq!(order, ["a", "a/1", "a-b", "a.txt"]);
    let parents: Vec<_> = listing.iter().map(|e| Path::new(&e.path)).take(inside(&from).components().count()).collect();
    assert_eq!(*parents.last().unwrap(), inside(&from), "the folders above come first");
}

#[test]
fn special_files_are_skipped_with_a_note() {
    let (_guard, dir) = scratch();
    tree::special(&dir.join("special"));
    let (sink, captured) = capture(spec(&[&dir.join("special")]));
    assert!(listing(&sink).last().unwrap().path.ends_with("special"));
    for what in ["socket", "fifo", "device"] {
        assert!(
            captured.warnings.iter().any(|w| w.starts_with(&format!("skipped {what} "))),
            "{:?}",
            captured.warnings
        );
    }
}

#[test]
fn what_the_policy_excludes_is_left_out() {
    let (_guard, dir) = scratch();
    for name in ["a/keep.txt", "a/x.log", "a/cache/1", "a/deep/cache/2", "a/deep/y.log", "a/important.log", "b/z.log"] {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let mut spec = spec(&[&dir.join("a"), &dir.join("a/cache/1")]);
    spec.exclude = vec!["*.log".into(), "!important.log".into(), "cache/".into()];
    let (sink, _) = capture(spec);
    assert_eq!(
        names(&sink, &dir),
        ["a", "a/cache", "a/cache/1", "a/deep", "a/important.log", "a/keep.txt"],
        "a path that is named is taken although a pattern leaves it out; nothing else of its folder is"
    );
}

#[test]
fn globs_and_links_lead_to_what_they_mean() {
    let (_guard, dir) = scratch();
    for name in ["apps/one/.env", "apps/two/.env", "apps/two/code", "elsewhere/real/file", "apps/[id]/x"] {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, dir.join(name)).unwrap();
    link("elsewhere/real", "direct");
    link("elsewhere", "way");
    link("nowhere", "dangling");
    let (sink, captured) = capture(spec(&[
        &dir.join("apps/*/.env"),
        &dir.join("direct"),
        &dir.join("way/real/file"),
        &dir.join("dangling"),
        &dir.join("apps/[id]"),
        &dir.join("nothing-*"),
    ]));
    assert_eq!(
        names(&sink, &dir),
        [
            "apps",
            "apps/[id]",
            "apps/[id]/x",
            "apps/one",
            "apps/one/.env",
            "apps/two",
            "apps/two/.env",
            "dangling",
            "direct",
            "elsewhere",
            "elsewhere/real",
            "elsewhere/real/file",
            "way"
        ]
    );
    assert!(captured.warnings.iter().any(|w| w.contains("dangling points to something")), "{:?}", captured.warnings);
    assert!(captured.warnings.iter().any(|w| w.contains("nothing-* matches nothing")), "{:?}", captured.warnings);
    let error = |paths: &[&Path]| {
        capture_at(&Bench::new(), &MemorySink::new(), spec(paths), Utc::now()).unwrap_err().to_string()
    };
    assert!(error(&[&dir.join("missing")]).ends_with("/missing does not exist"));
    assert!(error(&[&dir.join("none-*")]).starts_with("nothing matches "));
    assert!(error(&[&dir.join("apps"), &dir.join("missing")]).ends_with("/missing does not exist"));
    let never = source(spec(&[&dir.join("apps")]), &[dir.join("apps/two")]);
    let (sink, _) = try_capture(&never).unwrap();
    assert_eq!(names(&sink, &dir), ["apps", "apps/[id]", "apps/[id]/x", "apps/one", "apps/one/.env"]);
}

#[test]
fn an_unreadable_file_fails_the_source_and_is_named() {
    use std::os::unix::process::CommandExt;
    let (_guard, dir) = scratch();
    fs::write(dir.join("secret"), "s").unwrap();
    tree::set_mode(&dir.join("secret"), 0);
    tree::set_mode(&dir, 0o755);
    // As another user, in a process of its own: this test again, with its folder given.
    let this = std::env::current_exe().unwrap();
    let copy = dir.join("test-binary");
    fs::copy(this, &copy).unwrap();
    tree::set_mode(&copy, 0o755);
    let out = std::process::Command::new(&copy)
        .args(["--exact", "unprivileged_helper", "--ignored", "--nocapture"])
        .env("LIFEBOAT_TEST_DIR", &dir)
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("/secret: Permission denied"), "{said}{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
#[ignore = "run by the test above, as another user"]
fn unprivileged_helper() {
    let dir = PathBuf::from(std::env::var_os("LIFEBOAT_TEST_DIR").unwrap());
    let error = capture_at(&Bench::new(), &MemorySink::new(), spec(&[&dir]), Utc::now()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap();
    println!("{error}: {cause}");
}

#[test]
fn other_file_systems_are_left_out_when_asked_and_the_kernels_always() {
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    for name in ["mounted", "proc", "own"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    run(&["mount", "-t", "tmpfs", "tmpfs", text(&tree.join("mounted"))]);
    let _one = Mounted(tree.join("mounted"));
    run(&["mount", "-t", "proc", "proc", text(&tree.join("proc"))]);
    let _two = Mounted(tree.join("proc"));
    fs::write(tree.join("mounted/inside"), "x").unwrap();
    fs::write(tree.join("own/file"), "x").unwrap();
    let (sink, captured) = capture(spec(&[&tree]));
    assert_eq!(names(&sink, &tree), ["mounted", "mounted/inside", "own", "own/file", "proc"]);
    assert_eq!(captured.warnings.len(), 1);
    assert!(captured.warnings[0].ends_with("/proc is a file system of the kernel: its content is left out"));
    let (sink, captured) = capture(FilesSpec { one_file_system: true, ..spec(&[&tree]) });
    assert_eq!(names(&sink, &tree), ["mounted", "own", "own/file", "proc"]);
    assert_eq!(captured.warnings.len(), 2, "{:?}", captured.warnings);
    let (sink, _) = capture(FilesSpec { one_file_system: true, ..spec(&[&tree, &tree.join("mounted")]) });
    assert_eq!(names(&sink, &tree), ["mounted", "mounted/inside", "own", "own/file", "proc"], "unless it is named");
}

#[test]
fn trees_deeper_than_a_path_may_be_long_come_back() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    let open = |at: &rustix::fd::OwnedFd, name: &str| {
        openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    };
    let mut at = openat(CWD, &tree, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let name = "deep".repeat(25);
    for _ in 0..120 {
        mkdirat(&at, &name, Mode::RWXU).unwrap();
        let file = openat(&at, "file", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap();
        rustix::io::write(&file, b"content").unwrap();
        at = open(&at, &name);
    }
    drop(at);
    let (sink, captured) = capture(spec(&[&tree]));
    assert_eq!(captured.warnings, Vec::<String>::new());
    let to = dir.join("to");
    fs::create_dir(&to).unwrap();
    assert_eq!(extract(&sink.bytes("files.tar"), &to, EVERYTHING).differences, []);
    let again = to.join(inside(&tree));
    let (second, _) = capture(spec(&[&again]));
    let lines = |sink: &MemorySink, root: &Path| {
        let mut lines = lines_below(sink, text(root));
        let base = lines[0].offset;
        for line in &mut lines {
            line.path = line.path.strip_prefix(text(inside(root))).unwrap().into();
            line.offset -= base;
        }
        lines.iter().map(|l| (l.path.clone(), l.size, l.mtime, l.mtime_ns, l.mode)).collect::<Vec<_>>()
    };
    assert_eq!(lines(&sink, &tree), lines(&second, &again));
    assert_eq!(lines(&sink, &tree).len(), 241);
    run(&["rm", "-rf", text(&tree), text(&to)]);
}

#[test]
fn cancelling_ends_a_capture_at_once() {
    let (_guard, dir) = scratch();
    fs::write(dir.join("a"), vec![1; 2 << 20]).unwrap();
    let bench = Bench::new();
    bench.cancel.raise(15);
    let error = capture_at(&bench, &MemorySink::new(), spec(&[&dir]), Utc::now()).unwrap_err();
    assert!(matches!(error, SourceError::Cancelled(_)), "{error}");
}

#[test]
fn a_full_repository_is_the_sinks_error() {
    let (_guard, dir) = scratch();
    fs::write(dir.join("a"), vec![1; 2 << 20]).unwrap();
    let mut sink = MemorySink::new();
    sink.fail_after_bytes = Some(1 << 20);
    let error = capture_at(&Bench::new(), &sink, spec(&[&dir]), Utc::now()).unwrap_err();
    assert!(matches!(error, SourceError::Sink(_)), "{error}");
    assert!(sink.names().is_empty());
}

/// Takes the beginning of the tar only, and fails then.
#[derive(Default)]
struct Beginning(std::sync::Mutex<Vec<u8>>);

struct BeginningStream<'s>(Option<&'s Beginning>, u64);

impl Sink for Beginning {
    fn stream(&self, _: StreamName, kind: StreamKind, _: Option<u64>) -> io::Result<Box<dyn StreamSink + '_>> {
        Ok(Box::new(BeginningStream((kind == StreamKind::Tar).then_some(self), 0)))
    }
}

impl Write for BeginningStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(beginning) = self.0 {
            beginning.0.lock().unwrap().extend_from_slice(bytes);
        }
        self.1 += bytes.len() as u64;
        if self.1 > 65_536 { Err(io::Error::other("enough")) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamSink for BeginningStream<'_> {
    fn end_piece(&mut self) -> io::Result<Piece> {
        Ok(Piece::default())
    }

    fn reuse_piece(&mut self, _: &Piece) -> io::Result<bool> {
        Ok(false)
    }

    fn position(&self) -> u64 {
        self.1
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_size_beyond_what_the_old_header_holds_is_said_so_that_gnu_tar_reads_it() {
    const SIZE: u64 = (8 << 30) + 12_345;
    let (_guard, dir) = scratch();
    let file = fs::File::create(dir.join("huge")).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE).unwrap();
    let beginning = Beginning::default();
    let result =
        source(spec(&[&dir]), &[]).capture(&Capture { sink: &beginning, ..Bench::new().capture(&MemorySink::new()) });
    assert!(matches!(result, Err(SourceError::Sink(_))));
    let bytes = beginning.0.into_inner().unwrap();
    let mut archive = Archive::new(&bytes[..]);
    let mut sizes = Vec::new();
    while let Ok(Some(member)) = archive.next_member() {
        sizes.push((member.entry.size, member.payload, member.map.is_some()));
    }
    assert_eq!(sizes.last(), Some(&(SIZE, SIZE, false)));
    let tar = dir.join("beginning.tar");
    fs::write(&tar, &bytes).unwrap();
    let out = std::process::Command::new("tar").args(["-tvf", text(&tar)]).output().unwrap();
    let listed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(listed.lines().last().unwrap().contains(&format!(" {SIZE} ")), "{listed}");

    // All of it, not the header alone: what stands behind so much content is found again, by us and by GNU tar. The
    // content comes from nowhere.
    let begins = bytes.iter().rposition(|b| *b != 0).unwrap() / 512 * 512 + 512;
    let behind = Hostile::default().file(b"behind", b"it").end();
    let whole = || {
        let padding = SIZE.next_multiple_of(512);
        bytes[..begins].chain(io::repeat(0).take(padding)).chain(&behind[..])
    };
    let mut archive = Archive::new(whole());
    let (mut names, mut read, mut buffer) = (Vec::new(), 0, vec![0; 1 << 20]);
    while let Some(member) = archive.next_member().unwrap() {
        names.push(String::from_utf8(member.entry.path).unwrap());
        if member.payload == SIZE {
            loop {
                match archive.read(&mut buffer).unwrap() {
                    0 => break,
                    n => read += n as u64,
                }
            }
        }
    }
    assert_eq!((names.last().unwrap().as_str(), read), ("behind", SIZE), "{names:?}");
    let file = fs::File::create(&tar).unwrap();
    file.write_all_at(&bytes[..begins], 0).unwrap();
    file.write_all_at(&behind, begins as u64 + SIZE.next_multiple_of(512)).unwrap();
    let out = std::process::Command::new("tar").args(["-tf", text(&tar)]).output().unwrap();
    let listed = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && listed.lines().last() == Some("behind"), "{listed}");
}
