//! How often a job has taken its worker down, so that a poison job still ends in a result.
//!
//! JetStream's delivery count cannot tell: giving a job back raises it too. So from a job's second delivery on, and whenever it is
//! given back, its worker writes a record: *started*, with its name and the crashes so far, or *returned* alive. A delivery that
//! finds that another worker *started* (or a second delivery that finds nothing) knows that its predecessor died, or is cut off. A
//! job that was ever returned does not take workers down, so the count begins anew. The usual job is delivered once and costs
//! nothing.
//!
//! A worker that dies takes all its jobs with it, and one of them may have been the cause. Each of them is then suspected, and a
//! suspect runs alone in its worker, from before its record says *started*: so nobody is counted for what another did more than
//! once, and the count goes on for the one that ends a worker alone.

use super::once::{self, Unavailable};
use super::streams::ATTEMPTS;
use crate::wire::Lane;
use async_nats::jetstream::Context;
use serde::{Deserialize, Serialize};

/// From this many crashes on a job is not tried again.
pub const POISON: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Phase {
    /// The worker of this name has begun; if nothing follows, it died.
    Started(String),
    /// The worker gave the job back alive.
    Returned,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// SHA-256 of the job's body, hex: a job stream that was made anew counts its sequences anew.
    job: String,
    phase: Phase,
    crashes: u32,
}

/// The attempt record of one delivery.
pub struct Attempt<'a> {
    jetstream: &'a Context,
    worker: &'a str,
    subject: String,
    job: String,
    crashes: u32,
    /// Whether this is the job's first delivery.
    first: bool,
}

impl<'a> Attempt<'a> {
    /// Finds out how often the job has crashed its worker; this one is `worker`. `sequence` is the job's in its lane's stream, `job`
    /// its digest in hex.
    ///
    /// # Errors
    /// [`Unavailable`]; the job must then not be started.
    pub async fn look(
        jetstream: &'a Context,
        worker: &'a str,
        (lane, sequence): (Lane, u64),
        job: String,
        times_delivered: u64,
    ) -> Result<Self, Unavailable> {
        let first = times_delivered <= 1;
        let mut attempt = Self { jetstream, worker, subject: subject(lane, sequence), job, crashes: 0, first };
        if !first {
            let stored = once::get(jetstream, ATTEMPTS, &attempt.subject).await?;
            let before = stored.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            attempt.crashes = match before.filter(|record| record.job == attempt.job) {
                None => 1,
                // Ourselves, and we live: the server did not hear of us for a while, or we did not hear that it had stored this.
                Some(Record { phase: Phase::Started(name), crashes, .. }) if name == worker => crashes,
                Some(Record { phase: Phase::Started(_), crashes, .. }) => crashes.saturating_add(1),
                Some(Record { phase: Phase::Returned, crashes, .. }) => crashes,
            };
        }
        Ok(attempt)
    }

    /// Records that the job starts; a suspect must be alone by now.
    ///
    /// # Errors
    /// [`Unavailable`]; the job must then not be started.
    pub async fn start(&self) -> Result<(), Unavailable> {
        if self.first {
            return Ok(());
        }
        if let Err(error) = self.record(Phase::Started(self.worker.to_owned()), self.crashes).await {
            // It may be stored all the same, and nobody starts now.
            let _ = self.postponed().await;
            return Err(error);
        }
        Ok(())
    }

    /// Whether a worker ended while it had this job in hand.
    pub fn is_suspect(&self) -> bool {
        self.crashes > 0
    }

    /// Deliveries of this job that ended with their worker.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Records that the job is given back alive; call it before doing so.
    ///
    /// # Errors
    /// [`Unavailable`]; the job may be given back all the same, and then counts one crash too many.
    pub async fn returned(&self) -> Result<(), Unavailable> {
        self.record(Phase::Returned, 0).await
    }

    /// Records that the job is given back before its work had begun, so that its crashes count as before.
    ///
    /// # Errors
    /// As [`Attempt::returned`].
    pub async fn postponed(&self) -> Result<(), Unavailable> {
        self.record(Phase::Returned, self.crashes).await
    }

    async fn record(&self, phase: Phase, crashes: u32) -> Result<(), Unavailable> {
        let unavailable = |reason: String| Unavailable { stream: ATTEMPTS, reason };
        let record = Record { job: self.job.clone(), phase, crashes };
        let body = serde_json::to_vec(&record).map_err(|error| unavailable(error.to_string()))?;
        let sent = self.jetstream.publish(self.subject.clone(), body.into()).await;
        sent.map_err(|error| unavailable(error.to_string()))?.await.map_err(|error| unavailable(error.to_string()))?;
        Ok(())
    }
}

/// Records that a job which this worker has not begun with is given back, as a worker does with those that reach it while it
/// stops. Crashes count as before. Arguments as of [`Attempt::look`].
///
/// # Errors
/// As [`Attempt::returned`].
pub async fn not_started(
    jetstream: &Context,
    worker: &str,
    place: (Lane, u64),
    job: String,
    times_delivered: u64,
) -> Result<(), Unavailable> {
    Attempt::look(jetstream, worker, place, job, times_delivered).await?.postponed().await
}

/// Each lane's stream counts its jobs from 1.
fn subject(lane: Lane, sequence: u64) -> String {
    match lane {
        Lane::Interactive => format!("mpc.attempt.{sequence}"),
        Lane::Bulk => format!("mpc.attempt.bulk-{sequence}"),
    }
}
