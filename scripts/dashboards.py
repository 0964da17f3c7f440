#!/usr/bin/env python3
"""Makes dashboards/*.json, for Grafana 11, of scripts/panels.py; `check` checks the files, and the rules of Prometheus beside them,
without Grafana: what is checked is what is in the files, whoever wrote it.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys

from panels import DASHBOARDS, Dashboard, Panel

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "dashboards"
RULES = ROOT / "deploy" / "prometheus" / "rules" / "trefoil.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"
METRICS = ROOT / "src" / "telemetry" / "metrics.rs"
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

# What we use of others: Prometheus itself, the process collector of the crate `prometheus`, and prometheus-nats-exporter.
FOREIGN = {
    "up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_start_time_seconds",
    "gnatsd_varz_in_msgs", "gnatsd_varz_out_msgs", "gnatsd_varz_mem", "jetstream_stream_total_bytes",
}
EXPORTER = ("gnatsd_", "jetstream_")
# Words of PromQL that are no names of metrics.
WORDS = set(
    "sum max min avg count by without on ignoring group_left group_right or and unless bool offset rate increase changes abs time vector"
    " histogram_quantile max_over_time min_over_time count_over_time clamp_min clamp_max absent label_replace label_values".split()
)


# --- making them


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict:
    """One panel at its place."""
    defaults: dict = {"unit": panel.unit, "color": {"mode": "palette-classic"}}
    if panel.limits:
        lower_is_worse = panel.limits[0] > panel.limits[1]
        first, second = panel.limits
        steps = (
            [("red", None), ("orange", second), ("green", first)] if lower_is_worse
            else [("green", None), ("orange", first), ("red", second)]
        )
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line", "lineWidth": 1, "fillOpacity": 25 if panel.stack else 8, "showPoints": "never", "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stack else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
        }
        if panel.unit in ("ops", "s", "percentunit", "bytes"):
            defaults["min"] = 0
    if panel.kind == "stat":
        defaults["color"] = {"mode": "thresholds"}
        defaults.setdefault("thresholds", {"mode": "absolute", "steps": [{"color": "blue", "value": None}]})
    options: dict = {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value", "graphMode": "area"},
        "heatmap": {"calculate": False, "yAxis": {"unit": panel.unit}, "cellGap": 1, "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64}},
        "table": {"showHeader": True},
    }[panel.kind]
    targets = []
    for index, (expression, legend) in enumerate(panel.queries):
        target = {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend or "__auto", "range": True}
        if panel.kind == "heatmap":
            target["format"] = "heatmap"
        if panel.kind == "table":
            target |= {"format": "table", "instant": True, "range": False}
        targets.append(target)
    return {
        "id": number, "type": panel.kind, "title": panel.title, "description": panel.description, "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options, "targets": targets,
    }


def dashboard_json(dashboard: Dashboard) -> dict:
    """The whole dashboard: rows below each other, panels from left to right."""
    panels: list[dict] = []
    y = 0
    for row in dashboard.rows:
        panels.append({
            "id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        })
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            panels.append(panel_json(panel, len(panels) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    variables: list[dict] = [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
    for name, query in dashboard.variables:
        variables.append({
            "name": name, "label": name, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name}, "definition": query,
            "refresh": 2, "sort": 1, "includeAll": True, "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
        })
    return {
        "uid": dashboard.uid, "title": dashboard.title, "description": dashboard.description, "tags": ["trefoil"], "schemaVersion": 39,
        "version": 1, "editable": True, "graphTooltip": 1, "refresh": "15s", "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser", "annotations": {"list": []}, "templating": {"list": variables},
        "links": [{"type": "dashboards", "tags": ["trefoil"], "title": "Trefoil", "asDropdown": True, "includeVars": False, "keepTime": True}],
        "panels": panels,
    }


def texts() -> dict[str, str]:
    """Every file by its name."""
    return {f"{d.uid}.json": json.dumps(dashboard_json(d), indent=1, ensure_ascii=False) + "\n" for d in DASHBOARDS}


# --- checking them


def names_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)  # strings
    bare = re.sub(r"\{[^}]*\}", "", bare)  # selectors
    bare = re.sub(r"\[[^\]]*\]", "", bare)  # ranges
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)  # labels
    bare = re.sub(r"\boffset\s+\w+", "", bare)
    return {name for name in re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare) if name not in WORDS}


def known_names(metrics: str, rules: str) -> set[str]:
    """Every name that a query may use: ours with what Prometheus makes of histograms, those of recording rules, and foreign ones."""
    ours = set(re.findall(r'"(trefoil_[a-z_]+)"', metrics))
    timed = set(re.findall(r'\.times?\(\s*"(trefoil_[a-z_]+)"', metrics))
    recorded = set(re.findall(r"- record: (\S+)", rules))
    return (ours - timed) | {f"{name}_{part}" for name in timed for part in ("bucket", "sum", "count")} | recorded | FOREIGN


def panels_of(dashboard: dict) -> list[dict]:
    """All panels but the headlines of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries_of(panel: dict) -> list[str]:
    """The expressions of a panel."""
    return [target["expr"] for target in panel.get("targets", [])]


