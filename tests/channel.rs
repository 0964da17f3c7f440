//! The Noise channel over a real nats-server: pinned at both ends, each record once, unforgeable, renewed when it is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use async_nats::connection::State;
use cluster::{Cluster, call, link, refused};
use futures::{FutureExt, StreamExt};
use nkeys::XKey;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use trefoil::channel::{ChannelError, MAX_MESSAGE, MAX_PAYLOAD, NodeChannel, Reject, Responder};
use trefoil::clock::now_ms;
use trefoil::connections::{Connections, LARGE};
use trefoil::wire::node::{Call, NODE_VERSION, NodeReply, NodeRequest};
use trefoil::wire::{Curve, ErrorCode, KeyId, subject};
use trefoil_protocol::{Party, Secret};

fn question(cluster: &Cluster) -> Call {
    call(NodeRequest::KeyInfo { job: cluster.key_info_job("q", KeyId([1; 16])) })
}

fn channel(cluster: &Cluster, node: Party, private: [u8; 32], remote: [u8; 32]) -> NodeChannel {
    NodeChannel::new(cluster.client.clone(), node, Arc::new(Secret::new(private)), vec![remote])
}

fn private(key: &XKey) -> [u8; 32] {
    nkeys::decode_seed(&key.seed().unwrap()).unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_are_pinned() {
    let cluster = Cluster::start().await;
    let worker = private(&cluster.worker);
    let unknown_answer = cluster.to1.call(&question(&cluster)).await.unwrap();
    assert_eq!(refused(unknown_answer), ErrorCode::UnknownKey);
    // A worker that the node does not list; a node that is not the pinned one; the other node's name with this one's key.
    let stranger = channel(&cluster, Party::Node1, [5; 32], cluster.node1.noise_public());
    let impostor = channel(&cluster, Party::Node1, worker, cluster.node2.noise_public());
    let confused = channel(&cluster, Party::Node2, worker, cluster.node1.noise_public());
    for bad in [stranger, impostor, confused] {
        assert_eq!(bad.call(&question(&cluster)).await.err(), Some(ChannelError::HandshakeRefused));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_node_is_told_at_once() {
    let mut cluster = Cluster::start().await;
    cluster.drain_node(Party::Node1).await;
    // Not that its time is over, which is 20 s later.
    for _ in 0..3 {
        assert_eq!(cluster.to1.call(&question(&cluster)).await.err(), Some(ChannelError::Unavailable));
    }
    let late = Call { version: NODE_VERSION, deadline: now_ms() - 1, request: question(&cluster).request };
    assert_eq!(cluster.to2.call(&late).await.err(), Some(ChannelError::Timeout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_is_found_again_by_everyone() {
    let mut cluster = Cluster::start().await;
    let before = link(&cluster.to1).await;
    cluster.to1.call(&question(&cluster)).await.unwrap();
    cluster.drain_node(Party::Node1).await;
    cluster.start_node(Party::Node1).await;
    let calls = (0..200).map(|_| async { cluster.to1.call(&question(&cluster)).await });
    for reply in futures::future::join_all(calls).await {
        assert_eq!(refused(reply.unwrap()), ErrorCode::UnknownKey);
    }
    let after = link(&cluster.to1).await;
    assert_ne!(before.hash(), after.hash());
    // One handshake for all of them: the link is still the one that the first of them made.
    assert_eq!(link(&cluster.to1).await.hash(), after.hash());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_channel_leaves_the_old_link_working() {
    let cluster = Cluster::start().await;
    let old = link(&cluster.to1).await;
    let new = cluster.to1.renew().await.unwrap();
    assert_ne!(old.hash(), new.hash());
    assert_eq!(link(&cluster.to1).await.hash(), new.hash());
    assert_eq!(refused(old.call(&question(&cluster)).await.unwrap()), ErrorCode::UnknownKey);
    assert_eq!(refused(new.call(&question(&cluster)).await.unwrap()), ErrorCode::UnknownKey);
}

/// While a node changes its key, each handshake with the other one looks like an attack to it.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_that_a_node_had_last_is_tried_first() {
    let cluster = Cluster::start().await;
    let key = Arc::new(Secret::new(private(&cluster.worker)));
    let remotes = vec![[5; 32], [6; 32], cluster.node1.noise_public()];
    let to1 = NodeChannel::new(cluster.client.clone(), Party::Node1, key, remotes);
    // On the channel's own connection, so that what is counted is here before its answer.
    let mut tap = cluster.client.subscribe(subject::node_handshake("node1")).await.unwrap();
    for expected in [3, 1, 1] {
        to1.renew().await.unwrap();
        let seen = std::iter::from_fn(|| tap.next().now_or_never()).count();
        assert_eq!(seen, expected);
    }
}

/// What the broker sees of one request, and the reply subject.
async fn overhear(cluster: &Cluster) -> (async_nats::Message, NodeReply) {
    let mut tap = cluster.client.subscribe("mpc.node.node1.i.>").await.unwrap();
    cluster.client.flush().await.unwrap();
    let reply = cluster.to1.call(&question(cluster)).await.unwrap();
    (tap.next().await.unwrap(), reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_can_neither_replay_nor_alter() {
    let cluster = Cluster::start().await;
    let (seen, _) = overhear(&cluster).await;
    let send_for = async |payload: Vec<u8>, patience: Duration| {
        let request = async_nats::Request::new().payload(payload.into()).timeout(Some(patience));
        cluster.client.send_request(seen.subject.clone(), request).await.map(|answer| answer.payload.to_vec())
    };
    let send = async |payload: Vec<u8>| send_for(payload, support::PATIENCE).await;
    let replayed = send_for(seen.payload.to_vec(), Duration::from_millis(500)).await;
    assert!(replayed.is_err(), "a replayed request is not even answered");
    let refused = vec![1, 2];
    for at in [17, 24, 25, 60, seen.payload.len() - 1] {
        let mut altered = seen.payload.to_vec();
        altered[at] ^= 1;
        if at >= 25 {
            altered[20] ^= 1; // a sequence number that was not seen yet, or the replay check would refuse it first
        }
        assert_eq!(send(altered).await.unwrap(), refused, "byte {at}");
    }
    let mut unknown = seen.payload.to_vec();
    unknown[1] ^= 1;
    assert_eq!(send(unknown).await.unwrap(), [1, 1], "unknown channel");
    for cut in [0, 1, 10, 24, 25, 40, seen.payload.len() - 1] {
        let mut fresh = seen.payload[..cut].to_vec();
        if let Some(byte) = fresh.get_mut(20) {
            *byte ^= 1; // another sequence number
        }
        assert_eq!(send(fresh).await.unwrap(), refused, "cut to {cut}");
    }
    assert_eq!(send(vec![1; 600_000]).await.unwrap(), [1, 1]);
    // After all that the channel works as before.
    let hash = link(&cluster.to1).await.hash();
    cluster.to1.call(&question(&cluster)).await.unwrap();
    assert_eq!(link(&cluster.to1).await.hash(), hash);
}

/// The cluster's worker on its way to node 1 by two connections.
fn to1_over(cluster: &Cluster, connections: Connections) -> NodeChannel {
    let key = Arc::new(Secret::new(private(&cluster.worker)));
    NodeChannel::new(connections, Party::Node1, key, vec![cluster.node1.noise_public()])
}

/// A call of a little more than so many bytes, for a session that there is not.
fn m2(bytes: usize) -> Call {
    call(NodeRequest::SignRound2 { session: [1; 16], m2: vec![5; bytes] })
}

/// So that the broker's buffers for each connection fit what comes on it (docs/adr/0008-two-connections.md).
#[tokio::test(flavor = "multi_thread")]
async fn a_large_call_and_its_answer_have_a_connection_of_their_own() {
    let cluster = Cluster::start().await;
    let (main, large) = (cluster.nats.connect().await, cluster.nats.connect().await);
    let connections = Connections { main: main.clone(), large: large.clone() };
    let to1 = to1_over(&cluster, connections);
    let sent = |client: &async_nats::Client| client.statistics().out_bytes.load(Ordering::Relaxed);
    let mut tap = cluster.client.subscribe("mpc.node.node1.i.>").await.unwrap();
    cluster.client.flush().await.unwrap();

    cluster.until_large_heard(Party::Node1).await;

    // With its frame, one is just not large, and the other is just large.
    for (bytes, is_large) in [(LARGE - 200, false), (LARGE, true)] {
        let before = (sent(&main), sent(&large));
        assert_eq!(refused(to1.call(&m2(bytes)).await.unwrap()), ErrorCode::NodeUnavailable);
        assert_eq!(sent(&large) - before.1 > bytes as u64, is_large, "{bytes}");
        assert_eq!(sent(&main) - before.0 > bytes as u64, !is_large, "{bytes}");
        assert_eq!(tap.next().await.unwrap().subject.ends_with(".large"), is_large, "{bytes}");
    }
}

/// No key waits, and no password attempt is charged in vain, because a large call could not go its own way.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_call_goes_by_the_first_connection_where_the_second_leads_nowhere() {
    let cluster = Cluster::start().await;
    let mut elsewhere = support::NatsServer::start();
    let connections = Connections { main: cluster.client.clone(), large: elsewhere.connect().await };
    let large = connections.large.clone();
    let to1 = to1_over(&cluster, connections);
    let m2 = m2(2 * LARGE);
    let before = link(&to1).await;
    assert_eq!(refused(to1.call(&m2).await.unwrap()), ErrorCode::NodeUnavailable, "nobody listens there");
    elsewhere.kill9();
    while large.connection_state() == State::Connected {
        tokio::task::yield_now().await;
    }
    assert_eq!(refused(to1.call(&m2).await.unwrap()), ErrorCode::NodeUnavailable, "it is down");
    assert_eq!(link(&to1).await.hash(), before.hash(), "the link was not given up");
}

/// A broker that answers every call with "unknown channel" costs handshakes, but at most one a second.
#[tokio::test(flavor = "multi_thread")]
async fn forged_hints_are_rate_limited() {
    let nats = support::NatsServer::start();
    let client = nats.connect().await;
    let (node, worker) = (XKey::new(), XKey::new());
    let public = |key: &XKey| nkeys::from_public_key(&key.public_key()).unwrap().1;
    let responder = Responder::new(Party::Node1, Secret::new(private(&node)), &[public(&worker)], "liar".into(), 1_000);
    let mut handshakes = client.subscribe("mpc.node.node1.handshake").await.unwrap();
    let mut calls = client.subscribe("mpc.node.node1.i.liar").await.unwrap();
    let (liar, counted) = (client.clone(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let count = counted.clone();
    let serving = tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(message) = handshakes.next() => {
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let answer = responder.handshake(&message.payload, now_ms()).unwrap();
                    liar.publish(message.reply.unwrap(), answer.into()).await.unwrap();
                }
                Some(message) = calls.next() => {
                    liar.publish(message.reply.unwrap(), vec![1, 1].into()).await.unwrap();
                }
            }
        }
    });
    let channel = NodeChannel::new(client, Party::Node1, Arc::new(Secret::new(private(&worker))), vec![public(&node)]);
    let call = |deadline| {
        let request = NodeRequest::Discard { key_id: KeyId([1; 16]), transcript: [1; 32], evidence: None };
        Call { version: NODE_VERSION, deadline, request }
    };
    let (start, deadline) = (Instant::now(), now_ms() + 2_500);
    while now_ms() < deadline {
        let many = (0..10).map(|_| async { channel.call(&call(deadline)).await });
        for answer in futures::future::join_all(many).await {
            assert!(matches!(answer, Err(ChannelError::Lost | ChannelError::Timeout)), "{answer:?}");
        }
    }
    serving.abort();
    let handshakes = counted.load(std::sync::atomic::Ordering::SeqCst);
    let most = start.elapsed().as_secs() as usize + 1;
    assert!((1..=most).contains(&handshakes), "{handshakes} handshakes in {:?}", start.elapsed());
}

/// A node whose clock is 30 s behind gets deadlines in its own time.
#[tokio::test(flavor = "multi_thread")]
async fn deadlines_travel_in_the_nodes_time() {
    let nats = support::NatsServer::start();
    let client = nats.connect().await;
    let (node, worker) = (XKey::new(), XKey::new());
    let public = |key: &XKey| nkeys::from_public_key(&key.public_key()).unwrap().1;
    let responder = Responder::new(Party::Node1, Secret::new(private(&node)), &[public(&worker)], "late".into(), 10);
    let mut handshakes = client.subscribe("mpc.node.node1.handshake").await.unwrap();
    let mut calls = client.subscribe("mpc.node.node1.i.late").await.unwrap();
    let channel =
        NodeChannel::new(client.clone(), Party::Node1, Arc::new(Secret::new(private(&worker))), vec![public(&node)]);
    let deadline = now_ms() + 60_000;
    let request = NodeRequest::Discard { key_id: KeyId([1; 16]), transcript: [1; 32], evidence: None };
    let calling = tokio::spawn(async move { channel.call(&Call { version: NODE_VERSION, deadline, request }).await });
    let message = handshakes.next().await.unwrap();
    let answer = responder.handshake(&message.payload, now_ms() - 30_000).unwrap();
    client.publish(message.reply.unwrap(), answer.into()).await.unwrap();
    let incoming = responder.open(&calls.next().await.unwrap().payload).unwrap();
    let call: Call = postcard::from_bytes(&incoming.payload).unwrap();
    calling.abort();
    assert!(call.deadline <= deadline - 30_000 && call.deadline > deadline - 60_000, "{} {deadline}", call.deadline);
}

/// The node's end alone, without a network: order, size, limits.
mod responder {
    use super::*;

    const PROLOGUE: &[u8] = b"trefoil-channel\x01\0node1";
    const NOISE: &str = "Noise_IK_25519_AESGCM_SHA256";

    fn pair() -> (Vec<u8>, Vec<u8>) {
        let keys = snow::Builder::new(NOISE.parse().unwrap()).generate_keypair().unwrap();
        (keys.private, keys.public)
    }

    struct Worker {
        state: snow::StatelessTransportState,
        id: [u8; 16],
    }

    impl Worker {
        fn message(&self, sequence: u64, records: &[&[u8]]) -> Vec<u8> {
            let mut message = [&[1], self.id.as_slice(), &sequence.to_be_bytes()].concat();
            for (index, record) in records.iter().enumerate() {
                let mut sealed = vec![0; record.len() + 16];
                self.state.write_message(sequence << 4 | index as u64, record, &mut sealed).unwrap();
                message.extend_from_slice(&sealed);
            }
            message
        }
    }

    fn first_message(private: &[u8], node: &[u8], prologue: &[u8], time: u64) -> (snow::HandshakeState, Vec<u8>) {
        let mut noise = snow::Builder::new(NOISE.parse().unwrap())
            .prologue(prologue)
            .unwrap()
            .local_private_key(private)
            .unwrap()
            .remote_public_key(node)
            .unwrap()
            .build_initiator()
            .unwrap();
        let mut buffer = [0; 512];
        let written = noise.write_message(&time.to_be_bytes(), &mut buffer).unwrap();
        (noise, [&[1], &buffer[..written]].concat())
    }

    fn connect(responder: &Responder, private: &[u8], node: &[u8]) -> Worker {
        let (mut noise, message) = first_message(private, node, PROLOGUE, 1_000_000);
        let answer = responder.handshake(&message, 1_000_000).unwrap();
        let mut buffer = [0; 512];
        let read = noise.read_message(&answer[2..], &mut buffer).unwrap();
        assert_eq!(&buffer[..read], [1_000_000u64.to_be_bytes().as_slice(), b"instance1"].concat());
        let hash = noise.get_handshake_hash().to_vec();
        Worker { id: hash[..16].try_into().unwrap(), state: noise.into_stateless_transport_mode().unwrap() }
    }

    fn node(private: &[u8], workers: &[&[u8]], max: usize) -> Responder {
        let workers: Vec<[u8; 32]> = workers.iter().map(|key| (*key).try_into().unwrap()).collect();
        let private = Secret::new(private.try_into().unwrap());
        Responder::new(Party::Node1, private, &workers, "instance1".into(), max)
    }

    fn prefixed(payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32).to_be_bytes(), payload].concat()
    }

    #[test]
    fn handshakes_are_checked() {
        let ((own, public), (worker, worker_public), (stranger, _)) = (pair(), pair(), pair());
        let node = node(&own, &[&worker_public], 8);
        let try_it = |private: &[u8], prologue: &[u8], time| {
            node.handshake(&first_message(private, &public, prologue, time).1, 1_000_000).err()
        };
        assert_eq!(try_it(&worker, PROLOGUE, 1_000_000), None);
        assert_eq!(try_it(&stranger, PROLOGUE, 1_000_000), Some(Reject::UnknownWorker));
        assert_eq!(try_it(&worker, b"trefoil-channel\x02\0node1", 1_000_000), Some(Reject::Forged));
        assert_eq!(try_it(&worker, PROLOGUE, 1_000_000 - 60_001), Some(Reject::Stale));
        assert_eq!(try_it(&worker, PROLOGUE, 1_000_000 + 60_001), Some(Reject::Stale));
        for garbage in [&[][..], &[1], &[2; 100], &[1; 2_000]] {
            assert!(node.handshake(garbage, 1_000_000).is_err());
        }
        assert_eq!(node.len(), 1);
    }

    #[test]
    fn records_in_any_order_each_once() {
        let ((own, public), (worker, worker_public)) = (pair(), pair());
        let node = node(&own, &[&worker_public], 8);
        let worker = connect(&node, &worker, &public);
        let messages: Vec<_> = (0..50).map(|n| worker.message(n, &[&prefixed(&[n as u8; 100])])).collect();
        for n in (0..50).rev().step_by(2).chain((0..50).step_by(2)) {
            let incoming = node.open(&messages[n]).map_err(|reject| panic!("{n}: {reject:?}")).unwrap();
            assert_eq!(*incoming.payload, [n as u8; 100]);
        }
        for message in &messages {
            assert_eq!(node.open(message).err(), Some(Reject::Replayed));
        }
    }

    #[test]
    fn of_many_copies_at_once_one_is_accepted() {
        let ((own, public), (worker, worker_public)) = (pair(), pair());
        let node = node(&own, &[&worker_public], 8);
        let worker = connect(&node, &worker, &public);
        let payload = prefixed(&[1; 59_000]);
        for sequence in 0..100 {
            let message = worker.message(sequence, &[&payload]);
            let (start, accepted) = (std::sync::Barrier::new(4), std::sync::atomic::AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        start.wait();
                        let opened = node.open(&message).is_ok();
                        accepted.fetch_add(usize::from(opened), std::sync::atomic::Ordering::SeqCst);
                    });
                }
            });
            assert_eq!(accepted.into_inner(), 1);
        }
    }

    #[test]
    fn long_payloads_cannot_be_cut_swapped_or_mixed() {
        let ((own, public), (worker, worker_public)) = (pair(), pair());
        let node = node(&own, &[&worker_public], 8);
        let worker = connect(&node, &worker, &public);
        let payload: Vec<u8> = (0..150_000).map(|n| (n % 251) as u8).collect();
        let plain = prefixed(&payload);
        let chunks: Vec<_> = plain.chunks(60_000).collect();
        let whole = worker.message(0, &chunks);
        let record = 60_016;
        let (head, records) = whole.split_at(25);
        let cut = whole[..25 + 2 * record].to_vec();
        let swapped = [head, &records[record..2 * record], &records[..record], &records[2 * record..]].concat();
        let doubled = [head, &records[..record], &records[..record], &records[2 * record..]].concat();
        let longer = [&whole[..], &[0; 40]].concat();
        for (index, bad) in [cut, swapped, doubled, longer].into_iter().enumerate() {
            assert_eq!(node.open(&bad).err(), Some(Reject::Forged), "{index}");
        }
        assert_eq!(*node.open(&whole).map_err(|reject| panic!("{reject:?}")).unwrap().payload, payload);
        let lying = worker.message(1, &[&[&9_u32.to_be_bytes()[..], b"eight by"].concat()]);
        assert_eq!(node.open(&lying).err(), Some(Reject::Forged));
    }

    #[test]
    fn sizes_are_bounded_at_both_ends() {
        let ((own, public), (worker, worker_public)) = (pair(), pair());
        let node = node(&own, &[&worker_public], 8);
        let worker = connect(&node, &worker, &public);
        let largest = prefixed(&vec![7; MAX_PAYLOAD]);
        let message = worker.message(0, &largest.chunks(60_000).collect::<Vec<_>>());
        assert_eq!(message.len(), MAX_MESSAGE);
        const { assert!(MAX_MESSAGE < 512 * 1024) };
        let incoming = node.open(&message).map_err(|reject| panic!("{reject:?}")).unwrap();
        assert_eq!(incoming.payload.len(), MAX_PAYLOAD);
        assert_eq!(incoming.reply.seal(&vec![0; MAX_PAYLOAD + 1]).err(), Some(ChannelError::TooLarge));
        let longer = [&worker.message(1, &largest.chunks(60_000).collect::<Vec<_>>())[..], &[0]].concat();
        assert_eq!(node.open(&longer).err(), Some(Reject::Malformed));
        let wrapped = worker.message(u64::MAX >> 4, &[&prefixed(b"x")]);
        assert_eq!(node.open(&wrapped).err(), Some(Reject::Malformed), "nonces never wrap");
    }

    #[test]
    fn a_reply_answers_its_own_request_only() {
        let ((own, public), (worker, worker_public)) = (pair(), pair());
        let node = node(&own, &[&worker_public], 8);
        let worker = connect(&node, &worker, &public);
        let reply = |n| {
            let incoming = node.open(&worker.message(n, &[&prefixed(b"?")])).map_err(|_| ()).unwrap();
            incoming.reply.seal(&[n as u8]).unwrap()
        };
        let (first, second) = (reply(1), reply(2));
        let mut plain = [0; 100];
        assert!(worker.state.read_message(1 << 4, &first[2..], &mut plain).is_ok());
        assert!(worker.state.read_message(1 << 4, &second[2..], &mut plain).is_err());
    }

    #[test]
    fn replayed_handshakes_push_out_no_channel_in_use() {
        let ((own, public), (worker, worker_public)) = (pair(), pair());
        let node = node(&own, &[&worker_public], 4);
        let used = connect(&node, &worker, &public);
        assert!(node.open(&used.message(0, &[&prefixed(b"x")])).is_ok());
        let (_, recorded) = first_message(&worker, &public, PROLOGUE, 1_000_000);
        for _ in 0..100 {
            node.handshake(&recorded, 1_000_000).unwrap();
        }
        assert_eq!(node.len(), 4);
        assert!(node.open(&used.message(1, &[&prefixed(b"x")])).is_ok());
    }
}

/// A large job crosses the channel: more than one record, and one of the longest messages that can be signed.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_several_records() {
    let cluster = Cluster::start().await;
    let message = trefoil::wire::SignInput::Ed25519 { message: vec![3; 65_536] };
    let job = cluster.sign_job("big", KeyId([1; 16]), &message);
    assert!(job.body.len() > 80_000);
    let key = cluster.generate("g", Curve::Ed25519).await;
    let open = cluster.open(&key, &job, [1; 32], 0);
    let request = NodeRequest::FrostSign { open, commitments: cluster::fixed([0; 64]) };
    assert_eq!(refused(cluster.ask1(request).await), ErrorCode::UnknownKey);
}
