//! What a work tree is: commit, tags, remotes, edits, untracked files, submodules.

use super::explain;
use super::tool::Git;
use crate::base::ids::StreamName;
use crate::base::stream::StreamKind;
use crate::sources::{Capture, SourceError, is_there};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{Read, Write};

/// Names of files in facts; more are counted only.
const MAX_NAMES: usize = 1000;

/// The commit that is checked out.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub commit: String,
    subject: String,
    time: String,
}

impl Head {
    pub(super) fn facts(&self) -> Value {
        json!({ "commit": self.commit, "subject": self.subject, "time": self.time })
    }
}

/// Some names and the number of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Names {
    pub count: usize,
    pub names: Vec<String>,
}

impl Names {
    fn add(&mut self, name: &[u8]) {
        self.count += 1;
        if self.names.len() < MAX_NAMES {
            self.names.push(String::from_utf8_lossy(name).into_owned());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }
}

/// Absent in a repository without a commit.
pub(super) fn head(git: &Git) -> Result<Option<Head>, SourceError> {
    let Some(commit) = git.maybe(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])? else { return Ok(None) };
    let text = git.text(&["log", "-1", "--no-show-signature", "--format=%cI%n%s", &commit, "--"]).map_err(explain)?;
    let (time, subject) = text.split_once('\n').unwrap_or((&text, ""));
    Ok(Some(Head { commit, subject: subject.chars().take(200).collect(), time: time.to_owned() }))
}

/// Absent when the head is detached.
pub(super) fn branch(git: &Git) -> Result<Option<String>, SourceError> {
    git.maybe(&["symbolic-ref", "--quiet", "--short", "HEAD"])
}

pub(super) fn tags(git: &Git) -> Result<Vec<String>, SourceError> {
    let text = git.text(&["tag", "--points-at", "HEAD"]).map_err(explain)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Commits at which a shallow clone ends; empty for a full one.
pub(super) fn shallow(git: &Git) -> Result<Vec<String>, SourceError> {
    if git.text(&["rev-parse", "--is-shallow-repository"]).map_err(explain)? != "true" {
        return Ok(Vec::new());
    }
    let path = git.text(&["rev-parse", "--git-path", "shallow"]).map_err(explain)?;
    let path = std::path::Path::new(&git.toplevel()).join(path);
    let text = std::fs::read_to_string(&path).map_err(|source| SourceError::File { action: "read", path, source })?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Whether objects were left at the server when it was cloned (`--filter`): they cannot be captured from here.
pub(super) fn is_partial(git: &Git) -> Result<bool, SourceError> {
    let pattern = "^(extensions\\.partialclone|remote\\..*\\.promisor)$";
    Ok(git.maybe(&["config", "--get-regexp", pattern])?.is_some())
}

/// What differs from the commit.
#[derive(Debug, Default)]
pub(super) struct Status {
    pub edited: Names,
    pub unmerged: Names,
    /// Folders that hold nothing tracked count as one.
    pub untracked: Names,
}

pub(super) fn status(git: &Git) -> Result<Status, SourceError> {
    let mut status = Status::default();
    let arguments =
        ["status", "--porcelain=v2", "-z", "--no-renames", "--untracked-files=normal", "--ignore-submodules=all"];
    git.each(&arguments, |record| {
        // `1 XY sub mH mI mW hH hI path`, `u XY sub m1 m2 m3 mW h1 h2 h3 path`, `? path`.
        let path = |fields: usize| record.splitn(fields + 1, |b| *b == b' ').nth(fields).unwrap_or_default();
        match record.first() {
            Some(b'1') => status.edited.add(path(8)),
            Some(b'u') => status.unmerged.add(path(10)),
            Some(b'?') => status.untracked.add(path(1)),
            _ => {}
        }
        Ok(true)
    })?;
    Ok(status)
}

/// Files that git LFS keeps elsewhere, by the attributes of the tree.
pub(super) fn lfs(git: &Git) -> Result<Names, SourceError> {
    let mut names = Names::default();
    git.each(&["ls-files", "-z", "--", ":(attr:filter=lfs)"], |path| {
        names.add(path);
        Ok(true)
    })?;
    Ok(names)
}

/// Submodules: path and the commit in the index.
pub(super) fn gitlinks(git: &Git) -> Result<Vec<(String, String)>, SourceError> {
    let mut list = Vec::new();
    git.each(&["ls-files", "--stage", "-z"], |record| {
        // `160000 <id> <stage>\t<path>`
        if record.starts_with(b"160000 ") {
            let text = String::from_utf8_lossy(record);
            if let Some((meta, path)) = text.split_once('\t')
                && let Some(commit) = meta.split(' ').nth(1)
            {
                list.push((path.to_owned(), commit.to_owned()));
            }
        }
        Ok(true)
    })?;
    Ok(list)
}

/// Path and address of each submodule that `.gitmodules` names.
pub(super) fn gitmodules(git: &Git) -> Result<Vec<(String, String)>, SourceError> {
    let file = std::path::Path::new(&git.toplevel()).join(".gitmodules");
    if !is_there(&file)? || file.is_dir() {
        return Ok(Vec::new());
    }
    let mut values = std::collections::BTreeMap::new();
    for (key, value) in config(git, &["config", "--file", ".gitmodules", "--null", "--get-regexp", "^submodule\\."])? {
        values.insert(key, value);
    }
    let paths = values.iter().filter_map(|(key, path)| Some((key.strip_suffix(".path")?, path)));
    Ok(paths
        .filter_map(|(name, path)| Some((path.clone(), without_credentials(values.get(&format!("{name}.url"))?))))
        .collect())
}

#[derive(Debug, Serialize)]
pub(super) struct Remote {
    name: String,
    url: String,
}

pub(super) fn remotes(git: &Git) -> Result<Vec<Remote>, SourceError> {
    let arguments = ["config", "--null", "--get-regexp", "^remote\\..*\\.url$"];
    let list = config(git, &arguments)?.into_iter();
    Ok(list
        .filter_map(|(key, url)| {
            let name = key.strip_prefix("remote.")?.strip_suffix(".url")?.to_owned();
            Some(Remote { name, url: without_credentials(&url) })
        })
        .collect())
}

/// Keys and values of `git config --null --get-regexp`.
fn config(git: &Git, arguments: &[&str]) -> Result<Vec<(String, String)>, SourceError> {
    let text = git.maybe(arguments)?.unwrap_or_default();
    let pairs = text.split('\0').filter_map(|record| record.split_once('\n'));
    Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// An address without passwords and tokens: no user at all for HTTP, where a token often stands as the user, and no
/// query; for other schemes and `user@host:path` the user stays.
pub(super) fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) if http => host.to_owned(),
        Some((user, host)) => format!("{}@{host}", user.split(':').next().unwrap_or_default()),
        None => authority.to_owned(),
    };
    let path = if http { path.split(['?', '#']).next().unwrap_or_default() } else { path };
    format!("{scheme}://{authority}{path}")
}

