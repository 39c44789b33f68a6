//! Laying tars out: hostile ones touch nothing outside, and nothing is passed over in silence.

#[path = "support/hostile.rs"]
mod hostile;
#[path = "support/tree.rs"]
mod tree;

use hostile::Hostile;
use lifeboat::base::cancel::Cancel;
use lifeboat::sources::extract::{Archive, ExtractError, Extractor, Options, Report, Severity, write_content};
use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tar::EntryType;
use tree::{assert_same, records, run, scratch, text};

/// A destination with a victim beside it. Checks at the end that the victim is as it was.
struct Arena {
    _guard: tempfile::TempDir,
    dir: PathBuf,
    before: BTreeMap<PathBuf, tree::Record>,
}

impl Arena {
    fn new() -> Self {
        let (guard, dir) = scratch();
        fs::create_dir_all(dir.join("victim/sub")).unwrap();
        fs::create_dir(dir.join("to")).unwrap();
        fs::write(dir.join("victim/file"), "victim").unwrap();
        fs::write(dir.join("victim/sub/file"), "victim").unwrap();
        let before = records(&dir.join("victim"));
        Arena { _guard: guard, dir, before }
    }

    fn to(&self) -> PathBuf {
        self.dir.join("to")
    }

    fn extract_with(&self, tar: &[u8], options: Options) -> Result<Report, ExtractError> {
        let mut extractor = Extractor::new(&self.to(), options, &Cancel::new())?;
        let result = extractor.extract(tar);
        let report = extractor.finish()?;
        self.check();
        result.map(|()| report)
    }

    fn extract(&self, tar: &[u8]) -> Result<Report, ExtractError> {
        self.extract_with(tar, Options { owners: true, ..Options::default() })
    }

    fn check(&self) {
        assert_same(&self.before, &records(&self.dir.join("victim")));
        let mut names: Vec<_> = fs::read_dir(&self.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["to", "victim"], "nothing is written beside the destination");
    }

    /// What is there, without the destination itself.
    fn names(&self) -> Vec<String> {
        records(&self.to()).keys().skip(1).map(|p| p.to_string_lossy().into_owned()).collect()
    }
}

fn said(report: &Report) -> Vec<String> {
    report.differences.iter().map(|d| format!("{:?} {}: {}", d.severity, d.path, d.what)).collect()
}

#[test]
fn paths_that_lead_out_are_refused_and_the_rest_is_laid_out() {
    let arena = Arena::new();
    let absolute = arena.dir.join("victim/file");
    let tar = Hostile::default()
        .file(b"good", b"1")
        .file(b"../victim/file", b"x")
        .file(b"../new", b"x")
        .file(b"a/../../victim/file", b"x")
        .file(b"a/..", b"x")
        .pax(&[("path", text(&absolute).as_bytes())])
        .file(b"absolute", b"x")
        .pax(&[("path", b"nul\0byte")])
        .file(b"x", b"x")
        .file(b"b//c", b"x")
        .dir(b"../../")
        .dir(b"..")
        .symlink(b"../link", b"x")
        .hardlink(b"../hard", b"good")
        .file(b"./also/./good", b"2")
        .end();
    let report = arena.extract(&tar).unwrap();
    assert_eq!(arena.names(), ["also", "also/good", "good"]);
    assert_eq!(report.differences.len(), 11, "{:#?}", said(&report));
    assert!(report.differences.iter().all(|d| d.severity == Severity::Refused));
    assert_eq!(report.worst, Some(Severity::Refused));
    assert_eq!(report.entries, 2);
}

