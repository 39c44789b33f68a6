//! Capturing trees: what the tar holds, what GNU tar makes of it, and what is not read again.

#[path = "support/sink.rs"]
mod sink;
#[path = "support/tree.rs"]
mod tree;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::ids::StreamName;
use lifeboat::base::stream::{FileType, ListingEntry, StreamKind};
use lifeboat::policy::model::{App, FilesSpec, OnRollback, SourcePolicy, SourceSpec, Via};
use lifeboat::sources::extract::{Extractor, Options, Report};
use lifeboat::sources::files::FilesSource;
use lifeboat::sources::{Capture, Captured, Piece, Sink, Source, SourceError, StreamSink};
use sink::{Bench, MemorySink};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tree::{assert_same, inside, records, run, scratch, text};

fn spec(paths: &[&Path]) -> FilesSpec {
    FilesSpec {
        paths: paths.iter().map(|p| text(p).to_owned()).collect(),
        exclude: Vec::new(),
        one_file_system: false,
        via: Via::Direct,
    }
}

fn policy(spec: SourceSpec) -> SourcePolicy {
    SourcePolicy {
        name: "files".parse().unwrap(),
        on_rollback: OnRollback::Add,
        implicit: false,
        optional: false,
        timeout: std::time::Duration::from_secs(600),
        spec,
    }
}

fn app() -> App {
    App {
        name: "test".parse().unwrap(),
        root: "/nowhere".into(),
        compose_files: Vec::new(),
        env_files: Vec::new(),
        profiles: Vec::new(),
        project: None,
        project_dir: None,
    }
}

fn source(spec: FilesSpec) -> FilesSource {
    FilesSource::new(&policy(SourceSpec::Files(spec.clone())), &spec, &app(), [])
}

/// A capture at a time when everything has settled.
fn capture_at(bench: &Bench, sink: &MemorySink, spec: FilesSpec, now: DateTime<Utc>) -> Result<Captured, SourceError> {
    source(spec).capture(&Capture { now, ..bench.capture(sink) })
}

fn capture(spec: FilesSpec) -> (MemorySink, Captured) {
    let sink = MemorySink::new();
    let captured = capture_at(&Bench::new(), &sink, spec, Utc::now() + TimeDelta::seconds(60)).unwrap();
    (sink, captured)
}

