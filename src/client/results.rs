//! Waiting for results: one ordered consumer for all jobs of an initiator, and a look at the stream itself now and then, so that
//! a lost connection cannot lose a result.

use crate::jobs::once::Unavailable;
use crate::jobs::results;
use crate::wire::subject::{self, RESULTS_STREAM};
use crate::wire::{Fixed, InitiatorId, JobId, JobResult};
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

type Waiting = Arc<DashMap<JobId, Vec<mpsc::UnboundedSender<JobResult>>>>;

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

    /// Expects a result; call this before the job is published.
    #[must_use]
    pub fn expect(&self, job_id: &JobId, digest: [u8; 32]) -> Expected<'_> {
        let (to, from) = mpsc::unbounded_channel();
        self.waiting.entry(job_id.clone()).or_default().push(to);
        Expected { results: self, job_id: job_id.clone(), digest, from }
    }
}

/// One expected result. Dropping it ends the wait.
pub struct Expected<'a> {
    results: &'a Results,
    job_id: JobId,
    digest: [u8; 32],
    from: mpsc::UnboundedReceiver<JobResult>,
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
    /// The result of exactly this job (its digest is compared): the stored one, or a refusal. `None` if `patience` ends first.
    ///
    /// # Errors
    /// [`Unavailable`] if the stream could not be asked at the end.
    pub async fn wait(mut self, patience: Duration) -> Result<Option<JobResult>, Unavailable> {
        let until = Instant::now() + patience;
        loop {
            let looked = self.look().await;
            if let Ok(Some(found)) = looked {
                return Ok(Some(found));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return looked;
            }
            let mine = async {
                loop {
                    match self.from.recv().await {
                        Some(result) if result.job_digest == Fixed(self.digest) => break result,
                        Some(_) => {}
                        // The sender lives in the map while this waits.
                        None => std::future::pending().await,
                    }
                }
            };
            if let Ok(result) = timeout(left.min(LOOK), mine).await {
                return Ok(Some(result));
            }
        }
    }

    /// Asks the stream for the job's result and for its last refusal.
    async fn look(&self) -> Result<Option<JobResult>, Unavailable> {
        let Results { jetstream, initiator, .. } = self.results;
        let refused = subject::refused(initiator, &self.job_id);
        let (stored, refused) = futures::try_join!(
            results::find(jetstream, initiator, &self.job_id),
            results::find_at(jetstream, &refused)
        )?;
        Ok(stored.into_iter().chain(refused).find(|result| result.job_digest == Fixed(self.digest)))
    }
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
        let Ok(result) = serde_json::from_slice::<JobResult>(&message?.payload) else { continue };
        if let Some(waiters) = waiting.get(&result.job_id) {
            for waiter in waiters.value() {
                let _ = waiter.send(result.clone());
            }
        }
    }
    Ok(())
}
