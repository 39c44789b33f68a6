//! Accounts of this host: who owns a tree, and as whom a command runs.
//!
//! `/etc/passwd` and `/etc/group` are read first; accounts that live elsewhere (LDAP, systemd) are asked of `getent`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

/// One account with all of its groups.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Account {
    /// Absent for a bare number that no data base knows.
    pub name: Option<String>,
    pub uid: u32,
    pub gid: u32,
    pub home: Option<PathBuf>,
    pub shell: Option<PathBuf>,
    /// Names of the supplementary groups, sorted; the primary one is not among them.
    pub groups: Vec<String>,
}

impl Account {
    /// The account that a command names: a name, a uid, or `uid:gid`.
    pub fn find(spec: &str) -> Option<Account> {
        if let Some((uid, gid)) = spec.split_once(':') {
            let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
            let known = Self::by_uid(uid).filter(|a| a.gid == gid);
            return Some(known.unwrap_or_else(|| Self::bare(uid, gid)));
        }
        match spec.parse::<u32>() {
            Ok(uid) => Some(Self::by_uid(uid).unwrap_or_else(|| Self::bare(uid, uid))),
            Err(_) => lookup("passwd", |fields| fields.first() == Some(&spec), spec),
        }
    }

    /// The account of a uid.
    pub fn by_uid(uid: u32) -> Option<Account> {
        let text = uid.to_string();
        lookup("passwd", |fields| fields.get(2) == Some(&text.as_str()), &text)
    }

    /// Who owns a path (the path itself, not what a symlink points to).
    pub fn owner_of(path: &Path) -> std::io::Result<Account> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Self::by_uid(meta.uid()).unwrap_or_else(|| Self::bare(meta.uid(), meta.gid())))
    }

    /// How [`crate::place::Command::user`] names it.
    pub fn spec(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("{}:{}", self.uid, self.gid))
    }

    /// The calling thread acts as this account, as the kernel shows it to whoever is called on a socket. From then on the
    /// kernel writes no core dump of the process.
    pub fn become_for_this_thread(&self) -> std::io::Result<()> {
        use rustix::process::{Gid, Uid};
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let others = self.groups.iter().filter_map(|name| gid_of(name)).map(Gid::from_raw);
        let groups: Vec<Gid> = std::iter::once(gid).chain(others).collect();
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(None, gid, None)?;
        Ok(rustix::thread::set_thread_res_uid(None, uid, None)?)
    }

    fn bare(uid: u32, gid: u32) -> Account {
        Account { name: None, uid, gid, home: None, shell: None, groups: Vec::new() }
    }

    fn parse(fields: &[&str]) -> Option<Account> {
        let path = |i: usize| fields.get(i).filter(|p| p.starts_with('/')).map(PathBuf::from);
        let name = (*fields.first()?).to_owned();
        let mut groups = groups_of(&name);
        groups.sort();
        Some(Account {
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: path(5),
            shell: path(6),
            groups,
            name: Some(name),
        })
    }
}

/// The effective user is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The line of `/etc/<database>` that `matches`, else what `getent` says of `key`.
fn lookup(database: &str, matches: impl Fn(&[&str]) -> bool, key: &str) -> Option<Account> {
    let text = std::fs::read(format!("/etc/{database}")).unwrap_or_default();
    for line in String::from_utf8_lossy(&text).lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if matches(&fields) {
            return Account::parse(&fields);
        }
    }
    // A leading dash would be taken for an option, and no account has such a name.
    if key.starts_with('-') {
        return None;
    }
    let answer = std::process::Command::new("getent")
        .args([database, key])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|o| o.status.success())?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let fields: Vec<&str> = text.trim_end().split(':').collect();
    if matches(&fields) { Account::parse(&fields) } else { None }
}

fn gid_of(group: &str) -> Option<u32> {
    let text = std::fs::read("/etc/group").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?)
}

fn groups_of(name: &str) -> Vec<String> {
    let text = std::fs::read("/etc/group").unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let group = fields.next()?;
            let members = fields.nth(2)?;
            members.split(',').any(|m| m == name).then(|| group.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_names_numbers_and_strangers() {
        let root = Account::find("root").unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_deref()), (0, 0, Some(Path::new("/root"))));
        assert_eq!(Account::find("0").unwrap(), root);
        assert_eq!(Account::find("0:0").unwrap(), root);
        let stranger = Account::find("4242:4343").unwrap();
        assert_eq!((stranger.uid, stranger.gid, stranger.spec().as_str()), (4242, 4343, "4242:4343"));
        assert!(Account::find("no-such-account-here").is_none());
        assert!(Account::find("-x").is_none());
    }
}
