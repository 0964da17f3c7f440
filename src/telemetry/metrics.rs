//! Every metric of the service, by name. Base units, counted at completion; labels are `op`, `curve`, `method`, `outcome`, `code`,
//! `round`, `node` and `lane`, all of them from closed lists, and never an id: what a label can be is bounded by this source code.
//!
//! One set belongs to one process (a worker or a node), in a registry of its own.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result,
};

/// Upper bounds of short steps, seconds: one round, one disk write.
const STEP: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0];
/// Upper bounds of whole jobs and of waiting, seconds.
const JOB: &[f64] = &[
    0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0,
    64.0,
];

/// What every process shows. Clones share it.
#[derive(Clone)]
pub struct CommonMetrics {
    /// `trefoil_build_info`: 1.
    build: IntGaugeVec,
    /// `trefoil_nats_connected`: 1 while connected.
    pub nats_connected: IntGauge,
    /// `trefoil_nats_disconnects_total`.
    pub nats_disconnects: IntCounter,
    /// `trefoil_certificate_expiry_timestamp_seconds`: the first end of the TLS certificates that this process uses; absent without TLS.
    pub certificate_expiry: GaugeVec,
}

/// What a worker shows.
pub struct WorkerMetrics {
    /// What it has in common with the nodes.
    pub common: CommonMetrics,
    /// `trefoil_jobs_total{op,curve,method,outcome,code}`: jobs whose result this worker stored.
    pub jobs: IntCounterVec,
    /// `trefoil_job_duration_seconds{op,curve,method,outcome}`: from taken to result stored.
    pub job_duration: HistogramVec,
    /// `trefoil_job_queue_wait_seconds{op,lane}`: from published to taken, first deliveries only.
    pub queue_wait: HistogramVec,
    /// `trefoil_lock_wait_seconds{op}`: for the key, in this process and across workers.
    pub lock_wait: HistogramVec,
    /// `trefoil_kdf_duration_seconds`: one key derivation, with its wait for memory.
    pub kdf_duration: Histogram,
    /// `trefoil_round_duration_seconds{round,node}`: one call to a node and its answer; calls without one are not in it.
    pub round_duration: HistogramVec,
    /// `trefoil_publish_duration_seconds`: storing one result.
    pub publish_duration: Histogram,
    /// `trefoil_jobs_in_flight{op}`: jobs being worked on.
    pub in_flight: IntGaugeVec,
    /// `trefoil_job_slots`: the most jobs that may be.
    pub slots: IntGauge,
    /// `trefoil_jobs_waiting`: jobs in hand that wait for their key.
    pub waiting: IntGauge,
    /// `trefoil_job_retries_total{op,code}`: jobs given back to the queue for a while, and why.
    pub retries: IntCounterVec,
    /// `trefoil_job_redeliveries_total{op}`: jobs that another worker, or this one, had before.
    pub redeliveries: IntCounterVec,
    /// `trefoil_jobs_refused_total{code}`: what got no result of its own: jobs of nobody known, copies that somebody altered, ids used twice.
    pub refused: IntCounterVec,
    /// `trefoil_mutex_contended_total`: jobs that waited for another one of this worker.
    pub mutex_contended: IntCounter,
    /// `trefoil_lease_contended_total`: attempts at a lease that another worker held.
    pub lease_contended: IntCounter,
    /// `trefoil_lease_takeovers_total`: leases taken from a worker that was gone.
    pub lease_takeovers: IntCounter,
    /// `trefoil_lease_lost_total`: leases that another worker took from this one.
    pub lease_lost: IntCounter,
    /// `trefoil_key_locks_total{node}`: keys locked because a node was caught cheating in a session.
    pub key_locks: IntCounterVec,
    /// `trefoil_node_up{node}`: 1 if the last call to the node was answered; a node that no job needs is asked something every few
    /// seconds.
    pub node_up: IntGaugeVec,
    /// `trefoil_clock_offset_seconds{node}`: the node's clock minus this worker's, at the last handshake.
    pub clock_offset: GaugeVec,
    /// `trefoil_queue_jobs{lane}`: jobs in the queue, those being worked on included.
    pub queue_jobs: IntGaugeVec,
    /// `trefoil_queue_pending_jobs{lane}`: those of them that no worker ever had. Jobs that were given back for a while are not among
    /// them.
    pub queue_pending: IntGaugeVec,
    /// `trefoil_queue_oldest_seconds{lane}`: age of the oldest job in the queue; 0 if it is empty.
    pub queue_oldest: GaugeVec,
    /// `trefoil_result_readers`: consumers of the stream of results.
    pub result_readers: IntGauge,
    /// `trefoil_results_kept`: results in their stream.
    pub results_kept: IntGauge,
    registry: Registry,
}

