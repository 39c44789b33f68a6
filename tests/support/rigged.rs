//! A storage that remembers what was asked of it, and fails where a test wants it to.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use chrono::{DateTime, Utc};
use lifeboat::storage::{ObjectInfo, Put, Storage, StorageError, StorageKey};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a test makes of the n-th put (from 0).
pub enum Fault {
    /// Nothing is stored, and the call fails.
    Before(io::ErrorKind),
    /// The object is stored, and the call fails all the same.
    After(io::ErrorKind),
    /// The process dies here: from now on every call blocks its thread for ever.
    Death,
}

type PutFault = Box<dyn Fn(usize, &StorageKey) -> Option<Fault> + Send + Sync>;
type DeleteFault = Box<dyn Fn(usize) -> bool + Send + Sync>;
type ReadFault = Box<dyn Fn(&StorageKey) -> Option<io::ErrorKind> + Send + Sync>;

pub struct Rigged {
    inner: Arc<dyn Storage>,
    puts: AtomicUsize,
    put_fault: PutFault,
    read_fault: ReadFault,
    deletes: AtomicUsize,
    delete_fault: DeleteFault,
    /// Keys of which bytes were read, in order.
    pub reads: Mutex<Vec<String>>,
    /// Keys that were put.
    pub put_keys: Mutex<Vec<String>>,
    dead: Mutex<bool>,
}

impl Rigged {
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            puts: AtomicUsize::new(0),
            put_fault: Box::new(|_, _| None),
            read_fault: Box::new(|_| None),
            deletes: AtomicUsize::new(0),
            delete_fault: Box::new(|_| false),
            reads: Mutex::default(),
            put_keys: Mutex::default(),
            dead: Mutex::new(false),
        }
    }

    pub fn on_put(mut self, fault: impl Fn(usize, &StorageKey) -> Option<Fault> + Send + Sync + 'static) -> Self {
        self.put_fault = Box::new(fault);
        self
    }

    pub fn on_delete(mut self, dies: impl Fn(usize) -> bool + Send + Sync + 'static) -> Self {
        self.delete_fault = Box::new(dies);
        self
    }

    pub fn on_read(mut self, fault: impl Fn(&StorageKey) -> Option<io::ErrorKind> + Send + Sync + 'static) -> Self {
        self.read_fault = Box::new(fault);
        self
    }

    pub fn deletes(&self) -> usize {
        self.deletes.load(Ordering::SeqCst)
    }

    pub fn puts(&self) -> usize {
        self.puts.load(Ordering::SeqCst)
    }

    /// The prefixes of which something was read, sorted.
    pub fn prefixes_read(&self) -> Vec<String> {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut prefixes: Vec<String> = reads.iter().map(|k| k.split('/').next().unwrap().to_owned()).collect();
        prefixes.sort();
        prefixes.dedup();
        prefixes
    }

    pub fn is_dead(&self) -> bool {
        *self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) {
        while self.is_dead() {
            std::thread::park();
        }
    }

    fn read(&self, key: &StorageKey) -> Result<(), StorageError> {
        self.alive();
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).push(key.to_string());
        (self.read_fault)(key).map_or(Ok(()), |kind| Err(io_error("read", key, kind)))
    }
}

fn io_error(action: &'static str, key: &StorageKey, kind: io::ErrorKind) -> StorageError {
    StorageError::Io { action, location: key.to_string(), source: io::Error::new(kind, "rigged") }
}

impl Storage for Rigged {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put_new(&self, key: &StorageKey, bytes: &[u8]) -> Result<Put, StorageError> {
        self.alive();
        let number = self.puts.fetch_add(1, Ordering::SeqCst);
        match (self.put_fault)(number, key) {
            None => {
                self.put_keys.lock().unwrap_or_else(PoisonError::into_inner).push(key.to_string());
                self.inner.put_new(key, bytes)
            }
            Some(Fault::Before(kind)) => Err(io_error("write", key, kind)),
            Some(Fault::After(kind)) => {
                self.inner.put_new(key, bytes)?;
                Err(io_error("write", key, kind))
            }
            Some(Fault::Death) => {
                *self.dead.lock().unwrap_or_else(PoisonError::into_inner) = true;
                self.alive();
                unreachable!("the dead do not wake");
            }
        }
    }

    fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, StorageError> {
        self.read(key)?;
        self.inner.get(key, limit)
    }

    fn get_range(&self, key: &StorageKey, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.read(key)?;
        self.inner.get_range(key, offset, length)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        self.alive();
        self.inner.list(prefix)
    }

    fn head(&self, key: &StorageKey) -> Result<Option<ObjectInfo>, StorageError> {
        self.alive();
        self.inner.head(key)
    }

    fn delete(&self, key: &StorageKey) -> Result<(), StorageError> {
        self.alive();
        if (self.delete_fault)(self.deletes.fetch_add(1, Ordering::SeqCst)) {
            *self.dead.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.alive();
        }
        self.inner.delete(key)
    }

    fn clock(&self) -> Result<DateTime<Utc>, StorageError> {
        self.inner.clock()
    }
}
