//! One application's page: the headline, what needs somebody, the time line, and the lists behind them.

use super::super::desk::Seen;
use super::{ago, document, end, headline, level, time, timeline};
use crate::base::html::Html;
use crate::base::time::relative;
use crate::base::units::{human_duration, human_size};
use crate::ops::Outcome;
use crate::ops::drill::{DrillLine, DrillOutcome};
use crate::ops::runs::RunRecord;
use crate::ops::status::{Check, Level, PolicyStatus, Sight, SnapshotSight, about, drill_page};
use chrono::{DateTime, Utc};
use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Rows that are shown at once, and those behind a fold.
const SNAPSHOTS: (usize, usize) = (10, 300);
const DRILLS: (usize, usize) = (6, 60);
const RUNS: (usize, usize) = (10, 190);
/// An error in a row.
const ERROR_CHARS: usize = 300;

/// The page of a policy. `runs`: the newest, and how many there are.
pub fn policy(
    seen: &Seen,
    runs: &(Vec<RunRecord>, usize),
    is_one_of_many: bool,
    state_dir: &Path,
    now: DateTime<Utc>,
) -> String {
    let status = &seen.status;
    let host = status.host.as_deref().unwrap_or_default();
    let name = Html(&status.policy);
    let mut header = match is_one_of_many {
        true => "<a class=\"who\" href=\"/\">Lifeboat</a>".to_owned(),
        false => "<span class=\"who\">Lifeboat</span>".to_owned(),
    };
    header += &format!("<span>{name} on {}</span>{}", Html(host), end(Some(status.level)));
    let title = format!("{} · Lifeboat", status.policy);
    document(&title, Some(status.level), &header, |out| {
        headline(out, &status.headline)?;
        facts(out, status, now)?;
        needs(out, status)?;
        if let Some(sight) = &seen.sight {
            section(out, "Time line", |out| timeline::write(out, sight, now, false))?;
            snapshots(out, sight, now)?;
            drills(out, sight, state_dir, now)?;
        }
        uncovered(out, seen)?;
        history(out, runs, now)?;
        checks(out, status)?;
        looked(out, seen, now)
    })
}

fn section(out: &mut String, title: &str, write: impl FnOnce(&mut String) -> fmt::Result) -> fmt::Result {
    let id = title.to_lowercase().replace(' ', "-");
    writeln!(out, "<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{title}</h2>")?;
    write(out)?;
    writeln!(out, "</section>")
}

fn fact(out: &mut String, name: &str, value: &str, more: &str) -> fmt::Result {
    writeln!(out, "<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>")
}

fn facts(out: &mut String, status: &PolicyStatus, now: DateTime<Utc>) -> fmt::Result {
    writeln!(out, "<dl class=\"facts\">")?;
    match &status.loss.application {
        Some(lost) => fact(out, "Newest snapshot", &relative(lost.since, now), &time(lost.since))?,
        None => fact(out, "Newest snapshot", "none yet", "")?,
    }
    match &status.recovery {
        Some(back) => {
            let took = human_duration(Duration::from_secs_f64(back.seconds.max(0.0)));
            fact(
                out,
                "Time to come back",
                &took,
                &format!("measured by a {} {}", back.by, relative(back.measured, now)),
            )?;
        }
        None => fact(out, "Time to come back", "unknown", "no drill has passed yet")?,
    }
    if let Some(drill) = &status.drill {
        let (class, word) = outcome(drill.outcome);
        let word = format!("<span class=\"{class}\">{word}</span>");
        fact(out, "Newest drill", &word, &format!("{}, {}", relative(drill.time, now), counts(drill)))?;
    }
    if let Some(repository) = &status.repository {
        let size = repository.stored_bytes.map_or_else(|| "unknown".to_owned(), human_size);
        let place = if repository.elsewhere { "outlives this machine" } else { "on this machine" };
        fact(out, "Repository", &size, &format!("{} snapshots, {place}", repository.snapshots))?;
    }
    if let Some(next) = status.next.first() {
        fact(out, "Next run", &relative(next.at, now), &format!("{}, {}", next.does.as_str(), time(next.at)))?;
    }
    writeln!(out, "</dl>")
}

/// What is amber or red, the worst first, with the way out.
fn needs(out: &mut String, status: &PolicyStatus) -> fmt::Result {
    let mut bad: Vec<&Check> = status.checks.iter().filter(|check| check.level != Level::Green).collect();
    bad.sort_by_key(|check| std::cmp::Reverse(check.level));
    section(out, "What needs you", |out| {
        if bad.is_empty() {
            return writeln!(out, "<p class=\"dim\">Nothing does.</p>");
        }
        writeln!(out, "<ul class=\"needs\">")?;
        for check in bad {
            write!(
                out,
                "<li><div>{}</div><div><p><b>{}</b>: {}</p>",
                level(check.level),
                Html(check.check),
                Html(&check.detail)
            )?;
            if let Some(hint) = &check.hint {
                write!(out, "<p class=\"hint\">{}</p>", code(hint))?;
            }
            writeln!(out, "</div></li>")?;
        }
        writeln!(out, "</ul>")
    })
}

