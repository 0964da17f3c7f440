//! Passwords outside of signing: does this one open the secretStore, does it open the share, put the store under another one. No
//! protocol runs; node 1 evaluates the OPRF for one counted attempt, which it gives back on proof that the data key was unwrapped.

use super::failure::Failed;
use super::nodes::Session;
use super::retry::{Schedule, Stop, call_deadline};
use super::unlock::{read_share, unsuitable};
use super::{Shared, commit};
use crate::seal::{self, Binding, Secrets};
use crate::vault::{Begun, DataKey, LockedShare, LockedStore, opened_statement};
use crate::wire::node::{NodeReply, NodeRequest, PasswordOpen, PasswordOutcome, SessionId};
use crate::wire::{ErrorCode, Fixed, Job, Outcome, Payload};
use ed25519_dalek::{Signer, SigningKey};
use rand_core::OsRng;
use trefoil_protocol::{KeyShare, Party, SessionRng};

/// One job about a password, with the password stretched.
pub struct PasswordJob<'a> {
    shared: &'a Shared,
    job: &'a Job,
    store: LockedStore,
    /// `validate-share`, `refresh`.
    share: Option<LockedShare>,
    old: Begun,
    /// `change-password`.
    new: Option<Begun>,
    rng: SessionRng,
}

/// A session at node 1 whose evaluation has arrived.
struct Evaluated {
    node1: Session,
    id: SessionId,
}

impl<'a> PasswordJob<'a> {
    /// Opens the sealed secrets, checks their form, and stretches the passwords. Costs no attempt.
    ///
    /// # Errors
    /// `SEAL_BROKEN` if something is missing, `CORRUPT_SECRET_STORE`, `CORRUPT_SHARE`, `SHARE_MISMATCH`, `INVALID_KDF`.
    pub async fn prepare(shared: &'a Shared, job: &'a Job, schedule: &mut Schedule) -> Result<Self, Stop> {
        let missing = || Failed::new(ErrorCode::SealBroken, "the sealed secrets lack what this operation needs");
        let secrets = shared.unseal(job, schedule)?;
        let (password, store) = secrets.password.zip(secrets.secret_store).ok_or_else(missing)?;
        let mut rng = SessionRng::new(&mut OsRng, password.expose(), &[&job.digest]);
        let (store, share) = match &job.payload {
            Payload::Validate { share: true, .. } | Payload::Refresh { .. } => {
                let share = secrets.encrypted_share.ok_or_else(missing)?;
                let locked = LockedShare::parse(job.key_id, &share, &store).map_err(Failed::from)?;
                (locked.store().clone(), Some(locked))
            }
            _ => (LockedStore::parse(job.key_id, &store).map_err(Failed::from)?, None),
        };
        let new = match &job.payload {
            Payload::ChangePassword { kdf, .. } => {
                let password = secrets.new_password.ok_or_else(missing)?;
                shared.room_for(job.lane, *kdf, schedule).await?;
                Some(
                    shared
                        .vault
                        .of(job.lane)
                        .begin(job.key_id, password, *kdf, &mut rng)
                        .await
                        .map_err(Failed::from)?,
                )
            }
            _ => None,
        };
        shared.room_for(job.lane, store.kdf(), schedule).await?;
        let begun = shared.vault.of(job.lane).begin_open(password, &store, &mut rng).await;
        let old = begun.map_err(|error| Failed::from(unsuitable(error)))?;
        Ok(Self { shared, job, store, share, old, new, rng })
    }

    /// Asks node 1, again while it cannot be reached, and does what the job wants.
    ///
    /// # Errors
    /// [`Stop`].
    pub async fn run(mut self, schedule: &mut Schedule) -> Result<Outcome, Stop> {
        loop {
            match self.attempt(schedule).await {
                Ok(secrets) => return Ok(secrets.map_or(Outcome::DONE, Outcome::sealed)),
                Err(failed) => schedule.pause(failed).await?,
            }
        }
    }

    /// The share, once the password has proven right, and the prover of its data key: for a refresh.
    ///
    /// # Errors
    /// [`Stop`].
    pub async fn open_share(self, schedule: &mut Schedule) -> Result<(KeyShare, SigningKey), Stop> {
        let locked = self.share.clone().ok_or_else(|| Failed::new(ErrorCode::Internal, "there is no share to open"))?;
        loop {
            match self.unlock(schedule).await {
                Ok((key, _)) => {
                    let prover = key.prover(self.store.binding()).map_err(Failed::from)?;
                    return Ok((self.read(key, locked).await?, prover));
                }
                Err(failed) => schedule.pause(failed).await?,
            }
        }
    }

