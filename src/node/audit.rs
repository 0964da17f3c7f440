//! The append-only, hash-chained audit log.
//!
//! One line per decision: the line's hash (64 hex digits), a space, a JSON object, a line end. The hash is
//! `H("node/audit"; JSON)`, and the JSON names the hash of the line before as `prev` (64 zeros in the first line). So an edit, a
//! removal, an insertion or a swap breaks the chain at that place. Lines cut off at the end are noticed by comparison with the
//! store, which anchors the log's end with each of its commits.

use super::gather::Underway;
use crate::telemetry::metrics::NodeMetrics;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::Instrument as _;
use trefoil_protocol::transcript::{Tag, hash};

/// Entries of one write.
const MAX_BATCH: usize = 1_024;
/// Entries that may wait.
const QUEUE: usize = 16_384;
/// How many of them may be such that nobody waits for: what must be written before something may happen finds room beside them.
const NOTES: usize = QUEUE / 2;
/// Longest time until an entry is synced that nobody waits for, unless one comes that somebody waits for: they go together.
const NOTED: Duration = Duration::from_millis(20);
/// Longest line, bytes: entries are a few hundred, but for those of batches, up to 9,000.
const MAX_LINE: u64 = 16_384;
/// How long a reader waits for the end of a line, and how often.
const UNFINISHED_WAIT: Duration = Duration::from_millis(50);
const UNFINISHED_TRIES: u32 = 20;

/// The end of a log: its number of entries, and the hash of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Entries, so that the next one has this number.
    pub entries: u64,
    /// Hash of the last line, zero for an empty log.
    pub hash: [u8; 32],
}

impl Head {
    /// The end of an empty log.
    pub const EMPTY: Self = Self { entries: 0, hash: [0; 32] };
}

/// `<entries>:<hash of the last line, hex>`.
impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.entries, HEXLOWER.encode(&self.hash))
    }
}

impl std::str::FromStr for Head {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (entries, hash) = text.split_once(':')?;
            let hash = HEXLOWER.decode(hash.as_bytes()).ok()?.try_into().ok()?;
            Some(Self { entries: entries.parse().ok()?, hash })
        };
        parse().ok_or("must be <entries>:<64 hex digits>, as `trefoil audit verify` prints it")
    }
}

/// What a node decided about something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// Unix milliseconds.
    pub time: u64,
    /// What was asked for: an operation of a job (`sign`), what a worker relayed (`commit`, `discard`, `close`), or what
    /// became of the `node` or its `policy`.
    pub op: String,
    /// Who signed the job, or who owns the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initiator: Option<String>,
    /// The job's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// The key, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Digest of what was signed, of the job's body, or of the policy file, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// `opened`, `released`, `closed`, `prepared`, `committed`, `aborted`, `locked`, `active`, `frozen`, `destroyed`, `refused`,
    /// `started`, `stopped`, `loaded`.
    pub decision: String,
    /// An error code or a failed check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `sign`, `released`: what is signed, in order, where a batch goes in several steps this step's part of it: the digest, hex, and after a
    /// space the path where the job has one; on ed25519 the message's SHA-256, hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signed: Vec<String>,
}

/// A line's JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<E> {
    seq: u64,
    prev: String,
    #[serde(flatten)]
    event: E,
}

/// What is wrong with a log, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// A line was altered, or is not an entry at all.
    #[error("entry {0} was altered")]
    Altered(u64),
    /// A line is fine in itself but does not follow the one before: something was removed, inserted or swapped.
    #[error("entry {0} does not follow the one before it")]
    OutOfOrder(u64),
    /// Entries are missing at the end.
    #[error("the log ends at {found} entries, but the store has seen {expected}")]
    Truncated {
        /// Entries in the file.
        found: u64,
        /// Entries that the store has seen.
        expected: u64,
    },
    /// The entry that the store has anchored is another one: the log was replaced.
    #[error("entry {0} is not the one that the store has seen")]
    Replaced(u64),
    /// The last line has no end: a crash while writing. It was never acknowledged.
    #[error("the last line, after {0} entries, is incomplete")]
    Incomplete(u64),
    /// The file cannot be read or written.
    #[error("audit log: {0}")]
    Io(String),
}

