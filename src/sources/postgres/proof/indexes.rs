//! `amcheck`: every B-tree index is walked, and every row of its table is looked up in it.

use super::server::{Ask, Server};
use super::things::count;
use crate::base::threads;
use crate::sources::SourceError;
use crate::sources::postgres::connection::identifier;
use crate::sources::postgres::facts::Database;
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::proof::{Check, Difference};
use serde::Deserialize;
use std::sync::{Mutex, PoisonError};

const NAME: &str = "amcheck";
/// A schema that no snapshot has.
const SCHEMA: &str = "lifeboat_drill";
/// Broken ones that are named; then it is enough.
const MOST_BROKEN: usize = 50;

#[derive(Debug, Clone, Deserialize)]
struct Index {
    oid: u64,
    name: String,
}

/// Checks the indexes of a restored database.
pub(super) fn check(ask: &Ask<'_>, server: &Server, captured: &Database) -> Result<Check, SourceError> {
    let subject = super::subject(captured);
    let name = server.database(&captured.name);
    let open = || Session::open(&server.connection, &name, ask.deadline, ask.trial.cancel);
    let (schema, indexes) = match open().and_then(list) {
        Ok(found) => found,
        Err(SessionError::Server { text, .. } | SessionError::Broken { text }) => {
            return Ok(Check::skipped(NAME, subject, format!("extension amcheck cannot be made: {text}")));
        }
        Err(SessionError::Other(error)) => return Err(error),
    };
    let total = indexes.len();
    let (ahead, broken) = (Mutex::new(indexes), Mutex::new(Vec::new()));
    let work = || -> Result<(), SessionError> {
        let mut session: Option<Session> = None;
        loop {
            let next = ahead.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(index) = next else { break };
            let mut own = match session.take() {
                Some(session) => session,
                None => open()?,
            };
            let sql = format!("SELECT {}.bt_index_check({}::oid::regclass, true);", identifier(&schema), index.oid);
            match own.execute(&sql) {
                Ok(()) => session = Some(own),
                // An error ends the session; the next index gets another.
                Err(SessionError::Server { text, .. } | SessionError::Broken { text }) => {
                    let mut broken = broken.lock().unwrap_or_else(PoisonError::into_inner);
                    broken.push(Difference::new(index.name, "whole", text));
                    if broken.len() >= MOST_BROKEN {
                        break;
                    }
                }
                Err(other) => return Err(other),
            }
        }
        Ok(())
    };
    let broke = || Err(SourceError::problem("a thread that checks indexes broke").into());
    for result in threads::share(super::jobs(), work) {
        result.unwrap_or_else(|_| broke()).map_err(|e| {
            e.into_source(&server.connection, &format!("check indexes of database {:?}", captured.name))
        })?;
    }
    let mut broken = broken.into_inner().unwrap_or_else(PoisonError::into_inner);
    broken.sort_by(|a, b| a.subject.cmp(&b.subject));
    let whole = count(total - broken.len().min(total), "B-tree index", "B-tree indexes");
    Ok(Check::of(NAME, subject, count(total, "B-tree index", "B-tree indexes"), format!("{whole} whole"), broken))
}

/// Makes the extension where it is not there, and lists the indexes, the largest last.
fn list(mut session: Session) -> Result<(String, Vec<Index>), SessionError> {
    #[derive(Deserialize)]
    struct Row {
        schema: Option<String>,
    }
    let asked = "SELECT (SELECT n.nspname FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace \
                 WHERE e.extname = 'amcheck') AS schema";
    let row: Row = session.one(asked)?;
    let schema = match row.schema {
        Some(schema) => schema,
        None => {
            session.execute(&format!("CREATE SCHEMA {SCHEMA}; CREATE EXTENSION amcheck WITH SCHEMA {SCHEMA};"))?;
            SCHEMA.to_owned()
        }
    };
    let indexes = session.rows(
        "SELECT c.oid::bigint AS oid, n.nspname || '.' || c.relname AS name \
         FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         JOIN pg_am AS a ON a.oid = c.relam JOIN pg_class AS t ON t.oid = x.indrelid \
         WHERE a.amname = 'btree' AND c.relkind = 'i' AND x.indisready AND x.indisvalid \
           AND t.relkind IN ('r', 'm') AND t.relpersistence <> 't' \
           AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY c.relpages, c.oid",
    )?;
    session.close()?;
    Ok((schema, indexes))
}
