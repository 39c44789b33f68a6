//! Laying a tar out in a folder, also a hostile one and also as root.
//!
//! Invariants: every call that creates or changes something gets a parent folder that was opened below the
//! destination one name at a time, without following anything, and a single name in it; nothing that exists is
//! replaced unless asked, and then by renaming over it; hard links lead only to what was laid out in the same run;
//! what is refused, skipped or not restored exactly is in the report, never passed over in silence.
//!
//! Order (must): content, owner, mode, attributes, times for each file; the same for a folder once all that is below
//! it has been laid out.

mod archive;
mod copy;
mod crew;
mod dirs;
mod lay;
mod metadata;
mod pax;
mod report;
#[cfg(test)]
mod sweep;

pub use archive::{Archive, Member, TarError};
pub use lay::{Extractor, Options, write_content};
pub use report::{Aspect, Difference, Report, Severity, Tally};

pub(in crate::sources) use dirs::{open_below, stat_below};
pub(in crate::sources) use metadata::{Wanted, apply_to_file, refuse_attribute, set_time};

use std::io;
use std::path::PathBuf;

/// Why an extraction ended.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error(transparent)]
    Archive(#[from] TarError),
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} was moved or replaced while it was being restored", path.display())]
    Moved { path: PathBuf },
    #[error(transparent)]
    Cancelled(#[from] crate::base::cancel::Cancelled),
}
