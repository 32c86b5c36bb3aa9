"""From `hive VERB …` to an exit status: finds the verb, parses, runs it, and prints errors in one way."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from reconciler.cli.console import Console
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.grammar import Verb, overview, parser_of
from reconciler.cli.verbs import VERBS

INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit status."""
    console = Console(as_json="--json" in arguments)
    try:
        return _dispatch(list(arguments), console)
    except Failure as failure:
        console.fail(failure)
        return failure.status
    except SystemExit as done:  # argparse has printed a verb's help
        return int(done.code or 0)
    except KeyboardInterrupt:
        console.err.write("\n")
        return INTERRUPTED
    except BrokenPipeError:  # `hive events | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE


def _dispatch(arguments: list[str], console: Console) -> int:
    if not arguments:
        console.err.write(f"{overview(VERBS)}\n")
        return Exit.USAGE
    word, *rest = arguments
    if word in {"-h", "--help", "help"}:
        return _help([one for one in rest if not one.startswith("-")], console)
    if word in {"-V", "--version"}:
        word = "version"
    verb = _verb(word, rest)
    parser = parser_of(verb)
    # Options may stand between texts; but argparse forgets in that mode what `--` means.
    options = parser.parse_args(rest) if "--" in rest else parser.parse_intermixed_args(rest)
    console.as_json = getattr(options, "json", False)
    module, function = verb.run.split(":")
    run = getattr(importlib.import_module(f"reconciler.cli.{module}"), function)
    status = run(options, console)
    assert isinstance(status, int)
    return status


def _help(words: list[str], console: Console) -> int:
    text = parser_of(_verb(words[0])).format_help() if words else f"{overview(VERBS)}\n"
    console.out.write(text)
    return Exit.DONE


def _verb(word: str, rest: Sequence[str] = ()) -> Verb:
    for verb in VERBS:
        if verb.name == word:
            return verb
    import difflib

    close = difflib.get_close_matches(word, [verb.name for verb in VERBS], n=1)
    hint = f"did you mean `hive {close[0]}`?" if close else "`hive help` lists the verbs"
    if word == "--json" and rest:
        hint = f"it stands after the verb: `hive {rest[0][:60]} --json`"
    raise Failure(f"there is no verb {word[:60]!r}", hint, code="usage", status=Exit.USAGE)
