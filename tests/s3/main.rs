//! S3 storage against real servers, directly and through a proxy that makes everything go wrong.

#[path = "../support/s3.rs"]
mod s3;

mod conforms;