fn listing(sink: &MemorySink) -> Vec<ListingEntry> {
    let bytes = sink.bytes("files.listing");
    std::str::from_utf8(&bytes).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn extract(tar: &[u8], into: &Path, options: Options) -> Report {
    let mut extractor = Extractor::new(into, options, &Cancel::new()).unwrap();
    extractor.extract(tar).unwrap();
    extractor.finish().unwrap()
}

const EVERYTHING: Options = Options { privileged: true, owners: true, overwrite: false };

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
        let mut archive = lifeboat::sources::extract::Archive::part(part);
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

fn paths_in(sink: &MemorySink, below: &Path) -> Vec<String> {
    let prefix = format!("{}/", inside(below).display());
    listing(sink).iter().filter_map(|e| e.path.strip_prefix(&prefix).map(str::to_owned)).collect()
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
        paths_in(&sink, &dir),
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
        paths_in(&sink, &dir),
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
    let never = {
        let spec = spec(&[&dir.join("apps")]);
        FilesSource::new(&policy(SourceSpec::Files(spec.clone())), &spec, &app(), [dir.join("apps/two")])
    };
    let sink = MemorySink::new();
    never.capture(&Bench::new().capture(&sink)).unwrap();
    assert_eq!(paths_in(&sink, &dir), ["apps", "apps/[id]", "apps/[id]/x", "apps/one", "apps/one/.env"]);
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

/// Runs of one policy into one repository.
struct Runs {
    bench: Bench,
    sink: MemorySink,
    spec: FilesSpec,
}

impl Runs {
    fn new(path: &Path) -> Self {
        Runs { bench: Bench::new(), sink: MemorySink::new(), spec: spec(&[path]) }
    }

    /// A run when everything has settled.
    fn run(&mut self) -> Captured {
        self.run_at(Utc::now() + TimeDelta::seconds(60)).unwrap()
    }

    fn run_at(&mut self, now: DateTime<Utc>) -> Result<Captured, SourceError> {
        self.sink = self.sink.next_run();
        capture_at(&self.bench, &self.sink, self.spec.clone(), now)
    }

    /// What a run that remembers nothing makes of it.
    fn fresh(&self) -> MemorySink {
        let sink = MemorySink::new();
        capture_at(&Bench::new(), &sink, self.spec.clone(), Utc::now()).unwrap();
        sink
    }

    fn assert_same_as_fresh(&self) {
        let fresh = self.fresh();
        assert!(self.lines() == lines_below(&fresh, &self.spec.paths[0]), "the listings differ");
        let (ours, theirs) = (self.tar(), tar_below(&fresh, &self.spec.paths[0]));
        let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert!(ours == theirs, "the tar differs from that of a run without memory at byte {at:?} below the tree");
    }

    /// The tar from the tree's own entry on: other tests change the folders above it.
    fn tar(&self) -> Vec<u8> {
        tar_below(&self.sink, &self.spec.paths[0])
    }

    fn lines(&self) -> Vec<ListingEntry> {
        lines_below(&self.sink, &self.spec.paths[0])
    }

    /// The share of the tar that was read.
    fn read(&self) -> f64 {
        let all = self.sink.bytes("files.tar").len() as f64;
        (all - self.sink.reused_bytes() as f64) / all
    }
}

fn lines_below(sink: &MemorySink, root: &str) -> Vec<ListingEntry> {
    let mut lines = listing(sink);
    lines.retain(|e| Path::new("/").join(&e.path).starts_with(root));
    lines
}

fn tar_below(sink: &MemorySink, root: &str) -> Vec<u8> {
    sink.bytes("files.tar")[lines_below(sink, root)[0].offset as usize..].to_vec()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..n.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(n);
        bytes
    }
}

fn many_files(dir: &Path, random: &mut Random) {
    for d in 0..20 {
        fs::create_dir_all(dir.join(format!("d{d}"))).unwrap();
        for f in 0..150 {
            let size = random.below(4_000) as usize;
            fs::write(dir.join(format!("d{d}/f{f}")), random.bytes(size)).unwrap();
        }
    }
}

#[test]
fn unchanged_files_are_not_read_again() {
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    let mut random = Random(1);
    many_files(&tree, &mut random);
    let mut runs = Runs::new(&tree);
    runs.run();
    assert_eq!(runs.sink.reused_bytes(), 0);
    runs.run();
    assert!(runs.read() < 0.4, "{} read", runs.read());
    runs.assert_same_as_fresh();
    let groups = runs.sink.stream_of("files.tar").pieces.len();
    assert!((4..40).contains(&groups), "{groups} groups of 3,000 small files");

    // A new file moves its own group and its folder's only.
    fs::write(tree.join("d7/new"), b"new").unwrap();
    runs.run();
    assert!(runs.read() < 0.4, "{} read", runs.read());
    runs.assert_same_as_fresh();

    runs.bench.force = true;
    runs.run();
    assert_eq!(runs.sink.reused_bytes(), 0);
    runs.bench.force = false;

    // Another key or recipient makes other chunks.
    runs.bench.memo_key.dedup = lifeboat::base::ids::DedupKeyId([9; 32]);
    runs.run();
    assert_eq!(runs.sink.reused_bytes(), 0);
    runs.bench.memo_key.recipients = lifeboat::base::ids::RecipientSetId([9; 32]);
    runs.run();
    assert_eq!(runs.sink.reused_bytes(), 0);

    // The repository has lost chunks: everything is read again, and nothing is missing.
    runs.run();
    runs.sink.lose_chunks();
    runs.run();
    assert_eq!(runs.sink.reused_bytes(), 0);
    runs.assert_same_as_fresh();
}

/// A file system in a file, mounted while this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path) -> Self {
        run(&["mount", "-o", "loop", text(image), text(at)]);
        Mounted(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn every_group_is_read_again_within_thirty_runs() {
    let (_guard, dir) = scratch();
    let (image, tree) = (dir.join("image"), dir.join("tree"));
    fs::create_dir(&tree).unwrap();
    fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    run(&["mkfs.ext4", "-q", "-O", "^has_journal", text(&image)]);
    let mounted = Mounted::new(&image, &tree);
    many_files(&tree, &mut Random(2));
    let secret = b"this very line lies in one block of the image";
    fs::write(tree.join("d3/f3"), secret).unwrap();
    drop(mounted);
    let mounted = Mounted::new(&image, &tree);
    let mut runs = Runs::new(&tree);
    runs.run();
    // What a failing disk does: other content under the same metadata.
    drop(mounted);
    let mut bytes = fs::read(&image).unwrap();
    let at = bytes.windows(secret.len()).position(|w| w == secret).unwrap();
    bytes[at] ^= 1;
    fs::write(&image, bytes).unwrap();
    let _mounted = Mounted::new(&image, &tree);
    let mut told = Vec::new();
    let mut reads = Vec::new();
    for _ in 0..30 {
        told.extend(runs.run().warnings);
        reads.push(runs.read());
    }
    assert!((0.9..6.0).contains(&reads.iter().sum::<f64>()), "{reads:?}");
    assert_eq!(told.iter().filter(|w| w.starts_with("content changed under ")).count(), 1, "{told:?}");
    runs.assert_same_as_fresh();
}

#[test]
fn what_may_still_change_unseen_is_not_remembered() {
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    let now = Utc::now();
    many_files(&tree, &mut Random(3));
    let mut runs = Runs::new(&tree);
    runs.run_at(now + TimeDelta::seconds(1)).unwrap();
    runs.run();
    assert_eq!(runs.sink.reused_bytes(), 0, "the files were written within two seconds of the first run");
    for entry in walk(&tree) {
        if entry.is_file() {
            tree::set_mtime(&entry, now.timestamp() + 3_600, 0);
        }
    }
    runs.run();
    runs.run();
    assert_eq!(runs.sink.reused_bytes(), 0, "the files say that they are of the future");
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    records(dir).into_keys().map(|p| dir.join(p)).collect()
}

#[test]
fn a_run_that_remembers_makes_the_same_streams_as_one_that_reads_everything() {
    for seed in 0..3 {
        let (_guard, dir) = scratch();
        let tree = dir.join("tree");
        let mut random = Random(seed * 1_000);
        many_files(&tree, &mut random);
        fs::write(tree.join("large"), random.bytes(2 << 20)).unwrap();
        let mut runs = Runs::new(&tree);
        let mut reused = 0;
        for _ in 0..8 {
            runs.run();
            reused += runs.sink.reused_bytes();
            runs.assert_same_as_fresh();
            for _ in 0..random.below(6) {
                change(&tree, &mut random);
            }
            if random.below(6) == 0 {
                runs.sink.lose_chunks();
            }
            // Old kernels give all changes within one tick the same time.
            std::thread::sleep(std::time::Duration::from_millis(12));
        }
        assert!(reused > 0);
    }
}

/// Does something to a path chosen at random.
fn change(tree: &Path, random: &mut Random) {
    let all = walk(tree);
    let pick = all[random.below(all.len() as u64) as usize].clone();
    let is_file = pick.symlink_metadata().unwrap().is_file();
    let fresh = |random: &mut Random| tree.join(format!("d{}/new{}", random.below(20), random.below(1_000)));
    match random.below(10) {
        0 if is_file => fs::remove_file(&pick).unwrap(),
        1 if is_file => drop(fs::rename(&pick, fresh(random))),
        2 if is_file => drop(fs::hard_link(&pick, fresh(random))),
        3 if is_file => {
            // The same size and time, other content.
            let meta = fs::metadata(&pick).unwrap();
            fs::write(&pick, random.bytes(meta.len() as usize)).unwrap();
            fs::File::open(&pick).unwrap().set_modified(meta.modified().unwrap()).unwrap();
        }
        4 => tree::set_mtime(&pick, random.below(1 << 31) as i64, 5),
        5 if is_file => tree::set_mode(&pick, 0o600 + random.below(0o100) as u32),
        6 if is_file => {
            let _ = std::process::Command::new("setfattr").args(["-n", "user.x", "-v", "1"]).arg(&pick).status();
        }
        7 => drop(std::os::unix::fs::symlink("somewhere", fresh(random))),
        8 if is_file => {
            let n = random.below(1 << 21) as usize;
            fs::write(&pick, random.bytes(n)).unwrap();
        }
        _ => {
            let path = fresh(random);
            if !path.exists() {
                fs::write(path, random.bytes(100)).unwrap();
            }
        }
    }
}

#[test]
fn large_files_are_remembered_piece_by_piece() {
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    let mut random = Random(4);
    let block = random.bytes(1 << 20);
    let file = fs::File::create(tree.join("dump")).unwrap();
    for i in 0..150u64 {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&block[i as usize * 1000..], i << 20).unwrap();
    }
    file.set_len(151 << 20).unwrap();
    drop(file);
    let mut runs = Runs::new(&tree);
    runs.run();
    let pieces: Vec<u64> = runs.sink.stream_of("files.tar").pieces.iter().map(|p| p.length()).collect();
    assert!(pieces.iter().filter(|p| **p >= 64 << 20).count() == 2, "{pieces:?}");
    let first = runs.tar();
    runs.run();
    assert!(runs.read() < 0.01, "{}", runs.read());
    assert!(runs.tar() == first);
    // The repository has lost a piece in the middle: that one is read again, the others are not.
    runs.sink.lose_chunks();
    let (keep, all) = (runs.sink.stream_of("files.tar").pieces, runs.sink.bytes("files.tar"));
    let again = MemorySink::new();
    {
        let mut stream = again.stream("x".parse().unwrap(), StreamKind::Raw, None).unwrap();
        let mut at = 0;
        for piece in &keep {
            let end = at + piece.length() as usize;
            if piece.length() != (64 << 20) {
                stream.write_all(&all[at..end]).unwrap();
                stream.end_piece().unwrap();
            }
            at = end;
        }
        stream.finish().unwrap();
    }
    runs.sink = again;
    runs.run();
    let read = runs.read();
    assert!((0.40..0.50).contains(&read), "{read}");
    assert!(runs.tar() == first);
    runs.run();
    assert!(runs.read() < 0.01, "{}", runs.read());
}

/// A sink that does something to the tree once so many bytes of the tar have been written.
struct Meddling<'a> {
    sink: &'a MemorySink,
    after: Happens<'a>,
}

