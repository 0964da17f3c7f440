//! What a worker counts, step by step in a job's life. Label values come from closed lists, so nothing is allocated for them.

use super::metrics::WorkerMetrics;
use crate::wire::node::NodeRequest;
use crate::wire::{Curve, ErrorCode, Job, Lane, Method, Op, Outcome};
use prometheus::IntGauge;
use std::time::Duration;

/// Label value of what does not apply; to Prometheus the same as no label.
pub const NONE: &str = "";
/// Outcome of a job that was done.
pub const OK: &str = "ok";
/// Outcome of a job that ended in an error, which has a code.
pub const ERROR: &str = "error";

/// Operations that run a protocol: what most jobs are.
const PROTOCOLS: [Op; 2] = [Op::Sign, Op::Generate];
/// Codes whose rise somebody should hear of from the first one on.
const TROUBLE: [ErrorCode; 10] = [
    ErrorCode::JobExpired,
    ErrorCode::NodeUnavailable,
    ErrorCode::Overloaded,
    ErrorCode::KeyBusy,
    ErrorCode::KeyLocked,
    ErrorCode::WrongPassword,
    ErrorCode::TooManyAttempts,
    ErrorCode::ProtocolAbort,
    ErrorCode::PoisonJob,
    ErrorCode::Internal,
];
/// Codes with which a job goes back to the queue.
const RETRIED: [ErrorCode; 4] =
    [ErrorCode::NodeUnavailable, ErrorCode::Overloaded, ErrorCode::KeyBusy, ErrorCode::RateLimited];
/// Codes with which something is refused beside the results.
const REFUSED: [ErrorCode; 4] =
    [ErrorCode::MalformedJob, ErrorCode::UnsignedJob, ErrorCode::BadSignature, ErrorCode::JobIdReused];

/// What a job is counted as.
#[derive(Debug, Clone, Copy)]
struct Kind {
    op: &'static str,
    curve: &'static str,
    method: &'static str,
}

impl Kind {
    fn of(job: &Job) -> Self {
        Self::new(job.op(), job.curve())
    }

    fn new(op: Op, curve: Option<Curve>) -> Self {
        let method = curve.filter(|_| op == Op::Sign).map_or(NONE, |curve| Method::resolve(curve).as_str());
        Self { op: op.as_str(), curve: curve.map_or(NONE, Curve::as_str), method }
    }
}

/// A job that is being worked on, or waits for its key, until this is dropped.
#[must_use]
pub struct Moved {
    from: Option<IntGauge>,
    to: IntGauge,
}

impl Drop for Moved {
    fn drop(&mut self) {
        self.to.dec();
        if let Some(from) = &self.from {
            from.inc();
        }
    }
}

impl WorkerMetrics {
    /// Shows at zero what will be asked for as a rate or a ratio: a counter that appears with its first event hides that event.
    pub fn show_zeros(&self) {
        for op in Op::ALL {
            self.in_flight.with_label_values(&[op.as_str()]);
            let curves: &[Option<Curve>] = match op {
                Op::Sign | Op::Generate | Op::Recover | Op::Refresh | Op::RegisterKey => {
                    &[Some(Curve::Secp256k1), Some(Curve::Ed25519)]
                }
                _ => &[None],
            };
            for Kind { op, curve, method } in curves.iter().map(|curve| Kind::new(*op, *curve)) {
                self.jobs.with_label_values(&[op, curve, method, OK, NONE]);
            }
            self.redeliveries.with_label_values(&[op.as_str()]);
        }
        for op in PROTOCOLS {
            for Kind { op, curve, method } in Curve::ALL.iter().map(|curve| Kind::new(op, Some(*curve))) {
                self.job_duration.with_label_values(&[op, curve, method, OK]);
                for code in TROUBLE {
                    self.jobs.with_label_values(&[op, curve, method, ERROR, code.as_str()]);
                }
            }
            for lane in Lane::ALL {
                self.queue_wait.with_label_values(&[op.as_str(), lane.as_str()]);
            }
            self.lock_wait.with_label_values(&[op.as_str()]);
            for code in RETRIED {
                self.retries.with_label_values(&[op.as_str(), code.as_str()]);
            }
        }
        for code in REFUSED {
            self.refused.with_label_values(&[code.as_str()]);
        }
        for node in ["node1", "node2"] {
            self.key_locks.with_label_values(&[node]);
            for round in NodeRequest::NAMES {
                let (sign, keygen) =
                    (round.starts_with("sign_") || *round == "frost_sign", round.starts_with("generate_"));
                if keygen && *round != "generate_round" || *round == "commit" || sign && node == "node1" {
                    self.round_duration.with_label_values(&[*round, node]);
                }
            }
        }
    }

