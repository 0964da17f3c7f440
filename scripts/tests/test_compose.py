"""Tests of what the compose test makes its images of, and of the files it runs: what is pinned stays pinned, and fits together."""

import io
import pathlib
import re
import sys
import tarfile
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import compose_test
import engine

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


class Files(unittest.TestCase):
    def test_what_is_mounted_is_there(self):
        mounted = re.findall(r"- \./(\S+?):", COMPOSE)
        self.assertGreater(len(mounted), 2)
        for path in mounted:
            with self.subTest(path=path):
                # An engine makes an empty directory of a path that is not there, and says nothing.
                self.assertTrue((ROOT / path).exists())

    def test_every_image_is_pinned_to_a_version(self):
        images = re.findall(r"image: (\S+)", COMPOSE) + [compose_test.base_image(DOCKERFILE)]
        self.assertGreaterEqual(len(images), 6)
        for image in images:
            self.assertRegex(image, r":v?\d+\.\d+\.\d+", image)

    def test_the_image_has_the_version_and_the_compiler_of_the_project(self):
        manifest = (ROOT / "Cargo.toml").read_text()
        version = re.search(r'^version = "(.+)"$', manifest, flags=re.MULTILINE).group(1)
        self.assertIn(f"image: trefoil:{version}\n", COMPOSE)
        self.assertIn(f"ARG VERSION={version}\n", DOCKERFILE)
        compiler = re.search(r'^rust-version = "(.+)"$', manifest, flags=re.MULTILINE).group(1)
        self.assertTrue(compose_test.base_image(DOCKERFILE).startswith(f"rust:{compiler}"))

    def test_the_nats_server_is_the_one_that_the_tests_run_on(self):
        pinned = re.search(r'version="(.+)"', (ROOT / "scripts" / "nats-server").read_text()).group(1)
        self.assertEqual(compose_test.image_names(COMPOSE)["nats"], f"nats:{pinned}-alpine")

    def test_ports_are_open_on_this_machine_only(self):
        ports = re.findall(r"ports: \[(.*)\]", COMPOSE)
        self.assertEqual(len(ports), COMPOSE.count("ports:"))
        self.assertTrue(all(port.startswith('"127.0.0.1:') for port in ports), ports)
        # Whatever scales has no name and no port of its own.
        self.assertNotIn("container_name", COMPOSE)
        self.assertNotIn("ports:", COMPOSE.split("\n  worker:\n")[1].split("\n  cli:\n")[0])

    def test_what_the_image_is_built_from_is_sent_to_the_engine(self):
        sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        self.assertTrue(all((ROOT / path).exists() for path in sent), sent)
        for needed in ("Cargo.lock", "src", "protocol", "deploy/image.sh", "LICENSE"):
            self.assertIn(needed, sent)


class Engine(unittest.TestCase):
    def test_a_program_comes_with_its_libraries_where_the_loader_looks(self):
        layer = engine.Layer()
        layer.program(pathlib.Path(sys.executable).resolve(), "/usr/bin/program")
        layer.folder("/own", mode=0o700, owner=65534)
        with tarfile.open(fileobj=io.BytesIO(layer.bytes())) as archive:
            names = archive.getnames()
            self.assertEqual(len(names), len(set(names)))
            self.assertEqual(archive.getmember("./usr/bin/program").mode, 0o755)
            self.assertEqual(archive.getmember("./lib").linkname, "usr/lib")
            self.assertEqual(archive.getmember("./own").uid, 65534)
            for library in engine.libraries(pathlib.Path(sys.executable).resolve()):
                self.assertIn("." + engine.merged_usr(library), names)

    def test_where_no_engine_can_be_had_the_reason_is_said(self):
        with tempfile.TemporaryDirectory() as folder:
            # What there is without root; and where the daemon ends at once.
            with mock.patch.object(engine.os, "geteuid", return_value=1000), self.assertRaises(engine.Unavailable):
                engine.Engine(pathlib.Path(folder) / "engine").start()
            failing = pathlib.Path(folder) / "dockerd"
            failing.write_text("#!/bin/sh\necho 'failed to mount overlay: operation not permitted' >&2\nexit 1\n")
            failing.chmod(0o755)
            path = f"{folder}:{engine.os.environ['PATH']}"
            patches = (
                mock.patch.object(engine.os, "geteuid", return_value=0), mock.patch.object(engine.sys, "platform", "linux"),
                mock.patch.object(engine, "installed"), mock.patch.dict(engine.os.environ, {"PATH": path}),
            )
            with patches[0], patches[1], patches[2], patches[3]:
                with self.assertRaisesRegex(engine.Unavailable, "operation not permitted"):
                    with engine.Engine(pathlib.Path(folder) / "target" / "engine"):
                        self.fail("it started")
            self.assertFalse((pathlib.Path(folder) / "target" / "engine").exists())


if __name__ == "__main__":
    unittest.main()
