//! L1: policies. A TOML file becomes a validated [`Policy`]; every error of a file in one run.

mod document;
pub mod dotenv;
pub mod edit;
pub mod error;
pub mod find;
mod load;
pub mod model;
pub mod nearest;
mod remembered;
pub mod retention;
pub mod schedule;
mod show;
#[cfg(test)]
mod sweep;
mod values;

pub use error::{LoadError, PolicyError, PolicyErrors, Position};
pub use find::{FindError, find};
pub use load::{S3_FIELDS, load, parse};
pub use model::Policy;
pub use remembered::{recall, remember};
pub use show::show;
