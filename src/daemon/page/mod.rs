//! The status page: HTML that needs no script, loads nothing, and is readable on a phone, in the dark, and read aloud.
//!
//! Invariants: whatever is not a word of this program goes through [`Html`]; no attribute carries a style, so that the
//! content security policy can allow the one style sheet by its hash; no row's number grows with the history.
//!
//! - [`policy`](self::policy()): one application, on `one`
//! - [`overview`]: all of them
//! - [`timeline`]: snapshots and drills, as a picture

mod one;
mod timeline;

use super::desk::Seen;
use crate::base::html::Html;
use crate::base::time::{relative, rfc3339};
use crate::ops::status::{Level, PolicyStatus, overall};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Local, Utc};
use sha2::{Digest, Sha256};
use std::fmt::{self, Write};
use std::sync::LazyLock;

pub use one::policy;

const STYLE: &str = include_str!("style.css");

/// What the content security policy allows.
pub static STYLE_HASH: LazyLock<String> = LazyLock::new(|| STANDARD.encode(Sha256::digest(STYLE.as_bytes())));

/// A document around a body that `write` makes.
fn document(title: &str, level: Option<Level>, header: &str, write: impl FnOnce(&mut String) -> fmt::Result) -> String {
    let mut out = String::with_capacity(64 << 10);
    let mark = match level {
        Some(Level::Red) => "● ",
        Some(Level::Amber) => "◆ ",
        _ => "",
    };
    out += "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
            <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
            <meta name=\"robots\" content=\"noindex\">\n";
    out += &format!("<title>{mark}{}</title>\n<style>{STYLE}</style></head>\n<body>\n", Html(title));
    out += "<a class=\"skip\" href=\"#main\">To the content</a>\n";
    out += &format!("<header>{header}</header>\n<main id=\"main\">\n");
    // Writing into a text never fails.
    let _ = write(&mut out);
    out += "</main>\n";
    out += &format!(
        "<footer><p>Lifeboat {}. This page only shows; nothing can be done from it. It shows what was there at {}; load it \
         again for what is there then.</p></footer>\n</body></html>\n",
        env!("CARGO_PKG_VERSION"),
        Local::now().format("%H:%M:%S %Z")
    );
    out
}

/// A page that has nothing to show.
pub fn nothing(text: &str) -> String {
    document("Lifeboat", None, "<span class=\"who\">Lifeboat</span>", |out| {
        writeln!(out, "<h1>{}</h1>\n<p><a href=\"/\">To the status</a></p>", Html(text))
    })
}

/// All policies of this host.
pub fn overview(all: &[Seen], now: DateTime<Utc>) -> String {
    let worst = all.iter().map(|seen| seen.status.level).max();
    let host = all.iter().find_map(|seen| seen.status.host.clone()).unwrap_or_default();
    let header = format!("<span class=\"who\">Lifeboat</span><span>{}</span>{}", Html(&host), end(worst));
    document("Lifeboat", worst, &header, |out| {
        let statuses: Vec<PolicyStatus> = all.iter().map(|seen| seen.status.clone()).collect();
        if all.is_empty() {
            return writeln!(
                out,
                "<h1>Nothing is protected here.</h1>\n<p>There is no policy yet: <code>lifeboat init DIR</code> writes one.</p>"
            );
        }
        headline(out, &overall(&statuses))?;
        writeln!(out, "<ul class=\"apps\">")?;
        for seen in all {
            card(out, seen, now)?;
        }
        writeln!(out, "</ul>")
    })
}

fn card(out: &mut String, seen: &Seen, now: DateTime<Utc>) -> fmt::Result {
    let status = &seen.status;
    writeln!(
        out,
        "<li><h2><a href=\"/policies/{0}\">{0}</a></h2>{1}\n<p>{2}</p>",
        Html(&status.policy),
        level(status.level),
        Html(&status.headline)
    )?;
    let bad = status.checks.iter().filter(|check| check.level == Level::Red);
    for check in bad.take(3) {
        writeln!(out, "<p class=\"red\">{}: {}</p>", Html(check.check), Html(&check.detail))?;
    }
    if let Some(sight) = &seen.sight {
        timeline::write(out, sight, now, true)?;
    }
    writeln!(out, "</li>")
}

/// `amber`, with its sign: never by colour alone.
fn level(level: Level) -> String {
    let word = match level {
        Level::Green => "all well",
        Level::Amber => "look at it",
        Level::Red => "act now",
    };
    format!("<span class=\"level {}\">{word}</span>", level.as_str())
}

/// The right end of a header.
fn end(worst: Option<Level>) -> String {
    worst.map_or_else(String::new, |worst| format!("<span class=\"end\">{}</span>", level(worst)))
}

/// A number and its unit stay together.
fn together(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut letters = text.chars().peekable();
    let mut last = ' ';
    while let Some(c) = letters.next() {
        let unit = c == ' ' && last.is_ascii_digit() && letters.peek().is_some_and(|next| "smhd".contains(*next));
        out.push(if unit { '\u{a0}' } else { c });
        last = c;
    }
    out
}

/// The headline: what is lost and when it is back in large letters, the rest below.
fn headline(out: &mut String, text: &str) -> fmt::Result {
    let text = &together(text);
    let (first, rest) = match text.split_once("; ") {
        Some((first, rest)) => (format!("{first}."), rest),
        None => (text.to_owned(), ""),
    };
    write!(out, "<h1>{}", Html(&first))?;
    if !rest.is_empty() {
        let mut letters = rest.chars();
        let begin: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
        write!(out, " <span class=\"rest\">{}{}</span>", Html(&begin), Html(letters.as_str()))?;
    }
    writeln!(out, "</h1>")
}

/// `<time>` with the wall clock's time.
fn time(at: DateTime<Utc>) -> String {
    format!("<time datetime=\"{}\">{}</time>", rfc3339(at), at.with_timezone(&Local).format("%Y-%m-%d %H:%M"))
}

/// The same with how long ago it was.
fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} <span class=\"dim nowrap\">{}</span>", time(at), relative(at, now))
}
