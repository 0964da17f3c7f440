//! What must happen once cannot be had twice, and what is secret is not printed: refused by the compiler. A line here stops
//! compiling when such a trait is added. (That a consumed state cannot be used again is a doctest of `dkg` and `frost`.)
#![allow(missing_docs)]

use core::fmt::{Debug, Display};
use static_assertions::assert_not_impl_any;
use trefoil_protocol::curve::{Ed25519, Secp256k1};
use trefoil_protocol::dkg::{Commit, Deal, Echo, Generated, Open, Reveal};
use trefoil_protocol::ecdsa::client::{Client, Round2};
use trefoil_protocol::ecdsa::node1::{Burn, Node1, Sent};
use trefoil_protocol::frost::FrostClient;
use trefoil_protocol::keygen::{ClientKeygen, NodeKeygen};
use trefoil_protocol::ot::OtState;
use trefoil_protocol::{KeyShare, Secret, SessionRng};

assert_not_impl_any!(Open<Ed25519>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Commit<Ed25519>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Reveal<Ed25519>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Echo<Ed25519>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Deal<Ed25519>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Generated<Ed25519>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Commit<Secp256k1>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Reveal<Secp256k1>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Echo<Secp256k1>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Open<Secp256k1>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Deal<Secp256k1>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Generated<Secp256k1>: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(FrostClient: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Client: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Round2: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Node1: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Burn: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(Sent: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(ClientKeygen: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(NodeKeygen: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(OtState: Clone, Copy, Debug, Display, PartialEq, Default);
assert_not_impl_any!(SessionRng: Clone, Copy, Debug, Display, PartialEq, Default);
// These two print a redacted text, which is tested.
assert_not_impl_any!(KeyShare: Clone, Copy, Display, PartialEq, Default);
assert_not_impl_any!(Secret<[u8; 32]>: Clone, Copy, Display, PartialEq, Default);
