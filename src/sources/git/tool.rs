//! Running git in somebody's tree without trusting the tree more than its owner does.

use super::explain;
use crate::base::cancel::Cancel;
use crate::place::account::{self, Account};
use crate::place::{Command, Exit, HostPlace, Place, PlaceError, Running};
use crate::sources::{SourceError, is_there};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most output that a command may give that is read as a whole.
const OUTPUT_BYTES: usize = 16 << 20;
/// A name with what stands beside it: far longer than a file system takes.
const MAX_RECORD: u64 = 1 << 20;

/// What any repository's own settings must not turn on. Git knows no switch for all of them, so each is named.
pub(super) const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.quotePath=false",
    "core.pager=cat",
    "core.sshCommand=false",
    "core.alternateRefsCommand=true",
    "credential.helper=",
    "protocol.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
    "color.ui=false",
    "log.showSignature=false",
    "diff.autoRefreshIndex=false",
    "diff.orderFile=/dev/null",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
    "diff.relative=false",
    "diff.renames=false",
    "diff.interHunkContext=0",
    "diff.context=3",
    "diff.submodule=short",
    "submodule.recurse=false",
    "core.splitIndex=false",
    "core.safecrlf=false",
    "index.sparse=false",
    "apply.ignoreWhitespace=no",
    "tag.gpgSign=false",
    "status.relativePaths=false",
    "status.showStash=false",
];

/// The mask that keeps new files as open as a repository is.
pub(super) fn mask_of(git_dir: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    let there = git_dir.ancestors().find_map(|p| p.metadata().ok());
    !there.map_or(0o755, |m| m.permissions().mode()) & 0o077
}

/// Why a folder counts as no repository.
#[derive(Debug)]
pub(super) struct NotARepository(pub String);

/// Git in one work tree.
#[derive(Debug, Clone)]
pub(super) struct Git {
    dir: PathBuf,
    /// The account that it runs as, when that is not ours.
    user: Option<String>,
    cancel: Cancel,
    deadline: Instant,
    /// What else it and the tools beside it get.
    env: Vec<(String, String)>,
    /// What new files may not be; our own mask is stricter than a tree that others read may have.
    umask: Option<u32>,
}

/// `$1` the mask; a command under it.
const MASKED: &str = r#"umask "$1" && shift && exec "$@""#;

impl Git {
    /// The repository that `root` belongs to.
    pub(super) fn open(
        root: &Path,
        cancel: &Cancel,
        deadline: Instant,
    ) -> Result<Result<Git, NotARepository>, SourceError> {
        let Some(marker) = root.ancestors().map(|dir| dir.join(".git")).find(|git| git.symlink_metadata().is_ok())
        else {
            return Ok(Err(NotARepository("there is no .git".into())));
        };
        let file = |path: &Path, source| SourceError::File { action: "look at", path: path.to_owned(), source };
        let owner = Account::owner_of(&marker).map_err(|e| file(&marker, e))?;
        let user = (account::is_root() && owner.uid != 0).then(|| owner.spec());
        let mut git =
            Git { dir: root.to_owned(), user, cancel: cancel.clone(), deadline, env: Vec::new(), umask: None };
        let top = match git.text(&["rev-parse", "--show-toplevel"]) {
            Ok(top) => PathBuf::from(top),
            Err(PlaceError::Failed { stderr, .. })
                if stderr.contains("not a git repository") || stderr.contains("must be run in a work tree") =>
            {
                return Ok(Err(NotARepository(stderr.lines().next().unwrap_or_default().to_owned())));
            }
            Err(e) => return Err(explain(e)),
        };
        let real = root.canonicalize().map_err(|e| file(root, e))?;
        if top.canonicalize().map_err(|e| file(&top, e))? != real {
            // A repository further up may be somebody's home that has nothing to do with this application.
            let mut tracked = 0;
            git.each(&["ls-files", "-z", "--", "."], |_| {
                tracked += 1;
                Ok(tracked < 1)
            })?;
            if tracked == 0 {
                return Ok(Err(NotARepository(format!("the one in {} tracks nothing here", top.display()))));
            }
        }
        git.dir = top;
        Ok(Ok(git))
    }

    /// The repository of a submodule, when it is checked out.
    pub(super) fn submodule(&self, path: &str) -> Result<Option<Git>, SourceError> {
        let dir = self.dir.join(path);
        if !is_there(&dir.join(".git"))? {
            return Ok(None);
        }
        let git = Git { dir, ..self.clone() };
        match git.text(&["rev-parse", "--show-toplevel"]) {
            Ok(top)
                if Path::new(&top) == git.dir || Path::new(&top).canonicalize().ok() == git.dir.canonicalize().ok() =>
            {
                Ok(Some(git))
            }
            Ok(_) => Ok(None),
            Err(e) => Err(explain(e)),
        }
    }

    pub(super) fn toplevel(&self) -> String {
        self.dir.to_string_lossy().into_owned()
    }

