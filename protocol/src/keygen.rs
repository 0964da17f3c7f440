//! Key generation as the service runs it: the three-party DKG with, on secp256k1, the OT setup of client and node 1
//! beside it (docs/protocol.md, section 6). The client's side relays between the nodes.
//!
//! Payloads to a node are the messages of the two others in the order of [`Party::others`], then the client's OT message
//! (node 1, secp256k1, rounds 3 to 5); replies are the node's message, then node 1's OT message (rounds 3 and 4).

use crate::curve::{Ed25519, Group, Secp256k1};
use crate::dkg::{
    Commit, Deal, Echo, Generated, HASH_LEN, Open, Reveal, SEALED_LEN, SIGNED_ECHO_LEN, Setup, dealing_len,
};
use crate::ot::OtState;
use crate::ot::setup::{ClientSetup, ClientTrial, Node1Setup, Node1Trial};
use crate::rng::SessionRng;
use crate::share::{KeyShare, keeps_ot};
use crate::{Abort, CurveId, Party, Result, Secret};
use ed25519_dalek::{SigningKey, VerifyingKey};
use rand_core::{CryptoRng, RngCore};

/// What the parties agree on before they start.
#[derive(Debug, Clone)]
pub struct Context {
    /// The new key's curve.
    pub curve: CurveId,
    /// The new key's id.
    pub key_id: [u8; 16],
    /// The new shares' epoch.
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

/// Turns the DKG's result into a share.
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
        if party == Party::Client {
            return Err(Abort::InvalidInput("the client has a side of its own"));
        }
        let hedge = Secret::new(identity.to_bytes());
        let names: [&[u8]; 3] = [&context.key_id, &context.job_digest, &[party.point()]];
        let mut rng = SessionRng::new(rng, hedge.expose(), &names);
        let setup = context.setup(party);
        let (state, contribution) = match context.curve {
            CurveId::Secp256k1 => {
                let (open, contribution) = Open::start(setup, &mut rng);
                (NodeCurve::Secp256k1(NodeState::Open(open)), contribution)
            }
            CurveId::Ed25519 => {
                let (open, contribution) = Open::start(setup, &mut rng);
                (NodeCurve::Ed25519(NodeState::Open(open)), contribution)
            }
        };
        Ok((Self { party, rng, state }, contribution))
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
            _ => Err(Abort::InvalidInput("the key generation is not finished")),
        }
    }
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
                let (messages, ot) = split(payload, dealing_len::<C>(), dealing_len::<C>(), from)?;
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
                let mut reply = sealed.as_flattened().to_vec();
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
                let (messages, ot) = split(payload, SEALED_LEN, SEALED_LEN, from)?;
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
            Self::Done(_) => Err(Abort::InvalidInput("the key generation is finished")),
        }
    }
}

/// The client's side: takes both nodes' replies, returns both nodes' next payloads.
pub struct ClientKeygen {
    rng: SessionRng,
    state: ClientCurve,
}

enum ClientCurve {
    Secp256k1(Box<ClientState<Secp256k1>>),
    Ed25519(Box<ClientState<Ed25519>>),
}

#[allow(clippy::large_enum_variant, reason = "one value a session, moved once a round")]
enum ClientState<C: Group> {
    Open(Open<C>, [u8; HASH_LEN]),
    Commit(Commit<C>, [u8; HASH_LEN]),
    Reveal(Reveal<C>, Vec<u8>),
    Echo(Echo<C>, Vec<u8>, Option<ClientSetup>),
    Deal(Deal<C>, [[u8; SEALED_LEN]; 2], Option<ClientTrial>),
    Confirm(KeyShare),
}

/// What follows on the nodes' replies.
#[allow(clippy::large_enum_variant, reason = "one value a session, moved once a round")]
#[must_use]
pub enum Next {
    /// Send these payloads to node 1 and node 2, and pass their replies on.
    Continue {
        /// The state that takes the replies.
        state: ClientKeygen,
        /// The next round's payload for node 1.
        to_node1: Vec<u8>,
        /// The next round's payload for node 2.
        to_node2: Vec<u8>,
    },
    /// Both nodes hold their shares and this is the client's. Nothing is stored yet anywhere.
    Done(KeyShare),
}

impl ClientKeygen {
    /// Opens a key generation; `rng` should be hedged with the password ([`SessionRng`]), the client's only secret. The contribution (32 bytes) travels in `open`. Feed the nodes' contributions to
    /// [`ClientKeygen::advance`] first, then their replies to rounds 1 to 5.
    pub fn start(context: &Context, rng: &mut (impl RngCore + CryptoRng)) -> (Self, [u8; HASH_LEN]) {
        let mut rng = SessionRng::new(rng, &[], &[&context.key_id, &context.job_digest, &[Party::Client.point()]]);
        let setup = context.setup(Party::Client);
        let (state, contribution) = match context.curve {
            CurveId::Secp256k1 => {
                let (open, contribution) = Open::start(setup, &mut rng);
                (ClientCurve::Secp256k1(Box::new(ClientState::Open(open, contribution))), contribution)
            }
            CurveId::Ed25519 => {
                let (open, contribution) = Open::start(setup, &mut rng);
                (ClientCurve::Ed25519(Box::new(ClientState::Open(open, contribution))), contribution)
            }
        };
        (Self { rng, state }, contribution)
    }

