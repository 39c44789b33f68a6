//! `repair index`.

use crate::cli::exit::{Exit, Failure};
use crate::cli::output::printable_lines;
use crate::cli::session::Session;
use crate::ops::repair;

pub fn index(session: &Session) -> Result<Exit, Failure> {
    let policy = session.policy().map_err(|f| f.attempted("repair the index"))?;
    let done = repair::repair_index(&session.installation, &policy, &session.run);
    session.progress.finish();
    let report = done.map_err(|e| Failure::from(e).attempted(format!("repair the index of {}", policy.app.name)))?;
    let exit = if report.problems.is_empty() { Exit::Done } else { Exit::Integrity };
    if session.out.json {
        session.out.document(exit, &report)?;
        return Ok(exit);
    }
    for problem in &report.problems {
        session.out.alarm(problem);
    }
    let text = format!(
        "{} chunks of {} archives found; {} index objects written\n",
        report.chunks, report.archives, report.index_objects
    );
    session.out.note(&printable_lines(&text))?;
    Ok(exit)
}
