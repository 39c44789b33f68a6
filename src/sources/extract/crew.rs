//! The threads that write files while the archive is read on.
//!
//! Whoever reads the archive creates folders, links and special files itself, and hands over the content of files. A
//! folder gets its own metadata when the way has led out of it *and* the last file in it is there: [`Folder`] does so
//! when nobody holds it any more; a large file likewise, see [`Large`]. What could depend on the order waits until
//! everything handed over is done ([`Crew::settle`]): hard links, and entries whose path, or the path of a folder above,
//! is on its way.
//!
//! Memory is bounded: [`AHEAD`] handfuls of [`BUFFER`] bytes wait, metadata included, and each thread has one more; what is
//! said of entries is counted, and listed where it is among the first of its sort.

use super::ExtractError;
use super::dirs::{Id, open_new};
use super::lay::Options;
use super::metadata::{self, Wanted};
use super::report::{Aspect, Outcomes, Report, Severity, Turn};
use crate::base::cancel::Cancel;
use crate::base::direct::{self, Aligned};
use crate::base::threads;
use crate::sources::files::entry::{Entry, Time};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Bytes that are handed over together.
pub(super) const BUFFER: usize = 512 << 10;
/// Small files that are.
const TOGETHER: usize = 32;
/// Handfuls that wait.
const AHEAD: usize = 8;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all threads share.
pub(super) struct Shared {
    destination: PathBuf,
    options: Options,
    cancel: Cancel,
    /// Files that this run has made.
    pub made: Mutex<HashSet<Id>>,
    /// What is said of entries that were handed over.
    outcomes: Mutex<Outcomes>,
    /// The first failure; with it nothing more is written.
    failure: Mutex<Option<ExtractError>>,
    failed: AtomicBool,
    /// Handfuls on their way, and the hashes of their files' paths.
    pending: Mutex<(usize, HashSet<u64>)>,
    done: Condvar,
    /// Buffers to be used again: fresh memory costs a page fault for every four KiB.
    spare: Mutex<Vec<Aligned>>,
}

impl Shared {
    fn fail(&self, e: ExtractError) {
        self.failed.store(true, Ordering::SeqCst);
        lock(&self.failure).get_or_insert(e);
    }

    fn tell(&self, turn: Turn, report: Report) {
        if report != Report::default() {
            lock(&self.outcomes).add(turn, report);
        }
    }

    fn file_error(&self, action: &'static str, path: &[u8], e: impl Into<io::Error>) -> ExtractError {
        ExtractError::File { action, path: self.destination.join(OsStr::from_bytes(path)), source: e.into() }
    }
}

/// What a folder gets when the way leads out of it.
pub(super) enum Pending {
    Nothing,
    /// It was finished before, and gets its time again.
    Time(Time),
    Entry(Box<Entry>),
}

/// An open folder. The last one to let go of it gives it its metadata.
pub(super) struct Folder {
    dir: OwnedFd,
    shared: Arc<Shared>,
    last: Mutex<Option<(Turn, Pending)>>,
}

impl Folder {
    pub fn new(dir: OwnedFd, shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { dir, shared: shared.clone(), last: Mutex::new(None) })
    }

    /// The way leads out of it.
    pub fn leave(self: Arc<Self>, turn: Turn, pending: Pending) {
        *lock(&self.last) = Some((turn, pending));
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some((turn, pending)) = lock(&self.last).take() else { return };
        let mut report = Report::default();
        match pending {
            Pending::Nothing => {}
            Pending::Time(time) => {
                // A courtesy to a folder that was finished before; its owner may have taken the right away.
                let _ = metadata::set_time(&self.dir, time);
            }
            Pending::Entry(entry) => {
                let wanted = Wanted::of(&self.shared.options);
                if let Err(e) = metadata::apply_to_file(self.dir.as_fd(), &entry, wanted, &mut report) {
                    self.shared.fail(self.shared.file_error("read", &entry.path, e));
                }
            }
        }
        self.shared.tell(turn, report);
    }
}

/// A file whose content is at hand.
pub(super) struct Small {
    pub turn: Turn,
    pub folder: Arc<Folder>,
    pub name: Vec<u8>,
    pub entry: Entry,
    pub content: Vec<u8>,
    /// Hash of its path.
    pub way: u64,
}

/// A file that is written in parts, in any order. The last one to let go of it finishes it; one that is not complete is
/// removed, because half a file must not look like one.
pub(super) struct Large {
    pub turn: Turn,
    pub folder: Arc<Folder>,
    pub name: Vec<u8>,
    pub entry: Entry,
    pub file: File,
    /// It is written past the page cache, and may be too long until it is complete.
    pub direct: bool,
    /// Every part of it has been handed over.
    pub complete: AtomicBool,
    /// Hash of its path.
    pub way: u64,
}

