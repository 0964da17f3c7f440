//! The client's side of a signing.

use super::messages::{M1, M2_LEN, M3};
use super::session::{Item, Request, Session, extend};
use super::share_of_signature::{Bob, Nonce, multiply, partial};
use super::{Signature, message_scalar, r_x};
use crate::curve::{Group, Secp256k1};
use crate::error::{Abort, Result};
use crate::ot::Direction;
use crate::ot::extension::ExtensionId;
use crate::party::Party;
use crate::rvole::Products;
use crate::secret::Secret;
use crate::share::KeyShare;
use crate::transcript::{Tag, hash};
use k256::Scalar;
use k256::elliptic_curve::scalar::IsHigh;
use rand_core::{CryptoRng, RngCore};
use std::sync::Arc;
use subtle::ConstantTimeEq;

const fn refuse(check: &'static str) -> Abort {
    Abort::peer(Party::Node1, check)
}

/// The client, waiting for m1.
pub struct Client {
    share: Arc<KeyShare>,
    request: Request,
    item: Option<Item>,
    contribution: [u8; 32],
}

/// The client, waiting for m3.
pub struct Round2 {
    session: Session,
    transcript: [u8; 32],
    commitment: [u8; 32],
    nonce: Nonce,
    key: Secret<Scalar>,
    c: Products,
    bob: Bob,
}

impl Client {
    /// Goes on with the session that was opened with this contribution (32 random bytes), now that the share is open: its
    /// password's OPRF evaluation comes with m1. Key id, epoch and ot_id of the share travelled in `open`.
    ///
    /// # Errors
    /// `InvalidInput` when the share is not the client's, or not of secp256k1.
    pub fn new(share: Arc<KeyShare>, request: Request, contribution: [u8; 32]) -> Result<Self> {
        share.ot()?;
        if share.party() != Party::Client {
            return Err(Abort::InvalidInput("not the client's share"));
        }
        Ok(Self { share, request, item: None, contribution })
    }

    /// The same for an item of a batch. The batch has one contribution; node 1's is the item's own.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn of_batch(share: Arc<KeyShare>, request: Request, item: Item, contribution: [u8; 32]) -> Result<Self> {
        Ok(Self { item: Some(item), ..Self::new(share, request, contribution)? })
    }

    /// The same for a client whose share is open from the start; draws the contribution, which travels in `open`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn open(
        share: Arc<KeyShare>,
        request: Request,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, [u8; 32])> {
        let mut contribution = [0; 32];
        rng.fill_bytes(&mut contribution);
        Ok((Self::new(share, request, contribution)?, contribution))
    }

    /// Takes m1 (8,884 bytes), returns m2 (48,915 bytes).
    ///
    /// # Errors
    /// Harmless: `m1_shape`, `epoch`, `ot_id`, `session`. **Lock**: `ot_consistency`.
    pub fn advance(self, m1: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<(Round2, Vec<u8>)> {
        let message = M1::parse(m1).ok_or(refuse("m1_shape"))?;
        if message.epoch != self.share.epoch() {
            return Err(refuse("epoch"));
        }
        if message.ot_id != self.share.ot_id() {
            return Err(refuse("ot_id"));
        }
        let session = Session::new(self.share, self.request, self.item, &self.contribution, &message.contribution)?;
        if message.tag != session.tag(1, &session.sid) {
            return Err(refuse("session"));
        }
        let (sid, ot) = (session.sid, session.share.ot()?);
        let extension = &message.extension;
        let id =
            ExtensionId { sid: &sid, direction: Direction::Node1Receives, item: session.item, nonce: extension.nonce };
        let rows = extension.check(ot.sender(), &id, &sid)?;

        let transcript = extend(&sid, m1);
        let mut rng = session.rng(rng, &transcript)?;
        let nonce = Nonce::new(&mut rng);
        let key = session.signing_share(Party::Client)?;
        let mut out = Vec::with_capacity(M2_LEN);
        out.extend_from_slice(&session.tag(2, &transcript));
        out.extend_from_slice(&nonce.encoded);
        let named = (&sid, Direction::ClientReceives, session.item);
        let bob = Bob::open(ot.receiver(), named, &transcript, &mut out, &mut rng);
        let c = multiply(&rows, &id, &nonce, key.expose(), &transcript, &mut out, &mut rng);
        out.extend_from_slice(&bob.psi(&nonce));
        let transcript = extend(&transcript, &out);
        Ok((Round2 { session, transcript, commitment: message.commitment, nonce, key, c, bob }, out))
    }
}

impl Round2 {
    /// The key that signs, derived from the share's: 33 bytes SEC1 compressed.
    #[must_use]
    pub const fn public_key(&self) -> [u8; 33] {
        self.session.derived.public_key
    }

    /// Takes m3 (40,243 bytes), checks all of it, and releases the signature only if it verifies.
    ///
    /// # Errors
    /// Harmless: `m3_shape`, `session`. Abort: `commitment`, `nonce_point`, `gamma_u`, `gamma_v`, `zero_nonce`,
    /// `signature`. **Lock**: `rvole_mu`.
    pub fn finish(self, m3: &[u8]) -> Result<Signature> {
        let Self { session, transcript, commitment, nonce, key, c, bob } = self;
        let message = M3::parse(m3).ok_or(refuse("m3_shape"))?;
        if message.tag != session.tag(3, &transcript) {
            return Err(refuse("session"));
        }
        let opening = commit(&session.sid, &Secp256k1::encode_point(&message.nonce_point), &message.salt);
        if !bool::from(opening.ct_eq(&commitment)) {
            return Err(refuse("commitment"));
        }
        let (r, recovery) = r_x(&(nonce.point + message.nonce_point)).ok_or(refuse("nonce_point"))?;
        let d = bob.receive(
            &session.sid,
            &transcript,
            &message.answer,
            &message.gammas,
            &message.nonce_point,
            &session.peer_key(Party::Client)?,
        )?;
        let m = message_scalar(&session.request.digest);
        let mine = partial(nonce, key.expose(), &message.psi, &c, &d, &m, &r);
        let denominator: Option<Scalar> = (mine.u + message.u).invert().into();
        let s = (mine.w + message.w) * denominator.ok_or(refuse("zero_nonce"))?;
        let signature = normalise(&r, s, recovery);
        match signature.verify_under(&session.key, &session.request.digest) {
            Ok(()) => Ok(signature),
            Err(_) => Err(refuse("signature")),
        }
    }
}

/// Node 1's commitment to its nonce point.
pub(super) fn commit(sid: &[u8; 32], point: &[u8; 33], salt: &[u8; 32]) -> [u8; 32] {
    hash(Tag::SIGN_COMMITMENT, &[sid, b"node1", point, salt])
}

/// Low s: of s and -s the smaller; with it the parity of R's y flips.
fn normalise(r: &Scalar, s: Scalar, recovery: u8) -> Signature {
    let high: bool = s.is_high().into();
    let (s, recovery_id) = if high { (-s, recovery ^ 1) } else { (s, recovery) };
    let mut bytes = [0; 64];
    let (left, right) = bytes.split_at_mut(32);
    left.copy_from_slice(Secp256k1::encode_scalar(r).as_slice());
    right.copy_from_slice(Secp256k1::encode_scalar(&s).as_slice());
    Signature { bytes, recovery_id }
}
