#![allow(warnings, clippy::all, clippy::restriction, missing_docs, unused)]
#[path = "../tests/pair/mod.rs"]
mod pair;
use cpu_time::ProcessTime;
use curve25519_dalek::{EdwardsPoint as E, Scalar as ES, traits::*};
use k256::elliptic_curve::ff::FromUniformBytes;
use k256::elliptic_curve::group::GroupEncoding;
use k256::elliptic_curve::ops::{LinearCombination, MulVartime, Reduce};
use k256::{FieldBytes, ProjectivePoint as P, Scalar as S};
use sha2::Digest;
use std::hint::black_box as bb;
use trefoil_protocol::curve::{Ed25519, Group, Secp256k1};
use trefoil_protocol::*;

fn t(name: &str, n: usize, mut f: impl FnMut()) {
    let mut v = Vec::new();
    for _ in 0..15 {
        let s = ProcessTime::now();
        for _ in 0..n {
            f();
        }
        v.push(s.elapsed().as_secs_f64() / n as f64 * 1e6);
    }
    v.sort_by(|a, b| a.partial_cmp(b).unwrap());
    println!("{name:45} {:9.3} us (min {:9.3})", v[7], v[0]);
}
fn main() {
    let mut r = pair::rng(1);
    let (a, b) = (Secp256k1::random_scalar(&mut r), Secp256k1::random_scalar(&mut r));
    let p = P::mul_by_generator(&a);
    let q = P::mul_by_generator(&b);
    let enc = Secp256k1::encode_point(&p);
    t("k256 mul_by_generator", 100, || {
        bb(P::mul_by_generator(bb(&a)));
    });
    t("k256 mul_by_generator_vartime", 100, || {
        bb(P::mul_by_generator_vartime(bb(&a)));
    });
    t("k256 mul", 100, || {
        bb(bb(&p) * bb(&a));
    });
    t("k256 lincomb2", 100, || {
        bb(P::lincomb(bb(&[(p, a), (q, b)])));
    });
    t("k256 mul_vartime", 100, || {
        bb(bb(&p).mul_vartime(bb(&a)));
    });
    t("k256 lincomb2 vartime", 100, || {
        bb(P::lincomb_vartime(bb(&[(p, a), (q, b)])));
    });
    t("k256 decode_point", 100, || {
        bb(Secp256k1::decode_point(bb(&enc)));
    });
    t("k256 encode_point", 100, || {
        bb(Secp256k1::encode_point(bb(&p)));
    });
    t("k256 double", 1000, || {
        bb(bb(&p).double());
    });
    t("k256 add", 1000, || {
        bb(bb(&p) + bb(&q));
    });
    t("k256 scalar mul", 10000, || {
        bb(bb(&a) * bb(&b));
    });
    t("k256 scalar add", 10000, || {
        bb(bb(&a) + bb(&b));
    });
    t("k256 scalar sub", 10000, || {
        bb(bb(&a) - bb(&b));
    });
    let fb = a.to_bytes();
    t("k256 reduce bytes", 10000, || {
        bb(<S as Reduce<FieldBytes>>::reduce(bb(&fb)));
    });
    t("k256 to_bytes", 10000, || {
        bb(bb(&a).to_bytes());
    });
    t("encode_scalar (zeroizing)", 10000, || {
        bb(Secp256k1::encode_scalar(bb(&a)));
    });
    t("decode_scalar", 10000, || {
        bb(Secp256k1::decode_scalar(bb(&fb)));
    });
    t("k256 from_uniform", 10000, || {
        bb(S::from_uniform_bytes(bb(&[7u8; 64])));
    });
    t("k256 invert", 100, || {
        bb(bb(&a).invert());
    });
    t("k256 invert_vartime", 100, || {
        bb(bb(&a).invert_vartime());
    });
    let block = [3u8; 64];
    t("sha256 compress indep", 10000, || {
        let mut s = [1u32; 8];
        sha2::block_api::compress256(&mut s, std::slice::from_ref(bb(&block)));
        bb(s);
    });
    let big = vec![3u8; 48_915];
    t("sha256 48915", 10, || {
        bb(sha2::Sha256::digest(bb(&big)));
    });
    t("sha512 100", 1000, || {
        bb(sha2::Sha512::digest(bb(&big[..100])));
    });
    t("memcpy 48915", 100, || {
        bb(bb(&big).clone());
    });
    // ed25519
    let (a, b) = (Ed25519::random_scalar(&mut r), Ed25519::random_scalar(&mut r));
    let p = Ed25519::mul_generator(&a);
    let q = Ed25519::mul_generator(&b);
    let enc = Ed25519::encode_point(&p);
    t("ed mul_base", 100, || {
        bb(E::mul_base(bb(&a)));
    });
    t("ed mul", 100, || {
        bb(bb(&p) * bb(&a));
    });
    t("ed torsion free", 100, || {
        bb(bb(&p).is_torsion_free());
    });
    t("ed torsion free vartime", 100, || {
        bb(E::vartime_double_scalar_mul_basepoint(&-ES::ONE, bb(&p), &ES::ZERO) == -p);
    });
    t("ed vartime double base", 100, || {
        bb(E::vartime_double_scalar_mul_basepoint(bb(&a), bb(&p), bb(&b)));
    });
    t("ed vartime multiscalar 2", 100, || {
        bb(E::vartime_multiscalar_mul([bb(&a), bb(&b)], [bb(&p), bb(&q)]));
    });
    t("ed decompress", 100, || {
        bb(Ed25519::decode_curve_point(bb(&enc)));
    });
    t("ed decode_point", 100, || {
        bb(Ed25519::decode_point(bb(&enc)));
    });
    t("ed compress", 100, || {
        bb(Ed25519::encode_point(bb(&p)));
    });
    t("ed scalar invert", 100, || {
        bb(bb(&a).invert());
    });
    // protocol
    let pr = pair::Pair::new(1);
    let req = pair::request([7; 32], "m");
    use trefoil_protocol::ecdsa::{client::Client, node1::Node1};
    let (cb, nb) = (pr.client.to_bytes(), pr.node1.to_bytes());
    t("secp KeyShare::from_bytes", 50, || {
        bb(KeyShare::from_bytes(&cb));
    });
    t("derive_public m", 50, || {
        bb(trefoil_protocol::derive::derive_public(&pr.client.public_key(), &pr.client.chain_code(), &req.path));
    });
    let [ec, en, _] = pair::generate(CurveId::Ed25519, 1);
    let ecb = ec.to_bytes();
    t("ed KeyShare::from_bytes", 50, || {
        bb(KeyShare::from_bytes(&ecb));
    });
    let mut steps = vec![Vec::new(); 6];
    for seed in 0..300u64 {
        let (mut c, mut n) = (pair::rng(seed), pair::rng(seed + 1_000_000));
        let mut time = |i: usize, s: ProcessTime| steps[i].push(s.elapsed().as_secs_f64() * 1e6);
        let (client, contribution) = Client::open(pr.client.clone(), req.clone(), &mut c).unwrap();
        let s = ProcessTime::now();
        let (node1, m1) = Node1::open(pr.node1.clone(), req.clone(), &contribution, &mut n).unwrap();
        time(0, s);
        let s = ProcessTime::now();
        let (client, m2) = client.advance(&m1, &mut c).unwrap();
        time(1, s);
        let s = ProcessTime::now();
        let burn = node1.advance(&m2, &mut n).unwrap();
        time(2, s);
        let s = ProcessTime::now();
        let (m3, sent) = burn.release().unwrap();
        time(3, s);
        let s = ProcessTime::now();
        let sig = client.finish(&m3).unwrap();
        time(4, s);
        let s = ProcessTime::now();
        assert!(sent.accepts(&sig));
        time(5, s);
    }
    for (name, v) in ["node open", "client advance", "node advance", "node release", "client finish", "node accepts"]
        .iter()
        .zip(&mut steps)
    {
        v.sort_by(|a, b| a.partial_cmp(b).unwrap());
        println!("{name:45} {:9.3} us (min {:9.3})", v[v.len() / 2], v[0]);
    }
    use trefoil_protocol::frost::*;
    let mut steps = vec![Vec::new(); 5];
    for seed in 0..300u64 {
        let (mut a, mut b) = (pair::rng(seed), pair::rng(seed + 1_000_000));
        let mut time = |i: usize, s: ProcessTime| steps[i].push(s.elapsed().as_secs_f64() * 1e6);
        let s = ProcessTime::now();
        let (session, commitments) = FrostClient::start(&mut a).unwrap();
        time(0, s);
        let s = ProcessTime::now();
        let (theirs, share) = node_sign(&en, b"message", &commitments, &mut b).unwrap();
        time(1, s);
        let s = ProcessTime::now();
        let sent = Sent::new(&en, b"message", &commitments, &theirs, share).unwrap();
        time(2, s);
        let s = ProcessTime::now();
        let sig = session.finish(&ec, b"message", &theirs, &share).unwrap();
        time(3, s);
        let s = ProcessTime::now();
        assert!(sent.accepts(&sig));
        time(4, s);
    }
    for (name, v) in
        ["frost start", "frost node_sign", "frost Sent::new", "frost finish", "frost accepts"].iter().zip(&mut steps)
    {
        v.sort_by(|a, b| a.partial_cmp(b).unwrap());
        println!("{name:45} {:9.3} us (min {:9.3})", v[v.len() / 2], v[0]);
    }
}
