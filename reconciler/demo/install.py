"""Installs what is missing, and only that: Debian packages, virtual environments, web assets.

Run as `python3 -m reconciler.demo.install [--dev]` by `make`, with the standard library only. Safe to repeat
and to interrupt: a stamp that holds the hash of what was asked for is written last, so that a second run is
instant and a half-made environment is made anew. Never touches anything outside apt and the clone.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconciler.demo import terminal
from reconciler.errors import HiveError, PermanentError

CLONE = Path(__file__).resolve().parents[2]
_ASSETS = CLONE / "ui/static/vendor"
_ASSETS_LIST = CLONE / "requirements/vendor.json"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_APT = ("apt-get", "-o", "DPkg::Lock::Timeout=120", "-y", "--no-install-recommends")
PIP_INSTALL = (
    *("-m", "pip", "install", "--no-input", "--disable-pip-version-check"),
    *("--no-deps", "--only-binary", ":all:", "--require-hashes", "-r"),
)
_NPM_CI = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
_APT_DEADLINE_S = 900.0
_PIP_DEADLINE_S = 900.0
_NPM_DEADLINE_S = 300.0


def has_program(name: str) -> bool:
    """Whether a program is on the system's own PATH (never one of a user's version managers)."""
    return shutil.which(name, path=_SYSTEM_PATH) is not None


def _has_file(path: str) -> Callable[[], bool]:
    return lambda: Path(path).exists()


def _has(*names: str) -> Callable[[], bool]:
    return lambda: all(has_program(name) for name in names)


def _has_venv() -> bool:
    """`import ensurepip` works without its wheels, so ask for what `python3 -m venv` itself asks for."""
    python = base_python()
    if python is None:
        return False
    probe = "import ensurepip, venv; ensurepip.version()"
    return _python(python, probe).returncode == 0


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package and how to see, on any distribution, that it is not needed."""

    name: str
    is_there: Callable[[], bool]


HOST_PACKAGES = (
    Package("python3", lambda: base_python() is not None),
    Package("python3-venv", _has_venv),
    Package("ca-certificates", _has_file("/etc/ssl/certs/ca-certificates.crt")),
    Package("git", _has("git")),
    Package("nix-bin", _has("nix", "nix-daemon", "nix-store")),
    Package("systemd-container", _has("systemd-nspawn")),
    Package("bubblewrap", _has("bwrap")),
    # Statically linked: it is /bin/sh of the Nix build sandbox, where no library is.
    Package("busybox-static", _has_file("/var/lib/dpkg/info/busybox-static.list")),
    Package("util-linux", _has("unshare", "nsenter", "setpriv", "pivot_root")),
)
DEV_PACKAGES = (
    Package("chromium", _has("chromium")),
    Package("fonts-liberation", _has_file("/usr/share/fonts/truetype/liberation")),
    Package("fonts-noto-color-emoji", _has_file("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")),
    Package("shellcheck", _has("shellcheck")),
    Package("procps", _has("ps")),
    Package("mmdebstrap", _has("mmdebstrap")),
    Package("qemu-system-x86", _has("qemu-system-x86_64")),
    Package("e2fsprogs", _has("mke2fs")),
    Package("strace", _has("strace")),
)


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment, filled from `requirements/NAME.txt`; `within`: those that include it."""

    name: str
    label: str
    folder: str
    within: tuple[str, ...] = ()


HOST = Environment("host", "Python, host", ".venv", within=("dev",))
DEV = Environment("dev", "Python, tests", ".venv")
HARNESS = Environment("harness", "Python, harness", ".venv-harness")


def base_python() -> str | None:
    """The interpreter of the environments. It must lie under /usr, the only place that containers share."""
    for candidate in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if not Path(candidate).exists() or not Path(candidate).resolve().is_relative_to("/usr"):
            continue
        probe = "import sys; sys.exit(sys.version_info < (3, 11))"
        if _python(candidate, probe).returncode == 0:
            return candidate
    return None


def missing_packages(*, dev: bool = False) -> list[str]:
    """Names of the Debian packages that something needed is missing of."""
    wanted = HOST_PACKAGES + (DEV_PACKAGES if dev else ())
    return [package.name for package in wanted if not package.is_there()]


def is_complete(environment: Environment) -> bool:
    """Whether the environment was made, to the end, from the lock file as it is now."""
    folder = CLONE / environment.folder
    names = (environment.name, *environment.within)
    return any(_read(folder / f".stamp-{name}") == lock_digest(name) for name in names)


def has_assets() -> bool:
    """Whether the web assets were copied, to the end, from the lists as they are now."""
    return _read(_ASSETS / ".stamp") == _assets_digest()


def install(*, dev: bool = False) -> None:
    """Everything, in order; `PermanentError` says what failed and shows the tool's last lines."""
    os.umask(0o022)  # unprivileged users and containers read the environments
    with _exclusive():
        _install_packages(missing_packages(dev=dev))
        for environment in (DEV if dev else HOST, HARNESS):
            _install_environment(environment)
        _install_assets()
        if dev:
            _install_web_linters()


