//! A batch of 64 beside 64 single jobs under one key, in turn, through the whole service on this machine; sizes of sub-batches; what
//! other people's jobs feel of a batch: `cargo bench --bench batch`. One worker, two nodes, one nats-server, a password that costs
//! nothing to stretch (`hkdf`), so that what is compared is signing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::indexing_slicing)]
#![allow(missing_docs)]

#[path = "../tests/deployment/mod.rs"]
mod deployment;
#[path = "../tests/support/mod.rs"]
mod support;

use deployment::{Deployment, PATIENCE, material};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trefoil::client::{Backend, SigningMaterial};
use trefoil::vault::Password;
use trefoil::wire::{Batch, Curve, KdfParams, Method, SignInput};
use zeroize::Zeroizing;

const ITEMS: usize = 64;

fn secret() -> Password {
    Password::new(Zeroizing::new(vec![0x5a; 32])).unwrap()
}

fn input(curve: Curve, n: usize) -> SignInput {
    match curve {
        Curve::Secp256k1 => SignInput::Secp256k1 { digest: [n as u8; 32], path: None },
        Curve::Ed25519 => SignInput::Ed25519 { message: vec![n as u8; 32] },
    }
}

async fn key(backend: &Backend, curve: Curve) -> SigningMaterial {
    let new = backend.generate(curve, KdfParams::Hkdf, secret()).await.unwrap();
    backend.committed(&new.key, PATIENCE).await.unwrap();
    material(&new)
}

async fn singles(backend: &Backend, key: &SigningMaterial, curve: Curve) {
    let one = async |n| backend.sign(key, Method::Default, &input(curve, n), secret()).await.unwrap();
    futures::future::join_all((0..ITEMS).map(one)).await;
}

async fn batch(backend: &Backend, key: &SigningMaterial, curve: Curve, items: usize) {
    let batch = Batch::new((0..items).map(|n| input(curve, n)).collect()).unwrap();
    backend.sign_batch(key, Method::Default, &batch, secret()).await.unwrap();
}

/// CPU milliseconds of a process so far: fields 14 and 15 of its stat, in ticks of 10 ms.
fn cpu(service: &Deployment, name: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.running[name].id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

fn quantile(times: &mut [Duration], of_hundred: usize) -> f64 {
    times.sort();
    times[(times.len() - 1) * of_hundred / 100].as_secs_f64() * 1_000.0
}

fn service(batch_items: usize) -> Deployment {
    let mut service = Deployment::new();
    service.worker_settings.push(("TREFOIL_BATCH_ITEMS", batch_items.to_string()));
    for node in ["node1", "node2"] {
        service.start_node(node);
    }
    service.start_worker("worker1");
    service
}

async fn in_turn(rounds: usize) {
    println!(
        "| {ITEMS} signatures under one key, median of {rounds} | single jobs, ms | one batch, ms | ratio | CPU ms a signature, node 1 / worker: single | batch |"
    );
    println!("|---|---|---|---|---|---|");
    let service = service(8);
    let backend = service.backend().await;
    for curve in [Curve::Secp256k1, Curve::Ed25519] {
        let key = key(&backend, curve).await;
        let mut times = [Vec::new(), Vec::new()];
        let mut used = [[0; 2]; 2];
        for round in 0..=rounds {
            for which in 0..2 {
                let before = ["node1", "worker1"].map(|name| cpu(&service, name));
                let started = Instant::now();
                if which == 0 {
                    singles(&backend, &key, curve).await
                } else {
                    batch(&backend, &key, curve, ITEMS).await
                }
                // The first round warms up.
                if round > 0 {
                    times[which].push(started.elapsed());
                    for (process, name) in ["node1", "worker1"].into_iter().enumerate() {
                        used[which][process] += cpu(&service, name) - before[process];
                    }
                }
            }
        }
        let [single, batch] = times.each_mut().map(|times| quantile(times, 50));
        let each = used.map(|used| used.map(|ms| ms as f64 / (rounds * ITEMS) as f64));
        println!(
            "| {curve} | {single:.1} | {batch:.1} | {:.2} | {:.2} / {:.2} | {:.2} / {:.2} |",
            single / batch,
            each[0][0],
            each[0][1],
            each[1][0],
            each[1][1]
        );
    }
}

async fn sizes(rounds: usize) {
    println!("\n| items side by side, secp256k1 | a batch of {ITEMS}, ms |");
    println!("|---|---|");
    for items in [1, 2, 4, 6, 8, 9] {
        let service = service(items);
        let backend = service.backend().await;
        let key = key(&backend, Curve::Secp256k1).await;
        let mut times = Vec::new();
        for _ in 0..rounds {
            let started = Instant::now();
            batch(&backend, &key, Curve::Secp256k1, ITEMS).await;
            times.push(started.elapsed());
        }
        println!("| {items} | {:.1} |", quantile(&mut times, 50));
    }
}

async fn beside(jobs: usize) {
    println!("\n| single jobs of another key, one after the other, secp256k1 | p50, ms | p99, ms |");
    println!("|---|---|---|");
    let service = service(8);
    let backend = service.backend().await;
    let (large, small) = (key(&backend, Curve::Secp256k1).await, key(&backend, Curve::Secp256k1).await);
    for (what, batches) in
        [("alone", 0), ("beside batches of 128, one after the other", 1), ("beside two such rows", 2)]
    {
        let over = AtomicBool::new(false);
        let flood = futures::future::join_all((0..batches).map(|_| async {
            while !over.load(Ordering::Relaxed) {
                batch(&backend, &large, Curve::Secp256k1, 128).await;
            }
        }));
        let measured = async {
            let mut times = Vec::new();
            for n in 0..jobs {
                let started = Instant::now();
                backend.sign(&small, Method::Default, &input(Curve::Secp256k1, n), secret()).await.unwrap();
                times.push(started.elapsed());
            }
            over.store(true, Ordering::Relaxed);
            times
        };
        let (_, mut times) = futures::join!(flood, measured);
        println!("| {what} | {:.1} | {:.1} |", quantile(&mut times, 50), quantile(&mut times, 99));
    }
}

#[tokio::main]
async fn main() {
    // `cargo test --benches` only asks whether it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return in_turn(1).await;
    }
    in_turn(11).await;
    sizes(7).await;
    beside(300).await;
}