/// Stores what differs from the commit, so that `git apply` brings it back; its facts. Submodules have patches of
/// their own.
pub(super) fn store_edits(
    cx: &Capture<'_>,
    git: &Git,
    head: Option<&Head>,
    stream: &str,
) -> Result<Value, SourceError> {
    let base = match head {
        Some(head) => head.commit.clone(),
        // Before the first commit everything differs from nothing.
        None => git.text(&["hash-object", "-t", "tree", "--stdin"]).map_err(explain)?,
    };
    let arguments = [
        "diff",
        "--binary",
        "--full-index",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        "--ignore-submodules=all",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        &base,
        "--",
    ];
    let running = git.start(&arguments, false).map_err(explain)?;
    let bytes = store_output(cx, git, running, StreamKind::Raw, stream, &[])?;
    Ok(json!({ "stream": stream, "against": base, "bytes": bytes }))
}

/// Writes `before` and a command's output into a stream, which becomes one only if the command succeeds; plain bytes.
pub(super) fn store_output(
    cx: &Capture<'_>,
    git: &Git,
    mut running: Box<dyn crate::place::Running>,
    kind: StreamKind,
    stream: &str,
    before: &[u8],
) -> Result<u64, SourceError> {
    let name: StreamName = stream.parse()?;
    let mut sink = cx.sink.stream(name, kind, None).map_err(SourceError::Sink)?;
    sink.write_all(before).map_err(SourceError::Sink)?;
    if let Some(mut stdout) = running.stdout() {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stdout.read(&mut buffer).map_err(|e| git.read_error(e))? {
                0 => break,
                n => sink.write_all(&buffer[..n]).map_err(SourceError::Sink)?,
            }
        }
    }
    git.succeeded(running.wait())?;
    let bytes = sink.position();
    sink.finish().map_err(SourceError::Sink)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_credentials_and_nothing_else() {
        for (given, expected) in [
            ("https://user:token@example.org/a/b.git", "https://example.org/a/b.git"),
            ("https://ghp_token@example.org/a.git", "https://example.org/a.git"),
            ("https://a@b:c@example.org:8443/a?access_token=x#y", "https://example.org:8443/a"),
            ("HTTPS://t@example.org", "HTTPS://example.org"),
            ("ssh://git:pw@example.org:22/a.git", "ssh://git@example.org:22/a.git"),
            ("git@example.org:a/b.git", "git@example.org:a/b.git"),
            ("/srv/git/a@b.git", "/srv/git/a@b.git"),
            ("file:///srv/git/a@b.git", "file:///srv/git/a@b.git"),
            ("https://example.org/a@b.git", "https://example.org/a@b.git"),
        ] {
            assert_eq!(without_credentials(given), expected);
        }
    }
}
