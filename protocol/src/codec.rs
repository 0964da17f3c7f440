//! Reading the fixed-layout messages of docs/protocol.md. Nothing here allocates by a peer's word.

use crate::curve::{Group, SCALAR_LEN, Secp256k1};
use k256::{ProjectivePoint, Scalar};

/// Takes fields off a message whose total length was checked first; `None` means too short or not canonical.
pub(crate) struct Reader<'a> {
    message: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// A reader of a message of exactly `len` bytes; `None` for any other length.
    pub(crate) fn new(message: &'a [u8], len: usize) -> Option<Self> {
        (message.len() == len).then_some(Self { message, position: 0 })
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.position.checked_add(len)?;
        let bytes = self.message.get(self.position..end)?;
        self.position = end;
        Some(bytes)
    }

    /// The next `N` bytes as an array.
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// Everything read so far: what a challenge hashes.
    pub(crate) fn prefix(&self) -> &'a [u8] {
        self.message.get(..self.position).unwrap_or_default()
    }

    /// A canonical secp256k1 scalar, 32 bytes.
    pub(crate) fn scalar(&mut self) -> Option<Scalar> {
        Secp256k1::decode_scalar(self.bytes(SCALAR_LEN)?)
    }

    /// A secp256k1 point, 33 bytes SEC1 compressed, not the identity.
    pub(crate) fn point(&mut self) -> Option<ProjectivePoint> {
        Secp256k1::decode_point(self.bytes(Secp256k1::POINT_LEN)?)
    }
}
