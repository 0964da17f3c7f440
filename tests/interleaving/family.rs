//! One key through its interleaving: its jobs, the shares that they made, and what must hold when all is quiet.

use super::plan::{Act, Plan, Step};
use super::world::World;
use crate::deployment::material;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::StreamExt;
use futures::future::join_all;
use nkeys::KeyPair;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use trefoil::client::{Backend, ClientError, Making, NewKey, OldKey, SignedRequest, SigningMaterial};
use trefoil::seal::Secrets;
use trefoil::vault::Password;
use trefoil::wire::{
    Curve, Disposition, ErrorCode, JobResult, KdfParams, KeyId, KeyState, Method, Outcome, SignInput, subject,
};
use zeroize::Zeroizing;

/// How long the jobs of an interleaving live.
pub const LIFETIME: Duration = Duration::from_secs(30);
/// How long anything may take to become quiet after that.
const PATIENCE: Duration = Duration::from_secs(120);

/// Passwords are machine-made, so that stretching them costs nothing.
fn password(number: u8) -> Password {
    Password::new(Zeroizing::new(vec![number; 32])).unwrap()
}

/// A share of the key with its password.
struct Share {
    new: NewKey,
    password: u8,
}

impl Share {
    fn material(&self) -> SigningMaterial {
        material(&self.new)
    }

    fn name(&self) -> (KeyId, [u8; 32]) {
        (self.new.key.key_id, self.new.key.transcript)
    }
}

/// What is left of an interleaving that went well.
pub struct Report {
    /// Whether the fault happened.
    pub fired: bool,
    /// How the jobs ended: operation and code.
    pub outcomes: BTreeMap<String, u64>,
    /// The key's one live share at the end, if a key was made at all, and those that it replaced or won against.
    pub live: Option<(KeyId, [u8; 32])>,
    pub dead: Vec<(KeyId, [u8; 32])>,
    /// Every key id that a job of this interleaving could have made.
    pub ids: Vec<KeyId>,
}

pub struct Family<'a> {
    plan: &'a Plan,
    world: &'a World,
    backend: &'a Backend,
    jetstream: &'a Context,
    authoriser: &'a KeyPair,
    /// In the order in which their results came; the first is the generation's.
    shares: Mutex<Vec<Share>>,
    requests: Mutex<Vec<SignedRequest>>,
    outcomes: Mutex<BTreeMap<String, u64>>,
    ids: Mutex<Vec<KeyId>>,
}

type Checked<T> = Result<T, String>;

impl<'a> Family<'a> {
    pub fn new(
        plan: &'a Plan,
        world: &'a World,
        backend: &'a Backend,
        jetstream: &'a Context,
        authoriser: &'a KeyPair,
    ) -> Self {
        let (shares, requests, outcomes, ids) = Default::default();
        Self { plan, world, backend, jetstream, authoriser, shares, requests, outcomes, ids }
    }

