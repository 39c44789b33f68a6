//! The arguments. What stands here is what `--help`, the manual page and the completions say.

use chrono::{DateTime, Utc};
mod keys;

pub use keys::{KeysCommand, RevokeArgs};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Backup, restore and rollback for web applications on one server.
///
/// Takes encrypted, deduplicated snapshots of Postgres, Redis, nginx, certificates, env files, volumes and git
/// checkouts, proves them, and restores them.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The policy: its name, or a file (anything with a `/` or ending in .toml). With a single policy installed it may
    /// be left out.
    #[arg(short, long, global = true, value_name = "NAME|FILE", env = "LIFEBOAT_POLICY", hide_env_values = true)]
    pub policy: Option<String>,
    /// Print one JSON document on standard output instead of text (docs/json.md).
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only errors, alarms, and what the command was asked to show.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more on standard error; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Where keys and policies lie [default: /etc/lifeboat, or ~/.config/lifeboat for an ordinary user].
    #[arg(long, global = true, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Where state, and by default the repository, lies [default: /var/lib/lifeboat, or ~/.local/state/lifeboat].
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// When to use colour; NO_COLOR is honoured.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = false)]
    pub color: ColorWhen,
    /// This run is by schedule, not by hand: a timer's, a crontab's, the service's.
    #[arg(long, global = true, hide = true)]
    pub scheduled: bool,
    /// The service started it for this slot, and keeps the books about how it came out.
    #[arg(long, global = true, hide = true, value_name = "TIME", requires = "scheduled")]
    pub slot: Option<DateTime<Utc>>,
    /// Which attempt at its slot it is.
    #[arg(long, global = true, hide = true, value_name = "N", requires = "slot", default_value_t = 1)]
    pub attempt: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

