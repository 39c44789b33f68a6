//! A stream on its way into the sink, read along the way: a format is walked to its own end while it is stored.
//!
//! Invariants: what was consumed, and nothing else, reaches the sink, in order; memory is one buffer, whatever length
//! the input claims for a part of itself.

use std::io::{self, Read, Write};

const BUFFER_BYTES: usize = 256 << 10;

/// Why a stream could not be walked to its end.
#[derive(Debug)]
pub(crate) enum TapError {
    /// The input could not be read.
    Read(io::Error),
    /// The sink did not take the bytes.
    Sink(io::Error),
    /// The input ended within a part.
    Short,
    /// What was read is not what the format says; a lower-case fragment.
    Format(String),
}

/// Sees every consumed byte, in order.
pub(crate) trait Observer {
    fn observe(&mut self, bytes: &[u8]);
    /// The bytes between [`Tap::watch`] and [`Tap::unwatch`], in order.
    fn watched(&mut self, _: &[u8]) {}
}

impl Observer for () {
    fn observe(&mut self, _: &[u8]) {}
}

/// The input, the sink, and what lies between.
pub(crate) struct Tap<R, W, O = ()> {
    input: R,
    sink: W,
    observer: O,
    /// `..told` has reached observer and sink, `told..next` is consumed and will, `next..end` lies ahead.
    buffer: Vec<u8>,
    told: usize,
    next: usize,
    end: usize,
    /// Where, in the buffer, that begins which the observer watches and has not been shown.
    watch: Option<usize>,
    /// Bytes consumed so far.
    position: u64,
}

