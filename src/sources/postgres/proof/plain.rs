//! The script of a plain `pg_dump` on its way to `psql`, made harmless: `psql` runs commands of its own (`\!`) that stand
//! in a script, so everything is read as `psql` would read it, and a backslash outside quotes and data ends the load.
//!
//! What makes databases, drops things or connects elsewhere is left out: the script is loaded into an empty database.
//! `psql` must stop at the first error: behind a `COPY` that failed it would take data for commands.

use std::io::{self, BufRead, Write};

/// Longer is no statement whose beginning or end matters here.
const HEAD: usize = 64 << 10;
const STRINGS: &[u8] = b"standard_conforming_strings";

/// Why a script was not passed on.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It must not be run, as a lower-case fragment.
    Refused(String),
    Read(io::Error),
    /// `psql` takes no more: it says why itself.
    Write,
}

enum State {
    Plain,
    LineComment,
    Comment {
        depth: u32,
        last: u8,
    },
    Quoted {
        quote: u8,
        escapes: bool,
        escaped: bool,
    },
    /// Between the dollars of what may begin a quote.
    Tag(Vec<u8>),
    Dollar {
        tag: Vec<u8>,
        last: Vec<u8>,
    },
    /// A command for psql, up to the end of its line.
    Command(Vec<u8>),
    /// Rows of a COPY: the beginning of the line.
    Data(Vec<u8>),
}

struct Filter<'o> {
    out: &'o mut dyn Write,
    state: State,
    /// The statement so far, without comments and quoted text.
    statement: Vec<u8>,
    /// What waits for the decision about its statement.
    held: Vec<u8>,
    /// What has been decided to pass.
    ready: Vec<u8>,
    /// Whether the statement is passed on.
    passes: Option<bool>,
    last: [u8; 2],
    /// How far [`STRINGS`] has been met.
    met: usize,
    /// Words of the statement that have ended.
    words: usize,
    connected: bool,
}

/// Passes a script on.
pub(super) fn pass(input: &mut dyn BufRead, out: &mut dyn Write) -> Result<(), Stopped> {
    let mut filter = Filter {
        out,
        state: State::Plain,
        statement: Vec::new(),
        held: Vec::new(),
        ready: Vec::new(),
        passes: None,
        last: [b'\n'; 2],
        met: 0,
        words: 0,
        connected: false,
    };
    loop {
        let buffer = input.fill_buf().map_err(Stopped::Read)?;
        if buffer.is_empty() {
            break;
        }
        let length = buffer.len();
        for byte in buffer {
            filter.take(*byte)?;
        }
        filter.write_out()?;
        input.consume(length);
    }
    if !filter.statement.iter().all(u8::is_ascii_whitespace)
        || !matches!(filter.state, State::Plain | State::LineComment)
    {
        return Err(Stopped::Refused("it ends in the middle of a statement: the dump is not whole".into()));
    }
    filter.write_out()
}

