"""Makes and caches what the bed boots: a Debian root per suite, and Python environments that fit its Python.

All of it lies below `cache()`, each part in a directory named after the digest of what it is made from, made
under a temporary name and renamed when it is whole. A part that is there is never written again: guests run
on an overlay. Parts that nobody used for `_KEPT_DAYS` are removed when another one is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from checks.bed import sources
from reconciler.demo import install, terminal
from reconciler.errors import PermanentError

Suite = Literal["bookworm", "trixie"]
SUITES: Final[tuple[Suite, ...]] = get_args(Suite)

_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "systemd-container", "libpam-systemd"),
    *("nix-bin", "nix-setup-systemd", "git", "bubblewrap", "busybox-static"),
    *("python3", "python3-venv", "passwd", "util-linux", "iproute2", "procps", "kmod"),
)
# Text that nobody reads in a bed. The copyright files go as well: this image is never handed on.
_LEFT_OUT = ("man", "doc", "info", "locale", "lintian")
_KEPT_DAYS = 30.0
_ROOT_DEADLINE_S = 1200.0
_VENV_DEADLINE_S = 900.0
# The guest's /usr over the machine's own: its Python then finds pip's configuration, certificates and indexes
# where the machine has them. Both are merged-/usr systems, so that /bin and /lib follow.
WITH_USR = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-euc"),
    'mount --bind "$1/usr" /usr; shift; exec "$@"',
    "sh",
)


@dataclass(frozen=True, slots=True)
class Image:
    """What a guest of `suite` is booted from; the environments are for the guest's own Python."""

    suite: Suite
    root: Path
    venv: Path
    harness_venv: Path


def cache() -> Path:
    """The directory of all parts: `$HIVE_BED_CACHE`, or the user's cache."""
    if named := os.environ.get("HIVE_BED_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyperhive/bed"


def ensure(suite: Suite) -> Image:
    """The image, made now if it is not there: minutes the first time, milliseconds later."""
    root = part(f"bed, {suite}", _root_path(suite), lambda at, path: _make_root(at, suite, path))
    python = (root / "usr/bin/python3").readlink().name
    host, harness = (_environment(e, suite, root, python) for e in (install.DEV, install.HARNESS))
    return Image(suite, root, host, harness)


def _root_path(suite: Suite) -> Path:
    made_from = [suite, _PACKAGES, _LEFT_OUT, os.uname().machine]
    return cache() / f"{suite}-{digest(json.dumps(made_from))}"


def _environment(environment: install.Environment, suite: Suite, root: Path, python: str) -> Path:
    """The clone's own where it was made by the same Python, else one from the same lock."""
    own = install.CLONE / environment.folder
    if (own / "lib" / python / "site-packages").is_dir():
        return own.resolve()
    made_from = digest(f"{python} {install.lock_digest(environment.name)}")
    path = cache() / f"{suite}-{environment.name}-{made_from}"
    label = f"{environment.label}, {suite}"
    return part(label, path, lambda at, made: _make_environment(at, environment, root, made))


def part(label: str, path: Path, make: Callable[[terminal.Step, Path], None]) -> Path:
    """`path`, made by `make` under another name first if it is missing; one maker at a time."""
    if not path.is_dir():
        if os.geteuid() != 0:
            raise PermanentError("the test bed is made and booted as root", hint="run as root")
        with _exclusive(path.parent), terminal.step(label) as at:
            if path.is_dir():
                at.result = "made meanwhile"
            else:
                _make(at, path, make)
                at.result = "made"
    os.utime(path)
    return path


def _make(at: terminal.Step, path: Path, make: Callable[[terminal.Step, Path], None]) -> None:
    _remove_old(path.parent)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))
    try:
        staging.chmod(0o755)  # apt downloads as a user of its own
        with readable():
            make(at, staging / "part")
        (staging / "part").rename(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def readable() -> Iterator[None]:
    """What is made inside can be read by the guest's other users, whatever the caller's umask."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            terminal.say("  waiting for another maker of test beds")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_old(folder: Path) -> None:
    """What an interrupted maker left, and what nobody used for a long time. Called under the lock."""
    for path in folder.iterdir():
        old = time.time() - path.stat().st_mtime > _KEPT_DAYS * 86400
        if path.name.startswith(".new-") or old:
            shutil.rmtree(path, ignore_errors=True)


def _make_root(at: terminal.Step, suite: Suite, path: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        raise PermanentError("mmdebstrap is not installed", hint="make deps-dev")
    with tempfile.NamedTemporaryFile("w", suffix=".list") as entries:
        entries.write(sources.for_suite(suite))
        entries.flush()
        argv = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(_PACKAGES)}"]
        argv += ["--aptopt=Acquire::Languages none", "--aptopt=Acquire::Retries 3"]
        argv += [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _LEFT_OUT]
        argv += [suite, str(path), entries.name]
        terminal.run(at, argv, env=environ(), cwd="/", deadline_s=_ROOT_DEADLINE_S)
    for name in ("etc/resolv.conf", "var/lib/systemd/random-seed"):
        with contextlib.suppress(FileNotFoundError):
            (path / name).unlink()


def _make_environment(at: terminal.Step, environment: install.Environment, root: Path, path: Path) -> None:
    lock = install.CLONE / "requirements" / f"{environment.name}.txt"
    inside = (*WITH_USR, str(root))
    make = [*inside, "/usr/bin/python3", "-m", "venv", str(path)]
    terminal.run(at, make, env=environ(), cwd="/", deadline_s=120)
    pip = [str(path / "bin/python"), *install.PIP_INSTALL, str(lock)]
    terminal.run(at, [*inside, *pip], env=environ(), cwd="/", deadline_s=_VENV_DEADLINE_S)
    if environment is install.HARNESS:
        install.close_cli(path)


def environ() -> dict[str, str]:
    """The caller's, without what belongs to its Python; proxies and mirrors stay."""
    ours = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))} | ours


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
