//! How often a job has taken its worker down, so that a poison job still ends in a result.
//!
//! JetStream's delivery count cannot tell: giving a job back raises it too. So from a job's second delivery on, and whenever it is
//! given back, its worker writes a record: *started*, or *returned* alive, with the crashes so far. A delivery that finds
//! *started* (or a second delivery that finds nothing) knows that its predecessor died. The usual job is delivered once and
//! costs nothing.

use super::once::{self, Unavailable};
use super::streams::ATTEMPTS;
use async_nats::jetstream::Context;
use serde::{Deserialize, Serialize};

/// From this many crashes on a job is not tried again.
pub const POISON: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Phase {
    /// A worker has begun; if nothing follows, it died.
    Started,
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
    subject: String,
    job: String,
    crashes: u32,
}

impl<'a> Attempt<'a> {
    /// Finds out how often the job has crashed its worker, and records that it starts again. `sequence` is the job's in its
    /// stream, `job` its digest in hex.
    ///
    /// # Errors
    /// [`Unavailable`]; the job must then not be started.
    pub async fn begin(
        jetstream: &'a Context,
        sequence: u64,
        job: String,
        times_delivered: u64,
    ) -> Result<Self, Unavailable> {
        let mut attempt = Self { jetstream, subject: format!("mpc.attempt.{sequence}"), job, crashes: 0 };
        if times_delivered > 1 {
            let stored = once::get(jetstream, ATTEMPTS, &attempt.subject).await?;
            let before = stored.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            attempt.crashes = match before.filter(|record| record.job == attempt.job) {
                None => 1,
                Some(Record { phase: Phase::Started, crashes, .. }) => crashes.saturating_add(1),
                Some(Record { phase: Phase::Returned, crashes, .. }) => crashes,
            };
            attempt.record(Phase::Started).await?;
        }
        Ok(attempt)
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
        self.record(Phase::Returned).await
    }

    async fn record(&self, phase: Phase) -> Result<(), Unavailable> {
        let unavailable = |reason: String| Unavailable { stream: ATTEMPTS, reason };
        let record = Record { job: self.job.clone(), phase, crashes: self.crashes };
        let body = serde_json::to_vec(&record).map_err(|error| unavailable(error.to_string()))?;
        let sent = self.jetstream.publish(self.subject.clone(), body.into()).await;
        sent.map_err(|error| unavailable(error.to_string()))?.await.map_err(|error| unavailable(error.to_string()))?;
        Ok(())
    }
}
