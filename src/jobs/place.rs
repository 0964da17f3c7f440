//! The places of the jobs in hand. A job that works has a slot; a job that waits for something else than work gives its slot up,
//! so that it keeps nobody out who could work, and has one of a bounded number of places to wait at.
//!
//! Interactive jobs may have every slot, whatever the bulk lane does. Bulk jobs may have a share of as many slots, and a worker asks
//! for more of them only while the jobs of both lanes that work are fewer than the slots: they get what is left. The exception is
//! the first of them: where no bulk job works, one is always asked for, so that the lane never stands still.

use crate::wire::Lane;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How many jobs one worker has in hand.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Jobs that work at a time.
    pub slots: usize,
    /// The most of them that may be bulk jobs.
    pub bulk: usize,
    /// Jobs besides that wait for their key at a time, in each lane; bulk jobs have the same share of it as of the slots.
    pub waiting: usize,
}

impl Limits {
    const fn slots(&self, lane: Lane) -> usize {
        match lane {
            Lane::Interactive => self.slots,
            Lane::Bulk => self.bulk,
        }
    }

    fn waiting(&self, lane: Lane) -> usize {
        match lane {
            Lane::Interactive => self.waiting,
            Lane::Bulk => (self.waiting.saturating_mul(self.bulk) / self.slots.max(1)).max(1),
        }
    }
}

/// All places of one worker. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    taken: Mutex<Taken>,
    /// Something became free; each lane has one who asks.
    freed: [Notify; 2],
}

/// What the jobs of both lanes have.
#[derive(Debug, Default)]
struct Taken {
    interactive: Lot,
    bulk: Lot,
}

/// What the jobs of one lane have.
#[derive(Debug, Default, Clone, Copy)]
struct Lot {
    /// Slots of jobs that work.
    working: usize,
    /// Slots kept for jobs that were asked for.
    asked: usize,
    /// Places of jobs that wait.
    waiting: usize,
}

impl Lot {
    const fn held(&self) -> usize {
        self.working.saturating_add(self.asked)
    }

    const fn count(&mut self, slot: Slot) -> &mut usize {
        match slot {
            Slot::Asked => &mut self.asked,
            Slot::Working => &mut self.working,
        }
    }
}

impl Taken {
    const fn of(&mut self, lane: Lane) -> &mut Lot {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }

    /// How many jobs of a lane may be asked for now.
    fn free(&self, lane: Lane, limits: &Limits) -> usize {
        match lane {
            Lane::Interactive => limits.slots.saturating_sub(self.interactive.held()),
            Lane::Bulk => {
                let held = self.bulk.held();
                let left = limits.slots.saturating_sub(self.interactive.working.saturating_add(held));
                limits.bulk.saturating_sub(held).min(left).max(usize::from(held == 0))
            }
        }
    }
}

/// Which kind of slot a place has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// Kept for a job that was asked for.
    Asked,
    /// Of a job that works.
    Working,
}

/// The place of one job. Clones are the same place, which is free when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct Place {
    seat: Arc<Seat>,
}

#[derive(Debug)]
struct Seat {
    shared: Arc<Shared>,
    lane: Lane,
    slot: Mutex<Option<Slot>>,
}

/// A place at which a job waits, while its slot is another's.
#[derive(Debug)]
pub struct Aside {
    seat: Arc<Seat>,
}

impl Places {
    /// As many as `limits` say.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { shared: Arc::new(Shared { limits, taken: Mutex::default(), freed: Default::default() }) }
    }

    /// Every slot that jobs of this lane may be asked for, after waiting for the first. One caller a lane.
    pub async fn free(&self, lane: Lane) -> Vec<Place> {
        loop {
            let free = {
                let mut taken = self.shared.taken();
                let free = taken.free(lane, &self.shared.limits);
                taken.of(lane).asked += free;
                free
            };
            if free > 0 {
                let seat = || Seat { shared: self.shared.clone(), lane, slot: Mutex::new(Some(Slot::Asked)) };
                return (0..free).map(|_| Place { seat: Arc::new(seat()) }).collect();
            }
            self.shared.freed(lane).notified().await;
        }
    }
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const fn freed(&self, lane: Lane) -> &Notify {
        let [interactive, bulk] = &self.freed;
        match lane {
            Lane::Interactive => interactive,
            Lane::Bulk => bulk,
        }
    }

    /// Changes what is taken, and has both lanes look again.
    fn change(&self, change: impl FnOnce(&mut Taken)) {
        change(&mut self.taken());
        self.freed.iter().for_each(Notify::notify_one);
    }
}

impl Place {
    /// The job that was asked for is here, and works.
    pub fn begin(&self) {
        self.seat.put(Some(Slot::Working));
    }

    /// Gives the slot up until the [`Aside`] is dropped. `None` if too many of the lane wait already; then the job should not wait
    /// here.
    ///
    /// Where the lane has no slot left at the end of the wait, the job works without one: it has waited long enough, and no more
    /// jobs of the lane are pulled until as many as have slots are done.
    #[must_use]
    pub fn step_aside(&self) -> Option<Aside> {
        let Seat { shared, lane, .. } = &*self.seat;
        {
            let mut taken = shared.taken();
            let waiting = &mut taken.of(*lane).waiting;
            if *waiting >= shared.limits.waiting(*lane) {
                return None;
            }
            *waiting += 1;
        }
        self.seat.put(None);
        Some(Aside { seat: self.seat.clone() })
    }
}

