//! EdDSA signing: FROST(Ed25519, SHA-512) of RFC 9591 between the client and node 1 (docs/protocol.md, section 8).
//!
//! The hash functions are those of `frost-ed25519`. The group's arithmetic is here and not the library's, which computes R anew in
//! each of its steps and multiplies the generator without a table; a test holds each value against the library's.
//!
//! The client's commitments travel first. Node 1 makes its nonces, signs and forgets them within one call. The client's
//! nonces end with the value that holds them: signing a second message with them does not compile.
//!
//! ```compile_fail,E0382
//! # use trefoil_protocol::{KeyShare, frost::FrostClient};
//! fn twice(client: FrostClient, share: &KeyShare, commitments: &[u8; 64], z1: &[u8; 32]) {
//!     let _ = client.finish(share, b"one", commitments, z1);
//!     let _ = client.finish(share, b"another", commitments, z1);
//! }
//! ```

use crate::curve::{Ed25519, Group};
use crate::share::{KeyShare, Shamir};
use crate::{Abort, Party, Result, Secret};
use curve25519_dalek::traits::VartimeMultiscalarMul;
use curve25519_dalek::{EdwardsPoint, Scalar};
use ed25519_dalek::{Signature, VerifyingKey};
use frost_ed25519::{Ciphersuite, Ed25519Sha512};
use rand_core::{CryptoRng, RngCore};
use zeroize::Zeroizing;

/// Bytes of a party's commitments: hiding ‖ binding.
pub const COMMITMENTS_LEN: usize = 64;
/// Bytes of a signature share.
pub const SHARE_LEN: usize = 32;

/// The other signer.
const fn peer(own: Party) -> Party {
    match own {
        Party::Client => Party::Node1,
        Party::Node1 | Party::Node2 => Party::Client,
    }
}

/// The key and the party's share of it.
///
/// # Errors
/// `InvalidInput` unless the share is `party`'s and of an ed25519 key.
fn share_of(share: &KeyShare, party: Party) -> Result<&Shamir<Ed25519>> {
    if share.party() != party {
        return Err(Abort::InvalidInput("the share belongs to another party"));
    }
    share.as_ed25519()
}

/// A signer's commitments, as they travel and as points.
struct Commitments {
    bytes: [u8; COMMITMENTS_LEN],
    hiding: EdwardsPoint,
    binding: EdwardsPoint,
}

impl Commitments {
    fn read(bytes: &[u8; COMMITMENTS_LEN], decode: impl Fn(&[u8]) -> Option<EdwardsPoint>) -> Option<Self> {
        let (hiding, binding) = bytes.split_at(32);
        Some(Self { bytes: *bytes, hiding: decode(hiding)?, binding: decode(binding)? })
    }
}

/// A point of node 1's, as the client reads it: canonical and not of small order. Whether it is of the prime-order subgroup, the
/// signature's equation tells (docs/protocol.md, section 8).
fn decode_commitment(bytes: &[u8]) -> Option<EdwardsPoint> {
    Ed25519::decode_curve_point(bytes).filter(|point| !point.is_small_order() && Ed25519::encode_point(point) == *bytes)
}

/// One signature's nonces: consumed by the share that they are for.
struct Nonces {
    hiding: Secret<Scalar>,
    binding: Secret<Scalar>,
    commitments: Commitments,
}

impl Nonces {
    /// `nonce_generate` of RFC 9591, section 4.1, twice, and the commitments.
    fn new(secret: &Scalar, rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut nonce = || {
            let mut input = Zeroizing::new([0; 64]);
            let (random, encoded) = input.split_at_mut(32);
            rng.fill_bytes(random);
            encoded.copy_from_slice(Ed25519::encode_scalar(secret).as_ref());
            Secret::new(Ed25519Sha512::H3(input.as_ref()))
        };
        let (hiding, binding) = (nonce(), nonce());
        let points = [&hiding, &binding].map(|nonce| Ed25519::mul_generator(nonce.expose()));
        let mut bytes = [0; COMMITMENTS_LEN];
        for (out, point) in bytes.chunks_exact_mut(32).zip(&points) {
            out.copy_from_slice(&Ed25519::encode_point(point));
        }
        let [d, e] = points;
        Self { hiding, binding, commitments: Commitments { bytes, hiding: d, binding: e } }
    }

