//! Random interleavings of generation, recovery, refresh and signing of one key, on both curves, with real processes of which one is
//! killed at a step: every row of the crash table at the worker, every durable write at the nodes, and the nats-server while another
//! process stands at one. Afterwards everything is started again, and when all is quiet: exactly one share is live, both nodes agree on
//! it, it signs under the same public key; no other share signs; every job has exactly one result; nothing is lost.
//!
//! What is drawn for a seed is always the same; when exactly the processes get there is not. `make interleavings SEEDS=1000` runs
//! many, `SEED=17` one; `make test` a few.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

mod deployment;
mod interleaving;
mod support;

use futures::StreamExt;
use interleaving::family::{Family, Report};
use interleaving::plan::Plan;
use interleaving::world::{State, World};
use nkeys::KeyPair;
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use trefoil::node::store::{KeyState, StoppedStore};
use trefoil::wire::KeyId;

/// Services side by side, and interleavings at a time in each: their faults hit each other too.
const SERVICES: usize = 3;
const AT_ONCE: usize = 6;
/// Where what is found goes.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/interleavings");
/// Seeds of `make test`.
const FEW: u64 = 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
}

/// What all seeds came to.
#[derive(Default)]
struct Summary {
    done: u64,
    /// Without a fault that happened.
    quiet: u64,
    keys: u64,
    fired: BTreeMap<String, u64>,
    outcomes: BTreeMap<String, u64>,
    restarts: BTreeMap<String, u64>,
    failures: BTreeMap<u64, String>,
}

impl Summary {
    fn add(&mut self, plan: &Plan, report: &Report) {
        self.keys += u64::from(report.live.is_some());
        if report.fired {
            *self.fired.entry(plan.fault.to_string()).or_default() += 1;
        } else {
            self.quiet += 1;
        }
        for (outcome, count) in &report.outcomes {
            *self.outcomes.entry(outcome.clone()).or_default() += count;
        }
    }

    fn fail(&mut self, seed: u64, why: String) {
        eprintln!("seed {seed}: {why}");
        self.failures.entry(seed).or_insert(why);
    }
}

#[test]
fn whatever_fails_one_share_is_live_and_every_job_has_one_result() {
    let (first, count) = match (number("TREFOIL_SEED"), number("TREFOIL_SEEDS")) {
        (Some(seed), count) => (seed, count.unwrap_or(1)),
        (None, count) => (0, count.unwrap_or(FEW)),
    };
    let started = Instant::now();
    let seeds = Mutex::new((first..first + count).collect::<VecDeque<_>>());
    let summary = Arc::new(Mutex::new(Summary::default()));
    std::thread::scope(|scope| {
        for _ in 0..SERVICES.min(count as usize) {
            scope.spawn(|| service(&seeds, &summary, count));
        }
    });
    let summary = Arc::into_inner(summary).unwrap().into_inner().unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let written = json!({
        "seeds": count, "first": first, "interleavings": summary.done, "faultsFired": summary.done - summary.quiet, "keys": summary.keys,
        "fired": summary.fired, "jobs": summary.outcomes, "restarts": summary.restarts, "failures": summary.failures,
        "seconds": seconds,
    });
    std::fs::create_dir_all(FOLDER).unwrap();
    std::fs::write(Path::new(FOLDER).join("summary.json"), serde_json::to_vec_pretty(&written).unwrap()).unwrap();
    assert!(summary.failures.is_empty(), "{:#?}", summary.failures);
    assert_eq!(summary.done, count);
    // Otherwise this shows nothing.
    assert!(summary.keys * 10 >= count * 8, "only {} of {count} keys were made", summary.keys);
    if count >= FEW {
        // Some wait for a step that a job has only where another is late; of few, many may.
        let (happened, tenths) = (summary.done - summary.quiet, if count < 100 { 4 } else { 6 });
        assert!(happened * 10 >= count * tenths, "only {happened} faults happened");
        let fine = |op: &str| summary.outcomes.get(&format!("{op} ok")).copied().unwrap_or_default();
        assert!(fine("recover") + fine("refresh") > count / 2, "{:?}", summary.outcomes);
    }
}

