//! The part of YAML that compose files are written in: blocks, lists, flow collections on one or more lines, quotes and
//! comments. What is beyond it (anchors, tags, block texts) yields nothing, and never an error: the engine knows the
//! rest.
//!
//! Invariant: time grows with the length of the text, and memory is bounded, whatever stands in it.

/// A scalar, and the keys above it; an item of a list has the key `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    pub path: Vec<String>,
    pub value: String,
}

impl Scalar {
    /// The value, when it stands exactly there; `*` is any key.
    pub fn at(&self, path: &[&str]) -> Option<&str> {
        let fits = self.path.len() == path.len() && self.path.iter().zip(path).all(|(k, p)| *p == "*" || k == p);
        fits.then_some(self.value.as_str())
    }
}

/// Deeper nesting is no compose file.
const MAX_DEPTH: usize = 64;
/// What all paths may take together. A key stands in the path of everything below it, so that a long one multiplies; what
/// follows then yields nothing.
const MAX_PATHS: usize = 32 << 20;

struct Level {
    indent: usize,
    key: String,
}

/// Every scalar of a document, in order.
pub fn scalars(text: &str) -> Vec<Scalar> {
    let mut found = Found { scalars: Vec::new(), left: MAX_PATHS };
    let mut levels: Vec<Level> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let mut rest = without_comment(line).trim_end();
        let mut indent = rest.len() - rest.trim_start_matches(' ').len();
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() || rest == "---" || rest.starts_with('%') {
            continue;
        }
        // A block text is deeper than the key or the `-` that it belongs to.
        let mut owner = indent;
        // `- - key: value` opens several levels in one line.
        while let Some(item) = rest.strip_prefix("- ").or((rest == "-").then_some("")) {
            levels.retain(|l| l.indent < indent || (l.indent == indent && l.key != "-"));
            push(&mut levels, indent, "-");
            owner = indent;
            indent += rest.len() - item.trim_start().len();
            rest = item.trim_start();
        }
        let (key, value) = match key_of(rest) {
            Some((key, value)) => (Some(key), value),
            None => (None, rest),
        };
        if let Some(key) = key {
            levels.retain(|l| l.indent < indent);
            push(&mut levels, indent, &key);
            owner = indent;
        }
        let mut value = value.trim().to_owned();
        if value.starts_with(['|', '>']) {
            let deeper = |l: &str| l.trim().is_empty() || l.len() - l.trim_start_matches(' ').len() > owner;
            while lines.next_if(|l| deeper(l)).is_some() {}
            continue;
        }
        if value.starts_with(['[', '{']) {
            let mut brackets = Brackets::default();
            brackets.look_at(&value);
            while brackets.are_open() {
                let Some(next) = lines.next() else { break };
                let next = without_comment(next).trim();
                brackets.look_at(next);
                value.push(' ');
                value.push_str(next);
            }
        }
        if !value.is_empty() && levels.len() < MAX_DEPTH {
            if !found.pays(levels.iter().map(|l| l.key.as_str())) {
                break;
            }
            let mut path: Vec<String> = levels.iter().map(|l| l.key.clone()).collect();
            Flow { rest: &value }.value(&mut path, &mut found, 0);
        }
    }
    found.scalars
}

/// What was found, and what paths may still take.
struct Found {
    scalars: Vec<Scalar>,
    left: usize,
}

impl Found {
    fn pays<'k>(&mut self, path: impl Iterator<Item = &'k str>) -> bool {
        let cost: usize = path.map(|key| key.len() + size_of::<String>()).sum();
        let left = self.left.checked_sub(cost);
        self.left = left.unwrap_or_default();
        left.is_some()
    }
}

/// What is deeper than any compose file is not kept: nothing below it is given.
fn push(levels: &mut Vec<Level>, indent: usize, key: &str) {
    if levels.len() < MAX_DEPTH {
        levels.push(Level { indent, key: key.to_owned() });
    }
}

/// The line up to a `#` that begins a comment.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') if !before.is_alphanumeric() => quote = Some(c),
            (None, '#') if before.is_whitespace() => return &line[..at],
            _ => {}
        }
        before = c;
    }
    line
}

