//! The turn of a job at its key: one job of a key at a time, in this worker by a fair queue, across workers by a lease.
//!
//! A lease serves a burst of the jobs that wait for the key here, so that they do not pay for it each, and is then let go for the
//! jobs that wait elsewhere. Where JetStream gives no answer about leases, jobs go on without: node 1 keeps sessions of one key apart.

use super::Shared;
use super::failure::Failed;
use super::retry::{Schedule, Stop};
use crate::jobs::keyed_mutex::Guard;
use crate::jobs::lease::{Attempt, Lease};
use crate::wire::{ErrorCode, Job, KeyId, Lane};
use futures::FutureExt;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Most jobs in a row that one lease serves, and how long it goes on serving further ones.
const BURST: (u32, Duration) = (32, Duration::from_millis(250));
/// The same after a bulk job: who waits for the key at another worker may be a person.
const BULK_BURST: (u32, Duration) = (8, Duration::from_millis(60));
/// How long a worker leaves a key to others after a burst: they hear of its end, and take two round trips to JetStream.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest rest of a key between two jobs that waited for it here, while other keys are held here too. A key that is never at rest
/// is always among those that want the processor, which doubles everybody else's latency.
const REST: Duration = Duration::from_millis(5);
/// How long a job that runs alone waits for its key: all else waits for it.
const ALONE: Duration = Duration::from_millis(500);

/// What goes with a key from job to job of this worker.
pub enum Luggage {
    /// The lease serves the next job too, after a rest until then if other keys are held.
    Lease(Lease, Instant),
    /// Its burst is over; others may have the key until then.
    Left(Instant),
}

/// A key that is held for one job; the next one gets it when this is dropped.
pub struct Held {
    lane: Lane,
    since: Instant,
    guard: Guard<KeyId, Luggage>,
}

impl Held {
    /// The lease's token, for node 1; 0 without a lease.
    pub fn lease_token(&self) -> u64 {
        match &self.guard.luggage {
            Some(Luggage::Lease(lease, _)) => lease.token(),
            _ => 0,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(Luggage::Lease(lease, rested)) = &mut self.guard.luggage {
            *rested = Instant::now() + rest_after(self.since.elapsed());
            let (jobs, time) = lease.served();
            let (most_jobs, longest) = match self.lane {
                Lane::Interactive => BURST,
                Lane::Bulk => BULK_BURST,
            };
            if lease.is_lost() || jobs >= most_jobs || time >= longest {
                self.guard.luggage = Some(Luggage::Left(Instant::now() + PAUSE));
            }
        }
    }
}

impl Shared {
    /// Waits for the turn of the job's key. A job that waits has no slot meanwhile.
    ///
    /// # Errors
    /// The job goes away if too many wait already; `KEY_BUSY` if the turn does not come in time.
    #[tracing::instrument(level = "debug", name = "key", skip_all)]
    pub(super) async fn hold(&self, job: &Job, schedule: &mut Schedule) -> Result<Held, Stop> {
        let asked = Instant::now();
        let held = self.hold_now(job, schedule).await;
        self.metrics.lock_wait.with_label_values(&[job.op().as_str()]).observe(asked.elapsed().as_secs_f64());
        held
    }

    async fn hold_now(&self, job: &Job, schedule: &mut Schedule) -> Result<Held, Stop> {
        let mut guard = self.turn(job, schedule).await?;
        let until = match &guard.luggage {
            Some(Luggage::Lease(_, rested)) => (self.keys.held() > 1).then_some(*rested),
            Some(Luggage::Left(until)) => Some(*until),
            None => None,
        };
        // The luggage stays where it is meanwhile: who gives up here leaves it to the next.
        if let Some(until) = until {
            sleep_until(until).await;
        }
        let lease = match guard.luggage.take() {
            Some(Luggage::Lease(mut lease, _)) if !lease.is_lost() => {
                lease.serve(&job.digest);
                Some(lease)
            }
            _ => self.lease(job, schedule).await?,
        };
        let since = Instant::now();
        guard.luggage = lease.map(|lease| Luggage::Lease(lease, since));
        Ok(Held { lane: job.lane, since, guard })
    }

    /// Waits for the key in this process.
    async fn turn(&self, job: &Job, schedule: &mut Schedule) -> Result<Guard<KeyId, Luggage>, Stop> {
        loop {
            let mut turn = pin!(self.keys.lock(job.key_id, job.lane));
            let turn = match turn.as_mut().now_or_never() {
                Some(turn) => turn,
                None => {
                    self.metrics.mutex_contended.inc();
                    self.aside(job, schedule, turn).await?
                }
            };
            match turn {
                Ok(guard) => return Ok(guard),
                Err(full) => schedule.leave(busy(full.to_string())).await?,
            }
        }
    }

    /// The key's lease; `None` where there is no telling who has it.
    async fn lease(&self, job: &Job, schedule: &mut Schedule) -> Result<Option<Lease>, Stop> {
        let mut claim = self.leases.claim(job.key_id, &job.digest);
        let lease = match claim.attempt().await {
            Ok(Attempt::Got(lease)) => Ok(lease),
            Ok(Attempt::Busy) => {
                self.metrics.lease_contended.inc();
                self.aside(job, schedule, claim.wait()).await?
            }
            Err(error) => Err(error),
        };
        Ok(lease.inspect_err(|error| tracing::warn!(key = %job.key_id, %error, "no lease")).ok())
    }

    /// Waits for a key or its lease, without a slot.
    async fn aside<T>(&self, job: &Job, schedule: &mut Schedule, turn: impl Future<Output = T>) -> Result<T, Stop> {
        let aside = schedule.step_aside();
        if aside.is_none() {
            schedule.leave(busy("too many jobs wait for their keys")).await?;
        }
        let _waits = self.metrics.waits(job.op());
        let left = if schedule.is_alone() { schedule.left().min(ALONE) } else { schedule.left() };
        timeout(left, turn).await.map_err(|_| {
            let failed = busy("other jobs of this key took all the time");
            if schedule.is_alone() { schedule.postpone(failed) } else { failed.into() }
        })
    }
}

/// How long a key rests that was held for so long: half of that, a third of its time, within bounds.
fn rest_after(held: Duration) -> Duration {
    (held / 2).min(REST)
}

fn busy(why: impl Into<String>) -> Failed {
    Failed::new(ErrorCode::KeyBusy, why)
}

#[cfg(test)]
#[allow(missing_docs)]
mod tests {
    use super::*;

    #[test]
    fn a_key_rests_for_a_third_of_its_time_and_never_long() {
        let millis = Duration::from_millis;
        assert_eq!(rest_after(millis(6)), millis(3));
        assert_eq!(rest_after(millis(11)), REST);
        assert_eq!(rest_after(Duration::MAX), REST);
    }
}
