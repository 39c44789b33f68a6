//! Flow collections: `[a, b]` and `{a: b}`.

use super::read::{MAX_DEPTH, TOO_MANY};
use super::text::{quoted, scalar, size};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// How far a text in quotes or brackets, which grows line by line, has been looked through: each character once. Only here
/// it is known what stands within quotes, so comments between brackets are taken away here.
#[derive(Default)]
pub(super) struct Whole {
    at: usize,
    depth: usize,
    quote: Option<char>,
}

impl Whole {
    /// Looks on from where it was. Whether the quotes, or all brackets, are closed; where not, the text ends without the
    /// comment of its last line.
    pub fn closes(&mut self, text: &mut String) -> bool {
        if self.at > text.len() {
            // A backslash at the end of a line was taken away, and the one before it counts anew.
            self.at = text.len() - 1;
        }
        while let Some(c) = text[self.at..].chars().next() {
            let after = self.at + c.len_utf8();
            let next = text[after..].chars().next();
            match self.quote {
                Some('"') if c == '\\' => {
                    let Some(escaped) = next else { return false };
                    self.at = after + escaped.len_utf8();
                    continue;
                }
                Some('\'') if c == '\'' && next == Some('\'') => {
                    self.at = after + 1;
                    continue;
                }
                Some(mark) if c == mark => {
                    self.quote = None;
                    if self.depth == 0 {
                        return true;
                    }
                }
                Some(_) => {}
                None => match c {
                    '#' if self.depth > 0 && text[..self.at].ends_with([' ', '\t', '\n', ',', '[', '{']) => {
                        text.truncate(text[..self.at].trim_end_matches([' ', '\t']).len());
                        self.at = text.len();
                        return false;
                    }
                    '[' | '{' => self.depth += 1,
                    ']' | '}' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 0 {
                            return true;
                        }
                    }
                    '"' | '\'' if self.at == 0 || text[..self.at].ends_with(['[', '{', ',', ':', ' ', '\t', '\n']) => {
                        self.quote = Some(c);
                    }
                    _ => {}
                },
            }
            self.at = after;
        }
        false
    }
}

/// A text in brackets, and how far it has been read.
pub(super) struct Flow<'a> {
    pub text: &'a str,
    pub at: usize,
    pub anchors: &'a HashMap<String, Value>,
    pub depth: usize,
    /// How many values there may still be: what aliases multiply is counted before it is made.
    pub left: usize,
}

impl Flow<'_> {
    fn next(&mut self) -> Option<char> {
        while self.text[self.at..].starts_with([' ', '\t', '\n']) {
            self.at += 1;
        }
        self.text[self.at..].chars().next()
    }

    pub fn value(&mut self) -> Result<Value, &'static str> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("nested too deeply");
        }
        self.count(1)?;
        let value = match self.next() {
            Some('[') => self.items()?,
            Some('{') => self.entries()?,
            Some('*') => {
                let word = self.word();
                let value = self.anchors.get(&word[1..]).ok_or("an alias of nothing")?;
                self.count(size(value))?;
                value.clone()
            }
            Some('&' | '!') => return Err("an anchor or a tag within brackets"),
            Some('"' | '\'') => Value::String(self.text_in_quotes()?),
            _ => scalar(self.word().as_str()),
        };
        self.depth -= 1;
        Ok(value)
    }

    fn count(&mut self, n: usize) -> Result<(), &'static str> {
        self.left = self.left.checked_sub(n).ok_or(TOO_MANY)?;
        Ok(())
    }

    fn text_in_quotes(&mut self) -> Result<String, &'static str> {
        let (value, rest) = quoted(&self.text[self.at..]).ok_or("quotes without an end")?;
        self.at = self.text.len() - rest.len();
        Ok(value)
    }

    /// Plain text up to what ends it here.
    fn word(&mut self) -> String {
        let rest = &self.text[self.at..];
        let end = rest.char_indices().find(|(at, c)| {
            let after = rest[at + c.len_utf8()..].chars().next();
            matches!(c, ',' | ']' | '}' | '[' | '{')
                || (*c == ':' && after.is_none_or(|a| matches!(a, ' ' | '\n' | ',' | ']' | '}')))
        });
        let end = end.map_or(rest.len(), |(at, _)| at);
        self.at += end;
        rest[..end].trim().to_owned()
    }

    fn items(&mut self) -> Result<Value, &'static str> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            match self.next() {
                Some(']') => break,
                None => return Err("brackets without an end"),
                _ => {}
            }
            items.push(self.value()?);
            match self.next() {
                Some(',') => self.at += 1,
                Some(']') => {}
                _ => return Err("no comma between two values"),
            }
        }
        self.at += 1;
        Ok(Value::Array(items))
    }

    fn entries(&mut self) -> Result<Value, &'static str> {
        self.at += 1;
        let mut map = Map::new();
        loop {
            let key = match self.next() {
                Some('}') => break,
                None => return Err("brackets without an end"),
                Some('"' | '\'') => self.text_in_quotes()?,
                Some(_) => self.word(),
            };
            let value = match self.next() {
                Some(':') => {
                    self.at += 1;
                    match self.next() {
                        Some(',' | '}') => Value::Null,
                        _ => self.value()?,
                    }
                }
                _ => Value::Null,
            };
            if key == "<<" {
                return Err("a merge within brackets");
            }
            map.insert(key, value);
            match self.next() {
                Some(',') => self.at += 1,
                Some('}') => {}
                _ => return Err("no comma between two entries"),
            }
        }
        self.at += 1;
        Ok(Value::Object(map))
    }
}
