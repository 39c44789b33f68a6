//! L5: the command line. Arguments in, one call into `ops`, an answer for people or for programs, an exit code.
//!
//! - [`args`]: what can be said
//! - [`exit`]: exit codes, and the failures that lead to them
//! - [`session`]: what every command works with
//! - [`output`], [`progress`]: what is shown, and where
//! - [`books`]: the run history, and who hears of a run
//! - [`signals`]: Ctrl-C and SIGTERM
//! - [`commands`]: one file per command

pub mod args;
mod books;
mod commands;
pub mod exit;
mod output;
mod progress;
mod session;
mod signals;

use crate::base::cancel::Cancel;
use crate::base::patient;
use crate::base::umask;
use crate::ops::transaction::helper;
use args::{Cli, ColorWhen, Command, KeysCommand, NotifyCommand, PolicyCommand, RepairCommand};
use books::Books;
use clap::{ColorChoice, CommandFactory, FromArgMatches};
use exit::{Exit, Failure};
use output::{colour_wanted, report_failure, write_out};
use session::Session;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use tracing_subscriber::EnvFilter;

/// Runs the command of `arguments` (the program's name first) and returns the exit code.
pub fn run(arguments: Vec<OsString>) -> u8 {
    umask::close();
    signals::outlive_limits();
    if let Some(code) = tree_helper(&arguments) {
        return code;
    }
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(exit) => return exit.code(),
    };
    let cancel = Cancel::new();
    let session = Session::new(cli.global, name(&cli.command), cancel.clone());
    start_log(&session, &cli.command);
    // The service goes on until its runs have ended, and hears signals itself.
    if !matches!(cli.command, Command::Serve(_))
        && let Err(e) = signals::listen(cancel.clone())
    {
        session.out.alarm(&format!("signals cannot be caught: {e}"));
    }
    if !settles(&cli.command) {
        session.warn_of_pending();
    }
    let books = Books::begin(&session, &cli.command);
    let done = dispatch(&session, &cli.command);
    session.progress.finish();
    match done {
        Ok(exit) => {
            if let Some(books) = books {
                books.end(&session, exit, None);
            }
            exit.code()
        }
        Err(failure) => {
            // Whatever broke while the run was being stopped broke because of that.
            let failure = match cancel.signal() {
                Some(signal) => Failure::signal(signal).attempted(failure.what_was_attempted(name(&cli.command))),
                None => failure,
            };
            session.out.failure(&failure);
            if let Some(books) = books {
                books.end(&session, failure.kind, Some(&failure));
            }
            failure.kind.code()
        }
    }
}

/// In a container of its own this program lays out and exchanges trees that only the engine reaches.
fn tree_helper(arguments: &[OsString]) -> Option<u8> {
    let words: Vec<String> = arguments.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    (words.first()? == helper::WORD).then(|| helper::serve(&words[1..]))
}

/// What has nothing to do with a pending transaction, or settles it.
fn settles(command: &Command) -> bool {
    match command {
        Command::Restore(args) => args.resume,
        Command::Rollback(args) => args.resume,
        Command::Keys { .. } | Command::Completions { .. } | Command::Man { .. } | Command::Notify { .. } => true,
        _ => false,
    }
}

/// Reads the arguments; help and version are printed here.
fn parse(arguments: &[OsString]) -> Result<Cli, Exit> {
    let says = |word: &str| arguments.iter().any(|a| a == word);
    let colour = match arguments.iter().position(|a| a == "--color").and_then(|at| arguments.get(at + 1)) {
        Some(when) if when == "always" => ColorChoice::Always,
        Some(when) if when == "never" => ColorChoice::Never,
        _ if says("--color=always") => ColorChoice::Always,
        _ if says("--color=never") => ColorChoice::Never,
        _ => ColorChoice::Auto,
    };
    let parsed = Cli::command().color(colour).try_get_matches_from(arguments);
    let error = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    if !error.use_stderr() {
        return Err(help(&error, colour));
    }
    if !says("--json") {
        // A terminal that went away has no use for this either.
        let _ = write!(patient::stderr(), "{}", rendered(&error, colour, io::stderr().is_terminal()));
        return Err(Exit::Usage);
    }
    let text = error.to_string();
    let problem = text.trim_start_matches("error: ").trim_end().to_owned();
    let failure = Failure::usage(problem, "`lifeboat --help` lists the commands");
    report_failure(&failure, Some(("lifeboat", &[])), colour_wanted(ColorWhen::Auto, io::stderr().is_terminal()));
    Err(Exit::Usage)
}

/// What clap has to say, for a stream that is a terminal or none.
fn rendered(error: &clap::Error, colour: ColorChoice, is_terminal: bool) -> String {
    let when = match colour {
        ColorChoice::Always => ColorWhen::Always,
        ColorChoice::Never => ColorWhen::Never,
        ColorChoice::Auto => ColorWhen::Auto,
    };
    let text = error.render();
    if colour_wanted(when, is_terminal) { text.ansi().to_string() } else { text.to_string() }
}

