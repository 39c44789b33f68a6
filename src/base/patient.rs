//! Standard streams that wait. Whoever started this process may have made the pipe or the terminal behind them
//! non-blocking, and a call that would block fails there with EAGAIN: that is no error, but a reader that is slow.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::{self, StderrLock, Stdout, Write};
use std::os::fd::AsFd;

/// A writer that waits until it can write.
#[derive(Debug)]
pub struct Patient<W>(W);

impl<W: Write + AsFd> Patient<W> {
    pub fn new(out: W) -> Self {
        Self(out)
    }
}

/// Standard output. What was written must be flushed: what it holds at the end of the process is not waited for.
pub fn stdout() -> Patient<Stdout> {
    Patient::new(io::stdout())
}

/// Standard error, for one line or a few that belong together.
pub fn stderr() -> Patient<StderrLock<'static>> {
    Patient::new(io::stderr().lock())
}

/// What somebody writes on standard input, up to the end of the line, behind what `line` holds.
pub fn read_line(line: &mut String) -> io::Result<()> {
    let stdin = io::stdin();
    loop {
        match stdin.read_line(line) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(&stdin, PollFlags::IN)?,
            read => return read.map(drop),
        }
    }
}

impl<W: Write + AsFd> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // Nothing of `bytes` was taken, not even into a buffer.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(&self.0, PollFlags::OUT)?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.0.flush() {
                // What was not taken stays in the buffer.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(&self.0, PollFlags::OUT)?,
                flushed => return flushed,
            }
        }
    }
}

/// Waits until the next call comes to something, be it an error.
fn wait(stream: &impl AsFd, until: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(stream, until)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{BufWriter, Read};
    use std::time::Duration;

    #[test]
    fn a_slow_reader_gets_every_byte() {
        let (reading, writing) = rustix::pipe::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writing, rustix::fs::OFlags::NONBLOCK).unwrap();
        let all: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let expected = all.clone();
        let reader = std::thread::spawn(move || {
            let (mut reading, mut read, mut piece) = (File::from(reading), Vec::new(), [0; 20_000]);
            loop {
                std::thread::sleep(Duration::from_millis(5));
                match reading.read(&mut piece).unwrap() {
                    0 => return read,
                    n => read.extend_from_slice(&piece[..n]),
                }
            }
        });
        let mut out = BufWriter::with_capacity(7_000, Patient::new(File::from(writing)));
        all.chunks(1_234).for_each(|some| out.write_all(some).unwrap());
        out.flush().unwrap();
        drop(out);
        assert!(reader.join().unwrap() == expected);
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_waiting() {
        let (reading, writing) = rustix::pipe::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writing, rustix::fs::OFlags::NONBLOCK).unwrap();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(reading);
        });
        let failed = Patient::new(File::from(writing)).write_all(&[0; 200_000]).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
        reader.join().unwrap();
    }
}
