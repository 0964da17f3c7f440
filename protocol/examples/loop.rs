#![allow(warnings, clippy::all, clippy::restriction, missing_docs, unused)]
#[path = "../tests/pair/mod.rs"]
mod pair;
use trefoil_protocol::frost::*;
use trefoil_protocol::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n: u64 = a[2].parse().unwrap();
    if a[1] == "ecdsa" {
        let pr = pair::Pair::new(1);
        let req = pair::request([7; 32], "m");
        let s = cpu_time::ProcessTime::now();
        for i in 0..n {
            std::hint::black_box(pr.sign(&req, i));
        }
        println!("{:.1} us", s.elapsed().as_secs_f64() / n as f64 * 1e6);
    }
}
