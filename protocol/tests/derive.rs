//! BIP-32 against its official vectors.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod harness;

use harness::TestCurve;
use num_bigint::BigUint;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use trefoil_protocol::Abort;
use trefoil_protocol::curve::{Group, Secp256k1};
use trefoil_protocol::derive::{DerivationPath, PathError, derive_public};

/// Public key and chain code of a serialised extended public key, its checksum verified.
fn xpub(text: &str) -> (Vec<u8>, [u8; 32]) {
    let alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let value = text.chars().fold(BigUint::ZERO, |sum, c| sum * 58u8 + alphabet.find(c).unwrap());
    let bytes = value.to_bytes_be();
    assert_eq!(bytes.len(), 82);
    assert_eq!(Sha256::digest(Sha256::digest(&bytes[..78]))[..4], bytes[78..]);
    (bytes[45..78].to_vec(), bytes[13..45].try_into().unwrap())
}

fn path(text: &str) -> DerivationPath {
    DerivationPath::parse(text).unwrap()
}

/// Every step of BIP-32's test vectors 1 to 2 that is not hardened, alone and joined: (parent, path, child).
const VECTORS: [(&str, &str, &str); 6] = [
    (
        "xpub68Gmy5EdvgibQVfPdqkBBCHxA5htiqg55crXYuXoQRKfDBFA1WEjWgP6LHhwBZeNK1VTsfTFUHCdrfp1bgwQ9xv5ski8PX9rL2dZXvgGDnw",
        "m/1",
        "xpub6ASuArnXKPbfEwhqN6e3mwBcDTgzisQN1wXN9BJcM47sSikHjJf3UFHKkNAWbWMiGj7Wf5uMash7SyYq527Hqck2AxYysAA7xmALppuCkwQ",
    ),
    (
        "xpub6D4BDPcP2GT577Vvch3R8wDkScZWzQzMMUm3PWbmWvVJrZwQY4VUNgqFJPMM3No2dFDFGTsxxpG5uJh7n7epu4trkrX7x7DogT5Uv6fcLW5",
        "m/2",
        "xpub6FHa3pjLCk84BayeJxFW2SP4XRrFd1JYnxeLeU8EqN3vDfZmbqBqaGJAyiLjTAwm6ZLRQUMv1ZACTj37sR62cfN7fe5JnJ7dh8zL4fiyLHV",
    ),
    (
        "xpub6D4BDPcP2GT577Vvch3R8wDkScZWzQzMMUm3PWbmWvVJrZwQY4VUNgqFJPMM3No2dFDFGTsxxpG5uJh7n7epu4trkrX7x7DogT5Uv6fcLW5",
        "m/2/1000000000",
        "xpub6H1LXWLaKsWFhvm6RVpEL9P4KfRZSW7abD2ttkWP3SSQvnyA8FSVqNTEcYFgJS2UaFcxupHiYkro49S8yGasTvXEYBVPamhGW6cFJodrTHy",
    ),
    (
        "xpub661MyMwAqRbcFW31YEwpkMuc5THy2PSt5bDMsktWQcFF8syAmRUapSCGu8ED9W6oDMSgv6Zz8idoc4a6mr8BDzTJY47LJhkJ8UB7WEGuduB",
        "m/0",
        "xpub69H7F5d8KSRgmmdJg2KhpAK8SR3DjMwAdkxj3ZuxV27CprR9LgpeyGmXUbC6wb7ERfvrnKZjXoUmmDznezpbZb7ap6r1D3tgFxHmwMkQTPH",
    ),
    (
        "xpub6ASAVgeehLbnwdqV6UKMHVzgqAG8Gr6riv3Fxxpj8ksbH9ebxaEyBLZ85ySDhKiLDBrQSARLq1uNRts8RuJiHjaDMBU4Zn9h8LZNnBC5y4a",
        "m/1",
        "xpub6DF8uhdarytz3FWdA8TvFSvvAh8dP3283MY7p2V4SeE2wyWmG5mg5EwVvmdMVCQcoNJxGoWaU9DCWh89LojfZ537wTfunKau47EL2dhHKon",
    ),
    (
        "xpub6ERApfZwUNrhLCkDtcHTcxd75RbzS1ed54G1LkBUHQVHQKqhMkhgbmJbZRkrgZw4koxb5JaHWkY4ALHY2grBGRjaDMzQLcgJvLJuZZvRcEL",
        "m/2",
        "xpub6FnCn6nSzZAw5Tw7cgR9bi15UV96gLZhjDstkXXxvCLsUXBGXPdSnLFbdpq8p9HmGsApME5hQTZ3emM2rnY5agb9rXpVGyy3bdW6EEgAtqt",
    ),
];

