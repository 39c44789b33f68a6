//! A work tree of git, put back as it was captured, and the one of today again.

use bench::{Bench, SNAPSHOT, capture, commit, git, git_as, mode, read, same, state, write};
use lifeboat::sources::SourceError;
use lifeboat::sources::git::GitPlacing;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

mod bench;
mod kill;
mod names;

#[path = "../support/sink.rs"]
mod sink;
#[path = "../support/taken.rs"]
mod taken;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod world;

/// Of this process and those that it starts: what looks for a transaction's programs looks at the whole machine.
fn id() -> &'static str {
    static ID: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ID.get_or_init(|| {
        let random = || hex::encode(lifeboat::base::ids::random_bytes::<4>().unwrap());
        std::env::var(ID_OF_THE_TEST).unwrap_or_else(|_| format!("20261120T030000Z-{}", random()))
    })
}

/// Where edits that are taken aside are kept.
fn dirty() -> String {
    format!("refs/lifeboat/dirty/{}", id())
}

const ID_OF_THE_TEST: &str = "GIT_PLACE_ID";

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// Two commits and a tag.
    fn new() -> Self {
        Self::in_folder(&std::env::temp_dir())
    }

    fn in_folder(folder: &Path) -> Self {
        let lab = Self { dir: tempfile::tempdir_in(folder).unwrap() };
        let app = lab.app();
        std::fs::create_dir(&app).unwrap();
        git(&app, &["init", "-q"]);
        write(&app, "compose.yaml", "ports: 8001\n");
        write(&app, "data.bin", [0u8, 1, 2, 255]);
        write(&app, "run.sh", "#!/bin/sh\n");
        write(&app, "docs/old.md", "old\n");
        write(&app, "src/app.py", "print(1)\n");
        write(&app, "odd \"name\"\n'é$(id)", "odd\n");
        std::os::unix::fs::symlink("src/app.py", app.join("main")).unwrap();
        commit(&app, "first");
        write(&app, "src/more.py", "more\n");
        commit(&app, "second");
        git(&app, &["tag", "v1.0.0"]);
        lab
    }

    fn app(&self) -> PathBuf {
        self.dir.path().join("app")
    }

    fn bench(&self) -> Bench {
        self.transaction(id())
    }

    fn transaction(&self, id: &str) -> Bench {
        Bench::new(&self.app(), &self.dir.path().join("state").join(id), id)
    }
}

/// Edits of every sort: unstaged, staged, binary, new, gone, a mode, a link.
fn edit(app: &Path, what: &str) {
    write(app, "compose.yaml", format!("ports: {what}\n"));
    write(app, "data.bin", (0..=255u8).cycle().take(70_000).chain(what.bytes()).collect::<Vec<_>>());
    write(app, &format!("new-{what}.py"), what);
    git(app, &["add", &format!("new-{what}.py"), "data.bin"]);
    std::fs::remove_file(app.join("docs/old.md")).unwrap();
    let bits = if what == "8003" { 0o755 } else { 0o750 };
    mode(app, "run.sh", bits);
    std::fs::remove_file(app.join("main")).unwrap();
    std::os::unix::fs::symlink(format!("elsewhere-{what}"), app.join("main")).unwrap();
}

/// Three commits more, and edits of another kind on top, staged and not.
fn go_on(app: &Path) {
    git(app, &["reset", "-q", "--hard"]);
    for n in 1..=3 {
        write(app, "src/app.py", format!("print({n}{n})\n"));
        write(app, &format!("later/{n}.txt"), "later\n");
        commit(app, "later");
    }
    git(app, &["rm", "-q", "src/more.py"]);
    write(app, "staged.txt", "staged\n");
    git(app, &["add", "staged.txt"]);
    write(app, "staged.txt", "staged, then edited\n");
    write(app, "src/app.py", "print('today')\n");
    write(app, "untracked/of mine", "mine\n");
    write(app, ".gitignore", "ignored\n");
    write(app, "ignored", "ignored\n");
    std::fs::set_permissions(app.join("compose.yaml"), std::fs::Permissions::from_mode(0o640)).unwrap();
}

