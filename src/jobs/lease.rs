//! A lease on a key, across workers: whose turn it is. It saves sessions that node 1 would refuse; what makes concurrent jobs
//! *safe* is node 1's one session slot per key.
//!
//! A lease is one message on `mpc.lock.<keyId>`, written by compare-and-set on the subject's last sequence and read from the
//! stream's leader. Its own sequence in the stream is the fencing token, which only grows. It ends by its TTL unless it is
//! renewed, so that a dead worker's keys go on; every write here brings a TTL, over the remains of an earlier lease too. It
//! names the job and the worker: the same job, delivered again, takes it over at once. It ends early with an empty message that
//! lives a second; whoever waits hears of it, since a message to a stream reaches its subject's subscribers as well.
//!
//! A lease that is lost ends no work: it only means that the next job of the key takes it anew.

use super::once::{self, Unavailable};
use crate::wire::KeyId;
use crate::wire::subject::{self, LEASES_STREAM};
use async_nats::header::NATS_MESSAGE_TTL;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use dashmap::DashMap;
use data_encoding::HEXLOWER;
use futures::StreamExt;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Longest life of a lease, in seconds; one that claims more is not believed.
pub const LONGEST: u64 = 600;

/// How long the empty message that ends a lease stays: the shortest TTL there is.
const ENDED: Duration = Duration::from_secs(1);
/// Longest wait for JetStream's answers to one attempt.
const ANSWER: Duration = Duration::from_secs(1);
/// How long no lease is asked for after JetStream did not give an answer about one.
const TROUBLE: Duration = Duration::from_secs(2);
/// How often a lease is looked at that somebody else has: its end by TTL is announced to nobody.
const LOOK: Duration = Duration::from_millis(200);
/// Leases of others that are kept in mind before the old ones among them are forgotten.
const SEEN: usize = 4_096;
/// Attempts of one compare-and-set against others that try the same.
const RACES: u32 = 8;

/// What is stored while a lease is held.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    /// Name of the worker's process.
    worker: String,
    /// SHA-256 of the job's body, hex.
    job: String,
}

/// Takes leases for one worker. Cheap to clone.
#[derive(Clone)]
pub struct Leases(Arc<Inner>);

struct Inner {
    nats: async_nats::Client,
    jetstream: Context,
    worker: String,
    /// How long a lease lives without renewal, whole seconds.
    ttl: Duration,
    /// Sequences of the empty messages with which this worker ended leases, while they are there.
    ended: DashMap<KeyId, u64>,
    /// Leases that others have, since they are looked at, by whichever job: one that waits for a short time only, and comes again, would
    /// never see that a lease does not end.
    seen: DashMap<KeyId, Seen>,
    /// Until when JetStream is not asked.
    trouble: std::sync::Mutex<Option<Instant>>,
    /// Leases that are kept, or about to be ended.
    kept: watch::Sender<usize>,
    counters: OnceLock<Counters>,
}

/// What is counted of leases.
pub struct Counters {
    /// Leases taken from a worker that was gone.
    pub takeovers: IntCounter,
    /// Leases that another worker took from this one.
    pub lost: IntCounter,
}

/// What a subject holds, for whoever wants to write it.
enum Found {
    /// It may be written, expecting this sequence.
    Free(u64),
    /// The same job at another worker had it, which is gone: it may be written, expecting this sequence.
    Left(u64),
    /// Another worker's job has the lease.
    Taken { sequence: u64, ttl: Option<Duration> },
}

/// A lease that somebody else has, and since when it has not changed.
struct Seen {
    sequence: u64,
    since: Instant,
}

/// What an attempt to get a lease came to.
pub enum Attempt {
    /// It is there.
    Got(Lease),
    /// Another worker's job has it.
    Busy,
}

impl Leases {
    /// For the worker of this name. `ttl` is rounded up to whole seconds, at least one; at most [`LONGEST`].
    #[must_use]
    pub fn new(nats: async_nats::Client, jetstream: Context, worker: &str, ttl: Duration) -> Self {
        let ttl = Duration::from_secs(ttl.as_millis().div_ceil(1_000).max(1) as u64);
        Self(Arc::new(Inner {
            nats,
            jetstream,
            worker: worker.to_owned(),
            ttl,
            ended: DashMap::new(),
            seen: DashMap::new(),
            trouble: std::sync::Mutex::default(),
            kept: watch::Sender::new(0),
            counters: OnceLock::new(),
        }))
    }

