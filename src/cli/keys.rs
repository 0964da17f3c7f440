//! `trefoil keys`.

use super::keyfile::KeyFile;
use super::output::{Failure, Output, shown_time};
use super::{Given, connect, settings};
use crate::wire::{Curve, KeyEntry, KeyId, ListedState, MAX_LISTED};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Subcommand};
use data_encoding::HEXLOWER;
use serde_json::json;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum Command {
    /// List this initiator's keys, as node 1 has them
    #[command(after_help = "The list is node 1's word, and a worker brings it. `trefoil public-key` proves a key.")]
    List(List),
    /// Have node 1 check a key's curve and public key, and label it
    Register(Register),
}

#[derive(Args)]
pub struct List {
    /// Retired and destroyed keys, too
    #[arg(long)]
    all: bool,
    /// Only one list of so many at most, 1 to 100 [default: all of them]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LISTED)))]
    limit: Option<u32>,
    /// Begin behind this key: the `next` of the list before
    #[arg(long, value_name = "ID")]
    after: Option<KeyId>,
}

#[derive(Args)]
#[command(group(ArgGroup::new("which").required(true)))]
pub struct Register {
    /// The key file
    #[arg(long, value_name = "FILE", group = "which")]
    key: Option<PathBuf>,
    /// The key's id, 32 hex digits; needs --curve and --public-key
    #[arg(long, value_name = "ID", group = "which", requires_all = ["curve", "public_key"])]
    key_id: Option<KeyId>,
    /// secp256k1 or ed25519
    #[arg(
        long,
        conflicts_with = "key",
        value_parser = PossibleValuesParser::new(["secp256k1", "ed25519"]).try_map(|name| name.parse::<Curve>())
    )]
    curve: Option<Curve>,
    /// The public key, hex
    #[arg(long, value_name = "HEX", conflicts_with = "key")]
    public_key: Option<String>,
    /// What to call the key from now on, at most 128 bytes; "" takes its label away
    #[arg(long)]
    label: Option<String>,
}

pub async fn run(config: Given<'_>, command: &Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::List(arguments) => list(config, arguments, output).await,
        Command::Register(arguments) => register(config, arguments, output).await,
    }
}

async fn list(config: Given<'_>, arguments: &List, output: &Output) -> Result<(), Failure> {
    let backend = connect(settings(config)?, output).await?;
    let (mut keys, mut next) = (Vec::new(), arguments.after);
    loop {
        let limit = arguments.limit.unwrap_or(MAX_LISTED);
        let page = output.patiently("asking for the keys", backend.keys(next, limit)).await?;
        keys.extend(page.keys);
        // A list that does not go on would be asked for again and again.
        let goes_on = page.next > next;
        next = page.next;
        if next.is_none() || arguments.limit.is_some() || !goes_on {
            break;
        }
    }
    let ended = |key: &KeyEntry| matches!(key.state, ListedState::Retired | ListedState::Destroyed);
    keys.retain(|key| arguments.all || !ended(key));
    let mut lines: Vec<(String, String)> = keys.iter().map(line).collect();
    lines.extend(next.map(|next| ("more after".to_owned(), next.to_string())));
    let lines: Vec<(&str, String)> = lines.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    output.answer(&lines, &json!({ "keys": keys, "next": next }));
    Ok(())
}

async fn register(config: Given<'_>, arguments: &Register, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    let (key_id, curve, public_key) = match (&arguments.key, arguments.key_id, arguments.curve, &arguments.public_key) {
        (Some(path), ..) => {
            let file = KeyFile::read(path, &config.nodes)?;
            (file.key_id(), file.curve(), file.public_key()?)
        }
        (None, Some(key_id), Some(curve), Some(text)) => {
            let public_key = HEXLOWER.decode(text.as_bytes());
            (key_id, curve, public_key.map_err(|_| Failure::usage("--public-key must be lower-case hex"))?)
        }
        _ => return Err(Failure::usage("name a --key, or --key-id with --curve and --public-key")),
    };
    let backend = connect(config, output).await?;
    let registering = backend.register_key(key_id, curve, &public_key, arguments.label.clone());
    let key = output.patiently("asking node 1", registering).await?;
    let mut lines = vec![
        ("key id", key.key_id.to_string()),
        ("curve", key.curve.to_string()),
        ("public key", key.public_key.clone()),
        ("state", key.state.as_str().to_owned()),
        ("created", shown_time(key.created_at)),
    ];
    lines.extend(key.label.as_deref().map(|label| ("label", shown_label(label))));
    output.answer(&lines, &json!(key));
    Ok(())
}

fn line(key: &KeyEntry) -> (String, String) {
    let label = key.label.as_deref().map(|label| format!("  {}", shown_label(label))).unwrap_or_default();
    let created = shown_time(key.created_at);
    (key.key_id.to_string(), format!("{:9}  {:9}  {created}{label}", key.curve.as_str(), key.state.as_str()))
}

/// A label came from node 1 through a worker: nothing in it may play tricks with the terminal.
fn shown_label(label: &str) -> String {
    label.chars().flat_map(char::escape_debug).collect()
}
