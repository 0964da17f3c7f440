//! The worker process. Settings: see `trefoil::config::WorkerConfig`.

use std::process::ExitCode;
use tokio::sync::watch;
use trefoil::config::WorkerConfig;
use trefoil::{process, worker};

fn main() -> ExitCode {
    process::run(start)
}

#[tokio::main]
async fn start() -> anyhow::Result<()> {
    let config = WorkerConfig::load()?;
    let (stop, stopped) = watch::channel(false);
    let signalled = process::stop_signal()?;
    tokio::spawn(async move {
        signalled.await;
        tracing::info!("draining");
        let _ = stop.send(true);
    });
    worker::run(config, stopped).await
}
