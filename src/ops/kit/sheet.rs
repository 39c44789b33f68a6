//! The page's words and commands, without a form.
//!
//! Read at night by somebody who has never seen Lifeboat: each step is one thing to do, in the order in which it is done,
//! and every command runs as it stands there.

use super::carried::Carried;
use super::facts::Place;
use super::{Kit, Newest};
use crate::base::shell::shell_word;
use crate::base::time::rfc3339;
use chrono::{DateTime, Utc};

/// What is written in by hand.
pub const BLANK: &str = "______________________________";

/// What the caller adds to the page.
#[derive(Debug, Clone)]
pub struct Notes {
    pub printed: DateTime<Utc>,
    /// Where the identity lies.
    pub kept: Option<String>,
    /// Whom to ask.
    pub ask: Option<String>,
    /// The options that lead a command of today's host to its installation.
    pub options: String,
}

/// One thing to do.
#[derive(Debug, Clone)]
pub struct Step {
    pub title: &'static str,
    pub text: String,
    pub commands: Vec<String>,
}

/// A page.
#[derive(Debug)]
pub struct Sheet {
    pub title: String,
    pub lead: String,
    /// What is needed, and what is known: a name and its lines.
    pub facts: Vec<(&'static str, Vec<String>)>,
    pub steps: Vec<Step>,
    /// Title and lines of the box with the identity.
    pub secret: Option<(&'static str, String)>,
    pub foot: Vec<String>,
}

impl Sheet {
    pub fn new(kit: &Kit, carried: &Carried, notes: &Notes) -> Self {
        let facts = &kit.facts;
        let steps = vec![
            machine(kit),
            program(kit),
            identity(kit, carried),
            repository(kit),
            bring_back(kit),
            afterwards(kit),
            without_lifeboat(kit),
        ];
        Self {
            title: format!("Recovery kit: {} on {}", facts.policy, facts.host),
            lead: format!(
                "If this server is gone, {} comes back on a new machine. It takes the three things in bold below and the steps of this page, in order. Nothing else of the lost server is needed.",
                facts.policy
            ),
            facts: table(kit, carried, notes),
            steps,
            secret: match carried {
                Carried::Nothing => None,
                Carried::Plain(text) => Some(("identity.txt", text.expose().clone())),
                Carried::Sealed(text) => Some(("identity.age", text.clone())),
            },
            foot: foot(kit, notes),
        }
    }

    /// Every command in order, as one script has them.
    pub fn commands(&self) -> Vec<&str> {
        self.steps.iter().flat_map(|step| step.commands.iter().map(String::as_str)).collect()
    }
}

fn is_root(kit: &Kit) -> bool {
    kit.facts.account == "root"
}

fn table(kit: &Kit, carried: &Carried, notes: &Notes) -> Vec<(&'static str, Vec<String>)> {
    let facts = &kit.facts;
    let places = facts.places.iter().enumerate().map(|(n, place)| {
        let what = if n == 0 { "" } else { "copy: " };
        let reach = [("at", &place.endpoint), ("region", &place.region)];
        let reach = reach.into_iter().filter_map(|(word, value)| Some(format!(", {word} {}", value.as_ref()?)));
        format!("{what}{}{}", place.url, reach.collect::<String>())
    });
    let mut repository: Vec<String> = places.collect();
    if let Some(from) = facts.places.iter().find_map(|p| p.credentials.as_ref()) {
        repository.push(format!("keys of the bucket: {BLANK} (the lost server had them in {from})"));
    }
    repository.push(format!("id {}", facts.repository_id));
    let kept = notes.kept.clone().unwrap_or_else(|| BLANK.to_owned());
    let mut identity = vec![match carried {
        Carried::Nothing => format!("kept at: {kept}"),
        Carried::Plain(_) => {
            "in the box at the end of this page: whoever reads this page reads every snapshot".to_owned()
        }
        Carried::Sealed(_) => format!("in the box at the end of this page; its passphrase: {kept}"),
    }];
    let many = facts.recipients.len() > 1;
    identity.push(if many { "its public half is one of".to_owned() } else { "its public half is".to_owned() });
    identity.extend(facts.recipients.iter().cloned());
    let mut program = vec![format!("lifeboat {} ({}), kept at: {BLANK}", kit.program.version, kit.program.target)];
    program.push(format!("SHA-256 {}", kit.program.sha256.to_hex()));
    let mut list = vec![("The program", program), ("The identity", identity), ("The repository", repository)];
    list.push(("Application", vec![format!("{} in {}, run as {}", facts.policy, facts.root.display(), facts.account)]));
    list.push(("Signed by", vec![facts.signing_key.clone()]));
    if let Some(newest) = &kit.newest {
        list.push(("Newest snapshot", vec![format!("{} when this was printed", newest.id), expect(newest)]));
    }
    let elsewhere =
        if facts.external.is_empty() { "nothing that is known".to_owned() } else { facts.external.join(", ") };
    list.push(("Not in it", vec![elsewhere]));
    list.push(("Ask", vec![notes.ask.clone().unwrap_or_else(|| BLANK.to_owned())]));
    list
}

fn expect(newest: &Newest) -> String {
    format!("--expect {}:{}", newest.sequence.0, newest.header.to_hex())
}

fn machine(kit: &Kit) -> Step {
    let who = if is_root(kit) { "as root".to_owned() } else { format!("as {} in group docker", kit.facts.account) };
    Step {
        title: "A new machine",
        text: format!("Debian 12 or newer, {who}. Work in a folder of its own."),
        commands: vec!["mkdir -p -m 700 rescue && cd rescue".to_owned()],
    }
}

fn program(kit: &Kit) -> Step {
    let install =
        if is_root(kit) { "apt-get install -y ./lifeboat_*.deb" } else { "sudo apt-get install -y ./lifeboat_*.deb" };
    Step {
        title: "The program",
        text: "Copy the package into this folder. A program alone does as well: put it into a folder of PATH. From its source: cargo build --release --locked."
            .to_owned(),
        commands: vec![install.to_owned(), "lifeboat --version".to_owned()],
    }
}

fn identity(kit: &Kit, carried: &Carried) -> Step {
    let mut commands = Vec::new();
    let text = match carried {
        Carried::Nothing => "Copy it into this folder as identity.txt.",
        Carried::Plain(_) => {
            "Write the box's lines into identity.txt in this folder: by hand, or from the square by a phone's camera."
        }
        Carried::Sealed(_) => {
            "Write the box's lines into identity.age in this folder: by hand, or from the square by a phone's camera. age asks for the passphrase."
        }
    };
    if matches!(carried, Carried::Sealed(_)) {
        commands.push(format!("{}apt-get install -y age", if is_root(kit) { "" } else { "sudo " }));
        commands.push("age -d -o identity.txt identity.age".to_owned());
    }
    commands.push("chmod 600 identity.txt".to_owned());
    commands.push("export LIFEBOAT_IDENTITY=$PWD/identity.txt".to_owned());
    Step { title: "The identity", text: text.to_owned(), commands }
}

fn repository(kit: &Kit) -> Step {
    let places = &kit.facts.places;
    let mut text = String::new();
    if places.len() > 1 {
        text += "Take one of these places. ";
    }
    if places.iter().any(|p| !p.is_bucket()) {
        text += "A folder of the lost server is there again once its disk is. ";
    }
    let mut commands = Vec::new();
    for place in places {
        commands.push(format!("REPO={}", shell_word(&place.url)));
        commands.extend(bucket(place));
    }
    text += "The list begins with the newest snapshot. That somebody has removed newer ones is excluded by adding the --expect of above.";
    commands.push("lifeboat list --repository \"$REPO\"".to_owned());
    Step { title: "The repository", text, commands }
}

/// How the keys of a bucket reach the program.
fn bucket(place: &Place) -> Vec<String> {
    let Some(from) = &place.credentials else { return Vec::new() };
    let mut commands = Vec::new();
    match (from.strip_prefix("file:"), from.strip_prefix("profile:")) {
        (Some(path), _) => {
            let path = shell_word(path);
            // The policy that comes back reads them there.
            commands.push(format!("test -s {path} || (umask 077; mkdir -p \"$(dirname {path})\"; cat > {path})"));
            commands
                .push(format!("set -a; . {path}; set +a    # two lines: AWS_ACCESS_KEY_ID=…, AWS_SECRET_ACCESS_KEY=…"));
        }
        (_, Some(profile)) => commands.push(format!("export AWS_PROFILE={}", shell_word(profile))),
        _ => commands.push(
            "read -r AWS_ACCESS_KEY_ID; read -rs AWS_SECRET_ACCESS_KEY; export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY"
                .to_owned(),
        ),
    }
    let set = [("AWS_ENDPOINT_URL_S3", &place.endpoint), ("AWS_REGION", &place.region)];
    let set: Vec<String> =
        set.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", shell_word(value.as_ref()?)))).collect();
    if !set.is_empty() {
        commands.push(format!("export {}", set.join(" ")));
    }
    commands
}

fn bring_back(kit: &Kit) -> Step {
    let facts = &kit.facts;
    let recover =
        format!("lifeboat recover --repository \"$REPO\" --application {} --host {}", facts.policy, facts.host);
    Step {
        title: "Bring it back",
        text: "The first command changes nothing: it names what this machine lacks; install that. The second brings code, settings, certificates and data back, starts the application and checks it. It can be run again; if the machine stopped in the middle: lifeboat rollback --resume."
            .to_owned(),
        commands: vec![format!("{recover} --dry-run"), format!("{recover} --yes")],
    }
}

fn afterwards(kit: &Kit) -> Step {
    let policy = &kit.facts.policy;
    Step {
        title: "Afterwards",
        text: "Point the domain here, and look at the list of what was not brought (crontabs, firewall, services of others). Then this machine is backed up itself."
            .to_owned(),
        commands: vec![format!("lifeboat -p {policy} snapshot"), format!("lifeboat -p {policy} drill")],
    }
}

fn without_lifeboat(kit: &Kit) -> Step {
    let sudo = if is_root(kit) { "" } else { "sudo " };
    let mut text = "If the program cannot be had, age, zstd, tar and the script break-glass.sh (in the package, and kept with it) lay the files and dumps out.".to_owned();
    if kit.facts.places.iter().any(Place::is_bucket) {
        text += " A bucket is copied into a folder first, with any S3 program; REPO is that folder then.";
    }
    let snapshot = match &kit.newest {
        Some(newest) if kit.shared => newest.id.as_str(),
        _ => "latest",
    };
    Step {
        title: "Without Lifeboat",
        text,
        commands: vec![
            format!("{sudo}apt-get install -y age zstd tar jq openssh-client"),
            "bash break-glass.sh list \"$REPO\" --identity identity.txt".to_owned(),
            format!("bash break-glass.sh restore \"$REPO\" {snapshot} --identity identity.txt --into files"),
        ],
    }
}

fn foot(kit: &Kit, notes: &Notes) -> Vec<String> {
    vec![
        format!("Printed {} on {}.", rfc3339(notes.printed), kit.facts.host),
        format!(
            "When this page lies where it shall lie: lifeboat{} -p {} recovery-kit --confirm {}",
            notes.options, kit.facts.policy, kit.code
        ),
    ]
}
