//! Writes that share a commit. Where much is under way, a commit that waits a little takes more of them with it: each write then waits
//! longer by a small part of what it waits anyway, and the processor, which is what there is too little of, makes fewer commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// Longest wait of a commit for further writes.
const WAIT: Duration = Duration::from_millis(3);
/// A commit waits only while so many more calls are under way than writes are gathered: with fewer it would mostly wait in vain.
const OTHERS: usize = 4;

/// Counts the calls that a node works on. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Underway(Arc<AtomicUsize>);

/// One of them, until it is dropped.
pub struct Call<'a>(&'a AtomicUsize);

impl Underway {
    /// Counts one more.
    pub fn begin(&self) -> Call<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Call(&self.0)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// `first` and what waits behind it, up to `most`; while much is under way, what comes soon too.
    pub fn gather<T>(&self, first: T, waiting: &Receiver<T>, most: usize) -> Vec<T> {
        self.gather_until(first, waiting, most, Instant::now() + WAIT)
    }

    fn gather_until<T>(&self, first: T, waiting: &Receiver<T>, most: usize, until: Instant) -> Vec<T> {
        let mut batch = vec![first];
        loop {
            let room = most.saturating_sub(batch.len());
            batch.extend(waiting.try_iter().take(room));
            if batch.len() >= most || self.0.load(Ordering::Relaxed) < batch.len().saturating_add(OTHERS) {
                return batch;
            }
            match waiting.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(next) => batch.push(next),
                // The time is over, or nobody is left who could send.
                Err(_) => return batch,
            }
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    /// Longer than any test may take.
    fn never() -> Instant {
        Instant::now() + Duration::from_secs(3_600)
    }

    #[test]
    fn who_is_alone_does_not_wait_and_takes_what_is_there() {
        let underway = Underway::default();
        let (to, waiting) = sync_channel(8);
        let _calls: Vec<_> = (0..OTHERS).map(|_| underway.begin()).collect();
        assert_eq!(underway.gather_until(1, &waiting, 8, never()), [1]);
        for next in [2, 3, 4] {
            to.send(next).unwrap();
        }
        assert_eq!(underway.gather_until(1, &waiting, 3, never()), [1, 2, 3], "no more than so many");
        assert_eq!(underway.gather_until(1, &waiting, 8, never()), [1, 4]);
    }

    #[test]
    fn where_much_is_under_way_a_commit_waits_for_more_and_not_for_ever() {
        let underway = Underway::default();
        let (to, waiting) = sync_channel(8);
        let mut calls: Vec<_> = (0..OTHERS + 2).map(|_| underway.begin()).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| [2, 3].map(|next| to.send(next).unwrap()));
            assert_eq!(underway.gather_until(1, &waiting, 8, never()), [1, 2, 3]);
        });
        assert_eq!(underway.gather_until(1, &waiting, 8, Instant::now()), [1]);
        drop(to);
        assert_eq!(underway.gather_until(1, &waiting, 8, never()), [1]);
        calls.truncate(OTHERS);
        assert_eq!(underway.gather(1, &waiting, 8), [1]);
    }
}
