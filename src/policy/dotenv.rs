//! Env files, read exactly as Docker Compose v2 reads them (the `dotenv` and `template` packages of compose-go).
//!
//! What this parser says of a file is what the containers get, also where Compose differs from a shell:
//! - Nothing is executed: `KEY=$(openssl rand -hex 16)` is that very text. [`looks_like_command_substitution`] finds it.
//! - An unquoted value ends at the first ` #` (a space, no tab); `KEY= # note` is the value `# note`.
//! - Single quotes: no interpolation, only `\'` is an escape. Double quotes: `\n`, `\t`, `\$`, `\0123` … and interpolation.
//!   Both may span lines. What follows a closing quote is read as the next statement.
//! - `KEY` alone takes the value from the caller's environment and is absent without one; at the very end of a file
//!   that has no final newline it is ignored. A line without a key (`=value`) is ignored.
//! - A variable is looked up in the caller's environment first, then among the earlier keys of the file.
//! - The last of several assignments to a key wins.
//!
//! Beyond Compose there are two limits, so that a hostile file cannot exhaust memory or stack: [`MAX_EXPANDED_BYTES`]
//! for all values of a file together, and [`MAX_NESTING`] for defaults within defaults.
//!
//! Invariant: no message and no `Debug` output holds a value or a part of one.

use crate::base::secret::Secret;
use std::collections::HashMap;

/// All values of one file together, after interpolation.
pub const MAX_EXPANDED_BYTES: usize = 16 << 20;
/// Depth of `${A:-${B:-…}}`.
pub const MAX_NESTING: usize = 64;

/// One variable of an env file.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    /// The value after quotes, escapes and interpolation.
    pub value: Secret<String>,
    /// The line of the assignment that won, from 1.
    pub line: usize,
}

/// Why Compose would refuse the file. Names lines and keys, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DotenvError {
    #[error("line {line}: unexpected character {character:?} in a variable name")]
    UnexpectedCharacter { line: usize, character: char },
    #[error("line {line}: a variable name cannot contain a space")]
    SpaceInName { line: usize },
    #[error("line {line}: nothing follows \"export\"")]
    EmptyExport { line: usize },
    #[error("line {line}: the quoted value of {key} has no closing quote")]
    UnterminatedQuote { line: usize, key: String },
    #[error("line {line}: the value of {key} holds an invalid ${{…}} (a literal $ is written $$)")]
    InvalidTemplate { line: usize, key: String },
    #[error("line {line}: the value of {key} requires the variable {variable}, which is missing")]
    MissingVariable { line: usize, key: String, variable: String },
    #[error("line {line}: the value of {key} nests variables more than {MAX_NESTING} deep")]
    TooDeep { line: usize, key: String },
    #[error("line {line}: with {key} the values grow beyond {} MiB", MAX_EXPANDED_BYTES >> 20)]
    TooLarge { line: usize, key: String },
}

impl DotenvError {
    /// The line that it is about, from 1.
    pub fn line(&self) -> usize {
        match self {
            DotenvError::UnexpectedCharacter { line, .. }
            | DotenvError::SpaceInName { line }
            | DotenvError::EmptyExport { line }
            | DotenvError::UnterminatedQuote { line, .. }
            | DotenvError::InvalidTemplate { line, .. }
            | DotenvError::MissingVariable { line, .. }
            | DotenvError::TooDeep { line, .. }
            | DotenvError::TooLarge { line, .. } => *line,
        }
    }
}

/// The caller's environment: what the process or earlier env files define.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// A caller's environment that defines nothing.
pub fn no_environment(_: &str) -> Option<String> {
    None
}

/// Reads an env file. Each key stands once, in the order of the winning assignments.
pub fn parse(text: &str, environment: &Lookup<'_>) -> Result<Vec<Entry>, DotenvError> {
    let mut parser = Parser {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
        entries: Entries::default(),
        environment,
    };
    while parser.statement()? {}
    Ok(parser.entries.in_order())
}

/// Where a key is assigned in a file's text, `export` included; of a quoted value up to the closing quote, else to the end
/// of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub key: String,
    pub start: usize,
    pub end: usize,
}

