//! Random interleavings of jobs about one key, each with a process that fails at a chosen step; see `tests/interleavings.rs`.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod family;
pub mod plan;
pub mod world;
