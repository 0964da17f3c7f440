//! The client's side of a batch: one session with node 1 in which each item is a session of its own (docs/protocol.md, section 5.1), some of
//! them side by side. All signatures, or none.

use super::Shared;
use super::failure::Failed;
use super::hold::Held;
use super::nodes::Session;
use super::retry::Schedule;
use super::sign::{ClientParty, First, OpenSession, Reached};
use crate::fault;
use crate::wire::node::{NodeReply, NodeRequest, SignOutcome};
use crate::wire::{Batch, Curve, ErrorCode, Fixed, Job, Method, Outcome, SignInput, SignatureResult};
use data_encoding::HEXLOWER;
use std::sync::Arc;
use trefoil_protocol::derive::DerivationPath;
use trefoil_protocol::ecdsa::batch;
use trefoil_protocol::ecdsa::client::{Client, Round2};
use trefoil_protocol::ecdsa::{Item, M1_LEN, M3_LEN, Request};
use trefoil_protocol::frost::FrostClient;
use trefoil_protocol::{Abort, KeyShare, Party, SessionRng};

/// What the items of a batch have in common.
struct Items {
    share: Arc<KeyShare>,
    requests: Vec<Request>,
    contribution: [u8; 32],
}

impl Items {
    fn request(&self, index: usize) -> Result<&Request, Abort> {
        self.requests.get(index).ok_or(Abort::Bug("no such item"))
    }

    /// m1 of an item to its m2.
    fn advance(&self, index: usize, m1: &[u8], mut rng: SessionRng) -> Result<(Round2, Vec<u8>), Abort> {
        let item = Item::new(index as u16, self.requests.len() as u16)?;
        Client::of_batch(self.share.clone(), self.request(index)?.clone(), item, self.contribution)?
            .advance(m1, &mut rng)
    }

    /// m3 of an item to its signature, verified.
    fn finish(&self, index: usize, round2: Round2, m3: &[u8]) -> Result<SignatureResult, Abort> {
        let public_key = round2.public_key();
        let signature = round2.finish(m3)?;
        let path = &self.request(index)?.path;
        Ok(SignatureResult {
            curve: Curve::Secp256k1,
            method: Method::resolve(Curve::Secp256k1),
            signature: Fixed(signature.bytes),
            recovery_id: Some(signature.recovery_id),
            public_key: HEXLOWER.encode(&public_key),
            path: (!path.steps().is_empty()).then(|| path.to_string()),
        })
    }
}

/// What each item has signed.
fn request(channel_hash: [u8; 32], job: &Job, input: &SignInput) -> Result<Request, Failed> {
    let SignInput::Secp256k1 { digest, path } = input else {
        return Err(Failed::new(ErrorCode::CurveMismatch, "an item is of another curve"));
    };
    let path = DerivationPath::parse(path.as_deref().unwrap_or("m"));
    let path = path.map_err(|error| Failed::new(ErrorCode::InvalidPath, error.to_string()))?;
    Ok(Request { channel_hash, job_digest: job.digest, digest: *digest, path })
}

/// The items' messages, taken apart.
fn split(message: &[u8], count: usize, len: usize, check: &'static str) -> Result<Vec<Vec<u8>>, Abort> {
    let parts = batch::split(message, count, len).ok_or(Abort::peer(Party::Node1, check))?;
    Ok(parts.into_iter().map(<[u8]>::to_vec).collect())
}

fn done(results: Vec<SignatureResult>, open: OpenSession<'_>) -> Reached {
    let closing = open.closing(SignOutcome::Signatures(results.iter().map(|result| result.signature).collect()));
    Reached::Signed(Box::new(Outcome::signed_batch(results)), closing)
}

