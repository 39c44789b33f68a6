//! The captured text of an env file with some assignments of the live one in it. Whole assignments change places, as they
//! are written, so quotes, lines and `export` stay what they were; everything else stays as it was captured.

use super::rotated::Side;
use crate::policy::dotenv::{Assignment, DotenvError, assignments};
use std::collections::BTreeMap;

/// The merged text. An error is a lower-case fragment without any value.
pub fn merge(captured: &str, live: &str, choices: &BTreeMap<String, Side>) -> Result<String, String> {
    let of =
        |which: &str, text: &str| assignments(text).map_err(|e: DotenvError| format!("{which} cannot be read: {e}"));
    let (then, now) = (of("the captured file", captured)?, of("the live file", live)?);
    let keys = choices.iter().filter(|(_, side)| **side == Side::Live).map(|(key, _)| key.as_str());
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    let mut behind = String::new();
    for key in keys.clone() {
        match (last(&then, key), last(&now, key)) {
            (Some(old), Some(new)) => {
                let mut text = written(live, new).to_owned();
                // An assignment without quotes goes on to the end of its line, and must not swallow what follows here.
                let rest = captured[old.end..].split('\n').next().unwrap_or_default();
                if !rest.trim().is_empty() {
                    text.push('\n');
                }
                edits.push((old.start, old.end, text));
            }
            (None, Some(new)) => {
                behind.push_str(written(live, new));
                behind.push('\n');
            }
            // Taken away since: an earlier assignment must not come to count.
            (Some(_), None) => edits.extend(then.iter().filter(|a| a.key == key).map(|a| {
                let newline = usize::from(captured[a.end..].starts_with('\n'));
                (a.start, a.end + newline, String::new())
            })),
            (None, None) => {}
        }
    }
    edits.sort_by_key(|(start, ..)| *start);
    let mut merged = String::with_capacity(captured.len() + behind.len());
    let mut at = 0;
    for (start, end, text) in &edits {
        merged.push_str(&captured[at..*start]);
        merged.push_str(text);
        at = *end;
    }
    merged.push_str(&captured[at..]);
    if !behind.is_empty() {
        if !merged.is_empty() && !merged.ends_with('\n') {
            merged.push('\n');
        }
        merged.push_str(&behind);
    }
    prove(&merged, (captured, &then), (live, &now), &keys.collect::<Vec<_>>())?;
    Ok(merged)
}

fn last<'a>(all: &'a [Assignment], key: &str) -> Option<&'a Assignment> {
    all.iter().rev().find(|a| a.key == key)
}

fn written<'t>(text: &'t str, assignment: &Assignment) -> &'t str {
    &text[assignment.start..assignment.end]
}

/// Every key is assigned as on the side that was chosen for it, and no other key has come.
fn prove(
    merged: &str,
    captured: (&str, &[Assignment]),
    live: (&str, &[Assignment]),
    from_live: &[&str],
) -> Result<(), String> {
    let found = assignments(merged).map_err(|e| format!("the merged file cannot be read: {e}"))?;
    let all = found.iter().chain(captured.1).chain(live.1).map(|a| a.key.as_str());
    for key in all.collect::<std::collections::BTreeSet<_>>() {
        let (text, side) = if from_live.contains(&key) { live } else { captured };
        let wanted = last(side, key).map(|a| written(text, a));
        if last(&found, key).map(|a| written(merged, a)) != wanted {
            return Err(format!(
                "{key} would not be what was chosen: the file is written in a way that is not understood"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn live(keys: &[&str]) -> BTreeMap<String, Side> {
        keys.iter().map(|k| ((*k).to_owned(), Side::Live)).collect()
    }

    #[test]
    fn whole_assignments_change_places() {
        let captured = "# head\nA=1 # one\nexport B='two\nlines' # keep\nC=3\nA=last\n";
        let now = "export A=\"new\n value\" # mine\nB=$(x) # note\nD=4";
        let merged = merge(captured, now, &live(&["A", "B", "D"])).unwrap();
        let expected = "# head\nA=1 # one\nB=$(x) # note\n # keep\nC=3\nexport A=\"new\n value\"\nD=4\n";
        assert_eq!(merged, expected);
        assert_eq!(merge(captured, now, &BTreeMap::from([("A".into(), Side::Snapshot)])).unwrap(), captured);
        assert_eq!(merge("A=1", "B=2\n", &live(&["B"])).unwrap(), "A=1\nB=2\n");
        assert_eq!(merge("", "B=2", &live(&["B"])).unwrap(), "B=2\n");
        assert_eq!(merge("\u{feff}A=1\r\nB=2\r\n", "A=9\r\n", &live(&["A"])).unwrap(), "\u{feff}A=9\r\nB=2\r\n");
    }

    #[test]
    fn what_was_taken_away_goes_with_all_its_assignments() {
        assert_eq!(merge("A=1\nB=2\nA=3\n", "B=9\n", &live(&["A"])).unwrap(), "B=2\n");
    }

    #[test]
    fn two_assignments_on_one_line_stay_two() {
        assert_eq!(merge("A='x'B=2\n", "A=new\n", &live(&["A"])).unwrap(), "A=new\nB=2\n");
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_its_values() {
        let why = merge("A='geheim\n", "A=1\n", &live(&["A"])).unwrap_err();
        assert!(why.starts_with("the captured file cannot be read: line 1") && !why.contains("geheim"), "{why}");
        assert!(merge("A=1\n", "A='geheim\n", &live(&["A"])).unwrap_err().starts_with("the live file"));
    }

    fn line() -> impl Strategy<Value = String> {
        let key = "[A-E]";
        prop_oneof![
            (key, "[a-z0-9#$' ]{0,8}").prop_map(|(k, v)| format!("{k}={v}")),
            (key, "[a-z# \n]{0,8}").prop_map(|(k, v)| format!("export {k}='{v}'")),
            (key, "[a-z# \n]{0,8}").prop_map(|(k, v)| format!("{k} = \"{v}\" # note")),
            "# [a-z=]{0,8}",
            Just(String::new()),
        ]
    }

    proptest! {
        /// Whatever both files look like: each key is what was chosen, by value too, or it is refused.
        #[test]
        fn every_key_has_the_chosen_value(
            then in proptest::collection::vec(line(), 0..8),
            now in proptest::collection::vec(line(), 0..8),
            chosen in proptest::collection::btree_set("[A-E]", 0..5),
        ) {
            let (then, now) = (then.join("\n"), now.join("\n"));
            let choices = chosen.iter().map(|k| (k.clone(), Side::Live)).collect();
            if let Ok(merged) = merge(&then, &now, &choices) {
                let read = |text: &str| crate::policy::dotenv::parse(text, &|_| Some("x".into())).unwrap();
                let (merged, then, now) = (read(&merged), read(&then), read(&now));
                for key in ["A", "B", "C", "D", "E"] {
                    let side = if chosen.contains(key) { &now } else { &then };
                    let value = |entries| crate::policy::dotenv::get(entries, key).map(|v| v.expose().clone());
                    prop_assert_eq!(value(&merged), value(side));
                }
            }
        }
    }
}
