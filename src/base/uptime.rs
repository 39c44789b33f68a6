//! Time that has really passed on this host: no clock setting changes it, and it goes on while the machine sleeps.

use std::fs;
use std::time::Duration;

/// A moment since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(Duration);

impl Uptime {
    /// Now, by `CLOCK_BOOTTIME`.
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)))
    }

    /// What has passed since.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    pub fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

/// Names this boot of this machine; absent where the kernel does not tell.
pub fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}