@contextmanager
def _exclusive() -> Iterator[None]:
    """One installer at a time in this clone; a second one waits."""
    handle = os.open(CLONE / "requirements", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            terminal.say("  waiting for another installer in this clone")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _install_packages(names: list[str]) -> None:
    with terminal.step("Debian packages") as at:
        if not names:
            at.result = "present"
            return
        try:
            _apt(at, "install", *names)
        except PermanentError:
            # No lists yet, or lists that name versions which are gone: only then is an update worth its time.
            _apt(at, "update")
            _apt(at, "install", *names)
        at.result = "installed " + " ".join(names)


def _apt(at: terminal.Step, *arguments: str) -> None:
    """Not to be cut off: a dpkg that dies between two steps has to be repaired by hand."""
    env = {**os.environ, "PATH": _SYSTEM_PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    terminal.run(at, [*_APT, *arguments], env=env, cwd="/", deadline_s=_APT_DEADLINE_S, finish=True)


def _install_environment(environment: Environment) -> None:
    folder = CLONE / environment.folder
    with terminal.step(environment.label) as at:
        if is_complete(environment):
            at.result = "present"
            return
        python = base_python()
        if python is None:
            raise PermanentError(
                "there is no Python 3.11 or newer under /usr", hint="apt-get install python3"
            )
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        make = [python, "-m", "venv"] + (["--clear"] if not _fits(folder) else []) + [str(folder)]
        _forget_stamps(folder)
        terminal.run(at, make, env=env, cwd=str(CLONE), deadline_s=120)
        _write(folder / ".base", _interpreter(python))
        pip = [str(folder / "bin/python"), *PIP_INSTALL, f"requirements/{environment.name}.txt"]
        terminal.run(at, pip, env=env, cwd=str(CLONE), deadline_s=_PIP_DEADLINE_S)
        if environment is HARNESS:
            close_cli(folder)
        _write(folder / f".stamp-{environment.name}", lock_digest(environment.name))
        at.result = f"installed into {environment.folder}"


def _fits(folder: Path) -> bool:
    """Whether packages can be added to what is there: made by this interpreter, from today's locks."""
    python = base_python()
    if python is None or _read(folder / ".base") != _interpreter(python):
        return False
    stamps = list(folder.glob(".stamp-*"))
    return bool(stamps) and all(_read(s) == lock_digest(s.name.removeprefix(".stamp-")) for s in stamps)


def _forget_stamps(folder: Path) -> None:
    for stamp in folder.glob(".stamp-*"):
        stamp.unlink()


def close_cli(folder: Path) -> None:
    """Makes the CLI execute-only: the kernel then keeps its memory closed to the shell it starts."""
    for binary in folder.glob("lib/python3*/site-packages/claude_agent_sdk/_bundled/claude"):
        os.chown(binary, 0, 0)
        binary.chmod(0o711)
        return
    raise PermanentError("claude-agent-sdk came without its CLI", hint="is there a wheel for this machine?")


def _install_assets() -> None:
    """Fonts and scripts of the pages: fetched by npm's lock, copied by a list of names and hashes."""
    with terminal.step("web assets") as at:
        if has_assets():
            at.result = "present"
            return
        terminal.run(at, _NPM_CI, env=os.environ, cwd=str(CLONE), deadline_s=_NPM_DEADLINE_S)
        shutil.rmtree(_ASSETS, ignore_errors=True)
        count = 0
        for name, package in json.loads(_ASSETS_LIST.read_text())["packages"].items():
            for entry in package["files"]:
                source = CLONE / "node_modules" / name / entry["from"]
                _copy_verified(source, _ASSETS / entry["to"], entry["sha256"])
                count += 1
        _write(_ASSETS / ".stamp", _assets_digest())
        at.result = f"{count} files copied to ui/static/vendor"


def _install_web_linters() -> None:
    stamp = CLONE / "checks/node_modules/.stamp"
    wanted = _digest(CLONE / "checks/package-lock.json")
    with terminal.step("web linters") as at:
        if _read(stamp) == wanted:
            at.result = "present"
            return
        terminal.run(at, _NPM_CI, env=os.environ, cwd=str(CLONE / "checks"), deadline_s=_NPM_DEADLINE_S)
        _write(stamp, wanted)
        at.result = "installed into checks/node_modules"


def _copy_verified(source: Path, target: Path, sha256: str) -> None:
    data = source.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        message = f"{source.relative_to(CLONE)} has sha256 {found}, requirements/vendor.json says {sha256}"
        raise PermanentError(message)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _assets_digest() -> str:
    return _digest(_ASSETS_LIST) + _digest(CLONE / "package-lock.json")


def lock_digest(name: str) -> str:
    """Of the pins themselves: a comment that changed installs nothing anew."""
    lines = (CLONE / "requirements" / f"{name}.txt").read_text().splitlines()
    return hashlib.sha256("\n".join(x for x in lines if not x.lstrip().startswith("#")).encode()).hexdigest()


def _interpreter(python: str) -> str:
    probe = "import sys; print(sys.version, sys.executable)"
    return _python(python, probe).stdout


def _python(interpreter: str, code: str) -> subprocess.CompletedProcess[str]:
    argv = [interpreter, "-I", "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def main(arguments: list[str]) -> int:
    """The command line; exit status 1 when something could not be installed."""
    parser = argparse.ArgumentParser(prog="python3 -m reconciler.demo.install", description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also what tests, linters and screenshots need")
    options = parser.parse_args(arguments)
    try:
        missing = " ".join(missing_packages(dev=options.dev))
        if missing and os.geteuid() != 0:
            hint = f"run as root, or: apt-get install {missing}"
            raise PermanentError(f"these Debian packages are missing: {missing}", hint=hint)
        install(dev=options.dev)
    except HiveError as error:
        terminal.complain(error.message, error.hint)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
