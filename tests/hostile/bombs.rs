//! Snapshots that are small as stored and enormous in what they say: little memory, little disk, an end.

use crate::forged::{Made, forge, line};
use crate::hostile::Hostile;
use crate::lab::{Lab, full};
use lifeboat::ops::browse::{self, FindRequest};
use lifeboat::ops::restore::{RestoreOutcome, RestoreRequest};
use lifeboat::sources::extract::Severity;
use serde_json::json;
use std::io::{self, Read};
use tar::EntryType;

/// What a restore may take, with what this test holds anyway.
const MOST_KIB: u64 = 256 << 10;

/// Items one after the other, made as they are read.
struct Each<F> {
    next: F,
    n: u64,
    most: u64,
    ready: io::Cursor<Vec<u8>>,
}

impl<F: FnMut(u64) -> Vec<u8>> Each<F> {
    fn new(most: u64, next: F) -> Self {
        Each { next, n: 0, most, ready: io::Cursor::default() }
    }
}

impl<F: FnMut(u64) -> Vec<u8>> Read for Each<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.ready.read(out)? {
                0 if self.n < self.most => {
                    self.ready = io::Cursor::new((self.next)(self.n));
                    self.n += 1;
                }
                n => return Ok(n),
            }
        }
    }
}

/// Runs a test in a process of its own, whose memory is looked at.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os("LIFEBOAT_TEST_ALONE").is_none() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env("LIFEBOAT_TEST_ALONE", "1");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    test();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < MOST_KIB, "{kib} KiB");
}

fn many() -> u64 {
    if std::env::var_os("LIFEBOAT_SWEEP").is_some_and(|v| v == "1") { 1_000_000 } else { 60_000 }
}

/// A header with its checksum, of which only the name changes.
fn named(template: &[u8], name: &str) -> Vec<u8> {
    let mut block = template.to_vec();
    block[..100].fill(0);
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[test]
fn a_million_entries_stay_small_sweep() {
    alone("bombs::a_million_entries_stay_small_sweep", || {
        let lab = Lab::new();
        let many = many();
        let header = Hostile::header(b"x", EntryType::Regular, 0);
        let template = header.as_bytes().to_vec();
        let end = |n: u64| if n + 1 == many { vec![0; 1024] } else { Vec::new() };
        // Half of them are files, half lead out.
        let tar = Each::new(many, |n| {
            let name = if n % 2 == 0 { format!("../{n}") } else { format!("f{n}") };
            [named(&template, &name), end(n)].concat()
        });
        let listing = Each::new(many, |n| line(&format!("f{n}"), "file", n * 512, 512).into_bytes());
        let made =
            Made { name: "files", kind: "files", facts: json!({}), tar: Box::new(tar), listing: Box::new(listing) };
        let id = forge(&lab.installation, &lab.path("repository"), vec![made]);
        let into = lab.path("out");
        let report = lab.try_restore(&RestoreRequest::new(&id, &into)).unwrap_or_else(|e| panic!("{}", full(&e)));
        let source = &report.sources[0];
        assert_eq!(source.outcome, RestoreOutcome::Incomplete);
        let tree = source.tree.as_ref().unwrap();
        assert_eq!((tree.entries, tree.worst), (many / 2, Some(Severity::Refused)));
        assert_eq!(tree.summary.iter().map(|t| t.count).collect::<Vec<_>>(), [many / 2]);
        assert_eq!(tree.differences.len() as u64 + tree.unlisted, many / 2);
        assert!(tree.differences.len() <= 1_000);
        let found = browse::find(&lab.access(), &FindRequest::new("f*"), &lab.run()).unwrap();
        assert!(found.found.len() as u64 <= many);
    });
}

#[test]
fn a_listing_without_newlines_and_a_tar_of_zeros_end_soon() {
    alone("bombs::a_listing_without_newlines_and_a_tar_of_zeros_end_soon", || {
        let lab = Lab::new();
        let repository = lab.path("repository");
        let honest = Hostile::default().file(b"good", b"1").end();
        let much = many() * 2_000;
        let endless = || Box::new(io::repeat(b'x').take(much));
        let made = Made { listing: endless(), ..Made::files(&honest, b"") };
        let id = forge(&lab.installation, &repository, vec![made]);
        let request = |name: &str, path: Option<&str>| {
            let paths = path.map(Into::into).into_iter().collect();
            RestoreRequest { paths, ..RestoreRequest::new(&id, lab.path(name)) }
        };
        // The tree itself is whole.
        let report = lab.try_restore(&request("whole", None)).unwrap_or_else(|e| panic!("{}", full(&e)));
        assert_eq!(report.sources[0].outcome, RestoreOutcome::Restored, "{report:?}");
        assert!(lab.try_restore(&request("part", Some("good"))).is_err());
        assert!(lab.ls(&id, None, true).is_err() || lab.ls(&id, Some("files:/"), true).is_err());

        // Zeros without end behind the end of a tar, a header that claims a megabyte of extended header, and a file that
        // claims more than there is.
        let behind = io::Cursor::new(honest.clone()).chain(io::repeat(0).take(much));
        let claims = Hostile::default().push(&Hostile::header(b"p", EntryType::XHeader, 8 << 20), b"").0;
        let claims = io::Cursor::new(claims).chain(io::repeat(b'1').take(much));
        let large = Hostile::default().push(&Hostile::header(b"big", EntryType::Regular, 7 << 30), b"").0;
        let large = io::Cursor::new(large).chain(io::repeat(0).take(50 << 20));
        let tars: [(&str, Box<dyn Read>); 3] =
            [("behind", Box::new(behind)), ("claims", Box::new(claims)), ("large", Box::new(large))];
        for (name, tar) in tars {
            let made = Made { tar, ..Made::files(b"", b"") };
            let id = forge(&lab.installation, &repository, vec![made]);
            let report = lab.try_restore(&RestoreRequest::new(&id, lab.path(name))).unwrap();
            let outcome = report.sources[0].outcome;
            let expected = if name == "behind" { RestoreOutcome::Restored } else { RestoreOutcome::Damaged };
            assert_eq!(outcome, expected, "{name}: {report:?}");
        }
    });
}
