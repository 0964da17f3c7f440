//! What operators see of a node.

use super::Node;
use crate::channel::Responder;
use crate::telemetry::metrics::NodeMetrics;
use crate::telemetry::server::{self, Status};
use async_nats::connection::State;
use prometheus::Registry;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a node that can write no more waits until its metrics, which say so, are read: longer than they are usually apart.
const LAST_WORDS: Duration = Duration::from_secs(20);
/// How long the last answer may take.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// What is asked for the metrics.
pub struct NodeStatus {
    client: async_nats::Client,
    responder: Arc<Responder>,
    metrics: Arc<NodeMetrics>,
    /// Weak: a reader of metrics who does not hang up must not keep the store open.
    node: Weak<Node>,
    /// They were read.
    read: Notify,
}

impl NodeStatus {
    pub fn new(node: &Arc<Node>, client: async_nats::Client, responder: Arc<Responder>) -> Self {
        Self { client, responder, metrics: node.metrics(), node: Arc::downgrade(node), read: Notify::new() }
    }
}

impl Status for NodeStatus {
    fn registry(&self) -> &Registry {
        if let Some(node) = self.node.upgrade() {
            node.sample();
        }
        self.metrics.channels_open.set(i64::try_from(self.responder.len()).unwrap_or(i64::MAX));
        self.read.notify_waiters();
        self.metrics.registry()
    }

    fn not_ready(&self) -> Option<&'static str> {
        if self.client.connection_state() != State::Connected {
            return Some("not connected to NATS");
        }
        self.node.upgrade().map_or(Some("draining"), |node| node.not_ready())
    }
}

/// The metrics of a node while they are served; no longer than this is kept.
pub struct Shown {
    status: Arc<NodeStatus>,
    end: oneshot::Sender<()>,
    task: JoinSet<()>,
}

impl Shown {
    /// Serves them at this address.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn start(address: SocketAddr, status: NodeStatus) -> anyhow::Result<Self> {
        let (status, (end, ended), mut task) = (Arc::new(status), oneshot::channel(), JoinSet::new());
        let ended = async {
            let _ = ended.await;
        };
        task.spawn(server::start_until(address, status.clone(), ended).await?);
        Ok(Self { status, end, task })
    }

    /// Lets them be read once more, if somebody comes soon, and ends.
    pub async fn finish(mut self, why: &anyhow::Error) {
        {
            let mut read = std::pin::pin!(self.status.read.notified());
            // Who hears of it by the log may come at once.
            read.as_mut().enable();
            tracing::error!("{why:#}: the node ends when its metrics were read");
            let _ = timeout(LAST_WORDS, read).await;
        }
        let _ = self.end.send(());
        let _ = timeout(LAST_ANSWER, self.task.join_next()).await;
    }
}
