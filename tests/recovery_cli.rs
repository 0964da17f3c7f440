//! `trefoil recover` and `trefoil refresh`: key files that are lost, taken, interrupted, and never without one that works.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use async_nats::jetstream;
use deployment::Deployment;
use serde_json::Value;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use support::process::Process;

const QUICK: [&str; 4] = ["--memory-kib", "64", "--passes", "1"];
const CONSENT: [&str; 2] = ["--authoriser-seed-file", "authoriser.seed"];

/// A service with a key, and the files that recovery needs.
fn service(curve: &str) -> Deployment {
    let service = Deployment::start(1);
    std::fs::write(service.path("authoriser.seed"), service.authoriser.seed().unwrap()).unwrap();
    std::fs::write(service.path("new.password"), "another password\n").unwrap();
    answer(&service, &[&["generate", "--curve", curve, "--out", "a.key"][..], &QUICK].concat());
    service
}

fn trefoil(mut command: Command, arguments: &[&str]) -> Output {
    command.arg("--json").args(arguments).output().unwrap()
}

fn json(done: &Output) -> Value {
    serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"))
}

fn answer(service: &Deployment, arguments: &[&str]) -> Value {
    let done = trefoil(service.cli(), arguments);
    assert_eq!(done.status.code(), Some(0), "{arguments:?}: {done:?}");
    json(&done)
}

fn failure(service: &Deployment, code: i32, arguments: &[&str]) -> Value {
    let done = trefoil(service.cli(), arguments);
    assert_eq!(done.status.code(), Some(code), "{arguments:?}: {done:?}");
    json(&done)["error"].clone()
}

fn signs(service: &Deployment, key: &str, password: Option<&str>) -> Value {
    let file: Value = serde_json::from_slice(&std::fs::read(service.path(key)).unwrap()).unwrap();
    let digest = "ab".repeat(32);
    let input = if file["key"]["curve"] == "secp256k1" { ["--digest", &digest] } else { ["--message", "m"] };
    let password = password.map(|file| ["--password-file", file]);
    let password = password.as_ref().map_or(&[][..], |arguments| &arguments[..]);
    let signed = answer(service, &[&["sign", "--key", key][..], &input, password].concat());
    let signature = signed["signature"].as_str().unwrap();
    answer(service, &[&["verify", "--key", key, "--signature", signature][..], &input].concat())
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < support::PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn state(jetstream: &jetstream::Context, stream: &str) -> jetstream::stream::State {
    jetstream.get_stream(stream).await.unwrap().cached_info().state.clone()
}

/// Starts the command while no worker runs, and returns when its job is in the queue.
async fn queued(service: &Deployment, jetstream: &jetstream::Context, arguments: &[&str], log: &str) -> Process {
    let before = state(jetstream, "MPC_JOBS").await.last_sequence;
    let mut command = service.cli();
    command.env("TREFOIL_JOB_LIFETIME_SECONDS", "120").env_remove("TREFOIL_REPLY_SEED").arg("--json").args(arguments);
    let process = Process::spawn("trefoil", command, &service.path(log));
    until("the job is published", async || state(jetstream, "MPC_JOBS").await.last_sequence > before).await;
    process
}

fn recover<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["recover", "--out", "b.key", "--password-file", "new.password"][..], &QUICK, more].concat()
}

