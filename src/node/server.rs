//! The node on NATS: a service with two endpoints, one for handshakes, shared by all instances, and one for this instance; and on the
//! connection for large calls another one for this instance.

use super::backup::{Backups, control::Control};
use super::shown::{NodeStatus, Shown};
use super::{Caller, Node, NodeKeys, Refusal};
use crate::channel::{Incoming, Reject, Responder};
use crate::clock::now_ms;
use crate::config::NodeConfig;
use crate::connections::Connections;
use crate::policy::Policy;
use crate::telemetry::certificates;
use crate::telemetry::metrics::NodeMetrics;
use crate::telemetry::trace::{self, TraceContext};
use crate::wire::ErrorCode;
use crate::wire::node::{Call, NODE_VERSION};
use crate::wire::subject;
use anyhow::Context as _;
use async_nats::service::endpoint::Endpoint;
use async_nats::service::{Request, Service, ServiceExt};
use futures::StreamExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::field::Empty;

/// Requests worked on at once: beyond it they wait in the subscription.
const MAX_REQUESTS: usize = 4_096;
/// How often sessions are swept.
const SWEEP: Duration = Duration::from_secs(1);
/// How long the end of a process waits for NATS, twice.
const NATS_END: Duration = Duration::from_secs(5);
/// Sweeps per pruning of the ledger.
const PRUNE_EVERY: u32 = 60;

/// A node that serves.
pub struct NodeServer {
    node: Arc<Node>,
    connections: Connections,
    /// For small calls and handshakes, and for large calls.
    services: [Service; 2],
    tasks: JoinSet<()>,
    running: Arc<Semaphore>,
    drain: Duration,
    policy_file: PathBuf,
    shown: Option<Shown>,
}

/// Runs a node until `stop` completes, then drains it. Meanwhile SIGHUP loads the policy file again.
///
/// # Errors
/// Whatever keeps it from starting, or from saying in its audit log that it did; a store or log that can no longer be written.
pub async fn run(config: NodeConfig, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    // Before anything else: unhandled, it would end the process.
    let mut hangups = signal(SignalKind::hangup())?;
    let mut stop = std::pin::pin!(stop);
    let server = tokio::select! {
        () = &mut stop => {
            tracing::info!("stopped before the first NATS server answered");
            return Ok(());
        }
        server = NodeServer::start(config) => server?,
    };
    loop {
        tokio::select! {
            () = &mut stop => return server.drain().await,
            error = server.node.broken() => {
                // It serves nobody any more. Its end would hide why from who reads only its metrics.
                if let Some(shown) = server.shown {
                    tokio::select! {
                        () = &mut stop => {}
                        () = shown.finish(&error) => {}
                    }
                }
                return Err(error);
            }
            _ = hangups.recv() => server.reload_policy().await,
        }
    }
}

impl NodeServer {
    /// Opens the data directory, connects and serves.
    ///
    /// # Errors
    /// See [`Node::open`] and [`crate::config::NatsConfig::connect`].
    pub async fn start(config: NodeConfig) -> anyhow::Result<Self> {
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
            policy_file,
            policy,
            authorisers,
            limits,
            backup,
            metrics_listen,
        } = config;
        let (max_channels, drain) = (limits.max_channels, limits.drain);
        let keys = NodeKeys {
            role,
            identity,
            former: former_identities,
            peers: peer_identity,
            master: master_key,
            authorisers,
        };
        let node = Node::open(&data_dir, keys, policy, limits)?;

        let name = role.to_string();
        let metrics = node.metrics();
        let connections = Connections::open(&nats, &format!("trefoil-{name}"), &metrics.common).await?;
        let client = connections.main.clone();
        let instance = instance_id()?;
        let responder = Arc::new(Responder::new(role, noise_key, &workers, instance.clone(), max_channels));
        let mut tasks = JoinSet::new();
        tasks.spawn(certificates::watch(nats.certificates(), metrics.common.clone()));
        let shown = match metrics_listen {
            Some(address) => {
                let status = NodeStatus::new(&node, client.clone(), Arc::clone(&responder));
                Some(Shown::start(address, status).await?)
            }
            None => None,
        };
        let failed = |error: async_nats::Error| anyhow::anyhow!("NATS service: {error}");
        let start = async |client: &async_nats::Client, name: String| {
            let builder = client.service_builder();
            let builder = builder.description("Trefoil key share node; calls are encrypted to it by pinned keys");
            builder.start(name, env!("CARGO_PKG_VERSION")).await.map_err(failed)
        };
        let service = start(&client, format!("trefoil-{name}")).await?;
        let endpoint = |name: &str| service.endpoint_builder().name(name);
        let handshakes = endpoint("handshake").add(subject::node_handshake(&name)).await.map_err(failed)?;
        let calls = endpoint("call").add(subject::node_instance(&name, &instance)).await.map_err(failed)?;
        // An answer goes by the connection that the call came by: permissions allow no other.
        let service_large = start(&connections.large, format!("trefoil-{name}-large")).await?;
        let endpoint = service_large.endpoint_builder().name("call");
        let large = endpoint.add(subject::node_instance_large(&name, &instance)).await.map_err(failed)?;
        // The second connection is not waited for: until it is there, large calls come by the first.
        client.flush().await?;
        node.mark("started").await?;

