//! What a capture of these trees would take now: for `exact`, what is there and was not then.

use super::super::SourceError;
use super::super::files::{Today, VisitPath, walk_today};
use super::job::Job;
use crate::base::cancel::Cancel;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Passes every entry below the job's named paths (and its own choice of them), and whether it is a folder.
pub fn today(job: &Job, cancel: &Cancel, visit: VisitPath<'_>) -> Result<(), SourceError> {
    for base in &job.bases {
        let wanted = Today {
            real: &base.dir,
            prefix: &base.prefix,
            named: &job.named,
            exclude: &job.exclude,
            never: &job.never,
            one_file_system: job.one_file_system,
        };
        walk_today(&wanted, cancel, &mut |path, is_dir| {
            let own = job.owns(path) && job.takes(path) && !job.named.iter().any(|n| n.as_os_str().as_bytes() == path);
            let inside = Path::new(std::ffi::OsStr::from_bytes(path)) != Path::new(&base.prefix);
            if own && inside { visit(path, is_dir) } else { Ok(()) }
        })?;
    }
    Ok(())
}
