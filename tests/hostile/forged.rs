//! Forged snapshots: validly sealed, validly signed, hostile in everything that they say.

use crate::hostile::Hostile;
use crate::lab::{Lab, full};
use crate::tree::{assert_same, records, text};
use crate::world;
use lifeboat::base::cancel::Cancel;
use lifeboat::base::stream::StreamKind;
use lifeboat::ops::access::{Installation, host_name};
use lifeboat::ops::browse::{self, DiffRequest, FindRequest, LsRequest};
use lifeboat::ops::restore::{RestoreOutcome, RestoreRequest};
use lifeboat::pipeline::crypt::Recipients;
use lifeboat::repository::Repository;
use lifeboat::repository::chain::Chain;
use lifeboat::repository::format::StreamEntry;
use lifeboat::repository::keys::{HostKey, IdentityFile};
use lifeboat::repository::state::State;
use lifeboat::repository::trust::Pin;
use lifeboat::repository::writer::{SnapshotDraft, SnapshotWriter, WriterOptions};
use lifeboat::sources::extract::Severity;
use lifeboat::storage::LocalStorage;
use lifeboat::storage::local::Reserve;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use tar::EntryType;

/// One source of a forged snapshot.
pub struct Made<'a> {
    pub name: &'a str,
    pub kind: &'a str,
    pub facts: Value,
    pub tar: Box<dyn Read + 'a>,
    pub listing: Box<dyn Read + 'a>,
}

impl<'a> Made<'a> {
    pub fn files(tar: &'a [u8], listing: &'a [u8]) -> Self {
        Made { name: "files", kind: "files", facts: json!({}), tar: Box::new(tar), listing: Box::new(listing) }
    }
}

/// Signs a snapshot with the host's own key, on a machine of the thief's; returns its id.
pub fn forge(installation: &Installation, repository: &Path, made: Vec<Made<'_>>) -> String {
    let identity = IdentityFile::load(&installation.identity()).unwrap();
    let host_key = HostKey::load(&installation.host_key()).unwrap();
    let storage = Arc::new(LocalStorage::new(repository.to_owned(), Reserve::Bytes(0)));
    let pin = Pin::Derived(identity.possible_repositories());
    let repository = Arc::new(Repository::open(storage, &pin).unwrap());
    let chain = Chain::load(&repository).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = Arc::new(State::open(&dir.path().join("state")).unwrap());
    let options = WriterOptions {
        host: host_name().unwrap(),
        policy: "shop".parse().unwrap(),
        recipients: Recipients::parse(&[identity.first().unwrap().recipient()]).unwrap(),
        compression: 3,
        cancel: Cancel::new(),
    };
    let writer = SnapshotWriter::begin(repository, &chain, &host_key, state, options).unwrap();
    let sources = made.into_iter().map(|mut made| {
        let stream = |name: &str, kind, bytes: &mut dyn Read| {
            let mut out = writer.stream(made.name, name, StreamKind::Tar, None);
            std::io::copy(bytes, &mut out).unwrap();
            StreamEntry { kind, ..world::stream_entry(name, out.finish().unwrap()) }
        };
        let tar = stream("files.tar", StreamKind::Tar, &mut made.tar);
        let listing = stream("files.listing", StreamKind::Listing, &mut made.listing);
        let mut source = world::source_entry(made.name, vec![tar, listing]);
        (source.kind, source.facts) = (made.kind.into(), made.facts);
        source
    });
    let sources = sources.collect();
    let sequence = writer.sequence();
    let draft = SnapshotDraft { time: chrono::Utc::now(), ..world::draft(sequence, sources) };
    writer.commit(draft, &host_key).unwrap().header.id.to_string()
}

/// A line of a listing.
pub fn line(path: &str, kind: &str, offset: u64, length: u64) -> String {
    let line = json!({ "path": path, "type": kind, "size": 1, "mode": 420, "uid": 0, "gid": 0, "mtime": 1,
                       "target": "good", "offset": offset, "length": length });
    format!("{line}\n")
}

/// Everything that a person can ask of a snapshot, whatever it answers.
fn ask_everything(lab: &Lab, id: &str, honest: &str, paths: &[&str]) {
    let _ = lab.ls(id, None, true);
    let _ = lab.ls_of(LsRequest { snapshot: id.into(), target: Some("files:/".into()), recursive: true });
    let _ = browse::find(&lab.access(), &FindRequest::new("**"), &lab.run());
    for path in paths {
        let _ = lab.cat(id, OsString::from(format!("files:{path}")));
        let _ = lab.ls(id, Some(&format!("files:{path}")), true);
    }
    let _ = browse::diff(&lab.access(), &DiffRequest::new(honest, id), &lab.run(), &mut |_| Ok(()));
}

