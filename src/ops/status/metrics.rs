//! The same for machines: OpenMetrics text. Every metric is a gauge, so that the text is also what Prometheus' older
//! format and the node exporter's textfile collector read: there the lines of `# UNIT` and `# EOF` are comments.
//!
//! Labels are the policy's name, words of this program, and what the policy calls its health checks; nothing else, so the
//! number of series stays small.

use super::judge::{Level, PolicyStatus};
use super::ran::Ran;
use crate::ops::drill::DrillOutcome;
use crate::ops::runs::What;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a server says the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Family {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    /// Labels beside the policy, and the value.
    of: fn(&PolicyStatus, &Ran, DateTime<Utc>) -> Samples,
}

type Labels = Vec<(&'static str, String)>;
type Samples = Vec<(Labels, f64)>;

fn one(value: Option<f64>) -> Samples {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn seconds(time: DateTime<Utc>) -> f64 {
    time.timestamp() as f64
}

fn truth(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

fn of_runs(ran: &Ran, value: impl Fn(What) -> Option<f64>) -> Samples {
    let label = |what: What| vec![("run", what.as_str().to_owned())];
    ran.newest.keys().filter_map(|what| Some((label(*what), value(*what)?))).collect()
}

/// The worst of each check's name.
fn checks(status: &PolicyStatus) -> Samples {
    let mut worst: BTreeMap<&str, Level> = BTreeMap::new();
    for check in &status.checks {
        let level = worst.entry(check.check).or_insert(check.level);
        *level = (*level).max(check.level);
    }
    worst.into_iter().map(|(name, level)| (vec![("check", name.to_owned())], level as u8 as f64)).collect()
}

const FAMILIES: &[Family] = &[
    Family {
        name: "lifeboat_status",
        unit: "",
        help: "Whether everything is fine: 0 green, 1 amber, 2 red.",
        of: |status, _, _| one(Some(status.level as u8 as f64)),
    },
    Family {
        name: "lifeboat_check",
        unit: "",
        help: "One thing that was judged: 0 green, 1 amber, 2 red.",
        of: |status, _, _| checks(status),
    },
    Family {
        name: "lifeboat_looked_timestamp_seconds",
        unit: "seconds",
        help: "When the repository and the application were last looked at.",
        of: |status, _, _| one(status.looked.map(seconds)),
    },
    Family {
        name: "lifeboat_data_loss_seconds",
        unit: "seconds",
        help: "Data that would be lost if the whole server died now (RPO); absent where that is everything.",
        of: |status, _, _| one(status.loss.server.as_ref().map(|lost| lost.seconds as f64)),
    },
    Family {
        name: "lifeboat_application_loss_seconds",
        unit: "seconds",
        help: "Data that would be lost if only the application broke now; absent where there is no complete snapshot.",
        of: |status, _, _| one(status.loss.application.as_ref().map(|lost| lost.seconds as f64)),
    },
    Family {
        name: "lifeboat_recovery_seconds",
        unit: "seconds",
        help: "What it takes to come back, as it was measured last (RTO).",
        of: |status, _, _| one(status.recovery.as_ref().map(|recovery| recovery.seconds)),
    },
    Family {
        name: "lifeboat_snapshot_timestamp_seconds",
        unit: "seconds",
        help: "When the newest complete snapshot was taken.",
        of: |status, _, _| one(status.loss.application.as_ref().map(|lost| seconds(lost.since))),
    },
    Family {
        name: "lifeboat_snapshot_size_bytes",
        unit: "bytes",
        help: "What the newest complete snapshot holds.",
        of: |status, _, _| one(status.newest.as_ref().map(|newest| newest.bytes_total as f64)),
    },
    Family {
        name: "lifeboat_snapshot_new_bytes",
        unit: "bytes",
        help: "What the newest complete snapshot has added to the repository.",
        of: |status, _, _| one(status.newest.as_ref().map(|newest| newest.bytes_new as f64)),
    },
    Family {
        name: "lifeboat_snapshots",
        unit: "",
        help: "Snapshots of this host and policy in the repository.",
        of: |status, _, _| one(status.repository.as_ref().map(|repository| repository.snapshots as f64)),
    },
    Family {
        name: "lifeboat_repository_size_bytes",
        unit: "bytes",
        help: "Everything that is stored in the policy's repository, of other policies as well.",
        of: |status, _, _| {
            one(status.repository.as_ref().and_then(|repository| repository.stored_bytes).map(|bytes| bytes as f64))
        },
    },
    Family {
        name: "lifeboat_repository_reached_timestamp_seconds",
        unit: "seconds",
        help: "When the repository last answered.",
        of: |status, _, _| one(status.repository.as_ref().and_then(|r| r.reached).map(seconds)),
    },
    Family {
        name: "lifeboat_drill_timestamp_seconds",
        unit: "seconds",
        help: "When the newest drill ended.",
        of: |status, _, _| one(status.drill.as_ref().map(|drill| seconds(drill.time))),
    },
    Family {
        name: "lifeboat_drill_age_seconds",
        unit: "seconds",
        help: "How long ago the newest drill ended.",
        of: |status, _, now| one(status.drill.as_ref().map(|drill| (now - drill.time).num_seconds().max(0) as f64)),
    },
    Family {
        name: "lifeboat_drill_passed",
        unit: "",
        help: "Whether the newest drill passed.",
        of: |status, _, _| one(status.drill.as_ref().map(|drill| truth(drill.outcome == DrillOutcome::Passed))),
    },
    Family {
        name: "lifeboat_drill_checks",
        unit: "",
        help: "Checks of the newest drill, by how they ended.",
        of: |status, _, _| {
            let counts = status.drill.as_ref().map(|drill| drill.checks);
            let all = counts.map(|c| [("passed", c.passed), ("failed", c.failed), ("skipped", c.skipped)]);
            let label = |word: &str| vec![("outcome", word.to_owned())];
            all.into_iter().flatten().map(|(word, count)| (label(word), f64::from(count))).collect()
        },
    },
    Family {
        name: "lifeboat_run_timestamp_seconds",
        unit: "seconds",
        help: "When the newest run of a kind began.",
        of: |_, ran, _| of_runs(ran, |what| Some(seconds(ran.newest.get(&what)?.begun))),
    },
    Family {
        name: "lifeboat_run_duration_seconds",
        unit: "seconds",
        help: "How long the newest run of a kind took that was done.",
        of: |_, ran, _| {
            of_runs(ran, |what| {
                let run = ran.done.get(&what)?;
                Some((run.ended? - run.begun).num_seconds() as f64)
            })
        },
    },
    Family {
        name: "lifeboat_run_success_timestamp_seconds",
        unit: "seconds",
        help: "When the newest run of a kind ended that was done.",
        of: |_, ran, _| of_runs(ran, |what| Some(seconds(ran.done.get(&what)?.ended?))),
    },
    Family {
        name: "lifeboat_run_failing",
        unit: "",
        help: "Whether runs of a kind fail now.",
        of: |_, ran, _| of_runs(ran, |what| Some(truth(ran.failing.iter().any(|(failing, _)| *failing == what)))),
    },
    Family {
        name: "lifeboat_recent_runs",
        unit: "",
        help: "Runs that began in the last seven days, by kind and outcome.",
        of: |_, ran, _| {
            let label =
                |what: What, outcome: &str| vec![("run", what.as_str().to_owned()), ("outcome", outcome.to_owned())];
            ran.recent.iter().map(|(what, outcome, count)| (label(*what, outcome), *count as f64)).collect()
        },
    },
    Family {
        name: "lifeboat_next_run_timestamp_seconds",
        unit: "seconds",
        help: "When a run of a kind is due next.",
        of: |status, _, _| {
            let label = |what: What| vec![("run", what.as_str().to_owned())];
            status.next.iter().map(|next| (label(next.does), seconds(next.at))).collect()
        },
    },
    Family {
        name: "lifeboat_health",
        unit: "",
        help: "Whether a health check of the policy passed when it was last tried.",
        of: |status, _, _| {
            let mut seen: BTreeMap<&str, bool> = BTreeMap::new();
            for health in &status.health {
                *seen.entry(&health.name).or_insert(true) &= health.ok;
            }
            seen.into_iter().map(|(name, ok)| (vec![("health", name.to_owned())], truth(ok))).collect()
        },
    },
];

/// The text for these policies.
pub fn text(all: &[(PolicyStatus, Ran)], now: DateTime<Utc>) -> String {
    let mut out = String::with_capacity(16 << 10);
    let help = "This program.";
    out += &format!("# TYPE lifeboat_build gauge\n# HELP lifeboat_build {help}\n");
    out += &format!("lifeboat_build{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
    for family in FAMILIES {
        let Family { name, unit, help, of } = family;
        let samples: Vec<(&str, Labels, f64)> = all
            .iter()
            .flat_map(|(status, ran)| of(status, ran, now).into_iter().map(|(l, v)| (status.policy.as_str(), l, v)))
            .collect();
        if samples.is_empty() {
            continue;
        }
        let _ = writeln!(out, "# TYPE {name} gauge");
        if !unit.is_empty() {
            let _ = writeln!(out, "# UNIT {name} {unit}");
        }
        let _ = writeln!(out, "# HELP {name} {help}");
        for (policy, labels, value) in samples {
            let _ = write!(out, "{name}{{policy=\"{}\"", escaped(policy));
            for (label, text) in labels {
                let _ = write!(out, ",{label}=\"{}\"", escaped(&text));
            }
            let _ = writeln!(out, "}} {value}");
        }
    }
    out += "# EOF\n";
    out
}

/// A label's value as the format writes it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out += "\\\\",
            '"' => out += "\\\"",
            '\n' => out += "\\n",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
