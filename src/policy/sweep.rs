//! Hostile bytes for everything that a person wrote: policies, env files, Compose files, sizes, schedules, names.

use super::{dotenv, parse, schedule};
use crate::base::fuzz::Fuzz;
use crate::base::ids::{HostName, PolicyName, RepositoryId, SnapshotId, SourceName, StreamName, Tag};
use crate::base::units::{format_duration, format_size, human_duration, human_size, parse_duration, parse_size};
use crate::base::yaml;
use std::path::Path;

#[test]
fn sweep_env_files() {
    let words =
        ["${", "}", "$", "\\", "\"", "'", "#", "=", "\n", "export ", ":-", ":?", ":+", "\u{feff}", "\r", "A", "\0"];
    Fuzz::of("env").words(&words).run(|bytes| {
        let _ = dotenv::parse_bytes(bytes, &dotenv::no_environment).map_err(|e| e.to_string());
        let text = String::from_utf8_lossy(bytes);
        for found in dotenv::assignments(&text).unwrap_or_default() {
            assert!(text[found.start..found.end].contains(&found.key), "{found:?}");
        }
    });
}

#[test]
fn sweep_policies() {
    let words = [
        "[",
        "]",
        "[[source]]",
        "=",
        "\"",
        "'''",
        "{",
        "}",
        "\n",
        "kind",
        "paths",
        "é",
        "1e9",
        "..",
        "s3://",
        "\u{7f}",
    ];
    Fuzz::of("policy").words(&words).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match parse(Path::new("/etc/shop.toml"), text) {
            Ok(policy) => drop(super::show(&policy)),
            Err(errors) => {
                assert!(!errors.errors.is_empty());
                let _ = format!("{errors} {errors:?}");
            }
        }
    });
}

#[test]
fn sweep_compose_files() {
    let words = [
        "- ", ": ", "\n  ", "&a ", "*a", "<<: *a", "|\n", ">-\n", "{", "}", "[", "]", "\"", "'", "# ", "? ", "---\n",
        "\t", "!!x ",
    ];
    Fuzz::of("yaml").words(&words).run(|bytes| {
        let _ = yaml::read(&String::from_utf8_lossy(bytes)).map_err(|e| e.to_string());
    });
}

#[test]
fn sweep_sizes_durations_and_schedules() {
    let fuzz = Fuzz::of("small").seed("1.5GiB").seed("90m").seed("36h").seed("*/5 2,4 1-7 JAN MON#1").seed("@daily");
    let words = ["-", ",", "/", "*", "#", "L", "W", "@", ".", "e9", " ", "99", "JAN", "MON", "inf", "NaN", "é"];
    fuzz.words(&words).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(size) = parse_size(&text) {
            assert_eq!(parse_size(&format_size(size)).ok(), Some(size));
            human_size(size);
        }
        if let Ok(duration) = parse_duration(&text) {
            assert_eq!(parse_duration(&format_duration(duration)).ok(), Some(duration));
            human_duration(duration);
        }
        // A file has no such line; the parser is asked what a line could hold.
        if text.len() < 4_096 {
            let _ = schedule::check(&text).map_err(|e| e.to_string());
        }
    });
}

#[test]
fn sweep_names() {
    let fuzz =
        Fuzz::of("names").seed("20261121T024039Z-aa941656").seed("SHA256:47DEQpj8HBSa-_TImW+5JCeuQeRkm5NMpJWZG3hSuFU");
    fuzz.seed("shop.dump").words(&["/", "..", "%2E", "%", "\0", "\n", "-", "T", "é", ":", "\u{202e}"]).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        // What is a name stays one, and none leads out of a folder.
        let lawful = |name: Option<String>| {
            let Some(name) = name else { return };
            assert!(name == text && !name.contains(['/', '\0', '\n']) && name != ".." && name != ".", "{name:?}");
        };
        lawful(text.parse::<SnapshotId>().ok().map(|n| n.to_string()));
        lawful(text.parse::<SourceName>().ok().map(|n| n.to_string()));
        lawful(text.parse::<StreamName>().ok().map(|n| n.to_string()));
        lawful(text.parse::<PolicyName>().ok().map(|n| n.to_string()));
        lawful(text.parse::<HostName>().ok().map(|n| n.to_string()));
        // Tags never become paths.
        let _ = (text.parse::<Tag>(), text.parse::<RepositoryId>());
        if let Ok(name) = StreamName::encode(&text, ".dump") {
            assert_eq!(name.to_string().parse::<StreamName>().unwrap(), name);
        }
    });
}