fn hinted(error: &SourceError) -> String {
    format!("{error} | {}", error.way_out().unwrap_or_default())
}

#[test]
fn a_tree_becomes_what_was_captured_and_what_it_was_again() {
    let lab = Lab::new();
    let app = lab.app();
    edit(&app, "8002");
    let old = git(&app, &["rev-parse", "HEAD"]);
    let status = git(&app, &["diff", "HEAD", "--stat"]);
    let taken = capture(&app, true);
    let captured: Vec<String> = state(&app).into_iter().filter(|l| !l.starts_with(' ')).collect();
    go_on(&app);
    let today = state(&app);
    let before = read(&app, "src/app.py");

    let bench = lab.bench();
    let intent = bench.plan(&taken).unwrap();
    let said = intent.lines.join("\n");
    assert!(
        said.contains("3 commits from ") && said.contains(" (main) back to ") && said.contains("(v1.0.0)"),
        "{said}"
    );
    assert!(said.contains(&dirty()) && said.contains("the recorded edits of 6 files come back"), "{said}");
    assert_eq!(GitPlacing::forward(&intent).as_deref(), Some("git switch main"));
    same(&today, &state(&app));
    assert_eq!(git(&app, &["for-each-ref", "refs/lifeboat"]), "", "a plan leaves nothing");
    assert!(!app.join(".git/lifeboat").exists());

    let intent = bench.go(&taken);
    let now: Vec<String> = state(&app).into_iter().filter(|l| !l.starts_with(' ')).collect();
    let mine = |l: &&String| !l.starts_with("untracked") && !l.starts_with("ignored") && !l.starts_with(".gitignore");
    let plain: Vec<String> = now.iter().filter(mine).cloned().collect();
    // The folder `docs` held one file only, which the captured tree did not have; git keeps no empty folders.
    let captured: Vec<String> = captured.into_iter().filter(|l| !l.starts_with("docs ")).collect();
    let plain: Vec<String> =
        plain.into_iter().map(|l| l.replace("compose.yaml 100640", "compose.yaml 100644")).collect();
    let captured: Vec<String> = captured.into_iter().map(|l| l.replace("run.sh 100750", "run.sh 100755")).collect();
    same(&captured, &plain);
    assert_eq!(git(&app, &["rev-parse", "HEAD"]), old);
    assert_eq!(git(&app, &["branch", "--show-current"]), "");
    assert_eq!(git(&app, &["diff", "HEAD", "--stat"]), status);
    assert_eq!(git(&app, &["diff", "--cached", "--name-only"]), "", "nothing is staged");
    assert_eq!(read(&app, "untracked/of mine"), "mine\n");
    assert_eq!(git(&app, &["rev-parse", &format!("refs/lifeboat/shop/{SNAPSHOT}")]), old);
    git(&app, &["fsck", "--strict"]);
    // The way of the next snapshot: the same patch again.
    let mut again = capture(&app, true);
    let mut first = taken.clone();
    assert_eq!(again.bytes("edits.patch"), first.bytes("edits.patch"));
    bench.switch(&intent).unwrap();

    bench.undo(&intent);
    same(&today, &state(&app));
    assert_eq!(bench.warnings(), Vec::<String>::new());
    assert!(!app.join(".git/lifeboat").exists());
    // Today's edits are a stash of their own.
    git(&app, &["reset", "-q", "--hard"]);
    git(&app, &["stash", "apply", "-q", "--index", &dirty()]);
    assert_eq!(read(&app, "src/app.py"), before);
    assert_eq!(read(&app, "staged.txt"), "staged, then edited\n");
    assert!(git(&app, &["diff", "--cached"]).contains("+staged\n".trim_end()));
}

