//! Batches at node 1: the items of one sign job in sub-batches, each item a session of its own (docs/protocol.md, section 5.1). On ed25519
//! all items at once.

use super::material::Material;
use super::sessions::seen;
use super::sign::{Admitted, Entry, SignStage, burned_session, signed_text};
use super::{Answer, Caller, Node, Refusal, Stage, aborted};
use crate::compute::Compute;
use crate::wire::node::{NodeReply, SessionId, SignOpen};
use crate::wire::{Batch, Curve, ErrorCode, Fixed, Job, Payload, SignInput};
use rand_core::OsRng;
use std::sync::Arc;
use trefoil_protocol::derive::DerivationPath;
use trefoil_protocol::ecdsa::batch::{self, MAX_SIDE_BY_SIDE};
use trefoil_protocol::ecdsa::node1::{Node1, Sent};
use trefoil_protocol::ecdsa::{Item, M2_LEN, Request};
use trefoil_protocol::frost;

/// A batch between two of its messages.
pub struct OpenBatch {
    material: Arc<Material>,
    /// What each item signs.
    requests: Arc<Vec<Request>>,
    /// The same for the log.
    signed: Vec<String>,
    contribution: [u8; 32],
    /// Items whose m3 is out.
    sent: Vec<Sent>,
    /// The items after those, whose m1 is out.
    waiting: Vec<Node1>,
}

impl OpenBatch {
    /// Items whose m1 is not out yet.
    fn left(&self) -> usize {
        self.requests.len() - self.sent.len() - self.waiting.len()
    }

    /// Are these the m2 of exactly the items that wait, and may so many items follow?
    fn accepts(&self, m2: &[u8], next: u16) -> bool {
        let own = batch::split(m2, self.waiting.len(), M2_LEN)
            .is_some_and(|all| self.waiting.iter().zip(all).all(|(item, m2)| item.owns(m2)));
        own && may_follow(next, self.left())
    }

    /// Makes m1 of the next items, and lets them wait.
    async fn open_next(&mut self, pool: &Compute, next: u16) -> Result<Vec<u8>, Refusal> {
        let first = self.sent.len() + self.waiting.len();
        let (material, requests, contribution) = (self.material.clone(), self.requests.clone(), self.contribution);
        let open = move |index: usize| {
            let request = requests.get(index).ok_or_else(|| Refusal::internal("no such item"))?.clone();
            let item = Item::new(index as u16, requests.len() as u16).map_err(aborted)?;
            Node1::open_of_batch(material.share.clone(), request, item, &contribution, &mut OsRng).map_err(aborted)
        };
        let opened = pool.run_each((first..first + usize::from(next)).collect(), open).await?;
        let mut message = Vec::new();
        for opened in opened {
            let (node1, m1) = opened?;
            message.extend_from_slice(&m1);
            self.waiting.push(node1);
        }
        Ok(message)
    }
}

/// Some items if there are any, never more than go into a message.
fn may_follow(next: u16, left: usize) -> bool {
    let next = usize::from(next);
    next <= left.min(MAX_SIDE_BY_SIDE) && (next > 0) == (left > 0)
}

/// The checked items of the job.
fn items_of(job: &Job) -> Result<&Batch, Refusal> {
    match &job.payload {
        Payload::SignBatch { batch, .. } => Ok(batch),
        _ => Err(Refusal::new(ErrorCode::MalformedJob, "the job is not a batch")),
    }
}

impl Node {
    pub(super) async fn batch_open(&self, caller: Caller, open: SignOpen, items: u16) -> Answer {
        let Admitted { job, busy } = match self.sign_entry(caller, &open, Curve::Secp256k1).await? {
            Entry::Admitted(admitted) => *admitted,
            Entry::First(answer) => return Ok(*answer),
        };
        let (batch, blinded) = (items_of(&job)?, open.blinded_password);
        let requests: Result<Vec<_>, _> = batch.items().iter().map(|item| request(caller, &job, item)).collect();
        let requests = requests?;
        if !may_follow(items, requests.len()) {
            return Err(Refusal::new(ErrorCode::ProtocolAbort, "so many items cannot be opened"));
        }
        let (material, evaluation) = self.admitted(&job, self.pool.run(self.opening(&job, &open)).await?)?;
        let mut opened = OpenBatch {
            material,
            requests: Arc::new(requests),
            signed: batch.items().iter().map(signed_text).collect(),
            contribution: open.contribution,
            sent: Vec::new(),
            waiting: Vec::new(),
        };
        // As for a single signature: m1 is made while the charge is written, and leaves after both.
        let charge = self.charge(&job, busy.about(), open.transcript, blinded);
        let (m1, charged) = tokio::join!(opened.open_next(&self.pool, items), charge);
        charged?;
        let m1 = m1?;
        self.audit.note(self.about("sign", busy.about(), "opened", None));
        let session = busy.id();
        busy.park(Stage::Sign(SignStage::Batch(Box::new(opened))));
        Ok(NodeReply::BatchOpened { session, m1, evaluation })
    }

