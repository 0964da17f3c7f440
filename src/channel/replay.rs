//! The sliding window that lets a node accept every sequence number once, in any order.

/// Sequence numbers remembered behind the highest one: far more than a worker has under way.
const WINDOW: u64 = 16_384;
const WORDS: usize = (WINDOW / 64) as usize;

/// Which sequence numbers of one channel were seen. 2 KB.
pub struct Replay {
    /// One more than the highest number seen.
    next: u64,
    /// Bit `n % WINDOW` says whether `n` was seen, for `n` in `next - WINDOW .. next`.
    bits: Box<[u64; WORDS]>,
}

impl Default for Replay {
    fn default() -> Self {
        Self { next: 0, bits: Box::new([0; WORDS]) }
    }
}

impl Replay {
    /// Could this number still be accepted? A cheap look before the cryptography; [`Replay::accept`] decides.
    pub fn is_fresh(&self, sequence: u64) -> bool {
        if sequence >= self.next {
            return true;
        }
        self.next - sequence <= WINDOW && !self.bit(sequence)
    }

    /// Marks a number as seen. False if it was seen before or is too old. Call it only after authentication, or a stranger
    /// could move the window.
    pub fn accept(&mut self, sequence: u64) -> bool {
        if !self.is_fresh(sequence) {
            return false;
        }
        if sequence >= self.next {
            if sequence - self.next >= WINDOW {
                self.bits.fill(0);
            } else {
                for skipped in self.next..sequence {
                    self.set(skipped, false);
                }
            }
            self.next = sequence + 1;
        }
        self.set(sequence, true);
        true
    }

    fn bit(&self, sequence: u64) -> bool {
        let slot = sequence % WINDOW;
        self.bits.get((slot / 64) as usize).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    fn set(&mut self, sequence: u64, seen: bool) {
        let slot = sequence % WINDOW;
        if let Some(word) = self.bits.get_mut((slot / 64) as usize) {
            let mask = 1u64 << (slot % 64);
            *word = if seen { *word | mask } else { *word & !mask };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn each_number_once_in_any_order() {
        let mut replay = Replay::default();
        for n in [5, 0, 3, WINDOW + 2, 7, 6] {
            assert!(replay.accept(n), "{n}");
            assert!(!replay.accept(n), "{n} again");
        }
        assert!(!replay.is_fresh(2), "behind the window");
        assert!(replay.accept(4 * WINDOW));
        assert!(!replay.is_fresh(WINDOW + 3));
        assert!(replay.accept(4 * WINDOW - WINDOW + 1), "the oldest inside the window");
    }

    proptest! {
        #[test]
        fn never_accepts_twice(numbers in prop::collection::vec(0u64..40_000, 1..400)) {
            let mut replay = Replay::default();
            let mut seen = HashSet::new();
            let mut highest = 0;
            for n in numbers {
                highest = highest.max(n);
                let expected = !seen.contains(&n) && n + WINDOW > highest;
                prop_assert_eq!(replay.accept(n), expected);
                if expected { seen.insert(n); }
            }
        }
    }
}
