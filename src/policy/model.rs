//! The validated policy: what every other module works with. No serde here; `load` reads the TOML.

use crate::base::ids::{PolicyName, SourceName};
use crate::base::units::format_size;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One application's policy, valid in itself. Paths are absolute, and so are globs.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The file it was read from.
    pub file: PathBuf,
    /// The file's own text, for the recovery bundle.
    pub text: String,
    pub app: App,
    pub repository: Repository,
    pub schedule: Schedule,
    pub retention: Retention,
    pub sources: Vec<SourcePolicy>,
    pub external: Vec<String>,
    pub hooks: Hooks,
    pub health: Vec<HealthCheck>,
    pub rollback: Rollback,
    pub drill: Drill,
    pub notify: Vec<Notify>,
}

/// Two policies are equal when they say the same; which file they stand in, and its wording, does not count.
impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        let Policy {
            file: _,
            text: _,
            app,
            repository,
            schedule,
            retention,
            sources,
            external,
            hooks,
            health,
            rollback,
            drill,
            notify,
        } = self;
        *app == other.app
            && *repository == other.repository
            && *schedule == other.schedule
            && *retention == other.retention
            && *sources == other.sources
            && *external == other.external
            && *hooks == other.hooks
            && *health == other.health
            && *rollback == other.rollback
            && *drill == other.drill
            && *notify == other.notify
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct App {
    pub name: PolicyName,
    pub root: PathBuf,
    /// Empty: what the running containers' labels say, else Compose's own search.
    pub compose_files: Vec<PathBuf>,
    pub env_files: Vec<PathBuf>,
    pub profiles: Vec<String>,
    pub project: Option<String>,
    pub project_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Repository {
    pub url: RepositoryUrl,
    pub reach: Reach,
    /// `age1…` or `ssh-ed25519 …`, checked for form; never empty.
    pub recipients: Vec<String>,
    /// Absent on a sealed host.
    pub identity: Option<PathBuf>,
    /// zstd level, 1 to 19.
    pub compression: i32,
    pub min_free: MinFree,
    pub copies: Vec<CopyTo>,
}

/// A further repository that every snapshot is copied to.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyTo {
    pub url: RepositoryUrl,
    /// How it is reached. Absent: as the repository itself is.
    pub reach: Option<Reach>,
}

/// How an object store is reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Reach {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub credentials: Credentials,
    pub path_style: bool,
    /// Bytes per second.
    pub limit_upload: Option<u64>,
    pub object_lock: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryUrl {
    Local(PathBuf),
    S3 { bucket: String, prefix: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    Default,
    Env,
    Profile(String),
    File(PathBuf),
}

impl std::fmt::Display for RepositoryUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RepositoryUrl::Local(path) => path.display().fmt(f),
            RepositoryUrl::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            RepositoryUrl::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// No writer fills the disk beyond this.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MinFree {
    /// 0 to 100.
    Percent(f64),
    Bytes(u64),
}

impl Default for MinFree {
    fn default() -> Self {
        MinFree::Percent(10.0)
    }
}

impl fmt::Display for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MinFree::Percent(percent) => write!(f, "{percent}%"),
            MinFree::Bytes(bytes) => f.write_str(&format_size(*bytes)),
        }
    }
}

/// A cron expression that has been checked, or off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    Cron(String),
    Off,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Absent: the system's.
    pub timezone: Option<chrono_tz::Tz>,
    pub snapshot: When,
    pub verify: When,
    pub drill: When,
    pub prune: When,
    pub catch_up: bool,
    pub jitter: Duration,
    /// How often a scheduled run that failed is tried again before its next time comes.
    pub retries: u32,
    /// The pause before the first of these; each further one is three times as long.
    pub retry: Duration,
    /// The longest that a scheduled run may take.
    pub time_limit: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    pub keep_last: u32,
    pub keep_hourly: u32,
    pub keep_daily: u32,
    pub keep_weekly: u32,
    pub keep_monthly: u32,
    pub keep_yearly: u32,
    pub keep_within: Option<Duration>,
    pub keep_tagged: bool,
    pub max_age: Option<Duration>,
}

/// Where a server or program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A compose service of the policy's project.
    Service(String),
    /// A container by name.
    Container(String),
    /// `postgres://user@host:port/db`, `redis://host:port/0`; never a password in it.
    Url(String),
    /// The host itself: a local socket, a host command.
    Host,
}

/// Where a password comes from; never the password itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// `file:KEY`: a key of an env file.
    EnvFile { file: PathBuf, key: String },
    /// `env:NAME`: a variable of Lifeboat's own environment.
    Env(String),
    /// `file:PATH`: a file's content without its trailing newline.
    File(PathBuf),
}

/// What rollback does with a source (`recovery.md`'s table holds the defaults).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRollback {
    Restore,
    Keep,
    Flush,
    Add,
    Exact,
}

/// The name of the recovery bundle among a snapshot's sources; none of a policy's has it.
pub const RECOVERY: &str = "recovery";

#[derive(Debug, Clone, PartialEq)]
pub struct SourcePolicy {
    pub name: SourceName,
    pub on_rollback: OnRollback,
    /// The policy does not name it; it stands by default (`env`, `git`, `compose` of the root). Where there is nothing
    /// to capture it captures nothing and says so, and that is no failure.
    pub implicit: bool,
    /// A failure is a warning.
    pub optional: bool,
    /// The longest that a capture may take.
    pub timeout: Duration,
    pub spec: SourceSpec,
}

#[derive(Debug, Clone, PartialEq)]
pub enum SourceSpec {
    Postgres(PostgresSpec),
    Redis(RedisSpec),
    Env(EnvSpec),
    Certificates(CertificatesSpec),
    Nginx(NginxSpec),
    Files(FilesSpec),
    Volume(VolumeSpec),
    Command(CommandSpec),
    Git(GitSpec),
    Compose(ComposeSpec),
}

