//! Whether anything runs what a policy schedules: a service that is there, a unit of systemd that is enabled, a line of a
//! crontab, a script of somebody's own that one of these runs, or whatever has run it of late.
//!
//! Nothing is asked of systemd: what is enabled is linked below `*.wants`, and says itself what it starts.

use crate::base::cancel::Cancel;
use crate::base::ids::PolicyName;
use crate::ops::access::Installation;
use crate::ops::runs::{Book, What};
use crate::ops::script::Scripts;
use crate::ops::{OpsError, crontab};
use crate::place::account::is_root;
use crate::place::owner_is_gone;
use crate::policy::model::When;
use crate::policy::{Policy, schedule};
use chrono::{DateTime, TimeDelta, Utc};
use std::fs;
use std::path::{Path, PathBuf};

/// A run that a schedule began may be so late before it counts as the last.
const LATE: TimeDelta = TimeDelta::days(1);

/// What runs a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runner {
    /// The service, now.
    Service,
    /// A unit that starts the service, which does not run now.
    Stopped(String),
    /// A timer, a line of a crontab, or what ran last: for people.
    Other(String),
    /// Nothing is scheduled.
    NotNeeded,
    Nobody,
}

/// Whether a service runs for this state folder: its lock names it. The lock itself is not touched.
pub fn is_served(state_dir: &Path) -> bool {
    fs::read_to_string(state_dir.join("serve.lock")).is_ok_and(|mark| !mark.is_empty() && !owner_is_gone(&mark))
}

/// Looks for what runs a policy.
pub fn find(
    installation: &Installation,
    policy: &Policy,
    now: DateTime<Utc>,
    cancel: &Cancel,
) -> Result<Runner, OpsError> {
    if policy.schedule.snapshot == When::Off {
        return Ok(Runner::NotNeeded);
    }
    if is_served(&installation.state_dir) {
        return Ok(Runner::Service);
    }
    let whose =
        Whose { installation, is_standard: *installation == Installation::standard(), policy: &policy.app.name };
    let scripts = &mut Scripts::new();
    let mut stopped = None;
    for Enabled { name, starts } in enabled() {
        match whose.called_through(&starts, scripts) {
            Some((Called::Serve, _)) => stopped = Some(name),
            Some((Called::Snapshot, None)) => return Ok(Runner::Other(format!("{name} is enabled"))),
            Some((Called::Snapshot, Some(script))) => {
                let text = format!("{name} is enabled and runs {}, which calls it", script.display());
                return Ok(Runner::Other(text));
            }
            None => {}
        }
    }
    if let Some(name) = stopped {
        return Ok(Runner::Stopped(name));
    }
    for entry in crontab::entries(cancel) {
        let line = format!("{}:{}", entry.file.display(), entry.number);
        match whose.called_through(&entry.text, scripts) {
            Some((_, None)) => return Ok(Runner::Other(format!("{line} calls it"))),
            Some((_, Some(script))) => {
                return Ok(Runner::Other(format!("{line} runs {}, which calls it", script.display())));
            }
            None => {}
        }
    }
    let newest = match Book::look(&installation.state_dir)? {
        Some(book) => book.newest_scheduled(&policy.app.name, What::Snapshot)?,
        None => None,
    };
    let next = |run: DateTime<Utc>| schedule::coming(&policy.schedule, &policy.schedule.snapshot, run);
    let of_late = newest.filter(|run| next(run.begun).is_none_or(|next| now - next < LATE));
    Ok(of_late.map_or(Runner::Nobody, |_| Runner::Other("something ran the last scheduled snapshot in time".into())))
}

/// How to have the service run, for this account and installation.
pub fn way_out(installation: &Installation) -> String {
    if *installation != Installation::standard() {
        return format!(
            "lifeboat --config-dir {} --state-dir {} serve",
            installation.config_dir.display(),
            installation.state_dir.display()
        );
    }
    match (Path::new("/run/systemd/system").is_dir(), is_root()) {
        (false, _) => "lifeboat serve".to_owned(),
        (true, true) => "systemctl enable --now lifeboat".to_owned(),
        (true, false) => "systemctl --user enable --now lifeboat".to_owned(),
    }
}

struct Enabled {
    name: String,
    /// What it starts, one command a line.
    starts: String,
}

