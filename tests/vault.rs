//! secretStore and encryptedShare: known answers, the frozen format, and every way in which they can be damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use argon2::{Algorithm, Argon2, AssociatedData, ParamsBuilder, Version};
use data_encoding::HEXLOWER;
use rand_core::{CryptoRng, OsRng, RngCore};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use trefoil::vault::{
    DataKey, KdfPool, KeyBinding, LockedShare, MAX_SHARE_BYTES, OprfKey, Password, Stored, Vault, VaultError, stretch,
};
use trefoil::wire::{ErrorCode, KdfParams, KeyId};
use trefoil_protocol::CurveId;
use zeroize::Zeroizing;

const CHEAP: KdfParams = KdfParams::Argon2id { memory_kib: 8, passes: 1 };

/// SHA-256 in counter mode: the same bytes every time, for the fixtures.
struct Counter(u64);
impl RngCore for Counter {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }
    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        for chunk in dest.chunks_mut(32) {
            self.0 += 1;
            chunk.copy_from_slice(&Sha256::digest(self.0.to_be_bytes())[..chunk.len()]);
        }
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}
impl CryptoRng for Counter {}

fn password(bytes: &[u8]) -> Password {
    Password::new(Zeroizing::new(bytes.to_vec())).unwrap()
}

fn binding() -> KeyBinding {
    KeyBinding {
        curve: CurveId::Secp256k1,
        epoch: 7,
        key_id: KeyId([0xab; 16]),
        transcript: [0xcd; 32],
        ot_id: [0xef; 32],
    }
}

fn vault() -> Vault {
    Vault::new(KdfPool::new(0, 1))
}

async fn seal(
    node1: &OprfKey,
    text: &[u8],
    params: KdfParams,
    binding: KeyBinding,
    share: &[u8],
    rng: &mut (impl RngCore + CryptoRng + Send),
) -> Result<Stored, VaultError> {
    let begun = vault().begin(binding.key_id, password(text), params, rng).await?;
    let evaluation = node1.evaluate(&begun.blinded_password()).unwrap();
    let data_key = DataKey::generate(rng);
    begun.seal(binding, share, &data_key, &evaluation, rng)
}

fn parse(stored: &Stored) -> Result<LockedShare, VaultError> {
    LockedShare::parse(binding().key_id, &stored.encrypted_share, &stored.secret_store)
}

async fn open(node1: &OprfKey, text: &[u8], stored: &Stored) -> Result<Vec<u8>, VaultError> {
    let locked = parse(stored)?;
    let begun = vault().begin_open(password(text), locked.store(), &mut OsRng).await?;
    let evaluation = node1.evaluate(&begun.blinded_password()).unwrap();
    begun.open(&locked, &evaluation).map(|share| share.to_vec())
}

fn node1() -> OprfKey {
    OprfKey::generate(&mut OsRng).unwrap()
}

#[test]
fn argon2id_vector_of_rfc_9106() {
    let params = ParamsBuilder::new()
        .m_cost(32)
        .t_cost(3)
        .p_cost(4)
        .data(AssociatedData::new(&[4; 12]).unwrap())
        .build()
        .unwrap();
    let mut tag = [0; 32];
    Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params)
        .unwrap()
        .hash_password_into(&[1; 32], &[2; 16], &mut tag)
        .unwrap();
    assert_eq!(HEXLOWER.encode(&tag), "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659");
}

/// Expected values from argon2-cffi 25.1 and python-cryptography 48.
#[test]
fn stretching_agrees_with_other_implementations() {
    let salt: [u8; 16] = core::array::from_fn(|i| i as u8);
    let phrase: &[u8] = b"correct horse battery staple";
    let argon2id = |memory_kib, passes| KdfParams::Argon2id { memory_kib, passes };
    let vectors: [(&[u8], KdfParams, &str); 4] = [
        (phrase, argon2id(19_456, 2), "818259b6310026a8e0dbac5d2e6927abcfdb07b32258fac4f61b18b80f929085"),
        (phrase, argon2id(8, 1), "d17ea6341ca93da6079ea2f64dc4aa31dd1aaf9caa67fb42ac4afd0714706f26"),
        (phrase, argon2id(64, 3), "bc240e180a205bd2e782cdc64983f247e76aeb8fb2133aec1570b70cccd68bff"),
        (&[7; 32], KdfParams::Hkdf, "e74fe519e6d6bd406217d689b3a770e29d9693e6bfea2bc4f52c50c751cdd88a"),
    ];
    for (bytes, params, expected) in vectors {
        let stretched = stretch(&password(bytes), params, &salt).unwrap();
        assert_eq!(HEXLOWER.encode(stretched.expose()), expected);
    }
}