    async fn attempt(&mut self, schedule: &Schedule) -> Result<Option<crate::wire::Sealed>, Failed> {
        let (key, answered) = self.unlock(schedule).await?;
        if let Some(locked) = self.share.clone() {
            self.read(key, locked).await?;
            return Ok(None);
        }
        match &self.new {
            Some(new) => {
                let evaluation = answered?.ok_or_else(|| Failed::unexpected(Party::Node1))?;
                let store = new.wrap(self.store.binding(), &key, &evaluation, &mut self.rng)?;
                self.seal(store).map(Some)
            }
            // The password is right, whether or not node 1 could be told.
            None => Ok(None),
        }
    }

    /// The data key, and what node 1 answered to the proof of it: the evaluation of a new password, if there is one.
    async fn unlock(&self, schedule: &Schedule) -> Result<(DataKey, Result<Option<[u8; 32]>, Failed>), Failed> {
        let (session, evaluation) = self.open(schedule).await?;
        // Node 1 counted an attempt, so it hears how every one of them ended.
        let key = match self.old.unwrap_key(&self.store, &evaluation) {
            Ok(key) => key,
            Err(error) => {
                let failed = Failed::from(error);
                let outcome = match failed.code {
                    ErrorCode::WrongPassword => PasswordOutcome::Wrong,
                    code => PasswordOutcome::Abort { check: code.as_str().to_lowercase() },
                };
                let closed = session.close(outcome).await;
                tracing::debug!(?closed, code = %failed.code, "a password did not open its store");
                return Err(failed);
            }
        };
        let next = self.new.as_ref().map(Begun::blinded_password);
        let proof = self.prove(&session, &key, next.as_ref())?;
        let answered = session.close(PasswordOutcome::Opened { proof, next }).await;
        Ok((key, answered))
    }

    async fn read(&self, key: DataKey, locked: LockedShare) -> Result<KeyShare, Failed> {
        let read = move || key.open(&locked).map_err(Failed::from).and_then(|b| read_share(&b, locked.binding()));
        self.shared.crypto.run(read).await?
    }

    /// Node 1's evaluation. A key that waits for its commit gets it first.
    async fn open(&self, schedule: &Schedule) -> Result<(Evaluated, [u8; 32]), Failed> {
        let mut committed = None;
        loop {
            let node1 = Session::begin(&self.shared.node1, schedule.call_deadline()).await?;
            let binding = self.store.binding();
            let open = PasswordOpen {
                job: self.job.signed.clone(),
                epoch: binding.epoch,
                transcript: binding.transcript,
                blinded_password: self.old.blinded_password(),
            };
            let opened = node1.call(schedule.call_deadline(), NodeRequest::PasswordOpen(open), |reply| match reply {
                NodeReply::PasswordOpened { session, evaluation } => Ok(Ok((session, evaluation))),
                NodeReply::NotCommitted { result_subject } => Ok(Err(result_subject)),
                other => Err(other),
            });
            match opened.await? {
                Ok((id, evaluation)) => return Ok((Evaluated { node1, id }, evaluation)),
                Err(subject) => match committed {
                    None => committed = Some(commit::commit_stored(self.shared, self.job.key_id, &subject).await),
                    Some(Err(failed)) => return Err(failed),
                    Some(Ok(())) => return Err(Failed::new(ErrorCode::KeyNotReady, "the key is not committed")),
                },
            }
            // If only node 2 is missing, node 1 has committed all the same, and this time it answers.
            if let Some(Err(failed)) = &committed
                && !failed.is_retryable()
            {
                return Err(failed.clone());
            }
        }
    }

    fn prove(&self, session: &Evaluated, key: &DataKey, next: Option<&[u8; 32]>) -> Result<Fixed<64>, Failed> {
        let statement = opened_statement(&session.node1.channel_hash(), &self.job.digest, &session.id, next);
        Ok(Fixed(key.prover(self.store.binding())?.sign(&statement).to_bytes()))
    }

    fn seal(&self, secret_store: Vec<u8>) -> Result<crate::wire::Sealed, Failed> {
        let secrets = Secrets { secret_store: Some(secret_store), ..Secrets::default() };
        seal::seal(&self.job.reply_key, &Binding::of(self.job), &secrets)
            .map_err(|error| Failed::new(ErrorCode::Internal, format!("the result's secrets: {error}")))
    }
}

impl Evaluated {
    /// Tells node 1 what came of the password; the evaluation of a new one, if there was one.
    async fn close(self, outcome: PasswordOutcome) -> Result<Option<[u8; 32]>, Failed> {
        let request = NodeRequest::PasswordClose { session: self.id, outcome };
        let closed = self.node1.call(call_deadline(), request, |reply| match reply {
            NodeReply::PasswordClosed { next } => Ok(next),
            other => Err(other),
        });
        closed.await.inspect_err(|error| tracing::info!(%error, "node 1 did not take a password's outcome"))
    }
}
