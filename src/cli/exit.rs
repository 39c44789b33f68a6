//! Every exit code, and the failure that leads to one.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | usage or policy error: nothing was tried |
//! | 3 | partial: some source or some copy failed, the rest is stored |
//! | 4 | integrity: something stored is damaged or forged |
//! | 5 | busy: another run holds this policy |
//! | 6 | health checks failed |
//! | 7 | rolled back: the guarded command failed, and the application is back where it was |
//! | 130 | ended by SIGINT (Ctrl-C) |
//! | 143 | ended by SIGTERM |

use crate::ops::{ErrorKind, OpsError};
use crate::policy::{FindError, LoadError, PolicyErrors};
use serde_json::{Value, json};
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// What `ops` calls the file that a command prints to.
pub const STANDARD_OUTPUT: &str = "standard output";

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    Usage,
    Partial,
    Integrity,
    Busy,
    Unhealthy,
    RolledBack,
    /// Ended by this signal.
    Signal(i32),
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Partial => 3,
            Exit::Integrity => 4,
            Exit::Busy => 5,
            Exit::Unhealthy => 6,
            Exit::RolledBack => 7,
            Exit::Signal(signal) => 128u8.saturating_add(u8::try_from(signal).unwrap_or(0)),
        }
    }

    /// The word that JSON documents carry.
    pub fn word(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::Partial => "partial",
            Exit::Integrity => "integrity",
            Exit::Busy => "busy",
            Exit::Unhealthy => "unhealthy",
            Exit::RolledBack => "rolled-back",
            Exit::Signal(_) => "cancelled",
        }
    }
}

/// Why a command failed: what was attempted, the chain of causes, and the way out.
#[derive(Debug)]
pub struct Failure {
    pub kind: Exit,
    /// What was attempted: `snapshot shop`.
    attempted: Option<String>,
    cause: Box<dyn Error + Send + Sync>,
    hints: Vec<String>,
    /// The reader of standard output went away; there is nobody to tell.
    silent: bool,
    policy: Option<Box<PolicyErrors>>,
}

/// A cause that has no error type of its own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Problem(String);

impl Failure {
    pub fn new(kind: Exit, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, attempted: None, cause: cause.into(), hints: Vec::new(), silent: false, policy: None }
    }

    /// What was asked for cannot be meant.
    pub fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Exit::Usage, Problem(problem.into())).hint(Some(hint.into()))
    }

    /// Ended by a signal; what was cut short is no cause of its own.
    pub fn signal(signal: i32) -> Self {
        let name = if signal == signal_hook::consts::SIGINT { "SIGINT (Ctrl-C)" } else { "SIGTERM" };
        Self::new(Exit::Signal(signal), Problem(format!("stopped by {name}")))
            .hint(Some("nothing half-written is visible; run it again when it suits".to_owned()))
    }

    /// Nothing reads standard output any more.
    pub fn silent(kind: Exit) -> Self {
        Self { silent: true, ..Self::new(kind, Problem("standard output was closed".into())) }
    }

    pub fn hint(mut self, hint: Option<String>) -> Self {
        self.hints.extend(hint);
        self
    }

    /// Names what was attempted; the first one to say so knows best.
    pub fn attempted(mut self, what: impl Into<String>) -> Self {
        self.attempted.get_or_insert_with(|| what.into());
        self
    }

    /// What was attempted, or `default` when nobody said it.
    pub fn what_was_attempted(&self, default: &str) -> String {
        self.attempted.clone().unwrap_or_else(|| default.to_owned())
    }

    /// The chain in one line.
    pub fn message(&self) -> String {
        let mut parts: Vec<String> = self.attempted.iter().cloned().collect();
        if let Some(errors) = &self.policy {
            let n = errors.errors.len();
            let plural = if n == 1 { "error" } else { "errors" };
            parts.push(format!("{n} {plural} in {}", errors.file.display()));
        } else {
            let mut cause: Option<&dyn Error> = Some(self.cause.as_ref());
            while let Some(error) = cause {
                let text = error.to_string();
                // A cause that its parent has said already is not said twice.
                if parts.last().is_none_or(|last| !last.ends_with(&text)) {
                    parts.push(text);
                }
                cause = error.source();
            }
        }
        parts.join(": ")
    }

    /// The `error` part of a JSON document.
    pub fn to_json(&self) -> Value {
        let mut error = json!({ "kind": self.kind.word(), "message": self.message(), "hints": self.hints });
        if let Some(errors) = &self.policy {
            let one = |e: &crate::policy::PolicyError| {
                json!({ "file": errors.file, "line": e.position.line, "column": e.position.column,
                        "message": e.message, "hint": e.hint })
            };
            error["policy_errors"] = errors.errors.iter().map(one).collect();
        }
        error
    }

    pub fn is_silent(&self) -> bool {
        self.silent
    }
}

