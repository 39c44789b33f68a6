//! What goes to standard output: text for people, or one JSON document.
//!
//! Invariants: nothing that came from a repository, a policy or a file name reaches a terminal with its control
//! characters; a reader that goes away (`lifeboat list | head`) ends the command quietly, one that is slow is waited for.

use crate::base::patient::{self, Patient};
use crate::base::time::relative;
use crate::cli::args::{ColorWhen, Global};
use crate::cli::exit::{Exit, Failure};
use chrono::{DateTime, Local, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The version of the JSON documents' schema.
const SCHEMA: u64 = 1;

/// How text is painted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

impl Paint {
    fn code(self) -> Option<&'static str> {
        match self {
            Paint::Plain => None,
            Paint::Bold => Some("1"),
            Paint::Dim => Some("2"),
            Paint::Red => Some("31"),
            Paint::Green => Some("32"),
            Paint::Yellow => Some("33"),
        }
    }
}

/// Whether a stream gets colour.
pub fn colour_wanted(when: ColorWhen, is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|v: std::ffi::OsString| !v.is_empty());
    match when {
        ColorWhen::Always => true,
        ColorWhen::Never => false,
        ColorWhen::Auto => is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb"),
    }
}

/// Standard output.
#[derive(Debug)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
    colour: bool,
    colour_err: bool,
    now: DateTime<Utc>,
    command: &'static str,
    /// What has been said by [`Output::alarm`], for the document.
    alarms: Mutex<Vec<String>>,
    /// A streamed document has been begun and not ended.
    streaming: AtomicBool,
}

impl Output {
    pub fn new(global: &Global, command: &'static str, now: DateTime<Utc>) -> Self {
        Self {
            json: global.json,
            quiet: global.quiet,
            colour: colour_wanted(global.color, io::stdout().is_terminal()),
            colour_err: colour_wanted(global.color, io::stderr().is_terminal()),
            now,
            command,
            alarms: Mutex::default(),
            streaming: AtomicBool::new(false),
        }
    }

    /// Prints what a command was asked to show; `-q` does not silence it.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        write_out(text.as_bytes())
    }

    /// Prints a note or a result for people; `-q` silences it.
    pub fn note(&self, text: &str) -> Result<(), Failure> {
        if self.quiet { Ok(()) } else { self.text(text) }
    }

    /// Prints something that must not be missed, on standard error, whatever `-q` says; a document that comes later
    /// carries it as well.
    pub fn alarm(&self, text: &str) {
        self.alarms().push(text.to_owned());
        let label = if self.colour_err { paint(Paint::Yellow, "warning:") } else { "warning:".to_owned() };
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(patient::stderr(), "{label} {}", printable(text));
    }

    /// What has been said by [`Output::alarm`] so far.
    pub fn alarmed(&self) -> Vec<String> {
        self.alarms().clone()
    }

    fn alarms(&self) -> MutexGuard<'_, Vec<String>> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one document of a command: its envelope and the fields of `body`.
    pub fn document(&self, exit: Exit, body: &impl Serialize) -> Result<(), Failure> {
        let body = serde_json::to_value(body).map_err(|e| Failure::new(Exit::Failed, e))?;
        write_out(envelope(self.command, exit, &self.alarms(), body).as_bytes())
    }

    /// A document whose list is too long to hold: its items are written as they come.
    pub fn stream(&self, field: &'static str) -> Result<Stream<'_>, Failure> {
        let mut out = BufWriter::new(patient::stdout());
        let head = envelope_head(self.command);
        let text = serde_json::to_string(&head).map_err(|e| Failure::new(Exit::Failed, e))?;
        write!(out, "{},\"{field}\":[", text.trim_end_matches('}')).map_err(out_failure)?;
        self.streaming.store(true, Ordering::SeqCst);
        Ok(Stream { output: self, out, first: true })
    }

    /// Prints a failure: on standard error, and as a document where JSON is wanted.
    pub fn failure(&self, failure: &Failure) {
        let whole = self.json && !self.streaming.load(Ordering::SeqCst);
        report_failure(failure, whole.then_some((self.command, &self.alarms()[..])), self.colour_err);
        if self.streaming.load(Ordering::SeqCst) && !failure.is_silent() {
            // The list that was begun ends here, and the document says why.
            let body = serde_json::json!({ "error": failure.to_json() });
            let _ = write_out(tail(failure.kind, &self.alarms(), body).as_bytes());
        }
    }

    /// Prints a failure beside a result that stands: the document is the result's.
    pub fn complaint(&self, failure: &Failure) {
        report_failure(failure, None, self.colour_err);
    }

    pub fn paint(&self, paint: Paint, text: &str) -> String {
        if self.colour { self::paint(paint, text) } else { text.to_owned() }
    }

    /// `2026-11-21 02:00:07 (3 h ago)`, in local time.
    pub fn time(&self, t: DateTime<Utc>) -> String {
        format!("{} ({})", local(t), relative(t, self.now))
    }

    /// `3 h ago`.
    pub fn ago(&self, t: DateTime<Utc>) -> String {
        relative(t, self.now)
    }

    /// A table, ready to print.
    pub fn table(&self, table: &Table) -> String {
        table.render(self.colour)
    }
}

