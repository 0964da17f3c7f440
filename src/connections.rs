//! A process's two connections to NATS: one for calls that are large, and one for all else.
//!
//! nats-server reads each connection into a buffer whose size follows what came last: it doubles, up to 64 KiB, whenever a read fills it, and
//! is halved when several in a row left half of it empty. Where a 48 KiB message comes after small ones, it is read in a dozen pieces into a
//! dozen new buffers, and once more into one for the whole message. Two such messages a signature were most of what the server
//! allocated, and the collections of its heap most of a job's longest latencies (docs/adr/0008-two-connections.md).
//!
//! Nothing depends on the second connection: while it is down, or nobody listens there, large calls go by the first.

use crate::config::NatsConfig;
use crate::telemetry::metrics::CommonMetrics;
use async_nats::Client;
use async_nats::connection::State;

/// Requests of more bytes go by the connection for large ones, and their answers come back by it.
pub const LARGE: usize = 16 * 1024;

/// Both connections. Clones share them.
#[derive(Clone)]
pub struct Connections {
    /// For everything but large calls. Whether a process is connected is whether this is.
    pub main: Client,
    /// For calls of more than [`LARGE`] bytes.
    pub large: Client,
}

/// One connection in the place of both.
impl From<Client> for Connections {
    fn from(client: Client) -> Self {
        Self { main: client.clone(), large: client }
    }
}

impl Connections {
    /// Connects, as [`NatsConfig::connect_for`] does; the second connection has `-large` behind its name.
    ///
    /// # Errors
    /// As [`NatsConfig::connect`].
    pub async fn open(nats: &NatsConfig, name: &str, metrics: &CommonMetrics) -> anyhow::Result<Self> {
        let main = nats.connect_for(name, metrics).await?;
        Ok(Self { main, large: nats.connect(&format!("{name}-large")).await? })
    }

    /// Sends what was published; on the second connection only while it is up.
    ///
    /// # Errors
    /// A connection is gone.
    pub async fn flush(&self) -> Result<(), async_nats::client::FlushError> {
        self.main.flush().await?;
        if self.large.connection_state() == State::Connected { self.large.flush().await } else { Ok(()) }
    }

    /// The connection for a call of so many bytes, if it is to go by the second one.
    #[must_use]
    pub fn for_large(&self, bytes: usize) -> Option<&Client> {
        (bytes > LARGE && self.large.connection_state() == State::Connected).then_some(&self.large)
    }
}