/// Which repository to read, and how: with a policy all of it is known; a stranger names it.
#[derive(Debug, Clone, Default, Args)]
pub struct Reading {
    /// The repository (a folder, or s3://bucket/prefix), instead of the policy's; then no policy is needed.
    #[arg(long, value_name = "URL")]
    pub repository: Option<String>,
    /// The identity file, instead of the policy's or <config-dir>/identity.txt.
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
    pub identity: Option<PathBuf>,
    /// The repository id that is expected (SHA256:…): the fingerprint of its root key.
    #[arg(long, value_name = "FINGERPRINT")]
    pub signer: Option<String>,
    /// Take whatever repository is there, if nothing says which one is right.
    #[arg(long, conflicts_with = "signer")]
    pub trust_on_first_use: bool,
    /// A snapshot's sequence and header hash that somebody else remembers: the history must hold it.
    #[arg(long, value_name = "SEQ:HASH")]
    pub expect: Option<String>,
    /// Only the snapshots of this host.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set up an application: keys, a commented policy, a repository.
    Init(InitArgs),
    /// Check a policy, or print it with every default.
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Make keys, or show what is there.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Take a snapshot now, and read it back.
    Snapshot(SnapshotArgs),
    /// List snapshots, newest first.
    List(ListArgs),
    /// Show a snapshot: its sources, streams and facts.
    Show(ShowArgs),
    /// List what a snapshot holds: sources, their streams, or the files below a path.
    Ls(LsArgs),
    /// Write one stream or file of a snapshot to standard output.
    Cat(CatArgs),
    /// Find files by name in the snapshots.
    Find(FindArgs),
    /// Say what changed between two snapshots.
    Diff(DiffArgs),
    /// Restore a snapshot, or a part of it, into a folder or over the live application.
    Restore(RestoreArgs),
    /// Return the live application, code, configuration, schema and data, to a tag, commit, snapshot or time.
    Rollback(RollbackArgs),
    /// Wrap an upgrade: a snapshot, the command, health checks, a second snapshot; and back where it fails.
    Guard(GuardArgs),
    /// The server is gone: bring one application back onto a machine that has only this program.
    Recover(RecoverArgs),
    /// Print a page with what a stranger needs to bring the application back on a bad night.
    RecoveryKit(RecoveryKitArgs),
    /// Prove a snapshot: restore it into throw-away services, and compare them with what the live ones were.
    Drill(DrillArgs),
    /// Run the policies by their schedules, until it is stopped: the service.
    Serve(ServeArgs),
    /// Who hears of failures, recoveries, drills and restores: the policy's [notify].
    Notify {
        #[command(subcommand)]
        command: NotifyCommand,
    },
    /// Say what a loss would cost now, and whether everything is fine: of every installed policy, or one.
    Status(StatusArgs),
    /// Show what happened: snapshots, drills and every other run on this host, newest first.
    History(HistoryArgs),
    /// Give a snapshot a tag: it is kept until untagged (with `keep_tagged`), and can be named by it.
    Tag(TagArgs),
    /// Take a tag from a snapshot.
    Untag(TagArgs),
    /// Hold a snapshot: no prune removes it until it is released (only `max_age` wins over it).
    Hold(HoldArgs),
    /// Let prune decide about a held snapshot again.
    Release(HoldArgs),
    /// Check that everything stored is still what it was.
    Verify(VerifyArgs),
    /// Remove the snapshots that the policy's [retention] does not keep, and delete what none needs any more.
    Prune(PruneArgs),
    /// Copy a repository to another place: the same snapshots, signatures and bytes.
    Copy(CopyArgs),
    /// Look for what would go wrong: keys, recipients, the repository and its server, free room, the age of the newest
    /// snapshot and drill, clocks, copies, sources, what no source captures, tools, other backups; of every installed
    /// policy, or one.
    Doctor(DoctorArgs),
    /// Make lost or damaged helper objects of a repository anew.
    Repair {
        #[command(subcommand)]
        command: RepairCommand,
    },
    /// Print a completion script for a shell.
    Completions { shell: Shell },
    /// Print the manual page (read it with `lifeboat man | man -l -`).
    Man {
        /// A command, for its own page (`man policy check`).
        command: Vec<String>,
        /// Write every page into this folder instead, as man looks for them (lifeboat.1, lifeboat-snapshot.1, …).
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        into: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The application's folder: its git checkout or compose project.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// The application's name, which is the policy's [default: made from the folder's name].
    #[arg(long)]
    pub name: Option<String>,
    /// Where snapshots go: a folder, or s3://bucket/prefix [default: <state-dir>/repository].
    #[arg(long, value_name = "URL")]
    pub repository: Option<String>,
    /// The server of an s3:// repository that is not AWS, such as https://s3.example.org.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The region of an s3:// repository.
    #[arg(long)]
    pub region: Option<String>,
    /// Where the credentials of an s3:// repository come from: default, env, profile:NAME or file:PATH.
    #[arg(long, value_name = "SOURCE")]
    pub credentials: Option<String>,
    /// Use this identity (an age identity file or an ssh-ed25519 private key) instead of <config-dir>/identity.txt.
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
    pub identity: Option<PathBuf>,
    /// Encrypt for this recipient as well (age1… or "ssh-ed25519 …"); may be repeated. On a sealed host at least one is
    /// needed.
    #[arg(long = "recipient", value_name = "RECIPIENT")]
    pub recipients: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Report every error of a policy with its line and column.
    Check {
        /// Also try whether the repository, every source and every recipient's identity is within reach.
        #[arg(long)]
        live: bool,
        /// The identity that shall prove the recipients with --live.
        #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
        identity: Option<PathBuf>,
    },
    /// Print the policy with every default filled in.
    Show,
}

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Give the snapshot a tag; may be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Give the commit that is checked out the same tags in git; none is ever moved.
    #[arg(long, requires = "tags")]
    pub git_tag: bool,
    /// Capture only this source; may be repeated.
    #[arg(long, value_name = "SOURCE")]
    pub only: Vec<String>,
    /// Read everything, also files that look unchanged.
    #[arg(long)]
    pub force: bool,
    /// What is far smaller than usual is meant to be so: its size of today is what is usual from now on.
    #[arg(long)]
    pub accept_size: bool,
    /// Then prove it: restore it into throw-away services, as `drill` does.
    #[arg(long, conflicts_with_all = ["dry_run", "only"])]
    pub drill: bool,
    /// Print the plan, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only snapshots with this tag.
    #[arg(long)]
    pub tag: Option<String>,
    /// Only the newest N.
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Only snapshots since this time ("2026-11-19", "3 days ago").
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only snapshots until this time.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An id, a unique prefix of one, a tag, `latest`, `latest~1`, or a time ("2026-11-19", "3 hours ago").
    pub id: String,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// The snapshot, as for `show`.
    pub id: String,
    /// SOURCE, SOURCE:PATH, or /PATH in whichever source has it.
    pub path: Option<OsString>,
    /// Everything below, not one level only.
    #[arg(short, long)]
    pub recursive: bool,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct CatArgs {
    /// The snapshot, as for `show`.
    pub id: String,
    /// SOURCE (when it has one stream), SOURCE:STREAM, SOURCE:PATH, or /PATH in whichever source has it.
    #[arg(value_name = "SOURCE[:PATH]")]
    pub what: OsString,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct FindArgs {
    /// A part of a path, or a pattern (`*.conf`, `etc/**/site.conf`).
    pub pattern: String,
    /// Only in this snapshot, named as for `show`.
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    /// Only in this source.
    #[arg(long)]
    pub source: Option<String>,
    /// No more paths than this.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub limit: usize,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The older snapshot, as for `show`.
    pub a: String,
    /// The newer snapshot.
    pub b: String,
    /// Only this source.
    #[arg(long)]
    pub source: Option<String>,
    /// Only this path and what is below it.
    #[arg(long)]
    pub path: Option<OsString>,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The snapshot, as for `show`; with --undo a transaction [default: the newest].
    #[arg(required_unless_present_any = ["resume", "undo"])]
    pub id: Option<String>,
    /// Restore only this source; may be repeated.
    #[arg(long, value_name = "SOURCE")]
    pub only: Vec<String>,
    /// Restore only this path and what is below it; may be repeated.
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<OsString>,
    /// The folder that the snapshot is laid out in; it must be empty or not exist yet.
    #[arg(long, value_name = "DIR",
        required_unless_present_any = ["in_place", "table", "database_as", "resume", "undo"])]
    pub into: Option<PathBuf>,
    /// Put it back over the live application: all of it or nothing, health-checked.
    #[arg(long, conflicts_with = "into")]
    pub in_place: bool,
    /// Put back only this table of a Postgres source (schema.name); may be repeated. Names its source with --only.
    #[arg(long = "table", value_name = "TABLE", conflicts_with = "into")]
    pub table: Vec<String>,
    /// Restore a database under this name beside the live one, which stays untouched.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["into", "table"])]
    pub database_as: Option<String>,
    /// Remove what is there before it is replaced, where there is no room for both.
    #[arg(long, conflicts_with = "into")]
    pub replace: bool,
    /// Make trees exactly what was captured: what is newer goes. Without it newer files stay.
    #[arg(long, conflicts_with = "into")]
    pub exact: bool,
    /// Go on although today's state of this source cannot be saved first; may be repeated.
    #[arg(long, value_name = "SOURCE", conflicts_with = "into")]
    pub accept_unsaved: Vec<String>,
    /// Do it without asking.
    #[arg(long)]
    pub yes: bool,
    /// Finish a restore in place that was cut short, or take it back.
    #[arg(long, conflicts_with_all = ["id", "only", "paths", "into", "in_place", "table", "database_as", "undo"])]
    pub resume: bool,
    /// Bring back what a restore in place replaced, as long as it is kept.
    #[arg(long, conflicts_with_all = ["only", "paths", "into", "in_place", "table", "database_as"])]
    pub undo: bool,
    /// Make device nodes, setuid bits and other attributes of the system as well.
    #[arg(long)]
    pub privileged: bool,
    /// Print the plan, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub reading: Reading,
}

