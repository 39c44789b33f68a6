//! `init` and `keys`: what they make, what they refuse, and that they can be cut short and run again.

use crate::world::{CANARY, Mounted, Ran, UPLOADS, World, bare, mode, tree};
use std::fs;
use std::process::{Command, Stdio};

#[test]
fn keys_are_made_once_and_are_private_whatever_the_umask() {
    let world = World::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_lifeboat"), "keys", "new"]);
    shell.arg("--config-dir").arg(world.path("config")).arg("--state-dir").arg(world.path("state"));
    let made = Ran::from(shell.output().unwrap()).exits(0).shows(&["recipient", "age1", "SHA256:", "copy it away"]);
    for file in ["config/identity.txt", "config/host.key"] {
        assert_eq!(mode(&world.path(file)), 0o600, "{file}");
    }
    assert_eq!(mode(&world.path("config")), 0o700);
    let before = world.files("config");
    world.run(&["keys", "new"]).exits(2).one_error_with_a_hint().says(&["there are keys"]);
    assert_eq!(world.files("config"), before, "nothing is overwritten");

    let shown = world.run(&["keys", "show"]).exits(0);
    let recipient = made.out.split_whitespace().find(|w| w.starts_with("age1")).unwrap();
    shown.shows(&[recipient]);
    let comment = fs::read_to_string(world.identity()).unwrap();
    assert!(comment.contains(&format!("# recipient: {recipient}")) && comment.contains("# repository: SHA256:"));
}