/// All assignments of a file, in their order; the last one of a key counts. Values do not matter here: a variable that
/// the file requires and does not have hinders nothing.
pub fn assignments(text: &str) -> Result<Vec<Assignment>, DotenvError> {
    let mut parser = Parser {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
        entries: Entries::default(),
        environment: &|_| Some("x".to_owned()),
    };
    let mut found = Vec::new();
    loop {
        parser.skip_blank();
        let start = text.len() - parser.rest.len();
        let count = parser.entries.count;
        if !parser.statement()? {
            return Ok(found);
        }
        if parser.entries.count > count {
            let end = start + text[start..text.len() - parser.rest.len()].trim_end_matches('\n').len();
            found.push(Assignment { key: parser.entries.last.clone(), start, end });
        }
    }
}

/// The same for a file's bytes. Bytes that are not UTF-8 become U+FFFD, so that a comment in an old encoding hinders
/// nothing.
pub fn parse_bytes(bytes: &[u8], environment: &Lookup<'_>) -> Result<Vec<Entry>, DotenvError> {
    parse(&String::from_utf8_lossy(bytes), environment)
}

/// The value of a key.
pub fn get<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Secret<String>> {
    entries.iter().find(|e| e.key == key).map(|e| &e.value)
}

/// Whether a value holds `$(…)` or a pair of backticks: somebody expected a shell to run it, and none ever does.
pub fn looks_like_command_substitution(value: &str) -> bool {
    let dollar = value.find("$(").is_some_and(|at| value[at..].contains(')'));
    dollar || value.matches('`').count() >= 2
}

/// White space within a line.
fn is_inline_space(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<String, (usize, Entry)>,
    count: usize,
    bytes: usize,
    /// The key of the last assignment.
    last: String,
}

impl Entries {
    fn put(&mut self, key: String, value: String, line: usize) {
        if key.is_empty() {
            return;
        }
        self.bytes = self.bytes.saturating_add(value.len());
        self.count += 1;
        self.last.clone_from(&key);
        let entry = Entry { key: key.clone(), value: Secret::new(value), line };
        self.by_key.insert(key, (self.count, entry));
    }

    fn in_order(self) -> Vec<Entry> {
        let mut all: Vec<_> = self.by_key.into_values().collect();
        all.sort_by_key(|(order, _)| *order);
        all.into_iter().map(|(_, entry)| entry).collect()
    }
}

struct Parser<'a> {
    rest: &'a str,
    /// The line on which `rest` begins.
    line: usize,
    entries: Entries,
    environment: &'a Lookup<'a>,
}

impl<'a> Parser<'a> {
    fn advance(&mut self, bytes: usize) {
        let (gone, rest) = self.rest.split_at(bytes);
        self.line += gone.bytes().filter(|b| *b == b'\n').count();
        self.rest = rest;
    }

    fn skip(&mut self, what: fn(char) -> bool) {
        self.advance(self.rest.len() - self.rest.trim_start_matches(what).len());
    }

    /// Passes over white space and comments.
    fn skip_blank(&mut self) {
        self.skip(char::is_whitespace);
        while self.rest.starts_with('#') {
            self.advance(self.rest.find('\n').unwrap_or(self.rest.len()));
            self.skip(char::is_whitespace);
        }
    }

    /// Reads one statement; `false` at the end of the file.
    fn statement(&mut self) -> Result<bool, DotenvError> {
        self.skip_blank();
        if self.rest.is_empty() {
            return Ok(false);
        }
        let line = self.line;
        self.skip_export();
        if self.rest.is_empty() {
            return Err(DotenvError::EmptyExport { line });
        }
        let Some((key, end)) = self.key()? else {
            // Letters up to the end of the file, without a newline: Compose takes them for the value of no key.
            self.rest = "";
            return Ok(true);
        };
        if key.contains(' ') {
            return Err(DotenvError::SpaceInName { line: self.line });
        }
        let line = self.line;
        self.advance(end + 1);
        if self.line > line {
            if let Some(value) = (self.environment)(&key) {
                self.entries.put(key, value, line);
            }
            return Ok(true);
        }
        self.skip(is_inline_space);
        let value = self.value(&key)?;
        self.entries.put(key, value, line);
        Ok(true)
    }

