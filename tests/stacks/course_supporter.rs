//! course-supporter: an ordinary user in group docker, a database without a port, nginx in a container that others use
//! too, and a bucket that is not AWS.

use crate::docker::{IMAGE, docker};
use crate::machine::{Machine, host, secret, source};
use crate::port::free_port;
use crate::project::Project;
use crate::s3::{BUCKET, Kind, S3Server, program};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

const TAG: &str = "v3.0.0";
const USER: u32 = 65534;

struct Courses {
    project: Project,
    policy: String,
    tls: u16,
    machine: Machine,
    /// Where the snapshots go.
    bucket: S3Server,
}

impl Courses {
    fn up() -> Self {
        let machine = Machine::of("courses", USER);
        let (name, tls) = (machine.unique("course-supporter"), free_port());
        let postgres = machine.unique("postgres-cs");
        machine.publish(
            "course-supporter",
            "app",
            TAG,
            &[("container_name: postgres-cs", format!("container_name: {postgres}"))],
        );
        let arguments = ["-f", "docker-compose.prod.yaml", "--env-file", ".env.prod"];
        let project = Project::new(&name, &machine.checkout(&name), "", &arguments);
        let courses = Self { project, policy: name, tls, machine, bucket: S3Server::start(Kind::S3sFs) };
        let (project, machine) = (&courses.project, &courses.machine);
        docker(["network", "create", &machine.unique("shared")]);
        courses.materials();
        courses.write_env(&secret("b2"));
        project.compose(machine, &["up", "-d", "--build"]);
        for command in [&["alembic", "upgrade", "head"][..], &["python3", "seed.py"]] {
            project.compose(machine, &[&["exec", "-T", "app"], command].concat());
        }
        courses.nginx();
        let answer = machine.is_well(&courses.health());
        assert_eq!((&answer["version"], &answer["checks"]), (&json!("3.0.0"), &json!({ "db": "ok", "s3": "ok" })));
        courses.install();
        courses
    }

    fn health(&self) -> String {
        format!("https://localhost:{}/health", self.tls)
    }

    fn write_env(&self, bucket: &str) {
        let password = secret("db");
        let key = "3b".repeat(32);
        let text = format!(
            "DB_PASSWORD={password}\nDATABASE_URL=postgresql://courses:{password}@postgres-cs:5432/courses\n\
             ENCRYPTION_KEY={key}\nS3_ENDPOINT=http://b2:9000\nS3_ACCESS_KEY=courses\nS3_SECRET_KEY={bucket}\n"
        );
        self.project.write(&self.machine, ".env.prod", &text);
    }

    /// The application's own bucket, which is not ours to back up.
    fn materials(&self) {
        let machine = &self.machine;
        fs::create_dir_all(machine.path("b2/course-materials")).unwrap();
        docker([
            "run",
            "-d",
            "--name",
            &machine.unique("b2"),
            "--network",
            &machine.unique("shared"),
            "--network-alias",
            "b2",
            "-v",
            &format!("{}:/usr/bin/s3s-fs:ro", program(Kind::S3sFs).display()),
            "-v",
            &format!("{}:/data", machine.text("b2")),
            IMAGE,
            "s3s-fs",
            "--host",
            "0.0.0.0",
            "--port",
            "9000",
            "--access-key",
            "courses",
            "--secret-key",
            &secret("b2"),
            "/data",
        ]);
    }

    /// nginx in a container that is nobody's in particular; its files are root's alone.
    fn nginx(&self) {
        let machine = &self.machine;
        machine.certificates("courses.example.org");
        machine.nginx_files("course-supporter", "conf.d/*.conf", false, &[]);
        for private in ["etc/nginx", "etc/letsencrypt/live", "etc/letsencrypt/archive"] {
            fs::set_permissions(machine.path(private), fs::Permissions::from_mode(0o700)).unwrap();
        }
        fs::create_dir_all(machine.path("webroot/.well-known")).unwrap();
        docker([
            "run",
            "-d",
            "--name",
            &machine.unique("nginx"),
            "--network",
            &machine.unique("shared"),
            "-p",
            &format!("127.0.0.1:{}:443", self.tls),
            "-v",
            &format!("{}:/etc/nginx:ro", machine.text("etc/nginx")),
            "-v",
            &format!("{}:/etc/letsencrypt:ro", machine.text("etc/letsencrypt")),
            IMAGE,
            "nginx",
            "-g",
            "daemon off;",
        ]);
    }

