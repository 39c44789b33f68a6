//! Hostile bytes for parsers, on the stable compiler: what lies in `tests/corpus/<name>/`, and what mutations make of it.
//!
//! A target is called with bytes and must come back: whatever it says of them, without a panic, soon, and without taking
//! memory for lengths that are only claimed. A case that fails is made smaller before it is shown; put into the corpus
//! as `found-…` it is tried first from then on. The test command tries the same cases every time for about a second;
//! `LIFEBOAT_SWEEP=1` tries others, for a minute or for `LIFEBOAT_SWEEP_SECONDS`. `LIFEBOAT_FUZZ_TRACE=FILE` keeps each
//! case in a file before it is tried, for what ends the process.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::prop_oneof;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// A case that takes longer is a bomb.
const SLOW: Duration = Duration::from_secs(10);
/// What a parser may take for itself, with everything that a test binary holds anyway.
const MOST_KIB: u64 = 512 << 10;
const LONGEST: usize = 1 << 20;

/// A parser's seeds and vocabulary.
pub struct Fuzz {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

/// One change of a seed.
#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Word(Index, Index),
    /// A word so often that recursion and quadratic work show.
    Heap(Index, Index, u16),
    Remove(Index, u8),
    Repeat(Index, u8, u8),
    Cut(Index),
    /// The rest of another seed, or of the same one.
    Splice(Index, Index, Index),
    /// A number that arithmetic falls over, in so many bytes of either order.
    Number(Index, Index, bool),
    Digits(Index, Index),
}

const NUMBERS: &[u64] = &[0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX, 1 << 32];
const DIGITS: &[&str] = &["-1", "0", "00", "255", "65536", "4294967296", "9223372036854775808", "18446744073709551616"];

impl Fuzz {
    /// With everything in the corpus of that name.
    pub fn of(name: &'static str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
        let mut files: Vec<_> = std::fs::read_dir(&dir).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        files.sort();
        let seeds = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
        Self { name, seeds, words: Vec::new() }
    }

    pub fn seed(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.seeds.push(bytes.into());
        self
    }

    /// What the format gives a meaning to.
    pub fn words<W: AsRef<[u8]>>(mut self, words: &[W]) -> Self {
        self.words.extend(words.iter().map(|w| w.as_ref().to_vec()));
        self
    }

