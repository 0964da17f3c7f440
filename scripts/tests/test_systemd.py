"""The systemd units: they load, and what they are confined to. Skipped where systemd is not installed."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

UNITS = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "systemd"
SERVICES = ("trefoil-node@.service", "trefoil-worker@.service")
# The exposure that `systemd-analyze security` may find, in tenths: 10 is the least that a service with a network has.
EXPOSURE = 15


def settings(name):
    """The lines of a unit as (key, value)."""
    lines = (UNITS / name).read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


class Systemd(unittest.TestCase):
    def analyze(self, *arguments):
        program = shutil.which("systemd-analyze")
        if not program:
            self.skipTest("systemd-analyze is not installed: the units are not checked here")
        return subprocess.run([program, "--no-pager", *arguments], capture_output=True, text=True, check=False)

    def test_the_units_load(self):
        with tempfile.TemporaryDirectory() as folder:
            for unit in UNITS.glob("trefoil*"):
                # The programs are not installed where tests run; everything else is as it is.
                text = re.sub(r"/usr/bin/trefoil-\w+", "/bin/true", unit.read_text(encoding="utf-8"))
                (pathlib.Path(folder) / unit.name).write_text(text, encoding="utf-8")
            units = [str(pathlib.Path(folder) / name) for name in (*SERVICES, "trefoil.target")]
            checked = self.analyze("verify", *units)
            ours = [line for line in checked.stderr.splitlines() if "trefoil" in line]
            self.assertEqual((checked.returncode, ours), (0, []), checked.stderr)
            broken = pathlib.Path(folder) / SERVICES[0]
            broken.write_text(broken.read_text(encoding="utf-8").replace("ProtectSystem=strict", "ProtectSystm=strict"))
            self.assertIn("ProtectSystm", self.analyze("verify", str(broken)).stderr)

    def test_the_services_are_confined(self):
        for name in SERVICES:
            unit = str(UNITS / name)
            found = self.analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)
            self.assertEqual(found.returncode, 0, f"{name}\n{found.stdout}{found.stderr}")
            with tempfile.TemporaryDirectory() as folder:
                open_unit = pathlib.Path(folder) / name
                text = (UNITS / name).read_text(encoding="utf-8")
                open_unit.write_text(re.sub(r"(?m)^(SystemCallFilter|CapabilityBoundingSet)=.*\n", "", text))
                found = self.analyze("security", "--offline=true", f"--threshold={EXPOSURE}", str(open_unit))
                self.assertNotEqual(found.returncode, 0, f"{name} without its confinement")

    def test_every_secret_is_a_credential(self):
        for name in SERVICES:
            pairs = settings(name)
            given = {value.split(":", 1)[0] for key, value in pairs if key.startswith("LoadCredential")}
            read = re.findall(r"_FILE=%d/(\w+)", (UNITS / name).read_text(encoding="utf-8"))
            self.assertEqual(sorted(given), sorted(read), name)
            self.assertGreaterEqual(len(read), 3)
            readme = (UNITS / "README.md").read_text(encoding="utf-8")
            for key, value in pairs:
                if key == "LoadCredential":
                    self.assertIn(value.split("/")[-1].split(".")[-1], readme)

    def test_a_stop_outlasts_the_drain(self):
        for name in SERVICES:
            seconds = [int(value) for key, value in settings(name) if key == "TimeoutStopSec"]
            self.assertEqual(len(seconds), 1)
            # drain_seconds is 30 where nothing else is said, and at most 15 s for NATS come on top (docs/configuration.md).
            self.assertGreater(seconds[0], 30 + 15, name)


if __name__ == "__main__":
    unittest.main()
