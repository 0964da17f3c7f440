//! A node: holds one share of every key, checks every job itself, and never trusts the worker that relays it.
//!
//! The way of a request: `server` (NATS, the channel) -> [`Node::handle`] -> `sign`, `password`, `generate`, `reshare`, `orders`, `manage` or `keys`, which
//! check the job (`gate`), use `sessions` in memory, the [`store`] and the [`audit`] log, and compute on the `pool`.

pub mod audit;
pub mod backup;
mod batch;
mod confirm;
pub mod drill;
mod gate;
mod gather;
mod generate;
mod keys;
mod manage;
mod material;
mod measure;
mod noted;
mod orders;
mod password;
mod recovery;
mod reshare;
mod server;
mod sessions;
mod shown;
mod sign;
pub mod store;
mod undecided;

pub use server::{NodeServer, run};

use crate::clock::now_ms;
use crate::compute::{Compute, Undone};
use crate::config::NodeLimits;
use crate::policy::{Policy, PolicyError};
use crate::telemetry::metrics::NodeMetrics;
use crate::wire::node::{Call, NODE_VERSION, NodeReply, NodeRequest, SessionId};
use crate::wire::{ErrorCode, InitiatorId, Job, KeyId, Op, SignedJob};
use audit::{AuditLog, Event};
use ed25519_dalek::{SigningKey, VerifyingKey};
use gather::Underway;
use material::Material;
use measure::Progress;
use noted::Entry;
use rand_core::{OsRng, RngCore};
use sessions::{About, Sessions};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use store::{RedbStore, Store, StoreError};
use trefoil_protocol::{Abort, CurveId, Party, Secret};

/// How often a node looks whether it can still write.
const CHECK: Duration = Duration::from_secs(1);

/// Name of the audit log in the data directory.
pub const AUDIT_LOG: &str = "audit.log";

/// A node's "no".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Why, for people. Never a secret.
    pub message: String,
    /// When the next password attempt, or the next job, is let in: unix milliseconds.
    pub retry_at: Option<u64>,
    /// `KEY_RETIRED`: the key that replaced this one.
    pub successor: Option<KeyId>,
}

impl From<Refusal> for NodeReply {
    fn from(Refusal { code, message, retry_at, successor }: Refusal) -> Self {
        Self::Refused { code, message, retry_at, successor }
    }
}

impl Refusal {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_at: None, successor: None }
    }

    fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self::new(code, code.action())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(code) => code.into(),
            StoreError::Replaced { successor } => {
                let message = format!("key {successor} has taken its place");
                Self { successor: Some(successor), ..Self::new(ErrorCode::KeyRetired, message) }
            }
            StoreError::LockedOut { until } => {
                let seconds = until.saturating_sub(now_ms()).div_ceil(1_000);
                let message = format!("too many password attempts; the next one is let in after {seconds} s");
                Self { retry_at: Some(until), ..Self::new(ErrorCode::TooManyAttempts, message) }
            }
            // What the disk said is for the operator, not for whoever sent the job. It may be mended before the job expires.
            error @ StoreError::Failed(_) => {
                tracing::error!(%error, "store");
                Self::new(ErrorCode::NodeUnavailable, "the node's store failed")
            }
            error => {
                tracing::error!(%error, "store");
                Self::internal("the node's store failed")
            }
        }
    }
}

impl From<Undone> for Refusal {
    fn from(undone: Undone) -> Self {
        let code = match undone {
            Undone::Full => ErrorCode::Overloaded,
            Undone::Panicked => ErrorCode::Internal,
        };
        Self::new(code, undone.to_string())
    }
}

impl From<audit::AuditError> for Refusal {
    fn from(error: audit::AuditError) -> Self {
        tracing::error!(%error, "audit");
        Self::new(ErrorCode::NodeUnavailable, "the node's audit log failed")
    }
}

type Answer = Result<NodeReply, Refusal>;

/// Who sends a request, as the channel proved it.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Handshake hash of the channel.
    pub channel: [u8; 32],
}

/// What a session has reached.
enum Stage {
    Sign(sign::SignStage),
    Password(Box<password::PasswordStage>),
    Generate(Box<generate::GenerateStage>),
}

