//! Oblivious transfer: the base OTs of a key (docs/protocol.md, section 2) and their extension in each signing
//! session (section 3).

pub(crate) mod base;
pub(crate) mod extension;
mod matrix;
mod pads;
pub(crate) mod setup;

use crate::codec::Reader;
use crate::error::{Abort, Result};
use crate::party::Party;
use subtle::Choice;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// λc: base OTs of one direction, and bits of a row.
pub const BASE_OTS: usize = 128;
/// Bytes of a seed and of a row.
pub const SEED_LEN: usize = 16;
/// ξ = κ + 2·λs: rows used by one multiplication.
pub const ROWS: usize = 416;
/// Bytes of the choice bits of one multiplication.
pub const CHOICE_LEN: usize = ROWS / 8;
/// Bytes of one column: ξ rows and 128 masking rows.
pub const COLUMN_LEN: usize = CHOICE_LEN + SEED_LEN;
/// Bytes of the matrix U.
pub const MATRIX_LEN: usize = BASE_OTS * COLUMN_LEN;

/// One of the two directions of a pair, named by who receives in the OT extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// The client receives in the extension, and sends in the base OT.
    ClientReceives = 1,
    /// Node 1 receives in the extension, and sends in the base OT.
    Node1Receives = 2,
}

impl Direction {
    /// Who receives in the extension (Bob of the multiplication).
    #[must_use]
    pub const fn receiver(self) -> Party {
        match self {
            Self::ClientReceives => Party::Client,
            Self::Node1Receives => Party::Node1,
        }
    }

    /// Who sends in the extension (Alice of the multiplication).
    #[must_use]
    pub const fn sender(self) -> Party {
        match self {
            Self::ClientReceives => Party::Node1,
            Self::Node1Receives => Party::Client,
        }
    }

    /// The direction's byte in every hash.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

/// Seeds of the extension's sender: Δ (16 bytes) and `k_{i,Δ_i}` (2,048 bytes).
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SenderSeeds {
    delta: [u8; SEED_LEN],
    keys: Box<[[u8; SEED_LEN]; BASE_OTS]>,
}

/// Seeds of the extension's receiver: both `k_{i,0}` and `k_{i,1}` (4,096 bytes).
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ReceiverSeeds {
    keys: Box<[[[u8; SEED_LEN]; 2]; BASE_OTS]>,
}

/// A party's long-lived OT state for one key and pair: it sends in one direction and receives in the other.
///
/// Reused by every signature; a failed consistency check leaks bits of Δ, which is why it locks the key.
pub struct OtState {
    id: [u8; 32],
    sender: SenderSeeds,
    receiver: ReceiverSeeds,
}

impl OtState {
    /// Bytes of [`OtState::to_bytes`].
    pub const LEN: usize = 32 + SEED_LEN + BASE_OTS * SEED_LEN + BASE_OTS * 2 * SEED_LEN;

    pub(crate) const fn new(id: [u8; 32], sender: SenderSeeds, receiver: ReceiverSeeds) -> Self {
        Self { id, sender, receiver }
    }

    /// `ot_id`: the hash of the setup's transcript, 32 bytes, public.
    #[must_use]
    pub const fn id(&self) -> [u8; 32] {
        self.id
    }

    pub(crate) const fn sender(&self) -> &SenderSeeds {
        &self.sender
    }

    pub(crate) const fn receiver(&self) -> &ReceiverSeeds {
        &self.receiver
    }

    /// `ot_id 32 ‖ Δ 16 ‖ sender seeds 2,048 ‖ receiver seeds 4,096`.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(Self::LEN));
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.sender.delta);
        out.extend_from_slice(self.sender.keys.as_flattened());
        out.extend_from_slice(self.receiver.keys.as_flattened().as_flattened());
        out
    }

    /// Reads [`OtState::to_bytes`].
    ///
    /// # Errors
    /// `InvalidInput` when the length is not exactly [`OtState::LEN`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes, Self::LEN).ok_or(Abort::InvalidInput("OT state of a wrong length"))?;
        let state = (|| {
            let id = reader.array()?;
            let delta = reader.array()?;
            let mut sender = SenderSeeds { delta, keys: Box::new([[0; SEED_LEN]; BASE_OTS]) };
            for key in sender.keys.iter_mut() {
                *key = reader.array()?;
            }
            let mut receiver = ReceiverSeeds { keys: Box::new([[[0; SEED_LEN]; 2]; BASE_OTS]) };
            for key in receiver.keys.iter_mut().flatten() {
                *key = reader.array()?;
            }
            Some(Self { id, sender, receiver })
        })();
        state.ok_or(Abort::Bug("OT state layout"))
    }
}

/// The bits of choice bytes in order: bit `i mod 8`, least significant first, of byte `i / 8`. Never a branch on one.
pub(crate) fn bits(bytes: &[u8]) -> impl Iterator<Item = Choice> + '_ {
    bytes.iter().flat_map(|byte| (0..8).map(move |bit| Choice::from((byte >> bit) & 1)))
}
