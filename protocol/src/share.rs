//! One party's share of a key, and its stored form.
//!
//! Version 1, integers big-endian: version 1 ‖ curve 1 ‖ party 1 ‖ key id 16 ‖ epoch 4 ‖ transcript 32 ‖ chain code 32 ‖
//! secret share 32 ‖ verifying shares of client, node 1, node 2 (33 or 32 each) ‖ public key (33 or 32), and for secp256k1
//! at the client and node 1: OT state 6,192.

use crate::codec::Reader;
use crate::curve::{Ed25519, Group, SCALAR_LEN, Secp256k1};
use crate::ot::OtState;
use crate::reshare::Source;
use crate::{Abort, CurveId, Party, Result, Secret};
use core::fmt;
use zeroize::Zeroizing;

/// The stored form's version.
const VERSION: u8 = 1;
/// Bytes before the secret share.
const HEADER_LEN: usize = 1 + 1 + 1 + 16 + 4 + 32 + 32;

const MALFORMED: Abort = Abort::InvalidInput("not a stored key share");
const INCONSISTENT: Abort = Abort::InvalidInput("the stored key share contradicts itself");

/// What names a key and one generation of its shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyIdentity {
    /// The key's id.
    pub key_id: [u8; 16],
    /// Counts recoveries and refreshes of the shares, from 0.
    pub epoch: u32,
    /// The transcript hash `E` of the run that made the share.
    pub transcript: [u8; 32],
    /// BIP-32 chain code.
    pub chain_code: [u8; 32],
}

/// Are these the values at 1, 2 and 3 of a line that has `public` at 0?
pub(crate) fn on_a_line<C: Group>(&[first, second, third]: &[C::Point; 3], public: &C::Point) -> bool {
    let slope = second - first;
    third - second == slope && first - slope == *public
}

/// A party's point on the sharing line, with everyone's public counterpart. On construction: `secret·G` is the party's
/// verifying share, and the verifying shares lie on one line through the public key.
pub(crate) struct Shamir<C: Group> {
    secret: Secret<C::Scalar>,
    verifying: [C::Point; 3],
    public: C::Point,
    encoded: C::PointBytes,
}

impl<C: Group> Shamir<C> {
    /// `None` if the values contradict each other.
    pub(crate) fn new(
        party: Party,
        secret: Secret<C::Scalar>,
        verifying: [C::Point; 3],
        public: C::Point,
    ) -> Option<Self> {
        let on_a_line = on_a_line::<C>(&verifying, &public);
        let shamir = Self { secret, verifying, public, encoded: C::encode_point(&public) };
        let own = C::mul_generator(shamir.secret()) == *shamir.verifying_share(party);
        (on_a_line && own).then_some(shamir)
    }

    /// The secret share `x`.
    pub(crate) fn secret(&self) -> &C::Scalar {
        self.secret.expose()
    }

    /// The party's `x·G`.
    pub(crate) const fn verifying_share(&self, party: Party) -> &C::Point {
        let [client, node1, node2] = &self.verifying;
        match party {
            Party::Client => client,
            Party::Node1 => node1,
            Party::Node2 => node2,
        }
    }

    /// The key itself.
    pub(crate) const fn public_key(&self) -> &C::Point {
        &self.public
    }

    /// The key itself, encoded.
    pub(crate) const fn encoded_key(&self) -> &C::PointBytes {
        &self.encoded
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(C::encode_scalar(self.secret()).as_ref());
        for point in self.verifying.iter().chain([&self.public]) {
            out.extend_from_slice(C::encode_point(point).as_ref());
        }
    }

    /// Only one point is asked whether it is of the prime-order subgroup, a neighbour of the party's own, because the question costs
    /// a multiplication on ed25519. That the others are follows from what [`Shamir::new`] checks: the own one is `secret·G`, and
    /// from two neighbours on the line the rest come by addition. What is of the subgroup was encoded canonically.
    fn read(party: Party, reader: &mut Reader<'_>) -> Result<Self> {
        let neighbour = match party {
            Party::Client | Party::Node2 => Party::Node1,
            Party::Node1 => Party::Client,
        };
        let mut parse = || {
            let secret = Secret::new(C::decode_scalar(reader.bytes(SCALAR_LEN)?)?);
            let mut point = |of: Option<Party>| {
                let bytes = reader.bytes(C::POINT_LEN)?;
                if of == Some(neighbour) { C::decode_point(bytes) } else { C::decode_curve_point(bytes) }
            };
            let verifying = [point(Some(Party::Client))?, point(Some(Party::Node1))?, point(Some(Party::Node2))?];
            Some((secret, verifying, point(None)?))
        };
        let (secret, verifying, public) = parse().ok_or(MALFORMED)?;
        Self::new(party, secret, verifying, public).ok_or(INCONSISTENT)
    }
}

