//! Logs of the processes: to standard error, one line an event.

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

/// Keeps what was begun for the logs; what they have to send yet is sent when it is dropped.
#[must_use]
pub struct Logs {
    #[cfg(feature = "otlp")]
    _export: Option<crate::telemetry::otlp::Export>,
}

/// Starts logging. `RUST_LOG` filters (default `info`); `RUST_LOG_FORMAT=json` gives JSON lines.
pub fn init() -> Logs {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn"));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let json = std::env::var("RUST_LOG_FORMAT").is_ok_and(|format| format == "json");
    let lines = if json { lines.json().boxed() } else { lines.with_ansi(false).boxed() };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    {
        let export = export();
        let (export, failed) = match export {
            Ok(export) => (export, None),
            Err(error) => (None, Some(error)),
        };
        registry.with(export.as_ref().map(crate::telemetry::otlp::Export::layer)).init();
        if let Some(error) = failed {
            tracing::error!("spans are not exported: {error:#}");
        }
        Logs { _export: export }
    }
    #[cfg(not(feature = "otlp"))]
    {
        registry.init();
        Logs {}
    }
}

/// The export that the environment asks for.
#[cfg(feature = "otlp")]
fn export() -> anyhow::Result<Option<crate::telemetry::otlp::Export>> {
    use crate::telemetry::otlp::{ENDPOINT, Export};
    let Ok(endpoint) = std::env::var(ENDPOINT) else { return Ok(None) };
    if endpoint.is_empty() {
        return Ok(None);
    }
    let program = std::env::current_exe().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    Export::start(&endpoint, program.as_deref().unwrap_or("trefoil")).map(Some)
}
