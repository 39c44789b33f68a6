//! Block collections, and documents.

use super::flow::{Flow, Whole};
use super::text::{has_comment, is_item, quoted, scalar, size, split_key, uncommented};
use serde_json::{Map, Value};
use std::collections::HashMap;

pub(super) const MAX_DEPTH: usize = 64;
/// Values in all, aliases followed.
const MAX_VALUES: usize = 200_000;
pub(super) const TOO_MANY: &str = "more values than any compose file has";

/// Why a text could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct YamlError {
    pub line: usize,
    pub problem: &'static str,
}

/// Reads the one document of a text; an empty one is null.
pub fn read(text: &str) -> Result<Value, YamlError> {
    let mut reader = Reader { lines: Vec::new(), at: 0, anchors: HashMap::new(), depth: 0, values: 0 };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for line in text.lines() {
        let body = line.trim_start_matches(' ');
        reader.lines.push(Line { indent: line.len() - body.len(), body: body.to_owned() });
    }
    while reader.peek().is_some_and(|l| l.indent == 0 && l.body.starts_with('%')) {
        reader.at += 1;
    }
    if reader.peek().is_some_and(|l| l.indent == 0 && (l.body == "---" || l.body.starts_with("--- "))) {
        let line = &mut reader.lines[reader.at];
        // What stands behind the mark belongs to the document.
        line.body.replace_range(..3, "");
        let body = line.body.trim_start().to_owned();
        (line.indent, line.body) = (0, body);
    }
    let value = match reader.peek() {
        None => Value::Null,
        Some(line) => {
            let indent = line.indent;
            reader.node(indent)?
        }
    };
    match reader.peek() {
        Some(line) if line.body != "..." => Err(reader.wrong("this is not part of what stands above")),
        _ => Ok(value),
    }
}

#[derive(Debug)]
struct Line {
    indent: usize,
    body: String,
}

struct Reader {
    lines: Vec<Line>,
    at: usize,
    anchors: HashMap<String, Value>,
    depth: usize,
    values: usize,
}

impl Reader {
    fn wrong(&self, problem: &'static str) -> YamlError {
        YamlError { line: self.at.min(self.lines.len().saturating_sub(1)) + 1, problem }
    }

    /// The next line that says something.
    fn peek(&mut self) -> Option<&Line> {
        while self.lines.get(self.at).is_some_and(|l| l.body.trim().is_empty() || l.body.starts_with('#')) {
            self.at += 1;
        }
        self.lines.get(self.at)
    }

    fn count(&mut self, n: usize) -> Result<(), YamlError> {
        self.values += n;
        if self.values > MAX_VALUES { Err(self.wrong(TOO_MANY)) } else { Ok(()) }
    }

