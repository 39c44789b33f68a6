//! What `init` writes of a deployment by itself: proved as it is, and nothing of the deployment's data left out.

use crate::machine::{Machine, failed_checks};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Sets the application up anew with nothing but its folder, takes a snapshot and drills it: three commands, no edit. The
/// repository is a folder. `covered` are kinds and parts of what is said of them; `said` are parts of what is not covered,
/// elsewhere or shared.
pub fn proved(
    machine: &Machine,
    policy: &str,
    root: &Path,
    covered: &[(&str, &str)],
    said: &[&str],
) -> (Value, String) {
    fs::remove_file(machine.policy_file(policy)).unwrap();
    let repository = machine.text("backups/discovered");
    let config = machine.config();
    // Keys of another repository are another host's.
    for key in ["identity.txt", "host.key"].iter().filter(|_| !Path::new(&repository).exists()) {
        fs::remove_file(config.join(key)).unwrap();
    }
    let args = ["init", root.to_str().unwrap(), "--name", policy, "--repository", &repository];
    let report = machine.json(&args);
    assert_eq!(report["exit_code"], 0, "{report:#}");
    let text = fs::read_to_string(machine.policy_file(policy)).unwrap();
    for (kind, what) in covered {
        let all = report["covered"].as_array().unwrap();
        let is = |c: &&Value| c["kind"] == *kind && c["what"].as_str().unwrap().contains(what);
        assert!(all.iter().any(|c| is(&c)), "{kind} {what:?} is not covered: {report:#}\n{text}");
    }
    let all = format!("{}{}{}", report["not_covered"], report["external"], report["shared"]);
    for what in said {
        assert!(all.contains(what), "{what:?} is not said: {report:#}");
    }
    for secret in [crate::world::CANARY, "00112233445566778899aabbccddeeff"] {
        assert!(!text.contains(secret) && !report.to_string().contains(secret), "a secret is told: {text}");
    }
    machine.run(&["policy", "check", "-p", policy]).exits(0);
    let proof = machine.run(&["snapshot", "--drill", "-p", policy, "--json"]).json();
    let failed = failed_checks(&proof["drill"]);
    assert!(
        proof["exit_code"] == 0 && proof["drill"]["outcome"] == "passed" && failed.is_empty(),
        "{failed:#?}\n{:#}\n{text}",
        proof
    );
    (report, text)
}
