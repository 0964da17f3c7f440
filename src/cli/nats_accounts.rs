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
pub struct Arguments {
    /// The workers' connections
    #[arg(long, value_name = "KEY", value_parser = user)]
    worker: String,
    /// Node 1's connection
    #[arg(long, value_name = "KEY", value_parser = user)]
    node1: String,
    /// Node 2's connection
    #[arg(long, value_name = "KEY", value_parser = user)]
    node2: String,
    /// Who watches events and the state of the streams
    #[arg(long, value_name = "KEY", value_parser = user)]
    monitor: String,
    /// Who may change the streams
    #[arg(long, value_name = "KEY", value_parser = user)]
    operator: String,
    /// Who sees the servers themselves (the system account)
    #[arg(long, value_name = "KEY", value_parser = user)]
    system: String,
    /// A backend: a name of capitals, digits and underscores, its connection's key, and the key that signs its jobs; more than once
    /// for several
    #[arg(long, value_name = "NAME=KEY,INITIATOR", value_parser = backend, required = true)]
    backend: Vec<Backend>,
    /// File to write, or to replace by a new one [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone)]
struct Backend {
    name: String,
    connection: String,
    initiator: String,
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

pub fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let Arguments { worker, node1, node2, monitor, operator, system, backend, out } = arguments;
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
    let text = ACCOUNTS
        .replace("@WORKER@", worker)
        .replace("@NODE1@", node1)
        .replace("@NODE2@", node2)
        .replace("@MONITOR@", monitor)
        .replace("@OPERATOR@", operator)
        .replace("@SYSTEM@", system)
        .replace("@BACKENDS@\n", &backends);
    match out {
        Some(path) => {
            write(path, text.as_bytes(), Existing::Replace)?;
            output.answer(&[("accounts", path.display().to_string())], &json!({ "file": path }));
        }
        None => _ = output.entry(text.trim_end(), &json!({ "accounts": text })),
    }
    Ok(())
}