/// Prints help or the version, without the blanks that clap leaves at the ends of lines.
fn help(error: &clap::Error, colour: ColorChoice) -> Exit {
    let text = rendered(error, colour, io::stdout().is_terminal());
    let lines: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    match write_out(lines.as_bytes()) {
        Ok(()) => Exit::Done,
        Err(failure) => failure.kind,
    }
}

/// The command's name in JSON documents and messages.
fn name(command: &Command) -> &'static str {
    match command {
        Command::Init(_) => "init",
        Command::Policy { command: PolicyCommand::Check { .. } } => "policy check",
        Command::Policy { command: PolicyCommand::Show } => "policy show",
        Command::Keys { command: KeysCommand::New } => "keys new",
        Command::Keys { command: KeysCommand::AddRecipient { .. } } => "keys add-recipient",
        Command::Keys { command: KeysCommand::Rotate { .. } } => "keys rotate",
        Command::Keys { command: KeysCommand::Revoke(_) } => "keys revoke",
        Command::Keys { command: KeysCommand::Show { .. } } => "keys show",
        Command::Snapshot(_) => "snapshot",
        Command::List(_) => "list",
        Command::Show(_) => "show",
        Command::Ls(_) => "ls",
        Command::Cat(_) => "cat",
        Command::Find(_) => "find",
        Command::Diff(_) => "diff",
        Command::Restore(args) if args.into.is_none() => "restore in place",
        Command::Restore(_) => "restore",
        Command::Rollback(_) => "rollback",
        Command::Guard(_) => "guard",
        Command::Recover(_) => "recover",
        Command::RecoveryKit(_) => "recovery-kit",
        Command::Drill(_) => "drill",
        Command::Serve(_) => "serve",
        Command::Notify { command: NotifyCommand::Test } => "notify test",
        Command::Notify { command: NotifyCommand::Deliver } => "notify deliver",
        Command::Status(args) if args.reading.repository.is_some() => "status repository",
        Command::Status(_) => "status",
        Command::History(_) => "history",
        Command::Tag(_) => "tag",
        Command::Untag(_) => "untag",
        Command::Hold(_) => "hold",
        Command::Release(_) => "release",
        Command::Verify(_) => "verify",
        Command::Copy(_) => "copy",
        Command::Prune(_) => "prune",
        Command::Doctor(_) => "doctor",
        Command::Repair { command: RepairCommand::Index } => "repair index",
        Command::Completions { .. } => "completions",
        Command::Man { .. } => "man",
    }
}

fn dispatch(session: &Session, command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Init(args) => commands::init::run(session, args),
        Command::Policy { command } => commands::policy::run(session, command),
        Command::Keys { command } => commands::keys::run(session, command),
        Command::Snapshot(args) => commands::snapshot::run(session, args),
        Command::List(args) => commands::list::run(session, args),
        Command::Show(args) => commands::show::run(session, args),
        Command::Ls(args) => commands::ls::run(session, args),
        Command::Cat(args) => commands::cat::run(session, args),
        Command::Find(args) => commands::find::run(session, args),
        Command::Diff(args) => commands::diff::run(session, args),
        Command::Completions { shell } => commands::manual::completions(session, *shell),
        Command::Man { into: Some(dir), .. } => commands::manual::pages(session, dir),
        Command::Man { command, .. } => commands::manual::man(session, command),
        Command::Restore(args) => commands::restore::run(session, args),
        Command::Rollback(args) => commands::rollback::run(session, args),
        Command::Guard(args) => commands::guard::run(session, args),
        Command::Recover(args) => commands::recover::run(session, args),
        Command::RecoveryKit(args) => commands::recovery_kit::run(session, args),
        Command::Drill(args) => commands::drill::run(session, args),
        Command::Serve(args) => commands::serve::run(session, args),
        Command::Notify { command: NotifyCommand::Test } => commands::notify::test(session),
        Command::Notify { command: NotifyCommand::Deliver } => commands::notify::deliver(session),
        Command::Status(args) => commands::status::run(session, args),
        Command::History(args) => commands::history::run(session, args),
        Command::Tag(args) => commands::tag::tag(session, args),
        Command::Untag(args) => commands::tag::untag(session, args),
        Command::Hold(args) => commands::hold::hold(session, args),
        Command::Release(args) => commands::hold::release(session, args),
        Command::Verify(args) => commands::verify::run(session, args),
        Command::Copy(args) => commands::copy::run(session, args),
        Command::Prune(args) => commands::prune::run(session, args),
        Command::Doctor(args) => commands::doctor::run(session, args),
        Command::Repair { command: RepairCommand::Index } => commands::repair::index(session),
    }
}

/// Logs go to standard error: warnings, or what `-v` and `RUST_LOG` ask for.
fn start_log(session: &Session, command: &Command) {
    let default = match (session.global.quiet, session.global.verbose) {
        (true, _) => "error",
        // The log is all that the service shows.
        (false, 0) if matches!(command, Command::Serve(_)) => "warn,lifeboat::daemon=info",
        (false, 0) => "warn",
        (false, 1) => "warn,lifeboat=debug",
        (false, _) => "info,lifeboat=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let writer = session.progress.log_writer();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(move || writer.clone());
    // A second run in one process keeps the first one's log.
    let _ = log.try_init();
}
