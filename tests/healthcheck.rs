//! `trefoil healthcheck` against servers that are well, not ready, silent, or not there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;

/// Answers every request with these bytes, or holds it without a word.
fn serve(answer: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut held: Vec<TcpStream> = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if let Some(answer) = answer {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer.as_bytes());
            } else {
                held.push(stream);
            }
        }
    });
    address
}

/// Of a process whose setting this is.
fn check(listen: &str, arguments: &[&str]) -> Output {
    let mut command = support::command("trefoil");
    // A proxy that would be asked if anything were.
    command.env("http_proxy", "http://127.0.0.1:9").env("TREFOIL_METRICS_LISTEN", listen);
    command.arg("healthcheck").args(arguments).output().unwrap()
}

fn refused(checked: &Output) -> String {
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    String::from_utf8(checked.stderr.clone()).unwrap()
}

#[test]
fn tells_ready_from_not_ready_by_its_exit_code() {
    let well = serve(Some("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n"));
    let checked = check(&format!("0.0.0.0:{}", well.port()), &[]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let url = format!("http://{well}/readyz");
    assert_eq!(check("127.0.0.1:1", &["--url", &url]).status.code(), Some(0));

    let draining = serve(Some("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\ndraining\n"));
    let said = refused(&check(&draining.to_string(), &[]));
    assert!(said.ends_with("/readyz: draining\n"), "{said}");

    // Somebody else's server.
    let elsewhere = serve(Some("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"));
    let said = refused(&check(&elsewhere.to_string(), &[]));
    assert!(said.contains("302"), "{said}");
    let endless = serve(Some("HTTP/1.1 503 No\r\ncontent-length: 1000000\r\n\r\n"));
    refused(&check(&endless.to_string(), &[]));
}

#[test]
fn does_not_wait_for_long() {
    refused(&check(&serve(None).to_string(), &[]));
    // Nobody listens there.
    let said = refused(&check("127.0.0.1:1", &[]));
    assert!(said.contains("127.0.0.1:1"), "{said}");
}
