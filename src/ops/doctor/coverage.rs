//! What the application is made of, held against the policy: what nothing captures would be gone.

use super::taken::{Cover, Taken};
use super::{Doctor, Verdict};
use crate::ops::OpsError;
use crate::ops::discover::{self, Discovery, Find, OWN_FILES, SECRETS_IN, Thing, Weight, Where};
use crate::policy::Policy;
use crate::policy::model::{Databases, SourceSpec, Target};
use std::path::{Path, PathBuf};

/// How a gap of kind [`GapKind::Missing`] begins.
pub(in crate::ops) const NO_SOURCE: &str = "no source captures ";

/// Something of the application that would be gone.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::ops) struct Gap {
    pub kind: GapKind,
    pub what: String,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum GapKind {
    /// No source captures it.
    Missing,
    /// Somebody else's service, of which the policy does not speak.
    External,
    /// Not a thing that a source is easily written for.
    Loose,
    /// Others may read what is secret.
    Permissions,
}

/// Databases, volumes, paths, sites and certificates that no source captures; env files that anybody may read.
pub(in crate::ops) fn gaps(policy: &Policy, found: &Discovery) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let taken = Taken::of(policy, found);
    let missing = found.finds.iter().flat_map(|find| missing(policy, &taken, find)).chain(without_git(&taken, found));
    gaps.extend(missing.map(|(what, hint)| Gap { kind: GapKind::Missing, what, hint: Some(hint) }));
    for external in &found.external {
        let name = external.name.split(':').next().unwrap_or_default().to_lowercase();
        if !policy.external.iter().any(|e| e.to_lowercase().contains(&name)) {
            let what = format!(
                "{} ({}) is not ours to back up, and the policy does not say so",
                external.name, external.seen_in
            );
            let hint =
                format!("[[external]] with name = {:?}, so that plans and the recovery kit say it", external.name);
            gaps.push(Gap { kind: GapKind::External, what, hint: Some(hint) });
        }
    }
    for one in found.uncovered.iter().filter(|u| u.weight == Weight::Data) {
        if one.unseen.as_ref().is_some_and(|path| taken.of_path(path) == Cover::Whole) {
            continue;
        }
        let (what, hint) = (format!("{}: {}", one.what, one.why), one.hint.clone());
        if one.what.starts_with(SECRETS_IN) {
            gaps.push(Gap { kind: GapKind::Permissions, what, hint });
        } else if !(one.what == OWN_FILES && has_files(policy)) {
            gaps.push(Gap { kind: GapKind::Loose, what, hint });
        }
    }
    gaps
}

impl Doctor<'_> {
    /// What of the application no source captures.
    pub(super) fn coverage(&mut self) -> Result<Discovery, OpsError> {
        let found = discover::discover(&self.policy.app, self.run)?;
        let gaps = gaps(self.policy, &found);
        if gaps.is_empty() {
            self.ok("coverage", format!("{} things found, each captured by a source", found.finds.len()));
        }
        for Gap { kind, what, hint } in gaps {
            let (check, verdict) = match kind {
                GapKind::Missing => ("coverage", Verdict::Problem),
                GapKind::External | GapKind::Loose => ("coverage", Verdict::Warning),
                GapKind::Permissions => ("permissions", Verdict::Problem),
            };
            self.add(check, verdict, what, hint);
        }
        Ok(found)
    }
}

/// A source of kind `files` that takes something of the application's folder.
fn has_files(policy: &Policy) -> bool {
    let within = |paths: &[String]| paths.iter().any(|p| Path::new(p).starts_with(&policy.app.root));
    policy.sources.iter().any(|s| matches!(&s.spec, SourceSpec::Files(spec) if within(&spec.paths)))
}

