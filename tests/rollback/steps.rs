//! The steps of a rollback as its journal has them, and waiting for one.

use crate::site::Site;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

/// Its journals, oldest first.
pub fn journals(site: &Site) -> Vec<PathBuf> {
    let listed = fs::read_dir(site.world.path("state/rollback")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        listed.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
    paths.sort();
    paths
}

/// The steps of the newest journal, each with its phase.
pub fn steps(site: &Site) -> Vec<(String, String)> {
    let text = newest(site).and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line.get(17..)?).ok());
    let word = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let name = |line: &Value| match line["source"].as_str() {
        Some(source) => format!("{} {source}", word(line, "step")),
        None => word(line, "step"),
    };
    lines.filter(|l| l["line"] == "step").map(|l| (name(&l), word(&l, "phase"))).collect()
}

/// The newest journal: one that comes behind it is another run's. Their number says nothing, old ones go.
pub fn newest(site: &Site) -> Option<PathBuf> {
    journals(site).pop()
}

/// Waits until the journal that comes behind the `old` one says that this step begins: of whatever source, where none is
/// named.
#[track_caller]
pub fn await_step(site: &Site, old: Option<PathBuf>, child: &mut Child, step: &str) {
    let end = Instant::now() + Duration::from_secs(90);
    let is_it =
        |(name, phase): &(String, String)| (name == step || name.split(' ').next() == Some(step)) && phase == "begin";
    while newest(site) <= old || !steps(site).iter().any(is_it) {
        assert!(Instant::now() < end, "it does not get to {step}: {:?}", steps(site));
        if let Some(status) = child.try_wait().unwrap() {
            // It may have gone through the step, and on to its end, since the look.
            assert!(steps(site).iter().any(is_it), "it ended before {step}: {status}: {:?}", steps(site));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
