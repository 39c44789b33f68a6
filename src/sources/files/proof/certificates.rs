//! Certificates, proved: each parses, its key belongs to it, its chain is in order and in time, its names are those of
//! the facts, and what `live/` shows is there. Keys are only compared, never used.

use super::super::certificates::{CertificateFact, CertificateFacts, CertificateFile, examine, in_order, is_pem, time};
use super::super::view::{Kind, View, normal};
use super::inside::{Item, Restored};
use super::{count, facts, no_facts, own_tree, walk};
use crate::base::time::rfc3339;
use crate::policy::model::SourceSpec;
use crate::sources::SourceError;
use crate::sources::proof::{Check, Difference, Proof, Prove, Trial};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;

/// No certificate and no chain of them is larger.
const MAX_FILE: u64 = 1 << 20;
/// What packages bring: the capture leaves it alone, so a link to it may lead out of the tree.
const SYSTEM: &str = "/usr";
/// Where the policy no longer says how many days a certificate must be good for.
const MIN_DAYS: u32 = 0;

/// Proves a source of kind `certificates`.
pub struct CertificatesProof;

impl Prove for CertificatesProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let mut proof = Proof::default();
        let root = own_tree(trial)?;
        let tree = Tree::read(root)?;
        let min_days = match trial.source.map(|s| &s.spec) {
            Some(SourceSpec::Certificates(spec)) => spec.min_days,
            _ => MIN_DAYS,
        };
        let known: Option<CertificateFacts> = facts(trial);
        let (found, _) = proof.step(trial, "compare", false, || examine(&tree.files, &tree.links, min_days, trial.now));
        proof.restored.push(count(found.certificates.len(), "certificate"));
        proof.add(tree.parse());
        match &known {
            Some(known) => {
                proof.add(certificates(known, &found));
                proof.add(names(known, &found));
            }
            None => proof.add(no_facts("names")),
        }
        proof.add(keys(known.as_ref(), &found));
        proof.add(tree.chains(&found));
        proof.add(tree.dates(&found, min_days, trial.now));
        proof.add(tree.lineages());
        proof.add(tree.modes(&found));
        Ok(proof)
    }
}

