//! A stream's bytes, read ahead in windows.

use super::fetch::{Answer, Checked, Job, Run};
use super::ids::IdsReader;
use super::{SnapshotReader, stream_error};
use crate::base::ids::ChunkId;
use crate::pipeline::limits;
use crate::repository::RepositoryError;
use crate::repository::chain::full_text;
use crate::repository::format::{SourceEntry, StreamEntry};
use crate::repository::table::Location;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, sync_channel};

/// How far is read ahead of the consumer, in bytes (see [`Run::weight`]).
#[derive(Clone, Copy)]
struct Ahead {
    most: usize,
    /// So much is asked for together: what of it lies close together is one request.
    window: usize,
}

impl Ahead {
    const FAR: Ahead = Ahead { most: 24 << 20, window: 8 << 20 };
    const NEAR: Ahead = Ahead { most: 12 << 20, window: 4 << 20 };
}

/// The plain bytes of one stream, in order, every one of them checked before it is handed out.
///
/// An i/o error of [`Read`] only says that something failed; [`StreamReader::take_failure`] says what.
pub struct StreamReader<'a> {
    reader: &'a SnapshotReader,
    source: &'a SourceEntry,
    stream: &'a StreamEntry,
    ids: IdsReader<'a>,
    peeked: Option<(ChunkId, Location)>,
    /// What has been asked for, in order.
    waiting: VecDeque<Waiting>,
    /// The weight of that, and its limits.
    ahead: usize,
    limits: Ahead,
    /// Nothing more is to be asked for.
    is_planned: bool,
    current: Checked,
    /// The next byte: in which chunk of what is current, and where in it.
    at: (usize, usize),
    position: u64,
    /// Where the bytes end that were asked for.
    until: u64,
    failure: Option<RepositoryError>,
    /// Once failed, always failed: what lies behind a gap is never handed on.
    failed: Option<String>,
    sha256: Option<Sha256>,
}

enum Waiting {
    Run(Receiver<Answer>, usize),
    /// What comes behind cannot be found; what comes before it is read all the same.
    Failure(RepositoryError),
}

impl<'a> StreamReader<'a> {
    /// From the chunk that `ids` stands at, until a place in the stream.
    pub(super) fn new(ids: IdsReader<'a>, until: u64, is_whole: bool) -> Self {
        let (reader, source, stream) = (ids.reader, ids.source, ids.stream);
        Self {
            reader,
            source,
            stream,
            position: ids.position,
            ids,
            peeked: None,
            waiting: VecDeque::new(),
            ahead: 0,
            limits: if reader.inner.repository.storage().is_far() { Ahead::FAR } else { Ahead::NEAR },
            is_planned: false,
            current: Checked::default(),
            at: (0, 0),
            until,
            failure: None,
            failed: None,
            sha256: (is_whole && stream.sha256.is_some()).then(Sha256::new),
        }
    }
}

