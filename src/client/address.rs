//! A public key as others write it: encodings, and the addresses that chains make of it.

use super::verify::Untrusted;
use crate::wire::Curve;
use core::fmt;
use core::str::FromStr;
use data_encoding::HEXLOWER;
use k256::ecdsa::VerifyingKey as EcdsaKey;
use ripemd::Ripemd160;
use sha2::{Digest, Sha256};
use sha3::Keccak256;

macro_rules! encodings {
    ($($(#[$doc:meta])* $variant:ident = $text:literal on $curve:ident,)*) => {
        /// An encoding of a public key, or an address.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Encoding {
            $($(#[$doc])* $variant,)*
        }
        impl Encoding {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// Its name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
            /// The curve whose keys it is for.
            #[must_use]
            pub const fn curve(self) -> Curve {
                match self { $(Self::$variant => Curve::$curve),* }
            }
        }
    };
}

encodings! {
    /// 33 bytes, hex.
    Sec1Compressed = "sec1-compressed" on Secp256k1,
    /// 65 bytes, hex.
    Sec1Uncompressed = "sec1-uncompressed" on Secp256k1,
    /// The x-coordinate, 32 bytes, hex (BIP-340).
    XOnly = "x-only" on Secp256k1,
    /// EIP-55, `0x…`.
    Ethereum = "ethereum" on Secp256k1,
    /// P2WPKH on the main network, `bc1q…` (BIP-173).
    Bitcoin = "bitcoin" on Secp256k1,
    /// P2WPKH on the test networks, `tb1q…`.
    BitcoinTestnet = "bitcoin-testnet" on Secp256k1,
    /// 32 bytes of RFC 8032, hex.
    Ed25519 = "ed25519" on Ed25519,
    /// Base58 of the 32 bytes.
    Solana = "solana" on Ed25519,
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Encoding {
    type Err = crate::wire::InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|encoding| encoding.as_str() == text);
        found.copied().ok_or(crate::wire::InvalidName("an encoding"))
    }
}

/// A public key (33 bytes SEC1 compressed, or 32 bytes) in this encoding. An address is only as true as the key: take one that both
/// nodes attest.
///
/// # Errors
/// [`Untrusted::InvalidKey`] unless it is a key of the encoding's curve.
pub fn encode(public_key: &[u8], encoding: Encoding) -> Result<String, Untrusted> {
    if encoding.curve() == Curve::Ed25519 {
        let key = super::verify::ed25519_key(public_key).ok_or(Untrusted::InvalidKey)?;
        return Ok(match encoding {
            Encoding::Solana => bs58::encode(key.as_bytes()).into_string(),
            _ => HEXLOWER.encode(key.as_bytes()),
        });
    }
    let key = if public_key.len() == 33 { EcdsaKey::from_sec1_bytes(public_key).ok() } else { None };
    let key = key.ok_or(Untrusted::InvalidKey)?;
    let (compressed, uncompressed) = (key.to_sec1_point(true), key.to_sec1_point(false));
    let (_, coordinates) = uncompressed.as_bytes().split_first().ok_or(Untrusted::InvalidKey)?;
    let segwit = |hrp| {
        let program = Ripemd160::digest(Sha256::digest(compressed.as_bytes()));
        bech32::segwit::encode_v0(hrp, &program).map_err(|_| Untrusted::InvalidKey)
    };
    match encoding {
        Encoding::Sec1Uncompressed => Ok(HEXLOWER.encode(uncompressed.as_bytes())),
        Encoding::XOnly => Ok(HEXLOWER.encode(coordinates.get(..32).unwrap_or_default())),
        Encoding::Ethereum => Ok(eip55(Keccak256::digest(coordinates).get(12..).unwrap_or_default())),
        Encoding::Bitcoin => segwit(bech32::hrp::BC),
        Encoding::BitcoinTestnet => segwit(bech32::hrp::TB),
        _ => Ok(HEXLOWER.encode(compressed.as_bytes())),
    }
}

/// Every encoding of a key of this curve, by name.
///
/// # Errors
/// [`Untrusted::InvalidKey`].
pub fn encode_all(curve: Curve, public_key: &[u8]) -> Result<Vec<(Encoding, String)>, Untrusted> {
    let of_curve = Encoding::ALL.iter().filter(|encoding| encoding.curve() == curve);
    of_curve.map(|encoding| Ok((*encoding, encode(public_key, *encoding)?))).collect()
}

/// An Ethereum address with its checksum: a letter is upper-case where the hash of the lower-case text has a digit above 7.
fn eip55(address: &[u8]) -> String {
    let text = HEXLOWER.encode(address);
    let hash = HEXLOWER.encode(&Keccak256::digest(text.as_bytes()));
    let shown = text.chars().zip(hash.chars()).map(|(c, digit)| if digit > '7' { c.to_ascii_uppercase() } else { c });
    core::iter::once('0').chain(core::iter::once('x')).chain(shown).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).unwrap()
    }

    /// The generator: the public key of the secret key 1.
    const G: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    #[test]
    fn eip_55_examples() {
        // https://eips.ethereum.org/EIPS/eip-55
        for address in [
            "0x52908400098527886E0F7030069857D2E4169EE7",
            "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
            "0xde709f2102306220921060314715629080e2fb77",
            "0x27b1fdb04752bbc536007a920d24acb045561c26",
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
            "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
            "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
        ] {
            assert_eq!(eip55(&hex(&address.to_lowercase()[2..])), address);
        }
        // The address of the secret key 1, as every Ethereum client has it.
        assert_eq!(encode(&hex(G), Encoding::Ethereum).unwrap(), "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf");
    }

    #[test]
    fn bip_173_84_and_143_examples() {
        let bitcoin = |key: &str| encode(&hex(key), Encoding::Bitcoin).unwrap();
        // BIP-173, the examples' key on both networks.
        assert_eq!(bitcoin(G), "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4");
        assert_eq!(encode(&hex(G), Encoding::BitcoinTestnet).unwrap(), "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx");
        // BIP-84, the account's first and second receiving, and first change key.
        for (key, address) in [
            (
                "0330d54fd0dd420a6e5f8d3624f5f3482cae350f79d5f0753bf5beef9c2d91af3c",
                "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu",
            ),
            (
                "03e775fd51f0dfb8cd865d9ff1cca2a158cf651fe997fdc9fee9c1d3b5e995ea77",
                "bc1qnjg0jd8228aq7egyzacy8cys3knf9xvrerkf9g",
            ),
            (
                "03025324888e429ab8e3dbaf1f7802648b9cd01e9b418485c5fa4c1b9b5700e1a6",
                "bc1q8c6fshw2dlwun7ekn9qwf37cu2rn755upcp6el",
            ),
        ] {
            assert_eq!(bitcoin(key), address);
        }
        // BIP-143, native P2WPKH: this key's witness program.
        let address = bitcoin("025476c2e83188368da1ff3e292e7acafcdb3566bb0ad253f62fc70f07aeee6357");
        let (_, _, program) = bech32::segwit::decode(&address).unwrap();
        assert_eq!(program, hex("1d0f172a0ecb48aee1be1f2687d2963ae33f71a1"));
    }

    #[test]
    fn encodings_of_the_generator() {
        let all = encode_all(Curve::Secp256k1, &hex(G)).unwrap();
        let found = |encoding| &all.iter().find(|(name, _)| *name == encoding).unwrap().1;
        // SEC 2, section 2.4.1.
        let y = "483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8";
        assert_eq!(found(Encoding::Sec1Compressed), G);
        assert_eq!(*found(Encoding::Sec1Uncompressed), format!("04{}{y}", &G[2..]));
        assert_eq!(found(Encoding::XOnly), &G[2..]);
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn ed25519_and_solana() {
        // RFC 8032, test 1; its base58 by Python, digit by digit.
        let key = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let all = encode_all(Curve::Ed25519, &key).unwrap();
        assert_eq!(all[0].1, HEXLOWER.encode(&key));
        assert_eq!(all[1].1, "FVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z");
    }

    #[test]
    fn what_is_no_key_of_the_curve_has_no_address() {
        let ed25519 = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        for encoding in Encoding::ALL {
            let wrong = if encoding.curve() == Curve::Secp256k1 { ed25519.clone() } else { hex(G) };
            for bytes in [wrong, vec![], vec![0; 32], vec![0; 33], vec![0xff; 33], vec![4; 65]] {
                assert_eq!(encode(&bytes, *encoding), Err(Untrusted::InvalidKey), "{encoding}");
            }
            assert_eq!(encoding.as_str().parse(), Ok(*encoding));
        }
    }
}
