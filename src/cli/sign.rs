//! `trefoil sign`.

use super::input::Input;
use super::keyfile::KeyFile;
use super::output::{Failure, Output, merged};
use super::{connect, password, settings};
use crate::client::ClientError;
use crate::wire::{ErrorCode, Method};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args)]
pub struct Arguments {
    /// The key file
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    input: Input,
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

pub async fn run(config: Option<&Path>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let mut config = settings(config)?;
    let file = KeyFile::read(&arguments.key, &config.nodes)?;
    let input = arguments.input.read(file.curve())?;
    let material = file.material()?;
    let password = password::read(arguments.password_file.as_deref(), config.password.take(), file.kdf()?, false)?;
    let started = Instant::now();
    let backend = connect(config, output).await?;
    let signed = output.patiently("signing", backend.sign(&material, arguments.method, &input, password)).await;
    let signed = signed.inspect_err(|error| {
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
    let mut lines = vec![
        ("signature", signed.signature.to_string()),
        ("public key", signed.public_key.clone()),
        ("method", signed.method.to_string()),
    ];
    lines.extend(signed.recovery_id.map(|id| ("recovery id", id.to_string())));
    lines.extend(signed.path.clone().map(|path| ("path", path)));
    lines.push(("verified", "under the attested public key".to_owned()));
    let more = json!({ "keyId": material.key_id, "verified": true, "milliseconds": took });
    let object = merged(json!(signed), more);
    output.answer(&lines, &object);
    Ok(())
}
