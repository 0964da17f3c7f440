//! What became of each job, as its backend saw it.

use super::stage::Happened;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use trefoil::wire::{Disposition, ErrorCode, JobId, JobResult, Outcome};

/// A job that was published.
pub struct Job {
    pub op: &'static str,
    /// Its result must be a refusal of its share, which was replaced.
    pub with_old_share: bool,
    pub begun: Instant,
    /// When the queue acknowledged it for the first time.
    pub acknowledged: Option<Instant>,
    /// Publications: the first, those after a lost acknowledgement or a refusal at the cap, and those for nothing.
    pub published: u64,
    pub result: Option<(Instant, JobResult)>,
}

#[derive(Default)]
struct Pages {
    jobs: HashMap<JobId, Job>,
    /// What the queue answered to publications: nothing (lost), full, unavailable.
    lost: u64,
    full: u64,
    unavailable: u64,
    republished: u64,
    /// The random point of each signature, with the job that has it.
    points: HashMap<Vec<u8>, JobId>,
    signatures: u64,
    bad: Vec<String>,
    violations: Vec<String>,
}

#[derive(Default)]
pub struct Book(Mutex<Pages>);

/// What a publication came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Acknowledged,
    Lost,
    Full,
    Unavailable,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub jobs: u64,
    pub acknowledged: u64,
    pub publications: u64,
    pub republished: u64,
    pub lost_acknowledgements: u64,
    pub refused_at_cap: u64,
    pub unavailable: u64,
    pub results: u64,
    pub missing: Vec<String>,
    pub outcomes: BTreeMap<String, u64>,
    pub errors: BTreeMap<String, u64>,
    /// Jobs that ended as poison, having met three faults or more.
    pub poisoned: Vec<String>,
    pub signatures: u64,
    pub bad_signatures: Vec<String>,
    /// Milliseconds from the first attempt to publish to the result, sorted.
    pub took: Vec<u64>,
    /// The same from the queue's acknowledgement on.
    pub took_acknowledged: Vec<u64>,
    /// The slowest of those.
    pub slowest: Vec<(u64, String)>,
    pub violations: Vec<String>,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self, id: &JobId, op: &'static str, with_old_share: bool) {
        let begun = Instant::now();
        let job = Job { op, with_old_share, begun, acknowledged: None, published: 0, result: None };
        self.pages().jobs.insert(id.clone(), job);
    }

    pub fn published(&self, id: &JobId, answer: Answer) {
        let mut pages = self.pages();
        match answer {
            Answer::Acknowledged => {}
            Answer::Lost => pages.lost += 1,
            Answer::Full => pages.full += 1,
            Answer::Unavailable => pages.unavailable += 1,
        }
        if let Some(job) = pages.jobs.get_mut(id) {
            job.published += 1;
            if answer == Answer::Acknowledged {
                job.acknowledged.get_or_insert_with(Instant::now);
            }
        }
    }

    pub fn republished(&self) {
        self.pages().republished += 1;
    }

    /// The job's result, as its backend has it now; whoever has it twice has the same.
    pub fn ended(&self, id: &JobId, result: &JobResult) {
        let mut pages = self.pages();
        let Some(job) = pages.jobs.get_mut(id) else { return };
        match &job.result {
            None => job.result = Some((Instant::now(), result.clone())),
            Some((_, before)) if before == result => {}
            Some(_) => pages.violations.push(format!("job {id} has two different results")),
        }
    }

    /// A signature that was verified, or why it is bad.
    pub fn signature(&self, id: &JobId, point: &[u8], verified: Result<(), String>) {
        let mut pages = self.pages();
        pages.signatures += 1;
        if let Err(why) = verified {
            pages.bad.push(format!("job {id}: {why}"));
        }
        if let Some(other) = pages.points.insert(point.to_vec(), id.clone()) {
            pages.violations.push(format!("jobs {other} and {id} have signatures with the same nonce"));
        }
    }

    pub fn violation(&self, what: String) {
        self.pages().violations.push(what);
    }

    /// Results so far, and what else is of interest while jobs run.
    pub fn so_far(&self) -> (u64, u64) {
        let pages = self.pages();
        let ended = pages.jobs.values().filter(|job| job.result.is_some()).count();
        (ended as u64, pages.jobs.len() as u64 - ended as u64)
    }

    pub fn results(&self) -> HashMap<JobId, Option<JobResult>> {
        let pages = self.pages();
        let result = |job: &Job| job.result.as_ref().map(|(_, result)| result.clone());
        pages.jobs.iter().map(|(id, job)| (id.clone(), result(job))).collect()
    }

    /// Whether the queue has acknowledged a job.
    pub fn has_acknowledged(&self, id: &JobId) -> bool {
        self.pages().jobs.get(id).is_some_and(|job| job.acknowledged.is_some())
    }

    pub fn counts(&self, happened: &[Happened]) -> Counts {
        let pages = self.pages();
        let mut counts = Counts {
            jobs: pages.jobs.len() as u64,
            republished: pages.republished,
            lost_acknowledgements: pages.lost,
            refused_at_cap: pages.full,
            unavailable: pages.unavailable,
            signatures: pages.signatures,
            bad_signatures: pages.bad.clone(),
            violations: pages.violations.clone(),
            ..Counts::default()
        };
        for (id, job) in &pages.jobs {
            counts.acknowledged += u64::from(job.acknowledged.is_some());
            counts.publications += job.published;
            let Some((at, result)) = &job.result else {
                counts.missing.push(format!("{id} ({})", job.op));
                continue;
            };
            counts.results += 1;
            let took = at.duration_since(job.begun).as_millis() as u64;
            counts.took.push(took);
            if let Some(acknowledged) = job.acknowledged {
                let took = at.saturating_duration_since(acknowledged).as_millis() as u64;
                counts.took_acknowledged.push(took);
                counts.slowest.push((took, format!("{id} ({})", job.op)));
            }
            let outcome = outcome(result);
            *counts.outcomes.entry(format!("{} {outcome}", job.op)).or_default() += 1;
            counts.judge(id, job, *at, result, happened);
        }
        counts.took.sort_unstable();
        counts.took_acknowledged.sort_unstable();
        counts.slowest.sort_unstable_by(|one, other| other.cmp(one));
        counts.slowest.truncate(5);
        counts
    }
}

