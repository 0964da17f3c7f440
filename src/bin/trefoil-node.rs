//! The node process: `node1` (co-signer) or `node2` (recovery). Settings: see `trefoil::config::NodeConfig`.

use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use trefoil::config::NodeConfig;
use trefoil::{logging, node};

fn main() -> ExitCode {
    logging::init();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn start() -> anyhow::Result<()> {
    let config = NodeConfig::load()?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    node::run(config, stop).await
}
