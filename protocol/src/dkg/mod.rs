//! Three parties deal shares of a key on either curve: a new key (docs/protocol.md, section 6), or one that is recovered or
//! refreshed (section 7).
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
mod echo;
mod seal;
mod setup;

use self::dealing::{Dealing, Own, commit_to, len_of};
use self::echo::View;
use self::seal::{cipher, shared_secret};
use crate::curve::{Ed25519, Group, SCALAR_LEN, Secp256k1};
use crate::ot::OtState;
use crate::reshare::{Known, Origin};
use crate::schnorr;
use crate::share::{KeyIdentity, KeyShare, Shamir};
use crate::transcript::{Tag, hash};
use crate::{Abort, Party, Result, Secret};
use aes_gcm::aead::Aead;
use aes_gcm::{Aes256Gcm, Nonce};
use curve25519_dalek::MontgomeryPoint;
use ed25519_dalek::SigningKey;
use rand_core::{CryptoRng, RngCore};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub use self::setup::Setup;

/// Bytes of a contribution and of a commitment.
pub const HASH_LEN: usize = 32;
/// Bytes of a node's echo: `E` and a signature. The client's is `E` alone.
pub const SIGNED_ECHO_LEN: usize = 32 + 64;
/// Bytes of a sealed sub-share: scalar and AES-GCM tag.
pub const SEALED_LEN: usize = SCALAR_LEN + 16;

const fn shape(from: Party) -> Abort {
    Abort::peer(from, "dkg_shape")
}

/// Round 0: our contribution to the session id is out.
pub struct Open<C: Group> {
    setup: Setup,
    /// None when a key is generated: nothing is known of it.
    known: Option<Known<C>>,
    contribution: [u8; 32],
    own: Own<C>,
    proof_seed: Secret<[u8; 32]>,
    chain_code_part: [u8; 32],
    salt: [u8; 32],
}

impl<C: Group> Open<C> {
    /// Opens a key generation: draws everything and returns our contribution, 32 bytes.
    pub fn start(setup: Setup, rng: &mut (impl RngCore + CryptoRng)) -> (Self, [u8; HASH_LEN]) {
        let contribution = random_bytes(rng);
        let coefficients = [Secret::new(C::random_scalar(rng)), Secret::new(C::random_scalar(rng))];
        (Self::draw(setup, None, contribution, coefficients, rng), contribution)
    }

    /// Opens a recovery or refresh, likewise.
    ///
    /// # Errors
    /// `InvalidInput` if the origin is not this party's, not of this curve, not what `setup` follows on (the next epoch; the
    /// same key id in a refresh, another in a recovery), or contradicts itself.
    pub fn reshare(
        setup: Setup,
        origin: Origin<'_>,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; HASH_LEN])> {
        let known = Known::new(&setup, origin)?;
        let contribution = random_bytes(rng);
        let slope = if known.deals(setup.party) { C::random_scalar(rng) } else { C::Scalar::from(0) };
        let coefficients = [known.own_constant(setup.party)?, Secret::new(slope)];
        Ok((Self::draw(setup, Some(known), contribution, coefficients, rng), contribution))
    }

