//! Signing jobs without a pause, while something of the service is replaced.

use super::{Deployment, PATIENCE, message, new_key, secrets};
use async_nats::jetstream;
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use trefoil::client::{Backend, SignedRequest, SigningMaterial};
use trefoil::wire::{Curve, Method, Outcome};

pub fn job(backend: &Backend, key: &SigningMaterial, lifetime: Duration) -> SignedRequest {
    let (jobs, reply) = (backend.jobs(), backend.reply_key().unwrap());
    jobs.sign(key.key_id, Method::Default, &message("m"), &secrets(key), &reply, lifetime).unwrap()
}

/// Jobs without a pause until it is stopped.
pub struct Load {
    backend: watch::Sender<Arc<Backend>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    done: Arc<AtomicUsize>,
    over: watch::Sender<bool>,
}

impl Load {
    /// Four at a time for these keys. Each job is the present backend's.
    pub fn start(backend: Backend, keys: Vec<SigningMaterial>) -> Self {
        let ((backend, from), (over, end)) = (watch::channel(Arc::new(backend)), watch::channel(false));
        let (keys, done) = (Arc::new(keys), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..4).map(|me| {
            let (from, end, keys, done) = (from.clone(), end.clone(), keys.clone(), done.clone());
            tokio::spawn(async move {
                for number in me.. {
                    if *end.borrow() {
                        break;
                    }
                    let backend = from.borrow().clone();
                    let request = job(&backend, &keys[number % keys.len()], PATIENCE);
                    let result = backend.run(&request).await.unwrap();
                    assert!(matches!(result.outcome, Outcome::Ok { signature: Some(_), .. }), "{result:?}");
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        Self { backend, tasks: tasks.collect(), done: done.clone(), over }
    }

    pub async fn until(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let waiting = async {
            while !reached() {
                assert!(self.tasks.iter().all(|task| !task.is_finished()), "a job failed, before {what}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(2 * PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
    }

    /// Waits until so many more jobs are done.
    pub async fn more(&self, count: usize) {
        let target = self.done.load(Ordering::SeqCst) + count;
        self.until("further jobs", || self.done.load(Ordering::SeqCst) >= target).await;
    }

    /// All further jobs are this backend's; returns when none of another runs.
    pub async fn move_to(&self, backend: Backend) {
        let before = self.backend.send_replace(Arc::new(backend));
        self.until("the old backend's end", || Arc::strong_count(&before) == 1).await;
    }

    /// How many were done.
    pub async fn stop(self) -> usize {
        self.over.send(true).unwrap();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.done.load(Ordering::SeqCst)
    }
}

/// Ends a worker in good order and starts it again.
pub fn restart(service: &mut Deployment, name: &str) {
    assert!(service.running.remove(name).unwrap().terminate().success());
    service.start_worker(name);
}

/// How many results there are; no job has two.
pub async fn results(service: &Deployment) -> usize {
    let jetstream = jetstream::new(service.nats.connect().await);
    let stream = jetstream.get_stream("MPC_RESULTS").await.unwrap();
    let mut subjects = stream.info_with_subjects("mpc.result.>").await.unwrap();
    let mut count = 0;
    while let Some(subject) = subjects.next().await {
        let (subject, messages) = subject.unwrap();
        assert_eq!(messages, 1, "{subject}");
        assert!(!subject.ends_with(".refused"), "{subject}");
        count += 1;
    }
    count
}

pub async fn keys(backend: &Backend) -> Vec<SigningMaterial> {
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(new_key(backend, Curve::Ed25519).await);
    }
    keys
}
