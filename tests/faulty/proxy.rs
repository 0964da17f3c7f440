//! A TCP proxy in front of the nats-server, one for each process, whose connections can be cut or swallow everything.

use std::io;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// What comes in goes out.
    Open,
    /// Connections stay, and are accepted; nothing passes until it is open again, and then what was sent meanwhile does.
    Hole,
    /// Connections are dropped.
    Cut,
}

pub struct Proxy {
    port: u16,
    way: watch::Sender<Way>,
}

impl Proxy {
    /// A proxy to this port of 127.0.0.1, open; lives as long as its runtime.
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, ways) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut ways = ways.clone();
                tokio::spawn(async move {
                    let cut = ways.clone();
                    tokio::select! {
                        _ = relay(client, to, &mut ways) => {}
                        () = until_cut(cut) => {}
                    }
                });
            }
        });
        Self { port, way }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn until_cut(mut ways: watch::Receiver<Way>) {
    if ways.wait_for(|way| *way == Way::Cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Both directions, until one ends.
async fn relay(client: TcpStream, to: u16, ways: &mut watch::Receiver<Way>) -> io::Result<()> {
    open(ways).await?;
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        ended = pump(from_client, to_server, ways.clone()) => ended,
        ended = pump(from_server, to_client, ways.clone()) => ended,
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut ways: watch::Receiver<Way>) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        open(&mut ways).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn open(ways: &mut watch::Receiver<Way>) -> io::Result<()> {
    ways.wait_for(|way| *way == Way::Open).await.map(|_| ()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    /// Echoes what it gets.
    async fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn a_hole_keeps_what_was_sent_and_a_cut_ends_it() {
        let proxy = Proxy::start(echo().await).await;
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port));
        let (mut stream, mut answer) = (connect().await.unwrap(), [0; 4]);
        stream.write_all(b"open").await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"open");
        proxy.set(Way::Hole);
        stream.write_all(b"late").await.unwrap();
        let mut second = connect().await.unwrap();
        second.write_all(b"then").await.unwrap();
        assert!(timeout(Duration::from_millis(100), stream.read(&mut answer)).await.is_err());
        assert!(timeout(Duration::from_millis(100), second.read(&mut answer)).await.is_err());
        proxy.set(Way::Open);
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"late");
        second.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"then");
        proxy.set(Way::Cut);
        assert!(matches!(stream.read(&mut answer).await, Ok(0) | Err(_)));
        // Refused, or accepted and dropped.
        if let Ok(mut third) = connect().await {
            assert!(matches!(third.read(&mut answer).await, Ok(0) | Err(_)));
        }
        proxy.set(Way::Open);
        let mut fourth = connect().await.unwrap();
        fourth.write_all(b"anew").await.unwrap();
        fourth.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"anew");
    }
}
