//! The client's side of making shares, in a key generation, a recovery or a refresh: run the rounds with both nodes, have both
//! store their shares, seal the client's for the backend. What is returned is prepared, not committed: the worker stores the
//! result first (design: prepare, result, commit).

use super::failure::Failed;
use super::hold::Held;
use super::nodes::Session;
use super::password::PasswordJob;
use super::retry::{Schedule, Stop};
use super::source;
use super::{Shared, commit};
use crate::fault;
use crate::seal::{self, Binding, Secrets};
use crate::vault::{Begun, DataKey, KeyBinding, refresh_statement};
use crate::wire::node::{Identities, KeyStatement, NodeReply, NodeRequest, SessionId};
use crate::wire::{
    Attestation, Attestations, Curve, ErrorCode, FIRST_EPOCH, Fixed, Job, KdfParams, KeyId, KeyResult, KeyState, Op,
    Sealed,
};
use data_encoding::HEXLOWER;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use rand_core::OsRng;
use trefoil_protocol::keygen::{ClientKeygen, Context, Next};
use trefoil_protocol::reshare::Source;
use trefoil_protocol::{CurveId, KeyShare, Party, SessionRng};

/// Shares that both nodes hold prepared.
pub struct Generated {
    /// For the job's result.
    pub key: KeyResult,
    /// encryptedShare and secretStore, sealed to the job's reply key.
    pub secrets: Sealed,
    /// Holds the key that the job names until all of it is done: in a recovery the one that is replaced.
    pub guard: Held,
}

/// Makes the shares that a generate, recover or refresh job asks for.
///
/// # Errors
/// [`Stop`].
pub async fn generate(
    shared: &Shared,
    job: &Job,
    curve: Curve,
    kdf: KdfParams,
    schedule: &mut Schedule,
) -> Result<Generated, Stop> {
    let key_id = job.made_key().ok_or_else(|| Failed::new(ErrorCode::Internal, "the job makes no shares"))?;
    let secrets = shared.unseal(job, schedule)?;
    // Without a new password a refresh keeps the one that it has.
    let password = secrets.new_password.filter(|_| job.op() == Op::Refresh).or(secrets.password);
    let password = password.ok_or_else(|| Failed::new(ErrorCode::SealBroken, "the sealed secrets lack a password"))?;
    let mut rng = SessionRng::new(&mut OsRng, password.expose(), &[&job.digest]);
    let old = match job.op() {
        Op::Refresh => Some(PasswordJob::prepare(shared, job, schedule).await?),
        _ => None,
    };
    shared.room_for(job.lane, kdf, schedule).await?;
    let begun = shared.vault.of(job.lane).begin(key_id, password, kdf, &mut rng).await.map_err(Failed::from)?;
    let data_key = DataKey::generate(&mut rng);
    let guard = shared.hold(job, schedule).await?;
    let old = match old {
        Some(old) => Some(old.open_share(schedule).await?),
        None => None,
    };
    let run = Run { shared, job, key_id, curve, old, blinded: begun.blinded_password(), data_key };
    let prepared = loop {
        match run.attempt(schedule, &mut rng).await {
            Ok(prepared) => break prepared,
            Err(failed) => schedule.pause(failed).await?,
        }
    };
    let key = run.result(&prepared);
    let transcript = prepared.share.transcript();
    let secrets = run.seal_share(begun, &prepared, rng).await;
    let secrets = secrets.inspect_err(|_| commit::discard(shared, key_id, transcript))?;
    Ok(Generated { key, secrets, guard })
}

/// What all attempts of one job share.
struct Run<'a> {
    shared: &'a Shared,
    job: &'a Job,
    /// The key whose shares are made.
    key_id: KeyId,
    curve: Curve,
    /// refresh: the client's share, and the prover of its data key.
    old: Option<(KeyShare, SigningKey)>,
    blinded: [u8; 32],
    /// Will encrypt the share of the one attempt that succeeds.
    data_key: DataKey,
}

/// What the new shares are made from.
enum Origin<'a> {
    /// Nothing: it is a new key.
    New,
    /// The nodes' shares; of the client's, only what both nodes say.
    Recover(Source),
    /// All three shares.
    Refresh(&'a KeyShare),
}

/// One attempt that both nodes have stored.
struct Prepared {
    share: KeyShare,
    evaluation: [u8; 32],
    attestations: Attestations,
}

