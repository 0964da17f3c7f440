//! How many live keys there are, by curve: counted when the store is opened, and from then on with each commit.

use crate::telemetry::metrics::NodeMetrics;
use crate::wire::Curve;

/// Live keys, or a change of their number.
#[derive(Default)]
pub struct LiveKeys {
    secp256k1: i64,
    ed25519: i64,
}

impl LiveKeys {
    /// So many more.
    pub const fn add(&mut self, curve: Curve, more: i64) {
        let count = match curve {
            Curve::Secp256k1 => &mut self.secp256k1,
            Curve::Ed25519 => &mut self.ed25519,
        };
        *count += more;
    }

    /// Adds them to what is shown.
    pub fn show(&self, metrics: &NodeMetrics) {
        for (curve, more) in [(Curve::Secp256k1, self.secp256k1), (Curve::Ed25519, self.ed25519)] {
            metrics.keys.with_label_values(&[curve.as_str()]).add(more);
        }
    }
}
