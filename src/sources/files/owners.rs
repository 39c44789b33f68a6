//! Owner names as this host's `passwd` and `group` files have them.

use std::collections::HashMap;
use std::sync::Arc;

/// Names by number.
#[derive(Debug, Default)]
pub struct Owners {
    users: HashMap<u32, Arc<str>>,
    groups: HashMap<u32, Arc<str>>,
}

impl Owners {
    /// Reads `/etc/passwd` and `/etc/group`. Names are a courtesy: what cannot be read stays a number.
    pub fn host() -> Self {
        Owners { users: table("/etc/passwd"), groups: table("/etc/group") }
    }

    /// Numbers only: a volume's owners are accounts of a container, not of this host.
    pub fn none() -> Self {
        Self::default()
    }

    pub fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.users.get(&uid).cloned()
    }

    pub fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.groups.get(&gid).cloned()
    }
}

fn table(file: &str) -> HashMap<u32, Arc<str>> {
    let mut names = HashMap::new();
    for line in std::fs::read(file).unwrap_or_default().split(|b| *b == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(Ok(id))) = (fields.next(), fields.next(), fields.next().map(str::parse))
            && !name.is_empty()
        {
            // As getpwuid does: the first line wins.
            names.entry(id).or_insert_with(|| name.into());
        }
    }
    names
}
