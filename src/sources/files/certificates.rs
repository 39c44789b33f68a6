//! The source `certificates`: folders of certificates and keys, and what is known of them.
//!
//! A link that points out of the named paths (certbot's `live/` into `archive/`, say) is captured together with what
//! it points to; only links into `/usr` are left alone, which hold what the system's own packages bring. Facts hold
//! nothing of a private key but whether it belongs to its certificate. A drill uses the same [`examine`].

pub use super::lineages::{Decision, Verdict, to_restore, verdict};

use super::docker::{DockerView, Trees};
use super::keys::{PrivateKey, PublicHalf, certificate_key, private_key};
use super::notes::Notes;
use super::plan::{Plan, path_of, unreadable};
use super::tree::KnownTree;
use super::view::{Host, Kind, View, normal};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::base::time::rfc3339;
use crate::policy::model::{App, CertificatesSpec, SourcePolicy, SourceSpec, Via};
use crate::sources::{Capture, Captured, Source, SourceError};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::time::ASN1Time;

/// A folder with more entries is no folder of certificates.
const MAX_ENTRIES: usize = 100_000;
/// No certificate and no chain of them is larger.
const MAX_FILE: u64 = 1 << 20;
/// What packages bring, and a new machine has again.
const SYSTEM: &str = "/usr";

/// A file as it was captured.
pub struct CertificateFile {
    pub path: PathBuf,
    pub mode: u32,
    pub content: Vec<u8>,
}

/// What is known of the certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    pub certificates: Vec<CertificateFact>,
    /// Files with a private key.
    pub keys: Vec<PathBuf>,
}

/// One certificate of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFact {
    /// The files of one folder that begin with it.
    pub files: Vec<PathBuf>,
    pub subject: String,
    /// DNS names and addresses.
    pub names: Vec<String>,
    pub issuer: String,
    pub serial: String,
    pub not_before: DateTime<Utc>,
    pub not_after: DateTime<Utc>,
    pub sha256: String,
    /// Whether each certificate in the file is signed by the next one; absent without a second one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_in_order: Option<bool>,
    /// The file of its private key, or the one that should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Whether that key belongs to it; absent when nobody can say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_matches: Option<bool>,
}

/// Folders of certificates.
pub struct CertificatesSource {
    name: SourceName,
    spec: CertificatesSpec,
    app: App,
    limit: Duration,
}

/// Links that were met, and where they lead.
type Links = RefCell<BTreeMap<PathBuf, PathBuf>>;

impl CertificatesSource {
    pub fn new(policy: &SourcePolicy, spec: &CertificatesSpec, app: &App) -> Self {
        CertificatesSource { name: policy.name.clone(), spec: spec.clone(), app: app.clone(), limit: policy.timeout }
    }

