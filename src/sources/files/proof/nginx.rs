//! nginx, proved: `nginx -t` on the restored files at their own absolute paths, with the restored certificates.
//!
//! Where it runs in a container, it is asked in a throw-away one of the same image; else this host's program is asked,
//! in a namespace of its own whose root is put together from what was restored ([`super::nginx_host`]). Either way it
//! runs without rights and without network, so names that it would resolve are made to resolve, and only what is wrong
//! with the configuration turns it red.

use super::inside::Restored;
use super::nginx_container;
use super::nginx_host;
use super::{count, facts, no_facts, own_tree};
use crate::policy::model::SourceSpec;
use crate::sources::SourceError;
use crate::sources::files::nginx::NginxFacts;
use crate::sources::proof::{Check, Difference, Proof, Prove, Trial};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// How often a name may turn up that was not foreseen.
pub(super) const ROUNDS: usize = 20;

/// Proves a source of kind `nginx`.
pub struct NginxProof;

/// What `nginx -t` said.
#[derive(Debug, Default)]
pub(super) struct Tested {
    /// The main file.
    pub main: PathBuf,
    /// Where: `nginx/1.22.1 of this host`.
    pub by: String,
    pub code: i32,
    pub stderr: String,
    /// What is not as it will be: the parts that are the live machine's.
    pub notes: Vec<String>,
    pub server_names: BTreeSet<String>,
}

/// Whether it could be asked; else why not, as a lower-case fragment.
pub(super) type Outcome = Result<Tested, String>;

impl Prove for NginxProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let mut proof = Proof::default();
        let known: Option<NginxFacts> = facts(trial);
        let restored = Restored::of(trial.trees, Some(own_tree(trial)?), &["nginx", "certificates"]);
        let container = match trial.source.map(|s| &s.spec) {
            Some(SourceSpec::Nginx(spec)) => spec.container.as_deref(),
            _ => None,
        };
        let scene = Scene { trial, known: known.as_ref(), restored: &restored };
        let outcome = proof.step(trial, "nginx -t", false, || match container {
            Some(container) => nginx_container::test(&scene, container),
            None => nginx_host::test(&scene),
        })?;
        match outcome {
            Err(why) => {
                proof.restored.push("nginx (not tested)".into());
                proof.add(Check::skipped("nginx -t", "", why));
            }
            Ok(tested) => {
                let checks = [tested.accepted(), tested.conflicts()];
                let ok = checks.iter().all(|c| c.verdict == crate::sources::proof::Verdict::Passed);
                proof.restored.push(if ok { "nginx ok" } else { "nginx refused" }.into());
                checks.into_iter().for_each(|check| proof.add(check));
                match &known {
                    Some(known) => proof.add(tested.names(known)),
                    None => proof.add(no_facts("names")),
                }
            }
        }
        Ok(proof)
    }
}

/// What a test of the configuration starts from.
pub(super) struct Scene<'a> {
    pub trial: &'a Trial<'a>,
    pub known: Option<&'a NginxFacts>,
    /// This source's tree, and those of certificates.
    pub restored: &'a Restored,
}

