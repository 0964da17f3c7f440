//! What the queue does, one step after the other and under stress.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use super::*;
use Lane::{Bulk, Interactive};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

fn new<K: Key>(max_waiters: usize) -> KeyedMutex<K> {
    KeyedMutex::new(max_waiters)
}

#[tokio::test]
async fn passes_a_key_on_in_the_order_of_arrival() {
    let mutex = new(100);
    let first = mutex.lock("k", Interactive).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for i in 0..50 {
        let (mutex, order) = (mutex.clone(), order.clone());
        tasks.push(tokio::spawn(async move {
            let _guard = mutex.lock("k", Interactive).await.unwrap();
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
    let mutex = new(1);
    let _a = mutex.lock("a", Interactive).await.unwrap();
    let b = tokio::time::timeout(Duration::from_secs(1), mutex.lock("b", Interactive)).await;
    assert_eq!(b.unwrap().unwrap().key(), Some(&"b"));
}

#[tokio::test]
async fn refuses_when_the_queue_is_full_and_counts_only_live_waiters() {
    let mutex = new(2);
    let held = mutex.lock(7, Interactive).await.unwrap();
    let mut one = Box::pin(mutex.lock(7, Interactive));
    let mut two = Box::pin(mutex.lock(7, Interactive));
    assert!(futures::poll!(&mut one).is_pending());
    assert!(futures::poll!(&mut two).is_pending());
    assert!(mutex.is_full(&7, Interactive));
    assert_eq!(mutex.lock(7, Interactive).await.err(), Some(TooManyWaiters));
    drop(one);
    assert!(!mutex.is_full(&7, Interactive));
    let mut three = Box::pin(mutex.lock(7, Interactive));
    assert!(futures::poll!(&mut three).is_pending());
    drop(held);
    let two = two.await.unwrap();
    assert!(futures::poll!(&mut three).is_pending());
    drop(two);
    drop(three.await.unwrap());
    assert_eq!(mutex.held(), 0);
}

/// Has waiters of these lanes queue for a held key, and says in which order they get it.
async fn order_of(mutex: &KeyedMutex<u8>, lanes: &[Lane]) -> Vec<usize> {
    let held = mutex.lock(0, Bulk).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (me, lane) in lanes.iter().enumerate() {
        let mut turn = Box::pin({
            let (mutex, lane) = (mutex.clone(), *lane);
            async move { mutex.lock(0, lane).await }
        });
        assert!(futures::poll!(&mut turn).is_pending());
        let order = order.clone();
        tasks.push(tokio::spawn(async move {
            let _guard = turn.await.unwrap();
            order.lock().unwrap().push(me);
        }));
    }
    drop(held);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(mutex.held(), 0);
    Arc::into_inner(order).unwrap().into_inner().unwrap()
}

#[tokio::test]
async fn interactive_jobs_overtake_bulk_jobs_and_do_not_starve_them() {
    let mutex = new(100);
    let most = OVERTAKES as usize;
    // Three bulk jobs, then so many interactive ones that bulk jobs have a turn among them twice.
    let lanes: Vec<Lane> = [vec![Bulk; 3], vec![Interactive; 2 * most + 1]].concat();
    let interactive: Vec<usize> = (3..lanes.len()).collect();
    let expected = [&interactive[..most], &[0], &interactive[most..2 * most], &[1], &interactive[2 * most..], &[2]];
    assert_eq!(order_of(&mutex, &lanes).await, expected.concat());
    // With no bulk job waiting nobody is overtaken, so the count begins with the first that waits.
    assert_eq!(order_of(&mutex, &[Interactive, Bulk, Interactive]).await, [0, 2, 1]);
}

#[tokio::test]
async fn waiting_bulk_jobs_take_no_place_from_interactive_ones() {
    let mutex = new(1);
    let _held = mutex.lock(7, Bulk).await.unwrap();
    let mut bulk = Box::pin(mutex.lock(7, Bulk));
    assert!(futures::poll!(&mut bulk).is_pending());
    assert!(mutex.is_full(&7, Bulk) && !mutex.is_full(&7, Interactive));
    assert_eq!(mutex.lock(7, Bulk).await.err(), Some(TooManyWaiters));
    let mut interactive = Box::pin(mutex.lock(7, Interactive));
    assert!(futures::poll!(&mut interactive).is_pending());
}

#[tokio::test]
async fn a_waiter_that_gives_up_during_the_hand_over_passes_the_key_on() {
    let mutex = new(10);
    let held = mutex.lock((), Interactive).await.unwrap();
    let mut one = Box::pin(mutex.lock((), Interactive));
    let mut two = Box::pin(mutex.lock((), Interactive));
    assert!(futures::poll!(&mut one).is_pending());
    assert!(futures::poll!(&mut two).is_pending());
    drop(held); // the guard is now inside `one`'s channel, not yet received
    drop(one);
    drop(two.await.unwrap());
    assert_eq!(mutex.held(), 0);
}

#[tokio::test]
async fn many_waiters_that_gave_up_do_not_exhaust_the_stack() {
    let mutex = new(200_000);
    let held = mutex.lock((), Interactive).await.unwrap();
    let mut waiters: Vec<_> = (0..100_000).map(|_| Box::pin(mutex.lock((), Interactive))).collect();
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
    let mutex = new(64);
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
                    let Ok(guard) = mutex.lock(key, Interactive).await else { return };
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

/// Who holds a key and who waits for it, as it should be.
#[derive(Default)]
struct Model {
    holder: Option<u32>,
    waiters: [VecDeque<u32>; 2],
    overtaken: u32,
}

impl Model {
    /// Whose turn it is when the holder leaves.
    fn next(&mut self) -> Option<u32> {
        let [interactive, bulk] = &mut self.waiters;
        let turn_of_bulk = self.overtaken == OVERTAKES || interactive.is_empty();
        match (bulk.is_empty(), turn_of_bulk) {
            (true, _) => {
                self.overtaken = 0;
                interactive.pop_front()
            }
            (false, true) => {
                self.overtaken = 0;
                bulk.pop_front()
            }
            (false, false) => {
                self.overtaken += 1;
                interactive.pop_front()
            }
        }
    }
}

proptest::proptest! {
    /// Whatever the sequence of locking, releasing and giving up, each key is handed on as the model says.
    #[test]
    fn follows_a_model_queue(steps in proptest::collection::vec((0..6_u8, 0..2_u8, 0..2_usize), 1..300)) {
        use futures::{FutureExt, future::LocalBoxFuture};
        const MOST: usize = 12;
        let mutex = new(MOST);
        let mut model: HashMap<u8, Model> = HashMap::new();
        let mut guards: HashMap<u32, Guard<u8>> = HashMap::new();
        let mut waiting: HashMap<u32, LocalBoxFuture<'static, Result<Guard<u8>, TooManyWaiters>>> = HashMap::new();
        for (next, (action, key, lane)) in steps.into_iter().enumerate() {
            let id = next as u32;
            let model = model.entry(key).or_default();
            match action {
                0..3 => {
                    let shared = mutex.clone();
                    let mut wait = async move { shared.lock(key, [Interactive, Bulk][lane]).await }.boxed_local();
                    match wait.as_mut().now_or_never() {
                        Some(Ok(guard)) => {
                            assert_eq!(model.holder.replace(id), None);
                            guards.insert(id, guard);
                        }
                        Some(Err(TooManyWaiters)) => assert_eq!(model.waiters[lane].len(), MOST),
                        None => {
                            assert!(model.holder.is_some() && model.waiters[lane].len() < MOST);
                            model.waiters[lane].push_back(id);
                            waiting.insert(id, wait);
                        }
                    }
                }
                3..5 => {
                    if let Some(holder) = model.holder.take() {
                        guards.remove(&holder).expect("the holder has the guard");
                        model.holder = model.next();
                        if let Some(heir) = model.holder {
                            let guard = waiting.remove(&heir).expect("waits").now_or_never().expect("woken").expect("granted");
                            guards.insert(heir, guard);
                        } else {
                            model.overtaken = 0;
                        }
                    }
                }
                _ => {
                    if let Some(quitter) = model.waiters[lane].pop_back() {
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
