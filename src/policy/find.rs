//! Which policy is meant: a name, a file, or the only one installed. Policies lie in `<config>/policies/*.toml`.

use crate::policy::document::list;
use crate::policy::nearest::nearest;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why no policy was found, or more than one.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("no policy is installed in {}", dir.display())]
    NoneInstalled { dir: PathBuf },
    #[error("several policies are installed: {}", names(installed))]
    Several { installed: Vec<String> },
    #[error("no policy is called {name:?}: installed are {}", names(installed))]
    Unknown { name: String, installed: Vec<String> },
    #[error("there is no policy file {}", path.display())]
    NoSuchFile { path: PathBuf },
    #[error("list the policies in {}", dir.display())]
    List {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn names(installed: &[String]) -> String {
    list(&installed.iter().map(String::as_str).collect::<Vec<_>>())
}

impl FindError {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            FindError::NoneInstalled { .. } => {
                Some("write one with `lifeboat init`, or name a file with --policy FILE".to_owned())
            }
            FindError::Several { .. } => Some("choose one with --policy NAME".to_owned()),
            FindError::Unknown { name, installed } => {
                nearest(name, installed.iter().map(String::as_str)).map(|near| format!("did you mean {near:?}?"))
            }
            FindError::NoSuchFile { .. } | FindError::List { .. } => None,
        }
    }
}

/// Where the policies of a configuration folder lie.
pub fn policies_dir(config_dir: &Path) -> PathBuf {
    config_dir.join("policies")
}

/// The names of the installed policies, sorted.
pub fn installed(config_dir: &Path) -> Result<Vec<String>, FindError> {
    let dir = policies_dir(config_dir);
    let failed = |source| FindError::List { dir: dir.clone(), source };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "toml") && !hidden {
            let kind = entry.file_type().map_err(failed)?;
            // A link that leads nowhere today is a policy that does not load, and not one less.
            if !kind.is_file() && !kind.is_symlink() {
                continue;
            }
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// The file of the policy that is meant. What holds a `/` or ends in `.toml` is a file; anything else is the name of an
/// installed policy.
pub fn find(config_dir: &Path, name_or_file: Option<&str>) -> Result<PathBuf, FindError> {
    if let Some(file) = name_or_file.filter(|given| given.contains('/') || given.ends_with(".toml")) {
        let path = PathBuf::from(file);
        return if path.is_file() { Ok(path) } else { Err(FindError::NoSuchFile { path }) };
    }
    let dir = policies_dir(config_dir);
    let mut installed = installed(config_dir)?;
    let name = match (name_or_file, installed.len()) {
        (_, 0) => return Err(FindError::NoneInstalled { dir }),
        (None, 1) => installed.swap_remove(0),
        (None, _) => return Err(FindError::Several { installed }),
        (Some(name), _) if installed.iter().any(|other| other == name) => name.to_owned(),
        (Some(name), _) => return Err(FindError::Unknown { name: name.to_owned(), installed }),
    };
    Ok(dir.join(format!("{name}.toml")))
}