#[test]
fn an_equal_tree_is_left_alone() {
    let lab = Lab::new();
    let app = lab.app();
    edit(&app, "8002");
    let taken = capture(&app, true);
    let (before, bench) = (state(&app), lab.bench());
    let intent = bench.go(&taken);
    assert!(intent.lines[0].starts_with("stays at "), "{:?}", intent.lines);
    same(&before, &state(&app));
    bench.undo(&intent);
    same(&before, &state(&app));
}

#[test]
fn two_checkouts_that_differ_by_edits_only_keep_their_own() {
    let lab = Lab::new();
    let app = lab.app();
    write(&app, "compose.yaml", "ports: 8002\n");
    let taken = capture(&app, true);
    write(&app, "compose.yaml", "ports: 9999\n");
    let today = state(&app);
    let bench = lab.bench();
    let intent = bench.go(&taken);
    assert_eq!(read(&app, "compose.yaml"), "ports: 8002\n");
    assert_eq!(git(&app, &["branch", "--show-current"]), "main", "the commit is the same: the branch stays");
    bench.undo(&intent);
    same(&today, &state(&app));
}

#[test]
fn a_commit_that_is_gone_comes_from_the_bundle_or_is_refused() {
    let lab = Lab::new();
    let app = lab.app();
    git(&app, &["checkout", "-q", "-b", "release"]);
    write(&app, "release", "release\n");
    let lost = commit(&app, "on a branch that goes");
    write(&app, "release", "edited\n");
    let (taken, bare) = (capture(&app, true), capture(&app, false));
    git(&app, &["checkout", "-q", "-f", "main"]);
    git(&app, &["branch", "-q", "-D", "release"]);
    git(&app, &["reflog", "expire", "--expire=now", "--all"]);
    git(&app, &["gc", "-q", "--prune=now"]);
    assert!(!git_as(None, &app, &["cat-file", "-e", &lost]).status.success());
    let today = state(&app);
    let bench = lab.bench();
    let error = hinted(&bench.plan(&bare).unwrap_err());
    assert!(error.contains(&lost) && error.contains("git fetch"), "{error}");
    let intent = bench.go(&taken);
    assert!(intent.lines.iter().any(|l| l.contains("comes back from the snapshot")), "{:?}", intent.lines);
    assert_eq!((git(&app, &["rev-parse", "HEAD"]), read(&app, "release")), (lost.clone(), "edited\n".into()));
    bench.discard_old(&intent);
    // Nothing but our own name keeps it once somebody has gone on.
    git(&app, &["checkout", "-q", "-f", "main"]);
    git(&app, &["reflog", "expire", "--expire=now", "--all"]);
    git(&app, &["gc", "-q", "--prune=now"]);
    assert!(git_as(None, &app, &["cat-file", "-e", &lost]).status.success());
    let again = lab.transaction("20261121T030000Z-00000002");
    let intent = again.go(&taken);
    again.undo(&intent);
    same(&today, &state(&app));
}

#[test]
fn untracked_files_in_the_way_are_kept_beside() {
    let lab = Lab::new();
    let app = lab.app();
    for name in ["config/a", "config/equal", "flat", "deep/er/file", "linked/x"] {
        write(&app, name, "tracked\n");
    }
    commit(&app, "with files");
    let taken = capture(&app, true);
    git(&app, &["rm", "-rq", "config", "flat", "deep", "linked"]);
    write(&app, ".gitignore", "config\n");
    commit(&app, "without");
    write(&app, "config/a", "mine\n");
    mode(&app, "config/a", 0o600);
    write(&app, "config/equal", "tracked\n");
    write(&app, "flat/of", "mine\n");
    write(&app, "deep", "a file\n");
    std::os::unix::fs::symlink("/nowhere", app.join("linked")).unwrap();
    mode(&app, "config", 0o711);
    let today = state(&app);
    let bench = lab.bench();
    let intent = bench.go(&taken);
    let said = intent.lines.join("\n");
    for name in ["config/a", "flat", "deep", "linked"] {
        assert!(said.contains(&format!("{name}, which git does not track, is in the way")), "{name}: {said}");
        assert!(app.join(format!("{name}.lifeboat-{}", id())).symlink_metadata().is_ok());
    }
    assert!(!said.contains("config/equal"), "{said}");
    assert_eq!((read(&app, "config/a"), read(&app, "deep/er/file")), ("tracked\n".into(), "tracked\n".into()));
    bench.undo(&intent);
    same(&today, &state(&app));
    // One that comes after the last look is not overwritten either.
    let again = lab.transaction("20261121T030000Z-00000002");
    std::fs::remove_file(app.join("deep")).unwrap();
    let intent = again.plan(&taken).unwrap();
    again.prepare(&taken, &intent);
    again.settle(&taken, &intent);
    write(&app, "deep/er/file", "a moment ago\n");
    let late = state(&app);
    again.switch(&intent).unwrap_err();
    again.undo(&intent);
    same(&late, &state(&app));
}

