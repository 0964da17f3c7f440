//! A cluster that takes backups, and has them restored by the command line.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::Cluster;
use crate::support;
use nkeys::XKey;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use trefoil_protocol::Party;

/// A cluster whose nodes take backups, and who can open them.
pub struct Backed {
    pub cluster: Cluster,
    pub folder: TempDir,
    pub seed_file: PathBuf,
}

impl Backed {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With more settings for both nodes.
    pub async fn with(more: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (seed_file, backups) = (folder.path().join("seed"), folder.path().join("backups"));
        std::fs::create_dir(&backups).unwrap();
        let key = XKey::new();
        std::fs::write(&seed_file, format!("{}\n", key.seed().unwrap())).unwrap();
        let settings = [
            ("BACKUP_DIR", backups.to_str().unwrap()),
            ("BACKUP_RECIPIENTS", &format!("{},{}", XKey::new().public_key(), key.public_key())),
            ("BACKUP_SLOTS_COPY", &format!("{}/{{role}}.slots", folder.path().display())),
        ];
        Self { cluster: Cluster::with(&[&settings[..], more].concat()).await, folder, seed_file }
    }

    pub fn slots_copy(&self, role: Party) -> PathBuf {
        self.folder.path().join(format!("{role}.slots"))
    }

    /// `trefoil node backup`; its answer.
    pub async fn backup(&self, role: Party) -> Value {
        let (code, told) = trefoil(&self.cluster.env(role), &["node", "backup"]).await;
        assert_eq!(code, Some(0), "{told}");
        told
    }

    /// `trefoil node restore` of node 1 into this directory.
    pub async fn restore(&self, backup: &Path, to: &Path, more: &[&str]) -> (Option<i32>, Value) {
        self.restore_as(&self.cluster.env(Party::Node1), backup, to, more).await
    }

    pub async fn restore_as(
        &self,
        env: &HashMap<String, String>,
        backup: &Path,
        to: &Path,
        more: &[&str],
    ) -> (Option<i32>, Value) {
        let arguments = restore_arguments(backup, to, &self.seed_file);
        trefoil(env, &[&arguments.iter().map(String::as_str).collect::<Vec<_>>()[..], more].concat()).await
    }
}

pub fn restore_arguments(backup: &Path, to: &Path, seed_file: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    ["node", "restore", &text(backup), "--data-dir", &text(to), "--seed-file", &text(seed_file)]
        .map(str::to_owned)
        .into()
}

pub async fn trefoil(env: &HashMap<String, String>, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = support::command("trefoil");
    command.envs(env).args(arguments).arg("--json");
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let object = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    (done.status.code(), object)
}

pub fn file(told: &Value) -> PathBuf {
    told["file"].as_str().unwrap().into()
}

/// A directory with a copy of the slot file and nothing else.
pub fn beside(slots: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(slots, folder.path().join("slots")).unwrap();
    folder
}

impl Backed {
    /// Ends a node's sessions.
    pub async fn restart(&mut self, role: Party) {
        self.cluster.drain_node(role).await;
        self.cluster.start_node(role).await;
        if role == Party::Node1 { &self.cluster.to1 } else { &self.cluster.to2 }.renew().await.unwrap();
    }

    /// The node loses its database, and goes on with a backup of it.
    pub async fn replace(&mut self, role: Party, backup: &Path) -> Value {
        self.replace_with(role, backup, None).await
    }

    /// The same with another content of the slot file.
    pub async fn replace_with(&mut self, role: Party, backup: &Path, slots: Option<&[u8]>) -> Value {
        self.cluster.drain_node(role).await;
        let data = self.cluster.data(role);
        std::fs::remove_file(data.join("store.redb")).unwrap();
        if let Some(slots) = slots {
            std::fs::write(data.join("slots"), slots).unwrap();
        }
        let (code, told) = self.restore_as(&self.cluster.env(role), backup, &data, &[]).await;
        assert_eq!(code, Some(0), "{told}");
        self.cluster.start_node(role).await;
        if role == Party::Node1 { &self.cluster.to1 } else { &self.cluster.to2 }.renew().await.unwrap();
        told
    }
}
