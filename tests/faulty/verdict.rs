//! What is counted when all is quiet: results in the stream, keys at both nodes, sessions as node 1 saw them, audit logs.

use super::book::{Counts, quantile};
use super::keys::{Family, Share};
use super::load::{Load, input};
use super::stage::State;
use super::witness::{self, Seen};
use crate::interleaving::plan::Dice;
use crate::support;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use futures::StreamExt;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use trefoil::jobs::consumer::CONSUMER;
use trefoil::node::audit::{Entries, Head};
use trefoil::node::store::{KeyState, StoppedStore};
use trefoil::wire::subject::{BULK_STREAM, JOBS_STREAM, RESULTS_STREAM};
use trefoil::wire::{JobId, JobResult, KeyId, Outcome};

/// The queues of both lanes.
const QUEUES: &[&str] = &[JOBS_STREAM, BULK_STREAM];
/// How long anything may take that nothing keeps from happening.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the streams hold.
#[derive(Default)]
pub struct Streams {
    /// Jobs with more than one stored result, with results other than what their backend has, and results of no job.
    pub duplicates: Vec<String>,
    pub refusals: Vec<String>,
    pub results: u64,
    /// Jobs that are still in the queue.
    pub waiting: u64,
    /// Acknowledged jobs, with their results, that are in the queue again and never delivered.
    pub came_back: Vec<String>,
    /// Which those are that wait, and what their consumer has delivered.
    pub stuck: Vec<String>,
    /// Jobs that were acknowledged and have neither a result nor a place in the queue.
    pub lost: Vec<String>,
}

/// What both nodes hold.
#[derive(Default)]
pub struct Stores {
    pub keys: usize,
    pub two_epochs: Vec<String>,
    pub no_epoch: Vec<String>,
    /// Prepared shares that nobody has decided about.
    pub undecided: usize,
    pub violations: Vec<String>,
}

