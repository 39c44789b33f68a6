//! Looking into snapshots of real trees and commands: list, show, ls, cat, find, diff.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/tree.rs"]
mod tree;

use chrono::{DateTime, Utc};
use lab::{Lab, command, files, flip, full, noise};
use lifeboat::base::stream::{FileType, ListingEntry, StreamKind};
use lifeboat::ops::access::{Access, AccessRequest, Installation};
use lifeboat::ops::browse::{
    Aspect, Change, Content, DiffRequest, FindRequest, ListFilter, LsEntry, LsRequest, PathInfo, cat, list, show,
};
use lifeboat::ops::restore::{self, RestoreRequest};
use lifeboat::ops::{ErrorKind, Outcome};
use lifeboat::repository::Repository;
use lifeboat::repository::trust::Pin;
use lifeboat::sources::{Capture, Captured, Source, SourceError};
use lifeboat::storage::local::Reserve;
use lifeboat::storage::{LocalStorage, ObjectInfo, Put, Storage, StorageError, StorageKey};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A path as listings have it.
fn inside(path: &Path) -> String {
    path.strip_prefix("/").unwrap().to_str().unwrap().to_owned()
}

fn paths(entries: &[LsEntry]) -> Vec<String> {
    entries
        .iter()
        .filter_map(|e| if let LsEntry::Path { file, .. } = e { Some(file.path.clone()) } else { None })
        .collect()
}

/// The last names of the paths.
fn names(entries: &[LsEntry]) -> Vec<String> {
    paths(entries).iter().map(|p| p.rsplit('/').next().unwrap().to_owned()).collect()
}

