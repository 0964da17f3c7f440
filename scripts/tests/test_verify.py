"""Tests of the verifier: published vectors, and each check by something that only it refuses."""

import contextlib
import hashlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import verify as v
from verify import Invalid

# RFC 8032, section 7.1: public key, message, signature (tests 1, 2, 3 and SHA(abc)).
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]

# ECDSA over SHA-256 with RFC 6979 nonces, low s, as published with several secp256k1 libraries: secret, message, r, s.
ECDSA = [
    (
        1,
        b"Satoshi Nakamoto",
        "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8",
        "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5",
    ),
    (
        1,
        b"All those moments will be lost in time, like tears in rain. Time to die...",
        "8600dbd41e348fe5c9465ab92d23e3db8b98b873beecd930736488696438cb6b",
        "547fe64427496db33bf66019dacbf0039c04199abb0122918601db38a72cfc21",
    ),
    (
        v.N - 1,
        b"Satoshi Nakamoto",
        "fd567d121db66e382991534ada77a6bd3106f0a1098c231e47993447cd6af2d0",
        "6b39cd0eb1bc8603e159ef5c20a5c8ad685a45b06ce9bebed3f153d10d93bed5",
    ),
]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def ecdsa_parts(vector):
    secret, message, r, s = vector
    public_key = v.encode_secp256k1(v.multiply(secret, v.G))
    return public_key, hashlib.sha256(message).digest(), bytes.fromhex(r + s)


