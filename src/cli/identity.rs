//! `trefoil identity`: the keys that the parts of the service know each other by.

use super::keyfile::{Existing, write};
use super::output::{Failure, Output, merged};
use clap::{Args, Subcommand, ValueEnum};
use data_encoding::HEXLOWER;
use nkeys::{KeyPair, XKey};
use rand_core::{OsRng, RngCore};
use serde_json::json;
use std::path::PathBuf;
use zeroize::Zeroizing;

#[derive(Subcommand)]
pub enum Command {
    /// Make a new one
    New(New),
    /// Show the public half of a seed file
    Show {
        /// File with the seed
        file: PathBuf,
    },
}

#[derive(Args)]
pub struct New {
    /// What it is for
    #[arg(long, value_enum, default_value = "initiator")]
    kind: Kind,
    /// File for the seed, readable by its owner only; never overwritten [default: print the seed]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Kind {
    /// Signs a backend's jobs (SU…/U…)
    Initiator,
    /// Consents to recovery and destruction, beside the initiator (SU…/U…)
    Authoriser,
    /// A NATS connection of a backend, worker or node (SU…/U…)
    Connection,
    /// A node's identity: signs attestations (SN…/N…)
    Node,
    /// The channel of a worker or node (SX…/X…)
    #[value(alias = "worker")]
    Noise,
    /// Opens the secrets of jobs, at the workers (SX…/X…)
    Sealing,
    /// Opens the secrets of results, at a backend (SX…/X…)
    Reply,
    /// Opens the backups of a node, kept away from it (SX…/X…)
    Backup,
    /// 32 random bytes, hex: a node's master key, or a password for the KDF hkdf
    Secret,
}

impl Kind {
    /// A new one: its seed, and its public half where it has one.
    pub fn make(self) -> Result<(Zeroizing<String>, Option<String>), nkeys::error::Error> {
        Ok(match self {
            Self::Initiator | Self::Authoriser | Self::Connection => named(&KeyPair::new_user())?,
            Self::Node => named(&KeyPair::new_server())?,
            Self::Noise | Self::Sealing | Self::Reply | Self::Backup => {
                let key = XKey::new();
                (Zeroizing::new(key.seed()?), Some(key.public_key()))
            }
            Self::Secret => {
                let mut bytes = Zeroizing::new([0; 32]);
                OsRng.fill_bytes(bytes.as_mut());
                (Zeroizing::new(HEXLOWER.encode(bytes.as_ref())), None)
            }
        })
    }
}

fn named(key: &KeyPair) -> Result<(Zeroizing<String>, Option<String>), nkeys::error::Error> {
    Ok((Zeroizing::new(key.seed()?), Some(key.public_key())))
}

pub fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::New(new) => make(new, output),
        Command::Show { file } => show(file, output),
    }
}

fn make(new: &New, output: &Output) -> Result<(), Failure> {
    let (seed, public) = new.kind.make().map_err(|error| Failure::usage(error.to_string()))?;
    let kind = new.kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut lines = vec![("kind", kind.clone())];
    let object = json!({ "kind": kind, "publicKey": public });
    lines.extend(public.map(|public| ("public key", public)));
    let more = match &new.out {
        Some(path) => {
            write(path, format!("{}\n", seed.as_str()).as_bytes(), Existing::Refuse)?;
            lines.push(("seed file", path.display().to_string()));
            json!({ "file": path })
        }
        None => {
            lines.push(("seed", seed.to_string()));
            json!({ "seed": seed.as_str() })
        }
    };
    output.answer(&lines, &merged(object, more));
    Ok(())
}

fn show(file: &PathBuf, output: &Output) -> Result<(), Failure> {
    let unreadable = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", file.display()));
    let text = Zeroizing::new(std::fs::read_to_string(file).map_err(|error| unreadable(&error))?);
    let seed = text.trim();
    let public = XKey::from_seed(seed)
        .map(|key| key.public_key())
        .or_else(|_| KeyPair::from_seed(seed).map(|key| key.public_key()))
        .map_err(|_| unreadable(&"not a seed"))?;
    output.answer(&[("public key", public.clone())], &json!({ "publicKey": public }));
    Ok(())
}
