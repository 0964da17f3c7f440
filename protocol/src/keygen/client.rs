//! The client's side, which relays between the nodes.

use super::{Context, Finish, Opened, nothing_left, split};
use crate::curve::{Ed25519, Group, Secp256k1};
use crate::dkg::{Commit, Deal, Echo, HASH_LEN, Open, Reveal, SEALED_LEN, SIGNED_ECHO_LEN};
use crate::ot::setup::{ClientSetup, ClientTrial};
use crate::reshare::{Origin, Source};
use crate::rng::SessionRng;
use crate::share::{KeyShare, keeps_ot};
use crate::{Abort, Party, Result};
use rand_core::{CryptoRng, RngCore};

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
    /// What the client deals to each node: nothing in a recovery.
    Deal(Deal<C>, [Vec<u8>; 2], Option<ClientTrial>),
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
    /// Opens a key generation; `rng` should be hedged with the password ([`SessionRng`]), the client's only secret. The
    /// contribution (32 bytes) travels in `open`. Feed the nodes' contributions to [`ClientKeygen::advance`] first, then their
    /// replies to rounds 1 to 5.
    pub fn start(context: &Context, rng: &mut (impl RngCore + CryptoRng)) -> (Self, [u8; HASH_LEN]) {
        let mut rng = session_rng(context, rng);
        let (open, contribution) = Opened::generate(context, Party::Client, &mut rng);
        (Self::new(open, contribution, rng), contribution)
    }

    /// Opens a recovery: the client has no share, and `source` is what both nodes say of the key.
    ///
    /// # Errors
    /// `InvalidInput` if `source` contradicts itself, or `context` does not follow on it: same curve, another key id, the next
    /// epoch.
    pub fn recover(
        context: &Context,
        source: &Source,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        Self::reshare(context, Origin::RecoverTo(source), rng)
    }

    /// Opens a refresh of the key that `share` is of, under the same key id and the next epoch.
    ///
    /// # Errors
    /// `InvalidInput` for another party's share, or if `context` does not follow on the share.
    pub fn refresh(
        context: &Context,
        share: &KeyShare,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        Self::reshare(context, Origin::Refresh(share), rng)
    }

    fn reshare(
        context: &Context,
        origin: Origin<'_>,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        let mut rng = session_rng(context, rng);
        let (open, contribution) = Opened::reshare(context, Party::Client, origin, &mut rng)?;
        Ok((Self::new(open, contribution, rng), contribution))
    }

    fn new(open: Opened, contribution: [u8; HASH_LEN], rng: SessionRng) -> Self {
        let state = match open {
            Opened::Secp256k1(open) => ClientCurve::Secp256k1(Box::new(ClientState::Open(open, contribution))),
            Opened::Ed25519(open) => ClientCurve::Ed25519(Box::new(ClientState::Open(open, contribution))),
        };
        Self { rng, state }
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

/// The whole run's randomness.
fn session_rng(context: &Context, rng: &mut (impl RngCore + CryptoRng)) -> SessionRng {
    SessionRng::new(rng, &[], &[&context.key_id, &context.job_digest, &[Party::Client.point()]])
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
