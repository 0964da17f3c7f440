//! Jobs under steady load while processes fail, and the count of what came of them; see `tests/fault_harness.rs`.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

pub mod book;
pub mod keys;
pub mod load;
pub mod plan;
pub mod proxy;
pub mod stage;
pub mod strike;
pub mod verdict;
pub mod witness;