impl AuditError {
    /// The entry that is wrong or missing.
    #[must_use]
    pub const fn entry(&self) -> Option<u64> {
        match self {
            Self::Altered(entry) | Self::OutOfOrder(entry) | Self::Replaced(entry) | Self::Incomplete(entry) => {
                Some(*entry)
            }
            Self::Truncated { found, .. } => Some(*found),
            Self::Io(_) => None,
        }
    }
}

impl From<std::io::Error> for AuditError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

fn format_line(head: Head, event: &Event) -> Result<(Vec<u8>, Head), AuditError> {
    let line = Line { seq: head.entries, prev: HEXLOWER.encode(&head.hash), event };
    let json = serde_json::to_vec(&line).map_err(|error| AuditError::Io(error.to_string()))?;
    let hash = hash(Tag::NODE_AUDIT, &[&json]);
    let text = [HEXLOWER.encode(&hash).as_bytes(), b" ", &json, b"\n"].concat();
    Ok((text, Head { entries: head.entries + 1, hash }))
}

/// Checks one line against the end of the log before it.
fn check_line(head: Head, line: &[u8]) -> Result<(Head, Event), AuditError> {
    let altered = || AuditError::Altered(head.entries);
    let (digest, json) = line.split_at_checked(65).ok_or_else(altered)?;
    let hash = hash(Tag::NODE_AUDIT, &[json]);
    if digest != [HEXLOWER.encode(&hash).as_bytes(), b" "].concat() {
        return Err(altered());
    }
    let line: Line<Event> = serde_json::from_slice(json).map_err(|_| altered())?;
    if line.seq != head.entries || line.prev != HEXLOWER.encode(&head.hash) {
        return Err(AuditError::OutOfOrder(head.entries));
    }
    Ok((Head { entries: head.entries + 1, hash }, line.event))
}

/// Reads a log from its start and checks chain and anchor on the way. Ends behind the first thing that is wrong.
pub struct Entries {
    reader: BufReader<File>,
    head: Head,
    anchored: Option<Head>,
    ended: bool,
}

impl Entries {
    /// Opens a log, to be compared with an end that it once had.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(path: &Path, anchored: Option<Head>) -> Result<Self, AuditError> {
        Ok(Self { reader: BufReader::new(File::open(path)?), head: Head::EMPTY, anchored, ended: false })
    }

    /// The end of what was read so far.
    #[must_use]
    pub const fn head(&self) -> Head {
        self.head
    }

    fn read(&mut self) -> Result<Option<(u64, Event)>, AuditError> {
        check_anchor(self.head, self.anchored)?;
        let line = self.read_line()?;
        let Some(line) = line.strip_suffix(b"\n") else {
            return match self.anchored {
                _ if !line.is_empty() => Err(AuditError::Incomplete(self.head.entries)),
                Some(anchored) if anchored.entries > self.head.entries => {
                    Err(AuditError::Truncated { found: self.head.entries, expected: anchored.entries })
                }
                _ => Ok(None),
            };
        };
        let (head, event) = check_line(self.head, line)?;
        self.head = head;
        Ok(Some((head.entries - 1, event)))
    }

    /// The next line with its end. A node that runs may just be writing it, so the rest is waited for, a little.
    fn read_line(&mut self) -> Result<Vec<u8>, AuditError> {
        let mut line = Vec::new();
        for _ in 0..=UNFINISHED_TRIES {
            let room = MAX_LINE.saturating_sub(line.len() as u64);
            (&mut self.reader).take(room).read_until(b'\n', &mut line)?;
            if line.is_empty() || line.ends_with(b"\n") {
                break;
            }
            if line.len() as u64 >= MAX_LINE {
                return Err(AuditError::Altered(self.head.entries));
            }
            std::thread::sleep(UNFINISHED_WAIT);
        }
        Ok(line)
    }
}

