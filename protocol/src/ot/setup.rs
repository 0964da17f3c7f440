//! OT setup of a key between client and node 1, with a trial multiplication in both directions before anything is
//! stored (docs/protocol.md, section 6). A failure here ends the attempt and locks nothing: the seeds die with it.
//!
//! ```text
//! round 3   client -> node1   A(client-receives)                32
//!           node1 -> client   A(node1-receives) ‖ S(client-receives)   8,224
//! round 4   client -> node1   S(node1-receives) ‖ trial extension      16,960
//!           node1 -> client   trial answer ‖ trial extension           48,900
//! round 5   client -> node1   trial answer                             40,132
//! ```

use super::base::{BaseReceiver, BaseSender, POINT_LEN, POINTS_LEN};
use super::extension::{EXTENSION_LEN, ExtensionId, ExtensionMessage, ReceiverExtension, ReceiverRows};
use super::{Direction, OtState, ReceiverSeeds, SenderSeeds};
use crate::codec::Reader;
use crate::curve::{Group, Secp256k1};
use crate::error::{Abort, Result};
use crate::party::Party;
use crate::rvole::{self, Answer};
use crate::transcript::{Tag, hash};
use k256::ProjectivePoint;
use rand_core::{CryptoRng, RngCore};
use zeroize::Zeroizing;

/// Bytes of a trial answer: a₀G, a₁G, the RVOLE answer, Γ₀, Γ₁.
pub const TRIAL_ANSWER_LEN: usize = 4 * 33 + rvole::ANSWER_LEN;
/// Bytes of node 1's round-3 message.
pub const NODE1_ROUND3_LEN: usize = POINT_LEN + POINTS_LEN;
/// Bytes of the client's round-4 message.
pub const CLIENT_ROUND4_LEN: usize = POINTS_LEN + EXTENSION_LEN;
/// Bytes of node 1's round-4 message.
pub const NODE1_ROUND4_LEN: usize = TRIAL_ANSWER_LEN + EXTENSION_LEN;

/// The same fault without the lock: during setup there is no state worth locking yet.
fn harmless(abort: Abort) -> Abort {
    match abort {
        Abort::Peer { culprit, check, .. } => Abort::peer(culprit, check),
        other => other,
    }
}

fn ot_id(sid: &[u8; 32], client_a: &[u8], client_s: &[u8], node1_a: &[u8], node1_s: &[u8]) -> [u8; 32] {
    // In the order of the directions: A and S of client-receives (the client's A, node 1's S), then of node1-receives.
    hash(Tag::OT_ID, &[sid, client_a, node1_s, node1_a, client_s])
}

/// Names the trial of one direction.
struct Trial<'a> {
    sid: &'a [u8; 32],
    direction: Direction,
    transcript: [u8; 32],
}

impl<'a> Trial<'a> {
    fn new(sid: &'a [u8; 32], ot_id: &[u8; 32], direction: Direction) -> Self {
        Self { sid, direction, transcript: hash(Tag::OT_TRIAL, &[sid, ot_id]) }
    }

    /// The transcript once the extension was sent.
    fn after(&self, extension: &[u8]) -> [u8; 32] {
        hash(Tag::OT_TRIAL, &[&self.transcript, extension])
    }

