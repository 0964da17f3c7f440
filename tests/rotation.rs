//! The workers' sealing key is replaced while jobs run: no job is lost, none ends in an error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::load::{Load, job, keys, restart, results};
use deployment::{Deployment, Forge, PATIENCE, code};
use futures::StreamExt;
use nkeys::XKey;
use serde_json::Value;
use std::time::Duration;
use trefoil::client::Backend;
use trefoil::clock::now_ms;
use trefoil::wire::{ErrorCode, Event, EventOutcome, Lane, Outcome, SealKey};

/// `trefoil worker sealing-keys …` on the service's file: the current key, and the older ones.
fn sealing_keys(service: &Deployment, arguments: &[&str]) -> (String, Vec<String>) {
    let file = service.sealing_keys();
    let done = service
        .cli()
        .args(["--json", "worker", "sealing-keys"])
        .args(arguments)
        .arg("--file")
        .arg(&file)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    let older = said["older"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect();
    (said["current"].as_str().unwrap().to_owned(), older)
}

/// A backend that seals to this key.
async fn sealing_to(service: &Deployment, key: &str) -> Backend {
    service.backend_with(&[("TREFOIL_WORKER_KEY", key.to_owned())]).await
}

/// Has a worker load its sealing keys, and waits until it says so.
fn hang_up(service: &mut Deployment, name: &str) {
    let worker = service.process(name);
    let before = worker.log().lines().count();
    worker.signal("HUP");
    worker.wait_for_after(before, "sealing keys loaded");
}

/// Rotates the key under load, with `renew` for each worker in turn, and says how many jobs there were.
async fn rotated(renew: fn(&mut Deployment, &str)) -> usize {
    let mut service = Deployment::start(2);
    let (old, _) = sealing_keys(&service, &["show"]);
    let keys = keys(&service.backend().await).await;
    let load = Load::start(sealing_to(&service, &old).await, keys.clone());
    load.more(10).await;
    let (new, older) = sealing_keys(&service, &["add"]);
    assert_eq!(older, std::slice::from_ref(&old));
    for worker in ["worker1", "worker2"] {
        renew(&mut service, worker);
        load.more(10).await;
    }
    load.move_to(sealing_to(&service, &new).await).await;
    load.more(10).await;
    assert_eq!(sealing_keys(&service, &["drop", "--key", &old]), (new.clone(), Vec::new()));
    for worker in ["worker1", "worker2"] {
        renew(&mut service, worker);
        load.more(10).await;
    }
    let done = load.stop().await;
    assert_eq!(results(&service).await, done + keys.len());
    // Nobody has the old one any more, and that is said when no other worker can be expected to.
    let late = sealing_to(&service, &old).await;
    let request = Forge::new(&late).edit(&job(&late, &keys[0], PATIENCE), |body| {
        body["issuedAt"] = (now_ms() - 10_000).into();
    });
    let result = late.run(&request).await.unwrap();
    assert_eq!(code(&result), ErrorCode::UnknownWorkerKey);
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_restarted_one_after_the_other_rotate_the_key_without_an_error() {
    assert!(rotated(restart).await >= 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_load_their_keys_again_rotate_the_key_without_an_error() {
    assert!(rotated(hang_up).await >= 60);
}

/// The backend came first: wrong, and still no error, as long as the workers follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_young_job_for_a_key_that_this_worker_lacks_waits_for_one_that_has_it() {
    let mut service = Deployment::start(1);
    let key = &keys(&service.backend().await).await[0];
    let nats = service.nats.connect().await;
    let mut events = support::subscribed(&nats, "mpc.event.sign.*").await;
    let before = std::fs::read(service.sealing_keys()).unwrap();
    let (new, _) = sealing_keys(&service, &["add"]);
    let backend = sealing_to(&service, &new).await;
    // Issued in the future, as far as a backend's clock may be ahead: young for long enough on every machine.
    let request = Forge::new(&backend).edit(&job(&backend, key, Duration::from_secs(300)), |body| {
        body["issuedAt"] = (now_ms() + 25_000).into();
    });
    backend.publish(&request).await.unwrap();
    let mut started = async || {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        let event: Event = serde_json::from_slice(&event.payload).unwrap();
        assert_eq!((event.outcome, event.lane), (EventOutcome::Started, Lane::Interactive));
    };
    started().await;
    started().await;
    // Settings that cannot be used change nothing.
    let file = service.sealing_keys();
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "SX").unwrap();
    service.process("worker1").signal("HUP");
    service.process("worker1").wait_for("the sealing keys are kept");
    std::fs::write(&file, before).unwrap();
    hang_up(&mut service, "worker1");
    started().await;
    std::fs::write(&file, good).unwrap();
    hang_up(&mut service, "worker1");
    let result = backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
    assert!(matches!(result.outcome, Outcome::Ok { .. }), "{result:?}");
}

#[test]
fn the_file_of_sealing_keys_is_changed_as_a_whole_or_not_at_all() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("sealing.keys");
    let run = |arguments: &[&str]| {
        let mut command = support::command("trefoil");
        let done = command.args(["--json", "worker", "sealing-keys"]).args(arguments).arg("--file").arg(&file).output();
        let done = done.unwrap();
        (done.status.code().unwrap(), serde_json::from_slice::<Value>(&done.stdout).unwrap())
    };
    assert_eq!(run(&["show"]).0, 2, "there is none");
    let (exit, first) = run(&["add"]);
    assert_eq!((exit, first["older"].as_array().unwrap().len()), (0, 0));
    let (_, second) = run(&["add"]);
    assert_eq!(second["older"], serde_json::json!([first["current"]]));
    let text = std::fs::read_to_string(&file).unwrap();
    let public: Vec<SealKey> =
        text.lines().map(|seed| XKey::from_seed(seed).unwrap().public_key().parse().unwrap()).collect();
    assert_eq!(public[0].as_str(), second["current"].as_str().unwrap());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // No seed is shown.
    assert!(text.lines().all(|seed| !second.to_string().contains(seed)), "{second}");
    for (key, why) in [(public[0].as_str(), "current"), (XKey::new().public_key().as_str(), "not in it")] {
        let (exit, said) = run(&["drop", "--key", key]);
        assert!(exit == 2 && said.to_string().contains(why), "{said}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
    assert_eq!(run(&["drop", "--key", public[1].as_str()]).0, 0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{}\n", text.lines().next().unwrap()));
    std::fs::write(&file, format!("{text}no seed\n")).unwrap();
    let (exit, said) = run(&["add"]);
    assert!(exit == 2 && said.to_string().contains("line 3"), "{said}");
}
