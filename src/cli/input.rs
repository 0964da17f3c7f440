//! What is signed, on the command line.

use super::output::Failure;
use crate::wire::{Curve, Fixed, MAX_MESSAGE_BYTES, SignInput};
use clap::Args;
use data_encoding::HEXLOWER_PERMISSIVE;
use std::path::PathBuf;
use trefoil_protocol::derive::DerivationPath;

#[derive(Args)]
pub struct Input {
    /// secp256k1: the 32-byte digest, hex
    #[arg(long, value_name = "HEX", group = "signed")]
    digest: Option<String>,
    /// ed25519: the message, as text
    #[arg(long, value_name = "TEXT", group = "signed")]
    message: Option<String>,
    /// ed25519: the message, hex
    #[arg(long, value_name = "HEX", group = "signed")]
    message_hex: Option<String>,
    /// ed25519: the message, from a file
    #[arg(long, value_name = "FILE", group = "signed")]
    message_file: Option<PathBuf>,
    /// secp256k1: the child key that signs, such as m/0/1
    #[arg(long)]
    path: Option<String>,
}

impl Input {
    /// The input for a key of this curve.
    pub fn read(&self, curve: Curve) -> Result<SignInput, Failure> {
        match curve {
            Curve::Secp256k1 => {
                let digest = self.digest.as_deref().ok_or_else(|| Failure::usage("secp256k1 signs a --digest"))?;
                let digest = Fixed::parse_hex(&digest.to_lowercase())
                    .ok_or_else(|| Failure::usage("--digest is not 64 hex digits (32 bytes)"))?;
                let path = self.path.as_deref().map(DerivationPath::parse).transpose();
                let path = path.map_err(|error| Failure::usage(format!("--path: {error}")))?;
                Ok(SignInput::Secp256k1 { digest: digest.0, path: path.map(|path| path.to_string()) })
            }
            Curve::Ed25519 => {
                if self.path.is_some() {
                    return Err(Failure::usage("ed25519 keys have no derivation: leave --path out"));
                }
                let message = match (&self.message, &self.message_hex, &self.message_file) {
                    (Some(text), _, _) => text.as_bytes().to_vec(),
                    (_, Some(hex), _) => HEXLOWER_PERMISSIVE
                        .decode(hex.as_bytes())
                        .map_err(|_| Failure::usage("--message-hex is not hex"))?,
                    (_, _, Some(path)) => {
                        std::fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?
                    }
                    _ => return Err(Failure::usage("ed25519 signs a --message, --message-hex or --message-file")),
                };
                if message.len() > MAX_MESSAGE_BYTES {
                    return Err(Failure::usage(format!("the message has more than {MAX_MESSAGE_BYTES} bytes")));
                }
                Ok(SignInput::Ed25519 { message })
            }
        }
    }
}
