"""A container engine of our own: nobody else's images, containers or networks are touched, and nothing of it is left.

Images that no registry is needed for are made of files of this machine, and given the names that compose files say."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

from services import Failed, Service

# Debian's packages of the commands that are needed.
PACKAGES = {"dockerd": "docker.io", "docker": "docker.io", "docker-compose": "docker-compose"}


class Unavailable(Exception):
    """No engine can be had on this machine; the message says why."""


def installed(*commands: str) -> None:
    """Has the commands installed from Debian's packages, where they are missing."""
    missing = [command for command in commands if not shutil.which(command)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"{', '.join(missing)} is not installed, and there is no apt-get")
    # At this run level no service is started by its package.
    packages = sorted({PACKAGES[command] for command in missing})
    apt_get(["update"])
    apt_get(["install", "--yes", "--no-install-recommends", *packages], RUNLEVEL="1")


def apt_get(arguments: list[str], folder: pathlib.Path | None = None, **environ: str) -> None:
    """Runs apt-get."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", **environ}
    done = subprocess.run(["apt-get", "-qq", *arguments], cwd=folder, env=environ, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise Unavailable(f"apt-get {' '.join(arguments)} failed: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason was given")


def debian_file(package: str, path: str, folder: pathlib.Path) -> pathlib.Path:
    """One file of a Debian package, which is not installed."""
    place = folder / package
    if not (place / path).exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            apt_get(["download", package], place)
        except Unavailable:
            # On a new machine the lists of packages are empty.
            apt_get(["update"])
            apt_get(["download", package], place)
        [archive] = place.glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", archive, place], check=True, timeout=120)
    return place / path


def libraries(program: pathlib.Path) -> set[str]:
    """The paths of the shared libraries that a program is linked with; none if it is static."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True)
    return set(re.findall(r"(/\S+)", done.stdout.split(":", 1)[-1])) if done.returncode == 0 else set()


def merged_usr(path: str) -> str:
    """Where a file is in an image in which /bin, /lib and the like are links into /usr."""
    return re.sub(r"^/(s?bin|lib|lib64)/", r"/usr/\1/", path)


def unmount(folder: str) -> None:
    """Unmounts everything below a directory."""
    mounted = [line.split()[1] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]
    for path in sorted(mounted, reverse=True):
        if path.startswith(folder + "/"):
            subprocess.run(["umount", "--lazy", path], capture_output=True, timeout=30)


class Layer:
    """The files of an image."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.archive = tarfile.open(fileobj=self.buffer, mode="w")
        self.names: set[str] = set()
        for name in ("bin", "sbin", "lib", "lib64"):
            self.link(f"/{name}", f"usr/{name}")
        self.folder("/tmp", mode=0o1777)

    def entry(self, path: str, kind: bytes, mode: int, owner: int = 0) -> tarfile.TarInfo | None:
        """What says of an entry what it is; None if there is one already."""
        if path in self.names:
            return None
        self.names.add(path)
        entry = tarfile.TarInfo("." + path)
        entry.type, entry.mode, entry.uid, entry.gid = kind, mode, owner, owner
        return entry

    def folder(self, path: str, mode: int = 0o755, owner: int = 0) -> None:
        """Adds an empty directory."""
        if entry := self.entry(path, tarfile.DIRTYPE, mode, owner):
            self.archive.addfile(entry)

    def link(self, path: str, target: str) -> None:
        """Adds a symbolic link."""
        if entry := self.entry(path, tarfile.SYMTYPE, 0o777):
            entry.linkname = target
            self.archive.addfile(entry)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Adds a file."""
        if entry := self.entry(merged_usr(path), tarfile.REGTYPE, mode):
            entry.size = len(content)
            self.archive.addfile(entry, io.BytesIO(content))

    def program(self, source: pathlib.Path, path: str | None = None) -> None:
        """Adds a program, and the libraries that it needs."""
        self.file(path or str(source), source.read_bytes(), mode=0o755)
        for library in libraries(source):
            self.file(library, pathlib.Path(library).read_bytes(), mode=0o755)

    def bytes(self) -> bytes:
        """The archive."""
        self.archive.close()
        return self.buffer.getvalue()


class Engine:
    """A dockerd with everything in directories of its own, while it is entered."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.scope = contextlib.ExitStack()

    def __enter__(self) -> Engine:
        with self.scope:
            self.start()
            self.scope = self.scope.pop_all()
        return self

    def __exit__(self, *what: object) -> None:
        self.scope.close()

    def start(self) -> None:
        """Starts it, and sees that it can run something."""
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            raise Unavailable("starting a container engine needs Linux and root")
        installed("dockerd", "docker")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.scope.callback(shutil.rmtree, self.folder, ignore_errors=True)
        # Paths of sockets are short.
        short = tempfile.mkdtemp(prefix="trefoil-engine-")
        self.scope.callback(shutil.rmtree, short, ignore_errors=True)
        socket = f"unix://{short}/docker.sock"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))}
        # Without the extension of BuildKit, the engine's own builder.
        self.environ = {**kept, "DOCKER_HOST": socket, "DOCKER_CONFIG": f"{short}/config", "DOCKER_BUILDKIT": "0"}
        command = [
            # No rules in this machine's firewall, no network but those of the compose project, and no routing.
            "dockerd", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none",
            "--data-root", self.folder / "data", "--exec-root", f"{short}/exec", "--pidfile", f"{short}/pid", "--host", socket,
        ]
        self.service = Service("dockerd", command, self.folder.parent / "dockerd.log", self.environ)
        # Namespaces and file systems can stay mounted after its end.
        self.scope.callback(unmount, short)
        self.scope.callback(unmount, str(self.folder))
        self.scope.callback(self.service.stop)
        try:
            self.service.wait_for("API listen on")
            self.image("trefoil-trial:local", self.shell_layer().bytes())
            self.docker("run", "--rm", "--network=none", "trefoil-trial:local", "/bin/sh", "-c", "exit 0", timeout=60)
            self.docker("image", "rm", "trefoil-trial:local")
        except (Failed, subprocess.TimeoutExpired) as failure:
            raise Unavailable(f"a container engine does not work here: {last_line(str(failure))}") from failure

    @staticmethod
    def shell_layer() -> Layer:
        """Files with a shell."""
        layer = Layer()
        layer.program(pathlib.Path(shutil.which("sh") or "/bin/sh").resolve(), "/bin/sh")
        return layer

    def docker(self, *arguments: object, timeout: float = 120, given: bytes | None = None) -> str:
        """Runs a command of the client; what it printed."""
        command = ["docker", *map(str, arguments)]
        done = subprocess.run(command, env=self.environ, input=given, capture_output=True, timeout=timeout)
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)}\nended with exit code {done.returncode}: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode()

    def image(self, name: str, archive: bytes, *changes: str) -> None:
        """Makes an image of an archive's files."""
        options = [part for change in changes for part in ("--change", change)]
        self.docker("import", *options, "-", name, given=archive)
