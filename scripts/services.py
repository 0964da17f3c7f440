"""Runs programs in the background, each with a log of its own; waits for what they print, and always ends them."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import threading
import time

PATIENCE = 60  # seconds that anything may take before we give up on it
GRACE = 15  # seconds that a program has to end by itself


class Failed(Exception):
    """A program ended, or did not say in time what it was waited for; the message holds the end of its log."""


class Service:
    """A running program, whose output goes line by line to a file and can be waited on."""

    def __init__(self, name: str, command: list, log: pathlib.Path, environ: dict[str, str]):
        self.name = name
        self.log = log
        self.lines: list[str] = []
        self.open = True
        self.changed = threading.Condition()
        # A session of its own: Ctrl-C then reaches this process only, which ends the others in the right order.
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
        self.follower = threading.Thread(target=self.follow, daemon=True)
        self.follower.start()

    def follow(self) -> None:
        """Copies the output to the log and to the lines that are waited on, until it closes."""
        with open(self.log, "wb") as file, self.process.stdout as output:
            for line in output:
                file.write(line)
                file.flush()
                with self.changed:
                    self.lines.append(line.decode(errors="replace").rstrip())
                    self.changed.notify_all()
        with self.changed:
            self.open = False
            self.changed.notify_all()

    def wait_for(self, needle: str) -> str:
        """The first line that contains `needle`, once it was printed."""
        deadline = time.monotonic() + PATIENCE
        with self.changed:
            while True:
                found = next((line for line in self.lines if needle in line), None)
                if found is not None:
                    return found
                left = deadline - time.monotonic()
                if not self.open or left <= 0:
                    why = "did not say in time" if self.open else "ended without saying"
                    end = "\n".join("    " + line for line in self.lines[-15:])
                    raise Failed(f"{self.name} {why} {needle!r}; its log ({self.log}) ends with\n{end}")
                self.changed.wait(left)

    def stop(self) -> int:
        """Asks the program to end, waits for it, kills it when it does not; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.follower.join(GRACE)
        return self.process.wait()
