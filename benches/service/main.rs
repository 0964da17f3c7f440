//! The load harness of the whole service, `make bench-service`: docs/performance.md says what it measures and how to read it.
//!
//! `QUICK=1` is a short run that shows that everything works; `JOBS` the jobs of the memory series; `SYNC=always` has the server
//! sync each write; `ONLY=open,hot` runs only these series; `OUT` names another file than target/bench/service.json.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]
#![allow(missing_docs)]

#[path = "../../tests/deployment/mod.rs"]
mod deployment;
mod floor;
mod load;
mod report;
mod series;
mod site;
#[path = "../../tests/support/mod.rs"]
mod support;

use series::{Bench, Options};
use tokio::signal::unix::{SignalKind, signal};

fn main() {
    if floor::is_floor() || std::env::args().any(|arg| arg == "--test" || arg == "--list") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let whole = runtime.block_on(async {
        let (mut interrupted, mut ended) =
            (signal(SignalKind::interrupt()).unwrap(), signal(SignalKind::terminate()).unwrap());
        tokio::select! {
            () = Bench::run(Options::read()) => true,
            _ = interrupted.recv() => false,
            _ = ended.recv() => false,
        }
    });
    if !whole {
        println!("stopped; nothing was written");
        std::process::exit(1);
    }
}
