//! Reading without a copy in between.

use std::io::{self, BufRead, ErrorKind};

/// Adds at most so many bytes of a reader to `memory`, straight from where the reader has them; how many there were. (A read
/// to the end wants memory that has been written to, and so fills it with zeros first.)
pub fn append(reader: &mut impl BufRead, most: u64, memory: &mut Vec<u8>) -> io::Result<u64> {
    let mut left = most;
    while left > 0 {
        let some = match reader.fill_buf() {
            Ok(some) => some,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let n = some.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if n == 0 {
            break;
        }
        memory.extend_from_slice(&some[..n]);
        reader.consume(n);
        left -= n as u64;
    }
    Ok(most - left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Read};

    /// Gives three bytes at a time, and is interrupted before each.
    struct Slow<'a>(&'a [u8], bool);

    impl Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(ErrorKind::Interrupted.into());
            }
            let n = out.len().min(3);
            self.0.read(&mut out[..n])
        }
    }

    #[test]
    fn what_is_asked_for_is_added_and_no_more() {
        let mut reader = BufReader::new(Slow(b"what is read", false));
        let mut memory = b"before: ".to_vec();
        assert_eq!(append(&mut reader, 0, &mut memory).unwrap(), 0);
        assert_eq!(append(&mut reader, 7, &mut memory).unwrap(), 7);
        assert_eq!(memory, b"before: what is");
        assert_eq!(append(&mut reader, 100, &mut memory).unwrap(), 5);
        assert_eq!(append(&mut reader, 100, &mut memory).unwrap(), 0);
        assert_eq!(memory, b"before: what is read");
    }
}
