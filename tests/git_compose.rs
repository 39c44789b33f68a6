//! Sources `git`, `compose` and `recovery` on real repositories and a real engine.

use lifeboat::base::cancel::Cancel;
use lifeboat::policy::model::{App, SourcePolicy, SourceSpec};
use lifeboat::sources::{Captured, Source, SourceError};
use sink::{Bench, MemorySink};
use std::path::Path;
use std::process::Command;

#[path = "support/docker.rs"]
mod engine;
#[path = "support/sink.rs"]
mod sink;

fn app(root: &Path) -> App {
    App {
        name: "shop".parse().unwrap(),
        root: root.to_owned(),
        compose_files: vec![],
        env_files: vec![],
        profiles: vec![],
        project: None,
        project_dir: None,
    }
}

fn policy(name: &str, implicit: bool, spec: SourceSpec) -> SourcePolicy {
    SourcePolicy {
        name: name.parse().unwrap(),
        on_rollback: lifeboat::policy::model::OnRollback::Restore,
        implicit,
        optional: false,
        timeout: std::time::Duration::from_secs(120),
        spec,
    }
}

mod git {
    use super::*;
    use lifeboat::policy::model::GitSpec;
    use lifeboat::sources::git::GitSource;

    fn run(dir: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(dir)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"])
            .args(["-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main", "-c", "advice.detachedHead=false"])
            .args(arguments)
            .output()
            .expect("git, which scripts/test.sh installs");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Two commits and a tag.
    fn repository() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), &["init", "-q"]);
        write(dir.path(), "compose.yaml", "services:\n  web:\n    ports: [\"8001:80\"]\n");
        write(dir.path(), "data.bin", [0u8, 1, 2, 255]);
        run(dir.path(), &["add", "."]);
        run(dir.path(), &["commit", "-qm", "first"]);
        write(dir.path(), "src/app.py", "print(1)\n");
        run(dir.path(), &["add", "."]);
        run(dir.path(), &["commit", "-qm", "second: with a colon"]);
        run(dir.path(), &["tag", "-am", "release", "v1.0.0"]);
        run(dir.path(), &["tag", "light"]);
        dir
    }

    fn source(root: &Path, bundle: bool, implicit: bool) -> GitSource {
        let spec = GitSpec { bundle };
        GitSource::new(&policy("git", implicit, SourceSpec::Git(spec.clone())), &spec, &app(root))
    }

    fn capture(root: &Path) -> (MemorySink, Captured) {
        let (sink, bench) = (MemorySink::new(), Bench::new());
        let captured = source(root, true, false).capture(&bench.capture(&sink)).unwrap();
        (sink, captured)
    }

    /// What a restore does by hand: clone the bundle, check out, apply.
    fn bring_back(sink: &MemorySink, captured: &Captured) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("repository.bundle");
        std::fs::write(&file, sink.bytes("repository.bundle")).unwrap();
        run(dir.path(), &["clone", "-q", "--no-checkout", "repository.bundle", "tree"]);
        let tree = dir.path().join("tree");
        run(&tree, &["fetch", "-q", "origin", "+refs/*:refs/*", "--update-head-ok"]);
        run(&tree, &["bundle", "verify", "-q", "../repository.bundle"]);
        run(&tree, &["fsck", "--strict"]);
        run(&tree, &["checkout", "-q", "--detach", captured.facts["head"]["commit"].as_str().unwrap()]);
        if !captured.facts["edits"].is_null() {
            std::fs::write(dir.path().join("edits.patch"), sink.bytes("edits.patch")).unwrap();
            run(&tree, &["apply", "--binary", "--index", "../edits.patch"]);
        }
        dir
    }

    #[test]
    fn a_tree_with_edits_comes_back_byte_for_byte() {
        let repository = repository();
        let dir = repository.path();
        run(dir, &["branch", "side", "HEAD~1"]);
        write(dir, "stashed", "x");
        run(dir, &["add", "stashed"]);
        run(dir, &["stash", "-q"]);
        // Ports of a second instance, a staged binary, a mode, a removal, a symlink, and names that need quoting.
        write(dir, "compose.yaml", "services:\n  web:\n    ports: [\"8002:80\"]\n");
        write(dir, "data.bin", (0..=255u8).cycle().take(70_000).collect::<Vec<_>>());
        write(dir, "naïve \"name\"\n.txt", "staged\n");
        std::os::unix::fs::symlink("../elsewhere", dir.join("link")).unwrap();
        run(dir, &["add", "naïve \"name\"\n.txt", "data.bin", "link"]);
        std::fs::remove_file(dir.join("src/app.py")).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.join("compose.yaml"), std::fs::Permissions::from_mode(0o755)).unwrap();
        write(dir, "untracked/file", "not content");
        run(dir, &["remote", "add", "origin", "https://user:s3cret@example.org/a.git"]);
        let index = std::fs::read(dir.join(".git/index")).unwrap();

        let (sink, captured) = capture(dir);
        assert_eq!(sink.names(), ["edits.patch", "repository.bundle"]);
        let facts = &captured.facts;
        assert_eq!(facts["head"]["commit"], run(dir, &["rev-parse", "HEAD"]));
        assert_eq!(facts["head"]["subject"], "second: with a colon");
        assert_eq!((&facts["branch"], &facts["dirty"]), (&"main".into(), &true.into()));
        assert_eq!(facts["tags"], serde_json::json!(["light", "v1.0.0"]));
        assert_eq!(facts["remotes"], serde_json::json!([{ "name": "origin", "url": "https://example.org/a.git" }]));
        assert_eq!(facts["edited"]["count"], 5);
        assert_eq!(facts["untracked"], serde_json::json!({ "count": 1, "names": ["untracked/"] }));
        let everything =
            format!("{facts}{:?}{:?}", captured.warnings, String::from_utf8_lossy(&sink.bytes("edits.patch")));
        assert!(!everything.contains("s3cret"));
        assert_eq!(
            std::fs::read(dir.join(".git/index")).unwrap(),
            index,
            "a capture writes nothing into the repository"
        );

        let back = bring_back(&sink, &captured);
        let tree = back.path().join("tree");
        for name in ["compose.yaml", "data.bin", "naïve \"name\"\n.txt"] {
            assert_eq!(std::fs::read(tree.join(name)).unwrap(), std::fs::read(dir.join(name)).unwrap(), "{name}");
        }
        assert_eq!(std::fs::read_link(tree.join("link")).unwrap(), Path::new("../elsewhere"));
        assert!(!tree.join("src/app.py").exists());
        assert_eq!(std::fs::metadata(tree.join("compose.yaml")).unwrap().permissions().mode() & 0o777, 0o755);
        let refs = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", "refs/stash"];
        assert_eq!(run(&tree, &refs), run(dir, &refs));
    }

    #[test]
    fn a_clean_tree_gives_equal_bytes_twice_and_little_new_after_a_commit() {
        let repository = repository();
        let dir = repository.path();
        let mut random = 1u64;
        for n in 0..40 {
            let lines: Vec<String> = (0..2000)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    format!("{:x}", random >> 16)
                })
                .collect();
            write(dir, &format!("big/{n}.txt"), lines.join("\n"));
        }
        run(dir, &["add", "."]);
        run(dir, &["commit", "-qm", "big"]);
        let (first, captured) = capture(dir);
        assert_eq!(
            (first.names(), &captured.facts["edits"]),
            (vec!["repository.bundle".to_owned()], &serde_json::Value::Null)
        );
        run(dir, &["gc", "-q", "--aggressive"]);
        let (second, _) = capture(dir);
        assert!(second.bytes("repository.bundle") == first.bytes("repository.bundle"), "a gc changes nothing");
        write(dir, "big/0.txt", "changed");
        run(dir, &["commit", "-qam", "change"]);
        let (third, _) = capture(dir);
        // Content-defined cutting finds the runs that stayed; here a plain search for blocks does.
        let (old, new) = (second.bytes("repository.bundle"), third.bytes("repository.bundle"));
        let blocks: std::collections::HashSet<&[u8]> = old.windows(4096).step_by(1).filter(|w| w[0] == 0x61).collect();
        let found = new.windows(4096).filter(|w| w[0] == 0x61 && blocks.contains(w)).count();
        let all = new.windows(4096).filter(|w| w[0] == 0x61).count();
        assert!(found * 10 > all * 9, "{found} of {all} blocks were there before");
    }

    #[test]
    fn odd_repositories_are_told_apart() {
        let empty = tempfile::tempdir().unwrap();
        let bench = Bench::new();
        let sink = MemorySink::new();
        let captured = source(empty.path(), true, true).capture(&bench.capture(&sink)).unwrap();
        assert_eq!(captured.facts, serde_json::json!({ "present": false }));
        assert!(sink.names().is_empty() && captured.warnings.len() == 1);
        let error = source(empty.path(), true, false).capture(&bench.capture(&sink)).unwrap_err();
        assert!(
            matches!(&error, SourceError::Problem { problem, hint: Some(_) } if problem.contains("is not a git repository")),
            "{error}"
        );
        assert!(source(empty.path(), true, false).probe(&Cancel::new()).is_err());

        // No commit yet, but files are staged.
        run(empty.path(), &["init", "-q"]);
        write(empty.path(), "a", "staged");
        run(empty.path(), &["add", "a"]);
        let (sink, captured) = capture(empty.path());
        assert_eq!((sink.names(), &captured.facts["head"]), (vec!["edits.patch".to_owned()], &serde_json::Value::Null));
        let fresh = tempfile::tempdir().unwrap();
        run(fresh.path(), &["init", "-q"]);
        std::fs::write(fresh.path().join("p"), sink.bytes("edits.patch")).unwrap();
        run(fresh.path(), &["apply", "p"]);
        assert_eq!(std::fs::read(fresh.path().join("a")).unwrap(), b"staged");

        // A detached head whose commit no ref reaches.
        let repository = repository();
        let dir = repository.path();
        run(dir, &["checkout", "-q", "--detach"]);
        write(dir, "lost", "x");
        run(dir, &["add", "."]);
        run(dir, &["commit", "-qm", "on no branch"]);
        let (sink, captured) = capture(dir);
        assert_eq!(captured.facts["branch"], serde_json::Value::Null);
        let back = bring_back(&sink, &captured);
        assert_eq!(std::fs::read(back.path().join("tree/lost")).unwrap(), b"x");

        // The folder of the compose project lies below; a folder that the repository above does not know is none of it.
        write(dir, "docker/compose.yaml", "x");
        run(dir, &["add", "."]);
        run(dir, &["commit", "-qm", "below"]);
        let (_, captured) = capture(&dir.join("docker"));
        assert_eq!(captured.facts["toplevel"], dir.canonicalize().unwrap().to_str().unwrap());
        std::fs::create_dir(dir.join("stranger")).unwrap();
        let captured = source(&dir.join("stranger"), true, true).capture(&bench.capture(&MemorySink::new())).unwrap();
        assert_eq!(captured.facts["present"], false);

        // Shallow and partial clones say so.
        let clones = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.display());
        run(clones.path(), &["clone", "-q", "--depth=1", "--branch=main", &url, "shallow"]);
        let (sink, captured) = capture(&clones.path().join("shallow"));
        assert_eq!(captured.facts["shallow"].as_array().unwrap().len(), 1);
        assert!(captured.warnings[0].contains("shallow") && sink.names() == ["repository.bundle"]);
        run(dir, &["config", "uploadpack.allowFilter", "true"]);
        run(clones.path(), &["clone", "-q", "--filter=blob:none", "--branch=main", &url, "partial"]);
        let (sink, captured) = capture(&clones.path().join("partial"));
        assert!(captured.warnings[0].contains("partial clone") && sink.names().is_empty());
    }

    #[test]
    fn submodules_are_captured_with_their_edits() {
        let inner = repository();
        let outer = repository();
        let dir = outer.path();
        run(dir, &["submodule", "--quiet", "add", inner.path().to_str().unwrap(), "libs/inner"]);
        run(dir, &["commit", "-qm", "with a submodule"]);
        write(dir, "libs/inner/src/app.py", "print(2)\n");
        let (sink, captured) = capture(dir);
        assert_eq!(sink.names(), ["repository.bundle", "submodule-1.bundle", "submodule-1.patch"]);
        let submodule = &captured.facts["submodules"][0];
        assert_eq!(submodule["path"], "libs/inner");
        assert_eq!(submodule["commit"], run(inner.path(), &["rev-parse", "HEAD"]));
        assert_eq!(submodule["commit"], submodule["repository"]["head"]["commit"]);
        assert_eq!(submodule["repository"]["edits"]["stream"], "submodule-1.patch");
        let patch = String::from_utf8(sink.bytes("submodule-1.patch")).unwrap();
        assert!(patch.contains("+print(2)"), "{patch}");
        assert_eq!(captured.facts["dirty"], false, "the outer tree itself has no edits");
    }

    #[test]
    fn nothing_that_the_tree_configures_is_run_and_its_owner_runs_git() {
        let repository = repository();
        let dir = repository.path();
        let canary = tempfile::tempdir().unwrap();
        let touch = |name: &str| format!("touch {}", canary.path().join(name).display());
        use std::os::unix::fs::PermissionsExt;
        for hook in ["post-index-change", "reference-transaction", "fsmonitor-watchman"] {
            let path = dir.join(".git/hooks").join(hook);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, format!("#!/bin/sh\n{}\n", touch(hook))).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (key, value) in [
            ("core.fsmonitor", touch("fsmonitor")),
            ("core.pager", touch("pager")),
            ("diff.external", touch("external")),
            ("diff.odd.command", touch("driver")),
            ("diff.odd.textconv", touch("textconv")),
            ("core.sshCommand", touch("ssh")),
            ("core.alternateRefsCommand", touch("alternate")),
            ("diff.noprefix", "true".into()),
            ("diff.orderFile", "/no/such/file".into()),
            ("color.ui", "always".into()),
        ] {
            run(dir, &["config", key, &value]);
        }
        write(dir, ".gitattributes", "*.yaml diff=odd\n");
        write(dir, "compose.yaml", "edited\n");
        let owned = Command::new("chown").args(["-R", "nobody"]).arg(dir).status().unwrap();
        assert!(owned.success(), "this test needs root");
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(canary.path(), mode).unwrap();
        let before = std::fs::metadata(dir.join(".git/index")).unwrap().modified().unwrap();
        let (sink, captured) = capture(dir);
        let left: Vec<_> = std::fs::read_dir(canary.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(left.is_empty(), "the tree's own settings ran {left:?}");
        assert_eq!(captured.facts["ran_as"], "nobody");
        assert_eq!(std::fs::metadata(dir.join(".git/index")).unwrap().modified().unwrap(), before);
        let patch = String::from_utf8(sink.bytes("edits.patch")).unwrap();
        assert!(patch.starts_with("diff --git a/compose.yaml b/compose.yaml\n") && !patch.contains('\x1b'), "{patch}");
    }

    #[test]
    fn a_damaged_repository_fails_and_leaves_no_bundle() {
        let repository = repository();
        let dir = repository.path();
        let blob = run(dir, &["rev-parse", "HEAD:src/app.py"]);
        std::fs::remove_file(dir.join(".git/objects").join(&blob[..2]).join(&blob[2..])).unwrap();
        let (sink, bench) = (MemorySink::new(), Bench::new());
        let error = source(dir, true, true).capture(&bench.capture(&sink)).unwrap_err();
        assert!(matches!(error, SourceError::Place(lifeboat::place::PlaceError::Failed { .. })), "{error:?}");
        assert!(!sink.names().contains(&"repository.bundle".to_owned()), "a bundle that broke off is none");
        bench.cancel.raise(2);
        let error = source(dir, true, true).capture(&bench.capture(&sink)).unwrap_err();
        assert!(matches!(error, SourceError::Place(lifeboat::place::PlaceError::Cancelled(_))), "{error:?}");
    }
}