#[test]
fn edits_until_the_last_moment_and_files_that_come_later_are_kept() {
    let lab = Lab::new();
    let app = lab.app();
    let taken = capture(&app, true);
    go_on(&app);
    let bench = lab.bench();
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent);
    write(&app, "compose.yaml", "edited while it prepared\n");
    commit(&app, "and committed");
    write(&app, "data.bin", "and edited again\n");
    let today = state(&app);
    bench.settle(&taken, &intent);
    bench.switch(&intent).unwrap();
    bench.confirm(&intent).unwrap();
    assert_eq!(git(&app, &["show", &format!("{}:data.bin", dirty())]), "and edited again");
    // It goes on living for a week.
    write(&app, "compose.yaml", "edited afterwards\n");
    write(&app, "later/1.txt", "came afterwards\n");
    write(&app, "src/hot.py", "fix\n");
    git(&app, &["add", "src/hot.py"]);
    git(&app, &["commit", "-qm", "a fix afterwards"]);
    let fix = git(&app, &["rev-parse", "HEAD"]);
    bench.undo(&intent);
    let warnings = bench.warnings().join("\n");
    assert!(
        warnings.contains(&format!("{}-undone", dirty())) && warnings.contains("later/1.txt came since"),
        "{warnings}"
    );
    assert_eq!(git(&app, &["rev-parse", &format!("{}-undone^", dirty())]), fix);
    let kept = app.join(format!("later/1.txt.lifeboat-{}-undone", id()));
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "came afterwards\n");
    std::fs::remove_file(kept).unwrap();
    same(&today, &state(&app));
}

#[test]
fn a_branch_that_moved_or_went_is_not_touched() {
    let lab = Lab::new();
    let app = lab.app();
    let taken = capture(&app, true);
    go_on(&app);
    git(&app, &["stash", "-q"]);
    git(&app, &["tag", "-f", "v1.0.0"]);
    let head = git(&app, &["rev-parse", "HEAD"]);
    let bench = lab.bench();
    let intent = bench.go(&taken);
    assert_eq!(git(&app, &["rev-parse", "v1.0.0"]), head, "a tag that moved stays there");
    git(&app, &["branch", "-f", "main", "HEAD"]);
    bench.undo(&intent);
    assert!(bench.warnings().join("\n").contains("refs/heads/main has moved since"));
    assert_eq!(
        (git(&app, &["rev-parse", "HEAD"]), git(&app, &["branch", "--show-current"])),
        (head.clone(), "".into())
    );
    // Detached, and the branch is gone.
    git(&app, &["branch", "-q", "-D", "main"]);
    let today = state(&app);
    let again = lab.transaction("20261121T030000Z-00000002");
    let intent = again.go(&taken);
    assert_eq!(GitPlacing::forward(&intent), Some(format!("git switch --detach {}", &head[..10])));
    again.undo(&intent);
    same(&today, &state(&app));
}

