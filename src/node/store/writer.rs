//! One thread does all writes: it takes what is waiting, up to a bound, and under load what comes soon, applies it in one
//! transaction, commits, and only then lets each caller go on.

use super::live::LiveKeys;
use super::slots::SlotFile;
use super::{StoreError, Written, rows};
use crate::node::audit::Head;
use crate::node::gather::Underway;
use crate::telemetry::metrics::NodeMetrics;
use redb::{Database, WriteTransaction};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::oneshot;

/// Writes of one commit.
const MAX_BATCH: usize = 256;
/// Writes that may wait.
const QUEUE: usize = 4_096;

/// What a write may use: the open transaction and the slot file.
pub struct Batch<'a> {
    pub tx: &'a WriteTransaction,
    pub slots: &'a mut SlotFile,
    /// Slots to overwrite once the batch is committed: earlier, a crash would leave records without their keys.
    pub wipe: Vec<u32>,
    /// What it changes about the number of live keys.
    pub live: LiveKeys,
}

type Finish = Box<dyn FnOnce(&Result<(), StoreError>) + Send>;
/// Runs a write; the flag says whether the whole batch must be abandoned.
type Apply = Box<dyn FnOnce(&mut Batch<'_>) -> (Finish, bool) + Send>;

/// Hands writes to the thread. When the last one is dropped, the thread finishes what is waiting and ends.
pub struct Writer {
    queue: Option<SyncSender<Apply>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. `head` is anchored with every commit; writes come from calls that `underway` counts.
    pub fn start(
        db: Arc<Database>,
        slots: SlotFile,
        head: Arc<Mutex<Option<Head>>>,
        underway: Underway,
        metrics: Arc<NodeMetrics>,
    ) -> Result<Self, StoreError> {
        let (queue, waiting) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(&db, slots, &head, &underway, &metrics, &waiting))
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues a write. It must check everything before it writes anything: a refused write shares its transaction with
    /// others.
    pub fn submit<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut Batch<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Written<T> {
        let (sender, receiver) = oneshot::channel();
        let apply: Apply = Box::new(move |batch| {
            let result = write(batch);
            let broken = result.as_ref().is_err_and(|error| !error.is_refusal());
            let finish: Finish = Box::new(move |committed| {
                // A caller that went away no longer wants to know.
                let _ = sender.send(result.and_then(|value| committed.clone().map(|()| value)));
            });
            (finish, broken)
        });
        let full = || StoreError::Refused(crate::wire::ErrorCode::Overloaded);
        let queued = self.queue.as_ref().is_some_and(|queue| queue.try_send(apply).is_ok());
        Box::pin(async move {
            if !queued {
                return Err(full());
            }
            receiver.await.unwrap_or_else(|_| Err(StoreError::Failed("the store has stopped".into())))
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    db: &Database,
    mut slots: SlotFile,
    head: &Mutex<Option<Head>>,
    underway: &Underway,
    metrics: &NodeMetrics,
    waiting: &Receiver<Apply>,
) {
    while let Ok(first) = waiting.recv() {
        let batch = underway.gather(first, waiting, MAX_BATCH);
        let head = *head.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        let (finishes, outcome) = commit(db, &mut slots, head, batch);
        match &outcome {
            Ok(live) => {
                metrics.store_commit.observe(started.elapsed().as_secs_f64());
                live.show(metrics);
            }
            Err(error) => {
                metrics.store_failures.inc();
                tracing::error!(%error, "a batch of writes failed");
            }
        }
        let outcome = outcome.map(|_| ());
        for finish in finishes {
            finish(&outcome);
        }
    }
}

/// First the slot file, then the database: a crash between them leaves keys without shares, never shares without keys.
fn commit_both(tx: WriteTransaction, slots: &mut SlotFile, wipes: bool) -> Result<(), StoreError> {
    if !wipes && !slots.is_dirty() {
        return Ok(tx.commit()?);
    }
    let generation = slots.announce()?;
    rows::put_generation(&tx, generation)?;
    slots.sync()?;
    tx.commit()?;
    slots.committed(generation);
    Ok(())
}

fn commit(
    db: &Database,
    slots: &mut SlotFile,
    head: Option<Head>,
    writes: Vec<Apply>,
) -> (Vec<Finish>, Result<LiveKeys, StoreError>) {
    // A write whose callback is dropped here answers "stopped", which is what happened to it.
    let tx = match db.begin_write() {
        Ok(tx) => tx,
        Err(error) => return (Vec::new(), Err(error.into())),
    };
    let mut batch = Batch { tx: &tx, slots, wipe: Vec::new(), live: LiveKeys::default() };
    let mut finishes = Vec::with_capacity(writes.len());
    let mut broken = false;
    for write in writes {
        let (finish, failed) = write(&mut batch);
        finishes.push(finish);
        broken |= failed;
    }
    let (wipe, live) = (batch.wipe, batch.live);
    let committed = if broken {
        Err(StoreError::Failed("another write of the same batch failed".into()))
    } else {
        rows::put_head(&tx, head).and_then(|()| commit_both(tx, slots, !wipe.is_empty()))
    };
    // Slots taken by a batch that did not commit stay as they are: whether the commit reached the disk is not known after
    // an error, and the next start wipes every slot that nothing refers to.
    let outcome =
        committed.and_then(|()| wipe.iter().try_for_each(|slot| slots.wipe(*slot))).and_then(|()| slots.sync());
    (finishes, outcome.map(|()| live))
}
