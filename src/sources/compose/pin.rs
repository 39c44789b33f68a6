//! Pins: names of our own for the images that run, so that a rollback finds the very image again.

use super::running::Service;
use crate::base::ids::{PolicyName, SnapshotId, StreamName};
use crate::base::stream::StreamKind;
use crate::place::{Docker, PlaceError};
use crate::policy::model::Pin;
use crate::sources::{Capture, SourceError};
use std::collections::BTreeMap;
use std::io::{Read, Write};

/// The repository part of a pin: `lifeboat/<policy>-<service>`, in the characters that an image's name may have.
pub fn pin_repository(policy: &PolicyName, service: &str) -> String {
    let mut plain = String::new();
    for c in service.to_ascii_lowercase().chars() {
        match c {
            c if c.is_ascii_alphanumeric() => plain.push(c),
            _ if plain.ends_with('-') => {}
            _ => plain.push('-'),
        }
    }
    let plain = plain.trim_matches('-');
    // `A_b` and `a-b` are two services: what is lost in the name is told apart by a hash.
    let own = if plain == service {
        plain.to_owned()
    } else {
        format!("{plain}-{}", &blake3::hash(service.as_bytes()).to_hex()[..6])
    };
    let policy = policy.as_str().trim_matches('-');
    format!("lifeboat/{policy}-{own}")
}

/// The tag part of a pin: the snapshot's id in lower case.
pub fn pin_tag(snapshot: &SnapshotId) -> String {
    snapshot.as_str().to_ascii_lowercase()
}

/// Removes the pin of a service's image in a snapshot; a pin that is not there is no error.
pub fn unpin(docker: &Docker, policy: &PolicyName, service: &str, snapshot: &SnapshotId) -> Result<(), PlaceError> {
    let name = format!("{}:{}", pin_repository(policy, service), pin_tag(snapshot));
    match docker.image(&name)? {
        Some(_) => docker.untag_image(&name),
        None => Ok(()),
    }
}

/// Removes every pin of these snapshots, whatever services they had.
pub fn unpin_all(docker: &Docker, policy: &PolicyName, snapshots: &[SnapshotId]) -> Result<(), PlaceError> {
    let own = format!("lifeboat/{}-", policy.as_str().trim_matches('-'));
    let tags: Vec<String> = snapshots.iter().map(pin_tag).collect();
    for name in docker.image_names()? {
        let pinned = name.strip_prefix(&own).and_then(|rest| rest.rsplit_once(':'));
        if pinned.is_some_and(|(_, tag)| tags.iter().any(|t| t == tag)) {
            docker.untag_image(&name)?;
        }
    }
    Ok(())
}

/// Pins the image of every service as the policy says, and writes into each service what was done.
pub(super) fn pin(
    cx: &Capture<'_>,
    docker: &Docker,
    pin: Pin,
    policy: &PolicyName,
    services: &mut [Service],
    warnings: &mut Vec<String>,
) -> Result<(), SourceError> {
    if pin == Pin::None {
        return Ok(());
    }
    // Images are saved once, however many services run them.
    let mut saved: BTreeMap<String, String> = BTreeMap::new();
    let tag = pin_tag(cx.snapshot);
    for service in services {
        cx.cancel.check()?;
        let repository = pin_repository(policy, &service.service);
        match docker.tag_image(&service.image_id, &repository, &tag) {
            Ok(()) => service.pin = Some(format!("{repository}:{tag}")),
            Err(PlaceError::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(e) => {
                let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
                warnings.push(format!("the image of service {} is not pinned: {e}{cause}", service.service));
                continue;
            }
        }
        if pin == Pin::Save && service.built_here {
            service.saved = match saved.get(&service.image_id) {
                Some(stream) => Some(stream.clone()),
                None => Some(save(cx, docker, service)?),
            };
            saved.extend(service.saved.clone().map(|stream| (service.image_id.clone(), stream)));
        }
    }
    Ok(())
}

/// Stores an image by its pin, so that `docker load` brings that name back; the stream's name.
fn save(cx: &Capture<'_>, docker: &Docker, service: &Service) -> Result<String, SourceError> {
    let stream = StreamName::encode(&format!("image-{}", service.service), ".tar")?;
    let pin = service.pin.as_deref().unwrap_or(&service.image_id);
    let mut image = docker.export_image(pin);
    let expected = Some(service.image_bytes);
    let mut sink = cx.sink.stream(stream.clone(), StreamKind::Raw, expected).map_err(SourceError::Sink)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = image.read(&mut buffer);
        match read.map_err(|e| PlaceError::from_io(format!("save image {pin}"), docker.endpoint(), e))? {
            0 => break,
            n => sink.write_all(&buffer[..n]).map_err(SourceError::Sink)?,
        }
    }
    sink.finish().map_err(SourceError::Sink)?;
    Ok(stream.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_valid_image_names_and_do_not_collide() {
        let name = |service| pin_repository(&"shop".parse().unwrap(), service);
        assert_eq!(name("web"), "lifeboat/shop-web");
        assert_eq!(name("web-2"), "lifeboat/shop-web-2");
        let odd: Vec<String> = ["A_b", "a.b", "a_b", "a-b", "_x_"].iter().map(|s| name(s)).collect();
        let unique: std::collections::BTreeSet<&String> = odd.iter().collect();
        assert_eq!(unique.len(), odd.len(), "{odd:?}");
        for one in &odd {
            let rest = one.strip_prefix("lifeboat/shop-").unwrap();
            assert!(
                !rest.contains("--")
                    && !rest.ends_with('-')
                    && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{one}"
            );
        }
        assert_eq!(pin_tag(&"20261119T020000Z-1a2b3c4d".parse().unwrap()), "20261119t020000z-1a2b3c4d");
    }
}
