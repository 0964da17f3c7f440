"""Tests of running programs in the background."""

import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import services
from services import Failed, Service


class Services(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.log = pathlib.Path(temporary.name) / "log"

    def run_script(self, script: str) -> Service:
        service = Service("program", ["sh", "-c", script], self.log, dict(os.environ))
        self.addCleanup(service.stop)
        return service

    def test_waits_for_lines_of_both_streams_and_keeps_them_in_the_log(self):
        service = self.run_script("trap 'echo bye; exit 7' TERM; echo first; echo second >&2; while :; do :; done")
        self.assertEqual(service.wait_for("sec"), "second")
        self.assertEqual(service.wait_for("fir"), "first")
        self.assertEqual(service.stop(), 7)
        self.assertEqual(service.wait_for("bye"), "bye")
        self.assertEqual(self.log.read_text(), "first\nsecond\nbye\n")
        self.assertEqual(service.stop(), 7)

    def test_a_program_that_ends_without_its_line_is_reported_with_its_log(self):
        service = self.run_script("echo the reason")
        with self.assertRaisesRegex(Failed, "ended without saying 'ready'(.|\n)*the reason"):
            service.wait_for("ready")

    def test_a_program_that_says_nothing_is_given_up_on(self):
        self.addCleanup(setattr, services, "PATIENCE", services.PATIENCE)
        services.PATIENCE = 0.2
        service = self.run_script("exec sleep 30")
        with self.assertRaisesRegex(Failed, "did not say in time"):
            service.wait_for("ready")

    def test_a_program_that_does_not_end_is_killed(self):
        self.addCleanup(setattr, services, "GRACE", services.GRACE)
        services.GRACE = 0.2
        service = self.run_script("trap '' TERM; echo up; while :; do :; done")
        service.wait_for("up")
        self.assertEqual(service.stop(), -9)


if __name__ == "__main__":
    unittest.main()
