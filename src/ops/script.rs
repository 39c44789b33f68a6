//! Scripts of people's own that a line of a crontab or of a unit runs: text that may be executed, or that a shell is given.
//!
//! Invariants: a script is read, up to a length, and never run; no more than a number of them is read in one look, whatever
//! crontabs hold.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is longer is a program, or no script that anybody wrote to call another one.
const BYTES: u64 = 64 << 10;
/// Scripts in one look.
const SCRIPTS: usize = 500;
/// They read the file that they are given, whatever its mode.
const SHELLS: &[&str] = &["sh", "bash", "dash", "ash", "ksh", "zsh", ".", "source"];

/// How many may still be read.
pub(super) struct Scripts {
    left: usize,
    /// Where crontabs begin.
    home: Option<PathBuf>,
}

impl Scripts {
    pub fn new() -> Self {
        Self { left: SCRIPTS, home: std::env::var_os("HOME").map(PathBuf::from) }
    }

    /// The scripts that a command line runs, each with its lines that are in effect.
    pub fn of_line(&mut self, line: &str) -> Vec<(PathBuf, String)> {
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ';' | '&' | '|' | '(' | ')');
        let mut dir = self.home.clone();
        let mut before = "";
        let mut found = Vec::new();
        for word in line.split(ends).filter(|w| !w.is_empty()) {
            // systemd's marks stand in front of a program.
            let path = self.path(word.trim_start_matches(['-', '@', ':', '+', '!']), dir.as_deref());
            let to_shell = SHELLS.contains(&before.rsplit('/').next().unwrap_or_default());
            if before == "cd" {
                dir = path;
            } else if let Some(path) = path.filter(|_| to_shell || word.contains('/'))
                && self.left > 0
                && let Some(text) = read(&path, to_shell)
            {
                self.left -= 1;
                found.push((path, text));
            }
            before = word;
        }
        found
    }

    fn path(&self, word: &str, dir: Option<&Path>) -> Option<PathBuf> {
        let of_home = ["~/", "$HOME/", "${HOME}/"].iter().find_map(|home| word.strip_prefix(home));
        match of_home {
            Some(rest) => Some(self.home.as_ref()?.join(rest)),
            None if word.starts_with('/') => Some(PathBuf::from(word)),
            None => Some(dir?.join(word)),
        }
    }
}

/// The lines of a script, without comments, those that go on in the next one put together.
fn read(path: &Path, to_shell: bool) -> Option<String> {
    // A FIFO would hold the look up for ever.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    // Most words are no file at all.
    let is_script =
        |meta: &fs::Metadata| meta.is_file() && meta.len() <= BYTES && (to_shell || meta.mode() & 0o111 != 0);
    fs::metadata(path).ok().filter(is_script)?;
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path).ok()?;
    file.metadata().ok().filter(is_script)?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes).ok()?;
    if bytes.contains(&0) {
        return None;
    }
    let text = String::from_utf8_lossy(&bytes).replace("\\\n", " ");
    Some(text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn scripts_are_found_in_lines_as_people_write_them_and_nothing_else_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let put = |name: &str, text: &[u8], mode: u32| {
            fs::write(at(name), text).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        put("run", b"#!/bin/sh\n# lifeboat\nlifeboat \\\n  -p shop snapshot\n", 0o755);
        put("plain", b"lifeboat snapshot\n", 0o644);
        put("program", b"\x7fELF\0lifeboat snapshot", 0o755);
        put("long", &b"lifeboat snapshot\n".repeat(4_000), 0o755);
        fs::create_dir(at("folder")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        fs::set_permissions(at("pipe"), fs::Permissions::from_mode(0o755)).unwrap();
        let run = at("run");
        let d = dir.path().to_str().unwrap();
        for line in [
            format!("0 2 * * * root {run}"),
            format!("@daily \"{run}\" >/dev/null 2>&1"),
            format!("@daily cd {d} && ./run"),
            format!("@daily flock -n /x sh -c '{run}; true'"),
            format!("@daily bash {run}"),
            format!("-{run} --now"),
            "@daily ~/run".to_owned(),
            "@daily $HOME/run".to_owned(),
            "@daily ./run".to_owned(),
        ] {
            let mut scripts = Scripts { left: 1, home: Some(dir.path().to_owned()) };
            let found = scripts.of_line(&line);
            let texts: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
            assert_eq!(texts, ["lifeboat    -p shop snapshot"], "{line}");
            assert!(scripts.of_line(&line).is_empty(), "one was to be read");
        }
        let mut scripts = Scripts { left: 9, home: None };
        for name in ["plain", "program", "long", "folder", "pipe", "gone"] {
            assert!(scripts.of_line(&format!("@daily {}", at(name))).is_empty(), "{name}");
        }
        for name in ["program", "long", "folder", "pipe", "gone"] {
            assert!(scripts.of_line(&format!("@daily sh {}", at(name))).is_empty(), "{name}");
        }
        assert_eq!(scripts.of_line(&format!("@daily /bin/sh {}", at("plain"))).len(), 1);
        assert!(scripts.of_line("@daily ./run").is_empty(), "from nowhere");
    }
}
