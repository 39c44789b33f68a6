//! The env files of a rollback: a secret that was changed since the snapshot stops it until somebody has chosen; the
//! files that will be there keep the policy's rules, and the database accepts their logins.

use super::plan::EnvSide;
use crate::base::ids::SourceName;
use crate::ops::OpsError;
use crate::ops::streams::SnapshotStreams;
use crate::ops::transaction::{ChosenKey, Stage};
use crate::policy::model::{SourcePolicy, SourceSpec};
use crate::repository::format::SourceEntry;
use crate::repository::reader::SnapshotReader;
use crate::sources::SourceError;
use crate::sources::env_merge::{self, Choices, Rotated, Side};
use crate::sources::files::env::EnvFile;
use crate::sources::postgres::check_logins;

/// What somebody answers who is asked for one key; nothing where nobody can be asked.
pub type Ask<'a> = &'a dyn Fn(&Rotated) -> Option<Side>;

impl From<EnvSide> for Side {
    fn from(side: EnvSide) -> Self {
        match side {
            EnvSide::Live => Side::Live,
            EnvSide::Snapshot => Side::Snapshot,
        }
    }
}

/// What becomes of the data that a snapshot has.
#[derive(Debug, Default)]
pub struct DataFate {
    pub returns: Vec<SourceName>,
    /// Of those that return, the ones of which newer files stay.
    pub adds: Vec<SourceName>,
    pub stays: Vec<SourceName>,
}

impl DataFate {
    /// Which value fits the data; none where a part of them returns and another stays.
    fn side(&self) -> Option<Side> {
        match (self.returns.is_empty(), self.stays.is_empty()) {
            (true, _) => Some(Side::Live),
            (false, true) => Some(Side::Snapshot),
            (false, false) => None,
        }
    }
}

pub fn names(sources: &[SourceName]) -> String {
    sources.iter().map(SourceName::as_str).collect::<Vec<_>>().join(", ")
}

fn keys_of(of_policy: &SourcePolicy) -> &[String] {
    match &of_policy.spec {
        SourceSpec::Env(spec) => spec.data_keys.as_slice(),
        _ => &[],
    }
}

/// The data keys of a source that differ: `KEY in /srv/app/.env`.
pub fn data_keys(
    (source, of_policy): (&SourceEntry, &SourcePolicy),
    reader: &SnapshotReader,
    stage: &Stage<'_>,
) -> Result<Vec<String>, OpsError> {
    if keys_of(of_policy).is_empty() || source.streams.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |e| stage.failed(&source.name, e);
    let streams = SnapshotStreams::new(reader, source, &stage.run.cancel);
    let captured = env_merge::captured(&streams).map_err(|e| streams.take_damage().unwrap_or_else(|| failed(e)))?;
    let live = env_merge::live(&captured).map_err(failed)?;
    let compared = env_merge::compare(&captured, &live, &stage.policy.app, keys_of(of_policy));
    let differ = compared.rotated.iter().filter(|r| r.data_key);
    Ok(differ.map(|r| format!("{} in {}", r.key, r.file.display())).collect())
}

/// What was decided for one source.
#[derive(Default)]
pub struct Decided {
    pub chosen: Vec<ChosenKey>,
    /// For people.
    pub lines: Vec<String>,
    /// What will be there.
    pub files: Vec<EnvFile>,
}