/// A hint: what stands between backquotes is a command.
fn code(hint: &str) -> String {
    let parts = hint.split('`').enumerate();
    parts
        .map(|(n, part)| if n % 2 == 1 { format!("<code>{}</code>", Html(part)) } else { Html(part).to_string() })
        .collect()
}

/// The rows that are seen at once, then a fold with the others.
fn folded<T>(
    out: &mut String,
    (caption, head): (&str, &str),
    rows: &[T],
    (open, folded): (usize, usize),
    row: impl Fn(&mut String, &T) -> fmt::Result,
) -> fmt::Result {
    let table = |out: &mut String, caption: &str, rows: &[T]| -> fmt::Result {
        // What is wider than the screen is moved by itself, with the keyboard as well.
        writeln!(
            out,
            "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table><caption>{caption}</caption>"
        )?;
        writeln!(out, "<thead><tr>{head}</tr></thead><tbody>")?;
        rows.iter().try_for_each(|one| row(out, one))?;
        writeln!(out, "</tbody></table></div>")
    };
    let (first, rest) = rows.split_at(open.min(rows.len()));
    table(out, caption, first)?;
    let rest = &rest[..folded.min(rest.len())];
    if rest.is_empty() {
        return Ok(());
    }
    writeln!(out, "<details><summary>{} older</summary>", rest.len())?;
    table(out, &format!("{caption}, older"), rest)?;
    writeln!(out, "</details>")
}

fn snapshots(out: &mut String, sight: &Sight, now: DateTime<Utc>) -> fmt::Result {
    let rows: Vec<&SnapshotSight> = sight.repository.snapshots.iter().rev().collect();
    if rows.is_empty() {
        return Ok(());
    }
    let head = "<th scope=\"col\">Taken</th><th scope=\"col\">Snapshot</th><th scope=\"col\" class=\"num\">Size</th>\
                <th scope=\"col\" class=\"num\">New</th><th scope=\"col\">Outcome</th><th scope=\"col\">Tags</th>";
    let caption = format!("{} in {}", rows.len(), sight.repository.url);
    let caption = Html(&caption).to_string();
    section(out, "Snapshots", |out| {
        folded(out, (&caption, head), &rows, SNAPSHOTS, |out, snapshot| {
            let (class, word) = match snapshot.outcome {
                _ if snapshot.forked => ("red", "forked"),
                Outcome::Complete => ("green", "complete"),
                Outcome::Suspect => ("amber", "suspect"),
                Outcome::Partial => ("red", "partial"),
            };
            let tags: Vec<&str> = snapshot.tags.iter().map(|tag| tag.as_str()).collect();
            writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td><code class=\"nowrap\">{}</code></td><td class=\"num\">{}</td><td class=\"num\">{}</td>\
                 <td class=\"{class}\">{word}</td><td>{}</td></tr>",
                ago(snapshot.time, now),
                Html(&snapshot.id),
                human_size(snapshot.bytes_total),
                human_size(snapshot.bytes_new),
                Html(tags.join(", "))
            )
        })
    })
}

fn outcome(outcome: DrillOutcome) -> (&'static str, &'static str) {
    match outcome {
        DrillOutcome::Passed => ("green", "passed"),
        DrillOutcome::Failed => ("red", "failed"),
    }
}

/// `31 checks, 1 failed, 2 skipped`.
fn counts(drill: &DrillLine) -> String {
    let counts = drill.checks;
    let all = counts.passed + counts.failed + counts.skipped;
    let mut text = format!("{all} check{}", if all == 1 { "" } else { "s" });
    for (count, word) in [(counts.failed, "failed"), (counts.skipped, "skipped")] {
        if count > 0 {
            text += &format!(", {count} {word}");
        }
    }
    text
}

fn drills(out: &mut String, sight: &Sight, state_dir: &Path, now: DateTime<Utc>) -> fmt::Result {
    let rows: Vec<(usize, &DrillLine)> = sight.repository.drills.iter().rev().enumerate().collect();
    let head = "<th scope=\"col\">Proved</th><th scope=\"col\">Outcome</th><th scope=\"col\">Checks</th>\
                <th scope=\"col\" class=\"num\">Back in</th><th scope=\"col\">Snapshot</th><th scope=\"col\">Report</th>";
    section(out, "Drills", |out| {
        if rows.is_empty() {
            return writeln!(
                out,
                "<p>No snapshot was ever restored to prove it: <code>lifeboat drill</code> does.</p>"
            );
        }
        folded(out, ("restored into throw-away services, and compared", head), &rows, DRILLS, |out, (n, drill)| {
            let (class, word) = outcome(drill.outcome);
            // Only so many are looked for.
            let page = (*n < DRILLS.0 + DRILLS.1).then(|| drill_page(state_dir, drill)).flatten();
            let report = match page {
                Some(page) => format!("<a href=\"/drills/{0}\">report</a>", Html(page)),
                None => format!("<span class=\"dim\">on {}</span>", Html(&drill.drilled_on)),
            };
            writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td class=\"{class}\">{word}</td><td class=\"nowrap\">{}</td><td class=\"num\">{}</td>\
                 <td><code class=\"nowrap\">{}</code></td><td>{report}</td></tr>",
                ago(drill.time, now),
                counts(drill),
                about(drill.recovery_seconds.max(0.0).round() as u64),
                Html(&drill.snapshot)
            )
        })
    })
}

