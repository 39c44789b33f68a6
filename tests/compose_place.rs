//! A compose project put back: real images under one name, real containers, the real Compose; and the old one's manners.

#[path = "support/docker.rs"]
mod engine;
#[path = "support/port.rs"]
mod port;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/taken.rs"]
mod taken;

use engine::{IMAGE, TestContainer, TestProject, docker, engine, try_docker, unique};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::base::ids::SnapshotId;
use lifeboat::place::compose::{ComposeProject, UpSet};
use lifeboat::place::{Compose, PlaceError};
use lifeboat::policy::model::SourceSpec;
use lifeboat::policy::{self, Policy};
use lifeboat::sources::SourceError;
use lifeboat::sources::compose::{ComposeSource, live, planned, recorded};
use lifeboat::sources::placing::{Intent, Part, Placing, Scene, Stored};
use lifeboat::sources::placings::placing;
use lifeboat::sources::project::Places;
use port::free_port;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use taken::Taken;

const ID: &str = "20261120T030000Z-5e6f7a8b";
const SNAPSHOT: &str = "20261119T020000Z-1a2b3c4d";
const IDLE: &str = "[\"sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]";
/// What a child of this test is told: a folder with everything in it, and what it shall do.
const CHILD: &str = "LIFEBOAT_TEST_CHILD";
const STEP: &str = "LIFEBOAT_TEST_STEP";

/// An application in a folder, with an image of its own.
struct Stack {
    /// Goes first: its containers use the image.
    project: TestProject,
    bench: Bench,
    image: String,
    _images: Images,
    network: Option<Network>,
    dir: tempfile::TempDir,
}

/// Every name that a test gave to an image.
struct Images {
    image: String,
    policy: String,
}

impl Drop for Images {
    fn drop(&mut self) {
        let ours = docker(["images", "--format", "{{.Repository}}:{{.Tag}}", &format!("lifeboat/{}-*", self.policy)]);
        // Some have lost their name to a newer one.
        let built = docker(["images", "-q", "--no-trunc", "--filter", &format!("label=of={}", self.image)]);
        for image in ours.lines().chain([self.image.as_str()]).chain(built.lines()) {
            try_docker(["rmi", "-f", image]);
        }
    }
}

/// What a transaction hands to every step.
struct Bench {
    policy: Policy,
    placing: Box<dyn Placing>,
    folder: tempfile::TempDir,
    cancel: Cancel,
    snapshot: SnapshotId,
}

impl Bench {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop.toml");
        fs::write(&file, text).unwrap();
        let policy = policy::parse(&file, text).unwrap_or_else(|e| panic!("{e:?}"));
        let cancel = Cancel::new();
        let source = policy.sources.iter().find(|s| s.spec.kind() == "compose").unwrap();
        let placing = placing(&policy, source, folder.path(), &cancel).unwrap();
        Self { policy, placing, folder, cancel, snapshot: SNAPSHOT.parse().unwrap() }
    }

    fn capture(&self) -> Taken {
        let source = self.policy.sources.iter().find(|s| s.spec.kind() == "compose").unwrap();
        let SourceSpec::Compose(spec) = &source.spec else { panic!("a compose source") };
        Taken::of(&ComposeSource::new(source, spec, &self.policy.app))
    }

    fn run<T>(&self, step: impl FnOnce(&dyn Placing, &Scene<'_>) -> Result<T, SourceError>) -> Result<T, SourceError> {
        let places = Places::new(&self.policy.app, &self.cancel);
        let scene = Scene {
            id: ID,
            name: &"compose".parse().unwrap(),
            policy: &self.policy,
            places: &places,
            folder: self.folder.path(),
            events: &Events::none(),
            cancel: &self.cancel,
            now: chrono::Utc::now(),
        };
        step(&*self.placing, &scene)
    }

    fn plan(&self, taken: &Taken) -> Result<Intent, SourceError> {
        let stored = Stored { snapshot: &self.snapshot, streams: taken, facts: &taken.facts };
        self.run(|p, scene| p.plan(scene, &stored, &Part::default()))
    }

    fn prepare(&self, taken: &Taken, intent: &Intent) -> Result<(), SourceError> {
        let stored = Stored { snapshot: &self.snapshot, streams: taken, facts: &taken.facts };
        self.run(|p, scene| p.prepare(scene, &stored, intent))
    }

    fn settle(&self, taken: &Taken, intent: &Intent) -> Result<(), SourceError> {
        let stored = Stored { snapshot: &self.snapshot, streams: taken, facts: &taken.facts };
        self.run(|p, scene| p.settle(scene, &stored, intent))
    }

    fn step(&self, step: &str, intent: &Intent) -> Result<(), SourceError> {
        self.run(|p, scene| match step {
            "switch" => p.switch(scene, intent),
            "confirm" => p.confirm(scene, intent),
            "back" => p.back(scene, intent),
            "discard_new" => p.discard_new(scene, intent),
            "discard_old" => p.discard_old(scene, intent),
            other => panic!("{other}"),
        })
    }

    fn steps(&self, steps: &[&str], intent: &Intent) {
        for step in steps {
            self.step(step, intent).unwrap_or_else(|e| panic!("{step}: {}", full(&e)));
        }
    }

    fn live(&self) -> (ComposeProject, UpSet) {
        let places = Places::new(&self.policy.app, &self.cancel);
        live(&places.project().unwrap().expect("a project that is there"), &self.policy.app)
    }

    fn refused(&self, taken: &Taken) -> String {
        let error = self.plan(taken).map(|i| i.lines).unwrap_err();
        assert!(error.way_out().is_some(), "no way out of {error}");
        full(&error)
    }
}

fn full(error: &dyn std::error::Error) -> String {
    let texts = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}

