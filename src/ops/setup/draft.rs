//! The policy that `init` writes: what was found, with a comment on every choice, and examples of what was not.

use super::init::Tight;
use crate::base::ids::PolicyName;
use crate::base::units::{format_size, human_size};
use crate::ops::discover::{Discovery, Find, Thing, Where};
use crate::policy::model::MinFree;
use std::path::Path;

/// What the draft is made of.
pub struct Draft<'a> {
    pub name: &'a PolicyName,
    pub root: &'a str,
    pub repository: &'a str,
    pub bucket: &'a BucketOptions,
    pub tight: Option<Tight>,
    pub recipients: &'a [String],
    pub identity: &'a Path,
    pub found: &'a Discovery,
}

/// How an s3:// repository is reached; each is written into the policy as it was given.
#[derive(Debug, Clone, Default)]
pub struct BucketOptions {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub credentials: Option<String>,
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A text in a comment, where a newline would end the comment.
fn in_comment(text: &str) -> String {
    text.replace(char::is_control, "?")
}

struct Lines(String);

impl Lines {
    fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }

    /// A comment, broken at blanks.
    fn say(&mut self, text: &str) {
        const WIDTH: usize = 116;
        let mut line = String::new();
        for word in in_comment(text).split(' ') {
            if !line.is_empty() && line.chars().count() + word.chars().count() > WIDTH {
                self.line(format!("# {line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(format!("# {line}"));
    }

    fn field(&mut self, name: &str, value: &toml::Value) {
        self.line(format!("{name} = {value}"));
    }

    /// A table of TOML that is not in effect until somebody takes the `# ` away.
    fn example(&mut self, about: &str, fields: &[&str]) {
        self.line("");
        self.say(about);
        self.line("# [[source]]");
        for field in fields {
            self.line(format!("# {field}"));
        }
    }
}

impl Draft<'_> {
    /// The policy's text.
    pub fn text(&self) -> String {
        let mut out = Lines(String::new());
        let name = self.name.as_str();
        out.line(format!("# Policy of the application {name:?}, written by `lifeboat init`."));
        out.line(format!(
            "# Check it after a change with `lifeboat policy check -p {name}`; `lifeboat policy show -p {name}`"
        ));
        out.line("# prints it with every default. It holds no secret: passwords are named by where they stand.");
        self.app(&mut out);
        self.repository(&mut out);
        self.implicit(&mut out);
        for find in &self.found.finds {
            source(&mut out, find);
        }
        self.outside(&mut out);
        self.health(&mut out);
        self.uncovered(&mut out);
        self.examples(&mut out);
        out.0
    }

    fn app(&self, out: &mut Lines) {
        out.line("\n[app]");
        out.line("# The name that its snapshots carry; another name begins another history.");
        out.line(format!("name = {}", quoted(self.name.as_str())));
        out.line("# The application's folder. Paths below are relative to it.");
        out.line(format!("root = {}", quoted(self.root)));
        if !self.found.app.is_empty() {
            out.line("# The compose project as it was started: Compose would not find these by itself.");
        }
        for (name, value) in &self.found.app {
            out.field(name, value);
        }
    }

    fn repository(&self, out: &mut Lines) {
        out.line("\n[repository]");
        if self.repository.starts_with("s3://") {
            out.line("# Where snapshots are stored, encrypted.");
        } else {
            out.line(
                "# Where snapshots are stored, encrypted. A folder on this machine does not survive this machine: copy it",
            );
            out.line("# elsewhere as it is, or put it on a disk that is elsewhere.");
        }
        out.line(format!("url = {}", quoted(self.repository)));
        self.bucket(out);
        if let Some(Tight { free, min_free }) = self.tight {
            out.say(&format!(
                "No writer fills the disk beyond this. Without it, that is {} of the disk, of which {} were free on the day \
                 of `lifeboat init`.",
                MinFree::default(),
                human_size(free),
            ));
            out.line(format!("min_free = {}", quoted(&format_size(min_free))));
        }
        out.line(
            "# Who can read the snapshots. A second recipient is a second key that opens them; add it as another line.",
        );
        out.line("recipients = [");
        for recipient in self.recipients {
            out.line(format!("    {},", quoted(recipient)));
        }
        out.line("]");
        let identity = in_comment(&self.identity.display().to_string());
        out.line(format!("# The identity that opens them is looked for in {identity},"));
        out.line("# or where this says. Snapshots, `list` and `verify` do without it: when it is away, this host is sealed and");
        out.line("# cannot read its own backups.");
        out.line("# identity = \"/mnt/usb/identity.txt\"");
    }

    fn bucket(&self, out: &mut Lines) {
        let BucketOptions { endpoint, region, credentials } = self.bucket;
        let fields = [
            ("endpoint", endpoint, "The server, where it is not AWS."),
            ("region", region, "The bucket's region."),
            ("credentials", credentials, "Where the key comes from: default, env, profile:NAME or file:PATH."),
        ];
        for (name, value, about) in fields {
            if let Some(value) = value {
                out.line(format!("# {about}"));
                out.line(format!("{name} = {}", quoted(value)));
            }
        }
    }

    fn implicit(&self, out: &mut Lines) {
        out.line("\n# Three sources always stand, without being named: `env` (.env files), `git` (commits, branches, edits) and");
        out.line(
            "# `compose` (compose files and image digests) of the root. Where there is nothing they capture nothing.",
        );
        let git = if self.found.git { "a checkout" } else { "none" };
        let project = match &self.found.project {
            Some(name) => format!("project {name:?}"),
            None => "nothing runs".to_owned(),
        };
        out.say(&format!("Seen by init: git: {git}; compose: {project}. One is switched off like this:"));
        for field in ["[[source]]", "kind = \"git\"", "enabled = false"] {
            out.line(format!("# {field}"));
        }
    }

    fn outside(&self, out: &mut Lines) {
        for external in &self.found.external {
            out.line("");
            out.say(&format!(
                "Not ours to back up: {} names it. Plans, status and recovery kit say that it is not in here.",
                external.seen_in
            ));
            out.line("[[external]]");
            out.line(format!("name = {}", quoted(&external.name)));
        }
    }

    fn health(&self, out: &mut Lines) {
        for check in &self.found.health {
            out.line("");
            out.say(&check.because);
            out.line("[[health]]");
            for (name, value) in &check.fields {
                out.field(name, value);
            }
        }
    }

    fn uncovered(&self, out: &mut Lines) {
        if self.found.uncovered.is_empty() {
            return;
        }
        out.line("\n# --- Not covered, as far as init could tell: ---");
        for one in &self.found.uncovered {
            let hint = one.hint.as_ref().map(|hint| format!(" {hint}.")).unwrap_or_default();
            out.say(&format!("- {}: {}.{hint}", one.what, one.why));
        }
    }

    fn examples(&self, out: &mut Lines) {
        let has = |kind: &str| self.found.finds.iter().any(|f| f.thing.kind() == kind);
        out.line("\n# --- Further sources, not in effect until you take the \"# \" away and `lifeboat policy check --live` agrees. ---");
        let examples: [(&str, &str, &[&str]); 7] = [
            (
                "env",
                "Name the env files to have their keys checked at every snapshot:",
                &["kind = \"env\"", "paths = [\".env\"]", "required = [\"DB_PASSWORD\"]"],
            ),
            (
                "postgres",
                "Postgres: a compose service (service = \"db\"), a container (container = \"…\"), or a URL without a password:",
                &[
                    "kind = \"postgres\"",
                    "url = \"postgres://shop@127.0.0.1:5432/shop\"",
                    "password_from = \".env:DB_PASSWORD\"",
                ],
            ),
            (
                "redis",
                "Redis:",
                &["kind = \"redis\"", "url = \"redis://127.0.0.1:6379\"", "password_from = \".env:REDIS_PASSWORD\""],
            ),
            ("nginx", "nginx' configuration:", &["kind = \"nginx\"", "paths = [\"/etc/nginx\"]"]),
            (
                "certificates",
                "certbot's certificates, through the links of live/:",
                &["kind = \"certificates\"", "paths = [\"/etc/letsencrypt\"]"],
            ),
            (
                "files",
                "Folders that git does not keep, such as uploads; excluded is what gitignore would exclude:",
                &["kind = \"files\"", "name = \"uploads\"", "paths = [\"uploads\"]", "exclude = [\"*.tmp\"]"],
            ),
            ("volume", "Named volumes of the compose project:", &["kind = \"volume\"", "volumes = [\"storage\"]"]),
        ];
        for (_, about, fields) in examples.iter().filter(|(kind, ..)| !has(kind)) {
            out.example(about, fields);
        }
    }
}

/// A source that is in effect.
fn source(out: &mut Lines, find: &Find) {
    out.line("");
    out.say(&format!("{}.", find.what));
    for because in &find.because {
        out.say(because);
    }
    out.line("[[source]]");
    out.line(format!("kind = {}", quoted(find.thing.kind())));
    if find.name != find.thing.kind() {
        out.line(format!("name = {}", quoted(&find.name)));
    }
    let at = match &find.thing {
        Thing::Postgres { at, .. } | Thing::Redis { at } | Thing::Command { at, .. } => Some(at),
        _ => None,
    };
    match at {
        Some(Where::Service { service, .. }) => out.line(format!("service = {}", quoted(service))),
        Some(Where::Container(name)) => out.line(format!("container = {}", quoted(name))),
        Some(Where::Url(url)) => out.line(format!("url = {}", quoted(url))),
        Some(Where::Host) | None => {}
    }
    for (name, value) in &find.fields {
        out.field(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::discover::{External, Uncovered, Well};
    use crate::policy;
    use toml::Value;

    fn draft(found: &Discovery, root: &str) -> String {
        let name = "shop".parse().unwrap();
        let recipients = ["age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz".to_owned()];
        Draft {
            name: &name,
            root,
            repository: "/var/lib/lifeboat/repository",
            bucket: &BucketOptions::default(),
            tight: Some(Tight { free: 23 << 30, min_free: 11 << 30 }),
            recipients: &recipients,
            identity: Path::new("/etc/lifeboat/identity.txt"),
            found,
        }
        .text()
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    fn texts(list: &[&str]) -> Value {
        Value::Array(list.iter().map(|t| text(t)).collect())
    }

    fn find(name: &str, thing: Thing, fields: Vec<(&'static str, Value)>) -> Find {
        Find { name: name.into(), thing, what: "odd \n name".into(), because: vec!["why\r\n".into()], fields }
    }

    fn found() -> Discovery {
        let at = |service: &str| Where::Service { service: service.into(), container: "c".into() };
        let mut json = toml::Table::new();
        json.insert("status".into(), text("ok"));
        Discovery {
            project: Some("shop".into()),
            app: vec![("compose_files", texts(&["docker-compose.prod.yml"]))],
            git: true,
            finds: vec![
                find(
                    "db",
                    Thing::Postgres { at: at("db"), own: "shop".into(), databases: vec![] },
                    vec![("databases", texts(&["a\"b"]))],
                ),
                find("cache", Thing::Redis { at: at("cache") }, vec![("password_from", text(".env:REDIS_PASSWORD"))]),
                find("env", Thing::Env(vec![]), vec![("paths", texts(&[".env"])), ("required", texts(&["A"]))]),
                find("volumes", Thing::Volumes(vec![]), vec![("volumes", texts(&["one", "two"]))]),
                find("dist", Thing::Path("/opt/shop/dist".into()), vec![("paths", texts(&["dist"]))]),
            ],
            external: vec![External { name: "Supabase: x.supabase.co".into(), seen_in: ".env:URL".into() }],
            health: vec![Well {
                because: "It answers.".into(),
                fields: vec![("http", text("http://127.0.0.1:8000/health")), ("json", Value::Table(json))],
            }],
            uncovered: vec![Uncovered::data("a\nb", "it is odd\n[app]", "look")],
            ..Discovery::default()
        }
    }

    #[test]
    fn the_draft_is_a_policy_and_so_is_every_example() {
        for (found, root) in [(found(), "/opt/shop"), (Discovery::default(), "/opt/the \"shop\"\\x")] {
            let text = draft(&found, root);
            let policy = policy::parse(Path::new("shop.toml"), &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(policy.app.root, Path::new(root));
            assert_eq!(policy.repository.min_free, MinFree::Bytes(11 << 30));
            let named: Vec<&str> = policy.sources.iter().filter(|s| !s.implicit).map(|s| s.name.as_str()).collect();
            assert_eq!(named, found.finds.iter().map(|f| f.name.as_str()).collect::<Vec<_>>());
            assert_eq!((policy.external.len(), policy.health.len()), (found.external.len(), found.health.len()));
            // Taking the "# " away from the examples leaves a policy that is valid too.
            let field = |l: &&str| {
                l.starts_with("[[source]]")
                    || l.split(" = ").next().is_some_and(|k| !k.contains(' ') && l.contains(" = "))
            };
            let all: Vec<&str> = text.lines().map(|l| l.strip_prefix("# ").filter(field).unwrap_or(l)).collect();
            let policy = policy::parse(Path::new("shop.toml"), &all.join("\n"))
                .unwrap_or_else(|e| panic!("{e}\n{}", all.join("\n")));
            let explicit: Vec<&str> = policy.sources.iter().filter(|s| !s.implicit).map(|s| s.spec.kind()).collect();
            for kind in ["env", "postgres", "redis", "nginx", "certificates", "files", "volume"] {
                assert!(explicit.contains(&kind), "{kind} is not in {explicit:?}\n{text}");
            }
            assert!(policy.sources.iter().all(|s| s.spec.kind() != "git"), "git can be switched off");
        }
    }
}