    fn skip_export(&mut self) {
        let after = self.rest.strip_prefix("export");
        if after.is_some_and(|r| r.starts_with(['\t', '\n', '\u{c}', '\r', ' '])) {
            self.advance("export".len());
            self.skip(is_inline_space);
        }
    }

    /// The name, and where the `=`, `:` or newline after it stands.
    fn key(&self) -> Result<Option<(String, usize)>, DotenvError> {
        for (at, c) in self.rest.char_indices() {
            match c {
                '=' | ':' | '\n' => return Ok(Some((self.rest[..at].trim_end().to_owned(), at))),
                '_' | '.' | '-' | '[' | ']' => {}
                c if is_inline_space(c) || c.is_alphabetic() || c.is_numeric() => {}
                character => return Err(DotenvError::UnexpectedCharacter { line: self.line, character }),
            }
        }
        Ok(None)
    }

    fn value(&mut self, key: &str) -> Result<String, DotenvError> {
        let line = self.line;
        let expand = |parser: &Self, text: &str| {
            let expander = Expander {
                environment: parser.environment,
                entries: &parser.entries,
                budget: MAX_EXPANDED_BYTES.saturating_sub(parser.entries.bytes),
            };
            expander.expand(text, 0).map_err(|problem| problem.of(line, key))
        };
        match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let Some((content, end)) = quoted(self.rest, quote) else {
                    return Err(DotenvError::UnterminatedQuote { line, key: key.to_owned() });
                };
                self.advance(end);
                if quote == '"' { expand(self, &unescape(&content)) } else { Ok(content) }
            }
            _ => {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                let whole = &self.rest[..end];
                let text = whole.split_once(" #").map_or(whole, |(before, _)| before).trim_end();
                let value = expand(self, text)?;
                self.advance((end + 1).min(self.rest.len()));
                Ok(value)
            }
        }
    }
}

/// The text between the quotes, with the escaped quotes resolved and every other backslash as it stands, and where
/// the closing quote ends.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut content = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote {
            if !escaped {
                return Some((content, at + c.len_utf8()));
            }
            escaped = false;
            content.push(c);
        } else if c == '\\' && !escaped {
            escaped = true;
        } else {
            if escaped {
                content.push('\\');
            }
            escaped = false;
            content.push(c);
        }
    }
    None
}

/// Resolves the escapes of a double-quoted value. `\$` becomes `$$`, which interpolation makes a literal `$`.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let simple = match rest.bytes().next() {
            Some(b'a') => "\u{7}",
            Some(b'b') => "\u{8}",
            Some(b'f') => "\u{c}",
            Some(b'n') => "\n",
            Some(b'r') => "\r",
            Some(b't') => "\t",
            Some(b'v') => "\u{b}",
            Some(b'$') => "$$",
            Some(b'"') => "\"",
            Some(b'\\') => "\\",
            Some(b'0') => {
                rest = octal(&rest[1..], &mut out);
                continue;
            }
            _ => {
                out.push('\\');
                continue;
            }
        };
        out.push_str(simple);
        rest = &rest[1..];
    }
    out.push_str(rest);
    out
}

/// `\0` and three octal digits are a character. With fewer, or with others, Compose drops the zero and keeps the rest.
fn octal<'a>(after_zero: &'a str, out: &mut String) -> &'a str {
    let digits = after_zero.bytes().take(3).take_while(u8::is_ascii_digit).count();
    let (digits, rest) = after_zero.split_at(digits);
    let code = if digits.len() == 3 { u8::from_str_radix(digits, 8).ok() } else { None };
    match code {
        Some(code) => out.push(char::from(code)),
        None => {
            out.push('\\');
            out.push_str(digits);
        }
    }
    rest
}

enum Problem {
    Invalid,
    Missing(String),
    TooDeep,
    TooLarge,
}

impl Problem {
    fn of(self, line: usize, key: &str) -> DotenvError {
        let key = key.to_owned();
        match self {
            Problem::Invalid => DotenvError::InvalidTemplate { line, key },
            Problem::Missing(variable) => DotenvError::MissingVariable { line, key, variable },
            Problem::TooDeep => DotenvError::TooDeep { line, key },
            Problem::TooLarge => DotenvError::TooLarge { line, key },
        }
    }
}

/// Compose's interpolation, as it also stands in compose files.
struct Expander<'a> {
    environment: &'a Lookup<'a>,
    entries: &'a Entries,
    budget: usize,
}