    /// The node that begins at the next line, which is indented by `indent`.
    fn node(&mut self, indent: usize) -> Result<Value, YamlError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong("nested too deeply"));
        }
        self.count(1)?;
        let Some(line) = self.peek() else { return Ok(Value::Null) };
        let body = line.body.clone();
        if body.starts_with('\t') {
            return Err(self.wrong("indented by a tab"));
        }
        if body.starts_with("? ") {
            return Err(self.wrong("a key of several lines"));
        }
        let value = if is_item(&body) {
            self.sequence(indent)?
        } else if split_key(&body).is_some() {
            self.mapping(indent)?
        } else {
            self.at += 1;
            // A scalar by itself ends where the node around it goes on.
            self.value(&body, indent.checked_sub(1), None)?
        };
        self.depth -= 1;
        Ok(value)
    }

    fn sequence(&mut self, indent: usize) -> Result<Value, YamlError> {
        let mut items = Vec::new();
        while let Some(line) = self.peek() {
            if line.indent != indent || !is_item(&line.body) {
                break;
            }
            let rest = line.body[1..].to_owned();
            let body = rest.trim_start();
            if body.is_empty() || body.starts_with('#') {
                self.at += 1;
                items.push(self.below(indent, false)?);
                continue;
            }
            let inner = indent + 1 + rest.len() - body.len();
            if split_key(body).is_some() || is_item(body) {
                // `- key: value`: the item is a node of its own that begins behind the dash.
                let body = body.to_owned();
                self.lines[self.at] = Line { indent: inner, body };
                items.push(self.node(inner)?);
            } else {
                let body = body.to_owned();
                self.at += 1;
                items.push(self.value(&body, Some(indent), Some(indent))?);
            }
        }
        if self.peek().is_some_and(|l| l.indent > indent) {
            return Err(self.wrong("indented otherwise than the items above"));
        }
        Ok(Value::Array(items))
    }

    fn mapping(&mut self, indent: usize) -> Result<Value, YamlError> {
        let mut map = Map::new();
        let mut merged: Vec<Value> = Vec::new();
        while let Some(line) = self.peek() {
            if line.indent != indent || is_item(&line.body) || line.body == "..." {
                break;
            }
            let body = line.body.clone();
            if body.starts_with("? ") {
                return Err(self.wrong("a key of several lines"));
            }
            if body.starts_with('\t') {
                return Err(self.wrong("indented by a tab"));
            }
            let Some((key, rest)) = split_key(&body) else { return Err(self.wrong("no key and value")) };
            let key = self.key(key)?;
            self.at += 1;
            let value = self.value(rest, Some(indent), Some(indent))?;
            if key == "<<" {
                merged.push(value);
            } else if map.insert(key, value).is_some() {
                self.at -= 1;
                return Err(self.wrong("a key that stands above already"));
            }
        }
        if self.peek().is_some_and(|l| l.indent > indent) {
            return Err(self.wrong("indented otherwise than the keys above"));
        }
        for value in merged {
            let maps = match value {
                Value::Array(several) => several,
                one => vec![one],
            };
            for entry in maps {
                let Value::Object(entries) = entry else { return Err(self.wrong("only mappings can be merged")) };
                for (key, value) in entries {
                    map.entry(key).or_insert(value);
                }
            }
        }
        Ok(Value::Object(map))
    }

    fn key(&self, text: &str) -> Result<String, YamlError> {
        match text.chars().next() {
            Some('"' | '\'') => match quoted(text) {
                Some((value, "")) => Ok(value),
                _ => Err(self.wrong("a key whose quotes do not end")),
            },
            Some('[' | '{' | '&' | '*' | '!') => Err(self.wrong("a key that is no plain text")),
            _ => Ok(text.to_owned()),
        }
    }

    /// What lies deeper than `indent`; a sequence may stand right under its key.
    fn below(&mut self, indent: usize, sequence_too: bool) -> Result<Value, YamlError> {
        match self.peek() {
            Some(line) if line.indent > indent || (sequence_too && line.indent == indent && is_item(&line.body)) => {
                let inner = line.indent;
                self.node(inner)
            }
            _ => Ok(Value::Null),
        }
    }

    /// What stands behind a key or a dash, and goes on in lines that are indented by more than `parent`. `under`: the
    /// indent of the key, where a node may follow on lines of its own.
    fn value(&mut self, text: &str, parent: Option<usize>, under: Option<usize>) -> Result<Value, YamlError> {
        self.count(1)?;
        let text = text.trim();
        let rest_of = |text: &str| text.split_once([' ', '\t']).map_or(String::new(), |(_, rest)| rest.to_owned());
        let word = text.split([' ', '\t']).next().unwrap_or_default();
        match text.chars().next() {
            None | Some('#') => match under {
                // An item of a sequence and a key are told apart by what stood before; both are `parent`.
                Some(indent) => self.below(indent, true),
                None => Ok(Value::Null),
            },
            Some('&') => {
                let value = self.marked(&rest_of(text), parent, under)?;
                self.anchors.insert(word[1..].to_owned(), value.clone());
                Ok(value)
            }
            Some('!') => self.marked(&rest_of(text), parent, under),
            Some('*') => {
                let Some(value) = self.anchors.get(&word[1..]).cloned() else {
                    self.at -= 1;
                    return Err(self.wrong("an alias of nothing"));
                };
                self.count(size(&value))?;
                Ok(value)
            }
            Some('|' | '>') => self.block(text, parent),
            Some('"' | '\'') => {
                let text = self.joined(text, parent)?;
                match quoted(&text) {
                    Some((value, rest)) if rest.trim().is_empty() || rest.trim_start().starts_with('#') => {
                        Ok(Value::String(value))
                    }
                    _ => Err(self.wrong("something behind the quotes")),
                }
            }
            Some('[' | '{') => {
                let text = self.joined(text, parent)?;
                let left = MAX_VALUES.saturating_sub(self.values);
                let mut flow = Flow { text: &text, at: 0, anchors: &self.anchors, depth: self.depth, left };
                let value = flow.value().map_err(|problem| self.wrong(problem))?;
                let rest = text[flow.at..].trim_start();
                if !rest.is_empty() && !rest.starts_with('#') {
                    return Err(self.wrong("something behind the bracket"));
                }
                self.count(size(&value))?;
                Ok(value)
            }
            Some('@' | '`' | '%') => Err(self.wrong("a value cannot begin so")),
            Some(_) => self.plain(text, parent),
        }
    }

    /// What stands behind an anchor or a tag, which may be another one.
    fn marked(&mut self, text: &str, parent: Option<usize>, under: Option<usize>) -> Result<Value, YamlError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong("nested too deeply"));
        }
        let value = self.value(text, parent, under)?;
        self.depth -= 1;
        Ok(value)
    }

    fn continues(&mut self, parent: Option<usize>) -> bool {
        self.peek().is_some_and(|l| parent.is_none_or(|p| l.indent > p) && l.body != "...")
    }

    fn plain(&mut self, text: &str, parent: Option<usize>) -> Result<Value, YamlError> {
        if split_key(text).is_some() {
            self.at -= 1;
            return Err(self.wrong("a key where a value stands"));
        }
        let is_ended = has_comment(text);
        let mut text = uncommented(text).to_owned();
        if !is_ended {
            while self.continues(parent) {
                let Some(line) = self.peek() else { break };
                let body = line.body.clone();
                if split_key(&body).is_some() {
                    return Err(self.wrong("a key where a value goes on"));
                }
                text.push(' ');
                text.push_str(uncommented(&body));
                self.at += 1;
            }
        }
        Ok(scalar(&text))
    }

    /// Takes lines until the quotes or brackets are closed.
    fn joined(&mut self, text: &str, parent: Option<usize>) -> Result<String, YamlError> {
        let mut text = text.to_owned();
        let mut whole = Whole::default();
        while !whole.closes(&mut text) {
            let Some(line) = self.lines.get(self.at) else {
                return Err(self.wrong("quotes or brackets without an end"));
            };
            // A comment stands where it likes.
            let is_text = !line.body.trim().is_empty() && !line.body.starts_with('#');
            if is_text && parent.is_some_and(|p| line.indent < p) {
                return Err(self.wrong("quotes or brackets without an end"));
            }
            // Folding: one break is a space, each further one a break.
            let body = line.body.trim();
            if body.is_empty() {
                text.push('\n');
            } else {
                let escaped = text.ends_with('\\') && text.starts_with('"');
                if escaped {
                    text.pop();
                } else if !text.ends_with('\n') {
                    text.push(' ');
                }
                text.push_str(body);
            }
            self.at += 1;
        }
        Ok(text)
    }

    /// `|` and `>`, with `-`, `+` and a digit.
    fn block(&mut self, header: &str, parent: Option<usize>) -> Result<Value, YamlError> {
        let header = uncommented(header);
        let given = header.chars().find_map(|c| c.to_digit(10)).map(|d| d as usize);
        if !header[1..].chars().all(|c| matches!(c, '-' | '+' | '1'..='9')) {
            return Err(self.wrong("an unknown sort of text"));
        }
        let least = parent.map_or(0, |p| p + 1);
        let first = self.lines[self.at.min(self.lines.len())..].iter().find(|l| !l.body.trim().is_empty());
        let indent = given.map_or(first.map_or(least, |l| l.indent), |d| parent.unwrap_or(0) + d).max(least);
        let mut lines: Vec<String> = Vec::new();
        while let Some(line) = self.lines.get(self.at) {
            if line.body.trim().is_empty() {
                lines.push(String::new());
            } else if line.indent >= indent {
                lines.push(format!("{}{}", " ".repeat(line.indent - indent), line.body));
            } else {
                break;
            }
            self.at += 1;
        }
        let trailing = lines.iter().rev().take_while(|l| l.is_empty()).count();
        lines.truncate(lines.len() - trailing);
        let mut text = String::new();
        for (n, line) in lines.iter().enumerate() {
            text.push_str(line);
            if n + 1 < lines.len() {
                text.push_str(join(header, line, &lines[n + 1..]));
            }
        }
        if header.contains('+') {
            text.push_str(&"\n".repeat(trailing + 1));
        } else if !header.contains('-') && !lines.is_empty() {
            text.push('\n');
        }
        Ok(Value::String(text))
    }
}