def ed25519_sign(seed: bytes, message: bytes) -> tuple[bytes, bytes]:
    """RFC 8032, section 5.1.6, for the tests: public key and signature."""
    hashed = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(hashed[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    public_key = v.edwards_encode(v.edwards_multiply(scalar, v.EDWARDS_G))
    nonce = int.from_bytes(hashlib.sha512(hashed[32:] + message).digest(), "little") % v.L
    r = v.edwards_encode(v.edwards_multiply(nonce, v.EDWARDS_G))
    challenge = int.from_bytes(hashlib.sha512(r + public_key + message).digest(), "little") % v.L
    return public_key, r + ((nonce + challenge * scalar) % v.L).to_bytes(32, "little")


class Secp256k1(unittest.TestCase):
    def refused(self, check, *arguments):
        with self.assertRaisesRegex(Invalid, check):
            v.verify_secp256k1(*arguments)

    def test_published_vectors(self):
        for vector in ECDSA:
            v.verify_secp256k1(*ecdsa_parts(vector))

    def test_any_flipped_bit_is_refused(self):
        public_key, digest, signature = ecdsa_parts(ECDSA[0])
        for bit in range(0, 512, 37):
            with self.assertRaises(Invalid):
                v.verify_secp256k1(public_key, digest, flipped(signature, bit))
        self.refused("does not verify", public_key, flipped(digest, 0), signature)
        self.refused("does not verify", flipped(public_key, 0), digest, signature)

    def test_exactly_one_recovery_id_recovers_the_key(self):
        for vector in ECDSA:
            parts, good = ecdsa_parts(vector), []
            for recovery_id in range(4):
                with contextlib.suppress(Invalid):
                    v.verify_secp256k1(*parts, recovery_id)
                    good.append(recovery_id)
            self.assertEqual(len(good), 1)
        self.refused("0 to 3", *parts, 4)
        self.refused("another public key", *parts, 1 - good[0])

    def test_high_s_is_refused(self):
        public_key, digest, signature = ecdsa_parts(ECDSA[0])
        high = v.N - int.from_bytes(signature[32:], "big")
        self.refused("not low", public_key, digest, signature[:32] + high.to_bytes(32, "big"))

    def test_ranges_and_lengths(self):
        public_key, digest, signature = ecdsa_parts(ECDSA[0])
        zero, order = bytes(32), v.N.to_bytes(32, "big")
        for bad in (zero + signature[32:], signature[:32] + zero, order + signature[32:], signature[:32] + order):
            self.refused("out of range", public_key, digest, bad)
        self.refused("64 bytes", public_key, digest, signature[:-1])
        self.refused("32 bytes", public_key, digest + b"\0", signature)
        self.refused("33 bytes", public_key[1:], digest, signature)
        self.refused("33 bytes", b"\x04" + public_key[1:], digest, signature)
        self.refused("on no point", b"\x02" + (5).to_bytes(32, "big"), digest, signature)
        self.refused("out of range", b"\x02" + v.P.to_bytes(32, "big"), digest, signature)

    def test_the_identity_is_no_public_key(self):
        with self.assertRaisesRegex(Invalid, "identity"):
            v.encode_secp256k1(v.add(v.G, (v.G[0], v.P - v.G[1])))

    def test_derivation_by_bip_32_vector_2(self):
        # m -> m/0 of BIP-32's test vector 2, the first step of which is not hardened.
        public_key = "03cbcaa9c98c877a26977d00825c956a238e8dddfbd322cce4f74b0b5bd6ace4a7"
        chain_code = "60499f801b896d83179a4374aeb7822aaeaceaa0db1f85ee3e904c4defbd9689"
        child = "02fc9e5af0ac8d9b3cecfe2a888e2117ba3d089d8585886c9c826b6b22a98d12ea"
        public_key, chain_code = bytes.fromhex(public_key), bytes.fromhex(chain_code)
        self.assertEqual(v.derive_public(public_key, chain_code, "m/0").hex(), child)
        self.assertEqual(v.derive_public(public_key, chain_code, "m"), public_key)
        for path in ("m/0'", "m/2147483648", "0", "m/", "m/-1"):
            with self.assertRaises(Invalid):
                v.derive_public(public_key, chain_code, path)


class Ed25519(unittest.TestCase):
    def refused(self, check, *arguments):
        with self.assertRaisesRegex(Invalid, check):
            v.verify_ed25519(*arguments)

    def test_rfc_8032_vectors(self):
        for vector in RFC_8032:
            v.verify_ed25519(*(bytes.fromhex(part) for part in vector))

    def test_any_flipped_bit_is_refused(self):
        public_key, message, signature = (bytes.fromhex(part) for part in RFC_8032[2])
        for bit in range(0, 512, 37):
            with self.assertRaises(Invalid):
                v.verify_ed25519(public_key, message, flipped(signature, bit))
        self.refused("does not verify", public_key, flipped(message, 0), signature)

    def test_s_is_reduced(self):
        public_key, message, signature = (bytes.fromhex(part) for part in RFC_8032[2])
        s = int.from_bytes(signature[32:], "little") + v.L
        self.refused("S is out of range", public_key, message, signature[:32] + s.to_bytes(32, "little"))

    def test_points_are_canonical_and_not_of_small_order(self):
        public_key, message, signature = (bytes.fromhex(part) for part in RFC_8032[2])
        one, zero = (1).to_bytes(32, "little"), bytes(32)
        for small in (one, zero, (v.Q - 1).to_bytes(32, "little")):
            # With a key of small order, any message has a "signature" that the bare equation accepts.
            self.refused("small order", small, message, signature)
            self.refused("small order", public_key, message, small + signature[32:])
        self.refused("not canonical", (v.Q + 1).to_bytes(32, "little"), message, signature)
        self.refused("not canonical", (1 | 1 << 255).to_bytes(32, "little"), message, signature)
        self.refused("on no point", (2).to_bytes(32, "little"), message, signature)
        self.refused("32 bytes", public_key + b"\0", message, signature)
        self.refused("64 bytes", public_key, message, signature + b"\0")


class Attestations(unittest.TestCase):
    def setUp(self):
        self.result = {
            "version": 1,
            "jobId": "job-1",
            "initiator": "U" + "A" * 55,
            "op": "generate",
            "jobDigest": "11" * 32,
            "outcome": {
                "status": "ok",
                "key": {
                    "keyId": "22" * 16,
                    "curve": "secp256k1",
                    "epoch": 1,
                    "publicKey": "02" + "33" * 32,
                    "chainCode": "44" * 32,
                    "transcript": "55" * 32,
                    "state": "active",
                    "attestations": {},
                    "commits": {},
                },
            },
        }
        self.key = self.result["outcome"]["key"]
        self.nodes = []
        statement = v.attestation_statement(self.result)
        for number in (1, 2):
            public_key, signature = ed25519_sign(bytes([number]) * 32, statement)
            self.nodes.append(public_key)
            self.key["attestations"][f"node{number}"] = signature.hex()
            _, signature = ed25519_sign(bytes([number]) * 32, v.commit_statement(self.result))
            self.key["commits"][f"node{number}"] = signature.hex()

    def test_both_signatures_verify(self):
        self.assertIn("standard library", v.verify_attestations(self.result, *self.nodes))

    def test_the_statement_is_the_one_of_the_specification(self):
        fields = [
            b"U" + b"A" * 55, b"\x11" * 32, b"\x22" * 16, b"", bytes([0, 0, 0, 1]), b"secp256k1", b"\x02" + b"\x33" * 32,
            b"\x44" * 32, b"\x55" * 32,
        ]
        framed = b"\x11trefoil/v1/attest" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
        expected = b"\xfftrefoil-attest-v1\x00" + hashlib.sha256(framed).digest()
        self.assertEqual(v.attestation_statement(self.result), expected)

    def test_any_changed_field_is_refused(self):
        changes = {
            "keyId": "23" * 16, "sourceKeyId": "22" * 16, "epoch": 2, "curve": "ed25519", "publicKey": "03" + "33" * 32,
            "chainCode": "45" * 32, "transcript": "56" * 32, "generatedBy": "12" * 32,
        }
        for field, value in changes.items():
            before = dict(self.key)
            self.key[field] = value
            with self.assertRaisesRegex(Invalid, "attestation of node1"):
                v.verify_attestations(self.result, *self.nodes)
            self.key.clear()
            self.key.update(before)
        for field, value in {"initiator": "U" + "B" * 55, "jobDigest": "12" * 32}.items():
            with self.assertRaisesRegex(Invalid, "attestation of node1"):
                v.verify_attestations({**self.result, field: value}, *self.nodes)

    def test_the_job_that_made_the_key_is_the_one_attested(self):
        # A public-key job has a digest of its own and names the generate job's.
        asked = {**self.result, "op": "public-key", "jobDigest": "66" * 32}
        self.key["generatedBy"] = "11" * 32
        v.verify_attestations(asked, *self.nodes)

    def test_one_node_cannot_stand_for_both(self):
        self.key["attestations"]["node2"] = self.key["attestations"]["node1"]
        with self.assertRaisesRegex(Invalid, "attestation of node2"):
            v.verify_attestations(self.result, *self.nodes)
        with self.assertRaisesRegex(Invalid, "same identity"):
            v.verify_attestations(self.result, self.nodes[0], self.nodes[0])


    def test_an_active_key_needs_the_commits_of_both_nodes(self):
        framed = b"\x14trefoil/v1/committed"
        for field in (b"\x22" * 16, bytes([0, 0, 0, 1]), b"\x55" * 32):
            framed += len(field).to_bytes(4, "big") + field
        expected = b"\xfftrefoil-committed-v1\x00" + hashlib.sha256(framed).digest()
        self.assertEqual(v.commit_statement(self.result), expected)
        good = self.key.pop("commits")
        with self.assertRaisesRegex(Invalid, "without the commits"):
            v.verify_attestations(self.result, *self.nodes)
        for name in good:
            self.key["commits"] = {**good, name: self.key["attestations"][name]}
            with self.assertRaisesRegex(Invalid, f"commit of {name}"):
                v.verify_attestations(self.result, *self.nodes)
        # A prepared key needs none, and is called what it is.
        del self.key["commits"]
        self.key["state"] = "prepared"
        v.verify_attestations(self.result, *self.nodes)
        self.key["state"] = "deleted"
        with self.assertRaisesRegex(Invalid, "unknown state"):
            v.verify_attestations(self.result, *self.nodes)


class CommandLine(unittest.TestCase):
    def run_main(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = v.main(list(arguments))
            except SystemExit as stop:
                code = stop.code
        return code, out.getvalue() + err.getvalue()

    def test_secp256k1(self):
        public_key, digest, signature = (part.hex() for part in ecdsa_parts(ECDSA[0]))
        arguments = ["--curve", "secp256k1", "--public-key", public_key, "--digest", digest, "--signature"]
        code, text = self.run_main(*arguments, signature)
        self.assertEqual(code, 0)
        self.assertRegex(text, "valid .verified by: standard library")
        code, text = self.run_main(*arguments, "00" * 64)
        self.assertEqual((code, text), (1, "INVALID: r or s is out of range\n"))

    def test_ed25519_by_text_hex_and_file(self):
        def arguments(vector):
            return ["--curve", "ed25519", "--public-key", vector[0], "--signature", vector[2]]

        self.assertEqual(self.run_main(*arguments(RFC_8032[0]), "--message", "")[0], 0)
        self.assertEqual(self.run_main(*arguments(RFC_8032[0]), "--message", "x")[0], 1)
        self.assertEqual(self.run_main(*arguments(RFC_8032[1]), "--message", "r")[0], 0)
        self.assertEqual(self.run_main(*arguments(RFC_8032[2]), "--message-hex", "af82")[0], 0)
        self.assertEqual(self.run_main(*arguments(RFC_8032[2]), "--message-hex", "af8")[0], 2)
        self.assertEqual(self.run_main(*arguments(RFC_8032[2]), "--message", "", "--message-hex", "af82")[0], 2)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "message"
            self.assertEqual(self.run_main(*arguments(RFC_8032[2]), "--message-file", str(file))[0], 2)
            file.write_bytes(bytes.fromhex("af82"))
            self.assertEqual(self.run_main(*arguments(RFC_8032[2]), "--message-file", str(file))[0], 0)

    def test_a_result_file(self):
        case = Attestations()
        case.setUp()
        nodes = ["--node1", case.nodes[0].hex(), "--node2", case.nodes[1].hex()]
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "result.json"
            file.write_text(json.dumps(case.result))
            self.assertEqual(self.run_main("--result", str(file), *nodes)[0], 0)
            del case.key["transcript"]
            file.write_text(json.dumps(case.result))
            self.assertEqual(self.run_main("--result", str(file), *nodes)[0], 1)
            self.assertEqual(self.run_main("--result", str(file))[0], 2)

    def test_an_identity_is_hex_or_an_nkey(self):
        # The example key of the NKEY documentation of NATS.
        nkey = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
        key = v.identity_bytes(nkey)
        self.assertEqual(len(key), 32)
        self.assertEqual(v.identity_bytes(key.hex()), key)
        with self.assertRaisesRegex(ValueError, "checksum"):
            v.identity_bytes(nkey[:20] + "A" + nkey[21:])

    def test_what_is_missing_is_said(self):
        self.assertEqual(self.run_main("--curve", "secp256k1")[0], 2)


class Cryptography(unittest.TestCase):
    def test_it_agrees_where_it_is_installed(self):
        try:
            import cryptography  # noqa: F401
        except ImportError:
            self.skipTest("the package cryptography is not installed")
        public_key, digest, signature = ecdsa_parts(ECDSA[0])
        self.assertEqual(v.verify("secp256k1", public_key, digest, signature), ["standard library", "cryptography"])
        public_key, message, signature = (bytes.fromhex(part) for part in RFC_8032[1])
        self.assertEqual(v.verify("ed25519", public_key, message, signature), ["standard library", "cryptography"])
        with self.assertRaisesRegex(Invalid, "no recovery id"):
            v.verify("ed25519", public_key, message, signature, 0)
        with self.assertRaisesRegex(Invalid, "cryptography refuses"):
            v.by_cryptography("ed25519", public_key, message + b"x", signature)


if __name__ == "__main__":
    unittest.main()
