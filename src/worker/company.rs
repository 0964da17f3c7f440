//! Who runs beside whom. A job that may have ended a worker runs alone, so that it takes nobody with it if it does so again; all
//! others run side by side.

use super::Shared;
use std::time::Duration;
use tokio::sync::{RwLockReadGuard, RwLockWriteGuard};
use tokio::time::timeout;

/// How long a job waits until the others are done; meanwhile no further ones begin.
const PATIENCE: Duration = Duration::from_secs(2);

/// The right to run, until it is dropped.
pub enum Company<'a> {
    /// Beside others.
    Shared { _place: RwLockReadGuard<'a, ()> },
    /// Alone.
    Alone { _place: RwLockWriteGuard<'a, ()> },
}

impl Shared {
    /// Waits until the job may run. `None` if it has to be `alone` and others take too long.
    pub(super) async fn company(&self, alone: bool) -> Option<Company<'_>> {
        if !alone {
            return Some(Company::Shared { _place: self.together.read().await });
        }
        timeout(PATIENCE, self.together.write()).await.ok().map(|place| Company::Alone { _place: place })
    }
}
