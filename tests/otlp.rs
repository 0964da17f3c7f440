//! The export of spans, as a collector gets it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, digest, new_key};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trefoil::telemetry::trace::TraceContext;
use trefoil::wire::{Curve, Method};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A span of an export.
#[derive(Debug, Clone, Default, PartialEq)]
struct Exported {
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
}

/// The fields of a protobuf message that have a length: number and content.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    let number = |bytes: &mut &[u8]| {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    };
    while !bytes.is_empty() {
        let tag = number(&mut bytes);
        let length = match tag & 7 {
            0 => {
                number(&mut bytes);
                continue;
            }
            1 => 8,
            2 => number(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (content, rest) = bytes.split_at(length);
        bytes = rest;
        found.push((tag >> 3, content));
    }
    found
}

fn of(message: &[u8], wanted: u64) -> Vec<&[u8]> {
    fields(message).into_iter().filter(|(number, _)| *number == wanted).map(|(_, content)| content).collect()
}

/// The spans of an ExportTraceServiceRequest.
fn spans(request: &[u8]) -> Vec<Exported> {
    let scopes = of(request, 1).into_iter().flat_map(|resource| of(resource, 2));
    let spans = scopes.flat_map(|scope| of(scope, 2));
    let field = |span: &[u8], number| of(span, number).first().map_or_else(Vec::new, |bytes| bytes.to_vec());
    spans
        .map(|span| Exported {
            name: String::from_utf8(field(span, 5)).unwrap(),
            trace: field(span, 1),
            id: field(span, 2),
            parent: field(span, 4),
        })
        .collect()
}

/// A collector: its address, and what it gets.
fn collect() -> (String, Arc<Mutex<Vec<Exported>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let collected = Arc::new(Mutex::new(Vec::new()));
    let all = collected.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (all, stream) = (all.clone(), stream.unwrap());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                loop {
                    let mut length = 0;
                    loop {
                        let mut line = String::new();
                        if reader.read_line(&mut line).unwrap_or(0) == 0 {
                            return;
                        }
                        let line = line.trim().to_ascii_lowercase();
                        if let Some(value) = line.strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        if line.is_empty() {
                            break;
                        }
                    }
                    let mut body = vec![0; length];
                    reader.read_exact(&mut body).unwrap();
                    all.lock().unwrap().extend(spans(&body));
                    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
    (address, collected)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_steps_of_a_job_in_one_tree() {
    let (address, collected) = collect();
    let mut service = Deployment::new();
    service.node_settings = vec![("TREFOIL_OTLP_ENDPOINT", address)];
    service.worker_settings = service.node_settings.clone();
    service.start_node("node1");
    service.start_node("node2");
    service.start_worker("worker1");
    let mut backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    backend.set_trace(TraceContext::parse(PARENT));
    backend.sign(&key, Method::Default, &digest(1), deployment::password()).await.unwrap();
    // What is left is sent when a process ends.
    for process in ["worker1", "node1", "node2"] {
        assert!(service.process(process).terminate().success());
    }
    let started = Instant::now();
    let trace = data_encoding::HEXLOWER.decode(&PARENT.as_bytes()[3..35]).unwrap();
    loop {
        let all: Vec<_> = collected.lock().unwrap().iter().filter(|span| span.trace == trace).cloned().collect();
        let jobs: Vec<_> = all.iter().filter(|span| span.name == "job").collect();
        let below = |name: &str, parents: &[&Exported]| {
            let found: Vec<Exported> = all.iter().filter(|span| span.name == name).cloned().collect();
            !found.is_empty() && found.iter().all(|span| parents.iter().any(|parent| parent.id == span.parent))
        };
        let calls: Vec<_> = all.iter().filter(|span| span.name == "call").collect();
        if jobs.len() == 1
            && ["key", "put", "call"].iter().all(|name| below(name, &jobs))
            && ["compute", "audit", "store"].iter().all(|name| {
                all.iter().any(|span| span.name == *name && calls.iter().any(|call| call.id == span.parent))
            })
        {
            assert_ne!(jobs[0].parent, Vec::<u8>::new(), "the backend's span is its parent");
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{all:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
