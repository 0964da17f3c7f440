//! The OPRF between client and node 1: RFC 9497, OPRF mode, ristretto255-SHA512. One key per signing key, at node 1.

use crate::vault::{Password, VaultError};
use crate::wire::KeyId;
use rand_core::{CryptoRng, RngCore};
use trefoil_protocol::transcript::{Tag, hash};
use voprf::{BlindedElement, EvaluationElement, OprfClient, OprfServer, Ristretto255};
use zeroize::Zeroizing;

/// A blinded password at the client.
pub struct Blinded {
    state: OprfClient<Ristretto255>,
    input: Zeroizing<[u8; 32]>,
    element: [u8; 32],
}

impl Blinded {
    /// Blinds `H("vault/password"; key id, password)`.
    ///
    /// # Errors
    /// `INTERNAL`: none that an input can cause.
    pub fn new(key_id: KeyId, password: &Password, rng: &mut (impl RngCore + CryptoRng)) -> Result<Self, VaultError> {
        let input = Zeroizing::new(hash(Tag::VAULT_PASSWORD, &[&key_id.0, password.expose()]));
        let (state, element) = blind(input.as_ref(), rng)?;
        Ok(Self { state, input, element })
    }

    /// The blinded element for node 1: uniform, whatever the password.
    #[must_use]
    pub const fn element(&self) -> [u8; 32] {
        self.element
    }

    /// The OPRF's output, 64 bytes.
    ///
    /// # Errors
    /// `PROTOCOL_ABORT` if the evaluation is not a canonical element, or the identity.
    pub fn finalize(&self, evaluation: &[u8; 32]) -> Result<Zeroizing<[u8; 64]>, VaultError> {
        finalize(&self.state, self.input.as_ref(), evaluation)
    }
}

