//! One job at a time per key inside this process: a fair mutex per key. In each lane who comes first is served first; interactive
//! jobs come before bulk jobs, but after [`OVERTAKES`] that overtook one in a row it is the oldest bulk job's turn.
//!
//! A key that nobody holds has no entry in the map, so memory follows the jobs in hand, not the keys ever seen. No map guard
//! is held across an await. Node 1's single session slot per key is what makes concurrent jobs *safe*; this mutex only keeps
//! the workers from wasting sessions on `KEY_BUSY`.
//!
//! Where the queues are kept is behind [`Keeper`], so that a model checker can stop between any two steps (`model`). The
//! hand-over itself is tokio's one-shot channel, which has a model of its own.

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use crate::wire::Lane;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::oneshot;

/// How many interactive jobs in a row have their turn at a key for which a bulk job waits.
pub const OVERTAKES: u32 = 8;

/// What a key must be able to do.
pub trait Key: Eq + Hash + Clone {}
impl<K: Eq + Hash + Clone> Key for K {}

/// Keeps a value for each of some keys.
pub trait Keeper {
    /// The map.
    type Map<K: Key, V: Default>: Steps<K, V>;
}

/// A map that changes in steps, each on one key, and each of them atomic.
pub trait Steps<K: Key, V: Default>: Default {
    /// Runs `step` on what is kept under `key`; afterwards that is kept, if it is something.
    fn step<R>(&self, key: &K, step: impl FnOnce(&mut Option<V>) -> R) -> R;

    /// How many keys there are.
    fn keys(&self) -> usize;
}

/// Keeps in a `dashmap`.
pub struct Dash;

impl Keeper for Dash {
    type Map<K: Key, V: Default> = DashMap<K, V>;
}

impl<K: Key, V: Default> Steps<K, V> for DashMap<K, V> {
    fn step<R>(&self, key: &K, step: impl FnOnce(&mut Option<V>) -> R) -> R {
        match self.entry(key.clone()) {
            Entry::Vacant(vacant) => {
                let mut value = None;
                let result = step(&mut value);
                if let Some(value) = value {
                    vacant.insert(value);
                }
                result
            }
            Entry::Occupied(mut occupied) => {
                let mut value = Some(std::mem::take(occupied.get_mut()));
                let result = step(&mut value);
                match value {
                    Some(value) => *occupied.get_mut() = value,
                    None => drop(occupied.remove()),
                }
                result
            }
        }
    }

    fn keys(&self) -> usize {
        self.len()
    }
}

/// A mutex for each key. With a key goes what its holders hand on to each other, an `L`. Clones share the same keys.
pub struct KeyedMutex<K: Key, L = (), M: Keeper = Dash> {
    shared: Arc<Shared<K, L, M>>,
}

/// How the key is handed to one who waits for it.
type HandOver<K, L, M> = oneshot::Sender<Guard<K, L, M>>;

/// Those who wait for one key, oldest first.
struct Queue<K: Key, L, M: Keeper> {
    interactive: VecDeque<HandOver<K, L, M>>,
    bulk: VecDeque<HandOver<K, L, M>>,
    /// How many interactive ones in a row had their turn while a bulk one waited.
    overtaken: u32,
}

impl<K: Key, L, M: Keeper> Default for Queue<K, L, M> {
    fn default() -> Self {
        Self { interactive: VecDeque::new(), bulk: VecDeque::new(), overtaken: 0 }
    }
}

impl<K: Key, L, M: Keeper> Queue<K, L, M> {
    const fn of(&self, lane: Lane) -> &VecDeque<HandOver<K, L, M>> {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
        }
    }

    const fn of_mut(&mut self, lane: Lane) -> &mut VecDeque<HandOver<K, L, M>> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }

    /// Whose turn it is.
    fn next(&mut self) -> Option<HandOver<K, L, M>> {
        // Who gave up neither has a turn nor is overtaken.
        for waiters in [&mut self.interactive, &mut self.bulk] {
            while waiters.front().is_some_and(oneshot::Sender::is_closed) {
                waiters.pop_front();
            }
        }
        if self.bulk.is_empty() {
            self.overtaken = 0;
            return self.interactive.pop_front();
        }
        if self.overtaken < OVERTAKES
            && let Some(waiter) = self.interactive.pop_front()
        {
            self.overtaken += 1;
            return Some(waiter);
        }
        self.overtaken = 0;
        self.bulk.pop_front()
    }
}

struct Shared<K: Key, L, M: Keeper> {
    /// A queue exists exactly while its key is held.
    queues: M::Map<K, Queue<K, L, M>>,
    max_waiters: usize,
}

