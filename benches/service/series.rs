//! What is measured, series by series.

use crate::load::{Generator, Run, plan};
use crate::report::{self, Report};
use crate::site::{Site, What};
use crate::{floor, site};
use serde_json::{Value, json};
use std::time::Instant;
use tokio::sync::oneshot;
use trefoil::wire::Curve;
use trefoil::wire::subject::RESULTS_STREAM;

const ECDSA: What = What::Real(Curve::Secp256k1);
const EDDSA: What = What::Real(Curve::Ed25519);
const FLOOR_ECDSA: What = What::Floor(Curve::Secp256k1);
const FLOOR_EDDSA: What = What::Floor(Curve::Ed25519);
/// What the sweeps keep where they do not vary it.
const WORKERS: usize = 2;
const IN_FLIGHT: usize = 64;
/// Keys on each curve: as many as jobs under way, or their turns at the keys would be what is measured.
const KEYS: usize = 64;
/// Of the saturated rate: what the other keys get beside a hot one.
const BACKGROUND: f64 = 0.4;
/// Jobs of the hot key that are offered at once; the queue takes 64 of one key.
const FLOOD: usize = 500;

pub struct Options {
    pub quick: bool,
    /// Jobs of the memory series.
    pub jobs: usize,
    pub sync: Option<String>,
    only: Option<Vec<String>>,
    pub out: std::path::PathBuf,
}

impl Options {
    pub fn read() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let quick = var("QUICK").is_some_and(|value| value != "0");
        let out =
            var("OUT").unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench/service.json").into());
        Self {
            quick,
            jobs: var("JOBS")
                .map_or(if quick { 1_500 } else { 30_000 }, |jobs| jobs.parse().expect("JOBS is a number")),
            sync: var("SYNC").filter(|sync| sync != "default"),
            only: var("ONLY").map(|only| only.split(',').map(str::to_owned).collect()),
            out: out.into(),
        }
    }

    /// The long value, or in a quick run the short one.
    fn pick<T>(&self, long: T, quick: T) -> T {
        if self.quick { quick } else { long }
    }

    fn wants(&self, series: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|wanted| wanted == series))
    }
}

pub struct Bench {
    options: Options,
    site: Site,
    real: Generator,
    floor: Generator,
    report: Report,
    /// Jobs a second that were reached last, by kind: how many a series of some seconds needs.
    reached: Vec<(What, f64)>,
}

impl Bench {
    pub async fn run(options: Options) {
        println!("the service: nats-server, two nodes, {WORKERS} workers where nothing else is said");
        let report = Report::new(&options);
        let site = Site::start(options.sync.as_deref()).await;
        let initiator = site.service.initiator.public_key();
        let client = || site.service.nats.connect();
        let real = Generator::listen(client().await, RESULTS_STREAM, format!("mpc.result.{initiator}.>")).await;
        let floor = Generator::listen(client().await, floor::RESULTS, "floor.result.>".to_owned()).await;
        let mut bench = Self { options, site, real, floor, report, reached: Vec::new() };
        bench.generate().await;
        bench.site.weigh();
        bench.warm_up().await;
        for (name, series) in
            [("single", 0), ("workers", 1), ("in-flight", 2), ("open", 3), ("hot", 4), ("batch", 5), ("memory", 6)]
        {
            if !bench.options.wants(name) {
                continue;
            }
            println!("{name}:");
            match series {
                0 => bench.single().await,
                1 => bench.sweep_workers().await,
                2 => bench.sweep_in_flight().await,
                3 => bench.sweep_rate().await,
                4 => bench.hot_key().await,
                5 => bench.batch().await,
                _ => bench.memory().await,
            }
        }
        bench.report.write(&bench.options.out);
    }

    /// Key generation, one at a time; what the other series sign with.
    async fn generate(&mut self) {
        println!("generate:");
        for (curve, count) in [(Curve::Secp256k1, KEYS), (Curve::Ed25519, KEYS)] {
            let mut took = hdrhistogram::Histogram::<u64>::new(3).unwrap();
            let before = Usage::now(&self.site);
            for _ in 0..count {
                took.record(self.site.generate(curve).await.as_micros() as u64).unwrap();
            }
            let record = json!({
                "series": "generate", "what": curve.to_string(), "workers": 1, "inFlight": 1,
                "jobs": count, "latencyMs": report::latency(&took), "machine": before.until(&self.site, count),
            });
            self.report.add(record);
        }
    }