#[test]
fn nothing_is_written_through_a_symlink() {
    let arena = Arena::new();
    let victim = arena.dir.join("victim");
    let tar = Hostile::default()
        .symlink(b"out", text(&victim).as_bytes())
        .file(b"out/file", b"x")
        .dir(b"out/newdir")
        .dir(b"out")
        .symlink(b"up", b"../victim")
        .file(b"up/sub/file", b"x")
        .hardlink(b"up/hard", b"up")
        .symlink(b"file-link", b"../victim/file")
        .file(b"file-link", b"x")
        .dir(b"d")
        .symlink(b"d/e", b"../../victim")
        .file(b"d/e/file", b"x")
        .end();
    for overwrite in [false, true] {
        let arena = Arena::new();
        let report = arena.extract_with(&tar, Options { overwrite, ..Options::default() }).unwrap();
        assert_eq!(
            report.differences.iter().filter(|d| d.severity == Severity::Refused).count(),
            7,
            "{:#?}",
            said(&report)
        );
    }
    // The same with links that were there before.
    symlink(&victim, arena.to().join("there")).unwrap();
    symlink(victim.join("file"), arena.to().join("there-file")).unwrap();
    let tar = Hostile::default().file(b"there/file", b"x").dir(b"there").file(b"there-file", b"x").end();
    let report = arena.extract(&tar).unwrap();
    assert_eq!(report.differences.len(), 3, "{:#?}", said(&report));
    let report = arena.extract_with(&tar, Options { overwrite: true, ..Options::default() }).unwrap();
    assert_eq!(report.differences.len(), 2, "{:#?}", said(&report));
    assert!(arena.to().join("there-file").symlink_metadata().unwrap().is_file(), "the link itself was replaced");
}

