//! The layer rule of the crate: imports point strictly down, modules of one layer never meet, sources never meet
//! storage. It reads every path that starts at `crate`, `super` or `self` in `src/`, whether in a `use` or in code.
//!
//! It also keeps the house in order: no glob imports but `super::*` and foreign preludes in unit tests, no file over
//! 700 lines, no unfinished code. Its own tests plant each fault and see it found.

use std::fs;
use std::path::{Path, PathBuf};

/// A module of the crate: its name, its layer, and the modules that it may import.
struct Module {
    name: &'static str,
    layer: u8,
    may_import: &'static [&'static str],
}

const MODULES: &[Module] = &[
    Module { name: "base", layer: 0, may_import: &[] },
    Module { name: "policy", layer: 1, may_import: &["base"] },
    Module { name: "storage", layer: 1, may_import: &["base"] },
    Module { name: "pipeline", layer: 1, may_import: &["base"] },
    Module { name: "place", layer: 1, may_import: &["base"] },
    Module { name: "repository", layer: 2, may_import: &["storage", "pipeline", "base"] },
    Module { name: "sources", layer: 2, may_import: &["policy", "place", "base"] },
    Module {
        name: "ops",
        layer: 3,
        may_import: &["sources", "repository", "place", "pipeline", "storage", "policy", "base"],
    },
    Module { name: "daemon", layer: 4, may_import: &["ops", "sources", "repository", "place", "policy", "base"] },
    Module { name: "cli", layer: 5, may_import: &["daemon", "ops", "policy", "base"] },
];

const MOST_LINES: usize = 700;
const MOST_LINES_OF_MAIN: usize = 50;
const UNFINISHED: [&str; 2] = ["todo", "unimplemented"];

#[test]
fn the_crate_keeps_its_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    let files = rust_files(&src);
    assert!(files.len() > 10, "only {} files found in {}", files.len(), src.display());
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let name = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        faults.extend(check_file(&name, &text));
    }
    faults.extend(check_map(&fs::read_to_string(src.join("lib.rs")).unwrap()));
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// One that cannot be begun is an error, and where it is begun otherwise it is a panic.
#[test]
fn threads_are_begun_in_one_place() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for file in rust_files(&src) {
        let name = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        // Files of tests alone; what they begin is theirs.
        if name == "base/threads.rs" || name.ends_with("sweep.rs") || name.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let ways = ["thread::spawn(", "scope.spawn(", "thread::Builder", "spawn_scoped("];
        faults.extend(ways.iter().filter(|way| own.contains(**way)).map(|way| format!("src/{name}: {way}…)")));
    }
    assert!(faults.is_empty(), "base::threads has the ways:\n{}\n", faults.join("\n"));
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every fault of one file; `name` is its path below `src/`.
fn check_file(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let most = if name == "main.rs" { MOST_LINES_OF_MAIN } else { MOST_LINES };
    if text.lines().count() > most {
        faults.push(format!("src/{name}: {} lines, more than {most}", text.lines().count()));
    }
    let own = module_of(name);
    let tokens = tokens(text);
    let mut inline: Vec<(&str, usize)> = Vec::new();
    let mut depth = 0;
    let mut in_use = false;
    for at in 0..tokens.len() {
        let word = |n: usize| tokens.get(n).map_or("", |t| t.text.as_str());
        let before = |n: usize| if at >= n { word(at - n) } else { "" };
        let mut fault = |text: String| faults.push(format!("src/{name}:{}: {text}", tokens[at].line));
        match word(at) {
            "{" => {
                depth += 1;
                if before(2) == "mod" {
                    inline.push((before(1), depth));
                }
            }
            "}" => {
                inline.retain(|(_, opened)| *opened < depth);
                depth = depth.saturating_sub(1);
            }
            "use" => in_use = true,
            ";" => in_use = false,
            "*" if in_use && before(1) == "::" => {
                let in_tests = inline.iter().any(|(n, _)| *n == "tests") || own.last().is_some_and(|n| n == "tests");
                // A foreign prelude, such as proptest's, is made for it; the crate has none.
                let usual = (before(2) == "super" && before(3) == "use") || before(2) == "prelude";
                if !(in_tests && usual) {
                    fault(format!("glob import of {}", before(2)));
                }
            }
            unfinished if UNFINISHED.contains(&unfinished) && word(at + 1) == "!" => {
                fault(format!("{unfinished}! is unfinished code"));
            }
            "crate" | "lifeboat" | "super" | "self" if before(1) != "::" => {
                let here = own.iter().map(String::as_str).chain(inline.iter().map(|(n, _)| *n)).collect();
                for target in targets(&tokens, at, here) {
                    if let Some(why) = forbidden(name, own.first().map(String::as_str), target) {
                        fault(why);
                    }
                }
            }
            _ => {}
        }
    }
    faults
}