impl Stack {
    /// Version 1 of an application runs. `{image}` in `compose` is its image; `more` are further sources.
    fn up(compose: &str, pin: &str, more: &str, arguments: &[&str], fill: impl FnOnce(&Path)) -> Self {
        engine();
        let name = unique("shop");
        let image = format!("{name}/app:1");
        let dir = tempfile::Builder::new().prefix("lifeboat-compose-").tempdir().unwrap();
        let root = dir.path().join("app");
        fs::create_dir_all(root.join("docker")).unwrap();
        fs::write(root.join("docker/compose.yaml"), compose.replace("{image}", &image).replace("{idle}", IDLE))
            .unwrap();
        fill(&root);
        let images = Images { image: image.clone(), policy: name.clone() };
        build(&root, &image, "one");
        let text = format!(
            "[app]\nname = {name:?}\nroot = {root:?}\n[repository]\nurl = \"/nowhere/repository\"\n\
             recipients = [\"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\"]\n\
             [[source]]\nkind = \"compose\"\nname = \"compose\"\npin = {pin:?}\n{}",
            more.replace("{root}", root.to_str().unwrap())
        );
        let bench = Bench::new(&text);
        let project = TestProject::up(&root.join("docker"), &name, arguments);
        Self { project, bench, image, _images: images, network: None, dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("app")
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap()
    }

    /// Changes a file of the application.
    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.file(name);
        assert!(text.contains(from), "{from:?} is not in {text}");
        fs::write(self.root().join(name), text.replace(from, to)).unwrap();
    }

    /// The version of the application that a service runs.
    fn version(&self, service: &str) -> String {
        self.inside(service, &["cat", "/marker"])
    }

    fn inside(&self, service: &str, argv: &[&str]) -> String {
        let name = format!("{}-{service}-1", self.project.name);
        docker([&["exec", name.as_str()], argv].concat())
    }

    /// The id of the image that has a name.
    fn id_of(&self, name: &str) -> Option<String> {
        id_of(name)
    }

    /// Names of ours that today's image has for the transaction.
    fn kept(&self) -> Vec<String> {
        let pattern = format!("lifeboat/{}-*", self.project.name);
        let names = docker(["images", "--format", "{{.Repository}}:{{.Tag}}", &pattern]);
        names.lines().filter(|n| n.ends_with("-old")).map(str::to_owned).collect()
    }

    fn running(&self) -> Vec<String> {
        let filter = format!("label=com.docker.compose.project={}", self.project.name);
        let names = docker(["ps", "--filter", &filter, "--format", "{{.Names}}"]);
        let mut names: Vec<String> =
            names.lines().map(|n| n.trim_start_matches(&self.project.name).to_owned()).collect();
        names.sort();
        names
    }
}

