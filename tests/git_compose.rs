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

mod compose {
    use super::*;
    use crate::engine::{IMAGE, TestImage, TestProject, TestVolume, docker, engine, try_docker, unique};
    use lifeboat::policy::model::{ComposeSpec, Pin};
    use lifeboat::sources::compose::{ComposeSource, pin_repository, pin_tag, unpin};
    use serde_json::json;

    fn source(app: &App, pin: Pin, implicit: bool) -> ComposeSource {
        let spec = ComposeSpec { pin };
        ComposeSource::new(&policy("compose", implicit, SourceSpec::Compose(spec.clone())), &spec, app)
    }

    /// Names that are this test's alone, removed after its project.
    pub(super) struct Stack {
        _project: TestProject,
        _images: Vec<TestImage>,
        _network: Network,
        _volume: TestVolume,
        pub(super) dir: tempfile::TempDir,
        pub(super) name: String,
        pub(super) app: App,
    }

    struct Network(String);

    impl Drop for Network {
        fn drop(&mut self) {
            try_docker(["network", "rm", &self.0]);
        }
    }

    /// Two services of one image that was built here, a third that was scaled, an external network and volume.
    pub(super) fn stack() -> Stack {
        let name = unique("shop");
        let dir = tempfile::tempdir().unwrap();
        let image = format!("{}/app:1", name);
        let context = dir.path().join("context");
        std::fs::create_dir_all(&context).unwrap();
        std::fs::create_dir_all(dir.path().join("docker")).unwrap();
        std::fs::write(context.join("Dockerfile"), format!("FROM {IMAGE}\nCOPY marker /marker\n")).unwrap();
        std::fs::write(context.join("marker"), &name).unwrap();
        docker(["build", "-q", "-t", &image, context.to_str().unwrap()]);
        let network = Network(format!("{name}-proxy"));
        docker(["network", "create", &network.0]);
        let volume = TestVolume::new();
        let idle = "[\"sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 1; done\"]";
        let compose = format!(
            "services:\n  web:\n    image: {image}\n    command: {idle}\n    ports: [\"127.0.0.1:0:80\"]\n    environment:\n      TOKEN: ${{TOKEN}}\n    networks: [default, proxy]\n    restart: unless-stopped\n  Worker_1:\n    image: {image}\n    command: {idle}\n    deploy: {{ replicas: 2 }}\n    volumes: [\"data:/data\", \"old:/old:ro\"]\n  ops:\n    image: {IMAGE}\n    command: {idle}\n    profiles: [ops]\nvolumes:\n  data: {{}}\n  old: {{ external: true, name: {} }}\nnetworks:\n  proxy: {{ external: true, name: {} }}\n",
            volume.0, network.0
        );
        std::fs::write(dir.path().join("docker/compose.production.yml"), compose).unwrap();
        std::fs::write(dir.path().join("docker/compose.ports.yml"), "services: { web: { hostname: web-host } }\n")
            .unwrap();
        std::fs::write(dir.path().join(".env.prod"), "TOKEN=s3cret-canary\n").unwrap();
        let arguments = ["-f", "compose.production.yml", "-f", "compose.ports.yml", "--env-file", "../.env.prod"];
        let project = TestProject::up(&dir.path().join("docker"), &name, &arguments);
        let app = app(dir.path());
        let pins = ["web", "Worker_1", "ops"]
            .map(|s| format!("{}:{}", pin_repository(&app.name, s), pin_tag(&Bench::new().snapshot)));
        let images = pins.into_iter().chain([image]).map(TestImage).collect();
        Stack { _project: project, _images: images, _network: network, _volume: volume, dir, name, app }
    }

