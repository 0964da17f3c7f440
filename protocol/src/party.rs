//! The three parties of a key and the two curves.

use core::fmt;

/// A holder of one of a key's three shares. Any two of the three sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Party {
    /// The backend's share, played by a worker. Shamir point 1.
    Client = 1,
    /// The co-signer. Shamir point 2.
    Node1 = 2,
    /// The recovery node. Shamir point 3.
    Node2 = 3,
}

impl Party {
    /// All parties in the order of their points.
    pub const ALL: [Self; 3] = [Self::Client, Self::Node1, Self::Node2];

    /// The party's Shamir point: 1, 2 or 3.
    #[must_use]
    pub const fn point(self) -> u8 {
        self as u8
    }

    /// The party with this Shamir point, if there is one.
    #[must_use]
    pub const fn from_point(point: u8) -> Option<Self> {
        match point {
            1 => Some(Self::Client),
            2 => Some(Self::Node1),
            3 => Some(Self::Node2),
            _ => None,
        }
    }

    /// The two others, in the order of their points.
    #[must_use]
    pub const fn others(self) -> [Self; 2] {
        match self {
            Self::Client => [Self::Node1, Self::Node2],
            Self::Node1 => [Self::Client, Self::Node2],
            Self::Node2 => [Self::Client, Self::Node1],
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Node1 => "node1",
            Self::Node2 => "node2",
        })
    }
}

/// The curve of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CurveId {
    /// ECDSA by DKLs23 (method `mta`).
    Secp256k1 = 1,
    /// EdDSA by FROST (method `default`).
    Ed25519 = 2,
}

impl CurveId {
    /// The name used on the wire and in every hash.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Secp256k1 => "secp256k1",
            Self::Ed25519 => "ed25519",
        }
    }

    /// Bytes of an encoded public key: 33 (SEC1 compressed) or 32.
    #[must_use]
    pub const fn public_key_len(self) -> usize {
        match self {
            Self::Secp256k1 => 33,
            Self::Ed25519 => 32,
        }
    }

    /// The curve with this byte in a stored share, if there is one.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Secp256k1),
            2 => Some(Self::Ed25519),
            _ => None,
        }
    }
}

impl fmt::Display for CurveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
