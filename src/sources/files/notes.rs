//! What a capture notes for people: bounded, so that a tree full of oddities does not fill the memory.

use super::entry::display;

/// Each kind of note is listed this often; the rest is counted.
const LISTED: usize = 20;

/// Why something was not captured as it stands, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// A socket, a FIFO or a device.
    Special(&'static str),
    Vanished,
    Changed,
    Shrunk,
    /// Content differs although size, times and inode are those of the last run.
    SilentChange,
    OtherFileSystem,
    PseudoFileSystem,
    Dangling,
    NoMatch,
}

impl Note {
    fn text(self, path: &str) -> String {
        match self {
            Note::Special(what) => format!("skipped {what} {path}"),
            Note::Vanished => format!("{path} vanished while it was read"),
            Note::Changed => format!("{path} changed while it was read, and again while it was read once more"),
            Note::Shrunk => format!("{path} became shorter while it was read: the missing bytes are zeros"),
            Note::SilentChange => {
                format!(
                    "content changed under {path} although sizes, times and inodes did not: a program that resets them, or a failing disk"
                )
            }
            Note::OtherFileSystem => format!("{path} is another file system: its content is left out"),
            Note::PseudoFileSystem => format!("{path} is a file system of the kernel: its content is left out"),
            Note::Dangling => format!("{path} points to something that does not exist"),
            Note::NoMatch => format!("{path} matches nothing"),
        }
    }
}

/// The notes of one capture.
#[derive(Debug, Default)]
pub struct Notes {
    listed: Vec<String>,
    counts: Vec<(Note, usize)>,
}

impl Notes {
    pub fn add(&mut self, note: Note, path: &[u8]) {
        let count = match self.counts.iter_mut().find(|c| c.0 == note) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                self.counts.push((note, 1));
                1
            }
        };
        if count <= LISTED {
            self.listed.push(note.text(&display(path)));
        }
    }

    /// What knowledge of a kind of file has to say.
    pub fn say(&mut self, text: String) {
        self.listed.push(text);
    }

    /// Takes over the notes of a part.
    pub fn absorb(&mut self, other: Notes) {
        self.listed.extend(other.listed);
        for (note, count) in other.counts {
            match self.counts.iter_mut().find(|c| c.0 == note) {
                Some((_, sum)) => *sum += count,
                None => self.counts.push((note, count)),
            }
        }
    }

    pub fn into_warnings(self) -> Vec<String> {
        let mut warnings = self.listed;
        for (note, count) in self.counts {
            if count > LISTED {
                warnings.push(format!("{} more such: {}", count - LISTED, note.text("…")));
            }
        }
        warnings
    }
}