    /// Channels, caches and allocators as they are after some seconds of work; and a first guess of each rate.
    async fn warm_up(&mut self) {
        println!("warm-up:");
        for what in [ECDSA, EDDSA, FLOOR_ECDSA, FLOOR_EDDSA] {
            self.site.workers(what, WORKERS);
            let count = self.options.pick(1_000, 300);
            let jobs = plan(&self.site, count, |site, index| site.job(what, index, 0));
            let run = self.generator(what).closed(jobs, IN_FLIGHT).await;
            assert!(run.errors.is_empty(), "{what}: {:?}", run.errors);
            self.reached(what, run.rate(0));
        }
    }

    /// One job at a time.
    async fn single(&mut self) {
        for what in [ECDSA, EDDSA, FLOOR_ECDSA, FLOOR_EDDSA] {
            let count = self.options.pick(600, 100);
            self.closed("single", what, WORKERS, 1, count).await;
        }
    }

    /// As many jobs as they can do, by the number of workers.
    async fn sweep_workers(&mut self) {
        let counts: &[usize] = self.options.pick(&[1, 2, 4], &[2]);
        for what in [ECDSA, EDDSA, FLOOR_ECDSA, FLOOR_EDDSA] {
            for workers in counts {
                let count = self.worth(what, self.options.pick(8.0, 3.0));
                self.closed("workers", what, *workers, IN_FLIGHT, count).await;
            }
        }
    }

    /// The same, by the jobs under way at once.
    async fn sweep_in_flight(&mut self) {
        let counts: &[usize] = self.options.pick(&[2, 4, 8, 16, 32, 128], &[8]);
        for what in [ECDSA, EDDSA] {
            for in_flight in counts {
                let count = self.worth(what, self.options.pick(5.0, 2.0));
                self.closed("in-flight", what, WORKERS, *in_flight, count).await;
            }
        }
    }

    /// Latency against load, at parts of the saturated rate.
    async fn sweep_rate(&mut self) {
        let parts: &[f64] = self.options.pick(&[0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0], &[0.25, 0.7]);
        for what in [ECDSA, EDDSA, FLOOR_ECDSA] {
            self.site.workers(what, WORKERS);
            let saturated = self.rate(what);
            for part in parts {
                let rate = saturated * part;
                let count = (rate * self.options.pick(8.0, 3.0)) as usize;
                let jobs = plan(&self.site, count, |site, index| site.job(what, index, 0));
                let before = Usage::now(&self.site);
                let run = self.generator(what).open(jobs, rate).await;
                let more = json!({ "offered": rate, "ofSaturated": part, "workers": WORKERS });
                self.report.add(record("open", what, &run, more, before.until(&self.site, count)));
            }
            self.forget(what).await;
        }
    }

    /// One key that gets more than it can do, and what the other keys notice of it.
    async fn hot_key(&mut self) {
        self.site.workers(ECDSA, WORKERS);
        let shares: &[usize] = self.options.pick(&[0, 25, 50, 100], &[100]);
        for share in shares {
            let count = self.worth(ECDSA, self.options.pick(5.0, 2.0)) / if *share == 100 { 2 } else { 1 };
            let hot = |index: usize| index * share / 100 != (index + 1) * share / 100;
            let jobs =
                plan(&self.site, count, |site, index| site.job(ECDSA, if hot(index) { 0 } else { 1 + index }, 0));
            let before = Usage::now(&self.site);
            let run = self.real.closed(jobs, IN_FLIGHT).await;
            let more = json!({ "hotShare": *share as f64 / 100.0, "inFlight": IN_FLIGHT, "workers": WORKERS });
            self.report.add(record("hot-share", ECDSA, &run, more, before.until(&self.site, count)));
        }

        // In turn, so that what the server or the disk does now and then meets both.
        for round in 1..=self.options.pick(3, 1) {
            self.beside_hot_key(round).await;
        }
    }