/// What of a find no source captures, and what would capture it.
fn missing(policy: &Policy, taken: &Taken<'_>, find: &Find) -> Vec<(String, String)> {
    let none = |what: &str, fields: &str| {
        vec![(format!("{NO_SOURCE}{what}"), format!("add a [[source]] with kind = \"{}\"{fields}", find.thing.kind()))]
    };
    match &find.thing {
        Thing::Postgres { at, own, databases } => {
            let sources = policy.sources.iter().filter_map(|s| match &s.spec {
                SourceSpec::Postgres(spec) if is_at(&spec.target, at) => Some(&spec.databases),
                _ => None,
            });
            let taken: Vec<&Databases> = sources.collect();
            if taken.is_empty() {
                return none(&find.what, &place(at));
            }
            let takes = |database: &String| {
                taken.iter().any(|t| match t {
                    Databases::All => true,
                    Databases::Own => database == own,
                    Databases::Named(names) => names.contains(database),
                })
            };
            let left: Vec<&str> = databases.iter().filter(|d| !takes(d)).map(String::as_str).collect();
            match left.as_slice() {
                [] => Vec::new(),
                some => vec![(
                    format!("{NO_SOURCE}database {} in {}", some.join(", "), describe(at)),
                    "name it in the source's databases = […], or take all with [\"*\"]".to_owned(),
                )],
            }
        }
        Thing::Redis { at } => {
            let is = |s: &SourceSpec| matches!(s, SourceSpec::Redis(spec) if is_at(&spec.target, at));
            if policy.sources.iter().any(|s| is(&s.spec)) { Vec::new() } else { none(&find.what, &place(at)) }
        }
        Thing::Command { at, engine } => {
            let is = |s: &SourceSpec| matches!(s, SourceSpec::Command(spec) if is_at(&spec.target, at));
            match policy.sources.iter().any(|s| is(&s.spec)) {
                true => Vec::new(),
                false => none(&find.what, &format!("{} and the export of {engine}", place(at))),
            }
        }
        Thing::Volumes(volumes) => {
            let takes = |name: &String| {
                policy
                    .sources
                    .iter()
                    .any(|s| matches!(&s.spec, SourceSpec::Volume(spec) if spec.volumes.contains(name)))
            };
            let left = volumes.iter().filter(|(short, engine)| !takes(short) && !takes(engine));
            left.flat_map(|(short, _)| none(&format!("volume {short}"), &format!(", volumes = [{short:?}]"))).collect()
        }
        Thing::Path(path) => missing_path(taken, path, &|path| none(path, &format!(", paths = [{path:?}]"))),
        Thing::Env(paths) | Thing::Nginx { paths, .. } | Thing::Certificates(paths) => {
            let (gone, rest): (Vec<&PathBuf>, Vec<&PathBuf>) =
                paths.iter().partition(|p| taken.of_path(p) == Cover::Nothing);
            let gone: Vec<String> = gone.iter().map(|p| p.display().to_string()).collect();
            let whole = (!gone.is_empty()).then(|| none(&gone.join(", "), &format!(", paths = {gone:?}")));
            let parts = rest.into_iter().flat_map(|path| missing_path(taken, path, &|path| none(path, "")));
            whole.into_iter().flatten().chain(parts).collect()
        }
    }
}

/// What of one path no source captures.
fn missing_path(taken: &Taken<'_>, path: &Path, none: &dyn Fn(&str) -> Vec<(String, String)>) -> Vec<(String, String)> {
    const SAID: usize = 5;
    match taken.of_path(path) {
        Cover::Whole => Vec::new(),
        Cover::Nothing => none(&path.display().to_string()),
        Cover::Part(left) => {
            let more = if left.len() > SAID { format!(" and {} more", left.len() - SAID) } else { String::new() };
            let names: Vec<String> = left.iter().take(SAID).map(|p| p.display().to_string()).collect();
            vec![(
                format!("{NO_SOURCE}{}{more}: of {} a source names only a part", names.join(", "), path.display()),
                format!("name {:?} itself in paths = […]; exclude = […] leaves out what need not come back", path),
            )]
        }
    }
}

/// What git alone keeps, where the policy does not take what git has.
fn without_git(taken: &Taken<'_>, found: &Discovery) -> Vec<(String, String)> {
    if taken.git {
        return Vec::new();
    }
    let left = found.by_git.iter().filter(|path| taken.of_path(path) != Cover::Whole);
    let gap = |path: &PathBuf| {
        let what = format!("{NO_SOURCE}{}: git keeps it, and the source of kind \"git\" is off", path.display());
        (what, "take `enabled = false` away, or name it in a source of kind \"files\"".to_owned())
    };
    left.map(gap).collect()
}

fn place(at: &Where) -> String {
    match at {
        Where::Service { service, .. } => format!(", service = {service:?}"),
        Where::Container(name) => format!(", container = {name:?}"),
        Where::Url(url) => format!(", url = {url:?}"),
        Where::Host => String::new(),
    }
}

fn describe(at: &Where) -> String {
    match at {
        Where::Service { service, .. } => format!("service {service:?}"),
        Where::Container(name) => format!("container {name:?}"),
        Where::Url(url) => url.clone(),
        Where::Host => "this host".to_owned(),
    }
}

/// Whether a source's target is this server. A URL may lead into a container, so it is given the benefit of the doubt.
fn is_at(target: &Target, at: &Where) -> bool {
    match (target, at) {
        (Target::Service(name), Where::Service { service, .. }) => name == service,
        (Target::Container(name), Where::Service { container, .. }) => name == container,
        (Target::Container(name), Where::Container(container)) => name == container,
        (Target::Url(_), _) | (Target::Host, Where::Url(_) | Where::Host) => true,
        _ => false,
    }
}
