//! A subject that is written once: compare-and-set on "nothing stored here yet", read back from the stream's leader.

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind};
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;

/// JetStream could not be asked, or its answer did not come. What was published may or may not be stored: publishing it again
/// is safe and tells.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{stream}: {reason}")]
pub struct Unavailable {
    /// Name of the stream.
    pub stream: &'static str,
    /// What the server or the client library said.
    pub reason: String,
}

/// What a subject holds after [`put`].
#[derive(Debug, PartialEq, Eq)]
pub enum Put {
    /// The given record; it is stored and acknowledged.
    Stored,
    /// An earlier record, which stays.
    Existing(Bytes),
}

/// Stores `body` under `subject` unless something is stored there already. A lost acknowledgement followed by a second call
/// gives [`Put::Existing`] with the same bytes.
///
/// # Errors
/// [`Unavailable`].
#[tracing::instrument(level = "debug", name = "put", skip_all)]
pub async fn put(
    jetstream: &Context,
    stream: &'static str,
    subject: &str,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Put, Unavailable> {
    let unavailable = |reason: String| Unavailable { stream, reason };
    let message = PublishMessage::build()
        .headers(headers)
        .payload(body)
        .expected_stream(stream)
        .expected_last_subject_sequence(0);
    let sent = jetstream.send_publish(subject.to_owned(), message).await.map_err(|e| unavailable(e.to_string()))?;
    match sent.await {
        Ok(_) => Ok(Put::Stored),
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
            match get(jetstream, stream, subject).await? {
                Some(stored) => Ok(Put::Existing(stored)),
                None => Err(unavailable("a record vanished".into())),
            }
        }
        Err(error) => Err(unavailable(error.to_string())),
    }
}

/// The first record from this sequence on whose subject matches, and its sequence, as the stream's leader has it.
///
/// # Errors
/// [`Unavailable`].
pub async fn next(
    jetstream: &Context,
    stream: &'static str,
    subject: &str,
    from: u64,
) -> Result<Option<(u64, Bytes)>, Unavailable> {
    let found = next_message(jetstream, stream, subject, from).await?;
    Ok(found.map(|message| (message.sequence, message.payload)))
}

/// The same with subject and headers.
///
/// # Errors
/// [`Unavailable`].
pub async fn next_message(
    jetstream: &Context,
    stream: &'static str,
    subject: &str,
    from: u64,
) -> Result<Option<StreamMessage>, Unavailable> {
    let handle = jetstream.get_stream_no_info(stream).await;
    let handle = handle.map_err(|error| Unavailable { stream, reason: error.to_string() })?;
    found(stream, handle.get_first_raw_message_by_subject(subject, from).await)
}

/// The record under `subject`, as the stream's leader has it (a replica may lag behind).
///
/// # Errors
/// [`Unavailable`].
pub async fn get(jetstream: &Context, stream: &'static str, subject: &str) -> Result<Option<Bytes>, Unavailable> {
    Ok(last(jetstream, stream, subject).await?.map(|message| message.payload))
}

/// The same with its sequence and headers.
///
/// # Errors
/// [`Unavailable`].
pub async fn last(
    jetstream: &Context,
    stream: &'static str,
    subject: &str,
) -> Result<Option<StreamMessage>, Unavailable> {
    let handle = jetstream.get_stream_no_info(stream).await;
    let handle = handle.map_err(|error| Unavailable { stream, reason: error.to_string() })?;
    found(stream, handle.get_last_raw_message_by_subject(subject).await)
}

fn found(
    stream: &'static str,
    answer: Result<StreamMessage, LastRawMessageError>,
) -> Result<Option<StreamMessage>, Unavailable> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(cause) if cause.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            _ => Err(Unavailable { stream, reason: error.to_string() }),
        },
    }
}
