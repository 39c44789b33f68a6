//! `tag` and `untag`.

use crate::base::ids::Tag;
use crate::cli::args::TagArgs;
use crate::cli::commands::hold::mark;
use crate::cli::exit::{Exit, Failure};
use crate::cli::session::{Session, argument};
use crate::ops::mark::Mark;

pub fn tag(session: &Session, args: &TagArgs) -> Result<Exit, Failure> {
    let what = format!("tag {}", args.id);
    let tag = tag_of(args).map_err(|f| f.attempted(what.clone()))?;
    let done = |id: &str, policy: &str| match session.policy().is_ok_and(|p| p.retention.keep_tagged) {
        true => format!("tagged {id} of {policy} with {tag}: it is kept until it is untagged\n"),
        false => format!("tagged {id} of {policy} with {tag}\n"),
    };
    mark(session, &args.id, &Mark::Tag(tag.clone()), done).map_err(|f| f.attempted(what))
}

pub fn untag(session: &Session, args: &TagArgs) -> Result<Exit, Failure> {
    let what = format!("untag {}", args.id);
    let tag = tag_of(args).map_err(|f| f.attempted(what.clone()))?;
    let done = |id: &str, policy: &str| format!("took {tag} from {id} of {policy}\n");
    mark(session, &args.id, &Mark::Untag(tag.clone()), done).map_err(|f| f.attempted(what))
}

fn tag_of(args: &TagArgs) -> Result<Tag, Failure> {
    argument("TAG", &args.tag)
}