    #[test]
    fn what_runs_is_what_the_labels_say() {
        let stack = stack();
        let (sink, bench) = (MemorySink::new(), Bench::new());
        let before = docker([
            "ps",
            "-a",
            "--format",
            "{{.ID}} {{.Names}} {{.State}}",
            "--filter",
            &format!("label=com.docker.compose.project={}", stack.name),
        ]);
        let captured = source(&stack.app, Pin::Save, true).capture(&bench.capture(&sink)).unwrap();
        let facts = &captured.facts;
        assert_eq!(captured.warnings, Vec::<String>::new());
        assert_eq!((&facts["project"], &facts["running"]), (&json!(stack.name), &json!(true)));
        assert_eq!(facts["working_dir"], stack.dir.path().join("docker").to_str().unwrap());
        let files: Vec<(String, String)> = facts["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| (f["path"].as_str().unwrap().into(), f["role"].as_str().unwrap().into()))
            .collect();
        let expected = [
            ("docker/compose.production.yml", "compose"),
            ("docker/compose.ports.yml", "compose"),
            (".env.prod", "env"),
        ];
        assert_eq!(files, expected.map(|(p, r)| (p.to_owned(), r.to_owned())));
        for file in facts["files"].as_array().unwrap() {
            let bytes = std::fs::read(stack.dir.path().join(file["path"].as_str().unwrap())).unwrap();
            assert_eq!(sink.bytes(file["stream"].as_str().unwrap()), bytes);
        }
        assert!(!facts.to_string().contains("s3cret"), "facts hold no values of variables");

        let services = facts["services"].as_array().unwrap();
        let names: Vec<_> =
            services.iter().map(|s| (s["service"].as_str().unwrap(), s["scale"].as_u64().unwrap())).collect();
        assert_eq!(names, [("Worker_1", 2), ("web", 1)], "a profile that is not on does not run");
        let web = &services[1];
        assert_eq!(web["image_id"], docker(["image", "inspect", "-f", "{{.Id}}", web["image"].as_str().unwrap()]));
        assert_eq!(
            (&web["built_here"], &web["restart_policy"], &web["hostname"]),
            (&json!(true), &json!("unless-stopped"), &json!("web-host"))
        );
        assert_eq!(web["ports"][0][0], "80/tcp");
        let network = |suffix: &str, external: bool| json!({ "name": format!("{}{suffix}", stack.name), "driver": "bridge", "external": external });
        assert_eq!(facts["networks"], json!([network("-proxy", true), network("_default", false)]));
        let volumes: Vec<bool> =
            facts["volumes"].as_array().unwrap().iter().map(|v| v["external"].as_bool().unwrap()).collect();
        assert_eq!(volumes.iter().filter(|e| **e).count(), 1);
        assert_eq!(volumes.len(), 2);

        // The pins name the very images, and the saved one comes back by its pin.
        for service in services {
            let pin = service["pin"].as_str().unwrap();
            assert_eq!(service["image_id"], docker(["image", "inspect", "-f", "{{.Id}}", pin]));
        }
        let saved: Vec<_> = services.iter().map(|s| s["saved"].as_str().unwrap()).collect();
        assert_eq!(saved[0], saved[1], "an image that two services run is stored once");
        let pin = services[0]["pin"].as_str().unwrap();
        docker(["rmi", pin]);
        let file = stack.dir.path().join("image.tar");
        std::fs::write(&file, sink.bytes(saved[0])).unwrap();
        docker(["load", "-q", "-i", file.to_str().unwrap()]);
        assert_eq!(services[0]["image_id"], docker(["image", "inspect", "-f", "{{.Id}}", pin]));

        let engine = engine();
        unpin(&engine, &stack.app.name, "web", &bench.snapshot).unwrap();
        unpin(&engine, &stack.app.name, "web", &bench.snapshot).unwrap();
        assert!(engine.image(services[1]["pin"].as_str().unwrap()).unwrap().is_none());
        let after = docker([
            "ps",
            "-a",
            "--format",
            "{{.ID}} {{.Names}} {{.State}}",
            "--filter",
            &format!("label=com.docker.compose.project={}", stack.name),
        ]);
        assert_eq!(before, after, "a capture changes nothing that runs");
    }

    #[test]
    fn places_of_a_project_are_found_and_others_are_named() {
        use lifeboat::place::{Command, PlaceError};
        use lifeboat::policy::model::Target;
        use lifeboat::sources::project::Places;
        let stack = stack();
        let places = Places::new(&stack.app, &Cancel::new());
        let found = places.find(&Target::Service("web".into())).unwrap();
        assert_eq!(found.container.as_ref().unwrap().env("TOKEN").unwrap().expose(), "s3cret-canary");
        let marker = found.place.output(Command::new(["cat", "/marker"]), 1000).unwrap();
        assert_eq!(String::from_utf8(marker).unwrap(), stack.name);
        // It is recreated, under another id: the place is found anew.
        stack._project.compose(&["up", "-d", "--force-recreate", "--no-deps", "web"]);
        assert!(found.place.output(Command::new(["cat", "/marker"]), 1000).is_ok());
        let Err(error) = places.find(&Target::Service("db".into())) else {
            panic!("found a service that is not there")
        };
        assert!(
            matches!(&error, PlaceError::NoService { running, .. } if running == &["Worker_1", "web"]),
            "{error:?}"
        );
        assert!(error.hint().unwrap().contains("Worker_1, web"));
        stack._project.compose(&["stop", "-t", "1", "web"]);
        let Err(error) = places.find(&Target::Service("web".into())) else { panic!("found a stopped service") };
        assert!(matches!(&error, PlaceError::NotRunning { state, .. } if state == "exited"), "{error:?}");
        let elsewhere = Places::new(&app(Path::new("/no/such/root")), &Cancel::new());
        let Err(error) = elsewhere.find(&Target::Service("web".into())) else { panic!("took somebody else's service") };
        assert!(matches!(error, PlaceError::NoProject { .. }), "{error:?}");
        assert!(elsewhere.find(&Target::Host).unwrap().container.is_none());
    }

    #[test]
    fn files_alone_are_captured_when_nothing_runs() {
        engine();
        let dir = tempfile::tempdir().unwrap();
        let app = app(dir.path());
        let bench = Bench::new();
        let captured = source(&app, Pin::Tag, true).capture(&bench.capture(&MemorySink::new())).unwrap();
        assert_eq!((&captured.facts, captured.warnings.len()), (&json!({ "present": false }), 1));
        let error = source(&app, Pin::Tag, false).capture(&bench.capture(&MemorySink::new())).unwrap_err();
        assert!(matches!(error, SourceError::Problem { hint: Some(_), .. }), "{error:?}");
        assert!(source(&app, Pin::Tag, false).probe(&Cancel::new()).is_err());

        std::fs::write(dir.path().join("docker-compose.yml"), "services: {}\n").unwrap();
        std::fs::write(dir.path().join(".env"), "COMPOSE_PROFILES=ops\n").unwrap();
        let sink = MemorySink::new();
        let captured = source(&app, Pin::Tag, false).capture(&bench.capture(&sink)).unwrap();
        assert_eq!(sink.names(), ["%2Eenv", "docker-compose.yml"]);
        assert_eq!((&captured.facts["profiles"], &captured.facts["running"]), (&json!(["ops"]), &json!(false)));
        assert!(captured.warnings[0].contains("no container of the project"), "{:?}", captured.warnings);

        let mut gone = app.clone();
        gone.compose_files = vec![dir.path().join("docker-compose.yml"), dir.path().join("gone.yml")];
        let captured = source(&gone, Pin::Tag, false).capture(&bench.capture(&MemorySink::new())).unwrap();
        assert!(captured.warnings.iter().any(|w| w.contains("gone.yml")), "{:?}", captured.warnings);
        // What is no file is neither waited for nor passed over.
        let fifo = dir.path().join("fifo.yml");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        gone.compose_files = vec![fifo];
        let error = source(&gone, Pin::Tag, false).capture(&bench.capture(&MemorySink::new())).unwrap_err();
        assert!(matches!(error, SourceError::File { .. }), "{error:?}");
    }

    #[test]
    fn a_missing_engine_is_told_and_fails_only_what_needs_it() {
        // The address is read from the environment, so this runs in a process of its own.
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this)
            .args(["--ignored", "--exact", "compose::without_an_engine", "--nocapture"])
            .env("DOCKER_HOST", "unix:///no/such/docker.sock")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    #[ignore = "run by the test above, with another DOCKER_HOST"]
    fn without_an_engine() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("compose.yaml"), "services: {}\n").unwrap();
        let (sink, bench) = (MemorySink::new(), Bench::new());
        let captured = source(&app(dir.path()), Pin::Tag, true).capture(&bench.capture(&sink)).unwrap();
        assert_eq!(sink.names(), ["compose.yaml"]);
        assert!(captured.warnings[0].starts_with("docker does not answer at unix:///no/such/docker.sock"));
        let error = source(&app(dir.path()), Pin::Tag, false).capture(&bench.capture(&sink)).unwrap_err();
        let SourceError::Place(error) = error else { panic!("{error:?}") };
        assert!(error.hint().unwrap().contains("group docker"), "{error:?}");
    }
}

