//! The host around the application: sources within reach, versions of the tools, room, transactions that were cut short,
//! and other backups that run beside.

use super::cron::{self, Line};
use super::{Doctor, Verdict};
use crate::base::units::human_size;
use crate::ops::discover::Discovery;
use crate::ops::runner::{self, Runner};
use crate::ops::{OpsError, check, transaction};
use crate::place::{Command, HostPlace, Place};
use crate::policy::model::{Notify, NotifyChannel, NotifyOn, Pin, SourceSpec};
use crate::repository::chain::{Snapshot, full_text};
use crate::sources::compose::{pin_repository, pin_tag};
use crate::sources::project::Places;
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Less than this is no room for the next snapshot, the next build or the next drill.
const LITTLE: u64 = 256 << 20;
/// Said before it comes to that.
const SHORT: u64 = 1 << 30;
const TOOL_LIMIT: Duration = Duration::from_secs(20);

impl Doctor<'_> {
    /// Every source is tried: servers let it in, `pg_dump` is not older than the server, paths can be read.
    pub(super) fn sources(&mut self) -> Result<(), OpsError> {
        let sources = check::sources(self.installation, self.policy, &self.run.cancel);
        let mut well = 0;
        for source in &sources {
            self.run.events.step(format!("trying {}", source.name()));
            let tried = check::probe(source.as_ref(), self.policy, &self.run.cancel)?;
            if tried.probe.ok {
                well += 1;
                continue;
            }
            let verdict = if tried.optional { Verdict::Warning } else { Verdict::Problem };
            let hint = tried.probe.hint.or_else(|| Some("`lifeboat policy check --live` tries it alone".to_owned()));
            self.add("source", verdict, format!("{}: {}", tried.name, tried.probe.error.unwrap_or_default()), hint);
        }
        if well == sources.len() {
            self.ok("source", format!("{well} within reach"));
        }
        Ok(())
    }

    /// What snapshots, drills and rollbacks call.
    pub(super) fn versions(&mut self, found: &Discovery, places: &Places) {
        let mut told = Vec::new();
        let has_compose = found.project.is_some();
        if let Ok(docker) = places.docker() {
            match docker.version() {
                Ok(version) => told.push(format!("docker {}", version.version)),
                Err(e) => self.add("versions", Verdict::Problem, full_text(&e), Some("is Docker well?".to_owned())),
            }
        }
        match tool(&["docker", "compose", "version", "--short"])
            .or_else(|| tool(&["docker-compose", "version", "--short"]))
        {
            Some(version) => told.push(format!("compose {}", version.trim_start_matches('v'))),
            None if has_compose => {
                let hint = "install it (Debian: apt install docker-compose-v2, or docker-compose)".to_owned();
                let text =
                    "neither `docker compose` nor `docker-compose` is here: no restore starts the services again";
                self.add("versions", Verdict::Problem, text, Some(hint));
            }
            None => {}
        }
        match tool(&["git", "--version"]) {
            Some(version) => told.push(version.replace(" version", "")),
            None if self.policy.app.root.join(".git").exists() => {
                let hint = "apt install git".to_owned();
                self.add(
                    "versions",
                    Verdict::Problem,
                    "git is not installed, and the folder is a checkout",
                    Some(hint),
                );
            }
            None => {}
        }
        if !told.is_empty() {
            self.ok("versions", told.join(", "));
        }
    }

    /// Free room where state, drills and containers lie; the repository's own is looked at by `room`.
    pub(super) fn disks(&mut self, places: &Places) {
        let mut places_on_disk: Vec<(&str, PathBuf)> =
            vec![("state", self.installation.state_dir.clone()), ("drills", PathBuf::from("/var/tmp"))];
        if let Ok(docker) = places.docker()
            && docker.is_local()
            && let Ok(Some(root)) = docker.root_dir()
        {
            places_on_disk.push(("docker", root));
        }
        let mut told = Vec::new();
        for (what, path) in places_on_disk {
            let stat = match rustix::fs::statvfs(&path) {
                Ok(stat) => stat,
                // Not made yet, or not for this account to see.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => continue,
                Err(e) => {
                    let text = format!("{} ({what}) cannot be looked at: {}", path.display(), io::Error::from(e));
                    let hint = "the kernel's log may say what is wrong with that disk".to_owned();
                    self.add("disk", Verdict::Warning, text, Some(hint));
                    continue;
                }
            };
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let text = format!("{} free in {} ({what})", human_size(free), path.display());
            let inodes = stat.f_files > 0 && stat.f_favail * 100 < stat.f_files;
            let hint = Some("free space there; `docker system df` shows what containers take".to_owned());
            match () {
                () if inodes => {
                    let text = format!("{} has hardly a file left to give ({what})", path.display());
                    self.add("disk", Verdict::Problem, text, hint);
                }
                () if free < LITTLE => self.add("disk", Verdict::Problem, text, hint),
                () if free < SHORT => self.add("disk", Verdict::Warning, text, hint),
                () => told.push(format!("{} in {}", human_size(free), path.display())),
            }
        }
        if !told.is_empty() {
            self.ok("disk", format!("free: {}", told.join(", ")));
        }
    }

    /// A transaction that was cut short stands in the way of everything.
    pub(super) fn transactions(&mut self) {
        let name = &self.policy.app.name;
        match transaction::pending(&self.installation.state_dir) {
            Ok(all) => {
                let mine: Vec<_> = all.into_iter().filter(|p| p.policy == *name).collect();
                if mine.is_empty() {
                    self.ok("transactions", "none is pending");
                }
                for transaction::Pending { id, record, .. } in mine {
                    let command = record.plan.what.word();
                    let text = format!("transaction {id} was cut short: the application may be between two states");
                    let hint = format!("`lifeboat -p {name} {command} --resume` finishes it or takes it back");
                    self.add("transactions", Verdict::Problem, text, Some(hint));
                }
            }
            Err(e) => self.failed("transactions", &e),
        }
    }

    /// The images that the newest snapshot's services ran have names of our own, until somebody prunes images.
    pub(super) fn pins(&mut self, newest: &Snapshot, places: &Places) {
        let pinned =
            self.policy.sources.iter().any(|s| matches!(&s.spec, SourceSpec::Compose(spec) if spec.pin == Pin::Tag));
        let (Ok(docker), Ok(Some(project))) = (places.docker(), places.project()) else { return };
        if !pinned {
            return;
        }
        let (policy, id) = (&self.policy.app.name, &newest.header.id);
        let mut gone = Vec::new();
        let mut services = project.running_services();
        services.sort();
        services.dedup();
        for service in &services {
            let pin = format!("{}:{}", pin_repository(policy, service), pin_tag(id));
            match docker.image(&pin) {
                Ok(Some(_)) => {}
                Ok(None) => gone.push(service.as_str()),
                Err(e) => {
                    let hint = e.hint().or_else(|| Some("is Docker well?".to_owned()));
                    return self.add("pins", Verdict::Warning, full_text(&e), hint);
                }
            }
        }
        if gone.is_empty() {
            self.ok("pins", format!("the images of {} services are kept as snapshot {id} had them", services.len()));
        } else {
            let text = format!("the image that snapshot {id} had of {} is not pinned here any more", gone.join(", "));
            let hint = "a rollback to it must build anew. Take a snapshot, or keep images in the repository: \
                        pin = \"save\" in a source of kind \"compose\""
                .to_owned();
            self.add("pins", Verdict::Warning, text, Some(hint));
        }
    }

    /// Another backup's lines in crontabs.
    pub(super) fn other_backups(&mut self) {
        let lines: Vec<Line> = cron::lines(&self.run.cancel);
        if lines.is_empty() {
            self.ok("cron", "no other backup runs beside");
        }
        for line in lines {
            let text = format!("another backup runs beside: {}:{}: {}", line.file.display(), line.number, line.text);
            let hint =
                "`lifeboat doctor --compare DIR` tries what it has left; then remove the line, or keep it knowingly";
            self.add("cron", Verdict::Warning, text, Some(hint.to_owned()));
        }
    }

    /// Something runs what the policy schedules.
    pub(super) fn runner(&mut self) -> Result<(), OpsError> {
        let name = &self.policy.app.name;
        let way_out = runner::way_out(self.installation);
        match runner::find(self.installation, self.policy, self.run.now, &self.run.cancel)? {
            Runner::Service => self.ok("service", "runs what is scheduled"),
            Runner::Other(what) => self.ok("service", format!("none; {what}")),
            Runner::NotNeeded => self.ok("service", "nothing is scheduled"),
            Runner::Stopped(unit) => {
                let hint = format!("`{way_out}` starts it; `journalctl -u {unit}` says why it does not run");
                self.add("service", Verdict::Warning, format!("{unit} is enabled, and does not run"), Some(hint));
            }
            Runner::Nobody => {
                let text = "nothing runs what is scheduled: no service, no timer, no line of a crontab";
                let hint = format!("`{way_out}`; or a timer, or a crontab: lifeboat -p {name} --scheduled -q snapshot");
                self.add("service", Verdict::Warning, text, Some(hint));
            }
        }
        Ok(())
    }

    /// Somebody hears of a failure.
    pub(super) fn told(&mut self) {
        let name = &self.policy.app.name;
        let hears =
            |n: &&Notify| n.on.contains(&NotifyOn::Failure) || matches!(n.channel, NotifyChannel::Healthchecks(_));
        match self.policy.notify.iter().filter(hears).count() {
            0 => {
                let hint = format!("[notify] in {}, then `lifeboat -p {name} notify test`", self.policy.file.display());
                self.add("notify", Verdict::Warning, "nobody is told when something fails", Some(hint));
            }
            n => {
                self.ok("notify", format!("{n} {} of failures", if n == 1 { "channel hears" } else { "channels hear" }))
            }
        }
    }

    /// Files of this host that only root and this account should write.
    pub(super) fn state_folder(&mut self) {
        use std::os::unix::fs::MetadataExt;
        let state = self.installation.state_dir.clone();
        if let Ok(meta) = std::fs::metadata(&state)
            && meta.mode() & 0o022 != 0
        {
            let text = format!("{} can be written by others (mode {:04o})", state.display(), meta.mode() & 0o7777);
            self.add(
                "permissions",
                Verdict::Problem,
                text,
                Some(format!("chmod go-w {}", Path::new(&state).display())),
            );
        }
    }
}

/// The first line of what a tool says of itself.
fn tool(argv: &[&str]) -> Option<String> {
    let command = Command::new(argv.iter().copied()).timeout(TOOL_LIMIT);
    let out = HostPlace::new().output(command, 4096).ok()?;
    let text = String::from_utf8_lossy(&out).into_owned();
    text.lines().next().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty())
}
