//! `trefoil verify`: offline, with k256 and ed25519-dalek.

use super::input::Input;
use super::keyfile::KeyFile;
use super::output::{Failure, Output};
use crate::client::verify::{signature_bytes, signing_key};
use crate::wire::{Curve, Fixed, SignInput};
use clap::Args;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Arguments {
    /// The public key, hex: 33 bytes (secp256k1) or 32 (ed25519)
    #[arg(long, value_name = "HEX", group = "verifying")]
    public_key: Option<String>,
    /// The key file; with --path its child
    #[arg(long, value_name = "FILE", group = "verifying")]
    key: Option<PathBuf>,
    /// The signature, hex: 64 bytes
    #[arg(long, value_name = "HEX")]
    signature: String,
    /// secp256k1: check that it recovers the key
    #[arg(long, value_name = "0..3")]
    recovery_id: Option<u8>,
    #[command(flatten)]
    input: Input,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let (public_key, chain_code) = match (&arguments.public_key, &arguments.key) {
        (Some(hex), _) => {
            let key = HEXLOWER_PERMISSIVE.decode(hex.as_bytes());
            (key.map_err(|_| Failure::usage("--public-key is not hex"))?, None)
        }
        (None, Some(path)) => {
            let file = KeyFile::read_unchecked(path)?;
            (file.public_key()?, Some(file.key.chain_code.0))
        }
        (None, None) => return Err(Failure::usage("name a --public-key or a --key")),
    };
    let curve = match public_key.len() {
        33 => Curve::Secp256k1,
        32 => Curve::Ed25519,
        _ => return Err(Failure::usage("a public key has 33 (secp256k1) or 32 (ed25519) bytes")),
    };
    let input = arguments.input.read(curve)?;
    let key = match (&input, chain_code) {
        (SignInput::Secp256k1 { path: Some(_), .. }, None) => {
            return Err(Failure::usage(
                "--path needs the chain code of a --key; give the child's --public-key instead",
            ));
        }
        (input, chain_code) => signing_key(&public_key, &chain_code.unwrap_or_default(), input)?,
    };
    let signature = Fixed::<64>::parse_hex(&arguments.signature.to_lowercase())
        .ok_or_else(|| Failure::usage("--signature is not 128 hex digits (64 bytes)"))?;
    signature_bytes(&key, &input, &signature.0, arguments.recovery_id)?;
    let key = HEXLOWER.encode(&key);
    let lines = [("valid", "yes".to_owned()), ("curve", curve.to_string()), ("public key", key.clone())];
    output.answer(&lines, &json!({ "valid": true, "curve": curve, "publicKey": key }));
    Ok(())
}
