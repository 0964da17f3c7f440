//! Three parties in one process, and a `num-bigint` oracle for what they compute.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs, dead_code)]

pub mod reference;

use ed25519_dalek::SigningKey;
use num_bigint::BigUint;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use trefoil_protocol::curve::{Ed25519, Group, Secp256k1};
use trefoil_protocol::dkg::{Generated, Open, Setup};
use trefoil_protocol::ot::OtState;
use trefoil_protocol::reshare::Origin;
use trefoil_protocol::{Abort, KeyShare, Party};

pub fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// What a test needs to know of a curve beside what the library says of it.
pub trait TestCurve: Group {
    /// The group's order, from SEC 2 and RFC 8032.
    fn order() -> BigUint;
    fn to_integer(encoded: &[u8]) -> BigUint;
    fn from_integer(integer: &BigUint) -> [u8; 32];
    fn share(generated: Generated<Self>, party: Party) -> KeyShare;
}

impl TestCurve for Secp256k1 {
    fn order() -> BigUint {
        BigUint::parse_bytes(b"fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16).unwrap()
    }
    fn to_integer(encoded: &[u8]) -> BigUint {
        BigUint::from_bytes_be(encoded)
    }
    fn from_integer(integer: &BigUint) -> [u8; 32] {
        let bytes = integer.to_bytes_be();
        let mut out = [0; 32];
        out[32 - bytes.len()..].copy_from_slice(&bytes);
        out
    }
    fn share(generated: Generated<Self>, party: Party) -> KeyShare {
        let mut state = vec![0; OtState::LEN];
        rng(99).fill_bytes(&mut state);
        generated.into_share((party != Party::Node2).then(|| OtState::from_bytes(&state).unwrap())).unwrap()
    }
}

impl TestCurve for Ed25519 {
    fn order() -> BigUint {
        (BigUint::from(1u8) << 252) + BigUint::parse_bytes(b"27742317777372353535851937790883648493", 10).unwrap()
    }
    fn to_integer(encoded: &[u8]) -> BigUint {
        BigUint::from_bytes_le(encoded)
    }
    fn from_integer(integer: &BigUint) -> [u8; 32] {
        let bytes = integer.to_bytes_le();
        let mut out = [0; 32];
        out[..bytes.len()].copy_from_slice(&bytes);
        out
    }
    fn share(generated: Generated<Self>, _: Party) -> KeyShare {
        generated.into_share()
    }
}

/// Where the secret share stands in the stored form.
pub const SECRET: core::ops::Range<usize> = 87..119;

pub fn secret<C: TestCurve>(share: &KeyShare) -> BigUint {
    C::to_integer(&share.to_bytes()[SECRET])
}

/// `f(0)` of the line through `(i, x)` and `(j, y)`, mod `q`.
pub fn interpolate(q: &BigUint, (i, x): (Party, &BigUint), (j, y): (Party, &BigUint)) -> BigUint {
    let (i, j) = (BigUint::from(i.point()), BigUint::from(j.point()));
    let inverse = |v: BigUint| v.modpow(&(q - 2u8), q);
    let li = &j * inverse((q + &j - &i) % q);
    let lj = &i * inverse((q + &i - &j) % q);
    (li * x + lj * y) % q
}

pub fn identity(party: Party) -> Option<SigningKey> {
    (party != Party::Client).then(|| SigningKey::from_bytes(&[party.point(); 32]))
}

pub fn setup(party: Party) -> Setup {
    Case::Generate.setup(party)
}

/// What the three parties run, and the shares that they have before.
#[derive(Debug, Clone, Copy)]
pub enum Case<'a> {
    Generate,
    Recover(&'a [KeyShare; 3]),
    Refresh(&'a [KeyShare; 3]),
}

impl<'a> Case<'a> {
    pub fn all(old: &'a [KeyShare; 3]) -> [Self; 3] {
        [Self::Generate, Self::Recover(old), Self::Refresh(old)]
    }

    /// The old shares, in a recovery or refresh.
    pub fn old(self) -> Option<&'a [KeyShare; 3]> {
        match self {
            Self::Generate => None,
            Self::Recover(old) | Self::Refresh(old) => Some(old),
        }
    }

    /// Does this party deal?
    pub fn deals(self, party: Party) -> bool {
        !(matches!(self, Self::Recover(_)) && party == Party::Client)
    }

    pub fn setup(self, party: Party) -> Setup {
        let old_id = self.old().map_or([7; 16], |[share, ..]| share.key_id());
        Setup {
            party,
            key_id: if matches!(self, Self::Recover(_)) { old_id.map(|byte| byte + 1) } else { old_id },
            epoch: self.old().map_or(0, |[share, ..]| share.epoch() + 1),
            job_digest: [9; 32],
            node1: identity(Party::Node1).unwrap().verifying_key(),
            node2: identity(Party::Node2).unwrap().verifying_key(),
        }
    }

    /// Opened with what this party knows before.
    pub fn open<C: TestCurve>(self, party: Party, rng: &mut ChaCha20Rng) -> (Open<C>, [u8; 32]) {
        self.open_as(self.setup(party), rng)
    }

    pub fn open_as<C: TestCurve>(self, setup: Setup, rng: &mut ChaCha20Rng) -> (Open<C>, [u8; 32]) {
        let share = |old: &'a [KeyShare; 3]| &old[usize::from(setup.party.point()) - 1];
        match self {
            Self::Generate => Open::start(setup, rng),
            Self::Recover([_, node1, _]) if setup.party == Party::Client => {
                Open::reshare(setup, Origin::RecoverTo(&node1.source()), rng).unwrap()
            }
            Self::Recover(old) => Open::reshare(setup.clone(), Origin::RecoverFrom(share(old)), rng).unwrap(),
            Self::Refresh(old) => Open::reshare(setup.clone(), Origin::Refresh(share(old)), rng).unwrap(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    Open,
    Commit,
    Reveal,
    Echo,
    Deal,
}

/// Every message in flight passes through this: (round, from, to, bytes).
pub type Relay<'a> = &'a mut dyn FnMut(Round, Party, Party, &mut Vec<u8>);

/// Two messages of each party, or to each: the others' in the order of `others()`.
type Messages = [[Vec<u8>; 2]; 3];

/// Who gave up, and why.
pub type Aborts = Vec<(Party, Abort)>;

/// Each party's messages to the two others, delivered: what each receives, in the order of `others()`.
fn deliver(round: Round, sent: Messages, relay: Relay<'_>) -> Messages {
    Party::ALL.map(|to| {
        to.others().map(|from| {
            let slot = from.others().iter().position(|p| *p == to).unwrap();
            let mut message = sent[usize::from(from.point()) - 1][slot].clone();
            relay(round, from, to, &mut message);
            message
        })
    })
}

fn step<S, T>(
    states: [S; 3],
    inbox: &Messages,
    f: impl Fn(S, [&[u8]; 2], Party) -> Result<(T, [Vec<u8>; 2]), Abort>,
) -> Result<([T; 3], Messages), Aborts> {
    let mut next = Vec::new();
    let mut out = Vec::new();
    let mut aborts = Vec::new();
    for ((state, party), inbox) in states.into_iter().zip(Party::ALL).zip(inbox) {
        match f(state, [&inbox[0], &inbox[1]], party) {
            Ok((state, messages)) => {
                next.push(state);
                out.push(messages);
            }
            Err(abort) => aborts.push((party, abort)),
        }
    }
    match (next.try_into(), out.try_into()) {
        (Ok(next), Ok(out)) => Ok((next, out)),
        _ => Err(aborts),
    }
}

fn twice(message: impl AsRef<[u8]>) -> [Vec<u8>; 2] {
    [message.as_ref().to_vec(), message.as_ref().to_vec()]
}

/// Runs a key generation until all are done, or until the round in which somebody aborts.
pub fn run_with<C: TestCurve>(seed: u64, relay: Relay<'_>) -> Result<[KeyShare; 3], Aborts> {
    run_case::<C>(Case::Generate, seed, relay)
}

/// The same for a recovery or refresh, too.
pub fn run_case<C: TestCurve>(case: Case<'_>, seed: u64, relay: Relay<'_>) -> Result<[KeyShare; 3], Aborts> {
    run_from(|party| case.open::<C>(party, &mut rng(seed * 3 + u64::from(party.point()))), relay)
}

/// The same with parties that were opened in any way.
pub fn run_from<C: TestCurve>(
    open: impl Fn(Party) -> (Open<C>, [u8; 32]),
    relay: Relay<'_>,
) -> Result<[KeyShare; 3], Aborts> {
    let mut sent = Vec::new();
    let states = Party::ALL.map(|party| {
        let (state, n) = open(party);
        sent.push(twice(n));
        state
    });
    let inbox = deliver(Round::Open, sent.try_into().unwrap(), relay);
    let (states, sent) = step(states, &inbox, |s, m, _| s.commit(m).map(|(s, m)| (s, twice(m))))?;
    let inbox = deliver(Round::Commit, sent, relay);
    let (states, sent) = step(states, &inbox, |s, m, _| s.reveal(m).map(|(s, m)| (s, twice(m))))?;
    let inbox = deliver(Round::Reveal, sent, relay);
    let (states, sent) = step(states, &inbox, |s, m, p| s.echo(m, identity(p).as_ref()).map(|(s, m)| (s, twice(m))))?;
    let inbox = deliver(Round::Echo, sent, relay);
    let (states, sent) = step(states, &inbox, |s, m, _| s.deal(m))?;
    let inbox = deliver(Round::Deal, sent, relay);
    let (shares, _) = step(states, &inbox, |s, m, p| s.finish(m).map(|g| (C::share(g, p), [Vec::new(), Vec::new()])))?;
    Ok(shares)
}

pub fn run<C: TestCurve>(seed: u64) -> [KeyShare; 3] {
    renew::<C>(Case::Generate, seed)
}

pub fn renew<C: TestCurve>(case: Case<'_>, seed: u64) -> [KeyShare; 3] {
    run_case::<C>(case, seed, &mut |_, _, _, _| {}).unwrap()
}

/// Encodings that no honest party sends, each for a reason of its own.
pub fn bad_ed25519_points() -> Vec<[u8; 32]> {
    use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
    let mut bad: Vec<[u8; 32]> = EIGHT_TORSION.iter().map(|p| p.compress().to_bytes()).collect();
    bad.push((ED25519_BASEPOINT_POINT + EIGHT_TORSION[1]).compress().to_bytes());
    bad.push((ED25519_BASEPOINT_POINT + EIGHT_TORSION[4]).compress().to_bytes());
    // y = 2 is not on the curve.
    let mut off_curve = [0; 32];
    off_curve[0] = 2;
    bad.push(off_curve);
    // All 40 that a lenient parser takes for other encodings: y at least p, and both points of x = 0 with the sign bit set.
    for y in 0..19 {
        for sign in [0x7f, 0xff] {
            let mut encoding = [0xff; 32];
            encoding[0] = 0xed + y;
            encoding[31] = sign;
            bad.push(encoding);
        }
    }
    let (mut identity, mut order_two) = ([0; 32], [0xff; 32]);
    identity[0] = 1;
    identity[31] = 0x80;
    order_two[0] = 0xec;
    bad.extend([identity, order_two]);
    bad
}

/// The same on secp256k1.
pub fn bad_secp256k1_points() -> Vec<Vec<u8>> {
    let good = Secp256k1::encode_point(&Secp256k1::mul_generator(&7u64.into()));
    let with_tag = |tag: u8| [[tag].as_slice(), &good[1..]].concat();
    let with_x = |x: [u8; 32]| [[2].as_slice(), &x].concat();
    let p = BigUint::parse_bytes(b"fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f", 16).unwrap();
    // p + 1 would be another encoding of x = 1, which is on the curve; x = 5 is not on it.
    let above_p = Secp256k1::from_integer(&(&p + 1u8));
    let off_curve = Secp256k1::from_integer(&BigUint::from(5u8));
    let mut bad: Vec<Vec<u8>> = [0, 1, 4, 5, 6, 7, 0xff].map(with_tag).to_vec();
    bad.extend([vec![0; 33], with_x([0; 32]), with_x([0xff; 32]), with_x(above_p), with_x(off_curve)]);
    bad
}
