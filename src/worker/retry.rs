//! When a job is tried again, and when it is given up.

use super::failure::Failed;
use crate::clock::now_ms;
use crate::jobs::place::{Aside, Place};
use crate::wire::{ErrorCode, JobResult};
use std::time::Duration;
use tokio::time::Instant;

/// First wait between two attempts; each further one is twice as long, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(25);
const LONGEST_WAIT: Duration = Duration::from_millis(400);
/// After this long without success a job goes back to the queue, so that jobs which cannot be done now do not hold the places
/// of those that can.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a job that was given back stays away: a quarter of its age, within these bounds.
const AWAY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Too late to go away and come back: with less time than this left, the last attempts are made here.
const LAST: Duration = Duration::from_millis(1_500);
/// While it is younger than this, a job that this worker lacks a key for goes back to the queue.
const ELSEWHERE: Duration = Duration::from_secs(10);
/// How long a job stays away that may have ended a worker and could not be tried alone here.
const POSTPONED: Duration = Duration::from_millis(250);
/// Longest wait for one answer of a node.
const CALL: Duration = Duration::from_secs(5);

/// Deadline (unix milliseconds) of a call that begins now and that no job's expiry bounds: a commit, a discard, the end of a
/// session.
pub fn call_deadline() -> u64 {
    now_ms().saturating_add(CALL.as_millis() as u64)
}

/// What to do after a failed attempt.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Try again after this wait.
    Again(Duration),
    /// Give the job back to the queue for so long.
    Away(Duration),
    /// The failure is the job's result.
    Final,
}

/// Why work on a delivery ended without success.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// The failure is the job's result.
    Failed(Failed),
    /// Give the job back to the queue for so long, because of this.
    Away(Duration, ErrorCode),
    /// The same, with the main work not begun: what it does to a worker is as unknown as before.
    Postponed(Duration, ErrorCode),
    /// The job has this result already.
    Earlier(Box<JobResult>),
}

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

/// The time that a delivery of a job has.
#[derive(Debug, Clone)]
pub struct Schedule {
    started: Instant,
    /// When the job was issued, unix milliseconds.
    issued_at: u64,
    attempts: u32,
    /// How long the job stays away if it is given back.
    away: Duration,
    /// When the result must be on its way, unix milliseconds.
    deadline: u64,
    /// Whether there is a queue to go back to.
    queued: bool,
    /// The delivery's place among the jobs in hand.
    place: Option<Place>,
    /// Whether no other job runs in this worker meanwhile.
    alone: bool,
    /// Whether a result of the job was looked for, and there was none.
    looked: bool,
}

impl Schedule {
    /// The schedule of a job (both times unix milliseconds). Its result must be stored before it expires, so work on it ends a
    /// tenth of the remaining time earlier, at least 50 ms and at most a second.
    pub fn new(issued_at: u64, expires_at: u64) -> Self {
        let now = now_ms();
        let left = expires_at.saturating_sub(now);
        let deadline = expires_at.saturating_sub((left / 10).clamp(50, 1_000));
        let age = Duration::from_millis(now.saturating_sub(issued_at));
        Self {
            started: Instant::now(),
            issued_at,
            attempts: 0,
            away: (age / 4).clamp(AWAY.0, AWAY.1),
            deadline,
            queued: true,
            place: None,
            alone: false,
            looked: false,
        }
    }

    /// The schedule of a job that was delivered to this place, and may have to run `alone`. Past its first delivery its result is looked
    /// for before anything else; where it is there, nothing is scheduled.
    pub fn of_delivery(issued_at: u64, expires_at: u64, place: Place, alone: bool, again: bool) -> Self {
        Self { place: Some(place), alone, looked: again, ..Self::new(issued_at, expires_at) }
    }

    /// The schedule of a question: nobody waits long for its answer, so where a job would go away and come back, this ends.
    pub fn for_question(issued_at: u64, expires_at: u64) -> Self {
        Self { queued: false, ..Self::new(issued_at, expires_at) }
    }

    /// When to stop waiting for a node's answer to a call that begins now, unix milliseconds. To be asked for each call: those of
    /// an attempt that shared one deadline would leave none to the last of them where a node is slow.
    pub fn call_deadline(&self) -> u64 {
        self.deadline.min(call_deadline())
    }

    /// Time until the result must be on its way.
    pub fn left(&self) -> Duration {
        Duration::from_millis(self.deadline.saturating_sub(now_ms()))
    }

    /// Waits before the next attempt, after one that failed so.
    ///
    /// # Errors
    /// [`Stop`] if there is to be none.
    pub async fn pause(&mut self, failed: Failed) -> Result<(), Stop> {
        match self.after(&failed) {
            Verdict::Final => Err(Stop::Failed(failed)),
            Verdict::Away(delay) => {
                tracing::info!(%failed, "job goes back to the queue");
                Err(Stop::Away(delay, failed.code))
            }
            Verdict::Again(wait) => {
                tracing::debug!(%failed, wait_ms = wait.as_millis(), "trying again");
                tokio::time::sleep(wait).await;
                Ok(())
            }
        }
    }

    /// Makes room for others at once: gives the job back, or waits here where it is too late for that.
    ///
    /// # Errors
    /// [`Stop`] unless the job should try again.
    pub async fn leave(&mut self, failed: Failed) -> Result<(), Stop> {
        if self.left() > LAST { Err(Stop::Away(self.away_for(), failed.code)) } else { self.pause(failed).await }
    }

