//! A worker process: connect, provision, serve until told to stop, drain.

use super::acting::Acting;
use super::company::Companies;
use super::sealing::{self, Sealing};
use super::snapshots::Snapshots;
use super::{Shared, api, pipeline, reconcile, watch as watching};
use crate::auth::TimePolicy;
use crate::channel::NodeChannel;
use crate::client::verify::NodeIdentities;
use crate::compute::Compute;
use crate::config::WorkerConfig;
use crate::connections::Connections;
use crate::jobs::consumer::{self, ConsumerSettings};
use crate::jobs::keyed_mutex::KeyedMutex;
use crate::jobs::lease::{Counters, Leases};
use crate::jobs::place::Limits;
use crate::jobs::streams::{self, StreamError, StreamSettings};
use crate::telemetry::calls::Calls;
use crate::telemetry::certificates;
use crate::telemetry::metrics::WorkerMetrics;
use crate::telemetry::server::{self, Status};
use crate::vault::{KdfPool, UnlockCache, Vault};
use crate::wire::{Lane, subject};
use anyhow::Context as _;
use async_nats::connection::State;
use async_nats::jetstream;
use prometheus::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use trefoil_protocol::Party;

/// How often queues and silent nodes are looked at where there are no snapshots.
const WATCH: Duration = Duration::from_secs(5);

/// What operators see of a worker.
struct WorkerStatus {
    metrics: Arc<WorkerMetrics>,
    client: async_nats::Client,
    /// The streams are there.
    provisioned: Arc<AtomicBool>,
    stop: watch::Receiver<bool>,
}

impl Status for WorkerStatus {
    fn registry(&self) -> &Registry {
        self.metrics.registry()
    }

    fn not_ready(&self) -> Option<&'static str> {
        if self.client.connection_state() != State::Connected {
            Some("not connected to NATS")
        } else if !self.provisioned.load(Ordering::Acquire) {
            Some("the streams are not there yet")
        } else {
            self.stop.borrow().then_some("draining")
        }
    }
}

