//! The durable pull consumers that all workers share, one for each lane.
//!
//! A worker asks for no more jobs than it can start, tells the server every third of `ack_wait` that a job is still in hand,
//! and settles each job once: acknowledged (and confirmed by the server) after its result is stored, or given back with a delay.
//! A delivery that is dropped unsettled, because its worker died or panicked, comes back after `ack_wait`.

use super::attempts;
use super::place::{Limits, Place, Places};
use crate::fault;
use crate::wire::{Lane, subject};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::{AckKind, Context, Message, message::Acker};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

/// Name of the durable consumer of each queue.
pub const CONSUMER: &str = "workers";

/// How long the server holds a pull request open. Short, because a request that was lost in a reconnect is only noticed after
/// this time and a second of grace, and because a worker that stops listens until its last one is over.
const PULL: Duration = Duration::from_secs(1);
/// How long a worker that stops tries to say what it gives back.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// How the consumer behaves.
#[derive(Debug, Clone)]
pub struct ConsumerSettings {
    /// The streams to consume, one a lane.
    pub queues: Vec<(Lane, String)>,
    /// Name of this worker in the attempt records of what it gives back.
    pub worker: String,
    /// After this long without a sign of life from its worker a job is delivered again. Sets how fast a dead worker is
    /// replaced; 1 to 2 seconds.
    pub ack_wait: Duration,
    /// Jobs in hand at a time.
    pub limits: Limits,
    /// After the stop signal jobs in hand get this long to finish before they are abandoned (and delivered again elsewhere).
    pub grace: Duration,
}

/// One delivery of a job. It must be settled by [`Delivery::acknowledge`] or [`Delivery::give_back`].
pub struct Delivery {
    /// The queue that it came from.
    pub lane: Lane,
    /// `mpc.job.<op>.<keyId>`, or `mpc.bulk.<op>.<keyId>`.
    pub subject: String,
    /// The message's headers.
    pub headers: HeaderMap,
    /// The message's body, exactly as published.
    pub body: Bytes,
    /// Sequence of the job in its lane's stream.
    pub sequence: u64,
    /// 1 for the first delivery.
    pub times_delivered: u64,
    /// How long ago it was published, by the server's clock then and this one's now.
    pub waited: Duration,
    /// Its place among the jobs in hand, kept as long as the delivery.
    pub place: Place,
    receipt: Receipt,
}

/// What keeps a delivered job alive and settles it.
struct Receipt {
    acker: Arc<Acker>,
    in_progress: AbortHandle,
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.in_progress.abort();
    }
}

/// The server did not confirm in time; it may or may not have been told.
#[derive(Debug, thiserror::Error)]
#[error("job not settled: {0}")]
pub struct NotSettled(String);

impl Delivery {
    fn new(message: Message, lane: Lane, ack_wait: Duration, place: Place) -> Option<Self> {
        let (sequence, times_delivered, published) = {
            let info = message.info().ok()?;
            (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1), info.published)
        };
        let (message, acker) = message.split();
        let acker = Arc::new(acker);
        let in_progress = tokio::spawn({
            let acker = acker.clone();
            async move {
                let mut tick = tokio::time::interval(ack_wait / 3);
                tick.tick().await;
                loop {
                    tick.tick().await;
                    // A lost one does no harm: there are two more before the job is delivered again.
                    let _ = acker.ack_with(AckKind::Progress).await;
                }
            }
        })
        .abort_handle();
        place.begin();
        Some(Self {
            lane,
            subject: message.subject.to_string(),
            headers: message.headers.unwrap_or_default(),
            body: message.payload,
            sequence,
            times_delivered,
            waited: Duration::try_from(OffsetDateTime::now_utc() - published).unwrap_or_default(),
            place,
            receipt: Receipt { acker, in_progress },
        })
    }

    /// Removes the job from the queue, and waits until the server confirms it. Only after its result is stored.
    ///
    /// # Errors
    /// [`NotSettled`] if no confirmation came; the job may be delivered again, and then finds its result.
    pub async fn acknowledge(self) -> Result<(), NotSettled> {
        self.receipt.in_progress.abort();
        self.receipt.acker.double_ack().await.map_err(|error| NotSettled(error.to_string()))?;
        if let Some((_, op, key)) = subject::split_job(&self.subject) {
            fault::step("acknowledged", op, key);
        }
        Ok(())
    }

    /// Gives the job back to the queue, to be delivered again after `delay`, to any worker.
    ///
    /// # Errors
    /// [`NotSettled`] if it could not be sent; the job is then delivered again after `ack_wait`.
    pub async fn give_back(self, delay: Duration) -> Result<(), NotSettled> {
        self.receipt.in_progress.abort();
        self.receipt.acker.ack_with(AckKind::Nak(Some(delay))).await.map_err(|error| NotSettled(error.to_string()))
    }
}