    /// Tries the target.
    pub fn run(mut self, target: impl Fn(&[u8])) {
        assert!(!self.seeds.is_empty(), "{}: without a seed nothing is found", self.name);
        if self.words.is_empty() {
            self.words = ["\0", "\n", "\"", "\\", "[", "{", "(", "é"].map(|w| w.as_bytes().to_vec()).to_vec();
        }
        let long = std::env::var_os("LIFEBOAT_SWEEP").is_some_and(|v| v == "1");
        let seconds = std::env::var("LIFEBOAT_SWEEP_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
        let budget = if long { Duration::from_secs(seconds) } else { Duration::from_secs(1) };
        let config = Config { failure_persistence: None, ..Config::default() };
        let mut runner = if long { TestRunner::new(config) } else { TestRunner::deterministic() };
        for seed in &self.seeds {
            self.attempt(seed, &target).unwrap_or_else(|why| self.fail(seed, &why));
        }
        let plan = (any::<Index>(), vec(mutation(), 1..6));
        let end = Instant::now() + budget;
        let mut cases = 0u64;
        while Instant::now() < end {
            let mut tree = plan.new_tree(&mut runner).unwrap();
            cases += 1;
            if self.attempt(&self.made(&tree.current()), &target).is_ok() {
                continue;
            }
            let fails = |case: &(Index, Vec<Mutation>)| self.attempt(&self.made(case), &target).err();
            let (mut smallest, mut why) = (tree.current(), fails(&tree.current()).unwrap_or_default());
            let give_up = Instant::now() + Duration::from_secs(30);
            while Instant::now() < give_up && tree.simplify() {
                match fails(&tree.current()) {
                    Some(said) => (smallest, why) = (tree.current(), said),
                    None if tree.complicate() => {}
                    None => break,
                }
            }
            self.fail(&self.made(&smallest), &why);
        }
        println!("{cases} cases of {}, {} seeds", self.name, self.seeds.len());
        if std::env::var_os("NEXTEST").is_some() {
            let peak = peak_kib();
            assert!(peak < MOST_KIB, "{}: {peak} KiB were taken", self.name);
        }
    }

    fn attempt(&self, bytes: &[u8], target: &impl Fn(&[u8])) -> Result<(), String> {
        if let Some(trace) = std::env::var_os("LIFEBOAT_FUZZ_TRACE") {
            std::fs::write(trace, bytes).unwrap();
        }
        let begun = Instant::now();
        catch_unwind(AssertUnwindSafe(|| target(bytes))).map_err(|e| {
            let said = e.downcast_ref::<String>().cloned().or(e.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            said.unwrap_or_default()
        })?;
        match begun.elapsed() {
            took if took > SLOW => Err(format!("it took {took:?}")),
            _ => Ok(()),
        }
    }

    fn fail(&self, bytes: &[u8], why: &str) {
        let file = std::env::temp_dir().join(format!("found-{}-{}", self.name, std::process::id()));
        std::fs::write(&file, bytes).unwrap();
        let shown = bytes[..bytes.len().min(2_000)].escape_ascii();
        panic!("{}: {why}\n{} bytes, kept as {}: {shown}", self.name, bytes.len(), file.display());
    }

    fn made(&self, (seed, mutations): &(Index, Vec<Mutation>)) -> Vec<u8> {
        let mut bytes = seed.get(&self.seeds).clone();
        for mutation in mutations {
            self.apply(&mut bytes, mutation);
            bytes.truncate(LONGEST);
        }
        bytes
    }

    fn apply(&self, bytes: &mut Vec<u8>, mutation: &Mutation) {
        let at = |index: &Index, len: usize| index.index(len + 1);
        let over = |bytes: &mut Vec<u8>, at: usize, new: &[u8]| {
            let end = (at + new.len()).min(bytes.len());
            bytes.splice(at..end, new.iter().copied());
        };
        let len = bytes.len();
        match mutation {
            Mutation::Flip(i, bit) if len > 0 => bytes[i.index(len)] ^= 1 << (bit % 8),
            Mutation::Set(i, byte) if len > 0 => bytes[i.index(len)] = *byte,
            Mutation::Flip(..) | Mutation::Set(..) => {}
            Mutation::Insert(i, new) => drop(bytes.splice(at(i, len)..at(i, len), new.iter().copied())),
            Mutation::Word(i, word) => {
                drop(bytes.splice(at(i, len)..at(i, len), word.get(&self.words).iter().copied()));
            }
            Mutation::Heap(i, word, times) => {
                let heap = word.get(&self.words).repeat(usize::from(*times));
                drop(bytes.splice(at(i, len)..at(i, len), heap));
            }
            Mutation::Remove(i, most) => {
                let from = at(i, len);
                bytes.drain(from..(from + usize::from(*most)).min(len));
            }
            Mutation::Repeat(i, length, times) => {
                let from = at(i, len);
                let part = bytes[from..(from + usize::from(*length)).min(len)].repeat(usize::from(*times));
                drop(bytes.splice(from..from, part));
            }
            Mutation::Cut(i) => bytes.truncate(at(i, len)),
            Mutation::Splice(i, other, from) => {
                let other = other.get(&self.seeds);
                bytes.truncate(at(i, len));
                bytes.extend_from_slice(&other[at(from, other.len())..]);
            }
            Mutation::Number(i, number, little) => {
                let number = *number.get(NUMBERS);
                let width = [1, 2, 4, 8][at(i, len) % 4];
                let new = if *little { number.to_le_bytes() } else { number.to_be_bytes() };
                over(bytes, at(i, len), if *little { &new[..width] } else { &new[8 - width..] });
            }
            Mutation::Digits(i, digits) => over(bytes, at(i, len), digits.get(DIGITS).as_bytes()),
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), any::<u8>()).prop_map(|(i, b)| Mutation::Flip(i, b)),
        2 => (at(), any::<u8>()).prop_map(|(i, b)| Mutation::Set(i, b)),
        2 => (at(), vec(any::<u8>(), 1..9)).prop_map(|(i, new)| Mutation::Insert(i, new)),
        4 => (at(), at()).prop_map(|(i, w)| Mutation::Word(i, w)),
        1 => (at(), at(), 1..20_000u16).prop_map(|(i, w, n)| Mutation::Heap(i, w, n)),
        3 => (at(), any::<u8>()).prop_map(|(i, n)| Mutation::Remove(i, n)),
        2 => (at(), any::<u8>(), 1..40u8).prop_map(|(i, n, times)| Mutation::Repeat(i, n, times)),
        1 => at().prop_map(Mutation::Cut),
        2 => (at(), at(), at()).prop_map(|(i, other, from)| Mutation::Splice(i, other, from)),
        2 => (at(), at(), any::<bool>()).prop_map(|(i, n, little)| Mutation::Number(i, n, little)),
        2 => (at(), at()).prop_map(|(i, d)| Mutation::Digits(i, d)),
    ]
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The harness itself finds what is there to find, and makes it small.
#[test]
fn a_planted_fault_is_found_and_made_small() {
    let found = catch_unwind(|| {
        Fuzz::of("none").seed("a plain line\n".repeat(20)).words(&["<!"]).run(|bytes| {
            assert!(!bytes.windows(2).any(|w| w == b"<!"), "planted");
        });
    });
    let said = found.unwrap_err().downcast_ref::<String>().unwrap().clone();
    assert!(said.contains("planted") && said.contains("none"), "{said}");
    let file = std::env::temp_dir().join(format!("found-none-{}", std::process::id()));
    let case = std::fs::read(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    assert!(case.len() <= "a plain line\n".len() * 20 + 2, "{}", case.len());
}
