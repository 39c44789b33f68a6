//! MD5 as S3 uses it: to tell transmission errors, never to tell friend from foe. Names and ids are SHA-256.

use md5::{Digest, Md5};

pub fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

/// Whether an ETag is the MD5 of these bytes, as most servers make it.
pub fn is_md5_of(etag: Option<&str>, bytes: &[u8]) -> bool {
    etag.is_some_and(|etag| etag.trim_matches('"').eq_ignore_ascii_case(&hex::encode(md5(bytes))))
}
