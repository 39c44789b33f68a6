//! The script of `pg_dumpall`, taken apart into its statements before anything of it is run.
//!
//! `psql` runs commands of its own (`\!`) that stand in a script, and names or comments with line breaks have been used
//! to smuggle some into one. So comments are dropped, a backslash outside quotes is an error, and what is run is put
//! together anew from the statements.

/// One statement without its semicolon and without comments.
pub(super) type Statement = Vec<u8>;

/// What a statement of such a script is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum About {
    CreateRole(String),
    /// Attributes, settings, a comment or a label of a role.
    Role(String),
    /// What a role has in one database only: it is applied with the database.
    RoleInDatabase,
    Membership {
        role: String,
        member: String,
    },
    CreateTablespace(String),
    Tablespace(String),
    /// `SET` of the script's own session.
    Session,
    Other,
}

/// The statements of a script, in order; else what is wrong with it, as a lower-case fragment.
pub(super) fn statements(script: &[u8]) -> Result<Vec<Statement>, String> {
    let mut all = Vec::new();
    let mut current: Vec<u8> = Vec::new();
    let mut at = 0;
    while at < script.len() {
        let rest = &script[at..];
        let after_word = at > 0 && is_word(script[at - 1]);
        let taken = match rest[0] {
            b'-' if rest.starts_with(b"--") => {
                at += line(rest);
                continue;
            }
            b'/' if rest.starts_with(b"/*") => {
                at += comment(rest)?;
                current.push(b' ');
                continue;
            }
            b'\'' => {
                let escapes = at > 0 && matches!(script[at - 1], b'e' | b'E') && !(at > 1 && is_word(script[at - 2]));
                quoted(rest, b'\'', escapes)?
            }
            b'"' => quoted(rest, b'"', false)?,
            b'$' if !after_word => dollar_quoted(rest)?,
            b'\\' => {
                let text = String::from_utf8_lossy(&rest[..line(rest)]).trim().to_owned();
                let alone = current.iter().all(u8::is_ascii_whitespace);
                if !alone || !["\\restrict ", "\\unrestrict "].iter().any(|known| text.starts_with(known)) {
                    return Err("a command for psql stands in it".into());
                }
                at += line(rest);
                continue;
            }
            b';' => {
                push(&mut all, std::mem::take(&mut current));
                at += 1;
                continue;
            }
            _ => 1,
        };
        current.extend_from_slice(&rest[..taken]);
        at += taken;
    }
    if current.iter().any(|b| !b.is_ascii_whitespace()) {
        return Err("its last statement has no end".into());
    }
    Ok(all)
}

fn push(all: &mut Vec<Statement>, statement: Statement) {
    let trimmed = statement.trim_ascii();
    if !trimmed.is_empty() {
        all.push(trimmed.to_vec());
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// Up to the end of the line, its break included.
fn line(rest: &[u8]) -> usize {
    rest.iter().position(|b| matches!(b, b'\n' | b'\r')).map_or(rest.len(), |n| n + 1)
}

fn comment(rest: &[u8]) -> Result<usize, String> {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Ok(at);
            }
        } else {
            at += 1;
        }
    }
    Err("a comment in it has no end".into())
}

fn quoted(rest: &[u8], quote: u8, escapes: bool) -> Result<usize, String> {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' if escapes => at += 2,
            byte if byte == quote && rest.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return Ok(at + 1),
            _ => at += 1,
        }
    }
    Err("a quote in it has no end".into())
}

/// `$tag$ … $tag$`; a dollar that begins no quote is one byte.
fn dollar_quoted(rest: &[u8]) -> Result<usize, String> {
    let Some(end) = rest[1..].iter().position(|b| !(is_word(*b) && *b != b'$')).map(|n| n + 1) else { return Ok(1) };
    if rest[end] != b'$' || rest[1].is_ascii_digit() {
        return Ok(1);
    }
    let tag = &rest[..=end];
    let body = &rest[tag.len()..];
    let close = body.windows(tag.len()).position(|w| w == tag);
    close.map(|n| n + 2 * tag.len()).ok_or_else(|| "a quote in it has no end".into())
}

/// A word of a statement, as PostgreSQL reads names: folded to lower case unless quoted.
fn words(statement: &[u8], most: usize) -> Vec<(String, bool)> {
    let text = String::from_utf8_lossy(statement);
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() && words.len() < most {
        if rest.starts_with('"') {
            let Ok(length) = quoted(rest.as_bytes(), b'"', false) else { break };
            words.push((rest[1..length - 1].replace("\"\"", "\""), true));
            rest = rest[length..].trim_start();
        } else {
            let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
            let length = length.max(rest.chars().next().map_or(1, char::len_utf8));
            words.push((rest[..length].to_lowercase(), false));
            rest = rest[length..].trim_start();
        }
    }
    words
}

