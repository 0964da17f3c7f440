//! Generated keys and their signing pair, through the same calls that worker and node make.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs, dead_code)]

use ed25519_dalek::SigningKey;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::sync::Arc;
use trefoil_protocol::derive::DerivationPath;
use trefoil_protocol::ecdsa::client::Client;
use trefoil_protocol::ecdsa::node1::Node1;
use trefoil_protocol::ecdsa::{Request, Signature};
use trefoil_protocol::keygen::{ClientKeygen, Context, Next, NodeKeygen};
use trefoil_protocol::{Abort, CurveId, KeyShare, Party};

pub type Rng = ChaCha20Rng;

pub fn rng(seed: u64) -> Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

pub fn identity(party: Party) -> SigningKey {
    SigningKey::from_bytes(&[party.point(); 32])
}

pub fn context(curve: CurveId) -> Context {
    Context {
        curve,
        key_id: [7; 16],
        epoch: 0,
        job_digest: [9; 32],
        node1: identity(Party::Node1).verifying_key(),
        node2: identity(Party::Node2).verifying_key(),
    }
}

/// (round 0..=5, from, to, message): lets a test alter what passes.
pub type Relay<'a> = &'a mut dyn FnMut(u8, Party, Party, &mut Vec<u8>);

/// What the three parties run: a key generation, or the recovery or refresh of these shares.
#[derive(Clone, Copy)]
pub enum Run<'a> {
    Generate(CurveId),
    Recover(&'a [KeyShare; 3]),
    Refresh(&'a [KeyShare; 3]),
}

impl Run<'_> {
    pub fn context(self) -> Context {
        match self {
            Run::Generate(curve) => context(curve),
            Run::Recover([share, ..]) | Run::Refresh([share, ..]) => {
                let key_id = share.key_id();
                Context {
                    key_id: if matches!(self, Run::Recover(_)) { key_id.map(|byte| byte + 1) } else { key_id },
                    epoch: share.epoch() + 1,
                    job_digest: [10; 32],
                    ..context(share.curve())
                }
            }
        }
    }

    pub fn client(self, seed: u64) -> (ClientKeygen, [u8; 32]) {
        let (context, rng) = (self.context(), &mut rng(seed));
        match self {
            Run::Generate(_) => ClientKeygen::start(&context, rng),
            Run::Recover([_, _, node2]) => ClientKeygen::recover(&context, &node2.source(), rng).unwrap(),
            Run::Refresh([client, ..]) => ClientKeygen::refresh(&context, client, rng).unwrap(),
        }
    }

    pub fn node(self, party: Party, seed: u64) -> (NodeKeygen, [u8; 32]) {
        let (context, identity, rng) = (self.context(), identity(party), &mut rng(seed));
        let index = usize::from(party.point()) - 1;
        let opened = match self {
            Run::Generate(_) => NodeKeygen::start(&context, party, &identity, rng),
            Run::Recover(old) => NodeKeygen::recover(&context, &old[index], &identity, rng),
            Run::Refresh(old) => NodeKeygen::refresh(&context, &old[index], &identity, rng),
        };
        opened.unwrap()
    }
}

/// Runs it to the end; the worker's side relays.
pub fn run_with(run: Run<'_>, seed: u64, relay: Relay<'_>) -> Result<[KeyShare; 3], Abort> {
    drive(run.client(seed).0, run.node(Party::Node1, seed + 1), run.node(Party::Node2, seed + 2), relay)
}

pub fn run(what: Run<'_>, seed: u64) -> [KeyShare; 3] {
    run_with(what, seed, &mut |_, _, _, _| {}).unwrap()
}

pub fn drive(
    mut client: ClientKeygen,
    (mut node1, n1): (NodeKeygen, [u8; 32]),
    (mut node2, n2): (NodeKeygen, [u8; 32]),
    relay: Relay<'_>,
) -> Result<[KeyShare; 3], Abort> {
    let (mut r1, mut r2) = (n1.to_vec(), n2.to_vec());
    for round in 0..=5u8 {
        relay(round, Party::Node1, Party::Client, &mut r1);
        relay(round, Party::Node2, Party::Client, &mut r2);
        match client.advance(&r1, &r2)? {
            Next::Continue { state, mut to_node1, mut to_node2 } => {
                relay(round + 1, Party::Client, Party::Node1, &mut to_node1);
                relay(round + 1, Party::Client, Party::Node2, &mut to_node2);
                client = state;
                assert_eq!(node1.round(), round + 1);
                (node1, r1) = node1.advance(&to_node1, &identity(Party::Node1))?;
                (node2, r2) = node2.advance(&to_node2, &identity(Party::Node2))?;
            }
            Next::Done(share) => {
                assert_eq!(round, 5);
                return Ok([share, node1.finish()?, node2.finish()?]);
            }
        }
    }
    panic!("the run did not end");
}

pub fn generate_with(curve: CurveId, seed: u64, relay: Relay<'_>) -> Result<[KeyShare; 3], Abort> {
    run_with(Run::Generate(curve), seed, relay)
}

pub fn generate(curve: CurveId, seed: u64) -> [KeyShare; 3] {
    run(Run::Generate(curve), seed)
}

/// The same share, as read from its stored form.
pub fn copy(share: &KeyShare) -> KeyShare {
    KeyShare::from_bytes(&share.to_bytes()).unwrap()
}

/// A secp256k1 key's two signers.
pub struct Pair {
    pub client: Arc<KeyShare>,
    pub node1: Arc<KeyShare>,
}

/// All of one signing that a test may want to alter.
#[derive(Clone)]
pub struct Options {
    pub client: Request,
    pub node1: Request,
}

impl Pair {
    pub fn new(seed: u64) -> Self {
        let [client, node1, _] = generate(CurveId::Secp256k1, seed);
        Self::of(&client, &node1)
    }

    pub fn of(client: &KeyShare, node1: &KeyShare) -> Self {
        Self { client: Arc::new(copy(client)), node1: Arc::new(copy(node1)) }
    }

    pub fn sign(&self, request: &Request, seed: u64) -> Signature {
        self.sign_with(request, request, seed, &mut |_, _| {}).unwrap()
    }

    /// `tamper(message number, bytes)` sees m1, m2 and m3 on their way.
    pub fn sign_with(
        &self,
        client_request: &Request,
        node1_request: &Request,
        seed: u64,
        tamper: &mut dyn FnMut(u8, &mut Vec<u8>),
    ) -> Result<Signature, Abort> {
        let (mut c, mut n) = (rng(seed), rng(seed + 1_000_000));
        let (client, contribution) = Client::open(self.client.clone(), client_request.clone(), &mut c)?;
        let (node1, mut m1) = Node1::open(self.node1.clone(), node1_request.clone(), &contribution, &mut n)?;
        tamper(1, &mut m1);
        let (client, mut m2) = client.advance(&m1, &mut c)?;
        tamper(2, &mut m2);
        let burn = node1.advance(&m2, &mut n)?;
        let (mut m3, sent) = burn.release()?;
        tamper(3, &mut m3);
        let signature = client.finish(&m3)?;
        assert!(sent.accepts(&signature.bytes));
        Ok(signature)
    }
}

pub fn request(digest: [u8; 32], path: &str) -> Request {
    Request { channel_hash: [1; 32], job_digest: [2; 32], digest, path: DerivationPath::parse(path).unwrap() }
}
