//! Protocol steps off the async threads: a fixed number at a time, so that a burst of jobs waits here and the worker goes on
//! answering the server.

use super::failure::Failed;
use crate::wire::ErrorCode;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Runs heavy steps on blocking threads.
#[derive(Debug, Clone)]
pub struct CryptoPool(Arc<Semaphore>);

impl CryptoPool {
    /// At most this many steps at a time.
    pub fn new(threads: usize) -> Self {
        Self(Arc::new(Semaphore::new(threads.max(1))))
    }

    /// Runs one step. Where the caller stops waiting, the step still finishes, and counts until then.
    ///
    /// # Errors
    /// `INTERNAL` if the step panicked.
    pub async fn run<T: Send + 'static>(&self, step: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
        let internal = |what: &str| Failed::new(ErrorCode::Internal, what);
        let permit = self.0.clone().acquire_owned().await.map_err(|_| internal("the crypto pool is closed"))?;
        let running = tokio::task::spawn_blocking(move || {
            let result = step();
            drop(permit);
            result
        });
        running.await.map_err(|_| internal("a protocol step panicked"))
    }
}
