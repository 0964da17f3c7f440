//! EdDSA signing: FROST(Ed25519, SHA-512) of RFC 9591 between the client and node 1, as `frost-ed25519` implements it
//! (docs/protocol.md, section 8).
//!
//! The client's commitments travel first. Node 1 makes its nonces, signs and forgets them within one call. The client
//! checks node 1's signature share before it computes its own, and its nonces end with the value that holds them: signing a
//! second message with them does not compile.
//!
//! ```compile_fail,E0382
//! # use trefoil_protocol::{KeyShare, frost::FrostClient};
//! fn twice(client: FrostClient, share: &KeyShare, commitments: &[u8; 64], z1: &[u8; 32]) {
//!     let _ = client.finish(share, b"one", commitments, z1);
//!     let _ = client.finish(share, b"another", commitments, z1);
//! }
//! ```

use crate::curve::{Ed25519, Group};
use crate::share::KeyShare;
use crate::{Abort, Party, Result};
use ed25519_dalek::{Signature, VerifyingKey};
use frost_core::verify_signature_share;
use frost_ed25519::keys::{KeyPackage, PublicKeyPackage, SigningShare, VerifyingShare};
use frost_ed25519::round1::{self, NonceCommitment, SigningCommitments, SigningNonces};
use frost_ed25519::round2::{self, SignatureShare};
use frost_ed25519::{Identifier, SigningPackage};
use rand_core::{CryptoRng, RngCore};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Bytes of a party's commitments: hiding ‖ binding.
pub const COMMITMENTS_LEN: usize = 64;
/// Bytes of a signature share.
pub const SHARE_LEN: usize = 32;

/// Our own values, handed to the library: what it refuses is our mistake.
fn own<T>(value: core::result::Result<T, frost_ed25519::Error>) -> Result<T> {
    value.map_err(|_| Abort::Bug("frost-ed25519 refused our own value"))
}

fn identifier(party: Party) -> Result<Identifier> {
    own(Identifier::try_from(u16::from(party.point())))
}

/// The signer's secret share in the library's type. [`KeyShare`] has checked its points, and the library's parser would spend two
/// multiplications by the group's order on checking them again; hence its constructors, which it calls internals.
///
/// # Errors
/// `InvalidInput` unless the share is `party`'s and of an ed25519 key.
fn key_package(share: &KeyShare, party: Party) -> Result<KeyPackage> {
    if share.party() != party {
        return Err(Abort::InvalidInput("the share belongs to another party"));
    }
    let shamir = share.as_ed25519()?;
    Ok(KeyPackage::new(
        identifier(party)?,
        SigningShare::new(*shamir.secret()),
        VerifyingShare::new(*shamir.verifying_share(party)),
        frost_ed25519::VerifyingKey::new(*shamir.public_key()),
        2,
    ))
}

/// The key and the signers' verifying shares in the library's type.
fn public_key_package(share: &KeyShare, key: &KeyPackage) -> Result<PublicKeyPackage> {
    let node1 = VerifyingShare::new(*share.as_ed25519()?.verifying_share(Party::Node1));
    let verifying = [(*key.identifier(), *key.verifying_share()), (identifier(Party::Node1)?, node1)];
    Ok(PublicKeyPackage::new(BTreeMap::from(verifying), *key.verifying_key(), Some(2)))
}

fn write_commitments(commitments: &SigningCommitments) -> Result<[u8; COMMITMENTS_LEN]> {
    let bytes = [own(commitments.hiding().serialize())?, own(commitments.binding().serialize())?].concat();
    bytes.try_into().map_err(|_| Abort::Bug("two ed25519 points have 64 bytes"))
}

