#!/usr/bin/env python3
"""Writes deploy/prometheus/tests/alerts.yml, what `promtool test rules` runs: a service that does well, and one thing after another
that goes wrong with it. Each case says which alerts fire, and no other may: what is compared is the whole list of firing alerts.

`check` says whether the file is what this writes.
"""

from __future__ import annotations

import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules" / "trefoil.yml"
OUTPUT = ROOT / "deploy" / "prometheus" / "tests" / "alerts.yml"
STEP = 30  # seconds between two samples; half as many as in deploy/prometheus/prometheus.yml, which costs half the time
BEGIN = 20 * 60 // STEP  # the sample at which things go wrong
LENGTH = BEGIN + 3600 // STEP  # samples of a case

NODES = {"node1": 'instance="node1:9464", job="trefoil-node", node="node1"', "node2": 'instance="node2:9464", job="trefoil-node", node="node2"'}
WORKERS = {f"worker{n}": f'instance="10.0.0.{n}:9464", job="trefoil-worker"' for n in (1, 2, 3)}
PROCESSES = {**NODES, **WORKERS}
START = BEGIN * STEP / 60  # the same in minutes
DAY = 86_400


def healthy() -> dict[str, tuple[float, float]]:
    """Every series that a rule looks at, each as its first value and what is added with each sample."""
    series: dict[str, tuple[float, float]] = {}
    for labels in PROCESSES.values():
        series[f"up{{{labels}}}"] = (1, 0)
        series[f"trefoil_nats_connected{{{labels}}}"] = (1, 0)
        series[f"process_start_time_seconds{{{labels}}}"] = (1, 0)
        series[f"trefoil_certificate_expiry_timestamp_seconds{{{labels}}}"] = (30 * DAY, 0)
    for labels in NODES.values():
        for name in ("key_locks", "audit_failures", "audit_lost", "store_failures", "replays", "backup_failures"):
            series[f"trefoil_{name}_total{{{labels}}}"] = (0, 0)
        series[f"trefoil_quarantine_keys{{{labels}}}"] = (0, 0)
        # Fresh whenever it is looked at.
        series[f"trefoil_backup_timestamp_seconds{{{labels}}}"] = (0, STEP)
        # Of 20 attempts one is wrong.
        series[f'trefoil_password_attempts_total{{{labels}, outcome="right"}}'] = (0, 19)
        series[f'trefoil_password_attempts_total{{{labels}, outcome="wrong"}}'] = (0, 1)
    for labels in WORKERS.values():
        for op, step in (("sign", 60), ("generate", 3)):
            for code, outcome, part in (("", "ok", 1.0), ("WRONG_PASSWORD", "error", 0.1)):
                series[jobs(labels, op, code, outcome)] = (0, step * part)
            for le, part in (("0.032", 0.9), ("0.5", 1.0), ("1", 1.0), ("4", 1.0), ("64", 1.0), ("+Inf", 1.0)):
                series[duration(labels, op, le)] = (0, step * part)
        for lane in ("interactive", "bulk"):
            series[f'trefoil_queue_oldest_seconds{{{labels}, lane="{lane}"}}'] = (0.5, 0)
        for node in NODES:
            series[f'trefoil_clock_offset_seconds{{{labels}, node="{node}"}}'] = (0.02, 0)
            series[node_up(labels, node)] = (1, 0)
        series[f"trefoil_result_readers{{{labels}}}"] = (1, 0)
        series[f"trefoil_lease_contended_total{{{labels}}}"] = (0, 3)
    return series


def jobs(labels: str, op: str, code: str, outcome: str = "error") -> str:
    """The counter of one kind of job."""
    return f'trefoil_jobs_total{{{labels}, op="{op}", curve="secp256k1", method="default", outcome="{outcome}", code="{code}"}}'


def node_up(labels: str, node: str) -> str:
    """Whether a worker hears from a node."""
    return f'trefoil_node_up{{{labels}, node="{node}"}}'


def duration(labels: str, op: str, le: str) -> str:
    """One bucket of the duration of jobs."""
    return f'trefoil_job_duration_seconds_bucket{{{labels}, op="{op}", curve="secp256k1", method="default", outcome="ok", le="{le}"}}'


