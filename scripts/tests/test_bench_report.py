"""Tests of the report: a made-up run is read as it says, and what was not measured is not claimed."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import bench_report as report

LATENCY = {"p50": 4.0, "p90": 5.0, "p99": 10.0, "p999": 20.0}
MACHINE = {"cpuMsPerJob": {"nats-server": 0.2, "node1": 1.3, "workers": 1.4, "load": 0.1}, "otherCores": 0.0}


def record(series: str, what: str, rate: float, **more) -> dict:
    """A record of a series."""
    return {"series": series, "what": what, "rate": rate, "latencyMs": LATENCY, "machine": MACHINE, "errors": {}, **more}


def run(*series: dict) -> dict:
    """A run with these series."""
    return {
        "commit": "0123456789abcdef", "uncommitted": False, "series": list(series),
        "machine": {
            "cpu": "a processor", "cores": 2, "kernel": "Linux", "syncMs": {"p50": 0.2},
            "loadAverageBefore": "0.1 0.1", "loadAverageAfter": "2 2",
        },
        "settings": {"natsServer": "nats-server 2", "syncInterval": "default", "threads": "1", "quick": False},
    }


def beside_hot_key(number: int, p99: float, rate: float) -> list[dict]:
    """A round of the other keys alone, with a p99 of 10 ms, and beside a flooded key."""
    beside = record("hot", "secp256k1", 240, flood=500, round=number) | {"latencyMs": LATENCY | {"p99": p99}}
    alone = record("hot", "secp256k1", 240, flood=0, round=number)
    return [alone, beside, record("hot-key", "secp256k1", rate, flood=500, round=number)]


class Table(unittest.TestCase):
    def test_each_target_is_judged_by_its_own_series(self):
        memory = {"series": "memory", "samples": [{"kib": [100_000, 50_000]}] * 9 + [{"kib": [100_500, 52_000]}]}
        results = report.Results(run(
            record("workers", "secp256k1", 590, workers=1), record("workers", "secp256k1", 610, workers=2),
            record("in-flight", "ed25519", 1_100, workers=2),
            record("workers", "floor-secp256k1", 6_100, workers=2),
            record("single", "secp256k1", 240), record("single", "floor-secp256k1", 240),
            *beside_hot_key(1, 15.0, 160), *beside_hot_key(2, 30.0, 140), *beside_hot_key(3, 18.0, 150), memory,
            record("batch", "secp256k1", 200, batch=0, itemRate=200), record("batch", "secp256k1", 5, batch=64, itemRate=320),
        ))
        found = {name: (value, report.verdict(value, target, at_most))
                 for name, _, value, _, target, at_most in report.targets(results)}
        self.assertEqual(found["ECDSA, many keys"], (610, "met"))
        self.assertEqual(found["EdDSA, many keys"], (1_100, "missed"))
        self.assertEqual(found["ECDSA, one job at a time, p50"], (4.0, "met"))
        self.assertEqual(found["generate, secp256k1, p50"], (None, "not measured"))
        # The middle one of three rounds.
        self.assertEqual(found["one hot key"], (150, "met"))
        self.assertEqual(found["the others' p99 beside it, over alone"], (1.8, "met"))
        self.assertEqual(found["batch of 64 digests, over single jobs of the key"], (1.6, "met"))
        self.assertEqual(found["growth of a worker's memory"], (4.0, "missed"))
        text = report.table(results)
        self.assertIn("| ECDSA, saturated, jobs/s | 610 | 6,100 | 0.10 |", text)
        self.assertIn("| EdDSA, saturated, jobs/s | 1,100 | - | - |", text)
        self.assertIn("| round 2 | 4.00 | 10.00 | 4.00 | 30.00 | 3.00 | 140 |", text)
        self.assertIn("in all series: 0.", text)

    def test_failed_jobs_are_counted(self):
        text = report.table(report.Results(run(record("single", "ed25519", 1) | {"errors": {"INTERNAL": 3}})))
        self.assertIn("in all series: 3.", text)

    def test_an_empty_run_claims_nothing(self):
        results = report.Results(run())
        self.assertTrue(all(value is None for _, _, value, *_ in report.targets(results)))
        self.assertNotIn("| met |", report.table(results))

    def test_the_command_prints_the_table_of_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "service.json"
            self.assertEqual(self.main("table", str(file))[0], 1)
            file.write_text(json.dumps(run(record("single", "ed25519", 1))))
            code, printed = self.main("table", str(file))
            self.assertEqual((code, printed.startswith("a processor, 2 cores")), (0, True))
        self.assertEqual(self.main()[0], 2)

    def main(self, *arguments: str):
        """Runs the command; its exit code and what it printed."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            code = report.main(list(arguments))
        return code, out.getvalue()


if __name__ == "__main__":
    unittest.main()
