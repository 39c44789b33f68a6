//! What a capture makes of files that change, vanish and shrink under it.

#[path = "support/capture.rs"]
mod capture;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/tree.rs"]
mod tree;

use capture::{EVERYTHING, capture_at, extract, later, listing, source, spec};
use lifeboat::base::ids::StreamName;
use lifeboat::base::stream::StreamKind;
use lifeboat::sources::{Capture, Piece, Sink, Source, StreamSink};
use sink::{Bench, MemorySink};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tree::{assert_same, inside, records, run, scratch, text};

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
    let now = later();
    let cx = Capture { sink: &meddling, now, ..bench.capture(sink) };
    let captured = source(spec(&[tree]), &[]).capture(&cx).unwrap();
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
    capture_at(&bench, &again, spec(&[&tree]), later()).unwrap();
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
    for name in ["z", "c-first"] {
        assert!(warnings.iter().any(|w| w.ends_with(&format!("/{name} vanished while it was read"))), "{warnings:?}");
    }
    let found = records(&got);
    // The walk was there before the folder went; there is nothing of it to be read later.
    assert_eq!(found.keys().map(|p| text(p)).collect::<Vec<_>>(), ["", "a", "b", "d-second", "e-third", "y-dir"]);
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
        capture_at(&bench, &again, spec(&[&tree]), later()).unwrap();
        let (_guard, to) = scratch();
        extract(&again.bytes("files.tar"), &to, EVERYTHING);
        assert_same(&records(&tree), &records(&to.join(inside(&tree))));
    }
    assert!(seen > 0);
}