/// `key: value` taken apart; the value may be empty.
fn key_of(text: &str) -> Option<(String, &str)> {
    if text.starts_with(['[', '{']) {
        return None;
    }
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let end = text[1..].find(quote)? + 1;
        let rest = text[end + 1..].trim_start().strip_prefix(':')?;
        return (rest.is_empty() || rest.starts_with(' ')).then(|| (text[1..end].to_owned(), rest));
    }
    let at = text
        .match_indices(':')
        .map(|(at, _)| at)
        .find(|at| matches!(text.as_bytes().get(at + 1), None | Some(b' ')))?;
    Some((text[..at].trim().to_owned(), &text[at + 1..]))
}

/// Brackets and quotes of a value of several lines. Each line is looked at once, however many there are.
#[derive(Default)]
struct Brackets {
    depth: i32,
    quote: Option<char>,
}

impl Brackets {
    fn look_at(&mut self, text: &str) {
        for c in text.chars() {
            match (self.quote, c) {
                (Some(q), c) if c == q => self.quote = None,
                (Some(_), _) => {}
                (None, '"' | '\'') => self.quote = Some(c),
                (None, '[' | '{') => self.depth += 1,
                (None, ']' | '}') => self.depth -= 1,
                _ => {}
            }
        }
    }

    fn are_open(&self) -> bool {
        self.depth > 0
    }
}

/// A value that may be a flow collection.
struct Flow<'t> {
    rest: &'t str,
}

