//! A node: holds one share of every key, checks every job itself, and never trusts the worker that relays it.

pub mod audit;
pub mod store;
