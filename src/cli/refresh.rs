//! `trefoil refresh`.

use super::draft::{Draft, own_reply_key};
use super::finish::{self, Finish, Target, refuse_backup};
use super::generate::KdfArguments;
use super::keyfile::KeyFile;
use super::output::{Failure, Output};
use super::{Given, connect, password, settings};
use crate::client::{Making, OldKey};
use crate::wire::Op;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args)]
pub struct Arguments {
    /// The key file; the new share takes the old one's place, which is kept as FILE.bak until both nodes have committed
    #[arg(long, value_name = "FILE", required_unless_present = "resume", conflicts_with = "resume")]
    key: Option<PathBuf>,
    #[command(flatten)]
    kdf: KdfArguments,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// File that holds a new password; without one, the password stays
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
    /// Ask for a new password
    #[arg(long, conflicts_with = "new_password_file")]
    new_password: bool,
    /// Finish a refresh that was cut short: fetch the result of this draft's job
    #[arg(
        long,
        value_name = "DRAFT",
        conflicts_with_all = ["kdf", "memory_kib", "passes", "password_file", "new_password_file", "new_password"]
    )]
    resume: Option<PathBuf>,
}

pub async fn run(config: Given<'_>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    match (&arguments.resume, &arguments.key) {
        (Some(draft), _) => finish::resume(config, draft, Op::Refresh, None, output).await,
        (None, Some(key)) => refresh(config, key, arguments, output).await,
        (None, None) => Err(Failure::usage("name a --key, or a draft to --resume")),
    }
}

async fn refresh(config: Given<'_>, key: &Path, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    refuse_backup(key)?;
    let mut config = settings(config)?;
    let file = KeyFile::read(key, &config.nodes)?;
    let (old, material) = (OldKey::from(&file.attested(&config.nodes)?), file.material()?);
    // Whoever names no KDF keeps the one of the key file.
    let kdf = if arguments.kdf.is_given() { arguments.kdf.read()? } else { file.kdf()? };
    let password = password::read(arguments.password_file.as_deref(), config.password.take(), file.kdf()?, false)?;
    let new = if arguments.new_password || arguments.new_password_file.is_some() {
        Some(password::read_new(arguments.new_password_file.as_deref(), kdf)?.0)
    } else {
        None
    };
    let started = Instant::now();
    let reply_seed = own_reply_key(&mut config)?;
    let backend = connect(config, output).await?;
    let request = backend.refreshment(&old, &material, password, new, kdf)?;
    // Before the job: once it is published, its result is the only copy of the share, and must be found again.
    let draft = Draft::create(key, &backend, &request, Some(&old), reply_seed)?;
    let work = async { backend.made(&request, Making::Refresh(&old), backend.run(&request).await?) };
    let made = output.patiently("refreshing the key", work).await;
    Finish { backend: &backend, target: Target::Over(key), draft: &draft, started, output }.run(made).await
}
