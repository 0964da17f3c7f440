//! A node's side.

use super::{Context, Finish, Opened, nothing_left, split};
use crate::curve::{Ed25519, Group, Secp256k1};
use crate::dkg::{Commit, Deal, Echo, HASH_LEN, Open, Reveal, SIGNED_ECHO_LEN};
use crate::ot::setup::{Node1Setup, Node1Trial};
use crate::reshare::Origin;
use crate::rng::SessionRng;
use crate::share::{KeyShare, keeps_ot};
use crate::{Abort, Party, Result, Secret};
use ed25519_dalek::SigningKey;
use rand_core::{CryptoRng, RngCore};

/// A node's side. One call of [`NodeKeygen::advance`] per round, 1 to 5, then [`NodeKeygen::finish`].
pub struct NodeKeygen {
    party: Party,
    rng: SessionRng,
    state: NodeCurve,
}

enum NodeCurve {
    Secp256k1(NodeState<Secp256k1>),
    Ed25519(NodeState<Ed25519>),
}

#[allow(clippy::large_enum_variant, reason = "one value a session, moved once a round")]
enum NodeState<C: Group> {
    Open(Open<C>),
    Commit(Commit<C>),
    Reveal(Reveal<C>),
    Echo(Echo<C>, Option<Node1Setup>),
    Deal(Deal<C>, Option<Node1Trial>),
    Done(KeyShare),
}

impl NodeKeygen {
    /// Opens a key generation at node 1 or node 2; returns the node's contribution, 32 bytes. The identity's secret hedges the
    /// randomness of the whole run.
    ///
    /// # Errors
    /// `InvalidInput` for the client.
    pub fn start(
        context: &Context,
        party: Party,
        identity: &SigningKey,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        let mut rng = session_rng(context, party, identity, rng)?;
        let (open, contribution) = Opened::generate(context, party, &mut rng);
        Ok((Self::new(open, party, rng), contribution))
    }

    /// Opens the recovery of the key that `share` is of, under the new key id and epoch in `context`; a locked key's share
    /// without OT state serves as well.
    ///
    /// # Errors
    /// `InvalidInput` for the client's share, or if `context` does not follow on the share: same curve, another key id, the
    /// next epoch.
    pub fn recover(
        context: &Context,
        share: &KeyShare,
        identity: &SigningKey,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        Self::reshare(context, Origin::RecoverFrom(share), share.party(), identity, rng)
    }

    /// Opens a refresh of the key that `share` is of, likewise, under the same key id and the next epoch.
    ///
    /// # Errors
    /// `InvalidInput` for the client's share, or if `context` does not follow on the share.
    pub fn refresh(
        context: &Context,
        share: &KeyShare,
        identity: &SigningKey,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        Self::reshare(context, Origin::Refresh(share), share.party(), identity, rng)
    }

    fn reshare(
        context: &Context,
        origin: Origin<'_>,
        party: Party,
        identity: &SigningKey,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        let mut rng = session_rng(context, party, identity, rng)?;
        let (open, contribution) = Opened::reshare(context, party, origin, &mut rng)?;
        Ok((Self::new(open, party, rng), contribution))
    }

    fn new(open: Opened, party: Party, rng: SessionRng) -> Self {
        let state = match open {
            Opened::Secp256k1(open) => NodeCurve::Secp256k1(NodeState::Open(open)),
            Opened::Ed25519(open) => NodeCurve::Ed25519(NodeState::Open(open)),
        };
        Self { party, rng, state }
    }

    /// The round that this state waits for, 1 to 5; 6 when only [`NodeKeygen::finish`] is left.
    #[must_use]
    pub const fn round(&self) -> u8 {
        match &self.state {
            NodeCurve::Secp256k1(state) => state.round(),
            NodeCurve::Ed25519(state) => state.round(),
        }
    }

    /// Takes the payload of the next round, returns the next state and the reply.
    ///
    /// # Errors
    /// `Peer` for what another party or the relay sent; never a lock.
    pub fn advance(self, payload: &[u8], identity: &SigningKey) -> Result<(Self, Vec<u8>)> {
        let Self { party, mut rng, state } = self;
        let (state, reply) = match state {
            NodeCurve::Secp256k1(state) => {
                let (state, reply) = state.advance(party, payload, identity, &mut rng)?;
                (NodeCurve::Secp256k1(state), reply)
            }
            NodeCurve::Ed25519(state) => {
                let (state, reply) = state.advance(party, payload, identity, &mut rng)?;
                (NodeCurve::Ed25519(state), reply)
            }
        };
        Ok((Self { party, rng, state }, reply))
    }

