"""Command lines of bubblewrap: a program that sees a few read-only trees and nothing else of the machine.

Pure. Used for evaluating hostile Nix; run it as an unprivileged user and with resource limits, for the
sandbox bounds what can be seen, not what can be used up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_HOME = "/tmp"  # noqa: S108 - inside: empty and private
_SYSTEM_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What the program sees: `read_only` maps a place inside to a directory or file of the host.

    `links` are symbolic links inside (name → target) and `system` directories of the host at the same
    place; `writable` are directories of the program's user, at the same place, too. Besides these there are
    a private /proc, a minimal /dev, and an empty /tmp of `scratch_bytes` that is its home.
    """

    read_only: Mapping[str, Path]
    system: Sequence[Path]
    links: Mapping[str, str]
    environment: Mapping[str, str]
    scratch_bytes: int = 64 * 1024 * 1024
    writable: Sequence[Path] = ()


def command(sandbox: Sandbox, argv: Sequence[str]) -> list[str]:
    """The whole command: all namespaces its own, no network, no terminal, killed with its parent."""
    words = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    for path in sandbox.system:
        words += ["--ro-bind", str(path), str(path)]
    for name, target in sandbox.links.items():
        words += ["--symlink", target, name]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(sandbox.scratch_bytes), "--tmpfs", _HOME]
    for inside, outside in sandbox.read_only.items():
        words += ["--ro-bind", str(outside), inside]
    for path in sandbox.writable:
        words += ["--bind", str(path), str(path)]
    environment = {"HOME": _HOME, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **sandbox.environment}
    for name, value in environment.items():
        words += ["--setenv", name, value]
    return [*words, "--remount-ro", "/", "--chdir", _HOME, "--", *argv]


def system_of(program: Path) -> tuple[list[Path], dict[str, str]]:
    """Directories and links that a program of this machine needs: /usr and its links, or the Nix store.

    Reads the file system. On a machine where /bin and the like are directories, they are directories
    inside, too.
    """
    if program.resolve().is_relative_to("/nix/store"):
        return [Path("/nix/store")], {}
    system, links = [Path("/usr")], {}
    for name in _SYSTEM_LINKS:
        path = Path("/", name)
        if path.is_symlink():
            links[str(path)] = str(path.readlink())
        elif path.is_dir():
            system.append(path)
    return system, links