type Happens<'a> = std::sync::Mutex<Vec<(usize, Box<dyn FnOnce() + Send + 'a>)>>;

struct MeddlingStream<'s, 'a> {
    inner: Box<dyn StreamSink + 's>,
    after: Option<&'s Happens<'a>>,
}

impl Sink for Meddling<'_> {
    fn stream(&self, name: StreamName, kind: StreamKind, n: Option<u64>) -> io::Result<Box<dyn StreamSink + '_>> {
        let after = (kind == StreamKind::Tar).then_some(&self.after);
        Ok(Box::new(MeddlingStream { inner: self.sink.stream(name, kind, n)?, after }))
    }
}

impl Write for MeddlingStream<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        if let Some(after) = self.after {
            let mut after = after.lock().unwrap();
            while after.first().is_some_and(|(at, _)| self.inner.position() >= *at as u64) {
                after.remove(0).1();
            }
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl StreamSink for MeddlingStream<'_, '_> {
    fn end_piece(&mut self) -> io::Result<Piece> {
        self.inner.end_piece()
    }

    fn reuse_piece(&mut self, piece: &Piece) -> io::Result<bool> {
        self.inner.reuse_piece(piece)
    }

    fn position(&self) -> u64 {
        self.inner.position()
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.inner.finish()
    }
}

/// Captures `tree` while things happen to it; returns what came of it, laid out.
fn meddle<'a>(
    tree: &Path,
    bench: &Bench,
    sink: &'a MemorySink,
    after: Vec<(usize, Box<dyn FnOnce() + Send + 'a>)>,
) -> (PathBuf, Vec<String>, tempfile::TempDir) {
    let meddling = Meddling { sink, after: std::sync::Mutex::new(after) };
    let now = Utc::now() + TimeDelta::seconds(60);
    let cx = Capture { sink: &meddling, now, ..bench.capture(sink) };
    let captured = source(spec(&[tree])).capture(&cx).unwrap();
    assert!(meddling.after.lock().unwrap().is_empty(), "not all of it happened");
    let (guard, to) = scratch();
    assert_eq!(extract(&sink.bytes("files.tar"), &to, EVERYTHING).differences, []);
    // GNU tar takes the same from it.
    let (_gnu_guard, gnu) = scratch();
    let tar = gnu.join("t.tar");
    fs::write(&tar, sink.bytes("files.tar")).unwrap();
    run(&["tar", "-xpf", text(&tar), "--warning=no-unknown-keyword", "-C", text(&gnu), text(inside(tree))]);
    assert_same(&records(&to.join(inside(tree))), &records(&gnu.join(inside(tree))));
    let at = to.join(inside(tree));
    (at, captured.warnings, guard)
}

#[test]
fn a_large_file_that_changes_while_it_is_read_is_read_again() {
    let (_guard, dir) = scratch();
    let (tree, file) = (dir.join("tree"), dir.join("tree/large"));
    fs::create_dir(&tree).unwrap();
    let write = |n: usize, byte: u8| fs::write(dir.join("tree/large"), vec![byte; n]).unwrap();

    write(5 << 20, 1);
    let sink = MemorySink::new();
    let (got, warnings, _g) = meddle(&tree, &Bench::new(), &sink, vec![(2 << 20, Box::new(|| write(10, 2)))]);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(fs::read(got.join("large")).unwrap(), [2; 10], "what it was when it was read again");
    assert_eq!(listing(&sink).iter().filter(|e| e.path.ends_with("/large")).count(), 1);

    // It shrinks both times: the header stays true, the missing bytes are zeros, and that is told.
    write(5 << 20, 1);
    let sink = MemorySink::new();
    let bench = Bench::new();
    let (got, warnings, _g) = meddle(
        &tree,
        &bench,
        &sink,
        vec![
            (2 << 20, Box::new(|| write(4 << 20, 2))),
            (7 << 20, Box::new(|| fs::File::options().write(true).open(&file).unwrap().set_len(100).unwrap())),
        ],
    );
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].ends_with("/large became shorter while it was read: the missing bytes are zeros"));
    let content = fs::read(got.join("large")).unwrap();
    assert!(content.len() == 4 << 20 && content[..1 << 20].iter().all(|b| *b == 2) && content.ends_with(&[0; 1000]));

    // Nothing of it is remembered.
    let again = sink.next_run();
    capture_at(&bench, &again, spec(&[&tree]), Utc::now() + TimeDelta::seconds(60)).unwrap();
    assert!(again.reused_bytes() < 10_000);
    assert_eq!(fs::metadata(&file).unwrap().len(), 100);

    // It grows: what is there at the second reading.
    write(5 << 20, 1);
    let sink = MemorySink::new();
    let (got, warnings, _g) = meddle(&tree, &Bench::new(), &sink, vec![(2 << 20, Box::new(|| write(6 << 20, 3)))]);
    assert_eq!(warnings, Vec::<String>::new());
    assert!(fs::read(got.join("large")).unwrap() == vec![3; 6 << 20]);
}

