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
use super::facts::{Facts, Keys};
use super::proof::grouped;
use crate::place::PlaceError;
use crate::sources::SourceError;
use crate::sources::placing::{Intent, Loss, Part, Placing, Room, Scene, Stored, Unit};
use crate::sources::run::{Deadline, Linked, settle};
use hands::Hands;
use look::Found;
use service::Service;
use state::{Runs, State};
use std::collections::BTreeSet;

impl RedisSource {
    /// Runs one step under a cancel flag and a deadline of its own.
    fn step<T>(
        &self,
        scene: &Scene<'_>,
        work: impl FnOnce(&Step<'_>) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let linked = Linked::to(scene.cancel)?;
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
            if state.flush {
                return hands.prepare_nothing(&state);
            }
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
        // A store that becomes empty asks nothing of the snapshot.
        let facts = match part.flush {
            true => Facts { counted: "file".into(), ..Facts::default() },
            false => serde_json::from_value(stored.facts.clone()).map_err(|e| {
                SourceError::problem(format!("what the snapshot says of {} cannot be read: {e}", self.scene.name))
            })?,
        };
        let Found { mut state, mut warnings, free, device, keys, data_bytes, describe } = self.look(&facts)?;
        if part.flush {
            state.flush = true;
        } else {
            let stream = if facts.stream.is_empty() { super::STREAM } else { facts.stream.as_str() };
            (state.length, state.stream) = (stored.streams.info(stream)?.length, stream.to_owned());
        }
        others::refuse_shared(self, &mut warnings)?;

        // The new files, and what the server writes out before it is stopped.
        let copies = if state.appendonly && state.appenddirname.is_none() { 2 } else { 1 };
        let needed = state.length.saturating_mul(copies).saturating_add(data_bytes);
        let place = format!("{} of {describe}", state.dir);
        if let Some(free) = free.filter(|free| *free < needed) {
            let size = crate::base::units::human_size;
            warnings.push(format!("{place}: {} are needed and {} are free", size(needed), size(free)));
        }
        let sum = |keys: &[Keys]| grouped(keys.iter().map(|k| k.keys).sum());
        let then = if part.flush { "none afterwards".into() } else { format!("{} keys then", sum(&facts.databases)) };
        let restarts = match &state.runs {
            Runs::Container { name, .. } => vec![name.clone()],
            Runs::Unit { .. } | Runs::Config { .. } => Vec::new(),
        };
        let lines = vec![
            format!("{describe}: {} keys now, {then}", sum(&keys)),
            format!("{describe} is stopped for that; {}", state.runs.describe()),
            format!("its files of today stay in {}", state.staging()),
        ];
        Ok(Intent {
            source: self.scene.name.clone(),
            kind: "redis".into(),
            lines,
            warnings,
            room: vec![Room { place, bytes_needed: needed, device, bytes_free: free }],
            losses: losses(&keys, &facts),
            restarts,
            state: state.write()?,
        })
    }
}

/// Keys of today against those that were captured. Keys whose time has come are among both.
fn losses(now: &[Keys], facts: &Facts) -> Vec<Loss> {
    let of = |list: &[Keys], database| list.iter().find(|k| k.database == database).map_or(0, |k| k.keys);
    let databases: BTreeSet<u64> = now.iter().chain(&facts.databases).map(|k| k.database).collect();
    let number = |keys: u64| i64::try_from(keys).unwrap_or(i64::MAX);
    let loss = |database| Loss {
        what: format!("keys of database {database}"),
        unit: Unit::Keys,
        more: number(of(now, database)).saturating_sub(number(of(&facts.databases, database))),
        exact: facts.counted != "range",
    };
    databases.into_iter().map(loss).filter(|l| l.more != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_each_database_are_compared() {
        let keys = |list: &[(u64, u64)]| -> Vec<Keys> {
            list.iter().map(|(database, keys)| Keys { database: *database, keys: *keys, expires: 0 }).collect()
        };
        let facts = Facts { counted: "file".into(), databases: keys(&[(0, 10), (2, 5), (3, 1)]), ..Facts::default() };
        let found = losses(&keys(&[(0, 12), (1, 4), (3, 1)]), &facts);
        let found: Vec<_> = found.iter().map(|l| (l.what.as_str(), l.more, l.exact)).collect();
        let expected =
            [("keys of database 0", 2, true), ("keys of database 1", 4, true), ("keys of database 2", -5, true)];
        assert_eq!(found, expected);
        assert!(losses(&keys(&[(0, 11)]), &Facts { counted: "range".into(), ..facts }).iter().all(|l| !l.exact));
    }
}
