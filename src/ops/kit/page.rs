//! The sheet as a page to print: one self-contained file, black on white, no script, nothing fetched. It fits one page
//! of A4 for an application with a few copies and recipients; what is longer goes on on a second one.

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
@media screen{body{padding:8mm;max-width:202mm}}";

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
         <title>{0}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{0}</h1>\n<p>{1}</p>\n<table>",
        Html(&sheet.title),
        Html(&sheet.lead)
    )?;
    for (n, (name, lines)) in sheet.facts.iter().enumerate() {
        // The three things that are needed stand first.
        let class = if n < 3 { " class=\"bold\"" } else { "" };
        write!(out, "<tr{class}><th>{}</th><td>", Html(name))?;
        for line in lines {
            write!(out, "<div>{}</div>", with_blanks(line))?;
        }
        writeln!(out, "</td></tr>")?;
    }
    writeln!(out, "</table>\n<ol>")?;
    for step in &sheet.steps {
        write!(out, "<li><b>{}.</b>{}", Html(step.title), Html(&step.text))?;
        let commands: Vec<String> = step.commands.iter().map(|c| Html(c).to_string()).collect();
        writeln!(out, "<pre>{}</pre></li>", commands.join("\n"))?;
    }
    writeln!(out, "</ol>")?;
    if let (Some((name, secret)), Some(square)) = (&sheet.secret, square) {
        writeln!(out, "<div class=\"secret\"><pre><b>{}</b>\n{}</pre>{square}</div>", Html(name), Html(secret))?;
    }
    writeln!(out, "<footer>")?;
    for line in &sheet.foot {
        writeln!(out, "<div>{}</div>", Html(line))?;
    }
    writeln!(out, "</footer>\n</body></html>")
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
    use crate::ops::kit::facts::tests::facts;
    use crate::ops::kit::sheet::Notes;
    use crate::ops::kit::{Kit, Program, text};
    use crate::pipeline::crypt::object_id;

    fn sheet(carried: &Carried, policy: &str) -> Sheet {
        let mut facts = facts();
        facts.root = policy.into();
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

    #[test]
    fn the_identity_is_there_only_when_it_was_asked_for() {
        let secret = "AGE-SECRET-KEY-1QQQ\n".to_owned();
        let plain = page(&sheet(&Carried::Nothing, "/a")).unwrap();
        assert!(!plain.contains("AGE-SECRET") && !plain.contains("<svg"));
        let with = page(&sheet(&Carried::Plain(secret.into()), "/a")).unwrap();
        assert!(with.contains("AGE-SECRET-KEY-1QQQ") && with.contains("<svg"));
    }
}
