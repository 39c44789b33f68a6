//! The headline: what a person wants to know first, in one sentence.

use super::judge::{Level, PolicyStatus};
use chrono::Local;

/// For a policy that cannot be read.
pub(super) const UNREADABLE: &str = "If this server died now: nobody knows, the policy cannot be read.";

/// For one that nobody has looked at.
pub(super) const UNSEEN: &str = "If this server died now: nobody has looked yet what would be lost.";

/// `41 s`, `4 min`, `3 h 12 min`, `9 d 3 h`.
pub fn about(seconds: u64) -> String {
    match seconds {
        0..=89 => format!("{seconds} s"),
        90..=5_399 => format!("{} min", (seconds + 30) / 60),
        5_400..=172_799 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// `If this server died now: 3 h 12 min of data lost, back in about 4 min (measured 2026-11-15); not covered: Supabase.`
pub(super) fn of(status: &PolicyStatus) -> String {
    let lost = |lost: &super::judge::Lost| format!("{} of data lost", about(lost.seconds));
    let (loss, back) = (&status.loss, back(status));
    let mut text = match (&loss.server, &loss.application) {
        (Some(server), _) => format!("If this server died now: {}, {back}", lost(server)),
        (None, Some(application)) => format!(
            "If this server died now: everything lost, for its backups lie on it alone; if only the application broke: {}, {back}",
            lost(application)
        ),
        (None, None) => "If this server died now: everything lost, there is no complete snapshot".to_owned(),
    };
    text += &not_covered(&status.not_covered);
    text + "."
}

fn back(status: &PolicyStatus) -> String {
    match &status.recovery {
        Some(recovery) => format!(
            "back in about {} (measured {})",
            about(recovery.seconds.max(0.0).round() as u64),
            recovery.measured.with_timezone(&Local).format("%Y-%m-%d")
        ),
        None => "back in a time that nobody has measured".to_owned(),
    }
}

fn not_covered(names: &[String]) -> String {
    match names {
        [] => String::new(),
        some => format!("; not covered: {}", some.join(", ")),
    }
}

/// The same for all policies of a server: the worst loss, the times to come back one after the other.
pub fn overall(all: &[PolicyStatus]) -> String {
    if let [one] = all {
        return one.headline.clone();
    }
    let known: Vec<&PolicyStatus> = all.iter().filter(|s| s.repository.is_some()).collect();
    let names = |of: &[&PolicyStatus]| of.iter().map(|s| s.policy.as_str()).collect::<Vec<_>>().join(", ");
    let gone: Vec<&PolicyStatus> = all.iter().filter(|s| s.loss.server.is_none()).collect();
    let worst = known.iter().filter_map(|s| Some((s, s.loss.server.as_ref()?))).max_by_key(|(_, lost)| lost.seconds);
    let mut parts = Vec::new();
    if !gone.is_empty() {
        parts.push(format!("everything of {} lost", names(&gone)));
    }
    if let Some((status, lost)) = worst {
        parts.push(format!("up to {} of data lost ({})", about(lost.seconds), status.policy));
    }
    let back: Vec<f64> = known.iter().filter_map(|s| Some(s.recovery.as_ref()?.seconds)).collect();
    if back.len() == all.len() && !back.is_empty() {
        let sum: f64 = back.iter().map(|s| s.max(0.0)).sum();
        parts.push(format!("back in about {}, one after the other", about(sum.round() as u64)));
    } else if worst.is_some() {
        let unmeasured: Vec<&PolicyStatus> = all.iter().filter(|s| s.recovery.is_none()).collect();
        parts.push(format!("back in a time that nobody has measured for {}", names(&unmeasured)));
    }
    let mut outside: Vec<String> = Vec::new();
    for name in all.iter().flat_map(|s| &s.not_covered) {
        if !outside.contains(name) {
            outside.push(name.clone());
        }
    }
    format!("If this server died now: {}{}.", parts.join(", "), not_covered(&outside))
}

impl PolicyStatus {
    /// How many checks are of this level.
    pub fn count(&self, level: Level) -> usize {
        self.checks.iter().filter(|check| check.level == level).count()
    }
}