/// Two points; the library's parser has the rules of ours (canonical, prime-order subgroup, not the identity).
fn read_commitments(bytes: &[u8; COMMITMENTS_LEN], from: Party) -> Result<SigningCommitments> {
    let (hiding, binding) = bytes.split_at(32);
    let read = |point: &[u8]| NonceCommitment::deserialize(point).ok();
    let commitments = read(hiding).zip(read(binding)).map(|(h, b)| SigningCommitments::new(h, b));
    commitments.ok_or(Abort::peer(from, "frost_commitments"))
}

/// Commitments that [`read_commitments`] let pass or that we made: their points are not checked for torsion again.
fn known_commitments(bytes: &[u8; COMMITMENTS_LEN]) -> Result<SigningCommitments> {
    let (hiding, binding) = bytes.split_at(32);
    let read = |point: &[u8]| Ed25519::decode_curve_point(point).map(NonceCommitment::new);
    let commitments = read(hiding).zip(read(binding)).map(|(h, b)| SigningCommitments::new(h, b));
    commitments.ok_or(Abort::Bug("commitments that were read before"))
}

fn package(client: SigningCommitments, node1: SigningCommitments, message: &[u8]) -> Result<SigningPackage> {
    let commitments = [(identifier(Party::Client)?, client), (identifier(Party::Node1)?, node1)];
    Ok(SigningPackage::new(BTreeMap::from(commitments), message))
}