#[test]
fn bip32_vectors() {
    for (parent, steps, child) in VECTORS {
        let ((key, chain_code), (child_key, child_chain_code)) = (xpub(parent), xpub(child));
        let derived = derive_public(&key, &chain_code, &path(steps)).unwrap();
        assert_eq!(derived.public_key.to_vec(), child_key, "{steps}");
        assert_eq!(derived.chain_code, child_chain_code, "{steps}");
        let parent = Secp256k1::decode_point(&key).unwrap();
        let by_tweak = Secp256k1::encode_point(&(parent + Secp256k1::mul_generator(&derived.tweak)));
        assert_eq!(by_tweak, derived.public_key);
    }
}

#[test]
fn the_empty_path_is_the_key_itself() {
    let (key, chain_code) = xpub(VECTORS[0].0);
    let derived = derive_public(&key, &chain_code, &path("m")).unwrap();
    assert_eq!((derived.public_key.to_vec(), derived.chain_code), (key, chain_code));
    assert_eq!(derived.tweak, 0u64.into());
}

#[test]
fn paths_have_one_spelling() {
    for text in ["m", "m/0", "m/0/1", "m/2147483647", "m/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16"] {
        assert_eq!(path(text).to_string(), text);
        assert_eq!(text.parse::<DerivationPath>().unwrap(), path(text));
        assert_eq!(path(text).to_bytes().len(), 4 * path(text).steps().len());
    }
    assert_eq!(path("m/1/256").to_bytes(), [0, 0, 0, 1, 0, 0, 1, 0]);
    for text in
        ["m/0'", "m/0h", "m/0H", "m/1/2'/3", "m/2147483648", "m/4294967295", "m/4294967296", "m/99999999999999999999"]
    {
        assert_eq!(DerivationPath::parse(text), Err(PathError::Hardened), "{text}");
    }
    for text in [
        "",
        "/",
        "m/",
        "M/0",
        "0/1",
        "m//0",
        "m/0/",
        "m/-1",
        "m/+1",
        "m/01",
        "m/00",
        "m/ 1",
        "m/1 ",
        " m/1",
        "m/x",
        "m/'",
        "m/0''",
        "m/0x1",
        "m/1h/x",
        "m/١",
        "n/0",
        "mm/0",
        "m/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17",
        "m/1'/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17",
    ] {
        assert_eq!(DerivationPath::parse(text), Err(PathError::Invalid), "{text}");
    }
}

#[test]
fn only_a_compressed_key_is_derived_from() {
    let (key, chain_code) = xpub(VECTORS[0].0);
    let refused = |key: &[u8]| matches!(derive_public(key, &chain_code, &path("m/0")), Err(Abort::InvalidInput(_)));
    assert!(refused(&[]) && refused(&key[1..]) && refused(&[0; 33]) && refused(&[&key[..], &[0]].concat()));
    for bad in harness::bad_secp256k1_points() {
        assert!(refused(&bad));
    }
}

proptest! {
    /// Deriving along a path is deriving step by step, tweaks summed mod q.
    #[test]
    fn steps_compose(steps in prop::collection::vec(0u32..1 << 31, 0..=16), cut in 0usize..17) {
        let join = |steps: &[u32]| path(&steps.iter().fold("m".to_owned(), |p, s| format!("{p}/{s}")));
        let cut = cut.min(steps.len());
        let (key, chain_code) = xpub(VECTORS[0].0);
        let whole = derive_public(&key, &chain_code, &join(&steps)).unwrap();
        let first = derive_public(&key, &chain_code, &join(&steps[..cut])).unwrap();
        let second = derive_public(&first.public_key, &first.chain_code, &join(&steps[cut..])).unwrap();
        prop_assert_eq!((second.public_key, second.chain_code), (whole.public_key, whole.chain_code));
        let integer = |s| Secp256k1::to_integer(Secp256k1::encode_scalar(&s).as_ref());
        prop_assert_eq!((integer(first.tweak) + integer(second.tweak)) % Secp256k1::order(), integer(whole.tweak));
    }
}
