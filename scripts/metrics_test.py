#!/usr/bin/env python3
"""Tests metrics, rules and dashboards for real: a nats-server, both nodes and two workers, a Prometheus that scrapes them, and a load of good
and bad jobs. Every query of every dashboard must give something; then each process is killed, and exactly its alert must fire.

The rules are the shipped ones on a clock that goes FACTOR times as fast: scraped and evaluated each second and not every 15, every
`for`, range and offset divided by FACTOR; expressions and thresholds are as they are. Writes target/metrics/summary.json, and what
docs/img is drawn from.
"""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import threading
import time

import alert_tests
import charts
import dashboards
import demo
from demo import CURVES, NODES, ROOT, WORKERS, Steps, require
from metrics_service import FACTOR, FOLDER, Deployment, until
from nats_wire import Connection
from prometheus import filled_in, find, has_values
from services import PATIENCE, Failed

RATE = "15s"  # what Grafana's $__rate_interval is taken for
OUTAGE = 10  # seconds for which each outage lasts after its alert fires: what follows from it has time to show
QUIET = 8  # seconds after each outage in which nothing may fire: longer than any critical alert's `for`
LIFETIME = 4  # seconds of the jobs that are sent while processes are killed

# What this machine cannot show, and why. Keep it short.
NOT_ASSURED = {
    "trefoil_certificate_expiry_timestamp_seconds": "there is no TLS on this machine's loopback",
    **{name: "comes from prometheus-nats-exporter" for name in dashboards.FOREIGN if name.startswith(dashboards.EXPORTER)},
}


class Load:
    """Jobs in the background, one after another in each of a few threads, until told to stop."""

    def __init__(self, tasks: list):
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.repeat, args=(task,), daemon=True) for task in tasks]
        for thread in self.threads:
            thread.start()

    def repeat(self, task) -> None:
        """One task again and again; what becomes of the jobs is the service's, and counted where it is wanted."""
        while not self.stopped.wait(0.2):
            task()

    def stop(self) -> None:
        """Ends it."""
        self.stopped.set()
        for thread in self.threads:
            thread.join(PATIENCE)


