//! The mask of what new files may not be: Lifeboat's own files are its account's alone, and what the user's own commands
//! make is as it would be without Lifeboat: a deployment whose files nobody else may read is a broken one.

use rustix::fs::Mode;
use rustix::process::umask;
use std::sync::OnceLock;

/// As this process was started.
static GIVEN: OnceLock<Mode> = OnceLock::new();

/// From here on what is created is this account's alone, also by the tools that are run.
pub fn close() {
    let given = umask(own());
    let _ = GIVEN.set(given);
}

fn own() -> Mode {
    Mode::from_raw_mode(0o077)
}

/// Arguments that run a command under the mask that this process was given.
pub fn given(argv: impl IntoIterator<Item = String>) -> Vec<String> {
    let Some(mask) = GIVEN.get() else { return argv.into_iter().collect() };
    let shell = ["sh", "-c", r#"umask "$1" && shift && exec "$@""#, "lifeboat"].map(str::to_owned);
    shell.into_iter().chain([format!("{:03o}", mask.bits())]).chain(argv).collect()
}

/// Does something under that mask, as starting a program. The mask is the whole process's: nothing else may create
/// files meanwhile.
pub fn lent<T>(act: impl FnOnce() -> T) -> T {
    let Some(given) = GIVEN.get() else { return act() };
    umask(*given);
    let done = act();
    umask(own());
    done
}
