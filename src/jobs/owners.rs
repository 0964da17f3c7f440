//! Which keys sign for one backend, as far as workers care: whose jobs they take, and whose locks they heed. What an initiator may do, and
//! which keys it owns, is the nodes' decision.

use crate::wire::InitiatorId;
use std::collections::HashMap;
use std::str::FromStr;

/// The initiators that a worker serves.
#[derive(Debug, Clone, Default)]
pub struct Owners(HashMap<InitiatorId, InitiatorId>);

/// The keys of one backend, as a setting names them: `U…`, or `U…=U…` while it changes its key and after.
#[derive(Debug, Clone)]
pub struct Names(Vec<InitiatorId>);

impl FromStr for Names {
    type Err = <InitiatorId as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split('=').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Owners {
    /// Those of these backends. `Err` with a key that is named twice.
    ///
    /// # Errors
    /// That key.
    pub fn new(backends: Vec<Names>) -> Result<Self, InitiatorId> {
        let mut owners = HashMap::new();
        for Names(names) in backends {
            let Some(first) = names.first().cloned() else { continue };
            for name in names {
                if owners.insert(name.clone(), first.clone()).is_some() {
                    return Err(name);
                }
            }
        }
        Ok(Self(owners))
    }

    /// Nobody?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether jobs that this key signed are taken.
    #[must_use]
    pub fn serves(&self, key: &InitiatorId) -> bool {
        self.0.contains_key(key)
    }

    /// One name for all keys of a backend.
    #[must_use]
    pub fn of(&self, key: InitiatorId) -> InitiatorId {
        self.0.get(&key).cloned().unwrap_or(key)
    }
}
