//! Recovery and refresh: what is known of a key before its shares are dealt anew (docs/protocol.md, section 7). The rounds are
//! those of [`crate::dkg`].
//!
//! New shares lie on another line through the same secret. In a recovery the nodes deal `λ·x` each, in a refresh all three
//! deal zero and add the result to the share that they have. What a dealer has to deal is known to everybody beforehand:
//! `w·X` with its verifying share `X` and `w = λ` or 0, computed by the receivers and never taken from a message.

use crate::curve::Group;
use crate::dkg::Setup;
use crate::share::on_a_line;
use crate::transcript::{PROTOCOL_REVISION, Tag, hash};
use crate::{Abort, CurveId, KeyShare, Party, Result, Secret};

/// The public side of the shares that are replaced. A client that has lost its share learns it from both nodes, which must
/// agree: all of it is in the session id, so that any difference ends the attempt, harmlessly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The key's curve.
    pub curve: CurveId,
    /// The key's id before.
    pub key_id: [u8; 16],
    /// The old shares' epoch.
    pub epoch: u32,
    /// The transcript hash of the run that made the old shares, 32 bytes.
    pub transcript: [u8; 32],
    /// BIP-32 chain code, 32 bytes; it stays.
    pub chain_code: [u8; 32],
    /// The public key, 33 (secp256k1) or 32 (ed25519) bytes; it stays.
    pub public_key: Vec<u8>,
    /// The old verifying shares of client, node 1 and node 2, encoded like the public key.
    pub verifying_shares: [Vec<u8>; 3],
}

