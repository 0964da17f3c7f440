//! `trefoil node pending`: what is prepared and not committed, what resolves it, and dropping what nothing ever will; recoveries that
//! wait.

use super::node::{about, node_settings};
use super::output::{Failure, Output, shown_time};
use crate::node::store::{Fate, Request, StoppedStore, Stored};
use crate::node::{Node, NodeKeys};
use crate::wire::{Fixed, KeyId, subject};
use clap::Args;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub const HELP: &str = "\
Nothing prepared ever times out. It is resolved by
- its result: if that is in the subject and names this attempt, the job's redelivery, the key's first use or the workers' minute \
round commits it;
- node 1's word: what node 1 has committed or dropped, and what it has not prepared within 10 minutes, node 2 follows within a \
minute or two while a worker runs;
- other shares: whatever takes the place of the same source, or becomes the same key, ends it;
- node 1's operator: where the job has ended, and its result is an error or names another attempt, --discard drops it at node 1, and node 2 \
follows. With the settings of node 1 (--config, or TREFOIL_CONFIG and TREFOIL_*), while it is stopped.
A recovery that waits and that nobody meant is cancelled by the key's owner: trefoil cancel-recovery.
Never discard an attempt that a stored result names: its backend may hold the only other share of a key that is to be.
Exit codes: 0 listed or dropped, 2 not readable, or nothing was dropped.";

#[derive(Args)]
pub struct Arguments {
    /// The node's data directory, or a copy
    data_dir: PathBuf,
    /// Drop this attempt (its transcript hash, 64 hex digits); node 1 only
    #[arg(long, value_name = "ATTEMPT", requires = "yes", value_parser = transcript)]
    discard: Option<[u8; 32]>,
    /// The attempt's job has ended, and no result names it
    #[arg(long)]
    yes: bool,
}

fn transcript(text: &str) -> Result<[u8; 32], &'static str> {
    Fixed::parse_hex(text).map(|Fixed(bytes)| bytes).ok_or("must be 64 hex digits")
}

pub async fn run(config: Option<&Path>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let directory = &arguments.data_dir;
    let store = StoppedStore::open(directory).map_err(|error| about(directory, &error))?;
    let mut prepared = Vec::new();
    let listed = store.for_each(|stored| prepared.extend((stored.fate == Fate::Prepared).then_some(stored)));
    listed.map_err(|error| about(directory, &error))?;
    let recoveries = store.recoveries().map_err(|error| about(directory, &error))?;
    drop(store);
    match arguments.discard {
        None => list(&prepared, &recoveries, output),
        Some(transcript) => {
            let found = prepared.into_iter().find(|stored| stored.attempt.transcript == transcript);
            let found = found.ok_or_else(|| Failure::usage("no such attempt is prepared here"))?;
            discard(config, directory, &found, output).await?;
        }
    }
    Ok(())
}

fn list(prepared: &[Stored], recoveries: &[(KeyId, Request)], output: &Output) {
    let mut lines = vec![("prepared", prepared.len().to_string())];
    for Stored { attempt, since, .. } in prepared {
        lines.push(("", String::new()));
        lines.push(("key id", attempt.key_id.to_string()));
        lines.extend(attempt.source_key_id.map(|source| ("  in place of", source.to_string())));
        lines.push(("  curve, epoch", format!("{}, {}", attempt.curve, attempt.epoch)));
        lines.push(("  attempt", HEXLOWER.encode(&attempt.transcript)));
        lines.extend(since.map(|since| ("  since", shown_time(since))));
        lines.push(("  resolved by", subject::result(&attempt.initiator, &attempt.job_id)));
    }
    lines.push(("", String::new()));
    lines.push(("recoveries", recoveries.len().to_string()));
    for (key, request) in recoveries {
        lines.push(("", String::new()));
        lines.push(("key id", key.to_string()));
        lines.push(("  requested", format!("{} by job {}", shown_time(request.requested_at), request.job_id)));
        lines.push(("  of", request.owner.to_string()));
        lines.push(("  executable", format!("{} to {}", shown_time(request.retry_at), shown_time(request.until))));
    }
    let object = json!({
        "prepared": prepared.iter().map(shown).collect::<Vec<_>>(),
        "recoveries": recoveries.iter().map(waiting).collect::<Vec<_>>(),
    });
    output.answer(&lines, &object);
}

fn waiting((key, request): &(KeyId, Request)) -> Value {
    json!({
        "keyId": key,
        "initiator": request.owner,
        "jobId": request.job_id,
        "jobDigest": HEXLOWER.encode(&request.digest),
        "requestedAt": request.requested_at,
        "retryAt": request.retry_at,
        "until": request.until,
    })
}

fn shown(Stored { attempt, since, .. }: &Stored) -> Value {
    json!({
        "keyId": attempt.key_id,
        "sourceKeyId": attempt.source_key_id,
        "curve": attempt.curve,
        "epoch": attempt.epoch,
        "transcript": HEXLOWER.encode(&attempt.transcript),
        "since": since,
        "initiator": attempt.initiator,
        "jobId": attempt.job_id,
        "resultSubject": subject::result(&attempt.initiator, &attempt.job_id),
    })
}

async fn discard(config: Option<&Path>, directory: &Path, stored: &Stored, output: &Output) -> Result<(), Failure> {
    let config = node_settings(config)?;
    let failed = |error: anyhow::Error| Failure::usage(format!("{}: {error:#}", directory.display()));
    let keys = NodeKeys {
        role: config.role,
        identity: config.identity,
        former: config.former_identities,
        peers: config.peer_identity,
        master: config.master_key,
        authorisers: config.authorisers,
    };
    let node = Node::open(directory, keys, config.policy, config.limits).map_err(failed)?;
    node.discard_by_operator(&stored.attempt).await.map_err(failed)?;
    let lines = [("discarded", HEXLOWER.encode(&stored.attempt.transcript))];
    output.answer(&lines, &json!({ "discarded": shown(stored) }));
    Ok(())
}