/// Which of two values of a rotated secret stands afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EnvChoice {
    Live,
    Snapshot,
}

#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// A tag, a commit, a snapshot or a time; without it the newest snapshots are listed, with what each would cost.
    #[arg(long, value_name = "TAG|COMMIT|ID")]
    pub to: Option<String>,
    /// Return only this: code, env, data, or a source; may be repeated.
    #[arg(long, value_name = "PART")]
    pub only: Vec<String>,
    /// Return code, images and env, and leave the data as it is.
    #[arg(long)]
    pub keep_data: bool,
    /// With --keep-data: go on although the schema of today is not the one that the code knew.
    #[arg(long)]
    pub accept_schema: bool,
    /// A database whose server was of another major version gets a new data folder, filled from the dump; today's is kept.
    #[arg(long, conflicts_with = "keep_data")]
    pub new_data_dir: bool,
    /// Which value of a secret that was changed since stands afterwards.
    #[arg(long, value_name = "live|snapshot")]
    pub env: Option<EnvChoice>,
    /// Go on although today's state of this source cannot be saved first; may be repeated.
    #[arg(long, value_name = "SOURCE")]
    pub accept_unsaved: Vec<String>,
    /// Do it without asking.
    #[arg(long)]
    pub yes: bool,
    /// Finish a rollback that was cut short, or take it back.
    #[arg(long, conflicts_with_all = ["to", "only", "keep_data", "new_data_dir", "env", "undo"])]
    pub resume: bool,
    /// Bring back what a rollback replaced, as long as it is kept [default: the newest].
    #[arg(long, value_name = "ID", num_args = 0..=1, conflicts_with_all = ["to", "only", "keep_data", "new_data_dir", "env"])]
    pub undo: Option<Option<String>>,
    /// Print the plan, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Tag the snapshot after the command with this, and the one before it with before-TAG.
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,
    /// Where the command or the health checks fail: say so, and roll nothing back.
    #[arg(long)]
    pub no_rollback: bool,
    /// The identity file, instead of the policy's or <config-dir>/identity.txt.
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
    pub identity: Option<PathBuf>,
    /// The command, and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The snapshot [default: the newest complete one].
    pub id: Option<String>,
    /// Only this application, where the repository has several.
    #[arg(long, value_name = "NAME")]
    pub application: Option<String>,
    /// Go on although something is lacking that the old machine had.
    #[arg(long)]
    pub despite: bool,
    /// Do it without asking.
    #[arg(long)]
    pub yes: bool,
    /// Print what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct RecoveryKitArgs {
    /// Write it as a page to print (HTML, one sheet of A4) instead of as text to standard output.
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,
    /// Put the identity itself onto the page, in letters and as a code for cameras: the page then opens every snapshot.
    #[arg(long, requires = "page")]
    pub with_identity: bool,
    /// Seal that identity with the passphrase in this file's first line (/dev/stdin as well); `age -d` opens it.
    #[arg(long, value_name = "FILE", requires = "with_identity")]
    pub passphrase: Option<PathBuf>,
    /// Say on the page where the identity (or its passphrase) is kept [default: a line to write on].
    #[arg(long, value_name = "TEXT")]
    pub kept: Option<String>,
    /// Say on the page whom to ask [default: a line to write on].
    #[arg(long, value_name = "TEXT")]
    pub ask: Option<String>,
    /// Note that the page with this code was printed and put away, once the identity has opened the newest snapshot;
    /// without a code it is asked for.
    #[arg(long, value_name = "CODE", num_args = 0..=1, conflicts_with_all = ["page", "kept", "ask"])]
    pub confirm: Option<Option<String>>,
    /// The identity file, instead of the policy's or <config-dir>/identity.txt.
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
    pub identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DrillArgs {
    /// The snapshot, as for `show` [default: the newest complete one].
    pub id: Option<String>,
    /// Prove only this source; may be repeated. Such a drill is not recorded.
    #[arg(long, value_name = "SOURCE")]
    pub only: Vec<String>,
    /// Keep the files that were restored, for a look at them; servers are ended all the same.
    #[arg(long)]
    pub keep: bool,
    /// Plan a rollback of the live application as well, and change nothing: to the drilled snapshot, or to TAG.
    #[arg(long, value_name = "TAG", num_args = 0..=1)]
    pub rollback: Option<Option<String>>,
    /// Where the report page goes [default: <state-dir>/drills/].
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,
    /// Print the plan, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Instead: restore the newest pg_dump file of this folder into a throw-away server, and name what differs from the
    /// live database.
    #[arg(long, value_name = "DIR")]
    pub compare: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// How many policies may run at the same time.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub jobs: u8,
    /// Answer on this address of this machine: the status page, /health and /metrics (127.0.0.1:7800).
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// Send a test to every channel of the policy, and say how each took it.
    Test,
    /// Send what waits to be sent, of every policy: the service does so by itself.
    #[command(hide = true)]
    Deliver,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Red when the newest complete snapshot is older (26h, 8d) [default: what the schedule promises].
    #[arg(long, value_name = "AGE")]
    pub max_age: Option<String>,
    /// Write the metrics of `serve --listen` to this file as well, for a collector of text files.
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    #[command(flatten)]
    pub reading: Watching,
}

