#!/usr/bin/env python3
"""Draws charts of a run of `make metrics-test` as SVG, with the standard library: what the dashboards' queries gave in it.

`charts.py [charts.json]` draws docs/img/overview.svg and docs/img/outages.svg from the run's target/metrics/charts.json.
"""

from __future__ import annotations

import json
import pathlib
import sys
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = ROOT / "target" / "metrics" / "charts.json"
FOLDER = ROOT / "docs" / "img"
COLOURS = ["#1f5fa8", "#c2571a", "#3c8d40", "#8a4fae", "#b8860b", "#c0392b", "#2a9d8f", "#6b6b6b"]
WIDTH, HEIGHT, GAP, TOP = 440, 210, 30, 46
LABEL = "drawn from a test run, not Grafana"

# Title, unit, and the queries with their legends; a label in braces is filled in.
QUERIES = [
    ("Jobs by operation", "jobs/s", [("sum by (op) (rate(trefoil_jobs_total[10s])) > 0", "{op}")]),
    ("Errors by code", "jobs/s", [('sum by (code) (rate(trefoil_jobs_total{outcome="error"}[10s])) > 0', "{code}")]),
    ("Time of a sign job", "s", [
        ('histogram_quantile(0.50, sum by (le) (rate(trefoil_job_duration_seconds_bucket{op="sign", outcome="ok"}[10s])))', "p50"),
        ('histogram_quantile(0.99, sum by (le) (rate(trefoil_job_duration_seconds_bucket{op="sign", outcome="ok"}[10s])))', "p99"),
    ]),
    ("Jobs in the queue", "jobs", [("max by (lane) (trefoil_queue_jobs)", "{lane}")]),
    ("Calls to the nodes", "calls/s", [("sum by (node) (rate(trefoil_node_requests_total[10s]))", "{node}")]),
    ("Commit of the store, p99", "s", [
        ("histogram_quantile(0.99, sum by (node, le) (rate(trefoil_store_commit_duration_seconds_bucket[10s])))", "{node}"),
    ]),
]


def collect(api, start: float, end: float, outages: list[dict]) -> dict:
    """What is drawn, asked of a run's Prometheus while it is there; times in seconds from the start."""
    charts = []
    for title, unit, queries in QUERIES:
        series = []
        for query, legend in queries:
            for one in api.over(query, start, end):
                points = [[round(float(at) - start, 1), float(value)] for at, value in one["values"] if value not in ("NaN", "+Inf")]
                series.append({"name": legend.format(**one["metric"]), "points": points})
        charts.append({"title": title, "unit": unit, "series": sorted(series, key=lambda s: s["name"])})
    alerts: dict[str, list[float]] = {}
    for one in api.over('ALERTS{alertstate="firing"}', start, end):
        alerts.setdefault(one["metric"]["alertname"], []).extend(round(float(at) - start, 1) for at, _ in one["values"])
    times = [{"what": o["what"], "from": round(o["killed"] - start, 1), "to": round(o["startedAgain"] - start, 1)} for o in outages]
    return {"seconds": round(end - start, 1), "charts": charts, "alerts": alerts, "outages": times}


def pieces(points: list[list[float]], gap: float = 2.5) -> list[list[list[float]]]:
    """Points that follow each other; where some are missing, a line ends."""
    found: list[list[list[float]]] = []
    for point in points:
        if found and point[0] - found[-1][-1][0] <= gap:
            found[-1].append(point)
        else:
            found.append([point])
    return found


def rounded(value: float) -> float:
    """A little more than the value, with one digit that people like."""
    if value <= 0:
        return 1.0
    power = 10.0 ** (len(f"{value:.0f}") - 1)
    while power > value:
        power /= 10
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value)


def text(x: float, y: float, what: str, size: int = 11, anchor: str = "start", colour: str = "#333", weight: str = "normal") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}">{escape(what)}</text>'


def outage_bands(run: dict, x, top: float, bottom: float) -> list[str]:
    """Grey where a process was away."""
    return [
        f'<rect x="{x(o["from"]):.1f}" y="{top:.1f}" width="{x(o["to"]) - x(o["from"]):.1f}" height="{bottom - top:.1f}" fill="#000" opacity="0.07"/>'
        for o in run["outages"]
    ]