#[test]
fn a_key_is_recovered_beside_its_old_file() {
    let service = service("secp256k1");
    let before = std::fs::read(service.path("a.key")).unwrap();
    let made = answer(&service, &[&["public-key", "--key", "a.key"][..]].concat());

    // Nothing is asked of the service where the command line lacks something; no draft stays behind.
    failure(&service, 2, &recover(&["--key", "a.key"]));
    failure(&service, 2, &recover(&["--key", "absent.key", CONSENT[0], CONSENT[1]]));
    failure(&service, 2, &recover(&["--key", "a.key", "--authoriser-seed-file", "absent.seed"]));
    failure(&service, 2, &["recover", "--key", "a.key", "--out", "a.key", CONSENT[0], CONSENT[1]]);
    assert_eq!(trefoil(service.cli(), &recover(&["--key-id", &"ab".repeat(16)])).status.code(), Some(2), "no curve");
    assert!(!service.path("b.key.draft").exists());
    // Nobody signs a refusal, so the draft outlasts it, where it is in nobody's way.
    std::fs::write(service.path("stranger.seed"), nkeys::KeyPair::new_user().seed().unwrap()).unwrap();
    let refused = failure(&service, 1, &recover(&["--key", "a.key", "--authoriser-seed-file", "stranger.seed"]));
    assert_eq!(refused["code"], "NOT_AUTHORISED");
    assert!(!service.path("b.key").exists() && service.path("b.key.draft.refused.1").exists());
    signs(&service, "a.key", None);

    let recovered = answer(&service, &recover(&[&["--key", "a.key"][..], &CONSENT].concat()));
    let key = &recovered["outcome"]["key"];
    assert_eq!((&recovered["publicKey"], &key["sourceKeyId"]), (&made["publicKey"], &made["keyId"]));
    assert_eq!((&key["state"], &key["epoch"]), (&Value::from("active"), &Value::from(2)));
    assert_eq!(std::fs::read(service.path("a.key")).unwrap(), before, "the old file stays as it is");
    assert!(!service.path("b.key.draft").exists());
    signs(&service, "b.key", Some("new.password"));
    let retired = failure(&service, 1, &["sign", "--key", "a.key", "--digest", &"00".repeat(32)]);
    assert_eq!((&retired["code"], &retired["newKeyId"]), (&Value::from("KEY_RETIRED"), &recovered["keyId"]));
    let mut people = service.cli();
    let said = people.args(["sign", "--key", "a.key", "--digest", &"00".repeat(32)]).output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains(recovered["keyId"].as_str().unwrap()), "people hear it too: {said}");

    // By the id alone; what comes out must be the named public key.
    let id = recovered["keyId"].as_str().unwrap();
    let by_id = |out, public: &str| -> Vec<String> {
        let words = ["recover", "--key-id", id, "--curve", "secp256k1", "--public-key", public, "--out", out];
        words.into_iter().chain(CONSENT).chain(QUICK).map(str::to_owned).collect()
    };
    let other = by_id("c.key", &format!("02{}", "11".repeat(32)));
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    failure(&service, 4, &other);
    assert!(!service.path("c.key").exists() && service.path("c.key.draft").exists(), "it may be wanted for evidence");
    // That recovery happened all the same: the service was asked for it, and did not lie. Its result is still there for whoever
    // knows better which key it is.
    let mut draft: Value = serde_json::from_slice(&std::fs::read(service.path("c.key.draft")).unwrap()).unwrap();
    draft["replaces"].as_object_mut().unwrap().remove("publicKey");
    std::fs::write(service.path("c.key.draft"), draft.to_string()).unwrap();
    let fetched = answer(&service, &["recover", "--resume", "c.key.draft"]);
    assert_eq!(
        (&fetched["publicKey"], &fetched["outcome"]["key"]["sourceKeyId"]),
        (&made["publicKey"], &recovered["keyId"])
    );
    signs(&service, "c.key", None);
}

#[test]
fn an_authoriser_elsewhere_signs_a_job_file() {
    let service = service("ed25519");
    let save = [&["recover", "--key", "a.key", "--out", "b.key", "--save-job", "job.json"][..], &QUICK].concat();
    let saved = answer(&service, &save);
    assert!(service.path("b.key.draft").exists());
    failure(&service, 2, &save);
    let send = ["recover", "--job", "job.json", "--out", "b.key"];
    failure(&service, 2, &send);
    failure(&service, 2, &["destroy", "--job", "job.json", "--yes"]);
    let consent = answer(&service, &["authorise", "--job", "job.json", CONSENT[0], CONSENT[1]]);
    assert_eq!((&consent["op"], &consent["keyId"]), (&Value::from("recover"), &saved["keyId"]));
    failure(&service, 2, &["recover", "--job", "job.json", "--out", "elsewhere.key"]);
    let recovered = answer(&service, &send);
    assert_eq!(recovered["outcome"]["key"]["sourceKeyId"], saved["keyId"]);
    assert!(!service.path("b.key.draft").exists());
    signs(&service, "b.key", None);
    failure(&service, 2, &send);
}