/// What would not come back, and what is not ours.
fn uncovered(out: &mut String, seen: &Seen) -> fmt::Result {
    section(out, "Not covered", |out| {
        let gaps = seen.sight.iter().flat_map(|sight| sight.gaps.iter().flatten());
        let mut items: Vec<String> = gaps
            .map(|gap| {
                let hint = gap.hint.as_deref().map(|hint| format!(" <span class=\"dim\">{}</span>", code(hint)));
                format!("{}{}", Html(&gap.what), hint.unwrap_or_default())
            })
            .collect();
        let named: Vec<&str> =
            seen.sight.iter().flat_map(|s| s.gaps.iter().flatten()).map(|g| g.name.as_str()).collect();
        let outside = seen.status.not_covered.iter().filter(|name| !named.contains(&name.as_str()));
        let more = |name: &&String| name.ends_with(" more");
        items.extend(outside.filter(|name| !more(name)).map(|name| {
            format!("{} <span class=\"dim\">is not ours to back up; the policy says so</span>", Html(name))
        }));
        if items.is_empty() {
            let known = seen.sight.as_ref().is_some_and(|sight| sight.gaps.is_some());
            let text =
                if known { "Everything that was found is captured by a source." } else { "Nobody has looked yet." };
            return writeln!(out, "<p class=\"dim\">{text}</p>");
        }
        writeln!(out, "<ul class=\"plain\">")?;
        items.iter().try_for_each(|item| writeln!(out, "<li>{item}</li>"))?;
        writeln!(out, "</ul>")
    })
}

fn history(out: &mut String, (runs, all): &(Vec<RunRecord>, usize), now: DateTime<Utc>) -> fmt::Result {
    if runs.is_empty() {
        return Ok(());
    }
    let head = "<th scope=\"col\">Began</th><th scope=\"col\">Run</th><th scope=\"col\">Outcome</th>\
                <th scope=\"col\" class=\"num\">Took</th><th scope=\"col\">Why</th>";
    let caption = match all - runs.len().min(*all) {
        0 => format!("{all} on this host"),
        _ => format!("the newest {} of {all} on this host; lifeboat history shows all", runs.len()),
    };
    section(out, "Runs", |out| {
        folded(out, (&caption, head), runs, RUNS, |out, run| {
            let (class, word) = match run.outcome() {
                None => ("amber", "at work"),
                Some("done") => ("green", "done"),
                Some(word @ ("busy" | "cancelled")) => ("amber", word),
                Some(word) => ("red", word),
            };
            let took = run.ended.and_then(|ended| (ended - run.begun).to_std().ok()).map(human_duration);
            let error: String = run.error.iter().flat_map(|e| e.chars()).take(ERROR_CHARS).collect();
            writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td class=\"nowrap\">{} <span class=\"dim\">{}</span></td><td class=\"{class}\">{}</td>\
                 <td class=\"num\">{}</td><td class=\"text\">{}</td></tr>",
                ago(run.begun, now),
                run.what.as_str(),
                Html(&run.trigger),
                Html(word),
                took.unwrap_or_default(),
                Html(error)
            )
        })
    })
}

/// Every check, also what is well.
fn checks(out: &mut String, status: &PolicyStatus) -> fmt::Result {
    section(out, "All checks", |out| {
        let well = status.count(Level::Green);
        writeln!(out, "<details><summary>{well} of {} are well</summary><ul class=\"needs\">", status.checks.len())?;
        for check in &status.checks {
            writeln!(
                out,
                "<li><div>{}</div><div><p><b>{}</b>: {}</p></div></li>",
                level(check.level),
                Html(check.check),
                Html(&check.detail)
            )?;
        }
        writeln!(out, "</ul></details>")
    })
}

fn looked(out: &mut String, seen: &Seen, now: DateTime<Utc>) -> fmt::Result {
    let when = match seen.status.looked {
        Some(looked) => format!("The repository and the application were looked at {}", ago(looked, now)),
        None => "Nobody has looked at the repository and the application yet".to_owned(),
    };
    let again = if seen.looking { "; they are being looked at now" } else { "" };
    writeln!(out, "<p class=\"dim small\">{when}{again}.</p>")
}
