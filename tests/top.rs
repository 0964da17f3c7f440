//! `trefoil top` shows what the workers tell of themselves, and says so when none does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, PATIENCE, message, new_key, password, wait_until_empty};
use std::collections::HashSet;
use std::process::{Command, Output};
use std::time::Instant;
use trefoil::clock::now_ms;
use trefoil::vault::Password;
use trefoil::wire::{Curve, JobCount, Method, Snapshot};
use zeroize::Zeroizing;

/// The command with nothing but the address of NATS.
fn top(service: &Deployment, arguments: &[&str]) -> Output {
    let mut command: Command = support::command("trefoil");
    command.env("TREFOIL_NATS_URL", service.nats.url()).current_dir(service.folder.path());
    command.arg("top").args(arguments).output().unwrap()
}

/// Tries until there is something.
fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not in time");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_workers_are_shown_with_what_they_did() {
    let mut service = Deployment::start(0);
    service.worker_settings = vec![("TREFOIL_METRICS_SECONDS", "1".to_owned())];
    service.start_worker("worker1");
    service.start_worker("worker2");
    let names: HashSet<String> = ["worker1", "worker2"].iter().map(|name| service.worker_id(name)).collect();
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    for number in 0..6 {
        backend.sign(&key, Method::Default, &message(&number.to_string()), password()).await.unwrap();
    }
    let wrong = Password::new(Zeroizing::new(b"wrong".to_vec())).unwrap();
    assert!(backend.sign(&key, Method::Default, &message("m"), wrong).await.is_err());
    // What was acknowledged was counted.
    wait_until_empty(&async_nats::jetstream::new(service.nats.connect().await)).await;
    let done_at = now_ms();

    // A busy machine may keep a worker from being heard in time, so more than once.
    let said = until(|| {
        let done = top(&service, &["--once", "--json"]);
        assert!(done.status.success(), "{done:?}");
        let said: Vec<Snapshot> = text(&done.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last: Vec<_> =
            names.iter().filter_map(|name| said.iter().rfind(|said| said.worker_id == *name)).cloned().collect();
        (last.len() == 2 && last.iter().all(|said| said.at > done_at)).then_some(last)
    });
    let (ok, failed): (Vec<_>, Vec<_>) = said.iter().flat_map(|said| &said.jobs).partition(|jobs| jobs.code.is_none());
    let sum = |jobs: Vec<&JobCount>| jobs.iter().map(|jobs| jobs.count).sum::<u64>();
    assert_eq!((sum(ok), sum(failed)), (7, 1));

    let picture = until(|| {
        let done = top(&service, &["--once"]);
        assert!(done.status.success(), "{done:?}");
        let picture = text(&done.stdout);
        let rates = picture.lines().filter(|line| names.iter().any(|name| line.starts_with(name.as_str())));
        let known = rates.filter(|line| line.split_whitespace().nth(1) == Some("0.0")).count();
        (known == 2).then_some(picture)
    });
    assert!(picture.starts_with("WORKER") && !picture.contains('\u{1b}'), "{picture}");
    for name in &names {
        let line = picture.lines().find(|line| line.starts_with(name.as_str())).unwrap_or_else(|| panic!("{picture}"));
        assert!(line.contains(" 0.0 ") && line.contains(" 0/64 ") && line.contains(" 1 2 "), "{picture}");
    }
    assert!(picture.lines().any(|line| line.starts_with("all 2 ")), "{picture}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_comes_it_says_so() {
    let service = Deployment::new();
    let silent = top(&service, &["--once", "--seconds", "1"]);
    assert_eq!(silent.status.code(), Some(3), "{silent:?}");
    let said = text(&silent.stderr);
    assert!(said.contains("no worker was heard in 1 s") && said.contains("mpc.metrics.*"), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&top(&service, &["--json", "--seconds", "1"]).stdout).unwrap();
    assert!(json["error"]["message"].as_str().unwrap().contains("no worker was heard"), "{json}");
    let mut command = support::command("trefoil");
    let nowhere =
        command.env("TREFOIL_NATS_URL", "nats://127.0.0.1:9").args(["top", "--seconds", "1"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(3), "{nowhere:?}");
    assert!(text(&nowhere.stderr).contains("no connection to NATS"), "{nowhere:?}");
    let mut command = support::command("trefoil");
    assert_eq!(command.current_dir(service.folder.path()).arg("top").output().unwrap().status.code(), Some(2));
}
