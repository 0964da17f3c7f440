//! `trefoil node backup` and `restore`.

use super::node::{about, node_settings};
use super::output::shown_time;
use super::output::{Failure, Output};
use crate::node::backup::{self, Made, Paths, control};
use crate::node::store::{Restored, StoppedStore};
use clap::Args;
use nkeys::XKey;
use serde_json::json;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

pub const BACKUP: &str = "\
Uses the node's own settings (--config, or TREFOIL_CONFIG and TREFOIL_*), above all backup_dir, backup_recipients and \
backup_slots_copy. A node that serves is asked to do it, in the middle of its work; of one that is stopped it is done here. The \
backup has every row of the database and none of the data keys that open the shares in it: those are in the slot file, whose copy \
(backup_slots_copy) is overwritten in place. docs/backup.md has the whole procedure.
Exit codes: 0 the backup is on disk, 2 there is none, and why.";

pub const RESTORE: &str = "\
Uses the node's own settings, with its master key and identity. The data directory must have no store; it must have the slot file, or be \
given a copy of it. Nothing is written before the whole backup was read and found to be this node's. The store is in quarantine \
afterwards: each key is used only after the other node has signed what it knows of it. Shares that ended after the backup was \
taken stay dead.
Exit codes: 0 restored, 2 nothing was restored, and why, 4 the backup was altered, cut off, or made by somebody else.";

#[derive(Args)]
pub struct Restore {
    /// The backup
    backup: PathBuf,
    /// File with the seed (SX...) of one of the keys that the backup is sealed to
    #[arg(long, value_name = "FILE")]
    seed_file: PathBuf,
    /// Where the store is to be [default: the data_dir of the settings]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A copy of the slot file, where the data directory has none
    #[arg(long, value_name = "FILE")]
    slots: Option<PathBuf>,
    /// A copy of the audit log, where the data directory has none; without either, a new log begins
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
}

pub async fn backup(config: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let config = node_settings(config)?;
    let settings = config.backup.ok_or_else(|| Failure::usage("backup_dir and backup_recipients must be set"))?;
    let asked = output.patiently("the node takes a backup", control::ask(&config.data_dir)).await;
    let made = match asked {
        Some(answer) => answer.map_err(Failure::usage)?,
        None => {
            let wrong = |error| about(&config.data_dir, &error);
            let store = StoppedStore::open(&config.data_dir).map_err(wrong)?;
            let snapshot = store.snapshot().map_err(wrong)?;
            // Refuses another node's store, and one that the master key does not open.
            let shares = store.shares(config.role, config.master_key).map_err(wrong)?;
            let made = Made::write(&snapshot, &settings, config.role, &config.identity)?;
            if let Some(copy) = &settings.slots_copy {
                shares.copy_slots(copy).map_err(wrong)?;
            }
            Made { slots_copy: settings.slots_copy, ..made }
        }
    };
    let mut lines = vec![
        ("backup", made.file.display().to_string()),
        ("bytes", made.bytes.to_string()),
        ("taken at", shown_time(made.taken_at)),
    ];
    lines.extend(made.slots_copy.as_ref().map(|copy| ("slot file's copy", copy.display().to_string())));
    output.answer(&lines, &json!(made));
    Ok(())
}

pub fn restore(config: Option<&Path>, arguments: &Restore, output: &Output) -> Result<(), Failure> {
    let config = node_settings(config)?;
    let identities = config.identities();
    let unreadable =
        |what: &dyn std::fmt::Display| Failure::usage(format!("{}: {what}", arguments.seed_file.display()));
    let text = Zeroizing::new(std::fs::read_to_string(&arguments.seed_file).map_err(|error| unreadable(&error))?);
    let recipient = XKey::from_seed(text.trim()).map_err(|_| unreadable(&"must be an xkey seed (SX...)"))?;
    let paths = Paths {
        backup: arguments.backup.clone(),
        data_dir: arguments.data_dir.clone().unwrap_or(config.data_dir),
        slots: arguments.slots.clone(),
        audit_log: arguments.audit_log.clone(),
    };
    let restored = backup::restore(&paths, config.role, config.master_key, &identities, &recipient)?;
    let (header, Restored { keys, ended, prepared, dead, newer }, quarantine, log_goes_on) = restored;
    let head = quarantine.head.map(|head| head.to_string());
    let mut lines = vec![
        ("taken at", shown_time(header.taken_at)),
        ("keys", format!("{keys}, each unconfirmed until the other node has signed what it knows of it")),
        ("ended keys", ended.to_string()),
        ("prepared", prepared.to_string()),
        ("dead shares", format!("{dead}: their data keys were destroyed after the backup was taken")),
        ("newer shares", format!("{newer}: made after the backup was taken; their data keys are kept, untouched")),
        ("audit log", if log_goes_on { "goes on" } else { "begins anew" }.to_owned()),
    ];
    lines.extend(head.clone().map(|head| ("  its end then", head)));
    let object = json!({
        "takenAt": header.taken_at,
        "storeId": header.store_id,
        "keys": keys,
        "ended": ended,
        "prepared": prepared,
        "dead": dead,
        "newer": newer,
        "auditLog": if log_goes_on { "continued" } else { "new" },
        "auditEnd": head,
    });
    output.answer(&lines, &object);
    Ok(())
}