/// A restored folder of certificates.
struct Tree {
    restored: Restored,
    items: Vec<Item>,
    files: Vec<CertificateFile>,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Tree {
    fn read(root: &Path) -> Result<Tree, SourceError> {
        let restored = Restored::new([root.to_path_buf()]);
        let items = walk(&restored, root)?;
        let (mut files, mut links) = (Vec::new(), BTreeMap::new());
        for item in &items {
            match &item.kind {
                Kind::File if item.size <= MAX_FILE => {
                    let read = restored.read(&item.path, MAX_FILE);
                    let content =
                        read.map_err(|source| SourceError::File { action: "read", path: item.real.clone(), source })?;
                    if is_pem(&content) {
                        files.push(CertificateFile { path: item.path.clone(), mode: item.mode, content });
                    }
                }
                Kind::Symlink(target) => {
                    let target = normal(&item.path.parent().unwrap_or(Path::new("/")).join(target));
                    links.insert(item.path.clone(), target);
                }
                _ => {}
            }
        }
        Ok(Tree { restored, items, files, links })
    }

    /// The content behind a path, as the tree's own links show it.
    fn content(&self, path: &Path) -> Option<&[u8]> {
        let file = self.restored.target(path).ok()?;
        let own = |f: &&CertificateFile| self.restored.target(&f.path).is_ok_and(|i| i.real == file.real);
        self.files.iter().find(own).map(|f| f.content.as_slice())
    }

    fn parse(&self) -> Check {
        let bad = self.files.iter().filter_map(|f| Some((f, fault(&f.content)?)));
        let differences = bad.map(|(f, why)| Difference::new(f.path.display().to_string(), "whole", why)).collect();
        let all = count(self.files.len(), "file");
        Check::of("parse", "", &all, &all, differences)
    }

    fn chains(&self, found: &CertificateFacts) -> Check {
        let mut differences = Vec::new();
        let (mut checked, mut unknown) = (0, 0);
        for file in &self.files {
            let pems = pems(&file.content);
            let chain: Vec<X509Certificate<'_>> = pems.iter().filter_map(|p| p.parse_x509().ok()).collect();
            // Authorities alone are a bundle, in no order.
            if chain.len() < 2 || chain.iter().all(|c| c.is_ca()) {
                continue;
            }
            checked += 1;
            let shown = self.shown(&file.path, found);
            let subject = shown.display().to_string();
            match in_order(&chain) {
                _ if chain[0].is_ca() => {
                    let first = format!("an authority's first: {}", chain[0].subject());
                    differences.push(Difference::new(subject, "the server's own certificate first", first));
                }
                Some(true) => {}
                Some(false) => {
                    let subjects: Vec<String> = chain.iter().map(|c| c.subject().to_string()).collect();
                    let found = format!("{}, out of order", subjects.join(" < "));
                    differences.push(Difference::new(subject, "each certificate signed by the next", found));
                }
                None => unknown += 1,
            }
        }
        if checked > 0 && unknown == checked {
            return Check::skipped("chain", "", "the signatures are of a kind that is not known here");
        }
        let found = format!("{} in order", count(checked - unknown - differences.len(), "chain"));
        Check::of("chain", "", format!("{} in order", count(checked, "chain")), found, differences)
    }

    /// The name under which a server sees a file: `live/…`, when a link there leads to it.
    fn shown(&self, path: &Path, found: &CertificateFacts) -> PathBuf {
        let link = |link: &&PathBuf| self.links.get(*link).is_some_and(|target| target == path);
        let files = found.certificates.iter().flat_map(|c| &c.files).chain(self.links.keys());
        files.clone().find(link).or_else(|| self.links.keys().find(link)).cloned().unwrap_or_else(|| path.to_path_buf())
    }

    /// Every certificate of what is shown, the authorities' in a chain as well.
    fn dates(&self, found: &CertificateFacts, min_days: u32, now: DateTime<Utc>) -> Check {
        let mut differences = Vec::new();
        let mut first: Option<DateTime<Utc>> = None;
        let expected = if min_days == 0 { "not expired".into() } else { format!("valid for {min_days} days more") };
        for file in found.certificates.iter().flat_map(|c| &c.files) {
            let pems = pems(self.content(file).unwrap_or_default());
            for certificate in pems.iter().filter_map(|p| p.parse_x509().ok()) {
                let (begin, end) = (time(certificate.validity().not_before), time(certificate.validity().not_after));
                let days = (end - now).num_days();
                first = Some(first.map_or(end, |f| f.min(end)));
                let found = match () {
                    () if end <= now => format!("expired on {}", rfc3339(end)),
                    () if begin > now => format!("not valid before {}", rfc3339(begin)),
                    () if days < i64::from(min_days) => format!("{days} days left, until {}", rfc3339(end)),
                    () => continue,
                };
                let subject = format!("{} ({})", file.display(), certificate.subject());
                differences.push(Difference::new(subject, &expected, found));
            }
        }
        let until = first.map(|end| format!("valid until {} at least", rfc3339(end)));
        let found = match differences.is_empty() {
            true => until.unwrap_or_else(|| "no certificate".into()),
            false => "some are not".into(),
        };
        Check::of("dates", "", expected, found, differences)
    }

    /// certbot's folders: what `live/` shows is in the tree, and of one generation.
    fn lineages(&self) -> Check {
        let mut differences = Vec::new();
        let mut lineages: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
        let mut links = 0;
        for (link, target) in self.links.iter().filter(|(link, target)| shows(link, target)) {
            links += 1;
            if self.restored.target(link).is_err() {
                let found = format!("a link to {}, which is not there", target.display());
                differences.push(Difference::new(link.display().to_string(), "a link to a restored file", found));
            }
            let dir = link.parent().filter(|d| d.parent().is_some_and(|live| live.ends_with("live")));
            if let Some((dir, generation)) = dir.zip(generation(target)) {
                lineages.entry(dir.to_path_buf()).or_default().insert(generation);
            }
        }
        for (dir, generations) in lineages.iter().filter(|(_, g)| g.len() > 1) {
            let found: Vec<&str> = generations.iter().map(String::as_str).collect();
            differences.push(Difference::new(dir.display().to_string(), "links of one generation", found.join(", ")));
        }
        // A lineage that has an archive and shows nothing of it cannot be served or renewed.
        for item in self.items.iter().filter(|i| i.kind == Kind::Dir) {
            let Some(archive) = item.path.parent().filter(|p| p.ends_with("archive")) else { continue };
            let live = archive.parent().zip(item.path.file_name()).map(|(etc, name)| etc.join("live").join(name));
            if let Some(live) = live
                && self.items.iter().any(|i| i.path.parent() == Some(&item.path))
                && self.items.iter().any(|i| live.parent() == Some(&i.path))
                && !self.items.iter().any(|i| i.path == live)
            {
                differences.push(Difference::new(live.display().to_string(), "a folder of links", "nothing"));
            }
        }
        let expected = format!("{}, {} whole", count(lineages.len(), "lineage"), count(links, "link"));
        let found = if differences.is_empty() { expected.clone() } else { "some are not".into() };
        Check::of("lineage", "", expected, found, differences)
    }

    fn modes(&self, found: &CertificateFacts) -> Check {
        let mut differences = Vec::new();
        for key in &found.keys {
            let Ok(item) = self.restored.target(key) else { continue };
            if item.mode & 0o004 != 0 {
                let found = format!("mode {:04o} on a private key", item.mode);
                differences.push(Difference::new(key.display().to_string(), "mode 0600", found));
            }
        }
        let expected = format!("{} closed to others", count(found.keys.len(), "private key"));
        let said = format!("{} closed to others", found.keys.len() - differences.len());
        Check::of("mode", "", expected, said, differences)
    }
}

/// Whether a link is there to show a certificate or key: what else dangles was so on the live machine too.
fn shows(link: &Path, target: &Path) -> bool {
    let live = link.ancestors().skip(1).any(|dir| dir.ends_with("live"));
    let named = link.extension().is_some_and(|e| ["pem", "crt", "cer", "key"].iter().any(|known| e == *known));
    (live || named) && !target.starts_with(SYSTEM)
}

/// `cert12.pem` is of generation 12.
fn generation(target: &Path) -> Option<String> {
    let stem = target.file_stem()?.to_str()?;
    let digits = stem.len() - stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    (digits > 0).then(|| stem[stem.len() - digits..].to_owned())
}

fn pems(content: &[u8]) -> Vec<Pem> {
    Pem::iter_from_buffer(content).filter_map(Result::ok).collect()
}

/// What is wrong with a file of certificates or keys; a lower-case fragment.
fn fault(content: &[u8]) -> Option<String> {
    let begun = content.windows(11).filter(|w| *w == b"-----BEGIN ").count();
    let pems = pems(content);
    if pems.len() < begun {
        return Some(format!("{} of {begun} blocks are whole", pems.len()));
    }
    let bad = |p: &&Pem| p.label.ends_with("CERTIFICATE") && p.parse_x509().is_err();
    pems.iter().any(|p| bad(&p)).then(|| "a certificate that does not parse".to_owned())
}

/// The certificate that begins a file.
fn of<'f>(facts: &'f CertificateFacts, file: &Path) -> Option<&'f CertificateFact> {
    facts.certificates.iter().find(|c| c.files.iter().any(|f| f == file))
}

