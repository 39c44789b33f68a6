//! `completions` and `man`: made from the same definition as `--help`.

use crate::cli::args::Cli;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{out_failure, write_out};
use crate::cli::session::Session;
use crate::ops::OpsError;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use std::path::Path;

/// The parts of the manual page that the arguments do not tell.
const MORE: &str = r#".SH "EXIT STATUS"
.TP
\fB0\fR
done
.TP
\fB1\fR
failed
.TP
\fB2\fR
usage or policy error
.TP
\fB3\fR
partial: some source failed, the rest is stored
.TP
\fB4\fR
integrity failure: something stored is damaged or forged
.TP
\fB5\fR
busy: another run holds this policy
.TP
\fB130\fR, \fB143\fR
ended by SIGINT or SIGTERM
.SH ENVIRONMENT
.TP
\fBLIFEBOAT_POLICY\fR
as \-\-policy
.TP
\fBLIFEBOAT_IDENTITY\fR
as \-\-identity
.TP
\fBNO_COLOR\fR
no colour
.TP
\fBRUST_LOG\fR
what is logged on standard error, such as \fBlifeboat=debug\fR
.SH FILES
.TP
\fI/etc/lifeboat\fR, \fI~/.config/lifeboat\fR
identity.txt, host.key, policies/*.toml
.TP
\fI/var/lib/lifeboat\fR, \fI~/.local/state/lifeboat\fR
state, and the repository unless the policy names another place
"#;

const SEE_ALSO: &str = r#".SH "SEE ALSO"
\fBlifeboat\fR(1), which has the exit statuses, the environment and the files
"#;

pub fn completions(session: &Session, shell: Shell) -> Result<Exit, Failure> {
    no_json(session, "a completion script is for a shell")?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lifeboat", &mut script);
    write_out(&script)?;
    Ok(Exit::Done)
}

pub fn man(session: &Session, words: &[String]) -> Result<Exit, Failure> {
    no_json(session, "a manual page is for man")?;
    let mut command = root();
    for word in words {
        let names: Vec<&str> = visible(&command).map(clap::Command::get_name).collect();
        let hint = match names.as_slice() {
            [] => format!("{} has none of its own", command.get_name()),
            names => format!("the commands are {}", names.join(", ")),
        };
        let found = visible(&command).find(|c| c.get_name() == word).cloned();
        command = found.ok_or_else(|| Failure::usage(format!("no command {word:?}"), hint))?;
    }
    write_out(&page(command)?)?;
    Ok(Exit::Done)
}

/// Every page into a folder, under the names that man looks for.
pub fn pages(session: &Session, dir: &Path) -> Result<Exit, Failure> {
    no_json(session, "a manual page is for man")?;
    std::fs::create_dir_all(dir).map_err(|e| Failure::from(OpsError::file("create folder", dir, e)))?;
    let mut left = vec![root()];
    while let Some(command) = left.pop() {
        left.extend(visible(&command).cloned());
        let path = dir.join(format!("{}.1", title(&command)));
        let page = page(command)?;
        std::fs::write(&path, page).map_err(|e| Failure::from(OpsError::file("write", path, e)))?;
    }
    Ok(Exit::Done)
}

/// All commands, each with the options that it takes from those above it.
fn root() -> clap::Command {
    let mut root = Cli::command();
    root.build();
    root
}

fn visible(command: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    command.get_subcommands().filter(|c| !c.is_hide_set())
}

/// `lifeboat-policy-check`.
fn title(command: &clap::Command) -> String {
    command.get_display_name().unwrap_or(command.get_name()).to_owned()
}

fn page(command: clap::Command) -> Result<Vec<u8>, Failure> {
    let is_root = title(&command) == "lifeboat";
    let mut text = Vec::new();
    let man = Man::new(command).source(concat!("lifeboat ", env!("CARGO_PKG_VERSION"))).manual("Lifeboat");
    man.render(&mut text).map_err(out_failure)?;
    text.extend_from_slice(if is_root { MORE } else { SEE_ALSO }.as_bytes());
    Ok(text)
}

/// What is no document of ours cannot be one in JSON.
fn no_json(session: &Session, why: &str) -> Result<(), Failure> {
    if session.out.json {
        Err(Failure::usage(format!("--json is not possible here: {why}"), "leave it out"))
    } else {
        Ok(())
    }
}
