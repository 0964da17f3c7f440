//! The client party of a recovery or refresh, step by step, and what tests ask of the nodes about it.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::signer::{DIGEST, digest_input, frost, message_input, to_m2};
use super::{Cluster, Dealt, Key, MINUTE, blinded, call, link, refresh_proof, refused, sealed};
use nkeys::KeyPair;
use rand_core::OsRng;
use trefoil::auth;
use trefoil::node::store::{RedbStore, Store};
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{Curve, ErrorCode, Fixed, GenerateBody, KdfParams, KeyId, Op, OrderBody, SignedJob};
use trefoil_protocol::keygen::ClientKeygen;
use trefoil_protocol::reshare::Source;
use trefoil_protocol::{Party, Secret};

pub fn curve_of(key: &Key) -> Curve {
    if key.share.public_key().len() == 33 { Curve::Secp256k1 } else { Curve::Ed25519 }
}

pub fn authorised(job: &SignedJob, by: &KeyPair) -> SignedJob {
    SignedJob { authorisation: auth::authorise(by, &job.body), ..job.clone() }
}

impl Cluster {
    /// A recovery without its authoriser's consent.
    pub fn unauthorised_recover_job(&self, job_id: &str, key_id: KeyId, curve: Curve) -> SignedJob {
        self.job(Op::Recover, job_id, key_id, MINUTE, GenerateBody::new(curve, KdfParams::default(), sealed()))
    }

    pub fn recover_job(&self, job_id: &str, key: &Key) -> SignedJob {
        authorised(&self.unauthorised_recover_job(job_id, key.id(), curve_of(key)), &self.authoriser)
    }

    pub fn refresh_job(&self, job_id: &str, key: &Key) -> SignedJob {
        let body = GenerateBody::new(curve_of(key), KdfParams::default(), sealed());
        self.job(Op::Refresh, job_id, key.id(), MINUTE, body)
    }

    pub async fn source(&self, role: Party, job: &SignedJob) -> NodeReply {
        let request = NodeRequest::Source { job: job.clone() };
        if role == Party::Node1 { self.ask1(request).await } else { self.ask2(request).await }
    }

    /// What a recovering client learns of the key from a node.
    pub async fn told(&self, role: Party, job: &SignedJob) -> Source {
        match self.source(role, job).await {
            NodeReply::Source { statement, verifying_shares, .. } => Source {
                curve: statement.curve.into(),
                key_id: statement.key_id.0,
                epoch: statement.epoch,
                transcript: statement.transcript,
                chain_code: statement.chain_code,
                public_key: statement.public_key,
                verifying_shares: verifying_shares.map(|share| share.0),
            },
            other => panic!("no source: {other:?}"),
        }
    }

    /// Runs a recovery of the key as far as its rounds go.
    pub async fn deal_recovery(&self, key: &Key, job_id: &str) -> Dealt {
        let job = self.recover_job(job_id, key);
        let source = self.told(Party::Node1, &job).await;
        assert_eq!(source, self.told(Party::Node2, &job).await);
        let (curve, new) = (curve_of(key), self.key_id(job_id));
        let context = self.context(curve, new, source.epoch + 1, &job);
        let client = ClientKeygen::recover(&context, &source, &mut OsRng).unwrap();
        self.deal(job, job_id, new, client).await
    }

    /// The same of a refresh.
    pub async fn deal_refresh(&self, key: &Key, job_id: &str) -> Dealt {
        let job = self.refresh_job(job_id, key);
        let client = self.refresh_client(key, &job);
        self.deal(job, job_id, key.id(), client).await
    }

    pub fn refresh_client(&self, key: &Key, job: &SignedJob) -> (ClientKeygen, [u8; 32]) {
        let context = self.context(curve_of(key), key.id(), key.share.epoch() + 1, job);
        ClientKeygen::refresh(&context, &key.share, &mut OsRng).unwrap()
    }

    /// Prepared at both nodes, not committed.
    pub async fn recover(&self, key: &Key, job_id: &str) -> Key {
        self.deal_recovery(key, job_id).await.prepare().await
    }

    /// Prepared at both nodes, not committed.
    pub async fn refresh(&self, key: &Key, job_id: &str) -> Key {
        self.deal_refresh(key, job_id).await.prepare().await
    }
}

pub const NODES: [Party; 2] = [Party::Node1, Party::Node2];

pub async fn ask(cluster: &Cluster, role: Party, request: NodeRequest) -> NodeReply {
    if role == Party::Node1 { cluster.ask1(request).await } else { cluster.ask2(request).await }
}

/// Signs with a key, and verifies the signature under its public key.
pub async fn sign(cluster: &Cluster, key: &Key, job_id: &str) -> Result<(), ErrorCode> {
    let public = key.share.public_key();
    if public.len() == 32 {
        let job = cluster.sign_job(job_id, key.id(), &message_input(b"message"));
        let signature = frost(cluster, key, &job, b"message").await?;
        let public = ed25519_dalek::VerifyingKey::from_bytes(&public.try_into().unwrap()).unwrap();
        public.verify_strict(b"message", &ed25519_dalek::Signature::from_bytes(&signature)).unwrap();
    } else {
        use k256::ecdsa::signature::hazmat::PrehashVerifier;
        let job = cluster.sign_job(job_id, key.id(), &digest_input());
        let signature = to_m2(cluster, key, &job, u64::MAX).await?.finish().await;
        let public = k256::ecdsa::VerifyingKey::from_sec1_bytes(&public).unwrap();
        public.verify_prehash(&DIGEST, &k256::ecdsa::Signature::from_slice(&signature).unwrap()).unwrap();
    }
    Ok(())
}

