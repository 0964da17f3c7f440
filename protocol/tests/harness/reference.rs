//! A second implementation of one party of a key generation, recovery or refresh, written from docs/protocol.md alone and able to cheat.

use super::{Aborts, Case, TestCurve, identity, secret};
use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use curve25519_dalek::MontgomeryPoint;
use ed25519_dalek::{Signer, SigningKey};
use hkdf::Hkdf;
use num_bigint::BigUint;
use sha2::{Digest, Sha256, Sha512};
use trefoil_protocol::{Abort, KeyShare, Party};

fn framed(tag: &str, fields: &[&[u8]]) -> Vec<u8> {
    let tag = format!("trefoil/v1/{tag}");
    let mut out = vec![u8::try_from(tag.len()).unwrap()];
    out.extend_from_slice(tag.as_bytes());
    for field in fields {
        out.extend_from_slice(&u32::try_from(field.len()).unwrap().to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

pub fn h(tag: &str, fields: &[&[u8]]) -> [u8; 32] {
    Sha256::digest(framed(tag, fields)).into()
}

fn scalar<C: TestCurve>(integer: &BigUint) -> C::Scalar {
    C::decode_scalar(&C::from_integer(&(integer % C::order()))).unwrap()
}

fn times_g<C: TestCurve>(integer: &BigUint) -> Vec<u8> {
    C::encode_point(&C::mul_generator(&scalar::<C>(integer))).as_ref().to_vec()
}

/// The fields of a dealing, as sent; empty where the specification has none.
#[derive(Clone)]
pub struct Fields {
    pub a0: Vec<u8>,
    pub a1: Vec<u8>,
    pub k: Vec<u8>,
    pub z: Vec<u8>,
    pub chain_code_part: Vec<u8>,
    pub ephemeral: Vec<u8>,
    pub salt: Vec<u8>,
}

impl Fields {
    fn concat(&self) -> Vec<u8> {
        [&self.a0, &self.a1, &self.k, &self.z, &self.chain_code_part, &self.ephemeral, &self.salt]
            .map(Vec::as_slice)
            .concat()
    }
}

/// `(a_0, a_1)`.
pub type Polynomial = (BigUint, BigUint);
type Change<T> = Box<dyn Fn(Party, &mut T)>;

/// What the party does otherwise than prescribed. The `Party` is the recipient, so that it can show different things to
/// different parties; everything that follows from a change is computed anew, hashes and signatures included.
pub struct Cheat {
    /// Before anything is made of it: another polynomial than prescribed, dealt consistently.
    pub polynomial: Box<dyn Fn(&mut Polynomial)>,
    /// Before the dealing is committed to.
    pub dealing: Change<Fields>,
    /// After it was committed to.
    pub reveal: Change<Fields>,
    pub commitment: Change<[u8; 32]>,
    /// Sid and party that the Schnorr proof is made for.
    pub proof_for: Change<([u8; 32], Party)>,
    /// Before it is signed.
    pub echo: Change<[u8; 32]>,
    /// Prefix and key of the echo's signature.
    pub signature: Change<(Vec<u8>, Option<SigningKey>)>,
    /// What the key of the seal is derived from.
    pub shared: Change<[u8; 32]>,
    /// Before it is sealed.
    pub share: Change<[u8; 32]>,
    pub sealed: Change<Vec<u8>>,
}

impl Default for Cheat {
    fn default() -> Self {
        Self {
            polynomial: Box::new(|_| {}),
            dealing: Box::new(|_, _| {}),
            reveal: Box::new(|_, _| {}),
            commitment: Box::new(|_, _| {}),
            proof_for: Box::new(|_, _| {}),
            echo: Box::new(|_, _| {}),
            signature: Box::new(|_, _| {}),
            shared: Box::new(|_, _| {}),
            share: Box::new(|_, _| {}),
            sealed: Box::new(|_, _| {}),
        }
    }
}

fn in_order<T: Clone>(values: [(Party, T); 3]) -> [T; 3] {
    Party::ALL.map(|p| values.iter().find(|(q, _)| *q == p).unwrap().1.clone())
}

type Inbox = (Party, [Vec<u8>; 2]);

/// Both honest parties' next step; unless both go on, who aborted.
fn step<S, T, M>(
    [s, t]: [S; 2],
    [(p, m), (r, n)]: [Inbox; 2],
    run: impl Fn(S, [&[u8]; 2], Party) -> Result<(T, M), Abort>,
) -> Result<([T; 2], [M; 2]), Aborts> {
    match (run(s, [&m[0], &m[1]], p), run(t, [&n[0], &n[1]], r)) {
        (Ok((s, m)), Ok((t, n))) => Ok(([s, t], [m, n])),
        (a, b) => Err([(p, a.err()), (r, b.err())].into_iter().filter_map(|(p, e)| Some((p, e?))).collect()),
    }
}

/// The session id, from section 6 or 7.
fn sid<C: TestCurve>(case: Case<'_>, n: &[[u8; 32]; 3]) -> [u8; 32] {
    let setup = case.setup(Party::Client);
    let (curve, epoch) = (C::CURVE.name().as_bytes(), setup.epoch.to_be_bytes());
    let (kind, old) = match case {
        Case::Generate => {
            let fields: [&[u8]; 8] = [&[0, 1], curve, &setup.key_id, &epoch, &setup.job_digest, &n[0], &n[1], &n[2]];
            return h("dkg/sid", &fields);
        }
        Case::Recover(old) => ("recover", &old[1]),
        Case::Refresh(old) => ("refresh", &old[1]),
    };
    let mut fields: Vec<Vec<u8>> = vec![vec![0, 1], kind.into(), curve.into()];
    fields.extend([old.key_id().to_vec(), old.epoch().to_be_bytes().to_vec(), old.transcript().to_vec()]);
    fields.extend([old.chain_code().to_vec(), old.public_key()]);
    fields.extend(Party::ALL.map(|party| old.verifying_share(party)));
    fields.extend([setup.key_id.to_vec(), epoch.to_vec(), setup.job_digest.to_vec()]);
    fields.extend(n.map(Vec::from));
    h("reshare/sid", &fields.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// What the party has to deal, and what it adds the result to.
fn prescribed<C: TestCurve>(case: Case<'_>, role: Party) -> (Polynomial, BigUint) {
    let (q, zero, slope) = (C::order(), BigUint::ZERO, BigUint::from(987_654_321u32));
    let x = |old: &[KeyShare; 3]| secret::<C>(&old[usize::from(role.point()) - 1]);
    match (case, role) {
        (Case::Generate, _) => ((BigUint::from(123_456_789u32), slope), zero),
        (Case::Recover(_), Party::Client) => ((zero.clone(), zero.clone()), zero),
        // The coefficients of the line through the points 2 and 3, at 0: 3 and -2.
        (Case::Recover(old), Party::Node1) => ((x(old) * 3u8 % &q, slope), zero),
        (Case::Recover(old), Party::Node2) => (((&q - 2u8) * x(old) % &q, slope), zero),
        (Case::Refresh(old), _) => ((zero, slope), x(old)),
    }
}

/// What the nodes sign before their view of the broadcasts.
pub fn echo_prefix(case: Case<'_>) -> Vec<u8> {
    match case {
        Case::Generate => b"\xfftrefoil-echo-v1\x00".to_vec(),
        Case::Recover(_) | Case::Refresh(_) => b"\xfftrefoil-reshare-echo-v1\x00".to_vec(),
    }
}

/// Runs the reference in `role` against two real parties. Their shares and the reference's own `x`, or who aborted.
pub fn run_against<C: TestCurve>(
    case: Case<'_>,
    role: Party,
    cheat: &Cheat,
) -> Result<([KeyShare; 2], BigUint), Aborts> {
    let q = C::order();
    let (mut polynomial, kept) = prescribed::<C>(case, role);
    (cheat.polynomial)(&mut polynomial);
    let ((a0, a1), k) = (polynomial, BigUint::from(555u32));
    let (fresh, deals) = (matches!(case, Case::Generate), case.deals(role));
    let ephemeral = [role.point() ^ 0x5a; 32];
    let contribution = [0x11; 32];
    let f = |p: Party| (&a0 + &a1 * p.point()) % &q;
    let honest = role.others();
    let [p, r] = honest;
    // What each honest party receives when the reference sends `ours` and the other honest party `theirs`.
    let inboxes = |ours: &dyn Fn(Party) -> Vec<u8>, theirs: &[Vec<u8>; 2]| {
        let [from_p, from_r] = theirs;
        let inbox =
            |to: Party, theirs: &Vec<u8>| to.others().map(|from| if from == role { ours(to) } else { theirs.clone() });
        [(p, inbox(p, from_r)), (r, inbox(r, from_p))]
    };

    let (s, n_p) = case.open::<C>(p, &mut super::rng(1));
    let (t, n_r) = case.open::<C>(r, &mut super::rng(2));
    let n = in_order([(role, contribution), (p, n_p), (r, n_r)]);
    let sid = sid::<C>(case, &n);
    let dealing = |to: Party| {
        let (mut proof_sid, mut prover) = (sid, role);
        let mut proof_for = (proof_sid, prover);
        (cheat.proof_for)(to, &mut proof_for);
        (proof_sid, prover) = proof_for;
        let (big_a0, big_k) = (times_g::<C>(&a0), times_g::<C>(&k));
        let wide = Sha512::digest(framed(
            "dkg/proof",
            &[&proof_sid, C::CURVE.name().as_bytes(), &[prover.point()], &big_a0, &big_k],
        ));
        let e = C::to_integer(&wide) % &q;
        let mut fields = Fields {
            a0: big_a0,
            a1: times_g::<C>(&a1),
            k: big_k,
            z: C::from_integer(&((&k + e * &a0) % &q)).to_vec(),
            chain_code_part: vec![0x22; 32],
            ephemeral: MontgomeryPoint::mul_base_clamped(ephemeral).to_bytes().to_vec(),
            salt: vec![0x33; 32],
        };
        if !fresh {
            for absent in [&mut fields.a0, &mut fields.k, &mut fields.z, &mut fields.chain_code_part] {
                absent.clear();
            }
        }
        if !deals {
            fields.a1.clear();
        }
        (cheat.dealing)(to, &mut fields);
        fields
    };
    let commitment = |to: Party| {
        let mut c = h("dkg/commitment", &[&sid, &[role.point()], &dealing(to).concat()]);
        (cheat.commitment)(to, &mut c);
        c
    };
    let revealed = |to: Party| {
        let mut fields = dealing(to);
        (cheat.reveal)(to, &mut fields);
        fields.concat()
    };

    let ours = |_: Party| contribution.to_vec();
    let (states, commitments) = step([s, t], inboxes(&ours, &[n_p.to_vec(), n_r.to_vec()]), |s, m, _p| {
        s.commit(m).map(|(s, m)| (s, m.to_vec()))
    })?;
    let ours = |to: Party| commitment(to).to_vec();
    let (states, dealings) = step(states, inboxes(&ours, &commitments), |s, m, _p| s.reveal(m))?;
    let view = |to: Party| {
        let c = in_order([(role, commitment(to).to_vec()), (p, commitments[0].clone()), (r, commitments[1].clone())]);
        let d = in_order([(role, revealed(to)), (p, dealings[0].clone()), (r, dealings[1].clone())]);
        h("dkg/transcript", &[&sid, &c[0], &c[1], &c[2], &d[0], &d[1], &d[2]])
    };
    let ours = |to: Party| revealed(to);
    let (states, echoes) = step(states, inboxes(&ours, &dealings), |s, m, p| s.echo(m, identity(p).as_ref()))?;
    let ours = |to: Party| {
        let mut e = view(to);
        (cheat.echo)(to, &mut e);
        let mut signature = (echo_prefix(case), identity(role));
        (cheat.signature)(to, &mut signature);
        let signed = signature.1.map(|key| key.sign(&[signature.0.as_slice(), &e].concat()).to_bytes().to_vec());
        [e.to_vec(), signed.unwrap_or_default()].concat()
    };
    let (states, sealed) = step(states, inboxes(&ours, &echoes), |s, m, _p| s.deal(m))?;
    let cipher = |peer: Party, from: Party, to: Party| {
        let [.., theirs, _salt] = dealings[usize::from(peer == r)].as_rchunks::<32>().1 else { panic!("two fields") };
        let mut shared = MontgomeryPoint(*theirs).mul_clamped(ephemeral).to_bytes();
        (cheat.shared)(peer, &mut shared);
        let info = [b"trefoil/v1/dkg/seal".as_slice(), &[from.point(), to.point()]].concat();
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(&view(peer)), &shared).expand(&info, &mut key).unwrap();
        Aes256Gcm::new_from_slice(&key).unwrap()
    };
    let ours = |to: Party| {
        let mut share = C::from_integer(&f(to));
        (cheat.share)(to, &mut share);
        let mut sealed = match deals {
            true => cipher(to, role, to).encrypt(&Nonce::default(), share.as_slice()).unwrap(),
            false => Vec::new(),
        };
        (cheat.sealed)(to, &mut sealed);
        sealed
    };
    // Each honest party's message to the other one, and to us.
    let slot = |from: Party, to: Party| from.others().iter().position(|x| *x == to).unwrap();
    let between = [sealed[0][slot(p, r)].clone(), sealed[1][slot(r, p)].clone()];
    let (shares, _) = step(states, inboxes(&ours, &between), |s, m, p| s.finish(m).map(|g| (C::share(g, p), ())))?;
    let dealers = honest.into_iter().zip(&sealed).filter(|(from, _)| case.deals(*from));
    let x = dealers.fold(f(role) + kept, |sum, (from, sealed)| {
        let sealed = sealed[slot(from, role)].as_slice();
        sum + C::to_integer(&cipher(from, from, role).decrypt(&Nonce::default(), sealed).unwrap())
    });
    Ok((shares, x % q))
}
