//! What sign jobs ask for: one input, or a batch of them.

use crate::wire::job::{Refusal, refuse};
use crate::wire::payload::read_curve;
use crate::wire::{Base64, Curve, ErrorCode, Fixed, Method, Payload, Sealed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trefoil_protocol::derive::{DerivationPath, PathError};

/// Longest ed25519 message in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Payload of `sign`, as JSON: `digest` or `message`, or `items`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignBody {
    /// The key's curve.
    #[schemars(with = "Curve")]
    pub curve: String,
    /// The signing method.
    #[schemars(with = "Method")]
    pub method: String,
    /// secp256k1: the 32-byte digest to sign, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Fixed<32>>")]
    pub digest: Option<String>,
    /// ed25519: the message to sign, base64, at most 64 KiB; may be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Base64>")]
    pub message: Option<String>,
    /// secp256k1: BIP-32 path of at most 16 non-hardened steps, such as `m/0/1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^m(/(0|[1-9][0-9]{0,9})){0,16}$"))]
    pub path: Option<String>,
    /// A batch, in the place of the three above: what to sign, 1 to 128 items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub items: Option<Vec<ItemBody>>,
    /// Password, encryptedShare and secretStore, sealed to a worker key.
    pub secrets: Sealed,
}

/// One item of a batch, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ItemBody {
    /// secp256k1: the 32-byte digest to sign, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Fixed<32>>")]
    pub digest: Option<String>,
    /// ed25519: the message to sign, base64, at most 64 KiB; may be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Base64>")]
    pub message: Option<String>,
    /// secp256k1: BIP-32 path of at most 16 non-hardened steps, such as `m/0/1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^m(/(0|[1-9][0-9]{0,9})){0,16}$"))]
    pub path: Option<String>,
}

impl SignBody {
    /// The payload of a sign job.
    #[must_use]
    pub fn new(method: Method, input: &SignInput, secrets: Sealed) -> Self {
        let ItemBody { digest, message, path } = ItemBody::new(input);
        let (curve, method) = (input.curve().to_string(), method.to_string());
        Self { curve, method, digest, message, path, items: None, secrets }
    }

    /// The payload of a sign job with several inputs.
    #[must_use]
    pub fn batch(method: Method, batch: &Batch, secrets: Sealed) -> Self {
        let (curve, method) = (batch.curve().to_string(), method.to_string());
        let items = Some(batch.items().iter().map(ItemBody::new).collect());
        Self { curve, method, digest: None, message: None, path: None, items, secrets }
    }
}

impl ItemBody {
    /// An input as JSON.
    #[must_use]
    pub fn new(input: &SignInput) -> Self {
        match input {
            SignInput::Secp256k1 { digest, path } => {
                Self { digest: Some(Fixed(*digest).to_string()), message: None, path: path.clone() }
            }
            SignInput::Ed25519 { message } => {
                Self { digest: None, message: Some(data_encoding::BASE64.encode(message)), path: None }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.digest.is_none() && self.message.is_none() && self.path.is_none()
    }

    /// The checked input, for a key of this curve.
    ///
    /// # Errors
    /// `INVALID_DIGEST`, `INVALID_MESSAGE`, `INVALID_PATH`, `HARDENED_PATH`, with a sentence.
    pub fn read(self, curve: Curve) -> Result<SignInput, (ErrorCode, String)> {
        match curve {
            Curve::Secp256k1 => {
                if self.message.is_some() {
                    return refuse(ErrorCode::InvalidMessage, "secp256k1 signs a digest, not a message");
                }
                let digest = self.digest.as_deref().and_then(Fixed::parse_hex);
                let Some(Fixed(digest)) = digest else {
                    return refuse(ErrorCode::InvalidDigest, "digest is not 64 lower-case hex digits");
                };
                self.path.as_deref().map_or(Ok(()), check_path)?;
                Ok(SignInput::Secp256k1 { digest, path: self.path })
            }
            Curve::Ed25519 => {
                if self.digest.is_some() {
                    return refuse(ErrorCode::InvalidMessage, "ed25519 signs a message, not a digest");
                }
                if self.path.is_some() {
                    return refuse(ErrorCode::InvalidPath, "ed25519 keys have no derivation");
                }
                let message = self.message.and_then(|text| data_encoding::BASE64.decode(text.as_bytes()).ok());
                let Some(message) = message.filter(|m| m.len() <= MAX_MESSAGE_BYTES) else {
                    return refuse(ErrorCode::InvalidMessage, "message is not base64 of at most 65536 bytes");
                };
                Ok(SignInput::Ed25519 { message })
            }
        }
    }
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignInput {
    /// An ECDSA digest.
    Secp256k1 {
        /// The 32 bytes that are signed.
        digest: [u8; 32],
        /// BIP-32 path, checked: `m`, then 0 to 16 non-hardened steps.
        path: Option<String>,
    },
    /// An EdDSA message.
    Ed25519 {
        /// The message, at most 64 KiB.
        message: Vec<u8>,
    },
}

impl SignInput {
    /// The curve that this input is for.
    #[must_use]
    pub const fn curve(&self) -> Curve {
        match self {
            Self::Secp256k1 { .. } => Curve::Secp256k1,
            Self::Ed25519 { .. } => Curve::Ed25519,
        }
    }
}

/// 1 to 128 inputs of one curve, to be signed under one key, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    curve: Curve,
    items: Vec<SignInput>,
}

impl Batch {
    /// Most items.
    pub const MAX: usize = 128;

    /// `None` for no items, too many, or items of different curves.
    #[must_use]
    pub fn new(items: Vec<SignInput>) -> Option<Self> {
        let curve = items.first()?.curve();
        let whole = items.len() <= Self::MAX && items.iter().all(|item| item.curve() == curve);
        whole.then_some(Self { curve, items })
    }

    /// The curve of all items.
    #[must_use]
    pub const fn curve(&self) -> Curve {
        self.curve
    }

    /// The inputs, at least one.
    #[must_use]
    pub fn items(&self) -> &[SignInput] {
        &self.items
    }
}

pub(super) fn read_sign(body: SignBody) -> Result<Payload, Refusal> {
    let SignBody { curve, method, digest, message, path, items, secrets } = body;
    let curve = read_curve(&curve)?;
    let method =
        method.parse().map_err(|_| (ErrorCode::UnsupportedMethod, "the method is not mta or default".to_owned()))?;
    let single = ItemBody { digest, message, path };
    let Some(items) = items else { return Ok(Payload::Sign { method, input: single.read(curve)?, secrets }) };
    if !single.is_empty() {
        return refuse(ErrorCode::InvalidBatch, "a batch has no digest, message or path beside its items");
    }
    if items.is_empty() || items.len() > Batch::MAX {
        return refuse(ErrorCode::InvalidBatch, "a batch has 1 to 128 items");
    }
    // Which item: people and programs count from 0, as JSON's arrays do.
    let read = |(index, item): (usize, ItemBody)| {
        item.read(curve).map_err(|(code, message)| (code, format!("item {index}: {message}")))
    };
    Ok(Payload::SignBatch {
        method,
        batch: Batch { curve, items: items.into_iter().enumerate().map(read).collect::<Result<_, _>>()? },
        secrets,
    })
}

fn check_path(path: &str) -> Result<(), Refusal> {
    match DerivationPath::parse(path) {
        Ok(_) => Ok(()),
        Err(error @ PathError::Hardened) => refuse(ErrorCode::HardenedPath, &error.to_string()),
        Err(error @ PathError::Invalid) => refuse(ErrorCode::InvalidPath, &error.to_string()),
    }
}