#[test]
fn the_way_forward_and_a_pull_work_afterwards() {
    let lab = Lab::new();
    let (app, bare) = (lab.app(), lab.dir.path().join("bare.git"));
    git(lab.dir.path(), &["clone", "-q", "--bare", "app", "bare.git"]);
    git(&app, &["remote", "add", "origin", bare.to_str().unwrap()]);
    git(&app, &["fetch", "-q"]);
    git(&app, &["branch", "-q", "--set-upstream-to=origin/main"]);
    write(&app, "compose.yaml", "ports: 8002\n");
    let taken = capture(&app, true);
    git(&app, &["checkout", "-q", "compose.yaml"]);
    write(&app, "src/app.py", "print(2)\n");
    commit(&app, "next");
    git(&app, &["push", "-q"]);
    let bench = lab.bench();
    let intent = bench.go(&taken);
    bench.discard_old(&intent);
    let clone = lab.dir.path().join("clone");
    git(lab.dir.path(), &["clone", "-q", "bare.git", "clone"]);
    write(&clone, "src/app.py", "print(3)\n");
    commit(&clone, "a fix");
    git(&clone, &["push", "-q"]);
    let forward = GitPlacing::forward(&intent).unwrap();
    git(&app, &forward.split(' ').skip(1).collect::<Vec<_>>());
    git(&app, &["pull", "-q"]);
    assert_eq!((read(&app, "src/app.py"), read(&app, "compose.yaml")), ("print(3)\n".into(), "ports: 8002\n".into()));
    assert!(git(&bare, &["for-each-ref", "refs/lifeboat"]).is_empty(), "our names stay here");
}

#[test]
fn submodules_come_back_also_one_that_is_not_there_any_more() {
    for gone in ["kept", "removed", "purged"] {
        let lab = Lab::new();
        let (app, inner) = (lab.app(), Lab::new());
        git(&app, &["submodule", "--quiet", "add", "--name", "the inner", inner.app().to_str().unwrap(), "libs/inner"]);
        commit(&app, "with a submodule");
        let sub = app.join("libs/inner");
        write(&sub, "src/app.py", "recorded edit\n");
        write(&app, "compose.yaml", "ports: 8002\n");
        let recorded = git(&sub, &["rev-parse", "HEAD"]);
        let taken = capture(&app, true);
        write(&sub, "other.py", "other\n");
        commit(&sub, "onwards");
        write(&sub, "src/app.py", "today's edit\n");
        git(&app, &["commit", "-qam", "submodule onwards"]);
        if gone != "kept" {
            git(&app, &["rm", "-qrf", "libs/inner"]);
            git(&app, &["commit", "-qm", "no submodule"]);
        }
        if gone == "purged" {
            std::fs::remove_dir_all(app.join(".git/modules")).unwrap();
        }
        if gone == "removed" {
            std::fs::remove_dir_all(app.join("libs")).unwrap();
        }
        let today = state(&app);
        let bench = lab.bench();
        let intent = bench.go(&taken);
        assert_eq!(git(&sub, &["rev-parse", "HEAD"]), recorded, "{gone}");
        assert_eq!(
            (read(&sub, "src/app.py"), read(&app, "compose.yaml")),
            ("recorded edit\n".into(), "ports: 8002\n".into())
        );
        assert!(!sub.join("other.py").exists());
        assert_eq!(git(&app, &["status", "--porcelain"]), " M compose.yaml\n M libs/inner", "{gone}");
        assert_eq!(git(&sub, &["status", "--porcelain"]), " M src/app.py", "{gone}");
        assert!(git(&app, &["submodule", "status"]).contains(&recorded));
        git(&sub, &["fsck"]);
        bench.undo(&intent);
        if gone == "removed" {
            // Git keeps no empty folders: one that was not even there stays.
            std::fs::remove_dir(app.join("libs")).unwrap();
        }
        same(&today, &state(&app));
        assert_eq!(app.join(".git/modules/the inner").exists(), gone != "purged", "{gone}");
        if gone == "purged" {
            // What is committed in it since is nobody's to throw away.
            let again = lab.transaction("20261120T030000Z-00000009");
            let intent = again.go(&taken);
            write(&sub, "new.py", "work of an evening\n");
            let since = commit(&sub, "since");
            again.undo(&intent);
            let modules = app.join(".git/modules/the inner");
            assert_eq!(git(&modules, &["--git-dir=.", "--work-tree=.", "cat-file", "-t", &since]), "commit");
            assert!(
                git(&modules, &["--git-dir=.", "--work-tree=.", "for-each-ref"]).contains("dirty"),
                "a name leads to it"
            );
        }
    }
}

