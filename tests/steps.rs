//! Processes that die at a named step, one at a time: what each row of the crash table leaves. Many at once, in every order: `tests/interleavings.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, PATIENCE, QUICK, material, message, password, wait_until_empty};
use std::time::{Duration, Instant};
use trefoil::client::{Backend, ClientError, Making, OldKey, SignedRequest};
use trefoil::wire::{Curve, ErrorCode, JobResult, Method};

/// Between two questions.
const AGAIN: Duration = Duration::from_millis(20);

fn service() -> Deployment {
    let mut service = Deployment::new();
    service.faults = true;
    service.silent = 1;
    for name in ["node1", "node2", "worker"] {
        std::fs::create_dir_all(service.path("faults").join(name)).unwrap();
    }
    for name in ["node1", "node2"] {
        service.start_node(name);
    }
    service.start_worker("worker1");
    service
}

fn arm(service: &Deployment, at: &str, what: &str) {
    let file = service.path("armed");
    std::fs::write(&file, what).unwrap();
    std::fs::rename(file, service.path("faults").join(at).join("armed")).unwrap();
}

/// Runs a job whose worker dies at a step; the next one finds what is left.
async fn survived(service: &mut Deployment, backend: &Backend, step: &str, request: &SignedRequest) -> JobResult {
    arm(service, "worker", &format!("{step} {} * 1 kill", request.op));
    backend.publish(request).await.unwrap();
    assert!(!service.process("worker1").wait().success(), "{step}");
    service.start_worker("worker1");
    backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap()
}

/// A key whose generation died before its result was stored is not a key: nobody has its share.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_key_without_a_result_is_not_ready() {
    let mut service = service();
    let backend = service.backend().await;
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let request = backend.generation(Curve::Ed25519, QUICK, password(), None).unwrap();
    arm(&service, "worker", "prepared-node1 generate * 1 kill");
    backend.publish(&request).await.unwrap();
    service.process("worker1").wait();
    // And its job is lost as well.
    jetstream.get_stream("MPC_JOBS").await.unwrap().purge().await.unwrap();
    service.start_worker("worker1");
    let started = Instant::now();
    loop {
        match backend.public_key(request.key_id).await {
            Err(ClientError::Job(failure)) => break assert_eq!(failure.code, ErrorCode::KeyNotReady),
            // A worker is ready for jobs a moment before it answers questions.
            Err(ClientError::Unavailable(_)) if started.elapsed() < PATIENCE => tokio::time::sleep(AGAIN).await,
            other => panic!("{other:?}"),
        }
    }
}

/// Each row of the table, for each operation that makes shares: one key, new shares or old, and the job's one result.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_dies_at_each_row_of_the_table() {
    let mut service = service();
    let backend = service.backend().await;
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let mut key = None;
    for (number, step) in
        ["session", "prepared-node2", "prepared-node1", "result-stored", "decided", "followed", "acknowledged"]
            .into_iter()
            .enumerate()
    {
        let Some((new, old)) = key.take() else {
            let request = backend.generation(Curve::Ed25519, QUICK, password(), None).unwrap();
            let result = survived(&mut service, &backend, step, &request).await;
            let new = backend.made(&request, Making::Generation, result).unwrap();
            let old = OldKey::from(&new.key);
            key = Some((new, old));
            continue;
        };
        let (request, making) = if number % 2 == 0 {
            let mut request = backend.recovery(&old, QUICK, password(), backend.lifetime()).unwrap();
            request.authorise(&service.authoriser).unwrap();
            (request, Making::Recovery(&old))
        } else {
            (backend.refreshment(&old, &material(&new), password(), None, QUICK).unwrap(), Making::Refresh(&old))
        };
        let result = survived(&mut service, &backend, step, &request).await;
        let newer = backend.made(&request, making, result).unwrap();
        wait_until_empty(&jetstream).await;
        backend.committed(&newer.key, PATIENCE).await.unwrap();
        assert_eq!((&newer.key.public_key, newer.key.epoch), (&new.key.public_key, new.key.epoch + 1), "{step}");
        backend.sign(&material(&newer), Method::Default, &message(step), password()).await.unwrap();
        match backend.sign(&material(&new), Method::Default, &message("old"), password()).await {
            Err(ClientError::Job(failure)) => {
                assert!(matches!(failure.code, ErrorCode::KeyRetired | ErrorCode::StaleShare), "{step}: {failure:?}");
            }
            other => panic!("{step}: {other:?}"),
        }
        let old = OldKey::from(&newer.key);
        key = Some((newer, old));
    }
}
