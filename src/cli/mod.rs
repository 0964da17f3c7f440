//! The command line `trefoil`: a backend in the hands of a person or a script.
//!
//! Standard output carries the answer (with `--json`, one JSON object, errors included), standard error everything else.
//! Exit codes: 0 done, 1 the job ended in an error, 2 wrong usage or configuration, 3 not available or no answer in time,
//! 4 something did not verify.

mod audit;
mod backup;
mod batch;
mod board;
mod change_password;
mod draft;
mod finish;
mod generate;
mod healthcheck;
mod identity;
mod input;
mod jobfile;
mod jobs;
mod keyfile;
mod keys;
mod nats_accounts;
mod node;
mod orders;
mod output;
mod password;
mod pending;
mod public_key;
mod recover;
mod refresh;
mod setup;
mod sign;
mod top;
mod validate;
mod verify;
mod worker;

use crate::client::{Backend, ClientConfig, ClientError};
use crate::config::Settings;
use crate::wire::{Lane, OrderedState};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use output::{Failure, Output};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 job error, 2 usage or configuration, 3 not available or timeout, \
4 verification failed.\nSettings: trefoil.toml in the current directory (or --config), and TREFOIL_* variables.";

/// MPC signing: keys that no machine ever holds whole.
#[derive(Parser)]
#[command(name = "trefoil", version, after_help = EXIT_CODES)]
struct Arguments {
    /// Settings file [default: trefoil.toml where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    /// How the command's jobs wait: interactive, or bulk for what nobody waits for [default: interactive]
    #[arg(
        long,
        global = true,
        value_parser = PossibleValuesParser::new(Lane::ALL.iter().map(|lane| lane.as_str())).try_map(|name| name.parse::<Lane>())
    )]
    lane: Option<Lane>,
    #[command(subcommand)]
    command: Command,
}

/// What the command line says about the client's settings.
#[derive(Clone, Copy)]
struct Given<'a> {
    file: Option<&'a Path>,
    lane: Option<Lane>,
}

#[derive(Subcommand)]
enum Command {
    /// Make and show identities: the keys of initiators, nodes, workers
    #[command(subcommand)]
    Identity(identity::Command),
    /// Generate a key and keep it in a key file
    Generate(generate::Arguments),
    /// Sign with a key file
    Sign(sign::Arguments),
    /// Ask both nodes for a key's public key, and check their attestations
    PublicKey(public_key::Arguments),
    /// Ask whether the password opens a key file; attempts are counted
    Validate(validate::Arguments),
    /// Put a key file under another password
    ChangePassword(change_password::Arguments),
    /// Replace a lost share or a forgotten password, with a recovery authoriser's consent; the key stays, its id is new
    Recover(recover::Arguments),
    /// Make new shares of a key, and every copy of the old ones worthless
    Refresh(refresh::Arguments),
    /// Stop a key: it signs nothing until it is unfrozen
    Freeze(orders::Target),
    /// Let a frozen key sign again
    Unfreeze(orders::Target),
    /// End a key for good, with a recovery authoriser's consent
    Destroy(orders::Destroy),
    /// End a key's waiting recovery, at both nodes
    CancelRecovery(orders::Target),
    /// List keys, and label them
    #[command(subcommand)]
    Keys(keys::Command),
    /// How far a job is, and cancelling it before it is started
    #[command(subcommand)]
    Job(jobs::Command),
    /// Consent to a job file as a recovery authoriser
    Authorise(jobfile::Authorise),
    /// Check a signature, offline
    Verify(verify::Arguments),
    /// Check and read a node's audit log
    #[command(subcommand)]
    Audit(audit::Command),
    /// For the workers' operator
    #[command(subcommand)]
    Worker(worker::Command),
    /// For a node's operator
    #[command(subcommand)]
    Node(node::Command),
    /// Show what the workers do, live
    #[command(after_help = top::HELP)]
    Top(top::Arguments),
    /// Ask whether a worker or node on this machine is ready
    Healthcheck(healthcheck::Arguments),
    /// Write the accounts and permissions of the NATS servers, from public keys
    NatsAccounts(nats_accounts::Arguments),
    /// Make the identities and settings of a whole deployment on one machine, to try it out
    #[command(after_help = setup::HELP)]
    Setup(setup::Arguments),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { config, json, lane, command } = Arguments::parse();
    let output = Output::new(json);
    let outcome = run(Given { file: config.as_deref(), lane }, command, &output);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

#[tokio::main]
async fn run(config: Given<'_>, command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Identity(command) => identity::run(&command, output),
        Command::Generate(arguments) => generate::run(config, &arguments, output).await,
        Command::Sign(arguments) => sign::run(config, &arguments, output).await,
        Command::PublicKey(arguments) => public_key::run(config, &arguments, output).await,
        Command::Validate(arguments) => validate::run(config, &arguments, output).await,
        Command::ChangePassword(arguments) => change_password::run(config, &arguments, output).await,
        Command::Recover(arguments) => recover::run(config, &arguments, output).await,
        Command::Refresh(arguments) => refresh::run(config, &arguments, output).await,
        Command::Freeze(target) => orders::run(config, &target, OrderedState::Frozen, output).await,
        Command::Unfreeze(target) => orders::run(config, &target, OrderedState::Active, output).await,
        Command::Destroy(arguments) => orders::destroy(config, &arguments, output).await,
        Command::Authorise(arguments) => jobfile::authorise(&arguments, output),
        Command::CancelRecovery(target) => jobs::cancel_recovery(config, &target, output).await,
        Command::Keys(command) => keys::run(config, &command, output).await,
        Command::Job(command) => jobs::run(config, &command, output).await,
        Command::Verify(arguments) => verify::run(&arguments, output),
        Command::Audit(command) => audit::run(&command, output),
        Command::Worker(command) => worker::run(&command, output),
        Command::Node(command) => node::run(config.file, &command, output).await,
        Command::Top(arguments) => top::run(config, &arguments, output).await,
        Command::Healthcheck(arguments) => healthcheck::run(config.file, &arguments, output),
        Command::NatsAccounts(arguments) => nats_accounts::run(&arguments, output),
        Command::Setup(arguments) => setup::run(&arguments, output),
    }
}

/// The client's settings: command line, environment, and the file given or found.
fn settings(given: Given<'_>) -> Result<ClientConfig, Failure> {
    ClientConfig::read(Settings::from_env(environment(given))).map_err(|error| Failure::usage(error.to_string()))
}

/// This process's environment, with what the command line says put into it.
fn environment(Given { file, lane }: Given<'_>) -> std::collections::HashMap<String, String> {
    const DEFAULT: &str = "trefoil.toml";
    let mut env: std::collections::HashMap<String, String> = std::env::vars().collect();
    let named = file.map(|path| path.to_string_lossy().into_owned());
    let found = || Path::new(DEFAULT).exists().then(|| DEFAULT.to_owned());
    if let Some(path) = named.or_else(|| if env.contains_key("TREFOIL_CONFIG") { None } else { found() }) {
        env.insert("TREFOIL_CONFIG".to_owned(), path);
    }
    if let Some(lane) = lane {
        env.insert("TREFOIL_LANE".to_owned(), lane.to_string());
    }
    env
}

async fn connect(config: ClientConfig, output: &Output) -> Result<Backend, ClientError> {
    output.patiently("connecting", Backend::connect(config)).await
}