impl Large {
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.direct {
            direct::write_padded(&self.file, bytes, offset)
        } else {
            self.file.write_all_at(bytes, offset)
        }
    }

    /// It is ours: it was created a moment ago under this very name.
    fn remove(&self) {
        let _ = rustix::fs::unlinkat(&*self.folder, OsStr::from_bytes(&self.name), AtFlags::empty());
    }

    fn finish(&self, shared: &Shared) -> Result<Report, ExtractError> {
        if self.direct {
            direct::switch(&self.file, false);
            self.file.set_len(self.entry.size).map_err(|e| shared.file_error("write", &self.entry.path, e))?;
        }
        finish(shared, &self.file, &self.entry)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let shared = &self.folder.shared;
        if self.complete.load(Ordering::SeqCst) && !shared.failed.load(Ordering::SeqCst) {
            match self.finish(shared) {
                Ok(report) => shared.tell(self.turn, report),
                Err(e) => {
                    self.remove();
                    shared.fail(e);
                }
            }
        } else {
            self.remove();
        }
        lock(&shared.pending).1.remove(&self.way);
    }
}

/// Gives a file that has its content everything else.
fn finish(shared: &Shared, file: &File, entry: &Entry) -> Result<Report, ExtractError> {
    let mut report = Report { entries: 1, bytes: entry.size, ..Report::default() };
    let stat = metadata::apply_to_file(file.as_fd(), entry, Wanted::of(&shared.options), &mut report)
        .map_err(|e| shared.file_error("read", &entry.path, e))?;
    lock(&shared.made).insert((stat.st_dev, stat.st_ino));
    Ok(report)
}

enum Job {
    Files(Vec<Small>),
    Part { file: Arc<Large>, offset: u64, bytes: Aligned },
}

impl Job {
    fn run(self, shared: &Shared) {
        match self {
            Job::Files(files) => {
                for small in files {
                    if !shared.failed.load(Ordering::SeqCst) {
                        small.write(shared);
                    }
                    lock(&shared.pending).1.remove(&small.way);
                }
            }
            Job::Part { file, offset, bytes } => {
                if !shared.failed.load(Ordering::SeqCst)
                    && let Err(e) = file.write(&bytes, offset)
                {
                    shared.fail(shared.file_error("write", &file.entry.path, e));
                }
                drop(file);
                lock(&shared.spare).push(bytes);
            }
        }
    }
}

impl Small {
    fn write(&self, shared: &Shared) {
        let name = OsStr::from_bytes(&self.name);
        let mut report = Report::default();
        let file = match open_new(self.folder.as_fd(), name, new_file(), Mode::RUSR | Mode::WUSR) {
            Ok(file) => file,
            Err(e) => {
                match not_created(&self.entry, e) {
                    Some((severity, what)) => {
                        report.add(severity, Aspect::of(&self.entry.kind), &self.entry.path, what)
                    }
                    None => shared.fail(shared.file_error("create", &self.entry.path, e)),
                }
                return shared.tell(self.turn, report);
            }
        };
        let mut file = File::from(file);
        let written = file.write_all(&self.content).map_err(|e| shared.file_error("write", &self.entry.path, e));
        match written.and_then(|()| finish(shared, &file, &self.entry)) {
            Ok(report) => shared.tell(self.turn, report),
            Err(e) => {
                // Half a file must not look like one. It is ours: it was created a moment ago under this very name.
                let _ = rustix::fs::unlinkat(&*self.folder, name, AtFlags::empty());
                shared.fail(e);
            }
        }
    }
}

