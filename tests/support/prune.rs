//! Pruning a world: its policy, its clock, and what must hold after each step.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use crate::rigged::Rigged;
use crate::world::{DEEP, World, host};
use chrono::TimeDelta;
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::ops::access::{Access, AccessRequest, Installation};
use lifeboat::ops::prune::{self, PruneOptions, PrunePlan, PruneReport};
use lifeboat::ops::{OpsError, Run};
use lifeboat::policy::{self, Policy};
use lifeboat::repository::chain::Snapshot;
use lifeboat::storage::{MemoryStorage, Storage};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// A world in memory whose time can pass.
pub struct Pruned {
    pub world: World,
    pub memory: Arc<MemoryStorage>,
    pub policy: Policy,
}

pub fn policy(retention: &str) -> Policy {
    let text = format!(
        "[app]\nname = \"shop\"\nroot = \"/srv/shop\"\n[repository]\nurl = \"/nowhere\"\n\
         recipients = [\"age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz\"]\n\
         [schedule]\ntimezone = \"UTC\"\n[retention]\n{retention}\n"
    );
    policy::parse(Path::new("shop.toml"), &text).unwrap_or_else(|e| panic!("{e:?}"))
}

impl Pruned {
    /// `retention` is the policy's section; only what it says keeps anything.
    pub fn new(retention: &str) -> Self {
        let memory = Arc::new(MemoryStorage::new());
        Self { world: World::new(memory.clone()), memory, policy: policy(retention) }
    }

    pub fn installation(&self) -> Installation {
        let config_dir = self.world.dir.path().to_owned();
        Installation { config_dir, state_dir: self.world.state.dir().to_owned() }
    }

    /// The same over another storage.
    pub fn over(&self, storage: Arc<dyn Storage>) -> Self {
        Self { world: self.world.over(storage), memory: self.memory.clone(), policy: self.policy.clone() }
    }

    /// The same for a thread that dies at work.
    pub fn lent(&self, storage: Arc<dyn Storage>) -> Self {
        let over = self.over(storage);
        Self { world: over.world.lent(), ..over }
    }

    /// Does something over a storage that may die at it; whether it came to its end.
    pub fn attempt(
        &self,
        rigged: Rigged,
        work: impl FnOnce(&Self) -> Result<(), OpsError> + Send + 'static,
    ) -> (Arc<Rigged>, bool) {
        let rigged = Arc::new(rigged);
        let over = self.lent(rigged.clone());
        let (tell, told) = channel();
        std::thread::spawn(move || tell.send(work(&over)));
        loop {
            match told.recv_timeout(Duration::from_millis(10)) {
                Ok(done) => {
                    done.unwrap();
                    return (rigged, true);
                }
                Err(RecvTimeoutError::Timeout) if rigged.is_dead() => return (rigged, false),
                Err(RecvTimeoutError::Timeout) => {}
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Time passes, everywhere: for the storage, and for the host that remembers when it pruned last.
    pub fn pass(&self, time: TimeDelta) {
        self.memory.advance(time);
        let _ = fs::remove_file(self.world.state.dir().join("prune-clock.json"));
    }

    pub fn run(&self) -> Run {
        let now = chrono::SubsecRound::trunc_subsecs(self.memory.clock().unwrap(), 0);
        Run { events: Events::none(), cancel: Cancel::new(), now }
    }

    pub fn options(&self) -> PruneOptions {
        PruneOptions::of(host())
    }

    pub fn access(&self) -> Result<Access, OpsError> {
        self.world.access(true)
    }

    pub fn plan(&self) -> Result<PrunePlan, OpsError> {
        prune::plan(&self.access()?, &self.policy, &self.options(), &self.run())
    }

    pub fn prune(&self) -> Result<PruneReport, OpsError> {
        self.prune_with(&self.options())
    }

    pub fn prune_with(&self, options: &PruneOptions) -> Result<PruneReport, OpsError> {
        let access = self.access()?;
        let run = self.run();
        let plan = prune::plan(&access, &self.policy, options, &run)?;
        let request =
            AccessRequest { identity: Some(self.world.dir.path().join("identity.txt")), ..AccessRequest::default() };
        prune::run(&self.installation(), &access, &request, &plan, options, &run)
    }

    /// Everything that is there is sound and restores.
    pub fn is_sound(&self, what: &str) {
        let report = self.world.verify(DEEP).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.world.chain().all().cloned().collect()
    }

    pub fn sequences(&self) -> Vec<u64> {
        self.snapshots().iter().map(|s| s.header.sequence.0).collect()
    }

    pub fn count(&self, prefix: &str) -> usize {
        self.world.keys(prefix).len()
    }
}
