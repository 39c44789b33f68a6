//! Lines and scalars: keys, comments, quotes, and what plain text means.

use serde_json::{Number, Value};

/// `- item`.
pub(super) fn is_item(body: &str) -> bool {
    body == "-" || body.starts_with("- ") || body.starts_with("-\t")
}

/// The key and what stands behind its colon, where a line has one.
pub(super) fn split_key(body: &str) -> Option<(&str, &str)> {
    let from = match body.chars().next()? {
        '"' | '\'' => body.len() - quoted(body)?.1.len(),
        '[' | '{' | '#' | '|' | '>' => return None,
        // An anchor or a tag in front of a value is no key.
        '&' | '!' | '*' => return None,
        _ => 0,
    };
    let bytes = body.as_bytes();
    for at in from..bytes.len() {
        match bytes[at] {
            b':' if bytes.get(at + 1).is_none_or(|next| matches!(next, b' ' | b'\t')) => {
                return Some((body[..at].trim_end(), &body[at + 1..]));
            }
            b'#' if at > 0 && matches!(bytes[at - 1], b' ' | b'\t') => return None,
            _ => {}
        }
    }
    None
}

pub(super) fn has_comment(text: &str) -> bool {
    uncommented(text).len() < text.trim_end().len()
}

/// Plain text up to its comment.
pub(super) fn uncommented(text: &str) -> &str {
    let end = text.match_indices('#').find(|(at, _)| *at == 0 || text[..*at].ends_with([' ', '\t']));
    text[..end.map_or(text.len(), |(at, _)| at)].trim_end()
}

/// The value of quoted text, and what stands behind it; nothing where the quotes do not end.
pub(super) fn quoted(text: &str) -> Option<(String, &str)> {
    let mark = text.chars().next()?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == mark {
            if mark == '\'' && chars.peek().is_some_and(|(_, next)| *next == '\'') {
                chars.next();
                value.push('\'');
                continue;
            }
            return Some((value, &text[at + 1..]));
        }
        if mark == '\'' || c != '\\' {
            value.push(c);
            continue;
        }
        let (_, escape) = chars.next()?;
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if digits > 0 {
            let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
            value.push(u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32)?);
            continue;
        }
        value.push(match escape {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '0' => '\0',
            'a' => '\x07',
            'b' => '\x08',
            'e' => '\x1b',
            'f' => '\x0c',
            'v' => '\x0b',
            '_' => '\u{a0}',
            other => other,
        });
    }
    None
}

/// Plain text by the core schema.
pub(super) fn scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>() {
        return Value::Number(number.into());
    }
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E'));
    let number = if is_number { text.parse::<f64>().ok().and_then(Number::from_f64) } else { None };
    number.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

/// A text longer than this counts as several values.
const TEXT: usize = 64;

/// How many values there are in a value, itself included.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(map) => 1 + map.iter().map(|(key, value)| key.len() / TEXT + size(value)).sum::<usize>(),
        Value::String(text) => 1 + text.len() / TEXT,
        _ => 1,
    }
}
