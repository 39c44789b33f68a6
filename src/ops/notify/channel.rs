//! Which of a policy's channels is meant, and what it hears of.

use super::event::Occasion;
use crate::ops::runs::{RunRecord, What, is_failure};
use crate::policy::Policy;
use crate::policy::model::{Notify, NotifyChannel, NotifyOn};
use sha2::{Digest, Sha256};

/// A channel of a policy, and the name under which the outbox knows it.
pub struct Channel<'p> {
    pub notify: &'p Notify,
    /// `webhook-3f9a…`: the kind, and a hash of where it leads, so that a policy that has changed meanwhile gets nothing
    /// that was meant for somebody else.
    pub key: String,
}

/// The word of the policy.
pub fn kind(channel: &NotifyChannel) -> &'static str {
    match channel {
        NotifyChannel::Webhook(_) => "webhook",
        NotifyChannel::Ntfy(_) => "ntfy",
        NotifyChannel::Slack(_) => "slack",
        NotifyChannel::Discord(_) => "discord",
        NotifyChannel::Healthchecks(_) => "healthchecks",
        NotifyChannel::Email { .. } => "email",
    }
}

/// The channels of a policy.
pub fn channels<'p>(policy: &'p Policy) -> Vec<Channel<'p>> {
    let channel = |notify: &'p Notify| {
        let channel = &notify.channel;
        let hash = Sha256::digest(format!("{channel:?}").as_bytes());
        Channel { notify, key: format!("{}-{}", kind(channel), hex::encode(&hash[..8])) }
    };
    policy.notify.iter().map(channel).collect()
}

/// The occasion of a run that a channel hears of, if any.
pub fn wanted(notify: &Notify, run: &RunRecord, occasions: &[Occasion]) -> Option<Occasion> {
    if let NotifyChannel::Healthchecks(_) = notify.channel {
        return ping(run, occasions);
    }
    let wants = |occasion: &Occasion| match occasion {
        Occasion::Failure | Occasion::Recovery => notify.on.contains(&NotifyOn::Failure),
        Occasion::Success => notify.on.contains(&NotifyOn::Success),
        Occasion::Drill => notify.on.contains(&NotifyOn::Drill),
        Occasion::Rollback => notify.on.contains(&NotifyOn::Rollback),
        Occasion::Weekly => notify.on.contains(&NotifyOn::Weekly),
        Occasion::Test => true,
    };
    occasions.iter().copied().find(wants)
}

/// Whether a channel is a watchdog, which tells somebody when it hears nothing.
pub fn is_watchdog(channel: &NotifyChannel) -> bool {
    matches!(channel, NotifyChannel::Healthchecks(_))
}

/// A watchdog waits for the pings of snapshots, every one, whatever `on` says; of anything else it hears failures only,
/// because a success of that would hide that snapshots have stopped.
fn ping(run: &RunRecord, occasions: &[Occasion]) -> Option<Occasion> {
    let failed = run.outcome().and_then(is_failure)?;
    match (run.what, failed) {
        (What::Snapshot, false) => Some(Occasion::Success),
        (What::Snapshot, true) => Some(Occasion::Failure),
        (_, true) => occasions.iter().copied().find(|o| *o == Occasion::Failure),
        _ => None,
    }
}
