//! Which paths the sources of a policy take, as a whole or in part.

use crate::ops::discover::Discovery;
use crate::policy::Policy;
use crate::policy::model::SourceSpec;
use crate::sources::git::{By, Kept};
use globset::{GlobBuilder, GlobMatcher};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

/// Entries that are looked at below one path; more of a part is not told.
const LOOKS: usize = 5_000;
/// Folders that tools make anew, wherever they lie.
const REBUILT: [&str; 5] = ["node_modules", "__pycache__", ".venv", "target", ".git"];

/// How much of a path is taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cover {
    Whole,
    /// What is left, as far up as it is left as a whole.
    Part(Vec<PathBuf>),
    Nothing,
}

/// A path as a policy has it: a name, or a pattern.
struct Named {
    path: PathBuf,
    pattern: Option<GlobMatcher>,
}

impl Named {
    fn of(given: &str) -> Self {
        let is_pattern = given.contains(['*', '?', '[', '{']);
        let glob = is_pattern.then(|| GlobBuilder::new(given).literal_separator(true).build().ok()).flatten();
        Self { path: given.into(), pattern: glob.map(|g| g.compile_matcher()) }
    }

    /// It names this, or a folder above.
    fn takes(&self, path: &Path) -> bool {
        match &self.pattern {
            Some(pattern) => path.ancestors().any(|above| pattern.is_match(above)),
            None => path.starts_with(&self.path),
        }
    }

    /// It may name something below this.
    fn is_below(&self, path: &Path) -> bool {
        if self.pattern.is_none() {
            return self.path.starts_with(path);
        }
        let is_plain = |c: &std::path::Component<'_>| {
            c.as_os_str().to_str().is_some_and(|text| !text.contains(['*', '?', '[', '{']))
        };
        let plain: PathBuf = self.path.components().take_while(is_plain).collect();
        plain.starts_with(path) || path.starts_with(&plain)
    }
}

/// What the sources of a policy name.
pub(super) struct Taken<'a> {
    named: Vec<Named>,
    /// What git has is taken.
    pub git: bool,
    kept: Option<&'a Kept>,
    /// What is captured otherwise: env files, the stores' own folders, compose files.
    leaves: Vec<&'a Path>,
}

impl<'a> Taken<'a> {
    pub fn of(policy: &Policy, found: &'a Discovery) -> Self {
        let paths = policy.sources.iter().flat_map(|source| match &source.spec {
            SourceSpec::Files(spec) => spec.paths.as_slice(),
            SourceSpec::Env(spec) => spec.paths.as_slice(),
            SourceSpec::Nginx(spec) => spec.paths.as_slice(),
            SourceSpec::Certificates(spec) => spec.paths.as_slice(),
            _ => &[],
        });
        let has = |kind: &str| policy.sources.iter().any(|s| s.spec.kind() == kind);
        let compose = found.compose_files.iter().filter(|_| has("compose"));
        Self {
            named: paths.map(|given| Named::of(given)).collect(),
            git: has("git"),
            kept: found.kept.as_ref().filter(|_| has("git")),
            leaves: found.leaves.iter().chain(compose).map(PathBuf::as_path).collect(),
        }
    }

    /// How much of a path, and of what is below it, a source takes.
    pub fn of_path(&self, path: &Path) -> Cover {
        // A site is named where it lies or where it is linked to.
        let real = path.canonicalize().ok().filter(|real| real != path);
        let both = || [Some(path), real.as_deref()].into_iter().flatten();
        if both().any(|path| self.takes(path)) {
            return Cover::Whole;
        }
        if !both().any(|path| self.may_take_below(path)) {
            return Cover::Nothing;
        }
        let mut left = Vec::new();
        let at = real.as_deref().filter(|real| self.may_take_below(real)).unwrap_or(path);
        let taken = self.left(at, &Cell::new(LOOKS), &mut left);
        left.sort();
        match (left.is_empty(), taken) {
            (true, _) => Cover::Whole,
            (false, true) => Cover::Part(left),
            (false, false) => Cover::Nothing,
        }
    }

