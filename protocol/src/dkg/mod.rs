//! Three-party key generation on either curve (docs/protocol.md, section 6).
//!
//! ```text
//! Open --commit--> Commit --reveal--> Reveal --echo--> Echo --deal--> Deal --finish--> Generated
//! ```
//!
//! Every step consumes its state, takes one message of each of the two others, in the order of [`Party::others`], and
//! returns the next state and its own message. All parties run this code; they differ in that the client has no identity
//! key: its echo is trusted because of the channel that it came over. All randomness is drawn at the start.
//!
//! Checks: `dkg_shape` (a wrong length, a point or scalar that is not canonical), `dkg_commitment`, `dkg_proof`,
//! `dkg_echo`, `dkg_share`. The culprit named is the message's sender; if a relay altered the message, it is the relay.
//!
//! A state is used once, or the program does not compile:
//!
//! ```
//! # use trefoil_protocol::{curve::Ed25519, dkg::Open};
//! fn once(state: Open<Ed25519>, m: [&[u8]; 2]) {
//!     let _ = state.commit(m);
//! }
//! ```
//!
//! ```compile_fail,E0382
//! # use trefoil_protocol::{curve::Ed25519, dkg::Open};
//! fn twice(state: Open<Ed25519>, m: [&[u8]; 2]) {
//!     let _ = state.commit(m);
//!     let _ = state.commit(m);
//! }
//! ```

mod dealing;
mod seal;

use self::dealing::{Dealing, Own, commit_to};
use self::seal::{cipher, shared_secret};
use crate::curve::{Ed25519, Group, SCALAR_LEN, Secp256k1};
use crate::ot::OtState;
use crate::schnorr;
use crate::share::{KeyIdentity, KeyShare, Shamir};
use crate::transcript::{PROTOCOL_REVISION, Tag, hash};
use crate::{Abort, Party, Result, Secret};
use aes_gcm::aead::Aead;
use aes_gcm::{Aes256Gcm, Nonce};
use curve25519_dalek::MontgomeryPoint;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand_core::{CryptoRng, RngCore};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub use self::dealing::dealing_len;

/// Bytes of a contribution and of a commitment.
pub const HASH_LEN: usize = 32;
/// Bytes of a node's echo: `E` and a signature. The client's is `E` alone.
pub const SIGNED_ECHO_LEN: usize = 32 + 64;
/// Bytes of a sealed sub-share: scalar and AES-GCM tag.
pub const SEALED_LEN: usize = SCALAR_LEN + 16;

/// Starts what a node signs in its echo. The tag keeps it apart from every other signature of a node's identity.
const ECHO_PREFIX: &[u8] = b"\xfftrefoil-echo-v1\x00";

const fn shape(from: Party) -> Abort {
    Abort::peer(from, "dkg_shape")
}

/// What the three parties agree on before they start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Who we are.
    pub party: Party,
    /// The new key's id.
    pub key_id: [u8; 16],
    /// The new shares' epoch.
    pub epoch: u32,
    /// SHA-256 of the signed job that asked for the key.
    pub job_digest: [u8; 32],
    /// Node 1's pinned identity.
    pub node1: VerifyingKey,
    /// Node 2's pinned identity.
    pub node2: VerifyingKey,
}

impl Setup {
    const fn identity_of(&self, party: Party) -> Option<&VerifyingKey> {
        match party {
            Party::Client => None,
            Party::Node1 => Some(&self.node1),
            Party::Node2 => Some(&self.node2),
        }
    }

    /// Applies `check` to each of the two others' messages.
    fn each<M, T>(&self, messages: [M; 2], mut check: impl FnMut(Party, M) -> Result<T>) -> Result<[T; 2]> {
        let ([p, q], [m, n]) = (self.party.others(), messages);
        Ok([check(p, m)?, check(q, n)?])
    }

    /// Own value and those of the others, in the order of the parties' points.
    fn in_order<T>(&self, own: T, [first, second]: [T; 2]) -> [T; 3] {
        match self.party {
            Party::Client => [own, first, second],
            Party::Node1 => [first, own, second],
            Party::Node2 => [first, second, own],
        }
    }
}

/// Round 0: our contribution to the session id is out.
pub struct Open<C: Group> {
    setup: Setup,
    contribution: [u8; 32],
    own: Own<C>,
    proof_seed: Secret<[u8; 32]>,
    chain_code_part: [u8; 32],
    salt: [u8; 32],
}