impl Tested {
    /// nginx's words of a level, each once, without its program's name, the time and the process: it says a thing to
    /// its log and to its caller, and either may be its standard error.
    fn lines(&self, level: &str) -> Vec<&str> {
        let mark = format!("[{level}] ");
        let mut lines = Vec::new();
        for line in self.stderr.lines().filter_map(|line| Some(line.split_once(mark.as_str())?.1.trim())) {
            let process = |head: &str| head.bytes().all(|b| b.is_ascii_digit() || b == b'#');
            let line = line.split_once(": ").filter(|(head, _)| process(head)).map_or(line, |(_, rest)| rest);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines
    }

    fn errors(&self) -> Vec<&str> {
        ["emerg", "alert", "crit", "error"].iter().flat_map(|level| self.lines(level)).collect()
    }

    fn accepted(&self) -> Check {
        let subject = self.main.display().to_string();
        let mut errors = self.errors();
        // The configuration has been read when addresses are bound; that those are not here says nothing of it.
        let before = errors.len();
        errors.retain(|e| !is_address(e));
        let only_addresses = before > 0 && errors.is_empty();
        let notes = self.notes.iter().map(|n| format!("; {n}")).collect::<String>();
        if self.code == 0 || only_addresses {
            let found = format!("accepted by {}{notes}", self.by);
            return Check::passed("nginx -t", subject, "accepted", found);
        }
        if errors.is_empty() {
            let said = crate::sources::run::one_line(&self.stderr);
            let why = format!("{} ended with status {}: {said}", self.by, self.code);
            return Check::failed("nginx -t", subject, "accepted", "refused", why);
        }
        let differences = errors.iter().map(|e| Difference::new(place(e, &self.main), "accepted", *e)).collect();
        let mut check =
            Check::of("nginx -t", subject, "accepted", format!("refused by {}{notes}", self.by), differences);
        check.why = Some(errors.join("; "));
        check
    }

    /// Two servers for one name are a warning to nginx, and one of them never answers.
    fn conflicts(&self) -> Check {
        let mut conflicts = self.lines("warn");
        conflicts.retain(|line| line.starts_with("conflicting server name"));
        let differences = conflicts
            .iter()
            .map(|line| {
                let name = line.split('"').nth(1).unwrap_or_default();
                Difference::new(format!("server name {name:?}"), "one server", *line)
            })
            .collect();
        let found =
            if conflicts.is_empty() { "one server each".to_owned() } else { count(conflicts.len(), "conflict") };
        Check::of("server names", "", "one server each", found, differences)
    }

    fn names(&self, known: &NginxFacts) -> Check {
        let missing: Vec<&String> = known.server_names.difference(&self.server_names).collect();
        let differences = missing.iter().map(|n| Difference::new(n.as_str(), "a server", "none")).collect();
        let expected = count(known.server_names.len(), "server name");
        Check::of("names", "", expected, count(known.server_names.len() - missing.len(), "server name"), differences)
    }
}

/// Whether it is about an address of the machine, not about the configuration.
fn is_address(error: &str) -> bool {
    ["bind() to ", "socket() ", "listen() to ", "still could not bind()"].iter().any(|b| error.starts_with(b))
}

/// `… in /etc/nginx/sites-enabled/shop:12` is about `/etc/nginx/sites-enabled/shop:12`.
fn place(error: &str, main: &std::path::Path) -> String {
    let named = error.rsplit_once(" in /").map(|(_, rest)| format!("/{rest}"));
    let quoted = || error.split('"').find(|part| part.starts_with('/')).map(str::to_owned);
    named.or_else(quoted).unwrap_or_else(|| main.display().to_string())
}

/// The host that could not be resolved, when that is what stopped it.
pub(super) fn unresolved(stderr: &str) -> Option<String> {
    let (_, rest) = stderr.split_once("host not found in ")?;
    super::nginx_read::name_of(rest.split('"').nth(1)?)
}

/// A file of hosts in which every name is this machine.
pub(super) fn hosts_file(names: &BTreeSet<String>) -> String {
    let lines = names.iter().map(|name| format!("127.0.0.1 {name}\n"));
    std::iter::once("127.0.0.1 localhost\n::1 localhost\n".to_owned()).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tested(code: i32, stderr: &str) -> Tested {
        Tested {
            main: "/etc/nginx/nginx.conf".into(),
            by: "nginx".into(),
            code,
            stderr: stderr.into(),
            ..Tested::default()
        }
    }

    #[test]
    fn addresses_are_no_fault_of_the_configuration_and_errors_are_named_by_their_file() {
        let only = tested(1, "nginx: [emerg] bind() to 203.0.113.5:80 failed (99: Cannot assign requested address)\n");
        assert_eq!(only.accepted().verdict, crate::sources::proof::Verdict::Passed);
        let bad = tested(
            1,
            "nginx: [warn] x\n2026/11/27 04:02:22 [emerg] 12#12: unknown directive \"lisen\" in /etc/nginx/conf.d/a.conf:2\nnginx: [emerg] unknown directive \"lisen\" in /etc/nginx/conf.d/a.conf:2\nnginx: configuration file /etc/nginx/nginx.conf test failed\n",
        );
        let check = bad.accepted();
        assert_eq!(check.differences[0].subject, "/etc/nginx/conf.d/a.conf:2");
        assert_eq!(check.why.as_deref(), Some("unknown directive \"lisen\" in /etc/nginx/conf.d/a.conf:2"));
        assert_eq!(unresolved("[emerg] host not found in upstream \"api:3000\" in /x:1").as_deref(), Some("api"));
        assert_eq!(unresolved("[emerg] host not found in \"h:80\" of the \"listen\" directive").as_deref(), Some("h"));
        let silent = tested(3, "Segmentation fault").accepted();
        assert!(silent.why.unwrap().contains("status 3: Segmentation"), "a crash is never taken for an address");
    }
}