/// Too many jobs already wait for this key in this process: give the job back to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many jobs wait for this key")]
pub struct TooManyWaiters;

/// The right to work on one key. Dropping it passes the key on to the waiter whose turn it is.
pub struct Guard<K: Key, L = (), M: Keeper = Dash> {
    /// `None` once the key has been passed on.
    key: Option<K>,
    /// What goes with the key. `None` for whoever found it free; dropped when it becomes free.
    pub luggage: Option<L>,
    shared: Arc<Shared<K, L, M>>,
}

/// What a caller finds.
enum Found<K: Key, L, M: Keeper> {
    Free,
    Wait(oneshot::Receiver<Guard<K, L, M>>),
}

impl<K: Key, L> KeyedMutex<K, L> {
    /// A set of mutexes where at most `max_waiters` callers of each lane queue behind the holder of each key.
    pub fn new(max_waiters: usize) -> Self {
        Self::kept(max_waiters)
    }
}

impl<K: Key, L, M: Keeper> KeyedMutex<K, L, M> {
    /// As [`KeyedMutex::new`], with the queues in another map.
    pub fn kept(max_waiters: usize) -> Self {
        Self { shared: Arc::new(Shared { queues: M::Map::default(), max_waiters }) }
    }

    /// Waits for `key`, after everyone of the lane who asked before. The order is fixed when the future is first polled. Dropping the
    /// future gives up the place without disturbing the others, also when the key was being handed over at that moment.
    ///
    /// # Errors
    /// [`TooManyWaiters`] at once, without waiting, if the lane's queue for the key is full.
    pub async fn lock(&self, key: K, lane: Lane) -> Result<Guard<K, L, M>, TooManyWaiters> {
        let found = self.shared.queues.step(&key, |queue| {
            let Some(waiters) = queue.as_mut().map(|queue| queue.of_mut(lane)) else {
                *queue = Some(Queue::default());
                return Ok(Found::Free);
            };
            if waiters.len() >= self.shared.max_waiters {
                // Those who gave up still stand in the queue; they must not keep others out.
                waiters.retain(|waiter| !waiter.is_closed());
            }
            if waiters.len() >= self.shared.max_waiters {
                return Err(TooManyWaiters);
            }
            let (hand_over, turn) = oneshot::channel();
            waiters.push_back(hand_over);
            Ok(Found::Wait(turn))
        })?;
        match found {
            Found::Free => Ok(Guard { key: Some(key), luggage: None, shared: self.shared.clone() }),
            // The sender is dropped unused only together with the whole map, while `self` keeps it alive.
            Found::Wait(turn) => turn.await.map_err(|_| TooManyWaiters),
        }
    }

    /// Whether a caller would be refused right now: worth asking before work that would be in vain.
    pub fn is_full(&self, key: &K, lane: Lane) -> bool {
        let max = self.shared.max_waiters;
        self.shared.queues.step(key, |queue| {
            let waiters = queue.as_ref().map(|queue| queue.of(lane));
            waiters.is_some_and(|w| w.len() >= max && !w.iter().any(oneshot::Sender::is_closed))
        })
    }

    /// How many keys are held right now.
    pub fn held(&self) -> usize {
        self.shared.queues.keys()
    }
}

impl<K: Key, L, M: Keeper> Clone for KeyedMutex<K, L, M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Key, L, M: Keeper> Guard<K, L, M> {
    /// The key that is held.
    pub fn key(&self) -> Option<&K> {
        self.key.as_ref()
    }
}

impl<K: Key, L, M: Keeper> Drop for Guard<K, L, M> {
    fn drop(&mut self) {
        // A loop and not a recursion: any number of waiters in a row may have given up.
        while let Some(key) = self.key.take() {
            let Some(waiter) = self.shared.pass_on(&key) else {
                return;
            };
            let guard = Guard { key: Some(key), luggage: self.luggage.take(), shared: self.shared.clone() };
            // If the waiter's future is dropped after this send, the guard inside the channel is dropped with it and passes
            // the key on by itself.
            if let Err(mut refused) = waiter.send(guard) {
                self.key = refused.key.take();
                self.luggage = refused.luggage.take();
            }
        }
    }
}

impl<K: Key, L, M: Keeper> Shared<K, L, M> {
    /// The waiter for `key` whose turn it is; where there is none the key's entry is removed.
    fn pass_on(&self, key: &K) -> Option<HandOver<K, L, M>> {
        self.queues.step(key, |queue| {
            let next = queue.as_mut().and_then(Queue::next);
            if next.is_none() {
                *queue = None;
            }
            next
        })
    }
}
