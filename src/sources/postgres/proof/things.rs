//! What is compared, as names with what they are; and the differences between two such lists.

use crate::sources::proof::Difference;
use std::collections::BTreeMap;

/// What a thing is, in a fixed order: `("owner", "shop")`.
pub(super) type Traits = Vec<(&'static str, String)>;

/// Things by name.
#[derive(Debug, Default)]
pub(super) struct Things(BTreeMap<String, Traits>);

impl Things {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What is missing, what is there besides, and what is not as it was.
    pub fn differences(&self, found: &Things) -> Vec<Difference> {
        let mut all = Vec::new();
        for (name, traits) in &self.0 {
            match found.0.get(name) {
                None => all.push(Difference::new(name, told(traits), "missing")),
                Some(other) => {
                    let changed: Vec<_> = traits.iter().zip(other).filter(|(a, b)| a != b).collect();
                    if !changed.is_empty() {
                        let (expected, found): (Traits, Traits) =
                            changed.into_iter().map(|(a, b)| (a.clone(), b.clone())).unzip();
                        all.push(Difference::new(name, told(&expected), told(&found)));
                    }
                }
            }
        }
        let besides = found.0.iter().filter(|(name, _)| !self.0.contains_key(*name));
        all.extend(besides.map(|(name, traits)| Difference::new(name, "nothing", told(traits))));
        all
    }
}

impl<N: Into<String>> FromIterator<(N, Traits)> for Things {
    fn from_iter<I: IntoIterator<Item = (N, Traits)>>(all: I) -> Self {
        Self(all.into_iter().map(|(name, traits)| (name.into(), traits)).collect())
    }
}

fn told(traits: &Traits) -> String {
    if traits.is_empty() {
        return "there".into();
    }
    let words: Vec<String> = traits
        .iter()
        .map(|(name, value)| match value.as_str() {
            "" => format!("no {name}"),
            value => format!("{name} {value}"),
        })
        .collect();
    words.join(", ")
}

/// A list as one value.
pub(super) fn list(values: &[String]) -> String {
    let mut sorted: Vec<&str> = values.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.join("; ")
}

pub(super) fn yes(value: bool) -> String {
    if value { "yes".into() } else { "no".into() }
}

/// `1,204,332`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 table`, `41 tables`.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number as u64), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_differs_and_no_more() {
        let owner = |o: &str| vec![("kind", "table".to_owned()), ("owner", o.to_owned())];
        let expected: Things = [("a", owner("x")), ("b", owner("x")), ("c", owner("x"))].into_iter().collect();
        let found: Things = [("a", owner("x")), ("b", owner("y")), ("d", owner(""))].into_iter().collect();
        assert_eq!(
            expected.differences(&found),
            [
                Difference::new("b", "owner x", "owner y"),
                Difference::new("c", "kind table, owner x", "missing"),
                Difference::new("d", "nothing", "kind table, no owner"),
            ]
        );
        assert_eq!((grouped(0), grouped(999), grouped(1_204_332)), ("0".into(), "999".into(), "1,204,332".into()));
    }
}
