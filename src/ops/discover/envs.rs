//! Env files: which there are, which keys the compose file needs, and which secrets stand in several of them.

use super::find::{Discovery, Find, Thing, Uncovered, texts};
use super::scene::{Scene, is_secret_name};
use std::collections::{BTreeMap, BTreeSet};

/// A secret is longer; a shorter value may be equal by chance.
const SECRET_LENGTH: usize = 8;

/// How what is said of env files that anybody may read begins.
pub const SECRETS_IN: &str = "the secrets in ";

pub(super) fn find(scene: &Scene<'_>, found: &mut Discovery) {
    if scene.env_files.is_empty() {
        return;
    }
    let paths: Vec<String> = scene.env_files.iter().map(|f| scene.short(&f.path)).collect();
    for file in &scene.env_files {
        if file.mode & 0o004 != 0 && file.entries.iter().any(|e| is_secret_name(&e.key)) {
            let name = scene.short(&file.path);
            found.uncovered.push(Uncovered::data(
                format!("{SECRETS_IN}{name}"),
                "every account of this host can read them, and a drill says so in red",
                format!("chmod o-r {}", file.path.display()),
            ));
        }
    }
    let mut fields = vec![("paths", texts(&paths))];
    let mut because = Vec::new();
    let required = required(scene);
    if !required.is_empty() {
        because.push("required: the compose files name these without a default.".to_owned());
        fields.push(("required", texts(&required)));
    }
    let same = same(scene);
    if !same.is_empty() {
        because.push("same: these stand in several places with one value today, and must go on doing so.".to_owned());
        fields.push(("same", toml::Value::Array(same.iter().map(texts).collect())));
    }
    let what = format!("env files: {}", paths.join(", "));
    let thing = Thing::Env(scene.env_files.iter().map(|f| f.path.clone()).collect());
    found.add("env", Find { name: String::new(), thing, what, because, fields });
}

/// Keys that the compose files interpolate without a default, and that an env file sets.
fn required(scene: &Scene<'_>) -> Vec<String> {
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for scalar in &scene.compose {
        let mut rest = scalar.value.as_str();
        while let Some(at) = rest.find("${") {
            // `$${NAME}` is the container's own.
            let escaped = rest[..at].ends_with('$');
            rest = &rest[at + 2..];
            let Some(end) = rest.find('}') else { break };
            let name = rest[..end].split(":?").next().unwrap_or_default();
            if !escaped && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty() {
                named.insert(name);
            }
        }
    }
    let set = |name: &&str| {
        scene.env_files.iter().any(|f| f.entries.iter().any(|e| e.key == *name && !e.value.expose().is_empty()))
    };
    named.into_iter().filter(set).map(str::to_owned).collect()
}

/// Secrets of one name that have one value in several files.
fn same(scene: &Scene<'_>) -> Vec<Vec<String>> {
    let mut groups: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for file in &scene.env_files {
        for entry in file.entries.iter().filter(|e| is_secret_name(&e.key) && e.value.expose().len() >= SECRET_LENGTH) {
            let place = format!("{}:{}", scene.short(&file.path), entry.key);
            groups.entry((&entry.key, entry.value.expose())).or_default().push(place);
        }
    }
    groups.into_values().filter(|places| places.len() > 1).collect()
}
