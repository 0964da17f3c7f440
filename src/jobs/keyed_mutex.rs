//! One job at a time per key inside this process: a fair mutex per key, first come, first served.
//!
//! A key that nobody holds has no entry in the map, so memory follows the jobs in hand, not the keys ever seen. No map guard
//! is held across an await. Node 1's single session slot per key is what makes concurrent jobs *safe*; this mutex only keeps
//! the workers from wasting sessions on `KEY_BUSY`.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A mutex for each key. Clones share the same keys.
pub struct KeyedMutex<K: Eq + Hash + Clone> {
    shared: Arc<Shared<K>>,
}

struct Shared<K: Eq + Hash + Clone> {
    /// An entry exists exactly while its key is held; its queue holds those who wait, oldest first.
    queues: DashMap<K, VecDeque<oneshot::Sender<Guard<K>>>>,
    max_waiters: usize,
}

/// Too many jobs already wait for this key in this process: give the job back to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many jobs wait for this key")]
pub struct TooManyWaiters;

/// The right to work on one key. Dropping it passes the key on to the oldest waiter.
pub struct Guard<K: Eq + Hash + Clone> {
    /// `None` once the key has been passed on.
    key: Option<K>,
    shared: Arc<Shared<K>>,
}

impl<K: Eq + Hash + Clone> KeyedMutex<K> {
    /// A set of mutexes where at most `max_waiters` callers queue behind the holder of each key.
    pub fn new(max_waiters: usize) -> Self {
        Self { shared: Arc::new(Shared { queues: DashMap::new(), max_waiters }) }
    }

    /// Waits for `key`, after everyone who asked before. The order is fixed when the future is first polled. Dropping the
    /// future gives up the place without disturbing the others, also when the key was being handed over at that moment.
    ///
    /// # Errors
    /// [`TooManyWaiters`] at once, without waiting, if the key's queue is full.
    pub async fn lock(&self, key: K) -> Result<Guard<K>, TooManyWaiters> {
        let turn = match self.shared.queues.entry(key) {
            Entry::Vacant(free) => {
                let guard = Guard { key: Some(free.key().clone()), shared: self.shared.clone() };
                free.insert(VecDeque::new());
                return Ok(guard);
            }
            Entry::Occupied(mut held) => {
                let waiters = held.get_mut();
                if waiters.len() >= self.shared.max_waiters {
                    // Those who gave up still stand in the queue; they must not keep others out.
                    waiters.retain(|waiter| !waiter.is_closed());
                }
                if waiters.len() >= self.shared.max_waiters {
                    return Err(TooManyWaiters);
                }
                let (hand_over, turn) = oneshot::channel();
                waiters.push_back(hand_over);
                turn
            }
        };
        // The sender is dropped unused only together with the whole map, while `self` keeps it alive.
        turn.await.map_err(|_| TooManyWaiters)
    }

    /// Whether a caller would be refused right now: worth asking before work that would be in vain.
    pub fn is_full(&self, key: &K) -> bool {
        self.shared.queues.get(key).is_some_and(|waiters| {
            waiters.len() >= self.shared.max_waiters && !waiters.iter().any(oneshot::Sender::is_closed)
        })
    }

    /// How many keys are held right now.
    pub fn held(&self) -> usize {
        self.shared.queues.len()
    }
}

impl<K: Eq + Hash + Clone> Clone for KeyedMutex<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Eq + Hash + Clone> Guard<K> {
    /// The key that is held.
    pub fn key(&self) -> Option<&K> {
        self.key.as_ref()
    }
}

impl<K: Eq + Hash + Clone> Drop for Guard<K> {
    fn drop(&mut self) {
        // A loop and not a recursion: any number of waiters in a row may have given up.
        while let Some(key) = self.key.take() {
            let Some(waiter) = self.shared.pass_on(&key) else {
                return;
            };
            let guard = Guard { key: Some(key), shared: self.shared.clone() };
            // If the waiter's future is dropped after this send, the guard inside the channel is dropped with it and passes
            // the key on by itself.
            if let Err(mut refused) = waiter.send(guard) {
                self.key = refused.key.take();
            }
        }
    }
}

