//! Key generation and signing, CPU of all parties together on one thread, beside `dkls23-core` in the same run and in
//! turn, so that the ratio means something on a noisy machine: `cargo bench -p trefoil-protocol`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::indexing_slicing, missing_docs)]

#[path = "../tests/pair/mod.rs"]
mod pair;
mod reference;

use cpu_time::ProcessTime;
use pair::{Pair, generate, request, rng};
use std::time::Duration;
use trefoil_protocol::CurveId;
use trefoil_protocol::ecdsa::{M1_LEN, M2_LEN, M3_LEN};
use trefoil_protocol::frost::{FrostClient, node_sign};

/// CPU time of each run of each candidate, taken in turn; the median of each.
fn in_turn(runs: usize, candidates: &mut [&mut dyn FnMut(u64)]) -> Vec<Duration> {
    let mut times = vec![Vec::new(); candidates.len()];
    for run in 0..runs {
        for (candidate, times) in candidates.iter_mut().zip(&mut times) {
            let start = ProcessTime::now();
            candidate(run as u64);
            times.push(start.elapsed());
        }
    }
    for times in &mut times {
        times.sort();
    }
    times.iter().map(|times| times[times.len() / 2]).collect()
}

fn row(name: &str, times: &[Duration]) {
    let millis = |d: &Duration| d.as_secs_f64() * 1_000.0;
    match times {
        [ours, theirs] => println!(
            "| {name} | {:.2} | {:.2} | {:.2} |",
            millis(ours),
            millis(theirs),
            ours.as_secs_f64() / theirs.as_secs_f64()
        ),
        [ours] => println!("| {name} | {:.2} | - | - |", millis(ours)),
        _ => {}
    }
}

fn main() {
    // `cargo test --benches` only asks whether it runs.
    let quick = std::env::args().any(|arg| arg == "--test");
    let runs = |n| if quick { 1 } else { n };

    println!("| CPU of all parties, median | Trefoil, ms | dkls23-core 0.6.2, ms | ratio |");
    println!("|---|---|---|---|");
    let times = in_turn(
        runs(15),
        &mut [
            &mut |seed| {
                generate(CurveId::Secp256k1, seed * 10);
            },
            &mut |_| {
                reference::generate();
            },
        ],
    );
    row("secp256k1 key generation, 2 of 3", &times);

    let (ours, theirs) = (Pair::new(1), reference::generate());
    let request = request([7; 32], "m");
    let times = in_turn(
        runs(400),
        &mut [
            &mut |seed| {
                ours.sign(&request, seed);
            },
            &mut |_| reference::sign(&theirs),
        ],
    );
    row("secp256k1 signature, 2 parties", &times);

    let times = in_turn(
        runs(100),
        &mut [&mut |seed| {
            generate(CurveId::Ed25519, seed * 10);
        }],
    );
    row("ed25519 key generation, 2 of 3", &times);

    let [client, node1, _] = generate(CurveId::Ed25519, 1);
    let times = in_turn(
        runs(400),
        &mut [&mut |seed| {
            let (mut a, mut b) = (rng(seed), rng(seed + 1_000_000));
            let (session, commitments) = FrostClient::start(&mut a);
            let (theirs, share, _) = node_sign(&node1, b"message", &commitments, &mut b).unwrap();
            session.finish(&client, b"message", &theirs, &share).unwrap();
        }],
    );
    row("ed25519 signature, 2 parties", &times);

    println!();
    println!(
        "Client share: {} bytes. Protocol bytes a signature: {}.",
        ours.client.to_bytes().len(),
        32 + M1_LEN + M2_LEN + M3_LEN
    );
}