/// Services and timers that systemd starts by itself and that call this program.
fn enabled() -> Vec<Enabled> {
    let mut roots: Vec<PathBuf> = if is_root() {
        ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"].map(PathBuf::from).into()
    } else {
        ["/etc/systemd/user", "/usr/lib/systemd/user"].map(PathBuf::from).into()
    };
    if let Some(home) = std::env::var_os("HOME").filter(|_| !is_root()) {
        roots.push(PathBuf::from(home).join(".config/systemd/user"));
    }
    let below = |dir: &Path| -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        all.sort();
        all
    };
    let wants = roots.iter().flat_map(|root| below(root)).filter(|dir| dir.extension().is_some_and(|e| e == "wants"));
    wants.flat_map(|dir| below(&dir)).filter_map(|unit| starts(&unit)).collect()
}

/// What an enabled unit starts; a timer starts its service.
fn starts(link: &Path) -> Option<Enabled> {
    let name = link.file_name()?.to_str()?.to_owned();
    let (stem, kind) = name.rsplit_once('.')?;
    // `lifeboat-snapshot@shop.timer` is linked to its template.
    let file = fs::canonicalize(link).ok()?;
    let mut text = fs::read_to_string(&file).ok()?;
    if kind == "timer" {
        let named = text.lines().find_map(|l| l.trim().strip_prefix("Unit="));
        let service = named.map_or_else(|| format!("{stem}.service"), str::to_owned);
        let template = service.split_once('@').map(|(before, _)| format!("{before}@.service"));
        let beside = [Some(service), template].into_iter().flatten().map(|name| file.with_file_name(name));
        text = beside.filter_map(|file| fs::read_to_string(file).ok()).next()?;
    } else if kind != "service" {
        return None;
    }
    let instance = stem.split_once('@').map_or("", |(_, instance)| instance);
    let commands = text.lines().filter_map(|line| line.trim().strip_prefix("ExecStart="));
    let starts: Vec<String> = commands.map(|line| line.replace("%i", instance).replace("%I", instance)).collect();
    (!starts.is_empty()).then(|| Enabled { name, starts: starts.join("\n") })
}

#[derive(Debug, PartialEq, Eq)]
enum Called {
    Serve,
    Snapshot,
}

/// Of which installation and policy a call has to be.
struct Whose<'a> {
    installation: &'a Installation,
    /// The one that a call without `--config-dir` means.
    is_standard: bool,
    policy: &'a PolicyName,
}

