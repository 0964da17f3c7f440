//! Every hash of the protocol: tagged, length-prefixed, all tags in this file (docs/protocol.md, section 1).
//!
//! Framing: `len8(tag) ‖ tag ‖ (len32(field) ‖ field)*`, so distinct tuples have distinct encodings
//! (TSSHOCK, CVE-2022-47931, is what happens without).

use sha2::{Digest, Sha256, Sha512};

/// Enters every session id. Must change with anything that two parties compute alike (a hash input, the PRG, a pad, the gadget
/// vector): two versions then part harmlessly at the session tag, where they would otherwise fail a check that locks
/// the key for ever. The golden run in tests/golden.rs fails when such a thing changes.
pub const PROTOCOL_REVISION: u16 = 1;

/// What a hash is for. A tag is used by one kind of hash only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(&'static str);

macro_rules! tags {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        impl Tag { $($(#[$doc])* pub const $name: Tag = Tag(concat!("trefoil/v1/", $text));)* }
        /// All tags, for the uniqueness test.
        pub const ALL_TAGS: &[Tag] = &[$(Tag::$name),*];
    };
}

tags! {
    /// Key ids, derived from initiator and job id.
    KEY_ID = "key-id";
    /// What a node attests about a key.
    ATTEST = "attest";
    /// A node's decision to commit an attempt.
    COMMITTED = "committed";
    /// A node's decision to drop an attempt.
    ABORTED = "aborted";
    /// A node's statement about a key's state.
    STATE = "state";
    /// A node's statement that a waiting recovery was cancelled.
    RECOVERY_CANCELLED = "recovery-cancelled";
    /// The workers' record that a key is locked.
    BAN = "ban";
    /// The password as OPRF input.
    VAULT_PASSWORD = "vault/password";
    /// Key that wraps the data key.
    VAULT_KEK = "vault/kek";
    /// Commitment to the key that wraps the data key.
    VAULT_COMMITMENT = "vault/commitment";
    /// Key from a machine-made password.
    VAULT_HKDF = "vault/hkdf";
    /// Checksum of a secretStore or encryptedShare.
    VAULT_CHECKSUM = "vault/checksum";
    /// Name of a secretStore whose data key a worker keeps for a while.
    VAULT_UNLOCKED = "vault/unlocked";
    /// Mask of a data key that is kept.
    VAULT_KEPT = "vault/kept";
    /// Seed of the key that proves possession of a data key.
    VAULT_PROVER = "vault/prover";
    /// Statement that a data key was unwrapped.
    VAULT_OPENED = "vault/opened";
    /// Statement that the share was opened which a refresh replaces.
    VAULT_REFRESH = "vault/refresh";
    /// Prefix of everything in one direction of the base OT.
    OT_BASE = "ot/base";
    /// The POPF's random oracle into ristretto255.
    OT_POPF = "ot/popf";
    /// Base-OT keys, which become the extension's seeds.
    OT_KEY = "ot/key";
    /// Name of a key's OT state.
    OT_ID = "ot/id";
    /// PRG initial value of one extension.
    OT_EXTENSION = "ot/extension";
    /// Key of the extension's universal hash.
    OT_CHALLENGE = "ot/challenge";
    /// The 128 hashed rows of the consistency check.
    OT_ROWS = "ot/rows";
    /// Prefix of the extension's pads.
    OT_PAD = "ot/pad";
    /// Transcript of the trial multiplication.
    OT_TRIAL = "ot/trial";
    /// The gadget vector.
    RVOLE_GADGET = "rvole/gadget";
    /// The challenge of the multiplication check.
    RVOLE_THETA = "rvole/theta";
    /// The message prefix under μ.
    RVOLE_PREFIX = "rvole/prefix";
    /// The multiplication check value.
    RVOLE_MU = "rvole/mu";
    /// Session id of a signing.
    SIGN_SID = "sign/sid";
    /// Session id of one item of a batch.
    SIGN_BATCH_SID = "sign/batch-sid";
    /// Short name of a session and message number.
    SIGN_TAG = "sign/tag";
    /// Running transcript of a signing.
    SIGN_TRANSCRIPT = "sign/transcript";
    /// Commitment to R1.
    SIGN_COMMITMENT = "sign/commitment";
    /// Session id of a key generation.
    DKG_SID = "dkg/sid";
    /// Session id of a recovery or refresh.
    RESHARE_SID = "reshare/sid";
    /// Commitment to a dealing.
    DKG_COMMITMENT = "dkg/commitment";
    /// Nonce of that proof, bound to the session.
    DKG_NONCE = "dkg/nonce";
    /// Schnorr proof of a dealing's constant term.
    DKG_PROOF = "dkg/proof";
    /// Transcript of all broadcasts; names the attempt.
    DKG_TRANSCRIPT = "dkg/transcript";
    /// Key of a sealed sub-share.
    DKG_SEAL = "dkg/seal";
    /// The jointly generated chain code.
    DKG_CHAIN_CODE = "dkg/chain-code";
    /// Associated data of a node's stored secrets.
    NODE_RECORD = "node/record";
    /// One entry of a node's audit log.
    NODE_AUDIT = "node/audit";
    /// A node's word about a key of the other node, which was restored from a backup.
    EPOCH = "epoch";
    /// The header of a node's backup, to which its content is bound.
    NODE_BACKUP_HEADER = "node/backup-header";
    /// What a node signs about a backup.
    NODE_BACKUP = "node/backup";
    /// Seed of a session's RNG.
    SESSION_RNG = "rng/session";
}

impl Tag {
    /// The tag's text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

fn absorb<D: Digest>(tag: Tag, fields: &[&[u8]]) -> D {
    let mut hash = D::new();
    // Tags are short constants of this file and fields are bounded by the message limits, so both casts are exact.
    hash.update([tag.0.len() as u8]);
    hash.update(tag.0.as_bytes());
    for field in fields {
        hash.update((field.len() as u32).to_be_bytes());
        hash.update(field);
    }
    hash
}

/// `H(tag; fields…)`: SHA-256, 32 bytes.
#[must_use]
pub fn hash(tag: Tag, fields: &[&[u8]]) -> [u8; 32] {
    absorb::<Sha256>(tag, fields).finalize().into()
}

/// SHA-512 over the same framing, 64 bytes: input of a wide reduction or of a map to a group.
#[must_use]
pub fn hash_wide(tag: Tag, fields: &[&[u8]]) -> [u8; 64] {
    absorb::<Sha512>(tag, fields).finalize().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn tags_are_unique_and_short() {
        let texts: HashSet<_> = ALL_TAGS.iter().map(|t| t.0).collect();
        assert_eq!(texts.len(), ALL_TAGS.len());
        assert!(ALL_TAGS.iter().all(|t| t.0.len() < 256 && t.0.starts_with("trefoil/v1/")));
    }

    fn tuples() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..5)
    }

    proptest! {
        #[test]
        fn distinct_tuples_hash_apart(a in tuples(), b in tuples(), i in 0..ALL_TAGS.len(), j in 0..ALL_TAGS.len()) {
            let refs = |v: &Vec<Vec<u8>>| v.iter().map(Vec::as_slice).map(<[u8]>::to_vec).collect::<Vec<_>>();
            let (ra, rb) = (refs(&a), refs(&b));
            let ha = hash(ALL_TAGS[i], &ra.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let hb = hash(ALL_TAGS[j], &rb.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(ha == hb, i == j && a == b);
        }

        #[test]
        fn moving_a_boundary_changes_the_hash(bytes in prop::collection::vec(any::<u8>(), 1..40), cut in 0usize..40) {
            let cut = cut % bytes.len();
            let whole = hash(Tag::DKG_SID, &[&bytes, b""]);
            let split = hash(Tag::DKG_SID, &[&bytes[..cut], &bytes[cut..]]);
            prop_assert_ne!(whole, split);
        }
    }
}