    /// The other keys alone, then beside a flood of the hot key, at the same rate.
    async fn beside_hot_key(&mut self, round: usize) {
        let seconds = self.options.pick(12.0, 4.0);
        let rate = self.rate(ECDSA) * BACKGROUND;
        let count = (rate * seconds) as usize;
        let others = self.ecdsa_but_first();
        let background = |site: &Site, index: usize| site.job(ECDSA, 1 + index % others, 0);
        let more = |flood: usize| json!({ "offered": rate, "flood": flood, "round": round, "workers": WORKERS });
        let jobs = plan(&self.site, count, background);
        let before = Usage::now(&self.site);
        let alone = self.real.open(jobs, rate).await;
        self.report.add(record("hot", ECDSA, &alone, more(0), before.until(&self.site, count)));

        let jobs = plan(&self.site, count, background);
        let hot = plan(&self.site, (self.rate(ECDSA) * seconds) as usize + FLOOD, |site, _| site.job(ECDSA, 0, 0));
        let before = Usage::now(&self.site);
        let (stop, stopped) = oneshot::channel();
        let flood = tokio::spawn(self.real.clone().flood(hot, FLOOD, stopped));
        let beside = self.real.open(jobs, rate).await;
        drop(stop);
        let hot = flood.await.unwrap();
        let usage = before.until(&self.site, count + hot.done[0].len());
        self.report.add(record("hot", ECDSA, &beside, more(FLOOD), usage));
        let more = json!({ "flood": FLOOD, "round": round, "workers": WORKERS });
        self.report.add(record("hot-key", ECDSA, &hot, more, Value::Null));
        let client = self.site.service.nats.connect().await;
        crate::deployment::wait_until_empty(&async_nats::jetstream::new(client)).await;
    }

    /// One key: batches of several sizes, beside its single jobs.
    async fn batch(&mut self) {
        self.site.workers(ECDSA, WORKERS);
        let sizes: &[usize] = self.options.pick(&[0, 8, 32, 64, 128], &[0, 64]);
        for curve in [Curve::Secp256k1, Curve::Ed25519] {
            let what = What::Real(curve);
            for items in sizes {
                let signatures = self.rate(what) * self.options.pick(8.0, 3.0);
                let count = ((signatures / 1.max(*items) as f64) as usize).max(20);
                // Without a size: jobs that are no batches.
                let jobs = plan(&self.site, count, |site, _| match items {
                    0 => site.job(what, 0, 0),
                    items => site.batch(curve, *items),
                });
                let in_flight = if *items == 0 { IN_FLIGHT } else { 4 };
                let before = Usage::now(&self.site);
                let run = self.real.closed(jobs, in_flight).await;
                let signatures = 1.max(*items) as f64 * run.rate(0);
                let more = json!({
                    "batch": items, "itemRate": report::rounded(signatures), "inFlight": in_flight, "workers": WORKERS,
                });
                let usage = before.until(&self.site, count * 1.max(*items));
                self.report.add(record("batch", what, &run, more, usage));
            }
        }
    }

    /// Many jobs, and what the workers' memory does meanwhile.
    async fn memory(&mut self) {
        self.site.workers(ECDSA, WORKERS);
        let (count, parts) = (self.options.jobs, 20);
        let mut samples = Vec::new();
        let (before, started) = (Usage::now(&self.site), Instant::now());
        for part in 0..parts {
            let share = count * (part + 1) / parts - count * part / parts;
            let mut left = share;
            // Not all made at once: the harness's own memory has bounds too.
            while left > 0 {
                let now = left.min(4_000);
                left -= now;
                let jobs = plan(&self.site, now, |site, index| {
                    site.job(if index % 2 == 0 { ECDSA } else { EDDSA }, index / 2, 0)
                });
                let run = self.real.closed(jobs, IN_FLIGHT).await;
                assert!(run.errors.is_empty(), "{:?}", run.errors);
            }
            samples.push(json!({ "jobs": count * (part + 1) / parts, "kib": self.site.worker_memory() }));
            if part % 5 == 4 {
                println!(
                    "  {} of {count} jobs, workers' memory {:?} KiB",
                    count * (part + 1) / parts,
                    self.site.worker_memory()
                );
            }
        }
        self.report.add(json!({
            "series": "memory", "what": "both curves", "workers": WORKERS, "inFlight": IN_FLIGHT, "jobs": count,
            "seconds": started.elapsed().as_secs_f64(), "samples": samples, "machine": before.until(&self.site, count),
        }));
    }

