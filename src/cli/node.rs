//! `trefoil node`: what a node's operator does beside running it.

use super::output::{Failure, Output};
use super::pending;
use crate::config::{NodeConfig, Settings, keys};
use crate::node::drill::{self, Drilled};
use crate::node::store::{self, StoreError};
use crate::policy::{Grant, Policy};
use clap::Subcommand;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

#[derive(Subcommand)]
pub enum Command {
    /// Check a policy file, and print what it grants. A node loads its policy file when it starts, and again on SIGHUP
    #[command(
        after_help = "Exit codes: 0 good, 2 not readable or with problems, each of which is named with its line."
    )]
    CheckPolicy {
        /// The file; docs/policy.md has its format
        file: PathBuf,
    },
    /// List what is prepared and not committed, and recoveries that wait, at a node that does not run; drop what never will be committed
    #[command(after_help = pending::HELP)]
    Pending(pending::Arguments),
    /// Prove that a node's data directory, or a backup of it, would bring the node back; nothing is signed or changed
    #[command(after_help = DRILL)]
    Drill {
        /// A copy of store.redb and slots, made while the node was stopped [default: the data_dir of the settings]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Take a backup of a node's database, which serves or is stopped
    #[command(after_help = super::backup::BACKUP)]
    Backup,
    /// Make a stopped node's store anew from a backup; the store is in quarantine then
    #[command(after_help = super::backup::RESTORE)]
    Restore(super::backup::Restore),
    /// Put a node's store under another master key, while the node is stopped
    #[command(after_help = REKEY)]
    Rekey {
        /// File with the new master key: 32 bytes as hex or base64 (`trefoil identity new --kind secret`)
        #[arg(long, value_name = "FILE")]
        new_master_key_file: PathBuf,
    },
}

const REKEY: &str = "\
Uses the node's own settings (--config, or TREFOIL_CONFIG and TREFOIL_*) with the old master key; put the new one there before the \
node is started. Every data key is wrapped anew and the slot file overwritten in place. Cut off at any moment, the store belongs to the old key or \
to the new one, whole. An old copy of the slot file still opens with the old master key: make a new backup over the old one.
Exit codes: 0 done, 2 nothing was changed.";

const DRILL: &str = "\
Uses the node's own settings (--config, or TREFOIL_CONFIG and TREFOIL_*), above all its master key and identity. Every share is decrypted and \
compared with its verifying share and with what the node attested. The node must not be running on that directory, and \
store.redb and slots must be of the same time: an old copy of one beside a newer other is refused, as the node would. A store that \
was restored from a backup may have lost shares, of keys that got other shares or ended after the backup was taken. What bears the \
signature of a former identity (former_identities) is whole, and counted besides: a drill cannot tell it from what a thief of that \
identity's seed signed.
Exit codes: 0 every share is whole, 2 not readable, 4 a share is not whole.";

pub async fn run(config: Option<&Path>, command: &Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Backup => super::backup::backup(config, output).await,
        Command::Restore(arguments) => super::backup::restore(config, arguments, output),
        Command::CheckPolicy { file } => check_policy(file, output),
        Command::Pending(arguments) => pending::run(config, arguments, output).await,
        Command::Rekey { new_master_key_file } => rekey(config, new_master_key_file, output),
        Command::Drill { data_dir } => drill(config, data_dir.as_deref(), output),
    }
}

/// What a store said, with the directory that it is about.
pub(super) fn about(directory: &Path, error: &StoreError) -> Failure {
    Failure::usage(format!("{}: {error}", directory.display()))
}

/// The settings of a node: environment, and the file given.
pub(super) fn node_settings(file: Option<&Path>) -> Result<NodeConfig, Failure> {
    let mut env: HashMap<String, String> = std::env::vars().collect();
    env.extend(file.map(|path| ("TREFOIL_CONFIG".to_owned(), path.to_string_lossy().into_owned())));
    NodeConfig::read(Settings::from_env(env)).map_err(|error| Failure::usage(error.to_string()))
}

fn drill(config: Option<&Path>, data_dir: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let config = node_settings(config)?;
    let directory = data_dir.unwrap_or(&config.data_dir);
    let (identity, former) = (config.identity.verifying_key(), &config.former_identities);
    let drilled = drill::drill(directory, config.role, config.master_key, &identity, former);
    let Drilled { whole, former, ended, lost, broken } = drilled.map_err(|error| about(directory, &error))?;
    if !broken.is_empty() {
        return Err(Failure::Drill { whole, broken });
    }
    let lines = [
        ("whole", whole.to_string()),
        ("former", format!("{former} of them attested under a former identity")),
        ("ended", ended.to_string()),
        ("lost", lost.to_string()),
        ("broken", "0".to_owned()),
    ];
    output.answer(&lines, &json!({ "whole": whole, "former": former, "ended": ended, "lost": lost, "broken": [] }));
    Ok(())
}

fn rekey(config: Option<&Path>, new: &Path, output: &Output) -> Result<(), Failure> {
    let config = node_settings(config)?;
    let unreadable = |what: &dyn Display| Failure::usage(format!("{}: {what}", new.display()));
    let text = Zeroizing::new(std::fs::read_to_string(new).map_err(|error| unreadable(&error))?);
    let key = keys::secret32(text.trim()).ok_or_else(|| unreadable(&"must be 32 bytes as hex or base64"))?;
    let shares = store::rekey(&config.data_dir, config.role, config.master_key, &key);
    let shares = shares.map_err(|error| about(&config.data_dir, &error))?;
    output.answer(&[("shares", shares.to_string())], &json!({ "shares": shares }));
    Ok(())
}

fn check_policy(file: &Path, output: &Output) -> Result<(), Failure> {
    let policy = Policy::load(file)?;
    let digest = HEXLOWER.encode(&policy.digest());
    let mut lines = vec![("digest", digest.clone())];
    for grant in policy.grants() {
        lines.extend(shown(grant));
    }
    let initiators: Vec<Value> = policy.grants().into_iter().map(object).collect();
    output.answer(&lines, &json!({ "digest": digest, "initiators": initiators }));
    Ok(())
}

fn shown(grant: &Grant) -> Vec<(&'static str, String)> {
    let rates = grant.jobs_per_minute.iter().map(|(op, rate)| format!("{op} {rate}"));
    let mut lines = vec![
        ("", String::new()),
        ("initiator", format!("{}  {}", grant.name, listed(&grant.keys, ""))),
        ("  operations", listed(&grant.operations, "none")),
        ("  curves", listed(&grant.curves, "none")),
        ("  raw digests", if grant.raw_digests { "yes" } else { "no: nothing is signed on secp256k1" }.to_owned()),
        ("  a job lives for", format!("{} s at most", grant.max_lifetime.as_secs())),
        ("  keys", grant.max_keys.map_or_else(|| "any number".to_owned(), |keys| format!("{keys} at most"))),
        ("  jobs a minute", listed(rates, "not limited")),
    ];
    if !grant.former.is_empty() {
        lines.push(("  also owns what was made for", listed(&grant.former, "")));
    }
    lines
}

fn listed<T: Display>(names: impl IntoIterator<Item = T>, none: &str) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { none.to_owned() } else { names.join(", ") }
}

fn object(grant: &Grant) -> Value {
    json!({
        "name": grant.name,
        "keys": grant.keys,
        "former": grant.former,
        "operations": grant.operations,
        "curves": grant.curves,
        "rawDigests": grant.raw_digests,
        "maxLifetimeSeconds": grant.max_lifetime.as_secs(),
        "maxKeys": grant.max_keys,
        "jobsPerMinute": grant.jobs_per_minute,
    })
}
