//! The multi-party protocols of Trefoil, sans-IO: three-party key generation, recovery and refresh on secp256k1 and ed25519, two-party
//! DKLs23 ECDSA over SoftSpokenOT, FROST, BIP-32 derivation.
//!
//! This crate knows no network, clock, file, log or ambient randomness: callers pass messages, an RNG and keys, and
//! get messages back. Rounds consume their state. The specification is docs/protocol.md; section numbers in comments
//! refer to it. **Unaudited.**

mod codec;
pub mod curve;
pub mod derive;
pub mod dkg;
pub mod ecdsa;
mod error;
pub mod frost;
pub mod keygen;
pub mod ot;
mod party;
pub mod reshare;
mod rng;
mod rvole;
mod schnorr;
mod secret;
mod share;
pub mod transcript;
mod wide;

pub use error::{Abort, Result};
pub use party::{CurveId, Party};
pub use rng::SessionRng;
pub use secret::Secret;
pub use share::KeyShare;
