//! Finding out what an application is made of: its compose project, stores, volumes, files, nginx sites, certificates and
//! the services of others that it uses. `init` writes a policy from it, `doctor` holds a policy against it.
//!
//! Nothing is changed, nothing is asked that can be found out, and no value of a variable leaves this module: passwords
//! are referred to by the key that they stand under. Whatever is found and not captured is said.

mod defined;
mod envs;
mod find;
mod mounts;
mod outside;
mod scene;
mod servers;
mod stores;
mod tree;
mod urls;
mod web;
mod wellness;
mod yaml;

pub use envs::SECRETS_IN;
pub use find::{Discovery, External, Find, Thing, Uncovered, Weight, Well, Where};
pub use mounts::OWN_FILES;
pub use scene::is_secret_name;

use crate::ops::{OpsError, Run};
use crate::policy::model::App;
use find::{text, texts};
use scene::{Scene, is_usual_compose_file};
use std::collections::HashSet;
use std::path::PathBuf;

/// An application of which nothing but its folder is known.
pub fn app_of(name: crate::base::ids::PolicyName, root: PathBuf) -> App {
    App {
        name,
        root,
        compose_files: Vec::new(),
        env_files: Vec::new(),
        profiles: Vec::new(),
        project: None,
        project_dir: None,
    }
}

/// Looks at everything that belongs to an application.
pub fn discover(app: &App, run: &Run) -> Result<Discovery, OpsError> {
    let mut scene = Scene::look(app, run)?;
    let mut found = Discovery {
        project: scene.project.as_ref().map(|p| p.name.clone()),
        app: app_fields(&scene),
        compose_files: scene.compose_files.clone(),
        git: scene.kept.is_some(),
        uncovered: std::mem::take(&mut scene.problems),
        ..Discovery::default()
    };
    servers::find(&scene, &mut found)?;
    envs::find(&scene, &mut found);
    web::find(&scene, &mut found)?;
    mounts::find(&scene, &mut found)?;
    mounts::rest(&scene, &mut found);
    wellness::find(&scene, &mut found);
    found.kept = scene.kept.take();
    run.cancel.check()?;
    // Several services may have the same mounted, several sites the same included.
    let mut told = HashSet::new();
    found.uncovered.retain(|one| told.insert((one.what.clone(), one.why.clone())));
    Ok(found)
}

/// What Compose would not find by itself.
fn app_fields(scene: &Scene<'_>) -> Vec<(&'static str, toml::Value)> {
    let mut fields = Vec::new();
    let usual = scene.project_dir == scene.root && scene.compose_files.iter().all(|f| is_usual_compose_file(f));
    if !scene.compose_files.is_empty() && !usual && scene.project.is_some() {
        fields.push(("compose_files", texts(scene.compose_files.iter().map(|f| scene.short(f)))));
    }
    let labels = scene.project.as_ref().map(|p| p.environment_files.as_slice()).unwrap_or_default();
    if !labels.is_empty() {
        fields.push(("env_files", texts(labels.iter().map(|f| scene.short(f)))));
    }
    if scene.project_dir != scene.root && scene.project.is_some() {
        fields.push(("project_dir", text(scene.short(&scene.project_dir))));
    }
    fields
}