    /// The rest. (Nobody uses the proof's seed and the part of the chain code in a recovery or refresh.)
    fn draw(
        setup: Setup,
        known: Option<Known<C>>,
        contribution: [u8; HASH_LEN],
        coefficients: [Secret<C::Scalar>; 2],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Self {
        let own = Own { coefficients, ephemeral: Secret::new(random_bytes(rng)) };
        let proof_seed = Secret::new(random_bytes(rng));
        let (chain_code_part, salt) = (random_bytes(rng), random_bytes(rng));
        Self { setup, known, contribution, own, proof_seed, chain_code_part, salt }
    }

    /// Takes the others' contributions; returns the commitment to our dealing, 32 bytes.
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`.
    pub fn commit(self, contributions: [&[u8]; 2]) -> Result<(Commit<C>, [u8; HASH_LEN])> {
        let others = self.setup.each(contributions, |from, bytes| bytes.try_into().map_err(|_| shape(from)))?;
        let contributions: [[u8; 32]; 3] = self.setup.in_order(self.contribution, others);
        let Self { setup, known, own, .. } = &self;
        let party = setup.party;
        let sid = match known {
            None => setup.sid::<C>(&contributions),
            Some(known) => known.sid(setup, &contributions),
        };

        let [a0, a1] = &own.coefficients;
        let commitments = [C::mul_generator(a0.expose()), C::mul_generator(a1.expose())];
        let [constant, slope] = &commitments;
        let ephemeral = MontgomeryPoint::mul_base_clamped(*own.ephemeral.expose()).to_bytes();
        let mut message = Vec::with_capacity(len_of(known.as_ref(), party));
        match known {
            None => {
                // Made only now, bound to sid: a repeated RNG with another session then gives another nonce, not a0.
                let witness = C::encode_scalar(a0.expose());
                let nonce = C::hash_to_scalar(Tag::DKG_NONCE, &[self.proof_seed.expose(), witness.as_ref(), &sid]);
                let proof = schnorr::prove::<C>(&sid, party, a0.expose(), constant, &Zeroizing::new(nonce));
                for point in [constant, slope, &proof.nonce_point] {
                    message.extend_from_slice(C::encode_point(point).as_ref());
                }
                message.extend_from_slice(C::encode_scalar(&proof.response).as_ref());
                message.extend_from_slice(&self.chain_code_part);
            }
            Some(known) if known.deals(party) => message.extend_from_slice(C::encode_point(slope).as_ref()),
            Some(_) => {}
        }
        message.extend_from_slice(&ephemeral);
        message.extend_from_slice(&self.salt);
        let commitment = commit_to(&sid, party, &message);
        let dealing = Dealing { commitments, chain_code_part: self.chain_code_part, ephemeral };
        let Self { setup, known, own, .. } = self;
        Ok((Commit { setup, known, own, sid, dealing, message, commitment }, commitment))
    }
}

/// Round 1: our commitment is out.
pub struct Commit<C: Group> {
    setup: Setup,
    known: Option<Known<C>>,
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

    /// Takes the others' commitments; returns our dealing, [`Reveal::dealing_len`] bytes.
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

    /// Bytes of a party's dealing: 227 or 224 in a key generation; in a recovery or refresh 97 or 96, and 64 of the client
    /// that recovers.
    #[must_use]
    pub fn dealing_len(&self, dealer: Party) -> usize {
        len_of(self.own.known.as_ref(), dealer)
    }

    /// Takes the others' dealings; returns our echo: 96 bytes of a node, 32 of the client. A node signs with `identity`;
    /// the client has none.
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`, `dkg_commitment` or `dkg_proof`; `InvalidInput` if `identity` is not the pinned one.
    pub fn echo(self, dealings: [&[u8]; 2], identity: Option<&SigningKey>) -> Result<(Echo<C>, Vec<u8>)> {
        let Self { own: Commit { setup, known, own, sid, dealing, message, commitment }, commitments } = self;
        let expected = known.as_ref();
        if setup.identity_of(setup.party) != identity.map(SigningKey::verifying_key).as_ref() {
            return Err(Abort::InvalidInput("the identity is not the one that the others know"));
        }
        let [first, second] = commitments;
        let [d, e] = dealings;
        let others = setup.each([(first, d), (second, e)], |from, (commitment, bytes)| {
            if bytes.len() != len_of(expected, from) {
                return Err(shape(from));
            }
            if !bool::from(commit_to(&sid, from, bytes).ct_eq(&commitment)) {
                return Err(Abort::peer(from, "dkg_commitment"));
            }
            Dealing::read(bytes, expected, &sid, from)
        })?;
        let [c1, c2, c3] = setup.in_order(commitment, commitments);
        let [d1, d2, d3] = setup.in_order(message.as_slice(), dealings);
        let transcript = hash(Tag::DKG_TRANSCRIPT, &[&sid, &c1, &c2, &c3, d1, d2, d3]);
        let view = View { transcript, reshare: known.is_some() };
        let echo = view.echo(identity);
        Ok((Echo { setup, known, own, sid, dealing, others, view }, echo))
    }
}

/// Round 3: our echo is out; we know what everybody broadcast, as far as we were shown.
pub struct Echo<C: Group> {
    setup: Setup,
    known: Option<Known<C>>,
    own: Own<C>,
    sid: [u8; 32],
    dealing: Dealing<C>,
    others: [Dealing<C>; 2],
    view: View,
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
        self.view.transcript
    }

