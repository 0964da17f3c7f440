//! Offers jobs and measures: a closed loop keeps so many under way, an open loop publishes at a fixed rate whatever happens.
//!
//! A job's latency is the time from when it *should* have been published to when its result reached the backend, so that a stall
//! counts against every job that it delays, also those that could not be published while it lasted.

use crate::site::Site;
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use dashmap::DashMap;
use futures::StreamExt;
use hdrhistogram::Histogram;
use rand_core::{OsRng, RngCore};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use trefoil::client::verify;
use trefoil::wire::{Batch, JobResult, Outcome, SignInput};

/// JetStream's refusal of a subject that is full.
const FULL: ErrorCode = ErrorCode(10_077);
/// After this long a job counts as lost.
const LOST: Duration = Duration::from_secs(120);

/// Before a publication that was refused is tried again; each further one waits twice as long. Each wait is shorter by chance, by up to
/// half: clients that were refused at once would otherwise all come back at once, again and again.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// A job, made before the clock runs.
pub struct Planned {
    pub subject: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Last token of the subject that its result comes on.
    pub name: String,
    pub check: Check,
    /// Jobs of one group have a histogram of their own.
    pub group: usize,
}

/// How the result is checked, after the clock has stopped.
pub enum Check {
    /// The stored bytes are all there is.
    Stored,
    Signature {
        public_key: Vec<u8>,
        input: SignInput,
    },
    Batch {
        public_key: Vec<u8>,
        chain_code: [u8; 32],
        batch: Batch,
    },
}

/// What offers jobs and hears of their results.
#[derive(Clone)]
pub struct Generator {
    jetstream: Context,
    waiting: Arc<DashMap<String, oneshot::Sender<(Instant, Bytes)>>>,
    refusals: Arc<AtomicU64>,
}

/// What came of one load.
pub struct Run {
    /// Microseconds, by group.
    pub latency: Vec<Histogram<u64>>,
    /// When each job was done, seconds from the start, in order, by group.
    pub done: Vec<Vec<f64>>,
    /// Jobs without a valid result, by what was wrong.
    pub errors: BTreeMap<String, u64>,
    /// Publications that the queue refused because it was full, and that were tried again.
    pub refusals: u64,
    pub seconds: f64,
}

impl Run {
    fn new(groups: usize) -> Self {
        Self {
            latency: (0..groups).map(|_| Histogram::new_with_bounds(1, 600_000_000, 3).unwrap()).collect(),
            done: vec![Vec::new(); groups],
            errors: BTreeMap::new(),
            refusals: 0,
            seconds: 0.0,
        }
    }

    /// Jobs a second of a group: from the first tenth of the jobs to the last, so that neither the start nor the end counts.
    pub fn rate(&self, group: usize) -> f64 {
        let done = &self.done[group];
        let (from, to) = (done.len() / 10, done.len() - 1 - done.len() / 10);
        if to <= from { 0.0 } else { (to - from) as f64 / (done[to] - done[from]) }
    }
}

/// One job that is done.
struct Done {
    index: usize,
    from: Instant,
    answer: Result<(Instant, Bytes), String>,
}

