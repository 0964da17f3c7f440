//! The turn of a job at its key: one job of a key at a time.

use super::Shared;
use super::failure::Failed;
use super::retry::{Schedule, Stop};
use crate::jobs::keyed_mutex::Guard;
use crate::wire::{ErrorCode, Job, KeyId};
use tokio::time::timeout;

/// A key that is held for one job; the next one gets it when this is dropped.
pub struct Held {
    _guard: Guard<KeyId>,
}

impl Shared {
    /// Waits for the turn of the job's key.
    ///
    /// # Errors
    /// The job goes away if too many wait for the key already; `KEY_BUSY` if the turn does not come in time.
    pub(super) async fn hold(&self, job: &Job, schedule: &mut Schedule) -> Result<Held, Stop> {
        let busy = |why: String| Failed::new(ErrorCode::KeyBusy, why);
        loop {
            match timeout(schedule.left(), self.keys.lock(job.key_id)).await {
                Ok(Ok(guard)) => return Ok(Held { _guard: guard }),
                Ok(Err(full)) => schedule.leave(busy(full.to_string())).await?,
                Err(_) => return Err(busy("other jobs of this key took all the time".to_owned()).into()),
            }
        }
    }
}
