//! Frames on their way: fetched in pieces by a few threads, opened, and every chunk checked by its keyed id.
//!
//! Whoever reads a stream asks for windows of it; what of a window lies close together in an archive becomes one job,
//! and so one request to the storage. Each run of a job is answered for itself, in the order of the stream.

use super::{Inner, lock};
use crate::base::ids::ChunkId;
use crate::repository::frames::{Piece, Place, together};
use crate::repository::{RepositoryError, layout};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};

/// Bytes of memory that a run takes beside its content, and each of its chunks: a stream may be cut into single bytes.
const RUN_WEIGHT: usize = 512;
const CHUNK_WEIGHT: usize = 64;

/// Chunks of one frame that follow each other in a stream.
pub(super) struct Run {
    pub archive: u32,
    pub frame: Place,
    /// Id, offset in the frame, length.
    pub chunks: Vec<(ChunkId, u32, u32)>,
}

impl Run {
    /// What a chunk of this length counts.
    pub fn weight_of(length: u32) -> usize {
        CHUNK_WEIGHT + length as usize
    }

    /// What it counts while it is on its way: its plain bytes, and what goes with any of them.
    pub fn weight(&self) -> usize {
        RUN_WEIGHT + self.chunks.iter().map(|(_, _, length)| Self::weight_of(*length)).sum::<usize>()
    }
}

/// The chunks of a run, each of them checked. Mostly they are all of their frame and stay where they lie in it; of a frame
/// with little else in it for this stream they are copied out, or thousands of frames would wait for the reader.
#[derive(Default)]
pub(super) struct Checked {
    frame: Arc<Vec<u8>>,
    /// Offset and length, within the frame.
    chunks: Vec<(usize, usize)>,
}

impl Checked {
    pub fn length(&self) -> usize {
        self.chunks.iter().map(|(_, length)| length).sum()
    }

    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.chunks.len()).filter_map(|at| self.chunk(at))
    }

    pub fn chunk(&self, at: usize) -> Option<&[u8]> {
        let (offset, length) = *self.chunks.get(at)?;
        self.frame.get(offset..)?.get(..length)
    }

    /// The same, without the rest of the frame.
    fn copied(&self) -> Checked {
        let mut bytes = Vec::with_capacity(self.length());
        let mut chunks = Vec::with_capacity(self.chunks.len());
        for chunk in self.chunks() {
            chunks.push((bytes.len(), chunk.len()));
            bytes.extend_from_slice(chunk);
        }
        Checked { frame: Arc::new(bytes), chunks }
    }

    /// Leaves out what lies behind the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        let mut left = length;
        for (_, length) in &mut self.chunks {
            *length = left.min(*length);
            left -= *length;
        }
    }
}

pub(super) type Answer = Result<Checked, RepositoryError>;

/// Runs that are fetched in one piece, in the order of the stream, and where each answer goes.
pub(super) struct Job {
    archive: u32,
    runs: Vec<(Run, SyncSender<Answer>)>,
}

impl Job {
    /// The jobs of a window. The first one has the window's first run.
    pub fn of(window: Vec<(Run, SyncSender<Answer>)>) -> Vec<Job> {
        let mut places: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
        for (run, _) in &window {
            places.entry(run.archive).or_default().push(run.frame);
        }
        // The number of the piece that each frame is in.
        let mut pieces: BTreeMap<(u32, Place), usize> = BTreeMap::new();
        let mut count = 0;
        for (archive, places) in &mut places {
            places.sort_unstable();
            places.dedup();
            for group in together(places) {
                pieces.extend(places[group].iter().map(|place| ((*archive, *place), count)));
                count += 1;
            }
        }
        let mut jobs: Vec<Job> = Vec::new();
        let mut job_of: BTreeMap<usize, usize> = BTreeMap::new();
        for (run, answer) in window {
            let piece = pieces.get(&(run.archive, run.frame)).copied().unwrap_or(count);
            let at = *job_of.entry(piece).or_insert_with(|| {
                jobs.push(Job { archive: run.archive, runs: Vec::new() });
                jobs.len() - 1
            });
            jobs[at].runs.push((run, answer));
        }
        jobs
    }
}