    pub(super) async fn batch_round(&self, caller: Caller, session: SessionId, m2: Vec<u8>, next: u16) -> Answer {
        let wanted = |stage: &Stage| match stage {
            // Bytes that do not even name the session's items cannot end it.
            Stage::Sign(SignStage::Batch(batch)) if batch.accepts(&m2, next) => Ok(()),
            _ => Err(Refusal::new(ErrorCode::ProtocolAbort, "m2 does not belong to this session's items")),
        };
        let (busy, stage) = self.sessions.take(session, &caller.channel, wanted)?;
        let Stage::Sign(SignStage::Batch(mut open)) = stage else {
            return Err(Refusal::internal("a session changed while it was taken"));
        };
        let about = Arc::clone(busy.about());
        self.may_go_on(&about)?;
        let m2 = m2.chunks_exact(M2_LEN).map(<[u8]>::to_vec);
        let items = std::mem::take(&mut open.waiting).into_iter().zip(m2).collect();
        // Each item to its end, whatever becomes of the others: no failure hides one that locks, or tells which item it was.
        let checked = self.pool.run_each(items, |(node1, m2): (Node1, Vec<u8>)| node1.advance(&m2, &mut OsRng)).await?;
        let burns = match batch::all(checked) {
            Ok(burns) => burns,
            Err(abort) => return Err(self.failed(&busy, &open.material, abort).await?),
        };
        let names = burns.iter().map(|burn| burn.session_id().first_chunk().copied().unwrap_or_default()).collect();
        let signed = open.signed.iter().skip(open.sent.len()).take(burns.len()).cloned().collect();
        self.is_granted(&about)?;
        let burned = burned_session(session, &about, &open.material);
        let burning = self.burning(&about, self.store.burn_items(burned, names), signed, || ());
        let releasing = self.pool.run_each(burns, |burn| burn.release());
        let released = self.burned_while(&busy, burning, releasing).await?;
        let mut m3 = Vec::new();
        let released = batch::all(released?).map_err(aborted)?;
        self.metrics.signed(&about, released.len());
        for released in released {
            m3.extend_from_slice(&released.0);
            open.sent.push(released.1);
        }
        if next == 0 {
            busy.free_slot();
            busy.park(Stage::Sign(SignStage::Released(open.sent)));
            return Ok(NodeReply::BatchRound { m3, m1: Vec::new() });
        }
        let m1 = open.open_next(&self.pool, next).await?;
        busy.park(Stage::Sign(SignStage::Batch(open)));
        Ok(NodeReply::BatchRound { m3, m1 })
    }

    pub(super) async fn batch_frost(&self, caller: Caller, open: SignOpen, commitments: Vec<Fixed<64>>) -> Answer {
        let Admitted { job, busy } = match self.sign_entry(caller, &open, Curve::Ed25519).await? {
            Entry::Admitted(admitted) => *admitted,
            Entry::First(answer) => return Ok(*answer),
        };
        let (batch, blinded) = (items_of(&job)?, open.blinded_password);
        if commitments.len() != batch.items().len() {
            return Err(Refusal::new(ErrorCode::ProtocolAbort, "a batch has as many commitments as items"));
        }
        let signed = batch.items().iter().map(signed_text).collect();
        let (material, evaluation) = self.admitted(&job, self.pool.run(self.opening(&job, &open)).await?)?;
        let items = batch.items().iter().cloned().zip(commitments).collect();
        let step = move |(input, Fixed(theirs)): (SignInput, Fixed<64>)| {
            let SignInput::Ed25519 { message } = input else { return Err(Refusal::from(ErrorCode::CurveMismatch)) };
            let share = &material.share;
            let (own, z1, sent) = frost::node_sign(share, &message, &theirs, &mut OsRng).map_err(aborted)?;
            Ok(((Fixed(own), z1), sent))
        };
        let made: Result<Vec<_>, _> = self.pool.run_each(items, step).await?.into_iter().collect();
        let (shares, sent): (Vec<_>, _) = made?.into_iter().unzip();
        self.charge(&job, busy.about(), open.transcript, blinded).await?;
        self.is_granted(busy.about())?;
        // The nonces are gone already; the entry is durable before the shares leave.
        self.audit.append(self.about_signing(busy.about(), signed)).await?;
        let session = busy.id();
        seen("signs", &session);
        self.metrics.signed(busy.about(), shares.len());
        busy.free_slot();
        busy.park(Stage::Sign(SignStage::FrostReleased(sent)));
        Ok(NodeReply::BatchFrostSigned { session, shares, evaluation })
    }
}

fn request(caller: Caller, job: &Job, item: &SignInput) -> Result<Request, Refusal> {
    let SignInput::Secp256k1 { digest, path } = item else { return Err(ErrorCode::CurveMismatch.into()) };
    let path = DerivationPath::parse(path.as_deref().unwrap_or("m")).map_err(|_| ErrorCode::InvalidPath)?;
    Ok(Request { channel_hash: caller.channel, job_digest: job.digest, digest: *digest, path })
}