/// One `${…}`: the name, the operator with its operand, and where it ends.
struct Braced<'t> {
    name: &'t str,
    operation: Option<(Operator, &'t str)>,
    end: usize,
}

#[derive(Clone, Copy)]
struct Operator {
    sign: u8,
    /// With `:` an empty value counts as an unset one.
    colon: bool,
}

impl Expander<'_> {
    fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name)
            .or_else(|| self.entries.by_key.get(name).map(|(_, entry)| entry.value.expose().clone()))
    }

    fn expand(&self, text: &str, depth: usize) -> Result<String, Problem> {
        if depth > MAX_NESTING {
            return Err(Problem::TooDeep);
        }
        let mut out = String::with_capacity(text.len());
        let mut line_end = 0;
        let mut at = 0;
        while let Some(found) = text[at..].find('$') {
            out.push_str(&text[at..at + found]);
            let start = at + found + 1;
            let rest = &text[start..];
            at = match rest.bytes().next() {
                Some(b'$') => {
                    out.push('$');
                    start + 1
                }
                Some(b'{') => {
                    if line_end <= start {
                        line_end = rest.find('\n').map_or(text.len(), |n| start + n);
                    }
                    let braced = braced(&text[start..line_end]).ok_or(Problem::Invalid)?;
                    out.push_str(&self.resolve(&braced, depth)?);
                    start + braced.end
                }
                _ => match name_length(rest) {
                    0 => {
                        out.push('$');
                        start
                    }
                    length => {
                        out.push_str(&self.variable(&rest[..length]).unwrap_or_default());
                        start + length
                    }
                },
            };
            if out.len() > self.budget {
                return Err(Problem::TooLarge);
            }
        }
        out.push_str(&text[at..]);
        if out.len() > self.budget { Err(Problem::TooLarge) } else { Ok(out) }
    }

    fn resolve(&self, braced: &Braced<'_>, depth: usize) -> Result<String, Problem> {
        let value = self.variable(braced.name);
        let Some((operator, operand)) = braced.operation else {
            return Ok(value.unwrap_or_default());
        };
        let present = value.as_ref().is_some_and(|v| !(operator.colon && v.is_empty()));
        match operator.sign {
            b'-' if present => Ok(value.unwrap_or_default()),
            b'?' if present => Ok(value.unwrap_or_default()),
            // The operand is the file's own message; it may name values, so it stays where it is.
            b'?' => Err(Problem::Missing(braced.name.to_owned())),
            b'+' if !present => Ok(value.unwrap_or_default()),
            _ => self.expand(operand, depth + 1),
        }
    }
}

/// Reads `{NAME}` or `{NAME<operator>operand}` at the beginning of `text`, which ends at the end of the line: Compose's
/// operands do not span lines.
fn braced(text: &str) -> Option<Braced<'_>> {
    let length = name_length(&text[1..]);
    if length == 0 {
        return None;
    }
    let name = &text[1..=length];
    let after = &text[length + 1..];
    let bytes = after.as_bytes();
    let (colon, sign) = match bytes {
        [b'}', ..] => return Some(Braced { name, operation: None, end: length + 2 }),
        [b':', sign @ (b'-' | b'+' | b'?'), ..] => (true, *sign),
        [sign @ (b'-' | b'+' | b'?'), ..] => (false, *sign),
        _ => return None,
    };
    let operand_at = length + 2 + usize::from(colon);
    // The whole reaches to the last brace of the line; a brace that balances the first one ends it earlier.
    let last = text[operand_at..].rfind('}')? + operand_at;
    let close = balancing_brace(&text[..=last]).unwrap_or(last);
    Some(Braced { name, operation: Some((Operator { sign, colon }, &text[operand_at..close])), end: close + 1 })
}

