#!/usr/bin/env python3
"""Runs the whole of Trefoil on this machine: NATS, both nodes and two workers; makes a key on each curve, signs with it, and has
every signature verified by code that had no part in making it. Recovers both keys as if share and password were lost, signs with
them again, and shows what the old shares are worth then. Needs Rust, a C compiler and Python.

Everything it makes is under target/demo: settings, logs, keys, and summary.json with the time of each step. With --serve
it starts everything, says how to use it, and keeps it running until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import time

import verify
from services import PATIENCE, Failed, Service

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target" / "demo"
OPERATIONS = [
    "generate", "sign", "public-key", "validate-password", "validate-share", "change-password", "recover", "refresh",
    "freeze", "unfreeze",
    "keys", "register-key", "job-status", "cancel", "cancel-recovery",
]
CURVES = ("secp256k1", "ed25519")
METHODS = ("default", "mta")
KDFS = {"secp256k1": "argon2id", "ed25519": "hkdf"}
NODES = ("node1", "node2")
WORKERS = ("worker1", "worker2")
CHILD = "m/0/7"


class Steps:
    """The steps so far, each with its time; printed as they end, and written to summary.json."""

    def __init__(self):
        self.done = []

    @contextlib.contextmanager
    def step(self, name: str):
        """Runs one step; what it appends to the list it gets is printed beside its name."""
        notes, start, ok = [], time.monotonic(), False
        try:
            yield notes
            ok = True
        finally:
            millis = round((time.monotonic() - start) * 1000)
            self.done.append({"name": name, "ok": ok, "millis": millis})
            print(f"  {'ok  ' if ok else 'FAIL'} {millis:>9,} ms  {name:<46} {', '.join(notes)}".rstrip(), flush=True)

    def write(self, file: pathlib.Path) -> None:
        """Writes the summary."""
        file.write_text(json.dumps({"steps": self.done}, indent=2) + "\n")


def require(holds: bool, what: str) -> None:
    """Fails the step unless something holds."""
    if not holds:
        raise Failed(what)


def clean_environment(**changes: object) -> dict[str, str]:
    """This process's environment without any settings of Trefoil's, plus `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TREFOIL_", "RUST_LOG"))}
    return {**kept, **{name: str(value) for name, value in changes.items()}}


def write_settings(name: str, settings: dict) -> pathlib.Path:
    """Writes a settings file; strings, numbers and lists look the same in TOML and JSON."""
    file = FOLDER / f"{name}.toml"
    lines = [f"{key} = {json.dumps(value if isinstance(value, list) else str(value))}" for key, value in settings.items()]
    file.write_text("\n".join(lines) + "\n")
    return file


class Demo:
    """One run."""

    def __init__(self, steps: Steps):
        self.step = steps.step
        self.services: list[Service] = []
        self.public: dict[str, str] = {}
        # The key file of each curve, and the file with its password.
        self.keys = {curve: (FOLDER / f"{curve}.key", FOLDER / f"password-{curve}.seed") for curve in CURVES}

    def start_all(self) -> None:
        """Gets all that is needed, and starts it."""
        self.find_tools()
        self.make_identities()
        self.start_services()

    def run(self) -> None:
        """All steps in order; the first failure ends it."""
        self.start_all()
        for curve in CURVES:
            self.generate(curve)
            for method in METHODS:
                self.sign(curve, method)
        self.sign("secp256k1", "mta", CHILD)
        for curve in CURVES:
            self.refuse_wrong_password(curve)
        for curve in CURVES:
            self.recover(curve)
            self.sign(curve, "default")
        self.refresh("secp256k1")
        self.sign("secp256k1", "mta", CHILD)
        self.change_password("ed25519")
        self.sign("ed25519", "default")
        self.verify_audit_logs()

    def serve(self) -> None:
        """Starts everything, says how to use it, and keeps it until Ctrl-C; a service that ends by itself ends it too."""
        self.start_all()
        trefoil = os.path.relpath(self.binaries["trefoil"])
        settings = os.path.relpath(FOLDER / "client.toml")
        print("\nRunning until Ctrl-C. In another terminal:\n")
        print(f"  export TREFOIL_CONFIG={settings}")
        print(f"  {trefoil} generate --curve secp256k1 --out wallet.key")
        print(f"  {trefoil} sign --key wallet.key --digest {hashlib.sha256(b'test').hexdigest()}")
        print(f"\nLogs: {os.path.relpath(FOLDER)}/*.log", flush=True)
        while all(service.process.poll() is None for service in self.services):
            time.sleep(0.5)
        raise Failed("a service ended by itself: " + ", ".join(s.name for s in self.services if s.process.poll() is not None))

    # --- what is needed

    def find_tools(self) -> None:
        """A nats-server, and our own binaries."""
        with self.step("find nats-server") as notes:
            script = [sys.executable, ROOT / "scripts" / "nats-server"]
            done = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            require(done.returncode == 0, done.stderr.strip())
            self.nats_server = pathlib.Path(done.stdout.strip())
            notes.append(str(self.nats_server))
        print("  building (the first time takes some minutes) ...", flush=True)
        with self.step("build"):
            # The development profile: the cryptography is optimised in it too, and it builds sooner.
            command = ["cargo", "build", "--locked", "--bins", "--message-format", "json-render-diagnostics"]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            require(done.returncode == 0, "the build failed")
            built = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            self.binaries = {unit["target"]["name"]: unit["executable"] for unit in built if unit.get("executable")}

    def trefoil(self, *arguments: object, expect: int = 0) -> dict:
        """Runs the command line with --json; what it answered."""
        command = [self.binaries["trefoil"], "--config", FOLDER / "client.toml", *arguments, "--json"]
        command = [str(part) for part in command]
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE)
        shown = " ".join(["trefoil", *command[3:]])
        require(done.returncode == expect, f"{shown}\nended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def make_identities(self) -> None:
        """Every seed in a file of its own, as each operator would make their own; settings refer to the files."""

        def new(kind: str, name: str) -> None:
            made = self.trefoil("identity", "new", "--kind", kind, "--out", FOLDER / f"{name}.seed")
            self.public[name] = made.get("publicKey")

        with self.step("make identities and settings") as notes:
            for node in NODES:
                new("node", f"{node}-identity")
                new("secret", f"{node}-master")
                new("noise", f"{node}-noise")
            for worker in WORKERS:
                new("noise", f"{worker}-noise")
            new("sealing", "sealing")
            new("initiator", "initiator")
            new("authoriser", "authoriser")
            new("reply", "reply")
            for name in ("", "-new", "-changed"):
                new("secret", f"password-ed25519{name}")
                (FOLDER / f"password-secp256k1{name}.seed").write_text(secrets.token_urlsafe(12) + "\n")
            (FOLDER / "password-wrong.seed").write_text(secrets.token_hex(32) + "\n")
            notes.append("each seed in a file of its own")

    def write_all_settings(self, url: str) -> None:
        """The settings of nodes, workers and backend."""

        def seed(name: str) -> pathlib.Path:
            return FOLDER / f"{name}.seed"

        (FOLDER / "policy.toml").write_text(
            f'version = 1\n\n[[initiators]]\nname = "demo"\nkey = "{self.public["initiator"]}"\n'
            f"operations = {json.dumps(OPERATIONS)}\ncurves = {json.dumps(CURVES)}\n"
            "raw_digests = true\nmax_lifetime_seconds = 600\nmax_keys = 1000\n"
            "jobs_per_minute = { generate = 600, sign = 6000 }\n"
        )
        self.trefoil("node", "check-policy", FOLDER / "policy.toml")
        for node, peer in (NODES, NODES[::-1]):
            settings = {
                "role": node,
                "nats_url": url,
                "data_dir": FOLDER / node,
                "master_key_file": seed(f"{node}-master"),
                "identity_seed_file": seed(f"{node}-identity"),
                "noise_key_file": seed(f"{node}-noise"),
                "peer_identity": self.public[f"{peer}-identity"],
                "workers": [self.public[f"{worker}-noise"] for worker in WORKERS],
                "authorisers": [self.public["authoriser"]],
                "policy_file": FOLDER / "policy.toml",
            }
            write_settings(node, settings)
        identities = {f"{node}_identity": self.public[f"{node}-identity"] for node in NODES}
        for worker in WORKERS:
            settings = {
                "nats_url": url,
                "noise_key_file": seed(f"{worker}-noise"),
                "sealing_keys_file": seed("sealing"),
                "initiators": [self.public["initiator"]],
                **{f"{node}_noise": self.public[f"{node}-noise"] for node in NODES},
                **identities,
            }
            write_settings(worker, settings)
        settings = {
            "nats_url": url,
            "initiator_seed_file": seed("initiator"),
            "reply_seed_file": seed("reply"),
            "worker_key": self.public["sealing"],
            **identities,
        }
        write_settings("client", settings)

    # --- the service

    def start(self, name: str, command: list, **environ: object) -> Service:
        """Starts a program; it is ended with the demo."""
        service = Service(name, command, FOLDER / f"{name}.log", clean_environment(**environ))
        self.services.append(service)
        return service

    def start_services(self) -> None:
        """NATS, both nodes and the workers, each awaited by its own word that it is ready."""
        with self.step("start NATS") as notes:
            command = [self.nats_server, "--addr", "127.0.0.1", "--port", "-1", "--jetstream", "--store_dir", FOLDER / "nats"]
            nats = self.start("nats-server", command)
            port = nats.wait_for("Listening for client connections on").rpartition(":")[2].strip()
            nats.wait_for("Server is ready")
            url = f"nats://127.0.0.1:{port}"
            self.write_all_settings(url)
            notes.append(url)
        with self.step("start node 1 and node 2"):
            nodes = [
                self.start(node, [self.binaries["trefoil-node"]], TREFOIL_CONFIG=FOLDER / f"{node}.toml") for node in NODES
            ]
            for node in nodes:
                node.wait_for("serving")
        with self.step("start two workers"):
            workers = [
                self.start(worker, [self.binaries["trefoil-worker"]], TREFOIL_CONFIG=FOLDER / f"{worker}.toml")
                for worker in WORKERS
            ]
            for worker in workers:
                worker.wait_for(" ready")

    def stop_services(self) -> None:
        """Ends what runs: workers first, NATS last, each whatever became of the others."""
        codes = {service: service.stop() for service in reversed(self.services)}
        # nats-server ends with 1 when it is told to.
        failed = [service for service, code in codes.items() if code != 0 and service.name != "nats-server"]
        require(not failed, "; ".join(f"{service.name} did not end well, see {service.log}" for service in failed))

    # --- keys and signatures

    def identities(self) -> list[bytes]:
        """The nodes' public keys."""
        return [verify.identity_bytes(self.public[f"{node}-identity"]) for node in NODES]

    def generate(self, curve: str) -> None:
        """Makes a key; both nodes' attestations of it are verified."""
        key, password = self.keys[curve]
        with self.step(f"generate {curve}") as notes:
            arguments = ["--curve", curve, "--kdf", KDFS[curve], "--out", key, "--password-file", password]
            made = self.trefoil("generate", *arguments)
            notes.append(made["publicKey"])
        with self.step(f"check that both nodes attest it, {curve}") as notes:
            notes.append(" + ".join(verify.verify_attestations(made, *self.identities())))
            asked = self.trefoil("public-key", "--key", key)
            verify.verify_attestations(asked, *self.identities())
            require(asked["publicKey"] == made["publicKey"], "the nodes name another public key now")

    def sign(self, curve: str, method: str, path: str | None = None) -> None:
        """Signs, and has the signature verified by everything that can, under the attested public key."""
        key, password = self.keys[curve]
        attested = json.loads(key.read_text())["key"]
        public_key = bytes.fromhex(attested["publicKey"])
        if curve == "secp256k1":
            signed = hashlib.sha256(secrets.token_bytes(40)).digest()
            arguments = ["--digest", signed.hex()]
        else:
            signed = b"\x00 a message that begins with a zero byte: " + secrets.token_bytes(20)
            arguments = ["--message-hex", signed.hex()]
        if path:
            public_key = verify.derive_public(public_key, bytes.fromhex(attested["chainCode"]), path)
            arguments += ["--path", path]
        name = f"{key.stem}, {method}{', child ' + path if path else ''}"
        with self.step(f"sign {name}") as notes:
            made = self.trefoil("sign", "--key", key, *arguments, "--method", method, "--password-file", password)
            notes.append(f"method {made['method']}")
            notes.append(f"{made['milliseconds']} ms in the command line")
        with self.step(f"verify {name}") as notes:
            require(made["publicKey"] == public_key.hex(), "the result names another public key")
            names = verify.verify(curve, public_key, signed, bytes.fromhex(made["signature"]), made.get("recoveryId"))
            arguments = ["--signature", made["signature"], *arguments, "--key", key]
            if made.get("recoveryId") is not None:
                arguments += ["--recovery-id", made["recoveryId"]]
            require(self.trefoil("verify", *arguments)["valid"] is True, "trefoil verify refuses it")
            notes.append(" + ".join([*names, "k256" if curve == "secp256k1" else "ed25519-dalek"]))

    def refuse(self, curve: str, key: pathlib.Path, password: pathlib.Path, code: str) -> dict:
        """Signs nothing, for this reason; what was said about it."""
        signed = ["--digest", "11" * 32] if curve == "secp256k1" else ["--message", "not to be signed"]
        error = self.trefoil("sign", "--key", key, *signed, "--password-file", password, expect=1)["error"]
        require(error["code"] == code, f"the answer is {error}")
        return error

    def refuse_wrong_password(self, curve: str) -> None:
        """A wrong password has a code of its own."""
        with self.step(f"refuse a wrong password, {curve}") as notes:
            self.refuse(curve, self.keys[curve][0], FOLDER / "password-wrong.seed", "WRONG_PASSWORD")
            notes.append("WRONG_PASSWORD")

    # --- the key stays, its shares do not

    def recover(self, curve: str) -> None:
        """New shares of the same key from both nodes, for a backend that has lost share and password; the old share is worthless."""
        old_file, old_password = self.keys[curve]
        key, password = FOLDER / f"{curve}-recovered.key", FOLDER / f"password-{curve}-new.seed"
        old = json.loads(old_file.read_text())["key"]
        with self.step(f"recover {curve}, without share and password") as notes:
            consent = ["--authoriser-seed-file", FOLDER / "authoriser.seed"]
            arguments = ["--key", old_file, "--out", key, "--kdf", KDFS[curve], "--password-file", password, *consent]
            made = self.trefoil("recover", *arguments)
            new = made["outcome"]["key"]
            same = all(new[field] == old[field] for field in ("curve", "publicKey", "chainCode"))
            require(same and new["sourceKeyId"] == old["keyId"], "the recovered key is another one")
            require(new["keyId"] != old["keyId"] and new["epoch"] == old["epoch"] + 1, "the shares are not new ones")
            require(new["state"] == "active", "the nodes have not committed")
            verify.verify_attestations(made, *self.identities())
            notes.append("the same public key")
            notes.append(f"new id {new['keyId']}")
        with self.step(f"refuse the old share, {curve}") as notes:
            error = self.refuse(curve, old_file, old_password, "KEY_RETIRED")
            require(error["newKeyId"] == new["keyId"], f"the answer is {error}")
            notes.append(f"KEY_RETIRED, use {error['newKeyId']}")
        self.keys[curve] = (key, password)

    def refresh(self, curve: str) -> None:
        """New shares under the same id and password; a copy of the old key file is worthless."""
        key, password = self.keys[curve]
        copy = FOLDER / f"{curve}-stolen.key"
        shutil.copy(key, copy)
        with self.step(f"refresh {curve}") as notes:
            made = self.trefoil("refresh", "--key", key, "--password-file", password)
            old, new = json.loads(copy.read_text())["key"], made["outcome"]["key"]
            same = all(new[field] == old[field] for field in ("keyId", "curve", "publicKey", "chainCode"))
            require(same and new["epoch"] == old["epoch"] + 1, "the refreshed key is another one")
            verify.verify_attestations(made, *self.identities())
            notes.append(f"the same key, epoch {new['epoch']}")
        with self.step(f"refuse a copy of its old share, {curve}") as notes:
            self.refuse(curve, copy, password, "STALE_SHARE")
            notes.append("STALE_SHARE")

    def change_password(self, curve: str) -> None:
        """The same share under another password."""
        key, password = self.keys[curve]
        changed = FOLDER / f"password-{curve}-changed.seed"
        with self.step(f"change the password, {curve}") as notes:
            arguments = ["--key", key, "--kdf", KDFS[curve], "--password-file", password, "--new-password-file", changed]
            require(self.trefoil("change-password", *arguments)["changed"] is True, "the password was not changed")
            self.refuse(curve, key, password, "WRONG_PASSWORD")
            notes.append("the old one is refused")
        self.keys[curve] = (key, changed)

    # --- what the nodes wrote down

    def verify_audit_logs(self) -> None:
        """Each node's audit log is whole."""
        with self.step("verify the nodes' audit logs") as notes:
            for node in NODES:
                checked = self.trefoil("audit", "verify", FOLDER / node / "audit.log")
                notes.append(f"{node}: {checked['entries']} entries")


def interrupted(number: int, _frame: object) -> None:
    """Ctrl-C and a request to end both end the demo by an exception, so that everything is cleaned up."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def claim(folder: pathlib.Path, lock: str, busy: str):
    """Empties the folder for one run, which signals end by an exception from now on. None, and `busy` said, where another run has it; otherwise
    what is returned is to be kept until the end."""
    folder.parent.mkdir(exist_ok=True)
    claimed = open(folder.parent / lock, "w")
    try:
        fcntl.flock(claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(busy, file=sys.stderr)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)
    return claimed


def finished(steps: Steps, work, stop) -> int:
    """Does the work, and stops everything whatever came of it. 0 if all of it went well, 130 if it was interrupted."""
    code = 1
    try:
        work()
        code = 0
    except (Failed, verify.Invalid, subprocess.TimeoutExpired) as failure:
        print(f"\n{failure}\n", file=sys.stderr)
    except KeyboardInterrupt as signalled:
        print(f"\nInterrupted ({signalled}).", file=sys.stderr)
        code = 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with steps.step("stop everything"):
                stop()
        except Failed as failure:
            print(f"\n{failure}\n", file=sys.stderr)
            code = code or 1
    return code


def main(arguments: list[str]) -> int:
    """Runs the demo; 0 if every step succeeded."""
    serve = arguments == ["--serve"]
    if arguments and not serve:
        print(__doc__, file=sys.stderr)
        return 2
    lock = claim(FOLDER, ".demo.lock", "Another demo is running in this directory.")
    if lock is None:
        return 1
    steps = Steps()
    demo = Demo(steps)
    start = time.monotonic()
    try:
        code = finished(steps, demo.serve if serve else demo.run, demo.stop_services)
    finally:
        steps.write(FOLDER / "summary.json")
    if serve:
        return 0 if code == 130 else code
    result = "Every signature was verified by code that did not make it." if code == 0 else "The demo FAILED."
    print(f"\n{result} {time.monotonic() - start:.1f} s in all; details are in {FOLDER.relative_to(ROOT)}/.")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
