#!/usr/bin/env python3
"""Reads what `make bench-service` wrote: `table` prints it as Markdown, `plots` draws it as SVG and PNG.

The table needs Python alone. The plots need matplotlib, which is used where it is installed and else put into an environment
of its own under target/tools, by pip: it brings its fonts, draws both formats, and costs the build of the service nothing,
which a drawing crate among the Rust dependencies would.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import venv
from statistics import median

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "target" / "bench" / "service.json"
PLOTTER = ROOT / "target" / "tools" / "plotter"
MATPLOTLIB = "matplotlib>=3.9,<3.11"
NAMES = {
    "secp256k1": "ECDSA",
    "ed25519": "EdDSA",
    "floor-secp256k1": "floor of ECDSA",
    "floor-ed25519": "floor of EdDSA",
}
COLOURS = {"secp256k1": "#1f5fa8", "ed25519": "#c2571a", "floor-secp256k1": "#8fb3d9", "floor-ed25519": "#e3b08f"}


class Results:
    """The series of one run."""

    def __init__(self, results: dict):
        self.all = results
        self.series = results["series"]

    def of(self, series: str, what: str | None = None, **settings) -> list[dict]:
        """The records of a series, of one kind of job, with these settings."""
        wanted = {**({"what": what} if what else {}), **settings}
        return [
            record for record in self.series
            if record["series"] == series and all(record.get(name) == value for name, value in wanted.items())
        ]

    def best(self, what: str) -> dict | None:
        """The saturated series with the highest rate."""
        found = self.of("workers", what) + self.of("in-flight", what)
        return max(found, key=lambda record: record["rate"], default=None)

    def latency(self, series: str, what: str, at: str) -> float | None:
        """A percentile of the first record of a series, milliseconds."""
        found = self.of(series, what)
        return found[0]["latencyMs"][at] if found else None


def shown(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for one that was not measured."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(part: float | None, whole: float | None) -> float | None:
    """One number over another, if both were measured."""
    return part / whole if part is not None and whole else None


def growth(results: Results) -> float | None:
    """Growth of the worst worker's memory after the first fifth of the jobs, percent."""
    for record in results.of("memory"):
        samples = record["samples"]
        first, last = samples[len(samples) // 5]["kib"], samples[-1]["kib"]
        return max(100 * (after - before) / before for before, after in zip(first, last))
    return None


def verdict(value: float | None, target: float, at_most: bool) -> str:
    """Whether a target is met."""
    if value is None:
        return "not measured"
    return "met" if (value <= target if at_most else value >= target) else "missed"


def beside_hot_key(results: Results) -> list[dict]:
    """The other keys alone and beside a flooded one, round by round: p50 and p99 in ms, and the flooded key's jobs a second."""
    rounds = []
    for alone in results.of("hot", flood=0):
        beside, hot = (next((r for r in results.of(series) if r["flood"] and r["round"] == alone["round"])) for series in ("hot", "hot-key"))
        latencies = [r["latencyMs"][name] for r in (alone, beside) for name in ("p50", "p99")]
        rounds.append({"latencies": latencies, "raised": latencies[3] / latencies[1], "rate": hot["rate"]})
    return rounds


def targets(results: Results) -> list[tuple[str, str, float | None, int, float, bool]]:
    """What is promised: name, unit, measured value, its digits, target, and whether the target is an upper bound."""
    rate = {what: (results.best(what) or {}).get("rate") for what in NAMES}
    rounds = beside_hot_key(results)
    hot, raised = (median([r[name] for r in rounds]) if rounds else None for name in ("rate", "raised"))
    batch, single = (next((r["itemRate"] for r in results.of("batch", "secp256k1", batch=n)), None) for n in (64, 0))
    return [
        ("ECDSA, many keys", "jobs/s", rate["secp256k1"], 0, 600, False),
        ("EdDSA, many keys", "jobs/s", rate["ed25519"], 0, 1200, False),
        ("ECDSA, one job at a time, p50", "ms", results.latency("single", "secp256k1", "p50"), 2, 5, True),
        ("generate, secp256k1, p50", "ms", results.latency("generate", "secp256k1", "p50"), 1, 150, True),
        ("one hot key", "jobs/s", hot, 0, 150, False),
        ("the others' p99 beside it, over alone", "x", raised, 2, 2, True),
        ("batch of 64 digests, over single jobs of the key", "x", ratio(batch, single), 2, 1.5, False),
        ("growth of a worker's memory", "%", growth(results), 2, 1, True),
    ]


def table(results: Results) -> str:
    """The run as Markdown."""
    head, lines = results.all, []
    machine, settings = head["machine"], head["settings"]
    lines += [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; {settings['natsServer']}, sync_interval"
        f" {settings['syncInterval']}; threads a process: {settings.get('threads', 'cores')}; a durable write"
        f" {machine['syncMs']['p50']:.2f} ms (p50); load average before and after"
        f" {machine['loadAverageBefore'].split()[0]} and {machine['loadAverageAfter'].split()[0]}; commit {head['commit'][:12]}"
        f"{' and changes' if head['uncommitted'] else ''}{'; a QUICK run' if settings['quick'] else ''}.",
        "",
        "| | target | measured | |",
        "|---|---|---|---|",
    ]
    for name, unit, value, digits, target, at_most in targets(results):
        bound = "<=" if at_most else ">="
        verdict_ = verdict(value, target, at_most)
        lines.append(f"| {name} | {bound} {target:,} {unit} | {shown(value, digits)} {unit} | {verdict_} |")
    lines += ["", "| against the floor | service | floor | ratio |", "|---|---|---|---|"]
    for what in ("secp256k1", "ed25519"):
        name, floor = NAMES[what], f"floor-{what}"
        ours, theirs = (results.latency("single", kind, "p50") for kind in (what, floor))
        lines.append(f"| {name}, one at a time, p50, ms | {shown(ours)} | {shown(theirs)} | {shown(ratio(ours, theirs))} |")
        ours, theirs = ((results.best(kind) or {}).get("rate") for kind in (what, floor))
        lines.append(f"| {name}, saturated, jobs/s | {shown(ours, 0)} | {shown(theirs, 0)} | {shown(ratio(ours, theirs))} |")
    lines += ["", "| jobs/s, 64 in flight | 1 worker | 2 workers | 4 workers |", "|---|---|---|---|"]
    for what, name in NAMES.items():
        cells = [next((r["rate"] for r in results.of("workers", what, workers=count)), None) for count in (1, 2, 4)]
        lines.append(f"| {name} | {' | '.join(shown(cell, 0) for cell in cells)} |")
    if rounds := beside_hot_key(results):
        lines += ["", "| the other keys, ms | p50 alone | p99 | p50 beside 500 jobs of one key | p99 | p99 over alone | that key, jobs/s |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for number, r in enumerate(rounds, 1):
            cells = [shown(value) for value in [*r["latencies"], r["raised"]]]
            lines.append(f"| round {number} | {' | '.join(cells)} | {shown(r['rate'], 0)} |")
    lines += ["", "| offered, part of the saturated rate | jobs/s | p50, ms | p99, ms | p99.9, ms |", "|---|---|---|---|---|"]
    for record in results.of("open"):
        at = record["latencyMs"]
        name = f"{NAMES[record['what']]}, {100 * record['ofSaturated']:.0f} %"
        lines.append(
            f"| {name} | {record['offered']:,.0f} | {shown(at['p50'])} | {shown(at['p99'])} | {shown(at['p999'])} |"
        )
    lines += ["", "| signatures/s of one key | single jobs | batches of 8 | 32 | 64 | 128 |", "|---|---|---|---|---|---|"]
    for what in ("secp256k1", "ed25519"):
        cells = [next((r["itemRate"] for r in results.of("batch", what, batch=n)), None) for n in (0, 8, 32, 64, 128)]
        lines.append(f"| {NAMES[what]} | {' | '.join(shown(cell, 0) for cell in cells)} |")
    lines += ["", "| CPU of a job, ms | nats-server | node 1 | workers | load | others' cores |", "|---|---|---|---|---|---|"]
    for what, name in NAMES.items():
        best = results.best(what)
        if best:
            cpu = best["machine"]["cpuMsPerJob"]
            cells = [shown(cpu[process]) for process in ("nats-server", "node1", "workers", "load")]
            lines.append(f"| {name} | {' | '.join(cells)} | {shown(best['machine']['otherCores'])} |")
    failed = sum(sum(record.get("errors", {}).values()) for record in results.series)
    lines += ["", f"Jobs without a valid result, in all series: {failed}."]
    return "\n".join(lines)


def draw(results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws latency against load and throughput against workers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []

    def save(figure, name: str) -> None:
        for suffix in ("svg", "png"):
            file = folder / f"{name}.{suffix}"
            figure.savefig(file, dpi=150, bbox_inches="tight")
            written.append(file)
        plt.close(figure)

    plain = matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}")
    figure, axes = plt.subplots(figsize=(8, 5))
    for what, name in NAMES.items():
        records = sorted(results.of("open", what), key=lambda record: record["offered"])
        if records:
            load = [record["offered"] for record in records]
            for at, style in (("p50", "-"), ("p99", "--")):
                values = [record["latencyMs"][at] for record in records]
                axes.plot(load, values, style, marker="o", markersize=4, color=COLOURS[what], label=f"{name}, {at}")
    axes.set(xlabel="offered load, jobs/s", ylabel="latency from the intended start, ms", xscale="log", yscale="log")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    axes.set_title("Latency against load")
    save(figure, "latency-against-load")

    figure, axes = plt.subplots(figsize=(8, 5))
    for what, name in NAMES.items():
        records = sorted(results.of("workers", what), key=lambda record: record["workers"])
        if records:
            axes.plot(
                [record["workers"] for record in records], [record["rate"] for record in records],
                "--" if what.startswith("floor") else "-", marker="o", color=COLOURS[what], label=name,
            )
    for rate, what in ((600, "secp256k1"), (1200, "ed25519")):
        axes.axhline(rate, color=COLOURS[what], linewidth=0.8, linestyle=":")
    axes.set(xlabel="workers", ylabel="jobs/s", yscale="log", xticks=[1, 2, 4])
    axes.yaxis.set_major_formatter(plain)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    axes.set_title("Throughput against workers (dotted: the targets)")
    save(figure, "throughput-against-workers")
    return written


def with_matplotlib() -> str:
    """An interpreter that has matplotlib: this one, or that of an environment made for it."""
    try:
        import matplotlib  # noqa: F401

        return sys.executable
    except ImportError:
        pass
    python = PLOTTER / "bin" / "python"
    if subprocess.run([python, "-c", "import matplotlib"], capture_output=True).returncode if python.exists() else True:
        print(f"fetching {MATPLOTLIB} for the plots", flush=True)
        venv.create(PLOTTER, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", MATPLOTLIB], check=True)
    return str(python)


def main(arguments: list[str]) -> int:
    """`table` or `plots`, and the file if it is another one."""
    if not arguments or arguments[0] not in ("table", "plots", "draw"):
        print("usage: bench_report.py table|plots [service.json]", file=sys.stderr)
        return 2
    file = pathlib.Path(arguments[1]) if len(arguments) > 1 else RESULTS
    if not file.exists():
        print(f"{file} does not exist: run make bench-service", file=sys.stderr)
        return 1
    if arguments[0] == "plots":
        try:
            return subprocess.run([with_matplotlib(), __file__, "draw", str(file)]).returncode
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"no plots, but the figures are in {file}: matplotlib is not to be had ({error})", file=sys.stderr)
            return 1
    results = Results(json.loads(file.read_text()))
    if arguments[0] == "table":
        print(table(results))
    else:
        for path in draw(results, file.parent):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