impl Inner {
    pub(super) fn work(&self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let job = lock(jobs).recv();
            let Ok(job) = job else { return };
            self.serve(job);
        }
    }

    fn serve(&self, job: Job) {
        let frames: Vec<Place> = job.runs.iter().map(|(run, _)| run.frame).collect();
        let mut piece = self.piece(job.archive, &frames);
        for (run, answer) in job.runs {
            // Whoever hears of a failure reads no further: the runs behind it are not answered.
            let (result, ends) = match &piece {
                Ok(piece) => (self.read_run(&run, piece.as_ref()), false),
                Err(_) => (std::mem::replace(&mut piece, Ok(None)).map(|_| Checked::default()), true),
            };
            // Nobody waits any more when the stream was dropped.
            if answer.send(result).is_err() || ends {
                return;
            }
        }
    }

    fn piece(&self, archive: u32, frames: &[Place]) -> Result<Option<Piece>, RepositoryError> {
        self.cancel.check()?;
        self.frames.fetch(&self.archive(archive)?, frames)
    }

    /// A run, every chunk of it checked by its keyed id.
    pub(super) fn read_run(&self, run: &Run, piece: Option<&Piece>) -> Answer {
        self.cancel.check()?;
        let archive = self.archive(run.archive)?;
        let frame = self.frames.frame_of(piece, &archive, run.frame)?;
        let mut chunks = Vec::with_capacity(run.chunks.len());
        for (id, offset, length) in &run.chunks {
            let (offset, length) = (*offset as usize, *length as usize);
            let chunk = frame.get(offset..).and_then(|rest| rest.get(..length));
            if chunk.is_none_or(|chunk| self.key.id(chunk) != *id) {
                return Err(RepositoryError::Damaged {
                    key: layout::archive(archive.id),
                    problem: format!("chunk {id} is not where the index says, or not what its id promises"),
                });
            }
            chunks.push((offset, length));
        }
        let checked = Checked { frame, chunks };
        Ok(if checked.frame.len() > 2 * checked.length() { checked.copied() } else { checked })
    }

    /// Fetches frames and keeps them, so that they are at hand when they are read.
    pub(super) fn keep(&self, archive: u32, places: &[Place]) -> Result<(), RepositoryError> {
        let piece = self.piece(archive, places)?;
        let archive = self.archive(archive)?;
        for place in places {
            self.frames.frame_of(piece.as_ref(), &archive, *place)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    fn window(places: &[(u32, u32)]) -> Vec<Job> {
        let run = |(archive, offset): &(u32, u32)| {
            let chunks = vec![(ChunkId([0; 32]), 0, 10)];
            (Run { archive: *archive, frame: (*offset, 1000), chunks }, sync_channel(1).0)
        };
        Job::of(places.iter().map(run).collect())
    }

    #[test]
    fn what_lies_behind_the_end_is_left_out() {
        let whole = || Checked { frame: Arc::new(b"-abc-defg-".to_vec()), chunks: vec![(1, 3), (5, 4)] };
        let cut = |length: usize| {
            let mut checked = whole();
            checked.truncate(length);
            assert_eq!(checked.length(), length);
            checked.chunks().collect::<Vec<_>>().concat()
        };
        assert_eq!(
            (cut(0), cut(2), cut(3), cut(5), cut(7)),
            (b"".to_vec(), b"ab".to_vec(), b"abc".to_vec(), b"abcde".to_vec(), b"abcdefg".to_vec())
        );
    }

    #[test]
    fn what_is_copied_out_is_the_same_and_no_more() {
        let frame = (0..=255).collect::<Vec<u8>>();
        let checked = Checked { frame: Arc::new(frame), chunks: vec![(200, 3), (7, 0), (5, 4)] };
        let copied = checked.copied();
        assert_eq!(copied.chunks().collect::<Vec<_>>(), checked.chunks().collect::<Vec<_>>());
        assert_eq!(copied.frame.len(), 7);
    }

    #[test]
    fn a_window_becomes_one_job_for_each_place_in_the_order_of_the_stream() {
        let jobs = window(&[(7, 5000), (7, 3000), (2, 0), (7, 4000), (7, 5000), (7, 50 << 20)]);
        let seen: Vec<(u32, Vec<u32>)> =
            jobs.iter().map(|job| (job.archive, job.runs.iter().map(|(run, _)| run.frame.0).collect())).collect();
        assert_eq!(seen, [(7, vec![5000, 3000, 4000, 5000]), (2, vec![0]), (7, vec![50 << 20])]);
    }
}
