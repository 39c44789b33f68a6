//! Rolling the live application back.

pub mod losses;
