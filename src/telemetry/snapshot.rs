//! What a worker's metrics say, as a message.

use super::metrics::WorkerMetrics;
use super::worker::NONE;
use crate::clock::now_ms;
use crate::wire::{DurationCount, ErrorCode, JobCount, NodesUp, Snapshot, VERSION};
use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use std::collections::BTreeMap;
use std::time::Duration;

/// The part of a snapshot that the metrics do not know.
pub struct Header {
    /// The worker.
    pub worker_id: String,
    /// When it started, unix milliseconds.
    pub started_at: u64,
    /// Time until the next snapshot.
    pub interval: Duration,
    /// It takes no more jobs.
    pub draining: bool,
}

impl WorkerMetrics {
    /// What they say now.
    #[must_use]
    pub fn snapshot(&self, header: Header) -> Snapshot {
        let Header { worker_id, started_at, interval, draining } = header;
        let up = series(&self.node_up);
        let node = |name: &str| {
            up.iter().flat_map(MetricFamily::get_metric).find(|metric| label(metric, "node") == name).map(is_up)
        };
        Snapshot {
            version: VERSION,
            worker_id,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            started_at,
            at: now_ms(),
            interval_ms: interval.as_millis() as u64,
            draining,
            jobs: jobs(&series(&self.jobs)),
            refused: total(&series(&self.refused)),
            retries: total(&series(&self.retries)),
            in_flight: level(&series(&self.in_flight)),
            slots: u64::try_from(self.slots.get()).unwrap_or(0),
            waiting: u64::try_from(self.waiting.get()).unwrap_or(0),
            durations: durations(&series(&self.job_duration)),
            nodes: NodesUp { node1: node("node1"), node2: node("node2") },
        }
    }
}

fn series(metric: &impl Collector) -> Vec<MetricFamily> {
    metric.collect()
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|label| label.name() == name).map_or(NONE, |label| label.value())
}

fn is_up(metric: &Metric) -> bool {
    metric.get_gauge().get_value() > 0.0
}

fn total(families: &[MetricFamily]) -> u64 {
    families.iter().flat_map(MetricFamily::get_metric).map(|metric| metric.get_counter().get_value() as u64).sum()
}

fn level(families: &[MetricFamily]) -> u64 {
    families
        .iter()
        .flat_map(MetricFamily::get_metric)
        .map(|metric| metric.get_gauge().get_value().max(0.0) as u64)
        .sum()
}

fn jobs(families: &[MetricFamily]) -> Vec<JobCount> {
    let metrics = families.iter().flat_map(MetricFamily::get_metric);
    let counts = metrics.map(|metric| JobCount {
        op: label(metric, "op").parse().ok(),
        curve: label(metric, "curve").parse().ok(),
        code: ErrorCode::ALL.iter().copied().find(|code| code.as_str() == label(metric, "code")),
        count: metric.get_counter().get_value() as u64,
    });
    counts.filter(|jobs| jobs.count > 0).collect()
}

/// All histograms together, which have the same bounds.
fn durations(families: &[MetricFamily]) -> Vec<DurationCount> {
    let (mut up_to, mut all) = (BTreeMap::<u64, u64>::new(), 0);
    for metric in families.iter().flat_map(MetricFamily::get_metric) {
        let histogram = metric.get_histogram();
        all += histogram.get_sample_count();
        for bucket in histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite()) {
            *up_to.entry((bucket.upper_bound() * 1_000.0).round() as u64).or_default() += bucket.cumulative_count();
        }
    }
    let (mut above_ms, mut before, mut counts) = (0, 0, Vec::new());
    for (bound, count) in up_to {
        counts.push(DurationCount { above_ms, to_ms: Some(bound), count: count.saturating_sub(before) });
        (above_ms, before) = (bound, count);
    }
    counts.push(DurationCount { above_ms, to_ms: None, count: all.saturating_sub(before) });
    counts.retain(|range| range.count > 0);
    counts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::telemetry::worker::{ERROR, OK};
    use crate::wire::{Curve, Op};

    fn snapshot(of: &WorkerMetrics) -> Snapshot {
        let interval = Duration::from_secs(5);
        of.snapshot(Header { worker_id: "worker-1".to_owned(), started_at: 0, interval, draining: false })
    }

    #[test]
    fn a_snapshot_has_what_was_counted_and_nothing_else() {
        let metrics = WorkerMetrics::new().unwrap();
        metrics.show_zeros();
        let empty = snapshot(&metrics);
        assert!(empty.jobs.is_empty() && empty.durations.is_empty(), "zeros say nothing");
        assert_eq!((empty.nodes.node1, empty.nodes.node2), (None, None));
        metrics.jobs.with_label_values(&["sign", "ed25519", "default", OK, NONE]).inc_by(3);
        metrics.jobs.with_label_values(&["generate", "secp256k1", NONE, ERROR, "OVERLOADED"]).inc();
        metrics.jobs.with_label_values(&[NONE, NONE, NONE, ERROR, "UNKNOWN_FIELD"]).inc();
        for (curve, seconds) in [("ed25519", 0.003), ("ed25519", 0.004), ("secp256k1", 0.0035), ("secp256k1", 1_000.0)]
        {
            metrics.job_duration.with_label_values(&["sign", curve, "default", OK]).observe(seconds);
        }
        metrics.node_up.with_label_values(&["node2"]).set(0);
        let counts = snapshot(&metrics);
        let mut jobs = counts.jobs;
        jobs.sort_by_key(|jobs| jobs.op);
        let job = |op, curve, code, count| JobCount { op, curve, code, count };
        let wanted = [
            job(None, None, Some(ErrorCode::UnknownField), 1),
            job(Some(Op::Generate), Some(Curve::Secp256k1), Some(ErrorCode::Overloaded), 1),
            job(Some(Op::Sign), Some(Curve::Ed25519), None, 3),
        ];
        assert_eq!(jobs, wanted);
        let wanted = [
            DurationCount { above_ms: 2, to_ms: Some(4), count: 3 },
            DurationCount { above_ms: 64_000, to_ms: None, count: 1 },
        ];
        assert_eq!(counts.durations, wanted);
        assert_eq!((counts.nodes.node1, counts.nodes.node2), (None, Some(false)));
    }
}