#[test]
fn parameters_are_capped_before_memory_is_allocated() {
    let argon2id = |memory_kib, passes| KdfParams::Argon2id { memory_kib, passes };
    for params in [
        argon2id(u32::MAX, 1),
        argon2id(262_145, 1),
        argon2id(7, 1),
        argon2id(0, 1),
        argon2id(8, 0),
        argon2id(8, 11),
        argon2id(8, u32::MAX),
    ] {
        let refused = stretch(&password(b"pw"), params, &[0; 16]).err().unwrap();
        assert_eq!(refused.code(), ErrorCode::InvalidKdf, "{params:?}");
    }
    for length in [1, 31, 33, 64] {
        let refused = stretch(&password(&vec![1; length]), KdfParams::Hkdf, &[0; 16]).err().unwrap();
        assert_eq!(refused.code(), ErrorCode::InvalidKdf);
    }
    assert!(Password::new(Zeroizing::new(vec![])).is_err());
    assert!(Password::new(Zeroizing::new(vec![1; 1025])).is_err());
    assert!(Password::new(Zeroizing::new(vec![1; 1024])).is_ok());
}

#[tokio::test]
async fn opens_what_it_sealed() {
    let node1 = node1();
    for (text, params) in [(b"pw".as_slice(), CHEAP), (&[9; 32], KdfParams::Hkdf), (b"pw", KdfParams::default())] {
        for share in [vec![], vec![1; 1], vec![2; 6_400], vec![3; MAX_SHARE_BYTES]] {
            let stored = seal(&node1, text, params, binding(), &share, &mut OsRng).await.unwrap();
            assert_eq!(stored.secret_store.len(), 220);
            assert_eq!(stored.encrypted_share.len(), 131 + share.len());
            assert_eq!(open(&node1, text, &stored).await.unwrap(), share);
            if !share.is_empty() && share.len() > 16 {
                assert!(!stored.encrypted_share.windows(16).any(|w| w == &share[..16]));
            }
        }
    }
    let long = vec![0; MAX_SHARE_BYTES + 1];
    assert!(seal(&node1, b"pw", CHEAP, binding(), &long, &mut OsRng).await.is_err());
}

#[tokio::test]
async fn what_is_in_the_clear_can_be_read_before_opening() {
    let stored = seal(&node1(), b"pw", CHEAP, binding(), b"share", &mut OsRng).await.unwrap();
    let locked = parse(&stored).unwrap();
    assert_eq!((*locked.binding(), locked.kdf()), (binding(), CHEAP));
    let other = LockedShare::parse(KeyId([1; 16]), &stored.encrypted_share, &stored.secret_store);
    assert_eq!(other.err(), Some(VaultError::ShareMismatch));
}

#[tokio::test]
async fn a_wrong_password_is_told_apart() {
    let node1 = node1();
    let stored = seal(&node1, b"right", CHEAP, binding(), b"share", &mut OsRng).await.unwrap();
    for wrong in [b"wrong".as_slice(), b"right ", b"righ", b"Right", &[0; 32]] {
        assert_eq!(open(&node1, wrong, &stored).await.unwrap_err().code(), ErrorCode::WrongPassword);
    }
    // Without node 1's key for this signing key, the right password does not help either.
    let other = OprfKey::generate(&mut OsRng).unwrap();
    assert_eq!(open(&other, b"right", &stored).await.unwrap_err().code(), ErrorCode::WrongPassword);
    assert_eq!(open(&node1, b"right", &stored).await.unwrap(), b"share");
}

#[tokio::test]
async fn an_evaluation_that_is_no_element_is_node_1s_fault() {
    let stored = seal(&node1(), b"pw", CHEAP, binding(), b"share", &mut OsRng).await.unwrap();
    let locked = parse(&stored).unwrap();
    for bad in [[0; 32], [0xff; 32]] {
        let begun = vault().begin_open(password(b"pw"), locked.store(), &mut OsRng).await.unwrap();
        assert_eq!(begun.open(&locked, &bad).unwrap_err().code(), ErrorCode::ProtocolAbort);
    }
}

