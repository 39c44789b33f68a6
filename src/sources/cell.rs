//! A tool of this host on restored data, which is untrusted: in a mount namespace of its own, without network, with a
//! limit of memory; as nobody, when this process is root.
//!
//! Invariants: nothing that is mounted inside is seen outside, and it goes with the process; the folder that is given
//! away stays behind a folder of ours that nobody else may enter, so what lies in it is shown to the tool alone. Where
//! such a namespace is not permitted there is no cell, and [`Cell::open`] says why.

use super::SourceError;
use super::run::{one_line, run};
use crate::base::cancel::Cancel;
use crate::place::account::is_root;
use crate::place::{Command, HostPlace, PlaceError};
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the folder is seen by a tool that is not locked into it: every machine has this folder, and none needs it.
const SEEN: &str = "/mnt";
/// The account without rights, as the kernel numbers it.
pub(crate) const NOBODY: u32 = 65534;
/// Below this no tool would start.
const LEAST_MEMORY: u64 = 256 << 20;

/// `$1` memory in KiB, `$2` the folder; a command in it, which sees it at /mnt.
const AT: &str = r#"ulimit -d "$1" 2>/dev/null; mount --rbind "$2" /mnt && cd /mnt && shift 2 && exec "$@""#;
/// `$1` memory in KiB, `$2` the folder, pairs of a path to bind and where, `--`; a command whose root the folder is.
const ROOTED: &str = r#"
ulimit -d "$1" 2>/dev/null; root=$2; shift 2
while [ "$1" != -- ]; do mount --rbind "$1" "$root$2" || exit 125; shift 2; done
shift
(echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start) 2>/dev/null
(echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind) 2>/dev/null
(echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind) 2>/dev/null
exec chroot "$root" "$@""#;

/// A folder and the way to run tools on it.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    folder: PathBuf,
    memory_bytes: u64,
    cancel: Cancel,
    end: Instant,
    /// Without a namespace: an ordinary user's own rights are all that keeps the tool.
    loose: bool,
}

