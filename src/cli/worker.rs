//! `trefoil worker`: what the workers' operator does beside running them.

use super::keyfile::{Existing, write};
use super::output::{Failure, Output};
use crate::wire::SealKey;
use clap::{Args, Subcommand};
use nkeys::XKey;
use serde_json::json;
use std::path::PathBuf;
use zeroize::Zeroizing;

#[derive(Subcommand)]
pub enum Command {
    /// The file of the workers' sealing keys: show it, put a new key in front, take an old one away
    #[command(subcommand)]
    SealingKeys(SealingKeys),
}

#[derive(Subcommand)]
pub enum SealingKeys {
    /// Show the public keys of the file, the current one first
    Show(File),
    /// Make a key and put it in front, or make the file
    #[command(after_help = STEPS)]
    Add(File),
    /// Take a key away: jobs that are sealed to it end in an error from then on
    Drop {
        #[command(flatten)]
        file: File,
        /// The public key (X…)
        #[arg(long, value_name = "X…")]
        key: SealKey,
    },
}

#[derive(Args)]
pub struct File {
    /// File with a seed a line, the newest first, as the setting sealing_keys_file names it
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
}

const STEPS: &str = "\
Then, one step after the other: give the file to every worker, and SIGHUP; give backends the new public key; when none uses the old one, and the longest job lifetime \
is over, take the old one away with `sealing-keys drop`, give the file to every worker, and SIGHUP. docs/rotation.md has it in detail.";

/// A seed, and its public key.
struct Key {
    seed: Zeroizing<String>,
    public: SealKey,
}

impl File {
    fn failed(&self, what: impl std::fmt::Display) -> Failure {
        Failure::usage(format!("{}: {what}", self.file.display()))
    }

    /// The file's keys; none where there is no file.
    fn read(&self) -> Result<Vec<Key>, Failure> {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(error)),
        };
        let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty());
        let keys = lines.map(|(number, line)| {
            key(line).ok_or_else(|| self.failed(format_args!("line {number} is no xkey seed (SX…)")))
        });
        keys.collect()
    }

    fn write(&self, keys: &[Key]) -> Result<(), Failure> {
        let length = keys.iter().map(|key| key.seed.len().saturating_add(1)).sum();
        // Large enough never to be moved, which would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(length));
        for key in keys {
            text.push_str(&key.seed);
            text.push('\n');
        }
        write(&self.file, text.as_bytes(), Existing::Replace)
    }
}

fn key(seed: &str) -> Option<Key> {
    let public = XKey::from_seed(seed).ok()?.public_key().parse().ok()?;
    Some(Key { seed: Zeroizing::new(seed.to_owned()), public })
}

pub fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    let Command::SealingKeys(command) = command;
    match command {
        SealingKeys::Show(file) => {
            let keys = file.read()?;
            if keys.is_empty() {
                return Err(file.failed("there are no keys"));
            }
            show(&keys, output);
        }
        SealingKeys::Add(file) => {
            let mut keys = file.read()?;
            let new = XKey::new().seed().ok().map(Zeroizing::new).and_then(|seed| key(&seed));
            keys.insert(0, new.ok_or_else(|| Failure::usage("no key could be made".to_owned()))?);
            file.write(&keys)?;
            show(&keys, output);
            output.remark("next: give this file to every worker, and SIGHUP; only then the current key to backends");
        }
        SealingKeys::Drop { file, key } => {
            let mut keys = file.read()?;
            let place = keys.iter().position(|held| held.public == *key);
            match place {
                None => return Err(file.failed(format_args!("{key} is not in it"))),
                Some(0) => {
                    return Err(file.failed(format_args!("{key} is the current key; put a new one in front first")));
                }
                Some(place) => drop(keys.remove(place)),
            }
            file.write(&keys)?;
            show(&keys, output);
            output.remark("next: give this file to every worker, and SIGHUP; overwrite what other copies of the old one there are");
        }
    }
    Ok(())
}

/// The public halves.
fn show(keys: &[Key], output: &Output) {
    let mut lines = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        lines.push((if number == 0 { "current" } else { "older" }, key.public.to_string()));
    }
    let (current, older) = (keys.first().map(|key| &key.public), keys.iter().skip(1).map(|key| &key.public));
    output.answer(&lines, &json!({ "current": current, "older": older.collect::<Vec<_>>() }));
}
