//! How often a job has taken its worker down, so that a poison job still ends in a result.
//!
//! JetStream's delivery count cannot tell: giving a job back raises it too. So from a job's second delivery on, and whenever it is
//! given back, its worker writes a record: *started*, with its name and the crashes so far, or *returned* alive. A delivery that
//! finds that another worker *started* (or a second delivery that finds nothing) knows that its predecessor died, or is cut off. A
//! job that was ever returned does not take workers down, so the count begins anew. The usual job is delivered once and costs
//! nothing.

use super::once::{self, Unavailable};
use super::streams::ATTEMPTS;
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
    subject: String,
    job: String,
    crashes: u32,
}

impl<'a> Attempt<'a> {
    /// Finds out how often the job has crashed its worker, and records that it starts again, at this `worker`. `sequence` is the
    /// job's in its stream, `job` its digest in hex.
    ///
    /// # Errors
    /// [`Unavailable`]; the job must then not be started.
    pub async fn begin(
        jetstream: &'a Context,
        worker: &str,
        sequence: u64,
        job: String,
        times_delivered: u64,
    ) -> Result<Self, Unavailable> {
        let mut attempt = Self { jetstream, subject: subject(sequence), job, crashes: 0 };
        if times_delivered > 1 {
            let stored = once::get(jetstream, ATTEMPTS, &attempt.subject).await?;
            let before = stored.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            attempt.crashes = match before.filter(|record| record.job == attempt.job) {
                None => 1,
                // Ourselves, and we live: the server did not hear of us for a while, or we did not hear that it had stored this.
                Some(Record { phase: Phase::Started(name), crashes, .. }) if name == worker => crashes,
                Some(Record { phase: Phase::Started(_), crashes, .. }) => crashes.saturating_add(1),
                Some(Record { phase: Phase::Returned, .. }) => 0,
            };
            if let Err(error) = attempt.record(Phase::Started(worker.to_owned())).await {
                // It may be stored all the same, and nobody starts now.
                let _ = attempt.returned().await;
                return Err(error);
            }
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
        write(self.jetstream, self.subject.clone(), &Record { job: self.job.clone(), phase, crashes: self.crashes })
            .await
    }
}

/// Records that a job which no worker has begun with is given back, as a worker does with those that reach it while it stops.
///
/// # Errors
/// As [`Attempt::returned`].
pub async fn not_started(jetstream: &Context, sequence: u64, job: String) -> Result<(), Unavailable> {
    write(jetstream, subject(sequence), &Record { job, phase: Phase::Returned, crashes: 0 }).await
}

fn subject(sequence: u64) -> String {
    format!("mpc.attempt.{sequence}")
}

async fn write(jetstream: &Context, subject: String, record: &Record) -> Result<(), Unavailable> {
    let unavailable = |reason: String| Unavailable { stream: ATTEMPTS, reason };
    let body = serde_json::to_vec(record).map_err(|error| unavailable(error.to_string()))?;
    let sent = jetstream.publish(subject, body.into()).await;
    sent.map_err(|error| unavailable(error.to_string()))?.await.map_err(|error| unavailable(error.to_string()))?;
    Ok(())
}