impl<R: Read, W: Write, O: Observer> Tap<R, W, O> {
    pub(crate) fn new(input: R, sink: W, observer: O) -> Self {
        Self {
            input,
            sink,
            observer,
            buffer: vec![0; BUFFER_BYTES],
            told: 0,
            next: 0,
            end: 0,
            watch: None,
            position: 0,
        }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Tells observer and sink what has been consumed, and returns the observer.
    pub(crate) fn tell(&mut self) -> Result<&mut O, TapError> {
        let bytes = &self.buffer[self.told..self.next];
        if !bytes.is_empty() {
            self.observer.observe(bytes);
            self.sink.write_all(bytes).map_err(TapError::Sink)?;
            self.told = self.next;
        }
        Ok(&mut self.observer)
    }

    /// From here on the observer watches what is consumed, in runs as long as can be.
    pub(crate) fn watch(&mut self) {
        self.watch = Some(self.next);
    }

    /// Up to here; returns the observer, which has been shown everything.
    pub(crate) fn unwatch(&mut self) -> &mut O {
        if let Some(begin) = self.watch.take() {
            self.observer.watched(&self.buffer[begin..self.next]);
        }
        &mut self.observer
    }

    /// Makes sure that something lies ahead; `false` at the end of input.
    fn fill(&mut self) -> Result<bool, TapError> {
        if self.next < self.end {
            return Ok(true);
        }
        self.tell()?;
        let watching = self.watch.is_some();
        self.unwatch();
        loop {
            match self.input.read(&mut self.buffer) {
                Ok(n) => {
                    (self.told, self.next, self.end) = (0, 0, n);
                    self.watch = watching.then_some(0);
                    return Ok(n > 0);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TapError::Read(e)),
            }
        }
    }

    /// What lies ahead in the buffer, which may be nothing.
    pub(crate) fn ahead(&self) -> &[u8] {
        &self.buffer[self.next..self.end]
    }

    /// Consumes the next `n` bytes of what lies ahead.
    pub(crate) fn advance(&mut self, n: usize) {
        let n = n.min(self.end - self.next);
        self.next += n;
        self.position += n as u64;
    }

    /// Whether nothing is left. Waits for input.
    pub(crate) fn at_end(&mut self) -> Result<bool, TapError> {
        Ok(!self.fill()?)
    }

    /// Consumes up to `limit` bytes and shows them to `see`; 0 at the end of input.
    fn consume(&mut self, limit: u64, see: &mut dyn FnMut(&[u8])) -> Result<u64, TapError> {
        if !self.fill()? {
            return Ok(0);
        }
        let n = usize::try_from(limit).unwrap_or(usize::MAX).min(self.end - self.next);
        see(&self.buffer[self.next..self.next + n]);
        self.next += n;
        self.position += n as u64;
        Ok(n as u64)
    }

    /// The next `N` bytes.
    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], TapError> {
        let mut out = [0u8; N];
        let mut filled = 0;
        while filled < N {
            let rest = &mut out[filled..];
            let limit = rest.len() as u64;
            let n = self.consume(limit, &mut |bytes| rest[..bytes.len()].copy_from_slice(bytes))?;
            if n == 0 {
                return Err(TapError::Short);
            }
            filled += n as usize;
        }
        Ok(out)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, TapError> {
        self.take::<1>().map(|[byte]| byte)
    }

    /// The next `length` bytes, at most `limit`; what is longer is an error of the format.
    pub(crate) fn bytes(&mut self, length: u64, limit: u64, what: &str) -> Result<Vec<u8>, TapError> {
        if length > limit {
            return Err(TapError::Format(format!("{what} of {length} bytes")));
        }
        let mut out = Vec::with_capacity(length as usize);
        self.pass(length, &mut |bytes| out.extend_from_slice(bytes))?;
        Ok(out)
    }

    /// Passes `length` bytes on and shows each run of them to `see`.
    pub(crate) fn pass(&mut self, mut length: u64, see: &mut dyn FnMut(&[u8])) -> Result<(), TapError> {
        while length > 0 {
            let n = self.consume(length, see)?;
            if n == 0 {
                return Err(TapError::Short);
            }
            length -= n;
        }
        Ok(())
    }

    pub(crate) fn skip(&mut self, length: u64) -> Result<(), TapError> {
        self.pass(length, &mut |_| ())
    }

    /// Passes all that is left on, and returns how much that was.
    pub(crate) fn pass_rest(&mut self, see: &mut dyn FnMut(&[u8])) -> Result<u64, TapError> {
        let begin = self.position;
        while self.consume(u64::MAX, see)? > 0 {}
        Ok(self.position - begin)
    }

    /// Ends the walk: the sink has everything that was consumed. Returns what was read ahead, and the input.
    pub(crate) fn finish(self) -> Result<(Vec<u8>, R), TapError> {
        self.dissolve().map(|(ahead, input, _, _)| (ahead, input))
    }

    /// The same, with sink and observer, for whoever goes on in another way.
    pub(crate) fn dissolve(mut self) -> Result<(Vec<u8>, R, W, O), TapError> {
        self.tell()?;
        Ok((self.buffer[self.next..self.end].to_vec(), self.input, self.sink, self.observer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes one at a time, so that every boundary is crossed.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            buffer[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    #[test]
    fn consumed_bytes_reach_the_sink_and_the_others_do_not() {
        let mut stored = Vec::new();
        let mut tap = Tap::new(Drip(b"abcdefgh"), &mut stored, ());
        assert_eq!(&tap.take::<3>().unwrap(), b"abc");
        tap.skip(2).unwrap();
        assert!(!tap.at_end().unwrap());
        let (ahead, mut input) = tap.finish().unwrap();
        let mut rest = ahead;
        input.read_to_end(&mut rest).unwrap();
        assert_eq!((stored.as_slice(), rest.as_slice()), (&b"abcde"[..], &b"fgh"[..]));
    }

    #[test]
    fn what_is_watched_is_shown_and_nothing_else() {
        #[derive(Default)]
        struct Seen(Vec<u8>);
        impl Observer for Seen {
            fn observe(&mut self, _: &[u8]) {}
            fn watched(&mut self, bytes: &[u8]) {
                self.0.extend_from_slice(bytes);
            }
        }
        fn watch(input: impl Read) -> Vec<u8> {
            let mut tap = Tap::new(input, io::sink(), Seen::default());
            tap.skip(2).unwrap();
            tap.watch();
            tap.skip(3).unwrap();
            tap.unwatch();
            tap.skip(1).unwrap();
            tap.watch();
            tap.skip(1).unwrap();
            std::mem::take(&mut tap.unwatch().0)
        }
        assert_eq!((watch(Drip(b"abcdefgh")), watch(&b"abcdefgh"[..])), (b"cdeg".to_vec(), b"cdeg".to_vec()));
    }

    #[test]
    fn a_short_input_is_an_error() {
        let mut tap = Tap::new(&b"abc"[..], io::sink(), ());
        assert!(matches!(tap.skip(u64::MAX), Err(TapError::Short)));
        let mut tap = Tap::new(&b"abc"[..], io::sink(), ());
        assert!(matches!(tap.take::<4>(), Err(TapError::Short)));
        assert!(tap.at_end().unwrap());
    }
}