    /// Runs the interleaving and checks what it leaves.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub async fn run(self) -> Checked<Report> {
        let plan = self.plan;
        let secrets = Secrets { password: Some(password(1)), ..Secrets::default() };
        let (jobs, reply) = (self.backend.jobs(), self.backend.reply_key().unwrap());
        let id = trefoil::client::random_job_id();
        let request = jobs.generate(id, plan.curve, KdfParams::Hkdf, &secrets, &reply, LIFETIME).unwrap();
        self.ids.lock().unwrap().push(request.key_id);
        if plan.armed == 0 {
            self.arm(&[request.key_id]);
        }
        let result = self.result("generate", &request).await?;
        if matches!(result.outcome, Outcome::Ok { .. }) {
            self.keep(&request, Making::Generation, result, 1)?;
            for (number, phase) in plan.phases.iter().enumerate() {
                self.phase(number, phase).await?;
            }
        }
        let fired = self.world.disarm(plan.seed, plan.fault);
        if plan.lost {
            self.lose_the_queue().await;
            self.first_uses().await?;
        }
        self.quiet().await?;
        self.one_result_each().await?;
        let live = self.live().await?;
        let dead = self.dead(live).await?;
        let (ids, outcomes) = (self.ids.into_inner().unwrap(), self.outcomes.into_inner().unwrap());
        Ok(Report { fired, outcomes, live, dead, ids })
    }

    fn arm(&self, keys: &[KeyId]) {
        let keys: Vec<_> = keys.iter().map(KeyId::to_string).collect();
        self.world.arm(self.plan.seed, self.plan.fault, &keys);
    }

    /// Jobs beside each other.
    async fn phase(&self, number: usize, steps: &[Step]) -> Checked<()> {
        let newest = { self.shares.lock().unwrap().last().map(|share| OldKey::from(&share.new.key)).unwrap() };
        let recoveries = steps.iter().map(|step| {
            (step.act == Act::Recover).then(|| {
                let mut request =
                    self.backend.recovery(&newest, KdfParams::Hkdf, password(2 + number as u8), LIFETIME).unwrap();
                request.authorise(self.authoriser).unwrap();
                self.ids.lock().unwrap().push(KeyId::derive(self.backend.jobs().initiator(), &request.job_id));
                request
            })
        });
        let recoveries: Vec<_> = recoveries.collect();
        if self.plan.armed == number + 1 {
            let ids = self.ids.lock().unwrap().clone();
            self.arm(&ids);
        }
        let running = steps.iter().zip(recoveries).map(|(step, recovery)| async move {
            tokio::time::sleep(Duration::from_millis(step.after)).await;
            self.step(number, *step, recovery).await
        });
        join_all(running).await.into_iter().collect()
    }

    async fn step(&self, number: usize, step: Step, recovery: Option<SignedRequest>) -> Checked<()> {
        let (old, material, secret) = {
            let shares = self.shares.lock().unwrap();
            let share = &shares[shares.len().saturating_sub(1 + step.share)];
            (OldKey::from(&share.new.key), share.material(), share.password)
        };
        match step.act {
            Act::Recover => {
                let request = recovery.unwrap();
                let from = OldKey { key_id: request.key_id, epoch: None, ..old };
                let result = self.result("recover", &request).await?;
                if matches!(result.outcome, Outcome::Ok { .. }) {
                    self.keep(&request, Making::Recovery(&from), result, 2 + number as u8)?;
                }
            }
            Act::Refresh => {
                let next = 20 + number as u8;
                let (now, then) = (password(secret), password(next));
                let secrets = Secrets {
                    password: Some(now),
                    new_password: Some(then),
                    encrypted_share: Some(material.encrypted_share),
                    secret_store: Some(material.secret_store),
                };
                let (jobs, reply) = (self.backend.jobs(), self.backend.reply_key().unwrap());
                let request = jobs.refresh(old.key_id, old.curve, KdfParams::Hkdf, &secrets, &reply, LIFETIME).unwrap();
                let result = self.result("refresh", &request).await?;
                if matches!(result.outcome, Outcome::Ok { .. }) {
                    self.keep(&request, Making::Refresh(&old), result, next)?;
                }
            }
            Act::Sign => {
                let (input, secrets) = (input(self.plan.curve, step.after as u8), secrets(&material, secret));
                let (jobs, reply) = (self.backend.jobs(), self.backend.reply_key().unwrap());
                let request = jobs.sign(material.key_id, Method::Default, &input, &secrets, &reply, LIFETIME).unwrap();
                let result = self.result("sign", &request).await?;
                self.verifies(&material, &input, &result)?;
            }
        }
        Ok(())
    }

    /// Keeps a share that a result brought, if its result is one to be believed.
    fn keep(&self, request: &SignedRequest, making: Making<'_>, result: JobResult, password: u8) -> Checked<()> {
        let new = self
            .backend
            .made(request, making, result)
            .map_err(|error| format!("a result is not to be believed: {error}"))?;
        self.shares.lock().unwrap().push(Share { new, password });
        Ok(())
    }

    fn verifies(&self, key: &SigningMaterial, input: &SignInput, result: &JobResult) -> Checked<()> {
        let Outcome::Ok { signature, .. } = &result.outcome else { return Ok(()) };
        let signature = signature.as_ref().ok_or("a sign job without a signature")?;
        trefoil::client::verify::signature(&key.public_key, &key.chain_code, input, signature)
            .map_err(|error| format!("a signature does not verify: {error}"))
    }

    /// Publishes a job until it is in the queue, and awaits its result.
    async fn result(&self, op: &str, request: &SignedRequest) -> Checked<JobResult> {
        self.requests.lock().unwrap().push(request.clone());
        let started = Instant::now();
        let result = loop {
            match self.backend.run(request).await {
                Ok(result) => break result,
                Err(error) if started.elapsed() > LIFETIME + PATIENCE => {
                    return Err(format!("job {} ({op}) has no result: {error}", request.job_id));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let code = match &result.outcome {
            Outcome::Ok { .. } => "ok",
            // Nobody lies here, and a crash is nobody's mistake.
            Outcome::Error { error } if matches!(error.code, ErrorCode::Internal | ErrorCode::ProtocolAbort) => {
                return Err(format!("job {} ({op}) ended in {}: {}", request.job_id, error.code, error.message));
            }
            Outcome::Error { error } => error.code.as_str(),
        };
        *self.outcomes.lock().unwrap().entry(format!("{op} {code}")).or_default() += 1;
        Ok(result)
    }

    /// Until no job of this key is in the queue: what was begun is finished then.
    async fn quiet(&self) -> Checked<()> {
        let subjects: Vec<_> = self.requests.lock().unwrap().iter().map(|request| request.subject.clone()).collect();
        let started = Instant::now();
        loop {
            let mut waiting = 0;
            for subject in &subjects {
                waiting += self.count("MPC_JOBS", subject).await.unwrap_or(1);
            }
            if waiting == 0 {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("{waiting} jobs stay in the queue: {}", self.queue(&subjects).await));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the server says of these jobs, for whoever reads why a test failed.
    async fn queue(&self, subjects: &[String]) -> String {
        let Ok(stream) = self.jetstream.get_stream("MPC_JOBS").await else { return "no stream".to_owned() };
        let mut said = String::new();
        for subject in subjects {
            if let Ok(message) = stream.get_last_raw_message_by_subject(subject).await {
                said += &format!("{subject} is number {}, since {}; ", message.sequence, message.time);
            }
        }
        match stream.consumer_info(trefoil::jobs::consumer::CONSUMER).await {
            Ok(info) => {
                said + &format!(
                    "the consumer has delivered {:?}, its floor is {:?}, {} await their acknowledgement, {} their delivery",
                    info.delivered, info.ack_floor, info.num_ack_pending, info.num_pending
                )
            }
            Err(error) => format!("{said}no consumer: {error}"),
        }
    }

    /// Takes this key's jobs out of the queue, finished or not. One by one: a purge by subject makes this server forget jobs of others
    /// that were given back to the queue (nats-server issue 5727).
    async fn lose_the_queue(&self) {
        let subjects: BTreeSet<_> =
            self.requests.lock().unwrap().iter().map(|request| request.subject.clone()).collect();
        for subject in subjects {
            let started = Instant::now();
            while started.elapsed() < PATIENCE {
                let removed = async {
                    let stream = self.jetstream.get_stream("MPC_JOBS").await.ok()?;
                    match stream.get_last_raw_message_by_subject(&subject).await {
                        Ok(message) => stream.delete_message(message.sequence).await.ok().map(|_| false),
                        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Some(true),
                        Err(_) => None,
                    }
                };
                if let Ok(Some(true)) = tokio::time::timeout(Duration::from_secs(5), removed).await {
                    break;
                }
            }
        }
    }

    /// Signs with every share, the newest first: one that is only prepared becomes the key by that, if it still may.
    async fn first_uses(&self) -> Checked<()> {
        let shares: Vec<_> = {
            let shares = self.shares.lock().unwrap();
            shares.iter().rev().map(|share| (share.material(), share.password)).collect()
        };
        for (material, secret) in shares {
            let input = input(self.plan.curve, 0xaa);
            let _ = self.patiently(|| self.backend.sign(&material, Method::Default, &input, password(secret))).await?;
        }
        Ok(())
    }

    async fn one_result_each(&self) -> Checked<()> {
        let requests = self.requests.lock().unwrap().clone();
        for request in requests {
            let subject = subject::result(self.backend.jobs().initiator(), &request.job_id);
            let refused = subject::refused(self.backend.jobs().initiator(), &request.job_id);
            let started = Instant::now();
            let counts = loop {
                match (self.count("MPC_RESULTS", &subject).await, self.count("MPC_RESULTS", &refused).await) {
                    (Some(results), Some(refusals)) => break (results, refusals),
                    _ if started.elapsed() > PATIENCE => return Err("the results cannot be counted".to_owned()),
                    _ => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            };
            if counts != (1, 0) {
                return Err(format!("job {} has {} results and {} refusals", request.job_id, counts.0, counts.1));
            }
        }
        Ok(())
    }

    /// Messages on a subject; `None` while the server does not answer.
    async fn count(&self, stream: &str, subject: &str) -> Option<usize> {
        let asked = async {
            let stream = self.jetstream.get_stream_no_info(stream).await.ok()?;
            let mut subjects = stream.info_with_subjects(subject).await.ok()?;
            let mut count = 0;
            while let Some(entry) = subjects.next().await {
                count += entry.ok()?.1;
            }
            Some(count)
        };
        tokio::time::timeout(Duration::from_secs(5), asked).await.ok().flatten()
    }

    /// Exactly one of the key's ids is active, with a share that was returned; that share signs.
    async fn live(&self) -> Checked<Option<(KeyId, [u8; 32])>> {
        let ids = self.ids.lock().unwrap().clone();
        let mut active = Vec::new();
        let mut successors = BTreeMap::new();
        for id in &ids {
            match self.patiently(|| self.backend.public_key(*id)).await? {
                Ok(key) if key.state == KeyState::Active => active.push(key),
                Ok(key) => return Err(format!("{id} is {:?}", key.state)),
                Err(failure) => match failure.code {
                    ErrorCode::KeyRetired => {
                        let successor = failure.new_key_id.ok_or(format!("{id} is retired without a successor"))?;
                        successors.insert(*id, successor);
                    }
                    // Never prepared, or prepared and never committed.
                    ErrorCode::UnknownKey | ErrorCode::KeyNotReady | ErrorCode::JobSuperseded => {}
                    code => return Err(format!("{id} is {code}")),
                },
            }
        }
        let shares = self.shares.lock().unwrap();
        let Some(first) = shares.first() else {
            return if active.is_empty() { Ok(None) } else { Err("a key that nobody got is active".to_owned()) };
        };
        let [key] = active.as_slice() else { return Err(format!("{} keys are active: {active:?}", active.len())) };
        if key.public_key != first.new.key.public_key || key.chain_code != first.new.key.chain_code {
            return Err("the public key has changed".to_owned());
        }
        let mut id = first.new.key.key_id;
        while let Some(next) = successors.get(&id) {
            id = *next;
        }
        if id != key.key_id {
            return Err(format!("the successors lead to {id}, and {} is active", key.key_id));
        }
        if !shares.iter().any(|share| share.name() == (key.key_id, key.transcript)) {
            return Err(format!("the key is lost: {key:?} is active, and no result holds its share"));
        }
        Ok(Some((key.key_id, key.transcript)))
    }

    /// The live share signs, and no other does.
    async fn dead(&self, live: Option<(KeyId, [u8; 32])>) -> Checked<Vec<(KeyId, [u8; 32])>> {
        let shares: Vec<_> = {
            let shares = self.shares.lock().unwrap();
            shares.iter().map(|share| (share.name(), share.material(), share.password)).collect()
        };
        let mut dead = Vec::new();
        for (name, material, secret) in shares {
            let input = input(self.plan.curve, 0xee);
            let sign = || self.backend.sign(&material, Method::Default, &input, password(secret));
            match (self.patiently(sign).await?, Some(name) == live) {
                (Ok(_), true) => {}
                (Err(failure), true) => return Err(format!("the live share does not sign: {}", failure.code)),
                (Ok(_), false) => return Err(format!("a share of epoch {name:?} signs that is not live")),
                (Err(failure), false) => {
                    let expected = if Some(name.0) == live.map(|live| live.0) {
                        failure.code == ErrorCode::StaleShare
                    } else {
                        matches!(failure.code, ErrorCode::KeyRetired | ErrorCode::UnknownKey | ErrorCode::JobSuperseded)
                    };
                    if !expected {
                        return Err(format!("a share that is not live is refused with {}", failure.code));
                    }
                    dead.push(name);
                }
            }
        }
        Ok(dead)
    }

    /// Asks again while the answer is only that it cannot be given now; somebody else's fault may have hit this.
    async fn patiently<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Checked<Result<T, trefoil::wire::Failure>> {
        let started = Instant::now();
        loop {
            let error = match ask().await {
                Ok(answer) => return Ok(Ok(answer)),
                Err(ClientError::Untrusted(error)) => return Err(format!("not to be believed: {error}")),
                Err(ClientError::Job(failure)) => {
                    let passes = matches!(failure.code, ErrorCode::PoisonJob | ErrorCode::JobExpired);
                    if failure.code.disposition() == Disposition::Final && !passes {
                        return Ok(Err(failure));
                    }
                    failure.code.to_string()
                }
                Err(error) => error.to_string(),
            };
            if started.elapsed() > PATIENCE {
                return Err(format!("no answer: {error}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn secrets(material: &SigningMaterial, secret: u8) -> Secrets {
    Secrets {
        password: Some(password(secret)),
        encrypted_share: Some(material.encrypted_share.clone()),
        secret_store: Some(material.secret_store.clone()),
        ..Secrets::default()
    }
}

fn input(curve: Curve, byte: u8) -> SignInput {
    match curve {
        Curve::Secp256k1 => SignInput::Secp256k1 { digest: [byte; 32], path: None },
        Curve::Ed25519 => SignInput::Ed25519 { message: vec![byte] },
    }
}
