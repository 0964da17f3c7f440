//! Recovery and refresh beside a worker or a node that lies: what is not believed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::cheat::beside_a_cheat;
use deployment::{Deployment, PATIENCE, QUICK, digest, material, new_key, password};
use std::time::Duration;
use trefoil::client::verify::Untrusted;
use trefoil::client::{Backend, ClientError, Making, NewKey, OldKey, SigningMaterial};
use trefoil::wire::node::{KeyStatement, NodeReply};
use trefoil::wire::{Base64, Curve, ErrorCode, Fixed, JobResult, KeyId, KeyResult, Method, Outcome};

async fn generated(backend: &Backend, curve: Curve) -> NewKey {
    let mut new = backend.generate(curve, QUICK, password()).await.unwrap();
    new.key = backend.committed(&new.key, PATIENCE).await.unwrap();
    new
}

fn known(key: &SigningMaterial) -> OldKey {
    OldKey {
        key_id: key.key_id,
        curve: Curve::Secp256k1,
        public_key: Some(key.public_key.clone()),
        chain_code: Some(key.chain_code),
        epoch: Some(1),
    }
}

/// A worker sees the backend's share and password, and writes the result. It must not be able to put another key into it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_substitutes_key_or_source_is_not_believed() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let (one, two) = (generated(&backend, Curve::Ed25519).await, generated(&backend, Curve::Ed25519).await);
    let (old, other) = (OldKey::from(&one.key), OldKey::from(&two.key));
    let recover = async |known: &OldKey| {
        let mut request = backend.recovery(known, QUICK, password(), Duration::from_secs(20)).unwrap();
        request.authorise(&service.authoriser).unwrap();
        let result = backend.run(&request).await.unwrap();
        (request, result)
    };
    let (request, result) = recover(&old).await;
    let recovered = backend.made(&request, Making::Recovery(&old), result.clone()).unwrap();
    let changed = |change: &dyn Fn(&mut KeyResult)| -> JobResult {
        let mut result = result.clone();
        let Outcome::Ok { key: Some(key), .. } = &mut result.outcome else { panic!("{result:?}") };
        change(key);
        result
    };
    let refused = |making: Making<'_>, result: JobResult| match backend.made(&request, making, result) {
        Err(ClientError::Untrusted(untrusted)) => untrusted,
        other => panic!("{other:?}"),
    };
    let recovery = Making::Recovery(&old);
    let mine = data_encoding::HEXLOWER.encode(&two.key.public_key);
    for altered in [
        changed(&|key| key.public_key = mine.clone()),
        changed(&|key| key.chain_code = Fixed([0; 32])),
        changed(&|key| key.source_key_id = Some(two.key.key_id)),
        changed(&|key| key.source_key_id = None),
        changed(&|key| key.epoch += 1),
        changed(&|key| key.transcript = Fixed([0; 32])),
        changed(&|key| key.generated_by = Some(Fixed([0; 32]))),
    ] {
        assert_eq!(refused(recovery, altered), Untrusted::NotAttested("node 1"));
    }
    assert_eq!(refused(recovery, changed(&|key| key.key_id = two.key.key_id)), Untrusted::OtherKey);
    // True to the last byte, and of another key: the nodes' word about what the backend did not ask for.
    let (_, theirs) = recover(&other).await;
    assert!(matches!(refused(recovery, theirs), Untrusted::OtherKey));
    assert_eq!(refused(Making::Recovery(&other), result.clone()), Untrusted::AnotherKey);
    assert_eq!(refused(Making::Generation, result.clone()), Untrusted::AnotherKey);
    // That it is prepared is no word of either node that it counts.
    let said_active = changed(&|key| key.state = trefoil::wire::KeyState::Active);
    assert_eq!(refused(recovery, said_active), Untrusted::NotCommitted("node 1"));

    // A refresh, likewise.
    let known = OldKey::from(&backend.committed(&recovered.key, PATIENCE).await.unwrap());
    let request = backend.refreshment(&known, &material(&recovered), password(), None, QUICK).unwrap();
    let result = backend.run(&request).await.unwrap();
    let later = OldKey { epoch: known.epoch.map(|epoch| epoch + 1), ..known.clone() };
    for wrong in [Making::Refresh(&later), Making::Refresh(&OldKey { public_key: Some(vec![0; 32]), ..known.clone() })]
    {
        let error = backend.made(&request, wrong, result.clone()).unwrap_err();
        assert!(matches!(error, ClientError::Untrusted(Untrusted::AnotherKey)), "{error}");
    }
    backend.made(&request, Making::Refresh(&known), result).unwrap();
}

type Lie = Box<dyn Fn(&mut KeyStatement, &mut [Base64; 3]) + Send>;

/// A client without a share knows of the key what both nodes say, and nothing that only one of them says.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_something_else_of_a_key_ends_its_recovery() {
    let (service, cheat, backend) = beside_a_cheat().await;
    let (key, theirs) = (new_key(&backend, Curve::Secp256k1).await, new_key(&backend, Curve::Secp256k1).await);
    let public_key = theirs.public_key.clone();
    let lies: [Lie; 7] = [
        Box::new(move |said, _| said.public_key.clone_from(&public_key)),
        Box::new(|said, _| said.chain_code = [0; 32]),
        Box::new(|said, _| said.transcript = [0; 32]),
        Box::new(|said, _| said.epoch -= 1),
        Box::new(|said, _| said.epoch += 1),
        Box::new(|said, _| said.key_id = KeyId([0; 16])),
        Box::new(|_, shares| shares.swap(0, 2)),
    ];
    for lie in lies {
        cheat.answers(move |reply| {
            if let NodeReply::Source { statement, verifying_shares, .. } = reply {
                lie(statement, verifying_shares);
            }
        });
        let recovered = backend.recover(&known(&key), QUICK, password(), &service.authoriser).await;
        let refreshed = backend.refresh(&known(&key), &key, password(), None, QUICK).await;
        for ended in [recovered, refreshed] {
            match ended.unwrap_err() {
                ClientError::Job(failure) => assert_eq!(failure.code, ErrorCode::ProtocolAbort, "{failure:?}"),
                other => panic!("{other}"),
            }
        }
    }
    cheat.honestly();
    backend.sign(&key, Method::Mta, &digest(1), password()).await.expect("nothing was prepared, nothing is lost");
    backend.recover(&known(&key), QUICK, password(), &service.authoriser).await.unwrap();
}