/// What one party brings to a recovery or a refresh.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// Recovery, at a node: its share, with or without OT state.
    RecoverFrom(&'a KeyShare),
    /// Recovery, at the client, which has no share and deals nothing.
    RecoverTo(&'a Source),
    /// Refresh, at any party: its share, with or without OT state.
    Refresh(&'a KeyShare),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Recover,
    Refresh,
}

/// What a party knows before it deals; checked.
pub(crate) struct Known<C: Group> {
    kind: Kind,
    source: Source,
    verifying: [C::Point; 3],
    public: C::Point,
    /// Our old share. None for the client in a recovery.
    secret: Option<Secret<C::Scalar>>,
}

const CONTRADICTION: Abort = Abort::InvalidInput("what is known of the key contradicts itself");

impl<C: Group> Known<C> {
    /// # Errors
    /// `InvalidInput` if the origin is not this party's, not of this curve, not what `setup` follows on, or contradicts itself.
    pub(crate) fn new(setup: &Setup, origin: Origin<'_>) -> Result<Self> {
        let (kind, share, source) = match origin {
            Origin::RecoverFrom(share) => (Kind::Recover, Some(share), share.source()),
            Origin::RecoverTo(source) => (Kind::Recover, None, source.clone()),
            Origin::Refresh(share) => (Kind::Refresh, Some(share), share.source()),
        };
        let party = share.map_or(Party::Client, KeyShare::party);
        let lost = kind == Kind::Recover && party == Party::Client;
        if party != setup.party || lost != share.is_none() {
            return Err(Abort::InvalidInput("the old share is not the one that this party brings"));
        }
        if source.curve != C::CURVE {
            return Err(Abort::InvalidInput("the old share is of another curve"));
        }
        if source.epoch.checked_add(1) != Some(setup.epoch) {
            return Err(Abort::InvalidInput("the new epoch must be the one after the old"));
        }
        if (source.key_id == setup.key_id) != (kind == Kind::Refresh) {
            return Err(Abort::InvalidInput("a refresh keeps the key id, a recovery gives another"));
        }
        let [client, node1, node2] = source.verifying_shares.each_ref().map(|bytes| C::decode_point(bytes));
        let parse = || Some(([client?, node1?, node2?], C::decode_point(&source.public_key)?));
        let (verifying, public) = parse().ok_or(CONTRADICTION)?;
        let secret = match share {
            Some(share) => Some(Secret::new(C::decode_scalar(share.secret_bytes().as_ref()).ok_or(CONTRADICTION)?)),
            None => None,
        };
        let known = Self { kind, source, verifying, public, secret };
        // The nodes' weighted shares must sum to the key; and the lost one must have been on their line.
        on_a_line::<C>(&known.verifying, &known.public).then_some(known).ok_or(CONTRADICTION)
    }

    /// Does this party deal? In a recovery the client only receives.
    pub(crate) fn deals(&self, party: Party) -> bool {
        self.kind == Kind::Refresh || party != Party::Client
    }

    /// The share of the old secret that a dealer deals, as a multiple of its old share: λ in a recovery, nothing in a refresh.
    fn weight(&self, dealer: Party) -> Result<C::Scalar> {
        match (self.kind, dealer) {
            (Kind::Recover, Party::Node1) => C::lagrange(dealer, Party::Node2),
            (Kind::Recover, Party::Node2) => C::lagrange(dealer, Party::Node1),
            (Kind::Recover, Party::Client) | (Kind::Refresh, _) => Ok(C::Scalar::from(0)),
        }
    }

    /// `A_0` of a dealer: `w·X`.
    pub(crate) fn constant(&self, dealer: Party) -> Result<C::Point> {
        let [client, node1, node2] = self.verifying;
        let share = match dealer {
            Party::Client => client,
            Party::Node1 => node1,
            Party::Node2 => node2,
        };
        Ok(share * self.weight(dealer)?)
    }

    /// Our own `a_0 = w·x`.
    pub(crate) fn own_constant(&self, own: Party) -> Result<Secret<C::Scalar>> {
        let weight = self.weight(own)?;
        Ok(Secret::new(self.secret.as_ref().map_or(C::Scalar::from(0), |secret| weight * *secret.expose())))
    }

    /// What our new share is added to: our old one in a refresh.
    pub(crate) fn kept_share(&self) -> Option<&Secret<C::Scalar>> {
        self.secret.as_ref().filter(|_| self.kind == Kind::Refresh)
    }

    /// The new verifying shares and the key, from the sums of what was dealt at the parties' points and at zero.
    ///
    /// # Errors
    /// `Bug` if the key came out as another.
    pub(crate) fn renew(&self, dealt: [C::Point; 3], at_zero: C::Point) -> Result<([C::Point; 3], C::Point)> {
        let ([a, b, c], [x, y, z]) = (self.verifying, dealt);
        let (verifying, public) = match self.kind {
            Kind::Recover => (dealt, at_zero),
            Kind::Refresh => ([a + x, b + y, c + z], self.public + at_zero),
        };
        if public == self.public { Ok((verifying, public)) } else { Err(Abort::Bug("the dealt shares change the key")) }
    }

    /// The chain code, which stays.
    pub(crate) const fn chain_code(&self) -> [u8; 32] {
        self.source.chain_code
    }

    /// The session id.
    pub(crate) fn sid(&self, setup: &Setup, [n1, n2, n3]: &[[u8; 32]; 3]) -> [u8; 32] {
        let kind: &[u8] = match self.kind {
            Kind::Recover => b"recover",
            Kind::Refresh => b"refresh",
        };
        let Source { curve, key_id, epoch, transcript, chain_code, public_key, verifying_shares } = &self.source;
        let [client, node1, node2] = verifying_shares;
        let (revision, epoch, next) = (PROTOCOL_REVISION.to_be_bytes(), epoch.to_be_bytes(), setup.epoch.to_be_bytes());
        let curve = curve.name().as_bytes();
        #[rustfmt::skip]
        let fields: [&[u8]; 17] = [
            &revision, kind, curve,
            key_id, &epoch, transcript, chain_code, public_key, client, node1, node2,
            &setup.key_id, &next, &setup.job_digest, n1, n2, n3,
        ];
        hash(Tag::RESHARE_SID, &fields)
    }
}
