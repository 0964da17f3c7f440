//! `trefoil public-key`.

use super::generate::{lines, shown};
use super::keyfile::{KeyFile, as_result};
use super::output::{Failure, Output};
use super::{connect, settings};
use crate::wire::KeyId;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Arguments {
    /// The key file
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The key's id, 32 hex digits
    #[arg(long, value_name = "ID")]
    key_id: Option<KeyId>,
}

pub async fn run(config: Option<&Path>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let config = settings(config)?;
    let file = arguments.key.as_deref().map(|path| KeyFile::read(path, &config.nodes)).transpose()?;
    let key_id = arguments.key_id.or_else(|| file.as_ref().map(KeyFile::key_id));
    let key_id = key_id.ok_or_else(|| Failure::usage("name a --key or a --key-id"))?;
    let backend = connect(config, output).await?;
    let key = output.patiently("asking both nodes", backend.public_key(key_id)).await?;
    let found = as_result(&key);
    if let Some(file) = file
        && file.key.public_key != found.public_key
    {
        return Err(crate::client::verify::Untrusted::OtherKey.into());
    }
    output.answer(&lines(&found), &shown(backend.jobs().initiator(), &found));
    Ok(())
}
