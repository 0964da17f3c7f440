//! Job files: signed jobs on their way to a recovery authoriser and back; `trefoil authorise`.

use super::keyfile::{Existing, write};
use super::output::{Failure, Output};
use crate::client::SignedRequest;
use crate::wire::{Authorisation, Base64, Fixed, Job, JobHeaders, Op, SignedJob, VERSION, subject};
use clap::Args;
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a job lives that goes to an authoriser first: the most that nodes accept.
pub const TO_BE_AUTHORISED: Duration = Duration::from_secs(3_600);

/// What is said where an authoriser is needed and none is named.
pub const NO_CONSENT: &str =
    "a recovery authoriser must consent: --authoriser-seed-file, or --save-job for `trefoil authorise`";

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
pub struct JobFile {
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
    /// Writes a new file for a job that awaits its authoriser.
    pub fn create(path: &Path, request: &SignedRequest) -> Result<(), Failure> {
        let signature = signature_of(request).ok_or_else(|| Failure::usage("the job has no signature"))?;
        let body = Base64(request.body.clone());
        Self { version: VERSION, body, signature, authorisation: None }.write(path, Existing::Refuse)
    }

    /// Reads the file of a job of this operation.
    pub fn read_for(path: &Path, op: Op) -> Result<(Self, Job), Failure> {
        let (file, job) = Self::read(path)?;
        if job.op() == op {
            Ok((file, job))
        } else {
            Err(Failure::usage(format!("{}: the job is not a {op} but a {}", path.display(), job.op())))
        }
    }

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

    /// The request that a job file holds.
    pub fn request(&self, job: &Job) -> SignedRequest {
        let mut headers = async_nats::HeaderMap::new();
        let base64 = |signature: &Fixed<64>| data_encoding::BASE64.encode(&signature.0);
        headers.insert(JobHeaders::VERSION, "1");
        headers.insert(JobHeaders::SIGNATURE, base64(&self.signature));
        if let Some(consent) = &self.authorisation {
            headers.insert(JobHeaders::AUTHORISER, consent.authoriser.as_str());
            headers.insert(JobHeaders::AUTHORISER_SIGNATURE, base64(&consent.signature));
        }
        SignedRequest {
            subject: subject::job(job.lane, job.op(), &job.key_id),
            headers,
            body: self.body.0.clone(),
            digest: job.digest,
            op: job.op(),
            job_id: job.job_id.clone(),
            key_id: job.key_id,
            expires_at: job.expires_at,
        }
    }
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

/// The authoriser's key pair, from its seed file.
pub fn authoriser(path: &Path) -> Result<KeyPair, Failure> {
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
