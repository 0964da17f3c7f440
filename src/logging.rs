//! Logs of the processes: to standard error, one line an event.

use tracing_subscriber::EnvFilter;

/// Starts logging. `RUST_LOG` filters (default `info`); `RUST_LOG_FORMAT=json` gives JSON lines.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("RUST_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.with_ansi(false).init();
    }
}
