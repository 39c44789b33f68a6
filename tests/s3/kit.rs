//! The printed recovery kit of an application whose snapshots lie in a bucket, followed word by word: the keys of the
//! bucket are typed, everything else stands on the page.

use crate::follow::{INSTALLS, commands, follow, install, said};
use crate::journey::Host;
use crate::s3::{BUCKET, Kind, S3Server};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_bucket_is_reached_by_what_the_page_says() {
    let server = S3Server::start(Kind::S3sFs);
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("shop");
    fs::create_dir(&app).unwrap();
    fs::write(app.join(".env"), "DB_PASSWORD=canary\n").unwrap();
    fs::set_permissions(app.join(".env"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::copy(server.credentials(), dir.path().join("s3.env")).unwrap();
    let host = Host { dir: dir.path() };
    let (url, endpoint) = (format!("s3://{BUCKET}/kit"), server.endpoint());
    let init = ["init", "shop", "--repository", &url, "--endpoint", &endpoint];
    host.ok(&[&init[..], &["--region", "eu-test-1", "--credentials", "file:s3.env"]].concat());
    host.ok(&["snapshot"]);
    let page = host.ok(&["recovery-kit"]);
    let secret = fs::read_to_string(server.credentials()).unwrap();
    let secret = secret.lines().find_map(|l| l.strip_prefix("AWS_SECRET_ACCESS_KEY=")).unwrap();
    assert!(!page.contains(secret) && page.contains("keys of the bucket: ___"), "{page}");

    // Everything is gone but the bucket, the identity, and what somebody knows.
    let rescue = dir.path().join("home/rescue");
    fs::create_dir_all(&rescue).unwrap();
    fs::rename(dir.path().join("config/identity.txt"), rescue.join("identity.txt")).unwrap();
    for gone in ["shop", "config", "state"] {
        fs::remove_dir_all(dir.path().join(gone)).unwrap();
    }
    fs::remove_file(dir.path().join("s3.env")).unwrap();
    install(dir.path());
    let all = commands(&page);
    let without = all.iter().position(|c| *c == INSTALLS[1]).unwrap();
    let done = follow(dir.path(), &all[..without], Some(&server.credentials()));
    assert!(done.status.success(), "{}\n{page}", said(&done));
    assert_eq!(fs::read_to_string(app.join(".env")).unwrap(), "DB_PASSWORD=canary\n");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir.path().join("s3.env")).unwrap());
    assert_eq!(mode & 0o777, 0o600, "the keys of the bucket are nobody else's");
}