    fn install(&self) {
        let machine = &self.machine;
        let credentials = machine.path("home/.config/lifeboat/credentials.env");
        fs::create_dir_all(credentials.parent().unwrap()).unwrap();
        fs::copy(self.bucket.credentials(), &credentials).unwrap();
        fs::create_dir_all(machine.path("home/.ssh")).unwrap();
        fs::write(machine.path("home/.ssh/course-supporter-deploy-key"), "not a key\n").unwrap();
        machine.own(&machine.path("home"));
        let (url, endpoint) = (format!("s3://{BUCKET}/lifeboat"), self.bucket.endpoint());
        let swaps = [
            ("/opt/course-supporter", self.project.root.to_str().unwrap().to_owned()),
            ("s3://course-supporter-backups/lifeboat", url.clone()),
            ("https://s3.eu-central-003.backblazeb2.com", endpoint.clone()),
            ("/home/deploy-course-supporter", machine.text("home")),
            ("container = \"postgres-cs\"", format!("container = {:?}", machine.unique("postgres-cs"))),
            ("container = \"nginx\"", format!("container = {:?}", machine.unique("nginx"))),
            ("/etc/letsencrypt", machine.text("etc/letsencrypt")),
            ("/srv/nginx", machine.text("etc/nginx")),
            ("/var/www/certbot", machine.text("webroot")),
            ("https://courses.example.org/health", self.health()),
            ("extname = 'vector'", "extname = 'cube'".to_owned()),
        ];
        let from = format!("file:{}", credentials.display());
        let reach =
            ["--repository", &url, "--endpoint", &endpoint, "--region", "eu-central-003", "--credentials", &from];
        machine.install_with(&self.policy, "course-supporter", &self.project.root, &swaps, &reach);
    }

    fn level(&self) -> String {
        self.project.sql("postgres-cs", "select version_num, (select count(*) from courses) from alembic_version")
    }

    /// Files of the checkout that are not the user's: the next `git pull` would trip over them.
    fn not_the_user_s(&self) -> String {
        host("find", &[self.project.root.to_str().unwrap(), "!", "-uid", &USER.to_string()])
    }
}

#[test]
fn course_supporter_an_ordinary_user_needs_no_root_and_no_port_of_the_database() {
    let courses = Courses::up();
    let (machine, project) = (&courses.machine, &courses.project);
    let id = machine.snapshot(&courses.policy, TAG);
    let shown = machine.json(&["show", &id, "-p", &courses.policy]);
    let ports = docker(["inspect", "-f", "{{json .HostConfig.PortBindings}}", &project.container("postgres-cs")]);
    assert_eq!(ports, "{}", "the database publishes no port");
    assert_eq!(source(&shown, "db")["facts"]["databases"][0]["name"], "courses");
    // Root's alone: read through docker, and of the shared nginx only this application's file.
    let found = machine.run(&["find", "privkey2.pem", "-p", &courses.policy]).exits(0);
    found.shows(&["archive/courses.example.org/privkey2.pem"]);
    let listed = machine.run(&["ls", &id, "nginx", "-r", "-p", &courses.policy]).exits(0);
    assert!(listed.out.contains("course-supporter.conf") && !listed.out.contains("another.conf"), "{}", listed.out);
    let objects = crate::world::tree(&courses.bucket.files());
    assert!(objects.len() > 3, "the snapshot is in the bucket: {objects:?}");
    machine.drill(&courses.policy, &id);
    machine.run(&["verify", "--deep", "-p", &courses.policy]).exits(0);
}

