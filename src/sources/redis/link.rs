//! The Redis protocol over TCP, as far as a capture needs it: questions, and a full copy as a replica gets it.
//!
//! `PSYNC ? -1` asks for everything; the server answers `+FULLRESYNC …`, then empty lines while it prepares, then either
//! `$<length>` and that many bytes, or `$EOF:<mark>` and bytes up to that mark of 40 characters.

use super::address::Address;
use super::rdb::MARK_BYTES;
use crate::sources::socket::{Limits, Socket};
use std::io::{self, Read};

const MAX_LINE_BYTES: usize = 64 << 10;
const MAX_BULK_BYTES: u64 = 32 << 20;
const MAX_ELEMENTS: i64 = 1 << 20;
const MAX_DEPTH: u32 = 8;

/// Why a question was not answered.
#[derive(Debug)]
pub(super) enum LinkError {
    /// The server said no.
    Refused(String),
    Broken(io::Error),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        LinkError::Broken(error)
    }
}

/// A connection, and what was read of it ahead.
pub(super) struct Link {
    socket: Socket,
    buffer: Vec<u8>,
    next: usize,
}

/// What the server says, byte by byte.
type Bytes<'a> = &'a mut dyn FnMut() -> io::Result<u8>;

/// One line without its end.
fn line(byte: Bytes<'_>) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        match byte()? {
            b'\n' => break,
            byte => line.push(byte),
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of the server is too long"));
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// One answer; the elements of arrays one after the other.
fn reply(byte: Bytes<'_>, out: &mut Vec<String>, depth: u32) -> Result<(), LinkError> {
    let strange = |line: &str| {
        let text = format!("the server does not speak Redis: {:?}", line.chars().take(60).collect::<String>());
        LinkError::Broken(io::Error::new(io::ErrorKind::InvalidData, text))
    };
    let line = line(byte)?;
    let Some(rest) = line.get(1..) else { return Err(strange(&line)) };
    match line.as_bytes().first() {
        Some(b'+' | b':') => out.push(rest.to_owned()),
        Some(b'-') if depth == 0 => return Err(LinkError::Refused(rest.to_owned())),
        Some(b'-') => out.push(rest.to_owned()),
        Some(b'$') => match rest.parse::<i64>().map_err(|_| strange(&line))? {
            n if n < 0 => out.push(String::new()),
            n if n as u64 > MAX_BULK_BYTES => return Err(strange(&line)),
            n => {
                let bytes = (0..n + 2).map(|_| byte()).collect::<io::Result<Vec<u8>>>()?;
                out.push(String::from_utf8_lossy(&bytes[..n as usize]).into_owned());
            }
        },
        Some(b'*') => {
            let n = rest.parse::<i64>().map_err(|_| strange(&line))?;
            // However they are nested.
            if n > MAX_ELEMENTS - out.len() as i64 || depth >= MAX_DEPTH {
                return Err(strange(&line));
            }
            for _ in 0..n.max(0) {
                reply(byte, out, depth + 1)?;
            }
        }
        _ => return Err(strange(&line)),
    }
    Ok(())
}

impl Link {
    pub fn connect(address: &Address, limits: Limits) -> io::Result<Self> {
        Ok(Self { socket: Socket::tcp(address.host(), address.port(), limits)?, buffer: Vec::new(), next: 0 })
    }

    fn byte(&mut self) -> io::Result<u8> {
        if self.next == self.buffer.len() {
            let mut block = vec![0u8; 16 << 10];
            let n = self.socket.read(&mut block)?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            block.truncate(n);
            (self.buffer, self.next) = (block, 0);
        }
        let byte = self.buffer[self.next];
        self.next += 1;
        Ok(byte)
    }

    fn line(&mut self) -> io::Result<String> {
        line(&mut || self.byte())
    }

    fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        let sent = self.socket.write_all(&request);
        zeroize::Zeroize::zeroize(&mut request);
        sent
    }

    /// Asks one question; the elements of an array stand one a line.
    pub fn ask(&mut self, words: &[&str]) -> Result<String, LinkError> {
        self.send(words)?;
        let mut out = Vec::new();
        reply(&mut || self.byte(), &mut out, 0)?;
        Ok(out.join("\n"))
    }

    /// Asks for a full copy.
    pub fn replicate(mut self) -> Result<Replication, LinkError> {
        // Servers that know neither answer with an error and go on as before.
        for words in [["REPLCONF", "capa", "eof"], ["REPLCONF", "rdb-only", "1"]] {
            match self.ask(&words) {
                Err(LinkError::Refused(text)) if text.starts_with("NOPERM") => return Err(LinkError::Refused(text)),
                Err(LinkError::Broken(error)) => return Err(error.into()),
                _ => {}
            }
        }
        self.send(&["PSYNC", "?", "-1"])?;
        let strange = |line: &str| {
            let text = format!("an answer to PSYNC that is not known: {:?}", line.chars().take(60).collect::<String>());
            LinkError::Broken(io::Error::new(io::ErrorKind::InvalidData, text))
        };
        loop {
            let line = self.line()?;
            match line.as_bytes().first() {
                None => {} // still preparing
                Some(b'+') if line.starts_with("+FULLRESYNC") => {}
                Some(b'-') => return Err(LinkError::Refused(line[1..].to_owned())),
                Some(b'$') => {
                    let end = match line[1..].strip_prefix("EOF:") {
                        Some(mark) if mark.len() == MARK_BYTES => End::Mark(mark.as_bytes().to_vec()),
                        Some(_) => return Err(strange(&line)),
                        None => End::Left(line[1..].parse().map_err(|_| strange(&line))?),
                    };
                    return Ok(Replication { link: self, end, last: Vec::new() });
                }
                _ => return Err(strange(&line)),
            }
        }
    }
}