impl<K: Eq + Hash + Clone> Shared<K> {
    /// The oldest waiter for `key`; where there is none the key's entry is removed.
    fn pass_on(&self, key: &K) -> Option<oneshot::Sender<Guard<K>>> {
        match self.queues.entry(key.clone()) {
            Entry::Occupied(mut held) => {
                let next = held.get_mut().pop_front();
                if next.is_none() {
                    held.remove();
                }
                next
            }
            Entry::Vacant(_) => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn passes_a_key_on_in_the_order_of_arrival() {
        let mutex = KeyedMutex::new(100);
        let first = mutex.lock("k").await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for i in 0..50 {
            let (mutex, order) = (mutex.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let _guard = mutex.lock("k").await.unwrap();
                order.lock().unwrap().push(i);
            }));
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
        assert_eq!(mutex.held(), 0);
    }

    #[tokio::test]
    async fn keys_do_not_wait_for_each_other() {
        let mutex = KeyedMutex::new(1);
        let _a = mutex.lock("a").await.unwrap();
        let b = tokio::time::timeout(Duration::from_secs(1), mutex.lock("b")).await;
        assert_eq!(b.unwrap().unwrap().key(), Some(&"b"));
    }

    #[tokio::test]
    async fn refuses_when_the_queue_is_full_and_counts_only_live_waiters() {
        let mutex = KeyedMutex::new(2);
        let held = mutex.lock(7).await.unwrap();
        let mut one = Box::pin(mutex.lock(7));
        let mut two = Box::pin(mutex.lock(7));
        assert!(futures::poll!(&mut one).is_pending());
        assert!(futures::poll!(&mut two).is_pending());
        assert!(mutex.is_full(&7));
        assert_eq!(mutex.lock(7).await.err(), Some(TooManyWaiters));
        drop(one);
        assert!(!mutex.is_full(&7));
        let mut three = Box::pin(mutex.lock(7));
        assert!(futures::poll!(&mut three).is_pending());
        drop(held);
        let two = two.await.unwrap();
        assert!(futures::poll!(&mut three).is_pending());
        drop(two);
        drop(three.await.unwrap());
        assert_eq!(mutex.held(), 0);
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_during_the_hand_over_passes_the_key_on() {
        let mutex = KeyedMutex::new(10);
        let held = mutex.lock(()).await.unwrap();
        let mut one = Box::pin(mutex.lock(()));
        let mut two = Box::pin(mutex.lock(()));
        assert!(futures::poll!(&mut one).is_pending());
        assert!(futures::poll!(&mut two).is_pending());
        drop(held); // the guard is now inside `one`'s channel, not yet received
        drop(one);
        drop(two.await.unwrap());
        assert_eq!(mutex.held(), 0);
    }

    #[tokio::test]
    async fn many_waiters_that_gave_up_do_not_exhaust_the_stack() {
        let mutex = KeyedMutex::new(200_000);
        let held = mutex.lock(()).await.unwrap();
        let mut waiters: Vec<_> = (0..100_000).map(|_| Box::pin(mutex.lock(()))).collect();
        for waiter in &mut waiters {
            assert!(futures::poll!(waiter).is_pending());
        }
        drop(waiters);
        drop(held);
        assert_eq!(mutex.held(), 0);
    }

    /// Random keys, random cancellations at random moments, four threads: never two holders of one key, and no entry remains.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn excludes_under_stress_and_leaves_nothing_behind() {
        let mutex = KeyedMutex::new(64);
        let inside: Arc<HashMap<u8, AtomicU32>> = Arc::new((0..5).map(|k| (k, AtomicU32::new(0))).collect());
        let entered = Arc::new(AtomicU32::new(0));
        let mut tasks = Vec::new();
        for t in 0..64_u64 {
            let (mutex, inside, entered) = (mutex.clone(), inside.clone(), entered.clone());
            tasks.push(tokio::spawn(async move {
                let mut seed = t.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
                for _ in 0..200 {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    let key = (seed % 5) as u8;
                    let work = async {
                        let Ok(guard) = mutex.lock(key).await else { return };
                        assert_eq!(inside[&key].fetch_add(1, Ordering::SeqCst), 0, "two holders");
                        // The count goes down also when this future is cancelled, and before the guard is dropped.
                        let _leave = Leave(&inside[&key], guard);
                        entered.fetch_add(1, Ordering::SeqCst);
                        for _ in 0..seed % 4 {
                            tokio::task::yield_now().await;
                        }
                    };
                    let _ = tokio::time::timeout(Duration::from_micros(seed % 300), work).await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert!(entered.load(Ordering::SeqCst) > 500);
        assert_eq!(mutex.held(), 0);
    }

    struct Leave<'a>(&'a AtomicU32, Guard<u8>);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            assert!(self.1.key().is_some());
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    proptest::proptest! {
        /// Whatever the sequence of locking, releasing and giving up, each key is handed on first come, first served.
        #[test]
        fn follows_a_model_queue(steps in proptest::collection::vec((0..3_u8, 0..3_u8), 1..200)) {
            use futures::{FutureExt, future::LocalBoxFuture};
            let mutex = KeyedMutex::new(4);
            let mut model: HashMap<u8, VecDeque<u32>> = HashMap::new(); // front = holder
            let mut guards: HashMap<u32, Guard<u8>> = HashMap::new();
            let mut waiting: HashMap<u32, LocalBoxFuture<'static, Result<Guard<u8>, TooManyWaiters>>> = HashMap::new();
            for (next, (action, key)) in steps.into_iter().enumerate() {
                let id = next as u32;
                let queue = model.entry(key).or_default();
                match action {
                    0 => {
                        let shared = mutex.clone();
                        let mut wait = async move { shared.lock(key).await }.boxed_local();
                        match wait.as_mut().now_or_never() {
                            Some(Ok(guard)) => {
                                assert!(queue.is_empty());
                                queue.push_back(id);
                                guards.insert(id, guard);
                            }
                            Some(Err(TooManyWaiters)) => assert_eq!(queue.len(), 5),
                            None => {
                                assert!(!queue.is_empty() && queue.len() <= 4);
                                queue.push_back(id);
                                waiting.insert(id, wait);
                            }
                        }
                    }
                    1 => {
                        if let Some(holder) = queue.pop_front() {
                            guards.remove(&holder).expect("the holder has the guard");
                            if let Some(heir) = queue.front() {
                                let guard = waiting.remove(heir).expect("waits").now_or_never().expect("woken").expect("granted");
                                guards.insert(*heir, guard);
                            }
                        }
                    }
                    _ => {
                        if queue.len() > 1 && let Some(quitter) = queue.pop_back() {
                            waiting.remove(&quitter);
                        }
                    }
                }
            }
            drop(waiting);
            drop(guards);
            assert_eq!(mutex.held(), 0);
        }
    }
}