#[test]
fn course_supporter_a_rollback_is_a_unit_with_the_schema_or_takes_the_schema_back_and_keeps_the_data() {
    let courses = Courses::up();
    let (machine, project) = (&courses.machine, &courses.project);
    machine.snapshot(&courses.policy, TAG);
    let shared = docker(["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &machine.unique("nginx")]);
    let late = "insert into courses (title, embedding) values ('late', cube(array[5, 5]))";
    project.sql("postgres-cs", late);
    machine.release("course-supporter", "v2", "v3.1.0");
    let (ok, said) = project.deploy(machine);
    assert!(ok, "{said}");
    assert_eq!(machine.is_well(&courses.health())["version"], "3.1.0");
    assert_eq!(courses.level(), "0002|302");

    let plan = machine.run(&["rollback", "--to", TAG, "--dry-run", "-p", &courses.policy]).exits(0);
    plan.shows(&["Backblaze B2: course materials", "0002", "0001"]);
    machine.rollback(&courses.policy, TAG, &[]).exits(0);
    let answer = machine.is_well(&courses.health());
    assert_eq!((&answer["version"], &answer["checks"]["s3"]), (&json!("3.0.0"), &json!("ok")), "{answer:#}");
    assert_eq!(courses.level(), "0001|301");
    assert_eq!(courses.not_the_user_s(), "");

    // The same release once more, and this time the data of today stays.
    project.sql("postgres-cs", late);
    project.git(machine, &["switch", "-q", "main"]);
    let (ok, said) = project.deploy(machine);
    assert!(ok, "{said}");
    machine.is_well(&courses.health());
    machine.rollback(&courses.policy, TAG, &["--keep-data"]).exits(0);
    assert_eq!(machine.is_well(&courses.health())["version"], "3.0.0");
    assert_eq!(courses.level(), "0001|302", "the migration was taken back, and the rows stay");
    assert_eq!(courses.not_the_user_s(), "");
    let now = docker(["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &machine.unique("nginx")]);
    assert_eq!(now, shared, "the nginx that others use too was not restarted");
    docker(["network", "inspect", &machine.unique("shared")]);
}

#[test]
fn course_supporter_a_wrong_env_an_expired_certificate_and_edited_ports() {
    let courses = Courses::up();
    let (machine, project) = (&courses.machine, &courses.project);
    machine.snapshot(&courses.policy, TAG);

    // A secret that differs may have been rotated on purpose: it is named, and nothing is stopped before that is said.
    let env = project.read(".env.prod");
    project.edit(machine, ".env.prod", &secret("b2"), &secret("mistyped"));
    project.compose(machine, &["up", "-d"]);
    let answer = machine.is_unwell(&courses.health());
    assert!(answer.body.contains("the bucket answers 403"), "{answer:?}");
    let before = project.state();
    machine.rollback(&courses.policy, TAG, &[]).exits(2).says(&["S3_SECRET_KEY", "--env"]);
    assert!(before == project.state(), "a refusal changes nothing");
    machine.rollback(&courses.policy, TAG, &["--env", "snapshot"]).exits(0);
    machine.is_well(&courses.health());
    assert_eq!(project.read(".env.prod"), env);

    // Certificates are kept, but not one that nobody accepts any more. Root owns them, and nginx is in a container.
    machine.expire("courses.example.org");
    docker(["exec", &machine.unique("nginx"), "nginx", "-s", "reload"]);
    machine.is_unwell(&courses.health());
    machine.rollback(&courses.policy, TAG, &[]).exits(0);
    machine.is_well(&courses.health());

    // A port that the snapshot does not know: who listens where is not for a rollback to decide.
    let port = free_port();
    project.edit(
        machine,
        "docker-compose.prod.yaml",
        "    env_file: [.env.prod]\n",
        &format!("    env_file: [.env.prod]\n    ports: [\"127.0.0.1:{port}:8000\"]\n"),
    );
    project.compose(machine, &["up", "-d"]);
    machine.is_well(&courses.health());
    let before = project.state();
    machine.rollback(&courses.policy, TAG, &[]).exits(2).says(&[&port.to_string()]);
    assert!(before == project.state(), "a refusal changes nothing");
}

#[test]
fn course_supporter_what_init_finds_is_proved_as_it_is() {
    let courses = Courses::up();
    let root = &courses.project.root;
    let covered = [
        ("postgres", "database courses"),
        ("env", ".env.prod"),
        ("nginx", "conf.d/course-supporter.conf"),
        ("certificates", "courses.example.org"),
    ];
    let (report, text) = crate::discovered::proved(&courses.machine, &courses.policy, root, &covered, &[]);
    assert!(!text.contains("another.conf"), "a site of others: {text}");
    assert_eq!(text.matches("via = \"docker\"").count(), 2, "{report:#}\n{text}");
    assert!(text.contains(&format!("container = {:?}", courses.machine.unique("nginx"))), "{text}");
}