/// A compose file in the checkout, and no engine on this machine: nothing runs that would have to stop. An engine that is there
/// and does not answer may run anything.
#[test]
fn without_an_engine_nothing_has_to_stop() {
    let world = World::new();
    fs::write(world.app().join("compose.yaml"), "services:\n  web:\n    image: nginx\n").unwrap();
    let socket = world.path("docker.sock");
    let run = |args: &[&str]| -> Ran {
        world.command(args).env("DOCKER_HOST", format!("unix://{}", socket.display())).output().unwrap().into()
    };
    run(&["init", "app", "--name", "shop"]).exits(0);
    world.add_to_policy(UPLOADS);
    run(&["snapshot"]).exits(0);
    let file = world.app().join("uploads/one.txt");
    fs::write(&file, "two\n").unwrap();
    let restore = ["restore", "latest", "--in-place", "--only", "uploads", "--yes"];
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    run(&restore).exits(1).says(&["docker does not answer at"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "two\n");
    fs::remove_file(&socket).unwrap();
    run(&restore).exits(0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\n");
}

/// Whoever starts it lets everybody read what he makes: nothing of ours is so, and what is restored is as it was.
#[test]
fn whatever_holds_a_secret_is_private_whatever_the_umask() {
    let world = World::new();
    let run = |args: &[&str]| -> Ran {
        let plain = world.command(args);
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(plain.get_program()).args(plain.get_args());
        shell.env_clear().env("HOME", world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
        shell.current_dir(world.dir.path()).stdin(Stdio::null()).output().unwrap().into()
    };
    run(&["init", "app", "--name", "shop"]).exits(0);
    world.add_to_policy(UPLOADS);
    run(&["snapshot"]).exits(0);
    run(&["restore", "latest", "--into", "out"]).exits(0);
    fs::write(world.app().join(".env"), format!("DB_PASSWORD=old-{CANARY}\nMODE=production\n")).unwrap();
    run(&["restore", "latest", "--in-place", "--only", "env", "--yes"]).exits(0);
    fs::write(world.path("passphrase"), "a passphrase of some length").unwrap();
    run(&["recovery-kit", "--page", "page"]).exits(0);
    run(&["recovery-kit", "--page", "whole", "--with-identity", "--passphrase", "passphrase"]).exits(0);
    run(&["drill"]).exits(0);
    run(&["keys", "rotate"]).exits(0);

    let mut ahead = ["config", "state", "page", "whole"].map(|name| world.path(name)).to_vec();
    let mut seen = 0;
    while let Some(path) = ahead.pop() {
        assert_eq!(mode(&path) & 0o077, 0, "{}: {:o}", path.display(), mode(&path));
        seen += 1;
        if path.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    assert!(seen > 40, "{seen}");
    // Wherever else it is: where it was, and where it was restored.
    let mut secrets = ["app", "out"].map(|name| world.files(name)).concat();
    secrets.retain(|(_, bytes)| bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes()));
    let modes: Vec<_> = secrets.iter().map(|(path, _)| (path.display().to_string(), mode(path))).collect();
    assert!(modes.len() >= 2 && modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
    assert_eq!(mode(&world.path("out")) & 0o022, 0, "nobody else puts anything there");
}

#[test]
fn init_says_what_it_made_and_what_to_do_next() {
    let world = World::new();
    fs::write(world.app().join("compose.yaml"), "services:\n  db:\n    image: postgres:15\n").unwrap();
    let done = world.run(&["init", "app", "--name", "shop"]).exits(0);
    let done = done.shows(&[
        "shop",
        "proved",
        "Keep the identity",
        "identity.txt away from this host",
        "Covered",
        "env files: .env",
        "Not covered",
        "postgres (service db)",
        "Next: lifeboat",
    ]);
    // The command that it names works as it is.
    let next = done.out.lines().find_map(|l| l.strip_prefix("Next: lifeboat ")).unwrap();
    let words: Vec<&str> = next.split_whitespace().collect();
    Ran::from(bare(world.dir.path()).args(words).output().unwrap()).exits(0);

    assert_eq!(mode(&world.policy()), 0o600);
    assert_eq!(mode(&world.path("config/policies")), 0o700);
    world.run(&["policy", "check"]).exits(0).shows(&["valid"]);
    let secret_line = fs::read_to_string(world.identity()).unwrap();
    let secret = secret_line.lines().find(|l| l.starts_with("AGE-SECRET-KEY-1")).unwrap();
    for (path, bytes) in tree(world.dir.path()) {
        let holds = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
        assert!(!holds(secret) || path == world.identity(), "the identity stands in {}", path.display());
        assert!(!holds(CANARY) || path == world.app().join(".env"), "a secret stands in {}", path.display());
    }
}

/// Many a server's disk is nine tenths full. A tenth of it cannot stay free there, and nobody can lower what stands in no
/// policy yet.
#[test]
fn on_a_disk_that_is_nearly_full_init_keeps_a_quarter_of_what_is_left() {
    let world = World::new();
    let _disk = Mounted::tmpfs(&world.path("disk"), "200m");
    let filler = world.path("disk/filler");
    let fill = |mib: usize| fs::write(&filler, vec![1; mib << 20]).unwrap();
    let init = |name: &str, repository: &str| {
        let done = world.run(&["init", "app", "--name", name, "--repository", repository]);
        let policy = fs::read_to_string(world.path(&format!("config/policies/{name}.toml")));
        (done, policy)
    };
    // Next to nothing is free: no reserve helps there.
    fill(198);
    let (done, policy) = init("shop", "disk/repository");
    done.exits(1).one_error_with_a_hint().says(&["must stay free"]);
    assert!(policy.is_err());

    fill(182);
    let (done, policy) = init("shop", "disk/repository");
    done.exits(0).shows(&["Note: only", "MiB are free where the repository lies", "(min_free)", "10% of the disk"]);
    let policy = policy.unwrap();
    assert!(policy.lines().any(|line| line == "min_free = \"4MiB\""), "{policy}");
    world.add_to_policy(UPLOADS);
    world.run(&["policy", "check"]).exits(0);
    world.run(&["snapshot"]).exits(0);
    let json = world.json(&["doctor"]);
    let room = json["policies"][0]["findings"].as_array().unwrap().iter().find(|f| f["check"] == "room").unwrap();
    assert_eq!(room["verdict"], "ok", "{room}");

    // Where there is room, the default stands, and is not written down.
    fs::remove_file(world.policy()).unwrap();
    fill(100);
    let (done, policy) = init("roomy", "disk/repository");
    assert!(!done.exits(0).out.contains("Note: only"));
    assert!(!policy.unwrap().contains("min_free"));
}

#[test]
fn a_second_init_is_refused_and_changes_nothing() {
    let world = World::ready();
    let before = tree(world.dir.path());
    let app = world.app();
    let app = app.to_str().unwrap();
    world
        .run(&["init", app, "--name", "shop"])
        .exits(2)
        .one_error_with_a_hint()
        .says(&["exists already", "move it away"]);
    // Neither under another name nor through a link.
    world.run(&["init", app, "--name", "other"]).exits(2).one_error_with_a_hint().says(&["set up already", "\"shop\""]);
    std::os::unix::fs::symlink(world.app(), world.path("link")).unwrap();
    world.run(&["init", "link", "--name", "other"]).exits(2).says(&["set up already"]);
    fs::remove_file(world.path("link")).unwrap();
    assert_eq!(tree(world.dir.path()), before);
}

#[test]
fn an_init_that_was_cut_short_is_run_again() {
    const POLICY: &str = "config/policies/shop.toml";
    const STATE: &str = "state/state.db";
    const SIGNER: &str = "state/repository/signers/1.json";
    const ROOT: &str = "state/repository/repository.json";
    const HOST_KEY: &str = "config/host.key";
    let undo: [&[&str]; 4] = [
        // Before the policy was written …
        &[POLICY],
        // … before the signer …
        &[POLICY, STATE, SIGNER],
        // … before the repository …
        &[POLICY, STATE, SIGNER, ROOT],
        // … before the host key.
        &[POLICY, STATE, SIGNER, ROOT, HOST_KEY],
    ];
    for files in undo {
        let world = World::new();
        let init = ["init", "app", "--name", "shop"];
        world.run(&init).exits(0);
        let keys = [fs::read(world.identity()).unwrap(), fs::read(world.path(HOST_KEY)).unwrap()];
        for file in files {
            fs::remove_file(world.path(file)).unwrap();
        }
        world.run(&init).exits(0);
        assert_eq!(fs::read(world.identity()).unwrap(), keys[0]);
        if !files.contains(&HOST_KEY) {
            assert_eq!(fs::read(world.path(HOST_KEY)).unwrap(), keys[1]);
        }
        assert!(!world.path("state/repository/signers/2.json").exists());
        world.run(&["snapshot"]).exits(0);
        world.run(&["verify", "--deep"]).exits(0);
    }
}

#[test]
fn the_name_comes_from_the_folder_and_is_said() {
    let world = World::new();
    fs::create_dir(world.path("My Shop_2")).unwrap();
    world.run(&["init", "My Shop_2"]).exits(0).shows(&["my-shop-2 (from the folder's name"]);
    assert!(world.path("config/policies/my-shop-2.toml").exists());
    fs::create_dir(world.path("---")).unwrap();
    world.run(&["init", "./---"]).exits(2).one_error_with_a_hint().says(&["--name"]);
    world.run(&["init", "app", "--name", "Shop!"]).exits(2).says(&["1 to 64 of a-z"]);
    world.run(&["init", "nowhere"]).exits(1).says(&["nowhere", "No such file"]);
    world.run(&["init", "app/.env"]).exits(2).says(&["is not a folder"]);
    fs::create_dir(world.path("a[b]")).unwrap();
    let before = world.files("config");
    world.run(&["init", "a[b]", "--name", "ab"]).exits(2).one_error_with_a_hint();
    assert_eq!(world.files("config"), before);
}

#[test]
fn another_host_joins_the_repository_with_the_identity() {
    let first = World::with_snapshot();
    let second = World::new();
    fs::create_dir(second.path("config")).unwrap();
    fs::copy(first.identity(), second.identity()).unwrap();
    let repository = first.repository();
    let args = ["init", "app", "--name", "blog", "--repository", repository.to_str().unwrap()];
    second.run(&args).exits(0).shows(&["(was there)", "its key may sign snapshots now"]);
    assert!(repository.join("signers/2.json").exists());
    second.run(&["snapshot"]).exits(0);
    first.run(&["list"]).exits(0).shows(&["first"]);
    assert_eq!(first.snapshots().len(), 1, "each policy lists its own");

    // A key that was made for one repository does not sign for another.
    let third = World::ready();
    fs::remove_file(third.policy()).unwrap();
    let before = tree(&repository);
    let args = ["init", "app", "--name", "shop", "--repository", repository.to_str().unwrap()];
    third.run(&args).exits(4).one_error_with_a_hint().says(&["not SHA256:"]);
    assert_eq!(tree(&repository), before);
}

#[test]
fn a_sealed_host_needs_a_recipient_and_says_that_nobody_proved_it() {
    let world = World::ready();
    fs::rename(world.identity(), world.path("usb.txt")).unwrap();
    fs::create_dir(world.path("blog")).unwrap();
    let recipient = fs::read_to_string(world.path("usb.txt")).unwrap();
    let recipient = recipient.lines().find_map(|l| l.strip_prefix("# recipient: ")).unwrap().to_owned();

    world.run(&["init", "blog"]).exits(2).one_error_with_a_hint().says(&["no recipient", "--recipient"]);
    assert!(!world.path("config/policies/blog.toml").exists());
    world.run(&["keys", "new"]).exits(2).says(&["sealed"]);
    world.run(&["keys", "show"]).exits(0).shows(&["sealed", "SHA256:"]);

    // This one was proved when the first policy was set up; the other one never.
    let other = "age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz";
    let args = ["init", "blog", "--recipient", &recipient, "--recipient", other];
    world.run(&args).exits(0).shows(&["sealed", "(proved", "(not proved)", "a recipient is not proved"]);
    world.run(&["snapshot", "-p", "blog"]).exits(0).says(&["not proved", other]);
    world.run(&["snapshot", "-p", "shop"]).exits(0);
    let live = world.run(&["policy", "check", "--live", "-p", "blog", "--identity", "usb.txt"]);
    live.shows(&["unproved", other]);
}

#[test]
fn a_repository_that_is_none_is_left_alone() {
    let world = World::new();
    fs::create_dir(world.path("full")).unwrap();
    fs::write(world.path("full/data"), "x").unwrap();
    world.run(&["init", "app", "--repository", "full"]).exits(1).one_error_with_a_hint().says(&["not empty"]);
    assert_eq!(world.files("full").len(), 1);
    assert!(!world.path("config/policies/app.toml").exists());
    // Nobody but this machine is asked: neither for credentials nor for the bucket.
    let mut bucket =
        world.command(&["init", "app", "--repository", "s3://bucket/p", "--endpoint", "http://127.0.0.1:9"]);
    let ran: Ran = bucket.env("AWS_EC2_METADATA_DISABLED", "true").output().unwrap().into();
    ran.exits(1).one_error_with_a_hint().says(&["no credentials", "AWS_ACCESS_KEY_ID"]);
    world.run(&["init", "app", "--repository", "https://b/p"]).exits(2).one_error_with_a_hint();
    // What failed is done by running it again.
    world.run(&["init", "app"]).exits(0);
}

#[test]
fn an_ssh_key_serves_as_identity() {
    let world = World::new();
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(world.path("id")).status();
    assert!(made.unwrap().success());
    world.run(&["init", "app", "--name", "shop", "--identity", "id"]).exits(0).shows(&["ssh-ed25519", "proved"]);
    assert!(!world.identity().exists(), "the key stays where it is");
    world.run(&["snapshot"]).exits(0);
    let cat = ["ls", "latest", "--identity", "id"];
    world.run(&cat).exits(0);
    world.run(&["ls", "latest"]).exits(2).one_error_with_a_hint().says(&["needs the identity"]);
}

#[test]
fn a_second_recipient_opens_what_comes_from_now_on() {
    let (world, other) = (World::with_snapshot(), World::new());
    other.run(&["keys", "new"]).exits(0);
    fs::copy(other.identity(), world.path("second.txt")).unwrap();
    let text = fs::read_to_string(world.path("second.txt")).unwrap();
    let second = text.lines().find_map(|l| l.strip_prefix("# recipient: ")).unwrap();
    let before = fs::read_to_string(world.policy()).unwrap();

    let secret = text.lines().find(|l| l.starts_with("AGE-SECRET-KEY-1")).unwrap();
    let ran = world.run(&["keys", "add-recipient", secret]).exits(1).says(&["private key"]);
    assert!(!ran.err.contains(secret), "{}", ran.err);
    world.run(&["keys", "add-recipient", "age1nonsense"]).exits(1).says(&["is not a recipient"]);
    assert_eq!(fs::read_to_string(world.policy()).unwrap(), before);
    world.run(&["keys", "add-recipient", second, "--identity", "second.txt"]).exits(0).shows(&[second, "(proved"]);
    world.run(&["keys", "add-recipient", second]).exits(2).one_error_with_a_hint().says(&["already"]);
    // One line more, and every comment where it was.
    let after = fs::read_to_string(world.policy()).unwrap();
    let lines: Vec<&str> = after.lines().filter(|line| !line.contains(second)).collect();
    assert_eq!((lines, after.lines().count()), (before.lines().collect(), before.lines().count() + 1));
    assert_eq!(mode(&world.policy()), 0o600);

    world.run(&["snapshot", "--tag", "both"]).exits(0);
    let opens = |tag: &str| {
        let root = fs::read_to_string(world.identity()).unwrap();
        let id = root.lines().find_map(|l| l.strip_prefix("# repository: ")).unwrap().to_owned();
        world.run(&["ls", tag, "--identity", "second.txt", "--signer", &id]).code
    };
    assert_eq!((opens("both"), opens("first")), (0, 1), "what was stored before is the first one's alone");
    world.run(&["ls", "both"]).exits(0);
}

#[test]
fn a_host_key_that_was_lost_or_seen_is_replaced() {
    let world = World::with_snapshot();
    fs::create_dir(world.path("blog")).unwrap();
    world.run(&["init", "blog"]).exits(0);
    let key = world.path("config/host.key");
    let first = fs::read(&key).unwrap();
    // Nothing is changed before every repository knows the new one.
    fs::rename(world.repository(), world.path("away")).unwrap();
    world.run(&["keys", "rotate"]).exits(1).one_error_with_a_hint();
    assert_eq!(fs::read(&key).unwrap(), first);
    fs::rename(world.path("away"), world.repository()).unwrap();
    world.run(&["snapshot", "-p", "shop"]).exits(0);
    // Sealed: the identity is brought.
    fs::rename(world.identity(), world.path("usb.txt")).unwrap();
    world.run(&["keys", "rotate"]).exits(2).one_error_with_a_hint().says(&["identity"]);
    world.run(&["keys", "rotate", "--identity", "usb.txt"]).exits(0).shows(&["may sign in", "host.key.until-"]);
    let second = fs::read(&key).unwrap();
    assert!(first != second && mode(&key) == 0o600 && !world.path("config/host.key.new").exists());
    for policy in ["shop", "blog"] {
        world.run(&["snapshot", "-p", policy]).exits(0);
        world.run(&["verify", "--read-data", "-p", policy]).exits(0);
    }
    // Lost altogether.
    fs::remove_file(&key).unwrap();
    world.run(&["snapshot", "-p", "shop"]).exits(1).one_error_with_a_hint().says(&["keys rotate"]);
    world.run(&["keys", "rotate", "--identity", "usb.txt"]).exits(0);
    world.run(&["snapshot", "-p", "shop"]).exits(0);
    world.run(&["verify", "--deep", "-p", "shop", "--identity", "usb.txt"]).exits(0);
    assert_eq!(world.json(&["list", "-p", "shop"])["snapshots"].as_array().unwrap().len(), 4);
}

#[test]
fn a_second_repository_needs_keys_of_its_own_and_says_so() {
    let world = World::with_snapshot();
    fs::create_dir_all(world.path("other/uploads")).unwrap();
    let ran =
        world.run(&["init", "other", "--name", "other", "--repository", "elsewhere"]).exits(2).one_error_with_a_hint();
    let first = world.repository();
    ran.says(&["belong to the one at", first.to_str().unwrap(), "--config-dir"]);
    assert!(!world.path("elsewhere/signers").exists() && !world.path("config/policies/other.toml").exists());
    // Beside the first application, in its repository, there is room.
    world.run(&["init", "other", "--name", "other"]).exits(0);
    world.run(&["snapshot", "-p", "other"]).exits(0);
    world.run(&["snapshot", "-p", "shop"]).exits(0);
}