impl SourceSpec {
    /// The kind as the policy and the manifest write it.
    pub fn kind(&self) -> &'static str {
        match self {
            SourceSpec::Postgres(_) => "postgres",
            SourceSpec::Redis(_) => "redis",
            SourceSpec::Env(_) => "env",
            SourceSpec::Certificates(_) => "certificates",
            SourceSpec::Nginx(_) => "nginx",
            SourceSpec::Files(_) => "files",
            SourceSpec::Volume(_) => "volume",
            SourceSpec::Command(_) => "command",
            SourceSpec::Git(_) => "git",
            SourceSpec::Compose(_) => "compose",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fingerprint {
    None,
    Rows,
    Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Databases {
    /// The application's own: `POSTGRES_DB`, or the URL's.
    Own,
    /// All but templates.
    All,
    Named(Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct PostgresSpec {
    pub target: Target,
    /// Absent: the container's `POSTGRES_USER`, the URL's, or `postgres`.
    pub user: Option<String>,
    pub databases: Databases,
    pub password_from: Option<SecretRef>,
    pub fingerprint: Fingerprint,
    pub jobs: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RedisSpec {
    pub target: Target,
    /// ACL user; absent: the default user.
    pub user: Option<String>,
    pub password_from: Option<SecretRef>,
    pub tls: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct EnvSpec {
    /// Absolute paths or globs.
    pub paths: Vec<String>,
    /// gitignore syntax, relative to the root: what a glob shall not find, such as `.env.example`. A path that is
    /// written out is captured all the same.
    pub exclude: Vec<String>,
    pub required: Vec<String>,
    /// Key and regular expression.
    pub patterns: Vec<(String, String)>,
    /// Groups of (file, key) whose values must agree.
    pub same: Vec<Vec<(PathBuf, String)>>,
    pub data_keys: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CertificatesSpec {
    pub paths: Vec<String>,
    pub min_days: u32,
    pub via: Via,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NginxSpec {
    pub paths: Vec<String>,
    /// The container in which nginx runs, when it runs in one.
    pub container: Option<String>,
    pub via: Via,
}

/// How paths are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// By this process.
    Direct,
    /// Through a short-lived read-only helper container: root-owned paths for a user in group docker.
    Docker,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FilesSpec {
    pub paths: Vec<String>,
    /// gitignore syntax, relative to each path.
    pub exclude: Vec<String>,
    pub one_file_system: bool,
    pub via: Via,
}

#[derive(Debug, Clone, PartialEq)]
pub struct VolumeSpec {
    /// Volume names as the compose file has them, or as Docker has them.
    pub volumes: Vec<String>,
    pub exclude: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CommandSpec {
    pub run: Vec<String>,
    pub target: Target,
    pub restore: Option<Vec<String>>,
    pub check: Option<Vec<String>>,
    /// The stream's file name; absent: the source's name.
    pub output: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct GitSpec {
    /// Keep the commits themselves.
    pub bundle: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    Tag,
    Save,
    None,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ComposeSpec {
    pub pin: Pin,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hooks {
    pub before_snapshot: Vec<String>,
    pub after_snapshot: Vec<String>,
    pub before_rollback: Vec<String>,
    pub after_rollback: Vec<String>,
    pub on_failure: Vec<String>,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    pub kind: HealthKind,
    pub attempts: u32,
    pub interval: Duration,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub enum HealthKind {
    /// `json`: dotted path in the answer, and what stands there as text.
    Http {
        url: String,
        status: u16,
        json: Vec<(String, String)>,
    },
    Tcp(String),
    Container(String),
    Command(Vec<String>),
    Certificate {
        address: String,
        min_days: u32,
    },
    Disk {
        path: PathBuf,
        min_free: MinFree,
    },
    /// `max_memory_percent`: used memory against the server's own limit.
    Redis {
        source: SourceName,
        max_memory_percent: f64,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rollback {
    /// Empty: every service but the data stores.
    pub stop: Vec<String>,
    pub up: Option<String>,
    pub downgrade: Option<String>,
    pub keep_old: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Drill {
    pub postgres: DrillPostgres,
    pub memory: u64,
    pub max_age: Duration,
    pub checks: Vec<DrillCheck>,
}

impl Default for Drill {
    fn default() -> Self {
        Self {
            postgres: DrillPostgres::Auto,
            memory: 512 << 20,
            max_age: Duration::from_secs(8 * 86_400),
            checks: Vec::new(),
        }
    }
}

/// Where a drill restores Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrillPostgres {
    /// The live container's image, else local binaries of that major version.
    Auto,
    /// Only in a container of the live one's image.
    Image,
    /// Only with the host's own server binaries.
    Local,
    /// A scratch server, without a password in the URL.
    Server(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct DrillCheck {
    pub source: SourceName,
    pub sql: String,
    pub database: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotifyOn {
    Failure,
    Success,
    Drill,
    Rollback,
    Weekly,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Notify {
    pub channel: NotifyChannel,
    pub on: Vec<NotifyOn>,
}

/// URLs may hold tokens, so they come by reference: `file:KEY`, `env:NAME`, `file:PATH`; or plainly where they hold none.
#[derive(Debug, Clone, PartialEq)]
pub enum NotifyTarget {
    Plain(String),
    Secret(SecretRef),
}

#[derive(Debug, Clone, PartialEq)]
pub enum NotifyChannel {
    Webhook(NotifyTarget),
    Ntfy(NotifyTarget),
    Slack(NotifyTarget),
    Discord(NotifyTarget),
    Healthchecks(NotifyTarget),
    Email { to: Vec<String>, from: String, smtp: NotifyTarget },
}
