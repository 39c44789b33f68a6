//! The policy's hooks: `sh -c`, with a limit of time, their output in the log.

use crate::ops::{OpsError, Run};
use crate::place::{Command, HostPlace, Place};
use crate::policy::Policy;
use std::io::Read;
use std::time::Duration;

/// What is kept of a hook's output.
const OUTPUT_BYTES: u64 = 64 << 10;
/// A command that brings services up may build images.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);

/// Runs hooks one after the other; the first that fails ends it. They learn the transaction's id, and what it does.
pub fn run(policy: &Policy, hooks: &[String], id: &str, what: &str, run: &Run) -> Result<(), OpsError> {
    for hook in hooks {
        run.cancel.check()?;
        run.events.step(format!("hook: {hook}"));
        one(policy, hook, id, what, run)?;
    }
    Ok(())
}

fn one(policy: &Policy, hook: &str, id: &str, what: &str, run: &Run) -> Result<(), OpsError> {
    let mut command = shell(policy, hook, run);
    if !policy.hooks.timeout.is_zero() {
        command = command.timeout(policy.hooks.timeout);
    }
    let command = command
        .env("LIFEBOAT_POLICY", policy.app.name.to_string())
        .env("LIFEBOAT_TRANSACTION", id.to_owned())
        .env("LIFEBOAT_WHAT", what.to_owned());
    finish(hook, &format!("hook {hook:?}"), "section [hooks]", command)
}

/// Another command of the policy, which `field` holds.
pub fn command(policy: &Policy, text: &str, field: &str, run: &Run) -> Result<(), OpsError> {
    finish(text, &format!("{field} = {text:?}"), field, shell(policy, text, run).timeout(COMMAND_LIMIT))
}

fn shell(policy: &Policy, text: &str, run: &Run) -> Command {
    Command::new(["sh", "-c", text]).dir(&policy.app.root).cancel(&run.cancel)
}

fn finish(hook: &str, what: &str, field: &str, command: Command) -> Result<(), OpsError> {
    let failed = |e: &dyn std::fmt::Display| {
        OpsError::failed(format!("{what}: {e}"), format!("run it by hand, or change it in {field}"))
    };
    let mut running = HostPlace::new().start(command).map_err(|e| failed(&e))?;
    let mut output = Vec::new();
    if let Some(mut stdout) = running.stdout() {
        let kept = (&mut stdout).take(OUTPUT_BYTES).read_to_end(&mut output).map(drop);
        let rest = std::io::copy(&mut stdout, &mut std::io::sink()).map(drop);
        kept.and(rest).map_err(|e| failed(&e))?;
    }
    let exit = running.wait().map_err(|e| failed(&e))?;
    for line in String::from_utf8_lossy(&output).lines().chain(exit.stderr.lines()) {
        tracing::info!(hook, "{line}");
    }
    if exit.code == 0 {
        return Ok(());
    }
    let said = exit.stderr.trim().lines().last().unwrap_or_default().to_owned();
    Err(failed(&format!("it ended with status {}: {said}", exit.code)))
}

/// What a plan says of them.
pub fn warning(policy: &Policy) -> Option<String> {
    let n = policy.hooks.before_rollback.len() + policy.hooks.after_rollback.len();
    (n > 0).then(|| format!("{n} hooks of the policy are run"))
}