/// Node 1's whole part: commitments 64 and signature share 32. Its nonces live only within this call.
///
/// # Errors
/// `Peer` with `frost_commitments` if the client's are not two canonical points of the prime-order subgroup other than the
/// identity; `InvalidInput` if `share` is not node 1's or of another curve.
pub fn node_sign(
    share: &KeyShare,
    message: &[u8],
    client_commitments: &[u8; COMMITMENTS_LEN],
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<([u8; COMMITMENTS_LEN], [u8; SHARE_LEN])> {
    let key = key_package(share, Party::Node1)?;
    let client = read_commitments(client_commitments, Party::Client)?;
    let (nonces, commitments) = round1::commit(key.signing_share(), rng);
    let z1 = own(round2::sign(&package(client, commitments, message)?, &nonces, &key))?;
    let z1 = z1.serialize().try_into().map_err(|_| Abort::Bug("a signature share has 32 bytes"))?;
    Ok((write_commitments(&commitments)?, z1))
}

/// What node 1 keeps of a session after its signature share left: nothing secret, but enough to know the session's own
/// signature when the client reports it.
pub struct Sent {
    package: SigningPackage,
    client: (Identifier, VerifyingShare),
    key: frost_ed25519::VerifyingKey,
    public_key: [u8; 32],
    z1: [u8; SHARE_LEN],
}

impl Sent {
    /// From exactly what [`node_sign`] took and gave. Points that it would have refused are not refused here: then no signature
    /// is accepted.
    ///
    /// # Errors
    /// As [`node_sign`].
    pub fn new(
        share: &KeyShare,
        message: &[u8],
        client_commitments: &[u8; COMMITMENTS_LEN],
        commitments: &[u8; COMMITMENTS_LEN],
        z1: [u8; SHARE_LEN],
    ) -> Result<Self> {
        let shamir = share.as_ed25519()?;
        Ok(Self {
            package: package(known_commitments(client_commitments)?, known_commitments(commitments)?, message)?,
            client: (identifier(Party::Client)?, VerifyingShare::new(*shamir.verifying_share(Party::Client))),
            key: frost_ed25519::VerifyingKey::new(*shamir.public_key()),
            public_key: Ed25519::encode_point(shamir.public_key()),
            z1,
        })
    }

    /// Was this signature made in this session, with the client's share? `z - z1` must be the client's signature share for
    /// the session's commitments: an earlier signature of the same message, which anybody may have, proves nothing.
    #[must_use]
    pub fn accepts(&self, signature: &[u8; 64]) -> bool {
        let (_, z) = signature.split_at(32);
        let z2 = Ed25519::decode_scalar(z).zip(Ed25519::decode_scalar(&self.z1)).map(|(z, z1)| z - z1);
        let z2 = z2.and_then(|z2| SignatureShare::deserialize(Ed25519::encode_scalar(&z2).as_ref()).ok());
        let (client, verifying) = &self.client;
        z2.is_some_and(|z2| verify_signature_share(*client, verifying, &z2, &self.package, &self.key).is_ok())
            && verify(&self.public_key, self.package.message(), signature).is_ok()
    }
}

/// The client between its commitments and its signature. Consumed by [`FrostClient::finish`], success or not.
pub struct FrostClient {
    nonces: SigningNonces,
}

impl FrostClient {
    /// Makes the nonces; returns their commitments, 64 bytes. The client's share is still locked at this time (node 1's OPRF
    /// evaluation comes with its signature share), so it cannot hedge the nonces as in RFC 9591, section 4.1: pass a
    /// `SessionRng` hedged with the password and the job digest. A random scalar stands in the share's place.
    ///
    /// # Errors
    /// Only `Bug`.
    pub fn start(rng: &mut (impl RngCore + CryptoRng)) -> Result<(Self, [u8; COMMITMENTS_LEN])> {
        let hedge = Zeroizing::new(Ed25519::random_scalar(rng));
        let hedge = own(SigningShare::deserialize(Ed25519::encode_scalar(&hedge).as_ref()))?;
        let (nonces, commitments) = round1::commit(&hedge, rng);
        Ok((Self { nonces }, write_commitments(&commitments)?))
    }

    /// Checks node 1's signature share, computes ours, aggregates, and verifies the signature under the public key: 64
    /// bytes of RFC 8032.
    ///
    /// # Errors
    /// `Peer` (node 1) with `frost_commitments`, `frost_share`; `InvalidInput` if `share` is not the client's or of another
    /// curve.
    pub fn finish(
        self,
        share: &KeyShare,
        message: &[u8],
        node1_commitments: &[u8; COMMITMENTS_LEN],
        z1: &[u8; SHARE_LEN],
    ) -> Result<[u8; 64]> {
        const REFUSED: Abort = Abort::peer(Party::Node1, "frost_share");
        let key = key_package(share, Party::Client)?;
        let public = public_key_package(share, &key)?;
        let public_key = Ed25519::encode_point(share.as_ed25519()?.public_key());
        let (client, node1) = (*key.identifier(), identifier(Party::Node1)?);
        let theirs = read_commitments(node1_commitments, Party::Node1)?;
        let package = package(*self.nonces.commitments(), theirs, message)?;
        let z1 = SignatureShare::deserialize(z1).map_err(|_| REFUSED)?;
        let verifying = public.verifying_shares().get(&node1).ok_or(Abort::Bug("no verifying share of node 1"))?;
        verify_signature_share(node1, verifying, &z1, &package, public.verifying_key()).map_err(|_| REFUSED)?;

        // Only now: a share of ours for commitments that node 1 cannot answer for would be one it did not earn.
        let z2 = own(round2::sign(&package, &self.nonces, &key))?;
        let signature = own(frost_ed25519::aggregate(&package, &BTreeMap::from([(client, z2), (node1, z1)]), &public))?;
        let bytes = own(signature.serialize())?.try_into().map_err(|_| Abort::Bug("a signature has 64 bytes"))?;
        verify(&public_key, message, &bytes).map_err(|_| Abort::Bug("the aggregated signature does not verify"))?;
        Ok(bytes)
    }
}

/// Verifies a signature of RFC 8032 strictly: canonical `s`, no key or `R` of small order, no cofactor.
///
/// # Errors
/// `InvalidInput` when any of it does not hold.
pub fn verify(public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Result<()> {
    let key = VerifyingKey::from_bytes(public_key).map_err(|_| Abort::InvalidInput("not an ed25519 public key"))?;
    let signature = Signature::from_bytes(signature);
    key.verify_strict(message, &signature).map_err(|_| Abort::InvalidInput("the signature does not verify"))
}
