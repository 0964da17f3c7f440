//! The JetStream streams that Trefoil lives on: made if absent, checked if present, never altered.
//!
//! An operator may have made them with limits, replicas and placement of their own; those are respected. What the service's
//! promises rest on (no job dropped silently, one result per job, bans for ever) is checked, and a stream that breaks it stops
//! the start with every problem named.

use crate::wire::subject::{
    ALL_BANS, ALL_BULK, ALL_JOBS, ALL_LEASES, ALL_RESULTS, BANS_STREAM, BULK_STREAM, JOBS_STREAM, LEASES_STREAM,
    RESULTS_STREAM,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, context::GetStreamErrorKind};
use std::time::Duration;

/// How often a redelivered job has taken its worker down.
pub const ATTEMPTS: &str = "MPC_ATTEMPTS";

/// Largest message of any stream, in bytes: above the largest job (256 KiB), so that a job that is too large still gets a
/// result that says so, and below what closes a leaf connection of another organisation.
pub const MAX_MESSAGE: i32 = 512 * 1024;

/// What the streams are made with where they do not exist yet.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// Copies of each stream: 1, or 3 (with three servers) in production.
    pub replicas: usize,
    /// Jobs of one key, operation and lane that may wait or run at a time; the next one is refused when it is published
    /// (error 10077).
    pub jobs_per_key: i64,
    /// Jobs of a lane that may wait or run at a time; the next one is refused when it is published (error 10077).
    pub jobs_total: i64,
    /// How long results are kept: at least twice the longest lifetime of a job.
    pub results_kept: Duration,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self { replicas: 1, jobs_per_key: 64, jobs_total: 1_000_000, results_kept: Duration::from_secs(48 * 3600) }
    }
}

/// Why the streams cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// JetStream did not answer, or refused.
    #[error("stream {stream}: {reason}")]
    Unavailable {
        /// Name of the stream.
        stream: String,
        /// What the server or the client library said.
        reason: String,
    },
    /// A stream exists whose configuration would break a promise of the service.
    #[error("stream {stream} exists with an unsafe configuration: {}", problems.join("; "))]
    Unsafe {
        /// Name of the stream.
        stream: String,
        /// Each setting that is wrong, with what it must be.
        problems: Vec<String>,
    },
}

/// The streams' configurations, in the order in which they are made.
pub fn configurations(settings: &StreamSettings) -> Vec<Config> {
    let base = Config {
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        num_replicas: settings.replicas,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_bytes: -1,
        max_message_size: MAX_MESSAGE,
        ..Config::default()
    };
    // Each lane has a stream, and with it limits, of its own: no number of bulk jobs has an interactive one refused.
    let jobs = |name: &str, subjects: &str, what: &str| Config {
        name: name.into(),
        description: Some(format!("{what} that wait or run; a full stream or key refuses at publish")),
        subjects: vec![subjects.into()],
        retention: RetentionPolicy::WorkQueue,
        max_messages: settings.jobs_total,
        max_messages_per_subject: settings.jobs_per_key,
        discard_new_per_subject: true,
        ..base.clone()
    };
    vec![
        jobs(JOBS_STREAM, ALL_JOBS, "Interactive jobs"),
        jobs(BULK_STREAM, ALL_BULK, "Bulk jobs"),
        Config {
            name: RESULTS_STREAM.into(),
            description: Some("One result per job, by compare-and-set".into()),
            subjects: vec![ALL_RESULTS.into()],
            max_age: settings.results_kept,
            // Backends look their results up, by subject; workers ask the stream's leader.
            allow_direct: true,
            ..base.clone()
        },
        Config {
            name: BANS_STREAM.into(),
            description: Some("Keys locked after a failed check: no age, no deletion".into()),
            subjects: vec![ALL_BANS.into()],
            deny_delete: true,
            deny_purge: true,
            ..base.clone()
        },
        Config {
            name: LEASES_STREAM.into(),
            description: Some("Which worker's turn it is at a key; each lease ends by its own TTL".into()),
            subjects: vec![ALL_LEASES.into()],
            max_messages_per_subject: 1,
            allow_message_ttl: true,
            ..base.clone()
        },
        Config {
            name: ATTEMPTS.into(),
            description: Some("Redelivered jobs: how often each has taken its worker down".into()),
            subjects: vec!["mpc.attempt.>".into()],
            max_age: settings.results_kept,
            discard: DiscardPolicy::Old,
            max_messages_per_subject: 1,
            ..base
        },
    ]
}

