//! `trefoil node`: what a node's operator does beside running it.

use super::output::{Failure, Output};
use crate::policy::{Grant, Policy};
use clap::Subcommand;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use std::fmt::Display;
use std::path::{Path, PathBuf};

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
}

pub fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::CheckPolicy { file } => check_policy(file, output),
    }
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
    vec![
        ("", String::new()),
        ("initiator", format!("{}  {}", grant.name, grant.key)),
        ("  operations", listed(&grant.operations, "none")),
        ("  curves", listed(&grant.curves, "none")),
        ("  raw digests", if grant.raw_digests { "yes" } else { "no: nothing is signed on secp256k1" }.to_owned()),
        ("  a job lives for", format!("{} s at most", grant.max_lifetime.as_secs())),
        ("  keys", grant.max_keys.map_or_else(|| "any number".to_owned(), |keys| format!("{keys} at most"))),
        ("  jobs a minute", listed(rates, "not limited")),
    ]
}

fn listed<T: Display>(names: impl IntoIterator<Item = T>, none: &str) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { none.to_owned() } else { names.join(", ") }
}

fn object(grant: &Grant) -> Value {
    json!({
        "name": grant.name,
        "key": grant.key,
        "operations": grant.operations,
        "curves": grant.curves,
        "rawDigests": grant.raw_digests,
        "maxLifetimeSeconds": grant.max_lifetime.as_secs(),
        "maxKeys": grant.max_keys,
        "jobsPerMinute": grant.jobs_per_minute,
    })
}