impl<C: Group> Open<C> {
    /// Draws everything and returns our contribution, 32 bytes.
    pub fn start(setup: Setup, rng: &mut (impl RngCore + CryptoRng)) -> (Self, [u8; HASH_LEN]) {
        let contribution = random_bytes(rng);
        let own = Own {
            coefficients: [Secret::new(C::random_scalar(rng)), Secret::new(C::random_scalar(rng))],
            ephemeral: Secret::new(random_bytes(rng)),
        };
        let proof_seed = Secret::new(random_bytes(rng));
        let (chain_code_part, salt) = (random_bytes(rng), random_bytes(rng));
        (Self { setup, contribution, own, proof_seed, chain_code_part, salt }, contribution)
    }

    /// Takes the others' contributions; returns the commitment to our dealing, 32 bytes.
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`.
    pub fn commit(self, contributions: [&[u8]; 2]) -> Result<(Commit<C>, [u8; HASH_LEN])> {
        let others = self.setup.each(contributions, |from, bytes| bytes.try_into().map_err(|_| shape(from)))?;
        let [n1, n2, n3]: [[u8; 32]; 3] = self.setup.in_order(self.contribution, others);
        let Setup { party, key_id, epoch, job_digest, .. } = &self.setup;
        let curve = C::CURVE.name().as_bytes();
        let sid = hash(
            Tag::DKG_SID,
            &[&PROTOCOL_REVISION.to_be_bytes(), curve, key_id, &epoch.to_be_bytes(), job_digest, &n1, &n2, &n3],
        );

        let [a0, a1] = &self.own.coefficients;
        let commitments = [C::mul_generator(a0.expose()), C::mul_generator(a1.expose())];
        let [constant, slope] = &commitments;
        // Made only now, bound to sid: a repeated RNG with another session then gives another nonce, not a0.
        let witness = C::encode_scalar(a0.expose());
        let nonce = C::hash_to_scalar(Tag::DKG_NONCE, &[self.proof_seed.expose(), witness.as_ref(), &sid]);
        let proof = schnorr::prove::<C>(&sid, *party, a0.expose(), constant, &Zeroizing::new(nonce));
        let ephemeral = MontgomeryPoint::mul_base_clamped(*self.own.ephemeral.expose()).to_bytes();
        let mut message = Vec::with_capacity(dealing_len::<C>());
        for point in [constant, slope, &proof.nonce_point] {
            message.extend_from_slice(C::encode_point(point).as_ref());
        }
        message.extend_from_slice(C::encode_scalar(&proof.response).as_ref());
        for field in [&self.chain_code_part, &ephemeral, &self.salt] {
            message.extend_from_slice(field);
        }
        let commitment = commit_to(&sid, *party, &message);
        let dealing = Dealing { commitments, chain_code_part: self.chain_code_part, ephemeral };
        Ok((Commit { setup: self.setup, own: self.own, sid, dealing, message, commitment }, commitment))
    }
}

/// Round 1: our commitment is out.
pub struct Commit<C: Group> {
    setup: Setup,
    own: Own<C>,
    sid: [u8; 32],
    dealing: Dealing<C>,
    message: Vec<u8>,
    commitment: [u8; 32],
}

impl<C: Group> Commit<C> {
    /// The session id, 32 bytes, for what runs beside this protocol.
    #[must_use]
    pub const fn sid(&self) -> [u8; 32] {
        self.sid
    }

    /// Takes the others' commitments; returns our dealing, [`dealing_len`] bytes.
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`.
    pub fn reveal(self, commitments: [&[u8]; 2]) -> Result<(Reveal<C>, Vec<u8>)> {
        let commitments = self.setup.each(commitments, |from, bytes| bytes.try_into().map_err(|_| shape(from)))?;
        let message = self.message.clone();
        Ok((Reveal { own: self, commitments }, message))
    }
}

/// Round 2: our dealing is out, the others' commitments are fixed.
pub struct Reveal<C: Group> {
    own: Commit<C>,
    commitments: [[u8; 32]; 2],
}

impl<C: Group> Reveal<C> {
    /// The session id, 32 bytes.
    #[must_use]
    pub const fn sid(&self) -> [u8; 32] {
        self.own.sid
    }

