//! `trefoil node rekey`: the store has one master key at every moment, whenever the change is cut off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::{Cluster, read};
use std::collections::HashMap;
use std::path::Path;
use trefoil::node::store::{RedbStore, StoreError};
use trefoil::wire::Curve;
use trefoil_protocol::{Party, Secret};

/// Bytes of a slot, and of the file's header.
const SLOT: usize = 64;
/// What the cluster gives its nodes.
const OLD: u8 = 7;
const NEW: u8 = 8;

fn trefoil(env: &HashMap<String, String>, arguments: &[&str]) -> (Option<i32>, String) {
    let done = support::command("trefoil").envs(env).args(arguments).arg("--json").output().unwrap();
    (done.status.code(), String::from_utf8(done.stdout).unwrap())
}

fn open(directory: &Path, master: u8) -> Result<(), StoreError> {
    RedbStore::open(directory, Party::Node1, Secret::new([master; 32])).map(|_| ())
}

fn does_not_fit(directory: &Path, master: u8) -> bool {
    open(directory, master).is_err_and(|error| error.to_string() == "the master key does not fit the store")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_has_one_master_key_whenever_the_change_is_cut_off() {
    let mut cluster = Cluster::start().await;
    cluster.committed_key("g1", Curve::Secp256k1).await;
    cluster.committed_key("g2", Curve::Ed25519).await;
    let (data, mut env) = (cluster.data(Party::Node1), cluster.env(Party::Node1));
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), format!("{}\n", format!("{NEW:02x}").repeat(32))).unwrap();
    let arguments = ["node", "rekey", "--new-master-key-file", key.path().to_str().unwrap()];
    let (code, told) = trefoil(&env, &arguments);
    assert_eq!(code, Some(2));
    assert!(told.contains("another process has the store open"), "{told}");
    cluster.drain_node(Party::Node1).await;
    let files = ["store.redb", "slots"];
    let before = files.map(|name| read(&data.join(name)));

    assert_eq!(trefoil(&env, &arguments), (Some(0), "{\"shares\":2}\n".to_owned()));
    let after = files.map(|name| read(&data.join(name)));
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 3, "store, slots and audit log, and no draft");
    let slots = |content: &[u8]| content[SLOT..].chunks(SLOT).map(<[u8]>::to_vec).collect::<Vec<_>>();
    assert!(slots(&before[1]).iter().all(|slot| !slots(&after[1]).contains(slot)), "nothing is left under the old key");
    assert_eq!(before[1][..SLOT], after[1][..SLOT]);
    let (code, told) = trefoil(&env, &["node", "drill"]);
    assert!(code == Some(2) && told.contains("the master key does not fit the store"), "{told}");
    assert!(does_not_fit(&data, OLD));
    env.insert("TREFOIL_MASTER_KEY".into(), format!("{NEW:02x}").repeat(32));
    assert_eq!(trefoil(&env, &["node", "drill"]).0, Some(0));

    let copy = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| std::fs::write(copy.path().join(name), content).unwrap();
    let now = || read(&copy.path().join("slots"));
    let draft = copy.path().join("slots.rekey");
    // Cut off before the decision, with half a draft: the store is the old key's, as it was.
    put("store.redb", &before[0]);
    put("slots", &before[1]);
    put("slots.rekey", &after[1][..SLOT + 9]);
    assert!(does_not_fit(copy.path(), NEW) && draft.exists());
    open(copy.path(), OLD).unwrap();
    assert!(!draft.exists() && now() == before[1]);
    // Cut off behind it, with none, one or all of the slots overwritten: the new key's, and finished by whoever opens it.
    for overwritten in [SLOT, 2 * SLOT, after[1].len()] {
        put("store.redb", &after[0]);
        unfinished(copy.path());
        put("slots", &[&after[1][..overwritten], &before[1][overwritten..]].concat());
        put("slots.rekey", &after[1]);
        env.insert("TREFOIL_DATA_DIR".into(), copy.path().to_str().unwrap().into());
        let (code, told) = trefoil(&env, &["node", "drill"]);
        assert!(code == Some(2) && told.contains("was cut off"), "{told}");
        assert!(does_not_fit(copy.path(), OLD) && draft.exists());
        open(copy.path(), NEW).unwrap();
        assert!(!draft.exists() && now() == after[1]);
        assert_eq!(trefoil(&env, &["node", "drill"]).0, Some(0), "{overwritten}");
    }
    // A data key that does not open: nothing is changed.
    let mut damaged = after[1].clone();
    damaged[SLOT + 20] ^= 1;
    put("slots", &damaged);
    std::fs::write(key.path(), format!("{OLD:02x}").repeat(32)).unwrap();
    let (code, told) = trefoil(&env, &arguments);
    assert!(code == Some(2) && told.contains("gone or altered"), "{told}");
    assert!(now() == damaged && !draft.exists());
    open(copy.path(), NEW).unwrap();
}

/// Puts the row into the database that is there between the decision and the end.
fn unfinished(directory: &Path) {
    let db = redb::Database::create(directory.join("store.redb")).unwrap();
    let tx = db.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    tx.open_table(meta).unwrap().insert("rekey", [1].as_slice()).unwrap();
    tx.commit().unwrap();
}