/// How a file is created.
pub(super) fn new_file() -> OFlags {
    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Why an entry cannot be created although the extraction goes on; `None` ends it.
pub(super) fn not_created(entry: &Entry, e: Errno) -> Option<(Severity, String)> {
    match e {
        Errno::EXIST | Errno::LOOP => Some((Severity::Refused, "something has taken its place meanwhile".into())),
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => {
            Some((Severity::Missing, format!("this file system does not take the name: {}", io::Error::from(e))))
        }
        Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP => {
            Some((Severity::Missing, format!("{} not created: {}", entry.kind.noun(), io::Error::from(e))))
        }
        _ => None,
    }
}

/// The threads, and what waits for them.
pub(super) struct Crew {
    pub shared: Arc<Shared>,
    /// Small files that are handed over together.
    batch: Vec<Small>,
    batch_bytes: usize,
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// There are no threads to be had.
    is_alone: bool,
    turns: u64,
}

impl Crew {
    pub fn new(destination: &Path, options: Options, cancel: &Cancel) -> Self {
        let shared = Shared {
            destination: destination.to_owned(),
            options,
            cancel: cancel.clone(),
            made: Mutex::default(),
            outcomes: Mutex::default(),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
            pending: Mutex::default(),
            done: Condvar::new(),
            spare: Mutex::default(),
        };
        let (batch, threads) = (Vec::new(), Vec::new());
        Self { shared: Arc::new(shared), batch, batch_bytes: 0, jobs: None, threads, is_alone: false, turns: 0 }
    }

    /// The next turn, behind so many differences.
    pub fn turn(&mut self, differences: usize) -> Turn {
        self.turns += 1;
        (differences, self.turns)
    }

    /// Whether one of these paths is that of a file on its way.
    pub fn is_pending(&self, mut ways: impl Iterator<Item = u64>) -> bool {
        let pending = lock(&self.shared.pending);
        !pending.1.is_empty() && ways.any(|way| pending.1.contains(&way))
    }

    /// The failure of a thread, once.
    pub fn check(&self) -> Result<(), ExtractError> {
        self.shared.cancel.check()?;
        if !self.shared.failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let failure = lock(&self.shared.failure).take();
        Err(failure.unwrap_or_else(|| self.shared.file_error("write", b"", io::Error::other("it failed before"))))
    }

    /// An empty buffer.
    pub fn buffer(&self) -> Aligned {
        let mut buffer = lock(&self.shared.spare).pop().unwrap_or_else(|| Aligned::with_capacity(BUFFER));
        buffer.clear();
        buffer
    }

    /// A file with its content.
    pub fn small(&mut self, small: Small) {
        lock(&self.shared.pending).1.insert(small.way);
        self.batch_bytes += small.content.len() + small.entry.metadata_bytes();
        self.batch.push(small);
        if self.batch.len() >= TOGETHER || self.batch_bytes >= BUFFER {
            self.flush();
        }
    }

    /// A large file begins.
    pub fn begin(&self, large: Large) -> Arc<Large> {
        lock(&self.shared.pending).1.insert(large.way);
        Arc::new(large)
    }

    /// A part of a large file.
    pub fn part(&mut self, file: &Arc<Large>, offset: u64, bytes: Aligned) {
        self.send(Job::Part { file: file.clone(), offset, bytes });
    }

    /// Hands over what has been gathered.
    pub fn flush(&mut self) {
        self.batch_bytes = 0;
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.send(Job::Files(batch));
        }
    }

    /// Waits until everything that was handed over is done.
    pub fn settle(&mut self) {
        self.flush();
        let mut pending = lock(&self.shared.pending);
        while pending.0 > 0 {
            pending = self.shared.done.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn send(&mut self, job: Job) {
        if self.jobs.is_none() && !self.is_alone {
            self.begin_threads();
        }
        lock(&self.shared.pending).0 += 1;
        let Some(jobs) = &self.jobs else {
            do_one(&self.shared, job);
            return;
        };
        if let Err(refused) = jobs.send(job) {
            // Every thread has broken.
            drop(refused);
            self.shared.fail(self.shared.file_error("write", b"", io::Error::other("no thread is left to write")));
            lock(&self.shared.pending).0 -= 1;
        }
    }

    /// Where there are no threads, whoever hands a job over does it.
    fn begin_threads(&mut self) {
        let (jobs, receiver) = sync_channel(AHEAD);
        let receiver = Arc::new(Mutex::new(receiver));
        let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
        let begun = threads::begin_some(count, || {
            let (shared, receiver) = (self.shared.clone(), receiver.clone());
            move || work(&shared, &receiver)
        });
        match begun {
            Ok(threads) => (self.jobs, self.threads) = (Some(jobs), threads),
            Err(e) => {
                tracing::warn!("files are written one after the other: {e}");
                self.is_alone = true;
            }
        }
    }

    /// Everything that was said of entries, in the order in which they were handed over; `own` is what was said of the
    /// others.
    pub fn gather(&mut self, own: Report) -> Report {
        self.settle();
        std::mem::take(&mut *lock(&self.shared.outcomes)).merge(own)
    }
}

fn work(shared: &Shared, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = lock(jobs).recv();
        let Ok(job) = job else { return };
        do_one(shared, job);
    }
}

fn do_one(shared: &Shared, job: Job) {
    // A job that panics is a failure like any other, and nobody waits for it for ever.
    let counted = Counted(shared);
    if shared.cancel.check().is_err() {
        shared.failed.store(true, Ordering::SeqCst);
    }
    job.run(shared);
    drop(counted);
}

struct Counted<'a>(&'a Shared);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::SeqCst);
        }
        lock(&self.0.pending).0 -= 1;
        self.0.done.notify_all();
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Without its end an extraction has failed: what waits is not written any more.
        self.batch.clear();
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