#[test]
fn hard_links_lead_only_to_what_came_with_them() {
    let arena = Arena::new();
    fs::write(arena.to().join("old"), "was here").unwrap();
    symlink("../victim/file", arena.to().join("old-link")).unwrap();
    let tar = Hostile::default()
        .file(b"a", b"1")
        .symlink(b"s", b"../victim/file")
        .symlink(b"dir", b"../victim")
        .dir(b"d")
        .hardlink(b"h1", b"../victim/file")
        .hardlink(b"h2", text(&arena.dir.join("victim/file")).as_bytes())
        .hardlink(b"h3", b"dir/file")
        .hardlink(b"h4", b"old-link")
        .hardlink(b"h5", b"old")
        .hardlink(b"h6", b"d")
        .hardlink(b"h7", b"missing")
        .hardlink(b"h8", b"later")
        .hardlink(b"good", b"a")
        .hardlink(b"d/good", b"./a")
        .file(b"later", b"2")
        .end();
    let report = arena.extract(&tar).unwrap();
    assert_eq!(report.differences.len(), 8, "{:#?}", said(&report));
    assert_eq!(arena.names(), ["a", "d", "d/good", "dir", "good", "later", "old", "old-link", "s"]);
    assert_eq!(fs::metadata(arena.to().join("a")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(arena.dir.join("victim/file")).unwrap().nlink(), 1);
}

#[test]
fn a_hard_link_to_a_symlink_of_the_archive_writes_nothing_through_it() {
    let arena = Arena::new();
    let tar = Hostile::default().symlink(b"s", b"../victim/file").hardlink(b"h", b"s").file(b"h", b"through").end();
    let report = arena.extract(&tar).unwrap();
    assert_eq!(said(&report).len(), 1, "{:#?}", said(&report));
}

#[test]
fn devices_setuid_and_capabilities_need_privilege_and_are_said() {
    let arena = Arena::new();
    let mut setuid = Hostile::header(b"su", EntryType::Regular, 1);
    setuid.set_mode(0o6755);
    setuid.set_cksum();
    let tar = || {
        Hostile::default()
            .special(b"char", EntryType::Char, b"")
            .special(b"block", EntryType::Block, b"")
            .special(b"fifo", EntryType::Fifo, b"")
            .push(&setuid, b"x")
            .pax(&[("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])])
            .file(b"caps", b"x")
            .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.fine", b"y")])
            .file(b"overlay", b"x")
            .end()
    };
    let report = arena.extract(&tar()).unwrap();
    assert_eq!(report.differences.len(), 6, "{:#?}", said(&report));
    assert_eq!(arena.names(), ["caps", "overlay", "su"]);
    let found = records(&arena.to());
    assert_eq!(found[Path::new("su")].mode, 0o755);
    assert!(found[Path::new("caps")].xattrs.is_empty());
    assert_eq!(found[Path::new("overlay")].xattrs.len(), 1);

    let arena = Arena::new();
    let report = arena.extract_with(&tar(), Options { privileged: true, owners: true, overwrite: false }).unwrap();
    assert_eq!(said(&report), Vec::<String>::new());
    assert_eq!(arena.names(), ["block", "caps", "char", "fifo", "overlay", "su"]);
    let found = records(&arena.to());
    assert_eq!(found[Path::new("su")].mode, 0o6755);
    assert_eq!(found[Path::new("caps")].xattrs.len(), 1);
    assert_eq!(found[Path::new("overlay")].xattrs.len(), 2);
}

#[test]
fn a_name_that_comes_twice_is_refused_the_second_time() {
    for overwrite in [false, true] {
        let arena = Arena::new();
        let tar = Hostile::default()
            .file(b"a", b"first")
            .file(b"a", b"second")
            .symlink(b"a", b"x")
            .dir(b"a")
            .dir(b"d")
            .file(b"d/f", b"1")
            .dir(b"d")
            .file(b"d", b"x")
            .end();
        let report = arena.extract_with(&tar, Options { overwrite, ..Options::default() }).unwrap();
        assert_eq!(report.differences.len(), 4, "{:#?}", said(&report));
        assert_eq!(fs::read(arena.to().join("a")).unwrap(), b"first");
    }
}

#[test]
fn what_exists_is_replaced_only_when_asked() {
    let arena = Arena::new();
    let to = arena.to();
    fs::write(to.join("file"), "old").unwrap();
    fs::hard_link(to.join("file"), to.join("other-name")).unwrap();
    fs::create_dir(to.join("dir")).unwrap();
    tree::set_mode(&to.join("dir"), 0o711);
    fs::write(to.join("dir/untouched"), "mine").unwrap();
    let tar = Hostile::default()
        .file(b"file", b"new")
        .hardlink(b"other-name", b"file")
        .dir(b"dir")
        .file(b"dir/added", b"new")
        .symlink(b"dir/untouched/x", b"y")
        .end();
    let report = arena.extract(&tar).unwrap();
    assert_eq!(report.differences.len(), 4, "{:#?}", said(&report));
    assert_eq!(fs::read(to.join("file")).unwrap(), b"old");
    assert_eq!(fs::metadata(to.join("dir")).unwrap().mode() & 0o777, 0o711);
    fs::remove_file(to.join("dir/added")).unwrap();
    let report = arena.extract_with(&tar, Options { overwrite: true, ..Options::default() }).unwrap();
    assert_eq!(report.differences.len(), 1, "{:#?}", said(&report));
    assert_eq!(fs::read(to.join("file")).unwrap(), b"new");
    assert_eq!(fs::read(to.join("dir/untouched")).unwrap(), b"mine");
    assert_eq!(fs::metadata(to.join("file")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(to.join("dir")).unwrap().mode() & 0o777, 0o644);
    assert_eq!(arena.names(), ["dir", "dir/added", "dir/untouched", "file", "other-name"], "no temporary file stays");
}

fn malformed(tar: &[u8]) -> String {
    let arena = Arena::new();
    let error = arena.extract(tar).unwrap_err();
    assert!(matches!(error, ExtractError::Archive(_)), "{error}");
    error.to_string()
}

#[test]
fn what_readers_could_understand_differently_is_refused() {
    // TARmageddon: the pax size hides an inner archive from those who read it, and shows it to the others.
    let inner = Hostile::default().file(b"hidden", b"x").0;
    let desync = Hostile::default()
        .pax(&[("size", inner.len().to_string().as_bytes())])
        .push(&Hostile::header(b"outer", EntryType::Regular, 0), &inner)
        .end();
    assert!(malformed(&desync).ends_with("two different sizes"));
    let smaller = Hostile::default().pax(&[("size", b"0")]).file(b"outer", &inner).end();
    assert!(malformed(&smaller).ends_with("two different sizes"));
    for (records, expected) in [
        (&[("size", &b"-1"[..])][..], "size is not a number"),
        (&[("size", b"0x10")], "size is not a number"),
        (&[("size", b"99999999999999999999")], "size is not a number"),
        (&[("size", b"9223372036854775808")], "two different sizes"),
        (&[("mtime", b"soon")], "mtime is not a time"),
        (&[("uid", b"4294967296")], "impossible uid"),
    ] {
        let tar = Hostile::default().pax(records).file(b"f", b"").end();
        assert!(malformed(&tar).ends_with(expected), "{}", malformed(&tar));
    }
    // Sizes of the header itself, as GNU writes what octal digits cannot hold: below nothing, and more than there is.
    for (field, expected) in [([0xff; 12], "size"), ([0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0], "size")] {
        let mut header = Hostile::header(b"f", EntryType::Regular, 0);
        header.as_old_mut().size = field;
        header.set_cksum();
        let said = malformed(&Hostile::default().push(&header, b"").end());
        assert!(said.contains(expected), "{said}");
    }
    for digits in [b"-0000000001\0", b"0000000000x\0"] {
        let mut header = Hostile::header(b"f", EntryType::Regular, 0);
        header.as_old_mut().size = *digits;
        header.set_cksum();
        let said = malformed(&Hostile::default().push(&header, b"").end());
        assert!(said.contains("size") || said.contains("number"), "{said}");
    }
    let content = |kind| Hostile::default().push(&Hostile::header(b"d", kind, 3), b"abc").end();
    assert!(malformed(&content(EntryType::Directory)).ends_with("content behind a folder"));
    assert!(malformed(&content(EntryType::Symlink)).ends_with("content behind a symlink"));
    assert!(malformed(&content(EntryType::Link)).ends_with("content behind a hard link"));
    assert!(malformed(&content(EntryType::XGlobalHeader)).contains("a pax record without a length"));
    let global = |body: &[u8]| {
        Hostile::default().push(&Hostile::header(b"g", EntryType::XGlobalHeader, body.len() as u64), body)
    };
    assert!(malformed(&global(b"10 path=ab\n").file(b"f", b"").end()).contains("of another length"));
    assert!(malformed(&global(b"11 path=abc\n").file(b"f", b"").end()).contains("of another length"));
    assert!(malformed(&global(b"11 path=ab\n").file(b"f", b"").end()).ends_with("changes every entry behind it"));
    let twice = Hostile::default().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file(b"f", b"").end();
    assert!(malformed(&twice).ends_with("two pax headers for one entry"));
    let orphan = Hostile::default().pax(&[("path", b"a")]).end();
    assert!(malformed(&orphan).ends_with("an extension header without an entry"));
    let mut sum = Hostile::default().file(b"f", b"").end();
    sum[0] ^= 1;
    assert!(malformed(&sum).ends_with("wrong checksum"));
    let mut behind = Hostile::default().file(b"f", b"").end();
    behind.extend(Hostile::default().file(b"g", b"").end());
    assert!(malformed(&behind).ends_with("bytes behind the end of the archive"));
    let huge = Hostile::header(b"pax", EntryType::XHeader, 1 << 32);
    assert!(malformed(&Hostile::default().push(&huge, b"").end()).contains("an extension header larger than"));
    let unknown = Hostile::default().push(&Hostile::header(b"v", EntryType::new(b'V'), 0), b"").end();
    assert!(malformed(&unknown).ends_with("unknown type 'V'"));
}

/// An archive in an archive is content, whatever stands in it; GNU tar lists the same.
#[test]
fn a_nested_archive_is_one_file() {
    let inner = Hostile::default().file(b"hidden", b"x").pax(&[("path", b"../out")]).file(b"y", b"y").end();
    let tar = Hostile::default().file(b"inner.tar", &inner).file(b"behind", b"b").end();
    let arena = Arena::new();
    arena.extract(&tar).unwrap();
    assert_eq!(arena.names(), ["behind", "inner.tar"]);
    assert_eq!(fs::read(arena.to().join("inner.tar")).unwrap(), inner);
    let file = arena.to().join("inner.tar");
    fs::write(&file, &tar).unwrap();
    assert_eq!(run(&["tar", "--list", "-f", text(&file)]), "inner.tar\nbehind\n");
}

#[test]
fn an_archive_that_is_cut_short_is_an_error() {
    let whole = Hostile::default().file(b"f", &[7; 600]).pax(&[("path", b"long")]).file(b"g", b"").end();
    let edges = (0..whole.len()).step_by(512).flat_map(|at| [at.saturating_sub(1), at, at + 1]);
    for cut in edges.chain((0..whole.len()).step_by(97)) {
        let arena = Arena::new();
        let result = arena.extract(&whole[..cut]);
        assert!(result.is_err(), "cut at {cut}");
        if cut < 512 + 600 {
            assert!(!arena.to().join("f").exists(), "half a file stays at {cut}");
        }
    }
    let arena = Arena::new();
    arena.extract(&whole).unwrap();
    assert_eq!(arena.names(), ["f", "long"]);
}

#[test]
fn declared_sizes_cost_nothing_until_they_are_real() {
    let arena = Arena::new();
    let mut big = Hostile::header(b"big", EntryType::Regular, 0);
    big.set_size(1 << 40);
    big.set_cksum();
    let error = arena.extract(&Hostile::default().push(&big, b"only this").0).unwrap_err();
    assert!(error.to_string().starts_with("the archive ends within the content of an entry"), "{error}");
    assert!(arena.names().is_empty());

    let sparse = |realsize: &[u8], map: &[u8]| {
        let mut content = map.to_vec();
        content.resize(content.len().next_multiple_of(512), 0);
        content.extend(b"data");
        Hostile::default()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.realsize", realsize),
            ])
            .file(b"GNUSparseFile.0/s", &content)
            .end()
    };
    for (realsize, map, expected) in [
        (&b"18446744073709551615"[..], &b"1\n0\n4\n"[..], "does not fit its data"),
        (b"9223372036854775808", b"1\n0\n4\n", "does not fit its data"),
        (b"4", b"1\n1\n4\n", "beyond the file's end"),
        (b"100", b"2\n50\n2\n0\n2\n", "beyond the file's end"),
        (b"100", b"2\n0\n3\n2\n1\n", "beyond the file's end"),
        (b"100", b"1\n0\n5\n", "does not fit its data"),
        (b"100", b"1\n0\n", "no numbers"),
        (b"100", b"99999999999\n0\n4\n", "too many segments"),
        (b"100", b"1\n18446744073709551615\n4\n", "beyond the file's end"),
        (b"100", b"-1\n0\n4\n", "no numbers"),
        (b"100", b"1\n99999999999999999999\n4\n", "impossible numbers"),
    ] {
        let said = malformed(&sparse(realsize, map));
        assert!(said.contains(expected), "{said}");
    }
    // Eight EiB less one are a size that some file systems hold; here it is this one's business to refuse it.
    let arena = Arena::new();
    let result = arena.extract(&sparse(b"9223372036854775807", b"1\n0\n4\n"));
    match result {
        Err(error) => assert!(error.to_string().starts_with("write "), "{error}"),
        Ok(_) => assert!(fs::metadata(arena.to().join("s")).unwrap().blocks() <= 16),
    }
    let arena = Arena::new();
    arena.extract(&sparse(b"1000000000000", b"2\n999999999000\n4\n1000000000000\n0\n")).unwrap();
    let meta = fs::metadata(arena.to().join("s")).unwrap();
    assert!(meta.len() == 1_000_000_000_000 && meta.blocks() <= 16);
}

#[test]
fn a_folder_that_is_swapped_for_a_symlink_meanwhile_leads_nowhere() {
    let arena = Arena::new();
    let (to, victim) = (arena.to(), arena.dir.join("victim"));
    /// Stops the racing thread, also when a check fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, swapped) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = records(&victim);
    let mut tar = Hostile::default();
    for i in 0..300 {
        tar = tar.dir(b"d").file(format!("d/file{i}").as_bytes(), b"x").dir(b"other");
    }
    let tar = tar.end();
    // How often the extraction stood before the symlink, and said so.
    let (mut met, mut rounds) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let moved = fs::rename(to.join("d"), to.join("aside")).is_ok();
                if symlink(&victim, to.join("d")).is_ok() && moved {
                    swapped.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::yield_now();
                let _ = fs::remove_file(to.join("d"));
                let _ = fs::rename(to.join("aside"), to.join("d"));
            }
        });
        let _stop = Stop(&stop);
        // How the threads take turns is the machine's business: it goes on until the attack was met.
        while rounds < 20 || (rounds < 2000 && met < 10) {
            rounds += 1;
            let _ = fs::remove_dir_all(to.join("d"));
            let mut extractor = Extractor::new(&to, Options::default(), &Cancel::new()).unwrap();
            let extracted = extractor.extract(&tar[..]);
            let finished = extractor.finish();
            assert_same(&before, &records(&victim));
            let refused = |report: &Report| {
                let refused = report.differences.iter().filter(|d| d.severity == Severity::Refused);
                refused.filter(|d| d.what.contains("symlink")).count()
            };
            met += finished.as_ref().map_or(0, refused);
            // Or the whole of it is given up, because something else stands where it had a folder.
            met += usize::from(matches!(extracted, Err(ExtractError::Moved { .. })));
        }
    });
    let swapped = swapped.load(Ordering::Relaxed);
    println!("{rounds} extractions, {swapped} swaps, the symlink was met {met} times");
    assert!(swapped >= 20 && met >= 10, "{rounds} extractions, {swapped} swaps, met {met} times");
    arena.check();
}

