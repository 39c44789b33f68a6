//! Whether the clocks may be believed: retention deletes nothing on a suspect one.
//!
//! The storage's clock counts. It is held against this host's, and against the time that has really passed on this host
//! since the last prune ([`Uptime`]), which also shows a jump where both are the same clock. A jump that lasts for as
//! long as the grace, in real time, was a correction, and is believed from then on.

use crate::base::atomic::{self, IfExists};
use crate::base::uptime::{Uptime, boot_id};
use crate::ops::OpsError;
use crate::repository::trash::GRACE;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Clocks this far apart are suspect.
const TOLERANCE: TimeDelta = TimeDelta::hours(6);

/// A clock's reading at a moment of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Reading {
    uptime_seconds: u64,
    time: DateTime<Utc>,
}

impl Reading {
    /// How far the clock is ahead of where it would be, had it only gone on since `self`.
    fn jump(self, later: Reading) -> TimeDelta {
        let passed = later.uptime_seconds.saturating_sub(self.uptime_seconds);
        (later.time - self.time) - TimeDelta::seconds(i64::try_from(passed).unwrap_or(i64::MAX / 1000))
    }
}

/// `<state>/prune-clock.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    boot: String,
    believed: Reading,
    /// The first reading after a jump.
    jumped: Option<Reading>,
}

/// Refuses a clock that cannot be right, and remembers one that can.
pub(super) fn check(state_dir: Option<&Path>, storage: DateTime<Utc>, host: DateTime<Utc>) -> Result<(), OpsError> {
    if (storage - host).abs() > TOLERANCE {
        return Err(suspect(format!("the storage's clock says {storage}, this host's says {host}")));
    }
    let (Some(dir), Some(boot)) = (state_dir, boot_id()) else { return Ok(()) };
    let path = dir.join("prune-clock.json");
    let now = Reading { uptime_seconds: Uptime::now().as_secs(), time: storage };
    let known: Option<Memory> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        // A clock that has jumped would be believed.
        Err(e) => return Err(OpsError::file("read", &path, e)),
    };
    let (memory, jump) = judge(known.filter(|m| m.boot == boot), now, boot);
    let bytes = serde_json::to_vec(&memory).unwrap_or_default();
    match atomic::write(&path, &bytes, 0o600, IfExists::Replace) {
        // To make room must not take room. What was believed before still stands there.
        Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            tracing::warn!("the clock's reading is not remembered: {}: {e}", path.display());
        }
        written => written.map_err(|e| OpsError::file("write", &path, e))?,
    }
    match jump {
        None => Ok(()),
        Some(jump) => {
            let way = if jump > TimeDelta::zero() { "forward" } else { "back" };
            let hours = jump.num_hours().unsigned_abs();
            Err(suspect(format!("the clock has jumped {way} by {hours} h since the last prune")))
        }
    }
}

/// What to remember, and by how far the clock has jumped, if it has.
fn judge(known: Option<Memory>, now: Reading, boot: String) -> (Memory, Option<TimeDelta>) {
    let sound = |boot| Memory { boot, believed: now, jumped: None };
    let Some(memory) = known else { return (sound(boot), None) };
    let jump = memory.believed.jump(now);
    if jump.abs() <= TOLERANCE {
        return (sound(boot), None);
    }
    match memory.jumped {
        Some(since) if since.jump(now).abs() <= TOLERANCE => {
            let held = now.uptime_seconds.saturating_sub(since.uptime_seconds);
            if held >= GRACE.num_seconds().unsigned_abs() { (sound(boot), None) } else { (memory, Some(jump)) }
        }
        _ => (Memory { jumped: Some(now), ..memory }, Some(jump)),
    }
}

fn suspect(problem: String) -> OpsError {
    OpsError::failed(
        format!("{problem}: nothing is removed by a clock that may be wrong"),
        format!("set the clock right and run it again; what has been so for {} h is believed", GRACE.num_hours()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(uptime_hours: u64, time_hours: i64) -> Reading {
        let start: DateTime<Utc> = "2026-11-21T00:00:00Z".parse().unwrap();
        Reading { uptime_seconds: uptime_hours * 3600, time: start + TimeDelta::hours(time_hours) }
    }

    #[test]
    fn a_jump_is_believed_once_it_has_lasted() {
        let step = |known: Option<Memory>, now| judge(known, now, "boot".into());
        let (memory, jump) = step(None, reading(1, 1));
        assert_eq!(jump, None, "the first look believes");
        let (memory, jump) = step(Some(memory), reading(25, 25));
        assert_eq!(jump, None);
        let (memory, jump) = step(Some(memory), reading(26, 26 + 24 * 40));
        assert_eq!(jump.unwrap().num_days(), 40);
        let (memory, jump) = step(Some(memory), reading(50, 50 + 24 * 40));
        assert!(jump.is_some(), "24 h are not long enough");
        let (_, back) = step(Some(Memory { ..copy(&memory) }), reading(51, 51));
        assert_eq!(back, None, "set right again");
        let (other, jump) = step(Some(copy(&memory)), reading(61, 61 + 24 * 80));
        assert!(jump.is_some() && other.jumped == Some(reading(61, 61 + 24 * 80)), "another jump begins anew");
        let (_, jump) = step(Some(memory), reading(63, 63 + 24 * 40));
        assert_eq!(jump, None, "37 h after it was first seen");
        let (_, jump) = step(Some(step(None, reading(1, 1)).0), reading(2, -24 * 365 * 50));
        assert!(jump.is_some(), "1970");
    }

    #[test]
    fn what_was_believed_and_cannot_be_read_is_not_taken_for_a_first_look() {
        let dir = tempfile::tempdir().unwrap();
        let now = Utc::now();
        check(Some(dir.path()), now, now).unwrap();
        let file = dir.path().join("prune-clock.json");
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(&file, &file).unwrap();
        let error = check(Some(dir.path()), now, now).unwrap_err();
        assert!(error.to_string().starts_with(&format!("read {}", file.display())), "{error}");
    }

    fn copy(memory: &Memory) -> Memory {
        Memory { boot: memory.boot.clone(), ..*memory }
    }

    #[test]
    fn the_storage_and_the_host_agree_or_nothing_is_done() {
        let now: DateTime<Utc> = "2026-11-21T00:00:00Z".parse().unwrap();
        assert!(check(None, now, now + TimeDelta::hours(5)).is_ok());
        let error = check(None, now, now + TimeDelta::days(1)).unwrap_err();
        assert!(error.to_string().contains("2026-11-22"), "{error}");
    }
}
