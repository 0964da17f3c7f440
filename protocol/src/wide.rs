//! Long sums of products mod q, reduced once.

use k256::elliptic_curve::bigint::{Limb, U512};
use k256::elliptic_curve::ops::Reduce;
use k256::{Scalar, U256};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// `Σ a_i·b_i` of secp256k1 scalars: 512 bits, and how often the sum carried out of them, which is far below what a limb counts.
/// A third of the time of sums that are reduced at each step. Constant-time; zeroised on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct SumOfProducts {
    low: U512,
    carries: Limb,
}

impl SumOfProducts {
    /// The empty sum.
    pub(crate) const fn new() -> Self {
        Self { low: U512::ZERO, carries: Limb::ZERO }
    }

    /// Adds `a·b`.
    pub(crate) fn add(&mut self, a: &Scalar, b: &Scalar) {
        let product: U512 = U256::from(a).concatenating_mul(&U256::from(b));
        let (low, carry) = self.low.carrying_add(&product, Limb::ZERO);
        self.low = low;
        self.carries = self.carries.wrapping_add(carry);
    }

    /// The sum mod q.
    pub(crate) fn reduce(&self) -> Scalar {
        let two_to_512 = Scalar::reduce(&U512::MAX) + Scalar::ONE;
        Scalar::reduce(&self.low) + two_to_512 * Scalar::reduce(&U256::from(self.carries))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;
    use crate::curve::{Group, Secp256k1};
    use proptest::prelude::*;

    fn agrees(terms: &[(Scalar, Scalar)]) -> bool {
        let mut sum = SumOfProducts::new();
        terms.iter().for_each(|(a, b)| sum.add(a, b));
        sum.reduce() == terms.iter().map(|(a, b)| a * b).sum::<Scalar>()
    }

    /// The largest sum of the protocol, which carries once for nearly every term, and the smallest.
    #[test]
    fn sums_of_the_largest_and_of_no_products() {
        for length in [0, 1, 2, 3, 416, 10_000] {
            assert!(agrees(&vec![(-Scalar::ONE, -Scalar::ONE); length]), "{length}");
            assert!(agrees(&vec![(-Scalar::ONE, Scalar::ONE); length]), "{length}");
            assert!(agrees(&vec![(Scalar::ZERO, -Scalar::ONE); length]), "{length}");
        }
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_scalar_arithmetic(terms in prop::collection::vec(any::<([u8; 32], [u8; 32])>(), 0..50)) {
            let scalar = |bytes: &[u8; 32]| {
                let mut wide = [0; 64];
                wide[32..].copy_from_slice(bytes);
                Secp256k1::reduce_wide(&wide)
            };
            let terms: Vec<_> = terms.iter().map(|(a, b)| (scalar(a), scalar(b))).collect();
            prop_assert!(agrees(&terms));
        }
    }
}
