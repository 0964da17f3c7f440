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
