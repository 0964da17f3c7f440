//! The configuration loader: both sources, secrets by file, every problem at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use nkeys::{KeyPair, XKey};
use std::collections::HashMap;
use trefoil::config::{NodeConfig, Settings, WorkerConfig};
use trefoil_protocol::Party;

const CANARY: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

fn node_env() -> HashMap<String, String> {
    [
        ("TREFOIL_ROLE", "node1".to_owned()),
        ("TREFOIL_NATS_URL", "nats://127.0.0.1:4222".to_owned()),
        ("TREFOIL_DATA_DIR", "/var/lib/trefoil".to_owned()),
        ("TREFOIL_MASTER_KEY", CANARY.to_owned()),
        ("TREFOIL_IDENTITY_SEED", KeyPair::new_server().seed().unwrap()),
        ("TREFOIL_NOISE_KEY", XKey::new().seed().unwrap()),
        ("TREFOIL_PEER_IDENTITY", KeyPair::new_server().public_key()),
        ("TREFOIL_WORKERS", format!("{}, {}", XKey::new().public_key(), XKey::new().public_key())),
        ("TREFOIL_POLICY_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/policy.toml").to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

fn problems(env: HashMap<String, String>) -> Vec<String> {
    NodeConfig::read(Settings::from_env(env)).err().map(|error| error.0).unwrap_or_default()
}

#[test]
fn a_node_from_the_environment() {
    let config = NodeConfig::read(Settings::from_env(node_env())).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.role, Party::Node1);
    assert_eq!(config.workers.len(), 2);
    assert_eq!(config.limits.password_attempts, 10);
    assert_eq!(data_encoding::HEXLOWER.encode(config.master_key.expose()), CANARY);
}

#[test]
fn the_file_nests_and_the_environment_wins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.toml");
    std::fs::write(&file, "role = \"node2\"\nmax_sessions = 7\n[nats]\nurl = \"nats://file:4222\"\n").unwrap();
    let mut env = node_env();
    for key in ["TREFOIL_NATS_URL", "TREFOIL_ROLE"] {
        env.remove(key);
    }
    env.insert("TREFOIL_CONFIG".into(), file.to_str().unwrap().into());
    let config = NodeConfig::read(Settings::from_env(env.clone())).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (config.role, config.limits.max_sessions, config.nats.servers),
        (Party::Node2, 7, vec!["nats://file:4222".to_owned()])
    );
    assert_eq!(config.policy.grants()[0].name, "shop");

    env.insert("TREFOIL_NATS__URL".into(), "nats://env:4222".into());
    let config = NodeConfig::read(Settings::from_env(env)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.nats.servers, ["nats://env:4222"]);
}

#[test]
fn every_problem_at_once() {
    let mut env = node_env();
    env.remove("TREFOIL_NATS_URL");
    env.insert("TREFOIL_ROLE".into(), "node3".into());
    env.insert("TREFOIL_MASTER_KEY".into(), CANARY[..62].into());
    env.insert("TREFOIL_WORKERS".into(), "nonsense".into());
    env.insert("TREFOIL_MAX_SESSIONS".into(), "0".into());
    env.insert("TREFOIL_MAX_SESION".into(), "5".into());
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        policy.path(),
        "version = 1\n[[initiators]]\nname = \"x\"\noperations = []\ncurves = []\nwhat = 1\n",
    )
    .unwrap();
    env.insert("TREFOIL_POLICY_FILE".into(), policy.path().to_str().unwrap().into());
    env.insert("TREFOIL_NATS_NKEY_SEED_FILE".into(), "/does/not/exist".into());
    let found = problems(env);
    for key in [
        "nats_url:",
        "role:",
        "master_key:",
        "workers[0]:",
        "max_sessions:",
        "max_sesion: unknown",
        "policy_file: line 2: initiator x lacks `key`",
        "policy_file: line 6: unknown key `what`",
        "nats_nkey_seed_file: /does/not/exist",
    ] {
        assert!(found.iter().any(|problem| problem.starts_with(key)), "{key} missing in {found:#?}");
    }
    assert_eq!(found.len(), 9, "{found:#?}");
    assert!(!found.concat().contains("c0ffee"), "a secret in a problem: {found:#?}");
}

#[test]
fn secrets_by_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("master");
    std::fs::write(&file, format!("{CANARY}\n")).unwrap();
    let mut env = node_env();
    env.insert("TREFOIL_MASTER_KEY_FILE".into(), file.to_str().unwrap().into());
    assert_eq!(problems(env.clone()), ["master_key: set both by value and by file (master_key_file)"]);
    env.remove("TREFOIL_MASTER_KEY");
    let config = NodeConfig::read(Settings::from_env(env.clone())).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(data_encoding::HEXLOWER.encode(config.master_key.expose()), CANARY);
    env.remove("TREFOIL_MASTER_KEY_FILE");
    assert_eq!(problems(env), ["master_key: must be set (TREFOIL_MASTER_KEY or TREFOIL_MASTER_KEY_FILE)"]);
}

