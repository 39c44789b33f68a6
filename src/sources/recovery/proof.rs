//! The recovery bundle, proved: it parses, its policy is one, and it says as much as the facts count.

use super::FORMAT;
use crate::policy;
use crate::sources::SourceError;
use crate::sources::proof::{Check, Difference, Proof, Prove, Trial};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// No bundle of lists of packages and crontabs is larger.
const MAX_BYTES: u64 = 64 << 20;
/// What a bare machine is set up by.
const PARTS: &[&str] = &["application", "root", "policy", "host", "accounts", "crontabs", "units", "docker"];

/// Proves the source `recovery`.
pub struct RecoveryProof;

impl Prove for RecoveryProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let mut proof = Proof::default();
        let name = trial.facts["stream"].as_str().unwrap_or(super::STREAM);
        trial.streams.info(name)?;
        let bundle = proof.step(trial, "read back", false, || read(trial, name));
        trial.cancel.check()?;
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(why) => {
                proof.add(Check::failed("parse", name, "a recovery bundle", "none", why));
                return Ok(proof);
            }
        };
        proof.restored.push("recovery bundle".into());
        proof.add(parts(&bundle));
        proof.add(its_policy(&bundle));
        proof.add(counts(&bundle, trial.facts));
        Ok(proof)
    }
}

fn read(trial: &Trial<'_>, name: &str) -> Result<Value, String> {
    let mut bytes = Vec::new();
    let stream = trial.streams.open(name).map_err(|e| e.to_string())?;
    stream.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("larger than {MAX_BYTES} bytes"));
    }
    // Where it breaks, not what stands there: it may hold secrets.
    serde_json::from_slice(&bytes).map_err(|e| format!("no JSON at line {}, column {}", e.line(), e.column()))
}

fn parts(bundle: &Value) -> Check {
    let mut differences = Vec::new();
    if bundle["format"].as_u64() != Some(u64::from(FORMAT)) {
        let found = bundle["format"].as_u64().map_or("none".to_owned(), |f| f.to_string());
        differences.push(Difference::new("format", FORMAT.to_string(), found));
    }
    for part in PARTS.iter().filter(|part| bundle[**part].is_null()) {
        differences.push(Difference::new(*part, "said", "not said"));
    }
    let found = PARTS.iter().filter(|part| !bundle[**part].is_null()).count();
    Check::of("parse", "", format!("{} parts", PARTS.len()), format!("{found} parts"), differences)
}

/// The policy that a recovered machine would go on with.
fn its_policy(bundle: &Value) -> Check {
    let name = bundle["application"].as_str().unwrap_or_default();
    let expected = format!("the policy of {name}");
    let (Some(text), Some(file)) = (bundle["policy"]["text"].as_str(), bundle["policy"]["file"].as_str()) else {
        return Check::failed("policy", "", expected, "none", "the bundle holds no policy");
    };
    match policy::parse(Path::new(file), text) {
        Ok(policy) if policy.app.name.as_str() == name => {
            Check::passed("policy", file, &expected, format!("{expected}, {} sources", policy.sources.len()))
        }
        Ok(policy) => {
            let found = format!("the policy of {}", policy.app.name.as_str());
            let why = format!("expected {expected}, found {found}");
            Check::failed("policy", file, expected, found, why)
        }
        Err(e) => Check::failed("policy", file, expected, "it does not parse", e.to_string()),
    }
}

/// What the capture counted is there.
fn counts(bundle: &Value, facts: &Value) -> Check {
    let length = |value: &Value| value.as_array().map(Vec::len).or_else(|| value.as_object().map(|o| o.len()));
    let installed = &bundle["packages"]["installed"];
    let docker = &bundle["docker"];
    let pairs = [
        ("accounts", facts["accounts"].as_array().map(Vec::len), length(&bundle["accounts"])),
        ("crontabs", number(facts, "crontabs"), length(&bundle["crontabs"])),
        ("units", number(facts, "units"), length(&bundle["units"])),
        ("packages", number(facts, "packages"), length(installed)),
        ("external networks", number(facts, "external_networks"), length(&docker["external_networks"])),
        ("external volumes", number(facts, "external_volumes"), length(&docker["external_volumes"])),
    ];
    let mut differences = Vec::new();
    let mut said = Vec::new();
    for (what, then, now) in pairs {
        let Some(then) = then else { continue };
        said.push(format!("{then} {what}"));
        let now = now.unwrap_or(0);
        if then != now {
            differences.push(Difference::new(what, then.to_string(), now.to_string()));
        }
    }
    let found = if differences.is_empty() { said.join(", ") } else { "others".into() };
    Check::of("counts", "", said.join(", "), found, differences)
}

fn number(facts: &Value, key: &str) -> Option<usize> {
    facts[key].as_u64().and_then(|n| usize::try_from(n).ok())
}
