//! Key generation, recovery and refresh as the service runs them: three parties deal shares ([`crate::dkg`]) and, on
//! secp256k1, client and node 1 set up their OT beside it (docs/protocol.md, sections 6 and 7). The client's side relays
//! between the nodes. All three operations have the same rounds and the same OT messages.
//!
//! Payloads to a node are the messages of the two others in the order of [`Party::others`], then the client's OT message
//! (node 1, secp256k1, rounds 3 to 5); replies are the node's message, then node 1's OT message (rounds 3 and 4).

mod client;
mod node;

pub use self::client::{ClientKeygen, Next};
pub use self::node::NodeKeygen;

use crate::curve::{Ed25519, Group, Secp256k1};
use crate::dkg::{Generated, HASH_LEN, Open, Setup};
use crate::ot::OtState;
use crate::reshare::Origin;
use crate::share::KeyShare;
use crate::{Abort, CurveId, Party, Result};
use ed25519_dalek::VerifyingKey;
use rand_core::{CryptoRng, RngCore};

/// What the parties agree on before they start.
#[derive(Debug, Clone)]
pub struct Context {
    /// The key's curve.
    pub curve: CurveId,
    /// The id of the key that comes out: a new one, or in a refresh the old one.
    pub key_id: [u8; 16],
    /// The new shares' epoch: in a recovery or refresh the one after the old shares'.
    pub epoch: u32,
    /// SHA-256 of the signed job's body.
    pub job_digest: [u8; 32],
    /// Node 1's pinned identity.
    pub node1: VerifyingKey,
    /// Node 2's pinned identity.
    pub node2: VerifyingKey,
}

impl Context {
    const fn setup(&self, party: Party) -> Setup {
        let Self { key_id, epoch, job_digest, node1, node2, .. } = *self;
        Setup { party, key_id, epoch, job_digest, node1, node2 }
    }
}

/// A run on either curve, before its first round.
#[allow(clippy::large_enum_variant, reason = "one value a session, moved once")]
enum Opened {
    Secp256k1(Open<Secp256k1>),
    Ed25519(Open<Ed25519>),
}

impl Opened {
    /// Opens a key generation; returns our contribution, too.
    fn generate(context: &Context, party: Party, rng: &mut (impl RngCore + CryptoRng)) -> (Self, [u8; HASH_LEN]) {
        let setup = context.setup(party);
        match context.curve {
            CurveId::Secp256k1 => {
                let (open, contribution) = Open::start(setup, rng);
                (Self::Secp256k1(open), contribution)
            }
            CurveId::Ed25519 => {
                let (open, contribution) = Open::start(setup, rng);
                (Self::Ed25519(open), contribution)
            }
        }
    }

    /// Opens a recovery or refresh, likewise.
    fn reshare(
        context: &Context,
        party: Party,
        origin: Origin<'_>,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        let setup = context.setup(party);
        Ok(match context.curve {
            CurveId::Secp256k1 => {
                let (open, contribution) = Open::reshare(setup, origin, rng)?;
                (Self::Secp256k1(open), contribution)
            }
            CurveId::Ed25519 => {
                let (open, contribution) = Open::reshare(setup, origin, rng)?;
                (Self::Ed25519(open), contribution)
            }
        })
    }
}

/// Turns what was dealt into a share.
trait Finish: Group {
    fn into_share(generated: Generated<Self>, ot: Option<OtState>) -> Result<KeyShare>;
}

impl Finish for Secp256k1 {
    fn into_share(generated: Generated<Self>, ot: Option<OtState>) -> Result<KeyShare> {
        generated.into_share(ot)
    }
}

impl Finish for Ed25519 {
    fn into_share(generated: Generated<Self>, _: Option<OtState>) -> Result<KeyShare> {
        Ok(generated.into_share())
    }
}

/// Splits a payload: two messages of known lengths, and the rest.
fn split(payload: &[u8], first: usize, second: usize, from: Party) -> Result<([&[u8]; 2], &[u8])> {
    let shape = Abort::peer(from, "keygen_shape");
    let (a, rest) = payload.split_at_checked(first).ok_or(shape)?;
    let (b, rest) = rest.split_at_checked(second).ok_or(shape)?;
    Ok(([a, b], rest))
}

fn nothing_left(rest: &[u8], from: Party) -> Result<()> {
    if rest.is_empty() { Ok(()) } else { Err(Abort::peer(from, "keygen_shape")) }
}
