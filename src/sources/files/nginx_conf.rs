//! The syntax of nginx's configuration: words, `;` and blocks. No meaning beyond that.

/// A directive, whichever block it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    pub name: String,
    pub arguments: Vec<String>,
    /// The names of the blocks around it, outermost first.
    pub within: Vec<String>,
}

/// All directives of a file, in order. What is not well formed ends the reading, and what came before counts.
pub fn directives(text: &str) -> Vec<Directive> {
    let mut found = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut within: Vec<String> = Vec::new();
    let mut lexer = Lexer { rest: text };
    while let Some(token) = lexer.next() {
        match token {
            Token::Word(word) => words.push(word),
            Token::End | Token::Open => {
                let mut all = std::mem::take(&mut words).into_iter();
                let Some(name) = all.next() else { continue };
                found.push(Directive { name: name.clone(), arguments: all.collect(), within: within.clone() });
                if token == Token::Open {
                    if name.ends_with("_by_lua_block") {
                        lexer.skip_block();
                    } else {
                        within.push(name);
                    }
                }
            }
            Token::Close => {
                words.clear();
                within.pop();
            }
        }
    }
    found
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    End,
    Open,
    Close,
}

struct Lexer<'t> {
    rest: &'t str,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<Token> {
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix('#') {
                Some(comment) => self.rest = comment.find('\n').map_or("", |at| &comment[at..]),
                None => break,
            }
        }
        let first = self.rest.chars().next()?;
        let single = match first {
            ';' => Some(Token::End),
            '{' => Some(Token::Open),
            '}' => Some(Token::Close),
            _ => None,
        };
        if let Some(token) = single {
            self.rest = &self.rest[1..];
            return Some(token);
        }
        if matches!(first, '"' | '\'') {
            return Some(Token::Word(self.quoted(first)));
        }
        Some(Token::Word(self.bare()))
    }

    fn quoted(&mut self, quote: char) -> String {
        let mut word = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, c)) if c == quote || c == '\\' => word.push(c),
                    Some((_, c)) => word.extend(['\\', c]),
                    None => break,
                },
                c if c == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return word;
                }
                c => word.push(c),
            }
        }
        self.rest = "";
        word
    }

    /// Up to a blank, `;` or `{`; `${name}` is part of a word.
    fn bare(&mut self) -> String {
        let mut word = String::new();
        let mut chars = self.rest.char_indices().peekable();
        let mut variable = false;
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => {
                    word.push(c);
                    word.extend(chars.next().map(|(_, c)| c));
                }
                '{' if word.ends_with('$') => {
                    variable = true;
                    word.push(c);
                }
                '}' if variable => {
                    variable = false;
                    word.push(c);
                }
                c if c.is_whitespace() || matches!(c, ';' | '{') => {
                    self.rest = &self.rest[at..];
                    return word;
                }
                c => word.push(c),
            }
        }
        self.rest = "";
        word
    }

    /// Passes over Lua, whose braces balance but whose words are not nginx's.
    fn skip_block(&mut self) {
        let mut depth = 1usize;
        for (at, c) in self.rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                self.rest = &self.rest[at + 1..];
                return;
            }
        }
        self.rest = "";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_in_blocks_quotes_and_comments() {
        let text = r#"
            user www-data; # include "not this";
            http {
                include /etc/nginx/conf.d/*.conf;
                log_format main '$remote_addr "q\'d"; {not a block}';
                map $a ${b} { default 1; }
                server { listen 80; server_name a.example "b.example"; }
                content_by_lua_block { local t = { "include x;" } }
                include "with space.conf" ;
            }
        "#;
        let found = directives(text);
        let all =
            |name: &str| found.iter().filter(|d| d.name == name).map(|d| d.arguments.join("|")).collect::<Vec<_>>();
        assert_eq!(all("include"), ["/etc/nginx/conf.d/*.conf", "with space.conf"]);
        assert_eq!(all("server_name"), ["a.example|b.example"]);
        assert_eq!(all("map"), ["$a|${b}"]);
        assert_eq!(all("log_format"), [r#"main|$remote_addr "q'd"; {not a block}"#]);
        assert_eq!(found.iter().find(|d| d.name == "listen").unwrap().within, ["http", "server"]);
        for odd in ["", "}", "a", "a {", "\"", "'a\\", "a { b; } } c;", "x_by_lua_block {"] {
            directives(odd);
        }
    }
}
