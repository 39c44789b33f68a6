//! The report as one self-contained page: no script, nothing fetched, light and dark.
//!
//! Everything that comes from the snapshot is text of somebody else: it is escaped, always, by [`Html`].

use super::report::{DrillReport, ProofReport};
use crate::base::time::rfc3339;
use crate::base::units::human_duration;
use crate::ops::html::Html;
use crate::repository::format::DrillOutcome;
use crate::sources::proof::{Check, Verdict};
use std::fmt::Write;
use std::time::Duration;

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fff;--ink:#1c2330;--dim:#5d6778;--line:#d9dee7;--card:#f6f8fb;--ok:#1a7f4b;--bad:#c02632;--skip:#8a6d00;--bar:#2f6fde;--soft:#a9c3f2}
@media(prefers-color-scheme:dark){:root{--bg:#12161d;--ink:#e6eaf1;--dim:#9aa5b6;--line:#2b3340;--card:#1a202a;--ok:#4cc38a;--bad:#ff6b74;--skip:#e0b93f;--bar:#6aa0ff;--soft:#34517f}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2.25rem 0 .5rem}
p{margin:.25rem 0}.dim{color:var(--dim)}.passed{color:var(--ok)}.failed{color:var(--bad)}.skipped{color:var(--skip)}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;margin:1.25rem 0}
.numbers div{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.75rem 1rem}
.numbers b{display:block;font-size:1.35rem}.numbers span{color:var(--dim);font-size:.9rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.94rem}th,td{text-align:left;vertical-align:top;padding:.4rem .6rem;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
th{color:var(--dim);font-weight:600}td:first-child{white-space:nowrap}svg{display:block;width:100%;height:auto}svg text{fill:var(--ink);font-size:13px}svg .dim{fill:var(--dim)}
details{margin:.25rem 0}summary{cursor:pointer}code{font-size:.9em}
@media(max-width:40rem){td:first-child{white-space:normal}th,td{padding:.35rem}}
@media print{main{max-width:none}details{display:block}}";

/// The page of one drill.
pub fn page(report: &DrillReport) -> String {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = write(&mut out, report);
    out
}

fn write(out: &mut String, report: &DrillReport) -> std::fmt::Result {
    let (word, class) = match report.outcome {
        DrillOutcome::Passed => ("passed", "passed"),
        DrillOutcome::Failed => ("failed", "failed"),
    };
    let policy = report.policy.to_string();
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Drill of {0}: {word}</title>\n<style>{STYLE}</style></head>\n<body><main>\n\
         <h1>Drill of {0}: <span class=\"{class}\">{word}</span></h1>\n<p>{1}</p>",
        Html(&policy),
        Html(&sentence(report)),
    )?;
    writeln!(
        out,
        "<p class=\"dim\">Snapshot <code>{}</code> of {}, taken {}; restored on {}, {}.</p>",
        Html(report.snapshot.as_str()),
        Html(report.host.as_str()),
        rfc3339(report.taken),
        Html(report.drilled_on.as_str()),
        rfc3339(report.started),
    )?;
    numbers(out, report)?;
    failures(out, report)?;
    writeln!(out, "<h2>Time line</h2>\n{}", timeline(report)?)?;
    for source in &report.sources {
        section(out, source)?;
    }
    if !report.notes.is_empty() {
        writeln!(out, "<h2>Notes</h2>")?;
        for note in &report.notes {
            writeln!(out, "<p>{}</p>", Html(note))?;
        }
    }
    writeln!(out, "</main></body></html>")
}

/// `Restored 41 tables (1,204,332 rows), 88,120 keys, in 41 s.`
fn sentence(report: &DrillReport) -> String {
    let summary = report.summary();
    let mut letters = summary.chars();
    letters.next().map(|first| format!("{}{}.", first.to_uppercase(), letters.as_str())).unwrap_or_default()
}

fn numbers(out: &mut String, report: &DrillReport) -> std::fmt::Result {
    let checks = report.checks;
    let age = Duration::from_secs(u64::try_from(report.data_age_seconds).unwrap_or(0));
    writeln!(
        out,
        "<div class=\"numbers\">\n<div><b>{}</b><span>recovery time, measured (RTO)</span></div>\n\
         <div><b>{}</b><span>age of the data (RPO)</span></div>\n\
         <div><b>{} of {}</b><span>checks passed{}</span></div>\n<div><b>{}</b><span>the whole drill</span></div>\n</div>",
        seconds(report.recovery_seconds),
        human_duration(age),
        checks.passed,
        checks.passed + checks.failed + checks.skipped,
        match checks.skipped {
            0 => String::new(),
            n => format!(", {n} skipped"),
        },
        seconds(report.seconds),
    )
}

/// What failed stands first: nobody shall have to look for it.
fn failures(out: &mut String, report: &DrillReport) -> std::fmt::Result {
    if report.all_checks().all(|(_, c)| c.verdict != Verdict::Failed) {
        return Ok(());
    }
    writeln!(out, "<h2 class=\"failed\">What failed</h2>")?;
    for source in &report.sources {
        for check in source.failed() {
            writeln!(
                out,
                "<p><b>{}</b>: {}{}: {}</p>",
                Html(source.name.as_str()),
                Html(&check.name),
                of(check),
                Html(check.why.as_deref().unwrap_or_default())
            )?;
        }
    }
    Ok(())
}

fn of(check: &Check) -> String {
    if check.subject.is_empty() { String::new() } else { format!(" of {}", Html(&check.subject)) }
}

fn section(out: &mut String, source: &ProofReport) -> std::fmt::Result {
    let name = source.name.to_string();
    let kind = if source.kind == name { String::new() } else { format!(" ({})", Html(&source.kind)) };
    let class = word(source.verdict);
    writeln!(
        out,
        "<h2>{}{kind}: <span class=\"{class}\">{class}</span> <span class=\"dim\">in {}</span></h2>",
        Html(&name),
        seconds(source.seconds)
    )?;
    writeln!(
        out,
        "<div class=\"wide\"><table><thead><tr><th>Check</th><th>Of</th><th>Expected</th><th>Found</th><th></th></tr></thead><tbody>"
    )?;
    for check in &source.proof.checks {
        row(out, check)?;
    }
    writeln!(out, "</tbody></table></div>")
}

fn row(out: &mut String, check: &Check) -> std::fmt::Result {
    let class = word(check.verdict);
    write!(
        out,
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td><span class=\"{class}\">{class}</span>",
        Html(&check.name),
        Html(&check.subject),
        Html(&check.expected),
        Html(&check.found)
    )?;
    if let Some(why) = &check.why {
        write!(out, "<br>{}", Html(why))?;
    }
    if !check.differences.is_empty() {
        let all = check.differences.len() as u64 + check.more_differences;
        write!(out, "<details><summary>{all} differences</summary>")?;
        for d in &check.differences {
            write!(
                out,
                "<p><code>{}</code>: expected {}, found {}</p>",
                Html(&d.subject),
                Html(&d.expected),
                Html(&d.found)
            )?;
        }
        if check.more_differences > 0 {
            write!(out, "<p>and {} more</p>", check.more_differences)?;
        }
        write!(out, "</details>")?;
    }
    writeln!(out, "</td></tr>")
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::Skipped => "skipped",
    }
}

