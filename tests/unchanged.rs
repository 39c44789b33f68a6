//! What is not read again, and that this never changes the streams.

#[path = "support/capture.rs"]
mod capture;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/tree.rs"]
mod tree;

use capture::{Mounted, capture_at, later, lines_below, spec, tar_below};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use lifeboat::base::stream::{ListingEntry, StreamKind};
use lifeboat::policy::model::FilesSpec;
use lifeboat::sources::{Captured, Sink, SourceError};
use sink::{Bench, MemorySink};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use tree::{records, run, scratch, text};

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
        self.run_at(later()).unwrap()
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
        let pieces = |sink: &MemorySink| {
            let mut left = ours.len() as u64;
            let mut pieces = sink.stream_of("files.tar").pieces;
            pieces.reverse();
            pieces.retain(|piece| {
                let fits = left >= piece.length();
                left = if fits { left - piece.length() } else { 0 };
                fits
            });
            pieces
        };
        assert!(pieces(&self.sink) == pieces(&fresh), "the same bytes are cut otherwise than in a run without memory");
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

fn many_files(dir: &Path, each: usize, random: &mut Random) {
    for d in 0..20 {
        fs::create_dir_all(dir.join(format!("d{d}"))).unwrap();
        for f in 0..each {
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
    many_files(&tree, 150, &mut random);
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

    // A file in each folder: of every group nearly all is as it was.
    for d in 0..20 {
        fs::write(tree.join(format!("d{d}/f{}", d * 7)), random.bytes(500)).unwrap();
    }
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

#[test]
fn every_group_is_read_again_within_thirty_days() {
    let (_guard, dir) = scratch();
    let (image, tree) = (dir.join("image"), dir.join("tree"));
    fs::create_dir(&tree).unwrap();
    fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    run(&["mkfs.ext4", "-q", "-O", "^has_journal", text(&image)]);
    let mounted = Mounted::new(&image, &tree);
    many_files(&tree, 150, &mut Random(2));
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
    // Two runs of one minute are runs of one day.
    let begun = later().duration_trunc(TimeDelta::days(1)).unwrap() + TimeDelta::hours(36);
    for day in 1..=30 {
        // Of a day's runs the first one does it.
        for (hour, mine) in [(0, true), (1, false)] {
            told.extend(runs.run_at(begun + TimeDelta::days(day) + TimeDelta::minutes(hour)).unwrap().warnings);
            if mine {
                reads.push(runs.read())
            } else {
                assert!(runs.read() < 0.001, "{} read on day {day}", runs.read())
            }
        }
    }
    assert!((0.9..6.0).contains(&reads.iter().sum::<f64>()), "{reads:?}");
    // After a month without a run all of them are due.
    runs.run_at(begun + TimeDelta::days(60)).unwrap();
    assert!(runs.read() > 0.99, "{}", runs.read());
    assert_eq!(told.iter().filter(|w| w.starts_with("content changed under ")).count(), 1, "{told:?}");
    runs.assert_same_as_fresh();
}

#[test]
fn what_may_still_change_unseen_is_not_remembered() {
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    let now = Utc::now();
    many_files(&tree, 150, &mut Random(3));
    let mut runs = Runs::new(&tree);
    runs.run_at(now + TimeDelta::seconds(1)).unwrap();
    runs.run();
    // Folders have no content that could change unseen; there are twenty of them, and those above.
    let only_folders = |sink: &MemorySink| sink.reused_bytes() < 40 * 2048;
    assert!(only_folders(&runs.sink), "the files were written within two seconds of the first run");
    for entry in walk(&tree) {
        if entry.is_file() {
            tree::set_mtime(&entry, now.timestamp() + 3_600, 0);
        }
    }
    runs.run();
    runs.run();
    assert!(only_folders(&runs.sink), "the files say that they are of the future");
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
        many_files(&tree, 25, &mut random);
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

/// Between two days one file in thirty is read again, and which one its path decides: then another path shows it.
#[test]
fn large_files_are_remembered_piece_by_piece() {
    assert!((0..5).any(|n| is_remembered_piece_by_piece(&format!("tree-{n}"))), "it is read again each time");
}

/// `false`: it was the file's turn to be read again.
fn is_remembered_piece_by_piece(name: &str) -> bool {
    let (_guard, dir) = scratch();
    let tree = dir.join(name);
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
    if runs.read() > 0.99 {
        return false;
    }
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
    if runs.read() > 0.99 {
        return false;
    }
    let read = runs.read();
    assert!((0.40..0.50).contains(&read), "{read}");
    assert!(runs.tar() == first);
    runs.run();
    if runs.read() > 0.99 {
        return false;
    }
    assert!(runs.read() < 0.01, "{}", runs.read());
    true
}