/// What a node shows.
pub struct NodeMetrics {
    /// What it has in common with the workers.
    pub common: CommonMetrics,
    /// `trefoil_node_requests_total{round,outcome,code}`: authentic requests that were answered.
    pub requests: IntCounterVec,
    /// `trefoil_node_request_duration_seconds{round}`.
    pub request_duration: HistogramVec,
    /// `trefoil_node_rejects_total{outcome}`: messages that are no authentic request: forged, replayed, malformed, of an unknown channel, or handshakes of
    /// an unknown worker or another time.
    pub rejects: IntCounterVec,
    /// `trefoil_node_requests_in_flight`.
    pub in_flight: IntGauge,
    /// `trefoil_sessions_open`.
    pub sessions_open: IntGauge,
    /// `trefoil_sessions_total{op,curve,outcome}`: protocol sessions that ended: completed, failed, or forgotten (nobody went on with it, or something
    /// else took its place).
    pub sessions: IntCounterVec,
    /// `trefoil_partial_signatures_total{curve}`: signature shares that left this node.
    pub partial_signatures: IntCounterVec,
    /// `trefoil_channels_open`: workers' channels.
    pub channels_open: IntGauge,
    /// `trefoil_store_commit_duration_seconds`: one durable commit of the store.
    pub store_commit: Histogram,
    /// `trefoil_store_failures_total`: failed reads and commits, and records that do not decrypt or parse.
    pub store_failures: IntCounter,
    /// `trefoil_audit_append_duration_seconds`: one durable write of the audit log, for all entries of it.
    pub audit_append: Histogram,
    /// `trefoil_audit_entries_total`.
    pub audit_entries: IntCounter,
    /// `trefoil_audit_failures_total`: failed writes, after one of which the node serves no more.
    pub audit_failures: IntCounter,
    /// `trefoil_audit_lost_total`: entries that found no room in the queue; what waits for its entry fails.
    pub audit_lost: IntCounter,
    /// `trefoil_key_locks_total`: keys that this node locked.
    pub key_locks: IntCounter,
    /// `trefoil_password_attempts_total{outcome}`: right, wrong, unknown (nobody reported the end), refused (the limit).
    pub password_attempts: IntCounterVec,
    /// `trefoil_replays_total`: requests refused because their job's id was used before (`JOB_ID_REUSED`).
    pub replays: IntCounter,
    /// `trefoil_keys{curve}`: live keys.
    pub keys: IntGaugeVec,
    /// `trefoil_crypto_queue`: protocol steps that wait for a thread.
    pub crypto_queue: IntGauge,
    /// `trefoil_backup_timestamp_seconds`: when the newest backup was made, unix time; 0 before the first one, absent where none are configured.
    pub backup: GaugeVec,
    /// `trefoil_backup_failures_total`.
    pub backup_failures: IntCounter,
    /// `trefoil_quarantine_keys`: keys that the other node has not confirmed since a restore.
    pub quarantine: IntGauge,
    registry: Registry,
}

/// A registry under construction.
struct Set(Registry);

impl Set {
    fn new() -> Result<Self> {
        let set = Self(Registry::new());
        #[cfg(target_os = "linux")]
        set.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(set)
    }

    fn add<C: Collector + Clone + 'static>(&self, metric: Result<C>) -> Result<C> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn reals(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn time(&self, name: &str, help: &str, bounds: &[f64]) -> Result<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec())))
    }

    fn times(&self, name: &str, help: &str, bounds: &[f64], labels: &[&str]) -> Result<HistogramVec> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), labels))
    }
}