/// Runs `handle` for every job, up to so many at a time, until `stop` becomes true; then gives back what has been pulled but
/// not started, waits for the jobs in hand (at most `grace` after the stop) and returns how many of them had to be abandoned.
///
/// Losing the server is not an error: pulling is tried again, with a growing delay, until it works or `stop` comes.
pub async fn run<H, F>(jetstream: Context, settings: ConsumerSettings, stop: watch::Receiver<bool>, handle: H) -> usize
where
    H: Fn(Delivery) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let places = Places::new(settings.limits);
    let pullers = settings.queues.iter().map(|(lane, stream)| {
        let puller = Puller {
            lane: *lane,
            stream,
            places: places.clone(),
            jetstream: &jetstream,
            consumer: None,
            stop: stop.clone(),
            told: None,
            jobs: JoinSet::new(),
            handle: &handle,
            settings: &settings,
        };
        puller.run()
    });
    futures::future::join_all(pullers).await.into_iter().sum()
}

/// Pulls the jobs of one lane.
struct Puller<'a, H> {
    lane: Lane,
    stream: &'a str,
    jetstream: &'a Context,
    settings: &'a ConsumerSettings,
    /// `None` before the first pull and after an error: it is looked up, and made if need be.
    consumer: Option<Consumer<pull::Config>>,
    places: Places,
    stop: watch::Receiver<bool>,
    /// When a pull request was interrupted by the stop.
    told: Option<Instant>,
    jobs: JoinSet<()>,
    handle: &'a H,
}

