//! Trying again: with growing pauses and jitter, for a bounded time, and only where trying again may help.

use super::client::Bucket;
use super::error::S3Error;
use std::time::{Duration, Instant};

impl Bucket {
    /// Makes a request until it succeeds, fails for good, or the time is up.
    pub async fn retry<T, F>(&self, mut request: impl FnMut() -> F) -> Result<T, S3Error>
    where
        F: Future<Output = Result<T, S3Error>>,
    {
        let begun = Instant::now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match request().await {
                Ok(value) => return Ok(value),
                Err(e) if !e.is_retryable() => return Err(e),
                Err(e) => e,
            };
            // An endpoint that has never answered may not exist at all.
            let patience = if self.wire.has_answered() { self.pace.deadline } else { self.pace.first_contact };
            let pause = jittered(self.pause(attempts));
            let spent = begun.elapsed();
            if spent + pause >= patience {
                return Err(S3Error::GaveUp { attempts, spent, source: Box::new(error) });
            }
            tracing::debug!(attempts, ?pause, %error, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    fn pause(&self, attempts: u32) -> Duration {
        let doubled = self.pace.first_pause.saturating_mul(1 << (attempts - 1).min(16));
        doubled.min(self.pace.longest_pause)
    }
}

/// Between half and all of it, so that many clients do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness the pause is the whole one.
    let share = match getrandom::fill(&mut random) {
        Ok(()) => f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    };
    pause.mul_f64(0.5 + share / 2.0)
}