enum Material {
    Secp256k1(Shamir<Secp256k1>, Option<OtState>),
    Ed25519(Shamir<Ed25519>),
}

/// One party's share of a key. Erased when dropped; neither `Clone` nor printable.
pub struct KeyShare {
    party: Party,
    identity: KeyIdentity,
    material: Material,
}

/// Does this party of this curve's keys keep OT state? (The pair that signs with ECDSA does.)
#[must_use]
pub const fn keeps_ot(curve: CurveId, party: Party) -> bool {
    matches!((curve, party), (CurveId::Secp256k1, Party::Client | Party::Node1))
}

/// Bytes of a stored share.
const fn stored_len(curve: CurveId, party: Party) -> usize {
    let ot = if keeps_ot(curve, party) { OtState::LEN } else { 0 };
    HEADER_LEN + SCALAR_LEN + 4 * curve.public_key_len() + ot
}

impl KeyShare {
    /// A secp256k1 share.
    ///
    /// # Errors
    /// `InvalidInput` unless `ot` is present for exactly the client and node 1.
    pub(crate) fn secp256k1(
        party: Party,
        identity: KeyIdentity,
        shamir: Shamir<Secp256k1>,
        ot: Option<OtState>,
    ) -> Result<Self> {
        if ot.is_some() != keeps_ot(CurveId::Secp256k1, party) {
            return Err(Abort::InvalidInput("client and node 1, and only they, keep OT state"));
        }
        Ok(Self { party, identity, material: Material::Secp256k1(shamir, ot) })
    }

    /// An ed25519 share.
    pub(crate) const fn ed25519(party: Party, identity: KeyIdentity, shamir: Shamir<Ed25519>) -> Self {
        Self { party, identity, material: Material::Ed25519(shamir) }
    }

    /// The key's curve.
    #[must_use]
    pub const fn curve(&self) -> CurveId {
        match self.material {
            Material::Secp256k1(..) => CurveId::Secp256k1,
            Material::Ed25519(_) => CurveId::Ed25519,
        }
    }

    /// Whose share this is.
    #[must_use]
    pub const fn party(&self) -> Party {
        self.party
    }

    /// The key's id.
    #[must_use]
    pub const fn key_id(&self) -> [u8; 16] {
        self.identity.key_id
    }