impl Cell {
    /// A cell on a folder that exists; else why there can be none, as a lower-case fragment.
    pub(crate) fn open(
        folder: &Path,
        memory_bytes: u64,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<Result<Cell, String>, SourceError> {
        let now = Instant::now();
        let end = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400));
        let memory_bytes = memory_bytes.max(LEAST_MEMORY);
        let cell = Cell { folder: folder.to_path_buf(), memory_bytes, cancel: cancel.clone(), end, loose: false };
        match run(&HostPlace::new(), cell.command(["true"]), 1 << 10) {
            Ok((_, exit)) if exit.code == 0 => Ok(Ok(cell)),
            Ok((_, exit)) => {
                Ok(Err(format!("a namespace of mounts is not permitted here: {}", one_line(&exit.stderr))))
            }
            Err(PlaceError::ToolMissing { tool, .. }) => Ok(Err(format!("there is no {tool:?} on this host"))),
            Err(PlaceError::Cancelled(cancelled)) => Err(cancelled.into()),
            Err(e) => Ok(Err(e.to_string())),
        }
    }

    /// The same for tools that need no root of their own: an ordinary user to whom namespaces are not permitted runs
    /// them with nothing but a limit of time. Root never does.
    pub(crate) fn open_loose(
        folder: &Path,
        memory_bytes: u64,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<Result<Cell, String>, SourceError> {
        let cell = Cell::open(folder, memory_bytes, timeout, cancel)?;
        Ok(match cell {
            Err(_) if !is_root() => {
                let now = Instant::now();
                let end = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400));
                Ok(Cell { folder: folder.to_path_buf(), memory_bytes, cancel: cancel.clone(), end, loose: true })
            }
            other => other,
        })
    }

    /// Where the folder is seen by [`Cell::command`].
    pub(crate) fn seen(&self) -> &Path {
        if self.loose { &self.folder } else { Path::new(SEEN) }
    }

    /// A command with the folder as its own, at [`Cell::seen`]; the rest of the host is as it is.
    pub(crate) fn command<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        let argv = argv.into_iter().map(|a| a.as_ref().to_owned());
        if self.loose {
            return self.limited(argv.collect()).dir(&self.folder);
        }
        let mut all = self.outer(AT);
        if is_root() {
            all.extend(as_nobody());
        }
        all.extend(argv);
        self.limited(all)
    }

    /// A command whose root is the folder, and `binds` of the host's folders and files in it. What they are bound over
    /// must be there. In a namespace of a user's own it runs as that namespace's root, which has no rights outside.
    pub(crate) fn rooted<S: AsRef<str>>(
        &self,
        binds: &[(String, String)],
        argv: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut all = self.outer(ROOTED);
        all.extend(binds.iter().flat_map(|(from, to)| [from.clone(), to.clone()]));
        all.push("--".into());
        if is_root() {
            all.extend(as_nobody());
        }
        all.extend(argv.into_iter().map(|a| a.as_ref().to_owned()));
        self.limited(all)
    }

    /// The uid that owns what the tool may read: as the tool sees itself.
    pub(crate) fn uid_inside() -> u32 {
        if is_root() { NOBODY } else { 0 }
    }

    /// Gives a path and all below it to whom the tools run as. Links are given, never followed.
    pub(crate) fn give(path: &Path) -> std::io::Result<()> {
        if !is_root() {
            return Ok(());
        }
        lchown(path, Some(NOBODY), Some(NOBODY))?;
        if path.symlink_metadata()?.is_dir() {
            for entry in std::fs::read_dir(path)? {
                Cell::give(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// What makes the namespace, up to the script's own arguments. Argv passes no shell: the script is fixed, and
    /// everything else comes to it as `$1`, `$2`, ….
    fn outer(&self, script: &str) -> Vec<String> {
        let user: &[&str] = if is_root() { &[] } else { &["--user", "--map-root-user"] };
        let mut argv: Vec<String> = vec!["unshare".into()];
        argv.extend(user.iter().map(|a| (*a).to_owned()));
        argv.extend(["--mount", "--net", "--ipc", "--", "sh", "-c", script, "lifeboat-cell"].map(str::to_owned));
        argv.push((self.memory_bytes >> 10).to_string());
        argv.push(self.folder.to_string_lossy().into_owned());
        argv
    }

    fn limited(&self, argv: Vec<String>) -> Command {
        let left = self.end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        Command::new(argv).cancel(&self.cancel).timeout(left).env("LC_ALL", "C".to_owned())
    }
}

fn as_nobody() -> impl Iterator<Item = String> {
    let id = NOBODY.to_string();
    let fixed = ["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"];
    let own = ["setpriv".to_owned(), format!("--reuid={id}"), format!("--regid={id}")];
    own.into_iter().chain(fixed.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Place;
    use std::os::unix::fs::PermissionsExt;

    fn text(command: Command) -> String {
        String::from_utf8(HostPlace::new().output(command, 1 << 16).unwrap()).unwrap()
    }

    #[test]
    fn a_tool_sees_its_folder_and_has_neither_rights_nor_network() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("work");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("secret"), "x").unwrap();
        std::fs::set_permissions(folder.join("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        Cell::give(&folder).unwrap();
        let limit = Duration::from_secs(30);
        let cell = Cell::open(&folder, 0, limit, &Cancel::new()).unwrap().unwrap();
        assert_eq!(text(cell.command(["cat", "secret"])), "x");
        assert_eq!(text(cell.command(["pwd"])).trim(), "/mnt");
        let ids = text(cell.command(["sh", "-c", "id -u; grep CapEff /proc/self/status; cat /proc/net/dev | wc -l"]));
        let lines: Vec<&str> = ids.lines().map(str::trim).collect();
        assert_eq!(lines[0], Cell::uid_inside().to_string());
        if is_root() {
            assert!(lines[1].ends_with("0000000000000000"), "{ids}");
        }
        assert!(lines[2].parse::<u32>().unwrap() <= 4, "no device but the loopback: {ids}");
        assert!(!Path::new("/mnt/secret").exists(), "nothing is seen outside");
    }
}
