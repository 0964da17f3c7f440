//! A node 1 that cheats: the client party's checks end the attempt, and those that leak lock the key for ever.
//!
//! The cheat is an honest node whose answers are changed just before they are sealed, so every message is valid on the channel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::cheat::beside_a_cheat;
use deployment::{Deployment, QUICK, digest, material, new_key, password};
use std::sync::{Arc, Mutex};
use trefoil::client::{Backend, ClientError, OldKey, SigningMaterial};
use trefoil::jobs::bans::Ban;
use trefoil::wire::node::NodeReply;
use trefoil::wire::{Batch, Curve, ErrorCode, Method, SignInput, subject};
use trefoil_protocol::ecdsa::{M1_LEN, M3_LEN};

async fn signed(backend: &Backend, key: &SigningMaterial, input: &SignInput) -> Result<(), ErrorCode> {
    match backend.sign(key, Method::Default, input, password()).await {
        Ok(_) => Ok(()),
        Err(ClientError::Job(failure)) => Err(failure.code),
        Err(other) => panic!("{other}"),
    }
}

async fn bans(service: &Deployment) -> Vec<Ban> {
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let mut stream = jetstream.get_stream("MPC_BANS").await.unwrap();
    let count = stream.info().await.unwrap().state.messages;
    let mut found = Vec::new();
    for sequence in 1..=count {
        let record: serde_json::Value =
            serde_json::from_slice(&stream.get_raw_message(sequence).await.unwrap().payload).unwrap();
        found.push(serde_json::from_value(record["ban"].clone()).unwrap());
    }
    found
}

/// One bit of one column of U: node 1 uses other choice bits there, to learn a bit of the client's Δ.
fn bend_column(reply: &mut NodeReply) {
    if let NodeReply::SignOpened { m1, .. } = reply {
        let columns = M1_LEN - 32 - 16 - 128 * 68;
        m1[columns + 7 * 68] ^= 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cheat_in_the_ot_extension_locks_the_key_for_ever() {
    let (mut service, cheat, backend) = beside_a_cheat().await;
    let (key, other) = (new_key(&backend, Curve::Secp256k1).await, new_key(&backend, Curve::Secp256k1).await);
    assert_eq!(signed(&backend, &key, &digest(1)).await, Ok(()));

    // Eight at a time: those that wait for the key when the first one fails do not run any more.
    let opened = Arc::new(Mutex::new(0));
    let count = opened.clone();
    cheat.answers(move |reply| {
        // Also those that node 1 refuses, because it was told of the lock: one that cheats would not.
        let asked = matches!(reply, NodeReply::SignOpened { .. } | NodeReply::Refused { .. });
        *count.lock().unwrap() += u32::from(asked);
        bend_column(reply);
    });
    let ends = futures::future::join_all((0..8).map(|_| async { signed(&backend, &key, &digest(2)).await })).await;
    assert_eq!(ends.iter().filter(|end| **end == Err(ErrorCode::ProtocolAbort)).count(), 1, "{ends:?}");
    assert_eq!(ends.iter().filter(|end| **end == Err(ErrorCode::KeyLocked)).count(), 7, "{ends:?}");
    assert_eq!(*opened.lock().unwrap(), 1, "a session ran after the key was locked");
    let found = bans(&service).await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].key_id, found[0].epoch), (key.key_id, 1));
    assert_eq!((found[0].culprit.as_str(), found[0].check.as_str()), ("node1", "ot_consistency"));

    // Honesty comes too late, and restarts change nothing.
    cheat.honestly();
    for attempt in 0..3 {
        assert_eq!(signed(&backend, &key, &digest(attempt)).await, Err(ErrorCode::KeyLocked));
    }
    service.kill("worker1");
    service.nats.restart();
    service.start_worker("worker1");
    match backend.sign(&key, Method::Mta, &digest(3), password()).await.unwrap_err() {
        // By the worker's own record, before node 1 is asked anything.
        ClientError::Job(failure) => assert!(failure.message.contains("failed before"), "{}", failure.message),
        other => panic!("{other}"),
    }
    assert_eq!(signed(&backend, &other, &digest(3)).await, Ok(()), "other keys are not touched");
}

