//! `/metrics`, `/livez` and `/readyz` over HTTP, on an address of their own that only operators reach.

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder, Registry, TextEncoder};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at once; the next one waits in the system's queue. They share the process's file descriptors with its work.
const CONNECTIONS: usize = 16;
/// Longest life of a connection, which is for one request: whoever says nothing has it no longer.
const CONNECTION: Duration = Duration::from_secs(5);
/// How long the end waits for what was asked before.
const END: Duration = Duration::from_secs(1);
/// Before the next attempt, where the system has no connection to give.
const PAUSE: Duration = Duration::from_millis(100);

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
    tracing::info!(%address, "metrics");
    Ok(serve(listener, routes(status), end))
}

fn routes(status: Arc<dyn Status>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(status)
}

async fn serve(listener: TcpListener, routes: Router, end: impl Future<Output = ()> + Send) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = JoinSet::new();
    tokio::pin!(end);
    loop {
        let next = async { (Arc::clone(&room).acquire_owned().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = &mut end => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let answered = answer(stream, routes.clone());
                open.spawn(async move {
                    let _ = timeout(CONNECTION, answered).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: no connection");
                sleep(PAUSE).await;
            }
        }
        while open.try_join_next().is_some() {}
    }
    let _ = timeout(END, async { while open.join_next().await.is_some() {} }).await;
}

async fn answer(stream: TcpStream, routes: Router) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "metrics: a connection ended");
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Well(Registry);

    impl Status for Well {
        fn registry(&self) -> &Registry {
            &self.0
        }

        fn not_ready(&self) -> Option<&'static str> {
            None
        }
    }

    #[tokio::test]
    async fn who_says_nothing_neither_keeps_others_out_nor_takes_more_than_his_share() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, routes(Arc::new(Well(Registry::new()))), std::future::pending()));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        asking.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        // There was no room until one of the silent ones was shown out.
        let gone = silent.iter().filter(|stream| stream.try_read(&mut [0; 1]).is_ok_and(|read| read == 0)).count();
        assert!(gone > 0);
    }
}