    /// Has what is counted be counted here, from now on.
    pub fn count(&self, counters: Counters) {
        let _ = self.0.counters.set(counters);
    }

    /// A claim of this job (SHA-256 of its body) to the key's lease. No other job of this worker may have it, or claim it.
    #[must_use]
    pub fn claim(&self, key: KeyId, job: &[u8; 32]) -> Claim {
        Claim { inner: self.0.clone(), key, job: HEXLOWER.encode(job), subject: subject::lease(&key) }
    }

    /// Waits until the leases that were dropped are ended.
    pub async fn ended(&self) {
        let _ = self.0.kept.subscribe().wait_for(|kept| *kept == 0).await;
    }
}

/// One job's wish for a lease.
pub struct Claim {
    inner: Arc<Inner>,
    key: KeyId,
    job: String,
    subject: String,
}

impl Claim {
    /// Takes the lease if nobody else has it, or the same job at another worker, or whoever has it does not renew it.
    ///
    /// # Errors
    /// [`Unavailable`] if JetStream does not answer, and then for a while without asking it.
    pub async fn attempt(&mut self) -> Result<Attempt, Unavailable> {
        // Most keys' subjects are empty, or end with what this worker put there.
        let expected = self.inner.ended.get(&self.key).map_or(0, |sequence| *sequence);
        self.take(Some(expected)).await
    }

    /// Waits for the lease.
    ///
    /// # Errors
    /// As [`Claim::attempt`].
    pub async fn wait(mut self) -> Result<Lease, Unavailable> {
        // First the ear, then the look, so that no end falls between them.
        let mut heard = self.inner.nats.subscribe(self.subject.clone()).await.ok();
        loop {
            if let Attempt::Got(lease) = self.take(None).await? {
                return Ok(lease);
            }
            let ended = async {
                while let Some(heard) = &mut heard {
                    match heard.next().await {
                        // Whoever takes or renews it says something; an end is empty.
                        Some(message) if message.payload.is_empty() => return,
                        Some(_) => {}
                        None => break,
                    }
                }
                std::future::pending().await
            };
            let _ = timeout(LOOK, ended).await;
        }
    }

    async fn take(&mut self, expected: Option<u64>) -> Result<Attempt, Unavailable> {
        let inner = self.inner.clone();
        if inner.in_trouble() {
            return Err(unavailable("did not answer a moment ago"));
        }
        let taken = timeout(ANSWER, self.write_over(expected)).await.unwrap_or_else(|_| Err(unavailable("no answer")));
        taken.inspect_err(|error| inner.note_trouble(error))
    }

    /// Writes the lease over what is expected, or else over what is there.
    async fn write_over(&mut self, mut expected: Option<u64>) -> Result<Attempt, Unavailable> {
        for _ in 0..RACES {
            let (expected, takeover) = match expected.take() {
                Some(expected) => (expected, false),
                None => match self.look().await? {
                    Found::Free(sequence) => {
                        self.inner.seen.remove(&self.key);
                        (sequence, false)
                    }
                    Found::Left(sequence) => (sequence, true),
                    Found::Taken { sequence, ttl } if self.abandoned(sequence, ttl) => (sequence, true),
                    Found::Taken { .. } => break,
                },
            };
            if let Some(lease) = self.write_for_good(expected).await? {
                if let Some(counters) = self.inner.counters.get().filter(|_| takeover) {
                    counters.takeovers.inc();
                }
                return Ok(Attempt::Got(lease));
            }
        }
        Ok(Attempt::Busy)
    }