    /// `z_i = d_i + e_i·ρ_i + λ_i·x_i·c` of RFC 9591, section 5.2.
    fn sign(self, own: Party, key: &Shamir<Ed25519>, session: &Session) -> Result<Scalar> {
        let weighted = Zeroizing::new(Ed25519::lagrange(own, peer(own))? * key.secret());
        Ok(self.hiding.expose() + self.binding.expose() * session.factor(own) + *weighted * session.challenge)
    }
}

/// What both signers compute alike from what is public.
struct Session {
    /// Binding factors of client and node 1.
    factors: [Scalar; 2],
    /// The signature's R.
    r: [u8; 32],
    /// c, the hash of R, key and message.
    challenge: Scalar,
}

impl Session {
    /// RFC 9591, sections 4.4 to 4.6. `None` if R is the identity.
    fn new(public_key: &[u8; 32], message: &[u8], client: &Commitments, node1: &Commitments) -> Option<Self> {
        let [one, two] =
            [Party::Client, Party::Node1].map(|party| *Ed25519::encode_scalar(&Ed25519::party_scalar(party)));
        let list = [&one, client.bytes.as_slice(), &two, &node1.bytes].concat();
        let prefix = [public_key.as_slice(), &Ed25519Sha512::H4(message), &Ed25519Sha512::H5(&list)].concat();
        let factors = [one, two].map(|identifier| Ed25519Sha512::H1(&[prefix.as_slice(), &identifier].concat()));
        let bound = EdwardsPoint::vartime_multiscalar_mul(&factors, [&client.binding, &node1.binding]);
        let r = client.hiding + node1.hiding + bound;
        if Ed25519::is_identity(&r) {
            return None;
        }
        let r = Ed25519::encode_point(&r);
        let challenge = Ed25519Sha512::H2(&[r.as_slice(), public_key, message].concat());
        Some(Self { factors, r, challenge })
    }

    const fn factor(&self, party: Party) -> &Scalar {
        let [client, node1] = &self.factors;
        match party {
            Party::Client => client,
            Party::Node1 | Party::Node2 => node1,
        }
    }
}

