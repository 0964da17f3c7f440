//! OT extension: SoftSpokenOT (ePrint 2022/192) with k = 1 and its consistency check (docs/protocol.md, section 3).
//!
//! The types carry the order of checks: rows, and so pads, exist for the sender only after the check passed.

use super::matrix::{Columns, Rows};
use super::pads::{Pads, RowPads};
use super::{BASE_OTS, CHOICE_LEN, COLUMN_LEN, Direction, MATRIX_LEN, ReceiverSeeds, SEED_LEN, SenderSeeds, bits};
use crate::codec::Reader;
use crate::error::{Abort, Result};
use crate::secret::Secret;
use crate::transcript::{Tag, hash};
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::{Aes128Enc, Block};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use rand_core::{CryptoRng, RngCore};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

/// What names one extension: everything that must differ between two of them.
#[derive(Clone, Copy)]
pub struct ExtensionId<'a> {
    /// Session id.
    pub sid: &'a [u8; 32],
    /// Which of the pair receives.
    pub direction: Direction,
    /// Index of the item in a batch.
    pub item: u16,
    /// Chosen by the receiver, 16 bytes.
    pub nonce: [u8; 16],
}

impl ExtensionId<'_> {
    fn initial_value(&self) -> [u8; 16] {
        let digest =
            hash(Tag::OT_EXTENSION, &[self.sid, &[self.direction.byte()], &self.item.to_be_bytes(), &self.nonce]);
        *digest.first_chunk().unwrap_or(&[0; 16])
    }

    fn pads(&self) -> Pads {
        Pads(hash(Tag::OT_PAD, &[self.sid, &[self.direction.byte()], &self.item.to_be_bytes(), &self.nonce]))
    }

    /// The universal hash's key: fixed only after U is.
    fn challenge(&self, transcript: &[u8; 32], prefix: &[u8]) -> [u8; SEED_LEN] {
        let digest = self.hash(Tag::OT_CHALLENGE, transcript, &[prefix]);
        *digest.first_chunk().unwrap_or(&[0; SEED_LEN])
    }

    /// A hash bound to this extension and the session's running transcript.
    pub(crate) fn hash(&self, tag: Tag, transcript: &[u8; 32], fields: &[&[u8]]) -> [u8; 32] {
        let (direction, item) = ([self.direction.byte()], self.item.to_be_bytes());
        let mut all: Vec<&[u8]> = vec![transcript, &direction, &item];
        all.extend_from_slice(fields);
        hash(tag, &all)
    }
}

/// The values of the consistency check: x (16 bytes) and t (32 bytes).
pub struct Proof {
    /// `h_s(r)`.
    pub x: [u8; SEED_LEN],
    /// Hash of the 128 row hashes.
    pub t: [u8; 32],
}

/// Bytes of an extension in a message: nonce, U, x, t.
pub const EXTENSION_LEN: usize = 16 + MATRIX_LEN + 16 + 32;

/// A peer's extension in a message: nonce 16 ‖ U 8,704 ‖ x 16 ‖ t 32.
pub(crate) struct ExtensionMessage<'a> {
    pub(crate) nonce: [u8; 16],
    u: &'a [u8],
    /// The message up to and including U: what the challenge hashes.
    prefix: &'a [u8],
    proof: Proof,
}

impl<'a> ExtensionMessage<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let (nonce, u) = (reader.array()?, reader.bytes(MATRIX_LEN)?);
        let prefix = reader.prefix();
        Some(Self { nonce, u, prefix, proof: Proof { x: reader.array()?, t: reader.array()? } })
    }

    /// [`SenderRows::check`] of this extension; `id` carries its nonce.
    pub(crate) fn check(&self, seeds: &SenderSeeds, id: &ExtensionId<'_>, transcript: &[u8; 32]) -> Result<SenderRows> {
        SenderRows::check(seeds, id, self.u, &self.proof, transcript, self.prefix)
    }
}

/// Blocks of the PRG that hold a column.
type ColumnBlocks = [[u8; 16]; COLUMN_LEN.div_ceil(16)];

/// The PRG of one extension: AES-128 in counter mode from the same initial value, cut to one column a seed.
struct Prg {
    counters: ColumnBlocks,
    blocks: Zeroizing<ColumnBlocks>,
}

impl Prg {
    fn new(id: &ExtensionId<'_>) -> Self {
        let mut counters = [id.initial_value(); COLUMN_LEN.div_ceil(16)];
        for (counter, [.., last]) in (0u8..).zip(counters.iter_mut()) {
            *last = (*last & 0xf8) | counter;
        }
        Self { counters, blocks: Zeroizing::new(counters) }
    }