    /// Writes the lease, whether or not the caller goes on waiting: what nobody waits for any more is dropped when it is there, which
    /// ends it. Left to itself it would keep others from the key until its TTL is over.
    async fn write_for_good(&self, expected: u64) -> Result<Option<Lease>, Unavailable> {
        let (record, inner, key) = (self.inner.record(&self.job)?, self.inner.clone(), self.key);
        let (subject, job) = (self.subject.clone(), self.job.clone());
        let written = tokio::spawn(async move {
            let sequence = inner.write(&subject, record, inner.ttl, expected).await?;
            Ok(sequence.map(|sequence| taken(&inner, key, job, sequence)))
        });
        written.await.unwrap_or_else(|_| Err(unavailable("the write ended unexpectedly")))
    }

    /// What the subject holds.
    async fn look(&self) -> Result<Found, Unavailable> {
        let Some(message) = once::last(&self.inner.jetstream, LEASES_STREAM, &self.subject).await? else {
            return Ok(Found::Free(0));
        };
        let record = serde_json::from_slice::<Record>(&message.payload).ok();
        // Our own: of a lease that is being ended, or of which we did not hear that we had got it.
        let ours = record.as_ref().is_some_and(|record| record.worker == self.inner.worker);
        if message.payload.is_empty() || ours {
            return Ok(Found::Free(message.sequence));
        }
        if record.is_some_and(|record| record.job == self.job) {
            return Ok(Found::Left(message.sequence));
        }
        let ttl = message.headers.get(NATS_MESSAGE_TTL).and_then(|ttl| ttl.as_str().parse::<u64>().ok());
        Ok(Found::Taken { sequence: message.sequence, ttl: ttl.map(|ttl| Duration::from_secs(ttl.min(LONGEST))) })
    }

    /// Whether a lease has stood unchanged for twice its life: its TTL should have ended it, so it has none that works.
    fn abandoned(&self, sequence: u64, ttl: Option<Duration>) -> bool {
        let (now, seen) = (Instant::now(), &self.inner.seen);
        let before = seen.get(&self.key).map(|seen| (seen.sequence, seen.since));
        match before {
            Some((before, since)) if before == sequence => {
                let life = ttl.unwrap_or_default().max(self.inner.ttl);
                let abandoned = now.duration_since(since) > life.saturating_mul(2);
                if abandoned {
                    tracing::error!(key = %self.key, sequence, "a lease did not end by itself and is taken over");
                }
                abandoned
            }
            _ => {
                if seen.len() >= SEEN {
                    seen.retain(|_, seen| now.duration_since(seen.since) < Duration::from_secs(2 * LONGEST));
                }
                seen.insert(self.key, Seen { sequence, since: now });
                false
            }
        }
    }
}

/// A lease that was written, and is kept from now on.
fn taken(inner: &Arc<Inner>, key: KeyId, job: String, sequence: u64) -> Lease {
    inner.seen.remove(&key);
    let state = Arc::new(State { sequence: AtomicU64::new(sequence), lost: AtomicBool::new(false) });
    let (job, jobs) = watch::channel(job);
    inner.kept.send_modify(|kept| *kept += 1);
    tokio::spawn(keep(inner.clone(), key, jobs, state.clone()));
    Lease { state, job, since: Instant::now(), jobs: 1 }
}

/// What a lease and its keeper share.
struct State {
    sequence: AtomicU64,
    lost: AtomicBool,
}

/// A lease: renewed until it is dropped, then ended.
pub struct Lease {
    state: Arc<State>,
    job: watch::Sender<String>,
    since: Instant,
    jobs: u32,
}

impl Lease {
    /// The fencing token: higher than that of every earlier lease of the key.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.state.sequence.load(Ordering::Acquire)
    }

    /// Whether another worker has taken it, or may have.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.state.lost.load(Ordering::Acquire)
    }

    /// How many jobs it has served, and for how long.
    #[must_use]
    pub fn served(&self) -> (u32, Duration) {
        (self.jobs, self.since.elapsed())
    }

    /// Goes on with this job (SHA-256 of its body), which does not wait until that is stored.
    pub fn serve(&mut self, job: &[u8; 32]) {
        self.jobs = self.jobs.saturating_add(1);
        self.job.send_replace(HEXLOWER.encode(job));
    }
}

