//! The sheet as a page to print: one self-contained file, black on white, no script, nothing fetched. It fits one page
//! of A4 for an application with a few copies and recipients; of what is longer each sheet says which one it is, and of
//! how many.

use super::leaves::{Leaf, leaves};
use super::sheet::{BLANK, Sheet};
use crate::base::html::Html;
use crate::ops::OpsError;
use qrcode::{Color, EcLevel, QrCode};
use std::fmt::Write;

const STYLE: &str = "
@page{size:A4;margin:10mm 13mm}*{box-sizing:border-box}
body{margin:0 auto;max-width:186mm;color:#000;background:#fff;font:9pt/1.27 'Liberation Sans','DejaVu Sans',Arial,sans-serif}
h1{font-size:15pt;margin:0 0 1mm}p{margin:0 0 1mm}pre,td{font-family:'Liberation Mono','DejaVu Sans Mono',monospace;font-size:8pt}
table{border-collapse:collapse;width:100%;margin:2mm 0}th,td{text-align:left;vertical-align:top;padding:.7mm 1.5mm;border:.3mm solid #000;overflow-wrap:anywhere}
th{width:30mm;font-weight:normal}tr.bold th{font-weight:bold}td div+div{margin-top:.3mm}
.line{display:inline-block;min-width:58mm;border-bottom:.3mm solid #000;height:1em}
ol{margin:0;padding-left:5mm}li{margin:0 0 1.4mm;break-inside:avoid}li b{margin-right:1.5mm}
pre{margin:.5mm 0 0;padding:.8mm 1.5mm;border-left:.8mm solid #000;white-space:pre-wrap;overflow-wrap:anywhere}
.secret{display:flex;gap:4mm;align-items:center;border:.6mm solid #000;padding:2mm;margin:1mm 0;break-inside:avoid}
.secret pre{border:0;padding:0;flex:1;overflow-wrap:anywhere}.secret svg{width:34mm;height:34mm;flex:none}
footer{border-top:.3mm solid #000;margin-top:2mm;padding-top:1mm;font-size:8.4pt}
.next{break-before:page}
@media screen{body{padding:8mm;max-width:202mm}.next{margin-top:12mm}}";

/// The page.
pub fn page(sheet: &Sheet) -> Result<String, OpsError> {
    let square = sheet.secret.as_ref().map(|(_, secret)| square(secret)).transpose()?;
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = write_page(&mut out, sheet, square.as_deref());
    Ok(out)
}

fn write_page(out: &mut String, sheet: &Sheet, square: Option<&str>) -> std::fmt::Result {
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>{STYLE}</style></head>\n<body>",
        Html(&sheet.title)
    )?;
    let leaves = leaves(sheet);
    for (n, leaf) in leaves.iter().enumerate() {
        let which = if leaves.len() > 1 { format!(", sheet {} of {}", n + 1, leaves.len()) } else { String::new() };
        let class = if n > 0 { " class=\"next\"" } else { "" };
        writeln!(out, "<h1{class}>{}{which}</h1>", Html(&sheet.title))?;
        if n == 0 {
            writeln!(out, "<p>{}</p>", Html(&sheet.lead))?;
        }
        write_leaf(out, leaf)?;
        if leaf.secret
            && let (Some((name, secret)), Some(square)) = (&sheet.secret, square)
        {
            writeln!(out, "<div class=\"secret\"><pre><b>{}</b>\n{}</pre>{square}</div>", Html(name), Html(secret))?;
        }
        writeln!(out, "<footer>")?;
        for line in &sheet.foot {
            writeln!(out, "<div>{}</div>", Html(line))?;
        }
        writeln!(out, "</footer>")?;
    }
    writeln!(out, "</body></html>")
}

fn write_leaf(out: &mut String, leaf: &Leaf<'_>) -> std::fmt::Result {
    if !leaf.rows.is_empty() {
        writeln!(out, "<table>")?;
    }
    for row in &leaf.rows {
        // The three things that are needed stand first.
        let class = if row.bold { " class=\"bold\"" } else { "" };
        let more = if row.goes_on { ", more" } else { "" };
        write!(out, "<tr{class}><th>{}{more}</th><td>", Html(row.name))?;
        for line in &row.lines {
            write!(out, "<div>{}</div>", with_blanks(line))?;
        }
        writeln!(out, "</td></tr>")?;
    }
    if !leaf.rows.is_empty() {
        writeln!(out, "</table>")?;
    }
    let Some((first, _)) = leaf.steps.first() else { return Ok(()) };
    writeln!(out, "<ol start=\"{first}\">")?;
    for (_, step) in &leaf.steps {
        write!(out, "<li><b>{}.</b>{}", Html(step.title), Html(&step.text))?;
        let commands: Vec<String> = step.commands.iter().map(|c| Html(c).to_string()).collect();
        writeln!(out, "<pre>{}</pre></li>", commands.join("\n"))?;
    }
    writeln!(out, "</ol>")
}

/// A line to write on in the place of underscores.
fn with_blanks(text: &str) -> String {
    Html(text).to_string().replace(BLANK, "<span class=\"line\"></span>")
}

/// The text as a square that a camera reads.
fn square(text: &str) -> Result<String, OpsError> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M).map_err(|e| {
        OpsError::failed(format!("the identity does not fit a code for cameras: {e}"), "leave --with-identity out")
    })?;
    let width = code.width();
    let mut path = String::new();
    for (at, colour) in code.to_colors().into_iter().enumerate() {
        if colour == Color::Dark {
            let _ = write!(path, "M{} {}h1v1h-1z", at % width + 4, at / width + 4);
        }
    }
    let side = width + 8;
    Ok(format!(
        "<svg viewBox=\"0 0 {side} {side}\" shape-rendering=\"crispEdges\" role=\"img\" aria-label=\"the same for a camera\"><path d=\"{path}\"/></svg>"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::kit::carried::Carried;
    use crate::ops::kit::facts::{Facts, tests::facts};
    use crate::ops::kit::sheet::Notes;
    use crate::ops::kit::{Kit, Program, text};
    use crate::pipeline::crypt::object_id;

    fn sheet(carried: &Carried, policy: &str) -> Sheet {
        let mut facts = facts();
        facts.root = policy.into();
        sheet_of(facts, carried)
    }

    fn sheet_of(facts: Facts, carried: &Carried) -> Sheet {
        let code = facts.code().unwrap();
        let program = Program { version: "0.1.0", target: "linux x86_64".into(), sha256: object_id(b"x") };
        let kit = Kit { facts, newest: None, program, code, shared: false };
        let printed = "2026-11-21T12:00:00Z".parse().unwrap();
        Sheet::new(&kit, carried, &Notes { printed, kept: None, ask: None, options: String::new() })
    }

    #[test]
    fn names_of_others_are_text() {
        let sheet = sheet(&Carried::Nothing, "/srv/<b>\u{1b}[2J\u{202e}");
        let html = page(&sheet).unwrap();
        assert!(html.contains("/srv/&lt;b&gt;\\x1b[2J\\u202e") && !html.contains('\u{1b}'), "{html}");
        let text = text::text(&sheet);
        assert!(text.contains("/srv/<b>\\u{1b}[2J\\u{202e}"), "{text}");
    }

    /// As many as take several sheets, and what a sheet is then.
    #[test]
    fn what_is_longer_than_a_sheet_says_which_sheet_it_is() {
        let secret = || Carried::Plain("AGE-SECRET-KEY-1QQQ\n".to_owned().into());
        let html = page(&sheet(&secret(), "/a")).unwrap();
        assert!(!html.contains("sheet 1") && !html.contains("class=\"next\""), "one sheet needs no number");
        let mut facts = facts();
        let copy = |n: u32| crate::ops::kit::Place { url: format!("/mnt/copy-{n}"), ..facts.places[0].clone() };
        facts.places = (0..8).map(copy).collect();
        for (recipients, sheets) in [(20, 2), (150, 4)] {
            facts.recipients = (0..recipients).map(|n| format!("age1-{n}-{}", "q".repeat(55))).collect();
            let sheet = sheet_of(facts.clone(), &secret());
            let html = page(&sheet).unwrap();
            let code = facts.code().unwrap();
            let parts: Vec<&str> = html.split("class=\"next\"").collect();
            assert_eq!(parts.len(), sheets, "{html}");
            for (n, part) in parts.iter().enumerate() {
                assert!(
                    part.contains(&format!(", sheet {} of {sheets}</h1>", n + 1)) && part.contains(&code),
                    "{part}"
                );
            }
            // Nothing is left out, and nothing is there twice.
            let all = sheet.commands().into_iter().chain(facts.recipients.iter().map(String::as_str));
            for text in all.chain(["AGE-SECRET-KEY-1QQQ"]) {
                assert_eq!(html.matches(&Html(text).to_string()).count(), text_count(&sheet, text), "{text}");
            }
            // Steps go on counting where the sheet before has ended.
            let mut before = 0;
            for steps in html.split("<ol start=\"").skip(1) {
                assert!(steps.starts_with(&format!("{}\">", before + 1)), "{before} steps, then {}", &steps[..9]);
                before += steps.matches("<li>").count();
            }
            assert_eq!(before, sheet.steps.len());
            assert_eq!(html.matches("<th>The identity, more</th>").count(), usize::from(recipients > 100) * 2);
        }
    }

    /// How often a text stands in the sheet itself.
    fn text_count(sheet: &Sheet, text: &str) -> usize {
        let facts = sheet.facts.iter().flat_map(|(_, lines)| lines.iter());
        let steps = sheet.steps.iter().flat_map(|step| step.commands.iter().chain([&step.text]));
        let secret = sheet.secret.iter().map(|(_, secret)| secret);
        let all = facts.chain(steps).chain(secret).chain(&sheet.foot).chain([&sheet.lead]);
        all.map(|line| line.matches(text).count()).sum()
    }

    #[test]
    fn the_identity_is_there_only_when_it_was_asked_for() {
        let secret = "AGE-SECRET-KEY-1QQQ\n".to_owned();
        let plain = page(&sheet(&Carried::Nothing, "/a")).unwrap();
        assert!(!plain.contains("AGE-SECRET") && !plain.contains("<svg"));
        let with = page(&sheet(&Carried::Plain(secret.into()), "/a")).unwrap();
        assert!(with.contains("AGE-SECRET-KEY-1QQQ") && with.contains("<svg"));
    }
}
