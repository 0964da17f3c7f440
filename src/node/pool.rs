//! Cryptography off the network threads: so many steps at once, so many waiting, and a refusal beyond.

use super::Refusal;
use crate::wire::ErrorCode;
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// Items of a batch that one step computes, at most: a few milliseconds, for which others wait.
const ITEMS_A_STEP: usize = 4;

/// A bound on blocking work.
pub struct CryptoPool {
    at_once: usize,
    threads: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
}

/// Counts one waiting step, however its wait ends.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CryptoPool {
    /// At most `threads` steps run and `queue` wait.
    #[must_use]
    pub fn new(threads: usize, queue: usize) -> Self {
        Self { at_once: threads, threads: Arc::new(Semaphore::new(threads)), waiting: AtomicUsize::new(0), queue }
    }

    /// Runs one step.
    ///
    /// # Errors
    /// `OVERLOADED` when the queue is full; `INTERNAL` if the step panicked.
    pub async fn run<T: Send + 'static>(&self, step: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
        let full = self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue;
        let waiting = Waiting(&self.waiting);
        if full {
            return Err(Refusal::new(ErrorCode::Overloaded, "too many protocol steps are waiting"));
        }
        let permit = Arc::clone(&self.threads).acquire_owned().await;
        drop(waiting);
        let step = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            step()
        });
        step.await.map_err(|_| Refusal::internal("a protocol step ended unexpectedly"))
    }

    /// Runs a step for each item, on as many threads as there are, and answers in the items' order. In between, whatever else waits for
    /// a thread gets one.
    ///
    /// # Errors
    /// As [`CryptoPool::run`].
    pub async fn run_each<I: Send + 'static, T: Send + 'static>(
        &self,
        items: Vec<I>,
        step: impl Fn(I) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Refusal> {
        let size = items.len().div_ceil(self.at_once.max(1)).clamp(1, ITEMS_A_STEP);
        let (step, mut items) = (Arc::new(step), items.into_iter());
        let steps = std::iter::from_fn(|| {
            let part: Vec<I> = items.by_ref().take(size).collect();
            let step = Arc::clone(&step);
            (!part.is_empty()).then(|| self.run(move || part.into_iter().map(|item| step(item)).collect::<Vec<T>>()))
        });
        let done: Vec<Vec<T>> = futures::stream::iter(steps).buffered(self.at_once.max(1)).try_collect().await?;
        Ok(done.into_iter().flatten().collect())
    }
}
