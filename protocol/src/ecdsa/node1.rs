//! Node 1's side of a signing.

use super::client::commit;
use super::messages::{M1_LEN, M2, M3_LEN};
use super::session::{Item, Request, Session, extend};
use super::share_of_signature::{Bob, Nonce, multiply, partial};
use super::{message_scalar, r_x, recovery_id};
use crate::curve::{Group, Secp256k1};
use crate::error::{Abort, Result};
use crate::ot::Direction;
use crate::ot::extension::{ExtensionId, SenderRows};
use crate::party::Party;
use crate::rng::SessionRng;
use crate::rvole::Products;
use crate::share::KeyShare;
use k256::{ProjectivePoint, Scalar};
use rand_core::{CryptoRng, RngCore};
use std::sync::Arc;

const fn refuse(check: &'static str) -> Abort {
    Abort::peer(Party::Client, check)
}

/// Node 1, waiting for m2. Lives in memory only and is consumed by m2, whatever m2 says.
pub struct Node1 {
    session: Session,
    transcript: [u8; 32],
    nonce: Nonce,
    salt: [u8; 32],
    bob: Bob,
}

/// Node 1 with all checks of m2 behind it. [`Burn::release`] is the only way to m3, which may leave when the caller has made the burn
/// of the session and the audit entry durable.
#[must_use = "the session is burned by dropping or by releasing it"]
pub struct Burn {
    session: Session,
    transcript: [u8; 32],
    nonce: Nonce,
    salt: [u8; 32],
    bob: Bob,
    rows: SenderRows,
    extension_nonce: [u8; 16],
    peer_psi: Scalar,
    r_x: Scalar,
    d: Products,
    rng: SessionRng,
}

/// After m3: what is left is to verify the signature that the client reports (m4).
pub struct Sent {
    key: ProjectivePoint,
    digest: [u8; 32],
    r: [u8; 32],
}

impl Node1 {
    /// Opens a session on the client's contribution (epoch and ot_id of `open` were compared by the caller, harmlessly);
    /// returns m1 (8,884 bytes).
    ///
    /// # Errors
    /// `InvalidInput` when the share is not node 1's, not of secp256k1, or the path has no child.
    pub fn open(
        share: Arc<KeyShare>,
        request: Request,
        client_contribution: &[u8; 32],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, Vec<u8>)> {
        Self::begin(share, request, None, client_contribution, rng)
    }

    /// The same for an item of a batch: everything but the client's contribution is the item's own.
    ///
    /// # Errors
    /// As [`Node1::open`].
    pub fn open_of_batch(
        share: Arc<KeyShare>,
        request: Request,
        item: Item,
        client_contribution: &[u8; 32],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, Vec<u8>)> {
        Self::begin(share, request, Some(item), client_contribution, rng)
    }

