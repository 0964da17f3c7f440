//! Echoes: each party's hash of all broadcasts, signed by the nodes.

use super::{HASH_LEN, Setup, shape};
use crate::{Abort, Party, Result};
use ed25519_dalek::{Signature, Signer, SigningKey};

/// Starts what a node signs in its echo. The tags keep it apart from every other signature of a node's identity, and the echo
/// of a key generation apart from one of a recovery or refresh.
const GENERATE_PREFIX: &[u8] = b"\xfftrefoil-echo-v1\x00";
const RESHARE_PREFIX: &[u8] = b"\xfftrefoil-reshare-echo-v1\x00";

/// What all parties must have seen alike.
pub(super) struct View {
    /// `E`.
    pub(super) transcript: [u8; 32],
    pub(super) reshare: bool,
}

impl View {
    fn statement(&self) -> Vec<u8> {
        let prefix = if self.reshare { RESHARE_PREFIX } else { GENERATE_PREFIX };
        [prefix, &self.transcript].concat()
    }

    /// Our own echo: `E`, and a node's signature.
    pub(super) fn echo(&self, identity: Option<&SigningKey>) -> Vec<u8> {
        let mut echo = self.transcript.to_vec();
        if let Some(identity) = identity {
            echo.extend_from_slice(&identity.sign(&self.statement()).to_bytes());
        }
        echo
    }

    /// The sender's view must be ours, and a node's must carry its signature.
    pub(super) fn check(&self, setup: &Setup, from: Party, echo: &[u8]) -> Result<()> {
        let refused = Abort::peer(from, "dkg_echo");
        let (theirs, signature) = echo.split_at_checked(HASH_LEN).ok_or(shape(from))?;
        match setup.identity_of(from) {
            None if signature.is_empty() => {}
            None => return Err(shape(from)),
            Some(identity) => {
                let signature = Signature::from_slice(signature).map_err(|_| shape(from))?;
                identity.verify_strict(&self.statement(), &signature).map_err(|_| refused)?;
            }
        }
        if theirs == self.transcript { Ok(()) } else { Err(refused) }
    }
}
