//! The client's side of signing: open the secrets, then one session with node 1 after the other until one succeeds, fails for
//! good, or the job's time is over.

use super::failure::Failed;
use super::hold::Held;
use super::nodes::Session;
use super::retry::{Schedule, Stop, call_deadline};
use super::unlock::{Access, unsuitable};
use super::{Shared, commit};
use crate::fault;
use crate::jobs::bans::Ban;
use crate::jobs::results;
use crate::telemetry::party;
use crate::vault::{Blinded, Kept, KeyBinding, LockedShare, Password, Spot};
use crate::wire::node::{NodeReply, NodeRequest, SessionId, SignOpen, SignOutcome};
use crate::wire::{Batch, Curve, ErrorCode, Fixed, Job, KdfParams, Method, Outcome, SignInput, SignatureResult};
use data_encoding::HEXLOWER;
use rand_core::{OsRng, RngCore};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use trefoil_protocol::derive::DerivationPath;
use trefoil_protocol::ecdsa::{Request, client::Client};
use trefoil_protocol::frost::FrostClient;
use trefoil_protocol::{Abort, KeyShare, Party, SessionRng};

/// How long another delivery's result may be on its way after that let the key go.
const STORING: Duration = Duration::from_millis(100);
/// How long the look for an earlier result may take beside other work, before it is waited for alone.
const LOOK: Duration = Duration::from_millis(500);
/// Most commits on the way to one signature.
const MAX_COMMITS: u32 = 3;

/// What a job has to sign.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// One input.
    One(&'a SignInput),
    /// Several.
    Batch(&'a Batch),
}

impl Inputs<'_> {
    const fn curve(self) -> Curve {
        match self {
            Self::One(input) => input.curve(),
            Self::Batch(batch) => batch.curve(),
        }
    }
}

/// A signature, or a batch of them, and what is still to be told to node 1.
pub struct Signed {
    /// For the job's result.
    pub outcome: Outcome,
    /// Node 1's session; to be closed beside storing the result.
    pub closing: Closing,
    /// Holds the key.
    pub guard: Held,
}

/// An open session at node 1 and how it ended.
pub struct Closing {
    node1: Session,
    id: SessionId,
    outcome: SignOutcome,
}

impl Closing {
    /// Tells node 1. Best effort: a session that nobody closes ends by itself.
    pub async fn send(self, deadline: u64) {
        let request = NodeRequest::SignClose { session: self.id, outcome: self.outcome };
        let closed = self.node1.call(deadline, request, |reply| match reply {
            NodeReply::Closed => Ok(()),
            other => Err(other),
        });
        if let Err(error) = closed.await {
            tracing::info!(%error, "a signing session was not closed");
        }
    }
}

/// What an attempt came to.
pub(super) enum Reached {
    Signed(Box<Outcome>, Closing),
    /// Node 1 opened no session, for now.
    First(First),
}

/// What comes before a session.
pub(super) enum First {
    /// The key must be committed; its generation's result is on this subject.
    Commit(String),
    /// Node 1 knows the job: it may have a result.
    Look,
}

impl First {
    /// Where this answer of node 1's is one.
    pub(super) fn read(reply: NodeReply) -> Result<Self, NodeReply> {
        match reply {
            NodeReply::NotCommitted { result_subject } => Ok(Self::Commit(result_subject)),
            NodeReply::Known => Ok(Self::Look),
            other => Err(other),
        }
    }
}

/// Signs.
///
/// # Errors
/// [`Stop`].
pub async fn sign(shared: &Shared, job: &Job, inputs: Inputs<'_>, schedule: &mut Schedule) -> Result<Signed, Stop> {
    let signed = in_turn(shared, job, inputs, schedule).await;
    if matches!(&signed, Err(Stop::Failed(failed)) if !failed.is_retryable()) {
        // A wrong password; or the key is frozen, locked, replaced, or in other trouble that does not pass by itself.
        shared.forget_unlocked(job.key_id);
    }
    signed
}