def chart(run: dict, one: dict, left: float, top: float) -> list[str]:
    """One chart with its axes and legend."""
    highest = rounded(max((value for series in one["series"] for _, value in series["points"]), default=0))
    x0, x1, y0, y1 = left + 42, left + WIDTH, top + 22, top + HEIGHT - 38

    def x(at: float) -> float:
        return x0 + (x1 - x0) * at / run["seconds"]

    def y(value: float) -> float:
        return y1 - (y1 - y0) * value / highest

    drawn = [text(left, top + 12, f"{one['title']}, {one['unit']}", 13, weight="bold"), *outage_bands(run, x, y0, y1)]
    for part in (0, 0.5, 1):
        at = y(part * highest)
        drawn.append(f'<line x1="{x0:.1f}" x2="{x1:.1f}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ccc" stroke-width="0.6"/>')
        drawn.append(text(x0 - 5, at + 4, f"{part * highest:g}", 10, "end"))
    for at in range(0, int(run["seconds"]) + 1, 30):
        drawn.append(text(x(at), y1 + 13, f"{at} s", 9, "middle", "#777"))
    place = x0
    for index, series in enumerate(one["series"]):
        colour = COLOURS[index % len(COLOURS)]
        for piece in pieces(series["points"]):
            if len(piece) == 1:
                drawn.append(f'<circle cx="{x(piece[0][0]):.1f}" cy="{y(piece[0][1]):.1f}" r="1.2" fill="{colour}"/>')
                continue
            line = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in piece)
            drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        name = series["name"] or "all"
        # Two rows of names are enough.
        row = 0 if place + 6.2 * len(name) < x1 else 1
        if row and place > x0 and not any('data-row="1"' in d for d in drawn):
            place = x0
            drawn.append('<g data-row="1"/>')
        row = 1 if any('data-row="1"' in d for d in drawn) else 0
        drawn.append(text(place, y1 + 26 + 11 * row, f"■ {name}", 10, colour=colour))
        place += 18 + 6.2 * len(name)
    return drawn


def page(title: str, width: float, height: float, drawn: list[str]) -> str:
    """The whole picture."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
        ' font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="#fff"/>'
    )
    lines = [head, text(16, 24, title, 15, weight="bold"), text(width - 16, 24, LABEL, 11, "end", "#a33"), *drawn, "</svg>"]
    return "\n".join(lines) + "\n"


def overview(run: dict) -> str:
    """All charts, two beside each other."""
    drawn: list[str] = []
    for index, one in enumerate(run["charts"]):
        drawn += chart(run, one, GAP / 2 + (index % 2) * (WIDTH + GAP), TOP + (index // 2) * HEIGHT)
    rows = (len(run["charts"]) + 1) // 2
    return page("Trefoil under load, and while each process is killed (grey)", 2 * (WIDTH + GAP), TOP + rows * HEIGHT, drawn)


def outages(run: dict) -> str:
    """What was killed when, and which alerts fired."""
    width, left, row = 2 * (WIDTH + GAP), 170, 24
    first = min((o["from"] for o in run["outages"]), default=0) - 10
    alerts = {name: shown for name, times in run["alerts"].items() if (shown := sorted(at for at in times if at >= first))}
    height = TOP + row * (len(alerts) + 2) + 10

    def x(at: float) -> float:
        return left + (width - left - 20) * (at - first) / (run["seconds"] - first)

    bottom = TOP + row * (len(alerts) + 1)
    drawn = outage_bands(run, x, TOP, bottom)
    drawn += [text(x(o["from"]), TOP + 14, o["what"], 10) for o in run["outages"]]
    for index, (name, times) in enumerate(sorted(alerts.items(), key=lambda item: item[1][0])):
        y = TOP + row * (index + 1)
        drawn.append(text(16, y + 15, name, 12))
        for piece in pieces([[at, 1.0] for at in times]):
            start, end = x(piece[0][0]), x(piece[-1][0] + 1)
            drawn.append(f'<rect x="{start:.1f}" y="{y + 4:.1f}" width="{end - start:.1f}" height="{row - 8}" fill="#c0392b"/>')
    for at in range(int(first // 30 + 1) * 30, int(run["seconds"]) + 1, 30):
        drawn.append(text(x(at), bottom + 16, f"{at} s", 9, "middle", "#777"))
    return page("Processes killed (grey) and alerts that fired (red), on a clock 20 times as fast", width, height, drawn)


def main(arguments: list[str]) -> int:
    """Draws both."""
    file = pathlib.Path(arguments[0]) if arguments else RUN
    if not file.exists():
        print(f"{file} does not exist: run make metrics-test", file=sys.stderr)
        return 1
    run = json.loads(file.read_text())
    FOLDER.mkdir(exist_ok=True)
    for name, drawn in (("overview", overview(run)), ("outages", outages(run))):
        (FOLDER / f"{name}.svg").write_text(drawn)
        print(FOLDER / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