impl Stage {
    /// Whether the session may still give away what it has not yet, or store a share.
    const fn may_release(&self) -> bool {
        match self {
            Self::Sign(stage) => stage.is_unfinished(),
            Self::Password(_) => true,
            Self::Generate(stage) => stage.is_unfinished(),
        }
    }
}

/// A node's state and keys. Shared by all requests.
pub struct Node {
    role: Party,
    identity: SigningKey,
    /// Under which this node acted before.
    former: Vec<VerifyingKey>,
    /// The other node's: one, and while it changes it the other.
    peers: Vec<VerifyingKey>,
    authorisers: Vec<InitiatorId>,
    gate: gate::Gate,
    limits: NodeLimits,
    store: Arc<dyn Store>,
    audit: AuditLog,
    /// Calls that are worked on.
    underway: Underway,
    pool: Compute,
    sessions: Sessions<Stage>,
    preparations: keys::Preparations,
    asked: undecided::Asked,
    draining: AtomicBool,
    /// Locks that the disk has not taken yet.
    unstored_locks: Arc<AtomicUsize>,
    /// The store failed, and is not written any more.
    store_broken: AtomicBool,
    metrics: Arc<NodeMetrics>,
}

/// What a node is built from, besides its data directory.
pub struct NodeKeys {
    /// `Node1` or `Node2`.
    pub role: Party,
    /// Signs attestations and decisions.
    pub identity: SigningKey,
    /// The identities that it had before; what it attested under them it attests again under the present one.
    pub former: Vec<VerifyingKey>,
    /// The other node's identities, at least one.
    pub peers: Vec<VerifyingKey>,
    /// Wraps the data keys.
    pub master: Secret<[u8; 32]>,
    /// Recovery authorisers, whose consent some jobs need.
    pub authorisers: Vec<InitiatorId>,
}

impl Node {
    /// Opens the data directory and builds the node.
    ///
    /// # Errors
    /// Files that do not belong together, a broken audit log, an unreadable disk: each in one sentence.
    pub fn open(directory: &Path, keys: NodeKeys, policy: Policy, limits: NodeLimits) -> anyhow::Result<Arc<Self>> {
        let NodeKeys { role, identity, former, peers, master, authorisers } = keys;
        let (underway, metrics) = (Underway::default(), Arc::new(NodeMetrics::new()?));
        let store = RedbStore::open_for(directory, role, master, underway.clone(), Arc::clone(&metrics))?;
        let store: Arc<dyn Store> = Arc::new(store);
        let anchored = store.anchored()?;
        let anchor = Arc::clone(&store);
        let on_head = move |head| anchor.anchor(head);
        let (log, shown) = (directory.join(AUDIT_LOG), Arc::clone(&metrics));
        let audit = AuditLog::open_for(&log, anchored, underway.clone(), shown, on_head)?;
        Ok(Arc::new(Self {
            role,
            identity,
            former,
            peers,
            authorisers,
            gate: gate::Gate::new(policy, store.quarantine().map(|restored| restored.restored_at)),
            pool: Compute::new(limits.crypto_threads, limits.crypto_queue),
            sessions: Sessions::new(limits.max_sessions, limits.session_ttl, Arc::clone(&metrics)),
            preparations: keys::Preparations::default(),
            asked: undecided::Asked::default(),
            limits,
            store,
            audit,
            underway,
            draining: AtomicBool::new(false),
            unstored_locks: Arc::default(),
            store_broken: AtomicBool::new(false),
            metrics,
        }))
    }

    /// Answers one authentic call.
    pub async fn handle(self: &Arc<Self>, caller: Caller, call: Call) -> NodeReply {
        let _call = self.underway.begin();
        let (round, started) = (call.request.name(), Instant::now());
        let answer = self.dispatch(caller, call).await;
        let refused = answer.as_ref().err().map(|refusal| refusal.code);
        self.metrics.answered(round, refused, started.elapsed());
        tracing::debug!(refused = refused.map(ErrorCode::as_str), "answered");
        answer.unwrap_or_else(NodeReply::from)
    }

