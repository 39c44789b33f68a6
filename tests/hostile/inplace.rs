//! A forged snapshot put back over the live application, by root: what the policy does not name is shown before, what
//! the listing hides is refused, and no way leads through a link.

use crate::cli::World;
use crate::forged::{Made, forge, line};
use crate::hostile::Hostile;
use crate::tree::{Record, assert_same, records};
use lifeboat::ops::access::Installation;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

struct Site {
    world: World,
    /// Names in a tar.
    uploads: String,
    victim: String,
    /// The victim's folder.
    beside: PathBuf,
}

impl Site {
    fn new() -> Self {
        let world = World::ready();
        let root = world.dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("victim")).unwrap();
        fs::write(root.join("victim/file"), "victim").unwrap();
        world.run(&["snapshot"]).exits(0);
        let inside = |name: &str| root.join(name).to_str().unwrap()[1..].to_owned();
        Self { uploads: inside("app/uploads"), victim: inside("victim"), beside: root.join("victim"), world }
    }

    /// The name of a forged snapshot of the uploads.
    fn forge(&self, tar: Hostile, listing: &str) -> String {
        let (config_dir, state_dir) = (self.world.path("config"), self.world.path("state"));
        let tar = tar.end();
        let facts = json!({ "paths": ["/"] });
        let made = Made { name: "uploads", facts, ..Made::files(&tar, listing.as_bytes()) };
        forge(&Installation { config_dir, state_dir }, &self.world.repository(), vec![made])
    }

    /// The victim and the application.
    fn all(&self) -> [BTreeMap<PathBuf, Record>; 2] {
        [&self.beside, &self.world.app()].map(|dir| {
            let mut found = records(dir);
            found.remove(Path::new(""));
            // What was laid and taken back leaves its mark on the folder's time.
            found.values_mut().filter(|r| r.kind.contains("is_dir: true")).for_each(|r| r.mtime = (0, 0));
            found
        })
    }

    fn is_untouched(&self, before: &[BTreeMap<PathBuf, Record>; 2]) {
        for (was, is) in before.iter().zip(&self.all()) {
            assert_same(was, is);
        }
        let listed = self.world.run(&["list"]).exits(0);
        assert!(!listed.err.contains("was cut short"), "{listed:?}");
    }

    fn path(tar: Hostile, path: &str) -> Hostile {
        tar.pax(&[("path", path.as_bytes())])
    }
}

#[test]
fn what_the_policy_does_not_name_is_shown_and_what_the_listing_hides_is_refused() {
    let site = Site::new();
    let (one, file) = (format!("{}/one.txt", site.uploads), format!("{}/file", site.victim));
    let before = site.all();
    let tar = || {
        let tar = Site::path(Hostile::default(), &one).file(b"x", b"forged");
        Site::path(tar, &file).file(b"x", b"forged")
    };
    let honest = line(&one, "file", 0, 2048);
    let told = site.forge(tar(), &(honest.clone() + &line(&file, "file", 2048, 2048)));
    let ran = site.world.run(&["restore", &told, "--in-place", "--only", "uploads", "--dry-run"]).exits(0);
    ran.shows(&[&format!("1 entry outside what the policy names would be put back as well: /{file}")]);

    let hidden = site.forge(tar(), &honest);
    let ran = site.world.run(&["restore", &hidden, "--in-place", "--only", "uploads", "--yes"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    ran.says(&["which its listing does not tell of and the policy does not name"]);
    site.is_untouched(&before);
}

#[test]
fn no_link_and_no_dots_lead_out() {
    let site = Site::new();
    let before = site.all();
    let at = |name: &str| format!("{}/{name}", site.uploads);
    let file = format!("{}/file", site.victim);
    let target = format!("/{}", site.victim);
    // A further name of a file of the host; a file through a symlink of the archive; a way up.
    let hard =
        Hostile::default().pax(&[("path", at("hard").as_bytes()), ("linkpath", file.as_bytes())]).hardlink(b"x", b"y");
    let link =
        Hostile::default().pax(&[("path", at("link").as_bytes()), ("linkpath", target.as_bytes())]).symlink(b"x", b"y");
    let link = Site::path(link, &at("link/file")).file(b"x", b"forged");
    let up = at("../../victim/file");
    let dots = Site::path(Hostile::default(), &up).file(b"x", b"forged");
    for (tar, listing) in [
        (hard, line(&at("hard"), "file", 0, 2048)),
        (link, line(&at("link"), "file", 0, 2048) + &line(&at("link/file"), "file", 2048, 2048)),
        (dots, line(&up, "file", 0, 2048)),
    ] {
        let id = site.forge(tar, &listing);
        let ran = site.world.run(&["restore", &id, "--in-place", "--only", "uploads", "--yes"]);
        assert_ne!(ran.code, 0, "{ran:?}");
        site.is_untouched(&before);
    }
}