#[test]
fn list_shows_headers_without_a_key_and_says_what_is_wrong() {
    let lab = Lab::new();
    let sources = lab.sources(&[command("a", &["echo", "1"], "a.out"), command("b", &["echo", "2"], "b.out")]);
    let first = lab.snapshot(&sources, &["v1"]);
    let second = lab.snapshot(&sources, &["v2"]);
    let partial = lab.sources(&[command("a", &["echo", "1"], "a.out"), command("b", &["false"], "b.out")]);
    let third = lab.try_snapshot(&partial, &["v2"]).unwrap().header.id.to_string();
    lab.seal();
    let shown = |filter: &ListFilter| {
        let report = list(&lab.access(), filter).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        report.snapshots
    };
    let all = shown(&ListFilter::default());
    assert_eq!(
        all.iter().map(|s| s.id.to_string()).collect::<Vec<_>>(),
        [first.clone(), second.clone(), third.clone()]
    );
    assert_eq!(all.iter().map(|s| s.sequence.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(all[2].outcome, Outcome::Partial);
    assert!(all.iter().all(|s| !s.held && !s.forked && !s.new_lineage && s.bytes_total > 0));
    let tagged = shown(&ListFilter { tag: Some("v2".parse().unwrap()), ..ListFilter::default() });
    assert_eq!(tagged.iter().map(|s| s.id.to_string()).collect::<Vec<_>>(), [second.clone(), third.clone()]);
    let last = shown(&ListFilter { last: Some(1), ..ListFilter::default() });
    assert_eq!(last[0].id.to_string(), third);
    let until = shown(&ListFilter { until: Some(all[0].time), ..ListFilter::default() });
    assert_eq!(until.len(), 1);

    // Another state folder is another lineage.
    fs::rename(&lab.installation.state_dir, lab.path("old-state")).unwrap();
    lab.unseal();
    lab.snapshot(&sources, &[]);
    let all = list(&lab.access(), &ListFilter::default()).unwrap().snapshots;
    assert!(all[3].new_lineage && !all[2].new_lineage);

    // A damaged header, then one that is gone.
    let header = header_file(&lab, &second);
    let bytes = fs::read(&header).unwrap();
    flip(&header);
    let report = list(&lab.access(), &ListFilter::default()).unwrap();
    assert_eq!(report.snapshots.len(), 3);
    assert!(report.problems.iter().any(|p| p.snapshot.as_ref().is_some_and(|s| s.to_string() == second)), "{report:?}");
    fs::remove_file(&header).unwrap();
    let report = list(&lab.access(), &ListFilter::default()).unwrap();
    assert!(report.problems.iter().any(|p| p.problem.contains("is gone")), "{:?}", report.problems);
    fs::write(&header, bytes).unwrap();

    // Somebody brings back an older state of the whole repository.
    for id in [&third, &all[3].id.to_string()] {
        fs::remove_file(header_file(&lab, id)).unwrap();
    }
    let report = list(&lab.access(), &ListFilter::default()).unwrap();
    assert!(report.problems.iter().any(|p| p.problem.contains("rolled back")), "{:?}", report.problems);
}

fn header_file(lab: &Lab, id: &str) -> PathBuf {
    let host = lifeboat::ops::access::host_name().unwrap();
    let dir = lab.path("repository/snapshots").join(host.as_str()).join("shop");
    let found = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    found.into_iter().find(|p| p.to_str().unwrap().contains(id)).unwrap()
}

#[test]
fn show_needs_the_identity_for_sources_and_facts_only() {
    let lab = Lab::new();
    let site = lab.path("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("a"), b"a").unwrap();
    let sources = lab.sources(&[files("site", &[&site]), command("bad", &["false"], "x")]);
    lab.try_snapshot(&sources, &["v1"]).unwrap();
    let detail = show(&lab.access(), "v1", &lab.run()).unwrap();
    let sources = detail.sources.as_ref().unwrap();
    assert_eq!(detail.line.tags[0].as_str(), "v1");
    assert!(detail.archives > 0 && detail.stored_bytes > 0 && detail.note.is_none());
    assert_eq!(sources[0].facts["paths"][0], site.to_str().unwrap());
    assert!(sources[0].summary.iter().any(|l| l.starts_with("entries: ")), "{:?}", sources[0].summary);
    assert_eq!(sources[0].streams.len(), 2);
    assert!(sources[1].error.is_some());
    lab.seal();
    let sealed = show(&lab.access(), "latest", &lab.run()).unwrap();
    assert!(sealed.sources.is_none() && sealed.note.unwrap().contains("--identity"));
    assert_eq!((sealed.line, sealed.header), (detail.line, detail.header));
    let e = show(&lab.access(), "nonsense", &lab.run()).unwrap_err();
    assert!(e.kind() == ErrorKind::Usage && full(&e).contains("v1"), "{}", full(&e));
}

#[test]
fn ls_shows_sources_folders_and_odd_names() {
    let lab = Lab::new();
    let site = lab.path("site");
    tree::nasty(&site);
    let other = lab.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("x"), b"x").unwrap();
    let id = lab.snapshot(
        &lab.sources(&[files("site", &[&site]), files("other", &[&other]), command("db", &["echo", "1"], "shop.dump")]),
        &[],
    );
    let all = lab.ls(&id, None, false).unwrap();
    let shape: Vec<String> = all
        .iter()
        .map(|e| match e {
            LsEntry::Source { name, kind, .. } => format!("{name} {kind}"),
            LsEntry::Stream { source, name, .. } => format!("{source}:{name}"),
            LsEntry::Path { .. } => "path".into(),
        })
        .collect();
    assert_eq!(shape, ["site files", "site:files.tar", "other files", "other:files.tar", "db command", "db:shop.dump"]);

    // A folder, like ls: what is in it, in order, and nothing below.
    let expected = |dir: &Path| {
        let mut names: Vec<OsString> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        names
    };
    let found = lab.ls(&id, site.to_str(), false).unwrap();
    let bytes = |e: &LsEntry| match e {
        LsEntry::Path { file, .. } => match &file.path_hex {
            Some(hex) => OsString::from_vec(hex::decode(hex).unwrap()),
            None => file.path.clone().into(),
        },
        other => panic!("{other:?}"),
    };
    let last = |path: OsString| PathBuf::from(path).file_name().unwrap().to_owned();
    assert_eq!(found.iter().map(bytes).map(last).collect::<Vec<_>>(), expected(&site));
    let found = lab.ls(&id, Some(&format!("site:{}", site.join("links").display())), false).unwrap();
    assert_eq!(found.iter().map(bytes).map(last).collect::<Vec<_>>(), expected(&site.join("links")));
    assert!(lab.ls(&id, site.join("empty-dir").to_str(), false).unwrap().is_empty());

    // Recursively: as many as there are.
    let found = lab.ls(&id, site.to_str(), true).unwrap();
    assert_eq!(found.len(), tree::records(&site).len() - 1);
    let found = lab.ls(&id, Some("site"), true).unwrap();
    let above = site.ancestors().filter(|a| a.parent().is_some()).count();
    assert_eq!(found.len(), tree::records(&site).len() - 1 + above);

    // A single file, with all that a listing knows.
    let found = lab.ls(&id, site.join("modes/setuid").to_str(), false).unwrap();
    let [LsEntry::Path { source, file }] = &found[..] else { panic!("{found:?}") };
    assert_eq!((source.as_str(), file.mode, file.uid, file.gid, file.size), ("site", 0o4755, 1000, 27, 2));
    let found = lab.ls(&id, site.join("times/1960").to_str(), false).unwrap();
    let [LsEntry::Path { file, .. }] = &found[..] else { panic!("{found:?}") };
    assert_eq!((file.mtime, file.mtime_ns), (-300_000_000, 250_000_000));

    // A name that is not UTF-8, by its bytes and as it is shown.
    let binary = site.join(OsString::from_vec(b"not-utf8-\xff\xfe".to_vec()));
    for target in [binary.into_os_string(), site.join("not-utf8-%FF%FE").into_os_string()] {
        let request = LsRequest { snapshot: id.clone(), target: Some(target), recursive: false };
        let found = lab.ls_of(request).unwrap();
        assert_eq!(names(&found), ["%E9t%E9"]);
    }
    let [LsEntry::Stream { bytes, .. }] = lab.ls(&id, Some("db:shop.dump"), false).unwrap()[..] else { panic!() };
    assert_eq!(bytes, 2);

    // A folder above the trees of two sources is in both.
    let found = lab.ls(&id, lab.root.to_str(), false).unwrap();
    assert_eq!(names(&found), ["site", "other"]);

    for (target, message) in [
        ("/no/such", "there is no /no/such in snapshot"),
        ("sitte", "did you mean \"site\""),
        ("site:/nothing", "in source \"site\""),
    ] {
        let e = lab.ls(&id, Some(target), false).unwrap_err();
        assert!(e.kind() == ErrorKind::Usage && full(&e).contains(message), "{}", full(&e));
    }
}

#[test]
fn cat_writes_streams_and_files_whatever_they_are() {
    let lab = Lab::new();
    let site = lab.path("site");
    tree::nasty(&site);
    fs::remove_file(site.join("sparse-9g")).unwrap();
    fs::create_dir_all(site.join("live")).unwrap();
    fs::create_dir_all(site.join("archive/x")).unwrap();
    fs::write(site.join("archive/x/cert1.pem"), b"certificate\n").unwrap();
    symlink("../archive/x", site.join("live/x")).unwrap();
    symlink("x/cert1.pem", site.join("live/cert.pem")).unwrap();
    symlink(site.join("live/cert.pem"), site.join("absolute")).unwrap();
    let dump = noise(5, 3_000_000);
    fs::write(lab.path("dump"), &dump).unwrap();
    let dump_path = lab.path("dump");
    let sources = lab.sources(&[
        files("site", &[&site]),
        command("db", &["cat", dump_path.to_str().unwrap()], "shop.dump"),
        command("bad", &["false"], "bad.out"),
    ]);
    let id = lab.try_snapshot(&sources, &[]).unwrap().header.id.to_string();
    assert!(lab.cat(&id, "db").unwrap() == dump);
    assert!(lab.cat(&id, "db:shop.dump").unwrap() == dump);

    // Every file of the tree, by its path: empty, large, sparse, with odd names, with further names.
    let mut checked = 0;
    for (path, record) in
        tree::records(&site).iter().filter(|(_, r)| r.target.is_none() && r.kind.contains("is_file: true"))
    {
        let target = site.join(path).into_os_string();
        let found = lab.cat(&id, target).unwrap_or_else(|e| panic!("{path:?}: {}", full(&e)));
        assert!(found == fs::read(site.join(path)).unwrap(), "{path:?} {record:?}");
        checked += 1;
    }
    assert!(checked > 35, "{checked}");
    let of_source = format!("site:{}", site.join("links/deeper/third").display());
    assert_eq!(lab.cat(&id, of_source).unwrap(), b"many names\n");
    for link in ["live/cert.pem", "live/x/cert1.pem", "absolute", "links/soft", "links/self/soft"] {
        let expected = fs::read(site.join(link)).unwrap();
        assert_eq!(lab.cat(&id, site.join(link)).unwrap_or_else(|e| panic!("{link}: {}", full(&e))), expected);
    }
    assert_eq!(lab.cat(&id, site.join("not-utf8-%FF%FE/%E9t%E9")).unwrap(), b"latin\n");

    // The tree itself, as a tar that others read.
    let tar = lab.cat(&id, "site").unwrap();
    let mut child = std::process::Command::new("tar")
        .args(["-tf", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&tar));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("plain.txt"));

    let refused = |target: OsString, message: &str| {
        let e = lab.cat(&id, target).unwrap_err();
        assert!(full(&e).contains(message), "{}", full(&e));
    };
    refused(site.join("links").into(), "is a folder");
    refused(site.join("links/loop-a").into(), "leads in a circle");
    refused(site.join("links/absolute").into(), "leads to /etc/passwd, which is not in this source");
    refused("db:other.dump".into(), "its streams are shop.dump");
    refused("bad".into(), "its capture failed");
    refused("nothing".into(), "its sources are site, db, bad");
}

/// Storage that counts the bytes which are fetched from archives.
struct Counting(LocalStorage, AtomicU64);

impl Storage for Counting {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn put_new(&self, key: &StorageKey, bytes: &[u8]) -> Result<Put, StorageError> {
        self.0.put_new(key, bytes)
    }

    fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, StorageError> {
        self.0.get(key, limit)
    }

    fn get_range(&self, key: &StorageKey, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.1.fetch_add(length, Ordering::SeqCst);
        self.0.get_range(key, offset, length)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        self.0.list(prefix)
    }

    fn head(&self, key: &StorageKey) -> Result<Option<ObjectInfo>, StorageError> {
        self.0.head(key)
    }

    fn delete(&self, key: &StorageKey) -> Result<(), StorageError> {
        self.0.delete(key)
    }

    fn clock(&self) -> Result<DateTime<Utc>, StorageError> {
        self.0.clock()
    }
}

#[test]
fn one_file_of_a_large_tree_costs_little_reading() {
    let lab = Lab::new();
    let site = lab.path("site");
    fs::create_dir(&site).unwrap();
    for n in 0..48 {
        fs::write(site.join(format!("{n:02}")), noise(n, 1_000_000)).unwrap();
    }
    let id = lab.snapshot(&lab.sources(&[files("site", &[&site])]), &[]);
    let local = LocalStorage::new(lab.path("repository"), Reserve::Bytes(0));
    let counting = Arc::new(Counting(local, AtomicU64::new(0)));
    let mut access = lab.access();
    let pin = Pin::Exactly(access.repository.id().clone());
    access.repository = Arc::new(Repository::open(counting.clone(), &pin).unwrap());
    let mut out = Vec::new();
    cat(&access, &id, site.join("20").as_os_str(), &lab.run(), &mut out).unwrap();
    assert!(out == noise(20, 1_000_000));
    let fetched = counting.1.load(Ordering::SeqCst);
    // The listing's frame, and the two or three that hold the file.
    assert!((1_000_000..4_500_000).contains(&fetched), "{fetched} bytes for a file of 1,000,000");
}

#[test]
fn a_source_with_several_streams_must_be_asked_for_one() {
    let lab = Lab::new();
    let id =
        lab.snapshot(&vec![Box::new(Shuffled::new(&[("a", b"1")], &["x.dump", "y.dump"])) as Box<dyn Source>], &[]);
    let e = lab.cat(&id, "shuffled").unwrap_err();
    assert!(full(&e).contains("shuffled:x.dump, shuffled:y.dump"), "{}", full(&e));
    assert_eq!(lab.cat(&id, "shuffled:y.dump").unwrap(), b"y.dump");
}

#[test]
fn damage_that_cat_meets_names_the_place() {
    let lab = Lab::new();
    let path = lab.path("dump");
    fs::write(&path, noise(3, 6 << 20)).unwrap();
    let id = lab.snapshot(&lab.sources(&[command("db", &["cat", path.to_str().unwrap()], "shop.dump")]), &[]);
    flip(&lab.archives()[0]);
    let e = lab.cat(&id, "db").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Integrity);
    let text = full(&e);
    assert!(text.contains(&id) && text.contains("source \"db\"") && text.contains("archives/"), "{text}");
}

