//! The client party of a recovery or refresh, step by step.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::{Cluster, Dealt, Key, MINUTE, sealed};
use nkeys::KeyPair;
use rand_core::OsRng;
use trefoil::auth;
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{Curve, GenerateBody, KdfParams, KeyId, Op, SignedJob};
use trefoil_protocol::Party;
use trefoil_protocol::keygen::ClientKeygen;
use trefoil_protocol::reshare::Source;

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