    /// A job was delivered, for the first time so long after it was published, or again.
    pub fn delivered(&self, op: Option<Op>, lane: Lane, first: Option<Duration>) -> Moved {
        let op = op.map_or(NONE, Op::as_str);
        match first {
            Some(waited) => {
                self.queue_wait.with_label_values(&[op, lane.as_str()]).observe(waited.as_secs_f64());
            }
            None => self.redeliveries.with_label_values(&[op]).inc(),
        }
        let to = self.in_flight.with_label_values(&[op]);
        to.inc();
        Moved { from: None, to }
    }

    /// A job stops working and waits for its key.
    pub fn waits(&self, op: Op) -> Moved {
        let (from, to) = (self.in_flight.with_label_values(&[op.as_str()]), self.waiting.clone());
        from.dec();
        to.inc();
        Moved { from: Some(from), to }
    }

    /// A job goes back to the queue.
    pub fn gave_back(&self, op: Option<Op>, code: ErrorCode) {
        self.retries.with_label_values(&[op.map_or(NONE, Op::as_str), code.as_str()]).inc();
    }

    /// This worker stored the job's one result, so long after it was delivered.
    pub fn stored(&self, job: &Job, outcome: &Outcome, took: Duration) {
        let Kind { op, curve, method } = Kind::of(job);
        let (outcome, code) = match outcome {
            Outcome::Ok { .. } => (OK, NONE),
            Outcome::Error { error } => (ERROR, error.code.as_str()),
        };
        self.jobs.with_label_values(&[op, curve, method, outcome, code]).inc();
        self.job_duration.with_label_values(&[op, curve, method, outcome]).observe(took.as_secs_f64());
    }

    /// This worker stored the result of something that cannot be read as a job.
    pub fn stored_unread(&self, code: ErrorCode) {
        self.jobs.with_label_values(&[NONE, NONE, NONE, ERROR, code.as_str()]).inc();
    }

    /// Something was refused that has no result, or whose result is another's.
    pub fn refused(&self, code: ErrorCode) {
        self.refused.with_label_values(&[code.as_str()]).inc();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::client::JobBuilder;
    use crate::seal::Secrets;
    use crate::telemetry::calls::Calls;
    use crate::wire::{JobHeaders, KeyId, SignInput};
    use nkeys::{KeyPair, XKey};
    use std::sync::Arc;
    use std::time::Instant;
    use trefoil_protocol::Party;

    /// Not a test: `cargo test --features faults --lib -- --ignored --nocapture what_a_jobs_updates_cost` (docs/performance.md).
    #[test]
    #[ignore = "measures"]
    #[allow(clippy::print_stdout)]
    fn what_a_jobs_updates_cost() {
        const JOBS: u32 = 200_000;
        let [worker, reply] = [XKey::new(), XKey::new()].map(|key| key.public_key().parse().unwrap());
        let jobs = JobBuilder::new(KeyPair::new_user(), worker).unwrap();
        let input = SignInput::Secp256k1 { digest: [1; 32], path: None };
        let made =
            jobs.sign(KeyId([1; 16]), Method::Default, &input, &Secrets::default(), &reply, Duration::from_secs(60));
        let made = made.unwrap();
        let job = Job::parse(&made.subject, JobHeaders::from_nats(Some(&made.headers)), &made.body).unwrap();
        let metrics = Arc::new(WorkerMetrics::new().unwrap());
        metrics.show_zeros();
        let calls = Calls::new(metrics.clone(), Party::Node1);
        let took = Duration::from_millis(3);
        let began = Instant::now();
        for _ in 0..JOBS {
            let _in_flight = metrics.delivered(Some(Op::Sign), Lane::Interactive, Some(took));
            metrics.kdf_duration.observe(took.as_secs_f64());
            metrics.lock_wait.with_label_values(&[job.op().as_str()]).observe(took.as_secs_f64());
            for round in ["sign_open", "sign_round2", "sign_close"] {
                calls.ended(round, took, None);
            }
            metrics.publish_duration.observe(took.as_secs_f64());
            metrics.stored(&job, &Outcome::DONE, took);
        }
        println!("{} ns a job", began.elapsed().as_nanos() / u128::from(JOBS));
    }
}