#[test]
fn a_node_is_not_its_own_peer() {
    let mut env = node_env();
    let identity = KeyPair::new_server();
    env.insert("TREFOIL_IDENTITY_SEED".into(), identity.seed().unwrap());
    env.insert("TREFOIL_PEER_IDENTITY".into(), identity.public_key());
    let found = problems(env);
    assert_eq!(found, ["peer_identity: is this node's own identity"]);

    let (mut env, former) = (node_env(), KeyPair::new_server().public_key());
    env.insert("TREFOIL_FORMER_IDENTITIES".into(), former.clone());
    env.insert("TREFOIL_PEER_IDENTITY".into(), format!("{},{former}", KeyPair::new_server().public_key()));
    let found = problems(env);
    assert_eq!(found, ["peer_identity: is also in former_identities, so it is this node's own"]);
}

#[test]
fn a_recoverys_window_is_not_shorter_than_its_wait() {
    let mut env = node_env();
    env.insert("TREFOIL_RECOVERY_WAIT_SECONDS".into(), "3600".into());
    for (window, says) in
        [("3600", vec![]), ("3599", vec!["recovery_window_seconds: must not be shorter than recovery_wait_seconds"])]
    {
        env.insert("TREFOIL_RECOVERY_WINDOW_SECONDS".into(), window.into());
        assert_eq!(problems(env.clone()), says);
    }
}

#[test]
fn a_setting_twice_in_one_source_is_a_problem() {
    let mut env = node_env();
    env.insert("TREFOIL_NATS__URL".into(), "nats://other:4222".into());
    assert_eq!(problems(env), ["nats_url: set twice in the environment"]);
}

#[test]
fn a_worker_from_the_environment() {
    let mut env: HashMap<String, String> = [
        ("TREFOIL_NATS_URL", "nats://127.0.0.1:4222".to_owned()),
        ("TREFOIL_NOISE_KEY", XKey::new().seed().unwrap()),
        ("TREFOIL_NODE1_IDENTITY", KeyPair::new_server().public_key()),
        ("TREFOIL_NODE1_NOISE", XKey::new().public_key()),
        ("TREFOIL_NODE2_IDENTITY", KeyPair::new_server().public_key()),
        ("TREFOIL_NODE2_NOISE", XKey::new().public_key()),
        ("TREFOIL_SEALING_KEYS", format!("{}\n{}", XKey::new().seed().unwrap(), XKey::new().seed().unwrap())),
        ("TREFOIL_INITIATORS", KeyPair::new_user().public_key()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let config = WorkerConfig::read(Settings::from_env(env.clone())).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((config.sealing_keys.len(), config.initiators.is_empty(), config.concurrency), (2, false, 64));
    // Half of the slots for bulk jobs, at least one; never more than there are.
    for (concurrency, bulk) in [("64", 32), ("2", 1), ("1", 1)] {
        env.insert("TREFOIL_CONCURRENCY".into(), concurrency.into());
        let config = WorkerConfig::read(Settings::from_env(env.clone())).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.bulk_concurrency, bulk);
    }
    for wrong in ["0", "2"] {
        env.insert("TREFOIL_BULK_CONCURRENCY".into(), wrong.into());
        let found = WorkerConfig::read(Settings::from_env(env.clone())).err().unwrap();
        assert_eq!(found.0, ["bulk_concurrency: must be a whole number from 1 to 1"]);
    }
    env.remove("TREFOIL_BULK_CONCURRENCY");
    // An Ed25519 key is not a curve key.
    env.insert("TREFOIL_NODE1_NOISE".into(), KeyPair::new_server().public_key());
    let found = WorkerConfig::read(Settings::from_env(env.clone())).err().unwrap();
    assert_eq!(found.0, ["node1_noise: must be a curve key (X…)"]);
    // A worker that would work for everybody is not what anybody wants.
    env.insert("TREFOIL_NODE1_NOISE".into(), XKey::new().public_key());
    env.remove("TREFOIL_INITIATORS");
    let found = WorkerConfig::read(Settings::from_env(env)).err().unwrap();
    assert_eq!(found.0, ["initiators: must name at least one initiator's public key (U…)"]);
}

/// docs/configuration.md names no setting that the processes do not know.
#[test]
fn the_documented_settings_exist() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    let section = |title: &str| {
        text.split("\n## ").find(|section| section.starts_with(title)).unwrap_or_else(|| panic!("no section {title}"))
    };
    let names = |section: &str| -> Vec<String> {
        let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
        cells.flat_map(|cell| cell.split('`').step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let unknown = |names: Vec<String>, worker: bool| {
        let names: Vec<String> = names.into_iter().filter(|name| name.starts_with(char::is_alphabetic)).collect();
        assert!(names.len() > 5, "{names:?}");
        let env: HashMap<String, String> =
            names.iter().map(|name| (format!("TREFOIL_{}", name.to_uppercase()), "?".to_owned())).collect();
        let problems = if worker {
            WorkerConfig::read(Settings::from_env(env)).err().unwrap().0
        } else {
            NodeConfig::read(Settings::from_env(env)).err().unwrap().0
        };
        problems.into_iter().filter(|problem| problem.contains("unknown setting")).collect::<Vec<_>>()
    };
    let nats = names(section("Connection to NATS"));
    assert!(nats.contains(&"nats_tls_key".to_owned()), "{nats:?}");
    assert_eq!(unknown([nats.clone(), names(section("trefoil-node"))].concat(), false), Vec::<String>::new());
    assert_eq!(unknown([nats, names(section("trefoil-worker"))].concat(), true), Vec::<String>::new());
}