impl Seat {
    /// Has another slot in the place of its own.
    fn put(&self, slot: Option<Slot>) {
        let old = std::mem::replace(&mut *self.slot.lock().unwrap_or_else(PoisonError::into_inner), slot);
        self.shared.change(|taken| {
            let lot = taken.of(self.lane);
            if let Some(old) = old {
                *lot.count(old) -= 1;
            }
            if let Some(new) = slot {
                *lot.count(new) += 1;
            }
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.put(None);
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let Seat { shared, lane, slot } = &*self.seat;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        shared.change(|taken| {
            let lot = taken.of(*lane);
            lot.waiting -= 1;
            if slot.is_none() && lot.held() < shared.limits.slots(*lane) {
                lot.working += 1;
                *slot = Some(Slot::Working);
            }
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;
    use Lane::{Bulk, Interactive};
    use futures::FutureExt;

    fn places(slots: usize, bulk: usize, waiting: usize) -> Places {
        Places::new(Limits { slots, bulk, waiting })
    }

    /// Asks for what is free, and has it all work.
    fn fill(places: &Places, lane: Lane) -> Vec<Place> {
        let filled = places.free(lane).now_or_never().unwrap_or_default();
        filled.iter().for_each(Place::begin);
        filled
    }

    #[tokio::test]
    async fn who_waits_keeps_no_slot_and_only_so_many_wait() {
        let places = places(2, 1, 1);
        let held = fill(&places, Interactive);
        assert_eq!(held.len(), 2);
        assert!(places.free(Interactive).now_or_never().is_none());
        let aside = held[0].step_aside().unwrap();
        assert!(held[1].step_aside().is_none(), "too many wait");
        let next = fill(&places, Interactive);
        assert_eq!(next.len(), 1);
        // Back without a slot, and what it never had it does not give back.
        drop(aside);
        drop(held);
        assert_eq!(places.free(Interactive).await.len(), 1);
        drop(next);
        assert_eq!(places.free(Interactive).await.len(), 2);
        assert_eq!(places.shared.taken().interactive.waiting, 0);
    }

    #[tokio::test]
    async fn who_comes_back_takes_a_slot_where_one_is_free() {
        let places = places(1, 1, 1);
        let held = fill(&places, Interactive);
        drop(held[0].step_aside().unwrap());
        assert!(places.free(Interactive).now_or_never().is_none());
        drop(held);
        assert_eq!(places.free(Interactive).await.len(), 1);
    }

    #[tokio::test]
    async fn bulk_jobs_have_their_share_and_leave_every_slot_to_interactive_ones() {
        let places = places(4, 2, 4);
        let bulk = fill(&places, Bulk);
        assert_eq!(bulk.len(), 2);
        // Not fewer for what bulk jobs have, or for what they are asked for.
        assert_eq!(places.free(Interactive).await.len(), 4);
        let interactive = fill(&places, Interactive);
        assert_eq!(interactive.len(), 4);
        // Also the places to wait at are shared out.
        let _aside = [bulk[0].step_aside().unwrap(), bulk[1].step_aside().unwrap()];
        let next = fill(&places, Bulk);
        assert!(next[0].step_aside().is_none() && interactive[0].step_aside().is_some());
    }

    #[tokio::test]
    async fn bulk_jobs_get_what_is_left_and_one_of_them_always_works() {
        let places = places(4, 3, 4);
        let mut interactive = fill(&places, Interactive);
        let one = fill(&places, Bulk);
        assert_eq!(one.len(), 1);
        assert_eq!(fill(&places, Bulk).len(), 0, "all slots work");
        // Four of four still work, the bulk job included.
        drop(interactive.pop());
        assert_eq!(fill(&places, Bulk).len(), 0);
        drop(interactive.pop());
        assert_eq!(fill(&places, Bulk).len(), 1);
        drop(interactive);
        let two = fill(&places, Bulk);
        assert_eq!(two.len(), 3 - 1, "not more than the share");
        drop((one, two));
    }

    #[tokio::test]
    async fn slots_that_are_only_asked_for_keep_no_bulk_job_out() {
        let places = places(2, 2, 1);
        let asked = places.free(Interactive).await;
        assert_eq!((asked.len(), fill(&places, Bulk).len()), (2, 2));
    }

    #[tokio::test]
    async fn each_lane_hears_what_becomes_free() {
        let places = places(1, 1, 1);
        let (interactive, bulk) = (fill(&places, Interactive), fill(&places, Bulk));
        let (mut next, mut next_bulk) = (Box::pin(places.free(Interactive)), Box::pin(places.free(Bulk)));
        assert!(next.as_mut().now_or_never().is_none() && next_bulk.as_mut().now_or_never().is_none());
        drop(bulk);
        assert!(next.as_mut().now_or_never().is_none());
        assert_eq!(next_bulk.await.len(), 1);
        drop(interactive);
        assert_eq!(next.await.len(), 1);
    }
}
