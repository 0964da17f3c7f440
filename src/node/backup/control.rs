//! How `trefoil node backup` asks a node that serves: a Unix socket in the data directory, which nobody else may enter. One line of
//! JSON each way; the question is [`QUESTION`], the answer a [`Answer`].

use super::service::{Backups, Made};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// Name of the socket in the data directory; it is there while a node serves that takes backups.
pub const SOCKET: &str = "control";
/// The one thing that can be asked.
const QUESTION: &str = "{\"version\":1,\"do\":\"backup\"}\n";
/// Longest line, bytes.
const MAX_LINE: u64 = 65_536;
/// How long the question may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the node says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Answer {
    /// It is on disk.
    Made(Made),
    /// It is not, and why.
    Failed(String),
}

/// The socket; removed when dropped.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Control {
    /// Opens the socket of the node that has this data directory open, in place of one that a killed process left.
    ///
    /// # Errors
    /// The file system's, also for a path that is too long for a socket (about 100 bytes).
    pub fn open(data_dir: &Path) -> std::io::Result<Self> {
        let path = data_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    /// Answers whoever asks, for ever.
    pub async fn serve(self, backups: Arc<Backups>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let backups = Arc::clone(&backups);
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, &backups).await {
                            tracing::warn!(%error, "a question on the control socket");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn answer(stream: UnixStream, backups: &Backups) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    timeout(PATIENCE, (&mut stream).take(MAX_LINE).read_line(&mut line)).await??;
    let answer = if line == QUESTION {
        backups.take().await.map_or_else(|error| Answer::Failed(error.to_string()), Answer::Made)
    } else {
        Answer::Failed("not understood: another version of trefoil asks".to_owned())
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    stream.get_mut().write_all(&text).await?;
    stream.get_mut().shutdown().await
}

/// Has the node that serves from this data directory take a backup, and waits for it. `None` if none serves, or none that takes
/// backups.
///
/// # Errors
/// What the node says, or that it went away.
pub async fn ask(data_dir: &Path) -> Option<Result<Made, String>> {
    let stream = UnixStream::connect(data_dir.join(SOCKET)).await.ok()?;
    Some(exchange(stream).await.unwrap_or_else(|error| Err(format!("the node did not answer: {error}"))))
}

async fn exchange(stream: UnixStream) -> std::io::Result<Result<Made, String>> {
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(QUESTION.as_bytes()).await?;
    let mut line = String::new();
    stream.take(MAX_LINE).read_line(&mut line).await?;
    Ok(match serde_json::from_str(&line)? {
        Answer::Made(made) => Ok(made),
        Answer::Failed(why) => Err(why),
    })
}
