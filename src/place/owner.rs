//! Marks on what this process starts elsewhere, so that a later run can tell an orphan from somebody's work.
//!
//! A mark is `<boot id>/<pid namespace>/<pid>/<start time>`. Only a mark of the same boot and pid namespace can be
//! judged; anything else counts as alive, and its deadline must end it.

use crate::base::uptime::boot_id;
use std::sync::OnceLock;

/// The mark of this process.
pub fn mark() -> &'static str {
    static MARK: OnceLock<String> = OnceLock::new();
    MARK.get_or_init(|| {
        let pid = std::process::id();
        let start = start_time(pid).unwrap_or_default();
        format!("{}/{pid}/{start}", world())
    })
}

/// The mark of another process of this host; absent when there is none with this id.
pub fn mark_of(pid: u32) -> Option<String> {
    Some(format!("{}/{pid}/{}", world(), start_time(pid)?))
}

/// The process id in a mark whose process surely still lives, here.
pub fn pid_of(mark: &str) -> Option<u32> {
    let pid: u32 = mark.rsplit('/').nth(1)?.parse().ok()?;
    (mark_of(pid)? == mark).then_some(pid)
}

/// Whether the process that made `mark` surely lives no more.
pub fn is_gone(mark: &str) -> bool {
    let Some((rest, start)) = mark.rsplit_once('/') else { return false };
    let Some((there, pid)) = rest.rsplit_once('/') else { return false };
    match pid.parse() {
        Ok(pid) if there == world() && !start.is_empty() => start_time(pid).as_deref() != Some(start),
        _ => false,
    }
}

/// The same for a mark that was surely made on this host: then another boot is an earlier one, and nothing of it lives.
pub fn is_gone_here(mark: &str) -> bool {
    let boot = boot_id();
    let earlier =
        mark.split_once('/').is_some_and(|(there, _)| !there.is_empty() && boot.is_some_and(|boot| there != boot));
    earlier || is_gone(mark)
}

/// This boot and pid namespace: where a pid means the same process.
fn world() -> String {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{}/{}", boot_id().unwrap_or_default(), namespace.to_string_lossy())
}

/// When a process began, in clock ticks since boot.
pub(super) fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything; the start time is the 22nd.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    // One that has ended and was not waited for yet does nothing any more.
    let state = fields.next().filter(|state| !matches!(*state, "Z" | "X"));
    state.and_then(|_| fields.nth(18)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_dead_from_the_living_and_the_unknown() {
        assert!(!is_gone(mark()));
        let (rest, _) = mark().rsplit_once('/').unwrap();
        assert!(is_gone(&format!("{rest}/1")), "a recycled pid is another process");
        assert!(is_gone(&format!("{}/4194304/12345", world())), "no such pid");
        let own = std::process::id();
        assert_eq!(mark_of(own).as_deref(), Some(mark()));
        assert_eq!((pid_of(mark()), pid_of(&format!("{rest}/1")), pid_of("x")), (Some(own), None, None));
        for foreign in ["", "x", "other-boot/pid:[1]/1/1", &format!("{rest}/")] {
            assert!(!is_gone(foreign), "{foreign}");
        }
        assert!(is_gone_here("other-boot/pid:[1]/1/1") && !is_gone_here("x") && !is_gone_here(mark()));
        let elsewhere = format!("{}/pid:[1]/1/1", boot_id().unwrap());
        assert!(!is_gone_here(&elsewhere), "another container of this boot");
    }
}
