//! `trefoil change-password`.

use super::finish::{backup_of, refuse_backup, remove};
use super::generate::KdfArguments;
use super::keyfile::{Existing, KeyFile};
use super::output::{Failure, Output};
use super::{Given, connect, password, settings};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Arguments {
    /// The key file; its secretStore is replaced
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    kdf: KdfArguments,
    /// File that holds the old password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// File that holds the new password
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
}

pub async fn run(config: Given<'_>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let kdf = arguments.kdf.read()?;
    let backup = backup_of(&arguments.key);
    refuse_backup(&arguments.key)?;
    let mut config = settings(config)?;
    let mut file = KeyFile::read(&arguments.key, &config.nodes)?;
    let material = file.material()?;
    let old = password::read(arguments.password_file.as_deref(), config.password.take(), file.kdf()?, false)?;
    let (first, second) = password::read_new(arguments.new_password_file.as_deref(), kdf)?;
    let backend = connect(config, output).await?;
    let changing = backend.change_password(&material, old, first, kdf);
    let store = output.patiently("changing the password", changing).await?;
    // The old pair stays beside the new one until that is known to open: a share that nothing opens would be lost.
    file.write(&backup, Existing::Refuse)?;
    file.secret_store = store.into();
    file.write(&arguments.key, Existing::Replace)?;
    let material = file.material()?;
    if let Err(error) = output.patiently("validating", backend.validate(&material, second, false)).await {
        output.remark(&format!("the old key file is kept as {}", backup.display()));
        return Err(error.into());
    }
    remove(&backup)?;
    output.remark(
        "copies of the old key file still open with the old password; only fresh shares make them worthless: trefoil refresh",
    );
    let lines = [("key id", material.key_id.to_string()), ("key file", arguments.key.display().to_string())];
    output.answer(&lines, &json!({ "keyId": material.key_id, "keyFile": arguments.key, "changed": true }));
    Ok(())
}
