//! `notify`.

use crate::base::units::human_duration;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table};
use crate::cli::session::Session;
use crate::ops::access::host_name;
use crate::ops::notify;
use crate::ops::runs::Book;
use chrono::Utc;
use serde_json::json;
use std::time::Duration;

/// A sender that is started by the service has so long.
const DELIVER_LIMIT: Duration = Duration::from_secs(240);

pub fn test(session: &Session) -> Result<Exit, Failure> {
    try_all(session).map_err(|f| f.attempted("notify test"))
}

fn try_all(session: &Session) -> Result<Exit, Failure> {
    let policy = session.policy()?;
    if policy.notify.is_empty() {
        let hint = "add [notify] with webhook, ntfy, slack, discord, healthchecks or email; docs/service.md shows how";
        return Err(Failure::usage(format!("nobody hears of policy {}", policy.app.name), hint));
    }
    let tried = notify::test(&policy, &host_name()?, session.run.now);
    let exit = if tried.iter().all(|t| t.ok) { Exit::Done } else { Exit::Failed };
    if session.out.json {
        session.out.document(exit, &json!({ "policy": policy.app.name, "channels": tried }))?;
        return Ok(exit);
    }
    let mut table =
        Table::new(&[("CHANNEL", Align::Left), ("", Align::Left), ("TIME", Align::Right), ("", Align::Left)]);
    for one in &tried {
        let (word, paint) = if one.ok { ("told", Paint::Green) } else { ("not told", Paint::Red) };
        table.row(vec![
            (one.channel.to_owned(), Paint::Plain),
            (word.to_owned(), paint),
            (human_duration(Duration::from_secs_f64(one.seconds.max(0.0))), Paint::Plain),
            (one.problem.clone().unwrap_or_default(), Paint::Plain),
        ]);
    }
    session.out.text(&session.out.table(&table))?;
    Ok(exit)
}

/// Sends what is due. What cannot be sent now is no failure: it is kept, and said.
pub fn deliver(session: &Session) -> Result<Exit, Failure> {
    let Some(book) = Book::look(&session.installation.state_dir)? else { return Ok(Exit::Done) };
    let stop = || session.run.cancel.signal().is_some();
    let delivered = notify::deliver(&book, &session.installation.state_dir, Utc::now, DELIVER_LIMIT, stop)?;
    for problem in &delivered.problems {
        session.out.alarm(&format!("{problem}; it is tried again later"));
    }
    if session.out.json {
        session.out.document(Exit::Done, &delivered)?;
    }
    Ok(Exit::Done)
}