/// Renews a lease until it is dropped, then ends it.
async fn keep(inner: Arc<Inner>, key: KeyId, mut jobs: watch::Receiver<String>, state: Arc<State>) {
    let subject = subject::lease(&key);
    let mut before = jobs.borrow().clone();
    // `Err`: the lease was dropped.
    while !matches!(timeout(inner.ttl / 3, jobs.changed()).await, Ok(Err(_))) {
        if state.lost.load(Ordering::Acquire) {
            continue;
        }
        let job = jobs.borrow_and_update().clone();
        let renewed = inner.renew(&subject, &job, &before, state.sequence.load(Ordering::Acquire)).await;
        before = job;
        match renewed {
            Ok(Some(sequence)) => state.sequence.store(sequence, Ordering::Release),
            Ok(None) => {
                tracing::info!(%key, "a lease went to another worker");
                if let Some(counters) = inner.counters.get() {
                    counters.lost.inc();
                }
                state.lost.store(true, Ordering::Release);
            }
            Err(error) => tracing::warn!(%key, %error, "a lease was not renewed"),
        }
    }
    let ended = match state.lost.load(Ordering::Acquire) {
        true => Ok(None),
        false => inner.write(&subject, Bytes::new(), ENDED, state.sequence.load(Ordering::Acquire)).await,
    };
    inner.kept.send_modify(|kept| *kept -= 1);
    match ended {
        Ok(Some(sequence)) => {
            // So that the key's next job here need not ask for it.
            inner.ended.insert(key, sequence);
            tokio::time::sleep(ENDED).await;
            inner.ended.remove_if(&key, |_, ended| *ended == sequence);
        }
        Ok(None) => {}
        Err(error) => tracing::info!(%key, %error, "a lease was not ended; its TTL ends it"),
    }
}

impl Inner {
    fn record(&self, job: &str) -> Result<Bytes, Unavailable> {
        let record = Record { worker: self.worker.clone(), job: job.to_owned() };
        serde_json::to_vec(&record).map(Bytes::from).map_err(|error| unavailable(error.to_string()))
    }

    /// The lease's new sequence, for this job after that of `before`. `None` if it is another's.
    async fn renew(&self, subject: &str, job: &str, before: &str, sequence: u64) -> Result<Option<u64>, Unavailable> {
        let record = self.record(job)?;
        if let Some(sequence) = self.write(subject, record.clone(), self.ttl, sequence).await? {
            return Ok(Some(sequence));
        }
        // An earlier renewal may be stored of which we did not hear, or the lease may have ended by its TTL.
        let expected = match once::last(&self.jetstream, LEASES_STREAM, subject).await? {
            None => 0,
            Some(found) => match serde_json::from_slice::<Record>(&found.payload) {
                Ok(ours) if ours.worker == self.worker && (ours.job == job || ours.job == before) => found.sequence,
                _ => return Ok(None),
            },
        };
        self.write(subject, record, self.ttl, expected).await
    }

    /// Writes a message with this TTL if the subject's last sequence is the expected one. `None` if it is another.
    async fn write(
        &self,
        subject: &str,
        body: Bytes,
        ttl: Duration,
        expected: u64,
    ) -> Result<Option<u64>, Unavailable> {
        let message = PublishMessage::build()
            .payload(body)
            .expected_stream(LEASES_STREAM)
            .expected_last_subject_sequence(expected)
            .ttl(ttl);
        let sent = self.jetstream.send_publish(subject.to_owned(), message).await;
        match sent.map_err(|error| unavailable(error.to_string()))?.await {
            Ok(stored) => Ok(Some(stored.sequence)),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
            Err(error) => Err(unavailable(error.to_string())),
        }
    }

    fn in_trouble(&self) -> bool {
        let trouble = self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        trouble.is_some_and(|until| Instant::now() < until)
    }

    fn note_trouble(&self, error: &Unavailable) {
        if !self.in_trouble() {
            tracing::error!(%error, "no leases: jobs go on without, and node 1 keeps them apart");
            let mut trouble = self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *trouble = Some(Instant::now() + TROUBLE);
        }
    }
}

fn unavailable(reason: impl Into<String>) -> Unavailable {
    Unavailable { stream: LEASES_STREAM, reason: reason.into() }
}
