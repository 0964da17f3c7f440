//! Which records lock a key: those that a worker made on a job of the key's owner, and no others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use async_nats::jetstream::{self, Context};
use futures::StreamExt;
use nkeys::{KeyPair, XKey};
use support::NatsServer;
use trefoil::auth::sign_job;
use trefoil::jobs::bans::{Ban, Bans};
use trefoil::jobs::owners::{Names, Owners};
use trefoil::jobs::streams::{self, StreamSettings};
use trefoil::wire::{Fixed, Job, KeyId, subject};
use trefoil_protocol::Party;

async fn provisioned() -> (NatsServer, Context) {
    let server = NatsServer::start();
    let jetstream = jetstream::new(server.connect().await);
    streams::provision(&jetstream, &StreamSettings::default()).await.unwrap();
    (server, jetstream)
}

fn bans(seeds: &[&XKey]) -> Bans {
    let seeds: Vec<String> = seeds.iter().map(|seed| seed.seed().unwrap()).collect();
    Bans::new(seeds.iter().map(String::as_str)).unwrap()
}

/// A job of this initiator about this key.
fn job(initiator: &KeyPair, key: KeyId) -> Job {
    let body = format!(
        r#"{{"version":1,"op":"public-key","jobId":"j","keyId":"{key}","initiator":"{}","issuedAt":1,"expiresAt":2,"replyKey":"{}","payload":{{}}}}"#,
        initiator.public_key(),
        XKey::new().public_key(),
    );
    Job::from_signed(&sign_job(initiator, body.into_bytes()).unwrap()).unwrap()
}

async fn messages(jetstream: &Context) -> u64 {
    jetstream.get_stream("MPC_BANS").await.unwrap().cached_info().state.messages
}

