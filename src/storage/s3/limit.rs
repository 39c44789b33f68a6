//! A bandwidth limit: one bucket of tokens for all threads.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Hands out bytes at a steady rate; a short idle time saves up at most a quarter of a second of it.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// May be negative: bytes that have been sent ahead of their time.
    tokens: f64,
    filled: Instant,
}

impl RateLimit {
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        // A limit of nothing would never send anything.
        let rate = bytes_per_second.max(1) as f64;
        Self { bytes_per_second: rate, state: Mutex::new(State { tokens: 0.0, filled: now }) }
    }

    /// Takes `bytes` out of the bucket, and says how long the sender must pause before it goes on.
    pub fn take(&self, bytes: usize, now: Instant) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.filled).as_secs_f64();
        state.filled = now;
        state.tokens = (state.tokens + passed * self.bytes_per_second).min(self.bytes_per_second / 4.0);
        state.tokens -= bytes as f64;
        if state.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64((-state.tokens / self.bytes_per_second).min(3600.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_all_takers_and_idle_time_is_not_saved_up() {
        let start = Instant::now();
        let limit = RateLimit::new(1000, start);
        assert_eq!(limit.take(500, start), Duration::from_millis(500));
        assert_eq!(limit.take(500, start), Duration::from_secs(1));
        let later = start + Duration::from_secs(100);
        assert_eq!(limit.take(250, later), Duration::ZERO);
        assert_eq!(limit.take(1000, later), Duration::from_secs(1));
    }
}
