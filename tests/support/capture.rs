//! Capturing paths in tests: a policy for them, a time when everything has settled, and what came of it.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use crate::sink::{Bench, MemorySink};
use crate::tree::{inside, text};
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::stream::ListingEntry;
use lifeboat::policy::model::{App, FilesSpec, OnRollback, SourcePolicy, SourceSpec, Via};
use lifeboat::sources::extract::{Extractor, Options, Report};
use lifeboat::sources::files::FilesSource;
use lifeboat::sources::{Capture, Captured, Source, SourceError};
use std::fs;
use std::path::{Path, PathBuf};

pub const EVERYTHING: Options = Options { privileged: true, owners: true, overwrite: false };

pub fn policy(spec: SourceSpec) -> SourcePolicy {
    SourcePolicy {
        name: "it".parse().unwrap(),
        on_rollback: OnRollback::Add,
        implicit: false,
        optional: false,
        timeout: std::time::Duration::from_secs(600),
        spec,
    }
}

pub fn app(root: &Path) -> App {
    App {
        name: "test".parse().unwrap(),
        root: root.into(),
        compose_files: Vec::new(),
        env_files: Vec::new(),
        profiles: Vec::new(),
        project: None,
        project_dir: None,
    }
}

pub fn paths(paths: &[&Path]) -> Vec<String> {
    paths.iter().map(|p| text(p).to_owned()).collect()
}

pub fn spec(of: &[&Path]) -> FilesSpec {
    FilesSpec { paths: paths(of), exclude: Vec::new(), one_file_system: false, via: Via::Direct }
}

pub fn source(spec: FilesSpec, never: &[PathBuf]) -> FilesSource {
    FilesSource::new(&policy(SourceSpec::Files(spec.clone())), &spec, &app(Path::new("/nowhere")), never.to_vec())
}

/// A time when everything has settled.
pub fn later() -> DateTime<Utc> {
    Utc::now() + TimeDelta::seconds(60)
}

pub fn capture_at(
    bench: &Bench,
    sink: &MemorySink,
    spec: FilesSpec,
    now: DateTime<Utc>,
) -> Result<Captured, SourceError> {
    source(spec, &[]).capture(&Capture { now, ..bench.capture(sink) })
}

pub fn try_capture(source: &dyn Source) -> Result<(MemorySink, Captured), SourceError> {
    let sink = MemorySink::new();
    let captured = source.capture(&Capture { now: later(), ..Bench::new().capture(&sink) })?;
    Ok((sink, captured))
}

pub fn capture(spec: FilesSpec) -> (MemorySink, Captured) {
    try_capture(&source(spec, &[])).unwrap()
}

pub fn listing(sink: &MemorySink) -> Vec<ListingEntry> {
    let bytes = sink.bytes("files.listing");
    std::str::from_utf8(&bytes).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The paths in the tar below a folder, relative to it.
pub fn names(sink: &MemorySink, below: &Path) -> Vec<String> {
    let prefix = format!("{}/", inside(below).display());
    listing(sink).iter().filter_map(|e| e.path.strip_prefix(&prefix).map(str::to_owned)).collect()
}

/// The lines of a named path and of what is below: other tests change the folders above it.
pub fn lines_below(sink: &MemorySink, root: &str) -> Vec<ListingEntry> {
    let mut lines = listing(sink);
    lines.retain(|e| Path::new("/").join(&e.path).starts_with(root));
    lines
}

/// The tar from a named path's own entry on.
pub fn tar_below(sink: &MemorySink, root: &str) -> Vec<u8> {
    sink.bytes("files.tar")[lines_below(sink, root)[0].offset as usize..].to_vec()
}

pub fn extract(tar: &[u8], into: &Path, options: Options) -> Report {
    let mut extractor = Extractor::new(into, options, &Cancel::new()).unwrap();
    extractor.extract(tar).unwrap();
    extractor.finish().unwrap()
}

pub fn restore(sink: &MemorySink, to: &Path) {
    fs::create_dir_all(to).unwrap();
    assert_eq!(extract(&sink.bytes("files.tar"), to, EVERYTHING).differences, []);
}

/// A file system in a file, mounted while this lives.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn new(image: &Path, at: &Path) -> Self {
        crate::tree::run(&["mount", "-o", "loop", text(image), text(at)]);
        Mounted(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}
