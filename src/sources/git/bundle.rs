//! A git bundle that deduplicates: `git clone` reads it, and the next day's differs where the history does.
//!
//! `git bundle create` copies objects as the repository packed them, compressed one by one, and a new commit or a
//! `git gc` changes most of its bytes. Here the pack is made without compression and without taking over what is packed
//! (our zstd compresses, over many objects at once), in one thread, so that equal repositories give equal bytes. That
//! costs time in proportion to the history, so above [`REPACK_LIMIT_BYTES`] what is packed is taken over after all.
//! Measured in `docs/decisions/020-git-bundles.md`.

use super::explain;
use super::tool::Git;
use super::tree::{Head, store_output};
use crate::base::stream::StreamKind;
use crate::sources::{Capture, SourceError};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write;

/// Objects of a repository, as they lie on disk, up to which a pack is made afresh.
const REPACK_LIMIT_BYTES: u64 = 256 << 20;

/// Refs of our own: they come and go with snapshots, and what they keep is in the bundles of those.
pub(super) const OWN_REFS: &str = "refs/lifeboat/";

/// All refs but our own: object id and name, sorted by name.
pub(super) fn refs(git: &Git) -> Result<Vec<(String, String)>, SourceError> {
    let text = git.text(&["for-each-ref", "--format=%(objectname) %(refname)"]).map_err(explain)?;
    let refs = text.lines().filter_map(|line| line.split_once(' ')).filter(|(_, name)| !name.starts_with(OWN_REFS));
    Ok(refs.map(|(id, name)| (id.into(), name.into())).collect())
}

/// Stores every ref, the commit that is checked out, and all that they reach; facts of the bundle.
pub(super) fn store(
    cx: &Capture<'_>,
    git: &Git,
    refs: &[(String, String)],
    head: Option<&Head>,
    stream: &str,
) -> Result<Value, SourceError> {
    let (header, tips) = head_lines(&git.object_format()?, refs, head);
    let on_disk = size_on_disk(git)?;
    let mut arguments = vec![
        "-c",
        "pack.threads=1",
        "-c",
        "pack.windowMemory=64m",
        "-c",
        "pack.deltaCacheSize=32m",
        "-c",
        "core.bigFileThreshold=16m",
        "pack-objects",
        "--stdout",
        "--revs",
        "--quiet",
    ];
    let afresh = on_disk <= REPACK_LIMIT_BYTES;
    if afresh {
        arguments.extend(["--compression=0", "--no-reuse-object"]);
    }
    let mut running = git.start(&arguments, true).map_err(explain)?;
    // The tips are as many as the refs, so they may be more than a pipe holds: pack-objects reads all before it writes.
    if let Some(mut stdin) = running.stdin() {
        stdin.write_all(tips.as_bytes()).map_err(|e| git.read_error(e))?;
    }
    let bytes = store_output(cx, git, running, StreamKind::GitBundle, stream, header.as_bytes())?;
    Ok(json!({ "stream": stream, "refs": refs.len(), "bytes": bytes, "repacked": afresh }))
}

/// The head of a bundle, as gitformat-bundle(5) has it, and the tips for pack-objects.
fn head_lines(object_format: &str, refs: &[(String, String)], head: Option<&Head>) -> (String, String) {
    let mut header = match object_format {
        "sha1" => "# v2 git bundle\n".to_owned(),
        other => format!("# v3 git bundle\n@object-format={other}\n"),
    };
    let mut tips = String::new();
    let head = head.map(|h| (h.commit.as_str(), "HEAD"));
    for (id, name) in refs.iter().map(|(id, name)| (id.as_str(), name.as_str())).chain(head) {
        let _ = writeln!(header, "{id} {name}");
        let _ = writeln!(tips, "{id}");
    }
    header.push('\n');
    (header, tips)
}

/// Bytes of loose and packed objects.
fn size_on_disk(git: &Git) -> Result<u64, SourceError> {
    let text = git.text(&["count-objects", "-v"]).map_err(explain)?;
    let number = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    Ok((number("size") + number("size-pack")) << 10)
}
