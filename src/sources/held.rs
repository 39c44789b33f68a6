//! Streams in memory, for tests of what reads them.

use super::SourceError;
use super::extract::Report;
use super::streams::{StreamInfo, Streams};
use crate::base::stream::StreamKind;
use std::io::{self, Cursor, Read};
use std::path::Path;

pub struct Held(Vec<(String, Vec<u8>)>);

impl Held {
    pub fn of(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self(vec![(name.to_owned(), bytes.into())])
    }
}

impl Streams for Held {
    fn list(&self) -> Vec<StreamInfo> {
        let info = |(name, bytes): &(String, Vec<u8>)| StreamInfo {
            name: name.clone(),
            kind: StreamKind::Raw,
            length: bytes.len() as u64,
        };
        self.0.iter().map(info).collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let found = self.0.iter().find(|(own, _)| own == name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(&found.1[..])))
    }

    fn lay_out(&self, _: &Path) -> Result<Report, SourceError> {
        Err(SourceError::problem("nothing is laid out here"))
    }
}