/// `error: …` and a line for each hint; the errors of a policy before it, each with its place.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(errors) = &self.policy {
            writeln!(f, "{errors}")?;
        }
        write!(f, "error: {}", self.message())?;
        for hint in &self.hints {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl From<OpsError> for Failure {
    fn from(error: OpsError) -> Self {
        if let OpsError::File { path, source, .. } = &error
            && source.kind() == io::ErrorKind::BrokenPipe
            && path == Path::new(STANDARD_OUTPUT)
        {
            return Failure::silent(Exit::Failed);
        }
        let kind = match error.kind() {
            ErrorKind::Failed => Exit::Failed,
            ErrorKind::Usage => Exit::Usage,
            ErrorKind::Integrity => Exit::Integrity,
            ErrorKind::Busy => Exit::Busy,
            // Whoever runs the command knows which signal it was.
            ErrorKind::Cancelled => Exit::Signal(signal_hook::consts::SIGTERM),
        };
        let hint = error.hint();
        Failure::new(kind, error).hint(hint)
    }
}

impl From<FindError> for Failure {
    fn from(error: FindError) -> Self {
        let kind = if matches!(error, FindError::List { .. }) { Exit::Failed } else { Exit::Usage };
        let hint = error.hint();
        Failure::new(kind, error).hint(hint)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Invalid(errors) => {
                let mut failure = Failure::new(Exit::Usage, Problem("the policy is not valid".into()));
                failure.policy = Some(Box::new(errors));
                failure
            }
            read @ LoadError::Read { .. } => Failure::new(Exit::Usage, read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::cancel::Cancelled;
    use crate::policy::parse;

    #[test]
    fn codes_are_what_the_manual_says() {
        let codes = [
            (Exit::Done, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::Partial, 3),
            (Exit::Integrity, 4),
            (Exit::Busy, 5),
            (Exit::Unhealthy, 6),
            (Exit::Signal(2), 130),
            (Exit::Signal(15), 143),
        ];
        let table = include_str!("exit.rs");
        for (exit, code) in codes {
            assert_eq!(exit.code(), code);
            assert!(table.contains(&format!("//! | {code} | ")), "{code} is documented");
        }
    }

    #[test]
    fn each_tier_has_its_code() {
        let kind = |e: OpsError| Failure::from(e).kind;
        assert_eq!(kind(OpsError::Busy { policy: "p".into() }), Exit::Busy);
        assert_eq!(kind(OpsError::usage("a", "b")), Exit::Usage);
        assert_eq!(kind(OpsError::failed("a", "b")), Exit::Failed);
        assert_eq!(kind(OpsError::NoIdentity { what: "restore" }), Exit::Usage);
        assert!(matches!(kind(OpsError::Cancelled(Cancelled)), Exit::Signal(_)));
    }

    #[test]
    fn a_chain_is_said_once_with_its_hints_below() {
        let error = OpsError::file("read", "/x", io::Error::other("it broke"));
        let failure = Failure::from(error).hint(Some("mend it".into())).attempted("snapshot shop").attempted("later");
        assert_eq!(failure.to_string(), "error: snapshot shop: read /x: it broke\n  hint: mend it");
    }

    #[test]
    fn every_error_of_a_policy_is_named_with_its_place() {
        let errors = parse(Path::new("p.toml"), "[app]\nnme = \"x\"\n").unwrap_err();
        let n = errors.errors.len();
        let failure = Failure::from(LoadError::Invalid(errors));
        let text = failure.to_string();
        assert!(text.starts_with("p.toml:1:") || text.starts_with("p.toml:2:"), "{text}");
        assert!(text.contains(&format!("error: {n} errors in p.toml")), "{text}");
        assert_eq!(failure.to_json()["policy_errors"].as_array().unwrap().len(), n);
    }
}
