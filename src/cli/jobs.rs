//! `trefoil job` and `trefoil cancel-recovery`.

use super::orders::{Target, key_id};
use super::output::{Failure, Output};
use super::{Given, connect, settings};
use crate::wire::{JobId, JobStatus};
use clap::{Args, Subcommand};
use serde_json::json;

#[derive(Subcommand)]
pub enum Command {
    /// Tell how far a job is
    #[command(after_help = STATES)]
    Status(WhichJob),
    /// Keep a job from being started
    #[command(
        after_help = "Exit codes: 0 the job will not be done, 1 it is too late (JOB_STARTED) or another job error."
    )]
    Cancel(WhichJob),
}

const STATES: &str = "\
done: it has a result. cancelled: it will not be done. started: node 1 has begun with it. waiting: it is in the key's queue. \
unknown: nobody knows it, or its result is kept no more.";

#[derive(Args)]
pub struct WhichJob {
    /// The job's id
    #[arg(long, value_name = "ID")]
    job_id: JobId,
    #[command(flatten)]
    key: Target,
}

pub async fn run(config: Given<'_>, command: &Command, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    let (Command::Status(which) | Command::Cancel(which)) = command;
    let key_id = key_id(&which.key, &config)?;
    let backend = connect(config, output).await?;
    let status = match command {
        Command::Status(_) => output.patiently("asking", backend.job_status(key_id, &which.job_id)).await?,
        Command::Cancel(_) => output.patiently("asking node 1", backend.cancel_job(key_id, &which.job_id)).await?,
    };
    show(&status, output);
    Ok(())
}

fn show(status: &JobStatus, output: &Output) {
    let mut lines = vec![("job id", status.job_id.to_string()), ("state", status.state.as_str().to_owned())];
    lines.extend(status.result_subject.clone().map(|subject| ("result in", subject)));
    output.answer(&lines, &json!(status));
}

pub async fn cancel_recovery(config: Given<'_>, target: &Target, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    let key_id = key_id(target, &config)?;
    let backend = connect(config, output).await?;
    let result = output.patiently("asking both nodes", backend.cancel_recovery(key_id)).await?;
    let lines = [
        ("key id", key_id.to_string()),
        ("recovery", "cancelled".to_owned()),
        ("signed by", "node 1 and node 2".to_owned()),
    ];
    output.answer(&lines, &json!({ "keyId": key_id, "recovery": "cancelled", "attestations": result.attestations }));
    Ok(())
}
