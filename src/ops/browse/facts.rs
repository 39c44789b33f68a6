//! Facts, without knowing whose they are: a few lines for people, and the differences between two.

use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// More names than this are counted, not written out.
const NAMES: usize = 6;
/// A longer text is cut in a summary and in a difference.
const TEXT: usize = 200;
/// What identifies an element of a list, first match wins: sources keep to these names.
const KEYS: &[&[&str]] = &[
    &["schema", "name"],
    &["role", "member"],
    &["tool", "schema", "table"],
    &["name"],
    &["stream"],
    &["path"],
    &["file"],
    &["key"],
    &["id"],
    &["service"],
    &["database"],
    &["subject"],
];
/// What belongs to the moment of the capture: it always differs and says nothing of the thing.
const MOMENT: &[&str] = &["at", "before", "after", "used_memory"];

/// One line for each fact at the top, and for lists within lists one with their number.
pub fn summary(facts: &Value) -> Vec<String> {
    let Value::Object(facts) = facts else { return Vec::new() };
    let mut lines: Vec<String> = facts.iter().filter_map(|(name, value)| line(name, value)).collect();
    let mut counts: Vec<(String, u64)> = Vec::new();
    let elements = facts.values().filter_map(Value::as_array).flatten().filter_map(Value::as_object);
    for element in elements {
        for (name, value) in element {
            if let Value::Array(list) = value {
                add(&mut counts, name, list.len() as u64);
                for n in list.iter().filter_map(|e| e.get("rows")?.as_u64()) {
                    add(&mut counts, "rows", n);
                }
            }
        }
    }
    lines.extend(counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{}: {n}", words(&name))));
    lines
}

fn add(counts: &mut Vec<(String, u64)>, name: &str, n: u64) {
    match counts.iter_mut().find(|(known, _)| known == name) {
        Some((_, sum)) => *sum += n,
        None => counts.push((name.to_owned(), n)),
    }
}

fn line(name: &str, value: &Value) -> Option<String> {
    let text = match value {
        Value::Null | Value::Bool(false) => return None,
        Value::Bool(true) => return Some(words(name)),
        Value::String(s) if s.is_empty() => return None,
        Value::String(s) => cut(s),
        Value::Number(n) => n.to_string(),
        Value::Array(list) if list.is_empty() => return None,
        Value::Array(list) => {
            let names: Vec<&str> = list.iter().filter_map(|e| e.as_str().or(e.get("name")?.as_str())).collect();
            if names.len() == list.len() && names.len() <= NAMES {
                cut(&names.join(", "))
            } else {
                list.len().to_string()
            }
        }
        // What is nested belongs to the details.
        Value::Object(_) => return None,
    };
    Some(format!("{}: {text}", words(name)))
}

fn words(name: &str) -> String {
    name.replace('_', " ")
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// One fact that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FactChange {
    /// `databases[shop].tables[public.orders].rows`.
    pub fact: String,
    /// Absent: it was not there.
    pub before: Option<Value>,
    /// Absent: it is not there any more.
    pub after: Option<Value>,
}

/// Tells how two facts differ. The visitor is called once for each difference, in the order of the facts.
pub fn compare<E>(before: &Value, after: &Value, visit: &mut dyn FnMut(FactChange) -> Result<(), E>) -> Result<(), E> {
    Comparison { path: String::new(), visit }.values(before, after)
}

struct Comparison<'v, E> {
    path: String,
    visit: &'v mut dyn FnMut(FactChange) -> Result<(), E>,
}

