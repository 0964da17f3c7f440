//! Batches: instances of the protocol side by side (docs/protocol.md, section 5.1). There is nothing that runs a batch here, because
//! its items have nothing to do with each other; only what becomes of all of them is one question.

use crate::error::{Abort, Result};

/// Most items that go side by side in one message.
pub const MAX_SIDE_BY_SIDE: usize = 9;

/// What becomes of a sub-batch whose items were each checked to the end: all of them passed, or the failure that counts. A failed
/// check that locks the key counts before any other, so that no failure beside it hides it.
///
/// # Errors
/// The first failure that locks, else the first one.
pub fn all<T>(checked: impl IntoIterator<Item = Result<T>>) -> Result<Vec<T>> {
    let mut passed = Vec::new();
    let mut failed: Option<Abort> = None;
    for item in checked {
        match item {
            Ok(item) => passed.push(item),
            Err(abort) if failed.is_none_or(|first| abort.is_ban() && !first.is_ban()) => failed = Some(abort),
            Err(_) => {}
        }
    }
    failed.map_or(Ok(passed), Err)
}

/// A message of `count` items' messages, `len` bytes each; `None` for any other length.
#[must_use]
pub fn split(message: &[u8], count: usize, len: usize) -> Option<Vec<&[u8]>> {
    (count > 0 && count <= MAX_SIDE_BY_SIDE && message.len() == count * len)
        .then(|| message.chunks_exact(len).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Party;

    #[test]
    fn a_lock_counts_before_every_other_failure() {
        let (harmless, abort) = (Abort::peer(Party::Client, "session"), Abort::peer(Party::Client, "gamma_u"));
        let (lock, later) = (Abort::lock(Party::Client, "ot_consistency"), Abort::lock(Party::Client, "rvole_mu"));
        assert_eq!(all([Ok(1), Ok(2)]), Ok(vec![1, 2]));
        assert_eq!(all([Ok(1), Err(harmless), Err(abort)]), Err(harmless));
        assert_eq!(all([Err(harmless), Ok(1), Err(lock), Err(abort), Err(later)]), Err(lock));
        assert_eq!(all([Err(later), Err(lock), Ok(1)]), Err(later));
    }

    #[test]
    fn a_message_holds_exactly_its_items() {
        assert_eq!(split(&[1, 2, 3, 4], 2, 2).unwrap(), [[1, 2], [3, 4]]);
        for (len, count) in [(0, 0), (4, 0), (3, 2), (5, 2), (4, 1), (20, 10), (0, 1)] {
            assert!(split(&vec![0; len], count, 2).is_none(), "{len} bytes, {count} items");
        }
    }
}
