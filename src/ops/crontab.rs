//! What crontabs of this host call, as far as this account may read them.

use crate::base::cancel::Cancel;
use crate::place::account::is_root;
use crate::place::{Command, HostPlace, Place};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FILES: &[&str] = &["/etc/crontab"];
/// Folders of crontabs.
const FOLDERS: &[&str] = &["/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron"];
/// Folders of scripts that are run as they are.
const SCRIPTS: &[&str] = &["/etc/cron.hourly", "/etc/cron.daily", "/etc/cron.weekly", "/etc/cron.monthly"];
const FILE_BYTES: u64 = 1 << 20;

/// One line that is in effect. It may hold secrets.
pub(super) struct Entry {
    pub file: PathBuf,
    pub number: usize,
    pub text: String,
    /// A script's otherwise.
    pub is_crontab: bool,
}

/// Every line, by file.
pub(super) fn entries(cancel: &Cancel) -> Vec<Entry> {
    let mut found = Vec::new();
    let below = |dirs: &[&str]| -> Vec<PathBuf> {
        let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_file()).collect();
        files.sort();
        files
    };
    for file in FILES.iter().map(PathBuf::from).chain(below(FOLDERS)) {
        found.extend(in_text(&file, &read(&file), true));
    }
    for file in below(SCRIPTS) {
        found.extend(in_text(&file, &read(&file), false));
    }
    if !is_root() {
        let command = Command::new(["crontab", "-l"]).timeout(Duration::from_secs(10)).cancel(cancel);
        let text = HostPlace::new().output(command, FILE_BYTES as usize).unwrap_or_default();
        found.extend(in_text(Path::new("crontab -l"), &String::from_utf8_lossy(&text), true));
    }
    found
}

fn read(file: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(file) {
        // What was read until an error is as good as any.
        let _ = file.take(FILE_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn in_text(file: &Path, text: &str, is_crontab: bool) -> Vec<Entry> {
    let numbered = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
    let active = numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    active.map(|(number, line)| Entry { file: file.to_owned(), number, text: line.to_owned(), is_crontab }).collect()
}