/// In the second sub-batch of a batch: other choices in one column of one item, another product in one item.
#[tokio::test(flavor = "multi_thread")]
async fn a_cheat_in_one_item_of_a_batch_locks_the_key() {
    let (service, cheat, backend) = beside_a_cheat().await;
    type Lie = fn(&mut NodeReply);
    let (checks, lies): ([&str; 2], [Lie; 2]) = (
        ["ot_consistency", "rvole_mu"],
        [
            |reply| {
                if let NodeReply::BatchRound { m1, .. } = reply {
                    m1[2 * M1_LEN - 48 - 128 * 68 + 7 * 68] ^= 1;
                }
            },
            |reply| {
                if let NodeReply::BatchRound { m3, m1 } = reply
                    && m1.is_empty()
                {
                    m3[M3_LEN + 16 + 33 + 32 + 416 * 3 * 32 + 32] ^= 1;
                }
            },
        ],
    );
    let batch = Batch::new((0..12).map(digest).collect()).unwrap();
    for (number, (check, lie)) in checks.into_iter().zip(lies).enumerate() {
        let key = new_key(&backend, Curve::Secp256k1).await;
        let sign = async || match backend.sign_batch(&key, Method::Default, &batch, password()).await {
            Ok(signed) => Ok(signed.len()),
            Err(ClientError::Job(failure)) => Err(failure.code),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(sign().await, Ok(12));
        cheat.answers(lie);
        assert_eq!(sign().await, Err(ErrorCode::ProtocolAbort));
        cheat.honestly();
        assert_eq!(sign().await, Err(ErrorCode::KeyLocked));
        assert_eq!(signed(&backend, &key, &digest(1)).await, Err(ErrorCode::KeyLocked));
        let found = bans(&service).await;
        assert_eq!((found.len(), found[number].check.as_str()), (number + 1, check));
    }
    // Fewer shares than items, or one that is wrong, ends the attempt on ed25519.
    let key = new_key(&backend, Curve::Ed25519).await;
    let batch = Batch::new(vec![SignInput::Ed25519 { message: vec![1] }; 3]).unwrap();
    let lies: [fn(&mut NodeReply); 2] = [
        |reply| {
            if let NodeReply::BatchFrostSigned { shares, .. } = reply {
                shares.pop();
            }
        },
        |reply| {
            if let NodeReply::BatchFrostSigned { shares, .. } = reply {
                shares[2].1[0] ^= 1;
            }
        },
    ];
    for lie in lies {
        cheat.answers(lie);
        match backend.sign_batch(&key, Method::Default, &batch, password()).await.unwrap_err() {
            ClientError::Job(failure) => assert_eq!(failure.code, ErrorCode::ProtocolAbort),
            other => panic!("{other}"),
        }
        cheat.honestly();
        backend.sign_batch(&key, Method::Default, &batch, password()).await.unwrap();
    }
    assert_eq!(bans(&service).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_locks_a_key_or_hides_a_lock() {
    let (mut service, cheat, backend) = beside_a_cheat().await;
    let (key, other) = (new_key(&backend, Curve::Secp256k1).await, new_key(&backend, Curve::Secp256k1).await);
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let put = async |key: &SigningMaterial, bytes: Vec<u8>| {
        let sent = jetstream.publish(subject::ban(&key.key_id, 1), bytes.into()).await.unwrap();
        sent.await.unwrap();
    };
    for body in ["", "x", "{}"] {
        put(&key, body.into()).await;
    }
    assert_eq!(signed(&backend, &key, &digest(1)).await, Ok(()));
    cheat.answers(bend_column);
    assert_eq!(signed(&backend, &other, &digest(1)).await, Err(ErrorCode::ProtocolAbort));
    assert_eq!(signed(&backend, &key, &digest(1)).await, Err(ErrorCode::ProtocolAbort));
    cheat.honestly();
    // The true record of one key is none of another, and what comes after it does not hide it.
    let stream = jetstream.get_stream("MPC_BANS").await.unwrap();
    let record = stream.get_last_raw_message_by_subject(&subject::ban(&other.key_id, 1)).await.unwrap().payload;
    let third = new_key(&backend, Curve::Secp256k1).await;
    put(&third, record.to_vec()).await;
    put(&key, "{}".into()).await;
    service.kill("worker1");
    service.start_worker("worker1");
    assert_eq!(signed(&backend, &third, &digest(1)).await, Ok(()));
    for locked in [&key, &other] {
        match backend.sign(locked, Method::Mta, &digest(3), password()).await.unwrap_err() {
            // By the worker's own record, before node 1 is asked anything.
            ClientError::Job(failure) => assert!(failure.message.contains("failed before"), "{}", failure.message),
            other => panic!("{other}"),
        }
    }
    // New shares mend it, under another id or under the same.
    let recovered = backend.recover(&known(&key), QUICK, password(), &service.authoriser).await.unwrap();
    let refreshed = backend.refresh(&known(&other), &other, password(), None, QUICK).await.unwrap();
    for (old, new) in [(&key, recovered), (&other, refreshed)] {
        assert_eq!(new.key.public_key, old.public_key);
        assert_eq!(signed(&backend, &material(&new), &digest(4)).await, Ok(()));
        assert_eq!(signed(&backend, old, &digest(4)).await, Err(ErrorCode::KeyLocked));
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_trouble_commits_later_and_a_slow_one_is_waited_for() {
    let (service, cheat, backend) = beside_a_cheat().await;
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    cheat.answers(|reply| {
        if let NodeReply::Committed { .. } = reply {
            let message = "no space left on device".to_owned();
            *reply = NodeReply::Refused { code: ErrorCode::Internal, message, retry_at: None, successor: None };
        }
    });
    backend.generate(Curve::Ed25519, QUICK, password()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let left = jetstream.get_stream("MPC_JOBS").await.unwrap().cached_info().state.messages;
    assert_eq!(left, 1, "the commit was given up");
    cheat.honestly();
    deployment::wait_until_empty(&jetstream).await;
    // Each answer in time, all of them together not within the time of one.
    cheat.answers(|_| std::thread::sleep(std::time::Duration::from_millis(900)));
    backend.generate(Curve::Ed25519, QUICK, password()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_product_locks_and_other_lies_only_end_the_attempt() {
    let (service, cheat, backend) = beside_a_cheat().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let eddsa = new_key(&backend, Curve::Ed25519).await;
    let hello = SignInput::Ed25519 { message: b"hello".to_vec() };

    // w1, the last field of m3: the signature does not verify. The salt of the commitment. A truncated message. The contribution
    // in m1, which makes another session. Each ends the attempt, and the key stays usable.
    let lies: [fn(&mut NodeReply); 5] = [
        |reply| {
            if let NodeReply::SignRound3 { m3 } = reply {
                m3[M3_LEN - 1] ^= 1;
            }
        },
        |reply| {
            if let NodeReply::SignRound3 { m3 } = reply {
                m3[16 + 33] ^= 1;
            }
        },
        |reply| {
            if let NodeReply::SignRound3 { m3 } = reply {
                m3.pop();
            }
        },
        |reply| {
            if let NodeReply::SignOpened { m1, .. } = reply {
                m1[0] ^= 1;
            }
        },
        |reply| {
            if let NodeReply::SignOpened { evaluation, .. } = reply {
                *evaluation = [0xff; 32];
            }
        },
    ];
    for lie in lies {
        cheat.answers(lie);
        assert_eq!(signed(&backend, &key, &digest(1)).await, Err(ErrorCode::ProtocolAbort));
        cheat.honestly();
        assert_eq!(signed(&backend, &key, &digest(1)).await, Ok(()));
    }
    cheat.answers(|reply| {
        if let NodeReply::FrostSigned { share, .. } = reply {
            share[0] ^= 1;
        }
    });
    assert_eq!(signed(&backend, &eddsa, &hello).await, Err(ErrorCode::ProtocolAbort));
    cheat.honestly();
    assert_eq!(signed(&backend, &eddsa, &hello).await, Ok(()));
    assert!(bans(&service).await.is_empty());

    // μ of m3: other inputs in some rows.
    cheat.answers(|reply| {
        if let NodeReply::SignRound3 { m3 } = reply {
            m3[16 + 33 + 32 + 416 * 3 * 32 + 32] ^= 1;
        }
    });
    assert_eq!(signed(&backend, &key, &digest(2)).await, Err(ErrorCode::ProtocolAbort));
    cheat.honestly();
    assert_eq!(signed(&backend, &key, &digest(2)).await, Err(ErrorCode::KeyLocked));
    assert_eq!(bans(&service).await[0].check, "rvole_mu");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_with_a_lying_node_makes_no_key() {
    let (_service, cheat, backend) = beside_a_cheat().await;
    let lies: [fn(&mut NodeReply); 2] = [
        |reply| {
            if let NodeReply::GenerateRound { payload } = reply
                && let Some(byte) = payload.first_mut()
            {
                *byte ^= 1;
            }
        },
        |reply| {
            if let NodeReply::Prepared(statement) = reply {
                statement.signature.0[0] ^= 1;
            }
        },
    ];
    for curve in [Curve::Ed25519, Curve::Secp256k1] {
        for lie in lies {
            cheat.answers(lie);
            match backend.generate(curve, QUICK, password()).await.unwrap_err() {
                ClientError::Job(failure) => assert_eq!(failure.code, ErrorCode::ProtocolAbort),
                other => panic!("{other}"),
            }
        }
        cheat.honestly();
        let key = new_key(&backend, curve).await;
        let input = if curve == Curve::Ed25519 { SignInput::Ed25519 { message: vec![] } } else { digest(1) };
        assert_eq!(signed(&backend, &key, &input).await, Ok(()));
    }
}
