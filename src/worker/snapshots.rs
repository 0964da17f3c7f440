//! What a worker tells of itself at a fixed interval, for whoever listens. Snapshots may be lost; nothing waits for them.

use super::Shared;
use crate::clock::now_ms;
use crate::telemetry::snapshot::Header;
use crate::wire::{Snapshot, subject};
use async_nats::connection::State;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Publishes them.
pub struct Snapshots {
    shared: Arc<Shared>,
    every: Duration,
    started_at: u64,
    stop: watch::Receiver<bool>,
}

impl Snapshots {
    /// Of this worker, which has just started.
    pub fn new(shared: Arc<Shared>, every: Duration, stop: watch::Receiver<bool>) -> Self {
        Self { shared, every, started_at: now_ms(), stop }
    }

    /// One now, and then another each time that the interval is over; for ever.
    pub async fn run(&self) {
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.publish().await;
        }
    }

    /// One now, unless NATS is away: it would wait there, and say later what is no longer so.
    pub async fn publish(&self) {
        let nats = &self.shared.nats;
        if nats.connection_state() != State::Connected {
            return;
        }
        if let Ok(body) = serde_json::to_vec(&self.take()) {
            let _ = nats.publish(subject::metrics(&self.shared.worker_id), body.into()).await;
        }
    }

    fn take(&self) -> Snapshot {
        self.shared.metrics.snapshot(Header {
            worker_id: self.shared.worker_id.clone(),
            started_at: self.started_at,
            interval: self.every,
            draining: *self.stop.borrow(),
        })
    }
}
