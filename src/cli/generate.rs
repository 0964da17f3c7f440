//! `trefoil generate`.

use super::draft::{Draft, Kept, own_reply_key};
use super::keyfile::{Existing, KeyFile};
use super::output::{Failure, Output, merged};
use super::{connect, password, settings};
use crate::client::{Backend, ClientError, NewKey};
use crate::clock::now_ms;
use crate::wire::{Curve, Fixed, InitiatorId, KdfParams, KeyResult, KeyState};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a stored result is looked for after the job's expiry.
const FETCH: Duration = Duration::from_secs(5);
/// How long the nodes' commits are awaited after the key is there.
const COMMIT: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct Arguments {
    /// secp256k1 or ed25519
    #[arg(
        long,
        required_unless_present = "resume",
        value_parser = PossibleValuesParser::new(["secp256k1", "ed25519"]).try_map(|name| name.parse::<Curve>())
    )]
    curve: Option<Curve>,
    #[command(flatten)]
    kdf: KdfArguments,
    /// The key file to write; never overwritten. Until it is complete, FILE.draft is beside it
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    out: Option<PathBuf>,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Finish a generation that was cut short: fetch the result of this draft's job
    #[arg(long, value_name = "DRAFT", conflicts_with_all = ["curve", "kdf", "memory_kib", "passes", "password_file"])]
    resume: Option<PathBuf>,
}

/// How a new password becomes a key.
#[derive(Args)]
pub struct KdfArguments {
    /// How the password becomes a key; hkdf is for 32 random bytes as hex or base64
    #[arg(long, value_enum, default_value = "argon2id")]
    kdf: Kdf,
    /// argon2id: memory in KiB [default: 19456]
    #[arg(long, value_name = "KIB")]
    memory_kib: Option<u32>,
    /// argon2id: passes over the memory [default: 2]
    #[arg(long)]
    passes: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kdf {
    Argon2id,
    Hkdf,
}

impl KdfArguments {
    pub fn read(&self) -> Result<KdfParams, Failure> {
        let kdf = match (self.kdf, self.memory_kib, self.passes) {
            (Kdf::Argon2id, memory, passes) => {
                KdfParams::Argon2id { memory_kib: memory.unwrap_or(19_456), passes: passes.unwrap_or(2) }
            }
            (Kdf::Hkdf, None, None) => KdfParams::Hkdf,
            (Kdf::Hkdf, _, _) => return Err(Failure::usage("hkdf takes no --memory-kib or --passes")),
        };
        if kdf.is_allowed() {
            Ok(kdf)
        } else {
            Err(Failure::usage("--memory-kib must be 8 to 262144 and --passes 1 to 10"))
        }
    }
}

pub async fn run(config: Option<&Path>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    match (&arguments.resume, arguments.curve, &arguments.out) {
        (Some(draft), _, out) => resume(config, draft, out.as_deref(), output).await,
        (None, Some(curve), Some(out)) => generate(config, curve, out, arguments, output).await,
        _ => Err(Failure::usage("name --curve and --out, or a draft to --resume")),
    }
}

async fn generate(
    config: Option<&Path>,
    curve: Curve,
    out: &Path,
    arguments: &Arguments,
    output: &Output,
) -> Result<(), Failure> {
    let kdf = arguments.kdf.read()?;
    refuse_existing(out)?;
    let mut config = settings(config)?;
    let password = password::read(arguments.password_file.as_deref(), config.password.take(), kdf, true)?;
    let started = Instant::now();
    let reply_seed = own_reply_key(&mut config)?;
    let backend = connect(config, output).await?;
    let request = backend.generation(curve, kdf, password)?;
    // Before the job: once it is published, its result is the only copy of the share, and must be found again.
    let draft = Draft::create(out, backend.jobs().initiator(), &request, backend.reply_key()?, reply_seed)?;
    let work = async { backend.new_key(&request, backend.run(&request).await?) };
    let new = output.patiently("generating the key", work).await;
    finish(&backend, new, out, &draft, started, output).await
}

/// Fetches the result of a job whose draft was kept.
async fn resume(config: Option<&Path>, draft: &Path, out: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let mut config = settings(config)?;
    let (draft, kept) = Draft::read(draft, &mut config)?;
    let out = out.map(Path::to_owned).or_else(|| kept.target());
    let out =
        out.ok_or_else(|| Failure::usage("the draft's name does not end in .draft: name the key file with --out"))?;
    if let Ok(file) = KeyFile::read(&out, &config.nodes)
        && file.key_id() == draft.key_id()
    {
        kept.remove(output);
        output.remark("the key file was complete already");
        output.answer(&lines(&file.key), &merged(shown(&file.initiator, &file.key), json!({ "keyFile": out })));
        return Ok(());
    }
    refuse_existing(&out)?;
    let started = Instant::now();
    let backend = connect(config, output).await?;
    let left = Duration::from_millis(draft.expires_at.saturating_sub(now_ms())) + FETCH;
    let work = async {
        let result = backend.result_of(&draft.job_id, draft.job_digest.0, left).await?;
        backend.generated(&draft.job_id, draft.job_digest.0, result)
    };
    let new = output.patiently("fetching the result", work).await;
    finish(&backend, new, &out, &kept, started, output).await
}

fn refuse_existing(out: &Path) -> Result<(), Failure> {
    // Not `exists`, which takes what cannot be looked at for absent.
    match out.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::usage(format!("{}: {error}", out.display()))),
        Ok(_) => Err(Failure::usage(format!("{} exists; it is not overwritten", out.display()))),
    }
}