    async fn dispatch(self: &Arc<Self>, caller: Caller, call: Call) -> Answer {
        if call.version != NODE_VERSION {
            return Err(ErrorCode::UnsupportedVersion.into());
        }
        // A request that waited out a disconnection has nobody left who waits for it.
        if call.deadline <= now_ms() {
            return Err(Refusal::new(ErrorCode::NodeUnavailable, "the call arrived after its deadline"));
        }
        let opens = matches!(
            call.request,
            NodeRequest::SignOpen(_)
                | NodeRequest::FrostSign { .. }
                | NodeRequest::BatchOpen { .. }
                | NodeRequest::BatchFrost { .. }
                | NodeRequest::PasswordOpen(_)
                | NodeRequest::GenerateOpen { .. }
        );
        if opens && self.is_draining() {
            return Err(Refusal::new(ErrorCode::NodeUnavailable, "the node is shutting down"));
        }
        match call.request {
            NodeRequest::SignOpen(open) => self.sign_open(caller, open).await,
            NodeRequest::SignRound2 { session, m2 } => self.sign_round2(caller, session, m2).await,
            NodeRequest::FrostSign { open, commitments } => self.frost_sign(caller, open, commitments.0).await,
            NodeRequest::BatchOpen { open, items } => self.batch_open(caller, open, items).await,
            NodeRequest::BatchRound { session, m2, next } => self.batch_round(caller, session, m2, next).await,
            NodeRequest::BatchFrost { open, commitments } => self.batch_frost(caller, open, commitments).await,
            NodeRequest::SignClose { session, outcome } => self.sign_close(caller, session, outcome).await,
            NodeRequest::PasswordOpen(open) => self.password_open(caller, open).await,
            NodeRequest::PasswordClose { session, outcome } => self.password_close(caller, session, outcome).await,
            NodeRequest::Source { job } => self.source(&job).await,
            NodeRequest::GenerateOpen { job, contribution, blinded_password, proof, identities } => {
                self.generate_open(caller, &job, (contribution, blinded_password, proof), identities).await
            }
            NodeRequest::GenerateRound { session, round, payload } => {
                self.generate_round(caller, session, round, payload).await
            }
            NodeRequest::GeneratePrepare { session, prover } => self.generate_prepare(caller, session, prover).await,
            NodeRequest::Commit { key_id, transcript, evidence } => self.commit(key_id, transcript, evidence.0).await,
            NodeRequest::Discard { key_id, transcript, evidence } => {
                self.discard(caller, key_id, transcript, evidence.map(|evidence| evidence.0)).await
            }
            NodeRequest::Order { job } => self.order(&job).await,
            NodeRequest::Manage { job } => self.manage(&job).await,
            NodeRequest::KeyInfo { job } => self.key_info(&job),
            NodeRequest::Undecided => self.undecided(),
            NodeRequest::Decision { attempt } => self.decision(attempt).await,
            NodeRequest::EpochOf { key_id, transcript, nonce } => self.epoch_of(key_id, transcript, nonce),
            NodeRequest::ConfirmEpoch { statement, signature } => self.confirm_epoch(statement, signature.0).await,
        }
    }

