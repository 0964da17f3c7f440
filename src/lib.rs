//! Trefoil: MPC key management and signing over NATS. Start at docs/architecture.md.

pub mod auth;
pub mod channel;
pub mod cli;
pub mod client;
pub mod clock;
pub mod compute;
pub mod config;
pub mod connections;
pub mod fault;
pub mod jobs;
pub mod logging;
pub mod node;
pub mod policy;
pub mod process;
pub mod seal;
pub mod telemetry;
pub mod turns;
pub mod vault;
pub mod wire;
pub mod worker;
