//! What opening a repository will ask of its storage, asked all at once: over a network each answer takes its time, and
//! most questions are known before the first is answered.
//!
//! Nothing is believed earlier for being fetched earlier: what is fetched here is looked at where it always was, behind
//! the pin, the signers and the header that names it. What this host remembers of headers only says what to ask for.

use crate::base::ids::{HostName, PolicyName};
use crate::ops::access::AccessRequest;
use crate::pipeline::limits;
use crate::repository::chain::Named;
use crate::repository::format::Header;
use crate::repository::headers::HeaderCache;
use crate::repository::layout::{self, HeaderKey};
use crate::repository::state::State;
use crate::repository::{parallel, writer};
use crate::storage::{Ahead, Storage, StorageKey};
use std::collections::{BTreeMap, BTreeSet};

/// What a repository is opened for.
#[derive(Debug, Clone, Default)]
pub enum Purpose {
    /// To look at what is there.
    #[default]
    Look,
    /// To read the snapshot of this name.
    Read(String),
    /// To say what is known of the snapshot of this name, its drills as well.
    Show(String),
    /// To write a snapshot of this host.
    Write(HostName),
}

/// Asks for what opening the repository for this purpose takes. Whether the records were asked for beside the headers:
/// then they may be the older ones.
pub fn ask(storage: &dyn Storage, state: Option<&State>, request: &AccessRequest) -> bool {
    if !storage.is_far() {
        return false;
    }
    let list = |prefix: &str| Ahead::List(prefix.to_owned());
    let signed = |key| Ahead::Get(key, limits::SIGNED);
    let mut questions = vec![signed(layout::repository()), signed(layout::signer(1)), list(layout::SIGNERS)];
    // Whoever looks for damage, or deletes, reads in the strict order.
    if request.remembered {
        questions.extend([list(layout::SNAPSHOTS), list(layout::RECORDS)]);
    }
    if let Purpose::Write(_) = request.purpose {
        questions.extend([list(layout::ARCHIVES), list(layout::INDEX), list(layout::TRASH)]);
    }
    if let Purpose::Show(_) = request.purpose {
        questions.push(list(layout::DRILLS));
    }
    storage.ask_ahead(questions);
    if request.remembered
        && let Some(state) = state
        && let Ok(Some(repository)) = state.pin(&storage.describe())
        && let Some(headers) = state.header_cache(&repository, &storage.describe())
    {
        storage.ask_ahead(guess(&headers, request));
    }
    request.remembered
}

/// What the remembered headers say will be read.
fn guess(headers: &HeaderCache, request: &AccessRequest) -> Vec<Ahead> {
    let refs = |header: &Header| Ahead::Get(layout::refs(header.refs), limits::REFS);
    match &request.purpose {
        Purpose::Look => Vec::new(),
        Purpose::Read(name) | Purpose::Show(name) => {
            let policy = request.policy.as_ref().map(|policy| &policy.app.name);
            let wanted = named(headers.keys(layout::SNAPSHOTS), policy, request.host.as_ref(), name);
            let Some(header) = wanted.and_then(|key| headers.header(&key)) else { return Vec::new() };
            let manifest = Ahead::Get(layout::manifest(header.manifest), limits::MANIFEST_STORED);
            vec![refs(&header), manifest]
        }
        Purpose::Write(host) => {
            let mut lines: BTreeMap<PolicyName, Vec<(u64, StorageKey)>> = BTreeMap::new();
            for key in headers.keys(layout::SNAPSHOTS) {
                if let Some(place) = layout::parse_header(&key).filter(|place| place.host == *host) {
                    lines.entry(place.policy).or_default().push((place.sequence.0, key));
                }
            }
            let mut wanted = BTreeSet::new();
            for keys in lines.values_mut() {
                keys.sort_unstable_by(|a, b| b.cmp(a));
                let newest = keys.iter().take(writer::HEADERS_FOR_INDEX);
                wanted.extend(newest.filter_map(|(_, key)| Some(headers.header(key)?.refs)));
            }
            let wanted = wanted.into_iter().take(parallel::REFS_AT_ONCE);
            wanted.map(|id| Ahead::Get(layout::refs(id), limits::REFS)).collect()
        }
    }
}

/// The header that a name most likely means, by the keys alone.
fn named(
    keys: Vec<StorageKey>,
    policy: Option<&PolicyName>,
    host: Option<&HostName>,
    name: &str,
) -> Option<StorageKey> {
    let mut places: Vec<(HeaderKey, StorageKey)> =
        keys.into_iter().filter_map(|key| Some((layout::parse_header(&key)?, key))).collect();
    places.retain(|(place, _)| policy.is_none_or(|p| place.policy == *p) && host.is_none_or(|h| place.host == *h));
    // Ids begin with the time; within one host and policy the sequence is the order.
    places.sort_by(|(a, _), (b, _)| (a.id.as_str(), a.sequence).cmp(&(b.id.as_str(), b.sequence)));
    let is_one_line = places.windows(2).all(|w| (&w[0].0.host, &w[0].0.policy) == (&w[1].0.host, &w[1].0.policy));
    if is_one_line {
        places.sort_by_key(|(place, _)| place.sequence);
    }
    let found = match Named::parse(name) {
        Named::Latest(back) => places.into_iter().rev().nth(back),
        Named::Text(text) => {
            let is_it = |id: &str| id.starts_with(&text) || (text.len() == 8 && id.ends_with(&text));
            places.into_iter().rev().find(|(place, _)| is_it(place.id.as_str()))
        }
    };
    found.map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_guessed_from_the_keys() {
        let key = |host: &str, sequence: u64, id: &str| -> StorageKey {
            format!("snapshots/{host}/shop/{sequence:010}.{id}.json").parse().unwrap()
        };
        // The second one was taken with a clock that had been put back.
        let one = [key("a", 1, "20261120T000000Z-00000001"), key("a", 2, "20261119T000000Z-00000002")];
        let guess = |keys: &[StorageKey], name: &str| named(keys.to_vec(), None, None, name);
        assert_eq!(guess(&one, "latest").as_ref(), Some(&one[1]));
        assert_eq!(guess(&one, "latest~1").as_ref(), Some(&one[0]));
        assert_eq!(guess(&one, "latest~2"), None);
        assert_eq!(guess(&one, "20261120").as_ref(), Some(&one[0]));
        assert_eq!(guess(&one, "00000001").as_ref(), Some(&one[0]));
        assert_eq!(guess(&one, "v1.0"), None);
        let two = [one[0].clone(), key("b", 9, "20261119T000000Z-00000003")];
        assert_eq!(guess(&two, "latest").as_ref(), Some(&two[0]), "across hosts the time is the order");
        let of_b = named(two.to_vec(), None, Some(&"b".parse().unwrap()), "latest");
        assert_eq!(of_b.as_ref(), Some(&two[1]));
    }
}
