//! `kill -9` and power cuts: at every change that git or a tool beside it makes, at every change of our own, and between
//! any two commands while the last one goes on without us. Then the same step again, or back: exactly the one state or
//! exactly the other.
//!
//! This binary is started anew as the process that is killed. Programs are found by PATH, where a script stands for
//! each: it counts, and at one number runs the real one under strace with a signal at one call.

use crate::bench::{Bench, capture, commit, git, mode, same, state, write};
use crate::{ID_OF_THE_TEST, Lab, edit, go_on, id};
use lifeboat::sources::placing::Intent;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// What changes files and names. A few of them in one process are enough of each.
const CALLS: [&str; 11] =
    ["rename", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "symlink", "write", "chmod", "rmdir"];
/// Calls of one name in one process that are tried.
const MOST: usize = 2;

const SCRIPT: &str = r#"#!/bin/sh
d=${0%/*}
name=${0##*/}
real=/usr/bin/$name
n=$(($(cat "$d/count") + 1))
echo $n >"$d/count"
[ $name != git ] || echo "$LIFEBOAT_GIT_OF" >>"$d/marks"
[ -e "$d/log" ] && exec strace -qq -f -o "$d/log/$n" -e "trace=$(cat "$d/calls")" "$real" "$@"
[ "$n" = "$(cat "$d/at")" ] || exec "$real" "$@"
call=$(cat "$d/call")
if [ "$call" = orphan ]; then
    kill -9 $PPID
    sleep 0.2
    exec "$real" "$@"
fi
strace -qq -f -o /dev/null -e "trace=$call" -e "inject=$call:signal=SIGKILL:when=$(cat "$d/when")" "$real" "$@"
code=$?
if [ $code = 137 ]; then kill -9 $PPID; fi
exit $code
"#;

struct Site {
    lab: Lab,
    old: Vec<String>,
    new: Vec<String>,
}

impl Site {
    /// Prepared and settled; all of it kept so that it can be had again.
    fn new() -> Self {
        // In memory: every step ends with a sync of the whole file system.
        let lab = Lab::in_folder(Path::new("/dev/shm"));
        let (app, dir) = (lab.app(), lab.dir.path().to_owned());
        let inner = Lab::new();
        git(&app, &["submodule", "--quiet", "add", inner.app().to_str().unwrap(), "sub"]);
        write(&app, "blocked", "tracked\n");
        commit(&app, "with a submodule");
        edit(&app, "8002");
        mode(&app, "run.sh", 0o755);
        write(&app.join("sub"), "src/app.py", "recorded\n");
        let taken = capture(&app, true);
        go_on(&app);
        git(&app, &["rm", "-q", "blocked"]);
        write(&app, "blocked", "untracked\n");
        write(&app.join("sub"), "src/more.py", "today\n");
        commit(&app.join("sub"), "onwards");
        write(&app.join("sub"), "src/app.py", "today\n");
        let old = state(&app);
        let bench = lab.bench();
        let intent = bench.plan(&taken).unwrap();
        bench.prepare(&taken, &intent);
        bench.settle(&taken, &intent);
        fs::write(dir.join("intent"), serde_json::to_vec(&intent).unwrap()).unwrap();
        copy(&app, &dir.join("settled-app"));
        copy(&dir.join("state"), &dir.join("settled-state"));
        bench.switch(&intent).unwrap();
        let new = state(&app);
        copy(&app, &dir.join("switched-app"));
        copy(&dir.join("state"), &dir.join("switched-state"));
        let programs = dir.join("programs");
        fs::create_dir(&programs).unwrap();
        for name in ["git", "mv", "cp", "ln", "rm", "mkdir", "rmdir"] {
            fs::write(programs.join(name), SCRIPT).unwrap();
            mode(&programs, name, 0o755);
        }
        fs::write(programs.join("calls"), CALLS.join(",")).unwrap();
        Self { lab, old, new }
    }

    fn dir(&self) -> &Path {
        self.lab.dir.path()
    }

    fn put(&self, which: &str) {
        for name in ["app", "state"] {
            fs::remove_dir_all(self.dir().join(name)).unwrap();
            copy(&self.dir().join(format!("{which}-{name}")), &self.dir().join(name));
        }
    }

    fn set(&self, values: &[(&str, &str)]) {
        for (name, value) in values {
            fs::write(self.dir().join("programs").join(name), value).unwrap();
        }
    }

