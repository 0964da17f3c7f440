//! The RNG of one protocol session.

use crate::transcript::{Tag, hash};
use hkdf::Hkdf;
use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, RngCore, SeedableRng};
use sha2::Sha256;
use zeroize::Zeroizing;

/// ChaCha20 seeded by HKDF-SHA-256 over 32 bytes of the caller's RNG, a long-term secret of the party and the
/// transcript so far (docs/protocol.md, section 1): a weak caller's RNG alone, or a leaked secret alone, does not
/// determine a nonce. The same inputs give the same run, byte for byte.
pub struct SessionRng(ChaCha20Rng);

impl SessionRng {
    /// Seeds the session's RNG. `secret` and `transcript` may have any length.
    pub fn new(rng: &mut (impl RngCore + CryptoRng), secret: &[u8], transcript: &[&[u8]]) -> Self {
        // Reserved at once: a vector that grows leaves copies of the secret behind.
        let mut input = Zeroizing::new(Vec::with_capacity(32 + secret.len()));
        input.resize(32, 0);
        rng.fill_bytes(&mut input);
        input.extend_from_slice(secret);
        let salt = hash(Tag::SESSION_RNG, transcript);
        let mut seed = Zeroizing::new([0u8; 32]);
        // 32 bytes is always a valid length for HKDF-SHA-256 (at most 255 * 32); the seed would stay random input.
        if Hkdf::<Sha256>::new(Some(&salt), &input).expand(Tag::SESSION_RNG.as_str().as_bytes(), seed.as_mut()).is_err()
        {
            rng.fill_bytes(seed.as_mut());
        }
        Self(ChaCha20Rng::from_seed(*seed))
    }
}

impl Drop for SessionRng {
    /// ChaCha20Rng does not erase its key and its buffered output, so another state is written over them.
    fn drop(&mut self) {
        self.0 = ChaCha20Rng::from_seed([0; 32]);
        core::hint::black_box(&mut self.0);
    }
}

impl RngCore for SessionRng {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.0.fill_bytes(dest);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> core::result::Result<(), rand_core::Error> {
        self.0.try_fill_bytes(dest)
    }
}

impl CryptoRng for SessionRng {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_matters() {
        let draw = |seed: u8, secret: &[u8], transcript: &[&[u8]]| {
            let mut out = [0; 32];
            SessionRng::new(&mut ChaCha20Rng::from_seed([seed; 32]), secret, transcript).fill_bytes(&mut out);
            out
        };
        let base = draw(1, b"secret", &[b"a", b"b"]);
        assert_eq!(base, draw(1, b"secret", &[b"a", b"b"]));
        assert_ne!(base, draw(2, b"secret", &[b"a", b"b"]));
        assert_ne!(base, draw(1, b"secreT", &[b"a", b"b"]));
        assert_ne!(base, draw(1, b"secret", &[b"ab", b""]));
    }
}