class Case:
    """A healthy service, and what goes wrong with it after a while."""

    def __init__(self, name: str):
        self.name = name
        self.series = {name: line(*values, LENGTH) for name, values in healthy().items()}
        self.gone: set[str] = set()  # series of processes that are gone
        self.expected: list[tuple[float, tuple[str, ...]]] = [(START - 1, ())]

    def set(self, series: str, values: str) -> Case:
        """Another course of a series, new or known."""
        self.series[series] = values
        return self

    def from_then(self, series: str, value: float, step: float = 0, minutes: float | None = None) -> Case:
        """Another value from then on, for so many minutes; then what it was before. Of counters the value is left out."""
        first, per_step = healthy().get(series, (0, 0))
        count = LENGTH - BEGIN if minutes is None else int(minutes * 60 / STEP)
        if step:
            value = first + per_step * BEGIN
        text = f"{line(first, per_step, BEGIN)} {line(value, step, count)}"
        if left := LENGTH - BEGIN - count:
            text += f" {line(value + step * count if step else first, per_step, left)}"
        return self.set(series, text)

    def kill(self, process: str, minutes: float | None = None, listed: bool = True) -> Case:
        """Ends a process, for so many minutes: its metrics are gone, and Prometheus says so, if it is still listed."""
        labels = PROCESSES[process]
        count = LENGTH - BEGIN if minutes is None else int(minutes * 60 / STEP)
        left = LENGTH - BEGIN - count
        for name, (first, step) in healthy().items():
            if labels not in name:
                if name.startswith("trefoil_node_up{") and f'node="{process}"' in name and name not in self.gone:
                    self.from_then(name, 0, 0, minutes)
                continue
            self.gone.add(name)
            gone = f"0x{count - 1}" if name.startswith("up{") and listed else f"stale _x{count - 1}"
            # Counters begin anew.
            again = f" {line(first, step, left)}" if left else ""
            self.set(name, f"{line(first, step, BEGIN)} {gone}{again}")
        return self

    def starve(self, ops: tuple[str, ...], minutes: float | None = None) -> Case:
        """All jobs of these operations wait, ask for their keys again and again, and end as NODE_UNAVAILABLE when they expire."""
        for labels in WORKERS.values():
            for op in ops:
                self.from_then(jobs(labels, op, "NODE_UNAVAILABLE"), 0, 60, minutes)
            self.from_then(f'trefoil_queue_oldest_seconds{{{labels}, lane="interactive"}}', 300, 0, minutes)
            if "sign" in ops:
                self.from_then(f"trefoil_lease_contended_total{{{labels}}}", 0, 1_000, minutes)
        return self

    def expect(self, minutes: float, *alerts: str) -> Case:
        """Exactly these alerts fire, so many minutes after it went wrong."""
        self.expected.append((START + minutes, alerts))
        return self


def line(first: float, step: float, count: int) -> str:
    """So many samples, in promtool's notation."""
    return f"{first:g}{step:+g}x{count - 1}"


def down(case: Case, process: str, alert: str, minutes: float) -> Case:
    """Expects one alert while a process is away, after a minute, and none when it is back."""
    case.kill(process, minutes)
    return case.expect(0.75).expect(1.5, alert).expect(minutes - 1, alert).expect(minutes + 0.5).expect(minutes + 5).expect(minutes + 20)


