//! Faults on purpose, for tests: a process that dies or stops at a named step, and a worker that alters the jobs that it forwards; and a
//! node that says what its sessions do.
//!
//! Only with the cargo feature `faults`, which no release has; without it everything here is empty and compiles to nothing, and the
//! settings below are refused as unknown. With it, `TREFOIL_FAULTS` names a directory in which each file is one armed step
//! ([`steps`]), `TREFOIL_TAMPER` makes a worker lie ([`tamper`]), and `TREFOIL_WITNESS` names a file for what sessions do ([`witness`]).

#[cfg(feature = "faults")]
pub mod steps;
#[cfg(feature = "faults")]
pub mod tamper;
#[cfg(feature = "faults")]
pub mod witness;

use crate::wire::node::NodeRequest;
use crate::wire::{FIRST_EPOCH, KeyId};
use core::fmt::{Arguments, Display};

/// The environment variables of this module, without their prefix.
#[cfg(feature = "faults")]
pub const SETTINGS: &[&str] = &["faults", "tamper", "witness"];
/// The environment variables of this module, without their prefix.
#[cfg(not(feature = "faults"))]
pub const SETTINGS: &[&str] = &[];

/// A step of a worker or node, in work of this operation on this key. The rows of the crash table are, at a worker: `taken`, `session`, `sub-batch` (of a batch, each), `prepared-node2`,
/// `prepared-node1`, `result-stored`, `decided` (node 1 committed), `followed` (node 2 committed), `acknowledged`; at a node, around
/// its durable writes: `session`, `preparing`, `prepared`, `committing`, `committed`, `charged`, `burned`.
#[cfg(feature = "faults")]
pub fn step(name: &str, op: &str, key_id: impl Display) {
    steps::reach(name, op, &key_id.to_string());
}

/// A step of a worker or node: nothing, in this build.
#[cfg(not(feature = "faults"))]
#[inline]
pub fn step(_name: &str, _op: &str, _key_id: impl Display) {}

/// Something that a session of this node does.
#[cfg(feature = "faults")]
pub fn seen(line: Arguments<'_>) {
    witness::write(line);
}

/// Something that a session of this node does: nothing to write, in this build.
#[cfg(not(feature = "faults"))]
#[inline]
pub fn seen(_line: Arguments<'_>) {}

/// Which operation made an attempt at a key, of which its epoch and the key that it replaces are known.
#[must_use]
pub const fn made_by(source_key_id: Option<KeyId>, epoch: u32) -> &'static str {
    match source_key_id {
        Some(_) => "recover",
        None if epoch == FIRST_EPOCH => "generate",
        None => "refresh",
    }
}

/// What a worker sends to a node in place of this request.
#[cfg(feature = "faults")]
#[must_use]
pub fn forwarded(request: NodeRequest) -> NodeRequest {
    tamper::forwarded(request)
}

/// What a worker sends to a node: the request itself, in this build.
#[cfg(not(feature = "faults"))]
#[must_use]
#[inline]
pub fn forwarded(request: NodeRequest) -> NodeRequest {
    request
}

/// Says that this process can be told to fail.
pub fn warn() {
    #[cfg(feature = "faults")]
    tracing::warn!("FAULT INJECTION is compiled in (cargo feature `faults`): for tests only, never for real keys");
}
