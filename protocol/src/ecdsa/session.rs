//! What one signing is about, and its session id.

use crate::curve::{Group, Secp256k1};
use crate::derive::{DerivationPath, DerivedKey, derive};
use crate::error::{Abort, Result};
use crate::party::Party;
use crate::rng::SessionRng;
use crate::secret::Secret;
use crate::share::KeyShare;
use crate::transcript::{PROTOCOL_REVISION, Tag, hash};
use k256::{ProjectivePoint, Scalar};
use rand_core::{CryptoRng, RngCore};
use std::sync::Arc;

/// What the two parties sign, and where: all of it enters the session id.
#[derive(Debug, Clone)]
pub struct Request {
    /// Handshake hash of the channel between worker and node, 32 bytes.
    pub channel_hash: [u8; 32],
    /// SHA-256 of the signed job's body.
    pub job_digest: [u8; 32],
    /// What is signed.
    pub digest: [u8; 32],
    /// Which child of the key signs.
    pub path: DerivationPath,
}

/// Which item of a batch a signing is: enters its session id, so that no two items of a job have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    index: u16,
    count: u16,
}

impl Item {
    /// Most items of a batch.
    pub const MAX: u16 = 128;

    /// Item `index`, from 0, of `count`.
    ///
    /// # Errors
    /// `InvalidInput` for an item that a batch of 1 to 128 does not have.
    pub fn new(index: u16, count: u16) -> Result<Self> {
        if index < count && count <= Self::MAX {
            Ok(Self { index, count })
        } else {
            Err(Abort::InvalidInput("no such item of a batch"))
        }
    }
}

/// A session both sides agree on: the same on each, or every message is refused harmlessly by its tag.
pub(super) struct Session {
    pub(super) request: Request,
    pub(super) share: Arc<KeyShare>,
    pub(super) derived: DerivedKey,
    /// The derived public key.
    pub(super) key: ProjectivePoint,
    pub(super) sid: [u8; 32],
    /// Index in a batch, 0 outside of one.
    pub(super) item: u16,
}

impl Session {
    pub(super) fn new(
        share: Arc<KeyShare>,
        request: Request,
        item: Option<Item>,
        client: &[u8; 32],
        node1: &[u8; 32],
    ) -> Result<Self> {
        let shamir = share.as_secp256k1()?;
        let (key, derived) = derive(shamir.public_key(), shamir.encoded_key(), &share.chain_code(), &request.path)?;
        let (revision, key_id, epoch) = (PROTOCOL_REVISION.to_be_bytes(), share.key_id(), share.epoch().to_be_bytes());
        let (ot_id, transcript, path) = (share.ot_id(), share.transcript(), request.path.to_bytes());
        let of_batch = item.map(|item| [item.index.to_be_bytes(), item.count.to_be_bytes()]);
        let mut fields: Vec<&[u8]> = vec![
            &revision,
            &request.channel_hash,
            client,
            node1,
            &key_id,
            &epoch,
            &ot_id,
            &transcript,
            &derived.public_key,
            &path,
            &request.digest,
            &request.job_digest,
        ];
        fields.extend(of_batch.iter().flatten().map(<[u8; 2]>::as_slice));
        let tag = if item.is_some() { Tag::SIGN_BATCH_SID } else { Tag::SIGN_SID };
        let sid = hash(tag, &fields);
        Ok(Self { request, share, derived, key, sid, item: item.map_or(0, |item| item.index) })
    }

    /// The tag that message `number` carries: names the session and all messages before this one, so that parties which saw
    /// different ones part here, harmlessly, and not at a check that locks.
    pub(super) fn tag(&self, number: u8, transcript: &[u8; 32]) -> [u8; 16] {
        let digest = hash(Tag::SIGN_TAG, &[&self.sid, &[number], transcript]);
        *digest.first_chunk().unwrap_or(&[0; 16])
    }

    /// The party's additive share of the signing key: λ·x, and δ on top at node 1 only.
    pub(super) fn signing_share(&self, own: Party) -> Result<Secret<Scalar>> {
        let secret = self.share.as_secp256k1()?.secret();
        let weighted = Secret::new(Secp256k1::lagrange(own, peer(own))? * *secret);
        Ok(if own == Party::Node1 { Secret::new(*weighted.expose() + self.derived.tweak) } else { weighted })
    }

    /// The public counterpart of the peer's additive share: computed, never taken from a message.
    pub(super) fn peer_key(&self, own: Party) -> Result<ProjectivePoint> {
        let them = peer(own);
        let share = self.share.as_secp256k1()?.verifying_share(them);
        // λ is 2 for the client and -1 for node 1 (points 1 and 2): no multiplication needed.
        Ok(match them {
            Party::Node1 if self.request.path.steps().is_empty() => -*share,
            Party::Node1 => ProjectivePoint::mul_by_generator(&self.derived.tweak) - share,
            Party::Client | Party::Node2 => share.double(),
        })
    }

    /// The RNG of one step, hedged with the share's secret.
    pub(super) fn rng(&self, rng: &mut (impl RngCore + CryptoRng), transcript: &[u8; 32]) -> Result<SessionRng> {
        let secret = Secp256k1::encode_scalar(self.share.as_secp256k1()?.secret());
        Ok(SessionRng::new(rng, secret.as_slice(), &[&self.sid, transcript]))
    }
}

/// The other signer.
const fn peer(own: Party) -> Party {
    match own {
        Party::Client => Party::Node1,
        Party::Node1 | Party::Node2 => Party::Client,
    }
}

/// The running transcript after one more message.
pub(super) fn extend(transcript: &[u8; 32], message: &[u8]) -> [u8; 32] {
    hash(Tag::SIGN_TRANSCRIPT, &[transcript, message])
}