#[test]
fn what_cannot_be_taken_apart_is_refused_with_the_way_out() {
    let lab = Lab::new();
    let app = lab.app();
    let taken = capture(&app, true);
    let bench = lab.bench();
    let refused = |what: &str| {
        let error = hinted(&bench.plan(&taken).unwrap_err());
        assert!(error.contains(what) && !error.ends_with("| "), "{error}");
    };
    git(&app, &["checkout", "-q", "-b", "side"]);
    write(&app, "compose.yaml", "ours\n");
    commit(&app, "ours");
    git(&app, &["checkout", "-q", "main"]);
    write(&app, "compose.yaml", "theirs\n");
    commit(&app, "theirs");
    assert!(!git_as(None, &app, &["merge", "side"]).status.success());
    refused("a merge is unfinished");
    git(&app, &["merge", "--abort"]);
    assert!(!git_as(None, &app, &["rebase", "side"]).status.success());
    refused("a rebase is unfinished");
    git(&app, &["rebase", "--abort"]);
    write(&app, ".git/index.lock", "");
    refused("another git is at work");
    std::fs::remove_file(app.join(".git/index.lock")).unwrap();
    git(&app, &["sparse-checkout", "set", "src"]);
    refused("sparse");
    git(&app, &["sparse-checkout", "disable"]);
    // A linked work tree is one like any other.
    let tree = lab.dir.path().join("linked");
    git(&app, &["worktree", "add", "-q", "-b", "linked", tree.to_str().unwrap()]);
    write(&tree, "compose.yaml", "linked\n");
    let (of_app, of_tree) = (state(&app), state(&tree));
    let linked = Bench::new(&tree, &lab.dir.path().join("state/linked"), "20261121T030000Z-00000002");
    let intent = linked.go(&taken);
    assert_eq!(read(&tree, "compose.yaml"), "ports: 8001\n");
    linked.undo(&intent);
    same(&of_tree, &state(&tree));
    same(&of_app, &state(&app));
    std::fs::rename(app.join(".git"), lab.dir.path().join("away")).unwrap();
    refused("is not a git repository any more");
}

