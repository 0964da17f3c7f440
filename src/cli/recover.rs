//! `trefoil recover`.

use super::draft::{Draft, draft_of, own_reply_key};
use super::finish::{self, Finish, Target, refuse_existing};
use super::generate::KdfArguments;
use super::jobfile::{JobFile, NO_CONSENT, TO_BE_AUTHORISED, authoriser};
use super::keyfile::KeyFile;
use super::output::{Failure, Output};
use super::{Given, connect, password, settings};
use crate::client::{ClientConfig, Making, OldKey};
use crate::wire::{Curve, KeyId, Op};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args};
use data_encoding::HEXLOWER_PERMISSIVE;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args)]
#[command(group(ArgGroup::new("what").required(true)))]
pub struct Arguments {
    /// The key file of the key to recover, old or not; its share and password are not needed, and it stays as it is
    #[arg(long, value_name = "FILE", group = "what")]
    key: Option<PathBuf>,
    /// The key's id, 32 hex digits, where no key file is left
    #[arg(long, value_name = "ID", group = "what", requires = "curve")]
    key_id: Option<KeyId>,
    /// With --key-id: the key's curve
    #[arg(
        long,
        requires = "key_id",
        value_parser = PossibleValuesParser::new(["secp256k1", "ed25519"]).try_map(|name| name.parse::<Curve>())
    )]
    curve: Option<Curve>,
    /// With --key-id: the public key that must come out; without it both nodes' word is taken for the key
    #[arg(long, value_name = "HEX", requires = "key_id")]
    public_key: Option<String>,
    #[command(flatten)]
    kdf: KdfArguments,
    /// The new key file to write; never overwritten. Until it is complete, FILE.draft is beside it
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    out: Option<PathBuf>,
    /// File that holds the new password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Seed file of a recovery authoriser (SU…), where owner and authoriser sit together
    #[arg(long, value_name = "FILE", conflicts_with_all = ["save_job", "job", "resume"])]
    authoriser_seed_file: Option<PathBuf>,
    /// Write the signed job into this file, and FILE.draft, and do nothing else: for the authoriser, who has an hour
    #[arg(long, value_name = "FILE", conflicts_with_all = ["job", "resume"])]
    save_job: Option<PathBuf>,
    /// Send this job, which the authoriser has signed too; --out as when it was saved
    #[arg(long, value_name = "FILE", group = "what", conflicts_with_all = ["kdf", "memory_kib", "passes", "password_file"])]
    job: Option<PathBuf>,
    /// Finish a recovery that was cut short: fetch the result of this draft's job
    #[arg(long, value_name = "DRAFT", group = "what", conflicts_with_all = ["kdf", "memory_kib", "passes", "password_file"])]
    resume: Option<PathBuf>,
}

pub async fn run(config: Given<'_>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    match (&arguments.resume, &arguments.job, &arguments.out) {
        (Some(draft), _, out) => finish::resume(config, draft, Op::Recover, out.as_deref(), output).await,
        (None, Some(job), Some(out)) => send(config, job, out, output).await,
        (None, None, Some(out)) => recover(config, out, arguments, output).await,
        (None, _, None) => Err(Failure::usage("name the new key file with --out")),
    }
}

async fn recover(config: Given<'_>, out: &Path, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let kdf = arguments.kdf.read()?;
    refuse_existing(out)?;
    let mut config = settings(config)?;
    let old = arguments.old_key(&config)?;
    let consent = arguments.authoriser_seed_file.as_deref().map(authoriser).transpose()?;
    if consent.is_none() && arguments.save_job.is_none() {
        return Err(Failure::usage(NO_CONSENT));
    }
    if let Some(path) = &arguments.save_job {
        refuse_existing(path)?;
    }
    let password = password::read(arguments.password_file.as_deref(), config.password.take(), kdf, true)?;
    let started = Instant::now();
    let reply_seed = own_reply_key(&mut config)?;
    let backend = connect(config, output).await?;
    let lifetime = if consent.is_some() { backend.lifetime() } else { TO_BE_AUTHORISED };
    let mut request = backend.recovery(&old, kdf, password, lifetime)?;
    if let Some(authoriser) = &consent {
        request.authorise(authoriser).map_err(crate::client::ClientError::from)?;
    }
    // Before the job: once it is published, its result is the only copy of the share, and must be found again.
    let draft = Draft::create(out, &backend, &request, Some(&old), reply_seed)?;
    if let Some(path) = &arguments.save_job {
        JobFile::create(path, &request).inspect_err(|_| draft.remove(output))?;
        let next = "have it signed with `trefoil authorise`, then send it with `trefoil recover --job`".to_owned();
        let lines = [("key id", old.key_id.to_string()), ("job file", path.display().to_string()), ("next", next)];
        let object = json!({ "keyId": old.key_id, "jobFile": path, "expiresAt": request.expires_at });
        output.answer(&lines, &object);
        return Ok(());
    }
    let work = async { backend.made(&request, Making::Recovery(&old), backend.run(&request).await?) };
    let new = output.patiently("recovering the key", work).await;
    Finish { backend: &backend, target: Target::New(out), draft: &draft, started, output }.run(new).await
}

/// Sends a job that its authoriser has signed.
async fn send(config: Given<'_>, job: &Path, out: &Path, output: &Output) -> Result<(), Failure> {
    let (file, parsed) = JobFile::read_for(job, Op::Recover)?;
    if parsed.signed.authorisation.is_none() {
        return Err(Failure::usage(format!("{}: no authoriser has signed it: `trefoil authorise`", job.display())));
    }
    let mut config = settings(config)?;
    let (draft, kept) = Draft::read(&draft_of(out), Op::Recover, &mut config)?;
    if draft.job_digest.0 != parsed.digest {
        return Err(Failure::usage(format!("{} is not the draft of this job", draft_of(out).display())));
    }
    refuse_existing(out)?;
    let old = draft.replaces();
    let making = draft.making(old.as_ref())?;
    let request = file.request(&parsed);
    let started = Instant::now();
    let backend = connect(config, output).await?;
    let work = async { backend.made(&request, making, backend.run(&request).await?) };
    let new = output.patiently("recovering the key", work).await;
    Finish { backend: &backend, target: Target::New(out), draft: &kept, started, output }.run(new).await
}

impl Arguments {
    /// The key that the command line names, with all that is known of it.
    fn old_key(&self, config: &ClientConfig) -> Result<OldKey, Failure> {
        match (&self.key, self.key_id, self.curve) {
            (Some(path), _, _) => Ok(OldKey::from(&KeyFile::read(path, &config.nodes)?.attested(&config.nodes)?)),
            (None, Some(key_id), Some(curve)) => {
                let decode = |hex: &String| HEXLOWER_PERMISSIVE.decode(hex.as_bytes());
                let public_key = self.public_key.as_ref().map(decode).transpose();
                let public_key = public_key.map_err(|_| Failure::usage("--public-key is not hex"))?;
                Ok(OldKey { key_id, curve, public_key, chain_code: None, epoch: None })
            }
            _ => Err(Failure::usage("name a --key, or a --key-id with its --curve")),
        }
    }
}