fn seconds(s: f64) -> String {
    human_duration(Duration::from_secs_f64(s.max(0.0)))
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 80.0;
const ROW: f64 = 26.0;

/// One bar for each step, source by source; what brings things back is strong, what only proves is light.
fn timeline(report: &DrillReport) -> Result<String, std::fmt::Error> {
    let rows: Vec<&ProofReport> = report.sources.iter().filter(|s| s.seconds > 0.0).collect();
    let height = ROW * (rows.len() as f64 + 1.5);
    let whole = report.seconds.max(0.001);
    let x = |at: f64| LEFT + (at / whole).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    let mut svg = String::new();
    write!(
        svg,
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"Time line of the drill: {} from the first byte to the last check\">",
        seconds(report.seconds)
    )?;
    for (n, source) in rows.iter().enumerate() {
        let top = ROW * n as f64 + 4.0;
        let end = source.begin_seconds + source.seconds;
        write!(svg, "<text x=\"0\" y=\"{:.1}\">{}</text>", top + 14.0, Html(&short(source.name.as_str())))?;
        write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"18\" rx=\"3\" fill=\"var(--soft)\"/>",
            x(source.begin_seconds),
            (x(end) - x(source.begin_seconds)).max(2.0)
        )?;
        for step in source.proof.steps.iter().filter(|s| s.restores) {
            let (from, to) = (x(step.begin_seconds), x(step.begin_seconds + step.seconds));
            write!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"18\" rx=\"3\" fill=\"var(--bar)\"><title>{}: {}</title></rect>",
                (to - from).max(1.5),
                Html(&step.name),
                seconds(step.seconds)
            )?;
        }
        let mark = if source.verdict == Verdict::Failed { "var(--bad)" } else { "var(--dim)" };
        write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" style=\"fill:{mark}\">{}</text>",
            x(end) + 6.0,
            top + 14.0,
            seconds(source.seconds)
        )?;
    }
    let bottom = ROW * rows.len() as f64 + 20.0;
    write!(
        svg,
        "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"var(--bar)\"/><text class=\"dim\" x=\"{:.1}\" y=\"{bottom:.1}\">brings it back</text>\
         <rect x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"var(--soft)\"/><text class=\"dim\" x=\"{:.1}\" y=\"{bottom:.1}\">proves it</text></svg>",
        bottom - 11.0,
        LEFT + 18.0,
        LEFT + 140.0,
        bottom - 11.0,
        LEFT + 158.0,
    )?;
    Ok(svg)
}

/// A name that fits beside the bars.
fn short(name: &str) -> String {
    match name.chars().count() {
        0..=20 => name.to_owned(),
        _ => format!("{}…", name.chars().take(19).collect::<String>()),
    }
}
