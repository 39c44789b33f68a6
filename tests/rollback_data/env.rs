//! Env files come back as captured, but for the secrets that somebody wants to keep.

use crate::bench::{Bench, everything, write};
use crate::world::CANARY;
use lifeboat::sources::env_merge::{self, Change, Side, choose, compare};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

const SOURCES: &str = "[[source]]\nkind = \"env\"\nname = \"env\"\npaths = [\"ROOT/.env\", \"ROOT/backend/.env.production\"]\n\
    required = [\"JWT_SECRET\"]\npattern = { ENCRYPTION_KEY = \"^[0-9a-f]{8}$\" }\n\
    same = [[\".env:REDIS_PASSWORD\", \"backend/.env.production:REDIS_PASSWORD\"]]\ndata_keys = [\"ENCRYPTION_KEY\"]\n";

fn stand() -> Bench {
    let bench = Bench::new(SOURCES);
    let env = bench.app().join(".env");
    write(
        &env,
        "# shop\nMODE=v1\nexport JWT_SECRET='old secret\nof two lines' # rotate me\nREDIS_PASSWORD=old\nENCRYPTION_KEY=0123abcd\n",
    );
    fs::set_permissions(&env, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&env, Some(61_073), Some(61_074)).unwrap();
    write(&bench.app().join("backend/.env.production"), "REDIS_PASSWORD=old\n");
    bench
}

/// What an administrator does between the snapshot and the rollback.
fn rotate(bench: &Bench) {
    let text = format!(
        "MODE=v2\nJWT_SECRET=\"{CANARY} $$\" # new\nREDIS_PASSWORD={CANARY}\nENCRYPTION_KEY=ffffffff\nNEW_TOKEN={CANARY}\n"
    );
    write(&bench.app().join(".env"), &text);
    fs::set_permissions(bench.app().join(".env"), fs::Permissions::from_mode(0o600)).unwrap();
    write(&bench.app().join("backend/.env.production"), &format!("REDIS_PASSWORD={CANARY}\n"));
}

#[test]
fn rotated_secrets_are_named_and_kept_where_chosen() {
    let bench = stand();
    let (taken, folder) = (bench.capture("env"), bench.folder());
    let captured = env_merge::captured(&taken).unwrap();
    assert_eq!(captured.len(), 2);
    rotate(&bench);
    let rotated_text = fs::read_to_string(bench.app().join(".env")).unwrap();
    let live = env_merge::live(&captured).unwrap();
    let found = compare(&captured, &live, &bench.policy.app, &["ENCRYPTION_KEY".into()]);
    let keys: Vec<_> = found.rotated.iter().map(|r| (r.key.as_str(), r.change, r.data_key)).collect();
    let expected = [
        ("ENCRYPTION_KEY", Change::Differs, true),
        ("JWT_SECRET", Change::Differs, false),
        ("NEW_TOKEN", Change::OnlyLive, false),
        ("REDIS_PASSWORD", Change::Differs, false),
        ("REDIS_PASSWORD", Change::Differs, false),
    ];
    assert_eq!(keys, expected);

    let choices = choose(&found.rotated, Side::Live, Side::Snapshot);
    let resulting = env_merge::resulting(&captured, &live, &choices).unwrap();
    let checks = env_merge::check(&resulting, bench.source("env"), &bench.policy.app);
    assert!(checks.len() == 3 && checks.iter().all(|c| c.ok), "{checks:?}");
    let intent = bench.plan(&taken, &everything());
    let laid = env_merge::lay(&folder, &taken.name, &captured, &resulting).unwrap();
    assert_eq!(laid.len(), 2);
    let overlay = folder.join("env.overlay");
    assert_eq!(fs::metadata(&overlay).unwrap().mode() & 0o777, 0o700);
    for entry in fs::read_dir(&overlay).unwrap().map(|e| e.unwrap()) {
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600);
    }
    let said = format!("{} {found:?} {checks:?}", serde_json::to_string(&intent).unwrap());
    assert!(!said.contains(CANARY) && !said.contains("old secret"), "the journal holds no value");

    bench.steps("prepare settle switch confirm", &taken, &intent);
    let env = bench.app().join(".env");
    assert_eq!(
        fs::read_to_string(&env).unwrap(),
        format!(
            "# shop\nMODE=v1\nJWT_SECRET=\"{CANARY} $$\"\n # rotate me\nREDIS_PASSWORD={CANARY}\nENCRYPTION_KEY=0123abcd\n"
        )
    );
    let meta = fs::metadata(&env).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 61_073, 61_074), "as captured");
    bench.step("switch", &taken, &intent);
    bench.step("back", &taken, &intent);
    assert_eq!(fs::read_to_string(&env).unwrap(), rotated_text);
    assert_eq!(fs::metadata(&env).unwrap().mode() & 0o7777, 0o600);
    bench.step("discard_new", &taken, &intent);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "no value stays behind");
}

#[test]
fn rules_are_held_against_what_will_be_there() {
    let bench = stand();
    let taken = bench.capture("env");
    let captured = env_merge::captured(&taken).unwrap();
    rotate(&bench);
    let live = env_merge::live(&captured).unwrap();
    let found = compare(&captured, &live, &bench.policy.app, &["ENCRYPTION_KEY".into()]);
    let mut choices = choose(&found.rotated, Side::Live, Side::Snapshot);
    // One file keeps today's value, the other gets the captured one: they no longer agree.
    choices.insert((bench.app().join("backend/.env.production"), "REDIS_PASSWORD".into()), Side::Snapshot);
    let resulting = env_merge::resulting(&captured, &live, &choices).unwrap();
    let checks = env_merge::check(&resulting, bench.source("env"), &bench.policy.app);
    let bad: Vec<_> = checks.iter().filter(|c| !c.ok).collect();
    assert_eq!(bad.len(), 1, "{checks:?}");
    assert_eq!(bad[0].rule, "same");
    assert!(!format!("{checks:?}").contains(CANARY));
    // A file that cannot be read any more is not merged.
    write(&bench.app().join(".env"), "JWT_SECRET='no end\n");
    let live = env_merge::live(&captured).unwrap();
    let found = compare(&captured, &live, &bench.policy.app, &[]);
    assert_eq!(found.unread.len(), 1, "{found:?}");
    let choices = [((bench.app().join(".env"), "JWT_SECRET".to_owned()), Side::Live)].into();
    let why = crate::bench::told(&env_merge::resulting(&captured, &live, &choices).err().unwrap());
    assert!(why.contains("the live file cannot be read: line 1") && !why.contains("no end"), "{why}");
}
