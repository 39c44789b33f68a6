//! The policy that `init` writes: small, with a comment on every choice, and examples of what it could not know.

use super::look::Seen;
use crate::base::ids::PolicyName;
use std::path::Path;

/// What the draft is made of.
pub struct Draft<'a> {
    pub name: &'a PolicyName,
    pub root: &'a str,
    pub repository: &'a str,
    pub bucket: &'a BucketOptions,
    pub recipients: &'a [String],
    pub identity: &'a Path,
    pub seen: &'a Seen,
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

fn list(names: &[String]) -> String {
    names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", ")
}

/// A path in a comment, where a newline would end the comment.
fn in_comment(path: &Path) -> String {
    path.display().to_string().replace(char::is_control, "?")
}

struct Lines(String);

impl Lines {
    fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }

    /// A table of TOML that is not in effect until somebody takes the `# ` away.
    fn example(&mut self, about: &str, fields: &[String]) {
        self.line("");
        self.line(format!("# {about}"));
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
        out.line("#");
        out.line(
            "# Snapshots are taken when they are asked for: call `lifeboat snapshot` from cron or a systemd timer.",
        );
        self.app(&mut out);
        self.repository(&mut out);
        self.implicit(&mut out);
        self.stores(&mut out);
        self.host_files(&mut out);
        out.0
    }

    fn app(&self, out: &mut Lines) {
        out.line("\n[app]");
        out.line("# The name that its snapshots carry; another name begins another history.");
        out.line(format!("name = {}", quoted(self.name.as_str())));
        out.line("# The application's folder. Paths below are relative to it.");
        out.line(format!("root = {}", quoted(self.root)));
        let files = &self.seen.compose_files;
        if !files.is_empty() && !self.seen.compose_finds_its_file() {
            out.line(
                "# Compose does not find these by itself; without this line the running containers' labels decide.",
            );
            out.line(format!("# compose_files = [{}]", list(files)));
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
        out.line(
            "# Who can read the snapshots. A second recipient is a second key that opens them; add it as another line.",
        );
        out.line("recipients = [");
        for recipient in self.recipients {
            out.line(format!("    {},", quoted(recipient)));
        }
        out.line("]");
        out.line(format!("# The identity that opens them is looked for in {},", in_comment(self.identity)));
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
        let seen = self.seen;
        out.line("\n# Three sources always stand, without being named: `env` (.env files), `git` (commits, branches, edits) and");
        out.line(
            "# `compose` (compose files and image digests) of the root. Where there is nothing they capture nothing.",
        );
        let or_none = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        out.line(format!(
            "# Seen by init: env files: {}; compose files: {};",
            or_none(&seen.env_files),
            or_none(&seen.compose_files)
        ));
        out.line(format!("# git: {}. One is switched off like this:", if seen.git { "a checkout" } else { "none" }));
        for field in ["[[source]]", "kind = \"git\"", "enabled = false"] {
            out.line(format!("# {field}"));
        }
        out.example(
            "Name the env files to have their keys checked at every snapshot:",
            &[
                "kind = \"env\"".into(),
                format!(
                    "paths = [{}]",
                    if seen.env_files.is_empty() { "\".env\"".into() } else { list(&seen.env_files) }
                ),
                "required = [\"DB_PASSWORD\"]".into(),
            ],
        );
    }

    fn stores(&self, out: &mut Lines) {
        out.line("\n# --- Not captured until you take the \"# \" away and `lifeboat policy check --live` agrees. ---");
        for kind in ["postgres", "redis"] {
            let seen: Vec<_> = self.seen.stores.iter().filter(|s| s.0 == kind).collect();
            for (at, (_, service, image)) in seen.iter().enumerate() {
                let mut fields = vec![format!("kind = {}", quoted(kind))];
                if at > 0 {
                    fields.push(format!("name = {}", quoted(&format!("{kind}-{service}"))));
                }
                fields.push(format!("service = {}", quoted(service)));
                out.example(&format!("Seen in the compose files: service {service} of image {image}. Its account is read from the container."), &fields);
            }
            if seen.is_empty() {
                let (about, url) = match kind {
                    "postgres" => (
                        "Postgres: a compose service (service = \"db\"), a container (container = \"…\"), or a URL without a password:",
                        "postgres://shop@127.0.0.1:5432/shop",
                    ),
                    _ => ("Redis:", "redis://127.0.0.1:6379"),
                };
                let key = if kind == "postgres" { "DB_PASSWORD" } else { "REDIS_PASSWORD" };
                out.example(
                    about,
                    &[
                        format!("kind = {}", quoted(kind)),
                        format!("url = {}", quoted(url)),
                        format!("password_from = \".env:{key}\""),
                    ],
                );
            }
        }
    }

    fn host_files(&self, out: &mut Lines) {
        let here = |there: bool| if there { " (there is one on this host)" } else { "" };
        out.example(
            &format!("nginx' configuration{}:", here(self.seen.nginx)),
            &["kind = \"nginx\"".into(), "paths = [\"/etc/nginx\"]".into()],
        );
        out.example(
            &format!("certbot's certificates, through the links of live/{}:", here(self.seen.certificates)),
            &["kind = \"certificates\"".into(), "paths = [\"/etc/letsencrypt\"]".into()],
        );
        out.example(
            "Folders that git does not keep, such as uploads; excluded is what gitignore would exclude:",
            &[
                "kind = \"files\"".into(),
                "name = \"uploads\"".into(),
                "paths = [\"uploads\"]".into(),
                "exclude = [\"*.tmp\"]".into(),
            ],
        );
        out.example(
            "Named volumes of the compose project:",
            &["kind = \"volume\"".into(), "volumes = [\"storage\"]".into()],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;

    fn draft(seen: &Seen, root: &str) -> String {
        let name = "shop".parse().unwrap();
        let recipients = ["age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz".to_owned()];
        let identity = Path::new("/etc/lifeboat/identity.txt");
        Draft {
            name: &name,
            root,
            repository: "/var/lib/lifeboat/repository",
            bucket: &BucketOptions::default(),
            recipients: &recipients,
            identity,
            seen,
        }
        .text()
    }

    fn seen() -> Seen {
        let store = |kind, service: &str, image: &str| (kind, service.to_owned(), image.to_owned());
        Seen {
            git: true,
            env_files: vec![".env".into(), ".env.prod".into()],
            compose_files: vec!["docker-compose.prod.yml".into()],
            stores: vec![
                store("postgres", "db", "postgres:15"),
                store("postgres", "stats", "postgres:15"),
                store("redis", "cache", "redis:7"),
            ],
            nginx: true,
            certificates: false,
        }
    }

    #[test]
    fn the_draft_is_a_policy_and_so_is_every_example() {
        for (seen, root) in [(seen(), "/opt/shop"), (Seen::default(), "/opt/the \"shop\"\\x")] {
            let text = draft(&seen, root);
            let policy = policy::parse(Path::new("shop.toml"), &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(policy.app.root, Path::new(root));
            assert!(policy.sources.iter().all(|s| s.implicit), "nothing is captured that was not there");
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
