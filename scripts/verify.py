#!/usr/bin/env python3
"""Verifies Trefoil's signatures, derived keys and attestations without any of Trefoil's code.

Standard library only, so that it can be read and run anywhere; where the package `cryptography` can be imported, it must
agree. Speed and constant time do not matter here: nothing in this file handles a secret.

  scripts/verify.py --curve secp256k1 --public-key HEX --digest HEX --signature HEX [--recovery-id N]
  scripts/verify.py --curve ed25519 --public-key HEX --message TEXT|--message-hex HEX|--message-file FILE --signature HEX
  scripts/verify.py --result FILE --node1 KEY --node2 KEY      (the result of a generate or public-key job)
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import pathlib
import sys


class Invalid(Exception):
    """What was given does not verify; the message says which check failed."""


def require(holds: bool, check: str) -> None:
    """Raises Invalid unless a check holds."""
    if not holds:
        raise Invalid(check)


# --- secp256k1 (SEC 2, section 2.4.1): y^2 = x^3 + 7 over F_p, order N, points as (x, y) or None for the identity

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)


def add(a, b):
    """The sum of two points."""
    if a is None or b is None:
        return b if a is None else a
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = 3 * a[0] * a[0] * pow(2 * a[1], -1, P)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(scalar: int, point):
    """A point multiplied by a non-negative integer."""
    total = None
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    return total


def lift(x: int, odd: int):
    """The point with this x and this parity of y."""
    require(0 <= x < P, "x is out of range")
    y = pow(x**3 + 7, (P + 1) // 4, P)
    require(y * y % P == (x**3 + 7) % P, "x is on no point of the curve")
    return x, y if y & 1 == odd else P - y


def decode_secp256k1(encoded: bytes):
    """A public key of 33 bytes, SEC1 compressed."""
    require(len(encoded) == 33 and encoded[0] in (2, 3), "the public key is not 33 bytes, compressed")
    return lift(int.from_bytes(encoded[1:], "big"), encoded[0] & 1)


def encode_secp256k1(point) -> bytes:
    """33 bytes, SEC1 compressed."""
    require(point is not None, "the point is the identity")
    return bytes([2 | (point[1] & 1)]) + point[0].to_bytes(32, "big")


def verify_secp256k1(public_key: bytes, digest: bytes, signature: bytes, recovery_id: int | None = None) -> None:
    """ECDSA (SEC 1, section 4.1.4) over a digest of 32 bytes; the signature is r and s, 32 bytes each, with low s. With a
    recovery id, also that the public key recovered from the signature (section 4.1.6) is this one."""
    point = decode_secp256k1(public_key)
    require(len(digest) == 32, "the digest is not 32 bytes")
    require(len(signature) == 64, "the signature is not 64 bytes")
    r, s, m = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:], digest))
    require(0 < r < N and 0 < s < N, "r or s is out of range")
    require(s <= N // 2, "s is not low")
    inverse = pow(s, -1, N)
    sum_ = add(multiply(m * inverse % N, G), multiply(r * inverse % N, point))
    require(sum_ is not None and sum_[0] % N == r, "the signature does not verify")
    if recovery_id is not None:
        require(recovery_id in range(4), "the recovery id is not 0 to 3")
        nonce = lift(r + N * (recovery_id >> 1), recovery_id & 1)
        inverse = pow(r, -1, N)
        recovered = add(multiply(s * inverse % N, nonce), multiply(-m * inverse % N, G))
        require(recovered == point, "the recovery id recovers another public key")


def derive_public(public_key: bytes, chain_code: bytes, path: str) -> bytes:
    """The public key at a path of non-hardened steps, "m/0/1" (BIP-32, CKDpub)."""
    first, *steps = path.split("/")
    require(first == "m" and all(step.isdecimal() and int(step) < 2**31 for step in steps), "not a non-hardened path")
    point = decode_secp256k1(public_key)
    for step in steps:
        data = encode_secp256k1(point) + int(step).to_bytes(4, "big")
        output = hmac.new(chain_code, data, hashlib.sha512).digest()
        tweak = int.from_bytes(output[:32], "big")
        require(tweak < N, "the path has no key")
        point, chain_code = add(multiply(tweak, G), point), output[32:]
    return encode_secp256k1(point)


# --- Ed25519 (RFC 8032): -x^2 + y^2 = 1 + d x^2 y^2 over F_q, order L, points in extended coordinates (X, Y, Z, T)

Q = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, Q) % Q
ROOT_OF_MINUS_1 = pow(2, (Q - 1) // 4, Q)
IDENTITY = (0, 1, 1, 0)


def edwards_add(a, b):
    """The sum of two points (RFC 8032, section 5.1.4)."""
    t0, t1 = (a[1] - a[0]) * (b[1] - b[0]) % Q, (a[1] + a[0]) * (b[1] + b[0]) % Q
    t2, t3 = 2 * a[3] * b[3] * D % Q, 2 * a[2] * b[2] % Q
    e, f, g, h = t1 - t0, t3 - t2, t3 + t2, t1 + t0
    return e * f % Q, g * h % Q, f * g % Q, e * h % Q


def edwards_multiply(scalar: int, point):
    """A point multiplied by a non-negative integer."""
    total = IDENTITY
    while scalar:
        if scalar & 1:
            total = edwards_add(total, point)
        point = edwards_add(point, point)
        scalar >>= 1
    return total


def edwards_encode(point) -> bytes:
    """32 bytes: y, and the parity of x in the top bit."""
    inverse = pow(point[2], -1, Q)
    x, y = point[0] * inverse % Q, point[1] * inverse % Q
    return (y | (x & 1) << 255).to_bytes(32, "little")


def edwards_decode(encoded: bytes, what: str):
    """A point from 32 bytes in its one canonical form (section 5.1.3), not of small order."""
    require(len(encoded) == 32, f"{what} is not 32 bytes")
    number = int.from_bytes(encoded, "little")
    y, sign = number & (2**255 - 1), number >> 255
    require(y < Q, f"{what} is not canonical")
    u, v = (y * y - 1) % Q, (D * y * y + 1) % Q
    x = u * pow(v, 3, Q) * pow(u * pow(v, 7, Q), (Q - 5) // 8, Q) % Q
    if v * x * x % Q == -u % Q:
        x = x * ROOT_OF_MINUS_1 % Q
    require(v * x * x % Q == u, f"{what} is on no point of the curve")
    require(x != 0 or sign == 0, f"{what} is not canonical")
    x = x if x & 1 == sign else Q - x
    point = (x, y, 1, x * y % Q)
    require(edwards_encode(edwards_multiply(8, point)) != edwards_encode(IDENTITY), f"{what} is of small order")
    return point


EDWARDS_Y = 4 * pow(5, -1, Q) % Q
EDWARDS_G = edwards_decode(EDWARDS_Y.to_bytes(32, "little"), "the generator")


def verify_ed25519(public_key: bytes, message: bytes, signature: bytes) -> None:
    """RFC 8032, section 5.1.7, without the cofactor, and strict: canonical encodings only, nothing of small order."""
    point = edwards_decode(public_key, "the public key")
    require(len(signature) == 64, "the signature is not 64 bytes")
    nonce = edwards_decode(signature[:32], "R")
    s = int.from_bytes(signature[32:], "little")
    require(s < L, "S is out of range")
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % L
    left, right = edwards_multiply(s, EDWARDS_G), edwards_add(nonce, edwards_multiply(challenge, point))
    require(edwards_encode(left) == edwards_encode(right), "the signature does not verify")


# --- The same by the package `cryptography`, where there is one


def by_cryptography(curve: str, public_key: bytes, signed: bytes, signature: bytes) -> bool:
    """Whether `cryptography` was there to verify; raises Invalid where it refuses the signature."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
    except ImportError:
        return False
    try:
        if curve == "ed25519":
            ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
        else:
            r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public_key)
            key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except (InvalidSignature, ValueError) as error:
        raise Invalid(f"cryptography refuses it: {error!r}") from None
    return True


