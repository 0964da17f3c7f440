//! Looking for a job that waits in the queue.

use super::once::{self, Unavailable};
use crate::wire::{InitiatorId, Job, JobHeaders, JobId, KeyId, Lane, subject};
use async_nats::jetstream::Context;

/// Whether this initiator's job is in the queue of a key, in either lane, waiting or running. Copies that somebody altered do not count.
///
/// # Errors
/// [`Unavailable`].
pub async fn holds(
    jetstream: &Context,
    initiator: &InitiatorId,
    job: &JobId,
    key: &KeyId,
) -> Result<bool, Unavailable> {
    for lane in Lane::ALL {
        let (stream, jobs) = (subject::stream_of(*lane), subject::jobs_of(*lane, key));
        let mut from = 0;
        // Ends: each step goes on behind a message that was there, and a key's queue is bounded.
        while let Some(message) = once::next_message(jetstream, stream, &jobs, from).await? {
            let headers = JobHeaders::from_nats(Some(&message.headers));
            let found = Job::parse(&message.subject, headers, &message.payload);
            if found.is_ok_and(|found| found.initiator == *initiator && found.job_id == *job) {
                return Ok(true);
            }
            from = message.sequence.saturating_add(1);
        }
    }
    Ok(false)
}