#[test]
fn content_in_lfs_must_be_here() {
    let lab = Lab::new();
    let app = lab.app();
    let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
    write(&app, ".gitattributes", "*.big filter=lfs\n");
    write(&app, "a.big", format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n"));
    commit(&app, "large");
    let taken = capture(&app, true);
    write(&app, "src/app.py", "print(2)\n");
    commit(&app, "next");
    let bench = lab.bench();
    let error = hinted(&bench.plan(&taken).unwrap_err());
    assert!(error.contains("a.big is in git LFS") && error.contains("git lfs fetch"), "{error}");
    write(&app, &format!(".git/lfs/objects/4d/7a/{oid}"), "x");
    let intent = bench.go(&taken);
    bench.undo(&intent);
}

#[test]
fn files_that_git_was_told_not_to_see_are_kept_and_named() {
    let lab = Lab::new();
    let app = lab.app();
    let taken = capture(&app, true);
    write(&app, "compose.yaml", "next\n");
    commit(&app, "next");
    git(&app, &["update-index", "--skip-worktree", "compose.yaml"]);
    git(&app, &["update-index", "--assume-unchanged", "run.sh"]);
    write(&app, "compose.yaml", "local ports\n");
    let today = state(&app);
    let bench = lab.bench();
    let intent = bench.go(&taken);
    assert!(intent.warnings.join("").contains("compose.yaml, run.sh"), "{:?}", intent.warnings);
    assert_eq!(git(&app, &["show", &format!("{}:compose.yaml", dirty())]), "local ports");
    bench.undo(&intent);
    same(&today, &state(&app));
}

#[test]
fn git_runs_as_the_owner_with_hooks_off() {
    let lab = Lab::new();
    let app = lab.app();
    edit(&app, "8002");
    let taken = capture(&app, true);
    go_on(&app);
    let canary = lab.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    mode(lab.dir.path(), "canary", 0o777);
    for hook in ["post-checkout", "post-index-change", "reference-transaction", "pre-commit"] {
        write(&app, &format!(".git/hooks/{hook}"), format!("#!/bin/sh\ntouch {}/{hook}\n", canary.display()));
        mode(&app, &format!(".git/hooks/{hook}"), 0o755);
    }
    mode(lab.dir.path(), ".", 0o755);
    let chown = |path: &Path| {
        assert!(Command::new("chown").arg("-Rh").arg("nobody:nogroup").arg(path).status().unwrap().success())
    };
    chown(&app);
    // One file is another account's, as a container leaves it.
    std::os::unix::fs::lchown(app.join("src/app.py"), Some(999), Some(999)).unwrap();
    let today = state(&app);
    let bench = lab.bench();
    let intent = bench.go(&taken);
    let owners = |path: &Path| Command::new("find").arg(path).args(["!", "-user", "nobody"]).output().unwrap().stdout;
    let strangers = String::from_utf8(owners(&app)).unwrap();
    assert_eq!(strangers.trim(), app.join("src/app.py").display().to_string(), "what is new is the owner's");
    assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0, "a hook ran");
    assert!(git_as(Some("nobody"), &app, &["fsck"]).status.success());
    assert!(git_as(Some("nobody"), &app, &["switch", "-q", "-f", "main"]).status.success());
    bench.undo(&intent);
    same(&today, &state(&app));
}

/// A process that carries the transaction's mark is a git of a killed run: it is waited for, so that nothing is changed
/// under its hands. One of another transaction is not, and neither is what a hook of this one has left running.
#[test]
fn gits_of_a_killed_run_are_known_by_their_mark() {
    struct Asleep(std::process::Child);
    impl Drop for Asleep {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let asleep = |name: &str, id: &str, seconds: &str| {
        Asleep(Command::new("sleep").arg(seconds).env_clear().env(name, id).spawn().unwrap())
    };
    let lab = Lab::new();
    let taken = capture(&lab.app(), true);
    go_on(&lab.app());
    let bench = lab.bench();
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent);
    bench.settle(&taken, &intent);
    let begun = Instant::now();
    let mut ours = asleep("LIFEBOAT_GIT_OF", id(), "2");
    let _others = [
        asleep("LIFEBOAT_GIT_OF", "20261120T030000Z-00000002", "60"),
        asleep("LIFEBOAT_GIT_OF", &id()[..id().len() - 1], "60"),
        asleep("LIFEBOAT_TRANSACTION", id(), "60"),
    ];
    bench.switch(&intent).unwrap();
    let took = begun.elapsed();
    assert!(ours.0.try_wait().unwrap().is_some(), "it was still at work");
    assert!(took > Duration::from_millis(1900) && took < Duration::from_secs(20), "{took:?}");
}

fn policy(root: &Path) -> lifeboat::policy::Policy {
    let text = format!(
        "[app]\nname = \"shop\"\nroot = {:?}\n[repository]\nurl = \"/nowhere/repo\"\nrecipients = [{:?}]\n",
        root.display().to_string(),
        "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    );
    lifeboat::policy::parse(Path::new("/nowhere/shop.toml"), &text).unwrap_or_else(|e| panic!("{e}"))
}
