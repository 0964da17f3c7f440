"""A real Prometheus for tests: found, or taken out of Debian's package; run with the shipped rules on a faster clock; asked over HTTP."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request

from engine import Unavailable, debian_file
from services import PATIENCE, Failed

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLS = ROOT / "target" / "tools"
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def find() -> tuple[pathlib.Path, pathlib.Path]:
    """prometheus and promtool: those of PATH, else those of Debian's package, unpacked under target/tools; nothing is installed."""
    found = [shutil.which(name) for name in ("prometheus", "promtool")]
    if all(found):
        return pathlib.Path(found[0]), pathlib.Path(found[1])
    try:
        server = debian_file("prometheus", "usr/bin/prometheus", TOOLS)
    except Unavailable as reason:
        raise Failed(f"prometheus and promtool are needed: install Prometheus 2.42 or newer ({reason})") from reason
    return server, server.with_name("promtool")


def faster(rules: str, factor: int) -> str:
    """The rules on a clock that goes `factor` times as fast: each `for`, range and offset divided, nothing else touched."""

    def divided(match: re.Match) -> str:
        seconds = int(match["count"]) * UNITS[match["unit"]]
        return f"{match['before']}{1000 * seconds // factor}ms{match['after']}"

    length = r"(?P<count>\d+)(?P<unit>[smhd])"
    for before, after in ((r"\bfor: ", r"\s"), (r"\[", r"\]"), (r"\boffset ", r"\b")):
        rules = re.sub(rf"(?P<before>{before}){length}(?P<after>{after})", divided, rules)
    return rules


def filled_in(expression: str, interval: str) -> str:
    """A panel's query as Grafana sends it, with all values of every variable."""
    expression = expression.replace("$__rate_interval", interval)
    expression = re.sub(r"\$\{?\w+\}?", ".*", expression)
    return expression


def has_values(series: list[dict]) -> bool:
    """Whether a query gave at least one number; division by nothing gives none."""
    points = [point for one in series for point in one.get("values", [one.get("value")]) if point]
    return any(point[1] not in ("NaN", "+Inf", "-Inf") for point in points)


class Api:
    """Prometheus's HTTP interface."""

    def __init__(self, url: str):
        self.url = url

    def ask(self, path: str, **parameters: object) -> dict:
        """One question; its data."""
        query = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=PATIENCE) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            said = json.load(error)
        if said.get("status") != "success":
            raise Failed(f"Prometheus: {said.get('error')}: {parameters.get('query', path)}")
        return said["data"]

    def instant(self, query: str) -> list[dict]:
        """The series of a query, now."""
        data = self.ask("query", query=query)
        return data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]

    def over(self, query: str, start: float, end: float, step: float = 1) -> list[dict]:
        """The series of a query over a time."""
        return self.ask("query_range", query=query, start=start, end=end, step=step)["result"]

    def number(self, query: str) -> float:
        """The one number of a query; 0 if there is none."""
        series = self.instant(query)
        return float(series[0]["value"][1]) if series else 0.0

    def alerts(self, state: str) -> list[dict]:
        """The alerts in a state, firing or pending."""
        return [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == state]