/// `2026-11-21 02:00:07`, in local time.
pub fn local(t: DateTime<Utc>) -> String {
    t.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// Writes the items of a streamed document, one a line.
pub struct Stream<'a> {
    output: &'a Output,
    out: BufWriter<Patient<io::Stdout>>,
    first: bool,
}

impl Stream<'_> {
    pub fn item(&mut self, item: &impl Serialize) -> io::Result<()> {
        self.out.write_all(if self.first { b"\n" } else { b",\n" })?;
        self.first = false;
        serde_json::to_writer(&mut self.out, item).map_err(io::Error::from)
    }

    /// Ends the list and the document. Left out, the failure that is printed later ends it.
    pub fn finish(mut self, exit: Exit, body: &impl Serialize) -> Result<(), Failure> {
        let body = serde_json::to_value(body).map_err(|e| Failure::new(Exit::Failed, e))?;
        let text = tail(exit, &self.output.alarms(), body);
        self.output.streaming.store(false, Ordering::SeqCst);
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(out_failure)
    }
}

fn envelope_head(command: &str) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("lifeboat".into(), env!("CARGO_PKG_VERSION").into());
    document.insert("schema".into(), SCHEMA.into());
    document.insert("command".into(), command.into());
    document
}

fn envelope_rest(exit: Exit, warnings: &[String], body: Value) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("exit_code".into(), exit.code().into());
    document.insert("warnings".into(), warnings.into());
    if let Value::Object(fields) = body {
        document.extend(fields);
    }
    document
}

fn envelope(command: &str, exit: Exit, warnings: &[String], body: Value) -> String {
    let mut document = envelope_head(command);
    document.extend(envelope_rest(exit, warnings, body));
    // What was a value a moment ago has only text keys, so it encodes.
    format!("{:#}\n", Value::Object(document))
}

/// What follows a streamed list.
fn tail(exit: Exit, warnings: &[String], body: Value) -> String {
    let text = Value::Object(envelope_rest(exit, warnings, body)).to_string();
    format!("\n],{}\n", text.trim_start_matches('{'))
}

/// Prints a failure; `json` names the command and its warnings when a document is wanted.
pub fn report_failure(failure: &Failure, json: Option<(&str, &[String])>, colour: bool) {
    if failure.is_silent() {
        return;
    }
    let text = printable_lines(&failure.to_string());
    let text = if colour { text.replacen("error:", &paint(Paint::Red, "error:"), 1) } else { text };
    let _ = writeln!(patient::stderr(), "{text}");
    if let Some((command, warnings)) = json {
        let body = serde_json::json!({ "error": failure.to_json() });
        let _ = write_out(envelope(command, failure.kind, warnings, body).as_bytes());
    }
}

/// Writes to standard output. A reader that went away is a silent end, anything else a failure.
pub fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = patient::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(out_failure)
}