/// Every file of the facts holds the very certificate.
fn certificates(known: &CertificateFacts, found: &CertificateFacts) -> Check {
    let mut differences = Vec::new();
    for then in &known.certificates {
        for file in &then.files {
            let expected = format!("{} no. {}", then.subject, then.serial);
            match of(found, file) {
                None => differences.push(Difference::new(file.display().to_string(), expected, "no certificate")),
                Some(now) if now.sha256 != then.sha256 => {
                    let other = format!("{} no. {}", now.subject, now.serial);
                    differences.push(Difference::new(file.display().to_string(), expected, other));
                }
                Some(_) => {}
            }
        }
    }
    let (then, now) = (known.certificates.len(), found.certificates.len());
    Check::of("certificates", "", count(then, "certificate"), count(now, "certificate"), differences)
}

fn names(known: &CertificateFacts, found: &CertificateFacts) -> Check {
    let mut differences = Vec::new();
    let mut all = BTreeSet::new();
    for then in &known.certificates {
        all.extend(&then.names);
        let Some(file) = then.files.first() else { continue };
        let Some(now) = of(found, file).filter(|now| now.names != then.names) else { continue };
        differences.push(Difference::new(file.display().to_string(), then.names.join(", "), now.names.join(", ")));
    }
    let listed: Vec<&str> = all.iter().map(|n| n.as_str()).collect();
    let found = if differences.is_empty() { listed.join(", ") } else { "others".into() };
    Check::of("names", "", listed.join(", "), found, differences)
}

/// Each certificate's key is there and belongs to it.
fn keys(known: Option<&CertificateFacts>, found: &CertificateFacts) -> Check {
    let mut differences = Vec::new();
    let (mut fit, mut unknown) = (0, 0);
    for now in &found.certificates {
        let Some(file) = now.files.first() else { continue };
        let then = known.and_then(|known| of(known, file));
        let subject = file.display().to_string();
        match (now.key_matches, &now.key, then.and_then(|t| t.key_matches)) {
            (Some(true), ..) => fit += 1,
            (Some(false), Some(key), _) => {
                let found = format!("{} belongs to another certificate", key.display());
                differences.push(Difference::new(subject, "the key that belongs to it", found));
            }
            (_, None, Some(true)) => differences.push(Difference::new(subject, "its private key", "no key")),
            _ => unknown += 1,
        }
    }
    let total = found.certificates.len();
    if total > 0 && unknown == total {
        return Check::skipped(
            "key",
            "",
            "no key of these certificates can be read: none was captured, or under a passphrase",
        );
    }
    let note = if unknown > 0 { format!(", {unknown} without a key that can be read") } else { String::new() };
    Check::of(
        "key",
        "",
        format!("{} with their keys", count(total, "certificate")),
        format!("{fit} fit{note}"),
        differences,
    )
}