    /// Takes the others' dealings; returns our echo: 96 bytes of a node, 32 of the client. A node signs with `identity`;
    /// the client has none.
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`, `dkg_commitment` or `dkg_proof`; `InvalidInput` if `identity` is not the pinned one.
    pub fn echo(self, dealings: [&[u8]; 2], identity: Option<&SigningKey>) -> Result<(Echo<C>, Vec<u8>)> {
        let Self { own: Commit { setup, own, sid, dealing, message, commitment }, commitments } = self;
        if setup.identity_of(setup.party) != identity.map(SigningKey::verifying_key).as_ref() {
            return Err(Abort::InvalidInput("the identity is not the one that the others know"));
        }
        let [first, second] = commitments;
        let [d, e] = dealings;
        let others = setup.each([(first, d), (second, e)], |from, (commitment, bytes)| {
            if bytes.len() != dealing_len::<C>() {
                return Err(shape(from));
            }
            if !bool::from(commit_to(&sid, from, bytes).ct_eq(&commitment)) {
                return Err(Abort::peer(from, "dkg_commitment"));
            }
            Dealing::read(bytes, &sid, from)
        })?;
        let [c1, c2, c3] = setup.in_order(commitment, commitments);
        let [d1, d2, d3] = setup.in_order(message.as_slice(), dealings);
        let transcript = hash(Tag::DKG_TRANSCRIPT, &[&sid, &c1, &c2, &c3, d1, d2, d3]);
        let mut echo = transcript.to_vec();
        if let Some(identity) = identity {
            echo.extend_from_slice(&identity.sign(&echo_statement(&transcript)).to_bytes());
        }
        Ok((Echo { setup, own, sid, dealing, others, transcript }, echo))
    }
}

/// What a node signs: 0xFF ‖ "trefoil-echo-v1" ‖ 0 ‖ E.
fn echo_statement(transcript: &[u8; 32]) -> Vec<u8> {
    [ECHO_PREFIX, transcript].concat()
}

/// Round 3: our echo is out; we know what everybody broadcast, as far as we were shown.
pub struct Echo<C: Group> {
    setup: Setup,
    own: Own<C>,
    sid: [u8; 32],
    dealing: Dealing<C>,
    others: [Dealing<C>; 2],
    transcript: [u8; 32],
}

impl<C: Group> Echo<C> {
    /// The session id, 32 bytes.
    #[must_use]
    pub const fn sid(&self) -> [u8; 32] {
        self.sid
    }

    /// `E`, the hash of all broadcasts, 32 bytes.
    #[must_use]
    pub const fn transcript(&self) -> [u8; 32] {
        self.transcript
    }

    /// Takes the others' echoes; returns their sealed sub-shares, in the order of [`Party::others`].
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`; `dkg_echo` if one saw other broadcasts or the signature is not its own; `dkg_share` if its
    /// X25519 key has a small order.
    pub fn deal(self, echoes: [&[u8]; 2]) -> Result<(Deal<C>, [[u8; SEALED_LEN]; 2])> {
        let Self { setup, own, dealing, others, transcript, .. } = self;
        setup.each(echoes, |from, echo| check_echo(&setup, &transcript, from, echo))?;
        let [first, second] = &others;
        let sealed = setup.each([first, second], |to, theirs| {
            let shared = shared_secret(&own.ephemeral, &theirs.ephemeral).ok_or(Abort::peer(to, "dkg_share"))?;
            let share = C::encode_scalar(&Zeroizing::new(own.at(to)));
            let sealed = cipher(&shared, &transcript, setup.party, to)?.encrypt(&Nonce::default(), share.as_ref());
            let message = sealed.ok().and_then(|bytes| bytes.try_into().ok());
            Ok((
                message.ok_or(Abort::Bug("sealing 32 bytes gives 48"))?,
                cipher(&shared, &transcript, to, setup.party)?,
            ))
        })?;
        let [(to_first, from_first), (to_second, from_second)] = sealed;
        let own_share = Secret::new(own.at(setup.party));
        let dealings = setup.in_order(dealing, others);
        Ok((Deal { setup, own_share, ciphers: [from_first, from_second], dealings, transcript }, [to_first, to_second]))
    }
}

