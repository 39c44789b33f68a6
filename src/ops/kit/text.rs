//! The sheet as plain text: for a terminal, a file, or `lpr`.
//!
//! Commands begin a line with four blanks and are never broken; nothing else does.

use super::sheet::Sheet;

const WIDTH: usize = 96;
const NAME: usize = 17;

pub fn text(sheet: &Sheet) -> String {
    let mut out = format!("{}\n{}\n\n", sheet.title, "=".repeat(sheet.title.chars().count()));
    for line in wrapped(&sheet.lead, WIDTH) {
        out += &format!("{line}\n");
    }
    out.push('\n');
    for (name, lines) in &sheet.facts {
        for (n, line) in lines.iter().enumerate() {
            let name = if n == 0 { name } else { "" };
            out += &format!("{name:NAME$}{}\n", shown(line));
        }
    }
    for (n, step) in sheet.steps.iter().enumerate() {
        out += &format!("\n{}. {}\n", n + 1, step.title);
        for line in wrapped(&step.text, WIDTH - 3) {
            out += &format!("   {line}\n");
        }
        for command in &step.commands {
            out += &format!("    {}\n", shown(command));
        }
    }
    if let Some((name, secret)) = &sheet.secret {
        out += &format!("\n{name}:\n{secret}");
    }
    out.push('\n');
    for line in &sheet.foot {
        out += &format!("{}\n", shown(line));
    }
    out
}

/// No control characters of others on a terminal.
fn shown(text: &str) -> String {
    let hides = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if hides(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| shown(line)).collect()
}