    fn column(&mut self, seed: &[u8; SEED_LEN], column: &mut [u8; COLUMN_LEN]) {
        *self.blocks = self.counters;
        Aes128Enc::new(seed.into()).encrypt_blocks(Block::cast_slice_from_core_mut(self.blocks.as_mut_slice()));
        column.iter_mut().zip(self.blocks.as_flattened()).for_each(|(out, byte)| *out = *byte);
    }
}

/// `h_s`: POLYVAL of the first 52 bytes, masked by the last 16.
struct RowHash(Polyval);

impl RowHash {
    fn new(key: &[u8; SEED_LEN]) -> Self {
        Self(Polyval::new(key.into()))
    }

    fn hash(&self, column: &[u8; COLUMN_LEN]) -> [u8; SEED_LEN] {
        let (data, mask) = column.split_at(CHOICE_LEN);
        let mut state = self.0.clone();
        state.update_padded(data);
        let mut out: [u8; SEED_LEN] = state.finalize().into();
        out.iter_mut().zip(mask).for_each(|(out, mask)| *out ^= mask);
        out
    }
}

/// The receiver's side, before it has proved consistency.
pub struct ReceiverExtension {
    /// β ‖ 128 mask bits.
    choices: Secret<[u8; COLUMN_LEN]>,
    t: Columns,
    pads: Pads,
}

impl ReceiverExtension {
    /// Draws the choices and returns U (8,704 bytes) beside the state.
    pub fn new(seeds: &ReceiverSeeds, id: &ExtensionId<'_>, rng: &mut (impl RngCore + CryptoRng)) -> (Self, Vec<u8>) {
        let mut choices = Secret::new([0; COLUMN_LEN]);
        rng.fill_bytes(choices.expose_mut());
        let mut prg = Prg::new(id);
        let (mut t, mut u) = (Columns::zero(), vec![[0; COLUMN_LEN]; BASE_OTS]);
        for (([k0, k1], t), u) in seeds.keys.iter().zip(t.0.iter_mut()).zip(u.iter_mut()) {
            prg.column(k0, t);
            prg.column(k1, u);
            for ((u, t), r) in u.iter_mut().zip(t.iter()).zip(choices.expose()) {
                *u ^= t ^ r;
            }
        }
        (Self { choices, t, pads: id.pads() }, u.into_flattened())
    }

    /// Extends and proves, appending nonce, U, x and t to the message so far; returns the nonce and the rows.
    pub(crate) fn append(
        seeds: &ReceiverSeeds,
        (sid, direction, item): (&[u8; 32], Direction, u16),
        transcript: &[u8; 32],
        message: &mut Vec<u8>,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> ([u8; 16], ReceiverRows) {
        let mut nonce = [0; 16];
        rng.fill_bytes(&mut nonce);
        let id = ExtensionId { sid, direction, item, nonce };
        let (extension, u) = Self::new(seeds, &id, rng);
        message.extend_from_slice(&nonce);
        message.extend_from_slice(&u);
        let proof = extension.prove(&id, transcript, message);
        message.extend_from_slice(&proof.x);
        message.extend_from_slice(&proof.t);
        (nonce, extension.into_rows())
    }

    /// The consistency values, once U is fixed: `prefix` is the message so far, U included.
    pub fn prove(&self, id: &ExtensionId<'_>, transcript: &[u8; 32], prefix: &[u8]) -> Proof {
        let key = id.challenge(transcript, prefix);
        let row_hash = RowHash::new(&key);
        let mut hashes = Zeroizing::new([[0; SEED_LEN]; BASE_OTS]);
        for (out, column) in hashes.iter_mut().zip(self.t.0.iter()) {
            *out = row_hash.hash(column);
        }
        let t = id.hash(Tag::OT_ROWS, transcript, &[&key, hashes.as_flattened()]);
        Proof { x: row_hash.hash(self.choices.expose()), t }
    }

    /// The rows `t_j` and the choices β.
    #[must_use]
    pub fn into_rows(self) -> ReceiverRows {
        let mut choices = Secret::new([0; CHOICE_LEN]);
        choices.expose_mut().iter_mut().zip(self.choices.expose()).for_each(|(out, r)| *out = *r);
        ReceiverRows { choices, rows: self.t.rows(), pads: self.pads }
    }
}

/// What the receiver computes its pads from.
pub struct ReceiverRows {
    choices: Secret<[u8; CHOICE_LEN]>,
    rows: Rows,
    pads: Pads,
}

impl ReceiverRows {
    /// Per row j: `γ_{j,0..3}`.
    pub(crate) fn pads(&self) -> RowPads {
        self.pads.of(&self.rows, &[0; SEED_LEN])
    }