#[test]
fn find_tells_versions_and_where_they_were() {
    let lab = Lab::new();
    let site = lab.path("site");
    fs::create_dir_all(site.join("conf.d")).unwrap();
    let sources = lab.sources(&[files("site", &[&site]), command("db", &["echo", "same"], "shop.dump")]);
    let conf = site.join("conf.d/app.conf");
    let write = |bytes: &[u8], seconds| {
        fs::write(&conf, bytes).unwrap();
        tree::set_mtime(&conf, seconds, 0);
    };
    write(b"one", 1_000_000_000);
    fs::write(site.join("other.txt"), b"x").unwrap();
    let first = lab.snapshot(&sources, &[]);
    let second = lab.snapshot(&sources, &[]);
    write(b"three", 1_000_000_003);
    let third = lab.snapshot(&sources, &[]);
    fs::remove_file(&conf).unwrap();
    lab.snapshot(&sources, &[]);
    write(b"three", 1_000_000_003);
    let fifth = lab.snapshot(&sources, &[]);

    let report = lab.find(&FindRequest::new("*.conf"));
    assert_eq!((report.found.len(), report.searched, report.cut), (1, 5, false));
    let found = &report.found[0];
    assert_eq!(found.path, inside(&conf));
    let versions: Vec<_> = found
        .versions
        .iter()
        .map(|v| (v.oldest.to_string(), v.newest.to_string(), v.snapshots, v.state.size))
        .collect();
    // It was away in between, so what came back is told as a version of its own.
    let expected = [(fifth.clone(), fifth.clone(), 1, 5), (third.clone(), third, 1, 5), (first.clone(), second, 2, 3)];
    assert_eq!(versions, expected);

    // A stream; one version, because its bytes never changed.
    let report = lab.find(&FindRequest::new("shop"));
    assert!(report.found[0].stream && report.found[0].versions.len() == 1);
    assert_eq!(report.found[0].versions[0].snapshots, 5);
    assert_eq!(lab.find(&FindRequest::new(format!("{}/conf.d/*", site.display()))).found.len(), 1);
    assert_eq!(lab.find(&FindRequest::new(format!("{}/*", site.display()))).found.len(), 2);
    assert_eq!(lab.find(&FindRequest::new("no such thing")).found.len(), 0);
    let one = FindRequest { snapshot: Some(first.clone()), ..FindRequest::new("app.conf") };
    assert_eq!(lab.find(&one).found[0].versions.len(), 1);
    let other = FindRequest { source: Some("db".parse().unwrap()), ..FindRequest::new("app.conf") };
    assert!(lab.find(&other).found.is_empty());
    let few = lab.find(&FindRequest { limit: 2, ..FindRequest::new("site") });
    assert!(few.cut && few.found.len() == 2);

    // A snapshot that cannot be read is named, and the others are looked through.
    let manifest = show(&lab.access(), &first, &lab.run()).unwrap().manifest;
    flip(&lab.path(&format!("repository/manifests/{manifest}.json.zst.age")));
    let report = lab.find(&FindRequest::new("*.conf"));
    assert_eq!(report.searched, 4);
    assert_eq!(report.problems[0].snapshot.as_ref().unwrap().to_string(), first);
    assert!(report.problems[0].problem.contains("manifests/"), "{:?}", report.problems);
}