fn blind(
    input: &[u8],
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<(OprfClient<Ristretto255>, [u8; 32]), VaultError> {
    let blinded = OprfClient::<Ristretto255>::blind(input, rng).map_err(|_| VaultError::Bug("OPRF blinding"))?;
    Ok((blinded.state, blinded.message.serialize().into()))
}

fn finalize(
    state: &OprfClient<Ristretto255>,
    input: &[u8],
    evaluation: &[u8; 32],
) -> Result<Zeroizing<[u8; 64]>, VaultError> {
    let element = EvaluationElement::deserialize(evaluation).map_err(|_| VaultError::BadEvaluation)?;
    let output = state.finalize(input, &element).map_err(|_| VaultError::Bug("OPRF finalisation"))?;
    Ok(Zeroizing::new(output.into()))
}

/// Node 1's OPRF key of one signing key: a scalar, 32 bytes.
pub struct OprfKey(OprfServer<Ristretto255>);

impl OprfKey {
    /// A fresh key.
    ///
    /// # Errors
    /// `INTERNAL`: only with negligible probability.
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Result<Self, VaultError> {
        OprfServer::new(rng).map(Self).map_err(|_| VaultError::Bug("OPRF key generation"))
    }

    /// Reads a stored key; `None` if it is zero or not canonical.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        OprfServer::new_with_key(bytes).map(Self).ok()
    }

    /// The key, to be stored.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.serialize().into())
    }

    /// Evaluates a blinded password. `None` if it is not a canonical element, or the identity.
    #[must_use]
    pub fn evaluate(&self, blinded: &[u8; 32]) -> Option<[u8; 32]> {
        let element = BlindedElement::deserialize(blinded).ok()?;
        Some(self.0.blind_evaluate(&element).serialize().into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    /// Gives these 32 bytes, then zeros: a scalar that is sampled by wide reduction becomes exactly these bytes.
    struct Fixed(Vec<u8>);
    impl RngCore for Fixed {
        fn next_u32(&mut self) -> u32 {
            rand_core::impls::next_u32_via_fill(self)
        }
        fn next_u64(&mut self) -> u64 {
            rand_core::impls::next_u64_via_fill(self)
        }
        fn fill_bytes(&mut self, dest: &mut [u8]) {
            dest.fill(0);
            let n = dest.len().min(self.0.len());
            dest[..n].copy_from_slice(&self.0[..n]);
        }
        fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
            self.fill_bytes(dest);
            Ok(())
        }
    }
    impl CryptoRng for Fixed {}

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
    }

    /// RFC 9497, appendix A.1.1: ristretto255-SHA512, OPRF mode.
    #[test]
    fn rfc_9497_vectors() {
        let key = hex("5ebcea5ee37023ccb9fc2d2019f9d7737be85591ae8652ffa9ef0f4d37063b0e");
        let derived = OprfServer::<Ristretto255>::new_from_seed(&[0xa3; 32], b"test key").unwrap();
        assert_eq!(derived.serialize().as_slice(), key);
        let blinding = "64d37aed22a27f5191de1c1d69fadb899d8862b58eb4220029e036ec4c1f6706";
        let vectors = [
            (
                vec![0x00],
                "609a0ae68c15a3cf6903766461307e5c8bb2f95e7e6550e1ffa2dc99e412803c",
                "7ec6578ae5120958eb2db1745758ff379e77cb64fe77b0b2d8cc917ea0869c7e",
                "527759c3d9366f277d8c6020418d96bb393ba2afb20ff90df23fb7708264e2f3\
                 ab9135e3bd69955851de4b1f9fe8a0973396719b7912ba9ee8aa7d0b5e24bcf6",
            ),
            (
                vec![0x5a; 17],
                "da27ef466870f5f15296299850aa088629945a17d1f5b7f5ff043f76b3c06418",
                "b4cbf5a4f1eeda5a63ce7b77c7d23f461db3fcab0dd28e4e17cecb5c90d02c25",
                "f4a74c9c592497375e796aa837e907b1a045d34306a749db9f34221f7e750cb4\
                 f2a6413a6bf6fa5e19ba6348eb673934a722a7ede2e7621306d18951e7cf2c73",
            ),
        ];
        let server = OprfKey::from_bytes(&key).unwrap();
        for (input, blinded, evaluated, output) in vectors {
            let (state, element) = blind(&input, &mut Fixed(hex::<32>(blinding).to_vec())).unwrap();
            assert_eq!(element, hex(blinded));
            let evaluation = server.evaluate(&element).unwrap();
            assert_eq!(evaluation, hex(evaluated));
            assert_eq!(*finalize(&state, &input, &evaluation).unwrap(), hex(output));
        }
    }

    #[test]
    fn refuses_what_is_not_an_element() {
        let server = OprfKey::generate(&mut rand_core::OsRng).unwrap();
        let password = Password::new(Zeroizing::new(b"pw".to_vec())).unwrap();
        let blinded = Blinded::new(KeyId([1; 16]), &password, &mut rand_core::OsRng).unwrap();
        for bad in [[0; 32], [0xff; 32]] {
            assert!(server.evaluate(&bad).is_none());
            assert_eq!(blinded.finalize(&bad).err(), Some(VaultError::BadEvaluation));
        }
        assert!(OprfKey::from_bytes(&[0; 32]).is_none());
        assert!(OprfKey::from_bytes(&[0xff; 32]).is_none());
        let again = OprfKey::from_bytes(&server.to_bytes()).unwrap();
        assert_eq!(again.evaluate(&blinded.element()), server.evaluate(&blinded.element()));
    }

    #[test]
    fn output_depends_on_key_id_and_password_and_not_on_the_blinding() {
        let server = OprfKey::generate(&mut rand_core::OsRng).unwrap();
        let output = |id: u8, text: &[u8]| {
            let password = Password::new(Zeroizing::new(text.to_vec())).unwrap();
            let blinded = Blinded::new(KeyId([id; 16]), &password, &mut rand_core::OsRng).unwrap();
            blinded.finalize(&server.evaluate(&blinded.element()).unwrap()).unwrap()
        };
        assert_eq!(*output(1, b"a"), *output(1, b"a"));
        assert_ne!(*output(1, b"a"), *output(2, b"a"));
        assert_ne!(*output(1, b"a"), *output(1, b"b"));
    }
}
