//! The backend: publishes jobs at a steady pace, retries what the queue refuses or does not acknowledge, publishes some again for nothing, and
//! notes in the book what came.

use super::book::{Answer, Book};
use super::keys::{Keys, Share, password};
use super::stage::Stage;
use crate::interleaving::plan::Dice;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use nkeys::KeyPair;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use trefoil::client::{Backend, JobBuilder, Making, OldKey, SignedRequest, random_job_id};
use trefoil::seal::Secrets;
use trefoil::wire::{Batch, Curve, JobResult, KdfParams, Method, Op, Outcome, SealKey, SignInput};

/// How long jobs live: far longer than any fault, so that each must succeed.
pub const LIFETIME: Duration = Duration::from_secs(900);
/// Jobs that are under way at a time.
const IN_FLIGHT: usize = 64;
/// Of so many jobs in a row the first few are for the hot key: more than it may have waiting.
const ROW: u64 = 100;
const BURST: u64 = 14;
/// JetStream's code for a subject or stream that is full.
const FULL: u64 = 10_077;

pub struct Load {
    pub backend: Backend,
    pub jetstream: Context,
    pub authoriser: KeyPair,
    /// Builds the same backend's jobs for the bulk lane.
    pub bulk: JobBuilder,
    pub keys: Keys,
    pub book: Book,
    pub seed: u64,
    /// Publications for nothing.
    again: Mutex<JoinSet<()>>,
}

impl Load {
    pub fn new(backend: Backend, bulk: JobBuilder, jetstream: Context, authoriser: KeyPair, seed: u64) -> Arc<Self> {
        let (keys, book, again) = Default::default();
        Arc::new(Self { backend, jetstream, authoriser, bulk, keys, book, seed, again })
    }