    /// The account that git runs as, when it is not ours.
    pub(super) fn account(&self) -> Option<&str> {
        self.user.as_deref()
    }

    pub(super) fn version(&self) -> Result<String, SourceError> {
        let text = self.text(&["version"]).map_err(explain)?;
        Ok(text.trim_start_matches("git version ").to_owned())
    }

    pub(super) fn object_format(&self) -> Result<String, SourceError> {
        // Git before 2.29 knows neither the option nor another format.
        match self.text(&["rev-parse", "--show-object-format"]) {
            Ok(text) if matches!(text.as_str(), "sha1" | "sha256") => Ok(text),
            Ok(_) | Err(PlaceError::Failed { .. }) => Ok("sha1".into()),
            Err(e) => Err(explain(e)),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
        self.tool(["git", "--no-pager"].into_iter().chain(settings).chain(arguments.iter().copied()))
            .env("GIT_OPTIONAL_LOCKS", "0".to_owned())
            .env("GIT_TERMINAL_PROMPT", "0".to_owned())
            .env("GIT_NO_LAZY_FETCH", "1".to_owned())
            .env("GIT_NO_REPLACE_OBJECTS", "1".to_owned())
            .env("GIT_ASKPASS", "true".to_owned())
    }

    /// Another program as the tree's owner.
    fn tool<'s>(&self, argv: impl IntoIterator<Item = &'s str>) -> Command {
        let left = self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut all: Vec<String> = Vec::new();
        if let Some(umask) = self.umask {
            all.extend(["sh", "-c", MASKED, "lifeboat"].map(str::to_owned));
            all.push(format!("{umask:03o}"));
        }
        all.extend(argv.into_iter().map(str::to_owned));
        let command = Command::new(all).dir(&self.dir).user(self.user.clone()).cancel(&self.cancel).timeout(left);
        self.env.iter().fold(command, |c, (name, value)| c.env(name, value.clone())).env("LC_ALL", "C".to_owned())
    }

    /// Runs another program as the tree's owner.
    pub(super) fn run(&self, argv: &[&str]) -> Result<(), SourceError> {
        HostPlace::new().output(self.tool(argv.iter().copied()), OUTPUT_BYTES).map(drop).map_err(explain)
    }

    /// The same with a variable more.
    pub(super) fn with(&self, name: &str, value: impl Into<String>) -> Git {
        let mut git = self.clone();
        git.env.retain(|(n, _)| n != name);
        git.env.push((name.to_owned(), value.into()));
        git
    }

    /// The same without a variable.
    pub(super) fn without(mut self, name: &str) -> Git {
        self.env.retain(|(n, _)| n != name);
        self
    }

    /// The same as its folder alone has it.
    pub(super) fn without_env(mut self) -> Git {
        self.env.clear();
        self
    }

    /// The same under a mask for new files.
    pub(super) fn masked(mut self, umask: u32) -> Git {
        self.umask = Some(umask);
        self
    }

    /// The same in another folder.
    pub(super) fn at(mut self, dir: &Path) -> Git {
        self.dir = dir.to_owned();
        self
    }