/// Looks until it can be told whether the job has a result.
///
/// # Errors
/// [`Stop::Earlier`] if it has; [`Stop`] if that cannot be told in time.
async fn look_again(shared: &Shared, job: &Job, schedule: &mut Schedule) -> Result<(), Stop> {
    loop {
        match results::find(&shared.jetstream, &job.initiator, &job.job_id).await {
            Ok(Some(earlier)) => return Err(Stop::Earlier(Box::new(earlier))),
            Ok(None) => return Ok(()),
            Err(error) => schedule.pause(error.into()).await?,
        }
    }
}

/// What comes before the first session, as far as it can be at once: the look for a result, the client party, the key. Where the password
/// takes long to stretch, the key is not held meanwhile.
async fn prepare(
    shared: &Shared,
    job: &Job,
    curve: Curve,
    schedule: &mut Schedule,
) -> Result<(ClientParty, Held), Stop> {
    let again = schedule.has_looked();
    // Whether it is known that there is none.
    let look = async {
        if again {
            return Ok(true);
        }
        match timeout(LOOK, results::find(&shared.jetstream, &job.initiator, &job.job_id)).await {
            Ok(Ok(Some(earlier))) => Err(Stop::Earlier(Box::new(earlier))),
            Ok(Ok(None)) => Ok(true),
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    };
    let unsealed = Unsealed::of(shared, job, curve, schedule)?;
    let (known, client, guard) = if unsealed.takes_long() {
        shared.room_for(job.lane, unsealed.locked.kdf(), schedule).await?;
        let (known, client) = futures::try_join!(look, unsealed.begin(shared, job))?;
        (known, client, None)
    } else {
        // In this order: what is asked of others is under way while this one computes.
        let (known, guard, client) = futures::try_join!(look, shared.hold(job, schedule), unsealed.begin(shared, job))?;
        (known, client, Some(guard))
    };
    let guard = match guard {
        Some(guard) if known => guard,
        // Nobody waits for a key that is held by one who waits for JetStream.
        guard => {
            drop(guard);
            if !known {
                look_again(shared, job, schedule).await?;
            }
            shared.hold(job, schedule).await?
        }
    };
    Ok((client, guard))
}

async fn in_turn(shared: &Shared, job: &Job, inputs: Inputs<'_>, schedule: &mut Schedule) -> Result<Signed, Stop> {
    let (mut client, guard) = prepare(shared, job, inputs.curve(), schedule).await?;
    let mut commits = 0;
    loop {
        let attempt = match inputs {
            Inputs::One(SignInput::Secp256k1 { digest, path }) => {
                client.ecdsa(shared, job, *digest, path.as_deref(), &guard, schedule).await
            }
            Inputs::One(SignInput::Ed25519 { message }) => client.eddsa(shared, job, message, &guard, schedule).await,
            Inputs::Batch(batch) => match batch.curve() {
                Curve::Secp256k1 => client.ecdsa_batch(shared, job, batch, &guard, schedule).await,
                Curve::Ed25519 => client.eddsa_batch(shared, job, batch, &guard, schedule).await,
            },
        };
        match attempt {
            Ok(Reached::Signed(outcome, closing)) => return Ok(Signed { outcome: *outcome, closing, guard }),
            Ok(Reached::First(First::Look)) if !schedule.has_looked() => {
                look_again(shared, job, schedule).await?;
                // Another delivery of it may have let the key go a moment ago, and be storing its result.
                tokio::time::sleep(STORING).await;
                look_again(shared, job, schedule).await?;
                schedule.looked();
            }
            Ok(Reached::First(First::Look)) => return Err(Failed::unexpected(Party::Node1).into()),
            Ok(Reached::First(First::Commit(subject))) if commits < MAX_COMMITS => {
                commits += 1;
                // If only node 2 is missing, node 1 has committed all the same, and the next attempt succeeds.
                match commit::commit_stored(shared, job.key_id, &subject).await {
                    Err(failed) if !failed.is_retryable() => return Err(failed.into()),
                    committed => tracing::info!(key = %job.key_id, ?committed, "committed before its first use"),
                }
            }
            Ok(Reached::First(First::Commit(_))) => {
                return Err(Failed::new(ErrorCode::KeyNotReady, "the key could not be committed").into());
            }
            Err(failed) => schedule.pause(failed).await?,
        }
    }
}

/// The client party of one job.
pub(super) struct ClientParty {
    locked: Arc<LockedShare>,
    /// OPRF input; the same in each attempt.
    blinded: [u8; 32],
    share: Access,
    rng: SessionRng,
}

/// The opened secrets of a sign job.
struct Unsealed {
    password: Password,
    locked: Arc<LockedShare>,
    rng: SessionRng,
    /// Where the data key is kept, if it is.
    spot: Option<Spot>,
    kept: Option<Kept>,
}

impl Unsealed {
    /// Opens the sealed secrets, and checks that they belong together.
    fn of(shared: &Shared, job: &Job, curve: Curve, schedule: &Schedule) -> Result<Self, Stop> {
        let refuse = |code| Err(Failed::new(code, "the sealed secrets lack what a sign job needs").into());
        let secrets = shared.unseal(job, schedule)?;
        let (Some(password), Some(share), Some(store)) =
            (secrets.password, secrets.encrypted_share, secrets.secret_store)
        else {
            return refuse(ErrorCode::SealBroken);
        };
        let locked = LockedShare::parse(job.key_id, &share, &store).map_err(Failed::from)?;
        if Curve::from(locked.binding().curve) != curve {
            return Err(Failed::new(ErrorCode::CurveMismatch, "the key is of another curve").into());
        }
        let rng = SessionRng::new(&mut OsRng, password.expose(), &[&job.digest]);
        // What costs nothing to derive is not kept.
        let spot = shared.unlocked.as_ref().filter(|_| locked.kdf() != KdfParams::Hkdf);
        let spot = spot.map(|cache| cache.spot(job.key_id, &store));
        let kept = spot.as_ref().and_then(Spot::look);
        Ok(Self { password, locked: Arc::new(locked), rng, spot, kept })
    }

    /// Whether the password is yet to be stretched by what takes long on purpose.
    fn takes_long(&self) -> bool {
        self.kept.is_none() && self.locked.kdf() != KdfParams::Hkdf
    }

    /// The client party, with the password stretched.
    async fn begin(self, shared: &Shared, job: &Job) -> Result<ClientParty, Stop> {
        let Self { password, locked, mut rng, spot, kept } = self;
        if let Some(kept) = kept {
            // Node 1 is asked all the same: to it, and to its count of attempts, this is a signing like any other.
            let blinded = Blinded::new(job.key_id, &password, &mut rng).map_err(Failed::from)?;
            let element = blinded.element();
            return Ok(ClientParty { blinded: element, share: Access::Kept(Box::new(blinded), kept), locked, rng });
        }
        let begun = shared.vault.of(job.lane).begin_open(password, locked.store(), &mut rng).await;
        let begun = begun.map_err(|error| Failed::from(unsuitable(error)))?;
        Ok(ClientParty { blinded: begun.blinded_password(), share: Access::Locked(Box::new(begun), spot), locked, rng })
    }
}

impl ClientParty {
    /// What node 1 answers to the opening of an ECDSA session, if the key is not banned. That is asked at the same time, each time, with the
    /// key in hand: a job that waited here, or for its next attempt, must not give a party that was caught meanwhile another try. A try
    /// begins when the client looks at m1, so nothing of the answer is looked at before.
    ///
    /// # Errors
    /// `KEY_LOCKED` if a check of this key failed before; `OVERLOADED` if that cannot be found out; that of the opening.
    pub(super) async fn unless_banned<T>(
        &self,
        shared: &Shared,
        job: &Job,
        opening: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        let locked = || Failed::new(ErrorCode::KeyLocked, "a cryptographic check of this key failed before");
        let KeyBinding { epoch, transcript, .. } = *self.locked.binding();
        if shared.sealing.bans.knows(job, epoch, transcript) {
            return Err(locked());
        }
        let banned = shared.sealing.bans.is_banned(&shared.jetstream, job, epoch, transcript);
        // A session that is opened for nothing costs the key a password attempt.
        if !shared.sealing.bans.are_readable() {
            return if banned.await? { Err(locked()) } else { opening.await };
        }
        let (banned, opened) = futures::join!(banned, opening);
        if banned? { Err(locked()) } else { opened }
    }

    /// The randomness of one item of a batch in this session.
    pub(super) fn item_rng(&mut self, session: &SessionId, index: usize) -> SessionRng {
        SessionRng::new(&mut self.rng, &[], &[session, &index.to_be_bytes()])
    }

    pub(super) fn open_request(&mut self, job: &Job, held: &Held, schedule: &Schedule) -> SignOpen {
        let mut contribution = [0; 32];
        self.rng.fill_bytes(&mut contribution);
        let binding = self.locked.binding();
        SignOpen {
            job: job.signed.clone(),
            contribution,
            epoch: binding.epoch,
            ot_id: binding.ot_id,
            transcript: binding.transcript,
            lease_token: held.lease_token(),
            looked: schedule.has_looked(),
            blinded_password: self.blinded,
        }
    }

    /// The session that node 1 has opened, and what the share is for: `with` it the first step is computed, where it was opened. Where the
    /// share does not open, or the step fails, the session ends.
    pub(super) async fn opened<'a, T: Send + 'static>(
        &mut self,
        shared: &'a Shared,
        job: &'a Job,
        (node1, id): (Session, SessionId),
        evaluation: [u8; 32],
        with: impl FnOnce(&Arc<KeyShare>) -> Result<T, Abort> + Send + 'static,
    ) -> Result<(OpenSession<'a>, T), Failed> {
        let open = OpenSession { shared, job, node1, id, shares: *self.locked.binding() };
        fault::step("session", "sign", job.key_id);
        let (access, locked) = (std::mem::replace(&mut self.share, Access::Lost), Arc::clone(&self.locked));
        let step = move || {
            let share = access.unlock(&locked, &evaluation)?;
            let next = with(&share);
            Ok((share, next))
        };
        let (share, next) = match shared.crypto.run(step).await.map_err(Failed::from).flatten() {
            Ok(opened) => opened,
            Err(failed) => return Err(open.give_up(failed).await),
        };
        self.share = Access::Open(share);
        match next {
            Ok(next) => Ok((open, next)),
            Err(abort) => Err(open.abort(abort).await),
        }
    }

    /// One ECDSA session: open and m1, m2 and m3.
    async fn ecdsa(
        &mut self,
        shared: &Shared,
        job: &Job,
        digest: [u8; 32],
        path: Option<&str>,
        held: &Held,
        schedule: &Schedule,
    ) -> Result<Reached, Failed> {
        let path = DerivationPath::parse(path.unwrap_or("m"))
            .map_err(|e| Failed::new(ErrorCode::InvalidPath, e.to_string()))?;
        let node1 = Session::begin(&shared.node1, schedule.call_deadline()).await?;
        let open = self.open_request(job, held, schedule);
        let contribution = open.contribution;
        let opened = node1.call(schedule.call_deadline(), NodeRequest::SignOpen(open), |reply| match reply {
            NodeReply::SignOpened { session, m1, evaluation } => Ok(Ok((session, m1, evaluation))),
            other => First::read(other).map(Err),
        });
        let (id, m1, evaluation) = match self.unless_banned(shared, job, opened).await? {
            Ok(opened) => opened,
            Err(first) => return Ok(Reached::First(first)),
        };
        let request = Request { channel_hash: node1.channel_hash(), job_digest: job.digest, digest, path };
        let (of, mut rng) = (request.clone(), SessionRng::new(&mut self.rng, &[], &[&id]));
        let step =
            move |share: &Arc<KeyShare>| Client::new(Arc::clone(share), of, contribution)?.advance(&m1, &mut rng);
        let (open, (round2, m2)) = self.opened(shared, job, (node1, id), evaluation, step).await?;
        let m3 =
            open.node1.call(
                schedule.call_deadline(),
                NodeRequest::SignRound2 { session: id, m2 },
                |reply| match reply {
                    NodeReply::SignRound3 { m3 } => Ok(m3),
                    other => Err(other),
                },
            );
        let m3 = m3.await?;
        let public_key = round2.public_key();
        let signature = match shared.crypto.run(move || round2.finish(&m3)).await? {
            Ok(signature) => signature,
            Err(abort) => return Err(open.abort(abort).await),
        };
        let result = SignatureResult {
            curve: Curve::Secp256k1,
            method: Method::resolve(Curve::Secp256k1),
            signature: Fixed(signature.bytes),
            recovery_id: Some(signature.recovery_id),
            public_key: HEXLOWER.encode(&public_key),
            path: (!request.path.steps().is_empty()).then(|| request.path.to_string()),
        };
        Ok(Reached::Signed(
            Box::new(Outcome::signed(result)),
            open.closing(SignOutcome::Signature(Fixed(signature.bytes))),
        ))
    }

    /// One FROST session: open and node 1's share.
    async fn eddsa(
        &mut self,
        shared: &Shared,
        job: &Job,
        message: &[u8],
        held: &Held,
        schedule: &Schedule,
    ) -> Result<Reached, Failed> {
        let node1 = Session::begin(&shared.node1, schedule.call_deadline()).await?;
        let open = self.open_request(job, held, schedule);
        let (frost, commitments) = FrostClient::start(&mut self.rng);
        let request = NodeRequest::FrostSign { open, commitments: Fixed(commitments) };
        let signed = node1.call(schedule.call_deadline(), request, |reply| match reply {
            NodeReply::FrostSigned { session, commitments, share, evaluation } => {
                Ok(Ok((session, commitments, share, evaluation)))
            }
            other => First::read(other).map(Err),
        });
        let (id, theirs, z1, evaluation) = match signed.await? {
            Ok(signed) => signed,
            Err(first) => return Ok(Reached::First(first)),
        };
        let message = message.to_vec();
        let step = move |share: &Arc<KeyShare>| {
            Ok((frost.finish(share, &message, &theirs.0, &z1)?, HEXLOWER.encode(&share.public_key())))
        };
        let (open, (signature, public_key)) = self.opened(shared, job, (node1, id), evaluation, step).await?;
        let result = SignatureResult {
            curve: Curve::Ed25519,
            method: Method::resolve(Curve::Ed25519),
            signature: Fixed(signature),
            recovery_id: None,
            public_key,
            path: None,
        };
        Ok(Reached::Signed(Box::new(Outcome::signed(result)), open.closing(SignOutcome::Signature(Fixed(signature)))))
    }
}

/// A session that node 1 has open, with what its end needs.
pub(super) struct OpenSession<'a> {
    pub(super) shared: &'a Shared,
    pub(super) job: &'a Job,
    pub(super) node1: Session,
    pub(super) id: SessionId,
    /// What the client's share says of itself.
    shares: KeyBinding,
}

