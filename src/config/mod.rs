//! Configuration: environment and optional file, unknown keys refused, every problem reported at once.
//!
//! The rules of naming are in [`settings`]; the settings of each process are in the docstrings of [`NodeConfig`] and
//! [`WorkerConfig`]. Secrets are held in types that erase themselves and print nothing; no configuration is `Debug`.

pub mod keys;
mod nats;
mod node;
pub mod settings;
mod worker;

pub use nats::NatsConfig;
pub use node::{BackupSettings, NodeConfig, NodeLimits};
pub use settings::{ConfigError, Settings};
pub use worker::{PeerConfig, WorkerConfig};

/// `metrics_listen`: where metrics and health are served.
#[allow(clippy::option_option, reason = "a problem, nowhere, or an address")]
fn read_metrics_listen(s: &mut Settings) -> Option<Option<std::net::SocketAddr>> {
    s.or("metrics_listen", None, |text| {
        text.parse().map(Some).map_err(|_| "must be an address and a port, such as 127.0.0.1:9464")
    })
}
