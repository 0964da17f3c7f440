#!/usr/bin/env python3
"""Runs docker-compose.yml, unchanged, on a container engine of its own, and uses it: makes a key on each curve, signs, and has the
signatures verified by code that had no part in making them; scales to three workers; stops node 1 until Prometheus raises the alert, and
starts it again; takes everything down, and sees that nothing is left.

Needs Linux, root, Rust and a C compiler. Debian's docker.io and docker-compose are installed where they are missing. Images come from no
registry: those that docker-compose.yml and deploy/Dockerfile name are made first, of the nats-server of scripts/nats-server, Debian's
Prometheus, and for deploy/Dockerfile this machine's shell and binutils, where `cargo build` hands out what was built outside, in the
profile of `make demo`. Left out are Grafana and nats-exporter, which no package brings.

Exit codes: 0 passed, 1 failed, 77 no engine can be had here; the last line then says why.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import verify
from demo import Steps, clean_environment, interrupted, require
from engine import Engine, Layer, Unavailable, debian_file, installed
from services import Failed

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target" / "compose"
SKIPPED = 77
SERVICES = ("nats", "node1", "node2", "worker", "prometheus")
PROGRAMS = ("trefoil", "trefoil-node", "trefoil-worker")
PASSWORD = "a password for the test"
# Seconds. An alert comes after its `for` and a few scrapes.
HEALTHY, ALERT, DOWN = 120, 240, 120
# What deploy/image.sh uses.
TOOLS = ("sh", "bash", "strip", "ldd", "grep", "cp", "mkdir", "chmod", "dirname")
CARGO = """#!/bin/sh
# Stands in for the compiler: the programs were built outside, with the same lock file.
set -eu
test "$*" = "build --release --locked --bins"
mkdir -p target/release
cp /built/* target/release/
"""


def image_names(compose: str) -> dict[str, str]:
    """The name of each service's own image in a compose file; a service without one has the process's."""
    services = compose[compose.index("\nservices:"):compose.index("\nvolumes:")]
    blocks = re.split(r"^  ([\w-]+):$", services, flags=re.MULTILINE)[1:]
    images = {name: re.search(r"^    image: (\S+)$", block, flags=re.MULTILINE) for name, block in zip(blocks[::2], blocks[1::2])}
    return {name: image.group(1) for name, image in images.items() if image}


def base_image(dockerfile: str) -> str:
    """The image in which a Dockerfile builds."""
    return re.search(r"^ARG RUST=(\S+)$", dockerfile, flags=re.MULTILINE).group(1)


class ComposeTest:
    """One run."""

    def __init__(self, steps: Steps, engine: Engine):
        self.step = steps.step
        self.engine = engine
        installed("docker-compose")
        self.environ = {
            **clean_environment(), **engine.environ,
            "COMPOSE_PROJECT_NAME": "trefoil-test", "COMPOSE_DOCKER_CLI_BUILD": "0", "COMPOSE_HTTP_TIMEOUT": "120",
            # Any free ones.
            "TREFOIL_NATS_PORT": "0", "TREFOIL_PROMETHEUS_PORT": "0",
        }

    def compose(self, *arguments: object, timeout: float = 120) -> str:
        """Runs docker-compose in the repository; what it printed."""
        command = ["docker-compose", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=timeout)
        require(done.returncode == 0, f"{' '.join(command)}\nended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(self) -> None:
        """All steps in order; the first failure ends it."""
        self.make_images()
        with self.step("docker-compose build") as notes:
            self.compose("build", "setup", timeout=600)
            size = int(self.engine.docker("image", "inspect", "--format", "{{.Size}}", self.images["setup"]))
            notes.append(f"{self.images['setup']}, {size / 1e6:.0f} MB")
        try:
            self.use()
        except BaseException:
            self.print_logs()
            raise
        finally:
            with self.step("docker-compose down"):
                self.compose("down", "--volumes", "--remove-orphans", "--timeout", "30", timeout=DOWN)
                left = [self.engine.docker(*kind) for kind in (("ps", "-aq"), ("volume", "ls", "-q"))]
                require(not "".join(left), f"something is left: {left}")

    def use(self) -> None:
        """What is done with the running service."""
        with self.step("docker-compose up") as notes:
            self.compose("up", "-d", *SERVICES, timeout=300)
            self.until_healthy({service: 1 for service in SERVICES})
            notes.append("all healthy")
        with self.step("every container is locked down") as notes:
            notes.append(f"{self.check_hardening()} containers")
        with self.step("setup leaves what it made alone"):
            made = json.loads(self.compose("run", "--rm", "-T", "setup", "setup", "/etc/trefoil/local", "--if-missing", "--json"))
            require(made["made"] is False, "it made everything anew")
            public = made["publicKeys"]
            self.identities = [verify.identity_bytes(public[f"{node}Identity"]) for node in ("node1", "node2")]
        self.generate("secp256k1")
        self.generate("ed25519")
        self.sign("secp256k1")
        self.sign("ed25519")
        with self.step("scale to three workers") as notes:
            self.compose("up", "-d", "--scale", "worker=3", *SERVICES, timeout=120)
            self.until_healthy({**{service: 1 for service in SERVICES}, "worker": 3})
            self.until("Prometheus finds them", HEALTHY, lambda: self.targets() == {"trefoil-node": 2, "trefoil-worker": 3})
            notes.append("Prometheus finds all three")
        with self.step("trefoil top hears them"):
            self.until("all workers", HEALTHY, lambda: self.heard() == 3)
        self.sign("secp256k1")
        with self.step("stop node 1: TrefoilNodeDown fires") as notes:
            # On a slow machine there may have been some while all of it was starting.
            self.until("no alert before", ALERT, lambda: self.alerts() == {})
            self.compose("stop", "node1")
            seen = self.until("the alert", ALERT, lambda: self.alerts().get("TrefoilNodeDown") == {"node1"} and self.alerts())
            require(set(seen) == {"TrefoilNodeDown"}, f"other alerts fire too: {seen}")
            notes.append("and no other alert")
        with self.step("start it again: the alert is resolved"):
            self.compose("start", "node1")
            self.until("node 1 is healthy", HEALTHY, lambda: self.health("node1") == ["healthy"])
            self.until("no alert any more", ALERT, lambda: self.alerts() == {})
        self.sign("secp256k1")
        self.sign("ed25519")

    # --- images

    def make_images(self) -> None:
        """Those that docker-compose.yml and deploy/Dockerfile name."""
        self.images = image_names((ROOT / "docker-compose.yml").read_text())
        self.images["setup"] = re.search(r"^  image: (\S+)$", (ROOT / "docker-compose.yml").read_text(), flags=re.MULTILINE).group(1)
        base = base_image((ROOT / "deploy" / "Dockerfile").read_text())
        packages = FOLDER / "packages"
        with self.step("build the programs"):
            command = ["cargo", "build", "--locked", "--bins", "--message-format", "json-render-diagnostics"]
            done = subprocess.run(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True, timeout=1800)
            require(done.returncode == 0, "the build failed")
            built = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            programs = {unit["target"]["name"]: pathlib.Path(unit["executable"]) for unit in built if unit.get("executable")}
        with self.step(f"make {base}"):
            layer = Layer()
            for tool in TOOLS:
                layer.program(pathlib.Path(shutil.which(tool)), f"/usr/bin/{tool}")
            layer.file("/usr/local/cargo/bin/cargo", CARGO.encode(), mode=0o755)
            layer.file("/etc/ssl/certs/ca-certificates.crt", pathlib.Path("/etc/ssl/certs/ca-certificates.crt").read_bytes())
            for name in PROGRAMS:
                stripped = self.engine.folder / name
                subprocess.run(["strip", "--strip-debug", "-o", stripped, programs[name]], check=True, timeout=60)
                layer.program(stripped, f"/built/{name}")
            self.engine.image(base, layer.bytes(), "ENV PATH=/usr/local/cargo/bin:/usr/bin")
        with self.step(f"make {self.images['nats']}") as notes:
            done = subprocess.run([sys.executable, ROOT / "scripts" / "nats-server"], stdout=subprocess.PIPE, text=True, timeout=300)
            require(done.returncode == 0, "there is no nats-server")
            server = pathlib.Path(done.stdout.strip())
            version = subprocess.run([server, "--version"], stdout=subprocess.PIPE, text=True, timeout=10).stdout.strip()
            layer = self.with_busybox(packages)
            layer.program(server, "/usr/local/bin/nats-server")
            self.engine.image(self.images["nats"], layer.bytes(), 'CMD ["nats-server"]')
            notes.append(version)
        with self.step(f"make {self.images['prometheus']}") as notes:
            prometheus = debian_file("prometheus", "usr/bin/prometheus", packages)
            version = subprocess.run([prometheus, "--version"], capture_output=True, text=True, timeout=10)
            notes.append((version.stdout + version.stderr).splitlines()[0].split(" (")[0])
            layer = self.with_busybox(packages)
            layer.program(prometheus, "/bin/prometheus")
            # As the image that has this name elsewhere.
            layer.folder("/prometheus", owner=65534)
            self.engine.image(self.images["prometheus"], layer.bytes(), 'ENTRYPOINT ["/bin/prometheus"]', "USER 65534")

    @staticmethod
    def with_busybox(packages: pathlib.Path) -> Layer:
        """Files with what health checks call, as Alpine's images have it."""
        layer = Layer()
        layer.program(debian_file("busybox-static", "bin/busybox", packages), "/bin/busybox")
        for name in ("sh", "wget"):
            layer.link(f"/usr/bin/{name}", "busybox")
        return layer

    # --- containers

    def inspect(self, service: str) -> list[dict]:
        """What the engine says of each container of a service."""
        label = "label=com.docker.compose.service"
        ids = self.engine.docker("ps", "--all", "--quiet", "--filter", f"{label}={service}").split()
        return json.loads(self.engine.docker("inspect", *ids)) if ids else []

    def health(self, service: str) -> list[str]:
        """How the containers of a service are."""
        states = [container["State"] for container in self.inspect(service)]
        return [state.get("Health", {}).get("Status", state["Status"]) if state["Running"] else state["Status"] for state in states]

    def until(self, what: str, seconds: float, condition):
        """Waits until this holds, and returns it."""
        deadline = time.monotonic() + seconds
        while not (held := condition()):
            require(time.monotonic() < deadline, f"{what}: not within {seconds} s")
            time.sleep(0.5)
        return held

    def until_healthy(self, wanted: dict[str, int]) -> None:
        """Waits until so many containers of each service are healthy; one that ended is a failure at once."""

        def healthy() -> bool:
            states = {service: self.health(service) for service in wanted}
            require("exited" not in str(states), f"a container has ended: {states}")
            return all(states[service] == ["healthy"] * count for service, count in wanted.items())

        self.until("all containers are healthy", HEALTHY, healthy)

    def check_hardening(self) -> int:
        """Every container is one that can change nothing but its volumes, as nobody, and is reached from this machine only."""
        checked = 0
        for service in (*SERVICES, "setup"):
            for container in self.inspect(service):
                host, name = container["HostConfig"], container["Name"]
                require(host["ReadonlyRootfs"] is True, f"{name}: its root can be written")
                require(host["CapDrop"] == ["ALL"] and not host["CapAdd"] and not host["Privileged"], f"{name}: has capabilities")
                require("no-new-privileges:true" in host["SecurityOpt"], f"{name}: may gain privileges")
                require(int(container["Config"]["User"].split(":")[0]) > 0, f"{name}: runs as root")
                bound = [port["HostIp"] for ports in (host["PortBindings"] or {}).values() for port in ports]
                require(set(bound) <= {"127.0.0.1"}, f"{name}: others reach {bound}")
                secret = [mount for mount in container["Mounts"] if mount["Destination"] == "/etc/trefoil"]
                require(service == "setup" or not any(mount["RW"] for mount in secret), f"{name}: may change identities")
                checked += 1
        require(checked == len(SERVICES) + 1, f"{checked} containers")
        return checked

    def print_logs(self) -> None:
        """The last of what all containers said."""
        for service in ("setup", *SERVICES):
            for container in self.inspect(service):
                print(f"--- {container['Name']}: {container['State']['Status']}, exit code {container['State']['ExitCode']}", file=sys.stderr)
                command = ["docker", "logs", "--tail", "60", container["Id"]]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(command, env=self.environ, stdout=sys.stderr, stderr=subprocess.STDOUT, timeout=30)
        sys.stderr.flush()

    # --- Prometheus

    def prometheus(self, path: str) -> dict:
        """What its API answers."""
        [port] = self.inspect("prometheus")[0]["NetworkSettings"]["Ports"]["9090/tcp"]
        with urllib.request.urlopen(f"http://{port['HostIp']}:{port['HostPort']}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def targets(self) -> dict[str, int]:
        """How many targets of each of our jobs it has scraped well."""
        found: dict[str, int] = {}
        for target in self.prometheus("targets?state=active")["activeTargets"]:
            job = target["labels"]["job"]
            if target["health"] == "up" and job.startswith("trefoil-"):
                found[job] = found.get(job, 0) + 1
        return found

    def alerts(self) -> dict[str, set[str]]:
        """The alerts that fire, each with the nodes that it names."""
        firing: dict[str, set[str]] = {}
        for alert in self.prometheus("alerts")["alerts"]:
            if alert["state"] == "firing":
                firing.setdefault(alert["labels"]["alertname"], set()).add(alert["labels"].get("node", ""))
        return firing

    # --- keys and signatures

    def cli(self, *arguments: object) -> dict:
        """Runs the command line as the README says, with --json."""
        options = ["--rm", "-T", "-e", f"TREFOIL_PASSWORD={PASSWORD}"]
        return json.loads(self.compose("run", *options, "cli", "--json", *arguments))

    def heard(self) -> int:
        """How many workers tell of themselves over NATS."""
        lines = self.compose("run", "--rm", "-T", "top", "top", "--json", "--once").splitlines()
        return len({json.loads(line)["workerId"] for line in lines})

    def generate(self, curve: str) -> None:
        """Makes a key; both nodes' attestations of it are verified."""
        with self.step(f"generate {curve}") as notes:
            made = self.cli("generate", "--curve", curve, "--out", f"{curve}.key")
            verify.verify_attestations(made, *self.identities)
            notes.append(made["publicKey"])
            setattr(self, curve, bytes.fromhex(made["publicKey"]))

    def sign(self, curve: str) -> None:
        """Signs, and has the signature verified by everything that can."""
        if curve == "secp256k1":
            signed = hashlib.sha256(secrets.token_bytes(40)).digest()
            arguments = ["--digest", signed.hex()]
        else:
            signed = secrets.token_bytes(40)
            arguments = ["--message-hex", signed.hex()]
        with self.step(f"sign and verify, {curve}") as notes:
            made = self.cli("sign", "--key", f"{curve}.key", *arguments)
            signature = bytes.fromhex(made["signature"])
            names = verify.verify(curve, getattr(self, curve), signed, signature, made.get("recoveryId"))
            notes.append(" + ".join(names))


def main() -> int:
    """Runs the test."""
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)
    FOLDER.mkdir(parents=True, exist_ok=True)
    steps, start = Steps(), time.monotonic()
    try:
        with contextlib.ExitStack() as scope:
            print("  starting a container engine ...", flush=True)
            test = ComposeTest(steps, scope.enter_context(Engine(FOLDER / "engine")))
            test.run()
    except Unavailable as reason:
        print(f"\nskipped: {reason}")
        return SKIPPED
    except (Failed, verify.Invalid, subprocess.SubprocessError, urllib.error.URLError, OSError) as failure:
        print(f"\n{failure}\n\nThe compose test FAILED.", file=sys.stderr)
        return 1
    except KeyboardInterrupt as signalled:
        print(f"\nInterrupted ({signalled}).", file=sys.stderr)
        return 130
    print(f"\nThe compose test passed in {time.monotonic() - start:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
