//! What every command works with: the installation, the run, standard output; and how a policy or a repository is
//! found from the arguments.

use crate::base::cancel::Cancel;
use crate::base::ids::{ObjectId, Sequence};
use crate::base::patient;
use crate::base::shell::shell_word;
use crate::base::uptime::Uptime;
use crate::cli::args::{Global, Reading};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Output, printable};
use crate::cli::progress::Progress;
use crate::ops::access::{Access, AccessRequest, Installation, parse_time, parse_url};
use crate::ops::foresight::Purpose;
use crate::ops::transaction;
use crate::ops::{Run, Trigger};
use crate::policy::{self, Policy};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// One invocation.
pub struct Session {
    pub global: Global,
    pub installation: Installation,
    pub out: Output,
    pub progress: Progress,
    pub run: Run,
    begun: Uptime,
    /// What the run history shall know of this run.
    noted: Mutex<Noted>,
}

/// What a command knows of its run when it ends.
#[derive(Debug, Clone, Default)]
pub struct Noted {
    pub snapshot: Option<String>,
    pub bytes_total: Option<u64>,
    pub bytes_new: Option<u64>,
    /// Whether the drill passed.
    pub drill: Option<bool>,
    /// The snapshot is complete, and something in it is far smaller than usual.
    pub suspect: bool,
    /// What went wrong, where the command itself did not fail.
    pub problem: Option<String>,
}

impl Session {
    pub fn new(global: Global, command: &'static str, cancel: Cancel) -> Self {
        // What is stored and compared has whole seconds.
        let now = Utc::now().trunc_subsecs(0);
        let progress = Progress::new(&global);
        let standard = Installation::standard();
        let installation = Installation {
            config_dir: global.config_dir.clone().unwrap_or(standard.config_dir),
            state_dir: global.state_dir.clone().unwrap_or(standard.state_dir),
        };
        let out = Output::new(&global, command, now);
        let run = Run { events: progress.events(), cancel, now };
        Self { global, installation, out, progress, run, begun: Uptime::now(), noted: Mutex::default() }
    }

    /// The run as it is now that somebody may have thought for long.
    pub fn run_now(&self) -> Run {
        let passed = TimeDelta::from_std(self.begun.elapsed()).unwrap_or_default();
        Run { now: (self.run.now + passed).trunc_subsecs(0), ..self.run.clone() }
    }

