//! Where the server of a source is. It is looked up when a source is captured, never before: containers are recreated
//! under the same name, so what was found yesterday is not there today.

use crate::base::secret::Secret;
use crate::place::{HostPlace, Place, PlaceError};
use crate::policy::model::Target;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A target, found.
#[derive(Clone)]
pub struct Located {
    pub place: Arc<dyn Place>,
    /// The environment that the container was created with; empty on the host.
    pub env: BTreeMap<String, Secret<String>>,
}

impl Located {
    /// This host: also where the tools run that talk to a URL.
    pub fn host() -> Self {
        Self { place: Arc::new(HostPlace::new()), env: BTreeMap::new() }
    }

    /// The first of these variables that the container has, and that is not empty.
    pub(crate) fn variable(&self, names: &[&str]) -> Option<&Secret<String>> {
        names.iter().filter_map(|name| self.env.get(*name)).find(|value| !value.expose().is_empty())
    }
}

impl fmt::Debug for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Located").field("place", &self.place.describe()).field("env", &self.env.len()).finish()
    }
}

/// How a target is found.
pub type Locate = Arc<dyn Fn(&Target) -> Result<Located, PlaceError> + Send + Sync>;

/// A target in the words of a policy: `service "db"`.
pub(crate) fn describe(target: &Target) -> String {
    match target {
        Target::Service(name) => format!("service {name:?}"),
        Target::Container(name) => format!("container {name:?}"),
        Target::Url(url) => url.clone(),
        Target::Host => "this host".into(),
    }
}