def cases() -> list[Case]:
    """All of them."""
    found = [Case("a healthy service raises nothing").expect(50)]
    # --- each process killed: its alert and no other
    found.append(down(Case("node 1 is killed").starve(("sign", "generate"), 20), "node1", "TrefoilNodeDown", 20))
    found.append(down(Case("node 2 is killed").starve(("generate",), 20), "node2", "TrefoilNodeDown", 20))
    found.append(down(Case("one of the workers is killed and still listed"), "worker2", "TrefoilWorkerDown", 10))
    case = Case("one of the workers is killed and leaves the DNS").kill("worker2", listed=False)
    found.append(case.expect(0.75).expect(1.5, "TrefoilWorkerDown").expect(14, "TrefoilWorkerDown").expect(17))
    case = Case("all workers are killed")
    for worker in WORKERS:
        case.kill(worker, 20)
    found.append(case.expect(0.75).expect(1.5, "TrefoilWorkersDown").expect(19, "TrefoilWorkersDown").expect(21).expect(40))
    case = Case("all workers are killed and leave the DNS")
    for worker in WORKERS:
        case.kill(worker, listed=False)
    found.append(case.expect(0.75).expect(1.5, "TrefoilWorkersDown").expect(50, "TrefoilWorkersDown"))
    case = Case("NATS is killed").starve(("sign", "generate"), 30)
    for labels in PROCESSES.values():
        case.from_then(f"trefoil_nats_connected{{{labels}}}", 0, 0, 30)
    for labels in WORKERS.values():
        case.from_then(f"trefoil_result_readers{{{labels}}}", 0, 0, 30)
        for node in NODES:
            case.from_then(node_up(labels, node), 0, 0, 30)
    found.append(case.expect(0.75).expect(1.5, "TrefoilNatsDown").expect(29, "TrefoilNatsDown").expect(30.5).expect(50))
    # --- one of them cut off, or going round
    case = Case("one worker loses NATS, the others have it")
    case.from_then(f"trefoil_nats_connected{{{WORKERS['worker1']}}}", 0, 0, 10)
    found.append(case.expect(1.5).expect(2.5, "TrefoilDisconnected").expect(11))
    case = Case("node 2 loses NATS, the others have it")
    case.from_then(f"trefoil_nats_connected{{{NODES['node2']}}}", 0, 0, 10)
    for labels in WORKERS.values():
        case.from_then(node_up(labels, "node2"), 0, 0, 10)
    found.append(case.expect(1.5).expect(9, "TrefoilDisconnected").expect(11))
    case = Case("no worker hears from node 2, which does well")
    for labels in WORKERS.values():
        case.from_then(node_up(labels, "node2"), 0, 0, 10)
    found.append(case.expect(1.75).expect(2.5, "TrefoilNodeUnreachable").expect(11))
    case = Case("one worker does not hear from node 2, the others do").from_then(node_up(WORKERS["worker1"], "node2"), 0)
    found.append(case.expect(30))
    case = Case("node 1 is started again and again")
    two = 120 // STEP
    starts = " ".join([line(1, 0, BEGIN), *(line(start, 0, two) for start in (2, 3, 4)), line(5, 0, LENGTH - BEGIN - 3 * two)])
    case.set(f"process_start_time_seconds{{{NODES['node1']}}}", starts)
    found.append(case.expect(1).expect(6.5, "TrefoilRestarting").expect(30))
    case = Case("both nodes are killed: two faults, one alert each").starve(("sign", "generate"))
    found.append(case.kill("node1").kill("node2").expect(1.5, "TrefoilNodeDown", "TrefoilNodeDown"))
    # --- independent faults are seen through an outage
    case = Case("node 1 is away, and workers fail besides").starve(("sign",)).kill("node1")
    for labels in WORKERS.values():
        case.from_then(jobs(labels, "sign", "INTERNAL"), 0, 30)
    found.append(case.expect(5, "TrefoilErrorRatio", "TrefoilNodeDown"))
    case = Case("node 2 is away, and signing fails besides").starve(("sign", "generate")).kill("node2")
    found.append(case.expect(5, "TrefoilErrorRatio", "TrefoilNodeDown"))
    # --- queues, errors, latencies: just below their limits and above
    for lane, below, above in (("interactive", 59, 61), ("bulk", 3_599, 3_601)):
        for value, alerts in ((below, ()), (above, ("TrefoilQueueOld",))):
            case = Case(f"the oldest {lane} job waits for {value} s")
            case.from_then(f'trefoil_queue_oldest_seconds{{{WORKERS["worker1"]}, lane="{lane}"}}', value, 0, 20)
            found.append(case.expect(1.75).expect(3, *alerts).expect(21))
    # A tenth of what there is are WRONG_PASSWORD, the callers' own: 66 jobs a sample and worker before the failures are added.
    for step, alerts in ((3.4, ()), (3.6, ("TrefoilErrorRatio",))):
        case = Case(f"{100 * step / (66 + step):.1f} % of the jobs end as OVERLOADED, all processes run")
        for labels in WORKERS.values():
            case.from_then(jobs(labels, "sign", "OVERLOADED"), 0, step)
        found.append(case.expect(1.5).expect(9, *alerts))
    case = Case("callers make nothing but mistakes")
    for labels in WORKERS.values():
        case.from_then(jobs(labels, "sign", "UNKNOWN_KEY"), 0, 6_000)
    found.append(case.expect(20))
    for part, alerts in ((0.995, ()), (0.98, ("TrefoilLatencyP99",))):
        case = Case(f"{100 * (1 - part):.1f} % of the signatures take longer than a second")
        for labels in WORKERS.values():
            for le in ("0.5", "1"):
                case.from_then(duration(labels, "sign", le), 0, 60 * part)
        found.append(case.expect(5).expect(20, *alerts))
    case = Case("a dead worker's jobs are late, once")
    for le in ("0.5", "1"):
        first, step = healthy()[duration(WORKERS["worker1"], "sign", le)]
        case.set(duration(WORKERS["worker1"], "sign", le), f"{line(first, step, BEGIN)} {line(BEGIN * step - 500, step, LENGTH - BEGIN)}")
    found.append(case.expect(3).expect(6).expect(9))
    for step, alerts in ((100, ()), (150, ("TrefoilLeaseContention",))):
        case = Case(f"{step} attempts at leases of others in {STEP} s for 66 jobs")
        for labels in WORKERS.values():
            case.from_then(f"trefoil_lease_contended_total{{{labels}}}", 0, step)
        found.append(case.expect(9).expect(20, *alerts))
    for readers, alerts in (((0, 0, 0), ("TrefoilResultsNotConsumed",)), ((0, 1, 0), ())):
        case = Case(f"{sum(readers)} consumers of the results")
        for value, labels in zip(readers, WORKERS.values()):
            case.from_then(f"trefoil_result_readers{{{labels}}}", value)
        found.append(case.expect(15).expect(21, *alerts))
    # --- the nodes
    node1 = NODES["node1"]
    case = Case("a key is locked at node 1")
    found.append(case.from_then(f"trefoil_key_locks_total{{{node1}}}", 1).expect(0.5, "TrefoilKeyLocked").expect(59, "TrefoilKeyLocked"))
    case = Case("a worker locks a key, and has not counted any before")
    locks = f'trefoil_key_locks_total{{{WORKERS["worker1"]}, node="node1"}}'
    found.append(case.set(locks, f"_x{BEGIN} 1x{LENGTH - BEGIN}").expect(0.5, "TrefoilKeyLocked").expect(50, "TrefoilKeyLocked"))
    for name, alert in (("audit", "TrefoilAuditFailing"), ("store", "TrefoilStoreFailing")):
        case = Case(f"a write of the {name} fails").from_then(f"trefoil_{name}_failures_total{{{node1}}}", 1)
        found.append(case.expect(0.5, alert))
    case = Case("a write of the audit fails, and the node ends with it")
    case.set(f"trefoil_audit_failures_total{{{node1}}}", f"0x{BEGIN - 1} 1x1 stale")
    found.append(case.expect(5, "TrefoilAuditFailing").expect(17))
    case = Case("the audit log's queue is full for a moment").from_then(f"trefoil_audit_lost_total{{{node1}}}", 3)
    found.append(case.expect(0.5, "TrefoilAuditEntriesLost").expect(20))
    for value, alerts in ((-4.9, ()), (-5.1, ("TrefoilClockSkew",)), (5.1, ("TrefoilClockSkew",))):
        case = Case(f"node 1's clock is {value} s off")
        case.from_then(f'trefoil_clock_offset_seconds{{{WORKERS["worker1"]}, node="node1"}}', value)
        found.append(case.expect(4.5).expect(6, *alerts))
    for days, alerts in ((14.1, ()), (13.9, ("TrefoilCertificateExpiry",))):
        case = Case(f"a certificate ends in {days} days")
        case.from_then(f"trefoil_certificate_expiry_timestamp_seconds{{{node1}}}", days * DAY + 60 * (START + 20))
        found.append(case.expect(14).expect(20, *alerts))
    for hours, alerts in ((25.6, ()), (26.1, ("TrefoilBackupOld",))):
        case = Case(f"the newest backup is {hours} hours old, and then 20 minutes more")
        case.from_then(f"trefoil_backup_timestamp_seconds{{{node1}}}", 60 * START - hours * 3_600)
        found.append(case.expect(20, *alerts))
    case = Case("a backup fails").from_then(f"trefoil_backup_failures_total{{{node1}}}", 1)
    found.append(case.expect(14).expect(16, "TrefoilBackupOld"))
    case = Case("a restored node's keys stay in doubt").from_then(f"trefoil_quarantine_keys{{{node1}}}", 3, 0, 59)
    found.append(case.expect(30).expect(59.75))
    case = Case("a restored node's keys stay in doubt for longer").set(f"trefoil_quarantine_keys{{{node1}}}", line(3, 0, LENGTH))
    found.append(case.expect(59 - START).expect(61 - START, "TrefoilQuarantine"))
    # --- security
    attempts = f'trefoil_password_attempts_total{{{node1}, outcome="wrong"}}'
    for step, alerts in ((4, ()), (6, ("TrefoilPasswordGuessing",))):
        found.append(Case(f"{step} wrong passwords beside 19 right ones").from_then(attempts, 0, step).expect(20, *alerts))
    for count, alerts in ((18, ()), (24, ("TrefoilReplays",))):
        case = Case(f"{count} replays in 15 minutes").from_then(f"trefoil_replays_total{{{node1}}}", 0, count * STEP / 900)
        found.append(case.expect(20, *alerts))
    return found


