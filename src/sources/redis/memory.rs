//! How full a server is: what a health check asks.

use super::RedisSource;
use super::client::Answer;
use super::info::Info;
use crate::base::cancel::Cancel;
use crate::sources::SourceError;
use crate::sources::run::Deadline;

/// Bytes in use, and the server's own limit where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub used_bytes: u64,
    pub max_bytes: Option<u64>,
}

impl RedisSource {
    /// Asks the server.
    pub fn memory(&self, cancel: &Cancel) -> Result<Memory, SourceError> {
        let server = self.server(Deadline::after(self.timeout), cancel)?;
        match server.ask(&["INFO", "memory"])? {
            Answer::Refused(why) => Err(SourceError::problem(format!("{} does not tell: {why}", server.name))),
            Answer::Text(text) => {
                let info = Info::parse(&text);
                let number = |key| info.get(key).and_then(|v| v.parse::<u64>().ok());
                let used_bytes = number("used_memory")
                    .ok_or_else(|| SourceError::problem(format!("{} does not tell its memory", server.name)))?;
                Ok(Memory { used_bytes, max_bytes: number("maxmemory").filter(|max| *max > 0) })
            }
        }
    }
}