#[test]
fn what_vanishes_meanwhile_is_noted_and_hard_links_keep_their_content() {
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("y-dir")).unwrap();
    fs::write(tree.join("a"), vec![1; 2 << 20]).unwrap();
    fs::write(tree.join("b"), vec![2; 300 << 10]).unwrap();
    fs::write(tree.join("c-first"), vec![3; 3 << 20]).unwrap();
    fs::hard_link(tree.join("c-first"), tree.join("d-second")).unwrap();
    fs::hard_link(tree.join("c-first"), tree.join("e-third")).unwrap();
    fs::write(tree.join("z"), "z").unwrap();
    let sink = MemorySink::new();
    let happens: Vec<(usize, Box<dyn FnOnce() + Send>)> = vec![
        (
            1 << 20,
            Box::new(|| {
                fs::remove_file(tree.join("z")).unwrap();
                fs::remove_dir(tree.join("y-dir")).unwrap();
            }),
        ),
        ((2 << 20) + (200 << 10), Box::new(|| fs::remove_file(tree.join("c-first")).unwrap())),
    ];
    let (got, warnings, _g) = meddle(&tree, &Bench::new(), &sink, happens);
    for name in ["z", "y-dir", "c-first"] {
        assert!(warnings.iter().any(|w| w.ends_with(&format!("/{name} vanished while it was read"))), "{warnings:?}");
    }
    let found = records(&got);
    assert_eq!(found.keys().map(|p| text(p)).collect::<Vec<_>>(), ["", "a", "b", "d-second", "e-third"]);
    assert_eq!(found[Path::new("e-third")].same_as, Some("d-second".into()));
    assert_eq!(found[Path::new("e-third")].size, 3 << 20);
}