    fn id(&self, nonce: [u8; 16]) -> ExtensionId<'a> {
        ExtensionId { sid: self.sid, direction: self.direction, item: 0, nonce }
    }

    /// The extension's receiver opens the trial.
    fn extend(&self, seeds: &ReceiverSeeds, rng: &mut (impl RngCore + CryptoRng)) -> (OpenTrial, Vec<u8>) {
        let mut message = Vec::with_capacity(EXTENSION_LEN);
        let (nonce, rows) =
            ReceiverExtension::append(seeds, (self.sid, self.direction, 0), &self.transcript, &mut message, rng);
        (OpenTrial { nonce, rows, transcript: self.after(&message) }, message)
    }

    /// The extension's sender checks it and multiplies two random inputs.
    fn answer(&self, seeds: &SenderSeeds, message: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<Vec<u8>> {
        let culprit = self.direction.receiver();
        let parsed = Reader::new(message, EXTENSION_LEN).and_then(|mut reader| ExtensionMessage::read(&mut reader));
        let extension = parsed.ok_or(Abort::peer(culprit, "ot_trial_length"))?;
        let id = self.id(extension.nonce);
        let rows = extension.check(seeds, &id, &self.transcript).map_err(harmless)?;
        let inputs = Zeroizing::new([Secp256k1::random_scalar(rng), Secp256k1::random_scalar(rng)]);
        let [a0, a1] = &*inputs;
        let mut out = Vec::with_capacity(TRIAL_ANSWER_LEN);
        for a in [a0, a1] {
            out.extend_from_slice(&Secp256k1::encode_point(&ProjectivePoint::mul_by_generator(a)));
        }
        let transcript = self.after(message);
        let products = rvole::alice(&rows, &id, [a0, a1], &transcript, &mut out, rng);
        for c in &products.0 {
            out.extend_from_slice(&Secp256k1::encode_point(&ProjectivePoint::mul_by_generator(c)));
        }
        Ok(out)
    }
}

/// The extension's receiver, waiting for the answer.
struct OpenTrial {
    nonce: [u8; 16],
    rows: ReceiverRows,
    transcript: [u8; 32],
}

impl OpenTrial {
    fn verify(self, trial: &Trial<'_>, message: &[u8]) -> Result<()> {
        let culprit = trial.direction.sender();
        let parsed = Reader::new(message, TRIAL_ANSWER_LEN).and_then(|mut reader| {
            let inputs = [reader.point()?, reader.point()?];
            let answer = Answer::read(&mut reader)?;
            Some((inputs, answer, [reader.point()?, reader.point()?]))
        });
        let (inputs, answer, gammas) = parsed.ok_or(Abort::peer(culprit, "ot_trial_shape"))?;
        let id = trial.id(self.nonce);
        let b = rvole::bob_input(&self.rows);
        let products = rvole::bob(&self.rows, &id, &self.transcript, &answer).map_err(harmless)?;
        for ((input, gamma), d) in inputs.iter().zip(&gammas).zip(&products.0) {
            if input * b.expose() != ProjectivePoint::mul_by_generator(d) + gamma {
                return Err(Abort::peer(culprit, "ot_trial"));
            }
        }
        Ok(())
    }
}

/// The client, before node 1's first message.
pub struct ClientSetup {
    sid: [u8; 32],
    sender: BaseSender,
    big_a: [u8; POINT_LEN],
}

/// The client, waiting for node 1's trial.
pub struct ClientTrial {
    sid: [u8; 32],
    state: OtState,
    open: OpenTrial,
}

impl ClientSetup {
    /// The message is A(client-receives).
    pub fn new(sid: &[u8; 32], rng: &mut (impl RngCore + CryptoRng)) -> (Self, [u8; POINT_LEN]) {
        let (sender, big_a) = BaseSender::new(sid, Direction::ClientReceives, rng);
        (Self { sid: *sid, sender, big_a }, big_a)
    }

