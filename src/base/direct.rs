//! Large writes that go past the page cache (`O_DIRECT`).
//!
//! What a backup writes is not read again soon: in the cache it would take the place of what the applications of this
//! host need there, and each of its pages is copied, found room for and written back by the kernel, at more cost than
//! the encryption of its content. A file system that does not do this gets ordinary writes; nothing is durable before
//! the caller's fsync either way.

use crate::base::read;
use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;

/// From this length on a write is worth it.
pub const WORTH: usize = 512 << 10;
/// What offsets, lengths and memory are multiples of: no disk in use has larger blocks.
const BLOCK: usize = 4096;
/// Bytes of one call, which are copied into aligned memory where they do not lie in such.
const BOUNCE: usize = 1 << 20;
/// Bytes of one call where they do.
const STRAIGHT: usize = 4 << 20;

thread_local! {
    /// Memory that is aligned, used again by each write of a thread.
    static BOUNCE_MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Switches a file's writes past the cache, or back; whether they go past it now.
pub fn switch(file: &File, on: bool) -> bool {
    let Ok(flags) = fcntl_getfl(file) else { return false };
    let wanted = if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    fcntl_setfl(file, wanted).is_ok() && on
}

/// File systems on which a restored file is not written past the cache: NFS waits for the server's disk at each such write,
/// and btrfs does not compress it. `f_type` as in `statfs(2)`.
const ORDINARY: [u64; 2] = [0x6969, 0x9123_683e];

/// Switches a file that is restored, where that is of use.
pub fn switch_restored(file: &File) -> bool {
    let ordinary = rustix::fs::fstatfs(file).is_ok_and(|fs| ORDINARY.contains(&(fs.f_type as u64 & 0xffff_ffff)));
    !ordinary && switch(file, true)
}

/// Writes all of a new file's bytes, the large ones past the cache.
pub fn write_all(file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    if bytes.len() >= WORTH && switch(file, true) {
        done = write_blocks(file, bytes, 0)?;
        switch(file, false);
    }
    file.write_all_at(&bytes[done..], done as u64)
}

/// Writes at an offset that is a multiple of 4 KiB into a file that was switched; what is behind the last whole block is
/// filled up with zeros, which the caller cuts off at the end. Several threads may do so at once.
pub fn write_padded(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let done = write_blocks(file, bytes, offset)?;
    let rest = &bytes[done..];
    if rest.is_empty() {
        return Ok(());
    }
    if rest.len() < BLOCK {
        let mut last = [0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        // Where there is room for the rest but not for a whole block, it fails, and the rest alone does not.
        if matches!(write_blocks(file, &last, offset + done as u64), Ok(BLOCK)) {
            return Ok(());
        }
    }
    // Or this file system took the switch, and does not take the writes.
    switch(file, false);
    file.write_all_at(rest, offset + done as u64)
}

/// Writes whole blocks; how many bytes were taken. Fewer than there are whole blocks: the file system does not do it.
fn write_blocks(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let whole = bytes.len() / BLOCK * BLOCK;
    if bytes.as_ptr().align_offset(BLOCK) == 0 {
        return write_with(file, whole, offset, |done| &bytes[done..whole.min(done + STRAIGHT)]);
    }
    BOUNCE_MEMORY.with_borrow_mut(|memory| {
        memory.resize(BOUNCE + BLOCK, 0);
        let start = memory.as_ptr().align_offset(BLOCK);
        let bounce = &mut memory[start..][..BOUNCE];
        let mut done = 0;
        while done < whole {
            let n = BOUNCE.min(whole - done);
            bounce[..n].copy_from_slice(&bytes[done..done + n]);
            let taken = write_with(file, n, offset + done as u64, |done| &bounce[done..n])?;
            done += taken;
            if taken < n {
                break;
            }
        }
        Ok(done)
    })
}

/// Writes `whole` bytes, which `part` gives from where it is told.
fn write_with<'b>(file: &File, whole: usize, offset: u64, part: impl Fn(usize) -> &'b [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < whole {
        match file.write_at(part(done), offset + done as u64) {
            // Half a block written is written again.
            Ok(written) if written >= BLOCK => done += written / BLOCK * BLOCK,
            Ok(_) => break,
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    #[cfg(test)]
    DIRECT_BYTES.set(DIRECT_BYTES.get() + done);
    Ok(done)
}

/// Bytes that begin where large writes want them: written past the page cache they need not be copied once more. Growing
/// beyond its capacity costs that, and nothing else.
#[derive(Debug, Default)]
pub struct Aligned {
    memory: Vec<u8>,
    /// Bytes before the first one that counts.
    lead: usize,
}

impl Aligned {
    /// Empty, with room for so many bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self::within(Vec::with_capacity(capacity + BLOCK))
    }

    /// Empty, in memory that is at hand.
    pub fn within(mut memory: Vec<u8>) -> Self {
        memory.clear();
        let lead = memory.as_ptr().align_offset(BLOCK);
        let lead = if lead < memory.capacity() { lead } else { 0 };
        memory.resize(lead, 0);
        Self { memory, lead }
    }

    /// Empty again; its memory stays.
    pub fn clear(&mut self) {
        self.memory.truncate(self.lead);
    }

    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.memory.extend_from_slice(bytes);
    }

    /// Adds what a reader gives, at most so many bytes; how many it gave.
    pub fn read_from(&mut self, reader: &mut impl BufRead, most: u64) -> io::Result<u64> {
        read::append(reader, most, &mut self.memory)
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.lead..]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.lead..]
    }
}