impl Flow<'_> {
    fn value(&mut self, path: &mut Vec<String>, found: &mut Found, depth: usize) {
        self.rest = self.rest.trim_start();
        if depth > MAX_DEPTH {
            self.rest = "";
            return;
        }
        if let Some(rest) = self.rest.strip_prefix('[') {
            self.rest = rest;
            path.push("-".to_owned());
            while self.more(']') {
                let before = self.rest.len();
                self.value(path, found, depth + 1);
                self.go_on(before);
            }
            path.pop();
        } else if let Some(rest) = self.rest.strip_prefix('{') {
            self.rest = rest;
            while self.more('}') {
                let before = self.rest.len();
                let key = self.word(true);
                self.rest = self.rest.trim_start();
                path.push(key);
                if let Some(rest) = self.rest.strip_prefix(':') {
                    self.rest = rest;
                    self.value(path, found, depth + 1);
                }
                path.pop();
                self.go_on(before);
            }
        } else {
            let value = self.word(depth > 0);
            let marked = value.starts_with(['&', '*', '!']);
            if !value.is_empty() && !marked && found.pays(path.iter().map(String::as_str)) {
                found.scalars.push(Scalar { path: path.clone(), value });
            }
        }
    }

    /// Whether another element follows; passes over what separates and closes.
    fn more(&mut self, close: char) -> bool {
        self.rest = self.rest.trim_start_matches([' ', ',']);
        match self.rest.strip_prefix(close) {
            Some(rest) => {
                self.rest = rest;
                false
            }
            None => !self.rest.is_empty(),
        }
    }

    /// What cannot be read is passed over, so that reading always ends.
    fn go_on(&mut self, before: usize) {
        if self.rest.len() == before {
            let mut chars = self.rest.chars();
            chars.next();
            self.rest = chars.as_str();
        }
    }

    /// A scalar. Within a flow collection it ends at `,`, at brackets and at the `:` behind a key.
    fn word(&mut self, in_flow: bool) -> String {
        self.rest = self.rest.trim_start();
        if let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            let mut word = String::new();
            let mut chars = self.rest[1..].char_indices().peekable();
            while let Some((at, c)) = chars.next() {
                match c {
                    '\\' if quote == '"' => word.extend(chars.next().map(|(_, c)| c)),
                    '\'' if quote == '\'' && chars.peek().is_some_and(|(_, c)| *c == '\'') => {
                        chars.next();
                        word.push('\'');
                    }
                    c if c == quote => {
                        self.rest = &self.rest[at + 2..];
                        return word;
                    }
                    c => word.push(c),
                }
            }
            self.rest = "";
            return word;
        }
        let mut end = self.rest.len();
        let mut braces = 0;
        for (at, c) in self.rest.char_indices().filter(|_| in_flow) {
            let next = self.rest[at + c.len_utf8()..].chars().next();
            match c {
                // `${NAME}` is part of a word.
                '{' if self.rest[..at].ends_with('$') => braces += 1,
                '}' if braces > 0 => braces -= 1,
                ',' | ']' | '}' | '[' | '{' if braces == 0 => end = at,
                ':' if braces == 0 && matches!(next, None | Some(' ')) => end = at,
                _ => continue,
            }
            if end == at {
                break;
            }
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<String> {
        scalars(text).into_iter().map(|s| format!("{}={}", s.path.join("/"), s.value)).collect()
    }

    #[test]
    fn compose_files_as_people_write_them() {
        let text = r##"
version: '3'            # old
services:
  # the data
  db:
    image: "ankane/pgvector:pg15"
    environment: {POSTGRES_DB: shop, POSTGRES_PASSWORD: "${DB_PASSWORD}", URL: "a:b"}
    command:
      - sh
      - -c
      - |
        image: not this
    volumes: ["pg:/var/lib/postgresql", "./ops:/ops:ro"]
    healthcheck: {test: ["CMD", "x"],
      interval: 1s}
  api:
    env_file:
    - .env
    - path: backend/.env.production
      required: false
    command: redis-server --requirepass ${REDIS_PASSWORD} # not shown
    environment:
      - KEY=a#b
  cache: {image: redis, ports: [6379:6379]}
x: &anchor
  y: *other
"##;
        assert_eq!(
            all(text),
            [
                "version=3",
                "services/db/image=ankane/pgvector:pg15",
                "services/db/environment/POSTGRES_DB=shop",
                "services/db/environment/POSTGRES_PASSWORD=${DB_PASSWORD}",
                "services/db/environment/URL=a:b",
                "services/db/command/-=sh",
                "services/db/command/-=-c",
                "services/db/volumes/-=pg:/var/lib/postgresql",
                "services/db/volumes/-=./ops:/ops:ro",
                "services/db/healthcheck/test/-=CMD",
                "services/db/healthcheck/test/-=x",
                "services/db/healthcheck/interval=1s",
                "services/api/env_file/-=.env",
                "services/api/env_file/-/path=backend/.env.production",
                "services/api/env_file/-/required=false",
                "services/api/command=redis-server --requirepass ${REDIS_PASSWORD}",
                "services/api/environment/-=KEY=a#b",
                "services/cache/image=redis",
                "services/cache/ports/-=6379:6379",
            ]
        );
    }

    #[test]
    fn what_is_no_yaml_ends_all_the_same() {
        for odd in ["", ":", "- - -", "a: [", "a: {b", "a: {b: [c}", "a: \"", "a: [[[[]", "{", "]", "a: {{}}", "é: [ü"]
        {
            all(odd);
        }
        let deep = "[".repeat(10_000);
        all(&format!("a: {deep}"));
    }

    /// A few hundred kilobytes took minutes, and gigabytes, where each line looked again at all before it, or each value
    /// repeated a long key.
    #[test]
    fn what_goes_on_for_long_takes_time_by_its_length() {
        let begins = ["[db:/v", "a: [db:/v", "a: {b", "a: [\"", "a: ['", "a: |\n", "a:\n", ""];
        let words = [
            "|\n", "x\n", "- ", "- [", "[a],\n", "{", "b: {\n", "\"\n", "''\n", "${,", " # x\n", "a: '\n", ":\n", "\n",
        ];
        for begin in begins {
            for word in words {
                let text = format!("{begin}{}", word.repeat((100 << 10) / word.len()));
                let begun = std::time::Instant::now();
                scalars(&text);
                assert!(begun.elapsed().as_secs() < 3, "{begin:?} {word:?}: {:?}", begun.elapsed());
            }
        }
        let key = "k".repeat(100_000);
        for text in [format!("{key}:\n{}", "- a\n".repeat(100_000)), format!("{key}: [{}", "a,".repeat(100_000))] {
            let found = scalars(&text);
            let bytes: usize = found.iter().flat_map(|s| s.path.iter()).map(String::len).sum();
            assert!(!found.is_empty() && bytes <= MAX_PATHS, "{bytes} bytes of paths");
        }
        // No compose file is cut short by that.
        let services: String =
            (0..2_000).map(|n| format!("  s{n}:\n    ports: [\"{n}:80\"]\n    image: i\n")).collect();
        assert_eq!(scalars(&format!("services:\n{services}")).len(), 4_000);
    }

    #[test]
    fn sweep_files() {
        let words = ["- ", ": ", "\n  ", "{", "}", "[", "]", "\"", "'", "# ", "|\n", "\t", "é"];
        let fuzz = crate::base::fuzz::Fuzz::of("yaml").words(&words);
        fuzz.run(|bytes| drop(scalars(&String::from_utf8_lossy(bytes))));
    }
}