const KEY: KeyId = KeyId([1; 16]);
const T: [u8; 32] = [5; 32];

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_counts_for_its_key_epoch_and_owner_and_is_stored_once() {
    let (_server, jetstream) = provisioned().await;
    let seed = XKey::new();
    let (owner, other) = (KeyPair::new_user(), KeyPair::new_user());
    let maker = bans(&[&seed]);
    let job1 = job(&owner, KEY);
    assert!(!maker.is_banned(&jetstream, &job1, 1, T).await.unwrap());
    for _ in 0..2 {
        maker.record(&jetstream, &Ban::new(&job1, 1, T, "rvole_mu", Party::Node1)).await.unwrap();
    }
    assert_eq!(messages(&jetstream).await, 1);
    for checker in [maker, bans(&[&seed])] {
        assert!(checker.is_banned(&jetstream, &job(&owner, KEY), 1, T).await.unwrap());
        assert!(!checker.is_banned(&jetstream, &job1, 2, T).await.unwrap(), "another epoch");
        assert!(
            !checker.is_banned(&jetstream, &job1, 1, [6; 32]).await.unwrap(),
            "other shares, which nobody knew then"
        );
        assert!(!checker.is_banned(&jetstream, &job(&owner, KeyId([2; 16])), 1, T).await.unwrap(), "another key");
        assert!(!checker.is_banned(&jetstream, &job(&other, KEY), 1, T).await.unwrap(), "on somebody else's job");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_counts_for_all_keys_of_its_owner() {
    let (_server, jetstream) = provisioned().await;
    let (seed, old, new, other) = (XKey::new(), KeyPair::new_user(), KeyPair::new_user(), KeyPair::new_user());
    bans(&[&seed]).record(&jetstream, &Ban::new(&job(&old, KEY), 1, T, "rvole_mu", Party::Node1)).await.unwrap();
    let names = format!("{}={}", new.public_key(), old.public_key()).parse().unwrap();
    let owners = Owners::new(vec![names, other.public_key().parse().unwrap()]).unwrap();
    let checker = Bans::serving([seed.seed().unwrap().as_str()], owners.clone()).unwrap();
    for (key, locked) in [(&old, true), (&new, true), (&other, false)] {
        assert_eq!(checker.is_banned(&jetstream, &job(key, KEY), 1, T).await.unwrap(), locked);
        assert!(owners.serves(&key.public_key().parse().unwrap()));
    }
    // When the old key is a former one, its locks stay, and its jobs are not taken.
    let names = format!("{}=-{}", new.public_key(), old.public_key()).parse().unwrap();
    let owners = Owners::new(vec![names]).unwrap();
    let checker = Bans::serving([seed.seed().unwrap().as_str()], owners.clone()).unwrap();
    assert!(checker.is_banned(&jetstream, &job(&new, KEY), 1, T).await.unwrap());
    assert!(owners.serves(&new.public_key().parse().unwrap()));
    assert!(!owners.serves(&old.public_key().parse().unwrap()));
    assert!(format!("-{}", old.public_key()).parse::<Names>().is_err(), "whose former key?");
    let twice = [&new, &new].map(|key| key.public_key().parse().unwrap());
    assert_eq!(Owners::new(twice.into()).err().unwrap().to_string(), new.public_key());
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_not_authentic_neither_lock_nor_hide() {
    let (_server, jetstream) = provisioned().await;
    let seed = XKey::new();
    let owner = KeyPair::new_user();
    let job = job(&owner, KEY);
    let ban = Ban::new(&job, 1, T, "rvole_mu", Party::Node1);
    let put = async |bytes: Vec<u8>| {
        jetstream.publish(subject::ban(&KEY, 1), bytes.into()).await.unwrap().await.unwrap();
    };
    // By somebody who has another seed: the broker, say.
    bans(&[&XKey::new()]).record(&jetstream, &ban).await.unwrap();
    put(b"x".to_vec()).await;
    put(serde_json::to_vec(&ban).unwrap()).await;
    // By somebody who has the seed, but no job that the owner signed.
    let unsigned = Ban { job_signature: Fixed([7; 64]), ..ban.clone() };
    assert!(bans(&[&seed]).record(&jetstream, &unsigned).await.is_err());
    let renamed = Ban { key_id: KeyId([2; 16]), ..ban.clone() };
    assert!(bans(&[&seed]).record(&jetstream, &renamed).await.is_err());
    assert!(!bans(&[&seed]).is_banned(&jetstream, &job, 1, T).await.unwrap());

    // They do not stop the true one, and one that was changed afterwards does not hide it.
    bans(&[&seed]).record(&jetstream, &ban).await.unwrap();
    let stream = jetstream.get_stream("MPC_BANS").await.unwrap();
    let stored = stream.get_last_raw_message_by_subject(&subject::ban(&KEY, 1)).await.unwrap().payload;
    put(String::from_utf8(stored.to_vec()).unwrap().replace("rvole_mu", "nothing").into_bytes()).await;
    assert!(bans(&[&seed]).is_banned(&jetstream, &job, 1, T).await.unwrap());
    // A record under this name of another epoch is not this epoch's.
    jetstream.publish(subject::ban(&KEY, 2), stored).await.unwrap().await.unwrap();
    assert!(!bans(&[&seed]).is_banned(&jetstream, &job, 2, T).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn bans_outlive_the_seed_that_they_were_made_under() {
    let (_server, jetstream) = provisioned().await;
    let (old, new) = (XKey::new(), XKey::new());
    let job = job(&KeyPair::new_user(), KEY);
    bans(&[&old]).record(&jetstream, &Ban::new(&job, 1, T, "rvole_mu", Party::Node1)).await.unwrap();
    let both = bans(&[&new, &old]);
    assert!(both.is_banned(&jetstream, &job, 1, T).await.unwrap());
    both.renew(&jetstream).await.unwrap();
    both.renew(&jetstream).await.unwrap();
    assert_eq!(messages(&jetstream).await, 2, "renewed once");
    assert!(bans(&[&new]).is_banned(&jetstream, &job, 1, T).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_seeds_are_rotated_every_worker_knows_a_new_ban() {
    let (_server, jetstream) = provisioned().await;
    let (old, new) = (XKey::new(), XKey::new());
    let job = job(&KeyPair::new_user(), KEY);
    let ban = Ban::new(&job, 1, T, "rvole_mu", Party::Node1);
    // A worker that has the new seed already, beside one that has not, and one that will not have the old one any more.
    let maker = bans(&[&old]);
    let (new_seed, old_seed) = (new.seed().unwrap(), old.seed().unwrap());
    assert!(!maker.replace_seeds([]) && !maker.replace_seeds(["SX"]));
    assert!(maker.replace_seeds([new_seed.as_str(), old_seed.as_str()]));
    for _ in 0..2 {
        maker.record(&jetstream, &ban).await.unwrap();
    }
    assert_eq!(messages(&jetstream).await, 2);
    for checker in [bans(&[&old]), bans(&[&new])] {
        assert!(checker.is_banned(&jetstream, &job, 1, T).await.unwrap());
    }
    // Known under one of them only: cut off in between, say.
    bans(&[&new]).record(&jetstream, &Ban::new(&job, 2, T, "rvole_mu", Party::Node1)).await.unwrap();
    maker.record(&jetstream, &Ban::new(&job, 2, T, "rvole_mu", Party::Node1)).await.unwrap();
    assert!(bans(&[&old]).is_banned(&jetstream, &job, 2, T).await.unwrap());
    maker.renew(&jetstream).await.unwrap();
    assert_eq!(messages(&jetstream).await, 4, "there is nothing to renew");
    // One that was read before its seed was known counts when that is.
    let late = bans(&[&XKey::new()]);
    assert!(!late.is_banned(&jetstream, &job, 1, T).await.unwrap());
    assert!(late.replace_seeds([new_seed.as_str()]));
    assert!(late.is_banned(&jetstream, &job, 1, T).await.unwrap());
}

fn signal(server: &NatsServer, name: &str) {
    let done = std::process::Command::new("kill").args([name, &server.id().to_string()]).status();
    assert!(done.unwrap().success());
}

/// Stops the server, and waits until each of its threads has stopped.
fn stop(server: &NatsServer) {
    signal(server, "-STOP");
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.is_empty() || stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    };
    while !std::fs::read_dir(format!("/proc/{}/task", server.id())).unwrap().all(is_stopped) {
        std::thread::yield_now();
    }
}

/// Reads of the stream by everybody, until the subscription is dropped.
async fn reads(server: &NatsServer) -> async_nats::Subscriber {
    let client = server.connect().await;
    support::subscribed(&client, "$JS.API.STREAM.MSG.GET.MPC_BANS").await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_reads_for_all_who_ask_at_once_and_nobody_before_the_ban_answers_for_who_asks_after_it() {
    let (server, jetstream) = provisioned().await;
    let seed = XKey::new();
    let job = job(&KeyPair::new_user(), KEY);
    let (maker, checker) = (bans(&[&seed]), bans(&[&seed]));
    let reads = reads(&server).await;
    // The first one's read, and one for all who came while it was under way.
    let mut all: Vec<_> = (0..16).map(|_| Box::pin(checker.is_banned(&jetstream, &job, 1, T))).collect();
    // Silent, so that none of them has its answer before the last one has asked.
    stop(&server);
    for one in &mut all {
        assert!(futures::poll!(one).is_pending());
    }
    signal(&server, "-CONT");
    for one in all {
        assert!(!one.await.unwrap());
    }
    // Behind this one, everything before it has reached whoever listens.
    let client = server.connect().await;
    client.publish("$JS.API.STREAM.MSG.GET.MPC_BANS", "last".into()).await.unwrap();
    client.flush().await.unwrap();
    let asked = reads.take_while(|message| std::future::ready(message.payload != "last")).count().await;
    assert!((1..=2).contains(&asked), "{asked}");
    // Whoever asks after it was stored sees it, whoever else is asking.
    let ban = Ban::new(&job, 1, T, "rvole_mu", Party::Node1);
    let before = futures::future::join_all((0..8).map(|_| checker.is_banned(&jetstream, &job, 1, T)));
    let recorded_and_seen = async {
        maker.record(&jetstream, &ban).await.unwrap();
        checker.is_banned(&jetstream, &job, 1, T).await.unwrap()
    };
    let (_, seen) = futures::join!(before, recorded_and_seen);
    assert!(seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn bans_of_a_stream_that_was_made_anew_count_and_those_before_go_on_counting() {
    let (_server, jetstream) = provisioned().await;
    let seed = XKey::new();
    let job = job(&KeyPair::new_user(), KEY);
    let checker = bans(&[&seed]);
    let ban = |epoch| Ban::new(&job, epoch, T, "rvole_mu", Party::Node1);
    for epoch in [1, 2] {
        bans(&[&seed]).record(&jetstream, &ban(epoch)).await.unwrap();
    }
    assert!(checker.is_banned(&jetstream, &job, 2, T).await.unwrap());
    // As many records as before, and more; and none.
    for epochs in [[3, 4].as_slice(), &[5, 6, 7], &[]] {
        jetstream.delete_stream("MPC_BANS").await.unwrap();
        assert!(checker.is_banned(&jetstream, &job, 8, T).await.is_err(), "nobody knows");
        streams::provision(&jetstream, &StreamSettings::default()).await.unwrap();
        for epoch in epochs {
            bans(&[&seed]).record(&jetstream, &ban(*epoch)).await.unwrap();
        }
        for epoch in epochs.iter().chain(&[1, 2]) {
            assert!(checker.is_banned(&jetstream, &job, *epoch, T).await.unwrap(), "epoch {epoch}");
        }
        assert!(!checker.is_banned(&jetstream, &job, 8, T).await.unwrap());
    }
}
