//! What a node counts, at the end of each call and session and by how it ended.

use super::Node;
use super::sessions::About;
use super::store::{GuessOutcome, StoreError};
use crate::channel::Reject;
use crate::telemetry::metrics::NodeMetrics;
use crate::wire::ErrorCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How far a session came.
#[derive(Debug, Default)]
pub struct Progress {
    completed: AtomicBool,
    /// A password attempt is charged for it, and its outcome not known.
    attempted: AtomicBool,
}

/// How a session went away that was not completed.
#[derive(Debug, Clone, Copy)]
pub enum Ending {
    /// While something was done in it.
    Failed,
    /// While nothing was: nobody went on with it, or something else took its place.
    Forgotten,
}

impl NodeMetrics {
    /// A call was answered: `code` says why with a refusal.
    pub(super) fn answered(&self, round: &str, code: Option<ErrorCode>, took: Duration) {
        let (outcome, text) = code.map_or(("ok", ""), |code| ("refused", code.as_str()));
        self.requests.with_label_values(&[round, outcome, text]).inc();
        self.request_duration.with_label_values(&[round]).observe(took.as_secs_f64());
        if code == Some(ErrorCode::JobIdReused) {
            self.replays.inc();
        }
    }

    /// A message was no authentic request.
    pub(super) fn rejected(&self, reject: Reject) {
        self.rejects.with_label_values(&[reject.as_str()]).inc();
    }

    /// A session did what it was opened for. It may be kept a while longer.
    pub(super) fn session_completed(&self, about: &About) {
        if !about.progress.completed.swap(true, Ordering::Relaxed) {
            self.count_session(about, "completed");
        }
    }

    /// A session is gone.
    pub(super) fn session_ended(&self, about: &About, ending: Ending) {
        if !about.progress.completed.load(Ordering::Relaxed) {
            self.count_session(
                about,
                match ending {
                    Ending::Failed => "failed",
                    Ending::Forgotten => "forgotten",
                },
            );
        }
        if about.progress.attempted.load(Ordering::Relaxed) {
            self.password_attempts.with_label_values(&["unknown"]).inc();
        }
    }

    fn count_session(&self, about: &About, outcome: &str) {
        let curve = about.curve.map_or("", |curve| curve.as_str());
        self.sessions.with_label_values(&[about.op.as_str(), curve, outcome]).inc();
    }

    /// A password attempt of a session was charged, or not.
    pub(super) fn charged(&self, about: &About, charged: &Result<(), StoreError>) {
        match charged {
            Ok(()) => about.progress.attempted.store(true, Ordering::Relaxed),
            Err(StoreError::LockedOut { .. }) => self.password_attempts.with_label_values(&["refused"]).inc(),
            Err(_) => {}
        }
    }

    /// How a session's password attempt ended. Said again, as by each part of a batch, it counts no more.
    pub(super) fn settled(&self, about: &About, outcome: GuessOutcome) {
        if about.progress.attempted.swap(false, Ordering::Relaxed) {
            let outcome = match outcome {
                GuessOutcome::Right => "right",
                GuessOutcome::Wrong => "wrong",
            };
            self.password_attempts.with_label_values(&[outcome]).inc();
        }
    }

    /// So many signature shares left the node.
    pub(super) fn signed(&self, about: &About, shares: usize) {
        let curve = about.curve.map_or("", |curve| curve.as_str());
        self.partial_signatures.with_label_values(&[curve]).inc_by(shares as u64);
    }
}

impl Node {
    /// Brings up to date what is read where it is, and not counted.
    pub(super) fn sample(&self) {
        let shown = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.sessions_open.set(shown(self.sessions.count(|_| true)));
        self.metrics.in_flight.set(shown(self.underway.count()));
        self.metrics.crypto_queue.set(shown(self.pool.waiting()));
    }

    /// Why it can do nothing at the moment.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.audit.is_broken() {
            Some("the audit log cannot be written")
        } else if self.store_broken.load(Ordering::Acquire) {
            Some("the store cannot be written")
        } else {
            self.is_draining().then_some("draining")
        }
    }

    /// Counts again the keys of a restored store that the other node has not confirmed.
    pub(super) fn count_doubts(&self) {
        if self.store.quarantine().is_none() {
            return;
        }
        match self.store.doubts() {
            Ok((unconfirmed, _)) => self.metrics.quarantine.set(i64::try_from(unconfirmed).unwrap_or(i64::MAX)),
            Err(error) => tracing::warn!(%error, "the keys in quarantine were not counted"),
        }
    }
}
