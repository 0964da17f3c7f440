//! Cryptography off the network threads: so many steps at once, so many waiting, and a refusal beyond.

use super::Refusal;
use crate::wire::ErrorCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// A bound on blocking work.
pub struct CryptoPool {
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
        Self { threads: Arc::new(Semaphore::new(threads)), waiting: AtomicUsize::new(0), queue }
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
}
