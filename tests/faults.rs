//! Processes that are missing, silent, killed or drained: every job still ends in one right result, and every key works.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{
    Deployment, Forge, PATIENCE, QUICK, code, digest, material, message, new_key, password, secrets, stored_only,
    wait_until_empty,
};
use futures::StreamExt;
use std::time::{Duration, Instant};
use trefoil::client::{Backend, ClientError, Making, NewKey, random_job_id};
use trefoil::seal::Secrets;
use trefoil::wire::{Curve, ErrorCode, Event, EventOutcome, KdfParams, Method, subject};

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_node_is_named_by_the_jobs_deadline() {
    let mut service = Deployment::start(1);
    let backend = service.backend().await;
    let brief = service.backend_with(&[("TREFOIL_JOB_LIFETIME_SECONDS", "4".to_owned())]).await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let refused = |started: Instant, error: ClientError| match error {
        ClientError::Job(failure) => {
            assert!(started.elapsed() > Duration::from_secs(2), "given up after {:?}", started.elapsed());
            failure.code
        }
        // The backend itself gives up a little after the deadline.
        other => panic!("{other}"),
    };
    // Gone.
    service.kill("node1");
    let started = Instant::now();
    let error = brief.sign(&key, Method::Mta, &digest(1), password()).await.unwrap_err();
    assert_eq!(refused(started, error), ErrorCode::NodeUnavailable);
    service.start_node("node1");
    backend.sign(&key, Method::Mta, &digest(1), password()).await.unwrap();
    // There, and silent.
    for node in ["node1", "node2"] {
        service.process(node).signal("STOP");
        let started = Instant::now();
        let error = brief.generate(Curve::Ed25519, QUICK, password()).await.unwrap_err();
        assert_eq!(refused(started, error), ErrorCode::NodeUnavailable, "{node}");
        service.process(node).signal("CONT");
    }
    // Node 2 is not needed to sign.
    service.kill("node2");
    backend.sign(&key, Method::Mta, &digest(1), password()).await.unwrap();
    let started = Instant::now();
    let error = brief.generate(Curve::Secp256k1, QUICK, password()).await.unwrap_err();
    assert_eq!(refused(started, error), ErrorCode::NodeUnavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_ends_when_told_to_while_nats_is_away() {
    let mut service = Deployment::start(2);
    service.nats.kill9();
    let names: Vec<_> = service.running.keys().cloned().collect();
    for name in &names {
        service.process(name).signal("TERM");
    }
    for name in names {
        assert!(service.running.get_mut(&name).unwrap().wait().success(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_in_time_is_enough() {
    let mut service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    service.kill("node1");
    let input = message("later");
    let signing = backend.sign(&key, Method::Default, &input, password());
    let restart = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        service.start_node("node1");
    };
    futures::join!(signing, restart).0.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_and_nodes_leave_keys_that_work_and_one_result_each() {
    let mut service = Deployment::impatient(1);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    for (round, victim) in ["worker1", "node1", "node2"].into_iter().cycle().take(9).enumerate() {
        let curve = if round % 2 == 0 { Curve::Ed25519 } else { Curve::Secp256k1 };
        let input = if round % 2 == 0 { message("m") } else { digest(1) };
        let secrets = Secrets { password: Some(password()), ..Secrets::default() };
        let jobs = backend.jobs();
        let request =
            jobs.generate(random_job_id(), curve, QUICK, &secrets, &forge.reply, Duration::from_secs(60)).unwrap();
        backend.publish(&request).await.unwrap();
        // Somewhere between the queue and the commit, each time elsewhere.
        tokio::time::sleep(Duration::from_millis(9 * round as u64)).await;
        service.kill(victim);
        if victim == "worker1" {
            service.start_worker(victim);
        } else {
            service.start_node(victim);
        }
        let result = backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
        let new = backend.made(&request, Making::Generation, result).unwrap();
        backend.sign(&material(&new), Method::Default, &input, password()).await.unwrap();
        backend.committed(&new.key, PATIENCE).await.unwrap();
    }
    wait_until_empty(&jetstream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn costly_passwords_of_one_backend_do_not_stop_another() {
    let mut service = Deployment::start(0);
    // Fewer places than costly jobs.
    service.worker_settings = vec![("TREFOIL_CONCURRENCY", "6".to_owned())];
    service.start_worker("worker1");
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    let greedy = service.backend_with(&[("TREFOIL_INITIATOR_SEED", service.limited.seed().unwrap())]).await;
    let costly = KdfParams::Argon2id { memory_kib: 262_144, passes: 10 };
    let reply = greedy.reply_key().unwrap();
    for _ in 0..12 {
        let secrets = Secrets { password: Some(password()), ..Secrets::default() };
        let lifetime = Duration::from_secs(120);
        let request = greedy.jobs().generate(random_job_id(), Curve::Ed25519, costly, &secrets, &reply, lifetime);
        greedy.publish(&request.unwrap()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    backend.sign(&key, Method::Default, &message("m"), password()).await.unwrap();
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let results = jetstream.get_stream("MPC_RESULTS").await.unwrap();
    let theirs = results.info_with_subjects(format!("mpc.result.{}.*", greedy.jobs().initiator())).await.unwrap();
    assert!(theirs.count().await < 12, "it waited for all of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_amount_of_computing_makes_a_worker_seem_dead() {
    let mut service = Deployment::start(0);
    service.silent = 6;
    service.worker_settings = vec![("TREFOIL_CRYPTO_THREADS", "1".to_owned())];
    service.start_worker("worker1");
    let backend = service.backend().await;
    let secret = Secrets { password: Some(password()), ..Secrets::default() };
    // Together longer than a job may be silent.
    let kdf = KdfParams::Argon2id { memory_kib: 262_144, passes: 10 };
    let (jobs, reply, lifetime) = (backend.jobs(), backend.reply_key().unwrap(), Duration::from_secs(120));
    let requests: Vec<_> = (0..3)
        .map(|_| jobs.generate(random_job_id(), Curve::Secp256k1, kdf, &secret, &reply, lifetime).unwrap())
        .collect();
    let nats = service.nats.connect().await;
    let mut events = support::subscribed(&nats, "mpc.event.generate.*").await;
    for request in &requests {
        backend.publish(request).await.unwrap();
        heard(&mut events, &mut Vec::new(), |event| event.job_id == request.job_id).await;
    }
    // Another that would get what the first one is silent about.
    service.start_worker("worker2");
    for request in &requests {
        backend.result_of(&request.job_id, request.digest, Duration::from_secs(120)).await.unwrap();
    }
    // Whatever is delivered again has a record, and a worker that loses the server says so.
    let jetstream = async_nats::jetstream::new(nats);
    let attempts = jetstream.get_stream("MPC_ATTEMPTS").await.unwrap().cached_info().state.messages;
    let log = service.process("worker1").log();
    assert!(attempts == 0 && !log.contains("disconnected"), "{attempts} delivered again: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_from_before_the_kept_results_gets_no_second_result() {
    let mut service = Deployment::start(0);
    service.worker_settings = vec![("TREFOIL_RESULTS_KEPT_HOURS", "2".to_owned())];
    service.start_worker("worker1");
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    let secrets = Secrets { password: Some(password()), ..Secrets::default() };
    let lifetime = Duration::from_secs(20);
    let expired = |hours: u64| {
        let jobs = backend.jobs();
        let good = jobs.generate(random_job_id(), Curve::Ed25519, QUICK, &secrets, &forge.reply, lifetime).unwrap();
        forge.edit(&good, |body| {
            for time in ["issuedAt", "expiresAt"] {
                body[time] = (body[time].as_u64().unwrap() - hours * 3_600_000).into();
            }
        })
    };
    let (recent, old) = (expired(1), expired(3));
    for request in [&recent, &old] {
        backend.publish(request).await.unwrap();
    }
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    wait_until_empty(&jetstream).await;
    let stored = async |subject: String| {
        let stream = jetstream.get_stream("MPC_RESULTS").await.unwrap();
        stream.get_last_raw_message_by_subject(&subject).await.is_ok()
    };
    let initiator = backend.jobs().initiator();
    assert!(stored(subject::result(initiator, &recent.job_id)).await);
    assert!(!stored(subject::result(initiator, &old.job_id)).await, "it may have had another result");
    assert!(stored(subject::refused(initiator, &old.job_id)).await);
}

/// The worker commits by itself, and does not leave it to the key's first use.
#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_commit_without_being_asked_for_the_key() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    backend.generate(Curve::Ed25519, QUICK, password()).await.unwrap();
    for node in ["node1", "node2"] {
        let started = Instant::now();
        while !has_committed(&service, node) {
            assert!(started.elapsed() < PATIENCE, "{node} has not committed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A generation whose result is stored and whose commit could not happen.
async fn prepared_only(service: &mut Deployment, backend: &Backend) -> NewKey {
    let secrets = Secrets { password: Some(password()), ..Secrets::default() };
    let (jobs, reply) = (backend.jobs(), backend.reply_key().unwrap());
    let lifetime = Duration::from_secs(60);
    let request = jobs.generate(random_job_id(), Curve::Ed25519, QUICK, &secrets, &reply, lifetime).unwrap();
    let result = stored_only(service, backend, &request).await;
    backend.made(&request, Making::Generation, result).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivered_job_finishes_the_commit_of_its_result() {
    let mut service = Deployment::impatient(1);
    let backend = service.backend().await;
    prepared_only(&mut service, &backend).await;
    assert!(!has_committed(&service, "node1") && !has_committed(&service, "node2"));
    service.kill("worker1");
    service.start_node("node1");
    service.start_node("node2");
    service.start_worker("worker2");
    wait_until_empty(&async_nats::jetstream::new(service.nats.connect().await)).await;
    assert!(has_committed(&service, "node1") && has_committed(&service, "node2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_use_of_a_prepared_key_commits_it() {
    let mut service = Deployment::start(1);
    let backend = service.backend().await;
    let new = prepared_only(&mut service, &backend).await;
    // The job is lost: nothing but the key's use is left to finish it.
    service.kill("worker1");
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    jetstream.get_stream("MPC_JOBS").await.unwrap().purge().await.unwrap();
    service.start_node("node1");
    service.start_worker("worker2");
    // Node 1 decides, so node 2 need not be there.
    backend.sign(&material(&new), Method::Default, &message("first"), password()).await.unwrap();
    assert!(has_committed(&service, "node1") && !has_committed(&service, "node2"));
    service.start_node("node2");
    backend.committed(&new.key, PATIENCE).await.unwrap();
    assert!(has_committed(&service, "node2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_the_work_and_one_is_enough() {
    let mut service = Deployment::impatient(2);
    let backend = service.backend().await;
    let (one, two) = (new_key(&backend, Curve::Secp256k1).await, new_key(&backend, Curve::Ed25519).await);
    let sign = |count: u8| {
        let (backend, one, two) = (&backend, &one, &two);
        futures::stream::iter(0..count).map(move |i| async move {
            let (key, input) = if i % 3 == 0 { (one, digest(i)) } else { (two, message(&i.to_string())) };
            backend.sign(key, Method::Default, &input, password()).await
        })
    };
    let outcomes: Vec<_> = sign(48).buffer_unordered(24).collect().await;
    outcomes.into_iter().for_each(|signed| drop(signed.unwrap()));
    // One dies with jobs in hand.
    let mut running = Box::pin(sign(48).buffer_unordered(24).collect::<Vec<_>>());
    let early = tokio::time::timeout(Duration::from_millis(60), &mut running).await;
    service.kill("worker1");
    let outcomes = match early {
        Ok(outcomes) => outcomes,
        Err(_) => tokio::time::timeout(PATIENCE, running).await.expect("the other worker takes over"),
    };
    assert_eq!(outcomes.len(), 48);
    outcomes.into_iter().for_each(|signed| drop(signed.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_finishes_what_it_has() {
    let mut service = Deployment::start(2);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    let mut signing = Box::pin(futures::future::join_all((0..40).map(|i| {
        let (backend, key) = (&backend, &key);
        async move { backend.sign(key, Method::Default, &message(&i.to_string()), password()).await }
    })));
    let _ = tokio::time::timeout(Duration::from_millis(30), &mut signing).await;
    let mut worker = service.running.remove("worker1").unwrap();
    let drained = tokio::task::spawn_blocking(move || {
        let status = worker.terminate();
        (status, worker.log())
    });
    for signed in tokio::time::timeout(PATIENCE, signing).await.unwrap() {
        signed.unwrap();
    }
    let (status, log) = drained.await.unwrap();
    assert!(status.success() && log.contains("stopped") && !log.contains("jobs in hand"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_its_workers_down_ends_as_poison() {
    let mut service = Deployment::impatient(0);
    let backend = service.backend().await;
    service.start_worker("victim0");
    let key = new_key(&backend, Curve::Secp256k1).await;
    let nats = service.nats.connect().await;
    let mut started = support::subscribed(&nats, "mpc.event.sign.*").await;
    // A silent node keeps the job in its worker's hands until that dies.
    service.process("node1").signal("STOP");
    let forge = Forge::new(&backend);
    let lifetime = Duration::from_secs(120);
    let request =
        backend.jobs().sign(key.key_id, Method::Mta, &digest(1), &secrets(&key), &forge.reply, lifetime).unwrap();
    backend.publish(&request).await.unwrap();
    for round in 0..3 {
        tokio::time::timeout(PATIENCE, started.next()).await.unwrap().unwrap();
        service.kill(&format!("victim{round}"));
        service.start_worker(&format!("victim{}", round + 1));
    }
    let result = backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
    assert_eq!(code(&result), ErrorCode::PoisonJob);
    service.process("node1").signal("CONT");
    backend.sign(&key, Method::Mta, &digest(2), password()).await.unwrap();
}

/// Events of jobs until one is wanted; all that were heard before it are kept.
async fn heard(events: &mut async_nats::Subscriber, kept: &mut Vec<Event>, wanted: impl Fn(&Event) -> bool) {
    loop {
        let message = tokio::time::timeout(PATIENCE, events.next()).await.expect("it happens").unwrap();
        let event: Event = serde_json::from_slice(&message.payload).unwrap();
        kept.push(event.clone());
        if wanted(&event) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_its_workers_down_takes_no_other_job_with_it() {
    let mut service = Deployment::impatient(0);
    let backend = service.backend().await;
    service.start_worker("victim0");
    let mut keys = Vec::new();
    for _ in 0..6 {
        keys.push(new_key(&backend, Curve::Ed25519).await);
    }
    let nats = service.nats.connect().await;
    let mut events = support::subscribed(&nats, "mpc.event.*.*").await;
    let forge = Forge::new(&backend);
    // A silent node 1 keeps all of them in the hands of their first worker. The one that will end its workers takes long.
    service.process("node1").signal("STOP");
    let secret = Secrets { password: Some(password()), ..Secrets::default() };
    let (costly, lifetime) = (KdfParams::Argon2id { memory_kib: 262_144, passes: 10 }, Duration::from_secs(120));
    let jobs = backend.jobs();
    let poison = jobs.generate(random_job_id(), Curve::Ed25519, costly, &secret, &forge.reply, lifetime).unwrap();
    let innocents: Vec<_> = keys.iter().map(|key| forge.sign(key, &message("m"), &secrets(key))).collect();
    let mut kept = Vec::new();
    for request in innocents.iter().chain([&poison]) {
        backend.publish(request).await.unwrap();
        heard(&mut events, &mut kept, |event| event.job_id == request.job_id).await;
    }
    service.kill("victim0");
    service.process("node1").signal("CONT");
    for round in 1..3 {
        service.start_worker(&format!("victim{round}"));
        kept.clear();
        heard(&mut events, &mut kept, |event| event.job_id == poison.job_id).await;
        service.kill(&format!("victim{round}"));
        // It was alone: whatever its worker had begun before was done.
        let count = |outcome| kept.iter().filter(|event| event.outcome == outcome).count();
        assert_eq!(count(EventOutcome::Started), count(EventOutcome::Completed) + 1, "{kept:?}");
    }
    service.start_worker("survivor");
    let result = backend.result_of(&poison.job_id, poison.digest, PATIENCE).await.unwrap();
    assert_eq!(code(&result), ErrorCode::PoisonJob);
    for request in &innocents {
        let result = backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
        assert!(matches!(result.outcome, trefoil::wire::Outcome::Ok { .. }), "{result:?}");
    }
}

fn has_committed(service: &Deployment, node: &str) -> bool {
    let log = service.path(node).join(trefoil::node::AUDIT_LOG);
    std::fs::read_to_string(log).unwrap().contains("committed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_waits_for_itself_and_not_the_others_for_it() {
    let mut service = Deployment::new();
    service.start_node("node1");
    service.start_node("node2");
    // Few places for the hot key, so that most of its jobs go back to the queue.
    service.worker_settings = vec![("TREFOIL_KEY_QUEUE", "2".to_owned()), ("TREFOIL_CONCURRENCY", "8".to_owned())];
    service.start_worker("worker1");
    service.start_worker("worker2");
    let backend = service.backend().await;
    let (hot, other) = (new_key(&backend, Curve::Secp256k1).await, new_key(&backend, Curve::Ed25519).await);
    let crowd = futures::future::join_all((0..40).map(|i| {
        let (backend, hot) = (&backend, &hot);
        async move { backend.sign(hot, Method::Default, &digest(i), password()).await }
    }));
    let bystander = async {
        for i in 0..10 {
            backend.sign(&other, Method::Default, &message(&i.to_string()), password()).await.unwrap();
        }
    };
    let (signed, ()) = futures::join!(crowd, bystander);
    for signed in signed {
        signed.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_key_refuses_at_publish() {
    let mut service = Deployment::new();
    service.start_node("node1");
    service.start_node("node2");
    service.worker_settings = vec![("TREFOIL_JOBS_PER_KEY", "2".to_owned())];
    service.start_worker("worker1");
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    service.process("worker1").signal("STOP");
    let forge = Forge::new(&backend);
    let requests: Vec<_> = (0..3).map(|_| forge.sign(&key, &message("m"), &deployment::secrets(&key))).collect();
    backend.publish(&requests[0]).await.unwrap();
    backend.publish(&requests[1]).await.unwrap();
    assert!(matches!(backend.publish(&requests[2]).await.unwrap_err(), ClientError::Busy));
    service.process("worker1").signal("CONT");
    for request in &requests[..2] {
        let result = backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
        assert!(matches!(result.outcome, trefoil::wire::Outcome::Ok { .. }), "{result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlasts_a_stream_that_is_gone_for_a_while() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    let nats = service.nats.connect().await;
    let jetstream = async_nats::jetstream::new(nats);
    jetstream.delete_stream("MPC_BANS").await.unwrap();
    let input = message("m");
    let signing = backend.sign(&key, Method::Default, &input, password());
    let repair = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        trefoil::jobs::streams::provision(&jetstream, &Default::default()).await.unwrap();
    };
    // Without the bans nobody signs; with them again, the job goes on.
    let started = Instant::now();
    futures::join!(signing, repair).0.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2));
}