impl Write for Aligned {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl From<Aligned> for Bytes {
    fn from(aligned: Aligned) -> Bytes {
        Bytes::from(aligned.memory).slice(aligned.lead..)
    }
}

#[cfg(test)]
thread_local! {
    /// Bytes that this thread wrote past the cache.
    static DIRECT_BYTES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn content(file: &mut File) -> Vec<u8> {
        use std::io::{Read, Seek};
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        all
    }

    /// ext, XFS and btrfs: what refuses there is a fault of this module.
    const DIRECT: [u64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

    /// In the build's folder, which lies on a disk; temporary folders may be in memory. Whether writes go past the cache
    /// there: only then does a test show that they do it well.
    fn on_disk() -> (File, bool) {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let kind = rustix::fs::fstatfs(&file).unwrap().f_type as u64 & 0xffff_ffff;
        let probe = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let direct = switch(&probe, true) && write_blocks(&probe, &pattern(BLOCK), 0).unwrap() == BLOCK;
        assert!(direct || !DIRECT.contains(&kind), "this file system ({kind:x}) writes past the cache");
        if !direct {
            eprintln!("nothing is shown here: this file system ({kind:x}) does not write past the cache");
        }
        (file, direct)
    }

    #[test]
    fn any_length_is_written_whole() {
        for length in [0, 1, WORTH - 1, WORTH, WORTH + 1, BOUNCE + BLOCK, 3 * BOUNCE - 1, 5 * BOUNCE + 4097] {
            let (mut file, direct) = on_disk();
            let bytes = pattern(length);
            let before = DIRECT_BYTES.get();
            write_all(&file, &bytes).unwrap();
            let past = if direct && length >= WORTH { length / BLOCK * BLOCK } else { 0 };
            assert_eq!(DIRECT_BYTES.get() - before, past, "{length}: past the cache");
            assert!(content(&mut file) == bytes, "{length}");
            assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT), "later writes are ordinary ones");
        }
    }

    #[test]
    fn aligned_memory_is_written_as_it_lies() {
        for length in [WORTH, WORTH + 1, STRAIGHT + BLOCK, 2 * STRAIGHT + 4097] {
            let bytes = pattern(length);
            let mut aligned = Aligned::with_capacity(length);
            assert_eq!(aligned.as_ptr().align_offset(BLOCK), 0);
            aligned.extend_from_slice(b"before");
            aligned.clear();
            assert_eq!(aligned.read_from(&mut &bytes[..100], 60).unwrap(), 60);
            aligned.write_all(&bytes[60..]).unwrap();
            assert!(*aligned == *bytes && aligned.as_ptr().align_offset(BLOCK) == 0);
            let (mut file, direct) = on_disk();
            let before = DIRECT_BYTES.get();
            write_all(&file, &aligned).unwrap();
            assert_eq!(DIRECT_BYTES.get() - before, if direct { length / BLOCK * BLOCK } else { 0 });
            assert!(content(&mut file) == bytes, "{length}");
            // And its memory is used again, from one owner to the next.
            let bytes_again = Bytes::from(aligned);
            assert!(bytes_again == bytes);
            let memory: Vec<u8> = bytes_again.try_into_mut().unwrap().into();
            assert_eq!(Aligned::within(memory).as_ptr().align_offset(BLOCK), 0);
        }
        let mut small = Aligned::default();
        small.extend_from_slice(b"grown");
        assert_eq!(&*small, b"grown");
    }

    #[test]
    fn parts_are_written_in_any_order() {
        let (mut file, direct) = on_disk();
        let bytes = pattern(3 * WORTH + 77);
        switch(&file, true);
        let before = DIRECT_BYTES.get();
        for part in [3, 1, 0, 2] {
            let from = part * WORTH;
            write_padded(&file, &bytes[from..bytes.len().min(from + WORTH)], from as u64).unwrap();
        }
        // The end with the block that is filled up.
        assert_eq!(DIRECT_BYTES.get() - before, if direct { 3 * WORTH + BLOCK } else { 0 });
        file.set_len(bytes.len() as u64).unwrap();
        switch(&file, false);
        assert!(content(&mut file) == bytes);
    }

    #[test]
    fn where_it_is_not_done_writes_are_ordinary() {
        // A pipe takes the switch, and knows no offsets; what lies in memory may refuse the switch.
        let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
        let bytes = pattern(2 * WORTH + 5);
        write_all(&file, &bytes).unwrap();
        assert!(content(&mut file) == bytes);
        let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
        switch(&file, true);
        write_padded(&file, &bytes, 0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        switch(&file, false);
        assert!(content(&mut file) == bytes);
    }

    #[test]
    fn writes_that_are_not_taken_become_ordinary_ones() {
        let (mut file, direct) = on_disk();
        let bytes = pattern(WORTH + 7);
        assert!(switch(&file, true) || !direct);
        // No disk takes an odd offset.
        write_padded(&file, &bytes, 1).unwrap();
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
        assert!(content(&mut file)[1..] == bytes);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let e = write_all(&full, &pattern(2 * WORTH)).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{e}");
    }
}