impl Filter<'_> {
    fn take(&mut self, byte: u8) -> Result<(), Stopped> {
        let state = std::mem::replace(&mut self.state, State::Plain);
        self.state = match state {
            State::Plain => self.plain(byte)?,
            State::LineComment if byte == b'\n' => State::Plain,
            State::LineComment => State::LineComment,
            State::Comment { depth, last } => match (last, byte) {
                (b'/', b'*') => State::Comment { depth: depth + 1, last: 0 },
                (b'*', b'/') if depth == 1 => State::Plain,
                (b'*', b'/') => State::Comment { depth: depth - 1, last: 0 },
                _ => State::Comment { depth, last: byte },
            },
            State::Quoted { quote, escapes, escaped } => {
                self.watch(byte)?;
                self.emit(byte);
                match byte {
                    _ if escaped => State::Quoted { quote, escapes, escaped: false },
                    b'\\' if escapes => State::Quoted { quote, escapes, escaped: true },
                    // A doubled quote closes one and opens the next.
                    b if b == quote => State::Plain,
                    _ => State::Quoted { quote, escapes, escaped: false },
                }
            }
            State::Tag(mut tag) => {
                self.emit(byte);
                let first = tag.len() == 1;
                tag.push(byte);
                match byte {
                    b'$' => State::Dollar { tag, last: Vec::new() },
                    b if b.is_ascii_alphabetic() || b == b'_' || b >= 0x80 || (b.is_ascii_digit() && !first) => {
                        State::Tag(tag)
                    }
                    // It was a parameter, and what follows may be anything.
                    b'\'' | b'"' | b'\\' | b'-' | b'/' | b';' => {
                        return Err(Stopped::Refused("a dollar stands where no dump has one".into()));
                    }
                    _ => State::Plain,
                }
            }
            State::Dollar { tag, mut last } => {
                self.watch(byte)?;
                self.emit(byte);
                last.push(byte);
                if last.len() > tag.len() {
                    last.remove(0);
                }
                if last == tag { State::Plain } else { State::Dollar { tag, last } }
            }
            State::Command(mut line) => {
                if byte != b'\n' && line.len() < HEAD {
                    line.push(byte);
                    State::Command(line)
                } else {
                    self.command(&line)?;
                    State::Plain
                }
            }
            State::Data(mut line) => {
                self.ready.push(byte);
                match byte {
                    b'\n' if line == b"\\." || line == b"\\.\r" => State::Plain,
                    b'\n' => State::Data(Vec::new()),
                    _ => {
                        if line.len() < 4 {
                            line.push(byte);
                        }
                        State::Data(line)
                    }
                }
            }
        };
        self.last = [self.last[1], byte];
        // Rows and quoted texts of any length do not pile up.
        if self.ready.len() > HEAD {
            self.write_out()?;
        }
        Ok(())
    }

    fn plain(&mut self, byte: u8) -> Result<State, Stopped> {
        let [before, last] = self.last;
        let after_word = last.is_ascii_alphanumeric() || last == b'_' || last == b'$' || last >= 0x80;
        match byte {
            b'-' if last == b'-' => {
                self.unsay();
                return Ok(State::LineComment);
            }
            b'*' if last == b'/' => {
                self.unsay();
                return Ok(State::Comment { depth: 1, last: 0 });
            }
            b'\\' if self.statement.iter().all(u8::is_ascii_whitespace) => return Ok(State::Command(Vec::new())),
            b'\\' => return Err(Stopped::Refused("a command for psql stands in it".into())),
            _ => {}
        }
        self.watch(byte)?;
        let ends_a_word = byte.is_ascii_whitespace() && self.statement.last().is_some_and(|b| !b.is_ascii_whitespace());
        if self.statement.len() < HEAD {
            self.statement.push(byte.to_ascii_lowercase());
        }
        self.emit(byte);
        Ok(match byte {
            b'\'' => {
                let escapes = matches!(last, b'e' | b'E')
                    && !(before.is_ascii_alphanumeric() || before == b'_' || before >= 0x80);
                State::Quoted { quote: byte, escapes, escaped: false }
            }
            b'"' => State::Quoted { quote: byte, escapes: false, escaped: false },
            b'$' if !after_word => State::Tag(vec![byte]),
            b';' => self.end()?,
            _ if ends_a_word => {
                self.words += 1;
                // Two words decide, or the end does: to look at every blank would cost the square of their number.
                if self.words <= 2 {
                    self.decide();
                }
                State::Plain
            }
            _ => State::Plain,
        })
    }

    /// The `-` or `/` that turned out to begin a comment.
    fn unsay(&mut self) {
        self.statement.pop();
        match self.passes {
            None => self.held.pop(),
            Some(true) => self.ready.pop(),
            Some(false) => None,
        };
    }

    /// The end of a statement.
    fn end(&mut self) -> Result<State, Stopped> {
        let text = self.statement.trim_ascii();
        let text: Vec<u8> = text.strip_suffix(b";").unwrap_or(text).trim_ascii().to_vec();
        if text.windows(STRINGS.len()).any(|w| w == STRINGS) {
            if text != b"set standard_conforming_strings = on" {
                return Err(Stopped::Refused("it changes how quotes are read".into()));
            }
            // It holds anyway.
            self.passes = Some(false);
        }
        self.decide();
        let passed = self.passes.take().unwrap_or(true);
        if passed {
            self.ready.append(&mut self.held);
        }
        self.held.clear();
        self.statement.clear();
        self.words = 0;
        let copies = text.starts_with(b"copy ") && text.ends_with(b" from stdin");
        if !passed || !copies {
            return Ok(State::Plain);
        }
        // Rows begin behind the end of this line.
        Ok(State::Data(b"COPY".to_vec()))
    }

    /// Whether the statement is passed on, once its first two words are there.
    fn decide(&mut self) {
        if self.passes.is_some() {
            return;
        }
        let text = String::from_utf8_lossy(&self.statement);
        let mut words = text.trim_end_matches(';').split_whitespace();
        let (first, second) = (words.next(), words.next());
        let ended = self.statement.last() == Some(&b';');
        self.passes = match (first, second) {
            (Some("drop"), _) => Some(false),
            (Some("create" | "alter"), Some("database" | "role" | "user" | "tablespace")) => Some(false),
            (Some("create" | "alter"), None) | (Some("set"), _) if !ended => None,
            (Some(_), _) => Some(true),
            (None, _) => None,
        };
        if self.passes == Some(true) {
            self.ready.append(&mut self.held);
        }
    }

    fn command(&mut self, line: &[u8]) -> Result<(), Stopped> {
        let text = String::from_utf8_lossy(line);
        match text.split_whitespace().next() {
            Some("restrict" | "unrestrict") => Ok(()),
            Some("connect") if !self.connected => {
                self.connected = true;
                Ok(())
            }
            Some("connect") => Err(Stopped::Refused("it holds several databases (pg_dumpall)".into())),
            _ => Err(Stopped::Refused("a command for psql stands in it".into())),
        }
    }

    /// A script that changes how quotes are read would be read differently here and there.
    fn watch(&mut self, byte: u8) -> Result<(), Stopped> {
        let lower = byte.to_ascii_lowercase();
        self.met = if lower == STRINGS[self.met] { self.met + 1 } else { usize::from(lower == STRINGS[0]) };
        if self.met == STRINGS.len() {
            self.met = 0;
            let before = self.statement.trim_ascii();
            // The statement that every dump begins with is looked at when it ends.
            if !before.starts_with(b"set standard_conforming_string") || !matches!(self.state, State::Plain) {
                return Err(Stopped::Refused("it changes how quotes are read".into()));
            }
        }
        Ok(())
    }

    fn emit(&mut self, byte: u8) {
        match self.passes {
            None => self.held.push(byte),
            Some(true) => self.ready.push(byte),
            Some(false) => {}
        }
    }

    fn write_out(&mut self) -> Result<(), Stopped> {
        let written = self.out.write_all(&self.ready);
        self.ready.clear();
        written.map_err(|_| Stopped::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(script: &str) -> Result<String, String> {
        let mut out = Vec::new();
        match pass(&mut script.as_bytes(), &mut out) {
            Ok(()) => Ok(String::from_utf8(out).unwrap()),
            Err(Stopped::Refused(why)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_dump_passes_without_what_makes_and_drops_things() {
        let script = "--\n-- PostgreSQL database dump; \\! no\n--\n\\restrict abc\nSET standard_conforming_strings = on;\n\
            DROP TABLE public.t;\nCREATE DATABASE shop;\n\\connect shop\n/* a /* ; */ \\! */\n\
            CREATE TABLE public.t (a text DEFAULT 'x;\\', b text DEFAULT E'it\\'s; \\\\');\n\
            COPY public.t (a, b) FROM stdin;\n\\N\t\\! true\nDROP TABLE x;\n\\.\n\n\
            CREATE FUNCTION f() RETURNS text AS $_$ SELECT '\\! $$ ;' $_$ LANGUAGE sql;\n\
            COMMENT ON TABLE public.t IS 'a''; DROP';\nALTER TABLE public.t OWNER TO \"o;x\";\n\\unrestrict abc\n";
        let out = passed(script).unwrap();
        for kept in [
            "CREATE TABLE public.t",
            "\\N\t\\! true\nDROP TABLE x;\n\\.\n",
            "$_$ SELECT '\\! $$ ;' $_$",
            "'a''; DROP'",
            "\"o;x\"",
        ] {
            assert!(out.contains(kept), "{kept} is not in\n{out}");
        }
        for gone in ["DROP TABLE public", "DATABASE", "connect", "restrict", "database dump", "conforming"] {
            assert!(!out.contains(gone), "{gone} is in\n{out}");
        }
    }

    #[test]
    fn commands_for_psql_never_pass() {
        for script in [
            "\\! touch /tmp/x\n",
            "SELECT 1 \\! touch /tmp/x\n;",
            "SELECT 'a' \\g |sh\n",
            "COPY t FROM stdin;\na\n\\.\n\\! x\n",
            "SET standard_conforming_strings = on; SELECT 'it''s'; \\copy x to y\n",
            "SET standard_conforming_strings TO off;\n",
            "SELECT set_config('standard_conforming_strings', 'off', false);\n",
            "DO $$ begin set Standard_Conforming_Strings = off; end $$;\n",
            "SELECT $1\\! x\n",
            "\\connect a\n\\connect b\n",
            "SELECT E'a\\'' \\! x;\n",
        ] {
            assert!(passed(script).is_err(), "{script}");
        }
        for cut in ["CREATE TABLE t (a", "COPY t FROM stdin;\nrow\n", "SELECT 'a", "SELECT $$ a"] {
            assert!(passed(cut).unwrap_err().contains("not whole"), "{cut}");
        }
    }

    #[test]
    fn sweep_scripts() {
        let words = [
            "'",
            "\"",
            "$$",
            "$a$",
            "/*",
            "*/",
            "--",
            "\n",
            ";",
            "E'",
            "\\!",
            "\\.\n",
            "COPY x FROM stdin;\n",
            "DROP ",
        ];
        crate::base::fuzz::Fuzz::of("sql").words(&words).run(|bytes| {
            let mut out = Vec::new();
            let _ = pass(&mut &bytes[..], &mut out);
        });
    }
}