impl ClientParty {
    /// All items by ECDSA, a sub-batch after the other: the next one begins when every signature of the one before is verified.
    pub(super) async fn ecdsa_batch(
        &mut self,
        shared: &Shared,
        job: &Job,
        batch: &Batch,
        held: &Held,
        schedule: &Schedule,
    ) -> Result<Reached, Failed> {
        let node1 = Session::begin(&shared.node1, schedule.call_deadline()).await?;
        let requests: Result<Vec<_>, _> =
            batch.items().iter().map(|input| request(node1.channel_hash(), job, input)).collect();
        let requests = requests?;
        let all = requests.len();
        let open = self.open_request(job, held, schedule);
        let contribution = open.contribution;
        let mut count = all.min(shared.batch_items);
        let request = NodeRequest::BatchOpen { open, items: count as u16 };
        let opened = node1.call(schedule.call_deadline(), request, |reply| match reply {
            NodeReply::BatchOpened { session, m1, evaluation } => Ok(Ok((session, m1, evaluation))),
            other => First::read(other).map(Err),
        });
        let (id, mut m1, evaluation) = match self.unless_banned(shared, job, opened).await? {
            Ok(opened) => opened,
            Err(first) => return Ok(Reached::First(first)),
        };
        let (open, share) = self.opened(shared, job, (node1, id), evaluation, |share| Ok(Arc::clone(share))).await?;
        let items = Arc::new(Items { share, requests, contribution });
        let mut results = Vec::with_capacity(all);
        loop {
            let first = results.len();
            let parts = match split(&m1, count, M1_LEN, "m1_shape") {
                Ok(parts) => parts,
                Err(abort) => return Err(open.abort(abort).await),
            };
            let steps = (first..).zip(parts).map(|(index, m1)| (index, m1, self.item_rng(&id, index))).collect();
            let each = items.clone();
            let step = move |(index, m1, rng): (usize, Vec<u8>, SessionRng)| each.advance(index, &m1, rng);
            let advanced = match batch::all(shared.crypto.run_each(steps, step).await?) {
                Ok(advanced) => advanced,
                Err(abort) => return Err(open.abort(abort).await),
            };
            let (waiting, m2): (Vec<Round2>, Vec<Vec<u8>>) = advanced.into_iter().unzip();
            let next = (all - first - count).min(shared.batch_items);
            let round = NodeRequest::BatchRound { session: id, m2: m2.concat(), next: next as u16 };
            let answered = open.node1.call(schedule.call_deadline(), round, |reply| match reply {
                NodeReply::BatchRound { m3, m1 } => Ok((m3, m1)),
                other => Err(other),
            });
            let (m3, next_m1) = answered.await?;
            let parts = match split(&m3, count, M3_LEN, "m3_shape") {
                Ok(parts) => parts,
                Err(abort) => return Err(open.abort(abort).await),
            };
            let steps = (first..).zip(waiting).zip(parts).collect();
            let each = items.clone();
            let step = move |((index, round2), m3): ((usize, Round2), Vec<u8>)| each.finish(index, round2, &m3);
            match batch::all(shared.crypto.run_each(steps, step).await?) {
                Ok(signed) => results.extend(signed),
                Err(abort) => return Err(open.abort(abort).await),
            }
            fault::step("sub-batch", "sign", job.key_id);
            if next == 0 {
                return Ok(done(results, open));
            }
            (count, m1) = (next, next_m1);
        }
    }

    /// All items by FROST, in one round trip.
    pub(super) async fn eddsa_batch(
        &mut self,
        shared: &Shared,
        job: &Job,
        batch: &Batch,
        held: &Held,
        schedule: &Schedule,
    ) -> Result<Reached, Failed> {
        let node1 = Session::begin(&shared.node1, schedule.call_deadline()).await?;
        let open = self.open_request(job, held, schedule);
        let rngs = (0..batch.items().len()).map(|index| self.item_rng(&[0; 16], index)).collect();
        let started = shared.crypto.run_each(rngs, |mut rng: SessionRng| FrostClient::start(&mut rng)).await?;
        let (clients, commitments): (Vec<_>, Vec<_>) = started.into_iter().unzip();
        let commitments = commitments.into_iter().map(Fixed).collect();
        let request = NodeRequest::BatchFrost { open, commitments };
        let signed = node1.call(schedule.call_deadline(), request, |reply| match reply {
            NodeReply::BatchFrostSigned { session, shares, evaluation } => Ok(Ok((session, shares, evaluation))),
            other => First::read(other).map(Err),
        });
        let (id, shares, evaluation) = match signed.await? {
            Ok(signed) => signed,
            Err(first) => return Ok(Reached::First(first)),
        };
        let (open, share) = self.opened(shared, job, (node1, id), evaluation, |share| Ok(Arc::clone(share))).await?;
        if shares.len() != clients.len() {
            return Err(open.abort(Abort::peer(Party::Node1, "frost_share")).await);
        }
        let public_key = HEXLOWER.encode(&share.public_key());
        let items = clients.into_iter().zip(batch.items().iter().cloned()).zip(shares).collect();
        let step = move |((client, input), (theirs, z1)): ((FrostClient, SignInput), (Fixed<64>, [u8; 32]))| {
            let SignInput::Ed25519 { message } = input else { return Err(Abort::InvalidInput("not a message")) };
            client.finish(&share, &message, &theirs.0, &z1)
        };
        let signatures = match batch::all(shared.crypto.run_each(items, step).await?) {
            Ok(signatures) => signatures,
            Err(abort) => return Err(open.abort(abort).await),
        };
        let result = |signature| SignatureResult {
            curve: Curve::Ed25519,
            method: Method::resolve(Curve::Ed25519),
            signature: Fixed(signature),
            recovery_id: None,
            public_key: public_key.clone(),
            path: None,
        };
        Ok(done(signatures.into_iter().map(result).collect(), open))
    }
}
