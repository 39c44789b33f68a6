//! Reading a TOML document with its places: a [`Table`] hands out its fields by name and type, and what is wrong with
//! them goes into the [`Report`], so that one run finds every error of a file.
//!
//! Invariant: a reader that returns `None` or a default has put the reason into the report, unless the field is merely
//! absent. So a policy is valid exactly when the report is empty at the end.

use crate::policy::error::{Lines, PolicyError, PolicyErrors};
use crate::policy::nearest::nearest;
use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a value, without its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad {
    pub message: String,
    pub hint: Option<String>,
}

impl Bad {
    pub fn new(message: impl Into<String>) -> Bad {
        Bad { message: message.into(), hint: None }
    }

    pub fn hint(message: impl Into<String>, hint: impl Into<String>) -> Bad {
        Bad { message: message.into(), hint: Some(hint.into()) }
    }
}

impl<E: std::error::Error> From<E> for Bad {
    fn from(error: E) -> Bad {
        Bad::new(error.to_string())
    }
}

/// A value as a message may show it: in quotes and short.
pub(super) fn quote(value: &str) -> String {
    if holds_private_key(value) {
        return format!("{value:?}");
    }
    let shown: String = value.chars().take(80).collect();
    if shown.len() < value.len() { format!("{:?}", shown + "…") } else { format!("{shown:?}") }
}

/// Whether a text holds an age or PEM private key.
pub(super) fn holds_private_key(value: &str) -> bool {
    value.to_ascii_uppercase().contains("AGE-SECRET-KEY-") || value.contains("PRIVATE KEY-----")
}

/// `"a", "b" and "c"`.
pub(super) fn list(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        [only] => (*only).to_owned(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

/// `unknown kind "redi", did you mean "redis"?`, or the valid ones as a hint where none is near.
pub(super) fn unknown(what: &str, given: &str, valid: &[&str]) -> Bad {
    match nearest(given, valid.iter().copied()) {
        Some(near) => Bad::new(format!("unknown {what} {}, did you mean {near:?}?", quote(given))),
        None => Bad::hint(format!("unknown {what} {}", quote(given)), format!("valid here: {}", list(valid))),
    }
}

/// Gathers the errors of one file.
pub(super) struct Report<'a> {
    text: &'a str,
    errors: RefCell<Vec<(usize, Bad)>>,
}

impl<'a> Report<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, errors: RefCell::new(Vec::new()) }
    }

    /// Something is wrong at a byte of the file.
    pub fn add(&self, at: usize, bad: impl Into<Bad>) {
        let bad = bad.into();
        // Messages quote what was given. A key that was pasted into the wrong place must not come out with them;
        // `private_keys` has reported it.
        if !holds_private_key(&bad.message) && !bad.hint.as_deref().is_some_and(holds_private_key) {
            self.errors.borrow_mut().push((at, bad));
        }
    }

    /// Reports every private key in the document, wherever it stands.
    pub fn private_keys(&self, at: usize, value: &DeValue<'_>) {
        match value {
            DeValue::String(text) => self.private_key(at, text),
            DeValue::Array(items) => items.iter().for_each(|i| self.private_keys(i.span().start, i.get_ref())),
            DeValue::Table(entries) => {
                for (key, value) in entries {
                    self.private_key(key.span().start, key.get_ref());
                    self.private_keys(value.span().start, value.get_ref());
                }
            }
            _ => {}
        }
    }

    pub fn private_key(&self, at: usize, text: &str) {
        if holds_private_key(text) {
            let hint =
                "take it out; a recipient is the line \"# public key: …\" of the identity file, \"identity\" its path";
            self.hinted(at, "a private key stands in the policy", hint);
        }
    }

    pub fn error(&self, at: usize, message: impl Into<String>) {
        self.add(at, Bad::new(message));
    }

    pub fn hinted(&self, at: usize, message: impl Into<String>, hint: impl Into<String>) {
        self.add(at, Bad::hint(message, hint));
    }

    /// `Some` for a good value; a bad one is reported.
    pub fn ok<T, E: Into<Bad>>(&self, at: usize, value: Result<T, E>) -> Option<T> {
        value.map_err(|bad| self.add(at, bad)).ok()
    }

    /// All errors in the file's order, or nothing.
    pub fn finish(self, file: &Path) -> Result<(), PolicyErrors> {
        let mut errors = self.errors.into_inner();
        if errors.is_empty() {
            return Ok(());
        }
        errors.sort_by_key(|(at, _)| *at);
        let lines = Lines::of(self.text.as_bytes());
        let place = |(at, bad): (usize, Bad)| PolicyError {
            position: lines.position(at),
            message: bad.message,
            hint: bad.hint,
        };
        let mut errors: Vec<PolicyError> = errors.into_iter().map(place).collect();
        errors.dedup();
        Err(PolicyErrors { file: file.to_owned(), errors })
    }
}

