//! Putting a captured Redis back: its files are exchanged while the server is stopped.
//!
//! Where the server keeps its files, and whether it has an append-only file, is asked of the live server. With an AOF
//! the RDB becomes its base (Redis 7 and later: a fresh multi-part AOF of one base and a manifest that lists it; before:
//! the AOF itself, which may begin as an RDB), and `dump.rdb` holds the same, so that a server whose settings change at
//! its restart finds the data too.
//!
//! All that is made lies in one folder beside the live files, `.lifeboat-<transaction>.<source>`: `new` is what is to be
//! placed, `old` what was there, `stray` what a server made in between. Files are moved, never deleted, until
//! [`Placing::discard_old`]. Whoever moves them is the server's own user, in a helper container where the files belong
//! to one; every move can be repeated and undone whenever a process is killed ([`hands`]).
//!
//! The server writes its data out (`SAVE`) before it is stopped: so the old files are the data of that moment, also
//! where it keeps none by itself, and going back loses nothing.

mod hands;
mod look;
mod others;
mod service;
mod state;

use super::RedisSource;
use super::facts::Facts;
use super::proof::grouped;
use crate::place::PlaceError;
use crate::sources::SourceError;
use crate::sources::placing::{Intent, Part, Placing, Room, Scene, Stored};
use crate::sources::run::{Deadline, Linked, settle};
use hands::Hands;
use look::Found;
use service::Service;
use state::{Runs, State};

impl RedisSource {
    /// Runs one step under a cancel flag and a deadline of its own.
    fn step<T>(
        &self,
        scene: &Scene<'_>,
        work: impl FnOnce(&Step<'_>) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let linked = Linked::to(scene.cancel);
        let step = Step { source: self, scene, deadline: Deadline::after(self.timeout), linked: &linked };
        work(&step).map_err(|e| settle(e, scene.cancel))
    }
}

/// One step of a transaction.
struct Step<'a> {
    source: &'a RedisSource,
    scene: &'a Scene<'a>,
    deadline: Deadline,
    linked: &'a Linked,
}

impl Placing for RedisSource {
    fn plan(&self, scene: &Scene<'_>, stored: &Stored<'_>, part: &Part) -> Result<Intent, SourceError> {
        self.step(scene, |step| step.plan(stored, part))
    }

    fn prepare(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.step(scene, |step| {
            let state = State::read(intent)?;
            let hands = Hands::open(step, &state)?;
            let reader = stored.streams.open(&state.stream);
            let reader = reader.map_err(|e| PlaceError::from_io("read", format!("stream {}", state.stream), e))?;
            hands.prepare(&state, reader)
        })
    }

    fn switch(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.step(scene, |step| {
            let state = State::read(intent)?;
            let hands = Hands::open(step, &state)?;
            let service = Service::new(step, &state);
            if !hands.is_switched(&state)? {
                service.save()?;
            }
            service.stop()?;
            hands.switch(&state)?;
            service.start()?;
            service.check_loaded(&service.await_loaded()?)
        })
    }

    fn confirm(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.step(scene, |step| {
            let state = State::read(intent)?;
            let service = Service::new(step, &state);
            let info = service.await_loaded()?;
            service.check_settings()?;
            // Whoever uses it writes again: only what the server counted while it loaded stays comparable.
            if info.loaded().is_some() { service.check_loaded(&info) } else { Ok(()) }
        })
    }

    fn back(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.step(scene, |step| {
            let state = State::read(intent)?;
            let hands = Hands::open(step, &state)?;
            let service = Service::new(step, &state);
            if hands.has_begun(&state)? {
                service.stop()?;
                hands.back(&state)?;
            }
            service.start()?;
            service.await_loaded().map(drop)
        })
    }

    fn discard_new(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.step(scene, |step| {
            let state = State::read(intent)?;
            Hands::open(step, &state)?.discard_new(&state)
        })
    }

    fn discard_old(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.step(scene, |step| {
            let state = State::read(intent)?;
            Hands::open(step, &state)?.discard_old(&state)
        })
    }
}

impl Step<'_> {
    fn plan(&self, stored: &Stored<'_>, part: &Part) -> Result<Intent, SourceError> {
        if !part.paths.is_empty() || !part.tables.is_empty() || part.database_as.is_some() {
            return Err(SourceError::hint(
                "a Redis is put back as a whole, not in parts",
                "restore it with --into and load what is needed from its file",
            ));
        }
        let facts: Facts = serde_json::from_value(stored.facts.clone()).map_err(|e| {
            SourceError::problem(format!("what the snapshot says of {} cannot be read: {e}", self.scene.name))
        })?;
        let stream = if facts.stream.is_empty() { super::STREAM } else { facts.stream.as_str() };
        let length = stored.streams.info(stream)?.length;
        let Found { mut state, mut warnings, free, keys, data_bytes, describe } = self.look(&facts)?;
        (state.stream, state.length) = (stream.to_owned(), length);
        others::refuse_shared(self, &mut warnings)?;

        // The new files, and what the server writes out before it is stopped.
        let copies = if state.appendonly && state.appenddirname.is_none() { 2 } else { 1 };
        let needed = length.saturating_mul(copies).saturating_add(data_bytes);
        let place = format!("{} of {describe}", state.dir);
        if let Some(free) = free.filter(|free| *free < needed) {
            let size = crate::base::units::human_size;
            warnings.push(format!("{place}: {} are needed and {} are free", size(needed), size(free)));
        }
        let after: u64 = facts.databases.iter().map(|k| k.keys).sum();
        let restarts = match &state.runs {
            Runs::Container { name, .. } => vec![name.clone()],
            Runs::Unit { .. } | Runs::Config { .. } => Vec::new(),
        };
        let lines = vec![
            format!("{describe}: {} keys now, {} keys then", grouped(keys), grouped(after)),
            format!("{describe} is stopped for that; {}", state.runs.describe()),
            format!("its files of today stay in {}", state.staging()),
        ];
        Ok(Intent {
            source: self.scene.name.clone(),
            kind: "redis".into(),
            lines,
            warnings,
            room: vec![Room { place, bytes_needed: needed, bytes_free: free }],
            losses: Vec::new(),
            restarts,
            state: state.write()?,
        })
    }
}