    /// Takes both nodes' replies.
    ///
    /// # Errors
    /// `Peer` naming the node whose message failed; never a lock.
    pub fn advance(self, node1: &[u8], node2: &[u8]) -> Result<Next> {
        let Self { mut rng, state } = self;
        match state {
            ClientCurve::Secp256k1(state) => match state.advance(node1, node2, &mut rng)? {
                Step::Continue(state, [to_node1, to_node2]) => {
                    let state = Self { rng, state: ClientCurve::Secp256k1(Box::new(state)) };
                    Ok(Next::Continue { state, to_node1, to_node2 })
                }
                Step::Done(share) => Ok(Next::Done(share)),
            },
            ClientCurve::Ed25519(state) => match state.advance(node1, node2, &mut rng)? {
                Step::Continue(state, [to_node1, to_node2]) => {
                    let state = Self { rng, state: ClientCurve::Ed25519(Box::new(state)) };
                    Ok(Next::Continue { state, to_node1, to_node2 })
                }
                Step::Done(share) => Ok(Next::Done(share)),
            },
        }
    }
}

#[allow(clippy::large_enum_variant, reason = "one value a session, moved once a round")]
enum Step<C: Group> {
    Continue(ClientState<C>, [Vec<u8>; 2]),
    Done(KeyShare),
}

/// Each node gets the client's message and the other node's.
fn relay(own: &[u8], node1: &[u8], node2: &[u8]) -> [Vec<u8>; 2] {
    [[own, node2].concat(), [own, node1].concat()]
}

impl<C: Finish> ClientState<C> {
    fn advance(self, node1: &[u8], node2: &[u8], rng: &mut SessionRng) -> Result<Step<C>> {
        let with_ot = keeps_ot(C::CURVE, Party::Client);
        match self {
            Self::Open(open, contribution) => {
                let (next, commitment) = open.commit([node1, node2])?;
                Ok(Step::Continue(Self::Commit(next, commitment), relay(&contribution, node1, node2)))
            }
            Self::Commit(commit, commitment) => {
                let (next, dealing) = commit.reveal([node1, node2])?;
                Ok(Step::Continue(Self::Reveal(next, dealing), relay(&commitment, node1, node2)))
            }
            Self::Reveal(reveal, dealing) => {
                let sid = reveal.sid();
                let (next, own_echo) = reveal.echo([node1, node2], None)?;
                let [mut to_node1, to_node2] = relay(&dealing, node1, node2);
                let setup = with_ot.then(|| {
                    let (setup, message) = ClientSetup::new(&sid, rng);
                    to_node1.extend_from_slice(&message);
                    setup
                });
                Ok(Step::Continue(Self::Echo(next, own_echo, setup), [to_node1, to_node2]))
            }
            Self::Echo(echo, own_echo, setup) => {
                let (echo1, ot) =
                    node1.split_at_checked(SIGNED_ECHO_LEN).ok_or(Abort::peer(Party::Node1, "keygen_shape"))?;
                let (next, sealed) = echo.deal([echo1, node2])?;
                let [mut to_node1, to_node2] = relay(&own_echo, echo1, node2);
                let trial = match setup {
                    Some(setup) => {
                        let (trial, message) = setup.advance(ot, rng)?;
                        to_node1.extend_from_slice(&message);
                        Some(trial)
                    }
                    None => {
                        nothing_left(ot, Party::Node1)?;
                        None
                    }
                };
                Ok(Step::Continue(Self::Deal(next, sealed, trial), [to_node1, to_node2]))
            }
            Self::Deal(deal, [to_node1, to_node2], trial) => {
                // Each node's reply: its sealed sub-share for the client, then the one for the other node.
                let ([for_client1, for_node2], ot) = split(node1, SEALED_LEN, SEALED_LEN, Party::Node1)?;
                let ([for_client2, for_node1], rest) = split(node2, SEALED_LEN, SEALED_LEN, Party::Node2)?;
                nothing_left(rest, Party::Node2)?;
                let generated = deal.finish([for_client1, for_client2])?;
                let mut payloads = [[&to_node1[..], for_node1].concat(), [&to_node2[..], for_node2].concat()];
                let state = match trial {
                    Some(trial) => {
                        let (state, message) = trial.finish(ot, rng)?;
                        let [payload, _] = &mut payloads;
                        payload.extend_from_slice(&message);
                        Some(state)
                    }
                    None => {
                        nothing_left(ot, Party::Node1)?;
                        None
                    }
                };
                Ok(Step::Continue(Self::Confirm(C::into_share(generated, state)?), payloads))
            }
            Self::Confirm(share) => {
                nothing_left(node1, Party::Node1)?;
                nothing_left(node2, Party::Node2)?;
                Ok(Step::Done(share))
            }
        }
    }
}
