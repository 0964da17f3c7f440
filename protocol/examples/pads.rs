#![allow(warnings, clippy::all, clippy::restriction, missing_docs, unused)]
use cpu_time::ProcessTime;
use k256::elliptic_curve::ops::Reduce;
use k256::{FieldBytes, ProjectivePoint as P, Scalar, U256};
use sha2::block_api::compress256;
use std::hint::black_box as bb;
use zeroize::Zeroizing;

fn t(name: &str, n: usize, mut f: impl FnMut()) {
    let mut v = Vec::new();
    for _ in 0..41 {
        let s = ProcessTime::now();
        for _ in 0..n {
            f();
        }
        v.push(s.elapsed().as_secs_f64() / n as f64 * 1e6);
    }
    v.sort_by(|a, b| a.partial_cmp(b).unwrap());
    println!("{name:45} {:9.3} us (min {:9.3})", v[20], v[0]);
}
const SHA256_INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const PAD_PADDING: [u8; 13] = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x98];
#[inline(never)]
fn old(w: &[u8; 32], row_index: u16, row: &[u8; 16]) -> [Scalar; 3] {
    let mut block = Zeroizing::new([0u8; 64]);
    let (prefix, rest) = block.split_at_mut(32);
    let (index, rest) = rest.split_at_mut(2);
    let (_, rest) = rest.split_at_mut(1);
    let (row_slot, padding) = rest.split_at_mut(16);
    prefix.copy_from_slice(w);
    index.copy_from_slice(&row_index.to_be_bytes());
    row_slot.copy_from_slice(row);
    padding.copy_from_slice(&PAD_PADDING);
    [0, 1, 2].map(|word| {
        if let Some(slot) = block.get_mut(34) {
            *slot = word;
        }
        let mut state = SHA256_INITIAL;
        compress256(&mut state, core::slice::from_ref(&*block));
        let mut digest = [0; 32];
        for (out, word) in digest.chunks_exact_mut(4).zip(&state) {
            out.copy_from_slice(&word.to_be_bytes());
        }
        Scalar::reduce(&FieldBytes::from(digest))
    })
}
fn words(state: &[u32; 8]) -> U256 {
    let [a, b, c, d, e, f, g, h] = state.map(u64::from);
    U256::from_words([g << 32 | h, e << 32 | f, c << 32 | d, a << 32 | b])
}
#[inline(never)]
fn two(w: &[u8; 32], row_index: u16, row: &[u8; 16]) -> [Scalar; 3] {
    let mut block = Zeroizing::new([[0u8; 64]; 3]);
    for (word, block) in (0u8..).zip(block.iter_mut()) {
        let (prefix, rest) = block.split_at_mut(32);
        prefix.copy_from_slice(w);
        let (index, rest) = rest.split_at_mut(2);
        index.copy_from_slice(&row_index.to_be_bytes());
        let (at, rest) = rest.split_at_mut(1);
        at.copy_from_slice(&[word]);
        let (row_slot, padding) = rest.split_at_mut(16);
        row_slot.copy_from_slice(row);
        padding.copy_from_slice(&PAD_PADDING);
    }
    let mut out = [Scalar::ZERO; 3];
    for (block, out) in block.iter().zip(&mut out) {
        let mut state = SHA256_INITIAL;
        compress256(&mut state, core::slice::from_ref(block));
        *out = Scalar::reduce(&words(&state));
    }
    out
}
#[inline(never)]
fn noz(w: &[u8; 32], row_index: u16, row: &[u8; 16]) -> [Scalar; 3] {
    let mut block = [[0u8; 64]; 3];
    for (word, block) in (0u8..).zip(block.iter_mut()) {
        let (prefix, rest) = block.split_at_mut(32);
        prefix.copy_from_slice(w);
        let (index, rest) = rest.split_at_mut(2);
        index.copy_from_slice(&row_index.to_be_bytes());
        let (at, rest) = rest.split_at_mut(1);
        at.copy_from_slice(&[word]);
        let (row_slot, padding) = rest.split_at_mut(16);
        row_slot.copy_from_slice(row);
        padding.copy_from_slice(&PAD_PADDING);
    }
    let mut out = [Scalar::ZERO; 3];
    for (block, out) in block.iter().zip(&mut out) {
        let mut state = SHA256_INITIAL;
        compress256(&mut state, core::slice::from_ref(block));
        *out = Scalar::reduce(&words(&state));
    }
    out
}