pub(super) fn about(statement: &[u8]) -> About {
    let words = words(statement, 64);
    let plain: Vec<&str> = words.iter().map(|(w, quoted)| if *quoted { "\"" } else { w.as_str() }).collect();
    let name = |at: usize| words.get(at).map(|(w, _)| w.clone()).unwrap_or_default();
    let on = |kind: &str| plain.windows(2).position(|w| w == ["on", kind]).map(|at| name(at + 2));
    match plain.as_slice() {
        ["create", "role" | "user", ..] => About::CreateRole(name(2)),
        ["alter", "role" | "user", _, "in", "database", ..] => About::RoleInDatabase,
        ["alter", "role" | "user", ..] => About::Role(name(2)),
        ["comment", "on", "role", ..] => About::Role(name(3)),
        ["security", "label", ..] => on("role").map_or(About::Other, About::Role),
        ["create", "tablespace", ..] => About::CreateTablespace(name(2)),
        ["alter", "tablespace", ..] => About::Tablespace(name(2)),
        ["comment", "on", "tablespace", ..] => About::Tablespace(name(3)),
        ["grant" | "revoke", ..] if on("tablespace").is_some() => {
            About::Tablespace(on("tablespace").unwrap_or_default())
        }
        ["grant", _, "to", ..] => About::Membership { role: name(1), member: name(3) },
        ["set" | "reset", ..] => About::Session,
        ["select", "pg_catalog", ".", "set_config", ..] => About::Session,
        _ => About::Other,
    }
}

/// A statement without these words, where they stand outside quotes.
pub(super) fn without(statement: &[u8], words: &[&str]) -> Statement {
    let mut out = Vec::with_capacity(statement.len());
    let mut at = 0;
    while at < statement.len() {
        let rest = &statement[at..];
        let taken = match rest[0] {
            quote @ (b'\'' | b'"') => quoted(rest, quote, false).unwrap_or(rest.len()),
            byte if is_word(byte) => rest.iter().position(|b| !is_word(*b)).unwrap_or(rest.len()),
            _ => 1,
        };
        let word = &rest[..taken];
        if !words.iter().any(|w| word.eq_ignore_ascii_case(w.as_bytes())) {
            out.extend_from_slice(word);
        }
        at += taken;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(script: &str) -> Vec<String> {
        statements(script.as_bytes()).unwrap().into_iter().map(|s| String::from_utf8(s).unwrap()).collect()
    }

    #[test]
    fn statements_end_where_postgres_ends_them() {
        let script = "--\n-- Roles; not one\n--\n\n\\restrict abc\nSET client_encoding = 'UTF8';\n\
            CREATE ROLE \"a;b\"\"c\";\nALTER ROLE x PASSWORD 'SCRAM-SHA-256$4096:a;\\b''c';\n/* a /* b */ ; */\n\
            COMMENT ON ROLE x IS E'it\\'s; $$';\nALTER ROLE x SET y TO $q$;$$;$q$;\n\\unrestrict abc\n";
        assert_eq!(
            texts(script),
            [
                "SET client_encoding = 'UTF8'",
                "CREATE ROLE \"a;b\"\"c\"",
                "ALTER ROLE x PASSWORD 'SCRAM-SHA-256$4096:a;\\b''c'",
                "COMMENT ON ROLE x IS E'it\\'s; $$'",
                "ALTER ROLE x SET y TO $q$;$$;$q$",
            ]
        );
    }

    #[test]
    fn commands_for_psql_are_refused() {
        for script in
            ["-- User Config \"a\n\\! touch /tmp/x\n", "SET x = 1 \\g out\n", "\\connect other\n", "\\restrict\n"]
        {
            assert!(statements(script.as_bytes()).is_err(), "{script}");
        }
        for cut in ["CREATE ROLE x", "COMMENT ON ROLE x IS 'a;\n", "/* ;", "CREATE ROLE \"x;\n"] {
            assert!(statements(cut.as_bytes()).is_err(), "{cut}");
        }
    }

    #[test]
    fn words_are_left_out_outside_quotes_only() {
        let statement = b"ALTER ROLE \"a NOSUPERUSER\" WITH NOSUPERUSER LOGIN PASSWORD 'NOSUPERUSER ''x'";
        let expected = "ALTER ROLE \"a NOSUPERUSER\" WITH  LOGIN PASSWORD 'NOSUPERUSER ''x'";
        assert_eq!(String::from_utf8(without(statement, &["NOSUPERUSER"])).unwrap(), expected);
    }

    #[test]
    fn statements_are_known_by_their_first_words() {
        let of = |text: &str| about(text.as_bytes());
        assert_eq!(of("CREATE ROLE shop"), About::CreateRole("shop".into()));
        assert_eq!(of("CREATE ROLE \"Sh op\"\"x\""), About::CreateRole("Sh op\"x".into()));
        assert_eq!(of("ALTER ROLE shop WITH LOGIN PASSWORD 'x'"), About::Role("shop".into()));
        assert_eq!(of("ALTER ROLE shop IN DATABASE d SET a TO 'b'"), About::RoleInDatabase);
        assert_eq!(
            of("GRANT reader TO shop WITH INHERIT TRUE GRANTED BY postgres"),
            About::Membership { role: "reader".into(), member: "shop".into() }
        );
        assert_eq!(of("CREATE TABLESPACE fast OWNER x LOCATION '/x'"), About::CreateTablespace("fast".into()));
        assert_eq!(of("GRANT ALL ON TABLESPACE fast TO shop"), About::Tablespace("fast".into()));
        assert_eq!(of("SET standard_conforming_strings = on"), About::Session);
    }

    #[test]
    fn sweep_scripts() {
        let words =
            ["'", "\"", "$$", "$a$", "/*", "*/", "--", "\n", ";", "E'", "\\", "CREATE ROLE ", "COPY x FROM stdin;\n"];
        let fuzz = crate::base::fuzz::Fuzz::of("sql").words(&words);
        fuzz.run(|bytes| {
            for statement in statements(bytes).unwrap_or_default() {
                about(&statement);
                without(&statement, &["SUPERUSER"]);
            }
        });
    }
}