#[test]
fn a_forged_snapshot_writes_nothing_outside_whatever_is_asked_of_it() {
    let lab = Lab::new();
    let victim = lab.path("victim");
    fs::create_dir_all(victim.join("sub")).unwrap();
    fs::write(victim.join("file"), "victim").unwrap();
    let before = records(&victim);
    let out = text(&victim).as_bytes();
    let mut setuid = Hostile::header(b"su", EntryType::Regular, 1);
    setuid.set_mode(0o6755);
    setuid.set_cksum();
    let long = format!("{}/{}", "d".repeat(255), "e".repeat(255));
    let tar = Hostile::default()
        .file(b"good", b"1")
        .file(b"../victim/file", b"x")
        .pax(&[("path", &[out, b"/file"].concat())])
        .file(b"absolute", b"x")
        .symlink(b"link", out)
        .file(b"link/file", b"x")
        .hardlink(b"hard", b"link/file")
        .symlink(b"up", b"../../../../victim")
        .dir(b"up")
        .file(b"up/sub/new", b"x")
        .special(b"device", EntryType::Char, b"")
        .push(&setuid, b"x")
        .file(b"good", b"again")
        .file(b"GOOD", b"another")
        .pax(&[("path", b"nul\0byte")])
        .file(b"n", b"x")
        .file(b"-rf", b"x")
        .file(b"$(id)\n\x1b]0;owned\x07", b"x")
        .file(b"caf\xe9", b"x")
        .pax(&[("path", long.as_bytes())])
        .file(b"l", b"x")
        .pax(&[("path", "f".repeat(256).as_bytes())])
        .file(b"l", b"x")
        .end();
    let length = tar.len() as u64;
    let liars = [
        line("../victim/file", "file", 0, 1024),
        line("/etc/passwd", "file", 0, 1024),
        line("good", "hardlink", 1024, 1024),
        line("link/file", "file", 512, 512),
        line("innocent", "file", 1024, 2048),
        line("whole", "dir", 0, length),
        line("", "dir", 0, length),
        line("a\u{0}b", "file", 0, 1024),
    ];
    let listing = liars.concat();
    let honest = forge(&lab.installation, &lab.path("repository"), vec![Made::files(&Hostile::default().end(), b"")]);
    let id = forge(&lab.installation, &lab.path("repository"), vec![Made::files(&tar, listing.as_bytes())]);
    let paths = ["../victim/file", "/etc/passwd", "good", "link/file", "innocent", "whole", "/", "..", "a\u{1}b"];
    for (n, privileged) in [false, true].into_iter().enumerate() {
        let into = lab.path(&format!("out-{n}"));
        let report = lab.try_restore(&RestoreRequest { privileged, ..RestoreRequest::new(&id, &into) }).unwrap();
        let source = &report.sources[0];
        assert_eq!(source.outcome, RestoreOutcome::Incomplete, "{source:?}");
        let tree = source.tree.as_ref().unwrap();
        let count = |severity| tree.differences.iter().filter(|d| d.severity == severity).count();
        // Refused: up and absolute, below two links and the link as a folder, through one, twice, NUL; a device.
        let refused = if privileged { 8 } else { 9 };
        assert_eq!((count(Severity::Refused), count(Severity::Missing)), (refused, 1), "{:#?}", tree.differences);
        let found = records(&into.join("files"));
        let mut names: Vec<String> =
            found.keys().skip(1).map(|p| p.to_string_lossy().into_owned()).filter(|n| !n.starts_with('d')).collect();
        names.sort();
        let odd = ["$(id)\n\u{1b}]0;owned\u{7}", "-rf", "GOOD", "caf\u{fffd}", "good", "link", "su", "up"];
        assert_eq!(names, odd);
        assert!(found.contains_key(Path::new(&long)), "255 bytes are a name");
        assert_eq!(fs::read(into.join("files/good")).unwrap(), b"1");
        assert_eq!(found[Path::new("su")].mode, if privileged { 0o6755 } else { 0o755 });
        assert_same(&before, &records(&victim));
    }
    for (n, path) in paths.iter().enumerate() {
        let into = lab.path(&format!("part-{n}"));
        let request = RestoreRequest { paths: vec![path.into()], ..RestoreRequest::new(&id, &into) };
        // Whatever comes of it, it lies in the folder.
        let _ = lab.try_restore(&request).map_err(|e| full(&e));
        assert_same(&before, &records(&victim));
        assert!(!into.join("victim").exists());
    }
    ask_everything(&lab, &id, &honest, &paths);
    assert_same(&before, &records(&victim));
    let left: Vec<String> = fs::read_dir(&lab.root).unwrap().map(|e| text(&e.unwrap().path()).to_owned()).collect();
    assert!(left.iter().all(|p| !p.ends_with("/new") && !p.contains("partial")), "{left:?}");
}

#[test]
fn places_that_a_listing_lies_about_are_damage_and_nothing_worse() {
    let lab = Lab::new();
    let repository = lab.path("repository");
    let tar = Hostile::default().file(b"good", b"1").dir(b"d").file(b"d/x", &[7; 3000]).end();
    let honest = forge(&lab.installation, &repository, vec![Made::files(&tar, b"")]);
    let huge = [0, 513, 4096, u64::MAX / 2, u64::MAX];
    for offset in huge {
        for length in huge {
            let lines: String = (0..3).map(|n| line(&format!("p{n}"), "file", offset, length)).collect();
            let listing = lines + &line("h", "hardlink", offset, length);
            let id = forge(&lab.installation, &repository, vec![Made::files(&tar, listing.as_bytes())]);
            for (n, path) in [None, Some("p1"), Some("h"), Some("/")].into_iter().enumerate() {
                let into = lab.path(&format!("out-{offset}-{length}-{n}"));
                let paths = path.map(OsString::from).into_iter().collect();
                let _ = lab.try_restore(&RestoreRequest { paths, ..RestoreRequest::new(&id, &into) });
            }
            ask_everything(&lab, &id, &honest, &["p1", "h"]);
        }
    }
}