/// Puts a new key on disk and waits for the commits.
async fn finish(
    backend: &Backend,
    new: Result<NewKey, ClientError>,
    out: &Path,
    draft: &Kept,
    started: Instant,
    output: &Output,
) -> Result<(), Failure> {
    let stored = new.map_err(Failure::from).and_then(|new| {
        let key = new.key.clone();
        let file = KeyFile::new(backend.jobs().initiator().clone(), new);
        // On disk before anybody is told: this share exists nowhere else.
        file.write(out, Existing::Refuse)?;
        Ok((key, file))
    });
    let (key, mut file) = stored.inspect_err(|failure| draft.after(failure, output))?;
    draft.remove(output);
    let generated = started.elapsed();
    match output.patiently("waiting for both nodes to commit", backend.committed(&key, COMMIT)).await {
        Ok(committed) => {
            file.commit(&committed);
            file.write(out, Existing::Replace)?;
        }
        Err(untrusted @ ClientError::Untrusted(_)) => return Err(untrusted.into()),
        Err(error) => {
            output.remark(&format!("the key is prepared and not yet committed ({error}); its first use will"))
        }
    }
    let more = json!({ "keyFile": out, "milliseconds": generated.as_millis() });
    let object = merged(shown(&file.initiator, &file.key), more);
    let mut lines = lines(&file.key);
    lines.push(("key file", out.display().to_string()));
    output.answer(&lines, &object);
    Ok(())
}

/// A key for people.
pub fn lines(key: &KeyResult) -> Vec<(&'static str, String)> {
    let state = match key.state {
        KeyState::Prepared => "prepared",
        KeyState::Active => "active",
    };
    vec![
        ("key id", key.key_id.to_string()),
        ("curve", key.curve.to_string()),
        ("public key", key.public_key.clone()),
        ("state", state.to_owned()),
        ("attested by", "node 1 and node 2".to_owned()),
    ]
}

/// A key for programs: the shape of a job's result, so that whatever verifies a result verifies this.
pub fn shown(initiator: &InitiatorId, key: &KeyResult) -> Value {
    json!({
        "keyId": key.key_id,
        "curve": key.curve,
        "publicKey": key.public_key,
        "initiator": initiator,
        "jobDigest": key.generated_by.unwrap_or(Fixed([0; 32])),
        "outcome": { "status": "ok", "key": key },
    })
}
