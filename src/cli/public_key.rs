//! `trefoil public-key`.

use super::generate::{lines, shown};
use super::keyfile::{Existing, KeyFile, as_result};
use super::output::{Failure, Output, merged};
use super::{Given, connect, settings};
use crate::client::address::{self, Encoding};
use crate::client::verify::{AttestedKey, Untrusted};
use crate::wire::{Curve, KeyId, KeyResult};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args};
use serde_json::json;
use std::path::PathBuf;
use trefoil_protocol::derive::{DerivationPath, derive_public};

#[derive(Args)]
#[command(group(ArgGroup::new("which").required(true)))]
pub struct Arguments {
    /// The key file
    #[arg(long, value_name = "FILE", group = "which")]
    key: Option<PathBuf>,
    /// The key's id, 32 hex digits
    #[arg(long, value_name = "ID", group = "which")]
    key_id: Option<KeyId>,
    /// Put into the key file what the nodes attest now: after an identity of a node was rotated, the old one is not needed for it any more
    #[arg(long, requires = "key")]
    update: bool,
    /// Show every encoding, and the addresses on Ethereum and Bitcoin, or Solana
    #[arg(long)]
    all: bool,
    /// Show only this encoding or address
    #[arg(
        long,
        conflicts_with = "all",
        value_parser = PossibleValuesParser::new(Encoding::ALL.iter().map(|encoding| encoding.as_str()))
            .try_map(|name| name.parse::<Encoding>())
    )]
    encoding: Option<Encoding>,
    /// secp256k1: of the child key, such as m/0/1; needs --all or --encoding
    #[arg(long)]
    path: Option<String>,
}

impl Arguments {
    /// The encodings that were asked for, of the key or its child.
    fn encoded(&self, key: &AttestedKey) -> Result<Vec<(Encoding, String)>, Failure> {
        if !self.all && self.encoding.is_none() {
            return if self.path.is_some() {
                Err(Failure::usage("--path needs --all or --encoding"))
            } else {
                Ok(Vec::new())
            };
        }
        let public_key = match &self.path {
            Some(_) if key.curve == Curve::Ed25519 => {
                return Err(Failure::usage("ed25519 keys have no derivation: leave --path out"));
            }
            Some(path) => {
                let path = DerivationPath::parse(path).map_err(|error| Failure::usage(format!("--path: {error}")))?;
                let child = derive_public(&key.public_key, &key.chain_code, &path);
                child.map_err(|_| Untrusted::InvalidKey)?.public_key.to_vec()
            }
            None => key.public_key.clone(),
        };
        match self.encoding {
            Some(encoding) if encoding.curve() != key.curve => {
                Err(Failure::usage(format!("{encoding} is not for keys on {}", key.curve)))
            }
            Some(encoding) => Ok(vec![(encoding, address::encode(&public_key, encoding)?)]),
            None => Ok(address::encode_all(key.curve, &public_key)?),
        }
    }
}

/// Whether both are the same key, whoever says so.
fn is_same_key(one: &KeyResult, other: &KeyResult) -> bool {
    one.key_id == other.key_id
        && one.curve == other.curve
        && one.public_key == other.public_key
        && one.chain_code == other.chain_code
}

pub async fn run(config: Given<'_>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    // What is to be renewed may bear signatures of identities that are not trusted any more. Nothing of it is believed: it is compared.
    let read = |path| match arguments.update {
        true => KeyFile::read_unchecked(path),
        false => KeyFile::read(path, &config.nodes),
    };
    let file = arguments.key.as_deref().map(read).transpose()?;
    let key_id = arguments.key_id.or_else(|| file.as_ref().map(KeyFile::key_id));
    let key_id = key_id.ok_or_else(|| Failure::usage("name a --key or a --key-id"))?;
    let backend = connect(config, output).await?;
    let key = output.patiently("asking both nodes", backend.public_key(key_id)).await?;
    let found = as_result(&key);
    if let Some(mut file) = file {
        if !is_same_key(&file.key, &found) {
            return Err(Untrusted::OtherKey.into());
        }
        if let (true, Some(path)) = (arguments.update, &arguments.key) {
            if (file.key.transcript, file.key.epoch) != (found.transcript, found.epoch) {
                return Err(Failure::usage(format!("{}: the nodes hold other shares by now", path.display())));
            }
            (file.initiator, file.key) = (key.initiator.clone(), found.clone());
            // The file itself, where this is a link to it.
            let path =
                std::fs::canonicalize(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            file.write(&path, Existing::Replace)?;
        }
    }
    let encoded = arguments.encoded(&key)?;
    let object: serde_json::Map<_, _> =
        encoded.iter().map(|(encoding, text)| (encoding.to_string(), text.clone().into())).collect();
    let mut more = json!({});
    if !object.is_empty() {
        more = json!({ "encodings": object, "path": arguments.path.as_deref().unwrap_or("m") });
    }
    let encoded = encoded.into_iter().map(|(encoding, text)| (encoding.as_str(), text));
    let lines = match arguments.encoding {
        Some(_) => encoded.collect(),
        None => lines(&found).into_iter().chain(encoded).collect::<Vec<_>>(),
    };
    output.answer(&lines, &merged(shown(&key.initiator, &found), more));
    Ok(())
}