    /// Takes node 1's round-3 message.
    ///
    /// # Errors
    /// `ot_base_length`, `ot_base_point`.
    pub fn advance(self, message: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<(ClientTrial, Vec<u8>)> {
        let parsed = Reader::new(message, NODE1_ROUND3_LEN).and_then(|mut r| Some((r.array()?, r.bytes(POINTS_LEN)?)));
        let (node1_a, node1_s) = parsed.ok_or(Abort::peer(Party::Node1, "ot_base_length"))?;
        let (receiver, mut out) = BaseReceiver::new(&self.sid, Direction::Node1Receives, rng);
        let id = ot_id(&self.sid, &self.big_a, &out, &node1_a, node1_s);
        let state = OtState::new(id, receiver.finish(&node1_a)?, self.sender.finish(node1_s)?);
        let trial = Trial::new(&self.sid, &id, Direction::ClientReceives);
        let (open, extension) = trial.extend(state.receiver(), rng);
        out.extend_from_slice(&extension);
        Ok((ClientTrial { sid: self.sid, state, open }, out))
    }
}

impl ClientTrial {
    /// Takes node 1's round-4 message; returns the state to keep and the round-5 message.
    ///
    /// # Errors
    /// Every failed check of the trial; none of them locks.
    pub fn finish(self, message: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<(OtState, Vec<u8>)> {
        let parsed = Reader::new(message, NODE1_ROUND4_LEN)
            .and_then(|mut reader| Some((reader.bytes(TRIAL_ANSWER_LEN)?, reader.bytes(EXTENSION_LEN)?)));
        let (answer, extension) = parsed.ok_or(Abort::peer(Party::Node1, "ot_trial_length"))?;
        let id = self.state.id();
        self.open.verify(&Trial::new(&self.sid, &id, Direction::ClientReceives), answer)?;
        let trial = Trial::new(&self.sid, &id, Direction::Node1Receives);
        let out = trial.answer(self.state.sender(), extension, rng)?;
        Ok((self.state, out))
    }
}

/// Node 1, waiting for the client's points.
pub struct Node1Setup {
    sid: [u8; 32],
    sender: BaseSender,
    state: SenderSeeds,
    sent: Vec<u8>,
    client_a: [u8; POINT_LEN],
}

/// Node 1, waiting for the client's trial answer.
pub struct Node1Trial {
    sid: [u8; 32],
    state: OtState,
    open: OpenTrial,
}

impl Node1Setup {
    /// Takes the client's A(client-receives); returns node 1's round-3 message.
    ///
    /// # Errors
    /// `ot_base_length`, `ot_base_point`.
    pub fn new(sid: &[u8; 32], message: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<(Self, Vec<u8>)> {
        let client_a: [u8; POINT_LEN] = message.try_into().map_err(|_| Abort::peer(Party::Client, "ot_base_length"))?;
        let (sender, node1_a) = BaseSender::new(sid, Direction::Node1Receives, rng);
        let (receiver, points) = BaseReceiver::new(sid, Direction::ClientReceives, rng);
        let state = receiver.finish(&client_a)?;
        let mut sent = node1_a.to_vec();
        sent.extend_from_slice(&points);
        Ok((Self { sid: *sid, sender, state, sent: sent.clone(), client_a }, sent))
    }

    /// Takes the client's round-4 message; returns node 1's.
    ///
    /// # Errors
    /// `ot_base_length`, `ot_base_point`, or a failed check of the trial; none of them locks.
    pub fn advance(self, message: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<(Node1Trial, Vec<u8>)> {
        let parsed = Reader::new(message, CLIENT_ROUND4_LEN)
            .and_then(|mut reader| Some((reader.bytes(POINTS_LEN)?, reader.bytes(EXTENSION_LEN)?)));
        let (client_s, extension) = parsed.ok_or(Abort::peer(Party::Client, "ot_base_length"))?;
        let (node1_a, node1_s) = self.sent.split_at(POINT_LEN);
        let id = ot_id(&self.sid, &self.client_a, client_s, node1_a, node1_s);
        let state = OtState::new(id, self.state, self.sender.finish(client_s)?);
        let mut out = Trial::new(&self.sid, &id, Direction::ClientReceives).answer(state.sender(), extension, rng)?;
        let (open, mine) = Trial::new(&self.sid, &id, Direction::Node1Receives).extend(state.receiver(), rng);
        out.extend_from_slice(&mine);
        Ok((Node1Trial { sid: self.sid, state, open }, out))
    }
}

impl Node1Trial {
    /// Takes the client's round-5 message; returns the state to keep.
    ///
    /// # Errors
    /// Every failed check of the trial; none of them locks.
    pub fn finish(self, message: &[u8]) -> Result<OtState> {
        let id = self.state.id();
        self.open.verify(&Trial::new(&self.sid, &id, Direction::Node1Receives), message)?;
        Ok(self.state)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    /// All messages of a setup, with `tamper` applied to each on its way.
    fn run(seed: u8, mut tamper: impl FnMut(usize, &mut Vec<u8>)) -> Result<(OtState, OtState)> {
        let (mut c, mut n) = (ChaCha20Rng::from_seed([seed; 32]), ChaCha20Rng::from_seed([seed ^ 0xff; 32]));
        let mut send = |index, mut message: Vec<u8>| {
            tamper(index, &mut message);
            message
        };
        let (client, m) = ClientSetup::new(&[7; 32], &mut c);
        let (node1, m) = Node1Setup::new(&[7; 32], &send(0, m.to_vec()), &mut n)?;
        let (client, m) = client.advance(&send(1, m), &mut c)?;
        let (node1, m) = node1.advance(&send(2, m), &mut n)?;
        let (client, m) = client.finish(&send(3, m), &mut c)?;
        Ok((client, node1.finish(&send(4, m))?))
    }

    #[test]
    fn both_sides_agree_on_every_choice() {
        let mut seen = [false; 2];
        for seed in 0..2 {
            let (client, node1) = run(seed, |_, _| {}).unwrap();
            assert_eq!(client.id(), node1.id());
            for (sender, receiver) in [(client.sender(), node1.receiver()), (node1.sender(), client.receiver())] {
                for i in 0..128 {
                    let bit = sender.delta[i / 8] >> (i % 8) & 1;
                    seen[usize::from(bit)] = true;
                    assert_eq!(sender.keys[i], receiver.keys[i][usize::from(bit)]);
                    assert_ne!(sender.keys[i], receiver.keys[i][usize::from(1 - bit)]);
                }
            }
        }
        assert_eq!(seen, [true; 2]);
    }

    #[test]
    fn state_survives_encoding_exactly() {
        let (state, _) = run(3, |_, _| {}).unwrap();
        let bytes = state.to_bytes();
        assert_eq!(bytes.len(), OtState::LEN);
        assert_eq!(*OtState::from_bytes(&bytes).unwrap().to_bytes(), *bytes);
        for len in [0, OtState::LEN - 1] {
            assert!(OtState::from_bytes(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn every_tampered_message_is_refused_without_a_lock() {
        for message in 0..5 {
            for position in [0usize, 33, 40, 8_200, 8_224, 9_000, 16_940, 40_100, 40_140, 48_899] {
                let mut hit = false;
                let result = run(9, |index, m| {
                    if index == message && position < m.len() {
                        m[position] ^= 1;
                        hit = true;
                    }
                });
                if hit {
                    let abort = result.err().unwrap();
                    assert!(matches!(abort, Abort::Peer { ban: false, .. }), "{message} {position} {abort}");
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_and_identity_points_are_refused() {
        for message in 0..5 {
            for change in [-1isize, 1, -1_000_000, 1_000_000] {
                let result = run(11, |index, m| {
                    if index == message {
                        m.resize((m.len() as isize + change).max(0) as usize, 0);
                    }
                });
                assert!(matches!(result.err().unwrap(), Abort::Peer { ban: false, .. }));
            }
        }
        for (message, at) in [(0, 0), (1, 0), (1, 32), (1, 64), (2, 0), (2, 32)] {
            for byte in [0x00, 0xff] {
                // All zeros is ristretto255's identity; all ones is not a canonical encoding.
                let result = run(12, |index, m| {
                    if index == message {
                        m[at..at + 32].fill(byte);
                    }
                });
                assert_eq!(result.err().unwrap().check(), "ot_base_point");
            }
        }
    }
}
