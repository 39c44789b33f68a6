//! What is wrong with a policy: every error of a file, each with its place and, where there is one, the way out.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A place in a policy file. Both count from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// Where the lines of a text begin.
pub(super) struct Lines<'a> {
    text: &'a [u8],
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub fn of(text: &'a [u8]) -> Self {
        let after_newlines = text.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// The place of a byte.
    pub fn position(&self, offset: usize) -> Position {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= offset);
        let before = &self.text[self.starts[line - 1]..offset];
        Position { line, column: String::from_utf8_lossy(before).chars().count() + 1 }
    }
}

/// One error. The message is a lower-case fragment and never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    pub position: Position,
    pub message: String,
    pub hint: Option<String>,
}

/// All errors of a policy file, in the file's order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors {
    pub file: PathBuf,
    pub errors: Vec<PolicyError>,
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            let Position { line, column } = error.position;
            write!(f, "{}:{line}:{column}: {}", self.file.display(), error.message)?;
            if let Some(hint) = &error.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// Why a policy could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("read the policy {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Invalid(#[from] PolicyErrors),
}
