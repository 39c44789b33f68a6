//! `cat`: bytes to standard output, nothing else.

use crate::base::patient;
use crate::cli::args::CatArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::session::Session;
use crate::ops::browse;
use std::io::{self, BufWriter, IsTerminal};

const BUFFER: usize = 256 << 10;

pub fn run(session: &Session, args: &CatArgs) -> Result<Exit, Failure> {
    let attempted = format!("read {} of {}", args.what.to_string_lossy(), args.id);
    cat(session, args).map_err(|f| f.attempted(attempted))
}

fn cat(session: &Session, args: &CatArgs) -> Result<Exit, Failure> {
    if session.out.json {
        return Err(Failure::usage("--json is not possible here: cat prints the bytes themselves", "leave it out"));
    }
    let access = session.open_to_read(&args.reading, &args.id)?;
    // A terminal sees lines as they come; everything else gets large pieces.
    let capacity = if io::stdout().is_terminal() { 0 } else { BUFFER };
    let mut out = BufWriter::with_capacity(capacity, patient::stdout());
    browse::cat(&access, &args.id, &args.what, &session.run, &mut out)?;
    Ok(Exit::Done)
}
