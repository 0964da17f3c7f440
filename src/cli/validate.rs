//! `trefoil validate`.

use super::keyfile::KeyFile;
use super::output::{Failure, Output};
use super::{Given, connect, password, settings};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Arguments {
    /// The key file
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Check the password only, not whether the share itself can be opened
    #[arg(long)]
    password_only: bool,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

pub async fn run(config: Given<'_>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let mut config = settings(config)?;
    let file = KeyFile::read(&arguments.key, &config.nodes)?;
    let kdf = file.kdf()?;
    let material = file.material()?;
    let password = password::read(arguments.password_file.as_deref(), config.password.take(), kdf, false)?;
    let backend = connect(config, output).await?;
    output.patiently("validating", backend.validate(&material, password, arguments.password_only)).await?;
    let share = if arguments.password_only { "not checked" } else { "opens" };
    let lines =
        [("key id", material.key_id.to_string()), ("password", "right".to_owned()), ("share", share.to_owned())];
    let object = json!({ "keyId": material.key_id, "passwordValid": true, "shareValid": (!arguments.password_only).then_some(true) });
    output.answer(&lines, &object);
    Ok(())
}
