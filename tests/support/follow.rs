//! A printed recovery kit, followed word by word: its commands in the order in which they stand there, by a shell, on a
//! machine that has nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What the page says is to be installed is on this machine; what it says to install it with is looked at.
pub const INSTALLS: [&str; 2] =
    ["apt-get install -y ./lifeboat_*.deb", "apt-get install -y age zstd tar jq openssh-client"];

/// The commands of the page: what begins with four blanks.
pub fn commands(page: &str) -> Vec<&str> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("    "));
    lines.filter(|line| !line.starts_with(' ')).collect()
}

/// `lifeboat` as the machine has it, in `<dir>/bin`, with folders of its own in the place of /etc and /var.
pub fn install(dir: &Path) {
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\nexec {} --config-dir {} --state-dir {} \"$@\"\n",
        env!("CARGO_BIN_EXE_lifeboat"),
        dir.join("config").display(),
        dir.join("state").display()
    );
    fs::write(bin.join("lifeboat"), script).unwrap();
    fs::set_permissions(bin.join("lifeboat"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the commands as one script in `<dir>/home`; what is typed comes from a file.
pub fn follow(dir: &Path, commands: &[&str], typed: Option<&Path>) -> Output {
    let mut script = String::from("set -e\n");
    for command in commands.iter().filter(|c| !INSTALLS.contains(c)) {
        script += command;
        script.push('\n');
    }
    let home = dir.join("home");
    let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script).current_dir(&home).env_clear().env("HOME", &home).env("PATH", path);
    shell.stdin(typed.map_or_else(Stdio::null, |file| fs::File::open(file).unwrap().into()));
    shell.output().unwrap()
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
