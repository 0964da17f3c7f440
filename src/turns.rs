//! Whose turn it is to derive a key: so many at a time, first come, first served. Of bulk jobs no more stand in this queue, or compute, than
//! may compute at a time; the others wait before it, in a queue of their own. So an interactive job never has more than that before it,
//! whatever waits, and each bulk job comes to stand in the one queue, where nobody overtakes it.

use crate::wire::Lane;
use std::sync::Arc;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// The turns of one kind of work. Clones share them.
#[derive(Debug, Clone)]
pub struct Turns {
    all: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _one: OwnedSemaphorePermit,
    _place: Place,
}

/// A place in the one queue; interactive jobs need none.
pub type Place = Option<OwnedSemaphorePermit>;

impl Turns {
    /// So many at a time, at least one.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        let at_once = at_once.max(1);
        Self { all: Arc::new(Semaphore::new(at_once)), bulk: Arc::new(Semaphore::new(at_once)) }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// None: the queue is never closed.
    pub async fn wait(&self, lane: Lane) -> Result<Turn, AcquireError> {
        let place = self.place(lane).await?;
        self.wait_at(place).await
    }

    /// Waits for a place in the one queue, for whoever waits for something else before the turn.
    ///
    /// # Errors
    /// As [`Turns::wait`].
    pub async fn place(&self, lane: Lane) -> Result<Place, AcquireError> {
        Ok(match lane {
            Lane::Interactive => None,
            Lane::Bulk => Some(Arc::clone(&self.bulk).acquire_owned().await?),
        })
    }

    /// Waits for a turn at a place.
    ///
    /// # Errors
    /// As [`Turns::wait`].
    pub async fn wait_at(&self, place: Place) -> Result<Turn, AcquireError> {
        Ok(Turn { _one: Arc::clone(&self.all).acquire_owned().await?, _place: place })
    }

    /// How many turns are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.all.available_permits()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;
    use Lane::{Bulk, Interactive};
    use futures::FutureExt;
    use futures::future::BoxFuture;

    /// One who has asked, and whether the turn has come.
    fn ask(turns: &Turns, lane: Lane) -> BoxFuture<'static, Turn> {
        let turns = turns.clone();
        async move { turns.wait(lane).await.unwrap() }.boxed()
    }

    #[test]
    fn an_interactive_job_waits_for_the_bulk_jobs_that_compute_and_no_others() {
        let turns = Turns::new(2);
        let running: Vec<Turn> = (0..2).map(|_| ask(&turns, Bulk).now_or_never().unwrap()).collect();
        let mut waiting: Vec<_> = (0..100).map(|_| ask(&turns, Bulk)).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        let mut person = ask(&turns, Interactive);
        assert!((&mut person).now_or_never().is_none());
        drop(running);
        // It is next, and the bulk jobs have what is left.
        let _person = person.now_or_never().unwrap();
        let begun: Vec<Turn> = waiting.iter_mut().filter_map(FutureExt::now_or_never).collect();
        assert_eq!(begun.len(), 1);
    }

    #[test]
    fn a_bulk_job_in_the_queue_is_not_overtaken() {
        let turns = Turns::new(1);
        let running = ask(&turns, Interactive).now_or_never().unwrap();
        let mut bulk = ask(&turns, Bulk);
        assert!((&mut bulk).now_or_never().is_none());
        let mut people: Vec<_> = (0..10).map(|_| ask(&turns, Interactive)).collect();
        assert!(people.iter_mut().all(|one| one.now_or_never().is_none()));
        drop(running);
        assert!(people[0].as_mut().now_or_never().is_none());
        assert!((&mut bulk).now_or_never().is_some());
        assert!(people[0].as_mut().now_or_never().is_some());
    }
}
