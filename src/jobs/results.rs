//! The result of a job: stored once, by compare-and-set, whoever worked on it and how often.

use super::once::{self, Put, Unavailable};
use crate::telemetry::trace;
use crate::wire::subject::{self, RESULTS_STREAM};
use crate::wire::{InitiatorId, JobHeaders, JobId, JobResult};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::DirectGetErrorKind;

/// What the job's result subject holds after [`store`].
#[derive(Debug)]
pub enum Stored {
    /// The result that was given.
    Ours,
    /// An earlier result of the same job (same body): it stays, and whoever worked again goes on from it.
    Earlier(Box<JobResult>),
    /// The result of another job that used the same id.
    OtherJob,
}

/// Stores a result, unless the job has one.
///
/// # Errors
/// [`Unavailable`]; storing again is safe.
pub async fn store(jetstream: &Context, result: &JobResult) -> Result<Stored, Unavailable> {
    let subject = subject::result(&result.initiator, &result.job_id);
    let body = encode(result)?;
    match once::put(jetstream, RESULTS_STREAM, &subject, headers(), body.clone().into()).await? {
        Put::Stored => Ok(Stored::Ours),
        // An acknowledgement was lost, and the result stored by our own earlier try.
        Put::Existing(found) if found == body => Ok(Stored::Ours),
        Put::Existing(found) => Ok(match decode(&found) {
            Some(earlier) if earlier.job_digest == result.job_digest => Stored::Earlier(Box::new(earlier)),
            _ => Stored::OtherJob,
        }),
    }
}

/// The result stored for this initiator and job id, of whichever job. One that cannot be read counts as none: [`store`] will
/// then find it and call it another job's.
///
/// # Errors
/// [`Unavailable`].
pub async fn find(jetstream: &Context, initiator: &InitiatorId, job: &JobId) -> Result<Option<JobResult>, Unavailable> {
    find_at(jetstream, &subject::result(initiator, job)).await
}

/// The result stored on this subject.
///
/// # Errors
/// [`Unavailable`].
pub async fn find_at(jetstream: &Context, subject: &str) -> Result<Option<JobResult>, Unavailable> {
    let stored = once::get(jetstream, RESULTS_STREAM, subject).await?;
    Ok(stored.and_then(|bytes| decode(&bytes)))
}

/// The result stored on this subject, as any server that keeps the stream has it: one that was stored a moment ago may be missing. For
/// backends: the subject is part of the request's own, so that the server's permissions can keep them from the results of others.
///
/// # Errors
/// [`Unavailable`].
pub async fn look_up(jetstream: &Context, subject: &str) -> Result<Option<JobResult>, Unavailable> {
    let unavailable = |reason: String| Unavailable { stream: RESULTS_STREAM, reason };
    let stream = jetstream.get_stream_no_info(RESULTS_STREAM).await.map_err(|error| unavailable(error.to_string()))?;
    match stream.direct_get_last_for_subject(subject).await {
        Ok(message) => Ok(decode(&message.payload)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(unavailable(error.to_string())),
    }
}

/// Publishes the refusal of what the initiator did not send, or sent in conflict with an earlier job, beside the job's result
/// and not in its place.
///
/// # Errors
/// [`Unavailable`].
pub async fn refuse(jetstream: &Context, result: &JobResult) -> Result<(), Unavailable> {
    let unavailable = |reason: String| Unavailable { stream: RESULTS_STREAM, reason };
    let subject = subject::refused(&result.initiator, &result.job_id);
    let body = encode(result)?;
    let sent = jetstream.publish_with_headers(subject, headers(), body.into()).await;
    sent.map_err(|error| unavailable(error.to_string()))?.await.map_err(|error| unavailable(error.to_string()))?;
    Ok(())
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(JobHeaders::VERSION, "1");
    if let Some(trace) = trace::current() {
        trace.write(&mut headers);
    }
    headers
}

fn encode(result: &JobResult) -> Result<Vec<u8>, Unavailable> {
    serde_json::to_vec(result).map_err(|error| Unavailable { stream: RESULTS_STREAM, reason: error.to_string() })
}

fn decode(bytes: &[u8]) -> Option<JobResult> {
    serde_json::from_slice(bytes).inspect_err(|error| tracing::error!(%error, "unreadable result")).ok()
}
