//! `trefoil sign`.

use super::batch;
use super::input::Input;
use super::keyfile::KeyFile;
use super::output::{Failure, Output, merged};
use super::{Given, connect, password, settings};
use crate::client::ClientError;
use crate::wire::{Batch, ErrorCode, Method, SignInput, SignatureResult};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args)]
pub struct Arguments {
    /// The key file
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Sign many inputs with one password attempt: a file with a JSON array, or a JSON object a line, of up to 128 items, such as
    /// {"digest": "…", "path": "m/0/1"} (secp256k1) or {"message": "<base64>"} (ed25519)
    #[arg(long, value_name = "FILE", group = "signed", conflicts_with = "path")]
    batch: Option<PathBuf>,
    /// mta or default
    #[arg(
        long,
        default_value = "default",
        value_parser = PossibleValuesParser::new(["default", "mta"]).try_map(|name| name.parse::<Method>())
    )]
    method: Method,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// What is to be signed.
enum What {
    One(SignInput),
    Batch(Batch),
}

pub async fn run(config: Given<'_>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let mut config = settings(config)?;
    let file = KeyFile::read(&arguments.key, &config.nodes)?;
    let what = match &arguments.batch {
        Some(path) => What::Batch(batch::read(path, file.curve())?),
        None => What::One(arguments.input.read(file.curve())?),
    };
    let material = file.material()?;
    let password = password::read(arguments.password_file.as_deref(), config.password.take(), file.kdf()?, false)?;
    let started = Instant::now();
    let backend = connect(config, output).await?;
    let signing = async {
        match &what {
            What::One(input) => {
                backend.sign(&material, arguments.method, input, password).await.map(|signed| vec![signed])
            }
            What::Batch(batch) => backend.sign_batch(&material, arguments.method, batch, password).await,
        }
    };
    let signed = output.patiently("signing", signing).await.inspect_err(|error| {
        if let ClientError::Job(failure) = error
            && failure.code == ErrorCode::KeyLocked
        {
            // Only said, not written down: this word is not signed, and whoever forges it must not lock the owner out.
            output.remark(
                "the service says that this key is locked; ask node 1's operator, whose audit log shows it, before recovering it",
            );
        }
    })?;
    let took = started.elapsed().as_millis();
    let more = json!({ "keyId": material.key_id, "verified": true, "milliseconds": took });
    match (&what, signed.as_slice()) {
        (What::One(_), [signed]) => one(signed, more, output),
        _ => many(&signed, more, output),
    }
    Ok(())
}

/// The answer about one signature.
fn one(signed: &SignatureResult, more: Value, output: &Output) {
    let mut lines = vec![
        ("signature", signed.signature.to_string()),
        ("public key", signed.public_key.clone()),
        ("method", signed.method.to_string()),
    ];
    lines.extend(signed.recovery_id.map(|id| ("recovery id", id.to_string())));
    lines.extend(signed.path.clone().map(|path| ("path", path)));
    lines.push(("verified", "under the attested public key".to_owned()));
    output.answer(&lines, &merged(json!(signed), more));
}

/// The answer about a batch: for people a line a signature, in the order of the items.
fn many(signed: &[SignatureResult], more: Value, output: &Output) {
    let numbers: Vec<String> = (0..signed.len()).map(|number| number.to_string()).collect();
    let mut lines: Vec<(&str, String)> = Vec::new();
    for (number, signed) in numbers.iter().zip(signed) {
        let id = signed.recovery_id.map(|id| format!(" {id}")).unwrap_or_default();
        lines.push((number, format!("{}{id}", signed.signature)));
    }
    lines.push(("verified", "each under the attested public key, or its child along the item's path".to_owned()));
    output.answer(&lines, &merged(json!({ "signatures": signed }), more));
}
