//! A disk that cannot read an object every time: a verification that met it once does not say that all is well.

use crate::site::Site;
use std::fs;

#[test]
fn sweep_of_a_verification_that_cannot_read_an_object() {
    let site = Site::new();
    let mut red = 0;
    for kind in ["manifests", "refs", "index", "archives"] {
        let objects = site.world.files(&format!("state/repository/{kind}"));
        let whole = std::env::var_os("LIFEBOAT_SWEEP").is_some();
        assert!(!objects.is_empty(), "{kind}");
        for (object, _) in objects.iter().take(if whole { usize::MAX } else { 1 }) {
            // Each object is read more than once: for its hash, for the keys, for what lies in it.
            for n in 1.. {
                let log = site.world.path("trace");
                let inject = format!("inject=read,pread64:error=EIO:when={n}");
                let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-P", object.to_str().unwrap()];
                let wrapper = [&wrapper[..], &["-e", "trace=read,pread64", "-e", &inject]].concat();
                let done = site.wrapped(&wrapper, &["verify", "--deep"]);
                if !fs::read_to_string(&log).unwrap().contains("(INJECTED)") {
                    assert!(n > 1, "{kind} are read");
                    break;
                }
                red += 1;
                let name = object.file_name().unwrap().to_string_lossy();
                assert_eq!(done.code, 4, "read {n} of {kind}: {}", done.said);
                assert!(done.said.contains(&*name), "read {n} of {kind}: {}", done.said);
            }
        }
    }
    println!("{red} cases of an object that a verification cannot read every time");
}