    /// One step in a process of its own; `tracer` goes before it.
    fn child(&self, step: &str, tracer: &[&str], scripts: bool) -> ExitStatus {
        let exe = std::env::current_exe().unwrap();
        let mut argv: Vec<&str> = tracer.to_vec();
        argv.extend([
            exe.to_str().unwrap(),
            "kill::the_process_that_is_killed",
            "--exact",
            "--ignored",
            "--test-threads=1",
        ]);
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).env("GIT_PLACE_STEP", step).env("GIT_PLACE_DIR", self.dir());
        command.env(ID_OF_THE_TEST, id());
        if scripts {
            let path = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{path}", self.dir().join("programs").display()));
        }
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status().unwrap()
    }

    /// How often each call is made by each program that the step runs.
    fn programs_of(&self, step: &str) -> Vec<(usize, BTreeMap<String, usize>)> {
        let log = self.dir().join("programs/log");
        fs::create_dir(&log).unwrap();
        self.set(&[("count", "0"), ("at", "0")]);
        assert!(self.child(step, &[], true).success());
        let mut all = Vec::new();
        for entry in fs::read_dir(&log).unwrap().map(|e| e.unwrap()) {
            let number = entry.file_name().to_str().unwrap().parse().unwrap();
            let mut calls = BTreeMap::new();
            for line in fs::read_to_string(entry.path()).unwrap().lines() {
                let call = line.split_once(' ').and_then(|(_, rest)| rest.trim_start().split_once('('));
                if let Some((name, _)) = call {
                    *calls.entry(name.to_owned()).or_insert(0) += 1;
                }
            }
            all.push((number, calls));
        }
        fs::remove_dir_all(&log).unwrap();
        all.sort_by_key(|(number, _)| *number);
        all
    }

    /// After the kill: the step is done again, or it goes back; on odd numbers.
    fn settle(&self, step: &str, what: &str, back: bool) {
        let bench = self.lab.bench();
        let intent = intent(self.dir());
        if step == "switch" && !back {
            bench.switch(&intent).unwrap_or_else(|e| panic!("{what}: {e:?}"));
            bench.confirm(&intent).unwrap();
            println!("{what}: new");
            self.is(&self.new, what);
        }
        bench.back(&intent).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        bench.discard_new(&intent);
        self.is(&self.old, what);
        assert!(!self.lab.app().join(".git/lifeboat").exists(), "{what}");
        // What was being written when it was killed goes with the folder.
        let whole = fs::read_dir(&bench.folder).unwrap().map(|e| e.unwrap().file_name());
        let whole: Vec<_> = whole.filter(|name| name.to_str().unwrap().starts_with("git.")).collect();
        assert!(whole.is_empty(), "{what}: {whole:?}");
        let locks = Command::new("find").arg(self.lab.app()).args(["-name", "*.lock"]).output().unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&locks), "", "{what}");
    }

    fn is(&self, expected: &[String], what: &str) {
        let found = state(&self.lab.app());
        if expected != found {
            println!("{what}");
            same(expected, &found);
        }
    }

    fn sweep(&self, step: &str, from: &str) -> usize {
        self.put(from);
        let programs = self.programs_of(step);
        let mut killed = 0;
        for (at, calls) in &programs {
            for (call, times) in calls.iter().map(|(c, n)| (c.as_str(), *n)).chain([("orphan", 1)]) {
                for when in 1..=times.min(MOST) {
                    self.put(from);
                    self.set(&[("count", "0"), ("at", &at.to_string()), ("call", call), ("when", &when.to_string())]);
                    let back = step == "back" || (at + when) % 2 == 0;
                    let what = format!("{step}: program {at} killed at {call} {when}, then back: {back}");
                    let status = self.child(step, &[], true);
                    killed += usize::from(!status.success());
                    self.settle(step, &what, back);
                }
            }
        }
        println!("{step}: {} programs, {killed} killed", programs.len());
        killed
    }

    /// Calls of our own, and the same ones of any program.
    fn sweep_own(&self, step: &str, from: &str) -> usize {
        let mut killed = 0;
        for call in ["renameat2", "renameat", "fchmod", "fchown", "fsync", "mkdirat", "unlink", "syncfs", "unlinkat"] {
            for when in 1.. {
                self.put(from);
                let inject = format!("inject={call}:signal=SIGKILL:when={when}");
                let trace = format!("trace={call}");
                let tracer = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
                let died = !self.child(step, &tracer, false).success();
                killed += usize::from(died);
                let back = step == "back" || when % 2 == 0;
                self.settle(step, &format!("{step}: killed at {call} {when}, then back: {back}"), back);
                if !died {
                    break;
                }
            }
        }
        println!("{step}: {killed} killed");
        killed
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

fn intent(dir: &Path) -> Intent {
    serde_json::from_slice(&fs::read(dir.join("intent")).unwrap()).unwrap()
}

#[test]
#[ignore = "the other tests start it"]
fn the_process_that_is_killed() {
    let Some(dir) = std::env::var_os("GIT_PLACE_DIR").map(PathBuf::from) else { return };
    let bench = Bench::new(&dir.join("app"), &dir.join("state").join(id()), id());
    let intent = intent(&dir);
    match std::env::var("GIT_PLACE_STEP").unwrap().as_str() {
        "switch" => bench.switch(&intent).unwrap(),
        _ => bench.back(&intent).unwrap(),
    }
}

#[test]
fn killed_in_any_program_of_the_switch() {
    assert!(Site::new().sweep("switch", "settled") > 100);
}

/// By it the next run knows a git that goes on without us.
#[test]
fn every_git_carries_the_mark_of_its_transaction() {
    let site = Site::new();
    for (step, from) in [("switch", "settled"), ("back", "switched")] {
        site.put(from);
        site.set(&[("count", "0"), ("at", "0"), ("marks", "")]);
        assert!(site.child(step, &[], true).success());
        let marks = fs::read_to_string(site.dir().join("programs/marks")).unwrap();
        assert!(marks.lines().count() > 3 && marks.lines().all(|mark| mark == id()), "{step}: {marks}");
    }
}

#[test]
fn killed_in_any_program_of_the_way_back() {
    assert!(Site::new().sweep("back", "switched") > 50);
}

#[test]
fn killed_at_any_call_of_our_own() {
    let site = Site::new();
    assert!(site.sweep_own("switch", "settled") > 10);
    assert!(site.sweep_own("back", "switched") > 10);
}
