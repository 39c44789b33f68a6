//! The policies of the configuration folder, as they are now. A file that cannot be read costs its own policy only, and
//! where it could be read before, what it said then still runs: the run itself says what is wrong.

use super::agenda::{Rule, delay};
use super::board::Shown;
use crate::base::ids::{HostName, PolicyName};
use crate::ops::access::Installation;
use crate::ops::runs::What;
use crate::policy::find::installed;
use crate::policy::model::{NotifyOn, When};
use crate::policy::{self, LoadError, Policy};
use crate::repository::chain::full_text;
use chrono::TimeDelta;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The weekly word comes on Monday morning.
const WEEKLY: &str = "0 9 * * 1";

/// What is installed.
#[derive(Default)]
pub struct Policies {
    /// By the name of the file, which is the policy's.
    good: BTreeMap<String, Arc<Policy>>,
    /// What is wrong with a file, in one line.
    broken: BTreeMap<String, String>,
}

impl Policies {
    /// Looks again. Says in the log what is new.
    pub fn reload(&mut self, installation: &Installation) {
        let names = match installed(&installation.config_dir) {
            Ok(names) => names,
            Err(e) => {
                tracing::error!("the policies stay as they were: {}", full_text(&e));
                return;
            }
        };
        self.good.retain(|name, _| names.contains(name));
        self.broken.retain(|name, _| names.contains(name));
        for name in names {
            let file = installation.policies().join(format!("{name}.toml"));
            match policy::load(&file) {
                Ok(policy) => {
                    let known = self.good.get(&name).is_some_and(|before| **before == policy);
                    if self.broken.remove(&name).is_some() || !known {
                        tracing::info!("policy {name} is loaded");
                    }
                    if let Err(e) = policy::remember(&installation.state_dir, &policy) {
                        tracing::warn!("the text of policy {name} is not kept for the day it breaks: {e}");
                    }
                    self.good.insert(name, Arc::new(policy));
                }
                Err(e) => {
                    // Before this service began it may have been good.
                    if !self.good.contains_key(&name)
                        && let Some(before) = policy::recall(&installation.state_dir, &file)
                    {
                        self.good.insert(name.clone(), Arc::new(before));
                    }
                    self.complain(name, &file, &e);
                }
            }
        }
    }

    fn complain(&mut self, name: String, file: &Path, error: &LoadError) {
        let problem = match error {
            LoadError::Invalid(errors) => {
                let one = |e: &policy::PolicyError| format!("{}:{}: {}", e.position.line, e.position.column, e.message);
                let all: Vec<String> = errors.errors.iter().map(one).collect();
                format!("{}: {}", file.display(), all.join("; "))
            }
            LoadError::Read { .. } => full_text(error),
        };
        if self.broken.get(&name) != Some(&problem) {
            let goes_on = match self.good.contains_key(&name) {
                true => "; what it said before still runs",
                false => "",
            };
            tracing::error!("policy {name} cannot be read{goes_on}: {problem}");
        }
        self.broken.insert(name, problem);
    }

    pub fn get(&self, name: &PolicyName) -> Option<&Policy> {
        self.good.get(name.as_str()).map(Arc::as_ref)
    }

    /// For whoever answers requests.
    pub fn shown(&self) -> Shown {
        Shown { good: self.good.clone(), broken: self.broken.clone() }
    }

    pub fn names(&self) -> Vec<PolicyName> {
        self.good.values().map(|policy| policy.app.name.clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.good.len()
    }

    pub fn broken(&self) -> usize {
        self.broken.len()
    }

    /// When everything of them runs.
    pub fn rules(&self, host: &HostName) -> Vec<(PolicyName, What, Rule)> {
        self.good.values().flat_map(|policy| rules(policy, host)).collect()
    }
}

fn rules(policy: &Policy, host: &HostName) -> Vec<(PolicyName, What, Rule)> {
    let schedule = &policy.schedule;
    let rule = |when: &When, retries: u32| Rule {
        when: when.clone(),
        zone: schedule.timezone,
        delay: delay(host, &policy.app.name, schedule.jitter),
        catch_up: schedule.catch_up,
        retries,
        retry: TimeDelta::from_std(schedule.retry).unwrap_or(TimeDelta::hours(6)),
    };
    let wants_weekly = policy.notify.iter().any(|notify| notify.on.contains(&NotifyOn::Weekly));
    let weekly = if wants_weekly { When::Cron(WEEKLY.to_owned()) } else { When::Off };
    [
        (What::Snapshot, rule(&schedule.snapshot, schedule.retries)),
        // A drill is dear, and what it finds is seldom gone an hour later.
        (What::Drill, rule(&schedule.drill, schedule.retries.min(1))),
        (What::Prune, rule(&schedule.prune, schedule.retries)),
        (What::Verify, rule(&schedule.verify, schedule.retries.min(1))),
        (What::Weekly, Rule { delay: TimeDelta::zero(), ..rule(&weekly, 0) }),
    ]
    .into_iter()
    .map(|(what, rule)| (policy.app.name.clone(), what, rule))
    .collect()
}
