//! The images of a stack, put back: the name that the compose file uses is given to the very image that ran.
//!
//! Before anything goes down each recorded image is here under its snapshot's pin, and today's under a name of ours too
//! (`…:<transaction>-old`), for it would have none once its own is taken. Switching and going back move the one name in
//! between. What the engine is asked is asked anew in every step, so that each may have been begun before.
//!
//! Taking the last name of an image away removes it: an image that had none gets the pin and keeps it.

use super::pin::{pin_repository, pin_tag};
use super::running::Service;
use crate::place::{Command, Docker, PlaceError};
use crate::policy::model::App;
use crate::sources::SourceError;
use crate::sources::placing::{Scene, Stored};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where a recorded image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum From {
    /// It is on this machine.
    Here,
    /// It is in the snapshot, in that stream.
    Saved(String),
    /// A registry has it, by that digest.
    Pulled(String),
    /// Nobody has it: its services are built again.
    Built,
}

/// One recorded image, and the name by which the compose file asks for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub services: Vec<String>,
    /// `repository:tag`; absent where the compose file names the image by its digest or id, which needs no name.
    pub name: Option<(String, String)>,
    pub id: String,
    pub platform: String,
    pub from: From,
    /// The image that has the name when the plan is made.
    pub today: Option<String>,
    /// The snapshot's pin: repository and tag.
    pub pin: (String, String),
    /// The snapshot made the pin, and it goes with the snapshot.
    pub is_pinned: bool,
    /// Our name for today's image.
    pub old: (String, String),
}

/// What a plan says of images.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub wanted: Vec<Wanted>,
    pub lines: Vec<String>,
    pub warnings: Vec<String>,
}

/// Looks where each recorded image is. `services`: those that come up, before those that did not run.
pub(super) fn plan(
    scene: &Scene<'_>,
    stored: &Stored<'_>,
    docker: &Docker,
    app: &App,
    services: &[Service],
) -> Result<Found, SourceError> {
    let mut found = Found::default();
    let mut ordered: Vec<&Service> = services.iter().collect();
    ordered.sort_by_key(|s| s.scale == 0);
    for service in ordered {
        scene.cancel.check()?;
        let name = split_name(&service.image);
        let same = |w: &&mut Wanted| w.name == name && (name.is_some() || w.id == service.image_id);
        if let Some(known) = found.wanted.iter_mut().find(same) {
            if known.id != service.image_id && service.scale > 0 {
                found.warnings.push(format!(
                    "service {} ran another build of {} than service {}: it gets the other's",
                    service.service, service.image, known.services[0]
                ));
            }
            known.services.push(service.service.clone());
            continue;
        }
        let from = locate(stored, docker, service)?;
        if from == From::Built && service.scale == 0 {
            continue;
        }
        let repository = pin_repository(&app.name, &service.service);
        let recorded = service.pin.as_deref().and_then(split_name).filter(|(r, _)| r.starts_with("lifeboat/"));
        let today = match &name {
            Some((repository, tag)) => docker.image(&format!("{repository}:{tag}"))?.map(|image| image.id),
            None => None,
        };
        let wanted = Wanted {
            services: vec![service.service.clone()],
            name,
            id: service.image_id.clone(),
            platform: service.platform.clone(),
            from,
            today,
            is_pinned: recorded.is_some(),
            pin: recorded.unwrap_or_else(|| (repository.clone(), pin_tag(stored.snapshot))),
            old: (repository, format!("{}-old", scene.id.to_ascii_lowercase())),
        };
        say(&wanted, service, &mut found.lines, &mut found.warnings);
        found.wanted.push(wanted);
    }
    Ok(found)
}

fn locate(stored: &Stored<'_>, docker: &Docker, service: &Service) -> Result<From, SourceError> {
    // A pin is a name of ours, and only as good as what it names.
    if docker.image(&service.image_id)?.is_some() {
        return Ok(From::Here);
    }
    if let Some(stream) = &service.saved
        && stored.streams.info(stream).is_ok()
    {
        return Ok(From::Saved(stream.clone()));
    }
    Ok(service.digests.first().map_or(From::Built, |digest| From::Pulled(digest.clone())))
}

