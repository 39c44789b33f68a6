//! A captured source's streams, as a drill or a restore in place reads them: the other end of [`super::Sink`].

use super::SourceError;
use super::extract::Report;
use crate::base::stream::StreamKind;
use std::io::{self, Read};
use std::path::Path;

/// What a snapshot says of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    pub name: String,
    pub kind: StreamKind,
    /// Plain bytes.
    pub length: u64,
}

/// The streams of one source in one snapshot. What is read has been verified when it arrives; a stream that is damaged
/// ends with an error before its end, never silently.
pub trait Streams: Sync {
    /// All streams, in the manifest's order.
    fn list(&self) -> Vec<StreamInfo>;

    /// A stream from its first byte to its last.
    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>>;

    /// Lays all trees of the source out below a folder that exists and is empty: `etc/nginx/nginx.conf` for
    /// `/etc/nginx/nginx.conf`. Contained, whatever the archive says.
    fn lay_out(&self, into: &Path) -> Result<Report, SourceError>;
}

impl dyn Streams + '_ {
    /// What is known of a stream, or the problem that it is not there.
    pub fn info(&self, name: &str) -> Result<StreamInfo, SourceError> {
        self.list()
            .into_iter()
            .find(|stream| stream.name == name)
            .ok_or_else(|| SourceError::problem(format!("the snapshot has no stream {name:?} of this source")))
    }
}
