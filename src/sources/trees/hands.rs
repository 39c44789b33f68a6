//! Who does it: this process, or the same program in a helper container, where only the engine reaches the tree.

use super::super::SourceError;
use super::super::extract::Report;
use super::super::project::Places;
use super::helper::{Helpers, Order};
use super::job::Job;
use super::placing::{Tape, Through};
use super::survey::Survey;
use super::told;
use super::{again, back, discard_new, discard_old, first, look, survey, switch};
use crate::base::cancel::Cancel;
use std::io::Read;

/// Does what a step says.
pub struct Hands {
    helpers: Helpers,
}

impl Hands {
    pub fn new(places: Places) -> Self {
        Self { helpers: Helpers::new(places) }
    }

    pub fn survey(
        &self,
        job: &Job,
        through: Option<&Through>,
        tape: &Tape<'_>,
        cancel: &Cancel,
    ) -> Result<Survey, SourceError> {
        let mut listing = tape.listing()?;
        let Some(through) = through else { return survey(job, &mut listing, cancel) };
        let answer =
            self.helpers.run(through, Order::Survey, job, Some((&mut listing, tape.listing_bytes()?)), cancel)?;
        answer.survey.ok_or_else(|| SourceError::problem("the helper container gave no answer"))
    }

    pub fn make(
        &self,
        job: &Job,
        through: Option<&Through>,
        tape: &Tape<'_>,
        cancel: &Cancel,
    ) -> Result<(), SourceError> {
        if self.lay(job, through, tape, cancel, true)? {
            self.lay(job, through, tape, cancel, false)?;
        }
        Ok(())
    }

    pub fn settle(
        &self,
        job: &Job,
        through: Option<&Through>,
        tape: &Tape<'_>,
        cancel: &Cancel,
    ) -> Result<(), SourceError> {
        let redo = match through {
            None => look(job, cancel)?,
            Some(through) => self.helpers.run(through, Order::Look, job, None, cancel)?.redo,
        };
        if redo {
            self.lay(job, through, tape, cancel, false)?;
        }
        Ok(())
    }

    /// One reading of the tar; the listing goes first where it is needed. `true`: it needs another one.
    fn lay(
        &self,
        job: &Job,
        through: Option<&Through>,
        tape: &Tape<'_>,
        cancel: &Cancel,
        is_first: bool,
    ) -> Result<bool, SourceError> {
        let mut listing = if job.exact || !job.paths.is_empty() { Some(tape.listing()?) } else { None };
        let mut tar = tape.tar()?;
        let Some(through) = through else {
            let listing = listing.as_mut().map(|l| l as &mut dyn Read);
            return if is_first {
                first(job, listing, &mut tar, cancel)
            } else {
                again(job, listing, &mut tar, cancel)
            };
        };
        let bytes = if listing.is_some() { tape.listing_bytes()? } else { 0 };
        let mut both = listing.unwrap_or_else(|| Box::new(std::io::empty())).chain(tar);
        let order = if is_first { Order::First } else { Order::Again };
        Ok(self.helpers.run(through, order, job, Some((&mut both, bytes)), cancel)?.redo)
    }

    pub fn switch(&self, job: &Job, through: Option<&Through>, cancel: &Cancel) -> Result<(), SourceError> {
        match through {
            None => switch(job),
            Some(through) => self.helpers.run(through, Order::Switch, job, None, cancel).map(drop),
        }
    }

    /// What of it is not as it was captured, once it is switched.
    pub fn differs(&self, job: &Job) -> Result<Report, SourceError> {
        told::whole(job)
    }

    pub fn back(&self, job: &Job, through: Option<&Through>, cancel: &Cancel) -> Result<Vec<String>, SourceError> {
        match through {
            None => back(job),
            Some(through) => Ok(self.helpers.run(through, Order::Back, job, None, cancel)?.notes),
        }
    }

    pub fn discard_new(&self, job: &Job, through: Option<&Through>, cancel: &Cancel) -> Result<(), SourceError> {
        match through {
            None => discard_new(job),
            Some(through) => self.helpers.run(through, Order::DiscardNew, job, None, cancel).map(drop),
        }
    }

    pub fn discard_old(&self, job: &Job, through: Option<&Through>, cancel: &Cancel) -> Result<(), SourceError> {
        match through {
            None => discard_old(job),
            Some(through) => self.helpers.run(through, Order::DiscardOld, job, None, cancel).map(drop),
        }
    }
}
