//! `trefoil nats-accounts`: who may do what on the NATS servers, as the part of their configuration that deploy/nats includes.

use super::keyfile::{Existing, write};
use super::output::{Failure, Output};
use clap::Args;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;

const ACCOUNTS: &str = include_str!("../../deploy/nats/accounts.conf.in");
const BACKEND: &str = include_str!("../../deploy/nats/backend.conf.in");

/// Each key is the public half (U...) of a connection's NKEY: `trefoil identity new --kind connection`.
#[derive(Args)]
pub struct Accounts {
    /// The workers' connections
    #[arg(long, value_name = "KEY", value_parser = user)]
    pub worker: String,
    /// Node 1's connection
    #[arg(long, value_name = "KEY", value_parser = user)]
    pub node1: String,
    /// Node 2's connection
    #[arg(long, value_name = "KEY", value_parser = user)]
    pub node2: String,
    /// Who watches events and the state of the streams
    #[arg(long, value_name = "KEY", value_parser = user)]
    pub monitor: String,
    /// Who may change the streams
    #[arg(long, value_name = "KEY", value_parser = user)]
    pub operator: String,
    /// Who sees the servers themselves (the system account)
    #[arg(long, value_name = "KEY", value_parser = user)]
    pub system: String,
    /// A backend: a name of capitals, digits and underscores, its connection's key, and the key that signs its jobs; more than once
    /// for several
    #[arg(long, value_name = "NAME=KEY,INITIATOR", value_parser = backend, required = true)]
    pub backend: Vec<Backend>,
}

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    accounts: Accounts,
    /// File to write, or to replace by a new one [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A backend's account.
#[derive(Clone)]
pub struct Backend {
    pub name: String,
    pub connection: String,
    /// Signs its jobs; whose results it reads.
    pub initiator: String,
}

/// The public key of a user: nothing else gets into the configuration.
fn user(text: &str) -> Result<String, String> {
    match nkeys::from_public_key(text) {
        Ok(_) if text.starts_with('U') => Ok(text.to_owned()),
        _ => Err("not the public key of a user (U...)".to_owned()),
    }
}

fn backend(text: &str) -> Result<Backend, String> {
    let named = text.split_once('=').and_then(|(name, keys)| Some((name, keys.split_once(',')?)));
    let (name, (connection, initiator)) = named.ok_or("not NAME=KEY,INITIATOR")?;
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
        return Err("the name may have capitals, digits and underscores".to_owned());
    }
    let [connection, initiator] = [user(connection)?, user(initiator)?];
    if connection == initiator {
        // A server chooses what a connection's key signs.
        return Err("the key of the connection must not sign jobs".to_owned());
    }
    Ok(Backend { name: name.to_owned(), connection, initiator })
}

impl Accounts {
    /// The part of the configuration.
    pub fn text(&self) -> Result<String, Failure> {
        let Self { worker, node1, node2, monitor, operator, system, backend } = self;
        let mut keys = BTreeSet::new();
        let connections = [worker, node1, node2, monitor, operator, system].into_iter();
        for key in connections.chain(backend.iter().map(|backend| &backend.connection)) {
            if !keys.insert(key) {
                return Err(Failure::usage(format!("{key} is given twice: each connection needs a key of its own")));
            }
        }
        let mut names = BTreeSet::new();
        if let Some(backend) = backend.iter().find(|backend| !names.insert(&backend.name)) {
            return Err(Failure::usage(format!("two backends are named {}", backend.name)));
        }
        let backends: String = backend
            .iter()
            .map(|backend| {
                BACKEND
                    .replace("@NAME@", &backend.name)
                    .replace("@CONNECTION@", &backend.connection)
                    .replace("@INITIATOR@", &backend.initiator)
            })
            .collect();
        Ok(ACCOUNTS
            .replace("@WORKER@", worker)
            .replace("@NODE1@", node1)
            .replace("@NODE2@", node2)
            .replace("@MONITOR@", monitor)
            .replace("@OPERATOR@", operator)
            .replace("@SYSTEM@", system)
            .replace("@BACKENDS@\n", &backends))
    }
}

pub fn run(Arguments { accounts, out }: &Arguments, output: &Output) -> Result<(), Failure> {
    let text = accounts.text()?;
    match out {
        Some(path) => {
            write(path, text.as_bytes(), Existing::Replace)?;
            output.answer(&[("accounts", path.display().to_string())], &json!({ "file": path }));
        }
        None => _ = output.entry(text.trim_end(), &json!({ "accounts": text })),
    }
    Ok(())
}
