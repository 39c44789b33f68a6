//! `scripts/break-glass.sh` restores what the binary restores, byte for byte and with owners, modes, times, links,
//! extended attributes and holes; what is damaged or forged it names, and restores the rest.

use lifeboat::base::ids::Sequence;
use lifeboat::pipeline::sign::Namespace;
use lifeboat::repository::Repository;
use lifeboat::repository::chain::Chain;
use lifeboat::repository::format::{LastGood, SignerAction};
use lifeboat::repository::keys::{HostKey, IdentityFile};
use lifeboat::repository::trust::Pin;
use lifeboat::storage::LocalStorage;
use lifeboat::storage::local::Reserve;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// An application with odd files, a repository, and one snapshot.
    fn new() -> Self {
        let site = Site { dir: tempfile::tempdir().unwrap() };
        let app = site.path("app");
        fs::create_dir(&app).unwrap();
        odd_files(&site.path("data"));
        site.lifeboat(&["keys", "new"]);
        let (app, repository) = (app.to_str().unwrap(), site.path("repository"));
        site.lifeboat(&["init", app, "--name", "odd", "--repository", repository.to_str().unwrap()]);
        let policy = site.path("config/policies/odd.toml");
        let mut text = fs::read_to_string(&policy).unwrap();
        text.push_str(&format!(
            "\n[[source]]\nkind = \"files\"\npaths = [{:?}]\n\n[[source]]\nkind = \"command\"\nname = \"noise\"\n\
             run = [\"openssl\", \"enc\", \"-aes-128-ctr\", \"-K\", \"00\", \"-iv\", \"00\", \"-in\", {:?}]\n",
            site.path("data"),
            site.path("zeros")
        ));
        fs::write(&policy, text).unwrap();
        // More than 1,024 chunks of noise, so that the ids tree has depth.
        fs::write(site.path("zeros"), vec![0; 24 << 20]).unwrap();
        site.lifeboat(&["snapshot", "--tag", "first"]);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lifeboat(&self, arguments: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
            .arg("--config-dir")
            .arg(self.path("config"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "lifeboat {arguments:?}: {output:?}");
    }

    fn break_glass(&self, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/break-glass.sh");
        Command::new(script)
            .arg(arguments[0])
            .arg(self.path("repository"))
            .args(&arguments[1..])
            .arg("--identity")
            .arg(self.path("config/identity.txt"))
            .output()
            .unwrap()
    }

    fn break_glass_restore(&self, snapshot: &str, into: &str) -> Output {
        self.break_glass(&["restore", snapshot, "--into", self.path(into).to_str().unwrap()])
    }

    /// The repository's objects below a folder.
    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let output =
            Command::new("find").arg(self.path("repository").join(folder)).args(["-type", "f"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect()
    }
}

fn odd_files(dir: &Path) {
    fs::create_dir_all(dir.join("empty")).unwrap();
    fs::write(dir.join("plain.conf"), "listen 80;\n").unwrap();
    fs::write(dir.join("naïve name with spaces\nand a newline"), "odd").unwrap();
    let deep = dir.join("a".repeat(100)).join("b".repeat(100)).join("c".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("long"), "far down").unwrap();
    fs::hard_link(dir.join("plain.conf"), dir.join("second name.conf")).unwrap();
    symlink("plain.conf", dir.join("link")).unwrap();
    symlink("/nonexistent/target", dir.join("dangling")).unwrap();
    fs::write(dir.join("private"), "secret").unwrap();
    fs::set_permissions(dir.join("private"), fs::Permissions::from_mode(0o4750)).unwrap();
    let mut sparse = fs::File::create(dir.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(5 << 20)).unwrap();
    sparse.write_all(b"end").unwrap();
    run("setfattr", &["-n", "user.note", "-v", "kept", dir.join("plain.conf").to_str().unwrap()]);
    run("setfacl", &["-m", "u:33:r", dir.join("private").to_str().unwrap()]);
    run("touch", &["-h", "-d", "2001-02-03 04:05:06.789", dir.join("link").to_str().unwrap()]);
    run("touch", &["-d", "1999-12-31 23:59:59.5", dir.join("plain.conf").to_str().unwrap()]);
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything that a restore must bring back of a tree, as text.
fn portrait(dir: &Path) -> String {
    let script = r#"cd "$1" && find . -mindepth 1 -printf '%p %y %m %U:%G %T@ %s %n %l\n' | sort
        find . -type f -size -60M -exec sha256sum {} + | sort
        getfattr -h -R -d -m - . | grep -v '^$' ; getfacl -R -n -p ."#;
    run("bash", &["-c", script, "portrait", dir.to_str().unwrap()])
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn flip_byte(path: &Path) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

#[test]
fn restores_what_the_binary_restores() {
    let site = Site::new();
    site.lifeboat(&["restore", "latest", "--into", site.path("restored").to_str().unwrap()]);
    for (n, name) in ["latest", "first"].iter().enumerate() {
        let into = format!("glass{n}");
        let output = site.break_glass_restore(name, &into);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let folders = [site.path(&into), site.path("restored")].map(|path| path.to_str().unwrap().to_owned());
        run("diff", &["-r", "--no-dereference", &folders[0], &folders[1]]);
        assert_eq!(portrait(&site.path(&into).join("files")), portrait(&site.path("restored/files")));
    }
    // The setuid bit is left out by both; everything else of that file is there.
    let restored = run("find", &[site.path("glass0").to_str().unwrap(), "-name", "private", "-perm", "0750"]);
    assert_eq!(restored.lines().count(), 1, "the tree was really restored");
    let list = site.break_glass(&["list"]);
    assert!(list.status.success() && text(&list).contains("first"), "{}", text(&list));
}

#[test]
fn names_what_is_damaged_and_restores_the_rest() {
    let site = Site::new();
    // The first archive that belongs to the noise alone: the files are few, and in one archive.
    let archives = site.objects("archives");
    assert!(archives.len() > 1, "{archives:?}");
    let mut restored_files = 0;
    for archive in &archives {
        let whole = fs::read(archive).unwrap();
        flip_byte(archive);
        let output = site.break_glass_restore("latest", "glass");
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        let name = archive.file_name().unwrap().to_str().unwrap();
        assert!(text(&output).contains(name), "{}", text(&output));
        restored_files += usize::from(text(&output).lines().any(|l| l.starts_with("files ")));
        fs::write(archive, whole).unwrap();
        fs::remove_dir_all(site.path("glass")).unwrap();
    }
    assert!((1..archives.len()).contains(&restored_files), "{restored_files} of {}", archives.len());
    assert!(site.break_glass_restore("latest", "glass").status.success());
}

#[test]
fn refuses_what_is_forged_or_moved() {
    let site = Site::new();
    let header = site.objects("snapshots").remove(0);
    let original = fs::read_to_string(&header).unwrap();
    let expect_refused = |why: &str| {
        let output = site.break_glass_restore("latest", "glass");
        assert_ne!(output.status.code(), Some(0), "{why}: {}", text(&output));
        assert!(!site.path("glass").exists(), "{why}: something was restored");
        assert_eq!(site.break_glass(&["list"]).status.code(), Some(4), "{why}");
    };

    fs::write(&header, original.replacen("\"complete\"", "\"suspect\"", 1)).unwrap();
    expect_refused("a changed line");

    // Signed well, by somebody for whom the root key does not vouch.
    let key = site.path("forger");
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
    let line = site.path("line");
    fs::write(&line, format!("{}\n", original.lines().next().unwrap())).unwrap();
    let (key, line) = (key.to_str().unwrap(), line.to_str().unwrap());
    run("ssh-keygen", &["-Y", "sign", "-q", "-n", "lifeboat-snapshot", "-f", key, line]);
    let signature = fs::read_to_string(format!("{line}.sig")).unwrap();
    fs::write(&header, format!("{}\n{signature}", original.lines().next().unwrap())).unwrap();
    expect_refused("a foreign signature");

    let moved = header.parent().unwrap().with_file_name("other");
    fs::create_dir(&moved).unwrap();
    fs::write(moved.join(header.file_name().unwrap()), &original).unwrap();
    fs::remove_file(&header).unwrap();
    expect_refused("a header in another policy's folder");
    fs::remove_dir_all(moved).unwrap();
    fs::write(&header, &original).unwrap();

    let foreign = format!("SHA256:{}", "A".repeat(43));
    let output = site.break_glass(&["list", "--signer", &foreign]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(site.break_glass_restore("latest", "glass").status.success());
}

/// A key that was stolen and revoked: what it signs below the last good header is told from what it signed there.
#[test]
fn a_revoked_key_forges_nothing_below_the_last_good_header() {
    let site = Site::new();
    site.lifeboat(&["snapshot"]);
    site.lifeboat(&["snapshot"]);
    let host_key = HostKey::load(&site.path("config/host.key")).unwrap();
    let identity = IdentityFile::load(&site.path("config/identity.txt")).unwrap();
    let root = identity.root_key_of(host_key.repository.as_ref().unwrap()).unwrap();
    let storage = Arc::new(LocalStorage::new(site.path("repository"), Reserve::Bytes(0)));
    let mut repository = Repository::open(storage, &Pin::Derived(identity.possible_repositories())).unwrap();
    let chain = Chain::load(&repository).unwrap();
    let all: Vec<_> = chain.all().collect();
    let (host, policy) = (all[2].header.host.clone(), all[2].header.policy.clone());
    let last_good = vec![LastGood { host, policy, sequence: Sequence(3), header: all[2].header_id }];
    let now = chrono::Utc::now();
    let revoke = SignerAction::Revoke { last_good };
    repository.add_signer(&root, &host_key.signing.public(), revoke, now).unwrap();
    let list = || site.break_glass(&["list"]);
    assert!(list().status.success() && text(&list()).lines().count() == 4, "{}", text(&list()));

    let second = site.path("repository").join(all[1].key.as_str());
    let true_one = fs::read_to_string(&second).unwrap();
    let id = all[1].header.id.as_str();
    let forged_id = format!("{}0badbad0", &id[..17]);
    let line = true_one.lines().next().unwrap().replacen(id, &forged_id, 1);
    let forged = second.with_file_name(format!("0000000002.{forged_id}.json"));
    fs::write(&forged, host_key.signing.sign(Namespace::Snapshot, &line).unwrap()).unwrap();
    let refuses = |why: &str| {
        let listed = text(&list());
        assert_eq!(list().status.code(), Some(4), "{why}: {listed}");
        assert!(listed.contains(&format!("{forged_id}: its signer has been revoked")), "{why}: {listed}");
        assert_ne!(site.break_glass_restore(&forged_id, "glass").status.code(), Some(0), "{why}");
        assert!(!site.path("glass").exists(), "{why}: something was restored");
        listed
    };
    let listed = refuses("beside the true one");
    assert!(listed.contains(id) && !listed.contains("forked"), "{listed}");
    fs::remove_file(&second).unwrap();
    let listed = refuses("in the place of the true one");
    assert!(listed.contains(&format!("{}: its signer", all[0].header.id)) && listed.contains("may be forged"));
    // What may be true is there to be restored.
    assert!(site.break_glass_restore(all[0].header.id.as_str(), "glass").stdout.len() > 10);
}

/// Archives that a repack wrote, by the refs that its record names; the old ones are gone.
#[test]
fn restores_what_was_repacked() {
    let site = Site::new();
    let policy = site.path("config/policies/odd.toml");
    let mut with_retention = fs::read_to_string(&policy).unwrap();
    with_retention.push_str(
        "\n[retention]\nkeep_last = 1\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\nkeep_tagged = false\n",
    );
    fs::write(&policy, with_retention).unwrap();
    // Of the last archive of noise less than a half is still needed.
    fs::write(site.path("zeros"), [vec![1; 21 << 20], vec![0; 3 << 20]].concat()).unwrap();
    site.lifeboat(&["snapshot"]);
    let before = site.objects("archives");
    site.lifeboat(&["prune", "--repack", "--now"]);
    let after = site.objects("archives");
    assert!(before.iter().any(|archive| !after.contains(archive)), "an old one is gone");
    assert!(after.iter().any(|archive| !before.contains(archive)), "a new one is there");
    site.lifeboat(&["restore", "latest", "--into", site.path("restored").to_str().unwrap()]);
    let compare = |into: &str| {
        let output = site.break_glass_restore("latest", into);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let folders = [site.path(into), site.path("restored")].map(|path| path.to_str().unwrap().to_owned());
        run("diff", &["-r", "--no-dereference", &folders[0], &folders[1]]);
    };
    compare("glass");
    // A record under another name is not believed, nor one that somebody has changed; what is damaged is named.
    let record = site
        .objects("records")
        .into_iter()
        .find(|path| fs::read_to_string(path).unwrap().contains("\"note\":\"repack\""))
        .unwrap();
    let name = record.file_name().unwrap().to_str().unwrap().to_owned();
    let later = record.with_file_name(name.replacen("20", "29", 1));
    fs::copy(&record, &later).unwrap();
    let output = site.break_glass(&["list"]);
    assert!(output.status.code() == Some(4) && text(&output).contains("29"), "{}", text(&output));
    fs::remove_file(later).unwrap();
    let signed = fs::read_to_string(&record).unwrap();
    fs::write(&record, signed.replacen("\"sequence\":2", "\"sequence\":3", 1)).unwrap();
    let output = site.break_glass_restore("latest", "forged");
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains(&name), "{}", text(&output));
    fs::write(&record, signed).unwrap();
    compare("again");
}