#[test]
fn a_listing_that_has_not_changed_counts_as_read() {
    let lab = Lab::new();
    let source = || vec![Box::new(Shuffled::new(&[("a/app.conf", b"1"), ("b", b"2")], &[])) as Box<dyn Source>];
    let ids: Vec<String> = (0..3).map(|_| lab.snapshot(&source(), &[])).collect();
    let report = lab.find(&FindRequest::new("*.conf"));
    let version = &report.found[0].versions[0];
    assert_eq!((version.oldest.to_string(), version.newest.to_string()), (ids[0].clone(), ids[2].clone()));
    assert_eq!((version.snapshots, report.found[0].versions.len(), report.found.len()), (3, 1, 1));
}

#[test]
fn a_stranger_with_the_identity_alone_sees_everything() {
    let lab = Lab::new();
    let site = lab.path("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("a"), b"content").unwrap();
    let id = lab.snapshot(&lab.sources(&[files("site", &[&site])]), &["v1"]);
    let nowhere = Installation { config_dir: lab.path("nowhere"), state_dir: lab.path("nowhere") };
    let request = AccessRequest {
        repository: Some(lab.policy.repository.url.clone()),
        identity: Some(lab.installation.identity()),
        ..AccessRequest::default()
    };
    let access = Access::open(&nowhere, &request).unwrap_or_else(|e| panic!("{}", full(&e)));
    assert!(!access.notices.is_empty(), "that newer ones were removed cannot be excluded");
    assert_eq!(list(&access, &ListFilter::default()).unwrap().snapshots[0].id.to_string(), id);
    let mut out = Vec::new();
    cat(&access, "v1", site.join("a").as_os_str(), &lab.run(), &mut out).unwrap();
    assert_eq!(out, b"content");
    let plan = restore::plan(&access, &RestoreRequest::new("latest", lab.path("out")), &lab.run()).unwrap();
    assert!(restore::run(&access, &plan, &lab.run()).unwrap().is_complete());
    assert!(!lab.path("nowhere").exists(), "a stranger leaves no state behind");
}

/// The changes of paths, as `what name` and the aspects.
fn told(changes: &[Change]) -> Vec<String> {
    let name = |file: &PathInfo| file.path.rsplit('/').next().unwrap().to_owned();
    let text = |c: &Change| match c {
        Change::Added { file, .. } => format!("+ {}", name(file)),
        Change::Removed { file, .. } => format!("- {}", name(file)),
        Change::Changed { after, aspects, content, .. } => format!("{} {aspects:?} {content:?}", name(after)),
        Change::Stream { stream, before, after, .. } => format!("stream {stream} {before:?} {after:?}"),
        Change::Fact { fact, before, after, .. } => format!("fact {fact} {before:?} {after:?}"),
        Change::SourceAdded { source, .. } => format!("+ source {source}"),
        Change::SourceRemoved { source, .. } => format!("- source {source}"),
        Change::SourceOutcome { source, before, after } => format!("{source} {before:?} {after:?}"),
    };
    changes.iter().map(text).collect()
}

#[test]
fn diff_tells_what_differs_and_nothing_else() {
    let lab = Lab::new();
    let site = lab.path("site");
    fs::create_dir_all(site.join("deep/er")).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(site.join(name), bytes).unwrap();
        tree::set_mtime(&site.join(name), 1_700_000_000, 5);
    };
    for n in 0..200 {
        write(&format!("deep/er/{n:03}"), &noise(n, 3_000));
    }
    for name in ["chmod", "chown", "content", "gone", "grows", "silent", "touched", "type", "xattr"] {
        write(name, name.as_bytes());
    }
    write("large-same", &noise(1, 3 << 20));
    write("large-silent", &noise(2, 3 << 20));
    symlink("a", site.join("link")).unwrap();
    let sparse = File::create(site.join("holes")).unwrap();
    sparse.set_len(4 << 20).unwrap();
    sparse.write_all_at(b"x", 1 << 20).unwrap();
    drop(sparse);
    tree::set_mtime(&site.join("holes"), 1_700_000_000, 5);
    let (old, new) = ("echo before", "echo after!");
    let before = lab.snapshot(
        &lab.sources(&[
            files("site", &[&site]),
            command("db", &["sh", "-c", old], "shop.dump"),
            command("same", &["echo", "1"], "same.out"),
            command("removed", &["echo", "1"], "r.out"),
        ]),
        &[],
    );

    fs::set_permissions(site.join("chmod"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(site.join("chown"), Some(1234), Some(4321)).unwrap();
    fs::write(site.join("content"), b"tnetnoc").unwrap();
    fs::remove_file(site.join("gone")).unwrap();
    fs::write(site.join("grows"), b"grows and grows").unwrap();
    // Neither size nor time tell: only the content does.
    write("silent", b"SILENT");
    write("deep/er/100", &noise(999, 3_000));
    let mut large = noise(2, 3 << 20);
    large[2_000_000] ^= 1;
    write("large-silent", &large);
    tree::set_mtime(&site.join("touched"), 1_700_000_001, 5);
    fs::remove_file(site.join("type")).unwrap();
    symlink("content", site.join("type")).unwrap();
    tree::run(&["setfattr", "-n", "user.note", "-v", "1", site.join("xattr").to_str().unwrap()]);
    fs::remove_file(site.join("link")).unwrap();
    symlink("b", site.join("link")).unwrap();
    write("new", b"new");
    // The same bytes with other holes.
    fs::write(site.join("holes-copy"), fs::read(site.join("holes")).unwrap()).unwrap();
    fs::rename(site.join("holes-copy"), site.join("holes")).unwrap();
    tree::set_mtime(&site.join("holes"), 1_700_000_000, 5);
    let after = lab.snapshot(
        &lab.sources(&[
            files("site", &[&site]),
            command("db", &["sh", "-c", new], "shop.dump"),
            command("same", &["echo", "1"], "same.out"),
            command("added", &["echo", "1"], "a.out"),
        ]),
        &[],
    );

    let (changes, report) = lab.diff(&DiffRequest::new(&before, &after));
    let found = told(&changes);
    let of_site: Vec<&str> = found
        .iter()
        .map(String::as_str)
        .filter(|c| !c.starts_with("fact ") && !c.starts_with("stream ") && !c.contains("source "))
        .collect();
    let expected = [
        "chmod [Mode] Same",
        "chown [Owner] Same",
        "content [Content, Time] Different",
        "100 [Content] Different",
        "- gone",
        "grows [Size, Content, Time] Different",
        "large-silent [Content] Different",
        "link [Time, Target] None",
        "+ new",
        "silent [Content] Different",
        "touched [Time] Same",
        "type [Type, Time] None",
        "xattr [Attributes] Same",
    ];
    assert_eq!(of_site, expected);
    assert!(found.contains(&"stream shop.dump Some(7) Some(7)".to_owned()), "{found:?}");
    assert!(found.contains(&"+ source added".to_owned()) && found.contains(&"- source removed".to_owned()));
    assert!(found.iter().any(|c| c.starts_with("fact command[]") || c.starts_with("fact bytes")), "{found:?}");
    assert!(!found.iter().any(|c| c.contains("same.out")));
    let site_counts = report.sources.iter().find(|s| s.name.as_str() == "site").unwrap();
    assert_eq!((site_counts.added, site_counts.removed, site_counts.changed), (1, 1, 11));
    assert!(!report.same && site_counts.uncompared == 0);

    // Without reading, only sizes, times and the rest of the metadata tell; the report says what was not compared.
    let (changes, report) = lab.diff(&DiffRequest { compare_bytes: 0, ..DiffRequest::new(&before, &after) });
    let found = told(&changes);
    assert!(found.contains(&"content [Time] Unknown".to_owned()) && !found.iter().any(|c| c.starts_with("silent")));
    let uncompared = report.sources.iter().find(|s| s.name.as_str() == "site").unwrap().uncompared;
    assert!((3..100).contains(&uncompared), "{uncompared}: chunk ids tell that the others are the same");

    // One folder, one source.
    let deep = DiffRequest { path: Some(site.join("deep").into()), ..DiffRequest::new(&before, &after) };
    let found = told(&lab.diff(&deep).0);
    assert_eq!(found.iter().filter(|c| !c.contains("source ")).collect::<Vec<_>>(), ["100 [Content] Different"]);
    let db = DiffRequest { source: Some("db".parse().unwrap()), ..DiffRequest::new(&before, &after) };
    assert!(lab.diff(&db).0.iter().all(|c| matches!(c, Change::Stream { .. } | Change::Fact { .. })));

    let (changes, report) = lab.diff(&DiffRequest::new(&after, &after));
    assert!(changes.is_empty() && report.same, "{changes:?}");
}

/// A tree whose entries come in the order in which they are given, and some plain streams beside it: what a source that
/// does not walk may write.
struct Shuffled {
    name: lifeboat::base::ids::SourceName,
    entries: Vec<(String, Vec<u8>)>,
    plain: Vec<&'static str>,
}

impl Shuffled {
    fn new(entries: &[(&str, &[u8])], plain: &[&'static str]) -> Self {
        let entries = entries.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect();
        Self { name: "shuffled".parse().unwrap(), entries, plain: plain.to_vec() }
    }
}

impl Source for Shuffled {
    fn name(&self) -> &lifeboat::base::ids::SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "files"
    }

    fn describe(&self) -> String {
        "entries in an order of their own".to_owned()
    }

    fn probe(&self, _: &lifeboat::base::cancel::Cancel) -> Result<(), SourceError> {
        Ok(())
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        for name in &self.plain {
            let mut stream = cx.sink.stream(name.parse()?, StreamKind::Raw, None).map_err(SourceError::Sink)?;
            stream.write_all(name.as_bytes()).map_err(SourceError::Sink)?;
            stream.finish().map_err(SourceError::Sink)?;
        }
        if !self.plain.is_empty() {
            return Ok(Captured::default());
        }
        let mut tar = tar::Builder::new(Vec::new());
        let mut lines = Vec::new();
        for (path, bytes) in &self.entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            let offset = tar.get_ref().len() as u64;
            tar.append_data(&mut header, path, bytes.as_slice()).unwrap();
            let line = ListingEntry {
                path: path.clone(),
                path_hex: None,
                file_type: FileType::File,
                size: bytes.len() as u64,
                mode: 0o644,
                uid: 0,
                gid: 0,
                user: None,
                group: None,
                mtime: 0,
                mtime_ns: 0,
                target: None,
                target_hex: None,
                offset,
                length: tar.get_ref().len() as u64 - offset,
            };
            serde_json::to_writer(&mut lines, &line).unwrap();
            lines.push(b'\n');
        }
        for (name, kind, bytes) in
            [("files.tar", StreamKind::Tar, tar.into_inner().unwrap()), ("files.listing", StreamKind::Listing, lines)]
        {
            let mut stream = cx.sink.stream(name.parse()?, kind, None).map_err(SourceError::Sink)?;
            stream.write_all(&bytes).map_err(SourceError::Sink)?;
            stream.finish().map_err(SourceError::Sink)?;
        }
        Ok(Captured::default())
    }
}

#[test]
fn trees_in_another_order_are_sorted_before_they_are_compared() {
    let lab = Lab::new();
    let snapshot = |entries: &[(&str, &[u8])]| lab.snapshot(&vec![Box::new(Shuffled::new(entries, &[])) as _], &[]);
    let before = snapshot(&[("z", b"1"), ("b/2", b"old"), ("a", b"1"), ("b/1", b"1"), ("gone", b"1")]);
    let after = snapshot(&[("b/1", b"1"), ("a", b"1"), ("new", b"1"), ("z", b"1"), ("b/2", b"new")]);
    let (changes, _) = lab.diff(&DiffRequest::new(&before, &after));
    assert_eq!(told(&changes), ["2 [Content] Different", "- gone", "+ new"]);
    assert!(changes.iter().all(|c| !matches!(c, Change::Changed { content: Content::Unknown, .. })));
    assert!(changes.iter().any(|c| matches!(c, Change::Changed { aspects, .. } if aspects == &[Aspect::Content])));
    assert_eq!(lab.cat(&after, "/b/2").unwrap(), b"new");
    // What went through the state folder is gone again.
    let left: Vec<_> = fs::read_dir(&lab.installation.state_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with(".tmp")), "{left:?}");
}