    fn begin(
        share: Arc<KeyShare>,
        request: Request,
        item: Option<Item>,
        client_contribution: &[u8; 32],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<(Self, Vec<u8>)> {
        if share.party() != Party::Node1 {
            return Err(Abort::InvalidInput("not node 1's share"));
        }
        let mut contribution = [0; 32];
        rng.fill_bytes(&mut contribution);
        let session = Session::new(share, request, item, client_contribution, &contribution)?;
        let (sid, ot) = (session.sid, session.share.ot()?);
        let mut rng = session.rng(rng, &sid)?;
        let nonce = Nonce::new(&mut rng);
        let mut salt = [0; 32];
        rng.fill_bytes(&mut salt);

        let mut out = Vec::with_capacity(M1_LEN);
        out.extend_from_slice(&contribution);
        out.extend_from_slice(&session.share.epoch().to_be_bytes());
        out.extend_from_slice(&session.share.ot_id());
        out.extend_from_slice(&session.tag(1, &sid));
        out.extend_from_slice(&commit(&sid, &nonce.encoded, &salt));
        let named = (&sid, Direction::Node1Receives, session.item);
        let bob = Bob::open(ot.receiver(), named, &sid, &mut out, &mut rng);
        let transcript = extend(&sid, &out);
        Ok((Self { session, transcript, nonce, salt, bob }, out))
    }

    /// Does this m2 belong to this session? Checked by the service before it consumes the session, so that bytes which
    /// do not even name it cannot end it.
    #[must_use]
    pub fn owns(&self, m2: &[u8]) -> bool {
        m2.first_chunk::<16>() == Some(&self.session.tag(2, &self.transcript))
    }

    /// Takes m2 (48,915 bytes) and checks all of it in the order of docs/protocol.md, section 5.
    ///
    /// # Errors
    /// Harmless: `m2_shape`, `session`, `nonce_point`. **Lock**: `ot_consistency`, `rvole_mu`. Abort: `gamma_u`, `gamma_v`.
    pub fn advance(self, m2: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<Burn> {
        let Self { session, transcript, nonce, salt, bob } = self;
        let message = M2::parse(m2).ok_or(refuse("m2_shape"))?;
        if message.tag != session.tag(2, &transcript) {
            return Err(refuse("session"));
        }
        let (r_x, _) = r_x(&(nonce.point + message.nonce_point)).ok_or(refuse("nonce_point"))?;
        let extension = &message.extension;
        let id = ExtensionId {
            sid: &session.sid,
            direction: Direction::ClientReceives,
            item: session.item,
            nonce: extension.nonce,
        };
        let rows = extension.check(session.share.ot()?.sender(), &id, &transcript)?;
        let d = bob.receive(
            &session.sid,
            &transcript,
            &message.answer,
            &message.gammas,
            &message.nonce_point,
            &session.peer_key(Party::Node1)?,
        )?;
        let (extension_nonce, peer_psi) = (extension.nonce, message.psi);
        let transcript = extend(&transcript, m2);
        let rng = session.rng(rng, &transcript)?;
        Ok(Burn { session, transcript, nonce, salt, bob, rows, extension_nonce, peer_psi, r_x, d, rng })
    }
}

impl Burn {
    /// The session id, 32 bytes: what is burned.
    #[must_use]
    pub const fn session_id(&self) -> [u8; 32] {
        self.session.sid
    }

    /// Makes m3 (40,243 bytes), node 1's partial signature inside. Nothing of it may leave the process before the burn is durable.
    ///
    /// # Errors
    /// `InvalidInput` for a share that is not of secp256k1 (cannot happen for an opened session).
    pub fn release(self) -> Result<(Vec<u8>, Sent)> {
        let Self { session, transcript, nonce, salt, bob, rows, extension_nonce, peer_psi, r_x, d, mut rng } = self;
        let key = session.signing_share(Party::Node1)?;
        let mut out = Vec::with_capacity(M3_LEN);
        out.extend_from_slice(&session.tag(3, &transcript));
        out.extend_from_slice(&nonce.encoded);
        out.extend_from_slice(&salt);
        let id = ExtensionId {
            sid: &session.sid,
            direction: Direction::ClientReceives,
            item: session.item,
            nonce: extension_nonce,
        };
        let c = multiply(&rows, &id, &nonce, key.expose(), &transcript, &mut out, &mut rng);
        out.extend_from_slice(&bob.psi(&nonce));
        let m = message_scalar(&session.request.digest);
        let mine = partial(nonce, key.expose(), &peer_psi, &c, &d, &m, &r_x);
        out.extend_from_slice(Secp256k1::encode_scalar(&mine.u).as_slice());
        out.extend_from_slice(Secp256k1::encode_scalar(&mine.w).as_slice());
        let r = r_x.to_bytes().into();
        Ok((out, Sent { key: session.key, digest: session.request.digest, r }))
    }
}

impl Sent {
    /// m4: is what the client reports, r ‖ s, this session's signature? It verifies, has low s, and its r is the session's.
    #[must_use]
    pub fn accepts(&self, signature: &[u8; 64]) -> bool {
        signature.starts_with(&self.r) && recovery_id(&self.key, &self.digest, signature).is_ok()
    }
}
