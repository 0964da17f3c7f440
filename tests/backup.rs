//! `trefoil node backup` and `restore`: consistent while the node serves, whole or not there at all, worth nothing to anybody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::backed::{Backed, beside, file, restore_arguments, trefoil};
use cluster::signer::{frost, message_input};
use cluster::{Cluster, MINUTE, read};
use nkeys::XKey;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use trefoil::auth;
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{Curve, Op, OrderBody};
use trefoil_protocol::Party;

/// Bytes of a slot.
const SLOT: usize = 64;

fn message(told: &Value) -> &str {
    told["error"]["message"].as_str().unwrap_or_else(|| panic!("{told}"))
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_taken_under_load_drills_well() {
    let mut service = Backed::start().await;
    let key = service.cluster.committed_key("g1", Curve::Ed25519).await;
    let cluster = &service.cluster;
    let load = async {
        for round in 0..12 {
            let job = cluster.sign_job(&format!("s{round}"), key.id(), &message_input(b"m"));
            frost(cluster, &key, &job, b"m").await.unwrap();
            cluster.committed_key(&format!("more{round}"), Curve::Ed25519).await;
        }
    };
    let backups = async {
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push((service.backup(Party::Node1).await, service.backup(Party::Node2).await));
        }
        taken
    };
    let ((), taken) = tokio::join!(load, backups);
    let last = service.backup(Party::Node1).await;
    assert_eq!(service.backup(Party::Node2).await["slotsCopy"], service.slots_copy(Party::Node2).to_str().unwrap());
    for (made, role) in
        taken.iter().flat_map(|(one, two)| [(one, Party::Node1), (two, Party::Node2)]).chain([(&last, Party::Node1)])
    {
        let (env, place) = (service.cluster.env(role), beside(&service.slots_copy(role)));
        let (code, told) = service.restore_as(&env, &file(made), place.path(), &[]).await;
        assert_eq!((code, &told["dead"]), (Some(0), &json!(0)), "{told}");
        let shares = told["keys"].as_u64().unwrap() + told["prepared"].as_u64().unwrap();
        assert_eq!(
            shares + told["newer"].as_u64().unwrap(),
            13,
            "every data key is known, or of a newer share: {told}"
        );
        let drill = ["node", "drill", "--data-dir", place.path().to_str().unwrap()];
        let (code, told) = trefoil(&env, &drill).await;
        assert_eq!((code, &told["whole"]), (Some(0), &json!(shares)), "{told}");
        assert_eq!(read(&place.path().join("slots")), read(&service.slots_copy(role)), "no slot is touched");
    }
    // Of a stopped node, too; and there are no others left behind.
    service.cluster.drain_node(Party::Node1).await;
    assert_eq!(names(&service.cluster.data(Party::Node1)), ["audit.log", "slots", "store.redb"]);
    let stopped = service.backup(Party::Node1).await;
    assert!(names(file(&stopped).parent().unwrap()).iter().all(|name| name.ends_with(".backup")));
    let place = beside(&service.slots_copy(Party::Node1));
    assert_eq!(service.restore(&file(&stopped), place.path(), &[]).await.1["keys"], 13);
    assert_eq!(read(&service.slots_copy(Party::Node1)), read(&service.cluster.data(Party::Node1).join("slots")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_whole_backup_of_this_node_is_refused_and_nothing_is_written() {
    let service = Backed::start().await;
    service.cluster.committed_key("g1", Curve::Secp256k1).await;
    let made = file(&service.backup(Party::Node1).await);
    let good = read(&made);
    let place = beside(&service.slots_copy(Party::Node1));
    let bad = service.folder.path().join("bad");
    let untouched = || assert_eq!(names(place.path()), ["slots"]);

    let header = good.iter().position(|byte| *byte == b'}').unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let end = good.len();
    for altered in [
        flipped(header - 300),
        flipped(header + 1000),
        flipped(end - 1),
        good[..end - 1].to_vec(),
        good[..end - 70].to_vec(),
        good[..header + 700].to_vec(),
        [&good[..], &[0]].concat(),
        [&good[..], &good[end - 100..]].concat(),
    ] {
        std::fs::write(&bad, altered).unwrap();
        let (code, told) = service.restore(&bad, place.path(), &[]).await;
        assert_eq!((code, message(&told)), (Some(4), "the backup was altered, or is not whole"));
        untouched();
    }
    for (content, why) in
        [(vec![], "this is no backup of a node"), (flipped(11), "the backup has another format version")]
    {
        std::fs::write(&bad, content).unwrap();
        let (code, told) = service.restore(&bad, place.path(), &[]).await;
        assert_eq!((code, message(&told)), (Some(2), why));
        untouched();
    }

    let other = service.folder.path().join("other");
    std::fs::write(&other, XKey::new().seed().unwrap()).unwrap();
    let arguments = restore_arguments(&made, place.path(), &other);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, told) = trefoil(&service.cluster.env(Party::Node1), &arguments).await;
    assert_eq!(code, Some(2));
    assert!(message(&told).starts_with("the backup is sealed to other keys: X"), "{told}");

    // With the other node's settings; with another identity, so that somebody else made it; with another master key; beside
    // another store's slot file, or none.
    let with = async |name: &str, value: String| {
        let mut env = service.cluster.env(Party::Node1);
        env.insert(name.to_owned(), value);
        service.restore_as(&env, &made, place.path(), &[]).await
    };
    let (code, told) = with("TREFOIL_ROLE", "node2".into()).await;
    assert_eq!((code, message(&told)), (Some(2), "this is a backup of node1, not of node2"));
    let (code, told) = with("TREFOIL_IDENTITY_SEED", nkeys::KeyPair::new_server().seed().unwrap()).await;
    assert_eq!((code, message(&told)), (Some(4), "the backup was not made by this node: its signature is another's"));
    let (code, told) = with("TREFOIL_MASTER_KEY", "08".repeat(32)).await;
    assert_eq!((code, message(&told)), (Some(2), "the master key does not fit the store"));
    untouched();
    let stranger = beside(&service.cluster.data(Party::Node2).join("slots"));
    let (code, told) = service.restore(&made, stranger.path(), &[]).await;
    assert_eq!((code, message(&told)), (Some(2), "the slot file belongs to another store"));
    assert_eq!(names(stranger.path()), ["slots"]);
    let empty = tempfile::tempdir().unwrap();
    let (code, told) = service.restore(&made, empty.path(), &[]).await;
    assert!(code == Some(2) && message(&told).contains("there is no slot file"), "{told}");
    assert!(names(empty.path()).is_empty());

    // Never over a store that is there: not even the one that it is a backup of.
    let slots = service.slots_copy(Party::Node1);
    let given = ["--slots", slots.to_str().unwrap()];
    assert_eq!(service.restore(&made, empty.path(), &given).await.0, Some(0));
    let before = read(&empty.path().join("store.redb"));
    let (code, told) = service.restore(&made, empty.path(), &given).await;
    assert!(code == Some(2) && message(&told).ends_with("there is a store already"), "{told}");
    assert_eq!(read(&empty.path().join("store.redb")), before);
    // Another slot file than the one that is there is not put in its place.
    let other = beside(&service.cluster.data(Party::Node2).join("slots"));
    let (code, told) = service.restore(&made, other.path(), &given).await;
    assert!(code == Some(2) && message(&told).ends_with("there is another one than was given"), "{told}");
    assert_eq!(names(other.path()), ["slots"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_the_slot_file_is_overwritten_in_place_and_never_by_an_older_one() {
    let service = Backed::start().await;
    let copy = service.slots_copy(Party::Node1);
    service.backup(Party::Node1).await;
    assert_eq!(read(&copy).len(), SLOT);
    let key = service.cluster.committed_key("g1", Curve::Ed25519).await;
    let held = std::fs::File::open(&copy).unwrap();
    service.backup(Party::Node1).await;
    let slots = service.cluster.data(Party::Node1).join("slots");
    assert_eq!(read(&copy), read(&slots));
    assert_eq!(held.metadata().unwrap().len(), 2 * SLOT as u64, "the same file, not another one under its name");
    // A share that ends is gone from the copy with the next backup.
    let alive = read(&copy)[SLOT..].to_vec();
    let mut job = service.cluster.job(Op::Destroy, "d1", key.id(), MINUTE, OrderBody {});
    job.authorisation = auth::authorise(&service.cluster.authoriser, &job.body);
    let destroy = NodeRequest::Order { job };
    let NodeReply::Ordered { .. } = service.cluster.ask1(destroy).await else { panic!() };
    assert_eq!(read(&copy)[SLOT..], alive);
    service.backup(Party::Node1).await;
    assert_eq!(read(&copy)[SLOT..], [0; SLOT]);
    // What is not ours, or newer, is left as it is, and said; the backup itself is taken.
    let mut newer = read(&slots);
    newer[48] = 1;
    for there in [b"something else altogether, which is longer than a slot has bytes".to_vec(), newer] {
        std::fs::write(&copy, &there).unwrap();
        let (code, told) = trefoil(&service.cluster.env(Party::Node1), &["node", "backup"]).await;
        assert!(code == Some(2) && message(&told).ends_with("nothing was written"), "{told}");
        assert_eq!(read(&copy), there);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_no_half_backup_and_no_half_store() {
    let mut service = Backed::start().await;
    for job in ["g1", "g2"] {
        service.cluster.committed_key(job, Curve::Secp256k1).await;
    }
    service.cluster.drain_node(Party::Node1).await;
    let made = file(&service.backup(Party::Node1).await);
    let (good, backups) = (read(&made), made.parent().unwrap().to_owned());
    let env = service.cluster.env(Party::Node1);
    let start = |arguments: &[String]| {
        let mut command: Command = support::command("trefoil");
        command.envs(&env).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let mut files = 1;
    for round in 0..24_u64 {
        let delay = Duration::from_millis(2 * round);
        // What is there under its own name is whole, whenever the process ended.
        let mut backup = start(&["node".to_owned(), "backup".to_owned()]);
        std::thread::sleep(delay);
        let _ = backup.kill();
        backup.wait().unwrap();
        let taken: Vec<String> = names(&backups).into_iter().filter(|name| name.ends_with(".backup")).collect();
        assert!(taken.len() >= files);
        files = taken.len();

        let place = beside(&service.slots_copy(Party::Node1));
        let source = backups.join(taken.last().unwrap());
        let mut restore = start(&restore_arguments(&source, place.path(), &service.seed_file));
        std::thread::sleep(delay);
        let _ = restore.kill();
        restore.wait().unwrap();
        if !place.path().join("store.redb").exists() {
            // A node finds no store, and makes none; the next try succeeds.
            let (code, told) = service.restore(&source, place.path(), &[]).await;
            assert_eq!((code, &told["keys"]), (Some(0), &json!(2)), "{told}");
        }
        assert_eq!(names(place.path()), ["slots", "store.redb"]);
        let drill = ["node", "drill", "--data-dir", place.path().to_str().unwrap()];
        assert_eq!(trefoil(&env, &drill).await.1["whole"], 2);
    }
    // What a killed process leaves is no backup, and goes with the next one.
    let partial = backups.join("trefoil-node1-20260101T000000.000Z-00000000.partial");
    std::fs::write(&partial, &good[..good.len() / 2]).unwrap();
    service.backup(Party::Node1).await;
    assert!(!partial.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_taken_by_schedule_and_the_oldest_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["trefoil-node1-20200101T000000.000Z-00000000.backup", "trefoil-node1-notes.txt", "another"] {
        std::fs::write(folder.path().join(name), "old").unwrap();
    }
    let recipient = XKey::new().public_key();
    let mut cluster = Cluster::with(&[
        ("BACKUP_DIR", folder.path().to_str().unwrap()),
        ("BACKUP_RECIPIENTS", &recipient),
        ("BACKUP_KEEP", "2"),
        // The newest is as old as the clock of this test wants: none of node 2 is there, so its first is due at once.
        ("BACKUP_EVERY_MINUTES", "1000"),
    ])
    .await;
    let ours = |role: &str| {
        let prefix = format!("trefoil-{role}-2");
        names(folder.path()).into_iter().filter(|name| name.starts_with(&prefix)).collect::<Vec<_>>()
    };
    let started = std::time::Instant::now();
    while !ours("node2").iter().any(|name| name.ends_with(".backup")) {
        assert!(started.elapsed() < support::PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ours("node1").len(), 1, "the one that is there is not old enough");
    for _ in 0..3 {
        assert_eq!(trefoil(&cluster.env(Party::Node1), &["node", "backup"]).await.0, Some(0));
    }
    assert_eq!(ours("node1").len(), 2);
    assert!(!names(folder.path()).contains(&"trefoil-node1-20200101T000000.000Z-00000000.backup".to_owned()));
    assert!(names(folder.path()).contains(&"trefoil-node1-notes.txt".to_owned()));
    for role in [Party::Node1, Party::Node2] {
        cluster.drain_node(role).await;
    }
    let text = String::from_utf8(read(&cluster.data(Party::Node2).join("audit.log"))).unwrap();
    assert!(text.contains(r#""op":"backup","decision":"taken""#), "{text}");
}