    /// Git for a repository whose folders are known: nothing is looked for.
    pub(super) fn known(dir: &Path, git_dir: &Path, cancel: &Cancel, deadline: Instant) -> Result<Git, SourceError> {
        // A repository that is yet to be made belongs to whom its parent does.
        let there = git_dir.ancestors().find(|p| p.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
        let owner = Account::owner_of(there).map_err(|source| SourceError::File {
            action: "look at",
            path: there.to_owned(),
            source,
        })?;
        let user = (account::is_root() && owner.uid != 0).then(|| owner.spec());
        // A work tree must be a folder that git can reach; where there is none yet, nothing may be written by mistake.
        let (cwd, tree) = if dir.is_dir() { (dir, dir) } else { (there, Path::new("/proc")) };
        let env = vec![
            ("GIT_DIR".to_owned(), git_dir.to_string_lossy().into_owned()),
            ("GIT_WORK_TREE".to_owned(), tree.to_string_lossy().into_owned()),
        ];
        Ok(Git { dir: cwd.to_owned(), user, cancel: cancel.clone(), deadline, env, umask: None })
    }

    /// Gives `input` to a command that must succeed; its output, which must be small.
    pub(super) fn feed(&self, arguments: &[&str], input: &mut dyn Read) -> Result<String, SourceError> {
        let mut running = self.start(arguments, true).map_err(explain)?;
        let mut fed = Ok(0);
        if let Some(mut stdin) = running.stdin() {
            fed = std::io::copy(input, &mut stdin);
        }
        let mut out = Vec::new();
        if let Some(stdout) = running.stdout() {
            stdout.take(OUTPUT_BYTES as u64).read_to_end(&mut out).map_err(|e| self.read_error(e))?;
        }
        // What the command says is nearer to the cause than a pipe that broke.
        match self.succeeded(running.wait()) {
            Ok(()) => fed.map_err(|e| self.read_error(e))?,
            Err(e) => return Err(e),
        };
        Ok(String::from_utf8_lossy(&out).trim_end().to_owned())
    }

    /// Starts git; `stdin` gives it a pipe.
    pub(super) fn start(&self, arguments: &[&str], stdin: bool) -> Result<Box<dyn Running>, PlaceError> {
        let command = self.command(arguments);
        HostPlace::new().start(if stdin { command.stdin() } else { command })
    }

    /// Output of a command that must succeed.
    pub(super) fn bytes(&self, arguments: &[&str]) -> Result<Vec<u8>, PlaceError> {
        HostPlace::new().output(self.command(arguments), OUTPUT_BYTES)
    }

    /// The same as text without its last newline.
    pub(super) fn text(&self, arguments: &[&str]) -> Result<String, PlaceError> {
        let bytes = self.bytes(arguments)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// The same, where status 1 says "there is none".
    pub(super) fn maybe(&self, arguments: &[&str]) -> Result<Option<String>, SourceError> {
        match self.text(arguments) {
            Ok(text) => Ok(Some(text)),
            Err(PlaceError::Failed { code: 1, .. }) => Ok(None),
            Err(e) => Err(explain(e)),
        }
    }

    /// Hands each NUL-ended record of the output to `take`, in bounded memory, until it says `false`.
    pub(super) fn each(
        &self,
        arguments: &[&str],
        mut take: impl FnMut(&[u8]) -> Result<bool, SourceError>,
    ) -> Result<(), SourceError> {
        let mut running = self.start(arguments, false).map_err(explain)?;
        if let Some(stdout) = running.stdout()
            && !records(stdout, |e| self.read_error(e), &mut take)?
        {
            // Dropping it ends the command, whose status no longer matters.
            return Ok(());
        }
        self.succeeded(running.wait())
    }

    pub(super) fn read_error(&self, error: std::io::Error) -> SourceError {
        SourceError::Place(PlaceError::from_io("read output of git", "this host", error))
    }

    /// An error unless the status is 0.
    pub(super) fn succeeded(&self, exit: Result<Exit, PlaceError>) -> Result<(), SourceError> {
        match exit {
            Ok(exit) if exit.code == 0 => Ok(()),
            Ok(exit) => Err(explain(PlaceError::Failed {
                tool: "git".into(),
                place: "this host".into(),
                code: exit.code,
                stderr: exit.stderr.trim().to_owned(),
            })),
            Err(e) => Err(explain(e)),
        }
    }
}

/// Hands each NUL-ended record of an output to `take`, until it says `false`; whether it never did.
fn records(
    output: impl Read,
    failed: impl Fn(std::io::Error) -> SourceError,
    take: &mut impl FnMut(&[u8]) -> Result<bool, SourceError>,
) -> Result<bool, SourceError> {
    let mut reader = BufReader::new(output);
    let mut record = Vec::new();
    loop {
        record.clear();
        let n = (&mut reader).take(MAX_RECORD).read_until(0, &mut record).map_err(&failed)?;
        if n == 0 {
            return Ok(true);
        }
        if record.last() == Some(&0) {
            record.pop();
        } else if n as u64 == MAX_RECORD {
            return Err(SourceError::problem("git names a file by a name that is longer than any"));
        }
        if !take(&record)? {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever makes a repository chooses its names, and how long they are.
    #[test]
    fn records_are_handed_over_one_by_one_and_none_is_longer_than_any_name() {
        let seen = |mut output: &[u8], most: usize| {
            let mut seen = Vec::new();
            let all = records(&mut output, |e| SourceError::problem(e.to_string()), &mut |record| {
                seen.push(record.to_vec());
                Ok(seen.len() < most)
            });
            all.map(|all| (all, seen)).map_err(|e| e.to_string())
        };
        let three = [b"a b".to_vec(), Vec::new(), b"c\nd".to_vec()];
        assert_eq!(seen(b"a b\0\0c\nd\0", 9), Ok((true, three.to_vec())));
        assert_eq!(seen(b"a b\0\0c\nd", 9), Ok((true, three.to_vec())), "the last one need not end");
        assert_eq!(seen(b"a b\0\0c\nd\0", 2), Ok((false, three[..2].to_vec())));
        assert_eq!(seen(b"", 9), Ok((true, Vec::new())));
        let longest = [vec![b'x'; MAX_RECORD as usize - 1], vec![0]].concat();
        assert_eq!(seen(&longest, 9).unwrap().1, [&longest[..longest.len() - 1]]);
        let mut endless = std::io::repeat(b'x').take(MAX_RECORD * 3);
        let failed = |e: std::io::Error| SourceError::problem(e.to_string());
        let said = records(&mut endless, failed, &mut |_| Ok(true)).unwrap_err().to_string();
        assert!(said.contains("longer than any") && endless.limit() > MAX_RECORD, "{said}, {}", endless.limit());
    }
}