    /// Refuses new sessions from now on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether it takes no new sessions any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// What it counts and measures.
    #[must_use]
    pub fn metrics(&self) -> Arc<NodeMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Sessions that a drain waits for: all but those that only await the worker's report.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.sessions.count(|stage| match stage {
            Stage::Sign(stage) => stage.is_unfinished(),
            Stage::Password(_) => false,
            Stage::Generate(stage) => stage.is_unfinished(),
        })
    }

    /// Completes when the store or the audit log can no longer be written in this process, even if the disk is mended. Then the
    /// process should end: a node that refuses everything is only found out when somebody needs it. Not while a key's lock
    /// waits to be stored, though, which the end would forget.
    pub async fn broken(&self) -> anyhow::Error {
        loop {
            tokio::time::sleep(CHECK).await;
            let broken = if self.audit.is_broken() {
                anyhow::anyhow!("the audit log cannot be written")
            } else if let Err(error) = self.store.check().await {
                self.store_broken.store(true, Ordering::Release);
                anyhow::anyhow!("the store cannot be written: {error}")
            } else {
                self.store_broken.store(false, Ordering::Release);
                continue;
            };
            match self.unstored_locks.load(Ordering::Acquire) {
                0 => return broken,
                locks => tracing::error!(%broken, locks, "the node would end, but for locks that are not stored"),
            }
        }
    }

    /// Forgets what is over: sessions at once, ledger entries where `ledger` is set.
    pub async fn tidy(&self, ledger: bool) {
        self.sessions.sweep();
        self.preparations.sweep();
        self.asked.sweep(self.limits.abort_after);
        if ledger && let Err(error) = self.store.prune(now_ms()).await {
            tracing::warn!(%error, "the ledger was not pruned");
        }
        if ledger {
            self.count_doubts();
        }
    }

    /// Writes a start or stop into the audit log, durably; a start with the policy that is in force.
    ///
    /// # Errors
    /// The log cannot be written; then the node must not serve.
    pub async fn mark(&self, decision: &str) -> Result<(), audit::AuditError> {
        self.audit.append(Event { decision: decision.to_owned(), ..self.event("node") }).await?;
        if decision != "started" {
            return Ok(());
        }
        self.mark_quarantine().await?;
        self.mark_policy(self.gate.policy().digest()).await
    }

    /// Writes into the audit log which policy is in force, durably.
    ///
    /// # Errors
    /// The log cannot be written; then the node must not serve by it.
    async fn mark_policy(&self, digest: [u8; 32]) -> Result<(), audit::AuditError> {
        let digest = Some(data_encoding::HEXLOWER.encode(&digest));
        self.audit.append(Event { decision: "loaded".to_owned(), digest, ..self.event("policy") }).await
    }

    /// Puts a policy in force that was read anew; one that could not be read changes nothing, and is said loudly.
    pub async fn reload(&self, policy: Result<Policy, PolicyError>) {
        match policy {
            Ok(policy) => match self.mark_policy(policy.digest()).await {
                Ok(()) => {
                    let initiators = policy.grants().len();
                    self.gate.replace(policy);
                    self.end_what_is_not_granted();
                    tracing::info!(initiators, "the policy was loaded again");
                }
                Err(error) => tracing::error!(%error, "the old policy stays in force"),
            },
            Err(PolicyError(problems)) => {
                for problem in &problems {
                    tracing::error!(%problem, "policy file");
                }
                tracing::error!(problems = problems.len(), "the old policy stays in force");
                let reason = Some("POLICY_FILE".to_owned());
                let event = Event { decision: "refused".to_owned(), reason, ..self.event("policy") };
                self.audit.append_or_say(event).await;
            }
        }
    }

    /// Ends what the policy of now would not let begin, so that it holds no key's slot. What is at work now is asked by
    /// [`Node::is_granted`]; what only awaits the worker's report may still be told that a check failed, and releases nothing.
    fn end_what_is_not_granted(&self) {
        let policy = self.gate.policy();
        self.sessions.end_if(|about, stage| {
            stage.may_release() && policy.permits(&about.initiator, about.op, about.job_curve).is_err()
        });
    }

    /// Whether a session's next round may begin: its job has not expired, and is still granted.
    ///
    /// # Errors
    /// `JOB_EXPIRED`; what the policy denies. The audit log notes it.
    fn may_go_on(&self, about: &About) -> Result<(), Refusal> {
        if about.expires_at > now_ms() {
            return self.is_granted(about);
        }
        self.audit.note(self.about(about.op.as_str(), about, "refused", Some(ErrorCode::JobExpired.as_str())));
        Err(ErrorCode::JobExpired.into())
    }

    /// Whether the policy of now grants what a session is for. Ask it right before anything is released or stored: rounds may go on for as
    /// long as a job lives, and a policy takes effect at once.
    ///
    /// # Errors
    /// What the policy denies. The audit log notes it.
    fn is_granted(&self, about: &About) -> Result<(), Refusal> {
        let policy = self.gate.policy();
        let Err(denial) = policy.permits(&about.initiator, about.op, about.job_curve) else { return Ok(()) };
        self.audit.note(self.about(about.op.as_str(), about, "refused", Some(denial.code.as_str())));
        Err(Refusal::new(denial.code, denial.message))
    }

    fn event(&self, op: &str) -> Event {
        Event {
            time: now_ms(),
            op: op.to_owned(),
            initiator: None,
            job_id: None,
            key_id: None,
            digest: None,
            decision: String::new(),
            reason: None,
            signed: Vec::new(),
        }
    }

    /// An audit entry about a session.
    fn about(&self, op: &str, about: &About, decision: &str, reason: Option<&str>) -> Event {
        Event {
            initiator: Some(about.initiator.to_string()),
            job_id: Some(about.job_id.clone()),
            key_id: Some(about.key_id.to_string()),
            digest: Some(data_encoding::HEXLOWER.encode(&about.job_digest)),
            decision: decision.to_owned(),
            reason: reason.map(str::to_owned),
            ..self.event(op)
        }
    }

    /// The job, if it passes the gate for one of these operations; the audit log notes its refusal.
    fn admit(&self, signed: &SignedJob, ops: &[Op]) -> Result<Job, Refusal> {
        let admitted = self.gate.admit(signed, ops, now_ms()).map_err(|(job, refusal)| match job {
            Some(job) => self.refuse(&job, refusal),
            None => refusal,
        });
        admitted.inspect(|job| traced(&job.job_id, job.key_id))
    }

    /// Notes the refusal of an authentic job, but so many of a kind only that nobody fills the log, and hands it on.
    fn refuse(&self, job: &Job, refusal: Refusal) -> Refusal {
        let Some(entry) = self.gate.noted(job, refusal.code, now_ms()) else { return refusal };
        let decision = match entry {
            Entry::Refused => "refused",
            Entry::Withheld => "withheld",
        };
        let about = about_job(job, [0; 32]);
        self.audit.note(self.about(job.op().as_str(), &about, decision, Some(refusal.code.as_str())));
        refusal
    }

    /// The secrets of an attempt. Blocking: call on the pool.
    fn material(store: &dyn Store, key_id: KeyId, transcript: [u8; 32]) -> Result<Material, Refusal> {
        let bytes = store.material(key_id, transcript).map_err(|error| match error {
            // Looked up a moment ago and replaced since: its data key is gone, as it should be. The next attempt hears by what.
            StoreError::Corrupt(_) if !is_current(store, key_id, transcript) => {
                Refusal::new(ErrorCode::KeyBusy, "the key's shares were replaced at this moment")
            }
            error => error.into(),
        })?;
        Material::from_bytes(&bytes).ok_or_else(|| Refusal::internal("a stored share does not parse"))
    }
}

