//! Arguments of `keys`.

use super::Reading;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make an identity and a host key; nothing is ever overwritten.
    New,
    /// One more who can open what is stored from now on: adds it to the policy's recipients.
    AddRecipient {
        /// An age1… key, or an ssh-ed25519 public key.
        recipient: String,
        /// Its identity file, where it is at hand, to prove that it opens what is sealed to the recipient.
        #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
        identity: Option<PathBuf>,
    },
    /// Make this host another key, in the place of one that was lost or seen by others; the identity vouches for it.
    Rotate {
        /// The identity file, instead of the policy's or <config-dir>/identity.txt.
        #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
        identity: Option<PathBuf>,
    },
    /// A host's key was stolen: what it signs counts for nothing from now on, and of what it signed before only what you say.
    Revoke(RevokeArgs),
    /// Show recipients, repository id and signing key; never a secret.
    Show {
        /// The identity file, instead of <config-dir>/identity.txt.
        #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY", hide_env_values = true)]
        identity: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The key, by the fingerprint that `keys show` and `verify` print; left out, those that there are are listed.
    pub key: Option<String>,
    /// The last snapshot of the key that is still good; once for each host and policy, and where none is named, none is.
    #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = ["stolen", "all_good"])]
    pub last_good: Vec<String>,
    /// When the key was stolen: what was in the storage before is still good. A day alone means its beginning.
    #[arg(long, value_name = "TIME", conflicts_with = "all_good")]
    pub stolen: Option<String>,
    /// All that is there is good: the key is out of use, and nobody has misused it.
    #[arg(long)]
    pub all_good: bool,
    /// Show what would become of each snapshot, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub reading: Reading,
}
