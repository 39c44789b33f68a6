//! A deployment's compose project: brought up, asked, broken.

use crate::docker::{docker, try_docker};
use crate::machine::Machine;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

pub struct Project {
    pub name: String,
    pub root: PathBuf,
    /// Where `docker compose` is run.
    pub dir: PathBuf,
    /// Arguments after `compose`, such as `-f` and `--profile`.
    pub arguments: Vec<&'static str>,
}

impl Project {
    pub fn new(name: &str, root: &Path, dir: &str, arguments: &[&'static str]) -> Self {
        Self { name: name.to_owned(), root: root.to_owned(), dir: root.join(dir), arguments: arguments.to_vec() }
    }

    pub fn try_compose(&self, machine: &Machine, command: &[&str]) -> Output {
        let mut docker = machine.as_owner("docker");
        docker.arg("compose").args(&self.arguments).args(command).current_dir(&self.dir).output().unwrap()
    }

    #[track_caller]
    pub fn compose(&self, machine: &Machine, command: &[&str]) -> String {
        let output = self.try_compose(machine, command);
        assert!(output.status.success(), "compose {command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs the deployment's own script to upgrade; whether it succeeded, and what it said.
    pub fn deploy(&self, machine: &Machine) -> (bool, String) {
        let output = machine.as_owner(self.root.join("deploy.sh")).current_dir(&self.root).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), said)
    }

    /// git in the checkout, as its owner.
    #[track_caller]
    pub fn git(&self, machine: &Machine, args: &[&str]) -> String {
        let output = machine.as_owner("git").arg("-C").arg(&self.root).args(args).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Writes an untracked file of the application, closed to all but its owner.
    pub fn write(&self, machine: &Machine, name: &str, text: &str) {
        let path = self.root.join(name);
        let folder = path.parent().unwrap();
        if !folder.is_dir() {
            fs::create_dir_all(folder).unwrap();
            machine.own(folder);
        }
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        machine.own(&path);
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.join(name)).unwrap()
    }

    /// Changes a file of the application in its place, as `sed -i` does.
    #[track_caller]
    pub fn edit(&self, machine: &Machine, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{from:?} is not in {name}:\n{text}");
        fs::write(self.root.join(name), text.replace(from, to)).unwrap();
        machine.own(&self.root.join(name));
    }

    // --- containers --------------------------------------------------------------------------------------------------

    /// Each container of the project, stopped ones too: service, id and when it was started.
    pub fn containers(&self) -> BTreeMap<String, (String, String)> {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let ids = docker(["ps", "-aq", "--no-trunc", "--filter", &label]);
        let format = "{{index .Config.Labels \"com.docker.compose.service\"}} {{.Id}} {{.State.StartedAt}}";
        let one = |id: &str| {
            let line = docker(["inspect", "-f", format, id]);
            let mut words = line.split(' ').map(str::to_owned);
            (words.next().unwrap(), (words.next().unwrap(), words.next().unwrap()))
        };
        ids.lines().map(one).collect()
    }

    /// Services with a running container.
    pub fn running(&self) -> Vec<String> {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let listed = docker(["ps", "--filter", &label, "--format", "{{.Label \"com.docker.compose.service\"}}"]);
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    #[track_caller]
    pub fn container(&self, service: &str) -> String {
        let all = self.containers();
        all.get(service).unwrap_or_else(|| panic!("no {service} among {all:?}")).0.clone()
    }

    /// The id of the image that a service runs.
    pub fn image(&self, service: &str) -> String {
        docker(["inspect", "-f", "{{.Image}}", &self.container(service)])
    }

    /// Where a volume of the project lies on this host.
    pub fn volume(&self, name: &str) -> PathBuf {
        docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &format!("{}_{name}", self.name)]).into()
    }

    pub fn has_volume(&self, name: &str) -> bool {
        try_docker(["volume", "inspect", &format!("{}_{name}", self.name)]).status.success()
    }

    /// Runs a program in a service with these variables and this standard input; its output.
    #[track_caller]
    pub fn exec(&self, service: &str, env: &[(&str, &str)], argv: &[&str], input: &str) -> String {
        let mut command = std::process::Command::new("docker");
        command.args(["exec", "-i"]);
        // Only names are arguments.
        for (name, value) in env {
            command.args(["-e", name]).env(name, value);
        }
        command.arg(self.container(service)).args(argv);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input.as_bytes()));
            child.wait_with_output().unwrap()
        });
        assert!(output.status.success(), "{argv:?} in {service}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// SQL in the only database of a service, as the server's superuser, through its socket.
    #[track_caller]
    pub fn sql(&self, service: &str, sql: &str) -> String {
        let script = "PGPASSWORD=$POSTGRES_PASSWORD exec psql -h 127.0.0.1 -XAtq -v ON_ERROR_STOP=1 -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -f -";
        self.exec(service, &[], &["sh", "-c", script], sql)
    }
}
