//! What `trefoil top` shows: the workers, from their snapshots, and the last jobs that failed, from events.

use super::output::shown_time;
use crate::wire::{Curve, DurationCount, Event, EventOutcome, NodesUp, Snapshot};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Failed jobs that are shown.
const FAILURES: usize = 5;
/// A worker that was silent for so many of its intervals is marked, and after so many taken away.
const SILENT: (u32, u32) = (3, 12);

/// Everything that was heard.
#[derive(Default)]
pub struct Board {
    workers: BTreeMap<String, Worker>,
    failures: VecDeque<Event>,
}

struct Worker {
    heard: Instant,
    now: Snapshot,
    before: Option<Snapshot>,
}

/// What a worker, or all of them, did between two snapshots.
#[derive(Debug, Default, PartialEq)]
struct Rates {
    /// Jobs that ended each second.
    jobs: f64,
    /// Those of them that failed.
    errors: f64,
    /// How long they took; of all since the worker's start where there is one snapshot only.
    durations: Vec<DurationCount>,
}

impl Board {
    /// A worker's snapshot.
    pub fn snapshot(&mut self, now: Snapshot, heard: Instant) {
        let before = self.workers.remove(&now.worker_id);
        let before = before.map(|worker| worker.now).filter(|before| before.started_at == now.started_at);
        self.workers.insert(now.worker_id.clone(), Worker { heard, now, before });
    }

    /// An event; of which only failures are kept.
    pub fn event(&mut self, event: Event) {
        if event.outcome == EventOutcome::Failed {
            self.failures.push_front(event);
            self.failures.truncate(FAILURES);
        }
    }

    /// Whether nobody was heard.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Whether there are two snapshots of each worker, so that there are rates.
    pub fn is_complete(&self) -> bool {
        self.workers.values().all(|worker| worker.before.is_some() || worker.now.draining)
    }

    /// The longest interval between two snapshots of a worker.
    pub fn interval(&self) -> Duration {
        self.workers.values().map(Worker::interval).max().unwrap_or_default()
    }

    /// Takes away who was silent for long, or has ended.
    pub fn tidy(&mut self, now: Instant) {
        self.workers.retain(|_, worker| {
            let silent = worker.silent(now);
            silent < worker.interval() * SILENT.1 && !(worker.now.draining && silent >= worker.interval() * SILENT.0)
        });
    }

    /// The picture, line by line.
    pub fn lines(&self, now: Instant) -> Vec<String> {
        let mut lines = vec![format!(
            "{:20} {:>8} {:>8} {:>9} {:>7} {:>7} {:>8} {:>8}  {:5} {}",
            "WORKER", "JOBS/S", "ERR/S", "IN FLIGHT", "WAITING", "RETRIES", "P50", "P99", "NODES", "BUILD"
        )];
        let mut all = Rates::default();
        let (mut in_flight, mut slots, mut waiting, mut retries) = (0, 0, 0, 0);
        for (name, worker) in &self.workers {
            let (rates, said) = (worker.rates(), &worker.now);
            let build = if worker.silent(now) >= worker.interval() * SILENT.0 {
                format!("silent for {} s", worker.silent(now).as_secs())
            } else if said.draining {
                "draining".to_owned()
            } else {
                shown(&said.build)
            };
            let known = worker.before.is_some();
            lines.push(line(&shown(name), known.then_some(&rates), said, &rates.durations, &build));
            all.add(rates);
            (in_flight, slots) = (in_flight + said.in_flight, slots + said.slots);
            (waiting, retries) = (waiting + said.waiting, retries + said.retries);
        }
        if self.workers.len() > 1 {
            let (p50, p99) = (shown_quantile(&all.durations, 0.5), shown_quantile(&all.durations, 0.99));
            lines.push(format!(
                "{:20} {:>8.1} {:>8.1} {:>9} {waiting:>7} {retries:>7} {p50:>8} {p99:>8}",
                format!("all {}", self.workers.len()),
                all.jobs,
                all.errors,
                format!("{in_flight}/{slots}"),
            ));
        }
        if !self.failures.is_empty() {
            lines.push(String::new());
            lines.push("FAILED LAST".to_owned());
        }
        lines.extend(self.failures.iter().map(|event| {
            let code = event.code.map_or("", |code| code.as_str());
            let what = [event.op.as_str(), event.curve.map_or("", Curve::as_str)].join(" ");
            format!("{}  {code:22} {what:20} {}  {}", shown_time(event.at), event.job_id, shown(&event.worker_id))
        }));
        lines
    }
}

