//! Trees, proved byte by byte.

use crate::docker::TestVolume;
use crate::taken::Taken;
use crate::world::{World, assert_green, assert_only, assert_red, run, text, write};
use lifeboat::base::stream::ListingEntry;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const SOURCES: &str = "[[source]]\nkind = \"files\"\npaths = [\"ROOT/storage\"]\n";

fn fill(root: &Path) {
    let dir = root.join("storage");
    write(&dir.join("a.txt"), "first\n");
    write(&dir.join("deeper/b \"odd\" ž.txt"), &"second\n".repeat(1000));
    fs::write(dir.join("large.bin"), vec![7; 3 << 20]).unwrap();
    fs::hard_link(dir.join("a.txt"), dir.join("deeper/again.txt")).unwrap();
    symlink("a.txt", dir.join("link")).unwrap();
    fs::File::create(dir.join("sparse")).unwrap().set_len(5 << 20).unwrap();
}

fn taken() -> (World, Vec<Taken>) {
    let world = World::new(SOURCES, fill);
    let taken = world.take();
    (world, taken)
}

fn lines(taken: &mut Taken) -> Vec<ListingEntry> {
    let bytes = taken.bytes("files.listing").clone();
    String::from_utf8(bytes).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn list(taken: &mut Taken, lines: &[ListingEntry]) {
    *taken.bytes("files.listing") =
        lines.iter().map(|l| serde_json::to_string(l).unwrap() + "\n").collect::<String>().into();
}

/// Cuts an entry out of the tar.
fn cut(taken: &mut Taken, name: &str) {
    let lines = lines(taken);
    let line = lines.iter().find(|l| l.path.ends_with(name)).unwrap();
    let (from, to) = (line.offset as usize, (line.offset + line.length) as usize);
    taken.bytes("files.tar").drain(from..to);
}

#[test]
fn the_unharmed_twin_is_green() {
    let (world, taken) = taken();
    let proof = world.prove(&taken, "files");
    assert_green(&proof, &[]);
    assert_eq!(proof.restored, ["4 files (8.0 MiB)"]);
    let names: Vec<&str> = proof.checks.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["content", "entries", "counts"]);
}

#[test]
fn a_file_that_the_archive_lacks_is_named() {
    let (world, mut taken) = taken();
    cut(&mut taken[0], "storage/a.txt");
    let proof = world.prove(&taken, "files");
    let check = assert_red(&proof, "entries", &["storage/a.txt", "the archive does not have it"]);
    assert_eq!(check.differences.len(), 1, "what is behind it has only moved: {check:#?}");
    assert_red(&proof, "counts", &["expected"]);
}

#[test]
fn a_file_that_the_listing_lacks_is_named() {
    let (world, mut taken) = taken();
    let mut kept = lines(&mut taken[0]);
    kept.retain(|l| !l.path.ends_with("storage/link"));
    list(&mut taken[0], &kept);
    let proof = world.prove(&taken, "files");
    assert_only(&proof, &["entries"]);
    let check = assert_red(&proof, "entries", &["storage/link", "the listing does not have it"]);
    assert_eq!(check.differences.len(), 1);
}

#[test]
fn what_a_line_says_of_its_entry_counts() {
    type Change = fn(&mut ListingEntry);
    let changes: [(Change, &str); 5] = [
        (|l| l.mode = 0o600, "mode 0600"),
        (|l| l.size += 1, "7 bytes"),
        (|l| l.mtime -= 1, "modified"),
        (|l| l.uid = 4242, "owner 4242"),
        (|l| l.length += 512, "at byte"),
    ];
    for (change, word) in changes {
        let (world, mut taken) = taken();
        let mut changed = lines(&mut taken[0]);
        change(changed.iter_mut().find(|l| l.path.ends_with("storage/a.txt")).unwrap());
        list(&mut taken[0], &changed);
        let proof = world.prove(&taken, "files");
        assert_only(&proof, &["entries"]);
        assert_red(&proof, "entries", &["storage/a.txt", word]);
    }
}

#[test]
fn a_file_cut_short_is_named() {
    let (world, mut taken) = taken();
    let line = lines(&mut taken[0]).into_iter().find(|l| l.path.ends_with("large.bin")).unwrap();
    taken[0].bytes("files.tar").truncate((line.offset + line.length / 2) as usize);
    let proof = world.prove(&taken, "files");
    assert_red(&proof, "content", &["storage/large.bin", "the archive ends within the content of an entry"]);
    let (world, mut taken) = self::taken();
    let length = taken[0].bytes("files.tar").len();
    taken[0].bytes("files.tar").truncate(length - 1024);
    assert_red(&world.prove(&taken, "files"), "content", &["the archive ends within"]);
    let (world, mut taken) = self::taken();
    let length = taken[0].bytes("files.listing").len();
    taken[0].bytes("files.listing").truncate(length - 10);
    assert_red(&world.prove(&taken, "files"), "content", &["the listing", "cut short"]);
}

#[test]
fn a_changed_header_is_named() {
    let (world, mut taken) = taken();
    let line = lines(&mut taken[0]).into_iter().find(|l| l.path.ends_with("large.bin")).unwrap();
    taken[0].bytes("files.tar")[line.offset as usize + 5] ^= 1;
    assert_red(&world.prove(&taken, "files"), "content", &["wrong checksum"]);
}

#[test]
fn a_volume_s_missing_file_is_named() {
    crate::docker::engine();
    let volume = TestVolume::new();
    let point = crate::docker::docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &volume.0]);
    let point = Path::new(point.trim());
    write(&point.join("documents/one.pdf"), "one");
    write(&point.join("documents/two.pdf"), "two");
    run("chown", &["-R", "999:999", text(point)]);
    let sources = format!("[[source]]\nkind = \"volume\"\nvolumes = [\"{}\"]\n", volume.0);
    let world = World::new(&sources, |_| {});
    let mut taken = world.take();
    let proof = world.prove(&taken, "volume");
    assert_green(&proof, &[]);
    assert_eq!(proof.restored, ["2 files (6 B)"]);
    cut(&mut taken[0], "documents/one.pdf");
    assert_red(&world.prove(&taken, "volume"), "entries", &["documents/one.pdf", "the archive does not have it"]);
}