    /// The node's share, after round 5.
    ///
    /// # Errors
    /// `InvalidInput` before round 5.
    pub fn finish(self) -> Result<KeyShare> {
        match self.state {
            NodeCurve::Secp256k1(NodeState::Done(share)) | NodeCurve::Ed25519(NodeState::Done(share)) => Ok(share),
            _ => Err(Abort::InvalidInput("the run is not finished")),
        }
    }
}

/// The whole run's randomness.
fn session_rng(
    context: &Context,
    party: Party,
    identity: &SigningKey,
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<SessionRng> {
    if party == Party::Client {
        return Err(Abort::InvalidInput("the client has a side of its own"));
    }
    let hedge = Secret::new(identity.to_bytes());
    Ok(SessionRng::new(rng, hedge.expose(), &[&context.key_id, &context.job_digest, &[party.point()]]))
}

impl<C: Finish> NodeState<C> {
    const fn round(&self) -> u8 {
        match self {
            Self::Open(_) => 1,
            Self::Commit(_) => 2,
            Self::Reveal(_) => 3,
            Self::Echo(..) => 4,
            Self::Deal(..) => 5,
            Self::Done(_) => 6,
        }
    }

    fn advance(
        self,
        party: Party,
        payload: &[u8],
        identity: &SigningKey,
        rng: &mut SessionRng,
    ) -> Result<(Self, Vec<u8>)> {
        let with_ot = keeps_ot(C::CURVE, party);
        // All payloads come through the client, so a malformed one is its doing.
        let from = Party::Client;
        let [first, second] = party.others();
        match self {
            Self::Open(open) => {
                let (messages, rest) = split(payload, HASH_LEN, HASH_LEN, from)?;
                nothing_left(rest, from)?;
                let (next, commitment) = open.commit(messages)?;
                Ok((Self::Commit(next), commitment.to_vec()))
            }
            Self::Commit(commit) => {
                let (messages, rest) = split(payload, HASH_LEN, HASH_LEN, from)?;
                nothing_left(rest, from)?;
                let (next, dealing) = commit.reveal(messages)?;
                Ok((Self::Reveal(next), dealing))
            }
            Self::Reveal(reveal) => {
                let (messages, ot) = split(payload, reveal.dealing_len(first), reveal.dealing_len(second), from)?;
                let sid = reveal.sid();
                let (next, mut reply) = reveal.echo(messages, Some(identity))?;
                let setup = if with_ot {
                    let (setup, message) = Node1Setup::new(&sid, ot, rng)?;
                    reply.extend_from_slice(&message);
                    Some(setup)
                } else {
                    nothing_left(ot, from)?;
                    None
                };
                Ok((Self::Echo(next, setup), reply))
            }
            Self::Echo(echo, setup) => {
                let (messages, ot) = split(payload, HASH_LEN, SIGNED_ECHO_LEN, from)?;
                let (next, sealed) = echo.deal(messages)?;
                let mut reply = sealed.concat();
                let trial = match setup {
                    Some(setup) => {
                        let (trial, message) = setup.advance(ot, rng)?;
                        reply.extend_from_slice(&message);
                        Some(trial)
                    }
                    None => {
                        nothing_left(ot, from)?;
                        None
                    }
                };
                Ok((Self::Deal(next, trial), reply))
            }
            Self::Deal(deal, trial) => {
                let (messages, ot) = split(payload, deal.sealed_len(first), deal.sealed_len(second), from)?;
                let generated = deal.finish(messages)?;
                let state = match trial {
                    Some(trial) => Some(trial.finish(ot)?),
                    None => {
                        nothing_left(ot, from)?;
                        None
                    }
                };
                Ok((Self::Done(C::into_share(generated, state)?), Vec::new()))
            }
            Self::Done(_) => Err(Abort::InvalidInput("the run is finished")),
        }
    }
}