    /// How a job ends that another worker may be able to do: it goes back to the queue while it is young. Nobody waits long for the
    /// word that no worker can.
    pub fn elsewhere(&self, failed: Failed) -> Stop {
        let young = now_ms().saturating_sub(self.issued_at) < ELSEWHERE.as_millis() as u64;
        if self.queued && young && self.left() > LAST {
            Stop::Away(self.away_for(), failed.code)
        } else {
            failed.into()
        }
    }

    /// Whether a result of the job was looked for.
    pub fn has_looked(&self) -> bool {
        self.looked
    }

    /// A result of the job was looked for, and there is none.
    pub fn looked(&mut self) {
        self.looked = true;
    }

    /// Whether no other job runs in this worker meanwhile.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Gives the job's slot up while it waits for something else than work. `None` if too many wait already.
    pub fn step_aside(&self) -> Option<Aside> {
        self.place.as_ref().and_then(Place::step_aside)
    }

    /// How a job ends that ran alone and waited too long for its key.
    pub fn postpone(&self, failed: Failed) -> Stop {
        if self.queued && self.left() > LAST { Stop::Postponed(POSTPONED, failed.code) } else { failed.into() }
    }

    fn after(&mut self, failed: &Failed) -> Verdict {
        if !failed.is_retryable() {
            return Verdict::Final;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.attempts.min(8)).min(LONGEST_WAIT);
        self.attempts = self.attempts.saturating_add(1);
        let left = self.left();
        if left <= wait {
            Verdict::Final
        } else if left > LAST && self.started.elapsed() + wait >= PATIENCE {
            if self.queued { Verdict::Away(self.away_for()) } else { Verdict::Final }
        } else {
            Verdict::Again(wait)
        }
    }

    /// How long to give a job back for that failed outside of its attempts, where JetStream was in trouble say. `None` if the
    /// failure is the result.
    pub fn again_later(&self, failed: &Failed) -> Option<Duration> {
        (failed.is_retryable() && self.queued && self.left() > LAST).then(|| self.away_for())
    }

    /// Never so long that the job could not be tried once more.
    fn away_for(&self) -> Duration {
        self.away.min(self.left().saturating_sub(LAST / 2))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, missing_docs)]
mod tests {
    use super::*;

    fn unavailable() -> Failed {
        Failed::new(ErrorCode::NodeUnavailable, "")
    }

    #[tokio::test]
    async fn waits_grow_then_the_job_goes_away() {
        let mut schedule = Schedule::new(now_ms(), now_ms() + 60_000);
        let (mut waits, mut waited) = (Vec::new(), Duration::ZERO);
        while let Verdict::Again(wait) = schedule.after(&unavailable()) {
            waits.push(wait.as_millis());
            waited += wait;
            // The schedule looks at the clock only to see how long it has been at it.
            schedule.started = Instant::now() - waited;
        }
        assert_eq!(waits, [25, 50, 100, 200]);
        assert_eq!(schedule.after(&unavailable()), Verdict::Away(AWAY.0));
        let mut old = Schedule::new(now_ms() - 12_000, now_ms() + 60_000);
        old.started -= PATIENCE;
        let Verdict::Away(away) = old.after(&unavailable()) else { panic!("stays") };
        assert_eq!(away.as_secs(), 3);
    }

    #[test]
    fn final_codes_are_final_and_the_end_is_the_end() {
        let mut schedule = Schedule::new(now_ms(), now_ms() + 60_000);
        assert_eq!(schedule.after(&Failed::new(ErrorCode::WrongPassword, "")), Verdict::Final);
        assert_eq!(Schedule::new(now_ms(), now_ms() + 60).after(&unavailable()), Verdict::Final);
        assert_eq!(Schedule::new(now_ms() - 10, now_ms() - 5).after(&unavailable()), Verdict::Final);
        // Near its end a job no longer goes away.
        let mut late = Schedule::new(now_ms() - 50_000, now_ms() + 1_400);
        late.started -= PATIENCE;
        assert!(matches!(late.after(&unavailable()), Verdict::Again(_)));
    }

    #[test]
    fn what_another_worker_may_do_is_tried_there_for_a_while() {
        let unknown = || Failed::new(ErrorCode::UnknownWorkerKey, "");
        let ends = |age: u64, left: u64| {
            let now = now_ms();
            Schedule::new(now - age, now + left).elsewhere(unknown())
        };
        assert_eq!(ends(0, 60_000), Stop::Away(AWAY.0, ErrorCode::UnknownWorkerKey));
        // The clock goes on between two looks at it.
        let Stop::Away(wait, ErrorCode::UnknownWorkerKey) = ends(9_000, 60_000) else { panic!("stays") };
        assert_eq!(wait.as_millis() / 100, 22);
        assert_eq!(ends(10_000, 60_000), Stop::Failed(unknown()));
        assert_eq!(ends(0, 1_000), Stop::Failed(unknown()), "too late to come back");
        // A question has no queue to go back to.
        let question = Schedule::for_question(now_ms(), now_ms() + 60_000);
        assert_eq!(question.elsewhere(unknown()), Stop::Failed(unknown()));
    }

    #[test]
    fn the_result_has_time_to_be_stored() {
        let expires = now_ms() + 5_000;
        let schedule = Schedule::new(now_ms(), expires);
        let kept = expires - schedule.deadline;
        assert!((300..=500).contains(&kept), "a tenth of what is left: {kept}");
        assert!(
            schedule.call_deadline() <= schedule.deadline && schedule.left() <= Duration::from_millis(5_000 - kept)
        );
    }
}
