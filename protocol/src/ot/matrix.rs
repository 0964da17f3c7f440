//! Bit matrices: 128 columns of 68 bytes, read by row.

use super::{BASE_OTS, COLUMN_LEN, ROWS, SEED_LEN};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// 128 columns of 544 bits. Bit j of a column is bit `j mod 8` (least significant first) of byte `j / 8`.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Columns(pub(super) Box<[[u8; COLUMN_LEN]; BASE_OTS]>);

impl Columns {
    pub(super) fn zero() -> Self {
        Self(Box::new([[0; COLUMN_LEN]; BASE_OTS]))
    }

    /// The first 416 rows, 16 bytes each; bit i of a row is bit `i mod 8` of byte `i / 8`.
    pub(super) fn rows(&self) -> Rows {
        let mut rows = Rows(Box::new([[0; SEED_LEN]; ROWS]));
        for (at, eight_columns) in self.0.chunks_exact(8).enumerate() {
            for (byte, eight_rows) in rows.0.chunks_exact_mut(8).enumerate() {
                let mut block = [0u8; 8];
                for (out, column) in block.iter_mut().zip(eight_columns) {
                    *out = column.get(byte).copied().unwrap_or_default();
                }
                let block = transpose8(u64::from_le_bytes(block)).to_le_bytes();
                for (row, value) in eight_rows.iter_mut().zip(block) {
                    if let Some(out) = row.get_mut(at) {
                        *out = value;
                    }
                }
            }
        }
        rows
    }
}

/// 416 rows of 128 bits.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Rows(pub(super) Box<[[u8; SEED_LEN]; ROWS]>);

/// Transposes an 8x8 bit matrix held with row k in byte k (Hacker's Delight, section 7-3).
const fn transpose8(mut x: u64) -> u64 {
    let t = (x ^ (x >> 7)) & 0x00aa_00aa_00aa_00aa;
    x ^= t ^ (t << 7);
    let t = (x ^ (x >> 14)) & 0x0000_cccc_0000_cccc;
    x ^= t ^ (t << 14);
    let t = (x ^ (x >> 28)) & 0x0000_0000_f0f0_f0f0;
    x ^ t ^ (t << 28)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn rows_are_the_transpose_of_the_columns() {
        let mut columns = Columns::zero();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for byte in columns.0.iter_mut().flatten() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        let rows = columns.rows();
        for j in 0..ROWS {
            for i in 0..BASE_OTS {
                let in_column = columns.0[i][j / 8] >> (j % 8) & 1;
                let in_row = rows.0[j][i / 8] >> (i % 8) & 1;
                assert_eq!(in_column, in_row, "row {j}, column {i}");
            }
        }
    }
}
