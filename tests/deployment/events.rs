//! What the workers say of the jobs, in the order in which the server heard it.

use super::Deployment;
use crate::support::PATIENCE;
use futures::StreamExt;
use std::collections::HashMap;
use trefoil::client::SignedRequest;
use trefoil::wire::{Event, EventOutcome, JobId};

/// One thing that was heard.
#[derive(Debug, Clone)]
pub enum Heard {
    Event(Event),
    /// A mark of the test's own.
    Mark(String),
}

/// All life-cycle events of sign jobs since this was made.
pub struct Events {
    nats: async_nats::Client,
    subscriber: async_nats::Subscriber,
    pub heard: Vec<Heard>,
}

impl Events {
    pub async fn listen(service: &Deployment) -> Self {
        let nats = service.nats.connect().await;
        let subscriber = crate::support::subscribed(&nats, "mpc.event.sign.*").await;
        Self { nats, subscriber, heard: Vec::new() }
    }

    /// Something that publishes jobs, each behind a mark.
    pub fn marker(&self) -> Marker {
        Marker { jetstream: async_nats::jetstream::new(self.nats.clone()), nats: self.nats.clone() }
    }

    /// Listens until this holds of what was heard.
    pub async fn until(&mut self, enough: impl Fn(&Self) -> bool) {
        while !enough(self) {
            let message = tokio::time::timeout(PATIENCE, self.subscriber.next()).await;
            let message = message.unwrap_or_else(|_| panic!("nothing more is heard after {:?}", self.heard)).unwrap();
            self.heard.push(match message.subject.strip_prefix("mpc.event.sign.mark-") {
                Some(mark) => Heard::Mark(mark.to_owned()),
                None => Heard::Event(serde_json::from_slice(&message.payload).unwrap()),
            });
        }
    }

    /// The events among it.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.heard.iter().filter_map(|heard| match heard {
            Heard::Event(event) => Some(event),
            Heard::Mark(_) => None,
        })
    }

    /// The workers that said this of a job, in order.
    pub fn of(&self, job: &JobId, outcome: EventOutcome) -> Vec<&str> {
        let said = self.events().filter(|event| event.job_id == *job && event.outcome == outcome);
        said.map(|event| event.worker_id.as_str()).collect()
    }

    /// How many jobs have this outcome.
    pub fn count(&self, outcome: EventOutcome) -> usize {
        let jobs = self.events().filter(|event| event.outcome == outcome).map(|event| &event.job_id);
        jobs.collect::<std::collections::HashSet<_>>().len()
    }

    /// How many jobs each worker has completed.
    pub fn completed(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for event in self.events().filter(|event| event.outcome == EventOutcome::Completed) {
            *counts.entry(event.worker_id.clone()).or_default() += 1;
        }
        counts
    }
}

/// Publishes jobs behind marks.
#[derive(Clone)]
pub struct Marker {
    nats: async_nats::Client,
    jetstream: async_nats::jetstream::Context,
}

impl Marker {
    /// A mark with the job's id and right behind it, on the same connection, the job.
    pub async fn publish(&self, request: &SignedRequest) {
        self.nats.publish(format!("mpc.event.sign.mark-{}", request.job_id), "".into()).await.unwrap();
        let (subject, headers, body) = (request.subject.clone(), request.headers.clone(), request.body.clone());
        self.jetstream.publish_with_headers(subject, headers, body.into()).await.unwrap().await.unwrap();
    }
}

impl Deployment {
    /// The name of a worker that runs, in events.
    pub fn worker_id(&self, name: &str) -> String {
        let ready = self.running[name].wait_for("ready");
        let id = ready.split("worker=").nth(1).and_then(|rest| rest.split_whitespace().next());
        id.unwrap_or_else(|| panic!("no worker in {ready:?}")).to_owned()
    }
}
