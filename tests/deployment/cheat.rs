//! A node 1 that cheats: an honest node whose answers are changed just before they are sealed, so that every message is valid on the
//! channel.

use super::Deployment;
use futures::{StreamExt, stream};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;
use trefoil::channel::Responder;
use trefoil::client::Backend;
use trefoil::clock::now_ms;
use trefoil::config::{NodeConfig, Settings};
use trefoil::node::{Caller, Node, NodeKeys};
use trefoil::wire::node::{Call, NODE_VERSION, NodeReply};
use trefoil::wire::subject;

type Change = Box<dyn FnMut(&mut NodeReply) + Send>;

/// Node 1 in this process, with its answers changed.
pub struct Cheat {
    change: Arc<Mutex<Change>>,
    _tasks: JoinSet<()>,
}

impl Cheat {
    pub async fn start(service: &Deployment) -> Self {
        let NodeConfig {
            role,
            nats,
            data_dir,
            master_key,
            identity,
            noise_key,
            former_identities,
            peer_identity,
            workers,
            policy,
            authorisers,
            limits,
            ..
        } = NodeConfig::read(Settings::from_env(service.node_env("node1"))).unwrap();
        let keys = NodeKeys {
            role,
            identity,
            former: former_identities,
            peers: peer_identity,
            master: master_key,
            authorisers,
        };
        let node = Node::open(&data_dir, keys, policy, limits).unwrap();
        let client = nats.connect("cheat").await.unwrap();
        let responder = Arc::new(Responder::new(role, noise_key, &workers, "cheat".to_owned(), 16));
        let change: Arc<Mutex<Change>> = Arc::new(Mutex::new(Box::new(|_: &mut NodeReply| {})));
        let mut handshakes = crate::support::subscribed(&client, subject::node_handshake("node1")).await;
        let calls = crate::support::subscribed(&client, subject::node_instance("node1", "cheat")).await;
        let large = crate::support::subscribed(&client, subject::node_instance_large("node1", "cheat")).await;
        let mut calls = stream::select(calls, large);
        let mut tasks = JoinSet::new();
        let (shaking, answering) = (responder.clone(), client.clone());
        tasks.spawn(async move {
            while let Some(request) = handshakes.next().await {
                let answer = shaking.handshake(&request.payload, now_ms()).unwrap();
                answering.publish(request.reply.unwrap(), answer.into()).await.unwrap();
            }
        });
        let changing = change.clone();
        tasks.spawn(async move {
            while let Some(request) = calls.next().await {
                let incoming = responder.open(&request.payload).unwrap();
                let call: Call = postcard::from_bytes(&incoming.payload).unwrap();
                let mut reply = node.handle(Caller { channel: incoming.channel_hash }, call).await;
                (changing.lock().unwrap())(&mut reply);
                let bytes = [vec![NODE_VERSION], postcard::to_allocvec(&reply).unwrap()].concat();
                client.publish(request.reply.unwrap(), incoming.reply.seal(&bytes).unwrap().into()).await.unwrap();
            }
        });
        Self { change, _tasks: tasks }
    }

    pub fn answers(&self, change: impl FnMut(&mut NodeReply) + Send + 'static) {
        *self.change.lock().unwrap() = Box::new(change);
    }

    pub fn honestly(&self) {
        self.answers(|_| {});
    }
}

/// An honest node 2 and worker, a node 1 that can cheat, and a backend.
pub async fn beside_a_cheat() -> (Deployment, Cheat, Backend) {
    let mut service = Deployment::new();
    service.start_node("node2");
    let cheat = Cheat::start(&service).await;
    service.start_worker("worker1");
    let backend = service.backend().await;
    (service, cheat, backend)
}
