//! Waiting for results: one ordered consumer for all jobs of an initiator, and a look at the stream itself now and then, so that
//! a lost connection cannot lose a result.
//!
//! A refusal is not a result. Anybody who may publish jobs can publish a copy of one without its signature, or on another
//! subject, and have it refused under the job's own digest, while the job itself goes on. So a refusal ends the wait only where
//! no result can come: the request as it stands cannot be accepted, or its job id belongs to another job's result.

use super::backend::ClientError;
use super::job::SignedRequest;
use crate::jobs::once::Unavailable;
use crate::jobs::results;
use crate::wire::subject::{self, RESULTS_STREAM};
use crate::wire::{ErrorCode, Failure, Fixed, InitiatorId, JobId, JobResult, Outcome};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use dashmap::DashMap;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

/// How often the stream itself is asked.
const LOOK: Duration = Duration::from_secs(2);

type Waiting = Arc<DashMap<JobId, Vec<mpsc::UnboundedSender<Arrived>>>>;

/// What came under a job's id.
#[derive(Clone)]
enum Arrived {
    Result(JobResult),
    Refusal(JobResult),
}

/// The results of one initiator's jobs.
pub struct Results {
    jetstream: Context,
    initiator: InitiatorId,
    waiting: Waiting,
    listener: AbortHandle,
}

impl Drop for Results {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Results {
    /// Starts to listen.
    #[must_use]
    pub fn listen(jetstream: Context, initiator: InitiatorId) -> Self {
        let waiting = Waiting::default();
        let listener = tokio::spawn(listen(jetstream.clone(), initiator.clone(), waiting.clone())).abort_handle();
        Self { jetstream, initiator, waiting, listener }
    }

    /// Expects the result of a request; call this before it is published.
    #[must_use]
    pub fn expect<'a>(&'a self, request: &'a SignedRequest) -> Expected<'a> {
        let mut expected = self.expect_of(&request.job_id, request.digest);
        expected.request = Some(request);
        expected
    }

    /// Expects the result of a job that was published as it should be.
    #[must_use]
    pub fn expect_of(&self, job_id: &JobId, digest: [u8; 32]) -> Expected<'_> {
        let (to, from) = mpsc::unbounded_channel();
        self.waiting.entry(job_id.clone()).or_default().push(to);
        Expected { results: self, job_id: job_id.clone(), digest, request: None, from, refused: None }
    }
}

/// One expected result. Dropping it ends the wait.
pub struct Expected<'a> {
    results: &'a Results,
    job_id: JobId,
    digest: [u8; 32],
    /// What was published, to tell whether a refusal can be about it.
    request: Option<&'a SignedRequest>,
    from: mpsc::UnboundedReceiver<Arrived>,
    /// The last refusal of these bytes.
    refused: Option<JobResult>,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.from.close();
        let waiting = &self.results.waiting;
        waiting.remove_if_mut(&self.job_id, |_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            waiters.is_empty()
        });
    }
}

impl Expected<'_> {
    /// The result of exactly this job (its digest is compared). A refusal is returned in its place only if no result can come.
    ///
    /// # Errors
    /// When `patience` ends: [`ClientError::Refused`] if these bytes were refused meanwhile, [`ClientError::Unavailable`] if the
    /// stream could not be asked in the end, else [`ClientError::Timeout`].
    pub async fn wait(mut self, patience: Duration) -> Result<JobResult, ClientError> {
        let until = Instant::now() + patience;
        loop {
            let looked = self.look().await;
            if let Ok(Some(found)) = looked {
                return Ok(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                looked?;
                return Err(match self.refused.take().map(|refusal| refusal.outcome) {
                    Some(Outcome::Error { error }) => ClientError::Refused(error),
                    _ => ClientError::Timeout,
                });
            }
            if let Ok(Some(result)) = timeout(left.min(LOOK), self.next()).await {
                return Ok(result);
            }
        }
    }

    /// The next message that ends the wait; `None` if the stream should be looked at.
    async fn next(&mut self) -> Option<JobResult> {
        loop {
            match self.from.recv().await {
                Some(Arrived::Result(result)) if result.job_digest == Fixed(self.digest) => return Some(result),
                Some(Arrived::Refusal(refusal)) if refusal.job_digest == Fixed(self.digest) => {
                    if self.request.is_some_and(SignedRequest::cannot_be_accepted) {
                        return Some(refusal);
                    }
                    // Whether the id is another job's, the stream tells.
                    if is_reuse(&refusal) {
                        return None;
                    }
                    self.refused = Some(refusal);
                }
                Some(_) => {}
                // The sender lives in the map while this waits.
                None => std::future::pending().await,
            }
        }
    }

    /// Asks the stream for the job's result and for its last refusal.
    async fn look(&mut self) -> Result<Option<JobResult>, Unavailable> {
        let Results { jetstream, initiator, .. } = self.results;
        let (own, refused) = (subject::result(initiator, &self.job_id), subject::refused(initiator, &self.job_id));
        let (stored, refused) =
            futures::try_join!(results::look_up(jetstream, &own), results::look_up(jetstream, &refused))?;
        let ours = |result: &JobResult| result.job_digest == Fixed(self.digest);
        // A job id has one result for good: under another job's there will be none for this one.
        let taken = stored.as_ref().is_some_and(|stored| !ours(stored));
        if let Some(result) = stored.filter(ours) {
            return Ok(Some(result));
        }
        let Some(refusal) = refused.filter(ours) else { return Ok(None) };
        let ends = self.request.is_some_and(SignedRequest::cannot_be_accepted) || (taken && is_reuse(&refusal));
        if ends {
            return Ok(Some(refusal));
        }
        self.refused = Some(refusal);
        Ok(None)
    }
}

fn is_reuse(refusal: &JobResult) -> bool {
    matches!(&refusal.outcome, Outcome::Error { error: Failure { code: ErrorCode::JobIdReused, .. } })
}

/// Hands new results to those who wait for them, for ever.
async fn listen(jetstream: Context, initiator: InitiatorId, waiting: Waiting) {
    loop {
        if let Err(error) = deliver(&jetstream, &initiator, &waiting).await {
            tracing::debug!(%error, "listening for results again");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn deliver(jetstream: &Context, initiator: &InitiatorId, waiting: &Waiting) -> Result<(), async_nats::Error> {
    let config = OrderedConfig {
        filter_subject: format!("mpc.result.{initiator}.>"),
        deliver_policy: DeliverPolicy::New,
        ..OrderedConfig::default()
    };
    let stream = jetstream.get_stream_no_info(RESULTS_STREAM).await?;
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let Ok(result) = serde_json::from_slice::<JobResult>(&message.payload) else { continue };
        let Some(waiters) = waiting.get(&result.job_id) else { continue };
        let own = *message.subject == subject::result(initiator, &result.job_id);
        for waiter in waiters.value() {
            let result = result.clone();
            let _ = waiter.send(if own { Arrived::Result(result) } else { Arrived::Refusal(result) });
        }
    }
    Ok(())
}
