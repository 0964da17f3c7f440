//! From a password to 32 bytes. All limits are checked before memory is allocated.

use crate::vault::VaultError;
use crate::wire::KdfParams;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use hkdf::Hkdf;
use sha2::Sha256;
use trefoil_protocol::transcript::Tag;
use zeroize::{Zeroize, Zeroizing};

/// A password or machine-made secret, 1 to 1,024 bytes. Erased when dropped; never printed, copied or serialised.
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Longest password in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Takes the bytes.
    ///
    /// # Errors
    /// `INVALID_KDF` if there are none or more than 1,024.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, VaultError> {
        if (1..=Self::MAX_BYTES).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(VaultError::InvalidKdf("a password has 1 to 1024 bytes"))
        }
    }

    /// The bytes. Every use is a place to look at in review.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// A stretched password, 32 bytes.
pub struct Stretched(Zeroizing<[u8; 32]>);

impl Stretched {
    /// The bytes. Every use is a place to look at in review.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Argon2id (RFC 9106, version 1.3, one lane, 32 bytes out), or HKDF-SHA-256 for a password of exactly 32 random bytes.
/// Blocks: argon2id with the default parameters takes 25 ms.
///
/// # Errors
/// `INVALID_KDF` for parameters out of range, a password that is not 32 bytes for `hkdf`, or too little memory.
pub fn stretch(password: &Password, params: KdfParams, salt: &[u8; 16]) -> Result<Stretched, VaultError> {
    if !params.is_allowed() {
        return Err(VaultError::InvalidKdf("KDF parameters are out of range"));
    }
    let mut out = Zeroizing::new([0; 32]);
    match params {
        KdfParams::Argon2id { memory_kib, passes } => argon2id(password.expose(), salt, memory_kib, passes, &mut out)?,
        KdfParams::Hkdf => {
            if password.expose().len() != 32 {
                return Err(VaultError::InvalidKdf("hkdf takes a password of exactly 32 random bytes"));
            }
            Hkdf::<Sha256>::new(Some(salt), password.expose())
                .expand(Tag::VAULT_HKDF.as_str().as_bytes(), out.as_mut())
                .map_err(|_| VaultError::Bug("HKDF output length"))?;
        }
    }
    Ok(Stretched(out))
}

fn argon2id(password: &[u8], salt: &[u8], memory_kib: u32, passes: u32, out: &mut [u8; 32]) -> Result<(), VaultError> {
    let invalid = |_| VaultError::InvalidKdf("argon2id does not take these parameters");
    let params = Params::new(memory_kib, passes, 1, Some(out.len())).map_err(invalid)?;
    // Our own blocks, because the crate does not erase the ones that it allocates.
    let mut blocks: Vec<Block> = Vec::new();
    blocks.try_reserve_exact(params.block_count()).map_err(|_| VaultError::Bug("no memory left for argon2id"))?;
    blocks.resize(params.block_count(), Block::new());
    let hashed = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(
        password,
        salt,
        out,
        &mut blocks,
    );
    blocks.zeroize();
    hashed.map_err(invalid)
}