#[tokio::test]
async fn every_damaged_byte_is_found_and_named() {
    let node1 = node1();
    let stored = seal(&node1, b"pw", CHEAP, binding(), b"the share of the client", &mut OsRng).await.unwrap();
    for bit in [0x01, 0x80] {
        for at in 0..stored.secret_store.len() {
            let mut damaged = stored.clone();
            damaged.secret_store[at] ^= bit;
            let code = open(&node1, b"pw", &damaged).await.unwrap_err().code();
            assert_eq!(code, ErrorCode::CorruptSecretStore, "byte {at}");
        }
        for at in 0..stored.encrypted_share.len() {
            let mut damaged = stored.clone();
            damaged.encrypted_share[at] ^= bit;
            let code = open(&node1, b"pw", &damaged).await.unwrap_err().code();
            assert_eq!(code, ErrorCode::CorruptShare, "byte {at}");
        }
    }
    for length in (0..stored.secret_store.len()).chain([221, 500]) {
        let mut damaged = stored.clone();
        damaged.secret_store.resize(length, 0);
        assert_eq!(parse(&damaged).err(), Some(VaultError::CorruptSecretStore));
    }
    for length in (0..stored.encrypted_share.len()).chain([200, 100_000]) {
        let mut damaged = stored.clone();
        damaged.encrypted_share.resize(length, 0);
        assert_eq!(parse(&damaged).err(), Some(VaultError::CorruptShare));
    }
    // One is never taken for the other.
    let Stored { encrypted_share, secret_store } = stored;
    let swapped = Stored { encrypted_share: secret_store.clone(), secret_store };
    assert_eq!(parse(&swapped).err(), Some(VaultError::CorruptShare));
    let swapped = Stored { secret_store: encrypted_share.clone(), encrypted_share };
    assert_eq!(parse(&swapped).err(), Some(VaultError::CorruptSecretStore));
}

/// Whoever tampers on purpose mends the checksum; encryption and commitment still hold.
#[tokio::test]
async fn damage_under_a_mended_checksum_is_found_too() {
    use trefoil_protocol::transcript::{Tag, hash};
    fn mend(kind: &[u8], bytes: &mut Vec<u8>) {
        bytes.truncate(bytes.len() - 16);
        let sum = hash(Tag::VAULT_CHECKSUM, &[kind, bytes]);
        bytes.extend_from_slice(&sum[..16]);
    }
    let node1 = node1();
    let stored = seal(&node1, b"pw", CHEAP, binding(), b"the share of the client", &mut OsRng).await.unwrap();
    for at in 0..stored.secret_store.len() - 16 {
        let mut damaged = stored.clone();
        damaged.secret_store[at] ^= 1;
        mend(b"secretStore", &mut damaged.secret_store);
        let code = open(&node1, b"pw", &damaged).await.unwrap_err().code();
        let expected = match at {
            // version, curve (1 becomes 0) and party
            0..3 => ErrorCode::CorruptSecretStore,
            // epoch, key id, transcript, ot_id: other than the share's
            3..87 => ErrorCode::ShareMismatch,
            // KDF (1 becomes 0)
            87 => ErrorCode::CorruptSecretStore,
            // memory: 16 GiB is beyond the cap, 64 MiB, 264 KiB and 9 KiB give another result
            88 => ErrorCode::CorruptSecretStore,
            89..92 => ErrorCode::WrongPassword,
            // passes: beyond the cap, or 1 becomes 0
            92..96 => ErrorCode::CorruptSecretStore,
            // salt, commitment
            96..144 => ErrorCode::WrongPassword,
            // nonce, wrapped key
            _ => ErrorCode::CorruptSecretStore,
        };
        assert_eq!(code, expected, "byte {at}");
    }
    for at in 0..stored.encrypted_share.len() - 16 {
        let mut damaged = stored.clone();
        damaged.encrypted_share[at] ^= 1;
        mend(b"encryptedShare", &mut damaged.encrypted_share);
        let code = open(&node1, b"pw", &damaged).await.unwrap_err().code();
        let expected = if (3..87).contains(&at) { ErrorCode::ShareMismatch } else { ErrorCode::CorruptShare };
        assert_eq!(code, expected, "byte {at}");
    }
    // Both heads changed alike: the commitment covers the epoch, the job names the key id, the encryption covers the rest.
    for at in 3..87 {
        let mut damaged = stored.clone();
        damaged.secret_store[at] ^= 1;
        damaged.encrypted_share[at] ^= 1;
        mend(b"secretStore", &mut damaged.secret_store);
        mend(b"encryptedShare", &mut damaged.encrypted_share);
        let code = open(&node1, b"pw", &damaged).await.unwrap_err().code();
        let expected = match at {
            3..7 => ErrorCode::WrongPassword,
            7..23 => ErrorCode::ShareMismatch,
            _ => ErrorCode::CorruptSecretStore,
        };
        assert_eq!(code, expected, "byte {at}");
    }
}

#[tokio::test]
async fn pairs_of_different_keys_are_told_apart() {
    let node1 = node1();
    let one = seal(&node1, b"pw", CHEAP, binding(), b"share", &mut OsRng).await.unwrap();
    for other in [
        KeyBinding { key_id: KeyId([1; 16]), ..binding() },
        KeyBinding { epoch: 8, ..binding() },
        KeyBinding { transcript: [1; 32], ..binding() },
        KeyBinding { curve: CurveId::Ed25519, ..binding() },
    ] {
        let two = seal(&node1, b"pw", CHEAP, other, b"share", &mut OsRng).await.unwrap();
        let mixed = Stored { encrypted_share: one.encrypted_share.clone(), secret_store: two.secret_store };
        assert_eq!(open(&node1, b"pw", &mixed).await.unwrap_err().code(), ErrorCode::ShareMismatch);
    }
    // Same key, other data key: only the encryption can tell.
    let again = seal(&node1, b"pw", CHEAP, binding(), b"share", &mut OsRng).await.unwrap();
    let mixed = Stored { encrypted_share: one.encrypted_share, secret_store: again.secret_store };
    assert_eq!(open(&node1, b"pw", &mixed).await.unwrap_err().code(), ErrorCode::CorruptShare);
}

