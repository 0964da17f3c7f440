//! `trefoil generate`.

use super::draft::{Draft, own_reply_key};
use super::finish::{self, Finish, Target, refuse_existing};
use super::output::{Failure, Output};
use super::{Given, connect, password, settings};
use crate::client::Making;
use crate::wire::{Curve, Fixed, InitiatorId, KdfParams, KeyResult, KeyState, Op};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    /// What to call the key in `trefoil keys list`, at most 128 bytes
    #[arg(long, conflicts_with = "resume")]
    label: Option<String>,
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
    /// How the password becomes a key; hkdf is for 32 random bytes as hex or base64 [default: argon2id]
    #[arg(long, value_enum)]
    kdf: Option<Kdf>,
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
    /// Whether any of them was named.
    pub const fn is_given(&self) -> bool {
        self.kdf.is_some() || self.memory_kib.is_some() || self.passes.is_some()
    }

    pub fn read(&self) -> Result<KdfParams, Failure> {
        let kdf = match (self.kdf.unwrap_or(Kdf::Argon2id), self.memory_kib, self.passes) {
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

pub async fn run(config: Given<'_>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    match (&arguments.resume, arguments.curve, &arguments.out) {
        (Some(draft), _, out) => finish::resume(config, draft, Op::Generate, out.as_deref(), output).await,
        (None, Some(curve), Some(out)) => generate(config, curve, out, arguments, output).await,
        _ => Err(Failure::usage("name --curve and --out, or a draft to --resume")),
    }
}

async fn generate(
    config: Given<'_>,
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
    let request = backend.generation(curve, kdf, password, arguments.label.clone())?;
    // Before the job: once it is published, its result is the only copy of the share, and must be found again.
    let draft = Draft::create(out, &backend, &request, None, reply_seed)?;
    let work = async { backend.made(&request, Making::Generation, backend.run(&request).await?) };
    let new = output.patiently("generating the key", work).await;
    Finish { backend: &backend, target: Target::New(out), draft: &draft, started, output }.run(new).await
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
