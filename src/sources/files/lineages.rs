//! Which certificates a rollback puts back: as a rule none. What is live stays, unless it is missing, has expired, or its
//! key is not there or not its own; then the whole lineage returns (certificate, chain, key, certbot's configuration), and
//! never one that expires earlier than what is live. Pure: it looks at what is known of both sides, not at files.

use super::certificates::{CertificateFact, CertificateFacts};
use crate::base::time::rfc3339;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What becomes of a lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    Keep,
    Restore,
}

/// One lineage: a certificate with its chain and its key, under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// certbot's folder below `live/`, else the certificate's first file.
    pub lineage: PathBuf,
    pub decision: Decision,
    /// A lower-case fragment.
    pub why: String,
    /// All that belongs to it in the snapshot: a part to be put back.
    pub paths: Vec<PathBuf>,
}

/// What is put back, as paths for [`crate::sources::placing::Part`]. Empty: nothing is, and the source must not be
/// placed at all, because a part without paths is everything.
pub fn to_restore(verdicts: &[Verdict]) -> Vec<PathBuf> {
    let restored = verdicts.iter().filter(|v| v.decision == Decision::Restore);
    restored.flat_map(|v| v.paths.iter().cloned()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Judges each lineage of both sides. `listed`: all paths of the snapshot's tree.
pub fn verdict(
    live: &CertificateFacts,
    captured: &CertificateFacts,
    listed: &[PathBuf],
    now: DateTime<Utc>,
) -> Vec<Verdict> {
    let (then, today) = (lineages(captured), lineages(live));
    let files_of = |facts: &[&CertificateFact]| -> BTreeSet<PathBuf> {
        facts.iter().flat_map(|f| f.files.iter().cloned()).collect()
    };
    let mut matched: BTreeSet<&PathBuf> = BTreeSet::new();
    let mut verdicts = Vec::new();
    for (lineage, own) in &then {
        let files = files_of(own);
        // The same name of certbot's, or any file of it.
        let same = |(name, facts): &(&PathBuf, &Vec<&CertificateFact>)| {
            *name == lineage || (certbot(name).is_none() && !files_of(facts).is_disjoint(&files))
        };
        let found: Vec<_> = today.iter().filter(same).collect();
        matched.extend(found.iter().map(|(name, _)| *name));
        let alive: Vec<&CertificateFact> = found.iter().flat_map(|(_, facts)| facts.iter().copied()).collect();
        let (decision, why) = judge(&alive, own, now);
        verdicts.push(Verdict { lineage: lineage.clone(), decision, why, paths: paths(lineage, own, &then, listed) });
    }
    for (lineage, _) in today.iter().filter(|(name, _)| !matched.contains(name)) {
        let why = "the snapshot does not have it".to_owned();
        verdicts.push(Verdict { lineage: lineage.clone(), decision: Decision::Keep, why, paths: Vec::new() });
    }
    verdicts
}

type Lineages<'f> = BTreeMap<PathBuf, Vec<&'f CertificateFact>>;

/// certbot's folder of a file, `…/live/<name>`, and of a lineage that is one.
fn certbot(path: &Path) -> Option<&Path> {
    path.ancestors().find(|dir| dir.parent().is_some_and(|live| live.ends_with("live")))
}

/// Certificates by lineage: those of one folder of certbot's, or those that share a file or a key.
fn lineages(facts: &CertificateFacts) -> Lineages<'_> {
    let mut lineages = Lineages::new();
    let mut loose: Vec<(BTreeSet<&PathBuf>, Vec<&CertificateFact>)> = Vec::new();
    for fact in &facts.certificates {
        if let Some(dir) = fact.files.iter().find_map(|f| certbot(f)) {
            lineages.entry(dir.to_path_buf()).or_default().push(fact);
            continue;
        }
        let mut group = (fact.files.iter().chain(&fact.key).collect::<BTreeSet<_>>(), vec![fact]);
        let (joined, apart): (Vec<_>, Vec<_>) = loose.into_iter().partition(|(files, _)| !files.is_disjoint(&group.0));
        for (files, certificates) in joined {
            group.0.extend(files);
            group.1.extend(certificates);
        }
        loose = apart;
        loose.push(group);
    }
    for (files, certificates) in loose {
        let first = certificates.iter().flat_map(|c| &c.files).min().or(files.first().copied());
        if let Some(first) = first {
            lineages.insert(first.clone(), certificates);
        }
    }
    lineages
}

/// What belongs to a lineage in the snapshot: whole folders of certbot's; else the files, the key, and what beside them
/// has the same name but for its ending.
fn paths(lineage: &Path, own: &[&CertificateFact], all: &Lineages<'_>, listed: &[PathBuf]) -> Vec<PathBuf> {
    if let Some((dir, name)) = certbot(lineage).zip(lineage.file_name())
        && let Some(root) = dir.parent().and_then(Path::parent)
    {
        let mut renewal = name.to_owned();
        renewal.push(".conf");
        let wanted =
            [root.join("live").join(name), root.join("archive").join(name), root.join("renewal").join(renewal)];
        let mut paths: BTreeSet<PathBuf> = wanted.into_iter().filter(|path| listed.contains(path)).collect();
        // A key that lies elsewhere is its own all the same.
        let inside = |key: &&PathBuf| !paths.iter().any(|p| key.starts_with(p)) && listed.contains(key);
        let keys: Vec<PathBuf> = own.iter().filter_map(|f| f.key.as_ref()).filter(inside).cloned().collect();
        paths.extend(keys);
        return paths.into_iter().collect();
    }
    let parts: BTreeSet<&PathBuf> = own.iter().flat_map(|f| f.files.iter().chain(&f.key)).collect();
    let others: BTreeSet<&PathBuf> = all
        .iter()
        .filter(|(name, _)| *name != lineage)
        .flat_map(|(_, facts)| facts.iter().flat_map(|f| f.files.iter().chain(&f.key)))
        .collect();
    let beside = |path: &&PathBuf| {
        let twin = |part: &&PathBuf| part.parent() == path.parent() && part.file_stem() == path.file_stem();
        parts.contains(*path) || (!others.contains(*path) && parts.iter().any(twin))
    };
    listed.iter().filter(beside).cloned().collect()
}

fn judge(live: &[&CertificateFact], captured: &[&CertificateFact], now: DateTime<Utc>) -> (Decision, String) {
    let end = |facts: &[&CertificateFact]| facts.iter().map(|f| f.not_after).min().unwrap_or(DateTime::<Utc>::MIN_UTC);
    let (until, then) = (end(live), end(captured));
    let expired = then <= now;
    if live.is_empty() {
        let note =
            if expired { format!(", and the captured one has expired on {}", rfc3339(then)) } else { String::new() };
        return (Decision::Restore, format!("it is missing today{note}"));
    }
    let Some(problem) = problem(live, captured, now) else {
        return (Decision::Keep, format!("what is live is good until {}", rfc3339(until)));
    };
    let keep = |why: String| (Decision::Keep, format!("{problem}, but {why}"));
    if then < until {
        return keep(format!("the captured one would expire earlier, on {}", rfc3339(then)));
    }
    if expired {
        return keep(format!("the captured one has expired as well, on {}", rfc3339(then)));
    }
    if captured.iter().any(|f| f.key_matches == Some(false)) {
        return keep("neither does the captured key belong to its certificate".into());
    }
    (Decision::Restore, problem)
}

/// What is wrong with a live lineage that was captured otherwise.
fn problem(live: &[&CertificateFact], captured: &[&CertificateFact], now: DateTime<Utc>) -> Option<String> {
    let files: BTreeSet<&PathBuf> = live.iter().flat_map(|f| &f.files).collect();
    if let Some(fact) = live.iter().find(|f| f.not_after <= now) {
        return Some(format!("it has expired on {}", rfc3339(fact.not_after)));
    }
    if let Some(key) = live.iter().find(|f| f.key_matches == Some(false)).map(|f| &f.key) {
        let key = key.as_ref().map(|k| k.display().to_string()).unwrap_or_else(|| "its key".into());
        return Some(format!("{key} does not belong to it"));
    }
    let had_key = captured.iter().filter_map(|f| f.key.as_ref()).next();
    if let Some(key) = had_key.filter(|_| live.iter().any(|f| f.key.is_none())) {
        return Some(format!("its key {} is missing", key.display()));
    }
    let gone = captured.iter().flat_map(|f| &f.files).find(|f| !files.contains(f));
    gone.map(|file| format!("{} is missing", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &str = "/etc/letsencrypt/live/shop.example";

    fn fact(files: &[&str], until: &str, sha: &str, key: Option<&str>, matches: Option<bool>) -> CertificateFact {
        CertificateFact {
            files: files.iter().map(PathBuf::from).collect(),
            subject: "CN=shop.example".into(),
            names: vec!["shop.example".into()],
            issuer: "CN=Test".into(),
            serial: "01".into(),
            not_before: at("2026-01-01"),
            not_after: at(until),
            sha256: sha.into(),
            chain_in_order: None,
            key: key.map(PathBuf::from),
            key_matches: matches,
        }
    }

    fn at(day: &str) -> DateTime<Utc> {
        format!("{day}T00:00:00Z").parse().unwrap()
    }

    fn lets_encrypt(until: &str, sha: &str, matches: Option<bool>) -> CertificateFact {
        let files = [format!("{LIVE}/cert.pem"), format!("{LIVE}/fullchain.pem")];
        let key = format!("{LIVE}/privkey.pem");
        fact(&[&files[0], &files[1]], until, sha, Some(&key), matches)
    }

    fn facts(certificates: Vec<CertificateFact>) -> CertificateFacts {
        CertificateFacts { certificates, keys: Vec::new() }
    }

    fn listed() -> Vec<PathBuf> {
        [
            LIVE,
            "/etc/letsencrypt/archive/shop.example",
            "/etc/letsencrypt/archive/shop.example/cert2.pem",
            "/etc/letsencrypt/renewal/shop.example.conf",
            "/etc/letsencrypt/renewal/other.conf",
        ]
        .map(PathBuf::from)
        .into()
    }

    fn one(live: Vec<CertificateFact>, captured: CertificateFact) -> (Decision, String) {
        let found = verdict(&facts(live), &facts(vec![captured]), &listed(), at("2026-06-01"));
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0].decision, found[0].why.clone())
    }

    #[test]
    fn what_is_live_and_good_stays() {
        let then = lets_encrypt("2026-08-01", "a", Some(true));
        let (decision, why) = one(vec![then.clone()], then.clone());
        assert_eq!((decision, why.as_str()), (Decision::Keep, "what is live is good until 2026-08-01T00:00:00Z"));
        let renewed = lets_encrypt("2026-10-01", "b", Some(true));
        assert_eq!(one(vec![renewed], then.clone()).0, Decision::Keep);
        // Whoever took one with a shorter life meant to.
        let shorter = lets_encrypt("2026-07-01", "c", Some(true));
        assert_eq!(one(vec![shorter], then).0, Decision::Keep);
    }

    #[test]
    fn what_is_missing_expired_or_mismatched_returns() {
        let then = lets_encrypt("2026-08-01", "a", Some(true));
        let (decision, why) = one(Vec::new(), then.clone());
        assert_eq!((decision, why.as_str()), (Decision::Restore, "it is missing today"));
        let expired = lets_encrypt("2026-05-01", "b", Some(true));
        let (decision, why) = one(vec![expired], then.clone());
        assert_eq!((decision, why.as_str()), (Decision::Restore, "it has expired on 2026-05-01T00:00:00Z"));
        let mismatched = lets_encrypt("2026-08-01", "a", Some(false));
        let (decision, why) = one(vec![mismatched], then.clone());
        assert_eq!(decision, Decision::Restore);
        assert_eq!(why, format!("{LIVE}/privkey.pem does not belong to it"));
        let mut keyless = then.clone();
        (keyless.key, keyless.key_matches) = (None, None);
        assert_eq!(one(vec![keyless], then.clone()).0, Decision::Restore);
        let mut half = then.clone();
        half.files.pop();
        assert!(one(vec![half], then).1.ends_with("fullchain.pem is missing"));
    }

    #[test]
    fn never_to_an_earlier_expiry_and_never_to_something_no_better() {
        let then = lets_encrypt("2026-08-01", "a", Some(true));
        let later = lets_encrypt("2026-10-01", "b", Some(false));
        let (decision, why) = one(vec![later], then);
        assert_eq!(decision, Decision::Keep);
        assert!(why.ends_with("but the captured one would expire earlier, on 2026-08-01T00:00:00Z"), "{why}");
        let old = lets_encrypt("2026-05-02", "a", Some(true));
        let older = lets_encrypt("2026-05-01", "b", Some(true));
        assert!(one(vec![older], old).1.contains("has expired as well"));
        let expired = lets_encrypt("2026-05-01", "b", Some(true));
        let broken = lets_encrypt("2026-08-01", "a", Some(false));
        assert_eq!(one(vec![expired], broken).0, Decision::Keep);
    }

    #[test]
    fn lineages_are_whole() {
        let found = verdict(
            &facts(Vec::new()),
            &facts(vec![lets_encrypt("2026-08-01", "a", Some(true))]),
            &listed(),
            at("2026-06-01"),
        );
        assert_eq!(found[0].lineage, Path::new(LIVE));
        let whole = [
            "/etc/letsencrypt/archive/shop.example",
            "/etc/letsencrypt/live/shop.example",
            "/etc/letsencrypt/renewal/shop.example.conf",
        ];
        assert_eq!(to_restore(&found), whole.map(PathBuf::from));
    }

    #[test]
    fn files_in_a_plain_folder_go_by_their_names_and_keys() {
        let dir = "/srv/ssl";
        let of = |name: &str, until: &str| {
            let key = format!("{dir}/{name}.key");
            fact(
                &[&format!("{dir}/{name}.crt"), &format!("{dir}/{name}.chain.crt")],
                until,
                name,
                Some(&key),
                Some(true),
            )
        };
        let captured = facts(vec![of("a", "2026-08-01"), of("b", "2026-08-01")]);
        let live = facts(vec![of("a", "2026-05-01"), of("b", "2026-10-01"), of("new", "2026-10-01")]);
        let listed: Vec<PathBuf> =
            ["a.crt", "a.chain.crt", "a.key", "a.json", "b.crt", "b.chain.crt", "b.key", "dhparam.pem"]
                .iter()
                .map(|n| Path::new(dir).join(n))
                .collect();
        let found = verdict(&live, &captured, &listed, at("2026-06-01"));
        let said: Vec<_> =
            found.iter().map(|v| (v.lineage.file_name().unwrap().to_str().unwrap(), v.decision)).collect();
        let expected =
            [("a.chain.crt", Decision::Restore), ("b.chain.crt", Decision::Keep), ("new.chain.crt", Decision::Keep)];
        assert_eq!(said, expected);
        let restored = to_restore(&found);
        let names: Vec<_> = restored.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.chain.crt", "a.crt", "a.json", "a.key"]);
    }
}
