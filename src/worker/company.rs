//! Who runs beside whom. A job that may have ended a worker runs alone, so that it takes nobody with it if it does so again; all
//! others run side by side.

use super::Shared;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::{Instant, timeout};

/// How long a suspect waits for those before it: their work is short, or they give up too.
const QUEUE: Duration = Duration::from_secs(5);
/// How long it waits until the jobs that run are done; meanwhile no further ones begin. After a wait in vain, none of the
/// suspects keeps them waiting again for so long.
const ALONE: Duration = Duration::from_secs(1);

/// Decides it.
pub struct Companies {
    /// Shared by the jobs that run, and had alone by one that must.
    together: RwLock<()>,
    /// Held by the suspect whose turn it is: when it may ask the others to wait.
    suspects: Mutex<Instant>,
}

/// The right to run, until it is dropped.
pub enum Company<'a> {
    /// Beside others.
    Shared { _place: RwLockReadGuard<'a, ()> },
    /// Alone.
    Alone { _place: RwLockWriteGuard<'a, ()>, _turn: MutexGuard<'a, Instant> },
}

impl Companies {
    pub fn new() -> Self {
        Self { together: RwLock::new(()), suspects: Mutex::new(Instant::now()) }
    }

    async fn alone(&self) -> Option<Company<'_>> {
        let mut turn = timeout(QUEUE, self.suspects.lock()).await.ok()?;
        if Instant::now() < *turn {
            return None;
        }
        match timeout(ALONE, self.together.write()).await {
            Ok(place) => Some(Company::Alone { _place: place, _turn: turn }),
            Err(_) => {
                *turn = Instant::now() + ALONE;
                None
            }
        }
    }
}

impl Shared {
    /// Waits until the job may run. `None` if it has to be `alone` and others take too long.
    pub(super) async fn company(&self, alone: bool) -> Option<Company<'_>> {
        if alone {
            return self.companies.alone().await;
        }
        Some(Company::Shared { _place: self.companies.together.read().await })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn suspects_run_one_by_one_and_do_not_stop_others_for_a_long_job() {
        let companies = Companies::new();
        let (first, mut second) = (companies.alone().await.unwrap(), Box::pin(companies.alone()));
        assert!(second.as_mut().now_or_never().is_none() && companies.together.read().now_or_never().is_none());
        drop(first);
        drop(second.await.unwrap());
        // Something that goes on for long: one suspect waits for it, and keeps others waiting for so long only.
        let long = companies.together.read().await;
        let (suspect, other) = futures::join!(companies.alone(), companies.together.read());
        assert!(suspect.is_none());
        assert!(companies.alone().now_or_never().unwrap().is_none(), "it was tried a moment ago");
        drop((long, other));
        tokio::time::sleep(ALONE).await;
        assert!(companies.alone().await.is_some());
    }
}