/// Node 1's whole part: commitments 64 and signature share 32, and what knows the session's own signature when it comes. Its
/// nonces live only within this call.
///
/// # Errors
/// `Peer` with `frost_commitments` if the client's are not two canonical points of the prime-order subgroup other than the
/// identity; `InvalidInput` if `share` is not node 1's or of another curve.
pub fn node_sign(
    share: &KeyShare,
    message: &[u8],
    client_commitments: &[u8; COMMITMENTS_LEN],
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<([u8; COMMITMENTS_LEN], [u8; SHARE_LEN], Sent)> {
    const REFUSED: Abort = Abort::peer(Party::Client, "frost_commitments");
    let key = share_of(share, Party::Node1)?;
    let client = Commitments::read(client_commitments, Ed25519::decode_point).ok_or(REFUSED)?;
    let nonces = Nonces::new(key.secret(), rng);
    let public_key = *key.encoded_key();
    let session = Session::new(&public_key, message, &client, &nonces.commitments).ok_or(REFUSED)?;
    let commitments = nonces.commitments.bytes;
    let z1 = nonces.sign(Party::Node1, key, &session)?;
    Ok((commitments, z1.to_bytes(), Sent { public_key, message: message.to_vec(), r: session.r }))
}

/// What node 1 keeps of a session after its signature share left: nothing secret, but enough to know the session's own
/// signature when the client reports it.
pub struct Sent {
    public_key: [u8; 32],
    message: Vec<u8>,
    r: [u8; 32],
}

impl Sent {
    /// Was this signature made in this session, with the client's share? A valid signature with the session's R is the sum of
    /// node 1's share and the client's: an earlier signature of the same message, which anybody may have, proves nothing.
    #[must_use]
    pub fn accepts(&self, signature: &[u8; 64]) -> bool {
        signature.starts_with(&self.r) && verify(&self.public_key, &self.message, signature).is_ok()
    }
}

/// The client between its commitments and its signature. Consumed by [`FrostClient::finish`], success or not.
pub struct FrostClient {
    nonces: Nonces,
}

impl FrostClient {
    /// Makes the nonces; returns their commitments, 64 bytes. The client's share is still locked at this time (node 1's OPRF
    /// evaluation comes with its signature share), so it cannot hedge the nonces as in RFC 9591, section 4.1: pass a
    /// `SessionRng` hedged with the password and the job digest. A random scalar stands in the share's place.
    pub fn start(rng: &mut (impl RngCore + CryptoRng)) -> (Self, [u8; COMMITMENTS_LEN]) {
        let hedge = Zeroizing::new(Ed25519::random_scalar(rng));
        let nonces = Nonces::new(&hedge, rng);
        let commitments = nonces.commitments.bytes;
        (Self { nonces }, commitments)
    }

    /// Adds our signature share to node 1's and verifies the signature under the public key: 64 bytes of RFC 8032. Nothing leaves
    /// if it does not verify. That is the check of node 1's share, too: ours put in, the equation of the signature is the
    /// equation of its share; and the check that R, so all that node 1's commitments are used for, is of the prime-order subgroup.
    ///
    /// # Errors
    /// `Peer` (node 1) with `frost_commitments`, `frost_share`; `InvalidInput` if `share` is not the client's or of another
    /// curve; `Bug` if the signature does not verify and it is not node 1's share that is wrong.
    pub fn finish(
        self,
        share: &KeyShare,
        message: &[u8],
        node1_commitments: &[u8; COMMITMENTS_LEN],
        z1: &[u8; SHARE_LEN],
    ) -> Result<[u8; 64]> {
        const NOT_POINTS: Abort = Abort::peer(Party::Node1, "frost_commitments");
        const REFUSED: Abort = Abort::peer(Party::Node1, "frost_share");
        let key = share_of(share, Party::Client)?;
        let node1 = Commitments::read(node1_commitments, decode_commitment).ok_or(NOT_POINTS)?;
        let z1 = Ed25519::decode_scalar(z1).ok_or(REFUSED)?;
        let public_key = key.encoded_key();
        let session = Session::new(public_key, message, &self.nonces.commitments, &node1).ok_or(NOT_POINTS)?;
        let z2 = Zeroizing::new(self.nonces.sign(Party::Client, key, &session)?);
        let z = Zeroizing::new(z1 + *z2);
        let mut signature = Zeroizing::new([0; 64]);
        let (r, s) = signature.split_at_mut(32);
        r.copy_from_slice(&session.r);
        s.copy_from_slice(Ed25519::encode_scalar(&z).as_ref());
        if verify(public_key, message, &signature).is_ok() {
            return Ok(*signature);
        }
        // Whose fault it is: node 1's share, checked by itself.
        let weight = Ed25519::lagrange(Party::Node1, Party::Client)? * session.challenge;
        let expected =
            node1.hiding + node1.binding * session.factor(Party::Node1) + key.verifying_share(Party::Node1) * weight;
        let faultless = Ed25519::mul_generator(&z1) == expected;
        Err(if faultless { Abort::Bug("the signature does not verify, and node 1's share does") } else { REFUSED })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::share::KeyIdentity;
    use curve25519_dalek::constants::EIGHT_TORSION;
    use curve25519_dalek::edwards::CompressedEdwardsY;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn shares(rng: &mut ChaCha20Rng) -> [KeyShare; 2] {
        let (secret, slope) = (Ed25519::random_scalar(rng), Ed25519::random_scalar(rng));
        let at = |party| secret + slope * Ed25519::party_scalar(party);
        let verifying = Party::ALL.map(|party| Ed25519::mul_generator(&at(party)));
        let identity = KeyIdentity { key_id: [1; 16], epoch: 0, transcript: [2; 32], chain_code: [3; 32] };
        [Party::Client, Party::Node1].map(|party| {
            let public = Ed25519::mul_generator(&secret);
            let shamir = Shamir::new(party, Secret::new(at(party)), verifying, public).unwrap();
            KeyShare::ed25519(party, identity, shamir)
        })
    }

    fn with_torsion(nonces: &mut Nonces, torsion: [&EdwardsPoint; 2]) {
        let commitments = &mut nonces.commitments;
        commitments.hiding += torsion[0];
        commitments.binding += torsion[1];
        commitments.bytes[..32].copy_from_slice(&Ed25519::encode_point(&commitments.hiding));
        commitments.bytes[32..].copy_from_slice(&Ed25519::encode_point(&commitments.binding));
    }

    /// A party adds points of small order to its commitments and does all else by the rules. Node 1 refuses it at once; the client
    /// signs exactly when they cancel in R, and then it is a signature like any other.
    #[test]
    fn points_of_small_order_in_commitments_never_reach_a_signature() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let [client, node1] = shares(&mut rng);
        let key = share_of(&node1, Party::Node1).unwrap();
        let public_key = Ed25519::encode_point(key.public_key());
        let (mut refused, mut signed) = (0, 0);
        for (i, hiding) in EIGHT_TORSION.iter().enumerate() {
            for (j, binding) in EIGHT_TORSION.iter().enumerate() {
                let (theirs, ours) = FrostClient::start(&mut rng);
                let mut nonces = Nonces::new(key.secret(), &mut rng);
                with_torsion(&mut nonces, [hiding, binding]);
                let bytes = nonces.commitments.bytes;
                let by_node_1 = node_sign(&node1, b"message", &bytes, &mut rng).err();
                assert_eq!(by_node_1.map(|abort| abort.check()), (i != 0 || j != 0).then_some("frost_commitments"));

                let session = Session::new(
                    &public_key,
                    b"message",
                    &Commitments::read(&ours, Ed25519::decode_point).unwrap(),
                    &nonces.commitments,
                );
                let session = session.unwrap();
                let cancels = Ed25519::is_identity(&(hiding + binding * session.factor(Party::Node1)));
                let z1 = nonces.sign(Party::Node1, key, &session).unwrap().to_bytes();
                match theirs.finish(&client, b"message", &bytes, &z1) {
                    Ok(signature) => {
                        assert!(cancels);
                        verify(&public_key, b"message", &signature).unwrap();
                        assert!(Ed25519::decode_point(&signature[..32]).is_some());
                        signed += 1;
                    }
                    Err(abort) => {
                        assert!(!cancels);
                        assert_eq!(abort, Abort::peer(Party::Node1, "frost_share"));
                        refused += 1;
                    }
                }
            }
        }
        assert!(signed > 1 && refused > 30, "{signed} {refused}");
    }

    /// Commitments that are nothing but small order, in each encoding that a lenient parser takes, with the share that goes with them:
    /// where the parts cancel, the signature would verify.
    #[test]
    fn commitments_of_small_order_alone_are_refused() {
        let mut rng = ChaCha20Rng::from_seed([2; 32]);
        let [client, node1] = shares(&mut rng);
        let key = share_of(&node1, Party::Node1).unwrap();
        let public_key = Ed25519::encode_point(key.public_key());
        let mut encodings: Vec<[u8; 32]> = EIGHT_TORSION.iter().map(Ed25519::encode_point).collect();
        // y = 0 and y = 1 as p and p + 1, either sign; x = 0 with the sign bit, at y = 1 and y = -1.
        for (first, last) in [(0xed, 0x7f), (0xed, 0xff), (0xee, 0x7f), (0xee, 0xff), (0xec, 0xff)] {
            let mut encoding = [0xff; 32];
            (encoding[0], encoding[31]) = (first, last);
            encodings.push(encoding);
        }
        let mut signed_identity = [0; 32];
        (signed_identity[0], signed_identity[31]) = (1, 0x80);
        encodings.push(signed_identity);
        let mut would_verify = 0;
        for hiding in &encodings {
            for binding in &encodings {
                let (theirs, ours) = FrostClient::start(&mut rng);
                let ours = Commitments::read(&ours, Ed25519::decode_point).unwrap();
                let bytes: [u8; 64] = [*hiding, *binding].concat().try_into().unwrap();
                let none = || Secret::new(Scalar::ZERO);
                let lenient = |bytes: &[u8]| CompressedEdwardsY::from_slice(bytes).unwrap().decompress();
                let commitments = Commitments::read(&bytes, lenient).unwrap();
                let session = Session::new(&public_key, b"message", &ours, &commitments).unwrap();
                let parts = commitments.hiding + commitments.binding * session.factor(Party::Node1);
                would_verify += u32::from(Ed25519::is_identity(&parts));
                let nonces = Nonces { hiding: none(), binding: none(), commitments };
                let z1 = nonces.sign(Party::Node1, key, &session).unwrap().to_bytes();
                let refused = theirs.finish(&client, b"message", &bytes, &z1);
                assert_eq!(refused, Err(Abort::peer(Party::Node1, "frost_commitments")));
            }
        }
        assert!(would_verify > 10, "{would_verify}");
    }
}