    /// Notes something of this run for the run history.
    pub fn note(&self, note: impl FnOnce(&mut Noted)) {
        note(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn noted(&self) -> Noted {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What made this run, as a snapshot says it.
    pub fn trigger(&self) -> Trigger {
        if self.global.scheduled { Trigger::Schedule } else { Trigger::Manual }
    }

    /// The file of the policy that is meant.
    pub fn policy_file(&self) -> Result<PathBuf, Failure> {
        Ok(policy::find(&self.installation.config_dir, self.global.policy.as_deref())?)
    }

    /// The policy that is meant.
    pub fn policy(&self) -> Result<Policy, Failure> {
        Ok(policy::load(&self.policy_file()?)?)
    }

    /// What a reading command was given. A repository that is named needs no policy.
    pub fn access_request(&self, reading: &Reading) -> Result<AccessRequest, Failure> {
        let repository = reading.repository.as_deref().map(parse_url).transpose()?;
        let policy = match (&repository, &self.global.policy) {
            (Some(_), None) => None,
            _ => Some(self.policy()?),
        };
        Ok(AccessRequest {
            policy,
            repository,
            identity: reading.identity.clone(),
            signer: reading.signer.as_deref().map(|text| argument("--signer", text)).transpose()?,
            expect: reading.expect.as_deref().map(expected).transpose()?,
            trust_on_first_use: reading.trust_on_first_use,
            host: reading.host.as_deref().map(|text| argument("--host", text)).transpose()?,
            remembered: true,
            purpose: Purpose::Look,
            read_only: false,
        })
    }

    /// The repository that is meant, open for reading.
    pub fn open(&self, reading: &Reading) -> Result<Access, Failure> {
        self.open_as(&self.access_request(reading)?)
    }

    /// The same, to read the snapshot of this name.
    pub fn open_to_read(&self, reading: &Reading, snapshot: &str) -> Result<Access, Failure> {
        let purpose = Purpose::Read(snapshot.to_owned());
        self.open_as(&AccessRequest { purpose, ..self.access_request(reading)? })
    }

    /// The same, to say what is known of the snapshot of this name.
    pub fn open_to_show(&self, reading: &Reading, snapshot: &str) -> Result<Access, Failure> {
        let purpose = Purpose::Show(snapshot.to_owned());
        self.open_as(&AccessRequest { purpose, ..self.access_request(reading)? })
    }

    /// The same, with every header and record read from the storage: for what looks for damage there.
    pub fn open_anew(&self, reading: &Reading) -> Result<Access, Failure> {
        self.open_as(&AccessRequest { remembered: false, ..self.access_request(reading)? })
    }

    pub fn open_as(&self, request: &AccessRequest) -> Result<Access, Failure> {
        let access = Access::open(&self.installation, &AccessRequest { read_only: true, ..request.clone() })?;
        access.alarms.iter().for_each(|alarm| self.out.alarm(&format!("ALARM: {alarm}")));
        access.notices.iter().for_each(|notice| self.out.alarm(notice));
        for problem in &access.chain.problems {
            self.out.alarm(&format!("{}: {}; `lifeboat verify` says more", problem.key, problem.problem));
        }
        Ok(access)
    }

    /// Asks before something that cannot be taken back. Without a terminal nobody can answer, so `--yes` must have.
    pub fn confirm(&self, what: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::usage(format!("this would {what}"), "say --yes if that is meant"));
        }
        self.progress.finish();
        let mut answer = String::new();
        let asked = write!(patient::stderr(), "This will {}. Go on? [y/N] ", printable(what));
        asked.and_then(|()| patient::read_line(&mut answer)).map_err(|e| Failure::new(Exit::Failed, e))?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Failure::usage("not confirmed", "nothing was changed")),
        }
    }

    /// Asks before the live application is changed: its name must be written. Without a terminal `--yes` must have been
    /// said.
    pub fn confirm_by_name(&self, what: &str, name: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::usage(
                format!("this would {what}"),
                "say --yes if that is meant; --dry-run shows the plan",
            ));
        }
        self.progress.finish();
        let mut answer = String::new();
        let asked = write!(patient::stderr(), "This will {}. Write {name:?} to go on: ", printable(what));
        asked.and_then(|()| patient::read_line(&mut answer)).map_err(|e| Failure::new(Exit::Failed, e))?;
        if answer.trim() == name { Ok(()) } else { Err(Failure::usage("not confirmed", "nothing was changed")) }
    }

    /// What somebody writes on the terminal; without one it is `problem`.
    pub fn ask(&self, question: &str, problem: &str, hint: &str) -> Result<String, Failure> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::usage(problem, hint));
        }
        self.progress.finish();
        let mut answer = String::new();
        let asked = write!(patient::stderr(), "{question}");
        asked.and_then(|()| patient::read_line(&mut answer)).map_err(|e| Failure::new(Exit::Failed, e))?;
        Ok(answer.trim().to_owned())
    }

    /// Says on standard error that a transaction was cut short, whatever was asked for.
    pub fn warn_of_pending(&self) {
        match transaction::pending(&self.installation.state_dir) {
            Ok(pending) => pending.iter().for_each(|p| {
                self.out.alarm(&format!(
                    "transaction {} of policy {} was cut short: `lifeboat{} {} --resume` finishes it or takes it back",
                    p.id,
                    p.policy,
                    self.same_options(Some(p.policy.as_str())),
                    p.record.plan.what.word()
                ));
            }),
            Err(e) => self.out.alarm(&Failure::from(e).message()),
        }
    }

    /// A time as people write it.
    pub fn time(&self, option: &str, text: &str) -> Result<DateTime<Utc>, Failure> {
        parse_time(text, self.run.now).ok_or_else(|| {
            let hint = "write 2026-11-19, \"2026-11-19 02:00\", or \"3 hours ago\"";
            Failure::usage(format!("{option}: {text:?} is not a time"), hint)
        })
    }

    /// The options that lead another command to the same installation and policy: empty where the defaults do.
    pub fn same_options(&self, policy: Option<&str>) -> String {
        let mut text = String::new();
        let mut add = |option: &str, value: &str| text += &format!(" {option} {}", shell_word(value));
        if let Some(name) = policy {
            add("-p", name);
        }
        for (option, dir) in [("--config-dir", &self.global.config_dir), ("--state-dir", &self.global.state_dir)] {
            if let Some(dir) = dir {
                add(option, &dir.to_string_lossy());
            }
        }
        text
    }
}

/// An argument's value that has a type of its own.
pub fn argument<T: FromStr>(option: &str, text: &str) -> Result<T, Failure>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|e: T::Err| Failure::new(Exit::Usage, e).attempted(option.to_owned()))
}

/// `SEQ:HASH`.
pub fn expected(text: &str) -> Result<(Sequence, ObjectId), Failure> {
    let parts = text.split_once(':').and_then(|(sequence, hash)| Some((sequence.parse().ok()?, hash)));
    let (sequence, hash) = parts.ok_or_else(|| {
        Failure::usage(format!("{text:?} is not SEQ:HASH"), "write a sequence, a colon and 64 hex digits")
    })?;
    Ok((Sequence(sequence), argument("--expect", hash)?))
}
