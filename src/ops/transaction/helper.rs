//! This program as it runs in a helper container: it carries out one order on standard input, and answers.

use crate::base::patient;
use crate::sources::trees;
use std::io;

pub use crate::sources::trees::WORD;

/// Serves; the exit code of the process.
pub fn serve(words: &[String]) -> u8 {
    match trees::serve(words, io::stdin().lock(), patient::stdout()) {
        Ok(()) => 0,
        Err(e) => {
            tracing::error!("{e}");
            1
        }
    }
}
