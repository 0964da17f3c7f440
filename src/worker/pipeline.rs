//! One delivery of a job, from the queue to its stored result.
//!
//! parse and verify -> count crashes -> a result already? -> times -> work -> store the result by compare-and-set ->
//! new shares: commit at both nodes -> acknowledge -> event. Nothing here ends without a result or the job back in the queue.
//!
//! A job to sign is not looked up at its first delivery, when it hardly ever has a result: node 1, whose ledger has each job that got as
//! far as the password attempt, says when to look (`sign`).

use super::confirm::Confirming;
use super::failure::Failed;
use super::generate::generate;
use super::hold::Held;
use super::manage::manage;
use super::orders::order;
use super::password::PasswordJob;
use super::public_key::public_key;
use super::retry::{Schedule, Stop, call_deadline};
use super::sign::{Closing, Inputs, Signed, sign};
use super::telling::Teller;
use super::{Shared, commit};
use crate::clock::now_ms;
use crate::fault;
use crate::jobs::attempts::{Attempt, POISON};
use crate::jobs::consumer::Delivery;
use crate::jobs::once::Unavailable;
use crate::jobs::results::{self, Stored};
use crate::telemetry::trace::{self, TraceContext};
use crate::wire::{
    Address, ErrorCode, Fixed, Job, JobError, JobHeaders, JobResult, Op, Outcome, Payload, VERSION, subject,
};
use data_encoding::HEXLOWER;
use futures::FutureExt;
use sha2::{Digest, Sha256};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a result is tried to be stored before the job goes back to the queue.
const STORE: Duration = Duration::from_secs(10);
/// How long a job stays away whose result is stored and whose commit must wait for a node: a quarter of the result's age, within
/// these bounds.
const COMMIT_AWAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// How long a job stays away that has to run alone and cannot.
const NOT_ALONE: Duration = Duration::from_secs(1);
/// Age below which a job that is delivered for the first time is taken for one that was published once, milliseconds.
const YOUNG: u64 = 2_000;
/// A job stays away for so long when JetStream itself is in trouble.
const TROUBLE: End = End::Away(Duration::from_secs(1), ErrorCode::Overloaded);

/// Work that is done and must be stored, and what follows when it is.
struct Done {
    outcome: Outcome,
    then: Then,
    /// Holds the key until all of it is done.
    _guard: Option<Held>,
}

enum Then {
    Nothing,
    Close(Closing),
    Commit,
}

impl From<Failed> for Done {
    fn from(failed: Failed) -> Self {
        Self { outcome: failed.outcome(), then: Then::Nothing, _guard: None }
    }
}

/// Where a delivery ends.
enum End {
    Acknowledge,
    Away(Duration, ErrorCode),
    /// Away, with the main work not begun.
    Postponed(Duration, ErrorCode),
}

/// Takes one delivery to its end.
pub async fn handle(shared: Arc<Shared>, delivery: Delivery) {
    let taken = Instant::now();
    let op = subject::split_job(&delivery.subject).and_then(|(_, op, _)| op.parse::<Op>().ok());
    let first = (delivery.times_delivered <= 1).then_some(delivery.waited);
    let _in_flight = shared.metrics.delivered(op, delivery.lane, first);
    let end = delivered(&shared, &delivery, taken).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "attempts cannot be read");
        TROUBLE
    });
    let settled = match end {
        End::Acknowledge => delivery.acknowledge().await,
        End::Away(delay, why) | End::Postponed(delay, why) => {
            shared.metrics.gave_back(op, why);
            delivery.give_back(delay).await
        }
    };
    if let Err(error) = settled {
        tracing::warn!(%error, "the job will be delivered again");
    }
}