fn id_of(name: &str) -> Option<String> {
    let output = try_docker(["image", "inspect", "-f", "{{.Id}}", name]);
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// Builds a version of the application under the one name.
fn build(root: &Path, image: &str, version: &str) {
    let context = root.join("docker/context");
    fs::create_dir_all(&context).unwrap();
    // Unlike any other test's from the first step on, so that no layer is shared: its owner may remove it just now.
    fs::write(context.join("Dockerfile"), format!("FROM {IMAGE}\nLABEL of={image}\nCOPY marker /marker\n")).unwrap();
    fs::write(context.join("marker"), format!("{version}\n")).unwrap();
    docker(["build", "-q", "-t", image, context.to_str().unwrap()]);
}

fn compose() -> Compose {
    Compose::find(&Cancel::new()).unwrap()
}

const WHOLE: &str = "
services:
  web:
    image: {image}
    command: {idle}
    environment: { LEVEL: one, TOKEN: \"${TOKEN}\" }
    ports: [\"127.0.0.1:0:80\"]
    networks: [default, proxy]
    depends_on: { job: { condition: service_completed_successfully } }
  worker:
    image: {image}
    command: {idle}
  job:
    image: {image}
    command: [\"sh\", \"-c\", \"date +%s%N >> /out/runs\"]
    volumes: [\"./out:/out\"]
  ops:
    image: {image}
    command: {idle}
    profiles: [ops]
networks:
  proxy: { external: true, name: \"${PROXY}\" }
";

struct Network(String);

impl Drop for Network {
    fn drop(&mut self) {
        try_docker(["network", "rm", &self.0]);
    }
}

const ARGUMENTS: [&str; 4] = ["--env-file", "../prod.env", "--profile", "ops"];

fn whole(pin: &str) -> Stack {
    engine();
    let network = Network(unique("lifeboat-proxy"));
    docker(["network", "create", &network.0]);
    let mut stack = Stack::up(WHOLE, pin, "", &ARGUMENTS, |root| {
        fs::write(root.join("prod.env"), format!("TOKEN=canary-one\nPROXY={}\n", network.0)).unwrap();
        fs::set_permissions(root.join("prod.env"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(root.join("docker/out")).unwrap();
        fs::set_permissions(root.join("docker/out"), fs::Permissions::from_mode(0o777)).unwrap();
    });
    stack.project.compose(&["up", "-d", "--no-deps", "--scale", "worker=2", "worker"]);
    stack.network = Some(network);
    stack
}

/// Version 2 under the same name, with a further service, other files, and one worker.
fn deploy(stack: &Stack) {
    stack.edit("docker/compose.yaml", "LEVEL: one", "LEVEL: two");
    stack.edit("docker/compose.yaml", "  ops:", &format!("  added:\n    image: {IMAGE}\n    command: {IDLE}\n  ops:"));
    stack.edit("prod.env", "canary-one", "canary-two");
    build(&stack.root(), &stack.image, "two");
    stack.project.compose(&["up", "-d", "--no-deps", "web", "worker", "ops", "added"]);
    assert_eq!(stack.version("web"), "two");
}

#[test]
fn the_old_image_runs_again_and_the_new_one_comes_back() {
    let stack = whole("tag");
    let bench = &stack.bench;
    let first = stack.id_of(&stack.image).unwrap();
    let taken = bench.capture();
    let was = stack.running();
    assert_eq!(was, ["-ops-1", "-web-1", "-worker-1", "-worker-2"]);
    let (project, set) = recorded(&taken.facts, &bench.policy.app).unwrap();
    let worker = |n| vec![("ops".to_owned(), 1), ("web".to_owned(), 1), ("worker".to_owned(), n)];
    assert_eq!(set, UpSet { services: worker(2), build: vec![] });
    assert_eq!((project.name.as_str(), &project.dir), (stack.project.name.as_str(), &stack.root().join("docker")));
    assert_eq!(project.files, [stack.root().join("docker/compose.yaml")]);
    assert_eq!(project.env_files, [stack.root().join("prod.env")]);
    assert_eq!(bench.live(), (project.clone(), set.clone()), "what runs is what was recorded");
    let runs = stack.file("docker/out/runs");

    deploy(&stack);
    let second = stack.id_of(&stack.image).unwrap();
    let (today, running) = bench.live();
    assert_eq!(running.services.iter().map(|(s, _)| s.as_str()).collect::<Vec<_>>(), ["added", "ops", "web", "worker"]);
    let intent = bench.plan(&taken).unwrap_or_else(|e| panic!("{}", full(&e)));
    let said = intent.lines.join("\n");
    for part in
        ["comes up by docker compose 2.", "worker (2)", "becomes ", "and stop: added", "2 entries changed since"]
    {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert_eq!(intent.warnings, Vec::<String>::new());
    assert_eq!(planned(&intent).unwrap(), (project.clone(), set.clone()));
    assert!(!serde_json::to_string(&intent).unwrap().contains("canary"), "a journal holds no secret");

    bench.prepare(&taken, &intent).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    assert_eq!((stack.id_of(&stack.image).unwrap(), stack.version("web").as_str()), (second.clone(), "two"));
    assert!(stack.file("docker/compose.yaml").contains("LEVEL: two"));
    bench.settle(&taken, &intent).unwrap();
    bench.steps(&["switch", "switch"], &intent);
    assert_eq!(stack.id_of(&stack.image).unwrap(), first);
    let error = bench.step("confirm", &intent).unwrap_err().to_string();
    assert!(error.contains("-ops-1 runs image "), "{error}");
    let places = Places::new(&bench.policy.app, &bench.cancel);
    let others = |set: &UpSet| {
        let containers = places.project().unwrap().unwrap().containers;
        set.others(&containers).iter().map(|c| c.compose().unwrap().service).collect::<Vec<_>>()
    };
    // A finished job is of no set, and neither is what came later.
    assert_eq!(others(&set), ["added", "job"]);
    docker(["stop", "-t", "1", &format!("{}-added-1", stack.project.name)]);
    compose().create(&project, &set).unwrap();
    compose().up(&project, &set).unwrap();
    bench.steps(&["confirm"], &intent);
    docker(["stop", "-t", "1", &format!("{}-worker-2", stack.project.name)]);
    let error = bench.step("confirm", &intent).unwrap_err().to_string();
    assert_eq!(error, "service worker has 1 of 2 containers up");
    compose().up(&project, &set).unwrap();
    assert_eq!(stack.running(), was);
    for service in ["web", "worker", "ops"] {
        assert_eq!(stack.version(service), "one");
    }
    assert_eq!(stack.inside("web", &["sh", "-c", "echo $LEVEL $TOKEN"]), "one canary-one");
    assert_eq!(stack.file("docker/out/runs"), runs, "a job that had finished did not run again");
    let env = fs::metadata(stack.root().join("prod.env")).unwrap();
    assert_eq!((env.mode() & 0o7777, stack.kept().len()), (0o600, 1));

    bench.steps(&["back", "back"], &intent);
    compose().up(&today, &running).unwrap();
    assert_eq!((stack.id_of(&stack.image).unwrap(), stack.version("web").as_str()), (second.clone(), "two"));
    assert_eq!(stack.inside("web", &["sh", "-c", "echo $LEVEL $TOKEN"]), "two canary-two");
    bench.steps(&["discard_new", "discard_new"], &intent);
    assert_eq!(stack.kept(), Vec::<String>::new());
    assert_eq!((bench.live(), fs::read_dir(stack.root()).unwrap().count()), ((today, running), 2));

    // And for good: today's image goes when it has been kept long enough.
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    bench.steps(&["switch"], &intent);
    compose().up(&project, &set).unwrap();
    bench.steps(&["confirm"], &intent);
    assert!(stack.id_of(&second).is_some(), "it is kept until then");
    bench.steps(&["discard_old", "discard_old"], &intent);
    assert_eq!((stack.id_of(&second), stack.kept().len(), stack.version("web").as_str()), (None, 0, "one"));
    let pin = taken.facts["services"][1]["pin"].as_str().unwrap();
    assert_eq!(stack.id_of(pin), Some(first), "the snapshot's pin stays");
}

const SMALL: &str = "
services:
  web:
    image: {image}
    build: ./context
    command: {idle}
    stop_grace_period: 1s
";

/// What `docker system prune -a` does to an image that nothing runs.
fn lose(stack: &Stack, taken: &Taken, id: &str) {
    let pin = taken.facts["services"][0]["pin"].as_str().unwrap();
    docker(["rmi", pin]);
    assert_eq!(stack.id_of(id), None, "it has no name any more and is gone");
}

#[test]
fn an_image_that_is_gone_comes_from_the_snapshot() {
    let stack = Stack::up(SMALL, "save", "", &[], |_| {});
    let bench = &stack.bench;
    let first = stack.id_of(&stack.image).unwrap();
    let taken = bench.capture();
    build(&stack.root(), &stack.image, "two");
    stack.project.compose(&["up", "-d"]);
    let second = stack.id_of(&stack.image).unwrap();
    lose(&stack, &taken, &first);
    let intent = bench.plan(&taken).unwrap();
    assert!(intent.lines.join("\n").contains("from the snapshot (today it is "), "{:?}", intent.lines);
    bench.prepare(&taken, &intent).unwrap();
    bench.steps(&["switch"], &intent);
    let (project, set) = planned(&intent).unwrap();
    compose().up(&project, &set).unwrap();
    bench.steps(&["confirm"], &intent);
    assert_eq!((stack.version("web").as_str(), stack.id_of(&stack.image)), ("one", Some(first.clone())));
    bench.steps(&["back"], &intent);
    compose().up(&project, &set).unwrap();
    bench.steps(&["discard_new"], &intent);
    assert_eq!((stack.version("web").as_str(), stack.id_of(&stack.image)), ("two", Some(second)));
    let pin = taken.facts["services"][0]["pin"].as_str().unwrap();
    assert_eq!(stack.id_of(pin), Some(first.clone()), "the snapshot is pinned again");

    // A saved image that is cut short is no image; nothing has been switched by then.
    lose(&stack, &taken, &first);
    let mut cut = taken.clone();
    let stream = taken.facts["services"][0]["saved"].as_str().unwrap().to_owned();
    let half = cut.bytes(&stream).len() / 2;
    cut.bytes(&stream).truncate(half);
    let intent = bench.plan(&cut).unwrap();
    let error = bench.prepare(&cut, &intent).unwrap_err();
    assert_eq!((stack.version("web").as_str(), stack.id_of(&first)), ("two", None), "{}", full(&error));
    bench.steps(&["discard_new"], &intent);
}

#[test]
fn an_image_that_nobody_has_is_built_again() {
    let stack = Stack::up(SMALL, "tag", "", &[], |_| {});
    let bench = &stack.bench;
    let first = stack.id_of(&stack.image).unwrap();
    let taken = bench.capture();
    build(&stack.root(), &stack.image, "two");
    stack.project.compose(&["up", "-d"]);
    let second = stack.id_of(&stack.image).unwrap();
    lose(&stack, &taken, &first);
    let intent = bench.plan(&taken).unwrap();
    assert!(intent.warnings[0].contains("service web is built again, which is not identical"), "{:?}", intent.warnings);
    let (project, set) = planned(&intent).unwrap();
    assert_eq!(set.build, ["web"]);
    bench.prepare(&taken, &intent).unwrap();
    bench.steps(&["switch"], &intent);
    // The code of then, as git brings it.
    fs::write(stack.root().join("docker/context/marker"), "one, anew\n").unwrap();
    compose().up(&project, &set).unwrap();
    bench.steps(&["confirm"], &intent);
    assert_eq!(stack.version("web"), "one, anew");
    bench.steps(&["back"], &intent);
    assert_eq!(stack.id_of(&stack.image), Some(second));
    compose().up(&project, &UpSet { build: vec![], ..set }).unwrap();
    assert_eq!(stack.version("web"), "two");
    bench.steps(&["discard_new"], &intent);
    assert_eq!(stack.kept(), Vec::<String>::new());
}

#[test]
fn a_name_that_was_nobodys_is_nobodys_again_and_one_that_somebody_takes_is_theirs() {
    let stack = Stack::up(SMALL, "tag", "", &[], |_| {});
    let bench = &stack.bench;
    let first = stack.id_of(&stack.image).unwrap();
    let taken = bench.capture();
    docker(["rmi", &stack.image]);
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    bench.steps(&["switch"], &intent);
    assert_eq!(stack.id_of(&stack.image), Some(first));
    bench.steps(&["back", "discard_new"], &intent);
    assert_eq!(stack.id_of(&stack.image), None);
    // Somebody builds after the plan: settling tells it, and going back leaves it to them.
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    build(&stack.root(), &stack.image, "theirs");
    let theirs = stack.id_of(&stack.image);
    let error = bench.settle(&taken, &intent).unwrap_err();
    assert!(error.to_string().contains("is not the one of the plan any more"), "{error}");
    assert!(bench.step("switch", &intent).is_err());
    bench.steps(&["back", "discard_new"], &intent);
    assert_eq!(stack.id_of(&stack.image), theirs);
}

const PORTS: &str = "
services:
  web:
    image: {image}
    command: {idle}
    container_name: {image-name}-api
    ports: [\"127.0.0.1:{port}:80\"]
    stop_grace_period: 1s
";

#[test]
fn what_stands_in_the_way_is_told_before_anything_goes_down() {
    let (one, other) = (free_port(), free_port());
    let name = unique("lifeboat-test");
    let text = PORTS.replace("{port}", &one.to_string()).replace("{image-name}", &name);
    let stack = Stack::up(&text, "tag", "", &[], |_| {});
    let bench = &stack.bench;
    let taken = bench.capture();
    let before = docker(["ps", "-aq", "--no-trunc", "--filter", &format!("name={name}")]);
    bench.plan(&taken).unwrap_or_else(|e| panic!("{}", full(&e)));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut taken = taken.clone();
        change(&mut taken.facts);
        bench.refused(&taken)
    };
    let said = with(&|f| f["project"] = json!("shop-test"));
    assert!(said.contains("the compose project was \"shop-test\" and is"), "{said}");
    let said = with(&|f| f["services"][0]["containers"][0]["name"] = json!("another-api"));
    assert!(said.contains("was named \"another-api\" and is named") && said.contains(&name), "{said}");
    let network = json!([{ "name": "lifeboat-no-such-network", "driver": "bridge", "external": true }]);
    let said = with(&|f| f["networks"] = network.clone());
    assert!(said.contains("the external network \"lifeboat-no-such-network\" is not there"), "{said}");
    let volume = json!([{ "name": "lifeboat-no-such-volume", "driver": "local", "external": true }]);
    let said = with(&|f| f["volumes"] = volume.clone());
    assert!(said.contains("the external volume \"lifeboat-no-such-volume\""), "{said}");

    // A service that does not run today meets a program of the host, another's container, another's name.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = listener.local_addr().unwrap().port();
    let neighbour = TestContainer::idle(&["-p", "127.0.0.1:0:80"]);
    let published = docker(["port", &neighbour.id, "80"]);
    let gone = |f: &mut Value, at: &str| {
        let mut service = f["services"][0].clone();
        service["service"] = json!("gone");
        service["ports"] = json!([["80/tcp", at]]);
        service["containers"][0]["name"] = json!(format!("{}-gone-1", stack.project.name));
        f["services"].as_array_mut().unwrap().push(service);
    };
    let said = with(&|f| gone(f, &format!("127.0.0.1:{taken_port}")));
    assert!(said.contains(&format!("port 127.0.0.1:{taken_port} of service gone is taken by a program")), "{said}");
    // What the engine chose stands only in what it publishes; the plan is asked with a fixed one of the same number.
    let fixed = TestContainer::idle(&["-p", &format!("127.0.0.1:{other}:80")]);
    let said = with(&|f| gone(f, &format!("0.0.0.0:{other}")));
    assert!(said.contains(&format!("taken by container {}", fixed.name)), "{said}");
    let said = with(&|f| gone(f, &published));
    assert!(said.contains("is taken by a program of this host"), "{said}");
    let said = with(&|f| {
        gone(f, "127.0.0.1:0");
        f["services"][1]["containers"][0]["name"] = json!(neighbour.name);
    });
    assert!(said.contains(&format!("has the name {:?} of service gone", neighbour.name)), "{said}");
    drop((listener, fixed));

    // The other instance's ports, as an edit of a tracked file has them.
    let after = docker(["ps", "-aq", "--no-trunc", "--filter", &format!("name={name}")]);
    assert_eq!(before, after);
    stack.edit("docker/compose.yaml", &one.to_string(), &other.to_string());
    stack.project.compose(&["up", "-d"]);
    let said = bench.refused(&taken);
    let expected = format!("published 127.0.0.1:{one} for 80/tcp and publishes 127.0.0.1:{other} for 80/tcp today");
    assert!(said.contains(&expected), "{said}");
    // Several at once are told at once.
    stack.edit("docker/compose.yaml", &name, &format!("{name}-x"));
    stack.project.compose(&["up", "-d"]);
    let said = bench.refused(&taken);
    assert!(said.contains(&expected) && said.contains("is named"), "{said}");
}

#[test]
fn only_files_that_nobody_else_brings_are_put_back() {
    let more = "[[source]]\nkind = \"git\"\n[[source]]\nkind = \"env\"\npaths = [\"{root}/.env.*\"]\n\
                [[source]]\nkind = \"files\"\nname = \"kept\"\npaths = [\"{root}/docker/kept\"]\n";
    let text = "
include: [parts/more.yaml]
services:
  web:
    extends: { file: common/base.yaml, service: base }
    image: {image}
    command: {idle}
    env_file: [secrets/web.env, kept/k.env]
    secrets: [key]
secrets:
  key: { file: secrets/key }
";
    let git = |root: &Path, arguments: &[&str]| {
        let fixed = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-C", root.to_str().unwrap()];
        assert!(Command::new("git").args(fixed).args(arguments).status().unwrap().success());
    };
    let stack = Stack::up(text, "tag", more, &["--env-file", "../.env.prod"], |root| {
        for (name, text) in [
            (".env.prod", "TOKEN=canary-env\n"),
            (".gitignore", "secrets\nkept\n.env*\n"),
            ("docker/secrets/web.env", "WEB=canary-web\n"),
            ("docker/secrets/key", "canary-key\n"),
            ("docker/kept/k.env", "K=canary-kept\n"),
            ("docker/parts/more.yaml", "services: {}\n"),
            ("docker/common/base.yaml", "services: { base: { stop_grace_period: 1s } }\n"),
        ] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
        fs::set_permissions(root.join("docker/secrets/key"), fs::Permissions::from_mode(0o640)).unwrap();
        git(root, &["init", "-q"]);
        git(root, &["add", "."]);
        git(root, &["commit", "-qm", "one"]);
    });
    let bench = &stack.bench;
    let taken = bench.capture();
    let files: Vec<(&str, &str, bool)> = taken.facts["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["path"].as_str().unwrap(), f["role"].as_str().unwrap(), f["tracked"].as_bool().unwrap()))
        .collect();
    let expected = [
        ("docker/compose.yaml", "compose", true),
        (".env.prod", "env", false),
        ("docker/parts/more.yaml", "included", true),
        ("docker/common/base.yaml", "extended", true),
        ("docker/secrets/web.env", "service-env", false),
        ("docker/kept/k.env", "service-env", false),
        ("docker/secrets/key", "secret", false),
    ];
    assert_eq!(files, expected);
    assert!(!taken.facts.to_string().contains("canary"), "facts hold no secret");
    assert_eq!(recorded(&taken.facts, &bench.policy.app).unwrap().0.files, [stack.root().join("docker/compose.yaml")]);

    fs::remove_dir_all(stack.root().join("docker/secrets")).unwrap();
    for file in ["docker/kept/k.env", ".env.prod", "docker/common/base.yaml"] {
        fs::write(stack.root().join(file), "X=today\n").unwrap();
    }
    let intent = bench.plan(&taken).unwrap_or_else(|e| panic!("{}", full(&e)));
    assert!(intent.lines.join("\n").contains("3 entries missing and brought back: "), "{:?}", intent.lines);
    bench.prepare(&taken, &intent).unwrap();
    bench.settle(&taken, &intent).unwrap();
    assert!(!stack.root().join("docker/secrets").exists());
    bench.steps(&["switch"], &intent);
    assert_eq!(
        (stack.file("docker/secrets/web.env").as_str(), stack.file("docker/secrets/key").as_str()),
        ("WEB=canary-web\n", "canary-key\n")
    );
    let key = fs::metadata(stack.root().join("docker/secrets/key")).unwrap();
    assert_eq!(key.mode() & 0o7777, 0o640);
    for file in ["docker/kept/k.env", ".env.prod", "docker/common/base.yaml"] {
        assert_eq!(stack.file(file), "X=today\n", "another source brings {file}");
    }
    bench.steps(&["back", "discard_new"], &intent);
    assert!(!stack.root().join("docker/secrets").exists());
    // Who reads a link in its place follows it today; nothing follows it later.
    fs::create_dir(stack.root().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", stack.root().join("docker/secrets")).unwrap();
    let intent = bench.plan(&taken).unwrap_or_else(|e| panic!("{}", full(&e)));
    bench.prepare(&taken, &intent).unwrap();
    bench.steps(&["switch"], &intent);
    assert_eq!(stack.file("elsewhere/key"), "canary-key\n");
    bench.steps(&["discard_old"], &intent);
    let left = |dir: &str| fs::read_dir(stack.root().join(dir)).unwrap().count();
    assert_eq!((left("elsewhere"), stack.file("docker/secrets/key").as_str()), (2, "canary-key\n"));
}

/// Lays out what a child needs.
fn order(dir: &Path, bench: &Bench, taken: &Taken, intent: Option<&Intent>) {
    fs::write(dir.join("policy"), &bench.policy.text).unwrap();
    fs::write(dir.join("facts"), taken.facts.to_string()).unwrap();
    fs::create_dir_all(dir.join("streams")).unwrap();
    for (name, _, bytes) in &taken.streams {
        fs::write(dir.join("streams").join(name), bytes).unwrap();
    }
    if let Some(intent) = intent {
        fs::write(dir.join("intent"), serde_json::to_vec(intent).unwrap()).unwrap();
    }
}

/// Run by other tests, in a process of its own that may be killed or have another environment. By itself it has no order.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let step = std::env::var(STEP).unwrap();
    match step.as_str() {
        "find" => println!("found {}", compose().describe()),
        "plan" => {
            let stream = |entry: fs::DirEntry| {
                let name = entry.file_name().into_string().unwrap();
                (name, lifeboat::base::stream::StreamKind::Raw, fs::read(entry.path()).unwrap())
            };
            let taken = Taken {
                name: "compose".parse().unwrap(),
                kind: "compose",
                facts: serde_json::from_str(&read("facts")).unwrap(),
                streams: fs::read_dir(dir.join("streams")).unwrap().map(|e| stream(e.unwrap())).collect(),
            };
            match Bench::new(&read("policy")).plan(&taken) {
                Ok(intent) => println!("planned {:?}", intent.lines),
                Err(e) => println!("refused {} // {}", full(&e), e.way_out().unwrap()),
            }
        }
        "config" => {
            let project: ComposeProject = serde_json::from_str(&read("project")).unwrap();
            println!("config {}", compose().config(&project).unwrap());
        }
        // The transaction's folder is the parent's.
        step => Bench::new(&read("policy")).step(step, &serde_json::from_str(&read("intent")).unwrap()).unwrap(),
    }
}

fn child_of(dir: &Path, step: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, dir).env(STEP, step).stdin(Stdio::null());
    command
}

fn said_by(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_switch_that_is_killed_is_finished_or_taken_back() {
    let stack = Stack::up(SMALL, "tag", "", &[], |_| {});
    let bench = &stack.bench;
    let first = stack.id_of(&stack.image).unwrap();
    let taken = bench.capture();
    let then = stack.file("docker/compose.yaml");
    build(&stack.root(), &stack.image, "two");
    stack.edit("docker/compose.yaml", "stop_grace_period: 1s", "stop_grace_period: 2s");
    let today = (stack.id_of(&stack.image), stack.file("docker/compose.yaml"));
    let dir = tempfile::tempdir().unwrap();
    let kill = |step: &str, after: u64| {
        let mut child = child_of(dir.path(), step).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        child.kill().unwrap();
        child.wait().unwrap();
    };
    // From its begin until after its end, in twelve steps. The machine is not always as fast.
    let timed = || {
        let intent = bench.plan(&taken).unwrap();
        order(dir.path(), bench, &taken, Some(&intent));
        bench.prepare(&taken, &intent).unwrap();
        let begun = std::time::Instant::now();
        said_by(child_of(dir.path(), "switch"));
        bench.steps(&["back", "discard_new"], &intent);
        begun.elapsed().as_millis() as u64
    };
    let whole = (0..3).map(|_| timed()).min().unwrap();
    let mut halves = 0;
    let extra = [0, whole * 4];
    for (round, delay) in (1..=12).map(|n| whole * n / 8).chain(extra).enumerate() {
        let intent = bench.plan(&taken).unwrap();
        order(dir.path(), bench, &taken, Some(&intent));
        bench.prepare(&taken, &intent).unwrap();
        kill("switch", delay);
        halves += usize::from(stack.id_of(&stack.image).as_ref() == Some(&first));
        if round % 2 == 0 {
            bench.steps(&["switch"], &intent);
            let switched = (stack.id_of(&stack.image), stack.file("docker/compose.yaml"));
            assert_eq!(switched, (Some(first.clone()), then.clone()), "{delay} ms: forward");
            kill("back", delay);
        }
        bench.steps(&["back"], &intent);
        assert_eq!((stack.id_of(&stack.image), stack.file("docker/compose.yaml")), today, "{delay} ms: back");
        kill("discard_new", delay);
        bench.steps(&["discard_new"], &intent);
        assert_eq!((stack.kept().len(), fs::read_dir(stack.root()).unwrap().count()), (0, 1), "{delay} ms");
    }
    assert!(
        (1..14).contains(&halves),
        "some were killed before the first name moved, some after: {halves} of {whole} ms"
    );
}

#[test]
fn compose_is_told_the_project_and_nothing_of_this_process() {
    engine();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::write(root.join("a.yaml"), format!("services:\n  web:\n    image: {IMAGE}\n    environment: {{ TOKEN: \"${{TOKEN}}\", LEVEL: a, WHO: \"${{USER-nobody}}\" }}\n")).unwrap();
    fs::write(
        root.join("b.yaml"),
        "services: { web: { environment: { LEVEL: b } }, ops: { image: x, profiles: [ops] } }\n",
    )
    .unwrap();
    fs::write(root.join("one.env"), "TOKEN=canary-one\nCOMPOSE_PROFILES=ops\nCOMPOSE_FILE=c.yaml\n").unwrap();
    fs::write(root.join("two.env"), "TOKEN=canary-two\n").unwrap();
    let project = ComposeProject {
        name: unique("told"),
        dir: root.to_owned(),
        files: vec![root.join("a.yaml"), root.join("b.yaml")],
        env_files: vec![root.join("one.env"), root.join("two.env")],
        profiles: vec!["none".into()],
    };
    fs::write(root.join("project"), serde_json::to_vec(&project).unwrap()).unwrap();
    let mut command = child_of(root, "config");
    command.env("TOKEN", "canary-shell").env("COMPOSE_PROJECT_NAME", "shell").env("COMPOSE_FILE", "/nowhere.yaml");
    command.env("COMPOSE_PROFILES", "ops").env("USER", "somebody").env("COMPOSE_ENV_FILES", "/nowhere.env");
    command
        .env("LIFEBOAT_CANARY", "1")
        .env("DOCKER_CONTEXT", "nowhere")
        .env("DOCKER_HOST", "unix:///var/run/docker.sock");
    let said = said_by(command);
    let config = said.lines().find_map(|l| l.split_once("config {")).expect(&said).1;
    let config: Value = serde_json::from_str(&format!("{{{config}")).unwrap();
    let web = &config["services"]["web"]["environment"];
    assert_eq!(web, &json!({ "TOKEN": "canary-two", "LEVEL": "b", "WHO": "nobody" }));
    assert_eq!((&config["name"], &config["services"]["ops"]), (&json!(project.name), &Value::Null));

    // What it says when it fails holds nothing of the env files.
    fs::write(root.join("two.env"), "TOKEN=\"canary-never-ends\nKEY WITH SPACE=canary-in-a-bad-line\n").unwrap();
    let error = compose().config(&project).unwrap_err();
    assert!(matches!(&error, PlaceError::Failed { tool, .. } if tool == "docker compose"), "{error}");
    assert!(error.to_string().contains("two.env") && !error.to_string().contains("canary"), "{error}");
    fs::write(root.join("two.env"), "").unwrap();
    fs::write(root.join("b.yaml"), "services: { web: { env_file: w.env } }\n").unwrap();
    for bad in ["A B=canary-of-a-service\n", "A=\"canary-of-a-service\nB=canary\n", "A=1\n%canary=canary\n"] {
        fs::write(root.join("w.env"), bad).unwrap();
        let error = compose().config(&project).unwrap_err();
        assert!(error.to_string().contains("line ") && !error.to_string().contains("canary"), "{error}");
    }

    // Limits.
    fs::write(
        root.join("b.yaml"),
        format!("services: {{ web: {{ build: {{ dockerfile_inline: \"FROM {IMAGE}\\nRUN sleep 30\\n\" }} }} }}\n"),
    )
    .unwrap();
    let set = UpSet { services: vec![("web".into(), 1)], build: vec!["web".into()] };
    let begun = std::time::Instant::now();
    let error = compose().within(Duration::from_secs(1)).up(&project, &set).unwrap_err();
    assert!(matches!(error, PlaceError::TimedOut { .. }), "{error}");
    let cancel = Cancel::new();
    let cancelled = Compose::find(&cancel).unwrap();
    cancel.raise(15);
    assert!(matches!(cancelled.up(&project, &set), Err(PlaceError::Cancelled(_))));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(
        try_docker(["ps", "-aq", "--filter", &format!("label=com.docker.compose.project={}", project.name)]).stdout,
        b""
    );
}

/// A `docker-compose` that writes down what it is told, has version 1's options and no others, and lets the plugin do it.
fn version_1(dir: &Path, project: &str) -> PathBuf {
    let docker =
        String::from_utf8(Command::new("sh").args(["-c", "command -v docker"]).output().unwrap().stdout).unwrap();
    let (docker, log) = (docker.trim(), dir.join("log"));
    let script = format!(
        "#!/bin/sh\nfiles=0\necho \"told: $*\" >> '{log}'\n\
         case \"$*\" in 'version --short') echo 1.29.2; exit 0;; 'up --help') echo '    --scale SERVICE=NUM'; exit 0;; esac\n\
         for word in \"$@\"; do case \"$word\" in\n\
         --pull|--format|--progress|--ansi|--all-resources) echo \"no such option: $word\" >&2; exit 1;;\n\
         --env-file) files=$((files+1));;\n\
         esac; done\n\
         [ $files -le 1 ] || {{ echo 'one env file' >&2; exit 1; }}\n\
         echo \"there:\" $('{docker}' ps -a --filter label=com.docker.compose.project={project} --format '{{{{.Names}}}}') >> '{log}'\n\
         exec '{docker}' compose \"$@\"\n",
        log = log.display()
    );
    let path = dir.join("bin/docker-compose");
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

const OLD: &str = "
services:
  web:
    image: {image}
    command: {idle}
    stop_grace_period: 1s
  cache:
    image: {image}
    command: {idle}
    stop_grace_period: 1s
    volumes: [\"kept:/data\"]
volumes:
  kept:
";

#[test]
fn version_1_removes_then_creates() {
    let stack = Stack::up(OLD, "tag", "", &["--env-file", "../one.env"], |root| {
        fs::write(root.join("one.env"), "A=1\n").unwrap()
    });
    let bench = &stack.bench;
    let taken = bench.capture();
    let dir = tempfile::tempdir().unwrap();
    let name = &stack.project.name;
    let program = version_1(dir.path(), name);
    let mut find = child_of(dir.path(), "find");
    find.env("PATH", program.parent().unwrap());
    assert!(said_by(find).contains("found docker-compose 1.29.2"));
    let old = Compose::of(&[program.to_str().unwrap()], &Cancel::new()).unwrap().unwrap();
    assert!(old.is_v1() && !compose().is_v1());
    stack.inside("cache", &["sh", "-c", "echo data > /data/file"]);

    let (project, set) = recorded(&taken.facts, &bench.policy.app).unwrap();
    // What version 1 made and would not change stays as it is.
    let by_1 = adopt(name, "cache");
    build(&stack.root(), &stack.image, "two");
    docker(["tag", taken.facts["services"][0]["image_id"].as_str().unwrap(), &stack.image]);
    old.up(&project, &set).unwrap();
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    let up = log.lines().rev().find(|l| l.contains(" up -d ")).unwrap();
    assert!(
        !log.contains("--pull")
            && up.ends_with("up -d --no-build --no-deps --scale cache=1 --scale web=1 -- cache web"),
        "{log}"
    );
    assert_eq!(log.lines().last().unwrap(), format!("there: {name}-cache-1"), "web was removed first: {log}");
    assert_eq!(docker(["inspect", "-f", "{{.Id}}", &format!("{name}-cache-1")]), by_1);
    assert_eq!(stack.running(), ["-cache-1", "-web-1"]);
    // Version 2 made web just now, behind version 1's back: for a real one it is foreign again.
    old.create(&project, &set).unwrap();
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.lines().rev().nth(1).unwrap().contains(" up --no-start "), "{log}");
    assert_eq!(
        (stack.running(), stack.inside("cache", &["cat", "/data/file"])),
        (vec!["-cache-1".to_owned()], "data".into())
    );
    // Its configuration is YAML.
    let config = old.config(&project).unwrap();
    let mut same = compose().config(&project).unwrap();
    assert_eq!(config["services"]["web"]["image"], json!(stack.image));
    assert_eq!(config["services"]["cache"]["volumes"], same["services"]["cache"]["volumes"].take());

    // One env file is all that it takes.
    let mut two = project.clone();
    two.env_files.push(stack.root().join("one.env"));
    assert!(old.cannot(&two).unwrap().contains("takes one env file, and the project has 2"));
    assert_eq!((old.cannot(&project), compose().cannot(&two)), (None, None));
    let mut two = taken.clone();
    let second = two.facts["files"][1].clone();
    assert_eq!(second["role"], "env");
    two.facts["files"].as_array_mut().unwrap().push(second);
    order(dir.path(), bench, &two, None);
    let mut plan = child_of(dir.path(), "plan");
    plan.env("PATH", program.parent().unwrap());
    let said = said_by(plan);
    assert!(said.contains("takes one env file") && said.contains("install the compose plugin"), "{said}");
    // And none at all is refused.
    let mut plan = child_of(dir.path(), "plan");
    plan.env("PATH", "/nonexistent");
    let said = said_by(plan);
    assert!(said.contains("neither docker compose nor docker-compose is on this host"), "{said}");
}

/// Version 2 makes a container anew under another name, stops and removes the old one, and renames. It was killed: the old
/// one is still there, or gone.
#[test]
fn what_a_killed_up_has_left_is_no_obstacle() {
    let slow = "services:\n  web:\n    image: {image}\n    environment: { LEVEL: one }\n    \
                command: [\"sh\", \"-c\", \"trap 'sleep 2; exit 0' TERM; while :; do sleep 0.1; done\"]\n";
    let stack = Stack::up(slow, "tag", "", &[], |_| {});
    let (project, set) = stack.bench.live();
    let name = format!("{}-web-1", stack.project.name);
    let id = docker(["inspect", "-f", "{{.Id}}", &name]);
    let to_be = format!("{}_{name}", &id[..12]);
    let is_there = |name: &str| try_docker(["inspect", name]).status.success();

    stack.edit("docker/compose.yaml", "LEVEL: one", "LEVEL: two");
    let mut up = Command::new("docker");
    up.args(["compose", "-p", &stack.project.name, "up", "-d"]).current_dir(stack.root().join("docker"));
    let mut up = up.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
    while !is_there(&to_be) {
        assert!(up.try_wait().unwrap().is_none(), "it was too quick");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The plugin is a program of its own.
    assert!(Command::new("kill").args(["-9", "--", &format!("-{}", up.id())]).status().unwrap().success());
    up.wait().unwrap();
    docker(["stop", &name]);
    assert!(is_there(&to_be), "the new one never got its name");
    compose().up(&project, &set).unwrap();
    assert!(!is_there(&to_be));
    assert_eq!(
        (stack.running(), stack.inside("web", &["sh", "-c", "echo $LEVEL"])),
        (vec!["-web-1".into()], "two".into())
    );

    let id = docker(["inspect", "-f", "{{.Id}}", &name]);
    docker(["rename", &name, &format!("{}_{name}", &id[..12])]);
    compose().up(&project, &set).unwrap();
    assert_eq!((stack.running(), docker(["inspect", "-f", "{{.Id}}", &name])), (vec!["-web-1".into()], id));
}

/// Makes a service's container anew as version 1's: its labels say so. The container's id.
fn adopt(project: &str, service: &str) -> String {
    let name = format!("{project}-{service}-1");
    let format = |what: &str| docker(["inspect", "-f", &format!("{{{{json {what}}}}}"), &name]);
    let labels: serde_json::Map<String, Value> = serde_json::from_str(&format(".Config.Labels")).unwrap();
    let image: String = serde_json::from_str(&format(".Config.Image")).unwrap();
    docker(["rm", "-f", "-v", &name]);
    let mut arguments = vec!["run".to_owned(), "-d".into(), "--name".into(), name.clone()];
    arguments.extend(["--network".into(), format!("{project}_default"), "-v".into(), format!("{project}_kept:/data")]);
    for (label, value) in labels {
        let value = if label == "com.docker.compose.version" { "1.29.2" } else { value.as_str().unwrap() };
        arguments.extend(["--label".to_owned(), format!("{label}={value}")]);
    }
    arguments.extend([image, "sh".into(), "-c".into(), "trap 'exit 0' TERM; while :; do sleep 0.1; done".into()]);
    docker(arguments)
}

#[test]
fn version_1_does_not_lose_a_volume_without_a_name() {
    let stack = Stack::up(&OLD.replace("kept:/data", "/data").replace("  kept:\n", "  {}\n"), "tag", "", &[], |_| {});
    let bench = &stack.bench;
    let taken = bench.capture();
    let dir = tempfile::tempdir().unwrap();
    let program = version_1(dir.path(), &stack.project.name);
    let old = Compose::of(&[program.to_str().unwrap()], &Cancel::new()).unwrap().unwrap();
    let (project, set) = recorded(&taken.facts, &bench.policy.app).unwrap();
    let before = stack.running();
    let error = old.up(&project, &set).unwrap_err().to_string();
    assert!(error.contains("cache-1 keeps /data in a volume without a name"), "{error}");
    assert_eq!(stack.running(), before, "nothing was removed");
    order(dir.path(), bench, &taken, None);
    let mut plan = child_of(dir.path(), "plan");
    plan.env("PATH", program.parent().unwrap());
    let said = said_by(plan);
    assert!(said.contains("refused ") && said.contains("keeps /data in a volume without a name"), "{said}");
    // Version 2 hands it over to the new container.
    stack.inside("cache", &["sh", "-c", "echo data > /data/file"]);
    build(&stack.root(), &stack.image, "two");
    compose().up(&project, &set).unwrap();
    assert_eq!(
        (stack.version("cache").as_str(), stack.inside("cache", &["cat", "/data/file"]).as_str()),
        ("two", "data")
    );
    // Handed over, it is nobody's own, and `down -v` leaves it.
    let name = format!("{}-cache-1", stack.project.name);
    let volume = docker(["inspect", "-f", "{{range .Mounts}}{{.Name}}{{end}}", &name]);
    drop(stack);
    docker(["volume", "rm", &volume]);
}

#[test]
fn an_ordinary_user_in_group_docker_does_the_same() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
    let dir = tempfile::Builder::new().prefix("lifeboat-user-").tempdir().unwrap();
    let (binary, tmp) = (dir.path().join("tests"), dir.path().join("tmp"));
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    fs::create_dir(&tmp).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&*binary, 0o755), (&*tmp, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", &format!("--groups={group}"), "--"]).arg(&binary);
    command.args([
        "--exact",
        "the_old_image_runs_again_and_the_new_one_comes_back",
        "only_files_that_nobody_else_brings_are_put_back",
    ]);
    command.args(["--test-threads", "2"]).env("TMPDIR", &tmp).env("HOME", &tmp).current_dir(&tmp);
    let said = said_by(command);
    assert!(said.contains("2 passed"), "{said}");
}