fn line(name: &str, rates: Option<&Rates>, said: &Snapshot, durations: &[DurationCount], build: &str) -> String {
    let rate = |rate: fn(&Rates) -> f64| rates.map_or_else(|| "-".to_owned(), |rates| format!("{:.1}", rate(rates)));
    let mut line = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        line,
        "{name:20} {:>8} {:>8} {:>9} {:>7} {:>7} {:>8} {:>8}  {:5} {build}",
        rate(|rates| rates.jobs),
        rate(|rates| rates.errors),
        format!("{}/{}", said.in_flight, said.slots),
        said.waiting,
        said.retries,
        shown_quantile(durations, 0.5),
        shown_quantile(durations, 0.99),
        nodes(said.nodes),
    );
    line
}

impl Worker {
    fn interval(&self) -> Duration {
        Duration::from_millis(self.now.interval_ms.max(1_000))
    }

    fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    fn rates(&self) -> Rates {
        let Some(before) = &self.before else {
            return Rates { durations: self.now.durations.clone(), ..Rates::default() };
        };
        let seconds = self.now.at.saturating_sub(before.at) as f64 / 1_000.0;
        let since = |count: fn(&Snapshot) -> u64| {
            let more = count(&self.now).saturating_sub(count(before)) as f64;
            if seconds > 0.0 { more / seconds } else { 0.0 }
        };
        let earlier = |range: &DurationCount| {
            let same = before.durations.iter().find(|before| before.above_ms == range.above_ms);
            same.map_or(0, |before| before.count)
        };
        let ranges = self.now.durations.iter();
        let durations =
            ranges.map(|range| DurationCount { count: range.count.saturating_sub(earlier(range)), ..*range });
        Rates {
            jobs: since(|said| said.jobs.iter().map(|jobs| jobs.count).sum()),
            errors: since(|said| said.jobs.iter().filter(|jobs| jobs.code.is_some()).map(|jobs| jobs.count).sum()),
            durations: durations.filter(|range| range.count > 0).collect(),
        }
    }
}

impl Rates {
    fn add(&mut self, other: Self) {
        (self.jobs, self.errors) = (self.jobs + other.jobs, self.errors + other.errors);
        for range in other.durations {
            match self.durations.iter_mut().find(|own| own.above_ms == range.above_ms) {
                Some(own) => own.count += range.count,
                None => self.durations.push(range),
            }
        }
        self.durations.sort_by_key(|range| range.above_ms);
    }
}

/// The duration, in milliseconds, that this part of the jobs did not exceed, as if those of a range were spread evenly over it. `Err`:
/// longer than this.
fn quantile(durations: &[DurationCount], part: f64) -> Option<Result<f64, u64>> {
    let all: u64 = durations.iter().map(|range| range.count).sum();
    let mut left = part * all as f64;
    for range in durations {
        if left <= range.count as f64 {
            let above = range.above_ms as f64;
            return Some(match range.to_ms {
                Some(to) => Ok(above + (to as f64 - above) * left / range.count.max(1) as f64),
                None => Err(range.above_ms),
            });
        }
        left -= range.count as f64;
    }
    None
}

fn shown_quantile(durations: &[DurationCount], part: f64) -> String {
    let shown = |milliseconds: f64| {
        if milliseconds < 1_000.0 {
            format!("{milliseconds:.1} ms")
        } else {
            format!("{:.1} s", milliseconds / 1_000.0)
        }
    };
    match quantile(durations, part) {
        None => "-".to_owned(),
        Some(Ok(milliseconds)) => shown(milliseconds),
        Some(Err(above)) => format!(">{}", shown(above as f64)),
    }
}

/// Both nodes in a few letters.
fn nodes(NodesUp { node1, node2 }: NodesUp) -> String {
    let shown = |node: Option<bool>, name: char| match node {
        Some(true) => name,
        Some(false) => '!',
        None => '?',
    };
    format!("{} {}", shown(node1, '1'), shown(node2, '2'))
}