#[test]
fn what_gnu_tar_writes_is_read_in_every_format() {
    let (_guard, dir) = scratch();
    let from = dir.join("from");
    fs::create_dir(&from).unwrap();
    tree::nasty(&from);
    let expected = records(&from);
    for (format, sparse) in [("posix", "1.0"), ("gnu", "0.0")] {
        let tar = dir.join(format!("{format}.tar"));
        let mut argv =
            vec!["tar", "--sparse", "--numeric-owner", "-cf", text(&tar), "-C", text(&from), "--format", format];
        let version = format!("--sparse-version={sparse}");
        if format == "posix" {
            argv.extend(["--xattrs", "--acls", "--xattrs-include=*", &version]);
        }
        argv.push(".");
        run(&argv);
        let to = dir.join(format);
        fs::create_dir(&to).unwrap();
        let options = Options { privileged: true, owners: true, overwrite: false };
        let mut extractor = Extractor::new(&to, options, &Cancel::new()).unwrap();
        extractor.extract(BufReader::new(fs::File::open(&tar).unwrap())).unwrap();
        let report = extractor.finish().unwrap();
        assert_eq!(said(&report), ["Missing .: the destination keeps its own metadata"]);
        let mut found = records(&to);
        found.insert(PathBuf::new(), expected[Path::new("")].clone());
        let mut expected = expected.clone();
        if format == "gnu" {
            // This format has whole seconds and no attributes.
            for record in expected.values_mut().chain(found.values_mut()) {
                record.mtime.1 = 0;
                record.xattrs.clear();
            }
        }
        assert_same(&expected, &found);
    }
}

