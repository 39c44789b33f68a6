//! The policy's hooks, and its other commands: `sh -c` in the application's folder, as the account that runs Lifeboat, with
//! a limit of time.
//!
//! What they print goes to the log, and its last line into the error of one that fails; values of the application's env
//! files that look like secrets are taken out first.

use crate::base::umask;
use crate::ops::discover::is_secret_name;
use crate::ops::{OpsError, Run};
use crate::place::{Command, HostPlace, Place};
use crate::policy::model::SourceSpec;
use crate::policy::{Policy, dotenv};
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// What is kept of a hook's output.
const OUTPUT_BYTES: u64 = 64 << 10;
/// A command that brings services up may build images.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);
/// No env file is larger.
const ENV_BYTES: u64 = 1 << 20;
/// A shorter value is a word of its own more often than a secret.
const SECRET_LENGTH: usize = 4;

/// What a hook is told, beside the policy and its own name.
pub type Told = Vec<(&'static str, String)>;

/// Runs the hooks of one name one after the other; the first that fails ends it.
pub fn run(policy: &Policy, name: &str, hooks: &[String], told: &Told, run: &Run) -> Result<(), OpsError> {
    for hook in hooks {
        run.cancel.check()?;
        run.events.step(format!("{name}: {hook}"));
        let mut command = shell(policy, hook, run);
        if !policy.hooks.timeout.is_zero() {
            command = command.timeout(policy.hooks.timeout);
        }
        command = command.env("LIFEBOAT_POLICY", policy.app.name.to_string()).env("LIFEBOAT_HOOK", name.to_owned());
        for (variable, value) in told {
            command = command.env(*variable, value.clone());
        }
        finish(policy, hook, &format!("{name} = {hook:?}"), "section [hooks]", command)?;
    }
    Ok(())
}

/// Another command of the policy, which `field` holds.
pub fn command(policy: &Policy, text: &str, field: &str, run: &Run) -> Result<(), OpsError> {
    let command = shell(policy, text, run).timeout(COMMAND_LIMIT);
    finish(policy, text, &format!("{field} = {text:?}"), field, command)
}

fn shell(policy: &Policy, text: &str, run: &Run) -> Command {
    Command::new(umask::given(["sh", "-c", text].map(str::to_owned))).dir(&policy.app.root).cancel(&run.cancel)
}

fn finish(policy: &Policy, hook: &str, what: &str, field: &str, command: Command) -> Result<(), OpsError> {
    let cancel = command.cancel.clone();
    let failed = |e: &dyn std::fmt::Display| match cancel.check() {
        Err(cancelled) => cancelled.into(),
        Ok(()) => OpsError::failed(format!("{what}: {e}"), format!("run it by hand, or change it in {field}")),
    };
    let mut running = HostPlace::new().start(command).map_err(|e| failed(&e))?;
    let mut output = Vec::new();
    if let Some(mut stdout) = running.stdout() {
        let kept = (&mut stdout).take(OUTPUT_BYTES).read_to_end(&mut output).map(drop);
        let rest = std::io::copy(&mut stdout, &mut std::io::sink()).map(drop);
        kept.and(rest).map_err(|e| failed(&e))?;
    }
    let exit = running.wait().map_err(|e| failed(&e))?;
    let text = String::from_utf8_lossy(&output);
    let secrets = if text.is_empty() && exit.stderr.is_empty() { Vec::new() } else { secrets(policy) };
    for line in text.lines().chain(exit.stderr.lines()) {
        tracing::info!(hook, "{}", masked(line, &secrets));
    }
    if exit.code == 0 {
        return Ok(());
    }
    let said = masked(exit.stderr.trim().lines().last().unwrap_or_default(), &secrets);
    Err(failed(&format!("it ended with status {}: {said}", exit.code)))
}

fn masked(line: &str, secrets: &[String]) -> String {
    secrets.iter().fold(line.to_owned(), |line, secret| line.replace(secret.as_str(), "***"))
}

/// Values of the application's env files that look like secrets, and passwords in URLs; the longest first.
fn secrets(policy: &Policy) -> Vec<String> {
    let of_source = policy.sources.iter().flat_map(|source| match &source.spec {
        SourceSpec::Env(spec) => spec.paths.as_slice(),
        _ => &[],
    });
    let files = of_source.map(PathBuf::from).chain(policy.app.env_files.iter().cloned());
    let files = files.chain([policy.app.root.join(".env")]);
    let mut found: Vec<String> = Vec::new();
    for file in files {
        let mut bytes = Vec::new();
        let read = fs::File::open(&file).and_then(|file| file.take(ENV_BYTES).read_to_end(&mut bytes));
        let Ok(entries) =
            read.map_err(drop).and_then(|_| dotenv::parse_bytes(&bytes, &dotenv::no_environment).map_err(drop))
        else {
            continue;
        };
        for entry in entries {
            let value = entry.value.expose();
            let in_url = value.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
            let password = in_url.and_then(|(user, _)| user.split_once(':')).map(|(_, password)| password.to_owned());
            let whole = (is_secret_name(&entry.key) || in_url.is_some()).then(|| value.clone());
            found.extend([whole, password].into_iter().flatten().filter(|v| v.len() >= SECRET_LENGTH));
        }
    }
    found.sort_by_key(|value| std::cmp::Reverse(value.len()));
    found.dedup();
    found
}

/// What a transaction's plan says of them.
pub fn warning(policy: &Policy) -> Option<String> {
    let n = policy.hooks.before_rollback.len() + policy.hooks.after_rollback.len();
    (n > 0).then(|| format!("{n} hooks of the policy are run"))
}
