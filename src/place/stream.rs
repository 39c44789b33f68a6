//! Between the engine's asynchronous streams and plain `Read` and `Write`: bounded channels, so that a slow reader
//! slows the other side down instead of filling memory.
//!
//! Invariant: an end of stream is told from a stream that broke off. A clean end is an item of its own (empty bytes);
//! a channel that just closes is an error.

use super::PlaceError;
use super::docker::run_on;
use super::watch::{TICK, Watch};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::io::{self, Read, Write};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Pieces in flight to a reader; the engine's frames are up to 32 KiB.
pub(super) const READ_PIECES: usize = 8;
/// Pieces in flight from a writer, and their size.
pub(super) const WRITE_PIECES: usize = 4;
const WRITE_PIECE_BYTES: usize = 64 << 10;

pub(super) type Item = Result<Bytes, PlaceError>;

/// Reads what a task sends, observing the limits of the watch.
pub(super) struct ChannelReader {
    items: mpsc::Receiver<Item>,
    current: Bytes,
    ended: bool,
    handle: Handle,
    watch: Arc<Watch>,
}

impl ChannelReader {
    pub(super) fn new(handle: Handle, watch: Arc<Watch>) -> (mpsc::Sender<Item>, Self) {
        let (sender, items) = mpsc::channel(READ_PIECES);
        (sender, Self { items, current: Bytes::new(), ended: false, handle, watch })
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.watch.touch();
        while self.current.is_empty() && !self.ended {
            self.watch.check_io()?;
            let item = match self.items.try_recv() {
                Ok(item) => Some(item),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    let next = run_on(&self.handle, async { tokio::time::timeout(TICK, self.items.recv()).await });
                    match next {
                        Ok(item) => item,
                        Err(_) => continue,
                    }
                }
            };
            match item {
                Some(Ok(bytes)) if bytes.is_empty() => self.ended = true,
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => {
                    self.watch.check_io()?;
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the engine's stream broke off"));
                }
            }
        }
        let n = self.current.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}

/// Reads a stream of the engine by a task of its own.
pub(super) fn pump_stream(
    handle: &Handle,
    watch: Arc<Watch>,
    stream: impl Stream<Item = Item> + Send + 'static,
) -> ChannelReader {
    let (sender, reader) = ChannelReader::new(handle.clone(), watch.clone());
    handle.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(item) = stream.next().await {
            watch.touch();
            let failed = item.is_err();
            // Empty bytes mean the end here, so an empty piece of the engine must not pass.
            if matches!(&item, Ok(bytes) if bytes.is_empty()) {
                continue;
            }
            // A reader that went away wants no more.
            if sender.send(item).await.is_err() || failed {
                return;
            }
        }
        let _ = sender.send(Ok(Bytes::new())).await;
    });
    reader
}

/// Writes into a channel that a task empties, observing the limits of the watch. Dropping it ends the input.
pub(super) struct ChannelWriter {
    pieces: mpsc::Sender<Bytes>,
    handle: Handle,
    watch: Arc<Watch>,
}

impl ChannelWriter {
    pub(super) fn new(handle: Handle, watch: Arc<Watch>) -> (Self, mpsc::Receiver<Bytes>) {
        let (pieces, receiver) = mpsc::channel(WRITE_PIECES);
        (Self { pieces, handle, watch }, receiver)
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(WRITE_PIECE_BYTES);
        if n == 0 {
            return Ok(0);
        }
        loop {
            self.watch.check_io()?;
            let room = async { tokio::time::timeout(TICK, self.pieces.reserve()).await };
            match run_on(&self.handle, room) {
                Ok(Ok(permit)) => {
                    permit.send(Bytes::copy_from_slice(&bytes[..n]));
                    self.watch.touch();
                    return Ok(n);
                }
                Ok(Err(_closed)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_late) => {}
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