/// Makes the streams that do not exist and checks those that do. Several workers may do so at the same time.
///
/// # Errors
/// [`StreamError::Unavailable`] if JetStream cannot be asked, [`StreamError::Unsafe`] for the first stream that exists with a
/// configuration that would break a promise.
pub async fn provision(jetstream: &Context, settings: &StreamSettings) -> Result<(), StreamError> {
    for wanted in configurations(settings) {
        let unavailable = |reason: String| StreamError::Unavailable { stream: wanted.name.clone(), reason };
        let found = match jetstream.get_stream(&wanted.name).await {
            Ok(stream) => stream.cached_info().config.clone(),
            Err(error) if is_absent(&error.kind()) => {
                let made = jetstream.create_stream(wanted.clone()).await;
                match made {
                    Ok(stream) => {
                        tracing::info!(stream = %wanted.name, "stream made");
                        stream.cached_info().config.clone()
                    }
                    // Another worker may have made it, with other limits, since we asked.
                    Err(refused) => match jetstream.get_stream(&wanted.name).await {
                        Ok(stream) => stream.cached_info().config.clone(),
                        Err(_) => return Err(unavailable(refused.to_string())),
                    },
                }
            }
            Err(error) => return Err(unavailable(error.to_string())),
        };
        let problems = problems(&wanted, &found);
        if !problems.is_empty() {
            return Err(StreamError::Unsafe { stream: wanted.name, problems });
        }
    }
    Ok(())
}

fn is_absent(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error)
        if error.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND)
}

/// The settings of `found` that would break a promise of the service.
fn problems(wanted: &Config, found: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let mut require = |fine: bool, what: String| {
        if !fine {
            problems.push(what);
        }
    };
    require(found.subjects == wanted.subjects, format!("subjects must be {:?}", wanted.subjects));
    require(found.storage == StorageType::File, "storage must be file".into());
    require(found.retention == wanted.retention, format!("retention must be {:?}", wanted.retention));
    require(found.discard == wanted.discard, format!("discard policy must be {:?}", wanted.discard));
    require(!found.no_ack, "publications must be acknowledged".into());
    require(
        found.max_message_size < 0 || found.max_message_size >= 300 * 1024,
        "max_msg_size must be at least 300 KiB".into(),
    );
    match wanted.name.as_str() {
        JOBS_STREAM | BULK_STREAM => {
            require(
                found.max_messages_per_subject > 0 && found.discard_new_per_subject,
                "jobs per key must be limited with discard_new_per_subject".into(),
            );
            require(found.max_age.is_zero(), "jobs must not have an age limit: an old job ends in a result".into());
        }
        RESULTS_STREAM => {
            require(
                found.max_age.is_zero() || found.max_age >= wanted.max_age,
                format!("results must be kept at least {} s", wanted.max_age.as_secs()),
            );
            require(found.allow_direct, "direct access must be allowed: backends look their results up by it".into());
        }
        BANS_STREAM => {
            require(found.max_age.is_zero(), "bans must not have an age limit".into());
            require(found.deny_delete && found.deny_purge, "deletion and purge must be denied".into());
        }
        LEASES_STREAM => {
            require(found.allow_message_ttl, "messages must be allowed a TTL: a lease must end by itself".into());
            require(found.max_age.is_zero(), "leases must not have an age limit".into());
            require(found.max_messages_per_subject == 1, "one message must be kept per key".into());
        }
        _ => {}
    }
    problems
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;

    #[test]
    fn what_we_make_is_what_we_accept() {
        for config in configurations(&StreamSettings::default()) {
            assert!(problems(&config, &config).is_empty(), "{}", config.name);
        }
    }

    #[test]
    fn a_stream_that_would_drop_jobs_or_bans_is_refused_with_every_problem() {
        let made = configurations(&StreamSettings::default());
        for jobs in &made[..2] {
            let altered = Config { discard: DiscardPolicy::Old, discard_new_per_subject: false, ..jobs.clone() };
            assert_eq!(problems(jobs, &altered).len(), 2);
        }
        let results = Config { max_age: Duration::from_secs(60), allow_direct: false, ..made[2].clone() };
        assert_eq!(problems(&made[2], &results).len(), 2);
        let bans = Config { max_age: Duration::from_secs(60), deny_delete: false, ..made[3].clone() };
        assert_eq!(problems(&made[3], &bans).len(), 2);
        let leases = Config { allow_message_ttl: false, max_messages_per_subject: -1, ..made[4].clone() };
        assert_eq!(problems(&made[4], &leases).len(), 2);
    }
}