impl<E> Comparison<'_, E> {
    fn values(&mut self, before: &Value, after: &Value) -> Result<(), E> {
        if before == after {
            return Ok(());
        }
        match (before, after) {
            (Value::Object(a), Value::Object(b)) => self.objects(a, b),
            (Value::Array(a), Value::Array(b)) => self.lists(a, b),
            _ => self.tell(Some(before), Some(after)),
        }
    }

    fn below(&mut self, name: &str, walk: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        let length = self.path.len();
        self.path.push_str(name);
        let result = walk(self);
        self.path.truncate(length);
        result
    }

    fn objects(&mut self, a: &Map<String, Value>, b: &Map<String, Value>) -> Result<(), E> {
        let dot = if self.path.is_empty() { "" } else { "." };
        let new = b.keys().filter(|name| !a.contains_key(*name));
        for name in a.keys().chain(new).filter(|name| !MOMENT.contains(&name.as_str())) {
            self.below(&format!("{dot}{name}"), |this| match (a.get(name), b.get(name)) {
                (Some(a), Some(b)) => this.values(a, b),
                // A fact that is not known is the same as one that is not there.
                (a, b) if a.or(b) == Some(&Value::Null) => Ok(()),
                (a, b) => this.tell(a, b),
            })?;
        }
        Ok(())
    }

    /// Lists are compared by what identifies their elements, else by the elements themselves; never by position.
    fn lists(&mut self, a: &[Value], b: &[Value]) -> Result<(), E> {
        if let (Some(before), Some(after)) = (keyed(a), keyed(b))
            && (!before.is_empty() || !after.is_empty())
        {
            let new = after.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(new) {
                self.below(&format!("[{key}]"), |this| match (before.get(key), after.get(key)) {
                    (Some(a), Some(b)) => this.values(a, b),
                    (a, b) => this.tell(a.copied(), b.copied()),
                })?;
            }
            return Ok(());
        }
        let mut counts: BTreeMap<String, (i64, &Value)> = BTreeMap::new();
        a.iter().for_each(|v| counts.entry(v.to_string()).or_insert((0, v)).0 -= 1);
        b.iter().for_each(|v| counts.entry(v.to_string()).or_insert((0, v)).0 += 1);
        for (count, value) in counts.into_values() {
            let (gone, new) = (count < 0, count > 0);
            if gone || new {
                self.below("[]", |this| this.tell(gone.then_some(value), new.then_some(value)))?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, before: Option<&Value>, after: Option<&Value>) -> Result<(), E> {
        (self.visit)(FactChange { fact: self.path.clone(), before: before.map(brief), after: after.map(brief) })
    }
}

/// The elements by what identifies them; `None` when something has no name, or two have the same.
fn keyed(list: &[Value]) -> Option<BTreeMap<String, &Value>> {
    let names = KEYS.iter().find(|names| list.iter().all(|e| names.iter().all(|name| e.get(name).is_some())))?;
    let part = |e: &Value, name: &str| match e.get(name) {
        Some(Value::String(s)) => Some(cut(s)),
        Some(Value::Number(n)) => Some(n.to_string()),
        _ => None,
    };
    let mut map = BTreeMap::new();
    for element in list {
        let key: Option<Vec<String>> = names.iter().map(|name| part(element, name)).collect();
        if map.insert(key?.join("."), element).is_some() {
            return None;
        }
    }
    Some(map)
}

/// A value as a difference shows it: what is long is cut, what is nested is told by its size.
fn brief(value: &Value) -> Value {
    match value {
        Value::String(s) => Value::String(cut(s)),
        Value::Array(list) if value.to_string().len() > TEXT => Value::String(format!("{} elements", list.len())),
        Value::Object(map) if value.to_string().len() > TEXT => {
            let scalars = map.iter().filter(|(_, v)| !v.is_array() && !v.is_object()).take(NAMES);
            Value::Object(scalars.map(|(k, v)| (k.clone(), brief(v))).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::convert::Infallible;

    fn changes(a: &Value, b: &Value) -> Vec<String> {
        let mut out = Vec::new();
        let text = |v: Option<Value>| v.map_or("-".to_owned(), |v| v.to_string());
        compare::<Infallible>(a, b, &mut |c| {
            out.push(format!("{} {} {}", c.fact, text(c.before), text(c.after)));
            Ok(())
        })
        .unwrap();
        out
    }

    #[test]
    fn lists_are_compared_by_what_identifies_their_elements() {
        let table = |name: &str, rows: u64| json!({"schema": "public", "name": name, "rows": rows});
        let a = json!({"version": "15.1", "databases": [{"name": "shop", "at": "1", "tables": [table("a", 1), table("b", 2)]}]});
        let b = json!({"version": "15.2", "databases": [{"name": "shop", "at": "2", "tables": [table("c", 9), table("b", 3)]}, {"name": "crm"}]});
        let found = changes(&a, &b);
        assert_eq!(
            found,
            [
                r#"version "15.1" "15.2""#,
                r#"databases[shop].tables[public.a] {"schema":"public","name":"a","rows":1} -"#,
                "databases[shop].tables[public.b].rows 2 3",
                r#"databases[shop].tables[public.c] - {"schema":"public","name":"c","rows":9}"#,
                r#"databases[crm] - {"name":"crm"}"#,
            ]
        );
        assert!(changes(&a, &a).is_empty());
    }

    #[test]
    fn lists_without_names_are_compared_as_sets() {
        assert_eq!(
            changes(&json!({"l": ["x", "y"]}), &json!({"l": ["y", "z", "z"]})),
            [r#"l[] "x" -"#, r#"l[] - "z""#]
        );
        assert!(changes(&json!({"l": [1, 2]}), &json!({"l": [2, 1]})).is_empty(), "order says nothing");
        assert!(changes(&json!({"a": null}), &json!({})).is_empty());
    }

    #[test]
    fn a_summary_names_what_is_few_and_counts_what_is_many() {
        let facts = json!({"server_version": "15.20", "standby": false, "superuser": true, "roles": (0..9).collect::<Vec<_>>(),
            "databases": [{"name": "shop", "tables": [{"rows": 3}, {"rows": 4}]}, {"name": "crm", "tables": []}]});
        let lines = summary(&facts);
        let expected =
            ["server version: 15.20", "superuser", "roles: 9", "databases: shop, crm", "tables: 2", "rows: 7"];
        assert_eq!(lines, expected);
        assert!(summary(&Value::Null).is_empty());
    }
}
