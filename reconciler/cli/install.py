"""Verbs that put the hive's services on a host with systemd, and take them off it."""

from __future__ import annotations

import asyncio
import shlex
from argparse import Namespace
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.cli.console import Console
from reconciler.cli.failure import Exit, Failure

if TYPE_CHECKING:
    from reconciler.units.installing import Installation


def install_units(options: Namespace, console: Console) -> int:
    """`hive install-units`"""
    from reconciler.units.installing import install

    return _do(install, options, console)


def uninstall_units(options: Namespace, console: Console) -> int:
    """`hive uninstall-units`"""
    from reconciler.units.installing import uninstall

    return _do(uninstall, options, console)


def _do(work: Callable[..., Coroutine[Any, Any, Installation]], options: Namespace, console: Console) -> int:
    from reconciler.errors import HiveError

    root = Path(options.root).absolute()
    if not root.is_dir():
        raise Failure(
            f"there is no directory {options.root}", "--root names one", code="usage", status=Exit.USAGE
        )
    try:
        done = asyncio.run(work(root=root, dry_run=options.dry_run))
    except HiveError as error:
        raise Failure(error.message, error.hint, code=error.code) from error
    if options.json:
        console.document({
            "dry_run": options.dry_run,
            "changes": [
                {"path": one.path, "action": one.action, "diff": one.diff} for one in done.changes
            ],
            "commands": [list(command) for command in done.commands],
            "next": list(done.following),
        })  # fmt: skip
        return Exit.DONE
    for change in done.changes:
        if options.dry_run and change.diff:
            console.say(change.diff)
        else:
            console.say(f"{change.action:<7} {change.path}")
    for command in done.commands:
        console.say(f"{'would run' if options.dry_run else 'ran'}: {shlex.join(command)}")
    if not options.dry_run:
        for line in done.following:
            console.say(f"next: {line}")
    return Exit.DONE
