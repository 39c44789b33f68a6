//! `completions` and `man`: made from the same definition as `--help`.

use crate::cli::args::Cli;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{out_failure, write_out};
use crate::cli::session::Session;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

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

pub fn completions(session: &Session, shell: Shell) -> Result<Exit, Failure> {
    no_json(session, "a completion script is for a shell")?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lifeboat", &mut script);
    write_out(&script)?;
    Ok(Exit::Done)
}

pub fn man(session: &Session, command: Option<&str>) -> Result<Exit, Failure> {
    no_json(session, "a manual page is for man")?;
    let mut root = Cli::command();
    root.build();
    let page = match command {
        None => root,
        Some(name) => {
            let names: Vec<&str> = root.get_subcommands().map(clap::Command::get_name).collect();
            let hint = format!("the commands are {}", names.join(", "));
            let found = root.find_subcommand(name).cloned();
            found.ok_or_else(|| Failure::usage(format!("no command {name:?}"), hint))?
        }
    };
    let mut text = Vec::new();
    let man = Man::new(page).source(concat!("lifeboat ", env!("CARGO_PKG_VERSION"))).manual("Lifeboat");
    man.render(&mut text).map_err(out_failure)?;
    if command.is_none() {
        text.extend_from_slice(MORE.as_bytes());
    }
    write_out(&text)?;
    Ok(Exit::Done)
}

/// What is no document of ours cannot be one in JSON.
fn no_json(session: &Session, why: &str) -> Result<(), Failure> {
    if session.out.json {
        Err(Failure::usage(format!("--json is not possible here: {why}"), "leave it out"))
    } else {
        Ok(())
    }
}
