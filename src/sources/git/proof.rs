//! A repository, proved: the stored bundle is fetched into a throw-away one, the commit is in it with its tags and its
//! branch, the recorded edits apply to it, and so for every submodule.
//!
//! Git runs in a cell ([`crate::sources::cell`]): without network, with hooks off and nobody's configuration. Without a
//! bundle the live repository is asked whether it still has the commit; it is only read.

use super::tool::{Git, SETTINGS};
use crate::place::{Command, HostPlace, PlaceError};
use crate::sources::SourceError;
use crate::sources::cell::Cell;
use crate::sources::proof::{Check, Difference, Proof, Prove, Trial};
use crate::sources::run::{one_line, run};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

const OUTPUT_BYTES: usize = 64 << 20;
/// Submodules within submodules are followed this deep, as in the capture.
const MAX_DEPTH: usize = 8;
/// Where the commit that was checked out stands in the throw-away repository.
const HEAD: &str = "refs/lifeboat/head";

/// Proves a source of kind `git`.
pub struct GitProof;

impl Prove for GitProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let mut proof = Proof::default();
        if trial.facts["present"] == false {
            proof.add(Check::skipped("commit", "", "there was no repository when the snapshot was taken"));
            return Ok(proof);
        }
        let work = trial.scratch.join("git");
        std::fs::create_dir(&work).map_err(|source| file("create", &work, source))?;
        Cell::give(&work).map_err(|source| file("give away", &work, source))?;
        let cell = match Cell::open_loose(&work, trial.drill.memory, trial.timeout, trial.cancel)? {
            Ok(cell) => cell,
            Err(why) => {
                proof.add(Check::skipped("bundle", "", why));
                return Ok(proof);
            }
        };
        let mut run = Run { trial, work, cell, proof, repositories: 0 };
        run.repository(trial.facts, "", 0)?;
        run.proof.restored.insert(0, summary(trial.facts));
        Ok(run.proof)
    }
}

fn file(action: &'static str, path: &Path, source: io::Error) -> SourceError {
    SourceError::File { action, path: path.to_path_buf(), source }
}

/// `commit 1a2b3c4d5e (v1.0.0)`.
fn summary(facts: &Value) -> String {
    let Some(commit) = facts["head"]["commit"].as_str() else { return "a repository without a commit".into() };
    let tags: Vec<&str> = facts["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let tags = if tags.is_empty() { String::new() } else { format!(" ({})", tags.join(", ")) };
    let edits = match facts["edited"]["count"].as_u64() {
        Some(n) if facts["dirty"] == true && n > 0 => format!(" with {n} edited"),
        _ => String::new(),
    };
    format!("commit {}{tags}{edits}", short(commit))
}

fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

struct Run<'a> {
    trial: &'a Trial<'a>,
    /// The cell's folder.
    work: PathBuf,
    cell: Cell,
    proof: Proof,
    /// Repositories made so far: they number the folders.
    repositories: usize,
}

