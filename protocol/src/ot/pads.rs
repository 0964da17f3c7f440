//! From rows to scalars: the random oracle of the extension (docs/protocol.md, section 3).

use super::matrix::Rows;
use super::{ROWS, SEED_LEN};
use k256::elliptic_curve::ops::Reduce;
use k256::{Scalar, U256};
use sha2::block_api::compress256;
use zeroize::Zeroizing;

/// The pads of all 416 rows, three each. Zeroised on drop.
pub(crate) type RowPads = Zeroizing<Vec<[Scalar; 3]>>;

/// Initial state of SHA-256 (FIPS 180-4, section 5.3.3).
const SHA256_INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// What fills the block after the 51 bytes of `W ‖ j ‖ w ‖ row`: a one bit, zeros, and the length of 408 bits.
const PADDING: [u8; 13] = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x98];
/// Rows whose blocks are laid out before the first of them is compressed.
const AT_ONCE: usize = 8;

const _: () = assert!(ROWS.is_multiple_of(AT_ONCE));

/// Random oracle from rows to scalars, bound to one extension by `W`, 32 bytes.
pub(super) struct Pads(pub(super) [u8; 32]);

impl Pads {
    /// `SHA-256(W ‖ j ‖ w ‖ row_j ⊕ offset)` reduced mod q, for each row and w = 0, 1, 2. The bias is below 2^-127, as
    /// q > 2^256 - 2^129.
    ///
    /// A signature needs 7,488 of these, a sixth of its cost, so the one block of each is laid out here and compressed directly.
    /// Several rows are laid out before the first is compressed: a wide load right after the narrow stores that it reads makes the
    /// processor wait, and the pads take half as long again.
    pub(super) fn of(&self, rows: &Rows, offset: &[u8; SEED_LEN]) -> RowPads {
        let mut blocks = Zeroizing::new([[0, 1, 2].map(|word| self.block(word)); AT_ONCE]);
        let mut pads = Zeroizing::new(Vec::with_capacity(ROWS));
        let mut rows = (0u16..).zip(rows.0.iter());
        for _ in 0..ROWS / AT_ONCE {
            for (of_a_row, (j, row)) in blocks.iter_mut().zip(&mut rows) {
                for block in of_a_row {
                    let (index, slot) = slots(block);
                    index.copy_from_slice(&j.to_be_bytes());
                    slot.iter_mut().zip(row).zip(offset).for_each(|((out, row), offset)| *out = row ^ offset);
                }
            }
            pads.extend(blocks.iter().map(|of_a_row| of_a_row.each_ref().map(pad)));
        }
        pads
    }

    /// The block of word w, without row number and row.
    fn block(&self, word: u8) -> [u8; 64] {
        let mut block = [0; 64];
        let (fixed, rest) = block.split_at_mut(32);
        let (_, rest) = rest.split_at_mut(2);
        let (at, rest) = rest.split_at_mut(1);
        let (_, padding) = rest.split_at_mut(SEED_LEN);
        fixed.copy_from_slice(&self.0);
        at.fill(word);
        padding.copy_from_slice(&PADDING);
        block
    }
}

/// Where the row number (2 bytes) and the row (16 bytes) go.
fn slots(block: &mut [u8; 64]) -> (&mut [u8], &mut [u8]) {
    let (_, rest) = block.split_at_mut(32);
    let (index, rest) = rest.split_at_mut(2);
    let (_, rest) = rest.split_at_mut(1);
    let (row, _) = rest.split_at_mut(SEED_LEN);
    (index, row)
}

/// The block's hash as a big-endian integer, mod q.
fn pad(block: &[u8; 64]) -> Scalar {
    let mut state = SHA256_INITIAL;
    compress256(&mut state, core::slice::from_ref(block));
    Scalar::reduce(&U256::from_be_slice(state.map(u32::to_be_bytes).as_flattened()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use k256::FieldBytes;
    use sha2::{Digest, Sha256};

    #[test]
    fn a_pad_is_plain_sha256() {
        let mut rows = Rows(Box::new([[0; SEED_LEN]; ROWS]));
        rows.0.iter_mut().flatten().zip(0u32..).for_each(|(byte, i)| *byte = ((i * i) >> 3) as u8);
        let offset = [0x5a; SEED_LEN];
        let pads = Pads([7; 32]).of(&rows, &offset);
        assert_eq!(pads.len(), ROWS);
        for (j, (pads, row)) in pads.iter().zip(rows.0.iter()).enumerate() {
            for (w, pad) in pads.iter().enumerate() {
                let input =
                    [&[7; 32], (j as u16).to_be_bytes().as_slice(), &[w as u8], &row.map(|byte| byte ^ 0x5a)].concat();
                let digest: [u8; 32] = Sha256::digest(input).into();
                assert_eq!(*pad, Scalar::reduce(&FieldBytes::from(digest)));
            }
        }
    }
}