impl Run<'_> {
    /// One attempt at new shares, from what the nodes hold now.
    async fn attempt(&self, schedule: &Schedule, rng: &mut SessionRng) -> Result<Prepared, Failed> {
        let (epoch, origin) = match (self.job.op(), &self.old) {
            (Op::Generate, _) => (Some(FIRST_EPOCH), Origin::New),
            (_, old) => {
                let source = source::agreed(self.shared, self.job, self.curve, schedule).await?;
                let next = source.epoch.checked_add(1);
                match old {
                    Some((share, _)) => {
                        source::is_of(&source, share)?;
                        (next, Origin::Refresh(share))
                    }
                    None => (next, Origin::Recover(source)),
                }
            }
        };
        let [node1, node2] = self.shared.acting.now();
        let context = Context {
            curve: CurveId::from(self.curve),
            key_id: self.key_id.0,
            epoch: epoch.ok_or_else(|| Failed::new(ErrorCode::Internal, "the key has had all its epochs"))?,
            job_digest: self.job.digest,
            node1,
            node2,
        };
        let ran = self.run(&context, &origin, schedule, rng).await;
        // Another job's shares came first. What that means for this one, the next attempt hears from the nodes.
        ran.map_err(|failed| match failed.code {
            ErrorCode::JobSuperseded => Failed { code: ErrorCode::KeyBusy, ..failed },
            _ => failed,
        })
    }

    /// Open, five rounds with both nodes side by side, prepare at node 2, then at node 1.
    async fn run(
        &self,
        context: &Context,
        origin: &Origin<'_>,
        schedule: &Schedule,
        rng: &mut SessionRng,
    ) -> Result<Prepared, Failed> {
        let (node1, node2) = futures::try_join!(
            Session::begin(&self.shared.node1, schedule.call_deadline()),
            Session::begin(&self.shared.node2, schedule.call_deadline())
        )?;
        let (mut client, contribution) = match origin {
            Origin::New => ClientKeygen::start(context, rng),
            Origin::Recover(source) => ClientKeygen::recover(context, source, rng)?,
            Origin::Refresh(share) => ClientKeygen::refresh(context, share, rng)?,
        };
        let (opened1, opened2) = futures::try_join!(
            self.open(&node1, Party::Node1, context, contribution, schedule.call_deadline()),
            self.open(&node2, Party::Node2, context, contribution, schedule.call_deadline())
        )?;
        self.reach("session");
        let evaluation = opened1.evaluation.ok_or_else(|| Failed::unexpected(Party::Node1))?;
        let (mut reply1, mut reply2) = (opened1.contribution.to_vec(), opened2.contribution.to_vec());
        let mut round = 0_u8;
        let share = loop {
            let (from1, from2) = (std::mem::take(&mut reply1), std::mem::take(&mut reply2));
            match self.shared.crypto.run(move || client.advance(&from1, &from2)).await?? {
                Next::Done(share) => break share,
                Next::Continue { state, to_node1, to_node2 } => {
                    client = state;
                    round += 1;
                    (reply1, reply2) = futures::try_join!(
                        exchange(&node1, opened1.session, round, to_node1, schedule.call_deadline()),
                        exchange(&node2, opened2.session, round, to_node2, schedule.call_deadline())
                    )?;
                }
            }
        };
        let attested2 = self.prepare(&node2, opened2.session, Party::Node2, &share, schedule.call_deadline()).await?;
        self.reach("prepared-node2");
        let attested1 = self.prepare(&node1, opened1.session, Party::Node1, &share, schedule.call_deadline()).await;
        self.reach("prepared-node1");
        match attested1 {
            Ok(node1) => Ok(Prepared { share, evaluation, attestations: Attestations { node1, node2: attested2 } }),
            Err(failed) => {
                commit::discard(self.shared, self.key_id, share.transcript());
                Err(failed)
            }
        }
    }

    fn reach(&self, step: &str) {
        fault::step(step, self.job.op().as_str(), self.job.key_id);
    }

    async fn open(
        &self,
        node: &Session,
        party: Party,
        context: &Context,
        contribution: [u8; 32],
        deadline: u64,
    ) -> Result<Opened, Failed> {
        let (blinded_password, proof) = match party {
            Party::Node1 => (Some(self.blinded), self.prove(node, &contribution)),
            _ => (None, None),
        };
        let identities = Identities { node1: context.node1.to_bytes(), node2: context.node2.to_bytes() };
        let job = self.job.signed.clone();
        let request =
            NodeRequest::GenerateOpen { job, contribution, blinded_password, proof, identities: Some(identities) };
        let opened = node.call(deadline, request, |reply| match reply {
            NodeReply::GenerateOpened { session, contribution, evaluation } => {
                Ok(Ok(Opened { session, contribution, evaluation }))
            }
            NodeReply::ActsAs { identity } => Ok(Err(identity)),
            other => Err(other),
        });
        opened.await?.map_err(|identity| {
            let known = self.shared.acting.heard(party, &identity, self.pinned(party));
            let how = if known { "now" } else { "that this worker does not know" };
            Failed::new(ErrorCode::NodeUnavailable, format!("{party} acts under another identity {how}"))
        })
    }

    /// refresh: that the old share was opened, for this run.
    fn prove(&self, node1: &Session, contribution: &[u8; 32]) -> Option<Fixed<64>> {
        let (share, prover) = self.old.as_ref()?;
        let old = (KeyId(share.key_id()), share.epoch(), share.transcript());
        let channel = node1.channel_hash();
        let statement = refresh_statement(&channel, &self.job.digest, old, contribution, &self.blinded);
        Some(Fixed(prover.sign(&statement).to_bytes()))
    }

    /// Has a node store its share, and checks that it attests what we computed: anything else would be a key that the backend
    /// has to refuse.
    async fn prepare(
        &self,
        node: &Session,
        session: SessionId,
        party: Party,
        share: &KeyShare,
        deadline: u64,
    ) -> Result<Fixed<64>, Failed> {
        let prover = match party {
            Party::Node1 => Some(self.data_key.prover(&KeyBinding::of(share))?.verifying_key().to_bytes()),
            _ => None,
        };
        let said: KeyStatement = node
            .call(deadline, NodeRequest::GeneratePrepare { session, prover }, |reply| match reply {
                NodeReply::Prepared(statement) => Ok(statement),
                other => Err(other),
            })
            .await?;
        let statement = Attestation {
            initiator: self.job.initiator.clone(),
            job_digest: self.job.digest,
            key_id: self.key_id,
            source_key_id: self.source_key_id(),
            epoch: share.epoch(),
            curve: self.curve,
            public_key: share.public_key(),
            chain_code: share.chain_code(),
            transcript: share.transcript(),
        };
        if statement.verify_any(self.pinned(party), &said.signature.0) {
            Ok(said.signature)
        } else {
            Err(Failed::new(ErrorCode::ProtocolAbort, format!("{party} attested another key than was made")))
        }
    }

    /// The identities that this worker knows a node by.
    fn pinned(&self, party: Party) -> &[VerifyingKey] {
        if party == Party::Node1 { &self.shared.nodes.node1 } else { &self.shared.nodes.node2 }
    }

    /// recover: the key that is replaced.
    fn source_key_id(&self) -> Option<KeyId> {
        (self.job.op() == Op::Recover).then_some(self.job.key_id)
    }

    fn result(&self, prepared: &Prepared) -> KeyResult {
        let share = &prepared.share;
        KeyResult {
            key_id: self.key_id,
            source_key_id: self.source_key_id(),
            curve: self.curve,
            epoch: share.epoch(),
            public_key: HEXLOWER.encode(&share.public_key()),
            chain_code: Fixed(share.chain_code()),
            transcript: Fixed(share.transcript()),
            generated_by: None,
            state: KeyState::Prepared,
            attestations: prepared.attestations.clone(),
            commits: None,
        }
    }

    /// Encrypts the client's share under the password, and seals it to the reply key.
    async fn seal_share(self, begun: Begun, prepared: &Prepared, mut rng: SessionRng) -> Result<Sealed, Failed> {
        let share = &prepared.share;
        let binding = KeyBinding::of(share);
        let bytes = share.to_bytes();
        let (evaluation, reply_key, job) = (prepared.evaluation, self.job.reply_key.clone(), Binding::of(self.job));
        let data_key = self.data_key;
        self.shared
            .crypto
            .run(move || {
                let stored = begun.seal(binding, &bytes, &data_key, &evaluation, &mut rng)?;
                let secrets = Secrets {
                    encrypted_share: Some(stored.encrypted_share),
                    secret_store: Some(stored.secret_store),
                    ..Secrets::default()
                };
                seal::seal(&reply_key, &job, &secrets)
                    .map_err(|error| Failed::new(ErrorCode::Internal, format!("the result's secrets: {error}")))
            })
            .await?
    }
}

/// A node's answer to open.
struct Opened {
    session: SessionId,
    contribution: [u8; 32],
    evaluation: Option<[u8; 32]>,
}

async fn exchange(
    node: &Session,
    session: SessionId,
    round: u8,
    payload: Vec<u8>,
    deadline: u64,
) -> Result<Vec<u8>, Failed> {
    node.call(deadline, NodeRequest::GenerateRound { session, round, payload }, |reply| match reply {
        NodeReply::GenerateRound { payload } => Ok(payload),
        other => Err(other),
    })
    .await
}
