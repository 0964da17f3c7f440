//! The command line as a person or script uses it, against a running service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use async_nats::jetstream;
use deployment::Deployment;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use support::process::Process;
use trefoil::wire::{ErrorCode, Job, JobHeaders, JobResult, Outcome, subject};

/// Runs `trefoil` with these arguments.
fn trefoil(service: &Deployment, arguments: &[&str]) -> Output {
    service.cli().args(arguments).output().unwrap()
}

/// Runs it with `--json`, expects success, returns the answer.
fn answer(service: &Deployment, arguments: &[&str]) -> Value {
    let done = trefoil(service, &[&["--json"], arguments].concat());
    assert_eq!(done.status.code(), Some(0), "{arguments:?}: {done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Runs it with `--json`, expects this exit code, returns the error.
fn failure(service: &Deployment, code: i32, arguments: &[&str]) -> Value {
    let done = trefoil(service, &[&["--json"], arguments].concat());
    assert_eq!(done.status.code(), Some(code), "{arguments:?}: {done:?}");
    serde_json::from_slice::<Value>(&done.stdout).unwrap()["error"].clone()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn generates_signs_and_verifies_on_both_curves() {
    let service = Deployment::start(1);
    let digest = "ab".repeat(32);
    for (curve, signed, options) in [
        ("secp256k1", ["--digest", &digest], vec![vec![], vec!["--path", "m/0/1"]]),
        ("ed25519", ["--message", "hello"], vec![vec![]]),
    ] {
        let file = format!("{curve}.json");
        let made =
            answer(&service, &["generate", "--curve", curve, "--memory-kib", "64", "--passes", "1", "--out", &file]);
        assert_eq!(made["outcome"]["key"]["state"], "active");
        assert_eq!(mode(&service.path(&file)), 0o600);
        let told = answer(&service, &["public-key", "--key", &file]);
        assert_eq!(told["publicKey"], made["publicKey"]);
        assert_eq!(told["outcome"]["key"], made["outcome"]["key"]);
        for options in options {
            let arguments = [&["sign", "--key", &file][..], &signed, &options].concat();
            let signature = answer(&service, &arguments);
            let (text, key) = (signature["signature"].as_str().unwrap(), signature["publicKey"].as_str().unwrap());
            let check = [&["verify", "--signature", text][..], &signed].concat();
            answer(&service, &[&check[..], &["--public-key", key]].concat());
            answer(&service, &[&check[..], &["--key", &file], &options].concat());
            let id = signature["recoveryId"].to_string();
            if curve == "secp256k1" {
                answer(&service, &[&check[..], &["--public-key", key, "--recovery-id", &id]].concat());
            }
            let other = text.replacen(&text[..2], if &text[..2] == "11" { "22" } else { "11" }, 1);
            let check = [&["verify", "--public-key", key, "--signature", &other][..], &signed].concat();
            failure(&service, 4, &check);
        }
    }
    let people = trefoil(&service, &["public-key", "--key", "ed25519.json"]);
    let text = String::from_utf8(people.stdout).unwrap();
    assert!(text.contains("public key") && text.contains("active"), "{text}");
}

#[test]
fn says_what_is_wrong_by_its_exit_code() {
    let mut service = Deployment::start(1);
    let quick = ["--memory-kib", "64", "--passes", "1"];
    let generate = |out| [&["generate", "--curve", "ed25519", "--out", out][..], &quick].concat();
    answer(&service, &generate("key.json"));
    // 2: nothing is overwritten, nothing is guessed.
    failure(&service, 2, &generate("key.json"));
    failure(&service, 2, &["sign", "--key", "absent.json", "--message", "m"]);
    failure(&service, 2, &["sign", "--key", "key.json", "--digest", &"00".repeat(32)]);
    failure(&service, 2, &["generate", "--curve", "ed25519", "--memory-kib", "7", "--out", "other.json"]);
    assert_eq!(trefoil(&service, &["generate", "--curve", "p256", "--out", "x"]).status.code(), Some(2));
    // 1: the job's own error, with its code.
    let sign = ["sign", "--key", "key.json", "--message", "m"];
    let wrong = service.cli().env("TREFOIL_PASSWORD", "wrong").arg("--json").args(sign).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&wrong.stdout).unwrap()["error"]["code"], "WRONG_PASSWORD");
    // The password from a file, its line end aside.
    std::fs::write(service.path("password"), [deployment::PASSWORD, b"\n"].concat()).unwrap();
    let mut from_file = service.cli();
    from_file.env_remove("TREFOIL_PASSWORD").args(sign).args(["--password-file", "password"]);
    assert_eq!(from_file.output().unwrap().status.code(), Some(0));
    let mut nowhere = service.cli();
    nowhere.env_remove("TREFOIL_PASSWORD").args(sign).stdin(std::process::Stdio::null());
    assert_eq!(nowhere.output().unwrap().status.code(), Some(2));
    // 4: a key file whose public key somebody changed; it is not even sent.
    let text = std::fs::read_to_string(service.path("key.json")).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    file["key"]["chainCode"] = Value::from("00".repeat(32));
    std::fs::write(service.path("changed.json"), file.to_string()).unwrap();
    failure(&service, 4, &["sign", "--key", "changed.json", "--message", "m"]);
    // Earlier versions believed an unsigned KEY_LOCKED for ever.
    let mut file: Value = serde_json::from_str(&text).unwrap();
    file["locked"] = Value::from(true);
    std::fs::write(service.path("locked.json"), file.to_string()).unwrap();
    answer(&service, &["sign", "--key", "locked.json", "--message", "m"]);
    // 3: nobody there.
    service.kill("worker1");
    failure(&service, 3, &["public-key", "--key", "key.json"]);
    let mut brief = service.cli();
    brief.env("TREFOIL_JOB_LIFETIME_SECONDS", "1").args(sign);
    let done = brief.output().unwrap();
    assert_eq!(done.status.code(), Some(3), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("signing …"), "says what it waits for: {done:?}");
    service.nats.kill9();
    failure(&service, 3, &["public-key", "--key", "key.json"]);
}

const GENERATE: [&str; 8] = ["--json", "generate", "--curve", "ed25519", "--memory-kib", "64", "--passes", "1"];

/// Waits for something that ends soon.
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

/// Starts the command and returns when its job is in the queue.
async fn spawn(service: &Deployment, jetstream: &jetstream::Context, mut command: Command, log: &str) -> Process {
    let before = state(jetstream, "MPC_JOBS").await.last_sequence;
    command.env("TREFOIL_JOB_LIFETIME_SECONDS", "120");
    let process = Process::spawn("trefoil", command, &service.path(log));
    until("the job is published", async || state(jetstream, "MPC_JOBS").await.last_sequence > before).await;
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_not_generated() {
    let service = Deployment::start(1);
    let jetstream = jetstream::new(service.nats.connect().await);
    std::fs::write(service.path("there.key"), "mine").unwrap();
    std::fs::write(service.path("left.key.draft"), "an earlier one").unwrap();
    // A folder that is not there, one that is a file, one that takes no files, not even root's, and names that are taken.
    for out in ["nowhere/a.key", "there.key/a.key", "/proc/self/a.key", "there.key", "left.key"] {
        failure(&service, 2, &[&GENERATE[1..], &["--out", out]].concat());
    }
    assert_eq!(state(&jetstream, "MPC_JOBS").await.last_sequence, 0, "no job was published");
    assert_eq!(std::fs::read(service.path("there.key")).unwrap(), b"mine");
    assert_eq!(std::fs::read(service.path("left.key.draft")).unwrap(), b"an earlier one");
    // A generation that ends in an error leaves its draft aside, because nobody signs the error; one that succeeds only the key.
    let mut stranger = service.cli();
    stranger.env("TREFOIL_INITIATOR_SEED", nkeys::KeyPair::new_user().seed().unwrap());
    assert_eq!(stranger.args(GENERATE).args(["--out", "a.key"]).output().unwrap().status.code(), Some(1));
    assert!(service.path("a.key.draft.refused.1").exists());
    answer(&service, &[&GENERATE[1..], &["--out", "a.key"]].concat());
    assert!(service.path("a.key").exists() && !service.path("a.key.draft").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_file_was_not_written_is_fetched_again() {
    let mut service = Deployment::start(1);
    let jetstream = jetstream::new(service.nats.connect().await);
    service.kill("worker1");

    // Killed when the result is stored and before anything is read of it; no reply key is configured.
    let without_reply = |service: &Deployment| {
        let mut command = service.cli();
        command.env_remove("TREFOIL_REPLY_SEED");
        command
    };
    let mut command = without_reply(&service);
    command.args(GENERATE).args(["--out", "killed.key"]);
    let mut killed = spawn(&service, &jetstream, command, "killed.log").await;
    assert_eq!(mode(&service.path("killed.key.draft")), 0o600);
    killed.signal("STOP");
    service.start_worker("worker2");
    until("the result is stored", async || state(&jetstream, "MPC_RESULTS").await.messages > 0).await;
    killed.kill9();
    assert!(!service.path("killed.key").exists());
    // Somebody else's draft.
    let mut other = without_reply(&service);
    other.env("TREFOIL_INITIATOR_SEED", service.limited.seed().unwrap());
    let done = other.args(["generate", "--resume", "killed.key.draft"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let copy = std::fs::read(service.path("killed.key.draft")).unwrap();
    let resume = |service: &Deployment| {
        let mut command = without_reply(service);
        let done = command.args(["--json", "generate", "--resume", "killed.key.draft"]).output().unwrap();
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        serde_json::from_slice::<Value>(&done.stdout).unwrap()
    };
    let made = resume(&service);
    assert_eq!(made["outcome"]["key"]["state"], "active");
    assert_eq!(mode(&service.path("killed.key")), 0o600);
    answer(&service, &["sign", "--key", "killed.key", "--message", "m"]);
    assert!(!service.path("killed.key.draft").exists());
    // Killed again, after the key file and before the draft was removed.
    std::fs::write(service.path("killed.key.draft"), copy).unwrap();
    assert_eq!(resume(&service)["publicKey"], made["publicKey"]);
    assert!(!service.path("killed.key.draft").exists());

    // The name is taken in the meantime.
    service.kill("worker2");
    let mut command = service.cli();
    command.args(GENERATE).args(["--out", "taken.key"]);
    let mut refused = spawn(&service, &jetstream, command, "taken.log").await;
    let draft = std::fs::read_to_string(service.path("taken.key.draft")).unwrap();
    assert!(!draft.contains(&service.reply.seed().unwrap()), "a configured seed stays where it is");
    std::fs::write(service.path("taken.key"), "mine").unwrap();
    service.start_worker("worker3");
    assert_eq!(refused.wait().code(), Some(2));
    assert!(refused.log().contains("trefoil generate --resume taken.key.draft"), "{}", refused.log());
    failure(&service, 2, &["generate", "--resume", "taken.key.draft"]);
    answer(&service, &["generate", "--resume", "taken.key.draft", "--out", "other.key"]);
    answer(&service, &["sign", "--key", "other.key", "--message", "m"]);
    assert_eq!(std::fs::read(service.path("taken.key")).unwrap(), b"mine");
    assert!(!service.path("taken.key.draft").exists());

    // No result in time: the draft stays.
    service.kill("worker3");
    let mut late = service.cli();
    late.env("TREFOIL_JOB_LIFETIME_SECONDS", "1").args(GENERATE).args(["--out", "late.key"]);
    assert_eq!(late.output().unwrap().status.code(), Some(3));
    assert!(service.path("late.key.draft").exists());
    failure(&service, 3, &["generate", "--resume", "late.key.draft"]);
    assert!(service.path("late.key.draft").exists());
}

/// Whoever may publish results can say that a key is locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_lock_does_not_lock_the_owner_out() {
    let mut service = Deployment::start(1);
    let jetstream = jetstream::new(service.nats.connect().await);
    answer(&service, &[&GENERATE[1..], &["--out", "a.key"]].concat());
    let before = std::fs::read(service.path("a.key")).unwrap();
    service.kill("worker1");
    let mut command = service.cli();
    command.args(["--json", "sign", "--key", "a.key", "--message", "m"]);
    let mut signing = spawn(&service, &jetstream, command, "sign.log").await;
    let jobs = jetstream.get_stream("MPC_JOBS").await.unwrap();
    let message = jobs.get_raw_message(jobs.cached_info().state.last_sequence).await.unwrap();
    let job = Job::parse(&message.subject, JobHeaders::from_nats(Some(&message.headers)), &message.payload).unwrap();
    let lie = JobResult::of(&job, trefoil::clock::now_ms(), Outcome::failed(ErrorCode::KeyLocked, "so I say"));
    let subject = subject::result(&lie.initiator, &lie.job_id);
    jetstream.publish(subject, serde_json::to_vec(&lie).unwrap().into()).await.unwrap().await.unwrap();
    assert_eq!(signing.wait().code(), Some(1));
    assert!(signing.log().contains("KEY_LOCKED"), "{}", signing.log());
    assert_eq!(std::fs::read(service.path("a.key")).unwrap(), before);
    service.start_worker("worker2");
    answer(&service, &["sign", "--key", "a.key", "--message", "m"]);
}

#[test]
fn identities_are_written_once_and_for_their_owner_only() {
    let folder = tempfile::TempDir::new().unwrap();
    let run = |arguments: &[&str]| -> Output {
        let mut command: Command = support::command("trefoil");
        command.current_dir(folder.path()).args(arguments).output().unwrap()
    };
    for (kind, seed, public) in [
        ("initiator", "SU", "U"),
        ("connection", "SU", "U"),
        ("node", "SN", "N"),
        ("noise", "SX", "X"),
        ("worker", "SX", "X"),
        ("sealing", "SX", "X"),
        ("reply", "SX", "X"),
    ] {
        let file = format!("{kind}.seed");
        let made = run(&["--json", "identity", "new", "--kind", kind, "--out", &file]);
        assert!(made.status.success(), "{made:?}");
        let text = std::fs::read_to_string(folder.path().join(&file)).unwrap();
        assert!(text.starts_with(seed) && text.ends_with('\n'));
        assert!(!String::from_utf8_lossy(&made.stdout).contains(text.trim()), "the seed goes to the file only");
        assert_eq!(mode(&folder.path().join(&file)), 0o600);
        let answer: Value = serde_json::from_slice(&made.stdout).unwrap();
        assert!(answer["publicKey"].as_str().unwrap().starts_with(public));
        let shown: Value = serde_json::from_slice(&run(&["--json", "identity", "show", &file]).stdout).unwrap();
        assert_eq!(shown["publicKey"], answer["publicKey"]);
        assert_eq!(run(&["identity", "new", "--kind", kind, "--out", &file]).status.code(), Some(2));
        assert_eq!(std::fs::read_to_string(folder.path().join(&file)).unwrap(), text);
    }
    let secret: Value =
        serde_json::from_slice(&run(&["--json", "identity", "new", "--kind", "secret"]).stdout).unwrap();
    assert_eq!(secret["seed"].as_str().unwrap().len(), 64);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 7, "no drafts are left: {names:?}");
}
