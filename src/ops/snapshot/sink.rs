//! What sources write to: the repository's streams, and the memo of unchanged files.

use super::Scene;
use crate::base::events::{Event, Events};
use crate::base::ids::{SourceName, StreamName};
use crate::base::stream::StreamKind;
use crate::repository::format::{Encoding, StreamEntry};
use crate::repository::state;
use crate::repository::writer::StreamWriter;
use crate::sources::{Memo, Piece, Sink, StreamSink};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// A source's streams, on their way into the repository.
pub(super) struct RepositorySink<'a> {
    pub scene: &'a Scene<'a>,
    pub source: &'a SourceName,
    pub streams: Mutex<Vec<StreamEntry>>,
}

impl Sink for RepositorySink<'_> {
    fn stream(
        &self,
        name: StreamName,
        kind: StreamKind,
        expected_bytes: Option<u64>,
    ) -> io::Result<Box<dyn StreamSink + '_>> {
        let taken = self.streams.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|s| s.name == name);
        if taken {
            return Err(io::Error::other(format!("stream {name} has been written already")));
        }
        let writer = self.scene.writer.stream(self.source.as_str(), name.as_str(), kind, expected_bytes);
        Ok(Box::new(RepositoryStream { sink: self, name, kind, writer, told: 0 }))
    }
}

struct RepositoryStream<'a> {
    sink: &'a RepositorySink<'a>,
    name: StreamName,
    kind: StreamKind,
    writer: StreamWriter<'a>,
    told: u64,
}

/// Events are sent once for so many bytes: a progress bar needs no more.
const TELL_EVERY: u64 = 1 << 20;

impl RepositoryStream<'_> {
    fn tell(&mut self, bytes: u64, reused: bool) {
        let source = self.sink.source.clone();
        events(self.sink).send(Event::Bytes { source, bytes, reused });
    }

    fn took(&mut self, piece: &Piece, taken: bool) -> bool {
        if taken {
            self.told += piece.length();
            self.tell(piece.length(), true);
        }
        taken
    }

    fn tell_rest(&mut self, at_least: u64) {
        let rest = self.writer.position() - self.told;
        if rest >= at_least && rest > 0 {
            self.told += rest;
            self.tell(rest, false);
        }
    }
}

fn events<'a>(sink: &RepositorySink<'a>) -> &'a Events {
    &sink.scene.run.events
}

impl Write for RepositoryStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.writer.write(bytes)?;
        self.tell_rest(TELL_EVERY);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl StreamSink for RepositoryStream<'_> {
    fn end_piece(&mut self) -> io::Result<Piece> {
        Ok(Piece { chunks: self.writer.end_piece()? })
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        self.writer.end_chunk()
    }

    fn expect(&mut self, piece: &Piece) {
        self.writer.expect(&piece.chunks);
    }

    fn reuse_piece(&mut self, piece: &Piece) -> io::Result<bool> {
        let taken = self.writer.reuse_piece(&piece.chunks)?;
        Ok(self.took(piece, taken))
    }

    fn reuse_part(&mut self, part: &Piece) -> io::Result<bool> {
        let taken = self.writer.reuse_part(&part.chunks)?;
        Ok(self.took(part, taken))
    }

    fn position(&self) -> u64 {
        self.writer.position()
    }

    fn cut(&self) -> u32 {
        self.writer.way()
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.tell_rest(1);
        let RepositoryStream { sink, name, kind, writer, .. } = *self;
        let parts = writer.finish()?;
        let entry = StreamEntry {
            name,
            kind,
            encoding: Encoding::Plain,
            length: parts.length,
            sha256: parts.sha256,
            chunk_average: parts.average.bytes(),
            ids: parts.ids,
        };
        sink.streams.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        Ok(())
    }
}

/// The memo as sources see it.
pub(super) struct MemoOfSource<'a>(pub &'a state::Memo);

impl Memo for MemoOfSource<'_> {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.get(key)
    }

    fn put(&self, key: &str, value: &[u8]) {
        self.0.put(key, value);
    }
}