/// What an error of standard output means for the command.
pub fn out_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(Exit::Failed),
        _ => Failure::new(Exit::Failed, error).attempted("write to standard output"),
    }
}

fn paint(paint: Paint, text: &str) -> String {
    match paint.code() {
        Some(code) if !text.is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
        _ => text.to_owned(),
    }
}

/// The text with control characters (and those that turn the direction of writing) escaped.
pub fn printable(text: &str) -> String {
    let odd = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(odd) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if odd(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// The same, where newlines are the writer's own.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Which side a column leans to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A table: aligned columns, two spaces between them, no lines drawn.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<(String, Paint)>>,
}

impl Table {
    /// Columns whose titles are empty get no heading.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<(String, Paint)>) {
        self.rows.push(cells.into_iter().map(|(text, paint)| (printable(&text), paint)).collect());
    }

    /// A row without paint.
    pub fn plain<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.row(cells.into_iter().map(|c| (c.into(), Paint::Plain)).collect());
    }

    fn render(&self, colour: bool) -> String {
        let headings = self.columns.iter().any(|(title, _)| !title.is_empty());
        let heading = || self.columns.iter().map(|(title, _)| ((*title).to_owned(), Paint::Bold)).collect();
        let rows: Vec<Vec<(String, Paint)>> =
            headings.then(heading).into_iter().chain(self.rows.iter().cloned()).collect();
        let width = |at: usize| rows.iter().filter_map(|r| r.get(at)).map(|c| c.0.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut out = String::new();
        for row in &rows {
            let mut line = String::new();
            for (at, (text, how)) in row.iter().enumerate() {
                let gap = " ".repeat(widths.get(at).map_or(0, |w| w.saturating_sub(text.chars().count())));
                let painted = if colour { paint(*how, text) } else { text.clone() };
                let last = at + 1 == row.len();
                match self.columns.get(at).map(|(_, align)| *align) {
                    Some(Align::Right) => line += &format!("{gap}{painted}"),
                    _ if last => line += &painted,
                    _ => line += &format!("{painted}{gap}"),
                }
                if !last {
                    line += "  ";
                }
            }
            out += line.trim_end();
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_end_without_blanks() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("NOTE", Align::Left)]);
        table.plain(["a", "1 B", ""]);
        table.plain(["longer", "14.3 MiB", "x\u{1b}[31my"]);
        let text = table.render(false);
        assert_eq!(text, "NAME        SIZE  NOTE\na            1 B\nlonger  14.3 MiB  x\\u{1b}[31my\n");
        assert!(table.render(true).contains("\x1b[1mNAME\x1b[0m"));
    }

    #[test]
    fn a_terminal_gets_no_control_characters_of_others() {
        assert_eq!(printable("a\nb\tc\u{9b}2J"), "a\\nb\\tc\\u{9b}2J");
        assert_eq!(printable("žluť\u{202e}gpj"), "žluť\\u{202e}gpj");
        assert_eq!(printable_lines("a\nb"), "a\nb");
    }

    #[test]
    fn every_document_has_its_envelope() {
        let text = envelope("list", Exit::Partial, &["w".to_owned()], serde_json::json!({ "snapshots": [] }));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], 1);
        assert_eq!(value["exit_code"], 3);
        assert_eq!(value["command"], "list");
        assert_eq!(value["warnings"][0], "w");
        assert_eq!(value["lifeboat"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn a_streamed_document_parses_also_when_it_was_cut_short() {
        let head = serde_json::to_string(&envelope_head("ls")).unwrap();
        for items in ["", "\n{\"a\":1}", "\n{\"a\":1},\n{\"a\":2}"] {
            let tail = tail(Exit::Integrity, &[], serde_json::json!({ "error": { "kind": "integrity" } }));
            let text = format!("{},\"entries\":[{items}{tail}", head.trim_end_matches('}'));
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(value["exit_code"], 4);
            assert_eq!(value["entries"].as_array().unwrap().len(), items.matches("\"a\"").count());
        }
    }
}
