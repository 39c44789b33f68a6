//! OpenMetrics text as its specification wants it, read strictly; and the alert rules, which may use nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A sample's name, labels and value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Reads a whole exposition of gauges; panics at the first thing that the format does not allow.
#[track_caller]
pub fn parse(text: &str) -> Vec<Sample> {
    assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "no end: {text}");
    assert!(!text.contains("\n\n") && !text.contains('\r'), "an empty line");
    let mut samples: Vec<Sample> = Vec::new();
    let (mut families, mut family, mut described) = (BTreeSet::new(), String::new(), Vec::new());
    for line in text.lines().take_while(|line| *line != "# EOF") {
        if let Some(meta) = line.strip_prefix("# ") {
            let (what, rest) = meta.split_once(' ').unwrap();
            let (name, said) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !said.is_empty(), "{line}");
            if name != family {
                // All lines of a family stand together.
                assert!(families.insert(name.to_owned()), "{name} comes twice");
                (family, described) = (name.to_owned(), Vec::new());
            }
            assert!(!described.contains(&what.to_owned()), "{line} comes twice");
            match what {
                "TYPE" => assert_eq!(said, "gauge", "{line}"),
                "UNIT" => assert!(name.ends_with(&format!("_{said}")), "{line}"),
                "HELP" => assert!(said.ends_with('.'), "{line}"),
                _ => panic!("{line}"),
            }
            described.push(what.to_owned());
            continue;
        }
        let sample = sample(line);
        assert_eq!(sample.name, family, "{line} is not of its family");
        assert!(described.iter().any(|d| d == "TYPE") && described.iter().any(|d| d == "HELP"), "{line}");
        let same = |s: &Sample| s.name == sample.name && s.labels == sample.labels;
        assert!(!samples.iter().any(same), "{line} comes twice");
        samples.push(sample);
    }
    samples
}

fn is_name(name: &str) -> bool {
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn sample(line: &str) -> Sample {
    let (name, mut rest) = line.split_once('{').unwrap_or_else(|| panic!("{line}"));
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    loop {
        let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(label), "{line}");
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next().unwrap_or_else(|| panic!("{line}")) {
                (at, '"') => break at,
                (_, '\\') => match letters.next().unwrap().1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("\\{c} in {line}"),
                },
                (_, c) => value.push(c),
            }
        };
        assert!(labels.insert(label.to_owned(), value).is_none(), "{label} twice in {line}");
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    let value = rest.strip_prefix("} ").unwrap_or_else(|| panic!("{line}"));
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap_or_else(|_| panic!("{line}")) }
}

/// The value of the one sample with these labels, and perhaps others.
#[track_caller]
pub fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let is = |s: &&Sample| s.name == name && labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v));
    let found: Vec<&Sample> = samples.iter().filter(is).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].value
}

#[test]
fn the_alert_rules_use_what_there_is() {
    let rules = include_str!("../../docs/prometheus-alerts.yml");
    let source = include_str!("../../src/ops/status/metrics.rs");
    let names: BTreeSet<&str> = source
        .split("name: \"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .filter(|name| name.starts_with("lifeboat_"))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    let mut alerts = BTreeSet::new();
    let rule = |line: &str, key: &str| line.trim().trim_start_matches("- ").strip_prefix(key).map(str::to_owned);
    for line in rules.lines() {
        if let Some(name) = rule(line, "alert: ") {
            assert!(alerts.insert(name.clone()) && name.starts_with("Lifeboat"), "{name}");
        }
        let Some(expr) = rule(line, "expr: ") else { continue };
        let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let used: Vec<&str> = words.filter(|w| w.starts_with("lifeboat")).collect();
        assert!(!used.is_empty() && used.iter().all(|name| names.contains(name)), "{expr}");
        assert_eq!(expr.matches('(').count(), expr.matches(')').count(), "{expr}");
    }
    assert_eq!(alerts.len(), rules.matches("expr: ").count());
    for word in ["severity:", "summary:", "description:"] {
        assert_eq!(rules.matches(word).count(), alerts.len(), "{word}");
    }
}

/// As Prometheus itself reads them.
#[test]
fn prometheus_takes_the_alert_rules() {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let own = cache.map(|cache| cache.join("lifeboat/tools/bin/promtool")).filter(|path| path.is_file());
    let check = |text: &str| {
        let file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
        fs::write(file.path(), text).unwrap();
        let tool = own.clone().unwrap_or_else(|| "promtool".into());
        let done = Command::new(tool).args(["check", "rules"]).arg(file.path()).output();
        let done = done.expect("promtool, which scripts/test.sh gets");
        (
            done.status.success(),
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)),
        )
    };
    let rules = include_str!("../../docs/prometheus-alerts.yml");
    let (is_well, said) = check(rules);
    let count = rules.matches("alert: ").count();
    assert!(is_well && said.contains(&format!("{count} rules found")), "{said}");
    let (is_well, said) = check(&rules.replacen("lifeboat_", "lifeboat_(", 1));
    assert!(!is_well, "anything would pass: {said}");
}
