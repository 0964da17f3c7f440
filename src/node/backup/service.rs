//! Taking backups: into a directory, by schedule or on request, while the node serves or while it is stopped.

use super::{BackupError, Header, write};
use crate::clock::now_ms;
use crate::config::BackupSettings;
use crate::node::Node;
use crate::node::audit::Event;
use crate::node::store::Snapshot;
use data_encoding::HEXLOWER;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use trefoil_protocol::Party;

/// End of a finished backup's name, and of one that is being written.
const SUFFIX: &str = ".backup";
const PARTIAL: &str = ".partial";

/// A backup that is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Made {
    /// Where.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Unix milliseconds.
    pub taken_at: u64,
    /// Commits that touched slots, up to this backup.
    pub slots_generation: u64,
    /// The copy of the slot file that was brought up to date.
    pub slots_copy: Option<PathBuf>,
}

impl Made {
    /// Writes a backup into the directory of the settings: whole under its own name, or not at all. Older ones than are to be
    /// kept are removed.
    ///
    /// # Errors
    /// `Io`, `Store`.
    pub fn write(
        snapshot: &Snapshot,
        settings: &BackupSettings,
        role: Party,
        identity: &SigningKey,
    ) -> Result<Self, BackupError> {
        let taken_at = now_ms();
        let directory = &settings.directory;
        remove_partial(directory, role)?;
        let header = Header {
            store_id: HEXLOWER.encode(&snapshot.store_id),
            party: role.to_string(),
            slots_generation: snapshot.generation,
            taken_at,
            recipients: Vec::new(),
        };
        let file = directory.join(name(role, taken_at)?);
        let partial = file.with_extension(PARTIAL.trim_start_matches('.'));
        let named = |error: std::io::Error| BackupError::Io(format!("{}: {error}", partial.display()));
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).map_err(named)?;
        let written = write(BufWriter::new(out), header, &settings.recipients, identity, |out| snapshot.write(out));
        let written = written.and_then(|out| {
            let out = out.into_inner().map_err(|error| named(error.into_error()))?;
            out.sync_all().map_err(named)?;
            let bytes = out.metadata().map_err(named)?.len();
            std::fs::rename(&partial, &file).map_err(named)?;
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(named)?;
            Ok(bytes)
        });
        let bytes = written.inspect_err(|_| {
            let _ = std::fs::remove_file(&partial);
        })?;
        forget(directory, role, settings.keep);
        Ok(Self { file, bytes, taken_at, slots_generation: snapshot.generation, slots_copy: None })
    }
}

/// `trefoil-node1-20260131T120000.123Z-1a2b3c4d.backup`: names sort by time.
fn name(role: Party, taken_at: u64) -> Result<String, BackupError> {
    let failed = |error: &dyn std::fmt::Display| BackupError::Io(format!("a name for the backup: {error}"));
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(taken_at) * 1_000_000).map_err(|error| failed(&error))?;
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second, milli) = time.to_hms_milli();
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| failed(&error))?;
    let time = format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{milli:03}Z");
    Ok(format!("{}{time}-{}{SUFFIX}", prefix(role), HEXLOWER.encode(&random)))
}

fn prefix(role: Party) -> String {
    format!("trefoil-{role}-")
}

/// This node's files in the directory with this end, the oldest first.
fn ours(directory: &Path, role: Party, suffix: &str) -> std::io::Result<Vec<PathBuf>> {
    let prefix = prefix(role);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(suffix)) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what a process that was killed left.
fn remove_partial(directory: &Path, role: Party) -> Result<(), BackupError> {
    let named = |error: std::io::Error| BackupError::Io(format!("{}: {error}", directory.display()));
    for partial in ours(directory, role, PARTIAL).map_err(named)? {
        std::fs::remove_file(partial).map_err(named)?;
    }
    Ok(())
}

/// Removes all but the newest so many backups.
fn forget(directory: &Path, role: Party, keep: usize) {
    let old = ours(directory, role, SUFFIX).map(|mut found| {
        found.truncate(found.len().saturating_sub(keep));
        found
    });
    for file in old.unwrap_or_default() {
        if let Err(error) = std::fs::remove_file(&file) {
            tracing::warn!(file = %file.display(), %error, "an old backup cannot be removed");
        }
    }
}

/// The backups of a node that serves.
pub struct Backups {
    node: Arc<Node>,
    settings: Arc<BackupSettings>,
    /// One at a time.
    running: Mutex<()>,
}

impl Backups {
    /// Backups of this node.
    #[must_use]
    pub fn new(node: Arc<Node>, settings: BackupSettings) -> Self {
        let backups = Self { node, settings: Arc::new(settings), running: Mutex::new(()) };
        // None yet is as bad as one that is too old.
        backups.show(backups.newest().map_or(Duration::ZERO, |at| at.duration_since(UNIX_EPOCH).unwrap_or_default()));
        backups
    }

    /// Takes one now: first the database, then the copy of the slot file, so that the copy is never the older of the two.
    ///
    /// # Errors
    /// `Io`, `Store`: said in log and audit log too.
    pub async fn take(&self) -> Result<Made, BackupError> {
        let _alone = self.running.lock().await;
        let taken = self.take_alone().await;
        let (decision, reason) = match &taken {
            Ok(made) => {
                tracing::info!(file = %made.file.display(), bytes = made.bytes, "backup taken");
                self.show(Duration::from_millis(made.taken_at));
                ("taken", None)
            }
            Err(error) => {
                tracing::error!(%error, "no backup was taken");
                self.node.metrics.backup_failures.inc();
                ("failed", Some("BACKUP_FAILED".to_owned()))
            }
        };
        let event = Event { decision: decision.to_owned(), reason, ..self.node.event("backup") };
        self.node.audit.append_or_say(event).await;
        taken
    }

    async fn take_alone(&self) -> Result<Made, BackupError> {
        let (node, settings) = (Arc::clone(&self.node), Arc::clone(&self.settings));
        let made = tokio::task::spawn_blocking(move || {
            let snapshot = node.store.snapshot()?;
            Made::write(&snapshot, &settings, node.role, &node.identity)
        });
        let made = made.await.unwrap_or_else(|_| Err(BackupError::Io("the backup ended unexpectedly".to_owned())))?;
        if let Some(copy) = &self.settings.slots_copy {
            self.node.store.copy_slots(copy.clone()).await?;
        }
        Ok(Made { slots_copy: self.settings.slots_copy.clone(), ..made })
    }

    /// Takes one whenever the newest is older than the settings want, for ever.
    pub async fn run(&self) {
        let Some(every) = self.settings.every else { return };
        let mut wait = self.age().map_or(Duration::ZERO, |age| every.saturating_sub(age));
        loop {
            tokio::time::sleep(wait).await;
            // What failed is tried again soon, but does not fill the log.
            wait = if self.take().await.is_ok() { every } else { every.min(Duration::from_secs(60)) };
        }
    }

    /// How old the newest backup is.
    fn age(&self) -> Option<Duration> {
        SystemTime::now().duration_since(self.newest()?).ok()
    }

    /// When the newest backup was written.
    fn newest(&self) -> Option<SystemTime> {
        let newest = ours(&self.settings.directory, self.node.role, SUFFIX).ok()?.pop()?;
        std::fs::metadata(newest).ok()?.modified().ok()
    }

    fn show(&self, taken: Duration) {
        self.node.metrics.backup.with_label_values::<&str>(&[]).set(taken.as_secs_f64());
    }
}
