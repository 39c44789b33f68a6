//! Whether bytes are noise: what nothing is gained of by compressing.

/// Whether bytes are spread so evenly that nothing can be gained, by a sample of `runs` runs of `RUN` bytes each. What is
/// not twice as long as the sample is not called noise.
pub fn is_noise<const RUN: usize>(plain: &[u8], runs: usize) -> bool {
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
    // Of n random bytes the sum comes to (n + 256) / n times the least that there can be, and with a tar header among the
    // samples to half as much again; of text to fifteen times, and of what has but 64 values, as base64 has, to four.
    let squares: u64 = counts.iter().map(|n| u64::from(*n) * u64::from(*n)).sum();
    let all = (runs * RUN) as u64;
    squares * 256 < all * all * 2
}