    /// Takes the others' echoes; returns their sealed sub-shares, [`SEALED_LEN`] bytes each, in the order of
    /// [`Party::others`]; empty if we deal nothing.
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`; `dkg_echo` if one saw other broadcasts or the signature is not its own; `dkg_share` if its
    /// X25519 key has a small order.
    pub fn deal(self, echoes: [&[u8]; 2]) -> Result<(Deal<C>, [Vec<u8>; 2])> {
        let Self { setup, known, own, dealing, others, view, .. } = self;
        setup.each(echoes, |from, echo| view.check(&setup, from, echo))?;
        let (transcript, we_deal) = (view.transcript, deals(known.as_ref(), setup.party));
        let [first, second] = &others;
        let sealed = setup.each([first, second], |to, theirs| {
            let shared = shared_secret(&own.ephemeral, &theirs.ephemeral).ok_or(Abort::peer(to, "dkg_share"))?;
            let theirs = cipher(&shared, &transcript, to, setup.party)?;
            if !we_deal {
                return Ok((Vec::new(), theirs));
            }
            let share = C::encode_scalar(&Zeroizing::new(own.at(to)));
            let sealed = cipher(&shared, &transcript, setup.party, to)?.encrypt(&Nonce::default(), share.as_ref());
            Ok((sealed.map_err(|_| Abort::Bug("32 bytes can be sealed"))?, theirs))
        })?;
        let [(to_first, from_first), (to_second, from_second)] = sealed;
        let mut share = Secret::new(own.at(setup.party));
        if let Some(kept) = known.as_ref().and_then(Known::kept_share) {
            *share.expose_mut() = *share.expose() + *kept.expose();
        }
        let (ciphers, dealings) = ([from_first, from_second], setup.in_order(dealing, others));
        Ok((Deal { setup, known, share, ciphers, dealings, transcript }, [to_first, to_second]))
    }
}

/// Round 4: our sub-shares are out; all parties confirmed the same broadcasts.
pub struct Deal<C: Group> {
    setup: Setup,
    known: Option<Known<C>>,
    /// What we have of our new share so far.
    share: Secret<C::Scalar>,
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

    /// Bytes of a party's sealed sub-share: [`SEALED_LEN`], or none if it deals nothing.
    #[must_use]
    pub fn sealed_len(&self, dealer: Party) -> usize {
        if deals(self.known.as_ref(), dealer) { SEALED_LEN } else { 0 }
    }

    /// Takes the others' sealed sub-shares, [`Deal::sealed_len`] bytes each.
    ///
    /// # Errors
    /// `Peer` with `dkg_shape`, or `dkg_share` if one does not open or does not fit its dealer's commitments.
    pub fn finish(self, sealed: [&[u8]; 2]) -> Result<Generated<C>> {
        let lens = self.setup.party.others().map(|from| self.sealed_len(from));
        let Self { setup, known, mut share, ciphers: [c, d], dealings, transcript } = self;
        let ([m, n], [len_m, len_n]) = (sealed, lens);
        let [d1, d2, d3] = &dealings;
        setup.each([(c, m, len_m), (d, n, len_n)], |from, (cipher, sealed, len)| {
            if sealed.len() != len {
                return Err(shape(from));
            }
            if len == 0 {
                return Ok(());
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
        let dealt = Party::ALL.map(|party| d1.at(party) + d2.at(party) + d3.at(party));
        let [[a, _], [b, _], [c, _]] = [d1.commitments, d2.commitments, d3.commitments];
        let (verifying, public) = match &known {
            None => (dealt, a + b + c),
            Some(known) => known.renew(dealt, a + b + c)?,
        };
        if verifying.iter().chain([&public]).any(C::is_identity) {
            // Nobody can aim at this: every dealing was committed to before any was seen.
            return Err(Abort::Bug("the key or a share of it is zero"));
        }
        let chain_code = match &known {
            None => {
                let parts = [&d1.chain_code_part, &d2.chain_code_part, &d3.chain_code_part];
                let [p1, p2, p3] = parts.map(|part| part.as_slice());
                hash(Tag::DKG_CHAIN_CODE, &[p1, p2, p3, C::encode_point(&public).as_ref()])
            }
            Some(known) => known.chain_code(),
        };
        let identity = KeyIdentity { key_id: setup.key_id, epoch: setup.epoch, transcript, chain_code };
        let shamir = Shamir::new(setup.party, share, verifying, public)
            .ok_or(Abort::Bug("checked sub-shares sum to an inconsistent share"))?;
        Ok(Generated { party: setup.party, identity, shamir })
    }
}

/// The new shares are there; on secp256k1 the signing pair still has to add its OT state.
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

/// Does this party deal a polynomial?
fn deals<C: Group>(known: Option<&Known<C>>, party: Party) -> bool {
    known.is_none_or(|known| known.deals(party))
}

fn random_bytes(rng: &mut (impl RngCore + CryptoRng)) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    bytes
}