fn say(wanted: &Wanted, service: &Service, lines: &mut Vec<String>, warnings: &mut Vec<String>) {
    let (image, id) = (&service.image, short(&wanted.id));
    match &wanted.from {
        From::Here if wanted.name.is_none() || wanted.today.as_ref() == Some(&wanted.id) => {
            lines.push(format!("image {image} is {id} as it was"));
        }
        From::Here => lines.push(format!("image {image} becomes {id} again{}", instead(wanted))),
        From::Saved(_) => {
            lines.push(format!("image {image} becomes {id} again, from the snapshot{}", instead(wanted)));
        }
        From::Pulled(digest) => {
            lines.push(format!("image {image} becomes {id} again, pulled as {digest}{}", instead(wanted)));
            warnings.push(format!("image {image} is not on this machine any more: {digest} has to be pulled"));
        }
        From::Built => warnings.push(format!(
            "image {image} ({id}) is gone, in the snapshot too: service {} is built again, which is not identical",
            service.service
        )),
    }
}

fn instead(wanted: &Wanted) -> String {
    wanted.today.as_ref().map_or_else(String::new, |id| format!(" (today it is {})", short(id)))
}

pub(super) fn short(id: &str) -> &str {
    id.strip_prefix("sha256:").and_then(|hex| hex.get(..12)).unwrap_or(id)
}

/// Repository and tag of an image's name; nothing for a digest or an id.
fn split_name(image: &str) -> Option<(String, String)> {
    if image.is_empty() || image.contains('@') || image.starts_with("sha256:") {
        return None;
    }
    // The colon of a registry's port stands before a slash.
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => Some((repository.to_owned(), tag.to_owned())),
        _ => Some((image.to_owned(), "latest".to_owned())),
    }
}

impl Wanted {
    fn full_name(&self) -> Option<String> {
        self.name.as_ref().map(joined)
    }

    /// Whether its name has to move.
    pub fn moves(&self) -> bool {
        self.from != From::Built && self.today.as_ref() != Some(&self.id)
    }

    fn current(&self, docker: &Docker) -> Result<Option<String>, PlaceError> {
        match self.full_name() {
            Some(name) => Ok(docker.image(&name)?.map(|image| image.id)),
            None => Ok(None),
        }
    }

    /// Nobody has built or pulled under the name since the plan.
    pub fn check(&self, docker: &Docker) -> Result<(), SourceError> {
        let current = self.current(docker)?;
        if current == self.today || current.as_ref() == Some(&self.id) {
            return Ok(());
        }
        Err(SourceError::hint(
            format!("image {} is not the one of the plan any more", self.full_name().unwrap_or_default()),
            "somebody built or pulled it meanwhile: make a new plan",
        ))
    }

    pub fn prepare(
        &self,
        scene: &Scene<'_>,
        stored: &Stored<'_>,
        docker: &Docker,
        timeout: Duration,
    ) -> Result<(), SourceError> {
        self.check(docker)?;
        let is_here = |docker: &Docker| Ok::<bool, SourceError>(docker.image(&self.id)?.is_some());
        if self.from != From::Built && !is_here(docker)? {
            self.fetch(scene, stored, docker, timeout)?;
            if !is_here(docker)? {
                return Err(SourceError::problem(format!("what came for image {} is another image", short(&self.id))));
            }
        }
        if self.from != From::Built {
            docker.tag_image(&self.id, &self.pin.0, &self.pin.1)?;
        }
        if let Some(today) = self.today.as_ref().filter(|today| **today != self.id) {
            docker.tag_image(today, &self.old.0, &self.old.1)?;
        }
        Ok(())
    }