/// The modules below the crate's root that the path starting at `tokens[at]` leads to: several where a group follows
/// the root, none where it is no path.
fn targets<'a>(tokens: &'a [Token], at: usize, here: Vec<&'a str>) -> Vec<&'a str> {
    let word = |n: usize| tokens.get(n).map_or("", |t| t.text.as_str());
    let mut base = here;
    let mut next = at + 1;
    match word(at) {
        "super" => {
            base.pop();
            while word(next) == "::" && word(next + 1) == "super" {
                base.pop();
                next += 2;
            }
        }
        "self" => {}
        _ => base.clear(),
    }
    if word(next) != "::" {
        // An alias of the root would hide what is behind it.
        return if word(at) == "crate" && word(next) == "as" { vec!["crate as"] } else { Vec::new() };
    }
    match base.first() {
        Some(module) => vec![module],
        None if word(next + 1) == "{" => group_heads(tokens, next + 1),
        None if is_name(word(next + 1)) => vec![word(next + 1)],
        None => Vec::new(),
    }
}

/// The first words of the members of the group that opens at `tokens[open]`.
fn group_heads(tokens: &[Token], open: usize) -> Vec<&str> {
    let mut heads = Vec::new();
    let mut depth = 0;
    for at in open..tokens.len() {
        match tokens[at].text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            word if depth == 1 && is_name(word) && matches!(tokens[at - 1].text.as_str(), "{" | ",") => {
                heads.push(word)
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// Why `target` may not be imported by the file `name` of the module `from`.
fn forbidden(name: &str, from: Option<&str>, target: &str) -> Option<String> {
    let Some(to) = MODULES.iter().find(|m| m.name == target) else {
        return Some(format!("{target} is not a module of the layer table"));
    };
    if name == "main.rs" {
        return (target != "cli").then(|| format!("main.rs imports {target}; it may only call cli"));
    }
    let from = from.unwrap_or("lib.rs");
    if from == target {
        return None;
    }
    let Some(module) = MODULES.iter().find(|m| m.name == from) else {
        return Some(format!("{from} is not a module of the layer table"));
    };
    (!module.may_import.contains(&target)).then(|| {
        let (low, high) = (module.layer, to.layer);
        format!("{from} (L{low}) imports {target} (L{high}); it may import: {}", module.may_import.join(", "))
    })
}

/// `lib.rs` is the map: it names every module that it declares, with its layer.
fn check_map(lib: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for pair in tokens(lib).windows(2).filter(|pair| pair[0].text == "mod") {
        let name = &pair[1].text;
        match MODULES.iter().find(|m| m.name == name) {
            None => faults.push(format!("src/lib.rs:{}: module {name} stands in no layer", pair[1].line)),
            Some(module) => {
                let line = format!("//! - L{} [`{name}`]", module.layer);
                if !lib.contains(&line) {
                    faults.push(format!("src/lib.rs: the map has no line that begins {line}"));
                }
            }
        }
    }
    faults
}

/// `ops/snapshot.rs` is `[ops, snapshot]`, `ops/mod.rs` is `[ops]`, `lib.rs` and `main.rs` are `[]`.
fn module_of(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    let root = parts.len() == 1 && matches!(parts[0].as_str(), "lib" | "main");
    if root || parts.last().is_some_and(|p| p == "mod") {
        parts.pop();
    }
    parts
}

/// A name, `::`, or a single sign; comments, strings, characters and lifetimes leave nothing.
struct Token {
    text: String,
    line: usize,
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let from = at;
        let peek = |n: usize| chars.get(at + n).copied().unwrap_or('\0');
        let mut word = None;
        match chars[at] {
            '/' if peek(1) == '/' => at += chars[at..].iter().take_while(|c| **c != '\n').count(),
            '/' if peek(1) == '*' => at = end_of_comment(&chars, at),
            '"' => at = end_of_string(&chars, at),
            '\'' => at = end_of_quote(&chars, at),
            c if c.is_alphanumeric() || c == '_' => {
                let length = chars[at..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
                let name: String = chars[at..at + length].iter().collect();
                let raw = name.ends_with('r') && name.len() <= 2 && raw_hashes(&chars, at + length).is_some();
                at += length;
                if raw {
                    at = end_of_raw_string(&chars, at);
                } else {
                    word = Some(name);
                }
            }
            ':' if peek(1) == ':' => {
                at += 2;
                word = Some("::".to_owned());
            }
            c => {
                at += 1;
                word = (!c.is_whitespace()).then(|| c.to_string());
            }
        }
        found.extend(word.map(|text| Token { text, line }));
        line += chars[from..at].iter().filter(|c| **c == '\n').count();
    }
    found
}

/// The end of the block comment that opens at `at`; they nest.
fn end_of_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(chars.len())
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    at += 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The number of `#` of the raw string whose hashes or quote stand at `at`.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + hashes) == Some(&'"')).then_some(hashes)
}