#[test]
fn small_files_that_change_between_walk_and_reading_are_taken_as_they_are_then() {
    // Which files share a group depends on their paths, so several trees are tried.
    let mut seen = 0;
    for n in 0..12 {
        let (_guard, dir) = scratch();
        let tree = dir.join(format!("tree{n}"));
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("a"), vec![1; 300 << 10]).unwrap();
        for name in ["b", "c", "d", "e"] {
            fs::write(tree.join(name), name).unwrap();
        }
        let bench = Bench::new();
        let sink = MemorySink::new();
        let happens: Vec<(usize, Box<dyn FnOnce() + Send>)> = vec![(
            200 << 10,
            Box::new(|| {
                fs::write(tree.join("b"), "changed").unwrap();
                fs::remove_file(tree.join("c")).unwrap();
                fs::rename(tree.join("e"), tree.join("d")).unwrap();
            }),
        )];
        let (got, warnings, _g) = meddle(&tree, &bench, &sink, happens);
        assert_eq!(fs::read(got.join("b")).unwrap(), b"changed");
        assert!(!got.join("c").exists() && !got.join("e").exists(), "{warnings:?}");
        assert_eq!(fs::read(got.join("d")).unwrap(), b"e");
        assert_same(&records(&tree).into_iter().skip(1).collect(), &records(&got).into_iter().skip(1).collect());
        seen += warnings.len();
        // The next run is right without reading everything anew.
        let again = sink.next_run();
        capture_at(&bench, &again, spec(&[&tree]), Utc::now() + TimeDelta::seconds(60)).unwrap();
        let (_guard, to) = scratch();
        extract(&again.bytes("files.tar"), &to, EVERYTHING);
        assert_same(&records(&tree), &records(&to.join(inside(&tree))));
    }
    assert!(seen > 0);
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
    assert_eq!(paths_in(&sink, &tree), ["mounted", "mounted/inside", "own", "own/file", "proc"]);
    assert_eq!(captured.warnings.len(), 1);
    assert!(captured.warnings[0].ends_with("/proc is a file system of the kernel: its content is left out"));
    let (sink, captured) = capture(FilesSpec { one_file_system: true, ..spec(&[&tree]) });
    assert_eq!(paths_in(&sink, &tree), ["mounted", "own", "own/file", "proc"]);
    assert_eq!(captured.warnings.len(), 2, "{:?}", captured.warnings);
    let (sink, _) = capture(FilesSpec { one_file_system: true, ..spec(&[&tree, &tree.join("mounted")]) });
    assert_eq!(paths_in(&sink, &tree), ["mounted", "mounted/inside", "own", "own/file", "proc"], "unless it is named");
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