enum End {
    /// So many bytes are left.
    Left(u64),
    /// Up to these bytes, which are part of what is read.
    Mark(Vec<u8>),
    Reached,
}

/// A copy on its way. With a mark, the mark is its end; a connection that is closed before it is an error.
pub(super) struct Replication {
    link: Link,
    end: End,
    /// The last bytes that were read.
    last: Vec<u8>,
}

impl Read for Replication {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let room = match &self.end {
            End::Reached | End::Left(0) => return Ok(0),
            End::Left(left) => out.len().min(usize::try_from(*left).unwrap_or(usize::MAX)),
            End::Mark(_) => out.len(),
        };
        if room == 0 {
            return Ok(0);
        }
        let ahead = &self.link.buffer[self.link.next..];
        let n = if ahead.is_empty() {
            self.link.socket.read(&mut out[..room])?
        } else {
            let n = ahead.len().min(room);
            out[..n].copy_from_slice(&ahead[..n]);
            self.link.next += n;
            n
        };
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        match &mut self.end {
            End::Left(left) => *left -= n as u64,
            End::Mark(mark) => {
                self.last.extend_from_slice(&out[n.saturating_sub(MARK_BYTES)..n]);
                self.last.drain(..self.last.len().saturating_sub(MARK_BYTES));
                if self.last == *mark {
                    self.end = End::Reached;
                }
            }
            End::Reached => {}
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fuzz::Fuzz;

    #[test]
    fn sweep_answers_of_redis() {
        let seeds = ["*2\r\n$3\r\ndir\r\n*1\r\n$5\r\n/data\r\n", "$-1\r\n", "-NOPERM no\r\n", ":7\r\n", "+OK\r\n"];
        let words = ["*", "$", "-", "+", ":", "\r\n", "*1048576\r\n", "*1\r\n", "$33554432\r\n", "*-1\r\n", "é"];
        let fuzz = seeds.iter().fold(Fuzz::of("redis-answers"), |fuzz, seed| fuzz.seed(*seed));
        fuzz.words(&words).run(|bytes| {
            let (mut left, mut out) = (bytes.iter(), Vec::new());
            let mut byte = || left.next().copied().ok_or(io::ErrorKind::UnexpectedEof.into());
            if reply(&mut byte, &mut out, 0).is_ok() {
                assert!(out.len() <= bytes.len() && out.len() as i64 <= MAX_ELEMENTS);
            }
        });
    }
}