/// Counts the attempt, and makes it: alone, if the job may have ended a worker.
async fn delivered(shared: &Shared, delivery: &Delivery, taken: Instant) -> Result<End, Unavailable> {
    let digest = HEXLOWER.encode(&Sha256::digest(&delivery.body));
    let (job, times) = ((delivery.lane, delivery.sequence), delivery.times_delivered);
    let attempt = Attempt::look(&shared.jetstream, &shared.worker_id, job, digest, times).await?;
    let alone = attempt.is_suspect();
    // Its record stays as it is: whether another worker ended by it is still to be seen.
    let Some(_company) = shared.company(alone).await else { return Ok(End::Away(NOT_ALONE, ErrorCode::Overloaded)) };
    attempt.start().await?;
    let parse = || Job::parse(&delivery.subject, JobHeaders::from_nats(Some(&delivery.headers)), &delivery.body);
    // What makes the parser panic is a mistake of ours, and must not go round for ever.
    let parsed = std::panic::catch_unwind(AssertUnwindSafe(parse)).unwrap_or_else(|_| {
        let message = "this body stops the parser; the worker's log says where".to_owned();
        Err(JobError { code: ErrorCode::Internal, message, address: None })
    });
    let end = match parsed {
        Ok(job) => {
            // Such a job seldom has a result: it is looked for beside the work.
            let first =
                delivery.times_delivered <= 1 && job.op() == Op::Sign && now_ms() < job.issued_at.saturating_add(YOUNG);
            let schedule = Schedule::of_delivery(job.issued_at, job.expires_at, delivery.place.clone(), alone, !first);
            let teller = Teller { taken, crashes: attempt.crashes() };
            let traced = trace::begin(TraceContext::from_headers(Some(&delivery.headers)), |trace| {
                let trace = trace.map(tracing::field::display);
                tracing::info_span!("job", op = job.op().as_str(), job = %job.job_id, key = %job.key_id, trace)
            });
            Box::pin(traced.run(known(shared, &job, teller, schedule))).await
        }
        Err(error) => refused(shared, &delivery.body, error).await,
    };
    let end = end.unwrap_or_else(|error| {
        tracing::warn!(%error, "JetStream is in trouble");
        TROUBLE
    });
    let noted = match end {
        End::Acknowledge => Ok(()),
        End::Away(..) => attempt.returned().await,
        End::Postponed(..) => attempt.postponed().await,
    };
    if let Err(error) = noted {
        tracing::warn!(%error, "an attempt was not recorded as returned");
    }
    Ok(end)
}

/// A body that is no job: its sender gets the reason where the body says who that is.
async fn refused(shared: &Shared, body: &[u8], error: JobError) -> Result<End, Unavailable> {
    tracing::info!(%error, "job refused");
    let Some(Address { initiator, job_id, refused }) = error.address else {
        shared.metrics.refused(error.code);
        return Ok(End::Acknowledge);
    };
    let result = JobResult {
        version: VERSION,
        job_id,
        key_id: None,
        initiator,
        op: None,
        job_digest: Fixed(Sha256::digest(body).into()),
        completed_at: now_ms(),
        outcome: Outcome::failed(error.code, error.message),
    };
    if refused {
        refuse(shared, error.code, &result).await?;
        return Ok(End::Acknowledge);
    }
    match results::store(&shared.jetstream, &result).await? {
        Stored::Ours => shared.metrics.stored_unread(error.code),
        Stored::Earlier(_) => {}
        Stored::OtherJob => refuse_id(shared, result).await?,
    }
    Ok(End::Acknowledge)
}

/// Answers beside the results.
async fn refuse(shared: &Shared, code: ErrorCode, result: &JobResult) -> Result<(), Unavailable> {
    results::refuse(&shared.jetstream, result).await?;
    shared.metrics.refused(code);
    Ok(())
}

/// The job id belongs to another job.
async fn refuse_id(shared: &Shared, result: JobResult) -> Result<(), Unavailable> {
    refuse(shared, ErrorCode::JobIdReused, &reused(result)).await
}

/// The same result saying that the job id belongs to another job.
fn reused(result: JobResult) -> JobResult {
    let outcome = Outcome::failed(ErrorCode::JobIdReused, "another job with this id has a result already");
    JobResult { outcome, ..result }
}