/// Names come over NATS: nothing in them may play tricks with the terminal.
fn shown(name: &str) -> String {
    name.chars().flat_map(char::escape_debug).take(40).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::wire::{ErrorCode, JobCount, Op};

    fn range(above_ms: u64, to_ms: u64, count: u64) -> DurationCount {
        DurationCount { above_ms, to_ms: Some(to_ms), count }
    }

    fn said(worker: &str, at: u64, done: u64, failed: u64, durations: Vec<DurationCount>) -> Snapshot {
        let jobs = |code, count| JobCount { op: Some(Op::Sign), curve: Some(Curve::Ed25519), code, count };
        Snapshot {
            version: 1,
            worker_id: worker.to_owned(),
            build: "1.2.3".to_owned(),
            started_at: 1,
            at,
            interval_ms: 2_000,
            draining: false,
            jobs: vec![jobs(None, done), jobs(Some(ErrorCode::WrongPassword), failed)],
            refused: 0,
            retries: 0,
            in_flight: 3,
            slots: 64,
            waiting: 1,
            durations,
            nodes: NodesUp { node1: Some(true), node2: Some(false) },
        }
    }

    #[test]
    fn quantiles_lie_where_the_jobs_are() {
        let durations = [range(2, 4, 50), range(8, 16, 49), DurationCount { above_ms: 64_000, to_ms: None, count: 1 }];
        assert_eq!(quantile(&durations, 0.25), Some(Ok(3.0)));
        assert_eq!(quantile(&durations, 0.5), Some(Ok(4.0)));
        assert_eq!(quantile(&durations, 0.99), Some(Ok(16.0)));
        assert_eq!(quantile(&durations, 1.0), Some(Err(64_000)));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(shown_quantile(&durations, 0.5), "4.0 ms");
        assert_eq!((shown_quantile(&durations, 1.0), shown_quantile(&[], 0.5)), (">64.0 s".to_owned(), "-".to_owned()));
    }

    #[test]
    fn rates_are_of_the_last_interval_and_sum_up() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.snapshot(said("one", 10_000, 100, 1, vec![range(2, 4, 101)]), now);
        assert!(!board.is_complete());
        assert!(board.lines(now)[1].contains(" - "), "no rate of one snapshot: {:?}", board.lines(now));
        board.snapshot(said("one", 12_000, 140, 3, vec![range(2, 4, 101), range(4, 6, 42)]), now);
        board.snapshot(said("two", 10_000, 0, 0, vec![]), now);
        board.snapshot(said("two", 14_000, 40, 0, vec![range(4, 6, 40)]), now);
        assert!(board.is_complete());
        let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines = board.lines(now);
        assert_eq!(columns(&lines[1])[..6], ["one", "21.0", "1.0", "3/64", "1", "0"]);
        assert_eq!(columns(&lines[1])[6..], ["5.0", "ms", "6.0", "ms", "1", "!", "1.2.3"]);
        assert_eq!(columns(&lines[3])[..6], ["all", "2", "31.0", "1.0", "6/128", "2"]);
    }

    #[test]
    fn who_is_silent_is_marked_then_gone_and_who_started_anew_counts_anew() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.snapshot(said("one", 10_000, 100, 1, vec![]), now);
        board.snapshot(Snapshot { started_at: 9, ..said("one", 12_000, 5, 0, vec![]) }, now);
        assert!(!board.is_complete(), "another process");
        let later = now + Duration::from_secs(7);
        board.tidy(later);
        assert!(board.lines(later)[1].ends_with("silent for 7 s"), "{:?}", board.lines(later));
        board.tidy(now + Duration::from_secs(25));
        assert!(board.is_empty());
        board.snapshot(Snapshot { draining: true, ..said("one\u{1b}[2J", 12_000, 5, 0, vec![]) }, now);
        let line = board.lines(now).remove(1);
        assert!(line.ends_with("draining") && !line.contains('\u{1b}'), "{line}");
        board.tidy(later);
        assert!(board.is_empty(), "it has ended");
    }
}
