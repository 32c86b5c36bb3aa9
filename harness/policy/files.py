"""Which paths the file tools may touch. Pure, but for the `resolve` that the caller brings.

A path must lie inside the agent's own trees, both as written and after every symbolic link in it; and it must
not be a place from which something is started: git's own folders, shell start-up files, the CLI's, git's and
ssh's settings.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

Resolve = Callable[[Sequence[str]], Awaitable[Sequence[str]]]
"""Absolute paths → each with all symbolic links followed (its last parts need not exist), in their order;
raises when it cannot."""

_PATH_MAX = 4096
_UNCLEAN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_FILE_ARGUMENT = {
    "Read": "file_path",
    "Edit": "file_path",
    "Write": "file_path",
    "NotebookEdit": "notebook_path",
    "Glob": "path",
    "Grep": "path",
}
FILE_TOOLS = frozenset(_FILE_ARGUMENT)
_SEARCHES = frozenset({"Glob", "Grep"})
_NEVER_FOLDERS = frozenset({".git", ".claude", ".ssh", ".gnupg"})
_NEVER_NAMES = re.compile(
    r"\.(?:bash_?(?:rc|profile|login|logout|aliases|env)|profile|zshrc|zshenv|zprofile|zlogin|zlogout|kshrc|inputrc|envrc"
    r"|gitconfig|gitmodules|claude\.json|mcp\.json|netrc|npmrc|pam_environment|curlrc|wgetrc|yarnrc(?:\.yml)?|condarc"
    r"|vimrc|exrc|nanorc|emacs|gdbinit|lesskey|lessfilter|psqlrc|sqliterc|screenrc|tmux\.conf|irbrc|pdbrc|rprofile"
    r"|pypirc|pythonrc|xprofile|xinitrc|xsessionrc|bunfig\.toml|editrc|digrc|sshrc)|authorized_keys",
)
# where the CLI puts the output of a command that is too long for an answer, and tells the model to read it
_OWN_OUTPUT = re.compile(r"/home/agent/\.claude/projects/[^/]+/[^/]+/tool-results/[^/]+")
_NEVER_PAIRS = frozenset(
    {
        (".config", "git"),
        (".config", "nix"),
        (".config", "fish"),
        (".config", "environment.d"),
        (".config", "pip"),
        (".config", "systemd"),
        (".config", "autostart"),
        (".cargo", "config"),
        (".cargo", "config.toml"),
    }
)


class Refused(ValueError):  # noqa: N818 - it says what it is
    """The path may not be touched; the message says why. `closed`: it lies inside, but is a place from which
    programs are started."""

    def __init__(self, message: str, *, closed: bool = False) -> None:
        super().__init__(message)
        self.closed = closed


async def check(
    tool: str, arguments: Mapping[str, Any], cwd: str, roots: tuple[str, ...], resolve: Resolve
) -> None:
    """Raises `Refused` unless every path that the call names is allowed."""
    given = arguments.get(_FILE_ARGUMENT[tool])
    if given is None and tool in _SEARCHES:
        given = cwd
    if not isinstance(given, str) or not given or len(given) > _PATH_MAX or _UNCLEAN.search(given):
        raise Refused(
            f"{tool} needs a path: text of at most {_PATH_MAX} characters without control characters"
        )
    if tool in _SEARCHES:
        for name in ("pattern", "glob") if tool == "Glob" else ("glob",):
            _check_search(str(arguments.get(name, "")))
    joined = posixpath.join(cwd, given)
    (found,) = await resolve([joined])
    for path in (posixpath.normpath(joined), found):
        if not (tool == "Read" and _OWN_OUTPUT.fullmatch(path)):
            check_place(path, roots)


def check_place(path: str, roots: tuple[str, ...]) -> None:
    """Raises `Refused` unless the absolute path, which has no `..` in it, lies in one of the trees and in
    none of the closed places."""
    if len(path) > _PATH_MAX or _UNCLEAN.search(path):
        raise Refused("a path is too long, or has control characters")
    if not any(path == root or path.startswith(root + "/") for root in roots):
        raise Refused(f"{path} is outside of {', '.join(roots)}")
    parts = path.split("/")
    for part in parts:
        if part.casefold() in _NEVER_FOLDERS or _NEVER_NAMES.fullmatch(part.casefold()):
            raise Refused(f"{path} is closed: programs are started or configured from {part}", closed=True)
    for pair in itertools.pairwise(parts):
        if pair in _NEVER_PAIRS:
            raise Refused(f"{path} is closed: programs are configured from {'/'.join(pair)}", closed=True)


def _check_search(pattern: str) -> None:
    """A search pattern may not lead out of its folder."""
    if pattern.startswith(("/", "~")) or ".." in re.split(r"[/{},]", pattern):
        raise Refused(f"the pattern {pattern[:200]!r} leads out of the folder; give the folder as `path`")
