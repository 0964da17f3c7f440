//! How much is in the queues and in the stream of results, as the server counts it.

use super::consumer::CONSUMER;
use super::once::{self, Unavailable};
use crate::wire::Lane;
use crate::wire::subject::{self, RESULTS_STREAM};
use async_nats::jetstream::Context;
use std::time::Duration;
use time::OffsetDateTime;

/// The queue of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Jobs in it, those being worked on included.
    pub jobs: u64,
    /// Those of them that no worker ever had.
    pub pending: u64,
    /// Age of the oldest job that is not done, by the server's clock then and this one's now; zero if there is none.
    pub oldest: Duration,
}

/// The stream of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultsState {
    /// Consumers that read it.
    pub readers: usize,
    /// Results in it.
    pub kept: u64,
}

/// Asks for the state of a lane's queue.
///
/// # Errors
/// [`Unavailable`], also while no worker has ever asked for a job.
pub async fn queue(jetstream: &Context, lane: Lane) -> Result<QueueState, Unavailable> {
    let name = subject::stream_of(lane);
    let unavailable = |reason: String| Unavailable { stream: name, reason };
    let stream = jetstream.get_stream(name).await.map_err(|error| unavailable(error.to_string()))?;
    let state = &stream.cached_info().state;
    let consumer = stream.consumer_info(CONSUMER).await.map_err(|error| unavailable(error.to_string()))?;
    let done = consumer.ack_floor.stream_sequence;
    let since = if state.messages == 0 {
        None
    } else if state.first_sequence > done {
        Some(state.first_timestamp)
    } else {
        // After its crash a server may have messages again that were acknowledged. They are never delivered, so they are no jobs.
        let next = once::next_message(jetstream, name, subject::all_of(lane), done.saturating_add(1)).await?;
        next.map(|message| message.time)
    };
    let oldest = since.and_then(|since| Duration::try_from(OffsetDateTime::now_utc() - since).ok());
    Ok(QueueState { jobs: state.messages, pending: consumer.num_pending, oldest: oldest.unwrap_or_default() })
}

/// Asks for the state of the stream of results.
///
/// # Errors
/// [`Unavailable`].
pub async fn results(jetstream: &Context) -> Result<ResultsState, Unavailable> {
    let stream = jetstream.get_stream(RESULTS_STREAM).await;
    let stream = stream.map_err(|error| Unavailable { stream: RESULTS_STREAM, reason: error.to_string() })?;
    let state = &stream.cached_info().state;
    Ok(ResultsState { readers: state.consumer_count, kept: state.messages })
}
