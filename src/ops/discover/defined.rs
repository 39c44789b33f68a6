//! The services that the compose files define, with what would be mounted into them: of those that have no container now
//! (stopped and removed, never started, behind a profile) the engine knows nothing.
//!
//! Compose itself says it (`compose config`, with every profile); where it cannot, the files are read here. Of the values
//! only images, commands, mounts and `PGDATA` are looked at.

use super::find::Uncovered;
use super::scene::{Scene, Service, clean};
use super::stores::{self, Traits};
use crate::base::yaml;
use crate::ops::OpsError;
use crate::place::inspect::Mount;
use crate::place::{Compose, PlaceError};
use crate::repository::chain::full_text;
use crate::sources::compose::described;
use crate::sources::project::compose_settings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Services by name, and volumes: the engine's name by the one in the file.
#[derive(Debug, Default)]
pub(super) struct Defined {
    services: BTreeMap<String, Service>,
    pub volumes: BTreeMap<String, String>,
}

impl Defined {
    /// What Compose says, and what the files say where it says nothing.
    pub fn look(scene: &mut Scene<'_>) -> Result<Self, OpsError> {
        let mut defined = Defined::default();
        if scene.compose_files.is_empty() {
            return Ok(defined);
        }
        let files: Vec<Value> = scene.compose_texts.iter().filter_map(|text| yaml::read(text).ok()).collect();
        let mut project = described(scene.app, &scene.project_dir, scene.project.as_ref());
        let settings = compose_settings(&scene.project_dir, &project.env_files);
        let is_named = scene.project.is_some() || scene.app.project.is_some() || settings.project.is_some();
        if let Some(name) = files.iter().find_map(|file| file["name"].as_str()).filter(|_| !is_named) {
            project.name = name.to_owned();
        }
        project.files.clone_from(&scene.compose_files);
        project.profiles = vec!["*".to_owned()];
        let config = Compose::find(&scene.run.cancel).and_then(|compose| compose.config(&project));
        match config {
            Ok(config) => defined.add(&config, &scene.project_dir, &project.name),
            Err(PlaceError::ToolMissing { .. }) => {}
            Err(e) => {
                scene.run.cancel.check()?;
                let hint = "mend what it names: a restore starts the services with Compose";
                scene.problems.push(Uncovered::note("the project as Compose reads it", full_text(&e), hint));
            }
        }
        files.iter().for_each(|file| defined.add(file, &scene.project_dir, &project.name));
        Ok(defined)
    }

    /// The services, by name.
    pub fn take_services(&mut self) -> impl Iterator<Item = Service> {
        std::mem::take(&mut self.services).into_values()
    }

    /// Takes what is not known yet.
    fn add(&mut self, config: &Value, dir: &Path, project: &str) {
        for (short, volume) in entries(&config["volumes"]) {
            let is_external = volume["external"].as_bool().unwrap_or(volume["external"].is_object());
            let name = volume["name"].as_str().or(volume["external"]["name"].as_str()).map(str::to_owned);
            let usual = || if is_external { short.to_owned() } else { format!("{project}_{short}") };
            self.volumes.entry(short.to_owned()).or_insert_with(|| name.unwrap_or_else(usual));
        }
        for (name, service) in entries(&config["services"]) {
            if self.services.contains_key(name) {
                continue;
            }
            let service = self.service(name, service, dir);
            self.services.insert(name.to_owned(), service);
        }
    }

    fn service(&self, name: &str, given: &Value, dir: &Path) -> Service {
        let image = given["image"].as_str().unwrap_or_default().to_owned();
        let command = match &given["command"] {
            Value::Array(words) => words.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::String(text) => vec![text.clone()],
            _ => Vec::new(),
        };
        let environment = &given["environment"];
        let listed = environment.as_array().into_iter().flatten().filter_map(Value::as_str);
        let pgdata = environment["PGDATA"].as_str().or_else(|| listed.filter_map(|e| e.strip_prefix("PGDATA=")).next());
        let pgdata = pgdata.map(str::to_owned);
        let given = given["volumes"].as_array().into_iter().flatten();
        let mounts: Vec<Mount> = given.filter_map(|m| self.mount(m, dir)).collect();
        let traits = Traits {
            image: &image,
            command: &command,
            pgdata: pgdata.as_deref(),
            mounts: mounts.iter().filter(|m| m.writable).map(|m| m.destination.as_path()).collect(),
        };
        let store = stores::store(&traits);
        Service { name: name.to_owned(), image, command, store, pgdata, mounts, container: None }
    }

