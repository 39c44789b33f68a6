//! Further Redis servers than the machine's own, on the host and in images.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use crate::engine::{IMAGE, TestImage, docker, engine, unique};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program of another version: `redis-6.2`, `valkey-8`.
pub fn program(version: &str, name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|c| !c.is_empty()).map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache"));
    let path = cache.join("lifeboat/tools").join(version).join(name);
    assert!(path.exists(), "{} is missing; scripts/test.sh installs it", path.display());
    path
}

/// An image with Redis 8.
pub fn image_of_redis_8() -> &'static str {
    const IMAGE_8: &str = "lifeboat-test/redis-8:1";
    let known = engine().image(IMAGE_8).expect("ask the engine for an image");
    assert!(known.is_some(), "these tests need the image {IMAGE_8}; scripts/test.sh makes it");
    IMAGE_8
}

/// The test image with another server in place of its own.
pub fn image_with(version: &str, server: &str) -> TestImage {
    engine();
    let binary = program(version, server);
    let binary = binary.to_str().unwrap();
    let (name, made) = (unique("lifeboat-test/redis"), docker(["create", IMAGE, "true"]));
    docker(["cp", "-L", binary, &format!("{made}:/usr/bin/redis-server")]);
    let libraries = Command::new("ldd").arg(binary).output().unwrap();
    for library in String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|w| w.starts_with("/lib/")) {
        docker(["cp", "-L", library, &format!("{made}:/usr{library}")]);
    }
    docker(["commit", &made, &name]);
    docker(["rm", &made]);
    TestImage(name)
}
