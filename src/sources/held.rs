//! Streams in memory, for tests of what reads them.

use super::SourceError;
use super::extract::Report;
use super::streams::{StreamInfo, Streams};
use crate::base::stream::StreamKind;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Held {
    streams: Vec<(String, Vec<u8>)>,
    read: AtomicU64,
}

impl Held {
    pub fn of(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { streams: vec![(name.to_owned(), bytes.into())], read: AtomicU64::new(0) }
    }

    /// Bytes that were read, of all of them and however often.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// One of them being read.
struct Counted<'a>(&'a [u8], &'a AtomicU64);

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(out)?;
        self.1.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Streams for Held {
    fn list(&self) -> Vec<StreamInfo> {
        let info = |(name, bytes): &(String, Vec<u8>)| StreamInfo {
            name: name.clone(),
            kind: StreamKind::Raw,
            length: bytes.len() as u64,
        };
        self.streams.iter().map(info).collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let found = self.streams.iter().find(|(own, _)| own == name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Counted(&found.1, &self.read)))
    }

    fn lay_out(&self, _: &Path) -> Result<Report, SourceError> {
        Err(SourceError::problem("nothing is laid out here"))
    }
}