/// Whether these are the key's shares now.
fn is_current(store: &dyn Store, key_id: KeyId, transcript: [u8; 32]) -> bool {
    store
        .key(key_id)
        .is_ok_and(|key| key.is_some_and(|key| key.attempt.transcript == transcript && !key.state.is_end()))
}

/// Names a job and its key in the span of the present call.
fn traced(job: &dyn std::fmt::Display, key: KeyId) {
    let span = tracing::Span::current();
    span.record("job", tracing::field::display(job)).record("key", tracing::field::display(key));
}

fn about_job(job: &Job, channel: [u8; 32]) -> About {
    About {
        channel,
        key_id: job.key_id,
        share: None,
        despite_lock: matches!(job.op(), Op::Recover | Op::Refresh),
        job_digest: job.digest,
        expires_at: job.expires_at,
        initiator: job.initiator.clone(),
        job_id: job.job_id.to_string(),
        op: job.op(),
        job_curve: job.curve(),
        curve: job.curve(),
        progress: Progress::default(),
    }
}

fn session_id() -> SessionId {
    let mut id = [0; 16];
    OsRng.fill_bytes(&mut id);
    id
}

/// What a worker hears of a protocol error that does not lock.
fn aborted(abort: Abort) -> Refusal {
    let code = match abort {
        Abort::Bug(_) => ErrorCode::Internal,
        Abort::InvalidInput(_) | Abort::Peer { .. } => ErrorCode::ProtocolAbort,
    };
    Refusal::new(code, abort.to_string())
}

const fn curve_id(curve: crate::wire::Curve) -> CurveId {
    match curve {
        crate::wire::Curve::Secp256k1 => CurveId::Secp256k1,
        crate::wire::Curve::Ed25519 => CurveId::Ed25519,
    }
}