impl Counts {
    /// Whether the job may have ended so.
    fn judge(&mut self, id: &JobId, job: &Job, at: Instant, result: &JobResult, happened: &[Happened]) {
        let Outcome::Error { error } = &result.outcome else {
            if job.with_old_share {
                self.violations.push(format!("job {id} signed with a share that was replaced"));
            }
            return;
        };
        if job.with_old_share && matches!(error.code, ErrorCode::StaleShare | ErrorCode::KeyRetired) {
            return;
        }
        *self.errors.entry(error.code.to_string()).or_default() += 1;
        let met = happened.iter().filter(|fault| fault.began < at && fault.ended + Duration::from_secs(10) > job.begun);
        let met = met.count();
        if error.code == ErrorCode::PoisonJob && met >= 3 {
            self.poisoned.push(format!("{id} ({}), which met {met} faults", job.op));
            return;
        }
        let met = if error.code.disposition() == Disposition::Final {
            String::new()
        } else {
            format!(", after {met} faults")
        };
        let (code, message) = (error.code, &error.message);
        self.violations.push(format!("job {id} ({}) ended in {code}: {message}{met}", job.op));
    }
}

/// What so many thousandths of these sorted times do not exceed.
pub fn quantile(took: &[u64], thousandths: usize) -> u64 {
    let last = took.len().saturating_sub(1);
    took.get(last * thousandths / 1_000).copied().unwrap_or_default()
}

fn outcome(result: &JobResult) -> String {
    match &result.outcome {
        Outcome::Ok { .. } => "ok".to_owned(),
        Outcome::Error { error } => error.code.to_string(),
    }
}