impl Iterator for Entries {
    /// An entry's number, from 0, and what it says.
    type Item = Result<(u64, Event), AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Checks a whole log, and that it holds what the store has anchored.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn verify(path: &Path, anchored: Option<Head>) -> Result<Head, AuditError> {
    let mut entries = Entries::open(path, anchored)?;
    entries.by_ref().try_for_each(|entry| entry.map(|_| ()))?;
    Ok(entries.head())
}

fn check_anchor(head: Head, anchored: Option<Head>) -> Result<(), AuditError> {
    match anchored {
        Some(anchored) if anchored.entries == head.entries && anchored.hash != head.hash => {
            Err(AuditError::Replaced(head.entries.saturating_sub(1)))
        }
        _ => Ok(()),
    }
}

type Entry = (Event, Option<oneshot::Sender<Result<(), AuditError>>>);

/// Appends to the log; one thread writes and syncs many entries at once.
pub struct AuditLog {
    queue: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
    metrics: Arc<NodeMetrics>,
    /// Entries in the queue that nobody waits for.
    notes: Arc<AtomicUsize>,
}

impl AuditLog {
    /// Opens or creates the log and checks it against the store's anchor. An incomplete last line, which was never
    /// acknowledged, is cut off. `on_head` is told the log's end after each sync.
    ///
    /// # Errors
    /// Whatever [`verify`] finds but an incomplete last line; or the file is open in another process.
    pub fn open(
        path: &Path,
        anchored: Option<Head>,
        on_head: impl Fn(Head) + Send + 'static,
    ) -> Result<Self, AuditError> {
        let metrics = NodeMetrics::new().map_err(|error| AuditError::Io(error.to_string()))?;
        Self::open_for(path, anchored, Underway::default(), Arc::new(metrics), on_head)
    }

