//! What a worker measures of its calls to one node.

use super::metrics::WorkerMetrics;
use super::party;
use crate::channel::ChannelError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use trefoil_protocol::Party;

/// A call that nobody answered in less than this had too little time of its own to say anything about the node.
const PATIENT: Duration = Duration::from_secs(1);

/// Calls to one node.
pub struct Calls {
    metrics: Arc<WorkerMetrics>,
    node: &'static str,
    since: Instant,
    /// When the node was last heard, microseconds after `since`.
    heard: AtomicU64,
    /// When it was last found out whether it is up, microseconds after `since`.
    known: AtomicU64,
}

impl Calls {
    /// Calls to this node, none so far.
    #[must_use]
    pub fn new(metrics: Arc<WorkerMetrics>, node: Party) -> Self {
        Self { metrics, node: party(node), since: Instant::now(), heard: AtomicU64::new(0), known: AtomicU64::new(0) }
    }

    /// A call ended with an answer, or with none, after so long.
    pub fn ended(&self, round: &'static str, took: Duration, error: Option<ChannelError>) {
        match error {
            None => {
                let rounds = &self.metrics.round_duration;
                rounds.with_label_values(&[round, self.node]).observe(took.as_secs_f64());
                self.heard();
            }
            Some(error) => self.failed(took, error),
        }
    }

    /// There is a new link to the node, whose clock is ahead of ours by so many milliseconds.
    pub fn linked(&self, clock_offset_ms: i64) {
        self.metrics.clock_offset.with_label_values(&[self.node]).set(clock_offset_ms as f64 / 1_000.0);
        self.heard();
    }

    /// A call had no answer after so long.
    pub fn failed(&self, took: Duration, error: ChannelError) {
        let began = self.since.elapsed().saturating_sub(took).as_micros() as u64;
        match error {
            // The node was heard since then: it lost this call when it ended, say, and is there again.
            _ if began < self.heard.load(Ordering::Relaxed) => {}
            // Our own doing; or the node has another link by now, which the next call finds out.
            ChannelError::TooLarge | ChannelError::Lost => {}
            ChannelError::Timeout if took < PATIENT => {}
            ChannelError::Unavailable
            | ChannelError::Timeout
            | ChannelError::HandshakeRefused
            | ChannelError::Tampered => self.is_up(false),
        }
    }

    /// For how long no call has said whether the node is up; for ever, if none ever has.
    #[must_use]
    pub fn quiet(&self) -> Duration {
        if self.known.load(Ordering::Relaxed) == 0 {
            return Duration::MAX;
        }
        self.since.elapsed().saturating_sub(Duration::from_micros(self.known.load(Ordering::Relaxed)))
    }

    fn heard(&self) {
        self.heard.store(self.since.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.is_up(true);
    }

    fn is_up(&self, up: bool) {
        self.metrics.node_up.with_label_values(&[self.node]).set(i64::from(up));
        self.known.store((self.since.elapsed().as_micros() as u64).max(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_node_is_up_as_the_last_call_says_that_says_anything() {
        let metrics = Arc::new(WorkerMetrics::new().unwrap());
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let calls = Calls { since: long_ago, ..Calls::new(metrics.clone(), Party::Node2) };
        let up = || metrics.node_up.with_label_values(&["node2"]).get();
        calls.failed(PATIENT, ChannelError::Timeout);
        assert_eq!(up(), 0);
        calls.linked(-1_500);
        assert_eq!((up(), metrics.clock_offset.with_label_values(&["node2"]).get()), (1, -1.5));
        calls.ended("commit", Duration::from_secs(5), Some(ChannelError::Timeout));
        assert_eq!(up(), 1, "it was heard since that began");
        calls.heard.store(0, Ordering::Relaxed);
        calls.ended("commit", Duration::from_millis(10), Some(ChannelError::Timeout));
        calls.ended("commit", Duration::from_secs(5), Some(ChannelError::Lost));
        assert_eq!(up(), 1, "neither says that the node is away");
        calls.ended("commit", Duration::from_secs(5), Some(ChannelError::Timeout));
        assert_eq!(up(), 0);
        calls.ended("commit", Duration::from_millis(3), None);
        assert_eq!(up(), 1);
        assert!(calls.quiet() < Duration::from_secs(30));
        calls.heard.store(0, Ordering::Relaxed);
        calls.failed(Duration::ZERO, ChannelError::TooLarge);
        assert_eq!(up(), 1);
        calls.failed(Duration::ZERO, ChannelError::Unavailable);
        assert_eq!(up(), 0);
        let rounds = metrics.round_duration.with_label_values(&["commit", "node2"]);
        assert_eq!(rounds.get_sample_count(), 1, "only what was answered");
    }
}
