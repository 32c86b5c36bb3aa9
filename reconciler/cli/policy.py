"""`hive policy`: how an agent's Bash policy decides on a command."""

from __future__ import annotations

import shlex
from argparse import Namespace

from reconciler.cli.api import Hive, segment
from reconciler.cli.console import Console
from reconciler.cli.failure import Exit


def policy(options: Namespace, console: Console) -> int:
    """`hive policy AGENT -- COMMAND`"""
    words = options.command
    command = words[0] if len(words) == 1 else shlex.join(words)
    found = Hive().get(f"/agents/{segment(options.agent)}/policy", command=command, folder=options.folder)
    status = Exit.DONE if found["allowed"] else Exit.FAILED
    if options.json:
        console.document(found)
        return status
    console.say(f"generation {found['generation'] or '-'}, in {found['folder']}: {found['command']}", "dim")
    if found["allowed"]:
        console.say(f"allowed: {found['reason']}", "green")
    else:
        console.say(found["reason"], "red")
    return status