impl Generator {
    /// Listens to `filter` in `stream` as a backend does, by an ordered consumer.
    pub async fn listen(client: async_nats::Client, stream: &str, filter: String) -> Self {
        let jetstream = jetstream::new(client);
        let config =
            OrderedConfig { filter_subject: filter, deliver_policy: DeliverPolicy::New, ..OrderedConfig::default() };
        let consumer = jetstream.get_stream_no_info(stream).await.unwrap().create_consumer(config).await.unwrap();
        let mut messages = consumer.messages().await.unwrap();
        let waiting: Arc<DashMap<String, oneshot::Sender<(Instant, Bytes)>>> = Arc::default();
        let answered = waiting.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let name = message.subject.rsplit('.').next().unwrap_or_default();
                if let Some((_, waiter)) = answered.remove(name) {
                    let _ = waiter.send((Instant::now(), message.payload.clone()));
                }
            }
        });
        Self { jetstream, waiting, refusals: Arc::default() }
    }

    /// Publishes one job, again while the queue is full, and waits for its result.
    async fn offer(&self, job: &Planned) -> Result<(Instant, Bytes), String> {
        let (to, from) = oneshot::channel();
        self.waiting.insert(job.name.clone(), to);
        let publish = async {
            let mut pause = FIRST_PAUSE;
            loop {
                let message = PublishMessage::build().headers(job.headers.clone()).payload(job.body.clone());
                let sent = match self.jetstream.send_publish(job.subject.clone(), message).await {
                    Ok(sent) => sent.await,
                    Err(error) => Err(error),
                };
                let Err(error) = sent else { return Ok(()) };
                let said = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<jetstream::Error>());
                if said.is_none_or(|said| said.error_code() != FULL) {
                    return Err(format!("not published: {error}"));
                }
                self.refusals.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(pause.mul_f64(1.0 - 0.5 * f64::from(OsRng.next_u32()) / f64::from(u32::MAX))).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        };
        let answer = tokio::time::timeout(LOST, async {
            publish.await?;
            from.await.map_err(|_| "the listener ended".to_owned())
        });
        let answer = answer.await.unwrap_or_else(|_| Err("no result".to_owned()));
        self.waiting.remove(&job.name);
        answer
    }

    /// Keeps `in_flight` jobs under way until all are done.
    pub async fn closed(&self, jobs: Arc<Vec<Planned>>, in_flight: usize) -> Run {
        let started = Instant::now();
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..in_flight.min(jobs.len()) {
            let (generator, jobs, next) = (self.clone(), jobs.clone(), next.clone());
            tasks.spawn(async move {
                let mut done = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { return done };
                    let from = Instant::now();
                    done.push(Done { index, from, answer: generator.offer(job).await });
                }
            });
        }
        let done = tasks.join_all().await.into_iter().flatten().collect();
        self.measured(started, &jobs, done)
    }

    /// As [`Generator::closed`], until `stop` comes: then what is under way is no longer waited for. The refusals are its own.
    pub async fn flood(self, jobs: Arc<Vec<Planned>>, in_flight: usize, stop: oneshot::Receiver<()>) -> Run {
        let generator = Self { refusals: Arc::default(), ..self };
        let (started, next) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let (to, mut done) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for _ in 0..in_flight {
            let (generator, jobs, next, to) = (generator.clone(), jobs.clone(), next.clone(), to.clone());
            tasks.spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { return };
                    let from = Instant::now();
                    let _ = to.send(Done { index, from, answer: generator.offer(job).await });
                }
            });
        }
        let _ = stop.await;
        tasks.shutdown().await;
        done.close();
        let mut all = Vec::new();
        while let Some(one) = done.recv().await {
            all.push(one);
        }
        generator.measured(started, &jobs, all)
    }

    /// Publishes `rate` jobs a second, evenly.
    pub async fn open(&self, jobs: Arc<Vec<Planned>>, rate: f64) -> Run {
        let started = Instant::now();
        let (to, mut due) = mpsc::unbounded_channel();
        let count = jobs.len();
        // A thread of its own: timers of the runtime tick in milliseconds, and wait for whatever runs.
        let pacer = std::thread::spawn(move || {
            for index in 0..count {
                let at = started + Duration::from_secs_f64(index as f64 / rate);
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                if to.send((index, at)).is_err() {
                    return;
                }
            }
        });
        let mut tasks = JoinSet::new();
        while let Some((index, from)) = due.recv().await {
            let (generator, jobs) = (self.clone(), jobs.clone());
            tasks.spawn(async move { Done { index, from, answer: generator.offer(&jobs[index]).await } });
        }
        pacer.join().unwrap();
        let done = tasks.join_all().await;
        self.measured(started, &jobs, done)
    }

    fn measured(&self, started: Instant, jobs: &[Planned], done: Vec<Done>) -> Run {
        let groups = jobs.iter().map(|job| job.group + 1).max().unwrap_or(1);
        let mut run = Run::new(groups);
        for Done { index, from, answer } in done {
            let job = &jobs[index];
            let checked = answer.and_then(|(at, bytes)| check(&job.check, &bytes).map(|()| at));
            match checked {
                Ok(at) => {
                    let micros = at.saturating_duration_since(from).as_micros() as u64;
                    run.latency[job.group].saturating_record(micros.max(1));
                    run.done[job.group].push(at.saturating_duration_since(started).as_secs_f64());
                }
                Err(error) => *run.errors.entry(error).or_default() += 1,
            }
        }
        for done in &mut run.done {
            done.sort_by(f64::total_cmp);
        }
        run.seconds = run.done.iter().filter_map(|done| done.last()).copied().fold(0.0, f64::max);
        run.refusals = self.refusals.swap(0, Ordering::Relaxed);
        run
    }
}

fn check(check: &Check, bytes: &[u8]) -> Result<(), String> {
    if matches!(check, Check::Stored) {
        return Ok(());
    }
    let result: JobResult = serde_json::from_slice(bytes).map_err(|_| "unreadable result".to_owned())?;
    let checked = match (check, result.outcome) {
        (_, Outcome::Error { error }) => return Err(error.code.to_string()),
        (Check::Signature { public_key, input }, Outcome::Ok { signature: Some(signature), .. }) => {
            verify::signature_bytes(public_key, input, &signature.signature.0, signature.recovery_id)
        }
        (Check::Batch { public_key, chain_code, batch }, Outcome::Ok { signatures: Some(signatures), .. }) => {
            verify::signatures(public_key, chain_code, batch, &signatures)
        }
        _ => return Err("a result without signatures".to_owned()),
    };
    checked.map_err(|error| error.to_string())
}

/// Makes `count` jobs on all cores.
pub fn plan(site: &Site, count: usize, make: impl Fn(&Site, usize) -> Planned + Sync) -> Arc<Vec<Planned>> {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let share = count.div_ceil(threads).max(1);
    let made = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..count)
            .step_by(share)
            .map(|from| {
                let make = &make;
                scope
                    .spawn(move || (from..(from + share).min(count)).map(|index| make(site, index)).collect::<Vec<_>>())
            })
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    });
    Arc::new(made)
}
