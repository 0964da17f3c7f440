//! The names in every message: jobs, keys, initiators, curves, methods, operations.

use crate::wire::Fixed;
use core::fmt;
use core::str::FromStr;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use trefoil_protocol::CurveId;
use trefoil_protocol::transcript::{Tag, hash};

/// Text that is not the name it should be. Carries no input: what was sent may be secret or long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {0}")]
pub struct InvalidName(pub &'static str);

/// Serialises a type as its `Display` text and reads it by `FromStr`.
macro_rules! as_text {
    ($name:ident, $what:literal, $pattern:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(|_| de::Error::invalid_value(de::Unexpected::Other("text"), &$what))
            }
        }
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $what })
            }
        }
    };
}

/// A job's name, chosen by its initiator: 1 to 64 of `A-Z a-z 0-9 _ -`, unique per initiator for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(String);

impl JobId {
    /// An id made of 16 random bytes: 32 hex digits.
    #[must_use]
    pub fn random(bytes: [u8; 16]) -> Self {
        Self(Fixed(bytes).to_string())
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName("a job id"))
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(JobId, "a job id: 1 to 64 of A-Z a-z 0-9 _ -", "^[A-Za-z0-9_-]{1,64}$");

/// A key's name: 16 bytes, 32 lower-case hex digits in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 16]);

impl KeyId {
    /// The id of the key that a generate job makes: the first 16 bytes of `H("key-id"; initiator, job id)`. The same
    /// job always means the same key, and ids are uniform, so subjects can be partitioned by them.
    #[must_use]
    pub fn derive(initiator: &InitiatorId, job: &JobId) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] =
            hash(Tag::KEY_ID, &[initiator.as_str().as_bytes(), job.as_str().as_bytes()]);
        Self([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
    }
}

impl FromStr for KeyId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Fixed::parse_hex(text).map(|Fixed(bytes)| Self(bytes)).ok_or(InvalidName("a key id"))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Fixed(self.0).fmt(f)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        Fixed(self.0).serialize(s)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Fixed::deserialize(d).map(|Fixed(bytes)| Self(bytes))
    }
}

impl JsonSchema for KeyId {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "KeyId".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Fixed::<16>::json_schema(generator)
    }
}

/// A backend, named by the public half of its job-signing NKEY: `U` and 55 more base-32 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InitiatorId {
    text: String,
    key: [u8; 32],
}

impl InitiatorId {
    /// The NKEY text, `U…`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The Ed25519 public key, 32 bytes.
    #[must_use]
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.key
    }
}

/// Prefix byte of user NKEYs (`U…`) in the NKEY encoding.
const USER_PREFIX: u8 = 20 << 3;
/// Characters of every public NKEY and xkey.
const NKEY_CHARS: usize = 56;

impl FromStr for InitiatorId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = InvalidName("a user NKEY");
        if text.len() != NKEY_CHARS {
            return Err(invalid);
        }
        match nkeys::from_public_key(text) {
            Ok((USER_PREFIX, key)) => Ok(Self { text: text.to_owned(), key }),
            _ => Err(invalid),
        }
    }
}

impl fmt::Display for InitiatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

as_text!(InitiatorId, "a public user NKEY", "^U[A-Z2-7]{55}$");

/// A curve25519 public key for sealing (a NATS xkey): `X` and 55 more base-32 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SealKey(String);

impl SealKey {
    /// The xkey text, `X…`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SealKey {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() == NKEY_CHARS && nkeys::XKey::from_public_key(text).is_ok() {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName("a public xkey"))
        }
    }
}

impl fmt::Display for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(SealKey, "a public xkey", "^X[A-Z2-7]{55}$");

/// Names of a closed list: text on the wire, an enum inside.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }
        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// The name on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                match text { $($text => Ok(Self::$variant),)* _ => Err(InvalidName($what)) }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// The curve of a key, as the wire names it.
    Curve, "a curve" {
        /// ECDSA.
        Secp256k1 = "secp256k1",
        /// EdDSA.
        Ed25519 = "ed25519",
    }
}

impl From<Curve> for CurveId {
    fn from(curve: Curve) -> Self {
        match curve {
            Curve::Secp256k1 => Self::Secp256k1,
            Curve::Ed25519 => Self::Ed25519,
        }
    }
}

impl From<CurveId> for Curve {
    fn from(curve: CurveId) -> Self {
        match curve {
            CurveId::Secp256k1 => Self::Secp256k1,
            CurveId::Ed25519 => Self::Ed25519,
        }
    }
}

names! {
    /// The signing method. Each curve has one protocol, which runs whichever method is asked for; the result names it.
    Method, "a signing method" {
        /// Two-party ECDSA with multiplicative-to-additive conversion.
        Mta = "mta",
        /// The curve's own protocol.
        Default = "default",
    }
}

impl Method {
    /// The method that runs on this curve, whichever was asked for: DKLs23 (`mta`) on secp256k1, FROST (`default`) on
    /// ed25519.
    #[must_use]
    pub const fn resolve(curve: Curve) -> Self {
        match curve {
            Curve::Secp256k1 => Self::Mta,
            Curve::Ed25519 => Self::Default,
        }
    }
}

names! {
    /// How urgent a job is.
    Lane, "a lane" {
        /// Somebody waits for it.
        Interactive = "interactive",
        /// Nobody does: it is done when there is room.
        Bulk = "bulk",
    }
}

/// A job that does not say is interactive.
impl Default for Lane {
    fn default() -> Self {
        Self::Interactive
    }
}

names! {
    /// What a job asks for.
    Op, "an operation" {
        /// Generate a key.
        Generate = "generate",
        /// Sign a digest or message.
        Sign = "sign",
        /// Return a key's public key with both nodes' attestations.
        PublicKey = "public-key",
        /// Say whether a password opens a secretStore.
        ValidatePassword = "validate-password",
        /// Say whether a password opens an encryptedShare.
        ValidateShare = "validate-share",
        /// Put a secretStore under another password.
        ChangePassword = "change-password",
        /// Give a key new shares under a new id, without the client's old one.
        Recover = "recover",
        /// Give a key new shares under the same id, and make the old ones worthless.
        Refresh = "refresh",
        /// Stop a key until it is unfrozen.
        Freeze = "freeze",
        /// Let a frozen key sign again.
        Unfreeze = "unfreeze",
        /// End a key for good.
        Destroy = "destroy",
        /// List the initiator's keys.
        Keys = "keys",
        /// Check a key's curve and public key, and label it.
        RegisterKey = "register-key",
        /// Keep a job from being started.
        Cancel = "cancel",
        /// Tell how far a job is.
        JobStatus = "job-status",
        /// End the key's waiting recovery.
        CancelRecovery = "cancel-recovery",
    }
}