/// Which repository to look at from outside: no key is needed.
#[derive(Debug, Clone, Default, Args)]
pub struct Watching {
    /// Look at a repository (a folder, or s3://bucket/prefix) of another host: no policy and no key is needed. With
    /// --policy only at the snapshots of that name.
    #[arg(long, value_name = "URL")]
    pub repository: Option<String>,
    /// The repository id that is expected (SHA256:…): the fingerprint of its root key.
    #[arg(long, value_name = "FINGERPRINT", requires = "repository")]
    pub signer: Option<String>,
    /// A snapshot's sequence and header hash that somebody else remembers: the history must hold it.
    #[arg(long, value_name = "SEQ:HASH", requires = "repository")]
    pub expect: Option<String>,
    /// Only the snapshots of this host.
    #[arg(long, value_name = "NAME", requires = "repository")]
    pub host: Option<String>,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Only the newest N.
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct TagArgs {
    /// The snapshot, as for `show`; it must be one of this host's.
    pub id: String,
    /// The tag.
    pub tag: String,
}

#[derive(Debug, Args)]
pub struct HoldArgs {
    /// The snapshot, as for `show`; it must be one of this host's.
    pub id: String,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only these snapshots, named as for `show`.
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Read every stored byte, or so many percent of them (others in every run, until all have been read), and compare
    /// them with their names; needs no key.
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_missing_value = "100",
        value_parser = clap::value_parser!(u8).range(1..=100))]
    pub read_data: Option<u8>,
    /// Decrypt and check everything, as a restore would; needs the identity.
    #[arg(long, conflicts_with = "read_data")]
    pub deep: bool,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Say what would become of each snapshot, and why; do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Delete at once what nothing references, instead of condemning it first: for a local repository on a full disk.
    #[arg(long)]
    pub now: bool,
    /// Rewrite archives of which little is still needed, and join small ones; needs the identity. With --dry-run, say how
    /// much of what is stored is waste.
    #[arg(long)]
    pub repack: bool,
    /// Give up snapshots that are damaged or missing: while there are any, nothing else is removed.
    #[arg(long)]
    pub accept_lost: bool,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// Prune this host's snapshots of the policy [default: this host's own].
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// The identity file with which the root key vouches for this host's key to prune, where it does not yet.
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
    pub identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Only these snapshots, named as for `show` [default: all].
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Where the copy lies (a folder, or s3://bucket/prefix) [default: every copy that the policy lists].
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// Print what the copy lacks, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Read every byte of the copy back afterwards.
    #[arg(long, conflicts_with = "dry_run")]
    pub read_back: bool,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Debug, Subcommand)]
pub enum RepairCommand {
    /// Rebuild the index from the archives that this host's signed snapshots name; needs the policy and the identity.
    Index,
}
