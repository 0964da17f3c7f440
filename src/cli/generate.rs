//! `trefoil generate`.

use super::keyfile::{Existing, KeyFile};
use super::output::{Failure, Output, merged};
use super::{connect, password, settings};
use crate::client::ClientError;
use crate::wire::{Curve, Fixed, InitiatorId, KdfParams, KeyResult, KeyState};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the nodes' commits are awaited after the key is there.
const COMMIT: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct Arguments {
    /// secp256k1 or ed25519
    #[arg(long, value_parser = PossibleValuesParser::new(["secp256k1", "ed25519"]).try_map(|name| name.parse::<Curve>()))]
    curve: Curve,
    #[command(flatten)]
    kdf: KdfArguments,
    /// The key file to write; never overwritten
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
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
    let kdf = arguments.kdf.read()?;
    if arguments.out.exists() {
        return Err(Failure::usage(format!("{} exists; it is not overwritten", arguments.out.display())));
    }
    let mut config = settings(config)?;
    let password = password::read(arguments.password_file.as_deref(), config.password.take(), kdf, true)?;
    let started = Instant::now();
    let backend = connect(config, output).await?;
    let new = output.patiently("generating the key", backend.generate(arguments.curve, kdf, password)).await?;
    let key = new.key.clone();
    let mut file = KeyFile::new(backend.jobs().initiator().clone(), new);
    // On disk before anybody is told: this share exists nowhere else.
    file.write(&arguments.out, Existing::Refuse)?;
    let generated = started.elapsed();
    match output.patiently("waiting for both nodes to commit", backend.committed(&key, COMMIT)).await {
        Ok(committed) => {
            file.commit(&committed);
            file.write(&arguments.out, Existing::Replace)?;
        }
        Err(untrusted @ ClientError::Untrusted(_)) => return Err(untrusted.into()),
        Err(error) => {
            output.remark(&format!("the key is prepared and not yet committed ({error}); its first use will"))
        }
    }
    let more = json!({ "keyFile": arguments.out, "milliseconds": generated.as_millis() });
    let object = merged(shown(&file.initiator, &file.key), more);
    let mut lines = lines(&file.key);
    lines.push(("key file", arguments.out.display().to_string()));
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
