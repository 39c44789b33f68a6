//! Which snapshot `--to` means: an id, a tag, a commit, a git tag, or a time; and why.
//!
//! A tag and a commit mean the newest complete snapshot that carries it: one that is not complete serves where there is
//! no other, and the plan says what is missing of it. What the snapshot recorded wins over what git says today.
//! A snapshot that a rollback took first is of the very state that one wanted to leave: only its id or its tag mean it.

use crate::base::ids::{PolicyName, SnapshotId};
use crate::ops::access::{Access, parse_time};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::repository::chain::{Named, Snapshot};
use crate::repository::format::{Outcome, Trigger};
use crate::sources::git::{Commit, commit_named};
use chrono::{DateTime, TimeDelta, Utc};

/// Fewer digits name no commit.
const COMMIT_DIGITS: usize = 7;
/// How many snapshots are named where none fits.
const NEAREST: usize = 3;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub asked: String,
    pub snapshot: SnapshotId,
    pub time: DateTime<Utc>,
    pub commit: Option<String>,
    /// For people: `the newest complete snapshot tagged v1.4.0`.
    pub why: String,
    pub warnings: Vec<String>,
}

/// Finds the snapshot that is meant.
pub fn target(access: &Access, policy: &Policy, asked: &str, run: &Run) -> Result<Target, OpsError> {
    let all = of_policy(access, &policy.app.name);
    let git = |name: &str| commit_named(&policy.app.root, name, &run.cancel).ok().flatten();
    let found = choose(&all, asked, run.now, &git);
    match found {
        Ok(Found { snapshot, why, warnings }) => Ok(Target {
            asked: asked.to_owned(),
            snapshot: snapshot.header.id.clone(),
            time: snapshot.header.time,
            commit: snapshot.header.git_commit.clone(),
            why,
            warnings,
        }),
        Err(Missing::Plain) => {
            let snapshot = access.resolve(asked, run.now)?;
            Err(OpsError::usage(
                format!(
                    "snapshot {} is of policy {}, not of {}",
                    snapshot.header.id, snapshot.header.policy, policy.app.name
                ),
                "name its own policy with -p",
            ))
        }
        Err(Missing::At(problem, hint)) => Err(OpsError::usage(problem, hint)),
    }
}

/// The policy's snapshots, oldest first.
pub fn of_policy<'a>(access: &'a Access, policy: &PolicyName) -> Vec<&'a Snapshot> {
    access.snapshots().into_iter().filter(|s| s.header.policy == *policy && !s.forked).collect()
}

struct Found<'a> {
    snapshot: &'a Snapshot,
    why: String,
    warnings: Vec<String>,
}

enum Missing {
    /// Nothing of this policy has that name: the general error says more.
    Plain,
    At(String, String),
}

fn choose<'a>(
    all: &[&'a Snapshot],
    asked: &str,
    now: DateTime<Utc>,
    git: &dyn Fn(&str) -> Option<Commit>,
) -> Result<Found<'a>, Missing> {
    let found = |snapshot, why: String| Ok(Found { snapshot, why, warnings: Vec::new() });
    if let Named::Latest(back) = Named::parse(asked) {
        return match all.iter().rev().filter(|s| is_candidate(s)).nth(back) {
            Some(snapshot) => found(snapshot, format!("{asked} of the snapshots that no rollback took")),
            None => Err(Missing::Plain),
        };
    }
    let tagged: Vec<&Snapshot> = all.iter().copied().filter(|s| s.tags.iter().any(|t| t.as_str() == asked)).collect();
    if let Some((snapshot, which)) = best(&tagged) {
        let mut found = Found { snapshot, why: format!("the newest {which}snapshot tagged {asked}"), warnings: vec![] };
        found.warnings.extend(moved(snapshot, asked, git));
        return Ok(found);
    }
    let named: Vec<&Snapshot> = all.iter().copied().filter(|s| is_id(s, asked)).collect();
    match named.as_slice() {
        [] => {}
        [one] => return found(one, format!("its id is {}", one.header.id)),
        many => {
            let ids: Vec<&str> = many.iter().map(|s| s.header.id.as_str()).collect();
            return Err(Missing::At(format!("{asked:?} could be {}", ids.join(", ")), "write more of the id".into()));
        }
    }
    let of_commit = |commit: &str| -> Vec<&'a Snapshot> {
        let taken_at = |s: &&Snapshot| s.header.git_commit.as_deref().is_some_and(|c| c.starts_with(commit));
        all.iter().copied().filter(|s| is_candidate(s)).filter(taken_at).collect()
    };
    let hex = asked.len() >= COMMIT_DIGITS && asked.bytes().all(|b| b.is_ascii_hexdigit());
    if hex && let Some((snapshot, which)) = best(&of_commit(&asked.to_ascii_lowercase())) {
        let commit = snapshot.header.git_commit.as_deref().unwrap_or_default();
        return found(snapshot, format!("the newest {which}snapshot taken at commit {}", short(commit)));
    }
    if let Some(commit) = git(asked) {
        return match best(&of_commit(&commit.id)) {
            Some((snapshot, which)) => {
                found(snapshot, format!("the newest {which}snapshot taken at {asked} (commit {})", short(&commit.id)))
            }
            None => Err(no_snapshot_at(all, asked, &commit)),
        };
    }
    if let Some(time) = parse_time(asked, now) {
        let before: Vec<&Snapshot> = all.iter().copied().filter(|s| is_candidate(s) && s.header.time <= time).collect();
        return match best(&before) {
            Some((snapshot, which)) => found(snapshot, format!("the newest {which}snapshot at or before {asked}")),
            None => Err(Missing::At(
                format!("no snapshot is as old as {asked}"),
                all.iter().find(|s| is_candidate(s)).map_or_else(
                    || "take the first one with `lifeboat snapshot`".into(),
                    |s| format!("the oldest one is {}", s.header.id),
                ),
            )),
        };
    }
    Err(match all {
        [] => Missing::At("there is no snapshot yet".into(), "take the first one with `lifeboat snapshot`".into()),
        _ => Missing::Plain.unless_foreign(all, asked),
    })
}