impl Run<'_> {
    /// One repository and its submodules; `subject` is a submodule's path.
    fn repository(&mut self, facts: &Value, subject: &str, depth: usize) -> Result<(), SourceError> {
        self.trial.cancel.check()?;
        let head = facts["head"]["commit"].as_str();
        match facts["bundle"]["stream"].as_str() {
            Some(stream) => {
                self.repositories += 1;
                let dir = format!("repository-{}", self.repositories);
                let fetched = self.timed("clone", true, |run| run.fetch(facts, stream, &dir))?;
                match fetched {
                    Err(why) => self.proof.add(Check::failed("bundle", subject, "a whole bundle", "it is not", why)),
                    Ok(refs) => {
                        self.proof.add(refs_check(facts, subject, refs));
                        if let Some(head) = head {
                            self.stored(facts, subject, &dir, head)?;
                        }
                    }
                }
            }
            None => match head {
                Some(head) => self.live(facts, subject, head)?,
                None => self.proof.add(Check::skipped("commit", subject, "there was none yet")),
            },
        }
        for submodule in facts["submodules"].as_array().into_iter().flatten() {
            let path = submodule["path"].as_str().unwrap_or_default();
            match (&submodule["repository"], depth < MAX_DEPTH) {
                (Value::Null, _) | (_, false) => {
                    let why = "it was not checked out when the snapshot was taken";
                    self.proof.add(Check::skipped("submodule", path, why));
                }
                (inner, true) => {
                    // The parent's index may name another commit than the one that was checked out.
                    let (own, named) = (inner["head"]["commit"].as_str(), submodule["commit"].as_str());
                    self.repository(inner, path, depth + 1)?;
                    if let Some(named) = named.filter(|named| own != Some(named))
                        && !inner["bundle"].is_null()
                    {
                        let dir = format!("repository-{}", self.repositories);
                        self.commit(path, &dir, named)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn timed<T>(&mut self, name: &str, restores: bool, work: impl FnOnce(&mut Self) -> T) -> T {
        let begin = self.trial.began.elapsed();
        let result = work(self);
        self.proof.steps.push(crate::sources::proof::Step {
            name: name.to_owned(),
            begin_seconds: begin.as_secs_f64(),
            seconds: (self.trial.began.elapsed() - begin).as_secs_f64(),
            restores,
        });
        result
    }

    /// A stream as a file of the cell's folder.
    fn lay(&self, stream: &str, name: &str) -> Result<Result<(), String>, SourceError> {
        self.trial.streams.info(stream)?;
        let path = self.work.join(name);
        let mut out = std::fs::File::create(&path).map_err(|source| file("write", &path, source))?;
        let copied = self.trial.streams.open(stream).and_then(|mut stream| io::copy(&mut stream, &mut out));
        Cell::give(&path).map_err(|source| file("give away", &path, source))?;
        Ok(copied.map(drop).map_err(|e| e.to_string()))
    }

    /// Git in the cell's folder, or in a repository of it.
    fn git<'s>(&self, dir: &'s str, arguments: impl IntoIterator<Item = &'s str>) -> Command {
        let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
        // The bundle is a file, and nothing else may be fetched from.
        let fixed =
            ["git", "--no-pager", "-C", dir].into_iter().chain(settings).chain(["-c", "protocol.file.allow=always"]);
        let mut command = self.cell.command(fixed.chain(arguments));
        for (name, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "true"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("HOME", "/nonexistent"),
        ] {
            command = command.env(name, value.to_owned());
        }
        command
    }

    /// Output of a command; its words when it fails.
    fn text<'s>(
        &self,
        dir: &'s str,
        arguments: impl IntoIterator<Item = &'s str>,
    ) -> Result<Result<String, String>, SourceError> {
        let (out, exit) = run(&HostPlace::new(), self.git(dir, arguments), OUTPUT_BYTES)?;
        match exit.code {
            0 => Ok(Ok(String::from_utf8_lossy(&out).trim_end().to_owned())),
            code => {
                let said = one_line(&exit.stderr);
                Ok(Err(if said.is_empty() { format!("git ended with status {code}") } else { said }))
            }
        }
    }

    /// Makes a repository of a bundle; the number of its refs.
    fn fetch(&mut self, facts: &Value, stream: &str, dir: &str) -> Result<Result<usize, String>, SourceError> {
        let bundle = format!("{dir}.bundle");
        if let Err(why) = self.lay(stream, &bundle)? {
            return Ok(Err(why));
        }
        let mut init = vec!["init", "--quiet", "--bare"];
        if facts["object_format"] == "sha256" {
            init.push("--object-format=sha256");
        }
        init.push(dir);
        if let Err(why) = self.text(".", init)? {
            return Ok(Err(why));
        }
        // Where a shallow clone ends must be known before what lies behind is missed.
        let shallow: Vec<&str> = facts["shallow"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !shallow.is_empty() {
            let path = self.work.join(dir).join("shallow");
            std::fs::write(&path, shallow.join("\n") + "\n").map_err(|source| file("write", &path, source))?;
            Cell::give(&path).map_err(|source| file("give away", &path, source))?;
        }
        let from = format!("../{bundle}");
        let mut fetch = vec!["fetch", "--quiet", "--no-tags", &from, "+refs/*:refs/*"];
        let head = format!("+HEAD:{HEAD}");
        if !facts["head"].is_null() {
            fetch.push(&head);
        }
        if let Err(why) = self.text(dir, fetch)? {
            return Ok(Err(why));
        }
        let refs = self.text(dir, ["for-each-ref", "--format=%(refname)"])?;
        Ok(refs.map(|text| text.lines().filter(|name| *name != HEAD).count()))
    }

    /// What the bundle holds of the commit.
    fn stored(&mut self, facts: &Value, subject: &str, dir: &str, head: &str) -> Result<(), SourceError> {
        if !self.commit(subject, dir, head)? {
            return Ok(());
        }
        let tags: BTreeSet<&str> = facts["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let found = self.text(dir, ["tag", "--points-at", head])?.unwrap_or_default();
        let found: BTreeSet<&str> = found.lines().collect();
        let list = |set: &BTreeSet<&str>| match set.is_empty() {
            true => "none".to_owned(),
            false => set.iter().copied().collect::<Vec<_>>().join(", "),
        };
        let missing = tags.difference(&found).map(|t| Difference::new(*t, short(head), "no such tag there"));
        let extra = found.difference(&tags).map(|t| Difference::new(*t, "no tag there", short(head)));
        let differences = missing.chain(extra).collect();
        self.proof.add(Check::of("tags", subject, list(&tags), list(&found), differences));
        match facts["branch"].as_str() {
            Some(branch) => {
                let name = format!("refs/heads/{branch}");
                let at =
                    self.text(dir, ["rev-parse", "--verify", "--quiet", &name])?.unwrap_or_else(|_| "nothing".into());
                let expected = format!("{branch} at {}", short(head));
                self.proof.add(match at == head {
                    true => Check::passed("branch", subject, expected.clone(), expected),
                    false => {
                        let found = format!("{branch} at {}", short(&at));
                        let why = format!("expected {expected}, found {found}");
                        Check::failed("branch", subject, expected, found, why)
                    }
                });
            }
            None => self.proof.add(Check::passed("branch", subject, "detached", "detached")),
        }
        self.edits(facts, subject, dir)
    }

    /// Whether the commit itself is there.
    fn commit(&mut self, subject: &str, dir: &str, commit: &str) -> Result<bool, SourceError> {
        let spec = format!("{commit}^{{commit}}");
        let found = self.text(dir, ["rev-parse", "--verify", "--quiet", &spec])?;
        self.proof.add(match &found {
            Ok(_) => Check::passed("commit", subject, commit, format!("{commit} in the bundle")),
            Err(_) => gone(subject, commit, "the bundle does not have it"),
        });
        Ok(found.is_ok())
    }

    /// The recorded edits, applied to the commit in an index of its own.
    fn edits(&mut self, facts: &Value, subject: &str, dir: &str) -> Result<(), SourceError> {
        let edits = &facts["edits"];
        let (Some(stream), Some(against)) = (edits["stream"].as_str(), edits["against"].as_str()) else {
            self.proof.add(Check::passed("edits", subject, "none", "none"));
            return Ok(());
        };
        let expected = format!("applied to {}", short(against));
        if edits["bytes"] == 0 {
            self.proof.add(Check::passed("edits", subject, "none", "none"));
            return Ok(());
        }
        let patch = format!("{dir}.patch");
        let applied = match self.lay(stream, &patch)? {
            Err(why) => Err(why),
            Ok(()) => match self.text(dir, ["read-tree", against])? {
                Err(why) => Err(why),
                Ok(_) => {
                    let from = format!("../{patch}");
                    self.text(dir, ["apply", "--cached", "--binary", "--whitespace=nowarn", &from])?
                }
            },
        };
        let names = match applied {
            Ok(_) => self.text(dir, ["diff-index", "--cached", "--name-only", "--no-renames", "-z", against])?,
            Err(why) => Err(why),
        };
        self.proof.add(match names {
            Err(why) => Check::failed("edits", subject, expected, "they do not apply", why),
            Ok(names) => {
                let names: Vec<&str> = names.split('\0').filter(|n| !n.is_empty()).collect();
                let edited = names_of(&facts["edited"]);
                // What was edited and put back again is named and differs in nothing; more than was named is not ours.
                let more = names.iter().filter(|n| edited.complete && !edited.names.contains(**n));
                let differences = more.map(|n| Difference::new(*n, "not edited", "edited")).collect();
                Check::of("edits", subject, expected, format!("{} files changed", names.len()), differences)
            }
        });
        Ok(())
    }

    /// Without a bundle the commit can only be where it was.
    fn live(&mut self, facts: &Value, subject: &str, head: &str) -> Result<(), SourceError> {
        let root = Path::new(facts["toplevel"].as_str().unwrap_or_default());
        let end = Instant::now() + self.trial.timeout;
        let found = match Git::open(root, self.trial.cancel, end) {
            Ok(Ok(git)) => git.maybe(&["rev-parse", "--verify", "--quiet", &format!("{head}^{{commit}}")]),
            Ok(Err(why)) => {
                let why = format!("the snapshot holds no bundle, and {} is no repository: {}", root.display(), why.0);
                self.proof.add(Check::skipped("commit", subject, why));
                return Ok(());
            }
            Err(e) => Err(e),
        };
        match found {
            Ok(Some(_)) => {
                let found = format!("{head} in {}", root.display());
                self.proof.add(Check::passed("commit", subject, head, found));
            }
            Ok(None) => {
                let why = format!("the snapshot holds no bundle, and {} does not have it any more", root.display());
                self.proof.add(gone(subject, head, &why));
            }
            Err(SourceError::Cancelled(e)) | Err(SourceError::Place(PlaceError::Cancelled(e))) => return Err(e.into()),
            Err(e) => self.proof.add(Check::skipped("commit", subject, e.to_string())),
        }
        if !facts["edits"].is_null() {
            let why = "without a bundle there is nothing to apply them to";
            self.proof.add(Check::skipped("edits", subject, why));
        }
        Ok(())
    }
}

fn refs_check(facts: &Value, subject: &str, found: usize) -> Check {
    let expected = facts["bundle"]["refs"].as_u64().unwrap_or(0);
    let (said, found_said) = (format!("{expected} refs"), format!("{found} refs"));
    match expected == found as u64 {
        true => Check::passed("bundle", subject, said, found_said),
        false => {
            let why = format!("expected {said}, found {found_said}");
            Check::failed("bundle", subject, said, found_said, why)
        }
    }
}

fn gone(subject: &str, commit: &str, why: &str) -> Check {
    Check::failed("commit", subject, commit, "nothing", format!("commit {commit} is gone: {why}"))
}

struct Edited<'f> {
    names: BTreeSet<&'f str>,
    /// All of them are named.
    complete: bool,
}

fn names_of(facts: &Value) -> Edited<'_> {
    let names: BTreeSet<&str> = facts["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    Edited { complete: facts["count"].as_u64() == Some(names.len() as u64), names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_facts_of_git() {
        let seed = serde_json::json!({"head": {"commit": "1b".repeat(20)}, "tags": ["v1.0.0"], "dirty": true,
            "edited": {"count": 2, "names": ["a", "b"]}, "bundle": {"stream": "repository.bundle", "refs": 3}});
        assert_eq!(summary(&seed), "commit 1b1b1b1b1b (v1.0.0) with 2 edited");
        let words = ["{", "}", "[", "]", "\"", ":", ",", "null", "-1", "1e400", "18446744073709551616", "é"];
        crate::base::fuzz::Fuzz::of("git-facts").seed(seed.to_string()).words(&words).run(|bytes| {
            let Ok(facts) = serde_json::from_slice::<Value>(bytes) else { return };
            let _ = (summary(&facts), refs_check(&facts, "", 3));
            let edited = names_of(&facts["edited"]);
            assert!(!edited.complete || facts["edited"]["count"].as_u64() == Some(edited.names.len() as u64));
        });
    }
}
