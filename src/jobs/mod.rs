//! The road of a job through JetStream: streams, the consumer, one result per job, bans, order per key.

pub mod attempts;
pub mod bans;
pub mod consumer;
pub mod gauges;
pub mod keyed_mutex;
pub mod lease;
pub mod once;
pub mod owners;
pub mod place;
pub mod queue;
pub mod results;
pub mod streams;
