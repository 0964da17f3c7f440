//! The queue under a model checker, which stops tasks between any two steps and tries orders that a machine may never show.
//! A task that nobody wakes any more is a deadlock to it, so a lost wake-up fails every test here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use super::{Keeper, Key, KeyedMutex, Queue, Steps};
use crate::wire::Lane;
use futures::poll;
use shuttle::future::{block_on, yield_now};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::Mutex;
use shuttle::{Config, Runner, thread};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex as Unseen;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::Poll;

/// Keeps in a map that the checker sees.
struct Watched;

impl Keeper for Watched {
    type Map<K: Key, V: Default> = Mutex<HashMap<K, V>>;
}

impl<K: Key, V: Default> Steps<K, V> for Mutex<HashMap<K, V>> {
    fn step<R>(&self, key: &K, step: impl FnOnce(&mut Option<V>) -> R) -> R {
        let mut map = self.lock().unwrap();
        let mut value = map.remove(key);
        let result = step(&mut value);
        map.extend(value.map(|value| (key.clone(), value)));
        result
    }

    fn keys(&self) -> usize {
        self.lock().unwrap().len()
    }
}

/// The same, broken: what it reads and what it writes are two steps.
struct Torn;
struct TornMap<K, V>(Mutex<HashMap<K, V>>);

impl Keeper for Torn {
    type Map<K: Key, V: Default> = TornMap<K, V>;
}

impl<K, V> Default for TornMap<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Key, V: Default> Steps<K, V> for TornMap<K, V> {
    fn step<R>(&self, key: &K, step: impl FnOnce(&mut Option<V>) -> R) -> R {
        let mut value = self.0.lock().unwrap().remove(key);
        let result = step(&mut value);
        self.0.lock().unwrap().extend(value.map(|value| (key.clone(), value)));
        result
    }

    fn keys(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// What goes with the key: how many holders have handed it on. Counted while it exists.
struct Luggage(u32, Arc<AtomicU32>);

impl Luggage {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(0, count.clone())
    }
}

impl Drop for Luggage {
    fn drop(&mut self) {
        self.1.fetch_sub(1, SeqCst);
    }
}

/// What a task does.
#[derive(Clone, Copy, PartialEq)]
enum Conduct {
    /// Waits for its turn, works, leaves.
    Patient,
    /// Asks, and gives up where it has to wait: before, while or after the key is handed to it.
    GivesUp,
}

/// When tasks asked, waited and held a key; the checker does not stop at these notes.
#[derive(Default)]
struct Notes {
    asked: Vec<usize>,
    waits: HashMap<usize, usize>,
    asks: HashMap<usize, usize>,
    held: Vec<usize>,
}

/// A key, and in which lane and how a task asks for it.
type Task = (u8, Lane, Conduct);

/// Each task asks once for its key. Afterwards everything that must hold is checked.
fn scenario<M: Keeper + 'static>(tasks: &'static [Task])
where
    M::Map<u8, Queue<u8, Luggage, M>>: Send + Sync,
{
    let mutex = KeyedMutex::<u8, Luggage, M>::kept(8);
    let inside: Arc<[AtomicU32; 2]> = Arc::default();
    let luggage: Arc<AtomicU32> = Arc::default();
    let notes: Arc<Unseen<Notes>> = Arc::default();
    let threads: Vec<_> = (0..tasks.len())
        .map(|me| {
            let (mutex, inside, luggage, notes) = (mutex.clone(), inside.clone(), luggage.clone(), notes.clone());
            let (key, lane, conduct) = tasks[me];
            thread::spawn(move || {
                block_on(async move {
                    let note = |change: fn(&mut Notes, usize, usize)| {
                        let mut notes = notes.lock().unwrap();
                        let now = notes.asked.len();
                        change(&mut notes, me, now);
                        notes.asked.push(me);
                    };
                    let mut turn = pin!(mutex.lock(key, lane));
                    note(|notes, me, now| _ = notes.asks.insert(me, now));
                    let mut guard = match poll!(&mut turn) {
                        Poll::Ready(guard) => guard.unwrap(),
                        Poll::Pending if conduct == Conduct::GivesUp => return yield_now().await,
                        Poll::Pending => {
                            note(|notes, me, now| _ = notes.waits.insert(me, now));
                            turn.await.unwrap()
                        }
                    };
                    assert_eq!(inside[usize::from(key)].fetch_add(1, SeqCst), 0, "two holders");
                    note(|notes, me, _| notes.held.push(me));
                    let carried = guard.luggage.take();
                    yield_now().await;
                    let mut carried = carried.unwrap_or_else(|| Luggage::new(&luggage));
                    carried.0 += 1;
                    guard.luggage = Some(carried);
                    inside[usize::from(key)].fetch_sub(1, SeqCst);
                    drop(guard);
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(mutex.held(), 0, "an entry was left behind");
    assert_eq!(luggage.load(SeqCst), 0, "luggage was left behind");
    let notes = notes.lock().unwrap();
    let place = |task: &usize| notes.held.iter().position(|held| held == task);
    for (early, waits) in &notes.waits {
        assert!(place(early).is_some(), "who waits gets the key");
        // Whoever asked when this one waited already comes after it, except in a more urgent lane.
        let (key, lane, _) = tasks[*early];
        let after = |late: usize| tasks[late].0 == key && (lane == Lane::Interactive || tasks[late].1 == lane);
        let later = notes.asks.iter().filter(|(late, asks)| after(**late) && *asks > waits);
        for (late, _) in later {
            assert!(place(late).is_none_or(|late| Some(late) > place(early)), "out of turn");
        }
    }
}

fn check(scheduler: impl Scheduler + 'static, scenario: fn()) {
    Runner::new(scheduler, Config::new()).run(scenario);
}

use Conduct::{GivesUp, Patient};
use Lane::{Bulk, Interactive};
const CROWD: &[Task] = &[
    (0, Interactive, Patient),
    (0, Bulk, GivesUp),
    (0, Bulk, Patient),
    (1, Interactive, Patient),
    (0, Interactive, GivesUp),
    (0, Bulk, Patient),
    (1, Bulk, GivesUp),
];

#[test]
fn a_crowd_in_random_orders() {
    check(RandomScheduler::new(3_000), || scenario::<Watched>(CROWD));
}

#[test]
fn a_crowd_in_orders_with_few_switches() {
    check(PctScheduler::new(3, 3_000), || scenario::<Watched>(CROWD));
}

#[test]
fn a_hand_over_in_every_order() {
    const TWO: &[Task] = &[(0, Interactive, Patient), (0, Interactive, GivesUp)];
    const THREE: &[Task] = &[(0, Interactive, Patient), (0, Bulk, GivesUp), (0, Interactive, Patient)];
    check(DfsScheduler::new(None, false), || scenario::<Watched>(TWO));
    check(DfsScheduler::new(Some(60_000), false), || scenario::<Watched>(THREE));
}

/// The checker sees what it is there for. Which of the checks meets it first depends on the order that is tried: two holders, a
/// count that went below zero, an entry left behind, or nobody who goes on.
#[test]
fn a_step_that_is_not_atomic_is_found() {
    const ALL: &[Task] = &[(0, Interactive, Patient), (0, Bulk, Patient), (0, Interactive, Patient)];
    let run = || check(RandomScheduler::new(3_000), || scenario::<Torn>(ALL));
    assert!(std::panic::catch_unwind(run).is_err(), "it is not found");
}