    /// Publishes at least `jobs` jobs, one every `pace`, and goes on until the stage has no more faults or three times as many were begun; then
    /// waits for all results. The first `keys` make keys.
    pub async fn run(self: &Arc<Self>, stage: &Stage, keys: u64, jobs: u64, pace: Duration) {
        let mut running = JoinSet::new();
        for number in 0..keys {
            stage.begin_job();
            let (load, curve) = (Arc::clone(self), Curve::ALL[(number % 2) as usize]);
            running.spawn(async move { load.generate(load.backend.jobs(), curve).await });
        }
        while running.join_next().await.is_some() {}
        let places = Arc::new(Semaphore::new(IN_FLIGHT));
        let mut next = Instant::now();
        while stage.begun() < jobs || (stage.is_busy() && stage.begun() < 3 * jobs) {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (number, wanted) = (stage.begin_job(), stage.wanted());
            let load = Arc::clone(self);
            running.spawn(async move {
                load.job(number, &wanted).await;
                drop(place);
            });
            while running.try_join_next().is_some() {}
            next = (next + pace).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
        while running.join_next().await.is_some() {}
        let mut again = self.again.lock().await;
        while again.join_next().await.is_some() {}
    }

    async fn job(self: &Arc<Self>, number: u64, wanted: &[&'static str]) {
        let mut dice = Dice::new(self.seed ^ number.rotate_left(32));
        let drawn = dice.below(100);
        let jobs = if dice.below(4) == 0 { &self.bulk } else { self.backend.jobs() };
        let curve = dice.of(Curve::ALL);
        // What an armed fault waits for comes a bit more often.
        let wanted = if dice.below(6) == 0 { wanted.first().copied() } else { None };
        match (wanted, number % ROW, drawn) {
            (_, ..BURST, _) => {
                let share = Arc::clone(&self.keys.hot().live).read_owned().await;
                self.sign_with(jobs, &share, &input(&mut dice, Curve::Secp256k1), "sign, hot key", false).await;
            }
            (Some("generate"), ..) | (_, _, ..2) => self.generate(jobs, curve).await,
            (Some("refresh"), ..) | (_, _, 2..6) => self.replace(jobs, &mut dice, curve, Op::Refresh).await,
            (Some("recover"), ..) | (_, _, 6..10) => self.replace(jobs, &mut dice, curve, Op::Recover).await,
            (_, _, 10..14) => {
                let curve = if dice.below(4) == 0 { Curve::Ed25519 } else { Curve::Secp256k1 };
                self.batch(jobs, &mut dice, curve).await;
            }
            _ => {
                let share = self.keys.to_sign(&mut dice, curve).await;
                self.sign_with(jobs, &share, &input(&mut dice, curve), "sign", false).await;
            }
        }
    }

    fn reply(&self) -> SealKey {
        self.backend.reply_key().unwrap()
    }

    async fn generate(self: &Arc<Self>, jobs: &JobBuilder, curve: Curve) {
        let secrets = Secrets { password: Some(password(1)), ..Secrets::default() };
        let request =
            jobs.generate(random_job_id(), curve, KdfParams::Hkdf, &secrets, &self.reply(), LIFETIME).unwrap();
        if let Some(result) = self.perform("generate", &request, false).await
            && let Some(share) = self.made(&request, Making::Generation, result, 1)
        {
            self.keys.add(share);
        }
    }

    /// Refreshes or recovers a key, and makes the new share its live one.
    async fn replace(self: &Arc<Self>, jobs: &JobBuilder, dice: &mut Dice, curve: Curve, op: Op) {
        let Some((family, mut live)) = self.keys.to_replace(dice, curve) else {
            return self.generate(jobs, curve).await;
        };
        let (old, next) = (OldKey::from(&live.new.key), live.password % 250 + 1);
        let (request, making) = match op {
            Op::Refresh => {
                let secrets = Secrets { new_password: Some(password(next)), ..live.secrets() };
                let made = jobs.refresh(old.key_id, old.curve, KdfParams::Hkdf, &secrets, &self.reply(), LIFETIME);
                (made.unwrap(), Making::Refresh(&old))
            }
            _ => {
                let secrets = Secrets { password: Some(password(next)), ..Secrets::default() };
                let made = jobs.recover(old.key_id, old.curve, KdfParams::Hkdf, &secrets, &self.reply(), LIFETIME);
                let mut request = made.unwrap();
                request.authorise(&self.authoriser).unwrap();
                (request, Making::Recovery(&old))
            }
        };
        let name = if op == Op::Refresh { "refresh" } else { "recover" };
        if let Some(result) = self.perform(name, &request, false).await
            && let Some(share) = self.made(&request, making, result, next)
        {
            let old = std::mem::replace(&mut *live, share);
            family.replaced.lock().unwrap().push(old);
        }
    }

    fn made(&self, request: &SignedRequest, making: Making<'_>, result: JobResult, password: u8) -> Option<Share> {
        if matches!(result.outcome, Outcome::Error { .. }) {
            return None;
        }
        let made = self.backend.made(request, making, result);
        made.map_err(|error| {
            self.book.violation(format!("job {}: a result is not to be believed: {error}", request.job_id))
        })
        .map(|new| Share { new, password })
        .ok()
    }

    /// Signs once; `old` if the share was replaced, so that it must be refused.
    pub async fn sign_with(
        self: &Arc<Self>,
        jobs: &JobBuilder,
        share: &Share,
        input: &SignInput,
        op: &'static str,
        old: bool,
    ) {
        let (key, secrets) = (share.new.key.key_id, share.secrets());
        let request = jobs.sign(key, Method::Default, input, &secrets, &self.reply(), LIFETIME).unwrap();
        let Some(JobResult { outcome: Outcome::Ok { signature, .. }, .. }) = self.perform(op, &request, old).await
        else {
            return;
        };
        match signature {
            Some(signature) => {
                let (point, verified) = share.verify(input, &signature);
                self.book.signature(&request.job_id, &point, verified);
            }
            None => self.book.violation(format!("job {} has a result without a signature", request.job_id)),
        }
    }

    /// Signs more items than go side by side.
    async fn batch(self: &Arc<Self>, jobs: &JobBuilder, dice: &mut Dice, curve: Curve) {
        let live = self.keys.to_sign(dice, curve).await;
        let batch = Batch::new((0..10 + dice.below(8)).map(|_| input(dice, curve)).collect()).unwrap();
        let (key, secrets) = (live.new.key.key_id, live.secrets());
        let request = jobs.sign_batch(key, Method::Default, &batch, &secrets, &self.reply(), LIFETIME).unwrap();
        let Some(JobResult { outcome: Outcome::Ok { signatures, .. }, .. }) =
            self.perform("batch", &request, false).await
        else {
            return;
        };
        let signatures = signatures.unwrap_or_default();
        if signatures.len() != batch.items().len() {
            self.book.violation(format!("job {} has {} signatures", request.job_id, signatures.len()));
        }
        for (input, signature) in batch.items().iter().zip(&signatures) {
            let (point, verified) = live.verify(input, signature);
            self.book.signature(&request.job_id, &point, verified);
        }
    }

    /// Publishes a job until it is acknowledged or has its result, and awaits that. `None` if it has none long after its expiry.
    async fn perform(self: &Arc<Self>, op: &'static str, request: &SignedRequest, old: bool) -> Option<JobResult> {
        self.book.begin(&request.job_id, op, old);
        let mut result = std::pin::pin!(self.result(request));
        let result = tokio::select! {
            result = &mut result => result,
            () = self.publish(request) => {
                self.publish_again(request).await;
                result.await
            }
        }?;
        self.book.ended(&request.job_id, &result);
        Some(result)
    }

    async fn result(&self, request: &SignedRequest) -> Option<JobResult> {
        let until = Instant::now() + LIFETIME + Duration::from_secs(60);
        while Instant::now() < until {
            let patience = Duration::from_secs(30);
            match self.backend.result_of(&request.job_id, request.digest, patience).await {
                Ok(result) => return Some(result),
                Err(trefoil::client::ClientError::Refused(failure)) => {
                    self.book.violation(format!("job {} was refused: {}", request.job_id, failure.code));
                }
                Err(_) => {}
            }
        }
        None
    }

    /// Until the queue has acknowledged it.
    async fn publish(&self, request: &SignedRequest) {
        let mut wait = Duration::from_millis(50);
        while self.publish_once(request).await != Answer::Acknowledged {
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
    }

    async fn publish_once(&self, request: &SignedRequest) -> Answer {
        let sent = self.jetstream.publish_with_headers(
            request.subject.clone(),
            request.headers.clone(),
            request.body.clone().into(),
        );
        let sent = match sent.await {
            Ok(acknowledged) => acknowledged.await,
            Err(error) => Err(error),
        };
        let answer = match &sent {
            Ok(_) => Answer::Acknowledged,
            Err(error) => {
                let said = std::error::Error::source(error);
                let said = said.and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
                match (said.map(|said| said.error_code().0), error.kind()) {
                    (Some(FULL), _) => Answer::Full,
                    (Some(_), _) | (_, PublishErrorKind::StreamNotFound) => Answer::Unavailable,
                    _ => Answer::Lost,
                }
            }
        };
        self.book.published(&request.job_id, answer);
        answer
    }

    /// Now and then a backend publishes a job again: at once, or when it is long done. That changes nothing.
    async fn publish_again(self: &Arc<Self>, request: &SignedRequest) {
        let mut dice = Dice::new(u64::from_le_bytes(*request.digest.first_chunk().unwrap()));
        let wait = match dice.below(16) {
            0 => Duration::ZERO,
            1 => Duration::from_millis(dice.below(3_000)),
            _ => return,
        };
        let (load, request) = (Arc::clone(self), request.clone());
        self.again.lock().await.spawn(async move {
            sleep(wait).await;
            load.book.republished();
            load.publish_once(&request).await;
        });
    }
}

pub fn input(dice: &mut Dice, curve: Curve) -> SignInput {
    let mut bytes = [0; 32];
    bytes.fill_with(|| dice.below(256) as u8);
    match curve {
        Curve::Secp256k1 => {
            let path = (dice.below(3) == 0).then(|| format!("m/{}/{}", dice.below(9), dice.below(1_000)));
            SignInput::Secp256k1 { digest: bytes, path }
        }
        Curve::Ed25519 => SignInput::Ed25519 { message: bytes[..dice.below(33) as usize].to_vec() },
    }
}