#[test]
fn the_content_of_one_entry_is_written_out_with_its_holes() {
    let (_guard, dir) = scratch();
    let file = fs::File::create(dir.join("s")).unwrap();
    file.set_len(1_000_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 500_000).unwrap();
    let tar = dir.join("t.tar");
    run(&["tar", "--sparse", "--format=posix", "-cf", text(&tar), "-C", text(&dir), "s"]);
    let mut archive = Archive::new(fs::File::open(&tar).unwrap());
    let member = archive.next_member().unwrap().unwrap();
    assert!(member.payload < 20_000);
    let mut out = Vec::new();
    write_content(&mut archive, &member, &mut out).unwrap();
    assert_eq!(out, fs::read(dir.join("s")).unwrap());
}

#[test]
fn a_full_disk_ends_the_extraction_and_leaves_no_half_file() {
    let (_guard, dir) = scratch();
    let small = dir.join("small");
    fs::create_dir(&small).unwrap();
    run(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", text(&small)]);
    let tar = Hostile::default().file(b"fits", &[1; 500_000]).file(b"does-not", &[2; 900_000]).end();
    let mut extractor = Extractor::new(&small, Options::default(), &Cancel::new()).unwrap();
    let result = extractor.extract(&tar[..]);
    drop(extractor);
    let left: Vec<_> = fs::read_dir(&small).unwrap().map(|e| fs::read(e.unwrap().path()).unwrap()).collect();
    run(&["umount", text(&small)]);
    let error = result.unwrap_err().to_string();
    // Several threads write: either of the two may be the one for which there is no room.
    assert!(["/small/does-not", "/small/fits"].iter().any(|name| error.ends_with(name)), "{error}");
    assert!(left.len() < 2 && left.iter().all(|file| *file == [1; 500_000] || *file == [2; 900_000]));
}

/// Runs the helper below in a process of its own: behind `wrapper`, with a task and a folder.
fn helper(wrapper: &[&str], task: &str, dir: &Path) -> String {
    let copy = dir.join("test-binary");
    if !copy.exists() {
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        tree::set_mode(&copy, 0o755);
    }
    tree::set_mode(dir, 0o777);
    let argv = [wrapper, &[text(&copy), "--exact", "helper_process", "--ignored", "--nocapture"]].concat();
    let out = std::process::Command::new(argv[0])
        .args(&argv[1..])
        .env("LIFEBOAT_TEST_TASK", task)
        .env("LIFEBOAT_TEST_DIR", dir)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    said
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn helper_process() {
    let dir = PathBuf::from(std::env::var_os("LIFEBOAT_TEST_DIR").unwrap());
    let to = dir.join(std::env::var_os("LIFEBOAT_TEST_TASK").unwrap());
    fs::create_dir(&to).unwrap();
    let options = Options { privileged: true, owners: true, overwrite: false };
    let mut extractor = Extractor::new(&to, options, &Cancel::new()).unwrap();
    match extractor
        .extract(BufReader::new(fs::File::open(dir.join("t.tar")).unwrap()))
        .and_then(|()| extractor.finish())
    {
        Ok(report) => said(&report).iter().for_each(|said| println!("said {said}")),
        Err(e) => println!("failed: {e}: {:?}", std::error::Error::source(&e).map(ToString::to_string)),
    }
}

/// A tar of the nasty tree in a folder that everybody may use, and what it holds.
fn nasty_tar(dir: &Path) -> BTreeMap<PathBuf, tree::Record> {
    let from = dir.join("from");
    tree::nasty(&from);
    let expected = records(&from);
    let tar = dir.join("t.tar");
    let argv = ["tar", "--sparse", "--numeric-owner", "--format=posix", "--xattrs", "--acls", "--xattrs-include=*"];
    run(&[&argv, &["-cf", text(&tar), "-C", text(dir), "from"][..]].concat());
    fs::remove_dir_all(&from).unwrap();
    expected
}

#[test]
fn neither_umask_nor_a_kernel_without_openat2_changes_the_result() {
    let (_guard, dir) = scratch();
    let expected = nasty_tar(&dir);
    for umask in ["000", "077", "777"] {
        let script = format!("umask {umask}; exec \"$@\"");
        helper(&["sh", "-c", &script, "sh"], umask, &dir);
        assert_same(&expected, &records(&dir.join(umask).join("from")));
    }
    for error in ["ENOSYS", "EPERM"] {
        let log = dir.join(format!("{error}.log"));
        let inject = format!("inject=openat2:error={error}");
        helper(&["strace", "-f", "-o", text(&log), "-e", "trace=openat2", "-e", &inject], error, &dir);
        assert_same(&expected, &records(&dir.join(error).join("from")));
        assert!(fs::read_to_string(&log).unwrap().contains("(INJECTED)"), "the fault was not injected");
    }
}

#[test]
fn an_ordinary_user_gets_what_he_may_have_and_is_told_the_rest() {
    let (_guard, dir) = scratch();
    let expected = nasty_tar(&dir);
    let said = helper(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], "nobody", &dir);
    let found = records(&dir.join("nobody/from"));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (path, was) in &expected {
        let is = &found[path];
        let told = |what: &str| {
            let line = format!("from/{}: {what}", path.display());
            said.lines().any(|l| l.starts_with("said Metadata ") && l.contains(line.trim_end_matches("/: ")))
        };
        assert_eq!((is.uid, is.gid), (65_534, 65_534));
        assert_eq!(
            (&is.content, is.size, &is.target, is.mtime),
            (&was.content, was.size, &was.target, was.mtime),
            "{path:?}"
        );
        assert_eq!(is.mode & 0o1777, was.mode & 0o1777, "{path:?}");
        let printable = !path.to_string_lossy().contains(['\n', '\u{fffd}', '\\']) && !path.as_os_str().is_empty();
        // The names of one file have one owner, and it is told of one of them.
        assert!(!printable || was.same_as.is_some() || told("owner "), "{path:?}\n{said}");
        for name in was.xattrs.keys().filter(|name| !is.xattrs.contains_key(*name)) {
            let name = String::from_utf8_lossy(name);
            assert!(told(&format!("attribute {name} not restored")), "{path:?} {name}\n{said}");
        }
    }
    assert!(found[Path::new("xattrs")].xattrs.contains_key(&b"user.binary"[..]));
    assert!(found[Path::new("acl/file")].xattrs.contains_key(&b"system.posix_acl_access"[..]));
}

/// A tar of hard links to a file of 100 KB, extracted where there are none.
fn without_hard_links(tar: Vec<u8>) -> (tempfile::TempDir, PathBuf, String) {
    extracted_under(tar, &["linkat:error=EPERM"])
}

/// A tar, extracted while each of these faults is injected.
fn extracted_under(tar: Vec<u8>, faults: &[&str]) -> (tempfile::TempDir, PathBuf, String) {
    let (guard, dir) = scratch();
    fs::write(dir.join("t.tar"), tar).unwrap();
    let log = dir.join("log");
    let calls: Vec<&str> = faults.iter().map(|fault| fault.split(':').next().unwrap()).collect();
    let trace = format!("trace={}", calls.join(","));
    let injected: Vec<String> = faults.iter().map(|fault| format!("inject={fault}")).collect();
    let mut wrapper = vec!["strace", "-f", "-o", text(&log), "-e", &trace];
    wrapper.extend(injected.iter().flat_map(|inject| ["-e", inject]));
    let said = helper(&wrapper, "to", &dir);
    let log = fs::read_to_string(&log).unwrap();
    for call in calls {
        let hit = |line: &str| line.contains(&format!("{call}(")) && line.contains("(INJECTED)");
        assert!(log.lines().any(hit), "no fault of {call} was injected");
    }
    (guard, dir.join("to"), said)
}

/// Where the data of a file lies may not be to be had: a copy is then made without, or not at all, and never of zeros.
#[test]
fn a_copy_instead_of_a_hard_link_is_whole_or_not_there() {
    let content: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let tar = Hostile::default().file(b"a", &content).hardlink(b"b", b"a").end();
    for unknown in ["EINVAL", "EOPNOTSUPP"] {
        let faults = ["linkat:error=EPERM", &format!("lseek:error={unknown}")];
        let (_guard, to, said) = extracted_under(tar.clone(), &faults);
        assert!(said.contains("said Metadata b: a copy of a, not a hard link: "), "{said}");
        assert!(fs::read(to.join("b")).unwrap() == content, "{unknown}: {said}");
    }
    let (_guard, to, said) = extracted_under(tar, &["linkat:error=EPERM", "lseek:error=EIO"]);
    assert!(said.contains("failed: copy, as there are no hard links, b"), "{said}");
    assert!(said.contains("Input/output error"), "{said}");
    assert!(!to.join("b").exists() && fs::read(to.join("a")).unwrap() == content, "{said}");
}

#[test]
fn where_there_are_no_hard_links_copies_are_made_and_said_to_be() {
    let content = vec![7; 100_000];
    let mut secret = Hostile::header(b"a", EntryType::Regular, content.len() as u64);
    secret.set_mode(0o640);
    secret.set_uid(1000);
    secret.set_cksum();
    let tar = Hostile::default()
        .pax(&[("SCHILY.xattr.user.note", b"n"), ("mtime", b"1700000000.5")])
        .push(&secret, &content)
        .dir(b"d")
        .hardlink(b"d/b", b"a")
        .hardlink(b"c", b"a")
        .end();
    let (_guard, to, said) = without_hard_links(tar);
    let found = records(&to);
    assert_eq!(found[Path::new("d/b")], found[Path::new("a")], "content, mode, owner, time and attributes");
    assert_eq!((found[Path::new("a")].mode, found[Path::new("a")].uid), (0o640, 1000));
    assert!(said.contains("said Metadata d/b: a copy of a, not a hard link: Operation not permitted"), "{said}");
    // As much as came with the archive, and no more: a few links to a large file shall not fill the disk.
    assert!(!to.join("c").exists());
    assert!(said.contains("said Missing c: hard link not restored: "), "{said}");
    assert!(said.contains("copies would hold more than the archive does"), "{said}");
}

#[test]
fn an_ordinary_user_is_told_of_devices_and_may_give_files_to_a_group_of_his_own() {
    let (_guard, dir) = scratch();
    let mut grouped = Hostile::header(b"grouped", EntryType::Regular, 0);
    grouped.set_gid(4242);
    grouped.set_cksum();
    // Number 0:0 is one that everybody may make.
    let mut device = Hostile::header(b"device", EntryType::Char, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    let tar = Hostile::default().push(&device, b"").special(b"fifo", EntryType::Fifo, b"").push(&grouped, b"").end();
    fs::write(dir.join("t.tar"), tar).unwrap();
    let said = helper(&["setpriv", "--reuid=65534", "--regid=65534", "--groups=4242"], "nobody", &dir);
    assert!(said.contains("said Missing device: character device not created: Operation not permitted"), "{said}");
    let found = records(&dir.join("nobody"));
    assert_eq!(found.keys().filter(|p| p.file_name().is_some()).count(), 2, "{found:?}");
    assert_eq!((found[Path::new("grouped")].uid, found[Path::new("grouped")].gid), (65534, 4242));
    assert!(said.contains("said Metadata grouped: owner 0:4242 not restored"), "{said}");
}