struct T<const N: usize>([[u8; 64]; N]);
impl<const N: usize> T<N> {
    fn new(w: &[u8; 32]) -> Self {
        let mut b = [[0u8; 64]; N];
        for (i, b) in b.iter_mut().enumerate() {
            b[..32].copy_from_slice(w);
            b[34] = (i % 3) as u8;
            b[51..].copy_from_slice(&PAD_PADDING);
        }
        Self(b)
    }
    #[inline(never)]
    fn a(&mut self, j: u16, row: &[u8; 16]) -> [Scalar; N] {
        for b in &mut self.0 {
            b[32..34].copy_from_slice(&j.to_be_bytes());
            b[35..51].copy_from_slice(row);
        }
        let mut out = [Scalar::ZERO; N];
        for (block, out) in self.0.iter().zip(&mut out) {
            let mut state = SHA256_INITIAL;
            compress256(&mut state, core::slice::from_ref(block));
            *out = Scalar::reduce(&words(&state));
        }
        out
    }
    #[inline(never)]
    fn six(&mut self, j: u16, row: &[u8; 16], d: &[u8; 16]) -> [Scalar; N] {
        let mut o = *row;
        o.iter_mut().zip(d).for_each(|(o, d)| *o ^= d);
        for (i, b) in self.0.iter_mut().enumerate() {
            b[32..34].copy_from_slice(&j.to_be_bytes());
            b[35..51].copy_from_slice(if i < 3 { row } else { &o });
        }
        let mut out = [Scalar::ZERO; N];
        for (block, out) in self.0.iter().zip(&mut out) {
            let mut state = SHA256_INITIAL;
            compress256(&mut state, core::slice::from_ref(block));
            *out = Scalar::reduce(&words(&state));
        }
        out
    }
    #[inline(never)]
    fn chunk(&mut self, j: u16, rows: &[[u8; 16]]) -> [Scalar; N] {
        for (row, (j, b)) in rows.iter().zip((j..).zip(self.0.chunks_exact_mut(3))) {
            for b in b {
                b[32..34].copy_from_slice(&j.to_be_bytes());
                b[35..51].copy_from_slice(row);
            }
        }
        let mut st = [SHA256_INITIAL; N];
        for (block, state) in self.0.iter().zip(&mut st) {
            compress256(state, core::slice::from_ref(block));
        }
        st.map(|s| Scalar::reduce(&words(&s)))
    }
    #[inline(never)]
    fn chunk_o(&mut self, j: u16, rows: &[[u8; 16]], out: &mut [Scalar; N]) {
        for (row, (j, b)) in rows.iter().zip((j..).zip(self.0.chunks_exact_mut(3))) {
            for b in b {
                b[32..34].copy_from_slice(&j.to_be_bytes());
                b[35..51].copy_from_slice(row);
            }
        }
        for (block, o) in self.0.iter().zip(out) {
            let mut state = SHA256_INITIAL;
            compress256(&mut state, core::slice::from_ref(block));
            *o = Scalar::reduce(&words(&state));
        }
    }
    #[inline(never)]
    fn wide(&mut self, j: u16, row: &[u8; 16]) -> [Scalar; N] {
        let r = u128::from_be_bytes(*row);
        for (i, b) in self.0.iter_mut().enumerate() {
            let c2 = (j as u128) << 112 | (i as u128) << 104 | r >> 24;
            let c3 = r << 104 | 0x80u128 << 96 | 0x198;
            b[32..48].copy_from_slice(&c2.to_be_bytes());
            b[48..64].copy_from_slice(&c3.to_be_bytes());
        }
        let mut out = [Scalar::ZERO; N];
        for (block, out) in self.0.iter().zip(&mut out) {
            let mut state = SHA256_INITIAL;
            compress256(&mut state, core::slice::from_ref(block));
            *out = Scalar::reduce(&words(&state));
        }
        out
    }
}
fn main() {
    let mut tt = T::<3>::new(&[5; 32]);
    let mut ts = T::<6>::new(&[5; 32]);
    let mut tw = T::<3>::new(&[5; 32]);
    {
        let w = [5u8; 32];
        let rows: Vec<[u8; 16]> = (0..416u32).map(|i| [i as u8; 16]).collect();
        for (a, b) in rows.iter().zip(0u16..) {
            assert_eq!(old(&w, b, a), tt.a(b, a));
            assert_eq!(old(&w, b, a), tw.wide(b, a));
        }
        let mut tc = T::<24>::new(&[5; 32]);
        let mut td = T::<12>::new(&[5; 32]);
        let mut oc = [Scalar::ZERO; 24];
        let mut od = [Scalar::ZERO; 12];
        let mut o3 = [Scalar::ZERO; 3];
        for _ in 0..2 {
            t("chunk 24", 1, || {
                for _ in 0..6 {
                    for (r, j) in rows.chunks(8).zip(0u16..) {
                        bb(tc.chunk(j * 8, r));
                    }
                }
            });
            t("chunk_o 24", 1, || {
                for _ in 0..6 {
                    for (r, j) in rows.chunks(8).zip(0u16..) {
                        bb(tc.chunk_o(j * 8, r, &mut oc));
                    }
                }
            });
            t("chunk_o 12", 1, || {
                for _ in 0..6 {
                    for (r, j) in rows.chunks(4).zip(0u16..) {
                        bb(td.chunk_o(j * 4, r, &mut od));
                    }
                }
            });
            t("chunk_o 3", 1, || {
                for _ in 0..6 {
                    for (r, j) in rows.chunks(1).zip(0u16..) {
                        bb(tt.chunk_o(j, r, &mut o3));
                    }
                }
            });
            t("template 3", 1, || {
                for _ in 0..6 {
                    for (r, j) in rows.iter().zip(0u16..) {
                        bb(tt.a(j, r));
                    }
                }
            });
            t("template wide 3", 1, || {
                for _ in 0..6 {
                    for (r, j) in rows.iter().zip(0u16..) {
                        bb(tw.wide(j, r));
                    }
                }
            });
            t("template 6", 1, || {
                for _ in 0..3 {
                    for (r, j) in rows.iter().zip(0u16..) {
                        bb(ts.six(j, r, &[7; 16]));
                    }
                }
            });
        }
    }

    let w = [5u8; 32];
    let rows: Vec<[u8; 16]> = (0..416u32).map(|i| [i as u8; 16]).collect();
    for (a, b) in rows.iter().zip(0u16..) {
        assert_eq!(old(&w, b, a), two(&w, b, a));
    }
    t("old pads x416x6", 1, || {
        for _ in 0..6 {
            for (r, j) in rows.iter().zip(0u16..) {
                bb(old(bb(&w), j, r));
            }
        }
    });
    t("3 blocks, words", 1, || {
        for _ in 0..6 {
            for (r, j) in rows.iter().zip(0u16..) {
                bb(two(bb(&w), j, r));
            }
        }
    });
    t("3 blocks, words, no zeroize", 1, || {
        for _ in 0..6 {
            for (r, j) in rows.iter().zip(0u16..) {
                bb(noz(bb(&w), j, r));
            }
        }
    });
    let blocks = vec![[1u8; 64]; 16];
    t("compress only x7488", 1, || {
        for i in 0..7488 {
            let mut s = SHA256_INITIAL;
            compress256(&mut s, core::slice::from_ref(&blocks[i & 15]));
            bb(s);
        }
    });
    t("compress+reduce x7488", 1, || {
        for i in 0..7488 {
            let mut s = SHA256_INITIAL;
            compress256(&mut s, core::slice::from_ref(&blocks[i & 15]));
            bb(Scalar::reduce(&words(&s)));
        }
    });
}