def verify(curve: str, public_key: bytes, signed: bytes, signature: bytes, recovery_id: int | None = None) -> list[str]:
    """Verifies a signature over a digest (secp256k1) or message (ed25519) by all that is there, and names what that was."""
    if curve == "secp256k1":
        verify_secp256k1(public_key, signed, signature, recovery_id)
    elif curve == "ed25519":
        require(recovery_id is None, "ed25519 has no recovery id")
        verify_ed25519(public_key, signed, signature)
    else:
        raise Invalid(f"unknown curve {curve!r}")
    return ["standard library", *(["cryptography"] if by_cryptography(curve, public_key, signed, signature) else [])]


# --- Attestations and commits (docs/wire.md): what both nodes sign about a key that they hold shares of


def framed_hash(tag: str, fields: list[bytes]) -> bytes:
    """H(tag; fields) of docs/protocol.md, section 1."""
    name = f"trefoil/v1/{tag}".encode()
    framed = bytes([len(name)]) + name + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return hashlib.sha256(framed).digest()


def attestation_statement(result: dict) -> bytes:
    """The bytes that a node signed about the key in the result of a job that makes shares, or of public-key."""
    key = result["outcome"]["key"]
    digest = framed_hash(
        "attest",
        [
            result["initiator"].encode(),
            bytes.fromhex(key.get("generatedBy") or result["jobDigest"]),
            bytes.fromhex(key["keyId"]),
            bytes.fromhex(key.get("sourceKeyId") or ""),
            key["epoch"].to_bytes(4, "big"),
            key["curve"].encode(),
            bytes.fromhex(key["publicKey"]),
            bytes.fromhex(key["chainCode"]),
            bytes.fromhex(key["transcript"]),
        ],
    )
    return b"\xfftrefoil-attest-v1\x00" + digest


