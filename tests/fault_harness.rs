//! A steady load of jobs while workers, nodes and the nats-server are killed, stopped, restarted and cut off, at any time and at every named
//! step; then everything is counted: each job has one result, no two sessions of a key overlapped at node 1, every signature verifies, every
//! key has one live share. docs/faults.md says what is counted and how.
//!
//! `make faults` draws the faults from a seed, which it prints and takes; `make test` runs a few that are always the same.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

mod deployment;
mod faulty;
mod interleaving;
mod support;

use faulty::load::Load;
use faulty::plan::{self, Fault};
use faulty::stage::{Happened, Stage, State};
use faulty::verdict::{self, Found};
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use trefoil::client::{Backend, ClientConfig, JobBuilder};
use trefoil::config::Settings;
use trefoil::wire::Lane;

/// Where what is found goes.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/faults");

/// What a run is made of.
struct Run {
    seed: u64,
    jobs: u64,
    /// Keys that are made before the faults begin.
    keys: u64,
    workers: u64,
    /// Between two jobs.
    pace: Duration,
    plan: Vec<Fault>,
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect("a number"))
}

impl Run {
    /// `make faults`, if its variables are there; else the short one.
    fn asked() -> Self {
        let Some(jobs) = setting("TREFOIL_HARNESS_JOBS") else {
            let (jobs, pace) = (150, Duration::from_millis(60));
            return Self { seed: 1, jobs, keys: 8, workers: 2, pace, plan: plan::few(jobs) };
        };
        let faults = setting("TREFOIL_HARNESS_FAULTS").unwrap_or(100);
        let workers = setting("TREFOIL_HARNESS_WORKERS").unwrap_or(3).max(1);
        let seed = setting("TREFOIL_HARNESS_SEED")
            .unwrap_or_else(|| u64::from(std::process::id()) << 20 | u64::from(now() as u16));
        let plan = plan::random(seed, jobs, faults, workers);
        Self { seed, jobs, keys: (jobs / 50).clamp(4, 40), workers, pace: Duration::from_millis(50), plan }
    }
}

fn now() -> u64 {
    trefoil::clock::now_ms()
}

#[test]
fn whatever_fails_every_job_has_one_result_and_every_key_one_share() {
    let run = Run::asked();
    let planned = run.plan.len();
    eprintln!("seed {}: {} jobs, {planned} faults, {} workers", run.seed, run.jobs, run.workers);
    let _ = std::fs::remove_dir_all(FOLDER);
    std::fs::create_dir_all(FOLDER).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let started = Instant::now();
    let (found, state) = runtime.block_on(watched(&run));
    let violations = found.violations();
    let mut summary = found.json();
    let faults = faults(&state.happened, planned);
    let settings = json!({
        "seed": run.seed, "jobs": run.jobs, "faults": planned, "workers": run.workers, "paceMs": run.pace.as_millis() as u64,
    });
    for (name, value) in [
        ("settings", settings),
        ("faults", faults),
        ("gaveUpStarting", json!(state.gave_up)),
        ("seconds", json!(started.elapsed().as_secs_f64())),
        ("violations", json!(violations)),
    ] {
        summary[name] = value;
    }
    let text = serde_json::to_string_pretty(&summary).unwrap();
    std::fs::write(Path::new(FOLDER).join("summary.json"), &text).unwrap();
    std::fs::write(Path::new(FOLDER).join("timeline.txt"), state.timeline.join("\n")).unwrap();
    eprintln!("{text}");
    keep(&state);
    if !violations.is_empty() {
        panic!("seed {}: {} violations:\n{}", run.seed, violations.len(), violations.join("\n"));
    }
}

/// Runs it, with a line about it now and then.
async fn watched(run: &Run) -> (Found, State) {
    let (stage, url) = Stage::start(run.workers, run.plan.clone()).await;
    let (env, direct, authoriser, mut bulk) = {
        let state = stage.state();
        let mut env = state.service.client_env();
        env.insert("TREFOIL_NATS_URL".to_owned(), url.clone());
        let initiator = KeyPair::from_seed(&state.service.initiator.seed().unwrap()).unwrap();
        let bulk = JobBuilder::new(initiator, state.service.sealing.public_key().parse().unwrap()).unwrap();
        (env, state.service.nats.url(), state.service.authoriser.seed().unwrap(), bulk)
    };
    bulk.set_lane(Lane::Bulk);
    let backend = Backend::connect(ClientConfig::read(Settings::from_env(env)).unwrap()).await.unwrap();
    let options = async_nats::ConnectOptions::new().ping_interval(Duration::from_secs(5));
    let mut published = async_nats::jetstream::new(options.connect(url).await.unwrap());
    published.set_timeout(Duration::from_secs(1));
    let load = Load::new(backend, bulk, published, KeyPair::from_seed(&authoriser).unwrap(), run.seed);
    let started = Instant::now();
    let say = |what: &str| {
        let (results, open) = load.book.so_far();
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{seconds:6.1} s: {} jobs begun, {results} results, {open} open; {what}", stage.begun());
    };
    let working = async {
        load.run(&stage, run.keys, run.jobs, run.pace).await;
        let left = stage.state().call_off();
        while stage.is_busy() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        left
    };
    let watching = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let what = stage.state().now();
            say(&what);
        }
    };
    let left = tokio::select! {
        left = working => left,
        () = watching => 0,
    };
    say("the load is over; trying every key");
    let jetstream = async_nats::jetstream::new(async_nats::connect(direct).await.unwrap());
    verdict::try_keys(&load).await;
    say("waiting until the queue is empty");
    verdict::quiet(&jetstream).await;
    say("counting");
    let streams = verdict::read_streams(&jetstream, &load).await;
    let mut state = stage.end();
    let stores = verdict::read_stores(&mut state, &load).await;
    let mut others = std::mem::take(&mut state.violations);
    if left > 0 {
        others.push(format!("{left} faults did not happen"));
    }
    let (sessions, audit) = (verdict::sessions(&state, &load), verdict::audit(&state, &load));
    let counts = load.book.counts(&state.happened);
    (Found { counts, streams, stores, sessions, audit, others }, state)
}

/// Which faults happened to whom.
fn faults(happened: &[Happened], planned: usize) -> Value {
    let mut by_kind: BTreeMap<String, BTreeMap<&str, u64>> = BTreeMap::new();
    let mut steps: BTreeMap<String, u64> = BTreeMap::new();
    for Happened { fault, .. } in happened {
        *by_kind
            .entry(format!("{:?}", fault.kind).to_lowercase())
            .or_default()
            .entry(fault.target.group())
            .or_default() += 1;
        if let Some(step) = fault.step {
            *steps.entry(format!("{}/{}", step.at.name(), step.name)).or_default() += 1;
        }
    }
    let lasted = happened.iter().map(|one| one.ended.duration_since(one.began).as_millis() as u64);
    json!({
        "planned": planned, "happened": happened.len(), "byKindAndTarget": by_kind, "atSteps": steps,
        "longestMs": lasted.max(),
    })
}

/// The processes' logs, to be read, and the audit logs.
fn keep(state: &State) {
    let to = Path::new(FOLDER).join("logs");
    std::fs::create_dir_all(&to).unwrap();
    for folder in [state.service.folder.path(), state.service.nats.folder()] {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log" || extension == "witness") {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
    for node in ["node1", "node2"] {
        let log = state.service.path(node).join(trefoil::node::AUDIT_LOG);
        std::fs::copy(log, to.join(format!("{node}.audit"))).unwrap();
    }
    eprintln!("the processes' logs are in {}", to.display());
}