    fn tree(&self) -> KnownTree<'_> {
        KnownTree { source: &self.name, limit: self.limit, app: &self.app, via: self.spec.via }
    }

    fn prepare(&self, view: &dyn View, plan: &mut Plan, notes: &mut Notes, links: &Links) -> Result<(), SourceError> {
        plan.add_all(view, &self.spec.paths, notes)?;
        let roots = plan.taken();
        let mut ahead = roots.clone();
        let mut seen = 0;
        while let Some(path) = ahead.pop() {
            seen += 1;
            if seen > MAX_ENTRIES {
                return Err(SourceError::hint(
                    format!("more than {MAX_ENTRIES} entries below {}", self.spec.paths.join(", ")),
                    "name the folders that hold certificates only",
                ));
            }
            match view.kind(&path).map_err(|e| unreadable(&path, e))? {
                Some(Kind::Dir) => {
                    let names = view.read_dir(&path).map_err(|e| unreadable(&path, e))?;
                    ahead.extend(names.into_iter().map(|n| path.join(n)));
                }
                Some(Kind::Symlink(target)) => {
                    let target = normal(&path.parent().unwrap_or(Path::new("/")).join(target));
                    if !roots.iter().any(|r| target.starts_with(r)) && !target.starts_with(SYSTEM) {
                        view.look(&target)?;
                        plan.add(view, &path, notes)?;
                    }
                    links.borrow_mut().insert(path, target);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What is known of the certificates that are live now. A path of the policy that is not there holds none.
pub fn live(
    policy: &SourcePolicy,
    app: &App,
    cancel: &Cancel,
    now: DateTime<Utc>,
) -> Result<CertificateFacts, SourceError> {
    let SourceSpec::Certificates(spec) = &policy.spec else {
        return Err(SourceError::problem(format!("source {:?} has no certificates", policy.name.as_str())));
    };
    let trees;
    let docker;
    let view: &dyn View = match spec.via {
        Via::Direct => &Host,
        Via::Docker => {
            trees = Trees::new(app, cancel);
            docker = DockerView::new(&trees, cancel);
            &docker
        }
    };
    let mut there = spec.clone();
    there.paths.clear();
    for path in &spec.paths {
        let (literal, is_pattern) = super::docker::split_pattern(path);
        view.look(&literal)?;
        let is_there = match is_pattern {
            true => !super::plan::expand(view, path)?.is_empty(),
            false => view.kind(&literal).map_err(|e| unreadable(&literal, e))?.is_some(),
        };
        if is_there {
            there.paths.push(path.clone());
        }
    }
    if there.paths.is_empty() {
        return Ok(CertificateFacts::default());
    }
    let source = CertificatesSource::new(policy, &there, app);
    let (mut plan, links) = (Plan::host(&[]), Links::default());
    source.prepare(view, &mut plan, &mut Notes::default(), &links)?;
    let mut files = Vec::new();
    let mut ahead = plan.taken();
    while let Some(path) = ahead.pop() {
        cancel.check()?;
        match view.kind(&path).map_err(|e| unreadable(&path, e))? {
            Some(Kind::Dir) => {
                let names = view.read_dir(&path).map_err(|e| unreadable(&path, e))?;
                ahead.extend(names.into_iter().map(|n| path.join(n)));
            }
            Some(Kind::File) => match view.read(&path, MAX_FILE) {
                Ok(content) if is_pem(&content) => files.push(CertificateFile { path, mode: 0, content }),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::FileTooLarge => {}
                Err(e) => return Err(unreadable(&path, e)),
            },
            _ => {}
        }
    }
    Ok(examine(&files, &links.into_inner(), spec.min_days, now).0)
}

impl Source for CertificatesSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "certificates"
    }

    fn describe(&self) -> String {
        let through = if self.spec.via == Via::Docker { " (through docker)" } else { "" };
        format!("certificates in {}{through}", self.spec.paths.join(", "))
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        let links = Links::default();
        self.tree().probe(cancel, &|view, plan, notes| self.prepare(view, plan, notes, &links))
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let mut notes = Notes::default();
        let links = Links::default();
        let mut files = Vec::new();
        let prepare = |view: &dyn View, plan: &mut Plan, notes: &mut Notes| self.prepare(view, plan, notes, &links);
        self.tree().capture(cx, &prepare, &mut notes, &mut |entry, content| {
            if is_pem(content) {
                let path = Path::new("/").join(path_of(&entry.path));
                files.push(CertificateFile { path, mode: entry.mode, content: content.to_vec() });
            }
        })?;
        let (facts, said) = examine(&files, &links.into_inner(), self.spec.min_days, cx.now);
        said.into_iter().for_each(|warning| notes.say(warning));
        Ok(Captured { facts: json!(facts), warnings: notes.into_warnings() })
    }
}

pub(super) fn is_pem(content: &[u8]) -> bool {
    content.windows(11).any(|w| w == b"-----BEGIN ")
}

/// What one file holds.
#[derive(Default)]
pub(super) struct Held {
    /// The first certificate, and whether the chain behind it is in order.
    certificate: Option<CertificateFact>,
    public: Option<PublicHalf>,
    key: Option<PrivateKey>,
}

/// Reads the files as they are seen through the links: what is known of them, and what a person should know.
pub fn examine(
    files: &[CertificateFile],
    links: &BTreeMap<PathBuf, PathBuf>,
    min_days: u32,
    now: DateTime<Utc>,
) -> (CertificateFacts, Vec<String>) {
    let mut warnings = Vec::new();
    let mut held: BTreeMap<PathBuf, Held> = files.iter().map(|f| (f.path.clone(), read(&f.content))).collect();
    // What a link shows stands under the link's name: `live/`, not the history in `archive/`.
    let shown: Vec<(PathBuf, PathBuf)> =
        links.iter().filter(|(_, t)| held.contains_key(*t)).map(|(l, t)| (l.clone(), t.clone())).collect();
    let hidden: Vec<PathBuf> = shown.iter().filter_map(|(_, t)| Some(t.parent()?.to_path_buf())).collect();
    let through: Vec<(PathBuf, Held)> =
        shown.iter().filter_map(|(link, target)| Some((link.clone(), held.get(target)?.again()))).collect();
    held.retain(|path, _| !hidden.iter().any(|dir| path.parent() == Some(dir)));
    held.extend(through);

    let mut facts = CertificateFacts::default();
    for (path, one) in &held {
        if one.key.is_some() {
            facts.keys.push(path.clone());
        }
        let Some(certificate) = &one.certificate else { continue };
        let dir = path.parent();
        let twin = facts
            .certificates
            .iter_mut()
            .find(|c| c.sha256 == certificate.sha256 && c.files.first().and_then(|f| f.parent()) == dir);
        if let Some(twin) = twin {
            twin.files.push(path.clone());
            twin.chain_in_order = twin.chain_in_order.or(certificate.chain_in_order);
            continue;
        }
        let mut fact = CertificateFact { files: vec![path.clone()], ..certificate.clone() };
        (fact.key, fact.key_matches) = find_key(path, one.public.as_ref(), &held);
        facts.certificates.push(fact);
    }
    for fact in &facts.certificates {
        certificate_warnings(fact, min_days, now, &mut warnings);
    }
    for file in files.iter().filter(|f| f.mode & 0o004 != 0) {
        if facts.keys.iter().any(|k| *k == file.path || links.get(k) == Some(&file.path)) {
            warnings.push(format!("{} is a private key and every user can read it: chmod 600", file.path.display()));
        }
    }
    (facts, warnings)
}

impl Held {
    fn again(&self) -> Held {
        Held { certificate: self.certificate.clone(), public: self.public.clone(), key: self.key.clone() }
    }
}

/// The key of a certificate: one that fits, in its folder or anywhere; else the one beside it, which does not.
fn find_key(
    path: &Path,
    public: Option<&PublicHalf>,
    held: &BTreeMap<PathBuf, Held>,
) -> (Option<PathBuf>, Option<bool>) {
    let beside = |other: &Path| other.parent() == path.parent();
    let fits =
        |held: &Held| matches!((&held.key, public), (Some(PrivateKey::Known(key)), Some(public)) if key == public);
    let near = held.iter().find(|(p, h)| beside(p) && fits(h)).or_else(|| held.iter().find(|(_, h)| fits(h)));
    if let Some((key, _)) = near {
        return (Some(key.clone()), Some(true));
    }
    // certbot's names, a name that differs in its ending only, or the single key of the folder.
    let keys: Vec<_> = held.iter().filter(|(p, h)| beside(p) && h.key.is_some()).collect();
    let named = keys.iter().find(|(p, _)| p.file_stem() == path.file_stem() || p.ends_with("privkey.pem"));
    match named.or(keys.first().filter(|_| keys.len() == 1)) {
        Some((key, held)) => {
            let known = matches!(held.key, Some(PrivateKey::Known(_))) && public.is_some();
            ((*key).clone().into(), known.then_some(false))
        }
        None => (None, None),
    }
}

fn certificate_warnings(fact: &CertificateFact, min_days: u32, now: DateTime<Utc>, warnings: &mut Vec<String>) {
    let file = fact.files.first().map(|f| f.display().to_string()).unwrap_or_default();
    let days = (fact.not_after - now).num_days();
    if fact.not_after <= now {
        warnings.push(format!("{file} has expired on {}", rfc3339(fact.not_after)));
    } else if days < i64::from(min_days) {
        warnings.push(format!("{file} expires in {days} days, on {}", rfc3339(fact.not_after)));
    }
    if fact.not_before > now {
        warnings.push(format!("{file} is not valid before {}", rfc3339(fact.not_before)));
    }
    if fact.key_matches == Some(false)
        && let Some(key) = &fact.key
    {
        warnings.push(format!("{} does not belong to {file}", key.display()));
    }
    if fact.chain_in_order == Some(false) {
        warnings.push(format!("the chain behind {file} is not in order: each certificate must be signed by the next"));
    }
}

/// The certificates and the key of one file. What is not PEM, or not whole, is as if it were not there.
pub(super) fn read(content: &[u8]) -> Held {
    let mut held = Held::default();
    let pems: Vec<Pem> = Pem::iter_from_buffer(content).filter_map(Result::ok).collect();
    held.key = pems.iter().find_map(private_key);
    let is_certificate =
        |p: &&Pem| matches!(p.label.as_str(), "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE");
    let chain: Vec<X509Certificate<'_>> =
        pems.iter().filter(is_certificate).filter_map(|p| p.parse_x509().ok()).collect();
    let Some((first, der)) = chain.first().zip(pems.iter().find(is_certificate)) else { return held };
    // A bundle of authorities, or the rest of a chain, is no certificate of a server.
    if first.is_ca() {
        return held;
    }
    let spki = first.public_key();
    held.public = certificate_key(&spki.algorithm.algorithm.to_id_string(), &spki.subject_public_key.data);
    held.certificate = Some(CertificateFact {
        files: Vec::new(),
        subject: first.subject().to_string(),
        names: names(first),
        issuer: first.issuer().to_string(),
        serial: first.raw_serial_as_string(),
        not_before: time(first.validity().not_before),
        not_after: time(first.validity().not_after),
        sha256: hex::encode(Sha256::digest(&der.contents)),
        chain_in_order: in_order(&chain),
        key: None,
        key_matches: None,
    });
    held
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                    (Ok(v4), _) => names.push(std::net::Ipv4Addr::from(v4).to_string()),
                    (_, Ok(v6)) => names.push(std::net::Ipv6Addr::from(v6).to_string()),
                    _ => {}
                },
                _ => {}
            }
        }
    }
    if names.is_empty() {
        names.extend(certificate.subject().iter_common_name().filter_map(|n| n.as_str().ok()).map(str::to_owned));
    }
    names
}

/// `None` with a single certificate, or when a signature is of a kind that is not known here.
pub(super) fn in_order(chain: &[X509Certificate<'_>]) -> Option<bool> {
    use x509_parser::error::X509Error;
    if chain.len() < 2 {
        return None;
    }
    for pair in chain.windows(2) {
        if pair[0].issuer().as_raw() != pair[1].subject().as_raw() {
            return Some(false);
        }
        match pair[0].verify_signature(Some(pair[1].public_key())) {
            Ok(()) => {}
            Err(X509Error::SignatureUnsupportedAlgorithm) => return None,
            Err(_) => return Some(false),
        }
    }
    Some(true)
}

pub(super) fn time(time: ASN1Time) -> DateTime<Utc> {
    DateTime::from_timestamp(time.timestamp(), 0).unwrap_or_default()
}
