"""What `make metrics-test` runs and talks to: nats-server, both nodes, two workers and Prometheus, each of which can be killed and started
again, and the command line, whose results are counted."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import dashboards
import demo
from demo import NODES, ROOT, WORKERS, Steps
from prometheus import Api, faster
from services import PATIENCE, Failed, Service

FOLDER = ROOT / "target" / "metrics"
FACTOR = 20  # how much faster the rules' clock goes
INTERVAL = 1  # seconds between two scrapes


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """For each name a port of its own that nobody listens on."""
    with contextlib.ExitStack() as held:
        taken = {name: held.enter_context(socket.socket()) for name in names}
        for listener in taken.values():
            listener.bind(("127.0.0.1", 0))
        return {name: listener.getsockname()[1] for name, listener in taken.items()}


def until(what: str, holds, patience: float = PATIENCE) -> float:
    """Waits until something holds; how long it took, seconds."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > patience:
            raise Failed(f"not within {patience:.0f} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - start


class Deployment(demo.Demo):
    """All processes, on ports of their own."""

    def __init__(self, steps: Steps, prometheus: pathlib.Path):
        super().__init__(steps)
        self.prometheus = prometheus
        self.ports = free_ports(("nats-server", "prometheus", *NODES, *WORKERS))
        self.processes: dict[str, Service] = {}
        self.results: dict[tuple[str, str], int] = {}  # of the jobs so far, by operation and code
        self.lock = threading.Lock()

    def make_identities(self) -> None:
        """Those of the demo, a stranger, and a recipient of backups."""
        super().make_identities()
        for kind, name in (("initiator", "stranger"), ("sealing", "backup")):
            self.public[name] = self.trefoil("identity", "new", "--kind", kind, "--out", FOLDER / f"{name}.seed")["publicKey"]

    def launch(self, name: str) -> None:
        """Starts one process, again after it was killed; the log of its last life is kept beside the new one."""
        if (log := FOLDER / f"{name}.log").exists():
            log.rename(FOLDER / f"{name}.killed-{time.time():.0f}.log")
        listen = {"TREFOIL_CONFIG": FOLDER / f"{name}.toml", "TREFOIL_METRICS_LISTEN": f"127.0.0.1:{self.ports[name]}"}
        if name == "nats-server":
            port = self.ports[name]
            command = [self.nats_server, "--addr", "127.0.0.1", "--port", port, "--jetstream", "--store_dir", FOLDER / "nats"]
            self.processes[name] = self.start(name, command)
        elif name in NODES:
            backup = FOLDER / f"backup-{name}"
            backup.mkdir(exist_ok=True)
            more = {"TREFOIL_BACKUP_DIR": backup, "TREFOIL_BACKUP_RECIPIENTS": self.public["backup"], "TREFOIL_BACKUP_EVERY_MINUTES": 60}
            self.processes[name] = self.start(name, [self.binaries["trefoil-node"]], **listen, **more)
        else:
            self.processes[name] = self.start(name, [self.binaries["trefoil-worker"]], TREFOIL_METRICS_SECONDS=INTERVAL, **listen)

    def await_start(self, name: str) -> None:
        """Waits for a process's own word that it does its work."""
        said = {"nats-server": "Server is ready", "node1": "serving", "node2": "serving"}.get(name, " ready")
        self.processes[name].wait_for(said)

    def kill(self, name: str) -> None:
        """Ends one process at once."""
        service = self.processes.pop(name)
        service.process.kill()
        service.process.wait()
        self.services.remove(service)

    def is_ready(self, name: str) -> bool:
        """What the process says of itself."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/readyz", timeout=PATIENCE) as answer:
                return answer.status == 200
        except urllib.error.URLError:
            return False

    def start_services(self) -> None:
        """Everything, Prometheus last: it sees every counter from its beginning."""
        with self.step("start NATS, both nodes, two workers"):
            self.launch("nats-server")
            self.await_start("nats-server")
            self.url = f"nats://127.0.0.1:{self.ports['nats-server']}"
            self.write_all_settings(self.url)
            for name in (*NODES, *WORKERS):
                self.launch(name)
                self.await_start(name)
            for name in (*NODES, *WORKERS):
                until(f"{name} is ready", lambda name=name: self.is_ready(name))
        with self.step("start Prometheus") as notes:
            (FOLDER / "trefoil.yml").write_text(faster(dashboards.RULES.read_text(), FACTOR))
            nodes = "".join(f"\n      - targets: [127.0.0.1:{self.ports[node]}]\n        labels: {{node: {node}}}" for node in NODES)
            workers = ", ".join(f"127.0.0.1:{self.ports[worker]}" for worker in WORKERS)
            (FOLDER / "prometheus.yml").write_text(
                f"global: {{scrape_interval: {INTERVAL}s, scrape_timeout: {INTERVAL}s, evaluation_interval: {INTERVAL}s}}\n"
                "rule_files: [trefoil.yml]\nscrape_configs:\n"
                f"  - job_name: trefoil-worker\n    static_configs:\n      - targets: [{workers}]\n"
                f"  - job_name: trefoil-node\n    static_configs:{nodes}\n"
            )
            port = self.ports["prometheus"]
            command = [self.prometheus, f"--config.file={FOLDER}/prometheus.yml", f"--storage.tsdb.path={FOLDER}/prometheus"]
            self.start("prometheus", [*command, f"--web.listen-address=127.0.0.1:{port}"]).wait_for("Server is ready")
            self.api = Api(f"http://127.0.0.1:{port}")
            notes.append(self.api.url)
        with self.step("all targets are up"):
            until("Prometheus scrapes everything", lambda: self.api.number("sum(up)") == len(NODES) + len(WORKERS))
            until("every process is connected", lambda: self.api.number("sum(trefoil_nats_connected)") == len(NODES) + len(WORKERS))

    def stop_services(self) -> None:
        """NATS last, whenever it was started."""
        self.services.sort(key=lambda service: service.name != "nats-server")
        super().stop_services()

    def job(self, op: str, *arguments: object, lifetime: int = 60, **environ: object) -> str:
        """Sends one job with the command line, and counts its result: ok, a code, or what it is if there is no result."""
        command = [self.binaries["trefoil"], "--config", FOLDER / "client.toml", "--json", *arguments]
        environ = demo.clean_environment(TREFOIL_JOB_LIFETIME_SECONDS=lifetime, **environ)
        done = subprocess.run([str(part) for part in command], env=environ, capture_output=True, text=True, timeout=4 * PATIENCE)
        outcome = {0: "ok", 1: "error"}.get(done.returncode, "no result")
        if outcome == "error":
            outcome = json.loads(done.stdout)["error"]["code"]
        with self.lock:
            self.results[op, outcome] = self.results.get((op, outcome), 0) + 1
        return outcome

    def make(self, name: str, curve: str, kdf: str, **more: object) -> str:
        """A new key under this name."""
        file = FOLDER / f"{name}.key"
        password = FOLDER / f"password-{'ed25519' if kdf == 'hkdf' else 'secp256k1'}.seed"
        return self.job("generate", "generate", "--curve", curve, "--kdf", kdf, "--out", file, "--password-file", password, **more)

    def sign_with(self, name: str, *arguments: object, password: str = "", **more: object) -> str:
        """A signature by the key of this name, which begins with its curve."""
        file = FOLDER / f"{name}.key"
        kind = "ed25519" if "hkdf" in name else "secp256k1"
        what = ["--digest", "ab" * 32] if name.startswith("secp256k1") else ["--message", "a message"]
        what = list(arguments) or what
        return self.job("sign", "sign", "--key", file, *what, "--password-file", FOLDER / f"password-{password or kind}.seed", **more)