    /// A closed loop; its rate is remembered.
    async fn closed(&mut self, series: &str, what: What, workers: usize, in_flight: usize, count: usize) {
        self.site.workers(what, workers);
        let jobs = plan(&self.site, count, |site, index| site.job(what, index, 0));
        let before = Usage::now(&self.site);
        let run = self.generator(what).closed(jobs, in_flight).await;
        let more = json!({ "workers": workers, "inFlight": in_flight });
        if (workers, in_flight) == (WORKERS, IN_FLIGHT) {
            self.reached(what, run.rate(0));
        }
        self.report.add(record(series, what, &run, more, before.until(&self.site, count)));
        self.forget(what).await;
    }

    /// Nothing that is left of the floor's jobs is in the way of what comes after.
    async fn forget(&self, what: What) {
        if let What::Floor(_) = what {
            floor::forget(self.site.service.nats.connect().await).await;
        }
    }

    fn ecdsa_but_first(&self) -> usize {
        self.site.keys(Curve::Secp256k1).len() - 1
    }

    fn generator(&self, what: What) -> &Generator {
        match what {
            What::Real(_) => &self.real,
            What::Floor(_) => &self.floor,
        }
    }

    fn reached(&mut self, what: What, rate: f64) {
        self.reached.retain(|(other, _)| *other != what);
        self.reached.push((what, rate));
    }

    fn rate(&self, what: What) -> f64 {
        self.reached.iter().find(|(other, _)| *other == what).map_or(100.0, |(_, rate)| *rate)
    }

    /// How many jobs last about so long.
    fn worth(&self, what: What, seconds: f64) -> usize {
        ((self.rate(what) * seconds) as usize).max(IN_FLIGHT * 2)
    }
}

/// CPU at the beginning of a series.
struct Usage(std::collections::BTreeMap<&'static str, f64>, Instant);

impl Usage {
    fn now(site: &site::Site) -> Self {
        Self(site.cpu(), Instant::now())
    }

    /// CPU of a job by process, and of what else ran on the machine.
    fn until(self, site: &site::Site, jobs: usize) -> Value {
        let (after, seconds) = (site.cpu(), self.1.elapsed().as_secs_f64());
        let used = |name: &str| (after.get(name).unwrap_or(&0.0) - self.0.get(name).unwrap_or(&0.0)).max(0.0);
        let ours: Vec<_> = ["nats-server", "node1", "node2", "workers", "load"].map(|name| (name, used(name))).to_vec();
        let all = used("all");
        let others = (all - ours.iter().map(|(_, seconds)| seconds).sum::<f64>()).max(0.0) / seconds;
        let each: serde_json::Map<_, _> = ours
            .into_iter()
            .map(|(name, used)| (name.to_owned(), report::rounded(used * 1_000.0 / jobs.max(1) as f64)))
            .collect();
        json!({ "cpuMsPerJob": each, "otherCores": report::rounded(others), "busyCores": report::rounded(all / seconds) })
    }
}

fn record(series: &str, what: What, run: &Run, more: Value, machine: Value) -> Value {
    let done: usize = run.done.iter().map(Vec::len).sum();
    let mut record = json!({
        "series": series, "what": what.to_string(), "jobs": done, "seconds": report::rounded(run.seconds),
        "rate": report::rounded(if run.done[0].len() > 1 { run.rate(0) } else { 0.0 }),
        "latencyMs": report::latency(&run.latency[0]), "refusals": run.refusals, "errors": run.errors,
        "machine": machine,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        record[name] = value.clone();
    }
    record
}
