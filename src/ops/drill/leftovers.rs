//! The folder that a drill works in, and what killed drills left behind.
//!
//! It lies below `TMPDIR` or `/var/tmp`, which are meant for large files: servers run as accounts that may not enter the
//! state folder. Its name says whose it is; a folder of a run that lives no more is removed with all that runs in it.

use crate::ops::OpsError;
use crate::ops::restore::remove_tree;
use crate::place::owner_mark;
use crate::sources;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const PREFIX: &str = "lifeboat-drill-";
/// Says which process a folder belongs to.
/// No source can have a name that begins so.
const MARK: &str = ".owner";

/// A drill's folder, removed when this is dropped.
pub struct Ground {
    path: PathBuf,
    keep: bool,
}

/// Where such folders lie.
pub fn base() -> PathBuf {
    let set = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|p| p.is_absolute() && p.is_dir());
    set.unwrap_or_else(|| "/var/tmp".into())
}

impl Ground {
    pub fn make(base: &Path) -> Result<Self, OpsError> {
        let random: [u8; 8] =
            crate::base::ids::random_bytes().map_err(|e| OpsError::file("name a folder in", base, e))?;
        let path = base.join(format!("{PREFIX}{}", hex::encode(random)));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| OpsError::file("create folder", &path, e))?;
        let ground = Self { path, keep: false };
        let mark = ground.path.join(MARK);
        crate::base::atomic::write(&mark, owner_mark().as_bytes(), 0o600, crate::base::atomic::IfExists::Fail)
            .map_err(|e| OpsError::file("write", &mark, e))?;
        // Others may pass through to a folder of their own, and list nothing.
        let mode = fs::Permissions::from_mode(0o711);
        fs::set_permissions(&ground.path, mode).map_err(|e| OpsError::file("open", &ground.path, e))?;
        Ok(ground)
    }

    /// A new folder below it, 0700.
    pub fn folder(&self, name: &str) -> Result<PathBuf, OpsError> {
        let path = self.path.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| OpsError::file("create folder", &path, e))?;
        Ok(path)
    }

    /// It stays.
    pub fn keep(mut self) -> PathBuf {
        self.keep = true;
        self.path.clone()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if !self.keep
            && let Err(e) = remove_tree(&self.path)
        {
            tracing::warn!("{} is left behind: {e}", self.path.display());
        }
    }
}

/// The same for another proof: made after what killed ones left behind was swept.
pub struct DrillGround(Ground);

impl DrillGround {
    pub fn make() -> Result<Self, OpsError> {
        let base = base();
        sweep(&base);
        Ground::make(&base).map(Self)
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

/// Removes the folders of drills that live no more, and ends what still runs in them. Returns them.
pub fn sweep(base: &Path) -> Vec<PathBuf> {
    let mut swept = Vec::new();
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // Anybody may make a folder of that name there: only a folder of this account's is believed.
        let mine = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir() && m.uid() == own);
        if !ours || !mine {
            continue;
        }
        let Ok(mark) = fs::read_to_string(path.join(MARK)) else { continue };
        if !crate::place::owner_is_gone(mark.trim()) {
            continue;
        }
        for folder in fs::read_dir(&path).into_iter().flatten().flatten() {
            sources::sweep_folder(&folder.path());
        }
        match remove_tree(&path) {
            Ok(()) => swept.push(path),
            Err(e) => tracing::warn!("{} is left behind: {e}", path.display()),
        }
    }
    swept
}
