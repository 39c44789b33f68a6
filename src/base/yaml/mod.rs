//! The YAML that compose files are written in, read into JSON values.
//!
//! Not all of YAML: no `? ` keys, no second document, no types beside those of JSON; tags are passed over. Anchors,
//! aliases, merges (`<<`), flow collections, quoted, plain and block scalars are read as the standard says. What is not
//! understood is an error that names its line, never a guess. Nesting and what aliases multiply are bounded.

mod flow;
mod read;
mod text;

pub use read::{YamlError, read};