    /// Per row j: β_j as a choice.
    pub(crate) fn choices(&self) -> impl Iterator<Item = Choice> + '_ {
        bits(self.choices.expose())
    }
}

/// What the sender computes its pads from. Exists only after the consistency check.
pub struct SenderRows {
    rows: Rows,
    delta: Secret<[u8; SEED_LEN]>,
    pads: Pads,
}

impl SenderRows {
    /// Checks the receiver's U (8,704 bytes) and proof; `prefix` is the message so far, U included.
    ///
    /// # Errors
    /// `ot_length`: U has a wrong length (harmless). `ot_consistency` (**lock**): the receiver used different choices in
    /// different columns, which reveals bits of Δ by whether this check passes.
    pub fn check(
        seeds: &SenderSeeds,
        id: &ExtensionId<'_>,
        u: &[u8],
        proof: &Proof,
        transcript: &[u8; 32],
        prefix: &[u8],
    ) -> Result<Self> {
        let culprit = id.direction.receiver();
        let (u, rest) = u.as_chunks::<COLUMN_LEN>();
        if u.len() != BASE_OTS || !rest.is_empty() {
            return Err(Abort::peer(culprit, "ot_length"));
        }
        let mut prg = Prg::new(id);
        let key = id.challenge(transcript, prefix);
        let row_hash = RowHash::new(&key);
        let mut q = Columns::zero();
        let mut hashes = Zeroizing::new([[0; SEED_LEN]; BASE_OTS]);
        let columns =
            seeds.keys.iter().zip(bits(&seeds.delta).map(mask)).zip(u).zip(q.0.iter_mut()).zip(hashes.iter_mut());
        for ((((seed, delta), u), q), expected) in columns {
            prg.column(seed, q);
            q.iter_mut().zip(u).for_each(|(q, u)| *q ^= u & delta);
            *expected = row_hash.hash(q);
            expected.iter_mut().zip(proof.x).for_each(|(h, x)| *h ^= x & delta);
        }
        let expected = id.hash(Tag::OT_ROWS, transcript, &[&key, hashes.as_flattened()]);
        if !bool::from(expected.ct_eq(&proof.t)) {
            return Err(Abort::lock(culprit, "ot_consistency"));
        }
        Ok(Self { rows: q.rows(), delta: Secret::new(seeds.delta), pads: id.pads() })
    }

    /// Per row j: `α⁰_{j,0..3}`, and `α¹_{j,0..3}`.
    pub(crate) fn pads(&self) -> (RowPads, RowPads) {
        (self.pads.of(&self.rows, &[0; SEED_LEN]), self.pads.of(&self.rows, self.delta.expose()))
    }
}

/// 0x00 for 0, 0xff for 1. `Choice` keeps the optimiser from making a branch of it.
fn mask(choice: Choice) -> u8 {
    0u8.wrapping_sub(choice.unwrap_u8())
}