/// An authentic job.
async fn known(shared: &Shared, job: &Job, teller: Teller, mut schedule: Schedule) -> Result<End, Unavailable> {
    if schedule.has_looked()
        && let Some(earlier) = results::find(&shared.jetstream, &job.initiator, &job.job_id).await?
    {
        return answered(shared, job, earlier, teller).await;
    }
    if now_ms().saturating_sub(job.expires_at) > shared.results_kept.as_millis() as u64 {
        // The job may have had a result, which is kept no longer, and there must never be two that differ.
        let late = Outcome::failed(ErrorCode::JobExpired, "so long ago that its result is kept no more, if it had one");
        refuse(shared, ErrorCode::JobExpired, &JobResult::of(job, now_ms(), late)).await?;
        return Ok(End::Acknowledge);
    }
    teller.started(shared, job).await;
    fault::step("taken", job.op().as_str(), job.key_id);
    let crashes = teller.crashes;
    let done = if crashes >= POISON {
        Failed::new(ErrorCode::PoisonJob, format!("{crashes} workers ended while they worked on this job")).into()
    } else {
        // The work keeps its own deadlines; this one is for what waits on something else than a node.
        let limit = schedule.left() + Duration::from_millis(25);
        let work = AssertUnwindSafe(timeout(limit, work(shared, job, &mut schedule))).catch_unwind();
        match work.await {
            Ok(Ok(Ok(done))) => done,
            Ok(Ok(Err(Stop::Failed(failed)))) => match schedule.again_later(&failed) {
                Some(delay) => return Ok(End::Away(delay, failed.code)),
                None => failed.into(),
            },
            Ok(Ok(Err(Stop::Earlier(earlier)))) => return answered(shared, job, *earlier, teller).await,
            Ok(Ok(Err(Stop::Away(delay, why)))) => return Ok(End::Away(delay, why)),
            Ok(Ok(Err(Stop::Postponed(delay, why)))) => return Ok(End::Postponed(delay, why)),
            Ok(Err(_)) => Failed::new(ErrorCode::Overloaded, "the job's time was over before it was done").into(),
            Err(_) => Failed::new(ErrorCode::Internal, "the worker failed; its log says where").into(),
        }
    };
    finish(shared, job, done, teller).await
}

/// A job whose id has a result.
async fn answered(shared: &Shared, job: &Job, earlier: JobResult, teller: Teller) -> Result<End, Unavailable> {
    if earlier.job_digest.0 == job.digest {
        teller.ended_before(shared, job, &earlier).await;
        return Ok(committed(shared, job, &earlier, teller).await);
    }
    refuse_id(shared, JobResult::of(job, now_ms(), earlier.outcome)).await?;
    Ok(End::Acknowledge)
}

/// Does what the job asks for, after what a restored node must hear first.
async fn work(shared: &Shared, job: &Job, schedule: &mut Schedule) -> Result<Done, Stop> {
    let mut confirming = Confirming::default();
    loop {
        match attempt(shared, job, schedule).await {
            Err(stop) => confirming.after(shared, stop, schedule).await?,
            done => return done,
        }
    }
}

async fn attempt(shared: &Shared, job: &Job, schedule: &mut Schedule) -> Result<Done, Stop> {
    shared.admit(job, now_ms())?;
    if shared.keys.is_full(&job.key_id, job.lane) && !matches!(job.payload, Payload::Manage(_)) {
        schedule.leave(Failed::new(ErrorCode::KeyBusy, "too many jobs wait for this key")).await?;
    }
    Ok(match &job.payload {
        Payload::Generate { curve, kdf, .. }
        | Payload::Recover { curve, kdf, .. }
        | Payload::Refresh { curve, kdf, .. } => {
            let made = generate(shared, job, *curve, *kdf, schedule).await?;
            let outcome = Outcome::generated(made.key, made.secrets);
            Done { outcome, then: Then::Commit, _guard: Some(made.guard) }
        }
        Payload::Sign { input, .. } => signed(sign(shared, job, Inputs::One(input), schedule).await?),
        Payload::SignBatch { batch, .. } => signed(sign(shared, job, Inputs::Batch(batch), schedule).await?),
        Payload::PublicKey => loop {
            match public_key(shared, job, schedule.call_deadline()).await {
                Ok(key) => {
                    let outcome = Outcome::of_key(key);
                    break Done { outcome, then: Then::Nothing, _guard: None };
                }
                Err(failed) => schedule.pause(failed).await?,
            }
        },
        Payload::Validate { .. } | Payload::ChangePassword { .. } => {
            let outcome = PasswordJob::prepare(shared, job, schedule).await?.run(schedule).await?;
            Done { outcome, then: Then::Nothing, _guard: None }
        }
        Payload::Manage(asked) => loop {
            match manage(shared, job, asked, schedule).await {
                Ok(outcome) => break Done { outcome, then: Then::Nothing, _guard: None },
                Err(failed) => schedule.pause(failed).await?,
            }
        },
        Payload::Order(state) => {
            let outcome = Outcome::ordered(order(shared, job, *state, schedule).await?);
            Done { outcome, then: Then::Nothing, _guard: None }
        }
    })
}

