//! The quick questions, as a NATS service (`nats micro ls` shows it): the same signed jobs, answered at once and not stored.

use super::Shared;
use super::confirm::Confirming;
use super::failure::Failed;
use super::manage::manage;
use super::password::PasswordJob;
use super::public_key::public_key;
use super::retry::{Schedule, Stop};
use crate::clock::now_ms;
use crate::telemetry::trace::{self, TraceContext};
use crate::wire::{ErrorCode, Fixed, Job, JobError, JobHeaders, JobResult, Op, Outcome, Payload, VERSION, subject};
use async_nats::service::{Request, Service, ServiceExt, error::Error as ServiceError};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Questions answered at a time; beyond it the answer is `OVERLOADED`.
const AT_ONCE: usize = 256;

/// Questions that are answered here; each has the endpoint of its name.
const QUESTIONS: &[Op] = &[Op::PublicKey, Op::ValidatePassword, Op::ValidateShare, Op::Keys, Op::JobStatus, Op::Cancel];

/// Serves `mpc.api.<question>` until `stop`, then finishes what it has begun.
///
/// # Errors
/// If the service cannot be registered.
pub async fn serve(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) -> Result<(), async_nats::Error> {
    let service: Service = shared
        .nats
        .service_builder()
        .description("Trefoil workers")
        .start("trefoil", env!("CARGO_PKG_VERSION"))
        .await?;
    let mut endpoints = Vec::with_capacity(QUESTIONS.len());
    for question in QUESTIONS {
        endpoints.push(service.endpoint_builder().name(question.as_str()).add(subject::api(question.as_str())).await?);
    }
    let mut requests = futures::stream::select_all(endpoints);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    loop {
        let request = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            request = requests.next() => request,
        };
        let Some(request) = request else { break };
        while running.try_join_next().is_some() {}
        let (shared, place) = (shared.clone(), places.clone().try_acquire_owned());
        running.spawn(async move {
            let body = &request.message.payload;
            let answer = match place {
                Ok(_) => answer(&shared, &request).await,
                Err(_) => Err(JobError {
                    code: ErrorCode::Overloaded,
                    message: "too many questions at once".to_owned(),
                    address: None,
                }),
            };
            respond(&request, body, answer).await;
        });
    }
    for endpoint in requests.iter_mut() {
        let _ = endpoint.stop().await;
    }
    while running.join_next().await.is_some() {}
    service.stop().await
}

async fn answer(shared: &Shared, request: &Request) -> Result<JobResult, JobError> {
    let body = &request.message.payload;
    let job = Job::from_request(JobHeaders::from_nats(request.message.headers.as_ref()), body)?;
    // What runs alone is alone with its worker, questions included.
    let _company = shared.company(false).await;
    let traced = trace::begin(TraceContext::from_headers(request.message.headers.as_ref()), |trace| {
        let trace = trace.map(tracing::field::display);
        tracing::info_span!("question", op = job.op().as_str(), job = %job.job_id, key = %job.key_id, trace)
    });
    let outcome = match Box::pin(traced.run(look_up(shared, &job))).await {
        Ok(outcome) => outcome,
        Err(failed) => failed.outcome(),
    };
    Ok(JobResult::of(&job, now_ms(), outcome))
}

async fn look_up(shared: &Shared, job: &Job) -> Result<Outcome, Failed> {
    shared.admit(job, now_ms())?;
    let mut schedule = Schedule::for_question(job.issued_at, job.expires_at);
    let mut confirming = Confirming::default();
    let found = loop {
        match look_once(shared, job, &mut schedule).await {
            Err(stop) => {
                if let Err(stop) = confirming.after(shared, stop, &mut schedule).await {
                    break Err(stop);
                }
            }
            found => break found,
        }
    };
    found.map_err(|stop| match stop {
        Stop::Failed(failed) => failed,
        Stop::Away(..) | Stop::Postponed(..) | Stop::Earlier(_) => {
            Failed::new(ErrorCode::Overloaded, "too busy to answer at once")
        }
    })
}

async fn look_once(shared: &Shared, job: &Job, schedule: &mut Schedule) -> Result<Outcome, Stop> {
    match &job.payload {
        Payload::PublicKey => loop {
            match public_key(shared, job, schedule.call_deadline()).await {
                Ok(key) => break Ok(Outcome::of_key(key)),
                Err(failed) => schedule.pause(failed).await?,
            }
        },
        Payload::Manage(asked) => loop {
            match manage(shared, job, asked, schedule).await {
                Ok(outcome) => break Ok(outcome),
                Err(failed) => schedule.pause(failed).await?,
            }
        },
        Payload::Validate { .. } => PasswordJob::prepare(shared, job, schedule).await?.run(schedule).await,
        _ => Err(Failed::new(ErrorCode::UnsupportedOperation, "this operation is a job: publish it").into()),
    }
}

/// Sends a result, or for a body that names no job, an error of the service with the code as its text.
async fn respond(request: &Request, body: &[u8], answer: Result<JobResult, JobError>) {
    let result = match answer {
        Ok(result) => Ok(result),
        Err(JobError { code, message, address: Some(address) }) => Ok(JobResult {
            version: VERSION,
            job_id: address.job_id,
            key_id: None,
            initiator: address.initiator,
            op: None,
            job_digest: Fixed(Sha256::digest(body).into()),
            completed_at: now_ms(),
            outcome: Outcome::failed(code, message),
        }),
        Err(JobError { code, message, address: None }) => {
            Err(ServiceError { code: 400, status: format!("{code}: {message}") })
        }
    };
    let answer = result.and_then(|result| {
        serde_json::to_vec(&result)
            .map(bytes::Bytes::from)
            .map_err(|error| ServiceError { code: 500, status: error.to_string() })
    });
    if let Err(error) = request.respond(answer).await {
        tracing::info!(%error, "an answer was not sent");
    }
}
