//! What is not on this machine, and what cannot be told where it is.

use super::find::{Discovery, External, Uncovered};
use super::urls::{Url, provider};

/// A server that a URL names and that is neither in a container here nor on this host.
pub(super) fn external(found: &mut Discovery, url: &Url, from: &str) {
    let name = match provider(&url.host) {
        Some(provider) => format!("{provider}: {}", url.host),
        // A website that the application calls holds none of its data, as far as anybody can tell.
        None if !url.is_database() => return,
        None if url.host.contains('.') => format!("{} at {}", url.scheme, url.host),
        None => {
            found.uncovered.push(Uncovered::data(
                format!("the {} server {:?} that {from} names", url.scheme, url.host),
                "no container here is called so",
                "start it and run init again, or name it in the policy",
            ));
            return;
        }
    };
    if !found.external.iter().any(|e| e.name == name) {
        found.external.push(External { name, seen_in: from.to_owned() });
    }
}
