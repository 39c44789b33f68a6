//! The policy's own checks: SQL that is true in the restored database.

use super::server::{Ask, Server};
use crate::policy::model::DrillCheck;
use crate::sources::SourceError;
use crate::sources::postgres::connection::psql;
use crate::sources::proof::{Check, Proof};
use crate::sources::run::one_line;
use std::io::{Read, Write};
use std::time::Duration;

const NAME: &str = "sql";
/// The longest that one check may take.
const LIMIT: Duration = Duration::from_secs(600);
/// More than one cell with `t` is no answer.
const ANSWER_BYTES: u64 = 4096;

/// Runs the checks of this source; `restored` are the captured names of databases that came back.
pub(super) fn check(ask: &Ask<'_>, server: &Server, restored: &[&str], proof: &mut Proof) -> Result<(), SourceError> {
    for check in ask.trial.drill.checks.iter().filter(|c| c.source == *ask.trial.name) {
        ask.trial.cancel.check()?;
        let first = ask.facts.databases.first().map(|d| d.name.as_str());
        let subject = one_line(&check.sql);
        let Some(database) = check.database.as_deref().or(first) else {
            proof.add(Check::failed(NAME, subject, "true", "nothing", "the snapshot has no database"));
            continue;
        };
        if !restored.contains(&database) {
            let known = ask.facts.databases.iter().any(|d| d.name == database);
            proof.add(match known {
                true => Check::skipped(NAME, subject, format!("database {database:?} was not restored")),
                false => Check::failed(
                    NAME,
                    subject,
                    "true",
                    "nothing",
                    format!("the snapshot has no database {database:?}"),
                ),
            });
            continue;
        }
        proof.add(match ask_server(ask, server, database, check)? {
            Ok(answer) if answer == "t" => Check::passed(NAME, subject, "true", "true"),
            Ok(answer) => {
                let told = match answer.as_str() {
                    "" => "no answer".to_owned(),
                    "f" => "false".to_owned(),
                    other => one_line(other),
                };
                Check::failed(NAME, subject, "true", &told, format!("in database {database:?} the answer is {told}"))
            }
            Err(said) => Check::failed(NAME, subject, "true", "an error", said),
        });
    }
    Ok(())
}

/// The answer as `psql` writes it, without the last line's end; else what the server said.
fn ask_server(
    ask: &Ask<'_>,
    server: &Server,
    database: &str,
    check: &DrillCheck,
) -> Result<Result<String, String>, SourceError> {
    let argv = psql(&server.database(database), &["--set=VERBOSITY=terse", "--file=-"]);
    let limits = super::super::connection::Connection::command;
    let mut command = limits(&server.connection, argv, ask.deadline, ask.trial.cancel).stdin();
    command.timeout = Some(command.timeout.unwrap_or(LIMIT).min(LIMIT));
    let mut running = server.connection.start(command)?;
    let (stdin, stdout) = (running.stdin(), running.stdout());
    let script = format!("SET default_transaction_read_only = on;\n{};\n", check.sql.trim_end().trim_end_matches(';'));
    if let Some(mut stdin) = stdin {
        // A psql that ended early says why.
        let _ = stdin.write_all(script.as_bytes());
    }
    let mut out = Vec::new();
    if let Some(stdout) = stdout {
        let read = stdout.take(ANSWER_BYTES).read_to_end(&mut out);
        if let Err(e) = read {
            let error =
                crate::place::PlaceError::from_io("read the answer of psql", server.connection.place().describe(), e);
            return match error {
                crate::place::PlaceError::TimedOut { .. } => Ok(Err(error.to_string())),
                other => Err(other.into()),
            };
        }
    }
    if out.len() as u64 == ANSWER_BYTES {
        return Ok(Ok("more than one cell".into()));
    }
    let exit = running.wait()?;
    match exit.code {
        0 => Ok(Ok(String::from_utf8_lossy(&out).trim_end_matches('\n').to_owned())),
        _ => Ok(Err(one_line(&exit.stderr))),
    }
}
