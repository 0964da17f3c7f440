//! The places of the jobs in hand. A job that works has a slot; a job that waits for something else than work gives its slot up,
//! so that it keeps nobody out who could work, and has one of a bounded number of places to wait at.

use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All places of one worker. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    slots: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// The place of one job. Clones are the same place, which is free when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct Place {
    places: Places,
    slot: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

/// A place at which a job waits, while its slot is another's.
#[derive(Debug)]
pub struct Aside {
    place: Place,
    _waiting: OwnedSemaphorePermit,
}

impl Places {
    /// Slots for so many jobs that work, and places for so many that wait.
    #[must_use]
    pub fn new(slots: usize, waiting: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(slots)), waiting: Arc::new(Semaphore::new(waiting)) }
    }

    /// Every slot that is free, after waiting for the first.
    pub async fn free(&self) -> Vec<Place> {
        // The semaphore is never closed.
        let mut free: Vec<_> = self.slots.clone().acquire_owned().await.into_iter().collect();
        while let Ok(next) = self.slots.clone().try_acquire_owned() {
            free.push(next);
        }
        free.into_iter().map(|slot| Place { places: self.clone(), slot: Arc::new(Mutex::new(Some(slot))) }).collect()
    }
}

impl Place {
    /// Gives the slot up until the [`Aside`] is dropped. `None` if too many wait already; then the job should not wait here.
    ///
    /// Where no slot is free at the end of the wait, the job works without one: it has waited long enough, and no more
    /// jobs are pulled until as many as have slots are done.
    #[must_use]
    pub fn step_aside(&self) -> Option<Aside> {
        let waiting = self.places.waiting.clone().try_acquire_owned().ok()?;
        drop(self.slot().take());
        Some(Aside { place: self.clone(), _waiting: waiting })
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        *self.place.slot() = self.place.places.slots.clone().try_acquire_owned().ok();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn who_waits_keeps_no_slot_and_only_so_many_wait() {
        let places = Places::new(2, 1);
        let held = places.free().await;
        assert_eq!(held.len(), 2);
        assert!(places.free().now_or_never().is_none());
        let aside = held[0].step_aside().unwrap();
        assert!(held[1].step_aside().is_none(), "too many wait");
        let next = places.free().await;
        assert_eq!(next.len(), 1);
        // Back without a slot, and what it never had it does not give back.
        drop(aside);
        drop(held);
        assert_eq!(places.free().await.len(), 1);
        drop(next);
        assert_eq!(places.free().await.len(), 2);
        assert_eq!(places.waiting.available_permits(), 1);
    }

    #[tokio::test]
    async fn who_comes_back_takes_a_slot_where_one_is_free() {
        let places = Places::new(1, 1);
        let held = places.free().await;
        drop(held[0].step_aside().unwrap());
        assert!(places.free().now_or_never().is_none());
        drop(held);
        assert_eq!(places.free().await.len(), 1);
    }
}