fn end_of_raw_string(chars: &[char], at: usize) -> usize {
    let hashes = raw_hashes(chars, at).unwrap_or(0);
    let mut end = at + hashes + 1;
    while end < chars.len() {
        let closes = chars[end] == '"' && chars[end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
        end += 1;
        if closes {
            return (end + hashes).min(chars.len());
        }
    }
    end
}

/// The end of the character or of the lifetime that begins at `at`.
fn end_of_quote(chars: &[char], at: usize) -> usize {
    let end = if chars.get(at + 1) == Some(&'\\') {
        at + 3 + chars[(at + 3).min(chars.len())..].iter().take_while(|c| **c != '\'').count() + 1
    } else if chars.get(at + 2) == Some(&'\'') {
        at + 3
    } else {
        at + 1
    };
    end.min(chars.len())
}

#[test]
fn the_table_itself_points_strictly_down() {
    for module in MODULES {
        for target in module.may_import {
            let to = MODULES.iter().find(|m| m.name == *target).unwrap();
            assert!(to.layer < module.layer, "{} (L{}) -> {target} (L{})", module.name, module.layer, to.layer);
        }
    }
}

/// What `check_file` says about one file, without the place.
fn faults(name: &str, text: &str) -> Vec<String> {
    check_file(name, text).into_iter().map(|f| f.split_once(": ").unwrap().1.to_owned()).collect()
}

#[test]
fn what_the_table_allows_passes() {
    let text = r##"
        //! Not an import: use crate::storage::Storage;
        /* nor this: crate::cli::run() /* nested */ crate::cli */
        use crate::base::ids::{ChunkId, ObjectId};
        use crate::{base::units, policy::model::Policy, place::{Command, Place}};
        use super::{Capture, Sink};
        pub(crate) fn f<'a>(x: &'a str) -> char {
            let _ = "use crate::storage::x; \" crate::ops::y";
            let _ = (r#"crate::storage "quoted""#, '"', '\'', b'\\', b"crate::ops::x", br"crate::cli::x");
            crate::base::units::human(x); self::g::<crate::place::Exit>(); super::super::policy::h();
            'x'
        }
        #[cfg(test)]
        mod tests { use super::*; use proptest::prelude::*; use super::super::Sink; fn t() { crate::sources::x(); } }
    "##;
    assert_eq!(faults("sources/files.rs", text), Vec::<String>::new());
    assert_eq!(faults("main.rs", "fn main() { std::process::exit(lifeboat::cli::main()) }"), Vec::<String>::new());
}

#[test]
fn each_planted_fault_is_found() {
    let cases = [
        ("sources/redis.rs", "use crate::storage::Storage;", "sources (L2) imports storage (L1)"),
        ("sources/redis.rs", "use crate::{base::ids, repository::Reader};", "sources (L2) imports repository (L2)"),
        ("sources/redis.rs", "use crate::{\n base::{ids, units},\n\n pipeline as p};", "sources (L2) imports pipeline"),
        ("sources/postgres/dump.rs", "use super::super::super::ops::Plan;", "sources (L2) imports ops (L3)"),
        ("sources/mod.rs", "use super::{policy::Policy, storage};", "sources (L2) imports storage (L1)"),
        ("storage/local.rs", "fn f() { let x = crate::pipeline::seal(1); }", "storage (L1) imports pipeline (L1)"),
        ("base/ids.rs", "mod inner { use super::super::super::place::Place; }", "base (L0) imports place (L1)"),
        ("repository/index.rs", "use crate::policy::Policy;", "repository (L2) imports policy (L1)"),
        ("repository/index.rs", "pub use crate::place::Place;", "repository (L2) imports place (L1)"),
        ("daemon/mod.rs", "use crate::storage::Storage;", "daemon (L4) imports storage (L1)"),
        ("cli/list.rs", "use crate::repository::Header;", "cli (L5) imports repository (L2)"),
        ("ops/mod.rs", "use crate::cli::Failure;", "ops (L3) imports cli (L5)"),
        ("ops/mod.rs", "use crate as root;", "crate as is not a module"),
        ("ops/mod.rs", "fn f() { crate::helper() }", "helper is not a module"),
        ("lib.rs", "pub use crate::ops::run;", "lib.rs is not a module"),
        ("main.rs", "use lifeboat::ops::run;", "main.rs imports ops"),
        ("ops/mod.rs", "use std::io::*;", "glob import of io"),
        ("ops/mod.rs", "use proptest::prelude::*;", "glob import of prelude"),
        ("ops/mod.rs", "use super::*;", "glob import of super"),
        ("ops/mod.rs", "mod tests { use crate::base::*; }", "glob import of base"),
        ("ops/mod.rs", "use crate::base::{ids::*, units};", "glob import of ids"),
        ("ops/mod.rs", "mod tests { use super::*; } use super::*;", "glob import of super"),
        ("ops/mod.rs", "fn f() { todo!() }", "todo! is unfinished code"),
        ("ops/mod.rs", "fn f() { unimplemented!(\"x\") }", "unimplemented! is unfinished code"),
    ];
    for (name, text, expected) in cases {
        let found = faults(name, text);
        assert_eq!(found.len(), 1, "{name}: {text}: {found:?}");
        assert!(found[0].starts_with(expected), "{name}: {text}: {found:?}");
    }
    assert_eq!(faults("ops/mod.rs", &"\n".repeat(700)), Vec::<String>::new());
    assert_eq!(faults("ops/mod.rs", &"\n".repeat(701)), ["701 lines, more than 700"]);
    assert_eq!(faults("main.rs", &"\n".repeat(51)), ["51 lines, more than 50"]);
    assert_eq!(check_file("ops/mod.rs", "\n\nuse crate::cli::X;")[0].split(": ").next(), Some("src/ops/mod.rs:3"));
}

#[test]
fn the_map_names_every_module() {
    assert_eq!(check_map("//! - L1 [`place`]: a command\npub mod place;"), Vec::<String>::new());
    let missing = check_map("//! - L2 [`place`]: a command\npub mod place;\npub mod helpers;");
    assert_eq!(missing.len(), 2, "{missing:?}");
}