/// Runs seeds in a service of its own until there are no more.
fn service(seeds: &Mutex<VecDeque<u64>>, summary: &Mutex<Summary>, count: u64) {
    let world = World::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (reports, total) = runtime.block_on(async {
        let (env, url, authoriser) = {
            let state = world.state();
            (state.service.client_env(), state.service.nats.url(), state.service.authoriser.seed().unwrap())
        };
        let config = trefoil::client::ClientConfig::read(trefoil::config::Settings::from_env(env)).unwrap();
        let backend = trefoil::client::Backend::connect(config).await.unwrap();
        let jetstream = async_nats::jetstream::new(async_nats::connect(url).await.unwrap());
        let authoriser = KeyPair::from_seed(&authoriser).unwrap();
        let next = futures::stream::iter(std::iter::from_fn(|| seeds.lock().unwrap().pop_front()));
        let (world, backend, jetstream, authoriser) = (&world, &backend, &jetstream, &authoriser);
        let outcomes = next.map(|seed| async move {
            let plan = Plan::new(seed);
            let outcome = Family::new(&plan, world, backend, jetstream, authoriser).run().await;
            let mut summary = summary.lock().unwrap();
            summary.done += 1;
            if summary.done.is_multiple_of(25) {
                eprintln!("{} of {count}", summary.done);
            }
            match outcome {
                Ok(report) => {
                    summary.add(&plan, &report);
                    Some((seed, report))
                }
                Err(why) => {
                    summary.fail(seed, format!("{why}\n{plan:?}"));
                    None
                }
            }
        });
        let outcomes: Vec<_> = outcomes.buffer_unordered(AT_ONCE).collect().await;
        let total = outcomes.len();
        (outcomes.into_iter().flatten().collect::<Vec<_>>(), total)
    });
    drop(runtime);
    let state = world.end();
    if reports.len() < total {
        keep_logs(&state);
    }
    for (name, count) in &state.restarts {
        *summary.lock().unwrap().restarts.entry(name.clone()).or_default() += count;
    }
    if let Err((seed, why)) = stores_agree(state, &reports) {
        summary.lock().unwrap().fail(seed, why);
    }
}

/// The logs of a service in which something did not hold, to be read.
fn keep_logs(state: &State) {
    let to = Path::new(FOLDER).join(format!("logs-{}", state.service.nats.port()));
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(state.service.folder.path()).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    std::fs::write(to.join("nats-server.log"), state.service.nats.log()).unwrap();
    eprintln!("the processes' logs are in {}", to.display());
}

/// What the stopped nodes hold is what they said, and every share of it would come back.
fn stores_agree(mut state: State, reports: &[(u64, Report)]) -> Result<(), (u64, String)> {
    let mut kept = Vec::new();
    for node in ["node1", "node2"] {
        assert!(state.service.running.remove(node).unwrap().terminate().success(), "{node} did not end well");
        let data = state.service.path(node);
        let mut command = support::command("trefoil");
        command.envs(state.service.node_env(node)).args(["node", "drill", "--json", "--data-dir"]).arg(&data);
        let drill = command.output().unwrap();
        if !drill.status.success() {
            return Err((
                u64::MAX,
                format!("{node} does not pass its drill: {}", String::from_utf8_lossy(&drill.stdout)),
            ));
        }
        let mut shares = BTreeMap::new();
        StoppedStore::open(&data)
            .unwrap()
            .for_each(|stored| {
                let name = (stored.attempt.key_id.0, stored.attempt.transcript);
                shares.insert(name, (stored.state, stored.held, stored.attempt));
            })
            .unwrap();
        kept.push(shares);
    }
    for (seed, report) in reports {
        let fail = |why: String| Err((*seed, why));
        for (node, shares) in kept.iter().enumerate() {
            let node = node + 1;
            let active = shares
                .iter()
                .filter(|((id, _), (state, ..))| *state == Some(KeyState::Active) && report.ids.contains(&KeyId(*id)));
            let active: Vec<_> = active.map(|((id, transcript), _)| (KeyId(*id), *transcript)).collect();
            if active != report.live.into_iter().collect::<Vec<_>>() {
                return fail(format!("node {node} holds {active:?} active, and {:?} is live", report.live));
            }
            for (id, transcript) in &report.dead {
                if shares.get(&(id.0, *transcript)).is_some_and(|(_, held, _)| *held) {
                    return fail(format!("node {node} still holds a replaced share of {id}"));
                }
            }
            if let Some((id, transcript)) = report.live {
                let mine = &shares[&(id.0, transcript)];
                if !mine.1 || mine.2.public_key != kept[0][&(id.0, transcript)].2.public_key {
                    return fail(format!("node {node} does not hold the live share of {id}"));
                }
            }
        }
    }
    Ok(())
}