class Run(Deployment):
    """One run of the test."""

    def __init__(self, steps: Steps):
        prometheus, self.promtool = find()
        super().__init__(steps, prometheus)
        self.outages: list[dict] = []
        self.summary: dict = {}
        self.cases: subprocess.Popen | None = None

    # --- the rules by themselves

    def check_rules(self) -> None:
        """promtool's word about the shipped files."""
        shipped = ROOT / "deploy" / "prometheus"
        for name, arguments in (
            ("promtool check rules", ["check", "rules", shipped / "rules" / "trefoil.yml"]),
            ("promtool check config", ["check", "config", shipped / "prometheus.yml"]),
        ):
            with self.step(name):
                done = subprocess.run([self.promtool, *arguments], capture_output=True, text=True)
                require(done.returncode == 0, done.stdout + done.stderr)
        # Takes a while: beside what follows.
        files = sorted((shipped / "tests").glob("*.yml"))
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.cases = subprocess.Popen(["nice", self.promtool, "test", "rules", *files], **output)

    def await_cases(self) -> None:
        """The end of the cases that promtool runs."""
        with self.step("promtool test rules, beside all this") as notes:
            said, _ = self.cases.communicate(timeout=4 * PATIENCE)
            require(self.cases.returncode == 0, said)
            notes.append(f"{len(alert_tests.cases())} cases")

    # --- the load

    def all_kinds_of_jobs(self) -> None:
        """Each kind of job, good and bad, some at once."""
        names = [f"{curve}-{kdf}" for curve in CURVES for kdf in ("argon2id", "hkdf")]
        pool = concurrent.futures.ThreadPoolExecutor(6)

        def all_ok(done) -> None:
            outcomes = list(done)
            require(set(outcomes) == {"ok"}, f"not all jobs succeeded: {outcomes}")

        with self.step("generate four keys"):
            all_ok(pool.map(lambda name: self.make(name, *name.split("-")), names))
        with self.step("sign with each, in both lanes and with both methods"):
            all_ok(pool.map(self.sign_with, names * 6))
            all_ok(pool.map(lambda name: self.sign_with(name, TREFOIL_LANE="bulk"), names * 2))
            all_ok([self.sign_with(names[1], "--digest", "cd" * 32, "--method", "mta", "--path", "m/0/7")])
            (FOLDER / "batch.json").write_text(json.dumps([{"digest": f"{n:064x}"} for n in range(4)]))
            all_ok([self.sign_with(names[1], "--batch", FOLDER / "batch.json")])
        with self.step("one key, 24 jobs at once"):
            crowd = concurrent.futures.ThreadPoolExecutor(12)
            all_ok(crowd.map(self.sign_with, [names[0]] * 24))
        with self.step("wrong passwords") as notes:
            wrong = [self.sign_with(name, password="wrong") for name in names[1:] for _ in range(2)]
            require(set(wrong) == {"WRONG_PASSWORD"}, f"the answers are {wrong}")
            notes.append(f"{len(wrong)} times WRONG_PASSWORD")
        with self.step("an initiator that nobody knows"):
            stranger = FOLDER / "stranger.seed"
            codes = set(pool.map(lambda name: self.sign_with(name, TREFOIL_INITIATOR_SEED_FILE=stranger), names))
            require(codes == {"UNKNOWN_INITIATOR"}, f"the answers are {codes}")
        with self.step("the other operations"):
            key, password = FOLDER / f"{names[1]}.key", ["--password-file", FOLDER / "password-ed25519.seed"]
            all_ok([
                self.job("validate", "validate", "--key", key, *password),
                self.job("freeze", "freeze", "--key", key), self.job("unfreeze", "unfreeze", "--key", key),
                self.job("refresh", "refresh", "--key", key, *password),
                self.job("recover", "recover", "--key", FOLDER / f"{names[3]}.key", "--out", FOLDER / "recovered.key", "--kdf", "hkdf",
                         *password, "--authoriser-seed-file", FOLDER / "authoriser.seed"),
            ])
        with self.step("a job that was carried out, published once more"):
            self.replay()
        with self.step("what is no job, and what is no request"):
            connection = Connection(self.url)
            connection.publish(f"mpc.job.sign.{'0' * 32}", b"", b"{}")
            connection.publish("mpc.node.node1.handshake", b"", b"nothing that was agreed on", "_INBOX.test")
            for name in ("trefoil_jobs_refused_total", "trefoil_node_rejects_total"):
                until(f"{name} moves", lambda name=name: self.api.number(f"sum({name})") > 0)
            connection.close()

    def replay(self) -> None:
        """A generation, seen on its way into the queue; its result taken away, and the same bytes published again."""
        before = self.api.number("sum(trefoil_replays_total)")
        seen, asking = Connection(self.url), Connection(self.url)
        seen.subscribe("mpc.job.generate.>")
        require(self.make("replayed", "ed25519", "hkdf") == "ok", "the key was not made")
        subject, _, header, body = seen.next()
        result = f"mpc.result.{self.public['initiator']}.{json.loads(body)['jobId']}"
        asking.request("$JS.API.STREAM.PURGE.MPC_RESULTS", {"filter": result})
        # Without the id by which the server knows a message that is published twice.
        lines = [line for line in header.split(b"\r\n") if not line.lower().startswith(b"nats-msg-id")]
        seen.publish(subject, b"\r\n".join(lines), body)
        until("a node refuses the replay", lambda: self.api.number("sum(trefoil_replays_total)") > before)
        with self.lock:
            self.results["generate", "JOB_ID_REUSED"] = self.results.get(("generate", "JOB_ID_REUSED"), 0) + 1
        for connection in (seen, asking):
            connection.close()

    # --- what is measured

    def check_counts(self) -> None:
        """The workers have counted what the callers have seen."""
        with self.step("the counts are those of the callers") as notes:
            seen = {key: count for key, count in self.results.items() if key[0] in ("sign", "generate")}

            def counted() -> dict[tuple[str, str], int]:
                series = self.api.instant('sum by (op, code) (trefoil_jobs_total{op=~"sign|generate"})')
                values = {(s["metric"]["op"], s["metric"].get("code") or "ok"): int(float(s["value"][1])) for s in series}
                return {key: count for key, count in values.items() if count}

            try:
                until("the counts agree", lambda: counted() == seen, 10)
            except Failed as failure:
                raise Failed(f"the workers counted {counted()}, the callers {seen}") from failure
            notes.append(", ".join(f"{op} {code} {count}" for (op, code), count in sorted(seen.items())))

    def check_queries(self) -> None:
        """Every query of every dashboard and rule gives something."""
        now = time.time()
        failed, empty, asked = [], [], 0
        with self.step("run every query of every dashboard") as notes:
            for file in sorted(dashboards.FOLDER.glob("*.json")):
                for panel in dashboards.panels_of(json.loads(file.read_text())):
                    for expression in dashboards.queries_of(panel):
                        if dashboards.names_in(expression) & set(NOT_ASSURED):
                            continue
                        asked += 1
                        where = f"{file.stem}: {panel['title']}: {expression}"
                        try:
                            if not has_values(self.api.over(filled_in(expression, RATE), self.began, now)):
                                empty.append(where)
                        except Failed as failure:
                            failed.append(f"{where}: {failure}")
            notes.append(f"{asked} queries")
            require(not failed and not empty, "\n".join(["these queries fail:", *failed, "these panels are empty:", *empty]))
        with self.step("run every expression of every rule") as notes:
            rules = dashboards.blocks((FOLDER / "trefoil.yml").read_text())
            for rule in rules:
                self.api.instant(rule["expr"])
            names = {name for rule in rules for name in dashboards.names_in(rule["expr"])} - set(NOT_ASSURED)
            missing = [name for name in sorted(names) if name != "ALERTS" and not self.api.instant(f"count({name})")]
            require(not missing, f"no process has {', '.join(missing)}")
            notes.append(f"{len(rules)} rules")
        self.summary |= {"queries": asked, "rules": len(rules), "notAssured": NOT_ASSURED}

    def check_names(self) -> None:
        """Every metric of the source is shown by some process."""
        with self.step("every metric is shown") as notes:
            known = dashboards.known_names(dashboards.METRICS.read_text(), "")
            ours = {name for name in known if name.startswith("trefoil_") and not name.endswith(("_bucket", "_count"))}
            series = self.api.instant('max by (__name__) ({__name__=~"trefoil_.+"})')
            shown = {one["metric"]["__name__"] for one in series}
            missing = sorted(ours - shown - set(NOT_ASSURED))
            require(not missing, f"no process shows {', '.join(missing)}")
            notes.append(f"{len(ours)} of them")

    def note_still(self) -> None:
        """Which metrics never moved in all this, for whoever wonders."""
        with self.step("which metrics never moved") as notes:
            series = self.api.over('max by (__name__) ({__name__=~"trefoil_.+"})', self.began, time.time())
            still = sorted(one["metric"]["__name__"] for one in series if all(float(value) == 0 for _, value in one["values"]))
            self.summary["stillZero"] = [name for name in still if not name.endswith(("_bucket", "_count"))]
            notes.append(f"{len(self.summary['stillZero'])} of them")

    # --- outages

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.api.alerts("firing")}

    def outage(self, what: str, names: list[str], alert: str) -> None:
        """Kills processes, sees their alert and no other, starts them again, and sees it resolved."""
        with self.step(what) as notes:
            killed = time.time()
            for name in names:
                self.kill(name)
            fired = until(f"{alert} fires", lambda: alert in self.firing())
            for _ in range(OUTAGE):
                require(self.firing() == {alert}, f"these alerts fire: {self.firing()}")
                time.sleep(1)
            back = time.time()
            for name in names:
                self.launch(name)
            for name in names:
                self.await_start(name)
            resolved = until(f"{alert} is resolved", lambda: not self.firing())
            for name in (*NODES, *WORKERS):
                until(f"{name} is ready", lambda name=name: self.is_ready(name))
            for _ in range(QUIET):
                require(not self.firing(), f"these alerts fire after it: {self.firing()}")
                time.sleep(1)
            notes.append(f"{alert} after {fired:.1f} s, resolved {resolved:.1f} s after the start")
            self.outages.append({
                "what": what, "alert": alert, "killed": killed, "startedAgain": back, "firedAfterSeconds": round(fired, 1),
                "resolvedAfterSeconds": round(resolved, 1),
            })

    def check_alerts(self) -> None:
        """Each process in turn, under load."""
        with self.step("no alert before, and none to come"):
            until("no alert fires or is pending", lambda: not self.firing() and not self.api.alerts("pending"))
        begin = time.time()
        sign = [lambda name=name: self.sign_with(name, lifetime=LIFETIME) for name in ("secp256k1-hkdf", "secp256k1-argon2id")]
        numbers = iter(range(1_000_000))
        make = [lambda: self.make(f"more-{next(numbers)}", "ed25519", "hkdf", lifetime=LIFETIME)] * 2
        load = Load([*sign, *make])
        try:
            self.outage("kill node 1", ["node1"], "TrefoilNodeDown")
            self.outage("kill node 2", ["node2"], "TrefoilNodeDown")
            self.outage("kill one worker", ["worker1"], "TrefoilWorkerDown")
            self.outage("kill all workers", list(WORKERS), "TrefoilWorkersDown")
            self.outage("kill NATS", ["nats-server"], "TrefoilNatsDown")
        finally:
            load.stop()
        with self.step("what fired, second by second"):
            fired = self.api.over('ALERTS{alertstate="firing"}', begin, time.time())
            pending = self.api.over('ALERTS{alertstate="pending"}', begin, time.time())
            for one in fired:
                name = one["metric"]["alertname"]
                own = [(o["killed"], o["startedAgain"] + o["resolvedAfterSeconds"] + 2) for o in self.outages if o["alert"] == name]
                outside = [at for at, _ in one["values"] if not any(first <= float(at) <= last for first, last in own)]
                require(not outside, f"{name} fired {len(outside)} s outside of its outage")
            self.summary |= {
                "outages": self.outages, "fired": sorted({one["metric"]["alertname"] for one in fired}),
                "pendingOnly": sorted({one["metric"]["alertname"] for one in pending} - {one["metric"]["alertname"] for one in fired}),
            }

    def run(self) -> None:
        """All of it; the first failure ends it."""
        with self.step("dashboards and rules are in order"):
            wrong = dashboards.check()
            require(not wrong and alert_tests.main(["check"]) == 0, "\n".join(wrong))
        self.check_rules()
        self.start_all()
        self.began = time.time()
        self.all_kinds_of_jobs()
        self.check_counts()
        self.check_queries()
        self.check_names()
        self.await_cases()
        self.check_alerts()
        self.note_still()
        with self.step("write what the charts are drawn of"):
            data = charts.collect(self.api, self.began, time.time(), self.outages)
            (FOLDER / "charts.json").write_text(json.dumps(data))

    def stop_all(self) -> None:
        """Ends what runs, the test of the rules too."""
        if self.cases and self.cases.poll() is None:
            self.cases.kill()
        self.stop_services()


def main(arguments: list[str]) -> int:
    """Runs the test; 0 if everything held."""
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    lock = demo.claim(FOLDER, ".metrics.lock", "Another run is under way in this directory.")
    if lock is None:
        return 1
    demo.FOLDER = FOLDER
    steps, code = Steps(), 1
    try:
        run = Run(steps)
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    start = time.monotonic()
    try:
        code = demo.finished(steps, run.run, run.stop_all)
    finally:
        results = [{"op": op, "code": outcome, "jobs": count} for (op, outcome), count in sorted(run.results.items())]
        summary = {"passed": code == 0, "steps": steps.done, "factor": FACTOR, "results": results, **run.summary}
        (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    result = "Every query gives something, and each outage raises its alert alone." if code == 0 else "The metrics test FAILED."
    print(f"\n{result} {time.monotonic() - start:.1f} s in all; details are in {FOLDER.relative_to(ROOT)}/.")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