impl StreamReader<'_> {
    /// Why reading failed.
    pub fn take_failure(&mut self) -> Option<RepositoryError> {
        self.failure.take()
    }

    fn next_chunk(&mut self) -> Result<Option<(ChunkId, Location)>, RepositoryError> {
        if let Some(peeked) = self.peeked.take() {
            return Ok(Some(peeked));
        }
        if self.ids.position >= self.until {
            return Ok(None);
        }
        let Some((id, length)) = self.ids.next()? else { return Ok(None) };
        let location = self.reader.inner.locate(&id, self.source, self.stream)?;
        if u64::from(location.length) != length {
            let problem = format!("chunk {id} has another length than the manifest says");
            return Err(stream_error(self.source, self.stream, problem));
        }
        Ok(Some((id, location)))
    }

    /// The next chunks that lie in one frame: so many that they weigh no more than the longest chunk, for they may be the
    /// same few bytes again and again.
    fn next_run(&mut self) -> Result<Option<Run>, RepositoryError> {
        let Some((id, first)) = self.next_chunk()? else { return Ok(None) };
        let frame = (first.frame_offset, first.frame_length);
        let mut run = Run { archive: first.archive, frame, chunks: vec![(id, first.offset, first.length)] };
        let mut weight = run.weight();
        while let Some((id, location)) = self.next_chunk()? {
            let same = location.archive == run.archive && (location.frame_offset, location.frame_length) == frame;
            if !same || weight + Run::weight_of(location.length) > limits::CHUNK {
                self.peeked = Some((id, location));
                break;
            }
            weight += Run::weight_of(location.length);
            run.chunks.push((id, location.offset, location.length));
        }
        Ok(Some(run))
    }

    /// Asks for the next windows, until enough is on its way.
    fn plan(&mut self) -> Result<(), RepositoryError> {
        while !self.is_planned && self.ahead <= self.limits.most - self.limits.window {
            let mut window = Vec::new();
            let mut length = 0;
            while length < self.limits.window {
                match self.next_run() {
                    Ok(Some(run)) => {
                        let (answer, receiver) = sync_channel(1);
                        let weight = run.weight();
                        self.waiting.push_back(Waiting::Run(receiver, weight));
                        length += weight;
                        window.push((run, answer));
                    }
                    Ok(None) => {
                        self.is_planned = true;
                        break;
                    }
                    Err(e) => {
                        self.waiting.push_back(Waiting::Failure(e));
                        self.is_planned = true;
                        break;
                    }
                }
            }
            self.ahead += length;
            let jobs = self.reader.jobs.as_ref().ok_or(RepositoryError::Worker)?;
            for job in Job::of(window) {
                jobs.send(job).map_err(|_| RepositoryError::Worker)?;
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<bool, RepositoryError> {
        self.plan()?;
        match self.waiting.pop_front() {
            Some(Waiting::Run(answer, weight)) => {
                self.current = answer.recv().map_err(|_| RepositoryError::Worker)??;
                self.ahead -= weight;
            }
            Some(Waiting::Failure(e)) => return Err(e),
            None => {
                self.check_end()?;
                return Ok(false);
            }
        }
        self.at = (0, 0);
        if let Some(hash) = &mut self.sha256 {
            self.current.chunks().for_each(|chunk| hash.update(chunk));
        }
        let length = self.current.length();
        self.position += length as u64;
        if let Some(excess) = self.position.checked_sub(self.until) {
            self.current.truncate(length.saturating_sub(excess as usize));
            self.position = self.until;
        }
        Ok(true)
    }

    /// Goes to the next chunk until one is not at its end; `false` behind the last one.
    fn settle(&mut self) -> io::Result<bool> {
        if let Some(text) = &self.failed {
            return Err(io::Error::other(text.clone()));
        }
        while self.rest().is_empty() {
            if self.current.chunk(self.at.0).is_some() {
                self.at = (self.at.0 + 1, 0);
                continue;
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(e) => {
                    let text = full_text(&e);
                    self.failure.get_or_insert(e);
                    self.failed = Some(text.clone());
                    return Err(io::Error::other(text));
                }
            }
        }
        Ok(true)
    }

    /// What is left of the current chunk.
    fn rest(&self) -> &[u8] {
        self.current.chunk(self.at.0).and_then(|chunk| chunk.get(self.at.1..)).unwrap_or_default()
    }

    fn check_end(&mut self) -> Result<(), RepositoryError> {
        if self.position != self.until {
            let problem = format!("it has {} bytes instead of {}", self.position, self.until);
            return Err(stream_error(self.source, self.stream, problem));
        }
        if let Some(hash) = self.sha256.take()
            && Some(hex::encode(hash.finalize())) != self.stream.sha256
        {
            return Err(stream_error(self.source, self.stream, "its SHA-256 is another one".to_owned()));
        }
        Ok(())
    }
}

impl Read for StreamReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut n = 0;
        // More chunks only as far as they are at hand.
        while n < out.len() && (n == 0 || self.current.chunk(self.at.0).is_some()) && self.settle()? {
            let part = self.rest().read(&mut out[n..])?;
            self.consume(part);
            n += part;
        }
        Ok(n)
    }
}

impl BufRead for StreamReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.settle()?;
        Ok(self.rest())
    }

    fn consume(&mut self, n: usize) {
        self.at.1 += n;
        if n > 0 && self.rest().is_empty() {
            self.at = (self.at.0 + 1, 0);
        }
    }
}
