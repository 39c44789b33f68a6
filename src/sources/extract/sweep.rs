//! Hostile tars: the reader comes to an end, and what it accepts is what GNU tar sees.

use super::{Archive, TarError, write_content};
use crate::base::fuzz::Fuzz;
use std::cell::Cell;
use std::io::Write;
use std::process::{Command, Stdio};

/// How often GNU tar is asked for its opinion.
const COMPARED: usize = 40;

/// The names in an archive that is read to its end.
fn names(bytes: &[u8]) -> Result<Vec<Vec<u8>>, TarError> {
    let mut archive = Archive::new(bytes);
    let mut found = Vec::new();
    while let Some(member) = archive.next_member()? {
        assert!(member.payload <= bytes.len() as u64 || member.entry.size > 0);
        // A declared size costs nothing; what is written out are zeros for holes.
        if member.entry.size < 1 << 20 {
            let _ = write_content(&mut archive, &member, &mut std::io::sink());
        }
        found.push(member.entry.path);
    }
    Ok(found)
}

fn by_gnu_tar(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut tar = Command::new("tar");
    tar.args(["--list", "--quoting-style=literal", "-P", "-f", "-"]).env("LC_ALL", "C");
    let mut tar = tar.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = tar.stdin.take().unwrap();
    let all = bytes.to_vec();
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&all)));
    let output = tar.wait_with_output().unwrap();
    feeding.join().unwrap();
    output.status.success().then_some(output.stdout)
}

#[test]
fn sweep_tars() {
    let compared = Cell::new(0);
    let most = if std::env::var_os("LIFEBOAT_SWEEP").is_some() { usize::MAX } else { COMPARED };
    let words =
        ["ustar\u{0}00", "ustar  \u{0}", "\0", "size=", "path=", "GNU.sparse.major=1", "12 size=999\n", "../", "/"];
    Fuzz::of("tar").words(&words).run(|bytes| {
        // A change of a header is found by its checksum, so the checksums are made to fit.
        let sealed = with_checksums(bytes);
        for bytes in [bytes, &sealed] {
            let Ok(found) = names(bytes).map_err(|e| e.to_string()) else { continue };
            let odd = |name: &Vec<u8>| name.iter().any(|b| *b == 0 || *b == b'\n' || !(32..127).contains(b));
            if compared.get() >= most || found.is_empty() || found.iter().any(odd) {
                continue;
            }
            compared.set(compared.get() + 1);
            // What it complains of is nobody's to understand otherwise.
            let Some(theirs) = by_gnu_tar(bytes) else { continue };
            let theirs = String::from_utf8_lossy(&theirs).into_owned();
            let name = |line: &str| if line == "/" { line.to_owned() } else { line.trim_end_matches('/').to_owned() };
            let ours: Vec<String> = found.iter().map(|n| String::from_utf8_lossy(n).into_owned()).collect();
            assert_eq!(theirs.lines().map(name).collect::<Vec<_>>(), ours);
        }
    });
}

/// The same with the checksum of every block set that could be a header.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        let looks = block[148..156].iter().all(|b| matches!(b, b'0'..=b'7' | b' ' | 0)) && block[0] != 0;
        if looks && (&block[257..262] == b"ustar" || block[155] == b' ') {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}