    fn takes(&self, path: &Path) -> bool {
        self.named.iter().any(|named| named.takes(path))
    }

    fn may_take_below(&self, path: &Path) -> bool {
        self.named.iter().any(|named| named.is_below(path))
    }

    /// What lies at a path or below and nothing takes; and whether anything there is taken. What cannot be listed is given
    /// the benefit of the doubt.
    fn left(&self, path: &Path, looks: &Cell<usize>, left: &mut Vec<PathBuf>) -> bool {
        looks.set(looks.get().saturating_sub(1));
        if self.takes(path) {
            return true;
        }
        let is_rebuilt = path.file_name().is_some_and(|name| REBUILT.iter().any(|rebuilt| name == *rebuilt));
        let by_git = self.kept.is_some_and(|kept| kept.by(path) == By::Git);
        if looks.get() == 0 || is_rebuilt || by_git || self.leaves.contains(&path) {
            return false;
        }
        let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
        let beside = self.leaves.iter().any(|leaf| leaf.starts_with(path)) || self.partly_by_git(path);
        if !is_dir || !(self.may_take_below(path) || beside) {
            left.push(path.to_owned());
            return false;
        }
        let (before, mut taken) = (left.len(), false);
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            taken |= self.left(&entry.path(), looks, left);
        }
        if !taken && !beside && left.len() > before {
            left.truncate(before);
            left.push(path.to_owned());
        }
        taken
    }

    fn partly_by_git(&self, path: &Path) -> bool {
        self.kept.is_some_and(|kept| kept.by(path) == By::Partly)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;

    const HEAD: &str = "[app]\nname = \"shop\"\nroot = \"ROOT\"\n[repository]\nurl = \"/r\"\n\
        recipients = [\"age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz\"]\n";

    fn cover(root: &Path, source: &str, found: &Discovery, path: &str) -> Cover {
        let text = format!("{}{source}", HEAD.replace("ROOT", root.to_str().unwrap()));
        let policy = policy::parse(Path::new("shop.toml"), &text).unwrap();
        Taken::of(&policy, found).of_path(&root.join(path))
    }

    #[test]
    fn a_part_of_a_path_is_not_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["up/a/one", "up/a/two", "up/b/c/three", "up/four.jpg", "up/node_modules/x", "up/.env"] {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), "x").unwrap();
        }
        let files = |paths: &str| format!("[[source]]\nkind = \"files\"\npaths = [{paths}]\n");
        let mut found = Discovery { leaves: vec![root.join("up/.env")], ..Discovery::default() };
        let part = |names: &[&str]| Cover::Part(names.iter().map(|n| root.join(n)).collect());
        for (paths, cover_is) in [
            ("\"up\"", Cover::Whole),
            ("\".\"", Cover::Whole),
            ("\"up/*\"", Cover::Whole),
            ("\"other\"", Cover::Nothing),
            ("\"upper\"", Cover::Nothing),
            ("\"up/a\", \"up/four.jpg\"", part(&["up/b"])),
            ("\"up/a/one\"", part(&["up/a/two", "up/b", "up/four.jpg"])),
            ("\"up/*.jpg\"", part(&["up/a", "up/b"])),
            ("\"up/a\", \"up/b/c\", \"up/four.jpg\"", Cover::Whole),
        ] {
            assert_eq!(cover(&root, &files(paths), &found, "up"), cover_is, "{paths}");
        }
        // A folder that is gone is named all the same.
        assert_eq!(cover(&root, &files("\"gone\""), &found, "gone"), Cover::Whole);
        // Without its own source an env file is left too.
        found.leaves.clear();
        let left = cover(&root, &files("\"up/a\", \"up/b\", \"up/four.jpg\""), &found, "up");
        assert_eq!(left, part(&["up/.env"]));
    }
}
