//! Recovery and refresh at two nodes, hand-driven: who may have them, what they leave, and what is over when they are decided.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::signer::{DIGEST, digest_input, frost, message_input, to_m2};
use cluster::{Cluster, Key};
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{Curve, ErrorCode, KeyId};

/// Signs with a key, and verifies the signature under its public key.
async fn sign(cluster: &Cluster, key: &Key, job_id: &str) -> Result<(), ErrorCode> {
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
async fn successor(cluster: &Cluster, key: &Key) -> Option<KeyId> {
    match cluster.ask1(NodeRequest::KeyInfo { job: cluster.key_info_job("who-is-next", key.id()) }).await {
        NodeReply::Refused { code: ErrorCode::KeyRetired, successor, .. } => successor,
        other => panic!("not retired: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_key_signs_and_the_old_share_never_again() {
    let cluster = Cluster::start().await;
    for curve in Curve::ALL.iter().copied() {
        let old = cluster.committed_key(&format!("g-{curve}"), curve).await;
        let new = cluster.recover(&old, &format!("r-{curve}")).await;
        assert_ne!(new.id(), old.id());
        assert_eq!(new.statement1.source_key_id, Some(old.id()));
        assert_eq!(new.statement1.epoch, old.statement1.epoch + 1);
        assert_eq!(new.share.public_key(), old.share.public_key());
        assert_eq!(new.share.chain_code(), old.share.chain_code());
        // Prepared only: the old share still signs, the new one is to be committed first.
        sign(&cluster, &old, &format!("s1-{curve}")).await.unwrap();
        let info = NodeRequest::KeyInfo { job: cluster.key_info_job("i", new.id()) };
        let NodeReply::NotCommitted { result_subject } = cluster.ask1(info).await else { panic!("committed") };
        assert_eq!(result_subject, format!("mpc.result.{}.r-{curve}", cluster.initiator()));
        cluster.commit(&new).await;
        sign(&cluster, &new, &format!("s2-{curve}")).await.unwrap();
        assert_eq!(sign(&cluster, &old, &format!("s3-{curve}")).await, Err(ErrorCode::KeyRetired));
        assert_eq!(successor(&cluster, &old).await, Some(new.id()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_key_signs_and_the_old_share_never_again() {
    let cluster = Cluster::start().await;
    for curve in Curve::ALL.iter().copied() {
        let old = cluster.committed_key(&format!("g-{curve}"), curve).await;
        let new = cluster.refresh(&old, &format!("r-{curve}")).await;
        assert_eq!((new.id(), new.statement1.source_key_id), (old.id(), None));
        assert_eq!(new.statement1.epoch, old.statement1.epoch + 1);
        assert_eq!(new.share.public_key(), old.share.public_key());
        assert_eq!(new.share.chain_code(), old.share.chain_code());
        sign(&cluster, &old, &format!("s1-{curve}")).await.unwrap();
        cluster.commit(&new).await;
        sign(&cluster, &new, &format!("s2-{curve}")).await.unwrap();
        assert_eq!(sign(&cluster, &old, &format!("s3-{curve}")).await, Err(ErrorCode::StaleShare));
        // And once more from there.
        let newest = cluster.refresh(&new, &format!("r2-{curve}")).await;
        cluster.commit(&newest).await;
        sign(&cluster, &newest, &format!("s4-{curve}")).await.unwrap();
        assert_eq!(sign(&cluster, &new, &format!("s5-{curve}")).await, Err(ErrorCode::StaleShare));
    }
}
