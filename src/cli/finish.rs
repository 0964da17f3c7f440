//! The end of a job that makes shares: from its verified result to the key file, and to the word of both nodes that it counts.
//!
//! A new key file never takes another one's name. In a refresh it takes the old one's place, which is kept beside it until both
//! nodes have committed: whatever fails before, one of the two is the key.

use super::draft::{Draft, Kept};
use super::generate::{lines, shown};
use super::keyfile::{Existing, KeyFile, write};
use super::output::{Failure, Output, merged};
use super::{Given, connect, settings};
use crate::client::verify::AttestedKey;
use crate::client::{Backend, ClientError, NewKey};
use crate::clock::now_ms;
use crate::wire::{KeyState, Op};
use serde_json::json;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a stored result is looked for after the job's expiry.
const FETCH: Duration = Duration::from_secs(5);
/// How long the nodes' commits are awaited after the share is there.
const COMMIT: Duration = Duration::from_secs(30);

/// Where the new share goes.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// A file that is not there yet.
    New(&'a Path),
    /// The key file whose share it replaces.
    Over(&'a Path),
}

impl<'a> Target<'a> {
    const fn path(self) -> &'a Path {
        match self {
            Self::New(path) | Self::Over(path) => path,
        }
    }
}

/// What the end of a job needs.
pub struct Finish<'a> {
    pub backend: &'a Backend,
    pub target: Target<'a>,
    pub draft: &'a Kept,
    pub started: Instant,
    pub output: &'a Output,
}

impl Finish<'_> {
    /// Puts a new share on disk and waits for the commits.
    pub async fn run(self, new: Result<NewKey, ClientError>) -> Result<(), Failure> {
        let stored = new.map_err(Failure::from).and_then(|new| {
            let key = new.key.clone();
            let file = KeyFile::new(self.backend.jobs().initiator().clone(), new);
            match self.target {
                Target::New(path) => file.write(path, Existing::Refuse)?,
                Target::Over(path) => {
                    back_up(path)?;
                    file.write(path, Existing::Replace)?;
                }
            }
            Ok((file, key))
        });
        let (file, key) = stored.inspect_err(|failure| self.draft.after(failure, self.output))?;
        if let Target::New(_) = self.target {
            self.draft.remove(self.output);
        }
        self.settle(file, &key).await
    }

    /// The key file is on disk: waits for the commits, and lets go of what they replace.
    async fn settle(self, mut file: KeyFile, key: &AttestedKey) -> Result<(), Failure> {
        let path = self.target.path();
        let made = self.started.elapsed();
        let waiting = self.backend.committed(key, COMMIT);
        match self.output.patiently("waiting for both nodes to commit", waiting).await {
            Ok(committed) => {
                file.commit(&committed);
                file.write(path, Existing::Replace)?;
                if let Target::Over(path) = self.target {
                    remove(&backup_of(path))?;
                    self.draft.remove(self.output);
                }
            }
            Err(untrusted @ ClientError::Untrusted(_)) => return Err(untrusted.into()),
            Err(error) => self.output.remark(&match self.target {
                Target::New(_) => format!("the share is prepared and not yet committed ({error}); its first use will"),
                Target::Over(path) => format!(
                    "the new share is prepared and not yet committed ({error}); the old key file is kept as {}: \
                     `trefoil {} --resume {}` looks again, and removes it when both nodes have committed",
                    backup_of(path).display(),
                    Op::Refresh,
                    super::draft::draft_of(path).display(),
                ),
            }),
        }
        let more = json!({ "keyFile": path, "milliseconds": made.as_millis() });
        let object = merged(shown(&file.initiator, &file.key), more);
        let mut lines = lines(&file.key);
        lines.extend(file.key.source_key_id.map(|id| ("replaces", id.to_string())));
        lines.push(("key file", path.display().to_string()));
        self.output.answer(&lines, &object);
        Ok(())
    }
}

/// Fetches the result of a job whose draft was kept, and goes on from there.
pub async fn resume(
    config: Given<'_>,
    draft: &Path,
    op: Op,
    out: Option<&Path>,
    output: &Output,
) -> Result<(), Failure> {
    let mut config = settings(config)?;
    let (draft, kept) = Draft::read(draft, op, &mut config)?;
    let out = out.map(Path::to_owned).or_else(|| kept.target());
    let out =
        out.ok_or_else(|| Failure::usage("the draft's name does not end in .draft: name the key file with --out"))?;
    let target = if op == Op::Refresh { Target::Over(&out) } else { Target::New(&out) };
    let started = Instant::now();
    if let Ok(file) = KeyFile::read(&out, &config.nodes)
        && file.key.generated_by == Some(draft.job_digest)
    {
        output.remark("the key file was complete already");
        if let Target::New(_) = target {
            kept.remove(output);
        }
        if file.key.state == KeyState::Active && !backup_of(&out).exists() {
            output.answer(&lines(&file.key), &merged(shown(&file.initiator, &file.key), json!({ "keyFile": out })));
            return Ok(());
        }
        let key = file.attested(&config.nodes)?;
        let backend = connect(config, output).await?;
        return Finish { backend: &backend, target, draft: &kept, started, output }.settle(file, &key).await;
    }
    if let Target::New(_) = target {
        refuse_existing(&out)?;
    }
    let old = draft.replaces();
    let making = draft.making(old.as_ref())?;
    let backend = connect(config, output).await?;
    let left = Duration::from_millis(draft.expires_at.saturating_sub(now_ms())) + FETCH;
    let work = async {
        let result = backend.result_of(&draft.job_id, draft.job_digest.0, left).await?;
        backend.made_by(&draft.job_id, draft.job_digest.0, making, result)
    };
    let new = output.patiently("fetching the result", work).await;
    Finish { backend: &backend, target, draft: &kept, started, output }.run(new).await
}

pub fn refuse_existing(out: &Path) -> Result<(), Failure> {
    // Not `exists`, which takes what cannot be looked at for absent.
    match out.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::usage(format!("{}: {error}", out.display()))),
        Ok(_) => Err(Failure::usage(format!("{} exists; it is not overwritten", out.display()))),
    }
}

/// Where a key file is kept while its replacement is not proven.
pub fn backup_of(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".bak");
    PathBuf::from(name)
}

/// No change of this key file must be under way.
pub fn refuse_backup(key: &Path) -> Result<(), Failure> {
    let backup = backup_of(key);
    if backup.exists() {
        let backup = backup.display();
        return Err(Failure::usage(format!(
            "{backup} exists, from a change that was not finished: see which file opens"
        )));
    }
    Ok(())
}

/// Keeps the key file under another name; one that an earlier run of the same job made is good.
fn back_up(key: &Path) -> Result<(), Failure> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())));
    let (backup, content) = (backup_of(key), read(key)?);
    if backup.exists() && read(&backup)? == content { Ok(()) } else { write(&backup, &content, Existing::Refuse) }
}

pub fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::usage(format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}
