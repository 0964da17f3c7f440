//! What the integration tests share: a real nats-server of the test's own, and our binaries as processes.
//!
//! Every wait is for an event (a line of a log, the end of a process) under [`PATIENCE`], never a sleep. Waits block the
//! calling thread; a test that runs tasks of its own beside them needs `#[tokio::test(flavor = "multi_thread")]`.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

pub mod canary;
pub mod process;
pub mod scrape;
pub mod stored;
pub mod supervised;

use async_nats::subject::ToSubject;
use futures::StreamExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use process::Process;
use tempfile::TempDir;

/// How long anything may take before a test gives up on it. Long, because machines are small and tests run side by side.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A nats-server with JetStream on a free port of 127.0.0.1, with a store of its own; killed when dropped.
pub struct NatsServer {
    process: Process,
    port: u16,
    folder: TempDir,
    starts: u32,
}

impl NatsServer {
    /// Starts a server with JetStream and nothing else configured, and waits until it is ready.
    pub fn start() -> Self {
        Self::with_config("")
    }

    /// Starts a server with more configuration (accounts, `jetstream { sync_interval: always }`, …), in the server's own
    /// format. Address, port and store directory are set here and need not be in it.
    pub fn with_config(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("nats.conf"), text).unwrap();
        let (process, port) = launch(folder.path(), "-1", 1);
        Self { process, port, folder, starts: 1 }
    }

    /// The address to connect to.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new connection without credentials.
    pub async fn connect(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap()
    }

    /// Ends the server at once, as a power failure of the process would.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts the server again with the same store and port; kills it first where it still runs.
    pub fn restart(&mut self) {
        self.process.kill9();
        self.starts += 1;
        self.process = launch(self.folder.path(), &self.port.to_string(), self.starts).0;
    }

    /// Gives the running server another configuration, and waits until it has it.
    pub fn reload(&self, text: &str) {
        std::fs::write(self.folder.path().join("nats.conf"), text).unwrap();
        let before = self.process.log().lines().count();
        self.process.signal("HUP");
        self.process.wait_for_after(before, "Reloaded server configuration");
    }

    /// Sends the server a signal by its name.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Whether the server runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Where the server's configuration and the logs of all its starts are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The directory in which JetStream keeps its files.
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The server's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What the server has logged since its last start.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Starts the server on a port ("-1": a free one of its choice) and waits for its word that it is ready.
fn launch(folder: &Path, port: &str, start: u32) -> (Process, u16) {
    let mut command = Command::new(nats_server());
    command.args(["--addr", "127.0.0.1", "--port", port, "--jetstream"]);
    command.arg("--store_dir").arg(folder.join("store")).arg("--config").arg(folder.join("nats.conf"));
    let process = Process::spawn("nats-server", command, &folder.join(format!("nats-server.{start}.log")));
    let listening = process.wait_for("Listening for client connections on");
    process.wait_for("Server is ready");
    let port = listening.rsplit(':').next().and_then(|text| text.trim().parse().ok());
    (process, port.unwrap_or_else(|| panic!("no port in {listening:?}")))
}

/// The nats-server to use, found (or fetched) once in a test run by scripts/nats-server.
pub fn nats_server() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/nats-server");
        let done = Command::new("python3").arg(script).output().expect("python3 runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        PathBuf::from(String::from_utf8(done.stdout).unwrap().trim())
    })
}

/// The path of one of our own binaries ("trefoil", "trefoil-node", …), which cargo built beside this test.
pub fn binary(name: &str) -> PathBuf {
    // target/<profile>/deps/<test> -> target/<profile>/<name>
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// A command that runs one of our own binaries with nothing of this process's `TREFOIL_*` settings.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("TREFOIL_")) {
        command.env_remove(key);
    }
    command
}

/// A subscription that the server knows of. What [`async_nats::Client::flush`] has sent, the server may read after what another connection
/// sends later.
pub async fn subscribed(client: &async_nats::Client, subject: impl ToSubject) -> async_nats::Subscriber {
    let subscriber = client.subscribe(subject).await.unwrap();
    let echo = client.new_inbox();
    let mut echoes = client.subscribe(echo.clone()).await.unwrap();
    client.publish(echo, "".into()).await.unwrap();
    echoes.next().await.unwrap();
    subscriber
}