/// The sender's view must be ours, and a node's must carry its signature.
fn check_echo(setup: &Setup, transcript: &[u8; 32], from: Party, echo: &[u8]) -> Result<()> {
    let refused = Abort::peer(from, "dkg_echo");
    let (theirs, signature) = echo.split_at_checked(HASH_LEN).ok_or(shape(from))?;
    match setup.identity_of(from) {
        None if signature.is_empty() => {}
        None => return Err(shape(from)),
        Some(identity) => {
            let signature = Signature::from_slice(signature).map_err(|_| shape(from))?;
            identity.verify_strict(&echo_statement(transcript), &signature).map_err(|_| refused)?;
        }
    }
    if theirs == transcript { Ok(()) } else { Err(refused) }
}

/// Round 4: our sub-shares are out; all parties confirmed the same broadcasts.
pub struct Deal<C: Group> {
    setup: Setup,
    own_share: Secret<C::Scalar>,
    ciphers: [Aes256Gcm; 2],
    dealings: [Dealing<C>; 3],
    transcript: [u8; 32],
}

impl<C: Group> Deal<C> {
    /// `E`, the hash of all broadcasts, 32 bytes.
    #[must_use]
    pub const fn transcript(&self) -> [u8; 32] {
        self.transcript
    }

    /// Takes the others' sealed sub-shares, [`SEALED_LEN`] bytes each.
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`, or `dkg_share` if one does not open or does not fit its dealer's commitments.
    pub fn finish(self, sealed: [&[u8]; 2]) -> Result<Generated<C>> {
        let Self { setup, own_share, ciphers: [c, d], dealings, transcript } = self;
        let [m, n] = sealed;
        let [d1, d2, d3] = &dealings;
        let mut share = own_share;
        setup.each([(c, m), (d, n)], |from, (cipher, sealed)| {
            if sealed.len() != SEALED_LEN {
                return Err(shape(from));
            }
            let refused = Abort::peer(from, "dkg_share");
            let opened = Zeroizing::new(cipher.decrypt(&Nonce::default(), sealed).map_err(|_| refused)?);
            let part = Secret::new(C::decode_scalar(&opened).ok_or(refused)?);
            let dealing = match from {
                Party::Client => d1,
                Party::Node1 => d2,
                Party::Node2 => d3,
            };
            if C::mul_generator(part.expose()) != dealing.at(setup.party) {
                return Err(refused);
            }
            *share.expose_mut() = *share.expose() + *part.expose();
            Ok(())
        })?;
        let verifying = Party::ALL.map(|party| d1.at(party) + d2.at(party) + d3.at(party));
        let [[a, _], [b, _], [c, _]] = [d1.commitments, d2.commitments, d3.commitments];
        let public = a + b + c;
        if verifying.iter().chain([&public]).any(C::is_identity) {
            // Nobody can aim at this: every dealing was committed to before any was seen.
            return Err(Abort::Bug("the key or a share of it is zero"));
        }
        let parts = [&d1.chain_code_part, &d2.chain_code_part, &d3.chain_code_part];
        let [p1, p2, p3] = parts.map(|part| part.as_slice());
        let chain_code = hash(Tag::DKG_CHAIN_CODE, &[p1, p2, p3, C::encode_point(&public).as_ref()]);
        let identity = KeyIdentity { key_id: setup.key_id, epoch: setup.epoch, transcript, chain_code };
        let shamir = Shamir::new(setup.party, share, verifying, public)
            .ok_or(Abort::Bug("checked sub-shares sum to an inconsistent share"))?;
        Ok(Generated { party: setup.party, identity, shamir })
    }
}

/// The key is generated; on secp256k1 the signing pair still has to add its OT state.
pub struct Generated<C: Group> {
    party: Party,
    identity: KeyIdentity,
    shamir: Shamir<C>,
}

impl Generated<Secp256k1> {
    /// The party's share.
    ///
    /// # Errors
    /// `InvalidInput` unless `ot` is present for exactly the client and node 1.
    pub fn into_share(self, ot: Option<OtState>) -> Result<KeyShare> {
        KeyShare::secp256k1(self.party, self.identity, self.shamir, ot)
    }
}

impl Generated<Ed25519> {
    /// The party's share.
    #[must_use]
    pub fn into_share(self) -> KeyShare {
        KeyShare::ed25519(self.party, self.identity, self.shamir)
    }
}

fn random_bytes(rng: &mut (impl RngCore + CryptoRng)) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    bytes
}