impl OpenSession<'_> {
    pub(super) fn closing(self, outcome: SignOutcome) -> Closing {
        Closing { node1: self.node1, id: self.id, outcome }
    }

    /// Ends the session because the share did not open.
    async fn give_up(self, failed: Failed) -> Failed {
        let check = failed.code.as_str().to_lowercase();
        self.closing(SignOutcome::Abort { check, ban: false }).send(call_deadline()).await;
        failed
    }

    /// Ends the session because a check failed. Where the check locks the key, that is recorded before anybody is told.
    pub(super) async fn abort(self, abort: Abort) -> Failed {
        if let Abort::Peer { culprit, ban: true, check } = abort {
            let KeyBinding { epoch, transcript, .. } = self.shares;
            tracing::error!(key = %self.job.key_id, epoch, %culprit, check, "key locked");
            let ban = Ban::new(self.job, epoch, transcript, check, culprit);
            self.shared.sealing.bans.record_until_stored(self.shared.jetstream.clone(), ban).await;
            self.shared.metrics.key_locks.with_label_values(&[party(culprit)]).inc();
        }
        let outcome = SignOutcome::Abort { check: abort.check().to_owned(), ban: abort.is_ban() };
        self.closing(outcome).send(call_deadline()).await;
        abort.into()
    }
}
