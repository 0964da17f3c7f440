"""Tests of the dashboards and rules: what is there is in order, and each thing that can be out of order is found."""

import copy
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import alert_tests
import dashboards

KNOWN = {"up", "trefoil_jobs_total", "trefoil_key_locks_total"}


class Dashboards(unittest.TestCase):
    def setUp(self):
        # Two rows; in the first panel of the first one most is tried out.
        self.dashboard = copy.deepcopy(json.loads(dashboards.texts()["trefoil-overview.json"]))
        self.panels = dashboards.panels_of(self.dashboard)

    def wrong(self) -> list[str]:
        known = dashboards.known_names(dashboards.METRICS.read_text(), dashboards.RULES.read_text())
        return dashboards.check_dashboard(self.dashboard, known)

    def test_what_is_there_is_in_order(self):
        self.assertEqual(dashboards.check(), [])

    def test_what_is_out_of_order_is_found(self):
        def change(where: str, change) -> None:
            with self.subTest(where):
                self.setUp()
                change()
                self.assertTrue(any(where in line for line in self.wrong()), self.wrong())

        change("two panels have the id", lambda: self.panels[0].update(id=self.panels[1]["id"]))
        change("lies on", lambda: self.panels[0]["gridPos"].update(h=5))
        change("lies on", lambda: self.panels[0]["gridPos"].update(w=5))
        change("not within 24 columns", lambda: self.panels[5]["gridPos"].update(x=21))
        change("no variable for the datasource", lambda: self.dashboard["templating"]["list"].pop(0))
        change("a datasource that is not the variable's", lambda: self.panels[0].update(datasource={"uid": "prometheus"}))
        change("a datasource that is not the variable's", lambda: self.panels[0]["targets"][0].pop("datasource"))
        change("no unit", lambda: self.panels[0]["fieldConfig"]["defaults"].pop("unit"))
        change("no title", lambda: self.panels[0].update(title=""))
        change("no description", lambda: self.panels[0].pop("description"))
        change("no query", lambda: self.panels[0].update(targets=[]))
        change("there is no metric trefoil_job_total", lambda: self.panels[0]["targets"][0].update(expr="trefoil_job_total"))
        change("there is no variable worker", lambda: self.panels[0]["targets"][0].update(expr='up{instance="$worker"}'))

    def test_a_file_that_was_changed_or_is_too_many_is_found(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for file, text in dashboards.texts().items():
                (folder / file).write_text(text)
            self.assertEqual(dashboards.check(folder), [])
            (folder / "trefoil-copy.json").write_text(dashboards.texts()["trefoil-overview.json"])
            wrong = "\n".join(dashboards.check(folder))
            self.assertIn("trefoil-copy.json: not what", wrong)
            self.assertIn("two dashboards have the uid trefoil-overview", wrong)


class Names(unittest.TestCase):
    def test_the_names_of_an_expression_are_found(self):
        found = dashboards.names_in(
            'sum by (op, le) (rate(a_bucket{op=~"sum(b)", code!="x}"}[5m])) / on (node) group_left (c) max_over_time(d:e[$__rate_interval])'
            ' unless f offset 1h > 5 or vector(0)'
        )
        self.assertEqual(found, {"a_bucket", "d:e", "f"})

    def test_a_histogram_is_known_by_its_series(self):
        source = 'set.times("trefoil_a_seconds", "Help.", STEP, &["op"]), set\n.time(\n"trefoil_b_seconds", set.gauge("trefoil_c", "Help.")'
        known = dashboards.known_names(source, "  - record: trefoil:d")
        self.assertTrue({"trefoil_a_seconds_bucket", "trefoil_b_seconds_count", "trefoil_c", "trefoil:d", "up"} <= known)
        self.assertFalse({"trefoil_a_seconds", "trefoil_b_seconds", "trefoil_c_count"} & known)


class Rules(unittest.TestCase):
    RULES = """groups:
  - name: a
    rules:
      - record: trefoil:locks
        expr: sum(trefoil_key_locks_total)

      - alert: TrefoilLocked
        expr: |
          trefoil:locks
          > 0
        labels:
          severity: critical
        annotations:
          summary: "s"
          description: "d"
          runbook_url: docs/runbook.md#trefoillocked
"""
    RUNBOOK = "## Alerts\n\n### TrefoilLocked\n"

    def wrong(self, old: str = "", new: str = "", runbook: str = RUNBOOK) -> str:
        return "\n".join(dashboards.check_rules(self.RULES.replace(old, new), runbook, KNOWN | {"trefoil:locks"}))

    def test_what_is_out_of_order_is_found(self):
        self.assertEqual(self.wrong(), "")
        self.assertIn("there is no metric trefoil_key_locks", self.wrong("_locks_total", "_locks"))
        self.assertIn("there is no metric trefoil:keys", self.wrong("          trefoil:locks", "          trefoil:keys"))
        self.assertIn("severity is neither", self.wrong("critical", "page"))
        self.assertIn("no summary", self.wrong("          summary", "          text"))
        self.assertIn("runbook_url leads elsewhere", self.wrong("#trefoillocked", "#locked"))
        self.assertIn("no entry in docs/runbook.md", self.wrong(runbook="## Alerts\n"))
        self.assertIn("there is no alert TrefoilOther", self.wrong(runbook=self.RUNBOOK + "### TrefoilOther\n"))

    def test_every_rule_is_seen(self):
        text = dashboards.RULES.read_text()
        self.assertEqual(len(dashboards.blocks(text)), text.count("- alert:") + text.count("- record:"))
        self.assertTrue(all(rule["expr"] for rule in dashboards.blocks(text)))


class Cases(unittest.TestCase):
    def test_the_cases_of_the_alerts_are_what_is_written_down(self):
        self.assertEqual(alert_tests.main(["check"]), 0)

    def test_an_alert_that_no_case_raises_is_found(self):
        found = alert_tests.cases()
        self.assertEqual(alert_tests.unraised(found, alert_tests.RULES.read_text()), [])
        self.assertEqual(alert_tests.unraised(found, alert_tests.RULES.read_text() + "- alert: TrefoilNew\n"), ["TrefoilNew"])
        self.assertIn("TrefoilReplays", alert_tests.unraised(found[:1], alert_tests.RULES.read_text()))


if __name__ == "__main__":
    unittest.main()