impl CommonMetrics {
    fn new(set: &Set) -> Result<Self> {
        let common = Self {
            build: set.gauges("trefoil_build_info", "Build of this process, always 1.", &["version"])?,
            nats_connected: set.gauge("trefoil_nats_connected", "1 while connected to NATS.")?,
            nats_disconnects: set
                .counter("trefoil_nats_disconnects_total", "Times the connection to NATS was lost.")?,
            certificate_expiry: set.reals(
                "trefoil_certificate_expiry_timestamp_seconds",
                "First end of the TLS certificates in use, unix time.",
                &[],
            )?,
        };
        common.build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(common)
    }
}

impl WorkerMetrics {
    /// All at zero.
    ///
    /// # Errors
    /// Two metrics with one name: a mistake in this file.
    pub fn new() -> Result<Self> {
        let set = Set::new()?;
        let job = ["op", "curve", "method", "outcome"];
        Ok(Self {
            common: CommonMetrics::new(&set)?,
            jobs: set.counters(
                "trefoil_jobs_total",
                "Jobs that ended with a stored result.",
                &["op", "curve", "method", "outcome", "code"],
            )?,
            job_duration: set.times("trefoil_job_duration_seconds", "From taken to result stored.", JOB, &job)?,
            queue_wait: set.times(
                "trefoil_job_queue_wait_seconds",
                "From published to taken, first deliveries.",
                JOB,
                &["op", "lane"],
            )?,
            lock_wait: set.times("trefoil_lock_wait_seconds", "Wait for the key.", JOB, &["op"])?,
            kdf_duration: set.time("trefoil_kdf_duration_seconds", "One key derivation with its wait.", JOB)?,
            round_duration: set.times(
                "trefoil_round_duration_seconds",
                "One call to a node and its answer.",
                STEP,
                &["round", "node"],
            )?,
            publish_duration: set.time("trefoil_publish_duration_seconds", "Storing one result.", STEP)?,
            in_flight: set.gauges("trefoil_jobs_in_flight", "Jobs being worked on.", &["op"])?,
            slots: set.gauge("trefoil_job_slots", "Jobs that may be worked on at once.")?,
            waiting: set.gauge("trefoil_jobs_waiting", "Jobs in hand that wait for their key.")?,
            retries: set.counters("trefoil_job_retries_total", "Jobs given back to the queue.", &["op", "code"])?,
            redeliveries: set.counters(
                "trefoil_job_redeliveries_total",
                "Jobs that were delivered before.",
                &["op"],
            )?,
            refused: set.counters("trefoil_jobs_refused_total", "Jobs without a result of their own.", &["code"])?,
            mutex_contended: set
                .counter("trefoil_mutex_contended_total", "Jobs that waited for one of this worker.")?,
            lease_contended: set.counter("trefoil_lease_contended_total", "Leases that another worker held.")?,
            lease_takeovers: set
                .counter("trefoil_lease_takeovers_total", "Leases taken from a worker that was gone.")?,
            lease_lost: set.counter("trefoil_lease_lost_total", "Leases that another worker took from this one.")?,
            key_locks: set.counters("trefoil_key_locks_total", "Keys locked: somebody cheated.", &["node"])?,
            node_up: set.gauges("trefoil_node_up", "1 if the node answered last.", &["node"])?,
            clock_offset: set.reals("trefoil_clock_offset_seconds", "The node's clock minus ours.", &["node"])?,
            queue_jobs: set.gauges("trefoil_queue_jobs", "Jobs in the queue, running ones included.", &["lane"])?,
            queue_pending: set.gauges("trefoil_queue_pending_jobs", "Jobs that no worker had yet.", &["lane"])?,
            queue_oldest: set.reals(
                "trefoil_queue_oldest_seconds",
                "Age of the oldest job in the queue.",
                &["lane"],
            )?,
            result_readers: set.gauge("trefoil_result_readers", "Consumers of the stream of results.")?,
            results_kept: set.gauge("trefoil_results_kept", "Results in their stream.")?,
            registry: set.0,
        })
    }