/// Decides for every secret that differs, and holds the outcome against the rules.
pub fn decide(
    (source, of_policy): (&SourceEntry, &SourcePolicy),
    reader: &SnapshotReader,
    stage: &Stage<'_>,
    (side, data): (Option<EnvSide>, &DataFate),
    ask: Ask<'_>,
) -> Result<Decided, OpsError> {
    let failed = |e| stage.failed(&source.name, e);
    let streams = SnapshotStreams::new(reader, source, &stage.run.cancel);
    let captured = env_merge::captured(&streams).map_err(|e| streams.take_damage().unwrap_or_else(|| failed(e)))?;
    let live = env_merge::live(&captured).map_err(failed)?;
    let compared = env_merge::compare(&captured, &live, &stage.policy.app, keys_of(of_policy));
    let mut decided = Decided::default();
    for (file, why) in &compared.unread {
        decided.lines.push(format!("{} cannot be compared: {why}", file.display()));
    }
    let fits = data.side();
    let mut choices = env_merge::choose(&compared.rotated, Side::Snapshot, fits.unwrap_or(Side::Snapshot));
    let (mut unanswered, mut of_data): (Vec<String>, Vec<String>) = Default::default();
    for rotated in compared.rotated.iter().filter(|r| r.asks() || (r.data_key && fits.is_none())) {
        let at = || format!("{} in {}", rotated.key, rotated.file.display());
        match side.map(Side::from).or_else(|| ask(rotated)) {
            Some(side) => {
                choices.insert((rotated.file.clone(), rotated.key.clone()), side);
            }
            None if rotated.data_key => of_data.push(at()),
            None => unanswered.push(at()),
        }
    }
    if !of_data.is_empty() {
        return Err(OpsError::usage(
            format!(
                "{} belongs to the data and was changed since the snapshot, and only a part of the data returns: {} \
                 returns, {} stays",
                of_data.join(", "),
                names(&data.returns),
                names(&data.stays)
            ),
            "let all data go one way (--keep-data; or name what returns with --only), or choose the value that stands \
             afterwards: --env live or --env snapshot; nothing was changed",
        ));
    }
    if !unanswered.is_empty() {
        return Err(OpsError::usage(
            format!("secrets were changed since the snapshot: {}", unanswered.join(", ")),
            "choose which values stand afterwards: --env live or --env snapshot; nothing was changed",
        ));
    }
    for rotated in &compared.rotated {
        let of_data = match (rotated.data_key, fits) {
            (true, Some(_)) => ", as it belongs to the data",
            (true, None) => ", as was chosen: what was written under the other one cannot be read with it",
            (false, _) => "",
        };
        if let Some(side) = choices.get(&(rotated.file.clone(), rotated.key.clone())) {
            let which = if *side == Side::Live { "today's value stays" } else { "the snapshot's value returns" };
            decided.lines.push(format!("{} in {}: {which}{of_data}", rotated.key, rotated.file.display()));
        }
    }
    if fits == Some(Side::Snapshot) && !data.adds.is_empty() && compared.rotated.iter().any(|r| r.data_key) {
        decided.lines.push(format!(
            "newer files of {} stay: what was written under today's key cannot be read with the snapshot's",
            names(&data.adds)
        ));
    }
    decided.chosen = list(&source.name, &choices);
    decided.files = env_merge::resulting(&captured, &live, &choices).map_err(failed)?;
    let broken: Vec<String> = env_merge::check(&decided.files, of_policy, &stage.policy.app)
        .into_iter()
        .filter(|check| !check.ok)
        .map(|check| check.problem.unwrap_or_else(|| format!("{}: {}", check.rule, check.keys.join(", "))))
        .collect();
    if !broken.is_empty() {
        return Err(OpsError::usage(
            format!(
                "the env files that would be there break the rules of source {:?}: {}",
                source.name.as_str(),
                broken.join("; ")
            ),
            "choose the other values with --env, correct the policy's rules, or leave env out with --only",
        ));
    }
    Ok(decided)
}

fn list(source: &SourceName, choices: &Choices) -> Vec<ChosenKey> {
    let one = |((file, key), side): (&(std::path::PathBuf, String), &Side)| ChosenKey {
        source: source.clone(),
        file: file.clone(),
        key: key.clone(),
        side: *side,
    };
    choices.iter().map(one).collect()
}

/// Tries the logins of the files that will be there at every database of the policy; what could not be tried, in words.
pub fn logins(files: &[EnvFile], stage: &Stage<'_>) -> Result<Vec<String>, OpsError> {
    let mut notes = Vec::new();
    for source in stage.policy.sources.iter().filter(|s| matches!(s.spec, SourceSpec::Postgres(_))) {
        let tried = check_logins(source, &stage.policy.app, &stage.places, files, &stage.run.cancel);
        let tried = tried.map_err(|e| match e {
            SourceError::Cancelled(e) => e.into(),
            e => OpsError::usage(
                crate::repository::chain::full_text(&e),
                "the live database keeps its passwords: choose today's value with --env live",
            ),
        })?;
        let noted = tried.into_iter().filter_map(|l| Some((l.key, l.note?)));
        notes.extend(noted.map(|(key, note)| format!("the login in {key} was not tried: {note}")));
    }
    Ok(notes)
}