    /// How often the key's shares were replaced.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.identity.epoch
    }

    /// The transcript hash of the run that made this share: a key generation, recovery or refresh.
    #[must_use]
    pub const fn transcript(&self) -> [u8; 32] {
        self.identity.transcript
    }

    /// The BIP-32 chain code, generated jointly.
    #[must_use]
    pub const fn chain_code(&self) -> [u8; 32] {
        self.identity.chain_code
    }

    /// The public key: 33 bytes SEC1 compressed, or 32 bytes RFC 8032.
    #[must_use]
    pub fn public_key(&self) -> Vec<u8> {
        match &self.material {
            Material::Secp256k1(shamir, _) => shamir.encoded_key().to_vec(),
            Material::Ed25519(shamir) => shamir.encoded_key().to_vec(),
        }
    }

    /// The party's share times `G`, encoded like the public key.
    #[must_use]
    pub fn verifying_share(&self, party: Party) -> Vec<u8> {
        match &self.material {
            Material::Secp256k1(shamir, _) => Secp256k1::encode_point(shamir.verifying_share(party)).to_vec(),
            Material::Ed25519(shamir) => Ed25519::encode_point(shamir.verifying_share(party)).to_vec(),
        }
    }

    /// The public side of the share: the same at all parties. It is what a recovery or refresh starts from.
    #[must_use]
    pub fn source(&self) -> Source {
        let KeyIdentity { key_id, epoch, transcript, chain_code } = self.identity;
        let verifying_shares = Party::ALL.map(|party| self.verifying_share(party));
        Source {
            curve: self.curve(),
            key_id,
            epoch,
            transcript,
            chain_code,
            public_key: self.public_key(),
            verifying_shares,
        }
    }

    /// The secret share, 32 bytes.
    pub(crate) fn secret_bytes(&self) -> Zeroizing<[u8; SCALAR_LEN]> {
        match &self.material {
            Material::Secp256k1(shamir, _) => Secp256k1::encode_scalar(shamir.secret()),
            Material::Ed25519(shamir) => Ed25519::encode_scalar(shamir.secret()),
        }
    }

    /// The name of the OT state, zero where there is none.
    #[must_use]
    pub fn ot_id(&self) -> [u8; 32] {
        match &self.material {
            Material::Secp256k1(_, Some(ot)) => ot.id(),
            Material::Secp256k1(_, None) | Material::Ed25519(_) => [0; 32],
        }
    }

    /// For ECDSA signing.
    ///
    /// # Errors
    /// `InvalidInput` for a share of another curve.
    pub(crate) const fn as_secp256k1(&self) -> Result<&Shamir<Secp256k1>> {
        match &self.material {
            Material::Secp256k1(shamir, _) => Ok(shamir),
            Material::Ed25519(_) => Err(Abort::InvalidInput("not a secp256k1 share")),
        }
    }

    /// For ECDSA signing: the OT state of the client or node 1.
    ///
    /// # Errors
    /// `InvalidInput` for a share that has none.
    pub(crate) fn ot(&self) -> Result<&OtState> {
        match &self.material {
            Material::Secp256k1(_, Some(ot)) => Ok(ot),
            Material::Secp256k1(_, None) | Material::Ed25519(_) => {
                Err(Abort::InvalidInput("the share has no OT state"))
            }
        }
    }

    /// For FROST.
    ///
    /// # Errors
    /// `InvalidInput` for a share of another curve.
    pub(crate) const fn as_ed25519(&self) -> Result<&Shamir<Ed25519>> {
        match &self.material {
            Material::Ed25519(shamir) => Ok(shamir),
            Material::Secp256k1(..) => Err(Abort::InvalidInput("not an ed25519 share")),
        }
    }

    /// The stored form: 247 bytes for ed25519, 251 for secp256k1, and 6,443 for secp256k1 with OT state.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // Reserved at once: a vector that grows leaves copies of the secret behind.
        let mut out = Zeroizing::new(Vec::with_capacity(stored_len(self.curve(), self.party)));
        out.extend_from_slice(&[VERSION, self.curve() as u8, self.party as u8]);
        out.extend_from_slice(&self.identity.key_id);
        out.extend_from_slice(&self.identity.epoch.to_be_bytes());
        out.extend_from_slice(&self.identity.transcript);
        out.extend_from_slice(&self.identity.chain_code);
        match &self.material {
            Material::Secp256k1(shamir, ot) => {
                shamir.write(&mut out);
                if let Some(ot) = ot {
                    out.extend_from_slice(&ot.to_bytes());
                }
            }
            Material::Ed25519(shamir) => shamir.write(&mut out),
        }
        out
    }

    /// The stored form with the OT state left out: what a locked key keeps for its recovery. Read again, it has no OT state, so
    /// nothing can sign with it.
    #[must_use]
    pub fn to_bytes_without_ot(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = self.to_bytes();
        if keeps_ot(self.curve(), self.party) {
            let length = bytes.len() - OtState::LEN;
            bytes.truncate(length);
        }
        bytes
    }

    /// Reads the stored form and checks it again: exact length, canonical encodings, the secret share fits the party's
    /// verifying share, and the verifying shares fit the public key. Reads a share whose OT state was left out, too.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let [version, curve, party, ..] = bytes else { return Err(MALFORMED) };
        if *version != VERSION {
            return Err(Abort::InvalidInput("unknown version of a stored key share"));
        }
        let curve = CurveId::from_byte(*curve).ok_or(MALFORMED)?;
        let party = Party::from_point(*party).ok_or(MALFORMED)?;
        let without_ot = keeps_ot(curve, party) && bytes.len() == stored_len(curve, party) - OtState::LEN;
        let expected = if without_ot { bytes.len() } else { stored_len(curve, party) };
        let mut reader = Reader::new(bytes, expected).ok_or(MALFORMED)?;
        let mut parse = || {
            reader.bytes(3)?;
            Some(KeyIdentity {
                key_id: reader.array()?,
                epoch: u32::from_be_bytes(reader.array()?),
                transcript: reader.array()?,
                chain_code: reader.array()?,
            })
        };
        let identity = parse().ok_or(MALFORMED)?;
        match curve {
            CurveId::Secp256k1 => {
                let shamir = Shamir::read(party, &mut reader)?;
                let ot = match keeps_ot(curve, party) && !without_ot {
                    true => Some(OtState::from_bytes(reader.bytes(OtState::LEN).ok_or(MALFORMED)?)?),
                    false => None,
                };
                Ok(Self { party, identity, material: Material::Secp256k1(shamir, ot) })
            }
            CurveId::Ed25519 => Ok(Self::ed25519(party, identity, Shamir::read(party, &mut reader)?)),
        }
    }
}

impl fmt::Debug for KeyShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyShare")
            .field("curve", &self.curve())
            .field("party", &self.party)
            .field("epoch", &self.identity.epoch)
            .finish_non_exhaustive()
    }
}