mod recovery {
    use super::*;
    use crate::compose::stack;
    use lifeboat::policy::Policy;
    use lifeboat::sources::recovery::RecoverySource;
    use serde_json::Value;

    fn whole_policy(app: App) -> Policy {
        let text = format!(
            "[app]\nname = \"shop\"\nroot = \"{}\"\n[repository]\nurl = \"/var/backups/lifeboat\"\nrecipients = [\"age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq\"]\n",
            app.root.display()
        );
        let mut policy = crate::minimal_policy(app);
        policy.text = text;
        policy.external = vec!["Supabase".into()];
        policy
    }

    fn capture(policy: &Policy) -> (Value, Captured, Vec<u8>) {
        let (sink, bench) = (MemorySink::new(), Bench::new());
        let source = RecoverySource::new("recovery".parse().unwrap(), policy);
        let captured = source.capture(&bench.capture(&sink)).unwrap();
        let bytes = sink.bytes("recovery.json");
        (serde_json::from_slice(&bytes).unwrap(), captured, bytes)
    }

    #[test]
    fn the_bundle_tells_what_a_bare_machine_needs_and_is_equal_twice() {
        let stack = stack();
        let owned = Command::new("chown").args(["daemon:daemon"]).arg(stack.dir.path()).status().unwrap();
        assert!(owned.success(), "this test needs root");
        let policy = whole_policy(stack.app.clone());
        let (bundle, captured, bytes) = capture(&policy);
        assert_eq!(bundle["policy"]["text"], policy.text.as_str());
        assert_eq!(bundle["not_restored"][0], "Supabase");
        let accounts: Vec<_> =
            bundle["accounts"].as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
        assert_eq!(accounts, ["root", "daemon"]);
        let packages = &bundle["packages"];
        let version = Command::new("dpkg-query").args(["-W", "-f", "${Version}", "git"]).output().unwrap();
        assert_eq!(
            (packages["manager"].as_str(), packages["installed"]["git"].as_str().unwrap().as_bytes()),
            (Some("dpkg"), &version.stdout[..])
        );
        assert!(bundle["crontabs"].as_array().unwrap().iter().all(|c| c["path"].is_string() && c["text"].is_string()));
        let docker = &bundle["docker"];
        assert_eq!(docker["engine"], crate::engine::docker(["version", "-f", "{{.Server.Version}}"]));
        assert_eq!(docker["project"], stack.name);
        assert_eq!(docker["external_networks"][0]["name"], format!("{}-proxy", stack.name));
        assert_eq!(docker["external_networks"].as_array().unwrap().len(), 1);
        assert_eq!(docker["external_volumes"].as_array().unwrap().len(), 1);
        let label = &docker["containers"][format!("{}-web-1", stack.name)]["labels"]["com.docker.compose.service"];
        assert_eq!(label, "web");
        assert!(!captured.facts.to_string().contains("Version"));
        assert_eq!(captured.facts["external_networks"], 1);
        let (_, _, again) = capture(&policy);
        assert!(bytes == again, "an unchanged machine gives equal bytes");
        assert!(!String::from_utf8_lossy(&bytes).contains("s3cret-canary"), "it holds no environment of containers");
    }

