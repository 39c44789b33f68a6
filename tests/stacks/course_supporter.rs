//! course-supporter: an ordinary user in group docker, a database without a port, nginx in a container that others use
//! too, and a bucket that is not AWS.

use crate::docker::{IMAGE, docker};
use crate::machine::{Machine, free_port, host, secret, source};
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
    _bucket: S3Server,
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
        let courses = Self { project, policy: name, tls, machine, _bucket: S3Server::start(Kind::S3sFs) };
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
        fs::copy(self._bucket.credentials(), &credentials).unwrap();
        fs::create_dir_all(machine.path("home/.ssh")).unwrap();
        fs::write(machine.path("home/.ssh/course-supporter-deploy-key"), "not a key\n").unwrap();
        machine.own(&machine.path("home"));
        let (url, endpoint) = (format!("s3://{BUCKET}/lifeboat"), self._bucket.endpoint());
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
}

#[test]
fn course_supporter_snapshot_and_drill_as_an_ordinary_user() {
    let courses = Courses::up();
    let (machine, project) = (&courses.machine, &courses.project);
    let id = machine.snapshot(&courses.policy, TAG);
    let shown = machine.json(&["show", &id, "-p", &courses.policy]);
    let ports = docker(["inspect", "-f", "{{json .HostConfig.PortBindings}}", &project.container("postgres-cs")]);
    assert_eq!(ports, "{}", "the database publishes no port");
    assert_eq!(source(&shown, "db")["facts"]["databases"][0]["name"], "courses");
    let found = machine.run(&["find", "privkey2.pem", "-p", &courses.policy]).exits(0);
    found.shows(&["archive/courses.example.org/privkey2.pem"]);
    machine.drill(&courses.policy, &id);
    let objects = crate::world::tree(&courses._bucket.files());
    assert!(objects.len() > 3, "the snapshot is in the bucket: {}", objects.len());

    machine.expire("courses.example.org");
    docker(["exec", &machine.unique("nginx"), "nginx", "-s", "reload"]);
    machine.is_unwell(&courses.health());
    host("true", &[]);
}
