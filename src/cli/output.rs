//! What goes to standard output and standard error.

use crate::client::ClientError;
use crate::client::verify::Untrusted;
use crate::node::audit::AuditError;
use crate::node::backup::BackupError;
use crate::policy::PolicyError;
use crate::wire::KeyId;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, interval_at};

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line, a file or the settings are wrong.
    #[error("{0}")]
    Usage(String),
    /// The service failed or was not believed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was to be verified does not verify.
    #[error("{0}")]
    Unverified(#[from] Untrusted),
    /// An audit log is broken, or cannot be read.
    #[error("{0}")]
    Audit(#[from] AuditError),
    /// A drill found shares that are not whole.
    #[error("{} share(s) are not whole, {whole} are:{}", .broken.len(), .broken.iter().map(|(key, why)| format!("\n  - {key}: {why}")).collect::<String>())]
    Drill { whole: u64, broken: Vec<(KeyId, String)> },
    /// A backup was not taken, or not restored.
    #[error("{0}")]
    Backup(#[from] BackupError),
    /// A process is not ready, or did not say that it is.
    #[error("{0}")]
    Unhealthy(String),
    /// A policy file has problems.
    #[error("{0}")]
    Policy(#[from] PolicyError),
}

impl Failure {
    pub fn usage(what: impl Into<String>) -> Self {
        Self::Usage(what.into())
    }

    /// 1 job error or not healthy, 2 usage, 3 not available, 4 verification failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(ClientError::Job(_)) | Self::Unhealthy(_) => 1,
            Self::Backup(BackupError::Altered | BackupError::NotSigned) => 4,
            Self::Usage(_)
            | Self::Client(ClientError::Build(_))
            | Self::Audit(AuditError::Io(_))
            | Self::Backup(_)
            | Self::Policy(_) => 2,
            Self::Client(
                ClientError::Busy
                | ClientError::Unavailable(_)
                | ClientError::Unacknowledged(_)
                | ClientError::Timeout
                | ClientError::Refused(_),
            ) => 3,
            Self::Client(ClientError::Untrusted(_)) | Self::Unverified(_) | Self::Audit(_) | Self::Drill { .. } => 4,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Client(ClientError::Job(failure)) => json!({ "error": failure }),
            Self::Drill { whole, broken } => {
                let broken: Vec<Value> = broken.iter().map(|(key, why)| json!({ "keyId": key, "why": why })).collect();
                let message = format!("{} share(s) are not whole", broken.len());
                json!({ "error": { "message": message, "whole": whole, "broken": broken } })
            }
            Self::Policy(PolicyError(problems)) => {
                json!({ "error": { "message": self.to_string(), "problems": problems } })
            }
            Self::Audit(error) => json!({ "error": { "message": error.to_string(), "entry": error.entry() } }),
            other => json!({ "error": { "message": other.to_string() } }),
        }
    }
}

/// An object with the fields of another one added.
pub fn merged(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

/// A time for people: RFC 3339, from unix milliseconds.
pub fn shown_time(milliseconds: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok();
    let time = time.and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| milliseconds.to_string())
}

/// Where answers and remarks go.
pub struct Output {
    json: bool,
}

impl Output {
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether answers are JSON.
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// The command's answer: labelled lines for people, or one JSON object.
    pub fn answer(&self, lines: &[(&str, String)], object: &Value) {
        // A closed pipe is the reader's decision, not our failure.
        let mut out = std::io::stdout().lock();
        if self.json {
            let _ = writeln!(out, "{object}");
            return;
        }
        let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        for (label, text) in lines {
            let _ = writeln!(out, "{label:width$}  {text}");
        }
    }

    /// One of many answers: a line for people, or an object on a line of its own. False if nobody reads on.
    pub fn entry(&self, text: &str, object: &Value) -> bool {
        let mut out = std::io::stdout().lock();
        let written = if self.json { writeln!(out, "{object}") } else { writeln!(out, "{text}") };
        written.is_ok()
    }

    /// A remark for people.
    pub fn remark(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// The reason for a failed command.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            let _ = writeln!(std::io::stdout().lock(), "{}", failure.to_json());
        } else {
            self.remark(&format!("trefoil: {failure}"));
        }
    }

    /// Waits for something, and says on standard error what is waited for when it takes longer than a second.
    pub async fn patiently<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        let step = Duration::from_secs(if terminal { 1 } else { 10 });
        let mut tick = interval_at(started + Duration::from_secs(1), step);
        let mut said = false;
        let mut work = std::pin::pin!(work);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = tick.tick() => {
                    said = true;
                    let text = format!("{what} … {} s", started.elapsed().as_secs());
                    let mut out = std::io::stderr().lock();
                    let _ = if terminal { write!(out, "\r{text}") } else { writeln!(out, "{text}") };
                    let _ = out.flush();
                }
            }
        };
        if said && terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
        result
    }
}