    /// In the long form as Compose prints it, or in a file's short one. One that depends on a variable is not told.
    fn mount(&self, given: &Value, dir: &Path) -> Option<Mount> {
        let (kind, source, destination, writable) = match given {
            Value::String(text) => {
                let parts: Vec<&str> = text.split(':').collect();
                let (source, destination, mode) = match parts.as_slice() {
                    [source, destination] => (*source, *destination, ""),
                    [source, destination, mode] => (*source, *destination, *mode),
                    _ => return None,
                };
                let kind = if source.starts_with(['/', '.', '~']) { "bind" } else { "volume" };
                (kind, source, destination, !mode.split(',').any(|word| word == "ro"))
            }
            given => {
                let read_only = given["read_only"].as_bool().unwrap_or(false);
                (given["type"].as_str()?, given["source"].as_str()?, given["target"].as_str()?, !read_only)
            }
        };
        if source.contains('$') || source.starts_with('~') {
            return None;
        }
        let is_volume = kind == "volume";
        let name = is_volume.then(|| self.volumes.get(source).cloned().unwrap_or_else(|| source.to_owned()));
        let source = if is_volume { PathBuf::new() } else { clean(&dir.join(source)) };
        Some(Mount { kind: kind.to_owned(), name, source, destination: destination.into(), writable })
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::super::stores::Store;
    use super::*;

    const FILE: &str = "
services:
  web: {image: nginx, volumes: ['./site:/srv:ro', 'up:/data', '${HOME}/x:/x', '/anonymous']}
  old:
    image: ours
    profiles: [tools]
    environment: ['PGDATA=/srv/pg']
    volumes:
      - {type: volume, source: out, target: /srv/pg}
      - {type: bind, source: ../beside, target: /b}
volumes: {up: {}, out: {external: true}, named: {name: zwei}}
";

    #[test]
    fn services_are_read_with_what_is_mounted_into_them() {
        let mut defined = Defined::default();
        defined.add(&yaml::read(FILE).unwrap(), Path::new("/opt/shop"), "shop");
        let of = |short: &str| defined.volumes[short].clone();
        assert_eq!([of("up"), of("out"), of("named")], ["shop_up", "out", "zwei"]);
        // What Compose itself has said is not said again by a file.
        let json = serde_json::json!({"services": {"web": {"image": "other"}, "new": {"volumes": [
            {"type": "volume", "source": "up", "target": "/u", "volume": {}}, {"type": "volume", "target": "/none"}]}}});
        defined.add(&json, Path::new("/opt/shop"), "shop");
        let services: BTreeMap<String, Service> = defined.take_services().map(|s| (s.name.clone(), s)).collect();
        let mounts = |name: &str| -> Vec<(String, String, bool)> {
            let all = services[name].mounts.iter();
            all.map(|m| (m.name.clone().unwrap_or(m.source.display().to_string()), m.kind.clone(), m.writable))
                .collect()
        };
        let mount = |name: &str, kind: &str, writable| (name.to_owned(), kind.to_owned(), writable);
        assert_eq!(mounts("web"), [mount("/opt/shop/site", "bind", false), mount("shop_up", "volume", true)]);
        assert_eq!(mounts("old"), [mount("out", "volume", true), mount("/opt/beside", "bind", true)]);
        assert_eq!(mounts("new"), [mount("shop_up", "volume", true)]);
        assert_eq!((services["old"].store, services["web"].image.as_str()), (Some(Store::Postgres), "nginx"));
    }
}