/// Until nothing is in the queues that their consumer delivers, or has delivered and hears of no more; what is left then is counted.
pub async fn quiet(jetstream: &Context) {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let mut over = true;
        for queue in QUEUES {
            over &= is_over(jetstream, queue).await.unwrap_or_default();
        }
        if over {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn is_over(jetstream: &Context, queue: &str) -> Option<bool> {
    let stream = jetstream.get_stream(queue).await.ok()?;
    let consumer = stream.consumer_info(CONSUMER).await.ok()?;
    Some(stream.cached_info().state.messages == 0 || consumer.num_pending == 0 && consumer.num_ack_pending == 0)
}

/// Every live share signs and is what both nodes say; no share that it replaced signs.
pub async fn try_keys(load: &Arc<Load>) {
    let each = load.keys.all().into_iter().enumerate().map(|(number, family)| async move {
        let mut dice = Dice::new(number as u64);
        let live = family.live.read().await;
        load.sign_with(load.backend.jobs(), &live, &input(&mut dice, family.curve), "sign at the end", false).await;
        if let Err(error) = load.backend.committed(&live.new.key, PATIENCE).await {
            load.book.violation(format!("key {} is not committed: {error}", live.new.key.key_id));
        }
        let replaced = family.replaced.lock().unwrap().clone();
        for old in &replaced {
            load.sign_with(&load.bulk, old, &input(&mut dice, family.curve), "sign with an old share", true).await;
        }
    });
    futures::stream::iter(each).buffer_unordered(16).collect::<Vec<()>>().await;
}

/// Reads the whole stream of results.
pub async fn read_streams(jetstream: &Context, load: &Load) -> Streams {
    let mut streams = Streams::default();
    let jobs = load.book.results();
    let mut stored: HashMap<JobId, JobResult> = HashMap::new();
    for message in all(jetstream, RESULTS_STREAM).await {
        let Ok(result) = serde_json::from_slice::<JobResult>(&message.1) else {
            streams.duplicates.push(format!("{} cannot be read", message.0));
            continue;
        };
        let id = result.job_id.clone();
        if message.0.ends_with(".refused") {
            streams.refusals.push(format!("{id}: {:?}", result.outcome));
            continue;
        }
        streams.results += 1;
        match jobs.get(&id) {
            None => streams.duplicates.push(format!("{id} has a result and was never published")),
            Some(Some(seen)) if *seen != result => {
                streams.duplicates.push(format!("{id}: its backend has another result than the stream"));
            }
            Some(_) => {}
        }
        if let Some(other) = stored.insert(id.clone(), result) {
            let same = stored.get(&id) == Some(&other);
            streams
                .duplicates
                .push(format!("{id} has two stored results, {}", if same { "the same" } else { "which differ" }));
        }
    }
    let mut waiting = BTreeSet::new();
    for queue in QUEUES {
        let left = all(jetstream, queue).await;
        let over = is_over(jetstream, queue).await.unwrap_or_default();
        if !left.is_empty() {
            let stream = jetstream.get_stream(*queue).await.unwrap();
            let consumer = stream.consumer_info(CONSUMER).await.unwrap();
            streams.stuck.push(format!(
                "{queue}: delivered {:?}, acknowledged up to {:?}, {} await acknowledgement, {} delivery",
                consumer.delivered, consumer.ack_floor, consumer.num_ack_pending, consumer.num_pending
            ));
        }
        for (subject, body, sequence) in left {
            let body: Option<Value> = serde_json::from_slice(&body).ok();
            let id = body.and_then(|body| Some(body.get("jobId")?.as_str()?.to_owned()));
            let is_done = id.as_ref().is_some_and(|id| stored.keys().any(|stored| stored.as_str() == id));
            let what = format!("number {sequence} on {subject}, job {}", id.as_deref().unwrap_or("unknown"));
            if over && is_done {
                streams.came_back.push(what);
            } else {
                streams.stuck.push(what);
                waiting.extend(id);
            }
        }
    }
    streams.waiting = waiting.len() as u64;
    let gone = jobs.keys().filter(|id| !stored.contains_key(id) && !waiting.contains(id.as_str()));
    streams.lost = gone.filter(|id| load.book.has_acknowledged(id)).map(ToString::to_string).collect();
    streams
}

/// Every message of a stream: subject and body, and of a queue its number.
async fn all(jetstream: &Context, name: &str) -> Vec<(String, Vec<u8>, u64)> {
    let stream = jetstream.get_stream(name).await.unwrap();
    let state = stream.cached_info().state.clone();
    if QUEUES.contains(&name) {
        // A work queue has one consumer, and it is not ours.
        let mut messages = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence.min(state.first_sequence + 10_000) {
            if state.messages > 0
                && let Ok(message) = stream.get_raw_message(sequence).await
            {
                messages.push((message.subject.to_string(), message.payload.to_vec(), sequence));
            }
        }
        return messages;
    }
    let config = OrderedConfig { deliver_policy: DeliverPolicy::All, ..OrderedConfig::default() };
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut found = Vec::new();
    while (found.len() as u64) < state.messages {
        let next = tokio::time::timeout(PATIENCE, messages.next()).await.expect("the results can be read");
        let message = next.unwrap().unwrap();
        found.push((message.subject.to_string(), message.payload.to_vec(), 0));
    }
    found
}

/// Stops both nodes, in good order, and reads their stores: each key has one live epoch, its backend's, and no share that it replaced.
pub async fn read_stores(state: &mut State, load: &Load) -> Stores {
    let mut stores = Stores::default();
    let mut nodes = Vec::new();
    for node in ["node1", "node2"] {
        if !state.service.running.remove(node).unwrap().terminate().success() {
            stores.violations.push(format!("{node} did not end well"));
        }
        let data = state.service.path(node);
        let mut command = support::command("trefoil");
        command.envs(state.service.node_env(node)).args(["node", "drill", "--json", "--data-dir"]).arg(&data);
        let drill = command.output().unwrap();
        if !drill.status.success() {
            let said = String::from_utf8_lossy(&drill.stdout).into_owned();
            stores.violations.push(format!("{node} does not pass its drill: {said}"));
        }
        let mut shares = BTreeMap::new();
        let opened = StoppedStore::open(&data).unwrap();
        opened
            .for_each(|stored| {
                stores.undecided += usize::from(stored.since.is_some());
                shares.insert((stored.attempt.key_id.0, stored.attempt.transcript), (stored.state, stored.held));
            })
            .unwrap();
        nodes.push((node, shares));
    }
    for family in load.keys.all() {
        stores.keys += 1;
        let (live, replaced) = (family.live.read().await, family.replaced.lock().unwrap().clone());
        for (node, shares) in &nodes {
            stores.check(node, shares, &live, &replaced);
        }
    }
    let known: BTreeSet<[u8; 32]> = names(&load.keys.all()).await;
    for (node, shares) in &nodes {
        for ((id, transcript), (state, _)) in shares {
            if *state == Some(KeyState::Active) && !known.contains(transcript) {
                stores.violations.push(format!("{node} has a live key {} that nobody has a share of", KeyId(*id)));
            }
        }
    }
    stores
}

async fn names(families: &[Arc<Family>]) -> BTreeSet<[u8; 32]> {
    let mut names = BTreeSet::new();
    for family in families {
        names.insert(family.live.read().await.new.key.transcript);
    }
    names
}

type Held = BTreeMap<([u8; 16], [u8; 32]), (Option<KeyState>, bool)>;

impl Stores {
    fn check(&mut self, node: &str, shares: &Held, live: &Share, replaced: &[Share]) {
        let ids: BTreeSet<_> = replaced.iter().chain([live]).map(|share| share.new.key.key_id.0).collect();
        let active = shares.iter().filter(|((id, _), (state, _))| ids.contains(id) && *state == Some(KeyState::Active));
        let active: Vec<_> = active.map(|((id, transcript), (_, held))| (*id, *transcript, *held)).collect();
        let id = live.new.key.key_id;
        match active.as_slice() {
            [] => self.no_epoch.push(format!("{id} at {node}")),
            [(active, transcript, held)] => {
                if (*active, *transcript) != (id.0, live.new.key.transcript) || !held {
                    self.violations.push(format!("{node} has another share of {id} alive than its backend"));
                }
            }
            _ => self.two_epochs.push(format!("{id} at {node}")),
        }
        for old in replaced {
            let name = (old.new.key.key_id.0, old.new.key.transcript);
            if shares.get(&name).is_some_and(|(_, held)| *held) {
                self.violations.push(format!("{node} still holds a share of {} that was replaced", KeyId(name.0)));
            }
        }
    }
}

/// What node 1 saw of its sessions; it knows jobs by their digests.
pub fn sessions(state: &State, load: &Load) -> Seen {
    let mut seen = witness::read(&state.service.path("node1.witness"));
    if !seen.overlaps.is_empty() {
        for (id, result) in load.book.results() {
            let Some(digest) = result.map(|result| result.job_digest.to_string()) else { continue };
            seen.overlaps.iter_mut().for_each(|overlap| *overlap = overlap.replace(&digest, id.as_str()));
        }
    }
    seen
}

/// Both audit logs are whole after all those ends, and node 1's has an entry for each job that has signatures.
pub fn audit(state: &State, load: &Load) -> Vec<String> {
    let mut violations = Vec::new();
    let mut released = BTreeSet::new();
    for node in ["node1", "node2"] {
        let data = state.service.path(node);
        let anchored: Option<Head> = StoppedStore::open(&data).unwrap().anchored().unwrap();
        for entry in Entries::open(&data.join(trefoil::node::AUDIT_LOG), anchored).unwrap() {
            match entry {
                Ok((_, event)) if event.op == "sign" && event.decision == "released" => {
                    released.extend(event.job_id);
                }
                Ok(_) => {}
                Err(error) => violations.push(format!("the audit log of {node}: {error}")),
            }
        }
    }
    for (id, result) in load.book.results() {
        let signed = result.is_some_and(|result| {
            matches!(&result.outcome, Outcome::Ok { signature, signatures, .. } if signature.is_some() || signatures.is_some())
        });
        if signed && !released.contains(id.as_str()) {
            violations.push(format!("job {id} has a signature that is not in node 1's audit log"));
        }
    }
    violations
}

/// Sorted milliseconds, in short.
fn times(took: &[u64]) -> Value {
    let at = |thousandths| quantile(took, thousandths);
    json!({"p50": at(500), "p90": at(900), "p99": at(990), "max": at(1_000)})
}

/// Everything that was found, for people and programs.
pub struct Found {
    pub counts: Counts,
    pub streams: Streams,
    pub stores: Stores,
    pub sessions: Seen,
    pub audit: Vec<String>,
    pub others: Vec<String>,
}

impl Found {
    /// Each thing that must not be, in a sentence.
    pub fn violations(&self) -> Vec<String> {
        let Self { counts, streams, stores, sessions, audit, others } = self;
        let name = |what: &str, list: &[String]| {
            let what = what.to_owned();
            list.iter().map(move |one| format!("{what}: {one}")).collect::<Vec<_>>()
        };
        let mut all = name("no result", &counts.missing);
        all.extend(name("lost though acknowledged", &streams.lost));
        all.extend(name("not one result", &streams.duplicates));
        all.extend(name("refused", &streams.refusals));
        all.extend(name("bad signature", &counts.bad_signatures));
        all.extend(name("overlapping sessions", &sessions.overlaps));
        all.extend(name("two live epochs", &stores.two_epochs));
        all.extend(name("no live epoch", &stores.no_epoch));
        all.extend(name("audit", audit));
        for list in [&counts.violations, &stores.violations, others] {
            all.extend(list.iter().cloned());
        }
        if streams.waiting > 0 {
            all.push(format!("{} jobs stay in the queue: {}", streams.waiting, streams.stuck.join("; ")));
        }
        if streams.results != counts.jobs {
            all.push(format!("{} results are stored for {} jobs", streams.results, counts.jobs));
        }
        // Otherwise the witness slept.
        if sessions.released == 0 || sessions.signing == 0 {
            all.push("node 1 witnessed no sessions".to_owned());
        }
        all
    }

    pub fn json(&self) -> Value {
        let Self { counts, streams, stores, sessions, .. } = self;
        let slowest: Vec<_> = counts.slowest.iter().map(|(took, job)| json!({"job": job, "ms": took})).collect();
        json!({
            "jobs": {
                "published": counts.jobs, "acknowledged": counts.acknowledged, "results": streams.results,
                "missing": counts.missing.len(), "lostAcknowledged": streams.lost.len(), "duplicates": streams.duplicates.len(),
                "refusals": streams.refusals.len(), "outcomes": counts.outcomes, "errors": counts.errors,
                "poisonedByFaults": counts.poisoned, "stillQueued": streams.waiting, "cameBackAcknowledged": streams.came_back,
            },
            "publications": {
                "sent": counts.publications, "withoutAcknowledgement": counts.lost_acknowledgements,
                "refusedAtCap": counts.refused_at_cap, "streamUnavailable": counts.unavailable, "forNothing": counts.republished,
            },
            "signatures": {"verified": counts.signatures, "bad": counts.bad_signatures.len()},
            "sessions": {
                "begun": sessions.sessions, "signing": sessions.signing, "keys": sessions.keys, "released": sessions.released,
                "overlapping": sessions.overlaps.len(), "node1Starts": sessions.starts,
            },
            "keys": {
                "made": stores.keys, "twoLiveEpochs": stores.two_epochs.len(), "noLiveEpoch": stores.no_epoch.len(),
                "undecidedAttempts": stores.undecided,
            },
            "publishToResultMs": times(&counts.took),
            "acknowledgedToResultMs": times(&counts.took_acknowledged),
            "slowest": slowest,
        })
    }
}