    /// For the endpoint and the snapshots.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl NodeMetrics {
    /// All at zero.
    ///
    /// # Errors
    /// Two metrics with one name: a mistake in this file.
    pub fn new() -> Result<Self> {
        let set = Set::new()?;
        let metrics = Self {
            common: CommonMetrics::new(&set)?,
            requests: set.counters(
                "trefoil_node_requests_total",
                "Authentic requests that were answered.",
                &["round", "outcome", "code"],
            )?,
            request_duration: set.times(
                "trefoil_node_request_duration_seconds",
                "One request and its answer.",
                STEP,
                &["round"],
            )?,
            rejects: set.counters(
                "trefoil_node_rejects_total",
                "Messages that are no authentic request.",
                &["outcome"],
            )?,
            in_flight: set.gauge("trefoil_node_requests_in_flight", "Requests being answered.")?,
            sessions_open: set.gauge("trefoil_sessions_open", "Protocol sessions in memory.")?,
            sessions: set.counters("trefoil_sessions_total", "Sessions that ended.", &["op", "curve", "outcome"])?,
            partial_signatures: set.counters(
                "trefoil_partial_signatures_total",
                "Signature shares that left this node.",
                &["curve"],
            )?,
            channels_open: set.gauge("trefoil_channels_open", "Workers' channels.")?,
            store_commit: set.time("trefoil_store_commit_duration_seconds", "One durable commit.", STEP)?,
            store_failures: set.counter("trefoil_store_failures_total", "Failed reads and writes of the store.")?,
            audit_append: set.time("trefoil_audit_append_duration_seconds", "One durable write of the log.", STEP)?,
            audit_entries: set.counter("trefoil_audit_entries_total", "Entries of the audit log.")?,
            audit_failures: set.counter("trefoil_audit_failures_total", "Failed writes of the audit log.")?,
            audit_lost: set.counter("trefoil_audit_lost_total", "Entries of the audit log that found no room.")?,
            key_locks: set.counter("trefoil_key_locks_total", "Keys that this node locked.")?,
            password_attempts: set.counters(
                "trefoil_password_attempts_total",
                "Attempts at passwords.",
                &["outcome"],
            )?,
            replays: set
                .counter("trefoil_replays_total", "Requests refused because their job's id was used before.")?,
            keys: set.gauges("trefoil_keys", "Live keys.", &["curve"])?,
            crypto_queue: set.gauge("trefoil_crypto_queue", "Protocol steps that wait for a thread.")?,
            backup: set.reals("trefoil_backup_timestamp_seconds", "When the newest backup was made.", &[])?,
            backup_failures: set.counter("trefoil_backup_failures_total", "Backups that failed.")?,
            quarantine: set.gauge("trefoil_quarantine_keys", "Keys not confirmed since a restore.")?,
            registry: set.0,
        };
        // Alerts compare these with before: a first one must not be taken for a beginning.
        for outcome in ["right", "wrong", "unknown", "refused"] {
            metrics.password_attempts.with_label_values(&[outcome]);
        }
        for outcome in crate::channel::Reject::NAMES {
            metrics.rejects.with_label_values(&[outcome]);
        }
        for curve in crate::wire::Curve::ALL {
            metrics.keys.with_label_values(&[curve.as_str()]);
            metrics.partial_signatures.with_label_values(&[curve.as_str()]);
        }
        Ok(metrics)
    }

    /// For the endpoint.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use prometheus::Encoder;

    /// Base units, and no label that could carry an id.
    #[test]
    fn names_follow_the_rules_and_labels_are_closed_lists() {
        let source = include_str!("metrics.rs").split("#[cfg(test)]").next().unwrap();
        let labels = source.split("&[\"").skip(1).flat_map(|list| list.split(']').next().unwrap().split(','));
        let allowed = ["op", "curve", "method", "outcome", "code", "round", "node", "lane", "version"];
        let mut seen = 0;
        for label in labels.map(|label| label.trim().trim_matches('"')).filter(|label| !label.is_empty()) {
            assert!(allowed.contains(&label), "{label}");
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
        for name in source.split('"').filter(|text| text.starts_with("trefoil_")) {
            let tail = name.rsplit('_').next().unwrap();
            assert!(!["ms", "millis", "us", "kib", "percent", "count"].contains(&tail), "{name}");
        }
    }

    #[test]
    fn each_process_shows_its_build() {
        for registry in
            [WorkerMetrics::new().unwrap().registry().clone(), NodeMetrics::new().unwrap().registry().clone()]
        {
            let mut text = Vec::new();
            prometheus::TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let build = format!("trefoil_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
            assert!(text.contains(&build), "{text}");
        }
    }
}
