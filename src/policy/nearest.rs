//! The valid name that a mistyped one most likely means.

/// The candidate that `given` is most likely a slip of, if any is near enough: one slip in three letters, or a name
/// that begins the other. Ties go to the earlier candidate.
pub fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let folded = candidate.to_lowercase();
        let longer = given.chars().count().max(folded.chars().count());
        let mut slips = distance(&given, &folded);
        let shorter = given.len().min(folded.len());
        if shorter >= 3 && (given.starts_with(&folded) || folded.starts_with(&given)) {
            slips = slips.min(1);
        }
        if slips <= (longer / 3).max(1) && slips < longer && best.is_none_or(|(least, _)| slips < least) {
            best = Some((slips, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Letters added, left out, exchanged or swapped with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let exchange = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = exchange.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = above;
        above = row;
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let fields = ["url", "recipients", "region", "keep_last", "on"];
        assert_eq!(nearest("recipient", fields), Some("recipients"));
        assert_eq!(nearest("recpiients", fields), Some("recipients"));
        assert_eq!(nearest("rigion", fields), Some("region"));
        assert_eq!(nearest("Keep-Last", fields), Some("keep_last"));
        assert_eq!(nearest("urls", fields), Some("url"));
        assert_eq!(nearest("no", fields), Some("on"));
        assert_eq!(nearest("x", fields), None);
        assert_eq!(nearest("password", fields), None);
        assert_eq!(nearest("", fields), None);
    }
}
