//! The client party of a signing, step by step.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::{Cluster, Key, call, digest, link};
use std::sync::Arc;
use trefoil::channel::Link;
use trefoil::wire::node::{NodeReply, NodeRequest, SessionId, SignOpen, SignOutcome};
use trefoil::wire::{ErrorCode, Fixed, SignInput, SignedJob};
use trefoil_protocol::derive::DerivationPath;
use trefoil_protocol::ecdsa::Request;
use trefoil_protocol::ecdsa::client::{Client, Round2};
use trefoil_protocol::frost::FrostClient;

pub const DIGEST: [u8; 32] = [0x5a; 32];

pub fn digest_input() -> SignInput {
    SignInput::Secp256k1 { digest: DIGEST, path: None }
}

pub fn message_input(message: &[u8]) -> SignInput {
    SignInput::Ed25519 { message: message.to_vec() }
}

/// An OPRF input of some other password.
pub fn other_element() -> [u8; 32] {
    super::blinded(trefoil::wire::KeyId([0; 16])).element()
}

/// The client between m2 and m3.
pub struct Midway {
    pub link: Arc<Link>,
    pub session: SessionId,
    pub m2: Vec<u8>,
    client: Round2,
}

/// Opens a session and computes m2, without sending it.
pub async fn to_m2(cluster: &Cluster, key: &Key, job: &SignedJob, token: u64) -> Result<Midway, ErrorCode> {
    to_m2_altered(cluster, key, job, token, |_| {}).await
}

/// The same by a worker that alters what it opens the session with.
pub async fn to_m2_altered(
    cluster: &Cluster,
    key: &Key,
    job: &SignedJob,
    token: u64,
    alter: impl FnOnce(&mut SignOpen),
) -> Result<Midway, ErrorCode> {
    let link = link(&cluster.to1).await;
    let path = DerivationPath::parse("m").unwrap();
    let request = Request { channel_hash: link.hash(), job_digest: digest(job), digest: DIGEST, path };
    let contribution = [9; 32];
    let mut open = cluster.open(key, job, contribution, token);
    alter(&mut open);
    match link.call(&call(NodeRequest::SignOpen(open))).await.unwrap() {
        NodeReply::SignOpened { session, m1, .. } => {
            let client = Client::new(key.share.clone(), request, contribution).unwrap();
            match client.advance(&m1, &mut rand_core::OsRng) {
                Ok((client, m2)) => Ok(Midway { link, session, m2, client }),
                Err(abort) => {
                    assert!(!abort.is_ban(), "{abort}");
                    Err(ErrorCode::ProtocolAbort)
                }
            }
        }
        NodeReply::Refused { code, .. } => Err(code),
        other => panic!("{other:?}"),
    }
}

impl Midway {
    pub async fn send(&self, m2: Vec<u8>) -> NodeReply {
        self.link.call(&call(NodeRequest::SignRound2 { session: self.session, m2 })).await.unwrap()
    }

    /// Finishes honestly; the signature is verified by the client itself.
    pub async fn finish(self) -> [u8; 64] {
        self.finished().await.unwrap()
    }

    /// The same, where node 1 may refuse.
    pub async fn finished(self) -> Result<[u8; 64], ErrorCode> {
        let (link, session) = (Arc::clone(&self.link), self.session);
        let signature = self.signed().await?;
        let outcome = SignOutcome::Signature(Fixed(signature));
        let close = NodeRequest::SignClose { session, outcome };
        assert!(matches!(link.call(&call(close)).await.unwrap(), NodeReply::Closed));
        Ok(signature)
    }

    /// Up to the signature; node 1 is not told of it.
    pub async fn signed(self) -> Result<[u8; 64], ErrorCode> {
        match self.send(self.m2.clone()).await {
            NodeReply::SignRound3 { m3 } => Ok(self.client.finish(&m3).unwrap().bytes),
            NodeReply::Refused { code, .. } => Err(code),
            other => panic!("{other:?}"),
        }
    }
}

pub async fn frost(cluster: &Cluster, key: &Key, job: &SignedJob, message: &[u8]) -> Result<[u8; 64], ErrorCode> {
    let link = link(&cluster.to1).await;
    let (client, commitments) = FrostClient::start(&mut rand_core::OsRng);
    let open = cluster.open(key, job, [1; 32], 0);
    let request = NodeRequest::FrostSign { open, commitments: Fixed(commitments) };
    match link.call(&call(request)).await.unwrap() {
        NodeReply::FrostSigned { session, commitments, share, .. } => {
            let signature = client.finish(&key.share, message, &commitments.0, &share).unwrap();
            let outcome = SignOutcome::Signature(Fixed(signature));
            let close = NodeRequest::SignClose { session, outcome };
            assert!(matches!(link.call(&call(close)).await.unwrap(), NodeReply::Closed));
            Ok(signature)
        }
        NodeReply::Refused { code, .. } => Err(code),
        other => panic!("{other:?}"),
    }
}

pub fn close(session: SessionId) -> NodeRequest {
    NodeRequest::SignClose { session, outcome: SignOutcome::Abort { check: "test".into(), ban: false } }
}