const _: () = assert!(MATRIX_LEN == 8_704);

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::ot::{CHOICE_LEN, ROWS};
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    /// Matching seeds, drawn in the clear: what the base OT gives the two sides.
    pub(crate) fn seeds(rng: &mut ChaCha20Rng) -> (SenderSeeds, ReceiverSeeds) {
        let mut delta = [0; SEED_LEN];
        rng.fill_bytes(&mut delta);
        let mut receiver = ReceiverSeeds { keys: Box::new([[[0; SEED_LEN]; 2]; BASE_OTS]) };
        receiver.keys.iter_mut().flatten().for_each(|key| rng.fill_bytes(key));
        let mut sender = SenderSeeds { delta, keys: Box::new([[0; SEED_LEN]; BASE_OTS]) };
        for i in 0..BASE_OTS {
            sender.keys[i] = receiver.keys[i][usize::from(delta[i / 8] >> (i % 8) & 1)];
        }
        (sender, receiver)
    }

    const SID: [u8; 32] = [3; 32];
    const ID: ExtensionId<'_> =
        ExtensionId { sid: &SID, direction: Direction::ClientReceives, item: 0, nonce: [4; 16] };

    #[test]
    fn rows_agree_on_every_choice() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let (sender, receiver) = seeds(&mut rng);
        let (extension, u) = ReceiverExtension::new(&receiver, &ID, &mut rng);
        let proof = extension.prove(&ID, &SID, &u);
        let mine = SenderRows::check(&sender, &ID, &u, &proof, &SID, &u).unwrap();
        let theirs = extension.into_rows();
        let mut seen = [0usize; 2];
        let ((zero, one), chosen) = (mine.pads(), theirs.pads());
        for (j, choice) in theirs.choices().enumerate() {
            let choice = usize::from(choice.unwrap_u8());
            assert_eq!([zero[j], one[j]][choice], chosen[j]);
            assert_ne!([zero[j], one[j]][1 - choice], chosen[j]);
            seen[choice] += 1;
        }
        assert_eq!(seen[0] + seen[1], ROWS);
        assert!(seen[0] > 100 && seen[1] > 100);
    }

    /// The selective-abort attack: other choices in one column, with a proof made for it. It passes exactly when Δ's bit
    /// there is 0, which is why one failure must lock the key for ever.
    #[test]
    fn a_cheat_in_one_column_is_caught_exactly_when_it_learns_a_bit() {
        let mut rng = ChaCha20Rng::from_seed([2; 32]);
        let (sender, receiver) = seeds(&mut rng);
        let mut caught = 0;
        for column in 0..BASE_OTS {
            for row in [0, CHOICE_LEN * 8 - 1, COLUMN_LEN * 8 - 1] {
                let (extension, mut u) = ReceiverExtension::new(&receiver, &ID, &mut rng);
                u[column * COLUMN_LEN + row / 8] ^= 1 << (row % 8);
                let proof = extension.prove(&ID, &SID, &u);
                let delta = sender.delta[column / 8] >> (column % 8) & 1;
                match SenderRows::check(&sender, &ID, &u, &proof, &SID, &u) {
                    Ok(_) => assert_eq!(delta, 0),
                    Err(abort) => {
                        assert_eq!((delta, abort), (1, Abort::lock(crate::Party::Client, "ot_consistency")));
                        caught += 1;
                    }
                }
            }
        }
        assert!(caught > 100);
    }

    /// Each input of the challenge and of the PRG matters: any of them changed, and an honest proof no longer fits.
    #[test]
    fn a_proof_fits_one_session_direction_item_nonce_and_prefix() {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let (sender, receiver) = seeds(&mut rng);
        let (extension, u) = ReceiverExtension::new(&receiver, &ID, &mut rng);
        let proof = extension.prove(&ID, &SID, &u);
        let other = [9; 32];
        let ids = [
            ExtensionId { sid: &other, ..ID },
            ExtensionId { direction: Direction::Node1Receives, ..ID },
            ExtensionId { item: 1, ..ID },
            ExtensionId { nonce: [5; 16], ..ID },
        ];
        for id in ids {
            assert!(SenderRows::check(&sender, &id, &u, &proof, &SID, &u).is_err());
        }
        assert!(SenderRows::check(&sender, &ID, &u, &proof, &other, &u).is_err());
        assert!(SenderRows::check(&sender, &ID, &u, &proof, &SID, &u[1..]).is_err());
        for len in [0, MATRIX_LEN - 1, MATRIX_LEN + 1, MATRIX_LEN * 2] {
            let mut short = u.clone();
            short.resize(len, 0);
            let refused = SenderRows::check(&sender, &ID, &short, &proof, &SID, &u).err().unwrap();
            assert_eq!(refused, Abort::peer(crate::Party::Client, "ot_length"));
        }
        assert!(SenderRows::check(&sender, &ID, &u, &proof, &SID, &u).is_ok());
    }

    #[test]
    fn items_of_a_batch_never_share_choices_or_pads() {
        let mut rng = ChaCha20Rng::from_seed([4; 32]);
        let (_, receiver) = seeds(&mut rng);
        let mut chis = Vec::new();
        let mut pads = Vec::new();
        for item in 0..4 {
            let id = ExtensionId { item, ..ID };
            let rows = ReceiverExtension::new(&receiver, &id, &mut rng).0.into_rows();
            chis.push(*crate::rvole::bob_input(&rows).expose());
            pads.extend_from_slice(&rows.pads());
        }
        for (i, a) in chis.iter().enumerate() {
            assert!(chis.iter().skip(i + 1).all(|b| a != b));
        }
        let distinct: std::collections::HashSet<[u8; 32]> =
            pads.iter().flatten().map(|pad| pad.to_bytes().into()).collect();
        assert_eq!(distinct.len(), 4 * ROWS * 3);
    }
}
