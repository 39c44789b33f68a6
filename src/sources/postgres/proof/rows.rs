//! Rows and contents of all tables, counted in the restored database by the queries that the capture used, over a few
//! sessions at once.

use super::server::{Ask, Server};
use super::things::{count, grouped};
use crate::base::threads;
use crate::policy::model::{Fingerprint, SourceSpec};
use crate::sources::SourceError;
use crate::sources::postgres::catalog;
use crate::sources::postgres::facts::{Database, Table};
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::proof::{Check, Difference, Proof};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

type Columns = HashMap<(String, String), Vec<String>>;

/// What the policy says of the source today, where it says anything.
fn fingerprint(ask: &Ask<'_>) -> Option<Fingerprint> {
    match &ask.trial.source?.spec {
        SourceSpec::Postgres(spec) => Some(spec.fingerprint),
        _ => None,
    }
}

/// Adds the checks `rows` and `content` of one database; returns the rows that were found.
pub(super) fn compare(
    ask: &Ask<'_>,
    server: &Server,
    captured: &Database,
    restored: &[Table],
    columns: &Columns,
    proof: &mut Proof,
) -> Result<u64, SourceError> {
    let subject = super::subject(captured);
    let counted: Vec<&Table> = captured.tables.iter().filter(|t| t.rows.is_some()).collect();
    let any = captured.tables.iter().any(Table::has_data);
    let skip = match fingerprint(ask) {
        Some(Fingerprint::None) => Some("the policy says fingerprint = \"none\""),
        _ if any && counted.is_empty() => Some("the snapshot was taken with fingerprint = \"none\""),
        _ => None,
    };
    // What is told of the restored database is true either way.
    let with_content = skip.is_none() && counted.iter().any(|t| t.content.is_some());
    let found = count_all(ask, server, captured, restored, with_content.then_some(columns))?;
    let total: u64 = found.values().filter_map(|t| t.rows).sum();
    if let Some(why) = skip {
        proof.add(Check::skipped("rows", &subject, why));
        return Ok(total);
    }
    let mut rows = Vec::new();
    let mut contents = Vec::new();
    for table in &counted {
        let name = format!("{}.{}", table.schema, table.name);
        let Some(there) = found.get(&table.key()) else {
            rows.push(Difference::new(name, told(table.rows), "missing"));
            continue;
        };
        if there.rows != table.rows {
            rows.push(Difference::new(&name, told(table.rows), told(there.rows)));
        }
        if let Some(content) = &table.content
            && there.content.as_ref() != Some(content)
        {
            contents.push(Difference::new(name, content.as_str(), there.content.as_deref().unwrap_or("unreadable")));
        }
    }
    let of = |tables: usize, rows: u64| format!("{}, {} rows", count(tables, "table", "tables"), grouped(rows));
    let expected: u64 = counted.iter().filter_map(|t| t.rows).sum();
    proof.add(Check::of("rows", &subject, of(counted.len(), expected), of(found.len(), total), rows));
    let with_content = counted.iter().filter(|t| t.content.is_some()).count();
    if with_content > 0 {
        let (all, same) =
            (count(with_content, "table", "tables"), count(with_content - contents.len(), "table", "tables"));
        proof.add(Check::of("content", &subject, all, format!("{same} with the same content"), contents));
    }
    Ok(total)
}

fn told(rows: Option<u64>) -> String {
    match rows {
        Some(1) => "1 row".into(),
        Some(rows) => format!("{} rows", grouped(rows)),
        None => "no rows to count".into(),
    }
}

/// Counts every restored table that has rows, the largest first.
fn count_all(
    ask: &Ask<'_>,
    server: &Server,
    captured: &Database,
    restored: &[Table],
    columns: Option<&Columns>,
) -> Result<HashMap<(String, String), Table>, SourceError> {
    let mut ahead: Vec<Table> = restored.iter().filter(|t| t.has_data()).cloned().collect();
    ahead.sort_by_key(|t| t.bytes);
    let (ahead, done) = (Mutex::new(ahead), Mutex::new(HashMap::new()));
    let name = server.database(&captured.name);
    let work = || -> Result<(), SourceError> {
        let within =
            |e: SessionError| e.into_source(&server.connection, &format!("count rows of database {:?}", captured.name));
        let mut session = Session::open(&server.connection, &name, ask.deadline, ask.trial.cancel).map_err(within)?;
        loop {
            let next = ahead.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut table) = next else { break };
            ask.trial.cancel.check()?;
            let own = columns.map(|c| c.get(&table.key()).map_or(&[][..], Vec::as_slice));
            // Of what the facts have no content, none is read.
            let wanted = captured.tables.iter().any(|t| t.key() == table.key() && t.content.is_some());
            catalog::count(&mut session, &mut table, own.filter(|_| wanted)).map_err(within)?;
            done.lock().unwrap_or_else(PoisonError::into_inner).insert(table.key(), table);
        }
        session.close().map_err(within)
    };
    let broke = || Err(SourceError::problem("a thread that counts rows broke"));
    let results = threads::share(super::jobs(), work).into_iter().map(|result| result.unwrap_or_else(|_| broke()));
    results.collect::<Result<(), SourceError>>()?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}