        let running = Arc::new(Semaphore::new(MAX_REQUESTS));
        tasks.spawn(serve_handshakes(handshakes, Arc::clone(&responder), Arc::clone(&metrics)));
        for calls in [calls, large] {
            tasks.spawn(serve_calls(calls, Arc::clone(&responder), Arc::clone(&node), Arc::clone(&running)));
        }
        tasks.spawn(tidy(Arc::clone(&node)));
        if let Some(settings) = backup {
            let backups = Arc::new(Backups::new(Arc::clone(&node), settings));
            let control = Control::open(&data_dir).context("the control socket in data_dir")?;
            tasks.spawn(control.serve(Arc::clone(&backups)));
            tasks.spawn(async move { backups.run().await });
        }
        tracing::info!(node = %name, %instance, "serving");
        Ok(Self { node, connections, services: [service, service_large], tasks, running, drain, policy_file, shown })
    }

    /// Reads the policy file again, and puts it in force as a whole; if anything is wrong with it, the old one stays.
    pub async fn reload_policy(&self) {
        self.node.reload(Policy::load(&self.policy_file)).await;
    }

    /// Takes no new sessions, lets the open ones finish within the grace time, answers what is under way, and stops.
    ///
    /// # Errors
    /// The audit log failed at the end.
    pub async fn drain(mut self) -> anyhow::Result<()> {
        tracing::info!("draining");
        self.node.start_draining();
        let end = Instant::now() + self.drain;
        while self.node.unfinished() > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let left = self.node.unfinished();
        if left > 0 {
            tracing::warn!(left, "sessions were cut off at the end of the grace time");
        }
        // NATS may be away, and what it does not take within this time it will not take: the end does not wait for it.
        let ended =
            futures::future::join_all(self.services.into_iter().map(|service| timeout(NATS_END, service.stop())));
        if !ended.await.iter().all(|ended| matches!(ended, Ok(Ok(())))) {
            tracing::warn!("the NATS services did not end well");
        }
        // All permits back means that every request has its answer.
        let answered = self.running.acquire_many(MAX_REQUESTS as u32);
        let _ = timeout(Duration::from_secs(5), answered).await;
        self.tasks.shutdown().await;
        self.node.mark("stopped").await?;
        if !matches!(timeout(NATS_END, self.connections.flush()).await, Ok(Ok(()))) {
            tracing::warn!("the last answers were not sent");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// 16 random bytes as hex: names this process in its subject.
fn instance_id() -> anyhow::Result<String> {
    let mut id = [0u8; 16];
    getrandom::fill(&mut id)?;
    Ok(data_encoding::HEXLOWER.encode(&id))
}

async fn tidy(node: Arc<Node>) {
    let mut clock = tokio::time::interval(SWEEP);
    let mut ticks = 0_u32;
    loop {
        clock.tick().await;
        ticks = ticks.wrapping_add(1);
        node.tidy(ticks.is_multiple_of(PRUNE_EVERY)).await;
    }
}

async fn serve_handshakes(mut endpoint: Endpoint, responder: Arc<Responder>, metrics: Arc<NodeMetrics>) {
    while let Some(request) = endpoint.next().await {
        let answer = responder.handshake(&request.message.payload, now_ms()).unwrap_or_else(|reject| {
            tracing::warn!(?reject, "handshake refused");
            metrics.rejected(reject);
            reject.reply()
        });
        respond(&request, answer).await;
    }
}

async fn serve_calls(mut endpoint: Endpoint, responder: Arc<Responder>, node: Arc<Node>, running: Arc<Semaphore>) {
    while let Some(request) = endpoint.next().await {
        let Ok(permit) = Arc::clone(&running).acquire_owned().await else { return };
        let (responder, node) = (Arc::clone(&responder), Arc::clone(&node));
        tokio::spawn(async move {
            match responder.open(&request.message.payload) {
                Ok(incoming) => {
                    let trace = TraceContext::from_headers(request.message.headers.as_ref());
                    if let Some(answer) = serve_call(&node, incoming, trace).await {
                        respond(&request, answer).await;
                    }
                }
                // A replayed request was answered the first time; a second answer would only reach whoever replayed it.
                Err(reject @ Reject::Replayed) => {
                    node.metrics.rejected(reject);
                    tracing::debug!("replayed request dropped");
                }
                Err(reject) => {
                    node.metrics.rejected(reject);
                    tracing::debug!(?reject, "request refused");
                    respond(&request, reject.reply()).await;
                }
            }
            // In this order: when all permits are back, nobody but the server has the store open.
            drop(node);
            drop(permit);
        });
    }
}

async fn serve_call(node: &Arc<Node>, incoming: Incoming, trace: Option<TraceContext>) -> Option<Vec<u8>> {
    let Incoming { channel_hash, payload, reply: sealer, .. } = incoming;
    let reply = match postcard::from_bytes::<Call>(&payload) {
        Ok(call) => {
            let round = call.request.name();
            let traced = trace::begin(trace, |trace| {
                let trace = trace.map(tracing::field::display);
                tracing::info_span!("call", round, job = Empty, key = Empty, session = Empty, trace)
            });
            traced.run(node.handle(Caller { channel: channel_hash }, call)).await
        }
        Err(_) => {
            node.metrics.rejected(Reject::Malformed);
            Refusal::new(ErrorCode::ProtocolAbort, "not a call").into()
        }
    };
    drop(payload);
    sealer.seal_reply(NODE_VERSION, &reply).inspect_err(|error| tracing::error!(%error, "a reply was not sealed")).ok()
}

async fn respond(request: &Request, answer: Vec<u8>) {
    if request.message.reply.is_none() {
        return;
    }
    if let Err(error) = request.respond(Ok(answer.into())).await {
        tracing::warn!(%error, "an answer was not sent");
    }
}