/// What stands between a line of a text and those that follow. A folded break is a space, or nothing where empty lines
/// stand for breaks; lines that are indented further keep theirs.
fn join(header: &str, line: &str, rest: &[String]) -> &'static str {
    let is_plain = |l: &String| !l.starts_with(' ');
    let plain = header.starts_with('>') && !line.is_empty() && !line.starts_with(' ');
    match rest.first() {
        Some(next) if plain && next.is_empty() && rest.iter().find(|l| !l.is_empty()).is_some_and(is_plain) => "",
        Some(next) if plain && !next.is_empty() && is_plain(next) => " ",
        _ => "\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn compose_files_are_read_as_the_standard_says() {
        let text = r#"# a comment
---
x-common: &common
  restart: unless-stopped   # behind a value
  env_file:
  - .env
  - path: "./a b.env"
    required: false
services:
  web:
    <<: *common
    image: "host:1"
    command: ["sh", "-c", "echo '}' # no comment", 'it''s']
    ports:
      - 8001:80
      - "127.0.0.1:0:443"
    environment: {A: 1, "B": two, C, D: "x: y", E: http://a/b}
    labels:
      long: one
        two
        three
      block: |
        first
          second

      folded: >-
        a
        b

        c
    healthcheck: { test: [CMD, curl,
       "-f", http://localhost ], interval: 10s }
  'odd key': &x null
  other: ~
volumes:
"#;
        let common =
            json!({ "restart": "unless-stopped", "env_file": [".env", { "path": "./a b.env", "required": false }] });
        let mut web = json!({
            "image": "host:1",
            "command": ["sh", "-c", "echo '}' # no comment", "it's"],
            "ports": ["8001:80", "127.0.0.1:0:443"],
            "environment": { "A": 1, "B": "two", "C": null, "D": "x: y", "E": "http://a/b" },
            "labels": { "long": "one two three", "block": "first\n  second\n", "folded": "a b\nc" },
            "healthcheck": { "test": ["CMD", "curl", "-f", "http://localhost"], "interval": "10s" },
        });
        web.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
        let expected = json!({
            "x-common": common,
            "services": { "web": web, "odd key": null, "other": null },
            "volumes": null,
        });
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn scalars_have_their_types() {
        let text = "a: 1\nb: 1.5\nc: true\nd: 'true'\ne: 1.2.3\nf: -7\ng: \"x\\ty\\u00e9\"\nh: a#b\ni: 08:30\n";
        let expected = json!({ "a": 1, "b": 1.5, "c": true, "d": "true", "e": "1.2.3", "f": -7, "g": "x\tyé", "h": "a#b", "i": "08:30" });
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("").unwrap(), Value::Null);
        assert_eq!(read("- a\n-\n  - b\n  - c: d\n    e: f\n").unwrap(), json!(["a", ["b", { "c": "d", "e": "f" }]]));
    }

    #[test]
    fn quotes_and_brackets_over_many_lines_are_looked_through_once() {
        let text = "a: [ 'it''s\n  ]',\n  [b], \"}\\\"\n  \", c]\nd: \"one \\\n  two\\\\\\\n  three\"\ne: 'x\n\n  y'\n";
        let expected = json!({ "a": ["it's ]", ["b"], "}\" ", "c"], "d": "one two\\three", "e": "x\ny" });
        assert_eq!(read(text).unwrap(), expected);
        for line in ["  \n", "  [a],\n", "  'b',\n", "  \\\"c\n", "  ''\n"] {
            for begin in ["[x,\n", "\"x\n", "'x\n", "[ \"x\n"] {
                let begun = std::time::Instant::now();
                let _ = read(&format!("a: {begin}{}", line.repeat(30_000)));
                assert!(begun.elapsed().as_secs() < 5, "{begin:?} {line:?}: {:?}", begun.elapsed());
            }
        }
    }

    #[test]
    fn comments_between_brackets_take_nothing_with_them() {
        let text = "a: [sh, -c,#how\n# at the very left\n  # a whole line, longer than what stands before it\n  \"b # c\",\n\n  # behind nothing\n\n\t'x #y', z#1\n  ] # the end\nd: {e: 1, # ]\n  f: 2}\n";
        let expected = json!({ "a": ["sh", "-c", "b # c", "x #y", "z#1"], "d": { "e": 1, "f": 2 } });
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn what_is_not_understood_is_named_by_its_line() {
        for (text, line) in [
            ("a: b\n  c: d\n", 2),
            ("a: [1, 2\n", 1),
            ("a: 'x\n", 1),
            ("a: *nobody\n", 1),
            ("a: 1\n\tb: 2\n", 2),
            ("? a\n: b\n", 1),
            ("a: 1\nb: 2\na: 3\n", 3),
            ("a: b: c\n", 1),
            ("a: 1\n---\nb: 2\n", 2),
        ] {
            let error = read(text).map(|v| v.to_string()).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error}");
        }
        let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        assert!(read(&format!("a: {deep}")).is_err());
        for mark in ["!!x ", "&x "] {
            assert!(read(&format!("a: {}1", mark.repeat(20_000))).is_err(), "each of them takes a little of the stack");
            assert_eq!(read(&format!("a: {mark}1")).unwrap(), json!({ "a": 1 }));
        }
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (n, name) in ('b'..'k').enumerate() {
            let before = char::from(b'a' + n as u8);
            laughs.push_str(&format!("{name}: &{name}\n{}", format!("  - *{before}\n").repeat(9)));
        }
        assert!(read(&laughs).is_err(), "aliases multiply without an end");
        // In one line of brackets, and by the length of a text rather than by their number.
        let texts = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(2_000));
        assert_eq!(read(&texts).map(drop).unwrap_err(), YamlError { line: 2, problem: TOO_MANY });
        let lists = format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(100_000), "*a, ".repeat(2_000));
        assert_eq!(read(&lists).map(drop).unwrap_err(), YamlError { line: 2, problem: TOO_MANY });
        let texts = format!("a: &a {}\nb:\n{}", "x".repeat(100_000), "- *a\n".repeat(2_000));
        assert_eq!(read(&texts).map(drop).unwrap_err().problem, TOO_MANY);
    }
}
