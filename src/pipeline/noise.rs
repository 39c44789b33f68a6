//! Whether bytes are noise: what nothing is gained of by compressing.

/// Whether bytes are spread so evenly that little can be gained, by a sample of `runs` runs of `RUN` bytes each. What is
/// not twice as long as the sample is not called noise.
pub fn is_noise<const RUN: usize>(plain: &[u8], runs: usize) -> bool {
    // With a tar header among the samples the sum comes to half as much again as the least; of text to fifteen times, and
    // of what has but 64 values, as base64 has, to four.
    is_spread::<RUN>(plain, runs, 16)
}

/// The same of what has hardly anything else in it.
pub fn is_nothing_else<const RUN: usize>(plain: &[u8], runs: usize) -> bool {
    is_spread::<RUN>(plain, runs, 9)
}

/// Whether the squares of the counts of all bytes of a sample come to less than so many eighths of the least that there can
/// be. Of n random bytes they come to (n + 256) / n times of it.
fn is_spread<const RUN: usize>(plain: &[u8], runs: usize, eighths: u64) -> bool {
    if plain.len() < 2 * runs * RUN {
        return false;
    }
    let mut counts = [0u32; 256];
    let step = (plain.len() - RUN) / (runs - 1);
    for run in 0..runs {
        for byte in &plain[run * step..][..RUN] {
            counts[usize::from(*byte)] += 1;
        }
    }
    let squares: u64 = counts.iter().map(|n| u64::from(*n) * u64::from(*n)).sum();
    let all = (runs * RUN) as u64;
    squares * 256 * 8 < all * all * eighths
}

/// Whether something in `plain` stands there twice, by looking at the places at which two bytes stand that are taken from
/// the middle of `some` of it: of a MiB of noise at sixteen. Behind them four bytes are equal by chance in one of some ten
/// million times.
pub fn repeats(plain: &[u8], some: &[u8]) -> bool {
    let Some(pair) = some.get(some.len() / 2..).and_then(|rest| rest.first_chunk::<2>()) else { return false };
    let behind = memchr::memmem::find_iter(plain, pair).filter_map(|at| plain[at + 2..].first_chunk::<4>());
    let mut seen = [&[0; 4]; 64];
    for (count, bytes) in behind.take(seen.len()).enumerate() {
        if seen[..count].contains(&bytes) {
            return true;
        }
        seen[count] = bytes;
    }
    false
}