/// Runs a worker until `stop` becomes true: then it pulls no more, finishes what it has in hand and returns. Meanwhile SIGHUP has it
/// take the sealing keys that its settings have by then.
///
/// # Errors
/// A configuration that cannot be used, or streams that break the service's promises.
pub async fn run(config: WorkerConfig, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    // Before anything else: unhandled, it would end the process.
    let hangups = signal(SignalKind::hangup())?;
    let worker_id = format!("worker-{}", nuid_like());
    let metrics = Arc::new(WorkerMetrics::new()?);
    metrics.show_zeros();
    let connections = Connections::open(&config.nats, &worker_id, &metrics.common).await;
    let connections = connections.context("cannot set up the NATS connections")?;
    let client = connections.main.clone();
    tokio::spawn(certificates::watch(config.nats.certificates(), metrics.common.clone()));
    let jetstream = config.nats.jetstream(client.clone());
    let provisioned = Arc::new(AtomicBool::new(false));
    if let Some(address) = config.metrics_listen {
        let status = WorkerStatus {
            metrics: metrics.clone(),
            client: client.clone(),
            provisioned: provisioned.clone(),
            stop: stop.clone(),
        };
        tokio::spawn(server::start(address, Arc::new(status)).await?);
    }
    if !provision(&jetstream, &config.streams, &mut stop).await? {
        return Ok(());
    }
    provisioned.store(true, Ordering::Release);
    let noise_key = Arc::new(config.noise_key);
    let sealing =
        Sealing::new(&config.sealing_keys, config.initiators.clone()).context("sealing_keys: not xkey seeds")?;
    let unlocked = (!config.unlock_cache.is_zero()).then(|| UnlockCache::new(config.unlock_cache)).transpose();
    let unlocked = unlocked.context("unlock_cache_seconds: 64 KiB of memory cannot be locked (see ulimit -l)")?;
    let acting = Acting::new(&config.node1.identities, &config.node2.identities);
    let acting = acting.context("node1_identity, node2_identity: none")?;
    let channel = |node, remote| {
        let calls = Arc::new(Calls::new(metrics.clone(), node));
        NodeChannel::measured(connections.clone(), node, noise_key.clone(), remote, Some(calls))
    };
    let leases = Leases::new(client.clone(), jetstream.clone(), &worker_id, config.lease);
    leases.count(Counters { takeovers: metrics.lease_takeovers.clone(), lost: metrics.lease_lost.clone() });
    let shared = Arc::new(Shared {
        node1: channel(Party::Node1, config.node1.noise),
        node2: channel(Party::Node2, config.node2.noise),
        nats: client.clone(),
        jetstream: jetstream.clone(),
        acting,
        nodes: NodeIdentities { node1: config.node1.identities, node2: config.node2.identities },
        sealing,
        unlocked,
        vault: Vault::new(KdfPool::new(config.kdf_memory_kib, config.crypto_threads))
            .measured(metrics.kdf_duration.clone()),
        keys: KeyedMutex::new(config.key_queue),
        leases,
        companies: Companies::new(),
        crypto: Compute::new(config.crypto_threads, usize::MAX),
        batch_items: config.batch_items,
        times: TimePolicy::default(),
        initiators: config.initiators,
        results_kept: config.streams.results_kept,
        worker_id: worker_id.clone(),
        metrics,
    });
    shared.metrics.slots.set(i64::try_from(config.concurrency).unwrap_or(i64::MAX));
    tokio::spawn(sealing::renew_bans(shared.sealing.bans.clone(), jetstream.clone()));
    tokio::spawn(sealing::reload(shared.clone(), hangups));
    let consumer = ConsumerSettings {
        queues: Lane::ALL.iter().map(|lane| (*lane, subject::stream_of(*lane).to_owned())).collect(),
        worker: worker_id.clone(),
        ack_wait: config.ack_wait,
        limits: Limits { slots: config.concurrency, bulk: config.bulk_concurrency, waiting: config.waiting },
        grace: config.drain,
    };
    tokio::spawn(reconcile::run(shared.clone(), config.reconcile, stop.clone()));
    let every = if config.metrics.is_zero() { WATCH } else { config.metrics };
    let snapshots = Arc::new(Snapshots::new(shared.clone(), config.metrics, stop.clone()));
    let telling = (!config.metrics.is_zero()).then(|| {
        let snapshots = snapshots.clone();
        tokio::spawn(async move { snapshots.run().await })
    });
    tokio::spawn(watching::run(shared.clone(), every, stop.clone()));
    if let Some(cache) = shared.unlocked.clone() {
        tokio::spawn(sweep(cache));
    }
    let questions = tokio::spawn(api::serve(shared.clone(), stop.clone()));
    tracing::info!(worker = %worker_id, sealing_key = %shared.sealing.current(), "ready");
    let abandoned = consumer::run(jetstream, consumer, stop, {
        let shared = shared.clone();
        move |delivery| pipeline::handle(shared.clone(), delivery)
    })
    .await;
    match tokio::time::timeout(Duration::from_secs(5), questions).await {
        Ok(Ok(Ok(()))) => {}
        ended => tracing::warn!(?ended, "the API service did not end well"),
    }
    if let Some(telling) = telling {
        telling.abort();
        snapshots.publish().await;
    }
    // So that nobody waits for keys that this worker held.
    let _ = tokio::time::timeout(Duration::from_secs(1), shared.leases.ended()).await;
    if let Some(cache) = &shared.unlocked {
        cache.clear();
    }
    // NATS may be away; what was not acknowledged is delivered again.
    if !matches!(tokio::time::timeout(Duration::from_secs(5), client.flush()).await, Ok(Ok(()))) {
        tracing::warn!("the last messages were not sent");
    }
    if abandoned > 0 {
        tracing::warn!(abandoned, "stopped with jobs in hand; they will be delivered again");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Makes or checks the streams, as soon as JetStream answers. False if told to stop before.
async fn provision(
    jetstream: &jetstream::Context,
    settings: &StreamSettings,
    stop: &mut watch::Receiver<bool>,
) -> anyhow::Result<bool> {
    loop {
        let tried = tokio::select! {
            tried = streams::provision(jetstream, settings) => tried,
            _ = stop.wait_for(|stop| *stop) => return Ok(false),
        };
        match tried {
            Ok(()) => return Ok(true),
            Err(error @ StreamError::Unsafe { .. }) => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "waiting for JetStream"),
        }
        if tokio::time::timeout(Duration::from_secs(1), stop.wait_for(|stop| *stop)).await.is_ok() {
            return Ok(false);
        }
    }
}

/// Data keys that were kept are overwritten when their time is over, not when somebody looks for them.
async fn sweep(cache: UnlockCache) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cache.sweep();
    }
}

/// A short random name for this process.
fn nuid_like() -> String {
    let mut bytes = [0; 6];
    rand_core::RngCore::fill_bytes(&mut rand_core::OsRng, &mut bytes);
    data_encoding::HEXLOWER.encode(&bytes)
}
