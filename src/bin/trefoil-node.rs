//! The node process: `node1` (co-signer) or `node2` (recovery). Settings: see `trefoil::config::NodeConfig`.

use std::process::ExitCode;
use trefoil::config::NodeConfig;
use trefoil::{node, process};

fn main() -> ExitCode {
    process::run(start)
}

#[tokio::main]
async fn start() -> anyhow::Result<()> {
    let config = NodeConfig::load()?;
    node::run(config, process::stop_signal()?).await
}