    /// The same for a node that counts its calls, so that the entries of many share a write, and shows how its log does.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub(super) fn open_for(
        path: &Path,
        anchored: Option<Head>,
        underway: Underway,
        metrics: Arc<NodeMetrics>,
        on_head: impl Fn(Head) + Send + 'static,
    ) -> Result<Self, AuditError> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        file.try_lock().map_err(|_| AuditError::Io("another process has it open".into()))?;
        cut_incomplete(&mut file)?;
        let head = verify(path, anchored)?;
        on_head(head);
        let (queue, waiting) = sync_channel(QUEUE);
        let notes = Arc::<AtomicUsize>::default();
        let thread = std::thread::Builder::new().name("audit-writer".into()).spawn({
            let (metrics, notes) = (Arc::clone(&metrics), Arc::clone(&notes));
            move || {
                let end = End { file: &mut file, head, on_head, unsynced: None, metrics: &metrics };
                run(end, &underway, &waiting, &notes);
            }
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), metrics, notes })
    }

    /// Appends an entry and waits until it is durable.
    ///
    /// # Errors
    /// `Io`; then nothing that the entry allows may happen.
    pub async fn append(&self, event: Event) -> Result<(), AuditError> {
        self.begin(event).await
    }

    /// Begins to append an entry, at once, whether or not anybody waits yet; what it gives back waits until the entry is durable.
    ///
    /// # Errors
    /// As [`AuditLog::append`].
    pub fn begin(&self, event: Event) -> impl Future<Output = Result<(), AuditError>> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        let sent = self.send((event, Some(sender)));
        async move {
            sent?;
            let written = receiver.instrument(tracing::debug_span!("audit")).await;
            written.unwrap_or_else(|_| Err(AuditError::Io("the log has stopped".into())))
        }
    }

    /// Appends an entry of what is done already, and waits until it is durable; a failure is in the process's log alone.
    pub async fn append_or_say(&self, event: Event) {
        if let Err(error) = self.append(event).await {
            tracing::error!(%error, "an audit entry was lost");
        }
    }

    /// Whether an entry could not be written: then none can any more.
    pub fn is_broken(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Appends an entry that nothing waits for. It is durable soon, and before every later one. It is lost, which is counted, where
    /// half the queue is such entries.
    pub fn note(&self, event: Event) {
        let before = self.notes.fetch_add(1, Ordering::Relaxed);
        let sent = if before < NOTES { self.send((event, None)) } else { Err(self.no_room()) };
        if let Err(error) = sent {
            self.notes.fetch_sub(1, Ordering::Relaxed);
            tracing::error!(%error, "an audit entry was lost");
        }
    }

    fn send(&self, entry: Entry) -> Result<(), AuditError> {
        let queue = self.queue.as_ref().ok_or_else(|| AuditError::Io("the log has stopped".into()))?;
        queue.try_send(entry).map_err(|error| match error {
            TrySendError::Full(_) => self.no_room(),
            TrySendError::Disconnected(_) => {
                self.metrics.audit_failures.inc();
                AuditError::Io("the log has stopped".into())
            }
        })
    }

    fn no_room(&self) -> AuditError {
        self.metrics.audit_lost.inc();
        AuditError::Io("too many entries are waiting".into())
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Cuts off what follows the last line end.
fn cut_incomplete(file: &mut File) -> Result<(), AuditError> {
    let length = file.metadata()?.len();
    let tail = length.min(MAX_LINE);
    file.seek(SeekFrom::Start(length - tail))?;
    let mut bytes = Vec::with_capacity(tail as usize);
    Read::by_ref(file).take(tail).read_to_end(&mut bytes)?;
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if end == 0 && length > tail {
        return Err(AuditError::Io("the last line is longer than any entry".into()));
    }
    if end < bytes.len() {
        tracing::warn!(bytes = bytes.len() - end, "an incomplete audit entry, never acknowledged, was cut off");
        file.set_len(length - tail + end as u64)?;
        file.sync_data()?;
    }
    Ok(())
}

fn run(mut end: End<'_, impl Fn(Head)>, underway: &Underway, waiting: &Receiver<Entry>, notes: &AtomicUsize) {
    loop {
        let first = match end.unsynced {
            None => waiting.recv().map_err(RecvTimeoutError::from),
            Some(since) => waiting.recv_timeout(NOTED.saturating_sub(since.elapsed())),
        };
        let batch = match first {
            Ok(first) => underway.gather(first, waiting, MAX_BATCH),
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => {
                return end.sync().unwrap_or_else(|error| {
                    end.metrics.audit_failures.inc();
                    tracing::error!(%error, "the audit log was not synced");
                });
            }
        };
        notes.fetch_sub(batch.iter().filter(|(_, sender)| sender.is_none()).count(), Ordering::Relaxed);
        let (entries, started) = (batch.len() as u64, Instant::now());
        let outcome = end.write(&batch).map_err(|error| error.to_string());
        // Before anybody is answered: what the answer lets happen is counted then.
        match outcome {
            Ok(()) => {
                end.metrics.audit_entries.inc_by(entries);
                if end.unsynced.is_none() {
                    end.metrics.audit_append.observe(started.elapsed().as_secs_f64());
                }
            }
            Err(_) => end.metrics.audit_failures.inc(),
        }
        for sender in batch.into_iter().filter_map(|(_, sender)| sender) {
            let _ = sender.send(outcome.clone().map_err(AuditError::Io));
        }
        if let Err(error) = outcome {
            // The file's end is unknown now, so nothing may follow it: every later append fails, and with it every signature.
            tracing::error!(%error, "the audit log cannot be written");
            return;
        }
    }
}

/// The end of the log, where entries are written.
struct End<'a, F> {
    file: &'a mut File,
    head: Head,
    on_head: F,
    metrics: &'a NodeMetrics,
    /// Since when there are entries that are not synced, and that nobody waits for.
    unsynced: Option<Instant>,
}

impl<F: Fn(Head)> End<'_, F> {
    /// Writes entries, and syncs them if somebody waits for one, or if the oldest that nobody waits for has waited long enough.
    fn write(&mut self, batch: &[Entry]) -> Result<(), AuditError> {
        let (mut text, mut head) = (Vec::new(), self.head);
        for (event, _) in batch {
            let (line, next) = format_line(head, event)?;
            text.extend_from_slice(&line);
            head = next;
        }
        self.file.write_all(&text)?;
        self.head = head;
        let since = *self.unsynced.get_or_insert_with(Instant::now);
        let awaited = batch.iter().any(|(_, sender)| sender.is_some());
        if awaited || since.elapsed() >= NOTED { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), AuditError> {
        if self.unsynced.take().is_some() {
            self.file.sync_data()?;
            (self.on_head)(self.head);
        }
        Ok(())
    }
}
