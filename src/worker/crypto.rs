//! Protocol steps off the async threads: a fixed number at a time, so that a burst of jobs waits here and the worker goes on
//! answering the server.

use super::failure::Failed;
use crate::wire::ErrorCode;
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Items of a batch that one step computes, at most: a few milliseconds, for which others wait.
const ITEMS_A_STEP: usize = 4;

/// Runs heavy steps on blocking threads.
#[derive(Debug, Clone)]
pub struct CryptoPool {
    threads: Arc<Semaphore>,
    at_once: usize,
}

impl CryptoPool {
    /// At most this many steps at a time.
    pub fn new(threads: usize) -> Self {
        let at_once = threads.max(1);
        Self { threads: Arc::new(Semaphore::new(at_once)), at_once }
    }

    /// Runs one step. Where the caller stops waiting, the step still finishes, and counts until then.
    ///
    /// # Errors
    /// `INTERNAL` if the step panicked.
    pub async fn run<T: Send + 'static>(&self, step: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
        let internal = |what: &str| Failed::new(ErrorCode::Internal, what);
        let permit = self.threads.clone().acquire_owned().await.map_err(|_| internal("the crypto pool is closed"))?;
        let running = tokio::task::spawn_blocking(move || {
            let result = step();
            drop(permit);
            result
        });
        running.await.map_err(|_| internal("a protocol step panicked"))
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
    ) -> Result<Vec<T>, Failed> {
        let size = items.len().div_ceil(self.at_once).clamp(1, ITEMS_A_STEP);
        let (step, mut items) = (Arc::new(step), items.into_iter());
        let steps = std::iter::from_fn(|| {
            let part: Vec<I> = items.by_ref().take(size).collect();
            let step = Arc::clone(&step);
            (!part.is_empty()).then(|| self.run(move || part.into_iter().map(|item| step(item)).collect::<Vec<T>>()))
        });
        let done: Vec<Vec<T>> = futures::stream::iter(steps).buffered(self.at_once).try_collect().await?;
        Ok(done.into_iter().flatten().collect())
    }
}
