//! What a process tells its operators: metrics, whether it lives and is ready, logs.

pub mod calls;
pub mod certificates;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod server;
pub mod snapshot;
pub mod trace;
pub mod worker;

use trefoil_protocol::Party;

/// A party as a label's value.
#[must_use]
pub const fn party(party: Party) -> &'static str {
    match party {
        Party::Client => "client",
        Party::Node1 => "node1",
        Party::Node2 => "node2",
    }
}