def commit_statement(result: dict) -> bytes:
    """The bytes that a node signed when it committed the key in a result: from then on its share cannot be dropped."""
    key = result["outcome"]["key"]
    fields = [bytes.fromhex(key["keyId"]), key["epoch"].to_bytes(4, "big"), bytes.fromhex(key["transcript"])]
    return b"\xfftrefoil-committed-v1\x00" + framed_hash("committed", fields)


def verify_attestations(result: dict, node1: bytes, node2: bytes) -> list[str]:
    """Verifies both nodes' signatures over the key in a result, and over its commit where the result says that the key is
    active. Names what verified them."""
    key = result["outcome"]["key"]
    require(node1 != node2, "both nodes have the same identity")
    require(key["state"] in ("prepared", "active"), "the key has an unknown state")
    signed = [("attestation", attestation_statement(result), key["attestations"])]
    if key["state"] == "active":
        require("commits" in key, "the result says that the key is active, without the commits of the nodes")
        signed.append(("commit", commit_statement(result), key["commits"]))
    names = []
    for what, statement, signatures in signed:
        for name, identity in (("node1", node1), ("node2", node2)):
            try:
                names = verify("ed25519", identity, statement, bytes.fromhex(signatures[name]))
            except Invalid as failure:
                raise Invalid(f"{what} of {name}: {failure}") from None
    return names


# --- The command line


def hex_bytes(text: str) -> bytes:
    """Bytes from hexadecimal digits."""
    return bytes.fromhex(text)


def file_bytes(path: str) -> bytes:
    """The content of a file."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def identity_bytes(text: str) -> bytes:
    """A node's Ed25519 public key: an NKEY ("N..." or "U...": base 32 of prefix, key, CRC-16) or 64 hexadecimal digits."""
    if len(text) != 56:
        return bytes.fromhex(text)
    decoded = base64.b32decode(text)
    if binascii.crc_hqx(decoded[:33], 0) != int.from_bytes(decoded[33:], "little"):
        raise ValueError("the NKEY's checksum is wrong")
    return decoded[1:33]


def main(arguments: list[str] | None = None) -> int:
    """Verifies what the command line names; 0 if it verifies, 1 if not, 2 if the command line is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", choices=["secp256k1", "ed25519"])
    parser.add_argument("--public-key", type=hex_bytes, metavar="HEX", help="33 bytes (secp256k1) or 32 bytes (ed25519)")
    parser.add_argument("--digest", type=hex_bytes, metavar="HEX", help="secp256k1: the 32 bytes that were signed")
    message = parser.add_mutually_exclusive_group()
    message.add_argument("--message", type=str.encode, metavar="TEXT", help="ed25519: the message that was signed")
    message.add_argument("--message-hex", type=hex_bytes, metavar="HEX", dest="message", help="the same, hex")
    message.add_argument("--message-file", type=file_bytes, metavar="FILE", dest="message", help="the same, from a file")
    parser.add_argument("--signature", type=hex_bytes, metavar="HEX", help="64 bytes: r and s, or R and S")
    parser.add_argument("--recovery-id", type=int, metavar="N", help="secp256k1: 0 to 3")
    parser.add_argument("--result", metavar="FILE", help="result of a generate, recover, refresh or public-key job; - reads standard input")
    parser.add_argument("--node1", type=identity_bytes, metavar="KEY", help="identity of node 1: NKEY or hex")
    parser.add_argument("--node2", type=identity_bytes, metavar="KEY", help="identity of node 2: NKEY or hex")
    given = parser.parse_args(arguments)
    try:
        if given.result is not None:
            if given.node1 is None or given.node2 is None:
                parser.error("--result needs --node1 and --node2")
            with sys.stdin if given.result == "-" else open(given.result, encoding="utf-8") as file:
                result = json.load(file)
            try:
                names = verify_attestations(result, given.node1, given.node2)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise Invalid(f"the result holds no attested key: {error!r}") from None
        else:
            signed = given.digest if given.curve == "secp256k1" else given.message
            if given.curve is None or given.public_key is None or given.signature is None or signed is None:
                parser.error("--curve, --public-key, --signature and --digest (secp256k1) or --message (ed25519) are needed")
            names = verify(given.curve, given.public_key, signed, given.signature, given.recovery_id)
    except Invalid as failure:
        print(f"INVALID: {failure}", file=sys.stderr)
        return 1
    print(f"valid (verified by: {', '.join(names)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
