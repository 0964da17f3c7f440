//! What a process tells its operators: metrics, whether it lives and is ready, logs.

pub mod metrics;
pub mod server;
