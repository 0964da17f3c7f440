//! Reading the fixed-layout messages of docs/protocol.md. Nothing here allocates by a peer's word.

use k256::elliptic_curve::PrimeField;
use k256::elliptic_curve::group::{Group as _, GroupEncoding};
use k256::{CompressedPoint, FieldBytes, ProjectivePoint, Scalar};

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
        read_scalar(&self.array()?)
    }

    /// A secp256k1 point, 33 bytes SEC1 compressed, not the identity.
    pub(crate) fn point(&mut self) -> Option<ProjectivePoint> {
        let bytes: [u8; 33] = self.array()?;
        let point: Option<ProjectivePoint> = ProjectivePoint::from_bytes(&CompressedPoint::from(bytes)).into();
        point.filter(|p| !bool::from(p.is_identity()))
    }
}

/// A canonical secp256k1 scalar (`< q`), big-endian.
pub(crate) fn read_scalar(bytes: &[u8; 32]) -> Option<Scalar> {
    Scalar::from_repr(FieldBytes::from(*bytes)).into()
}

/// 33 bytes SEC1 compressed.
pub(crate) fn write_point(point: &ProjectivePoint) -> [u8; 33] {
    point.to_bytes().into()
}

/// 32 bytes big-endian.
pub(crate) fn write_scalar(scalar: &Scalar) -> [u8; 32] {
    scalar.to_bytes().into()
}
