//! A small ext4 of a test's own, on a loop device: flags of files, and what becomes of a disk that is damaged. Needs root.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program that must succeed; what it said.
pub fn run(argv: &[&str]) -> String {
    let out = Command::new(argv[0]).args(&argv[1..]).output().unwrap();
    assert!(out.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// A file system of its own on a loop device, which becomes read-only when it is damaged.
pub struct Loop {
    device: String,
    at: PathBuf,
}

impl Loop {
    pub fn new(image: &Path, at: &Path) -> Self {
        let file = fs::File::create(image).unwrap();
        file.set_len(64 << 20).unwrap();
        drop(file);
        run(&["mkfs.ext4", "-q", "-F", "-O", "^has_journal", image.to_str().unwrap()]);
        let device = run(&["losetup", "-f", "--show", image.to_str().unwrap()]);
        let new = Self { device, at: at.to_owned() };
        new.mount();
        new
    }

    fn mount(&self) {
        run(&["mount", "-t", "ext4", "-o", "errors=remount-ro", &self.device, self.at.to_str().unwrap()]);
    }

    /// What the kernel does when it meets damage.
    pub fn give_up(&self) {
        let name = self.device.trim_start_matches("/dev/");
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "a test").unwrap();
    }

    /// What whoever looks after the machine does.
    pub fn mend(&self) {
        run(&["umount", self.at.to_str().unwrap()]);
        let checked = Command::new("fsck.ext4").args(["-f", "-y", &self.device]).output().unwrap();
        assert!(checked.status.code().is_some_and(|c| c < 4), "{checked:?}");
        self.mount();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}