impl Missing {
    /// Nothing at all has the name: what has one is named.
    fn unless_foreign(self, all: &[&Snapshot], asked: &str) -> Self {
        if asked.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && asked.starts_with("20") {
            return self;
        }
        let mut tags: Vec<&str> = Vec::new();
        for tag in all.iter().rev().filter(|s| is_candidate(s)).flat_map(|s| s.tags.iter()) {
            if !tags.contains(&tag.as_str()) {
                tags.push(tag.as_str());
            }
        }
        let near = crate::policy::nearest::nearest(asked, tags.iter().copied());
        let hint = match (near, tags.as_slice()) {
            (Some(near), _) => format!("did you mean {near}? `lifeboat rollback` lists where one can go"),
            (None, []) => "no snapshot has a tag; `lifeboat rollback` lists where one can go".into(),
            (None, tags) => {
                format!("there are {}; `lifeboat rollback` lists more", tags[..tags.len().min(5)].join(", "))
            }
        };
        Missing::At(format!("no snapshot, tag or commit is called {asked:?}, and it is no time"), hint)
    }
}

/// Whether one would go there of one's own accord: a snapshot that a rollback took first is none.
pub fn is_candidate(snapshot: &Snapshot) -> bool {
    snapshot.header.trigger != Trigger::Rollback
}

/// The newest complete one, or the newest; and which of both it is. One that a rollback took comes last.
fn best<'a>(of: &[&'a Snapshot]) -> Option<(&'a Snapshot, &'static str)> {
    let newest = |own: bool| of.iter().rev().copied().filter(move |s| is_candidate(s) == own);
    let of_kind = |own: bool| {
        let complete = newest(own).find(|s| s.header.outcome == Outcome::Complete);
        complete.map(|s| (s, "complete ")).or_else(|| newest(own).next().map(|s| (s, "")))
    };
    of_kind(true).or_else(|| of_kind(false))
}

fn is_id(snapshot: &Snapshot, text: &str) -> bool {
    let id = snapshot.header.id.as_str();
    id == text || (text.len() >= 8 && id.starts_with(text)) || (text.len() == 8 && id.ends_with(text))
}

fn short(commit: &str) -> &str {
    commit.get(..COMMIT_DIGITS + 3).unwrap_or(commit)
}

/// A git tag that names another commit today than the one that was recorded.
fn moved(snapshot: &Snapshot, tag: &str, git: &dyn Fn(&str) -> Option<Commit>) -> Option<String> {
    let recorded = snapshot.header.git_commit.as_deref()?;
    let today = git(&format!("refs/tags/{tag}"))?;
    (today.id != recorded).then(|| {
        format!(
            "git tag {tag} is at {} today; the snapshot was taken at {}, and that is what comes back",
            short(&today.id),
            short(recorded)
        )
    })
}

fn no_snapshot_at(all: &[&Snapshot], asked: &str, commit: &Commit) -> Missing {
    let mut near: Vec<&&Snapshot> = all.iter().filter(|s| is_candidate(s)).collect();
    near.sort_by_key(|s| (s.header.time - commit.time).abs());
    let near: Vec<String> = near
        .iter()
        .take(NEAREST)
        .map(|s| {
            let tags: Vec<&str> = s.tags.iter().map(|t| t.as_str()).collect();
            let tags = if tags.is_empty() { String::new() } else { format!(", tagged {}", tags.join(", ")) };
            format!("{} ({}{tags})", s.header.id, apart(s.header.time - commit.time))
        })
        .collect();
    let hint = match near.as_slice() {
        [] => "take a snapshot of what you want to come back to, before the next change".to_owned(),
        near => format!("nearest: {}", near.join("; ")),
    };
    let own = all.iter().rev().find(|s| !is_candidate(s) && s.header.git_commit.as_deref() == Some(&commit.id));
    let own = own.map_or_else(String::new, |s| format!(" but {}, which a rollback took first", s.header.id));
    Missing::At(format!("no snapshot was taken at {asked} (commit {}){own}", short(&commit.id)), hint)
}

fn apart(delta: TimeDelta) -> String {
    let text = crate::base::units::human_duration(delta.abs().to_std().unwrap_or_default());
    if delta < TimeDelta::zero() { format!("{text} before it") } else { format!("{text} after it") }
}
