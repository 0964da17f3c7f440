//! Which refusals the audit log tells: of an initiator's of one kind so many a minute, so that nobody fills it.

use crate::wire::{ErrorCode, Op};
use std::collections::HashMap;

/// Refusals that are told of a minute, which begins with the first of them.
pub const TOLD: u32 = 60;
const MINUTE: u64 = 60_000;

/// Whose, of what and why: the initiator's name in the policy, where all that it does not know are one. So there are never more than the
/// names, operations and codes make.
type Kind = (Option<String>, Op, ErrorCode);

/// What was refused of late.
#[derive(Debug, Default)]
pub struct Noted(HashMap<Kind, Minute>);

#[derive(Debug)]
struct Minute {
    /// Unix milliseconds.
    began: u64,
    refused: u32,
}

/// What the audit log says of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    Refused,
    /// Further ones of this minute are not told.
    Withheld,
}

impl Noted {
    /// Counts a refusal. `None`: the log says nothing of it.
    pub fn count(&mut self, kind: Kind, now: u64) -> Option<Entry> {
        let fresh = Minute { began: now, refused: 0 };
        let minute = self.0.entry(kind).or_insert(fresh);
        // Whoever comes later may have looked at the clock earlier; one that was set back by more begins another minute too.
        if now.abs_diff(minute.began) >= MINUTE {
            *minute = Minute { began: now, refused: 0 };
        }
        minute.refused = minute.refused.saturating_add(1);
        match minute.refused {
            0..=TOLD => Some(Entry::Refused),
            refused => (refused == TOLD + 1).then_some(Entry::Withheld),
        }
    }

    /// Forgets the names for which this says no.
    pub fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.0.retain(|(name, ..), _| name.as_deref().is_none_or(&known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_minute_of_each_kind() {
        let mut noted = Noted::default();
        let kind = |name: Option<&str>| (name.map(str::to_owned), Op::Sign, ErrorCode::NotPermitted);
        let mut told = |kind: Kind, now| {
            let entries: Vec<_> = (0..2 * TOLD).filter_map(|_| noted.count(kind.clone(), now)).collect();
            let refused = entries.iter().filter(|entry| **entry == Entry::Refused).count() as u32;
            (refused, entries.last() == Some(&Entry::Withheld))
        };
        let all = (TOLD, true);
        assert_eq!(told(kind(Some("a")), 100_000), all);
        for now in [100_000 + MINUTE - 1, 99_999, 100_000 - MINUTE + 1] {
            assert_eq!(told(kind(Some("a")), now), (0, false), "{now}");
        }
        // Another name, one whom the policy does not know, another operation, another reason.
        let (a, of_b) = (Some("a".to_owned()), kind(Some("b")));
        for other in
            [of_b, kind(None), (a.clone(), Op::Generate, ErrorCode::NotPermitted), (a, Op::Sign, ErrorCode::UnknownKey)]
        {
            assert_eq!(told(other, 100_000), all);
        }
        // The next minute, and a clock that was set back.
        for now in [100_000 + MINUTE, 1] {
            assert_eq!(told(kind(Some("a")), now), all, "{now}");
        }
        noted.retain(|name| name == "a");
        assert_eq!(noted.0.len(), 4, "three of a, one of those without a name");
    }
}