/// Where the brace stands that closes the first one. As in Compose, the byte after an opening brace is not looked at.
fn balancing_brace(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, b)) = bytes.next() {
        match b {
            b'{' => {
                open += 1;
                bytes.next();
            }
            b'}' => {
                open = open.checked_sub(1)?;
                if open == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Bytes of the variable name at the beginning. Compose's pattern ignores case by Unicode's folding, which adds the
/// Kelvin sign and the long s to the Latin letters.
fn name_length(text: &str) -> usize {
    let letter = |c: char| c == '_' || c.is_ascii_alphabetic() || matches!(c, '\u{17f}' | '\u{212a}');
    if !text.starts_with(letter) {
        return 0;
    }
    text.find(|c: char| !letter(c) && !c.is_ascii_digit()).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/root".into()),
            "EMPTY" => Some(String::new()),
            "SHARED" => Some("outside".into()),
            _ => None,
        }
    }

    fn read(text: &str) -> Vec<(String, String)> {
        let entries = parse(text, &env).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        entries.into_iter().map(|e| (e.key, e.value.expose().clone())).collect()
    }

    fn value(text: &str) -> String {
        let entries = parse(text, &env).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        get(&entries, "K").unwrap_or_else(|| panic!("{text:?}: no K")).expose().clone()
    }

    #[test]
    fn unquoted_values_and_comments() {
        for (text, expected) in [
            ("K=plain", "plain"),
            ("K = spaced out \r\n", "spaced out"),
            ("\u{feff}K=bom\n", "bom"),
            ("K=a#b", "a#b"),
            ("K=a #b", "a"),
            ("K=a\t#b", "a\t#b"),
            ("K= # note", "# note"),
            ("K=", ""),
            ("K=\nL=1", ""),
            ("K: yaml style", "yaml style"),
            ("K==x=y", "=x=y"),
            ("export K=1", "1"),
            ("export\tK=1", "1"),
            ("  # a\n\n\t# b\n  K=1", "1"),
            ("K=1\nK=2", "2"),
            ("K=it's", "it's"),
            ("K=C:\\new", "C:\\new"),
            ("K=$(openssl rand -hex 16)", "$(openssl rand -hex 16)"),
            ("K=`date`", "`date`"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
    }

    #[test]
    fn quoted_values_and_escapes() {
        for (text, expected) in [
            ("K=\"a # b\" # c\n", "a # b"),
            ("K='a $HOME \\n \\\\'", "a $HOME \\n \\\\"),
            ("K='it\\'s'", "it's"),
            ("K=\"say \\\"hi\\\"\"", "say \"hi\""),
            ("K=\"a\\nb\\tc\\\\n\\a\\b\\f\\r\\v\"", "a\nb\tc\\n\u{7}\u{8}\u{c}\r\u{b}"),
            ("K=\"\\$HOME $$HOME $HOME\"", "$HOME $HOME /root"),
            ("K=\"\\0123\\0310\"", "S\u{c8}"),
            ("K=\"\\0 \\01 \\012 \\0400 \\0389 \\c \\x \\0123456\"", "\\ \\1 \\12 \\400 \\389 \\c \\x S456"),
            ("K=\"one\ntwo\n\"\n", "one\ntwo\n"),
            ("K='one\ntwo'", "one\ntwo"),
            ("K=   \"padded\"", "padded"),
            ("K=\"a\"L=b", "a"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
        assert_eq!(read("K=\"a\"L=b"), [("K".into(), "a".into()), ("L".into(), "b".into())]);
    }

    #[test]
    fn interpolation() {
        for (text, expected) in [
            ("A=1\nK=$A${A}_$A-x", "11_1-x"),
            ("K=${NONE}|$NONE|", "||"),
            ("K=${NONE:-d} ${NONE-d} ${EMPTY:-d} ${EMPTY-d}.", "d d d ."),
            ("K=${HOME:+set} ${HOME+set} ${EMPTY:+set}. ${EMPTY+set} ${NONE+set}.", "set set . set ."),
            ("K=${HOME:?no} ${HOME?no} ${EMPTY?no}.", "/root /root ."),
            ("K=${NONE:-${ALSO:-${HOME}}}/x", "/root/x"),
            ("K=${NONE:-a}b}c", "ab}c"),
            ("K=${NONE:-{}}c", "{}c"),
            ("K=${NONE:-a-b:?c}", "a-b:?c"),
            ("K=$1 $ $( $}", "$1 $ $( $}"),
            ("SHARED=inside\nK=$SHARED", "outside"),
            ("K=${NONE:-$$HOME}", "$HOME"),
            ("K=\"x ${NONE:-a}\ny ${HOME}\"", "x a\ny /root"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
    }

    #[test]
    fn keys_without_a_value() {
        assert_eq!(read("HOME\nNONE\nK=1\nHOME"), [("HOME".into(), "/root".into()), ("K".into(), "1".into())]);
        assert_eq!(read("=x\nK=1\n"), [("K".into(), "1".into())]);
        assert_eq!(read("a.b-c[0]=1\nž2=2\n"), [("a.b-c[0]".into(), "1".into()), ("ž2".into(), "2".into())]);
        let entries = parse("A=1\nB='\n\n'\nC=3\nA=4\n", &no_environment).unwrap();
        let lines: Vec<_> = entries.iter().map(|e| (e.key.as_str(), e.line)).collect();
        assert_eq!(lines, [("B", 2), ("C", 5), ("A", 6)]);
    }

    #[test]
    fn assignments_stand_where_they_are_written() {
        let text = "\u{feff}# a\nexport A = \"one\ntwo\" # note\nB=1 # note\n=x\nNONE\nC='q'D=2\nE=${X:?no}\r\nA=last";
        let found = assignments(text).unwrap();
        let found: Vec<(&str, &str)> = found.iter().map(|a| (a.key.as_str(), &text[a.start..a.end])).collect();
        let expected = [
            ("A", "export A = \"one\ntwo\""),
            ("B", "B=1 # note"),
            ("NONE", "NONE"),
            ("C", "C='q'"),
            ("D", "D=2"),
            ("E", "E=${X:?no}\r"),
            ("A", "A=last"),
        ];
        assert_eq!(found, expected);
        assert!(assignments("A='x").is_err());
    }

    #[test]
    fn bad_lines_are_named_and_values_are_not() {
        let message = |text: &str| parse(text, &env).expect_err(text).to_string();
        assert_eq!(message("A=1\nB%=2"), "line 2: unexpected character '%' in a variable name");
        assert_eq!(message("A=1\n\nB C=2"), "line 3: a variable name cannot contain a space");
        assert_eq!(message("A=1\nB C\n"), "line 2: a variable name cannot contain a space");
        assert_eq!(message("A=1\nB=\"geheim\nX=1\n"), "line 2: the quoted value of B has no closing quote");
        assert_eq!(message("A='x' 'y'"), "line 1: unexpected character '\\'' in a variable name");
        assert_eq!(message("export "), "line 1: nothing follows \"export\"");
        let template = "holds an invalid ${…} (a literal $ is written $$)";
        for text in ["K=${", "K=${}", "K=${1A}", "K=geheim${A", "K=${A B}", "K=\"${A:-x\ny}\"", "K=${A:x}"] {
            assert_eq!(message(text), format!("line 1: the value of K {template}"), "{text:?}");
        }
        let missing = "line 2: the value of K requires the variable NONE, which is missing";
        assert_eq!(message("\nK=${NONE?geheim}"), missing);
        assert_eq!(message("\nK=${NONE:?geheim $HOME}"), missing);
        assert_eq!(
            message("K=${EMPTY:?geheim}"),
            "line 1: the value of K requires the variable EMPTY, which is missing"
        );
    }

    #[test]
    fn values_do_not_show() {
        let entries = parse("K=geheim", &env).unwrap();
        assert_eq!(format!("{entries:?}"), r#"[Entry { key: "K", value: ***, line: 1 }]"#);
        assert!(looks_like_command_substitution("x$(id)") && looks_like_command_substitution("`id`"));
        assert!(!looks_like_command_substitution("$(") && !looks_like_command_substitution("a`b$c(d)"));
    }

    #[test]
    fn hostile_files_end_in_an_error() {
        let mut bomb = String::from("A0=xxxxxxxxxxxxxxxx\n");
        for i in 1..12 {
            bomb.push_str(&format!("A{i}={}\n", format!("$A{}", i - 1).repeat(10)));
        }
        assert!(matches!(parse(&bomb, &env), Err(DotenvError::TooLarge { .. })));
        let deep = format!("K={}{}", "${N:-".repeat(50_000), "}".repeat(50_000));
        assert!(matches!(parse(&deep, &env), Err(DotenvError::TooDeep { .. })));
        let long = format!("K={}", "${N:-}".repeat(100_000));
        assert_eq!(value(&long), "");
    }
}