#[test]
fn a_refresh_takes_the_old_shares_place() {
    let service = service("ed25519");
    let read = |name: &str| std::fs::read(service.path(name)).unwrap();
    let before = read("a.key");
    std::fs::write(service.path("stolen.key"), &before).unwrap();
    // A wrong password changes nothing, and leaves the draft aside, because nobody signs that it was wrong.
    let refused = failure(&service, 1, &["refresh", "--key", "a.key", "--password-file", "new.password"]);
    assert_eq!(refused["code"], "WRONG_PASSWORD");
    assert_eq!(read("a.key"), before);
    for _ in 0..2 {
        assert_eq!(failure(&service, 1, &["refresh", "--resume", "a.key.draft.refused.1"])["code"], "WRONG_PASSWORD");
    }
    // Nor does what is in the way: the draft of another refresh, a backup of an unfinished change.
    for name in ["a.key.draft", "a.key.bak"] {
        assert!(!service.path(name).exists());
        std::fs::write(service.path(name), "mine").unwrap();
        failure(&service, 2, &["refresh", "--key", "a.key"]);
        assert_eq!((read("a.key"), read(name)), (before.clone(), b"mine".to_vec()));
        std::fs::remove_file(service.path(name)).unwrap();
    }
    let made = answer(&service, &["refresh", "--key", "a.key"]);
    let old: Value = serde_json::from_slice(&before).unwrap();
    assert_eq!((&made["keyId"], &made["publicKey"]), (&old["key"]["keyId"], &old["key"]["publicKey"]));
    assert_eq!((&made["outcome"]["key"]["epoch"], &made["outcome"]["key"]["state"]), (&2.into(), &"active".into()));
    assert!(!service.path("a.key.bak").exists() && !service.path("a.key.draft").exists());
    signs(&service, "a.key", None);
    let stale = failure(&service, 1, &["sign", "--key", "stolen.key", "--message", "m"]);
    assert_eq!(stale["code"], "STALE_SHARE");
    // Another password with it.
    let new = ["refresh", "--key", "a.key", "--new-password-file", "new.password"];
    assert_eq!(answer(&service, &[&new[..], &QUICK].concat())["outcome"]["key"]["epoch"], 3);
    signs(&service, "a.key", Some("new.password"));
    let old = failure(&service, 1, &["sign", "--key", "a.key", "--message", "m"]);
    assert_eq!(old["code"], "WRONG_PASSWORD");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_short_is_fetched_again() {
    let mut service = service("ed25519");
    let jetstream = jetstream::new(service.nats.connect().await);
    let read = |service: &Deployment, name: &str| std::fs::read(service.path(name)).unwrap();

    // A refresh that is killed when its result is stored: the old file is there until the new one is.
    service.kill("worker1");
    let before = read(&service, "a.key");
    let mut killed = queued(&service, &jetstream, &["refresh", "--key", "a.key"], "killed.log").await;
    killed.signal("STOP");
    let results = state(&jetstream, "MPC_RESULTS").await.messages;
    service.start_worker("worker2");
    until("the result is stored", async || state(&jetstream, "MPC_RESULTS").await.messages > results).await;
    killed.kill9();
    assert_eq!(read(&service, "a.key"), before);
    let draft = read(&service, "a.key.draft");
    failure(&service, 2, &["generate", "--resume", "a.key.draft"]);
    failure(&service, 2, &["recover", "--resume", "a.key.draft"]);
    let made = answer(&service, &["refresh", "--resume", "a.key.draft"]);
    assert_eq!((&made["outcome"]["key"]["epoch"], &made["outcome"]["key"]["state"]), (&2.into(), &"active".into()));
    signs(&service, "a.key", None);
    // Killed later: after the new file, before the old one was let go.
    std::fs::write(service.path("a.key.draft"), &draft).unwrap();
    std::fs::write(service.path("a.key.bak"), &before).unwrap();
    assert_eq!(answer(&service, &["refresh", "--resume", "a.key.draft"])["publicKey"], made["publicKey"]);
    assert!(!service.path("a.key.draft").exists() && !service.path("a.key.bak").exists());
    signs(&service, "a.key", None);

    // A file that cannot be written: the old one stays, and the new one is fetched when there is room for it.
    service.kill("worker2");
    let before = read(&service, "a.key");
    let mut blocked = queued(&service, &jetstream, &["refresh", "--key", "a.key"], "blocked.log").await;
    std::fs::create_dir(service.path("a.key.bak")).unwrap();
    service.start_worker("worker3");
    assert_eq!(blocked.wait().code(), Some(2));
    assert!(blocked.log().contains("trefoil refresh --resume a.key.draft"), "{}", blocked.log());
    assert_eq!(read(&service, "a.key"), before);
    std::fs::remove_dir(service.path("a.key.bak")).unwrap();
    assert_eq!(answer(&service, &["refresh", "--resume", "a.key.draft"])["outcome"]["key"]["epoch"], 3);
    signs(&service, "a.key", None);

    // A recovery whose file's name is taken meanwhile.
    service.kill("worker3");
    let recover = [&["recover", "--key", "a.key", "--out", "b.key"][..], &CONSENT, &QUICK].concat();
    let mut taken = queued(&service, &jetstream, &recover, "taken.log").await;
    std::fs::write(service.path("b.key"), "mine").unwrap();
    service.start_worker("worker4");
    assert_eq!(taken.wait().code(), Some(2));
    assert!(taken.log().contains("trefoil recover --resume b.key.draft"), "{}", taken.log());
    failure(&service, 2, &["recover", "--resume", "b.key.draft"]);
    let made = answer(&service, &["recover", "--resume", "b.key.draft", "--out", "c.key"]);
    assert_eq!(made["outcome"]["key"]["epoch"], 4);
    signs(&service, "c.key", None);
    assert_eq!(read(&service, "b.key"), b"mine");
}