    fn fetch(
        &self,
        scene: &Scene<'_>,
        stored: &Stored<'_>,
        docker: &Docker,
        timeout: Duration,
    ) -> Result<(), SourceError> {
        match &self.from {
            From::Saved(stream) => {
                let failed = |source| SourceError::File { action: "read", path: stream.into(), source };
                let tar = stored.streams.open(stream).map_err(failed)?;
                let limits = Command::new(["docker load"]).timeout(timeout).cancel(scene.cancel);
                Ok(docker.load_images(tar, &limits)?)
            }
            From::Pulled(digest) => docker.pull_image(digest, &self.platform).map_err(|e| match e {
                PlaceError::Cancelled(cancelled) => cancelled.into(),
                e => {
                    let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
                    SourceError::hint(
                        format!("{e}{cause}"),
                        format!("where its registry asks for a password, `docker pull {digest}` first"),
                    )
                }
            }),
            From::Here => Err(SourceError::problem(format!(
                "image {} was on this machine when the plan was made, and is gone",
                short(&self.id)
            ))),
            From::Built => Ok(()),
        }
    }

    pub fn switch(&self, docker: &Docker) -> Result<(), SourceError> {
        match &self.name {
            Some((repository, tag)) if self.moves() => {
                self.check(docker)?;
                Ok(docker.tag_image(&self.id, repository, tag)?)
            }
            _ => Ok(()),
        }
    }

    /// The name has today's image again. `false`: it was nobody's name, and a container holds on to it.
    pub fn back(&self, docker: &Docker) -> Result<bool, SourceError> {
        let Some(name) = &self.name else { return Ok(true) };
        let current = self.current(docker)?;
        // Neither we nor a build of ours gave it another image.
        let is_ours = self.from == From::Built || (self.moves() && current.as_ref() == Some(&self.id));
        match &self.today {
            _ if current == self.today || !(is_ours || current.is_none()) => Ok(true),
            Some(today) => docker.tag_image(today, &name.0, &name.1).map(|()| true).map_err(Into::into),
            None => Ok(docker.release_image_name(&joined(name))?),
        }
    }

    /// The recorded image loses the pin, where its snapshot had none and something else names it.
    fn release_pin(&self, docker: &Docker) -> Result<bool, SourceError> {
        let pin = joined(&self.pin);
        let is_named = docker.image(&pin)?.is_some_and(|image| image.tags.len() > 1);
        if self.is_pinned || !is_named { Ok(true) } else { Ok(docker.release_image_name(&pin)?) }
    }

    /// Takes away what [`Wanted::prepare`] brought. A pin of the snapshot stays: its image is here again.
    pub fn discard_new(&self, docker: &Docker) -> Result<bool, SourceError> {
        let mut gone = docker.release_image_name(&joined(&self.old))?;
        gone &= match &self.from {
            From::Pulled(digest) if !self.is_pinned => {
                docker.release_image_name(&joined(&self.pin))? & docker.release_image_name(digest)?
            }
            _ => self.release_pin(docker)?,
        };
        Ok(gone)
    }

    /// Today's image loses our name, and goes with it unless its safety snapshot has pinned it.
    pub fn discard_old(&self, docker: &Docker) -> Result<bool, SourceError> {
        Ok(docker.release_image_name(&joined(&self.old))? & self.release_pin(docker)?)
    }
}

fn joined((repository, tag): &(String, String)) -> String {
    format!("{repository}:{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_tag_and_a_digest_needs_none() {
        let split = |image: &str| split_name(image).map(|(r, t)| format!("{r} {t}"));
        assert_eq!(split("app").as_deref(), Some("app latest"));
        assert_eq!(split("shop/app:1").as_deref(), Some("shop/app 1"));
        assert_eq!(split("localhost:5000/app").as_deref(), Some("localhost:5000/app latest"));
        assert_eq!(split("localhost:5000/app:v1").as_deref(), Some("localhost:5000/app v1"));
        assert_eq!(split("app@sha256:00"), None);
        assert_eq!(split("sha256:00"), None);
        assert_eq!(split(""), None);
    }
}