impl Whose<'_> {
    /// What a line has this program do for the policy.
    fn called(&self, lines: &str) -> Option<Called> {
        lines.lines().find_map(|line| self.in_line(line))
    }

    /// The same, or what scripts have it do that a line runs.
    fn called_through(&self, lines: &str, scripts: &mut Scripts) -> Option<(Called, Option<PathBuf>)> {
        if let Some(called) = self.called(lines) {
            return Some((called, None));
        }
        let run = lines.lines().flat_map(|line| scripts.of_line(line));
        run.into_iter().find_map(|(path, text)| Some((self.called(&text)?, Some(path))))
    }

    fn in_line(&self, line: &str) -> Option<Called> {
        line.split([';', '&', '|']).find_map(|command| self.in_command(command))
    }

    fn in_command(&self, command: &str) -> Option<Called> {
        let words = command.split([' ', '\t', '"', '\'', '`', '(', ')']).filter(|w| !w.is_empty());
        let words: Vec<&str> = words.take_while(|word| !word.starts_with('#')).collect();
        let at =
            words.iter().position(|w| w.rsplit('/').next().is_some_and(|n| n.trim_start_matches('-') == "lifeboat"))?;
        // What only speaks of it.
        if words[..at].iter().any(|word| ["echo", "printf", "logger"].contains(word)) {
            return None;
        }
        let arguments = &words[at + 1..];
        // In a script it may be any.
        let is_variable = |given: &str| given.starts_with('$');
        let option = |names: &[&str]| {
            arguments.iter().enumerate().find_map(|(at, word)| match word.split_once('=') {
                Some((name, value)) if names.contains(&name) => Some(value),
                _ if names.contains(word) => arguments.get(at + 1).copied(),
                _ => None,
            })
        };
        let is_ours = match option(&["--config-dir"]) {
            Some(dir) => is_variable(dir) || Path::new(dir) == self.installation.config_dir,
            None => self.is_standard,
        };
        let is_policy = |given: &str| {
            let file = self.installation.policies().join(format!("{}.toml", self.policy));
            is_variable(given) || given == self.policy.as_str() || Path::new(given) == file
        };
        if !is_ours {
            return None;
        }
        if arguments.contains(&"serve") {
            return Some(Called::Serve);
        }
        let of_policy = option(&["--policy", "-p"]).is_none_or(is_policy);
        (arguments.contains(&"snapshot") && of_policy).then_some(Called::Snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_known_by_what_it_calls_and_for_whom() {
        let installation = Installation { config_dir: "/etc/lifeboat".into(), state_dir: "/var/lib/lifeboat".into() };
        let policy = "shop".parse().unwrap();
        let whose = Whose { installation: &installation, is_standard: true, policy: &policy };
        for (line, called) in [
            ("/usr/bin/lifeboat serve $LIFEBOAT_SERVE", Some(Called::Serve)),
            ("-/usr/bin/lifeboat --policy shop --scheduled --quiet snapshot", Some(Called::Snapshot)),
            ("0 2 * * * root lifeboat -p shop -q snapshot", Some(Called::Snapshot)),
            ("@daily lifeboat snapshot >/dev/null", Some(Called::Snapshot)),
            ("@daily lifeboat --policy=/etc/lifeboat/policies/shop.toml snapshot", Some(Called::Snapshot)),
            ("@daily cd /x && \"/opt/lifeboat\" -p shop snapshot", Some(Called::Snapshot)),
            ("@daily lifeboat -p other snapshot", None),
            ("for p in blog shop; do lifeboat -p \"$p\" snapshot; done", Some(Called::Snapshot)),
            ("if ! lifeboat -p shop -q snapshot; then echo lifeboat snapshot failed; fi", Some(Called::Snapshot)),
            ("lifeboat -p shop verify; echo \"lifeboat snapshot failed\"", None),
            ("lifeboat -p shop verify # not lifeboat -p shop snapshot", None),
            ("out=$(lifeboat -p shop snapshot)", Some(Called::Snapshot)),
            ("@daily lifeboat --config-dir /srv/other snapshot", None),
            ("@daily lifeboat -p shop verify", None),
            ("@daily /opt/snapshot --of lifeboats", None),
        ] {
            assert_eq!(whose.called(line), called, "{line}");
        }
        let elsewhere = Whose { is_standard: false, ..whose };
        assert_eq!(elsewhere.called("lifeboat serve"), None);
        assert_eq!(elsewhere.called("lifeboat --config-dir /etc/lifeboat serve"), Some(Called::Serve));
    }

    #[test]
    fn a_unit_says_what_it_starts_and_a_timer_its_service() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("a.service", "[Service]\nExecStart=/usr/bin/lifeboat serve\n");
        put("b@.service", "[Service]\nExecStart=/usr/bin/lifeboat -p %i snapshot\n");
        put("b@.timer", "[Timer]\nOnCalendar=daily\n");
        put("c.timer", "[Timer]\nUnit=a.service\n");
        put("d.socket", "[Socket]\nExecStart=lifeboat serve\n");
        let wants = dir.path().join("timers.target.wants");
        fs::create_dir(&wants).unwrap();
        for (link, file) in [("a.service", "a.service"), ("b@shop.timer", "b@.timer"), ("gone.service", "gone.service")]
        {
            std::os::unix::fs::symlink(dir.path().join(file), wants.join(link)).unwrap();
        }
        let of = |path: PathBuf| starts(&path).map(|enabled| enabled.starts);
        assert_eq!(of(wants.join("a.service")).as_deref(), Some("/usr/bin/lifeboat serve"));
        assert_eq!(of(wants.join("b@shop.timer")).as_deref(), Some("/usr/bin/lifeboat -p shop snapshot"));
        assert_eq!(of(dir.path().join("c.timer")).as_deref(), Some("/usr/bin/lifeboat serve"));
        assert_eq!((of(wants.join("gone.service")), of(dir.path().join("d.socket"))), (None, None));
    }
}