def check_dashboard(dashboard: dict, known: set[str]) -> list[str]:
    """What is wrong with a dashboard."""
    wrong: list[str] = []
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    if not any(v["name"] == "datasource" and v["type"] == "datasource" for v in dashboard["templating"]["list"]):
        wrong.append("no variable for the datasource")
    ids = [panel["id"] for panel in dashboard["panels"]]
    wrong += [f"two panels have the id {number}" for number in sorted({n for n in ids if ids.count(n) > 1})]
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        title, place = panel.get("title") or "a panel", panel["gridPos"]
        if place["x"] < 0 or place["w"] < 1 or place["h"] < 1 or place["x"] + place["w"] > COLUMNS:
            wrong.append(f"{title}: not within {COLUMNS} columns")
        cells = [(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
        wrong += [f"{title}: lies on {other}" for other in sorted({taken[cell] for cell in cells if cell in taken})]
        taken.update((cell, title) for cell in cells)
    for panel in panels_of(dashboard):
        title = panel.get("title") or "a panel"
        wrong += [f"{title}: no {what}" for what in ("title", "description") if not panel.get(what)]
        if not panel["fieldConfig"]["defaults"].get("unit"):
            wrong.append(f"{title}: no unit")
        if not queries_of(panel):
            wrong.append(f"{title}: no query")
        for place in (panel, *panel.get("targets", [])):
            if place.get("datasource") != SOURCE:
                wrong.append(f"{title}: a datasource that is not the variable's")
        for expression in queries_of(panel):
            wrong += [f"{title}: there is no metric {name}" for name in sorted(names_in(expression) - known)]
            used = {name for name in re.findall(r"\$\{?(\w+)", expression) if not name.startswith("__")}
            wrong += [f"{title}: there is no variable {name}" for name in sorted(used - variables)]
    return wrong


def blocks(rules: str) -> list[dict[str, str]]:
    """The rules of a file that is written as ours is: the name, the expression and each other line of every rule."""
    found = []
    for text in re.split(r"\n\s+- (?=alert:|record:)", rules)[1:]:
        rule = dict(re.findall(r"^\s*(alert|record|for|severity|summary|description|runbook_url): (.+)$", text, re.MULTILINE))
        one, many = re.search(r"expr: (?!\|)(.+)", text), re.search(r"expr: \|\n((?:\s{10,}.+\n)+)", text)
        rule["expr"] = (one or many)[1].strip() if one or many else ""
        found.append(rule)
    return found


def check_rules(rules: str, runbook: str, known: set[str]) -> list[str]:
    """What is wrong with the rules."""
    wrong: list[str] = []
    entries = re.findall(r"^### (\w+)$", runbook, re.MULTILINE)
    found = blocks(rules)
    names = [rule["alert"] for rule in found if "alert" in rule]
    wrong += [f"two alerts {name}" for name in sorted({name for name in names if names.count(name) > 1})]
    for rule in found:
        name = rule.get("alert") or rule.get("record") or "a rule"
        if not rule["expr"]:
            wrong.append(f"{name}: no expression")
        wrong += [f"{name}: there is no metric {metric}" for metric in sorted(names_in(rule["expr"]) - known)]
        if "alert" not in rule:
            continue
        wrong += [f"{name}: no {what}" for what in ("severity", "summary", "description") if what not in rule]
        if rule.get("severity") not in ("critical", "warning"):
            wrong.append(f"{name}: severity is neither critical nor warning")
        if rule.get("runbook_url") != f"docs/runbook.md#{name.lower()}":
            wrong.append(f"{name}: runbook_url leads elsewhere")
        if name not in entries:
            wrong.append(f"{name}: no entry in docs/runbook.md")
    wrong += [f"docs/runbook.md: there is no alert {name}" for name in entries if name.startswith("Trefoil") and name not in names]
    return wrong


def check(folder: pathlib.Path = FOLDER) -> list[str]:
    """Everything that is wrong, with the file in front."""
    wrong: list[str] = []
    rules = RULES.read_text()
    known = known_names(METRICS.read_text(), rules)
    made = texts()
    files = {file.name: file.read_text() for file in sorted(folder.glob("*.json"))}
    wrong += [f"{name}: not what scripts/dashboards.py makes" for name in sorted({*made, *files}) if made.get(name) != files.get(name)]
    loaded = {name: json.loads(text) for name, text in files.items()}
    for what in ("uid", "title"):
        values = [dashboard[what] for dashboard in loaded.values()]
        wrong += [f"two dashboards have the {what} {value}" for value in sorted({v for v in values if values.count(v) > 1})]
    for name, dashboard in loaded.items():
        wrong += [f"{name}: {what}" for what in check_dashboard(dashboard, known)]
    wrong += [f"{RULES.name}: {what}" for what in check_rules(rules, RUNBOOK.read_text(), known)]
    return wrong


def main(arguments: list[str]) -> int:
    """Makes or checks them."""
    if arguments not in ([], ["check"]):
        print("usage: dashboards.py [check]", file=sys.stderr)
        return 2
    if not arguments:
        FOLDER.mkdir(exist_ok=True)
        for name, text in texts().items():
            (FOLDER / name).write_text(text)
    wrong = check()
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
