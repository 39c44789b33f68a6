//! A sink and a memo in memory, for tests of sources without a repository.
//!
//! Chunks are fixed runs of [`CHUNK_BYTES`], named by plain BLAKE3. [`MemorySink::next_run`] keeps the chunks and drops the
//! streams: what a second snapshot into the same repository sees.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::base::ids::{ChunkId, DedupKeyId, RecipientSetId, SnapshotId, StreamName};
use lifeboat::base::stream::StreamKind;
use lifeboat::sources::{Capture, Memo, MemoKey, Piece, Sink, StreamSink};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub const CHUNK_BYTES: usize = 4096;

/// One finished stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredStream {
    pub kind: StreamKind,
    pub bytes: Vec<u8>,
    /// The pieces as they ended, reused ones included.
    pub pieces: Vec<Piece>,
}

#[derive(Default)]
pub struct MemorySink {
    streams: Mutex<BTreeMap<String, StoredStream>>,
    chunks: Mutex<BTreeMap<[u8; 32], Vec<u8>>>,
    reused_bytes: AtomicU64,
    /// After so many bytes every write fails as a full repository does.
    pub fail_after_bytes: Option<u64>,
    written_bytes: AtomicU64,
}

impl MemorySink {
    pub fn new() -> Self {
        Self::default()
    }

    /// The finished streams so far, by name.
    pub fn streams(&self) -> BTreeMap<String, StoredStream> {
        self.streams.lock().unwrap().clone()
    }

    /// Names of the finished streams, sorted.
    pub fn names(&self) -> Vec<String> {
        self.streams.lock().unwrap().keys().cloned().collect()
    }

    /// The bytes of one finished stream; panics with the names there are.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.stream_of(name).bytes
    }

    pub fn stream_of(&self, name: &str) -> StoredStream {
        let streams = self.streams.lock().unwrap();
        streams.get(name).unwrap_or_else(|| panic!("no stream {name:?} in {:?}", streams.keys())).clone()
    }

    /// Bytes taken over without being read, in this run.
    pub fn reused_bytes(&self) -> u64 {
        self.reused_bytes.load(Ordering::SeqCst)
    }

    /// Bytes that were written, in this run.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::SeqCst)
    }

    /// A sink for a second snapshot into the same repository: chunks stay, streams go.
    pub fn next_run(&self) -> Self {
        Self { chunks: Mutex::new(self.chunks.lock().unwrap().clone()), ..Self::default() }
    }

    /// The repository loses all chunks, as after a repair: nothing can be reused any more.
    pub fn lose_chunks(&self) {
        self.chunks.lock().unwrap().clear();
    }
}

impl Sink for MemorySink {
    fn stream(
        &self,
        name: StreamName,
        kind: StreamKind,
        _expected_bytes: Option<u64>,
    ) -> io::Result<Box<dyn StreamSink + '_>> {
        if self.streams.lock().unwrap().contains_key(name.as_str()) {
            return Err(io::Error::other(format!("stream {name} twice")));
        }
        Ok(Box::new(MemoryStream {
            sink: self,
            name,
            kind,
            bytes: Vec::new(),
            piece_begin: 0,
            open: Piece::default(),
            pieces: Vec::new(),
            expected: None,
        }))
    }
}

struct MemoryStream<'a> {
    sink: &'a MemorySink,
    name: StreamName,
    kind: StreamKind,
    bytes: Vec<u8>,
    /// Where the bytes begin that are not in a chunk of `open` yet.
    piece_begin: usize,
    open: Piece,
    pieces: Vec<Piece>,
    expected: Option<Piece>,
}

impl MemoryStream<'_> {
    fn content(&self, piece: &Piece) -> Option<Vec<u8>> {
        let chunks = self.sink.chunks.lock().unwrap();
        let found: Option<Vec<&[u8]>> =
            piece.chunks.iter().map(|(id, _)| chunks.get(&id.0).map(Vec::as_slice)).collect();
        Some(found?.concat())
    }

    fn cut(&mut self, up_to: usize) {
        let chunk = self.bytes[self.piece_begin..up_to].to_vec();
        let id = *blake3::hash(&chunk).as_bytes();
        self.open.chunks.push((ChunkId(id), chunk.len() as u32));
        self.sink.chunks.lock().unwrap().insert(id, chunk);
        self.piece_begin = up_to;
    }
}