#[tokio::test]
async fn the_pool_keeps_its_budget_and_answers_everyone() {
    // 256 MiB of budget and jobs of 100 MiB: at most two at a time.
    let pool = KdfPool::new(0, 8);
    let params = KdfParams::Argon2id { memory_kib: 100 * 1024, passes: 1 };
    let jobs: Vec<_> = (0..6u8)
        .map(|i| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.stretch(password(&[i; 8]), params, [i; 16]).await.map(|_| ()) })
        })
        .collect();
    for job in jobs {
        job.await.unwrap().unwrap();
    }
    let largest = KdfParams::Argon2id { memory_kib: 262_144, passes: 1 };
    pool.stretch(password(b"pw"), largest, [0; 16]).await.map(|_| ()).unwrap();
}

/// Does not compile if the type has the trait: then both implementations of `Ambiguous` apply.
macro_rules! lacks {
    ($type:ty: $($trait:path),*) => {$({
        trait Ambiguous<Marker> {
            fn check() {}
        }
        impl<T: ?Sized> Ambiguous<()> for T {}
        struct HasTrait;
        impl<T: ?Sized + $trait> Ambiguous<HasTrait> for T {}
        <$type as Ambiguous<_>>::check();
    })*};
}

#[test]
fn secrets_cannot_be_printed_copied_or_serialised() {
    use std::fmt::{Debug, Display};
    lacks!(Password: Debug, Display, Clone, PartialEq, Serialize);
    lacks!(trefoil::vault::Stretched: Debug, Display, Clone, PartialEq, Serialize);
    lacks!(trefoil::vault::Blinded: Debug, Display, Clone, PartialEq, Serialize);
    lacks!(trefoil::vault::Begun: Debug, Display, Clone, PartialEq, Serialize);
    lacks!(OprfKey: Debug, Display, Clone, PartialEq, Serialize);
    lacks!(trefoil::seal::Secrets: Debug, Display, Clone, PartialEq, Serialize);
    lacks!(trefoil::seal::SecretsBody: Debug, Display, Clone, PartialEq);
    lacks!(trefoil::seal::WorkerKeys: Debug, Display, Clone, PartialEq, Serialize);
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fixture {
    password: String,
    oprf_key: String,
    share: String,
    encrypted_share: String,
    secret_store: String,
}

/// What version 1 wrote must open for ever. The committed files are never written again; a new version adds new ones.
#[tokio::test]
async fn version_1_fixtures_open() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let hex = |text: &str| HEXLOWER.decode(text.as_bytes()).unwrap();
    let cases = [
        ("argon2id", KdfParams::default(), b"correct horse battery staple".as_slice()),
        ("hkdf", KdfParams::Hkdf, &[5; 32]),
    ];
    for (name, params, text) in cases {
        let path = format!("{directory}/vault-v1-{name}.json");
        if !std::path::Path::new(&path).exists() {
            let rng = &mut Counter(0);
            let node1 = OprfKey::generate(rng).unwrap();
            let share: Vec<u8> = (0..300u32).map(|i| i as u8).collect();
            let stored = seal(&node1, text, params, binding(), &share, rng).await.unwrap();
            let fixture = Fixture {
                password: HEXLOWER.encode(text),
                oprf_key: HEXLOWER.encode(node1.to_bytes().as_ref()),
                share: HEXLOWER.encode(&share),
                encrypted_share: HEXLOWER.encode(&stored.encrypted_share),
                secret_store: HEXLOWER.encode(&stored.secret_store),
            };
            std::fs::write(&path, serde_json::to_string_pretty(&fixture).unwrap() + "\n").unwrap();
            panic!("{path} was missing and has been written: commit it");
        }
        let fixture: Fixture = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let node1 = OprfKey::from_bytes(&hex(&fixture.oprf_key).try_into().unwrap()).unwrap();
        let stored =
            Stored { encrypted_share: hex(&fixture.encrypted_share), secret_store: hex(&fixture.secret_store) };
        assert_eq!(open(&node1, &hex(&fixture.password), &stored).await.unwrap(), hex(&fixture.share));
        let locked = parse(&stored).unwrap();
        assert_eq!((*locked.binding(), locked.kdf()), (binding(), params));
    }
}
