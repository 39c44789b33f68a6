//! A change of a policy's text that keeps everything else of it: comments, order, blanks.

use super::model::{CopyTo, RepositoryUrl};
use super::show;

/// The text with one more recipient behind the last one of `[repository]`; none where the list is written in a way that
/// is not found. The caller holds the result against what it shall say, here and below.
pub fn with_recipient(text: &str, recipient: &str) -> Option<String> {
    let list = List::of(text, "recipients")?;
    let at = list.last_text?;
    // A basic string of TOML is one of JSON for what a recipient can hold.
    let quoted = serde_json::to_string(recipient).ok()?;
    let line = text.get(..at)?.rsplit('\n').next()?;
    let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
    // Each on a line of its own stays so.
    let gap = if line.trim_start().starts_with(['"', '\'']) { format!("\n{indent}") } else { " ".to_owned() };
    Some(format!("{},{gap}{quoted}{}", text.get(..at)?, text.get(at..)?))
}

/// The text with these copies in `[repository]`, instead of those that it lists.
pub fn with_copies(text: &str, copies: &[CopyTo]) -> Option<String> {
    let list = List::of(text, "copies")?;
    let copies: Vec<String> = copies.iter().map(show::copy).collect();
    Some(format!("{}{}{}", text.get(..list.begin)?, copies.join(", "), text.get(list.end..)?))
}

/// The text with the repository at one of its copies: reached as that one is, and that one no copy any more.
pub fn with_repository_at(text: &str, to: &CopyTo, others: &[CopyTo]) -> Option<String> {
    let is_bucket = matches!(to.url, RepositoryUrl::S3 { .. });
    let own_way = !is_bucket || to.reach.is_some();
    let mut out = String::new();
    for (section, line) in lines(text) {
        let sets = |field: &str| section == "repository" && value_of(line, field).is_some();
        if sets("url") {
            let quoted = serde_json::to_string(&to.url.to_string()).ok()?;
            out.push_str(&format!("url = {quoted}\n"));
            for field in to.reach.iter().filter(|_| is_bucket).flat_map(show::reach_fields) {
                out.push_str(&format!("{field}\n"));
            }
        } else if own_way && super::S3_FIELDS.iter().chain(&["limit_upload"]).any(|field| sets(field)) {
            // What was the other place's stays as a comment.
            out.push_str(&format!("# {line}"));
        } else {
            out.push_str(line);
        }
    }
    with_copies(&out, others)
}

/// Each line with the section that it stands in.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split_inclusive('\n').scan("", |section, line| {
        let plain = line.trim();
        if plain.starts_with('[') {
            *section = plain.split('#').next().unwrap_or_default().trim().trim_matches(['[', ']']).trim();
        }
        Some((*section, line))
    })
}

/// What a line sets a field to.
fn value_of<'a>(line: &'a str, field: &str) -> Option<&'a str> {
    line.trim().strip_prefix(field).map(str::trim_start)?.strip_prefix('=').map(str::trim_start)
}

/// Where a list of `[repository]` stands in the text.
struct List {
    /// Behind its opening bracket, and at its closing one.
    begin: usize,
    end: usize,
    /// Behind its last text.
    last_text: Option<usize>,
}

impl List {
    fn of(text: &str, field: &str) -> Option<Self> {
        let mut at = 0;
        for (section, line) in lines(text) {
            if section == "repository" && value_of(line, field).is_some_and(|value| value.starts_with('[')) {
                return Self::read(text, at + line.find('[')? + 1);
            }
            at += line.len();
        }
        None
    }

    /// Reads on from behind the opening bracket.
    fn read(text: &str, begin: usize) -> Option<Self> {
        let (mut quote, mut in_comment, mut escaped, mut depth, mut last_text) = (None, false, false, 0, None);
        for (at, c) in text.get(begin..)?.char_indices() {
            match (quote, c) {
                (None, '\n') => in_comment = false,
                (None, _) if in_comment => {}
                (None, '#') => in_comment = true,
                (None, '"' | '\'') => quote = Some(c),
                (None, ']') if depth == 0 => return Some(Self { begin, end: begin + at, last_text }),
                (None, '[' | '{') => depth += 1,
                (None, ']' | '}') => depth -= 1,
                (Some('"'), _) if escaped => escaped = false,
                (Some('"'), '\\') => escaped = true,
                (Some(open), c) if open == c => {
                    quote = None;
                    last_text = Some(begin + at + 1);
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_stands_where_the_others_do() {
        for (before, after) in [
            ("[repository]\nrecipients = [\"a\"]\n", "[repository]\nrecipients = [\"a\", \"new\"]\n"),
            (
                "[repository] # where\nrecipients = [\n  \"a\", # \"mine]\"\n  'b',\n]\nx = [\"y\"]\n",
                "[repository] # where\nrecipients = [\n  \"a\", # \"mine]\"\n  'b',\n  \"new\",\n]\nx = [\"y\"]\n",
            ),
            (
                "[repository]\nrecipients = [\"ssh-ed25519 AA \\\"]\"]",
                "[repository]\nrecipients = [\"ssh-ed25519 AA \\\"]\", \"new\"]",
            ),
        ] {
            assert_eq!(with_recipient(before, "new").as_deref(), Some(after));
        }
        for none in ["", "[app]\nrecipients = [\"a\"]\n", "[repository]\nrecipients = []\n", "# recipients = [\"a\"]\n"]
        {
            assert_eq!(with_recipient(none, "new"), None, "{none}");
        }
    }
}
