//! L1: policies. A TOML file becomes a validated [`Policy`]; every error of a file in one run.

pub mod dotenv;
pub mod model;

pub use model::Policy;
