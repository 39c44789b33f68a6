//! How a person names a part of a snapshot: `db`, `db:shop.dump`, `nginx:/etc/nginx`, `/etc/nginx`.

use crate::base::ids::SourceName;
use crate::ops::OpsError;
use crate::policy::nearest::nearest;
use crate::repository::format::{Manifest, SourceEntry, SourceOutcome, StreamEntry};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What was named.
#[derive(Debug, Clone)]
pub enum Selector<'a> {
    /// A source as a whole.
    Source(&'a SourceEntry),
    /// One stream of it.
    Stream(&'a SourceEntry, &'a StreamEntry),
    /// A path in the trees of one source, as it stands in a tar: relative, without slashes at its ends.
    Path(&'a SourceEntry, Vec<u8>),
    /// A path in whichever source has it.
    Anywhere(Vec<u8>),
}

impl<'a> Selector<'a> {
    /// Reads `SOURCE`, `SOURCE:STREAM`, `SOURCE:PATH` or `/PATH`.
    pub fn parse(manifest: &'a Manifest, text: &OsStr) -> Result<Self, OpsError> {
        let bytes = text.as_bytes();
        if bytes.starts_with(b"/") {
            return Ok(Selector::Anywhere(normal(bytes)?));
        }
        let find = |name: &[u8]| manifest.sources.iter().find(|s| s.name.as_str().as_bytes() == name);
        let colon = bytes.iter().position(|b| *b == b':');
        if let Some(colon) = colon
            && let Some(source) = find(&bytes[..colon])
        {
            let rest = &bytes[colon + 1..];
            let stream = source.streams.iter().find(|s| s.name.as_str().as_bytes() == rest);
            return Ok(match stream {
                _ if rest.is_empty() => Selector::Source(source),
                Some(stream) => Selector::Stream(source, stream),
                None => Selector::Path(source, normal(rest)?),
            });
        }
        match find(bytes) {
            Some(source) => Ok(Selector::Source(source)),
            None if colon.is_none() && bytes.contains(&b'/') => Ok(Selector::Anywhere(normal(bytes)?)),
            None => {
                let name = String::from_utf8_lossy(&bytes[..colon.unwrap_or(bytes.len())]).into_owned();
                Err(no_source(manifest, &name))
            }
        }
    }
}

/// The source of that name.
pub fn source_named<'a>(manifest: &'a Manifest, name: &SourceName) -> Result<&'a SourceEntry, OpsError> {
    manifest.sources.iter().find(|s| s.name == *name).ok_or_else(|| no_source(manifest, name.as_str()))
}

fn no_source(manifest: &Manifest, name: &str) -> OpsError {
    let names: Vec<&str> = manifest.sources.iter().map(|s| s.name.as_str()).collect();
    let hint = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near:?}? its sources are {}", names.join(", ")),
        None => format!("its sources are {}; a path begins with /", names.join(", ")),
    };
    OpsError::usage(format!("snapshot {} has no source {name:?}", manifest.snapshot), hint)
}

/// Refuses a source that is not in the snapshot because its capture failed.
pub fn require_captured(manifest: &Manifest, source: &SourceEntry) -> Result<(), OpsError> {
    if source.outcome != SourceOutcome::Failed {
        return Ok(());
    }
    let why = source.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
    Err(OpsError::failed(
        format!("source {:?} is not in snapshot {}: its capture failed{why}", source.name.as_str(), manifest.snapshot),
        "take another snapshot; `lifeboat list` shows which ones are complete",
    ))
}

/// A path as it stands in a tar: no slashes at its ends, no `.`. What leads upwards is refused.
pub fn normal(path: &[u8]) -> Result<Vec<u8>, OpsError> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        return Err(OpsError::usage(
            format!("{:?} leads upwards", String::from_utf8_lossy(path)),
            "write the path without ..",
        ));
    }
    Ok(names.join(&b'/'))
}

/// Whether an entry is what `wanted` names: by its exact bytes, or by the text that listings show of a path that is not
/// UTF-8.
pub fn is_named(path: &[u8], shown: Option<&str>, wanted: &[u8]) -> bool {
    path == wanted || shown.is_some_and(|text| text.as_bytes() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_brought_into_the_form_of_a_tar() {
        let text = |p: &[u8]| normal(p).map(|p| String::from_utf8(p).unwrap());
        assert_eq!(text(b"/etc//nginx/./").unwrap(), "etc/nginx");
        assert_eq!(text(b"/").unwrap(), "");
        assert!(text(b"/etc/../shadow").is_err());
    }
}