/// A string of the document and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a> {
    pub text: &'a str,
    pub at: usize,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// An entry of an array that takes strings and tables.
pub(super) enum Item<'a> {
    Text(Text<'a>),
    Table(Table<'a>),
}

/// A table of the document. [`Table::finish`] reports the fields that nobody asked for.
pub(super) struct Table<'a> {
    pub report: &'a Report<'a>,
    /// `[app]`, `[[source]]`; empty for the document.
    pub name: String,
    /// Where the table begins.
    pub at: usize,
    entries: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

impl<'a> Table<'a> {
    pub fn new(report: &'a Report<'a>, name: impl Into<String>, at: usize, entries: &'a DeTable<'a>) -> Self {
        Self { report, name: name.into(), at, entries, asked: RefCell::default() }
    }

    /// The value of a field, which thereby is a known one.
    pub fn get(&self, field: &'static str) -> Option<&'a Value<'a>> {
        if !self.asked.borrow().contains(&field) {
            self.asked.borrow_mut().push(field);
        }
        self.entries.get(field)
    }

    pub fn has(&self, field: &'static str) -> bool {
        self.get(field).is_some()
    }

    /// Whether a field stands here, without making it a known one.
    pub fn holds(&self, field: &str) -> bool {
        self.entries.contains_key(field)
    }

    /// Where the field's name stands; where the table begins if the field is absent.
    pub fn at(&self, field: &str) -> usize {
        self.entries.get_key_value(field).map_or(self.at, |(key, _)| key.span().start)
    }

    /// Where the field's value stands.
    pub fn value_at(&self, field: &str) -> usize {
        self.entries.get(field).map_or(self.at, |value| value.span().start)
    }

    fn wrong_type(&self, field: &str, value: &Value<'_>, expected: &str) {
        let found = article(value.get_ref());
        self.report.error(value.span().start, format!("{field:?} must be {expected}, found {found}"));
    }

    /// Reports that a field is missing.
    pub fn missing(&self, field: &str, hint: Option<&str>) {
        let bad = Bad { message: format!("missing field {field:?} in {}", self.name), hint: hint.map(Into::into) };
        self.report.add(self.at, bad);
    }

    /// Says that a field cannot stand beside what else the table says.
    pub fn contradiction(&self, field: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.report.hinted(self.at(field), message, hint);
    }

    fn as_text(&self, field: &str, value: &'a Value<'a>) -> Option<Text<'a>> {
        let at = value.span().start;
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                self.report.error(at, format!("{field:?} is empty"));
                None
            }
            DeValue::String(text) if text.contains('\0') => {
                self.report.error(at, format!("{field:?} holds a NUL character"));
                None
            }
            DeValue::String(text) => Some(Text { text, at }),
            _ => {
                self.wrong_type(field, value, "a string");
                None
            }
        }
    }

    fn entry(&self, field: &str, value: &'a Value<'a>) -> Option<Text<'a>> {
        if !matches!(value.get_ref(), DeValue::String(_)) {
            let found = article(value.get_ref());
            self.report.error(value.span().start, format!("an entry of {field:?} must be a string, found {found}"));
            return None;
        }
        self.as_text(field, value)
    }

    pub fn text(&self, field: &'static str) -> Option<Text<'a>> {
        self.get(field).and_then(|value| self.as_text(field, value))
    }

    pub fn string(&self, field: &'static str) -> Option<String> {
        self.text(field).map(|t| t.text.to_owned())
    }

    /// A text that must be there.
    pub fn needed(&self, field: &'static str, hint: Option<&str>) -> Option<Text<'a>> {
        if !self.has(field) {
            self.missing(field, hint);
        }
        self.text(field)
    }

    /// A text in a form of its own; `default` where the field is absent or bad.
    pub fn parsed<T, E: Into<Bad>>(
        &self,
        field: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> T {
        self.optional(field, parse).unwrap_or(default)
    }

    /// The same without a default.
    pub fn optional<T, E: Into<Bad>>(
        &self,
        field: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(field)?;
        self.report.ok(text.at, parse(text.text))
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, field: &'static str, default: T, choices: &[(&str, T)]) -> T {
        self.parsed(field, default, |given| {
            let found = choices.iter().find(|(word, _)| *word == given).map(|(_, value)| *value);
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            found.ok_or_else(|| unknown(field, given, &words))
        })
    }

    /// An array of strings. An empty one is an error unless `may_be_empty`.
    pub fn texts(&self, field: &'static str, may_be_empty: bool) -> Option<Vec<Text<'a>>> {
        let value = self.get(field)?;
        let at = value.span().start;
        match value.get_ref() {
            DeValue::Array(items) if items.is_empty() && !may_be_empty => {
                self.report.hinted(at, format!("{field:?} is empty"), "name at least one, or leave the field out");
                None
            }
            DeValue::Array(items) => Some(items.iter().filter_map(|item| self.entry(field, item)).collect()),
            DeValue::String(text) => {
                let hint = format!("write {field} = [{}]", quote(text));
                self.report.hinted(at, format!("{field:?} must be an array of strings, found a string"), hint);
                None
            }
            _ => {
                self.wrong_type(field, value, "an array of strings");
                None
            }
        }
    }

    /// An array of strings and tables, in any mixture.
    pub fn items(&self, field: &'static str) -> Vec<Item<'a>> {
        let Some(value) = self.get(field) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            // Says what it should be.
            self.texts(field, true);
            return Vec::new();
        };
        let item = |item: &'a Value<'a>| match item.get_ref() {
            DeValue::Table(entries) => Some(Item::Table(self.child(field, item, entries))),
            DeValue::String(_) => self.as_text(field, item).map(Item::Text),
            other => {
                let message = format!("an entry of {field:?} must be a string or a table, found {}", article(other));
                self.report.error(item.span().start, message);
                None
            }
        };
        items.iter().filter_map(item).collect()
    }

    /// A program and its arguments.
    pub fn argv(&self, field: &'static str) -> Option<Vec<String>> {
        let value = self.get(field)?;
        if let DeValue::String(line) = value.get_ref() {
            let words: Vec<String> = line.split_whitespace().map(quote).collect();
            let hint = format!("no shell takes it apart: write {field} = [{}]", words.join(", "));
            self.report.hinted(
                value.span().start,
                format!("{field:?} must be an array of strings, found a string"),
                hint,
            );
            return None;
        }
        Some(self.texts(field, false)?.iter().map(ToString::to_string).collect())
    }

    /// Whether a field is an array without anything in it.
    pub fn is_empty_array(&self, field: &'static str) -> bool {
        self.get(field).is_some_and(|value| matches!(value.get_ref(), DeValue::Array(items) if items.is_empty()))
    }

    pub fn strings(&self, field: &'static str) -> Vec<String> {
        self.texts(field, true).unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// An array of strings, or a single string.
    pub fn one_or_more(&self, field: &'static str) -> Vec<String> {
        match self.get(field).map(Spanned::get_ref) {
            Some(DeValue::String(_)) => self.string(field).into_iter().collect(),
            _ => self.strings(field),
        }
    }

    pub fn flag(&self, field: &'static str, default: bool) -> bool {
        match self.get(field).map(|v| (v, v.get_ref())) {
            None => default,
            Some((_, DeValue::Boolean(value))) => *value,
            Some((value, _)) => {
                self.wrong_type(field, value, "true or false");
                default
            }
        }
    }

    pub fn number<T: TryFrom<i64> + Copy + fmt::Display + PartialOrd>(
        &self,
        field: &'static str,
        default: T,
        range: RangeInclusive<T>,
    ) -> T {
        let Some(value) = self.get(field) else { return default };
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(field, value, "a whole number");
            return default;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|n| T::try_from(n).ok());
        match number {
            Some(number) if range.contains(&number) => number,
            _ => {
                let (from, to) = (range.start(), range.end());
                self.report.error(value.span().start, format!("{field:?} must be a whole number from {from} to {to}"));
                default
            }
        }
    }

    /// A table within this one.
    pub fn table(&self, field: &'static str) -> Option<Table<'a>> {
        let value = self.get(field)?;
        match value.get_ref() {
            DeValue::Table(entries) => Some(self.child(field, value, entries)),
            DeValue::Array(items) if items.iter().all(|i| matches!(i.get_ref(), DeValue::Table(_))) => {
                let message = format!("{field:?} must be a table, found an array of tables");
                self.report.hinted(value.span().start, message, format!("write [{}]", self.path(field)));
                None
            }
            _ => {
                self.wrong_type(field, value, "a table");
                None
            }
        }
    }

    /// An array of tables. A single table is one too where `single` says so.
    pub fn tables(&self, field: &'static str, single: bool) -> Vec<Table<'a>> {
        let Some(value) = self.get(field) else { return Vec::new() };
        let mut tables = Vec::new();
        match value.get_ref() {
            DeValue::Array(items) => {
                for item in items {
                    match item.get_ref() {
                        DeValue::Table(entries) => {
                            let mut table = self.child(field, item, entries);
                            table.name = format!("[[{}]]", self.path(field));
                            tables.push(table);
                        }
                        other => {
                            let message = format!("an entry of {field:?} must be a table, found {}", article(other));
                            self.report.error(item.span().start, message);
                        }
                    }
                }
            }
            DeValue::Table(entries) if single => tables.push(self.child(field, value, entries)),
            DeValue::Table(_) => {
                let message = format!("{field:?} must be an array of tables, found a table");
                self.report.hinted(value.span().start, message, format!("write [[{}]]", self.path(field)));
            }
            _ => self.wrong_type(field, value, "an array of tables"),
        }
        tables
    }

    fn path(&self, field: &str) -> String {
        match self.name.trim_matches(['[', ']']) {
            "" => field.to_owned(),
            name => format!("{name}.{field}"),
        }
    }

    fn child(&self, field: &str, value: &'a Value<'a>, entries: &'a DeTable<'a>) -> Table<'a> {
        Table::new(self.report, format!("[{}]", self.path(field)), value.span().start, entries)
    }

    /// All fields, for a table whose names are the user's own.
    pub fn entries(&self) -> impl Iterator<Item = (Text<'a>, &'a Value<'a>)> {
        self.entries.iter().map(|(key, value)| (Text { text: key.get_ref(), at: key.span().start }, value))
    }

    /// Reports the fields that nobody asked for.
    pub fn finish(&self) {
        let asked = self.asked.borrow();
        for (key, _) in self.entries() {
            if asked.contains(&key.text) {
                continue;
            }
            let mut bad = unknown("field", key.text, &asked);
            if let Some(hint) = secret_field(key.text) {
                bad = Bad::hint(format!("unknown field {}: secrets never stand in a policy", quote(key.text)), hint);
            } else if bad.hint.is_some() {
                let place = if self.name.is_empty() { "a policy" } else { &self.name };
                bad = Bad::hint(
                    format!("unknown field {} in {place}", quote(key.text)),
                    format!("the fields are {}", list(&asked)),
                );
            }
            self.report.add(key.at, bad);
        }
    }
}

/// Fields by which other tools take secrets.
fn secret_field(field: &str) -> Option<&'static str> {
    match field {
        "password" | "passphrase" | "secret" | "token" | "pass" | "passwd" => {
            Some("refer to it: password_from = \".env:KEY\", \"env:NAME\" or \"file:PATH\"")
        }
        "access_key" | "access_key_id" | "secret_key" | "secret_access_key" => {
            Some("refer to them: credentials = \"env\", \"profile:NAME\" or \"file:PATH\"")
        }
        _ => None,
    }
}