/// The key's next job may go on while this one's result is stored: node 1 has let the slot go, and every check of what it sent is done.
fn signed(Signed { outcome, closing, guard }: Signed) -> Done {
    drop(guard);
    Done { outcome, then: Then::Close(closing), _guard: None }
}

/// Stores the result, and does what follows.
async fn finish(shared: &Shared, job: &Job, done: Done, teller: Teller) -> Result<End, Unavailable> {
    if let Payload::Recover { .. } | Payload::Refresh { .. } | Payload::ChangePassword { .. } | Payload::Order(_) =
        job.payload
    {
        // The key has other shares now, or another password, or is not to sign.
        shared.forget_unlocked(job.key_id);
    }
    let result = JobResult::of(job, now_ms(), done.outcome);
    let stored = match done.then {
        Then::Close(closing) => futures::join!(store(shared, &result), closing.send(call_deadline())).0?,
        Then::Nothing | Then::Commit => store(shared, &result).await?,
    };
    fault::step("result-stored", job.op().as_str(), job.key_id);
    match stored {
        Stored::Ours => {
            shared.metrics.stored(job, &result.outcome, teller.taken.elapsed());
            teller.ended(shared, job, &result).await;
            Ok(committed(shared, job, &result, teller).await)
        }
        Stored::Earlier(earlier) => {
            // Two workers had the job; the other's result stands, and what we prepared will never be the key.
            if let Some(ours) = commit::generated(&result)
                && commit::generated(&earlier).is_none_or(|theirs| theirs.transcript != ours.transcript)
            {
                commit::discard(shared, ours.key_id, ours.transcript.0);
            }
            teller.ended_before(shared, job, &earlier).await;
            Ok(committed(shared, job, &earlier, teller).await)
        }
        Stored::OtherJob => {
            refuse_id(shared, result).await?;
            Ok(End::Acknowledge)
        }
    }
}

/// Stores a result, again and again for a while: it may be the only copy of a new share.
async fn store(shared: &Shared, result: &JobResult) -> Result<Stored, Unavailable> {
    let started = Instant::now();
    loop {
        match results::store(&shared.jetstream, result).await {
            Err(error) if started.elapsed() < STORE => {
                tracing::warn!(%error, job = %result.job_id, "the result is not stored yet");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            stored => {
                shared.metrics.publish_duration.observe(started.elapsed().as_secs_f64());
                return stored;
            }
        }
    }
}

/// The job has a stored result. If it made shares, both nodes commit them; then the job is done.
async fn committed(shared: &Shared, job: &Job, result: &JobResult, teller: Teller) -> End {
    let Some(key) = commit::generated(result) else { return End::Acknowledge };
    match commit::commit(shared, key).await {
        Ok(()) => {
            teller.committed(shared, job).await;
            End::Acknowledge
        }
        // The attempt was discarded, another one became the key, its source went elsewhere, or its owner destroyed it: there is
        // nothing left to commit.
        Err(failed)
            if matches!(
                failed.code,
                ErrorCode::UnknownKey
                    | ErrorCode::JobIdReused
                    | ErrorCode::JobSuperseded
                    | ErrorCode::KeyRetired
                    | ErrorCode::KeyDestroyed
                    | ErrorCode::ShareOutdated
            ) =>
        {
            tracing::error!(key = %key.key_id, %failed, "a node refused to commit");
            End::Acknowledge
        }
        // Whatever else keeps a node from it, silence or trouble of its own, passes. A commit does not expire.
        Err(failed) => {
            tracing::warn!(key = %key.key_id, %failed, "the key waits for its commit");
            let age = Duration::from_millis(now_ms().saturating_sub(result.completed_at));
            End::Away((age / 4).clamp(COMMIT_AWAY.0, COMMIT_AWAY.1), failed.code)
        }
    }
}