impl<H, F> Puller<'_, H>
where
    H: Fn(Delivery) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    /// Pulls until told to stop, and waits for the jobs in hand. How many of them had to be abandoned.
    async fn run(mut self) -> usize {
        let mut wait = Duration::ZERO;
        while !*self.stop.borrow() {
            self.reap();
            match self.pull().await {
                Ok(()) => wait = Duration::ZERO,
                Err(reason) => {
                    self.consumer = None;
                    wait = (wait * 2).clamp(Duration::from_millis(100), Duration::from_secs(2));
                    tracing::warn!(lane = %self.lane, %reason, wait_ms = wait.as_millis(), "cannot pull jobs");
                    let _ = timeout(wait, self.stop.wait_for(|stop| *stop)).await;
                }
            }
        }
        let deadline = self.told.unwrap_or_else(Instant::now) + self.settings.grace;
        while let Ok(Some(_)) = timeout_at(deadline, self.jobs.join_next()).await {}
        let abandoned = self.jobs.len();
        self.jobs.shutdown().await;
        abandoned
    }

    /// One pull request: as many jobs as there are free slots, each started as it comes. When told to stop, what else comes is given
    /// back.
    async fn pull(&mut self) -> Result<(), String> {
        let mut stop = self.stop.clone();
        let mut free = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            free = self.places.free(self.lane) => free,
        };
        let consumer = match &self.consumer {
            Some(consumer) => consumer,
            None => self.consumer.insert(durable(self.jetstream, self.stream, self.settings).await?),
        };
        // An operator's consumer may differ from our settings.
        let ack_wait = consumer.cached_info().config.ack_wait;
        let deadline = Instant::now() + PULL + Duration::from_secs(1);
        let mut batch = consumer
            .batch()
            .max_messages(free.len())
            .expires(PULL)
            .messages()
            .await
            .map_err(|error| error.to_string())?;
        loop {
            let next = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                next = timeout_at(deadline, batch.next()) => next,
            };
            let Ok(Some(message)) = next else { return Ok(()) };
            let message = message.map_err(|error| error.to_string())?;
            let Some(place) = free.pop() else { return Ok(()) };
            if let Some(delivery) = Delivery::new(message, self.lane, ack_wait, place) {
                self.jobs.spawn((self.handle)(delivery));
            }
        }
        // Told to stop: whatever comes goes to another worker at once, not after ack_wait. The server goes on answering the request
        // until it is filled or its time is over, and what it would send where nobody listens any more would be missed for so long, and
        // then be taken for what ended a worker.
        self.told = Some(Instant::now());
        let mut left = JoinSet::new();
        while let Ok(Some(Ok(message))) = timeout_at(deadline, batch.next()).await {
            left.spawn(leave(self.jetstream.clone(), self.settings.worker.clone(), self.lane, message));
        }
        while left.join_next().await.is_some() {}
        Ok(())
    }

    /// Forgets finished jobs. A panic in a job leaves its delivery unsettled, so that it counts as a crash.
    fn reap(&mut self) {
        while let Some(ended) = self.jobs.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a job's task failed");
            }
        }
    }
}

/// Gives back what was not begun, and says so, lest it count as a crash.
async fn leave(jetstream: Context, worker: String, lane: Lane, message: Message) {
    let info = message.info().map(|info| (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1)));
    if let Ok((sequence, times_delivered)) = info {
        let job = HEXLOWER.encode(&Sha256::digest(&message.payload));
        let note = attempts::not_started(&jetstream, &worker, (lane, sequence), job, times_delivered);
        let recorded = timeout(GIVE_BACK, note).await;
        tracing::debug!(sequence, ?recorded, "given back unstarted");
    }
    let _ = timeout(GIVE_BACK, message.ack_with(AckKind::Nak(None))).await;
}

/// The shared consumer of a queue, made if it does not exist.
async fn durable(
    jetstream: &Context,
    stream: &str,
    settings: &ConsumerSettings,
) -> Result<Consumer<pull::Config>, String> {
    let stream = jetstream.get_stream_no_info(stream).await.map_err(|error| error.to_string())?;
    let wanted = pull::Config {
        durable_name: Some(CONSUMER.into()),
        description: Some("All workers".into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: settings.ack_wait,
        // The worker counts crashes itself, so that a poison job ends in a result and not in silence.
        max_deliver: -1,
        // Jobs given back with a delay count here, so a small number lets one busy key stop all others.
        max_ack_pending: 50_000,
        ..pull::Config::default()
    };
    let found = stream.get_or_create_consumer(CONSUMER, wanted).await.map_err(|error| error.to_string())?;
    let config = &found.cached_info().config;
    let mut problems = Vec::new();
    if config.max_deliver > 0 {
        problems.push("max_deliver must be unlimited: a job that it drops ends in no result");
    }
    if config.ack_policy != AckPolicy::Explicit {
        problems.push("the ack policy must be explicit");
    }
    if !config.filter_subject.is_empty() || !config.filter_subjects.is_empty() {
        problems.push("it must take every subject of the stream");
    }
    if config.headers_only {
        problems.push("it must deliver bodies");
    }
    if config.ack_wait != settings.ack_wait {
        tracing::warn!(found = ?config.ack_wait, wanted = ?settings.ack_wait, "the consumer keeps the ack wait that it has");
    }
    if problems.is_empty() { Ok(found) } else { Err(format!("consumer {CONSUMER}: {}", problems.join("; "))) }
}
