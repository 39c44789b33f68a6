//! What has to be done, one action a line: written while things are laid out, read by every later step.
//!
//! A list counts when its last line says that it ends. `Same` entries are what was left alone, so that it can be seen
//! whether they still are what they were.

use super::super::SourceError;
use super::super::files::entry::{Entry, Kind, Time};
use super::job::Job;
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A folder's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub seconds: i64,
    pub nanos: u32,
    /// Names and values in hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(String, String)>,
}

impl Meta {
    pub fn of(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            seconds: entry.mtime.seconds,
            nanos: entry.mtime.nanos,
            xattrs: entry.xattrs.iter().map(|(n, v)| (hex::encode(n), hex::encode(v))).collect(),
        }
    }

    /// As a folder's entry.
    pub fn entry(&self, path: &[u8]) -> Entry {
        let bytes = |text: &String| hex::decode(text).unwrap_or_default();
        Entry {
            path: path.to_vec(),
            kind: Kind::Dir,
            size: 0,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            user: None,
            group: None,
            mtime: Time { seconds: self.seconds, nanos: self.nanos },
            xattrs: self.xattrs.iter().map(|(n, v)| (bytes(n), bytes(v))).collect(),
        }
    }
}

/// What tells that something is still what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub dev: u64,
    pub ino: u64,
    pub size: i64,
    pub mtime: (i64, i64),
    pub ctime: (i64, i64),
}

impl Mark {
    pub fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

/// A number in one of the folders beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Which of [`Job::stages`].
    pub stage: usize,
    pub n: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    /// A folder is made if it is not there, and gets this metadata.
    Dir {
        #[serde(with = "hex")]
        path: Vec<u8>,
        meta: Meta,
        /// As it was; absent where it was not there.
        was: Option<Meta>,
        /// Where it was not there: for what may stand in its place.
        slot: Option<Slot>,
    },
    /// `new/<n>` takes the place of what is there.
    Put {
        #[serde(with = "hex")]
        path: Vec<u8>,
        slot: Slot,
    },
    /// Left alone.
    Same {
        #[serde(with = "hex")]
        path: Vec<u8>,
        mark: Mark,
    },
    /// What is there goes to `old/<n>`.
    Remove {
        #[serde(with = "hex")]
        path: Vec<u8>,
        slot: Slot,
    },
    /// A folder that is empty by then is removed.
    RemoveDir {
        #[serde(with = "hex")]
        path: Vec<u8>,
        was: Meta,
    },
    End,
}

/// Writes a list. [`ListWriter::finish`] makes it count.
pub struct ListWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl ListWriter {
    /// A new list in the place of whatever is there, or the same one going on.
    pub fn open(path: PathBuf, go_on: bool) -> Result<Self, SourceError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).append(go_on).truncate(!go_on).mode(0o600);
        let file = options.open(&path).map_err(|e| failed("open", &path, e))?;
        Ok(Self { path, out: BufWriter::new(file) })
    }

    pub fn add(&mut self, action: &Action) -> Result<(), SourceError> {
        let written = serde_json::to_writer(&mut self.out, action).map_err(io::Error::from);
        written.and_then(|()| self.out.write_all(b"\n")).map_err(|e| failed("write", &self.path, e))
    }

    pub fn finish(mut self) -> Result<(), SourceError> {
        self.add(&Action::End)?;
        let path = self.path;
        let file = self.out.into_inner().map_err(|e| failed("write", &path, e.into_error()))?;
        file.sync_all().map_err(|e| failed("make durable", &path, e))?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        crate::base::atomic::fsync_dir(dir).map_err(|e| failed("make durable", dir, e))
    }
}

/// Passes every action to `visit`. `false`: there is no list, or it does not end: nothing has been switched by it.
pub fn read(job: &Job, visit: &mut dyn FnMut(Action) -> Result<(), SourceError>) -> Result<bool, SourceError> {
    let path = job.list();
    if !ends(&path)? {
        return Ok(false);
    }
    let file = File::open(&path).map_err(|e| failed("open", &path, e))?;
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|e| failed("read", &path, e))?;
        match serde_json::from_str(&line).map_err(|e| failed("read", &path, e.into()))? {
            Action::End => {}
            action => visit(action)?,
        }
    }
    Ok(true)
}

fn ends(path: &Path) -> Result<bool, SourceError> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed("open", path, e)),
    };
    let end = b"{\"do\":\"end\"}\n";
    let mut tail = Vec::new();
    let mut seek = |file: &mut File| -> io::Result<()> {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(end.len() as u64)))?;
        file.read_to_end(&mut tail).map(drop)
    };
    seek(&mut file).map_err(|e| failed("read", path, e))?;
    Ok(tail == end)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> SourceError {
    SourceError::File { action, path: path.into(), source }
}
