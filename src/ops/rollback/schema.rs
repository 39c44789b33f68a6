//! Code that returns under a database that stays: the schema of today must be one that the code of then knew.

use crate::ops::OpsError;
use crate::ops::transaction::Stage;
use crate::policy::Policy;
use crate::policy::model::SourcePolicy;
use crate::repository::format::SourceEntry;
use crate::sources::placings::locate;
use crate::sources::postgres::{MigrationDifference, SchemaChange, schema_change};

/// What has come between a source of a snapshot and the live databases.
pub fn change(source: &SourceEntry, of_policy: &SourcePolicy, stage: &Stage<'_>) -> Result<SchemaChange, OpsError> {
    let (policy, cancel) = (stage.policy, &stage.run.cancel);
    schema_change(of_policy, &locate(policy, cancel), &source.facts, cancel).map_err(|e| stage.failed(&source.name, e))
}

/// What is done about the difference.
pub enum Fit {
    /// There is none that is known of.
    Fits,
    Accepted(Vec<String>),
    /// The policy's own command takes the schema back.
    Downgraded(String),
}

/// Refuses code that does not know the schema, unless something is done about it.
pub fn fit(policy: &Policy, source: &SourceEntry, change: &SchemaChange, accepted: bool) -> Result<Fit, OpsError> {
    let Some(first) = change.migrations.first() else { return Ok(Fit::Fits) };
    if accepted {
        return Ok(Fit::Accepted(change.lines.clone()));
    }
    if let Some(command) = &policy.rollback.downgrade {
        return downgrade(command, source, first, change.migrations.len()).map(Fit::Downgraded);
    }
    Err(OpsError::usage(
        format!(
            "the data of source {:?} stays, and its schema is not the one that the code of the snapshot knew: {}",
            source.name.as_str(),
            change.lines.join("; ")
        ),
        "roll the data back with the code (leave --keep-data out), set [rollback] downgrade, or say --accept-schema if \
         the old code works with the new schema",
    ))
}

/// The policy's command for the revision that was recorded. It goes to a shell, so the revision must be a plain word.
fn downgrade(
    command: &str,
    source: &SourceEntry,
    difference: &MigrationDifference,
    differences: usize,
) -> Result<String, OpsError> {
    let refuse = |why: String| {
        OpsError::usage(
            format!("[rollback] downgrade cannot be used for source {:?}: {why}", source.name.as_str()),
            "take the schema back by hand and say --accept-schema, or roll the data back with the code",
        )
    };
    if differences > 1 {
        return Err(refuse(format!("migrations differ in {differences} tables")));
    }
    let revision = match difference.recorded.as_slice() {
        [one] => one,
        [] => return Err(refuse(format!("the snapshot has no {}", difference.table))),
        // A table that keeps every migration has the newest first; alembic's has one row a head.
        [newest, ..] if difference.tool != "alembic" => newest,
        many => return Err(refuse(format!("the snapshot has {} heads", many.len()))),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if revision.is_empty() || revision.starts_with('-') || !revision.bytes().all(plain) {
        return Err(refuse(format!("revision {revision:?} is no plain word")));
    }
    Ok(command.replace("{revision}", revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_never_becomes_more_than_a_word_of_the_shell() {
        let source: SourceEntry = serde_json::from_value(serde_json::json!({
            "name": "db", "kind": "postgres", "outcome": "complete", "streams": [], "facts": {}
        }))
        .unwrap();
        let of = |recorded: &[&str], n| {
            let difference = MigrationDifference {
                table: "alembic_version".into(),
                tool: "alembic".into(),
                live: vec!["b".into()],
                recorded: recorded.iter().map(|r| (*r).to_owned()).collect(),
            };
            downgrade("alembic downgrade {revision}", &source, &difference, n)
        };
        assert_eq!(of(&["3f2c_ab.1"], 1).unwrap(), "alembic downgrade 3f2c_ab.1");
        for bad in ["$(id)", "a;b", "-x", "", "a b", "`id`"] {
            assert!(of(&[bad], 1).is_err(), "{bad}");
        }
        assert!(of(&["a"], 2).is_err());
        assert!(of(&["a", "b"], 1).is_err());
        assert!(of(&[], 1).is_err());
    }
}
