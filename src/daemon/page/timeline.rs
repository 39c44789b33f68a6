//! Snapshots and drills on a time line, drawn twice: broad, and narrow for a phone, where letters must not shrink.

use crate::base::time::rfc3339;
use crate::base::units::human_size;
use crate::ops::Outcome;
use crate::ops::drill::DrillOutcome;
use crate::ops::status::Sight;
use chrono::{DateTime, Local, TimeDelta, Utc};
use std::fmt::{self, Write};

/// What is older is not drawn.
const LONGEST: TimeDelta = TimeDelta::days(400);
const SHORTEST: TimeDelta = TimeDelta::days(7);
/// Marks in one picture.
const MOST: usize = 1_500;
/// Room for the letters at both ends.
const SIDE: f64 = 14.0;
const TALLEST: f64 = 64.0;
const LOWEST: f64 = 5.0;

/// One picture's measures.
struct Paper {
    width: f64,
    base: f64,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
}

impl Paper {
    fn x(&self, at: DateTime<Utc>) -> f64 {
        let whole = (self.to - self.from).num_seconds().max(1) as f64;
        let part = (at - self.from).num_seconds() as f64 / whole;
        SIDE + part.clamp(0.0, 1.0) * (self.width - 2.0 * SIDE)
    }
}

/// Writes the picture and what its signs mean; `small` in a list of several.
pub fn write(out: &mut String, sight: &Sight, now: DateTime<Utc>, small: bool) -> fmt::Result {
    let snapshots = &sight.repository.snapshots;
    let Some(first) = snapshots.first() else {
        return writeln!(out, "<p class=\"dim\">No snapshot yet.</p>");
    };
    let span = (now - first.time).clamp(SHORTEST, LONGEST);
    let from = now - span - TimeDelta::seconds(span.num_seconds() / 50);
    writeln!(out, "<figure>")?;
    for (class, width) in [("broad", 960.0), ("narrow", 360.0)] {
        let paper = Paper { width, base: if small { 40.0 } else { 84.0 }, from, to: now };
        picture(out, class, &paper, sight, small)?;
    }
    if !small {
        writeln!(
            out,
            "<figcaption><span><i></i>snapshot, as tall as what was new in it</span><span><i class=\"odd\"></i>not \
             complete</span><span><i class=\"pass\"></i>drill passed</span><span><i class=\"fail\"></i>drill failed</span></figcaption>"
        )?;
    }
    writeln!(out, "</figure>")
}

fn picture(out: &mut String, class: &str, paper: &Paper, sight: &Sight, small: bool) -> fmt::Result {
    let Paper { width, base, from, to } = paper;
    let height = base + if small { 26.0 } else { 54.0 };
    let snapshots: Vec<_> = sight.repository.snapshots.iter().rev().take(MOST).filter(|s| s.time >= *from).collect();
    let drills: Vec<_> = sight.repository.drills.iter().rev().take(MOST).filter(|d| d.time >= *from).collect();
    write!(
        out,
        "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{} snapshots and {} drills from {} to {}\">",
        snapshots.len(),
        drills.len(),
        day(*from),
        day(*to)
    )?;
    write!(out, "<line class=\"base\" x1=\"0\" y1=\"{base}\" x2=\"{width}\" y2=\"{base}\"/>")?;
    ticks(out, paper, height)?;
    let tallest = (TALLEST.min(base - 8.0)).max(LOWEST);
    let most = snapshots.iter().map(|s| s.bytes_new).max().unwrap_or(0).max(1) as f64;
    // Bars touch each other where there are many, and never hide the line.
    let thick = ((width - 2.0 * SIDE) / snapshots.len().max(1) as f64 * 0.6).clamp(0.9, 7.0);
    for snapshot in &snapshots {
        let tall = LOWEST + (tallest - LOWEST) * (snapshot.bytes_new as f64 / most).sqrt();
        let class = if snapshot.outcome == Outcome::Complete && !snapshot.forked { "snap" } else { "odd" };
        write!(
            out,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{thick:.1}\" height=\"{tall:.1}\" rx=\"1\">",
            paper.x(snapshot.time) - thick / 2.0,
            base - tall
        )?;
        // The day, the size: ids and times are of one alphabet, and need no escape.
        write!(
            out,
            "<title>{} {}, {} new</title></rect>",
            rfc3339(snapshot.time),
            snapshot.id,
            human_size(snapshot.bytes_new)
        )?;
    }
    for drill in &drills {
        let (x, y) = (paper.x(drill.time), base + if small { 9.0 } else { 13.0 });
        let title = format!("<title>{} drill of {}</title>", rfc3339(drill.time), drill.snapshot);
        match drill.outcome {
            DrillOutcome::Passed => {
                write!(out, "<circle class=\"pass\" cx=\"{x:.1}\" cy=\"{y}\" r=\"3.6\">{title}</circle>")?
            }
            DrillOutcome::Failed => {
                write!(
                    out,
                    "<path class=\"fail\" d=\"M{x:.1} {}l4.6 4.6l-4.6 4.6l-4.6 -4.6z\">{title}</path>",
                    y - 4.6
                )?;
            }
        }
    }
    writeln!(out, "</svg>")
}

/// Dates below the line, as many as there is room for, and now.
fn ticks(out: &mut String, paper: &Paper, height: f64) -> fmt::Result {
    let days = (paper.to - paper.from).num_days().max(1);
    let room = ((paper.width / 90.0) as i64).max(2);
    let step = [1, 2, 7, 14, 28, 56, 91, 182].into_iter().find(|step| days / step <= room).unwrap_or(365);
    let y = height - 6.0;
    let mut at = paper.to - TimeDelta::days(step);
    while at > paper.from {
        let x = paper.x(at);
        write!(
            out,
            "<line class=\"base\" x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{}\"/>",
            paper.base,
            paper.base + 5.0
        )?;
        if x > 34.0 && x < paper.width - 62.0 {
            let date = at.with_timezone(&Local).format(if days > 250 { "%b %Y" } else { "%-d %b" });
            write!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{date}</text>")?;
        }
        at -= TimeDelta::days(step);
    }
    let x = paper.x(paper.to);
    write!(out, "<line class=\"now\" x1=\"{x:.1}\" y1=\"6\" x2=\"{x:.1}\" y2=\"{}\"/>", paper.base + 5.0)?;
    write!(out, "<text x=\"{:.1}\" y=\"{y}\" text-anchor=\"end\">now</text>", paper.width - 2.0)
}

fn day(at: DateTime<Utc>) -> String {
    at.with_timezone(&Local).format("%-d %B %Y").to_string()
}
