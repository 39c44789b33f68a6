//! How Lifeboat comes onto a machine and leaves it again: the Debian package, `scripts/install.sh`, the container image.
//!
//! The program in them is the one that the tests use; what is tried is what comes with it and what becomes of it. Needs a
//! Docker engine and the image of a bare Debian that `scripts/test.sh` makes.

#[path = "../support/docker.rs"]
mod docker;

mod deb;
mod image;
mod install;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const DEBIAN: &str = "lifeboat-test/debian:13";

pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_lifeboat"))
}

/// A script of the checkout, with the target folder that this program lies in.
pub fn script(name: &str) -> Command {
    let mut command = Command::new(checkout().join("scripts").join(name));
    command.env("CARGO_TARGET_DIR", binary().ancestors().nth(2).unwrap()).env_remove("DESTDIR");
    command
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs `package.sh`: one test at a time, for all make it in one folder.
pub fn make(command: &mut Command) -> Output {
    let target = binary().ancestors().nth(2).unwrap();
    let lock = fs::File::create(target.join("package.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    done
}

/// The package of this checkout.
pub fn package() -> PathBuf {
    let done = make(script("package.sh").arg("--debug"));
    let path = PathBuf::from(String::from_utf8_lossy(&done.stdout).trim());
    // Whoever makes it next makes the same; this test has its own.
    let own = tempfile::Builder::new().prefix("lifeboat-").suffix(".deb").tempfile().unwrap().into_temp_path();
    fs::copy(&path, &own).unwrap();
    own.keep().unwrap()
}

/// Every file below a folder, by its path there, with its mode.
pub fn tree(root: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
                    found.push((path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), mode));
                }
            }
        }
    }
    found.sort();
    found
}