/// The key that a node names in place of a retired one.
pub async fn successor(cluster: &Cluster, key: &Key) -> Option<KeyId> {
    match cluster.ask1(NodeRequest::KeyInfo { job: cluster.key_info_job("who-is-next", key.id()) }).await {
        NodeReply::Refused { code: ErrorCode::KeyRetired, successor, .. } => successor,
        other => panic!("not retired: {other:?}"),
    }
}

pub const CONTRIBUTION: [u8; 32] = [1; 32];

pub fn open_request(job: &SignedJob, blinded_password: Option<[u8; 32]>, proof: Option<Fixed<64>>) -> NodeRequest {
    NodeRequest::GenerateOpen {
        job: job.clone(),
        contribution: CONTRIBUTION,
        blinded_password,
        proof,
        identities: None,
    }
}

/// The first step of a recover or refresh job at a node.
pub async fn open(cluster: &Cluster, role: Party, job: &SignedJob) -> NodeReply {
    if role == Party::Node2 {
        return cluster.ask2(open_request(job, None, None)).await;
    }
    let (link, blinded) = (link(&cluster.to1).await, blinded(KeyId([1; 16])).element());
    let proof = refresh_proof(&link, job, &CONTRIBUTION, &blinded).await;
    link.call(&call(open_request(job, Some(blinded), proof))).await.unwrap()
}

/// What both requests of a recover or refresh job are refused with, at both nodes.
pub async fn refused_everywhere(cluster: &Cluster, job: &SignedJob) -> ErrorCode {
    let mut codes = Vec::new();
    for role in NODES {
        codes.push(refused(cluster.source(role, job).await));
        codes.push(refused(open(cluster, role, job).await));
    }
    assert!(codes.iter().all(|code| *code == codes[0]), "{codes:?}");
    codes[0]
}

pub async fn order(cluster: &Cluster, op: Op, job_id: &str, key_id: KeyId) {
    // A later order must be later by the clock.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let job = authorised(&cluster.job(op, job_id, key_id, MINUTE, OrderBody {}), &cluster.authoriser);
    for role in NODES {
        let reply = ask(cluster, role, NodeRequest::Order { job: job.clone() }).await;
        assert!(matches!(reply, NodeReply::Ordered { .. }), "{reply:?}");
    }
}

pub fn commit_request(key: &Key, evidence: Fixed<64>) -> NodeRequest {
    NodeRequest::Commit { key_id: key.id(), transcript: key.share.transcript(), evidence }
}

/// Node 1's decision; node 2 has not heard of it.
pub async fn decide(cluster: &Cluster, key: &Key) -> Fixed<64> {
    match cluster.ask1(commit_request(key, key.statement2.signature)).await {
        NodeReply::Committed { signature } => signature,
        other => panic!("not committed: {other:?}"),
    }
}

pub async fn follow(cluster: &Cluster, key: &Key, decision: Fixed<64>) {
    let reply = cluster.ask2(commit_request(key, decision)).await;
    assert!(matches!(reply, NodeReply::Committed { .. }), "{reply:?}");
}

/// Ends a node in good order and starts it again.
pub async fn restart(cluster: &mut Cluster, role: Party) {
    cluster.drain_node(role).await;
    cluster.start_node(role).await;
    let channel = if role == Party::Node1 { &cluster.to1 } else { &cluster.to2 };
    // A handshake may still go to the one before.
    while channel.renew().await.is_err() {}
}

pub fn decisions(cluster: &Cluster, role: Party, decision: &str) -> usize {
    let path = cluster.data(role).join(AUDIT_LOG);
    audit::verify(&path, None).unwrap();
    std::fs::read_to_string(path).unwrap().matches(&format!("\"decision\":\"{decision}\"")).count()
}

/// Which shares a node holds; it is stopped for that, for good.
pub async fn held(cluster: &mut Cluster, role: Party, keys: &[&Key]) -> Vec<bool> {
    cluster.drain_node(role).await;
    let store = RedbStore::open(&cluster.data(role), role, Secret::new([7; 32])).unwrap();
    keys.iter().map(|key| store.material(key.id(), key.share.transcript()).is_ok()).collect()
}

/// Makes a check fail at node 1, which locks the key.
pub async fn lock(cluster: &Cluster, key: &Key, job_id: &str) {
    let job = cluster.sign_job(job_id, key.id(), &digest_input());
    let midway = to_m2(cluster, key, &job, u64::MAX).await.unwrap();
    let mut m2 = midway.m2.clone();
    m2[16 + 33 + 16 + 100] ^= 1;
    assert_eq!(refused(midway.send(m2).await), ErrorCode::ProtocolAbort);
}
