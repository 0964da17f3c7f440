//! `trefoil nats-accounts`: who may do what on the NATS servers, as the part of their configuration that deploy/nats includes.

use super::keyfile::{Existing, write};
use super::output::{Failure, Output};
use clap::Args;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

const ACCOUNTS: &str = include_str!("../../deploy/nats/accounts.conf.in");
const BACKEND: &str = include_str!("../../deploy/nats/backend.conf.in");

/// Each key is the public half (U...) of a connection's NKEY: `trefoil identity new --kind connection`. Give an option again while a
/// key is rotated: both keys may do the same.
#[derive(Args)]
pub struct Accounts {
    /// The workers' connections
    #[arg(long, value_name = "KEY", value_parser = user, required = true)]
    pub worker: Vec<String>,
    /// Node 1's connection
    #[arg(long, value_name = "KEY", value_parser = user, required = true)]
    pub node1: Vec<String>,
    /// Node 2's connection
    #[arg(long, value_name = "KEY", value_parser = user, required = true)]
    pub node2: Vec<String>,
    /// Who watches events and the state of the streams
    #[arg(long, value_name = "KEY", value_parser = user, required = true)]
    pub monitor: Vec<String>,
    /// Who may change the streams
    #[arg(long, value_name = "KEY", value_parser = user, required = true)]
    pub operator: Vec<String>,
    /// Who sees the servers themselves (the system account)
    #[arg(long, value_name = "KEY", value_parser = user, required = true)]
    pub system: Vec<String>,
    /// A backend: a name of capitals, digits and underscores, its connection's key, and the key that signs its jobs. More than once
    /// for several; the same name again for another key of either kind
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
        let roles = [
            ("@WORKER@", worker),
            ("@NODE1@", node1),
            ("@NODE2@", node2),
            ("@MONITOR@", monitor),
            ("@OPERATOR@", operator),
            ("@SYSTEM@", system),
        ];
        let backends = named(backend);
        let mut keys = BTreeSet::new();
        let connections = roles.iter().flat_map(|(_, keys)| keys.iter().map(String::as_str));
        for key in connections.chain(backends.values().flat_map(|backend| backend.connections.iter().copied())) {
            if !keys.insert(key) {
                return Err(Failure::usage(format!("{key} is given twice: each connection needs a key of its own")));
            }
        }
        let mut owners = BTreeSet::new();
        for key in backends.values().flat_map(|backend| &backend.initiators) {
            if !owners.insert(key) || keys.contains(key) {
                return Err(Failure::usage(format!(
                    "{key} is given twice: a key that signs jobs is one backend's, and no connection's"
                )));
            }
        }
        let backends: String = backends
            .iter()
            .map(|(name, backend)| {
                let connections: Vec<_> = backend.connections.iter().copied().collect();
                let text = users(&BACKEND.replace("@NAME@", name), "@CONNECTION@", &connections);
                lines(&text, "@INITIATOR@", &backend.initiators)
            })
            .collect();
        let text = roles.iter().fold(ACCOUNTS.to_owned(), |text, (placeholder, keys)| {
            users(&text, placeholder, &keys.iter().map(String::as_str).collect::<Vec<_>>())
        });
        Ok(text.replace("@BACKENDS@\n", &backends))
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

/// The keys of one backend, each once.
#[derive(Default)]
struct Keys<'a> {
    connections: BTreeSet<&'a str>,
    initiators: BTreeSet<&'a str>,
}

/// The backends by name: one that is given again has all the keys.
fn named(backends: &[Backend]) -> BTreeMap<&str, Keys<'_>> {
    let mut named: BTreeMap<&str, Keys<'_>> = BTreeMap::new();
    for backend in backends {
        let keys = named.entry(&backend.name).or_default();
        keys.connections.insert(&backend.connection);
        keys.initiators.insert(&backend.initiator);
    }
    named
}

/// The template with its user `{ nkey: @PLACEHOLDER@ ... }` once for each of these keys.
fn users(template: &str, placeholder: &str, keys: &[&str]) -> String {
    let Some(start) = template.find(&format!("{{ nkey: {placeholder}")) else { return template.to_owned() };
    let (before, rest) = template.split_at(start);
    let mut depth = 0_usize;
    let end = rest.char_indices().find_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => return None,
        }
        (depth == 0).then_some(at + 1)
    });
    let (user, after) = rest.split_at(end.unwrap_or(rest.len()));
    let users: Vec<_> = keys.iter().map(|key| user.replace(placeholder, key)).collect();
    format!("{before}{}{after}", users.join("\n      "))
}

/// The template with each line that has the placeholder once for each of these keys.
fn lines(template: &str, placeholder: &str, keys: &BTreeSet<&str>) -> String {
    let each = |line: &str| match line.contains(placeholder) {
        true => keys.iter().map(|key| line.replace(placeholder, key)).collect(),
        false => line.to_owned(),
    };
    template.split_inclusive('\n').map(each).collect()
}
