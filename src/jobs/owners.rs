//! Which keys sign for one backend, as far as workers care: whose jobs they take, and whose locks they heed. What an initiator may do, and
//! which keys it owns, is the nodes' decision.

use crate::wire::InitiatorId;
use std::collections::HashMap;
use std::str::FromStr;

/// The initiators that a worker serves.
#[derive(Debug, Clone, Default)]
pub struct Owners(HashMap<InitiatorId, Owner>);

#[derive(Debug, Clone)]
struct Owner {
    /// One for all keys of a backend.
    name: InitiatorId,
    /// Whether jobs that the key signed are taken.
    served: bool,
}

/// The keys of one backend, as a setting names them: `U…`; or `U…=U…` while it changes its key; or `U…=-U…` once the other one is a former
/// key, which signs nothing any more.
#[derive(Debug, Clone)]
pub struct Names {
    /// Each with whether its jobs are taken; of the first they are.
    keys: Vec<(InitiatorId, bool)>,
}

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = |name: &str| {
            let former = name.strip_prefix('-');
            let key = former.unwrap_or(name).parse::<InitiatorId>().map_err(|error| error.to_string())?;
            Ok((key, former.is_none()))
        };
        let keys = text.split('=').map(read).collect::<Result<Vec<_>, String>>()?;
        match keys.first() {
            Some((_, true)) => Ok(Self { keys }),
            _ => Err("the first key of a backend is its present one, and has no `-`".to_owned()),
        }
    }
}

impl Owners {
    /// Those of these backends.
    ///
    /// # Errors
    /// A key that is named twice.
    pub fn new(backends: Vec<Names>) -> Result<Self, InitiatorId> {
        let mut owners = HashMap::new();
        for Names { keys } in backends {
            let Some((first, _)) = keys.first().cloned() else { continue };
            for (key, served) in keys {
                if owners.insert(key.clone(), Owner { name: first.clone(), served }).is_some() {
                    return Err(key);
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
        self.0.get(key).is_some_and(|owner| owner.served)
    }

    /// One name for all keys of a backend, former ones included: what was locked on a job of one of them stays locked for the others.
    #[must_use]
    pub fn of(&self, key: InitiatorId) -> InitiatorId {
        self.0.get(&key).map_or(key, |owner| owner.name.clone())
    }
}
