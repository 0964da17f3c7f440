//! `trefoil freeze`, `unfreeze`, `destroy` and `authorise`.

use super::keyfile::{Existing, KeyFile, write};
use super::output::{Failure, Output};
use super::{connect, settings};
use crate::client::{ClientConfig, ClientError, SignedRequest};
use crate::wire::{
    Authorisation, Base64, Fixed, Job, JobHeaders, KeyId, Op, OrderedState, SignedJob, StateResult, VERSION, subject,
};
use clap::{ArgGroup, Args};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a job lives that goes to an authoriser first: the most that nodes accept.
const TO_BE_AUTHORISED: Duration = Duration::from_secs(3_600);

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
fn key_id(key: Option<&Path>, key_id: Option<KeyId>, config: &ClientConfig) -> Result<KeyId, Failure> {
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

#[derive(Args)]
pub struct Authorise {
    /// The job file to consent to
    #[arg(long, value_name = "FILE")]
    job: PathBuf,
    /// Seed file of the recovery authoriser (SU…)
    #[arg(long, value_name = "FILE")]
    authoriser_seed_file: PathBuf,
}

/// A signed job on its way to an authoriser and back, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JobFile {
    /// Always 1.
    version: u32,
    /// The exact bytes that were signed.
    body: Base64,
    /// The initiator's.
    signature: Fixed<64>,
    /// The authoriser's, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authorisation: Option<Authorisation>,
}

impl JobFile {
    fn read(path: &Path) -> Result<(Self, Job), Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", path.display()));
        let text = std::fs::read(path).map_err(|error| wrong(&error))?;
        let file: Self = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        if file.version != VERSION {
            return Err(wrong(&"not a job file of version 1"));
        }
        let signed = SignedJob {
            body: file.body.0.clone(),
            signature: file.signature,
            authorisation: file.authorisation.clone(),
        };
        let job = Job::from_signed(&signed).map_err(|error| wrong(&error))?;
        Ok((file, job))
    }

    fn write(&self, path: &Path, existing: Existing) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Failure::usage(error.to_string()))?;
        write(path, &text, existing)
    }
}

/// Freezes or unfreezes.
pub async fn run(config: Option<&Path>, target: &Target, state: OrderedState, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    let key_id = key_id(target.key.as_deref(), target.key_id, &config)?;
    let backend = connect(config, output).await?;
    let result = output.patiently("asking both nodes", backend.order(key_id, state, None)).await?;
    show(key_id, &result, output);
    Ok(())
}

pub async fn destroy(config: Option<&Path>, arguments: &Destroy, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    if let Some(path) = &arguments.job {
        let (file, job) = JobFile::read(path)?;
        if job.op() != Op::Destroy {
            return Err(Failure::usage(format!("{}: the job does not destroy a key", path.display())));
        }
        meant(arguments.yes)?;
        let request = request(&file, &job);
        let backend = connect(config, output).await?;
        let sent = backend.ordered(&request, OrderedState::Destroyed);
        let result = output.patiently("asking both nodes", sent).await?;
        show(job.key_id, &result, output);
        return Ok(());
    }
    let key_id = key_id(arguments.key.as_deref(), arguments.key_id, &config)?;
    let authoriser = arguments.authoriser_seed_file.as_deref().map(authoriser).transpose()?;
    if authoriser.is_none() && arguments.save_job.is_none() {
        return Err(Failure::usage(
            "a recovery authoriser must consent: --authoriser-seed-file, or --save-job for `trefoil authorise`",
        ));
    }
    if let Some(path) = &arguments.save_job {
        let backend = connect(config, output).await?;
        let made = backend.jobs().order(key_id, OrderedState::Destroyed, &backend.reply_key()?, TO_BE_AUTHORISED);
        let made = made.map_err(ClientError::from)?;
        let signature = signature_of(&made).ok_or_else(|| Failure::usage("the job has no signature"))?;
        let file = JobFile { version: VERSION, body: Base64(made.body), signature, authorisation: None };
        file.write(path, Existing::Refuse)?;
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

/// Adds the authoriser's signature to a job file, and shows what was consented to.
pub fn authorise(arguments: &Authorise, output: &Output) -> Result<(), Failure> {
    let (mut file, job) = JobFile::read(&arguments.job)?;
    let key = authoriser(&arguments.authoriser_seed_file)?;
    let consent = crate::auth::authorise(&key, &file.body.0).ok_or_else(|| Failure::usage("the seed cannot sign"))?;
    if consent.authoriser == job.initiator {
        return Err(Failure::usage("the job's own initiator cannot authorise it"));
    }
    let name = consent.authoriser.to_string();
    file.authorisation = Some(consent);
    file.write(&arguments.job, Existing::Replace)?;
    let lines = [
        ("operation", job.op().to_string()),
        ("key id", job.key_id.to_string()),
        ("initiator", job.initiator.to_string()),
        ("authorised by", name.clone()),
    ];
    let object = json!({
        "op": job.op(), "keyId": job.key_id, "initiator": job.initiator, "authoriser": name,
        "replyKey": job.reply_key, "expiresAt": job.expires_at,
    });
    output.answer(&lines, &object);
    Ok(())
}

fn meant(yes: bool) -> Result<(), Failure> {
    if yes { Ok(()) } else { Err(Failure::usage("a destroyed key is gone for ever: add --yes if you mean it")) }
}

fn authoriser(path: &Path) -> Result<KeyPair, Failure> {
    let wrong = |what: String| Failure::usage(format!("{}: {what}", path.display()));
    let seed = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?);
    let pair = KeyPair::from_seed(seed.trim()).ok().filter(|pair| pair.public_key().starts_with('U'));
    pair.ok_or_else(|| wrong("not an NKEY seed of a user (SU…)".to_owned()))
}

fn signature_of(request: &SignedRequest) -> Option<Fixed<64>> {
    let text = request.headers.get(JobHeaders::SIGNATURE)?;
    let bytes = data_encoding::BASE64.decode(text.as_str().as_bytes()).ok()?;
    bytes.try_into().ok().map(Fixed)
}

/// The request that a job file holds.
fn request(file: &JobFile, job: &Job) -> SignedRequest {
    let mut headers = async_nats::HeaderMap::new();
    let base64 = |signature: &Fixed<64>| data_encoding::BASE64.encode(&signature.0);
    headers.insert(JobHeaders::VERSION, "1");
    headers.insert(JobHeaders::SIGNATURE, base64(&file.signature));
    if let Some(consent) = &file.authorisation {
        headers.insert(JobHeaders::AUTHORISER, consent.authoriser.as_str());
        headers.insert(JobHeaders::AUTHORISER_SIGNATURE, base64(&consent.signature));
    }
    SignedRequest {
        subject: subject::job(job.op(), &job.key_id),
        headers,
        body: file.body.0.clone(),
        digest: job.digest,
        op: job.op(),
        job_id: job.job_id.clone(),
        key_id: job.key_id,
        expires_at: job.expires_at,
    }
}

fn show(key_id: KeyId, result: &StateResult, output: &Output) {
    let lines = [
        ("key id", key_id.to_string()),
        ("state", result.state.as_str().to_owned()),
        ("signed by", "node 1 and node 2".to_owned()),
    ];
    output.answer(&lines, &json!({ "keyId": key_id, "state": result.state, "attestations": result.attestations }));
}
