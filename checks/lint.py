"""`make lint`: every linter that fits this machine, and the names of those that were left out.

All of them run even if an early one fails: one run tells everything. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
PYTHON = ".venv/bin/python"
OK = "ok"
FAILED = "FAILED"
_SKIPPED = frozenset({".git", ".venv", ".venv-harness", "node_modules", "vendor", ".demo", "test-results"})


@dataclass(frozen=True, slots=True)
class Linter:
    """A linter, or the reason why it cannot run here."""

    name: str
    argv: tuple[str, ...] = ()
    left_out: str = ""


def linters() -> Iterator[Linter]:
    """In the order in which their findings help: cheap and mechanical ones first."""
    yield Linter("ruff format", (PYTHON, "-m", "ruff", "format", "--check", "--quiet", "."))
    yield Linter("ruff check", (PYTHON, "-m", "ruff", "check", "--quiet", "."))
    yield Linter(
        "import-linter", (PYTHON, "-c", "from importlinter.cli import lint_imports_command as c; c()")
    )
    mypy = (PYTHON, "-m", "mypy", "--no-error-summary")
    yield Linter("mypy, host and tests", (*mypy, *_python_folders()))
    yield Linter("mypy, harness", (*mypy, "--python-executable", ".venv-harness/bin/python", "harness"))
    yield from _web()
    yield _by_files("shellcheck", _shell_scripts(), "shellcheck")
    yield _by_files("nix syntax", sorted(_files(".nix")), "nix-instantiate", "--parse", "--quiet")
    yield Linter("nixfmt", left_out="Debian has no package of it; `nix fmt` runs it")


def _python_folders() -> list[str]:
    """What mypy reads with the host's environment. The harness has its own, with the SDK in it."""
    return [
        name for name in ("reconciler", "ui", "tests", "bench", "checks", "requirements") if _has_python(name)
    ]


def _web() -> Iterator[Linter]:
    templates = sorted(_files(".html", ".j2"))
    yield _by_files("djlint", templates, PYTHON, "-m", "djlint", "--lint", "--quiet")
    node = "checks/node_modules/.bin"
    styles, scripts = sorted(_files(".css")), sorted(_files(".js", ".mjs"))
    yield _by_files("stylelint", styles, f"{node}/stylelint", "--config", "checks/stylelint.config.mjs")
    yield _by_files("eslint", scripts, f"{node}/eslint", "--config", "checks/eslint.config.mjs")


def _by_files(name: str, files: list[str], *argv: str) -> Linter:
    if not files:
        return Linter(name, left_out="there is no file of its kind")
    if (
        shutil.which(argv[0], path=f"{CLONE}:{os.environ.get('PATH', '')}") is None
        and not (CLONE / argv[0]).exists()
    ):
        return Linter(name, left_out=f"{argv[0]} is not installed")
    return Linter(name, (*argv, *files))


def _files(*endings: str) -> Iterator[str]:
    for folder, folders, names in os.walk(CLONE):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        for name in names:
            if name.endswith(endings):
                yield str((Path(folder) / name).relative_to(CLONE))


def _has_python(folder: str) -> bool:
    return any((CLONE / folder).rglob("*.py"))


def _shell_scripts() -> list[str]:
    """Files that say in their first line that they are for a shell, whatever their name."""
    found = []
    for path in _files(""):
        file = CLONE / path
        if file.is_symlink() or not file.is_file():
            continue
        with file.open("rb") as opened:
            first = opened.readline(80)
        if first.startswith(b"#!") and first.strip().endswith((b"/sh", b"/bash", b"env bash", b"env sh")):
            found.append(path)
    return sorted(found)


def run() -> dict[str, str]:
    """Runs them all, findings printed in full; returns each one's outcome, in order."""
    outcomes = {}
    environment = os.environ | {"PYTHONPATH": str(CLONE), "NO_COLOR": "1"}
    for linter in linters():
        if linter.left_out:
            outcomes[linter.name] = f"left out: {linter.left_out}"
            print(f"  {linter.name:<22} {outcomes[linter.name]}", flush=True)
            continue
        began = time.monotonic()
        done = subprocess.run(
            linter.argv, cwd=CLONE, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        outcomes[linter.name] = OK if done.returncode == 0 else FAILED
        print(f"  {linter.name:<22} {outcomes[linter.name]}  ({time.monotonic() - began:.1f} s)", flush=True)
        if done.returncode != 0:
            print((done.stdout + done.stderr).strip(), flush=True)
    return outcomes


def main() -> int:
    """Exit status 1 when there was a finding."""
    failed = [name for name, outcome in run().items() if outcome == FAILED]
    if failed:
        print(f"lint failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
