//! m1, m2 and m3 as bytes. Parsing checks shape and canonical form only, and borrows.

use crate::codec::Reader;
use crate::ot::extension::{EXTENSION_LEN, ExtensionMessage};
use crate::rvole::{ANSWER_LEN, Answer};
use k256::{ProjectivePoint, Scalar};

/// Bytes of m1.
pub const M1_LEN: usize = 32 + 4 + 32 + 16 + 32 + EXTENSION_LEN;
/// Bytes of m2.
pub const M2_LEN: usize = 16 + 33 + EXTENSION_LEN + ANSWER_LEN + 66 + 32;
/// Bytes of m3.
pub const M3_LEN: usize = 16 + 33 + 32 + ANSWER_LEN + 66 + 32 + 32 + 32;

const _: () = assert!(M1_LEN == 8_884 && M2_LEN == 48_915 && M3_LEN == 40_243);

/// node 1 -> client.
pub(super) struct M1<'a> {
    pub(super) contribution: [u8; 32],
    pub(super) epoch: u32,
    pub(super) ot_id: [u8; 32],
    pub(super) tag: [u8; 16],
    pub(super) commitment: [u8; 32],
    pub(super) extension: ExtensionMessage<'a>,
}

impl<'a> M1<'a> {
    pub(super) fn parse(message: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(message, M1_LEN)?;
        Some(Self {
            contribution: reader.array()?,
            epoch: u32::from_be_bytes(reader.array()?),
            ot_id: reader.array()?,
            tag: reader.array()?,
            commitment: reader.array()?,
            extension: ExtensionMessage::read(&mut reader)?,
        })
    }
}

/// Γu and Γv. The identity is a possible, if unlikely, value of an honest party, but not one that it can send.
pub(super) type Gammas = [ProjectivePoint; 2];

/// client -> node 1.
pub(super) struct M2<'a> {
    pub(super) tag: [u8; 16],
    pub(super) nonce_point: ProjectivePoint,
    pub(super) extension: ExtensionMessage<'a>,
    pub(super) answer: Answer<'a>,
    pub(super) gammas: Gammas,
    pub(super) psi: Scalar,
}

impl<'a> M2<'a> {
    pub(super) fn parse(message: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(message, M2_LEN)?;
        Some(Self {
            tag: reader.array()?,
            nonce_point: reader.point()?,
            extension: ExtensionMessage::read(&mut reader)?,
            answer: Answer::read(&mut reader)?,
            gammas: [reader.point()?, reader.point()?],
            psi: reader.scalar()?,
        })
    }
}

/// node 1 -> client.
pub(super) struct M3<'a> {
    pub(super) tag: [u8; 16],
    pub(super) nonce_point: ProjectivePoint,
    pub(super) salt: [u8; 32],
    pub(super) answer: Answer<'a>,
    pub(super) gammas: Gammas,
    pub(super) psi: Scalar,
    pub(super) u: Scalar,
    pub(super) w: Scalar,
}

impl<'a> M3<'a> {
    pub(super) fn parse(message: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(message, M3_LEN)?;
        Some(Self {
            tag: reader.array()?,
            nonce_point: reader.point()?,
            salt: reader.array()?,
            answer: Answer::read(&mut reader)?,
            gammas: [reader.point()?, reader.point()?],
            psi: reader.scalar()?,
            u: reader.scalar()?,
            w: reader.scalar()?,
        })
    }
}
