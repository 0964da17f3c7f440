//! `trefoil freeze`, `unfreeze` and `destroy`.

use super::jobfile::{JobFile, NO_CONSENT, TO_BE_AUTHORISED, authoriser};
use super::keyfile::KeyFile;
use super::output::{Failure, Output};
use super::{Given, connect, settings};
use crate::client::{ClientConfig, ClientError};
use crate::wire::{KeyId, Op, OrderedState, StateResult};
use clap::{ArgGroup, Args};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// The key file
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The key's id, 32 hex digits
    #[arg(long, value_name = "ID")]
    key_id: Option<KeyId>,
}

/// The key that the command line names.
pub fn key_id(target: &Target, config: &ClientConfig) -> Result<KeyId, Failure> {
    named_key(target.key.as_deref(), target.key_id, config)
}

fn named_key(key: Option<&Path>, key_id: Option<KeyId>, config: &ClientConfig) -> Result<KeyId, Failure> {
    match (key, key_id) {
        (_, Some(id)) => Ok(id),
        (Some(path), None) => Ok(KeyFile::read(path, &config.nodes)?.key_id()),
        (None, None) => Err(Failure::usage("name a --key or a --key-id")),
    }
}

#[derive(Args)]
#[command(group(ArgGroup::new("what").required(true)))]
pub struct Destroy {
    /// The key file
    #[arg(long, value_name = "FILE", group = "what")]
    key: Option<PathBuf>,
    /// The key's id, 32 hex digits
    #[arg(long, value_name = "ID", group = "what")]
    key_id: Option<KeyId>,
    /// Seed file of a recovery authoriser (SU…), where owner and authoriser sit together
    #[arg(long, value_name = "FILE", conflicts_with_all = ["save_job", "job"])]
    authoriser_seed_file: Option<PathBuf>,
    /// Write the signed job into this file and do nothing else: for the authoriser, who has an hour
    #[arg(long, value_name = "FILE", conflicts_with = "job")]
    save_job: Option<PathBuf>,
    /// Send this job, which the authoriser has signed too
    #[arg(long, value_name = "FILE", group = "what")]
    job: Option<PathBuf>,
    /// It cannot be undone: say that you mean it
    #[arg(long)]
    yes: bool,
}

/// Freezes or unfreezes.
pub async fn run(config: Given<'_>, target: &Target, state: OrderedState, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    let key_id = key_id(target, &config)?;
    let backend = connect(config, output).await?;
    let result = output.patiently("asking both nodes", backend.order(key_id, state, None)).await?;
    show(key_id, &result, output);
    Ok(())
}

pub async fn destroy(config: Given<'_>, arguments: &Destroy, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    if let Some(path) = &arguments.job {
        let (file, job) = JobFile::read_for(path, Op::Destroy)?;
        meant(arguments.yes)?;
        let request = file.request(&job);
        let backend = connect(config, output).await?;
        let sent = backend.ordered(&request, OrderedState::Destroyed);
        let result = output.patiently("asking both nodes", sent).await?;
        show(job.key_id, &result, output);
        return Ok(());
    }
    let key_id = named_key(arguments.key.as_deref(), arguments.key_id, &config)?;
    let authoriser = arguments.authoriser_seed_file.as_deref().map(authoriser).transpose()?;
    if authoriser.is_none() && arguments.save_job.is_none() {
        return Err(Failure::usage(NO_CONSENT));
    }
    if let Some(path) = &arguments.save_job {
        let backend = connect(config, output).await?;
        let made = backend.jobs().order(key_id, OrderedState::Destroyed, &backend.reply_key()?, TO_BE_AUTHORISED);
        let made = made.map_err(ClientError::from)?;
        JobFile::create(path, &made)?;
        let lines = [("key id", key_id.to_string()), ("job file", path.display().to_string())];
        output.answer(&lines, &json!({ "keyId": key_id, "jobFile": path, "expiresAt": made.expires_at }));
        return Ok(());
    }
    meant(arguments.yes)?;
    let backend = connect(config, output).await?;
    let ordered = backend.order(key_id, OrderedState::Destroyed, authoriser.as_ref());
    let result = output.patiently("asking both nodes", ordered).await?;
    show(key_id, &result, output);
    Ok(())
}

fn meant(yes: bool) -> Result<(), Failure> {
    if yes { Ok(()) } else { Err(Failure::usage("a destroyed key is gone for ever: add --yes if you mean it")) }
}

fn show(key_id: KeyId, result: &StateResult, output: &Output) {
    let lines = [
        ("key id", key_id.to_string()),
        ("state", result.state.as_str().to_owned()),
        ("signed by", "node 1 and node 2".to_owned()),
    ];
    output.answer(&lines, &json!({ "keyId": key_id, "state": result.state, "attestations": result.attestations }));
}
