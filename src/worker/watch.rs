//! What no job finds out, and operators want to know: how full the queues are, and whether a node that no job asks is there.

use super::retry::call_deadline;
use super::{Shared, nodes};
use crate::channel::NodeChannel;
use crate::jobs::gauges;
use crate::wire::Lane;
use crate::wire::node::NodeRequest;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Watches until told to stop: looks at the queues every `every`, and asks a node something that was silent for so long.
pub async fn run(shared: Arc<Shared>, every: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        let round = async {
            let nodes = [&shared.node1, &shared.node2].map(|channel| node(channel, every));
            futures::join!(queues(&shared), results(&shared), futures::future::join_all(nodes));
            tokio::time::sleep(every).await;
        };
        tokio::select! {
            () = round => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// What cannot be found out is not shown: an old value would look like one of now.
async fn queues(shared: &Shared) {
    let metrics = &shared.metrics;
    let looks = Lane::ALL.iter().map(|lane| gauges::queue(&shared.jetstream, *lane));
    for (lane, found) in Lane::ALL.iter().zip(futures::future::join_all(looks).await) {
        let lane = [lane.as_str()];
        match found {
            Ok(state) => {
                metrics.queue_jobs.with_label_values(&lane).set(number(state.jobs));
                metrics.queue_pending.with_label_values(&lane).set(number(state.pending));
                metrics.queue_oldest.with_label_values(&lane).set(state.oldest.as_secs_f64());
            }
            Err(error) => {
                tracing::debug!(%error, "a queue cannot be looked at");
                // An error only says that it was not there.
                let _ = metrics.queue_jobs.remove_label_values(&lane);
                let _ = metrics.queue_pending.remove_label_values(&lane);
                let _ = metrics.queue_oldest.remove_label_values(&lane);
            }
        }
    }
}

async fn results(shared: &Shared) {
    match gauges::results(&shared.jetstream).await {
        Ok(state) => {
            shared.metrics.result_readers.set(number(state.readers as u64));
            shared.metrics.results_kept.set(number(state.kept));
        }
        Err(error) => tracing::debug!(%error, "the results cannot be looked at"),
    }
}

/// Any answer will do. This question costs a node nothing that no job brings.
async fn node(channel: &NodeChannel, every: Duration) {
    if channel.quiet().is_some_and(|quiet| quiet >= every) {
        let _ = nodes::call(channel, call_deadline(), NodeRequest::Undecided, |_| Ok(())).await;
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
