//! `serve`.

use crate::cli::args::ServeArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::session::Session;
use crate::daemon::{Settings, serve};

pub fn run(session: &Session, args: &ServeArgs) -> Result<Exit, Failure> {
    let done = start(session, args);
    done.map_err(|f| f.attempted("serve"))
}

fn start(session: &Session, args: &ServeArgs) -> Result<Exit, Failure> {
    if session.out.json {
        let hint = "its log is on standard error; `lifeboat history --json` shows what ran";
        return Err(Failure::usage("serve prints no document", hint));
    }
    if session.global.policy.is_some() {
        let hint = "leave -p out; schedules that are \"off\" do not run";
        return Err(Failure::usage("serve runs every installed policy", hint));
    }
    let program = std::env::current_exe().map_err(|e| Failure::new(Exit::Failed, e))?;
    let installation = session.installation.clone();
    serve(&Settings { installation, program, at_once: usize::from(args.jobs), listen: args.listen })?;
    Ok(Exit::Done)
}