    #[test]
    fn what_cannot_be_had_is_noted_and_fails_nothing() {
        let policy = whole_policy(app(Path::new("/no/such/root")));
        let (bundle, captured, _) = capture(&policy);
        let notes: Vec<_> = bundle["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        assert!(notes.iter().any(|n| n.starts_with("/no/such/root: ")), "{notes:?}");
        assert!(notes.iter().any(|n| n.contains("no container of a compose project")), "{notes:?}");
        assert_eq!(captured.facts["notes"], bundle["notes"]);
    }
}

/// A policy of which only `app` matters.
fn minimal_policy(app: App) -> lifeboat::policy::Policy {
    use lifeboat::policy::model::*;
    use std::time::Duration;
    Policy {
        file: "/etc/lifeboat/policies/shop.toml".into(),
        text: String::new(),
        app,
        repository: Repository {
            url: RepositoryUrl::Local("/var/backups/lifeboat".into()),
            reach: Reach {
                endpoint: None,
                region: None,
                credentials: Credentials::Default,
                path_style: false,
                limit_upload: None,
                object_lock: None,
            },
            recipients: vec![],
            identity: None,
            compression: 3,
            min_free: MinFree::Percent(10.0),
            copies: vec![],
        },
        schedule: Schedule {
            timezone: None,
            snapshot: When::Off,
            verify: When::Off,
            drill: When::Off,
            prune: When::Off,
            catch_up: true,
            jitter: Duration::ZERO,
            retries: 0,
            retry: Duration::from_secs(60),
            time_limit: Duration::from_secs(3600),
        },
        retention: Retention {
            keep_last: 3,
            keep_hourly: 0,
            keep_daily: 7,
            keep_weekly: 4,
            keep_monthly: 6,
            keep_yearly: 0,
            keep_within: None,
            keep_tagged: true,
            max_age: None,
        },
        sources: vec![],
        external: vec![],
        hooks: Hooks::default(),
        health: vec![],
        rollback: Rollback { stop: vec![], up: None, downgrade: None, keep_old: Duration::ZERO },
        drill: Drill { postgres: DrillPostgres::Auto, memory: 0, max_age: Duration::ZERO, checks: vec![] },
        notify: vec![],
    }
}
