//! Lines of crontabs that are another backup's. Secrets in them are masked before anybody sees them.

use crate::base::cancel::Cancel;
use crate::ops::crontab::{self, Entry};
use crate::ops::script::Scripts;
use std::path::PathBuf;

/// Programs that make or move backups.
const PROGRAMS: &[&str] = &[
    "pg_dump",
    "pg_dumpall",
    "pg_basebackup",
    "pgbackrest",
    "barman",
    "wal-g",
    "mysqldump",
    "mariadb-dump",
    "mongodump",
    "restic",
    "borg",
    "borgmatic",
    "duplicity",
    "duply",
    "rsnapshot",
    "rdiff-backup",
    "rsync",
    "rclone",
    "kopia",
    "tarsnap",
    "bupstash",
    "redis-check-rdb",
];
/// The longest that is shown of a line.
const SHOWN: usize = 160;

/// One line, masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub file: PathBuf,
    pub number: usize,
    pub text: String,
}

/// Every such line that this account may read, by file.
pub(super) fn lines(cancel: &Cancel) -> Vec<Line> {
    let scripts = &mut Scripts::new();
    let entries = crontab::entries(cancel);
    entries.iter().filter_map(|entry| of(entry).filter(|_| !is_ours(entry, scripts))).collect()
}

/// Whether all that speaks for another backup is the name of a script, and that one calls this program.
fn is_ours(entry: &Entry, scripts: &mut Scripts) -> bool {
    let is_program = words(&entry.text).any(|w| PROGRAMS.contains(&w));
    !is_program && scripts.of_line(&entry.text).iter().any(|(_, text)| words(text).any(|w| w == "lifeboat"))
}

/// In a crontab a script that is called after what it does counts as well.
fn of(entry: &Entry) -> Option<Line> {
    let line = entry.text.as_str();
    let ours = words(line).any(|w| w == "lifeboat");
    let is = words(line).any(|w| PROGRAMS.contains(&w))
        || (entry.is_crontab && words(line).any(|w| w.contains("backup") || w.contains("dump")));
    let text = || shortened(&masked(line));
    (is && !ours).then(|| Line { file: entry.file.clone(), number: entry.number, text: text() })
}

/// The names of programs and files in a line.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let ends = |c: char| {
        c.is_whitespace() || matches!(c, ';' | '|' | '&' | '(' | ')' | '"' | '\'' | '`' | '>' | '<' | '/' | '=')
    };
    line.split(ends).filter(|w| !w.is_empty())
}

fn shortened(line: &str) -> String {
    if line.chars().count() <= SHOWN { line.to_owned() } else { line.chars().take(SHOWN).chain(['…']).collect() }
}

/// The line without values that may be secrets: of variables and options that are named so, and in URLs.
fn masked(line: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut hide_next = false;
    // A secret with blanks in quotes is hidden up to the closing quote.
    let mut hide_to: Option<char> = None;
    let mysql = line.contains("mysql") || line.contains("mariadb");
    for word in line.split(' ') {
        if let Some(quote) = hide_to {
            if word.ends_with(quote) {
                hide_to = None;
            }
            continue;
        }
        let mut hidden = |value: &str| {
            let open = value.chars().next().filter(|c| matches!(c, '"' | '\''));
            hide_to = open.filter(|q| value.len() == 1 || !value.ends_with(*q));
        };
        let shown = if hide_next && !word.is_empty() {
            hide_next = false;
            hidden(word);
            "***".to_owned()
        } else if let Some((name, value)) = word.split_once('=').filter(|(name, _)| is_secret(name)) {
            hidden(value);
            format!("{name}=***")
        } else if let Some((scheme, rest)) = word.split_once("://")
            && let Some((_, server)) = rest.rsplit_once('@')
        {
            format!("{scheme}://***@{server}")
        } else if mysql && word.starts_with("-p") && word.len() > 2 && !word.starts_with("--") {
            hidden(&word[2..]);
            "-p***".to_owned()
        } else {
            let takes = ["-a", "--user", "-u"].contains(&word) && !line.contains("sudo -u")
                || (word.starts_with("--") && is_secret(word));
            hide_next = takes && word != "--no-password";
            word.to_owned()
        };
        out.push(shown);
    }
    out.join(" ")
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["PASS", "SECRET", "TOKEN", "KEY", "PWD", "AUTH", "CREDENTIAL"].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn backups_are_told_with_line_and_without_secrets() {
        let text = "SHELL=/bin/sh\n# 0 1 * * * pg_dump old\n\
            0 2 * * * root cd /srv/app && PGPASSWORD='s3 cret' docker-compose exec -T db pg_dump -U app app > /b/x.sql\n\
            @daily restic -r rest:https://u:s3cret@h/r backup --password-file /x /srv\n\
            5 4 * * * mysqldump -ps3cret --all-databases | gzip > a.gz\n\
            6 4 * * * /opt/app/scripts/nightly-backup.sh --token s3cret\n\
            7 4 * * * redis-cli -a s3cret --rdb /b/dump.rdb\n\
            * * * * * root /usr/bin/lifeboat snapshot --tag backup\n\
            * * * * * root /usr/sbin/logrotate /etc/logrotate.conf\n";
        let in_text = |file: &str, text: &str, is_crontab| -> Vec<Line> {
            crontab::in_text(Path::new(file), text, is_crontab).iter().filter_map(of).collect()
        };
        let found = in_text("/etc/cron.d/app", text, true);
        let numbers: Vec<usize> = found.iter().map(|l| l.number).collect();
        assert_eq!(numbers, [3, 4, 5, 6, 7], "{found:#?}");
        let all = format!("{found:#?}");
        assert!(!all.contains("s3") && !all.contains("cret"), "{all}");
        assert!(
            found[0].text.ends_with("PGPASSWORD=*** docker-compose exec -T db pg_dump -U app app > /b/x.sql"),
            "{all}"
        );
        assert!(found[1].text.contains("https://***@h/r"), "{all}");
        // A package's own script that only has such a word in its name is none.
        assert!(in_text("/etc/cron.daily/dpkg", "exec /usr/libexec/dpkg/dpkg-db-backup\n", false).is_empty());
        assert_eq!(in_text("/etc/cron.daily/x", "#!/bin/sh\nexec rsync -a /srv h:/b\n", false)[0].number, 2);
    }
}
