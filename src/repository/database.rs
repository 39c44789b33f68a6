//! A database of the state folder (SQLite, with a log of what was written last).
//!
//! Invariants: what a process wrote is durable when the database is closed, unless it was opened as a cache; a short log is
//! left where it is for the next process. Moving it into the database and removing it, as SQLite does by itself when the
//! last one leaves, waits for the disk four times, and so does the next process, which begins another log.

use crate::base::atomic;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Whoever opens a database reads its log: a longer one is moved into the database.
const LOG: u64 = 1 << 20;

/// A database, open.
pub struct Database {
    db: Connection,
    log: PathBuf,
    /// What was written need not outlive the machine.
    is_cache: bool,
}

/// Makes the file of a database for its owner alone: SQLite would by the umask, and it may hold file names of the host.
pub fn create(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

/// Whether a file system that takes nothing more is why a database does not open: it is full, or can only be read.
pub fn is_unwritable(e: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
    matches!(e.sqlite_error_code(), Some(CannotOpen | DiskFull | ReadOnly | SystemIoFailure))
}

/// A copy of a database, with its log, in a temporary folder: to look into one that cannot be opened where it lies.
pub fn copy_aside(path: &Path) -> io::Result<(TempDir, PathBuf)> {
    let name = path.file_name().unwrap_or_default();
    let make = |dir: &Path| -> io::Result<(TempDir, PathBuf)> {
        let aside = tempfile::Builder::new().prefix("lifeboat-state-").tempdir_in(dir)?;
        let copy = aside.path().join(name);
        for suffix in ["", "-wal"] {
            let file = |path: &Path| [path.as_os_str(), OsStr::new(suffix)].into_iter().collect::<OsString>();
            match fs::copy(file(path), file(&copy)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok((aside, copy))
    };
    // The place for temporary files may lie on the same file system; memory does not.
    make(&std::env::temp_dir()).or_else(|_| make(Path::new("/dev/shm")))
}

impl Database {
    /// Opens what a process wants to find again.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        Self::new(path, false)
    }

    /// Opens what saves time, and nothing else.
    pub fn cache(path: &Path) -> rusqlite::Result<Self> {
        Self::new(path, true)
    }

    fn new(path: &Path, is_cache: bool) -> rusqlite::Result<Self> {
        let db = Connection::open(path)?;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Ok(Self { db, log: log.into(), is_cache })
    }
}

impl Deref for Database {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.db
    }
}

impl DerefMut for Database {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.db
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Ok(log) = File::open(&self.log) else { return };
        let is_short = log.metadata().is_ok_and(|meta| meta.len() <= LOG);
        // A name that is not durable yet would take the log's content with it.
        let is_safe = self.is_cache
            || self.db.total_changes() == 0
            || (log.sync_data().is_ok() && self.log.parent().is_some_and(|dir| atomic::fsync_dir(dir).is_ok()));
        let _ = self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, is_short && is_safe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(path: &Path) -> u64 {
        fs::metadata(path.with_extension("db-wal")).map_or(0, |meta| meta.len())
    }

    #[test]
    fn a_short_log_stays_and_a_long_one_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let open = || {
            let db = Database::open(&path).unwrap();
            db.pragma_update(None, "journal_mode", "wal").unwrap();
            db
        };
        open().execute_batch("create table t (x); insert into t values ('a')").unwrap();
        assert!(log(&path) > 0);
        for _ in 0..3 {
            let db = open();
            assert_eq!(db.query_row("select count(*) from t", [], |row| row.get::<_, u32>(0)), Ok(1));
        }
        open().execute("insert into t values (zeroblob(1100000))", []).unwrap();
        assert_eq!(log(&path), 0);
        assert_eq!(open().query_row("select count(*) from t", [], |row| row.get::<_, u32>(0)), Ok(2));
    }
}