impl Write for MemoryStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.written_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst) + bytes.len() as u64;
        if self.sink.fail_after_bytes.is_some_and(|limit| written > limit) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left in the repository"));
        }
        self.bytes.extend_from_slice(bytes);
        while self.bytes.len() - self.piece_begin >= CHUNK_BYTES {
            self.cut(self.piece_begin + CHUNK_BYTES);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamSink for MemoryStream<'_> {
    fn end_piece(&mut self) -> io::Result<Piece> {
        if self.bytes.len() > self.piece_begin {
            self.cut(self.bytes.len());
        }
        let piece = std::mem::take(&mut self.open);
        // Whoever expects a piece knows how it will be cut.
        if let Some(expected) = self.expected.take()
            && let Some(content) = self.content(&expected)
            && self.bytes.ends_with(&content)
            && content.len() as u64 == piece.length()
        {
            assert!(expected == piece, "the same bytes were cut otherwise");
        }
        self.pieces.push(piece.clone());
        Ok(piece)
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        if self.bytes.len() > self.piece_begin {
            self.cut(self.bytes.len());
        }
        Ok(())
    }

    fn expect(&mut self, piece: &Piece) {
        self.expected = Some(piece.clone());
    }

    fn reuse_part(&mut self, part: &Piece) -> io::Result<bool> {
        if self.bytes.len() > self.piece_begin {
            return Err(io::Error::other("reuse_part inside a chunk"));
        }
        let Some(content) = self.content(part) else { return Ok(false) };
        self.bytes.extend_from_slice(&content);
        self.piece_begin = self.bytes.len();
        self.sink.reused_bytes.fetch_add(part.length(), Ordering::SeqCst);
        self.open.chunks.extend_from_slice(&part.chunks);
        Ok(true)
    }

    fn reuse_piece(&mut self, piece: &Piece) -> io::Result<bool> {
        if self.bytes.len() > self.piece_begin || !self.open.chunks.is_empty() {
            return Err(io::Error::other("reuse_piece inside a piece"));
        }
        let Some(content) = self.content(piece) else { return Ok(false) };
        self.bytes.extend_from_slice(&content);
        self.piece_begin = self.bytes.len();
        self.sink.reused_bytes.fetch_add(piece.length(), Ordering::SeqCst);
        self.pieces.push(piece.clone());
        Ok(true)
    }

    fn position(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if self.bytes.len() > self.piece_begin || !self.open.chunks.is_empty() {
            self.end_piece()?;
        }
        let stream = StoredStream { kind: self.kind, bytes: self.bytes, pieces: self.pieces };
        self.sink.streams.lock().unwrap().insert(self.name.to_string(), stream);
        Ok(())
    }
}

/// A memo that lives as long as the test.
#[derive(Default)]
pub struct MemoryMemo(Mutex<BTreeMap<String, Vec<u8>>>);

impl MemoryMemo {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn keys(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

impl Memo for MemoryMemo {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(key).cloned()
    }

    fn put(&self, key: &str, value: &[u8]) {
        self.0.lock().unwrap().insert(key.to_owned(), value.to_vec());
    }
}

/// All that a capture needs besides the sink; `capture` lends it out.
pub struct Bench {
    pub memo: MemoryMemo,
    pub events: Events,
    pub cancel: Cancel,
    pub snapshot: SnapshotId,
    pub force: bool,
    pub memo_key: MemoKey,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            memo: MemoryMemo::new(),
            events: Events::none(),
            cancel: Cancel::new(),
            snapshot: "20261119T020000Z-1a2b3c4d".parse().unwrap(),
            force: false,
            memo_key: MemoKey { dedup: DedupKeyId([1; 32]), recipients: RecipientSetId([2; 32]) },
        }
    }

    pub fn capture<'a>(&'a self, sink: &'a MemorySink) -> Capture<'a> {
        Capture {
            sink,
            memo: &self.memo,
            events: &self.events,
            cancel: &self.cancel,
            now: chrono::Utc::now(),
            snapshot: &self.snapshot,
            force: self.force,
            memo_key: self.memo_key,
            fact_key: &[7; 32],
        }
    }
}

#[test]
fn pieces_are_taken_over_from_an_earlier_run() {
    let first = MemorySink::new();
    let mut stream = first.stream("a.tar".parse().unwrap(), StreamKind::Tar, None).unwrap();
    stream.write_all(&[1; 10_000]).unwrap();
    let one = stream.end_piece().unwrap();
    stream.write_all(&[2; 10]).unwrap();
    let two = stream.end_piece().unwrap();
    stream.finish().unwrap();
    assert_eq!((one.length(), one.chunks.len(), two.length()), (10_000, 3, 10));

    let second = first.next_run();
    let mut stream = second.stream("a.tar".parse().unwrap(), StreamKind::Tar, None).unwrap();
    assert!(stream.reuse_piece(&one).unwrap() && stream.reuse_piece(&two).unwrap());
    assert_eq!(stream.position(), 10_010);
    stream.finish().unwrap();
    assert_eq!(second.bytes("a.tar"), first.bytes("a.tar"));
    assert_eq!(second.reused_bytes(), 10_010);

    second.lose_chunks();
    let mut stream = second.stream("b.tar".parse().unwrap(), StreamKind::Tar, None).unwrap();
    assert!(!stream.reuse_piece(&one).unwrap());
    drop(stream);
    assert_eq!(second.names(), ["a.tar"], "a stream that was not finished is none");
}