def write(found: list[Case]) -> str:
    """The file."""
    lines = [
        "# What scripts/alert_tests.py writes; the cases are there.",
        "rule_files:",
        "  - ../rules/trefoil.yml",
        f"evaluation_interval: {STEP}s",
        "tests:",
    ]
    known: dict[tuple[str, str], str] = {}
    for case in found:
        lines += [f"  - name: {case.name!r}", f"    interval: {STEP}s", "    input_series: ["]
        same = []
        for series, values in case.series.items():
            if (series, values) in known:
                same.append(f"*{known[series, values]}")
                continue
            known[series, values] = f"s{len(known)}"
            lines += [f"      &{known[series, values]} {{series: '{series}', values: '{values}'}},"]
        lines += [*textwrap.wrap(", ".join(same), 140, initial_indent=" " * 6, subsequent_indent=" " * 6), "    ]"]
        lines += ["    promql_expr_test:"]
        for minutes, alerts in case.expected:
            lines += ['      - expr: count by (alertname) (ALERTS{alertstate="firing"})', f"        eval_time: {minutes * 60:.0f}s"]
            samples = [f"{{labels: '{{alertname=\"{name}\"}}', value: {alerts.count(name)}}}" for name in sorted(set(alerts))]
            lines += [f"        exp_samples: [{', '.join(samples)}]"]
    return "\n".join(lines) + "\n"


def unraised(found: list[Case], rules: str) -> list[str]:
    """Alerts that no case raises."""
    raised = {alert for case in found for _, alerts in case.expected for alert in alerts}
    return sorted(set(re.findall(r"- alert: (\w+)", rules)) ^ raised)


def main(arguments: list[str]) -> int:
    """Writes the file, or compares it."""
    found = cases()
    if missing := unraised(found, RULES.read_text()):
        print(f"alerts without a case that raises them, or without a rule: {', '.join(missing)}", file=sys.stderr)
        return 1
    text = write(found)
    if arguments == ["check"]:
        if not OUTPUT.exists() or OUTPUT.read_text() != text:
            print(f"{OUTPUT.relative_to(ROOT)} is not what scripts/alert_tests.py writes", file=sys.stderr)
            return 1
        return 0
    OUTPUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
