//! `/metrics`, `/livez` and `/readyz` over HTTP, on an address of their own that only operators reach.

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder, Registry, TextEncoder};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// What a process says of itself. Called for each request, so cheap.
pub trait Status: Send + Sync + 'static {
    /// The metrics as of now.
    fn registry(&self) -> &Registry;

    /// Why it cannot do its work at the moment; `None` if it can.
    fn not_ready(&self) -> Option<&'static str>;
}

/// Takes `address`; port 0 takes a free one, which the log names. What is returned serves `status` there.
///
/// # Errors
/// The address cannot be had.
pub async fn start(address: SocketAddr, status: Arc<dyn Status>) -> anyhow::Result<impl Future<Output = ()> + Send> {
    start_until(address, status, std::future::pending()).await
}

/// The same until `end` completes; what was asked before is answered.
///
/// # Errors
/// The address cannot be had.
pub async fn start_until(
    address: SocketAddr,
    status: Arc<dyn Status>,
    end: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("metrics_listen: {address}"))?;
    let address = listener.local_addr()?;
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(status);
    tracing::info!(%address, "metrics");
    Ok(async move {
        if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(end).await {
            tracing::error!(%error, "metrics are not served any more");
        }
    })
}

async fn metrics(State(status): State<Arc<dyn Status>>) -> Response {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&status.registry().gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready(State(status): State<Arc<dyn Status>>) -> (StatusCode, String) {
    match status.not_ready() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
